"""What was asked of the network: a record a request, collected while a trace is open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it was sent, retries apart."""

    href: str
    start: int
    stop: int
    attempt: int
    """1 for the first."""
    hedge: bool
    """Whether it is the second of a request that was late; the loser of the two counts as failed."""
    first_byte_s: float | None
    """None where there was no answer."""
    seconds: float
    failed: bool


@dataclass(slots=True)
class Trace:
    """The requests of this process while the trace was open, in order of their ends."""

    records: list[Request] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Number of requests sent, retries included."""
        return len(self.records)

    @property
    def bytes(self) -> int:
        """Bytes of the requests that succeeded."""
        return sum(record.stop - record.start for record in self.records if not record.failed)


_lock = threading.Lock()
_open: tuple[Trace, ...] = ()


@contextmanager
def trace() -> Iterator[Trace]:
    """Collect every request that this process sends, from whichever thread, until the block ends."""
    global _open  # noqa: PLW0603 - a process-wide observer is the point
    mine = Trace()
    with _lock:
        _open = (*_open, mine)
    try:
        yield mine
    finally:
        with _lock:
            _open = tuple(other for other in _open if other is not mine)


def record(request: Request) -> None:
    """Hand one finished request to the open traces."""
    for each in _open:
        each.records.append(request)
