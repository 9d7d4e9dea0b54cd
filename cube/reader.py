"""The one primitive: plan, fetch all tiles in one concurrent batch, decode on threads, place."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cube.drift import require_unchanged, version_of
from cube.errors import ReadError, SelectionError, SourceError
from cube.grid import Window
from cube.io import loop
from cube.io.cache import SourceKey, TileCache, open_cache, source_key
from cube.io.file import RangeFile
from cube.io.ranges import RangeRequest, byte_budget, read_range
from cube.io.stores import local_path, sign
from cube.layers import Layer, plan_layers
from cube.manifest.open import Manifest, open_spec
from cube.mosaic import Key, Part, Picture, Plane, fuse, stack_layers, stack_parts
from cube.normalise import normalise
from cube.plan import VALIDITY, Piece, SourceRead, Target, plan_read, plan_source_requests
from cube.spec import Band, CubeSpec
from cube.tiff.decode import DecodeError, decode_into, decode_tile

_log = logging.getLogger(__name__)

_OF_ALL = ("mean", "median")
"""Rules that look at all sources of a pixel."""
_PIXELS_A_STRIP = 256 * 1024
"""Whose positions on another grid, and what is computed of them, find room in a core's cache."""
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


@dataclass(slots=True, kw_only=True)
class _Job:
    """One source's part of a read, while it is under way."""

    read: SourceRead
    parts: Mapping[Key, np.ndarray]
    """(rows, columns) of the source's box for each band and date that it gives: the output's own, or apart."""
    valid: np.ndarray | None
    """bool (rows, columns) of the source's box; False where its mask or alpha says that there is no data."""
    is_missing: bool = False
    """Whether it could not be read, and is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A read under way."""

    manifest: Manifest
    spec: CubeSpec
    window: Window
    outputs: Mapping[str, np.ndarray]
    jobs: list[list[_Job]]
    """Of each picture."""
    pictures: list[Picture]
    """One a layer; empty parts until all is read."""

    @property
    def is_direct(self) -> bool:
        """Whether what is read of the one layer is the result."""
        return len(self.pictures) == 1 and self.pictures[0].outputs is self.outputs


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
    work = await asyncio.to_thread(_prepare, spec, bands, times, window, holes)
    try:
        async with asyncio.TaskGroup() as group:
            for job in itertools.chain.from_iterable(work.jobs):
                if spec.errors == "raise":
                    _start(job, spec, group)
                else:
                    group.create_task(_run_or_skip(job, work.manifest, spec, holes))
    except* SourceError as errors:
        first = _first(errors)
        raise first from first.__cause__
    await _finish(work)
    return dict(work.outputs), tuple(sorted(holes))


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
        _leave_out(job, manifest, _first(errors), holes)


def _leave_out(job: _Job, manifest: Manifest, error: SourceError, holes: list[Hole]) -> None:
    """Leave a source's part of the output without data, and say so."""
    job.is_missing = True
    for (band, _), part in job.parts.items():
        part[...] = manifest.band(band).hole
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


def _prepare(spec: CubeSpec, bands: Sequence[str], times: Sequence[int], window: Window, holes: list[Hole]) -> _Work:
    manifest = open_spec(spec)
    grid = manifest.grid_at(spec.level)
    if not (0 <= window.top < window.bottom <= grid.height and 0 <= window.left < window.right <= grid.width):
        raise SelectionError(f"{window} lies outside of the grid of {grid.height} rows and {grid.width} columns")
    count = 1 if manifest.times is None else len(manifest.times)
    if not all(0 <= time < count for time in times):
        raise SelectionError(f"dates {list(times)} were asked for; the cube has {count}, counted from 0")
    names = tuple(dict.fromkeys(manifest.band(band).name for band in bands))
    chosen = [manifest.band(name) for name in names]
    layers = plan_layers(manifest, spec.level, names, window)
    plans = [plan_read(manifest, names, times, each.window, each.level, each.grid) for each in layers]
    is_direct = len(layers) == 1 and layers[0].points is None
    if manifest.on.fuse in _OF_ALL and is_direct:
        is_direct = not any(read.apart for read in plans[0].sources)
    pictures, jobs = [], []
    for layer, plan in zip(layers, plans, strict=True):
        outputs = _allocate(chosen, len(times), layer.window, plan.covered)
        pictures.append(Picture(layer=layer, outputs=outputs, parts={}))
        found = (_job(read, outputs, manifest, spec, holes) for read in plan.sources)
        jobs.append([job for job in found if job is not None])
    final = pictures[0].outputs if is_direct else _allocate(chosen, len(times), window, frozenset())
    return _Work(manifest=manifest, spec=spec, window=window, outputs=final, jobs=jobs, pictures=pictures)


