"""Opening files with GDAL: over a network, cut off, hostile, from many threads."""

from __future__ import annotations

import io
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from cube.errors import HeaderError, ReadError, SourceChangedError, SourceNotFoundError, UnsupportedSourceError
from cube.gdal import handles
from cube.gdal.handles import BlockCache
from cube.gdal.read import gdal_header, read_valid_with_gdal, read_with_gdal
from cube.grid import Window
from cube.io import loop
from cube.io.file import RangeFile
from cube.io.ranges import ObjectVersion, read_head
from cube.testing.objectstore import ObjectStore

TRANSFORM = Affine(10, 0, 600000, 0, -10, 5500000)
SIZE = 300
WHOLE = Window(top=0, bottom=SIZE, left=0, right=SIZE)
ONE_FILE = {
    "scene.jp2": ("JP2OpenJPEG", {"REVERSIBLE": "YES", "QUALITY": "100"}),
    "scene.img": ("HFA", {}),
    "compressed.img": ("HFA", {"COMPRESSED": "YES"}),
    "scene.asc": ("AAIGrid", {}),
    "lzma.tif": ("GTiff", {"COMPRESS": "LZMA"}),
    "packbits.tif": ("GTiff", {"COMPRESS": "PACKBITS"}),
    "jpeg.tif": ("GTiff", {"COMPRESS": "JPEG"}),
    "big.tif": ("GTiff", {"BIGTIFF": "YES", "ENDIANNESS": "BIG"}),
}
PICTURES = {
    "scene.png": ("PNG", {"WORLDFILE": "YES"}),
    "scene.jpg": ("JPEG", {"WORLDFILE": "YES"}),
    "scene.webp": ("WEBP", {"LOSSLESS": "YES"}),
}
WITH_HEADER = {"scene.dat": ("ENVI", {}), "scene.bil": ("EHdr", {})}


def noise(samples=1):
    return np.random.default_rng(7).integers(0, 250, (samples, SIZE, SIZE), dtype="uint8")


def write(path, pixels, **profile):
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "dtype": pixels.dtype.name, "crs": "EPSG:32633", "transform": TRANSFORM} | profile
    with rasterio.open(path, "w", count=count, height=height, width=width, **profile) as target:
        target.write(pixels)
    return str(path)


def make(folder, name):
    driver, options = (ONE_FILE | PICTURES | WITH_HEADER)[name]
    source = write(folder / "source.tif", noise(3 if driver == "WEBP" else 1))
    (folder / "made").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        rasterio.shutil.copy(source, str(folder / "made" / name), driver=driver, **options)
    return folder / "made" / name


def read_all(href, file=None):
    return read_with_gdal(href, file, level=0, samples=[0], window=WHOLE)


class Counted(io.BytesIO):
    """Bytes that count how often they are read."""

    reads = 0

    def read(self, size=-1, /):
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("name", ONE_FILE)
def test_files_on_a_network_are_as_those_on_disk(tmp_path, name):
    path = make(tmp_path, name)
    with ObjectStore(path.parent) as store:
        href = f"{store.url}/{name}"
        local, remote = gdal_header(str(path)), gdal_header(href, RangeFile(href))
        assert (remote.transform, remote.crs_wkt) == (local.transform, None if name.endswith(".asc") else local.crs_wkt)
        assert [level.width for level in remote.levels] == [level.width for level in local.levels]
        np.testing.assert_array_equal(read_all(href, RangeFile(href)), read_all(str(path)))


