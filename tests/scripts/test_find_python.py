"""The search for a Python, over folders with shims and links made for the purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIM = "#!/bin/sh\necho 'python3.13: command not found' >&2\nexit 127\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def python_that_notes(note: Path) -> str:
    """A program that leaves a note and then is this Python."""
    return f'#!/bin/sh\n: >"{note}"\nexec "{sys.executable}" "$@"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home of a user"
    folder.mkdir()
    return folder


@pytest.fixture
def find_python(tmp_path: Path, home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the script of a project needing `minimum`, with only `path` on PATH."""

    def run(*path: Path, minimum: str = "3.12", **variables: str) -> subprocess.CompletedProcess[str]:
        project = tmp_path / "a project"
        shutil.copytree(ROOT / "scripts", project / "scripts")
        (project / "pyproject.toml").write_text(f'requires-python = ">={minimum}"\n', encoding="utf-8")
        # Not the system's folders, which may hold a Python, but the tools that the script needs.
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("cat", "dirname", "sed"):
            (tools / name).symlink_to(str(shutil.which(name)))
        environment = {"PATH": os.pathsep.join(map(str, (*path, tools))), "HOME": str(home), **variables}
        command = ["/bin/sh", str(project / "scripts" / "find-python.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def version_of(python: str) -> list[int]:
    code = "import sys; print(*sys.version_info[:2])"
    words = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return [int(word) for word in words]


def test_a_shim_that_fails_is_passed_over(tmp_path: Path, find_python) -> None:
    shims, programs, note = tmp_path / "shims", tmp_path / "more programs", tmp_path / "note"
    write_program(shims / "python3.13", SHIM)
    write_program(programs / "python3.13", python_that_notes(note))
    result = find_python(shims, programs)
    assert result.returncode == 0, result.stderr
    assert note.exists()
    assert version_of(result.stdout.strip()) == list(sys.version_info[:2])


def test_a_version_manager_is_searched(tmp_path: Path, home: Path, find_python) -> None:
    shims, note = tmp_path / "shims", tmp_path / "note"
    write_program(shims / "python3.13", SHIM)
    write_program(home / ".pyenv" / "versions" / "3.13.1" / "bin" / "python3.13", python_that_notes(note))
    result = find_python(shims)
    assert result.returncode == 0, result.stderr
    assert note.exists()


def test_none_says_what_was_found_and_what_to_install(tmp_path: Path, find_python) -> None:
    shim = write_program(tmp_path / "shims" / "python3.13", SHIM)
    old = tmp_path / "programs" / "python3"
    write_program(old, python_that_notes(tmp_path / "note"))
    result = find_python(shim.parent, old.parent, minimum="3.99")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "needs Python 3.99 or newer" in result.stderr
    assert f"{shim} does not run" in result.stderr
    assert f"{old} is Python 3." in result.stderr
    assert "apt-get install" in result.stderr


def test_a_named_python_is_used_or_refused(tmp_path: Path, find_python) -> None:
    shim = write_program(tmp_path / "shims" / "python3.13", SHIM)
    result = find_python(PYTHON=str(shim))
    assert result.returncode == 1
    assert f"PYTHON={shim} cannot be used: it does not run" in result.stderr


def test_a_virtual_environment_answers_with_its_base(find_python) -> None:
    result = find_python(PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).samefile(sys._base_executable)
    assert not Path(result.stdout.strip()).is_relative_to(sys.prefix)
