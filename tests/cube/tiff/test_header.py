"""`cube.tiff.header` against GDAL (rasterio) and tifffile, over real files, generated ones and hostile bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio._err import CPLE_AppDefinedError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import MemoryFile

from cube.errors import HeaderError
from cube.tiff.header import Header, Level, parse_header
from cube.tiff.ifd import MAX_TILES, ByteParts, MissingBytesError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

FOLDER = Path(os.environ.get("CUBE_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")
FOUND = sorted(path for path in FOLDER.rglob("*") if path.suffix.lower() in (".tif", ".tiff"))
CORPUS = [path.relative_to(FOLDER).as_posix() for path in FOUND] or ["absent"]
DAMAGED = {"rasterio__rasterio/tests__data__corrupt.tif": "image 1 has 1 tiles past the end of the file"}
REASON = re.compile(
    r"(strips of \d+ bytes|a strip of unknown length|[\w() ]+ compression( of \d samples of [\w() ]+ colours)?|"
    r"predictor \d+ on samples of type \w+|[\w() ]+ colours|reversed bit order|"
    r"floating-point predictor on samples of type \w+|samples of type (mixed|[uifc]+\d+)|"
    r"samples of another type \(.*\)|colours of another kind|masks of \d+ of \d+ levels|more than 64 images|"
    r"\d samples|GDAL_METADATA that is not plain XML|NODATA_VALUES, of which all bands together make the mask)"
    r"( at level \d+| in a mask)?"
)
DTYPES = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
CODECS = {"none": (1,), "lzw": (5,), "deflate": (8, 32946), "zstd": (50000,), "packbits": (32773,), "jpeg": (7,),
          "ycbcr jpeg": (7,), "lerc": (34887,), "webp": (50001,)}  # fmt: skip
GRID = Affine(10.0, 0.0, 500000.0, 0.0, -10.0, 4000000.0)
GEO_TAGS = [(33550, 12, 3, (10.0, 10.0, 0.0)), (33922, 12, 6, (0.0, 0.0, 0.0, 500000.0, 4000000.0, 0.0))]


def parse(data: bytes, piece: int | None = None, head: int = 0) -> Header:
    """Parse a file that is given whole, or only as it is asked for, in pieces."""
    parts = ByteParts(len(data))
    parts.add(0, data if piece is None else data[:head])
    for _ in range(300):
        try:
            return parse_header("some.tif", parts)
        except MissingBytesError as missing:
            ranges = missing.ranges
        assert ranges
        assert all(0 <= start < stop <= len(data) for start, stop in ranges)
        for start, stop in ranges:
            for offset in range(start, stop, piece or len(data)):
                parts.add(offset, data[offset : min(stop, offset + (piece or len(data)))])
    raise AssertionError("the parser asks without end")


def facts(header: Header) -> str:
    """All of a header, comparable."""
    return repr(
        {
            field.name: [
                {f.name: np.asarray(getattr(level, f.name)).tolist() for f in dataclasses.fields(level)}
                for level in header.levels
            ]
            if field.name == "levels"
            else getattr(header, field.name)
            for field in dataclasses.fields(header)
        }
    )


def write(count: int = 1, dtype: str = "uint16", width: int = 80, height: int = 48, **options: Any) -> bytes:
    """Write a tiled GeoTIFF of distinct pixels with GDAL; `overviews` and `edit` act on the open dataset."""
    overviews, edit = options.pop("overviews", ()), options.pop("edit", None)
    values = (np.arange(count * height * width) % 120).reshape(count, height, width).astype(dtype)
    profile = {"tiled": True, "blockxsize": 32, "blockysize": 16, "transform": GRID, "crs": "EPSG:32633"} | options
    with MemoryFile() as file:
        with file.open(driver="GTiff", count=count, dtype=dtype, width=width, height=height, **profile) as dataset:
            if edit is not None:
                edit(dataset)
            dataset.write(values)
            if overviews:
                dataset.build_overviews(overviews)
        return file.read()


def tiff(
    dtype: str = "uint8", shape: tuple[int, ...] = (64, 64), tags: Any = (), geo: Any = GEO_TAGS, **options: Any
) -> bytes:
    """Write a tiled TIFF of zeros with tifffile, with any tags."""
    file = io.BytesIO()
    options = {"tile": (32, 32), "photometric": "minisblack", "metadata": None} | options
    tifffile.imwrite(file, np.zeros(shape, dtype), extratags=[*geo, *tags], **options)
    return file.getvalue()


def text_tag(tag: int, text: str) -> tuple[int, int, int, bytes]:
    data = text.encode() + b"\0"
    return tag, 2, len(data), data


def same(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def overview_sizes(open_file: Any, count: int) -> list[tuple[int, int]]:
    sizes = []
    for number in range(count):
        with open_file(overview_level=number) as overview:
            sizes.append((overview.width, overview.height))
    return sizes


def check_against_gdal(header: Header, dataset: Any, sizes: list[tuple[int, int]]) -> None:
    """Compare everything that GDAL says, too, of a file whose pixels are covered."""
    full = header.levels[0]
    assert (full.width, full.height, header.samples) == (dataset.width, dataset.height, dataset.count)
    assert {header.dtype.name} == set(dataset.dtypes)
    if not (full.strips and full.compression == 1):  # those are cut anew
        assert (full.tile_height, full.tile_width) == dataset.block_shapes[0]
    interleave = dataset.tags(ns="IMAGE_STRUCTURE")["INTERLEAVE"].lower()
    assert header.interleave == {"tile": "band"}.get(interleave, interleave)
    assert sorted((level.width, level.height) for level in header.levels[1:]) == sorted(sizes)
    assert same(header.nodata, dataset.nodata)
    check_place(header, dataset)
    assert (header.scales, header.offsets) == (dataset.scales, dataset.offsets)
    assert (header.descriptions, header.units) == (dataset.descriptions, dataset.units)
    check_validity(header, dataset)
    with contextlib.suppress(CPLE_AppDefinedError):  # what PROJ said of the CRS before, rasterio raises here
        _ = dataset.colorinterp
    alphas = [i for i, role in enumerate(dataset.colorinterp) if role == ColorInterp.alpha]
    assert header.alpha == (alphas[0] if alphas else None)
    standard = ("TIFFTAG_", "AREA_OR_POINT")
    assert header.metadata == {k: v for k, v in dataset.tags().items() if not k.startswith(standard)}
    if header.colormap is not None or header.photometric == 3:
        assert header.colormap == tuple(dataset.colormap(1).values())
    name = dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "none").lower()
    assert full.compression in CODECS[name.removesuffix("_deflate").removesuffix("_zstd")]


def check_place(header: Header, dataset: Any) -> None:
    assert (header.transform or Affine.identity()) == dataset.transform
    if header.refusal is None:
        assert dataset.transform != Affine.identity()
    else:
        points = "ground control points instead of a transform"
        assert header.refusal == (points if dataset.gcps[0] else "no georeferencing")


def check_validity(header: Header, dataset: Any) -> None:
    flags = set(dataset.mask_flag_enums[0])
    wanted = {
        "mask": {MaskFlags.per_dataset},
        "alpha": {MaskFlags.per_dataset, MaskFlags.alpha},
        None: {MaskFlags.all_valid if header.nodata is None else MaskFlags.nodata},
    }
    assert flags == wanted[header.validity]
    for level in header.levels:
        assert (level.mask is not None) == (header.validity == "mask")
        if level.mask is not None:
            assert (level.mask.width, level.mask.height) == (level.width, level.height)


def check_against_tifffile(header: Header, data: bytes | Path) -> None:
    with tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
        pages: dict[tuple[int, int, bool], Any] = {}
        for page in file.pages:
            pages.setdefault((page.imagewidth, page.imagelength, bool(page.subfiletype & 4)), page)
        assert header.byteorder == file.byteorder
        for level in header.levels:
            planes = header.samples if header.interleave == "band" else 1
            check_tiles(level, pages[level.width, level.height, False], planes)
            if level.mask is not None:
                page = pages[level.width, level.height, True]
                assert level.mask.bits == (page.bitspersample == 1)
                check_tiles(level.mask, page, 1)


def check_tiles(level: Level, page: Any, planes: int) -> None:
    rows, columns = -(-level.height // level.tile_height), -(-level.width // level.tile_width)
    assert level.offsets.shape == level.lengths.shape == (planes, rows, columns)
    assert level.offsets.dtype == level.lengths.dtype == np.uint64
    assert level.strips == (not page.is_tiled)
    assert (level.tables or b"") == (page.jpegtables or b"")
    if level.compression != 1:  # libtiff ignores the predictor of the others
        assert level.predictor == (page.predictor if level.compression in (5, 8, 32946, 50000) else 1)
        assert level.lengths.ravel().tolist() == list(page.databytecounts)
        assert level.offsets.ravel().tolist() == list(page.dataoffsets)
    elif level.lengths.all():  # the same bytes, cut in another way
        assert (
            level.lengths.sum()
            == level.width * level.height * planes * page.bitspersample // 8 * (page.samplesperpixel // planes)
            or not level.strips
        )


@pytest.mark.parametrize("name", CORPUS)
def test_real_files_are_read_as_gdal_reads_them(test_data: Path, name: str) -> None:
    data = (test_data / name).read_bytes()
    if name in DAMAGED:
        with pytest.raises(HeaderError, match=DAMAGED[name]):
            parse(data)
        return
    header = parse(data)
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(test_data / name) as dataset:
        if header.needs_gdal is None:
            sizes = overview_sizes(lambda **how: rasterio.open(test_data / name, **how), len(dataset.overviews(1)))
            check_against_gdal(header, dataset, sizes)
            check_against_tifffile(header, test_data / name)
        else:
            assert all(REASON.fullmatch(reason) for reason in header.needs_gdal.split("; "))
            full = header.levels[0]
            assert (full.width, full.height, full.offsets.size) == (dataset.width, dataset.height, 0)
            check_place(header, dataset)
            assert len(header.levels) == len(dataset.overviews(1)) + 1
    assert facts(parse(data, piece=512, head=512)) == facts(header)


@pytest.mark.parametrize(
    ("codec", "predictor"), [("none", 1), *itertools.product(["lzw", "deflate", "zstd"], [1, 2, 3])]
)
def test_generated_files_are_read_as_gdal_reads_them(codec: str, predictor: int) -> None:
    dtypes = [dtype for dtype in DTYPES if predictor < 3 or dtype in ("float32", "float64")]
    options = {} if codec == "none" else {"compress": codec, "predictor": predictor}
    for dtype, (count, interleave), order in itertools.product(
        dtypes, [(1, "band"), (3, "pixel"), (3, "band")], ["LITTLE", "BIG"]
    ):
        data = write(count, dtype, interleave=interleave, ENDIANNESS=order, nodata=7, **options)
        header = parse(data)
        assert header.needs_gdal is None
        assert header.levels[0].predictor == predictor
        assert header.byteorder == ("<" if order == "LITTLE" else ">")
        assert type(header.nodata) is (float if dtype.startswith("float") else int)
        with MemoryFile(data) as file, file.open() as dataset:
            check_against_gdal(header, dataset, [])
        check_against_tifffile(header, data)


@pytest.mark.parametrize("bigtiff", ["NO", "YES"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("overviews", [(), (2, 4)])
def test_bigtiff_sparse_tiles_and_overviews(bigtiff: str, sparse: bool, overviews: tuple[int, ...]) -> None:
    with MemoryFile() as file:
        with file.open(
            driver="GTiff", count=2, dtype="int16", width=200, height=130, tiled=True, blockxsize=32, blockysize=16,
            transform=GRID, BIGTIFF=bigtiff, SPARSE_OK=sparse, interleave="band",
        ) as dataset:  # fmt: skip
            dataset.write(np.ones((16, 32), "int16"), 2, window=((16, 32), (64, 96)))
            if overviews:
                dataset.build_overviews(overviews)
        data = file.read()
        header = parse(data)
        assert header.needs_gdal is None
        with file.open() as dataset:
            check_against_gdal(header, dataset, overview_sizes(file.open, len(overviews)))
    check_against_tifffile(header, data)
    assert data[2:4] == (b"+\0" if bigtiff == "YES" else b"*\0")
    present = np.argwhere(header.levels[0].lengths).tolist()
    assert (present == [[1, 1, 2]]) == sparse
    assert (header.levels[0].offsets[header.levels[0].lengths == 0] == 0).all()


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_offsets_lie_by_plane_row_and_column(interleave: str) -> None:
    data = write(3, "uint8", interleave=interleave)
    level = parse(data).levels[0]
    pixels = (np.arange(3 * 48 * 80) % 120).reshape(3, 48, 80).astype("uint8")
    for plane, row, column in np.ndindex(level.offsets.shape):
        start = int(level.offsets[plane, row, column])
        stored = np.frombuffer(data[start : start + int(level.lengths[plane, row, column])], "uint8")
        window = np.s_[row * 16 : row * 16 + 16, column * 32 : column * 32 + 32]
        wanted = pixels[(plane, *window)] if interleave == "band" else pixels[(slice(None), *window)].transpose(1, 2, 0)
        stored = stored.reshape(16, 32, *([] if interleave == "band" else [3]))
        np.testing.assert_array_equal(stored[: wanted.shape[0], : wanted.shape[1]], wanted)


def test_a_cog_of_gdal_needs_one_round() -> None:
    values = np.random.default_rng(0).integers(0, 4000, (1, 1500, 1500), dtype="uint16")
    with MemoryFile() as file:
        with file.open(driver="COG", count=1, dtype="uint16", width=1500, height=1500, blocksize=128, transform=GRID,
                       crs="EPSG:32633", compress="deflate", predictor="yes") as dataset:  # fmt: skip
            dataset.write(values)
        data = file.read()
    parts = ByteParts(len(data))
    parts.add(0, data[:16384])
    header = parse_header("some.tif", parts)
    assert [level.width for level in header.levels] == [1500, 750, 375, 187, 93]
    assert header.needs_gdal is None
    assert {level.predictor for level in header.levels} == {2}


def test_all_missing_bytes_are_named_at_once() -> None:
    data = write(width=2000, height=1500, overviews=(2, 4))
    directories = [page.offset for page in tifffile.TiffFile(io.BytesIO(data)).pages]
    parts = ByteParts(len(data))
    parts.add(0, data[:8])
    for offset in directories:  # each table, and nothing that its values lie in
        parts.add(offset, data[offset : offset + 6 + 12 * struct.unpack("<H", data[offset : offset + 2])[0]])
    with pytest.raises(MissingBytesError) as caught:
        parse_header("some.tif", parts)
    for start, stop in caught.value.ranges:
        parts.add(start, data[start:stop])
    assert facts(parse_header("some.tif", parts)) == facts(parse(data))
    assert caught.value.ranges == tuple(sorted(caught.value.ranges))


def test_a_missing_directory_is_asked_for_generously() -> None:
    data = write(width=500, height=400)
    parts = ByteParts(len(data))
    with pytest.raises(MissingBytesError) as caught:
        parse_header("some.tif", parts)
    assert caught.value.ranges == ((0, 4096),)
    parts.add(0, struct.pack("<2sHI8x", b"II", 42, len(data) - 100))
    with pytest.raises(MissingBytesError) as caught:
        parse_header("some.tif", parts)
    assert caught.value.ranges == ((len(data) - 100, len(data)),)


@given(st.data())
def test_byte_parts_give_what_was_added(data: st.DataObject) -> None:
    whole = bytes(range(60))
    parts = ByteParts(60)
    known: set[int] = set()
    for start, length in data.draw(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 20)), max_size=8)):
        parts.add(start, whole[start : start + length])
        known |= set(range(start, min(60, start + length)))
    start = data.draw(st.integers(0, 59))
    length = data.draw(st.integers(0, 60 - start))
    missing = set(range(start, start + length)) - known
    if not missing:
        assert bytes(parts.get(start, length)) == whole[start : start + length]
        return
    with pytest.raises(MissingBytesError) as caught:
        parts.get(start, length)
    assert {i for a, b in caught.value.ranges for i in range(a, b)} == missing
    assert all(a < b for a, b in caught.value.ranges)


def test_byte_parts_keep_to_the_file() -> None:
    parts = ByteParts(10)
    with pytest.raises(ValueError, match="do not lie in a file of 10 bytes"):
        parts.add(5, b"123456")
    with pytest.raises(EOFError, match="do not lie in a file of 10 bytes"):
        parts.get(5, 6)


# What GDAL stores in tags: each is written by GDAL or into a file that GDAL then reads.


def check_tags(data: bytes) -> Header:
    header = parse(data)
    with MemoryFile(data) as file, file.open() as dataset:
        check_against_gdal(header, dataset, overview_sizes(file.open, len(dataset.overviews(1))))
    return header


def test_scale_description_unit_and_metadata() -> None:
    def edit(dataset: Any) -> None:
        dataset.scales, dataset.offsets = (0.1, 1.0, 1 / 3), (0.0, -7.5, 1e-9)
        dataset.set_band_description(2, 'near <infra> & "red" é')
        dataset.set_band_unit(1, "m²")
        dataset.update_tags(PLAIN="1", ODD="a &lt; b & c\n\td")
        dataset.update_tags(2, BAND="x")

    header = check_tags(write(3, edit=edit, interleave="pixel"))
    assert header.metadata["ODD"] == "a &lt; b & c\n\td"
    assert header.descriptions[1] == 'near <infra> & "red" é'


def test_scale_of_heights_lies_in_the_georeferencing() -> None:
    def edit(dataset: Any) -> None:
        dataset.scales, dataset.offsets = (0.1,), (7.0,)

    data = write(dtype="int16", edit=edit, crs="EPSG:4326+5773", transform=Affine(0.1, 0, 10, 0, -0.1, 50))
    header = parse(data)
    assert (header.scales, header.offsets) == ((0.1,), (7.0,))
    with MemoryFile(data) as file, file.open() as dataset:
        assert (dataset.scales, dataset.offsets) == ((0.1,), (7.0,))


@pytest.mark.parametrize(
    "items",
    [
        '<Item name="X" sample="0" role="SCALE">0,25</Item>',
        '<Item name="SCALE" sample="0">0.5</Item><Item name="SCALE" role="scale">3</Item>',
        '<Item name="SCALE" sample="7" role="scale">0.5</Item>',
        '<Item name="SCALE" sample="0" role="scale">none</Item><Item name="OFFSET" sample="0" role="offset"></Item>',
        '<Item name="A" domain="xyz">1</Item><Item name="B" domain="">2</Item><Item>3</Item>',
        '<Item name="A" sample="x">1</Item><Item name="B" sample="-1">2</Item><Item name="C" sample="-2">2</Item>',
        '<Item name="A"><![CDATA[1<2]]></Item><Item name="B">  b </Item><Group><Item name="C">1</Item></Group>',
        '<Item name="COLORINTERP" sample="1" role="colorinterp">Alpha</Item>',
    ],
)
def test_gdal_metadata_by_hand(items: str) -> None:
    tag = text_tag(42112, f"<GDALMetadata>\n{items}</GDALMetadata>\n")
    header = check_tags(tiff("uint16", (64, 64, 2), [tag], planarconfig="contig"))
    assert header.needs_gdal is None


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b "bomb"><!ENTITY c "&b;&b;">]><GDALMetadata><Item name="A">&c;</Item></GDALMetadata>',
        "<GDALMetadata><Item",
        '<GDALMetadata><Item name="A">1 & 2</Item></GDALMetadata>',
    ],
)
def test_gdal_metadata_that_is_not_plain_xml_is_not_covered(text: str) -> None:
    header = parse(tiff(tags=[text_tag(42112, text)]))
    assert header.needs_gdal == "GDAL_METADATA that is not plain XML"
    assert header.metadata == {}


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        ("uint8", "0", 0), ("uint8", "255.0", 255), ("uint8", "256", None), ("uint8", "-1", None), ("uint8", " 7 ", 7),
        ("uint8", "nan", None), ("uint8", "inf", None), ("uint8", "1.#QNAN", None), ("uint16", "1e3", 1000),
        ("int16", "-9999.0", -9999), ("int16", "-32769", None), ("int8", "-128", -128),
        ("uint32", "4294967295", 2**32 - 1),
        ("int32", "-2147483648", -(2**31)), ("int64", "-9999", -9999), ("int64", "1000000007", 1000000007),
        ("float32", "-3.4028234663852886e+38", -3.4028234663852886e38),
        ("float32", "-3.40282346638529e+38", -3.4028234663852886e38),
        ("float32", "3.4028235e+38", 3.4028234663852886e38),
        ("float32", "-3.4e38", -3.3999999521443642e38), ("float32", "0.1", 0.10000000149011612), ("float32", "", None),
        ("float32", "nan", math.nan), ("float32", "NaN", math.nan), ("float32", "-1.#IND", math.nan),
        ("float32", "inf", math.inf), ("float32", "-1.#INF", -math.inf), ("float64", "-inf", -math.inf),
        ("float64", "-1.7976931348623157e+308", -1.7976931348623157e308), ("float64", ".5", 0.5),
        ("float64", "1,5", 1.5), ("float16", "-100", -100.0), ("float16", "nan", math.nan),
        ("complex64", "7", 7.0), ("uint8", "n/a", 0), ("uint8", "7abc", 7), ("uint8", "1_0", 1),
        ("float32", "n/a", 0.0), ("int64", "n/a", 0), ("int64", "2e2", 2), ("int64", "9.9", 9),
        ("uint64", "nan", 0), ("int16", "2e2", 200),
    ],
)  # fmt: skip
def test_nodata_as_gdal(dtype: str, text: str, value: float | None) -> None:
    data = tiff(dtype, tags=[text_tag(42113, text)])
    assert same(parse(data).nodata, value)
    with MemoryFile(data) as file, file.open() as dataset:
        assert same(dataset.nodata, value)


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        ("uint8", "1.5", 1), ("uint8", "255.5", None),
        ("int64", "9223372036854775807", 2**63 - 1), ("uint64", "18446744073709551615", 2**64 - 1),
        ("uint64", "-9999", None), ("uint64", "18446744073709551616", None), ("float32", "1e39", None),
        ("float32", "-1.7976931348623157e+308", None), ("float64", "1e999", math.inf), ("uint8", "9" * 400, None),
        ("float16", "-9999", None), ("float16", "0.1", None), ("float16", "1e10", None),
    ],
)  # fmt: skip
def test_nodata_where_rasterio_is_of_another_mind(dtype: str, text: str, value: float | None) -> None:
    # It gives a fraction, of which GDAL finds the whole part in pixels, cuts wide integers to a double's, makes
    # infinity of what float32 cannot hold, and gives what float16 cannot hold, which GDAL then finds in no pixel.
    assert same(parse(tiff(dtype, tags=[text_tag(42113, text)])).nodata, value)


def geo(scale: Any = (), tie: Any = (), matrix: Any = (), keys: Any = ()) -> list[Any]:
    tags = [(33550, 12, scale), (33922, 12, tie), (34264, 12, matrix), (34735, 3, keys)]
    return [(tag, kind, len(values), tuple(values)) for tag, kind, values in tags if values]


TIE = (0.0, 0.0, 0.0, 5e5, 4e6, 0.0)
REST = (0.0,) * 7 + (1.0,)
POINT = (1, 1, 0, 1, 1025, 0, 1, 2)


@pytest.mark.parametrize(
    ("tags", "refusal"),
    [
        (geo((10.0, 20.0, 0.0), (3.0, 7.5, 0.0, 5e5, 4e6, 0.0)), None),
        (geo((10.0, 20.0), TIE), None),
        (geo((10.0, 20.0, 0.0), (1.0, 2.0, 0.0, 5e5, 4e6, 0.0), keys=POINT), None),
        (geo((10.0, 20.0, 0.0), TIE, keys=(2, *POINT[1:])), None),
        (geo((10.0, -20.0, 0.0), TIE), None),
        (geo((10.0, 20.0, 0.0), TIE * 2), None),
        (geo((10.0, 20.0, 0.0), TIE, (7.0, 0, 0, 6e5, 0, -7.0, 0, 5e6, *REST)), None),
        (geo((0.0, 0.0, 0.0), TIE, (7.0, 0, 0, 6e5, 0, -7.0, 0, 5e6, *REST)), None),
        (geo((), (), (7.0, 0, 0, 6e5, 0, -7.0, 0, 5e6, *REST)), None),
        (geo((), (), (7.0, 0, 0, 6e5, 0, 7.0, 0, 5e6, *REST), POINT), None),
        (geo((), TIE, (7.0, 0, 0, 6e5, 0, 7.0, 0, 5e6, *REST)), None),
        (geo((), (), (7.0, 1, 0, 6e5, 2.0, -7.0, 0, 5e6, *REST), POINT), None),
        (geo((-10.0, 20.0, 0.0), TIE), None),
        (geo((), (), (0.0,) * 16), "a degenerate grid"),
        (geo((), (), (7.0, 7.0, 0, 6e5, 7.0, 7.0, 0, 5e6, *REST)), "a degenerate grid"),
        (geo((), (), (math.nan, 0, 0, 6e5, 0, -7.0, 0, 5e6, *REST)), "a degenerate grid"),
        (geo((), TIE * 4), "ground control points instead of a transform"),
        (geo((), (), (7.0, 0, 0, 6e5)), "no georeferencing"),
        ([], "no georeferencing"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*GeoPixelScale")
def test_transform_as_gdal(tags: list[Any], refusal: str | None) -> None:
    data = tiff(geo=tags)
    header = parse(data)
    assert header.refusal == refusal
    with MemoryFile(data) as file, file.open() as dataset:
        assert repr(header.transform or Affine.identity()) == repr(dataset.transform)  # NaN is not equal to itself
        assert bool(dataset.gcps[0]) == (refusal == "ground control points instead of a transform")


def test_a_scale_without_tiepoint_is_no_transform() -> None:
    assert parse(tiff(geo=geo((10.0, 10.0, 0.0)))).transform is None


@pytest.mark.parametrize(
    ("photometric", "extra", "planar"),
    [
        *itertools.product(
            ["minisblack", "rgb"], [(), (0,), (1,), (2,), (0, 2), (2, 0), (1, 2), (0, 0, 2)], ["contig", "separate"]
        )
    ],
)
def test_alpha_as_gdal(photometric: str, extra: tuple[int, ...], planar: str) -> None:
    samples = len(extra) + (3 if photometric == "rgb" else 2 if not extra else 1)
    shape = (64, 64, samples) if planar == "contig" else (samples, 64, 64)
    extra = extra or ((0,) if photometric == "minisblack" else ())
    check_tags(tiff("uint8", shape, photometric=photometric, extrasamples=extra, planarconfig=planar))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_palette(dtype: str) -> None:
    palette = {i: (i % 251, 255 - i % 256, 3, 255) for i in range(2 ** (8 * np.dtype(dtype).itemsize))}

    def edit(dataset: Any) -> None:
        dataset.write_colormap(1, palette)

    header = check_tags(write(dtype=dtype, edit=edit, photometric="palette", nodata=9))
    assert header.colormap is not None
    assert header.colormap[9] == (9, 246, 3, 0)


def pages(*images: dict[str, Any]) -> bytes:
    """Write images of `size` squared pixels, one directory each, the first one georeferenced."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for number, image in enumerate(images):
            options = {"tile": (32, 32), "photometric": "minisblack", "metadata": None, "dtype": "uint8"} | image
            shape = (options.pop("size"),) * 2 + options.pop("bands", ())
            writer.write(np.zeros(shape, options.pop("dtype")), extratags=[] if number else GEO_TAGS, **options)
    return file.getvalue()


