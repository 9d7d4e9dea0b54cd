"""The directories of a TIFF or BigTIFF file over the bytes that are at hand; every count is bounded before use."""

from __future__ import annotations

import math
import struct
from bisect import bisect_right, insort
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cube.errors import HeaderError, UnsupportedSourceError

MAX_TILES = 2**25
"""Tiles of all levels together: half a gigabyte of tables."""
MAX_EDGE = 2**31 - 1
"""Pixels of width or height: GDAL's limit."""
MAX_IMAGES = 64
"""Directories of a file: 30 overviews (GDAL's limit), as many masks."""
MAX_TAGS = 4096
"""Tags of a directory: libtiff's limit."""
MAX_VALUE_BYTES = 2**22
"""Bytes of one tag's value, tile tables apart."""
MAX_TILE_BYTES = 2**30
"""Bytes of one decoded tile."""

_ASK_BYTES = 4096  # where a directory is missing: it, perhaps its neighbours, and their small values
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 13: "u4",
          16: "u8", 17: "i8", 18: "u8"}  # fmt: skip
_FORMATS = {1: "u", 2: "i", 3: "f", 4: "u", 5: "c", 6: "c"}
_NO_CODEC = 1


class Tag:
    """Numbers of the tags that are read."""

    SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
    FILL_ORDER, SAMPLES, PLANAR, PREDICTOR, COLORMAP = 266, 277, 284, 317, 320
    TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS, SUBIFDS, EXTRA, FORMAT = 322, 323, 324, 325, 330, 338, 339
    PIXEL_SCALE, TIEPOINTS, MATRIX, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 33550, 33922, 34264, 34735, 34736, 34737
    GDAL_METADATA, GDAL_NODATA = 42112, 42113


_FLOAT_TAGS = (Tag.PIXEL_SCALE, Tag.TIEPOINTS, Tag.MATRIX, Tag.GEO_DOUBLES)


class MissingBytesError(Exception):
    """Bytes that a header needs and that nobody has added yet: `ranges`, ascending (start, stop) pairs."""

    def __init__(self, ranges: tuple[tuple[int, int], ...]) -> None:
        super().__init__(ranges)
        self.ranges = ranges


