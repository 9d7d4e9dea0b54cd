"""The server as a process' business: `serve` until interrupted, or `serving` beside other work."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping

import uvicorn
from starlette.types import ASGIApp

from cube.catalog import Entry
from cube.errors import CubeError
from server.app import create_app
from server.settings import ServerSettings

_GRACE_S = 5
"""For answers under way when the server ends."""


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def serve(
    catalog: str | os.PathLike[str] | Mapping[str, Entry],
    *,
    host: str = "127.0.0.1",
    port: int = 9000,
    ready: Callable[[str], None] | None = None,
    settings: ServerSettings | None = None,
) -> None:
    """Serve a catalogue's cubes until interrupted (Ctrl-C); prints nothing.

    Args:
        catalog: The file, or its entries by name.
        host: The address to listen on; 127.0.0.1 serves this machine alone.
        port: 0 takes any free one.
        ready: Called with the server's URL once it listens.
        settings: From the environment where None.

    Raises:
        CatalogError: The catalogue cannot be read.
        CubeError: The port cannot be used.
    """
    app = create_app(catalog, settings=settings)
    with contextlib.closing(_listen(host, port)) as listener:
        url = _url(listener)
        server = _Server(_config(app), lambda: ready(url) if ready is not None else None)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])


@contextlib.contextmanager
def serving(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve an application on a thread of this process until the block ends; errors as in `serve`.

    Yields:
        The server's URL.
    """
    with contextlib.closing(_listen(host, port)) as listener:
        listening = threading.Event()
        server = _Server(_config(app), listening.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="cube-server", daemon=True)
        thread.start()
        while not listening.wait(0.05):
            if not thread.is_alive():
                raise CubeError("the server ended before it listened; its log says why")
        try:
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Not socket.create_server(): it leaves the protocol out, by which asyncio knows TCP and turns Nagle's delay off.
    # Without that, head and body of an answer are 40 ms apart.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere the option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
        return listener
    except OSError as error:
        listener.close()
        raise CubeError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another (--port, 0 takes any)"
        ) from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
