"""Ways to write a TIFF that the real corpus lacks, each against rasterio: pixels, masks, coordinates, names."""

from __future__ import annotations

import re

import pytest

from scripts.corpus import judge
from tests.contract import described_files, stored_files

FAMILIES = (
    stored_files.compressions,
    stored_files.jpegs,
    stored_files.dtypes,
    stored_files.bits,
    stored_files.photometrics,
    stored_files.layouts,
    stored_files.cogs,
    described_files.places,
    described_files.masks,
    described_files.meanings,
    described_files.references,
)
EVERY = 17
"""Of this many cases in a row, one is not slow."""


def parameters():
    cases = {name: file for family in FAMILIES for name, file in family()}
    return [
        pytest.param(file, id=name, marks=[pytest.mark.slow] if number % EVERY else [])
        for number, (name, file) in enumerate(cases.items())
    ]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning")  # of an alpha that nodata overrules
@pytest.mark.parametrize("file", parameters())
def test_a_file_is_as_rasterio_reads_it(tmp_path, file):
    path = tmp_path / "file.tif"
    file.write(path)
    found = judge(path, tmp_path)
    if file.refusal is None:
        assert found.verdict == "equal", found.reason
    else:
        assert found.verdict == "refused"
        assert re.search(file.refusal, found.reason), found.reason
