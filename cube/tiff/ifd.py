"""The directories of a TIFF or BigTIFF file over the bytes that are at hand; every count is bounded before use."""

from __future__ import annotations

import struct
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from cube.errors import HeaderError, NotTiffError

MAX_TILES = 2**25
"""Tiles of all levels together: half a gigabyte of tables."""
MAX_EDGE = 2**31 - 1
"""Pixels of width or height: GDAL's limit."""
MAX_SAMPLES = 2**16 - 1
"""Samples of a pixel: libtiff's limit."""
MAX_IMAGES = 64
"""Directories of a file: 30 overviews (GDAL's limit), as many masks."""
MAX_TAGS = 4096
"""Tags of a directory: libtiff's limit."""
MAX_VALUE_BYTES = 2**22
"""Bytes of one tag's value, tile tables apart."""
MAX_TILE_BYTES = 2**30
"""Bytes of one decoded tile."""

_ASK_BYTES = 4096  # where a directory is missing: it, perhaps its neighbours, and their small values
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I",
          16: "Q", 17: "q", 18: "Q"}  # fmt: skip
_SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in _CODES.items()}
_WHOLE = {kind for kind, code in _CODES.items() if code.isupper()}
_SAMPLE_KINDS = {1: "u", 2: "i", 3: "f", 4: "u", 5: "ci", 6: "c"}
_PREDICTED = {5, 8, 32946, 34925, 50000}  # libtiff: LZW, deflate (two codes), LZMA, zstd; others ignore the tag


class Tag:
    """Numbers of the tags that are read."""

    SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
    FILL_ORDER, STRIP_OFFSETS, SAMPLES, ROWS_A_STRIP, STRIP_LENGTHS = 266, 273, 277, 278, 279
    PLANAR, PREDICTOR, COLORMAP, JPEG_TABLES = 284, 317, 320, 347
    TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS, SUBIFDS, EXTRA, FORMAT = 322, 323, 324, 325, 330, 338, 339
    PIXEL_SCALE, TIEPOINTS, MATRIX, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 33550, 33922, 34264, 34735, 34736, 34737
    GDAL_METADATA, GDAL_NODATA = 42112, 42113


_FLOATS = {Tag.PIXEL_SCALE, Tag.TIEPOINTS, Tag.MATRIX, Tag.GEO_DOUBLES}
_SCALARS = {Tag.SUBFILE, Tag.OLD_SUBFILE, Tag.WIDTH, Tag.HEIGHT, Tag.COMPRESSION, Tag.PHOTOMETRIC, Tag.FILL_ORDER,
            Tag.SAMPLES, Tag.ROWS_A_STRIP, Tag.PLANAR, Tag.PREDICTOR, Tag.TILE_WIDTH, Tag.TILE_HEIGHT}  # fmt: skip


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

    def head(self) -> memoryview:
        """Return the part that begins the file, as far as it reaches."""
        return self._parts[0][2] if self._parts and not self._parts[0][0] else memoryview(b"")

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


class _Layout(NamedTuple):
    """How directories are written: in which byte order, of which widths."""

    order: Literal["<", ">"]
    head: struct.Struct
    entry: struct.Struct
    tail: struct.Struct
    inline: int
    """Bytes of a value that stands in the entry itself."""
    cuts: Mapping[int, tuple[int, int]]
    """(shift, mask) that give the whole number in an entry's value, by its type."""


def _layout(order: Literal["<", ">"], codes: str, inline: int) -> _Layout:
    cuts = {
        kind: (8 * (inline - size) if order == ">" else 0, (1 << 8 * size) - 1)
        for kind, size in _SIZES.items()
        if kind in _WHOLE and size <= inline
    }
    head, entry, tail = (struct.Struct(order + code) for code in codes.split())
    return _Layout(order, head, entry, tail, inline, cuts)


_LAYOUTS = {
    b"II*\0": _layout("<", "H HHII I", 4),
    b"MM\0*": _layout(">", "H HHII I", 4),
    b"II+\0": _layout("<", "Q HHQQ Q", 8),
    b"MM\0+": _layout(">", "Q HHQQ Q", 8),
}


class Value(NamedTuple):
    """Where the value of a tag stands."""

    tag: int
    kind: int
    """TIFF's type."""
    offset: int
    """In the file, perhaps in the directory itself."""
    length: int


