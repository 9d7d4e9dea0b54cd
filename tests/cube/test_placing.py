"""Cubes that say on which pixels and dates they open: everything that reads them does so on those."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import xarray as xr
from affine import Affine

from cube.archive.build import build
from cube.archive.check import check
from cube.archive.copy_plan import plan_copy
from cube.archive.update import append, refresh
from cube.dataset import open_cube
from cube.errors import ManifestError, ReferencesError, SelectionError
from cube.manifest.open import Manifest, open_manifest
from cube.placing import place
from cube.references.plan import plan_references
from cube.spec import CubeSpec, Placing
from cube.store import CubeStore
from cube.testing import ObjectStore, unique_values, write_cog

PATTERN = "{tile}_{time:%Y%m%dT%H%M%S}_{band}.tif"
ON = {"crs": "EPSG:32633", "resolution": 20, "groupby": "solar_day", "resampling": "average", "fuse": "last"}


def write(folder: Path, name: str, seed: int, *, crs: str = "EPSG:32633", left: float = 399960, **options) -> None:
    transform = Affine(10, 0, left, 0, -10, 5400000)
    values = unique_values((128, 128), "uint16", seed)
    write_cog(folder / name, values, crs=crs, transform=transform, nodata=0, blocksize=128, OVERVIEW_COUNT=1, **options)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A pass over two zones, seconds apart, whose scenes overlap; and the next day's."""
    folder = tmp_path / "files"
    for i, band in enumerate(("red", "nir")):
        write(folder, f"a_20240101T100000_{band}.tif", 10 * i)
        write(folder, f"b_20240101T100024_{band}.tif", 10 * i + 1, left=399960 + 1000)
        write(folder, f"c_20240101T100030_{band}.tif", 10 * i + 2, crs="EPSG:32632", left=838000)
        write(folder, f"a_20240102T100000_{band}.tif", 10 * i + 3)
    return folder


@pytest.fixture
def manifest(files: Path, tmp_path: Path) -> Manifest:
    return build(files, pattern=PATTERN, to=tmp_path / "m.cube")


def test_a_cube_opens_where_it_was_placed(manifest: Manifest) -> None:
    with pytest.raises(SelectionError, match="lie on 2 grids"):
        open_cube(manifest)
    expected = open_cube(manifest, **ON)
    placed = place(manifest, **ON)
    assert (manifest.said, placed.said) == (None, placed.on)
    assert placed.on == Placing(
        grid=expected.cube.grid,
        lattice=None,
        groupby="solar_day",
        longitude=placed.on.longitude,
        fuse="last",
        resampling=(("nir", "average"), ("red", "average")),
    )
    for what in (placed, manifest.url):
        xr.testing.assert_identical(open_cube(what), expected)
    assert [str(time)[:10] for time in expected.time.values] == ["2024-01-01", "2024-01-02"]
    assert open_cube(placed).cube.grid == placed.grid
    with pytest.raises(SelectionError, match="lie on 2 grids"):
        open_cube(open_manifest(manifest.url, manifest.version))


def test_placing_writes_no_rows(manifest: Manifest) -> None:
    before = {path.name for path in Path(manifest.url).glob("*.parquet")}
    placed = place(manifest, **ON)
    assert {path.name for path in Path(manifest.url).glob("*.parquet")} == before
    assert [replace(part, offsets=()) for part in placed.parts] == list(manifest.parts)
    assert (placed.bands, placed.attributes, placed.built) == (manifest.bands, manifest.attributes, manifest.built)


def test_what_is_said_on_opening_counts_first(manifest: Manifest) -> None:
    placed = place(manifest, **ON)
    for options in ({"resolution": 40, "crs": "EPSG:32633"}, {"fuse": "first"}, {"groupby": "time"}):
        xr.testing.assert_identical(open_cube(placed, **options), open_cube(manifest, **ON | options))
    nearest = open_cube(placed, resampling={"red": "nearest", "*": "average"})
    mixed = ON | {"resampling": {"red": "nearest", "*": "average"}}
    xr.testing.assert_identical(nearest, open_cube(manifest, **mixed))


def test_a_place_is_a_window_of_a_placed_cube(manifest: Manifest) -> None:
    placed = place(manifest, **ON)
    whole = open_cube(placed)
    part = open_cube(placed, "red", bbox=(13.645, 48.74, 13.65, 48.745), time="2024-01-01")
    assert 0 < part.sizes["x"] < whole.sizes["x"]
    assert 0 < part.sizes["y"] < whole.sizes["y"]
    np.testing.assert_array_equal(part.red, whole.red.sel(x=part.x, y=part.y, time=part.time))


def test_what_is_not_given_stays(manifest: Manifest) -> None:
    once = place(manifest, **ON)
    twice = place(once, fuse="median")
    assert twice.on == replace(once.on, fuse="median")
    again = place(twice, crs="EPSG:32633", resolution=40)
    assert again.on == replace(twice.on, grid=again.grid, longitude=again.on.longitude)
    assert again.grid.transform[0] == 40
    assert place(again).version == again.version


