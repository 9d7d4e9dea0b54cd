"""The bytes of one tile to pixels in their place; releases the GIL, so that threads decode side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np

from cube.plan import Piece, TileLayout

NONE, LZW, DEFLATE, OLD_DEFLATE, ZSTD = 1, 5, 8, 32946, 50000
HORIZONTAL, FLOATING_POINT = 2, 3

_DECOMPRESS: dict[int, Callable[..., Any]] = {
    LZW: imagecodecs.lzw_decode,
    DEFLATE: imagecodecs.deflate_decode,  # libdeflate, twice as fast as zlib
    OLD_DEFLATE: imagecodecs.deflate_decode,
    ZSTD: imagecodecs.zstd_decode,
}

_scratch = threading.local()


class DecodeError(ValueError):
    """Bytes that are not a tile of the layout that the header promised."""


def place_tile(encoded: memoryview, piece: Piece, outputs: dict[str, np.ndarray]) -> None:
    """Decode one tile and write the wanted part of it where it belongs.

    Args:
        encoded: The tile as it stands in the file.
        piece: Its layout, and which part of it goes where.
        outputs: (time, rows, columns) arrays by band, in native byte order.

    Raises:
        DecodeError: The bytes cannot be decoded, or to another size than the tile's.
    """
    layout = piece.layout
    raw = _decompress(encoded, layout)
    rows, columns = slice(piece.y, piece.y + piece.height), slice(piece.x, piece.x + piece.width)
    if len(piece.targets) == 1 and _decodes_in_place(piece):
        target = piece.targets[0]
        tile = raw.view(layout.dtype).reshape(layout.height, layout.width)
        imagecodecs.delta_decode(tile, axis=-1, out=outputs[target.band][target.time, rows, columns])
        return
    pixels = _undo_predictor(raw, layout)
    wanted = pixels[piece.tile_y : piece.tile_y + piece.height, piece.tile_x : piece.tile_x + piece.width]
    for target in piece.targets:
        outputs[target.band][target.time, rows, columns] = wanted[..., target.sample]


def _decodes_in_place(piece: Piece) -> bool:
    """Whether the predictor can be undone straight into the output: a whole tile of one sample of integers."""
    layout = piece.layout
    return (
        layout.predictor == HORIZONTAL
        and layout.samples == 1
        and layout.dtype.kind in "iu"
        and (layout.byteorder == _NATIVE or layout.dtype.itemsize == 1)
        and (piece.height, piece.width) == (layout.height, layout.width)
    )


_NATIVE = "<" if np.dtype("=u2") == np.dtype("<u2") else ">"


def _buffer(nbytes: int) -> np.ndarray:
    """Return this thread's scratch memory: fresh pages for each tile would cost more than some decoders."""
    buffer: np.ndarray | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.nbytes < nbytes:
        buffer = _scratch.buffer = np.empty(nbytes, "u1")
    return buffer[:nbytes]


def _decompress(encoded: memoryview, layout: TileLayout) -> np.ndarray:
    """Return the tile's bytes, uint8 (nbytes,)."""
    nbytes = layout.nbytes
    if layout.compression == NONE:
        raw = np.frombuffer(encoded, "u1")
    else:
        try:
            raw = np.asarray(_DECOMPRESS[layout.compression](encoded, out=_buffer(nbytes)))
        except KeyError:
            raise DecodeError(f"compression {layout.compression} is not one that this reader decodes") from None
        except RuntimeError as error:  # what all of imagecodecs' own errors are
            raise DecodeError(str(error)) from None
    if len(raw) < nbytes:
        raise DecodeError(f"decoded to {len(raw)} bytes where a tile has {nbytes}")
    return raw[:nbytes]


def _undo_predictor(raw: np.ndarray, layout: TileLayout) -> np.ndarray:
    """Return the pixels, (height, width, samples)."""
    shape = (layout.height, layout.width, layout.samples)
    stored = np.dtype(f"{layout.byteorder}{layout.dtype.kind}{layout.dtype.itemsize}")
    if layout.predictor == FLOATING_POINT:
        # The bytes of each row lie sorted by significance, whatever the file's byte order: pixels come out native.
        rows = raw.view(layout.dtype).reshape(shape)
        restored: np.ndarray = imagecodecs.floatpred_decode(rows, axis=-2)
        return restored
    pixels = raw.view(stored).reshape(shape)
    if layout.predictor == HORIZONTAL:
        # Differences are integers modulo the word, for floats too: GDAL adds their bits.
        word = f"u{layout.dtype.itemsize}"
        native = pixels.view(f"{layout.byteorder}{word}").astype(word, copy=False)
        summed: np.ndarray = imagecodecs.delta_decode(native, axis=-2)
        return summed.view(layout.dtype)
    return pixels
