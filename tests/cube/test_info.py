"""What `cube info` says and draws."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine

import cube
from cube.archive.update import append
from cube.errors import CubeError, SelectionError
from cube.info import describe, describe_in_words, measure_distance, readable_bytes, write_preview
from cube.io.trace import trace
from cube.manifest.open import Manifest
from cube.settings import get_settings
from cube.spelled import as_python
from cube.testing import Archive, ObjectStore, write_archive, write_cog
from cube.testing.archive import unique_values

DATES = ("2024-04-09", "2024-05-09")
SIZE = 256

type Served = tuple[Manifest, ObjectStore]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive"), size=SIZE, tile=128, dates=DATES, seed=4)


@pytest.fixture(scope="module")
def manifest(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("built") / "s2.cube"
    return cube.build(archive.items, name="s2", to=folder, attributes={"license": "CC0-1.0"})


@pytest.fixture(scope="module")
def elevation(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """One undated band in degrees, without a nodata value."""
    folder = tmp_path_factory.mktemp("elevation")
    values = np.arange(64 * 96, dtype="float32").reshape(64, 96)
    where = Affine(0.25, 0, -12, 0, -0.25, 50)
    path = write_cog(folder / "dem.tif", values, crs="EPSG:4326", transform=where, descriptions=["elevation"])
    return cube.build(path, to=folder / "dem.cube")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A band that is larger than a picture, with overviews."""
    folder = tmp_path_factory.mktemp("large")
    values = np.repeat(np.arange(1, 2049, dtype="uint16")[:, None], 1024, axis=1)
    path = write_cog(folder / "large.tif", values, descriptions=["rows"], blocksize=256)
    return cube.build(path, to=folder / "large.cube")


def test_facts_are_json_and_those_of_the_archive(archive: Archive, manifest: Manifest) -> None:
    facts = json.loads(json.dumps(describe(manifest), allow_nan=False))
    assert (facts["name"], facts["manifest"], facts["version"]) == ("s2", manifest.url, manifest.version)
    assert facts["attributes"]["license"] == "CC0-1.0"
    assert (facts["crs"], facts["shape"], facts["resolution"]) == ("EPSG:32633", [SIZE, SIZE], [10.0, 10.0])
    assert facts["bounds"] == [399960.0, 5400000.0 - 10 * SIZE, 399960.0 + 10 * SIZE, 5400000.0]
    assert facts["times"] == [str(time) for time in manifest.times]
    assert facts["levels"] == [[256, 256], [128, 128]]
    files = list(archive.root.glob("**/*.tif"))
    assert (facts["sources"], facts["source_bytes"]) == (10, sum(path.stat().st_size for path in files))
    assert facts["cube_bytes"] == SIZE * SIZE * len(DATES) * (4 * 2 + 1)
    bands = {band["name"]: band for band in facts["bands"]}
    assert set(bands) == {"red", "green", "blue", "nir", "scl"}
    assert bands["nir"]["aliases"] == ["B08"]
    assert (bands["nir"]["dtype"], bands["nir"]["nodata"], bands["nir"]["sources"]) == ("uint16", 0, 2)
    assert (bands["nir"]["scale"], bands["nir"]["offset"]) == (0.0001, -0.1)


def test_words_say_what_the_facts_say(manifest: Manifest) -> None:
    lines = dict(describe_in_words(describe(manifest)))
    assert lines["cube"] == f"s2, version {manifest.version}"
    assert lines["grid"] == "256 rows x 256 columns of 10 x 10, EPSG:32633"
    assert lines["bounds"] == "399960, 5397440, 402520, 5400000"
    assert lines["time"] == "2 dates, 2024-04-09 to 2024-05-09"
    assert lines["levels"] == "0: 256 x 256, 1: 128 x 128"
    assert lines["band red"] == "uint16, nodata 0, x 0.0001 -0.1, also called B04, 2 sources"
    assert lines["band scl"] == "uint8, nodata 0, 12 classes, 2 sources"
    assert lines["license"] == "CC0-1.0"
    assert lines["sources"].startswith("10 files, ")


