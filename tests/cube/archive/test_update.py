"""Sources that join a cube, and sources that changed: what fits is taken in, what does not leaves all as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from cube.archive.build import build
from cube.archive.update import append, refresh
from cube.dataset import open_cube
from cube.errors import BuildError, ManifestError, SelectionError, SourceChangedError, SourceError
from cube.grid import Window
from cube.manifest.open import Manifest, open_manifest
from cube.manifest.stored import read_stored
from cube.reader import read_block
from cube.spec import CubeSpec, Placing
from cube.testing import Archive, ObjectStore, write_archive, write_cog
from cube.testing.archive import unique_values

SIZE = 64
DATES = ("20240101", "20240111", "20240121")


def place(column: int = 0, row: int = 0) -> Affine:
    return Affine(10, 0, 399960 + column * 10, 0, -10, 5400000 - row * 10)


def write(folder: Path, name: str, seed: int = 0, dtype: str = "uint16", shape=(SIZE, SIZE), **options) -> np.ndarray:
    values = unique_values(shape, dtype, seed)
    write_cog(folder / name, values, blocksize=128, **{"nodata": 0, "OVERVIEWS": "NONE", **options})
    return values


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three dates of red and nir."""
    folder = tmp_path / "files"
    for i, date in enumerate(DATES):
        for j, band in enumerate(("red", "nir")):
            write(folder, f"T1_{date}_{band}.tif", seed=2 * i + j)
    return folder


@pytest.fixture
def manifest(files: Path, tmp_path: Path) -> Manifest:
    return build(files, to=tmp_path / "s.cube", attributes={"title": "mine"})


def state(manifest: Manifest) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(manifest.url).iterdir() if path.name != ".lock"}


def refuse(manifest: Manifest, message: str, act) -> None:
    """Check that a change is refused and leaves the folder as it was, byte for byte."""
    before = state(manifest)
    with pytest.raises(BuildError, match=message):
        act()
    after = state(manifest)
    assert {name: after[name] for name in before} == before
    assert open_manifest(manifest.url).version == manifest.version


def on(manifest: Manifest, lattice: int, level: int = 0) -> dict[str, np.ndarray]:
    """Return all that is stored of each band on one of the grids of a cube."""
    height, width = manifest.grids[lattice].grids[level].shape
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level, on=Placing(lattice=lattice))
    bands = [band.name for band in manifest.bands]
    return read_block(spec, bands, range(manifest.steps), Window(top=0, bottom=height, left=0, right=width))


