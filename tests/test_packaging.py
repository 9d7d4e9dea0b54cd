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

ROOT = Path(__file__).parents[1]
EXTRAS = ("dask", "server", "catalog", "kerchunk")
DEMO = ("demo", "--size", "512")
USERS_FILE = "raise SystemExit('the file of the user was run')\n"


@pytest.fixture(scope="module")
def wheel(uv: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--wheel", "--out-dir", folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def install(uv: Callable[..., str], wheel: Path, empty_environment: Callable[[], Any]) -> Callable[..., Any]:
    """Return a function that installs the wheel with extras, at the locked versions, into a new environment."""

    def make(*extras: str) -> Any:
        environment = empty_environment()
        locked = environment.folder.parent / "pylock.toml"
        options = [word for extra in extras for word in ("--extra", extra)]
        uv("export", "--frozen", "--no-dev", "--no-emit-project", "--format", "pylock.toml", *options, "-o", locked)
        into = ("pip", "install", "--python", environment.program("python"))
        uv(*into, "-r", locked)
        # Without an index: what the wheel asks for must be what the lock has installed.
        uv(*into, "--no-index", f"cogcube[{','.join(extras)}] @ {wheel.as_uri()}" if extras else wheel)
        return environment

    return make


@pytest.fixture(scope="module")
def lean(install: Callable[..., Any]) -> Any:
    return install()


@pytest.fixture(scope="module")
def full(install: Callable[..., Any]) -> Any:
    return install(*EXTRAS)


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


@pytest.mark.timeout(300)
def test_the_demo_runs_without_a_checkout(full: Any, tmp_path: Path) -> None:
    # Neither file is on the path of the command or of a process that it starts.
    for name in ("cube.py", "server.py"):
        (tmp_path / name).write_text(USERS_FILE, encoding="utf-8")
    result = full.run(full.program("cube"), *DEMO, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_server_py_of_the_user_is_named(tmp_path: Path) -> None:
    # `python -m` puts the current folder first, so that `import server` would run the user's file.
    users = tmp_path / "server.py"
    users.write_text(USERS_FILE, encoding="utf-8")
    command = [sys.executable, "-m", "cube", "serve", "--port", "0"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert str(users) in result.stderr
    assert "the file of the user was run" not in result.stderr
