"""Archives whose files differ as real ones do, opened as one cube each: encodings, dates, bands, layers, many bands."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import rasterio
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.errors import BuildError
from cube.settings import get_settings
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def stored_in(path, band=1):
    with rasterio.open(path) as file:
        return file.read(band)


def item(name, assets, collection="scenes", **properties):
    """Return a STAC Item; `assets` are (key, path) pairs, or whole assets by key."""
    said = {key: each if isinstance(each, dict) else {"href": str(each), "type": TIFF} for key, each in assets.items()}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "properties": properties,
        "assets": {key: {"roles": ["data"]} | each for key, each in said.items()},
    }


# Climate: floats with NaN, one file in double precision and without a CRS.


@pytest.fixture(scope="module")
def climate(test_data):
    """The Items of nClimGrid that have a file here, and the path of each."""
    files = test_data / "stactools-packages__noaa-nclimgrid"
    described = test_data / "stac" / "stactools-packages__noaa-nclimgrid"
    found = {}
    for name, path in (
        ("daily-scaled__202201-grd-scaled-01__202201-grd-scaled-01", "tavg-202201-grd-scaled-01"),
        ("daily-scaled__202201-grd-scaled-02__202201-grd-scaled-02", "tavg-202201-grd-scaled-02"),
        ("monthly__nclimgrid-189501__nclimgrid-189501", "nclimgrid-tavg-189501"),
        ("monthly__nclimgrid-189502__nclimgrid-189502", "nclimgrid-tavg-189502"),
    ):
        said = json.loads((described / f"examples__{name}.json").read_text())
        file = files / f"examples__{name.rpartition('__')[0]}__{path}.tif"
        said["assets"] = {"tavg": said["assets"]["tavg"] | {"href": str(file)}}
        found[said["id"]] = said, file
    return found, files / "tests__data-files__cog__daily__prcp-195101-grd-scaled-01.tif"


def test_nclimgrid_is_one_cube_of_days_and_months(climate, tmp_path):
    found, _ = climate
    manifest = build([said for said, _ in found.values()], to=tmp_path / "tavg.cube")
    band = manifest.band("tavg")
    assert (band.dtype, band.units) == ("float32", "degree Celsius")
    assert np.isnan(band.nodata)
    ds = open_cube(manifest, chunks={"time": 2, "y": 300})
    assert [str(stamp)[:10] for stamp in ds.time.values] == ["1895-01-01", "1895-02-01", "2022-01-01", "2022-01-02"]
    for stamp, name in zip(ds.time.values, (*sorted(found)[2:], *sorted(found)[:2]), strict=True):
        np.testing.assert_array_equal(ds.tavg.sel(time=stamp).values, stored_in(found[name][1]))
    assert 0.3 < float(np.isnan(ds.tavg[0]).mean()) < 0.6  # the sea


def test_a_file_without_a_crs_needs_one_and_joins_in_double_precision(climate, tmp_path):
    found, rain = climate
    _, path = found["202201-grd-scaled-01"]
    members = [
        item("warm", {"value": path}, datetime="2022-01-01T00:00:00Z"),
        item("wet", {"value": rain}, datetime="1951-01-01T00:00:00Z"),
    ]
    with pytest.raises(BuildError, match=r"prcp-195101-grd-scaled-01\.tif: has no coordinate reference system"):
        build(members, to=tmp_path / "refused.cube")
    ds = open_cube(build(members, crs="EPSG:4326", to=tmp_path / "both.cube"))
    assert ds.value.dtype == "float64"
    np.testing.assert_array_equal(ds.value.values, [stored_in(rain), stored_in(path).astype("float64")])
    ds = open_cube(build(rain, crs="EPSG:4326", to=tmp_path / "rain.cube"))
    with rasterio.open(rain) as file:
        xs, ys = (np.array(each) for each in rasterio.transform.xy(file.transform, range(596), range(596)))
        np.testing.assert_array_equal(ds.to_dataarray().values[0], file.read(1))
        assert file.crs is None
    np.testing.assert_allclose(ds.x.values[:596], xs, rtol=1e-14)
    np.testing.assert_allclose(ds.y.values, ys, rtol=1e-14)
    assert ds.rio.crs.to_epsg() == 4326


# Land cover on a projection of its own.


def test_lcmap_keeps_its_own_projection(test_data, tmp_path):
    files = sorted((test_data / "fsspec__kerchunk").glob("tests__lcmap_tiny_cog_20*.tif"))
    ds = open_cube(build(files, to=tmp_path / "lcmap.cube"), chunks={})
    (band,) = ds.data_vars
    assert [str(stamp)[:4] for stamp in ds.time.values] == ["2019", "2020"]
    for stored, path in zip(ds[band], files, strict=True):
        with rasterio.open(path) as file:
            masked = file.read(1, masked=True)
            np.testing.assert_array_equal(stored.values, masked.astype("float32").filled(np.nan))
            assert ds.rio.crs == file.crs
            assert not file.crs.is_epsg_code
            assert ds.rio.transform().almost_equals(file.transform)
    with rasterio.open(files[0]) as file:
        bounds = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", -1790000, 2650000, -1785000, 2655000)
    part = open_cube(tmp_path / "lcmap.cube", bbox=bounds, mask_and_scale=False)
    whole = open_cube(tmp_path / "lcmap.cube", mask_and_scale=False)
    assert 150 < part.sizes["x"] < 300
    inside = whole[band].sel(x=part.x, y=part.y)  # by equality
    np.testing.assert_array_equal(part[band].values, inside.values)


# Landsat: scales by rule, bits untouched.

LANDSAT = "LC08_L2SP_001070_20190114_20200830_02_T2_"
SCALED = {"SR_B3": (0.0000275, -0.2), "SR_B4": (0.0000275, -0.2), "SR_B5": (0.0000275, -0.2),
          "ST_B10": (0.00341802, 149.0), "ST_CDIST": (0.01, 0.0)}  # fmt: skip
FLAGS = ("QA_PIXEL", "QA_RADSAT", "SR_QA_AEROSOL")


@pytest.fixture(scope="module")
def landsat(test_data):
    files = (test_data / "stactools-packages__landsat").glob(f"*assets5__{LANDSAT}*.TIF")
    return {path.stem.partition("_T2_")[2]: path for path in sorted(files)}


def check_landsat(ds, paths):
    for name in FLAGS:
        assert ds[name].dtype == stored_in(paths[name]).dtype
        np.testing.assert_array_equal(ds[name].values[0], stored_in(paths[name]))
    for name, (scale, offset) in SCALED.items():
        with rasterio.open(paths[name]) as file:
            stored = file.read(1, masked=True)
        np.testing.assert_array_equal(np.isnan(ds[name].values[0]), stored.mask)
        expected = stored.astype("float64").filled(np.nan) * scale + offset
        np.testing.assert_allclose(ds[name].values[0], expected, rtol=1e-12)


def test_landsat_files_are_scaled_by_rule_and_bits_are_not(landsat, tmp_path):
    manifest = build(list(landsat.values()), to=tmp_path / "landsat.cube")
    check_landsat(open_cube(manifest), landsat)
    said = manifest.attributes["harmonized"]
    assert "landsat-c2-l2: scale 2.75e-05, offset -0.2 (its file gives none) (3 sources)" in said
    assert "scale 0.00341802, offset 149" in said


def test_landsat_items_are_scaled_alike(landsat, tmp_path):
    assets = {f"{name}.TIF": {"href": str(path), "type": "image/vnd.stac.geotiff; cloud-optimized=true"}
              for name, path in landsat.items()}  # fmt: skip
    usgs = item(f"{LANDSAT}SR", assets, collection="landsat-c2l2-sr", datetime="2019-01-14T14:40:00Z")
    ds = open_cube(build([usgs], to=tmp_path / "landsat.cube"))
    check_landsat(ds, landsat)


def test_without_rules_landsat_is_as_stored(landsat, tmp_path):
    manifest = build(list(landsat.values()), harmonize=False, to=tmp_path / "landsat.cube")
    assert "harmonized" not in manifest.attributes
    ds = open_cube(manifest, mask_and_scale=False)
    for name, path in landsat.items():
        np.testing.assert_array_equal(ds[name].values[0], stored_in(path))
        assert not {"scale_factor", "add_offset"} & set(ds[name].attrs)


# Sentinel-2: the offset that came in 2022.


@pytest.fixture(scope="module")
def sentinel(test_data):
    """The 10 m bands of a product of baseline 04.00, by band."""
    files = (test_data / "stactools-packages__sentinel2").glob("*N0400*R10m__T01UBT_*_10m.tif")
    found = {path.name.rpartition("_10m")[0].rpartition("_")[2]: path for path in files}
    assert sorted(found) == ["B02", "B03", "B04", "B08"]
    return found


def sentinel_item(path, baseline, day, bands):
    return item(
        f"S2B_T01UBT_{day.replace('-', '')}_L2A",
        {key: each if key != "B04" else path for key, each in bands.items()},
        collection="sentinel-2-l2a",
        datetime=f"{day}T23:18:49Z",
        **{"s2:processing_baseline": baseline, "platform": "sentinel-2b", "s2:mgrs_tile": "01UBT"},
    )


def test_sentinel_2_files_have_their_offset_by_the_baseline(sentinel, tmp_path):
    pattern = "{}__R10m__T01UBT_{time:%Y%m%dT%H%M%S}_{band}_10m.tif"
    ds = open_cube(build(list(sentinel.values()), pattern=pattern, to=tmp_path / "s2.cube"))
    assert list(ds.data_vars) == sorted(sentinel)
    assert str(ds.time.values[0])[:19] == "2023-01-22T23:18:49"
    for band, path in sentinel.items():
        stored = stored_in(path).astype("float64")
        expected = np.where(stored == 0, np.nan, stored * 0.0001 - 0.1)
        np.testing.assert_allclose(ds[band].values[0], expected, rtol=1e-12, atol=1e-15)
    raw = build(list(sentinel.values()), pattern=pattern, harmonize=False, to=tmp_path / "raw.cube")
    ds = open_cube(raw)
    for band, path in sentinel.items():
        stored = stored_in(path).astype("float32")
        np.testing.assert_array_equal(ds[band].values[0], np.where(stored == 0, np.nan, stored))


def test_both_sides_of_baseline_04_00_are_one_scale(sentinel, tmp_path):
    stored = stored_in(sentinel["B04"])
    assert stored.max() > 1200
    with rasterio.open(sentinel["B04"]) as file:
        grid = {"crs": file.crs.to_string(), "transform": file.transform}
    older = np.where(stored > 1000, stored.astype("int32") - 1000, 0).astype("uint16")
    write_cog(tmp_path / "older.tif", older, driver="GTiff", blockxsize=32, blockysize=32, compress="LZW", **grid)
    bands = {"B04": None}
    items = [
        sentinel_item(tmp_path / "older.tif", "03.01", "2021-07-01", bands),
        sentinel_item(sentinel["B04"], "04.00", "2023-01-22", bands),
    ]
    manifest = build(items, to=tmp_path / "s2.cube")
    (band,) = manifest.bands
    assert (band.scale, band.offset, band.dtype) == (0.0001, -0.1, "int32")
    ds = open_cube(manifest)
    before, after = ds[band.name].values
    np.testing.assert_array_equal(before[stored > 1000], after[stored > 1000])
    expected = (stored[stored > 1000].astype("float64") - 1000) * 0.0001
    np.testing.assert_allclose(after[stored > 1000], expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(np.isnan(before), stored <= 1000)
    np.testing.assert_array_equal(np.isnan(after), stored == 0)
    words = manifest.attributes["harmonized"]
    assert "baseline 03.01, scale 0.0001, nodata 0" in words
    assert "baseline 04.00, scale 0.0001, offset -0.1" in words
    decisions = manifest.source_table()["decision"].to_pylist()
    assert sum("04.00" in each for each in decisions) == 1
    plain = build(items, harmonize=False, to=tmp_path / "plain.cube")
    for values, numbers, missing in zip(open_cube(plain)[band.name].values, (older, stored), (None, 0), strict=True):
        np.testing.assert_array_equal(values, np.where(numbers == missing, np.nan, numbers))


# Items: versions, damage, band sets that differ.

SMALL = {"driver": "GTiff", "blockxsize": 16, "blockysize": 16}


def test_412_items_are_370_dates(tmp_path):
    """37 of the items have a better version, and 5 have a file that is none."""
    days = np.datetime64("2022-01-01") + np.arange(375).astype("timedelta64[D]")
    items, values = [], {}
    for number, day in enumerate(days):
        path = tmp_path / f"{day}.tif"
        if number % 75 == 74:
            path.write_bytes(b"<html>503 slow down</html>")
        else:
            values[day] = np.full((16, 16), number + 1, "uint16")
            write_cog(path, values[day], **SMALL)
        said = {"datetime": f"{day}T10:00:00Z", "platform": "p1", "grid:code": "MGRS-33UVP"}
        if number % 10 == 0 and len(items) < 407 and sum("old" in each["id"] for each in items) < 37:
            gone = {"red": tmp_path / "never" / f"{day}.tif"}  # what is superseded is not even looked for
            items.append(item(f"old-{day}", gone, version="1", **said))
        items.append(item(f"new-{day}", {"red": path}, version="2", **said))
    assert len(items) == 412
    with pytest.raises(
        BuildError, match=r"^5 of 375 sources cannot be part of a cube:\n  .*is not a TIFF(?s:.*) 2 more$"
    ):
        build(items, to=tmp_path / "a.cube")
    manifest = build(items, fail_on_error=False, to=tmp_path / "a.cube")
    assert manifest.attributes["archive"] == "412 items, 37 superseded, 5 unreadable, 370 dates"
    assert len(manifest.left_out) == 42
    superseded = [(what, why) for what, why in manifest.left_out if "superseded" in why]
    assert len(superseded) == 37
    assert superseded[0] == ("old-2022-01-01", "old-2022-01-01 is superseded by new-2022-01-01: version 2, not 1")
    unreadable = [(what, why) for what, why in manifest.left_out if "superseded" not in why]
    assert [what.rpartition("/")[2] for what, _ in unreadable] == [f"{days[i]}.tif" for i in range(74, 375, 75)]
    assert all(why.startswith("is not a TIFF") and "<html>" in why for _, why in unreadable)
    ds = open_cube(manifest, mask_and_scale=False)
    np.testing.assert_array_equal(ds.time.values.astype("datetime64[D]"), sorted(values))
    np.testing.assert_array_equal(ds.red.values[:, 3, 3], [values[day][3, 3] for day in sorted(values)])
    assert ds.attrs["archive"] == manifest.attributes["archive"]
    named = pc.equal(manifest.source_table()["item"].cast(pa.string()), "new-2022-01-01")
    assert pc.sum(named).as_py() == 1


def test_band_sets_that_differ_from_date_to_date(tmp_path):
    sets = {"2024-01-01": ("red", "nir"), "2024-01-11": ("red",), "2024-01-21": ("nir", "swir"), "2024-01-31": ("red",)}
    truth, items = {}, []
    for seed, (day, bands) in enumerate(sets.items()):
        assets = {}
        for band in bands:
            truth[band, day] = unique_values((40, 50), "uint16", seed)
            path = write_cog(tmp_path / "store" / f"{day}_{band}.tif", truth[band, day], nodata=0, **SMALL)
            assets[band] = {"href": f"./{path.name}", "type": TIFF}
        items.append(item(day, assets, datetime=f"{day}T10:00:00Z"))
    (tmp_path / "store" / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    with ObjectStore(tmp_path / "store") as store:
        manifest = build(f"{store.url}/items.json", to=tmp_path / "a.cube")
        ds = open_cube(manifest, mask_and_scale=False)
        assert list(ds.data_vars) == ["red", "nir", "swir"]
        assert ds.sizes["time"] == 4
        store.reset()
        for band, (position, day) in itertools.product(ds.data_vars, enumerate(sets)):
            expected = truth.get((band, day), np.zeros((40, 50), "uint16"))
            np.testing.assert_array_equal(ds[band].isel(time=position).values, expected)
        assert store.counts().paths == {f"{day}_{band}.tif": 1 for band, day in truth}  # holes cost no request
        masked = open_cube(manifest, chunks={"time": 3}).swir.values
    np.testing.assert_array_equal(np.isnan(masked).all(axis=(1, 2)), [True, True, False, True])


@pytest.mark.parametrize("pixel", [10, 1 / 120, 0.00025])
@pytest.mark.parametrize("chunks", [None, {"y": 13}])
def test_layers_without_time_meet_dated_ones(tmp_path, chunks, pixel):
    """The layer covers more ground: the shared pixels are found by equal coordinates, and none is lost."""
    crs = "EPSG:32633" if pixel == 10 else "EPSG:4326"
    west, north = (499980, 5000040) if pixel == 10 else (14, 47)
    heights = unique_values((60, 80), "float32")
    corner = from_origin(west - 17 * pixel, north + 11 * pixel, pixel, pixel)
    write_cog(tmp_path / "elevation.tif", heights, crs=crs, transform=corner, **SMALL)
    reds = {}
    for seed, date in enumerate(("20240101", "20240201", "20240301")):
        reds[date] = unique_values((40, 50), "uint16", seed)
        grid = {"crs": crs, "transform": from_origin(west, north, pixel, pixel)}
        write_cog(tmp_path / "red" / f"{date}_red.tif", reds[date], nodata=0, **grid, **SMALL)
    dem = open_cube(build(tmp_path / "elevation.tif", to=tmp_path / "dem.cube"), chunks=chunks).band_1
    pattern = "{time:%Y%m%d}_{band}.tif"
    red = open_cube(build(tmp_path / "red", pattern=pattern, to=tmp_path / "red.cube"), chunks=chunks).red
    assert (dem.dims, red.dims) == (("y", "x"), ("time", "y", "x"))
    together = red + dem
    assert dict(together.sizes) == {"time": 3, "y": 40, "x": 50}
    expected = np.array(list(reds.values()), "float32") + heights[11:51, 17:67]
    np.testing.assert_array_equal(together.transpose("time", "y", "x").values, expected)
    window = open_cube(tmp_path / "dem.cube").isel(y=slice(3, 40), x=slice(5, 50)).band_1
    assert (window - dem).sizes == window.sizes
    merged = xr.merge([red.to_dataset(name="red"), dem.to_dataset(name="dem")], join="inner", compat="override")
    assert dict(merged.sizes) == {"time": 3, "y": 40, "x": 50}


# A file of 242 bands.

YEARS = tuple(range(1783, 2025))
TILE, GAP = 128 * 128 * 2, 8


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A band-interleaved COG of 242 bands called by years, of 2 tiles each, and what it holds."""
    values = unique_values((len(YEARS), 100, 250), "int16")
    path = tmp_path_factory.mktemp("many") / "many.tif"
    names = tuple(f"y{year}" for year in YEARS)
    options = {"blocksize": 128, "interleave": "band", "compress": "NONE", "overviews": "NONE"}
    write_cog(path, values, descriptions=names, nodata=-32768, **options)
    return path, values


