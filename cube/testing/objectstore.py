"""An object store that answers after a set time and counts exactly what it was asked, in a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import functools
import importlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, cast
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cube.errors import CubeError

# The child runs this file by its path and needs the standard library only: it starts in 0.1 s whatever `cube` imports,
# and a `cube.py` in the user's folder cannot take its place. So cube.errors is imported where an error is made.

_PIECE_BYTES = 1 << 18  # of a body, read and handed to the socket at a time: what a slow client costs in memory
_HEAD_BYTES = 1 << 16  # the longest request head
_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")
_http_date = functools.lru_cache(maxsize=1024)(functools.partial(formatdate, usegmt=True))
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What an object store was asked since it started or was last reset; reading and resetting do not count."""

    requests: int
    """Requests that arrived, whatever was answered."""
    bytes: int
    """Body bytes of objects that were sent; errors and HEAD have none."""
    paths: Mapping[str, int]
    """Requests by path, decoded, without the leading slash."""
    ranges: tuple[tuple[str, str, int, int], ...]
    """(method, path, start, stop) of each 200 and 206 in the order of answering, the last 100,000; HEAD says 0, 0."""
    max_in_flight: int
    """The most requests that were under way at one time."""


class ObjectStore:
    """Serves the files under `root` over HTTP, read-only, from a process of its own, for the length of a `with` block.

    GET and HEAD with Range, ETag, If-Match, If-None-Match and If-Range. The first byte of an answer leaves `latency_s`
    seconds after its request came, for any number of requests at once. Links under `root` are followed.
    """

    def __init__(self, root: str | os.PathLike[str], latency_s: float = 0.0) -> None:
        self._root = Path(root).absolute()
        self._latency_s = latency_s
        self._url = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The address of `root`, without a trailing slash."""
        if not self._url:
            raise self._error("is not running; use it in a `with` block")
        return self._url

    def counts(self) -> Counts:
        """Return the counts since the start or the last reset."""
        found = json.loads(self._control("GET", "/-/counts"))
        return Counts(ranges=tuple((m, path, start, stop) for m, path, start, stop in found.pop("ranges")), **found)

    def reset(self) -> None:
        """Set all counts to zero."""
        self._control("POST", "/-/reset")

    def __enter__(self) -> Self:
        if not self._root.is_dir():
            raise self._error("cannot start: there is no such folder")
        command = [sys.executable, "-P", __file__, str(self._root), "--until-stdin-closes"]
        command += ["--latency-ms", repr(self._latency_s * 1000)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)  # noqa: S603 (our own file)
        try:
            self._url = self._read_url(self._process, timeout_s=30)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None:
            self._process.kill()  # it only reads, so there is nothing to finish
            with self._process:
                self._url, self._process = "", None

    def _read_url(self, process: subprocess.Popen[str], *, timeout_s: float) -> str:
        lines: list[str] = []
        # A thread, because Windows cannot wait for a pipe with a timeout.
        reader = threading.Thread(target=lambda: lines.append(cast("IO[str]", process.stdout).readline()), daemon=True)
        reader.start()
        reader.join(timeout_s)
        if lines and lines[0].startswith("http://"):
            return lines[0].strip()
        what = "did not start" if lines else f"did not start within {timeout_s:g} s"
        if not lines or lines[0]:  # an empty line is an end of its own, whose exit code says more
            process.kill()
        reader.join()
        process.wait()
        raise self._error(what)

    def _control(self, method: str, path: str) -> bytes:
        try:
            with _OPENER.open(urllib.request.Request(self.url + path, method=method), timeout=30) as answer:  # noqa: S310
                return cast("bytes", answer.read())
        except OSError as error:
            raise self._error(f"does not answer ({error})") from error

    def _error(self, what: str) -> CubeError:
        from cube.errors import CubeError

        ended = self._process.poll() if self._process is not None else None
        why = "" if ended is None else f"; its process ended with exit code {ended} and may have said why on stderr"
        return CubeError(f"the object store for {self._root} {what}{why}")


class _Tally:
    """The counts as they grow."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> bytes:
        self.requests = self.bytes = 0
        self.max_in_flight = self.in_flight
        self.paths: collections.Counter[str] = collections.Counter()
        self.ranges: collections.deque[tuple[str, str, int, int]] = collections.deque(maxlen=100_000)
        return b""

    def begin(self, path: str) -> None:
        self.requests += 1
        self.paths[path] += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def to_json(self) -> bytes:
        counts = {name: value for name, value in vars(self).items() if name != "in_flight"}
        return json.dumps(counts, default=list).encode()


