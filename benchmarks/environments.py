"""Environments of the peers, one each: `make bench-peers`. One that cannot be made leaves a note and an open row."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import processes

_UV = Path(__file__).parent.parent / ".tools/uv/bin/uv"
_STAMP = "requirements.txt"  # what the environment was made of


def make_environment(name: str, requirements: Path) -> str | None:
    """Make or update a peer's environment; return None, or why it cannot be made."""
    folder, note = processes.environment(name), processes.failure_note(name)
    wanted = f"{sys.version}\n{requirements.read_text('utf-8')}"
    stamp = folder / _STAMP
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    for command in _commands(folder, requirements):
        kept = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            reason = f"{' '.join(command[:3])} failed: {' '.join(lines)[:400]}"
            shutil.rmtree(folder, ignore_errors=True)
            note.write_text(reason, encoding="utf-8")
            return reason
    stamp.write_text(wanted, encoding="utf-8")
    return None


def _commands(folder: Path, requirements: Path) -> list[list[str]]:
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if _UV.exists():
        install = [str(_UV), "pip", "install", "--quiet", "--python", str(python), "-r", str(requirements)]
        return [[str(_UV), "venv", "--quiet", "--python", sys.executable, str(folder)], install]
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    return [[sys.executable, "-m", "venv", str(folder)], install]


def main() -> None:
    """Make the environments of the peers that are named, or of all."""
    for name in sys.argv[1:] or processes.names():
        requirements = processes.requirements(name)
        if requirements is not None:
            print(f"{name}: {make_environment(name, requirements) or processes.environment(name)}", flush=True)


if __name__ == "__main__":
    main()
