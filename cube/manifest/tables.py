"""The Parquet files of a manifest, read lazily: a row group is fetched and decoded on first use, and kept a while."""

from __future__ import annotations

import asyncio
import io
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cube.errors import ManifestError, ReadError, SourceNotFoundError
from cube.io import loop
from cube.io.answer import Buffer
from cube.io.ranges import plan_requests, read_head, read_range
from cube.io.stores import local_path
from cube.settings import get_settings

_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_TAIL_BYTES = 256 * 1024
"""First request of a remote file: its footer, and the whole of a small one."""
_KEPT_BYTES = 256 * 1024 * 1024
_GROUPS_AT_ONCE = 64
_GROUPS_A_THREAD = 2
_WORTH_KEEPING = 0.25
"""Share of a row group's rows that are wanted; of fewer only these rows are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Two Parquet files of a manifest, a sources table and the tiles of these sources, as a snapshot names them."""

    sources: str
    tiles: str
    rows: int
    """Sources in the file, removed ones included."""
    sources_bytes: int | None = None
    tiles_bytes: int | None = None
    offsets: tuple[tuple[int, int], ...] = ()
    """(rows, columns) by grid, added to `row` and `column` of its sources: the grid has grown upwards or to the left
    since the part was written; nothing for grids that are not named."""
    removed: tuple[int, ...] = ()
    """Rows of the sources table that are no longer part of the cube, sorted."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Part:
        """Return the part that `to_json` wrote.

        Raises:
            ValueError: It names files outside of the manifest's folder, which its author may not read here.
        """
        for name in (data["sources"], data["tiles"]):
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"its part {name!r} is not the name of a file in its folder")
        data = {**data, "removed": tuple(data.get("removed", ()))}
        # Schema 2 knew one grid.
        first = data.pop("row_offset", 0), data.pop("column_offset", 0)
        offsets = tuple((int(rows), int(columns)) for rows, columns in data.pop("offsets", [first]))
        return cls(**data, offsets=offsets)

    def to_json(self) -> dict[str, Any]:
        """Return the part as JSON values."""
        return {**asdict(self), "removed": list(self.removed), "offsets": [list(each) for each in self.offsets]}

    def shifts(self, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what is added to the rows and columns of sources on some grids, int64."""
        known = np.array([*self.offsets, (0, 0)], "int64")
        is_named = (grids >= 0) & (grids < len(self.offsets))  # a file may name any number
        rows, columns = known[np.where(is_named, grids, -1)].T
        return rows, columns

    @property
    def kept(self) -> np.ndarray:
        """The rows that are part of the cube, int64."""
        return np.delete(np.arange(self.rows), self.removed)


class Group[V](Protocol):
    """One decoded row group."""

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""

    def row(self, row: int) -> V:
        """Return the value of a row, which may share the group's memory."""

    def copy(self, row: int) -> tuple[V, int]:
        """Return the value of a row with memory of its own, and the bytes of it."""


