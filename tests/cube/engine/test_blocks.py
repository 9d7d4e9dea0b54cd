from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin

from cube.archive.build import build
from cube.dataset import open_cube
from cube.engine import blocks
from cube.engine.blocks import _pieces, plan_blocks, tile_shape
from cube.errors import SelectionError
from cube.selection import select
from cube.settings import MIB, get_settings
from cube.spec import CubeSpec
from cube.testing.archive import unique_values, write_cog


def write(path, shape=(1000, 1500), dtype="uint16", tile=64):
    transform = from_origin(500000, 5000000, 10, 10)
    options = {"driver": "GTiff", "blockxsize": tile, "blockysize": tile, "nodata": 0, "transform": transform}
    return write_cog(path, np.zeros(shape, dtype) if max(shape) > 300 else unique_values(shape, dtype), **options)


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dated")
    for month in (1, 2, 3, 4):
        write(folder / f"2024{month:02}01.tif")
    return build(folder)


@pytest.fixture(scope="module")
def timeless(tmp_path_factory):
    return build(write(tmp_path_factory.mktemp("timeless") / "dem.tif", dtype="float32"))


@pytest.fixture
def settings(monkeypatch):
    """Return a function that changes settings for one test."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"CUBE_{name.upper()}", str(value))
        get_settings.cache_clear()

    yield change
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture(autouse=True)
def _one_core(settings):
    settings(decode_threads=1)


@pytest.fixture
def small_blocks(settings):
    """Blocks of a mebibyte."""
    settings(block_bytes=MIB)


def selected(manifest, **what):
    return select(manifest, CubeSpec(manifest=manifest.url, version=manifest.version), **what)


def planned(manifest, chunks, **what):
    return plan_blocks(selected(manifest, **what), chunks)


@pytest.mark.parametrize("chunks", ["auto", {}, {"time": "auto"}, {"y": None}])
def test_a_small_cube_is_one_block_or_two(dated, chunks):
    times, rows, columns = planned(dated, chunks)
    assert times == (4,)
    assert len(rows) * len(columns) <= 2


def test_lengths_are_taken_as_given(dated, timeless):
    assert planned(dated, {"time": 3, "y": 600, "x": -1}) == ((3, 1), (600, 400), (1500,))
    assert planned(timeless, {"y": 400, "x": 10**9}) == ((400, 400, 200), (1500,))
    assert planned(timeless, {"x": np.int64(750)}) == ((1000,), (750, 750))


@pytest.mark.parametrize("cores", [2, 3, 8])
def test_every_core_gets_a_block(dated, timeless, settings, cores):
    settings(decode_threads=cores)
    for manifest in (dated, timeless):
        *_, rows, columns = planned(manifest, "auto")
        assert len(rows) * len(columns) >= cores
        assert all(length % 64 == 0 for length in (*rows[:-1], *columns[:-1]))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("chunks", ["auto", {"time": 1}, {"y": 128}, {"x": 64}, {"time": 2, "x": 320}])
def test_auto_is_whole_tiles_of_at_most_the_block_size(dated, chunks):
    times, rows, columns = planned(dated, chunks)
    assert (sum(times), sum(rows), sum(columns)) == (4, 1000, 1500)
    assert max(times) * max(rows) * max(columns) * 2 <= MIB
    asked = chunks if isinstance(chunks, dict) else {}
    assert max(times) == asked.get("time", 4), "all dates, unless asked otherwise"
    for lengths, dim in ((rows, "y"), (columns, "x")):
        if dim not in asked:
            assert all(length % 64 == 0 for length in lengths[:-1])


@pytest.mark.usefixtures("small_blocks")
def test_auto_blocks_of_a_window_end_at_the_edges_of_tiles(dated):
    selection = selected(dated, bbox=(15.013, 45.12, 15.10, 45.15))
    assert selection.window.left % 64
    _, rows, columns = plan_blocks(selection, "auto")
    for lengths, start in ((rows, selection.window.top), (columns, selection.window.left)):
        edges = start + np.cumsum(lengths)[:-1]
        assert not (edges % 64).any()


@pytest.mark.usefixtures("small_blocks")
def test_a_block_is_never_less_than_a_tile(tmp_path):
    manifest = build(write(tmp_path / "a.tif", (2048, 2048), "float64", tile=1024))
    assert planned(manifest, "auto") == ((1024, 1024), (1024, 1024))


@pytest.mark.usefixtures("small_blocks")
def test_the_widest_band_counts(tmp_path):
    for band, dtype in (("a", "uint8"), ("b", "float64")):
        write(tmp_path / f"{band}.tif", (512, 512), dtype)
    manifest = build(tmp_path)
    both, narrow = planned(manifest, "auto"), planned(manifest, "auto", bands=["a"])
    assert max(both[0]) * max(both[1]) * 8 <= MIB
    assert narrow == ((512,), (512,))


def test_tiles_are_those_of_the_level(tmp_path):
    path = write_cog(tmp_path / "a.tif", unique_values((300, 300), "uint8"), blocksize=128, OVERVIEW_COUNT=1)
    manifest = build(path)
    assert (tile_shape(manifest, 0), tile_shape(manifest, 1)) == ((128, 128), (128, 128))


def test_blocks_fit_the_memory_with_what_is_computed_of_them(dated, settings):
    """uint16 to float32 and three copies: 18 bytes a pixel and date, of half of a thread's share."""
    for megabytes in (8, 4, 2):
        settings(decode_threads=1, memory_bytes=megabytes * MIB)
        times, rows, columns = planned(dated, "auto")
        assert times == (4,)
        assert max(rows) * max(columns) * 4 * 18 <= megabytes * MIB / 2
        assert {length % 64 for length in (*rows[:-1], *columns[:-1])} == {0}
    alone = planned(dated, "auto")
    settings(decode_threads=2, memory_bytes=4 * MIB)
    assert planned(dated, "auto") == alone, "of two threads, each has half"


