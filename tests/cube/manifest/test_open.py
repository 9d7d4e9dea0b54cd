from __future__ import annotations

import json
import math
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from cube.errors import ManifestError, ReadError, SelectionError, SourceError
from cube.grid import Extent, Grid, Window, lay_out
from cube.io.trace import trace
from cube.manifest.open import Contribution, open_manifest, open_spec, parent
from cube.manifest.snapshot import Member, write_manifest
from cube.scan import scan_sources
from cube.settings import get_settings
from cube.source import Source, SourceBand
from cube.spec import Band, CubeSpec, Placing
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

DATES = ("20240101", "20240201", "20240301")
OLD = {schema: Path(__file__).parents[2] / "data" / f"schema{schema}" / "scenes.cube" for schema in (1, 2)}


def write_series(folder, dates=DATES, bands=("red", "nir"), tiles=2):
    seed = 0
    for date in dates:
        for band in bands:
            for tile in range(tiles):
                write_cog(
                    folder / f"t{tile}_{date}_{band}.tif",
                    unique_values((100, 128), "uint16", seed),
                    transform=from_origin(500000 + tile * 1280, 5000000, 10, 10),
                    driver="GTiff",
                    nodata=0,
                    blockxsize=64,
                    blockysize=64,
                )
                seed += 1
    return folder


def scan(paths):
    sources = []
    for path in sorted(paths):
        _, date, band = path.stem.split("_")
        time = np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}", "us")
        sources.append(Source(href=path.as_posix(), item=path.stem, asset=band, time=time, properties={"a": 1}))
    scanned, errors = scan_sources(sources)
    assert not errors
    return scanned


def place(scanned):
    """Return the grids and the members of some scans, a band each."""
    extents = [
        Extent(
            href=each.source.href,
            crs="EPSG:32633",
            transform=tuple(each.header.transform)[:6],
            shapes=((each.header.levels[0].height, each.header.levels[0].width),),
        )
        for each in scanned
    ]
    layout = lay_out(extents)
    members = [
        Member(
            scanned=each,
            bands=(SourceBand(name=each.source.asset, sample=0, nodata=0, scale=0.5, offset=-1.0),),
            grid=int(grid),
            row=int(row),
            column=int(column),
        )
        for each, grid, row, column in zip(scanned, layout.grid, layout.rows, layout.columns, strict=True)
    ]
    return layout.grids, members


def build(archive, to):
    grids, members = place(scan(archive.glob("*.tif")))
    bands = [Band(name=name, dtype="uint16", nodata=0, scale=0.5, offset=-1.0) for name in ("nir", "red")]
    name = to.name.removesuffix(".cube")
    version = write_manifest(str(to), name=name, members=members, bands=bands, grids=grids, attributes={"title": "A"})
    return open_manifest(str(to), version)


def whole(manifest):
    height, width = manifest.grid.shape
    return Window(top=0, bottom=height, left=0, right=width)


def read_all(manifest, band="red"):
    """Return all that a manifest says of a band: (href, contribution, place, offsets, lengths) by source."""
    found = manifest.select(band, range(len(manifest.times)), whole(manifest), 0)
    result = []
    for each in found:
        facts, image = manifest.facts(each.source), manifest.image(each.source)
        stamp = str(manifest.times[each.time])
        place = (facts.row, facts.column, image.height, image.width)
        said = (stamp, each.sample, each.nodata, each.scale, each.offset)
        result.append((facts.href, said, place, image.offsets.tolist(), image.lengths.tolist()))
    return result


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
    assert built.attributes == {"title": "A"}
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
        assert row["bands"] == [
            {"name": path.stem[12:], "sample": 0, "time": None, "nodata": "0", "scale": 0.5, "offset": -1.0}
        ]
        assert (row["path"], row["reason"], row["decision"], row["validity"]) == ("fast", None, None, None)
        assert (row["photometric"], row["masks"], row["levels"]) == (1, False, 1)
    assert {row["href"] for row in table} == {path.as_posix() for path in series.iterdir()}


def test_facts_are_those_of_the_scan(built, series):
    scanned = {each.source.href: each for each in scan(series.glob("*.tif"))}
    for source in range(len(built)):
        facts = built.facts(source)
        expected = scanned[facts.href]
        # The ETag of a file on a disk names an inode, which no copy has.
        assert (facts.size, facts.etag, facts.last_modified) == (expected.size, None, expected.last_modified)
        assert (facts.dtype, facts.byteorder, facts.samples, facts.interleave) == (np.dtype("u2"), "<", 1, "band")
        assert (facts.photometric, facts.validity, facts.path) == (1, None, "fast")
        image, level = built.image(source), expected.header.levels[0]
        np.testing.assert_array_equal(image.offsets, level.offsets)
        np.testing.assert_array_equal(image.lengths, level.lengths)
        assert (image.width, image.height, image.tile_width, image.tile_height) == (128, 100, 64, 64)
        assert (image.compression, image.predictor) == (level.compression, level.predictor)
        assert (image.strips, image.bits, image.tables) == (False, 0, None)


