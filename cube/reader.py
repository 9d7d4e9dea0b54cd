"""The one primitive: plan, fetch all tiles in one concurrent batch, decode on threads, place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cube.drift import require_unchanged, version_of
from cube.errors import ReadError, SelectionError, SourceError
from cube.grid import Window
from cube.io import loop
from cube.io.cache import SourceKey, TileCache, open_cache, source_key
from cube.io.file import RangeFile
from cube.io.ranges import RangeRequest, byte_budget, read_range
from cube.io.stores import local_path, sign
from cube.manifest.open import Manifest, open_manifest
from cube.normalise import normalise
from cube.plan import VALIDITY, Piece, ReadPlan, SourceRead, Target, plan_read, plan_source_requests
from cube.spec import CubeSpec
from cube.tiff.decode import DecodeError, decode_into, decode_tile

_log = logging.getLogger(__name__)

_BYTES_A_TASK = 1024 * 1024
"""Encoded bytes that one task of the decode pool takes: enough to hide its cost, few enough to share among threads."""


@dataclass(frozen=True, slots=True, order=True)
class Hole:
    """A source that could not be read, and whose pixels are therefore without data."""

    href: str
    reason: str


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
        ReadError: Bytes could not be fetched or decoded; it names the source, the tile and the cause. Where
            `spec.errors` is "skip", such a source's pixels are the band's `hole` instead (see `read_reported`).
        ManifestError: The manifest cannot be opened.
    """
    return (await read_reported(spec, bands, times, window))[0]


async def read_reported(
    spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window
) -> tuple[dict[str, np.ndarray], tuple[Hole, ...]]:
    """Return what `read` does, and the sources that are missing from it where `spec.errors` is "skip"."""
    return await loop.bridge(_read(spec, tuple(bands), tuple(int(time) for time in times), window))


def read_block(spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window) -> dict[str, np.ndarray]:
    """Return what `read` does, to a caller that waits."""
    return read_block_reported(spec, bands, times, window)[0]


def read_block_reported(
    spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window
) -> tuple[dict[str, np.ndarray], tuple[Hole, ...]]:
    """Return what `read_reported` does, to a caller that waits."""
    return loop.run(_read(spec, tuple(bands), tuple(int(time) for time in times), window))


type _Outputs = dict[str, np.ndarray]
"""(time, rows, columns) by band."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One source's part of a read, while it is under way."""

    read: SourceRead
    outputs: _Outputs
    valid: np.ndarray | None
    """bool (rows, columns) of the source's box; False where its mask or alpha says that there is no data."""


@dataclass(frozen=True, slots=True)
class _Fetch:
    """One request and the tiles that come with it."""

    job: _Job
    request: RangeRequest
    pieces: list[Piece]
    keep: tuple[TileCache, SourceKey] | None
    """Where to keep the tiles."""


async def _read(
    spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window
) -> tuple[_Outputs, tuple[Hole, ...]]:
    # Off the loop: the first use of a manifest reads files, and planning a large window is arithmetic that takes time.
    holes: list[Hole] = []
    manifest, outputs, jobs = await asyncio.to_thread(_prepare, spec, bands, times, window, holes)
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                if spec.errors == "raise":
                    _start(job, spec, group)
                else:
                    group.create_task(_run_or_skip(job, manifest, spec, holes))
    except* SourceError as errors:
        first = _first(errors)
        raise first from first.__cause__
    if any(job.valid is not None for job in jobs):
        await asyncio.to_thread(_apply_masks, manifest, jobs)
    return outputs, tuple(sorted(holes))


def _start(job: _Job, spec: CubeSpec, group: asyncio.TaskGroup) -> None:
    """Start all that one source needs."""
    if job.read.facts.path == "gdal":
        group.create_task(asyncio.to_thread(_place_with_gdal, job, spec))
    cache = open_cache()
    key = None if cache is None else source_key(job.read.facts.href, version_of(job.read.facts))
    if cache is None or key is None:
        _fetch(job, spec, group, None)
    else:
        group.create_task(_place_kept(job, spec, group, (cache, key)))


