"""What `explain` counts is what a store is asked: the same requests, the same bytes, for every way to read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import rasterio

from cube.archive.build import build
from cube.dataset import open_cube
from cube.engine.blocks import plan_blocks
from cube.explain import Explanation, explain
from cube.manifest.open import Manifest
from cube.reader import read_block
from cube.selection import Selection, select
from cube.settings import get_settings
from cube.spec import CubeSpec
from cube.testing import ObjectStore, write_cog
from cube.testing.archive import unique_values

SIZE, TILE = 640, 128
DATES = ("20240101", "20240111", "20240121")
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


@pytest.fixture(params=[0, 2_000, 256 * 1024])
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


@pytest.mark.parametrize("chunks", ["auto", {"time": 1, "y": 200, "x": 300}, {"time": -1, "y": 128, "x": 128}], ids=str)
@pytest.mark.parametrize("chosen", [SELECTIONS[0], SELECTIONS[3], SELECTIONS[4]], ids=str)
def test_dask_blocks(manifest: Manifest, store: ObjectStore, gap: int, chosen: dict, chunks) -> None:
    selection = choose(manifest, **chosen)
    blocks = plan_blocks(manifest, selection, chunks)
    found = explain(selection, blocks)
    ds = open_cube(manifest, chunks=chunks, **chosen)
    assert ds.cube.explain() == found
    store.reset()
    dask.compute(ds)
    assert_counted(found, store)
    assert found.blocks == np.prod([len(lengths) for lengths in blocks])


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
    first, second = str(found).splitlines()
    assert first == f"1 reads of 3 sources: {found.tiles} tiles in {found.requests} requests, {found.bytes:,} bytes"
    assert second == "ranges up to 262,144 bytes apart are merged, into at most 33,554,432 bytes"


def test_sources_that_gdal_reads_are_said(tmp_path: Path) -> None:
    values = unique_values((64, 64), "uint16") % 4096
    write_cog(tmp_path / "odd.tif", values, driver="GTiff", blockxsize=64, blockysize=64, compress="NONE", NBITS=12)
    manifest = build(tmp_path / "odd.tif", to=tmp_path / "odd.cube")
    found = explain(choose(manifest))
    assert (found.requests, found.sources[0].path) == (0, "gdal")
    assert str(found).endswith("1 sources are read by GDAL, whose requests are not counted")
