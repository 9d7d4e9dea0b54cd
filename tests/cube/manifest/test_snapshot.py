from __future__ import annotations

import itertools
import json
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from cube.errors import ManifestError
from cube.grid import Grid, Levels, Window
from cube.manifest import parts, snapshot
from cube.manifest.open import open_manifest
from cube.manifest.rows import hilbert_codes
from cube.manifest.snapshot import Member, update_manifest, write_manifest
from cube.scan import scan_sources
from cube.source import Source, SourceBand
from cube.spec import Band
from cube.testing.archive import unique_values, write_cog

OLD = {schema: Path(__file__).parents[2] / "data" / f"schema{schema}" / "scenes.cube" for schema in (1, 2)}
DAY = np.timedelta64(1, "D")
START = np.datetime64("2024-01-01", "us")
HEIGHT, WIDTH = 40, 48
BANDS = [Band(name=name, dtype="uint16", nodata=0) for name in ("nir", "red")]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """One real scan of 3 x 3 tiles, to be varied."""
    path = tmp_path_factory.mktemp("one") / "one.tif"
    write_cog(
        path,
        unique_values((HEIGHT, WIDTH), "uint16", 0),
        transform=from_origin(500000, 5400000, 10, 10),
        driver="GTiff",
        blockxsize=16,
        blockysize=16,
    )
    (found,), _ = scan_sources([Source(href=path.as_posix(), item="one")])
    return found


@pytest.fixture(scope="module")
def make(scanned):
    """Return `make(number, row, column)`: a member whose tile table is its own."""

    def member(number, row=0, column=0, band=None, grid=0):
        name = band or BANDS[number % 2].name
        level = scanned.header.levels[0]
        level = replace(level, offsets=level.offsets + number * 1_000_000)
        source = replace(
            scanned.source, href=f"/data/{number:06}_{name}.tif", item=f"s{number:06}", time=START + number % 5 * DAY
        )
        return Member(
            scanned=replace(scanned, source=source, header=replace(scanned.header, levels=(level,))),
            bands=(SourceBand(name=name, sample=0, nodata=0, scale=1.0 + number),),
            grid=grid,
            row=row,
            column=column,
        )

    return member


def grid_of(rows=10, columns=10, *, up=0, left=0, crs="EPSG:32633", size=10.0):
    """Return a grid of so many places, and of some more above and to the left."""
    transform = (size, 0.0, 500000.0 - left * WIDTH * size, 0.0, -size, 5400000.0 + up * HEIGHT * size)
    full = Grid(crs=crs, transform=transform, width=(columns + left) * WIDTH, height=(rows + up) * HEIGHT)
    return Levels(grids=(full,), factors=((1, 1),))


def write(folder, members, grids=None):
    write_manifest(
        str(folder), name="c", members=members, bands=BANDS, grids=grids or [grid_of()], attributes={"title": "C"}
    )
    return open_manifest(str(folder))


def update(manifest, add=(), remove=(), grids=None, bands=BANDS):
    grids = grids or [grid_of()]
    update_manifest(manifest, add=add, remove=remove, bands=bands, grids=grids, attributes={"title": "D"})
    return open_manifest(manifest.url)


def contents(manifest):
    """Return all that a manifest says: {href: (band, time, scale, CRS, place on Earth, first tile offset)}."""
    base = Path(manifest.url).parent
    table = {(base / row["href"]).as_posix(): row for row in manifest.source_table().to_pylist()}
    found = {}
    for number, levels in enumerate(manifest.grids):
        window = Window(top=0, bottom=levels.full.height, left=0, right=levels.full.width)
        for band in manifest.bands:
            for each in manifest.select(band.name, range(len(manifest.times)), window, 0, number):
                facts, image = manifest.facts(each.source), manifest.image(each.source)
                row = table[facts.href]
                assert (number, facts.row, facts.column) == (row["grid"], row["row"], row["column"])
                assert manifest.grid_of(each.source) == levels.full
                size, _, x, _, _, y = levels.full.transform
                corner = x + facts.column * size, y - facts.row * size
                assert facts.href not in found
                found[facts.href] = (
                    band.name,
                    str(manifest.times[each.time]),
                    each.scale,
                    row["crs"],
                    corner,
                    int(image.offsets[0, 0, 0]),
                    image.offsets.shape,
                )
    assert len(found) == len(manifest) == len(table)
    return found


