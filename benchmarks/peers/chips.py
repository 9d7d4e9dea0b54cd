"""Chips of one read a date, for systems that read windows: what holds all chips of the date, which are then cut out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from protocol import Workload


@dataclass(frozen=True)
class DateWindow:
    """What to read of one date."""

    date: int
    rows: slice
    columns: slice
    places: tuple[tuple[int, int, int], ...]
    """(number, first row, first column) of each chip."""


def date_windows(workload: Workload) -> list[DateWindow]:
    """Return what holds the chips of each date."""
    by_date: dict[int, list[tuple[int, int, int]]] = {}
    for number, (date, row, column) in enumerate(workload.chips):
        by_date.setdefault(date, []).append((number, row, column))
    windows = []
    for date, places in by_date.items():
        _, tops, lefts = zip(*places, strict=True)
        rows = slice(min(tops), max(tops) + workload.chip)
        columns = slice(min(lefts), max(lefts) + workload.chip)
        windows.append(DateWindow(date, rows, columns, tuple(places)))
    return windows


def cut(workload: Workload, windows: Sequence[DateWindow], pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the chips, views of what was read."""
    found: Mapping[int, np.ndarray] = {
        number: read[row - window.rows.start :, column - window.columns.start :][: workload.chip, : workload.chip]
        for window, read in zip(windows, pixels, strict=True)
        for number, row, column in window.places
    }
    return [found[number] for number in range(len(workload.chips))]