@pytest.fixture
def small_gaps(monkeypatch):
    """Merge neighbours alone: between two tiles of a COG stand 8 bytes."""
    monkeypatch.setenv("CUBE_GAP_BYTES", str(GAP))
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.mark.usefixtures("small_gaps")
def test_a_file_of_242_bands_opens_without_looking_into_it(many, tmp_path):
    path, values = many
    manifest = build(path, to=tmp_path / "many.cube")
    with ObjectStore(tmp_path) as manifests:
        ds = open_cube(f"{manifests.url}/many.cube", mask_and_scale=False)
        assert len(ds.data_vars) == 242
        assert ds.y2024.dims == ("y", "x")
        # The pointer, the snapshot, and the sources table: never the tiles'.
        assert not any("tiles" in name for name in manifests.counts().paths)
        assert manifests.counts().requests == 3
    with ObjectStore(path.parent) as store:
        remote = build(f"{store.url}/many.tif", to=tmp_path / "remote.cube")
        scanned = store.counts()
        assert scanned.requests <= 2
        assert scanned.bytes < 100_000
        store.reset()
        ds = open_cube(remote, mask_and_scale=False)
        assert store.counts().requests == 0
        names = ["y1900", "y1950", "y2000"]
        found = open_cube(remote, bands=names, chunks={"y": -1, "x": -1}, mask_and_scale=False).compute()
        counts = store.counts()
        assert (counts.requests, counts.bytes) == (3, 3 * (2 * TILE + GAP))
        for name in names:
            np.testing.assert_array_equal(found[name].values, values[YEARS.index(int(name[1:]))])
        store.reset()
        np.testing.assert_array_equal(ds.y1999[:10, 130:140].values, values[YEARS.index(1999), :10, 130:140])
        counts = store.counts()
        assert (counts.requests, counts.bytes) == (1, TILE)
    np.testing.assert_array_equal(open_cube(manifest, mask_and_scale=False).y1783.values, values[0])


@pytest.mark.usefixtures("small_gaps")
def test_bands_that_are_dates_are_one_band_of_242_dates(many, tmp_path):
    path, values = many
    with ObjectStore(path.parent) as store:
        manifest = build(f"{store.url}/many.tif", bands_as="time:%Y", to=tmp_path / "years.cube")
        store.reset()
        ds = open_cube(manifest, chunks={"time": 1, "y": -1, "x": -1}, mask_and_scale=False)
        (band,) = ds.data_vars
        assert [int(str(stamp)[:4]) for stamp in ds.time.values] == list(YEARS)
        years = ds[band].sel(time=slice("1999", "2001"))
        np.testing.assert_array_equal(years.values, values[YEARS.index(1999) : YEARS.index(2001) + 1])
        counts = store.counts()
        assert (counts.requests, counts.bytes) == (3, 3 * (2 * TILE + GAP))  # a date is a block, and a read
        store.reset()
        column = open_cube(manifest, mask_and_scale=False)[band].isel(y=70, x=200)
        np.testing.assert_array_equal(column.values, values[:, 70, 200])
        counts = store.counts()
        assert (counts.requests, counts.bytes) == (242, 242 * TILE)
    assert manifest.attributes["archive"] == "1 item, 242 dates"