def reduced(size: int, **options: Any) -> dict[str, Any]:
    return {"size": size, "subfiletype": 1} | options


@pytest.mark.parametrize(
    "images",
    [
        [{"size": 256}, reduced(128), reduced(64)],
        [{"size": 256, "subifds": 2}, reduced(128), reduced(64)],
        [{"size": 256, "subifds": 1}, reduced(128), reduced(64), reduced(32)],
        [{"size": 256}, reduced(32), reduced(128), reduced(64)],
        [{"size": 256}, reduced(128, bands=(3,), planarconfig="contig"), reduced(64)],
        [{"size": 256, "subfiletype": 1}, reduced(64)],
    ],
)
def test_overviews_as_gdal(images: list[dict[str, Any]]) -> None:
    header = check_tags(pages(*images))
    widths = [level.width for level in header.levels]
    assert widths == sorted(widths, reverse=True)
    assert header.needs_gdal is None


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([{"size": 256}, {"size": 256}], None),
        ([{"size": 256}, {"size": 64, "subfiletype": 2}, reduced(128)], None),
        ([{"size": 256}, reduced(128), reduced(64, tile=None)], None),
        ([{"size": 256}, reduced(128, dtype="uint16")], "samples of another type (u16, band-interleaved) at level 1"),
        ([{"size": 256, "compression": "lzma"}, reduced(128)], "LZMA compression"),
        ([{"size": 256, "compression": "lzma", "tile": None}], "LZMA compression"),
        ([{"size": 256, "dtype": "float16"}], None),
        ([{"size": 256, "dtype": "complex64"}], None),
        ([{"size": 256, "dtype": "complex128"}], None),
        ([{"size": 256, "bands": (3,), "photometric": "ycbcr", "compression": "deflate"}], "YCbCr colours"),
        (
            [
                {"size": 256, "bands": (3,), "photometric": "ycbcr", "compression": "jpeg"},
                reduced(128, bands=(3,), photometric="rgb", compression="deflate"),
            ],
            "colours of another kind at level 1",
        ),
        ([{"size": 256, "bands": (4,), "photometric": "separated"}], "CMYK colours"),
        ([{"size": 256, "photometric": "miniswhite"}], None),
        ([{"size": 256}, reduced(256), reduced(300)], None),
        ([{"size": 32}] * 65, "more than 64 images"),
    ],
)
def test_what_gdal_has_to_read_has_a_reason(images: list[dict[str, Any]], reason: str | None) -> None:
    header = parse(pages(*images))
    assert header.needs_gdal == reason
    assert header.levels[0].width == images[0]["size"]
    for level in header.levels:
        assert (level.offsets.size == 0) == (reason is not None)


