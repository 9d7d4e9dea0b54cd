"""Hostile headers: whatever the bytes, a header or an error that names the file, soon and in little memory."""

from __future__ import annotations

import dataclasses
import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.io import MemoryFile

from cube.errors import HeaderError
from cube.tiff.gdaltags import parse_items
from cube.tiff.header import Header, Level, parse_header
from cube.tiff.ifd import MAX_TILES, ByteParts, MissingBytesError
from cube.tiff.outline import _shelf

GRID = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 4000000.0)
MOST_BYTES = 32 * 2**20
"""Peak memory of one parse: far more than any of these files needs, far less than what their counts ask for."""
ROUNDS = 300


def write(
    count: int = 1, dtype: str = "uint16", overviews: tuple[int, ...] = (), mask: bool = False, **options: Any
) -> bytes:
    """Write a small GeoTIFF with GDAL."""
    profile = {"tiled": True, "blockxsize": 32, "blockysize": 16, "transform": GRID, "crs": "EPSG:32633"} | options
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as file:
        with file.open(driver="GTiff", count=count, dtype=dtype, width=80, height=48, **profile) as dataset:
            dataset.scales = [2.0] * count
            dataset.write((np.arange(count * 48 * 80) % 120).reshape(count, 48, 80).astype(dtype))
            if mask:
                dataset.write_mask(np.eye(48, 80, dtype="uint8") * 255)
            if overviews:
                dataset.build_overviews(overviews)
        return file.read()


def pages(**options: Any) -> bytes:
    """Write a file with SubIFDs and a second page."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file, **options) as writer:
        for size, kind, subs in (64, 0, 1), (32, 1, 0), (64, 2, 0):
            pixels = np.zeros((size, size), "uint16")
            writer.write(pixels, tile=(32, 32), subfiletype=kind, subifds=subs, metadata=None, compression="deflate")
    return file.getvalue()


SEEDS = [
    write(3, "float32", interleave="band", compress="deflate", predictor=3, overviews=(2,), nodata=-1),
    write(2, "int16", interleave="pixel", ENDIANNESS="BIG", compress="lzw", SPARSE_OK=True),
    write(1, "uint8", BIGTIFF="YES", overviews=(2, 4), mask=True),
    write(3, "uint8", interleave="pixel", compress="jpeg", photometric="ycbcr", mask=True),
    write(2, "uint16", tiled=False, blockxsize=None, blockysize=7, compress="zstd"),
    write(3, "uint16", tiled=False, blockxsize=None, blockysize=5, interleave="band"),
    pages(),
    pages(byteorder=">", bigtiff=True),
]


def parse(data: bytes, size: int | None = None, piece: int = 1024, head: int = 256) -> Header:
    """Parse a file of which more comes as it is asked for; of bytes that it does not have, zeros."""
    size = len(data) if size is None else size
    parts = ByteParts(size)
    parts.add(0, data[:head])
    for _ in range(ROUNDS):
        try:
            return parse_header("some.tif", parts)
        except MissingBytesError as missing:
            ranges = missing.ranges
        assert ranges
        assert sum(stop - start for start, stop in ranges) <= 16 * MAX_TILES + 2**26
        for start, stop in ranges:
            if stop - start > 2**20:
                raise HeaderError("some.tif", "asks for more than this test gives")
            for offset in range(start, stop, piece):
                end = min(stop, offset + piece)
                parts.add(offset, data[offset:end].ljust(end - offset, b"\0"))
    raise AssertionError("the parser asks without end")


def levels_of(header: Header) -> list[Level]:
    return [each for level in header.levels for each in (level, level.mask) if each is not None]


def facts(value: Any) -> Any:
    """All of a header, comparable."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: facts(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and value and isinstance(value[0], Level):
        return [facts(level) for level in value]
    return repr(value.tolist() if isinstance(value, np.ndarray) else value)


