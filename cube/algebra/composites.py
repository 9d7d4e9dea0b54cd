"""Composites: many dates to one value a pixel and period.

Each takes a stack, float (dates, ...) and contiguous along the last axis, and a bool array of its shape that says where
it has no value. What the stack holds there means nothing and is overwritten.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from cube.algebra.missing import count_present, set_missing, zero_missing
from cube.errors import SelectionError

_NETWORK_DATES = 16
"""Up to so many dates, compare-exchanges of whole planes order them faster than sorting each pixel's values."""


def median(stack: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return the median over the dates that have a value; NaN where none has."""
    count = count_present(missing)
    set_missing(stack, missing)
    filled = np.fmin(stack, stack.dtype.type(np.inf))  # infinities for NaN: they come last, as sort() puts NaN
    if len(stack) <= _NETWORK_DATES:
        _exchange(filled)
    else:
        # Each pixel's values side by side: sorting along the first axis would gather every one of them from afar.
        by_pixel = np.ascontiguousarray(np.moveaxis(filled, 0, -1))
        by_pixel.sort(axis=-1)
        filled = np.moveaxis(by_pixel, -1, 0)
    if isinstance(count, int):
        low, high = filled[(count - 1) // 2], filled[count // 2]
        found: np.ndarray = low.copy() if count % 2 else low / 2 + high / 2
        return found
    low = np.take_along_axis(filled, (np.maximum(count, 1) - 1)[None] // 2, axis=0)[0]
    high = np.take_along_axis(filled, np.minimum(count // 2, len(stack) - 1)[None], axis=0)[0]
    middle: np.ndarray = np.where(count % 2 == 1, low, low / 2 + high / 2)
    return np.where(count > 0, middle, stack.dtype.type(np.nan))


def _exchange(planes: np.ndarray) -> None:
    """Sort along the first axis in place: odd-even mergesort (Batcher 1968), for any number of planes."""
    n = len(planes)
    spare = np.empty(planes.shape[1:], planes.dtype)
    for i, j in _comparators(n):
        low, high = planes[i, ...], planes[j, ...]  # views, of one number also
        np.minimum(low, high, out=spare)
        np.maximum(low, high, out=high)
        low[...] = spare


@functools.cache
def _comparators(n: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs that odd-even mergesort compares, in order (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    pairs = []
    top = 1 << max(0, n - 1).bit_length() - 1 if n > 1 else 0
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return tuple(pairs)


def mean(stack: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return the mean over the dates that have a value, summed in float64; NaN where none has."""
    count = count_present(missing)
    if not isinstance(count, int):
        zero_missing(stack, missing)
    total: np.ndarray = np.add.reduce(stack, axis=0, dtype="float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        total /= count
    return total.astype(stack.dtype, copy=False)


def maximum(stack: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return the largest value over the dates that have one; NaN where none has."""
    set_missing(stack, missing)
    largest: np.ndarray = np.fmax.reduce(stack, axis=0)
    return largest


def minimum(stack: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return the smallest value over the dates that have one; NaN where none has."""
    set_missing(stack, missing)
    smallest: np.ndarray = np.fmin.reduce(stack, axis=0)
    return smallest


COMPOSITES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "median": median,
    "mean": mean,
    "max": maximum,
    "min": minimum,
}


def find_composite(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the composite of a name.

    Raises:
        SelectionError: There is none.
    """
    found = COMPOSITES.get(name)
    if found is None:
        raise SelectionError(f"composite {name!r} was asked for; there are {', '.join(COMPOSITES)}")
    return found


def composite_by_period(
    stack: np.ndarray, missing: np.ndarray, name: str, periods: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return a composite of each period.

    Args:
        stack: Float, (dates, ...).
        missing: Where it has no value.
        name: One of `COMPOSITES`.
        periods: Positions of each period's dates on the first axis; NaN where a period has none.

    Returns:
        An array (periods, ...).
    """
    function = find_composite(name)
    result = np.full((len(periods), *stack.shape[1:]), np.nan, stack.dtype)
    for i, positions in enumerate(periods):
        if len(positions):
            first, last = positions[0], positions[-1] + 1
            in_a_row = list(positions) == list(range(first, last))
            dates = slice(first, last) if in_a_row else list(positions)  # a slice needs no copy
            result[i] = function(stack[dates], missing[dates])
    return result