@pytest.mark.parametrize(
    ("codec", "options", "reason"),
    [
        ("jpeg", {"count": 3, "photometric": "ycbcr", "interleave": "pixel"}, None),
        ("jpeg", {"count": 3, "photometric": "rgb", "interleave": "pixel"}, None),
        ("jpeg", {"count": 3, "interleave": "band"}, None),
        ("jpeg", {}, None),
        ("jpeg", {"count": 4, "photometric": "rgb", "interleave": "pixel"}, None),
        (
            "jpeg",
            {"count": 4, "photometric": "cmyk", "interleave": "pixel"},
            "JPEG compression of 4 samples of CMYK colours; CMYK colours",
        ),
        ("webp", {"count": 3, "photometric": "rgb", "interleave": "pixel"}, None),
        ("webp", {"count": 4, "photometric": "rgb", "interleave": "pixel", "WEBP_LOSSLESS": True}, None),
        ("lerc", {"dtype": "float32"}, None),
        ("lerc_deflate", {"dtype": "uint16"}, None),
        ("lerc_zstd", {"dtype": "int8"}, None),
        ("lzma", {}, "LZMA compression"),
    ],
)
def test_codecs_and_their_colours(codec: str, options: dict[str, Any], reason: str | None) -> None:
    data = write(**{"dtype": "uint8", "compress": codec} | options)
    header = parse(data)
    assert header.needs_gdal == reason
    if reason is None:
        check_tags(data)
        check_against_tifffile(header, data)
    assert bool(header.levels[0].tables) == (codec == "jpeg" and reason is None)


