"""What a store gives for a range request, whatever client asked: an answer, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

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
