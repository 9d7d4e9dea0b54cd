"""A store in trouble: the same pixels, hardly more requests, and never a retry sooner than the store allows."""

from __future__ import annotations

import time

import numpy as np
import pytest

import cube
from cube.errors import ReadError
from cube.grid import Window
from cube.io.trace import trace
from cube.reader import read_block
from cube.settings import get_settings
from cube.testing import ObjectStore, write_cog
from cube.testing.objectstore import Faults, Latency

FILES = 2000
WINDOW = Window(top=10, bottom=120, left=100, right=128)  # one tile of each file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(0)
    for i in range(16):
        write_cog(folder / f"{i}.first", rng.integers(1, 3000, (128, 128)).astype("u2"), nodata=0, overviews="NONE")
    for i in range(FILES):
        (folder / f"nir_{np.datetime64(i, 'D')}.tif").hardlink_to(folder / f"{i % 16}.first")
    return folder


@pytest.fixture(scope="module")
def store(folder):
    with ObjectStore(folder, latency_s=0.02) as running:
        yield running


@pytest.fixture(scope="module")
def read(store, folder, tmp_path_factory):
    """Return a function that reads a window of all files, one request each."""
    urls = [f"{store.url}/{path.name}" for path in folder.glob("*.tif")]
    manifest = cube.build(urls, to=tmp_path_factory.mktemp("built") / "a.cube", pattern="{band}_{time:%Y-%m-%d}.tif")
    spec = cube.CubeSpec(manifest=manifest.url, version=manifest.version)
    return lambda dates=FILES: read_block(spec, ["nir"], range(dates), WINDOW)["nir"]


@pytest.fixture
def hedging(monkeypatch):
    """Let late requests be sent twice, as they are outside of the tests."""
    monkeypatch.setenv("CUBE_HEDGE_SHARE", "0.03")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


def test_no_retry_comes_sooner_than_the_store_says(store, read):
    store.behave(latency=Latency(0.02), faults=Faults(throttle_share=0.05, throttle_status=429, retry_after_s=1))
    store.reset()
    read(400)
    while sum(each.outcome == "answered" for each in store.records()) < 400:
        time.sleep(0.01)  # the store notes a request when its last byte is gone
    told: dict[tuple[str, int], float] = {}
    retries = 0
    for each in store.records():
        key = each.path, each.start
        if key in told:
            retries += 1
            assert each.arrived_s >= told.pop(key)
        if each.outcome == "throttled":
            told[key] = each.answered_s + each.retry_after_s
    assert retries > 5
    assert not told


def test_a_store_that_wants_too_long_a_rest_is_an_error(store, read):
    store.behave(latency=Latency(), faults=Faults(throttle_share=1, retry_after_s=3600))
    with pytest.raises(ReadError, match=r"answered 503, and wants to be left alone for 3600 s"):
        read(1)


@pytest.mark.slow
def test_a_store_that_throttles_all_is_asked_less_and_less(store, read, monkeypatch):
    monkeypatch.setattr("cube.io.attempts._FIRST_PAUSE_S", 0.001)
    store.behave(latency=Latency(0.02), faults=Faults(throttle_share=1))
    store.reset()
    with pytest.raises(ReadError, match="after 5 attempts: the store answered 503"):
        read()
    store.behave(latency=Latency(0.02), faults=Faults())
    store.reset()
    read(300)
    slow = store.counts().max_in_flight
    for _ in range(4):
        read()
    store.reset()
    read()
    assert slow <= 128 < store.counts().max_in_flight  # and comes back when the store does


@pytest.mark.usefixtures("hedging")
def test_a_store_in_trouble_gives_the_same_for_hardly_more_requests(store, read):
    store.behave(latency=Latency(0.02), faults=Faults())
    clean = read()
    faults = Faults(throttle_share=0.05, reset_share=0.01, truncate_share=0.01)
    store.behave(latency=Latency(0.02, tail_share=0.01, tail_s=2), faults=faults, seed=1)
    store.reset()
    with trace() as asked:
        found = read()
    np.testing.assert_array_equal(found, clean)
    counts = store.counts()
    assert min(counts.faults[what] for what in ("throttled", "reset", "truncated")) > 5
    assert FILES * 1.05 < counts.requests <= FILES * 1.15
    assert 0 < sum(each.hedge for each in asked.records) <= 0.03 * counts.requests
    assert asked.requests == counts.requests
