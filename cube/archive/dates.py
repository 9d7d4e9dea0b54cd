"""Dates in texts, by strptime's formats."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np

from cube.errors import SelectionError

# The `parse` library reads the %m and %d of 20220111x as one digit each, turns {tile:d} into a number without its
# zeros and raises on a day 99; fixed widths and strptime do not.
_DIRECTIVES = {
    "Y": r"\d{4}",
    **dict.fromkeys("mdHMSy", r"\d{2}"),
    "j": r"\d{3}",
    "f": r"\d{1,6}",
    "b": r"[A-Za-z]{3}",
    "B": r"[A-Za-z]+",
    "z": r"(?:Z|[+-]\d{2}:?\d{2})",
    "%": "%",
}


def date_regex(spec: str, what: str) -> str:
    """A regular expression, without groups, of the texts that a format fits.

    Args:
        spec: strptime's format.
        what: What an error calls the text in which the format was given.

    Raises:
        SelectionError: there is such a directive.
    """
    pieces = re.split(r"%(.)", spec)
    if unknown := set(pieces[1::2]) - set(_DIRECTIVES):
        raise SelectionError(f"{what} has %{min(unknown)} in its date; it may hold %{', %'.join(_DIRECTIVES)}")
    return "".join(_DIRECTIVES[piece] if index % 2 else re.escape(piece) for index, piece in enumerate(pieces))


def parse_date(text: str, spec: str) -> np.datetime64 | None:
    """The moment (UTC, microseconds) that a text means in a format; None if there is no such day."""
    try:
        moment = datetime.strptime(text, spec)  # noqa: DTZ007  # names are in UTC unless they say otherwise
    except ValueError:
        return None
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")
