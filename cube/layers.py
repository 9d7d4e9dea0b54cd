"""A window of a cube to windows of the grids that its sources lie on: which level of each, and where its pixels go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cube.grid import Grid, Levels, Window, difference
from cube.locate import Points, columns_around, locate
from cube.manifest.open import Manifest
from cube.warp import REACH

_WHOLE = 1e-3
_SAME_SCALE = 1.001
"""An overview of pixels this much larger than those that are asked for still is as fine as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What is read of the sources on one grid."""

    grid: int
    """Position among the manifest's grids."""
    level: int
    window: Window
    """On that level of that grid; may reach beyond it where its pixels are pasted."""
    points: Points | None
    """Where the cube's pixels lie on the level's grid; None where they are the same pixels, and `window` the window."""


def plan_layers(manifest: Manifest, level: int, bands: Iterable[str], window: Window) -> list[Layer]:
    """Return what to read for a window of a cube, a layer a grid of its sources that it touches.

    Args:
        manifest: The cube, as `open_spec` gives it.
        level: Of the cube.
        bands: Names of bands.
        window: On the cube's grid.
    """
    on = manifest.on
    if on.grid is None:
        return [] if on.lattice is None else [Layer(grid=on.lattice, level=level, window=window, points=None)]
    target, reach = manifest.grid_at(level), max(REACH[on.resampling_of(band)] for band in bands)
    return [layer for i, levels in enumerate(manifest.grids) for layer in _plan(i, levels, target, window, reach)]


def spread(manifest: Manifest) -> float:
    """Return how many pixels of its sources are read for a pixel of a cube, where overviews do not fit: at least 1."""
    target = manifest.on.grid
    if target is None:
        return 1.0
    ratios = []
    for levels in manifest.grids:
        scale = _scale(levels.full, target)
        ratios.append(scale / max(levels.factors[choose_level(levels, target)]))
    return max(1.0, *(ratio * ratio for ratio in ratios))


def _plan(number: int, levels: Levels, target: Grid, window: Window, reach: int) -> Iterator[Layer]:
    """Yield what is read of one grid: nothing, a window of it, or two where the cube's window lies across its seam."""
    level = choose_level(levels, target)
    own = levels.grids[level]
    if difference(own, target) is None:
        for part in _pasted(own, target, window):
            yield Layer(grid=number, level=level, window=part, points=None)
        return
    points = locate(own, target, window)
    for edges in points.edges():
        # A pixel more than the kernel: between the points that were computed the window's edge may bulge.
        top, left = (max(0, math.floor(edges[i]) - reach - 1) for i in (0, 2))
        bottom = min(own.height, math.ceil(edges[1]) + reach + 1)
        right = min(own.width, math.ceil(edges[3]) + reach + 1)
        if top < bottom and left < right:
            part = Window(top=top, bottom=bottom, left=left, right=right)
            yield Layer(grid=number, level=level, window=part, points=points)


def _pasted(own: Grid, target: Grid, window: Window) -> Iterator[Window]:
    """Yield where a window lies on a grid of the same lattice; once more for each turn around the Earth."""
    (column,), (row,) = own.to_pixels(np.array([target.transform[2]]), np.array([target.transform[5]]))
    down, across, once = round(float(row)), round(float(column)), columns_around(own)
    # A grid in degrees has as many pixels around the Earth as it has: where that is no whole number, no turn is pasted.
    turns = (-1, 0, 1) if math.isfinite(once) and abs(once - round(once)) < _WHOLE else (0,)
    for turn in turns:
        left = window.left + across + (turn * round(once) if turn else 0)
        part = Window(
            top=window.top + down, bottom=window.bottom + down, left=left, right=left + window.right - window.left
        )
        if part.top < own.height and part.bottom > 0 and part.left < own.width and part.right > 0:
            yield part


@lru_cache(maxsize=1024)
def choose_level(levels: Levels, target: Grid) -> int:
    """Return the coarsest level that is as fine as a target grid is at the middle of the sources.

    One for the whole cube: were it chosen by window, neighbours would not agree.
    """
    scale = _scale(levels.full, target)
    fitting = [i for i, factors in enumerate(levels.factors) if max(factors) <= scale * _SAME_SCALE or i == 0]
    return max(fitting, key=lambda i: max(levels.factors[i]))


@lru_cache(maxsize=1024)
def _scale(own: Grid, target: Grid) -> float:
    """Return how many pixels of a grid, at its middle, one of a target grid spans along its shorter axis."""
    middle = Window(top=own.height // 2, bottom=own.height // 2 + 1, left=own.width // 2, right=own.width // 2 + 1)
    columns, rows = locate(target, own, middle).positions(middle)
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        return 1.0
    row, column = math.floor(float(np.ravel(rows)[0])), math.floor(float(np.ravel(columns)[0]))
    there = Window(top=row, bottom=row + 1, left=column, right=column + 1)
    xs, ys = np.broadcast_arrays(*locate(own, target, there).positions(there, corners=True))
    across = math.hypot(float(xs[0, 1] - xs[0, 0]), float(ys[0, 1] - ys[0, 0]))
    down = math.hypot(float(xs[1, 0] - xs[0, 0]), float(ys[1, 0] - ys[0, 0]))
    return min(across, down) if math.isfinite(across + down) else 1.0
