"""Peers as processes: found, started in environments of their own, asked, and ended."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Self, cast

import numpy as np

from benchmarks.archives import ROOT
from benchmarks.peers.protocol import Archive, Workload
from benchmarks.peers.worker import load_peer

FOLDER = Path(__file__).parent / "peers"
ENVIRONMENTS = ROOT / "envs"
OURS = ("cogcube", "cogcube_dask")
REFERENCES = ("floor", "zarr_copy", "zarr_rechunked")
"""What the numbers are held against: no systems to choose among."""
_SHARED = {"rioxarray_by_hand": "rioxarray_peer"}
"""Peers that run in the environment of another."""


class PeerError(Exception):
    """A peer cannot do what was asked of it; the text goes into the report."""


def names() -> list[str]:
    """Return the names of all peers: ours, the references, then the others in alphabetical order."""
    found = {path.stem for path in FOLDER.glob("*.py") if "\nPEER = " in path.read_text("utf-8")}
    return [*(name for name in (*OURS, *REFERENCES) if name in found), *sorted(found.difference(OURS, REFERENCES))]


def requirements(name: str) -> Path | None:
    """Return the file of what a peer's environment holds; None for one that runs in the project's own."""
    path = FOLDER / "requirements" / f"{_SHARED.get(name, name)}.txt"
    return path if path.exists() else None


def environment(name: str) -> Path:
    """Return the folder of a peer's environment, whether it is there or not."""
    return ENVIRONMENTS / _SHARED.get(name, name)


def failure_note(name: str) -> Path:
    """Return the file that says why an environment could not be made."""
    return ENVIRONMENTS / f"{_SHARED.get(name, name)}.failed.txt"


def python(name: str) -> str:
    """Return the interpreter that a peer runs on.

    Raises:
        PeerError: Its environment is not there, with the reason.
    """
    if requirements(name) is None:
        return sys.executable
    path = environment(name) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if path.exists():
        return str(path)
    note = failure_note(name)
    why = note.read_text("utf-8").strip() if note.exists() else "not made yet: `make bench-peers`"
    raise PeerError(f"no environment: {why}")


def import_peer(name: str) -> ModuleType:
    """Return the module of a peer that runs in the project's own environment, for use in this process."""
    load_peer(name)
    return sys.modules[f"peer_{name}"]


class PeerProcess:
    """A peer that is running; ends with the `with` block."""

    def __init__(
        self, name: str, log: Path, *, most_s: float = 300.0, settings: Mapping[str, str] | None = None
    ) -> None:
        """Take the peer's name, a file for what it prints, seconds until an answer is given up, and its variables."""
        self.name = name
        self.facts: dict[str, Any] = {}
        """Name, settings, versions and python, as it says itself."""
        self._log, self._most_s, self._settings = log, most_s, settings or {}
        self._known: str | None = None
        self._answer = log.with_suffix(".npy")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Settings of this shell would make peers differ from machine to machine: they choose their own.
        left_out = ("CUBE_", "GDAL_", "ZARR_", "DASK_", *(("PYTHON",) if requirements(self.name) else ()))
        kept = {key: value for key, value in os.environ.items() if not key.startswith(left_out)} | self._settings
        command = [python(self.name), "-P", str(FOLDER / "worker.py"), self.name]
        with self._log.open("wb") as log:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=kept, cwd=ROOT)
        try:
            self.facts = self._receive()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._answer.unlink(missing_ok=True)
        if self._process is not None:
            self._process.kill()
            with self._process:
                self._process = None

    def supports(self, workload: Workload) -> str | None:
        """Return None, or why the peer cannot do a workload."""
        return cast("str | None", self._ask(do="supports", workload=dataclasses.asdict(workload))["reason"])

    def prepare(self, archive: Archive, folder: Path) -> dict[str, str]:
        """Return the extras that the peer makes of an archive."""
        folder.mkdir(parents=True, exist_ok=True)
        found = self._ask(do="prepare", archive=dataclasses.asdict(archive), folder=str(folder))
        return cast("dict[str, str]", found["extras"])

    def open(self, archive: Archive) -> float:
        """Open an archive and return the seconds it took."""
        return float(self._ask(do="open", archive=dataclasses.asdict(archive))["seconds"])

    def run(self, workload: Workload) -> Mapping[str, Any]:
        """Run a workload and return `seconds`, `cpu_seconds` and `peak_bytes`."""
        return self._ask(do="run", workload=dataclasses.asdict(workload))

    def answer(self) -> np.ndarray | None:
        """Return the answer of the last run; None where it equals the one that was returned last."""
        found = self._ask(do="check", answer=str(self._answer), unless=self._known)
        self._known = found["digest"]
        return np.load(self._answer, mmap_mode="r") if found["saved"] else None

    def _ask(self, **command: Any) -> dict[str, Any]:
        pipe = cast("IO[bytes]", self._running().stdin)
        try:
            pipe.write(json.dumps(command).encode() + b"\n")
            pipe.flush()
        except OSError:
            raise PeerError(self._ended()) from None
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        stream = cast("IO[bytes]", self._running().stdout)
        line, deadline = b"", time.monotonic() + self._most_s
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(deadline - time.monotonic()):
                    raise PeerError(f"no answer within {self._most_s:g} s")
                piece = os.read(stream.fileno(), 1 << 16)
                if not piece:
                    raise PeerError(self._ended())
                line += piece
        found = json.loads(line)
        if "error" in found:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(found["traceback"])
            raise PeerError(found["error"].strip().splitlines()[0][:300])
        return cast("dict[str, Any]", found)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise PeerError("is not running")
        return self._process

    def _ended(self) -> str:
        code = self._running().wait(timeout=30)
        said = self._log.read_text("utf-8", errors="replace").strip().splitlines()
        return f"ended with exit code {code}" + (f": {said[-1][:200]}" if said else "")
