"""What cannot be read is refused with words that name it and say why, before it costs memory or gives wrong numbers."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
import zlib
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from cube import build, open_cube
from cube.errors import (
    BuildError,
    CatalogError,
    CubeError,
    ManifestError,
    ReadError,
    SelectionError,
    SourceChangedError,
    SourceNotFoundError,
)
from cube.settings import get_settings
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog
from tests.serving import Quiet, serving

SHAPE = 96, 128
PLAIN = {"driver": "GTiff", "blockxsize": 32, "blockysize": 32, "compress": "DEFLATE"}
MIB = 1024 * 1024


def write(path, seed=0, **options):
    values = unique_values(SHAPE, "uint16", seed)
    write_cog(path, values, **(PLAIN | options))
    return values


def refused(what, words, **arguments):
    """Assert that a build fails with some words, a regular expression, and return its error."""
    with pytest.raises(BuildError, match=words) as caught:
        build(what, **arguments)
    return caught.value


@contextmanager
def little_memory():
    """Assert that Python and numpy take less than 16 MiB at any moment."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB, f"{peak / MIB:.0f} MiB"


# Tags by hand: a file of one image as GDAL writes it, little-endian, with some of its tags changed.

TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 12: 8, 16: 8}


def first_directory(data):
    """Return where the first directory lies, and how many tags it has."""
    start = struct.unpack_from("<I", data, 4)[0]
    return start, struct.unpack_from("<H", data, start)[0]


def entry(data, tag):
    """Return where the entry of a tag lies."""
    start, count = first_directory(data)
    places = [start + 2 + 12 * i for i in range(count)]
    return next(place for place in places if struct.unpack_from("<H", data, place)[0] == tag)


