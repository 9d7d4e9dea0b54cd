"""Where dask runs: threads of this process, a local cluster, a scheduler's address, a gateway, jobs of a queue."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from cube.errors import CubeError, MissingExtraError
from cube.io import loop
from cube.settings import get_settings

_IN_FLIGHT_A_THREAD = 2
"""Blocks under way a worker thread while results are fetched: enough to keep it busy, few enough to hold them."""
_GATEWAY_WORKERS = 2
"""Asked of a gateway where the text names no number."""

_SCHEDULER = {"distributed.scheduler.work-stealing": False}
"""Reads wait at the scheduler until a worker is free, so that stealing only moves blocks that were read already."""

NO_DASHBOARD: Any = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
"""Arguments of a LocalCluster: without an address it takes port 8787, and warns where another cluster has it."""

QUEUES = {
    "htcondor": "HTCondorCluster",
    "lsf": "LSFCluster",
    "moab": "MoabCluster",
    "oar": "OARCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "slurm": "SLURMCluster",
    "jobs": "local.LocalCluster",
}
"""Classes of dask-jobqueue by the name of their queue; "jobs" are processes of this machine, to try a job script."""

FORMS = (
    "local[:WORKERS], a scheduler's address such as tcp://host:8786, gateway[:URL][?workers=N&OPTION=VALUE], or "
    f"{', '.join(QUEUES)} with [:JOBS]"
)


@contextmanager
def connect(cluster: str | None) -> Iterator[Any]:
    """Yield a distributed client, or None where `cluster` is None and this process's threads do the work.

    Args:
        cluster: None; "local" (a process a core) or "local:4"; a scheduler's address such as "tcp://10.0.0.5:8786";
            "gateway" or "gateway:https://hub/services/dask-gateway?workers=8&worker_memory=4", whose further options
            are those of its server; or "slurm:10" and the like, jobs of a queue as dask-jobqueue's own configuration
            describes them. Clusters that are made here end with the `with` block.

    Raises:
        CubeError: The text is none of these, or what it names does not answer.
        MissingExtraError: The library for it is not installed.
    """
    if cluster is None:
        yield None
        return
    with ExitStack() as stack:
        yield _open(cluster, stack)


def _open(text: str, stack: ExitStack) -> Any:
    """Return a client; what has to be closed after it goes on the stack."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingExtraError("a cluster", "dask") from None
    kind, _, rest = text.partition(":")
    if kind == "local":
        workers = _count(text, rest, os.cpu_count() or 1)
        with dask.config.set(_SCHEDULER):
            local = stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, **NO_DASHBOARD))
        return stack.enter_context(Client(local))
    if kind.partition("?")[0] == "gateway":
        return _open_gateway(text, stack)
    if kind in QUEUES:
        jobs = _open_queue(kind, stack)
        jobs.scale(jobs=_count(text, rest, 1))
        return _wait_for_a_worker(stack.enter_context(Client(jobs)))
    if "://" not in text:
        raise CubeError(f"cluster {text!r} is none of: {FORMS}")
    timeout_s = get_settings().connect_timeout_s
    try:
        loop.run(_knock(text, timeout_s))
        return stack.enter_context(Client(text, timeout=timeout_s))
    except (OSError, ValueError) as error:
        why = str(error) or "timed out"
        raise CubeError(f"no dask scheduler answers at {text} ({why}); start one with `dask scheduler`") from None


def _count(text: str, written: str, default: int) -> int:
    if not written:
        return default
    if not written.isdecimal() or int(written) == 0:
        raise CubeError(f"cluster {text!r}: {written!r} is no number of workers; the forms are: {FORMS}")
    return int(written)


