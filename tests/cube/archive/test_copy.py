"""A copy of a part of a cube is that part: the same numbers, from local files that any reader of TIFFs opens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import typer
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window as RasterWindow
from typer.testing import CliRunner

from cube import open_cube
from cube.archive.build import build
from cube.archive.check import check
from cube.archive.copy import ORIGIN, copy_cube
from cube.archive.copy_plan import plan_copy
from cube.archive.local_names import local_names
from cube.archive.update import append, refresh
from cube.cli import storage
from cube.errors import BuildError, CubeError, ReadError, SelectionError, SourceChangedError, SourceNotFoundError
from cube.grid import Window
from cube.io.trace import trace
from cube.manifest.open import Manifest, open_manifest
from cube.manifest.stored import read_stored
from cube.reader import read_block
from cube.spec import CubeSpec
from cube.testing import ObjectStore, unique_values, write_cog

DATES = ("20240115", "20240210", "20240405")
CORNER = (500000.0, 5000000.0)
PIXEL = 10


def place(row: int, column: int) -> Affine:
    return Affine(PIXEL, 0, CORNER[0] + PIXEL * column, 0, -PIXEL, CORNER[1] - PIXEL * row)


def write(
    root: Path, name: str, shape: tuple[int, ...], *, at: tuple[int, int] = (0, 0), seed: int = 0, **how: Any
) -> None:
    dtype = how.pop("dtype", "uint16")
    options: dict[str, Any] = {"nodata": 0} | how
    if options.get("driver") != "GTiff":
        options["blocksize"] = 128
    elif options.get("tiled", True):
        options |= {"blockxsize": 64, "blockysize": 64}
    write_cog(root / name, unique_values(shape, dtype, seed), transform=place(*at), **options)


def write_scenes(root: Path) -> None:
    """Write two bands on three dates, one file each, all alike."""
    for number, date in enumerate(DATES):
        for band in ("nir", "red"):
            write(root, f"s_{date}_{band}.tif", (400, 300), seed=number * 2 + (band == "red"))


def write_odd(root: Path) -> None:
    """Write files whose overviews are no whole parts of them."""
    for number, date in enumerate(DATES):
        write(root, f"s_{date}_red.tif", (397, 251), seed=number)


def write_mosaic(root: Path) -> None:
    """Write sources side by side that differ in codec, tiles, byte order and masks, some of them missing."""
    how: list[dict[str, Any]] = [
        {"compress": "LZW"},
        {"compress": "ZSTD", "BIGTIFF": "YES"},
        {"driver": "GTiff", "ENDIANNESS": "BIG", "compress": "DEFLATE"},
        {"driver": "GTiff", "tiled": False, "compress": "NONE", "blockysize": 7},
        {"driver": "GTiff", "tiled": False, "compress": "DEFLATE", "blockysize": 16},
        {"driver": "GTiff", "compress": "NONE", "interleave": "band"},
    ]
    for number, date in enumerate(DATES):
        for i, (row, column) in enumerate([(0, 0), (0, 128), (192, 0), (192, 128)]):
            if (number, i) not in {(0, 1), (1, 0), (1, 1), (1, 2)}:
                options = how[(4 * number + i) % len(how)]
                write(root, f"t{i}_{date}_nir.tif", (192, 128), at=(row, column), seed=9 * number + i, **options)


def write_masked(root: Path, *, beside: bool = False) -> None:
    """Write files of several bands with masks and overviews; one with its mask `beside` it, which GDAL reads."""
    for number, date in enumerate(DATES):
        name, is_inside = f"m_{date}.tif", not (beside and number == 1)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=is_inside):
            how: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "interleave": "pixel", "nodata": None}
            write(root, name, (3, 256, 320), seed=number, **how)
            with rasterio.open(root / name, "r+") as file:
                file.write_mask(unique_values((256, 320), "uint8", seed=50 + number) > 60)
            if is_inside:
                with rasterio.open(root / name, "r+") as file:
                    file.build_overviews([2, 4])


def write_overlaps(root: Path) -> None:
    """Write sources that lie on each other in parts, with holes through which the next shows."""
    for number, date in enumerate(DATES):
        for i, (row, column) in enumerate([(64, 0), (0, 60), (100, 130), (30, 30)]):
            values = unique_values((192, 160), "uint16", 9 * number + i)
            values[20 * i : 20 * i + 50, 40:90] = 0
            options = {"nodata": 0, "blocksize": 128} | ({"compress": "LZW"} if i == 2 else {})
            write_cog(root / f"t{i}_{date}_nir.tif", values, transform=place(row, column), **options)


def write_mixed(root: Path) -> None:
    """Write files of which GDAL reads one."""
    write_masked(root, beside=True)


ARCHIVES = {
    "scenes": write_scenes,
    "odd": write_odd,
    "mosaic": write_mosaic,
    "masked": write_masked,
    "mixed": write_mixed,
    "overlaps": write_overlaps,
}


@dataclass(frozen=True)
class Case:
    """An archive on a disk, and a cube of it as an object store serves it."""

    root: Path
    manifest: Manifest
    store: ObjectStore


@pytest.fixture(scope="module", params=ARCHIVES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    yield from make_case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def scenes(tmp_path: Path) -> Iterator[Case]:
    yield from make_case("scenes", tmp_path)


def make_case(kind: str, folder: Path) -> Iterator[Case]:
    root = folder / "files"
    ARCHIVES[kind](root)
    names = sorted(path.name for path in root.glob("*.tif"))
    with ObjectStore(root) as store:
        # What lies beside a file is looked for on a disk alone.
        where = str(root) if kind == "mixed" else store.url
        manifest = build([f"{where}/{name}" for name in names], name=kind, to=folder / "mine" / f"{kind}.cube")
        yield Case(root=root, manifest=manifest, store=store)


def box(manifest: Manifest, window: Window) -> tuple[float, float, float, float]:
    from pyproj import Transformer

    a, _, c, _, e, f = manifest.grid.transform
    bounds = (c + a * window.left, f + e * window.bottom, c + a * window.right, f + e * window.top)
    to_degrees = Transformer.from_crs(manifest.grid.crs, "OGC:CRS84", always_xy=True)
    return to_degrees.transform_bounds(*bounds, densify_pts=3)


def read_all(manifest: Manifest, level: int, times: list[int], bands: list[str], window: Window) -> dict[str, Any]:
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level)
    return read_block(spec, bands, times, window)


def require_equal(copy: Manifest, plan: Any, first: int = 0) -> None:
    """Compare all of a copy with the part of the cube that it is of, at each level."""
    bands = [band.name for band in copy.bands]
    assert bands == [band.name for band in plan.manifest.bands if band.name in bands]
    times = list(plan.selection.times)
    if copy.times is not None:
        assert copy.times.tolist() == plan.manifest.times[times].tolist()
    for level, window in enumerate(plan.cropped.windows):
        height, width = copy.grid_at(level).shape
        whole = Window(top=0, left=0, bottom=height, right=width)
        found = read_all(copy, level, list(range(len(times))), bands, whole)
        expected = read_all(plan.manifest, level + first, times, bands, window)
        for band in bands:
            np.testing.assert_array_equal(found[band], expected[band])


windows = st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 250), st.integers(1, 250))


@settings(max_examples=4)
@given(data=st.data())
def test_a_copy_holds_the_same_numbers(case: Case, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    manifest = case.manifest
    height, width = manifest.grid.shape
    down, across, rows, columns = data.draw(windows)
    top, left = int(down * (height - 1)), int(across * (width - 1))
    window = Window(top=top, left=left, bottom=min(height, top + rows), right=min(width, left + columns))
    bbox = box(manifest, window)
    names = [band.name for band in manifest.bands]
    bands = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    first, last = sorted(data.draw(st.tuples(st.sampled_from(DATES), st.sampled_from(DATES))))
    when = tuple(f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in (first, last))
    plan = plan_copy(manifest, tmp_path_factory.mktemp("copy"), bbox=bbox, bands=bands, time=when)
    assert not list(plan.folder.parent.iterdir())
    copy = copy_cube(plan).manifest
    require_equal(copy, plan)
    for level in range(len(manifest.levels)):
        options: dict[str, Any] = {"bands": bands, "bbox": bbox, "time": when, "level": level, "mask_and_scale": False}
        one, other = open_cube(manifest, **options), open_cube(copy, **options)
        if plan.cropped.is_even:
            assert one.drop_attrs().equals(other.drop_attrs())
        for name in bands:
            np.testing.assert_array_equal(one[name].values[..., : other.sizes["y"], : other.sizes["x"]], other[name])
            assert one[name].attrs == other[name].attrs
    assert check(copy, pixels=False).ok
    assert refresh(copy).manifest.version == copy.version


def test_whole_cubes_and_other_readers(case: Case, tmp_path: Path) -> None:
    plan = plan_copy(case.manifest, tmp_path, name="all")
    copy = copy_cube(plan).manifest
    require_equal(copy, plan)
    assert copy.name == "all"
    # GDAL sees no difference, masks and tags among it; overviews that the cube has not are left out.
    for source in read_stored(copy):
        original = case.root / Path(source.source.href).name
        with rasterio.open(original) as one, rasterio.open(source.source.href) as other:
            assert {**one.profile, "blockysize": 0} == {**other.profile, "blockysize": 0}
            assert (one.tags(), one.scales, one.descriptions) == (other.tags(), other.scales, other.descriptions)
            np.testing.assert_array_equal(one.read(), other.read())
            np.testing.assert_array_equal(one.dataset_mask(), other.dataset_mask())
            for band in one.indexes:
                assert one.overviews(band)[: len(copy.levels) - 1] == other.overviews(band)
        for level in range(len(case.manifest.levels) - 1):
            with (
                rasterio.open(original, OVERVIEW_LEVEL=level) as one,
                rasterio.open(source.source.href, OVERVIEW_LEVEL=level) as other,
            ):
                np.testing.assert_array_equal(one.read(), other.read())


@pytest.mark.parametrize("fuse", ["first", "last", "newest", "least_cloudy", "median"])
def test_of_scenes_that_overlap_the_same_lies_on_top(tmp_path: Path, fuse: str) -> None:
    """Whatever their copies are called: here the order of the originals' folders, then of their clouds."""
    features = []
    for i, (folder, cloud) in enumerate([("c", 5), ("a", 50), ("b", 20)]):
        write(tmp_path / folder, "B04.tif", (192, 160), at=(20 * i, 30 * i), seed=i)
        asset = {"href": (tmp_path / folder / "B04.tif").as_posix(), "type": "image/tiff; application=geotiff"}
        features.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": "same" if i < 2 else "other",
                "collection": f"pass-{i}",
                "geometry": None,
                "links": [],
                "properties": {"datetime": f"2024-01-15T10:00:{i // 2:02}Z", "eo:cloud_cover": cloud},
                "assets": {"red": {**asset, "roles": ["data"]}},
            }
        )
    manifest = build({"type": "FeatureCollection", "features": features}, to=tmp_path / "o.cube")
    assert len(manifest) == 3
    options: dict[str, Any] = {"groupby": "solar_day", "fuse": fuse, "mask_and_scale": False}
    bbox = box(manifest, Window(top=10, bottom=150, left=20, right=180))
    copy = copy_cube(plan_copy(manifest, tmp_path / "copied", bbox=bbox)).manifest
    expected, found = open_cube(manifest, **options), open_cube(copy, **options)
    assert found.sizes["time"] == 1
    np.testing.assert_array_equal(found.red, expected.red.sel(x=found.x, y=found.y))


