"""What the documents show runs, and what they describe is what there is."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq
import pytest
import typer
from pydantic_settings import BaseSettings

import cube
from cube import cli
from cube.catalog import add_entry, manifest_entry
from cube.settings import Settings
from cube.testing import Archive, write_archive
from server.app import create_app
from server.run import serving
from server.settings import ServerSettings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
REFERENCE = ROOT / "docs" / "reference"
SERVER = "http://127.0.0.1:9000"
BLOCK = re.compile(r"^( *)```(python|console|bash)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
WAITS = {"serve", "demo"}
"""Commands that run until they are ended, or for long; what they take is checked."""
COMMANDS: dict[str, Any] = vars(typer.main.get_command(cli.app))["commands"]
BUILDS_ITS_OWN = {"README.md", "docs/reference/cli.md"}
"""Documents that build the cube `mine` themselves; for the others it is there."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced piece of a document."""

    language: str
    text: str
    line: int


def read_blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(match[2], re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE), text.count("\n", 0, match.start(3)))
        for match in BLOCK.finditer(text)
    ]


def read_commands(block: Block) -> list[list[str]]:
    """The words of each `cube ...` line."""
    lines = [line.strip().removeprefix("$ ") for line in block.text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["cube"]]


def is_run(path: Path) -> bool:
    return any(block.language == "python" or read_commands(block) for block in read_blocks(path))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    dates = ("2024-04-09", "2024-05-09", "2024-05-29")
    return write_archive(tmp_path_factory.mktemp("archive"), size=128, tile=64, dates=dates)


