"""The server as a process: it says where it listens, ends when told, and names a port that is taken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cube.errors import CubeError
from server.run import _listen, serve

CODE = """
import sys
from server.run import serve
serve(sys.argv[1], port=0, ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="an interrupt is sent another way on Windows")
def test_a_process_serves_until_it_is_interrupted(catalog: Path, client: Any) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CODE, str(catalog)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert client(url, "/health").status == 200
        assert client(url, "/datasets/scenes.zarr/red/c/0/1/1").status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "ended\n", "")


def test_a_port_that_is_taken_is_named(catalog: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CubeError, match=f"127.0.0.1 port {port}: .* choose another"):
            serve(catalog, port=port)


def test_answers_are_not_delayed() -> None:
    # By the protocol asyncio tells TCP and turns Nagle's algorithm off: without it an answer takes 40 ms.
    with _listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