def _job(
    read: SourceRead, outputs: Mapping[str, np.ndarray], manifest: Manifest, spec: CubeSpec, holes: list[Hole]
) -> _Job | None:
    """Return what becomes of a source, with the memory for its pixels; None where it is left out."""
    box = read.box
    parts = {}
    for target in read.targets:
        key = target.band, target.time
        if key in read.apart:
            parts[key] = np.empty(box.shape, outputs[target.band].dtype)
        else:
            parts[key] = outputs[target.band][target.time, box.top : box.bottom, box.left : box.right]
    valid = np.empty(box.shape, bool) if read.facts.validity is not None else None
    job = _Job(read=read, parts=parts, valid=valid)
    try:
        require_unchanged(manifest, read.source, read.facts)
    except SourceError as error:
        if spec.errors == "raise":
            raise
        _leave_out(job, manifest, error, holes)
        return None
    _fill_sparse(job)
    return job


def _allocate(bands: Sequence[Band], count: int, window: Window, covered: frozenset[Key]) -> _Outputs:
    """Return arrays that hold the band's hole value wherever sources leave pixels out."""
    outputs = {}
    for band in bands:
        output = outputs[band.name] = np.empty((count, *window.shape), band.dtype)
        for position in range(count):
            if (band.name, position) not in covered:
                output[position] = band.hole
    return outputs


async def _finish(work: _Work) -> None:
    """Apply masks, fuse what overlaps, and bring what lies on other grids onto the cube's."""
    jobs = [job for of_layer in work.jobs for job in of_layer]
    if any(job.valid is not None for job in jobs):
        await asyncio.to_thread(_apply_masks, work.manifest, jobs)
    if work.is_direct and not any(job.read.apart for job in jobs):
        return
    ranks = await asyncio.to_thread(work.manifest.ranks, work.manifest.on.fuse)
    pictures = [
        replace(picture, parts=_parts(of_layer, ranks))
        for picture, of_layer in zip(work.pictures, work.jobs, strict=True)
    ]
    bands = {name: work.manifest.band(name) for name in work.outputs}
    rest = bands, work.manifest.on, work.window, work.outputs
    if work.manifest.on.fuse in _OF_ALL:
        await _spread([(stack_parts, (pictures, strip, *rest)) for strip in _strips(work.window)])
        return
    wanted = [(picture, key) for picture in pictures for key in picture.parts]
    on = work.manifest.on
    hows = {name: None if work.is_direct else on.resampling_of(name) for name in bands}
    fused = await _spread([(fuse, (picture, key, bands[key[0]], hows[key[0]])) for picture, key in wanted])
    if not work.is_direct:
        planes: list[tuple[Layer, dict[Key, Plane]]] = [(picture.layer, {}) for picture in pictures]
        of_picture = {id(picture): plane for picture, plane in zip(pictures, planes, strict=True)}
        for (picture, key), plane in zip(wanted, fused, strict=True):
            of_picture[id(picture)][1][key] = plane
        await _spread([(stack_layers, (planes, strip, *rest)) for strip in _strips(work.window)])


