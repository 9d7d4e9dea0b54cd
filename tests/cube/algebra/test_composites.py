"""Composites against numpy's own reductions without NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.algebra import composites
from cube.errors import SelectionError

# Reflectances and indices are of this size; where sums overflow, numpy's reductions differ from one another.
VALUES = st.one_of(st.just(np.nan), st.floats(-1e6, 1e6, allow_subnormal=False))
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=7)
STACKS = hnp.arrays("float64", SHAPES, elements=VALUES)
REFERENCES: dict[str, Callable[..., np.ndarray]] = {
    "median": np.nanmedian,
    "mean": np.nanmean,
    "max": np.nanmax,
    "min": np.nanmin,
}


def reference(name: str, stack: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, for pixels that are all NaN
        return REFERENCES[name](stack, axis=0)


@pytest.mark.parametrize("name", REFERENCES)
@given(stack=STACKS)
def test_a_composite_is_numpys(name: str, stack: np.ndarray) -> None:
    missing = np.isnan(stack)
    found = composites.find_composite(name)(np.where(missing, 7.0, stack), missing)  # what stands there means nothing
    np.testing.assert_allclose(found, reference(name, stack), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dates", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("missing", [0, 1, 2, 5])
def test_the_median_of_even_and_odd_counts_is_exact(dates: int, missing: int) -> None:
    stack = np.random.default_rng(dates).permuted(np.arange(1.0, dates * 6 + 1).reshape(dates, 6))
    stack[:missing] = np.nan
    np.testing.assert_array_equal(composites.median(stack.copy(), np.isnan(stack)), reference("median", stack))


@pytest.mark.parametrize("name", REFERENCES)
def test_where_no_date_is_clear_the_result_is_nan_and_nothing_warns(name: str) -> None:
    stack = np.full((3, 2, 2), np.nan)
    stack[1, 0, 0] = 7.0
    with np.errstate(all="raise"):
        found = composites.find_composite(name)(stack, np.isnan(stack))
    np.testing.assert_array_equal(found, [[7.0, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize("name", REFERENCES)
@given(stack=STACKS, data=st.data())
def test_periods_are_composited_each_for_itself(name: str, stack: np.ndarray, data: st.DataObject) -> None:
    dates = st.lists(st.integers(0, len(stack) - 1), max_size=4, unique=True)
    periods = data.draw(st.lists(dates, max_size=4))
    found = composites.composite_by_period(stack.copy(), np.isnan(stack), name, periods)
    assert found.shape == (len(periods), *stack.shape[1:])
    assert found.dtype == stack.dtype
    for period, values in zip(periods, found, strict=True):
        expected = reference(name, stack[period]) if period else np.full(stack.shape[1:], np.nan)
        np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-9)


def test_an_unknown_composite_is_refused_with_those_there_are() -> None:
    with pytest.raises(SelectionError, match="'mode' was asked for; there are median, mean, max, min"):
        composites.find_composite("mode")
    with pytest.raises(SelectionError, match="'mode'"):
        composites.composite_by_period(np.zeros((1, 1)), np.zeros((1, 1), bool), "mode", [[0]])