def test_uncopied_tiles_are_sparse_to_gdal_and_outside_of_the_cube(scenes: Case, tmp_path: Path) -> None:
    bbox = box(scenes.manifest, Window(top=140, bottom=200, left=140, right=200))
    copy = copy_cube(plan_copy(scenes.manifest, tmp_path, bbox=bbox)).manifest
    tile = RasterWindow(128, 128, 128, 128)
    for source in read_stored(copy):
        original = scenes.root / Path(source.source.href).name
        with rasterio.open(original) as one, rasterio.open(source.source.href) as other:
            assert other.shape == one.shape
            np.testing.assert_array_equal(one.read(window=tile), other.read(window=tile))
            rest = other.read(1)
            rest[128:256, 128:256] = 0
            assert not rest.any()
    with pytest.raises(SelectionError, match="outside"):
        open_cube(copy, bbox=box(scenes.manifest, Window(top=300, bottom=310, left=200, right=210)))
    assert copy.grid.shape[0] < 80


def test_it_says_before_what_it_will_ask(scenes: Case, tmp_path: Path) -> None:
    bbox = box(scenes.manifest, Window(top=70, bottom=120, left=70, right=120))
    scenes.store.reset()
    plan = plan_copy(scenes.manifest, tmp_path, bbox=bbox, bands="red", time="2024-02")
    assert scenes.store.counts().requests == 0
    copy_cube(plan)
    counts = scenes.store.counts()
    assert (counts.requests, counts.bytes) == (plan.requests, plan.bytes)
    assert len(plan.transfers) == 1
    text = str(plan)
    assert f"{plan.requests} requests" in text
    assert "1 files" in text


