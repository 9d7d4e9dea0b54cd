from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
from affine import Affine
from shapely import MultiPoint
from shapely.geometry import shape

import cube.testing.archive as module
from cube.errors import CubeError, SelectionError
from cube.testing import unique_values, write_archive, write_cog

DATES = ("2024-05-09", "2024-04-09", "2024-05-29", "2024-07-13")
SMALL = {"size": 128, "tile": 64, "dates": DATES, "seed": 5}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("archive"), **SMALL)


def read(path, level=None):
    options = {} if level is None else {"overview_level": level}
    with rasterio.open(path, **options) as source:
        return source.read(1)


@pytest.mark.parametrize("band", ["blue", "green", "red", "nir", "scl"])
@pytest.mark.parametrize("date", DATES)
def test_cogs_hold_what_is_expected(archive, date, band):
    day = date.replace("-", "")
    path = archive.path(date, band)
    assert path == archive.root / day / f"T33UVP_{day}_{band}.tif"
    expected = archive.expected(date, band)
    with rasterio.open(path) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"
        assert source.compression.value == "DEFLATE"
        assert source.block_shapes == [(64, 64)]
        assert source.overviews(1) == [2]
        assert source.crs.to_epsg() == 32633
        assert source.transform == archive.transform == Affine(10, 0, 399960, 0, -10, 5400000)
        assert source.nodata == 0
        assert source.descriptions == (band,)
        assert (source.scales, source.offsets) == (((1.0,), (0.0,)) if band == "scl" else ((0.0001,), (-0.1,)))
        np.testing.assert_array_equal(source.read(1), expected, strict=True)


def test_classes_are_those_of_sentinel_2_and_overviews_invent_none(archive):
    seen = [read(archive.path(date, "scl")) for date in DATES]
    assert {0, 3, 4, 5, 6, 8, 9, 10} <= set(np.unique(seen)) <= set(range(12))
    for date, classes in zip(DATES, seen, strict=True):
        assert set(np.unique(read(archive.path(date, "scl"), level=0))) <= set(np.unique(classes))
        twenty_metres = classes[::2, ::2].repeat(2, 0).repeat(2, 1)
        inside = (classes > 0) & (twenty_metres > 0)
        np.testing.assert_array_equal(classes[inside], twenty_metres[inside])


def test_bands_and_classes_have_the_same_nodata_and_no_denominator_is_near_zero(archive):
    wedges = []
    for date in DATES:
        made = {band: archive.expected(date, band) for band in module.ASSETS}
        for band in module.ASSETS:
            np.testing.assert_array_equal(made[band] == 0, made["scl"] == 0)
        valid = made["scl"] > 0
        assert (made["red"][valid].astype(int) + made["nir"][valid] - 2000).min() >= 200
        wedges.append(int((~valid).sum()))
    assert len(set(wedges)) > 2
    assert max(wedges) > 0


def test_season_shows_where_it_is_clear(archive):
    def mean_ndvi(date):
        red, nir, scl = (archive.expected(date, band).astype(float) for band in ("red", "nir", "scl"))
        ndvi = (nir - red) / (nir + red - 2000)
        return ndvi[np.isin(scl, (4, 5))].mean()

    assert mean_ndvi("2024-04-09") + 0.1 < mean_ndvi("2024-05-29")


def by_rasterio(archive, dates):
    """Return the composite as its documentation says, from the files, with nothing of the project."""
    stack = []
    for date in dates:
        red, nir, scl = (read(archive.path(date, band)) for band in ("red", "nir", "scl"))
        clear = (red > 0) & (nir > 0) & ~np.isin(scl, (0, 1, 3, 8, 9, 10))
        reflectance = [dn.astype(np.float64) * 0.0001 - 0.1 for dn in (red, nir)]
        with np.errstate(invalid="ignore"):
            ndvi = (reflectance[1] - reflectance[0]) / (reflectance[1] + reflectance[0])
        stack.append(np.where(clear, ndvi, np.nan))
    masked = np.ma.masked_invalid(stack)
    return np.ma.median(masked, axis=0).filled(np.nan).astype(np.float32)


