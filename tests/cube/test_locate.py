"""Where the pixels of one grid lie on another, against PROJ at each of them."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.errors import SelectionError
from cube.grid import Grid, Window
from cube.io.trace import trace
from cube.locate import locate
from cube.testing.archive import unique_values, write_cog

PARIS = "EPSG:4807"
"""Longitudes of Paris in grads: 400 are once around."""


def grid(crs, size, x, y, height, width, *, turned=0.0, upwards=False):
    """Return a grid by its upper left corner; `turned` is by how many degrees."""
    transform = Affine.translation(x, y) @ Affine.rotation(turned) @ Affine.scale(size, size if upwards else -size)
    return Grid(crs=crs, transform=tuple(transform)[:6], width=width, height=height)


UTM33 = grid("EPSG:32633", 10, 300000, 5400000, 600, 700)
WORLD = grid("EPSG:4326", 0.5, -180, 90, 360, 720)
WORLD_360 = grid("EPSG:4326", 0.5, 0, 90, 360, 720)
UTM60 = grid("EPSG:32660", 500, 600000, 2000000, 500, 800)
UTM1 = grid("EPSG:32601", 500, 0, 2000000, 500, 800)
SOUTH = grid("EPSG:3031", 9000, -2250000, 2250000, 500, 500)
NORTH = grid("EPSG:3413", 9000, -2250000, 2250000, 500, 500)

PAIRS = {
    # By name: source, target.
    "next zone": (UTM33, grid("EPSG:32632", 10, 740000, 5403000, 620, 720)),
    "next zone, half as large": (UTM33, grid("EPSG:32632", 5, 741000, 5401000, 620, 720)),
    "two zones on": (UTM33, grid("EPSG:32631", 30, 1180000, 5440000, 400, 400)),
    "UTM to degrees": (UTM33, grid("EPSG:4326", 1e-4, 12.27, 48.73, 600, 900)),
    "UTM to degrees upwards": (UTM33, grid("EPSG:4326", 1e-4, 12.27, 48.67, 600, 900, upwards=True)),
    "UTM to Mercator": (UTM33, grid("EPSG:3857", 14, 1366000, 6228000, 600, 700)),
    "UTM to LAEA": (UTM33, grid("EPSG:3035", 10, 4488000, 2848500, 620, 720)),
    "UTM to its own, turned": (UTM33, grid("EPSG:32633", 9, 300100, 5399000, 600, 600, turned=20)),
    "turned to another zone": (
        grid("EPSG:32633", 10, 300000, 5398000, 600, 600, turned=-35),
        grid("EPSG:32632", 11, 740000, 5403000, 600, 720, turned=15),
    ),
    "degrees to UTM": (grid("EPSG:4326", 1e-4, 12.2, 48.8, 1500, 1700), UTM33),
    "large pixels": (WORLD, grid("EPSG:3035", 20000, 2000000, 5500000, 250, 250)),
    "the world to Mercator": (WORLD, grid("EPSG:3857", 60000, -20040000, 20040000, 668, 668)),
    "the world to Mollweide": (WORLD, grid("ESRI:54009", 60000, -18100000, 9100000, 303, 603)),
    "another datum": (grid("EPSG:4267", 0.001, -100, 40, 500, 500), grid("EPSG:32614", 100, 413000, 4430000, 500, 500)),
    # Both sides of the antimeridian.
    "zone 60 to zone 1": (UTM60, UTM1),
    "zone 1 to zone 60": (UTM1, UTM60),
    "zone 60 to degrees beyond 180": (UTM60, grid("EPSG:4326", 0.01, 178, 18, 500, 700)),
    "zone 1 to degrees beyond 180": (UTM1, grid("EPSG:4326", 0.01, 175, 18, 500, 900)),
    "zone 1 to degrees beyond -180": (UTM1, grid("EPSG:4326", 0.01, -185, 18, 500, 900)),
    "degrees beyond 180 to zone 60": (grid("EPSG:4326", 0.01, 178, 18, 500, 700), UTM60),
    "degrees beyond 180 to zone 1": (grid("EPSG:4326", 0.01, 175, 18, 500, 900), UTM1),
    "the world to 170 to 190": (WORLD, grid("EPSG:4326", 0.1, 170.03, 40.01, 200, 200)),
    "170 to 190 to the world": (grid("EPSG:4326", 0.1, 170, 40, 200, 200), WORLD),
    "-190 to -170 to 0 to 360": (grid("EPSG:4326", 0.1, -190, 40, 200, 200), WORLD_360),
    "0 to 360 to -180 to 180": (WORLD_360, grid("EPSG:4326", 0.7, -180, 90, 257, 514)),
    "-180 to 180 to 0 to 360": (WORLD, grid("EPSG:4326", 0.7, 0, 90, 257, 514)),
    "the world to a zone on the antimeridian": (WORLD, UTM1),
    "0 to 360 to a zone at Greenwich": (WORLD_360, grid("EPSG:32630", 2000, 300000, 6000000, 300, 300)),
    "grads of Paris": (grid(PARIS, 0.5, -200, 100, 400, 800), grid("EPSG:32601", 2000, 0, 2000000, 300, 500)),
    # The poles.
    "south pole of the world": (WORLD, SOUTH),
    "south pole of 0 to 360": (WORLD_360, SOUTH),
    "south pole to degrees": (SOUTH, grid("EPSG:4326", 0.25, -180, -65, 100, 1440)),
    "north pole of the world": (WORLD, NORTH),
    "north pole to degrees": (NORTH, grid("EPSG:4326", 0.25, -190, 90, 100, 1480)),
    "north pole to a zone": (NORTH, grid("EPSG:32633", 5000, 0, 9300000, 400, 200)),
    "north pole to another projection of it": (NORTH, grid("EPSG:3995", 9000, -2250000, 2250000, 500, 500)),
}


def full(target):
    return Window(top=0, bottom=target.height, left=0, right=target.width)


def turn_of(crs):
    """Return how many units of a CRS in longitude and latitude are once around the Earth; None of another."""
    return None if not pyproj.CRS(crs).is_geographic else 400 if crs == PARIS else 360


SOME = np.s_[::3, ::3]
"""Of the pixels of a grid: as far from the points that are computed as any."""


def exact(source, target, window, *, corners=False):
    """Return the fractional columns and rows on the source of some pixels, by PROJ at each.

    Those of one meridian that has several names are given by the name that lies on the source, if one does.
    """
    shift, more = (0.0, 1) if corners else (0.5, 0)
    columns, rows = np.meshgrid(
        np.arange(window.left, window.right + more) + shift, np.arange(window.top, window.bottom + more) + shift
    )
    place = Affine(*target.transform) @ (columns[SOME], rows[SOME])
    if source.crs != target.crs:
        place = pyproj.Transformer.from_crs(target.crs, source.crs, always_xy=True).transform(*place)
    with np.errstate(invalid="ignore"):
        columns, rows = ~Affine(*source.transform) @ (np.asarray(place[0]), np.asarray(place[1]))
        turn = turn_of(source.crs)
        if turn is not None:
            around = turn / source.transform[0]
            # As near to the middle of the source as can be; half a turn off, on its own side.
            columns = (columns - source.width / 2 + around / 2) % around - around / 2 + source.width / 2
    return columns, rows


def on(source, columns, rows, margin=0.0):
    with np.errstate(invalid="ignore"):
        across = (columns >= margin) & (columns < source.width - margin)
        return across & (rows >= margin) & (rows < source.height - margin)


def apart(source, one, other):
    """Return how far positions are apart, in pixels; a meridian is one place by each of its names."""
    across, down = np.abs(one[0] - other[0]), np.abs(one[1] - other[1])
    turn = turn_of(source.crs)
    if turn is not None:
        across = np.minimum(across, np.abs(across - turn / abs(source.transform[0])))
    return np.maximum(across, down)


KNOWN = {}


def whole(name, *, corners):
    if (name, corners) not in KNOWN:
        source, target = PAIRS[name]
        KNOWN[name, corners] = locate(source, target, full(target)).positions(full(target), corners=corners)
    return KNOWN[name, corners]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_positions_are_those_that_proj_gives_each_pixel(name, corners):
    source, target = PAIRS[name]
    found = [each[SOME] for each in np.broadcast_arrays(*whole(name, corners=corners))]
    expected = exact(source, target, full(target), corners=corners)
    # What counts is what lies on the source, or beside it by no more than a kernel reaches.
    for near in (on(source, *found, margin=-3), on(source, *expected, margin=-3)):
        assert near.any()
        assert apart(source, found, expected)[near].max() < 1e-4
    assert on(source, *found, margin=3).sum() > 20


def draw_window(draw, target):
    top, left = draw(st.integers(0, target.height - 1)), draw(st.integers(0, target.width - 1))
    bottom, right = draw(st.integers(top + 1, target.height)), draw(st.integers(left + 1, target.width))
    return Window(top=top, bottom=min(bottom, top + 150), left=left, right=min(right, left + 150))


@settings(max_examples=60)
@given(name=st.sampled_from(list(PAIRS)), corners=st.booleans(), data=st.data())
def test_any_window_gives_a_pixel_the_same_numbers(name, corners, data):
    source, target = PAIRS[name]
    outer = draw_window(data.draw, target)
    inner = Window(
        top=data.draw(st.integers(outer.top, outer.bottom - 1)),
        bottom=outer.bottom,
        left=data.draw(st.integers(outer.left, outer.right - 1)),
        right=outer.right,
    )
    expected = np.broadcast_arrays(*whole(name, corners=corners))
    part = np.s_[inner.top : inner.bottom + corners, inner.left : inner.right + corners]
    for window in (outer, inner):
        found = np.broadcast_arrays(*locate(source, target, window).positions(inner, corners=corners))
        for ours, of_all in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, of_all[part])


@settings(max_examples=60)
@given(name=st.sampled_from(list(PAIRS)), data=st.data())
def test_edges_enclose_all_positions(name, data):
    source, target = PAIRS[name]
    window = draw_window(data.draw, target)
    points = locate(source, target, window)
    columns, rows = np.broadcast_arrays(*points.positions(window, corners=True))
    edges = points.edges()
    finite = np.isfinite(columns) & np.isfinite(rows)
    inside = np.zeros(finite.shape, bool)
    for top, bottom, left, right in edges:
        inside |= (rows >= top - 1) & (rows <= bottom + 1) & (columns >= left - 1) & (columns <= right + 1)
    assert inside[finite].all()


def test_a_window_across_the_seam_of_a_source_lies_at_both_of_its_ends():
    target = grid("EPSG:3857", 10000, 20037508 - 500000, 0, 20, 100)
    edges = locate(WORLD, target, full(target)).edges()
    assert len(edges) == 2
    (_, _, left, right), (_, _, first, last) = edges
    assert 0 <= left < right < 20
    assert 700 < first < last <= 720


@pytest.mark.parametrize("name", PAIRS)
def test_each_pixel_finds_what_lies_there_and_no_other_does(name):
    """By where the Earth is the same: pixels of the target on the source, and back."""
    source, target = PAIRS[name]
    columns, rows = np.broadcast_arrays(*whole(name, corners=False))
    found = on(source, columns, rows, margin=0.01)
    found[1::2], found[:, 1::2] = False, False
    assert found.any()
    xs, ys = Affine(*source.transform) @ (columns[found], rows[found])
    if source.crs != target.crs:
        xs, ys = pyproj.Transformer.from_crs(source.crs, target.crs, always_xy=True).transform(xs, ys)
    back = ~Affine(*target.transform) @ (xs, ys)
    at_row, at_column = np.nonzero(found)
    turn = turn_of(target.crs)
    across = back[0] - at_column - 0.5
    if turn is not None:
        around = turn / target.transform[0]
        across = (across + around / 2) % around - around / 2
    if turn is not None:  # a pole is one place by every longitude
        across = across[np.abs(ys) < 89.99]
    assert np.abs(across).max() < 0.01
    assert np.abs(back[1] - at_row - 0.5).max() < 0.01


@pytest.mark.parametrize("degrees", [1.0, 0.25, 0.1])
@pytest.mark.parametrize("first", [0, -180])
@pytest.mark.parametrize("source", ["edges at 180", "middles at 180"])
def test_a_grid_of_the_whole_earth_is_found_all_around(source, first, degrees):
    """Grids whose pixels' middles are at whole degrees, as those of climate data are, and such as begin at 180."""
    count = round(360 / degrees)
    west = -180 if source == "edges at 180" else -180 - degrees / 2
    world = grid("EPSG:4326", degrees, west, 80, 100, count)
    target = grid("EPSG:4326", degrees, first - degrees / 2, 80, 100, count)
    columns, rows = np.broadcast_arrays(*locate(world, target, full(target)).positions(full(target)))
    assert on(world, columns, rows).all()
    np.testing.assert_array_equal(np.sort(np.floor(columns[0])), np.arange(count))


