"""GeoKeys or text -> the CRS that they name."""

from __future__ import annotations

import math
import struct
from functools import lru_cache

import pyproj
from pyproj.exceptions import CRSError

from cube.tiff.header import GeoKeys

_MODEL_TYPE, _GEODETIC, _PROJECTED = 1024, 2048, 3072
_ASIDES = {1025, 1026, 2049, 3073}  # raster type and citations
_ANGULAR_UNITS, _SEMI_MAJOR, _INVERSE_FLATTENING, _LINEAR_UNITS = 2054, 2057, 2059, 3076
_VERTICAL = (4096, 4098, 4099)  # CRS, datum, units
_METRE, _DEGREE = 9001, 9102
_CODES = range(1024, 32767)


@lru_cache(maxsize=4096)
def crs_from_geokeys(geokeys: GeoKeys) -> pyproj.CRS | None:
    """Return the CRS that GDAL finds in the keys, or None if it finds none.

    Cached by value: a large archive has few distinct keys.
    """
    return _plain_crs(geokeys) or _gdal_crs(geokeys)


@lru_cache(maxsize=4096)
def height_unit(geokeys: GeoKeys) -> str | None:
    """Return the unit of heights that GDAL finds in the keys, which it takes for that of all bands that name none."""
    if geokeys.numbers().keys().isdisjoint(_VERTICAL):
        return None
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile

    try:
        with MemoryFile(_tiff(geokeys)) as file, file.open(driver="GTiff") as dataset:
            return dataset.units[0] or None
    except RasterioError:
        return None


@lru_cache(maxsize=256)
def crs_from_text(text: str) -> pyproj.CRS | None:
    """Return the CRS that "EPSG:32633", WKT or PROJ text names, or None if it names none."""
    try:
        return pyproj.CRS.from_user_input(text)
    except CRSError:
        return None


def _plain_crs(geokeys: GeoKeys) -> pyproj.CRS | None:
    """Return the CRS of an EPSG code that stands alone, or None where GDAL has to say what the keys mean."""
    keys = {key: value for key, value in geokeys.numbers().items() if key not in _ASIDES}
    model = keys.pop(_MODEL_TYPE, None)
    code = keys.pop(_PROJECTED if model == 1 else _GEODETIC, 0)
    # A citation that begins with "ESRI PE String" holds a whole CRS.
    if model not in (1, 2) or code not in _CODES or b"ESRI" in geokeys.ascii:
        return None
    try:
        crs = pyproj.CRS.from_epsg(int(code))
    except CRSError:
        return None
    # GDAL replaces deprecated codes, lets units and ellipsoids override those of the code, and knows no lon-lat codes.
    ellipsoid, axis = crs.ellipsoid, crs.axis_info[0]
    is_common = axis.unit_name == "metre" if model == 1 else (axis.unit_name, axis.direction) == ("degree", "north")
    if crs.is_deprecated or ellipsoid is None or not is_common:
        return None
    same = {
        _ANGULAR_UNITS: _DEGREE,
        _LINEAR_UNITS: _METRE,
        _SEMI_MAJOR: ellipsoid.semi_major_metre,
        _INVERSE_FLATTENING: ellipsoid.inverse_flattening,
    }
    return crs if all(math.isclose(value, same.get(key, math.nan)) for key, value in keys.items()) else None


def _gdal_crs(geokeys: GeoKeys) -> pyproj.CRS | None:
    """Return what GDAL makes of a file that has these keys and nothing else."""
    # rasterio takes half a second to import, and archives of plain EPSG codes never come here.
    from rasterio.enums import WktVersion
    from rasterio.errors import CRSError as RasterioCRSError
    from rasterio.io import MemoryFile

    try:
        with MemoryFile(_tiff(geokeys)) as file, file.open(driver="GTiff") as dataset:
            found = dataset.crs
        # WKT 2, since version 1 cannot say all methods; both compare equal where it can.
        return pyproj.CRS.from_wkt(found.to_wkt(version=WktVersion.WKT2_2019)) if found else None
    except (RasterioCRSError, CRSError):
        return None  # keys that no WKT can express: rasterio cannot even open such a file


def _tiff(geokeys: GeoKeys) -> bytes:
    """Return a TIFF of one pixel with these keys; scale and tiepoint only keep GDAL from warning that it has none."""
    values = [
        (33550, 12, "d", (1.0, 1.0, 0.0)),
        (33922, 12, "d", (0.0,) * 6),
        (34735, 3, "H", geokeys.directory),
        (34736, 12, "d", geokeys.doubles),
        (34737, 2, "B", tuple(min(byte, 127) for byte in geokeys.ascii)),  # rasterio fails on other bytes
    ]
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 1)]
    data = bytes(8)  # the pixel, padded
    for tag, kind, code, items in values:
        if items:
            entries.append((tag, kind, len(items), 8 + len(data)))
            packed = struct.pack(f"<{len(items)}{code}", *items)
            data += packed + bytes(-len(packed) % 8 + 8)  # never so short that the value would stand in the entry
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + table + bytes(4)
