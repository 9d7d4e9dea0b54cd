"""The object-store simulator against nginx: two stores with no code in common have to agree."""

from __future__ import annotations

import functools
import http.client
import itertools
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pytest

from cube import open_cube
from cube.archive.build import build
from cube.settings import get_settings
from cube.testing import ObjectStore, write_cog
from tests.contract.nginx_store import run_nginx

LATENCY_S = 0.05
BODY = bytes(range(256)) * 40
SIZE = len(BODY)
DATES, BANDS, TILE, PIXELS = ("20240101", "20240201"), ("nir", "red"), 64, 300


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An object, an empty one, one with an odd name, and an archive of COGs."""
    root = tmp_path_factory.mktemp("objects")
    (root / "a.bin").write_bytes(BODY)
    (root / "empty.bin").write_bytes(b"")
    (root / "deep").mkdir()
    (root / "deep" / "ä +.bin").write_bytes(b"named")
    rng = np.random.default_rng(0)
    for date, band in itertools.product(DATES, BANDS):
        pixels = rng.integers(1, 2**16, (PIXELS, PIXELS), "uint16")
        write_cog(root / f"{date}_{band}.tif", pixels, blocksize=TILE, OVERVIEWS="NONE", nodata=0)
    return root


@pytest.fixture(scope="module")
def simulator(root):
    with ObjectStore(root, latency_s=LATENCY_S) as store:
        yield store


@pytest.fixture(scope="module")
def nginx(require_program, root, tmp_path_factory):
    with run_nginx(require_program, root, tmp_path_factory.mktemp("nginx"), latency_s=LATENCY_S) as store:
        yield store


@dataclass(frozen=True)
class Answer:
    """What matters of an answer; its ETag and its time, which only one store knows, stay apart."""

    status: int
    body: bytes
    length: str | None
    content_range: str | None
    modified: str | None
    accepts: str | None


def ask(url, path, method="GET", **fields):
    """Return (answer, ETag, seconds)."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    began = time.monotonic()
    connection.request(method, f"/{path}", headers={name.replace("_", "-"): value for name, value in fields.items()})
    answer = connection.getresponse()
    seconds = time.monotonic() - began
    body, good = answer.read(), answer.status < 300
    connection.close()
    what = Answer(
        status=answer.status,
        body=body if good else b"",  # what an error looks like is up to a store
        length=answer.headers["Content-Length"] if good else None,
        content_range=answer.headers["Content-Range"],
        modified=answer.headers["Last-Modified"] if good else None,
        accepts=answer.headers["Accept-Ranges"] if answer.status == 200 else None,  # a 206 need not say it
    )
    return what, answer.headers["ETag"], seconds


@functools.cache
def about(url, path):
    """Return (ETag, Last-Modified) of an object."""
    answer, etag, _ = ask(url, path, "HEAD")
    return etag, answer.modified


def ask_both(simulator, nginx, path, method="GET", **fields):
    """Return what both answer; `{etag}` and `{modified}` in a field are the object's."""
    answers = []
    for url in (simulator.url, nginx.url):
        etag, modified = about(url, path)
        own = {name: value.format(etag=etag, modified=modified) for name, value in fields.items()}
        answer, answered_etag, seconds = ask(url, path, method, **own)
        assert seconds >= LATENCY_S - 0.002  # timers count milliseconds
        assert answer.status not in {200, 206, 304} or answered_etag == etag
        answers.append(answer)
    return answers


RANGES = [
    "bytes=0-0",
    "bytes=0-",
    "bytes=5-99",
    "bytes=10000-",
    f"bytes={SIZE - 1}-",
    f"bytes={SIZE - 1}-{SIZE + 5}",
    f"bytes=100-{10**17}",
    "bytes=-1",
    "bytes=-7",
    f"bytes=-{SIZE}",
    "bytes=-999999",
    f"bytes=0-{SIZE - 1}",
    f"bytes={SIZE}-",
    f"bytes={SIZE}-{SIZE + 9}",
    "bytes=99999-100000",
    "bytes=-0",
    "bytes=0-1,5-6",
    "items=0-1",
]


