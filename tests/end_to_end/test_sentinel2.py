"""A real Sentinel-2 series, from its STAC items to answers that others computed, on a real Dask cluster."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import cube
from cube.catalog import add_entry, manifest_entry
from cube.engine.cluster import NO_DASHBOARD

DATES = 68
REFERENCES = 5
"""Dates with all bands; the others have NDVI and the cloud mask alone."""
BANDS = {"s2": ["ndvi", "clm"], "bands": ["B04", "B08"]}
"""What each cube holds."""


@pytest.fixture(scope="module")
def oracle(test_data):
    """Return `load(name)`: an array that others computed."""
    return lambda name: np.load(test_data / "s2_eopatch" / f"{name}.npy")


@pytest.fixture(scope="module")
def items(test_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("series")
    runpy.run_path(str(test_data / "s2_eopatch" / "make_s2_cogs.py"))["main"](folder)
    return folder / "items.json"


@pytest.fixture(scope="module")
def catalog(items, tmp_path_factory):
    """A catalogue of the series: the masks and indices of all dates, and the bands of five."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.yaml"
    for name, bands in BANDS.items():
        manifest = cube.build(items, bands=bands, to=path.parent / f"{name}.cube")
        add_entry(path, manifest_entry(name, manifest.url, catalog=path))
    return path


@pytest.fixture(scope="module")
def served(catalog):
    """The URL of a server of the catalogue, in a process of its own."""
    command = [sys.executable, "-m", "cube", "serve", str(catalog), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield re.search(r"http://\S+", server.stdout.readline())[0]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=True, **NO_DASHBOARD) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(params=["manifest", "http", "items"])
def opened(request, catalog, items):
    """Return `open_it(name)`: the series as our own cube, over HTTP as a stranger opens it, or from its items."""
    if request.param == "http":
        url = request.getfixturevalue("served")
        return lambda name, **options: xr.open_dataset(f"{url}/datasets/{name}.zarr", chunks={}, **options)
    if request.param == "manifest":
        return lambda name, **options: cube.open_cube(catalog.parent / f"{name}.cube", chunks={}, **options)
    return lambda name, **options: cube.open_cube(items, bands=BANDS[name], chunks={"y": 40, "x": 60}, **options)


def test_the_series_is_what_its_items_say(opened):
    ds = opened("s2")
    assert ds.sizes["time"] == DATES
    assert ds.ndvi.dtype == "float32"
    assert ds.clm.dtype == "uint8"
    assert set(ds.data_vars) == {"ndvi", "clm"}
    assert (np.diff(ds.time.values) > np.timedelta64(0, "ns")).all()


def test_the_greatest_ndvi_is_that_of_eo_learn(opened, oracle, client):
    found = opened("s2").ndvi.max("time").compute()
    np.testing.assert_array_equal(found.values, oracle("MAX_NDVI").squeeze())


def test_cloud_free_counts_are_those_of_eo_learn(opened, oracle, client):
    found = (opened("s2").clm == 0).sum("time").compute()
    np.testing.assert_array_equal(found.values, oracle("VALID_COUNT").squeeze())


def test_ndvi_of_the_bands_is_that_of_eo_learn(opened, oracle, client):
    ds = opened("bands", mask_and_scale=False)
    assert ds.sizes["time"] == REFERENCES
    red, nir = (ds[name].astype("float64") for name in ("B04", "B08"))
    found = ((nir - red) / (nir + red)).astype("float32").compute()
    positions = np.flatnonzero(np.isin(opened("s2").time.values, found.time.values))
    assert len(positions) == REFERENCES
    # Two units in the last place of float32: eo-learn divided reflectances of that type.
    np.testing.assert_allclose(found.values, oracle("NDVI").squeeze()[positions], rtol=0, atol=1.2e-7)


def test_a_band_is_called_as_it_was_asked_for(catalog):
    assert list(cube.open_cube(catalog.parent / "bands.cube").data_vars) == ["B04", "B08"]
    assert list(cube.open_cube(catalog.parent / "bands.cube", bands=["b08"]).data_vars) == ["b08"]


def test_without_dask(items, oracle):
    ds = cube.open_cube(items, bands=["ndvi"])
    np.testing.assert_array_equal(ds.ndvi.values, oracle("NDVI").squeeze())