def test_a_file_costs_few_requests(tmp_path):
    path = write(tmp_path / "a.tif", noise(4), compress="lzma", tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_mask(noise()[0] > 9)
        dataset.build_overviews([2, 4])
    assert (tmp_path / "a.tif").stat().st_size > handles._BLOCK_BYTES
    with ObjectStore(tmp_path) as store:
        href = f"{store.url}/a.tif"
        head = loop.run(read_head(href, 1))
        version = ObjectVersion(size=head.size, etag=head.etag, last_modified=head.last_modified)
        store.reset()
        cache = BlockCache(RangeFile(href, version=version))
        header = gdal_header(href, cache)
        assert len(header.levels) == 3
        assert header.validity == "mask"
        pixels = read_with_gdal(href, cache, level=0, samples=range(4), window=WHOLE)
        valid = read_valid_with_gdal(href, cache, level=0, window=WHOLE)
        assert store.counts().requests == -(-head.size // handles._BLOCK_BYTES)
        assert store.counts().bytes == head.size
        assert store.counts().paths == {"a.tif": store.counts().requests}
    np.testing.assert_array_equal(pixels, noise(4))
    np.testing.assert_array_equal(valid, noise()[0] > 9)


def test_reading_on_doubles_what_is_fetched(monkeypatch):
    monkeypatch.setattr(handles, "_BLOCK_BYTES", 10)
    data = bytes(range(250))
    file = Counted(data)
    cache = BlockCache(file)
    assert b"".join(cache.read(place, 5) for place in range(0, 250, 5)) == data
    assert file.reads == 5  # 1 + 2 + 4 + 8 blocks, then the rest
    assert cache.read(245, 99) == data[245:]
    assert cache.read(250, 1) == b""
    assert file.reads == 5


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 60)), max_size=30))
def test_cached_blocks_are_the_files_bytes(reads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handles, "_BLOCK_BYTES", 7)
        patch.setattr(handles, "_CACHED_BLOCKS", 3)
        data = bytes(range(101))
        cache = BlockCache(io.BytesIO(data))
        for offset, size in reads:
            assert cache.read(offset, size) == data[offset : offset + size]
            assert len(cache._blocks) <= 3


@pytest.mark.parametrize("part", [0.5, 0.99])
@pytest.mark.parametrize("name", ONE_FILE | PICTURES | WITH_HEADER)
def test_a_file_that_is_cut_off_is_an_error_and_no_zeros(tmp_path, name, part):
    path = make(tmp_path, name)
    read_all(str(path))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ReadError, match=rf"made.{name}: .+"):
        read_all(str(path))
    if name in ONE_FILE:
        with pytest.raises(ReadError, match=r"https://example\.com/scene: .+"):
            read_all("https://example.com/scene", io.BytesIO(path.read_bytes()))


def test_a_damaged_block_is_an_error_that_says_where(tmp_path):
    path = write(tmp_path / "a.tif", noise(), compress="deflate")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 9] = bytes(9)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(ReadError, match=r"a\.tif: GDAL cannot read it: .*IReadBlock failed at X offset 0, Y offset"):
        read_all(path)


def test_a_source_that_vanishes_or_changes_is_an_error_of_the_source(tmp_path):
    path = make(tmp_path, "lzma.tif")
    with ObjectStore(path.parent) as store:
        href = f"{store.url}/{path.name}"
        head = loop.run(read_head(href, 1))
        version = ObjectVersion(size=head.size, etag=head.etag, last_modified=head.last_modified)
        files = [RangeFile(href, version=version) for _ in range(2)]
        cache = BlockCache(files[0])
        gdal_header(href, cache)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"?")
        with pytest.raises(SourceChangedError, match=r"lzma\.tif: changed since it was scanned"):
            read_all(href, files[1])
        path.unlink()
        with pytest.raises(SourceNotFoundError, match=r"lzma\.tif: there is no such object"):
            gdal_header(href, RangeFile(href, version=version))


def test_what_is_no_raster_is_a_header_error(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"<html>404</html>")
    with pytest.raises(HeaderError, match=r"a\.tif: GDAL cannot read it: .*not recognized as being in a supported"):
        gdal_header(str(tmp_path / "a.tif"))
    with pytest.raises(HeaderError, match=r"/a\.tif: is no raster of a format that is read here \(GTiff, .*b'<html>"):
        gdal_header("https://example.com/a.tif", io.BytesIO(b"<html>404</html>"))
    (tmp_path / "b.tif").write_bytes(b"II*\0" + bytes(50))
    with pytest.raises(HeaderError, match=r"b\.tif: GDAL cannot read it: .+"):
        gdal_header(str(tmp_path / "b.tif"))
    (tmp_path / "c.tif").touch()
    with pytest.raises(HeaderError, match=r"c\.tif: GDAL cannot read it: .+"):
        gdal_header(str(tmp_path / "c.tif"))


@pytest.mark.parametrize("name", ["absent.tif", "folder", "/vsicurl/http://127.0.0.1:9/a.tif", "/vsimem/a.tif"])
def test_a_name_that_is_no_file_is_never_given_to_gdal(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceNotFoundError, match="there is no such file"):
        gdal_header(name if name.startswith("/") else str(tmp_path / name))