@pytest.mark.parametrize("field", RANGES)
def test_ranges(simulator, nginx, field):
    ours, theirs = ask_both(simulator, nginx, "a.bin", Range=field)
    assert ours == theirs
    assert ours.status in {200, 206, 416}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["a.bin", "empty.bin", "deep/%C3%A4%20+.bin", "a.bin?sig=secret", "nothing.bin"])
def test_whole_objects(simulator, nginx, method, path):
    ours, theirs = ask_both(simulator, nginx, path, method)
    assert ours == theirs
    assert ours.status == (404 if path == "nothing.bin" else 200)


CONDITIONS = [
    ({"If_Match": "{etag}"}, 206),
    ({"If_Match": "*"}, 206),
    ({"If_Match": '"other", {etag}'}, 206),
    ({"If_Match": '"other"'}, 412),
    ({"If_Match": "W/{etag}"}, 412),
    ({"If_None_Match": "{etag}"}, 304),
    ({"If_None_Match": "W/{etag}"}, 304),
    ({"If_None_Match": '"other", {etag}'}, 304),
    ({"If_None_Match": "*"}, 304),
    ({"If_None_Match": '"other"'}, 206),
    ({"If_Range": "{etag}"}, 206),
    ({"If_Range": '"other"'}, 200),
    ({"If_Range": "{modified}"}, 206),
    ({"If_Range": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200),
    ({"If_Match": "{etag}", "If_Range": '"other"'}, 200),
    ({"If_Match": '"other"', "If_None_Match": "{etag}"}, 412),
]


@pytest.mark.parametrize(("fields", "status"), CONDITIONS)
def test_conditions(simulator, nginx, fields, status):
    ours, theirs = ask_both(simulator, nginx, "a.bin", Range="bytes=10-19", **fields)
    assert ours == theirs
    assert ours.status == status


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("a.bin", "bytes=9-5"),
        ("a.bin", "bytes=-"),
        ("a.bin", "bytes=a-b"),
        ("a.bin", "bytes=0-1x"),
        ("empty.bin", "bytes=0-"),
        ("empty.bin", "bytes=-5"),
    ],
)
def test_where_http_leaves_a_choice_each_answers_soundly(simulator, nginx, path, field):
    """A server may ignore a range that makes no sense, or refuse it (RFC 9110, 14.2): but never give a part."""
    for answer in ask_both(simulator, nginx, path, Range=field):
        whole = BODY if path == "a.bin" else b""
        assert (answer.status, answer.body) in {(200, whole), (416, b"")}


@pytest.mark.parametrize("narrow", [False, True])
def test_a_cube_read_through_either_is_the_same(simulator, nginx, tmp_path, monkeypatch, narrow):
    monkeypatch.setenv("CUBE_HEDGE_SHARE", "0")  # so that counts repeat
    if narrow:
        monkeypatch.setenv("CUBE_GAP_BYTES", "64")  # many requests
    get_settings.cache_clear()
    simulator.reset()
    nginx.forget()
    cubes = []
    for store in (simulator, nginx):
        urls = [f"{store.url}/{date}_{band}.tif" for date, band in itertools.product(DATES, BANDS)]
        ds = open_cube(build(urls, to=tmp_path / f"{urlsplit(store.url).port}.cube").url)
        cubes.append(ds[list(BANDS)].isel(y=slice(70, 250), x=slice(10, 200)).compute())
    get_settings.cache_clear()
    assert simulator.counts().requests == len(nginx.asked())
    asked = [f"{each.method} /{each.path} bytes={each.start}-{each.stop - 1}" for each in simulator.records()]
    assert sorted(asked) == sorted(nginx.asked())
    assert len(asked) > len(DATES) * len(BANDS)
    for band in BANDS:
        np.testing.assert_array_equal(cubes[0][band].values, cubes[1][band].values)
        assert cubes[0][band].values.min() > 0
