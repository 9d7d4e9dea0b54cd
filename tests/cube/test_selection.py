from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.transform import from_origin

from cube.archive.build import build
from cube.errors import SelectionError
from cube.grid import Grid, Window
from cube.selection import crop, select
from cube.spec import CubeSpec
from cube.testing.archive import unique_values, write_cog

STAMPS = ["20221231T235959", "20230101T000000", "20230630T103000", "20240229T103021", "20240301T103021"]


def options(transform=None, crs="EPSG:32633"):
    return {"driver": "GTiff", "blockxsize": 64, "blockysize": 64, "transform": transform, "crs": crs}


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dated")
    for stamp in STAMPS:
        for band in ("red", "nir"):
            transform = from_origin(500000, 5300000, 10, 10)
            write_cog(folder / f"{stamp}_{band}.tif", unique_values((100, 120), "uint8"), **options(transform))
    return build(folder, name="dated")


@pytest.fixture(scope="module")
def lonlat(tmp_path_factory):
    """One file of 0.25 degree pixels: 36 degrees from 10 E, 20 degrees from 50 N, with overviews."""
    path = tmp_path_factory.mktemp("lonlat") / "a.tif"
    transform = from_origin(10, 50, 0.25, 0.25)
    array = unique_values((80, 144), "uint16")
    write_cog(path, array, crs="EPSG:4326", transform=transform, blocksize=64, OVERVIEW_COUNT=2)
    return build(path, name="lonlat")


@pytest.fixture(scope="module")
def south_up(tmp_path_factory):
    path = tmp_path_factory.mktemp("south") / "a.tif"
    transform = from_origin(10, 30, 0.25, -0.25)
    write_cog(path, unique_values((80, 144), "uint16"), crs="EPSG:4326", driver="GTiff", transform=transform)
    return build(path, name="south")


def selected(manifest, level=0, **what):
    return select(manifest, CubeSpec(manifest=manifest.url, version=manifest.version, level=level), **what)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (None, range(5)),
        ("2022", [0]),
        ("2023", [1, 2]),
        ("2024-02", [3]),
        ("2024-02-29", [3]),
        ("2024-02-29T10:30", [3]),
        ("2024-02-29T10:30:21", [3]),
        ("2024-02-29T10:30:21Z", [3]),
        ("2022-12-31T23:59:59", [0]),
        (("2023", "2024-02"), [1, 2, 3]),
        (("2023-06-30", "2023-06-30"), [2]),
        (("2022-12-31", "2023-01-01"), [0, 1]),
        (["2022-12-31T23:59:59.000001", "2024"], [1, 2, 3, 4]),
        (("1900", "2100"), range(5)),
    ],
)
def test_dates_include_what_they_leave_out(dated, time, expected):
    found = selected(dated, time=time)
    assert found.times == tuple(expected)
    np.testing.assert_array_equal(found.stamps, dated.times[list(expected)])
    assert found.shape == (len(expected), 100, 120)
    assert found.dims == ("time", "y", "x")


@pytest.mark.parametrize("time", ["2021", "2023-01-02", ("2024", "2023"), "2024-02-29T10:30:22"])
def test_a_time_without_dates_names_those_that_are_there(dated, time):
    with pytest.raises(SelectionError, match="'dated' has no date then; its dates run from 2022-12-31 to 2024-03-01"):
        selected(dated, time=time)


@pytest.mark.parametrize(
    "time",
    ["", "now", "NaT", "2024-02-29T10:30:21+02:00", "soon", "2024-13", "2024-02-30", ("2024", None), (2023, 2024)],
)
def test_what_is_no_date_is_refused(dated, time):
    with pytest.raises(SelectionError, match="is not a date like 2024, 2024-06 or 2024-06-01T10:30:00 "):
        selected(dated, time=time)


@pytest.mark.parametrize(
    "time", [("2024",), (), ("2022", "2023", "2024"), np.datetime64("2024"), slice("2023", "2024"), 7]
)
def test_a_time_of_another_form_is_refused(dated, time):
    with pytest.raises(SelectionError, match=r"give a date as text .* or \(first, last\)"):
        selected(dated, time=time)


def test_a_cube_without_time_refuses_one(lonlat):
    with pytest.raises(SelectionError, match="time='2024' was asked for; 'lonlat' has no time"):
        selected(lonlat, time="2024")
    found = selected(lonlat)
    assert (found.times, found.stamps, found.dims, found.shape) == ((0,), None, ("y", "x"), (80, 144))


@pytest.mark.parametrize(
    ("bands", "expected"), [(None, ["nir", "red"]), ("red", ["red"]), (["red", "nir"], ["red", "nir"])]
)
def test_bands_come_in_the_order_asked(dated, bands, expected):
    assert [name for name, _ in selected(dated, bands=bands).bands] == expected


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ([], "give one name or a list of names"),
        ([3], "give one name or a list of names"),
        (["red", "red"], "a name is there twice"),
        (["red", "blue"], "band 'blue' was asked for; 'dated' has nir, red"),
        ("", "band '' was asked for; 'dated' has nir, red"),
    ],
)
def test_bands_that_are_none_are_refused(dated, bands, message):
    with pytest.raises(SelectionError, match=message):
        selected(dated, bands=bands)


@pytest.mark.parametrize("level", [-1, 3, 99])
def test_levels_that_are_none_are_refused(lonlat, level):
    with pytest.raises(SelectionError, match=f"level {level} was asked for; 'lonlat' has levels 0 to 2"):
        selected(lonlat, level=level)


