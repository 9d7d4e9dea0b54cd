"""Every real TIFF of the corpus against rasterio: pixels of every level, masks, coordinates, CRS, decoded values."""

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
import rioxarray
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from cube.archive.build import build
from cube.dataset import open_cube
from cube.errors import BuildError
from scripts.corpus import DifferenceError, build_any, compare, find_files, judge, main, strips

FOLDER = Path(os.environ.get("CUBE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data").resolve()
NAMES = [path.relative_to(FOLDER).as_posix() for path in find_files(FOLDER)]
REFUSED = {
    "no georeferencing": r"developmentseed__async-tiff/(?!fixtures__image-tiff__geo-5b).*|.*__zeros_no_geo_int16_7x3",
    "ground control points instead of a transform": r"""
          cogeotiff__rio-tiler/tests__fixtures__(cog_gcps_ovr|sentinel-s1-l1c__GRD__.*)
        | georust__geotiff/resources__(austrian_capitals_model_tie_points_pixel_is_.*|s1a-iw3-slc-vv-.*)
        | opendatacube__odc-geo/tests__data__au-gcp""",
    "past the end of the file": r"rasterio__rasterio/tests__data__corrupt",
}
"""Files that cannot be part of a cube, by the reason."""
NO_CRS = re.compile(
    r"""georust__geotiff/resources__(merc|zh_dem_25)
      | opendatacube__datacube-core/tests__data__no_crs_ds
      | rasterio__rasterio/tests__data__(float_nan|rotated)
      | stactools-packages__noaa-nclimgrid/tests__data-files__cog__daily__prcp-195101-grd-scaled-01""",
    re.VERBOSE,
)
"""Files with a grid in no known CRS (of merc.tif: in one that PROJ cannot express)."""
EVERY = 64
"""Of this many strips of a level one is compared, and the last; all of them in the slow test."""

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def refusal(name):
    """Return the reason for which a file is refused, None for those that are part of the test."""
    stem = name.rpartition(".")[0]
    return next((reason for reason, names in REFUSED.items() if re.fullmatch(names, stem, re.VERBOSE)), None)


def has_crs(name):
    return NO_CRS.fullmatch(name.rpartition(".")[0]) is None


def each(names):
    """Parametrize over files; over nothing, where there is no corpus (`test_data` then skips)."""
    ids = [f"{number}-{name[-60:]}" for number, name in enumerate(names)]
    return pytest.mark.parametrize("name", names or [""], ids=ids or ["none"])


COVERED = [name for name in NAMES if refusal(name) is None]
each_covered = each(COVERED)


@pytest.fixture
def path(test_data, name):
    return test_data / name


@functools.cache
def built(path):
    """Return the cube of a file; in some CRS, if the file names none."""
    return build_any(path)[0]


def test_the_corpus_is_the_known_one(test_data):
    assert len(NAMES) == 172
    assert len(COVERED) == 106
    assert sum(not has_crs(name) for name in COVERED) == 6


@each_covered
def test_a_file_is_as_rasterio_reads_it(path, name):
    found = judge(path, FOLDER, every=EVERY)
    assert found.verdict == "equal", found.reason
    assert found.path == "fast"
    assert ("names no CRS" in found.reason) is not has_crs(name)


@pytest.mark.slow
@each_covered
def test_every_pixel_of_large_files_is_as_rasterio_reads_it(path):
    manifest = built(path)
    if len(strips(*manifest.levels[0].shape, len(manifest.bands))) > 1:
        compare(manifest, path)


@each([name for name in COVERED if has_crs(name)])
def test_other_libraries_find_the_same_place(path):
    ds = open_cube(built(path))
    with rasterio.open(path) as oracle:
        transform, shape, crs = oracle.transform, oracle.shape, pyproj.CRS.from_user_input(oracle.crs)
    precision = (abs(transform.a) + abs(transform.b)) * 1e-6
    assert pyproj.CRS.from_user_input(ds.rio.crs) == crs
    assert Affine.from_gdal(*map(float, ds.spatial_ref.attrs["GeoTransform"].split())).almost_equals(transform)
    assert ds.rio.transform().almost_equals(transform, precision=precision)
    if transform.is_rectilinear:
        assert ds.odc.geobox.shape == shape
        assert ds.odc.geobox.crs == GeoBox(shape, transform, crs).crs
        assert ds.odc.geobox.transform.almost_equals(transform, precision=precision)


# rioxarray gives no band a scale where bands differ in it, and makes floats of classes.
@each([name for name in COVERED if has_crs(name) and not name.endswith(("cog_scale.tif", "_SCL_20m.tif"))])
def test_rioxarray_masks_and_scales_alike(path):
    with rasterio.open(path) as oracle:
        size = min(512, oracle.height), min(512, oracle.width)
    window = {"y": slice(size[0]), "x": slice(size[1])}
    theirs = rioxarray.open_rasterio(path, mask_and_scale=True, cache=False).isel(window).values
    ds = xr.open_dataset(built(path).url, engine="cube", cache=False).isel(window)
    ours = np.stack([ds[name].values for name in ds.data_vars])
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)


@each([name for name in COVERED if not has_crs(name)])
def test_without_a_crs_the_error_says_what_to_do(path):
    with pytest.raises(
        BuildError, match=r"has no coordinate reference system; say which one it is in \(build\(\.\.\., crs="
    ):
        build(path)
    assert build(path, crs="EPSG:4326").levels[0].crs == "EPSG:4326"


@each([name for name in NAMES if refusal(name) is not None])
def test_the_others_are_refused_by_name_and_reason(path, name):
    with pytest.raises(BuildError) as caught:
        build(path, crs="EPSG:4326")
    said = str(caught.value)
    assert said.startswith(f"1 of 1 sources cannot be part of a cube:\n  {path.as_posix()}: ")
    reason = refusal(name)
    assert reason in said
    if "past the end" in reason:
        return
    with rasterio.open(path) as oracle:
        assert oracle.transform.is_identity
        assert bool(oracle.gcps[0]) is ("control points" in reason)


def test_a_table_of_verdicts_is_written(test_data, tmp_path, capsys):
    folder = test_data / "georust__geotiff"
    assert main([str(folder), "--to", str(tmp_path / "build" / "corpus.md")]) == 0
    lines = (tmp_path / "build" / "corpus.md").read_text(encoding="utf-8").splitlines()
    assert "| resources__zh_dem_25.tif | equal | fast | names no CRS: EPSG:4326 was given |" in lines
    assert lines[-2:] == ["10 files: 7 equal, 3 refused", "Equal, by path: 7 fast"]
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "holds no .tif or .tiff file" in capsys.readouterr().err


def test_a_wrong_pixel_is_found(tmp_path):
    path = tmp_path / "scene.tif"
    profile = {"driver": "GTiff", "width": 9, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", transform=Affine(10, 0, 5e5, 0, -10, 5e6), **profile) as target:
        target.write(np.arange(72, dtype="uint8").reshape(1, 8, 9))
    manifest, other = build(path), tmp_path / "other.tif"
    assert judge(path, tmp_path)[:3] == ("scene.tif", "equal", "fast")
    with rasterio.open(other, "w", transform=Affine(10, 0, 5e5, 0, -10, 5e6), **profile) as target:
        target.write((np.arange(72, dtype="uint8") + (np.arange(72) == 40).astype("uint8")).reshape(1, 8, 9))
    with pytest.raises(
        DifferenceError, match=r"1 of 72 differ, the first at \(4, 4\): np.uint8\(40\), not np.uint8\(41\)"
    ):
        compare(manifest, other)