def test_truth_of_all_dates(archive):
    labels, truth = archive.truth_ndvi_composite()
    assert labels.tolist() == np.array(["2024-04-09"], "M8[ns]").tolist()
    assert (truth.dtype, truth.shape) == (np.float32, (1, 128, 128))
    np.testing.assert_allclose(truth[0], by_rasterio(archive, DATES), rtol=0, atol=1.2e-7)


def test_truth_of_months_has_the_empty_ones_too(archive):
    labels, truth = archive.truth_ndvi_composite("MS")
    months = ["2024-04-01", "2024-05-01", "2024-06-01", "2024-07-01"]
    np.testing.assert_array_equal(labels, np.array(months, "M8[ns]"), strict=True)
    for label, found in zip(months, truth, strict=True):
        dates = [date for date in DATES if date[:7] == label[:7]]
        expected = by_rasterio(archive, dates) if dates else np.full((128, 128), np.nan, np.float32)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1.2e-7)
    assert np.isnan(truth[2]).all()
    assert 0 < np.isnan(truth[3]).mean() < 1


def test_truth_of_other_periods_is_refused(archive):
    with pytest.raises(SelectionError, match="by 'YS' was asked for"):
        archive.truth_ndvi_composite("YS")


def test_float32_arithmetic_stays_within_the_documented_tolerance(archive):
    _, truth = archive.truth_ndvi_composite()
    stack = []
    for date in DATES:
        red, nir, scl = (archive.expected(date, band) for band in ("red", "nir", "scl"))
        reflectance = [dn.astype(np.float32) * np.float32(0.0001) - np.float32(0.1) for dn in (red, nir)]
        ndvi = (reflectance[1] - reflectance[0]) / (reflectance[1] + reflectance[0])
        stack.append(np.where(np.isin(scl, module.CLEAR), ndvi, np.float32(np.nan)))
    found = np.ma.median(np.ma.masked_invalid(stack), axis=0).filled(np.nan)
    np.testing.assert_allclose(found, truth[0], rtol=0, atol=1e-5)


def test_items_are_stac(archive):
    items = list(pystac.ItemCollection.from_file(str(archive.items)))
    assert [str(item.datetime.date()) for item in items] == sorted(DATES)
    for item in items:
        assert pystac.Item.from_dict(item.to_dict()).id == item.id
        assert item.ext.proj.code == "EPSG:32633"
        assert item.ext.proj.shape == [128, 128]
        assert item.ext.proj.transform == list(archive.transform)[:6]
        assert item.assets.keys() == {"B02", "B03", "B04", "B08", "scl"}
        assert all(asset.media_type == pystac.MediaType.COG for asset in item.assets.values())
        assert item.properties["platform"] == "sentinel-2a"
    assert "proj:epsg" not in json.loads(archive.items.read_text())["features"][0]["properties"]


def test_assets_say_what_their_files_say(archive):
    for item in json.loads(archive.items.read_text())["features"]:
        date = item["properties"]["datetime"][:10]
        for band, key in module.ASSETS.items():
            asset = item["assets"][key]
            assert archive.items.parent / asset["href"] == archive.path(date, band)
            (raster,) = asset["raster:bands"]
            with rasterio.open(archive.path(date, band)) as source:
                assert raster["data_type"] == source.dtypes[0]
                assert raster["nodata"] == source.nodata
                assert (raster.get("scale", 1), raster.get("offset", 0)) == (source.scales[0], source.offsets[0])
            if band == "scl":
                assert [entry["value"] for entry in asset["classification:classes"]] == list(range(12))
                assert asset["classification:classes"][9]["name"] == "cloud_high_probability"
            else:
                assert asset["eo:bands"] == [{"name": key, "common_name": band}]


