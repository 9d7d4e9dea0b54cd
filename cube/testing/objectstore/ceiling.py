"""What the object store itself can do on a machine, measured with a client that does nothing but read."""

from __future__ import annotations

import selectors
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from . import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable

_CONNECTIONS = 64
_BODY_BYTES = (1_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What the store can do at most with bodies of one size."""

    body_bytes: int
    requests_per_s: float
    store_cpu_s: float
    """Processor seconds of the store's process, a request."""
    client_share: float
    """Processor seconds of the client, a second: near 1 it is the client that limits."""


def measure(url: str, path: str, body_bytes: int, *, store_cpu_s: Callable[[], float], seconds: float = 2.0) -> Ceiling:
    """Ask for the first `body_bytes` of `path` over 64 connections, on each again as soon as they are there.

    `store_cpu_s` returns the processor seconds that the store at `url` has spent until now.
    """
    request = f"GET /{path} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-{body_bytes - 1}\r\n\r\n".encode()
    address = (urlsplit(url).hostname, urlsplit(url).port)
    buffer = bytearray(1 << 20)
    with selectors.DefaultSelector() as selector:
        connections = [socket.create_connection(address, timeout=30) for _ in range(_CONNECTIONS)]
        for connection in connections:
            connection.sendall(request)
            selector.register(connection, selectors.EVENT_READ)
        left, answers = dict.fromkeys(connections, 0), 0
        cpu_s, client_s, began = store_cpu_s(), time.process_time(), time.perf_counter()
        while (elapsed_s := time.perf_counter() - began) < seconds:
            for key, _ in selector.select(1):
                connection = cast("socket.socket", key.fileobj)
                received = connection.recv_into(buffer)
                if not left[connection]:
                    head = buffer.find(b"\r\n\r\n", 0, received) + 4
                    if not buffer.startswith(b"HTTP/1.1 206") or head < 4:
                        raise RuntimeError(f"{url}/{path} answered {bytes(buffer[:received][:100])!r}")
                    left[connection] = head + body_bytes
                left[connection] -= received
                if not left[connection]:
                    answers += 1
                    connection.sendall(request)
        client_s = time.process_time() - client_s
        cpu_s = store_cpu_s() - cpu_s
        for connection in connections:
            connection.close()
    return Ceiling(
        body_bytes=body_bytes,
        requests_per_s=answers / elapsed_s,
        store_cpu_s=cpu_s / answers,
        client_share=client_s / elapsed_s,
    )


def print_ceiling() -> None:
    """Measure a store of a temporary folder and print a table."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "object").write_bytes(bytes(max(_BODY_BYTES)))
        with ObjectStore(folder) as store:
            print(f"{'body bytes':>10} {'requests/s':>10} {'MB/s':>6} {'us of CPU a request':>19} {'client busy':>11}")  # noqa: T201
            for size in _BODY_BYTES:
                found = measure(store.url, "object", size, store_cpu_s=lambda: store.counts().cpu_s)
                print(  # noqa: T201
                    f"{size:10,} {found.requests_per_s:10,.0f} {found.requests_per_s * size / 1e6:6,.0f}"
                    f" {found.store_cpu_s * 1e6:19.0f} {found.client_share:11.0%}"
                )
                store.reset()