def test_lerc_of_long_integers_is_for_gdal() -> None:
    data = patched(patched(write(dtype="int32", compress="lerc"), 258, value=64), 339, value=2)
    assert parse(data).needs_gdal == "LERC compression of samples of type i64"


@pytest.mark.parametrize(("bits", "dtype"), [(32, "complex64"), (64, "complex128")])
def test_complex_integers_are_for_gdal(bits: int, dtype: str) -> None:
    data = patched(patched(tiff("int32" if bits == 32 else "int64"), 339, value=5), 258, value=bits)
    header = parse(data)
    assert header.needs_gdal == f"samples of type ci{bits}"
    assert header.dtype == dtype


def test_bits_that_are_no_bytes_have_a_reason() -> None:
    header = parse(write(dtype="uint16", NBITS=12))
    assert (header.needs_gdal, header.dtype) == ("samples of type u12", np.dtype("uint16"))
    header = parse(write(dtype="uint8", NBITS=1))
    assert (header.needs_gdal, header.dtype) == ("samples of type u1", np.dtype("uint8"))


def test_gdal_and_libtiff_ignore_the_predictor_where_the_codec_has_none() -> None:
    assert parse(tiff(tags=[(317, 3, 1, 2)])).levels[0].predictor == 1
    assert parse(tiff(tags=[(317, 3, 1, 2)], compression="jpeg")).levels[0].predictor == 1