def test_a_layer_without_time_or_nodata(elevation: Manifest) -> None:
    facts = describe(elevation)
    assert facts["times"] is None
    lines = dict(describe_in_words(facts))
    assert lines["time"] == "none: layers"
    assert lines["grid"] == "64 rows x 96 columns of 0.25 x 0.25, EPSG:4326"
    assert lines["bounds"] == "-12, 34, 12, 50"
    assert lines["band elevation"] == "float32, no nodata value, 1 sources"


def several(folder: Path, count: int) -> Manifest:
    """A cube of some grids, each of pixels of its own size, and the first of two files."""
    sizes = [10.0, *(10.0 + i for i in range(count))]
    for i, size in enumerate(sizes):
        transform = Affine(size, 0, 399960 + 320 * i * (i < 2), 0, -size, 5400000)
        values = np.full((32, 32), i + 1, "uint8")
        write_cog(folder / "in" / f"f{i:02}.tif", values, transform=transform, nodata=0, blocksize=128)
    return cube.build(folder / "in", pattern="{tile}.tif", to=folder / "several.cube")


def test_each_grid_is_described_those_of_most_sources_first(tmp_path: Path) -> None:
    manifest = several(tmp_path, 3)
    facts = json.loads(json.dumps(describe(manifest)))
    assert [(grid["resolution"], grid["shape"], grid["sources"]) for grid in facts["grids"]] == [
        ([10.0, 10.0], [32, 64], 2),
        ([11.0, 11.0], [32, 32], 1),
        ([12.0, 12.0], [32, 32], 1),
    ]
    assert {"crs", "shape", "bounds", "levels"}.isdisjoint(facts), "there is none that would be the cube's"
    assert facts["on"] is None
    assert facts["cube_bytes"] == 32 * 64 + 2 * 32 * 32
    lines = [text for key, text in describe_in_words(facts) if key == "grid"]
    assert lines == [
        "32 rows x 64 columns of 10 x 10, EPSG:32633, 2 sources",
        "32 rows x 32 columns of 11 x 11, EPSG:32633, 1 source",
        "32 rows x 32 columns of 12 x 12, EPSG:32633, 1 source",
    ]


def test_of_many_grids_some_are_described_and_then_where_the_cube_opens(tmp_path: Path) -> None:
    placed = cube.place(several(tmp_path, 13), resolution=20, fuse="median")
    facts = describe(placed)
    assert len(facts["grids"]) == 13
    lines = [(key, text) for key, text in describe_in_words(facts) if key in ("grid", "opens on")]
    assert [key for key, _ in lines] == ["grid"] * 11 + ["opens on"]
    assert lines[10][1] == "and 3 more (--json has them all)"
    assert "of 20 x 20, EPSG:32633" in lines[11][1]
    assert lines[11][1].endswith("overlaps: median")
    assert facts["on"]["fuse"] == "median"


def test_a_crs_without_a_number_is_called_by_its_name(tmp_path: Path) -> None:
    crs = "+proj=laea +lat_0=52 +lon_0=10 +x_0=0 +y_0=0 +ellps=GRS80 +units=m +no_defs"
    write_cog(tmp_path / "a.tif", np.ones((32, 32), "uint8"), crs=crs)
    lines = dict(describe_in_words(describe(cube.build(tmp_path / "a.tif", to=tmp_path / "a.cube"))))
    assert '"' not in lines["grid"]
    assert len(lines["grid"]) < 80


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_184_103, "1.2 MB"),
        (2.5e9, "2.5 GB"),
        (7e12, "7.0 TB"),
        (1.2e16, "12000.0 TB"),
    ],
)
def test_bytes_are_readable(count: float, text: str) -> None:
    assert readable_bytes(count) == text


