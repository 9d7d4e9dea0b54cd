"""What the two tags of GDAL's own say: the nodata value, and items of metadata by dataset and by band."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET
from xml.sax.saxutils import unescape

import numpy as np

_INTEGER = re.compile(r"\s*[+-]?\d{1,30}", re.ASCII)
_NUMBER = re.compile(  # also as Windows prints what is none
    r"\s*[+-]?(?:(nan|1\.#qnan|1\.#ind)|(inf|infinity|1\.#inf)|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)",
    re.ASCII | re.IGNORECASE,
)
_SHORT = 4096  # characters: what files share is short, and a cache of long texts would take memory
_MOST_MARKS = 200_000  # an element takes a hundred bytes of memory, and four of text


class Items(NamedTuple):
    """GDAL_METADATA, default domain."""

    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    descriptions: tuple[str | None, ...]
    units: tuple[str | None, ...]
    """By sample."""
    alphas: Mapping[int, bool]
    """Samples of which GDAL says that they are alpha, or are not, whatever ExtraSamples says."""
    metadata: Mapping[str, str]
    """Of the dataset."""
    is_broken: bool
    """Whether the tag is not plain XML; then nothing was read from it."""


def parse_items(tag: bytes, samples: int) -> Items:
    """Return the items of a GDAL_METADATA tag; those of a file without one where it is empty."""
    return (_items if len(tag) + samples <= _SHORT else _items.__wrapped__)(tag, samples)


@functools.lru_cache(maxsize=512)
def _items(tag: bytes, samples: int) -> Items:
    found, is_broken = _parse(_text(tag))

    def by_sample(role: str) -> tuple[str | None, ...]:
        return tuple([found.get((sample, role)) for sample in range(samples)])

    return Items(
        scales=tuple([1.0 if text is None else _number(text) or 0.0 for text in by_sample("scale")]),
        offsets=tuple([0.0 if text is None else _number(text) or 0.0 for text in by_sample("offset")]),
        descriptions=by_sample("description"),
        units=by_sample("unittype"),
        alphas={sample: text.lower() == "alpha" for (sample, role), text in found.items() if role == "colorinterp"},
        metadata={name: text for (sample, name), text in found.items() if sample == -1},
        is_broken=is_broken,
    )


def _text(tag: bytes) -> str:
    return tag.split(b"\0", 1)[0].decode("utf-8", "replace")


def _parse(text: str) -> tuple[dict[tuple[int, str], str], bool]:
    """Return items by (sample or -1, role or name), and whether the text is broken."""
    if not text:
        return {}, False
    if "<!DOCTYPE" in text.upper() or text.count("<") > _MOST_MARKS:  # entities expand without bound, GDAL writes none
        return {}, True
    try:
        root = ET.fromstring(text)  # noqa: S314 - no DOCTYPE, so no entities
    except ET.ParseError:
        return {}, True
    found: dict[tuple[int, str], str] = {}
    for item in root.iterfind("Item") if root.tag == "GDALMetadata" else ():
        name, role, sample = item.get("name"), item.get("role", "").lower(), item.get("sample", "-1")
        if not name or not item.text or item.get("domain") or not _INTEGER.fullmatch(sample):
            continue
        # GDAL escapes values twice and so reads them twice.
        value = unescape(item.text.lstrip(), {"&quot;": '"', "&apos;": "'"})
        found[int(sample), role if int(sample) >= 0 and role else name] = value
    return found, False


def parse_nodata(tag: bytes, dtype: np.dtype[Any]) -> float | None:
    """Return what GDAL takes a GDAL_NODATA tag for: an int for integers, None if the dtype cannot hold it."""
    return (_nodata if len(tag) <= _SHORT else _nodata.__wrapped__)(tag, dtype)


@functools.lru_cache(maxsize=512)
def _nodata(tag: bytes, dtype: np.dtype[Any]) -> float | None:
    text = _text(tag)
    if not text:
        return None
    # As GDAL, which reads what the text begins with, and takes what is no number for 0.
    if dtype.kind in "iu":
        return _integer(text, dtype)
    value = _number(text) or 0.0
    real = np.finfo(dtype).dtype  # of complex numbers GDAL compares the real part
    limit = float(np.finfo(real).max)
    if abs(abs(value) - limit) < 1e-10 * limit:  # texts of few digits that mean the largest number, as GDAL
        return math.copysign(limit, value)
    with np.errstate(over="ignore"):
        rounded = float(real.type(value))
    if real.itemsize == 2 and math.isfinite(value) and rounded != value:  # GDAL rounds that of wider floats only
        return None
    return rounded if math.isinf(value) or not math.isinf(rounded) else None


def _integer(text: str, dtype: np.dtype[Any]) -> int | None:
    match = _INTEGER.match(text)
    number = _number(text) or 0.0
    if dtype.itemsize == 8 or (match is not None and len(match[0]) == len(text.rstrip())):
        value = int(match[0]) if match is not None else 0  # of 64 bits, GDAL does not read fractions and exponents
    elif math.isfinite(number):
        value = math.trunc(number)
        if value != number and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
            return None
    else:
        return None
    return value if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max else None


def _number(text: str) -> float | None:
    """Return the number that a text begins with, or None."""
    match = _NUMBER.match(text.replace(",", "."))
    if match is None:
        return None
    if match[1] or match[2]:
        return math.nan if match[1] else -math.inf if "-" in match[0] else math.inf
    return float(match[0])
