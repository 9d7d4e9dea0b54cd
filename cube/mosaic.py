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
from cube.warp import find_pixels, resample, to_stored

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
    there: np.ndarray | None
    """Where they are values; None where the band's nodata says so in the pixels themselves, and that is enough."""
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


def fuse(picture: Picture, key: Key, band: Band, how: str | None) -> Plane | None:
    """Put the parts of one band and date that lie apart into the picture's output, the first in rank on top.

    Args:
        picture: What was read.
        key: The band and date.
        band: How it is stored.
        how: By which the picture is resampled, and then the fused plane is returned; None where it is the result.
    """
    output = picture.outputs[key[0]][key[1]]
    parts = sorted(picture.parts.get(key, ()), key=lambda part: part.rank)
    # Where the band has no number for "no data", what is free is noted beside; other ways than nearest ask for it, too.
    is_noted = band.nodata is None or how not in (None, "nearest")
    taken = np.zeros(output.shape, bool) if is_noted else None
    ranks = np.full(output.shape, _LAST) if how is not None and len(parts) > 1 else None
    for part in parts:
        box = part.box
        place = np.s_[box.top : box.bottom, box.left : box.right]
        if not part.apart and taken is None and ranks is None:
            continue
        there = part.there(band)
        if part.apart:
            there &= find_missing(output[place], band) if taken is None else ~taken[place]
            np.copyto(output[place], part.pixels, where=there)
        if taken is not None:
            taken[place] |= there
        if ranks is not None:
            ranks[place][there] = part.rank
    if how is None:
        return None
    return Plane(pixels=output, there=taken, ranks=parts[0].rank if ranks is None and parts else _none(ranks))


def _of(there: np.ndarray | None) -> np.ndarray:
    assert there is not None  # noqa: S101 - as `fuse` notes it for all ways but nearest
    return there


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
    layers = [(_Places(layer, window, strip), of_layer) for layer, of_layer in planes]
    for key in dict.fromkeys(key for _, of_layer in layers for key in of_layer):
        band, how = bands[key[0]], on.resampling_of(key[0])
        output = outputs[key[0]][key[1]][rows]
        found = [(places, of_layer[key]) for places, of_layer in layers if key in of_layer]
        if all(isinstance(plane.ranks, int) for _, plane in found):
            # One source a layer: the last first, and the others on top of it.
            for places, plane in sorted(found, key=lambda each: -int(each[1].ranks)):
                pixels, there = places.values(plane, how, band)
                np.copyto(output, pixels, where=there)
            continue
        lowest = np.full(output.shape, _NOTHING)
        for places, plane in found:
            pixels, there = places.values(plane, how, band)
            ranks = places.ranks(plane)
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

    def values(self, plane: Plane, how: str, band: Band) -> tuple[np.ndarray, np.ndarray]:
        """Return a plane at the strip's pixels, and where it has values; elsewhere it is anything."""
        if self._layer.points is None:
            pixels = self._cut(plane.pixels, band.hole)
        elif how == "nearest":
            pixels = self._take(plane.pixels)
        else:
            found = self.sample(plane.pixels, _of(plane.there), how, band)
            assert found is not None  # noqa: S101 - as it is of a part alone
            return found
        if plane.there is None:
            there = ~find_missing(pixels, band)
        else:
            there = self._cut(plane.there, fill=False) if self._layer.points is None else self._take(plane.there)
        if self._layer.points is not None and self._nearest[1] is not None:
            there &= self._nearest[1]
        return pixels, there

    def ranks(self, plane: Plane) -> np.ndarray:
        """Return from which source the strip's pixels are, int64."""
        if isinstance(plane.ranks, int):
            return np.int64(plane.ranks)  # type: ignore[return-value]  # for all of them
        if self._layer.points is None:
            return self._cut(plane.ranks, _LAST)
        ranks, inside = self._take(plane.ranks), self._nearest[1]
        return ranks if inside is None else np.where(inside, ranks, _LAST)

    @cached_property
    def _nearest(self) -> tuple[np.ndarray, np.ndarray | None]:
        """In which pixel of the layer's window each of the strip's lies, and which do at all (all where None)."""
        columns, rows = self._positions(corners=False)
        return find_pixels(columns, rows, self._layer.window.shape)

    def _take(self, image: np.ndarray) -> np.ndarray:
        """Return the pixels of an image of the layer's window that the strip's middles lie in."""
        found: np.ndarray = image.ravel().take(self._nearest[0], mode="clip")  # which is quicker than to check
        return found

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
