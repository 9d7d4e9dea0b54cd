"""The command: what it prints, what it writes, and that an error is one sentence and exit code 1."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
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

import cube
from cube import cli
from cube.catalog import read_catalog
from cube.cli import app
from cube.settings import get_settings
from cube.testing import Archive, ObjectStore, unique_values, write_archive, write_cog

DATES = ("2024-04-09", "2024-04-24", "2024-05-09")
SIZE = 128
COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]
PYTHON_M_CUBE = [sys.executable, "-P", "-m", "cube"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run of the command gave."""

    code: int
    out: str
    err: str


class Runner:
    """Runs the command in this process, which spares a second of imports."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: str | Path) -> Ran:
        self._monkeypatch.setattr(sys, "argv", ["cube", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = self._capsys.readouterr()
        return Ran(ended.value.code if isinstance(ended.value.code, int) else 0, out, err)

    def well(self, *words: str | Path) -> str:
        """Run what must succeed and return what it printed."""
        ran = self(*words)
        assert ran.code == 0
        # What a computation was planned to cost, and cost, is said beside its result.
        assert all(line.startswith("planned ") for line in ran.err.splitlines()), ran.err
        return ran.out


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive"), size=SIZE, tile=64, dates=DATES, seed=2)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    monkeypatch.setenv("COLUMNS", "200")
    return Runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def built(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `cube build` has made the cube s2 and the catalogue."""
    folder = tmp_path_factory.mktemp("built")
    command = [*PYTHON_M_CUBE, "build", str(archive.items), "--name", "s2", "--license", "CC0-1.0"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")  # no progress bar where there is no terminal
    assert "15 files" in ran.stdout
    return folder


@pytest.fixture
def here(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the cube s2, as the current one."""
    monkeypatch.chdir(built)
    return built


# build


def test_a_folder_is_built_and_entered_in_the_catalogue(
    run: Runner, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run.well("build", archive.root, "--name", "mine", "--description", "My scenes", "--license", "CC0-1.0")
    assert "mine, version" in said
    assert "3 dates, 2024-04-09 to 2024-05-09" in said
    (entry,) = read_catalog("catalog.yaml").values()
    assert (entry.name, entry.description, entry.metadata) == ("mine", "My scenes", {"license": "CC0-1.0"})
    ds = cube.open_cube("mine")
    assert set(ds.data_vars) == {"red", "green", "blue", "nir", "scl"}
    assert (ds.attrs["description"], ds.attrs["license"]) == ("My scenes", "CC0-1.0")
    np.testing.assert_array_equal(
        cube.open_cube("mine", mask_and_scale=False).red[1], archive.expected(DATES[1], "red")
    )


def test_a_glob_and_several_files_build_the_same(run: Runner, archive: Archive, tmp_path: Path) -> None:
    catalog = tmp_path / "new" / "catalog.yaml"
    files = sorted(archive.root.glob("**/*_red.tif"))
    first = json.loads(run.well("build", *files, "--name", "files", "--catalog", catalog, "--json"))
    second = json.loads(
        run.well("build", f"{archive.root}/*/*_red.tif", "--name", "glob", "--catalog", catalog, "--json")
    )
    assert list(read_catalog(catalog)) == ["files", "glob"]
    assert first["sources"] == second["sources"] == len(DATES)
    assert first["times"] == second["times"] == [f"{date}T00:00:00.000000" for date in DATES]
    assert [band["name"] for band in first["bands"]] == ["red"]
    assert Path(first["manifest"]) == catalog.parent / "files.cube"


def test_items_over_http_with_some_bands(run: Runner, archive: Archive, tmp_path: Path) -> None:
    with ObjectStore(archive.root) as store:
        url = f"{store.url}/items.json"
        said = run.well("build", url, "--name", "web", "--bands", "nir, B04", "--catalog", tmp_path / "catalog.yaml")
        assert "band nir" in said
        assert "band red" in said
        assert "band scl" not in said
        ds = cube.open_cube(tmp_path / "web.cube", "red", mask_and_scale=False)
        np.testing.assert_array_equal(ds.red[2], archive.expected(DATES[2], "red"))


def test_building_again_replaces_the_entry(run: Runner, archive: Archive, tmp_path: Path) -> None:
    options = ("--name", "mine", "--catalog", tmp_path / "catalog.yaml", "--json")
    run.well("build", archive.items, *options)
    facts = json.loads(run.well("build", archive.items, "--bands", "scl", *options))
    assert [band["name"] for band in facts["bands"]] == ["scl"]
    assert list(read_catalog(tmp_path / "catalog.yaml")) == ["mine"]
    assert list(cube.open_cube(tmp_path / "mine.cube").data_vars) == ["scl"]


def test_a_pattern_reads_the_names(run: Runner, archive: Archive, tmp_path: Path) -> None:
    pattern = "{tile}_{time:%Y%m%d}_{band}.tif"
    said = run.well(
        "build", archive.root, "--name", "mine", "--pattern", pattern, "--catalog", tmp_path / "catalog.yaml"
    )
    assert "3 dates" in said


def test_a_pattern_that_does_not_fit_is_answered_with_one_that_does(
    run: Runner, archive: Archive, tmp_path: Path
) -> None:
    options = ("--name", "mine", "--catalog", tmp_path / "catalog.yaml")
    ran = run("build", archive.root, "--pattern", "{band}-{time:%Y}.tif", *options)
    assert ran.code == 1
    shown = [f"T33UVP_20240409_{band}.tif" for band in ("blue", "green", "nir")]
    assert all(name in ran.err for name in shown), ran.err
    assert not (tmp_path / "catalog.yaml").exists()
    assert not (tmp_path / "mine.cube").exists()
    suggested = ran.err.rsplit("'", 2)[1]
    assert "3 dates" in run.well("build", archive.root, "--pattern", suggested, *options)


def test_holes_of_integers_need_a_fill_value(run: Runner, tmp_path: Path) -> None:
    from affine import Affine

    from cube.testing import write_cog

    for i, column in enumerate((0, 2)):  # two of three tiles in a row
        where = Affine(10, 0, 399960 + column * 640, 0, -10, 5400000)
        write_cog(tmp_path / f"part{i}_elevation.tif", np.full((64, 64), 7 + i, "int16"), transform=where, blocksize=64)
    options = ("--name", "dem", "--catalog", tmp_path / "catalog.yaml")
    refused = run("build", f"{tmp_path}/*.tif", *options)
    assert refused.code == 1
    assert "--fill-value" in refused.err or "fill_value" in refused.err
    run.well("build", f"{tmp_path}/*.tif", *options, "--fill-value", "-9999")
    (values,) = cube.open_cube(tmp_path / "dem.cube").data_vars.values()
    np.testing.assert_array_equal(values[0], [7] * 64 + [np.nan] * 64 + [8] * 64)


# info


def test_info_says_what_a_cube_is(run: Runner, here: Path) -> None:
    facts = json.loads(run.well("info", "s2", "--json"))
    assert (facts["name"], facts["shape"], facts["crs"]) == ("s2", [SIZE, SIZE], "EPSG:32633")
    by_path = json.loads(run.well("info", here / "s2.cube", "--json"))
    assert by_path == facts
    said = run.well("info", "s2")
    assert f"cube        s2, version {facts['version']}\n" in said
    assert "EPSG:32633" in said


def test_info_draws_a_picture(run: Runner, here: Path, tmp_path: Path) -> None:
    ran = run("info", "s2", "--preview", tmp_path / "s2.png", "--time", "2024-04", "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["name"] == "s2"  # the picture's line does not disturb it
    assert ran.err == f"{tmp_path / 's2.png'}: red green blue, 2024-04-24, level 0\n"
    assert (tmp_path / "s2.png").read_bytes().startswith(b"\x89PNG")


def test_info_takes_files_too(run: Runner, archive: Archive) -> None:
    assert "uint16, nodata 0" in run.well("info", archive.path(DATES[0], "red"))


def test_info_as_python_is_the_call(run: Runner, here: Path) -> None:
    said = run.well("info", "s2", "--as-python")
    namespace: dict[str, Any] = {}
    exec(compile(said, "printed", "exec"), namespace)
    assert namespace["ds"].equals(cube.open_cube("s2"))


# append, refresh, check


@pytest.fixture
def mine(archive: Archive, tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with copies of red on two dates, built as the cube mine, and of a third one."""
    monkeypatch.chdir(tmp_path)
    for date in DATES:
        shutil.copy(archive.path(date, "red"), tmp_path)
    run.well("build", "T33UVP_202404*.tif", "--name", "mine")
    return tmp_path


def test_append_adds_what_is_not_there(run: Runner, mine: Path, archive: Archive) -> None:
    said = run.well("append", "mine", "*.tif")
    assert re.fullmatch(r"mine: 1 added, 2 there already; 3 sources, version \w+\n", said)
    np.testing.assert_array_equal(
        cube.open_cube("mine", mask_and_scale=False).red[2], archive.expected(DATES[2], "red")
    )
    facts = json.loads(run.well("append", "mine", *mine.glob("*.tif"), "--json"))
    assert (facts["added"], facts["known"], facts["left_out"]) == (0, 3, [])


def test_check_refresh_and_check_again(run: Runner, mine: Path, archive: Archive) -> None:
    assert run.well("check", "mine") == "2 sources: all is well\n"
    path = mine / "T33UVP_20240409_red.tif"
    shutil.copy(archive.path(DATES[2], "red"), path)
    ran = run("check", "mine")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith(f"changed: {path.as_posix()}\n  expected an object of ")
    assert ran.out.endswith("\n2 sources: 1 changed\n")
    ran = run("check", "mine", "--no-pixels", "--json")
    assert (ran.code, json.loads(ran.out)["ok"]) == (1, False)
    assert run.well("refresh", "mine").startswith("mine: 1 refreshed; 2 sources, version ")
    assert run.well("check", "mine") == "2 sources: all is well\n"
    assert json.loads(run.well("refresh", "mine", "--all", "--json"))["refreshed"] == 2
    path.unlink()
    ran = run("refresh", "mine")
    assert ran.code == 1
    assert f"--drop-vanished):\n  {path.as_posix()}\n" in ran.err
    assert "1 dropped" in run.well("refresh", "mine", "--drop-vanished")


def test_the_options_of_build_go_through(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cube.testing import write_cog

    monkeypatch.chdir(tmp_path)
    values = np.arange(2 * 64 * 64, dtype="uint16").reshape(2, 64, 64)
    write_cog(tmp_path / "years.tif", values, crs=None, descriptions=["2001", "2002"], blocksize=128)
    (tmp_path / "broken.tif").touch()
    refused = run("build", "*.tif", "--name", "mine")
    assert refused.code == 1
    assert "broken.tif" in refused.err
    more = ("--bands-as", "time:%Y", "--crs", "EPSG:32633", "--no-harmonize", "--skip-unreadable")
    said = run.well("build", "*.tif", "--name", "mine", *more)
    assert "2 dates, 2001-01-01 to 2002-01-01" in said
    assert re.search(r"left out +\S*broken.tif: ", said)
    ds = cube.open_cube("mine")
    assert ds.sizes["time"] == 2
    assert "UTM zone 33N" in ds.spatial_ref.attrs["crs_wkt"]
    built = cube.open_manifest("mine.cube").built
    assert (built["harmonize"], built["fail_on_error"], built["bands_as"]) == (False, False, "time:%Y")
    write_cog(tmp_path / "series" / "a_20240101.tif", values[0], blocksize=128)
    write_cog(tmp_path / "series" / "a_20240102.tif", values[1], blocksize=128, nodata=9)
    ran = run("build", "series", "--name", "layers", "--no-time")
    assert ran.code == 1
    assert "two files of the same place" in ran.err  # the same band at no time


# place


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Runner) -> Path:
    """A folder with a cube over two zones, as the current one."""
    monkeypatch.chdir(tmp_path)
    for number, (name, crs, left) in enumerate([("a", "EPSG:32633", 399960), ("b", "EPSG:32632", 838000)]):
        for second, band in enumerate(("red", "nir")):
            values = unique_values((128, 128), "uint16", 2 * number + second)
            path = tmp_path / "in" / f"{name}_20240101T1000{number}0_{band}.tif"
            write_cog(path, values, crs=crs, transform=Affine(10, 0, left, 0, -10, 5400000), nodata=0, blocksize=128)
    said = run.well("build", "in", "--name", "m", "--pattern", "{tile}_{time:%Y%m%dT%H%M%S}_{band}.tif")
    assert (
        len(re.findall(r"^grid +128 rows x 128 columns of 10 x 10, EPSG:3263[23], 2 sources$", said, re.MULTILINE)) == 2
    )
    return tmp_path


def test_a_cube_of_several_grids_asks_to_be_placed(run: Runner, zones: Path) -> None:
    for words in (["explain", "m"], ["compute", "m", "ndvi", "-o", "ndvi.tif"], ["info", "m", "--preview", "m.png"]):
        ran = run(*words)
        assert ran.code == 1
        assert "lie on 2 grids" in ran.err


def test_place_says_where_a_cube_opens(run: Runner, zones: Path) -> None:
    words = (
        "--crs",
        "EPSG:32633",
        "--resolution",
        "20",
        "--groupby",
        "solar_day",
        "--resampling",
        "red=nearest,*=cubic",
    )
    said = run.well("place", "m", *words)
    expected = cube.open_cube(
        "m.cube", crs="EPSG:32633", resolution=20, groupby="solar_day", resampling={"red": "nearest", "*": "cubic"}
    )
    rows, columns = expected.red.shape[1:]
    (line,) = re.findall(r"^opens on +(.*)$", said, re.MULTILINE)
    assert line.startswith(f"{rows} rows x {columns} columns of 20 x 20, EPSG:32633, ")
    assert cube.open_cube("m").identical(expected)
    assert run.well("explain", "m").startswith("1 read of 4 sources: ")
    run.well("compute", "m", "ndvi", "--composite", "median", "-o", "ndvi.tif")
    with rasterio.open(zones / "ndvi.tif") as written:
        assert (written.shape, written.crs.to_epsg()) == ((rows, columns), 32633)
    facts = json.loads(run.well("place", "m", "--fuse", "median", "--json"))
    assert (facts["on"]["fuse"], facts["on"]["groupby"]) == ("median", "solar_day")
    assert facts["on"]["resampling"] == {"nir": "cubic"}
    for words in (["--fuse", "top"], ["--resampling", "red=linear"], ["--resampling", "blue=cubic"]):
        ran = run("place", "m", *words)
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("error: ")


# explain


def test_explain_counts_what_a_read_costs(run: Runner, here: Path, archive: Archive) -> None:
    part = ("--bands", "red,B08", "--bbox", "13.636,48.74,13.64,48.7415", "--time", "2024-04-24", "--level", "0")
    said = run.well("explain", "s2", *part)
    assert said.startswith("1 read of 2 sources: ")
    listed = run.well("explain", "s2", *part, "--sources")
    assert listed.startswith(said)
    assert len(listed.splitlines()) == len(said.splitlines()) + 2
    assert f"{archive.path(DATES[1], 'nir').as_posix()}: " in listed
    facts = json.loads(run.well("explain", "s2", *part, "--json", "--sources"))
    assert sum(each["bytes"] for each in facts["sources"]) == facts["bytes"]
    chunked = json.loads(run.well("explain", "s2", "--chunks", "time=1, y=64,x=64", "--json"))
    assert (chunked["blocks"], chunked["sources"]) == (3 * 2 * 2, 15)
    assert json.loads(run.well("explain", "s2", "--chunks", "auto", "--json"))["blocks"] >= 1


def test_explain_and_compute_refuse_what_is_too_large(run: Runner, here: Path, tmp_path: Path) -> None:
    facts = json.loads(run.well("explain", "s2", "--json", "--latency-ms", "100"))
    assert (facts["latency_ms"], facts["advice"][:8]) == (100, "no Dask ")
    run.well("explain", "s2", "--max-bytes", facts["bytes"], "--max-requests", facts["requests"])
    for command in (("explain", "s2"), ("compute", "s2", "ndvi", "-o", tmp_path / "x.tif")):
        ran = run(*command, "--max-bytes", "1kB")
        assert (ran.code, ran.out) == (1, "")
        assert ran.err.startswith("error: this read takes ")
        assert " bytes (" in ran.err
        assert "; at most 1,000 were allowed. Take a smaller bbox" in ran.err
        assert "advice: no Dask" in ran.err
        assert "requests; at most 1 were allowed" in run(*command, "--max-requests", "1").err
    assert list(tmp_path.iterdir()) == []


# compute


def test_compute_says_what_it_cost(run: Runner, here: Path, tmp_path: Path) -> None:
    ran = run(
        "compute", "s2", "ndvi", "--composite", "median", "--freq", "MS", "--mask", "scl", "-o", tmp_path / "a.tif"
    )
    found = re.fullmatch(
        r"planned ([\d,]+) requests, (.+), (.+ s) of reading; was ([\d,]+) requests, (.+), (.+ s) with arithmetic and "
        r"writing\n",
        ran.err,
    )
    assert found is not None, ran.err
    assert (found[1], found[2]) == (found[4], found[5])
    assert int(found[1]) > 0


def test_compute_writes_a_cog(run: Runner, here: Path, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "ndvi.tif"
    said = run.well("compute", "s2", "ndvi", "--composite", "median", "--mask", "scl", "-o", path)
    assert said == f"{path}: median of normalized difference vegetation index; y {SIZE}, x {SIZE}\n"
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_allclose(file.read(1), archive.truth_ndvi_composite()[1][0], rtol=2.4e-7)


def test_compute_writes_a_zarr_store(run: Runner, here: Path, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "ndvi.zarr"
    options = ("--composite", "median", "--freq", "MS", "--mask", "scl")
    said = run.well("compute", "s2", "ndvi", *options, "--output", path)
    assert said.endswith(f"; time 2, y {SIZE}, x {SIZE}\n")
    labels, truth = archive.truth_ndvi_composite("MS")
    with xr.open_dataset(path, engine="zarr") as ds:
        np.testing.assert_array_equal(ds.time.values, labels)
        np.testing.assert_allclose(ds.ndvi.values, truth, rtol=2.4e-7)


def test_compute_takes_a_part_of_a_cube(run: Runner, here: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.zarr"
    part = ("--bbox", "13.636,48.74,13.64,48.7415", "--time", "2024-04-24/2024-05", "--level", "1")
    run.well("compute", "s2", "NDWI", *part, "-o", path)
    expected = cube.open_cube("s2", bbox=(13.636, 48.74, 13.64, 48.7415), time=("2024-04-24", "2024-05"), level=1)
    with xr.open_dataset(path, engine="zarr") as ds:
        assert ds.sizes == expected.sizes
        assert 0 < ds.sizes["x"] < SIZE // 2
        ndwi = (expected.green - expected.nir) / (expected.green + expected.nir)
        np.testing.assert_allclose(ds.ndwi, ndwi, rtol=2.4e-7)


def test_compute_on_a_local_cluster_gives_the_same(here: Path, archive: Archive, tmp_path: Path) -> None:
    # A process of its own: its worker must be able to start from `python -m cube`.
    command = [*PYTHON_M_CUBE, "compute", "s2", "ndvi", "--composite", "median", "--mask", "scl"]
    command += ["--cluster", "local:1", "-o", str(tmp_path / "ndvi.zarr")]
    ran = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr  # where the machine is busy, dask says so there
    assert "Traceback" not in ran.stderr
    with xr.open_dataset(tmp_path / "ndvi.zarr", engine="zarr") as ds:
        np.testing.assert_allclose(ds.ndvi, archive.truth_ndvi_composite()[1][0], rtol=2.4e-7)


# export


@pytest.mark.parametrize(
    ("name", "more"), [("s2.json", ""), ("s2.parq", " fastparquet"), ("s2.parquet", " fastparquet")]
)
@pytest.mark.filterwarnings("ignore:The 'fastparquet' engine")  # fsspec's choice
def test_export_writes_references_and_says_how_to_open_them(
    run: Runner, here: Path, tmp_path: Path, name: str, more: str
) -> None:
    path = tmp_path / name
    said = run.well("export", "s2", "--kerchunk", path)
    assert said.startswith(f"{path}: open it with `pip install xarray kerchunk imagecodecs-numcodecs{more}` and\n")
    assert f'xr.open_dataset("{path}", engine="kerchunk")' in said
    with xr.open_dataset(str(path), engine="kerchunk") as ds:
        np.testing.assert_array_equal(ds.red.values, cube.open_cube("s2").red.values)


# tune


def test_tune_proposes_settings(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "noise.bin").write_bytes(np.random.default_rng(0).bytes(1_200_000))
    with ObjectStore(tmp_path) as store:
        said = run.well("tune", f"{store.url}/noise.bin", "--max-bytes", "2MB")
        facts = json.loads(run.well("tune", f"{store.url}/noise.bin", "--max-bytes", "2MB", "--json"))
    assert "\nexport CUBE_GAP_BYTES=" in said
    assert facts["bytes"] <= 2_000_000
    assert set(facts["settings"]) >= {"CUBE_LATENCY_MS", "CUBE_REQUESTS_IN_FLIGHT", "CUBE_STORE_MB_S"}


def test_info_says_how_far_a_store_is(run: Runner, archive: Archive, tmp_path: Path) -> None:
    red = archive.path(DATES[0], "red").relative_to(archive.root).as_posix()
    with ObjectStore(archive.root) as store:
        manifest = cube.build(f"{store.url}/{red}", to=tmp_path / "far.cube")
        assert re.search(r"^first byte +\d+ ms$", run.well("info", manifest.url), re.MULTILINE)
        asked = store.counts().requests
        assert "first byte" not in run.well("info", manifest.url, "--no-measure")
        assert store.counts().requests == asked


# doctor


def test_doctor_as_json_measures_a_url(run: Runner, archive: Archive) -> None:
    with ObjectStore(archive.root) as store:
        ran = run("doctor", f"{store.url}/items.json", "--json")
    findings = json.loads(ran.out)
    assert [set(each) for each in findings] == [{"what", "finding", "well"}] * len(findings)
    assert findings[-1]["what"] == "first byte"
    assert findings[-1]["well"]
    assert ran.code == (0 if all(each["well"] for each in findings) else 1)  # the port may be taken


def test_doctor_in_words_marks_what_to_look_at(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.py").touch()
    monkeypatch.chdir(tmp_path)
    ran = run("doctor")
    assert (ran.code, ran.err) == (1, "")
    assert ran.out.startswith("ok    Python: ")
    assert f"\nlook  folder: {tmp_path / 'server.py'} hides the installed package" in ran.out


# serve


@pytest.fixture
def served(here: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its first lines."""
    command = [*PYTHON_M_CUBE, "serve", "catalog.yaml", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(60, process.kill)  # so that a server that says nothing fails the test
        watchdog.start()
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(3))
        try:
            yield process, said
        finally:
            watchdog.cancel()
            process.kill()


def test_serve_serves_what_plain_xarray_opens(served: tuple[subprocess.Popen[str], str]) -> None:
    process, said = served
    first, opened, listed = said.splitlines()
    found = re.fullmatch(r"serving 1 cube of catalog\.yaml at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)", first)
    assert found is not None, first
    url = f"{found[1]}/datasets/s2.zarr"
    assert opened == f'  xr.open_dataset("{url}")'
    assert listed == f'  intake.open_catalog("{found[1]}/catalog.yaml")'
    with xr.open_dataset(url) as ds, cube.open_cube("s2") as own:
        xr.testing.assert_equal(ds.load(), own.load())
    process.terminate()
    assert process.wait(30) in (0, -signal.SIGTERM if os.name == "posix" else 1)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGINT for another process alone")
def test_serve_ends_with_ctrl_c(served: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = served
    process.send_signal(signal.SIGINT)
    assert process.wait(30) in (0, 130)
    assert process.stderr is not None
    assert process.stderr.read() == ""


# errors


@pytest.fixture
def _one_attempt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask a store that is not there once."""
    monkeypatch.setenv("CUBE_ATTEMPTS", "1")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.mark.usefixtures("_one_attempt")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("info nope", "nope: there is no such file or folder, and no cube of that name (catalog.yaml here has s2)"),
        ("compute nope ndvi -o x.tif", "no cube of that name (catalog.yaml here has s2)"),
        ("export nope --kerchunk x.json", "no cube of that name (catalog.yaml here has s2)"),
        ("info nope.cube", "holds no manifest (manifest.json is not there); build one with `cube build`"),
        ("info s2 --preview x.png --time 2023", "'s2' has no date then; its dates run from 2024-04-09 to 2024-05-09"),
        ("info s2 --preview nope.txt/x.png", "nope.txt/x.png cannot be written"),
        ("build nope --name mine", "nope: there is no such file or folder"),
        ("build *.tiff --name mine", "no file matches *.tiff"),
        ("build nope.txt --name mine", "nope.txt: "),
        ("build s2.cube --name ../mine", "'../mine' cannot be the name of a catalogue entry"),
        ("build nope --name mine --bands ,", "--bands ',': give names of bands, separated by commas"),
        ("build http://127.0.0.1:1/a.json --name mine", "http://127.0.0.1:1/a.json: "),
        ("compute s2 evi -o x.tif", "index 'evi' was asked for; there are nbr, ndvi, ndwi"),
        ("compute s2 nbr -o x.tif", "band 'swir22' was asked for; 's2' has blue, green, red, nir, scl"),
        ("compute s2 ndvi -o x.png", "x.png: give a name that ends with .tif (a COG) or .zarr (a store)"),
        ("compute s2 ndvi -o x.tif --composite mode", "composite 'mode' was asked for"),
        ("compute s2 ndvi -o x.tif --freq MS", "freq='MS' needs a composite"),
        ("compute s2 ndvi -o x.tif --mask qa", "say which values of 'qa' are clear"),
        ("compute s2 ndvi -o x.tif --bbox 1,2,3", "--bbox '1,2,3': give west,south,east,north in degrees"),
        ("compute s2 ndvi -o x.tif --bbox 1,2,3,east", "give west,south,east,north in degrees"),
        ("compute s2 ndvi -o x.tif --level 9", "level 9 was asked for; 's2' has levels 0 to"),
        (
            "compute s2 ndvi -o x.tif --cluster many",
            "cluster 'many' is none of: local[:WORKERS], ",
        ),
        ("compute s2 ndvi -o nope.txt/x.tif", "nope.txt/x.tif cannot be written"),
        ("export s2 --kerchunk x.txt", "x.txt: give a name that ends with .json or .parq"),
        ("append nope *.tif", "no cube of that name (catalog.yaml here has s2)"),
        (
            "append nope.txt *.tif",
            "nope.txt is no cube; give a name in catalog.yaml, or a manifest (NAME.cube) by path",
        ),
        ("append s2 nope", "nope: there is no such file or folder"),
        ("refresh nope", "no cube of that name (catalog.yaml here has s2)"),
        ("check nope.cube", "holds no manifest"),
        ("explain s2 --chunks many", "--chunks 'many': give auto, or lengths as time=1,y=512,x=512"),
        ("explain s2 --max-bytes much", "'much' is no number of bytes; write it as 2GB, 500MB"),
        ("tune nope", "nope: there is no such file or folder, and no cube of that name"),
        ("tune s2", "the sources of 's2': a local disk needs no tuning"),
        ("explain s2 --chunks z=1", "the cube's dimensions are time, y, x"),
        ("explain s2 --level 9", "level 9 was asked for; 's2' has levels 0 to"),
        ("explain s2 --time 2023", "'s2' has no date then"),
        ("build nope --name mine --crs nonsense", "nope: there is no such file or folder"),
        ("serve nope.yaml", "nope.yaml cannot be read"),
        ("serve nope.txt", "nope.txt is not a catalogue"),
    ],
)
def test_an_error_is_a_sentence_on_stderr_and_exit_code_1(run: Runner, here: Path, line: str, message: str) -> None:
    (here / "nope.txt").write_text("nothing of the kind", encoding="utf-8")
    before = (here / "catalog.yaml").read_bytes()
    ran = run(*line.split())
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert (here / "catalog.yaml").read_bytes() == before
    assert [path.name for path in here.iterdir() if path.name.startswith(("x.", ".", "mine"))] == []


def test_an_error_of_a_process_has_no_traceback(here: Path) -> None:
    ran = subprocess.run([*PYTHON_M_CUBE, "info", "nope"], cwd=here, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("error: nope: ")
    assert ran.stderr.count("\n") == 1


def test_without_a_catalogue_the_error_says_so(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("info", "s2")
    assert ran.err == "error: s2: there is no such file or folder, and no cube of that name (no catalog.yaml is here)\n"


def test_an_entry_of_another_driver_is_told_from_a_cube(run: Runner, archive: Archive, tmp_path: Path) -> None:
    from cube.catalog import Entry, add_entry

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        add_entry("catalog.yaml", Entry(name="web", driver="intake.source.csv.CSVSource", args={"urlpath": "a.csv"}))
        ran = run("info", "web")
    assert ran.code == 1
    assert "intake.open_catalog('catalog.yaml')['web'].to_dask()" in ran.err


# help


def test_what_others_wrote_is_added_under_a_name(
    run: Runner, built: Path, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest, files = built / "s2.cube", archive.root.as_posix()
    run.well("export", manifest, "--kerchunk", "refs.json", "--icechunk", "ice")
    refused = run("add", "refs.json", "--name", "theirs")
    assert refused.code == 1
    assert f"allow=['{files}/" in refused.err
    assert not Path("catalog.yaml").exists()
    said = run.well("add", "refs.json", "--name", "theirs", "--allow", files, "--license", "CC0-1.0")
    assert said.startswith("Kerchunk references  theirs, ")
    facts = json.loads(run.well("add", "ice", "--name", "versioned", "--allow", files, "--json"))
    assert (facts["kind"], facts["name"], facts["allow"]) == ("icechunk", "versioned", [files])
    assert list(read_catalog("catalog.yaml")) == ["theirs", "versioned"]
    for name in ("theirs", "versioned"):
        assert "band " in run.well("info", name)
        np.testing.assert_array_equal(cube.open_cube(name).red.values, cube.open_cube(str(manifest)).red.values)
    none = run("add", manifest, "--name", "x")
    assert none.code == 1
    assert "is no Zarr store" in none.err
    missing = run("export", manifest)
    assert missing.code == 1
    assert "--kerchunk" in missing.err


def test_every_command_is_listed(run: Runner) -> None:
    said = run.well("--help")
    assert {line.split()[0] for line in said.partition("Commands:\n")[2].splitlines()} == set(COMMANDS)
    made = {"build", "append", "refresh", "place", "check"}
    kept = {"copy", "cache", "export", "add"}
    assert set(COMMANDS) == made | kept | {"info", "explain", "compute", "serve", "demo", "doctor", "tune", "bench"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_that_the_command_takes(run: Runner, name: str) -> None:
    said = run.well(name, "--help")
    examples = [line.strip() for line in said.splitlines() if line.strip().startswith("Example: ")]
    assert len(examples) == 1
    assert len(examples[0]) <= 76  # longer ones are broken into lines that nobody can paste
    program, command, *words = shlex.split(examples[0].removeprefix("Example: "))
    assert (program, command) == ("cube", name)
    with COMMANDS[name].make_context(name, list(words)):  # raises for an option or an argument too many
        pass


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    assert COMMANDS[name].help
    assert [param.name for param in COMMANDS[name].params if not param.help] == []
