"""What indexing leaves of the reads of a cube, as arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.engine.reads import Pick, Reads, Variable, compact, edges, narrow
from cube.grid import Window
from cube.spec import CubeSpec

SPEC = CubeSpec(manifest="/a.cube", version="1")
WHOLE = slice(None)


def make_reads(blocks=((3, 3, 1), (64, 64, 22), (64, 64, 64, 8)), times=None, dropped=(False, False, False)):
    lengths = [sum(each) for each in blocks]
    return Reads(
        spec=SPEC,
        variables=(Variable(name="red", band="red", dtype="uint16", decoding=None),),
        times=tuple(range(10, 10 + lengths[0])) if times is None else times,
        window=Window(top=5, bottom=5 + lengths[1], left=7, right=7 + lengths[2]),
        blocks=blocks,
        dropped=dropped,
    )


def test_a_range_keeps_the_edges_of_the_blocks():
    found, rest = narrow(make_reads(), [slice(2, 7), slice(60, 130), slice(64, 128)])
    assert found.times == (12, 13, 14, 15, 16)
    assert found.window == Window(top=65, bottom=135, left=71, right=135)
    assert found.blocks == ((1, 3, 1), (4, 64, 2), (64,))
    assert rest == (WHOLE, WHOLE, WHOLE)


def test_a_position_leaves_an_axis_out():
    found, rest = narrow(make_reads(), [-1, WHOLE, 70])
    assert (found.times, found.blocks) == ((16,), ((1,), (64, 64, 22), (1,)))
    assert (found.dropped, found.chunks) == ((True, False, True), ((64, 64, 22),))
    assert (found.window.left, found.window.right, rest) == (77, 78, (WHOLE,))
    again, rest = narrow(found, [slice(10, 20)])
    assert (again.times, again.window, rest) == ((16,), Window(top=15, bottom=25, left=77, right=78), (WHOLE,))


@pytest.mark.parametrize("key", [[6, 0, 6, 2], np.array([6, 0, 6, 2]), slice(6, None, -2), [True] * 4 + [False] * 3])
def test_dates_may_come_in_any_order(key):
    key = key if isinstance(key, slice) else np.asarray(key)
    found, rest = narrow(make_reads(), [key, WHOLE, WHOLE])
    assert found.times == tuple(np.arange(10, 17)[key].tolist())
    assert found.blocks[0] == (3, 1)
    assert rest == (WHOLE, WHOLE, WHOLE)


@pytest.mark.parametrize("key", [slice(20, 90, 7), slice(90, 20, -7), slice(63, None, -1), np.array([20, 90, 33])])
def test_what_skips_rows_is_taken_of_the_window_that_it_spans(key):
    found, rest = narrow(make_reads(), [WHOLE, key, WHOLE])
    rows = np.arange(150)[key]
    assert (found.window.top, found.window.bottom) == (5 + rows.min(), 5 + rows.max() + 1)
    np.testing.assert_array_equal(np.arange(5, 155)[found.window.top - 5 : found.window.bottom - 5][rest[1]], rows + 5)


@given(
    st.lists(st.integers(0, 30), max_size=40) | st.builds(range, *[st.integers(0, 50)] * 2, st.sampled_from([1, 3, -2]))
)
def test_dates_are_the_same_however_they_are_written(times):
    times = tuple(times)
    assert tuple(compact(times)) == times


def test_evenly_spaced_dates_are_a_range():
    for times in (range(10_000), range(5, 500, 7), range(9, 2, -1)):
        assert compact(tuple(times)) == times
    assert compact((3, 4, 6)) == (3, 4, 6)


def test_edges_and_parts():
    reads = make_reads()
    assert edges(reads)[0] == [0, 3, 6, 7]
    assert reads.part(edges(reads), (2, 1, 3)) == ((16,), (69, 133, 199, 207))
    assert reads.part(edges(reads), (0, 0, 0)) == (range(10, 13), (5, 69, 7, 71))


def test_values_are_small():
    import pickle

    many = make_reads(blocks=((10_000,), (64,), (64,)), times=tuple(range(10_000)))
    assert len(pickle.dumps(many.part(edges(many), (0, 0, 0)))) < 100
    assert len(pickle.dumps(Pick(band="red", dropped=(False, False, False), decoding=None))) < 150
