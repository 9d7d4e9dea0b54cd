"""Every real TIFF of the corpus over HTTP: Zarr v3 by zarr-python, Zarr v2 by GDAL, against rasterio on the file."""

from __future__ import annotations

import hashlib

import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr

from cube.catalog import add_entry, manifest_entry
from scripts.corpus import compare_pixels, compare_place, find_levels
from server.app import create_app
from server.run import serving
from tests.contract.test_corpus import COVERED, built, has_crs

EDGE = 600
"""Pixels of the windows that stand for an image too large to compare whole: its corners and its middle."""

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


each_some = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if i % 3 else [], id=f"{i}-{name[-60:]}")
        for i, name in enumerate(COVERED)
    ]
    or [pytest.param("", id="none")],
)


def dataset_id(name):
    return hashlib.sha256(name.encode()).hexdigest()[:12]


@pytest.fixture(scope="module")
def server(test_data, selected, tmp_path_factory):
    catalog = tmp_path_factory.mktemp("corpus") / "catalog.yaml"
    for name in selected("name"):
        add_entry(catalog, manifest_entry(dataset_id(name), built(test_data / name).url))
    with serving(create_app(catalog)) as url:
        yield url


def windows(height, width):
    if height * width <= 4 * EDGE * EDGE:
        return [((0, height), (0, width))]
    tops, lefts = ({0, max(0, size // 2 - EDGE // 2), max(0, size - EDGE)} for size in (height, width))
    return [((y, min(y + EDGE, height)), (x, min(x + EDGE, width))) for y in sorted(tops) for x in sorted(lefts)]


@each_some
def test_zarr_3_equals_rasterio(test_data, server, name):
    manifest = built(test_data / name)
    with rasterio.open(test_data / name) as oracle:
        scaling = list(zip(oracle.scales, oracle.offsets, strict=True))
    for level, number in enumerate(find_levels(test_data / name).values()):
        tail = f"/level/{level}.zarr" if level else ".zarr"
        url = f"{server}/datasets/{dataset_id(name)}{tail}"
        ds = xr.open_dataset(url, engine="zarr", zarr_format=3, mask_and_scale=False, cache=False)
        with rasterio.open(test_data / name, **({"OVERVIEW_LEVEL": number - 1} if number else {})) as oracle:
            compare_place(ds, oracle, is_assumed=not has_crs(name))
            ds = ds[[band.name for band in manifest.bands]]
            for rows, columns in windows(oracle.height, oracle.width):
                part = ds.isel(y=slice(*rows), x=slice(*columns)).load()
                compare_pixels(manifest, part, oracle, scaling, (rows, columns), f"level {level}, {rows}, {columns}")


@each_some
def test_zarr_2_through_gdal_equals_rasterio(test_data, server, name):
    url = f"{server}/datasets/{dataset_id(name)}/v2.zarr"
    with rasterio.open(test_data / name) as oracle:
        for index, band in enumerate(built(test_data / name).bands, 1):
            with rasterio.open(f'ZARR:"/vsicurl/{url}":/{band.name}') as served:
                assert served.shape == oracle.shape
                if has_crs(name):
                    assert pyproj.CRS.from_user_input(served.crs) == pyproj.CRS.from_user_input(oracle.crs)
                if oracle.transform.is_rectilinear:
                    precision = abs(oracle.transform.a) * 1e-6
                    assert served.transform.almost_equals(oracle.transform, precision=precision)
                assert served.dtypes[0] == band.dtype
                is_class = band.nodata is None
                for window in windows(*oracle.shape):
                    valid = oracle.read_masks(index, window=window) != 0
                    found, expected = served.read(1, window=window), oracle.read(index, window=window)
                    np.testing.assert_array_equal(found[valid | is_class], expected[valid | is_class])
                    assert is_class or not served.read_masks(1, window=window)[~valid].any()
