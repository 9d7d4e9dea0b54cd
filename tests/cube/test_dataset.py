from __future__ import annotations

import asyncio
import itertools
import pickle
import subprocess
import sys
import warnings

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import rioxarray  # noqa: F401 - registers .rio
import shapely
import xarray as xr
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import Transformer
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.errors import BuildError, CatalogError, CubeError, ManifestError, SelectionError
from cube.grid import Window
from cube.io.trace import trace
from cube.lazy import LazyBand
from cube.selection import select
from cube.spec import CubeSpec
from cube.testing.archive import unique_values, write_cog

DATES = ("20240101", "20240201", "20240301")
SCALE, OFFSET = 0.0001, -0.1


def write(path, array, *, column=0, **options):
    options = {"driver": "GTiff", "blockxsize": 64, "blockysize": 64} | options
    return write_cog(path, array, transform=from_origin(500000 + 10 * column, 5000000, 10, 10), **options)


@pytest.fixture(scope="module")
def arrays():
    """(date, band) -> numbers of two tiles side by side; nodata in places."""
    found = {}
    for seed, (date, band) in enumerate(itertools.product(DATES, ("red", "nir"))):
        array = unique_values((100, 240), "uint16", seed)
        array[seed : seed + 20, 100:140] = 0
        found[date, band] = array
    return found


