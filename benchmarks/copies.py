"""Copies of an archive in plain Zarr: in the codec and chunks of the COGs, and rewritten for the analysis."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import rasterio
import zarr
from imagecodecs.numcodecs import Deflate, Delta

from benchmarks.archives import LocalArchive

_RECHUNKED_BYTES = 3 << 20


def write_copies(archive: LocalArchive) -> Mapping[str, str]:
    """Return the paths of the copies under the served folder, which are written where they are not there yet."""
    paths = {"zarr_copy": "copy.zarr", "zarr_rechunked": "rechunked.zarr"}
    if archive.recipe.distinct is not None or archive.recipe.zones:
        return {}  # the headers alone matter; or there is no one grid
    for name, path in paths.items():
        target = archive.served / path
        if target.exists():
            continue
        writing = target.with_suffix(f".{os.getpid()}")
        _write(archive, writing, rechunked=name == "zarr_rechunked")
        try:
            writing.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(writing)
    return paths


def _write(archive: LocalArchive, target: Path, *, rechunked: bool) -> None:
    group = zarr.open_group(target, mode="w", zarr_format=2)
    tile, dates, size = archive.recipe.tile, len(archive.dates), archive.size
    for band in archive.bands:
        dtype = np.dtype("u1" if band == "scl" else "u2")
        chunks = (1, tile, tile)
        coding: dict[str, Any] = {
            "filters": [Delta(shape=chunks, dtype=dtype.str, axis=-1)],
            "compressors": Deflate(level=6),
        }
        if rechunked:
            edge = 1 << int(np.log2((_RECHUNKED_BYTES / dates / dtype.itemsize) ** 0.5))
            chunks = (dates, min(edge, size), min(edge, size))
            coding = {"compressors": numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)}
        array = group.create_array(band, shape=(dates, size, size), chunks=chunks, dtype=dtype, fill_value=0, **coding)
        for top in range(0, size, chunks[1]):
            rows = slice(top, min(size, top + chunks[1]))
            array[:, rows] = np.stack([_rows(archive.path(band, date), rows) for date in archive.dates])
    zarr.consolidate_metadata(target, zarr_format=2)


def _rows(path: Path, rows: slice) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1, window=((rows.start, rows.stop), (0, file.width)))