def outcome(data: bytes, size: int | None = None) -> Any:
    """Return the facts of a header or the text of its error, having checked what holds of both."""
    tracemalloc.start()
    try:
        header = parse(data, size)
    except HeaderError as error:
        return f"{error.href}: {error.reason}"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_BYTES
    length = len(data) if size is None else size
    for level in levels_of(header):
        assert level.offsets.shape == level.lengths.shape
        _, down, across = level.offsets.shape
        assert (down, across) in ((0, 0), (-(-level.height // level.tile_height), -(-level.width // level.tile_width)))
        offsets, lengths = level.offsets[level.lengths > 0], level.lengths[level.lengths > 0]
        assert (lengths <= length).all()
        assert (offsets <= length - lengths).all()
        if header.needs_gdal is not None and ("GDAL_METADATA" not in header.needs_gdal):
            assert down == 0
    return facts(header)


def check(data: bytes, size: int | None = None) -> None:
    """Check a file, and that what other files left in memory does not change what is found."""
    warm = outcome(data, size)
    assert isinstance(warm, dict) or warm.startswith("some.tif: ")
    _shelf.cache_clear()
    assert outcome(data, size) == warm


PATCHES = st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1"])


@settings(max_examples=200)
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    parse_header("good.tif", whole(bytes(seed)))
    # Where headers lie: at both ends.
    places = st.one_of(st.integers(0, 700), st.integers(len(seed) - 700, len(seed) - 1), st.integers(0, len(seed) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        patch = data.draw(PATCHES | st.binary(max_size=8))
        kind = data.draw(st.sampled_from(["overwrite", "overwrite", "insert", "delete", "truncate"]))
        if kind == "overwrite":
            seed[place : place + len(patch)] = patch
        elif kind == "insert":
            seed[place:place] = patch
        else:
            del seed[place : place + len(patch) if kind == "delete" else None]
    check(bytes(seed))


def whole(data: bytes) -> ByteParts:
    parts = ByteParts(len(data))
    parts.add(0, data)
    return parts


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 32, 64, 255, 1000, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1])
CODES = st.sampled_from([1, 5, 7, 8, 32773, 34887, 50000, 50001, 6, 99])
VALUES = st.one_of(NUMBERS, CODES, st.integers(0, 1200), st.integers(0, 2**32 - 1))
SCALARS = st.sampled_from([254, 255, 256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 338, 339])
ARRAYS = st.sampled_from(
    [258, 273, 279, 320, 324, 325, 330, 338, 339, 347, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113]
)
KINDS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 18, 99])
ONES = st.dictionaries(SCALARS, st.tuples(st.sampled_from([3, 4]), st.just(1), VALUES), max_size=4)
ENTRIES = st.dictionaries(ARRAYS, st.tuples(KINDS, NUMBERS | st.integers(0, 400), VALUES), max_size=4)
BASE = {
    254: (4, 1, 0),
    256: (4, 1, 64),
    257: (4, 1, 64),
    258: (3, 1, 8),
    259: (3, 1, 1),
    262: (3, 1, 1),
    277: (3, 1, 1),
}
TILED = {322: (4, 1, 64), 323: (4, 1, 64), 324: (4, 1, 8), 325: (4, 1, 4096)}
STRIPED = {273: (4, 1, 8), 278: (4, 1, 64), 279: (4, 1, 4096)}


def directory(order: str, big: bool, entries: dict[int, tuple[int, int, int]], following: int) -> bytes:
    head, entry, tail = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    rows = b""
    for tag, (kind, count, value) in sorted(entries.items()):
        code = {3: "H", 8: "H", 1: "B", 6: "B"}.get(kind, "I") if count == 1 else "I"
        limit = {"H": 2**16, "B": 2**8}.get(code, 2**32)
        inline = struct.pack(f"{order}{code}", value % limit).ljust(8 if big else 4, b"\0")
        rows += struct.pack(order + entry, tag, kind, count) + inline
    return struct.pack(order + head, len(entries)) + rows + struct.pack(order + tail, following)


@settings(max_examples=250)
@given(
    order=st.sampled_from("<>"),
    big=st.booleans(),
    images=st.lists(st.tuples(st.booleans(), ONES, ENTRIES, st.sampled_from([0, 1, 1, 5])), min_size=1, max_size=4),
    last=st.sampled_from([0, 0, 0, 16, 2**31]),
    size=st.sampled_from([None, None, 2**32, 2**62]),
)
def test_made_up_directories(order: str, big: bool, images: list[Any], last: int, size: int | None) -> None:
    made = []
    for number, (is_tiled, ones, odd, kind) in enumerate(images):
        base = BASE | {254: (4, 1, kind if number else 0)} | (TILED if is_tiled else STRIPED) | ones | odd
        made.append((base, len(directory(order, big, base, 0))))
    data = {"<": b"II", ">": b"MM"}[order]
    data += struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 16) + bytes(8)
    for number, (base, length) in enumerate(made):
        data += directory(order, big, base, len(data) + length if number + 1 < len(made) else last)
    check(data + bytes(range(256)) * 40, size)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "entries",
    [
        {256: (4, 1, 2**31 - 1), 257: (4, 1, 2**31 - 1), 322: (4, 1, 1), 323: (4, 1, 1)},
        {256: (4, 1, 2**31 - 1), 257: (4, 1, 2**31 - 1), 322: (4, 1, 2**31 - 1), 323: (4, 1, 2**31 - 1)},
        {256: (4, 1, 2**25), 257: (4, 1, 1), 322: (4, 1, 1), 323: (4, 1, 1), 324: (4, 2**25, 8), 325: (4, 2**25, 8)},
        {277: (3, 1, 20000), 258: (3, 20000, 8), 284: (3, 1, 2)},
        {277: (3, 1, 20000), 42112: (2, 9, 8)},
        {277: (4, 1, 65536)},
        {258: (3, 2**32 - 1, 8)},
        {330: (4, 2**32 - 1, 8)},
        {42112: (2, 2**32 - 1, 8)},
        {34735: (3, 2**22, 8)},
        {347: (7, 2**32 - 1, 8)},
    ],
)
def test_absurd_counts_take_no_memory(big: bool, entries: dict[int, tuple[int, int, int]]) -> None:
    for kinds in (TILED, STRIPED):
        for codec in (1, 8):
            table = directory("<", big, BASE | kinds | {259: (3, 1, codec)} | entries, 0)
            head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI8x", b"II", 42, 16)
            for size in (None, 2**40):
                check(head + table + bytes(5000), size)