class Image:
    """One image file directory as its own bytes and the types of its samples tell it; it knows no file.

    So images can be shared by the files of an archive whose directories are alike.
    """

    __slots__ = ("bits", "codec", "entries", "following", "height", "interleave", "kind", "lengths", "longest", "name",
                 "offsets", "photometric", "planes", "predictor", "sample_type", "samples", "scalars", "shape", "size",
                 "strips", "tables", "tile_height", "tile_width", "width")  # fmt: skip

    def __init__(
        self, name: str, entries: dict[int, tuple[int, int, int, int]], scalars: dict[int, int], following: int
    ) -> None:
        get = scalars.get
        self.name, self.entries, self.scalars, self.following = name, entries, scalars, following
        """Entries: (type, count, value or offset, where that stands) by tag. Scalars: what is one whole number."""
        self.kind = get(Tag.SUBFILE, {2: 1, 3: 2}.get(get(Tag.OLD_SUBFILE, 0), 0))
        """Bits: 1 reduced, 2 page, 4 mask."""
        self.size = self.width, self.height = get(Tag.WIDTH, 0), get(Tag.HEIGHT, 0)
        self.samples, self.codec = get(Tag.SAMPLES, 1), get(Tag.COMPRESSION, 1)
        self.photometric = get(Tag.PHOTOMETRIC, 1)
        self.predictor = get(Tag.PREDICTOR, 1) if self.codec in _PREDICTED else 1
        is_contiguous = get(Tag.PLANAR, 1) == 1
        self.interleave: Literal["pixel", "band"] = "pixel" if is_contiguous and self.samples > 1 else "band"
        """One sample is "band", as GDAL says it."""
        self.planes = 1 if is_contiguous else self.samples
        self.strips = Tag.TILE_WIDTH not in scalars
        self.tile_width = self.width if self.strips else get(Tag.TILE_WIDTH, 0)
        rows = min(get(Tag.ROWS_A_STRIP, self.height), self.height)
        self.tile_height = rows if self.strips else get(Tag.TILE_HEIGHT, self.height)
        self.bits, self.sample_type = 1, "u1"
        """Bits of a sample; its kind and bits ("u16", "ci32" for complex integers), or "mixed"."""
        self.shape = self.planes, 0, 0
        """Planes, tile rows and tile columns; no tiles where the reader does not decode the image."""
        self.offsets: Value | None = None
        self.lengths: Value | None = None
        self.tables: Value | None = None
        self.longest = 0
        """Of its tiles, what JPEG's have in common, and the most bytes that one may have; noted with the shape."""

    @property
    def unit(self) -> str:
        """What errors call a tile."""
        return "strip" if self.strips else "tile"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a decoded tile."""
        return -(-self.tile_width * (self.samples // self.planes) * self.bits // 8)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one decoded tile."""
        return self.row_bytes * self.tile_height


