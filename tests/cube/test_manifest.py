from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from cube.archive import build
from cube.errors import ManifestError, ReadError, SelectionError
from cube.grid import Extent, Window, common_grid
from cube.io.trace import trace
from cube.manifest import open_manifest, parent
from cube.reader import read_block
from cube.scan import scan_sources
from cube.settings import get_settings
from cube.snapshot import Member, write_manifest
from cube.source import Source
from cube.spec import Band, CubeSpec
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

DATES = ("20240101", "20240201", "20240301")


def write_series(folder, dates=DATES, bands=("red", "nir"), tiles=2):
    for seed, (date, band, tile) in enumerate(itertools.product(dates, bands, range(tiles))):
        write_cog(
            folder / f"t{tile}_{date}_{band}.tif",
            unique_values((100, 128), "uint16", seed),
            transform=from_origin(500000 + tile * 1280, 5000000, 10, 10),
            driver="GTiff",
            nodata=0,
            blockxsize=64,
            blockysize=64,
        )
    return folder


def read_all(manifest, band="red"):
    height, width = manifest.grid.shape
    window = Window(top=0, bottom=height, left=0, right=width)
    spec = CubeSpec(manifest=manifest.url, version=manifest.version)
    return read_block(spec, [band], range(len(manifest.times)), window)[band]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    return write_series(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def built(series, tmp_path):
    """A manifest of its own for each test, which may damage it."""
    return build(series, to=tmp_path / "s.cube")


def fresh(url):
    """Open the current version, whatever this process has open."""
    return open_manifest(str(url))


def test_it_says_what_it_is(built, series, tmp_path):
    assert len(built) == 12
    assert built.name == "s"
    assert [band.name for band in built.bands] == ["nir", "red"]
    assert built.times.tolist() == np.array(["2024-01-01", "2024-02-01", "2024-03-01"], "datetime64[us]").tolist()
    assert built.grid.shape == (100, 256)
    assert built.grid.crs == "EPSG:32633"
    assert repr(built) == f"<Manifest 's' {built.version}: 12 sources, 2 bands, {(tmp_path / 's.cube').as_posix()}>"


def test_a_row_holds_what_the_header_says(built, series):
    table = built.source_table().to_pylist()
    for row in table:
        path = Path(row["href"])
        with rasterio.open(path) as oracle:
            assert (row["height"], row["width"]) == oracle.shape
            assert row["transform"] == list(oracle.transform)[:6]
            assert row["dtype"] == oracle.dtypes[0]
            assert row["nodata"] == "0"
            assert row["column"] == round((oracle.transform.c - 500000) / 10)
        assert row["size"] == path.stat().st_size
        assert row["time"].strftime("%Y%m%d") in path.name
        assert row["bands"][0]["name"] in path.name
    assert {row["href"] for row in table} == {path.as_posix() for path in series.iterdir()}


def test_tile_tables_are_those_of_the_files(built):
    for source in range(len(built)):
        facts, image = built.facts(source), built.image(source)
        assert image.offsets.shape == image.lengths.shape == (1, 2, 2)
        data = Path(facts.href).read_bytes()
        assert image.offsets.min() > 0
        assert (image.offsets + image.lengths).max() <= len(data)


def test_footprints_are_geoparquet_polygons_in_longitude_and_latitude(built):
    import shapely

    name = next(Path(built.url).glob("sources-*.parquet"))
    geo = json.loads(pq.read_schema(name).metadata[b"geo"])
    assert geo["primary_column"] == "geometry"
    for row in built.source_table().to_pylist():
        polygon = shapely.from_wkb(row["geometry"])
        with rasterio.open(row["href"]) as oracle:
            expected = transform_bounds(oracle.crs, "OGC:CRS84", *oracle.bounds)
        np.testing.assert_allclose(polygon.bounds, expected, atol=1e-5)


def test_the_same_archive_is_the_same_version(series, tmp_path):
    versions = {
        build(series, to=tmp_path / "one" / "s.cube").version,
        build(series, to=tmp_path / "two" / "s.cube").version,
    }
    assert len(versions) == 1


def test_an_old_version_stays_readable_beside_the_new(series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "archive")
    old = build(folder, to=tmp_path / "s.cube")
    before = read_all(old)
    write_series(folder, dates=("20240401",))
    new = build(folder, to=tmp_path / "s.cube")
    assert new.version != old.version
    assert fresh(new.url).version == new.version
    assert len(open_manifest(old.url, old.version).times) == 3
    assert len(new.times) == 4
    np.testing.assert_array_equal(read_all(new)[:3], before)


def test_an_archive_that_moves_with_its_manifest_is_found(series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "here" / "archive")
    built = build(folder, to=tmp_path / "here" / "archive.cube")
    expected = read_all(built)
    assert built.source_table()["href"][0].as_py().startswith("archive/")
    (tmp_path / "here").rename(tmp_path / "there")
    np.testing.assert_array_equal(read_all(fresh(tmp_path / "there" / "archive.cube")), expected)


def test_a_manifest_opens_over_http_and_finds_its_sources_there(series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "root" / "archive")
    expected = read_all(build(folder, to=tmp_path / "root" / "archive.cube"))
    with ObjectStore(tmp_path / "root") as store:
        remote = fresh(f"{store.url}/archive.cube/")
        assert not [path for path in store.counts().paths if path.endswith(".tif")]
        assert remote.facts(0).href.startswith(f"{store.url}/archive/")
        np.testing.assert_array_equal(read_all(remote), expected)
        gone = f"{store.url}/nothing.cube"
        with pytest.raises(ManifestError, match=r"nothing\.cube holds no manifest \(manifest\.json is not there\)"):
            fresh(gone)


def test_it_is_kept_open_by_its_version(built):
    with trace() as asked:
        again = open_manifest(built.url, built.version)
    assert again is built
    assert asked.requests == 0
    with trace() as asked:
        assert open_manifest(built.url) is built
    assert asked.requests == 1, "only the pointer is read again"


def test_only_so_many_are_kept_open(series, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBE_OPEN_MANIFESTS", "2")
    get_settings.cache_clear()
    built = [build(series, to=tmp_path / f"{i}.cube") for i in range(3)]
    monkeypatch.undo()
    get_settings.cache_clear()
    assert open_manifest(built[2].url, built[2].version) is built[2]
    assert open_manifest(built[0].url, built[0].version) is not built[0]


def test_threads_may_share_one(built):
    def one(seed):
        source = seed % len(built)
        with rasterio.open(built.facts(source).href) as oracle:
            size = (oracle.height, oracle.width)
        image = built.image(source)
        return (image.height, image.width) == size

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(48)))


