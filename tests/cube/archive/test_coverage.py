from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.archive.coverage import Coverage, Placed
from cube.errors import BuildError
from cube.grid import Grid, Levels

DAYS = [np.datetime64("2024-01-01", "us"), np.datetime64("2024-02-01", "us")]
HEIGHT, WIDTH = 9, 11


def grid_of(crs="EPSG:32633"):
    full = Grid(crs=crs, transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5400000.0), width=WIDTH, height=HEIGHT)
    return Levels(grids=(full,), factors=((1, 1),))


def placed(name, top=0, left=0, bottom=HEIGHT, right=WIDTH, *, gives=(("a", None),), grid=0, is_plain=False):
    return Placed(
        href=f"{name}.tif",
        is_plain=is_plain,
        grid=grid,
        row=top,
        column=left,
        height=bottom - top,
        width=right - left,
        gives=tuple(gives),
    )


def test_sources_side_by_side_leave_no_holes():
    halves = [placed("west", right=5), placed("east", left=5)]
    assert Coverage(halves, [grid_of()]).holes("a") == []
    assert Coverage(halves[:1], [grid_of()]).holes("a") == ["parts of the grid that no file covers"]


@given(
    st.lists(
        st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), st.integers(1, HEIGHT), st.integers(1, WIDTH)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_holes_are_pixels_that_no_source_covers_however_they_overlap(places, is_framed):
    """Against a look at every pixel; framed, so that what is left free is often one pixel or none."""
    boxes = [(top, left, min(HEIGHT, top + down), min(WIDTH, left + across)) for top, left, down, across in places]
    boxes += [(0, 0, HEIGHT - 1, WIDTH), (0, 0, HEIGHT, WIDTH - 1)] if is_framed else []
    painted = np.zeros((HEIGHT, WIDTH), bool)
    for top, left, bottom, right in boxes:
        painted[top:bottom, left:right] = True
    coverage = Coverage([placed(str(i), *box) for i, box in enumerate(boxes)], [grid_of()])
    assert (coverage.holes("a") == []) == painted.all()


def test_each_band_and_date_has_holes_of_its_own():
    both = [(band, day) for band in "ab" for day in DAYS]
    sources = [
        placed("1", right=5, gives=both),
        placed("2", left=5, gives=[("a", DAYS[0]), ("a", DAYS[1]), ("b", DAYS[1])]),
    ]
    coverage = Coverage(sources, [grid_of()])
    assert coverage.times == DAYS
    assert coverage.holes("a") == []
    assert coverage.holes("b") == ["2024-01-01T00:00:00"]


def test_no_grid_is_full_where_there_are_several():
    sources = [placed("1"), placed("2", grid=1)]
    assert Coverage(sources, [grid_of(), grid_of("EPSG:32634")]).holes("a") == ["parts of the grid that no file covers"]


def test_some_dated_and_some_not_are_refused():
    sources = [placed("1", gives=[("a", DAYS[0])]), placed("2", gives=[("a", None)])]
    with pytest.raises(BuildError, match=r"1 of 2 sources have a time and 2\.tif has none; build a cube of each"):
        Coverage(sources, [grid_of()])


TWO = (
    r"band 'a' comes from two files of the same place, 1\.tif and 2\.tif; leave one out, or tell bands and times apart"
)


def test_two_plain_files_of_the_very_same_place_are_refused():
    sources = [placed("1", is_plain=True), placed("2", is_plain=True)]
    with pytest.raises(BuildError, match=TWO):
        Coverage(sources, [grid_of()]).holes("a")
    dated = [replace(each, gives=(("a", DAYS[1]),)) for each in sources]
    with pytest.raises(BuildError, match=r"band 'a' at 2024-02-01T00:00:00 comes from two files of the same place"):
        Coverage(dated, [grid_of()]).holes("a")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"is_plain": False}, id="a catalogue's"),
        pytest.param({"grid": 1}, id="on another grid"),
        pytest.param({"row": 1}, id="a row lower"),
        pytest.param({"width": WIDTH - 1}, id="a column narrower"),
        pytest.param({"gives": (("b", DAYS[0]),)}, id="of another band"),
        pytest.param({"gives": (("a", DAYS[1]),)}, id="of another date"),
    ],
)
def test_what_differs_in_anything_may_overlap(other):
    one = placed("1", is_plain=True, gives=[("a", DAYS[0])])
    coverage = Coverage([one, replace(one, href="2.tif", **other)], [grid_of(), grid_of("EPSG:32634")])
    for band in "ab":
        coverage.holes(band)


def test_scenes_of_a_catalogue_may_lie_on_each_other():
    coverage = Coverage([placed(str(i)) for i in range(3)], [grid_of()])
    assert coverage.holes("a") == []


def test_a_file_that_is_named_twice_is_one_file():
    """Several Items may name one file."""
    one = placed("1", is_plain=True)
    assert Coverage([one, one], [grid_of()]).holes("a") == []
