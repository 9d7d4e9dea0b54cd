"""Zarr stores over the process's one I/O loop: a folder of keys, and references into files."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from cube.errors import ReferencesError, SourceNotFoundError
from cube.foreign.documents import JsonReferences, Reference, References, read_references
from cube.foreign.prefixes import Prefixes
from cube.io import loop
from cube.io.ranges import RangeRequest, plan_requests, read_all, read_head, read_range
from cube.io.stores import join, local_path, redact
from cube.readonly import ReadOnlyStore, as_slice
from cube.settings import get_settings

_MOST_OBJECT_BYTES = 1 << 31


class FolderStore(ReadOnlyStore):
    """A Zarr store as a folder of a disk, of an object store or behind HTTP; pickles to its URL."""

    def __init__(self, url: str) -> None:
        """Remember where it is; nothing is read."""
        super().__init__()
        self._url = url.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process opens the same store."""
        return FolderStore, (self._url,)

    def __eq__(self, other: object) -> bool:
        """Return whether both are of one folder."""
        return isinstance(other, FolderStore) and self._url == other._url

    def __hash__(self) -> int:
        """Return a hash that equal stores share."""
        return hash(self._url)

    def __repr__(self) -> str:
        """Return where it is."""
        return f"<FolderStore {redact(self._url)}>"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a key, or None where there is no such object."""
        url = join(self._url, key)
        try:
            if byte_range is None:
                data: Any = await loop.bridge(read_all(url, max_bytes=_MOST_OBJECT_BYTES))
            else:
                data = await loop.bridge(_read_part(url, byte_range))
        except SourceNotFoundError:
            return None
        return prototype.buffer.from_bytes(data)

    async def exists(self, key: str) -> bool:
        """Return whether there is such an object."""
        try:
            await loop.bridge(read_head(join(self._url, key), 1))
        except SourceNotFoundError:
            return False
        return True

    async def list(self) -> AsyncIterator[str]:
        """Iterate over all keys of a folder on a disk.

        Raises:
            ReferencesError: It is elsewhere.
        """
        root = self._local_root()
        for path in sorted(root.rglob("*")):
            if path.is_file():
                yield path.relative_to(root).as_posix()

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the names in a folder of a folder on a disk; errors as of `list`."""
        folder = self._local_root() / prefix
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            yield path.name

    def _local_root(self) -> Path:
        root = local_path(self._url)
        if root is None:
            raise ReferencesError(
                f"the Zarr store {redact(self._url)} has no consolidated metadata, and so does not say what it holds; "
                "whoever wrote it can add them with zarr.consolidate_metadata"
            )
        return root


async def _read_part(url: str, part: ByteRequest) -> Any:
    match part:
        case RangeByteRequest(start, end):
            return await read_range(url, start, end) if end > start else b""
        case OffsetByteRequest(offset):
            start, stop = offset, (await read_head(url, 1)).size
        case SuffixByteRequest(suffix):
            stop = (await read_head(url, 1)).size
            start = max(0, stop - suffix)
        case _:
            raise TypeError(f"Unexpected byte_range, got {part!r}")
    return await read_range(url, start, stop) if stop > start else b""


