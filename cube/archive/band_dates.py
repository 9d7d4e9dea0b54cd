"""Files whose bands are dates: the time of each sample, by what the file or its catalogue calls it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from cube.archive.dates import date_regex, parse_date
from cube.errors import BuildError, SelectionError
from cube.scan import ScannedSource

_MOST_NAMED = 5


def dates_of_bands(scanned: ScannedSource, bands_as: str) -> tuple[np.datetime64, ...]:
    """The time (UTC, microseconds) of each sample of a file, in file order, all different.

    A date may stand anywhere in the description of a band, as long as no further digits touch it and there is no
    other: `time:%Y` finds 2001 in "2001" and "y2001_ndvi". What the file leaves out, the names of the bands in its
    catalogue may say.

    Args:
        scanned: The file's header and what its catalogue says of it.
        bands_as: "time:" and strptime's format.

    Raises:
        SelectionError: `bands_as` is not of that form.
        BuildError: A band has no date, or two bands have the same one; the message names the file and what it says.
    """
    spec = _spec(bands_as)
    header, source = scanned.header, scanned.source
    texts = [list(_texts(scanned, index)) for index in range(header.samples)]
    found = [next((date for text in of_band if (date := _date(text, spec)) is not None), None) for of_band in texts]
    dates = [date for date in found if date is not None]
    if len(dates) < len(found):
        index = found.index(None)
        said = [of_band[0] if of_band else "" for of_band in texts]
        shown = ", ".join(map(repr, said[:_MOST_NAMED])) + (", …" if len(said) > _MOST_NAMED else "")
        raise BuildError(
            f"{source.href}: bands_as={bands_as!r}: band {index + 1} of {len(found)} has no such date in its "
            f"description; the descriptions are {shown}"
        )
    for index, date in enumerate(dates):
        if date in dates[:index]:
            raise BuildError(
                f"{source.href}: bands_as={bands_as!r}: bands {dates.index(date) + 1} and {index + 1} are both of "
                f"{date!s:.10}, so the bands are not dates alone; split the file by what it shows (gdal_translate -b)"
            )
    return tuple(dates)


def _texts(scanned: ScannedSource, index: int) -> Iterator[str]:
    """What the file and then its catalogue say of a sample."""
    described = scanned.header.descriptions[index] if index < len(scanned.header.descriptions) else None
    bands = scanned.source.bands
    band = bands[index] if index < len(bands) else None
    said = (described, *((band.name, *band.aliases, band.description) if band is not None else ()))
    yield from (text for text in said if text)


def _date(text: str, spec: str) -> np.datetime64 | None:
    """The one date in a text; None if there is none, or more than one."""
    dates = {parse_date(match[0], spec) for match in _search(spec).finditer(text)} - {None}
    return dates.pop() if len(dates) == 1 else None


@lru_cache(maxsize=16)
def _search(spec: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\d)(?:{date_regex(spec, 'bands_as')})(?!\d)")


def _spec(bands_as: str) -> str:
    kind, colon, spec = bands_as.partition(":")
    if kind != "time" or not colon or "%y" not in spec.lower():
        raise SelectionError(
            f"bands_as={bands_as!r}: write time: and the format of the dates, with their year, as time:%Y or "
            "time:%Y-%m-%d"
        )
    return spec
