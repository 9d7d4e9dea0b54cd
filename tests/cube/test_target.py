"""The grid that arguments of `odc.stac.load` choose, against odc-geo's."""

from __future__ import annotations

import geopandas
import numpy as np
import odc.geo.xr
import pytest
import rioxarray  # noqa: F401 - the accessor .rio
import shapely
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo import geom, resyx_, xy_
from odc.geo.geobox import AnchorEnum, GeoBox
from pyproj import Transformer
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.errors import SelectionError
from cube.target import find_target
from cube.testing.archive import unique_values, write_cog

pytestmark = [
    # rioxarray and odc-geo still multiply affines with `*`.
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'shapely.ops.transform:DeprecationWarning"),
]

UTM, NEXT, LONLAT = "EPSG:32633", "EPSG:32632", "EPSG:4326"
BBOX = (13.637, 48.736, 13.644, 48.741)
"""Longitude and latitude, in the sources' place."""
CORNER = 399960.0, 5400000.0


def write(folder, name, *, size=10.0, at=(0, 0), crs=UTM, shape=(90, 80)):
    transform = from_origin(CORNER[0] + at[0], CORNER[1] + at[1], size, size)
    pixels = unique_values(shape, "uint16")
    write_cog(folder / f"{name}.tif", pixels, crs=crs, transform=transform, nodata=0, blocksize=64, overviews="NONE")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A cube of two scenes on one lattice, which does not begin at a multiple of its pixels."""
    folder = tmp_path_factory.mktemp("one")
    write(folder, "20240501_red", at=(3, 4))
    write(folder, "20240502_red", at=(103, 204))
    return build(folder, to=folder / "one.cube")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A cube of two bands in one zone, of 10 and 20 m, and a third in the next zone."""
    folder = tmp_path_factory.mktemp("several")
    write(folder, "20240501_red")
    write(folder, "20240502_red", at=(200, 100))
    write(folder, "20240501_swir", size=20.0, at=(5, 5))
    write(folder, "20240501_blue", size=10.0, crs=NEXT, at=(441000, 4000))
    return build(folder, pattern="{time:%Y%m%d}_{band}.tif", to=folder / "several.cube")


def target(manifest, bands=None, **arguments):
    names = [band.name for band in manifest.bands] if bands is None else bands
    return find_target(manifest, names, **arguments)


def as_geobox(grid):
    return GeoBox(grid.shape, Affine(*grid.transform), grid.crs)


def lonlat_box(west=BBOX[0], south=BBOX[1], east=BBOX[2], north=BBOX[3]):
    return geom.box(west, south, east, north, LONLAT)


# Where no grid is needed.


def test_nothing_asked_is_the_sources_own_grid(one):
    assert target(one) is None
    assert target(one, bbox=BBOX) is None


@pytest.mark.parametrize("crs", [UTM, "epsg:32633", "EPSG:32633 ", 32633])
def test_the_sources_own_crs_is_their_own_grid(one, crs):
    if isinstance(crs, str):
        crs = crs.strip()
    assert target(one, crs=crs) is None
    assert target(one, crs=crs, bbox=BBOX) is None


# Against odc-geo.

SIZES = {
    UTM: (10, 20, 7.5, (20, 10), (-20.0, 20.0)),
    NEXT: (10, 30, (15, 10)),
    LONLAT: (0.0001, 0.001, (-0.001, 0.0005)),
    "EPSG:3857": (10, 100),
    "EPSG:3035": (10, 25),
}
ANCHORS = {
    None: "edge",
    "edge": "edge",
    "center": "center",
    AnchorEnum.CENTER: "center",
    xy_(0.25, 0.75): xy_(0.25, 0.75),
}


def resolution_of(size):
    """What odc-geo takes for a size: rows run southwards where a number is given, and as they are given in a pair."""
    return size if not isinstance(size, tuple) else resyx_(*size)


@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize(("crs", "size"), [(crs, size) for crs, sizes in SIZES.items() for size in sizes])
def test_crs_resolution_bbox_and_anchor_are_odc_geo_s(one, crs, size, anchor):
    found = target(one, crs=crs, resolution=size, bbox=BBOX, anchor=anchor)
    expected = GeoBox.from_geopolygon(lonlat_box(), resolution_of(size), crs, anchor=ANCHORS[anchor])
    assert as_geobox(found) == expected


