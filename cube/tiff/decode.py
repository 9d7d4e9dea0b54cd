"""The bytes of one tile or strip to pixels; releases the GIL, so that threads decode side by side."""

from __future__ import annotations

import re
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from isal import igzip_lib, isal_zlib

NONE, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE = 1, 5, 7, 8, 32773, 32946
LERC, ZSTD, WEBP = 34887, 50000, 50001
HORIZONTAL, FLOATING_POINT = 2, 3
YCBCR = 6

_DECOMPRESS: dict[int, Callable[..., Any]] = {
    LZW: imagecodecs.lzw_decode,
    DEFLATE: imagecodecs.deflate_decode,  # libdeflate, twice as fast as zlib
    PACKBITS: imagecodecs.packbits_decode,
    OLD_DEFLATE: imagecodecs.deflate_decode,
    ZSTD: imagecodecs.zstd_decode,
}
_PREDICTED = {LZW, DEFLATE, OLD_DEFLATE, ZSTD}  # the others have no predictor, whatever the tag says (as libtiff)
_DEFLATES = {DEFLATE, OLD_DEFLATE}
_PART = 0.75  # of a tile; of more, libdeflate's whole one is as quick
_MAX_SCANS = 100  # of a progressive JPEG, as libtiff: each costs the time of the whole tile, whatever its length
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_WEBP_ANIMATION = 2
_LERC_VERSIONS = re.compile(rb"Lerc2 (.{4})", re.DOTALL)  # one image a band
_LERC_VERSION = 5  # GDAL writes 4; liblerc's decoder of the packed floats of 6 runs past the end of forged bytes
_NATIVE = "<" if np.dtype("=u2") == np.dtype("<u2") else ">"

_scratch = threading.local()


