"""What a cube costs in requests, counted by the store that answers them."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import dask
import numpy as np
import pytest
import xarray as xr

from cube import open_cube
from cube.archive.build import build
from cube.grid import Window
from cube.manifest.open import open_manifest
from cube.reader import read_block
from cube.settings import get_settings
from cube.spec import CubeSpec
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

DATES = ("20240101", "20240201", "20240301")
BANDS = ("nir", "red", "scl")
TILE, ROWS, COLUMNS = 64, 5, 6
HEIGHT, WIDTH = ROWS * TILE - 10, COLUMNS * TILE - 20
NAMES = [f"{date}_{band}.tif" for date, band in itertools.product(DATES, BANDS)]


@pytest.fixture(scope="module")
def truth():
    """(time, y, x) by band: random numbers, so that no tile is small."""
    rng = np.random.default_rng(0)
    return {band: rng.integers(1, 2**16, (3, HEIGHT, WIDTH), "uint16") for band in BANDS}


@pytest.fixture(scope="module")
def running(truth, tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    for (i, date), band in itertools.product(enumerate(DATES), BANDS):
        write_cog(root / f"{date}_{band}.tif", truth[band][i], blocksize=TILE, OVERVIEWS="NONE", nodata=0)
    with ObjectStore(root) as store:
        yield store


@pytest.fixture
def store(running):
    running.reset()
    return running


@pytest.fixture(scope="module")
def manifest(running, tmp_path_factory):
    return build([f"{running.url}/{name}" for name in NAMES], to=tmp_path_factory.mktemp("cube") / "s.cube")


@pytest.fixture(autouse=True)
def _narrow_gap(monkeypatch):
    """Merge neighbours alone: by default files as small as these are one request."""
    monkeypatch.setenv("CUBE_GAP_BYTES", "64")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


def asked(store):
    """Return the number of requests by path, and forget them."""
    found = Counter(store.counts().paths)
    store.reset()
    return found


def read(manifest, bands, times, top, bottom, left, right):
    spec = CubeSpec(manifest=manifest.url, version=manifest.version)
    return read_block(spec, bands, times, Window(top=top, bottom=bottom, left=left, right=right))


def test_a_build_costs_one_request_a_cog(store, tmp_path):
    build([f"{store.url}/{name}" for name in NAMES], to=tmp_path / "s.cube")
    counts = store.counts()
    assert counts.paths == dict.fromkeys(NAMES, 1)
    assert {(method, start) for method, _, start, _ in counts.ranges} == {("GET", 0)}
    assert counts.bytes <= len(NAMES) * get_settings().header_bytes


def test_a_header_longer_than_the_first_request_costs_one_more(tmp_path, monkeypatch):
    write_cog(
        tmp_path / "a.tif", np.zeros((2048, 2048), "uint8"), blocksize=16, driver="GTiff", blockxsize=16, blockysize=16
    )
    monkeypatch.setenv("CUBE_HEADER_BYTES", "1024")
    get_settings.cache_clear()
    with ObjectStore(tmp_path) as store:
        build(f"{store.url}/a.tif")
        assert 2 <= store.counts().requests <= 3


def test_opening_a_built_cube_costs_none(store, manifest):
    fresh = open_manifest(manifest.url)
    for open_it in (
        lambda: open_cube(manifest.url),
        lambda: open_cube(manifest.url, chunks={}),
        lambda: open_cube(fresh, bands=["red"], time="2024-02"),
        lambda: xr.open_dataset(manifest.url, engine="cube", chunks={}),
    ):
        repr(open_it())
    assert asked(store) == {}


@pytest.mark.parametrize(
    ("top", "left", "rows", "columns"),
    [(0, 0, 1, 1), (1, 2, 3, 2), (0, 1, 5, 5), (2, 0, 2, 5), (4, 3, 1, 3), (0, 3, 5, 1)],
)
def test_a_window_costs_at_most_its_rows_of_tiles(store, manifest, truth, top, left, rows, columns):
    """Files are bigger than the gap: neighbours in a row of tiles are one request, rows are apart."""
    edges = (top * TILE, min((top + rows) * TILE, HEIGHT), left * TILE, min((left + columns) * TILE, WIDTH))
    found = read(manifest, ["red", "nir"], (0, 2), *edges)
    for band in ("red", "nir"):
        np.testing.assert_array_equal(found[band], truth[band][[0, 2], edges[0] : edges[1], edges[2] : edges[3]])
    paths = [f"{date}_{band}.tif" for date in (DATES[0], DATES[2]) for band in ("red", "nir")]
    assert asked(store) == dict.fromkeys(paths, rows)


@pytest.mark.parametrize(("top", "rows"), [(0, ROWS), (1, 3), (4, 1)])
def test_a_window_of_whole_rows_of_tiles_costs_one(store, manifest, truth, top, rows):
    edges = (top * TILE + 5, min((top + rows) * TILE, HEIGHT) - 5, 0, WIDTH)
    found = read(manifest, ["red"], (1,), *edges)
    np.testing.assert_array_equal(found["red"][0], truth["red"][1, edges[0] : edges[1]])
    assert asked(store) == {"20240201_red.tif": 1}


def test_no_byte_is_fetched_that_is_no_wanted_tile_or_gap(store, manifest):
    read(manifest, ["red"], (0,), 0, 2 * TILE, TILE, 3 * TILE)
    ranges = sorted((start, stop) for _, _, start, stop in store.counts().ranges)
    (source,) = [i for i in range(len(manifest)) if manifest.facts(i).href.endswith("20240101_red.tif")]
    image = manifest.image(source)
    expected = [
        (int(image.offsets[0, row, 1]), int(image.offsets[0, row, 2] + image.lengths[0, row, 2])) for row in (0, 1)
    ]
    assert ranges == expected


def test_a_wide_gap_makes_one_request_of_a_file(store, manifest, monkeypatch):
    monkeypatch.setenv("CUBE_GAP_BYTES", str(2**20))
    get_settings.cache_clear()
    read(manifest, ["red"], (0,), 0, HEIGHT, TILE, 2 * TILE)
    assert asked(store) == {"20240101_red.tif": 1}


def test_a_request_is_never_larger_than_allowed(store, manifest, truth, monkeypatch):
    limit = 2**16
    monkeypatch.setenv("CUBE_REQUEST_BYTES", str(limit))
    get_settings.cache_clear()
    found = read(manifest, ["red"], (0,), 0, HEIGHT, 0, WIDTH)
    np.testing.assert_array_equal(found["red"][0], truth["red"][0])
    ranges = store.counts().ranges
    assert max(stop - start for _, _, start, stop in ranges) <= limit
    assert len(ranges) <= math.ceil(HEIGHT * WIDTH * 2 * 1.2 / limit) + 2


def test_all_dates_and_bands_are_under_way_at_once(truth, tmp_path):
    for (i, date), band in itertools.product(enumerate(DATES), BANDS):
        write_cog(tmp_path / f"{date}_{band}.tif", truth[band][i], blocksize=TILE, OVERVIEWS="NONE")
    with ObjectStore(tmp_path, latency_s=0.5) as slow:
        manifest = build([f"{slow.url}/{name}" for name in NAMES], to=tmp_path / "s.cube")
        assert (slow.counts().requests, slow.counts().max_in_flight) == (9, 9), "headers, too"
        slow.reset()
        read(manifest, BANDS, (0, 1, 2), 0, TILE, 0, TILE)
        assert (slow.counts().requests, slow.counts().max_in_flight) == (9, 9)


CHUNKS = {"time": -1, "y": 2 * TILE, "x": 3 * TILE}
BLOCKS = 3 * 2


def test_ndvi_makes_one_read_a_block_of_its_two_bands(store, manifest, truth):
    ds = open_cube(manifest, chunks=CHUNKS, mask_and_scale=False)
    nir, red = ds.nir.astype("float64"), ds.red.astype("float64")
    ndvi = ((nir - red) / (nir + red)).max("time")
    graph = dask.base.collections_to_expr([ndvi]).optimize().__dask_graph__()
    assert sum("read_bands" in repr(task) for task in graph.values()) == BLOCKS
    with dask.config.set(scheduler="threads"):
        found = ndvi.compute()
    paths = [f"{date}_{band}.tif" for date in DATES for band in ("nir", "red")]
    # A block is at most two rows of tiles high; a file has five rows, and the block's columns are half of them.
    assert asked(store) == dict.fromkeys(paths, ROWS * 2)
    n, r = truth["nir"].astype("float64"), truth["red"].astype("float64")
    np.testing.assert_array_equal(found.values, ((n - r) / (n + r)).max(0))


@pytest.mark.parametrize("chunks", [None, CHUNKS])
def test_a_band_reads_itself_alone(store, manifest, truth, chunks):
    ds = open_cube(manifest, chunks=chunks, mask_and_scale=False)
    np.testing.assert_array_equal(ds.red.values, truth["red"])
    assert set(asked(store)) == {f"{date}_red.tif" for date in DATES}


PARTS = [
    ({"time": 1, "y": slice(3, TILE), "x": slice(3, TILE)}, {"20240201": 1}),
    ({"time": [2, 0], "y": 5, "x": 2 * TILE}, {"20240101": 1, "20240301": 1}),
    (
        {"time": slice(1, None), "y": slice(TILE - 1, TILE + 1), "x": slice(TILE + 1, 2 * TILE)},
        {"20240201": 2, "20240301": 2},
    ),
    ({"y": slice(0, TILE), "x": slice(None, TILE)}, dict.fromkeys(DATES, 1)),
]


@pytest.mark.parametrize("chunks", [None, "auto", CHUNKS, {"y": 17, "x": 1000}])
@pytest.mark.parametrize(("part", "expected"), PARTS)
@pytest.mark.parametrize("mask_and_scale", [True, False])
def test_a_slice_reads_only_its_tiles(store, manifest, truth, chunks, part, expected, mask_and_scale):
    ds = open_cube(manifest, chunks=chunks, mask_and_scale=mask_and_scale)
    oracle = xr.DataArray(truth["red"], dims=("time", "y", "x"))
    found = ds.isel(part).red
    np.testing.assert_array_equal(found.values, oracle.isel(part).values)
    counts = asked(store)
    if chunks == {"y": 17, "x": 1000}:
        assert set(counts) == {f"{date}_red.tif" for date in expected}, "a tile in two blocks is read for each"
    else:
        assert counts == {f"{date}_red.tif": count for date, count in expected.items()}


@pytest.mark.parametrize("chunks", ["auto", CHUNKS])
def test_a_part_by_label_is_read_as_a_part(store, manifest, truth, chunks):
    ds = open_cube(manifest, chunks=chunks)
    part = ds.sel(time=["2024-02-01"], x=slice(ds.x[0], ds.x[9]), y=slice(ds.y[0], ds.y[9]))
    ndvi = ((part.nir - part.red) / (part.nir + part.red)).mean("time")
    n, r = (truth[band][1, :10, :10].astype("float32") for band in ("nir", "red"))
    np.testing.assert_array_equal(ndvi.values, (n - r) / (n + r))
    assert asked(store) == {"20240201_nir.tif": 1, "20240201_red.tif": 1}


def test_without_dask_a_variable_is_one_read(store, manifest):
    ds = open_cube(manifest)
    ds.red.load()
    assert asked(store) == {f"{date}_red.tif": 1 for date in DATES}
    ds.red.load()
    _ = ds.red.values
    assert asked(store) == {}, "xarray keeps what was loaded"


def test_a_mosaic_reads_the_sources_that_the_window_touches(tmp_path):
    from rasterio.transform import from_origin

    for i in range(4):
        transform = from_origin(500000 + 1000 * i, 5000000, 10, 10)
        write_cog(tmp_path / f"t{i}.tif", unique_values((100, 100), "uint16", i), transform=transform, blocksize=64)
    with ObjectStore(tmp_path) as store:
        manifest = build([f"{store.url}/t{i}.tif" for i in range(4)], to=tmp_path / "s.cube")
        store.reset()
        ds = open_cube(manifest)
        _ = ds.band_1.isel(x=slice(150, 250), y=slice(0, 50)).values
        assert asked(store) == {"t1.tif": 1, "t2.tif": 1}
