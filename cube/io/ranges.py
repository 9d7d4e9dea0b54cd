"""Byte ranges of objects: merged, bounded by one budget a process, tried again when a store is busy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cube.errors import ReadError, SourceChangedError, SourceNotFoundError
from cube.io import loop
from cube.io.answer import Answer, Buffer
from cube.io.attempts import GivenUpError, attempt
from cube.io.budget import Budget
from cube.io.hosts import find_host
from cube.io.stores import locate, redact
from cube.settings import get_settings


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


def byte_budget() -> Budget:
    """Return the budget of encoded bytes between request and decode.

    Apart from the budget of requests, so that a large range that waits for memory does not hold a place in flight.
    """
    return loop.loop_state("bytes", lambda: Budget(get_settings().bytes_in_flight))


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
    answer = await _get(href, start, stop, signed, None if version is None else version.precondition)
    if version is not None:
        # Servers may ignore If-Match, and have no ETag at all: the answer itself says what it is of.
        change = version.change(size=answer.size, etag=answer.etag, last_modified=answer.last_modified)
        if change is not None:
            raise SourceChangedError.because(href, change)
    if len(answer.data) != stop - start:
        raise ReadError(href, f"ends at byte {answer.size}, before byte {stop}: it was cut off after it was scanned")
    return answer.data


async def read_head(href: str, nbytes: int, *, signed: str | None = None) -> Head:
    """Return at most the first `nbytes` bytes of an object, with its size and version; runs on the I/O loop.

    Raises:
        SourceNotFoundError: There is no such object.
        ReadError: It could not be read.
    """
    answer = await _get(href, 0, nbytes, signed, None)
    return Head(data=answer.data, size=answer.size, etag=answer.etag, last_modified=answer.last_modified)


async def read_all(href: str, *, max_bytes: int) -> bytes:
    """Return a whole small object; runs on the I/O loop.

    Raises:
        SourceNotFoundError: There is no such object.
        ReadError: It could not be read, or is larger than `max_bytes`.
    """
    name = redact(href)
    try:
        answer = await _ask(name, 0, max_bytes, href, None)
    except GivenUpError as error:
        if error.last.status == 416:
            return b""  # nothing has no first byte
        raise _read_error(name, 0, max_bytes, error) from None
    if answer.size > max_bytes:
        raise ReadError(name, f"has {answer.size} bytes; at most {max_bytes} are read")
    return bytes(answer.data)


async def _get(href: str, start: int, stop: int, signed: str | None, if_match: str | None) -> Answer:
    try:
        return await _ask(href, start, stop, signed, if_match)
    except GivenUpError as error:
        raise _read_error(href, start, stop, error) from None


async def _ask(href: str, start: int, stop: int, signed: str | None, if_match: str | None) -> Answer:
    try:
        store, path = locate(signed or href)
    except ReadError as error:
        raise type(error)(href, error.reason) from None  # named by what the user knows, never by what was signed
    get = functools.partial(store.get, path, start, stop, if_match=if_match)
    return await attempt(find_host(store.host), (href, start, stop), get)


def _read_error(href: str, start: int, stop: int, given_up: GivenUpError) -> ReadError:
    status, text, hint = given_up.last.status, given_up.last.text, given_up.last.hint
    if status == 404:
        return SourceNotFoundError(href, f"there is no such object (404){hint and '; '}{hint}")
    if status in (401, 403):
        hint = hint or "credentials are missing, expired or not enough"
        return ReadError(href, f"access denied ({status}): {hint}")
    if status == 412:
        return SourceChangedError.because(href, "its ETag is another one than when it was scanned (412)")
    if status == 409:
        return ReadError(href, "the object changed while it was read (409)")
    if status == 416:
        return ReadError(href, f"ends before byte {start}: it is empty, or was cut off after it was scanned")
    tried = f" after {given_up.attempts} attempts" if given_up.attempts > 1 else ""
    wait_s = given_up.last.retry_after_s
    wait = f", and wants to be left alone for {wait_s:.0f} s" if wait_s else ""
    return ReadError(href, f"bytes {start}-{stop - 1} could not be read{tried}: {text}{wait}{hint and '; '}{hint}")
