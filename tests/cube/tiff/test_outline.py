"""`cube.outline`: what files of an archive have in common is found once, and only what they have in common."""

from __future__ import annotations

import struct
import threading
from typing import Any

import numpy as np
import pytest
from affine import Affine
from rasterio.io import MemoryFile

from cube.errors import HeaderError
from cube.tiff.header import Header, parse_header
from cube.tiff.ifd import ByteParts, MissingBytesError, TiffFile
from cube.tiff.outline import _KEY_BYTES, Outline, _shelf, find_outline

GRID = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 4000000.0)


def write(east: float = 0.0, seed: int = 0, **options: Any) -> bytes:
    """Write a COG of noise with two overviews."""
    pixels = np.random.default_rng(seed).integers(0, 4000, (1, 300, 300), dtype="uint16")
    profile = {
        "transform": Affine.translation(east, 0) @ GRID,
        "crs": "EPSG:32633",
        "blocksize": 128,
        "compress": "lzw",
    }
    with MemoryFile() as file:
        with file.open(driver="COG", count=1, dtype="uint16", width=300, height=300, **profile | options) as dataset:
            dataset.write(pixels)
        return file.read()


def outline(data: bytes, head: int | None = None) -> Outline | None:
    parts = ByteParts(len(data))
    parts.add(0, data[:head])
    return find_outline(TiffFile("some.tif", parts))


def parse(data: bytes) -> Header:
    parts = ByteParts(len(data))
    parts.add(0, data)
    return parse_header("some.tif", parts)


def test_files_with_the_same_directories_share_an_outline_and_nothing_else() -> None:
    one, other = write(), write(east=5000.0, seed=1, nodata=None)
    assert outline(one) is outline(other)
    first, second = parse(one), parse(other)
    assert (first.transform.c, second.transform.c) == (500000.0, 505000.0)
    for a, b in zip(first.levels, second.levels, strict=True):
        assert not np.array_equal(a.lengths, b.lengths)


def with_codec(data: bytes, codec: int) -> bytes:
    """Change the codec of the last overview."""
    known = outline(data)
    assert known is not None
    place = known.levels[-1].entries[259][-1]
    return data[:place] + bytes([codec]) + data[place + 1 :]


def test_files_whose_overviews_differ_do_not_share() -> None:
    one = write()
    other = with_codec(one, 8)
    for _ in range(2):  # the first time it is made, then it is found beside the other
        for data, codec in (one, 5), (other, 8):
            found = outline(data)
            assert found is not None
            assert [image.codec for image in found.levels] == [5, 5, codec]
    assert outline(one) is outline(one)


def test_a_value_that_points_into_a_directory_hides_nothing() -> None:
    data = bytearray(write(nodata=0))
    known = outline(bytes(data))
    assert known is not None
    overview, place = known.levels[-1].entries, known.levels[0].entries[42113][-1]
    first, last = min(entry[-1] for entry in overview.values()), max(entry[-1] for entry in overview.values())
    struct.pack_into("<II", data, place - 4, last - first, first)  # nodata: the table of the last overview
    for codec in 5, 8, 5:
        found = outline(with_codec(bytes(data), codec))
        assert found is not None
        assert found.levels[-1].codec == codec


def test_directories_that_overlap_hide_nothing() -> None:
    tags = [(254, 4, 1, 0), (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8)]
    tags += [(260 + i, 4, 1, 0) for i in range(5)] + [(273, 4, 1, 999), (279, 4, 1, 9)]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    # The second directory begins in the offset of the first one's strip: it says how many tags it has. Where it ends,
    # the third one's place is that of the second, moved by 16 bits.
    second = 8 + 2 + 10 * 12 + 8
    start = b"II*\0" + struct.pack("<I", 8) + table + struct.pack("<I", second)
    data = bytearray(start.ljust(second << 16, b"\0") + struct.pack("<HHHIII", 1, 254, 4, 1, 2, 0))
    for count in 1, 0, 1:
        struct.pack_into("<H", data, second, count)
        if count:
            assert outline(bytes(data)) is not None
        else:
            with pytest.raises(HeaderError, match="image 2 has 0 tags"):
                outline(bytes(data))


def test_an_outline_is_found_only_in_bytes_that_are_at_hand() -> None:
    data = write()
    known = outline(data)
    assert known is not None
    whole = max(offset + len(part) for offset, part in known.source)
    assert outline(data, whole) is known
    parts = ByteParts(len(data))
    parts.add(0, data[: whole - 1])
    file = TiffFile("some.tif", parts)
    assert find_outline(file) is None
    assert file.missing


def test_few_outlines_are_kept() -> None:
    _shelf.cache_clear()
    data = write()
    for codec in range(100):
        outline(with_codec(data, codec))
    assert len(_shelf(data[:16], data[int.from_bytes(data[4:8], "little") :][:_KEY_BYTES])) == 4


def test_threads_may_parse_at_once() -> None:
    files = [write(blocksize=128 * (1 + i % 2), seed=i, east=1000.0 * i) for i in range(4)]
    wanted = [parse(data).levels[0].offsets.tolist() for data in files]
    wrong: list[int] = []

    def work(i: int) -> None:
        for k in range(200):
            if k % 50 == 0:
                _shelf.cache_clear()
            if parse(files[(i + k) % 4]).levels[0].offsets.tolist() != wanted[(i + k) % 4]:
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_values_that_lie_elsewhere_are_asked_for_with_what_they_lead_to() -> None:
    pixels = np.zeros((3, 64, 64), "uint8")
    with MemoryFile() as file:
        with file.open(driver="GTiff", count=3, dtype="uint8", width=64, height=64, tiled=True, blockxsize=16,
                       blockysize=16, transform=GRID) as dataset:  # fmt: skip
            dataset.write(pixels)
        data = file.read()
    start = int.from_bytes(data[4:8], "little")
    table = 2 + 12 * int.from_bytes(data[start : start + 2], "little") + 4
    parts = ByteParts(len(data))
    parts.add(0, data[:8])
    parts.add(start, data[start : start + table])  # not the bits of the three samples, nor anything else
    try:
        parse_header("some.tif", parts)
    except MissingBytesError as missing:
        for a, b in missing.ranges:
            parts.add(a, data[a:b])
    assert parse_header("some.tif", parts).samples == 3
