"""A TIFF that holds some tiles of another one: its directories as they were, with tile tables of their own."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from cube.errors import UnsupportedSourceError
from cube.tiff.header import Header, parse_header
from cube.tiff.ifd import ByteParts, Image, MissingBytesError, Tag, TiffFile, merge_ranges, unpack
from cube.tiff.outline import find_outline

_TABLES = {Tag.STRIP_OFFSETS, Tag.STRIP_LENGTHS, Tag.ROWS_A_STRIP, Tag.TILE_OFFSETS, Tag.TILE_LENGTHS}
# Values that are places in the file: free space, JPEG streams of TIFF 6.0's first kind, EXIF, GPS, interoperability.
_PLACES = {Tag.SUBIFDS, 288, 289, 513, 514, 519, 520, 521, 34665, 34853, 40965}
# What says how the samples of one image are stored, and must not be taken from another.
_STORAGE = {Tag.SUBFILE, Tag.OLD_SUBFILE, Tag.WIDTH, Tag.HEIGHT, Tag.BITS, Tag.COMPRESSION, Tag.PHOTOMETRIC,
            Tag.FILL_ORDER, Tag.SAMPLES, Tag.PLANAR, Tag.PREDICTOR, Tag.JPEG_TABLES, Tag.TILE_WIDTH, Tag.TILE_HEIGHT,
            Tag.EXTRA, Tag.FORMAT, 292, 293, 529, 530, 531, 532, 50674}  # fmt: skip
_GEO = {Tag.PIXEL_SCALE, Tag.TIEPOINTS, Tag.MATRIX}
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SHORT, _LONG, _DOUBLE, _LONG8 = 3, 4, 12, 16
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2
_LONG8_BYTES = 8
_CLASSIC_BYTES = 2**32 - 2**16
_ALIGNED = 16


class Tiles(Protocol):
    """The tile table of one image, as a header or a manifest has it."""

    @property
    def strips(self) -> bool:
        """Whether the tiles are strips."""

    @property
    def tile_height(self) -> int:
        """Rows of a strip."""

    @property
    def offsets(self) -> np.ndarray:
        """(planes, tile rows, tile columns)."""

    @property
    def lengths(self) -> np.ndarray:
        """As `offsets`; 0 is a tile that the file leaves out."""


class LevelTiles(NamedTuple):
    """The tables of one level and of its mask."""

    image: Tiles
    mask: Tiles | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """A file in which the tiles that are not wanted are sparse."""

    head: bytes
    """All but the tiles."""
    places: Mapping[int, int]
    """Where a tile goes, by its offset in the other file."""
    size: int
    header: Header
    """Of the excerpt."""


class _Entry(NamedTuple):
    tag: int
    kind: int
    """TIFF's type."""
    values: int
    """How many."""
    data: bytes


class _Format(NamedTuple):
    """TIFF or BigTIFF, in one byte order."""

    order: Literal["<", ">"]
    is_big: bool

    @property
    def start(self) -> bytes:
        """The file's first bytes, up to the place of the first directory."""
        mark = b"II" if self.order == "<" else b"MM"
        return mark + (struct.pack(f"{self.order}HHH", 43, 8, 0) if self.is_big else struct.pack(f"{self.order}H", 42))

    @property
    def head(self) -> struct.Struct:
        """Number of entries."""
        return struct.Struct(f"{self.order}{'Q' if self.is_big else 'H'}")

    @property
    def entry(self) -> struct.Struct:
        """Tag, type, count, value."""
        return struct.Struct(f"{self.order}{'HHQQ' if self.is_big else 'HHII'}")

    @property
    def link(self) -> struct.Struct:
        """The place of the next directory, or of a value."""
        return struct.Struct(f"{self.order}{'Q' if self.is_big else 'I'}")


