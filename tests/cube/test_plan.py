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
        for piece in source.pieces:
            for target in piece.targets:
                if (target.band, target.time) == (band, time):
                    counts[piece.y : piece.y + piece.height, piece.x : piece.x + piece.width] += 1
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
    assert plan.covered == {("band_1", 0): 100 * 120}


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


def test_what_no_source_covers_is_counted(tmp_path):
    write(tmp_path / "t0.tif")
    write(tmp_path / "t1.tif", column=200, row=50)
    manifest = build(tmp_path)
    assert manifest.grid.shape == (150, 320)
    plan = plan_read(manifest, ["band_1"], (0,), window(0, 150, 0, 320), 0)
    assert plan.covered == {("band_1", 0): 2 * 100 * 120}
    assert painted(plan, "band_1", 0, (150, 320)).sum() == 2 * 100 * 120
    plan = plan_read(manifest, ["band_1"], (0,), window(100, 150, 0, 120), 0)
    assert plan.sources == []
    assert plan.covered == {}


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