class TestAppend:
    def test_a_new_date_joins_and_what_is_there_is_ignored(self, files: Path, manifest: Manifest) -> None:
        red = write(files, "T1_20240106_red.tif", seed=10)
        nir = write(files, "T1_20240106_nir.tif", seed=11)
        done = append(manifest, files)
        assert (done.added, done.known, done.refreshed, done.dropped, done.left_out) == (2, 6, 0, (), ())
        ds = open_cube(done.manifest, mask_and_scale=False)
        assert [str(time)[:10] for time in ds.time.values] == ["2024-01-01", "2024-01-06", "2024-01-11", "2024-01-21"]
        np.testing.assert_array_equal(ds.red[1], red)
        np.testing.assert_array_equal(ds.nir[1], nir)
        assert done.manifest.attributes == {"title": "mine", "archive": "8 items, 4 dates"}
        assert str(done).startswith("s: 2 added, 6 there already; 8 sources, version ")

    def test_the_result_is_what_a_build_of_all_gives(self, files: Path, manifest: Manifest, tmp_path: Path) -> None:
        write(files, "T1_20240201_red.tif", seed=10)
        done = append(manifest, files / "T1_20240201_red.tif")
        whole = build(files, to=tmp_path / "whole.cube", attributes={"title": "mine"})
        for name in ("bands", "levels", "attributes"):
            assert getattr(done.manifest, name) == getattr(whole, name)
        assert open_cube(done.manifest).drop_attrs().identical(open_cube(whole).drop_attrs())
        table = done.manifest.source_table().to_pylist()
        columns = set(table[0]) - {"tiles_row"}
        rows = [
            sorted(([row[name] for name in sorted(columns)] for row in rows), key=str)
            for rows in (table, whole.source_table().to_pylist())
        ]
        assert rows[0] == rows[1]

    def test_the_old_version_stays_readable(self, files: Path, manifest: Manifest) -> None:
        before = open_cube(manifest, mask_and_scale=False)
        expected = before.red.values.copy()
        write(files, "T1_20231201_red.tif", seed=10, transform=place(row=-SIZE))
        done = append(manifest, files)
        assert done.manifest.version != manifest.version
        again = open_manifest(manifest.url, manifest.version)
        assert len(again.times) == 3
        np.testing.assert_array_equal(before.copy().red.values, expected)

    def test_the_grid_grows_and_shifts_what_is_there(self, files: Path, manifest: Manifest) -> None:
        old = open_cube(manifest, mask_and_scale=False).red.values
        beside = write(files, "T2_20240101_red.tif", seed=20, transform=place(-SIZE, -SIZE))
        ds = open_cube(append(manifest, files).manifest, mask_and_scale=False)
        assert ds.red.shape == (3, 2 * SIZE, 2 * SIZE)
        np.testing.assert_array_equal(ds.red[0, :SIZE, :SIZE], beside)
        np.testing.assert_array_equal(ds.red[:, SIZE:, SIZE:], old)
        assert (ds.red[1:, :SIZE].values == 0).all()
        assert (ds.nir[0, :, :SIZE].values == 0).all()

    def test_nothing_new_changes_nothing(self, files: Path, manifest: Manifest) -> None:
        before = state(manifest)
        done = append(manifest, files)
        assert (done.added, done.known, done.manifest) == (0, 6, manifest)
        assert state(manifest) == before
        assert "6 there already" in str(done)

    def test_a_pattern_that_was_given_reads_the_new_names(self, tmp_path: Path) -> None:
        folder = tmp_path / "f"
        write(folder, "a-2024-07-red.tif")
        manifest = build(folder, pattern="{}-{time:%Y-%m}-{band}.tif", to=tmp_path / "s.cube")
        write(folder, "a-2024-08-red.tif", seed=1)
        ds = open_cube(append(manifest, folder).manifest)
        assert [str(time)[:7] for time in ds.time.values] == ["2024-07", "2024-08"]
        write(folder, "a-nodate-red.tif", seed=2)
        refuse(
            manifest := open_manifest(manifest.url),
            "the pattern .* matches none of 1 files, such as a-nodate-red",
            lambda: append(manifest, folder),
        )

    def test_names_are_understood_as_at_build_though_other_bands_were_left_out(
        self, files: Path, tmp_path: Path
    ) -> None:
        manifest = build(files, bands="red", to=tmp_path / "red.cube")
        assert manifest.built["inferred"] == "T1_{time:%Y%m%d}_{band}.tif"
        for band in ("red", "nir"):
            write(files, f"T1_20240401_{band}.tif", seed=4)
        done = append(manifest, files)
        ds = open_cube(done.manifest)
        assert (list(ds.data_vars), ds.sizes["time"], done.added) == (["red"], 4, 1)
        assert {why for _, why in done.left_out} == {"it gives none of the cube's bands"}
        assert len(done.left_out) == 4

    def test_names_that_do_not_follow_those_of_the_cube(self, files: Path, manifest: Manifest) -> None:
        write(files, "another.tif")
        refuse(manifest, "another.tif gives the band 'band_1'; the cube has nir, red", lambda: append(manifest, files))

    def test_names_without_a_pattern_are_understood_together(self, tmp_path: Path) -> None:
        folder = tmp_path / "f"
        for i, date in enumerate(("2024/01/01", "2024/01/02")):
            for j, band in enumerate(("red", "nir")):
                write(folder, f"{date}/{band}/image.tif", seed=2 * i + j)
        manifest = build(folder, to=tmp_path / "s.cube")
        assert "inferred" not in manifest.built
        nir = write(folder, "2024/02/01/nir/image.tif", seed=9)
        ds = open_cube(append(manifest, folder / "2024/02/01/nir/image.tif").manifest, mask_and_scale=False)
        assert (set(ds.data_vars), ds.sizes["time"]) == ({"red", "nir"}, 3)
        np.testing.assert_array_equal(ds.nir[2], nir)

    def test_a_single_layer_does_not_become_a_series(self, tmp_path: Path) -> None:
        write(tmp_path / "f", "dem_20200101.tif")
        manifest = build(tmp_path / "f", to=tmp_path / "s.cube")
        assert manifest.times is None
        write(tmp_path / "f", "dem_20210101.tif", seed=1)
        refuse(
            manifest,
            "together with the new files, the name of .*dem_20200101.tif means another thing: 2020-01-01",
            lambda: append(manifest, tmp_path / "f"),
        )

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("T1_20240106_swir.tif", {}, "T1_20240106_swir.tif gives the band 'swir'; the cube has nir, red: name"),
            ("T1_20240106_red.tif", {"dtype": "float32"}, r"band 'red' of .*_red.tif is float32 \(scale 1, offset 0\)"),
            (
                "T1_20240106_red.tif",
                {"scale": 0.1},
                "is uint16 .scale 0.1, offset 0., which does not fit the cube's",
            ),
            ("T1_20240106_red.tif", {"dtype": "int32"}, "is int32 .* does not fit the cube's uint16"),
            (
                "T1_20240106_red.tif",
                {"nodata": None},
                r"has 0 as a value, which is the cube's nodata \(the file's own: no",
            ),
            (
                "T1_20240106_red.tif",
                {"nodata": 7},
                r"has 0 as a value, which is the cube's nodata \(the file's own: 7\)",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused_and_changes_nothing(
        self, files: Path, manifest: Manifest, name: str, options: dict, message: str
    ) -> None:
        write(files, name, **options)
        refuse(manifest, message, lambda: append(manifest, files))

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"crs": "EPSG:32632"}, "1 in EPSG:32632, pixels of 10 x -10 from (399960, 5400000)"),
            ({"transform": place(0.5)}, "1 in EPSG:32633, pixels of 10 x -10 from (399965, 5400000)"),
            ({"transform": place() @ Affine.scale(2)}, "1 in EPSG:32633, pixels of 20 x -20 from (399960, 5400000)"),
        ],
    )
    def test_what_lies_on_another_grid_brings_it_along(
        self, files: Path, manifest: Manifest, options: dict, line: str
    ) -> None:
        before = on(manifest, 0)
        red = write(files, "T1_20240106_red.tif", seed=10, **options)
        done = append(manifest, files)
        assert (done.added, len(done.manifest.grids), len(manifest.grids)) == (1, 2, 1)
        assert done.manifest.grids[0] == manifest.grids[0]
        with pytest.raises(SelectionError) as caught:
            open_cube(done.manifest)
        assert str(caught.value).splitlines()[:3] == [
            "the sources of 's' lie on 2 grids:",
            "  6 in EPSG:32633, pixels of 10 x -10 from (399960, 5400000)",
            f"  {line}",
        ]
        after, beside = on(done.manifest, 0), on(done.manifest, 1)
        for name in ("red", "nir"):
            np.testing.assert_array_equal(after[name][[0, 2, 3]], before[name])
            assert not after[name][1].any()
        np.testing.assert_array_equal(beside["red"][1], red)
        assert not beside["red"][[0, 2, 3]].any()
        assert not beside["nir"].any()
        np.testing.assert_array_equal(open_cube(done.manifest, "nir", mask_and_scale=False).nir, after["nir"])
        # What comes next joins the grid that it lies on; a third date shows that both stay what they are.
        nir = write(files, "T1_20240106_nir.tif", seed=11, **options)
        again = append(done.manifest, files).manifest
        assert again.grids == done.manifest.grids
        np.testing.assert_array_equal(on(again, 1)["nir"][1], nir)

    def test_one_of_several_grids_grows(self, files: Path, manifest: Manifest) -> None:
        first = write(files, "T2_20240101_red.tif", seed=20, crs="EPSG:32632")
        both = append(manifest, files).manifest
        second = write(files, "T3_20240101_red.tif", seed=21, crs="EPSG:32632", transform=place(-SIZE, -SIZE))
        third = write(files, "T4_20240101_nir.tif", seed=22, transform=place(SIZE))
        grown = append(both, files).manifest
        assert [levels.full.shape for levels in grown.grids] == [(SIZE, 2 * SIZE), (2 * SIZE, 2 * SIZE)]
        own, beside = on(grown, 0), on(grown, 1)
        np.testing.assert_array_equal(own["red"][:, :, :SIZE], on(manifest, 0)["red"])
        np.testing.assert_array_equal(own["nir"][0, :, SIZE:], third)
        np.testing.assert_array_equal(beside["red"][0, SIZE:, SIZE:], first)
        np.testing.assert_array_equal(beside["red"][0, :SIZE, :SIZE], second)
        assert not beside["red"][0, :SIZE, SIZE:].any()
        whole = build(files, to=files.parent / "whole.cube")
        assert set(whole.grids) == set(grown.grids)

    @pytest.mark.parametrize("joins", ["elsewhere", "the whole", "nothing"])
    def test_overviews_stay_what_they_were(self, tmp_path: Path, joins: str) -> None:
        """Of two files side by side, the last coarse pixel reaches over the edge."""
        folder = tmp_path / "f"

        def scene(name: str, seed: int, *, width: int, column: int = 0, **options) -> None:
            transform = place(column)
            write_cog(
                folder / name,
                unique_values((256, width), "uint16", seed),
                **{"transform": transform, "nodata": 0, "driver": "GTiff", "blockxsize": 64, "blockysize": 64}
                | options,
            )
            with rasterio.open(folder / name, "r+") as file:
                file.build_overviews([2, 4])

        scene("a_20240101.tif", 0, width=256)
        scene("b_20240101.tif", 1, width=201, column=256)
        scene("a_20240102.tif", 2, width=256)
        manifest = build(folder, pattern="{tile}_{time:%Y%m%d}.tif", to=tmp_path / "s.cube")
        assert [level.shape for level in manifest.levels] == [(256, 457), (128, 229), (64, 115)]
        before = [on(manifest, 0, level)["band_1"][0] for level in range(3)]
        if joins == "nothing":
            (folder / "a_20240102.tif").unlink()
            after = refresh(manifest, drop_vanished=True).manifest
        else:
            crs = {"crs": "EPSG:32632"} if joins == "elsewhere" else {}
            scene("c_20240103.tif", 3, width=457, **crs)
            after = append(manifest, folder).manifest
        assert after.grids[0] == manifest.grids[0]
        for level, expected in enumerate(before):
            np.testing.assert_array_equal(on(after, 0, level)["band_1"][0], expected)

    def test_what_overlaps_is_fused(self, files: Path, manifest: Manifest) -> None:
        old = open_cube(manifest, mask_and_scale=False).red.values
        red = write(files, "T3_20240101_red.tif", seed=10, transform=place(3))
        done = append(manifest, files)
        assert (done.added, len(done.manifest.grids)) == (1, 1)
        found = open_cube(done.manifest, mask_and_scale=False).red.values
        np.testing.assert_array_equal(found[:, :, :SIZE], old)
        np.testing.assert_array_equal(found[0, :, SIZE:], red[:, SIZE - 3 :])
        last = open_cube(done.manifest, mask_and_scale=False, fuse="last").red.values
        np.testing.assert_array_equal(last[0, :, 3:], red)

    def test_a_second_file_of_the_very_same_place_is_refused(self, files: Path, tmp_path: Path) -> None:
        manifest = build(files, pattern="{tile}_{time:%Y%m%d}_{band}.tif", to=tmp_path / "s.cube")
        write(files, "T3_20240101_red.tif", seed=10)
        message = (
            r"band 'red' at 2024-01-01T00:00:00 comes from two files of the same place, .*T1_20240101_red\.tif and "
            r".*T3_20240101_red\.tif; leave one out"
        )
        refuse(manifest, message, lambda: append(manifest, files))
        write(files, "T3_20240101_red.tif", seed=10, transform=place(SIZE))
        assert append(manifest, files).added == 1

    def test_a_smaller_dtype_and_a_nodata_of_its_own_fit(self, files: Path, manifest: Manifest) -> None:
        values = write(files, "T1_20240106_red.tif", dtype="uint8", nodata=0)
        ds = open_cube(append(manifest, files).manifest, mask_and_scale=False)
        assert ds.red.dtype == "uint16"
        np.testing.assert_array_equal(ds.red[1], values)

    def test_a_shifted_offset_fits_where_the_numbers_do(self, tmp_path: Path) -> None:
        folder = tmp_path / "f"
        for i, offset in enumerate((0.0, -0.1, -0.1)):
            write(folder, f"a_2024010{i + 1}.tif", seed=i, dtype="uint8", nodata=None, scale=0.01, offset=offset)
        manifest = build(folder, to=tmp_path / "s.cube")
        write(folder, "a_20240104.tif", seed=3, dtype="uint8", nodata=None, scale=0.01, offset=0.0)
        ds, whole = open_cube(append(manifest, folder).manifest), open_cube(build(folder, to=tmp_path / "w.cube"))
        np.testing.assert_array_equal(ds.band_1, whole.band_1)

    def test_a_hole_without_a_number_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "f"
        for i in (1, 2):
            write(folder, f"a_2024010{i}.tif", seed=i, nodata=None)
        manifest = build(folder, to=tmp_path / "s.cube")
        write(folder, "a_20240103.tif", seed=3, nodata=None, transform=place(SIZE))
        refuse(
            manifest,
            r"band 'band_1' \(uint16, no nodata value\) would be missing at 3 .* 2024-01-01T00:00:00",
            lambda: append(manifest, folder),
        )

    def test_a_fill_value_that_the_user_gave_is_trusted(self, tmp_path: Path) -> None:
        folder = tmp_path / "f"
        write(folder, "a_20240101.tif", seed=1, nodata=None)
        write(folder, "a_20240102.tif", seed=2, nodata=None, transform=place(SIZE))
        manifest = build(folder, to=tmp_path / "s.cube", fill_value=65535)
        values = write(folder, "a_20240103.tif", seed=3, nodata=None)
        ds = open_cube(append(manifest, folder).manifest, mask_and_scale=False)
        np.testing.assert_array_equal(ds.band_1[2, :, :SIZE], values)
        assert (ds.band_1[2, :, SIZE:].values == 65535).all()

    def test_a_source_that_cannot_be_read(self, files: Path, tmp_path: Path) -> None:
        manifest = build(files, to=tmp_path / "s.cube", fail_on_error=True)
        (files / "T1_20240106_red.tif").write_bytes(b"nothing of the kind")
        refuse(manifest, "1 of 1 sources cannot be part of a cube", lambda: append(manifest, files))

    def test_a_source_that_cannot_be_read_is_left_out_where_the_build_did_so(self, files: Path, tmp_path: Path) -> None:
        manifest = build(files, to=tmp_path / "s.cube", fail_on_error=False)
        broken = files / "T1_20240106_red.tif"
        broken.write_bytes(b"nothing of the kind")
        write(files, "T1_20240106_nir.tif", seed=8)
        done = append(manifest, files)
        assert (done.added, [Path(href) for href, _ in done.left_out]) == (1, [broken])
        assert done.manifest.attributes["archive"] == "7 items, 1 unreadable, 4 dates"
        assert done.manifest.left_out == done.left_out
        write(files, "T1_20240107_nir.tif", seed=8)
        done = append(done.manifest, files)
        assert done.manifest.attributes["archive"] == "8 items, 1 unreadable, 5 dates"
        assert len(done.manifest.left_out) == 1
        write(files, "T1_20240106_red.tif", seed=9)
        assert append(done.manifest, files).manifest.attributes["archive"] == "9 items, 5 dates"

    def test_bands_that_are_dates(self, tmp_path: Path) -> None:
        folder = tmp_path / "f"
        options = {"shape": (2, SIZE, SIZE), "descriptions": ["y2001", "y2002"]}
        first = write(folder, "cover_1.tif", **options)
        manifest = build(folder, to=tmp_path / "s.cube", bands_as="time:%Y")
        second = write(folder, "cover_2.tif", seed=1, transform=place(SIZE), **options)
        ds = open_cube(append(manifest, folder / "cover_2.tif").manifest, mask_and_scale=False)
        (name,) = ds.data_vars
        np.testing.assert_array_equal(ds[name], np.concatenate([first, second], axis=2))

    def test_someone_else_was_faster(self, files: Path, manifest: Manifest) -> None:
        write(files, "T1_20240106_red.tif", seed=10)
        append(manifest, files)
        write(files, "T1_20240107_red.tif", seed=11)
        with pytest.raises(ManifestError, match="changed by someone else"):
            append(manifest, files)

    def test_a_manifest_of_the_second_schema(self, tmp_path: Path) -> None:
        data = Path(__file__).parents[2] / "data" / "schema2"
        folder = shutil.copytree(data, tmp_path / "old")
        manifest = open_manifest(str(folder / "scenes.cube"))
        before = open_cube(manifest, mask_and_scale=False).load()
        scene = 1 + np.arange(48 * 40).reshape(48, 40)
        scene[:16, :16] = 0
        expected = np.zeros((2, 64, 80))
        expected[0, 16:, 40:] = np.where(scene, scene + 2000, 0)
        expected[1, 16:, 40:] = np.where(scene, scene + 6000, 0)
        beside = np.where(scene, scene + 18000, 0)
        expected[1, :48, :40] = beside
        np.testing.assert_array_equal(before.red, expected)
        assert not before.nir[1].any(), "its only source has left the cube"
        write_cog(
            folder / "scene_20240301_red.tif",
            scene.astype("uint16"),
            transform=Affine(20, 0, 500000, 0, -20, 5400000),
            nodata=0,
            scale=0.0001,
            offset=-0.1,
            OVERVIEWS="NONE",
        )
        done = append(manifest, folder / "scene_20240301_red.tif")
        assert (done.manifest.schema, len(done.manifest.grids), len(done.manifest)) == (3, 2, 5)
        assert done.manifest.attributes["archive"] == "5 items, 3 dates"
        own, added = on(done.manifest, 0), on(done.manifest, 1)
        for name in ("nir", "red"):
            np.testing.assert_array_equal(own[name][:2], before[name])
        np.testing.assert_array_equal(added["red"][2], scene)
        again = refresh(done.manifest, every=True)
        assert (again.refreshed, again.manifest.grids) == (5, done.manifest.grids)
        np.testing.assert_array_equal(on(again.manifest, 0)["red"][:2], before.red)

    def test_a_manifest_of_the_first_schema(self, tmp_path: Path) -> None:
        data = Path(__file__).parents[2] / "data" / "schema1"
        shutil.copytree(data, tmp_path / "old")
        manifest = open_manifest(str(tmp_path / "old" / "scenes.cube"))
        before = open_cube(manifest, mask_and_scale=False).load()
        shutil.copy(data / "scene_20240211_red.tif", tmp_path / "old" / "scene_20240301_red.tif")
        done = append(manifest, tmp_path / "old" / "scene_20240301_red.tif")
        after = open_cube(done.manifest, mask_and_scale=False).load()
        assert after.sizes["time"] == 3
        np.testing.assert_array_equal(after.red[2], before.red[1])
        assert after.isel(time=slice(2)).drop_attrs().identical(before.drop_attrs())


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    dates = ("2024-04-09", "2024-04-24", "2024-05-09")
    return write_archive(tmp_path_factory.mktemp("scenes"), size=128, tile=128, dates=dates)