@pytest.mark.parametrize("size", [1e-3, 1e-4, 1e-5, 1 / 3600, 1 / 1200])
def test_middles_on_the_edges_of_pixels_are_there_exactly(size):
    """Whatever the rounding of degrees: as nearest, each is of the pixel after it."""
    source = grid("EPSG:4326", size, -117, 49, 3000, 3000)
    target = grid("EPSG:4326", size, -117 + 100.5 * size, 49 - 200.5 * size, 2000, 2000)
    columns, rows = locate(source, target, full(target)).positions(full(target))
    np.testing.assert_array_equal(np.ravel(columns), np.arange(2000) + 101)
    np.testing.assert_array_equal(np.ravel(rows), np.arange(2000) + 201)


def test_what_lies_off_an_edge_is_not_taken_for_it():
    """GDAL takes no more than 1e-10 pixels for rounding; of a million pixels, two are as near to an edge as 1e-6."""
    source = grid("EPSG:32633", 10, 300000, 5400000, 100, 100)
    target = grid("EPSG:32633", 10, 300005 - 1e-6, 5399995 + 1e-6, 50, 50)
    columns, rows = locate(source, target, full(target)).positions(full(target))
    np.testing.assert_array_equal(np.floor(np.ravel(columns)), np.arange(50))
    np.testing.assert_array_equal(np.floor(np.ravel(rows)), np.arange(50))