def _fetch(job: _Job, spec: CubeSpec, group: asyncio.TaskGroup, keep: tuple[TileCache, SourceKey] | None) -> None:
    for request, pieces in plan_source_requests(job.read):
        group.create_task(_fetch_and_place(_Fetch(job, request, pieces, keep), spec))


async def _place_kept(job: _Job, spec: CubeSpec, group: asyncio.TaskGroup, keep: tuple[TileCache, SourceKey]) -> None:
    """Take from this machine's disk what is there, and fetch the rest."""
    running = asyncio.get_running_loop()
    batches = _batches([piece for piece in job.read.pieces if piece.length])
    # Read where it is decoded: a thread holds one batch, so that no budget of memory is needed.
    left = await asyncio.gather(
        *[running.run_in_executor(loop.decode_pool(), _find_and_place, job, keep, batch) for batch in batches]
    )
    missing = [piece for batch in left for piece in batch]
    _fetch(replace(job, read=replace(job.read, pieces=missing)), spec, group, keep)


def _find_and_place(job: _Job, keep: tuple[TileCache, SourceKey], pieces: list[Piece]) -> list[Piece]:
    """Place the tiles that are kept, and return the others; one that cannot be decoded is fetched again."""
    cache, key = keep
    found = cache.find(key, {(piece.offset, piece.length) for piece in pieces})
    missing = []
    for piece in pieces:
        data = found.get((piece.offset, piece.length))
        try:
            if data is None:
                missing.append(piece)
            else:
                _decode_and_place(data, piece, job)
        except DecodeError:
            missing.append(piece)
    return missing


async def _run_or_skip(job: _Job, manifest: Manifest, spec: CubeSpec, holes: list[Hole]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            _start(job, spec, group)
    except* SourceError as errors:
        _leave_out(job.read, job.outputs, manifest, _first(errors), holes)


def _leave_out(read: SourceRead, outputs: _Outputs, manifest: Manifest, error: SourceError, holes: list[Hole]) -> None:
    """Leave a source's part of the output without data, and say so."""
    for target in read.targets:
        part = outputs[target.band][target.time, read.box.top : read.box.bottom, read.box.left : read.box.right]
        part[...] = manifest.band(target.band).hole
    holes.append(Hole(error.href, error.reason))
    _log.warning("no data is read of %s: %s", error.href, error.reason)


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
    spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window, holes: list[Hole]
) -> tuple[Manifest, _Outputs, list[_Job]]:
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
    jobs = []
    for read in plan.sources:
        try:
            require_unchanged(manifest, read.source, read.facts)
        except SourceError as error:
            if spec.errors == "raise":
                raise
            _leave_out(read, outputs, manifest, error, holes)
            continue
        valid = np.empty(read.box.shape, bool) if read.facts.validity is not None else None
        job = _Job(read=read, outputs=outputs, valid=valid)
        _fill_sparse(job)
        jobs.append(job)
    return manifest, outputs, jobs


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


def _fill_sparse(job: _Job) -> None:
    """Write what tiles hold that the file leaves out: GDAL's rule, the file's own nodata, else 0; masks say invalid."""
    facts = job.read.facts
    value = np.full((1, 1), 0 if facts.nodata is None else facts.nodata, facts.dtype)
    invalid = np.zeros((1, 1), "u1")
    for piece in job.read.pieces:
        for target in piece.targets if not piece.length else ():
            _place(invalid if target.band == VALIDITY else value, target, piece, job)


async def _fetch_and_place(fetch: _Fetch, spec: CubeSpec) -> None:
    request, running, facts = fetch.request, asyncio.get_running_loop(), fetch.job.read.facts
    async with byte_budget().hold(request.stop - request.start):
        try:
            signed = sign(facts.href, spec.patch_url)
            data = await read_range(facts.href, request.start, request.stop, signed=signed, version=version_of(facts))
        except ReadError as error:
            more = f" and {len(fetch.pieces) - 1} more" if len(fetch.pieces) > 1 else ""
            where = f"{_name(fetch.pieces[0], spec.level)}{more}"
            raise type(error)(error.href, f"{where}: {error.reason}") from error.__cause__
        await asyncio.gather(
            *[
                running.run_in_executor(loop.decode_pool(), _place_all, fetch, data, batch, spec.level)
                for batch in _batches(fetch.pieces)
            ],
            *([asyncio.to_thread(_keep, fetch, data)] if fetch.keep is not None else []),
        )