class _RefusalError(Exception):
    """A request that gets a status and no object."""

    def __init__(self, status: HTTPStatus, *lines: str) -> None:
        super().__init__(status)
        self.status, self.lines = status, lines


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    method: str
    path: str
    headers: Mapping[str, str]
    """By lower-case name."""
    keep_alive: bool
    is_control: bool


def _parse_head(head: bytes) -> _Request:
    """Return the request whose head, without the empty line, is `head`."""
    if len(head) >= _HEAD_BYTES:
        raise _RefusalError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    first, *lines = head.decode("latin-1").split("\r\n")
    request_line = re.fullmatch(r"([A-Z]+) /(\S*) HTTP/1\.([01])", first)
    if request_line is None or not all(":" in line for line in lines):
        raise _RefusalError(HTTPStatus.BAD_REQUEST)
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise _RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)  # nothing that is served here takes a body
    method, target, version = request_line.groups()
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection and (version == "1" or "keep-alive" in connection)
    path = os.fsdecode(unquote_to_bytes(target.partition("?")[0]))
    is_control = path.startswith("-/")
    return _Request(method=method, path=path, headers=headers, keep_alive=keep_alive, is_control=is_control)


def _open_object(root: str, path: str) -> FileIO:
    """Open the file at `path` under `root`; a path that leaves the root is forbidden, one not in normal form absent."""
    parts = path.split("/")
    if ".." in parts or "\0" in path or any(os.sep in part or os.path.splitdrive(part)[0] for part in parts):
        raise _RefusalError(HTTPStatus.FORBIDDEN)
    file = os.path.join(root, *parts)  # noqa: PTH118 (pathlib costs more than the read)
    try:
        if {"", "."}.intersection(parts) or not stat.S_ISREG(os.stat(file).st_mode):  # noqa: PTH116 (the same)
            raise _RefusalError(HTTPStatus.NOT_FOUND)
        return FileIO(file)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise _RefusalError(HTTPStatus.NOT_FOUND if absent else HTTPStatus.INTERNAL_SERVER_ERROR) from error


def _wanted_range(field: str, size: int) -> tuple[int, int] | None:
    """Return (start, stop) of a Range field; None, so the whole, for one that is malformed or multiple."""
    match = _RANGE.fullmatch(field)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        return None
    if match[3]:
        return max(0, size - int(match[3])), size
    return int(match[1]), min(size, int(match[2]) + 1) if match[2] else size


def _plan_answer(request: _Request, info: os.stat_result) -> tuple[bytes, int, int]:
    """Return the head of the answer to a GET or HEAD, and the start and stop of its body: RFC 9110, 13 and 14."""
    if request.method not in {"GET", "HEAD"}:
        raise _RefusalError(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
    size, headers = info.st_size, request.headers
    etag = f'"{size:x}-{info.st_mtime_ns:x}"'
    lines = [f"ETag: {etag}", f"Last-Modified: {_http_date(int(info.st_mtime))}", "Accept-Ranges: bytes"]
    if "if-match" in headers and not {etag, "*"}.intersection(re.split(r"[\s,]+", headers["if-match"])):
        raise _RefusalError(HTTPStatus.PRECONDITION_FAILED)
    unless = headers.get("if-none-match", "").replace("W/", "")
    if unless and {etag, "*"}.intersection(re.split(r"[\s,]+", unless)):
        raise _RefusalError(HTTPStatus.NOT_MODIFIED, *lines)
    status, wanted = HTTPStatus.OK, None
    if request.method == "GET" and headers.get("if-range", etag) == etag:
        wanted = _wanted_range(headers.get("range", ""), size)
    start, stop = wanted or (0, size)
    if wanted and start >= size:
        raise _RefusalError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"Content-Range: bytes */{size}")
    if wanted:
        status = HTTPStatus.PARTIAL_CONTENT
        lines.append(f"Content-Range: bytes {start}-{stop - 1}/{size}")
    lines += ["Content-Type: application/octet-stream", f"Content-Length: {stop - start}"]
    head = _head(status, lines, keep_alive=request.keep_alive)
    return (head, 0, 0) if request.method == "HEAD" else (head, start, stop)


def _head(status: HTTPStatus, lines: list[str], *, keep_alive: bool) -> bytes:
    if not keep_alive:
        lines = [*lines, "Connection: close"]
    return "\r\n".join([f"HTTP/1.1 {status.value} {status.phrase}", *lines, "\r\n"]).encode("latin-1")


