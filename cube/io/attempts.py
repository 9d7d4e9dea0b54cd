"""One range request until it succeeds: tried again when it may help, and sent twice when it is late."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from cube.io import loop, trace
from cube.io.answer import Answer, RefusedError, require_whole
from cube.io.budget import Budget
from cube.io.hosts import Host
from cube.settings import get_settings

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0


class Get(Protocol):
    """Sends a request once."""

    def __call__(self, *, on_head: Callable[[], None] | None = None) -> Coroutine[Any, Any, Answer]:
        """Return the answer; `on_head` is called when only its body is still to come."""


class GivenUpError(Exception):
    """No attempt succeeded."""

    def __init__(self, last: RefusedError, attempts: int) -> None:
        super().__init__(last.text)
        self.last, self.attempts = last, attempts


async def attempt(host: Host, what: tuple[str, int, int], get: Get) -> Answer:
    """Return the answer of a request, under the budgets of the process and its store.

    Args:
        host: What is known of the store.
        what: Href, start and stop, for the trace.
        get: Sends the request.

    Raises:
        GivenUpError: It failed for good, or too often.
    """
    settings = get_settings()
    for number in range(1, settings.attempts + 1):
        try:
            again = number > 1
            async with _process_budget().hold(1, first=again), host.requests.hold(1, first=again):
                return await _sent_twice_if_late(host, what, number, get)
        except RefusedError as caught:
            refused = caught
        if refused.is_throttle:
            host.throttled()
        pause_s = _pause_s(refused, number)
        if not refused.is_transient or number == settings.attempts or pause_s > settings.timeout_s:
            raise GivenUpError(refused, number) from None
        await asyncio.sleep(pause_s)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _process_budget() -> Budget:
    return loop.loop_state("requests", lambda: Budget(get_settings().requests_in_flight))


def _pause_s(refused: RefusedError, number: int) -> float:
    """Return how long to wait: never less than the store says; else full jitter, so that readers spread out."""
    jitter_s = random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**number))  # noqa: S311
    # More than it says by some, as timers end early by a tick, and all who were told the same come back apart.
    return jitter_s if refused.retry_after_s is None else refused.retry_after_s + 0.01 + jitter_s


async def _sent_twice_if_late(host: Host, what: tuple[str, int, int], number: int, get: Get) -> Answer:
    late_s = host.late_s()
    if late_s is None:
        return await _send(host, what, number, get(), hedge=False)
    running = asyncio.get_running_loop()
    has_head = False

    def on_head() -> None:
        nonlocal has_head
        has_head = True

    coroutine = _send(host, what, number, get(on_head=on_head), hedge=False)
    first: asyncio.Task[Answer] = asyncio.Task(coroutine, loop=running, eager_start=True)
    second: asyncio.Task[Answer] | None = None
    try:
        done, _ = await asyncio.wait((first,), timeout=late_s)
        if done or has_head or not host.take_hedge():
            return await first
        async with host.requests.hold(1, first=True):
            second = running.create_task(_send(host, what, number, get(), hedge=True))
            done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
            winner = done.pop()
            if winner.exception() is not None:  # the other may still bring it
                winner = second if winner is first else first
            return await winner
    finally:
        for task in (first, second):
            if task is not None and not task.done():
                task.cancel()
            elif task is not None and not task.cancelled():
                task.exception()  # seen, or asyncio would report it


async def _send(
    host: Host, what: tuple[str, int, int], number: int, asked: Coroutine[Any, Any, Answer], *, hedge: bool
) -> Answer:
    began = time.perf_counter()
    answer: Answer | None = None
    host.sent()
    try:
        found = await asked
        require_whole(found, what[1], what[2])
        answer = found
        host.answered(found.first_byte_s)
        return found
    finally:
        href, start, stop = what
        trace.record(
            trace.Request(
                href=href,
                start=start,
                stop=stop if answer is None else start + len(answer.data),
                attempt=number,
                hedge=hedge,
                first_byte_s=None if answer is None else answer.first_byte_s,
                seconds=time.perf_counter() - began,
                failed=answer is None,
            )
        )
