from __future__ import annotations

import numpy as np
import pytest
from rasterio.transform import from_origin

from cube.archive.build import build
from cube.grid import Window
from cube.plan import Target, plan_read
from cube.testing.archive import unique_values, write_cog


def write(path, samples=1, column=0, row=0, shape=(100, 120), **options):
    """Write a file of 64-pixel tiles whose corner lies some columns and rows from a common origin."""
    options = {"driver": "GTiff", "blockxsize": 64, "blockysize": 64, "nodata": 0} | options
    transform = from_origin(500000 + column * 10, 5000000 - row * 10, 10, 10)
    return write_cog(path, unique_values((samples, *shape), "uint16"), transform=transform, **options)


def window(top, bottom, left, right):
    return Window(top=top, bottom=bottom, left=left, right=right)


def painted(plan, band, time, shape):
    """Return how often a plan writes each pixel of one band and date."""
    counts = np.zeros(shape, int)
    for source in plan.sources:
        box = source.box
        here = counts[box.top : box.bottom, box.left : box.right]
        for piece in source.pieces:
            for target in piece.targets:
                if (target.band, target.time) == (band, time):
                    assert piece.y + piece.height <= here.shape[0]
                    assert piece.x + piece.width <= here.shape[1]
                    here[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width] += 1
    return counts


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return build(write(tmp_path_factory.mktemp("one") / "a.tif"))


def test_one_pixel_needs_one_tile(one):
    (source,) = plan_read(one, ["band_1"], (0,), window(70, 71, 63, 64), 0).sources
    (piece,) = source.pieces
    assert source.facts.href.endswith("/a.tif")
    assert piece.tile == (0, 1)
    assert (piece.tile_y, piece.tile_x, piece.y, piece.x, piece.height, piece.width) == (6, 63, 0, 0, 1, 1)
    image = one.image(0)
    assert (piece.offset, piece.length) == (image.offsets[0, 1, 0], image.lengths[0, 1, 0])
    assert piece.targets == (Target("band_1", 0, 0),)


def test_a_window_inside_one_tile_needs_no_other(one):
    assert len(plan_read(one, ["band_1"], (0,), window(0, 64, 0, 64), 0).sources[0].pieces) == 1
    assert len(plan_read(one, ["band_1"], (0,), window(0, 65, 0, 64), 0).sources[0].pieces) == 2
    assert len(plan_read(one, ["band_1"], (0,), window(63, 65, 63, 65), 0).sources[0].pieces) == 4


def test_padding_at_the_edge_is_never_placed(one):
    plan = plan_read(one, ["band_1"], (0,), window(0, 100, 0, 120), 0)
    (painted_once,) = np.unique(painted(plan, "band_1", 0, (100, 120)))
    assert painted_once == 1
    assert plan.covered == {("band_1", 0)}


def test_pixel_interleaved_samples_share_a_tile(tmp_path):
    manifest = build(write(tmp_path / "a.tif", samples=3, interleave="pixel"))
    plan = plan_read(manifest, ["band_3", "band_1"], (0,), window(0, 64, 0, 64), 0)
    (piece,) = plan.sources[0].pieces
    assert set(piece.targets) == {Target("band_3", 0, 2), Target("band_1", 0, 0)}
    assert piece.layout.samples == 3
    assert piece.layout.nbytes == 64 * 64 * 3 * 2


def test_band_interleaved_samples_have_tiles_of_their_own(tmp_path):
    manifest = build(write(tmp_path / "a.tif", samples=3, interleave="band"))
    plan = plan_read(manifest, ["band_3", "band_1"], (0,), window(0, 64, 0, 64), 0)
    image = manifest.image(0)
    found = {piece.targets: piece.offset for piece in plan.sources[0].pieces}
    assert found == {
        (Target("band_1", 0, 0),): image.offsets[0, 0, 0],
        (Target("band_3", 0, 0),): image.offsets[2, 0, 0],
    }
    assert {piece.layout.samples for piece in plan.sources[0].pieces} == {1}


def test_sources_that_the_window_misses_are_left_out(tmp_path):
    for i in range(3):
        write(tmp_path / f"t{i}.tif", column=120 * i)
    manifest = build(tmp_path)
    plan = plan_read(manifest, ["band_1"], (0,), window(0, 100, 120, 240), 0)
    assert [source.facts.href.rpartition("/")[2] for source in plan.sources] == ["t1.tif"]
    plan = plan_read(manifest, ["band_1"], (0,), window(0, 100, 119, 241), 0)
    assert {source.facts.href.rpartition("/")[2] for source in plan.sources} == {"t0.tif", "t1.tif", "t2.tif"}


def test_what_no_source_covers_is_known(tmp_path):
    write(tmp_path / "t0.tif")
    write(tmp_path / "t1.tif", column=200, row=50)
    manifest = build(tmp_path)
    assert manifest.grid.shape == (150, 320)
    plan = plan_read(manifest, ["band_1"], (0,), window(0, 150, 0, 320), 0)
    assert plan.covered == frozenset()
    assert painted(plan, "band_1", 0, (150, 320)).sum() == 2 * 100 * 120
    assert plan_read(manifest, ["band_1"], (0,), window(60, 90, 210, 300), 0).covered == {("band_1", 0)}
    plan = plan_read(manifest, ["band_1"], (0,), window(100, 150, 0, 120), 0)
    assert plan.sources == []
    assert plan.covered == frozenset()


