"""Whether a name, a path or a catalogue's entry means something that others wrote, and of which kind."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cube.errors import CatalogError, ReadError
from cube.io import loop
from cube.io.ranges import read_head
from cube.io.stores import absolute, join, local_path

type Kind = Literal["zarr", "references", "icechunk"]

_ENDINGS: Mapping[str, Kind] = {".zarr": "zarr", ".icechunk": "icechunk", ".parq": "references"}
_HEAD_BYTES = 64 * 1024
_OF_REFERENCES = re.compile(rb'"(refs|templates|\.zgroup|\.zmetadata|zarr\.json)"\s*:')
_OF_STAC = re.compile(rb'"stac_version"\s*:')
_OPTIONS = {"storage_options", "backend_kwargs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """What others wrote: where it is, of which kind, and what it may point to."""

    url: str
    """Path or URL."""
    kind: Kind
    allow: tuple[str, ...] = ()
    """URLs and paths that it may point to, besides its own folder."""
    protocol: str | None = None
    """Of references that name none."""
    group: str | None = None
    """Of the store's groups, the one that is meant."""


def find_foreign(text: str, *, allow: tuple[str, ...] = ()) -> Foreign | None:
    """Return what a path or URL means, None where it is nothing of the kind; reads the head of a .json or .parquet.

    Raises:
        ReadError: Such a file cannot be read.
    """
    kind = _kind(text)
    return None if kind is None else Foreign(url=absolute(text.rstrip("/")), kind=kind, allow=allow)


def parse_entry(
    name: str, args: Mapping[str, Any], metadata: Mapping[str, Any], *, is_zarr_driver: bool
) -> Foreign | None:
    """Return what an entry of a catalogue means, None where it is nothing of the kind.

    Args:
        name: Of the entry.
        args: Of its driver, the catalogue's folder filled in.
        metadata: Of the entry; `allow` lists what references may point to besides their folder.
        is_zarr_driver: Whether the driver reads nothing else.

    Raises:
        CatalogError: It does not say where its data are.
    """
    options: dict[str, Any] = {}
    for key in _OPTIONS:
        more = args.get(key)
        if isinstance(more, Mapping):
            options |= more.get("storage_options", more)
    url = args.get("urlpath")
    if url == "reference://":
        url = options.get("fo")
    if not isinstance(url, str):
        if not is_zarr_driver:
            return None
        raise CatalogError(f"entry {name!r} names no urlpath that is one path or URL: {args.get('urlpath')!r}")
    is_references = args.get("engine") == "kerchunk" or args.get("urlpath") == "reference://"
    kind = "references" if is_references else _kind(url)
    if kind is None:
        if not is_zarr_driver:
            return None
        kind = "zarr"
    allow = args.get("allow") or metadata.get("allow") or ()
    protocol, group = options.get("remote_protocol"), args.get("group")
    return Foreign(
        url=absolute(url.rstrip("/")),
        kind=kind,
        allow=(allow,) if isinstance(allow, str) else tuple(str(each) for each in allow),
        protocol=protocol if isinstance(protocol, str) and protocol != "file" else None,
        group=group if isinstance(group, str) else None,
    )


def _kind(text: str) -> Kind | None:
    plain = text.partition("?")[0].rstrip("/")
    for ending, kind in _ENDINGS.items():
        if plain.endswith(ending):
            return kind
    path = local_path(text)
    if plain.endswith(".json"):
        if path is not None and not path.is_file():
            return None
        head = loop.run(read_head(absolute(text), _HEAD_BYTES)).data
        return "references" if _OF_REFERENCES.search(head) and not _OF_STAC.search(head) else None
    if plain.endswith(".parquet") and path is None:  # which may be a file of STAC Items, too
        return "references" if _is_there(join(text, ".zmetadata")) else None
    return None if path is None or not path.is_dir() else _folder_kind(path)


def _is_there(url: str) -> bool:
    try:
        loop.run(read_head(url, 1))
    except ReadError:
        return False
    return True


def _folder_kind(path: Path) -> Kind | None:
    if (path / ".zmetadata").is_file():
        try:
            is_table = "record_size" in json.loads((path / ".zmetadata").read_bytes())
        except (ValueError, OSError) as error:
            raise ReadError(str(path / ".zmetadata"), f"is no JSON that can be read: {error}") from None
        return "references" if is_table else "zarr"
    if (path / "zarr.json").is_file() or (path / ".zgroup").is_file():
        return "zarr"
    is_repository = (path / "snapshots").is_dir() and ((path / "refs").is_dir() or (path / "repo").is_file())
    return "icechunk" if is_repository else None
