"""Where the tiles and strips of images lie in their file: tables checked against its size before anything is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cube.tiff.ifd import MAX_TILES, Image, Tag, TiffFile, Value

_STRIP_BYTES = 2**18
"""What strips of plain bytes are cut to: a window fetches little that it does not want, in few requests."""
_PLAIN = 1
_OFFSETS, _LENGTHS = (Tag.TILE_OFFSETS, Tag.STRIP_OFFSETS), (Tag.TILE_LENGTHS, Tag.STRIP_LENGTHS)
_DTYPES = {
    (order, kind): np.dtype(f"{order}u{size}")
    for order in "<>"
    for kind, size in ((1, 1), (2, 1), (3, 2), (4, 4), (7, 1), (13, 4), (16, 8), (18, 8))
}


class TileTable(NamedTuple):
    """The tiles of an image."""

    offsets: NDArray[np.uint64]
    """(planes, tile rows, tile columns); (planes, 0, 0) where the reader does not decode the image."""
    lengths: NDArray[np.uint64]
    """Bytes, same shape; 0 is a sparse tile."""
    tile_height: int


def find_tiles(file: TiffFile, images: Sequence[Image]) -> None:
    """Note in images, whose types are loaded, where their tile tables stand.

    Raises:
        HeaderError: There are absurdly many tiles, or tables of fewer than there are.
    """
    total = 0
    for image in images:
        image.shape = image.planes, -(-image.height // image.tile_height), -(-image.width // image.tile_width)
        tiles = math.prod(image.shape)
        total += tiles
        if total > MAX_TILES:
            raise file.error(f"has {total} tiles or strips up to {image.name}, which is absurd (at most {MAX_TILES})")
        image.longest = 4 * image.tile_bytes + 2**20  # codecs expand by half at most
        image.tables = file.find(image, Tag.JPEG_TABLES)
        for tags, what in (_OFFSETS, "offsets"), (_LENGTHS, "lengths"):
            if tags is _LENGTHS and image.codec == _PLAIN and lacks_lengths(image):
                continue
            kind, count, *_ = image.entries.get(_tag(image, tags), (0, 0))
            if count < tiles or (file.layout.order, kind) not in _DTYPES:
                raise file.error(
                    f"{image.name} has {tiles} {image.unit}s, but {count} {image.unit} {what} of type {kind}"
                )
            value = file.find(image, _tag(image, tags), count=tiles, most=8 * tiles)
            if tags is _OFFSETS:
                image.offsets = value
            else:
                image.lengths = value


def _tag(image: Image, of: tuple[int, int]) -> int:
    return of[0] if of[0] in image.entries else of[1]  # libtiff takes either for both


def lacks_lengths(image: Image) -> bool:
    """Whether an image of one strip a plane does not say how long it is, which libtiff then guesses."""
    return image.strips and image.tile_height == image.height and _tag(image, _LENGTHS) not in image.entries


class Stored(NamedTuple):
    """What a file says of the tiles of one image, as its bytes."""

    offsets: bytes | memoryview
    lengths: bytes | memoryview
    tables: bytes | memoryview


def read_stored(file: TiffFile, image: Image) -> Stored:
    """Return what the file says of the tiles of an image; empty where it is not at hand."""
    return Stored(
        file.read(image, image.offsets),
        file.read(image, image.lengths),
        b"" if image.tables is None else file.read(image, image.tables),
    )


def tile_tables(file: TiffFile, images: Sequence[Image], found: Sequence[Stored]) -> list[TileTable]:
    """Return the tables of images of one file, in their order, from what was read of them.

    Raises:
        HeaderError: Tiles lie past the end of the file, or are absurdly long.
    """
    tables: dict[int, TileTable] = {}
    coded: list[int] = []
    for i, image in enumerate(images):
        if image.offsets is None:
            empty = np.empty((image.planes, 0, 0), np.uint64)
            tables[i] = TileTable(empty, empty, image.tile_height)
        elif image.codec == _PLAIN:
            tables[i] = _plain_table(file, image, found[i])
        else:
            coded.append(i)
    if coded:
        made = _coded_tables(file, [images[i] for i in coded], [found[i] for i in coded])
        tables |= zip(coded, made, strict=True)
    return [tables[i] for i in range(len(images))]


def _coded_tables(file: TiffFile, images: Sequence[Image], found: Sequence[Stored]) -> Iterator[TileTable]:
    # All levels at once: an operation on an array costs more than what it does to a hundred tiles.
    offsets = _numbers(file, [(image.offsets, each.offsets) for image, each in zip(images, found, strict=True)])
    lengths = _numbers(file, [(image.lengths, each.lengths) for image, each in zip(images, found, strict=True)])
    if not offsets.all():
        lengths[offsets == 0] = 0
    longest = min([image.longest for image in images])
    is_sound = lengths.max() <= longest and offsets.max() <= file.size and (offsets + lengths).max() <= file.size
    stop = 0
    for image in images:
        planes, down, across = shape = image.shape
        start, stop = stop, stop + planes * down * across
        table = TileTable(offsets[start:stop].reshape(shape), lengths[start:stop].reshape(shape), image.tile_height)
        if not is_sound:
            _check(file, image, table.offsets, table.lengths)
        yield table


def _numbers(file: TiffFile, values: Sequence[tuple[Value | None, bytes | memoryview]]) -> NDArray[np.uint64]:
    """Return the whole numbers of several values, one after another."""
    order = file.layout.order
    kinds = {value.kind for value, _ in values if value is not None}
    if len(kinds) == 1:
        return np.frombuffer(b"".join([data for _, data in values]), _DTYPES[order, kinds.pop()]).astype(np.uint64)
    arrays = [np.frombuffer(data, _DTYPES[order, value.kind]) for value, data in values if value is not None]
    return np.concatenate(arrays, dtype=np.uint64) if arrays else np.empty(0, np.uint64)


def _check(file: TiffFile, image: Image, offsets: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None:
    size, longest = file.size, int(lengths.max(initial=0))
    outside = (lengths > size) | ((lengths > 0) & (offsets > size - np.minimum(lengths, size)))
    if outside.any():
        count = f"{image.name} has {np.count_nonzero(outside)} {image.unit}s"
        raise file.error(f"{count} past the end of the file ({size} bytes; truncated?)")
    if longest > image.longest:
        what = f"{image.name} has a {image.unit} of {longest} bytes"
        raise file.error(f"{what}, which is absurd for {image.tile_bytes} decoded")


def _plain_table(file: TiffFile, image: Image, stored: Stored) -> TileTable:
    """Return the table of an image of plain bytes; strips that follow one another are cut anew.

    libtiff, too, reads as many bytes as a tile has, whatever length the file says.
    """
    offsets = _numbers(file, [(image.offsets, stored.offsets)]).reshape(image.shape)
    present = offsets > 0
    counts = _numbers(file, [(image.lengths, stored.lengths)])
    if counts.size > 1 or not image.strips:  # a lone strip is there even where its length is 0
        present &= counts.reshape(image.shape) > 0
    lengths = _plain_lengths(image, image.tile_height, image.shape[1]) * present
    _check(file, image, offsets, lengths)
    if image.strips and present.all() and (offsets[:, 1:] == offsets[:, :-1] + lengths[:, :-1]).all():
        rows = min(max(1, _STRIP_BYTES // image.row_bytes), image.height)
        down = -(-image.height // rows)
        if image.planes * down <= MAX_TILES:
            steps = np.arange(down, dtype=np.uint64) * np.uint64(rows * image.row_bytes)
            return TileTable(offsets[:, :1] + steps[:, None], _plain_lengths(image, rows, down), rows)
    return TileTable(offsets, lengths, image.tile_height)


def _plain_lengths(image: Image, rows: int, down: int) -> NDArray[np.uint64]:
    lengths = np.full((image.planes, down, image.shape[2]), min(image.row_bytes * rows, 2**62), np.uint64)
    if image.strips:
        lengths[:, -1] = min(image.row_bytes * (image.height - (down - 1) * rows), 2**62)
    return lengths
