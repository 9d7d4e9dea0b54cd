"""One TIFF header as a value: levels, tile tables, codec, dtype, nodata, scale, CRS keys and transform."""

from __future__ import annotations

import math
import re
import struct
from bisect import bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from xml.etree import ElementTree as ET
from xml.sax.saxutils import unescape

import numpy as np
from affine import Affine
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
_NO_CODEC, _COVERED_CODECS = 1, {1, 5, 8, 32946, 50000}  # none, LZW, deflate (two codes), zstd
_CODECS = {2: "CCITT RLE", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "old JPEG", 7: "JPEG", 32773: "PackBits",
           34661: "JBIG", 34676: "SGI Log", 34677: "SGI Log 24", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA",
           50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}  # fmt: skip
_COVERED_PHOTOMETRICS = {0, 1, 2, 3}  # grey (either way up), RGB, palette: GDAL gives the stored values of these
_PHOTOMETRICS = {4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "CFA",
                 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"}  # fmt: skip
_TYPES = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 11: "f4", 12: "f8", 13: "u4",
          16: "u8", 17: "i8", 18: "u8"}  # fmt: skip
_FORMATS = {1: "u", 2: "i", 3: "f", 4: "u", 5: "c", 6: "c"}
_DTYPES = {"u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f32", "f64"}
_REDUCED, _PAGE, _MASK = 1, 2, 4  # bits of NewSubfileType
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2
_VERTICAL_KEYS = (4096, 4098, 4099)  # CRS, datum, units
_ELLIPSOID_HEIGHTS = range(5001, 5100)  # GeoTIFF's own codes, of which GDAL makes no vertical CRS
_INTEGER = re.compile(r"\s*[+-]?\d{1,30}\s*", re.ASCII)
_NUMBER = re.compile(  # also as Windows prints what is none
    r"\s*[+-]?(?:(nan|1\.#qnan|1\.#ind)|(inf|infinity|1\.#inf)|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?=\s|$)",
    re.ASCII | re.IGNORECASE,
)


class _Tag:
    SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
    FILL_ORDER, SAMPLES, PLANAR, PREDICTOR, COLORMAP = 266, 277, 284, 317, 320
    TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS, SUBIFDS, EXTRA, FORMAT = 322, 323, 324, 325, 330, 338, 339
    PIXEL_SCALE, TIEPOINTS, MATRIX, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 33550, 33922, 34264, 34735, 34736, 34737
    GDAL_METADATA, GDAL_NODATA = 42112, 42113


_DATASET_TAGS = (_Tag.COLORMAP, _Tag.EXTRA, _Tag.PIXEL_SCALE, _Tag.TIEPOINTS, _Tag.MATRIX, _Tag.GEO_KEYS,
                 _Tag.GEO_DOUBLES, _Tag.GEO_ASCII, _Tag.GDAL_METADATA, _Tag.GDAL_NODATA)  # fmt: skip
_FLOAT_TAGS = (_Tag.PIXEL_SCALE, _Tag.TIEPOINTS, _Tag.MATRIX, _Tag.GEO_DOUBLES)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GeoKeys:
    """The three GeoTIFF tags that name a CRS, as the file has them."""

    directory: tuple[int, ...]
    doubles: tuple[float, ...] = ()
    ascii: bytes = b""

    def numbers(self) -> dict[int, float]:
        """Return the value of each key; NaN for texts, for keys given twice and for values that are not there."""
        found: dict[int, float] = {}
        for key, place, count, value in zip(*[iter(self.directory[4:])] * 4, strict=False):
            number = value if (place, count) == (0, 1) else math.nan
            if place == _Tag.GEO_DOUBLES and value < len(self.doubles):
                number = self.doubles[value]
            found[key] = math.nan if key in found else number
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """One image of the file: full resolution or an overview."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    """TIFF's code."""
    predictor: int
    """1 none, 2 horizontal differences, 3 floating point."""
    offsets: NDArray[np.uint64]
    """Of the tiles in the file, (planes, tile rows, tile columns); an image in strips has no rows and columns here."""
    lengths: NDArray[np.uint64]
    """Bytes of the tiles, same shape; 0 is a sparse tile."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Header:
    """What the header of one TIFF says."""

    dtype: np.dtype[Any]
    """Of the samples, native byte order."""
    byteorder: Literal["<", ">"]
    samples: int
    interleave: Literal["pixel", "band"]
    """As GDAL says it: one sample is "band"."""
    photometric: int
    levels: tuple[Level, ...]
    """Full resolution, then overviews from large to small."""
    transform: Affine | None
    """(column, row) to CRS; (0, 0) is the outer corner of the first pixel."""
    geokeys: GeoKeys | None
    nodata: float | None
    """An int for integer dtypes; None where there is none that the dtype can hold."""
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    """Physical value = stored value * scale + offset, by sample."""
    descriptions: tuple[str | None, ...]
    units: tuple[str | None, ...]
    alpha: int | None
    """Index of the alpha sample."""
    has_mask: bool
    """True if an image inside the file says which pixels are valid."""
    colormap: tuple[tuple[int, int, int, int], ...] | None
    """(red, green, blue, alpha), 0-255, by stored value."""
    metadata: dict[str, str]
    """GDAL's metadata items of the dataset, default domain."""
    unsupported: str | None
    """Why the reader does not cover the pixels; None if it does."""