def masked(overviews: tuple[int, ...] = (), **options: Any) -> bytes:
    """Write a file with a mask image, which is deflated and has 1 bit a pixel."""

    def edit(dataset: Any) -> None:
        dataset.write_mask(np.eye(48, 80, dtype="uint8") * 255)

    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        return write(edit=edit, overviews=overviews, **options)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("overviews", [(), (2,), (2, 4)])
def test_internal_masks_belong_to_their_levels(tiled: bool, overviews: tuple[int, ...]) -> None:
    options = {} if tiled else {"tiled": False, "blockxsize": None, "compress": "lzw"}
    data = masked(overviews, nodata=7, **options)
    header = check_tags(data)
    check_against_tifffile(header, data)
    assert (header.needs_gdal, header.validity, header.nodata) == (None, "mask", 7)
    masks = [level.mask for level in header.levels]
    assert [(mask.width, mask.bits, mask.compression) for mask in masks if mask] == [
        (80 // factor, 1, 8) for factor in (1, *overviews)
    ]


MASK, SMALL_MASK = {"size": 256, "subfiletype": 4}, {"size": 128, "subfiletype": 5}


@pytest.mark.parametrize(
    ("images", "validity", "reason"),
    [
        ([{"size": 256}, MASK], "mask", None),
        ([{"size": 256, "bands": (2,), "extrasamples": (2,)}, MASK], "mask", None),
        ([{"size": 256}, MASK, reduced(128), SMALL_MASK], "mask", None),
        ([{"size": 256}, MASK, reduced(128)], "mask", "masks of 1 of 2 levels"),
        ([{"size": 256}, reduced(128), SMALL_MASK], None, "masks of 1 of 2 levels"),
        ([{"size": 256}, SMALL_MASK | {"subfiletype": 4}], None, None),
        ([{"size": 256}, MASK | {"dtype": "uint16"}], None, None),
        ([{"size": 256}, MASK | {"dtype": "uint16"}, MASK], "mask", None),
        ([{"size": 256}, MASK | {"compression": "lzma"}], "mask", "LZMA compression in a mask"),
        ([{"size": 256}, MASK | {"compression": "jpeg"}], "mask", "JPEG compression in a mask"),
        ([{"size": 256, "bands": (3,)}, MASK | {"bands": (2,)}], None, None),
        ([{"size": 256, "bands": (3,)}, MASK | {"bands": (3,)}], "mask", "3 samples in a mask"),
    ],
)
def test_masks_by_gdals_rules(images: list[dict[str, Any]], validity: str | None, reason: str | None) -> None:
    data = bytearray(
        pages(*[{"compression": "deflate", "planarconfig": "contig"} | image | {"subfiletype": 2} for image in images])
    )
    for page, image in zip(tifffile.TiffFile(io.BytesIO(data)).pages, images, strict=True):
        struct.pack_into("<I", data, page.tags[254].valueoffset, image.get("subfiletype", 0))
    data = bytes(data)
    header = parse(data)
    assert (header.validity, header.needs_gdal) == (validity, reason)
    assert all(level.mask is None or level.mask.bits == 0 for level in header.levels)
    with MemoryFile(data) as file, file.open() as dataset:
        flags = set(dataset.mask_flag_enums[0])
        if reason is None:
            check_validity(header, dataset)
        elif "samples" in reason:
            assert flags == set()  # a mask a sample
        else:
            assert (MaskFlags.per_dataset in flags) == (validity == "mask")


def test_an_alpha_with_nodata_is_none() -> None:
    header = check_tags(tiff("uint8", (64, 64, 2), [text_tag(42113, "0")], planarconfig="contig", extrasamples=(2,)))
    assert (header.alpha, header.validity) == (1, None)
    header = check_tags(tiff("uint8", (64, 64, 2), [text_tag(42113, "-1")], planarconfig="contig", extrasamples=(2,)))
    assert header.validity == "alpha"


@pytest.mark.parametrize(
    ("dtype", "samples", "validity"),
    [
        ("uint8", 4, "alpha"), ("uint16", 2, "alpha"), ("uint8", 3, None), ("uint8", 5, None), ("int16", 2, None),
        ("float32", 4, None),
    ],
)  # fmt: skip
def test_alpha_is_validity_by_gdals_rules(dtype: str, samples: int, validity: str | None) -> None:
    extra = (0,) * (samples - 2) + (2,)
    header = check_tags(tiff(dtype, (64, 64, samples), planarconfig="contig", extrasamples=extra))
    assert (header.alpha, header.validity) == (samples - 1, validity)


def test_nodata_of_all_bands_together_is_for_gdal() -> None:
    tag = text_tag(42112, '<GDALMetadata><Item name="NODATA_VALUES">0 0</Item></GDALMetadata>')
    header = parse(tiff("uint8", (64, 64, 2), [tag], planarconfig="contig"))
    assert header.needs_gdal == "NODATA_VALUES, of which all bands together make the mask"


def patched(
    data: bytes, tag: int, kind: int | None = None, count: int | None = None, value: int | None = None
) -> bytes:
    """Change one entry of the first directory of a little-endian classic TIFF; new kinds give values in 4 bytes."""
    out = bytearray(data)
    start = struct.unpack_from("<I", out, 4)[0]
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", out, start)[0], 12):
        name, old_kind, old_count, old_value = struct.unpack_from("<HHII", out, place)
        if name == tag:
            values = kind or old_kind, old_count if count is None else count, old_value if value is None else value
            struct.pack_into("<HII", out, place + 2, *values)
    return bytes(out)


def test_codes_without_a_name_have_a_reason() -> None:
    data = write(compress="deflate", predictor=2)
    assert parse(patched(data, 259, value=60000)).needs_gdal == "unknown (60000) compression"
    assert parse(patched(data, 317, value=4)).needs_gdal == "predictor 4 on samples of type u16"
    assert parse(patched(data, 317, value=3)).needs_gdal == "floating-point predictor on samples of type u16"
    assert parse(patched(data, 262, value=32844)).needs_gdal == "LogL colours"
    assert parse(patched(data, 262, value=99)).needs_gdal == "unknown (99) colours"


def test_absurd_tiles_are_refused() -> None:
    big = patched(patched(tiff(compression="deflate", tile=(64, 64)), 322, 4, value=65536), 323, 4, value=65536)
    header = parse(big)
    assert header.refusal == "tiles of 4294967296 bytes, which is absurd (at most 1073741824)"
    assert header.levels[0].offsets.size == 0
    data = bytearray(pages({"size": 256, "compression": "deflate"}, reduced(128, compression="deflate")))
    tags = tifffile.TiffFile(io.BytesIO(data)).pages[1].tags
    for tag in 322, 323:
        struct.pack_into("<H", data, tags[tag].valueoffset, 65535)
    header = parse(bytes(data))
    assert header.refusal == "tiles of 4294836225 bytes, which is absurd (at most 1073741824)"
    assert [level.offsets.size for level in header.levels] == [0, 0]


def test_bytes_that_are_no_tiff() -> None:
    with pytest.raises(HeaderError, match=r"some\.tif: is not a TIFF, it begins with b'\\x89PNG"):
        parse(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(HeaderError, match=r"some\.tif: the file header ends at byte 8, but the file has 0 bytes"):
        parse(b"")
    with pytest.raises(HeaderError, match="the file header ends at byte 8, but the file has 4 bytes"):
        parse(b"II*\0")
    with pytest.raises(HeaderError, match="is not a TIFF"):
        parse(b"II+\0\x08\0\0\0" + bytes(7))
    with pytest.raises(HeaderError, match="is not a TIFF"):
        parse(b"II+\0\x04\0\0\0" + bytes(100))  # BigTIFF of 4-byte offsets
    with pytest.raises(HeaderError, match="has no image"):
        parse(b"II*\0" + bytes(100))


def test_truncated_files() -> None:
    data = write()
    with pytest.raises(
        HeaderError, match=r"the table of image 1 ends at byte \d+, but the file has 12 bytes \(truncated"
    ):
        parse(data[:12])
    with pytest.raises(HeaderError, match=r"tag \d+ of image 1 ends at byte \d+, but the file has 300 bytes"):
        parse(data[:300])
    with pytest.raises(HeaderError, match=r"image 1 has 1 tiles past the end of the file \(\d+ bytes; truncated"):
        parse(data[:-1])


def test_loops_end() -> None:
    data = bytearray(write())
    start = struct.unpack_from("<I", data, 4)[0]
    next_directory = start + 2 + 12 * struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, next_directory, start)
    with pytest.raises(HeaderError, match=rf"has image directories in a loop \(byte {start} is named twice\)"):
        parse(bytes(data))


@pytest.mark.parametrize(
    ("tag", "change", "message"),
    [
        (256, {"value": 0}, "image 1 has 0 x 48 pixels of 1 samples"),
        (256, {"kind": 4, "value": 2**32 - 1}, "image 1 has 4294967295 x 48 pixels"),
        (
            256,
            {"kind": 4, "value": 2**31 - 1},
            rf"has \d+ tiles or strips up to image 1, which is absurd \(at most {MAX_TILES}\)",
        ),
        (256, {"value": 4000}, "image 1 has 375 tiles, but 9 tile offsets of type 4"),
        (256, {"kind": 11}, "tag 256 of image 1 is not one whole number"),
        (256, {"count": 2**31}, "tag 256 of image 1 is not one whole number"),
        (258, {"count": 2**31}, "tag 258 of image 1 has 2147483648 values of type 3, which is absurd"),
        (277, {"value": 0}, "of 0 samples"),
        (277, {"kind": 4, "value": 65536}, "of 65536 samples"),
        (322, {"value": 0}, "image 1 has tiles of 0 x 16 pixels"),
        (323, {"value": 1}, "image 1 has 144 tiles, but 9 tile offsets"),
        (324, {"count": 8}, "image 1 has 9 tiles, but 8 tile offsets"),
        (324, {"value": 2**32 - 1}, "tag 324 of image 1 ends at byte 4294967331"),
        (324, {"kind": 99}, "9 tile offsets of type 99"),
        (324, {"kind": 12}, "image 1 has 9 tiles, but 9 tile offsets of type 12"),
        (325, {"count": 8}, "image 1 has 9 tiles, but 8 tile lengths"),
        (34735, {"count": 2**31}, "tag 34735 of image 1 has 2147483648 values of type 3, which is absurd"),
        (33550, {"value": 2**31}, "tag 33550 of image 1 ends at byte 2147483672"),
    ],
)
def test_absurd_values_are_errors_that_name_them(tag: int, change: dict[str, int], message: str) -> None:
    with pytest.raises(HeaderError, match=message) as caught:
        parse(patched(write(), tag, **change))
    assert caught.value.href == "some.tif"


def test_absurd_tables_are_errors() -> None:
    data = bytearray(write())
    start = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<H", data, start, 65535)
    with pytest.raises(HeaderError, match=r"image 1 has 65535 tags, which is absurd \(at most 4096\)"):
        parse(bytes(data))
    with pytest.raises(HeaderError, match="the table of image 1 ends at byte"):
        parse(b"II*\0" + struct.pack("<I", 2**32 - 1) + bytes(100))
    with pytest.raises(HeaderError, match="the table of image 1 ends at byte"):
        parse(b"MM\0+" + struct.pack(">HHQ", 8, 0, 2**64 - 1) + bytes(100))


def test_tiles_past_the_end_or_of_absurd_length_are_errors() -> None:
    data = write(width=32, height=16, compress="deflate") + bytes(
        2**21
    )  # one tile, so that its offset and length stand in the entries
    with pytest.raises(HeaderError, match="image 1 has 1 tiles past the end of the file"):
        parse(patched(data, 324, value=2**32 - 16))
    with pytest.raises(HeaderError, match="image 1 has a tile of 2000000 bytes, which is absurd for 1024 decoded"):
        parse(patched(data, 325, kind=4, value=2000000))
