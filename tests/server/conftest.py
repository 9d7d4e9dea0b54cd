"""What the server's tests share: a catalogue of three cubes, and an HTTP client that adds nothing of its own."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from affine import Affine

import cube
from cube.catalog import Entry, add_entry, manifest_entry
from cube.testing import unique_values, write_cog
from server.app import create_app
from server.run import serving

SHAPE = (1300, 1100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back over the wire."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


def ask(url: str, path: str, *, method: str = "GET", **headers: str) -> Answer:
    """Send one request, as it stands, and return the answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, quote(path, safe="/%?=+"), headers=fields)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(status=response.status, headers=found, body=response.read())
    finally:
        connection.close()


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue: scenes with two dates, a geographic layer with overviews, and a table that is no cube."""
    root = tmp_path_factory.mktemp("served")
    for number, date in enumerate(("20240105", "20240301")):
        options: dict[str, Any] = {"driver": "GTiff", "blockxsize": 256, "blockysize": 256}
        red = unique_values(SHAPE, "uint16", seed=number)
        red[:1024, :1024] = 0
        write_cog(root / "in" / f"T33UVP_{date}_red.tif", red, nodata=0, scale=0.0001, offset=-0.1, **options)
        flags = unique_values(SHAPE, "uint8", seed=number) % 4
        write_cog(root / "in" / f"T33UVP_{date}_flags.tif", flags, **options)
    heights = unique_values((700, 900), "float32")
    transform = Affine(0.01, 0, 5, 0, -0.01, 50)
    write_cog(root / "heights.tif", heights, crs="EPSG:4326", transform=transform, nodata=np.nan, blocksize=128)
    file = root / "catalog.yaml"
    for name, what, said in (("scenes", root / "in", "Two dates"), ("heights", root / "heights.tif", "A layer")):
        cube.build(what, name=name, to=root / f"{name}.cube", attributes={"title": said})
        entry = manifest_entry(name, root / f"{name}.cube", catalog=file, description=said, license="CC-BY-4.0")
        add_entry(file, entry)
    add_entry(file, Entry(name="table", driver="intake.source.csv.CSVSource", args={"urlpath": "table.csv"}))
    return file


@pytest.fixture(scope="session")
def url(catalog: Path) -> Iterator[str]:
    """The URL of a server of the catalogue, on a real socket."""
    with serving(create_app(catalog)) as url:
        yield url


@pytest.fixture(scope="session")
def client() -> Callable[..., Answer]:
    return ask
