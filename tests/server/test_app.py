"""The application: what it lists, what it leaves out, and what other xpublish plugins find in it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import intake
import pytest
import xarray as xr
import yaml
from fastapi import APIRouter, Depends
from xpublish.plugins.hooks import Dependencies, Plugin, hookimpl

import cube
from cube.catalog import Entry, manifest_entry
from cube.errors import CatalogError
from server.app import create_app
from server.run import serving


def test_datasets_are_listed_and_none_is_opened(url: str, client: Any, tmp_path: Path) -> None:
    assert json.loads(client(url, "/datasets").body) == ["scenes", "heights"]
    with serving(create_app({"away": manifest_entry("away", tmp_path / "away.cube")})) as other:
        assert json.loads(client(other, "/datasets").body) == ["away"]
        assert "away" in yaml.safe_load(client(other, "/catalog.yaml").body)["sources"]


def test_what_is_no_cube_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture, client: Any) -> None:
    (tmp_path / "catalog.yaml").write_text(
        "sources:\n"
        "  good: {driver: cube.intake.CubeSource, args: {urlpath: '{{ CATALOG_DIR }}/good.cube'}}\n"
        "  table: {driver: intake.source.csv.CSVSource, args: {urlpath: table.csv}}\n"
        "  broken: {args: {}}\n"
        "  two.zarr: {driver: cube.intake.CubeSource, args: {urlpath: two.cube}}\n"
    )
    with caplog.at_level(logging.INFO, logger="server.app"):
        app = create_app(tmp_path / "catalog.yaml")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all(any(name in line for line in lines) for name in ("table", "broken", "two.zarr"))
    with serving(app) as url:
        assert json.loads(client(url, "/datasets").body) == ["good"]
    with pytest.raises(CatalogError, match=r"none\.yaml"):
        create_app(tmp_path / "none.yaml")


def test_health_and_the_first_page(url: str, client: Any) -> None:
    for method, body in (("GET", b'{"status":"ok"}'), ("HEAD", b"")):
        answer = client(url, "/health", method=method)
        assert (answer.status, answer.body) == (200, body)
    assert json.loads(client(url, "/").body)["catalog"] == f"{url}/catalog.yaml"
    assert json.loads(client(url, "/nothing").body)["status"] == 404


def test_the_catalogue_opens_over_http(url: str, catalog: Path) -> None:
    entry = intake.open_catalog(f"{url}/catalog.yaml")["scenes"]
    opened = entry.to_dask()
    assert opened.red.chunks is not None
    expected = cube.open_cube(str(catalog.parent / "scenes.cube"))
    xr.testing.assert_equal(opened.load(), expected.load())
    assert intake.open_catalog(f"{url}/catalog.yaml")["heights"].to_dask().sizes == {"y": 700, "x": 900}


def test_the_catalogue_names_the_server_as_the_client_does(url: str, client: Any) -> None:
    answer = client(url, "/catalog.yaml", Host="cubes.example:8443")
    sources = yaml.safe_load(answer.body)["sources"]
    assert sources["scenes"]["args"]["urlpath"] == "http://cubes.example:8443/datasets/scenes.zarr"
    assert sources["scenes"]["description"] == "Two dates"
    assert sources["scenes"]["metadata"] == {"license": "CC-BY-4.0"}
    assert answer.headers["content-type"].startswith("application/yaml")


class _MeanPlugin(Plugin):
    """Somebody else's plugin."""

    @hookimpl
    def dataset_router(self, deps: Dependencies) -> APIRouter:
        router = APIRouter()

        @router.get("/mean/{band}")
        def mean(band: str, dataset: xr.Dataset = Depends(deps.dataset)) -> float:  # noqa: B008, FAST002 - FastAPI's way
            return float(dataset[band].isel(y=slice(-50, None), x=slice(-50, None)).mean())

        return router


def test_other_plugins_get_lazy_datasets(catalog: Path, client: Any) -> None:
    app = create_app(catalog, plugins={"mean": _MeanPlugin(name="mean")})
    with serving(app) as url:
        expected = cube.open_cube(str(catalog.parent / "scenes.cube")).red[:, -50:, -50:].mean()
        assert json.loads(client(url, "/datasets/scenes/mean/red").body) == pytest.approx(float(expected))
        assert json.loads(client(url, "/datasets/scenes/keys").body)[:2] == ["flags", "red"]
        unknown = client(url, "/datasets/other/mean/red")
        assert (unknown.status, json.loads(unknown.body)["dataset"]) == (404, "other")


class _BugPlugin(Plugin):
    @hookimpl
    def app_router(self) -> APIRouter:
        router = APIRouter()

        @router.get("/bug")
        def bug() -> None:
            raise RuntimeError("a secret")

        return router


def test_a_bug_is_500_and_tells_nothing(client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    entries: dict[str, Entry] = {}
    with serving(create_app(entries, plugins={"bug": _BugPlugin(name="bug")})) as url:
        answer = client(url, "/bug")
    assert answer.status == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert b"secret" not in answer.body
    assert "RuntimeError: a secret" in capfd.readouterr().err