def test_a_placed_cube_has_overviews(manifest: Manifest) -> None:
    placed = place(manifest, **ON)
    assert len(placed.levels) == 2
    fine, coarse = open_cube(placed), open_cube(placed, level=1)
    assert coarse.odc.geobox.resolution.x == 40
    assert coarse.sizes["x"] == -(-fine.sizes["x"] // 2)
    expected = open_cube(manifest, **ON | {"geobox": coarse.odc.geobox, "crs": None, "resolution": None})
    np.testing.assert_array_equal(coarse.red, expected.red)


def test_a_placed_cube_grows_where_it_is(files: Path, manifest: Manifest) -> None:
    placed = place(manifest, **ON)
    for i, band in enumerate(("red", "nir")):
        write(files, f"b_20240103T100000_{band}.tif", 20 + i, left=399960 + 5000)  # where the old grid has no pixels
    done = append(placed, files)
    assert (done.added, done.known, done.manifest.said) == (2, 8, placed.said)
    before, after = open_cube(placed), open_cube(done.manifest)
    assert (before.sizes["time"], after.sizes["time"]) == (2, 3)
    np.testing.assert_array_equal(after.red[:2], before.red)
    write(files, "a_20240102T100000_red.tif", 30, compress="ZSTD")
    fresh = refresh(done.manifest)
    assert (fresh.refreshed, fresh.manifest.said) == (1, placed.said)
    xr.testing.assert_identical(open_cube(fresh.manifest), open_cube(manifest.url))
    assert not check(fresh.manifest).of("changed", "unreadable", "vanished")


def test_a_cube_on_one_grid_may_be_placed_on_its_own_pixels(files: Path, tmp_path: Path) -> None:
    manifest = build(sorted(files.glob("[ab]_*.tif")), pattern=PATTERN, to=tmp_path / "own.cube")
    placed = place(manifest, groupby="solar_day")
    assert (placed.on.lattice, placed.on.grid, placed.steps) == (0, None, 2)
    xr.testing.assert_identical(open_cube(placed), open_cube(manifest, groupby="solar_day"))
    assert open_cube(placed, level=1).sizes["time"] == 2


def test_a_placed_cube_is_a_store_of_its_pixels(manifest: Manifest) -> None:
    placed = place(manifest, **ON)
    ds = open_cube(placed, mask_and_scale=False)
    store = CubeStore(placed, chunks=(32, 32))
    document = json.loads(store.metadata(2)["red/.zarray"])
    assert tuple(document["shape"]) == ds.red.shape
    with pytest.raises(SelectionError, match="lie on 2 grids"):
        CubeStore(manifest)


def test_what_needs_the_pixels_of_the_sources_says_so(manifest: Manifest) -> None:
    placed = place(manifest, **ON)
    with pytest.raises(ReferencesError, match=r"'m' is on a grid of its own \(EPSG:32633, pixels of 20 x -20\), onto"):
        plan_references(placed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "lie on 2 grids"),
        ({"groupby": "solar_day"}, "lie on 2 grids"),
        ({"crs": "EPSG:3857"}, "say how large pixels are"),
        ({"resolution": 20, "fuse": "top"}, "fuse='top'"),
        ({"resolution": 20, "resampling": "linear"}, "resampling='linear'"),
    ],
)
def test_what_makes_no_place_changes_nothing(manifest: Manifest, options: dict, message: str) -> None:
    before = {path.name: path.read_bytes() for path in Path(manifest.url).iterdir()}
    with pytest.raises(SelectionError, match=message):
        place(manifest, **options)
    assert {path.name: path.read_bytes() for path in Path(manifest.url).iterdir()} == before


def test_a_cube_behind_a_url_is_placed_where_it_is_on_a_disk(manifest: Manifest, tmp_path: Path) -> None:
    with ObjectStore(tmp_path) as store:
        remote = open_manifest(f"{store.url}/m.cube")
        with pytest.raises(SelectionError, match=r"m\.cube is a URL: place the cube where it is on a disk"):
            place(remote, **ON)
        placed = place(manifest, **ON)
        again = open_manifest(f"{store.url}/m.cube")
        assert again.on == placed.on


def test_someone_else_was_faster(manifest: Manifest) -> None:
    place(manifest, resolution=20)
    with pytest.raises(ManifestError, match="changed by someone else"):
        place(manifest, resolution=40)


@pytest.mark.parametrize(
    "changes",
    [
        *({"lattice": 9, "grid": None}, {"grid": {}}, {"grid": 5}, {"more": 1}, None),
        *({"groupby": "week"}, {"fuse": "top"}, {"resampling": {"red": "linear"}}),
    ],
)
def test_a_damaged_placing_is_told(manifest: Manifest, tmp_path: Path, changes: dict | None) -> None:
    placed = place(manifest, **ON)
    copy = shutil.copytree(placed.url, tmp_path / "copy.cube")
    path = copy / f"snapshot-{placed.version}.json"
    snapshot = json.loads(path.read_text())
    snapshot["cube"]["on"] = 5 if changes is None else snapshot["cube"]["on"] | changes
    path.write_text(json.dumps(snapshot))
    with pytest.raises(ManifestError, match=r"is damaged|was asked for"):
        open_manifest(str(copy))


def test_a_spec_says_nothing_more_than_the_cube(manifest: Manifest) -> None:
    placed = place(manifest, **ON)
    assert open_cube(placed).encoding["cube"] == CubeSpec(manifest=placed.url, version=placed.version)


def test_a_copy_is_of_the_sources_own_pixels(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="lie on 2 grids"):
        plan_copy(manifest, tmp_path / "copied")
    with pytest.raises(SelectionError, match="'m' is on a grid of its own"):
        plan_copy(place(manifest, **ON), tmp_path / "copied")
