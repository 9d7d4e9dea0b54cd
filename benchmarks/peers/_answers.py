"""What peers that only read make of their pixels: the same for all, so that what differs is how they read.

Composites are their own, of `expressions`, where they give their users xarray objects, and `arithmetic`'s else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import arithmetic
import numpy as np
from protocol import Archive, Workload

Window = tuple[int, int, int, int]
Read = Callable[[Sequence[str], Sequence[int], Window], Sequence[np.ndarray]]
"""(bands, positions of dates, window) -> an array (dates, rows, columns) of stored numbers a band."""
Compose = Callable[[Workload, Window], np.ndarray]
"""(workload, window) -> the composite that the workload asks for."""


def answer(
    workload: Workload, archive: Archive, read: Read, compose: Compose | None = None
) -> np.ndarray | Sequence[np.ndarray]:
    """Return the answer to any workload but "scan": one call of `read`, then arithmetic, or of `compose` instead."""
    if workload.kind == "open":
        return np.array([len(workload.bands), len(archive.items), *archive.shape])
    dates, window = range(len(archive.items)), workload.window or (0, archive.shape[0], 0, archive.shape[1])
    if workload.kind == "stack":
        return read(workload.bands, dates, window)
    if workload.kind == "chips":
        return _chips(workload, read)
    if compose is not None:
        return compose(workload, window)
    if workload.kind == "monthly":
        nir, red, scl = read(("nir", "red", "scl"), dates, window)
        return arithmetic.monthly(nir, red, scl, workload.clear, arithmetic.months_of(archive.items))
    composite = {"ndvi_mean": arithmetic.ndvi_mean, "ndvi_median": arithmetic.ndvi_median}[workload.kind]
    return composite(*read(("nir", "red"), dates, window))


def hrefs(archive: Archive, bands: Iterable[str], dates: Iterable[int] | None = None) -> list[str]:
    """Return the URLs of files, by date and then by band."""
    bands = list(bands)
    chosen = range(len(archive.items)) if dates is None else dates
    return [archive.items[date]["assets"][band]["href"] for date in chosen for band in bands]


def stored_type(archive: Archive, band: str) -> str:
    """Return the data type of a band's files."""
    return "uint8" if band == "scl" else archive.dtype


def _chips(workload: Workload, read: Read) -> np.ndarray:
    """Cut the chips out of one read of the window and dates that hold them all: one call, and no tile twice."""
    dates, rows, columns = np.array(workload.chips).T
    wanted, place = np.unique(dates, return_inverse=True)
    top, left, size = int(rows.min()), int(columns.min()), workload.chip
    window = (top, int(rows.max()) + size, left, int(columns.max()) + size)
    (pixels,) = read(workload.bands[:1], [int(date) for date in wanted], window)
    out = np.empty((len(dates), size, size), pixels.dtype)
    for chip, date, row, column in zip(out, place, rows - top, columns - left, strict=True):
        chip[:] = pixels[date, row : row + size, column : column + size]
    return out