class ReferenceStore(ReadOnlyStore):
    """A Zarr store whose chunks lie in files of other kinds; pickles to where its references are."""

    def __init__(
        self, url: str, *, allow: Sequence[str] = (), protocol: str | None = None, version: str | None = None
    ) -> None:
        """Read the references, or their metadata where they are in Parquet; blocks.

        Args:
            url: Path or URL of a .json file, or of a folder of Parquet files.
            allow: URLs and paths below which they may point, besides their own folder.
            protocol: What "bucket/key" in references stands for, such as "s3"; they are relative to their folder
                where None.
            version: What `document_version` gave; the present one where None.

        Raises:
            ReferencesError: They cannot be used, or point to where they may not, or are no longer the same.
            ReadError: They cannot be read.
        """
        super().__init__()
        self._url, self._allow, self._protocol = url, tuple(allow), protocol
        self.version = document_version(references_document(url)) if version is None else version
        self._references, self._prefixes = _load(url, self._allow, protocol, self.version)
        self._pending: dict[asyncio.AbstractEventLoop, list[_Wanted]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _identity(self) -> tuple[str, tuple[str, ...], str | None, str]:
        return self._url, self._allow, self._protocol, self.version

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process opens the same store."""
        return _reopen, self._identity

    def __eq__(self, other: object) -> bool:
        """Return whether both are of the same references."""
        return isinstance(other, ReferenceStore) and self._identity == other._identity

    def __hash__(self) -> int:
        """Return a hash that equal stores share."""
        return hash(self._identity)

    def __repr__(self) -> str:
        """Return where the references are."""
        return f"<ReferenceStore {redact(self._url)}>"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a key, or None where the references hold none.

        Raises:
            ReferencesError: It points to where it may not.
            ReadError: What it points to cannot be read, or is not there: never the same as an absent key.
        """
        found = await self._find(key)
        if found is None or (isinstance(found, Reference) and not found.target):
            return None
        if isinstance(found, bytes):
            return prototype.buffer.from_bytes(found[as_slice(byte_range)])
        data = await self._read(self._prefixes.resolve(_with_protocol(found.target, self._protocol)), found, byte_range)
        return prototype.buffer.from_bytes(data)

    async def _find(self, key: str) -> bytes | Reference | None:
        if isinstance(self._references, JsonReferences):
            return self._references.find(key)
        return await asyncio.to_thread(self._references.find, key)  # it may have to read

    async def _read(self, href: str, found: Reference, part: ByteRequest | None) -> Any:
        if found.length is None:
            if part is None and not found.offset:
                return await loop.bridge(read_all(href, max_bytes=_MOST_OBJECT_BYTES))
            length = (await loop.bridge(read_head(href, 1))).size - found.offset
        else:
            length = found.length
        within = range(length)[as_slice(part)]
        if not within:
            return b""
        running = asyncio.get_running_loop()
        wanted = _Wanted(href, found.offset + within.start, len(within), running.create_future())
        waiting = self._pending.setdefault(running, [])
        if not waiting:  # all that zarr asks for at once is asked of the files together
            running.call_soon(self._start, running)
        waiting.append(wanted)
        return await wanted.future

    def _start(self, running: asyncio.AbstractEventLoop) -> None:
        settings = get_settings()
        every = sorted(self._pending.pop(running), key=lambda wanted: wanted.href)
        for href, group in itertools.groupby(every, key=lambda wanted: wanted.href):
            wanted = list(group)
            offsets, lengths = [each.offset for each in wanted], [each.length for each in wanted]
            for request in plan_requests(
                offsets, lengths, gap_bytes=settings.gap_bytes, request_bytes=settings.request_bytes
            ):
                task = running.create_task(_answer(href, request, wanted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def exists(self, key: str) -> bool:
        """Return whether a key holds something; what it points to is not asked."""
        return await self._find(key) is not None

    async def list(self) -> AsyncIterator[str]:
        """Iterate over all keys."""
        for key in self._references.keys():  # noqa: SIM118 - it is no mapping
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the names directly in a folder."""
        start = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        for name in _names(self._references.keys(), start):
            yield name


class _Wanted(NamedTuple):
    """A range of a file that somebody waits for."""

    href: str
    offset: int
    length: int
    future: asyncio.Future[Any]


async def _answer(href: str, request: RangeRequest, wanted: list[_Wanted]) -> None:
    """Read one request and hand out its parts."""
    members = [wanted[i] for i in request.members]
    try:
        data = memoryview(await loop.bridge(read_range(href, request.start, request.stop)))
    except BaseException as error:
        for each in members:
            if not each.future.done():
                each.future.set_exception(error)
        if not isinstance(error, Exception):
            raise
        return
    for each in members:
        if not each.future.done():
            start = each.offset - request.start
            each.future.set_result(data[start : start + each.length])


def document_version(url: str) -> str:
    """Return what tells one state of a document (of references, or a store's metadata) from the next; blocks.

    Raises:
        ReadError: It cannot be read.
    """
    head = loop.run(read_head(url, 1))
    return f"{head.etag or head.last_modified}-{head.size}"


def references_document(url: str) -> str:
    """Return the URL of the document that references begin with: a JSON file itself, or the metadata of a folder."""
    is_file = url.partition("?")[0].rstrip("/").endswith(".json")
    return url if is_file else join(url.rstrip("/"), ".zmetadata")


def _reopen(url: str, allow: tuple[str, ...], protocol: str | None, version: str) -> ReferenceStore:
    return ReferenceStore(url, allow=allow, protocol=protocol, version=version)


@functools.lru_cache(maxsize=8)
def _load(url: str, allow: tuple[str, ...], protocol: str | None, version: str) -> tuple[References, Prefixes]:
    """Return references, read once a process and version."""
    document = references_document(url)
    now = document_version(document)
    if now != version:
        raise ReferencesError(f"the references {redact(url)} changed since they were opened; open them again")
    references, prefixes = read_references(url), Prefixes(url, allow)
    prefixes.resolve_all(_with_protocol(target, protocol) for target in references.targets() if target)
    return references, prefixes


def _with_protocol(target: str, protocol: str | None) -> str:
    return f"{protocol}://{target.lstrip('/')}" if protocol and "://" not in target else target


def _names(keys: Iterator[str], start: str) -> list[str]:
    return sorted({key.removeprefix(start).partition("/")[0] for key in keys if key.startswith(start)})
