"""Kerchunk references as a mapping from keys of a Zarr store to bytes, or to where bytes are: JSON and Parquet."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import itertools
import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, override

import pyarrow as pa
import pyarrow.parquet as pq

from cube.errors import ReferencesError, SourceNotFoundError
from cube.io import loop
from cube.io.ranges import read_all
from cube.io.stores import join, redact

_MOST_JSON_BYTES = 512 * 1024 * 1024
_MOST_SHARD_BYTES = 256 * 1024 * 1024
_SHARDS_KEPT = 32
_METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata")
_FIELD = re.compile(r"\{\{\s*(\w+)\s*(?:\(([^(){}]*)\))?\s*\}\}")
_ARGUMENT = re.compile(r"""\s*(\w+)\s*=\s*(?:'([^']*)'|"([^"]*)")\s*(?:,|$)""")
_MOST_TEMPLATE = 4096


@dataclass(frozen=True, slots=True)
class Reference:
    """Where one Zarr chunk's bytes are."""

    target: str
    """As the document has it, templates filled in."""
    offset: int
    length: int | None
    """None for the whole object."""


class References(Protocol):
    """What references say."""

    def find(self, key: str) -> bytes | Reference | None:
        """Return what a key holds, None where nothing does.

        Raises:
            ReferencesError: What is said of it cannot be understood.
        """

    def keys(self) -> Iterator[str]:
        """Iterate over all keys."""

    def targets(self) -> Iterator[str]:
        """Iterate over what is pointed to, as far as that is known without further reading."""


def read_references(url: str) -> References:
    """Return the references in a JSON file, or in a folder of Parquet files; blocks.

    Args:
        url: Path or URL.

    Raises:
        ReferencesError: It holds none.
        ReadError: It cannot be read.
    """
    if url.partition("?")[0].rstrip("/").endswith(".json"):
        return JsonReferences(url, loop.run(read_all(url, max_bytes=_MOST_JSON_BYTES)))
    return ParquetReferences(url)


class JsonReferences(References):
    """Version 1 (with templates) and version 0 (a plain mapping)."""

    def __init__(self, url: str, data: bytes) -> None:
        """Parse a document; see `References`."""
        self._url = url
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ReferencesError(f"{redact(url)} is no JSON that can be read: {error}") from None
        self._templates: Mapping[str, str] = {}
        refs = document
        if isinstance(document, dict) and "refs" in document:
            if document.get("version") != 1:
                raise self._bad(f"they are of version {document.get('version')!r}; 0 and 1 are known")
            if document.get("gen"):
                raise self._bad("they are partly made by a program (`gen`); let kerchunk write them out in full")
            refs, self._templates = document["refs"], document.get("templates") or {}
        if not isinstance(refs, dict) or not isinstance(self._templates, dict):
            raise self._bad("it maps no keys")
        self._refs: dict[str, Any] = refs

    @override
    def find(self, key: str) -> bytes | Reference | None:
        value = self._refs.get(key)
        match value:
            case None:
                return None
            case str():
                return self._inline(key, value)
            case dict():
                return json.dumps(value).encode()
            case [str(target)]:
                return Reference(self._filled(target), 0, None)
            case [str(target), int(offset), int(length)] if offset >= 0 and length >= 0:
                # Parquet's convention, which some writers of JSON follow.
                whole = offset == 0 and length == 0
                return Reference(self._filled(target), offset, None if whole else length)
        raise self._bad(f"{key!r} is {str(value)[:100]}; text, [URL] or [URL, offset, length] were expected")

    @override
    def keys(self) -> Iterator[str]:
        return iter(self._refs)

    @override
    def targets(self) -> Iterator[str]:
        raw = {value[0] for value in self._refs.values() if isinstance(value, list) and value}
        return (self._filled(each) for each in raw if isinstance(each, str))

    def _inline(self, key: str, text: str) -> bytes:
        if not text.startswith("base64:"):
            return text.encode()
        try:
            return base64.b64decode(text[7:], validate=True)
        except binascii.Error as error:
            raise self._bad(f"{key!r} is no base64: {error}") from None

    def _filled(self, text: str) -> str:
        """Return a text with its templates filled in: names and calls with texts, and no other program."""
        if "{{" not in text:
            return text
        return _FIELD.sub(self._template, text)

    def _template(self, field: re.Match[str]) -> str:
        name, call = field[1], field[2]
        template = self._templates.get(name)
        if not isinstance(template, str):
            raise self._bad(f"there is no template {name!r}")
        if call is None:
            return template
        given = {each[1]: each[2] if each[2] is not None else each[3] for each in _ARGUMENT.finditer(call)}
        if _ARGUMENT.sub("", call).strip() or len(template) > _MOST_TEMPLATE:
            raise self._bad(
                f"template {field[0]} is none that is understood: names and texts are, such as {{{{f(c='a')}}}}"
            )
        return _FIELD.sub(lambda inner: given.get(inner[1], inner[0]), template)

    def _bad(self, reason: str) -> ReferencesError:
        return ReferencesError(f"the references {redact(self._url)} cannot be used: {reason}")


