"""Formats of dates as regular expressions, and back to moments."""

from __future__ import annotations

import re
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.archive.dates import date_regex, parse_date
from cube.errors import SelectionError

FORMATS = ("%Y", "%Y%m%d", "%y-%j", "%d.%B %Y", "%b%Y", "%Y%m%dT%H%M%S.%f", "100%% (%Y)")


@given(moment=st.datetimes(datetime(1970, 1, 1), datetime(2060, 1, 1)), spec=st.sampled_from(FORMATS))  # noqa: DTZ001
def test_a_format_fits_what_it_writes(moment: datetime, spec: str) -> None:
    text = moment.strftime(spec)
    assert re.fullmatch(date_regex(spec, "it"), text)
    assert parse_date(text, spec) == np.datetime64(datetime.strptime(text, spec), "us")  # noqa: DTZ007


def test_zones_are_undone() -> None:
    assert parse_date("2024-01-01 00:30+0100", "%Y-%m-%d %H:%M%z") == np.datetime64("2023-12-31T23:30", "us")


@pytest.mark.parametrize(("text", "spec"), [("20240230", "%Y%m%d"), ("2024366x", "%Y%j"), ("Mai 2001", "%b %Y")])
def test_no_such_day(text: str, spec: str) -> None:
    assert parse_date(text, spec) is None


def test_unknown_directives_are_refused() -> None:
    with pytest.raises(SelectionError, match="the text has %U in its date; it may hold %Y"):
        date_regex("%Y%U", "the text")