def _open_gateway(text: str, stack: ExitStack) -> Any:
    """Return a client of a new cluster of a dask-gateway, at an address or at that of its own configuration."""
    try:
        from dask_gateway import GatewayCluster
        from dask_gateway.client import GatewayClusterError, GatewayServerError
    except ImportError:
        raise MissingExtraError("dask-gateway", "clusters") from None
    parts = urlsplit(text.removeprefix("gateway").removeprefix(":"))
    address = parts._replace(query="").geturl() or None
    options = {name: _value(value) for name, value in parse_qsl(parts.query)}
    workers = _count(text, str(options.pop("workers", "")), _GATEWAY_WORKERS)
    try:
        cluster = GatewayCluster(address, shutdown_on_close=True, **options)
        # Closed once, it has no loop to be closed on again when it is deleted, and would print so.
        stack.callback(vars(cluster.gateway).pop, "_loop_runner", None)
        stack.enter_context(cluster)
        cluster.scale(workers)
        return _wait_for_a_worker(stack.enter_context(cluster.get_client()))
    except (OSError, ValueError, TypeError, GatewayClusterError, GatewayServerError) as error:
        where = address or "the address in its configuration (gateway.address)"
        why = str(error) or type(error).__name__
        raise CubeError(f"dask-gateway at {where} gave no cluster ({why}); write gateway:URL?OPTION=VALUE") from None


def _value(text: str) -> Any:
    """Return a number or a truth value where the text is one in JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _open_queue(kind: str, stack: ExitStack) -> Any:
    """Return a cluster of jobs of a queue, as its configuration (jobqueue.yaml) describes them."""
    try:
        import dask
        import dask_jobqueue
        import dask_jobqueue.local
    except ImportError:
        raise MissingExtraError("dask-jobqueue", "clusters") from None
    made: Any = dask_jobqueue
    for name in QUEUES[kind].split("."):
        made = getattr(made, name)
    try:
        with dask.config.set(_SCHEDULER):
            return stack.enter_context(made(scheduler_options={"dashboard_address": ":0"}))
    except (OSError, ValueError) as error:
        where = f"jobqueue.{'local' if kind == 'jobs' else kind}"
        raise CubeError(f"dask-jobqueue cannot make a job ({error}); its configuration is {where} of dask's") from None


def _wait_for_a_worker(client: Any) -> Any:
    """Return the client when there is something to compute with: a queue takes what time it takes."""
    client.wait_for_workers(1)
    return client


async def _knock(address: str, timeout_s: float) -> None:
    """Connect and part: a `Client` that never connects hangs for 20 s more, and prints why, when it is deleted."""
    from distributed.comm.core import connect as connect_comm

    async with asyncio.timeout(timeout_s):  # something that is no scheduler may take a connection and say nothing
        comm = await connect_comm(address, timeout=timeout_s)
        await comm.close()


def iterate_blocks(array: Any, client: Any) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Compute a dask array block by block and yield (slices, values) as they come, so that it never is whole.

    Args:
        array: A dask array.
        client: Of a cluster, or None for this process.
    """
    starts = [np.concatenate([[0], np.cumsum(lengths)]).tolist() for lengths in array.chunks]
    places = [
        tuple(slice(start[i], start[i + 1]) for start, i in zip(starts, index, strict=True))
        for index in itertools.product(*(range(len(lengths)) for lengths in array.chunks))
    ]
    blocks = [array.blocks[index] for index in itertools.product(*(range(len(lengths)) for lengths in array.chunks))]
    if client is None:
        yield from _iterate_here(places, blocks)
        return
    from distributed import as_completed

    waiting = iter(zip(places, blocks, strict=True))
    under_way: dict[Any, Any] = {}
    done = as_completed()

    def submit() -> None:
        # Counted each time: workers of a queue come when they come.
        room = _IN_FLIGHT_A_THREAD * max(1, sum(client.nthreads().values()))
        for place, block in itertools.islice(waiting, max(0, room - len(under_way))):
            future = client.compute(block)
            under_way[future.key] = place
            done.add(future)

    submit()
    for future in done:
        values = future.result()
        place = under_way.pop(future.key)
        submit()
        yield place, values


def _iterate_here(places: list[tuple[slice, ...]], blocks: list[Any]) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Compute blocks on as many threads as there are cores, so that some compute while others wait for their reads."""
    room = get_settings().decode_threads
    under_way: deque[tuple[tuple[slice, ...], Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(room) as pool:
        try:
            for place, block in zip(places, blocks, strict=True):
                under_way.append((place, pool.submit(block.compute, scheduler="synchronous")))
                if len(under_way) >= room:
                    first, future = under_way.popleft()
                    yield first, future.result()
            while under_way:
                first, future = under_way.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
