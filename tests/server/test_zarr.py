"""Cubes over HTTP, as clients of all kinds open them: with xarray, zarr, GDAL, and by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import odc.geo.xr  # noqa: F401 - the accessor .odc
import pytest
import rasterio
import rioxarray  # noqa: F401 - the accessor .rio
import xarray as xr
import zarr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

import cube
from cube.catalog import add_entry, manifest_entry
from cube.io.trace import trace
from cube.testing import ObjectStore, unique_values, write_cog
from server.app import create_app
from server.run import serving
from server.settings import ServerSettings

# rioxarray and odc-geo still multiply affines with `*`.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

OPENERS: dict[str, Callable[[str], xr.Dataset]] = {
    "no arguments": lambda url: xr.open_dataset(f"{url}.zarr"),
    "version 3": lambda url: xr.open_zarr(f"{url}.zarr", zarr_format=3, chunks=None),
    "version 3, the other URL": lambda url: xr.open_dataset(f"{url}/zarr", engine="zarr"),
    "version 2": lambda url: xr.open_dataset(f"{url}/v2.zarr"),
    "version 2, said": lambda url: xr.open_zarr(f"{url}/v2.zarr", zarr_format=2, chunks=None),
}


def alike(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset without what can only be said by a file, or only by one that is open."""
    dataset = dataset.copy()
    for name in ("Conventions", "values"):
        dataset.attrs.pop(name, None)
    for variable in dataset.variables.values():
        for name in ("_CRS", "grid_mapping"):
            variable.attrs.pop(name, None)
    return dataset


@pytest.mark.parametrize("name", ["scenes", "heights"])
@pytest.mark.parametrize("opener", OPENERS)
def test_xarray_opens_what_open_cube_opens(url: str, catalog: Path, name: str, opener: str) -> None:
    opened = OPENERS[opener](f"{url}/datasets/{name}")
    expected = cube.open_cube(str(catalog.parent / f"{name}.cube"))
    assert opened.rio.crs == expected.rio.crs
    assert opened.odc.geobox == expected.odc.geobox
    xr.testing.assert_identical(alike(opened.load()), alike(expected.load()))


