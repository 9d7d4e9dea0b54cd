"""Several sources' pixels of one place to one, on a grid of theirs or on another: pure, after all is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cube.algebra.composites import find_composite
from cube.grid import Window
from cube.layers import Layer
from cube.spec import Band, Placing
from cube.warp import resample, to_stored

_NOTHING = np.iinfo("int64").max
_LAST = _NOTHING - 1
"""The rank of values at whose middle no source has one, as where an average reaches over its edge."""

type Key = tuple[str, int]
"""Band, and position on the output's time axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one source gives of one band at one date."""

    pixels: np.ndarray
    """(rows, columns) of the box, as the cube stores them."""
    valid: np.ndarray | None
    """Where the source's mask or alpha says that they are values; None where it has none."""
    box: Window
    """In the layer's window."""
    rank: int
    """Of several sources the one of the lowest comes first."""
    apart: bool
    """Whether the pixels are not in the layer's output yet."""

    def there(self, band: Band) -> np.ndarray:
        """Return where there are values, bool."""
        found = ~find_missing(self.pixels, band)
        return found if self.valid is None else found & self.valid


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What was read of one layer."""

    layer: Layer
    outputs: Mapping[str, np.ndarray]
    """(dates, rows, columns) of the layer's window by band; the band's hole where no source lies."""
    parts: Mapping[Key, Sequence[Part]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """One band and date of a picture, fused."""

    pixels: np.ndarray
    there: np.ndarray
    ranks: np.ndarray | int
    """Of the source that each pixel is from."""


def find_missing(stored: np.ndarray, band: Band) -> np.ndarray:
    """Return where stored numbers of a band are no data, bool: its nodata; NaN of floats that have no other."""
    missing = np.zeros(stored.shape, bool)
    if band.nodata is not None and not np.isnan(band.nodata):
        missing = stored == band.nodata
    elif stored.dtype.kind == "f":
        missing = np.isnan(stored)
    return missing


def fuse(picture: Picture, key: Key, band: Band, is_whole: bool) -> Plane | None:
    """Put the parts of one band and date that lie apart into the picture's output, the first in rank on top.

    Args:
        picture: What was read.
        key: The band and date.
        band: How it is stored.
        is_whole: Whether to return where there are values, and from which source.
    """
    output = picture.outputs[key[0]][key[1]]
    parts = sorted(picture.parts.get(key, ()), key=lambda part: part.rank)
    # Where the band has no number for "no data", what is free is noted beside.
    taken = np.zeros(output.shape, bool) if is_whole or band.nodata is None else None
    ranks = np.full(output.shape, _LAST) if is_whole and len(parts) > 1 else None
    for part in parts:
        box = part.box
        place = np.s_[box.top : box.bottom, box.left : box.right]
        if not part.apart and taken is None:
            continue
        there = part.there(band)
        if part.apart:
            there &= find_missing(output[place], band) if taken is None else ~taken[place]
            np.copyto(output[place], part.pixels, where=there)
        if taken is not None:
            taken[place] |= there
        if ranks is not None:
            ranks[place][there] = part.rank
    if not is_whole or taken is None:
        return None
    return Plane(pixels=output, there=taken, ranks=parts[0].rank if ranks is None and parts else _none(ranks))


def _none(ranks: np.ndarray | None) -> np.ndarray | int:
    return _LAST if ranks is None else ranks


def stack_layers(
    planes: Sequence[tuple[Layer, Mapping[Key, Plane]]],
    strip: Window,
    bands: Mapping[str, Band],
    on: Placing,
    window: Window,
    outputs: Mapping[str, np.ndarray],
) -> None:
    """Write a strip of a window from several layers, at each pixel the one whose source comes first.

    Args:
        planes: What was read, fused on its own grid.
        strip: The part of the window that is written.
        bands: By name.
        on: Of the cube.
        window: On the cube's grid.
        outputs: (dates, rows, columns) of the window by band, holding the band's hole.
    """
    rows = slice(strip.top - window.top, strip.bottom - window.top)
    best: dict[Key, np.ndarray] = {}
    for layer, of_layer in planes:
        places = _Places(layer, window, strip)
        for key, plane in of_layer.items():
            band, how = bands[key[0]], on.resampling_of(key[0])
            found = places.sample(plane.pixels, plane.there, how, band)
            if found is None:
                continue
            pixels, there = found
            output = outputs[key[0]][key[1]][rows]
            if len(planes) > 1:
                ranks = places.ranks(plane)
                lowest = best.setdefault(key, np.full(output.shape, _NOTHING))
                there = there & (ranks < lowest)
                np.copyto(lowest, ranks, where=there)
            np.copyto(output, pixels, where=there)


def stack_parts(
    pictures: Sequence[Picture],
    strip: Window,
    bands: Mapping[str, Band],
    on: Placing,
    window: Window,
    outputs: Mapping[str, np.ndarray],
) -> None:
    """Write a strip of a window as the mean or median of all sources, each resampled by itself; see `stack_layers`."""
    rows = slice(strip.top - window.top, strip.bottom - window.top)
    stacks: dict[Key, list[tuple[np.ndarray, np.ndarray]]] = {}
    for picture in pictures:
        places = _Places(picture.layer, window, strip)
        for key, parts in picture.parts.items():
            band, how = bands[key[0]], on.resampling_of(key[0])
            for part in parts:
                found = places.sample(part.pixels, part.there(band), how, band, part.box)
                if found is not None:
                    stacks.setdefault(key, []).append(found)
    for key, stack in stacks.items():
        outputs[key[0]][key[1]][rows] = _combine(stack, on.fuse, bands[key[0]])


def _combine(stack: Sequence[tuple[np.ndarray, np.ndarray]], how: str, band: Band) -> np.ndarray:
    """Return the mean or median of all that is there, as the band stores it."""
    values = np.stack([stored for stored, _ in stack]).astype("float64")
    there = np.stack([there for _, there in stack])
    # NaN that a band does not call missing is a value, and the result where there is no other.
    is_number = there & ~np.isnan(values)
    found = find_composite(how)(values, ~is_number)
    return to_stored(found, there.any(axis=0), np.dtype(band.dtype), band.nodata, band.hole)


class _Places:
    """Where a strip of the cube's window lies on a layer."""

    def __init__(self, layer: Layer, window: Window, strip: Window) -> None:
        self._layer, self._strip = layer, strip
        self._down = strip.top - window.top
        self._known: dict[bool, tuple[np.ndarray, np.ndarray]] = {}

    def sample(
        self, pixels: np.ndarray, there: np.ndarray, how: str, band: Band, box: Window | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return an image at the strip's pixels and where it has values; None where it lies elsewhere.

        Args:
            pixels: (rows, columns) of the layer's window, or of a box in it.
            there: Where they are values.
            how: See `resample`.
            band: How they are stored.
            box: The box.
        """
        if self._layer.points is None:
            return self._cut(pixels, band.hole, box), self._cut(there, fill=False, box=box)
        columns, rows = self._positions(corners=how == "average")
        if box is not None:
            columns, rows = columns - box.left, rows - box.top
            height, width = pixels.shape
            with np.errstate(invalid="ignore"):
                if not (
                    ((columns >= -1) & (columns <= width + 1)).any() and ((rows >= -1) & (rows <= height + 1)).any()
                ):
                    return None
        around, torn = self._layer.points.around, self._torn if how == "average" else None
        return resample(pixels, there, columns, rows, how, nodata=band.nodata, fill=band.hole, around=around, torn=torn)

    def ranks(self, plane: Plane) -> np.ndarray:
        """Return from which source the strip's pixels are, int64."""
        ranks = np.where(plane.there, plane.ranks, _LAST) if isinstance(plane.ranks, int) else plane.ranks
        if self._layer.points is None:
            return self._cut(ranks, _LAST)
        columns, rows = self._positions(corners=False)
        return resample(ranks, None, columns, rows, "nearest", nodata=None, fill=_LAST)[0]

    def _cut(self, image: np.ndarray, fill: float, box: Window | None = None) -> np.ndarray:
        """Return the strip's pixels of an image on the cube's own lattice; `fill` beside its box."""
        height, width = self._strip.shape
        if box is None:
            return image[self._down : self._down + height]
        found = np.full((height, width), fill, image.dtype)
        top, bottom = max(box.top, self._down), min(box.bottom, self._down + height)
        if top < bottom:
            found[top - self._down : bottom - self._down, box.left : box.right] = image[
                top - box.top : bottom - box.top
            ]
        return found

    def _positions(self, *, corners: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the fractional columns and rows of the strip's pixels in the layer's window."""
        layer = self._layer
        if layer.points is None:
            raise ValueError("a layer on the cube's own lattice has no points")
        if corners not in self._known:
            columns, rows = layer.points.positions(self._strip, corners=corners)
            self._known[corners] = columns - layer.window.left, rows - layer.window.top
        return self._known[corners]

    @cached_property
    def _torn(self) -> np.ndarray | None:
        points = self._layer.points
        return None if points is None else points.torn(self._strip)
