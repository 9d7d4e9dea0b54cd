"""The server of an object store: one asyncio protocol a connection, and what all connections share."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import json
import os
import signal
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

from .behaviour import Behaviour, Draws, Link
from .counts import Tally
from .http import HEAD_BYTES, RefusalError, build_head, open_object, parse_head, plan_answer

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

    from .behaviour import Outcome
    from .http import Request

_PIECE_BYTES = 1 << 18  # of a body, read and handed to the socket at a time: what a slow client costs in memory
_LEAST_PIECE_BYTES, _PIECE_S = 1 << 10, 0.005  # where bandwidth is bounded, pieces of so many bytes or seconds
_RESET_AFTER_S = 0.005  # the piece before a reset in mid-body has left the process by then
_NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)  # closing sends RST


class _Store:
    """What the connections of a store share."""

    def __init__(self, root: str, behaviour: Behaviour, loop: asyncio.AbstractEventLoop) -> None:
        self.root, self.loop = root, loop
        self.tally = Tally()
        self.began_s = loop.time()
        self.behave(behaviour)

    def behave(self, behaviour: Behaviour) -> None:
        """Let requests that arrive from now on, and bodies that begin, be as `behaviour` says."""
        self.behaviour = behaviour
        self.draws = Draws(behaviour)
        total = behaviour.bandwidth.total
        self.link = Link(total) if total else None

    def answer_control(self, request: Request) -> bytes:
        """Return the body of the answer to a control, a request for a path under `/-/`."""
        match request.method, request.path:
            case "GET", "-/counts":
                return self.tally.to_json()
            case "GET", "-/records":
                return self.tally.records_to_json()
            case "POST", "-/reset":
                return self.tally.reset()
            case "GET", "-/behaviour":
                return json.dumps(dataclasses.asdict(self.behaviour)).encode()
            case "POST", "-/behaviour":
                try:
                    self.behave(self.behaviour.changed(json.loads(unquote(request.query))))
                except (TypeError, ValueError, AttributeError) as error:
                    raise RefusalError(HTTPStatus.BAD_REQUEST) from error
                return b""
        raise RefusalError(HTTPStatus.NOT_FOUND)


@dataclasses.dataclass(slots=True)
class _Exchange:
    """The request that a connection is busy with, and how far its answer is."""

    request: Request
    arrived_s: float
    fault: Outcome
    where: float
    outcome: Outcome = "left"
    answered_s: float | None = None
    status: int = 0
    retry_after_s: int | None = None

    def to_record(self, began_s: float) -> tuple[object, ...]:
        """Return the fields of a `Record`, with times since `began_s`."""
        request, answered_s = self.request, self.answered_s
        start, stop = (0, 0) if request.method == "HEAD" else request.wanted or (0, None)
        answered_s = None if answered_s is None else answered_s - began_s
        path, outcome = request.path, self.outcome
        arrived_s = self.arrived_s - began_s
        return arrived_s, answered_s, request.method, path, start, stop, self.status, outcome, self.retry_after_s


class _Connection(asyncio.Protocol):
    """One client connection: its requests are answered one after another, in their order."""

    def __init__(self, store: _Store) -> None:
        self._store, self._tally, self._loop = store, store.tally, store.loop
        self._inbox = bytearray()
        self._exchange: _Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = b""
        self._file: FileIO | None = None
        self._left = 0
        self._link: Link | None = None
        self._links: list[Link] = []
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_PIECE_BYTES)

    def connection_lost(self, _exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._end_exchange()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._loop.call_soon(self._send)  # asyncio ends a connection twice that is closed in here

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        if len(self._inbox) > HEAD_BYTES:
            self._transport.pause_reading()
        self._take_request()

    def _take_request(self) -> None:
        """Begin the next request, if the one before it is answered and there is a whole one."""
        end = self._inbox.find(b"\r\n\r\n")
        waiting = end < 0 and len(self._inbox) <= HEAD_BYTES
        if waiting or self._exchange is not None or self._paused or self._transport.is_closing():
            return
        try:
            request = parse_head(bytes(self._inbox[:end]))
        except RefusalError as refusal:
            self._transport.write(build_head(refusal.status, ["Content-Length: 0"], keep_alive=False))
            self._transport.close()
            return
        del self._inbox[: end + 4]
        if len(self._inbox) <= HEAD_BYTES:
            self._transport.resume_reading()
        self._begin_exchange(request)

    def _begin_exchange(self, request: Request) -> None:
        """Decide when and how a request is answered."""
        now_s = self._loop.time()
        if request.is_control:
            self._exchange = exchange = _Exchange(request, now_s, "answered", 0)
            delay_s = 0.0
        else:
            self._tally.begin(request.path)
            self._exchange = exchange = _Exchange(request, now_s, *self._store.draws.fate(now_s))
            delay_s = self._store.draws.delay_s()
        if exchange.fault == "hung":
            self._strike(exchange)
        else:
            self._timer = self._loop.call_later(delay_s, self._answer, exchange)

    def _answer(self, exchange: _Exchange) -> None:
        """Make the head of an answer and send it with what follows."""
        request, self._timer = exchange.request, None
        try:
            if request.is_control:
                body = self._store.answer_control(request)
                lines = ["Content-Type: application/json", f"Content-Length: {len(body)}"]
                self._head = build_head(HTTPStatus.OK, lines, keep_alive=request.keep_alive) + body
            elif exchange.fault == "reset" and exchange.where < 0.5:
                self._strike(exchange)
                self._reset()
                return
            else:
                self._open(exchange)
        except RefusalError as refusal:
            length = [] if refusal.status is HTTPStatus.NOT_MODIFIED else ["Content-Length: 0"]
            self._head = build_head(refusal.status, [*refusal.lines, *length], keep_alive=request.keep_alive)
            exchange.status = refusal.status.value
        if not request.is_control:
            exchange.answered_s = self._loop.time()
            self._tally.statuses[exchange.status] += 1
        self._send()

    def _open(self, exchange: _Exchange) -> None:
        """Open the object that was asked for and plan its answer, or raise a RefusalError."""
        request, fault, faults = exchange.request, exchange.fault, self._store.behaviour.faults
        if fault == "throttled":
            self._strike(exchange)
            exchange.retry_after_s = faults.retry_after_s
            lines = [] if faults.retry_after_s is None else [f"Retry-After: {faults.retry_after_s}"]
            raise RefusalError(HTTPStatus(faults.throttle_status), *lines)
        self._file = open_object(self._store.root, request.path)
        info = os.fstat(self._file.fileno())
        status, self._head, start, stop = plan_answer(request, info)
        size = stop - start
        if fault == "short" and status is HTTPStatus.PARTIAL_CONTENT and size > 1:
            self._strike(exchange)
            size = max(1, int(size * exchange.where))
            status, self._head, start, stop = plan_answer(request, info, most_bytes=size)
        elif size and fault in {"reset", "truncated"}:
            self._strike(exchange)
            # A reset in mid-body drew a half or more.
            size = int(size * (exchange.where if fault == "truncated" else exchange.where * 2 - 1))
        exchange.status = status.value
        self._tally.ranges.append((request.method, request.path, start, stop))
        self._file.seek(start)
        self._left = size
        self._choose_links()

    def _choose_links(self) -> None:
        """Take up the bandwidth that holds now."""
        rate = self._store.behaviour.bandwidth.connection
        if rate is None:
            self._link = None
        elif self._link is None or self._link.bytes_per_s != rate:
            self._link = Link(rate)
        self._links = [link for link in (self._link, self._store.link) if link is not None]

    def _send(self) -> None:
        """Send head and body, a piece at a time, until the socket asks to pause or a link is busy; then go on later."""
        while self._exchange is not None and (self._head or self._left) and not self._paused and self._timer is None:
            if not (self._links and self._left):
                self._write_piece(min(self._left, _PIECE_BYTES))
                continue
            begins = bool(self._head)
            self._transport.write(self._head)
            self._head = b""
            slowest = min(link.bytes_per_s for link in self._links)
            size = min(self._left, _PIECE_BYTES, max(_LEAST_PIECE_BYTES, int(slowest * _PIECE_S)))
            now_s = self._loop.time()
            due_s = max(link.reserve(now_s, size, begins=begins) for link in self._links)
            self._timer = self._loop.call_at(due_s, self._write_late_piece, size)
        self._take_request()

    def _write_late_piece(self, size: int) -> None:
        self._timer = None
        self._write_piece(size)
        self._send()

    def _write_piece(self, size: int) -> None:
        head = len(self._head)
        piece = bytearray(head + size)  # one buffer and one write: a small answer is one packet train
        piece[:head] = self._head
        if self._file is not None and size and self._file.readinto(memoryview(piece)[head:]) != size:
            self._transport.abort()  # the file has shrunk: what was announced cannot be sent
            return
        self._head = b""
        self._left -= size
        self._tally.bytes += size
        self._transport.write(piece)
        if not self._left:
            self._finish()

    def _finish(self) -> None:
        """End an exchange whose last byte is written, the way its fault wants it."""
        exchange = cast("_Exchange", self._exchange)
        if exchange.outcome == "truncated":
            self._transport.close()  # and connection_lost ends the exchange
        elif exchange.outcome == "reset":
            self._timer = self._loop.call_later(_RESET_AFTER_S, self._reset)
        else:
            if exchange.outcome == "left":
                exchange.outcome = "answered"
            self._end_exchange()

    def _strike(self, exchange: _Exchange) -> None:
        """Note that the fault that was drawn takes place."""
        exchange.outcome = exchange.fault
        self._tally.faults[exchange.fault] += 1

    def _reset(self) -> None:
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    def _end_exchange(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        request = exchange.request
        if not request.is_control:
            self._tally.end(exchange.to_record(self._store.began_s))
        if not request.keep_alive:
            self._transport.close()


async def serve(root: Path, behaviour: Behaviour, port: int, *, until_stdin_closes: bool) -> None:
    """Serve the files under `root` on 127.0.0.1 and print the URL; does not return."""
    loop = asyncio.get_running_loop()
    connect = functools.partial(_Connection, _Store(str(root), behaviour, loop))
    server = await loop.create_server(connect, "127.0.0.1", port, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)  # noqa: T201 (the parent reads it)
    if until_stdin_closes:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and a notebook's interrupt are the parent's business
        await loop.run_in_executor(None, os.read, 0, 1)
        os._exit(0)  # clients are still connected, and nothing is left to write
    await server.serve_forever()


def run(root: Path, behaviour: Behaviour, port: int, *, until_stdin_closes: bool) -> None:
    """Serve until interrupted, on uvloop where that is installed; OSError where the port cannot be had."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has neither the module nor the limit
        resource = importlib.import_module("resource")
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (8192 if hard < 0 else min(8192, hard), hard))
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):
        new_loop = importlib.import_module("uvloop").new_event_loop
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(root, behaviour, port, until_stdin_closes=until_stdin_closes))
