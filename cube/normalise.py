"""Pixels as a source stores them to pixels as the cube stores them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cube.errors import ManifestError
from cube.spec import Band

_PIXELS_A_STRIP = 32 * 1024
"""Whose float64 temporary fits a processor's L2 cache."""
_GDAL_EPSILON = np.finfo("f4").eps
"""Relative, of float64 too."""
_LONG_TEXT = 13
"""More characters than people write for a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """How a source's numbers become the cube's.

    Where `shift` is a number, cube = stored + shift, exactly. Where it is None, cube = float64(stored) * scale + offset
    (complex128 for complex numbers), rounded once to the cube's dtype. Either way, stored numbers that equal `missing`
    (nearly, if they are floats; in their real part, if they are complex), become `fill`.
    """

    shift: int | None
    scale: float
    offset: float
    missing: float | None
    """The source's nodata; NaN possible; None where all its numbers are values."""
    fill: float


def plan_normalisation(
    dtype: DTypeLike, nodata: float | None, scale: float, offset: float, band: Band, *, is_strict: bool = True
) -> Normalisation | None:
    """Return how pixels of one source become a band's; None where they already are, number for number.

    Args:
        dtype: Of the source's pixels.
        nodata: The source's own.
        scale: Physical value = stored value * scale + offset, in the source.
        offset: See `scale`.
        band: The cube's encoding.
        is_strict: Whether only nodata itself is missing, not the floats next to it: without work for a file whose
            nodata is the cube's.

    Raises:
        ManifestError: The band's encoding cannot take the source's numbers.
    """
    source, target = np.dtype(dtype), np.dtype(band.dtype)
    shift = shift_between(scale, offset, band.scale, band.offset)
    # A class band's "no data" is one of its classes, and a band without nodata has no number for it.
    missing = None if band.nodata is None or band.classes else nodata
    if missing is not None and (math.isnan(missing) if math.isnan(band.hole) else shift == 0 and missing == band.hole):
        missing = missing if not is_strict and _has_neighbours(source, missing) else None
    if shift == 0 and missing is None and source == target:
        return None
    if not _is_possible(source, target, shift, band):
        raise ManifestError(
            f"band {band.name!r} ({target}, scale {band.scale:g}, offset {band.offset:g}) cannot hold the numbers of a "
            f"source ({source}, scale {scale:g}, offset {offset:g}); build the cube again"
        )
    if source.kind not in "iu" or target.kind not in "iu":
        shift = 0 if shift == 0 else None
    return Normalisation(shift=shift, scale=scale, offset=offset, missing=missing, fill=band.hole)


def normalise(pixels: NDArray[Any], how: Normalisation, out: NDArray[Any]) -> None:
    """Write a source's pixels into a cube's array.

    Args:
        pixels: (rows, columns), or a shape that broadcasts to it, of the source's dtype; any strides.
        how: See `Normalisation`.
        out: (rows, columns) of the cube's dtype, any strides; shares no memory with `pixels`.
    """
    rows = max(1, _PIXELS_A_STRIP // max(1, out.shape[1]))
    fill = np.asarray(how.fill).astype(out.dtype)
    every = np.broadcast_to(pixels, out.shape)
    for top in range(0, out.shape[0], rows):
        stored, part = every[top : top + rows], out[top : top + rows]
        if how.shift is None:
            # Beyond the range of float32 is infinite there: what its values would be in float32 themselves.
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.multiply(stored, how.scale, dtype="c16" if stored.dtype.kind == "c" else "f8")
                values += how.offset
                np.copyto(part, values, casting="same_kind")
        elif how.shift == 0:
            np.copyto(part, stored, casting="safe")
        else:
            # Exact: the dtype holds every sum, and where a sign changes, arithmetic modulo its size says the same.
            np.add(stored, out.dtype.type(how.shift), out=part, dtype=out.dtype, casting="unsafe")
        if how.missing is not None:
            np.copyto(part, fill, where=_is_missing(stored, how.missing))


def _is_missing(stored: NDArray[Any], nodata: float) -> NDArray[np.bool_]:
    numbers = stored.real if stored.dtype.kind == "c" else stored
    found: NDArray[np.bool_]
    if math.isnan(nodata):
        found = np.isnan(numbers)
    elif _has_neighbours(numbers.dtype, nodata):
        low, high = _neighbours(numbers.dtype, nodata)
        found = (numbers >= low) & (numbers <= high)
    else:
        found = numbers == nodata
    return found


def _has_neighbours(dtype: np.dtype[Any], nodata: float) -> bool:
    """Whether there are floats that GDAL takes for a nodata value, too: its text may be of few digits."""
    return dtype.kind in "fc" and dtype.itemsize > 2 and math.isfinite(nodata) and nodata != 0


@functools.lru_cache(maxsize=256)
def _neighbours(dtype: np.dtype[Any], nodata: float) -> tuple[Any, Any]:
    """Return the lowest and the highest float that GDAL takes for a nodata value."""
    limit = dtype.type(math.copysign(float(np.finfo(dtype).max), nodata))
    ends = (_last_neighbour(dtype.type(nodata), dtype.type(0)), _last_neighbour(dtype.type(nodata), limit))
    return min(ends), max(ends)


def _last_neighbour(nodata: Any, outside: Any) -> Any:
    """Return the last float from a nodata value towards another of which GDAL says that it is the same."""

    def is_same(number: Any) -> bool:  # GDAL's ARE_REAL_EQUAL, sums beyond the range included
        return bool(number == nodata or abs(number - nodata) < 2 * (_GDAL_EPSILON * abs(number + nodata)))

    with np.errstate(over="ignore", under="ignore"):
        if is_same(outside):
            return outside
        inside = nodata
        while (middle := inside / 2 + outside / 2) not in (inside, outside):
            inside, outside = (middle, outside) if is_same(middle) else (inside, middle)
    return inside


@functools.lru_cache(maxsize=4096)
def shift_between(scale: float, offset: float, target_scale: float, target_offset: float) -> int | None:
    """Return k where stored numbers of one scale and offset, plus k, mean the same in another; None if no integer does.

    Scales and offsets are compared as the decimal numbers that they were written as, be it in single precision.
    """
    step = _decimal(scale)
    if step != _decimal(target_scale):
        return None
    difference = _decimal(offset) - _decimal(target_offset)
    if difference == 0:
        return 0
    if step == 0:
        return None
    steps = difference / step
    return int(steps) if steps.denominator == 1 else None


def _decimal(value: float) -> Fraction:
    if float(value).is_integer():
        return Fraction(value)
    text = repr(float(value))
    with np.errstate(over="ignore"):
        single = np.float32(value)
    # 0.1 in single precision is 0.10000000149011612 in double.
    return Fraction(str(single) if len(text) > _LONG_TEXT and float(single) == value else text)


def _is_possible(source: np.dtype[Any], target: np.dtype[Any], shift: int | None, band: Band) -> bool:
    if shift == 0:
        return np.can_cast(source, target, "safe")
    if shift is not None and source.kind in "iu" and target.kind in "iu":
        own, wanted = np.iinfo(source), np.iinfo(target)
        return wanted.min <= own.min + shift and own.max + shift <= wanted.max
    return (band.scale, band.offset) == (1.0, 0.0) and (
        target.kind == "c" or (target.kind == "f" and source.kind != "c")
    )
