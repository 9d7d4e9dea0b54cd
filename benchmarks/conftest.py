"""Archives and stores for the benchmarks; small ones where benchmarks only smoke-test."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.archives import write_archive
from benchmarks.comparison import line
from cube.testing import ObjectStore, write_cog


def pytest_addoption(parser) -> None:
    """Add what `bench_peers.py` can be asked for."""
    group = parser.getgroup("peers")
    group.addoption("--everything", action="store_true", help="all peers, workloads and latencies: an hour or two")
    group.addoption("--peers", help="names of peers, separated by commas")
    group.addoption("--workloads", help="names of workloads, separated by commas")
    group.addoption("--latencies", help="milliseconds, separated by commas")


@pytest.fixture(scope="session")
def full(request) -> bool:
    """Whether times count: else every benchmark runs once, on a small archive."""
    return bool(request.config.getoption("benchmark_enable"))


@pytest.fixture(scope="session")
def archive(full) -> Path:
    """12 COGs of 4096 x 4096 uint16 (deflate, predictor 2, 512 tiles): 6 dates of 2 bands. Written once and kept."""
    return write_archive("cube", full=full).served


@pytest.fixture(scope="session")
def many(full, tmp_path_factory) -> Path:
    """10,000 names of 16 COGs whose headers are typical: 121 tiles and four overviews, each file with its own bytes."""
    folder = tmp_path_factory.mktemp("many")
    land = np.arange(1408 * 1408).reshape(1408, 1408) // 64 % 251
    for i in range(16):
        write_cog(folder / f"{i}.first", (land * (i + 1)).astype("u2"), nodata=0, blocksize=128)
    for i in range(10_000 if full else 50):
        (folder / f"band_{np.datetime64(i, 'D')}.tif").hardlink_to(folder / f"{i % 16}.first")
    return folder


@pytest.fixture(params=[0, 50], ids=["0ms", "50ms"])
def latency_ms(request) -> int:
    """Time to first byte of the object store."""
    return request.param


@pytest.fixture
def store(archive, latency_ms):
    """The archive behind an object store."""
    with ObjectStore(archive, latency_s=latency_ms / 1e3) as running:
        yield running


@pytest.fixture
def against(benchmark, full):
    """Time `ours` and `theirs` in turn, and record the ratio of their medians."""

    def run(ours, theirs, rounds: int = 9):
        seconds = []

        def before() -> None:
            import time

            began = time.perf_counter()
            theirs()
            seconds.append(time.perf_counter() - began)

        if full:
            theirs()
            ours()
        benchmark.pedantic(ours, setup=before, rounds=rounds if full else 1)
        if full and benchmark.stats is not None:
            times = list(benchmark.stats.stats.data)
            benchmark.extra_info["floor_s"] = statistics.median(seconds)
            benchmark.extra_info["ratio"] = statistics.median(
                mine / other for mine, other in zip(times, seconds, strict=True)
            )

    return run


def pytest_benchmark_update_machine_info(machine_info) -> None:
    """Say what else of the machine matters, and leave out its name."""
    machine_info.pop("node", None)
    machine_info["memory_bytes"] = psutil.virtual_memory().total
    machine_info["load_average"] = psutil.getloadavg()[0]


def pytest_terminal_summary(terminalreporter, config) -> None:
    """Print what was counted beside the times."""
    session = getattr(config, "_benchmarksession", None)
    rows = [(each.name, dict(each.extra_info)) for each in getattr(session, "benchmarks", []) if each.extra_info]
    if not rows:
        return
    terminalreporter.write_sep("-", "counts, and ratios to the floor (medians of alternating runs)")
    for name, info in rows:
        peers = info.pop("peers", {})
        values = "  ".join(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}" for key, value in info.items()
        )
        terminalreporter.write_line(f"{name:50} {values}")
        for facts in peers.values():
            terminalreporter.write_line(f"    {line(facts)}")
