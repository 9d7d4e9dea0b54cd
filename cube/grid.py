"""Grids: CRS + affine + shape, windows on them, and the one grid that several sources share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cube.errors import BuildError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

_LATTICE_TOLERANCE_PX = 0.01
"""Transforms are written as decimal text or summed floats; a hundredth of a pixel is rounding, more is another grid."""
_PHASES = 1024
"""Lattices begin at a whole pixel from zero, or at a half or another simple part of one."""
_ROUNDING_PX = 1e-9

type Affine6 = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """CRS + affine + shape; coordinates are those of pixel centres."""

    crs: str
    """"EPSG:32633", or WKT2 where there is no code."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f): x = a*column + b*row + c, y = d*column + e*row + f, of a pixel's upper left corner."""
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def is_rotated(self) -> bool:
        """Whether rows and columns do not run along the axes of the CRS, so that x and y depend on both."""
        return bool(self.transform[1] or self.transform[3])

    @property
    def xs(self) -> np.ndarray:
        """The x of the pixel centres, float64, (width,); of a grid that is not rotated."""
        a, _, c, *_ = self.transform
        return _centres(c, a, self.width)

    @property
    def ys(self) -> np.ndarray:
        """The y of the pixel centres, float64, (height,); of a grid that is not rotated."""
        *_, e, f = self.transform
        return _centres(f, e, self.height)

    def centres(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of the pixel centres at rows and columns, which broadcast; float64."""
        a, b, c, d, e, f = self.transform
        down, across = rows + 0.5, columns + 0.5
        return c + a * across + b * down, f + d * across + e * down

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of the outer corners, in the CRS."""
        a, b, c, d, e, f = self.transform
        xs = [c + a * column + b * row for column in (0, self.width) for row in (0, self.height)]
        ys = [f + d * column + e * row for column in (0, self.width) for row in (0, self.height)]
        return min(xs), min(ys), max(xs), max(ys)

    def to_pixels(self, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the fractional columns and rows of points in the CRS; (0, 0) is the outer corner of the first."""
        return _solve(self.transform, xs - self.transform[2], ys - self.transform[5])

    @property
    def geobox(self) -> GeoBox:
        """The same grid as odc-geo's value."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        return GeoBox(self.shape, Affine(*self.transform), self.crs)

    def to_json(self) -> dict[str, Any]:
        """Return the grid as JSON values."""
        return {"crs": self.crs, "transform": list(self.transform), "width": self.width, "height": self.height}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Grid:
        """Return the grid that `to_json` wrote."""
        a, b, c, d, e, f = (float(value) for value in data["transform"])
        return cls(crs=data["crs"], transform=(a, b, c, d, e, f), width=data["width"], height=data["height"])


def _centres(origin: float, step: float, count: int) -> np.ndarray:
    """Return the pixel centres along an axis: the same numbers for all grids of a lattice, wherever they begin.

    xarray joins coordinates by equality, and `origin + step * i` of two origins differs in the last bit: in degrees,
    a third of the columns that two cubes share would be lost.
    """
    start = origin / step
    nearest = round(start * _PHASES) / _PHASES
    if abs(start - nearest) > _ROUNDING_PX + 1e-15 * abs(start):
        return origin + step * (np.arange(count) + 0.5)
    return step * (np.arange(count) + (nearest + 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A pixel rectangle on a grid: rows top:bottom, columns left:right."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where one source lies, by its own header: what `common_grid` needs of it."""

    href: str
    crs: str
    transform: Affine6
    shapes: tuple[tuple[int, int], ...]
    """(height, width) of each level, full resolution first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonGrid:
    """The grid of several sources on one pixel lattice, and where each of them lies on it."""

    levels: tuple[Grid, ...]
    """Full resolution first, then each overview that all sources have and that fits together."""
    factors: tuple[tuple[int, int], ...]
    """(rows, columns) of full resolution that a pixel of the level spans where sources lie side by side."""
    rows: np.ndarray
    """Row of each source's upper edge at full resolution, int64 (sources,)."""
    columns: np.ndarray
    """Column of each source's left edge at full resolution, int64 (sources,)."""


def common_grid(extents: Sequence[Extent]) -> CommonGrid:
    """Return the one grid of all sources.

    Raises:
        BuildError: They differ in CRS, pixel size or lattice; the message names two of them and what differs.
    """
    first = extents[0]
    for other in extents[1:]:
        _require_same_lattice(first, other)
    a, b, c, d, e, f = first.transform
    origins = np.array([(each.transform[2] - c, each.transform[5] - f) for each in extents])
    columns, rows = (np.rint(each).astype("int64") for each in _solve(first.transform, origins[:, 0], origins[:, 1]))
    left, top = int(columns.min()), int(rows.min())
    heights = np.array([each.shapes[0][0] for each in extents], "int64")
    widths = np.array([each.shapes[0][1] for each in extents], "int64")
    full = Grid(
        crs=first.crs,
        transform=(a, b, c + left * a + top * b, d, e, f + left * d + top * e),
        width=int((columns + widths).max()) - left,
        height=int((rows + heights).max()) - top,
    )
    rows -= top
    columns -= left
    levels, factors = [full], [(1, 1)]
    for level in range(1, min(len(each.shapes) for each in extents)):
        found = _level(full, [each.shapes for each in extents], rows, columns, level)
        if found is None:
            break
        levels.append(found[0])
        factors.append(found[1])
    return CommonGrid(levels=tuple(levels), factors=tuple(factors), rows=rows, columns=columns)


def _require_same_lattice(first: Extent, other: Extent) -> None:
    hint = "cubes over several grids are not built yet; build one cube a grid, or choose sources with `bands`"
    pair = f"{first.href} and {other.href}"
    if other.crs != first.crs:
        raise BuildError(f"{pair} differ in CRS: {_brief(first.crs)} and {_brief(other.crs)}; {hint}")
    height, width = other.shapes[0]
    # How far the far corners come to lie apart, were both grids to begin at one point.
    steps = np.array(other.transform) - np.array(first.transform)
    across, down = _solve(
        first.transform,
        np.array([steps[0] * width, steps[1] * height]),
        np.array([steps[3] * width, steps[4] * height]),
    )
    if max(np.abs(across).max(), np.abs(down).max()) > _LATTICE_TOLERANCE_PX:
        raise BuildError(f"{pair} differ in pixel size: {_step(first.transform)} and {_step(other.transform)}; {hint}")
    (dx,), (dy,) = _solve(
        first.transform,
        np.array([other.transform[2] - first.transform[2]]),
        np.array([other.transform[5] - first.transform[5]]),
    )
    if max(abs(dx - round(dx)), abs(dy - round(dy))) > _LATTICE_TOLERANCE_PX:
        raise BuildError(f"{pair} lie on different pixel lattices, {dx:z.3f} columns and {dy:z.3f} rows apart; {hint}")


def _solve(transform: Affine6, dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (columns, rows) that span a distance in the CRS."""
    a, b, _, d, e, _ = transform
    if not (b or d):
        return dx / a, dy / e
    determinant = a * e - b * d
    return (e * dx - b * dy) / determinant, (a * dy - d * dx) / determinant


def _step(transform: Affine6) -> str:
    a, b, _, d, e, _ = transform
    rotated = f" (rotated: {b:.12g}, {d:.12g})" if b or d else ""
    return f"{a:.12g} x {e:.12g}{rotated}"


def _brief(crs: str) -> str:
    return crs if len(crs) <= 40 else crs.split('"')[1] if '"' in crs else crs[:40]


def _level(
    full: Grid, shapes: Sequence[tuple[tuple[int, int], ...]], rows: np.ndarray, columns: np.ndarray, level: int
) -> tuple[Grid, tuple[int, int]] | None:
    """Return the grid of one overview level, or None where the sources' overviews do not fit together."""
    (height, width), (level_height, level_width) = shapes[0][0], shapes[0][level]
    a, b, c, d, e, f = full.transform
    if (height, width) == full.shape and all(
        each[0] == shapes[0][0] and each[level] == shapes[0][level] for each in shapes
    ):
        # GDAL's rule for an overview of one image: the extent stays, whatever the ratio.
        x, y = width / level_width, height / level_height
        transform = (a * x, b * y, c, d * x, e * y, f)
        grid = Grid(crs=full.crs, transform=transform, width=level_width, height=level_height)
        # Rounded down: a pixel of the level spans at least this much, so that a selection by it leaves nothing out.
        return grid, (height // level_height, width // level_width)
    by_rows, by_columns = round(height / level_height), round(width / level_width)
    for each, row, column in zip(shapes, rows, columns, strict=True):
        fits = _halves(each[0][0], each[level][0], by_rows, int(row), full.height) and _halves(
            each[0][1], each[level][1], by_columns, int(column), full.width
        )
        if not fits:
            return None
    grid = Grid(
        crs=full.crs,
        transform=(a * by_columns, b * by_rows, c, d * by_columns, e * by_rows, f),
        width=-(-full.width // by_columns),
        height=-(-full.height // by_rows),
    )
    return grid, (by_rows, by_columns)


def _halves(size: int, level_size: int, factor: int, start: int, whole: int) -> bool:
    """Whether a source starts and ends on a pixel edge of the level (or ends at the edge of the grid)."""
    ends = size % factor == 0 or start + size == whole
    return start % factor == 0 and ends and level_size == -(-size // factor)
