"""What there is to compute with: memory and threads of the workers, or of this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from cube.settings import get_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers that dask would run on now."""

    threads: int
    """Of all of them together."""
    thread_bytes: int
    """Memory that one thread has to itself, of the worker with the least."""


def find_workers() -> Workers:
    """Return the workers of the distributed client that is current, else this process.

    `CUBE_MEMORY_BYTES` is a worker's memory where it is set: plans are then the same wherever they are made.
    """
    settings = get_settings()
    own = Workers(threads=settings.decode_threads, thread_bytes=settings.memory_bytes // settings.decode_threads)
    if "distributed" not in sys.modules:  # importing it takes longer than opening a cube
        return own
    from distributed import Client

    try:
        client = Client.current()
    except ValueError:  # there is none
        return own
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    if not found:  # a cluster that is still to start its workers
        return own
    is_set = "memory_bytes" in settings.model_fields_set
    limits = [(settings.memory_bytes if is_set else each["memory_limit"], each["nthreads"]) for each in found]
    return Workers(
        threads=sum(threads for _, threads in limits),
        thread_bytes=min((limit or settings.memory_bytes) // threads for limit, threads in limits),
    )
