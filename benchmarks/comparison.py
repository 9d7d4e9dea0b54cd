"""One workload at one latency by several peers, in turn: answers are checked, then times and requests count."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import cube
from benchmarks.archives import ROOT, LocalArchive, to_json, write_archive
from benchmarks.copies import write_copies
from benchmarks.peers.protocol import Archive, Workload
from benchmarks.processes import PeerError, PeerProcess
from benchmarks.workloads import answer, difference
from cube.testing import ObjectStore

_SLOW_S = 15.0
"""A peer whose first run takes longer gets fewer rounds."""
_FEW = 3


@dataclass(slots=True)
class Run:
    """What one run took."""

    seconds: float
    cpu_seconds: float
    requests: int
    bytes: int
    max_in_flight: int


@dataclass(slots=True)
class Result:
    """What a peer did of a workload: times where every answer was right, else the reason."""

    peer: str
    facts: dict[str, Any] = field(default_factory=dict)
    """Name, settings, versions and python."""
    reason: str | None = None
    """Why there are no times: not supported, no environment, an error, a wrong answer."""
    open_s: float = 0.0
    """What opening the archive took, before the first run."""
    cold: Run | None = None
    """The first run of a fresh process."""
    warm: list[Run] = field(default_factory=list)
    peak_bytes: int = 0
    """The most memory that the process held, its libraries included."""

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return dataclasses.asdict(self)


@dataclass(slots=True, kw_only=True)
class Stage:
    """An archive behind a running object store."""

    local: LocalArchive
    store: ObjectStore
    archive: Archive
    folder: Path
    """For what peers prepare."""
    _prepared: dict[str, Archive] = field(default_factory=dict)

    def prepare(self, peer: PeerProcess) -> Archive:
        """Return the archive with a peer's own extras, which are made once."""
        if peer.name not in self._prepared:
            extras = peer.prepare(self.archive, self.folder / peer.name)
            self._prepared[peer.name] = dataclasses.replace(self.archive, extras=self.archive.extras | extras)
        return self._prepared[peer.name]


@contextlib.contextmanager
def open_stage(name: str, latency_ms: float, folder: Path, *, full: bool) -> Iterator[Stage]:
    """Yield an archive behind an object store with a time to first byte; `folder` takes manifests and references."""
    local = write_archive(name, full=full)
    copies = write_copies(local)
    made = local.recipe
    folder.mkdir(parents=True, exist_ok=True)
    with ObjectStore(local.served, latency_s=latency_ms / 1e3) as store:
        items = local.items(store.url)
        manifest = cube.build(to_json(items, folder / "items.json"), to=folder / f"{name}.cube")
        transform = items[0]["properties"]["proj:transform"]
        archive = Archive(
            url=store.url,
            items=items,
            extras={"manifest": manifest.url} | {key: f"{store.url}/{path}" for key, path in copies.items()},
            bands=list(made.bands),
            shape=(made.size, made.size),
            transform=tuple(transform),
            epsg=items[0]["properties"]["proj:epsg"],
            dtype="uint16",
            nodata=0,
            tile=made.tile,
        )
        yield Stage(local=local, store=store, archive=archive, folder=folder)