def some_items(scenes: Archive, *positions: int, **changes) -> list[dict]:
    found = json.loads(scenes.items.read_text(encoding="utf-8"))["features"]
    chosen = [found[i] for i in positions]
    for item in chosen:
        for asset in item["assets"].values():
            asset["href"] = str(scenes.root / asset["href"])
        item["properties"] |= changes.get("properties", {})
        item["id"] = changes.get("id", item["id"])
    return chosen


class TestAppendOfItems:
    def test_items_join_by_their_assets(self, scenes: Archive, tmp_path: Path) -> None:
        manifest = build(some_items(scenes, 0, 1), to=tmp_path / "s.cube")
        (item,) = some_items(scenes, 2)
        for asset in item["assets"].values():  # another catalogue's spelling: nothing but keys
            asset.pop("eo:bands", None)
        done = append(manifest, [item])
        whole = build(scenes.items, to=tmp_path / "whole.cube")
        assert done.added == 5
        assert done.manifest.bands == whole.bands
        assert open_cube(done.manifest).drop_attrs().identical(open_cube(whole).drop_attrs())
        assert done.manifest.attributes["archive"] == "3 items, 3 dates"

    def test_a_better_version_takes_the_place_of_what_is_there(self, scenes: Archive, tmp_path: Path) -> None:
        manifest = build(some_items(scenes, 0, 1), to=tmp_path / "s.cube")
        (item,) = some_items(scenes, 1, properties={"s2:processing_baseline": "05.11"}, id="S2A_33UVP_20240424_1_L2A")
        copies = tmp_path / "reprocessed"
        copies.mkdir()
        for asset in item["assets"].values():
            path = Path(asset["href"])
            asset["href"] = str(_copy(path, copies))
        done = append(manifest, [item])
        assert (done.added, len(done.dropped), len(done.manifest)) == (5, 5, 10)
        assert {each.source.item for each in read_stored(done.manifest)} == {
            "S2A_33UVP_20240409_0_L2A",
            "S2A_33UVP_20240424_1_L2A",
        }
        assert done.manifest.attributes["archive"] == "3 items, 1 superseded, 2 dates"
        ((what, why),) = done.manifest.left_out
        assert what == "S2A_33UVP_20240424_0_L2A"
        assert why.endswith("is superseded by S2A_33UVP_20240424_1_L2A: processing baseline 05.11, not 05.10")

    def test_a_worse_version_is_left_out(self, scenes: Archive, tmp_path: Path) -> None:
        manifest = build(some_items(scenes, 0, 1), to=tmp_path / "s.cube")
        (item,) = some_items(scenes, 1, properties={"s2:processing_baseline": "04.00"}, id="S2A_33UVP_20240424_1_L2A")
        copies = tmp_path / "older"
        copies.mkdir()
        for asset in item["assets"].values():
            asset["href"] = str(_copy(Path(asset["href"]), copies))
        done = append(manifest, [item])
        assert (done.added, done.dropped, done.manifest) == (0, (), manifest)
        assert [what for what, _ in done.left_out] == ["S2A_33UVP_20240424_1_L2A"]