def area(blocks):
    return max(blocks[-2]) * max(blocks[-1])


def test_a_scaled_band_takes_the_room_of_doubles(tmp_path, settings):
    settings(memory_bytes=4 * MIB)
    values = np.zeros((1000, 1500), "uint16")
    options = {"driver": "GTiff", "blockxsize": 64, "blockysize": 64, "nodata": 0, "SPARSE_OK": True}
    plain = build(write_cog(tmp_path / "plain.tif", values, **options))
    scaled = build(write_cog(tmp_path / "scaled.tif", values, scale=0.1, **options))
    assert area(planned(plain, "auto")) * 18 <= 2 * MIB
    assert area(planned(scaled, "auto")) * 34 <= 2 * MIB < area(planned(plain, "auto")) * 34


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """16 dates of two tiles of 256 x 256."""
    folder = tmp_path_factory.mktemp("long")
    for day in range(1, 17):
        write(folder / f"202401{day:02}.tif", shape=(256, 512), tile=256)
    return build(folder)


def test_where_a_tile_of_all_dates_has_no_room_parts_of_tiles_do(long, settings):
    tile = 16 * 256 * 256 * 18  # bytes of a column
    for parts, rows in ((1, (256,)), (2, (128, 128)), (4, (64, 64, 64, 64))):
        settings(memory_bytes=2 * tile // parts + 1000)
        assert planned(long, "auto") == ((16,), rows, (256, 256))


def test_where_not_even_that_has_room_dates_are_split_evenly(long, settings):
    settings(memory_bytes=2 * 3 * 256 * 256 * 18 + 1000)
    assert planned(long, "auto") == ((3, 3, 3, 3, 3, 1), (256,), (256, 256))
    assert planned(long, {"x": 512})[0] == (1,) * 16, "of two tiles"
    assert planned(long, {"time": 16}) == ((16,), (256,), (256, 256)), "what is asked for is given"
    settings(memory_bytes=MIB)
    assert planned(long, "auto") == ((1,) * 16, (256,), (256, 256))


def test_blocks_grow_with_the_latency_until_their_size_is_set(dated, settings, monkeypatch):
    monkeypatch.setattr(blocks, "_LEAST_BYTES", MIB)
    sizes = []
    for latency_ms in (0, 50, 100):
        settings(latency_ms=latency_ms, decode_mb_s=4)
        sizes.append(area(planned(dated, "auto")) * 4 * 2)
    assert sizes[0] <= MIB < sizes[1] <= 2e6 < sizes[2] <= 4e6
    settings(store_mb_s=2)
    assert area(planned(dated, "auto")) * 4 * 2 == sizes[1], "the slower of the two"
    settings(block_bytes=MIB)
    assert area(planned(dated, "auto")) * 4 * 2 == sizes[0]


@given(st.data())
def test_blocks_always_add_up(dated, data):
    lengths = st.none() | st.just("auto") | st.just(-1) | st.integers(1, 3000)
    chunks = data.draw(st.dictionaries(st.sampled_from(["time", "y", "x"]), lengths))
    blocks = planned(dated, chunks)
    assert tuple(map(sum, blocks)) == (4, 1000, 1500)
    assert all(length > 0 for each in blocks for length in each)
    for dim, each in zip(("time", "y", "x"), blocks, strict=True):
        if isinstance(chunks.get(dim), int) and chunks[dim] > 0:
            assert set(each[:-1]) <= {chunks[dim]}


@pytest.mark.parametrize("chunks", [{"time": 1}, {"band": 1, "y": 2}])
def test_dimensions_that_are_not_there_are_refused(timeless, chunks):
    with pytest.raises(SelectionError, match="the cube's dimensions are y, x"):
        planned(timeless, chunks)


@pytest.mark.parametrize(
    ("shape", "pixels", "expected"),
    [
        ((480, 480), 480 * 480, (480, 480)),
        ((480, 480), 240 * 480, (240, 480)),  # two stripes, and not four squares
        ((2000, 2000), 1000 * 2000, (1000, 2000)),
        ((20000, 20000), 4000 * 4000, (4000, 4000)),  # squares, where stripes would be thinner than tiles
        ((100, 3000), 100 * 1000, (100, 1000)),
        ((3000, 100), 100 * 1000, (1000, 100)),
        ((7, 5), 1, (1, 1)),
    ],
)
def test_blocks_of_other_pixels_than_the_files_share_few_tiles(shape, pixels, expected):
    assert _pieces(*shape, pixels, (256, 256)) == expected


def test_a_cube_on_other_pixels_has_a_block_a_core(dated, settings):
    settings(decode_threads=2)
    ds = open_cube(dated, crs="EPSG:32632", resolution=10, chunks="auto")
    assert ds.band_1.data.numblocks == (1, 1, 2)