def test_levels_and_masks_that_are_not_there_are_errors_that_name_the_source(built):
    href = built.facts(3).href
    for level in (-1, 1):
        with pytest.raises(SourceError, match=rf"{href}: level {level} was asked for; it has 1, counted from 0"):
            built.image(3, level)
    with pytest.raises(SourceError, match=rf"{href}: level 0 has no mask image"):
        built.mask(3)


def test_rows_are_in_the_order_of_reading(built):
    rows = built.source_table().to_pylist()
    keys = [(row["bands"][0]["name"], row["column"], row["time"]) for row in rows]
    assert keys == sorted(keys)


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
    assert [row for row in read_all(new) if "20240401" not in row[0]] == before
    assert read_all(open_manifest(old.url, old.version)) == before


def test_an_archive_that_moves_with_its_manifest_is_found(series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "here" / "archive")
    built = build(folder, to=tmp_path / "here" / "archive.cube")
    assert built.source_table()["href"][0].as_py().startswith("archive/")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = fresh(tmp_path / "there" / "archive.cube")
    assert all(Path(moved.facts(source).href).is_file() for source in range(len(moved)))


def test_a_manifest_opens_over_http_in_few_requests(series, tmp_path):
    folder = shutil.copytree(series, tmp_path / "root" / "archive")
    built = build(folder, to=tmp_path / "root" / "archive.cube")
    expected = read_all(built)
    (part,) = built.parts
    with ObjectStore(tmp_path / "root") as store:
        remote = fresh(f"{store.url}/archive.cube/")
        first = {"manifest.json": 1, f"snapshot-{built.version}.json": 1, part.sources: 1}
        assert store.counts().paths == {f"archive.cube/{name}": count for name, count in first.items()}
        found = read_all(remote)
        assert store.counts().paths == {f"archive.cube/{name}": 1 for name in (*first, part.tiles)}
        assert [each[1:] for each in found] == [each[1:] for each in expected]
        assert remote.facts(0).href.startswith(f"{store.url}/archive/")
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


@pytest.fixture
def named(series, tmp_path):
    """Return `make(**aliases)`: a manifest of bands of these names."""

    def make(**aliases):
        path = next(series.glob("t0_20240101_red.tif"))
        (scanned,), _ = scan_sources([Source(href=path.as_posix(), item="a")])
        shape = (scanned.header.levels[0].height, scanned.header.levels[0].width)
        extent = Extent(href="a", crs="EPSG:32633", transform=tuple(scanned.header.transform)[:6], shapes=(shape,))
        member = Member(
            scanned=scanned, bands=tuple(SourceBand(name=name, sample=0) for name in aliases), row=0, column=0
        )
        bands = [Band(name=name, dtype="uint16", nodata=0, aliases=names) for name, names in aliases.items()]
        folder = str(tmp_path / "a.cube")
        write_manifest(folder, name="a", members=[member], bands=bands, grids=lay_out([extent]).grids, attributes={})
        return fresh(folder)

    return make


def test_bands_by_name_alias_and_neither(named):
    manifest = named(red=("B04",), nir=("B08",))
    assert manifest.band("red") is manifest.band("B04")
    with pytest.raises(SelectionError, match="band 'B05' was asked for; 'a' has red, nir"):
        manifest.band("B05")


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
    (folder / "tiles-0123456789abcdef.parquet").write_bytes(b"PAR1")
    assert build(series, to=folder).version == built.version


@pytest.mark.parametrize("text", ["", "{", '{"format": "cogcube-manif', "[]", "null", "\x00\x01"])
def test_a_half_written_pointer_is_told(built, text):
    (Path(built.url) / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"manifest\.json is not (JSON|a manifest)"):
        fresh(built.url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 4}, "has manifest schema 4; this release reads 1, 2 and 3: upgrade cogcube"),
        ({"schema": None}, "has manifest schema None; this release reads 1, 2 and 3"),
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
        ({"schema": 7}, "has manifest schema 7; this release reads 1, 2 and 3: upgrade cogcube"),
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


