"""How sources store a band, and the one encoding that the cube gives it, so that no value is lost."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from cube.archive.sensors import Decision, Said, holds_flags
from cube.errors import BuildError
from cube.normalise import shift_between
from cube.scan import ScannedSource
from cube.source import BandInfo
from cube.spec import Band

_INTEGERS = tuple(np.dtype(name) for name in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"))
"""The smallest first, and signed before unsigned."""


class Stored(NamedTuple):
    """How one band of one source is stored, in effect."""

    dtype: np.dtype[Any]
    nodata: float | None
    """An int for integers; always `math.nan` for NaN, so that equal means the same."""
    scale: float
    offset: float
    """Physical value = stored value * scale + offset."""
    validity: Literal["mask", "alpha"] | None
    """What else marks missing pixels; the source then has no nodata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One band of one source: a sample of a scanned file, with what its catalogue and the rules for its sensor say."""

    scanned: ScannedSource
    index: int
    """Position among the file's samples."""
    info: BandInfo
    time: np.datetime64 | None = None
    """Its own where the bands of a file are dates, else the source's; None for a layer without time."""
    decision: Decision | None = None
    """What a rule changes of what the file and the catalogue say."""

    @property
    def said(self) -> Said:
        """What the file says, and the catalogue where the file is silent."""
        header, info = self.scanned.header, self.info
        scale, offset = _finite(header.scales[self.index], 1.0), _finite(header.offsets[self.index], 0.0)
        by_file = (scale, offset) != (1.0, 0.0)
        if not by_file:
            scale, offset = _finite(info.scale, 1.0), _finite(info.offset, 0.0)
        nodata = as_stored(header.nodata, header.dtype)
        if nodata is None:
            nodata = as_stored(info.nodata, header.dtype)
        return Said(header.dtype, nodata, scale, offset, by_file)

    @property
    def stored(self) -> Stored:
        """How the band is stored in effect: the file first, then the catalogue, then the sensor's rule."""
        header = self.scanned.header
        said = self.said if self.decision is None else self.decision
        scale, offset = (1.0, 0.0) if self.is_class else (said.scale, said.offset)
        # GDAL's rules: an alpha sample says nothing of itself, and what a mask or alpha says leaves nodata no say.
        is_alpha = header.validity == "alpha" and self.index == header.samples - 1
        validity = None if is_alpha else header.validity
        nodata = None if header.validity is not None else as_stored(said.nodata, header.dtype)
        return Stored(header.dtype, nodata, scale, offset, validity)

    @property
    def is_class(self) -> bool:
        """True if the numbers are classes or bits: never scaled, and "no data" is one of them."""
        is_named = bool(self.info.classes) or holds_flags(self.scanned.source, self.info)
        return is_named and self.scanned.header.dtype.kind in "iu"


class _Kind(NamedTuple):
    """Samples that are stored alike."""

    stored: Stored
    sources: int
    href: str
    """Of one of them."""
    shift: int | None
    """What makes the stored numbers the cube's; None if only physical values are the same."""