def patched(data, tag, *, kind=None, count=None, value=None):
    """Return a file with parts of a tag's entry replaced; `value` is what stands in the last four bytes."""
    data, place = bytearray(data), entry(data, tag)
    for offset, form, new in ((2, "<H", kind), (4, "<I", count), (8, "<I", value)):
        if new is not None:
            struct.pack_into(form, data, place + offset, new)
    return bytes(data)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a file that has nothing wrong with it."""
    path = tmp_path_factory.mktemp("sound") / "a.tif"
    write(path)
    return path.read_bytes()


# Files that are none.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends before byte 0: it is empty"),
        (b"not a TIFF at all", "is not a TIFF, .*it begins with b'not a TI'"),
        (b"<!DOCTYPE html><title>Sign in</title>", "is not a TIFF, .*it begins with b'<!DOCTYP'"),
        (b"PK\x03\x04" + bytes(60), r"is not a TIFF, .*it begins with b'PK\\x03\\x04"),
        (b"<VRTDataset rasterXSize='9' rasterYSize='9'></VRTDataset>", "is not a TIFF, .*it begins with b'<VRTData'"),
        (b"II*\x00", "has 4 bytes .*truncated"),
        (b"II*\x00\x08\x00\x00\x00", "truncated"),
        (b"II*\x00\x00\x00\x00\x00" + bytes(40), "has no image"),
        (b"II+\x00\x04\x00\x00\x00" + bytes(40), "is not a TIFF"),
    ],
    ids=["empty", "text", "html", "zip", "vrt", "magic", "no-directory", "no-image", "bigtiff-of-4-bytes"],
)
def test_what_is_no_tiff(tmp_path, content, words):
    (tmp_path / "bad.tif").write_bytes(content)
    refused(tmp_path / "bad.tif", rf"1 of 1 sources cannot be part of a cube:\n  .*/bad\.tif: .*{words}")


def test_a_good_neighbour_is_used_only_where_that_was_asked_for(tmp_path):
    values = write(tmp_path / "good.tif")
    (tmp_path / "bad.tif").write_bytes(b"no TIFF at all")
    refused(tmp_path, r"1 of 2 sources cannot be part of a cube:\n  .*/bad\.tif: ")
    manifest = build(tmp_path, fail_on_error=False, to=tmp_path / "a.cube")
    assert [(href.rpartition("/")[2], reason[:13]) for href, reason in manifest.left_out] == [
        ("bad.tif", "is not a TIFF")
    ]
    np.testing.assert_array_equal(open_cube(manifest).band_1.values, values)


def test_a_truncated_header(sound, tmp_path):
    start, count = first_directory(sound)
    for length in (5, 9, start + 1, start + 20, start + 12 * count):
        (tmp_path / "cut.tif").write_bytes(sound[:length])
        refused(tmp_path / "cut.tif", rf"/cut\.tif: .*{length} bytes.*truncated")


# Tables that lie, loop or ask for memory.


def test_tiles_past_the_end(sound, tmp_path):
    (tmp_path / "cut.tif").write_bytes(sound[:-1])
    refused(tmp_path, rf"cut\.tif: image 1 has 1 tiles past the end of the file \({len(sound) - 1} bytes; truncated")
    data = bytearray(sound)
    offsets = struct.unpack_from("<I", data, entry(data, 324) + 8)[0]
    struct.pack_into("<I", data, offsets + 8, 2**31)
    (tmp_path / "cut.tif").write_bytes(data)
    refused(tmp_path, r"cut\.tif: image 1 has 1 tiles past the end of the file")


def test_a_loop_of_directories(sound, tmp_path):
    data = bytearray(sound)
    start, count = first_directory(data)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    (tmp_path / "loop.tif").write_bytes(data)
    refused(tmp_path, rf"loop\.tif: has image directories in a loop \(byte {start} is named twice\)")


def test_a_loop_through_another_directory(sound, tmp_path):
    start, count = first_directory(sound)
    data = bytearray(sound) + bytes(len(sound) % 2)
    second = len(data)
    data += data[start : start + 2 + 12 * count] + struct.pack("<I", start)
    struct.pack_into("<I", data, start + 2 + 12 * count, second)
    (tmp_path / "loop.tif").write_bytes(data)
    refused(tmp_path, rf"loop\.tif: has image directories in a loop \(byte {start} is named twice\)")


def test_a_long_chain_of_directories_takes_no_memory(sound, tmp_path):
    start, count = first_directory(sound)
    table, data = sound[start : start + 2 + 12 * count], bytearray(sound) + bytes(len(sound) % 2)
    struct.pack_into("<I", data, start + 2 + 12 * count, len(data))
    for _ in range(2000):
        data += table + struct.pack("<I", len(data) + len(table) + 4)
    data += table + bytes(4)
    (tmp_path / "long.tif").write_bytes(data)
    with little_memory():
        manifest = build(tmp_path / "long.tif", to=tmp_path / "a.cube")
    assert len(manifest.levels) == 1
    assert manifest.facts(0).path == "gdal"
    np.testing.assert_array_equal(open_cube(manifest).band_1.values, unique_values(SHAPE, "uint16"))


@pytest.mark.parametrize("tag", [324, 325])
def test_more_entries_than_tiles_take_no_memory_and_are_left_alone(sound, tmp_path, tag):
    path = tmp_path / "absurd.tif"
    path.write_bytes(patched(sound, tag, count=2**31 - 1))
    with little_memory():
        values = open_cube(build(path, to=tmp_path / "a.cube")).band_1.values
    np.testing.assert_array_equal(values, unique_values(SHAPE, "uint16"))


@pytest.mark.parametrize(
    ("tag", "change", "words"),
    [
        (256, {"kind": 4, "value": 2**31 - 1}, r"has \d+ tiles or strips up to image 1, which is absurd"),
        (256, {"kind": 4, "value": 2**32 - 1}, "has 4294967295 x 96 pixels"),
        (257, {"kind": 4, "value": 2**31 - 1}, r"has \d+ tiles or strips up to image 1, which is absurd"),
        (256, {"value": 60000}, "has 5625 tiles, but 12 tile offsets"),
        (
            322,
            {"kind": 4, "value": 2**30},
            "tiles of .*bytes, which is absurd|image 1 has 3 tiles, but 12 tile offsets",
        ),
        (324, {"count": 11}, "image 1 has 12 tiles, but 11 tile offsets"),
        (325, {"count": 11}, "image 1 has 12 tiles, but 11 tile lengths"),
        (258, {"count": 2**31 - 1}, "tag 258 of image 1 has 2147483647 values of type 3, which is absurd"),
        (34735, {"count": 2**31 - 1}, "tag 34735 of image 1 has 2147483647 values of type 3, which is absurd"),
    ],
    ids=str,
)
def test_absurd_counts_and_sizes_take_no_memory(sound, tmp_path, tag, change, words):
    (tmp_path / "absurd.tif").write_bytes(patched(sound, tag, **change))
    with little_memory():
        refused(tmp_path, rf"absurd\.tif: .*({words})")


def test_one_tile_of_a_terabyte_takes_no_memory(tmp_path):
    path = tmp_path / "absurd.tif"
    write(path, blockxsize=128, blockysize=96)
    data = patched(patched(path.read_bytes(), 322, kind=4, value=2**20), 323, kind=4, value=2**20)
    path.write_bytes(data)
    with little_memory():
        refused(path, r"absurd\.tif: .*tiles of \d+ bytes, which is absurd")


def bomb(codec):
    """Return few bytes that a decoder would turn into 64 MiB of zeros if it were let."""
    if codec == "DEFLATE":
        return zlib.compress(bytes(64 * MIB))
    if codec == "PACKBITS":
        return bytes([129, 0]) * (64 * MIB // 128)
    encode = {"LZW": imagecodecs.lzw_encode, "ZSTD": imagecodecs.zstd_encode}[codec]
    return encode(bytes(64 * MIB))


def write_bomb(path, codec):
    """Write a file of one tile that unpacks to more than it should."""
    write(path, blockxsize=128, blockysize=96, compress=codec, predictor=1)
    added, data = bomb(codec), path.read_bytes()
    path.write_bytes(patched(patched(data, 324, value=len(data)), 325, kind=4, value=len(added)) + added)


@pytest.mark.parametrize("codec", ["DEFLATE", "LZW"])
def test_what_a_tile_unpacks_to_beyond_its_size_takes_no_memory_and_is_left_alone(tmp_path, codec):
    write_bomb(tmp_path / "bomb.tif", codec)
    with little_memory():
        assert not open_cube(build(tmp_path / "bomb.tif", to=tmp_path / "a.cube")).band_1.values.any()


@pytest.mark.parametrize(("codec", "reason"), [("ZSTD", "buffer is too small"), ("PACKBITS", "IMCD_OUTPUT")])
def test_what_cannot_be_left_alone_beyond_a_tile_takes_no_memory_and_is_refused(tmp_path, codec, reason):
    write_bomb(tmp_path / "bomb.tif", codec)
    words = rf"bomb\.tif: tile \(0, 0\) of level 0 .* is damaged: .*{reason}"
    with little_memory(), pytest.raises(ReadError, match=words):
        open_cube(build(tmp_path / "bomb.tif", to=tmp_path / "a.cube")).band_1.load()


# Pixels that are not what the header says.


@pytest.mark.parametrize("codec", ["DEFLATE", "LZW", "ZSTD", "JPEG", "WEBP", "LERC"])
def test_a_damaged_tile_is_named(tmp_path, codec):
    path = tmp_path / "damaged.tif"
    values = np.random.default_rng(0).integers(0, 255, (3, *SHAPE), "uint8")
    write_cog(path, values, **(PLAIN | {"compress": codec, "interleave": "pixel", "photometric": "rgb"}))
    manifest = build(path, to=tmp_path / "a.cube")
    image = manifest.image(0)
    offset, length = int(image.offsets[0, 1, 2]), int(image.lengths[0, 1, 2])
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\x5a" * length
    path.write_bytes(data)
    where = rf"tile \(2, 1\) of level 0 \(bytes {offset}-{offset + length - 1}\) is damaged: "
    with pytest.raises(ReadError, match=rf"damaged\.tif: {where}"):
        open_cube(manifest).band_2.load()
    assert open_cube(manifest).band_2[:32, :64].load().shape == (32, 64)


def test_a_file_that_was_cut_off_after_its_build(tmp_path):
    path = tmp_path / "store" / "a.tif"
    write(path)
    with ObjectStore(path.parent) as store:
        remote, local = (build(what, to=tmp_path / f"{i}.cube") for i, what in enumerate((f"{store.url}/a.tif", path)))
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size - 100)
        for manifest in (remote, local):
            with pytest.raises(SourceChangedError, match=r"a\.tif: .*changed since it was scanned"):
                open_cube(manifest).band_1.load()


# What has no place, no time, or a name twice.


def test_no_coordinate_reference_system(tmp_path):
    write(tmp_path / "a.tif", crs=None)
    refused(tmp_path, r"/a\.tif: has no coordinate reference system; say which one it is in \(.*crs=.*--crs\)")
    refused(tmp_path, "crs='EPSG:0' is no coordinate reference system; give EPSG:", crs="EPSG:0")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_no_georeferencing_at_all(tmp_path):
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8") as file:
        file.write(np.ones((1, 64, 64), "uint8"))
    refused(tmp_path, r"/a\.tif: (has )?no georeferencing")


def test_no_time_in_the_names_where_the_pattern_has_one(tmp_path):
    write(tmp_path / "red.tif")
    write(tmp_path / "20240101_red.tif")
    words = r"the pattern '\{time:%Y%m%d\}_\{band\}\.tif' does not match 1 of 2 files, such as red\.tif; "
    refused(tmp_path, words, pattern="{time:%Y%m%d}_{band}.tif")


def test_a_date_that_is_none(tmp_path):
    write(tmp_path / "20241340_red.tif")
    refused(tmp_path, "20241340", pattern="{time:%Y%m%d}_{band}.tif")


def test_no_dates_in_the_descriptions_where_bands_are_dates(tmp_path):
    write_cog(tmp_path / "a.tif", np.ones((2, 64, 64), "uint8"), descriptions=("2001", "ndvi"), **PLAIN)
    words = r"a\.tif: bands_as='time:%Y': band 2 of 2 has no such date in its description; .* '2001', 'ndvi'"
    refused(tmp_path, words, bands_as="time:%Y")


def test_no_time_in_some_items(tmp_path):
    write(tmp_path / "a.tif")
    write(tmp_path / "b.tif")
    items = [item("a", tmp_path / "a.tif"), item("b", tmp_path / "b.tif", datetime=None)]
    refused(items, r"1 of 2 sources have a time and .*b\.tif has none; build a cube of each")
    refused(
        [item("a", tmp_path / "a.tif", datetime="yesterday")], "Item 'a' has a datetime that is not one: 'yesterday'"
    )


def test_one_place_and_date_twice(tmp_path):
    write(tmp_path / "v1" / "20240101_red.tif")
    write(tmp_path / "v2" / "20240101_red.tif", 1)
    words = r"comes from two files of the same place, .*/v1/20240101_red\.tif and .*/v2/20240101_red\.tif; "
    refused(tmp_path, words, pattern="{time:%Y%m%d}_{band}.tif")


def test_a_file_given_twice_is_taken_once_and_said(tmp_path):
    values = write(tmp_path / "a.tif")
    manifest = build([tmp_path / "a.tif", tmp_path / "a.tif"], to=tmp_path / "a.cube")
    assert manifest.attributes["archive"] == "2 items, 1 superseded"
    assert manifest.left_out[0][1] == "a is superseded by a: the same item was given more than once"
    np.testing.assert_array_equal(open_cube(manifest).band_1.values, values)


def test_bands_of_one_file_that_share_a_name_are_told_apart(tmp_path):
    values = np.arange(2 * 64 * 64, dtype="uint16").reshape(2, 64, 64)
    write_cog(tmp_path / "a.tif", values, descriptions=("red", "red"), **PLAIN)
    ds = open_cube(tmp_path / "a.tif")
    assert list(ds.data_vars) == ["band_1", "band_2"]
    np.testing.assert_array_equal(ds.to_dataarray().values, values)


def test_assets_that_share_a_name_are_told_apart(tmp_path):
    values = [write(tmp_path / f"{name}.tif", seed) for seed, name in enumerate("ab")]
    said = {**item("x", tmp_path / "a.tif")["assets"], "again": item("x", tmp_path / "b.tif")["assets"]["data"]}
    for asset in said.values():
        asset["bands"] = [{"name": "B1", "eo:common_name": "red"}]
    ds = open_cube([item("x", tmp_path / "a.tif") | {"assets": said}])
    assert list(ds.data_vars) == ["data", "again"]
    for band, expected in zip(ds.data_vars.values(), values, strict=True):
        np.testing.assert_array_equal(band.values[0], expected)


def test_a_band_called_as_a_coordinate(tmp_path):
    write(tmp_path / "20240101_x.tif")
    refused(tmp_path, r"a band of .*20240101_x\.tif is called 'x', as a coordinate", pattern="{time:%Y%m%d}_{band}.tif")


def test_an_empty_folder_and_names_of_nothing(tmp_path):
    refused(tmp_path, r"the folder .* holds no \.tif or \.tiff file")
    refused("", "'' names nothing; give a folder, a glob, URLs or STAC items")
    refused([], "a list: no COG was found")
    refused(tmp_path / "a.tif", r"a\.tif: there is no such file or folder")
    refused(str(tmp_path / "*.tif"), r"no file matches .*\*\.tif")
    with pytest.raises(CatalogError, match="dem: there is no such file or folder, and no cube of that name"):
        open_cube("dem")


# Stores that refuse or fail.


@contextmanager
def answering(status):
    """Run a server that answers every request with one status, and yield its URL and the list of what was asked."""
    asked = []

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def reply(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"secret")

        do_HEAD = reply  # noqa: N815 - the name that http.server calls

    with serving(Handler) as url:
        yield url, asked


@pytest.fixture
def two_attempts(monkeypatch):
    monkeypatch.setenv("CUBE_ATTEMPTS", "2")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


ANSWERS = [
    (401, 1, r"access denied \(401\): credentials are missing, expired or not enough"),
    (403, 1, r"access denied \(403\): credentials are missing, expired or not enough"),
    (404, 1, r"there is no such object \(404\)"),
    (500, 2, "could not be read after 2 attempts: the store answered 500"),
    (503, 2, "could not be read after 2 attempts: the store answered 503"),
]


@pytest.mark.parametrize(("status", "attempts", "words"), ANSWERS)
@pytest.mark.usefixtures("two_attempts")
def test_a_url_that_answers_with_an_error(status, attempts, words):
    with answering(status) as (url, asked):
        error = refused(f"{url}/a.tif", rf"{url}/a\.tif: .*{words}")
        assert asked == ["/a.tif"] * attempts
        assert "secret" not in str(error)
        with pytest.raises(CubeError, match=rf"{url}/items\.json: .*{words}"):
            build(f"{url}/items.json")
        with pytest.raises(ManifestError, match=rf"{url}/a\.cube .*({words}|holds no manifest)"):
            open_cube(f"{url}/a.cube")


@pytest.mark.parametrize(("status", "attempts", "words"), ANSWERS)
@pytest.mark.usefixtures("two_attempts")
def test_a_store_that_fails_after_the_build(status, attempts, words, tmp_path):
    write(tmp_path / "a.tif")
    manifest = build(tmp_path / "a.tif", to=tmp_path / "a.cube")
    with answering(status) as (url, asked):
        manifest = moved(manifest, f"{url}/a.tif", tmp_path / "b.cube")
        ds = open_cube(manifest)
        with pytest.raises(ReadError, match=rf"{url}/a\.tif: tile \(0, 0\) of level 0.*{words}") as caught:
            ds.band_1.load()
        assert isinstance(caught.value, SourceNotFoundError) == (status == 404)
        assert asked == ["/a.tif"] * attempts
        assert "secret" not in str(caught.value)


# Sources outside of where they may lie.


def item(name, path, **properties):
    """Return a STAC Item of one file."""
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "properties": {"datetime": "2024-01-01T00:00:00Z"} | properties,
        "assets": {"data": {"href": str(path), "type": "image/tiff; application=geotiff", "roles": ["data"]}},
    }


def moved(manifest, href, to):
    """Write a manifest like another, whose only source lies elsewhere, as its author could; return its folder."""
    shutil.copytree(manifest.url, to)
    (path,) = to.glob("sources-*.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index("href")
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array([href]).cast(field.type)), path)
    edit_parts(to, sources_bytes=path.stat().st_size)
    return to


def edit_parts(folder, **changes):
    """Change what a manifest says of its only part."""
    (snapshot,) = folder.glob("snapshot-*.json")
    said = json.loads(snapshot.read_text())
    said["parts"][0] |= changes
    snapshot.write_text(json.dumps(said))


@pytest.mark.parametrize("href", ["/vsicurl/http://127.0.0.1:1/a.tif", "/vsizip/a.zip/a.tif", "ftp://host/a.tif"])
def test_a_manifest_names_nothing_that_no_store_reads(tmp_path, href):
    write(tmp_path / "a.tif")
    manifest = build(tmp_path / "a.tif", to=tmp_path / "a.cube")
    with pytest.raises(ReadError, match=r"a\.tif: .*(no store reads|there is no such file)"):
        open_cube(moved(manifest, href, tmp_path / "b.cube")).band_1.load()


def test_a_remote_manifest_names_no_local_files(tmp_path):
    secret = tmp_path / "secret.tif"
    write(secret)
    manifest = build(secret, to=tmp_path / "a.cube")
    store_folder = tmp_path / "store"
    store_folder.mkdir()
    for number, href in enumerate((secret.as_posix(), secret.as_uri())):
        moved(manifest, href, store_folder / f"{number}.cube")
        with ObjectStore(store_folder) as store:
            words = rf"{store.url}/{number}\.cube names .*, a file of this machine, which a remote manifest must not"
            with pytest.raises(ManifestError, match=words):
                open_cube(f"{store.url}/{number}.cube").band_1.load()


def test_a_remote_manifest_does_not_climb_out_of_its_folder(tmp_path):
    write(tmp_path / "secret.tif")
    manifest = build(tmp_path / "secret.tif", to=tmp_path / "a.cube")
    (tmp_path / "store" / "deep").mkdir(parents=True)
    moved(manifest, "../../secret.tif", tmp_path / "store" / "deep" / "a.cube")
    with ObjectStore(tmp_path / "store") as store, pytest.raises(CubeError, match=r"secret\.tif: .*could not|no such"):
        open_cube(f"{store.url}/deep/a.cube").band_1.load()


@pytest.mark.parametrize("what", ["sources", "tiles"])
@pytest.mark.parametrize("form", ["path", "uri", "relative"])
def test_a_remote_manifest_has_no_local_parts(tmp_path, what, form):
    write(tmp_path / "store" / "a.tif")
    manifest = build(tmp_path / "store" / "a.tif", to=tmp_path / "store" / "a.cube")
    folder = Path(manifest.url)
    (part,) = folder.glob(f"{what}-*.parquet")
    part = part.rename(tmp_path / part.name)
    hrefs = {"path": part.as_posix(), "uri": part.as_uri(), "relative": f"../../{part.name}"}
    edit_parts(folder, **{what: hrefs[form]})
    words = rf"a\.cube is damaged .*its part '.*{part.name}' is not the name of a file in its folder"
    with ObjectStore(tmp_path / "store") as store, pytest.raises(ManifestError, match=words):
        open_cube(f"{store.url}/a.cube")


@pytest.mark.parametrize("form", ["uri", "vsi"])
def test_items_from_a_url_name_no_local_files(tmp_path, form):
    secret = tmp_path / "secret.tif"
    write(secret)
    href = {"uri": secret.as_uri(), "vsi": f"/vsizip/{secret.as_posix()}"}[form]
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item("a", href)]}))
    collection = {"type": "Collection", "id": "c", "stac_version": "1.0.0", "extent": {}, "links": []}
    collection["assets"] = item("a", href)["assets"]
    (folder / "collection.json").write_text(json.dumps(collection))
    with ObjectStore(folder) as store:
        for name in ("items", "collection"):
            refused(
                f"{store.url}/{name}.json",
                rf"{store.url}/{name}\.json: asset 'data' of Item .* is .*secret\.tif, a file of this machine",
            )


def test_absolute_paths_in_items_from_a_url_are_of_its_host(tmp_path):
    secret = tmp_path / "secret.tif"
    write(secret)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "items.json").write_text(json.dumps(item("a", secret.as_posix())))
    with ObjectStore(tmp_path / "store") as store:
        refused(f"{store.url}/items.json", rf"{store.url}/.*/secret\.tif: there is no such object \(404\)")


def test_links_from_a_url_stay_on_its_host(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    (tmp_path / "item.json").write_text(json.dumps(item("a", "a.tif")))
    for href in ((tmp_path / "item.json").as_uri(), "http://127.0.0.1:1/item.json"):
        collection = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": ""}
        (folder / "catalog.json").write_text(json.dumps(collection | {"links": [{"rel": "item", "href": href}]}))
        with ObjectStore(folder) as store:
            refused(f"{store.url}/catalog.json", rf"links to {href} \(rel=item\), which is not on the same host")


def test_files_that_name_other_files_are_not_followed(tmp_path):
    write(tmp_path / "secret.tif")
    vrt = f"""<VRTDataset rasterXSize="128" rasterYSize="96"><SRS>EPSG:32633</SRS>
      <GeoTransform>500000, 10, 0, 5000000, 0, -10</GeoTransform><VRTRasterBand dataType="UInt16" band="1">
      <SimpleSource><SourceFilename>{tmp_path.as_posix()}/secret.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource>
      </VRTRasterBand></VRTDataset>"""
    (tmp_path / "a.vrt").write_text(vrt)
    (tmp_path / "b.tif").write_text(vrt)
    for name in ("a.vrt", "b.tif"):
        refused(tmp_path / name, rf"{name}: is not a TIFF")


# Arguments of the wrong form.


@pytest.mark.parametrize(
    ("argument", "values", "words"),
    [
        ("name", [5, b"a", "a/b", "..\\a"], "give text without slashes"),
        ("to", [5, b"a"], "give a path or URL"),
        ("bands", [5, [5], b"red", [None]], "give one name or a list of names, or None for all"),
        ("bands", [[]], "give names of bands, or None for all"),
        ("pattern", [5, b"{band}"], "give text"),
        ("bands_as", [5, b"time:%Y"], "give text"),
        ("bands_as", ["", "time", "date:%Y"], "write time: and the format of the dates"),
        ("time", ["2024", None, 1], "give True or False"),
        ("crs", [4326, [4326]], "give text, as 'EPSG:4326'"),
        ("harmonize", ["no", None, 0], "give True or False"),
        ("fail_on_error", ["no", None], "give True or False"),
        ("patch_url", ["https://host/sign", 5], "give a function"),
        ("fill_value", ["0", [0], True, 1j], "give a number"),
        (
            "attributes",
            [5, [1], "x", {"a": object()}, {1: 2}, {"a": float("nan")}],
            "give a dict of what JSON can hold",
        ),
        ("progress", ["yes", 5], "give a function"),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)
def test_arguments_of_build(tmp_path, argument, values, words):
    write(tmp_path / "a.tif")
    for value in values:
        with pytest.raises(CubeError) as caught:
            build(tmp_path / "a.tif", **({"to": tmp_path / "a.cube"} | {argument: value}))
        assert str(caught.value).startswith(f"{argument}={value!r}: ")
        assert words in str(caught.value)
    assert not (tmp_path / "a.cube").exists()


@pytest.mark.parametrize(
    ("argument", "values", "words"),
    [
        ("bands", [5, [5], b"red"], "give one name or a list of names"),
        ("bbox", ["x", 5, (1, 2, 3), (1, 2, 3, "a")], "give four numbers, west, south, east, north"),
        ("bbox", [(5, 5, 1, 1), (float("nan"),) * 4], "west must lie below east and south below north"),
        ("time", [2024, ("2024",), b"2024", slice("2024", "2025")], "give a date as text"),
        ("chunks", [5, "x", [1], True], "give 'auto', None or lengths by dimension"),
        ("chunks", [{"z": 3}], "the cube's dimensions are time, y, x"),
        ("level", ["0", None, 1.5, True], "give a whole number"),
        ("mask_and_scale", ["no", None], "give True or False"),
        ("patch_url", ["https://host/sign"], "give a function"),
        ("pattern", [5], "give text"),
        ("fill_value", ["0"], "give a number"),
        ("groupby", [5, "week", ["time"], b"time"], "there are time, solar_day, id"),
        ("fuse", [5, "top", ["first"], True], "there are first, last, newest, least_cloudy, mean, median"),
        ("resampling", [5, "linear", ["nearest"]], "there are nearest, bilinear, cubic, average"),
        ("crs", ["EPSG:3857"], "no source is in it, so say how large pixels are (resolution=, in its units)"),
    ],
    ids=lambda value: None if isinstance(value, list) else value,
)
def test_arguments_of_open_cube(tmp_path, argument, values, words):
    for date in ("20240101", "20240201"):
        write(tmp_path / f"{date}.tif")
    manifest = build(tmp_path, to=tmp_path / "a.cube")
    for value in values:
        with pytest.raises(SelectionError) as caught:
            open_cube(manifest, **{argument: value})
        assert str(caught.value).startswith(f"{argument}={value!r}")
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "what", [5, None, b"a.tif", object(), [5], [None], ["a.tif", 3], [["a.tif"]], {"a": 1}, range(2)]
)
def test_what_is_no_archive(tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.tif")
    for function in (build, open_cube):
        with pytest.raises(BuildError, match=r"give .*paths.* STAC|no COG was found"):
            function(what)


def test_an_argument_that_is_none(tmp_path):
    write(tmp_path / "a.tif")
    with pytest.raises(TypeError, match=r"open_cube\(\) got an unexpected keyword argument 'colour'"):
        open_cube(tmp_path / "a.tif", colour="red")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        build(tmp_path / "a.tif", colour="red")
