"""Every way to store pixels that the reader covers, as GDAL writes it and GDAL reads it, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.transform import from_origin

from cube.tiff.decode import TileLayout, decode_into, decode_tile

HEIGHT, WIDTH = 53, 75
TILE = {"tiled": True, "blockxsize": 32, "blockysize": 16}
STRIP = {"blockysize": 16}
GRID = {
    "driver": "GTiff",
    "width": WIDTH,
    "height": HEIGHT,
    "crs": "EPSG:32633",
    "transform": from_origin(500000, 5000000, 10, 10),
}

CODECS: dict[str, dict[str, Any]] = {
    "none": {},
    "lzw": {"compress": "lzw"},
    "deflate": {"compress": "deflate"},
    "zstd": {"compress": "zstd"},
    "packbits": {"compress": "packbits"},
    "lerc": {"compress": "lerc"},
    "lerc_deflate": {"compress": "lerc_deflate"},
    "lerc_zstd": {"compress": "lerc_zstd"},
    "jpeg": {"compress": "jpeg"},
    "jpeg_ycbcr": {"compress": "jpeg", "photometric": "ycbcr"},
    "webp": {"compress": "webp", "webp_level": 60},
    "webp_lossless": {"compress": "webp", "webp_lossless": True},
}
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
DTYPES += ("float16", "float32", "float64", "complex64", "complex128")
LERC_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
REAL_FILES = (
    "cogeotiff__rio-tiler/tests__fixtures__cog_hirise_mars.tif",
    "cogeotiff__rio-tiler/tests__fixtures__cog_rgb.tif",
    "developmentseed__async-tiff/fixtures__image-tiff__quad-lzw-compat.tiff",
    "developmentseed__async-tiff/fixtures__image-tiff__quad-tile.jpg.tiff",
    "developmentseed__async-tiff/fixtures__image-tiff__random-fp16-pred2.tiff",
    "developmentseed__async-tiff/fixtures__image-tiff__random-fp16-pred3.tiff",
    "developmentseed__async-tiff/fixtures__image-tiff__tiled-jpeg-rgb-u8.tif",
    "developmentseed__async-tiff/fixtures__image-tiff__tiled-jpeg-ycbcr.tif",
    "rasterio__rasterio/tests__data__alpha.tif",
    "rasterio__rasterio/tests__data__cogeo.tif",
    "rasterio__rasterio/tests__data__goes.tif",
)
"""What the matrix has not: JPEG and LZW of other writers, and half floats."""


@dataclass(frozen=True)
class Case:
    """One way to store pixels."""

    codec: str
    dtype: str
    predictor: int
    samples: str
    """"one", or three in "pixel" or "band" interleave."""
    endianness: str
    blocks: str
    """"tiles" or "strips"."""
    sparse: bool

    def __str__(self):
        return "-".join(map(str, dataclasses.astuple(self)))

    @property
    def is_written(self):
        """Whether GDAL writes it."""
        if self.sparse and self.dtype in ("float16", "complex64", "complex128"):
            return False
        if self.codec.startswith("lerc") and self.dtype not in LERC_DTYPES:
            return False
        if self.codec.startswith(("jpeg", "webp")) and self.dtype != "uint8":
            return False
        if self.codec.startswith(("jpeg_ycbcr", "webp")) and self.samples != "pixel":
            return False
        if self.predictor > 1 and self.codec not in ("lzw", "deflate", "zstd"):
            return False
        return self.predictor == 1 or self.dtype in (("float32", "float64") if self.predictor == 3 else DTYPES[:-1])

    @property
    def is_lossless(self):
        """Whether GDAL reads what was written: not even all of the numbers of a LERC file of the other byte order."""
        lossy = self.codec in ("jpeg", "jpeg_ycbcr", "webp")
        return not lossy and not (self.codec.startswith("lerc") and self.endianness == "BIG")

    def write(self, path):
        """Write a file, and return its pixels (band, y, x)."""
        pixels = pixels_of(self.dtype, 1 if self.samples == "one" else 3)
        options = GRID | CODECS[self.codec] | (TILE if self.blocks == "tiles" else STRIP)
        options |= {"predictor": self.predictor} if self.predictor > 1 else {}
        options |= {"interleave": "band" if self.samples == "one" else self.samples, "count": len(pixels)}
        with rasterio.open(
            path, "w", **options, dtype=self.dtype, sparse_ok=self.sparse, endianness=self.endianness
        ) as file:
            file.write(pixels)
        return pixels


def all_cases():
    endianness, blocks, samples = ("LITTLE", "BIG"), ("tiles", "strips"), ("one", "pixel", "band")
    product = itertools.product(CODECS, DTYPES, (1, 2, 3), samples, endianness, blocks, (False, True))
    return [case for choices in product if (case := Case(*choices)).is_written]


def representative(cases):
    """Return few of the cases, in which still any two choices that can meet do so."""
    shuffled, met, chosen = random.Random(0).sample(cases, len(cases)), set(), []
    for case in shuffled:
        pairs = set(itertools.combinations(enumerate(dataclasses.astuple(case)), 2))
        if not pairs <= met:
            met |= pairs
            chosen.append(case)
    return chosen


def pixels_of(dtype, samples):
    """Return smooth and noisy pixels with the extremes of their type; those of the first row of blocks are zero."""
    random_numbers = np.random.default_rng(0)
    sample, y, x = np.mgrid[:samples, :HEIGHT, :WIDTH]
    surface = 100 + 60 * np.sin(x / 9 + sample) * np.cos(y / 7) + random_numbers.normal(0, 9, x.shape)
    if np.dtype(dtype).kind == "c":
        pixels = (surface + 1j * random_numbers.normal(size=x.shape)).astype(dtype)
    elif np.dtype(dtype).kind == "f":
        pixels = surface.astype(dtype)
        pixels[:, 20, 5], pixels[0, 30, 40], pixels[:, 40, 3], pixels[:, 41, 3] = np.nan, np.nan, np.inf, -0.0
    else:
        limits = np.iinfo(dtype)
        pixels = surface.clip(max(0, limits.min), limits.max).astype(dtype)
        pixels[:, 20, :9], pixels[:, 30, 30:50] = limits.min, limits.max
    pixels[:, :16] = 0
    return pixels


def layout_of(page, byteorder, height):
    return TileLayout(
        dtype=np.dtype("u1") if page.bitspersample == 1 else page.dtype.newbyteorder("="),
        byteorder=byteorder,
        samples=1 if page.planarconfig == 2 else page.samplesperpixel,
        height=height,
        width=page.tilewidth if page.is_tiled else page.imagewidth,
        compression=int(page.compression),
        predictor=int(page.predictor),
        photometric=int(page.photometric),
        tables=page.jpegtables,
        bits=1 if page.bitspersample == 1 else 0,
    )


def decoded(path, page=0):
    """Return the pixels (band, y, x) of a file by way of its tiles, and how many of those it leaves out."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[page]
        height, width = page.imagelength, page.imagewidth
        tile_height = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
        full = layout_of(page, file.byteorder, tile_height)
        rows, columns = range(0, height, tile_height), range(0, width, full.width)
        pixels = np.zeros((page.samplesperpixel, height, width), full.dtype)
        places = itertools.product(range(0, page.samplesperpixel, full.samples), rows, columns)
        for (sample, y, x), offset, length in zip(places, page.dataoffsets, page.databytecounts, strict=True):
            if length == 0:
                continue
            left = min(tile_height, height - y)
            layout = full if page.is_tiled else dataclasses.replace(full, height=left)
            file.filehandle.seek(offset)
            tile = decode(memoryview(file.filehandle.read(length)), layout)
            part = pixels[sample : sample + full.samples, y : y + left, x : x + full.width]
            part[:] = tile.transpose(2, 0, 1)[:, :left, : part.shape[2]]
        return pixels, page.databytecounts.count(0)


