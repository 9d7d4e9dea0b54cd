"""A part of a cube's grid, cut at every level so that each source still lies on whole pixels of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cube.grid import Grid, Window
from cube.manifest.open import Manifest
from cube.selection import crop

_SAME = 1e-9
_ROUNDING_PX = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Cropped:
    """The levels of a part of a cube, from the one that becomes full resolution on."""

    windows: tuple[Window, ...]
    """On the grids of the whole cube's levels."""
    grids: tuple[Grid, ...]
    factors: tuple[tuple[int, int], ...]
    """(rows, columns) of the first level that a pixel of each spans, as a manifest counts."""
    scale: tuple[float, float]
    """(across, down) in full-resolution pixels of the whole cube of a pixel of the first level."""
    is_even: bool
    """Whether pixels of every level are whole multiples of those of the first."""


class _Axis(NamedTuple):
    """One axis of all levels."""

    spans: list[tuple[int, int]]
    factors: list[int]
    is_even: bool


def crop_levels(manifest: Manifest, window: Window, first: int) -> Cropped:
    """Return the part of a cube's levels around a window, a little larger where pixels of overviews demand it.

    Args:
        manifest: The cube.
        window: On the grid of the level `first`.
        first: The level that becomes full resolution; finer ones are left out.
    """
    levels = manifest.levels[first:]
    sizes = [_pixel(level) for level in levels]
    rows = _cut(
        (window.top, window.bottom),
        [level.height for level in levels],
        [down / sizes[0][1] for _, down in sizes],
    )
    columns = _cut(
        (window.left, window.right),
        [level.width for level in levels],
        [across / sizes[0][0] for across, _ in sizes],
    )
    windows = tuple(
        Window(top=top, bottom=bottom, left=left, right=right)
        for (top, bottom), (left, right) in zip(rows.spans, columns.spans, strict=True)
    )
    whole = _pixel(manifest.grid)
    return Cropped(
        windows=windows,
        grids=tuple(crop(level, part) for level, part in zip(levels, windows, strict=True)),
        factors=tuple(zip(rows.factors, columns.factors, strict=True)),
        scale=(sizes[0][0] / whole[0], sizes[0][1] / whole[1]),
        is_even=rows.is_even and columns.is_even,
    )


def _pixel(grid: Grid) -> tuple[float, float]:
    """Return the (width, height) of a pixel in the CRS."""
    a, b, _, d, e, _ = grid.transform
    return math.hypot(a, d), math.hypot(b, e)


def _cut(span: tuple[int, int], lengths: Sequence[int], ratios: Sequence[float]) -> _Axis:
    """Return the part of one axis at each level.

    A source that begins at pixel p of the first level begins at p // factor of another. That holds in the part as in
    the whole if the part begins at a multiple of all factors. Where all sources have one extent, overviews need not be
    whole multiples of it (1001 pixels have an overview of 501): then the factor is the nearest whole one, and the part
    begins early enough to hold the window at each level all the same.

    Args:
        span: Begin and end, in pixels of the first level.
        lengths: Of the axis, by level.
        ratios: Pixels of the first level in one of each level.
    """
    factors, slack, is_even = [], 1.0, True
    for length, ratio in zip(lengths, ratios, strict=True):
        nearest = max(1, round(ratio))
        if abs(ratio - nearest) < _SAME * ratio:
            factors.append(nearest)
            continue
        is_even = False
        # No source may end, by the factor, before its overview does.
        factors.append(nearest if -(-lengths[0] // nearest) >= length else max(1, lengths[0] // length))
        slack = min(slack, factors[-1] / ratio)
    step = math.lcm(*factors)
    begin = math.floor(span[0] * slack) // step * step
    end = min(lengths[0], -(-span[1] // step) * step)
    spans = [
        (begin // factor, min(length, math.ceil(end / ratio - _ROUNDING_PX)))
        for factor, length, ratio in zip(factors, lengths, ratios, strict=True)
    ]
    return _Axis(spans, factors, is_even)