def choose_encoding(name: str, samples: Sequence[Sample], *, fill_value: float | None, holes: Sequence[str]) -> Band:
    """Return the one encoding of a band.

    Where sources agree it is theirs. Where they differ in dtype, it is the smallest that holds the numbers of all;
    where their offsets differ by whole steps of one scale, some are shifted; else it is physical values as floats.

    Args:
        name: The band.
        samples: Its sample in every source.
        fill_value: What marks missing pixels if no source has a number that can, given by the user.
        holes: Dates (or places) at which no source covers some pixel, as text for the error.

    Raises:
        BuildError: No dtype holds the numbers of two sources, `fill_value` does not fit, or an integer band misses
            pixels and has no number to mark them with.
    """
    scale, offset, kinds = _choose_scale(samples)
    is_class = any(sample.is_class for sample in samples)
    nodata: float | None
    if any(kind.shift is None for kind in kinds):
        scale, offset, dtype, nodata = 1.0, 0.0, _physical_dtype(kinds), math.nan
    else:
        dtype = _join(name, kinds)
        dtype, nodata = _choose_nodata(name, kinds, dtype, is_class=is_class, fill_value=fill_value, holes=holes)
    info, header = samples[0].info, samples[0].scanned.header
    # Floats are measurements, whatever a catalogue calls some of them.
    classes = _merge_classes(samples) if dtype.kind in "iu" else ()
    return Band(
        name=name,
        dtype=dtype.name,
        # Bits are never masked: what marks their holes is a number like others.
        nodata=None if is_class and not classes else nodata,
        hole=nodata if nodata is not None else (math.nan if dtype.kind in "fc" else 0),
        scale=scale,
        offset=offset,
        units=_agreed(sample.scanned.header.units[sample.index] or sample.info.units for sample in samples),
        description=info.description or header.descriptions[samples[0].index],
        aliases=tuple(sorted({alias for sample in samples for alias in sample.info.aliases} - {name})),
        classes=classes,
        colormap=tuple(
            (value, *colour)
            for value, colour in enumerate(
                # A palette is that of the first sample; another is its alpha.
                _agreed(None if sample.index else sample.scanned.header.colormap for sample in samples) or ()
            )
        ),
    )


