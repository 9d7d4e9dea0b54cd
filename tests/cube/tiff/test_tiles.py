"""`cube.tiles`: strips, and tables that do not say what they should."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile
from rasterio.io import MemoryFile

from cube.errors import HeaderError
from cube.tiff.header import Header, Level, parse_header
from cube.tiff.ifd import MAX_TILES, ByteParts

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

DEFLATE = {"compression": "deflate"}


def parse(data: bytes, size: int | None = None) -> Header:
    parts = ByteParts(len(data) if size is None else size)
    parts.add(0, data)
    return parse_header("some.tif", parts)


def write(height: int = 100, width: int = 300, dtype: str = "uint16", samples: int = 0, **options: Any) -> bytes:
    """Write a TIFF of distinct pixels in strips; `samples` are separate planes."""
    shape = (samples, height, width) if samples else (height, width)
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    file = io.BytesIO()
    options = {"photometric": "minisblack", "metadata": None, "rowsperstrip": 16} | options
    tifffile.imwrite(file, pixels, planarconfig="separate" if samples else None, **options)
    return file.getvalue()


def patched(
    data: bytes, tag: int, count: int | None = None, value: int | None = None, name: int | None = None
) -> bytes:
    """Change one entry of the first directory of a little-endian classic TIFF."""
    out = bytearray(data)
    start = struct.unpack_from("<I", out, 4)[0]
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", out, start)[0], 12):
        found, kind, old_count, old_value = struct.unpack_from("<HHII", out, place)
        if found == tag:
            values = old_count if count is None else count, old_value if value is None else value
            struct.pack_into("<HHII", out, place, name or found, kind, *values)
    return bytes(out)


def stored(data: bytes, level: Level, plane: int = 0) -> bytes:
    """Return the bytes of all strips of a plane, one after the other."""
    starts, lengths = level.offsets[plane].ravel().tolist(), level.lengths[plane].ravel().tolist()
    return b"".join(data[start : start + length] for start, length in zip(starts, lengths, strict=True))


def gdal_reads(data: bytes) -> np.ndarray:
    with MemoryFile(data) as file, file.open() as dataset:
        return dataset.read()


@pytest.mark.parametrize("rows", [1, 16, 33, 99, 100, 1000, 2**32 - 1])
def test_strips_are_tiles_as_wide_as_the_image(rows: int) -> None:
    data = patched(write(rowsperstrip=min(rows, 100), **DEFLATE), 278, value=rows)
    header = parse(data)
    (level,) = header.levels
    assert (header.needs_gdal, level.strips, level.tile_width, level.tile_height) == (None, True, 300, min(rows, 100))
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    assert level.offsets.ravel().tolist() == list(page.dataoffsets)
    assert level.lengths.ravel().tolist() == list(page.databytecounts)


def test_an_image_that_does_not_say_how_high_its_strips_are_is_one() -> None:
    data = patched(write(rowsperstrip=100, **DEFLATE), 278, name=65000)
    level = parse(data).levels[0]
    assert (level.tile_height, level.offsets.shape) == (100, (1, 1, 1))


def test_strips_without_rows_are_an_error() -> None:
    with pytest.raises(HeaderError, match="image 1 has strips of 300 x 0 pixels"):
        parse(patched(write(), 278, value=0))


@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("rows", [1, 16, 100, 2000])
def test_plain_strips_that_follow_one_another_are_cut_to_like_size(samples: int, rows: int) -> None:
    data = write(2000, 300, samples=samples, rowsperstrip=rows)
    level = parse(data).levels[0]
    assert level.tile_height == 2**18 // 600
    assert level.offsets.shape == (samples or 1, 5, 1)
    assert (level.lengths[:, :4] == 436 * 600).all()
    assert (level.lengths[:, 4] == 256 * 600).all()
    for plane, pixels in enumerate(gdal_reads(data)):
        assert stored(data, level, plane) == pixels.tobytes()


def test_plain_strips_of_wide_images_are_single_rows() -> None:
    level = parse(write(3, 200_000)).levels[0]
    assert (level.tile_height, level.lengths.ravel().tolist()) == (1, [400_000] * 3)


def test_plain_strips_that_lie_apart_stay_as_they_are() -> None:
    data = write(rowsperstrip=50)
    start = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags[273].valueoffset
    last = struct.unpack_from("<II", data, start)[1]
    apart = bytearray(data + data[last : last + 50 * 600])
    struct.pack_into("<I", apart, start + 4, len(data))
    level = parse(bytes(apart)).levels[0]
    assert (level.tile_height, level.offsets.ravel().tolist()[1]) == (50, len(data))
    assert stored(bytes(apart), level) == gdal_reads(bytes(apart)).tobytes()


def test_sparse_strips() -> None:
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", count=1, dtype="uint16", width=300, height=100, blockysize=16, SPARSE_OK=True
        ) as new:
            new.write(np.ones((16, 300), "uint16"), 1, window=((16, 32), (0, 300)))
        data = file.read()
    level = parse(data).levels[0]
    assert (level.lengths.ravel() == [0, 9600, 0, 0, 0, 0, 0]).all()
    assert level.tile_height == 16


@pytest.mark.parametrize("planes", [0, 3])
def test_lone_plain_strips_need_no_lengths(planes: int) -> None:
    data = write(samples=planes, rowsperstrip=100)
    wrong = patched(data, 279, name=65000)
    assert stored(wrong, parse(wrong).levels[0]) == gdal_reads(data)[0].tobytes()


@pytest.mark.parametrize("value", [0, 5, 10**6])
def test_wrong_lengths_of_lone_plain_strips_do_not_matter(value: int) -> None:
    data = patched(write(rowsperstrip=100), 279, value=value)
    assert stored(data, parse(data).levels[0]) == gdal_reads(data).tobytes()


def test_a_coded_strip_of_unknown_length_is_for_gdal() -> None:
    header = parse(patched(write(rowsperstrip=100, **DEFLATE), 279, name=65000))
    assert header.needs_gdal == "a strip of unknown length"
    assert header.levels[0].offsets.size == 0


def test_several_strips_need_lengths() -> None:
    with pytest.raises(HeaderError, match="image 1 has 7 strips, but 0 strip lengths of type 0"):
        parse(patched(write(**DEFLATE), 279, name=65000))


def test_tables_that_are_longer_than_they_need_to_be_are_read_as_libtiff_reads_them() -> None:
    data = write(**DEFLATE)
    wanted = parse(data).levels[0]
    level = parse(patched(patched(data, 273, count=9), 279, count=2**31)).levels[0]
    assert (level.offsets == wanted.offsets).all()
    assert (level.lengths == wanted.lengths).all()


def test_tiles_may_stand_in_the_tags_of_strips() -> None:
    data = write(rowsperstrip=None, tile=(32, 32), **DEFLATE)
    wanted, level = parse(data).levels[0], parse(patched(patched(data, 324, name=273), 325, name=279)).levels[0]
    assert (level.offsets == wanted.offsets).all()
    assert not level.strips


def test_plain_tiles_are_as_long_as_their_pixels() -> None:
    data = write(32, 32, rowsperstrip=None, tile=(32, 32))
    assert parse(patched(data, 325, value=1)).levels[0].lengths.tolist() == [[[2048]]]


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_strips_past_the_end_are_an_error(compression: str | None) -> None:
    data = write(compression=compression)
    with pytest.raises(HeaderError, match=r"image 1 has 1 strips past the end of the file \(\d+ bytes; truncated"):
        parse(data[:-8])


def test_large_strips_are_cut_or_left_to_gdal() -> None:
    data = patched(patched(write(rowsperstrip=100, **DEFLATE), 257, value=2**21), 278, value=2**21)
    assert parse(data).needs_gdal == "strips of 1258291200 bytes"
    plain = patched(patched(write(rowsperstrip=100), 257, value=2**21), 278, value=2**21)
    level = parse(plain, size=2**31).levels[0]  # as if the rest of it came later
    assert (level.tile_height, level.offsets.shape) == (436, (1, 4810, 1))
    with pytest.raises(HeaderError, match="image 1 has 1 strips past the end of the file"):
        parse(plain)


def test_absurdly_many_strips_are_refused_before_memory_is_taken() -> None:
    data = patched(patched(write(rowsperstrip=1, **DEFLATE), 257, value=2**31 - 1), 278, value=1)
    with pytest.raises(HeaderError, match=rf"has 2147483647 tiles or strips up to image 1.*at most {MAX_TILES}"):
        parse(data, size=2**40)
    # Plain rows that a server says are there are as many strips as before where cutting would make too many.
    wide = patched(patched(patched(write(rowsperstrip=100), 256, value=2**20), 257, value=2**30), 278, value=2**30)
    level = parse(wide, size=2**62).levels[0]
    assert level.offsets.shape == (1, 1, 1)