def said(members, grids=None):
    """Return what `contents` does of a manifest of some members that are placed on some grids."""
    grids = grids or [grid_of()]
    found = {}
    for each in members:
        full = grids[each.grid].full
        size, _, x, _, _, y = full.transform
        found[each.scanned.source.href] = (
            each.bands[0].name,
            str(each.scanned.source.time),
            each.bands[0].scale,
            full.crs,
            (x + each.column * size, y - each.row * size),
            int(each.scanned.header.levels[0].offsets[0, 0, 0]),
            (1, 3, 3),
        )
    return found


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix == ".parquet"}


# A full build.


def test_a_manifest_says_what_its_members_do(make, tmp_path):
    members = [make(i, row=i % 3 * HEIGHT, column=i // 3 * WIDTH) for i in range(12)]
    assert contents(write(tmp_path / "c.cube", members)) == said(members)


@pytest.mark.parametrize(("sources", "tiles"), [(5, 10**9), (10**9, 30), (3, 1)])
def test_a_large_manifest_is_split_into_parts(make, tmp_path, monkeypatch, sources, tiles):
    monkeypatch.setattr(parts, "SOURCES_A_PART", sources)
    monkeypatch.setattr(parts, "_TILES_A_PART", tiles)
    members = [make(i) for i in range(17)]
    manifest = write(tmp_path / "c.cube", members)
    assert [part.rows for part in manifest.parts] == {5: [5, 5, 5, 2], 10**9: [3] * 5 + [2], 3: [1] * 17}[sources]
    assert contents(manifest) == said(members)


def test_tiles_are_read_by_row_groups(make, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_TILES_A_GROUP", 20)
    monkeypatch.setattr(parts, "_SOURCES_A_GROUP", 4)
    members = [make(i) for i in range(17)]
    manifest = write(tmp_path / "c.cube", members)
    (part,) = manifest.parts
    groups = [pq.ParquetFile(Path(manifest.url) / name).metadata for name in (part.sources, part.tiles)]
    assert [[each.row_group(i).num_rows for i in range(each.num_row_groups)] for each in groups] == [
        [4, 4, 4, 4, 1],
        [2] * 8 + [1],
    ]
    expected = said(members)
    assert contents(manifest) == expected
    again = open_manifest(manifest.url)
    again.load(range(17))
    assert contents(again) == expected


def test_a_url_is_no_place_to_write_to(make, tmp_path):
    with pytest.raises(ManifestError, match=r"https://host/c\.cube is a URL; write into a local folder and copy it"):
        write("https://host/c.cube", [make(0)])


def test_a_folder_with_other_files_is_left_alone(make, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ManifestError, match="holds other files and no manifest; choose another name or folder"):
        write(tmp_path, [make(0)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# Order.


def test_a_hilbert_curve_goes_from_neighbour_to_neighbour_through_all_places():
    edge = 16
    y, x = (each.ravel() for each in np.mgrid[:edge, :edge])
    order = np.argsort(hilbert_codes(x, y, edge))
    assert len(np.unique(hilbert_codes(x, y, edge))) == edge * edge
    steps = np.abs(np.diff(x[order])) + np.abs(np.diff(y[order]))
    assert (steps == 1).all()


def test_neighbours_in_band_place_and_time_lie_together(make, tmp_path):
    members = [make(i, row=i % 4 * HEIGHT, column=i // 4 % 4 * WIDTH) for i in range(160)]
    rows = write(tmp_path / "c.cube", members).source_table().to_pylist()
    keys = [(row["bands"][0]["name"], (row["row"], row["column"])) for row in rows]
    runs = [key for key, _ in itertools.groupby(keys)]
    assert len(runs) == len(set(runs)), "each band of each place is one run"
    for _, run in itertools.groupby(zip(keys, rows, strict=True), key=lambda pair: pair[0]):
        times = [row["time"] for _, row in run]
        assert times == sorted(times)


# Changes.


def test_adding_shares_what_was_there(make, tmp_path):
    old = write(tmp_path / "c.cube", [make(i) for i in range(6)])
    before, written = contents(old), files(old.url)
    new = update(old, add=[make(i) for i in range(6, 10)])
    assert contents(new) == said([make(i) for i in range(10)])
    assert new.attributes == {"title": "D"}
    assert new.parts[0] == replace(old.parts[0], offsets=((0, 0),))
    assert written.items() <= files(old.url).items()
    assert contents(open_manifest(old.url, old.version)) == before
    assert open_manifest(old.url).version == new.version


def test_what_it_was_built_with_and_what_was_left_out_stays_known(make, tmp_path):
    arguments = {"bands": BANDS, "grids": [grid_of()], "attributes": {}}
    folder = str(tmp_path / "c.cube")
    write_manifest(
        folder, name="c", members=[make(0)], built={"what": ["/data"]}, left_out=[("a.tif", "no CRS")], **arguments
    )
    old = open_manifest(folder)
    assert (old.built, old.left_out) == ({"what": ["/data"]}, (("a.tif", "no CRS"),))
    update_manifest(old, add=[make(1)], remove=[], left_out=[("b.tif", "not a TIFF")], **arguments)
    new = open_manifest(folder)
    assert (new.built, new.left_out) == (old.built, (("a.tif", "no CRS"), ("b.tif", "not a TIFF")))


def test_removing_and_replacing(make, tmp_path):
    old = write(tmp_path / "c.cube", [make(i) for i in range(20)])
    before = contents(old)
    hrefs = [old.facts(i).href for i in range(20)]
    gone = [hrefs.index(make(i).scanned.source.href) for i in (3, 8)]
    changed = make(8, row=HEIGHT)
    new = update(old, add=[changed], remove=gone)
    assert contents(new) == said([*(make(i) for i in range(20) if i not in (3, 8)), changed])
    assert [len(part.removed) for part in new.parts] == [2, 0]
    newer = update(new, remove=[0])
    assert contents(newer) == {href: row for href, row in contents(new).items() if href != new.facts(0).href}
    assert contents(open_manifest(old.url, old.version)) == before


def test_a_grid_that_grows_up_and_to_the_left_moves_what_was_there(make, tmp_path):
    old = write(tmp_path / "c.cube", [make(i, row=i * HEIGHT) for i in range(6)])
    expected, written = contents(old), files(old.url)
    grown = [grid_of(up=2, left=3)]
    once = update(old, add=[make(6)], grids=grown)
    assert contents(once) == expected | said([make(6)], grown)
    assert once.grid.shape == (12 * HEIGHT, 13 * WIDTH)
    assert written.items() <= files(old.url).items(), "old parts stay as they are"
    twice = update(once, grids=[grid_of(up=3, left=3)])
    assert contents(twice) == contents(once)
    assert [part.offsets for part in twice.parts] == [((3 * HEIGHT, 3 * WIDTH),), ((HEIGHT, 0),)]
    again = update(twice, grids=[grid_of(up=3, left=3)])
    assert again.parts == twice.parts


def test_many_small_parts_become_one(make, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "_MOST_SMALL_PARTS", 3)
    manifest = write(tmp_path / "c.cube", [make(0)])
    counts = []
    for i in range(1, 12):
        manifest = update(manifest, add=[make(i, row=i % 3 * HEIGHT)], grids=[grid_of(up=i)])
        counts.append(len(manifest.parts))
    assert counts == [2, 3, 4, 2, 3, 4, 2, 3, 4, 2, 3]
    places = {}
    for i in range(12):
        places |= said([make(i, row=i % 3 * HEIGHT if i else 0)], [grid_of(up=i)])
    assert contents(manifest) == places


def test_a_part_of_which_much_is_removed_is_written_anew(make, tmp_path):
    old = write(tmp_path / "c.cube", [make(i) for i in range(10)])
    two = update(old, remove=[0, 1])
    assert [(part.rows, part.removed) for part in two.parts] == [(10, (0, 1))]
    left = {href: row for href, row in contents(two).items() if href != two.facts(0).href}
    three = update(two, remove=[0])
    assert [(part.rows, part.removed) for part in three.parts] == [(7, ())]
    assert contents(three) == left


def test_a_part_of_which_nothing_is_left_goes(make, tmp_path):
    old = write(tmp_path / "c.cube", [make(0), make(2)])
    new = update(old, add=[make(1)], remove=[0, 1])
    assert contents(new) == said([make(1)])
    assert len(new.parts) == 1
    with pytest.raises(ManifestError, match=r"nothing would be left of .*c\.cube; delete the folder"):
        update(new, remove=[0])
    assert open_manifest(old.url).version == new.version


def test_the_first_schema_is_written_anew(make, tmp_path):
    folder = shutil.copytree(OLD[1], tmp_path / "scenes.cube")
    old = open_manifest(str(folder))
    bands = [*old.bands, Band(name="new", dtype="uint16", scale=1.0)]
    new = update(old, add=[make(1, band="new")], remove=[1], grids=old.grids, bands=bands)
    assert new.schema == 3
    assert [part.rows for part in new.parts] == [3, 1]
    window = Window(top=0, bottom=48, left=0, right=40)
    found = [
        (each, new.facts(each.source))
        for band in ("nir", "red", "new")
        for each in new.select(band, range(len(new.times)), window, 0)
    ]
    assert [(Path(facts.href).name, each.scale, each.offset) for each, facts in found] == [
        ("scene_20240101_nir.tif", 0.0001, -0.1),
        ("scene_20240101_red.tif", 0.0001, -0.1),
        ("scene_20240211_red.tif", 0.0001, -0.1),
        ("000001_new.tif", 2.0, 0.0),
    ]
    np.testing.assert_array_equal(new.image(found[2][0].source).offsets, old.image(3).offsets)
    assert len(open_manifest(old.url, old.version)) == 4


def test_the_second_schema_is_written_anew_and_may_then_have_several_grids(make, tmp_path):
    folder = shutil.copytree(OLD[2], tmp_path / "scenes.cube")
    old = open_manifest(str(folder))
    before, kept = contents(old), files(folder)
    assert [part.offsets for part in old.parts] == [((16, 40),), ((0, 0),)]
    grids = [grid_of(), grid_of(crs="EPSG:32634")]
    (full,) = old.levels
    a, b, c, d, e, f = full.transform  # five columns more on the left, and three rows above
    grids[0] = Levels(
        grids=(replace(full, transform=(a, b, c - 50, d, e, f + 30), width=85, height=67),), factors=((1, 1),)
    )
    added = make(1, grid=1)
    new = update(old, add=[added], grids=grids, bands=old.bands)
    assert (old.schema, new.schema) == (2, 3)
    assert contents(new) == before | said([added], grids)
    assert [part.offsets for part in new.parts] == [(), ()], "the rows of older schemas are written anew"
    assert kept.items() <= files(folder).items()
    assert contents(open_manifest(old.url, old.version)) == before
    rows = new.source_table().to_pylist()
    assert sorted(row["grid"] for row in rows) == [0] * 4 + [1]


@pytest.mark.parametrize(
    ("grid", "what"),
    [
        (grid_of(crs="EPSG:32634"), "CRS: EPSG:32634 and EPSG:32633"),
        (grid_of(size=20.0), "pixel size: 20 x -20 and 10 x -10"),
        (
            Levels(
                grids=(replace(grid_of().full, transform=(10.0, 0.0, 500004.0, 0.0, -10.0, 5400000.0)),),
                factors=((1, 1),),
            ),
            r"pixel lattice: they lie -0\.400 columns and 0\.000 rows apart",
        ),
    ],
)
@pytest.mark.parametrize("number", [0, 1])
def test_another_lattice_is_refused(make, tmp_path, grid, what, number):
    grids = [grid_of(), grid_of()]
    old = write(tmp_path / "c.cube", [make(0), make(1, grid=1)], grids)
    grids[number] = grid
    message = r"a new grid of .*c\.cube does not lie on the pixel lattice of the old one: "
    with pytest.raises(ManifestError, match=message + what):
        update(old, add=[make(2)], grids=grids)


def test_grids_that_are_there_cannot_be_left_out(make, tmp_path):
    grids = [grid_of(), grid_of(crs="EPSG:32634")]
    old = write(tmp_path / "c.cube", [make(0), make(1, grid=1)], grids)
    with pytest.raises(ManifestError, match=r"c\.cube has 2 grids; 1 were given"):
        update(old, add=[make(2)], grids=grids[:1])
    assert contents(open_manifest(old.url)) == said([make(0), make(1, grid=1)], grids)


# Several grids.


def test_members_lie_on_the_grids_that_they_name(make, tmp_path):
    grids = [grid_of(), grid_of(crs="EPSG:32634"), grid_of(size=20.0)]
    members = [make(i, row=i % 4 * HEIGHT, column=i % 2 * WIDTH, grid=i % 3) for i in range(20)]
    manifest = write(tmp_path / "c.cube", members, grids)
    assert manifest.grids == tuple(grids)
    assert contents(manifest) == said(members, grids)


def test_a_grid_joins_and_what_was_there_is_shared(make, tmp_path):
    first = [make(i, row=i * HEIGHT) for i in range(4)]
    old = write(tmp_path / "c.cube", first)
    written = files(old.url)
    grids = [grid_of(), grid_of(crs="EPSG:32634")]
    added = [make(4, grid=1), make(5, row=HEIGHT, grid=1), make(6)]
    new = update(old, add=added, grids=grids)
    assert contents(new) == said([*first, *added], grids)
    assert new.parts[0] == replace(old.parts[0], offsets=((0, 0),)), "of the second grid it has nothing to shift"
    assert written.items() <= files(old.url).items()
    assert (len(open_manifest(old.url, old.version).grids), len(new.grids)) == (1, 2)


def test_of_several_grids_one_grows_and_the_others_stay(make, tmp_path):
    grids = [grid_of(), grid_of(crs="EPSG:32634"), grid_of(size=20.0)]
    first = [make(i, row=i * HEIGHT, column=i * WIDTH, grid=i % 3) for i in range(6)]
    old = write(tmp_path / "c.cube", first, grids)
    grown = [grids[0], grid_of(crs="EPSG:32634", up=2, left=3), grids[2]]
    second = [make(6, grid=1), make(7, grid=2)]
    once = update(old, add=second, grids=grown)
    expected = said(first, grids) | said(second, grown)
    assert contents(once) == expected
    assert [part.offsets for part in once.parts] == [((0, 0), (2 * HEIGHT, 3 * WIDTH), (0, 0)), ()]
    # Another grows, and one joins: what was written between is shifted by that alone.
    again = [grid_of(left=1), grown[1], grown[2], grid_of(crs="EPSG:3857")]
    third = [make(8), make(9, grid=3)]
    twice = update(once, add=third, grids=again)
    assert contents(twice) == expected | said(third, again)
    assert [part.offsets for part in twice.parts] == [
        ((0, WIDTH), (2 * HEIGHT, 3 * WIDTH), (0, 0)),
        ((0, WIDTH), (0, 0), (0, 0)),
        (),
    ]
    assert contents(open_manifest(old.url, old.version)) == said(first, grids)


def test_parts_that_become_one_keep_the_places_on_each_grid(make, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "_MOST_SMALL_PARTS", 2)
    grids = [grid_of(), grid_of(size=20.0)]
    members = [make(0), make(1, grid=1)]
    manifest, expected = write(tmp_path / "c.cube", members, grids), said(members, grids)
    for i in range(2, 8):
        grids = [grid_of(up=i // 2), grid_of(size=20.0, left=i)]
        member = make(i, row=i * HEIGHT, grid=i % 2)
        manifest = update(manifest, add=[member], grids=grids)
        expected |= said([member], grids)
        assert contents(manifest) == expected
    assert len(manifest.parts) < 4


@pytest.mark.parametrize("source", [-1, 1])
def test_removing_what_is_not_there_is_refused(make, tmp_path, source):
    old = write(tmp_path / "c.cube", [make(0)])
    with pytest.raises(ManifestError, match=rf"source {source} was to be removed; .*c\.cube has 1"):
        update(old, add=[make(1)], remove=[source])


@settings(max_examples=25)
@given(data=st.data())
def test_any_sequence_of_changes_leaves_what_was_said_last(make, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("changes") / "c.cube"
    numbers = itertools.count()
    draw = st.integers(0, 3)
    kinds = [{}, {"crs": "EPSG:32634"}, {"size": 20.0}]

    def some(count, grids):
        places = [(data.draw(draw) * HEIGHT, data.draw(draw) * WIDTH) for _ in range(count)]
        chosen = st.integers(0, len(grids) - 1)
        return [make(next(numbers), row=row, column=column, grid=data.draw(chosen)) for row, column in places]

    grown = [(0, 0)] * data.draw(st.integers(1, 2))
    grids = [grid_of(20, 20, **kind) for kind, _ in zip(kinds, grown, strict=False)]
    first = some(data.draw(st.integers(1, 6)), grids)
    manifest, expected = write(folder, first, grids), said(first, grids)
    history = {manifest.version: expected}
    for _ in range(data.draw(st.integers(1, 4))):
        grown = [(up + data.draw(draw), left + data.draw(draw)) for up, left in grown]
        grown += [(0, 0)] * data.draw(st.integers(0, len(kinds) - len(grown)))
        grids = [grid_of(20, 20, up=up, left=left, **kind) for kind, (up, left) in zip(kinds, grown, strict=False)]
        remove = data.draw(st.sets(st.integers(0, len(manifest) - 1), max_size=len(manifest)))
        added = some(data.draw(st.integers(0, 3)) or int(len(remove) == len(manifest)), grids)
        gone = {manifest.facts(source).href for source in remove}
        expected = {href: row for href, row in expected.items() if href not in gone} | said(added, grids)
        manifest = update(manifest, add=added, remove=sorted(remove), grids=grids)
        assert contents(manifest) == expected
        history[manifest.version] = expected
    for version, content in history.items():
        assert contents(open_manifest(str(folder), version)) == content


# Writers that meet, and writers that die.


def test_a_change_of_what_someone_else_changed_is_refused(make, tmp_path):
    old = write(tmp_path / "c.cube", [make(0)])
    theirs = update(old, add=[make(1)])
    with pytest.raises(
        ManifestError,
        match=rf"c\.cube was changed by someone else while this change was prepared: it was version {old.version} and "
        rf"is {theirs.version} now; nothing was changed, do it again",
    ):
        update(old, add=[make(2)])
    assert contents(open_manifest(old.url)) == said([make(0), make(1)])
    assert contents(update(theirs, add=[make(2)])) == said([make(0), make(1), make(2)])


def test_of_writers_that_start_together_one_wins(make, tmp_path):
    old = write(tmp_path / "c.cube", [make(0)])
    barrier, results = threading.Barrier(6), []

    def one(number):
        barrier.wait()
        try:
            arguments = {"bands": BANDS, "grids": [grid_of()], "attributes": {}}
            results.append(update_manifest(old, add=[make(number)], remove=[], **arguments))
        except ManifestError as error:
            results.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, ManifestError)]
    assert ["was changed by someone else" in str(error) for error in errors] == [True] * 5
    (winner,) = set(results) - set(errors)
    assert open_manifest(old.url).version == winner
    assert len(open_manifest(old.url)) == 2


WRITER = """
import os, pickle, signal, sys
from cube.manifest.open import open_manifest
from cube.manifest.snapshot import update_manifest
folder, job, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(job, "rb") as file:
    members, bands, grids = pickle.load(file)
renames = 0
def die(event, arguments):
    global renames
    if event == "os.rename":
        renames += 1
        if renames == stop:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
sys.addaudithook(die)
print("ready", flush=True)
while True:
    manifest = open_manifest(folder)
    remove = range(1, len(manifest))
    update_manifest(manifest, add=members, remove=remove, bands=bands, grids=grids, attributes={"n": len(manifest)})
    if stop:
        break
print("done", flush=True)
"""


@pytest.fixture
def job(make, tmp_path):
    path = tmp_path / "job.pickle"
    path.write_bytes(pickle.dumps(([make(i) for i in range(100, 105)], BANDS, [grid_of()])))
    return path


def start(folder, job, stop):
    command = [sys.executable, "-c", WRITER, str(folder), str(job), str(stop)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_writer_that_is_killed_before_any_of_its_files_leaves_the_old_version(make, tmp_path, job):
    folders = [tmp_path / f"{stop}.cube" for stop in range(1, 8)]
    manifests = [write(folder, [make(i) for i in range(3)]) for folder in folders]
    before = contents(manifests[0])
    running = [start(folder, job, stop) for stop, folder in enumerate(folders, start=1)]
    outcomes = ["done" in process.communicate()[0] for process in running]
    # Two files for what stays of the old part, two for the new one, the snapshot, the pointer.
    assert outcomes == [False] * 6 + [True]
    for folder, done in zip(folders, outcomes, strict=True):
        manifest = open_manifest(str(folder))
        if not done:
            assert contents(manifest) == before
        # What is left over harms nobody: the next change goes through.
        assert len(update(manifest, add=[make(7)])) == len(manifest) + 1


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_version(make, tmp_path, job):
    folder = tmp_path / "c.cube"
    write(folder, [make(i) for i in range(3)])
    randomness = random.Random(0)
    for _ in range(3):
        process = start(folder, job, 0)
        assert process.stdout.readline() == "ready\n"
        time.sleep(randomness.uniform(0.05, 0.3))
        process.kill()
        process.communicate()
        found = contents(open_manifest(str(folder)))
        assert len(found) in (3, 6)
        assert len(update(open_manifest(str(folder)), remove=[])) == len(found)


def test_the_pointer_is_small_and_names_the_version(make, tmp_path):
    manifest = write(tmp_path / "c.cube", [make(0)])
    pointer = json.loads((tmp_path / "c.cube" / "manifest.json").read_text())
    assert pointer == {"format": "cogcube-manifest", "schema": 3, "version": manifest.version}
