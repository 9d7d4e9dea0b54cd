"""The `catalog.yaml` file, an intake catalogue (version 1) of cubes: read, found in, added to; intake not needed."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from cube.errors import CatalogError
from cube.foreign.find import Foreign, parse_entry

CATALOG_FILE = "catalog.yaml"
CUBE_DRIVER = "cube.intake.CubeSource"
ZARR_DRIVER = "intake_xarray.xzarr.ZarrSource"
"""The class, as some releases of intake take the short name `zarr` for their own reader of single arrays."""
_ZARR_DRIVERS = (ZARR_DRIVER, "zarr", "intake_xarray.xzarr:ZarrSource")
_HERE = "{{ CATALOG_DIR }}"
_HERE_FORMS = re.compile(r"\{\{\s*CATALOG_DIR\s*\}\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_BYTES = 10_000_000
_MAX_ALIASES = 1_000
_MAX_MERGED_KEYS = 10_000
_BUSY = (FileExistsError, PermissionError) if os.name == "nt" else (FileExistsError,)
"""Windows refuses access to a file that is just being replaced or deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One data source of a catalogue."""

    name: str
    """Letters, digits, `.`, `_` and `-`, a letter or digit first."""
    driver: str
    """What opens it: the full name of an intake class."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of the driver; strings may hold `{{ CATALOG_DIR }}`."""
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise CatalogError(
                f"{self.name!r} cannot be the name of a catalogue entry; use letters, digits, '.', '_' and '-', "
                "a letter or digit first"
            )

    def manifest_url(self, catalog_dir: str) -> str | None:
        """The path or URL of the entry's manifest, or None if another driver than ours reads it.

        Args:
            catalog_dir: The folder or URL that the catalogue lies in.
        """
        urlpath = self.args.get("urlpath")
        if self.driver != CUBE_DRIVER or not isinstance(urlpath, str) or self.foreign(catalog_dir) is not None:
            return None
        return str(_placed(urlpath, catalog_dir))

    def foreign(self, catalog_dir: str) -> Foreign | None:
        """The Zarr store, references or Icechunk repository that the entry means, or None if it is none of these.

        Args:
            catalog_dir: The folder or URL that the catalogue lies in.

        Raises:
            CatalogError: It does not say where its data are.
        """
        if self.driver not in (CUBE_DRIVER, *_ZARR_DRIVERS):
            return None
        args = _placed(self.args, catalog_dir)
        return parse_entry(self.name, args, self.metadata, is_zarr_driver=self.driver != CUBE_DRIVER)


@dataclass(frozen=True, slots=True)
class Catalog(Mapping[str, Entry]):
    """The entries of one catalogue by name; an entry is checked when it is looked up.

    Raises:
        CatalogError: on look-up of an entry that is damaged.
    """

    href: str
    """Path or URL of the file."""
    document: Mapping[str, Any]
    """All that the file says."""

    def __getitem__(self, name: str) -> Entry:
        source = self._sources()[name]
        where = f"{self.href}: entry {name!r}"
        if not isinstance(source, Mapping) or not isinstance(source.get("driver"), str):
            raise CatalogError(f"{where} names no driver, such as {CUBE_DRIVER}")
        args, metadata = source.get("args") or {}, source.get("metadata") or {}
        if not isinstance(args, Mapping) or not isinstance(metadata, Mapping):
            raise CatalogError(f"{where} has args or metadata that are no mapping")
        description = str(source.get("description") or "")
        return Entry(name=name, driver=source["driver"], args=args, description=description, metadata=metadata)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources())

    def __len__(self) -> int:
        return len(self._sources())

    def _sources(self) -> Mapping[str, Any]:
        return self.document.get("sources") or {}


