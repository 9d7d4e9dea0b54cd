"""When Dask pays: one NDVI mean without Dask, on threads, and on one and two worker processes, over growing windows.

`python -m benchmarks.bench_when_dask` prints the table of docs/explanation/when_dask.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xarray as xr
from distributed import Client, LocalCluster

import cube
from benchmarks.archives import write_archive
from cube.dataset import to_dataset
from cube.engine.cluster import NO_DASHBOARD
from cube.grid import Window
from cube.selection import crop, select
from cube.testing import ObjectStore

SIZES = (256, 512, 1024, 2048, 4096)

type Ways = dict[str, tuple[str | None, Callable[[xr.Dataset], np.ndarray]]]
"""Chunks, and how a result is made, by name."""


def ndvi_mean(ds: xr.Dataset) -> xr.DataArray:
    """What is computed, as a user writes it."""
    return ((ds.nir - ds.red) / (ds.nir + ds.red)).mean("time")


def open_window(manifest: cube.Manifest, size: int, chunks: str | None) -> xr.Dataset:
    spec = cube.CubeSpec(manifest=manifest.url, version=manifest.version)
    window = Window(top=0, bottom=size, left=0, right=size)
    selection = replace(select(manifest, spec, bands=["nir", "red"]), window=window, grid=crop(manifest.grid, window))
    return to_dataset(manifest, selection, chunks=chunks)


@contextmanager
def open_ways(workers: tuple[int, ...]) -> Iterator[Ways]:
    """Yield the ways; clusters are there before anything is timed."""
    with ExitStack() as stack:
        ways: Ways = {
            "no Dask": (None, lambda ds: ndvi_mean(ds.cube.compute()).values),
            "threads": ("auto", lambda ds: ndvi_mean(ds).compute(scheduler="threads").values),
        }
        for count in workers:
            cluster = stack.enter_context(LocalCluster(n_workers=count, threads_per_worker=1, **NO_DASHBOARD))
            client = stack.enter_context(Client(cluster, set_as_default=False))
            name = "1 worker" if count == 1 else f"{count} workers"
            ways[name] = ("auto", lambda ds, client=client: client.compute(ndvi_mean(ds)).result().values)
        yield ways


def measure(folder: Path, latency_ms: float, sizes: Sequence[int], rounds: int, workers: tuple[int, ...]) -> str:
    """Return a table of median seconds; ways alternate, and all give the same answer before a time counts."""
    with ExitStack() as stack:
        store = stack.enter_context(ObjectStore(folder, latency_s=latency_ms / 1e3))
        ways = stack.enter_context(open_ways(workers))
        place = Path(stack.enter_context(TemporaryDirectory()))
        urls = [f"{store.url}/{path.name}" for path in sorted(folder.glob("*.tif"))]
        manifest = cube.build(urls, to=place / "bench.cube", pattern="{band}_{time:%Y%m%d}.tif")
        lines = ["| window | read | " + " | ".join(ways) + " |", "|---|---:|" + "---:|" * len(ways)]
        for size in sizes:
            plan = open_window(manifest, size, None).cube.explain()
            answers = [run(open_window(manifest, size, chunks)) for chunks, run in ways.values()]
            for answer in answers[1:]:
                np.testing.assert_allclose(answer, answers[0], rtol=1e-5, atol=1e-6)
            seconds = alternate(manifest, size, ways, rounds)
            cells = " | ".join(f"{statistics.median(each):.2f} s" for each in seconds.values())
            lines.append(f"| {size} x {size} | {plan.bytes / 1e6:.1f} MB | {cells} |")
    return "\n".join(lines)


def alternate(manifest: cube.Manifest, size: int, ways: Ways, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (chunks, run) in ways.items():
            began = time.perf_counter()
            run(open_window(manifest, size, chunks))
            seconds[name].append(time.perf_counter() - began)
    return seconds


def test_the_ways_agree(archive) -> None:
    """Small, and without processes: what the table measures runs, and all give the same."""
    table = measure(archive, 0, (256, 512), 1, ())
    assert len(table.splitlines()) == 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    folder = write_archive("cube", full=True).served
    sizes = [int(size) for size in given.sizes.split(",")]
    print(measure(folder, given.latency_ms, sizes, given.rounds, (1, 2)))


if __name__ == "__main__":
    main()