def test_a_grid_that_goes_more_than_once_around_finds_each_meridian_again():
    target = grid("EPSG:4326", 1, -270, 80, 10, 540)
    columns, _ = locate(WORLD, target, full(target)).positions(full(target))
    np.testing.assert_array_equal(columns[0], (2 * (np.arange(540) + 0.5) - 180) % 720)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    pixels = unique_values((100, 100), "uint16")
    path = write_cog(
        folder / "a.tif",
        pixels,
        transform=from_origin(300000, 5400000, 10, 10),
        nodata=0,
        blocksize=64,
        overviews="NONE",
    )
    return build(path, to=folder / "a.cube")


OUTSIDE = {
    "the other side of the Earth": grid("EPSG:4326", 0.1, -170, -45, 100, 100),
    "a quarter around": grid("EPSG:4326", 0.5, 85, 60, 100, 100),
    "far zone": grid("EPSG:32655", 1000, 300000, 5400000, 100, 100),
    "the other hemisphere": grid("EPSG:3031", 10000, -500000, 500000, 100, 100),
    "beyond the poles": grid("EPSG:4326", 1, 0, 200, 100, 100),
    "beyond the edge of Mollweide": grid("ESRI:54009", 10000, 17900000, 9100000, 100, 100),
    "beyond any coordinate": grid("EPSG:32633", 1e12, 1e15, 1e15, 100, 100),
    "near, but beside": grid("EPSG:32632", 10, 700000, 5400000, 100, 100),
}