def test_zarr_opens_every_level(url: str, catalog: Path) -> None:
    levels = len(cube.open_manifest(str(catalog.parent / "heights.cube")).levels)
    assert levels > 1
    for level in range(levels):
        expected = cube.open_cube(str(catalog.parent / "heights.cube"), level=level, mask_and_scale=False)
        group = zarr.open_group(f"{url}/datasets/heights/level/{level}.zarr", mode="r", zarr_format=3)
        np.testing.assert_array_equal(group["band_1"][:], expected["band_1"].values)
        with rasterio.open(f'ZARR:"/vsicurl/{url}/datasets/heights/level/{level}/v2.zarr":/band_1') as opened:
            np.testing.assert_array_equal(opened.read(1), expected["band_1"].values)
            assert opened.transform.almost_equals(expected.odc.geobox.transform)


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of a cube over two zones whose scenes overlap, and that was placed on one grid and on days."""
    folder = tmp_path_factory.mktemp("placed")
    scenes = [("a_20240101T100000", "EPSG:32633", 399960), ("b_20240101T100024", "EPSG:32633", 403960)]
    scenes += [("c_20240101T100030", "EPSG:32632", 838000), ("a_20240102T100000", "EPSG:32633", 399960)]
    for number, (name, crs, left) in enumerate(scenes):
        transform, values = Affine(10, 0, left, 0, -10, 5400000), unique_values((600, 600), "uint16", seed=number)
        values[:50, :50] = 0
        write_cog(folder / "in" / f"{name}.tif", values, crs=crs, transform=transform, nodata=0, blocksize=256)
    manifest = cube.build(folder / "in", pattern="{tile}_{time:%Y%m%dT%H%M%S}.tif", to=folder / "m.cube")
    where = {"crs": "EPSG:32633", "resolution": 15, "resampling": "cubic", "groupby": "solar_day", "fuse": "median"}
    cube.place(manifest, **where)
    add_entry(folder / "catalog.yaml", manifest_entry("m", manifest.url, catalog=folder / "catalog.yaml"))
    return folder


@pytest.mark.parametrize("opener", OPENERS)
def test_a_placed_cube_is_served_on_its_pixels_and_days(placed: Path, opener: str) -> None:
    expected = cube.open_cube(str(placed / "m.cube"))
    assert expected.sizes["time"] == 2
    with serving(create_app(placed / "catalog.yaml")) as url:
        opened = OPENERS[opener](f"{url}/datasets/m")
        assert opened.odc.geobox == expected.odc.geobox
        xr.testing.assert_identical(alike(opened.load()), alike(expected.load()))
        for level in range(len(cube.open_manifest(str(placed / "m.cube")).levels)):
            coarse = xr.open_dataset(f"{url}/datasets/m/level/{level}.zarr")
            own = cube.open_cube(str(placed / "m.cube"), level=level)
            xr.testing.assert_identical(alike(coarse.load()), alike(own.load()))


@pytest.mark.parametrize("ending", [".zarr", "/v2.zarr"])
def test_gdal_opens_bands_with_their_crs(url: str, catalog: Path, ending: str) -> None:
    for name, band in (("scenes", "red"), ("scenes", "flags"), ("heights", "band_1")):
        expected = cube.open_cube(str(catalog.parent / f"{name}.cube"), mask_and_scale=False)
        with rasterio.open(f'ZARR:"/vsicurl/{url}/datasets/{name}{ending}":/{band}') as opened:
            np.testing.assert_array_equal(opened.read().squeeze(), expected[band].values)
            assert opened.crs == rasterio.CRS.from_user_input(expected.rio.crs.to_wkt())
            assert opened.transform.almost_equals(expected.odc.geobox.transform)


class Counter:
    """A pure ASGI middleware that remembers (method, path, status) of each request."""

    def __init__(self, app: Any, seen: list[tuple[str, str, int]]) -> None:
        self.app, self.seen = app, seen

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.seen.append((scope["method"], scope["path"], message["status"]))
            await send(message)

        await self.app(scope, receive, note if scope["type"] == "http" else send)


@pytest.mark.parametrize(("arguments", "most"), [({}, 9), ({"zarr_format": 3, "engine": "zarr"}, 6)])
def test_opening_takes_few_requests_and_none_to_a_cog(catalog: Path, arguments: dict[str, Any], most: int) -> None:
    app, seen = create_app(catalog), []
    app.add_middleware(Counter, seen=seen)
    with serving(app) as url, trace() as asked:
        xr.open_dataset(f"{url}/datasets/scenes.zarr", **arguments)
        xr.open_dataset(f"{url}/datasets/scenes.zarr", **arguments)
    first = seen[: len(seen) // 2]
    assert sorted(first) == sorted(seen[len(seen) // 2 :])
    assert 0 < len(first) <= most, first
    assert [record.href for record in asked.records if record.href.endswith(".tif")] == []


def test_what_is_asked_by_hand(url: str, client: Any) -> None:
    path = "/datasets/scenes.zarr/red/c/1/1/1"
    whole = client(url, path)
    assert whole.status == 200
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["content-length"] == str(len(whole.body))
    assert whole.headers["cache-control"] == "public, no-cache"
    assert "content-encoding" not in client(url, path, Accept_Encoding="gzip").headers
    head = client(url, path, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {**head.headers, "date": ""} == {**whole.headers, "date": ""}
    etag = whole.headers["etag"]
    for tags in (etag, f'"other", W/{etag}', "*"):
        known = client(url, path, If_None_Match=tags)
        assert (known.status, known.body, known.headers["etag"]) == (304, b"", etag)
    assert client(url, path, If_None_Match='"other"').body == whole.body
    tags = {client(url, f"/datasets/scenes.zarr/red/c/{time}/1/1").headers["etag"] for time in (0, 1)}
    assert len(tags) == 2
    assert client(url, "/datasets/scenes.zarr/zarr.json").headers["content-type"] == "application/json"
    assert client(url, path, method="POST").status == 405
    assert client(url, path, Origin="https://map.example").headers["access-control-allow-origin"] == "*"


@given(start=st.integers(0, 400), stop=st.integers(0, 400))
def test_one_range_is_a_part(url: str, client: Any, start: int, stop: int) -> None:
    path = "/datasets/scenes.zarr/time/c/0"
    whole = client(url, path)
    size = len(whole.body)
    part = client(url, path, Range=f"bytes={start}-{stop}")
    if start > stop:
        assert (part.status, part.body) == (200, whole.body)
    elif start >= size:
        assert part.status == 416
        assert part.headers["content-range"] == f"bytes */{size}"
    else:
        assert part.status == 206
        assert part.body == whole.body[start : stop + 1]
        assert part.headers["content-range"] == f"bytes {start}-{min(stop, size - 1)}/{size}"


def test_other_forms_of_ranges(url: str, client: Any) -> None:
    path = "/datasets/scenes.zarr/time/c/0"
    whole = client(url, path)
    assert client(url, path, Range="bytes=5-").body == whole.body[5:]
    assert client(url, path, Range="bytes=-7").body == whole.body[-7:]
    assert client(url, path, Range="bytes=-70000").body == whole.body
    assert client(url, path, Range="bytes=-0").status == 416
    for several in ("bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=a-b", "bytes=٣-٤".encode().decode("latin-1")):
        assert client(url, path, Range=several).status == 200
    assert client(url, path, Range="bytes=0-1", If_Range=whole.headers["etag"]).status == 206
    assert client(url, path, Range="bytes=0-1", If_Range='"other"').status == 200


@pytest.mark.parametrize(
    "path",
    [
        "scenes.zarr/",
        "scenes.zarr/.zmetadata",
        "scenes/v2.zarr/zarr.json",
        "scenes.zarr/red/c/00/0/0",
        "scenes.zarr/red/c/+1/0/0",
        "scenes.zarr/red/c/1_0/0/0",
        "scenes.zarr/red/c/٣/0/0",
        "scenes.zarr/red/c/2/0/0",
        "scenes.zarr/red/c/0/0",
        "scenes.zarr/red/c/0/0/0/",
        "scenes.zarr/red/c/0.0.0",
        "scenes.zarr/red/0.0.0",
        "scenes/v2.zarr/red/c/0/0/0",
        "scenes.zarr/../scenes.zarr/zarr.json",
        "scenes.zarr//zarr.json",
        "scenes.zarr/%2e%2e/zarr.json",
        "other.zarr/zarr.json",
        "table.zarr/zarr.json",
        "..%2fscenes.zarr/zarr.json",
        "scenes/level/99.zarr/zarr.json",
        "scenes/level/00.zarr/zarr.json",
        "scenes/level/-1/v2.zarr/.zgroup",
    ],
)
def test_what_names_nothing_is_404(url: str, client: Any, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = client(url, f"/datasets/{path}", method=method)
        assert answer.status == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"


def test_a_chunk_of_nodata_is_served(url: str, client: Any) -> None:
    answer = client(url, "/datasets/scenes/v2.zarr/red/0.0.0")
    assert answer.status == 200
    values = np.frombuffer(numcodecs.blosc.decompress(answer.body), "<u2")
    assert values.shape == (1024 * 1024,)
    assert not values.any()


def test_a_failed_read_is_no_404(tmp_path: Path, client: Any) -> None:
    path = write_cog(tmp_path / "gone.tif", unique_values((64, 64), "uint16"), nodata=0)
    manifest = cube.build(path, to=tmp_path / "gone.cube")
    with serving(create_app({"gone": manifest_entry("gone", manifest.url)})) as url:
        path.unlink()
        for method in ("GET", "HEAD"):
            answer = client(url, "/datasets/gone.zarr/band_1/c/0/0", method=method)
            assert answer.status == 502
            assert answer.headers["content-type"] == "application/problem+json"
        told = json.loads(client(url, "/datasets/gone.zarr/band_1/c/0/0").body)
        assert told["dataset"] == "gone"
        assert "gone.tif" in told["detail"]
        assert "Traceback" not in told["detail"]
        with pytest.raises(Exception, match="502"):
            xr.open_dataset(f"{url}/datasets/gone.zarr").load()


def test_a_cube_that_cannot_be_opened_is_no_404(tmp_path: Path, client: Any) -> None:
    with serving(create_app({"away": manifest_entry("away", tmp_path / "away.cube")})) as url:
        answer = client(url, "/datasets/away.zarr/zarr.json")
        assert answer.status == 503
        assert json.loads(answer.body)["dataset"] == "away"
        assert json.loads(client(url, "/datasets").body) == ["away"]


def test_requests_at_the_same_time_are_one_read(tmp_path: Path, client: Any) -> None:
    write_cog(tmp_path / "in" / "a.tif", unique_values((256, 256), "uint16"), nodata=0, blocksize=256)
    # Slow enough for all requests to be there before the first is answered.
    with ObjectStore(tmp_path / "in", latency_s=0.5) as store:
        manifest = cube.build(f"{store.url}/a.tif", to=tmp_path / "a.cube")
        entries = {"a": manifest_entry("a", manifest.url)}
        with serving(create_app(entries)) as url, trace() as asked:
            answers: list[Any] = []
            paths = ["/datasets/a.zarr/band_1/c/0/0", "/datasets/a/v2.zarr/band_1/0.0"] * 8
            threads = [threading.Thread(target=lambda path=path: answers.append(client(url, path))) for path in paths]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [record.href for record in asked.records if record.href.endswith(".tif")] == [f"{store.url}/a.tif"]
            assert {answer.status for answer in answers} == {200}
            assert len({answer.body for answer in answers}) == 1
            client(url, paths[0])
            assert sum(record.href.endswith(".tif") for record in asked.records) == 1


def test_a_new_version_is_served_and_tagged(tmp_path: Path, client: Any) -> None:
    first, second = unique_values((64, 64), "uint16", seed=1), unique_values((64, 64), "uint16", seed=2)
    manifest = cube.build(write_cog(tmp_path / "a.tif", first, nodata=0), to=tmp_path / "a.cube")
    app = create_app({"a": manifest_entry("a", manifest.url)}, settings=ServerSettings(refresh_s=0))
    with serving(app) as url:
        before = client(url, "/datasets/a.zarr/band_1/c/0/0")
        write_cog(tmp_path / "b.tif", second, nodata=0)
        cube.build(tmp_path / "b.tif", to=tmp_path / "a.cube")
        after = client(url, "/datasets/a.zarr/band_1/c/0/0", If_None_Match=before.headers["etag"])
        assert after.status == 200
        assert after.headers["etag"] != before.headers["etag"]
        values = np.frombuffer(numcodecs.blosc.decompress(after.body), "<u2").reshape(64, 64)
        np.testing.assert_array_equal(values, second)
