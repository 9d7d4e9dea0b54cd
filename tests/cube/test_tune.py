"""What `tune` measures of a store over real sockets, and which settings follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cube
from cube.errors import ReadError, SelectionError
from cube.settings import Settings, get_settings
from cube.testing import Faults, ObjectStore, write_cog
from cube.tune import Round, Tuning, measure_first_byte, tune

LATENCY_MS = 20
MAX_BYTES = 4_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(1)
    for i in range(2):
        values = rng.integers(1, 2000, (1024, 1024), "uint16")
        write_cog(folder / f"red_2024010{i + 1}.tif", values, blocksize=256, nodata=0, overviews="NONE")
    (folder / "noise.bin").write_bytes(rng.bytes(1_500_000))
    (folder / "small.bin").write_bytes(b"12345678")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[ObjectStore]:
    with ObjectStore(folder, latency_s=LATENCY_MS / 1e3) as store:
        yield store


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Numbers in flight rise to 12 only, and no request is sent twice."""
    monkeypatch.setenv("CUBE_REQUESTS_IN_FLIGHT", "12")
    monkeypatch.setenv("CUBE_HEDGE_SHARE", "0")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture
def found(store: ObjectStore, few: None) -> Tuning:
    store.reset()
    return tune(f"{store.url}/red_20240101.tif", max_bytes=MAX_BYTES)


def test_a_store_is_measured_within_what_was_allowed(store: ObjectStore, found: Tuning) -> None:
    counts = store.counts()
    assert (found.requests, found.bytes) == (counts.requests, counts.bytes)
    assert found.bytes <= MAX_BYTES
    assert counts.max_in_flight <= 16  # tiles for the decoder come together
    assert found.latency_ms >= LATENCY_MS
    assert found.latency_p95_ms >= found.latency_ms
    assert found.store_mb_s >= found.connection_mb_s > 0
    assert found.decode_mb_s is not None
    assert found.decode_mb_s > 0
    rounds = [(each.in_flight, each.requests, each.refused) for each in found.rounds]
    assert rounds == [(4, 8, 0), (8, 16, 0), (12, 24, 0)][: len(rounds)]
    # No store answers faster than its latency allows.
    assert all(each.requests_s <= each.in_flight * 1000 / LATENCY_MS for each in found.rounds)


def test_what_is_proposed_are_settings(found: Tuning, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(found)
    exports = [line.removeprefix("export ") for line in text.splitlines() if line.startswith("export ")]
    for line in exports:
        monkeypatch.setenv(*line.split("=", 1))
    taken = Settings()
    for name, value in found.settings.items():
        assert getattr(taken, name.removeprefix("CUBE_").lower()) == value
    assert len(exports) == len(found.settings) == 6
    facts = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert facts["settings"] == found.settings
    assert facts["rounds"][0]["in_flight"] == 4


def test_a_cube_is_measured_by_its_first_sources(store: ObjectStore, tmp_path: Path, few: None) -> None:
    hrefs = [f"{store.url}/red_2024010{i}.tif" for i in (1, 2)]
    manifest = cube.build(hrefs, to=tmp_path / "reds.cube")
    store.reset()
    found = tune(manifest, max_bytes=MAX_BYTES)
    assert (found.target, found.objects) == ("reds", 2)
    assert set(store.counts().paths) == {"red_20240101.tif", "red_20240102.tif"}
    assert found.bytes == store.counts().bytes <= MAX_BYTES
    assert found.decode_mb_s is not None


def test_an_object_of_any_kind_will_do(store: ObjectStore, few: None) -> None:
    found = tune(f"{store.url}/noise.bin", max_bytes=MAX_BYTES)
    assert found.decode_mb_s is None
    assert "not measured: no COG that is decoded here" in str(found)
    assert "CUBE_DECODE_MB_S" not in found.settings


def test_a_store_that_refuses_ends_the_rise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBE_REQUESTS_IN_FLIGHT", "64")
    get_settings.cache_clear()
    with ObjectStore(folder, faults=Faults(throttle_share=0.2), seed=3) as store:
        found = tune(f"{store.url}/noise.bin", max_bytes=MAX_BYTES)
    monkeypatch.undo()
    get_settings.cache_clear()
    assert found.rounds[-1].refused > 0
    assert found.requests_in_flight < found.rounds[-1].in_flight
    assert f", {found.rounds[-1].refused} refused" in str(found)


@pytest.mark.parametrize(
    ("name", "message"),
    [("small.bin", "too small to measure; give an object of 1,000,000 bytes"), ("gone.tif", "there is no such object")],
)
def test_what_cannot_be_measured_is_said(store: ObjectStore, name: str, message: str) -> None:
    with pytest.raises((SelectionError, ReadError), match=message):
        tune(f"{store.url}/{name}")


def test_local_files_need_no_tuning(folder: Path, tmp_path: Path) -> None:
    manifest = cube.build(folder / "red_20240101.tif", to=tmp_path / "local.cube")
    with pytest.raises(SelectionError, match="the sources of 'local': a local disk needs no tuning"):
        tune(manifest)
    with pytest.raises(SelectionError, match="a local disk needs no tuning"):
        tune(str(folder / "red_20240101.tif"))


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(SelectionError, match="max_bytes=1,000: measuring takes at least 1,000,000 bytes"):
        tune("http://127.0.0.1:1/a.tif", max_bytes=1000)


def make_round(in_flight: int, requests_s: float, refused: int = 0) -> Round:
    return Round(in_flight=in_flight, requests=100, bytes=10**7, seconds=100 / requests_s, refused=refused)


def make_tuning(*rounds: Round, store_mb_s: float = 200, latency_ms: float = 50) -> Tuning:
    return Tuning(
        target="t",
        objects=1,
        latency_ms=latency_ms,
        latency_p95_ms=2 * latency_ms,
        connection_mb_s=40,
        store_mb_s=store_mb_s,
        rounds=rounds,
        decode_mb_s=None,
        requests=1,
        bytes=1,
        seconds=1,
    )


@pytest.mark.parametrize(
    ("rounds", "chosen"),
    [
        ([(4, 80), (8, 160), (16, 320)], 16),
        ([(4, 80), (8, 160), (16, 165), (32, 170)], 8),
        ([(4, 80), (8, 160), (16, 120)], 8),
        ([(4, 80), (8, 160), (16, 300, 5)], 8),
        ([(4, 80, 7)], 2),
    ],
)
def test_the_fewest_requests_that_reach_the_best_pace(rounds: list[tuple], chosen: int) -> None:
    assert make_tuning(*(make_round(*each) for each in rounds)).requests_in_flight == chosen


def test_a_gap_costs_as_much_as_a_round_trip() -> None:
    four = make_round(4, 80)
    assert make_tuning(four).gap_bytes == round(0.05 * 40e6 / 1024) * 1024  # a connection's own pace
    assert make_tuning(four, store_mb_s=20).gap_bytes == round(0.05 * 5e6 / 1024) * 1024  # a fourth of the line
    assert make_tuning(four, latency_ms=5000).gap_bytes == get_settings().request_bytes / 2
    assert make_tuning(four, latency_ms=0).gap_bytes == 1024


def test_the_first_byte_alone(store: ObjectStore) -> None:
    store.reset()
    assert measure_first_byte(f"{store.url}/small.bin", reads=3, timeout_s=10) >= LATENCY_MS / 1e3
    assert (store.counts().requests, store.counts().bytes) == (4, 4)
    with pytest.raises(TimeoutError):
        measure_first_byte(f"{store.url}/small.bin", reads=1000, timeout_s=0.1)
