"""What the peers that read with GDAL share: its settings, and a way to forget what an earlier run read."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import rasterio

VARIABLES = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
    "GDAL_NUM_THREADS": "ALL_CPUS",
}


def configure(**changed: str) -> str:
    """Set GDAL's variables for this process, some of them changed, and return them in words."""
    chosen = VARIABLES | changed
    os.environ.update(chosen)
    return ", ".join(f"{name}={value}" for name, value in chosen.items())


def forget() -> None:
    """Empty GDAL's caches of requests and of blocks.

    rasterio offers neither, so GDAL's own functions are called in the library that its wheel brings.

    Raises:
        OSError: There is no such library, as where rasterio was built against a GDAL of the system.
    """
    gdal = _library()
    gdal.VSICurlClearCache()
    while gdal.GDALFlushCacheBlock():
        pass


@functools.cache
def _library() -> ctypes.CDLL:
    folder = Path(rasterio.__file__).parent
    found = [*folder.with_name("rasterio.libs").glob("libgdal*"), *(folder / ".dylibs").glob("libgdal*")]
    if len(found) != 1:
        raise OSError(f"GDAL's caches cannot be emptied: {len(found)} GDAL libraries beside {folder}, not 1")
    return ctypes.CDLL(str(found[0]))
