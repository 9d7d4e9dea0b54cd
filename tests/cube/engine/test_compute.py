"""What could not be read comes with what could: of just the blocks that were read, and by the same reads."""

from __future__ import annotations

import itertools
import logging
from collections import Counter

import dask
import numpy as np
import pytest
import xarray as xr
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.engine.compute import compute_reported
from cube.errors import SourceError
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

DATES, BANDS, TILE = ("20240101", "20240201"), ("nir", "red"), 64
CHUNKS = {"y": TILE, "x": TILE}
GONE, DAMAGED = "20240101_red_0.tif", "20240201_nir_1.tif"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two tiles of a tile side by side, of which one source is gone and another cut off since the build."""
    root = tmp_path_factory.mktemp("objects")
    for seed, (date, band, place) in enumerate(itertools.product(DATES, BANDS, (0, 1))):
        transform = from_origin(500000 + 10 * TILE * place, 5000000, 10, 10)
        values = unique_values((TILE, TILE), "uint16", seed)
        write_cog(root / f"{date}_{band}_{place}.tif", values, transform=transform, blocksize=TILE, nodata=0)
    with ObjectStore(root) as store:
        manifest = build([f"{store.url}/{path.name}" for path in sorted(root.iterdir())], name="holes")
        whole = open_cube(manifest, mask_and_scale=False).load()
        (root / GONE).unlink()
        data = bytearray((root / DAMAGED).read_bytes())
        data[-900:] = bytes(900)
        (root / DAMAGED).write_bytes(data)
        yield store, manifest, whole


@pytest.fixture
def ds(archive):
    archive[0].reset()
    return open_cube(archive[1], chunks=CHUNKS, fail_on_error=False, mask_and_scale=False)


@pytest.fixture
def expected(archive):
    whole = archive[2].copy(deep=True)
    whole.red[0, :, :TILE] = 0
    whole.nir[1, :, TILE:] = 0
    return whole


def names(holes):
    return [hole.href.rpartition("/")[2] for hole in holes]


def test_all_that_is_missing_is_told_and_the_rest_is_exact(archive, ds, expected):
    found, holes = compute_reported(ds)
    xr.testing.assert_equal(found, expected)
    assert names(holes) == [GONE, DAMAGED]
    assert all(hole.reason for hole in holes)
    counts = Counter(archive[0].counts().paths)
    assert max(counts.values()) == 1, "nothing is read twice"
    assert len(counts) == 8


@pytest.mark.parametrize(
    ("take", "missing"),
    [
        (lambda ds: ds.red.isel(x=slice(0, 9)), [GONE]),
        (lambda ds: (ds.red.astype("float64") - ds.nir).max("time").isel(x=slice(TILE, None)), [DAMAGED]),
        (lambda ds: ds.red.isel(x=slice(TILE, None)), []),
        (lambda ds: ds.isel(time=1), [DAMAGED]),
        (lambda ds: ds.isel(time=0, x=3).max(), [GONE]),
    ],
)
def test_just_what_is_read_is_told(archive, ds, expected, take, missing):
    found, holes = compute_reported(take(ds))
    xr.testing.assert_equal(found, take(expected))
    assert names(holes) == missing
    assert max(Counter(archive[0].counts().paths).values()) == 1


def test_selections_that_are_computed_together_are_told_together(archive, ds):
    other = open_cube(archive[1], chunks=CHUNKS, fail_on_error=False, mask_and_scale=False, bands="nir")
    both = xr.Dataset({"a": ds.red[0].drop_vars("time"), "b": other.nir[1].drop_vars("time")})
    assert names(compute_reported(both)[1]) == [GONE, DAMAGED]


def test_a_cube_whose_errors_are_raised_tells_nothing(archive):
    ds = open_cube(archive[1], chunks=CHUNKS, mask_and_scale=False)
    assert compute_reported(ds.nir[0])[1] is None
    assert compute_reported(xr.DataArray([1]))[1] is None
    with pytest.raises(SourceError, match=GONE):
        compute_reported(ds.red)


def test_options_are_those_of_dask(ds):
    with dask.config.set(scheduler="threads"):
        assert names(compute_reported(ds.red, scheduler="synchronous")[1]) == [GONE]


def test_dask_alone_gives_the_data_and_warns(ds, expected, caplog):
    with caplog.at_level(logging.WARNING, "cube"):
        np.testing.assert_array_equal(ds.red.compute(scheduler="synchronous"), expected.red)
    assert [GONE in record.getMessage() for record in caplog.records] == [True]


def test_errors_that_are_left_out_make_another_token(archive, ds):
    assert open_cube(archive[1], chunks=CHUNKS, mask_and_scale=False).red.data.name != ds.red.data.name
