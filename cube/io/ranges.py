"""Byte ranges of objects: merged, bounded by one budget a process, tried again when a store is busy."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import ObjectStore

from cube.errors import ReadError, SourceChangedError, SourceNotFoundError
from cube.io import loop, trace
from cube.io.stores import locate, redact
from cube.settings import get_settings

type Buffer = memoryview
"""The bytes of one range, read-only."""

_STATUS = re.compile(r"status code: (\d{3})")
_URL = re.compile(r"\w+://\S+")
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """One request for the bytes start:stop, and which of the asked ranges (by position) lie in it."""

    start: int
    stop: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The first bytes of an object and what the store says of it."""

    data: Buffer
    size: int
    etag: str | None
    last_modified: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectVersion:
    """What a store said of an object when it was first read, by which a change is noticed."""

    size: int
    etag: str | None
    """Without quotes; None where the store gives none."""
    last_modified: datetime | None

    @property
    def precondition(self) -> str | None:
        """The value of If-Match: None where there is no ETag, or a weak one, which never matches (RFC 9110, 13.1.1)."""
        return None if self.etag is None or self.etag.startswith("W/") else f'"{self.etag}"'

    def change(self, *, size: int, etag: str | None, last_modified: datetime | None) -> str | None:
        """Return in words how what the store says now differs from this; None where it is the same object."""
        if size != self.size:
            return f"it had {self.size} bytes and has {size}"
        if self.etag is not None and etag is not None:
            return None if etag == self.etag else f"its ETag was {self.etag} and is {etag}"
        if self.last_modified is not None and last_modified is not None and last_modified != self.last_modified:
            return f"it was modified {self.last_modified} and then {last_modified}"
        return None


def plan_requests(
    offsets: Sequence[int], lengths: Sequence[int], *, gap_bytes: int, request_bytes: int
) -> list[RangeRequest]:
    """Merge ranges of one object into the fewest requests.

    Two neighbours become one request where the gap between them is at most `gap_bytes` and the result at most
    `request_bytes`. Ranges may overlap, repeat and come in any order; empty ones are an error of the caller.
    """
    order = sorted(range(len(offsets)), key=lambda i: (offsets[i], lengths[i]))
    requests: list[RangeRequest] = []
    members: list[int] = []
    start = stop = 0
    for i in order:
        begin, end = offsets[i], offsets[i] + lengths[i]
        if members and begin - stop <= gap_bytes and max(end, stop) - start <= request_bytes:
            members.append(i)
            stop = max(stop, end)
            continue
        if members:
            requests.append(RangeRequest(start, stop, tuple(members)))
        members, start, stop = [i], begin, end
    if members:
        requests.append(RangeRequest(start, stop, tuple(members)))
    return requests


class _Hold:
    """An amount of a budget, taken and given back; made for every request: no generator."""

    __slots__ = ("_amount", "_budget")

    def __init__(self, budget: Budget, amount: int) -> None:
        self._budget, self._amount = budget, amount

    async def __aenter__(self) -> None:
        await self._budget.take(self._amount)

    async def __aexit__(self, *_: object) -> None:
        self._budget.give(self._amount)


