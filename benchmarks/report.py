"""`docs/performance.md` of what `make bench-full` measured: `python -m benchmarks.report .benchmarks/full.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.archives import CLEAR
from benchmarks.plots import Panel, draw
from benchmarks.processes import OURS, REFERENCES
from benchmarks.workloads import WORKLOADS

DOCS = Path(__file__).parent.parent / "docs"
_PLOT = "performance.svg"
_HEADLINE_MS = 50.0
_US = OURS[0]

_INTRODUCTION = """# Performance

<!-- Written by `make bench-full`; change benchmarks/report.py instead. -->

How fast is it, against what else one would use? Each system below did the same work on the same files behind the same
object store, whose time to the first byte was set to {latencies} ms: between 10 and 50 ms are usual near the data, 100
ms from afar, and 0 ms shows what the processor alone takes. The store is `cube.testing.ObjectStore`, which anybody can
start: no account, network or root is needed.

Every system ran in a process and, where its versions clash with ours, in an environment of its own, in the settings
that are best for it ([below](#settings)). Its answer was compared with one that rasterio and numpy compute from the
files on disk: a system that answers wrongly gets no time. Then they took turns: a round is one run of each, and times
are medians of the rounds. This page was made on {date} by

    make bench-full

which takes some hours and makes the archives (3 GB) and the environments (2 GB) first. `make bench` is the short form,
in minutes. `cube bench NAME` does such reads on your own archive over your own network."""

_PART = """

**This is a part of it**: {named}, at the latencies that the tables name."""

_FLOOR = """\
The **floor** is the least that any reader must do: plain range requests, decompression, placing; some hundred lines
without this project or any library for rasters, which are told beforehand where the tiles are. The **Zarr copy** is the
archive rewritten, in the same codec and chunks: what reading COGs in place costs beside it is the price of not
rewriting them."""

_LOSSES = """\
Systems that were faster than cogcube without Dask, and reads that took more than 1.15 times the floor. Differences of
some milliseconds or percent are noise."""

_READING = """\
## How to read the tables

- **median** is of the warm runs: the cube is open, connections may be. In brackets the quartiles: half of the runs lie
  between them. Every run reads its pixels from the store again.
- **first answer** is the time of a fresh process, its imports done, to its first answer: connections, lazy imports and
  all; **of it open** is opening the archive, which for some systems is where headers are read. What users make once
  (our manifest, references, an index, the copies) is there before and not counted.
- **CPU** is the processor time of a warm run, of all its threads.
- **NDVI's means, medians and months** are computed as the users of a system compute them: with its own call where it
  has one (`ds.cube.index()` of cogcube), else as the [expression of xarray](#settings) that one writes. The floor and
  the Zarr copies have NumPy written by hand for these workloads: passes over strips of rows that stay in the cache.
- **rioxarray + numpy by hand** is nothing that one can install: rioxarray's reads under that same NumPy. Beside the
  other rows it shows what the reader alone takes, and beside rioxarray's what the expression costs.
- **requests**, **MB** and **in flight** were counted by the store. They do not depend on the machine.
- **memory** is the most that the process held, its libraries included.
- **times ours** is the median as a multiple of cogcube's without Dask: above 1 is slower. This and what stands right of
  it are of the latency of the first table.
- Ratios carry over to other machines better than seconds do. The store ran on the same cores as the systems, so that
  one that asks for much makes itself slower, as it would not in the cloud."""

_SETTINGS = f"""\
Chunks, threads and schedulers are those that were fastest of several, tried at 50 ms on the NDVI means. Systems that
give their users xarray objects compute this, in one call:

    valid = (nir != 0) & (red != 0)
    ndvi = ((nir.astype("f4") - red) / (nir.astype("f4") + red)).where(valid)
    ndvi.mean("time")                                                    # ndvi_mean_window, ndvi_mean_whole
    ndvi.median("time")                                                  # ndvi_median_whole
    ndvi.where(scl.isin({list(CLEAR)})).resample(time="MS").median()  # monthly"""

type Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run of the benchmark found."""

    cells: Mapping[tuple[str, float], Mapping[str, Facts]]
    """By workload and latency: the summary of each peer, in their order."""
    scaling: Mapping[str, Facts]
    """What `bench_scaling.py` found, by the name of its test."""
    machine: Facts
    date: str

    @property
    def workloads(self) -> list[str]:
        """Those that ran, in the order of their definition."""
        return [name for name in WORKLOADS if any(name == each for each, _ in self.cells)]

    @property
    def latencies(self) -> list[float]:
        """Milliseconds, in order."""
        return sorted({latency for _, latency in self.cells})

    @property
    def peers(self) -> list[str]:
        """Every peer, in order."""
        return list(dict.fromkeys(peer for cell in self.cells.values() for peer in cell))

    @property
    def headline_ms(self) -> float:
        """The latency of the first table: 50 ms, or the one nearest to it."""
        return min(self.latencies, key=lambda each: abs(each - _HEADLINE_MS))

    def name(self, peer: str) -> str:
        """Return what a peer calls itself."""
        known = (cell[peer]["facts"].get("name") for cell in self.cells.values() if peer in cell)
        return next((name for name in known if name), peer)

    def facts(self, workload: str, latency: float, peer: str) -> Facts | None:
        """Return a peer's summary where it gave right answers."""
        found = self.cells.get((workload, latency), {}).get(peer)
        return None if found is None or "median_s" not in found else found

    def seconds(self, workload: str, latency: float, peer: str) -> float | None:
        """Return a median; None where there is none."""
        found = self.facts(workload, latency, peer)
        return None if found is None else float(found["median_s"])

    def first_s(self, workload: str, latency: float, peer: str) -> float | None:
        """Return the time of a fresh process to its first answer, opening included."""
        found = self.facts(workload, latency, peer)
        if found is None:
            return None
        opening = 0.0 if workload == "open" else float(found["open_s"])
        return opening + float(found["cold"]["seconds"])

    def ratio(self, workload: str, latency: float, peer: str, other: str) -> float | None:
        """Return the time of one peer as a multiple of another's."""
        mine, its = self.seconds(workload, latency, peer), self.seconds(workload, latency, other)
        return mine / its if mine and its else None


def load(*paths: Path) -> Measured:
    """Return what JSON files of pytest-benchmark hold, of one machine; what a later one has, too, is taken from it."""
    runs = [json.loads(path.read_text("utf-8")) for path in paths]
    cells, scaling = {}, {}
    for found in runs:
        for each in found["benchmarks"]:
            info = each["extra_info"]
            if "peers" in info:
                cells[info["workload"], float(info["latency_ms"])] = info["peers"]
            elif "bench_scaling" in each["fullname"]:
                scaling[each["name"]] = info
    last = runs[-1]
    return Measured(cells=cells, scaling=scaling, machine=last["machine_info"], date=last["datetime"][:10])


def write(found: Measured) -> str:
    """Return the page."""
    sections = [
        _introduction(found),
        _headline(found),
        _losses(found),
        f"## Over latency\n\n![Seconds of each workload over the latency of the store]({_PLOT})",
        _READING,
        *(_workload(found, name) for name in found.workloads),
        _scaling(found),
        _open_rows(found),
        _settings(found),
        _machine(found),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def plot(found: Measured) -> str:
    """Return the SVG of all workloads."""
    panels = []
    for workload in found.workloads:
        lines = {}
        for peer in found.peers:
            points = [(ms, found.seconds(workload, ms, peer)) for ms in found.latencies]
            known = [(ms, seconds) for ms, seconds in points if seconds]
            if known:
                lines[found.name(peer)] = known
        panels.append(Panel(title=workload, lines=lines))
    return draw(panels, [found.name(peer) for peer in found.peers])


def _introduction(found: Measured) -> str:
    latencies = ", ".join(f"{each:g}" for each in found.latencies)
    part = "" if found.workloads == list(WORKLOADS) else _PART.format(named=", ".join(found.workloads))
    return _INTRODUCTION.format(latencies=latencies, date=found.date) + part


def _headline(found: Measured) -> str:
    ms = found.headline_ms
    others = [peer for peer in found.peers if peer not in (*OURS, *REFERENCES)]
    head = ["workload", "cogcube", "with Dask", "times the floor", "times a Zarr copy"]
    head += ["the fastest other", "takes", "times ours", "its first answer"]
    lines = [f"| {' | '.join(head)} |", "|---|--:|--:|--:|--:|---|--:|--:|--:|"]
    for name in found.workloads:
        rivals = {peer: found.seconds(name, ms, peer) for peer in others}
        known = {peer: seconds for peer, seconds in rivals.items() if seconds}
        best = min(known, key=lambda peer: known[peer], default=None)
        cells = [
            f"[{name}](#{name})",
            _seconds(found.seconds(name, ms, _US)),
            _seconds(found.seconds(name, ms, OURS[1])),
            _times(found.ratio(name, ms, _US, "floor")),
            _times(found.ratio(name, ms, _US, "zarr_copy")),
            "-" if best is None else found.name(best),
            "-" if best is None else _seconds(known[best]),
            "-" if best is None else _times(found.ratio(name, ms, best, _US)),
            "-" if best is None else _first(found, name, ms, best),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return f"## At {ms:g} ms\n\n" + "\n".join(lines) + f"\n\n{_FLOOR}"


def _first(found: Measured, name: str, ms: float, peer: str) -> str:
    """Return how long a peer's fresh process takes to its first answer, and how many times ours that is."""
    its, mine = found.first_s(name, ms, peer), found.first_s(name, ms, _US)
    return _seconds(its) if not its or not mine else f"{_seconds(its)}, {_times(its / mine)} times ours"


def _losses(found: Measured) -> str:
    lines = [f"- {text}" for text in _find_losses(found)] or ["- In this run: in no workload and at no latency."]
    return f"## Where it loses\n\n{_LOSSES}\n\n" + "\n".join(lines)


def _find_losses(found: Measured) -> Iterator[str]:
    for name in found.workloads:
        for peer in found.peers:
            if peer in (_US, "floor"):
                continue
            slower = [(ms, found.ratio(name, ms, _US, peer)) for ms in found.latencies]
            told = [
                f"{ratio:.2f} times as fast at {ms:g} ms ({_seconds(found.seconds(name, ms, peer))})"
                for ms, ratio in slower
                if ratio and ratio > 1.0
            ]
            if told:
                yield f"**{name}**, {found.name(peer)}: {'; '.join(told)}"
        over = [(ms, found.ratio(name, ms, _US, "floor")) for ms in found.latencies]
        told = [f"{ratio:.2f} times at {ms:g} ms" for ms, ratio in over if ratio and ratio > 1.15]
        if told:
            yield f"**{name}**, the floor: {', '.join(told)}"


def _workload(found: Measured, name: str) -> str:
    ms = found.headline_ms
    head = ["", *(f"median at {each:g} ms" for each in found.latencies), "times ours", "times floor"]
    head += ["first answer", "of it open", "CPU", "requests", "MB", "in flight", "memory"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for peer in found.peers:
        facts = found.facts(name, ms, peer)
        if not any(found.facts(name, each, peer) for each in found.latencies):
            continue
        cells = [found.name(peer), *(_median(found.facts(name, each, peer)) for each in found.latencies)]
        cells += [_times(found.ratio(name, ms, peer, _US)), _times(found.ratio(name, ms, peer, "floor"))]
        cells += ["-"] * 7 if facts is None else [
            _seconds(found.first_s(name, ms, peer)),
            "-" if name == "open" else _seconds(facts["open_s"]),
            _seconds(facts["cpu_s"]),
            f"{facts['requests']:,}",
            f"{facts['bytes'] / 1e6:.1f}",
            f"{facts['max_in_flight']:,}",
            f"{facts['peak_bytes'] / 1e6:.0f} MB",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return f"### {name}\n\n{WORKLOADS[name][:1].upper()}{WORKLOADS[name][1:]}.\n\n" + "\n".join(lines)


def _scaling(found: Measured) -> str:
    lines = []
    if (workers := found.scaling.get("test_workers")) and "times_one_worker" in workers:
        lines.append(
            f"- Mean NDVI of the whole cube at 50 ms, two worker processes of one thread: "
            f"**{workers['times_one_worker']:.2f} times** as fast as one ({_seconds(workers['one_worker_s'])}), "
            f"in turn, on this machine, whose cores the store shares."
        )
    if scheduler := found.scaling.get("test_scheduler"):
        lines.append(
            f"- A task costs Dask's scheduler {scheduler['scheduler_ms_a_task']:.2f} ms of its one thread "
            f"({scheduler['tasks']:,} tasks)."
        )
    more = "What that means for 1,000 workers and 10 million files stands in [Scaling](scaling.md)."
    return "\n".join(["## Scaling", "", *lines, "", more]) if lines else ""


def _open_rows(found: Measured) -> str:
    reasons: dict[tuple[str, str], dict[str, list[float]]] = {}
    for (workload, ms), cell in found.cells.items():
        for peer, facts in cell.items():
            if facts["reason"] is not None:
                where = reasons.setdefault((found.name(peer), facts["reason"]), {})
                where.setdefault(workload, []).append(ms)
    if not reasons:
        return ""
    lines = ["| system | workload | why |", "|---|---|---|"]
    for (name, reason), where in sorted(reasons.items()):
        everywhere = len(found.latencies)
        told = [
            workload if len(latencies) == everywhere else f"{workload} at {', '.join(f'{ms:g}' for ms in latencies)} ms"
            for workload, latencies in where.items()
        ]
        text = reason.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {'all' if len(told) == len(found.workloads) else ', '.join(told)} | {text} |")
    return "## Rows left open\n\n" + "\n".join(lines)


def _settings(found: Measured) -> str:
    lines = ["| system | version | settings |", "|---|---|---|"]
    for peer in found.peers:
        known = [cell[peer]["facts"] for cell in found.cells.values() if cell.get(peer, {}).get("facts")]
        if not known:
            continue
        facts = known[0]
        versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
        lines.append(f"| {facts['name']} | {versions} | {facts['settings'].replace('|', chr(92) + '|')} |")
    return f"## Settings\n\n{_SETTINGS}\n\n" + "\n".join(lines)


def _machine(found: Measured) -> str:
    machine = found.machine
    cpu, memory = machine.get("cpu", {}), machine.get("memory_bytes")
    facts = [
        cpu.get("brand_raw") or machine.get("processor") or machine.get("machine"),
        f"{cpu.get('count', '?')} cores",
        *([f"{memory / 2**30:.0f} GiB of memory"] if memory else []),
        f"{machine.get('system')} {machine.get('release')}",
        f"Python {machine.get('python_version')}",
    ]
    rounds = [len(facts["warm"]) for cell in found.cells.values() for facts in cell.values() if facts["warm"]]
    most, fewest = max(rounds, default=0), min(rounds, default=0)
    text = [f"{', '.join(str(each) for each in facts)}.", f"{most} rounds after the cold run of each process"]
    text[-1] += f", {fewest} for a system whose cold run took more than 15 s." if fewest < most else "."
    if (load := machine.get("load_average")) is not None:
        text.append(f"Load of the machine before the first run: {load:.1f}.")
    return "## Machine\n\n" + "\n".join(text)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _median(facts: Facts | None) -> str:
    if facts is None:
        return "-"
    low, high = facts["quartiles_s"]
    digits = 3 if facts["median_s"] < 1 else 2
    return f"{facts['median_s']:.{digits}f} s ({low:.{digits}f}-{high:.{digits}f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and its plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "json", type=Path, nargs="+", help="what pytest-benchmark wrote; later runs replace earlier ones"
    )
    parser.add_argument("--to", type=Path, default=DOCS, help="the folder of the page (docs)")
    given = parser.parse_args(arguments)
    for path in given.json:
        if not path.exists():
            parser.error(f"there is no {path}; `make bench-full` writes it")
    found = load(*given.json)
    if not found.cells:
        parser.error(f"{' '.join(map(str, given.json))}: no run of bench_peers.py")
    given.to.mkdir(parents=True, exist_ok=True)
    (given.to / "performance.md").write_text(write(found), encoding="utf-8")
    (given.to / _PLOT).write_text(plot(found), encoding="utf-8")
    print(given.to / "performance.md")


if __name__ == "__main__":
    main()