@pytest.fixture(scope="module")
def manifest(arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    for (date, band), array in arrays.items():
        for tile in (0, 1):
            part = array[:, tile * 120 : tile * 120 + 120]
            path = folder / f"t{tile}_{date}_{band}.tif"
            write(path, part, column=tile * 120, nodata=0, scale=SCALE, offset=OFFSET)
    return build(folder, name="series", attributes={"title": "A series", "license": "CC-BY-4.0"})


@pytest.fixture(scope="module")
def truth(arrays):
    """The stored numbers as (time, y, x) by band."""
    return {band: np.stack([arrays[date, band] for date in DATES]) for band in ("red", "nir")}


def stored(manifest, **options):
    return open_cube(manifest, mask_and_scale=False, **options)


BLOCKS = [None, "auto", {}, {"time": 1, "y": 64, "x": 64}, {"x": 50}]


@pytest.mark.parametrize("chunks", BLOCKS)
def test_stored_numbers(manifest, truth, chunks):
    ds = stored(manifest, chunks=chunks)
    assert list(ds.data_vars) == ["nir", "red"]
    assert dict(ds.sizes) == {"time": 3, "y": 100, "x": 240}
    for band, values in truth.items():
        assert ds[band].dims == ("time", "y", "x")
        assert ds[band].dtype == "uint16"
        np.testing.assert_array_equal(ds[band].values, values)
        assert ds[band].attrs["scale_factor"] == SCALE
        assert ds[band].attrs["add_offset"] == OFFSET
        assert ds[band].attrs["_FillValue"] == 0
        assert ds[band].attrs["_FillValue"].dtype == "uint16"
    assert ds.attrs["values"] == "as stored: see scale_factor, add_offset and _FillValue"


@pytest.mark.parametrize("chunks", BLOCKS)
def test_physical_values(manifest, truth, chunks):
    ds = open_cube(manifest, chunks=chunks)
    for band, values in truth.items():
        assert ds[band].dtype.kind == "f"
        np.testing.assert_array_equal(np.isnan(ds[band].values), values == 0)
        expected = np.where(values == 0, np.nan, values * SCALE + OFFSET)
        np.testing.assert_allclose(ds[band].values, expected, rtol=1e-5, atol=1e-6)
        assert ds[band].encoding["_FillValue"] == 0
        assert ds[band].encoding["scale_factor"] == SCALE
        assert "_FillValue" not in ds[band].attrs
    assert ds.attrs["values"] == "physical: scale and offset applied, no data is NaN"


def test_the_repr_says_which_numbers_these_are(manifest):
    assert "no data is NaN" in repr(open_cube(manifest))
    assert "as stored" in repr(stored(manifest))


def test_without_nodata_zeros_and_integers_stay(tmp_path):
    array = np.zeros((70, 80), "uint8")
    array[3, 4] = 9
    ds = open_cube(write(tmp_path / "a.tif", array))
    assert ds.band_1.dtype == "uint8"
    assert "_FillValue" not in {**ds.band_1.attrs, **ds.band_1.encoding}
    np.testing.assert_array_equal(ds.band_1.values, array)


@pytest.mark.parametrize("nodata", [None, np.nan, -9999.0])
def test_floats_are_masked_where_nodata_is(tmp_path, nodata):
    array = unique_values((70, 80), "float32")
    array[:9] = np.nan
    array[20:30] = -9999.0
    ds = open_cube(write(tmp_path / "a.tif", array, nodata=nodata))
    expected = np.where(array == nodata, np.nan, array) if nodata == -9999.0 else array
    np.testing.assert_array_equal(ds.band_1.values, expected)
    assert ds.band_1.dtype == "float32"


def test_coordinates(manifest):
    ds = open_cube(manifest)
    np.testing.assert_array_equal(ds.x.values, 500000 + 10 * (np.arange(240) + 0.5))
    np.testing.assert_array_equal(ds.y.values, 5000000 - 10 * (np.arange(100) + 0.5))
    assert ds.time.values.tolist() == np.array(["2024-01-01", "2024-02-01", "2024-03-01"], "datetime64[ns]").tolist()
    assert ds.x.attrs["standard_name"] == "projection_x_coordinate"
    assert ds.time.attrs["standard_name"] == "time"
    assert ds.title == "A series"
    assert set(ds.coords) == {"time", "y", "x", "spatial_ref"}


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # rioxarray with affine 3.1
@pytest.mark.parametrize("what", [{}, {"level": 0, "bbox": (15.0, 45.14, 15.01, 45.15)}])
def test_rioxarray_and_odc_geo_find_the_grid(manifest, what):
    ds = open_cube(manifest, **what)
    assert ds.rio.crs.to_epsg() == 32633
    assert ds.red.rio.crs.to_epsg() == 32633
    assert ds.odc.geobox.crs.epsg == 32633
    left, top = float(ds.x[0]) - 5, float(ds.y[0]) + 5
    assert tuple(ds.rio.transform())[:6] == (10, 0, left, 0, -10, top)
    assert tuple(ds.red.odc.geobox.transform)[:6] == (10, 0, left, 0, -10, top)
    assert ds.odc.geobox.shape == ds.red.shape[-2:]


@pytest.mark.parametrize("chunks", [None, {"time": 2, "x": 70}])
@pytest.mark.parametrize(
    "key",
    [
        {"time": 0},
        {"time": -1, "y": 5, "x": -7},
        {"time": slice(None, None, -1)},
        {"y": slice(10, 60, 7), "x": slice(200, 100, -3)},
        {"time": [2, 0], "x": [5, 3, 230, 3]},
        {"y": slice(50, 50)},
        {"time": [], "x": slice(3, 9)},
        {"y": np.array([99, 0])},
        {"time": slice(1, None), "y": 63, "x": slice(119, 121)},
        {"x": np.arange(240) % 2 == 0},
    ],
)
def test_any_index_gives_what_numpy_gives(manifest, truth, chunks, key):
    ds = stored(manifest, chunks=chunks)
    oracle = xr.DataArray(truth["red"], dims=("time", "y", "x"))
    found, expected = ds.red.isel(key), oracle.isel(key)
    assert found.dims == expected.dims
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.dtype == "uint16"


def test_pointwise_indexing(manifest, truth):
    ds = stored(manifest)
    time, y, x = (xr.DataArray(each, dims="point") for each in ([0, 2, 1, 0], [1, 99, 50, 1], [239, 0, 120, 239]))
    np.testing.assert_array_equal(ds.red.isel(time=time, y=y, x=x).values, truth["red"][time, y, x])
    np.testing.assert_array_equal(ds.red.isel(time=1).isel(y=y, x=x).values, truth["red"][1, y, x])


def test_selections_by_label(manifest, truth):
    ds = stored(manifest)
    np.testing.assert_array_equal(ds.red.sel(time="2024-02")[0].values, truth["red"][1])
    found = ds.red.sel(x=slice(500500, 500700), y=slice(4999900, 4999700))
    np.testing.assert_array_equal(found.values, truth["red"][:, 10:30, 50:70])
    assert ds.red.sel(x=501234, y=4999001, method="nearest").isel(time=0).item() == truth["red"][0, 99, 123]


def test_windows_dates_and_bands_compose(manifest, truth):
    bbox = (15.001, 45.144, 15.012, 45.149)
    ds = stored(manifest, bands=["nir"], bbox=bbox, time=("2024-02", "2024-03"))
    full = stored(manifest)
    assert list(ds.data_vars) == ["nir"]
    assert 0 < ds.sizes["x"] < 240
    assert 0 < ds.sizes["y"] < 100
    xr.testing.assert_identical(
        ds.load(), full[["nir"]].sel(time=ds.time, y=ds.y, x=ds.x).load().assign_coords(spatial_ref=ds.spatial_ref)
    )


def test_nothing_is_read_until_it_is_used(manifest):
    with trace() as asked:
        ds = open_cube(manifest)
        repr(ds)
        part = ds.red.isel(time=0, y=slice(0, 10))
        assert part.sizes == {"y": 10, "x": 240}
    assert asked.requests == 0
    part.load()


def test_a_slice_reads_only_its_tiles(manifest):
    ds = stored(manifest)
    with trace() as asked:
        _ = ds.red.isel(time=1, y=slice(0, 10), x=slice(0, 10)).values
    assert [record.href.rpartition("/")[2] for record in asked.records] == ["t0_20240201_red.tif"]


def test_variables_loaded_together_are_read_at_once(manifest, truth):
    ds = stored(manifest)
    loaded = asyncio.run(ds.load_async())
    for band, values in truth.items():
        np.testing.assert_array_equal(loaded[band].values, values)
    empty = asyncio.run(stored(manifest).isel(y=slice(0, 0)).load_async())
    assert empty.red.shape == (3, 0, 240)


def test_lazy_variables_cross_process_borders(manifest, truth):
    ds = pickle.loads(pickle.dumps(open_cube(manifest, mask_and_scale=False)))
    np.testing.assert_array_equal(ds.nir.values, truth["nir"])
    selection = select(manifest, CubeSpec(manifest=manifest.url, version=manifest.version))
    assert len(pickle.dumps(LazyBand(selection, manifest.band("red")))) < 4000


def test_alias_names_the_variable(manifest, tmp_path):
    array = unique_values((70, 80), "uint8")
    href = write(tmp_path / "a.tif", array).as_posix()
    item = {
        "type": "Feature",
        "id": "a",
        "properties": {"datetime": "2024-01-01T00:00:00Z"},
        "assets": {
            "B04": {"href": href, "type": "image/tiff; application=geotiff", "eo:bands": [{"common_name": "red"}]}
        },
    }
    assert list(open_cube([item]).data_vars) == ["red"]
    both = open_cube([item], bands=["B04", "red"], chunks={})
    assert list(both.data_vars) == ["B04", "red"]
    np.testing.assert_array_equal(both.B04.values, both.red.values)
    np.testing.assert_array_equal(both.B04.values[0], array)


def test_layers_without_time_have_no_time(tmp_path):
    array = unique_values((70, 80), "int16")
    for chunks in (None, {}, {"x": 30}):
        ds = open_cube(write(tmp_path / "dem.tif", array), chunks=chunks)
        assert ds.band_1.dims == ("y", "x")
        assert "time" not in ds.variables
        np.testing.assert_array_equal(ds.band_1.values, array)


def test_classes_keep_their_integers_and_their_names(tmp_path):
    array = (unique_values((70, 80), "uint8") % 3).astype("uint8")
    href = write(tmp_path / "scl.tif", array, nodata=0).as_posix()
    classes = [{"value": value, "name": name} for value, name in ((0, "no_data"), (1, "water"), (2, "bare soil"))]
    item = {
        "type": "Feature",
        "id": "a",
        "properties": {},
        "assets": {"scl": {"href": href, "type": "image/tiff; application=geotiff", "classification:classes": classes}},
    }
    ds = open_cube([item])
    assert ds.scl.dtype == "uint8"
    np.testing.assert_array_equal(ds.scl.values, array)
    assert ds.scl.attrs["flag_values"] == [0, 1, 2]
    assert ds.scl.attrs["flag_meanings"] == "no_data water bare_soil"


def test_levels(tmp_path):
    import rasterio

    path = write_cog(tmp_path / "a.tif", unique_values((500, 300), "uint16"), blocksize=64, OVERVIEW_COUNT=2)
    for level in (1, 2):
        ds = open_cube(path, level=level, mask_and_scale=False)
        with rasterio.open(path, OVERVIEW_LEVEL=level - 1) as oracle:
            np.testing.assert_array_equal(ds.band_1.values, oracle.read(1))
            assert ds.x.values[0] == pytest.approx(oracle.xy(0, 0)[0])
            assert ds.y.values[-1] == pytest.approx(oracle.xy(oracle.height - 1, 0)[1])


def test_a_written_copy_reads_back_the_same(manifest, truth, tmp_path):
    ds = open_cube(manifest)
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    again = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False, mask_and_scale=False)
    np.testing.assert_array_equal(again.red.values, truth["red"])
    assert "spatial_ref" in again.coords


