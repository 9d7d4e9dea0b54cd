"""Where the pixels of one grid lie on another: exact to what a pixel is, and the same for every window."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyproj

from cube.errors import SelectionError
from cube.grid import Grid, Window

_STEP = 16
"""Pixels between the points that PROJ computes, at multiples of it whatever the window: windows agree on their seam."""
_ROUGH_PX = 1e-5
"""Where interpolation is farther off at the middle of a cell, every pixel of the cell is computed; ten times as far off
is the most that was seen anywhere in a cell."""
_NEAR_PX = 1e-4
"""Positions that are interpolated this near to an edge are computed, since they may lie on its other side."""
_SNAP_PX = 1e-8
"""Rounding; a pixel centre that lies on an edge of the other grid belongs to the pixel after it, as GDAL has it."""


_TORN = 0.2
"""Of the distance of two corners of a pixel (and of a source pixel): how far from midway its centre may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Where a window of a target grid lies on a source grid.

    PROJ takes 0.4 microseconds a point, more than all else that a pixel needs: it computes one point in 256, and cubic
    interpolation (Lagrange's, of four points an axis) the others. Where that is not good enough, PROJ computes all.
    """

    source: Grid
    target: Grid
    window: Window
    columns: np.ndarray | None
    """Fractional columns on the source of target corners at multiples of the step, float64, one cell more all round;
    None where both grids have one CRS and positions are affine."""
    rows: np.ndarray | None
    rough: np.ndarray | None
    """bool (cells, cells)."""

    @property
    def around(self) -> float:
        """Columns of the source from a meridian around the Earth to itself; infinite where x is no longitude."""
        return columns_around(self.source)

    def edges(self) -> list[tuple[float, float, float, float]]:
        """Return the first and last row and column (top, bottom, left, right) that the window lies on, fractional.

        None where no point of it lies on the source's CRS at all, and two where it lies across the meridian at which
        the source's columns end and begin: what is between them is the rest of the Earth.
        """
        if self.columns is None or self.rows is None:
            window = self.window
            columns, rows = self._affine(
                np.arange(window.left, window.right + 1.0)[None, :], np.arange(window.top, window.bottom + 1.0)[:, None]
            )
        else:
            columns, rows = self.columns, self.rows
            if self.rough is not None and self.rough.any():
                exact = self.positions(self.window, corners=True)
                columns, rows = np.append(columns, exact[0]), np.append(rows, exact[1])
        columns, rows = np.sort(columns[np.isfinite(columns)]), rows[np.isfinite(rows)]
        if not columns.size or not rows.size:
            return []
        gaps = np.diff(columns)
        widest = int(gaps.argmax()) if gaps.size else 0
        is_apart = bool(gaps.size) and gaps[widest] > self.around / 2
        sides = (columns[: widest + 1], columns[widest + 1 :]) if is_apart else (columns,)
        return [(float(rows.min()), float(rows.max()), float(side[0]), float(side[-1])) for side in sides]

    def positions(self, part: Window, *, corners: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the fractional columns and rows of pixels on the source; (0, 0) is the outer corner of its first.

        Args:
            part: Of the target grid, inside of the window.
            corners: Whether to give the pixels' corners, one more a row and column, and not their centres.

        Returns:
            Two float64 arrays that broadcast to (rows, columns); not finite where a pixel has no place in the source's
            CRS.
        """
        shift, more = (0.0, 1) if corners else (0.5, 0)
        ys, xs = np.arange(part.top, part.bottom + more) + shift, np.arange(part.left, part.right + more) + shift
        if self.columns is None or self.rows is None:
            columns, rows = self._affine(xs[None, :], ys[:, None])
            return _snapped(columns), _snapped(rows)
        down, of_y = _stencil(ys, self.window.top // _STEP)
        across, of_x = _stencil(xs, self.window.left // _STEP)
        columns, near_column = _spread_out(self.columns, (down, of_y), (across, of_x))
        rows, near_row = _spread_out(self.rows, (down, of_y), (across, of_x))
        wanted = near_column | near_row
        if self.rough is not None and self.rough.any():
            wanted |= self.rough[np.ix_(down, across)]
        at_y, at_x = np.nonzero(wanted)
        exact = _transform(self.source, self.target, xs[at_x], ys[at_y])
        columns[wanted], rows[wanted] = (_snapped(each) for each in exact)  # the others are not near an edge
        return columns, rows

    def torn(self, part: Window) -> np.ndarray | None:
        """Return which pixels lie where the source's CRS is torn, so that their corners do not say what is between.

        A pixel's centre lies about midway between two opposite corners, unless a pole, an edge of the world or a
        singularity of the projection is between them.

        Args:
            part: Of the target grid, inside of the window.

        Returns:
            bool (rows, columns); None where no pixel can.
        """
        if self.columns is None:
            return None
        all_corners, all_centres = self.positions(part, corners=True), self.positions(part)
        off, size = [], []
        for corners, centres, once in zip(all_corners, all_centres, (self.around, math.inf), strict=True):
            with np.errstate(invalid="ignore"):
                across = _turned(corners[1:, 1:] - corners[:-1, :-1], once)
                off.append(_turned(centres - corners[:-1, :-1], once) - across / 2)
                size.append(across)
        with np.errstate(invalid="ignore"):
            torn: np.ndarray = ~(np.hypot(*off) <= _TORN * np.hypot(*size) + _TORN)
        return torn

    def _affine(self, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        east, north = self.target.corners(ys, xs)
        return self.source.to_pixels(_beside(self.source, east), north)


def columns_around(grid: Grid) -> float:
    """Return how many columns of a grid go once around the Earth; infinite where x is no longitude."""
    degrees = _degrees_around(grid.crs)
    a, b, *_ = grid.transform
    return math.inf if degrees is None else degrees / math.hypot(a, b)


def locate(source: Grid, target: Grid, window: Window) -> Points:
    """Return where a window of a target grid lies on a source grid.

    Raises:
        SelectionError: PROJ knows no way from one CRS to the other.
    """
    if source.crs == target.crs:
        return Points(source=source, target=target, window=window, columns=None, rows=None, rough=None)
    ys = np.arange(window.top // _STEP - 1, -(-window.bottom // _STEP) + 3) * float(_STEP)
    xs = np.arange(window.left // _STEP - 1, -(-window.right // _STEP) + 3) * float(_STEP)
    columns, rows = _transform(source, target, *np.meshgrid(xs, ys))
    middle = _transform(source, target, *np.meshgrid(xs[1:-2] + _STEP / 2, ys[1:-2] + _STEP / 2))
    with np.errstate(invalid="ignore"):
        apart = [np.abs(_middles(known) - exact) for known, exact in zip((columns, rows), middle, strict=True)]
        rough = ~(np.maximum(*apart) < _ROUGH_PX)  # NaN and infinities are rough, too
    return Points(source=source, target=target, window=window, columns=columns, rows=rows, rough=rough)


def transform_points(one: str, other: str, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y in another CRS; infinite where points have no place in it."""
    if one == other:
        return xs, ys
    east, north = _transformer(one, other).transform(xs, ys, errcheck=False)
    return np.asarray(east), np.asarray(north)


def _stencil(at: np.ndarray, first: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the first of the four points that each position is interpolated from, and the weights of the four."""
    cells = np.floor_divide(at, _STEP)
    u = at / _STEP - cells
    index = (cells - first).astype("int64")
    weights = [
        -u * (u - 1) * (u - 2) / 6,
        (u + 1) * (u - 1) * (u - 2) / 2,
        -(u + 1) * u * (u - 2) / 2,
        (u + 1) * u * (u - 1) / 6,
    ]
    return index, weights


def _interpolate(
    known: np.ndarray, of_y: tuple[np.ndarray, list[np.ndarray]], of_x: tuple[np.ndarray, list[np.ndarray]]
) -> np.ndarray:
    (down, weights_y), (across, weights_x) = of_y, of_x
    lines = weights_x[0] * known[:, across]
    for k in (1, 2, 3):
        lines += weights_x[k] * known[:, across + k]
    found: np.ndarray = weights_y[0][:, None] * lines[down]
    for k in (1, 2, 3):
        found += weights_y[k][:, None] * lines[down + k]
    return found


def _spread_out(
    known: np.ndarray, of_y: tuple[np.ndarray, list[np.ndarray]], of_x: tuple[np.ndarray, list[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_interpolate` does, and which positions may lie on either side of a pixel's edge.

    Cell by cell, whose rows stand on the same four lines: what is worked on stays in a processor's cache.
    """
    (down, weights_y), (across, weights_x) = of_y, of_x
    first = int(down[0])
    known, down = known[first : int(down[-1]) + 4], down - first
    found = np.empty((len(down), len(across)))
    near = np.empty(found.shape, bool)
    edges = [0, *(np.flatnonzero(np.diff(down)) + 1).tolist(), len(down)]
    beside = np.empty((_STEP + 1, len(across)))  # of corners there is one more
    with np.errstate(invalid="ignore"):
        lines = weights_x[0] * known[:, across]
        for k in (1, 2, 3):
            lines += weights_x[k] * known[:, across + k]
        for start, stop in itertools.pairwise(edges):
            cell, block, other = int(down[start]), found[start:stop], beside[: stop - start]
            np.multiply(weights_y[0][start:stop, None], lines[cell], out=block)
            for k in (1, 2, 3):
                block += np.multiply(weights_y[k][start:stop, None], lines[cell + k], out=other)
            np.subtract(np.rint(block, out=other), block, out=other)
            np.less(np.abs(other, out=other), _NEAR_PX, out=near[start:stop])
    return found, near


def _middles(known: np.ndarray) -> np.ndarray:
    """Return what is interpolated at the middles of the cells."""
    count_y, count_x = known.shape[0] - 3, known.shape[1] - 3
    half = [np.full(count_y, weight) for weight in (-1 / 16, 9 / 16, 9 / 16, -1 / 16)]
    wide = [np.full(count_x, weight[0]) for weight in half]
    return _interpolate(known, (np.arange(count_y), half), (np.arange(count_x), wide))


def _transform(source: Grid, target: Grid, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the fractional columns and rows on the source of columns and rows of the target."""
    east, north = transform_points(target.crs, source.crs, *target.corners(ys, xs))
    with np.errstate(invalid="ignore"):
        return source.to_pixels(_beside(source, east), north)


def _turned(distance: np.ndarray, once: float) -> np.ndarray:
    """Return distances in columns the short way around the Earth."""
    return distance if math.isinf(once) else distance - once * np.rint(distance / once)


def _beside(source: Grid, east: np.ndarray) -> np.ndarray:
    """Return longitudes by the name of each meridian that is nearest to the source; other coordinates as they are."""
    around = _degrees_around(source.crs)
    if around is None:
        return east
    left, _, right, _ = source.bounds
    with np.errstate(invalid="ignore"):
        nearest: np.ndarray = east - around * np.floor((east - (left + right) / 2) / around + 0.5)
    return nearest


@lru_cache(maxsize=256)
def _transformer(one: str, other: str) -> pyproj.Transformer:
    try:
        return pyproj.Transformer.from_crs(one, other, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise SelectionError(f"there is no way from {one[:80]} to {other[:80]}: {error}") from None


@lru_cache(maxsize=256)
def _degrees_around(crs: str) -> float | None:
    """Return how much of a CRS's x is once around the Earth, of one in longitude and latitude; None of another."""
    found = pyproj.CRS.from_user_input(crs)
    if not found.is_geographic:
        return None
    return 2 * math.pi / found.axis_info[0].unit_conversion_factor


def _snapped(positions: np.ndarray) -> np.ndarray:
    whole = np.rint(positions)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(positions - whole) < _SNAP_PX, whole, positions)
