"""What others wrote as Zarr documents and chunks that every client reads: to a server the same as `CubeStore`."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from xarray.backends.zarr import FillValueCoder
from zarr.storage import MemoryStore

from cube.errors import CubeError, ReferencesError
from cube.foreign.find import Foreign
from cube.foreign.open import find_version, open_group
from cube.io.stores import redact
from cube.store import Chunk, parse_key
from cube.zarr_metadata import BLOSC, ZarrArray, ZarrFormat, encode_chunk, render_v2, render_v3

logger = logging.getLogger(__name__)

_NUMBERS = "iufcb"
_MOST_OTHER_BYTES = 16 * 1024 * 1024
"""Of an array of no numbers (names, say), which is held in memory as a whole."""
_MOST_CHUNK_BYTES = 256 * 1024 * 1024


class ForeignStore:
    """One group of arrays that others wrote; never changes, safe to share."""

    level = 0

    def __init__(self, foreign: Foreign) -> None:
        """Open it and render all metadata; reads no numbers.

        Raises:
            ReferencesError: It cannot be opened, or nothing in it can be served.
            ReadError: It cannot be read.
        """
        self.foreign = foreign
        self.version = find_version(foreign)
        group = open_group(foreign)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._described: dict[str, ZarrArray] = {}
        others: dict[str, zarr.Array[Any]] = {}
        for name, array in group.arrays():
            problem = _problem(array)
            if problem is not None:
                logger.warning("%s: array %s is not served: %s", redact(foreign.url), name, problem)
            elif array.dtype.kind in _NUMBERS:
                self._arrays[name], self._described[name] = array, _describe(name, array)
            else:
                others[name] = array
        if not self._arrays:
            raise ReferencesError(f"{redact(foreign.url)} holds no array of numbers that can be served")
        attributes, arrays = _plain(group.attrs.asdict()), self._described.values()
        of_others: dict[ZarrFormat, tuple[dict[str, Any], dict[str, bytes]]] = {
            2: _copy(others, 2),
            3: _copy(others, 3),
        }
        self._keys: dict[ZarrFormat, dict[str, bytes]] = {
            2: render_v2(attributes, arrays, others=of_others[2][0]) | of_others[2][1],
            3: render_v3(attributes, arrays, others=of_others[3][0]) | of_others[3][1],
        }

    @functools.cached_property
    def tag(self) -> str:
        """A short hash that changes whenever the bytes of some key may: for HTTP's ETags."""
        digest = hashlib.sha256(f"{self.foreign.url} {self.version}".encode())
        for documents in self._keys.values():
            for key, document in documents.items():
                digest.update(key.encode() + document)
        return digest.hexdigest()[:16]

    def find(self, key: str, zarr_format: ZarrFormat) -> bytes | Chunk | None:
        """Return what a key names without any input or output; see `CubeStore.find`."""
        found = self._keys[zarr_format].get(key)
        return found if found is not None else parse_key(key, zarr_format, self._described)

    async def read_chunk(self, chunk: Chunk) -> bytes:
        """Return a chunk that `find` gave, read and encoded; may be awaited on any event loop.

        Raises:
            CubeError: It could not be read.
        """
        return await asyncio.to_thread(self._read_chunk, chunk)

    def _read_chunk(self, chunk: Chunk) -> bytes:
        described = self._described[chunk.band]
        corners = [i * length for i, length in zip(chunk.position, described.chunks, strict=True)]
        ends = zip(corners, described.chunks, described.shape, strict=True)
        selection = tuple(slice(start, min(start + length, whole)) for start, length, whole in ends)
        try:
            block = np.asarray(self._arrays[chunk.band][selection])
        except CubeError:
            raise
        except Exception as error:  # of any codec, and of Icechunk's own reader
            raise ReferencesError(
                f"chunk {chunk.position} of {chunk.band!r} of {redact(self.foreign.url)} could not be read: "
                f"{redact(str(error).split(chr(10), 1)[0])}"
            ) from error
        if block.shape != described.chunks:
            whole = np.full(described.chunks, described.padding, described.dtype)
            whole[tuple(slice(0, length) for length in block.shape)] = block
            block = whole
        return encode_chunk(block.astype(described.dtype, copy=False))


