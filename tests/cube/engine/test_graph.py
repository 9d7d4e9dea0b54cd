from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections import Counter

import dask
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.engine.array import BandArray
from cube.engine.cluster import NO_DASHBOARD
from cube.engine.graph import ReadLayer, pick, read_bands
from cube.io.trace import trace
from cube.lazy import LazyBand
from cube.manifest.open import open_manifest
from cube.selection import select
from cube.spec import CubeSpec
from cube.testing.archive import unique_values, write_cog

DATES = ("20240101", "20240201", "20240301")
BANDS = ("nir", "red", "scl")
CHUNKS = {"time": 2, "y": 64, "x": 128}


@pytest.fixture(scope="module")
def truth():
    """(time, y, x) by band."""
    return {band: unique_values((3, 150, 200), "uint16", seed) for seed, band in enumerate(BANDS)}


@pytest.fixture(scope="module")
def manifest(truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    options = {"driver": "GTiff", "blockxsize": 64, "blockysize": 64, "transform": from_origin(500000, 5000000, 10, 10)}
    for band, (i, date) in itertools.product(BANDS, enumerate(DATES)):
        write_cog(folder / f"{date}_{band}.tif", truth[band][i], **options)
    return build(folder, name="series")


@pytest.fixture
def ds(manifest):
    return open_cube(manifest, chunks=CHUNKS)


def tasks(collection):
    """Return the number of tasks after dask's own optimisation by the name of what they run."""
    (optimised,) = dask.optimize(collection)
    graph = dict(optimised.__dask_graph__())
    return Counter(getattr(getattr(task, "func", None), "__name__", "alias") for task in graph.values())


def sources_read(collection):
    with trace() as asked, dask.config.set(scheduler="synchronous"):
        collection.compute()
    return Counter(record.href.rpartition("/")[2] for record in asked.records)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("chunks", ["auto", CHUNKS, {"time": 1, "x": 33}])
def test_values_are_the_same_whatever_runs_them(manifest, truth, scheduler, chunks):
    ds = open_cube(manifest, chunks=chunks)
    with dask.config.set(scheduler=scheduler):
        loaded = ds.compute()
    for band in BANDS:
        np.testing.assert_array_equal(loaded[band].values, truth[band])
        assert loaded[band].dtype == "uint16"


@pytest.fixture(scope="module")
def client():
    """A worker in another process."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, **NO_DASHBOARD) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_values_are_the_same_on_processes(manifest, truth, client):
    ds = open_cube(manifest, chunks=CHUNKS)
    expected = truth["red"].astype("int64") - truth["nir"]
    with client.as_current():
        found = client.compute(ds.red.astype("int64") - ds.nir).result()
        top = client.compute(ds.scl.max("time")).result()
    np.testing.assert_array_equal(found.values, expected)
    np.testing.assert_array_equal(top.values, truth["scl"].max(0))


@pytest.mark.parametrize(
    "key",
    [
        {"time": 1},
        {"y": slice(10, 70), "x": slice(120, 140)},
        {"time": [2, 0], "x": slice(None, None, -7)},
        {"y": [149, 3, 3]},
    ],
)
def test_any_part_is_what_numpy_gives(ds, truth, key):
    oracle = xr.DataArray(truth["nir"], dims=("time", "y", "x"))
    np.testing.assert_array_equal(ds.nir.isel(key).values, oracle.isel(key).values)


def test_a_block_is_one_read_of_the_bands_that_are_used(ds):
    difference = ds.nir.astype("int32") - ds.red
    assert sources_read(difference) == {f"{date}_{band}.tif": 6 for date in DATES for band in ("nir", "red")}
    assert sources_read(ds.red) == {f"{date}_red.tif": 6 for date in DATES}
    assert sources_read(ds) == {f"{date}_{band}.tif": 6 for date in DATES for band in BANDS}


def test_a_slice_reads_its_part_alone(ds):
    assert sources_read(ds.red.isel(time=0, y=slice(0, 60), x=slice(0, 60))) == {"20240101_red.tif": 1}
    assert sources_read(ds.red.isel(time=2, y=slice(60, 70), x=0)) == {"20240301_red.tif": 2}
    assert sources_read(ds.red.isel(time=[2, 0], y=3, x=3)) == {"20240101_red.tif": 1, "20240301_red.tif": 1}


def test_bands_that_are_sliced_alike_are_read_together(ds):
    part = ds.isel(time=0, y=slice(0, 60), x=slice(0, 60))
    assert tasks(part.nir.astype("int32") - part.red)["read_bands"] == 1
    assert tasks(ds.nir[0, :60, :60].astype("int32") - ds.red[0, :60, :60])["read_bands"] == 1
    assert tasks(ds.sel(time="2024-03").isel(y=0))["read_bands"] == 2, "three tiles wide, blocks of two"


def test_a_read_task_reads_a_block_once_for_all_that_use_it(ds):
    both = xr.Dataset({"sum": ds.nir.astype("int32") + ds.red, "difference": ds.nir.astype("int32") - ds.red})
    assert sources_read(both) == {f"{date}_{band}.tif": 6 for date in DATES for band in ("nir", "red")}


def test_a_reduction_over_time_needs_no_rechunk(manifest, truth):
    ds = open_cube(manifest, chunks={"y": 64, "x": 64})
    assert ds.red.chunks[0] == (3,)
    median = ds.red.median("time")
    assert sources_read(median) == {f"{date}_red.tif": 12 for date in DATES}
    np.testing.assert_array_equal(median.values, np.median(truth["red"], 0))


def test_selections_of_one_cube_combine(manifest, truth):
    """Two datasets opened with different bands are one computation: their layers must not take each other's place."""
    red = open_cube(manifest, bands="red", chunks=CHUNKS).red
    nir = open_cube(manifest, bands="nir", chunks=CHUNKS).nir
    np.testing.assert_array_equal((red.astype("int64") + nir).values, truth["red"].astype("int64") + truth["nir"])
    both = open_cube(manifest, bands=["nir", "scl"], chunks=CHUNKS)
    np.testing.assert_array_equal((red.astype("int64") + both.scl).values, truth["red"].astype("int64") + truth["scl"])


def test_windows_and_dates_of_one_cube_combine(manifest, truth):
    late = open_cube(manifest, chunks=CHUNKS, time=("2024-02", "2024-03")).red
    early = open_cube(manifest, chunks=CHUNKS, time=("2024-01", "2024-02")).red
    found = (late.drop_vars("time").astype("int64") - early.drop_vars("time")).compute()
    np.testing.assert_array_equal(found.values, np.diff(truth["red"].astype("int64"), axis=0))


def test_names_and_tokens_are_the_same_each_time(manifest):
    one, other = open_cube(manifest, chunks=CHUNKS), open_cube(manifest.url, chunks=CHUNKS)
    assert one.red.data.name == other.red.data.name
    assert tokenize(one) == tokenize(other)
    assert one.red.data.name != one.nir.data.name
    assert one.red.data.name != open_cube(manifest, chunks={"time": 1}).red.data.name
    assert one.red.data.name != open_cube(manifest, chunks=CHUNKS, time="2024-01").red.data.name


def test_signing_changes_no_token(manifest):
    plain = open_cube(manifest, chunks=CHUNKS).red.data.name
    assert open_cube(manifest, chunks=CHUNKS, patch_url=lambda href: href).red.data.name == plain


def names_and_tokens(url):
    manifest = open_manifest(url)
    selection = select(manifest, CubeSpec(manifest=manifest.url, version=manifest.version))
    name = open_cube(manifest, chunks=CHUNKS).red.data.name
    return os.getpid(), name, tokenize(LazyBand(selection, manifest.band("red")))


def test_tokens_are_the_same_in_another_process(manifest, client):
    here, there = names_and_tokens(manifest.url), client.submit(names_and_tokens, manifest.url).result()
    assert here[0] != there[0]
    assert here[1:] == there[1:]


@pytest.mark.slow
def test_keys_are_the_same_whatever_the_seed_of_hashes(manifest):
    code = (
        "import sys, dask; from cube import open_cube\n"
        f"ds = open_cube({manifest.url!r}, chunks={CHUNKS!r}).isel(time=[2, 0], y=slice(3, 90))\n"
        "graph = dask.optimize(((ds.nir - ds.red) / ds.scl).mean('time'))[0].__dask_graph__()\n"
        "print(sorted(map(str, dict(graph))))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert "cube-read-" in found.pop()


def test_another_version_is_another_token(manifest):
    specs = [CubeSpec(manifest=manifest.url, version=version) for version in ("a", "b")]
    assert tokenize(specs[0]) != tokenize(specs[1])
    assert tokenize(specs[0]) == tokenize(CubeSpec(manifest=manifest.url, version="a", patch_url=str.upper))
    assert tokenize(specs[0]) != tokenize(CubeSpec(manifest=manifest.url, version="a", level=1))


@pytest.fixture(scope="module")
def many_blocks(tmp_path_factory):
    """2 bands of 400 blocks of a tile, 68 dates: what the size of a graph is measured on."""
    folder = tmp_path_factory.mktemp("many")
    options = {"driver": "GTiff", "blockxsize": 16, "blockysize": 16, "nodata": 0, "SPARSE_OK": True}
    for i, band in itertools.product(range(68), ("red", "nir")):
        day = str(np.datetime64("2020-01-01") + np.timedelta64(i, "D")).replace("-", "")
        write_cog(folder / f"{day}_{band}.tif", np.zeros((320, 320), "uint16"), **options)
    return build(folder)


def expressions(ds):
    ndvi = (ds.nir - ds.red) / (ds.nir + ds.red)
    return {"mean": ndvi.mean("time"), "median": ndvi.median("time"), "bands": ds, "band": ds.red.max("time")}


@pytest.mark.parametrize(("name", "bands"), [("mean", 2), ("median", 2), ("bands", 2), ("band", 1)])
def test_a_block_is_a_read_and_a_few_tasks(many_blocks, name, bands):
    found = tasks(expressions(open_cube(many_blocks, chunks={"y": 16, "x": 16}))[name])
    assert found["read_bands"] == (400 if bands == 2 else 0), "one band's read is one task with all that follows"
    assert sum(found.values()) <= 400 * (bands + 4)
    assert not [each for each in found if "store" in each or "rechunk" in each]


@pytest.mark.parametrize("name", ["mean", "median", "bands"])
def test_a_task_takes_less_than_a_kilobyte(many_blocks, name):
    wanted = expressions(open_cube(many_blocks, chunks={"y": 16, "x": 16}))[name]
    (optimised,) = dask.optimize(wanted)
    each = [(task, len(pickle.dumps(task))) for task in dict(optimised.__dask_graph__()).values()]
    assert sum(size for _, size in each) < 1024 * len(each)
    assert max(size for task, size in each if getattr(task, "func", None) in (read_bands, pick)) < 512
    # What a client sends to a scheduler: layers, whose tasks are made there.
    expression = dask.base.collections_to_expr([wanted]).optimize()
    assert len(pickle.dumps(expression)) < 64 * len(each)
    assert len(pickle.dumps(CubeSpec(manifest=many_blocks.url, version=many_blocks.version))) < 300


def test_the_arrays_of_a_dataset_are_small_when_they_travel(many_blocks):
    ds = open_cube(many_blocks, chunks={"y": 16, "x": 16})
    assert len(pickle.dumps(ds.red.data)) < 2000
    again = pickle.loads(pickle.dumps(ds.red.data))
    assert (type(again), again.name, again.chunks) == (BandArray, ds.red.data.name, ds.red.chunks)


def test_a_layer_that_is_not_used_is_not_made(ds):
    (layer,) = [each for each in ds.red.data.dask.layers.values() if isinstance(each, ReadLayer)]
    assert not layer.is_materialized()
    assert layer.get_output_keys() == {
        (ds[band].data.name, *index) for band in BANDS for index in itertools.product(range(2), range(3), range(2))
    }
    assert not layer.is_materialized()


def test_a_failed_read_is_raised_as_it_is(truth, tmp_path):
    from cube.errors import SourceNotFoundError

    for date in DATES:
        write_cog(tmp_path / f"{date}.tif", truth["red"][0], driver="GTiff")
    ds = open_cube(build(tmp_path), chunks=CHUNKS)
    (tmp_path / "20240201.tif").unlink()
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler), pytest.raises(SourceNotFoundError, match=r"20240201\.tif"):
            ds.compute()
    np.testing.assert_array_equal(ds.band_1.isel(time=2).values, truth["red"][0])


def test_layers_without_time(truth, tmp_path):
    path = write_cog(tmp_path / "dem.tif", truth["red"][0], driver="GTiff", blockxsize=64, blockysize=64)
    ds = open_cube(path, chunks={"x": 64})
    np.testing.assert_array_equal(ds.band_1.values, truth["red"][0])
    assert ds.band_1.chunks == ((150,), (64, 64, 64, 8))
