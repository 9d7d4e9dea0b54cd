"""The wheel, as somebody gets it: what is in it, and that it works in an environment without a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def lean(install: Callable[..., Any]) -> Any:
    return install()


def read_metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (member for member in archive.namelist() if member.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def test_the_lock_is_up_to_date(uv: Callable[..., str]) -> None:
    uv("lock", "--check", "--offline")


def test_the_wheel_holds_two_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cube", "server"}
    assert len(tops) == 3
    assert {"cube/py.typed", "server/py.typed"} <= set(names)
    assert [name for name in names if "__pycache__" in name] == []


def test_the_wheel_has_its_command_and_licence(wheel: Path) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(read_metadata(wheel, "entry_points.txt"))
    metadata: Message = Parser().parsestr(read_metadata(wheel, "METADATA"))
    assert dict(entry_points["console_scripts"]) == {"cube": "cube.cli:main"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in read_metadata(wheel, "licenses/LICENSE")


def test_without_extras_the_library_works_and_the_server_says_what_it_needs(lean: Any, tmp_path: Path) -> None:
    module = lean.run(lean.program("python"), "-c", "import cube; print(cube.__file__)", cwd=tmp_path)
    assert module.returncode == 0, module.stderr
    assert Path(module.stdout.strip()).is_relative_to(lean.folder)
    usage = lean.run(lean.program("cube"), "--help", cwd=tmp_path)
    assert usage.returncode == 0, usage.stderr
    served = lean.run(lean.program("cube"), "serve", cwd=tmp_path)
    assert served.returncode != 0
    assert "cogcube[server]" in served.stderr


def test_a_server_py_of_the_user_is_named(tmp_path: Path) -> None:
    # `python -m` puts the current folder first, so that `import server` would run the user's file.
    users = tmp_path / "server.py"
    users.write_text("raise SystemExit('the file of the user was run')\n", encoding="utf-8")
    command = [sys.executable, "-m", "cube", "serve", "--port", "0"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert str(users) in result.stderr
    assert "the file of the user was run" not in result.stderr