@settings(max_examples=100)
@given(
    lon=st.floats(-179, 170),
    lat=st.floats(-79, 75),
    wide=st.floats(0.001, 5),
    tall=st.floats(0.001, 4),
    crs=st.sampled_from(["EPSG:3857", "EPSG:6933", LONLAT]),
    pixels=st.integers(1, 300),
)
def test_any_box_is_odc_geo_s(one, lon, lat, wide, tall, crs, pixels):
    bbox = (lon, lat, lon + wide, lat + tall)
    size = wide / pixels * (1 if crs == LONLAT else 111_000)
    expected = GeoBox.from_geopolygon(lonlat_box(*bbox), size, crs, anchor="edge")
    assert as_geobox(target(one, crs=crs, resolution=size, bbox=bbox)) == expected


def test_a_box_across_the_antimeridian_is_of_one_piece(one):
    found = target(one, crs=LONLAT, resolution=0.1, bbox=(178, -18, -179, -16))
    assert found.bounds == pytest.approx((178, -18, 181, -16))
    found = target(one, crs="EPSG:32660", resolution=1000, bbox=(178, -18, -179, -16))
    expected = GeoBox.from_geopolygon(lonlat_box(178, -18, 181, -16), 1000, "EPSG:32660", anchor="edge")
    assert as_geobox(found) == expected


def test_without_a_box_the_grid_covers_all_sources(one):
    own = one.grid
    left, bottom, right, top = own.bounds
    found = target(one, resolution=20)
    assert as_geobox(found) == GeoBox.from_bbox((left, bottom, right, top), UTM, resolution=20, anchor="edge")
    found = target(one, crs=NEXT, resolution=10)
    # Straight edges are curves in the next zone: at every metre of them.
    x, y = np.meshgrid(np.arange(801.0), np.arange(901.0))
    x, y = (np.concatenate([each[0], each[-1], each[:, 0], each[:, -1]]) for each in (x, y))
    xs, ys = (np.concatenate([each + at for at in shifts]) for each, shifts in ((x, (3, 103)), (-y, (4, 204))))
    xs, ys = Transformer.from_crs(UTM, NEXT, always_xy=True).transform(CORNER[0] + xs, CORNER[1] + ys)
    expected = GeoBox.from_bbox((xs.min(), ys.min(), xs.max(), ys.max()), NEXT, resolution=10, anchor="edge")
    assert as_geobox(found) == expected


def test_straight_edges_are_curves_in_another_crs(tmp_path):
    transform = from_origin(350000, 5400000, 2000, 2000)
    path = write_cog(tmp_path / "a.tif", np.ones((150, 150), "uint8"), transform=transform, nodata=0)
    along = np.linspace(0, 300000, 3001)
    x = np.concatenate([along, along, np.zeros(3001), np.full(3001, 300000)]) + 350000
    y = 5400000 - np.concatenate([np.zeros(3001), np.full(3001, 300000), along, along])
    lons, lats = Transformer.from_crs(UTM, LONLAT, always_xy=True).transform(x, y)
    assert lats.max() > lats[[0, 3000]].max() + 0.003
    found = target(build(path, to=tmp_path / "a.cube"), crs=LONLAT, resolution=0.001)
    assert found.bounds == pytest.approx((lons.min(), lats.min(), lons.max(), lats.max()), abs=0.002)


def test_only_the_sources_of_the_bands_that_are_opened_count(several):
    assert target(several, ["swir"]) is None
    assert target(several, ["blue"]) is None
    red, swir = (target(several, [band], resolution=20) for band in ("red", "swir"))
    assert red.bounds == pytest.approx((399960, 5399100, 400960, 5400100))
    assert swir.bounds == pytest.approx((399960, 5398200, 401580, 5400020))
    assert target(several, ["blue"], resolution=20).crs == NEXT


def test_the_crs_and_size_that_are_not_given_are_those_of_most_and_finest_sources(several):
    assert target(several, resolution=10).crs == UTM
    found = target(several, crs=UTM)
    assert (found.transform[0], found.transform[4]) == (10, -10)
    assert target(several, crs=UTM, bbox=BBOX).transform[0] == 10
    assert target(several, ["swir", "blue"], crs=UTM).transform[0] == 20