def test_footprint_is_where_the_data_are(archive):
    wedges = 0
    for item in json.loads(archive.items.read_text())["features"]:
        date = item["properties"]["datetime"][:10]
        scl = archive.expected(date, "scl")
        rows, columns = np.indices(scl.shape)
        xs, ys = archive.transform @ (columns.ravel() + 0.5, rows.ravel() + 0.5)
        lons, lats = rasterio.warp.transform("EPSG:32633", "EPSG:4326", xs, ys)
        footprint = shape(item["geometry"])
        assert footprint.is_valid
        assert footprint.exterior.is_ccw
        assert item["bbox"] == list(footprint.bounds)
        points = np.column_stack([lons, lats])
        # Pixels whose centre is within a tenth of a pixel of the edge may fall either way after rounding.
        assert footprint.buffer(1e-5).contains(MultiPoint(points[scl.ravel() > 0]))
        if (scl == 0).any():
            wedges += 1
            assert not footprint.buffer(-1e-5).intersects(MultiPoint(points[scl.ravel() == 0]))
        cloudy = np.isin(scl, (8, 9, 10)).sum() / (scl > 0).sum()
        assert item["properties"]["eo:cloud_cover"] == round(100 * cloudy, 2)
    assert wedges > 0


def test_same_arguments_give_the_same_bytes_and_a_date_stands_alone(archive, tmp_path):
    again = write_archive(tmp_path / "again", **{**SMALL, "dates": DATES[::2]}, workers=1)
    for date in DATES[::2]:
        for band in module.ASSETS:
            assert again.path(date, band).read_bytes() == archive.path(date, band).read_bytes()
    other = write_archive(tmp_path / "other", **{**SMALL, "dates": DATES[:1], "seed": 6})
    one, two = other.expected(DATES[2], "red"), archive.expected(DATES[2], "red")
    assert (one != two)[(one > 0) & (two > 0)].mean() > 0.9


def test_pixels_do_not_depend_on_the_process(archive):
    code = (
        "import hashlib, sys; from cube.testing import Archive; from pathlib import Path;"
        "a = Archive(root=Path(), size=128, dates=(), seed=5, tile=64);"
        "print(hashlib.sha256(a.expected('2024-05-09', 'nir').tobytes()).hexdigest())"
    )
    folder = Path(module.__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True)
    assert run.stdout.strip() == hashlib.sha256(read(archive.path("2024-05-09", "nir")).tobytes()).hexdigest()


def test_a_complete_archive_is_used_as_it_is(tmp_path):
    calls = []
    options = {"size": 64, "tile": 64, "dates": DATES[:1]}
    archive = write_archive(tmp_path, **options)
    path = archive.path(DATES[0], "red")
    os.utime(path, ns=(1, 1))
    assert write_archive(tmp_path, **options, progress=lambda done, total: calls.append((done, total))) == archive
    assert path.stat().st_mtime_ns == 1
    assert calls == [(5, 5)]
    path.write_bytes(b"cut short")
    write_archive(tmp_path, **options)
    np.testing.assert_array_equal(read(path), archive.expected(DATES[0], "red"))
    os.utime(path, ns=(1, 1))
    marker = json.loads((tmp_path / "archive.json").read_text())
    (tmp_path / "archive.json").write_text(json.dumps(marker | {"recipe": "an older release"}))
    write_archive(tmp_path, **options)
    assert path.stat().st_mtime_ns > 1


def test_another_archive_in_the_folder_is_refused(tmp_path):
    write_archive(tmp_path, size=64, tile=64, dates=DATES[:1])
    with pytest.raises(CubeError, match=r"'size': 32.*holds one with .*'size': 64.*choose another folder"):
        write_archive(tmp_path, size=32, tile=64, dates=DATES[:1])
    with pytest.raises(CubeError, match="no dates"):
        write_archive(tmp_path / "none", dates=())