class _Connection(asyncio.Protocol):
    """One client connection: its requests are answered one after another, in their order."""

    def __init__(self, root: str, latency_s: float, tally: _Tally, loop: asyncio.AbstractEventLoop) -> None:
        self._root, self._latency_s, self._tally, self._loop = root, latency_s, tally, loop
        self._inbox = bytearray()
        self._request: _Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = b""
        self._file: FileIO | None = None
        self._left = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_PIECE_BYTES)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._end_request()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._loop.call_soon(self._send_body)  # asyncio ends a connection twice that is closed in here

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        if len(self._inbox) > _HEAD_BYTES:
            self._transport.pause_reading()
        self._take_request()

    def _take_request(self) -> None:
        """Begin the next request, if the one before it is answered and there is a whole one."""
        end = self._inbox.find(b"\r\n\r\n")
        waiting = end < 0 and len(self._inbox) <= _HEAD_BYTES
        if waiting or self._request is not None or self._paused or self._transport.is_closing():
            return
        try:
            self._request = _parse_head(bytes(self._inbox[:end]))
        except _RefusalError as refusal:
            self._transport.write(_head(refusal.status, ["Content-Length: 0"], keep_alive=False))
            self._transport.close()
            return
        del self._inbox[: end + 4]
        if len(self._inbox) <= _HEAD_BYTES:
            self._transport.resume_reading()
        if not self._request.is_control:
            self._tally.begin(self._request.path)
        delay_s = 0 if self._request.is_control else self._latency_s
        self._timer = self._loop.call_later(delay_s, self._answer, self._request)

    def _answer(self, request: _Request) -> None:
        try:
            if request.is_control:
                self._head = self._answer_control(request)
            else:
                self._file = _open_object(self._root, request.path)
                self._head, start, stop = _plan_answer(request, os.fstat(self._file.fileno()))
                self._file.seek(start)
                self._left = stop - start
                self._tally.ranges.append((request.method, request.path, start, stop))
        except _RefusalError as refusal:
            length = [] if refusal.status is HTTPStatus.NOT_MODIFIED else ["Content-Length: 0"]
            self._head = _head(refusal.status, [*refusal.lines, *length], keep_alive=request.keep_alive)
        self._send_body()

    def _answer_control(self, request: _Request) -> bytes:
        controls = {("GET", "-/counts"): self._tally.to_json, ("POST", "-/reset"): self._tally.reset}
        if (control := controls.get((request.method, request.path))) is None:
            raise _RefusalError(HTTPStatus.NOT_FOUND)
        body = control()
        lines = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return _head(HTTPStatus.OK, lines, keep_alive=request.keep_alive) + body

    def _send_body(self) -> None:
        """Send head and body, a piece at a time until the socket asks to pause; resume_writing goes on."""
        while self._request is not None and (self._head or self._left) and not self._paused:
            head, size = len(self._head), min(self._left, _PIECE_BYTES)
            piece = bytearray(head + size)  # one buffer and one write: a small answer is one packet train
            piece[:head] = self._head
            if self._file is not None and self._file.readinto(memoryview(piece)[head:]) != size:
                self._transport.abort()  # the file has shrunk: what was announced cannot be sent
                return
            self._head = b""
            self._left -= size
            self._tally.bytes += size
            self._transport.write(piece)
            if not self._left:
                self._end_request()
        self._take_request()

    def _end_request(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._request is not None:
            self._tally.in_flight -= not self._request.is_control
            if not self._request.keep_alive:
                self._transport.close()
            self._request = None


async def _serve(root: Path, latency_s: float, port: int, until_stdin_closes: bool) -> None:
    loop = asyncio.get_running_loop()
    connect = functools.partial(_Connection, str(root), latency_s, _Tally(), loop)
    server = await loop.create_server(connect, "127.0.0.1", port, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201 (the parent reads it)
    if until_stdin_closes:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and a notebook's interrupt are the parent's business
        await loop.run_in_executor(None, os.read, 0, 1)
        os._exit(0)  # clients are still connected, and nothing is left to write
    await server.serve_forever()


def main(arguments: list[str] | None = None) -> None:
    """Serve a folder until interrupted: `python -m cube.testing.objectstore ROOT --latency-ms 50 --port 9001`."""
    parser = argparse.ArgumentParser(prog="python -m cube.testing.objectstore", description=__doc__)
    parser.add_argument("root", type=Path, help="the folder whose files are served")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="time to the first byte of each answer (0)")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one; the URL is printed")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that holds stdin open")
    given = parser.parse_args(arguments)
    if not given.root.is_dir():
        parser.error(f"there is no folder {given.root}")
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has neither the module nor the limit
        resource = importlib.import_module("resource")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192 if hard < 0 else min(8192, hard), hard))
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        new_loop = importlib.import_module("uvloop").new_event_loop
    try:
        with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_serve(given.root.absolute(), given.latency_ms / 1000, given.port, given.until_stdin_closes))
    except OSError as error:
        parser.exit(1, f"cannot listen on port {given.port}: {error}\n")


if __name__ == "__main__":
    main()