def decode(encoded, layout):
    """Return a decoded tile after checking that both ways to decode it agree."""
    tile = decode_tile(encoded, layout).copy()
    assert (tile.dtype, tile.shape) == (layout.dtype, (layout.height, layout.width, layout.samples))
    assert tile.dtype.isnative
    out = np.ones((2 * layout.height, 3 * layout.width), layout.dtype)[::2, layout.width : -layout.width]
    if decode_into(encoded, layout, out):
        assert_same_bits(out, tile[..., 0])
    return tile


def assert_same_bits(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    words = f"u{min(8, found.itemsize)}"
    found, expected = np.ascontiguousarray(found), np.ascontiguousarray(expected)
    np.testing.assert_array_equal(found.view(words), expected.view(words))


def read(path):
    with rasterio.open(path) as file:
        return file.read()


def check(case, path):
    written = case.write(path)
    found, absent = decoded(path)
    assert_same_bits(found, read(path))
    assert (absent > 0) == case.sparse
    if case.is_lossless:
        assert_same_bits(found, written)


ALL = all_cases()
REPRESENTATIVE = representative(ALL)


@pytest.mark.parametrize("case", REPRESENTATIVE, ids=str)
def test_pixels_are_those_that_gdal_reads(case, tmp_path):
    check(case, tmp_path / "file.tif")


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "dtype"), sorted({(case.codec, case.dtype) for case in ALL}))
def test_pixels_are_those_that_gdal_reads_in_all_combinations(codec, dtype, tmp_path):
    for case in ALL:
        if (case.codec, case.dtype) == (codec, dtype):
            check(case, tmp_path / "file.tif")


def test_the_representative_cases_have_each_choice_and_are_few():
    for field in dataclasses.fields(Case):
        assert {getattr(case, field.name) for case in REPRESENTATIVE} == {getattr(case, field.name) for case in ALL}
    assert len(REPRESENTATIVE) < len(ALL) / 8