def test_progress_counts_each_file_once(tmp_path):
    calls, lock = [], threading.Lock()

    def progress(done, total):
        assert lock.acquire(blocking=False)  # never two at a time
        calls.append((done, total))
        lock.release()

    write_archive(tmp_path, size=64, tile=64, dates=DATES, workers=4, progress=progress)
    assert calls == [(done, 20) for done in range(1, 21)]


def test_a_failed_write_stops_and_leaves_no_complete_archive(tmp_path):
    def stop(done, total):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        write_archive(tmp_path, size=64, tile=64, dates=DATES, workers=1, progress=stop)
    assert not (tmp_path / "items.json").exists()
    archive = write_archive(tmp_path, size=64, tile=64, dates=DATES)
    assert all(archive.path(date, band).exists() for date in DATES for band in module.ASSETS)


@pytest.mark.parametrize(
    ("dtype", "predictor"), [("uint8", "2"), ("int16", "2"), ("uint32", "2"), ("float32", "3"), ("float64", "3")]
)
def test_write_cog(tmp_path, dtype, predictor):
    array = unique_values((3, 100, 130), dtype)
    transform = Affine(0.25, 0, 10, 0, -0.25, 50)
    path = write_cog(
        tmp_path / "new" / "x.tif", array, crs="EPSG:4326", transform=transform, nodata=7, blocksize=64, scale=2.0,
        offset=-1.0, descriptions=("a", "b", "c"),
    )  # fmt: skip
    with rasterio.open(path) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == predictor
        assert (source.crs.to_epsg(), source.transform, source.nodata) == (4326, transform, 7)
        assert (source.scales, source.offsets) == ((2.0,) * 3, (-1.0,) * 3)
        assert source.descriptions == ("a", "b", "c")
        assert source.block_shapes[0] == (64, 64)
        np.testing.assert_array_equal(source.read(), array, strict=True)


@pytest.mark.parametrize(
    ("options", "compression", "predictor"),
    [
        ({"driver": "GTiff"}, "DEFLATE", "2"),
        ({"driver": "GTiff", "compress": "LZW", "predictor": 1, "blockxsize": 32, "blockysize": 16}, "LZW", None),
        ({"driver": "GTiff", "compress": "NONE", "interleave": "band"}, None, None),
        ({"compress": "ZSTD"}, "ZSTD", "2"),
        ({"compress": "LERC", "blocksize": 128}, "LERC", None),
    ],
)
def test_write_cog_takes_the_drivers_options(tmp_path, options, compression, predictor):
    array = unique_values((200, 300), "uint16")
    with rasterio.open(write_cog(tmp_path / "x.tif", array, **options)) as source:
        structure = source.tags(ns="IMAGE_STRUCTURE")
        assert structure.get("COMPRESSION") == compression
        assert structure.get("PREDICTOR") == predictor
        assert source.block_shapes[0][1] < 512 or source.block_shapes == [(512, 512)]
        assert source.nodata is None
        assert source.transform == Affine(10, 0, 399960, 0, -10, 5400000)
        np.testing.assert_array_equal(source.read(1), array, strict=True)


@pytest.mark.parametrize(
    "dtype", ["uint64", "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"]
)
def test_unique_values(dtype):
    count = 200 if dtype.endswith("t8") else 20_000
    array = unique_values((2, count // 2), dtype, seed=3)
    assert (array.dtype, array.shape) == (np.dtype(dtype), (2, count // 2))
    assert np.unique(array).size == count
    assert (array != 0).all()
    assert (array < 0).any() == (np.dtype(dtype).kind != "u")
    np.testing.assert_array_equal(array, unique_values((2, count // 2), dtype, seed=3))
    assert (array != unique_values((2, count // 2), dtype, seed=4)).any()


def test_unique_values_repeat_where_they_must():
    array = unique_values((300, 300), "uint8")
    values, counts = np.unique(array, return_counts=True)
    assert values.tolist() == list(range(1, 256))
    assert counts.max() - counts.min() <= 1