# What can be opened by name.


@pytest.fixture
def catalog(manifest, tmp_path, monkeypatch):
    entries = {
        "ours": {"driver": "cube.intake.CubeSource", "args": {"urlpath": manifest.url}},
        "theirs": {"driver": "intake.source.csv.CSVSource", "args": {"urlpath": "https://host/a.csv"}},
    }
    (tmp_path / "catalog.yaml").write_text(yaml.safe_dump({"version": 1, "sources": entries}))
    monkeypatch.chdir(tmp_path)


def test_names_of_the_catalogue_in_the_current_folder(catalog, truth):
    np.testing.assert_array_equal(open_cube("ours", mask_and_scale=False).red.values, truth["red"])
    with pytest.raises(CatalogError, match=r"'theirs' in catalog\.yaml is read by intake\.source\.csv\.CSVSource"):
        open_cube("theirs")
    with pytest.raises(CatalogError, match=r"nobody: there is no such file .* \(catalog\.yaml here has ours, theirs\)"):
        open_cube("nobody")


def test_a_name_comes_before_a_folder_that_is_called_so(catalog, tmp_path):
    write(tmp_path / "ours", unique_values((70, 80), "uint8"))
    assert list(open_cube("ours").data_vars) == ["nir", "red"]
    assert list(open_cube("./ours").data_vars) == ["band_1"]