class DecodeError(ValueError):
    """Bytes that are not a tile of the layout that the header promised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLayout:
    """How the pixels of one image's tiles are stored; strips are tiles as wide as the image."""

    dtype: np.dtype[Any]
    """In native byte order."""
    byteorder: str
    """"<" or ">"."""
    samples: int
    """Samples a tile holds: all of a pixel-interleaved file, else 1."""
    height: int
    """Of a short last strip: the rows that are really there."""
    width: int
    compression: int
    """TIFF's code."""
    predictor: int
    photometric: int = 1
    """TIFF's code; JPEG tiles of YCbCr become RGB."""
    tables: bytes | None = None
    """The tables that the JPEG tiles of one image share."""
    bits: int = 0
    """1 for images of one bit a sample, which become uint8; 0 where samples fill their dtype."""

    @property
    def nbytes(self) -> int:
        """Bytes of a decompressed tile."""
        row = self.width * self.samples
        return self.height * (-(-row // 8) if self.bits else row * self.dtype.itemsize)


class _Frame(NamedTuple):
    """What a JPEG stream announces."""

    shape: tuple[int, int, int]
    is_subsampled: bool


def decode_tile(encoded: memoryview, layout: TileLayout, top: int = 0, bottom: int | None = None) -> np.ndarray:
    """Return the pixels of one tile, or of some of its rows.

    Args:
        encoded: The tile as it stands in the file.
        layout: What the header says of it.
        top: First row.
        bottom: One past the last row; the tile's last where None. Where much of a tile lies below, it is not decoded,
            and damage there is not noticed.

    Returns:
        (rows, width, samples) in native byte order; perhaps read-only, perhaps a view of this thread's scratch
        memory: valid until the next call on this thread.

    Raises:
        DecodeError: The bytes cannot be decoded, or are a tile of another size or kind.
    """
    bottom = layout.height if bottom is None else bottom
    if layout.compression in _IMAGES:
        return _IMAGES[layout.compression](encoded, layout)[top:bottom]
    row_bytes = layout.nbytes // layout.height
    raw = _decompress(encoded, layout, bottom * row_bytes)[top * row_bytes :]
    shape = (bottom - top, layout.width, layout.samples)
    if layout.bits:
        pixels = np.unpackbits(raw.reshape(bottom - top, -1), axis=1, count=layout.width * layout.samples)
        return pixels.reshape(shape)
    return _undo_predictor(raw, layout, shape)


def decode_into(encoded: memoryview, layout: TileLayout, out: np.ndarray) -> bool:
    """Decode one tile straight into its place, which saves a pass over the pixels.

    Args:
        encoded: The tile as it stands in the file.
        layout: What the header says of it.
        out: (height, width) of the layout's dtype; may be a strided view.

    Returns:
        False, and nothing is done, where that is not possible: `decode_tile` then does it.

    Raises:
        DecodeError: As `decode_tile`.
    """
    if not (
        layout.predictor == HORIZONTAL
        and layout.compression in _PREDICTED
        and layout.samples == 1
        and layout.dtype.kind in "iu"
        and not layout.bits
        and (layout.byteorder == _NATIVE or layout.dtype.itemsize == 1)
        and out.dtype == layout.dtype
        and out.shape == (layout.height, layout.width)
    ):
        return False
    differences = _decompress(encoded, layout, layout.nbytes).view(layout.dtype).reshape(out.shape)
    imagecodecs.delta_decode(differences, axis=-1, out=out)
    return True


def _buffer(nbytes: int) -> np.ndarray:
    """Return this thread's scratch memory: fresh pages for each tile would cost more than some decoders."""
    buffer: np.ndarray | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.nbytes < nbytes:
        buffer = _scratch.buffer = np.empty(nbytes, "u1")
    return buffer[:nbytes]


_ERRORS: Any = (RuntimeError, ValueError, zlib.error, igzip_lib.IsalError)
"""Of decoders; those of imagecodecs are RuntimeErrors, and ValueErrors for what does not fit into `out`."""


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return function(*args, **options)
    except _ERRORS as error:
        raise DecodeError(str(error)) from None


def _decompress(encoded: memoryview, layout: TileLayout, wanted: int) -> np.ndarray:
    """Return the tile's first bytes, uint8 (wanted,)."""
    nbytes = layout.nbytes
    if layout.compression == NONE:
        raw = np.frombuffer(encoded, "u1")
    elif layout.compression in _DEFLATES and wanted < _PART * nbytes:
        # A stream can be left where it is enough, which halves the time of a single pixel; libdeflate has none.
        nbytes = wanted
        raw = np.frombuffer(_call(isal_zlib.decompressobj().decompress, encoded, nbytes), "u1")
    elif layout.compression in _DECOMPRESS:
        try:
            raw = np.asarray(_call(_DECOMPRESS[layout.compression], encoded, out=_buffer(nbytes)))
        except DecodeError as error:
            if "INSUFFICIENT_SPACE" not in str(error):
                raise
            # Some writers pad the last strip; libdeflate gives nothing then, zlib the part that counts.
            raw = np.frombuffer(_call(zlib.decompressobj().decompress, encoded, nbytes), "u1")
    else:
        raise DecodeError(f"compression {layout.compression} is not one that this reader decodes")
    if len(raw) < nbytes:
        raise DecodeError(f"decoded to {len(raw)} bytes where a tile has {nbytes}")
    return raw[:wanted]


def _undo_predictor(raw: np.ndarray, layout: TileLayout, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels, (rows, width, samples)."""
    predictor = layout.predictor if layout.compression in _PREDICTED else 1
    kind, size = layout.dtype.kind, layout.dtype.itemsize
    if predictor == FLOATING_POINT and kind == "f":
        # The bytes of each row lie sorted by significance, whatever the file's byte order: pixels come out native.
        rows = raw.view(layout.dtype).reshape(shape)
        restored: np.ndarray = _call(imagecodecs.floatpred_decode, rows, axis=-2)
        return restored
    if predictor == HORIZONTAL and size <= 8:
        # Differences are integers modulo the word, for floats and complex numbers too: GDAL adds their bits.
        word = f"u{size}"
        native = raw.view(f"{layout.byteorder}{word}").astype(word, copy=False).reshape(shape)
        summed: np.ndarray = _call(imagecodecs.delta_decode, native, axis=-2)
        return summed.view(layout.dtype)
    if predictor != 1:
        raise DecodeError(f"predictor {predictor} is not one that this reader undoes on {layout.dtype}")
    return raw.view(_stored(layout)).reshape(shape).astype(layout.dtype, copy=False)


def _stored(layout: TileLayout) -> np.dtype[Any]:
    """Return the dtype as the file has it."""
    return layout.dtype.newbyteorder("<" if layout.byteorder == "<" else ">")


def _decode_jpeg(encoded: memoryview, layout: TileLayout) -> np.ndarray:
    shape = (layout.height, layout.width, layout.samples)
    is_ycbcr = layout.photometric == YCBCR and layout.samples == 3
    stream = bytes(encoded)
    if layout.dtype != np.uint8:
        raise DecodeError(f"JPEG tiles hold uint8, not {layout.dtype}")
    if layout.tables is not None and _jpeg_frame(layout.tables) is not None:
        raise DecodeError("the tables of the JPEG tiles hold an image")
    frame = _jpeg_frame(stream)
    if frame is None or frame.shape != shape:
        raise DecodeError(f"a JPEG image of {frame and frame.shape} where a tile is {shape} (height, width, samples)")
    if frame.is_subsampled and not is_ycbcr:
        raise DecodeError("a JPEG image of subsampled components that are not YCbCr")
    start = stream.rfind(_START_OF_SCAN)
    if start < 0 or stream.find(_END_OF_IMAGE, start) < 0:  # libjpeg would fill up with grey
        raise DecodeError("a JPEG image without an end (truncated?)")
    if stream.count(_START_OF_SCAN) > _MAX_SCANS:
        raise DecodeError(f"a JPEG image of more than {_MAX_SCANS} scans")
    # What components are and become is the header's to say: libjpeg would guess it from the stream.
    same = {1: "GRAYSCALE", 3: "RGB", 4: "CMYK"}.get(layout.samples)
    pixels: np.ndarray = _call(
        imagecodecs.jpeg8_decode,
        stream,
        tables=layout.tables,
        colorspace="YCBCR" if is_ycbcr else same,
        outcolorspace=same,
        out=_buffer(layout.nbytes).reshape(shape if layout.samples > 1 else shape[:2]),
    )
    return pixels.reshape(shape)


def _jpeg_frame(stream: bytes) -> _Frame | None:
    """Return the size of the image that a JPEG stream holds; None where none begins."""
    position = 2
    while position + 10 <= len(stream) and stream[position] == 0xFF:
        kind = stream[position + 1]
        if kind == 0xFF:  # fill
            position += 1
        elif kind == 0x01 or 0xD0 <= kind <= 0xD9:  # markers without a length
            position += 2
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # tables, reserved, arithmetic conditioning
            height, width, components = struct.unpack_from(">HHB", stream, position + 5)
            factors = stream[position + 11 : position + 10 + 3 * components : 3]
            return _Frame((height, width, components), is_subsampled=factors != b"\x11" * components)
        else:
            position += 2 + int.from_bytes(stream[position + 2 : position + 4])
    return None


def _decode_webp(encoded: memoryview, layout: TileLayout) -> np.ndarray:
    shape = (layout.height, layout.width, layout.samples)
    if layout.dtype != np.uint8 or layout.samples not in (3, 4):
        raise DecodeError(f"WebP tiles hold 3 or 4 samples of uint8, not {layout.samples} of {layout.dtype}")
    if bytes(encoded[12:16]) == b"VP8X" and len(encoded) > 20 and encoded[20] & _WEBP_ANIMATION:
        raise DecodeError("an animated WebP image")
    # Encoders leave out an alpha sample that is opaque everywhere.
    has_alpha = True if layout.samples == 4 else None
    out = _buffer(layout.nbytes).reshape(shape)
    pixels: np.ndarray = _call(imagecodecs.webp_decode, encoded, hasalpha=has_alpha, out=out)
    return pixels


def _decode_lerc(encoded: memoryview, layout: TileLayout) -> np.ndarray:
    height, width, samples = layout.height, layout.width, layout.samples
    blob = _lerc_blob(encoded, layout)
    version = max((int.from_bytes(word, "little") for word in _LERC_VERSIONS.findall(blob)), default=0)
    if version > _LERC_VERSION:
        raise DecodeError(f"LERC version {version}, of which this reader takes up to {_LERC_VERSION}")
    depth = int.from_bytes(blob[22:26], "little") if version >= 4 else 1
    is_float = layout.dtype.kind == "f"
    has_alpha = layout.dtype == np.uint8 and depth == samples - 1
    is_planar = is_float and depth == 1 < samples
    if not (depth == samples or has_alpha or is_planar):
        raise DecodeError(f"a LERC image of {depth} numbers a pixel where a tile has {samples} samples")
    pixels = np.empty((samples, height, width) if is_planar else (height, width, depth), layout.dtype)
    valid: np.ndarray | None = _call(imagecodecs.lerc_decode, blob, masks=True, out=pixels)[1]
    # GDAL stores NaNs as a mask, of all samples or one each, and so an alpha sample of nothing but 0 and 255.
    if has_alpha:
        opaque = np.ones((height, width), bool) if valid is None else valid
        pixels = np.dstack([pixels, opaque * np.uint8(255)])
    elif valid is not None and is_float:
        np.copyto(pixels, np.nan, where=~(valid if is_planar else valid[..., np.newaxis]))
    elif valid is not None:
        raise DecodeError(f"a LERC image with a mask, which no tile of {samples} samples of {layout.dtype} has")
    if is_planar:
        pixels = np.moveaxis(pixels, 0, -1)
    # In files of the other byte order the numbers that LERC holds are swapped ones.
    return pixels.view(_stored(layout)).astype(layout.dtype, copy=False)


def _lerc_blob(encoded: memoryview, layout: TileLayout) -> bytes:
    """Return a LERC image, which GDAL may have packed once more; the first bytes say how."""
    blob = bytes(encoded)
    for magic, decode in (b"\x28\xb5\x2f\xfd", imagecodecs.zstd_decode), (b"\x78", imagecodecs.deflate_decode):
        if blob.startswith(magic):
            room = _buffer(256 + layout.nbytes + layout.nbytes // 3)  # libtiff's bound
            blob = bytes(_call(decode, blob, out=room))
            break
    if not blob.startswith(b"Lerc2 "):  # its forerunner is in no TIFF
        raise DecodeError("not a LERC image")
    return blob


_IMAGES: dict[int, Callable[[memoryview, TileLayout], np.ndarray]] = {
    JPEG: _decode_jpeg,
    LERC: _decode_lerc,
    WEBP: _decode_webp,
}