class _File:
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

    def image(self, offset: int, name: str) -> tuple[_Image, int] | None:
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
        return _Image(self, name, entries), tail.unpack(table[length:])[0]


class _Image:
    """One image file directory: its scalars, and in `values` the arrays that were loaded."""

    def __init__(self, file: _File, name: str, entries: dict[int, tuple[int, int, bytes]]) -> None:
        self.file, self.name, self.entries = file, name, entries
        self.values: dict[int, NDArray[Any]] = {}
        self.kind = self._scalar(_Tag.SUBFILE, {2: 1, 3: 2}.get(self._scalar(_Tag.OLD_SUBFILE, 0), 0))
        self.size = self._scalar(_Tag.WIDTH, 0), self._scalar(_Tag.HEIGHT, 0)
        self.samples = self._scalar(_Tag.SAMPLES, 1)
        self.codec = self._scalar(_Tag.COMPRESSION, _NO_CODEC)
        self.predictor = 1 if self.codec == _NO_CODEC else self._scalar(_Tag.PREDICTOR, 1)  # as libtiff
        self.photometric = self._scalar(_Tag.PHOTOMETRIC, 1)
        self.fill_order = self._scalar(_Tag.FILL_ORDER, 1)
        is_contiguous = self._scalar(_Tag.PLANAR, 1) == 1
        self.interleave: Literal["pixel", "band"] = "pixel" if is_contiguous and self.samples > 1 else "band"
        self.planes = 1 if is_contiguous else self.samples
        self.is_tiled = _Tag.TILE_WIDTH in entries
        self.tile = self._scalar(_Tag.TILE_WIDTH, self.size[0]), self._scalar(_Tag.TILE_HEIGHT, self.size[1])
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
        self.load(_Tag.BITS, most=8 * self.samples)
        self.load(_Tag.FORMAT, most=8 * self.samples)
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
        for tag, what in (_Tag.TILE_OFFSETS, "offsets"), (_Tag.TILE_LENGTHS, "lengths"):
            kind, count, _ = self.entries.get(tag, (0, 0, b""))
            if count != tiles or kind not in _TYPES:
                raise self.file.error(f"{self.name} has {tiles} tiles, but {count} tile {what} of type {kind}")
            self.load(tag, most=8 * tiles)

    def numbers(self, tag: int) -> list[Any]:
        return self.values[tag].tolist() if tag in self.values else []

    def raw(self, tag: int) -> bytes:
        return self.values[tag].tobytes() if tag in self.values else b""

    def text(self, tag: int) -> str:
        return self.raw(tag).split(b"\0", 1)[0].decode("utf-8", "replace")

    @cached_property
    def sample_type(self) -> str:
        """Kind and bits of the samples ("u16"), or "mixed"."""
        bits, formats = set(self.numbers(_Tag.BITS)) or {1}, set(self.numbers(_Tag.FORMAT)) or {1}
        return f"{_FORMATS.get(formats.pop(), 'u')}{bits.pop()}" if len(bits) == len(formats) == 1 else "mixed"

    @cached_property
    def tile_bytes(self) -> int:
        """Bytes of one decoded tile."""
        bits = max(self.numbers(_Tag.BITS), default=1)
        return math.prod(self.tile) * (self.samples // self.planes) * -(-bits // 8)


def parse_header(href: str, parts: ByteParts) -> Header:
    """Return the header of the TIFF at `href`, of which `parts` are at hand.

    Raises:
        MissingBytesError: Add the ranges it names and call again. It names all that can be known by then.
        HeaderError: The file is no TIFF, truncated or absurd.
        UnsupportedSourceError: The file has so many images that it is no COG.
    """
    file = _File(href, parts)
    images = _walk(file)
    levels = _choose_levels(images) if images else []
    for level in levels:
        level.load_level()
    for tag in _DATASET_TAGS if levels else ():
        levels[0].load(tag)
    if file.missing:
        raise MissingBytesError(_merge(file.missing))
    return _build(images, levels)


def _merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _walk(file: _File) -> list[_Image]:
    """Return all images whose tables are at hand: the main one, those in its SubIFDs, then the chain (as GDAL)."""
    images: list[_Image] = []
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
            image.load(_Tag.SUBIFDS, most=8 * MAX_IMAGES)
            todo += [(sub, False) for sub in reversed(image.numbers(_Tag.SUBIFDS))]
    if not seen and not file.missing:
        raise file.error("has no image")
    return images


def _choose_levels(images: list[_Image]) -> list[_Image]:
    """Return the main image and its overviews, large to small; GDAL also drops those of other bands."""
    main, *others = images
    (width, height), samples = main.size, main.samples
    reduced = [i for i in others if i.kind & _REDUCED and not i.kind & _MASK and i.samples == samples]
    smaller = [i for i in reduced if i.size != main.size and i.size[0] <= width and i.size[1] <= height]
    return [main, *sorted(smaller, key=lambda image: image.size, reverse=True)]


def _build(images: list[_Image], levels: list[_Image]) -> Header:
    main = levels[0]
    dtype = _dtype(main)
    nodata = _nodata(main.text(_Tag.GDAL_NODATA), dtype)
    geokeys = _geokeys(main)
    transform = _transform(main, geokeys)
    has_mask = any(i.kind & _MASK and not i.kind & _REDUCED and i.size == main.size for i in images[1:])
    items, is_broken = _items(main.text(_Tag.GDAL_METADATA))
    reasons = list(_pixel_reasons(levels)) + list(_grid_reasons(main, transform))
    pages = sum(image.kind in (0, _PAGE) for image in images)
    reasons += [f"{pages} images of full resolution"] * (pages > 1) + ["an internal mask"] * has_mask
    reasons += ["GDAL_METADATA that is not plain XML"] * is_broken

    def by_sample(role: str) -> list[str | None]:
        return [items.get((sample, role)) for sample in range(main.samples)]

    scales = [1.0 if text is None else _number(text) or 0.0 for text in by_sample("scale")]
    offsets = [0.0 if text is None else _number(text) or 0.0 for text in by_sample("offset")]
    if height := _height_scale(main, geokeys):
        scales, offsets = [height[0]], [height[1]]
    return Header(
        dtype=dtype,
        byteorder=main.file.order,
        samples=main.samples,
        interleave=main.interleave,
        photometric=main.photometric,
        levels=tuple(map(_level, levels)),
        transform=transform,
        geokeys=geokeys,
        nodata=nodata,
        scales=tuple(scales),
        offsets=tuple(offsets),
        descriptions=tuple(by_sample("description")),
        units=tuple(by_sample("unittype")),
        alpha=_alpha(main, items),
        has_mask=has_mask,
        colormap=_colormap(main, nodata),
        metadata={name: text for (sample, name), text in items.items() if sample == -1},
        unsupported="; ".join(reasons) or None,
    )


def _level(image: _Image) -> Level:
    empty = np.empty(0, np.uint64)
    offsets, lengths = (
        image.values.get(tag, empty).astype(np.uint64).reshape(image.shape)
        for tag in (_Tag.TILE_OFFSETS, _Tag.TILE_LENGTHS)
    )
    lengths[offsets == 0] = 0
    if offsets.size:
        _check_tiles(image, offsets, lengths)
    return Level(
        width=image.size[0],
        height=image.size[1],
        tile_width=image.tile[0],
        tile_height=image.tile[1],
        compression=image.codec,
        predictor=image.predictor,
        offsets=offsets,
        lengths=lengths,
    )


def _check_tiles(image: _Image, offsets: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None:
    size, longest = image.file.parts.size, int(lengths.max())
    outside = (lengths > size) | ((lengths > 0) & (offsets > size - np.minimum(lengths, size)))
    if outside.any():
        raise image.file.error(
            f"{image.name} has {np.count_nonzero(outside)} tiles past the end of the file ({size} bytes; truncated?)"
        )
    if longest > 4 * image.tile_bytes + 2**20:  # codecs expand by half at most
        raise image.file.error(
            f"{image.name} has a tile of {longest} bytes, which is absurd for {image.tile_bytes} decoded"
        )


def _dtype(image: _Image) -> np.dtype[Any]:
    """Return the dtype of the samples, or one that holds them if it is not covered."""
    kind = "u" if image.sample_type == "mixed" else image.sample_type[0]
    bits = max(image.numbers(_Tag.BITS), default=1)
    sizes = {"c": (8, 16), "f": (2, 4, 8)}.get(kind, (1, 2, 4, 8))
    return np.dtype(f"{kind}{next((size for size in sizes if 8 * size >= bits), sizes[-1])}")


def _pixel_reasons(levels: list[_Image]) -> Iterator[str]:
    """Yield what the reader does not cover in the pixels: of the main image, else of the first other level."""
    main = levels[0]
    for number, image in enumerate(levels):
        reasons = list(_image_reasons(image))
        if (image.sample_type, image.interleave) != (main.sample_type, main.interleave):
            reasons.append(f"samples of another type ({image.sample_type}, {image.interleave}-interleaved)")
        yield from (f"{reason} at level {number}" if number else reason for reason in reasons)
        if reasons:
            return


def _image_reasons(image: _Image) -> Iterator[str]:
    if not image.is_tiled:
        yield "strips instead of tiles"
    elif image.tile_bytes > MAX_TILE_BYTES:
        yield f"tiles of {image.tile_bytes} bytes"
    if image.codec not in _COVERED_CODECS:
        yield f"{_CODECS.get(image.codec, f'unknown ({image.codec})')} compression"
    elif image.predictor not in (1, 2, 3):
        yield f"predictor {image.predictor}"
    elif image.predictor == 3 and image.sample_type[0] != "f":
        yield "floating-point predictor on integers"
    if image.photometric not in _COVERED_PHOTOMETRICS:
        yield f"{_PHOTOMETRICS.get(image.photometric, f'unknown ({image.photometric})')} colours"
    if image.fill_order != 1:
        yield "reversed bit order"
    if image.sample_type not in _DTYPES:
        yield f"samples of type {image.sample_type}"


def _grid_reasons(main: _Image, transform: Affine | None) -> Iterator[str]:
    if transform is None:
        has_points = len(main.numbers(_Tag.TIEPOINTS)) >= 6
        yield "ground control points instead of a transform" if has_points else "no georeferencing"
    elif transform.b or transform.d:
        yield "a rotated or sheared grid"
    elif not (all(map(math.isfinite, transform[:6])) and transform.a > 0 and transform.e):
        yield "a degenerate or mirrored grid"


def _geokeys(main: _Image) -> GeoKeys | None:
    values = main.values.get(_Tag.GEO_KEYS, np.empty(0, "u2"))
    directory = values.tolist()
    if values.dtype.kind != "u" or values.itemsize != 2 or len(directory) < 4:
        return None
    size = 4 + 4 * directory[3]
    if directory[0] != 1 or len(directory) < size:  # GDAL ignores such keys
        return None
    return GeoKeys(
        directory=tuple(directory[:size]), doubles=tuple(main.numbers(_Tag.GEO_DOUBLES)), ascii=main.raw(_Tag.GEO_ASCII)
    )


def _transform(main: _Image, geokeys: GeoKeys | None) -> Affine | None:
    """Return what GDAL does: scale and first tiepoint, else the matrix; pixel-is-point moved to the corner."""
    scale, tie, matrix = main.numbers(_Tag.PIXEL_SCALE), main.numbers(_Tag.TIEPOINTS), main.numbers(_Tag.MATRIX)
    if len(scale) >= 2 and scale[0] and scale[1]:
        if len(tie) < 6:
            return None
        a, e = scale[0], -abs(scale[1])  # GDAL reads a negative scale as north-up, too
        transform = Affine(a, 0.0, tie[3] - tie[0] * a, 0.0, e, tie[4] - tie[1] * e)
    elif len(matrix) == 16:
        transform = Affine(matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    else:
        return None
    a, b, c, d, e, f = transform[:6]
    if geokeys is not None and geokeys.numbers().get(_RASTER_TYPE) == _PIXEL_IS_POINT:
        return Affine(a, b, c - (a * 0.5 + b * 0.5), d, e, f - (d * 0.5 + e * 0.5))
    return transform


def _height_scale(main: _Image, geokeys: GeoKeys | None) -> tuple[float, float] | None:
    """Return (scale, offset) where GDAL keeps those of heights: as z of the georeferencing, if the CRS has one."""
    scale, tie = main.numbers(_Tag.PIXEL_SCALE), main.numbers(_Tag.TIEPOINTS)
    if geokeys is None or geokeys.directory[:3] == (1, 1, 0) or main.samples > 1:
        return None
    keys = geokeys.numbers()
    is_vertical = not keys.keys().isdisjoint(_VERTICAL_KEYS) and keys.get(_VERTICAL_KEYS[0]) not in _ELLIPSOID_HEIGHTS
    if not is_vertical or len(scale) < 3 or len(tie) < 6 or not (scale[2] or tie[2] or tie[5]):
        return None
    return scale[2], tie[5] - tie[2] * scale[2]


def _number(text: str) -> float | None:
    """Return the number that a text begins with, or None."""
    match = _NUMBER.match(text.replace(",", "."))
    if match is None:
        return None
    if match[1] or match[2]:
        return math.nan if match[1] else -math.inf if "-" in match[0] else math.inf
    return float(match[0])


def _nodata(text: str, dtype: np.dtype[Any]) -> float | None:
    value = int(text) if _INTEGER.fullmatch(text) else _number(text)
    if value is None or dtype.kind == "c":
        return None
    if dtype.kind != "f":
        if not math.isfinite(value) or value != int(value):
            return None
        limits = np.iinfo(dtype)
        return int(value) if limits.min <= value <= limits.max else None
    value = float(value)
    limit = float(np.finfo(dtype).max)
    if abs(abs(value) - limit) < 1e-10 * limit:  # texts of few digits that mean the largest number, as GDAL
        return math.copysign(limit, value)
    with np.errstate(over="ignore"):
        rounded = float(dtype.type(value))
    return rounded if math.isinf(value) or not math.isinf(rounded) else None


def _items(text: str) -> tuple[dict[tuple[int, str], str], bool]:
    """Return GDALMetadata by (sample or -1, role or name), and whether it is broken."""
    if not text:
        return {}, False
    if "<!DOCTYPE" in text.upper():  # entities could expand without bound; GDAL writes none
        return {}, True
    try:
        root = ET.fromstring(text)  # noqa: S314 - no DOCTYPE, so no entities
    except ET.ParseError:
        return {}, True
    found: dict[tuple[int, str], str] = {}
    for item in root.iterfind("Item") if root.tag == "GDALMetadata" else ():
        name, role, sample = item.get("name"), item.get("role", "").lower(), item.get("sample", "-1")
        if not name or not item.text or item.get("domain") or not _INTEGER.fullmatch(sample):
            continue
        # GDAL escapes values twice and so reads them twice.
        value = unescape(item.text.lstrip(), {"&quot;": '"', "&apos;": "'"})
        found[int(sample), role if int(sample) >= 0 and role else name] = value
    return found, False


def _alpha(main: _Image, items: dict[tuple[int, str], str]) -> int | None:
    """Return the first sample that is alpha by ExtraSamples, or by GDAL's word where that differs."""
    extra = main.numbers(_Tag.EXTRA)
    alphas = {main.samples - len(extra) + i for i, kind in enumerate(extra) if kind in (1, 2)}
    for (sample, role), text in items.items():
        if role == "colorinterp":
            alphas = alphas | {sample} if text.lower() == "alpha" else alphas - {sample}
    return min(alphas, default=None)


def _colormap(main: _Image, nodata: float | None) -> tuple[tuple[int, int, int, int], ...] | None:
    values = main.values.get(_Tag.COLORMAP)
    bits = max(main.numbers(_Tag.BITS), default=1)
    if values is None or values.itemsize > 2 or bits > 16 or values.size != 3 * 2**bits:
        return None
    table = values.reshape(3, -1).T.astype(np.int32)
    if table.max() >= 256:  # otherwise bytes were written, by mistake; GDAL takes them as meant, too
        table //= 257
    return tuple((r, g, b, 0 if value == nodata else 255) for value, (r, g, b) in enumerate(table.tolist()))
