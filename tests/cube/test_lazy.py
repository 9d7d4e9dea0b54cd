"""Without Dask: bands that are loaded together are one read, and what is missing is told."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

import dask
import numpy as np
import pytest
import xarray as xr
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.errors import SourceError
from cube.lazy import LazyBand, find_lazy, load_together
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

DATES, BANDS, SIZE, TILE = ("20240101", "20240201", "20240301"), ("red", "green", "blue"), 100, 64


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A file a date that holds all bands of a pixel together: each band by itself would fetch all of it."""
    root = tmp_path_factory.mktemp("objects")
    transform = from_origin(500000, 5000000, 10, 10)
    for seed, date in enumerate(DATES):
        values = unique_values((3, SIZE, SIZE), "uint16", seed)
        write_cog(root / f"{date}.tif", values, descriptions=BANDS, transform=transform, blocksize=TILE, nodata=0)
    with ObjectStore(root) as store:
        yield store, build([f"{store.url}/{date}.tif" for date in DATES], name="rgb"), root


@pytest.fixture
def store(running):
    running[0].reset()
    return running[0]


@pytest.fixture
def ds(running):
    return open_cube(running[1])


@pytest.fixture(scope="module")
def truth(running):
    return open_cube(running[1], chunks={}).compute()


def asked(store):
    found = Counter(store.counts().paths)
    store.reset()
    return found


PARTS = {
    "all": lambda ds: ds,
    "slices": lambda ds: ds.isel(time=1, y=slice(3, 90, 2)),
    "lists": lambda ds: ds.isel(time=[2, 0]).isel(x=slice(None, 50)).isel(x=[3, 1, 49]),
    "pixel": lambda ds: ds[["red", "blue"]].isel(y=-1, x=5),
    "copy": lambda ds: ds.copy(deep=True),
    "nothing": lambda ds: ds.isel(y=slice(5, 5)),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_bands_of_the_same_part_are_one_read(store, ds, truth, part):
    dates = np.atleast_1d(part(ds).time.dt.strftime("%Y%m%d")).tolist() if part(ds).red.size else []
    expected = dict.fromkeys([f"{date}.tif" for date in dates], 1)
    xr.testing.assert_identical(part(ds).cube.compute(), part(truth))
    assert asked(store) == expected
    xr.testing.assert_identical(asyncio.run(part(ds).copy().load_async()), part(truth))
    assert asked(store) == expected
    xr.testing.assert_identical(part(ds).compute(), part(truth))
    assert asked(store) == dict.fromkeys(expected, len(part(ds).data_vars)), "xarray loads one after another"


def test_bands_of_different_parts_are_read_as_what_they_are(store, ds, truth):
    mixed = xr.Dataset({"a": ds.red[0, 0, :9], "b": ds.green[0, 0, :9], "c": ds.blue[1, 0, :9].drop_vars("time")})
    found = mixed.cube.compute()
    for name, band, day in (("a", "red", 0), ("b", "green", 0), ("c", "blue", 1)):
        np.testing.assert_array_equal(found[name], truth[band][day, 0, :9])
    assert asked(store) == {"20240101.tif": 1, "20240201.tif": 1}


def test_what_is_loaded_is_not_read_again(store, ds):
    ds.red.load()
    asked(store)
    found = ds.cube.compute()
    assert asked(store) == dict.fromkeys([f"{date}.tif" for date in DATES], 1), "green and blue"
    assert find_lazy(ds.red.variable, LazyBand) is None
    found.cube.compute()
    assert asked(store) == {}
    assert load_together({}) == ({}, None)


def test_an_array_by_itself(store, ds, truth):
    found = ds.green.isel(time=0).cube.compute()
    xr.testing.assert_identical(found, truth.green.isel(time=0))
    assert asked(store) == {"20240101.tif": 1}
    assert "missing_sources" not in found.attrs


def test_the_engine_of_xarray_gives_the_same(store, running, truth):
    for cache in (True, False):
        part = xr.open_dataset(running[1].url, engine="cube", cache=cache).isel(time=0, y=slice(3, 9))
        xr.testing.assert_identical(part.cube.compute(), truth.isel(time=0, y=slice(3, 9)))
        assert asked(store) == {"20240101.tif": 1}


def test_with_dask_it_is_what_dask_computes(store, running, truth):
    ds = open_cube(running[1], chunks={"y": 64})
    xr.testing.assert_identical(ds.cube.compute(scheduler="synchronous"), truth)
    ndvi = (ds.red - ds.green).max("time").rename("difference")
    xr.testing.assert_identical(ndvi.cube.compute(), (truth.red - truth.green).max("time").rename("difference"))


def test_the_cube_is_still_known(ds):
    assert ds.cube.compute().cube.manifest is ds.cube.manifest


def test_a_load_that_is_given_up_leaves_the_next_one_alone(ds, truth):
    async def give_up_and_load():
        first = asyncio.create_task(ds.copy().load_async())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await ds.load_async()

    xr.testing.assert_identical(asyncio.run(give_up_and_load()), truth)


def test_one_of_two_that_wait_for_a_read_may_give_up(store, ds, truth):
    async def load_two():
        red = asyncio.create_task(ds.red.copy().load_async())
        green = asyncio.create_task(ds.green.copy().load_async())
        await asyncio.sleep(0)
        red.cancel()
        return await green

    xr.testing.assert_identical(asyncio.run(load_two()), truth.green)
    assert asked(store) == dict.fromkeys([f"{date}.tif" for date in DATES], 1)


@pytest.fixture
def holed(running, tmp_path):
    """The cube, with a source that is gone."""
    store, _, root = running
    away = tmp_path / "away.tif"
    (root / "20240201.tif").rename(away)
    yield f"{store.url}/20240201.tif"
    away.rename(root / "20240201.tif")


@pytest.mark.parametrize("chunks", [None, {"y": 64}])
def test_what_is_missing_stands_in_the_attributes(running, truth, holed, chunks, tmp_path):
    ds = open_cube(running[1], chunks=chunks, fail_on_error=False)
    found = ds.cube.compute()
    (text,) = found.attrs["missing_sources"]
    assert text.startswith(f"{holed}: ")
    assert np.isnan(found.red[1]).all()
    xr.testing.assert_equal(found.isel(time=[0, 2]), truth.isel(time=[0, 2]))
    assert ds.isel(time=0).cube.compute().attrs["missing_sources"] == []
    if chunks:  # without dask, arithmetic has read already
        assert len(ds.red.max("time").cube.compute().attrs["missing_sources"]) == 1
    assert "missing_sources" not in ds.attrs
    with pytest.raises(SourceError, match=r"20240201\.tif"):
        open_cube(running[1], chunks=chunks).cube.compute()
    found.to_zarr(tmp_path / "found.zarr", zarr_format=3, consolidated=False)
    again = xr.open_zarr(tmp_path / "found.zarr", chunks=None, consolidated=False)
    assert again.attrs["missing_sources"] == [text]


def test_a_plain_load_gives_the_data_and_warns(running, holed, caplog):
    ds = open_cube(running[1], fail_on_error=False)
    with caplog.at_level(logging.WARNING, "cube"):
        assert np.isnan(ds.red.values[1]).all()
    assert [holed in record.getMessage() for record in caplog.records] == [True]


def test_tokens_tell_lazy_bands_apart(running):
    options = [{}, {"mask_and_scale": False}, {"fail_on_error": False}, {"bands": "red"}]
    tokens = [
        dask.base.tokenize(find_lazy(open_cube(running[1], **each).red.variable, LazyBand)[0]) for each in options
    ]
    assert len(set(tokens)) == 3
    assert tokens[0] == tokens[3]