@pytest.mark.parametrize("schema", [1, 2, 3])
def test_a_process_that_only_reads_does_without_pandas(built, schema):
    """It takes a second to import, and pyarrow does so at the slightest occasion."""
    url = OLD.get(schema, built.url)
    code = (
        "import sys\n"
        "from cube.grid import Window\n"
        "from cube.manifest.open import open_manifest\n"
        f"manifest = open_manifest({str(url)!r})\n"
        "found = manifest.select('red', range(2), Window(top=0, bottom=100, left=0, right=200), 0)\n"
        "manifest.load([each.source for each in found])\n"
        "assert [(manifest.facts(each.source), manifest.image(each.source)) for each in found]\n"
        "assert not {'pandas', 'xarray', 'rasterio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What sources may say.


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """One real scan, to be varied."""
    folder = write_series(tmp_path_factory.mktemp("one"), dates=DATES[:1], bands=("red",), tiles=1)
    return scan(folder.glob("*.tif"))[0]


def vary(scanned, item, *, time=None, **header):
    source = replace(scanned.source, item=item, href=f"/data/{item}.tif", time=time)
    return replace(scanned, source=source, header=replace(scanned.header, **header))


def grid_of(crs="EPSG:32633", size=10.0):
    """Return a grid that is large enough for all sources."""
    transform = (size, 0.0, 500000.0, 0.0, -size, 5000000.0)
    (levels,) = lay_out([Extent(href="a", crs=crs, transform=transform, shapes=((2000, 2000),))]).grids
    return levels


def write(folder, members, bands, grids=None, **more):
    grids = [grid_of()] if grids is None else grids
    described = [Band(name=name, dtype="uint16", nodata=0) for name in bands]
    write_manifest(str(folder), name="v", members=members, bands=described, grids=grids, attributes={}, **more)
    return fresh(folder)


def test_every_source_has_its_own_encoding(scanned, tmp_path):
    encodings = [(None, 1.0, 0.0), (0, 0.0001, -0.1), (-9999, 2.0, 0.0), (-9999.5, 1.0, 0.0), (math.nan, 1.0, 5.0)]
    members = [
        Member(
            scanned=vary(scanned, f"s{i}"),
            bands=(SourceBand(name="a", sample=3, nodata=nodata, scale=scale, offset=offset),),
            row=0,
            column=i,
            decision="baseline 05.09 subtracts 1000" if i == 1 else None,
        )
        for i, (nodata, scale, offset) in enumerate(encodings)
    ]
    manifest = write(tmp_path / "v.cube", members, ["a"])
    assert manifest.times is None
    found = manifest.select("a", (0,), whole(manifest), 0)
    by_item = {manifest.facts(each.source).href[-5:-4]: each for each in found}
    for i, (nodata, scale, offset) in enumerate(encodings):
        each = by_item[str(i)]
        assert isinstance(each, Contribution)
        assert (each.sample, each.time, each.scale, each.offset) == (3, 0, scale, offset)
        assert type(each.nodata) is type(nodata)
        assert each.nodata == nodata or (math.isnan(each.nodata) and math.isnan(nodata))
    rows = {row["item"]: row for row in manifest.source_table().to_pylist()}
    assert rows["s1"]["decision"] == "baseline 05.09 subtracts 1000"
    assert rows["s2"]["decision"] is None


def test_the_bands_of_a_file_may_be_dates(scanned, tmp_path):
    years = [np.datetime64(f"{year}-01-01", "us") for year in (2020, 2021, 2022)]
    stack = tuple(SourceBand(name="cover", sample=i, time=year) for i, year in enumerate(years))
    members = [
        Member(scanned=vary(scanned, "stack"), bands=stack, row=0, column=0),
        Member(
            scanned=vary(scanned, "single", time=years[1]),
            bands=(SourceBand(name="cover", sample=0),),
            row=0,
            column=128,
        ),
    ]
    manifest = write(tmp_path / "v.cube", members, ["cover"])
    assert manifest.times.tolist() == np.array(years).tolist()
    hrefs = [Path(manifest.facts(source).href).stem for source in range(2)]

    def found(times):
        return {
            (hrefs[each.source], each.sample, each.time) for each in manifest.select("cover", times, whole(manifest), 0)
        }

    assert found([0, 1, 2]) == {("stack", 0, 0), ("stack", 1, 1), ("single", 0, 1), ("stack", 2, 2)}
    assert found([1]) == {("stack", 1, 1), ("single", 0, 1)}
    assert found([2, 0, 2]) == {("stack", 0, 0), ("stack", 2, 2)}
    assert found([]) == set()


def test_some_dated_and_some_not_is_damage(scanned, tmp_path):
    band = (SourceBand(name="a", sample=0),)
    members = [
        Member(scanned=vary(scanned, "one", time=np.datetime64("2020-01-01", "us")), bands=band, row=0, column=0),
        Member(scanned=vary(scanned, "two"), bands=band, row=0, column=0),
    ]
    with pytest.raises(ManifestError, match=r"is damaged .*some of its bands have a time and some have none"):
        write(tmp_path / "v.cube", members, ["a"])


def test_strips_tables_and_masks(scanned, tmp_path):
    full = scanned.header.levels[0]
    mask = replace(full, compression=1, offsets=full.offsets + 7, lengths=full.lengths * 0 + 3, bits=1)
    strips = replace(
        full,
        tile_width=full.width,
        tile_height=30,
        strips=True,
        tables=b"\xff\xd8\0",
        offsets=np.arange(4, dtype="u8").reshape(1, 4, 1),
        lengths=np.ones((1, 4, 1), "u8"),
    )
    small = replace(full, width=50, height=64, offsets=full.offsets[:, :1, :1], lengths=full.lengths[:, :1, :1])
    small_mask = replace(mask, width=50, height=64, offsets=mask.offsets[:, :1, :1], lengths=mask.lengths[:, :1, :1])
    band = (SourceBand(name="a", sample=0),)
    headers = {
        "a-masked": {"levels": (replace(full, mask=mask), replace(small, mask=small_mask)), "validity": "mask"},
        "b-strips": {"levels": (strips,), "photometric": 6},
        "c-partly": {"levels": (replace(full, mask=mask), small), "validity": "mask"},
        "d-alpha": {"levels": (full,), "validity": "alpha"},
    }
    members = [
        Member(scanned=vary(scanned, item, **header), bands=band, row=0, column=0) for item, header in headers.items()
    ]
    manifest = write(tmp_path / "v.cube", members, ["a"])
    assert [Path(manifest.facts(i).href).stem for i in range(4)] == list(headers)
    assert [manifest.facts(i).validity for i in range(4)] == ["mask", None, "mask", "alpha"]
    assert manifest.facts(1).photometric == 6
    for level, (expected, own) in enumerate([(mask, full), (small_mask, small)]):
        found, image = manifest.mask(0, level), manifest.image(0, level)
        assert (found.width, found.height, found.compression, found.bits) == (own.width, own.height, 1, 1)
        np.testing.assert_array_equal(found.offsets, expected.offsets)
        np.testing.assert_array_equal(found.lengths, expected.lengths)
        np.testing.assert_array_equal(image.offsets, own.offsets)
        assert image.bits == 0
    image = manifest.image(1)
    assert (image.strips, image.tables, image.tile_width, image.tile_height) == (True, b"\xff\xd8\0", 128, 30)
    assert image.offsets.shape == (1, 4, 1)
    np.testing.assert_array_equal(manifest.mask(2, 0).offsets, mask.offsets)
    with pytest.raises(SourceError, match="level 1 has no mask image"):
        manifest.mask(2, 1)
    np.testing.assert_array_equal(manifest.image(3).offsets, full.offsets)


def test_what_gdal_reads_has_a_reason_and_no_tiles(scanned, tmp_path):
    level = scanned.header.levels[0]
    empty = np.empty((0, 2, 2), "u8")
    odd = vary(scanned, "odd", levels=(replace(level, offsets=empty, lengths=empty),), needs_gdal="JBIG compression")
    manifest = write(
        tmp_path / "v.cube", [Member(scanned=odd, bands=(SourceBand(name="a", sample=0),), row=0, column=0)], ["a"]
    )
    assert manifest.facts(0).path == "gdal"
    assert manifest.source_table()["reason"].to_pylist() == ["JBIG compression"]
    image = manifest.image(0)
    assert (image.width, image.height, image.tile_width, image.tile_height) == (128, 100, 64, 64)
    assert image.offsets.shape == image.lengths.shape == (0, 2, 2)


# Selection.


@settings(max_examples=50)
@given(data=st.data())
def test_a_selection_is_what_a_look_at_every_source_finds(scanned, tmp_path_factory, data):
    days = st.integers(0, 4)
    grids = [grid_of(), grid_of(size=20.0)][: data.draw(st.integers(1, 2))]
    numbers = st.integers(0, len(grids) - 1)
    sources = data.draw(
        st.lists(
            st.tuples(days, st.sampled_from(["a", "b", "ab"]), numbers, st.integers(0, 300), st.integers(0, 300)),
            min_size=1,
            max_size=12,
        )
    )
    dated = data.draw(st.booleans())
    members = [
        Member(
            scanned=vary(
                scanned, f"s{i}", time=np.datetime64("2020-01-01", "us") + np.timedelta64(day, "D") if dated else None
            ),
            bands=tuple(SourceBand(name=name, sample=k) for k, name in enumerate(names)),
            grid=grid,
            row=row,
            column=column,
        )
        for i, (day, names, grid, row, column) in enumerate(sources)
    ]
    manifest = write(tmp_path_factory.mktemp("selection") / "v.cube", members, ["b", "a"], grids)
    axis = sorted({day for day, *_ in sources}) if dated else [0]
    top, left = data.draw(st.integers(0, 400)), data.draw(st.integers(0, 400))
    height, width = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
    times = data.draw(st.lists(st.integers(0, len(axis) - 1), max_size=6)) if dated else [0]
    band, grid = data.draw(st.sampled_from(["a", "b"])), data.draw(numbers)
    expected = {
        (f"s{i}", names.index(band), axis.index(day) if dated else 0)
        for i, (day, names, own, row, column) in enumerate(sources)
        if band in names and own == grid
        if row < top + height and row + 100 > top and column < left + width and column + 128 > left
        if not dated or axis.index(day) in times
    }
    window = Window(top=top, bottom=top + height, left=left, right=left + width)
    found = manifest.select(band, times, window, 0, grid)
    assert [each.source for each in found] == sorted(each.source for each in found)
    items = [(Path(manifest.facts(each.source).href).stem, each.sample, each.time) for each in found]
    assert len(items) == len(set(items))
    assert set(items) == expected
    of_band = [own for _, names, own, *_ in sources if band in names]
    assert manifest.lattices([band]) == {own: of_band.count(own) for own in set(of_band)}


# Several grids.


@pytest.fixture
def mixed(scanned, tmp_path):
    """Three sources at 10 m and one at 20 m in one zone, two in another; "b" on the finest grid alone."""
    places = [("s0", "ab", 0, 0, 0), ("s1", "ab", 0, 100, 128), ("s2", "a", 1, 30, 40), ("s3", "a", 2, 0, 0)]
    places += [("s4", "a", 2, 0, 128), ("s5", "a", 0, 0, 128)]
    members = [
        Member(
            scanned=vary(scanned, item, time=np.datetime64("2020-01-01T10:00", "us") + i * np.timedelta64(9, "h")),
            bands=tuple(SourceBand(name=name, sample=k) for k, name in enumerate(names)),
            grid=grid,
            row=row,
            column=column,
        )
        for i, (item, names, grid, row, column) in enumerate(places)
    ]
    grids = [grid_of(), grid_of(size=20.0), grid_of(crs="EPSG:32634")]
    return write(tmp_path / "v.cube", members, ["a", "b"], grids)


def items_of(manifest):
    return [Path(href).stem for href in manifest.column("href")]


def test_the_grids_are_listed_where_none_is_chosen(mixed):
    assert (len(mixed.grids), mixed.on, mixed.said) == (3, Placing(lattice=None), None)
    expected = (
        "the sources of 'v' lie on 3 grids:\n"
        "  3 in EPSG:32633, pixels of 10 x -10 from (500000, 5000000)\n"
        "  2 in EPSG:32634, pixels of 10 x -10 from (500000, 5000000)\n"
        "  1 in EPSG:32633, pixels of 20 x -20 from (500000, 5000000)\n"
        "say which pixels you want (crs= and resolution=, like=, or geobox=), or choose bands of one grid"
    )
    for ask in (
        lambda: mixed.grid,
        lambda: mixed.levels,
        lambda: mixed.grid_at(0),
        mixed.require_lattice,
        lambda: mixed.select("b", [0], Window(top=0, bottom=9, left=0, right=9), 0),
        lambda: mixed.lattice_of(["a"]),
        lambda: mixed.lattice_of(["b", "a"]),
    ):
        with pytest.raises(SelectionError) as caught:
            ask()
        assert str(caught.value) == expected
    assert mixed.lattice_of(["b"]) == 0


def test_of_many_grids_those_of_most_sources_are_listed(scanned, tmp_path):
    members = [
        Member(scanned=vary(scanned, f"s{i}"), bands=(SourceBand(name="a", sample=0),), grid=i % 12, row=0, column=0)
        for i in range(12 + 3)
    ]
    manifest = write(tmp_path / "v.cube", members, ["a"], [grid_of(size=10.0 + i) for i in range(12)])
    with pytest.raises(SelectionError) as caught:
        _ = manifest.grid
    lines = str(caught.value).splitlines()
    assert [line[:15] for line in lines[1:5]] == ["  2 in EPSG:326"] * 3 + ["  1 in EPSG:326"]
    assert lines[9] == "  and 4 more"
    assert len(lines) == 11


def test_a_source_has_its_place_on_its_own_grid(mixed):
    items = items_of(mixed)
    assert mixed.lattices(["a"]) == {0: 3, 1: 1, 2: 2}
    assert mixed.lattices(["b"]) == {0: 2}
    crss = dict(zip(items, mixed.column("crs"), strict=True))
    for i, item in enumerate(items):
        number = {"s2": 1, "s3": 2, "s4": 2}.get(item, 0)
        assert mixed.grid_of(i) == mixed.grids[number].full
        assert crss[item] == mixed.grid_of(i).crs
    boxes = mixed.boxes(["a"])
    assert {number: sorted(map(tuple, of_grid.tolist())) for number, of_grid in boxes.items()} == {
        0: [(0, 100, 0, 128), (0, 100, 128, 256), (100, 200, 128, 256)],
        1: [(30, 130, 40, 168)],
        2: [(0, 100, 0, 128), (0, 100, 128, 256)],
    }
    assert {number: len(of_grid) for number, of_grid in mixed.boxes(["b"]).items()} == {0: 2}


def test_footprints_are_by_the_crs_of_each_source(mixed, scanned):
    import shapely

    left, bottom, right, top = 500000, 5000000 - 1000, 500000 + 1280, 5000000  # by the header, which is one
    for row in mixed.source_table().to_pylist():
        expected = transform_bounds(row["crs"], "OGC:CRS84", left, bottom, right, top)
        np.testing.assert_allclose(shapely.from_wkb(row["geometry"]).bounds, expected, atol=1e-5)


def test_rows_lie_together_by_their_grid(mixed):
    rows = mixed.source_table().to_pylist()
    keys = [(len(row["bands"]), row["grid"]) for row in rows]
    assert [key for i, key in enumerate(keys) if key not in keys[:i]] == [
        key for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key
    ]


def test_a_cube_on_one_of_its_grids_has_no_other(mixed):
    window = Window(top=0, bottom=2000, left=0, right=2000)
    items = items_of(mixed)
    for number, levels in enumerate(mixed.grids):
        chosen = mixed.placed(Placing(lattice=number))
        assert (chosen.grid, chosen.levels, chosen.require_lattice()) == (levels.full, levels.grids, number)
        assert (len(chosen), chosen.times.tolist()) == (6, mixed.times.tolist())
        found = [items[each.source] for each in chosen.select("a", range(6), window, 0)]
        assert sorted(found) == [["s0", "s1", "s5"], ["s2"], ["s3", "s4"]][number]
    assert mixed.on.lattice is None, "it is another value"
    for number in (-1, 3):
        with pytest.raises(ManifestError, match=rf"grid {number} of the sources was asked for; 'v' has 3"):
            mixed.placed(Placing(lattice=number))


def test_a_cube_on_a_grid_of_its_own_is_on_none_of_its_sources(mixed):
    target = Grid(crs="EPSG:3857", transform=(30.0, 0.0, 0.0, 0.0, -30.0, 0.0), width=7, height=5)
    chosen = mixed.placed(Placing(grid=target, lattice=None))
    assert (chosen.grid, chosen.levels) == (target, (target,))
    with pytest.raises(SelectionError, match="level 1 was asked for; 'v' has levels 0 to 0"):
        chosen.grid_at(1)
    with pytest.raises(SelectionError, match=r"'v' is on a grid of its own \(EPSG:3857, pixels of 30 x -30\)"):
        chosen.require_lattice()


def test_a_spec_is_opened_as_it_says(mixed, built):
    assert open_spec(CubeSpec(manifest=built.url, version=built.version)) is built
    assert open_spec(CubeSpec(manifest=built.url, version=built.version, on=Placing())) is built
    target = Grid(crs="EPSG:3857", transform=(30.0, 0.0, 0.0, 0.0, -30.0, 0.0), width=7, height=5)
    on = Placing(grid=target, lattice=None, groupby="solar_day", longitude=90.0)
    spec = CubeSpec(manifest=mixed.url, version=mixed.version, on=on)
    assert open_spec(spec).grid == target
    assert open_spec(spec) is open_spec(replace(spec, on=replace(on))), "it is kept"
    assert open_spec(replace(spec, on=Placing(lattice=1))).grid == mixed.grids[1].full
    by_day = Placing(lattice=1, groupby="solar_day", longitude=90.0)
    assert (open_spec(replace(spec, on=by_day)).steps, mixed.steps) == (3, 6)


def test_steps_are_days_of_the_sun_or_items(mixed):
    """Sources are 9 hours apart, from 10:00."""
    names = items_of(mixed)

    def steps(**on):
        manifest = mixed.placed(Placing(**on))
        window, found = Window(top=0, bottom=2000, left=0, right=2000), {}
        for grid in range(3):
            for each in manifest.select("a", range(manifest.steps), window, 0, grid):
                found.setdefault(each.time, set()).add(names[each.source])
        return manifest.times.tolist(), [sorted(found[time]) for time in range(manifest.steps)]

    own = mixed.times.tolist()
    assert steps() == (own, [[f"s{i}"] for i in range(6)])
    greenwich = [["s0", "s1"], ["s2", "s3", "s4"], ["s5"]]
    assert steps(groupby="solar_day", longitude=0.0) == ([own[0], own[2], own[5]], greenwich)
    # The sun is 12 hours ahead at 180 degrees east: there 19:00 is the next day's morning.
    beyond = [["s0"], ["s1", "s2"], ["s3", "s4", "s5"]]
    assert steps(groupby="solar_day", longitude=180.0) == ([own[0], own[1], own[3]], beyond)
    assert steps(groupby="id") == (own, [[f"s{i}"] for i in range(6)])


def test_items_of_one_time_are_steps_of_their_own(scanned, tmp_path):
    noon, band = np.datetime64("2020-01-01T12:00", "us"), (SourceBand(name="a", sample=0),)
    times = {"y": noon, "x": noon, "z": noon - np.timedelta64(1, "D")}
    members = [
        Member(scanned=vary(scanned, item, time=time), bands=band, row=0, column=0) for item, time in times.items()
    ]
    manifest = write(tmp_path / "v.cube", members, ["a"])
    assert manifest.steps == 2
    by_item = manifest.placed(Placing(groupby="id"))
    assert by_item.times.tolist() == [times[item].item() for item in "zxy"]
    found = by_item.select("a", [0, 1, 2], whole(manifest), 0)
    assert {Path(manifest.facts(each.source).href).stem: each.time for each in found} == {"z": 0, "x": 1, "y": 2}


def test_sources_come_first_by_time_item_and_href(scanned, tmp_path):
    def member(item, name, day, cloud):
        time = np.datetime64("2020-01-01", "us") + np.timedelta64(day, "D")
        one = vary(scanned, item, time=time)
        properties = {} if cloud is None else {"eo:cloud_cover": cloud}
        source = replace(one.source, href=f"/data/{name}.tif", properties=properties)
        return Member(scanned=replace(one, source=source), bands=(SourceBand(name="a", sample=0),), row=0, column=0)

    members = [
        member("item2", "n0", 0, 50.0),
        member("item1", "n2", 0, 10),
        member("item1", "n1", 0, 0),
        member("item0", "n3", 1, None),
        member("item3", "n4", 2, 50.0),
    ]
    manifest = write(tmp_path / "v.cube", members, ["a"])
    names = items_of(manifest)
    order = {
        how: [names[i] for i in np.argsort(manifest.ranks(how)).tolist()]
        for how in ("first", "last", "newest", "least_cloudy")
    }
    assert order == {
        "first": ["n1", "n2", "n0", "n3", "n4"],
        "last": ["n4", "n3", "n0", "n2", "n1"],
        "newest": ["n4", "n3", "n1", "n2", "n0"],
        "least_cloudy": ["n1", "n2", "n0", "n4", "n3"],
    }
    for how in order:
        assert sorted(manifest.ranks(how).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("left", [2, 0])
def test_a_source_on_a_grid_that_is_not_there_is_damage(mixed, tmp_path, left):
    copy = shutil.copytree(mixed.url, tmp_path / "copy.cube")
    path = copy / f"snapshot-{mixed.version}.json"
    snapshot = json.loads(path.read_text())
    del snapshot["cube"]["grids"][left:]
    path.write_text(json.dumps(snapshot))
    with pytest.raises(ManifestError, match=r"is damaged .*its sources lie on grids that it does not describe"):
        fresh(copy)


@pytest.mark.parametrize("number", [3, 2**31 - 1, -1, -(2**31)])
def test_a_number_of_a_grid_that_there_is_not_is_damage(mixed, tmp_path, number):
    copy = shutil.copytree(mixed.url, tmp_path / "copy.cube")
    (path,) = copy.glob("sources-*.parquet")
    table = pq.read_table(path)
    numbers = pa.array([number, *table["grid"].to_pylist()[1:]], pa.int32())
    pq.write_table(table.set_column(table.schema.get_field_index("grid"), "grid", numbers), path)
    snapshot = copy / f"snapshot-{mixed.version}.json"
    data = json.loads(snapshot.read_text())
    data["parts"][0]["sources_bytes"] = path.stat().st_size
    snapshot.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=r"is damaged .*its sources lie on grids that it does not describe"):
        fresh(copy)


# Older releases.


def test_a_manifest_of_schema_1_reads_as_it_did():
    manifest = fresh(OLD[1])
    assert (manifest.schema, manifest.name, len(manifest), manifest.grid.shape) == (1, "scenes", 4, (48, 40))
    assert manifest.times.tolist() == np.array(["2024-01-01", "2024-02-11"], "datetime64[us]").tolist()
    for band in ("nir", "red"):
        found = manifest.select(band, [0, 1], whole(manifest), 0)
        assert [(each.sample, each.time, each.nodata, each.scale, each.offset) for each in found] == [
            (0, time, 0, 0.0001, -0.1) for time in (0, 1)
        ]
        for each in found:
            facts, image = manifest.facts(each.source), manifest.image(each.source)
            with rasterio.open(facts.href) as oracle:
                assert oracle.dtypes == (facts.dtype.name,)
                assert oracle.shape == (image.height, image.width)
                assert image.offsets[0, 2, 1] == int(oracle.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
                assert image.lengths[0, 2, 1] == int(oracle.get_tag_item("BLOCK_SIZE_1_2", "TIFF", bidx=1))
            data = Path(facts.href).read_bytes()
            assert facts.size == len(data)
            assert (image.offsets + image.lengths).max() <= len(data)
            assert (facts.photometric, facts.validity, facts.path) == (1, None, "fast")
            assert (image.strips, image.bits, image.tables) == (False, 0, None)
            with pytest.raises(SourceError, match="no mask image"):
                manifest.mask(each.source)
    rows = manifest.source_table().to_pylist()
    assert rows[0]["bands"] == [
        {"name": "nir", "sample": 0, "time": None, "nodata": "0", "scale": 0.0001, "offset": -0.1}
    ]
    assert {(row["photometric"], row["validity"], row["path"], row["masks"], row["grid"]) for row in rows} == {
        (1, None, "fast", False, 0)
    }


def test_a_manifest_of_schema_2_reads_as_it_did():
    """Of two parts: a source of the first is gone, and the grid has grown upwards and to the left since."""
    manifest = fresh(OLD[2])
    assert (manifest.schema, manifest.name, len(manifest), manifest.grid.shape) == (2, "scenes", 4, (64, 80))
    assert [part.offsets for part in manifest.parts] == [((16, 40),), ((0, 0),)]
    assert (len(manifest.grids), manifest.on, manifest.lattices(["nir", "red"])) == (1, Placing(), {0: 4})
    assert manifest.built["inferred"] == "scene_{time:%Y%m%d}_{band}.tif"
    rows = {row["href"]: row for row in manifest.source_table().to_pylist()}
    found = {}
    for band in ("nir", "red"):
        for each in manifest.select(band, [0, 1], whole(manifest), 0):
            facts, image = manifest.facts(each.source), manifest.image(each.source)
            assert (each.sample, each.nodata, each.scale, each.offset) == (0, 0, 0.0001, -0.1)
            assert manifest.grid_of(each.source) == manifest.grid
            path = Path(facts.href)
            found[path.name] = (band, each.time, facts.row, facts.column)
            assert (rows[path.name]["row"], rows[path.name]["column"]) == (facts.row, facts.column)
            with rasterio.open(path) as oracle:
                assert oracle.shape == (image.height, image.width)
                assert manifest.grid.transform[2] + facts.column * 10 == oracle.transform.c
                assert manifest.grid.transform[5] - facts.row * 10 == oracle.transform.f
                assert image.offsets[0, 2, 1] == int(oracle.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
            assert facts.size == path.stat().st_size
            assert image.lengths[0, 0, 0] == 0, "a tile that the file leaves out"
    assert found == {
        "scene_20240101_nir.tif": ("nir", 0, 16, 40),
        "scene_20240101_red.tif": ("red", 0, 16, 40),
        "scene_20240211_red.tif": ("red", 1, 16, 40),
        "beside_20240211_red.tif": ("red", 1, 0, 0),
    }
    assert {row["grid"] for row in rows.values()} == {0}


# Other programs.


@pytest.fixture
def parquet(built):
    (path,) = Path(built.url).glob("sources-*.parquet")
    return path


def test_geopandas_reads_the_sources(parquet, built):
    import geopandas

    frame = geopandas.read_parquet(parquet)
    assert frame.crs == "OGC:CRS84"
    assert len(frame) == 12
    assert frame.geometry.is_valid.all()
    assert frame[frame.geometry.intersects(frame.geometry.iloc[0])]["href"].nunique() == 12  # neighbours share an edge
    assert sorted(frame["href"]) == sorted(built.source_table()["href"].to_pylist())
    assert frame["bands"][0][0]["scale"] == 0.5


def test_duckdb_reads_the_sources(parquet):
    import duckdb

    query = (
        "select band.name, count(*), epoch_us(min(time)), sum(size) > 0 from "
        f"(select unnest(bands) as band, time, size from '{parquet.as_posix()}') group by 1 order by 1"
    )
    rows = duckdb.sql(query).fetchall()
    assert [(name, count, positive) for name, count, _, positive in rows] == [("nir", 6, True), ("red", 6, True)]
    assert {np.datetime64(first, "us") for _, _, first, _ in rows} == {np.datetime64("2024-01-01")}


def test_duckdb_finds_the_tiles_of_a_source(parquet, built):
    import duckdb

    (tiles,) = Path(built.url).glob("tiles-*.parquet")
    query = (
        f"select tile.offsets, tile.lengths from '{tiles.as_posix()}' tile join "
        f"(select file_row_number as number, href from read_parquet('{parquet.as_posix()}', file_row_number=true)) "
        f"source on tile.source = source.number where source.href = '{built.facts(7).href}' and tile.level = 0"
    )
    ((offsets, lengths),) = duckdb.sql(query).fetchall()
    assert offsets == built.image(7).offsets.ravel().tolist()
    assert lengths == built.image(7).lengths.ravel().tolist()


def test_polars_reads_the_sources(parquet, built):
    import polars as pl

    frame = pl.scan_parquet(parquet).filter(pl.col("dtype") == "uint16").collect()
    assert frame["href"].to_list() == built.source_table()["href"].to_pylist()
    names = frame.select("bands").explode("bands").unnest("bands")["name"].to_list()
    assert names == ["nir"] * 6 + ["red"] * 6
