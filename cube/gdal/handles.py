"""Rasters that GDAL opens: each for one call on one thread, self-contained, and never over a network of GDAL's own."""

from __future__ import annotations

import functools
import io
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cube.errors import HeaderError, ReadError, SourceError, SourceNotFoundError, UnsupportedSourceError
from cube.io.stores import local_path

# Formats that lie in one file, or in files of one stem, and can name no other file, URL or program.
_SIGNATURES = (
    (b"II*\0", "GTiff"), (b"MM\0*", "GTiff"), (b"II+\0", "GTiff"), (b"MM\0+", "GTiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JP2OpenJPEG"), (b"\xff\x4f\xff\x51", "JP2OpenJPEG"),
    (b"EHFA_HEADER_TAG", "HFA"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"RIFF", "WEBP"),
    (b"UHL1", "DTED"), (b"ncols", "AAIGrid"), (b"nrows", "AAIGrid"), (b"NCOLS", "AAIGrid"), (b"NROWS", "AAIGrid"),
)  # fmt: skip
# Known by a header beside them, or by their name: local files only. EHdr takes any file with a .hdr for numbers.
_NAMED = {ending: ["EHdr", "ENVI"] for ending in (".bil", ".bip", ".bsq", ".flt")} | {".hgt": ["SRTMHGT"]}
_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # sidecars are asked for by name, folders are never listed
    "GDAL_NUM_THREADS": "1",  # Python files can be read on the thread that opened them only
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",  # a truncated JPEG is one
}
_BLOCK_BYTES = 256 * 1024
_CACHED_BLOCKS = 64
_MOST_AHEAD = 16
_NAME = "source"
_HEAD_BYTES = 16
_PNG_END = b"IEND\xaeB`\x82"
_PNG_TAIL_BYTES = 4096
_MAX_BESIDE = 16
_MAX_CAUSES = 4
_quiet_lock = threading.Lock()