def test_a_crs_in_other_words_is_told_as_the_sources_tell_it(one):
    import pyproj

    wkt = pyproj.CRS(UTM).to_wkt()
    assert target(one, crs=wkt, resolution=20).crs == UTM
    assert target(one, crs=pyproj.CRS(UTM).to_wkt("WKT1_GDAL"), resolution=20).crs == UTM
    assert target(one, crs="OGC:CRS84", resolution=0.001).crs in {"OGC:CRS84", LONLAT}


# Polygons.

RING = [(13.637, 48.736), (13.644, 48.737), (13.643, 48.741), (13.638, 48.740), (13.637, 48.736)]
POLYGON = shapely.Polygon(RING)
GEOJSON = shapely.geometry.mapping(POLYGON)
FEATURE = {"type": "Feature", "properties": {}, "geometry": GEOJSON}
HALVES = [shapely.box(*BBOX[:2], 13.640, BBOX[3]), shapely.box(13.641, *BBOX[1:])]
TO_UTM = Transformer.from_crs(LONLAT, UTM, always_xy=True).transform
IN_UTM = geom.Geometry(shapely.transform(POLYGON, TO_UTM, interleaved=False), UTM)
POLYGONS = {
    "shapely": (POLYGON, POLYGON),
    "GeoJSON": (GEOJSON, POLYGON),
    "a Feature": (FEATURE, POLYGON),
    "a FeatureCollection": (
        {
            "type": "FeatureCollection",
            "features": [{"type": "Feature", "geometry": shapely.geometry.mapping(each)} for each in HALVES],
        },
        shapely.union_all(HALVES),
    ),
    "odc-geo": (geom.Geometry(POLYGON, LONLAT), POLYGON),
    "odc-geo in UTM": (IN_UTM, IN_UTM),
    "a GeoSeries": (geopandas.GeoSeries(HALVES, crs=LONLAT), shapely.union_all(HALVES)),
    "a GeoSeries in UTM": (geopandas.GeoSeries([IN_UTM.geom], crs=UTM), IN_UTM),
    "a GeoDataFrame": (geopandas.GeoDataFrame({"a": [1]}, geometry=[POLYGON], crs=LONLAT), POLYGON),
    "a GeoDataFrame without a CRS": (geopandas.GeoDataFrame({"a": [1]}, geometry=[POLYGON]), POLYGON),
    "several polygons": (shapely.MultiPolygon(HALVES), shapely.union_all(HALVES)),
    "a line": (shapely.LineString(RING), POLYGON),
    "a mapping of another class": (type("Shape", (), {"__geo_interface__": GEOJSON})(), POLYGON),
}


@pytest.mark.parametrize(("crs", "size"), [(UTM, 10), (NEXT, 10), (LONLAT, 0.0001), ("EPSG:3857", 15)])
@pytest.mark.parametrize("name", POLYGONS)
def test_a_polygon_is_odc_geo_s_box_of_it(one, name, crs, size):
    given_, polygon = POLYGONS[name]
    polygon = polygon if isinstance(polygon, geom.Geometry) else geom.Geometry(polygon, LONLAT)
    found = target(one, crs=crs, resolution=size, geopolygon=given_)
    assert as_geobox(found) == GeoBox.from_geopolygon(polygon, size, crs, anchor="edge")


def test_a_polygon_alone_has_the_sources_crs_and_size(one):
    found = target(one, geopolygon=POLYGON)
    assert found.crs == UTM
    assert (found.transform[0], found.transform[4]) == (10, -10)
    left, bottom, right, top = IN_UTM.boundingbox
    assert found.bounds[0] <= left
    assert found.bounds[1] <= bottom
    assert found.bounds[2] >= right
    assert found.bounds[3] >= top


def test_a_polygon_alone_is_a_window_of_the_sources_own_pixels(one):
    """As in odc-stac, whose grid begins where the sources' pixels do unless a resolution is given."""
    found = target(one, geopolygon=POLYGON)
    column, row = ~Affine(*one.grid.transform) @ (found.transform[2], found.transform[5])
    assert column == pytest.approx(round(column), abs=1e-6)
    assert row == pytest.approx(round(row), abs=1e-6)


