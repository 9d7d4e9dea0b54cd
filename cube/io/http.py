"""Objects behind HTTP, through reqwest: an answer costs half the CPU of obstore's, and its headers can be read."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from pyreqwest.bytes import Bytes
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import (
    BuilderError,
    DetailedPyreqwestError,
    PyreqwestError,
    RedirectError,
    RequestTimeoutError,
)
from pyreqwest.response import Response

from cube.io import loop
from cube.io.answer import TRANSIENT, Answer, Buffer, RefusedError, connection_error, first_line
from cube.settings import get_settings

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SMALL_BYTES = 64 * 1024
"""A refusal's body up to this size is read, so that its connection can be used again."""


@functools.lru_cache(maxsize=1024)
def http_store(url: str) -> HttpStore:
    """Return the store of a URL's host."""
    return HttpStore(url)


class HttpStore:
    """One host; a path is the full URL.

    Raises:
        ValueError: The URL has no host, or a port that is none.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("empty host")
        port = "" if parts.port is None else f":{parts.port}"  # raises for one that is none
        self._host = f"{parts.scheme}://{parts.hostname}{port}"

    @property
    def host(self) -> str:
        """Scheme, name and port."""
        return self._host

    async def get(
        self,
        path: str,
        start: int,
        stop: int,
        *,
        if_match: str | None = None,
        on_head: Callable[[], None] | None = None,
    ) -> Answer:
        """Return the bytes start:stop of an object; see `Store`."""
        wanted = stop - start
        began = time.perf_counter()
        try:
            # The limit is what the body's buffer holds: with less, it comes in pieces that are joined by a copy.
            request = (
                _client().get(path).streamed_read_buffer_limit(wanted).header("range", f"bytes={start}-{stop - 1}")
            )
            if if_match is not None:
                request = request.header("if-match", if_match)
            async with request.build_streamed() as response:
                first_byte_s = time.perf_counter() - began
                if on_head is not None:
                    on_head()
                size = await _size(response, start, stop)
                data = await _body(response, wanted)
        except PyreqwestError as error:
            raise _failure(error) from None
        etag, modified = response.get_header("etag"), response.get_header("last-modified")
        return Answer(
            data=data,
            size=start + len(data) if size is None else size,
            etag=etag.strip('"') if etag else None,
            last_modified=_parse_date(modified) if modified else None,
            first_byte_s=first_byte_s,
        )


def _client() -> Client:
    """Return the process's client: one pool of connections for all hosts, tasks and threads."""
    return loop.loop_state("http", _make_client, close=Client.close)


def _make_client() -> Client:
    settings = get_settings()
    return (
        ClientBuilder()
        # A connection a request in flight: HTTP/2 would put all of them on one, and its bandwidth.
        .http1_only()
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .connect_timeout(timedelta(seconds=settings.connect_timeout_s))
        .read_timeout(timedelta(seconds=settings.timeout_s))
        .timeout(timedelta(seconds=settings.timeout_s))
        .pool_max_idle_per_host(settings.requests_in_flight)
        .user_agent("cogcube")
        .build()
    )


async def _size(response: Response, start: int, stop: int) -> int | None:
    """Return the size of the whole object, None where it is not said; raise for what is no answer to the request."""
    status = response.status
    length = response.get_header("content-length")
    nbytes = int(length) if length is not None and length.isdecimal() else None
    if status == 206:
        found = _CONTENT_RANGE.match(response.get_header("content-range") or "")
        if found is None or int(found[1]) != start or (nbytes or 0) > stop - start:
            raise RefusedError("its answer is of another range than was asked for", status=status, is_transient=False)
        return None if found[2] == "*" else int(found[2])
    if status == 200:
        if start or (nbytes or 0) > stop:
            has = "" if nbytes is None else f" and the object has {nbytes} bytes"
            text = f"the server ignores Range requests{has}: only the whole object could be read"
            raise RefusedError(text, status=status, is_transient=False)
        return nbytes
    if nbytes and nbytes <= _SMALL_BYTES:
        await response.bytes()
    raise RefusedError(
        f"the store answered {status}",
        status=status,
        retry_after_s=_retry_after(response.get_header("retry-after")),
        is_transient=status in TRANSIENT,
    )


async def _body(response: Response, wanted: int) -> Buffer:
    """Return the body; a server that does not say how long it is cannot send more than was asked for."""
    if response.get_header("content-length") is not None:
        return memoryview(await response.bytes()).toreadonly()
    pieces: list[Bytes] = []
    reader = response.body_reader
    while (piece := await reader.read(wanted + 1)) is not None and len(piece):
        pieces.append(piece)
        if sum(map(len, pieces)) > wanted:
            text = "the server ignores Range requests and does not say how long the object is"
            raise RefusedError(text, is_transient=False)
    return memoryview(b"".join(pieces))


def _failure(error: PyreqwestError) -> RefusedError:
    if isinstance(error, (BuilderError, RedirectError)):
        return RefusedError(_reason(error), is_transient=False)
    return connection_error("timed out" if isinstance(error, RequestTimeoutError) else _reason(error))


def _reason(error: PyreqwestError) -> str:
    causes = error.details.get("causes") if isinstance(error, DetailedPyreqwestError) else None
    return first_line(causes[-1]["message"] if causes else error.message)


def _retry_after(field: str | None) -> float | None:
    """Return the seconds of a Retry-After field (RFC 9110, 10.2.3): a number, or a date."""
    if field is None:
        return None
    if field.strip().isdecimal():
        return float(field)
    when = _parse_date(field)
    return None if when is None else max(0.0, (when - datetime.now(UTC)).total_seconds())


@functools.lru_cache(maxsize=4096)
def _parse_date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
