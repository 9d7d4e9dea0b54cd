"""Sources into local files, whole or the tiles that are wanted: many at once, each file whole or not there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cube.drift import require_unchanged, version_of
from cube.errors import CubeError, HeaderError, SourceError, UnsupportedSourceError
from cube.io.answer import Buffer
from cube.io.ranges import RangeRequest, byte_budget, plan_requests, read_range
from cube.io.stores import local_path, sign
from cube.manifest.open import Manifest, SourceFacts
from cube.settings import get_settings
from cube.tiff.excerpt import Excerpt, LevelTiles, plan_excerpt
from cube.tiff.header import Header
from cube.tiff.ifd import ByteParts, MissingBytesError

JOURNAL = ".copied"
"""In the folder of the copy's manifest: a line for each file that is whole."""
_RECIPE = 1
"""Raised when another program would write other files of the same sources."""
_SOURCES_AT_ONCE = 64
_MOST_ROUNDS = 16
_HEAD_BYTES = 8192
"""Of a header without its tile tables, most often."""
_TILE_BYTES = 16
"""Of a tile in a table."""
_FACTS = ("dtype", "byteorder", "samples", "interleave", "photometric", "validity", "nodata")
_IMAGE = ("width", "height", "tile_width", "tile_height", "compression", "predictor", "strips")

# World files, headers, tables and masks that bear the stem of the raster.
_BESIDE = re.compile(r"\.(\w{1,3}w|wld|tab|xml|aux|hdr|prj|rrd|ige|clr|stx|msk|ovr)")

type PatchUrl = Callable[[str], str] | None


class Extent(NamedTuple):
    """Which levels of a source are copied."""

    first: int
    """Becomes full resolution."""
    stop: int
    scale: tuple[float, float]
    """(across, down) in full-resolution pixels of a pixel of `first`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What is copied of one file."""

    facts: SourceFacts
    position: int
    """Of the source in the manifest."""
    name: str
    """Of the local file, relative to the folder of the copy."""
    tiles: Mapping[int, int]
    """Bytes of the tiles that are wanted, by offset; none where the file is copied whole."""
    head_bytes: int
    """Fetched from the file's beginning before it is known where its header ends."""

    @property
    def is_whole(self) -> bool:
        """Whether the file is copied as it is, because GDAL reads it."""
        return self.facts.path == "gdal"

    @property
    def is_remote(self) -> bool:
        """Whether requests are needed for it."""
        return local_path(self.facts.href) is None

    @property
    def requests(self) -> list[RangeRequest]:
        """What is fetched; a header that does not begin the file takes more."""
        settings = get_settings()
        if self.is_whole:
            starts = list(range(0, self.facts.size, settings.request_bytes))
            return [
                RangeRequest(start, min(self.facts.size, start + settings.request_bytes), (i,))
                for i, start in enumerate(starts)
            ]
        return plan_requests(
            [0, *self.tiles],
            [self.head_bytes, *self.tiles.values()],
            gap_bytes=settings.gap_bytes,
            request_bytes=settings.request_bytes,
        )

    @property
    def disk_bytes(self) -> int:
        """About the bytes of the local file."""
        return self.facts.size if self.is_whole else self.head_bytes + sum(self.tiles.values())

    def fingerprint(self, extent: Extent) -> str:
        """Return what the local file follows from, as a hash."""
        facts = self.facts
        modified = None if facts.last_modified is None else facts.last_modified.isoformat()
        said = [_RECIPE, facts.href, facts.size, facts.etag, modified, facts.path, *extent, sorted(self.tiles.items())]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def plan_head(facts: SourceFacts, tiles_of_all: int) -> int:
    """Return how much of a file to ask for so that its header most likely is in it, by the number of all its tiles."""
    return min(facts.size, max(get_settings().header_bytes, _HEAD_BYTES + _TILE_BYTES * tiles_of_all))