def test_with_nothing_to_do_it_says_so_and_asks_nothing(scenes: Case, tmp_path: Path) -> None:
    copy_cube(plan_copy(scenes.manifest, tmp_path))
    before = (tmp_path / "scenes.cube" / "manifest.json").stat().st_mtime_ns
    scenes.store.reset()
    plan = plan_copy(scenes.manifest, tmp_path)
    with trace() as asked:
        done = copy_cube(plan)
    assert "nothing to do" in str(plan)
    assert "nothing to do" in str(done)
    assert scenes.store.counts().requests == 0
    assert {record.href.rpartition("/")[2] for record in asked.records} <= {"manifest.json"}
    assert (tmp_path / "scenes.cube" / "manifest.json").stat().st_mtime_ns == before


def test_a_file_that_is_gone_or_cut_is_copied_again(scenes: Case, tmp_path: Path) -> None:
    copy_cube(plan_copy(scenes.manifest, tmp_path))
    files = sorted((tmp_path / "scenes").glob("*.tif"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])
    scenes.store.reset()
    plan = plan_copy(scenes.manifest, tmp_path)
    assert copy_cube(plan).written == 2
    assert set(scenes.store.counts().paths) == {file.name for file in files[:2]}
    require_equal(open_manifest(str(plan.folder)), plan)