class PartFile:
    """One Parquet file of a manifest, opened on first use; safe to share between threads."""

    def __init__(self, href: str, nbytes: int | None = None) -> None:
        self.href = href
        self._nbytes = nbytes
        self._lock = threading.RLock()
        self._opened: _Opened | None = None

    @property
    def starts(self) -> list[int]:
        """The first row of each row group, and the number of rows."""
        return self._open().starts

    def read(self, columns: Iterable[str] | None = None) -> pa.Table:
        """Return those of `columns` that the file has, all where None.

        Raises:
            ManifestError: The file is missing, damaged, or cannot be read.
        """
        with self._reading(columns) as (opened, names):
            return opened.file.read(columns=names)

    def read_groups(self, columns: Iterable[str], groups: Sequence[int], use: Callable[[int, pa.Table], None]) -> None:
        """Call `use` with each row group: its number, and those of `columns` that the file has; on several threads.

        Raises:
            ManifestError: The file is missing, damaged, or cannot be read.
        """
        threads = min(get_settings().decode_threads, len(groups) // _GROUPS_A_THREAD)
        with self._reading(columns, groups) as (opened, names):
            if threads < 2:
                _use_each(opened.file, groups, names, use)
                return

            def work(some: Sequence[int]) -> None:
                _use_each(self._parquet(opened.remote, opened.file.metadata), some, names, use)

            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(work, [groups[i::threads] for i in range(threads)]):
                    pass

    @contextmanager
    def _reading(
        self, columns: Iterable[str] | None, groups: Sequence[int] | None = None
    ) -> Iterator[tuple[_Opened, list[str]]]:
        """Give the file and the names of the columns, of which all bytes are at hand."""
        with self._lock, _damage(self.href):
            opened = self._open()
            known, metadata = opened.file.schema_arrow.names, opened.file.metadata
            names = known if columns is None else [name for name in columns if name in known]
            if opened.remote is not None:
                wanted = range(metadata.num_row_groups) if groups is None else groups
                opened.remote.fetch(_column_ranges(metadata, wanted, names))
            yield opened, names
            if opened.remote is not None:
                opened.remote.forget()

    def _open(self) -> _Opened:
        if self._opened is not None:
            return self._opened
        with self._lock, _damage(self.href):
            if self._opened is None:
                remote = None if local_path(self.href) is not None else _Ahead(self.href, self._nbytes)
                file = self._parquet(remote)
                rows = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
                self._opened = _Opened(file, remote, np.cumsum([0, *rows]).tolist())
            return self._opened

    def _parquet(self, remote: _Ahead | None, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        file = local_path(self.href) if remote is None else pa.PythonFile(_RemoteFile(remote), mode="r")
        return pq.ParquetFile(file, metadata=metadata, pre_buffer=False)


class _Opened(NamedTuple):
    file: pq.ParquetFile
    remote: _Ahead | None
    starts: list[int]


def _use_each(
    file: pq.ParquetFile, groups: Sequence[int], names: list[str], use: Callable[[int, pa.Table], None]
) -> None:
    for group in groups:
        use(group, file.read_row_group(group, columns=names, use_threads=False).combine_chunks())


class LazyRows[V]:
    """The rows of one file, by row group: each is read and decoded on first use, and shared by the whole process."""

    def __init__(self, file: PartFile, columns: tuple[str, ...], decode: Callable[[pa.Table], Group[V]]) -> None:
        self._file, self._columns, self._decode = file, columns, decode
        self._lock = threading.Lock()

    def find(self, row: int) -> V:
        """Return the value of a row."""
        value: V | None = _kept.get(self._key("row", row))
        if value is not None:
            return value
        starts = self._file.starts
        number = bisect_right(starts, row) - 1
        group: Group[V] | None = _kept.get(self._key("group", number))
        if group is None:
            with self._lock:  # whoever waits here finds what the first has read
                group = _kept.get(self._key("group", number))
                if group is None:
                    group = self._load_group(number)
        return group.row(row - starts[number])

    def load(self, rows: np.ndarray) -> None:
        """Read many rows: on several threads, and with one round trip for many row groups of a remote file."""
        starts = np.asarray(self._file.starts)
        wanted: dict[int, list[int]] = {}
        rows = np.unique(rows)
        for row, group in zip(rows.tolist(), (np.searchsorted(starts, rows, side="right") - 1).tolist(), strict=True):
            if _kept.get(self._key("row", row)) is None and _kept.get(self._key("group", group)) is None:
                wanted.setdefault(group, []).append(row - int(starts[group]))

        def keep(number: int, table: pa.Table) -> None:
            group = self._decode(table)
            if len(wanted[number]) >= _WORTH_KEEPING * len(table):
                _kept.put(self._key("group", number), group, group.nbytes)
                return
            for row in wanted[number]:
                _kept.put(self._key("row", row + int(starts[number])), *group.copy(row))

        groups = list(wanted)
        with self._lock:
            for begin in range(0, len(groups), _GROUPS_AT_ONCE):
                self._file.read_groups(self._columns, groups[begin : begin + _GROUPS_AT_ONCE], keep)

    def _load_group(self, number: int) -> Group[V]:
        found: list[Group[V]] = []
        self._file.read_groups(self._columns, [number], lambda _, table: found.append(self._decode(table)))
        _kept.put(self._key("group", number), found[0], found[0].nbytes)
        return found[0]

    def _key(self, kind: str, number: int) -> tuple[Any, ...]:
        # Files are named by their content, so that versions of a cube share what is decoded.
        return self._file.href, self._columns[0], kind, number


class _Kept:
    """What was decoded last, up to a total of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._values: OrderedDict[tuple[Any, ...], tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[Any, ...]) -> Any:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: tuple[Any, ...], value: Any, nbytes: int) -> None:
        with self._lock:
            _, before = self._values.pop(key, (None, 0))
            self._values[key] = value, nbytes
            self._bytes += nbytes - before
            while self._bytes > self._max_bytes and len(self._values) > 1:
                self._bytes -= self._values.popitem(last=False)[1][1]


_kept = _Kept(_KEPT_BYTES)


class _Ahead:
    """The bytes of an object that were fetched ahead; blocks, so never use it on the I/O loop."""

    def __init__(self, href: str, nbytes: int | None) -> None:
        self._href = href
        self._ahead: list[tuple[int, Buffer]] = []
        if nbytes is None:  # schema 1 does not say how large its parts are
            head = loop.run(read_head(href, _TAIL_BYTES))
            self.size, self._tail = head.size, (0, head.data)
        else:
            start = max(0, nbytes - _TAIL_BYTES)
            self.size, self._tail = nbytes, (start, loop.run(read_range(href, start, nbytes)))

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch what is not at hand yet, concurrently; `forget` frees it."""
        wanted = [(start, stop) for start, stop in ranges if self._find(start, stop) is None]
        settings = get_settings()
        requests = plan_requests(
            [start for start, _ in wanted],
            [stop - start for start, stop in wanted],
            gap_bytes=settings.gap_bytes,
            request_bytes=settings.request_bytes,
        )

        async def read() -> list[Buffer]:
            return await asyncio.gather(*[read_range(self._href, each.start, each.stop) for each in requests])

        if requests:
            self._ahead = [(each.start, data) for each, data in zip(requests, loop.run(read()), strict=True)]

    def forget(self) -> None:
        """Free what was fetched, except a file that is all tail."""
        self._ahead = []
        if self._tail[0]:
            self._tail = self.size, memoryview(b"")

    def get(self, start: int, stop: int) -> bytes:
        """Return bytes, by a request of their own where they are not at hand."""
        found = self._find(start, stop)
        return bytes(loop.run(read_range(self._href, start, stop)) if found is None else found)

    def _find(self, start: int, stop: int) -> Buffer | None:
        for begin, data in (self._tail, *self._ahead):
            if begin <= start and stop <= begin + len(data):
                return data[start - begin : stop - begin]
        return None


class _RemoteFile(io.RawIOBase):
    """What was fetched ahead as a file for one thread."""

    def __init__(self, ahead: _Ahead) -> None:
        super().__init__()
        self._ahead, self._position = ahead, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ahead.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        start, end = self._position, self._ahead.size
        self._position = end if size < 0 else min(end, start + size)
        return self._ahead.get(start, self._position) if self._position > start else b""


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece; pyarrow's own way copies what is in one piece already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def integers(column: pa.ChunkedArray | pa.Array, null: int = 0) -> np.ndarray:
    """Return a column of integers, times, booleans or dictionary codes, with `null` for what is null.

    pyarrow's own way to numpy, and much else of it that takes a Python value, imports pandas, which takes a second.
    """
    array = one_array(column) if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if pa.types.is_timestamp(array.type):
        array = array.view(pa.int64())
    if not array.null_count:
        return np.from_dlpack(array)
    valid = np.from_dlpack(array.is_valid().cast(pa.uint8())).astype(bool)
    stored = pa.Array.from_buffers(array.type, len(array), [None, array.buffers()[1]], 0, array.offset)
    return np.where(valid, np.from_dlpack(stored), null)


def _column_ranges(metadata: pq.FileMetaData, groups: Iterable[int], names: Sequence[str]) -> list[tuple[int, int]]:
    """Return the (start, stop) of each column chunk of some row groups."""
    schema = metadata.schema
    leaves = [i for i in range(len(schema)) if schema.column(i).path.partition(".")[0] in names]
    ranges = []
    for group in groups:
        row_group = metadata.row_group(group)
        for leaf in leaves:
            chunk = row_group.column(leaf)
            start = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
            start = chunk.data_page_offset if start is None else min(start, chunk.data_page_offset)
            ranges.append((start, start + chunk.total_compressed_size))
    return ranges


@contextmanager
def _damage(href: str) -> Iterator[None]:
    """Name the file in what is raised where it cannot be read, or is damaged."""
    try:
        yield
    except (FileNotFoundError, SourceNotFoundError):
        raise ManifestError(f"{href} is missing from the manifest; build it again") from None
    except ReadError as error:
        raise ManifestError(f"{href} of the manifest cannot be read: {error.reason}") from None
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{href} of the manifest is damaged ({error}); build it again") from None
