"""Composites: many dates to one value a pixel and period."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cube.errors import SelectionError


def median(stack: np.ndarray) -> np.ndarray:
    """Return the median over the first axis without the NaNs; NaN where there is nothing else.

    Args:
        stack: Float, (dates, ...).
    """
    ordered = np.sort(stack, axis=0)  # NaNs come last
    count = np.count_nonzero(~np.isnan(stack), axis=0)
    low = np.take_along_axis(ordered, (np.maximum(count, 1) - 1)[None] // 2, axis=0)[0]
    high = np.take_along_axis(ordered, np.minimum(count // 2, len(stack) - 1)[None], axis=0)[0]
    middle: np.ndarray = np.where(count % 2 == 1, low, (low + high) / 2)
    return np.where(count > 0, middle, np.nan)


def mean(stack: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis without the NaNs; NaN where there is nothing else."""
    count = np.count_nonzero(~np.isnan(stack), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, np.nansum(stack, axis=0) / count, np.nan)


def maximum(stack: np.ndarray) -> np.ndarray:
    """Return the largest value over the first axis without the NaNs; NaN where there is nothing else."""
    largest: np.ndarray = np.fmax.reduce(stack, axis=0)
    return largest


def minimum(stack: np.ndarray) -> np.ndarray:
    """Return the smallest value over the first axis without the NaNs; NaN where there is nothing else."""
    smallest: np.ndarray = np.fmin.reduce(stack, axis=0)
    return smallest


COMPOSITES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "median": median,
    "mean": mean,
    "max": maximum,
    "min": minimum,
}


def find_composite(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return the composite of a name.

    Raises:
        SelectionError: There is none.
    """
    found = COMPOSITES.get(name)
    if found is None:
        raise SelectionError(f"composite {name!r} was asked for; there are {', '.join(COMPOSITES)}")
    return found


def composite_by_period(stack: np.ndarray, name: str, periods: Sequence[Sequence[int]]) -> np.ndarray:
    """Return a composite of each period.

    Args:
        stack: Float, (dates, ...).
        name: One of `COMPOSITES`.
        periods: Positions of each period's dates on the first axis; NaN where a period has none.

    Returns:
        An array (periods, ...).
    """
    function = find_composite(name)
    result = np.full((len(periods), *stack.shape[1:]), np.nan, stack.dtype)
    for i, positions in enumerate(periods):
        if len(positions):
            result[i] = function(stack[list(positions)])
    return result