def test_pieces_count_from_the_part_of_the_window_that_their_source_covers(tmp_path):
    write(tmp_path / "t0.tif")
    write(tmp_path / "t1.tif", column=200, row=50)
    manifest = build(tmp_path)
    plan = plan_read(manifest, ["band_1"], (0,), window(40, 120, 100, 230), 0)
    found = {source.facts.href[-6:-4]: (source.box, source.window) for source in plan.sources}
    assert found == {
        "t0": (window(0, 60, 0, 20), window(40, 100, 100, 120)),
        "t1": (window(10, 80, 100, 130), window(0, 70, 0, 30)),
    }
    for source in plan.sources:
        assert (min(piece.y for piece in source.pieces), min(piece.x for piece in source.pieces)) == (0, 0)
    counts = painted(plan, "band_1", 0, (80, 130))
    assert (counts[:60, :20] == 1).all()
    assert (counts[10:, 100:] == 1).all()
    assert counts.sum() == 60 * 20 + 70 * 30


def test_sources_that_share_pixels_are_read_apart_and_their_neighbours_are_not(tmp_path):
    for name, column in (("t0", 0), ("t1", 100), ("t2", 220), ("t3", 340)):  # t0 and t1 share 20 columns
        write(tmp_path / f"{name}.tif", column=column)
    manifest = build(tmp_path)
    plan = plan_read(manifest, ["band_1"], (0,), window(0, 100, 0, 460), 0)
    apart = {source.facts.href[-6:-4]: source.apart for source in plan.sources}
    key = ("band_1", 0)
    assert apart == {"t0": {key}, "t1": {key}, "t2": set(), "t3": set()}
    assert plan.covered == frozenset(), "what is put together later is not known to be whole"
    # Beside the strip that they share, neither lies in the other's way.
    plan = plan_read(manifest, ["band_1"], (0,), window(0, 100, 0, 100), 0)
    assert [source.apart for source in plan.sources] == [frozenset()]
    assert plan.covered == {key}


def test_sources_of_different_dates_or_bands_never_share_pixels(tmp_path):
    for name in ("a_20240101_red", "a_20240101_nir", "a_20240201_red"):
        write(tmp_path / f"{name}.tif")
    write(tmp_path / "a_20240201_nir.tif", column=10)
    write(tmp_path / "b_20240201_nir.tif", row=10)
    manifest = build(tmp_path, pattern="{tile}_{time:%Y%m%d}_{band}.tif")
    plan = plan_read(manifest, ["nir", "red"], (0, 1), window(0, 110, 0, 130), 0)
    assert {source.facts.href.rpartition("/")[2][:-4]: source.apart for source in plan.sources} == {
        "a_20240101_red": set(),
        "a_20240101_nir": set(),
        "a_20240201_red": set(),
        "a_20240201_nir": {("nir", 1)},
        "b_20240201_nir": {("nir", 1)},
    }


def test_a_plan_is_of_the_sources_on_one_grid(tmp_path):
    for name, size, column in (("a", 10, 0), ("b", 10, 120), ("c", 20, 0)):
        transform = from_origin(500000 + column * size, 5000000, size, size)
        write_cog(
            tmp_path / f"{name}.tif",
            unique_values((100, 120), "uint16"),
            transform=transform,
            driver="GTiff",
            nodata=0,
            blockxsize=64,
            blockysize=64,
        )
    manifest = build(tmp_path)
    sizes = [levels.full.transform[0] for levels in manifest.grids]
    for size, names in ((10.0, ["a", "b"]), (20.0, ["c"])):
        grid = sizes.index(size)
        whole = window(0, 100, 0, manifest.grids[grid].full.width)
        plan = plan_read(manifest, ["band_1"], (0,), whole, 0, grid)
        assert sorted(source.facts.href[-5] for source in plan.sources) == names
        assert plan.covered == {("band_1", 0)}


def test_a_date_that_is_asked_for_twice_is_read_once(tmp_path):
    for date in ("20240101", "20240201"):
        write(tmp_path / f"{date}.tif")
    manifest = build(tmp_path)
    plan = plan_read(manifest, ["band_1"], (1, 0, 1), window(0, 64, 0, 64), 0)
    assert len(plan.sources) == 2
    targets = {source.facts.href[-12:-4]: source.pieces[0].targets for source in plan.sources}
    assert targets["20240201"] == (Target("band_1", 0, 0), Target("band_1", 2, 0))
    assert targets["20240101"] == (Target("band_1", 1, 0),)


def test_a_plan_says_where_its_offsets_are_as_plain_ints(one):
    piece = plan_read(one, ["band_1"], (0,), window(0, 100, 0, 120), 0).sources[0].pieces[0]
    assert type(piece.offset) is int
    assert type(piece.length) is int