class Budget:
    """How much may be outstanding at once, first come, first served; lives on the I/O loop."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def hold(self, amount: int) -> _Hold:
        """Hold an amount while `async with` lasts; one that is larger than all waits to be alone."""
        return _Hold(self, min(amount, self._total))

    async def take(self, amount: int) -> None:
        """Wait until an amount is free, and take it."""
        if not self._waiting and amount <= self._free:
            self._free -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)  # granted and cancelled in the same tick
            raise

    def give(self, amount: int) -> None:
        """Return an amount that was taken, and let those who wait for it go on."""
        self._free += amount
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if wanted > self._free:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()


def _request_budget() -> Budget:
    return loop.loop_state("requests", lambda: Budget(get_settings().requests_in_flight))  # type: ignore[no-any-return]


def byte_budget() -> Budget:
    """Return the budget of encoded bytes between request and decode.

    Apart from the budget of requests, so that a large range that waits for memory does not hold a place in flight.
    """
    return loop.loop_state("bytes", lambda: Budget(get_settings().bytes_in_flight))  # type: ignore[no-any-return]


async def read_range(
    href: str, start: int, stop: int, *, signed: str | None = None, version: ObjectVersion | None = None
) -> Buffer:
    """Return the bytes start:stop of an object; runs on the I/O loop.

    Args:
        href: What errors and traces call the object.
        start: First byte.
        stop: One past the last byte.
        signed: The URL to fetch where it is not `href` itself (a signed one); it appears nowhere else.
        version: What the object must still be; not asked where None.

    Raises:
        SourceNotFoundError: There is no such object.
        SourceChangedError: It is no longer the version that was asked for.
        ReadError: It could not be read, or is shorter than `stop`.
    """
    store, path = _locate(href, signed)

    async def once() -> Buffer:
        if version is None:
            data = memoryview(await obstore.get_range_async(store, path, start=start, end=stop))
        else:
            data = await _get_version(store, path, href, start, stop, version)
        if len(data) != stop - start:
            raise _TruncatedError(f"asked for bytes {start}-{stop - 1}, got {len(data)}")
        return data

    return await _attempts(href, start, stop, once)


async def _get_version(
    store: ObjectStore, path: str, href: str, start: int, stop: int, version: ObjectVersion
) -> Buffer:
    options: Any = {"range": (start, stop)}
    if version.precondition is not None:
        options["if_match"] = version.precondition
    result = await obstore.get_async(store, path, options=options)
    meta = result.meta
    # Servers may ignore If-Match, and have no ETag at all: the answer itself says what it is of.
    change = version.change(size=meta["size"], etag=_bare(meta["e_tag"]), last_modified=meta["last_modified"])
    if change is not None:
        raise SourceChangedError.because(href, change)
    return memoryview(await result.bytes_async())


def _bare(etag: str | None) -> str | None:
    return etag.strip('"') if etag else None


async def read_head(href: str, nbytes: int, *, signed: str | None = None) -> Head:
    """Return at most the first `nbytes` bytes of an object, with its size and version; runs on the I/O loop.

    Raises:
        SourceNotFoundError: There is no such object.
        ReadError: It could not be read.
    """
    store, path = _locate(href, signed)

    async def once() -> Head:
        result = await obstore.get_async(store, path, options={"range": (0, nbytes)})
        data = memoryview(await result.bytes_async())
        meta = result.meta
        if len(data) != min(nbytes, meta["size"]):
            raise _TruncatedError(f"asked for {nbytes} bytes of {meta['size']}, got {len(data)}")
        return Head(data=data, size=meta["size"], etag=_bare(meta["e_tag"]), last_modified=meta["last_modified"])

    return await _attempts(href, 0, nbytes, once)


async def read_all(href: str, *, max_bytes: int) -> bytes:
    """Return a whole small object; runs on the I/O loop.

    Raises:
        SourceNotFoundError: There is no such object.
        ReadError: It could not be read, or is larger than `max_bytes`.
    """
    store, path = locate(href)

    async def once() -> bytes:
        result = await obstore.get_async(store, path)
        if result.meta["size"] > max_bytes:
            raise ReadError(redact(href), f"has {result.meta['size']} bytes; at most {max_bytes} are read")
        return bytes(await result.bytes_async())

    return await _attempts(redact(href), 0, 0, once)


def _locate(href: str, signed: str | None) -> tuple[ObjectStore, str]:
    try:
        return locate(signed or href)
    except ReadError as error:
        raise type(error)(href, error.reason) from None  # named by what the user knows, never by what was signed


class _TruncatedError(Exception):
    """Fewer bytes came than the store promised."""


async def _attempts[T](href: str, start: int, stop: int, once: Callable[[], Awaitable[T]]) -> T:
    """Await `once()` under the request budget until it succeeds, fails for good, or has been tried enough."""
    attempts = get_settings().attempts
    for attempt in range(1, attempts + 1):
        began = time.perf_counter()
        failed = True
        try:
            async with _request_budget().hold(1):
                began = time.perf_counter()
                result = await once()
            failed = False
            return result
        except (BaseError, OSError, ValueError, _TruncatedError) as caught:  # ValueError: a name that no store can hold
            error = caught
        finally:
            seconds = time.perf_counter() - began
            trace.record(
                trace.Request(href=href, start=start, stop=stop, attempt=attempt, seconds=seconds, failed=failed)
            )
        if not _is_transient(error) or attempt == attempts:
            raise _read_error(href, start, stop, error, attempt) from None
        # Full jitter, so that the readers of one busy store do not come back together.
        await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)))  # noqa: S311
    raise AssertionError("unreachable: the last attempt returns or raises")


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _is_transient(error: Exception) -> bool:
    if isinstance(error, _TruncatedError):
        return True
    if isinstance(error, (OSError, ValueError, PermissionDeniedError, UnauthenticatedError)):
        return False
    status = _status(error)
    return status in _TRANSIENT or (status is None and "HTTP error" in str(error))


def _read_error(href: str, start: int, stop: int, error: Exception, attempts: int) -> ReadError:
    if isinstance(error, FileNotFoundError):
        return SourceNotFoundError(href, "there is no such object (404)")
    status = _status(error)
    if status in (401, 403) or isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return ReadError(href, f"access denied ({status or 403}): credentials are missing, expired or not enough")
    if status == 412 or isinstance(error, PreconditionError):
        return SourceChangedError.because(href, "its ETag is another one than when it was scanned (412)")
    if status == 409:
        return ReadError(href, f"the object changed while it was read ({status})")
    if status == 416 or "Requested range was invalid" in str(error):
        return ReadError(href, f"ends before byte {start}: it is empty, or was cut off after it was scanned")
    first = _URL.sub("…", str(error).split("\n", 1)[0])  # the message begins with the URL; this one may be signed
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    what = f"bytes {start}-{stop - 1} could not be read{tried}" if stop else f"could not be read{tried}"
    return ReadError(href, f"{what}: {f'the store answered {status}' if status else first}")
