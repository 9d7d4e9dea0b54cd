"""`cube.crs` against what rasterio says of the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyproj
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from cube.crs import crs_from_geokeys, height_unit
from cube.errors import HeaderError
from cube.tiff.header import GeoKeys, Header, parse_header
from cube.tiff.ifd import ByteParts

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

FOLDER = Path(os.environ.get("CUBE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
CORPUS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.tif*")) or ["absent"]
DAMAGED = "rasterio__rasterio/tests__data__corrupt.tif"


def parse(data: bytes) -> Header:
    parts = ByteParts(len(data))
    parts.add(0, data)
    return parse_header("some.tif", parts)


def keys(*rows: tuple[int, int, int, int], minor: int = 0, **tables: object) -> GeoKeys:
    return GeoKeys(directory=(1, 1, minor, len(rows), *(number for row in rows for number in row)), **tables)


def short(key: int, value: int) -> tuple[int, int, int, int]:
    return key, 0, 1, value


def crs_of(dataset: rasterio.DatasetReader) -> pyproj.CRS | None:
    found = dataset.crs or dataset.gcps[1]
    return pyproj.CRS.from_wkt(found.to_wkt()) if found else None


@pytest.mark.parametrize("name", CORPUS)
def test_real_files_have_the_crs_that_rasterio_reads(test_data: Path, name: str) -> None:
    data = (test_data / name).read_bytes()
    if name == DAMAGED:
        with pytest.raises(HeaderError):
            parse(data)
        return
    header = parse(data)
    found = None if header.geokeys is None else crs_from_geokeys(header.geokeys)
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(test_data / name) as dataset:
        assert found == crs_of(dataset)


@pytest.mark.parametrize(
    "crs",
    [
        "EPSG:32633", "EPSG:4326", "EPSG:4258", "EPSG:3857", "EPSG:3035", "EPSG:27700", "EPSG:2154", "EPSG:3577",
        "EPSG:4979", "EPSG:2263", "EPSG:6346", "EPSG:4326+5773", "EPSG:25832+7837", "EPSG:4807", "EPSG:31467",
        "ESRI:54009", "ESRI:102008", "IAU_2015:30100", "+proj=laea +lat_0=10 +lon_0=20 +units=km +ellps=GRS80",
        "+proj=sinu +R=6371007.181", "+proj=longlat +a=6378137 +rf=300", "+proj=geos +h=35786023 +lon_0=-75 +sweep=x",
    ],
)  # fmt: skip
def test_what_gdal_writes_is_what_gdal_reads(crs: str) -> None:
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", count=1, dtype="uint8", width=16, height=16, crs=crs, transform=from_origin(0, 9, 1, 1)
        ):
            pass
        header = parse(file.read())
        with file.open() as dataset:
            wanted = crs_of(dataset)
    assert wanted is not None
    assert header.geokeys is not None
    assert crs_from_geokeys(header.geokeys) == wanted


@pytest.mark.parametrize(
    ("geokeys", "code"),
    [
        (keys(short(1024, 1), short(1025, 1), short(3072, 32633)), 32633),
        (keys(short(1024, 2), short(1025, 2), short(2048, 4326), short(2054, 9102)), 4326),
        (keys(short(1024, 1), short(3072, 2263)), 2263),
        # Deprecated, and its replacement.
        (keys(short(1024, 1), short(3072, 3785)), 3857),
        (keys(short(1024, 1), short(3072, 2085)), 3795),
        # A unit of its own: no longer what the code says.
        (keys(short(1024, 1), short(3072, 32633), short(3076, 9002)), None),
        (keys(short(1024, 1), short(3072, 32767)), None),
    ],
)
def test_codes_and_what_overrides_them(geokeys: GeoKeys, code: int | None) -> None:
    found = crs_from_geokeys(geokeys)
    assert (found.to_epsg() if found is not None else None) == code


def test_no_crs() -> None:
    assert crs_from_geokeys(GeoKeys(directory=())) is None
    assert crs_from_geokeys(GeoKeys(directory=(1, 1, 0, 9, 1024, 0, 1, 1))) is None


def test_keys_that_name_no_place_are_a_local_crs_as_for_gdal() -> None:
    for geokeys in keys(short(1025, 2)), keys(short(1024, 1), short(3072, 1)):
        found = crs_from_geokeys(geokeys)
        assert found is not None
        assert found.is_engineering


def test_citations_in_other_encodings_do_not_hinder() -> None:
    geokeys = keys(short(1024, 1), (1026, 34737, 6, 0), short(3072, 2154), short(3076, 9003), ascii=b"Espa\xf1a|\0")
    assert crs_from_geokeys(geokeys) is not None


def test_equal_keys_share_one_crs() -> None:
    rows = short(1024, 1), short(3072, 32717)
    assert crs_from_geokeys(keys(*rows)) is crs_from_geokeys(keys(*rows))


def test_plain_codes_do_not_import_gdal() -> None:
    script = (
        "import sys; from cube.crs import crs_from_geokeys as crs; from cube.tiff.header import GeoKeys;"
        "assert crs(GeoKeys(directory=(1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633))).to_epsg() == 32633;"
        "sys.exit('rasterio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


ROWS = [short(1024, 1), short(1025, 1), short(2048, 4326), short(3072, 32633), short(3076, 9001), short(4096, 5773)]


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(ROWS) | st.tuples(*[st.integers(0, 65535)] * 4), max_size=6),
    st.lists(st.floats(), max_size=4),
    st.binary(max_size=12),
    st.integers(0, 8),
)
def test_any_keys_are_a_crs_or_none(
    rows: list[tuple[int, int, int, int]], doubles: list[float], text: bytes, count: int
) -> None:
    directory = (1, 1, 0, count, *(number for row in sorted(rows) for number in row))
    found = crs_from_geokeys(GeoKeys(directory=directory, doubles=tuple(doubles), ascii=text))
    assert found is None or isinstance(found, pyproj.CRS)


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4979", "EPSG:4326+3855", "EPSG:7415", "EPSG:2263+6360"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_unit_of_heights_is_that_of_bands_for_gdal(crs: str, version: str) -> None:
    profile = {"count": 2, "width": 1, "height": 1, "dtype": "uint8", "transform": from_origin(5, 5, 1, 1)}
    with MemoryFile() as file:
        with file.open(driver="GTiff", crs=crs, geotiff_version=version, **profile):
            pass
        with file.open() as dataset:
            units = {unit or None for unit in dataset.units}
        geokeys = parse(file.read()).geokeys
    assert geokeys is not None
    assert {height_unit(geokeys)} == units
