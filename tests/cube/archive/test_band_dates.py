"""Bands as dates, in files as GDAL writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cube.archive.band_dates import dates_of_bands
from cube.errors import BuildError, SelectionError
from cube.scan import ScannedSource, scan_sources
from cube.source import BandInfo, Source
from cube.testing import write_cog


def _scan(folder: Path, descriptions: Sequence[str], samples: int | None = None) -> ScannedSource:
    pixels = np.zeros((samples or len(descriptions), 16, 16), "uint8")
    path = write_cog(folder / "stack.tif", pixels, descriptions=descriptions, blocksize=128)
    (scanned,), errors = scan_sources([Source(href=path.as_posix(), item="stack")])
    assert errors == []
    return scanned


@pytest.mark.parametrize(
    ("spec", "descriptions", "dates"),
    [
        ("%Y", ["2001", "2002", "2000"], ["2001", "2002", "2000"]),
        ("%Y", ["y2001_ndvi", "y2002_ndvi"], ["2001", "2002"]),
        ("%Y%m%d", ["NDVI 20240229 v12", "NDVI 20240301 v12"], ["2024-02-29", "2024-03-01"]),
        ("%Y-%m-%dT%H:%M:%SZ", ["2024-01-01T10:20:30Z"], ["2024-01-01T10:20:30"]),
        ("%b %Y", ["Jan 2001", "Feb 2001"], ["2001-01", "2001-02"]),
        ("%Y%j", ["MOD13_2001033"], ["2001-02-02"]),
        ("doy%Y", ["2010: doy2001", "2010: doy2002"], ["2001", "2002"]),
        ("%Y", ["2001 (2001)", "tile 120021 of 2002"], ["2001", "2002"]),
    ],
)
def test_dates_stand_anywhere_in_a_description(
    tmp_path: Path, spec: str, descriptions: list[str], dates: list[str]
) -> None:
    found = dates_of_bands(_scan(tmp_path, descriptions), f"time:{spec}")
    assert list(found) == [np.datetime64(date, "us") for date in dates]
    assert {date.dtype for date in found} == {np.dtype("datetime64[us]")}


def test_a_catalogue_says_what_the_file_does_not(tmp_path: Path) -> None:
    scanned = _scan(tmp_path, [], samples=3)
    bands = (BandInfo(name="band_2001"), BandInfo(name="b", aliases=("2002",)), BandInfo(name="c", description="2003"))
    described = replace(scanned, source=replace(scanned.source, bands=bands))
    assert [str(date)[:4] for date in dates_of_bands(described, "time:%Y")] == ["2001", "2002", "2003"]


@pytest.mark.parametrize(
    ("descriptions", "words"),
    [
        ([""] * 3, r"band 1 of 3 has no such date .* are '', '', ''"),
        (["2001", "red", "2003"], r"stack\.tif: bands_as='time:%Y': band 2 of 3 .* are '2001', 'red', '2003'"),
        (["2001", "2001 to 2003"], r"band 2 of 2"),
        (["20010101"], r"band 1 of 1"),
        ([str(year) for year in range(2001, 2007)] + ["?"], r"band 7 of 7 .* '2004', '2005', …"),
        (["red_2001", "nir_2001"], r"bands 1 and 2 are both of 2001-01-01, so the bands are not dates alone"),
    ],
)
def test_errors_name_the_file_and_what_it_says(tmp_path: Path, descriptions: list[str], words: str) -> None:
    with pytest.raises(BuildError, match=words):
        dates_of_bands(_scan(tmp_path, descriptions), "time:%Y")


@pytest.mark.parametrize("bands_as", ["", "time", "time:", "%Y", "date:%Y", "time:%m%d", "time:2001"])
def test_what_bands_are_must_be_said_as_a_format(tmp_path: Path, bands_as: str) -> None:
    with pytest.raises(SelectionError, match=r"write time: and the format"):
        dates_of_bands(_scan(tmp_path, ["2001"]), bands_as)


def test_unknown_directives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"bands_as has %Q in its date; it may hold %Y, %m"):
        dates_of_bands(_scan(tmp_path, ["2001"]), "time:%Y%Q")
