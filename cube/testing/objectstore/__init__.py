"""An object store in a process of its own: as slow and as troubled as is asked for, counting exactly what it is asked.

It must not be the bottleneck of what is measured against it. It works on one core, a request for 1 kB took it 40 us,
one for 100 kB 60 us and one for 1 MB 330 us on a small virtual machine, with uvloop (up to twice that without): at most
20,000 requests a second, or 14,000 of 100 kB, 1,400 MB. `python -m cube.testing.objectstore --ceiling` measures it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, cast
from urllib.parse import quote

from .behaviour import Bandwidth, Behaviour, Faults, Latency, Outcome
from .counts import Counts, Record, parse_counts, parse_records

if TYPE_CHECKING:
    from cube.errors import CubeError

__all__ = ["Bandwidth", "Counts", "Faults", "Latency", "ObjectStore", "Outcome", "Record"]

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ObjectStore:
    """Serves the files under `root` over HTTP, read-only, from a process of its own, for the length of a `with` block.

    GET and HEAD with Range, ETag, If-Match, If-None-Match and If-Range. The first byte of an answer leaves `latency_s`
    seconds after its request came, or what is drawn from `latency`, for any number of requests at once. Links under
    `root` are followed. Without `bandwidth` and `faults` it is as fast as the machine and nothing goes wrong. All that
    is drawn comes from `seed`, for each request in the order of arrival.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        latency_s: float = 0.0,
        *,
        latency: Latency | None = None,
        bandwidth: Bandwidth | None = None,
        faults: Faults | None = None,
        seed: int = 0,
    ) -> None:
        self._root = Path(root).absolute()
        self._url = ""
        self._process: subprocess.Popen[str] | None = None
        if latency is not None and latency_s:
            raise self._error("cannot have both latency_s and latency")
        self._behaviour = Behaviour(
            latency=latency or Latency(latency_s),
            bandwidth=bandwidth or Bandwidth(),
            faults=faults or Faults(),
            seed=seed,
        )

    @property
    def url(self) -> str:
        """The address of `root`, without a trailing slash."""
        if not self._url:
            raise self._error("is not running; use it in a `with` block")
        return self._url

    def counts(self) -> Counts:
        """Return the counts since the start or the last reset."""
        return parse_counts(self._control("GET", "/-/counts"))

    def records(self) -> tuple[Record, ...]:
        """Return what became of each request since the start or the last reset, in the order of arrival.

        The last 100,000 that are done with; a request that is never answered is done with when its client leaves.
        """
        return parse_records(self._control("GET", "/-/records"))

    def reset(self) -> None:
        """Set all counts to zero and forget the records."""
        self._control("POST", "/-/reset")

    def behave(
        self,
        *,
        latency: Latency | None = None,
        bandwidth: Bandwidth | None = None,
        faults: Faults | None = None,
        seed: int | None = None,
    ) -> None:
        """Change how requests that arrive from now on are answered, and draw from the start again.

        What is not given stays as it is: `behave(faults=Faults())` ends the faults alone.
        """
        parts = {"latency": latency, "bandwidth": bandwidth, "faults": faults}
        given: dict[str, object] = {name: dataclasses.asdict(part) for name, part in parts.items() if part is not None}
        if seed is not None:
            given["seed"] = seed
        self._control("POST", f"/-/behaviour?{quote(json.dumps(given))}")

    def __enter__(self) -> Self:
        if not self._root.is_dir():
            raise self._error("cannot start: there is no such folder")
        command = [sys.executable, "-P", str(Path(__file__).with_name("__main__.py")), str(self._root)]
        pipe = subprocess.PIPE
        command.append("--until-stdin-closes")
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)  # noqa: S603 (our own file)
        try:
            self._url = self._read_url(self._process, timeout_s=30)
            if self._behaviour != Behaviour():
                self._control("POST", f"/-/behaviour?{quote(json.dumps(dataclasses.asdict(self._behaviour)))}")
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
