"""Reads of a user's archive, measured: what is counted, what is compared, and what is told."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

import cube
from cube.bench import Workload, difference, measure, plan_workloads, time_opening
from cube.cli.measures import bench
from cube.errors import CubeError, SelectionError
from cube.grid import Window
from cube.testing import ObjectStore, unique_values, write_cog

SIZE, TILE, DATES = 512, 128, 5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    for date in range(DATES):
        for number, band in enumerate(("nir", "red")):
            pixels = unique_values((SIZE, SIZE), "u2", seed=2 * date + number)
            path = root / f"{band}_2024010{date + 1}.tif"
            write_cog(path, pixels, nodata=0, blocksize=TILE, overviews="NONE")
    with ObjectStore(root) as running:
        yield running


@pytest.fixture(scope="module")
def manifest(store, tmp_path_factory):
    urls = [f"{store.url}/{band}_2024010{date + 1}.tif" for date in range(DATES) for band in ("nir", "red")]
    return cube.build(urls, to=tmp_path_factory.mktemp("cubes") / "mine.cube", pattern="{band}_{time:%Y%m%d}.tif")


def by_name(manifest, **options) -> dict[str, Workload]:
    return {each.name: each for each in plan_workloads(manifest, **options)}


def test_workloads_are_a_series_a_window_and_a_column_at_one_place(manifest):
    planned = by_name(manifest)
    assert list(planned) == ["series", "window", "column"]
    series, window, column = planned.values()
    assert series.window.shape == (1, 1)
    assert series.times == column.times == tuple(range(DATES))
    assert (series.bands, window.bands) == (("nir",), ("nir", "red"))
    for each in (window, column):
        assert each.window.top <= series.window.top < each.window.bottom <= SIZE
        assert each.window.left <= series.window.left < each.window.right <= SIZE


def test_the_place_is_that_of_the_seed(manifest):
    assert plan_workloads(manifest, seed=3) == plan_workloads(manifest, seed=3)
    assert len({plan_workloads(manifest, seed=seed)[0].window for seed in range(5)}) > 1


def test_bands_are_those_that_are_asked_for(manifest):
    assert by_name(manifest, bands=["red"])["window"].bands == ("red",)
    with pytest.raises(SelectionError, match="swir"):
        plan_workloads(manifest, bands=["swir"])


@pytest.mark.parametrize("limit", [300_000, 40_000, 1])
def test_no_run_fetches_more_than_the_limit_or_one_tile_a_band(manifest, store, limit):
    for workload in plan_workloads(manifest, max_bytes=limit):
        store.reset()
        measure(manifest, [workload], rounds=1)
        fetched = store.counts().bytes // 3  # once first, once fetched alone, once in the round
        assert fetched <= max(limit, 40_000 * len(workload.bands))


def test_requests_and_bytes_are_those_of_the_store(manifest, store):
    (workload,) = [each for each in plan_workloads(manifest) if each.name == "column"]
    store.reset()
    (row,) = measure(manifest, [workload], rounds=2)
    counts = store.counts()
    # The first run, and two rounds of a fetch alone and a read.
    assert (counts.requests, counts.bytes) == (5 * row.requests, 5 * row.bytes)
    assert row.requests == DATES
    assert row.problem is None
    assert row.ratio == row.seconds / row.fetch_s


def test_opening_counts_the_manifest(manifest):
    opened, row = time_opening(lambda: manifest)
    assert opened is manifest
    assert (row.workload, row.seconds, row.what) == ("open", None, "the cube opened: 10 sources")


def test_difference_names_the_first_number(manifest):
    ours = {"nir": np.zeros((2, 3, 4), "u2"), "red": np.zeros((2, 3, 4), "u2")}
    other = {band: values.copy() for band, values in ours.items()}
    assert difference(other, ours) is None
    other["red"][1, 2, 3] = 7
    told = difference(other, ours)
    assert told == "red: 1 of 24 numbers differ, first at date 1, row 2, column 3: 7, where cogcube has 0"
    assert difference({"nir": np.zeros((1, 3, 4))}, {"nir": ours["nir"]}).startswith("nir: (1, 3, 4) numbers")
    gaps = np.array([[[np.nan, 1.0]]])
    assert difference({"nir": gaps}, {"nir": gaps.copy()}) is None
    assert difference({"nir": np.array([[[0.0, 1.0]]])}, {"nir": gaps}) is not None


def test_an_unknown_peer_is_an_error_that_names_those_there_are(manifest):
    with pytest.raises(CubeError, match=r"'gdal' was asked for; there is odc-stac"):
        measure(manifest, plan_workloads(manifest), peer="gdal")


def test_a_peer_that_is_not_installed_is_an_error_that_says_what_to_do(manifest, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "odc.stac", None)
    with pytest.raises(CubeError, match="pip install odc-stac"):
        measure(manifest, plan_workloads(manifest), peer="odc-stac")


@pytest.mark.filterwarnings("ignore:The 'shapely.ops.transform:DeprecationWarning")  # odc-geo
def test_odc_stac_reads_the_same_numbers(manifest):
    rows = measure(manifest, plan_workloads(manifest), peer="odc-stac", rounds=1)
    assert [(row.workload, row.reader, row.problem) for row in rows] == [
        (workload, reader, None) for workload in ("series", "window", "column") for reader in ("cogcube", "odc-stac")
    ]
    assert all(row.seconds is not None for row in rows)


def test_a_failure_of_a_peer_is_told_and_ours_go_on(manifest):
    workload = Workload(
        name="window", bands=("nir",), times=(0,), window=Window(top=0, bottom=SIZE, left=0, right=SIZE)
    )
    layers = type("Layers", (), {"__getattr__": lambda _self, name: getattr(manifest, name), "times": None})()
    ours, theirs = measure(layers, [dataclasses.replace(workload)], peer="odc-stac", rounds=1)
    assert ours.seconds is not None
    assert theirs.seconds is None
    assert "layers without time" in theirs.problem


def run(*arguments: str):
    import typer

    app = typer.Typer()
    app.command()(bench)
    return CliRunner().invoke(app, arguments)


def test_the_command_prints_a_table(manifest):
    result = run(manifest.url, "--rounds", "1")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["reader", "first", "s", "median", "s", "requests", "MB", "MB/s", "x", "fetch"]
    assert [line.split()[0] for line in lines[1:5]] == ["open", "series", "window", "column"]
    assert "512 x 512 pixels" in result.stdout


def test_the_command_prints_json(manifest):
    result = run(manifest.url, "--rounds", "1", "--json", "--bands", "red")
    rows = json.loads(result.stdout)
    assert [row["workload"] for row in rows] == ["open", "series", "window", "column"]
    assert all(row["requests"] for row in rows[1:])