@pytest.mark.parametrize("how", ["nearest", "bilinear", "cubic", "average"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_is_found_nor_fetched_where_no_source_is(scene, name, how):
    with trace() as asked:
        found = open_cube(scene, geobox=OUTSIDE[name].geobox, resampling=how, mask_and_scale=False).band_1.values
    assert not found.any()
    assert asked.requests == 0


@pytest.mark.parametrize(
    "crs", ["EPSG:32633", "EPSG:32601", "EPSG:32760", "EPSG:3857", "EPSG:3035", "EPSG:3031", "EPSG:3413"]
)
def test_a_source_is_found_at_its_own_place_on_earth_alone(crs):
    """Projections have formulas, which may take other places for the source's."""
    middle = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    area = pyproj.CRS(crs).area_of_use
    lon, lat = (area.west + area.east) / 2, (area.south + area.north) / 2
    x, y = middle.transform(lon + 1, min(85, max(-85, lat + 1)))
    source = grid(crs, 10000, x - 250000, y + 250000, 50, 50)
    target = grid("EPSG:4326", 0.5, -180, 90, 360, 720)
    columns, rows = np.broadcast_arrays(*locate(source, target, full(target)).positions(full(target)))
    at_row, at_column = np.nonzero(on(source, columns, rows))
    lons, lats = target.centres(at_row, at_column)
    there = [np.full(len(lons), degrees) for degrees in middle.transform(x, y, direction="INVERSE")]
    away = pyproj.Geod(ellps="WGS84").inv(lons, lats, *there)[2]
    assert len(away) > 10
    assert away.max() < 800_000


def test_a_way_that_proj_does_not_know_is_an_error_that_names_both():
    datum = 'DATUM["Mars",ELLIPSOID["Mars",3396190,169.894447]]'
    axes = 'CS[ellipsoidal,2],AXIS["lat",north],AXIS["lon",east],ANGLEUNIT["degree",0.0174532925199433]'
    source = grid(f'GEOGCRS["Mars",{datum},{axes}]', 1, 0, 10, 10, 10)
    with pytest.raises(SelectionError, match=r'there is no way from EPSG:32633 to GEOGCRS\["Mars"'):
        locate(source, UTM33, full(UTM33))
