"""NDVI and its composites in plain numpy, for systems that only read: on threads, in strips that stay in the cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_STRIP_BYTES = 1 << 20
_pool = ThreadPoolExecutor(os.cpu_count())


def ndvi_mean(nir: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Return the mean over dates, float32 (rows, columns), of stored numbers (dates, rows, columns); 0 is no data."""

    def strip(rows: slice) -> np.ndarray:
        total = np.zeros(nir[0, rows].shape, "f4")
        count = np.zeros(total.shape, "f4")
        for date in range(len(nir)):
            value, valid = _ndvi(nir[date, rows], red[date, rows])
            np.add(total, value, out=total, where=valid)
            count += valid
        with np.errstate(invalid="ignore"):
            return total / count

    return _in_strips(strip, nir, 1)


def ndvi_median(nir: np.ndarray, red: np.ndarray) -> np.ndarray:
    """Return the median over dates, as `ndvi_mean` does."""
    return _in_strips(lambda rows: _median(*_ndvi(nir[:, rows], red[:, rows])), nir, len(nir))


def monthly(
    nir: np.ndarray, red: np.ndarray, scl: np.ndarray, clear: Sequence[int], months: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return the median over the clear dates of each month, float32 (months, rows, columns).

    Args:
        nir: Stored numbers, (dates, rows, columns).
        red: As `nir`.
        scl: Classes, as `nir`.
        clear: Classes that count.
        months: Positions of each month's dates.
    """
    table = np.zeros(256, bool)
    table[list(clear)] = True

    def strip(rows: slice) -> np.ndarray:
        found = []
        for dates in months:
            part = slice(dates[0], dates[-1] + 1)
            value, valid = _ndvi(nir[part, rows], red[part, rows])
            found.append(_median(value, valid & table[scl[part, rows]]))
        return np.stack(found)

    return _in_strips(strip, nir, len(nir))


def months_of(items: Sequence[dict]) -> list[list[int]]:
    """Return the positions of the Items of each calendar month."""
    found: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        found.setdefault(item["properties"]["datetime"][:7], []).append(position)
    return list(found.values())


def _ndvi(nir: np.ndarray, red: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = nir.astype("f4"), red.astype("f4")
    valid = (nir != 0) & (red != 0)
    total = first + second
    first -= second
    with np.errstate(invalid="ignore", divide="ignore"):
        first /= total
    return first, valid


def _median(value: np.ndarray, valid: np.ndarray) -> np.ndarray:
    value[~valid] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value.sort(axis=0)  # NaNs come last
        count = valid.sum(axis=0)[None]
        low = np.take_along_axis(value, np.maximum(count - 1, 0) // 2, axis=0)[0]
        high = np.take_along_axis(value, np.minimum(count // 2, len(value) - 1), axis=0)[0]
        # The larger middle of no values at all is NaN already, as is the smaller.
        return np.where(count[0] % 2 == 1, low, (low + high) / 2)


def _in_strips(strip: Callable[[slice], np.ndarray], stack: np.ndarray, dates: int) -> np.ndarray:
    rows, columns = stack.shape[1:]
    step = max(1, _STRIP_BYTES // (4 * columns * dates))
    parts = [slice(first, min(first + step, rows)) for first in range(0, rows, step)]
    return np.concatenate(list(_pool.map(strip, parts)), axis=-2)