# Grids that are given.

GRIDS = [
    GeoBox((30, 40), from_origin(399970, 5399900, 20, 20), UTM),
    GeoBox((30, 40), from_origin(13.637, 48.741, 0.0002, 0.0001), LONLAT),
    GeoBox((30, 40), from_origin(841000, 5413000, 10, 10), NEXT),
    GeoBox((30, 40), Affine(8, 3, 399970, 3, -8, 5399900), UTM),
    GeoBox((30, 40), Affine(10, 0, 399970, 0, 10, 5399300), UTM),
]


@pytest.mark.parametrize("box", GRIDS, ids=str)
def test_a_geobox_is_the_grid_itself(one, box):
    for name in ("geobox", "like"):
        assert as_geobox(target(one, **{name: box})) == box
    opened = open_cube(one, geobox=box)
    assert opened.odc.geobox == box
    assert as_geobox(target(one, like=opened)) == box
    assert as_geobox(target(one, like=opened.band_1 if "band_1" in opened else opened.red)) == box


@pytest.mark.parametrize("box", GRIDS[:3], ids=str)
def test_the_grid_of_any_data_is_taken(one, box):
    by_odc = odc.geo.xr.xr_zeros(box, "uint8")
    assert as_geobox(target(one, like=by_odc)) == box
    assert as_geobox(target(one, like=by_odc.to_dataset(name="a"))) == box
    left, top = box.affine @ (0.5, 0.5)
    x, y = left + box.affine.a * np.arange(40), top + box.affine.e * np.arange(30)
    by_rio = xr.DataArray(np.zeros((30, 40)), dims=("y", "x"), coords={"y": y, "x": x}).rio.write_crs(str(box.crs))
    grid = target(one, like=by_rio)
    assert grid.shape == (30, 40)
    np.testing.assert_allclose(grid.transform, tuple(box.affine)[:6], rtol=0, atol=1e-6 * box.affine.a)


def test_a_dataset_that_is_opened_like_another_has_its_coordinates(one, several):
    other = open_cube(several, ["red"], crs=UTM, resolution=20)
    found = open_cube(one, like=other)
    xr.testing.assert_equal(found.x, other.x)
    xr.testing.assert_equal(found.y, other.y)
    assert found.odc.geobox == other.odc.geobox


# What does not go together.

BOX = GRIDS[0]
DATA = odc.geo.xr.xr_zeros(BOX, "uint8")
TOGETHER = {
    "crs": UTM,
    "resolution": 10,
    "anchor": "edge",
    "bbox": BBOX,
    "geopolygon": POLYGON,
    "like": DATA,
    "geobox": BOX,
}


@pytest.mark.parametrize("whole", ["geobox", "like"])
@pytest.mark.parametrize("other", TOGETHER)
def test_a_whole_grid_goes_with_nothing_else(one, whole, other):
    if whole == other:
        return
    with pytest.raises(SelectionError) as caught:
        target(one, **{whole: TOGETHER[whole], other: TOGETHER[other]})
    assert f"{whole}=" in str(caught.value)
    assert f"{other}=" in str(caught.value)


