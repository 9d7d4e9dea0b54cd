"""What `explain` counts is what a store is asked: the same requests, the same bytes, for every way to read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rasterio
from affine import Affine
from pyproj import Transformer

from cube.archive.build import build
from cube.dataset import open_cube
from cube.engine.blocks import plan_blocks
from cube.errors import SelectionError, TooLargeError
from cube.explain import Explanation, explain, parse_bytes
from cube.manifest.open import Manifest
from cube.reader import read_block
from cube.selection import Selection, select
from cube.settings import get_settings
from cube.spec import CubeSpec
from cube.testing import ObjectStore, write_cog
from cube.testing.archive import unique_values

SIZE, TILE = 640, 128
DATES = ("20240101", "20240111", "20240121")
GAPS = (0, 2_000, 256 * 1024)
BBOX = (13.641, 48.72, 13.668, 48.74)


def write_masked(path: Path, seed: int) -> None:
    """Write three bands with a mask image, and an overview of both."""
    values = unique_values((3, SIZE, SIZE), "uint8", seed)
    options = {"blockxsize": TILE, "blockysize": TILE, "interleave": "pixel", "descriptions": ["r", "g", "b"]}
    write_cog(path, values, driver="GTiff", **options)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(values[0] % 2 == 0)
        file.build_overviews([2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dates: a band a file, and one file of three bands with a mask, and a sparse corner."""
    folder = tmp_path_factory.mktemp("archive")
    for i, date in enumerate(DATES):
        values = unique_values((SIZE, SIZE), "uint16", i)
        values[:TILE, :TILE] = 0
        write_cog(folder / f"s_{date}_red.tif", values, blocksize=TILE, nodata=0, SPARSE_OK="TRUE")
        write_cog(folder / f"s_{date}_nir.tif", values[::-1].copy(), blocksize=TILE, nodata=0, compress="LZW")
        write_masked(folder / f"s_{date}_rgb.tif", i)
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[ObjectStore]:
    with ObjectStore(folder) as store:
        yield store


@pytest.fixture(scope="module")
def manifest(folder: Path, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    hrefs = [f"{store.url}/{path.name}" for path in sorted(folder.iterdir())]
    return build(hrefs, to=tmp_path_factory.mktemp("cube") / "s.cube")


@pytest.fixture(params=GAPS)
def gap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setenv("CUBE_GAP_BYTES", str(request.param))
    monkeypatch.setenv("CUBE_REQUEST_BYTES", str(400_000))
    get_settings.cache_clear()
    yield request.param
    monkeypatch.undo()
    get_settings.cache_clear()


def choose(manifest: Manifest, level: int = 0, **chosen) -> Selection:
    return select(manifest, CubeSpec(manifest=manifest.url, version=manifest.version, level=level), **chosen)


def assert_counted(found: Explanation, store: ObjectStore) -> None:
    """Check an explanation against what the store was asked since it was last reset, source by source."""
    counts = store.counts()
    assert (found.requests, found.bytes) == (counts.requests, counts.bytes)
    asked = {f"{store.url}/{path}": count for path, count in counts.paths.items()}
    assert asked == {each.href: each.requests for each in found.sources if each.requests}
    sent: dict[str, int] = {}
    for _, path, start, stop in counts.ranges:
        sent[f"{store.url}/{path}"] = sent.get(f"{store.url}/{path}", 0) + stop - start
    assert sent == {each.href: each.bytes for each in found.sources if each.bytes}


SELECTIONS = [
    {},
    {"bands": ["red"]},
    {"bands": ["nir", "red"], "time": "2024-01-11"},
    {"bbox": BBOX},
    {"bbox": BBOX, "level": 1, "time": ("2024-01-11", "2024-02")},
]


@pytest.mark.parametrize("chosen", SELECTIONS, ids=str)
def test_a_read_of_all_at_once(manifest: Manifest, store: ObjectStore, gap: int, chosen: dict) -> None:
    selection = choose(manifest, **chosen)
    found = explain(selection)
    store.reset()
    read_block(selection.spec, [band.name for _, band in selection.bands], selection.times, selection.window)
    assert_counted(found, store)
    assert (found.blocks, found.gap_bytes, found.request_bytes) == (1, gap, 400_000)
    assert found.requests > 0


CHUNKS = ["auto", {"time": 1, "y": 200, "x": 300}, {"time": -1, "y": 128, "x": 128}]


def blocks_of_all() -> list[Any]:
    """Return every gap with all chunks and selections; any two of these meet in a case that is not slow."""
    return [
        pytest.param(gap, chunks, SELECTIONS[number], marks=[pytest.mark.slow] if (i + j + k) % 3 else [])
        for (i, gap), (j, chunks), (k, number) in itertools.product(*map(enumerate, (GAPS, CHUNKS, (0, 3, 4))))
    ]


@pytest.mark.parametrize(("gap", "chunks", "chosen"), blocks_of_all(), indirect=["gap"], ids=str)
def test_dask_blocks(manifest: Manifest, store: ObjectStore, gap: int, chosen: dict, chunks) -> None:
    selection = choose(manifest, **chosen)
    blocks = plan_blocks(selection, chunks)
    found = explain(selection, blocks)
    ds = open_cube(manifest, chunks=chunks, **chosen)
    own = ds.cube.explain()
    assert (own.sources, own.blocks, own.tasks) == (found.sources, found.blocks, found.tasks)
    store.reset()
    dask.compute(ds)
    assert_counted(found, store)
    assert found.blocks == np.prod([len(lengths) for lengths in blocks])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Manifest, ObjectStore]]:
    """Two files of one zone that overlap, one at half their resolution, and one of the next zone; with overviews."""
    folder = tmp_path_factory.mktemp("mixed")
    to_next = Transformer.from_crs("EPSG:32633", "EPSG:32634", always_xy=True)
    x, y = to_next.transform(402000, 5399000)
    places = [("EPSG:32633", 10, 399960, 5400000), ("EPSG:32633", 10, 403960, 5400000)]
    places += [("EPSG:32633", 20, 399960, 5396000), ("EPSG:32634", 10, round(x, -1), round(y, -1))]
    for i, (crs, size, left, top) in enumerate(places):
        transform = Affine(size, 0, left, 0, -size, top)
        values = unique_values((SIZE, SIZE), "uint16", i)
        write_cog(folder / f"{i}.tif", values, crs=crs, transform=transform, nodata=0, blocksize=TILE, OVERVIEW_COUNT=2)
    with ObjectStore(folder) as store:
        hrefs = [f"{store.url}/{i}.tif" for i in range(4)]
        yield build(hrefs, pattern="{tile}.tif", to=tmp_path_factory.mktemp("cube") / "m.cube"), store


