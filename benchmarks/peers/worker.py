"""One peer as a process that takes commands: `python -P worker.py NAME`, JSON lines in, one JSON line out a command.

    {"do": "supports", "workload": {...}}                       -> {"reason": null}
    {"do": "prepare", "archive": {...}, "folder": "..."}        -> {"extras": {...}}
    {"do": "open", "archive": {...}}                            -> {"seconds": 0.1}
    {"do": "run", "workload": {...}}                            -> {"seconds": 0.1, "cpu_seconds": 0.2, "peak_bytes": 1}
    {"do": "check", "answer": "a.npy", "unless": "digest"}      -> {"digest": "...", "saved": true}

The first line, unasked, says who it is: {"name", "settings", "versions", "python"}; instead of an answer there may be
{"error": "...", "traceback": "..."}. "check" saves the answer of the last run, unless its digest is the one given.
Runs in the peer's environment: the standard library and numpy alone are imported here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

import numpy as np

HERE = Path(__file__).parent


def load_peer(name: str) -> Any:
    """Return the PEER of a module in this folder.

    Peers are called as the libraries that they use. So the module is loaded by its path under another name, and the
    folder stands last on the path: `import stackstac` finds the library, `from protocol import Archive` our file.
    """
    if str(HERE) not in sys.path:
        sys.path.append(str(HERE))
    spec = importlib.util.spec_from_file_location(f"peer_{name}", HERE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"there is no peer {name} in {HERE}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.PEER


def versions(name: str, peer: Any) -> dict[str, str]:
    """Return the versions of the distributions that a peer stands on."""
    packages = tuple(getattr(peer, "packages", ()))
    file = HERE / "requirements" / f"{name}.txt"
    if not packages and file.exists():
        found = (re.match(r"[A-Za-z0-9._-]+", line) for line in file.read_text("utf-8").splitlines())
        packages = tuple(match[0] for match in found if match)
    known = {}
    for package in packages:
        try:
            known[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            known[package] = "absent"
    return known


def peak_bytes() -> int:
    """Return the most memory that this process ever held."""
    # A child's ru_maxrss begins at what its parent held when it was started; VmHWM begins anew.
    try:
        status = Path("/proc/self/status").read_text("ascii")
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


class Worker:
    """A peer and what it was given."""

    def __init__(self, peer: Any) -> None:
        from protocol import Archive, Workload

        self._peer, self._archive_type, self._workload_type = peer, Archive, Workload
        self._archive: Any = None
        self._answer: Any = None

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to one command."""
        return getattr(self, f"do_{command.pop('do')}")(**command)

    def do_supports(self, workload: dict[str, Any]) -> dict[str, Any]:
        wanted = self._workload(workload)
        if wanted.kind == "mosaic" and not hasattr(self._peer, "mosaic"):
            return {"reason": "not offered: joins no scenes of several grids"}
        return {"reason": self._peer.supports(wanted)}

    def do_prepare(self, archive: dict[str, Any], folder: str) -> dict[str, Any]:
        prepare = getattr(self._peer, "prepare", None)
        return {"extras": {} if prepare is None else prepare(self._archive_of(archive), folder)}

    def do_open(self, archive: dict[str, Any]) -> dict[str, Any]:
        self._archive = self._archive_of(archive)
        began = time.perf_counter()
        self._peer.open(self._archive)
        return {"seconds": time.perf_counter() - began}

    def do_run(self, workload: dict[str, Any]) -> dict[str, Any]:
        wanted, self._answer = self._workload(workload), None
        cpu, began = time.process_time(), time.perf_counter()
        if wanted.kind == "open":
            self._peer.open(self._archive)
        self._answer = self._peer.mosaic(wanted) if wanted.kind == "mosaic" else self._peer.run(wanted)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak_bytes()}

    def do_check(self, answer: str, unless: str | None = None) -> dict[str, Any]:
        found, self._answer = np.ascontiguousarray(np.asarray(self._answer)), None
        content = found.view("u1").data if found.size else b""
        digest = hashlib.blake2b(content, digest_size=16, key=str((found.shape, found.dtype)).encode()).hexdigest()
        if digest != unless:
            np.save(answer, found, allow_pickle=False)
        return {"digest": digest, "saved": digest != unless}

    def _archive_of(self, fields: dict[str, Any]) -> Any:
        lists = {name: tuple(fields[name]) for name in ("shape", "transform")}
        return self._archive_type(**fields | lists)

    def _workload(self, fields: dict[str, Any]) -> Any:
        window = fields.get("window")
        lists: dict[str, Any] = {name: tuple(fields.get(name, ())) for name in ("bands", "clear", "target")}
        lists["chips"] = tuple(tuple(chip) for chip in fields.get("chips", ()))
        return self._workload_type(**fields | lists | {"window": None if window is None else tuple(window)})


def answers_to() -> IO[str]:
    """Return a stream to the parent; from now on, what libraries print goes to stderr."""
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8", buffering=1)


def failure(error: BaseException) -> dict[str, str]:
    """Return an error as an answer."""
    return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def main() -> None:
    """Answer commands until stdin closes."""
    out, name = answers_to(), sys.argv[1]

    def answer(value: dict[str, Any]) -> None:
        out.write(json.dumps(value) + "\n")
        out.flush()

    try:
        peer = load_peer(name)
        worker = Worker(peer)
        known = versions(name, peer)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this row of the report
        answer(failure(error))
        return
    answer({"name": peer.name, "settings": peer.settings, "versions": known, "python": platform.python_version()})
    for line in sys.stdin:
        try:
            found = worker.do(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the same
            found = failure(error)
        answer(found)
    os._exit(0)  # some libraries hang in their own clean-up


if __name__ == "__main__":
    main()
