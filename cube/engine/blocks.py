"""Which part of a cube one dask block holds: many tiles and all the dates that it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cube.engine.workers import find_workers
from cube.errors import SelectionError
from cube.layers import spread
from cube.manifest.open import Manifest, open_spec
from cube.selection import Selection
from cube.settings import MIB, get_settings
from cube.spec import Band

type Blocks = tuple[tuple[int, ...], ...]
"""Lengths of the blocks along each dimension, as dask writes chunks."""

_ROUND_TRIPS = 10
"""A read takes this many times the latency at least: waiting for its first byte is then a tenth of it at most."""
_LEAST_BYTES = 64 * MIB
"""Decoded bytes of a block where there is no latency: its tasks then cost a few percent of its read."""
_COPIES = 3
_PARTS = (1, 2, 4)
"""Of a tile, for a block that memory has no room for otherwise: a tile is then read as many times."""
_STRIP_BYTES = 16 * MIB
"""Stored bytes of a strip at most, where a row of tiles has less: some tens of milliseconds of decoding."""
_SHARE = 0.5
"""Of a worker's memory, for what its threads work on; a worker of dask begins to spill at 0.6."""


def plan_blocks(selection: Selection, chunks: Mapping[str, Any] | str) -> Blocks:
    """Return the blocks of a selection.

    "auto" takes every date (what reduces over time then needs no rechunk) and whole tiles in space: as many as make a
    read long beside the store's latency, as leave a block to every core, and as fit a worker's memory with room to
    compute in. Where one tile with all dates does not fit, halves or quarters of tiles do; else dates are split.

    Args:
        selection: What is opened.
        chunks: "auto" (or {}), or lengths by dimension: an int, -1 for all, "auto"; a dimension left out is "auto".

    Raises:
        SelectionError: A dimension that the cube does not have, or a length that is none.
    """
    if chunks == "auto":
        chunks = {}
    if not isinstance(chunks, Mapping):
        raise SelectionError(f"chunks={chunks!r}: give 'auto', None or lengths by dimension")
    unknown = set(chunks) - set(selection.dims)
    if unknown:
        raise SelectionError(f"chunks={dict(chunks)!r}: the cube's dimensions are {', '.join(selection.dims)}")
    manifest = open_spec(selection.spec)
    lengths = dict(zip(selection.dims, selection.shape, strict=True))
    steps = {dim: _step(dim, chunks.get(dim, "auto"), lengths[dim]) for dim in selection.dims}
    bands = [band for _, band in selection.bands]
    workers = find_workers()
    working = sum(_working_bytes(band) for band in bands)
    # Beside it the pixels of the sources, where they are finer and have no overview that fits.
    beside = (spread(manifest) - 1) * sum(np.dtype(band.dtype).itemsize for band in bands)
    room = int(workers.thread_bytes * _SHARE / (working + beside))
    dates, tile = _fit(steps, lengths.get("time", 1), tile_shape(manifest, selection.spec.level), room)
    # A block a core at least: one large block would leave the other cores without work.
    share = -(-lengths["y"] * lengths["x"] // workers.threads)
    pixels = max(1, min(_aim(bands) // dates, room // dates, share))
    window = selection.window
    if manifest.on.grid is not None and steps["y"] is None and steps["x"] is None:
        rows, columns = _pieces(lengths["y"], lengths["x"], pixels, tile)
        space = _split(lengths["y"], rows, 0), _split(lengths["x"], columns, 0)
        return space if selection.stamps is None else (_split(lengths["time"], dates, 0), *space)
    rows, columns = _tiles(pixels, tile, steps["y"], steps["x"], lengths["x"])
    rows, columns = _even(lengths["y"], rows, tile[0]), _even(lengths["x"], columns, tile[1])
    space = (
        _split(lengths["y"], steps["y"] or rows, window.top if steps["y"] is None else 0),
        _split(lengths["x"], steps["x"] or columns, window.left if steps["x"] is None else 0),
    )
    return space if selection.stamps is None else (_split(lengths["time"], dates, 0), *space)


def plan_strips(selection: Selection) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the lengths along y and x of blocks that are read and worked on one after another, all dates in each.

    Smaller ones than dask's, whose tasks cost more: the first is worked on while the others are on their way.
    """
    *_, rows, columns = plan_blocks(selection, {} if selection.stamps is None else {"time": -1})
    height, _ = tile_shape(open_spec(selection.spec), selection.spec.level)
    row_bytes = sum(np.dtype(band.dtype).itemsize for _, band in selection.bands) * len(selection.times) * max(columns)
    step = height * max(1, _STRIP_BYTES // (height * row_bytes))
    if step < max(rows):
        rows = _split(selection.window.shape[0], step, selection.window.top)
    return rows, columns


def _working_bytes(band: Band) -> int:
    """Return bytes a pixel and date while a block is computed: as stored, as floats, and copies of these.

    Three copies are what numpy's median over time takes at its peak, measured, of all that is usually done.
    """
    dtype = np.dtype(band.dtype)
    if band.classes or dtype.kind == "c":
        return (2 + _COPIES) * dtype.itemsize
    is_scaled = (band.scale, band.offset) != (1.0, 0.0)  # by xarray's rule, of which the doubles of a scale count
    narrow = not is_scaled and (dtype.itemsize <= 2 or dtype.name == "float32")
    return dtype.itemsize + (1 + _COPIES) * (4 if narrow else 8)


def _aim(bands: Sequence[Band]) -> int:
    """Return pixels times dates of a block that is large enough."""
    settings = get_settings()
    widths = [np.dtype(band.dtype).itemsize for band in bands]
    if settings.block_bytes is not None:
        return settings.block_bytes // max(widths)
    speed = min(settings.decode_mb_s, settings.store_mb_s) * 1e6
    return max(_LEAST_BYTES, int(_ROUND_TRIPS * settings.latency_ms / 1e3 * speed)) // sum(widths)


def _fit(steps: Mapping[str, int | None], count: int, tile: tuple[int, int], room: int) -> tuple[int, tuple[int, int]]:
    """Return the dates of a block and what it is made of in space, tiles or even parts of them, that have room."""
    dates = steps.get("time") or count
    rows, columns = steps["y"] or tile[0], steps["x"] or tile[1]
    for parts in _PARTS:
        if (parts == 1 or (steps["y"] is None and tile[0] % parts == 0)) and rows // parts * columns * dates <= room:
            return dates, (tile[0] // parts, tile[1])
    if steps.get("time"):
        return dates, tile
    pieces = -(-count // max(1, room // (rows * columns)))
    return -(-count // min(pieces, count)), tile


def tile_shape(manifest: Manifest, level: int) -> tuple[int, int]:
    """Return (rows, columns) of the first source's tiles: what the blocks and served chunks are multiples of."""
    image = manifest.image(0, level if manifest.on.grid is None else 0)
    return image.tile_height, image.tile_width


def _step(dim: str, asked: Any, length: int) -> int | None:
    if asked is None or asked == "auto":
        return None
    if isinstance(asked, bool) or not isinstance(asked, (int, np.integer)) or asked == 0 or asked < -1:
        raise SelectionError(f"chunks: {dim}={asked!r} is no length; give an int, -1 for all, or 'auto'")
    return length if asked == -1 else min(int(asked), length)


def _tiles(pixels: int, tile: tuple[int, int], rows: int | None, columns: int | None, width: int) -> tuple[int, int]:
    """Return rows and columns of a block of whole tiles with at most `pixels` pixels (at least a tile).

    As wide as it may be: tiles that lie side by side lie so in the file, and are one request.
    """
    if columns is None:
        least = rows if rows is not None else tile[0]
        columns = min(-(-width // tile[1]), max(1, pixels // least // tile[1])) * tile[1]
    if rows is None:
        rows = max(1, pixels // columns // tile[0]) * tile[0]
    return rows, columns


def _pieces(height: int, width: int, pixels: int, tile: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of blocks whose edges lie on no tiles' edges, since the cube's pixels are not the files'.

    Tiles across an edge are read by both neighbours: of all ways to cut a grid into blocks of at most `pixels`, the one
    that reads the fewest tiles.
    """
    best = (math.inf, 1, 1)
    for across in range(1, min(width, height * width // pixels + 1) + 1):
        columns = -(-width // across)
        if columns > pixels:
            continue
        rows = min(height, -(-pixels // columns))
        down = -(-height // rows)
        rows = -(-height // down)
        touched = down * (rows / tile[0] + 1) * across * (columns / tile[1] + 1)
        best = min(best, (touched, rows, columns))
    return best[1], best[2]


def _even(length: int, step: int, tile: int) -> int:
    """Return the smallest multiple of `tile` that cuts `length` into as many blocks as `step` does."""
    count = -(-length // step)
    return -(-length // (count * tile)) * tile


def _split(length: int, step: int, start: int) -> tuple[int, ...]:
    """Return block lengths whose edges are multiples of `step`, counted from `start` pixels before the first."""
    if step >= length:
        return (length,)
    edges = [0, *range(step - start % step, length, step), length]
    return tuple(stop - begin for begin, stop in pairwise(edges) if stop > begin)