class Journal:
    """Which files of a copy are whole, on disk: what a run that was killed has done is not done again."""

    def __init__(self, folder: Path, root: Path) -> None:
        """Read it.

        Args:
            folder: Of the copy's manifest.
            root: What the files' names are relative to.
        """
        self._path, self._root = folder / JOURNAL, root
        self._done: dict[str, tuple[str, int]] = {}
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        for line in text.splitlines():
            # A line that was being written when the process was killed is no JSON, and its file is copied again.
            with suppress(ValueError):
                name, fingerprint, size = json.loads(line)
                self._done[name] = (fingerprint, size)

    def has(self, name: str, fingerprint: str) -> bool:
        """Return whether a file is there, whole and as it would be written now."""
        found = self._done.get(name)
        if found is None or found[0] != fingerprint:
            return False
        try:
            return (self._root / name).stat().st_size == found[1]
        except OSError:
            return False

    def add(self, name: str, fingerprint: str, size: int) -> None:
        """Note a file that is whole."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps([name, fingerprint, size]) + "\n")  # the line before may be half a one
        self._done[name] = (fingerprint, size)


async def transfer_all(
    manifest: Manifest,
    transfers: Sequence[Transfer],
    extent: Extent,
    journal: Journal,
    root: Path,
    *,
    patch_url: PatchUrl,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Copy many sources; runs on the I/O loop.

    Args:
        manifest: The cube that is copied.
        transfers: What to copy.
        extent: The levels.
        journal: Gets each file that is whole.
        root: The folder that names are relative to.
        patch_url: Applied to each href when it is fetched, to sign it.
        progress: Called with (bytes done, bytes in all).

    Raises:
        SourceError: A source changed, is gone, or cannot be read; those that were copied until then stay.
    """
    total, done = sum(each.disk_bytes for each in transfers), 0
    waiting = iter(transfers)

    async def work() -> None:
        nonlocal done
        for each in waiting:
            size = await _Copying(manifest, each, extent, root, patch_url).run()
            await asyncio.to_thread(journal.add, each.name, each.fingerprint(extent), size)
            done += each.disk_bytes
            if progress is not None:
                progress(done, total)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(len(transfers), _SOURCES_AT_ONCE)):
                group.create_task(work())
    except* (SourceError, OSError) as errors:
        first = min(_leaves(errors), key=str)
        if isinstance(first, SourceError):
            raise first from first.__cause__
        raise CubeError(f"the copy cannot be written: {first}; what is done stays, and is not fetched again") from first


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


