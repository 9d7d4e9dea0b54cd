"""Every system of the benchmark gives the right answers on small archives, and reads the store anew for each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from benchmarks import processes
from benchmarks.comparison import open_stage
from benchmarks.workloads import answer, difference, workloads
from tests.absent import absent

PEERS = [name for name in processes.names() if processes.requirements(name) is not None]
WORKLOADS = workloads(full=False)
ARCHIVES = dict.fromkeys(workload.archive for workload in WORKLOADS.values())

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Iterator[dict]:
    """All small archives, each behind an object store."""
    with contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("peers")
        yield {
            name: stack.enter_context(open_stage(name, latency_ms=0, folder=folder / name, full=False))
            for name in ARCHIVES
        }


def reason_to_skip(name) -> str | None:
    try:
        processes.python(name)
    except processes.PeerError as error:
        return f"{name}: {error}"
    return None


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_the_right_answer_of_every_workload_that_it_offers(name, stages, tmp_path):
    if reason := reason_to_skip(name):
        absent(reason, is_required=False)
    offered, refused, wrong = set(), {}, {}
    with processes.PeerProcess(name, tmp_path / "log.txt") as peer:
        for workload in WORKLOADS.values():
            if (why := peer.supports(workload)) is not None:
                refused[workload.kind] = why
                continue
            offered.add(workload.kind)
            stage = stages[workload.archive]
            peer.open(stage.prepare(peer))
            peer.run(workload)
            if (words := difference(peer.answer(), answer(workload, stage.local), workload)) is not None:
                wrong[workload.name] = words
    if not offered:
        absent(f"{name}: {refused['stack']}", is_required=False)
    assert not wrong
    assert {kind for kind, why in refused.items() if not why.startswith("the same as ")} <= {"scan"}


@pytest.mark.parametrize("workload", ["whole", "ndvi_mean_whole", "ndvi_median_whole"])
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_reads_every_pixel_again_in_every_run(name, workload, stages, tmp_path):
    if reason := reason_to_skip(name):
        absent(reason, is_required=False)
    workload = WORKLOADS[workload]
    stage = stages[workload.archive]
    pixels = sum(path.stat().st_size for path in stage.local.served.glob("*.tif"))
    with processes.PeerProcess(name, tmp_path / "log.txt") as peer:
        if (why := peer.supports(workload)) is not None:
            absent(f"{name}: {why}", is_required=False)
        peer.open(stage.prepare(peer))
        for _ in range(3):
            stage.store.reset()
            peer.run(workload)
            assert stage.store.counts().bytes > 0.95 * pixels
