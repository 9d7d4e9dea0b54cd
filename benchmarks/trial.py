"""Some peers on some workloads, printed at once: `python -m benchmarks.trial --peers cogcube,floor --latency-ms 50`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks import processes
from benchmarks.comparison import Contest, line, open_stage, summarise
from benchmarks.workloads import WORKLOADS, workloads


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial", description=__doc__)
    parser.add_argument("--peers", help="names, separated by commas; all where left out")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="names, separated by commas")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="time to the first byte of each answer (50)")
    parser.add_argument("--rounds", type=int, default=3, help="runs after the first (3)")
    parser.add_argument("--full", action="store_true", help="archives in their full size")
    given = parser.parse_args()
    peers = given.peers.split(",") if given.peers else processes.names()
    for name in given.workloads.split(","):
        workload = workloads(full=given.full)[name]
        print(f"{name}: {given.latency_ms:g} ms, medians of {given.rounds} runs after a first one")
        with (
            tempfile.TemporaryDirectory() as folder,
            open_stage(workload.archive, given.latency_ms, Path(folder), full=given.full) as stage,
            Contest(stage, workload, peers) as contest,
        ):
            for _ in range(given.rounds):
                contest.round()
        for result in contest.results.values():
            print(f"  {line(summarise(result))}")


if __name__ == "__main__":
    main()
