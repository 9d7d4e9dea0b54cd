"""What a store gives for a range request, whatever client asked: an answer, or a refusal."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses of what may succeed when it is tried again."""
_URL = re.compile(r"\w+://\S+")
_NO_SUCH_HOST = re.compile(r"not known|nodename nor servname|No such host")

type Buffer = memoryview
"""The bytes of one range, read-only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Bytes of an object, and what the store says of the object."""

    data: Buffer
    size: int
    """Bytes of the whole object."""
    etag: str | None
    """Without quotes; None where the store gives none."""
    last_modified: datetime | None
    first_byte_s: float
    """From the request to the head of the answer."""


class RefusedError(Exception):
    """A request that brought no bytes: the store refused it, or the connection failed.

    Args:
        text: Why, in one line, without the URL, which may be signed.
        status: The HTTP status; None where there was no answer.
        retry_after_s: Seconds that the store wants to be left alone; None where it does not say.
        is_transient: Whether it may succeed when it is tried again.
    """

    hint: str = ""
    """What the user may do about it, where the store knows: the end of a sentence, without secrets."""

    def __init__(
        self, text: str, *, status: int | None = None, retry_after_s: float | None = None, is_transient: bool
    ) -> None:
        super().__init__(text)
        self.text, self.status = text, status
        self.retry_after_s, self.is_transient = retry_after_s, is_transient

    @property
    def is_throttle(self) -> bool:
        """Whether the store asks for fewer requests."""
        return self.status in (429, 503)


def first_line(error: object) -> str:
    """Return the first line of an error without its URLs, which may be signed."""
    return _URL.sub("…", str(error).split("\n", 1)[0])


def connection_error(text: str) -> RefusedError:
    """Return the error of a connection that could not be made, or broke; an unknown host is not asked again."""
    return RefusedError(text, is_transient=_NO_SUCH_HOST.search(text) is None)


def require_whole(answer: Answer, start: int, stop: int) -> None:
    """Refuse an answer with fewer bytes than the object has of a range: the connection was cut off.

    Raises:
        RefusedError: It may be whole the next time.
    """
    stop = min(stop, answer.size)
    if len(answer.data) != stop - start:
        text = f"asked for bytes {start}-{stop - 1}, got {len(answer.data)}"
        raise RefusedError(text, is_transient=True)


class Store(Protocol):
    """A bucket, an account or a host: what shares a limit of requests and its credentials."""

    @property
    def host(self) -> str:
        """Name of the store, without secrets: requests are limited, and latencies kept, by it."""

    async def get(
        self,
        path: str,
        start: int,
        stop: int,
        *,
        if_match: str | None = None,
        on_head: Callable[[], None] | None = None,
    ) -> Answer:
        """Return the bytes start:stop of an object, fewer where it ends before `stop`; one request, never tried again.

        Args:
            path: Of the object, as `locate` gave it.
            start: First byte.
            stop: One past the last byte.
            if_match: The ETag, quoted, that the object must still have.
            on_head: Called when the head of the answer is there, and only its body is still to come.

        Raises:
            RefusedError: With `status` 404, 412, 416, 401, 403, ... as HTTP says, whatever the client's own errors are.
        """