@pytest.mark.parametrize("chunks", [None, {"y": 200, "x": 300}], ids=str)
@pytest.mark.parametrize(
    ("options", "grids"),
    [
        ({"resolution": 10}, 3),
        ({"resolution": 10, "fuse": "median"}, 3),
        ({"resolution": 15, "resampling": "cubic"}, 3),
        ({"resolution": 45, "resampling": "average"}, 3),
        ({"resolution": 10, "bbox": (13.668, 48.725, 13.678, 48.73)}, 2),
        ({"crs": "EPSG:32634", "resolution": 10}, 3),
        ({"crs": "EPSG:3857", "resolution": 300}, 3),
    ],
    ids=str,
)
def test_sources_on_several_grids(
    mixed: tuple[Manifest, ObjectStore], gap: int, options: dict, grids: int, chunks
) -> None:
    manifest, store = mixed
    assert len(manifest.grids) == 3
    ds = open_cube(manifest, chunks=chunks, **options)
    found = ds.cube.explain()
    store.reset()
    ds.compute()
    assert_counted(found, store)
    numbers = dict(zip(manifest.column("href"), manifest.column("grid"), strict=True))
    assert len({numbers[each.href] for each in found.sources if each.requests}) == grids


def test_coarse_pixels_are_read_from_overviews(mixed: tuple[Manifest, ObjectStore]) -> None:
    manifest, _ = mixed
    tiles = {}
    for size in (10, 19, 20, 39, 40, 160):
        found = open_cube(manifest, resolution=size).cube.explain()
        tiles[size] = [each.tiles for each in found.sources]
    # Of 640, 320 and 160 pixels, in tiles of 128; the third file has pixels of 20 m.
    assert tiles == {
        10: [25, 25, 25, 25],
        19: [25, 25, 25, 25],
        20: [9, 9, 25, 9],
        39: [9, 9, 25, 9],
        40: [4, 4, 9, 4],
        160: [4, 4, 4, 4],
    }