@pytest.mark.parametrize("suffix", ["", "/"])
def test_a_manifest_by_its_path(manifest, truth, suffix):
    np.testing.assert_array_equal(open_cube(manifest.url + suffix, mask_and_scale=False).nir.values, truth["nir"])


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("nothing", CatalogError, r"nothing: there is no such file or folder, and no cube of that name \(no catalog"),
        ("nothing.tif", CubeError, r"nothing\.tif: there is no such file or folder"),
        ("nothing*.tif", BuildError, r"no file matches nothing\*\.tif"),
        ("nothing.cube", ManifestError, r"nothing\.cube holds no manifest"),
        (7, BuildError, "cannot build a cube from a int"),
    ],
)
def test_what_is_not_there_is_told(tmp_path, monkeypatch, what, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        open_cube(what)


# What needs another grid, and arguments that are none.


@pytest.mark.parametrize(
    "argument",
    [
        *("crs", "resolution", "geobox", "like", "resampling", "geopolygon", "anchor"),
        *("groupby", "fuse", "bbox", "lon", "lat", "time"),
    ],
)
def test_an_argument_that_is_none_says_nothing(manifest, argument):
    assert open_cube(manifest, **{argument: None}).identical(open_cube(manifest))


def test_a_whole_grid_is_that_of_a_geobox_or_of_data(manifest, truth):
    part = stored(manifest, bbox=(15.0, 45.148, 15.01, 45.151))
    for given in ({"geobox": part.odc.geobox}, {"like": part}, {"like": part.red}, {"like": part.red[0]}):
        ds = stored(manifest, **given)
        assert ds.odc.geobox == part.odc.geobox
        np.testing.assert_array_equal(ds.red, part.red)
    # A grid of other pixels, which begins outside of the cube: the middle of each is in one of the cube's.
    coarse = GeoBox((4, 5), Affine(30, 0, 500000 - 30, 0, -30, 5000000 + 30), "EPSG:32633")
    found = stored(manifest, geobox=coarse).red.values
    assert not found[:, 0].any()
    assert not found[:, :, 0].any()
    np.testing.assert_array_equal(found[:, 1:, 1:], truth["red"][:, 1:10:3, 1:13:3][:, :3, :4])


def test_a_resolution_is_of_pixels_that_begin_at_whole_multiples_of_it(manifest, truth):
    ds = stored(manifest, resolution=20, resampling="average")
    assert (ds.sizes["y"], ds.sizes["x"]) == (50, 120)
    assert (ds.x.values[0], ds.y.values[0]) == (500010, 4999990)
    blocks = truth["nir"].reshape(3, 50, 2, 120, 2).astype(float)
    held = np.where(blocks > 0, blocks, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        means = np.nan_to_num(np.nanmean(held, axis=(2, 4)))
    np.testing.assert_allclose(ds.nir, means, atol=0.51)
    uneven = stored(manifest, resolution=(-30, 20))
    assert (np.diff(uneven.x).max(), np.diff(uneven.y).min()) == (20, -30)
    centred = stored(manifest, resolution=20, anchor="center")
    assert centred.x.values[0] == 500000


def test_another_crs_has_the_place_and_the_numbers_of_the_cube(manifest):
    ds = open_cube(manifest, crs="EPSG:3857", resolution=20)
    assert ds.rio.crs.to_epsg() == 3857
    own = open_cube(manifest)
    middle = Transformer.from_crs("EPSG:32633", "EPSG:3857", always_xy=True).transform(501200, 4999500)
    at = {"x": middle[0], "y": middle[1], "method": "nearest"}
    there = ds.isel(time=0).sel(**at)
    back = Transformer.from_crs("EPSG:3857", "EPSG:32633", always_xy=True).transform(float(there.x), float(there.y))
    expected = own.isel(time=0).sel(x=back[0], y=back[1], method="nearest")
    assert float(there.red) == float(expected.red)
    held = ds.red.values[~np.isnan(ds.red)]
    assert len(held) > 1000
    assert np.isin(held, own.red).all(), "the nearest number, and none between"


def test_a_geopolygon_is_its_box_in_pixels_of_the_cube(manifest):
    own = stored(manifest)
    corners = [(500100, 4999900), (500300, 4999900), (500200, 4999700)]
    whole = Transformer.from_crs("EPSG:32633", "OGC:CRS84", always_xy=True)
    ring = [list(whole.transform(*corner)) for corner in [*corners, corners[0]]]
    polygon = {"type": "Polygon", "coordinates": [ring]}
    collection = {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": polygon}]}
    for given in (polygon, collection, shapely.Polygon(ring), Geometry(polygon, "EPSG:4326")):
        ds = stored(manifest, geopolygon=given)
        # Corners on the edges of pixels may take one more, by a rounding.
        assert 20 <= ds.sizes["x"] <= 22
        assert 20 <= ds.sizes["y"] <= 22
        np.testing.assert_array_equal(ds.red, own.red.sel(x=ds.x, y=ds.y))
    in_metres = Geometry(shapely.Polygon(np.add(corners, (3, -4))), "EPSG:32633")
    assert stored(manifest, geopolygon=in_metres).red.shape == (3, 21, 21)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crs": "EPSG:3857"}, r"^crs='EPSG:3857': no source is in it, so say how large pixels are \(resolution="),
        ({"crs": "nonsense", "resolution": 10}, "crs='nonsense' is no coordinate reference system"),
        ({"crs": 10}, "crs=10"),
        ({"resolution": 0}, "resolution=0: give the size of a pixel"),
        ({"resolution": -10}, "resolution=-10: give the size of a pixel"),
        ({"resolution": float("nan")}, "resolution=nan: give the size of a pixel"),
        ({"resolution": "10m"}, "resolution='10m'|make no grid: "),
        ({"resolution": (10, 10, 10)}, r"resolution=\(10, 10, 10\)|make no grid: "),
        ({"resolution": 1e-6}, "pixels of 1e-06 x -1e-06 cannot be read"),
        ({"geobox": 10}, "geobox=int: it has no grid with a CRS; give an odc.geo GeoBox, or data"),
        ({"like": np.zeros((3, 3))}, "like=ndarray: it has no grid with a CRS"),
        ({"geopolygon": 10}, "geopolygon=int: give a geometry of shapely, geopandas or odc-geo, or GeoJSON"),
        ({"geopolygon": {}}, "geopolygon=|make no grid: "),
        ({"resampling": "linear"}, "resampling='linear' was asked for; there are nearest, bilinear, cubic, average"),
        ({"resampling": {"red": 1}}, "resampling=1 was asked for"),
        ({"resampling": {"blue": "cubic"}}, "band 'blue' was asked for; 'series' has nir, red"),
        ({"groupby": "week"}, "groupby='week' was asked for; there are time, solar_day, id"),
        ({"fuse": "top"}, "fuse='top' was asked for; there are first, last, newest, least_cloudy, mean, median"),
    ],
)
def test_what_makes_no_grid_is_refused_by_name(manifest, options, message):
    with pytest.raises(SelectionError, match=message):
        open_cube(manifest, **options)


@pytest.mark.parametrize("name", ["geobox", "like"])
def test_a_whole_grid_leaves_nothing_else_to_say(manifest, name):
    ds = open_cube(manifest)
    whole = {name: ds.odc.geobox if name == "geobox" else ds}
    others = {"crs": "EPSG:32633", "resolution": 10, "anchor": "edge", "bbox": (15, 45, 16, 46), "lon": (15, 16)}
    for key, value in others.items():
        more, called = ({"lat": (45, 46)}, "bbox") if key == "lon" else ({}, key)
        with pytest.raises(SelectionError, match=f"^{name}= is a whole grid: leave out {called}="):
            open_cube(manifest, **whole, **{key: value}, **more)
    with pytest.raises(SelectionError, match=r"is a whole grid: leave out (like|geobox)="):
        open_cube(manifest, geobox=ds.odc.geobox, like=ds)


def test_two_places_at_once_are_refused(manifest):
    with pytest.raises(SelectionError, match=r"^give bbox= or geopolygon=, not both"):
        open_cube(manifest, bbox=(15, 45, 16, 46), geopolygon={"type": "Point", "coordinates": [15.0, 45.1]})


def test_a_crs_is_that_of_files_that_name_none_and_of_the_cube(manifest, tmp_path):
    path = write_cog(tmp_path / "a.tif", unique_values((64, 64), "uint16"), crs=None, blocksize=128)
    with pytest.raises(BuildError, match="has no coordinate reference system"):
        open_cube(path)
    ds = open_cube(path, crs="EPSG:32633")
    assert "UTM zone 33N" in ds.spatial_ref.attrs["crs_wkt"]
    assert open_cube(manifest, crs="EPSG:32633").identical(open_cube(manifest))


def test_the_arguments_of_build_go_through(tmp_path):
    values = unique_values((2, 64, 64), "uint16")
    write_cog(tmp_path / "f" / "a.tif", values, descriptions=["2001", "2002"], blocksize=128)
    (tmp_path / "f" / "broken.tif").touch()
    ds = open_cube(tmp_path / "f", bands_as="time:%Y", fail_on_error=False, harmonize=False, mask_and_scale=False)
    (name,) = ds.data_vars
    np.testing.assert_array_equal(ds[name], values)
    assert ds.cube.manifest.built["harmonize"] is False
    assert [what.endswith("broken.tif") for what, _ in ds.cube.left_out] == [True]


def test_an_unknown_argument_is_a_type_error(manifest):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'resolutoin'"):
        open_cube(manifest, resolutoin=10)
    for name in ("x", "y", "dtype", "stac_cfg"):  # of odc.stac.load
        with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'"):
            open_cube(manifest, **{name: (0, 1)})


def test_steps_are_times_days_or_items(tmp_path):
    """Three scenes of a pass, seconds apart, that lie beside each other, and one of the next day."""
    stamps = ("20240101T100000", "20240101T100024", "20240101T100048", "20240102T100000")
    parts = []
    for i, stamp in enumerate(stamps):
        parts.append(unique_values((100, 40), "uint16", i))
        write(tmp_path / f"{stamp}.tif", parts[-1], column=40 * (i % 3), nodata=0)
    manifest = build(tmp_path, pattern="{time:%Y%m%dT%H%M%S}.tif")
    assert stored(manifest).sizes["time"] == stored(manifest, groupby="id").sizes["time"] == 4
    ds = stored(manifest, groupby="solar_day")
    assert [str(time)[:19] for time in ds.time.values] == ["2024-01-01T10:00:00", "2024-01-02T10:00:00"]
    np.testing.assert_array_equal(ds.band_1[0], np.concatenate(parts[:3], axis=1))
    np.testing.assert_array_equal(ds.band_1[1, :, :40], parts[3])
    assert not ds.band_1[1, :, 40:].any()
    chosen = stored(manifest, groupby="solar_day", time="2024-01-02")
    np.testing.assert_array_equal(chosen.band_1, ds.band_1[1:])


def test_the_cube_behind_a_dataset_is_opened_as_any_other(manifest):
    """Whatever grid and steps the dataset had."""
    for options in ({"resolution": 20}, {"groupby": "id"}, {"groupby": "solar_day", "fuse": "last"}):
        behind = open_cube(manifest, **options).cube.manifest
        xr.testing.assert_identical(open_cube(behind), open_cube(manifest))
        xr.testing.assert_identical(open_cube(behind, **options), open_cube(manifest, **options))


def test_opening_a_cube_of_several_grids_lists_them_and_says_what_helps(tmp_path):
    for i, (size, column) in enumerate(((10, 0), (10, 120), (20, 0))):
        transform = from_origin(500000 + column * size, 5000000, size, size)
        write_cog(tmp_path / f"{i}.tif", unique_values((100, 120), "uint16", i), transform=transform, nodata=0)
    manifest = build(tmp_path, name="mixed", pattern="{tile}.tif")
    with pytest.raises(SelectionError) as caught:
        open_cube(manifest)
    assert str(caught.value) == (
        "the sources of 'mixed' lie on 2 grids:\n"
        "  2 in EPSG:32633, pixels of 10 x -10 from (500000, 5000000)\n"
        "  1 in EPSG:32633, pixels of 20 x -20 from (500000, 5000000)\n"
        "say which pixels you want (crs= and resolution=, like=, or geobox=), or choose bands of one grid"
    )
    ds = open_cube(manifest, resolution=20)
    assert (ds.sizes["y"], ds.sizes["x"]) == (100, 120)
    assert not ds.band_1.isnull().any()
    xr.testing.assert_identical(open_cube(manifest, like=ds), ds)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ("all", "give 'auto', None or lengths by dimension"),
        (100, "give 'auto', None or lengths by dimension"),
        ({"band": 1}, "the cube's dimensions are time, y, x"),
        ({"x": 0}, "x=0 is no length"),
        ({"x": -2}, "x=-2 is no length"),
        ({"x": 1.5}, r"x=1\.5 is no length"),
        ({"x": True}, "x=True is no length"),
        ({"x": (40, 40)}, r"x=\(40, 40\) is no length"),
    ],
)
def test_chunks_that_are_none_are_refused(manifest, chunks, message):
    with pytest.raises(SelectionError, match=message):
        open_cube(manifest, chunks=chunks)


