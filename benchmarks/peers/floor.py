"""The floor: the least that any reader must do, with no code of the project.

Plain obstore range requests, libdeflate, the predictor undone, the tile placed, a thread a core. What a read takes more
than this is what the reader costs.
"""

from __future__ import annotations

import asyncio
import io
import os
import struct
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import arithmetic
import imagecodecs
import numpy as np
import obstore
import tifffile
from obstore.store import HTTPStore
from protocol import Archive, Workload

_HEADER_BYTES = 32 * 1024
_IN_FLIGHT = 256
_MERGE_BYTES = 1 << 20

_loop = asyncio.new_event_loop()
_pool = ThreadPoolExecutor(os.cpu_count())


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    if not _loop.is_running():
        threading.Thread(target=_loop.run_forever, daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result()


@dataclass(frozen=True)
class Tiled:
    """One file of deflate tiles with predictor 2: where its tiles are."""

    path: str
    offsets: np.ndarray
    lengths: np.ndarray
    """(rows of tiles, columns of tiles)."""
    tile: int
    dtype: str


@dataclass(frozen=True)
class Part:
    """What is wanted of one file, and the array (rows, columns) that takes it."""

    file: Tiled
    top: int
    left: int
    out: np.ndarray

    def tiles(self) -> list[tuple[int, int]]:
        """Return the rows and columns of tiles."""
        rows, columns = self.out.shape
        tile = self.file.tile
        return [
            (j, i)
            for j in range(self.top // tile, -(-(self.top + rows) // tile))
            for i in range(self.left // tile, -(-(self.left + columns) // tile))
        ]

    def place(self, j: int, i: int, pixels: np.ndarray) -> None:
        """Write a tile's pixels where they belong."""
        tile, (rows, columns) = self.file.tile, self.out.shape
        top, bottom = max(self.top, j * tile), min(self.top + rows, (j + 1) * tile)
        left, right = max(self.left, i * tile), min(self.left + columns, (i + 1) * tile)
        self.out[top - self.top : bottom - self.top, left - self.left : right - self.left] = pixels[
            top - j * tile : bottom - j * tile, left - i * tile : right - i * tile
        ]


def connect(url: str) -> HTTPStore:
    """Return the object store at a URL."""
    return HTTPStore.from_url(url, client_options={"allow_http": True})


def read(store: HTTPStore, parts: Sequence[Part]) -> None:
    """Fill every part; a tile that several parts need is fetched and decoded once."""
    wanted: dict[str, dict[tuple[int, int], list[Part]]] = {}
    for part in parts:
        for at in part.tiles():
            wanted.setdefault(part.file.path, {}).setdefault(at, []).append(part)

    def decode(at: tuple[int, int], takers: list[Part], encoded: Any) -> None:
        tile, dtype = takers[0].file.tile, np.dtype(takers[0].file.dtype)
        raw = imagecodecs.deflate_decode(encoded, out=tile * tile * dtype.itemsize)
        pixels = imagecodecs.delta_decode(np.frombuffer(raw, dtype).reshape(tile, tile), axis=-1)
        for part in takers:
            part.place(*at, pixels)

    async def one(path: str, tiles: dict[tuple[int, int], list[Part]]) -> None:
        file = next(iter(tiles.values()))[0].file
        buffers = await obstore.get_ranges_async(
            store,
            path,
            starts=[int(file.offsets[at]) for at in tiles],
            lengths=[int(file.lengths[at]) for at in tiles],
            coalesce=_MERGE_BYTES,
        )
        loop = asyncio.get_running_loop()
        work = zip(tiles.items(), buffers, strict=True)
        await asyncio.gather(*[loop.run_in_executor(_pool, decode, *tile, data) for tile, data in work])

    async def everything() -> None:
        await asyncio.gather(*[one(path, tiles) for path, tiles in wanted.items()])

    _run(everything())


def scan(store: HTTPStore, paths: Sequence[str]) -> list[bytes]:
    """Return the first 32 kB of every file, fetched with 256 requests in flight."""
    gate = asyncio.Semaphore(_IN_FLIGHT)

    async def one(path: str) -> bytes:
        async with gate:
            result = await obstore.get_async(store, path, options={"range": (0, _HEADER_BYTES)})
            return bytes(await result.bytes_async())

    async def everything() -> list[bytes]:
        return await asyncio.gather(*[one(path) for path in paths])

    return _run(everything())


def _outline(header: bytes) -> tuple[int, int, int]:
    """Return rows, columns and tile edge of a little-endian classic TIFF's first image."""
    (start,) = struct.unpack_from("<I", header, 4)
    (count,) = struct.unpack_from("<H", header, start)
    tags = dict(struct.unpack_from("<H6xH", header, start + 2 + 12 * i) for i in range(count))
    return tags[257], tags[256], tags[322]


def _tile_table(path: str, header: bytes) -> Tiled:
    page = tifffile.TiffFile(io.BytesIO(header)).pages[0]
    shape = (-(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth))
    tables = (np.reshape(page.dataoffsets, shape), np.reshape(page.databytecounts, shape))
    return Tiled(path, *tables, page.tilewidth, page.dtype.str)


class Floor:
    """Reads what it must, and nothing of it through a library for rasters."""

    name = "floor"
    settings = (
        "obstore ranges merged up to 1 MB apart, all files at once; libdeflate and delta of imagecodecs on a thread a "
        "core; NDVI in numpy strips of rows on the same threads. Tile tables are known before."
    )
    packages = ("obstore", "imagecodecs", "numpy")

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload cannot be done."""
        return "there is nothing to open" if workload.kind == "open" else None

    def open(self, archive: Archive) -> None:
        """Find out where tiles are."""
        self._archive = archive
        self._store = connect(archive.url)
        self._paths = {
            band: [item["assets"][band]["href"].removeprefix(f"{archive.url}/") for item in archive.items]
            for band in archive.bands
        }
        paths = [path for band in archive.bands for path in self._paths[band]]
        headers = scan(self._store, paths)
        self._files = dict(zip(paths, map(_tile_table, paths, headers), strict=True))

    def run(self, workload: Workload) -> Any:
        """Return the answer."""
        if workload.kind == "scan":
            paths = [self._paths[band][i] for i in range(len(self._archive.items)) for band in self._archive.bands]
            return np.array([_outline(header) for header in scan(self._store, paths)])
        if workload.kind == "chips":
            return self._chips(workload)
        stacks = self._stacks(workload)
        if workload.kind == "stack":
            return [stacks[band] for band in workload.bands]
        if workload.kind == "monthly":
            months = arithmetic.months_of(self._archive.items)
            return arithmetic.monthly(stacks["nir"], stacks["red"], stacks["scl"], workload.clear, months)
        work = {"ndvi_mean": arithmetic.ndvi_mean, "ndvi_median": arithmetic.ndvi_median}
        return work[workload.kind](stacks["nir"], stacks["red"])

    def _stacks(self, workload: Workload) -> dict[str, np.ndarray]:
        top, bottom, left, right = workload.window or (0, self._archive.shape[0], 0, self._archive.shape[1])
        stacks, parts = {}, []
        for band in workload.bands:
            files = [self._files[path] for path in self._paths[band]]
            stacks[band] = np.empty((len(files), bottom - top, right - left), files[0].dtype)
            parts += [Part(file, top, left, out) for file, out in zip(files, stacks[band], strict=True)]
        read(self._store, parts)
        return stacks

    def _chips(self, workload: Workload) -> np.ndarray:
        files = [self._files[path] for path in self._paths[workload.bands[0]]]
        out = np.empty((len(workload.chips), workload.chip, workload.chip), files[0].dtype)
        read(self._store, [Part(files[t], y, x, chip) for (t, y, x), chip in zip(workload.chips, out, strict=True)])
        return out


PEER = Floor()
