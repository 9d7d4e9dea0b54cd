"""Grids: CRS + affine + shape, windows on them, and the grids that sources share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
        return np.broadcast_arrays(*self.corners(rows + 0.5, columns + 0.5))  # type: ignore[return-value]

    def corners(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y of fractional rows and columns, (0, 0) the outer corner of the first pixel; float64.

        Of a grid that is not rotated, x has the shape of the columns and y that of the rows.
        """
        a, b, c, d, e, f = self.transform
        return a * columns + (b * rows if b else 0.0) + c, (d * columns if d else 0.0) + e * rows + f

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, bottom, right, top) of the outer corners, in the CRS."""
        a, b, c, d, e, f = self.transform
        xs = [c + a * column + b * row for column in (0, self.width) for row in (0, self.height)]
        ys = [f + d * column + e * row for column in (0, self.width) for row in (0, self.height)]
        return min(xs), min(ys), max(xs), max(ys)

    def coarser(self, factor: int) -> Grid:
        """Return the grid from the same corner with pixels that are a whole number of times as long and as high."""
        a, b, c, d, e, f = self.transform
        transform = (a * factor, b * factor, c, d * factor, e * factor, f)
        width, height = -(-self.width // factor), -(-self.height // factor)
        return Grid(crs=self.crs, transform=transform, width=width, height=height)

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
    """Where one source lies, by its own header: what `lay_out` needs of it."""

    href: str
    crs: str
    transform: Affine6
    shapes: tuple[tuple[int, int], ...]
    """(height, width) of each level, full resolution first."""
    is_one: bool = True
    """Whether it is one image, and no grid of several whose coarse pixels reach over its edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A grid and its overviews."""

    grids: tuple[Grid, ...]
    """Full resolution first, then each overview that all sources on the grid have and that fits together."""
    factors: tuple[tuple[int, int], ...]
    """(rows, columns) of full resolution that a pixel of the level spans where sources lie side by side."""

    @property
    def full(self) -> Grid:
        """The grid at full resolution."""
        return self.grids[0]

    @property
    def extent(self) -> Extent:
        """The grid as a source that others lie beside."""
        full, bounds = self.full, np.array([grid.bounds for grid in self.grids])
        a, b, *_ = full.transform
        is_one = bool((abs(bounds - bounds[0]) <= _LATTICE_TOLERANCE_PX * (abs(a) + abs(b))).all())
        shapes = tuple(grid.shape for grid in self.grids)
        return Extent(href="", crs=full.crs, transform=full.transform, shapes=shapes, is_one=is_one)

    def to_json(self) -> dict[str, Any]:
        """Return the levels as JSON values."""
        return {"levels": [each.to_json() for each in self.grids], "factors": [list(each) for each in self.factors]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Levels:
        """Return the levels that `to_json` wrote."""
        grids = tuple(Grid.from_json(each) for each in data["levels"])
        return cls(grids=grids, factors=tuple((int(rows), int(columns)) for rows, columns in data["factors"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The grids of some sources, one a pixel lattice, and where each source lies on its own."""

    grids: tuple[Levels, ...]
    """In the order in which the sources name them."""
    grid: np.ndarray
    """Position in `grids` of each source's, int64 (sources,)."""
    rows: np.ndarray
    """Row of each source's upper edge at full resolution, int64 (sources,)."""
    columns: np.ndarray
    """Column of each source's left edge at full resolution, int64 (sources,)."""


