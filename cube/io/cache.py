"""Tiles on this machine's own disk, as their stores gave them: off unless `CUBE_CACHE_BYTES` says how much room it has.

A tile is kept under the version of its object that the manifest knows (size, ETag, time): another version is another
name, so nothing is ever served that belongs to one. Where neither ETag nor time is known, nothing is kept. Headers are
not kept, apart from the manifest, which is all of them: whoever has the manifest reads none, and whoever builds or
checks one asks what the object is now, an answer that brings the header in the same round trip.

An entry is one small file, written under another name and renamed, that says which tile it is and has a checksum: a
reader finds all of it or nothing, whoever was killed when. Names are hashes: neither names nor contents show where a
tile came from. The folder is private to its user, and one that is not is not used.

Why no library: of those for one folder and many processes, diskcache has pickles in its format (CVE-2025-69872, open
in its last release), no checksums, and a limit of size that it approaches a few entries at a time; the others count
entries, not bytes, or belong to one process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cube.io.answer import Buffer
from cube.io.lock import locked
from cube.io.ranges import ObjectVersion
from cube.io.stores import local_path
from cube.settings import get_settings

FOLDER = "tiles"
"""Below the cache folder."""
_MAGIC = b"COGTILE1"
_HEAD = struct.Struct("<8s20sI")
_COUNT = struct.Struct("<Q")
_LOCK, _USED = ".lock", ".used"
_TEMPORARY = ".tmp-"
_KEPT_SHARE = 0.9
"""Of the limit, after the least recently used entries have gone."""
_BATCHES = 16
"""One write takes at most this part of the limit."""
_numbers = itertools.count()

type Piece = tuple[int, int]
"""(offset, length) of a tile in its object."""


class CacheWarning(UserWarning):
    """The cache cannot be used, and all is as if it were off."""


@dataclass(frozen=True, slots=True)
class SourceKey:
    """One version of one object, as a hash."""

    digest: bytes


def source_key(href: str, version: ObjectVersion | None) -> SourceKey | None:
    """Return the key of an object; None where its tiles are not kept: it is local, or its version is not known.

    Args:
        href: As the manifest has it, never signed.
        version: What the manifest knows of the object.
    """
    if version is None or local_path(href) is not None:
        return None
    # A weak ETag stands for more than one sequence of bytes (RFC 9110, 8.8.1).
    etag = None if version.etag is None or version.etag.startswith("W/") else version.etag
    if etag is None and version.last_modified is None:
        return None
    modified = None if version.last_modified is None else version.last_modified.isoformat()
    said = json.dumps([href, version.size, etag, modified])
    return SourceKey(hashlib.blake2b(said.encode(), digest_size=20).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What a cache holds."""

    folder: str
    entries: int
    bytes: int
    """As the files say it; a file system may take more for each."""
    max_bytes: int
    """`CUBE_CACHE_BYTES`; 0 is off."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    nbytes: int
    used_ns: int


def open_cache() -> TileCache | None:
    """Return the cache of this machine, or None where it is off."""
    settings = get_settings()
    return TileCache(settings.cache_dir / FOLDER, settings.cache_bytes) if settings.cache_bytes else None


class TileCache:
    """Tiles in a folder, of `max_bytes` at most; any number of threads and processes may use one folder.

    All methods block for as long as a disk takes, so never call them on the I/O loop. What goes wrong with the disk is
    a `CacheWarning` and no error: a tile that is not found is fetched.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def find(self, key: SourceKey, pieces: Iterable[Piece]) -> dict[Piece, Buffer]:
        """Return those of the tiles that are here; one that is damaged is deleted, and not here."""
        found: dict[Piece, Buffer] = {}
        try:
            if not self._is_there():
                return found
            for piece in pieces:
                data = _load(self._path(digest := _digest(key, piece)), digest, piece[1])
                if data is not None:
                    found[piece] = data
        except OSError as error:
            _warn(f"the tile cache {self.folder} cannot be read: {error}")
        return found

    def put(self, key: SourceKey, tiles: Mapping[Piece, Buffer | bytes]) -> None:
        """Keep tiles; those used longest ago make room.

        Raises:
            ValueError: A tile is not of its length.
        """
        if wrong := [piece for piece, data in tiles.items() if len(data) != piece[1]]:
            raise ValueError(f"the tile {wrong[0]} came with {len(tiles[wrong[0]])} bytes")
        try:
            self._prepare()
            for batch in self._batches(key, tiles):
                with locked(self.folder / _LOCK):
                    self._write(batch)
        except OSError as error:
            _warn(f"the tile cache {self.folder} cannot be written: {error}")

    def use(self) -> CacheUse:
        """Return what is here."""
        entries = list(self._entries())
        used = sum(entry.nbytes for entry in entries)
        return CacheUse(folder=str(self.folder), entries=len(entries), bytes=used, max_bytes=self.max_bytes)

    def clear(self) -> CacheUse:
        """Delete everything, and return what that was."""
        if not self.folder.is_dir():
            return self.use()
        with locked(self.folder / _LOCK):
            before = self.use()
            for entry in [*self._entries(), *self._leftovers()]:
                Path(entry.path).unlink(missing_ok=True)
            self._set_used(0)
        return before

    # Entries.

    def _path(self, digest: bytes) -> str:
        name = digest.hex()
        return f"{self.folder}/{name[:2]}/{name[2:]}"

    def _batches(self, key: SourceKey, tiles: Mapping[Piece, Buffer | bytes]) -> Iterator[list[_New]]:
        """Yield what is new, a part of the limit at a time; a tile that is larger than such a part is not kept."""
        most = max(1, self.max_bytes // _BATCHES)
        batch: list[_New] = []
        room = most
        for piece, data in tiles.items():
            digest = _digest(key, piece)
            new = _New(self._path(digest), digest, data)
            if new.nbytes > most or os.path.exists(new.path):  # noqa: PTH110 - for each tile
                continue
            if new.nbytes > room:
                yield batch
                batch, room = [], most
            batch.append(new)
            room -= new.nbytes
        if batch:
            yield batch

    def _write(self, batch: list[_New]) -> None:
        """Write some entries, after making room for them; under the lock."""
        nbytes = sum(new.nbytes for new in batch)
        used = self._used()
        if used is None or used + nbytes > self.max_bytes:
            used = self._sweep(nbytes)
        # Counted before it is written: who is killed in between leaves the count too high, never too low.
        self._set_used(used + nbytes)
        for new in batch:
            folder, _, name = new.path.rpartition("/")
            temporary = f"{folder}/{_TEMPORARY}{os.getpid()}-{threading.get_ident()}-{next(_numbers)}"
            os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with open(handle, "wb", buffering=0) as file:  # noqa: PTH123
                    file.write(_HEAD.pack(_MAGIC, new.digest, zlib.crc32(new.data)))
                    _write_all(file, memoryview(new.data))
                os.replace(temporary, f"{folder}/{name}")  # noqa: PTH105
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary)  # noqa: PTH108
                raise

    def _sweep(self, nbytes: int) -> int:
        """Delete what was used longest ago until `nbytes` more are well below the limit; return the bytes left."""
        for left in self._leftovers():  # the lock is held: whoever wrote them is dead
            Path(left.path).unlink(missing_ok=True)
        entries = sorted(self._entries(), key=lambda entry: entry.used_ns)
        used = sum(entry.nbytes for entry in entries)
        if used + nbytes <= self.max_bytes:
            return used
        for entry in entries:
            if used + nbytes <= self.max_bytes * _KEPT_SHARE:
                break
            Path(entry.path).unlink(missing_ok=True)
            used -= entry.nbytes
        return used

    def _entries(self) -> Iterator[_Entry]:
        return (entry for entry in self._files() if not os.path.basename(entry.path).startswith("."))  # noqa: PTH119

    def _leftovers(self) -> Iterator[_Entry]:
        return (entry for entry in self._files() if os.path.basename(entry.path).startswith(_TEMPORARY))  # noqa: PTH119

    def _files(self) -> Iterator[_Entry]:
        with suppress(FileNotFoundError), os.scandir(self.folder) as folders:
            for folder in folders:
                if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                    continue
                with os.scandir(folder.path) as files:
                    for file in files:
                        with suppress(FileNotFoundError):  # a damaged one goes without the lock
                            said = file.stat(follow_symlinks=False)
                            yield _Entry(file.path, said.st_size, said.st_mtime_ns)

    # The folder.

    def _used(self) -> int | None:
        """Return the bytes of all entries as they were counted, None where nobody has."""
        try:
            data = (self.folder / _USED).read_bytes()
        except FileNotFoundError:
            return None
        return _COUNT.unpack(data)[0] if len(data) == _COUNT.size else None

    def _set_used(self, nbytes: int) -> None:
        handle = os.open(self.folder / _USED, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(handle, _COUNT.pack(nbytes))
        finally:
            os.close(handle)

    def _prepare(self) -> None:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        self._is_there()

    def _is_there(self) -> bool:
        """Return whether the folder is there.

        Raises:
            OSError: It is one into which somebody else may have put a tile, or no folder.
        """
        try:
            said = os.lstat(self.folder)
        except FileNotFoundError:
            return False
        if not stat.S_ISDIR(said.st_mode):
            raise NotADirectoryError("it is no folder")
        # On Windows a user's folders are the user's.
        if hasattr(os, "getuid") and (said.st_uid != os.getuid() or said.st_mode & 0o077):
            raise PermissionError("it belongs to another user, or is open to others")
        return True


@dataclass(frozen=True, slots=True)
class _New:
    path: str
    digest: bytes
    data: Buffer | bytes

    @property
    def nbytes(self) -> int:
        return _HEAD.size + len(self.data)


def _digest(key: SourceKey, piece: Piece) -> bytes:
    return hashlib.blake2b(key.digest + struct.pack("<QQ", *piece), digest_size=20).digest()


def _load(path: str, digest: bytes, length: int) -> Buffer | None:
    """Return the tile in a file, or None; a file that holds anything else is deleted."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - for each tile
            is_whole = os.fstat(file.fileno()).st_size == _HEAD.size + length
            data = memoryview(file.read() if is_whole else b"")
    except FileNotFoundError:
        return None
    if len(data) == _HEAD.size + length:
        magic, of, checksum = _HEAD.unpack_from(data)
        tile = data[_HEAD.size :]
        if (magic, of) == (_MAGIC, digest) and zlib.crc32(tile) == checksum:
            with suppress(FileNotFoundError):  # somebody made room
                os.utime(path)  # the time of its last use
            return tile
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
    return None


def _write_all(file: Any, data: Buffer) -> None:
    while data:
        data = data[file.write(data) :]


def _warn(text: str) -> None:
    warnings.warn(f"{text}; tiles are fetched as if it were off", CacheWarning, stacklevel=3)