def _keep(fetch: _Fetch, data: memoryview) -> None:
    if fetch.keep is not None:
        cache, key = fetch.keep
        start = fetch.request.start
        tiles = {(p.offset, p.length): data[p.offset - start : p.offset - start + p.length] for p in fetch.pieces}
        cache.put(key, tiles)


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


def _place_all(fetch: _Fetch, data: memoryview, pieces: list[Piece], level: int) -> None:
    for piece in pieces:
        begin = piece.offset - fetch.request.start
        try:
            _decode_and_place(data[begin : begin + piece.length], piece, fetch.job)
        except DecodeError as error:
            where = f"bytes {piece.offset}-{piece.offset + piece.length - 1}"
            reason = f"{_name(piece, level)} ({where}) is damaged: {error}"
            raise ReadError(fetch.job.read.facts.href, reason) from None


def _decode_and_place(encoded: memoryview, piece: Piece, job: _Job) -> None:
    """Decode one tile and write the wanted part of it where it belongs."""
    layout, first = piece.layout, piece.targets[0]
    is_whole = (piece.height, piece.width) == (layout.height, layout.width)
    if is_whole and len(piece.targets) == 1 and first.how is None and first.band != VALIDITY:
        part = job.outputs[first.band][first.time, piece.y : piece.y + piece.height, piece.x : piece.x + piece.width]
        if decode_into(encoded, layout, part):
            return
    rows = decode_tile(encoded, layout, piece.tile_y, piece.tile_y + piece.height)
    wanted = rows[:, piece.tile_x : piece.tile_x + piece.width]
    for target in piece.targets:
        _place(wanted[..., target.sample], target, piece, job)


def _place(pixels: np.ndarray, target: Target, piece: Piece, job: _Job) -> None:
    if target.band != VALIDITY:
        output = job.outputs[target.band][target.time]
        _write(pixels, target, output[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width])
    elif job.valid is not None:
        y, x = piece.y - job.read.box.top, piece.x - job.read.box.left
        np.not_equal(pixels, 0, out=job.valid[y : y + piece.height, x : x + piece.width])


def _write(pixels: np.ndarray, target: Target, part: np.ndarray) -> None:
    if target.how is None:
        part[...] = pixels
    else:
        normalise(pixels, target.how, part)


def _place_with_gdal(job: _Job, spec: CubeSpec) -> None:
    """Read one source through GDAL; blocks, and waits for range requests, so never on the loop or the decode pool."""
    from cube.gdal.handles import BlockCache
    from cube.gdal.read import read_valid_with_gdal, read_with_gdal

    read, facts, box = job.read, job.read.facts, job.read.box
    file = None
    if local_path(facts.href) is None:
        signed = sign(facts.href, spec.patch_url)
        file = BlockCache(RangeFile(facts.href, signed=signed, version=version_of(facts)))
    samples = tuple(dict.fromkeys(target.sample for target in read.targets))
    pixels = read_with_gdal(facts.href, file, level=spec.level, samples=samples, window=read.window)
    for target in read.targets:
        part = job.outputs[target.band][target.time, box.top : box.bottom, box.left : box.right]
        _write(pixels[samples.index(target.sample)], target, part)
    if job.valid is not None:
        job.valid[...] = read_valid_with_gdal(
            facts.href, file, validity=facts.validity, level=spec.level, window=read.window
        )


def _apply_masks(manifest: Manifest, jobs: Sequence[_Job]) -> None:
    """Mark as missing what a source's mask or alpha calls invalid; the alpha sample itself stays what it is."""
    for job in jobs:
        if job.valid is None:
            continue
        box, facts, invalid = job.read.box, job.read.facts, ~job.valid
        for target in job.read.targets:
            if facts.validity == "alpha" and target.sample == facts.samples - 1:
                continue
            part = job.outputs[target.band][target.time, box.top : box.bottom, box.left : box.right]
            part[invalid] = manifest.band(target.band).hole
