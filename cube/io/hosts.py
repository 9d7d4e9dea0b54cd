"""What is known of each store: how many requests it bears at once, how fast it answers, when a request is late."""

from __future__ import annotations

import time
from collections import deque

from cube.io import loop
from cube.io.budget import Budget
from cube.settings import get_settings

_THROTTLED_SHARE = 0.1
"""More of the answers of a round trip than this ask for fewer requests: fewer are made. Single ones are tried again."""
_FEWEST_ANSWERS = 20
"""A share of fewer answers than this says nothing."""
_STEP = 8
"""Requests in flight that a round trip without throttling adds, up to the setting."""
_REMEMBERED = 256
_KNOWN = 128
"""Answers by which a store is known well enough to call a request late."""
_LATE_S = 0.15
"""No request is late before: a pause of this process itself must not look like one of the store."""
_LATE_TIMES = 3
"""A first byte is late after this many times what 95 % of requests take."""


class Host:
    """One store's requests: their limit, which adapts, their latency, and which of them are sent twice."""

    def __init__(self, most: int) -> None:
        self.requests = Budget(most)
        self._most = most
        self._answers = self._throttled = 0
        self._since = time.monotonic()
        self._first_bytes: deque[float] = deque(maxlen=_REMEMBERED)
        self._seen = 0
        self._median_s = 0.0
        self._p95_s = 0.0
        self._sent = self._hedged = 0

    def sent(self) -> None:
        """Note that a request goes out."""
        self._sent += 1

    def answered(self, first_byte_s: float) -> None:
        """Note an answer, by which the latency is known."""
        self._first_bytes.append(first_byte_s)
        self._seen += 1
        if self._seen % 32 == 0:
            self._summarize()
        self._judge(throttled=False)

    def throttled(self) -> None:
        """Note an answer that asks for fewer requests."""
        self._judge(throttled=True)

    def late_s(self) -> float | None:
        """Return after how long a first byte is late; None where that is not known, or not acted upon."""
        if self._seen < _KNOWN or not get_settings().hedge_share:
            return None
        return max(_LATE_S, _LATE_TIMES * self._p95_s)

    def take_hedge(self) -> bool:
        """Return whether one more request may be sent a second time, and count it."""
        if self._hedged + 1 > get_settings().hedge_share * self._sent or self.requests.free < 1:
            return False
        self._hedged += 1
        return True

    def _summarize(self) -> None:
        ordered = sorted(self._first_bytes)
        self._median_s = ordered[len(ordered) // 2]
        self._p95_s = ordered[len(ordered) * 95 // 100]

    def _judge(self, *, throttled: bool) -> None:
        """Adapt the limit at most once a round trip: a step more, or half, where a tenth of the answers throttle."""
        self._answers += 1
        self._throttled += throttled
        now = time.monotonic()
        if self._answers < _FEWEST_ANSWERS or now - self._since < self._median_s:
            return
        if self._throttled > _THROTTLED_SHARE * self._answers:
            self.requests.resize(max(1, self.requests.total // 2))
        elif self.requests.total < self._most:
            self.requests.resize(min(self._most, self.requests.total + _STEP))
        self._answers = self._throttled = 0
        self._since = now


def find_host(name: str) -> Host:
    """Return what this process knows of a store; call it on the I/O loop."""
    hosts = loop.loop_state("hosts", dict[str, Host])
    found = hosts.get(name)
    if found is None:
        found = hosts[name] = Host(get_settings().requests_in_flight)
    return found