def test_levels_and_warping_are_told_by_grid(mixed: tuple[Manifest, ObjectStore]) -> None:
    manifest, _ = mixed
    found = open_cube(manifest, resolution=40, resampling="average").cube.explain()
    assert sum(each.sources for each in found.grids) == len(manifest)
    assert len(found.grids) == 3
    for each in found.grids:
        known = next(levels.full for levels in manifest.grids if levels.full.crs == each.crs)
        assert each.pixel[0] <= 40
        assert each.factor >= 1
        assert f"in {known.crs}" in str(each)
    coarse = [each for each in found.grids if each.factor == 4]
    assert coarse
    assert "overviews of 1/4, pixels of 40 x 40" in str(coarse[0])
    assert any(set(each.warped.values()) == {"average"} and "warped: average" in str(each) for each in found.grids)
    assert all(str(each) in str(found) for each in found.grids)


def test_overlaps_are_told_with_what_becomes_of_them(tmp_path: Path) -> None:
    for number, shift in enumerate((0, 30)):
        transform = Affine(10, 0, 399960 + 10 * shift, 0, -10, 5400000)
        values = unique_values((64, 64), "uint16", seed=number)
        write_cog(tmp_path / "in" / f"20240101_{number}.tif", values, transform=transform, nodata=0, blocksize=32)
    manifest = build(tmp_path / "in", pattern="{time:%Y%m%d}_{tile}.tif", to=tmp_path / "a.cube")
    both = open_cube(manifest, fuse="newest").cube.explain()
    assert (both.fused, both.fuse) == (1, "newest")
    assert "overlaps in 1 band and date: newest" in str(both)
    beside = open_cube(manifest).isel(x=slice(0, 20)).cube.explain()
    assert beside.fused == 0
    assert "overlaps" not in str(beside)
    assert "placed" not in str(beside)  # nothing to say of one grid at full resolution


def test_nothing_is_asked_to_explain(manifest: Manifest, store: ObjectStore) -> None:
    manifest.image(0)
    store.reset()
    explain(choose(manifest))
    assert store.counts().requests == 0


