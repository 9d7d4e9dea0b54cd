"""What `explain` predicts against what reads take: requests and bytes are equal, seconds are reported as a ratio.

Latency, bandwidth and decode speed are measured by `tune` before each of a workload's rounds, as a user would once: so
that what else this machine does at the time is in both sides of the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import dask
import pytest

import cube
from cube.dataset import to_dataset
from cube.engine.blocks import plan_blocks
from cube.explain import explain
from cube.grid import Window
from cube.io.trace import trace
from cube.reader import read_block
from cube.selection import crop, select
from cube.settings import get_settings
from cube.testing import ObjectStore
from cube.tune import tune

PARTS = {"whole": (0, 1), "half": (0, 1 / 2), "window": (1 / 8, 1 / 2), "tile": (1 / 8, 1 / 4)}
"""First and last row and column, as shares of the grid."""
TUNED = {"CUBE_LATENCY_MS", "CUBE_CONNECTION_MB_S", "CUBE_STORE_MB_S", "CUBE_DECODE_MB_S"}
"""Of what `tune` proposes, what predictions stand on; the plan itself stays the same."""


@pytest.fixture(params=[10, 50, 100], ids=lambda ms: f"{ms}ms")
def manifest(request, archive, tmp_path) -> Iterator[cube.Manifest]:
    with ObjectStore(archive, latency_s=request.param / 1e3) as store:
        urls = [f"{store.url}/{path.name}" for path in sorted(archive.glob("*.tif"))]
        yield cube.build(urls, to=tmp_path / "bench.cube", pattern="{band}_{time:%Y%m%d}.tif")


@contextmanager
def tuned(manifest: cube.Manifest, *, full: bool) -> Iterator[None]:
    """Predict by what the store does now (by the defaults where times do not count), and send no request twice."""
    settings = tune(manifest, max_bytes=16_000_000).settings if full else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBE_HEDGE_SHARE", "0")
        for name in settings.keys() & TUNED:
            patch.setenv(name, str(settings[name]))
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


@pytest.mark.parametrize("way", ["no Dask", "threads"])
@pytest.mark.parametrize("part", PARTS)
def test_predictions(manifest, part, way, full, benchmark) -> None:
    first, last = (round(manifest.grid.width * share) for share in PARTS[part])
    window = Window(top=first, bottom=last, left=first, right=last)
    selection = replace(
        select(manifest, cube.CubeSpec(manifest=manifest.url, version=manifest.version)),
        window=window,
        grid=crop(manifest.grid, window),
    )
    blocks = plan_blocks(selection, "auto") if way == "threads" else None
    bands = [band.name for _, band in selection.bands]

    def run() -> None:
        if blocks is None:
            read_block(selection.spec, bands, selection.times, window)
        else:
            arrays = to_dataset(manifest, selection, chunks="auto", mask_and_scale=False)
            dask.compute([array.data.max() for array in arrays.data_vars.values()])  # hardly any arithmetic

    ratios, predicted = [], 0.0
    for _ in range(5 if full else 1):
        with tuned(manifest, full=full):
            plan = explain(selection, blocks)
            with trace() as asked:
                began = time.perf_counter()
                run()
                ratios.append(plan.predicted_s / (time.perf_counter() - began))
        predicted = plan.predicted_s
        if way == "no Dask":
            assert (asked.requests, asked.bytes) == (plan.requests, plan.bytes)
    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info |= {"predicted_s": predicted, "predicted/actual": statistics.median(ratios)}