def as_stored(value: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return a number as the dtype stores it (an int for integers); None where the dtype cannot hold it."""
    if value is None:
        return None
    if dtype.kind in "fc":
        with np.errstate(over="ignore"):
            rounded = float(np.finfo(dtype).dtype.type(value))
        if math.isnan(rounded):
            return math.nan
        return rounded if math.isinf(value) or not math.isinf(rounded) else None
    if not math.isfinite(value) or value != int(value):
        return None
    limits = np.iinfo(dtype)
    return int(value) if limits.min <= value <= limits.max else None


def _choose_scale(samples: Sequence[Sample]) -> tuple[float, float, list[_Kind]]:
    """Return the scale and offset of most sources, and the samples by how they are stored."""
    counts: Counter[Stored] = Counter()
    hrefs: dict[Stored, str] = {}
    for sample in samples:
        stored = sample.stored
        counts[stored] += 1
        hrefs.setdefault(stored, sample.scanned.source.href)
    pairs: Counter[tuple[float, float]] = Counter()
    for stored, count in counts.items():
        pairs[stored.scale, stored.offset] += count
    # Of equals the lowest offset: numbers are shifted up then, away from a nodata of 0.
    scale, offset = min(pairs, key=lambda pair: (-pairs[pair], pair[1], pair[0]))
    kinds = []
    for stored, count in counts.items():
        shift = shift_between(stored.scale, stored.offset, scale, offset)
        is_exact = shift == 0 or all(each.dtype.kind in "iu" for each in counts)
        kinds.append(_Kind(stored, count, hrefs[stored], shift if is_exact else None))
    return scale, offset, kinds


def _physical_dtype(kinds: Sequence[_Kind]) -> np.dtype[Any]:
    dtypes = {kind.stored.dtype for kind in kinds}
    is_single = all(each.itemsize <= {"f": 4, "c": 8}.get(each.kind, 2) for each in dtypes)
    if any(each.kind == "c" for each in dtypes):
        return np.dtype("c8" if is_single else "c16")
    return np.dtype("f4" if is_single else "f8")


def _join(name: str, kinds: Sequence[_Kind]) -> np.dtype[Any]:
    """Return the smallest dtype that holds the shifted numbers of all sources exactly."""
    joined = _common_dtype(kinds)
    if joined is not None:
        return joined
    one, other = next(pair for pair in itertools.combinations(kinds, 2) if _common_dtype(pair) is None)
    raise BuildError(
        f"band {name!r} is {_in_words(one)} in {one.href} and {_in_words(other)} in {other.href}, and no data type "
        "holds the numbers of both; build a cube of each kind"
    )


def _common_dtype(kinds: Sequence[_Kind]) -> np.dtype[Any] | None:
    dtypes = {kind.stored.dtype for kind in kinds}
    if all(dtype.kind in "iu" for dtype in dtypes):
        ranges = [_shifted_range(kind) for kind in kinds]
        return _smallest_integer(min(low for low, _ in ranges), max(high for _, high in ranges))
    if len(dtypes) > 1 and any(dtype.kind in "iu" and dtype.itemsize == 8 for dtype in dtypes):
        return None  # numpy would take float64, which holds integers of 53 bits
    return np.result_type(*dtypes)


def _shifted_range(kind: _Kind) -> tuple[int, int]:
    limits, shift = np.iinfo(kind.stored.dtype), kind.shift or 0
    return int(limits.min) + shift, int(limits.max) + shift


def _smallest_integer(low: int, high: int) -> np.dtype[Any] | None:
    return next((t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max), None)


def _in_words(kind: _Kind) -> str:
    return f"{kind.stored.dtype} (scale {kind.stored.scale:g}, offset {kind.stored.offset:g})"


def _choose_nodata(
    name: str,
    kinds: Sequence[_Kind],
    dtype: np.dtype[Any],
    *,
    is_class: bool,
    fill_value: float | None,
    holes: Sequence[str],
) -> tuple[np.dtype[Any], float | None]:
    """Return a dtype and the number of it that no source has as a value, if one is needed."""
    own: Counter[float] = Counter()
    for kind in kinds:
        if kind.stored.nodata is not None:
            own[kind.stored.nodata] += kind.sources
    for number, _ in own.most_common():
        nodata = as_stored(number, dtype)
        if nodata is not None and all(_is_free(nodata, kind) for kind in kinds):
            return dtype, nodata
    if fill_value is not None:
        nodata = as_stored(fill_value, dtype)
        if nodata is None:
            raise BuildError(f"fill value {fill_value} does not fit band {name!r} of {dtype}; choose one that does")
        return dtype, nodata
    # Classes stay as they are, "no data" too: only what has no number at all needs one.
    is_masked = any(kind.stored.validity for kind in kinds) or (bool(own) and not is_class)
    if dtype.kind in "fc":
        return dtype, math.nan if is_masked else None
    if holes and not is_masked and not own:
        raise BuildError(
            f"band {name!r} ({dtype}, no nodata value) is missing at {len(holes)} places or dates: {_some(holes)}; "
            "give a fill value that is not a measurement (fill_value=, --fill-value), or leave the band out"
        )
    return _widen(name, kinds, dtype) if is_masked or holes else (dtype, None)


def _is_free(number: float, kind: _Kind) -> bool:
    """True if a number of the cube is a source's own nodata, or none that the source can have."""
    if math.isnan(number):
        return True
    stored = number - (kind.shift or 0)
    return stored == kind.stored.nodata or as_stored(stored, kind.stored.dtype) != stored


def _widen(name: str, kinds: Sequence[_Kind], dtype: np.dtype[Any]) -> tuple[np.dtype[Any], int]:
    """Return the smallest signed dtype that holds all numbers and whose lowest is none of them."""
    low = min(low for low, _ in map(_shifted_range, kinds))
    high = max(high for _, high in map(_shifted_range, kinds))
    for wide in _INTEGERS:
        limits = np.iinfo(wide)
        if wide.kind == "i" and limits.min < low and high <= limits.max:
            return wide, int(limits.min)
    missing = next(kind for kind in kinds if kind.stored.nodata is not None or kind.stored.validity)
    raise BuildError(
        f"band {name!r} misses pixels (of {missing.href}, for one), and every number of {dtype} may be a value; give a "
        "fill value that is not a measurement (fill_value=, --fill-value)"
    )


def _merge_classes(samples: Sequence[Sample]) -> tuple[tuple[int, str], ...]:
    merged: dict[int, str] = {}
    for table in dict.fromkeys(sample.info.classes for sample in samples):
        for value, meaning in table:
            merged.setdefault(value, meaning)
    return tuple(merged.items())


def _agreed[T](said: Iterable[T | None]) -> T | None:
    """Return what all say that say something; None if they differ."""
    found = set(said) - {None}
    return found.pop() if len(found) == 1 else None


def _finite(value: float | None, default: float) -> float:
    return default if value is None or not math.isfinite(value) else value


def _some(texts: Sequence[str], most: int = 5) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