def test_gaps_are_merged_for_bytes(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = choose(manifest, bbox=BBOX)
    costs = []
    for gap in (0, 256 * 1024):
        monkeypatch.setenv("CUBE_GAP_BYTES", str(gap))
        get_settings.cache_clear()
        costs.append(explain(selection))
    monkeypatch.undo()
    get_settings.cache_clear()
    apart, merged = costs
    assert apart.requests > merged.requests
    assert apart.bytes < merged.bytes
    assert apart.tiles == merged.tiles


def test_tiles_that_files_leave_out_cost_nothing(manifest: Manifest) -> None:
    found = explain(choose(manifest, bands="red", time="2024-01-01"))
    (source,) = found.sources
    assert (source.tiles, source.sparse) == (24, 1)


def test_a_tile_counts_for_each_block_that_needs_it(manifest: Manifest) -> None:
    selection = choose(manifest, bands="nir", time="2024-01-01")
    whole, halved = explain(selection), explain(selection, ((1,), (SIZE,), (64,) * (SIZE // 64)))
    assert halved.tiles == 2 * whole.tiles
    assert halved.blocks == SIZE // 64


def test_words_and_json_say_the_same(manifest: Manifest) -> None:
    found = explain(choose(manifest, bands="red"))
    facts = json.loads(json.dumps(found.to_json()))
    assert (facts["requests"], facts["bytes"], facts["tiles"]) == (found.requests, found.bytes, found.tiles)
    assert len(facts["sources"]) == 3
    assert (facts["predicted_s"], facts["peak_bytes"]) == (found.predicted_s, found.peak_bytes)
    assert [each["how"] for each in facts["estimates"]] == ["no Dask", "threads", "cluster"]
    first, second, third, fourth, *ways, last = str(found).splitlines()
    assert first == f"1 read of 3 sources: {found.tiles} tiles in {found.requests} requests, {found.bytes:,} bytes"
    assert second == "decoded 2.4 MB, 2.5 MB of arrays"
    assert third == "ranges up to 262,144 bytes apart are merged, into at most 4,194,304 bytes"
    assert fourth == "predicted at 50 ms to the first byte, for the reads alone:"
    assert [line.split("  ")[1].strip() for line in ways] == ["no Dask", "threads", "cluster of 2 workers"]
    assert last == f"advice: {found.advice}"
    assert last.startswith("advice: no Dask (chunks=None): ")
    chunked = explain(choose(manifest, bands="red"), ((3,), (320, 320), (640,)))
    assert str(chunked).splitlines()[1].endswith("2.5 MB of arrays; 4 tasks of Dask")


def test_sources_that_gdal_reads_are_said(tmp_path: Path) -> None:
    values = unique_values((64, 64), "uint16") % 4096
    write_cog(tmp_path / "odd.tif", values, driver="GTiff", blockxsize=64, blockysize=64, compress="NONE", NBITS=12)
    manifest = build(tmp_path / "odd.tif", to=tmp_path / "odd.cube")
    found = explain(choose(manifest))
    assert (found.requests, found.sources[0].path) == (0, "gdal")
    assert str(found).splitlines()[-2] == "1 source is read by GDAL, whose requests and time are not counted"


def test_decoded_bytes_are_those_of_whole_tiles(manifest: Manifest) -> None:
    found = explain(choose(manifest, bands="nir", time="2024-01-01"))
    assert found.decoded_bytes == found.tiles * TILE * TILE * 2
    assert found.array_bytes == SIZE * SIZE * 2


def test_what_the_numbers_are_turned_into_is_memory_too(manifest: Manifest) -> None:
    selection = choose(manifest, bands="nir")
    stored = explain(selection)
    physical = explain(selection, dtypes={"nir": np.dtype("float32")})
    assert (stored.array_bytes, physical.array_bytes) == (3 * SIZE * SIZE * 2, 3 * SIZE * SIZE * 6)
    assert physical.peak_bytes - stored.peak_bytes == 3 * SIZE * SIZE * 4
    assert stored.requests == physical.requests
    blocks = ((3,), (SIZE,), (TILE,) * 5)
    assert explain(selection, blocks).block_bytes == 3 * SIZE * TILE * 2


def test_predictions_follow_the_latency(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = choose(manifest)
    near, far = explain(selection, latency_ms=10), explain(selection, latency_ms=200)
    assert near.sources == far.sources
    assert far.predicted_s - near.predicted_s == pytest.approx(0.19, rel=0.01)
    monkeypatch.setenv("CUBE_LATENCY_MS", "200")
    get_settings.cache_clear()
    assert explain(selection) == far
    monkeypatch.undo()
    get_settings.cache_clear()


def test_tasks_are_those_that_dask_runs(manifest: Manifest) -> None:
    ds = open_cube(manifest, ["nir", "red"], chunks={"time": -1, "y": 320, "x": 320}, mask_and_scale=False)
    ran = []
    with dask.callbacks.Callback(pretask=lambda key, *_: ran.append(key)):
        dask.compute(ds, scheduler="synchronous", optimize_graph=False)
    assert ds.cube.explain().tasks == 4 * 3
    assert sum(isinstance(key, tuple) and key[0].startswith("cube-") for key in ran) == 4 * 3


class TestLimits:
    @pytest.fixture
    def found(self, manifest: Manifest) -> Explanation:
        return explain(choose(manifest))

    def test_what_is_small_enough_passes(self, found: Explanation) -> None:
        assert found.require() is found
        assert found.require(max_bytes=found.bytes, max_requests=found.requests) is found

    def test_too_many_bytes(self, found: Explanation) -> None:
        with pytest.raises(TooLargeError) as refused:
            found.require(max_bytes=found.bytes - 1)
        text = str(refused.value)
        assert text.startswith(f"this read takes {found.bytes:,} bytes (")
        assert f"at most {found.bytes - 1:,} were allowed. Take a smaller bbox" in text
        assert text.endswith(f"The plan:\n{found}")

    def test_too_many_requests(self, found: Explanation) -> None:
        with pytest.raises(
            TooLargeError, match=f"^this read takes {found.requests:,} requests; at most 0 were allowed"
        ):
            found.require(max_requests=0, max_bytes=10**9)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GB", 2 * 10**9),
        ("500 MB", 5 * 10**8),
        ("1.5kB", 1500),
        ("64MiB", 64 * 2**20),
        ("3 T", 3 * 10**12),
        ("1000", 1000),
        ("0B", 0),
        (" 7 Ki ", 7168),
    ],
)
def test_bytes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MB", "2 bytes", "-1", "1,000", "1e9", "2 PB", "2GB2", "0x10"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="is no number of bytes; write it as 2GB, 500MB"):
        parse_bytes(text)
