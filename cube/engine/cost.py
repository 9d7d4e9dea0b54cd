"""How long a read takes and how much memory it holds, by arithmetic: alone, on threads, on a cluster.

The model, for blocks that are read `readers` at a time, each of r requests, b bytes and d decoded bytes on average:

    transfer  b / min(store's bandwidth, connections in use x bandwidth of one)
    slots     r x (latency + b / r / bandwidth of one) / requests in flight: what places in flight allow
    receiving r x 0.2 ms + b x 1.8 ns: processor time of the one loop that sends every request and takes every answer
    cpu       the larger of receiving and (d / decode speed + receiving) / cores
    busy      the largest of transfer, slots and cpu: what a block keeps the scarcest resource busy for
    alone     planning + latency + the first request's body + busy: what one block takes when nothing else is read
    seconds   the larger of blocks x busy + latency, and (blocks / readers) x alone; and of scheduling

The store's numbers and the decode speed are settings, which `cube tune` measures and proposes: the same settings give
the same plan. The rest are the constants below. Arithmetic of the user's own comes on top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cube.settings import get_settings

_REQUEST_S = 0.0002
"""Processor time of one request on the I/O loop, its bytes apart."""
_BYTE_S = 1.8e-9
"""Processor time of one byte that comes: copied from the kernel, and memory touched for the first time."""
_TILE_S = 0.00002
"""Planning and placing a tile, which no other thread does meanwhile."""
_TASK_S: Mapping[str, float] = {"no Dask": 0.0, "threads": 0.0002, "cluster": 0.001}
"""Scheduling one task: dask's own documents say 1 ms for a distributed scheduler, which does one after another."""
_CLUSTER_START_S = 5.0
"""Until the first task runs on workers that have to be started; those of a cloud take longer."""
_ONE_CORE_BYTES = 500e6
"""Of arrays: above, arithmetic on several cores gains more than blocks cost (docs/explanation/when_dask.md)."""
_LONG_S = 120.0
"""Above, more machines are worth their start."""
_CLUSTER_S = 60.0
"""What a cluster is made large enough for."""
_SHARE = 0.6
"""Of the memory: what arrays may take, as dask's workers begin to spill at 0.6 of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The store and the machine that a prediction is for; each is a setting of that name."""

    latency_s: float
    connection_bytes_s: float
    """Of one connection alone."""
    store_bytes_s: float
    """Of all connections of one machine together."""
    requests_in_flight: int
    bytes_in_flight: int
    decode_bytes_s: float
    """Decoded bytes, of one core."""
    cores: int
    memory_bytes: int

    @classmethod
    def from_settings(cls, latency_ms: float | None = None) -> Conditions:
        """Return what the settings say, at another latency where one is given."""
        settings = get_settings()
        return cls(
            latency_s=(settings.latency_ms if latency_ms is None else latency_ms) / 1e3,
            connection_bytes_s=settings.connection_mb_s * 1e6,
            store_bytes_s=settings.store_mb_s * 1e6,
            requests_in_flight=settings.requests_in_flight,
            bytes_in_flight=settings.bytes_in_flight,
            decode_bytes_s=settings.decode_mb_s * 1e6,
            cores=settings.decode_threads,
            memory_bytes=settings.memory_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be read, in so many blocks."""

    blocks: int
    tasks: int
    """Of Dask; 0 without it."""
    requests: int
    bytes: int
    tiles: int
    decoded_bytes: int
    """Of the tiles: more than what is wanted of them."""
    array_bytes: int
    """Of the arrays of all blocks."""
    block_bytes: int
    """Of the arrays of the largest block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One way to read, and what it takes."""

    how: str
    """"no Dask", "threads" or "cluster"."""
    workers: int
    """Of a cluster: machines like this one; else 1."""
    seconds: float
    peak_bytes: int
    """Memory of one process for arrays and encoded bytes, on top of what Python and its libraries take."""


def read_seconds(work: Work, at: Conditions, *, readers: int = 1) -> float:
    """Return how long the reads take, `readers` blocks at a time on one machine."""
    if not work.blocks or not work.tiles:
        return 0.0
    requests, nbytes = work.requests / work.blocks, work.bytes / work.blocks
    connections = min(at.requests_in_flight, max(1.0, requests * readers))
    body_s = nbytes / max(1.0, requests) / at.connection_bytes_s
    transfer_s = nbytes / min(at.store_bytes_s, connections * at.connection_bytes_s)
    slots_s = requests * (at.latency_s + body_s) / at.requests_in_flight
    receiving_s = requests * _REQUEST_S + nbytes * _BYTE_S
    cpu_s = max(receiving_s, (work.decoded_bytes / work.blocks / at.decode_bytes_s + receiving_s) / at.cores)
    busy_s = max(transfer_s, slots_s, cpu_s)
    alone_s = work.tiles / work.blocks * _TILE_S + at.latency_s + min(body_s, transfer_s) + busy_s
    return max(work.blocks * busy_s + at.latency_s, math.ceil(work.blocks / readers) * alone_s)


def estimate_alone(work: Work, at: Conditions, *, blocks: int = 1) -> Estimate:
    """Return what reading without Dask takes: everything in one read, or block after block where there are several."""
    whole = replace(work, blocks=blocks)
    arrays = work.array_bytes if blocks == 1 else work.block_bytes
    return Estimate(
        how="no Dask", workers=1, seconds=read_seconds(whole, at), peak_bytes=_peak(arrays, work.bytes / blocks, at)
    )


def estimate_threads(work: Work, at: Conditions) -> Estimate:
    """Return what reading on the threads of this process takes: a block a core at a time."""
    readers = min(at.cores, max(1, work.blocks))
    seconds = max(read_seconds(work, at, readers=readers), work.tasks * _TASK_S["threads"])
    flying = readers * work.bytes / max(1, work.blocks)
    return Estimate(how="threads", workers=1, seconds=seconds, peak_bytes=_peak(readers * work.block_bytes, flying, at))


def estimate_cluster(work: Work, at: Conditions, workers: int) -> Estimate:
    """Return what a cluster takes: workers like this machine, each with a connection of its own to the store."""
    share = math.ceil(work.blocks / workers) / max(1, work.blocks)
    one = replace(
        work,
        blocks=math.ceil(work.blocks * share),
        tasks=math.ceil(work.tasks * share),
        requests=math.ceil(work.requests * share),
        bytes=math.ceil(work.bytes * share),
        tiles=math.ceil(work.tiles * share),
        decoded_bytes=math.ceil(work.decoded_bytes * share),
    )
    threads = estimate_threads(one, at)
    seconds = _CLUSTER_START_S + max(threads.seconds, work.tasks * _TASK_S["cluster"])
    return Estimate(how="cluster", workers=workers, seconds=seconds, peak_bytes=threads.peak_bytes)


def _peak(arrays: float, encoded: float, at: Conditions) -> int:
    return math.ceil(arrays + min(encoded, at.bytes_in_flight))


def choose_workers(work: Work, at: Conditions) -> int:
    """Return how many workers a cluster should have: enough for a minute, no more than find blocks or a scheduler.

    At least 2: one machine needs no cluster.
    """
    seconds = estimate_threads(work, at).seconds
    wanted = math.ceil(seconds / _CLUSTER_S)
    filled = work.blocks // (2 * at.cores)  # so that each has a next block to read while it decodes one
    scheduled = int(seconds / max(work.tasks * _TASK_S["cluster"], 1e-9))
    return max(2, min(wanted, filled, scheduled))


def advise(alone: Estimate, threads: Estimate, cluster: Estimate, at: Conditions) -> str:
    """Return which way to take and why, in a sentence."""
    room = at.memory_bytes * _SHARE
    memory = readable_bytes(at.memory_bytes)
    whole = f"everything at once takes {readable_bytes(alone.peak_bytes)} of {memory} memory"
    if alone.peak_bytes <= (room if at.cores == 1 else min(room, _ONE_CORE_BYTES)):
        return f"no Dask (chunks=None): {whole}, and one batch of requests is the shortest way"
    if threads.seconds > _LONG_S and cluster.seconds < threads.seconds / 2:
        return (
            f"a cluster of {cluster.workers} workers like this machine ({at.cores} cores): "
            f"{readable_seconds(cluster.seconds)} where this one takes {readable_seconds(threads.seconds)}"
        )
    held = readable_bytes(threads.peak_bytes)
    if threads.peak_bytes > room:
        return f"threads, in smaller blocks (chunks='auto'): those under way at a time take {held} of {memory} memory"
    if alone.peak_bytes > room:
        return f"threads (chunks='auto'): {whole}, the blocks under way at a time {held}"
    gain = f"arithmetic on {at.cores} cores gains more than blocks cost"
    return f"threads (chunks='auto'): {gain}; {whole}, the blocks under way at a time {held}"


def readable_bytes(count: float) -> str:
    """Return a number of bytes as "1.2 GB" (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def readable_seconds(seconds: float) -> str:
    """Return a time as "0.35 s", "12 s", "4 min" or "3 h"."""
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"
