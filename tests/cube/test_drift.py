"""Whether a source is still what its manifest says: by its ETag, its time, its size and its tile tables."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio

from cube.archive.build import build
from cube.dataset import open_cube
from cube.drift import is_same_header, require_unchanged, version_of
from cube.errors import SourceChangedError, SourceNotFoundError
from cube.grid import Window
from cube.io.ranges import ObjectVersion
from cube.reader import read_block
from cube.scan import scan_sources
from cube.source import Source
from cube.spec import CubeSpec
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

SHAPE = 100, 120
THEN = datetime(2024, 5, 1, 12, tzinfo=UTC)


def write(path, seed=0, **options):
    values = unique_values(SHAPE, "uint16", seed)
    write_cog(path, values, **({"blocksize": 48, "OVERVIEW_COUNT": 1, "nodata": 0} | options))
    set_time(path, THEN.timestamp())
    return values


def set_time(path, stamp):
    os.utime(path, (stamp, stamp))


def is_unchanged(manifest):
    require_unchanged(manifest, 0, manifest.facts(0))
    return True


def read(manifest):
    spec = CubeSpec(manifest=manifest.url, version=manifest.version)
    height, width = manifest.grid.shape
    return read_block(spec, ["band_1"], (0,), Window(top=0, bottom=height, left=0, right=width))["band_1"][0]


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "archive" / "a.tif"
    values = write(path)
    return path, build(path, to=path.parent / "a.cube"), values


def test_what_was_not_touched_is_unchanged(local):
    _, manifest, values = local
    assert version_of(manifest.facts(0)) is None
    assert is_unchanged(manifest)
    np.testing.assert_array_equal(read(manifest), values)


@pytest.mark.parametrize("options", [{}, {"compress": "LZW"}, {"compress": "ZSTD", "predictor": "NO"}])
def test_a_newer_copy_of_a_compressed_file_is_the_same(tmp_path, options):
    path = tmp_path / "a.tif"
    values = write(path, **options)
    manifest = build(path, to=tmp_path / "a.cube")
    shutil.copyfile(path, tmp_path / "copy")
    (tmp_path / "copy").replace(path)
    assert is_unchanged(manifest)
    np.testing.assert_array_equal(read(manifest), values)


def test_a_newer_file_of_the_same_size_and_other_pixels_is_not(local):
    path, manifest, _ = local
    size = path.stat().st_size
    write(path, 1)
    os.truncate(path, size)
    set_time(path, THEN.timestamp() + 60)
    words = r"a\.tif: changed since it was scanned \(it was modified 2024-05-01 12:00:00\+00:00 and then .*12:01:00"
    with pytest.raises(SourceChangedError, match=words):
        is_unchanged(manifest)


def test_a_newer_uncompressed_file_is_never_taken_for_a_copy(tmp_path):
    path = tmp_path / "a.tif"
    write(path, compress="NONE")
    manifest = build(path, to=tmp_path / "a.cube")
    assert is_unchanged(manifest)
    set_time(path, THEN.timestamp() + 1)
    with pytest.raises(SourceChangedError, match=r"a\.tif: changed since it was scanned \(it was modified"):
        is_unchanged(manifest)


def test_a_newer_file_that_gdal_reads_is_never_taken_for_a_copy(tmp_path):
    path = tmp_path / "a.tif"
    grid = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), "width": 64, "height": 64}
    with rasterio.open(path, "w", driver="GTiff", count=1, dtype="uint8", nbits=4, **grid) as out:
        out.write(np.ones((1, 64, 64), "uint8"))
    manifest = build(path, to=tmp_path / "a.cube")
    assert manifest.facts(0).path == "gdal"
    assert is_unchanged(manifest)
    set_time(path, THEN.timestamp())
    with pytest.raises(SourceChangedError, match="it was modified"):
        is_unchanged(manifest)


def test_another_size_is_another_file_whenever_it_was_written(local):
    path, manifest, _ = local
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"x")
    set_time(path, THEN.timestamp())
    with pytest.raises(SourceChangedError, match=rf"\(it had {size} bytes and has {size + 1}\); .*`cube refresh`"):
        is_unchanged(manifest)


def test_a_file_that_is_gone_is_not_found(local):
    path, manifest, _ = local
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"a\.tif: there is no such file"):
        is_unchanged(manifest)


def test_each_file_is_compared_with_its_place_on_its_own_grid(tmp_path):
    """Two files of one grid, one of the next zone some pixels on, and one of larger pixels; all with the same tiles."""
    first = tmp_path / "in" / "a.tif"
    write(first)
    with rasterio.open(first) as file:
        a, _, c, _, _, f, *_ = file.transform
    places = {"b": (a, c + 1200, "EPSG:32633"), "c": (a, c + 30, "EPSG:32632"), "d": (2 * a, c, "EPSG:32633")}
    for name, (size, left, crs) in places.items():
        write(tmp_path / "in" / f"{name}.tif", crs=crs, transform=rasterio.Affine(size, 0, left, 0, -size, f))
    manifest = build(tmp_path / "in", pattern="{tile}.tif", to=tmp_path / "m.cube")
    assert len(manifest.grids) == 3
    hrefs = [manifest.facts(i).href for i in range(4)]
    scanned, _ = scan_sources([Source(href=href, item=href[-5]) for href in hrefs])
    headers = {each.source.href: each.header for each in scanned}
    target = open_cube(manifest, resolution=30).cube.manifest  # where windows lie makes no difference
    for i, href in enumerate(hrefs):
        os.utime(href)  # newer than they were: their headers decide
        for found in (manifest, target):
            require_unchanged(found, i, found.facts(i))
            assert [other for other in hrefs if is_same_header(found, i, headers[other])] == [href]


def test_each_version_of_a_file_is_judged_anew(local):
    path, manifest, values = local
    original = path.read_bytes()
    write(path, 1)
    other = path.read_bytes().ljust(len(original), b"\0")[: len(original)]
    for minute in range(1, 7, 2):
        path.write_bytes(original)
        set_time(path, THEN.timestamp() + 60 * minute)
        np.testing.assert_array_equal(read(manifest), values)
        path.write_bytes(other)
        set_time(path, THEN.timestamp() + 60 * (minute + 1))
        with pytest.raises(SourceChangedError):
            read(manifest)


@pytest.mark.parametrize(
    "options",
    [{"blocksize": 64}, {"predictor": "NO"}, {"compress": "LZW"}, {"OVERVIEWS": "NONE"}, {"OVERVIEW_COUNT": 2}],
    ids=str,
)
def test_tile_tables_tell_files_apart(local, tmp_path, options):
    _, manifest, _ = local

    def same(path):
        (scanned,), errors = scan_sources([Source(href=path.as_posix(), item="a")])
        assert not errors
        return is_same_header(manifest, 0, scanned.header)

    write(tmp_path / "same.tif")
    assert same(tmp_path / "same.tif")
    write(tmp_path / "other.tif", **options)
    assert not same(tmp_path / "other.tif")
    write(tmp_path / "pixels.tif", 1)
    assert not same(tmp_path / "pixels.tif")


# Objects of a store, of which every answer says what it is of.


@pytest.fixture
def remote(tmp_path):
    path = tmp_path / "store" / "a.tif"
    values = write(path)
    with ObjectStore(path.parent) as store:
        yield path, build(f"{store.url}/a.tif", to=tmp_path / "a.cube"), values


def test_every_request_asks_for_the_version_that_was_scanned(remote):
    path, manifest, values = remote
    facts = manifest.facts(0)
    version = version_of(facts)
    assert version == ObjectVersion(size=path.stat().st_size, etag=facts.etag, last_modified=facts.last_modified)
    assert version.precondition == f'"{facts.etag}"'
    require_unchanged(manifest, 0, facts)  # says nothing of remote ones: their requests do
    np.testing.assert_array_equal(read(manifest), values)
    set_time(path, THEN.timestamp() + 60)
    with pytest.raises(
        SourceChangedError, match=r"a\.tif: tile \(0, 0\) of level 0.*its ETag is another one .*\(412\)"
    ):
        read(manifest)


def test_an_object_that_is_gone_is_not_found(remote):
    path, manifest, _ = remote
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"a\.tif: .*there is no such object \(404\)"):
        read(manifest)


@pytest.mark.parametrize(
    ("etag", "modified", "size", "words"),
    [
        ("a", None, 10, None),
        ("b", None, 10, "its ETag was a and is b"),
        ("b", THEN, 10, "its ETag was a and is b"),
        ("a", None, 11, "it had 10 bytes and has 11"),
        (None, THEN, 10, None),
        (None, None, 10, None),
        (None, datetime(2025, 1, 1, tzinfo=UTC), 10, "it was modified 2024-05-01 12:00:00+00:00 and then 2025-01-01"),
        ("a", datetime(2025, 1, 1, tzinfo=UTC), 10, None),
    ],
)
def test_what_tells_versions_apart(etag, modified, size, words):
    known = ObjectVersion(size=10, etag="a", last_modified=THEN)
    found = known.change(size=size, etag=etag, last_modified=modified)
    assert found == words if words is None else found.startswith(words)


def test_weak_etags_are_no_precondition():
    assert ObjectVersion(size=1, etag='W/"a"', last_modified=None).precondition is None
    assert ObjectVersion(size=1, etag=None, last_modified=THEN).precondition is None


def test_a_file_with_the_same_tiles_and_another_nodata_is_no_copy(tmp_path):
    path = tmp_path / "a.tif"
    values = np.arange(96 * 96, dtype="uint16").reshape(96, 96) % 7
    write_cog(path, values, nodata=1)
    manifest = build(path, to=tmp_path / "a.cube")
    size = path.stat().st_size
    write_cog(path, values, nodata=5)
    assert path.stat().st_size == size
    os.utime(path, (1e9, 1e9))
    with pytest.raises(SourceChangedError):
        open_cube(manifest).band_1.load()


def test_a_mask_beside_a_file_that_vanished_is_noticed(tmp_path):
    path = tmp_path / "a.tif"
    write_cog(path, np.full((64, 64), 7, "uint8"), driver="GTiff")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
        file.write_mask(np.tri(64, dtype="bool"))
    manifest = build(path, to=tmp_path / "a.cube")
    assert np.isnan(open_cube(manifest).band_1.values).sum() == 64 * 63 // 2
    (tmp_path / "a.tif.msk").unlink()
    with pytest.raises(SourceChangedError, match="it had a validity mask and has none"):
        open_cube(manifest).band_1.load()


def test_names_that_a_url_would_take_apart_are_quoted(tmp_path):
    values = np.arange(64 * 64, dtype="uint16").reshape(64, 64)
    write_cog(tmp_path / "files" / "a#1 b%20.tif", values)
    build(tmp_path / "files", to=tmp_path / "files" / "a.cube")
    with ObjectStore(tmp_path / "files") as store:
        found = open_cube(f"{store.url}/a.cube", mask_and_scale=False)
        np.testing.assert_array_equal(found.band_1.values, values)