def plan_excerpt(
    href: str,
    parts: ByteParts,
    levels: Sequence[LevelTiles],
    wanted: Mapping[int, int],
    *,
    first: int = 0,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Excerpt:
    """Return a TIFF with some tiles of another, of which `parts` are at hand; its tile tables need not be among them.

    Args:
        href: The other file, for errors.
        parts: Its bytes.
        levels: The tile tables of its levels from `first` on, of those that the excerpt gets.
        wanted: The tiles, bytes by offset.
        first: The level that becomes full resolution.
        scale: (across, down) in full-resolution pixels of a pixel of `first`.

    Raises:
        MissingBytesError: Add the ranges it names and call again.
        UnsupportedSourceError: The file is one of which no excerpt can be made; copy the whole.
    """
    file = TiffFile(href, parts)
    outline = find_outline(file)
    if outline is None:
        raise MissingBytesError(merge_ranges(file.missing))
    chosen = slice(first, first + len(levels))
    images: list[tuple[Image, Tiles]] = []
    for image, mask, tiles in zip(outline.levels[chosen], outline.masks[chosen], levels, strict=True):
        images.append((image, tiles.image))
        if mask is not None and tiles.mask is not None:
            images.append((mask, tiles.mask))
    directories = [_entries(file, image) for image, _ in images]
    if first:
        directories[0] = _promoted(file, outline.levels[0], directories[0], scale)
    if file.missing:
        raise MissingBytesError(merge_ranges(file.missing))
    return _lay_out(href, file, directories, [tiles for _, tiles in images], wanted)


def _entries(file: TiffFile, image: Image) -> dict[int, _Entry]:
    """Return the tags of an image that hold wherever its tiles lie."""
    found = {}
    for tag, (kind, count, value, place) in image.entries.items():
        if tag in _TABLES or tag in _PLACES or kind not in _VALUE_BYTES or not count:
            continue
        length = _VALUE_BYTES[kind] * count
        offset = place if length <= file.layout.inline else value
        data = file.take(offset, length, f"tag {tag} of {image.name}")
        found[tag] = _Entry(tag, kind, count, bytes(data or b""))
    return found


def _promoted(
    file: TiffFile, main: Image, entries: Mapping[int, _Entry], scale: tuple[float, float]
) -> dict[int, _Entry]:
    """Return the tags of an overview as those of a file's main image, whose place and meaning it takes over."""
    of_main = {tag: entry for tag, entry in _entries(file, main).items() if tag not in _STORAGE}
    if file.missing:
        return {}
    kept = {tag: entry for tag, entry in entries.items() if tag not in (Tag.SUBFILE, Tag.OLD_SUBFILE)}
    return {**kept, **of_main, **_placed(file.layout.order, of_main, scale)}


def _placed(order: Literal["<", ">"], entries: Mapping[int, _Entry], scale: tuple[float, float]) -> dict[int, _Entry]:
    """Return the georeferencing of an image with larger pixels and the same outer corner."""
    across, down = scale
    values = {tag: unpack(order, entries[tag].kind, entries[tag].data) for tag in _GEO if tag in entries}
    half = 0.5 if _is_point(order, entries) else 0.0
    if Tag.PIXEL_SCALE in values and Tag.TIEPOINTS in values:
        sx, sy, *sz = values[Tag.PIXEL_SCALE]
        i, j, k, x, y, z = values[Tag.TIEPOINTS][:6]
        rows = abs(sy)  # as GDAL reads it
        # What is named is the corner, or the centre of the first pixel: that one moves.
        x += (across - 1) * half * sx - i * sx
        y -= (down - 1) * half * rows - j * rows
        values = {Tag.PIXEL_SCALE: (sx * across, rows * down, *sz), Tag.TIEPOINTS: (0.0, 0.0, k, x, y, z)}
    elif Tag.MATRIX in values:
        m = list(values[Tag.MATRIX])
        for row in (0, 4):
            m[row + 3] += half * ((across - 1) * m[row] + (down - 1) * m[row + 1])
            m[row], m[row + 1] = m[row] * across, m[row + 1] * down
        values = {Tag.MATRIX: tuple(m)}
    return {
        tag: _Entry(tag, _DOUBLE, len(numbers), struct.pack(f"{order}{len(numbers)}d", *numbers))
        for tag, numbers in values.items()
    }


def _is_point(order: Literal["<", ">"], entries: Mapping[int, _Entry]) -> bool:
    entry = entries.get(Tag.GEO_KEYS)
    keys = () if entry is None or entry.kind != _SHORT else unpack(order, entry.kind, entry.data)
    numbers = zip(*[iter(keys[4:])] * 4, strict=False)
    return any((key, place, value) == (_RASTER_TYPE, 0, _PIXEL_IS_POINT) for key, place, _, value in numbers)


def _lay_out(
    href: str,
    file: TiffFile,
    directories: Sequence[dict[int, _Entry]],
    tables: Sequence[Tiles],
    wanted: Mapping[int, int],
) -> Excerpt:
    sizes = np.array([wanted[offset] for offset in sorted(wanted)], np.int64)
    old = np.array(sorted(wanted), np.int64)
    layout = _Format(file.layout.order, file.layout.inline == _LONG8_BYTES)
    if int(sizes.sum()) + _most_bytes(directories, tables) > _CLASSIC_BYTES:
        layout = layout._replace(is_big=True)
    # How long the head is does not depend on what its tables say.
    begin = len(_write(layout, _with_tables(layout, directories, tables, old, old * 0)))
    begin += -begin % _ALIGNED
    new = begin + np.cumsum(sizes) - sizes
    head = _write(layout, _with_tables(layout, directories, tables, old, new)).ljust(begin, b"\0")
    size = begin + int(sizes.sum())
    parts = ByteParts(size)
    parts.add(0, head)
    try:
        header = parse_header(href, parts)
    except MissingBytesError:  # its values stand in front of the tiles, all of them
        raise UnsupportedSourceError(
            href, "cannot be copied in part: its directories name places of their own"
        ) from None
    places = dict(zip(old.tolist(), new.tolist(), strict=True))
    return Excerpt(head=head, places=places, size=size, header=header)


def _most_bytes(directories: Sequence[Mapping[int, _Entry]], tables: Sequence[Tiles]) -> int:
    """Return the most bytes that directories and their tables take."""
    values = sum(len(entry.data) + 32 for entries in directories for entry in entries.values())
    return values + sum(16 * each.offsets.size + 256 for each in tables)


def _with_tables(
    layout: _Format, directories: Sequence[dict[int, _Entry]], tables: Sequence[Tiles], old: np.ndarray, new: np.ndarray
) -> Iterator[list[_Entry]]:
    kind = _LONG8 if layout.is_big else _LONG
    dtype = np.dtype(f"{layout.order}u{_VALUE_BYTES[kind]}")
    for entries, tiles in zip(directories, tables, strict=True):
        offsets, lengths = tiles.offsets.ravel().astype(np.int64), tiles.lengths.ravel().astype(np.int64)
        at = np.minimum(np.searchsorted(old, offsets), max(len(old) - 1, 0))
        is_here = (lengths > 0) & (old[at] == offsets) if len(old) else np.zeros(len(offsets), bool)
        values = (new[at] if len(old) else offsets, lengths)
        tags = (Tag.STRIP_OFFSETS, Tag.STRIP_LENGTHS) if tiles.strips else (Tag.TILE_OFFSETS, Tag.TILE_LENGTHS)
        own = {
            tag: _Entry(tag, kind, len(offsets), np.where(is_here, value, 0).astype(dtype).tobytes())
            for tag, value in zip(tags, values, strict=True)
        }
        if tiles.strips:
            rows = struct.pack(f"{layout.order}I", tiles.tile_height)
            own[Tag.ROWS_A_STRIP] = _Entry(Tag.ROWS_A_STRIP, _LONG, 1, rows)
        yield [entry for _, entry in sorted({**entries, **own}.items())]


def _write(layout: _Format, directories: Iterator[list[_Entry]]) -> bytes:
    """Return a file header and a chain of directories, each followed by its values."""
    head, packed, link = layout.head, layout.entry, layout.link
    out = bytearray(layout.start + bytes(link.size))
    before = len(layout.start)
    for entries in directories:
        out += bytes(-len(out) % 2)  # directories and values begin on words
        out[before : before + link.size] = link.pack(len(out))
        place = len(out) + head.size + len(entries) * packed.size + link.size
        values = bytearray()
        out += head.pack(len(entries))
        for entry in entries:
            data = entry.data
            if len(data) > link.size:
                values += bytes(-(place + len(values)) % 2)
                number = place + len(values)
                values += data
            else:
                (number,) = link.unpack(data.ljust(link.size, b"\0"))
            out += packed.pack(entry.tag, entry.kind, entry.values, number)
        before = len(out)
        out += bytes(link.size) + values
    return bytes(out)
