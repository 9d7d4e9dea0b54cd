"""A read from a store in trouble, against the same read from a sound one."""

from __future__ import annotations

import numpy as np
import pytest

import cube
from cube.grid import Window
from cube.io.trace import trace
from cube.reader import read_block
from cube.testing import Faults, Latency, ObjectStore, write_cog

TROUBLE = Faults(throttle_share=0.05, reset_share=0.01, truncate_share=0.01)


@pytest.fixture
def folder(full, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(16):
        write_cog(tmp_path / f"{i}.first", rng.integers(1, 3000, (256, 256)).astype("u2"), nodata=0, overviews="NONE")
    for i in range(2000 if full else 50):
        (tmp_path / f"nir_{np.datetime64(i, 'D')}.tif").hardlink_to(tmp_path / f"{i % 16}.first")
    return tmp_path


def test_trouble(folder, tmp_path_factory, against, benchmark):
    """A tile of each of 2,000 files at 50 ms: 5 % 503, 1 % resets, 1 % truncated, a tail of 2 s on 1 % of requests."""
    with ObjectStore(folder, latency_s=0.05) as store:
        urls = [f"{store.url}/{path.name}" for path in folder.glob("*.tif")]
        built = tmp_path_factory.mktemp("built") / "a.cube"
        manifest = cube.build(urls, to=built, pattern="{band}_{time:%Y-%m-%d}.tif")
        spec = cube.CubeSpec(manifest=manifest.url, version=manifest.version)
        window = Window(top=10, bottom=250, left=10, right=250)
        seed = 0

        def read():
            return read_block(spec, ["nir"], range(len(urls)), window)["nir"]

        def sound():
            store.behave(latency=Latency(0.05), faults=Faults())
            store.reset()
            return read()

        def troubled():
            nonlocal seed
            seed += 1
            store.behave(latency=Latency(0.05, tail_share=0.01, tail_s=2), faults=TROUBLE, seed=seed)
            store.reset()
            return read()

        clean, clean_requests = sound(), store.counts().requests
        with trace() as asked:
            assert np.array_equal(troubled(), clean)
        benchmark.extra_info |= {
            "requests": store.counts().requests,
            "clean_requests": clean_requests,
            "hedges": sum(each.hedge for each in asked.records),
        }
        against(troubled, sound)