COPY = """
    import sys
    from cube.archive.copy import copy_cube
    from cube.archive.copy_plan import plan_copy
    from cube.manifest.open import open_manifest
    copy_cube(plan_copy(open_manifest(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_in_the_middle_it_goes_on_where_it_was(scenes: Case, kills: int, tmp_path: Path) -> None:
    to = tmp_path / "to"
    with ObjectStore(scenes.root, latency_s=0.1) as slow:
        names = sorted(path.name for path in scenes.root.glob("*.tif"))
        manifest = build([f"{slow.url}/{name}" for name in names], name="slow", to=tmp_path / "slow.cube")
        # One at a time, so that it takes long enough to be killed at several points.
        environment = {**os.environ, "CUBE_REQUESTS_IN_FLIGHT": "1", "CUBE_HEDGE_SHARE": "0"}
        command = [sys.executable, "-c", textwrap.dedent(COPY), manifest.url, str(to)]
        kept: set[str] = set()
        for _ in range(kills):
            process = subprocess.Popen(command, env=environment)
            while process.poll() is None and len(finished(to)) < len(kept) + 1:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (to / "slow.cube" / "manifest.json").exists()
            now = finished(to)
            assert now > kept
            kept = now
        assert len(kept) < len(names)
        slow.reset()
        plan = plan_copy(manifest, to)
        done = copy_cube(plan)
        assert done.written == len(names) - len(kept)
        assert set(slow.counts().paths) == set(names) - kept
        require_equal(done.manifest, plan)
        assert [*to.rglob("*.part")] == []


def finished(to: Path) -> set[str]:
    journal = to / "slow.cube" / ".copied"
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    return {json.loads(line)[0].rpartition("/")[2] for line in lines if line.endswith("]\n")}


def test_half_a_line_in_the_journal_is_none(scenes: Case, tmp_path: Path) -> None:
    plan = plan_copy(scenes.manifest, tmp_path)
    copy_cube(plan)
    journal = plan.folder / ".copied"
    journal.write_text(journal.read_text()[:-5])
    again = plan_copy(scenes.manifest, tmp_path)
    assert len(again.waiting) == 1
    copy_cube(again)
    assert plan_copy(scenes.manifest, tmp_path).is_done


def test_a_source_that_changed_is_refused_by_name_and_then_refreshed(scenes: Case, tmp_path: Path) -> None:
    write(scenes.root, f"s_{DATES[0]}_red.tif", (400, 300), seed=99)
    with pytest.raises(SourceChangedError, match=f"s_{DATES[0]}_red.tif.*cube refresh"):
        copy_cube(plan_copy(scenes.manifest, tmp_path))
    assert not (tmp_path / "scenes.cube" / "manifest.json").exists()
    refreshed = refresh(scenes.manifest).manifest
    scenes.store.reset()
    plan = plan_copy(refreshed, tmp_path)
    done = copy_cube(plan)
    require_equal(done.manifest, plan)
    assert f"s_{DATES[0]}_red.tif" in scenes.store.counts().paths


def test_a_source_that_is_gone_is_named(scenes: Case, tmp_path: Path) -> None:
    (scenes.root / f"s_{DATES[1]}_nir.tif").unlink()
    with pytest.raises(SourceNotFoundError, match=f"s_{DATES[1]}_nir.tif"):
        copy_cube(plan_copy(scenes.manifest, tmp_path))


def test_a_changed_local_source_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "files"
    write_odd(root)
    manifest = build(str(root), name="odd", to=tmp_path / "odd.cube")
    write(root, f"s_{DATES[0]}_red.tif", (397, 251), seed=99)
    with pytest.raises(SourceChangedError, match=f"s_{DATES[0]}_red.tif"):
        copy_cube(plan_copy(manifest, tmp_path / "to"))


def test_a_finished_copy_takes_what_was_appended(scenes: Case, tmp_path: Path) -> None:
    copy_cube(plan_copy(scenes.manifest, tmp_path))
    write(scenes.root, "s_20240501_red.tif", (400, 300), seed=77)
    longer = append(scenes.manifest, f"{scenes.store.url}/s_20240501_red.tif").manifest
    scenes.store.reset()
    plan = plan_copy(longer, tmp_path)
    assert copy_cube(plan).written == 1
    assert set(scenes.store.counts().paths) == {"s_20240501_red.tif"}
    require_equal(open_manifest(str(plan.folder)), plan)


def test_the_folder_can_be_moved_and_everything_else_lost(case: Case, tmp_path: Path) -> None:
    plan = plan_copy(case.manifest, tmp_path / "here")
    copy_cube(plan)
    # As onto another machine: other times, other inodes.
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "here")
    for path in (tmp_path / "there").rglob("*.tif"):
        os.utime(path, (1, 1))
    case.store.reset()
    moved = open_manifest(str(tmp_path / "there" / plan.folder.name))
    require_equal(moved, plan)
    hrefs = [source.source.href for source in read_stored(moved)]
    assert all(href.startswith(str(tmp_path / "there")) for href in hrefs)
    origins = {json.loads(text)[ORIGIN] for text in moved.source_table()["properties"].to_pylist()}
    assert origins == {source.source.href for source in read_stored(case.manifest)}


def test_dates_without_a_source_in_the_window_stay(tmp_path: Path) -> None:
    root = tmp_path / "files"
    write_mosaic(root)
    manifest = build(str(root), name="mosaic", to=tmp_path / "mosaic.cube")
    bbox = box(manifest, Window(top=5, bottom=60, left=135, right=200))
    plan = plan_copy(manifest, tmp_path / "to", bbox=bbox)
    copy = copy_cube(plan).manifest
    assert copy.times is not None
    assert len(copy.times) == len(DATES)
    require_equal(copy, plan)
    found = open_cube(copy, mask_and_scale=False)["band_1"].values
    assert [bool(date.any()) for date in found] == [False, False, True]


def test_layers_without_time(tmp_path: Path) -> None:
    write(tmp_path / "files", "dem.tif", (300, 200), dtype="float32")
    manifest = build(str(tmp_path / "files"), name="dem", to=tmp_path / "dem.cube")
    plan = plan_copy(manifest, tmp_path / "to", bbox=box(manifest, Window(top=5, bottom=60, left=135, right=200)))
    require_equal(copy_cube(plan).manifest, plan)


def test_bands_of_a_file_that_are_dates(tmp_path: Path) -> None:
    write(tmp_path / "files", "years.tif", (4, 200, 200), descriptions=("2001", "2002", "2003", "2004"))
    manifest = build(str(tmp_path / "files"), name="years", to=tmp_path / "years.cube", bands_as="time:%Y")
    plan = plan_copy(manifest, tmp_path / "to", time=("2002", "2003"))
    require_equal(copy_cube(plan).manifest, plan)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("kind", ["scenes", "odd"])
def test_a_coarse_copy_begins_with_the_level_that_was_asked_for(kind: str, level: int, tmp_path: Path) -> None:
    root = tmp_path / "files"
    ARCHIVES[kind](root)
    manifest = build(str(root), name=kind, to=tmp_path / f"{kind}.cube")
    bbox = box(manifest, Window(top=150, bottom=260, left=50, right=200))
    plan = plan_copy(manifest, tmp_path / "to", bbox=bbox, level=level)
    copy = copy_cube(plan).manifest
    assert len(copy.levels) == len(manifest.levels) - level
    require_equal(copy, plan, first=level)
    one = open_cube(manifest, bbox=bbox, level=level, mask_and_scale=False)
    other = open_cube(copy, bbox=bbox, mask_and_scale=False)
    xr.testing.assert_allclose(one.drop_attrs(), other.drop_attrs(), rtol=1e-12)
    assert check(copy, pixels=False).ok
    # The files say where they are by themselves, too.
    rebuilt = build(str(tmp_path / "to" / kind), name="again", to=tmp_path / "again.cube")
    assert rebuilt.grid.shape == manifest.grid_at(level).shape
    np.testing.assert_allclose(rebuilt.grid.transform, manifest.grid_at(level).transform, rtol=1e-12)


def test_a_coarse_copy_of_what_gdal_reads_is_refused(tmp_path: Path) -> None:
    # Files of 24 bits are decoded by GDAL alone.
    for number, date in enumerate(DATES):
        write(tmp_path / "files", f"s_{date}.tif", (400, 300), seed=number, dtype="uint32", NBITS=24, predictor="NO")
    manifest = build(str(tmp_path / "files"), name="slow", to=tmp_path / "slow.cube")
    assert len(manifest.levels) > 1
    with pytest.raises(SelectionError, match="GDAL reads 3 of the files"):
        plan_copy(manifest, tmp_path / "to", level=1)
    plan = plan_copy(manifest, tmp_path / "to")
    assert "3 files are copied whole" in str(plan)
    require_equal(copy_cube(plan).manifest, plan)


def test_remote_files_that_gdal_reads_are_copied_whole(tmp_path: Path) -> None:
    root = tmp_path / "files"
    write(root, "s_20240101.tif", (400, 300), dtype="uint32", NBITS=24, predictor="NO")
    with ObjectStore(root) as store:
        manifest = build(f"{store.url}/s_20240101.tif", name="slow", to=tmp_path / "slow.cube")
        store.reset()
        plan = plan_copy(manifest, tmp_path / "to", bbox=box(manifest, Window(top=0, bottom=9, left=0, right=9)))
        copy = copy_cube(plan).manifest
        assert (store.counts().requests, store.counts().bytes) == (plan.requests, plan.bytes)
        require_equal(copy, plan)
    (found,) = read_stored(copy)
    assert Path(found.source.href).read_bytes() == (root / "s_20240101.tif").read_bytes()


def test_what_is_there_is_not_overwritten(scenes: Case, tmp_path: Path) -> None:
    manifest = scenes.manifest
    with pytest.raises(CubeError, match="is the cube itself"):
        plan_copy(manifest, Path(manifest.url).parent)
    with pytest.raises(CubeError, match="is a cube, and no copy"):
        plan_copy(build(str(scenes.root), name="scenes", to=tmp_path / "scenes.cube"), Path(manifest.url).parent)
    copy_cube(plan_copy(manifest, tmp_path / "to", bands="red"))
    with pytest.raises(CubeError, match=r"another part \(bands \['red'\]\)"):
        plan_copy(manifest, tmp_path / "to", bands="nir")
    with pytest.raises(CubeError, match="is a URL"):
        plan_copy(manifest, "s3://bucket/there")
    with pytest.raises(CubeError, match="no name of a folder"):
        plan_copy(manifest, tmp_path / "to", name="../x")


def test_a_copy_is_not_changed_but_taken_again(scenes: Case, tmp_path: Path) -> None:
    # Its files have the size of the originals: a cube made of them anew would read what was not copied as empty.
    bbox = box(scenes.manifest, Window(top=140, bottom=200, left=140, right=200))
    copy = copy_cube(plan_copy(scenes.manifest, tmp_path, bbox=bbox)).manifest
    assert refresh(copy).manifest.version == copy.version
    with pytest.raises(BuildError, match=r"is a copy.*cube copy"):
        refresh(copy, every=True)
    with pytest.raises(BuildError, match=r"is a copy.*cube copy"):
        append(copy, str(scenes.root))
    next((tmp_path / "scenes").glob("*.tif")).unlink()
    with pytest.raises(BuildError, match=r"is a copy.*cube copy"):
        refresh(copy, drop_vanished=True)


def test_two_at_once_do_not_write_into_one_folder(scenes: Case, tmp_path: Path) -> None:
    from cube.io.lock import locked

    plan = plan_copy(scenes.manifest, tmp_path)
    plan.folder.mkdir()
    with locked(plan.folder / ".copying"), pytest.raises(CubeError, match="being written by another"):
        copy_cube(plan)
    copy_cube(plan)


def test_a_disk_without_room_is_noticed_before(scenes: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_copy(scenes.manifest, tmp_path)
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=plan.disk_bytes))
    scenes.store.reset()
    with pytest.raises(CubeError, match=r"takes .* and .* left"):
        copy_cube(plan)
    assert scenes.store.counts().requests == 0


def test_signed_sources(scenes: Case, tmp_path: Path) -> None:
    plan = plan_copy(scenes.manifest, tmp_path)
    copy_cube(plan, patch_url=lambda href: f"{href}?signature=secret")
    require_equal(open_manifest(str(plan.folder)), plan)
    for path in plan.folder.parent.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()


def test_a_damaged_header_is_an_error_that_names_the_file(scenes: Case, tmp_path: Path) -> None:
    manifest = build(str(scenes.root), name="local", to=tmp_path / "local.cube")
    path = scenes.root / f"s_{DATES[0]}_red.tif"
    kept, data = path.stat(), bytearray(path.read_bytes())
    data[4:8] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    with pytest.raises((ReadError, CubeError), match=f"s_{DATES[0]}_red.tif"):
        copy_cube(plan_copy(manifest, tmp_path / "to"))


# Names.

segments = st.text(alphabet='ab.:*"?\\<>|%é \x01', min_size=1, max_size=6)
hrefs = st.lists(
    st.tuples(
        st.sampled_from(["https://a.example", "s3://bucket", "/data"]), st.lists(segments, min_size=1, max_size=3)
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda each: (each[0], "/".join(each[1])),
)


@given(hrefs)
def test_names_are_apart_and_fit_for_any_system(made: Any) -> None:
    given_hrefs = ["/".join([root, *parts]) for root, parts in made]
    names = local_names(given_hrefs, "mine")
    assert list(names) == given_hrefs
    assert len({name.casefold() for name in names.values()}) == len(names)
    for name in names.values():
        first, *rest = name.split("/")
        assert first == "mine"
        assert rest
        for each in rest:
            assert each.strip(". ") == each or each.startswith("_")
            assert not set(each) & set('<>:"|?*\\\x01')


def test_names_are_what_tells_files_apart() -> None:
    there = ["https://x.example/a/b/2024/red.tif", "https://x.example/a/b/2025/red.tif"]
    assert list(local_names(there, "m").values()) == ["m/2024/red.tif", "m/2025/red.tif"]
    assert list(local_names(["https://x.example/a/red.tif"], "m").values()) == ["m/red.tif"]
    (versioned,) = local_names(["https://x.example/a/red.tif?versionId=7"], "m").values()
    assert versioned.startswith("m/red-")
    assert versioned.endswith(".tif")


# The command.


def test_the_command_says_what_it_takes_and_goes_on(
    scenes: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()
    app.command()(storage.copy)
    app.command()(storage.cache)
    arguments = ["copy", scenes.manifest.url, "--to", str(tmp_path), "--bands", "red", "--time", "2024-01/2024-02"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert "2 files to write" in first.stderr
    assert "requests for" in first.stderr
    assert "2 of 2 files written" in first.stdout
    second = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(second.stdout)["written"] == 0
    assert second.stderr == ""
    monkeypatch.chdir(tmp_path)
    assert list(open_cube("scenes.cube").data_vars) == ["red"]