@pytest.mark.parametrize(
    ("bbox", "window"),
    [
        ((10, 30, 46, 50), (0, 80, 0, 144)),
        ((-180, -90, 180, 90), (0, 80, 0, 144)),
        ((10.25, 49.5, 10.5, 49.75), (1, 2, 1, 2)),
        ((10.3, 49.55, 10.4, 49.6), (1, 2, 1, 2)),
        ((10.3, 49.6, 10.6, 49.9), (0, 2, 1, 3)),
        ((0, 49.9, 10.1, 60), (0, 1, 0, 1)),
    ],
)
def test_a_bbox_takes_every_pixel_that_it_touches_and_no_other(lonlat, bbox, window):
    top, bottom, left, right = window
    assert selected(lonlat, bbox=bbox).window == Window(top=top, bottom=bottom, left=left, right=right)


@pytest.fixture(scope="module")
def tenths(tmp_path_factory):
    """Pixels of a tenth of a degree, which no float is exactly."""
    path = tmp_path_factory.mktemp("tenths") / "a.tif"
    transform = from_origin(10, 50, 0.1, 0.1)
    return build(
        write_cog(path, unique_values((70, 80), "uint8"), crs="EPSG:4326", driver="GTiff", transform=transform)
    )


@pytest.mark.parametrize("first", range(40))
def test_a_bbox_along_the_edges_of_pixels_takes_no_pixel_beyond(tenths, first):
    west, north = round(10 + first / 10, 1), round(50 - first / 10, 1)
    bbox = (west, round(north - 0.3, 1), round(west + 0.3, 1), north)
    expected = Window(top=first, bottom=first + 3, left=first, right=first + 3)
    assert selected(tenths, bbox=bbox).window == expected


def test_a_bbox_on_an_overview_and_on_a_grid_that_runs_north(lonlat, south_up):
    assert selected(lonlat, level=1, bbox=(10.5, 49, 11, 49.5)).window == Window(top=1, bottom=2, left=1, right=2)
    found = selected(south_up, bbox=(10.25, 30.5, 10.75, 31.25))
    assert found.window == Window(top=2, bottom=5, left=1, right=3)
    assert found.grid.ys.tolist() == [30.625, 30.875, 31.125]


@given(st.data())
def test_a_bbox_holds_the_centres_between_its_edges(dated, data):
    """Any box, on a projected grid: pixels whose centre lies in it are selected, and the margin is thin."""
    grid = dated.grid
    to_lonlat = Transformer.from_crs(grid.crs, "OGC:CRS84", always_xy=True)
    rows = sorted(data.draw(st.lists(st.floats(0, grid.height), min_size=2, max_size=2, unique=True)))
    columns = sorted(data.draw(st.lists(st.floats(0, grid.width), min_size=2, max_size=2, unique=True)))
    a, _, c, _, e, f = grid.transform
    corners = [(c + a * column, f + e * row) for row in rows for column in columns]
    lon, lat = to_lonlat.transform(*zip(*corners, strict=True))
    if min(max(lon) - min(lon), max(lat) - min(lat)) < 1e-9:
        return
    window = selected(dated, bbox=(min(lon), min(lat), max(lon), max(lat))).window
    inside_rows = [row for row in range(grid.height) if rows[0] < row + 0.5 < rows[1]]
    inside_columns = [column for column in range(grid.width) if columns[0] < column + 0.5 < columns[1]]
    assert all(window.top <= row < window.bottom for row in inside_rows)
    assert all(window.left <= column < window.right for column in inside_columns)
    # Meridians lean by 0.01 here: 100 rows are at most two columns.
    assert window.bottom - window.top <= rows[1] - rows[0] + 4
    assert window.right - window.left <= columns[1] - columns[0] + 4


@pytest.mark.parametrize("bbox", [(60, 30, 70, 40), (10, -60, 20, -50), (46, 30, 47, 50), (9, 20, 46, 30)])
def test_a_bbox_outside_is_refused(lonlat, bbox):
    with pytest.raises(SelectionError, match=r"bbox=\(.*\) lies outside of the cube; `cube info` prints its bounds"):
        selected(lonlat, bbox=bbox)


def test_a_bbox_on_the_other_side_of_the_earth_is_refused(dated):
    with pytest.raises(SelectionError, match=r"bbox=\(-170, -80, -160, -70\)"):
        selected(dated, bbox=(-170, -80, -160, -70))


@pytest.mark.parametrize("bbox", [(12, 40, 11, 41), (11, 41, 12, 40), (11, 40, 11, 41), (11, 40, float("nan"), 41)])
def test_an_empty_bbox_is_refused(lonlat, bbox):
    with pytest.raises(SelectionError, match="west must lie below east and south below north"):
        selected(lonlat, bbox=bbox)


@pytest.mark.parametrize("bbox", [(1, 2, 3), "here", 7, (1, 2, 3, "x"), (1, 2, 3, None)])
def test_a_bbox_of_another_form_is_refused(lonlat, bbox):
    with pytest.raises(SelectionError, match="give four numbers, west, south, east, north"):
        selected(lonlat, bbox=bbox)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(0, 70), st.integers(1, 70))
def test_the_grid_of_a_window_has_its_coordinates(top, height, left, width):
    grid = Grid(crs="EPSG:32633", transform=(10.0, 0.0, 3.0, 0.0, -20.0, 7.0), width=150, height=110)
    part = crop(grid, Window(top=top, bottom=top + height, left=left, right=left + width))
    np.testing.assert_allclose(part.xs, grid.xs[left : left + width], rtol=1e-15)
    np.testing.assert_allclose(part.ys, grid.ys[top : top + height], rtol=1e-15)
