"""The manifest: columnar tables with the facts of every COG header, opened lazily and never changed in place."""

from __future__ import annotations

import functools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cube.errors import ManifestError, ReadError, SelectionError, SourceNotFoundError
from cube.grid import Grid, Window
from cube.io import loop
from cube.io.file import RangeFile
from cube.io.ranges import read_all
from cube.io.stores import absolute, join, local_path
from cube.settings import get_settings
from cube.spec import Band

FORMAT = "cogcube-manifest"
SCHEMA = 1
POINTER = "manifest.json"
_OPEN_ROW_GROUPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLevel:
    """One image of one source, as the reader needs it: full resolution or an overview."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    predictor: int
    offsets: np.ndarray
    """int64 (planes, tile rows, tile columns)."""
    lengths: np.ndarray
    """int64, as `offsets`; 0 is a tile that the file leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What the reader needs of one source apart from its tiles."""

    href: str
    byteorder: str
    samples: int
    interleave: str
    time: int
    """Position on the time axis; 0 in a cube without time."""
    row: int
    """Of the upper edge, on the cube's full-resolution grid."""
    column: int


class _TilePart:
    """One Parquet file of tile tables, its row groups loaded on first use."""

    def __init__(self, href: str) -> None:
        self._href = href
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._file: pq.ParquetFile | None = None

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        metadata = self._open().metadata
        return np.cumsum([0, *(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))])

    def _open(self) -> pq.ParquetFile:
        if self._file is None:
            self._file = _parquet(self._href)
        return self._file

    def row(self, index: int) -> tuple[pa.Table, int]:
        """Return the row group that holds a row, and the row's position in it."""
        with self._lock:
            group = int(np.searchsorted(self._starts, index, side="right")) - 1
            table = self._groups.get(group)
            if table is None:
                with _damage(self._href):
                    table = self._groups[group] = self._open().read_row_group(group).combine_chunks()
                if len(self._groups) > _OPEN_ROW_GROUPS:
                    self._groups.popitem(last=False)
            else:
                self._groups.move_to_end(group)
            return table, index - int(self._starts[group])


