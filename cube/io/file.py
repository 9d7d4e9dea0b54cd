"""An object as a file to read and seek in, for libraries that want one (Parquet)."""

from __future__ import annotations

import io
from collections.abc import Coroutine
from typing import Any

from cube.io import loop
from cube.io.answer import Buffer
from cube.io.ranges import ObjectVersion, read_head, read_range


class RangeFile(io.RawIOBase):
    """A read-only file over range requests, on the process's I/O loop and budget; blocks, so never use it on the loop.

    Args:
        href: What errors and traces call the object.
        signed: The URL to fetch where it is not `href` itself.
        version: What the object must still be, which also saves the request for its size; not asked where None.

    Raises:
        SourceNotFoundError: There is no such object.
        ReadError: The store refuses or fails, now or at a later read.
    """

    def __init__(self, href: str, *, signed: str | None = None, version: ObjectVersion | None = None) -> None:
        super().__init__()
        self._href, self._signed, self._version = href, signed, version
        self._size = version.size if version is not None else loop.run(read_head(href, 1, signed=signed)).size
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position and return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes in one request, fewer at the end, all that are left where negative."""
        stop = self._size if size < 0 else min(self._size, self._position + size)
        if stop <= self._position:
            return b""
        data = bytes(loop.run(self._range(self._position, stop)))
        self._position = stop
        return data

    def _range(self, start: int, stop: int) -> Coroutine[Any, Any, Buffer]:
        return read_range(self._href, start, stop, signed=self._signed, version=self._version)
