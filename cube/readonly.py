"""What every read-only Zarr store of ours answers alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype


class ReadOnlyStore(Store):
    """Subclasses give `get`, `exists`, `list` and `list_dir`."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self) -> None:
        super().__init__(read_only=True)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of several keys, in their order."""
        return await asyncio.gather(*[self.get(key, prototype, part) for key, part in key_ranges])

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the keys that start with a text."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        del key, value
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse."""
        del key
        self._check_writable()


def as_slice(part: ByteRequest | None) -> slice:
    """Return which of a key's bytes are asked for."""
    match part:
        case None:
            return slice(None)
        case RangeByteRequest(start, end):
            return slice(start, end)
        case OffsetByteRequest(offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix):
            return slice(-suffix, None) if suffix else slice(0, 0)
    raise TypeError(f"Unexpected byte_range, got {part!r}")