class Manifest:
    """One version of one cube's tables; safe to share between threads, nothing in it ever changes."""

    def __init__(self, url: str, version: str, snapshot: Mapping[str, Any]) -> None:
        cube = snapshot["cube"]
        self.url = url
        self.version = version
        self.name: str = snapshot["name"]
        self.attributes: dict[str, Any] = cube["attributes"]
        self.bands = tuple(Band.from_json(band) for band in cube["bands"])
        self.levels = tuple(Grid.from_json(level) for level in cube["levels"])
        self._factors: list[list[int]] = cube["factors"]
        self._parts = snapshot["parts"]
        self._tiles = [_TilePart(join(url, part["tiles"])) for part in self._parts]
        self._load_sources()

    def _load_sources(self) -> None:
        columns = ["href", "time", "bands", "row", "column", "width", "height", "byteorder", "samples", "interleave"]
        tables = [_read_table(join(self.url, part["sources"]), [*columns, "tiles_row"]) for part in self._parts]
        table = pa.concat_tables(tables).combine_chunks()
        self._table = table
        self._part = np.repeat(np.arange(len(tables)), [len(each) for each in tables])
        self.times: np.ndarray | None = None
        """datetime64[us] (times,), or None in a cube without time."""
        self._time = np.zeros(len(table), "int64")
        if not table["time"].null_count:  # a build refuses sources with and without time in one cube
            stamps = _integers(table["time"].cast(pa.int64())).view("datetime64[us]")
            self.times, self._time = np.unique(stamps, return_inverse=True)
        self._rows, self._columns, self._heights, self._widths, self._tiles_row = (
            _integers(table[name]) for name in ("row", "column", "height", "width", "tiles_row")
        )
        bands = table["bands"].combine_chunks()
        owner = np.repeat(np.arange(len(table)), np.diff(np.from_dlpack(bands.offsets)))
        flat = bands.flatten()
        names = flat.field("name").to_pylist()
        positions = {band.name: i for i, band in enumerate(self.bands)}
        ids = np.array([positions[name] for name in names], "int64")
        samples = np.from_dlpack(flat.field("sample"))
        order = np.argsort(ids, kind="stable")
        bounds = np.searchsorted(ids[order], np.arange(len(self.bands) + 1))
        self._members = {
            band.name: (owner[order[bounds[i] : bounds[i + 1]]], samples[order[bounds[i] : bounds[i + 1]]])
            for i, band in enumerate(self.bands)
        }

    def __len__(self) -> int:
        """Return the number of sources."""
        return len(self._table)

    def __repr__(self) -> str:
        """Return what and which version it is."""
        return f"<Manifest {self.name!r} {self.version}: {len(self)} sources, {len(self.bands)} bands, {self.url}>"

    @property
    def grid(self) -> Grid:
        """The full-resolution grid."""
        return self.levels[0]

    def grid_at(self, level: int) -> Grid:
        """Return the grid of a level.

        Raises:
            SelectionError: The cube has no such level.
        """
        if not 0 <= level < len(self.levels):
            raise SelectionError(f"level {level} was asked for; {self.name!r} has levels 0 to {len(self.levels) - 1}")
        return self.levels[level]

    def band(self, name: str) -> Band:
        """Return the band of this name or alias; other capitals will do where they leave no doubt.

        Raises:
            SelectionError: There is none, or the alias means several.
        """
        for band in self.bands:
            if band.name == name:
                return band
        # Sen2Cor's SCL is "scl" in one catalogue and "SCL" in the next.
        found = [band for band in self.bands if name in band.aliases] or [
            band for band in self.bands if name.casefold() == band.name.casefold()
        ]
        if len(found) == 1:
            return found[0]
        names = ", ".join(band.name for band in self.bands)
        if found:
            raise SelectionError(f"{name!r} may mean {', '.join(band.name for band in found)}; ask for one of those")
        raise SelectionError(f"band {name!r} was asked for; {self.name!r} has {names}")

    def select(self, band: str, times: Sequence[int], window: Window, level: int) -> list[tuple[int, int]]:
        """Return the (source, sample) pairs of one band that touch a window of a level at some of the times."""
        owner, samples = self._members[band]
        by_rows, by_columns = self._factors[level]
        top, left = self._rows[owner] // by_rows, self._columns[owner] // by_columns
        bottom, right = top + -(-self._heights[owner] // by_rows), left + -(-self._widths[owner] // by_columns)
        touched = (top < window.bottom) & (bottom > window.top) & (left < window.right) & (right > window.left)
        if self.times is not None:
            touched &= np.isin(self._time[owner], np.asarray(times))
        return [(int(source), int(sample)) for source, sample in zip(owner[touched], samples[touched], strict=True)]

    def facts(self, source: int, level: int = 0) -> SourceFacts:
        """Return one source's facts, its place on the grid of `level`."""
        by_rows, by_columns = self._factors[level]
        values = {name: self._table[name][source].as_py() for name in ("href", "byteorder", "samples", "interleave")}
        href = join(parent(self.url), values.pop("href"))
        if local_path(self.url) is None and local_path(href) is not None:
            raise ManifestError(f"{self.url} names {href}, a file of this machine, which a remote manifest must not")
        return SourceFacts(
            href=href,
            time=int(self._time[source]),
            row=int(self._rows[source]) // by_rows,
            column=int(self._columns[source]) // by_columns,
            **values,
        )

    def image(self, source: int, level: int = 0) -> SourceLevel:
        """Return one source's tile table at a level; loads the part of the manifest that holds it."""
        table, row = self._tiles[self._part[source]].row(int(self._tiles_row[source]) + level)
        facts = {
            name: table[name][row].as_py()
            for name in ("width", "height", "tile_width", "tile_height", "compression", "predictor")
        }
        across, down = -(-facts["width"] // facts["tile_width"]), -(-facts["height"] // facts["tile_height"])
        offsets, lengths = (
            np.from_dlpack(table[name].chunk(0).slice(row, 1).flatten()).reshape(-1, down, across)
            for name in ("offsets", "lengths")
        )
        return SourceLevel(offsets=offsets, lengths=lengths, **facts)

    def source_table(self) -> pa.Table:
        """Return every column of every source, as stored; loaded anew each time."""
        return pa.concat_tables([_read_table(join(self.url, part["sources"]), None) for part in self._parts])


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column without nulls; pyarrow's own way to numpy imports pandas, which takes a second."""
    return np.from_dlpack(column.combine_chunks())


def parent(url: str) -> str:
    """Return the folder that a manifest folder lies in."""
    return url.partition("?")[0].rstrip("/").rpartition("/")[0] or "/"


def snapshot_name(version: str) -> str:
    """Return the file that describes a version for as long as the folder lives."""
    return f"snapshot-{version}.json"


def open_manifest(url: str, version: str | None = None) -> Manifest:
    """Return a manifest, kept open by this process for as long as it is in use.

    Args:
        url: The manifest folder, as a path or a URL; blocks, so never call it on the I/O loop.
        version: The version to open; the current one where None.

    Raises:
        ManifestError: There is none, it is damaged, or a newer release wrote it.
        ReadError: The store refuses or fails.
    """
    url = absolute(url.rstrip("/"))
    if version is None:
        pointer = _read_json(url, POINTER)
        _require_format(url, pointer)
        version = pointer.get("version")
        if not isinstance(version, str) or not version.isalnum():
            raise ManifestError(f"{join(url, POINTER)} names no version; it was not written by cogcube or is damaged")
    return _open_version(url, version)


def _require_format(url: str, data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise ManifestError(f"{url} is not a cube's manifest: its format is {data.get('format')!r}, not {FORMAT!r}")
    if data.get("schema") != SCHEMA:
        raise ManifestError(
            f"{url} has manifest schema {data.get('schema')!r}; this release reads {SCHEMA}: upgrade cogcube"
        )


def _open_version(url: str, version: str) -> Manifest:
    key = (url, version)
    with _lock:
        found = _opened.get(key)
        if found is not None:
            _opened.move_to_end(key)
            return found
    snapshot = _read_json(url, snapshot_name(version))
    _require_format(url, snapshot)
    try:
        manifest = Manifest(url, version, snapshot)
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise ManifestError(f"{url} is damaged ({type(error).__name__}: {error}); build it again") from error
    with _lock:
        manifest = _opened.setdefault(key, manifest)
        while len(_opened) > get_settings().open_manifests:
            _opened.popitem(last=False)
    return manifest


_lock = threading.Lock()
_opened: OrderedDict[tuple[str, str], Manifest] = OrderedDict()


def _read_json(url: str, name: str) -> dict[str, Any]:
    href = join(url, name)
    try:
        text = loop.run(read_all(href, max_bytes=get_settings().max_manifest_json_bytes))
    except SourceNotFoundError:
        raise ManifestError(f"{url} holds no manifest ({name} is not there); build one with `cube build`") from None
    except ReadError as error:
        raise ManifestError(f"the manifest {url} cannot be read: {error.reason}") from None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{href} is not JSON ({error}); it is damaged or half-written, build it again") from None
    if not isinstance(data, dict):
        raise ManifestError(f"{href} is not a manifest: a JSON object was expected")
    return data


def _parquet(href: str) -> pq.ParquetFile:
    path = local_path(href)
    try:
        with _damage(href):
            file = path if path is not None else pa.PythonFile(RangeFile(href), mode="r")
            return pq.ParquetFile(file, pre_buffer=False)
    except SourceNotFoundError:
        raise ManifestError(f"{href} is missing from the manifest; build it again") from None
    except ReadError as error:
        raise ManifestError(f"{href} of the manifest cannot be read: {error.reason}") from None


def _read_table(href: str, columns: list[str] | None) -> pa.Table:
    with _damage(href):
        return _parquet(href).read(columns=columns)


@contextmanager
def _damage(href: str) -> Iterator[None]:
    """Name the file in what pyarrow raises on a damaged one."""
    try:
        yield
    except FileNotFoundError:
        raise ManifestError(f"{href} is missing from the manifest; build it again") from None
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{href} of the manifest is damaged ({error}); build it again") from None
