"""What a catalogue or a file name says about a COG before its header is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class BandInfo:
    """One band (sample) of a source, as its catalogue describes it; None is "not said"."""

    name: str
    """As a variable: STAC's common name where it is unambiguous, else the asset key or the name in the file."""
    aliases: tuple[str, ...] = ()
    """Further names that select the band (the asset key, the provider's band name)."""
    description: str | None = None
    nodata: float | None = None
    """May be NaN."""
    scale: float | None = None
    offset: float | None = None
    """Physical value = stored value * scale + offset."""
    units: str | None = None
    classes: tuple[tuple[int, str], ...] = ()
    """(value, meaning) of a categorical band, from STAC's classification extension or file:values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One COG and what is known of it without opening it."""

    href: str
    """Absolute URL, or absolute path of a local file; never signed."""
    item: str
    """STAC item id; the file's stem where there is no STAC."""
    collection: str | None = None
    asset: str = ""
    """STAC asset key; empty for a plain file."""
    time: np.datetime64 | None = None
    """Acquisition (UTC, microseconds), or None for a layer without time."""
    bands: tuple[BandInfo, ...] = ()
    """One a sample, in file order; empty where only the header can say."""
    properties: Mapping[str, Any] = field(default_factory=dict)
    """STAC item properties (JSON values)."""
    claims: Mapping[str, Any] = field(default_factory=dict)
    """What the catalogue says of this file that its header can be checked against: bbox, proj:*, data types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBand:
    """One band of the cube as one source gives it, and its effective encoding: by the file, the catalogue or a rule."""

    name: str
    """Of the cube's band."""
    sample: int
    """Position in the file."""
    time: np.datetime64 | None = None
    """Where bands of one file are dates (UTC, microseconds); None is the source's own time."""
    nodata: float | None = None
    """The stored number that means "no data"; an int for integers, NaN possible."""
    scale: float = 1.0
    offset: float = 0.0
    """Physical value = stored number * scale + offset."""
