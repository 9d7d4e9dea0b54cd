"""Files that must agree with each other: versions, the lock, commands in the documentation, imports."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cube.cli import app

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
HEAVY = ("dask", "pandas", "pyarrow", "rasterio", "xarray", "zarr")
OTHERS = ("distributed", "fastapi", "intake", "kerchunk", "server", "starlette", "xpublish")
# A path of somebody's machine in a file of the project; written so that it does not find itself.
PRIVATE_PATH = re.compile(rb"(?<![\w.:/-])/(?:[w]ork|[r]oot|[U]sers/\w+|[h]ome/(?!linuxbrew)\w+)/")


def files_of_project() -> list[Path]:
    """Every file that is or would be under version control."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def test_the_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_lock_names_pypi_only() -> None:
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    sources = {str(package["source"]) for package in lock["package"]}
    assert sources == {"{'registry': 'https://pypi.org/simple'}", "{'editable': '.'}"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_path_of_a_machine_is_written_down() -> None:
    own = os.fsencode(ROOT)
    guilty = {
        str(path.relative_to(ROOT)): [match.decode() for match in PRIVATE_PATH.findall(content)]
        for path in files_of_project()
        if own in (content := path.read_bytes()) or PRIVATE_PATH.search(content)
    }
    assert guilty == {}


def test_tests_and_benchmarks_are_no_packages() -> None:
    # tests/cube/__init__.py would hide the library from the tests.
    assert [*ROOT.glob("tests/**/__init__.py"), *ROOT.glob("benchmarks/**/__init__.py")] == []


def test_skips_are_decided_in_one_place() -> None:
    # So that CUBE_REQUIRE=1 knows of each; a platform is a reason for `skipif`.
    skip = re.compile(r"importorskip|pytest\.skip\b")
    others = [path for path in ROOT.glob("tests/**/*.py") if path not in {ROOT / "tests" / "absent.py", Path(__file__)}]
    assert [str(path.relative_to(ROOT)) for path in others if skip.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "contributing.md"], ids=lambda path: path.name)
def test_a_document_shows_commands(path: Path) -> None:
    assert commands(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(path: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for program, *arguments in commands(path):
        if program == "make":
            unknown = [word for word in arguments if "=" not in word and word not in targets]
        elif program == "cube":
            known = options_of(*[word for word in arguments[:1] if not word.startswith("-")])
            unknown = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in known]
        else:
            unknown = [] if (ROOT / program).is_file() else [program]
        assert unknown == [], f"{path.name} shows {shlex.join([program, *arguments])}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_extras_in_documents_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    extras = {extra.strip() for group in re.findall(r"cogcube\[([\w, -]+)\]", text) for extra in group.split(",")}
    assert extras <= set(PROJECT["optional-dependencies"])


def commands(path: Path) -> list[list[str]]:
    """The commands of this project in a document's console blocks, as words."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^ *```(?:console|bash|shell|sh)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    own = re.compile(r"make$|cube$|\.ci/|scripts/")
    return [line for line in words if line and own.match(line[0])]


def options_of(*subcommand: str) -> set[str]:
    """The options of `cube` or of one of its commands."""
    command: Any = typer.main.get_command(app)
    for name in subcommand:
        command = command.commands[name]
    context = command.make_context("cube", [], resilient_parsing=True)
    return {option for param in command.get_params(context) for option in (*param.opts, *param.secondary_opts)}


def test_import_cube_loads_nothing_heavy() -> None:
    code = "import sys, cube; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = set(result.stdout.split())
    assert "cube" in loaded
    assert loaded.isdisjoint(HEAVY + OTHERS)
