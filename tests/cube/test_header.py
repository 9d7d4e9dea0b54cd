"""`cube.header` against GDAL (rasterio) and tifffile, over real files, generated ones and hostile bytes."""

from __future__ import annotations

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
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import MemoryFile

from cube.errors import HeaderError, UnsupportedSourceError
from cube.header import Header, parse_header
from cube.ifd import MAX_TILES, ByteParts, MissingBytesError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

FOLDER = Path(os.environ.get("CUBE_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
CORPUS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.tif*")) or ["absent"]
DAMAGED = {"rasterio__rasterio/tests__data__corrupt.tif": "image 1 has 1 tiles past the end of the file"}
REASON = re.compile(
    r"(strips instead of tiles|tiles of \d+ bytes|[\w ]+ compression|predictor \d+|[\w ]+ colours|reversed bit order|"
    r"floating-point predictor on integers|samples of type (mixed|[uifc]\d+)|samples of another type \(.*\)|"
    r"ground control points instead of a transform|no georeferencing|a rotated or sheared grid|"
    r"a degenerate or mirrored grid|\d+ images of full resolution|an internal mask|GDAL_METADATA that is not plain XML)"
    r"( at level \d+)?"
)
DTYPES = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64"]
CODECS = {"none": (1,), "lzw": (5,), "deflate": (8, 32946), "zstd": (50000,)}
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
    assert (full.tile_height, full.tile_width) == dataset.block_shapes[0]
    assert header.interleave == dataset.tags(ns="IMAGE_STRUCTURE")["INTERLEAVE"].lower()
    assert sorted((level.width, level.height) for level in header.levels[1:]) == sorted(sizes)
    assert same(header.nodata, dataset.nodata)
    assert header.transform == dataset.transform
    assert (header.scales, header.offsets) == (dataset.scales, dataset.offsets)
    assert (header.descriptions, header.units) == (dataset.descriptions, dataset.units)
    assert header.has_mask == (MaskFlags.per_dataset in dataset.mask_flag_enums[0] and header.alpha is None)
    alphas = [i for i, role in enumerate(dataset.colorinterp) if role == ColorInterp.alpha]
    assert header.alpha == (alphas[0] if alphas else None)
    standard = ("TIFFTAG_", "AREA_OR_POINT")
    assert header.metadata == {k: v for k, v in dataset.tags().items() if not k.startswith(standard)}
    if header.colormap is not None or header.photometric == 3:
        assert header.colormap == tuple(dataset.colormap(1).values())
    name = dataset.tags(ns="IMAGE_STRUCTURE").get("COMPRESSION", "none").lower()
    assert full.compression in CODECS[name]


def check_against_tifffile(header: Header, data: bytes | Path) -> None:
    with tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
        pages = {(page.imagewidth, page.imagelength): page for page in file.pages if not page.subfiletype & 4}
        assert header.byteorder == file.byteorder
        for level in header.levels:
            page = pages[level.width, level.height]
            assert level.predictor == page.predictor
            assert level.lengths.ravel().tolist() == list(page.databytecounts)
            assert level.offsets.ravel().tolist() == list(page.dataoffsets)
            planes = header.samples if header.interleave == "band" else 1
            rows, columns = -(-level.height // level.tile_height), -(-level.width // level.tile_width)
            assert level.offsets.shape == level.lengths.shape == (planes, rows, columns)
            assert level.offsets.dtype == level.lengths.dtype == np.uint64


@pytest.mark.parametrize("name", CORPUS)
def test_real_files_are_read_as_gdal_reads_them(test_data: Path, name: str) -> None:
    data = (test_data / name).read_bytes()
    if name in DAMAGED:
        with pytest.raises(HeaderError, match=DAMAGED[name]):
            parse(data)
        return
    header = parse(data)
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(test_data / name) as dataset:
        if header.unsupported is None:
            sizes = overview_sizes(lambda **how: rasterio.open(test_data / name, **how), len(dataset.overviews(1)))
            check_against_gdal(header, dataset, sizes)
            check_against_tifffile(header, test_data / name)
        else:
            assert all(REASON.fullmatch(reason) for reason in header.unsupported.split("; "))
            full = header.levels[0]
            assert (full.width, full.height, header.samples) == (dataset.width, dataset.height, dataset.count)
            assert (header.transform or Affine.identity()) == dataset.transform
            assert len(header.levels) == len(dataset.overviews(1)) + 1
    assert facts(parse(data, piece=512, head=512)) == facts(header)


@pytest.mark.parametrize(
    ("codec", "predictor"), [("none", 1), *itertools.product(["lzw", "deflate", "zstd"], [1, 2, 3])]
)
def test_generated_files_are_read_as_gdal_reads_them(codec: str, predictor: int) -> None:
    dtypes = [dtype for dtype in DTYPES if predictor < 3 or dtype.startswith("float")]
    options = {} if codec == "none" else {"compress": codec, "predictor": predictor}
    for dtype, (count, interleave), order in itertools.product(
        dtypes, [(1, "band"), (3, "pixel"), (3, "band")], ["LITTLE", "BIG"]
    ):
        data = write(count, dtype, interleave=interleave, ENDIANNESS=order, nodata=7, **options)
        header = parse(data)
        assert header.unsupported is None
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
        assert header.unsupported is None
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
    assert header.unsupported is None
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
    assert header.unsupported is None


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
    assert header.unsupported == "GDAL_METADATA that is not plain XML"
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
        ("float64", "1,5", 1.5),
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
        ("uint8", "n/a", None), ("uint8", "1.5", None), ("uint8", "7abc", None), ("uint8", "1_0", None),
        ("int64", "9223372036854775807", 2**63 - 1), ("uint64", "18446744073709551615", 2**64 - 1),
        ("uint64", "-9999", None), ("uint64", "18446744073709551616", None), ("float32", "1e39", None),
        ("float32", "-1.7976931348623157e+308", None), ("float64", "1e999", math.inf), ("uint8", "9" * 400, None),
    ],
)  # fmt: skip
def test_nodata_where_rasterio_is_of_another_mind(dtype: str, text: str, value: float | None) -> None:
    # It takes what is no number as 0, cuts wide integers to a double's, and makes infinity of what float32 cannot hold.
    assert same(parse(tiff(dtype, tags=[text_tag(42113, text)])).nodata, value)


def geo(scale: Any = (), tie: Any = (), matrix: Any = (), keys: Any = ()) -> list[Any]:
    tags = [(33550, 12, scale), (33922, 12, tie), (34264, 12, matrix), (34735, 3, keys)]
    return [(tag, kind, len(values), tuple(values)) for tag, kind, values in tags if values]


TIE = (0.0, 0.0, 0.0, 5e5, 4e6, 0.0)
REST = (0.0,) * 7 + (1.0,)
POINT = (1, 1, 0, 1, 1025, 0, 1, 2)


@pytest.mark.parametrize(
    ("tags", "unsupported"),
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
        (geo((), (), (7.0, 1, 0, 6e5, 2.0, -7.0, 0, 5e6, *REST), POINT), "a rotated or sheared grid"),
        (geo((-10.0, 20.0, 0.0), TIE), "a degenerate or mirrored grid"),
        (geo((), (), (0.0,) * 16), "a degenerate or mirrored grid"),
        (geo((), TIE * 4), "ground control points instead of a transform"),
        (geo((), (), (7.0, 0, 0, 6e5)), "no georeferencing"),
        ([], "no georeferencing"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*GeoPixelScale")
def test_transform_as_gdal(tags: list[Any], unsupported: str | None) -> None:
    data = tiff(geo=tags)
    header = parse(data)
    assert header.unsupported == unsupported
    with MemoryFile(data) as file, file.open() as dataset:
        assert (header.transform or Affine.identity()) == dataset.transform
        assert bool(dataset.gcps[0]) == (unsupported == "ground control points instead of a transform")


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
    assert header.unsupported is None


@pytest.mark.parametrize(
    ("images", "unsupported"),
    [
        ([{"size": 256}, {"size": 256}], "2 images of full resolution"),
        ([{"size": 256}, {"size": 64, "subfiletype": 2}, reduced(128)], "2 images of full resolution"),
        ([{"size": 256}, reduced(128), reduced(64, tile=None)], "strips instead of tiles at level 2"),
        ([{"size": 256}, reduced(128, dtype="uint16")], "samples of another type (u16, band-interleaved) at level 1"),
        ([{"size": 256}, reduced(128, compression="jpeg")], "JPEG compression at level 1"),
        ([{"size": 256, "compression": "packbits"}, reduced(128)], "PackBits compression"),
        ([{"size": 256, "compression": "lzma", "tile": None}], "strips instead of tiles; LZMA compression"),
        ([{"size": 256, "dtype": "float16"}], "samples of type f16"),
        ([{"size": 256, "dtype": "complex64"}], "samples of type c64"),
        ([{"size": 256, "bands": (3,), "photometric": "ycbcr", "compression": "deflate"}], "YCbCr colours"),
        ([{"size": 256, "bands": (4,), "photometric": "separated"}], "CMYK colours"),
        ([{"size": 256, "photometric": "miniswhite"}], None),
        ([{"size": 256}, reduced(256), reduced(300)], None),
    ],
)
def test_what_is_not_covered_has_a_reason(images: list[dict[str, Any]], unsupported: str | None) -> None:
    header = parse(pages(*images))
    assert header.unsupported == unsupported
    assert header.levels[0].width == 256


def test_an_internal_mask_is_seen_and_is_no_level() -> None:
    def edit(dataset: Any) -> None:
        dataset.write_mask(np.eye(48, 80, dtype="uint8") * 255)

    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        data = write(edit=edit, overviews=(2,))
    header = parse(data)
    assert header.has_mask
    assert header.unsupported == "an internal mask"
    assert [level.width for level in header.levels] == [80, 40]


def test_bits_that_are_no_bytes_have_a_reason() -> None:
    assert parse(write(dtype="uint16", NBITS=12)).unsupported == "samples of type u12"
    assert parse(write(dtype="uint8", NBITS=1)).unsupported == "samples of type u1"


def test_gdal_and_libtiff_ignore_the_predictor_of_plain_bytes() -> None:
    assert parse(tiff(tags=[(317, 3, 1, 2)])).levels[0].predictor == 1


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
    assert parse(patched(data, 259, value=60000)).unsupported == "unknown (60000) compression"
    assert parse(patched(data, 317, value=4)).unsupported == "predictor 4"
    assert parse(patched(data, 317, value=3)).unsupported == "floating-point predictor on integers"
    assert parse(patched(data, 262, value=32844)).unsupported == "LogL colours"
    big = parse(patched(patched(tiff(compression="deflate", tile=(64, 64)), 322, 4, value=65536), 323, 4, value=65536))
    assert big.unsupported == "tiles of 4294967296 bytes"


def test_bytes_that_are_no_tiff() -> None:
    with pytest.raises(HeaderError, match=r"some\.tif: is not a TIFF, it begins with b'\\x89PNG"):
        parse(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(HeaderError, match=r"some\.tif: the file header ends at byte 8, but the file has 0 bytes"):
        parse(b"")
    with pytest.raises(HeaderError, match="the file header ends at byte 8, but the file has 4 bytes"):
        parse(b"II*\0")
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


def test_too_many_images() -> None:
    with pytest.raises(UnsupportedSourceError, match="has more than 64 images"):
        parse(pages(*[{"size": 32}] * 65))


@pytest.mark.parametrize(
    ("tag", "change", "message"),
    [
        (256, {"value": 0}, "image 1 has 0 x 48 pixels of 1 samples"),
        (256, {"kind": 4, "value": 2**32 - 1}, "image 1 has 4294967295 x 48 pixels"),
        (
            256,
            {"kind": 4, "value": 2**31 - 1},
            rf"has \d+ tiles up to image 1, which is absurd \(at most {MAX_TILES}\)",
        ),
        (256, {"value": 4000}, "image 1 has 375 tiles, but 9 tile offsets of type 4"),
        (256, {"kind": 11}, "tag 256 of image 1 is not one whole number"),
        (256, {"count": 2**31}, "tag 256 of image 1 is not one whole number"),
        (258, {"count": 2**31}, "tag 258 of image 1 has 2147483648 values of type 3, which is absurd"),
        (277, {"value": 0}, "of 0 samples"),
        (322, {"value": 0}, "image 1 has tiles of 0 x 16 pixels"),
        (323, {"value": 1}, "image 1 has 144 tiles, but 9 tile offsets"),
        (324, {"count": 2**32 - 1}, "image 1 has 9 tiles, but 4294967295 tile offsets"),
        (324, {"value": 2**32 - 1}, "tag 324 of image 1 ends at byte 4294967331"),
        (324, {"kind": 99}, "9 tile offsets of type 99"),
        (324, {"kind": 12}, "ends at byte|of type 12, which is absurd"),
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
    data = write(width=32, height=16) + bytes(2**21)  # one tile, so that its offset and length stand in the entries
    with pytest.raises(HeaderError, match="image 1 has 1 tiles past the end of the file"):
        parse(patched(data, 324, value=2**32 - 16))
    with pytest.raises(HeaderError, match="image 1 has a tile of 2000000 bytes, which is absurd for 1024 decoded"):
        parse(patched(data, 325, kind=4, value=2000000))


SEEDS = [
    write(3, "float32", interleave="band", compress="deflate", predictor=3, overviews=(2,), nodata=-1),
    write(2, "int16", interleave="pixel", ENDIANNESS="BIG", compress="lzw", scale=2, SPARSE_OK=True),
    write(1, "uint8", BIGTIFF="YES", overviews=(2, 4)),
    pages({"size": 64, "subifds": 1}, reduced(32), {"size": 64, "subfiletype": 2}),
    tiff(
        "uint16",
        tags=[text_tag(42112, "<GDALMetadata><Item name='SCALE' sample='0' role='scale'>2</Item></GDALMetadata>")],
    ),
]


@settings(max_examples=400)
@given(st.data())
def test_hostile_bytes_end_in_a_header_or_an_error(data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    # Where headers lie: at both ends.
    places = st.one_of(st.integers(0, 700), st.integers(len(seed) - 700, len(seed) - 1), st.integers(0, len(seed) - 1))
    patches = st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\1\0\0\0"]) | st.binary(max_size=8)
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        patch = data.draw(patches)
        kind = data.draw(st.sampled_from(["overwrite", "insert", "delete", "truncate"]))
        if kind == "overwrite":
            seed[place : place + len(patch)] = patch
        elif kind == "insert":
            seed[place:place] = patch
        else:
            del seed[place : place + len(patch) if kind == "delete" else None]
    try:
        header = parse(bytes(seed), piece=1024, head=256)
    except (HeaderError, UnsupportedSourceError) as error:
        href = error.href
    else:
        href = "some.tif"
        assert sum(level.offsets.size for level in header.levels) <= MAX_TILES
    assert href == "some.tif"