def read_picture(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return np.moveaxis(file.read(), 0, -1)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
class TestPreview:
    def test_red_green_and_blue_are_a_picture_of_the_last_date(
        self, archive: Archive, manifest: Manifest, tmp_path: Path
    ) -> None:
        with trace() as asked:
            assert write_preview(manifest, tmp_path / "s2.png") == "red green blue, 2024-05-09, level 0"
        pixels = [request for request in asked.records if request.href.endswith(".tif")]
        assert {Path(request.href).stem for request in pixels} == {
            f"T33UVP_20240509_{band}" for band in ("red", "green", "blue")
        }
        picture = read_picture(tmp_path / "s2.png")
        assert picture.shape == (SIZE, SIZE, 4)
        red, green = archive.expected("2024-05-09", "red"), archive.expected("2024-05-09", "green")
        np.testing.assert_array_equal(picture[..., 3] == 0, red == 0)
        brighter = (green.astype(int) - red > 200) & (picture[..., 1] < 255)
        assert brighter.any()
        assert (picture[..., 1] >= picture[..., 0])[brighter].all()

    def test_another_date_may_be_asked_for(self, manifest: Manifest, tmp_path: Path) -> None:
        assert write_preview(manifest, tmp_path / "a.png", time="2024-04") == "red green blue, 2024-04-09, level 0"
        with pytest.raises(SelectionError, match="'s2' has no date then"):
            write_preview(manifest, tmp_path / "b.png", time="2023")
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_a_single_band_is_grey(self, elevation: Manifest, tmp_path: Path) -> None:
        assert write_preview(elevation, tmp_path / "dem.png") == "elevation, no date, level 0"
        picture = read_picture(tmp_path / "dem.png")
        assert picture.shape == (64, 96, 4)
        assert (picture[..., 3] == 255).all()
        np.testing.assert_array_equal(picture[..., 0], picture[..., 2])
        assert (np.diff(picture[..., 0].ravel().astype(int)) >= 0).all()

    def test_a_large_cube_is_read_from_an_overview(self, large: Manifest, tmp_path: Path) -> None:
        shown = write_preview(large, tmp_path / "large.png")
        level = int(shown.removeprefix("rows, no date, level "))
        assert level > 0
        picture = read_picture(tmp_path / "large.png")
        assert 512 <= max(picture.shape[:2]) <= 2048
        assert picture.shape[0] == 2 * picture.shape[1]
        assert (np.diff(picture[:, 0, 0].astype(int)) >= 0).all()

    def test_a_picture_that_cannot_be_written_is_named(self, elevation: Manifest, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CubeError, match=r"file.dem\.png cannot be written"):
            write_preview(elevation, tmp_path / "file" / "dem.png")


class TestAsPython:
    """The printed code is run: what it opens is what the cube opens as."""

    def assert_same(self, manifest: Manifest) -> str:
        text = as_python(manifest)
        namespace: dict[str, Any] = {}
        exec(compile(text, "printed", "exec"), namespace)
        ours, theirs = cube.open_cube(manifest), namespace["ds"]
        xr.testing.assert_identical(ours.load(), theirs.load())
        made, own = ({band.name: band.to_json() for band in each.bands} for each in (namespace["manifest"], manifest))
        assert made == own
        return text

    def test_items(self, manifest: Manifest, archive: Archive) -> None:
        text = self.assert_same(manifest)
        assert f"    {archive.items.as_posix()!r},\n    name='s2',\n    bands=None,\n    pattern=None,\n" in text
        assert "    time=True,\n    crs=None,\n    harmonize=True,\n    fail_on_error=True,\n" in text
        assert "    attributes={'license': 'CC0-1.0'},\n" in text
        assert "# archive: 2 items, 2 dates\n" in text
        assert "# 256 rows x 256 columns of 10 x 10, upper left corner 399960, 5400000, EPSG:32633\n" in text
        assert "# red: uint16, nodata 0, x 0.0001 -0.1, also called B04, 2 sources\n" in text
        assert "    time=('2024-04-09T10:10:31.000000', '2024-05-09T10:10:31.000000'),\n" in text

    def test_a_folder_spells_the_pattern_that_its_names_follow(self, archive: Archive, tmp_path: Path) -> None:
        built = cube.build(archive.root, bands=["nir", "red"], to=tmp_path / "s2.cube")
        text = self.assert_same(built)
        assert "    pattern='T33UVP_{time:%Y%m%d}_{band}.tif',\n" in text
        assert "    bands=['nir', 'red'],\n" in text

    def test_a_layer(self, elevation: Manifest) -> None:
        assert "    time=None,\n" in self.assert_same(elevation)

    def test_every_option(self, tmp_path: Path) -> None:
        options = {"descriptions": ["y2001", "y2002"], "blocksize": 128, "crs": None}
        for i in range(2):
            where = Affine(10, 0, 399960 + i * 1280, 0, -10, 5400000)
            values = unique_values((2, 64, 64), "uint16", i)
            write_cog(tmp_path / "f" / f"cover_{i}.tif", values, transform=where, **options)
        (tmp_path / "f" / "cover_9.tif").write_bytes(b"nothing of the kind")
        built = cube.build(
            tmp_path / "f",
            to=tmp_path / "s.cube",
            bands_as="time:%Y",
            crs="EPSG:32633",
            harmonize=False,
            fail_on_error=False,
            fill_value=65535,
        )
        text = self.assert_same(built)
        assert "    bands_as='time:%Y',\n    time=True,\n    crs='EPSG:32633',\n    harmonize=False,\n" in text
        assert "    fail_on_error=False,\n    fill_value=65535,\n" in text
        assert "# left out: " in text

    def test_no_time_and_numbers_that_are_none(self, tmp_path: Path) -> None:
        write_cog(tmp_path / "f" / "a_20240101_one.tif", np.ones((64, 64), "float32"), blocksize=128)
        write_cog(tmp_path / "f" / "a_20240101_two.tif", np.ones((64, 64), "float32"), blocksize=128)
        built = cube.build(tmp_path / "f", to=tmp_path / "s.cube", time=False, fill_value=float("nan"))
        text = self.assert_same(built)
        assert "    fill_value=float('nan'),\n" in text
        assert "    time=False,\n" in text

    def test_files_that_joined_are_named(self, archive: Archive, tmp_path: Path) -> None:
        first = sorted(archive.root.glob("20240409/*_red.tif"))
        built = cube.build([*first, *archive.root.glob("20240409/*_nir.tif")], to=tmp_path / "s2.cube")
        now = append(built, sorted(archive.root.glob("20240509/*_red.tif"))).manifest
        assert "20240509_red.tif',\n" in self.assert_same(now)

    def test_items_that_joined_cannot_be_spelled(self, archive: Archive, tmp_path: Path) -> None:
        items = json.loads(archive.items.read_text(encoding="utf-8"))
        for item in items["features"]:
            for asset in item["assets"].values():
                asset["href"] = (archive.root / asset["href"]).as_posix()
        (tmp_path / "first.json").write_text(json.dumps(items | {"features": items["features"][:1]}), encoding="utf-8")
        built = cube.build(tmp_path / "first.json", to=tmp_path / "s2.cube")
        now = append(built, archive.items).manifest
        assert f"manifest = cube.open_manifest({now.url!r})\n" in as_python(now)
        assert "manifest = cube.build(" in as_python(built)
        self.assert_same(now)


def test_sources_that_gdal_reads_and_what_was_left_out_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for i in range(2):
        values = unique_values((64, 64), "uint16", i) % 4096
        options = {"driver": "GTiff", "compress": "NONE", "blockxsize": 64, "blockysize": 64, "NBITS": 12}
        write_cog(folder / f"a_2024010{i + 1}.tif", values, **options)
    (folder / "a_20240109.tif").write_bytes(b"nothing of the kind")
    facts = describe(cube.build(folder, to=tmp_path / "s.cube", fail_on_error=False))
    ((reason, count),) = facts["gdal"].items()
    assert count == 2
    lines = describe_in_words(json.loads(json.dumps(facts)))
    assert ("read by GDAL", f"2 sources: {reason}") in lines
    assert ("archive", "3 items, 1 unreadable, 2 dates") in lines
    ((what, why),) = (value.split(": ", 1) for name, value in lines if name == "left out")
    assert Path(what).name == "a_20240109.tif"
    assert why


def test_rules_are_said(tmp_path: Path) -> None:
    name = "LC08_L2SP_192026_20240409_20240416_02_T1_SR_B4.tif"
    write_cog(tmp_path / name, unique_values((64, 64), "uint16"), blocksize=128)
    lines = dict(describe_in_words(describe(cube.build(tmp_path / name, to=tmp_path / "l.cube"))))
    assert lines["harmonized"].startswith("landsat-c2-l2: scale 2.75e-05, offset -0.2, nodata 0")
    assert lines["harmonized"].endswith("(1 sources)")


class TestDistance:
    """How far the store of a cube is, over real sockets."""

    @pytest.fixture
    def served(
        self, archive: Archive, tmp_path: Path
    ) -> Callable[..., AbstractContextManager[tuple[Manifest, ObjectStore]]]:
        @contextmanager
        def serve(latency_s: float) -> Iterator[Served]:
            hrefs = sorted(path.relative_to(archive.root).as_posix() for path in archive.root.glob("*/*_red.tif"))
            with ObjectStore(archive.root, latency_s=latency_s) as store:
                yield cube.build([f"{store.url}/{each}" for each in hrefs], to=tmp_path / "s.cube"), store

        return serve

    def test_a_near_store(self, served) -> None:
        with served(0) as (manifest, store):
            store.reset()
            found = measure_distance(manifest)
            counts = store.counts()
        assert found is not None
        assert found["href"] == manifest.source_table()["href"][0].as_py()
        assert not found["far"]
        assert (counts.requests, counts.bytes) == (4, 4)
        lines = dict(describe_in_words(describe(manifest) | {"first_byte": found}))
        assert lines["first byte"] == f"{found['ms']:.0f} ms"

    def test_a_far_store(self, served) -> None:
        with served(0.2) as (manifest, _):
            found = measure_distance(manifest)
        assert found is not None
        assert found["far"]
        assert found["ms"] >= 200
        lines = dict(describe_in_words(json.loads(json.dumps(describe(manifest) | {"first_byte": found}))))
        assert lines["first byte"].startswith(f"{found['ms']:.0f} ms: you are far from your data; ")

    def test_a_store_that_is_gone_is_said_and_nothing_fails(self, served, monkeypatch: pytest.MonkeyPatch) -> None:
        with served(0) as (manifest, _):
            pass
        monkeypatch.setenv("CUBE_ATTEMPTS", "1")
        get_settings.cache_clear()
        found = measure_distance(manifest)
        monkeypatch.undo()
        get_settings.cache_clear()
        assert found is not None
        lines = dict(describe_in_words(describe(manifest) | {"first_byte": found}))
        assert lines["first byte"].startswith("not measured: ")
        assert lines["first byte"].endswith(f" ({found['href']})")

    def test_local_files_and_offline_measure_nothing(self, manifest: Manifest, served, monkeypatch) -> None:
        assert measure_distance(manifest) is None
        with served(0) as (remote, store):
            store.reset()
            monkeypatch.setenv("CUBE_OFFLINE", "1")
            get_settings.cache_clear()
            assert measure_distance(remote) is None
            monkeypatch.undo()
            get_settings.cache_clear()
            assert store.counts().requests == 0
        assert "first byte" not in dict(describe_in_words(describe(manifest) | {"first_byte": None}))
