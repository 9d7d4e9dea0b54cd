"""The one primitive: plan, fetch all tiles in one concurrent batch, decode on threads, place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cube.decode import DecodeError, place_tile
from cube.errors import ReadError, SelectionError, SourceError
from cube.grid import Window
from cube.io import loop
from cube.io.ranges import RangeRequest, byte_budget, plan_requests, read_range
from cube.io.stores import sign
from cube.manifest import Manifest, open_manifest
from cube.plan import Piece, ReadPlan, SourceRead, plan_read
from cube.settings import get_settings
from cube.spec import CubeSpec

_BYTES_A_TASK = 1024 * 1024
"""Encoded bytes that one task of the decode pool takes: enough to hide its cost, few enough to share among threads."""


async def read(spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window) -> dict[str, np.ndarray]:
    """Return the stored numbers of some bands and dates in a window.

    May be awaited on any event loop; the work runs on the process's I/O loop and decode pool.

    Args:
        spec: The cube, and the level that `window` is on.
        bands: Names of bands.
        times: Positions on the cube's time axis, in any order; (0,) in a cube without time.
        window: Inside the grid of the spec's level.

    Returns:
        An array (len(times), rows, columns) a band, of the band's dtype; where no source covers a pixel, the band's
        `hole`.

    Raises:
        SelectionError: A band, date or window that the cube does not have.
        ReadError: Bytes could not be fetched or decoded; it names the source, the tile and the cause.
        ManifestError: The manifest cannot be opened.
    """
    return await loop.bridge(_read(spec, tuple(bands), tuple(int(time) for time in times), window))


def read_block(spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window) -> dict[str, np.ndarray]:
    """Return what `read` does, to a caller that waits."""
    return loop.run(_read(spec, tuple(bands), tuple(int(time) for time in times), window))


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request and the tiles that come with it."""

    href: str
    request: RangeRequest
    pieces: list[Piece]


type _Outputs = dict[str, np.ndarray]


async def _read(spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window) -> _Outputs:
    # Off the loop: the first use of a manifest reads files, and planning a large window is arithmetic that takes time.
    outputs, fetches = await asyncio.to_thread(_prepare, spec, bands, times, window)
    try:
        async with asyncio.TaskGroup() as group:
            for fetch in fetches:
                group.create_task(_fetch_and_place(fetch, spec, outputs))
    except* SourceError as errors:
        first = _first(errors)
        raise first from first.__cause__
    return outputs


def _first(errors: BaseExceptionGroup[SourceError]) -> SourceError:
    """Return one of the errors: always the same one, so that a failure reads the same each time."""
    leaves: list[SourceError] = []
    stack: list[BaseException] = [errors]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(error.exceptions)
        elif isinstance(error, SourceError):
            leaves.append(error)
    return min(leaves, key=lambda error: error.href)


def _prepare(
    spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window
) -> tuple[_Outputs, list[_Fetch]]:
    manifest = open_manifest(spec.manifest, spec.version)
    grid = manifest.grid_at(spec.level)
    if not (0 <= window.top < window.bottom <= grid.height and 0 <= window.left < window.right <= grid.width):
        raise SelectionError(f"{window} lies outside of the grid of {grid.height} rows and {grid.width} columns")
    count = 1 if manifest.times is None else len(manifest.times)
    if not all(0 <= time < count for time in times):
        raise SelectionError(f"dates {list(times)} were asked for; the cube has {count}, counted from 0")
    names = tuple(dict.fromkeys(manifest.band(band).name for band in bands))
    plan = plan_read(manifest, names, times, window, spec.level)
    outputs = _allocate(manifest, names, len(times), window, plan)
    fetches = []
    for source in plan.sources:
        _fill_sparse(manifest, source, outputs)
        fetches += _merge(source)
    return outputs, fetches


def _allocate(manifest: Manifest, names: Sequence[str], count: int, window: Window, plan: ReadPlan) -> _Outputs:
    """Return arrays that hold the band's hole value wherever sources leave pixels out."""
    outputs = {}
    for name in names:
        band = manifest.band(name)
        output = outputs[name] = np.empty((count, *window.shape), band.dtype)
        for position in range(count):
            if plan.covered.get((name, position), 0) < window.shape[0] * window.shape[1]:
                output[position] = band.hole
    return outputs


def _fill_sparse(manifest: Manifest, source: SourceRead, outputs: _Outputs) -> None:
    for piece in source.pieces:
        if not piece.length:
            for target in piece.targets:
                rows, columns = slice(piece.y, piece.y + piece.height), slice(piece.x, piece.x + piece.width)
                outputs[target.band][target.time, rows, columns] = manifest.band(target.band).sparse


def _merge(source: SourceRead) -> list[_Fetch]:
    settings = get_settings()
    present = [piece for piece in source.pieces if piece.length]
    requests = plan_requests(
        [piece.offset for piece in present],
        [piece.length for piece in present],
        gap_bytes=settings.gap_bytes,
        request_bytes=settings.request_bytes,
    )
    return [_Fetch(source.href, request, [present[i] for i in request.members]) for request in requests]


async def _fetch_and_place(fetch: _Fetch, spec: CubeSpec, outputs: _Outputs) -> None:
    request, running = fetch.request, asyncio.get_running_loop()
    async with byte_budget().hold(request.stop - request.start):
        try:
            signed = sign(fetch.href, spec.patch_url)
            data = await read_range(fetch.href, request.start, request.stop, signed=signed)
        except ReadError as error:
            more = f" and {len(fetch.pieces) - 1} more" if len(fetch.pieces) > 1 else ""
            where = f"{_name(fetch.pieces[0], spec.level)}{more}"
            raise type(error)(error.href, f"{where}: {error.reason}") from error.__cause__
        await asyncio.gather(
            *[
                running.run_in_executor(loop.decode_pool(), _place_all, fetch, data, batch, spec.level, outputs)
                for batch in _batches(fetch.pieces)
            ]
        )


def _batches(pieces: list[Piece]) -> list[list[Piece]]:
    batches: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if room < piece.length or not batches:
            batches.append([])
            room = _BYTES_A_TASK
        batches[-1].append(piece)
        room -= piece.length
    return batches


def _name(piece: Piece, level: int) -> str:
    return f"tile {piece.tile} of level {level}"


def _place_all(fetch: _Fetch, data: memoryview, pieces: list[Piece], level: int, outputs: _Outputs) -> None:
    for piece in pieces:
        begin = piece.offset - fetch.request.start
        try:
            place_tile(data[begin : begin + piece.length], piece, outputs)
        except DecodeError as error:
            where = f"bytes {piece.offset}-{piece.offset + piece.length - 1}"
            raise ReadError(fetch.href, f"{_name(piece, level)} ({where}) is damaged: {error}") from None
