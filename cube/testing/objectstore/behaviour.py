"""How an object store behaves: how late and how fast it answers, and what goes wrong, drawn from a seed."""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# The store's process imports this without `cube` (__main__.py says why), hence ValueError and nothing of cube.errors.

type Outcome = Literal["answered", "left", "throttled", "reset", "truncated", "short", "hung"]

_SHARES: dict[Outcome, str] = {
    "throttled": "throttle_share",
    "reset": "reset_share",
    "truncated": "truncate_share",
    "short": "short_share",
    "hung": "hang_share",
}
"""The field of `Faults` that says how often each fault is drawn."""


def _require(value: object, names: Iterable[str], *, low: float = 0, high: float = math.inf) -> None:
    for name in names:
        number = getattr(value, name)
        if number is not None and not low <= number <= high:  # which not-a-number is not either
            wanted = f"from {low:g} to {high:g}" if math.isfinite(high) else f"from {low:g} on"
            raise ValueError(f"{name} of {type(value).__name__} is a number {wanted}, not {number!r}")


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from the arrival of a request until the head of its answer leaves.

    `Latency(0.05)` is fixed, `Latency(0.05, sigma=0.4)` log-normal; with `tail_share=0.01, tail_s=2` one request in a
    hundred takes 2 s instead.
    """

    median_s: float = 0.0
    sigma: float = field(default=0.0, kw_only=True)
    """Standard deviation of the logarithm; 0 is fixed, 0.3 to 0.6 is what object stores have."""
    tail_share: float = field(default=0.0, kw_only=True)
    """Share of requests, 0 to 1, that take `tail_s`."""
    tail_s: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        _require(self, ("median_s", "sigma", "tail_s"))
        _require(self, ("tail_share",), high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Body bytes a second at most; None is as fast as the machine. Heads are free, and no connection starts slowly."""

    connection: float | None = None
    """Of each connection."""
    total: float | None = None
    """Of all connections together."""

    def __post_init__(self) -> None:
        _require(self, ("connection", "total"), low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong. Shares are of requests, 0 to 1; a request has one fault at most, so they add up to 1 at most."""

    throttle_share: float = 0.0
    """Answered `throttle_status`, without a body."""
    requests_per_s: float | None = None
    """What an account allows: requests beyond it are throttled too. A second's worth may come at once."""
    throttle_status: int = 503
    """503 or 429."""
    retry_after_s: int | None = None
    """The Retry-After of what is throttled; None sends none."""
    reset_share: float = 0.0
    """The connection is reset: half of these before the head, half in mid-body."""
    truncate_share: float = 0.0
    """The body ends before its Content-Length, and the connection is closed."""
    short_share: float = 0.0
    """A sound 206 for fewer bytes than were asked for, as its Content-Range says; other answers stay as they are."""
    hang_share: float = 0.0
    """Never answered; the connection stays open."""
    at_most: int | None = None
    """How many requests draw a fault before all goes well again; None is no end."""

    def __post_init__(self) -> None:
        _require(self, _SHARES.values(), high=1)
        _require(self, ("requests_per_s",), low=1)
        _require(self, ("retry_after_s", "at_most"))
        if self.throttle_status not in {429, 503}:
            raise ValueError(f"throttle_status is 429 or 503, not {self.throttle_status!r}")
        if (total := sum(getattr(self, name) for name in _SHARES.values())) > 1 + 1e-9:
            raise ValueError(f"the shares of {self} add up to {total:g}, which is more than 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """All that can be set of a running store."""

    latency: Latency = Latency()
    bandwidth: Bandwidth = Bandwidth()
    faults: Faults = Faults()
    seed: int = 0
    """Of all that is drawn. Setting any part of a behaviour draws from the start again."""

    def changed(self, given: Mapping[str, Any]) -> Self:
        """Return it with the parts, as `dataclasses.asdict` says them, that are given; each is replaced as a whole."""
        kinds = {"latency": Latency, "bandwidth": Bandwidth, "faults": Faults, "seed": int}
        parts = {name: kinds[name](**part) if isinstance(part, dict) else part for name, part in given.items()}
        return dataclasses.replace(self, **parts)


class Draws:
    """What happens to each request in its turn: always the same for one behaviour, whatever came before it was set.

    Latencies and faults are drawn apart, so that one does not depend on whether there is the other.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._latency, self._faults = behaviour.latency, behaviour.faults
        self._delays, self._fates = random.Random(2 * behaviour.seed), random.Random(2 * behaviour.seed + 1)  # noqa: S311
        self._is_fixed = not (self._latency.sigma or self._latency.tail_share)
        self._left = math.inf if self._faults.at_most is None else self._faults.at_most
        self._steps: list[tuple[float, Outcome]] = []
        upto = 0.0
        for outcome, name in _SHARES.items():
            upto += getattr(self._faults, name)
            self._steps.append((upto, outcome))
        self._may_fail = bool(upto or self._faults.requests_per_s)
        self._allowed, self._allowed_at = self._faults.requests_per_s or 0.0, -math.inf

    def delay_s(self) -> float:
        """Return the latency of the next request."""
        latency = self._latency
        if self._is_fixed:
            return latency.median_s
        in_tail, spread = self._delays.random() < latency.tail_share, self._delays.gauss()
        return latency.tail_s if in_tail else latency.median_s * math.exp(latency.sigma * spread)

    def fate(self, now_s: float) -> tuple[Outcome, float]:
        """Return what becomes of the next request, and where in its body a fault strikes: a share from 0 to 1."""
        if not self._may_fail:
            return "answered", 0.0
        kind, where = self._fates.random(), self._fates.random()
        outcome: Outcome = next((name for upto, name in self._steps if kind < upto), "answered")
        if not self._is_allowed(now_s):
            outcome = "throttled"
        if outcome != "answered" and self._left < 1:
            outcome = "answered"
        self._left -= outcome != "answered"
        return outcome, where

    def _is_allowed(self, now_s: float) -> bool:
        """Take one request from a bucket that holds a second's worth; what is refused takes none."""
        rate = self._faults.requests_per_s
        if rate is None:
            return True
        self._allowed = min(rate, self._allowed + (now_s - self._allowed_at) * rate)
        self._allowed_at = now_s
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


class Link:
    """Something that so many bytes a second go through, one after another."""

    _LATE_S = 0.02  # within a body it makes up for timers that fire up to this late

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = -math.inf

    def reserve(self, now_s: float, size: int, *, begins: bool) -> float:
        """Return when the last of `size` more bytes will have gone through; `begins` where they begin a body."""
        since = now_s if begins else now_s - self._LATE_S
        self._free_at = max(self._free_at, since) + size / self.bytes_per_s
        return self._free_at