def _describe(name: str, array: zarr.Array[Any]) -> ZarrArray:
    """Return an array of numbers as it is served."""
    attributes = array.attrs.asdict()
    dtype = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
    fill = _fill(array, attributes)
    padding = array.fill_value if array.fill_value is not None else 0
    return ZarrArray(
        name=name,
        dims=_dims(name, array, attributes),
        shape=array.shape,
        chunks=tuple(max(1, min(chunk, length)) for chunk, length in zip(array.chunks, array.shape, strict=True)),
        dtype=dtype,
        attributes=_plain({key: value for key, value in attributes.items() if key not in _OF_ZARR}),
        fill=fill,
        padding=padding if fill is None else fill,
        compressor=BLOSC,
    )


_OF_ZARR = frozenset({"_ARRAY_DIMENSIONS", "_FillValue", "_CRS"})


def _dims(name: str, array: zarr.Array[Any], attributes: Mapping[str, Any]) -> tuple[str, ...]:
    named = attributes.get("_ARRAY_DIMENSIONS") or getattr(array.metadata, "dimension_names", None) or ()
    if len(named) == array.ndim and all(isinstance(each, str) for each in named):
        return tuple(named)
    return tuple(f"{name}_dim_{i}" for i in range(array.ndim))


def _fill(array: zarr.Array[Any], attributes: Mapping[str, Any]) -> Any:
    """Return the stored number that xarray turns into "missing", None where there is none."""
    if array.metadata.zarr_format == 3:
        value = attributes.get("_FillValue")
        return None if value is None else FillValueCoder.decode(value, array.dtype)
    value = attributes.get("_FillValue", array.metadata.fill_value)
    return float("nan") if value == "NaN" else value


def _problem(array: zarr.Array[Any]) -> str | None:
    """Return why an array cannot be served."""
    if not all(array.shape):
        return f"it is empty: {array.shape}"
    try:
        size = math.prod(array.chunks) * array.dtype.itemsize
    except NotImplementedError as error:  # chunks of several sizes
        return str(error)
    if size > _MOST_CHUNK_BYTES:
        return f"its chunks have {size:,} bytes, more than {_MOST_CHUNK_BYTES:,}"
    if array.dtype.kind not in _NUMBERS and math.prod(array.shape) * array.dtype.itemsize > _MOST_OTHER_BYTES:
        return f"{math.prod(array.shape):,} values of {array.dtype} are too many"
    return None


def _copy(arrays: Mapping[str, zarr.Array[Any]], zarr_format: ZarrFormat) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the documents and the chunks of arrays of no numbers, written anew by zarr."""
    store = MemoryStore()
    for name, array in arrays.items():
        attributes = array.attrs.asdict()
        dims = _dims(name, array, attributes)
        plain = _plain({key: value for key, value in attributes.items() if key not in _OF_ZARR})
        zarr.create_array(
            store,
            name=name,
            data=np.asarray(array[...]),
            zarr_format=zarr_format,
            dimension_names=dims if zarr_format == 3 else None,
            attributes=plain if zarr_format == 3 else plain | {"_ARRAY_DIMENSIONS": list(dims)},
        )
    keys = {key: buffer.to_bytes() for key, buffer in store._store_dict.items()}  # noqa: SLF001 - zarr's way to list is async
    named = {key: key.rpartition("/")[2] for key in keys if key.partition("/")[0] in arrays}
    documents = {key for key, last in named.items() if last in ("zarr.json", ".zarray", ".zattrs")}
    rendered = {
        key.removesuffix("/zarr.json") if zarr_format == 3 else key: json.loads(keys[key]) for key in sorted(documents)
    }
    return rendered, {key: keys[key] for key in named.keys() - documents}


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes as JSON has them: numbers that are none become text, but for those that say what is missing."""
    found = {}
    for key, value in attributes.items():
        is_number = not (isinstance(value, float) and not math.isfinite(value))
        if is_number:
            found[key] = value
        elif key != "missing_value":  # NaN is missing without a word
            found[key] = str(value)
    return found
