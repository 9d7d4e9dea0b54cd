"""One and two worker processes, and what a task costs the scheduler: the measured half of docs/scaling.md."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster

import cube
from benchmarks.archives import to_json, write_archive
from benchmarks.workloads import answer, difference, workloads
from cube.testing import ObjectStore

LATENCY_S = 0.05


@pytest.fixture(scope="module")
def prepared(full, tmp_path_factory):
    """The cube behind a store, and the manifest's URL."""
    local = write_archive("cube", full=full)
    folder = tmp_path_factory.mktemp("scaling")
    with ObjectStore(local.served, latency_s=LATENCY_S) as store:
        manifest = cube.build(to_json(local.items(store.url), folder / "items.json"), to=folder / "cube.cube")
        yield local, manifest.url


@contextlib.contextmanager
def cluster(workers: int):
    """Worker processes of one thread, and one thread for decoding."""
    settings = {"CUBE_DECODE_THREADS": "1"}
    with (
        LocalCluster(workers, threads_per_worker=1, dashboard_address=None, env=settings) as made,
        Client(made) as client,
    ):
        yield client


@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")
def test_workers(prepared, full, benchmark):
    """Mean NDVI of the whole cube by two worker processes, in turn with one."""
    local, url = prepared
    workload = workloads(full=full)["ndvi_mean_whole"]
    dataset = cube.open_cube(url, chunks={"y": local.size // 4, "x": local.size // 2}, mask_and_scale=False)
    nir, red = (dataset[band].where(dataset[band] != 0).astype("f4") for band in ("nir", "red"))
    mean = ((nir - red) / (nir + red)).mean("time")
    one_s = []
    with cluster(1) as one, cluster(2) as two:

        def compute(client: Client):
            return client.compute(mean).result().values

        def by_one() -> None:
            began = time.perf_counter()
            compute(one)
            one_s.append(time.perf_counter() - began)

        for client in (one, two):
            assert difference(compute(client), answer(workload, local), workload) is None
        benchmark.pedantic(lambda: compute(two), setup=by_one, rounds=7 if full else 1)
    if full:
        mine = benchmark.stats.stats.data
        speedup = float(np.median([a / b for a, b in zip(one_s, mine, strict=True)]))
        benchmark.extra_info |= {"one_worker_s": float(np.median(one_s)), "times_one_worker": speedup}


@pytest.mark.timeout(600)
def test_scheduler(full, benchmark, tmp_path):
    """Processor seconds that a scheduler of its own process spends on a task."""
    blocks = 10_000 if full else 100
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    work = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with contextlib.ExitStack() as stack:
        scheduler = subprocess.Popen([*command, "--scheduler-file", str(file)], **quiet)
        stack.callback(_end, scheduler)
        while not file.exists() or not file.read_text():
            time.sleep(0.1)
        for _ in range(2):
            stack.callback(_end, subprocess.Popen([*work, "--nthreads", "1", "--no-nanny"], **quiet))
        client = stack.enter_context(Client(json.loads(file.read_text())["address"]))
        client.wait_for_workers(2)
        spent = psutil.Process(scheduler.pid).cpu_times
        client.submit(sum, (1, 2)).result()

        # Two tasks a block that cannot be fused, as each result is used twice: what they do takes no time.
        array = da.zeros(blocks, chunks=1).map_blocks(np.negative)
        (graph,) = dask.optimize((array + da.roll(array, 1)).sum(split_every=blocks))
        tasks = len(graph.__dask_graph__())

        def compute() -> float:
            before = sum(spent()[:2])
            graph.compute(scheduler=client, optimize_graph=False)
            return sum(spent()[:2]) - before

        seconds = benchmark.pedantic(compute, rounds=1)
    assert tasks >= 2 * blocks
    benchmark.extra_info |= {"tasks": tasks, "scheduler_ms_a_task": 1000 * seconds / tasks}
    assert seconds > 0


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait(timeout=30)