def test_chunks_need_the_dask_extra(manifest):
    code = (
        "import sys; sys.modules['dask'] = sys.modules['dask.array'] = None\n"
        "from cube import open_cube\n"
        f"ds = open_cube({manifest.url!r}); print(int(ds.red.count()))\n"
        f"open_cube({manifest.url!r}, chunks={{}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().isdigit()
    assert "MissingExtraError: opening a cube with chunks needs libraries" in done.stderr
    assert "pip install 'cogcube[dask]'" in done.stderr


def test_a_window_has_the_grid_of_its_coordinates(manifest):
    selection = select(
        manifest, CubeSpec(manifest=manifest.url, version=manifest.version), bbox=(15.0, 45.1, 15.01, 45.2)
    )
    assert isinstance(selection.window, Window)
    np.testing.assert_array_equal(selection.grid.xs, open_cube(manifest, bbox=(15.0, 45.1, 15.01, 45.2)).x.values)


def test_lon_and_lat_are_a_bbox(tmp_path):
    path = write_cog(tmp_path / "a.tif", np.arange(64 * 64, dtype="uint16").reshape(64, 64), blocksize=128)
    whole = open_cube(path)
    to_degrees = Transformer.from_crs("EPSG:32633", "OGC:CRS84", always_xy=True).transform
    west, south = to_degrees(whole.x.values[0], whole.y.values[-1])
    east, north = to_degrees(whole.x.values[-1], whole.y.values[0])
    lon, lat = (west, (west + east) / 2), (south, (south + north) / 2)
    part = open_cube(path, lon=lon, lat=lat)
    xr.testing.assert_identical(part, open_cube(path, bbox=(lon[0], lat[0], lon[1], lat[1])))
    assert 0 < part.sizes["x"] < 64
    for wrong in ({"lon": lon}, {"lat": lat}, {"lon": lon, "lat": lat, "bbox": (0, 0, 1, 1)}):
        with pytest.raises(SelectionError, match=r"give lon=\(west, east\) and lat=\(south, north\) together"):
            open_cube(path, **wrong)


def test_opening_a_cube_loads_no_library_that_it_does_not_need(manifest):
    """Each takes a quarter of a second or more of a user's first look."""
    code = (
        "import sys, cube\n"
        f"cube.open_cube({manifest.url!r}).isel(y=slice(0, 2), x=slice(0, 2)).load()\n"
        "print(*sorted({'zarr', 'distributed', 'rasterio', 'icechunk', 'intake', 'pystac'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr
