"""The same pixels as odc-stac's on the same grid, to the last bit; and in what both differ, with a figure each."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
import shapely
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.transform import from_bounds, from_origin

from cube import build, open_cube
from cube.errors import SelectionError, SourceError
from cube.testing.archive import unique_values, write_cog
from tests.absent import absent

pytestmark = [
    # rioxarray and odc-geo still multiply affines with `*`.
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'shapely.ops.transform:DeprecationWarning"),
]

LONLAT = "EPSG:4326"
BORDER = 12.0, 48.0
"""Longitude and latitude of a place between two UTM zones."""
EXTENSIONS = [f"https://stac-extensions.github.io/{name}/v1.1.0/schema.json" for name in ("projection", "raster")]
GROUPS = ("time", "solar_day", "id")


@pytest.fixture(scope="module", autouse=True)
def odc_stac():
    """odc-stac, or skip."""
    if importlib.util.find_spec("odc.stac") is None:
        absent("needs odc-stac: make setup")
    import odc.stac

    return odc.stac


@pytest.fixture
def load(odc_stac, monkeypatch):
    """Return `load(items, exact=True, ...)`: what odc-stac loads, by exact positions or GDAL's approximate ones."""
    approximate = rasterio.warp.reproject

    def exactly(*arguments, **options):
        return approximate(*arguments, **{**options, "tolerance": 0})

    def load(items, *, exact=True, **options):
        monkeypatch.setattr(rasterio.warp, "reproject", exactly if exact else approximate)
        found = odc_stac.load([pystac.Item.from_dict(item) for item in items], **options)
        if options.get("chunks"):
            found.load(scheduler="synchronous")
        monkeypatch.setattr(rasterio.warp, "reproject", approximate)
        return found

    return load


def item_of(name, time, assets, **properties):
    """Return the STAC Item of some files, which are on one grid: {name of the band: path}."""
    described = {}
    for band, path in assets.items():
        with rasterio.open(path) as file:
            crs, (left, bottom, right, top) = file.crs, file.bounds
            described[band] = {
                "href": str(path),
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "raster:bands": [{"data_type": file.dtypes[0], "nodata": file.nodata}],
                "proj:shape": list(file.shape),
                "proj:transform": list(file.transform)[:6],
            }
    to_lonlat = Transformer.from_crs(crs, LONLAT, always_xy=True).transform
    outline = shapely.transform(shapely.box(left, bottom, right, top), to_lonlat, interleaved=False)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": EXTENSIONS,
        "id": name,
        "collection": "scenes",
        "bbox": list(outline.bounds),
        "geometry": shapely.geometry.mapping(outline),
        "properties": {"datetime": time, "proj:epsg": crs.to_epsg(), **properties},
        "links": [],
        "assets": described,
    }


def built(items, folder, **options):
    # From a file, as a user would.
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return build(path, to=folder / "a.cube", **options)


def in_time(items):
    return sorted(items, key=lambda item: (np.datetime64(item["properties"]["datetime"][:-1]), item["id"]))


def of_zone(zone, east, north):
    """Return the transform of a scene whose corner lies some metres from the place between the zones."""
    x, y = Transformer.from_crs(LONLAT, f"EPSG:{zone}", always_xy=True).transform(*BORDER)
    return from_origin(round(x, -1) + east, round(y, -1) + north, 10, 10)


