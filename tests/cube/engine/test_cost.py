"""The arithmetic of predictions: what must grow with what, where each limit shows, and which advice follows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.engine.cost import (
    Conditions,
    Estimate,
    Work,
    advise,
    choose_workers,
    estimate_alone,
    estimate_cluster,
    estimate_threads,
    read_seconds,
    readable_bytes,
    readable_seconds,
)
from cube.settings import get_settings

AT = Conditions(
    latency_s=0.05,
    connection_bytes_s=50e6,
    store_bytes_s=500e6,
    requests_in_flight=256,
    bytes_in_flight=512 * 2**20,
    decode_bytes_s=400e6,
    cores=2,
    memory_bytes=8 * 10**9,
)
SMALL = Work(
    blocks=1,
    tasks=3,
    requests=12,
    bytes=3_000_000,
    tiles=12,
    decoded_bytes=6_000_000,
    array_bytes=6_000_000,
    block_bytes=6_000_000,
)


def make_work(count: int, blocks: int | None = None) -> Work:
    """So many tiles of 512 x 512 uint16, each a request."""
    blocks = blocks or -(-count // 128)
    return Work(
        blocks=blocks,
        tasks=blocks * 3,
        requests=count,
        bytes=count * 300_000,
        tiles=count,
        decoded_bytes=count * 524_288,
        array_bytes=count * 524_288,
        block_bytes=-(-count // blocks) * 524_288,
    )


def advise_on(work: Work, at: Conditions) -> str:
    ways = (estimate_alone(work, at), estimate_threads(work, at), estimate_cluster(work, at, choose_workers(work, at)))
    return advise(*ways, at)


def test_a_small_read_is_a_round_trip() -> None:
    assert 0.05 < read_seconds(SMALL, AT) < 0.075
    assert read_seconds(SMALL, replace(AT, latency_s=0.1)) == pytest.approx(read_seconds(SMALL, AT) + 0.05)


def test_nothing_takes_no_time() -> None:
    nothing = replace(SMALL, blocks=0, requests=0, bytes=0, tiles=0, decoded_bytes=0)
    assert read_seconds(nothing, AT) == 0
    assert estimate_threads(replace(nothing, tasks=0), AT).seconds == 0
    assert read_seconds(replace(SMALL, requests=0, bytes=0, tiles=0, decoded_bytes=0), AT) == 0  # sparse tiles alone


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        ({"store_bytes_s": 10e6}, 3000 * 300_000 / 10e6),  # the line
        ({"decode_bytes_s": 10e6}, 3000 * 524_288 / 10e6 / 2),  # the decoder, on two cores
        ({"requests_in_flight": 4}, 3000 * (0.05 + 0.006) / 4),  # places in flight
        # One loop that receives everything.
        (
            {"store_bytes_s": 1e12, "decode_bytes_s": 1e12, "requests_in_flight": 4096},
            3000 * (0.0002 + 300_000 * 1.8e-9),
        ),
    ],
)
def test_the_scarcest_resource_decides(change: dict, seconds: float) -> None:
    found = read_seconds(make_work(3000, blocks=1), replace(AT, **change))
    assert found == pytest.approx(seconds, rel=0.2)
    assert found > seconds


def test_blocks_that_are_read_one_after_another_pay_a_round_trip_each() -> None:
    work = make_work(100, blocks=50)
    assert read_seconds(work, AT) >= 50 * 0.05
    assert read_seconds(work, AT, readers=2) == pytest.approx(read_seconds(work, AT) / 2, rel=0.1)
    assert read_seconds(work, AT, readers=50) > read_seconds(work, AT) / 40  # the cores are the same


counts = st.builds(
    lambda tiles, share, size: replace(make_work(tiles, max(1, tiles * share // 100)), bytes=tiles * size),
    st.integers(1, 100_000),
    st.integers(0, 100),
    st.integers(100, 2_000_000),
)


@given(counts, st.integers(1, 64))
def test_more_of_anything_good_is_never_slower(work: Work, readers: int) -> None:
    seconds = read_seconds(work, AT, readers=readers)
    assert read_seconds(work, AT, readers=readers + 1) <= seconds
    for name in ("connection_bytes_s", "store_bytes_s", "decode_bytes_s", "requests_in_flight", "cores"):
        assert read_seconds(work, replace(AT, **{name: getattr(AT, name) * 2}), readers=readers) <= seconds * 1.0001
    assert read_seconds(work, replace(AT, latency_s=0.06), readers=readers) > seconds
    assert read_seconds(work, AT, readers=readers) >= max(work.bytes / AT.store_bytes_s, AT.latency_s)


def test_memory_is_that_of_what_is_held_at_a_time() -> None:
    work = make_work(1000, blocks=10)
    whole, threads = estimate_alone(work, AT), estimate_threads(work, AT)
    assert whole.peak_bytes == 1000 * 524_288 + 1000 * 300_000
    assert threads.peak_bytes == 2 * (100 * 524_288 + 100 * 300_000)
    assert estimate_alone(work, AT, blocks=10).peak_bytes == threads.peak_bytes / 2
    bounded = replace(AT, bytes_in_flight=2**20)
    assert estimate_alone(work, bounded).peak_bytes == 1000 * 524_288 + 2**20


def test_tasks_cost_what_scheduling_takes() -> None:
    work = replace(make_work(1000, blocks=1000), tasks=1_000_000)
    assert estimate_threads(work, AT).seconds == pytest.approx(200)
    assert estimate_cluster(work, AT, 100).seconds == pytest.approx(1000, rel=0.01)
    assert estimate_alone(work, AT).seconds < 10


def test_a_cluster_divides_the_work_and_has_to_start() -> None:
    work = make_work(1_000_000)
    threads, four, eighty = estimate_threads(work, AT), estimate_cluster(work, AT, 4), estimate_cluster(work, AT, 80)
    assert four.seconds == pytest.approx(threads.seconds / 4 + 5, rel=0.01)
    assert eighty.seconds == pytest.approx(work.tasks * 0.001 + 5, rel=0.01)  # the scheduler is busy by then
    assert work.tasks * 0.001 > threads.seconds / 80
    assert estimate_cluster(SMALL, AT, 4).seconds > estimate_threads(SMALL, AT).seconds


def test_workers_find_blocks_and_a_scheduler_that_keeps_up() -> None:
    assert choose_workers(SMALL, AT) == 2
    assert choose_workers(make_work(100_000, blocks=40), AT) == 2  # 40 blocks are a few for each core of ten
    hours = replace(make_work(10_000_000), tasks=1000)
    seconds = estimate_threads(hours, AT).seconds
    assert choose_workers(hours, AT) == pytest.approx(seconds / 60, abs=1)
    assert choose_workers(replace(hours, tasks=1_000_000), AT) == int(seconds / 1000)


class TestAdvice:
    def test_what_fits_needs_no_dask(self) -> None:
        assert advise_on(SMALL, AT) == (
            "no Dask (chunks=None): everything at once takes 9.0 MB of 8.0 GB memory, and one batch of requests is the "
            "shortest way"
        )

    def test_what_does_not_fit_is_read_in_blocks(self) -> None:
        assert advise_on(make_work(30_000), AT) == (
            "threads (chunks='auto'): everything at once takes 16.3 GB of 8.0 GB memory, the blocks under way at a "
            "time 210.8 MB"
        )

    def test_large_arrays_are_for_all_cores(self) -> None:
        work = make_work(1000)
        assert advise_on(work, AT) == (
            "threads (chunks='auto'): arithmetic on 2 cores gains more than blocks cost; everything at once takes "
            "824.3 MB of 8.0 GB memory, the blocks under way at a time 206.1 MB"
        )
        assert advise_on(work, replace(AT, cores=1)).startswith("no Dask (chunks=None): everything at once takes 824.3")

    def test_what_takes_long_is_for_a_cluster(self) -> None:
        work = make_work(2_000_000)
        workers = choose_workers(work, AT)
        said = advise_on(work, AT)
        assert said.startswith(f"a cluster of {workers} workers like this machine (2 cores): ")
        minutes = estimate_threads(work, AT).seconds / 60
        assert said.endswith(f" where this one takes {minutes:.0f} min")

    def test_blocks_that_do_not_fit_are_said(self) -> None:
        assert advise_on(make_work(30_000, blocks=2), AT) == (
            "threads, in smaller blocks (chunks='auto'): those under way at a time take 16.3 GB of 8.0 GB memory"
        )


def test_conditions_are_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LATENCY_MS": 20, "CONNECTION_MB_S": 10, "STORE_MB_S": 80, "DECODE_MB_S": 300}.items():
        monkeypatch.setenv(f"CUBE_{name}", str(value))
    monkeypatch.setenv("CUBE_MEMORY_BYTES", "2000000000")
    monkeypatch.setenv("CUBE_DECODE_THREADS", "3")
    get_settings.cache_clear()
    found, farther = Conditions.from_settings(), Conditions.from_settings(latency_ms=90)
    monkeypatch.undo()
    get_settings.cache_clear()
    assert (found.latency_s, found.connection_bytes_s, found.store_bytes_s) == (0.02, 10e6, 80e6)
    assert (found.decode_bytes_s, found.memory_bytes, found.cores) == (300e6, 2 * 10**9, 3)
    assert farther == replace(found, latency_s=0.09)


def test_the_memory_of_this_machine_is_known() -> None:
    assert 100e6 < Conditions.from_settings().memory_bytes < 1e14


def test_an_estimate_says_who_does_it() -> None:
    assert estimate_alone(SMALL, AT) == Estimate(
        how="no Dask", workers=1, seconds=read_seconds(SMALL, AT), peak_bytes=9_000_000
    )
    assert (estimate_cluster(SMALL, AT, 3).how, estimate_cluster(SMALL, AT, 3).workers) == ("cluster", 3)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.051, "0.05 s"), (9.99, "9.99 s"), (12.3, "12 s"), (240, "4 min"), (10_800, "3 h")]
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text


def test_bytes_are_readable() -> None:
    assert [readable_bytes(count) for count in (999, 1000, 2.5e9)] == ["999 B", "1.0 kB", "2.5 GB"]