@dataclass(frozen=True, slots=True)
class _Copying:
    """One source while it is copied."""

    manifest: Manifest
    of: Transfer
    extent: Extent
    root: Path
    patch_url: PatchUrl

    async def run(self) -> int:
        """Write the local file, and return its size."""
        await asyncio.to_thread(require_unchanged, self.manifest, self.of.position, self.of.facts)
        path = self.root / self.of.name
        with _replacing(path) as part:
            if self.of.is_whole:
                size = self.of.facts.size
                await self._fetch_all(part, self.of.requests, {})
            else:
                size = await self._excerpt(part)
            await asyncio.to_thread(part.finish, size)
        if self.of.is_whole and (source := local_path(self.of.facts.href)) is not None:
            for each in sidecars(source):
                await asyncio.to_thread(
                    shutil.copyfile, each, path.with_name(path.stem + each.name[len(source.stem) :])
                )
        return size

    async def _excerpt(self, part: _Part) -> int:
        first, *others = self.of.requests
        async with byte_budget().hold(first.stop - first.start):
            data = await self._read(first.start, first.stop)
            excerpt = await self._plan(data)
            await asyncio.to_thread(part.write, 0, memoryview(excerpt.head))
            await asyncio.to_thread(self._place, part, first, data, excerpt.places)
        await self._fetch_all(part, others, excerpt.places)
        return excerpt.size

    async def _plan(self, head: Buffer) -> Excerpt:
        href = self.of.facts.href
        parts = ByteParts(self.of.facts.size)
        parts.add(0, head)
        levels = await asyncio.to_thread(self._levels)
        fetched, most = len(head), get_settings().max_header_bytes + len(head)
        for _ in range(_MOST_ROUNDS):
            try:
                excerpt = plan_excerpt(
                    href, parts, levels, self.of.tiles, first=self.extent.first, scale=self.extent.scale
                )
            except MissingBytesError as missing:
                fetched += sum(stop - start for start, stop in missing.ranges)
                if fetched > most:
                    raise HeaderError(
                        href, f"its header takes more than {most} bytes (CUBE_MAX_HEADER_BYTES)"
                    ) from None
                for start, stop in missing.ranges:
                    parts.add(start, await self._read(start, stop))
                continue
            self._require_same(excerpt.header, levels)
            return excerpt
        raise HeaderError(href, f"its header is scattered over more than {_MOST_ROUNDS} places that follow each other")

    def _levels(self) -> list[LevelTiles]:
        manifest, source = self.manifest, self.of.position
        levels = []
        for level in range(self.extent.first, self.extent.stop):
            try:
                mask = manifest.mask(source, level)
            except SourceError:
                mask = None
            levels.append(LevelTiles(manifest.image(source, level), mask))
        return levels

    def _require_same(self, header: Header, levels: Sequence[LevelTiles]) -> None:
        """Refuse a file whose copy would mean something else than the manifest says."""
        facts = self.of.facts
        pairs = [(name, getattr(facts, name), getattr(header, name)) for name in _FACTS]
        for level, (tiles, _) in enumerate(levels):
            pairs += [
                (f"{name} of level {level}", getattr(tiles, name), getattr(header.levels[level], name))
                for name in _IMAGE
                if level < len(header.levels)
            ]
        odd = [f"{name} {found} instead of {known}" for name, known, found in pairs if repr(known) != repr(found)]
        if len(header.levels) != self.extent.stop - self.extent.first:
            odd.append(f"{len(header.levels)} levels")
        if header.needs_gdal is not None:
            odd.append(header.needs_gdal)
        if odd:
            raise UnsupportedSourceError(facts.href, f"cannot be copied in part: the copy would have {'; '.join(odd)}")

    async def _fetch_all(self, part: _Part, requests: Sequence[RangeRequest], places: Mapping[int, int]) -> None:
        async def fetch(request: RangeRequest) -> None:
            async with byte_budget().hold(request.stop - request.start):
                data = await self._read(request.start, request.stop)
                await asyncio.to_thread(self._place, part, request, data, places)

        async with asyncio.TaskGroup() as group:
            for request in requests:
                group.create_task(fetch(request))

    async def _read(self, start: int, stop: int) -> Buffer:
        facts = self.of.facts
        return await read_range(
            facts.href, start, stop, signed=sign(facts.href, self.patch_url), version=version_of(facts)
        )

    def _place(self, part: _Part, request: RangeRequest, data: Buffer, places: Mapping[int, int]) -> None:
        if self.of.is_whole:
            part.write(request.start, data)
            return
        tiles = list(self.of.tiles.items())
        for member in request.members:
            if member:  # 0 is the header
                offset, length = tiles[member - 1]
                begin = offset - request.start
                part.write(places[offset], data[begin : begin + length])


class _Part:
    """A file while it is written, by several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=0)
        self._lock = threading.Lock()

    def write(self, place: int, data: Buffer) -> None:
        """Write bytes at a place."""
        with self._lock:
            self._file.seek(place)
            while data:
                data = data[self._file.write(data) :]

    def finish(self, size: int) -> None:
        """Have it on the disk, all of it."""
        found = os.fstat(self._file.fileno()).st_size
        if found != size:
            raise OSError(f"{self._path} has {found} bytes instead of {size}")
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it."""
        self._file.close()


@contextmanager
def _replacing(path: Path) -> Iterator[_Part]:
    """Give a file to write, which takes its place when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with closing(_Part(temporary)) as part:
            yield part
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sidecars(path: Path) -> list[Path]:
    """Return the files from which GDAL may take what a local raster does not say itself."""
    name, stem = path.name.lower(), path.stem.lower()
    found = []
    for each in path.parent.iterdir():
        other = each.name.lower()
        is_beside = other.startswith(f"{name}.") or (
            other.startswith(f"{stem}.") and _BESIDE.fullmatch(other[len(stem) :])
        )
        if is_beside and other != name and each.is_file():
            found.append(each)
    return sorted(found)
