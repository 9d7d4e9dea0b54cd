"""Where dask runs: threads of this process, a local cluster, or a scheduler's address."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cube.errors import CubeError, MissingExtraError
from cube.io import loop
from cube.settings import get_settings

_IN_FLIGHT_A_THREAD = 2
"""Blocks under way a worker thread while results are fetched: enough to keep it busy, few enough to hold them."""

NO_DASHBOARD: Any = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
"""Arguments of a LocalCluster: without an address it takes port 8787, and warns where another cluster has it."""


@contextmanager
def connect(cluster: str | None) -> Iterator[Any]:
    """Yield a distributed client, or None where `cluster` is None and this process's threads do the work.

    Args:
        cluster: None, "local" (a process a core), or a scheduler's address such as "tcp://10.0.0.5:8786".

    Raises:
        CubeError: There is no scheduler at the address, or the text is neither.
    """
    if cluster is None:
        yield None
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingExtraError("a cluster", "dask") from None
    if cluster == "local":
        workers = os.cpu_count() or 1
        with (
            LocalCluster(n_workers=workers, threads_per_worker=1, **NO_DASHBOARD) as local,
            Client(local) as client,
        ):
            yield client
        return
    if "://" not in cluster:
        raise CubeError(f"cluster {cluster!r} is neither 'local' nor an address such as tcp://host:8786")
    timeout_s = get_settings().connect_timeout_s
    try:
        loop.run(_knock(cluster, timeout_s))
        client = Client(cluster, timeout=timeout_s)
    except (OSError, ValueError) as error:
        why = str(error) or "timed out"
        raise CubeError(f"no dask scheduler answers at {cluster} ({why}); start one with `dask scheduler`") from None
    with client:
        yield client


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
        for place, block in zip(places, blocks, strict=True):
            # The reader fetches and decodes on its own threads: one block at a time already uses them all.
            yield place, block.compute(scheduler="synchronous")
        return
    from distributed import as_completed

    waiting = iter(zip(places, blocks, strict=True))
    room = _IN_FLIGHT_A_THREAD * max(1, sum(client.nthreads().values()))
    under_way = {}
    done = as_completed()
    for place, block in itertools.islice(waiting, room):
        future = client.compute(block)
        under_way[future.key] = place
        done.add(future)
    for future in done:
        values = future.result()
        place = under_way.pop(future.key)
        for next_place, block in itertools.islice(waiting, 1):
            following = client.compute(block)
            under_way[following.key] = next_place
            done.add(following)
        yield place, values