class ByteParts:
    """The parts of a file that are at hand, by their offset; `size` is that of the whole file."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: list[tuple[int, int, memoryview]] = []  # (start, stop, bytes), ascending, disjoint

    def add(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Add the bytes at `offset`; ValueError if they reach past the end of the file."""
        view = memoryview(data).cast("B").toreadonly()
        stop = offset + len(view)
        if offset < 0 or stop > self.size:
            raise ValueError(f"bytes {offset}-{stop} do not lie in a file of {self.size} bytes")
        for a, b in list(self._gaps(offset, stop)):
            insort(self._parts, (a, b, view[a - offset : b - offset]), key=lambda part: part[0])

    def get(self, offset: int, length: int) -> memoryview:
        """Return `length` bytes at `offset`; MissingBytesError if not all are here, EOFError past the end."""
        stop = offset + length
        if offset < 0 or stop > self.size:
            raise EOFError(f"bytes {offset}-{stop} do not lie in a file of {self.size} bytes")
        first = self._index(offset)
        if first < len(self._parts):
            a, b, view = self._parts[first]
            if a <= offset and stop <= b:
                return view[offset - a : stop - a]
        if gaps := tuple(self._gaps(offset, stop)):
            raise MissingBytesError(gaps)
        return memoryview(b"".join(v[max(offset - a, 0) : max(stop - a, 0)] for a, _, v in self._parts[first:]))

    def _index(self, offset: int) -> int:
        return max(bisect_right(self._parts, offset, key=lambda part: part[0]) - 1, 0)

    def _gaps(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for a, b, _ in self._parts[self._index(start) :]:
            if a >= stop:
                break
            if start < a:
                yield start, a
            start = max(start, b)
        if start < stop:
            yield start, stop


class TiffFile:
    """Reads bytes and directories; what is not at hand is noted in `missing` and the walk goes on."""

    def __init__(self, href: str, parts: ByteParts) -> None:
        self.href, self.parts = href, parts
        self.missing: list[tuple[int, int]] = []
        self.tiles = self.first = 0
        head = bytes(self.take(0, min(16, max(8, parts.size)), "the file header", _ASK_BYTES) or b"")
        self.order: Literal["<", ">"] = ">" if head[:2] == b"MM" else "<"
        self.big = head[:4] in (b"II+\0", b"MM\0+")
        if self.big and head[4:8] == struct.pack(self.order + "HH", 8, 0) and len(head) == 16:
            (self.first,) = struct.unpack(self.order + "Q", head[8:])
        elif head[:4] in (b"II*\0", b"MM\0*"):
            (self.first,) = struct.unpack(self.order + "I", head[4:8])
        elif head:
            raise self.error(f"is not a TIFF, it begins with {head[:8]!r}")

    def error(self, reason: str) -> HeaderError:
        """Return the error that names the file."""
        return HeaderError(self.href, reason)

    def take(self, offset: int, length: int, what: str, ask: int = 0) -> memoryview | None:
        """Return bytes; None after noting those that are missing, and at least `ask` of them."""
        size = self.parts.size
        if offset + length > size:
            raise self.error(f"{what} ends at byte {offset + length}, but the file has {size} bytes (truncated?)")
        try:
            return self.parts.get(offset, length)
        except MissingBytesError as error:
            start = error.ranges[0][0]
            self.missing += [*error.ranges, (start, min(start + ask, size))]
            return None

    def image(self, offset: int, name: str) -> tuple[Image, int] | None:
        """Return a directory and the offset of the next, or None if its table is not at hand."""
        formats = ("Q", "HHQ8s", "Q") if self.big else ("H", "HHI4s", "I")
        head, entry, tail = (struct.Struct(self.order + code) for code in formats)
        what = f"the table of {name}"
        counted = self.take(offset, head.size, what, _ASK_BYTES)
        if counted is None:
            return None
        (count,) = head.unpack(counted)
        if not 0 < count <= MAX_TAGS:
            raise self.error(f"{name} has {count} tags, which is absurd (at most {MAX_TAGS})")
        length = count * entry.size
        table = self.take(offset + head.size, length + tail.size, what, _ASK_BYTES)
        if table is None:
            return None
        rows = [*entry.iter_unpack(table[:length])]
        entries = {tag: (kind, n, value) for tag, kind, n, value in reversed(rows)}  # of two alike, the first
        return Image(self, name, entries), tail.unpack(table[length:])[0]


class Image:
    """One image file directory: its scalars, and in `values` the arrays that were loaded."""

    def __init__(self, file: TiffFile, name: str, entries: dict[int, tuple[int, int, bytes]]) -> None:
        self.file, self.name, self.entries = file, name, entries
        self.values: dict[int, NDArray[Any]] = {}
        self.kind = self._scalar(Tag.SUBFILE, {2: 1, 3: 2}.get(self._scalar(Tag.OLD_SUBFILE, 0), 0))
        self.size = self._scalar(Tag.WIDTH, 0), self._scalar(Tag.HEIGHT, 0)
        self.samples = self._scalar(Tag.SAMPLES, 1)
        self.codec = self._scalar(Tag.COMPRESSION, _NO_CODEC)
        self.predictor = 1 if self.codec == _NO_CODEC else self._scalar(Tag.PREDICTOR, 1)  # as libtiff
        self.photometric = self._scalar(Tag.PHOTOMETRIC, 1)
        self.fill_order = self._scalar(Tag.FILL_ORDER, 1)
        is_contiguous = self._scalar(Tag.PLANAR, 1) == 1
        self.interleave: Literal["pixel", "band"] = "pixel" if is_contiguous and self.samples > 1 else "band"
        self.planes = 1 if is_contiguous else self.samples
        self.is_tiled = Tag.TILE_WIDTH in entries
        self.tile = self._scalar(Tag.TILE_WIDTH, self.size[0]), self._scalar(Tag.TILE_HEIGHT, self.size[1])
        self.shape = self.planes, 0, 0

    def _scalar(self, tag: int, default: int) -> int:
        if tag not in self.entries:
            return default
        kind, count, value = self.entries[tag]
        code = _TYPES.get(kind, "")
        if count != 1 or code[:1] != "u":
            raise self.file.error(f"tag {tag} of {self.name} is not one whole number")
        return int.from_bytes(value[: int(code[1])], "big" if self.file.order == ">" else "little")

    def load(self, tag: int, *, most: int = MAX_VALUE_BYTES) -> None:
        """Decode the value of a tag, if there is one and its bytes are at hand; `most` bounds its bytes."""
        kind, count, value = self.entries.get(tag, (0, 0, b""))
        code = _TYPES.get(kind)
        if code is None or not count:  # libtiff skips types that it does not know, too
            return
        what, length = f"tag {tag} of {self.name}", count * int(code[1])
        if length > most or (code[0] != "u" and tag not in _FLOAT_TAGS):
            raise self.file.error(f"{what} has {count} values of type {kind}, which is absurd")
        data: bytes | memoryview | None = value[:length]
        if length > len(value):
            (offset,) = struct.unpack(self.file.order + ("Q" if self.file.big else "I"), value)
            data = self.file.take(offset, length, what)
        if data is not None:
            self.values[tag] = np.frombuffer(data, self.file.order + code)

    def load_level(self) -> None:
        """Check the arithmetic of a level, and load its sample types and tile tables."""
        (width, height), (tile_width, tile_height) = self.size, self.tile
        if not (0 < width <= MAX_EDGE and 0 < height <= MAX_EDGE and self.samples):
            raise self.file.error(f"{self.name} has {width} x {height} pixels of {self.samples} samples")
        self.load(Tag.BITS, most=8 * self.samples)
        self.load(Tag.FORMAT, most=8 * self.samples)
        if not self.is_tiled:
            return
        if not (0 < tile_width <= MAX_EDGE and 0 < tile_height <= MAX_EDGE):
            raise self.file.error(f"{self.name} has tiles of {tile_width} x {tile_height} pixels")
        self.shape = self.planes, -(-height // tile_height), -(-width // tile_width)
        tiles = math.prod(self.shape)
        self.file.tiles += tiles
        if self.file.tiles > MAX_TILES:
            raise self.file.error(
                f"has {self.file.tiles} tiles up to {self.name}, which is absurd (at most {MAX_TILES})"
            )
        for tag, what in (Tag.TILE_OFFSETS, "offsets"), (Tag.TILE_LENGTHS, "lengths"):
            kind, count, _ = self.entries.get(tag, (0, 0, b""))
            if count != tiles or kind not in _TYPES:
                raise self.file.error(f"{self.name} has {tiles} tiles, but {count} tile {what} of type {kind}")
            self.load(tag, most=8 * tiles)

    def numbers(self, tag: int) -> list[Any]:
        """Return the value of a loaded tag as numbers; empty where it is absent."""
        return self.values[tag].tolist() if tag in self.values else []

    def raw(self, tag: int) -> bytes:
        """Return the value of a loaded tag as bytes."""
        return self.values[tag].tobytes() if tag in self.values else b""

    def text(self, tag: int) -> str:
        """Return the value of a loaded tag as text, up to the first zero byte."""
        return self.raw(tag).split(b"\0", 1)[0].decode("utf-8", "replace")

    @cached_property
    def sample_type(self) -> str:
        """Kind and bits of the samples ("u16"), or "mixed"."""
        bits, formats = set(self.numbers(Tag.BITS)) or {1}, set(self.numbers(Tag.FORMAT)) or {1}
        return f"{_FORMATS.get(formats.pop(), 'u')}{bits.pop()}" if len(bits) == len(formats) == 1 else "mixed"

    @cached_property
    def tile_bytes(self) -> int:
        """Bytes of one decoded tile."""
        bits = max(self.numbers(Tag.BITS), default=1)
        return math.prod(self.tile) * (self.samples // self.planes) * -(-bits // 8)


def merge_ranges(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the union of ranges, in order."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def walk(file: TiffFile) -> list[Image]:
    """Return all images whose tables are at hand: the main one, those in its SubIFDs, then the chain (as GDAL)."""
    images: list[Image] = []
    seen: set[int] = set()
    todo = [(file.first, True)] if file.first else []
    while todo:
        offset, chained = todo.pop()
        if offset in seen:
            raise file.error(f"has image directories in a loop (byte {offset} is named twice)")
        if len(seen) == MAX_IMAGES:
            raise UnsupportedSourceError(file.href, f"has more than {MAX_IMAGES} images")
        seen.add(offset)
        found = file.image(offset, f"image {len(seen)}")
        if found is None:
            continue
        image, following = found
        images.append(image)
        if chained and following:
            todo.append((following, True))
        if len(seen) == 1:
            image.load(Tag.SUBIFDS, most=8 * MAX_IMAGES)
            todo += [(sub, False) for sub in reversed(image.numbers(Tag.SUBIFDS))]
    if not seen and not file.missing:
        raise file.error("has no image")
    return images
