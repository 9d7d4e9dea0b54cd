"""A read-only Zarr store over the reader: its chunks are made when they are asked for, regular whatever the sources."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from cube.conventions import Y_CENTRE, gdal_crs
from cube.engine.blocks import tile_shape
from cube.grid import Grid, Window
from cube.io import loop
from cube.manifest.open import Manifest, open_manifest
from cube.reader import read
from cube.readonly import ReadOnlyStore, as_slice
from cube.spec import CubeSpec
from cube.zarr_metadata import (
    ZarrArray,
    ZarrFormat,
    band_array,
    centre_arrays,
    coordinate_arrays,
    encode_chunk,
    render_v2,
    render_v3,
    root_attributes,
)

_CHUNK_EDGE = 1024
"""Pixels that a chunk's edge aims at: 2 MB of uint16, a good answer over HTTP and a few tiles for the reader."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


class Chunk(NamedTuple):
    """A chunk of a band, the same for both versions of Zarr."""

    band: str
    position: tuple[int, ...]
    """(time, row, column) of chunks, or (row, column) in a cube without time."""


def parse_key(key: str, zarr_format: ZarrFormat, arrays: Mapping[str, ZarrArray]) -> Chunk | None:
    """Return the chunk that a key names in its one canonical spelling, None where there is none."""
    name, _, tail = key.partition("/")
    array = arrays.get(name)
    if array is None:
        return None
    if not array.shape:
        return Chunk(name, ()) if tail == ("c" if zarr_format == 3 else "0") else None
    if zarr_format == 3 and not tail.startswith("c/"):
        return None
    parts = tail[2:].split("/") if zarr_format == 3 else tail.split(".")
    if len(parts) != len(array.shape) or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    position = tuple(int(part) for part in parts)
    if any(i >= count for i, count in zip(position, array.counts, strict=True)):
        return None
    return Chunk(name, position)


class CubeStore:
    """One cube at one level as Zarr documents and chunks, version 2 and 3; never changes, safe to share."""

    def __init__(self, manifest: Manifest, *, level: int = 0, chunks: tuple[int, int] | None = None) -> None:
        """Render all metadata; reads no pixel.

        Args:
            manifest: The cube.
            level: 0 is full resolution.
            chunks: Rows and columns of a chunk; whole tiles near 1024 pixels where None.

        Raises:
            SelectionError: The cube has no such level.
        """
        self.manifest = manifest
        self.level = level
        self.version = manifest.version
        grid = manifest.grid_at(level)
        asked = chunks or _chunk_shape(*tile_shape(manifest, level))
        self.chunks = min(asked[0], grid.height), min(asked[1], grid.width)
        self._spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level)
        crs = gdal_crs(grid.crs)
        self._bands = {
            band.name: replace(band_array(band, grid, manifest.times, self.chunks), crs=crs) for band in manifest.bands
        }
        self._centres = {array.name: array for array in centre_arrays(grid, self.chunks)}
        self._chunked = self._bands | self._centres
        coordinates = coordinate_arrays(grid, manifest.times)
        attributes = root_attributes(manifest)
        arrays = [array for array, _ in coordinates] + list(self._chunked.values())
        self._documents: dict[int, dict[str, bytes]] = {
            2: render_v2(attributes, arrays),
            3: render_v3(attributes, arrays),
        }
        self._coordinates: dict[int, dict[str, bytes]] = {2: {}, 3: {}}
        for array, values in coordinates:
            encoded, index = encode_chunk(values), (0,) * values.ndim
            self._coordinates[2][f"{array.name}/{'.'.join(map(str, index)) or '0'}"] = encoded
            self._coordinates[3]["/".join([array.name, "c", *map(str, index)])] = encoded

    @functools.cached_property
    def tag(self) -> str:
        """A short hash that changes whenever the bytes of some key may: for HTTP's ETags."""
        digest = hashlib.sha256(self.version.encode())
        for documents in self._documents.values():
            for key, document in documents.items():
                digest.update(key.encode() + document)
        return digest.hexdigest()[:16]

    def metadata(self, zarr_format: ZarrFormat) -> dict[str, bytes]:
        """Return all metadata documents by key."""
        return dict(self._documents[zarr_format])

    def find(self, key: str, zarr_format: ZarrFormat) -> bytes | Chunk | None:
        """Return what a key names without any input or output.

        Returns:
            The bytes of metadata and coordinates, the chunk that `read_chunk` makes, or None where there is nothing of
            that name. Only the one canonical spelling of a chunk's key names it: "c/00/0" is another key.
        """
        found = self._documents[zarr_format].get(key) or self._coordinates[zarr_format].get(key)
        return found if found is not None else parse_key(key, zarr_format, self._chunked)

    async def get(self, key: str, zarr_format: ZarrFormat) -> bytes | None:
        """Return the bytes of a key, or None where it names nothing; may be awaited on any event loop.

        Raises:
            CubeError: The chunk exists and could not be read; never the same as an absent one.
        """
        found = self.find(key, zarr_format)
        return await self.read_chunk(found) if isinstance(found, Chunk) else found

    async def read_chunk(self, chunk: Chunk) -> bytes:
        """Return a chunk that `find` gave, read and encoded; may be awaited on any event loop.

        Raises:
            CubeError: It could not be read.
        """
        return await loop.bridge(self._read_chunk(chunk))

    async def _read_chunk(self, chunk: Chunk) -> bytes:
        array = self._chunked[chunk.band]
        *time, row, column = chunk.position
        (height, width), (rows, columns) = array.shape[-2:], self.chunks
        window = Window(
            top=row * rows,
            bottom=min((row + 1) * rows, height),
            left=column * columns,
            right=min((column + 1) * columns, width),
        )
        # Not on the event loop, which all other reads share.
        running = asyncio.get_running_loop()
        if chunk.band in self._centres:
            grid, axis = self.manifest.grid_at(self.level), int(chunk.band == Y_CENTRE)
            block = await running.run_in_executor(loop.decode_pool(), _centres, grid, window, axis)
        else:
            block = (await read(self._spec, (chunk.band,), tuple(time) or (0,), window))[chunk.band]
        return await running.run_in_executor(loop.decode_pool(), _encode, block, self.chunks, array)

    def list_keys(self, zarr_format: ZarrFormat) -> Iterator[str]:
        """Iterate over all keys: documents, coordinates, then the chunks of each band."""
        yield from self._documents[zarr_format]
        yield from self._coordinates[zarr_format]
        for array in self._chunked.values():
            for index in itertools.product(*map(range, array.counts)):
                yield _key(array.name, index, zarr_format)

    def list_names(self, folder: str, zarr_format: ZarrFormat) -> list[str]:
        """Return what lies directly in a folder of keys, "" for the root, without walking through all chunks."""
        start = f"{folder}/" if folder else ""
        keys = itertools.chain(self._documents[zarr_format], self._coordinates[zarr_format])
        names = {key.removeprefix(start).partition("/")[0] for key in keys if key.startswith(start)}
        name, *deeper = folder.split("/")
        array = self._chunked.get(name)
        if array is not None:
            names |= set(_children(array, deeper, zarr_format))
        return sorted(names)


