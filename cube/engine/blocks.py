"""Which part of a cube one dask block holds: many tiles and all the dates that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from cube.errors import SelectionError
from cube.manifest.open import Manifest
from cube.selection import Selection
from cube.settings import get_settings

type Blocks = tuple[tuple[int, ...], ...]
"""Lengths of the blocks along each dimension, as dask writes chunks."""


def plan_blocks(manifest: Manifest, selection: Selection, chunks: Mapping[str, Any] | str) -> Blocks:
    """Return the blocks of a selection.

    Args:
        manifest: The cube, for the size of its tiles.
        selection: What is opened.
        chunks: "auto" (or {}), or lengths by dimension: an int, -1 for all, "auto"; a dimension left out is "auto".
            "auto" takes every date (what reduces over time then needs no rechunk) and whole tiles in space, up to
            `CUBE_BLOCK_BYTES` a band.

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
    lengths = dict(zip(selection.dims, selection.shape, strict=True))
    steps = {dim: _step(dim, chunks.get(dim, "auto"), lengths[dim]) for dim in selection.dims}
    if "time" in steps and steps["time"] is None:
        steps["time"] = lengths["time"]
    tile_height, tile_width = tile_shape(manifest, selection.spec.level)
    per_pixel = max(np.dtype(band.dtype).itemsize for _, band in selection.bands) * (steps.get("time") or 1)
    settings = get_settings()
    # A block a core at least: one large block would leave the other cores without work.
    share = lengths["y"] * lengths["x"] // settings.decode_threads
    pixels = max(1, min(settings.block_bytes // per_pixel, share))
    rows, columns = _tiles(pixels, (tile_height, tile_width), steps["y"], steps["x"])
    rows, columns = _even(lengths["y"], rows, tile_height), _even(lengths["x"], columns, tile_width)
    window = selection.window
    space = (
        _split(lengths["y"], steps["y"] or rows, window.top if steps["y"] is None else 0),
        _split(lengths["x"], steps["x"] or columns, window.left if steps["x"] is None else 0),
    )
    return space if selection.stamps is None else (_split(lengths["time"], steps["time"] or 1, 0), *space)


def tile_shape(manifest: Manifest, level: int) -> tuple[int, int]:
    """Return (rows, columns) of the first source's tiles: what the blocks and served chunks are multiples of."""
    image = manifest.image(0, level)
    return image.tile_height, image.tile_width


def _step(dim: str, asked: Any, length: int) -> int | None:
    if asked is None or asked == "auto":
        return None
    if isinstance(asked, bool) or not isinstance(asked, (int, np.integer)) or asked == 0 or asked < -1:
        raise SelectionError(f"chunks: {dim}={asked!r} is no length; give an int, -1 for all, or 'auto'")
    return length if asked == -1 else min(int(asked), length)


def _tiles(pixels: int, tile: tuple[int, int], rows: int | None, columns: int | None) -> tuple[int, int]:
    """Return rows and columns of a near-square block of whole tiles with at most `pixels` pixels (at least a tile)."""
    if rows is not None:
        return rows, max(1, pixels // rows // tile[1]) * tile[1]
    if columns is not None:
        return max(1, pixels // columns // tile[0]) * tile[0], columns
    down = max(1, int(pixels**0.5) // tile[0])
    return down * tile[0], max(1, pixels // (down * tile[0]) // tile[1]) * tile[1]


def _even(length: int, step: int, tile: int) -> int:
    """Return the smallest multiple of `tile` that cuts `length` into as many blocks as `step` does."""
    count = -(-length // step)
    return -(-length // (count * tile)) * tile


def _split(length: int, step: int, start: int) -> tuple[int, ...]:
    """Return block lengths whose edges are multiples of `step`, counted from `start` pixels before the first."""
    edges = [0, *range(step - start % step, length, step), length]
    return tuple(stop - begin for begin, stop in pairwise(edges) if stop > begin)
