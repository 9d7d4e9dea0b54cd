"""What an object store was asked and what it answered: counted exactly, and request by request."""

from __future__ import annotations

import collections
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .behaviour import Outcome

_KEPT = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What an object store was asked since it started or was last reset; its controls (`/-/...`) do not count."""

    requests: int
    """Requests that arrived, whatever was answered."""
    bytes: int
    """Body bytes of objects that were sent; errors and HEAD have none."""
    paths: Mapping[str, int]
    """Requests by path, decoded, without the leading slash."""
    ranges: tuple[tuple[str, str, int, int], ...]
    """(method, path, start, stop) of each 200 and 206 in the order of answering, the last 100,000; HEAD says 0, 0."""
    max_in_flight: int
    """The most requests that were under way at one time."""
    statuses: Mapping[int, int] = field(default_factory=dict)
    """Heads that were sent, by status."""
    faults: Mapping[Outcome, int] = field(default_factory=dict)
    """Requests that a fault struck, by what it was: throttled, reset, truncated, short or hung."""
    cpu_s: float = field(default=0.0, compare=False)
    """Processor seconds that the store's process has spent since it started, its controls included."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request and what became of it. Times are seconds of one monotonic clock since the store started."""

    arrived_s: float
    """When its head was there."""
    answered_s: float | None
    """When the head of its answer left; None where none did."""
    method: str
    path: str
    """Decoded, without the leading slash."""
    start: int
    """As asked, as in `body[start:stop]`: `Range: bytes=-7` is (-7, None), and no range (0, None)."""
    stop: int | None
    status: int
    """0 where no head left."""
    outcome: Outcome
    """"answered", "left" where the client left first, or the fault that struck."""
    retry_after_s: int | None
    """What a throttled answer asked for."""


def parse_counts(text: bytes) -> Counts:
    """Return what `Tally.to_json` says."""
    found = json.loads(text)
    ranges = tuple((method, path, start, stop) for method, path, start, stop in found.pop("ranges"))
    statuses = {int(status): count for status, count in found.pop("statuses").items()}
    return Counts(ranges=ranges, statuses=statuses, **found)


def parse_records(text: bytes) -> tuple[Record, ...]:
    """Return what `Tally.records_to_json` says, in the order of arrival."""
    return tuple(sorted((Record(*row) for row in json.loads(text)), key=lambda record: record.arrived_s))


class Tally:
    """The counts as they grow."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> bytes:
        """Set all to zero but what is in flight."""
        self.requests = self.bytes = 0
        self.max_in_flight = self.in_flight
        self.paths: collections.Counter[str] = collections.Counter()
        self.ranges: collections.deque[tuple[str, str, int, int]] = collections.deque(maxlen=_KEPT)
        self.statuses: collections.Counter[int] = collections.Counter()
        self.faults: collections.Counter[Outcome] = collections.Counter()
        self.records: collections.deque[tuple[Any, ...]] = collections.deque(maxlen=_KEPT)
        return b""

    def begin(self, path: str) -> None:
        """Count a request that arrived."""
        self.requests += 1
        self.paths[path] += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self, record: tuple[Any, ...]) -> None:
        """Count a request that is done with; `record` has the fields of a `Record`."""
        self.in_flight -= 1
        self.records.append(record)

    def to_json(self) -> bytes:
        """Return what `parse_counts` reads."""
        counts = {name: value for name, value in vars(self).items() if name not in {"in_flight", "records"}}
        return json.dumps(counts | {"cpu_s": time.process_time()}, default=list).encode()

    def records_to_json(self) -> bytes:
        """Return what `parse_records` reads."""
        return json.dumps(list(self.records)).encode()