def test_threads_that_open_it_at_once_get_the_same_one(series, tmp_path):
    built = build(series, to=tmp_path / "s.cube")
    copy = shutil.copytree(built.url, tmp_path / "copy.cube")
    barrier = threading.Barrier(8)

    def one(_):
        barrier.wait()
        return open_manifest(str(copy))

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(one, range(8))))) == 1


def test_bands_by_name_alias_and_neither(series, tmp_path):
    items = [
        {
            "type": "Feature",
            "id": "one",
            "properties": {"datetime": "2024-01-01T00:00:00Z"},
            "assets": {
                key: {
                    "href": (series / f"t0_20240101_{name}.tif").as_posix(),
                    "type": "image/tiff; application=geotiff",
                    "eo:bands": [{"name": key, "common_name": name}],
                }
                for key, name in (("B04", "red"), ("B08", "nir"))
            },
        }
    ]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    manifest = build(tmp_path / "items.json")
    assert manifest.band("red") is manifest.band("B04")
    with pytest.raises(SelectionError, match="band 'B05' was asked for; 'items' has red, nir"):
        manifest.band("B05")


@pytest.fixture
def named(series, tmp_path):
    """Return `make(**aliases)`: a manifest of bands of these names."""

    def make(**aliases):
        path = next(series.glob("t0_20240101_red.tif"))
        (scanned,), _ = scan_sources([Source(href=path.as_posix(), item="a")])
        shape = (scanned.header.levels[0].height, scanned.header.levels[0].width)
        extent = Extent(href="a", crs="EPSG:32633", transform=tuple(scanned.header.transform)[:6], shapes=(shape,))
        member = Member(scanned=scanned, bands=tuple((name, 0) for name in aliases), row=0, column=0)
        bands = [Band(name=name, dtype="uint16", nodata=0, aliases=names) for name, names in aliases.items()]
        folder = str(tmp_path / "a.cube")
        write_manifest(folder, name="a", members=[member], bands=bands, grid=common_grid([extent]), attributes={})
        return fresh(folder)

    return make


def test_an_alias_of_two_bands_is_refused(named):
    with pytest.raises(SelectionError, match="'B' may mean one, two; ask for one of those"):
        named(one=("B",), two=("B",)).band("B")


def test_other_capitals_will_do_where_they_leave_no_doubt(named):
    manifest = named(scl=(), B04=("red",), b04=("RED",))
    assert manifest.band("SCL").name == "scl"
    assert manifest.band("B04").name == "B04"
    assert manifest.band("b04").name == "b04"
    assert manifest.band("RED").name == "b04"
    with pytest.raises(SelectionError, match="band 'Red' was asked for; 'a' has scl, B04, b04"):
        manifest.band("Red")


def test_other_capitals_of_two_bands_are_refused(named):
    with pytest.raises(SelectionError, match="'Nir' may mean nir, NIR; ask for one of those"):
        named(nir=(), NIR=()).band("Nir")


def test_the_parent_of_a_manifest():
    assert parent("/data/s.cube") == "/data"
    assert parent("/s.cube") == "/"
    assert parent("https://host/a/s.cube/?sig=1") == "https://host/a"


# What is absent, damaged or newer.


def edit(path, **changes):
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, **changes}))