def read_catalog(path: str | os.PathLike[str]) -> Catalog:
    """The catalogue in a file.

    Raises:
        CatalogError: the file cannot be read, or is not an intake catalogue of version 1.
    """
    file = Path(path)
    try:
        with file.open(encoding="utf-8-sig") as opened:
            text = opened.read(_MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogError(f"the catalogue {file} cannot be read: {error}") from error
    return parse_catalog(text, href=str(file))


def parse_catalog(text: str, *, href: str) -> Catalog:
    """The catalogue in a text that was read from `href`.

    Raises:
        CatalogError: the text is too long, not YAML, or not an intake catalogue of version 1.
    """
    if len(text) > _MAX_BYTES:
        raise CatalogError(f"the catalogue {href} has more than {_MAX_BYTES:,} bytes")
    try:
        document = yaml.load(text, Loader=_BoundedLoader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CatalogError(f"the catalogue {href} is not YAML that can be read: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict) or not isinstance(document.get("sources") or {}, dict):
        raise CatalogError(f"{href} is not a catalogue: it should map `sources` to entries by name")
    if str(document.get("version")) == "2":
        raise CatalogError(f"{href} is an intake catalogue of version 2; cube reads and writes version 1 (`sources:`)")
    return Catalog(href, document)


def find_entry(name: str, folder: str | os.PathLike[str] | None = None) -> Entry | None:
    """The entry of that name in the `catalog.yaml` of a folder (the current one), or None if there is none.

    Raises:
        CatalogError: there is such a file, and it cannot be read.
    """
    path = Path(folder or Path.cwd()) / CATALOG_FILE
    if not _NAME.fullmatch(name) or not path.is_file():
        return None
    return read_catalog(path).get(name)


def dump_catalog(entries: Iterable[Entry]) -> str:
    """The text of a new catalogue of these entries.

    Raises:
        CatalogError: an argument or a piece of metadata is not plain (text, numbers, lists, mappings).
    """
    return _dump({"metadata": {"version": 1}, "sources": {entry.name: _source(entry) for entry in entries}})


def add_entry(path: str | os.PathLike[str], entry: Entry, *, timeout_s: float = 10.0) -> None:
    """Add an entry to the catalogue in a file, or replace the one of its name; all else in the file stays.

    The file is made where there is none, and replaced as a whole: a reader sees the old or the new one. Of comments,
    only those before the first key stay.

    Args:
        path: The YAML file.
        entry: What to add.
        timeout_s: How long to wait for others that write the same file.

    Raises:
        CatalogError: the file is not a catalogue, cannot be written, or is locked for longer than `timeout_s`.
    """
    file = Path(path).resolve()
    lock = file.with_name(f"{file.name}.lock")
    deadline = time.monotonic() + timeout_s
    # As git does: the lock is the file to come, which takes the old one's place when it is complete.
    try:
        handle = _insist(lambda: os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), deadline)
    except _BUSY as error:
        raise CatalogError(f"{file} is being written by another process; if none is, delete {lock}") from error
    except OSError as error:
        raise CatalogError(f"the catalogue {file} cannot be written: {error}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as opened:
            opened.write(_with_entry(file, entry))
        if file.exists():
            shutil.copymode(file, lock)
        _insist(lambda: lock.replace(file), deadline)
    except BaseException as error:  # once it has been replaced, a lock is another writer's
        lock.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CatalogError(f"the catalogue {file} cannot be written: {error}") from error
        raise


def manifest_entry(
    name: str,
    manifest: str | os.PathLike[str],
    *,
    catalog: str | os.PathLike[str] | None = None,
    description: str = "",
    license: str | None = None,  # noqa: A002  # STAC's word
    metadata: Mapping[str, Any] | None = None,
) -> Entry:
    """An entry that opens a manifest as a cube.

    Args:
        name: Of the entry.
        manifest: Path or URL of the manifest folder.
        catalog: The catalogue's file; a manifest in its folder or below is written relative to it.
        description: One sentence.
        license: SPDX identifier or a sentence, kept in the metadata.
        metadata: Anything plain.
    """
    args = {"urlpath": _urlpath(manifest, catalog)}
    return Entry(
        name=name, driver=CUBE_DRIVER, args=args, description=description, metadata=_metadata(license, metadata)
    )


def zarr_entry(
    name: str,
    url: str | os.PathLike[str],
    *,
    catalog: str | os.PathLike[str] | None = None,
    description: str = "",
    license: str | None = None,  # noqa: A002  # STAC's word
    metadata: Mapping[str, Any] | None = None,
) -> Entry:
    """An entry that opens a Zarr store (v2 or v3, with consolidated metadata) without cube; arguments as above."""
    args = {"urlpath": _urlpath(url, catalog), "consolidated": True, "chunks": {}}
    return Entry(
        name=name, driver=ZARR_DRIVER, args=args, description=description, metadata=_metadata(license, metadata)
    )


def kerchunk_entry(
    name: str,
    refs: str | os.PathLike[str],
    *,
    catalog: str | os.PathLike[str] | None = None,
    description: str = "",
    license: str | None = None,  # noqa: A002  # STAC's word
    metadata: Mapping[str, Any] | None = None,
) -> Entry:
    """An entry that opens Kerchunk references without cube; arguments as above.

    A folder of Parquet references asks the reader for fastparquet too: fsspec takes no other engine.
    """
    # engine="kerchunk" sets both `asynchronous` flags that zarr 3 wants of a reference:// file system.
    args = {"urlpath": _urlpath(refs, catalog), "engine": "kerchunk", "chunks": {}}
    return Entry(
        name=name, driver=ZARR_DRIVER, args=args, description=description, metadata=_metadata(license, metadata)
    )


def foreign_entry(
    name: str,
    foreign: Foreign,
    *,
    catalog: str | os.PathLike[str] | None = None,
    description: str = "",
    license: str | None = None,  # noqa: A002  # STAC's word
) -> Entry:
    """An entry of what others wrote, that opens without cube where that can be; arguments as above."""
    said: dict[str, Any] = {"allow": list(foreign.allow)} if foreign.allow else {}
    more: Any = {"catalog": catalog, "description": description, "license": license, "metadata": said}
    match foreign.kind:
        case "references":
            return kerchunk_entry(name, foreign.url, **more)
        case "zarr":
            entry = zarr_entry(name, foreign.url, **more)
            return replace(entry, args={key: value for key, value in entry.args.items() if key != "consolidated"})
        case "icechunk":
            return manifest_entry(name, foreign.url, **more)


def _placed(value: Any, catalog_dir: str) -> Any:
    """Return text, or what holds text, with the catalogue's folder filled in."""
    if isinstance(value, str):
        return _HERE_FORMS.sub(lambda _: catalog_dir.rstrip("/"), value)
    if isinstance(value, Mapping):
        return {key: _placed(each, catalog_dir) for key, each in value.items()}
    return [_placed(each, catalog_dir) for each in value] if isinstance(value, list) else value


def _urlpath(target: str | os.PathLike[str], catalog: str | os.PathLike[str] | None) -> str:
    text = os.fspath(target)
    if "://" in text or _HERE_FORMS.search(text):
        return text
    path = Path(os.path.normpath(Path.cwd() / text))
    folder = None if catalog is None else Path(os.path.normpath(Path.cwd() / catalog)).parent
    if folder is not None and path.is_relative_to(folder):
        return f"{_HERE}/{path.relative_to(folder).as_posix()}"
    return path.as_posix()


def _metadata(license_: str | None, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    return ({} if license_ is None else {"license": license_}) | dict(metadata or {})


def _source(entry: Entry) -> dict[str, Any]:
    said = {"description": entry.description, "metadata": dict(entry.metadata)}
    return {"driver": entry.driver, **{key: value for key, value in said.items() if value}, "args": dict(entry.args)}


def _with_entry(file: Path, entry: Entry) -> str:
    """The text of a catalogue file with an entry added."""
    if not file.exists():
        return dump_catalog([entry])
    document = dict(read_catalog(file).document)
    document.setdefault("metadata", {"version": 1})
    document["sources"] = (document.get("sources") or {}) | {entry.name: _source(entry)}
    with file.open(encoding="utf-8-sig") as opened:
        comments = re.match(r"(?:[ \t]*(?:#.*)?\n)*", opened.read())
    return (comments[0] if comments else "") + _dump(document)


def _dump(document: Mapping[str, Any]) -> str:
    try:
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    except yaml.YAMLError as error:
        raise CatalogError(f"the catalogue entry holds something that YAML has no form for: {error}") from error


def _insist[T](act: Callable[[], T], deadline: float) -> T:
    """The result of `act`, tried again while the file is busy."""
    while True:
        try:
            return act()
        except _BUSY:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


class _BoundedLoader(yaml.SafeLoader):
    """A safe loader for which a small file cannot grow large: aliases and what they merge are counted."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > _MAX_ALIASES:
                raise yaml.YAMLError(f"it has more than {_MAX_ALIASES} aliases")
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_MERGED_KEYS:
            raise yaml.YAMLError(f"it merges more than {_MAX_MERGED_KEYS} keys into one mapping")
