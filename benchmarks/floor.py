"""The floor: the least that any reader must do, with no code of the project.

Plain obstore range requests, libdeflate, the predictor undone, the tile placed; two threads. What a read takes more
than this is what the reader costs.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagecodecs
import numpy as np
import obstore
from obstore.store import HTTPStore

_HEADER_BYTES = 32 * 1024
_IN_FLIGHT = 256
_MERGE_BYTES = 1 << 20

_loop = asyncio.new_event_loop()
_pool = ThreadPoolExecutor(2)


def _run(coroutine):
    if not _loop.is_running():
        threading.Thread(target=_loop.run_forever, daemon=True).start()
    return asyncio.run_coroutine_threadsafe(coroutine, _loop).result()


@dataclass(frozen=True, slots=True)
class Tiled:
    """One file of uint16 deflate tiles with predictor 2: where its tiles are."""

    path: str
    offsets: np.ndarray
    lengths: np.ndarray
    tile: int


def read(url: str, files: Sequence[Tiled], rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Return the window of every file, uint16 (files, rows, columns)."""
    store = HTTPStore.from_url(url, client_options={"allow_http": True})
    out = np.empty((len(files), rows[1] - rows[0], columns[1] - columns[0]), "u2")

    def place(k: int, j: int, i: int, encoded) -> None:
        tile = files[k].tile
        raw = imagecodecs.deflate_decode(encoded, out=tile * tile * 2)
        pixels = imagecodecs.delta_decode(np.frombuffer(raw, "u2").reshape(tile, tile), axis=-1)
        top, bottom = max(rows[0], j * tile), min(rows[1], (j + 1) * tile)
        left, right = max(columns[0], i * tile), min(columns[1], (i + 1) * tile)
        out[k, top - rows[0] : bottom - rows[0], left - columns[0] : right - columns[0]] = pixels[
            top - j * tile : bottom - j * tile, left - i * tile : right - i * tile
        ]

    async def one(k: int) -> None:
        file = files[k]
        index = [
            (j, i)
            for j in range(rows[0] // file.tile, -(-rows[1] // file.tile))
            for i in range(columns[0] // file.tile, -(-columns[1] // file.tile))
        ]
        buffers = await obstore.get_ranges_async(
            store,
            file.path,
            starts=[int(file.offsets[at]) for at in index],
            lengths=[int(file.lengths[at]) for at in index],
            coalesce=_MERGE_BYTES,
        )
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *[loop.run_in_executor(_pool, place, k, *at, data) for at, data in zip(index, buffers, strict=True)]
        )

    async def everything() -> None:
        await asyncio.gather(*[one(k) for k in range(len(files))])

    _run(everything())
    return out


def scan(url: str, paths: Sequence[str]) -> int:
    """Fetch the first 32 kB of every file, 256 in flight, and return the bytes that came."""
    store = HTTPStore.from_url(url, client_options={"allow_http": True})
    gate = asyncio.Semaphore(_IN_FLIGHT)

    async def one(path: str) -> int:
        async with gate:
            result = await obstore.get_async(store, path, options={"range": (0, _HEADER_BYTES)})
            return len(await result.bytes_async())

    async def everything() -> int:
        return sum(await asyncio.gather(*[one(path) for path in paths]))

    return _run(everything())