def _copy(path: Path, folder: Path) -> Path:
    return Path(shutil.copy(path, folder / path.name))


class TestRefresh:
    def test_only_the_changed_rows_are_replaced(self, files: Path, manifest: Manifest) -> None:
        parts = set(state(manifest))
        other = open_cube(manifest, mask_and_scale=False).nir.values
        red = write(files, "T1_20240111_red.tif", seed=77, compress="ZSTD")
        with pytest.raises(SourceChangedError, match="run `cube refresh` on the cube"):
            open_cube(manifest).red.load()
        done = refresh(manifest)
        assert (done.refreshed, done.added, len(done.manifest)) == (1, 0, 6)
        ds = open_cube(done.manifest, mask_and_scale=False)
        np.testing.assert_array_equal(ds.red[1], red)
        np.testing.assert_array_equal(ds.nir, other)
        assert done.manifest.attributes == manifest.attributes
        assert set(state(manifest)) > parts
        new = open_manifest(manifest.url)
        assert new.parts[0].sources == manifest.parts[0].sources
        assert len(new.parts[0].removed) == 1
        np.testing.assert_array_equal(open_cube(manifest, "nir", mask_and_scale=False).nir, other)

    def test_nothing_changed(self, manifest: Manifest) -> None:
        before = state(manifest)
        assert refresh(manifest).manifest == manifest
        assert state(manifest) == before

    def test_all_are_read_again_where_asked_for(self, manifest: Manifest) -> None:
        done = refresh(manifest, every=True)
        assert done.refreshed == 6
        assert open_cube(done.manifest).drop_attrs().identical(open_cube(manifest).drop_attrs())

    def test_vanished_sources_are_named_or_dropped(self, files: Path, manifest: Manifest) -> None:
        (files / "T1_20240111_red.tif").unlink()
        refuse(
            manifest,
            r"1 sources of the cube are gone; .*--drop-vanished\):\n  .*T1_20240111_red.tif",
            lambda: refresh(manifest),
        )
        refuse(manifest, "1 sources of the cube are gone", lambda: refresh(manifest, every=True))
        done = refresh(manifest, drop_vanished=True)
        assert [Path(href).name for href in done.dropped] == ["T1_20240111_red.tif"]
        ds = open_cube(done.manifest, mask_and_scale=False)
        assert (ds.red[1].values == 0).all()
        assert (ds.nir[1].values != 0).all()
        assert done.manifest.attributes["archive"] == "5 items, 3 dates"

    def test_a_cube_of_which_nothing_is_left(self, files: Path, manifest: Manifest) -> None:
        for path in files.iterdir():
            path.unlink()
        with pytest.raises(ManifestError, match="nothing would be left"):
            refresh(manifest, drop_vanished=True)
        assert open_manifest(manifest.url).version == manifest.version

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dtype": "float64"}, "band 'red' of .*T1_20240111_red.tif is float64"),
            ({"offset": 0.25}, "does not fit the cube's uint16"),
            ({"nodata": None}, "has 0 as a value"),
            ({"shape": (2, SIZE, SIZE), "descriptions": ["a", "b"]}, "gives the band 'red_a'"),
        ],
    )
    def test_what_no_longer_fits_is_refused_and_changes_nothing(
        self, files: Path, manifest: Manifest, options: dict, message: str
    ) -> None:
        write(files, "T1_20240111_red.tif", seed=5, **options)
        refuse(manifest, message, lambda: refresh(manifest))

    def test_a_source_that_became_unreadable(self, files: Path, manifest: Manifest) -> None:
        (files / "T1_20240111_red.tif").write_bytes(b"<html>")
        refuse(manifest, "1 of 1 sources cannot be part of a cube:\n  .*T1_20240111_red.tif", lambda: refresh(manifest))

    def test_a_source_may_move_on_the_lattice(self, files: Path, manifest: Manifest) -> None:
        red = write(files, "T1_20240111_red.tif", seed=5, transform=place(3, -2))
        ds = open_cube(refresh(manifest).manifest, mask_and_scale=False)
        assert ds.red.shape[1:] == (SIZE + 2, SIZE + 3)
        np.testing.assert_array_equal(ds.red[1, :SIZE, 3:], red)

    @pytest.mark.parametrize("options", [{"crs": "EPSG:3857"}, {"transform": place(0.25)}])
    def test_a_source_may_move_to_another_lattice(self, files: Path, manifest: Manifest, options: dict) -> None:
        before = on(manifest, 0)
        red = write(files, "T1_20240111_red.tif", seed=5, compress="ZSTD", **options)
        done = refresh(manifest)
        assert (done.refreshed, len(done.manifest), len(done.manifest.grids)) == (1, 6, 2)
        own, other = on(done.manifest, 0), on(done.manifest, 1)
        np.testing.assert_array_equal(own["red"][[0, 2]], before["red"][[0, 2]])
        np.testing.assert_array_equal(own["nir"], before["nir"])
        assert not own["red"][1].any()
        np.testing.assert_array_equal(other["red"][1], red)

    def test_a_grid_that_all_sources_have_left_is_no_longer_in_the_way(self, files: Path, manifest: Manifest) -> None:
        write(files, "T1_20240106_red.tif", seed=9, crs="EPSG:32632")
        both = append(manifest, files).manifest
        assert len(both.grids) == 2
        red = write(files, "T1_20240106_red.tif", seed=10, compress="ZSTD")
        done = refresh(both).manifest
        assert done.lattices(["red"]) == {0: 4}
        np.testing.assert_array_equal(open_cube(done, mask_and_scale=False).red[1], red)
        assert done.grid == manifest.grid
        assert done.levels == manifest.levels

    def test_a_cube_is_opened_on_the_grid_that_is_left(self, tmp_path: Path) -> None:
        folder = tmp_path / "f"
        write(folder, "a_20240101.tif", crs="EPSG:32632")
        manifest = build(folder, pattern="a_{time:%Y%m%d}.tif", to=tmp_path / "s.cube")
        second = write(folder, "a_20240102.tif", seed=1)
        both = append(manifest, folder).manifest
        assert both.lattices(["band_1"]) == {0: 1, 1: 1}
        first = write(folder, "a_20240101.tif", seed=2, compress="ZSTD")
        done = refresh(both).manifest
        assert done.lattices(["band_1"]) == {1: 2}
        ds = open_cube(done, mask_and_scale=False)
        np.testing.assert_array_equal(ds.band_1, [first, second])
        assert done.grid == ds.cube.grid
        assert done.grid.crs == "EPSG:32633"

    def test_items_keep_what_their_catalogue_said(self, tmp_path: Path) -> None:
        scenes = write_archive(tmp_path / "scenes", size=128, tile=128, dates=("2024-04-09", "2024-04-24"))
        for band in ("scl", "red"):  # nodata, scale, offset and classes are the catalogue's alone
            write_cog(scenes.path("2024-04-24", band), scenes.expected("2024-04-24", band), blocksize=128)
        manifest = build(scenes.items, to=tmp_path / "s.cube")
        before = {each.source.href: each for each in read_stored(manifest)}
        turned = {band: scenes.expected("2024-04-24", band)[::-1].copy() for band in ("scl", "red")}
        for band, values in turned.items():
            write_cog(scenes.path("2024-04-24", band), values, blocksize=128, compress="ZSTD")
        done = refresh(manifest)
        assert done.refreshed == 2
        assert done.manifest.bands == manifest.bands
        ds = open_cube(done.manifest, mask_and_scale=False)
        for band, values in turned.items():
            np.testing.assert_array_equal(ds[band][1], values)
        for new in read_stored(done.manifest):
            own = before[new.source.href]
            assert (new.source, new.bands, new.decision) == (own.source, own.bands, own.decision)

    def test_a_remote_source(self, tmp_path: Path) -> None:
        files = tmp_path / "files"
        for i, date in enumerate(DATES):
            write(files, f"T1_{date}.tif", seed=i)
        with ObjectStore(files) as store:
            manifest = build([f"{store.url}/T1_{date}.tif" for date in DATES], to=tmp_path / "s.cube")
            values = write(files, "T1_20240111.tif", seed=9)
            with pytest.raises(SourceError, match="run `cube refresh` on the cube"):
                open_cube(manifest).band_1.load()
            store.reset()
            done = refresh(manifest)
            # Each is looked at once; the one that changed is read by `check` and by `refresh`.
            assert store.counts().paths == {"T1_20240101.tif": 1, "T1_20240111.tif": 3, "T1_20240121.tif": 1}
            np.testing.assert_array_equal(open_cube(done.manifest, mask_and_scale=False).band_1[1], values)