def _chunk_shape(height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of whole tiles near the wanted edge; of long strips, as many as make the same area."""
    columns = max(1, round(_CHUNK_EDGE / width)) * width
    return max(1, round(_CHUNK_EDGE**2 / columns / height)) * height, columns


def _centres(grid: Grid, window: Window, axis: int) -> np.ndarray:
    rows, columns = np.arange(window.top, window.bottom)[:, None], np.arange(window.left, window.right)
    return grid.centres(rows, columns)[axis][None]


def _encode(block: np.ndarray, chunks: tuple[int, int], array: ZarrArray) -> bytes:
    height, width = block.shape[-2:]
    if (height, width) != chunks:
        whole = np.full((len(block), *chunks), array.padding, block.dtype)
        whole[:, :height, :width] = block
        block = whole
    return encode_chunk(block)


def _key(name: str, index: tuple[int, ...], zarr_format: ZarrFormat) -> str:
    numbers = map(str, index)
    return f"{name}/{'.'.join(numbers)}" if zarr_format == 2 else f"{name}/c/{'/'.join(numbers)}"


def _children(array: ZarrArray, deeper: list[str], zarr_format: ZarrFormat) -> Iterable[str]:
    """Return the names in a folder of one array's chunks: version 2 has one folder, version 3 one a dimension."""
    if zarr_format == 2:
        return [] if deeper else (".".join(map(str, i)) for i in itertools.product(*map(range, array.counts)))
    if not deeper:
        return ["c"]
    depth = len(deeper) - 1
    inside = deeper[0] == "c" and depth < len(array.counts)
    exists = all(_NUMBER.fullmatch(part) and int(part) < n for part, n in zip(deeper[1:], array.counts, strict=False))
    return map(str, range(array.counts[depth])) if inside and exists else []


class ZarrStore(ReadOnlyStore):
    """A cube for zarr-python in this process: `xarray.open_zarr(ZarrStore(CubeStore(manifest)))`; pickles small."""

    def __init__(self, store: CubeStore, *, zarr_format: ZarrFormat = 3) -> None:
        """Wrap a store; reads nothing.

        Args:
            store: The cube.
            zarr_format: Which version's keys it answers to.
        """
        super().__init__()
        self._store = store
        self._zarr_format = zarr_format

    @property
    def _identity(self) -> tuple[str, str, int, tuple[int, int], ZarrFormat]:
        store = self._store
        return store.manifest.url, store.version, store.level, store.chunks, self._zarr_format

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process opens the same store."""
        return _reopen, self._identity

    def __eq__(self, other: object) -> bool:
        """Return whether both give the same bytes for every key."""
        return isinstance(other, ZarrStore) and self._identity == other._identity

    def __hash__(self) -> int:
        """Return a hash that equal stores share."""
        return hash(self._identity)

    def __repr__(self) -> str:
        """Return what it wraps."""
        return f"<ZarrStore v{self._zarr_format} of {self._store.manifest!r}, level {self._store.level}>"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a key's bytes, or None where it names nothing."""
        data = await self._store.get(key, self._zarr_format)
        return None if data is None else prototype.buffer.from_bytes(data[as_slice(byte_range)])

    async def exists(self, key: str) -> bool:
        """Return whether a key names something; reads nothing."""
        return self._store.find(key, self._zarr_format) is not None

    async def list(self) -> AsyncIterator[str]:
        """Iterate over all keys."""
        for key in self._store.list_keys(self._zarr_format):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the names directly in a folder."""
        for name in self._store.list_names(prefix.rstrip("/"), self._zarr_format):
            yield name


def _reopen(url: str, version: str, level: int, chunks: tuple[int, int], zarr_format: ZarrFormat) -> ZarrStore:
    store = CubeStore(open_manifest(url, version), level=level, chunks=chunks)
    return ZarrStore(store, zarr_format=zarr_format)
