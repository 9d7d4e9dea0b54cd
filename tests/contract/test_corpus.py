"""Every real COG of the corpus against rasterio: the pixels of every level, coordinates, CRS, decoded values."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pyproj
import pytest
import rasterio
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
from odc.geo.geobox import GeoBox

from cube.archive import build
from cube.errors import BuildError

FOLDER = Path(os.environ.get("CUBE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data").resolve()
NAMES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.[tT][iI][fF]*"))
COVERED = re.compile(
    r"""cogeotiff__rio-tiler/tests__fixtures__(
          (blue|green|red|red_nostats|rgb|inverted_lat|mosaic_value_.)(@.*)?
        | cog(_cmap|_dateline|_fullearth|_gradient|_nonearth|_ovr|_rgba|_scale|_tags|_world)?(@.*)?
        | cog_uint8_rgb(_nodata|a) )
      | fsspec__kerchunk/tests__lcmap_tiny_cog_20..
      | georust__geotiff/resources__mapzen-geotiff-14-10348-7801
      | opendatacube__datacube-core/tests__data__test
      | opendatacube__odc-geo/tests__data__au-3577
      | rasterio__rasterio/tests__data__(all-nodata|rgb_lzw|world\.byte)
      | stactools-packages__landsat/tests__data-files__assets5__.*
      | stactools-packages__noaa-nclimgrid/examples__.*
      | stactools-packages__sentinel2/tests__data-files__S2B_.*
      | xcube-dev__xcube/examples__serve__demo__sample-cog""",
    re.VERBOSE,
)
"""The tiled, georeferenced files of the kinds that the reader covers; all others must be refused."""
STRIP_PIXELS, HUGE_PIXELS = 2**23, 2**27


def is_covered(name):
    return COVERED.fullmatch(name.rpartition(".")[0]) is not None


def each(names):
    """Parametrize over files; over nothing, where there is no corpus (`test_data` then skips)."""
    ids = [f"{number}-{name[-60:]}" for number, name in enumerate(names)]
    return pytest.mark.parametrize("name", names or [""], ids=ids or ["none"])


each_covered = each([name for name in NAMES if is_covered(name)])
each_refused = each([name for name in NAMES if not is_covered(name)])


@pytest.fixture
def path(test_data, name):
    return test_data / name


def stored(dataset):
    """Return a dataset's bands as (band, y, x), in file order."""
    return np.stack([dataset[name].values for name in dataset.data_vars])


