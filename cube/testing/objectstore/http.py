"""What an object store understands of HTTP: the head of a request, and the head of its answer (RFC 9110, 13 and 14)."""

from __future__ import annotations

import functools
import os
import re
import stat
from email.utils import formatdate
from http import HTTPStatus
from io import FileIO
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD_BYTES = 1 << 16  # the longest request head
_BEYOND = 10**18  # of any object
_REQUEST_LINE = re.compile(r"([A-Z]+) /(\S*) HTTP/1\.([01])")
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")
_http_date = functools.lru_cache(maxsize=1024)(functools.partial(formatdate, usegmt=True))


class RefusalError(Exception):
    """A request that gets a status, header `lines` and no object."""

    def __init__(self, status: HTTPStatus, *lines: str) -> None:
        super().__init__(status)
        self.status, self.lines = status, lines


class Request(NamedTuple):
    """The head of a request; a tuple, because one is made for each and a frozen dataclass takes 2 us more."""

    method: str
    path: str
    """Decoded, without the leading slash."""
    query: str
    headers: Mapping[str, str]
    """By lower-case name."""
    wanted: tuple[int, int | None] | None
    """(start, stop) as in `body[start:stop]`; None, so the whole, for a Range that is malformed, multiple or absent."""
    keep_alive: bool
    is_control: bool


def parse_head(head: bytes) -> Request:
    """Return the request whose head, without the empty line, is `head`."""
    if len(head) >= HEAD_BYTES:
        raise RefusalError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    first, *lines = head.decode("latin-1").split("\r\n")
    request_line = _REQUEST_LINE.fullmatch(first)
    if request_line is None or not all(":" in line for line in lines):
        raise RefusalError(HTTPStatus.BAD_REQUEST)
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)  # nothing that is served here takes a body
    method, target, version = request_line.groups()
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection and (version == "1" or "keep-alive" in connection)
    path, _, query = target.partition("?")
    path = os.fsdecode(unquote_to_bytes(path))
    wanted = _parse_range(headers["range"]) if "range" in headers and method == "GET" else None
    return Request(method, path, query, headers, wanted, keep_alive, path.startswith("-/"))


def _parse_range(field: str) -> tuple[int, int | None] | None:
    match = _RANGE.fullmatch(field)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix:
        return -int(suffix) or _BEYOND, None  # the last 0 bytes are nothing, where body[-0:] is everything
    start, stop = int(first), int(last) + 1 if last else None
    return None if stop is not None and stop <= start else (start, stop)


def open_object(root: str, path: str) -> FileIO:
    """Open the file at `path` under `root`; a path that leaves the root is forbidden, one not in normal form absent."""
    parts = path.split("/")
    if ".." in parts or "\0" in path or any(os.sep in part or os.path.splitdrive(part)[0] for part in parts):
        raise RefusalError(HTTPStatus.FORBIDDEN)
    file = os.path.join(root, *parts)  # noqa: PTH118 (pathlib costs more than the read)
    try:
        if {"", "."}.intersection(parts) or not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116 (the same)
            raise RefusalError(HTTPStatus.NOT_FOUND)
        return FileIO(file)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise RefusalError(HTTPStatus.NOT_FOUND if absent else HTTPStatus.INTERNAL_SERVER_ERROR) from error


def plan_answer(
    request: Request, info: os.stat_result, most_bytes: int | None = None
) -> tuple[HTTPStatus, bytes, int, int]:
    """Return status and head of the answer to a GET or HEAD, and the start and stop of its body.

    A range gets its first `most_bytes` bytes at most.
    """
    if request.method not in {"GET", "HEAD"}:
        raise RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
    size, headers = info.st_size, request.headers
    etag = f'"{size:x}-{info.st_mtime_ns:x}"'
    modified = _http_date(int(info.st_mtime))
    lines = [f"ETag: {etag}", f"Last-Modified: {modified}", "Accept-Ranges: bytes"]
    if "if-match" in headers and not {etag, "*"}.intersection(re.split(r"[\s,]+", headers["if-match"])):
        raise RefusalError(HTTPStatus.PRECONDITION_FAILED)
    unless = headers.get("if-none-match", "").replace("W/", "")
    if unless and {etag, "*"}.intersection(re.split(r"[\s,]+", unless)):
        raise RefusalError(HTTPStatus.NOT_MODIFIED, *lines)
    status, start, stop = HTTPStatus.OK, 0, size
    if request.wanted and headers.get("if-range", etag) in {etag, modified}:
        status = HTTPStatus.PARTIAL_CONTENT
        first, end = request.wanted
        start, stop = max(0, size + first) if first < 0 else first, size if end is None else min(size, end)
        if start >= size:
            raise RefusalError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"Content-Range: bytes */{size}")
        stop = stop if most_bytes is None else min(stop, start + most_bytes)
        lines.append(f"Content-Range: bytes {start}-{stop - 1}/{size}")
    lines += ["Content-Type: application/octet-stream", f"Content-Length: {stop - start}"]
    head = build_head(status, lines, keep_alive=request.keep_alive)
    return (status, head, 0, 0) if request.method == "HEAD" else (status, head, start, stop)


def build_head(status: HTTPStatus, lines: list[str], *, keep_alive: bool) -> bytes:
    """Return the head of an answer, the empty line included."""
    if not keep_alive:
        lines = [*lines, "Connection: close"]
    return "\r\n".join([f"HTTP/1.1 {status.value} {status.phrase}", *lines, "\r\n"]).encode("latin-1")
