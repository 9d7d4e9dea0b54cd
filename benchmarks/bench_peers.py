"""Every workload at every latency by every peer, in turn; what `docs/performance.md` is made of."""

from __future__ import annotations

import contextlib

import pytest

from benchmarks import processes
from benchmarks.comparison import Contest, open_stage, summarise
from benchmarks.workloads import IMPORTANT, WORKLOADS, workloads

OURS = "cogcube"
ROUNDS = 7
LATENCIES = (0, 10, 50, 100)
_FEW_PEERS = (*processes.OURS, "floor", "zarr_copy", "odc_stac")


def pytest_generate_tests(metafunc) -> None:
    """Run all workloads once where benchmarks are only tried; the important ones at 50 ms, or what is asked for."""
    asked, full = metafunc.config.getoption, metafunc.config.getoption("benchmark_enable")
    everything = asked("everything")
    names = asked("workloads").split(",") if asked("workloads") else IMPORTANT if full and not everything else WORKLOADS
    if asked("latencies"):
        latencies = [float(each) for each in asked("latencies").split(",")]
    else:
        latencies = LATENCIES if everything else [50 if full else 5]
    metafunc.parametrize("latency_ms", latencies, ids=lambda each: f"{each:g}ms", scope="session")
    metafunc.parametrize("name", list(names))


@pytest.fixture(scope="session")
def peers(request, full) -> list[str]:
    """Names of the peers that run."""
    asked = request.config.getoption("peers")
    if asked:
        return asked.split(",")
    if request.config.getoption("everything"):
        return processes.names()
    return [name for name in processes.names() if name in (_FEW_PEERS if full else ("cogcube", "floor", "zarr_copy"))]


@pytest.fixture(scope="session")
def stage(full, tmp_path_factory):
    """Return an archive behind an object store, opened once for all workloads on it."""
    opened = {}
    with contextlib.ExitStack() as stack:

        def get(name: str, latency_ms: float):
            if (name, latency_ms) not in opened:
                folder = tmp_path_factory.mktemp(name)
                opened[name, latency_ms] = stack.enter_context(open_stage(name, latency_ms, folder, full=full))
            return opened[name, latency_ms]

        yield get


@pytest.mark.timeout(3600)
def test_workload(name, latency_ms, stage, peers, full, benchmark):
    """Seconds, requests, bytes and memory of each peer; a peer that fails or errs is told, ours may not."""
    workload = workloads(full=full)[name]
    pending = []

    with Contest(stage(workload.archive, latency_ms), workload, peers) as contest:
        benchmark.group = f"{name} at {latency_ms:g} ms"
        started = contest.results[OURS].reason is None
        if started:
            benchmark.pedantic(
                lambda: pending.append(contest.run(OURS)),
                setup=lambda: contest.round(OURS),
                teardown=lambda: contest.finish(OURS, pending.pop()),
                rounds=ROUNDS if full else 1,
            )
        benchmark.extra_info |= {
            "workload": name,
            "latency_ms": latency_ms,
            "peers": {peer: summarise(result) for peer, result in contest.results.items()},
        }
    failed = {peer: contest.results[peer].reason for peer in peers if peer in (*processes.OURS, *processes.REFERENCES)}
    assert not {peer: why for peer, why in failed.items() if why and not why.startswith("not offered")}
    assert started