def test_a_folder_without_one_is_told(tmp_path):
    with pytest.raises(
        ManifestError, match=r"holds no manifest \(manifest\.json is not there\); build one with `cube build`"
    ):
        fresh(tmp_path)
    with pytest.raises(ManifestError, match=r"nothing\.cube holds no manifest"):
        fresh(tmp_path / "nothing.cube")


def test_a_build_that_was_interrupted_is_no_manifest_and_can_be_repeated(built, series):
    folder = Path(built.url)
    (folder / "manifest.json").unlink()
    with pytest.raises(ManifestError, match=r"holds no manifest \(manifest\.json is not there\)"):
        fresh(folder)
    (folder / ".snapshot-x.json.tmp").write_text("{")
    assert build(series, to=folder).version == built.version


@pytest.mark.parametrize("text", ["", "{", '{"format": "cogcube-manif', "[]", "null", "\x00\x01"])
def test_a_half_written_pointer_is_told(built, text):
    (Path(built.url) / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"manifest\.json is not (JSON|a manifest)"):
        fresh(built.url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has manifest schema 2; this release reads 1: upgrade cogcube"),
        ({"schema": None}, "has manifest schema None; this release reads 1"),
        ({"format": "zarr"}, "is not a cube's manifest: its format is 'zarr', not 'cogcube-manifest'"),
        ({"version": None}, "names no version"),
        ({"version": "../../etc"}, "names no version"),
        ({"version": "0123456789abcdef"}, r"holds no manifest \(snapshot-0123456789abcdef\.json is not there\)"),
    ],
)
def test_a_pointer_of_another_kind_is_told(built, changes, message):
    edit(Path(built.url) / "manifest.json", **changes)
    with pytest.raises(ManifestError, match=message):
        fresh(built.url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 7}, "has manifest schema 7; this release reads 1: upgrade cogcube"),
        ({"format": "x"}, "is not a cube's manifest"),
        ({"cube": {}}, r"is damaged \(KeyError: .*\); build it again"),
        ({"cube": None}, "is damaged"),
        ({"parts": [{}]}, "is damaged"),
        ({"parts": []}, "is damaged"),
        ({"parts": [{"sources": "sources-x.parquet", "tiles": "t", "rows": 1}]}, r"sources-x\.parquet is missing"),
    ],
)
def test_a_damaged_snapshot_is_told(built, tmp_path, changes, message):
    copy = shutil.copytree(built.url, tmp_path / "copy.cube")  # another URL: nothing of it is open
    edit(copy / f"snapshot-{built.version}.json", **changes)
    with pytest.raises(ManifestError, match=message):
        fresh(copy)


@pytest.mark.parametrize("damage", ["delete", "cut", "empty", "garble"])
@pytest.mark.parametrize("kind", ["sources", "tiles"])
def test_a_damaged_table_is_told(built, tmp_path, kind, damage):
    copy = shutil.copytree(built.url, tmp_path / "copy.cube")
    path = next(copy.glob(f"{kind}-*.parquet"))
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "garble":
        path.write_bytes(data[:4] + bytes(255 - byte for byte in data[4 : len(data) // 2]) + data[len(data) // 2 :])
    else:
        path.write_bytes(b"" if damage == "empty" else data[: len(data) // 2])
    expected = "is missing from the manifest" if damage == "delete" else "of the manifest is damaged"
    with pytest.raises(ManifestError, match=rf"{kind}-\w+\.parquet {expected}"):
        read_all(fresh(copy))


def test_a_manifest_that_may_not_be_read_is_told(tmp_path):
    with pytest.raises(ManifestError, match=r"the manifest ftp://host/a\.cube cannot be read: no store reads ftp://"):
        fresh("ftp://host/a.cube")


def test_an_absurdly_large_pointer_is_not_read(built, monkeypatch):
    (Path(built.url) / "manifest.json").write_text(" " * 5000)
    monkeypatch.setenv("CUBE_MAX_MANIFEST_JSON_BYTES", "1024")
    get_settings.cache_clear()
    with pytest.raises(ManifestError, match="has 5000 bytes; at most 1024 are read"):
        fresh(built.url)
    monkeypatch.undo()
    get_settings.cache_clear()


def test_errors_of_reading_one_are_not_read_errors(tmp_path):
    with pytest.raises(ManifestError) as caught:
        fresh(tmp_path)
    assert not isinstance(caught.value, ReadError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_process_that_only_reads_does_without_pandas(built):
    """It takes a second to import, and pyarrow does so at the slightest occasion."""
    code = (
        "import sys\n"
        "from cube.grid import Window\n"
        "from cube.reader import read_block\n"
        "from cube.spec import CubeSpec\n"
        f"spec = CubeSpec(manifest={built.url!r}, version={built.version!r})\n"
        "read_block(spec, ['red'], (0, 2), Window(top=0, bottom=100, left=0, right=200))\n"
        "assert not {'pandas', 'xarray', 'rasterio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
