"""A band as a dask array: whatever is taken of it is what numpy gives, and no more is read than is taken."""

from __future__ import annotations

import copy
import itertools
import pickle

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.graph_manipulation import wait_on
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.engine.array import BandArray
from cube.io.trace import trace
from cube.testing.archive import unique_values, write_cog

DAYS, ROWS, COLUMNS, TILE = 5, 70, 90, 16
CHUNKS = ({"time": 2, "y": 32, "x": 48}, {"y": 25}, "auto")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    options = {"driver": "GTiff", "blockxsize": TILE, "blockysize": TILE, "nodata": 0, "scale": 0.01}
    transform = from_origin(500000, 5000000, 10, 10)
    for band, day in itertools.product(("red", "nir"), range(DAYS)):
        values = unique_values((ROWS, COLUMNS), "uint16", day + 10 * (band == "nir"))
        values[day : day + 9, 5:50] = 0
        write_cog(folder / f"2024010{day + 1}_{band}.tif", values, transform=transform, **options)
    return build(folder)


@pytest.fixture(scope="module")
def eager(manifest):
    return open_cube(manifest).load()


@pytest.fixture(scope="module")
def opened(manifest):
    return [open_cube(manifest, chunks=chunks) for chunks in CHUNKS]


def parts(length):
    """Indices of an axis: positions, ranges with any step, lists, masks."""
    positions = st.integers(-length, length - 1)
    bounds = st.none() | st.integers(-length, length + 3)  # dask takes a[-9::-1] of 5 for a[::-1]
    steps = st.none() | st.integers(1, 3) | st.integers(-3, -1)
    return (
        positions
        | st.builds(slice, bounds, bounds, steps)
        | st.builds(slice, bounds, bounds)
        | st.lists(positions, max_size=6)
        | st.lists(st.booleans(), min_size=length, max_size=length).map(np.array)
    )


@st.composite
def chains(draw):
    """Return indexers by dimension that are applied one after another."""
    sizes = {"time": DAYS, "y": ROWS, "x": COLUMNS}
    chain = []
    for _ in range(draw(st.integers(1, 3))):
        dims = draw(st.lists(st.sampled_from(sorted(sizes)), unique=True, max_size=3)) if sizes else []
        key = {dim: draw(parts(sizes[dim])) for dim in dims if sizes[dim]}
        for dim, each in key.items():
            left = np.ndim(np.arange(sizes[dim])[each]) and len(np.arange(sizes[dim])[each])
            sizes[dim] = left
            if isinstance(each, int):
                del sizes[dim]
        chain.append(key)
    return chain


@settings(max_examples=60, deadline=None)
@given(chain=chains(), which=st.integers(0, len(CHUNKS) - 1))
def test_any_chain_of_parts_is_what_numpy_gives(opened, eager, chain, which):
    found, expected = opened[which], eager
    for key in chain:
        found, expected = found.isel(key), expected.isel(key)
    with trace() as asked, dask.config.set(scheduler="synchronous"):
        xr.testing.assert_identical(found.compute(), expected)
    read = {record.href.rpartition("/")[2][:8] for record in asked.records}
    if type(found.red.data) is BandArray:
        assert read == set(np.atleast_1d(expected.time.dt.strftime("%Y%m%d").values).tolist())


@pytest.mark.parametrize("which", range(len(CHUNKS)))
@pytest.mark.parametrize(
    "index",
    [
        (slice(None), 3),
        (Ellipsis, slice(2, 5)),
        ([3, 1], slice(2, 5), 7),
        (0, slice(None), [1, 2]),
        (slice(None, None, 2), [40, 3]),
        None,
        (None, 0),
        (slice(None), np.arange(ROWS) % 3 == 0),
    ],
)
def test_an_index_of_the_array_gives_what_dask_gives(opened, eager, which, index):
    oracle = da.from_array(eager.red.values, (2, 32, 48))[index]
    found = opened[which].red.data[index]
    np.testing.assert_array_equal(found.compute(scheduler="synchronous"), oracle.compute(scheduler="synchronous"))


def test_masks_of_dask_points_and_blocks_are_as_ever(opened, eager):
    array, values = opened[0].red.data, eager.red.values
    found = array[array > 100]
    np.testing.assert_array_equal(found.compute(), values[values > 100])
    np.testing.assert_array_equal(array.vindex[[0, 4], [3, 69], [5, 89]].compute(), values[[0, 4], [3, 69], [5, 89]])
    np.testing.assert_array_equal(array.blocks[1, 2, 0].compute(), values[2:4, 64:, :48])
    np.testing.assert_array_equal(array[da.from_array([2, 0])].compute(), values[[2, 0]])


@pytest.mark.parametrize(
    ("index", "error"), [(DAYS, IndexError), ((0, 0, 0, 0), IndexError), ((0, 0, COLUMNS), IndexError)]
)
def test_what_is_not_there_is_refused(opened, index, error):
    with pytest.raises(error):
        opened[0].red.data[index]


def test_a_part_is_an_array_of_a_cube_again_until_something_is_done(opened):
    array = opened[0].red.data
    assert type(array) is type(array[1:3]) is type(array[0]) is type(array[[2, 0], :5][:, 3]) is BandArray
    assert type(array[:, ::2]) is type(array + 1) is da.Array
    assert array[:] is array
    assert array[...] is array


def test_names_tell_parts_apart(opened, manifest):
    array = opened[0].red.data
    names = [array[key].name for key in (0, slice(0, 1), slice(0, 2), (slice(None), 3), (slice(None), slice(3, 4)))]
    assert len({array.name, *names}) == 6
    assert array[0].name == open_cube(manifest, chunks=CHUNKS[0]).red.data[0].name
    assert array[1:][1:].name == array[2:].name, "of the same blocks"


def test_copies_are_the_array_and_pickles_its_reads(opened):
    array = opened[0].red.data[1:]
    assert copy.deepcopy(array) is array
    again = pickle.loads(pickle.dumps(array))
    assert (type(again), again.name, again.chunks, again.dtype) == (BandArray, array.name, array.chunks, array.dtype)
    assert set(again.__dask_graph__().layers) == set(array.__dask_graph__().layers)


@pytest.mark.parametrize("changed", [dask.optimize, dask.persist, lambda ds: (wait_on(ds),)])
def test_what_dask_makes_of_the_arrays_still_computes(opened, eager, changed):
    (found,) = changed(opened[0].isel(y=slice(3, 40)))
    xr.testing.assert_identical((found + 1).compute(), eager.isel(y=slice(3, 40)) + 1)


def test_parts_of_bands_share_their_reads(opened):
    ds = opened[0]
    part = ds.isel(time=slice(1, 4), y=slice(20, 40))
    with trace() as asked, dask.config.set(scheduler="synchronous"):
        (part.nir - part.red).isel(x=slice(0, TILE)).compute()
    assert {record.href[-7:] for record in asked.records} == {"nir.tif", "red.tif"}
    layers = {name for each in (part.nir, part.red) for name in each.data.dask.layers if "read" in name}
    assert len(layers) == 1