def write_scene(folder: Path, day: int, least: int, seed: int = 0) -> dict:
    """Write a scene of Sentinel-2 whose darkest pixel is `least`, and return its item, as Earth Search has them."""
    values = (least + np.random.default_rng(seed).gamma(2, 200, (128, 128))).astype("uint16")
    path = write_cog(folder / f"S2A_33UVP_202404{day:02}_0_L2A" / "B04.tif", values, nodata=0, blocksize=128)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"S2A_33UVP_202404{day:02}_0_L2A",
        "collection": "sentinel-2-l2a",
        "geometry": None,
        "properties": {
            "datetime": f"2024-04-{day:02}T10:00:00Z",
            "platform": "sentinel-2a",
            "s2:processing_baseline": "05.10",
            "earthsearch:boa_offset_applied": True,
        },
        "links": [],
        "assets": {
            "red": {
                "href": path.as_posix(),
                "type": "image/tiff; application=geotiff",
                "eo:bands": [{"name": "B04", "common_name": "red"}],
                "raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1}],
            }
        },
    }


class TestRules:
    def test_pixels_decide_of_what_joins_and_of_what_changed(self, tmp_path: Path) -> None:
        items = [write_scene(tmp_path, 1, 1001, seed=1), write_scene(tmp_path, 2, 1, seed=2)]
        manifest = build(items, to=tmp_path / "s.cube")
        assert offsets(manifest) == [-0.1, 0.0]
        done = append(manifest, [write_scene(tmp_path, 3, 1001, seed=3)]).manifest
        assert offsets(done) == [-0.1, 0.0, -0.1]
        assert done.attributes["harmonized"].count("its pixels show that it is -0.1, which counts (2 sources)") == 1
        write_scene(tmp_path, 2, 1001, seed=4)
        done = refresh(done).manifest
        assert offsets(done) == [-0.1, -0.1, -0.1]
        assert done.attributes["harmonized"].endswith("(3 sources)")
        red = open_cube(done).red
        assert all(0 <= red[i].min() < 0.02 for i in range(3))

    def test_what_the_pixels_decide_may_not_fit(self, tmp_path: Path) -> None:
        manifest = build([write_scene(tmp_path, day, 1001, seed=day) for day in (1, 2)], to=tmp_path / "s.cube")
        assert offsets(manifest) == [-0.1, -0.1]
        write_scene(tmp_path, 2, 1, seed=9)
        message = r"B04.tif is uint16 .scale 0.0001, offset 0., which does not fit the cube's uint16 .*offset -0.1"
        refuse(manifest, message, lambda: refresh(manifest))

    def test_a_decision_that_stays_is_kept_in_words(self, tmp_path: Path) -> None:
        name = "LC08_L2SP_192026_20240409_20240416_02_T1_SR_B4.tif"
        write(tmp_path / "f", name)
        manifest = build(tmp_path / "f", to=tmp_path / "s.cube")
        write(tmp_path / "f", name, seed=1)
        done = refresh(manifest).manifest
        assert [each.decision for each in read_stored(done)] == [each.decision for each in read_stored(manifest)]
        assert done.attributes == manifest.attributes
        assert "landsat" in done.attributes["harmonized"]


def offsets(manifest: Manifest) -> list[float]:
    found = [(each.source.time, band.offset) for each in read_stored(manifest) for band in each.bands]
    return [offset for _, offset in sorted(found)]


def test_a_file_of_another_band_does_not_join_a_cube_of_one(tmp_path):
    for date in ("20240101", "20240102", "20240103"):
        write_cog(tmp_path / "files" / f"t_{date}_red.tif", unique_values((64, 64), "uint8"))
    manifest = build(tmp_path / "files", to=tmp_path / "a.cube")
    nir = write_cog(tmp_path / "t_20240105_nir.tif", unique_values((64, 64), "uint8"))
    with pytest.raises(BuildError, match=r"t_20240105_nir\.tif names another band than the sources of the cube"):
        append(manifest, nir)
    red = write_cog(tmp_path / "t_20240105_red.tif", unique_values((64, 64), "uint8"))
    assert len(append(manifest, red).manifest) == 4