async def _spread(calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Return what functions return that work on the decode pool side by side."""
    running, pool = asyncio.get_running_loop(), loop.decode_pool()
    return await asyncio.gather(*[running.run_in_executor(pool, function, *given) for function, given in calls])


def _parts(jobs: Sequence[_Job], ranks: np.ndarray) -> dict[Key, list[Part]]:
    """Return what was read of a layer's sources, by band and date."""
    found: dict[Key, list[Part]] = {}
    for job in jobs:
        if job.is_missing:
            continue
        for key, pixels in job.parts.items():
            part = Part(
                pixels=pixels,
                valid=None if _is_alpha(job, key) else job.valid,
                box=job.read.box,
                rank=int(ranks[job.read.source]),
                apart=key in job.read.apart,
            )
            found.setdefault(key, []).append(part)
    return found


def _is_alpha(job: _Job, key: Key) -> bool:
    """Return whether a band is the sample that says which pixels are valid: it stays what it is everywhere."""
    facts = job.read.facts
    return facts.validity == "alpha" and any(
        (target.band, target.time) == key and target.sample == facts.samples - 1 for target in job.read.targets
    )


def _strips(window: Window) -> list[Window]:
    """Return a window in strips of rows, each the work of one thread."""
    height, width = window.shape
    step = max(1, min(-(-height // 2), _PIXELS_A_STRIP // width))
    return [
        replace(window, top=top, bottom=min(top + step, window.bottom))
        for top in range(window.top, window.bottom, step)
    ]


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
            where = f"{_name(fetch.pieces[0], fetch.job)}{more}"
            raise type(error)(error.href, f"{where}: {error.reason}") from error.__cause__
        await asyncio.gather(
            *[
                running.run_in_executor(loop.decode_pool(), _place_all, fetch, data, batch)
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


def _name(piece: Piece, job: _Job) -> str:
    return f"tile {piece.tile} of level {job.read.level}"


def _place_all(fetch: _Fetch, data: memoryview, pieces: list[Piece]) -> None:
    for piece in pieces:
        begin = piece.offset - fetch.request.start
        try:
            _decode_and_place(data[begin : begin + piece.length], piece, fetch.job)
        except DecodeError as error:
            where = f"bytes {piece.offset}-{piece.offset + piece.length - 1}"
            reason = f"{_name(piece, fetch.job)} ({where}) is damaged: {error}"
            raise ReadError(fetch.job.read.facts.href, reason) from None


def _decode_and_place(encoded: memoryview, piece: Piece, job: _Job) -> None:
    """Decode one tile and write the wanted part of it where it belongs."""
    layout, first = piece.layout, piece.targets[0]
    is_whole = (piece.height, piece.width) == (layout.height, layout.width)
    if is_whole and len(piece.targets) == 1 and first.how is None and first.band != VALIDITY:
        part = job.parts[first.band, first.time]
        if decode_into(encoded, layout, part[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width]):
            return
    rows = decode_tile(encoded, layout, piece.tile_y, piece.tile_y + piece.height)
    wanted = rows[:, piece.tile_x : piece.tile_x + piece.width]
    for target in piece.targets:
        _place(wanted[..., target.sample], target, piece, job)


def _place(pixels: np.ndarray, target: Target, piece: Piece, job: _Job) -> None:
    place = np.s_[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width]
    if target.band != VALIDITY:
        _write(pixels, target, job.parts[target.band, target.time][place])
    elif job.valid is not None:
        np.not_equal(pixels, 0, out=job.valid[place])


def _write(pixels: np.ndarray, target: Target, part: np.ndarray) -> None:
    if target.how is None:
        part[...] = pixels
    else:
        normalise(pixels, target.how, part)


def _place_with_gdal(job: _Job, spec: CubeSpec) -> None:
    """Read one source through GDAL; blocks, and waits for range requests, so never on the loop or the decode pool."""
    from cube.gdal.handles import BlockCache
    from cube.gdal.read import read_valid_with_gdal, read_with_gdal

    read, facts = job.read, job.read.facts
    file = None
    if local_path(facts.href) is None:
        signed = sign(facts.href, spec.patch_url)
        file = BlockCache(RangeFile(facts.href, signed=signed, version=version_of(facts)))
    samples = tuple(dict.fromkeys(target.sample for target in read.targets))
    pixels = read_with_gdal(facts.href, file, level=read.level, samples=samples, window=read.window)
    for target in read.targets:
        _write(pixels[samples.index(target.sample)], target, job.parts[target.band, target.time])
    if job.valid is not None:
        job.valid[...] = read_valid_with_gdal(
            facts.href, file, validity=facts.validity, level=read.level, window=read.window
        )


def _apply_masks(manifest: Manifest, jobs: Sequence[_Job]) -> None:
    """Mark as missing what a source's mask or alpha calls invalid; the alpha sample itself stays what it is."""
    for job in jobs:
        if job.valid is None or job.is_missing:
            continue
        invalid = ~job.valid
        for key, part in job.parts.items():
            if not _is_alpha(job, key):
                part[invalid] = manifest.band(key[0]).hole