def lay_out(extents: Sequence[Extent]) -> Layout:
    """Return the grids of sources: those of one CRS, pixel size and lattice share one."""
    grids: list[Levels] = []
    grid, rows, columns = (np.zeros(len(extents), "int64") for _ in range(3))
    crss, transforms = np.array([each.crs for each in extents], object), np.array([e.transform for e in extents])
    shapes = np.array([each.shapes[0] for each in extents])
    left = np.arange(len(extents))
    while len(left):
        first = extents[left[0]]
        stretch, dx, dy = _apart(first.transform, transforms[left], shapes[left])
        off = np.maximum(np.abs(dx - np.rint(dx)), np.abs(dy - np.rint(dy)))
        alike = (crss[left] == first.crs) & (np.maximum(stretch, off) <= _LATTICE_TOLERANCE_PX)
        members = left[alike]
        levels, rows[members], columns[members] = _common_grid([extents[i] for i in members.tolist()])
        grid[members] = len(grids)
        grids.append(levels)
        left = left[~alike]
    return Layout(grids=tuple(grids), grid=grid, rows=rows, columns=columns)


def _common_grid(extents: Sequence[Extent]) -> tuple[Levels, np.ndarray, np.ndarray]:
    """Return the grid of sources on one lattice, and their rows and columns on it."""
    first = extents[0]
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
        found = _level(full, extents, rows, columns, level)
        if found is None:
            break
        levels.append(found[0])
        factors.append(found[1])
    return Levels(grids=tuple(levels), factors=tuple(factors)), rows, columns


def difference(first: Grid, other: Grid) -> str | None:
    """Return in what the pixel lattices of two grids differ, in words; None where they share one."""
    if other.crs != first.crs:
        return f"CRS: {brief_crs(first.crs)} and {brief_crs(other.crs)}"
    (stretch,), (dx,), (dy,) = _apart(first.transform, np.array([other.transform]), np.array([other.shape]))
    if stretch > _LATTICE_TOLERANCE_PX:
        return f"pixel size: {step_text(first.transform)} and {step_text(other.transform)}"
    if max(abs(dx - round(dx)), abs(dy - round(dy))) > _LATTICE_TOLERANCE_PX:
        return f"pixel lattice: they lie {dx:z.3f} columns and {dy:z.3f} rows apart"
    return None


def _apart(first: Affine6, others: np.ndarray, shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how far other transforms (n, 6) of images (n, 2) are from the first, in its pixels.

    The first array is how far the far corners come to lie apart, were both to begin at one point; then columns and
    rows from origin to origin.
    """
    steps = others - np.array(first)
    height, width = shapes[:, 0], shapes[:, 1]
    stretch = np.zeros(len(others))
    for dx, dy in ((steps[:, 0] * width, steps[:, 3] * width), (steps[:, 1] * height, steps[:, 4] * height)):
        stretch = np.maximum(stretch, np.abs(_solve(first, dx, dy)).max(axis=0))
    return stretch, *_solve(first, steps[:, 2], steps[:, 5])


def _solve(transform: Affine6, dx: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (columns, rows) that span a distance in the CRS."""
    a, b, _, d, e, _ = transform
    if not (b or d):
        return dx / a, dy / e
    determinant = a * e - b * d
    return (e * dx - b * dy) / determinant, (a * dy - d * dx) / determinant


def step_text(transform: Affine6) -> str:
    """Return a pixel size in words."""
    a, b, _, d, e, _ = transform
    rotated = f" (rotated: {b:.12g}, {d:.12g})" if b or d else ""
    return f"{a:.12g} x {e:.12g}{rotated}"


def brief_crs(crs: str) -> str:
    """Return a CRS in a few words."""
    return crs if len(crs) <= 40 else crs.split('"')[1] if '"' in crs else crs[:40]


def _level(
    full: Grid, extents: Sequence[Extent], rows: np.ndarray, columns: np.ndarray, level: int
) -> tuple[Grid, tuple[int, int]] | None:
    """Return the grid of one overview level, or None where the sources' overviews do not fit together."""
    shapes = [each.shapes for each in extents]
    (height, width), (level_height, level_width) = shapes[0][0], shapes[0][level]
    a, b, c, d, e, f = full.transform
    is_alike = all(each[0] == shapes[0][0] and each[level] == shapes[0][level] for each in shapes)
    if (height, width) == full.shape and is_alike and all(each.is_one for each in extents):
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