def test_loops_of_subifds_and_chains_end() -> None:
    first = directory("<", False, BASE | TILED | {330: (4, 1, 16)}, 0)
    head = struct.pack("<2sHI8x", b"II", 42, 16)
    assert "in a loop (byte 16 is named twice)" in outcome(head + first + bytes(5000))
    length = len(directory("<", False, BASE | TILED, 0))
    chain = [directory("<", False, BASE | TILED, 16 + (number + 1) % 50 * length) for number in range(50)]
    assert "in a loop (byte 16 is named twice)" in outcome(head + b"".join(chain) + bytes(5000))


def test_a_long_chain_is_not_followed_to_its_end() -> None:
    length = len(directory("<", False, BASE | TILED, 0))
    chain = [directory("<", False, BASE | TILED, 16 + (number + 1) * length) for number in range(5000)]
    found = outcome(struct.pack("<2sHI8x", b"II", 42, 16) + b"".join(chain) + bytes(5000))
    assert found["needs_gdal"] == "'more than 64 images'"


@pytest.mark.parametrize("text", ["<a/>" * 10**6, "<a>" * 10**6, '<a b="' * 10**5, "<!DOCTYPE a>" * 10**5])
def test_metadata_that_would_take_memory_is_not_parsed(text: str) -> None:
    tracemalloc.start()
    try:
        items = parse_items(f"<GDALMetadata>{text}".encode(), 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert items.is_broken
    assert peak < MOST_BYTES