class ParquetReferences(References):
    """A folder of a file for some chunks of a variable, read as they are asked for, and the last ones kept."""

    def __init__(self, url: str) -> None:
        """Read the metadata; see `References`."""
        self._url = url.rstrip("/")
        try:
            document = json.loads(loop.run(read_all(join(self._url, ".zmetadata"), max_bytes=_MOST_JSON_BYTES)))
            self._rows = int(document["record_size"])
            # Kerchunk copies the metadata of JSON references, and with them their own consolidated copy.
            documents = {key: value for key, value in document["metadata"].items() if key != ".zmetadata"}
            self._metadata = {
                key: json.loads(value) if isinstance(value, str) else dict(value) for key, value in documents.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReferencesError(f"{redact(url)} holds no Parquet references: its .zmetadata has no {error}") from None
        if self._rows < 1:
            raise ReferencesError(f"{redact(url)}: record_size is {self._rows}")
        consolidated = {"zarr_consolidated_format": 1, "metadata": self._metadata}
        self._documents = {".zmetadata": json.dumps(consolidated).encode()}
        self._lock = threading.Lock()
        self._shard = functools.lru_cache(maxsize=_SHARDS_KEPT)(self._read_shard)

    @override
    def find(self, key: str) -> bytes | Reference | None:
        if key in self._documents:
            return self._documents[key]
        if key in self._metadata:
            return json.dumps(self._metadata[key]).encode()
        variable, _, name = key.rpartition("/")
        counts = self._counts(variable)
        if counts is None:
            return None
        try:
            position = [int(part) for part in name.split(".")] if counts else []
        except ValueError:
            return None
        if len(position) != len(counts) or any(not 0 <= i < n for i, n in zip(position, counts, strict=True)):
            return None
        number = functools.reduce(lambda total, pair: total * pair[1] + pair[0], zip(position, counts, strict=True), 0)
        with self._lock:  # one thread reads a shard, the others wait for it
            table = self._shard(variable, number // self._rows)
        return None if table is None else _row(table, number % self._rows)

    @override
    def keys(self) -> Iterator[str]:
        yield ".zmetadata"
        yield from self._metadata
        for name in self._metadata:
            variable, _, document = name.rpartition("/")
            if document == ".zarray":
                for position in itertools.product(*map(range, self._counts(variable) or ())):
                    yield f"{variable}/{'.'.join(map(str, position)) or '0'}"

    @override
    def targets(self) -> Iterator[str]:
        return iter(())

    def _counts(self, variable: str) -> list[int] | None:
        document = self._metadata.get(f"{variable}/.zarray")
        if document is None:
            return None
        try:
            return [-(-int(n) // int(chunk)) for n, chunk in zip(document["shape"], document["chunks"], strict=True)]
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            raise ReferencesError(f"{redact(self._url)}: {variable}/.zarray is damaged") from None

    def _read_shard(self, variable: str, number: int) -> pa.Table | None:
        url = join(self._url, f"{variable}/refs.{number}.parq")
        try:
            data = loop.run(read_all(url, max_bytes=_MOST_SHARD_BYTES))
        except SourceNotFoundError:
            return None  # writers leave out files in which no chunk is
        try:
            return pq.read_table(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            raise ReferencesError(f"{redact(url)} is no Parquet file that can be read: {error}") from None


def _row(table: pa.Table, number: int) -> bytes | Reference | None:
    """Return what a row of references says: bytes, a place, or nothing."""
    if number >= table.num_rows:
        return None
    raw = table["raw"][number].as_py() if "raw" in table.column_names else None
    if raw is not None:
        return bytes(raw) if isinstance(raw, (bytes, bytearray)) else str(raw).encode()
    target = table["path"][number].as_py()
    if not target or (isinstance(target, float) and math.isnan(target)):
        return None
    offset, length = int(table["offset"][number].as_py() or 0), int(table["size"][number].as_py() or 0)
    return Reference(target, offset, length or None)