def make_vrt(folder):
    """Return the text of a VRT of another file, whose pixels no source may give."""
    secret = write(folder / "secret.tif", np.full((1, SIZE // 2, SIZE // 2), 77, "uint8"))
    rasterio.shutil.copy(secret, str(folder / "secret.vrt"), driver="VRT")
    return (folder / "secret.vrt").read_text().replace('relativeToVRT="1">', f'relativeToVRT="0">{folder}/')


@pytest.mark.parametrize("name", ["a.tif", "a.vrt", "a.bil", "a.img", "a.hgt"])
def test_a_virtual_raster_is_no_source_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_text(make_vrt(tmp_path))
    for file in (None, io.BytesIO((tmp_path / name).read_bytes())):
        with pytest.raises(HeaderError):
            gdal_header(str(tmp_path / name), file)
    secret = '<VRTDataset rasterXSize="9" rasterYSize="1"><VRTRasterBand dataType="Byte" subClass="VRTRawRasterBand">'
    secret += "<SourceFilename>/etc/passwd</SourceFilename></VRTRasterBand></VRTDataset>"
    (tmp_path / name).write_text(secret)
    with pytest.raises(HeaderError):
        gdal_header(str(tmp_path / name))


@pytest.mark.parametrize("beside", ["a.tif.ovr", "a.tif.OVR", "a.tif.msk", "a.tif.ovr.msk", "a.tif.ovr.ovr"])
def test_a_virtual_raster_beside_a_source_is_refused(tmp_path, beside):
    path = write(tmp_path / "a.tif", noise())
    if beside.count(".") == 3:
        write(tmp_path / "a.tif.ovr", noise()[:, ::2, ::2])
    (tmp_path / beside).write_text(make_vrt(tmp_path))
    with pytest.raises(UnsupportedSourceError, match=rf"(?i)a\.tif: its {beside} is no TIFF: "):
        gdal_header(path)
    with pytest.raises(UnsupportedSourceError, match="is no TIFF"):
        read_valid_with_gdal(path, level=0, window=WHOLE)


@pytest.mark.parametrize("where", ["a.tif", "a.tif.ovr", "a.tif.aux.xml"])
def test_an_overview_that_is_another_file_is_refused(tmp_path, where):
    path = write(tmp_path / "a.tif", noise())
    (tmp_path / "secret.vrt").write_text(make_vrt(tmp_path))
    if where.endswith(".xml"):
        item = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{tmp_path}/secret.vrt</MDI></Metadata>'
        (tmp_path / where).write_text(f"<PAMDataset>{item}</PAMDataset>")
    else:
        if where != "a.tif":
            write(tmp_path / where, noise()[:, ::2, ::2])
        with rasterio.open(tmp_path / where, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "secret.vrt"))
    with rasterio.open(path) as dataset:
        assert any("secret" in name for name in dataset.files)  # what GDAL does by itself
    with pytest.raises(UnsupportedSourceError, match=r"a\.tif: names a file for its overviews, '.*secret\.vrt', which"):
        gdal_header(path)
    with pytest.raises(UnsupportedSourceError, match="names a file for its overviews"):
        read_with_gdal(path, level=1, samples=[0], window=Window(top=0, bottom=1, left=0, right=1))


def test_many_threads_read_many_files(tmp_path):
    folder = make(tmp_path, "lzma.tif").parent
    expected = noise()
    href = (folder / "lzma.tif").as_posix()
    data = (folder / "lzma.tif").read_bytes()
    cache = BlockCache(io.BytesIO(data))

    def work(number):
        file = [None, io.BytesIO(data), cache][number % 3]
        if number % 2:
            assert gdal_header(href, file).samples == 1
        return np.array_equal(read_all(href, file), expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(96)))


def test_gdals_options_are_as_before(tmp_path):
    path = write(tmp_path / "a.tif", noise())
    before = rasterio.env.hasenv()  # other libraries may have left one on this thread
    with rasterio.Env(GDAL_NUM_THREADS="3", GTIFF_IGNORE_READ_ERRORS="YES"):
        read_all(path)
        assert rasterio.env.getenv()["GDAL_NUM_THREADS"] == "3"
        assert rasterio.env.get_gdal_config("GTIFF_IGNORE_READ_ERRORS") == "YES"
    gdal_header(path)
    assert rasterio.env.get_gdal_config("GTIFF_IGNORE_READ_ERRORS") is None
    assert rasterio.env.hasenv() == before
    assert threading.active_count() < 50
