"""What part of a cube is opened: its bands as they are asked for, its dates, its window."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cube.errors import SelectionError
from cube.grid import Grid, Window
from cube.manifest.open import Manifest
from cube.spec import Band, CubeSpec

_DATE = re.compile(r"\d{4}(-\d\d){0,2}([T ]\d\d(:\d\d){0,2}(\.\d{1,6})?)?Z?", re.ASCII)

type Box = tuple[float, float, float, float]
"""(left, bottom, right, top)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A part of a cube: what becomes one dataset."""

    spec: CubeSpec
    bands: tuple[tuple[str, Band], ...]
    """(name of the variable, band) pairs; the variable is called what the user asked for."""
    times: tuple[int, ...]
    """Positions on the cube's time axis; (0,) in a cube without time."""
    stamps: np.ndarray | None
    """datetime64[us] of `times`, or None in a cube without time."""
    window: Window
    """On the grid of the spec's level."""
    grid: Grid
    """Of the window."""

    @property
    def dims(self) -> tuple[str, ...]:
        """The dimensions of every variable."""
        return ("y", "x") if self.stamps is None else ("time", "y", "x")

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of `dims`."""
        return self.window.shape if self.stamps is None else (len(self.times), *self.window.shape)


def select_bands(manifest: Manifest, bands: Sequence[str] | str | None) -> list[Band]:
    """Return the bands of some names or aliases; all where None.

    Raises:
        SelectionError: A band that the cube does not have, or no list of names.
    """
    return [band for _, band in _named(manifest, bands)]


def _named(manifest: Manifest, bands: Sequence[str] | str | None) -> list[tuple[str, Band]]:
    names = [bands] if isinstance(bands, str) else list(bands) if bands is not None else None
    if names is not None and (not names or not all(isinstance(name, str) for name in names)):
        raise SelectionError(f"bands={bands!r}: give one name or a list of names")
    chosen = (
        [(name, manifest.band(name)) for name in names] if names else [(band.name, band) for band in manifest.bands]
    )
    if len({name for name, _ in chosen}) < len(chosen):
        raise SelectionError(f"bands={bands!r}: a name is there twice")
    return chosen


def select(
    manifest: Manifest,
    spec: CubeSpec,
    *,
    bands: Sequence[str] | str | None = None,
    bbox: Box | None = None,
    time: str | tuple[str, str] | None = None,
) -> Selection:
    """Return a part of a cube.

    Args:
        manifest: The cube.
        spec: Names the level.
        bands: Names or aliases; all where None.
        bbox: Longitude and latitude: (west, south, east, north); every pixel that it touches is selected.
        time: One date ("2024", "2024-06", "2024-06-01") or (first, last), both included.

    Raises:
        SelectionError: A band, level, date or place that the cube does not have.
    """
    chosen = _named(manifest, bands)
    grid = manifest.grid_at(spec.level)
    window = Window(top=0, bottom=grid.height, left=0, right=grid.width) if bbox is None else find_window(grid, bbox)
    positions = _times(manifest, time)
    return Selection(
        spec=spec,
        bands=tuple(chosen),
        times=positions,
        stamps=None if manifest.times is None else manifest.times[list(positions)],
        window=window,
        grid=crop(grid, window),
    )


def crop(grid: Grid, window: Window) -> Grid:
    """Return the grid of a window."""
    a, b, c, d, e, f = grid.transform
    x0, y0 = c + a * window.left + b * window.top, f + d * window.left + e * window.top
    height, width = window.shape
    return Grid(crs=grid.crs, transform=(a, b, x0, d, e, y0), width=width, height=height)


def parse_box(bbox: Any) -> Box:
    """Return the four numbers of a box.

    Raises:
        SelectionError: They are no four numbers.
    """
    try:
        west, south, east, north = (float(value) for value in bbox)
    except (TypeError, ValueError):
        raise SelectionError(f"bbox={bbox!r}: give four numbers, west, south, east, north") from None
    return west, south, east, north


def find_window(grid: Grid, bbox: Box) -> Window:
    """Return the pixels of a grid that a box of longitude and latitude touches.

    Raises:
        SelectionError: It is no box, or lies outside.
    """
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    west, south, east, north = parse_box(bbox)
    if not (west < east and south < north and all(map(math.isfinite, (west, south, east, north)))):
        raise SelectionError(f"bbox={bbox!r}: west must lie below east and south below north")
    try:
        left, bottom, right, top = Transformer.from_crs("OGC:CRS84", grid.crs, always_xy=True).transform_bounds(
            west, south, east, north, densify_pts=21
        )
    except ProjError as error:
        raise SelectionError(f"bbox={bbox!r} has no place on the cube's grid ({error})") from None
    columns, rows = grid.to_pixels(np.array([left, right, left, right]), np.array([bottom, bottom, top, top]))
    # A box whose edge is a pixel's edge must not take the pixel beyond: a millionth of a pixel is rounding.
    inside = Window(
        top=max(0, math.floor(rows.min() + 1e-6)),
        bottom=min(grid.height, math.ceil(rows.max() - 1e-6)),
        left=max(0, math.floor(columns.min() + 1e-6)),
        right=min(grid.width, math.ceil(columns.max() - 1e-6)),
    )
    if inside.top >= inside.bottom or inside.left >= inside.right:
        raise SelectionError(f"bbox={bbox!r} lies outside of the cube; `cube info` prints its bounds")
    return inside


def _times(manifest: Manifest, time: str | tuple[str, str] | None) -> tuple[int, ...]:
    if manifest.times is None:
        if time is not None:
            raise SelectionError(f"time={time!r} was asked for; {manifest.name!r} has no time")
        return (0,)
    if time is None:
        return tuple(range(len(manifest.times)))
    bounds: Any = (time, time) if isinstance(time, str) else time
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise SelectionError(f"time={time!r}: give a date as text ('2024', '2024-06-01'), or (first, last)")
    first, last = bounds
    start, stop = _instant(first), _after(last)
    found = np.flatnonzero((manifest.times >= start) & (manifest.times < stop))
    if not len(found):
        span = f"{str(manifest.times[0])[:10]} to {str(manifest.times[-1])[:10]}"
        raise SelectionError(f"time={time!r}: {manifest.name!r} has no date then; its dates run from {span}")
    return tuple(found.tolist())


def _instant(text: str) -> np.datetime64:
    try:
        # numpy alone would take "", "now" and other time zones, the latter with a warning.
        if _DATE.fullmatch(text):
            return np.datetime64(text.removesuffix("Z"))
    except (ValueError, TypeError):
        pass
    raise SelectionError(f"time {text!r} is not a date like 2024, 2024-06 or 2024-06-01T10:30:00 (UTC)")


def _after(text: str) -> np.datetime64:
    """Return the end of the year, month, day or instant that `text` names: what it leaves out is included."""
    instant = _instant(text)
    after: np.datetime64 = instant + np.ones((), f"timedelta64[{np.datetime_data(instant)[0]}]")[()]
    return after
