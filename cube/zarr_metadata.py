"""What Zarr says of a cube: its arrays, their metadata documents in version 2 and 3, and how chunks are encoded."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numcodecs import blosc

from cube import conventions
from cube.grid import Grid
from cube.manifest.open import Manifest
from cube.spec import Band

type ZarrFormat = Literal[2, 3]

CF_VERSION = "CF-1.11"

# Of the codecs that every client has (zarr-python, GDAL, zarrita, numcodecs.js), the fastest by far: 1.0 ms for
# 1024 x 1024 uint16, zstd 1 with shuffle 2.6 ms, gzip 1 5.8 ms; decoded faster, too.
_COMPRESSOR, _LEVEL, _SHUFFLE = "lz4", 5, 1
BLOSC: Mapping[str, Any] = {
    "id": "blosc",
    "cname": _COMPRESSOR,
    "clevel": _LEVEL,
    "shuffle": _SHUFFLE,
    "blocksize": 0,
}
"""The one codec that chunks are written with, as version 2 names it."""


def encode_chunk(values: np.ndarray) -> bytes:
    """Return a chunk's bytes, the same in both versions; `values` has the whole chunk's shape."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    encoded: bytes = blosc.compress(little, _COMPRESSOR.encode(), _LEVEL, _SHUFFLE, 0, little.dtype.itemsize)
    return encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrArray:
    """One array as its metadata describes it."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    attributes: Mapping[str, Any]
    """JSON values, `_FillValue` left out."""
    fill: float | int | None = None
    """The stored number that readers turn into "missing", or None where they must not."""
    padding: float | int = 0
    """What the part of a chunk beyond the array's edge holds."""
    compressor: Mapping[str, Any] | None = None
    """Of version 2; the chunks of version 3 are all Blosc."""
    filters: tuple[Mapping[str, Any], ...] = ()
    """Of version 2."""
    crs: Mapping[str, Any] | None = None
    """GDAL's `_CRS` attribute, of version 2: GDAL up to 3.11 reads no other version and finds the CRS nowhere else.

    Newer ones follow `grid_mapping`, and an attribute that is a mapping keeps xarray from writing netCDF."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks along each dimension."""
        return tuple(-(-length // chunk) for length, chunk in zip(self.shape, self.chunks, strict=True))


def band_array(band: Band, grid: Grid, times: np.ndarray | None, chunks: tuple[int, int]) -> ZarrArray:
    """Return one band's array, in chunks of one date and (rows, columns), Blosc and without filters."""
    attributes = conventions.band_attributes(band)
    # Beside "grid_mapping", as that alone does not make spatial_ref a coordinate after a plain open.
    centres = (conventions.X_CENTRE, conventions.Y_CENTRE) if grid.is_rotated else ()
    attributes["coordinates"] = " ".join((conventions.SPATIAL_REF, *centres))
    timeless = times is None
    return ZarrArray(
        name=band.name,
        dims=("y", "x") if timeless else ("time", "y", "x"),
        shape=grid.shape if times is None else (len(times), *grid.shape),
        chunks=chunks if timeless else (1, *chunks),
        dtype=np.dtype(band.dtype),
        attributes=attributes,
        fill=conventions.fill_value(band),
        padding=band.hole,
        compressor=BLOSC,
    )


def coordinate_arrays(grid: Grid, times: np.ndarray | None) -> list[tuple[ZarrArray, np.ndarray]]:
    """Return the coordinates of a cube and their values: each is one chunk; those by pixel are `centre_arrays`."""
    of_y, of_x = conventions.axis_attributes(grid)
    found: list[tuple[tuple[str, ...], str, np.ndarray, dict[str, Any]]] = [
        ((), conventions.SPATIAL_REF, np.array(0, "int64"), conventions.crs_attributes(grid))
    ]
    if not grid.is_rotated:
        found = [(("y",), "y", grid.ys, of_y), (("x",), "x", grid.xs, of_x), *found]
    if times is not None:
        found.insert(0, (("time",), "time", *conventions.encode_times(times)))
    return [
        (
            ZarrArray(
                name=name,
                dims=dims,
                shape=values.shape,
                chunks=values.shape,
                dtype=values.dtype,
                attributes=attributes,
                compressor=BLOSC,
            ),
            values,
        )
        for dims, name, values, attributes in found
    ]


def centre_arrays(grid: Grid, chunks: tuple[int, int]) -> list[ZarrArray]:
    """Return xc and yc of a rotated grid, in chunks of (rows, columns); none of any other."""
    if not grid.is_rotated:
        return []
    of_y, of_x = conventions.axis_attributes(grid)
    return [
        ZarrArray(
            name=name,
            dims=("y", "x"),
            shape=grid.shape,
            chunks=chunks,
            dtype=np.dtype("float64"),
            attributes={key: value for key, value in attributes.items() if key != "axis"},
            compressor=BLOSC,
        )
        for name, attributes in ((conventions.X_CENTRE, of_x), (conventions.Y_CENTRE, of_y))
    ]


def root_attributes(manifest: Manifest) -> dict[str, Any]:
    """Return the attributes of the group that holds the arrays."""
    return dict(manifest.attributes) | {"Conventions": CF_VERSION}


def render_v3(
    attributes: Mapping[str, Any], arrays: Iterable[ZarrArray], *, others: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Return version 3's documents by key; the group's holds all others, so that opening takes one request.

    Args:
        attributes: Of the group.
        arrays: In it.
        others: Documents of further arrays, by name.
    """
    documents = {array.name: _array_v3(array) for array in arrays} | dict(others or {})
    root = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": dict(attributes),
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": documents},
    }
    return {"zarr.json": _dump(root)} | {f"{name}/zarr.json": _dump(document) for name, document in documents.items()}


def render_v2(
    attributes: Mapping[str, Any], arrays: Iterable[ZarrArray], *, others: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Return version 2's documents by key, `.zmetadata` among them; arguments as of `render_v3`, others by key."""
    documents: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": dict(attributes), **(others or {})}
    for array in arrays:
        documents[f"{array.name}/.zarray"] = _array_v2(array)
        attributes_v2 = {"_ARRAY_DIMENSIONS": list(array.dims)} | ({} if array.crs is None else {"_CRS": array.crs})
        documents[f"{array.name}/.zattrs"] = dict(array.attributes) | attributes_v2
    rendered = {key: _dump(document) for key, document in documents.items()}
    return rendered | {".zmetadata": _dump({"zarr_consolidated_format": 1, "metadata": documents})}


def _array_v3(array: ZarrArray) -> dict[str, Any]:
    attributes = dict(array.attributes)
    if array.fill is not None:
        attributes["_FillValue"] = _fill_attribute(array.fill, array.dtype)
    itemsize = array.dtype.itemsize
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": array.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(array.chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _number(array.padding, array.dtype),
        "codecs": [
            {"name": "bytes"} | ({"configuration": {"endian": "little"}} if itemsize > 1 else {}),
            {
                "name": "blosc",
                "configuration": {
                    "cname": _COMPRESSOR,
                    "clevel": _LEVEL,
                    "shuffle": "shuffle",
                    "typesize": itemsize,
                    "blocksize": 0,
                },
            },
        ],
        "attributes": attributes,
        "dimension_names": list(array.dims),
        "storage_transformers": [],
    }


def _array_v2(array: ZarrArray) -> dict[str, Any]:
    dtype = array.dtype if array.dtype.byteorder == ">" else array.dtype.newbyteorder("<")
    return {
        "zarr_format": 2,
        "shape": list(array.shape),
        "chunks": list(array.chunks),
        "dtype": dtype.str,
        # Not `padding`: xarray takes version 2's fill value for what is missing.
        "fill_value": None if array.fill is None else _number(array.fill, array.dtype),
        "order": "C",
        "filters": [dict(each) for each in array.filters] or None,
        "compressor": None if array.compressor is None else dict(array.compressor),
        "dimension_separator": ".",
    }


def _number(value: float, dtype: np.dtype) -> Any:
    """Return a fill value as both versions write it: JSON has no NaN, no infinities and no complex numbers."""
    if dtype.kind == "c":
        return [_number(part, np.dtype("f8")) for part in (complex(value).real, complex(value).imag)]
    if dtype.kind == "b":
        return bool(value)
    if dtype.kind != "f":
        return int(value)
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _fill_attribute(value: float, dtype: np.dtype) -> int | str:
    """Return version 3's `_FillValue` attribute as xarray's FillValueCoder writes it."""
    return int(value) if dtype.kind != "f" else base64.standard_b64encode(struct.pack("<d", value)).decode()


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