@pytest.mark.parametrize("tables", [0, 1, 2, 3])
@pytest.mark.parametrize("blocks", [TILE, STRIP, {"blockysize": HEIGHT}], ids=["tiles", "strips", "one-strip"])
@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (1, {}),
        (1, {"photometric": "miniswhite"}),
        (2, {}),
        (3, {"photometric": "rgb"}),
        (3, {"photometric": "ycbcr", "jpeg_quality": 30}),
        (4, {"photometric": "rgb", "alpha": "yes"}),
        (4, {"photometric": "minisblack"}),
        (5, {"interleave": "band"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_jpeg_of_each_colour_space_and_place_of_its_tables(samples, options, blocks, tables, tmp_path):
    path = tmp_path / "file.tif"
    options = {"compress": "jpeg", "interleave": "pixel", "jpegtablesmode": tables} | options | blocks
    with rasterio.open(path, "w", **GRID, **options, count=samples, dtype="uint8") as file:
        file.write(pixels_of("uint8", samples))
    assert_same_bits(decoded(path)[0], read(path))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("blocks", [{"tile": (32, 64)}, {"rowsperstrip": 32}], ids=["tiles", "strips"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_jpeg_of_each_subsampling(subsampling, blocks, tmp_path):
    path = tmp_path / "file.tif"
    pixels, jpeg = pixels_of("uint8", 3).transpose(1, 2, 0), {"level": 60, "outcolorspace": "YCBCR"}
    options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": jpeg, "subsampling": subsampling}
    tifffile.imwrite(path, np.ascontiguousarray(pixels), **options, **blocks)
    assert_same_bits(decoded(path)[0], read(path))


@pytest.mark.parametrize("blocks", [TILE, STRIP], ids=["tiles", "strips"])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("alpha", ["opaque", "binary", "any"])
@pytest.mark.parametrize("codec", ["webp", "lerc", "lerc_zstd"])
def test_alpha_that_the_codec_stores_in_its_own_way(codec, alpha, lossless, blocks, tmp_path):
    path = tmp_path / "file.tif"
    pixels = pixels_of("uint8", 4)
    pixels[3] = {"opaque": 255, "binary": np.where(pixels[3] > 100, 255, 0), "any": pixels[3]}[alpha]
    options = {"webp_lossless": lossless} if codec == "webp" else {"max_z_error": 0 if lossless else 3}
    options |= {"compress": codec, "interleave": "pixel", "photometric": "rgb", "alpha": "yes"} | blocks
    with rasterio.open(path, "w", **GRID, **options, count=4, dtype="uint8") as file:
        file.write(pixels)
    assert_same_bits(decoded(path)[0], read(path))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("missing", ["none", "one-sample", "all-samples", "everything"])
def test_nans_that_lerc_stores_as_masks(dtype, samples, missing, tmp_path):
    path = tmp_path / "file.tif"
    pixels = np.nan_to_num(pixels_of(dtype, samples))
    holes = {"one-sample": (0, slice(10)), "all-samples": (slice(None), slice(10)), "everything": ()}
    if missing != "none":
        pixels[holes[missing]] = np.nan
    options = {"compress": "lerc", "interleave": "pixel", "max_z_error": 0.01} | TILE
    with rasterio.open(path, "w", **GRID, **options, count=samples, dtype=dtype) as file:
        file.write(pixels)
    found = decoded(path)[0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(pixels))
    assert_same_bits(found, read(path))


@pytest.mark.parametrize("codec", ["deflate", "lzw", "packbits", "none"])
@pytest.mark.parametrize("blocks", [TILE, STRIP], ids=["tiles", "strips"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_images_of_one_bit(codec, blocks, interleave, tmp_path):
    path = tmp_path / "file.tif"
    pixels = np.random.default_rng(0).integers(0, 2, (3, HEIGHT, WIDTH), "uint8")
    options = {"compress": codec, "interleave": interleave, "nbits": 1} | blocks
    with rasterio.open(path, "w", **GRID, **options, count=3, dtype="uint8") as file:
        file.write(pixels)
    np.testing.assert_array_equal(decoded(path)[0], pixels)


@pytest.mark.parametrize("blocks", [TILE, STRIP], ids=["tiles", "strips"])
def test_internal_masks(blocks, tmp_path):
    path = tmp_path / "file.tif"
    pixels, valid = pixels_of("uint16", 1), np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)).astype(bool)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **GRID, **blocks, compress="deflate", count=1, dtype="uint16") as file,
    ):
        file.write(pixels)
        file.write_mask(valid)
    np.testing.assert_array_equal(decoded(path)[0], pixels)
    np.testing.assert_array_equal(decoded(path, page=1)[0], valid[np.newaxis])


def test_bands_interleaved_by_tile(tmp_path):
    path = tmp_path / "file.tif"
    pixels = pixels_of("int16", 3)
    options = GRID | {"driver": "COG", "interleave": "tile", "blocksize": 32, "compress": "zstd", "predictor": 2}
    with rasterio.open(path, "w", **options, overviews="none", count=3, dtype="int16") as file:
        file.write(pixels)
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["INTERLEAVE"] == "TILE"
    np.testing.assert_array_equal(decoded(path)[0], pixels)


@pytest.mark.parametrize("name", REAL_FILES, ids=lambda name: Path(name).stem[-40:])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_real_files_of_other_writers(name, test_data):
    expected = read(test_data / name)
    assert_same_bits(decoded(test_data / name)[0].astype(expected.dtype), expected)
