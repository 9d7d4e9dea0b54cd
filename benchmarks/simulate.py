"""A computation on many workers, simulated: one scheduler, a store that allows so much, blocks that take a time.

`python -m benchmarks.simulate` prints the table of docs/scaling.md. What it knows of a real run are the figures of one
block on one core and of the scheduler, which `bench_scaling.py` measures.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is computed, and on what: NDVI's median of a year, at 2,500 places of Sentinel-2's size.

    A block is one tile of 1024 x 1024 pixels of 2 bands at 73 dates.
    """

    blocks: int = 2_500 * 121
    tasks_a_block: int = 4
    requests_a_block: int = 2 * 73
    bytes_a_block: float = 2 * 73 * 1.2e6
    block_s: float = 2.0
    """Of one block on one core, while neither the store nor the scheduler makes it wait."""
    task_s: float = 0.0009
    """Of the scheduler's one thread, for each task."""
    workers: int = 1
    requests_a_s: float = 20_000
    """That the account allows."""
    bytes_a_s: float = 25e9
    """That the account allows: 200 Gbit/s."""
    accounts: int = 1
    """Over which the archive is spread."""
    schedulers: int = 1
    """Each with its share of the blocks and of the workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job went."""

    seconds: float
    efficiency: float
    """Of the workers: 1 where none ever waited."""
    bound_by: str
    """What most of the waiting was for; "workers" where they hardly waited."""


def simulate(job: Job) -> Outcome:
    """Return how a job goes, block by block.

    The scheduler hands out one block after another. A block's requests and bytes then pass the store's two limits,
    queues that all workers share; its worker is busy until both let it go, and for `block_s` at least.
    """
    free = [0.0] * job.workers
    requests_a_s, bytes_a_s = job.requests_a_s * job.accounts, job.bytes_a_s * job.accounts
    task_s = job.task_s / job.schedulers
    scheduler = requests = traffic = end = 0.0
    waits = {"scheduler": 0.0, "requests a second": 0.0, "bytes a second": 0.0}
    for _ in range(job.blocks):
        ready = heapq.heappop(free)
        begin = max(ready, scheduler)
        scheduler = max(scheduler, ready) + job.tasks_a_block * task_s
        begin = max(begin, scheduler)
        requests = max(requests, begin) + job.requests_a_block / requests_a_s
        traffic = max(traffic, begin) + job.bytes_a_block / bytes_a_s
        done = max(begin + job.block_s, requests, traffic)
        waits["scheduler"] += begin - ready
        slower = "requests a second" if requests > traffic else "bytes a second"
        waits[slower] += done - begin - job.block_s
        heapq.heappush(free, done)
        end = max(end, done)
    efficiency = job.blocks * job.block_s / (end * job.workers)
    most = max(waits, key=lambda name: waits[name])
    return Outcome(seconds=end, efficiency=efficiency, bound_by="workers" if efficiency > 0.9 else most)


def main() -> None:
    """Print how a job of as many blocks a worker goes, from 1 to 1,000 workers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    base = Job()
    for name in ("block_s", "task_s", "requests_a_s", "bytes_a_s", "bytes_a_block"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(base, name))
    for name in ("blocks", "tasks_a_block", "requests_a_block", "accounts", "schedulers"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(base, name))
    base = Job(**vars(parser.parse_args()))
    print("| workers | seconds | efficiency | bound by |\n|--:|--:|--:|---|")
    for workers in (1, 10, 30, 100, 300, 1000):
        found = simulate(replace(base, workers=workers))
        print(f"| {workers:,} | {found.seconds:,.0f} | {found.efficiency:.0%} | {found.bound_by} |")


if __name__ == "__main__":
    main()