class BlockCache:
    """Blocks of a file that are kept in memory, so that GDAL's many small reads cost few requests.

    Give one to several calls on the same file and its header is fetched once. Threads may share it.
    """

    def __init__(self, file: io.RawIOBase) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._ahead = -1, 1
        self.size = file.seek(0, io.SEEK_END)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`, fewer at the end of the file; what is missing comes in one read."""
        stop = min(offset + size, self.size)
        if offset >= stop:
            return b""
        first, last = offset // _BLOCK_BYTES, (stop - 1) // _BLOCK_BYTES
        with self._lock:
            blocks = self._load(first, last)
        begin = offset - first * _BLOCK_BYTES
        return b"".join(blocks)[begin : begin + stop - offset]

    def _load(self, first: int, last: int) -> list[bytes]:
        missing = [number for number in range(first, last + 1) if number not in self._blocks]
        if missing:
            # Who goes on where the last read ended gets twice as much, so that a whole file costs few requests.
            self._ahead = min(2 * self._ahead, _MOST_AHEAD) if missing[0] == self._next else 1
            self._fetch(missing[0], max(missing[-1] + 1, missing[0] + self._ahead))
        blocks = [self._blocks[number] for number in range(first, last + 1)]
        for number in range(first, last + 1):
            self._blocks.move_to_end(number)
        while len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return blocks

    def _fetch(self, first: int, stop: int) -> None:
        start, end = first * _BLOCK_BYTES, min(stop * _BLOCK_BYTES, self.size)
        self._file.seek(start)
        data = self._file.read(end - start) or b""
        if len(data) != end - start:
            raise EOFError(f"ends after {start + len(data)} of {self.size} bytes")
        for place in range(0, len(data), _BLOCK_BYTES):
            self._blocks[first + place // _BLOCK_BYTES] = data[place : place + _BLOCK_BYTES]
        self._next = stop


class _Opener:
    """What rasterio calls for files: this one and no other, and it keeps the error that GDAL would not hand on."""

    def __init__(self, cache: BlockCache, *, is_exact: bool) -> None:
        self.cache = cache
        self._is_exact = is_exact
        self.error: Exception | None = None

    def __call__(self, path: str, mode: str = "rb") -> io.RawIOBase:
        if path.rpartition("/")[2] != _NAME or mode != "rb":
            raise FileNotFoundError(path)
        return _Cursor(self)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes; none after an error, for exceptions do not cross GDAL."""
        if self.error is not None:
            return b""
        try:
            data = self.cache.read(offset, size)
        except (SourceError, OSError, EOFError) as error:
            self.error = error
            return b""
        if self._is_exact and len(data) < size:
            self.error = EOFError(f"ends after {self.cache.size} bytes, before those at {offset}-{offset + size - 1}")
        return data


class _Cursor(io.RawIOBase):
    """A place in the file of an opener."""

    def __init__(self, opener: _Opener) -> None:
        super().__init__()
        self._opener, self._position = opener, 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._opener.cache.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        data = self._opener.read(self._position, self._opener.cache.size if size < 0 else size)
        self._position += len(data)
        return data


class OpenRaster:
    """An open dataset, and how to open its overviews."""

    def __init__(self, open_dataset: Callable[..., Any], base: Any) -> None:
        self._open, self.base = open_dataset, base

    @contextmanager
    def at(self, level: int) -> Iterator[Any]:
        """Open a level."""
        if level == 0:
            yield self.base
            return
        with self._open(OVERVIEW_LEVEL=level - 1) as dataset:
            _forget_complaints()
            yield dataset


@contextmanager
def open_raster(
    href: str, file: io.RawIOBase | BlockCache | None, failure: type[SourceError], *, is_quiet: bool = False
) -> Iterator[OpenRaster]:
    """Open a raster for this thread, and raise `failure` for whatever GDAL says against it until it is closed.

    A handle a call: no other thread may use it, opening takes a millisecond, and a pool would read old versions.
    """
    import rasterio
    from rasterio.session import DummySession

    with ExitStack() as stack:
        opener: _Opener | None = None
        try:
            stack.enter_context(rasterio.Env(DummySession(), **_OPTIONS))
            cache, path = _content(href, file, stack)
            drivers = _drivers(href, cache, path)
            if path is not None and drivers[0] != "HFA":
                _refuse_references(href, path)
                dataset = functools.partial(_reader(), path, driver=drivers)
            else:
                # GDAL fills with zeros what a truncated HFA lacks, so its reads are watched.
                opener = _Opener(cache, is_exact=drivers[0] == "HFA")
                dataset = functools.partial(_open_file, opener, drivers[0], is_quiet)
            base = stack.enter_context(dataset())
            _refuse_reference(href, base)
            if base.driver == "ENVI":
                _require_whole(href, base, cache)
            _forget_complaints()
            yield OpenRaster(dataset, base)
        except _errors() as error:
            cause = error if opener is None or opener.error is None else opener.error
            raise cause if isinstance(cause, SourceError) else failure(href, _reason(cause)) from error
        if opener is not None and opener.error is not None:  # GDAL went on as if nothing had happened
            cause = opener.error
            raise cause if isinstance(cause, SourceError) else failure(href, _reason(cause))


def _content(href: str, file: io.RawIOBase | BlockCache | None, stack: ExitStack) -> tuple[BlockCache, Path | None]:
    """Return the bytes of a raster, and its path where it is local and GDAL may look beside it."""
    if file is not None:
        return file if isinstance(file, BlockCache) else BlockCache(file), None
    path = local_path(href)
    # GDAL takes names below /vsi for networks, archives and memory; none of them is a file to the system.
    if path is None or not path.is_file():
        raise SourceNotFoundError(href, "there is no such file")
    return BlockCache(stack.enter_context(path.open("rb", buffering=0))), path


def _drivers(href: str, cache: BlockCache, path: Path | None) -> list[str]:
    """Return the drivers that may open a file: the one of its first bytes, else those that look beside it."""
    head = cache.read(0, _HEAD_BYTES)
    driver = next((driver for signature, driver in _SIGNATURES if head.startswith(signature)), None)
    if driver is None and path is not None:
        return _NAMED.get(path.suffix.lower(), ["ENVI"])
    if driver is None:
        known = ", ".join(dict.fromkeys(driver for _, driver in _SIGNATURES))
        raise HeaderError(href, f"is no raster of a format that is read here ({known}); it begins with {head!r}")
    # GDAL gives whatever its memory held for the rows that a truncated PNG lacks.
    if driver == "PNG" and _PNG_END not in cache.read(max(0, cache.size - _PNG_TAIL_BYTES), _PNG_TAIL_BYTES):
        raise ReadError(href, f"is a PNG without an end: it is cut off after {cache.size} bytes")
    return [driver]


@functools.cache
def _reader() -> Callable[..., Any]:
    from rasterio.io import DatasetReader

    class Reader(DatasetReader):  # type: ignore[misc]  # rasterio has no types
        """Opens files without a grid, masks for one, without rasterio's warning that they have none."""

        def _has_gcps_or_rpcs(self) -> bool:
            return True

    return Reader


def _open_file(opener: _Opener, driver: str, is_quiet: bool, **options: Any) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with ExitStack() as stack:
        if is_quiet:  # warnings' filters belong to the process
            stack.enter_context(_quiet_lock)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(f"cube/{_NAME}", opener=opener, driver=driver, **options)


def _refuse_references(href: str, path: Path) -> None:
    """Refuse a file beside whose mask or overviews GDAL would open something else: it tries all of its drivers there.

    Raises:
        UnsupportedSourceError: One is no TIFF, or names a file.
    """
    beside = [path]
    for each in beside:  # it grows: an overview file may have a mask, and so on
        for ending in (".ovr", ".OVR", ".msk", ".MSK"):
            found = each.with_name(each.name + ending)
            if not found.is_file():
                continue
            if len(beside) > _MAX_BESIDE:
                raise UnsupportedSourceError(href, f"has more than {_MAX_BESIDE} files of masks and overviews")
            beside.append(found)
            try:
                with _reader()(found, driver=["GTiff"]) as dataset:
                    _refuse_reference(href, dataset)
            except _errors() as error:
                raise UnsupportedSourceError(href, f"its {found.name} is no TIFF: {_reason(error)}") from error


def _refuse_reference(href: str, dataset: Any) -> None:
    if name := dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
        raise UnsupportedSourceError(href, f"names a file for its overviews, {name!r}, which is not followed")


def _require_whole(href: str, dataset: Any, cache: BlockCache) -> None:
    """Refuse an ENVI file that is cut off, whose rest GDAL takes for zeros."""
    offset = int(dataset.tags(ns="ENVI").get("header_offset", "0"))
    size = offset + dataset.width * dataset.height * sum(np.dtype(name).itemsize for name in dataset.dtypes)
    if cache.size < size:
        raise ReadError(href, f"has {cache.size} bytes, but its header describes {size}: it is cut off")


def _forget_complaints() -> None:
    """Drop what GDAL said while it opened a file and opened it yet: rasterio would raise it at some later call."""
    from rasterio._err import stack_errors

    with stack_errors():
        pass


@functools.cache
def _errors() -> tuple[type[Exception], ...]:
    """Return what rasterio raises; it says ValueError of CRSs and text that it cannot express."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    # The warning is one where a user has made errors of warnings, of a file whose grid was cut off.
    return (
        RasterioError,
        NotGeoreferencedWarning,
        CPLE_BaseError,
        ValueError,
        LookupError,
        SystemError,
        MemoryError,
        OSError,
        EOFError,
    )


def _reason(error: BaseException) -> str:
    """Return what GDAL said, from the last error to the first."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < _MAX_CAUSES:
        texts.append(" ".join(re.sub(r"'?/vsi\S*/" + _NAME + r"\b'?", "it", str(cause)).split()))
        cause = cause.__cause__
    said = "; ".join(text for text in dict.fromkeys(texts) if text and "See previous exception" not in text)
    return f"GDAL cannot read it: {said or type(error).__name__}"