def strips(height, width, samples):
    rows = max(1, STRIP_PIXELS // (width * samples))
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


@functools.cache
def built(path):
    return build(path)


def compare(manifest, path, level, every=1):
    """Compare every n-th strip of a level's pixels, the last one included, with rasterio's."""
    options = {"OVERVIEW_LEVEL": level - 1} if level else {}
    # Without xarray's cache: one of the files has 648 million pixels.
    dataset = xr.open_dataset(manifest.url, engine="cube", level=level, mask_and_scale=False, cache=False)
    with rasterio.open(path, **options) as oracle:
        assert dict(dataset.sizes) == {"y": oracle.height, "x": oracle.width}
        assert len(dataset.data_vars) == oracle.count
        assert {str(each.dtype) for each in dataset.data_vars.values()} == set(oracle.dtypes)
        for rows in strips(oracle.height, oracle.width, oracle.count)[::-every]:
            expected = oracle.read(window=((rows.start, rows.stop), (0, oracle.width)))
            np.testing.assert_array_equal(stored(dataset.isel(y=rows)), expected)


def test_the_corpus_is_the_known_one(test_data):
    assert sum(map(is_covered, NAMES)) == 59
    assert len(NAMES) > 150


@each_covered
def test_levels_equal_rasterio_pixel_for_pixel(path):
    with rasterio.open(path) as full:
        overviews = full.overviews(1)
    manifest = built(path)
    assert len(manifest.levels) == 1 + len(overviews)
    for level, grid in enumerate(manifest.levels):
        compare(manifest, path, level, every=8 if grid.width * grid.height > HUGE_PIXELS else 1)


@pytest.mark.slow
@each_covered
def test_huge_levels_equal_rasterio_pixel_for_pixel(path):
    manifest = built(path)
    for level, grid in enumerate(manifest.levels):
        if grid.width * grid.height > HUGE_PIXELS:
            compare(manifest, path, level)


@each_covered
@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # rioxarray with affine 3.1
def test_coordinates_and_crs_are_those_of_rasterio(path):
    for level in range(len(built(path).levels)):
        options = {"OVERVIEW_LEVEL": level - 1} if level else {}
        with rasterio.open(path, **options) as oracle:
            transform, crs, shape = oracle.transform, pyproj.CRS.from_user_input(oracle.crs), oracle.shape
        dataset = xr.open_dataset(built(path).url, engine="cube", level=level)
        columns, rows = np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5
        assert np.abs(dataset.x.values - (transform.c + transform.a * columns)).max() <= abs(transform.a) * 1e-6
        assert np.abs(dataset.y.values - (transform.f + transform.e * rows)).max() <= abs(transform.e) * 1e-6
        assert pyproj.CRS.from_wkt(dataset.spatial_ref.attrs["crs_wkt"]) == crs
        assert pyproj.CRS.from_user_input(dataset.rio.crs) == crs
        assert dataset.rio.transform().almost_equals(transform, precision=abs(transform.a) * 1e-6)
        assert dataset.odc.geobox.shape == shape
        assert dataset.odc.geobox.crs == GeoBox(shape, transform, crs).crs
        assert dataset.odc.geobox.transform.almost_equals(transform, precision=abs(transform.a) * 1e-6)


@each_covered
def test_decoding_does_what_rasterio_s_tags_say(path):
    with rasterio.open(path) as oracle:
        window = ((0, min(512, oracle.height)), (0, min(512, oracle.width)))
        raw, nodata = oracle.read(window=window), oracle.nodata
        scales, offsets, kind = oracle.scales, oracle.offsets, np.dtype(oracle.dtypes[0]).kind
    rows, columns = (slice(*edges) for edges in window)
    dataset = xr.open_dataset(path, engine="cube", cache=False).isel(y=rows, x=columns)
    for values, scale, offset, name in zip(raw, scales, offsets, dataset.data_vars, strict=True):
        found = dataset[name].values
        if (nodata, scale, offset) == (None, 1, 0):
            assert found.dtype == raw.dtype, "without nodata and scale nothing may be converted"
            np.testing.assert_array_equal(found, values)
            continue
        assert found.dtype.kind == "f"
        missing = np.zeros(values.shape, bool) if nodata is None else values == raw.dtype.type(nodata)
        missing |= np.isnan(values) if kind == "f" else False
        np.testing.assert_array_equal(np.isnan(found), missing)
        expected = values[~missing].astype("float64") * scale + offset
        np.testing.assert_allclose(found[~missing], expected, rtol=2e-6, atol=1e-6 * abs(offset))


@each_refused
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_others_are_refused_by_name_and_reason(path):
    with pytest.raises(BuildError) as caught:
        build(path)
    refusal = str(caught.value)
    assert refusal.startswith(f"1 of 1 sources cannot be part of a cube:\n  {path.as_posix()}: ")
    with rasterio.open(path) as oracle:
        profile, gcps, transform = oracle.profile, oracle.gcps[0], oracle.transform
    reasons = {
        "strips instead of tiles": not profile["tiled"],
        "JPEG compression": profile.get("compress") == "jpeg",
        "ground control points instead of a transform": bool(gcps),
        "a rotated or sheared grid": not transform.is_rectilinear,
        "no georeferencing": transform.is_identity and not gcps,
        "has no coordinate reference system": False,
    }
    # Reasons that only concern pixels that are not read anyway, and files that are damaged, have no oracle.
    known = {reason for reason, holds in reasons.items() if holds}
    said = {reason for reason in reasons if reason in refusal}
    if "has no coordinate reference system" in said:
        assert profile["crs"] is None
    elif "truncated?" not in refusal:
        assert said == known, refusal