SCENES = {
    # Item: zone, time, metres east and north of the place. "a" is of zone 33, and of two times are both zones.
    "b": (32632, "2024-05-01T10:00:00Z", -1400, 1300),
    "a": (32633, "2024-05-01T10:00:00Z", -700, 1100),
    "e": (32633, "2024-05-01T10:00:14Z", -740, 400),
    "d": (32632, "2024-05-01T10:00:14.500Z", -200, 1200),
    "c": (32632, "2024-05-01T21:20:00Z", -1203, 1504),
    "g": (32633, "2024-05-02T10:00:00Z", -1300, 600),
    "f": (32633, "2024-05-02T10:00:00Z", -500, 1300),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The manifest of scenes of two zones that overlap, and their items; one has no nir."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    items = []
    for seed, (name, (zone, time, east, north)) in enumerate(SCENES.items()):
        assets = {}
        for band in ("red", "nir") if name != "d" else ("red",):
            pixels = unique_values((160, 180), "uint16", seed + 10 * (band == "nir"))
            for top, left in rng.integers(0, 140, (4, 2)):
                pixels[top : top + 25, left : left + 40] = 0
            transform = of_zone(zone, east, north)
            assets[band] = write_cog(
                folder / f"{name}_{band}.tif",
                pixels,
                crs=f"EPSG:{zone}",
                transform=transform,
                nodata=0,
                blocksize=64,
                overviews="NONE",
            )
        items.append(item_of(name, time, assets))
    return built(items, folder), items


def around(crs, size, height, width, *, shift=(0, 0)):
    """Return a grid around the place between the zones, which begins at a multiple of its pixels, and a shift."""
    x, y = Transformer.from_crs(LONLAT, crs, always_xy=True).transform(*BORDER)
    corner = round(x / size - width / 2) * size + shift[0], round(y / size + height / 2) * size + shift[1]
    return GeoBox((height, width), from_origin(*corner, size, size), crs)


TARGETS = {
    "a zone": around("EPSG:32633", 10, 300, 320),
    "the other zone": around("EPSG:32632", 10, 320, 300),
    "a zone, other pixels": around("EPSG:32633", 10, 300, 320, shift=(3.7, -1.9)),
    "a zone, 20 m": around("EPSG:32633", 20, 150, 170),
    "a zone, 33 m": around("EPSG:32633", 33, 100, 110),
    "a zone, 4 m": around("EPSG:32632", 4, 350, 330),
    "degrees": around(LONLAT, 0.0001, 320, 450),
    "Mercator": around("EPSG:3857", 15, 300, 310),
    "LAEA": around("EPSG:3035", 10, 310, 320),
}


def assert_same(found, theirs):
    """Check that datasets of stored numbers are the same, time and place included."""
    np.testing.assert_array_equal(found.time.values, theirs.time.values)
    assert found.odc.geobox == theirs.odc.geobox
    assert set(found.data_vars) == set(theirs.data_vars)
    for band in found.data_vars:
        assert found[band].dtype == theirs[band].dtype
        np.testing.assert_array_equal(found[band].values, theirs[band].values)


@pytest.mark.parametrize("groupby", GROUPS)
@pytest.mark.parametrize("target", TARGETS)
def test_nearest_is_odc_stac_s_to_the_last_bit(scenes, load, target, groupby):
    manifest, items = scenes
    where = {"geobox": TARGETS[target], "groupby": groupby}
    found = open_cube(manifest, mask_and_scale=False, **where)
    theirs = load(in_time(items), bands=["red", "nir"], **where)
    assert found.sizes["time"] == {"time": 5, "solar_day": 2, "id": 7}[groupby]
    assert 0.15 < (found.red.values > 0).mean() < 0.98
    assert_same(found, theirs)


BLOCKS = {"x": -1, "y": -1}, {"x": 128, "y": 200}


@pytest.mark.parametrize("chunks", BLOCKS)
def test_chunks_of_both_are_the_same(scenes, load, chunks):
    manifest, items = scenes
    where = {"geobox": TARGETS["degrees"], "groupby": "solar_day", "chunks": chunks}
    found = open_cube(manifest, mask_and_scale=False, **where)
    assert_same(found, load(items, bands=["red", "nir"], **where))


@pytest.mark.parametrize(
    "arguments",
    [
        {"crs": "EPSG:32633", "resolution": 10},
        {"crs": "EPSG:32632", "resolution": 25},
        {"crs": LONLAT, "resolution": 0.0002},
        {"resolution": 20},
        {"crs": "EPSG:32633", "resolution": 10, "anchor": "center"},
        {"crs": "EPSG:32633", "resolution": 10, "bbox": (11.99, 47.99, 12.01, 48.005)},
        {"resolution": 10, "bbox": (11.99, 47.99, 12.01, 48.005)},
        {"crs": "EPSG:3035", "resolution": 20, "geopolygon": shapely.Point(*BORDER).buffer(0.01)},
        {"crs": "EPSG:3857", "resolution": 20, "lon": (11.99, 12.01), "lat": (47.99, 48.005)},
    ],
    ids=str,
)
def test_the_grid_that_arguments_choose_is_odc_stac_s(scenes, load, arguments):
    manifest, items = scenes
    # "c" has pixels of its own lattice, which odc-stac would take into account where there is no resolution.
    found = open_cube(manifest, ["red"], **arguments)
    theirs = load(items, bands=["red"], chunks={}, **arguments)
    assert found.odc.geobox == theirs.odc.geobox


# Real scenes.

S2_BANDS = {"B04": 3, "B08": 7}
"""Position among the bands of the reference scenes."""
S2_DATES = (2, 1, 4, 3, 0)
"""Position of each reference scene among the dates."""


@pytest.fixture(scope="module")
def sentinel2(test_data, tmp_path_factory):
    """Chips of Sentinel-2 of five dates: the manifest and items of three as they are, and two warped to zone 32."""
    source, folder = test_data / "s2_eopatch", tmp_path_factory.mktemp("sentinel2")
    ring = np.array(json.loads((source / "bbox.geojson").read_text())["coordinates"][0])
    dates = json.loads((source / "timestamps.json").read_text())
    chips = np.load(source / "REFERENCE_SCENES.npy")
    height, width = chips.shape[1:3]
    transform = from_bounds(*ring.min(axis=0), *ring.max(axis=0), width, height)
    items = []
    for number, chip in zip(S2_DATES, chips, strict=True):
        paths = {}
        for band, position in S2_BANDS.items():
            pixels = np.rint(chip[..., position] * 10000).astype("uint16")
            path = folder / f"{number}_{band}.tif"
            write_cog(path, pixels, crs="EPSG:32633", transform=transform, nodata=0, blocksize=64, overviews="NONE")
            paths[band] = warped(path, "EPSG:32632") if number in {1, 3} else path
        items.append(item_of(f"S2-{number}", f"{dates[number]}Z", paths))
    return built(items, folder), items


def warped(path, crs):
    """Write a file again in another CRS, and return the path."""
    with rasterio.open(path) as file:
        transform, width, height = rasterio.warp.calculate_default_transform(
            file.crs, crs, file.width, file.height, *file.bounds, resolution=10
        )
        pixels = np.zeros((height, width), file.dtypes[0])
        rasterio.warp.reproject(
            rasterio.band(file, 1), pixels, dst_transform=transform, dst_crs=crs, dst_nodata=0, tolerance=0
        )
    path = path.with_name(f"{path.stem}_warped.tif")
    return write_cog(path, pixels, crs=crs, transform=transform, nodata=0, blocksize=64, overviews="NONE")


@pytest.mark.parametrize("groupby", GROUPS)
@pytest.mark.parametrize(("crs", "size"), [("EPSG:32633", 10), ("EPSG:32632", 10), (LONLAT, 0.0001), ("EPSG:3035", 20)])
def test_chips_of_sentinel_2_are_odc_stac_s_to_the_last_bit(sentinel2, load, crs, size, groupby):
    manifest, items = sentinel2
    where = {"crs": crs, "resolution": size, "groupby": groupby}
    found = open_cube(manifest, mask_and_scale=False, **where)
    assert (found.B04.values > 0).mean() > 0.7
    assert_same(found, load(in_time(items), bands=list(S2_BANDS), **where))


@pytest.fixture(scope="module")
def antimeridian(test_data, tmp_path_factory):
    """A scene of Landsat in zone 60 and one of Sentinel-2 in zone 1, which overlap beyond 180 degrees."""
    paths = [
        test_data / "cogeotiff__rio-tiler" / "tests__fixtures__cog_dateline.tif",
        next((test_data / "stactools-packages__sentinel2").glob("*T01UBT*_B04_10m.tif")),
    ]
    folder = tmp_path_factory.mktemp("antimeridian")
    items = [item_of(name, "2023-01-22T23:18:49Z", {"red": path}) for name, path in zip("ab", paths, strict=True)]
    return built(items, folder, fill_value=0, harmonize=False), items


@pytest.mark.parametrize(
    "target",
    [
        GeoBox((400, 500), from_origin(150000, 5850000, 600, 600), "EPSG:32601"),
        GeoBox((400, 500), from_origin(550000, 5850000, 600, 600), "EPSG:32660"),
        # Mercator around 150 degrees, of the Pacific.
        GeoBox((400, 500), from_origin(3100000, 6820000, 900, 900), "EPSG:3832"),
    ],
    ids=str,
)
def test_scenes_on_both_sides_of_the_antimeridian_are_odc_stac_s(antimeridian, load, target):
    manifest, items = antimeridian
    found = open_cube(manifest, ["red"], geobox=target, mask_and_scale=False)
    theirs = load(items, bands=["red"], geobox=target, dtype="uint16", nodata=0)
    assert (found.red.values > 0).mean() > 0.1
    np.testing.assert_array_equal(found.red.values, theirs.red.values)


def test_degrees_beyond_180_show_both_sides(antimeridian):
    manifest, _ = antimeridian
    beyond = GeoBox((400, 700), from_origin(178, 53, 0.006, 0.006), LONLAT)
    before = GeoBox((400, 700), from_origin(-182, 53, 0.006, 0.006), LONLAT)
    found = [open_cube(manifest, ["red"], geobox=box, mask_and_scale=False).red.values for box in (beyond, before)]
    assert (found[0] > 0).mean() > 0.2
    np.testing.assert_array_equal(found[0], found[1])


# In what both differ.


def share(found, theirs, most=0):
    """Return the share of pixels with a value in either that differ by more than so much."""
    found, theirs = found.astype("i8"), theirs.astype("i8")
    return (np.abs(found - theirs) > most).sum() / ((found != 0) | (theirs != 0)).sum()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The manifest of a scene of 12 km, and its item."""
    folder, transform = tmp_path_factory.mktemp("wide"), of_zone(32632, -6000, 6000)
    pixels = unique_values((1200, 1200), "uint16")
    path = write_cog(folder / "a.tif", pixels, crs="EPSG:32632", transform=transform, nodata=0, overviews="NONE")
    items = [item_of("a", "2024-05-01T10:00:00Z", {"red": path})]
    return built(items, folder), items


@pytest.mark.parametrize(
    ("crs", "size", "least", "most"),
    [
        ("EPSG:32633", 10, 0.001, 0.03),
        ("EPSG:3035", 10, 0.001, 0.03),
        ("EPSG:3857", 15, 0.005, 0.1),
        (LONLAT, 0.0001, 0.01, 0.15),
    ],
)
def test_approximate_positions_change_a_small_share_to_neighbours(wide, load, record_property, crs, size, least, most):
    manifest, items = wide
    where = {"geobox": around(crs, size, 900, 900)}
    found = open_cube(manifest, mask_and_scale=False, **where).red.values
    apart = share(found, load(items, exact=False, bands=["red"], **where).red.values)
    record_property("share that differs", f"{crs}: {apart:.3%}")
    assert least < apart < most


def test_approximate_positions_depend_on_chunks_and_exact_ones_do_not(scenes, load):
    manifest, items = scenes
    where = {"geobox": TARGETS["degrees"], "groupby": "solar_day"}
    whole, parts = (load(items, exact=False, bands=["red"], chunks=chunks, **where).red.values for chunks in BLOCKS)
    assert 0.001 < share(whole, parts) < 0.05
    whole, parts = (
        open_cube(manifest, ["red"], chunks=chunks, mask_and_scale=False, **where).red.values for chunks in BLOCKS
    )
    np.testing.assert_array_equal(parts, whole)


def test_days_are_the_sun_s_to_the_second(tmp_path, load):
    """In odc-stac the sun moves in whole hours: up to 15 degrees of longitude have the days of Greenwich."""
    path = write_cog(tmp_path / "a.tif", unique_values((64, 64), "uint16"), nodata=0, overviews="NONE")
    times = ("2024-05-01T23:00:00Z", "2024-05-01T23:30:00Z", "2024-05-02T09:00:00Z")
    items = [item_of(f"S{i}", time, {"red": path}) for i, time in enumerate(times)]
    where = {"crs": "EPSG:32633", "resolution": 10, "groupby": "solar_day"}
    found = open_cube(built(items, tmp_path), **where)  # at 13.6 degrees east, where it is midnight at 23:05:28
    assert [str(time)[:19] for time in found.time.values] == ["2024-05-01T23:00:00", "2024-05-01T23:30:00"]
    theirs = load(items, bands=["red"], **where)
    assert [str(time)[:19] for time in theirs.time.values] == ["2024-05-01T23:00:00", "2024-05-02T09:00:00"]


def test_steps_of_items_are_in_the_order_of_time(scenes, load):
    """In odc-stac they are in the order in which the items are given."""
    manifest, items = scenes
    where = {"geobox": TARGETS["a zone, 33 m"], "groupby": "id"}
    found = open_cube(manifest, ["red"], mask_and_scale=False, **where)
    theirs = load(items, bands=["red"], **where)
    order = [in_time(items).index(item) for item in items]
    assert order != sorted(order)
    np.testing.assert_array_equal(found.red.values[order], theirs.red.values)


@pytest.mark.parametrize("groupby", ["id", "time"])
@pytest.mark.parametrize("how", ["bilinear", "cubic", "average"])
def test_other_ways_are_odc_stac_s_at_the_sources_size(scenes, load, how, groupby):
    """But for scenes of one lattice that overlap, where that is at their edges."""
    manifest, items = scenes
    where = {"geobox": TARGETS["a zone"], "groupby": groupby, "resampling": how}
    found = open_cube(manifest, ["red"], mask_and_scale=False, **where).red.values
    theirs = load(in_time(items), bands=["red"], **where).red.values
    # Numbers at random, whose neighbours differ by most of the range: a ten-thousandth of a pixel is 7.
    assert share(found, theirs, most=10) < 0.01


def test_scenes_of_one_lattice_are_joined_before_they_are_warped(tmp_path, load):
    """odc-stac warps each by itself, and mixes no pixel with those of its neighbour."""
    hills = 1000 + np.arange(200)[:, None] * 10 + np.arange(400) * 7
    items = []
    for name, left in (("a", 0), ("b", 200)):
        path = write_cog(
            tmp_path / f"{name}.tif",
            hills[:, left : left + 200].astype("uint16"),
            transform=from_origin(300000 + left * 10, 5400000, 10, 10),
            nodata=0,
            overviews="NONE",
        )
        items.append(item_of(name, "2024-05-01T10:00:00Z", {"red": path}))
    manifest = built(items, tmp_path)
    box = GeoBox((190, 390), from_origin(300013, 5399987, 10, 10), "EPSG:32633")
    where = {"geobox": box, "resampling": "bilinear"}
    found = open_cube(manifest, mask_and_scale=False, **where).red.values[0].astype("i4")
    theirs = load(items, bands=["red"], **where).red.values[0].astype("i4")
    columns = np.flatnonzero((found != theirs).any(axis=0))
    assert columns.tolist() == [198]
    slopes = np.diff(found, axis=1), np.diff(theirs, axis=1)
    assert slopes[0].min() >= 6  # a plane all along
    assert slopes[0].max() <= 8
    assert slopes[1][:, 197:199].min() < 6


def test_kernels_are_not_stretched_where_pixels_become_larger(sentinel2, load, record_property):
    manifest, items = sentinel2
    where = {"crs": "EPSG:32633", "resolution": 20, "groupby": "id", "resampling": "bilinear"}
    found = open_cube(manifest, ["B04"], mask_and_scale=False, **where).B04.values
    theirs = load(in_time(items), bands=["B04"], **where).B04.values
    both = (found > 0) & (theirs > 0)
    apart = np.abs(found.astype("i4") - theirs)[both]
    record_property("share that differs", f"{(apart > 1).mean():.1%}, by {np.median(apart / found[both]):.2%}")
    assert 0.5 < (apart > 1).mean() < 1
    assert np.median(apart / found[both]) < 0.05


def test_masks_inside_of_files_are_heeded(tmp_path, load):
    """odc-stac reads what lies below them."""
    pixels, valid = unique_values((64, 64), "uint16"), np.ones((64, 64), bool)
    valid[10:30, 20:50] = False
    path = tmp_path / "a.tif"
    shape = {"width": 64, "height": 64, "count": 1, "dtype": "uint16", "crs": "EPSG:32633"}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", transform=from_origin(300000, 5400000, 10, 10), **shape) as file,
    ):
        file.write(pixels, 1)
        file.write_mask(valid)
    items = [item_of("a", "2024-05-01T10:00:00Z", {"red": path})]
    box = GeoBox((64, 64), from_origin(300000, 5400000, 10, 10), "EPSG:32633")
    found = open_cube(built(items, tmp_path, fill_value=0), geobox=box, mask_and_scale=False).red.values[0]
    np.testing.assert_array_equal(found, np.where(valid, pixels, 0))
    np.testing.assert_array_equal(load(items, bands=["red"], geobox=box).red.values[0], pixels)


def test_the_data_type_is_the_files_own_though_the_items_do_not_say_it(tmp_path, load):
    """odc-stac takes float32 where the items say nothing."""
    path = write_cog(tmp_path / "a.tif", unique_values((64, 64), "uint16"), nodata=0, overviews="NONE")
    item = item_of("a", "2024-05-01T10:00:00Z", {"red": path})
    del item["assets"]["red"]["raster:bands"]
    where = {"crs": "EPSG:32633", "resolution": 10}
    assert open_cube(built([item], tmp_path), mask_and_scale=False, **where).red.dtype == "uint16"
    assert load([item], bands=["red"], **where).red.dtype == "float32"


def test_offsets_are_applied_unless_stored_numbers_are_asked_for(tmp_path, load):
    """odc-stac gives stored numbers, whatever the items say of their scale."""
    path = write_cog(tmp_path / "a.tif", np.full((64, 64), 1500, "uint16"), nodata=0, overviews="NONE")
    item = item_of("a", "2024-05-01T10:00:00Z", {"red": path})
    item["assets"]["red"]["raster:bands"][0] |= {"scale": 0.0001, "offset": -0.1}
    where = {"crs": "EPSG:32633", "resolution": 10}
    manifest = built([item], tmp_path)
    np.testing.assert_allclose(open_cube(manifest, **where).red.values, 0.05, rtol=1e-6)
    assert (load([item], bands=["red"], **where).red.values == 1500).all()
    assert (open_cube(manifest, mask_and_scale=False, **where).red.values == 1500).all()


def test_overlaps_without_nodata_need_a_word(tmp_path, load):
    """odc-stac takes 0 for holes, and every 0 of a scene for one where another lies below."""
    items = []
    for name, value in (("a", 0), ("b", 9)):
        path = write_cog(
            tmp_path / f"{name}.tif",
            np.full((64, 64), value, "uint8"),
            transform=from_origin(300000 + 320 * (name == "b"), 5400000, 10, 10),
            overviews="NONE",
        )
        items.append(item_of(name, "2024-05-01T10:00:00Z", {"red": path}))
        del items[-1]["assets"]["red"]["raster:bands"][0]["nodata"]
    box = GeoBox((64, 96), from_origin(300000, 5400000, 10, 10), "EPSG:32633")
    found = open_cube(built(items, tmp_path), geobox=box, mask_and_scale=False).red.values[0]
    np.testing.assert_array_equal(found, np.where(np.arange(96) < 64, 0, 9)[None].repeat(64, axis=0))
    theirs = load(items, bands=["red"], geobox=box).red.values[0]
    np.testing.assert_array_equal(theirs, np.where(np.arange(96) < 32, 0, 9)[None].repeat(64, axis=0))


def test_a_scene_that_is_gone_is_an_error_in_both(tmp_path, load):
    path = write_cog(tmp_path / "a.tif", unique_values((64, 64), "uint16"), nodata=0, overviews="NONE")
    items = [item_of("a", "2024-05-01T10:00:00Z", {"red": path})]
    manifest = built(items, tmp_path)
    path.unlink()
    where = {"crs": "EPSG:32633", "resolution": 10}
    with pytest.raises(SourceError, match=r"a\.tif"):
        open_cube(manifest, mask_and_scale=False, **where).red.load()
    with pytest.raises(rasterio.errors.RasterioIOError):
        load(items, bands=["red"], **where)


def test_several_grids_and_no_word_on_the_pixels_are_an_error(scenes, load):
    """odc-stac takes the CRS and pixels that most items have."""
    manifest, items = scenes
    with pytest.raises(SelectionError, match="lie on 3 grids"):
        open_cube(manifest)
    assert load(items, bands=["red"], chunks={}).odc.geobox.crs.epsg == 32633