class Contest:
    """Peers that run one workload in turn, each in a process of its own.

    A round is a run of every peer; what differs between peers then is not the hour of the day.
    """

    def __init__(self, stage: Stage, workload: Workload, peers: Sequence[str]) -> None:
        self._stage, self._workload, self._names = stage, workload, peers
        self._wanted = answer(workload, stage.local)
        self._stack = contextlib.ExitStack()
        self._running: dict[str, PeerProcess] = {}
        self.results = {name: Result(peer=name) for name in peers}

    def __enter__(self) -> Self:
        """Start every peer, open the archive, and run the workload once: the cold run."""
        with contextlib.ExitStack() as stack:
            for name in self._names:
                self._guard(name, lambda name=name: self._start(name, stack))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def round(self, *without: str) -> None:
        """Run the workload once more by each peer that gave only right answers so far."""
        for name in self._names:
            result = self.results[name]
            slow = result.cold is not None and result.cold.seconds > _SLOW_S and len(result.warm) >= _FEW
            if result.reason is None and not slow and name not in without:
                self._guard(name, lambda name=name: self.finish(name, self.run(name)))

    def run(self, name: str) -> Mapping[str, Any]:
        """Run the workload by one peer; `finish` takes what is returned."""
        self._stage.store.reset()
        return self._running[name].run(self._workload)

    def finish(self, name: str, found: Mapping[str, Any]) -> None:
        """Count what a run asked of the store, check its answer, and note it.

        Raises:
            PeerError: The answer is wrong.
        """
        self.results[name].warm.append(self._finish(name, found))

    def _start(self, name: str, stack: contextlib.ExitStack) -> None:
        result, log = self.results[name], ROOT / "logs" / f"{self._workload.name}-{name}.txt"
        process = stack.enter_context(PeerProcess(name, log))
        result.facts = process.facts
        reason = process.supports(self._workload)
        if reason is not None:
            raise PeerError(f"not offered: {reason}")
        archive = self._stage.prepare(process)
        result.open_s = process.open(archive)
        self._running[name] = process
        result.cold = self._finish(name, self.run(name))

    def _finish(self, name: str, found: Mapping[str, Any]) -> Run:
        counts = self._stage.store.counts()
        if not counts.requests and self._workload.kind != "open":
            raise PeerError("read nothing from the store: a cache answered")
        self.results[name].peak_bytes = max(self.results[name].peak_bytes, found["peak_bytes"])
        given = self._running[name].answer()
        wrong = None if given is None else difference(given, self._wanted, self._workload)
        if wrong is not None:
            raise PeerError(f"wrong answer: {wrong}")
        return Run(
            seconds=found["seconds"],
            cpu_seconds=found["cpu_seconds"],
            requests=counts.requests,
            bytes=counts.bytes,
            max_in_flight=counts.max_in_flight,
        )

    def _guard(self, name: str, work: Callable[[], None]) -> None:
        """Do something of a peer; where it fails, its row stays open with the reason, and the others go on."""
        result = self.results[name]
        try:
            work()
        except PeerError as error:
            result.reason, result.cold, result.warm = str(error), None, []


def summarise(result: Result) -> dict[str, Any]:
    """Return a result with medians and quartiles of its warm runs, as JSON values."""
    facts = result.to_json()
    if result.warm:
        seconds = sorted(run.seconds for run in result.warm)
        quartiles = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 3
        facts |= {
            "median_s": statistics.median(seconds),
            "quartiles_s": [quartiles[0], quartiles[2]],
            "cpu_s": statistics.median(run.cpu_seconds for run in result.warm),
            "requests": int(statistics.median(run.requests for run in result.warm)),
            "bytes": int(statistics.median(run.bytes for run in result.warm)),
            "max_in_flight": max(run.max_in_flight for run in result.warm),
        }
    return facts


def line(facts: Mapping[str, Any]) -> str:
    """Return a summary as one line of a table."""
    name, cold = f"{facts['peer']:18}", facts["cold"]
    if facts["reason"] is not None or cold is None:
        return f"{name} {facts['reason']}"
    warm = f"{facts['median_s']:8.3f} s (cpu {facts['cpu_s']:7.3f} s)" if "median_s" in facts else "         -"
    asked = f"{facts.get('requests', cold['requests']):6,} requests {facts.get('bytes', cold['bytes']) / 1e6:9.2f} MB"
    times = f"open {facts['open_s']:7.3f} s  cold {cold['seconds']:7.3f} s  warm {warm}"
    return f"{name} {times}  {asked}  peak {facts['peak_bytes'] / 1e6:6.0f} MB"
