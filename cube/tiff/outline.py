"""Which images of a file are its levels and their masks, and where their tables stand."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from cube.tiff.decodable import slow_reasons
from cube.tiff.ifd import MAX_IMAGES, MAX_TILE_BYTES, Image, Tag, TiffFile, Value, walk
from cube.tiff.tiles import find_tiles, read_stored

_DATASET_TAGS = (Tag.COLORMAP, Tag.EXTRA, Tag.PIXEL_SCALE, Tag.TIEPOINTS, Tag.MATRIX, Tag.GEO_KEYS,
                 Tag.GEO_DOUBLES, Tag.GEO_ASCII, Tag.GDAL_METADATA, Tag.GDAL_NODATA)  # fmt: skip
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_KEY_BYTES = 100  # of the first directory, up to its codec: enough to tell most archives apart
_SHELF = 4
_SHARED_BYTES = 2**14  # directories of more than this are not kept to be shared


class Outline(NamedTuple):
    """The images of a file that count."""

    levels: tuple[Image, ...]
    """Full resolution, then overviews from large to small."""
    masks: tuple[Image | None, ...]
    """The mask of each."""
    reasons: tuple[str, ...]
    """Why GDAL has to read the pixels; then no tables are noted."""
    refusal: str | None
    """Why nobody should."""
    values: tuple[Value, ...]
    """Those of the full resolution's tags that hold for the whole file."""
    source: tuple[tuple[int, bytes], ...]
    """The bytes, by their offset, that say all this; values that are read of each file are not among them."""


def find_outline(file: TiffFile) -> Outline | None:
    """Return the outline of a file, or None where bytes for it are not at hand.

    It follows from the bytes of the directories alone, which many files of an archive have in common; it is made once
    for all of them.

    Raises:
        HeaderError: The file is damaged or absurd.
    """
    near = file.near
    shelf = _shelf(bytes(near[:16]), bytes(near[file.first : file.first + _KEY_BYTES]))
    for known in shelf:
        if all(near[offset : offset + len(data)].tobytes() == data for offset, data in known.source):
            return known
    file.taken = []
    outline = _make_outline(file)
    taken, file.taken = file.taken, None
    if outline is None:
        return None
    source = _source(outline, taken)
    is_near = all(offset + len(data) <= len(near) for offset, data in taken)
    if is_near and sum(len(data) for _, data in source) <= _SHARED_BYTES:
        outline = outline._replace(source=source)
        shelf[:] = [outline, *shelf[: _SHELF - 1]]
    return outline


def _source(outline: Outline, taken: Sequence[tuple[int, memoryview]]) -> tuple[tuple[int, bytes], ...]:
    """Return what was read, without the values in the directories that stand for one file: where its lone tile lies."""
    images = [image for image in (*outline.levels, *outline.masks) if image is not None]
    values = [(image, value) for image in images for value in (image.offsets, image.lengths)]
    values += [(outline.levels[0], value) for value in outline.values]
    # Only values in the place of their own: others may point into a directory, to hide what differs, as may
    # directories that overlap.
    ends = sorted((offset, offset + len(data)) for offset, data in taken)
    is_apart = all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ends))
    inline = {(v.offset, v.length) for image, v in values if v is not None and image.entries[v.tag][-1] == v.offset}
    parts = []
    for offset, data in taken:
        begin = 0
        for start, length in sorted(inline) if is_apart else ():
            if offset <= start < offset + len(data):
                parts.append((offset + begin, bytes(data[begin : start - offset])))
                begin = start + length - offset
        parts.append((offset + begin, bytes(data[begin:])))
    return tuple(parts)


@functools.lru_cache(maxsize=128)
def _shelf(head: bytes, start: bytes) -> list[Outline]:
    """Return the list, empty at first, of the outlines of files that begin so and whose first directory begins so."""
    del head, start
    return []


def _make_outline(file: TiffFile) -> Outline | None:
    found = walk(file)
    if not found:
        return None
    levels, masks = _choose_images(file, found)
    reasons = slow_reasons(levels, masks)
    if len(found) > MAX_IMAGES:
        reasons.append(f"more than {MAX_IMAGES} images")
    images = [*levels, *(mask for mask in masks if mask is not None)]
    absurd = [image for image in images if not image.strips and image.tile_bytes > MAX_TILE_BYTES]
    refusal = None
    if absurd:
        refusal = f"tiles of {absurd[0].tile_bytes} bytes, which is absurd (at most {MAX_TILE_BYTES})"
    elif not reasons or file.missing:
        find_tiles(file, images)
    values = tuple(value for tag in _DATASET_TAGS if (value := file.find(levels[0], tag)) is not None)
    if not file.missing:
        return Outline(tuple(levels), tuple(masks), tuple(reasons), refusal, values, ())
    for image in images:  # what is likely to be needed, too, is asked for at once
        read_stored(file, image)
    for value in values:
        file.read(levels[0], value)
    return None


def _choose_images(file: TiffFile, images: list[Image]) -> tuple[list[Image], list[Image | None]]:
    """Return the main image with its overviews, large to small, and the mask of each: those that GDAL takes."""
    main = images[0]
    file.load_types(main)
    levels: list[Image] = [main]
    masks: dict[Image, Image] = {}
    for image in images[1:]:
        is_reduced, is_mask = image.kind & _REDUCED, image.kind & _MASK
        if is_reduced and not is_mask:
            is_smaller = image.width <= main.width and image.height <= main.height and image.size != main.size
            if is_smaller and image.samples == main.samples:
                file.load_types(image)
                levels.append(image)
        elif is_mask and image.samples in (1, main.samples):
            file.load_types(image)
            of = levels[1:] if is_reduced else [main]
            owner = next((level for level in of if level.size == image.size and level not in masks), None)
            if owner is not None and image.sample_type[0] == "u" and image.bits <= 8:
                masks[owner] = image
    levels.sort(key=lambda image: image.size, reverse=True)
    return levels, [masks.get(level) for level in levels]