@pytest.fixture
def place(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with STAC items, and a home with `rasters`, as the documents assume."""
    here = tmp_path / "here"
    shutil.copytree(archive.root, here)
    rasters = tmp_path / "home" / "rasters"
    rasters.mkdir(parents=True)
    for path in archive.root.glob("*/*.tif"):
        shutil.copy(path, rasters)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.chdir(here)
    return here


class Reader:
    """Does what a document shows, block after block."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._monkeypatch = monkeypatch
        self._namespace: dict[str, Any] = {"__name__": "document"}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(self, block: Block) -> None:
        if block.language == "python":
            text = block.text.replace(SERVER, self._serve()) if SERVER in block.text else block.text
            # The document's own lines in a traceback.
            exec(compile("\n" * block.line + text, str(self._path), "exec"), self._namespace)
            return
        for words in read_commands(block):
            self._command(words)

    def _command(self, words: list[str]) -> None:
        expanded = [each for word in words for each in _expand(word)]
        if words[0] in WAITS:
            with COMMANDS[words[0]].make_context(words[0], expanded[1:]):  # raises for what it does not take
                return
        self._monkeypatch.setattr(sys, "argv", ["cube", *expanded])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        well = {None, 0, 1} if words[0] == "doctor" else {None, 0}
        assert ended.value.code in well, f"{self._path.name}: cube {shlex.join(words)}"

    def _serve(self) -> str:
        """The address of a server of the catalogue as it is now."""
        return self._open.enter_context(serving(create_app("catalog.yaml")))


def _expand(word: str) -> list[str]:
    """What a shell makes of a word with a home in it; other globs are left to the command."""
    if not word.startswith("~"):
        return [word]
    path = Path(word).expanduser()
    return sorted(map(str, path.parent.glob(path.name)))


@pytest.mark.parametrize("path", [*filter(is_run, DOCUMENTS)], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_document_does_what_it_shows(place: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.relative_to(ROOT).as_posix() not in BUILDS_ITS_OWN:
        manifest = cube.build(place / "items.json", name="mine", to=place / "mine.cube")
        add_entry("catalog.yaml", manifest_entry("mine", manifest.url, catalog="catalog.yaml"))
    with Reader(path, monkeypatch) as reader:
        for block in read_blocks(path):
            reader.run(block)


def test_the_documents_that_must_run_are_among_those_that_do() -> None:
    run = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS if is_run(path)}
    assert run >= BUILDS_ITS_OWN | {"docs/reference/manifest.md"}


# docs/reference


@cache
def read_reference() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in REFERENCE.glob("*.md"))


def table_rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table, without their code marks."""
    for line in text.splitlines():
        if line.startswith("| "):
            yield [cell.strip().replace("`", "") for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("settings", [Settings, ServerSettings])
def test_every_setting_is_described_with_its_default(settings: type[BaseSettings]) -> None:
    defaults = {row[0]: row[1] for row in table_rows((REFERENCE / "settings.md").read_text(encoding="utf-8"))}
    prefix = settings.model_config["env_prefix"]
    for name, field in settings.model_fields.items():
        said = defaults[f"{prefix}{name}".upper()]
        if isinstance(field.default, str):
            assert said == field.default, name
        elif field.default_factory is None and field.default is not None:
            assert read_number(said) == field.default, name


def read_number(text: str) -> float:
    number, _, unit = text.partition(" ")
    return float(number) * {"": 1, "KiB": 2**10, "MiB": 2**20}[unit]


def test_every_variable_in_the_documents_is_a_setting() -> None:
    fields = {f"CUBE_{name}" for name in Settings.model_fields}
    fields |= {f"CUBE_SERVER_{name}" for name in ServerSettings.model_fields}
    known = {name.upper() for name in fields} | {"CUBE_TEST_DATA", "CUBE_REQUIRE"}
    for path in DOCUMENTS:
        named = set(re.findall(r"\bCUBE_[A-Z][A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")))
        assert named <= known, path


def test_every_command_and_option_is_described() -> None:
    sections = {}
    for section in re.split(r"^## ", (REFERENCE / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = re.match(r"`cube (\w+)", section)
        assert title is not None, section
        sections[title[1]] = section
    assert list(sections) == list(COMMANDS)
    for name, section in sections.items():
        rows = {row[0]: row[1] for row in table_rows(section) if row[0].startswith("-")}
        described = {form: row for row in rows for form in re.findall(r"(?<!\S)--?[a-z-]+", row)}
        options = [param for param in COMMANDS[name].params if param.param_type_name == "option"]
        assert set(described) == {form for param in options for form in param.opts}, name
        for param in options:
            if param.default not in (None, "") and not param.is_flag:
                assert re.search(rf"(?<![\w.]){re.escape(str(param.default))}(?!\w)", rows[described[param.opts[0]]]), (
                    param.name
                )


def test_the_indices_and_composites_are_described() -> None:
    from cube.algebra.composites import COMPOSITES
    from cube.algebra.indices import INDICES

    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    assert [name for name in (*INDICES, *COMPOSITES) if f"`{name}`" not in text] == []


def test_the_manifest_has_the_columns_that_are_described(archive: Archive, tmp_path: Path) -> None:
    manifest = cube.build(archive.items, to=tmp_path / "mine.cube")
    text = (REFERENCE / "manifest.md").read_text(encoding="utf-8")
    for name in ("sources", "tiles"):
        (part,) = Path(manifest.url).glob(f"{name}-*.parquet")
        section = text.partition(f"## `{name}`\n")[2].partition("\n## ")[0]
        described = [column for row in list(table_rows(section))[1:] for column in row[0].split(", ")]
        assert sorted(described) == sorted(pq.read_schema(part).names)
    pointer = json.loads((Path(manifest.url) / "manifest.json").read_text(encoding="utf-8"))
    assert f'"format": "{pointer["format"]}", "schema": {pointer["schema"]}, ' in text


# ARCHITECTURE.md


def list_modules() -> dict[str, str]:
    """Path -> name of each module of the two packages, those apart that a package needs to be one."""
    paths = [*ROOT.glob("cube/**/*.py"), *ROOT.glob("server/**/*.py")]
    return {
        path.relative_to(ROOT).as_posix(): path.name
        for path in paths
        if path.name not in ("__init__.py", "__main__.py")
    }


def test_the_architecture_names_every_module_and_no_other() -> None:
    modules = list_modules()
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named, unknown = set(), []
    for name in re.findall(r"`([\w/]+\.py)`", text):
        # By its path, or by its name alone where only one module has it.
        found = [path for path in modules if path == name or ("/" not in name and modules[path] == name)]
        if len(found) == 1:
            named.add(found[0])
        else:
            unknown.append(name)
    assert unknown == []
    assert sorted(set(modules) - named) == []
    folders = set(re.findall(r"`((?:cube|server)/[\w/]*?)/?`", text))
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