class TiffFile:
    """Reads bytes, directories and values; what is not at hand is noted in `missing` and the reading goes on."""

    def __init__(self, href: str, parts: ByteParts) -> None:
        self.href, self.size = href, parts.size
        self.missing: list[tuple[int, int]] = []
        self.taken: list[tuple[int, memoryview]] | None = None
        """The bytes that were read, by offset, where somebody wants to know."""
        self._parts, self.near = parts, parts.head()
        head = bytes(self.take(0, min(16, max(8, parts.size)), "the file header", _ASK_BYTES) or b"II*\0\0\0\0\0")
        layout = _LAYOUTS.get(head[:4])
        is_odd = layout is not None and layout.inline == 8 and head[4:8] != struct.pack(f"{layout.order}HH", 8, 0)
        if layout is None or is_odd or len(head) < 2 * layout.inline:
            raise NotTiffError(href, f"is not a TIFF, it begins with {head[:8]!r}")
        self.layout = layout
        self.first: int = layout.tail.unpack_from(head, layout.inline)[0]
        """Offset of the first directory; 0 for none."""

    def error(self, reason: str) -> HeaderError:
        """Return the error that names the file."""
        return HeaderError(self.href, reason)

    def take(self, offset: int, length: int, what: str, ask: int = 0) -> memoryview | None:
        """Return bytes; None after noting those that are missing, and at least `ask` of them."""
        stop = offset + length
        if stop <= len(self.near):
            data = self.near[offset:stop]
        elif stop > self.size:
            raise self.error(f"{what} ends at byte {stop}, but the file has {self.size} bytes (truncated?)")
        else:
            try:
                data = self._parts.get(offset, length)
            except MissingBytesError as error:
                start = error.ranges[0][0]
                self.missing += [*error.ranges, (start, min(start + ask, self.size))]
                return None
        if self.taken is not None:
            self.taken.append((offset, data))
        return data

    def image(self, offset: int, name: str) -> Image | None:
        """Return a directory, or None if its table is not at hand."""
        layout = self.layout
        head, entry, tail = layout.head, layout.entry, layout.tail
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
        entries: dict[int, tuple[int, int, int, int]] = {}
        scalars: dict[int, int] = {}
        cuts, place = layout.cuts, offset + head.size + entry.size - layout.inline
        for tag, kind, count, value in entry.iter_unpack(table[:length]):
            if tag not in entries:  # of two alike, libtiff takes the first
                entries[tag] = kind, count, value, place
                if count == 1 and kind in cuts:
                    shift, mask = cuts[kind]
                    scalars[tag] = value >> shift & mask
            place += entry.size
        if odd := _SCALARS & (entries.keys() - scalars.keys()):
            raise self.error(f"tag {min(odd)} of {name} is not one whole number")
        return Image(name, entries, scalars, tail.unpack(table[length:])[0])

    def find(self, image: Image, tag: int, *, count: int | None = None, most: int = MAX_VALUE_BYTES) -> Value | None:
        """Return where the value of a tag stands, or its first `count` numbers; None where there is none.

        Raises:
            HeaderError: It has more than `most` bytes, or is of a type that it cannot be.
        """
        if tag not in image.entries:
            return None
        kind, found, value, place = image.entries[tag]
        if not found or kind not in _SIZES:  # libtiff skips types that it does not know, too
            return None
        length = _SIZES[kind] * (found if count is None else count)
        if length > most or (kind not in _WHOLE and tag not in _FLOATS):
            raise self.error(f"tag {tag} of {image.name} has {found} values of type {kind}, which is absurd")
        return Value(tag, kind, place if found * _SIZES[kind] <= self.layout.inline else value, length)

    def read(self, image: Image, value: Value | None) -> bytes | memoryview:
        """Return the bytes of a value; none where there is no value, or where they are not at hand."""
        if value is None:
            return b""
        tag, _, offset, length = value
        if self.taken is None and offset + length <= len(self.near):  # as nearly always: no text for an error
            return self.near[offset : offset + length]
        return self.take(offset, length, f"tag {tag} of {image.name}") or b""

    def numbers(self, image: Image, tag: int, *, most: int = MAX_VALUE_BYTES) -> tuple[Any, ...]:
        """Return the value of a tag as numbers; empty where it is absent or not at hand."""
        value = self.find(image, tag, most=most)
        return () if value is None else unpack(self.layout.order, value.kind, self.read(image, value))

    def load_types(self, image: Image) -> None:
        """Check the size of an image, and note the types of its samples."""
        if not (0 < image.width <= MAX_EDGE and 0 < image.height <= MAX_EDGE and 0 < image.samples <= MAX_SAMPLES):
            raise self.error(f"{image.name} has {image.width} x {image.height} pixels of {image.samples} samples")
        if not (0 < image.tile_width <= MAX_EDGE and 0 < image.tile_height <= MAX_EDGE):
            raise self.error(f"{image.name} has {image.unit}s of {image.tile_width} x {image.tile_height} pixels")
        bits, formats = self._distinct(image, Tag.BITS), self._distinct(image, Tag.FORMAT)
        image.bits, image.sample_type = max(bits), "mixed"
        if len(bits) == len(formats) == 1:
            image.sample_type = f"{_SAMPLE_KINDS.get(min(formats), 'u')}{image.bits}"

    def _distinct(self, image: Image, tag: int) -> set[int]:
        if tag in image.scalars:
            return {image.scalars[tag]}
        return set(self.numbers(image, tag, most=8 * image.samples)) or {1}


def unpack(order: Literal["<", ">"], kind: int, data: bytes | memoryview) -> tuple[Any, ...]:
    """Return the numbers that a value of one of TIFF's types holds."""
    return struct.unpack(f"{order}{len(data) // _SIZES[kind]}{_CODES[kind]}", data)


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
    """Return the images whose tables are at hand: the main one, those in its SubIFDs, then the chain (as GDAL).

    At most `MAX_IMAGES` and one: who gets so many has not got all.
    """
    images: list[Image] = []
    seen: set[int] = set()
    todo = [(file.first, True)] if file.first else []
    while todo and len(images) <= MAX_IMAGES:
        offset, chained = todo.pop()
        if offset in seen:
            raise file.error(f"has image directories in a loop (byte {offset} is named twice)")
        seen.add(offset)
        image = file.image(offset, f"image {len(seen)}")
        if image is None:
            continue
        images.append(image)
        if chained and image.following:
            todo.append((image.following, True))
        if len(seen) == 1:
            subs = file.numbers(image, Tag.SUBIFDS, most=8 * MAX_IMAGES)
            todo += [(sub, False) for sub in reversed(subs)]
    if not seen and not file.missing:
        raise file.error("has no image")
    return images
