"""Requests and bytes of our own workloads, held against those of the last release: `python -m benchmarks.baseline`.

Both are exact and the same on every machine, where times are not: what grows has been made worse.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks import processes
from benchmarks.archives import ROOT
from benchmarks.comparison import open_stage
from benchmarks.processes import PeerProcess
from benchmarks.workloads import answer, difference, workloads

FILE = Path(__file__).with_name("baseline.json")
SETTINGS = {"CUBE_DECODE_THREADS": "2", "CUBE_HEDGE_SHARE": "0", "CUBE_MEMORY_BYTES": str(8 << 30)}
"""What else would differ from machine to machine: blocks a core, and second requests where a first one is late."""
RENEW = "make bench-baseline"

_KEPT = ("requests", "bytes", "archive_bytes")

type Counts = dict[str, dict[str, dict[str, float]]]
"""By peer and workload: requests, bytes, `archive_bytes` (what all its COGs have), and seconds, which are only told."""


def measure(*, full: bool) -> Counts:
    """Run every workload once by each of our own peers and return what it asked of the store.

    Raises:
        PeerError: A workload failed.
        AssertionError: An answer is wrong.
    """
    found: Counts = {name: {} for name in processes.OURS}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wanted = workloads(full=full)
        archives = dict.fromkeys(each.archive for each in wanted.values())
        stages = {name: stack.enter_context(open_stage(name, 0, folder / name, full=full)) for name in archives}
        for peer in processes.OURS:
            log = ROOT / "logs" / f"baseline-{peer}.txt"
            process = stack.enter_context(PeerProcess(peer, log, settings=SETTINGS))
            for workload in wanted.values():
                if process.supports(workload) is not None:
                    continue
                stage = stages[workload.archive]
                process.open(stage.archive)
                stage.store.reset()
                run = process.run(workload)
                counts = stage.store.counts()
                given = process.answer()
                wrong = None if given is None else difference(given, answer(workload, stage.local), workload)
                assert wrong is None, f"{peer}, {workload.name}: {wrong}"
                found[peer][workload.name] = {
                    "requests": counts.requests,
                    "bytes": counts.bytes,
                    "archive_bytes": stage.local.file_bytes,
                    "seconds": run["seconds"],
                }
    return found


def grown(found: Counts, known: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return what asks for more than the baseline says, or is not in it, in words."""
    worse = []
    for peer, rows in found.items():
        for workload, counts in rows.items():
            before = known.get(peer, {}).get(workload)
            if before is None:
                worse.append(f"{peer}, {workload}: not in the baseline")
                continue
            allowed = {what: _allowed(counts, before, what) for what in ("requests", "bytes")}
            worse += [
                f"{peer}, {workload}: {counts[what]:,} {what} instead of {most:,}"
                for what, most in allowed.items()
                if counts[what] > most
            ]
    return worse


def _allowed(counts: Mapping[str, float], before: Mapping[str, float], what: str) -> float:
    """Return what a baseline allows; where another GDAL wrote larger files, as much more and a percent."""
    if what == "requests" or counts["archive_bytes"] == before["archive_bytes"]:
        return before[what]
    return int(before[what] * counts["archive_bytes"] / before["archive_bytes"] * 1.01)


def table(found: Counts, known: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return requests and bytes beside those of the baseline, with seconds for information."""
    lines = [f"{'':32} {'requests':>9} {'baseline':>9} {'bytes':>12} {'baseline':>12} {'seconds':>8}"]
    for peer, rows in found.items():
        for workload, counts in rows.items():
            before = known.get(peer, {}).get(workload, {})
            known_of = {what: f"{before[what]:,}" if what in before else "-" for what in ("requests", "bytes")}
            values = [f"{counts['requests']:>9,}", f"{known_of['requests']:>9}", f"{counts['bytes']:>12,}"]
            values += [f"{known_of['bytes']:>12}", f"{counts['seconds']:>8.3f}"]
            lines.append(f"{peer + ', ' + workload:32} {' '.join(values)}")
    return "\n".join(lines)


def load(*, full: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return the recorded counts of one size."""
    known = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    return known.get(_size(full=full), {})


def renew(found: Counts, *, full: bool) -> None:
    """Record counts as the new baseline of one size."""
    known = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
    known[_size(full=full)] = {
        peer: {workload: {what: counts[what] for what in _KEPT} for workload, counts in rows.items()}
        for peer, rows in found.items()
    }
    FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _size(*, full: bool) -> str:
    return "full" if full else "small"


def main() -> None:
    """Compare with the baseline, or renew it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline", description=__doc__)
    parser.add_argument("--renew", action="store_true", help="record what is found as the new baseline")
    parser.add_argument("--full", action="store_true", help="archives in their full size")
    given = parser.parse_args()
    found, known = measure(full=given.full), load(full=given.full)
    print(table(found, known))
    if given.renew:
        renew(found, full=given.full)
    elif worse := grown(found, known):
        sys.exit("\n".join([*worse, f"if that is meant: {RENEW}"]))


if __name__ == "__main__":
    main()
