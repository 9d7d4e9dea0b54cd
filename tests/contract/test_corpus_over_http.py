"""Every real COG of the corpus over HTTP: Zarr v3 by zarr-python, Zarr v2 by GDAL, against rasterio on the file."""

from __future__ import annotations

import hashlib

import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr

from cube.catalog import add_entry, manifest_entry
from server.app import create_app
from server.run import serving
from tests.contract.test_corpus import NAMES, built, each_covered, is_covered

EDGE = 600
"""Pixels of the windows that stand for an image too large to compare whole: its corners and its middle."""

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def dataset_id(name):
    return hashlib.sha256(name.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def server(test_data, tmp_path_factory):
    catalog = tmp_path_factory.mktemp("corpus") / "catalog.yaml"
    for name in filter(is_covered, NAMES):
        add_entry(catalog, manifest_entry(dataset_id(name), built(test_data / name).url))
    with serving(create_app(catalog)) as url:
        yield url


def windows(height, width):
    if height * width <= 4 * EDGE * EDGE:
        return [((0, height), (0, width))]
    tops, lefts = ({0, max(0, size // 2 - EDGE // 2), max(0, size - EDGE)} for size in (height, width))
    return [((y, min(y + EDGE, height)), (x, min(x + EDGE, width))) for y in sorted(tops) for x in sorted(lefts)]


@each_covered
def test_zarr_3_equals_rasterio(test_data, server, name):
    manifest = built(test_data / name)
    for level in range(len(manifest.levels)):
        tail = f"/level/{level}.zarr" if level else ".zarr"
        url = f"{server}/datasets/{dataset_id(name)}{tail}"
        ds = xr.open_dataset(url, engine="zarr", zarr_format=3, mask_and_scale=False, cache=False)
        with rasterio.open(test_data / name, **({"OVERVIEW_LEVEL": level - 1} if level else {})) as oracle:
            assert dict(ds.sizes) == {"y": oracle.height, "x": oracle.width}
            assert pyproj.CRS.from_wkt(ds.spatial_ref.attrs["crs_wkt"]) == pyproj.CRS.from_user_input(oracle.crs)
            a, _, c, _, e, f = tuple(oracle.transform)[:6]
            np.testing.assert_allclose(ds.x, c + a * (np.arange(oracle.width) + 0.5), rtol=0, atol=abs(a) * 1e-6)
            np.testing.assert_allclose(ds.y, f + e * (np.arange(oracle.height) + 0.5), rtol=0, atol=abs(e) * 1e-6)
            bands = [band.name for band in manifest.bands]
            for rows, columns in windows(oracle.height, oracle.width):
                part = ds.isel(y=slice(*rows), x=slice(*columns)).load()
                found = np.stack([part[band].values for band in bands])
                np.testing.assert_array_equal(found, oracle.read(window=(rows, columns)))


@each_covered
def test_zarr_2_through_gdal_equals_rasterio(test_data, server, name):
    url = f"{server}/datasets/{dataset_id(name)}/v2.zarr"
    with rasterio.open(test_data / name) as oracle:
        for index, band in enumerate(built(test_data / name).bands, 1):
            with rasterio.open(f'ZARR:"/vsicurl/{url}":/{band.name}') as served:
                assert served.shape == oracle.shape
                assert pyproj.CRS.from_user_input(served.crs) == pyproj.CRS.from_user_input(oracle.crs)
                assert served.transform.almost_equals(oracle.transform, precision=abs(oracle.transform.a) * 1e-6)
                assert served.dtypes[0] == oracle.dtypes[index - 1]
                for window in windows(*oracle.shape):
                    np.testing.assert_array_equal(served.read(1, window=window), oracle.read(index, window=window))
