"""The graph of 10,000 blocks: seconds to open, write an expression and optimise, tasks a block, bytes a task."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.testing import write_cog

TILE, DATES, BANDS = 16, 3, ("nir", "red")


@pytest.fixture(scope="module")
def cube(full: bool, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A manifest, and its number of blocks of a tile; nothing is read of its sparse files."""
    side = 100 if full else 8
    folder: Path = tmp_path_factory.mktemp("blocks")
    options = {"driver": "GTiff", "blockxsize": TILE, "blockysize": TILE, "nodata": 0, "SPARSE_OK": True}
    transform = from_origin(500000, 5000000, 10, 10)
    for day, band in itertools.product(range(DATES), BANDS):
        values = np.zeros((side * TILE, side * TILE), "uint16")
        write_cog(folder / f"2024010{day + 1}_{band}.tif", values, transform=transform, **options)
    return build(folder, to=tmp_path_factory.mktemp("built") / "blocks.cube").url, side * side


def express(url: str, how: str) -> Any:
    ds = open_cube(url, chunks={"y": TILE, "x": TILE})
    ndvi = (ds.nir - ds.red) / (ds.nir + ds.red)
    return getattr(ndvi, how)("time")


@pytest.mark.parametrize("how", ["mean", "median"])
def test_graph(benchmark, full, cube, how):
    url, blocks = cube

    def make():
        return dask.optimize(express(url, how))[0]

    optimised = benchmark.pedantic(make, rounds=5 if full else 1, warmup_rounds=int(full))
    graph = dict(optimised.__dask_graph__())
    assert len(graph) <= (len(BANDS) + 4) * blocks
    sizes = [len(pickle.dumps(task)) for task in graph.values()]
    sent = len(pickle.dumps(dask.base.collections_to_expr([express(url, how)]).optimize()))
    assert sum(sizes) < 1024 * len(sizes)
    benchmark.extra_info |= {
        "blocks": blocks,
        "tasks_a_block": len(graph) / blocks,
        "bytes_a_task": sum(sizes) / len(sizes),
        "bytes_sent": sent,
    }


@pytest.mark.parametrize("part", ["slice", "dates"])
def test_a_part_of_many_blocks(benchmark, full, cube, part):
    """Indexing before anything is computed: arithmetic on a few numbers, whatever the number of blocks."""
    ds = open_cube(cube[0], chunks={"y": TILE, "x": TILE})
    key = {"y": slice(3, -3), "x": slice(3, -3)} if part == "slice" else {"time": [2, 0]}
    found = benchmark.pedantic(lambda: ds.isel(key), rounds=20 if full else 1)
    assert found.red.data.npartitions == cube[1]