def test_all_that_is_too_much_is_named(one):
    with pytest.raises(SelectionError, match=r"geobox= is a whole grid: leave out crs=, resolution=, bbox="):
        target(one, geobox=BOX, crs=UTM, resolution=10, bbox=BBOX)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bbox": BBOX, "geopolygon": POLYGON, "crs": UTM, "resolution": 10}, "bbox= or geopolygon=, not both"),
        ({"crs": LONLAT}, r"crs='EPSG:4326': no source is in it.*resolution="),
        ({"crs": LONLAT, "bbox": BBOX}, "resolution="),
        ({"crs": "EPSG:1"}, "crs='EPSG:1' is no coordinate reference system"),
        ({"crs": "nowhere", "resolution": 1}, "crs='nowhere'"),
        ({"resolution": 0}, "resolution=0"),
        ({"resolution": -10}, "resolution=-10"),
        ({"resolution": float("nan")}, "resolution=nan"),
        ({"resolution": float("inf")}, "resolution=inf|no grid|cannot be read"),
        ({"resolution": (0, 10)}, r"resolution=\(0, 10\)|no grid|cannot be read"),
        ({"resolution": (1, 2, 3)}, r"resolution=\(1, 2, 3\)|make no grid"),
        ({"resolution": "10 m"}, "resolution='10 m'|make no grid"),
        ({"resolution": 10, "anchor": "corner"}, "anchor='corner'|make no grid"),
        ({"crs": UTM, "resolution": 1e-7}, "cannot be read|no grid"),
        ({"resolution": 10, "bbox": (13, 48)}, "bbox=|make no grid"),
        ({"resolution": 10, "bbox": (13, 95, 14, 96)}, r"bbox=\(13, 95, 14, 96\)"),
        ({"resolution": 10, "bbox": (13, 49, 14, 48)}, r"bbox=\(13, 49, 14, 48\)"),
        ({"resolution": 10, "geopolygon": 5}, "geopolygon=int"),
        ({"resolution": 10, "geopolygon": "POINT (1 2)"}, "geopolygon=str"),
        ({"resolution": 10, "geopolygon": {"type": "Nothing"}}, "geopolygon=|make no grid"),
        (
            {"resolution": 10, "geopolygon": {"type": "FeatureCollection", "features": []}},
            "geopolygon=|no grid|no place",
        ),
        ({"resolution": 10, "geopolygon": shapely.Polygon()}, "geopolygon=|no grid|no place"),
        ({"geobox": "EPSG:4326"}, "geobox=str: it has no grid"),
        ({"geobox": DATA.values}, "geobox=ndarray: it has no grid"),
        ({"like": xr.Dataset({"a": ("t", [1, 2])})}, "like=Dataset: it has no grid"),
        ({"like": 3}, "like=int: it has no grid"),
        ({"geobox": GeoBox((3, 4), Affine(1, 0, 0, 0, -1, 0), None)}, "geobox=GeoBox: it has no grid with a CRS"),
        ({"geobox": GeoBox((0, 4), Affine(1, 0, 0, 0, -1, 0), UTM)}, "a grid of 0 x 4 pixels"),
        ({"geobox": GeoBox((3, 4), Affine(1, 1, 0, 1, 1, 0), UTM)}, "cannot be read"),
        ({"geobox": GeoBox((1 << 21, 1 << 21), Affine(1, 0, 0, 0, -1, 0), UTM)}, "cannot be read"),
    ],
)
def test_what_is_no_grid_is_refused_in_words(one, arguments, message):
    with pytest.raises(SelectionError, match=message):
        target(one, **arguments)


@pytest.mark.parametrize(
    "size", [np.int64(20), np.float32(20), np.float64(20), (np.int64(-20), np.int64(20)), resyx_(-20, 20)]
)
def test_a_size_may_be_any_number(one, size):
    assert target(one, resolution=size) == target(one, resolution=20)


@pytest.mark.parametrize("level", [1, 2])
def test_a_level_is_none_of_another_grid(one, level):
    with pytest.raises(SelectionError, match="level"):
        open_cube(one, resolution=20, level=level)


@pytest.mark.parametrize("more", [{"lon": (13, 14), "lat": (48, 49)}, {"bbox": BBOX}])
def test_a_place_besides_a_whole_grid_is_named_as_it_was_given(one, more):
    with pytest.raises(SelectionError, match=next(iter(more))):
        open_cube(one, geobox=BOX, **more)


def test_sources_on_several_grids_need_a_word_on_the_pixels(several):
    with pytest.raises(SelectionError, match=r"lie on 3 grids:(.|\n)*crs= and resolution=, like=, or geobox="):
        open_cube(several)
    assert open_cube(several, ["red"]).odc.geobox.resolution.x == 10
    assert open_cube(several, resolution=10).odc.geobox.crs == UTM


def test_lon_and_lat_are_a_box(one):
    west, south, east, north = BBOX
    by_box = open_cube(one, crs=UTM, resolution=20, bbox=BBOX)
    assert open_cube(one, crs=UTM, resolution=20, lon=(west, east), lat=(south, north)).odc.geobox == by_box.odc.geobox
