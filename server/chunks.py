"""Encoded chunks in memory: bounded by bytes, and each made once however many ask for it at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any

from cachetools import LRUCache


class SingleFlight[T]:
    """Runs one coroutine a key at a time; who asks meanwhile gets the same result. Lives on one event loop."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, asyncio.Task[T]] = {}

    def __contains__(self, key: Hashable) -> bool:
        """Return whether the coroutine of a key is under way."""
        return key in self._flights

    async def run(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `make()` gives, started here or by somebody else; its error reaches all who wait."""
        task = self._flights.get(key)
        if task is None:
            task = self._flights[key] = asyncio.create_task(make())
            task.add_done_callback(lambda done: self._land(key, done))
        # One who waits and goes away must not take the result from the others.
        return await asyncio.shield(task)

    def _land(self, key: Hashable, task: asyncio.Task[T]) -> None:
        del self._flights[key]
        if not task.cancelled():
            task.exception()  # seen here, should nobody wait for it any more


class ChunkCache:
    """The most recently used chunks; lives on one event loop, so that a hit takes no lock and no thread."""

    def __init__(self, max_bytes: int) -> None:
        self._chunks: LRUCache[Hashable, bytes] = LRUCache(max_bytes, getsizeof=len)
        self._flights: SingleFlight[bytes] = SingleFlight()

    @property
    def nbytes(self) -> int:
        """Bytes of the chunks that are kept."""
        return int(self._chunks.currsize)

    async def get(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return a chunk, made by `make()` where it is not here; an error is raised to all who wait and not kept."""
        found = self._chunks.get(key)
        return found if found is not None else await self._flights.run(key, lambda: self._make(key, make))

    async def _make(self, key: Hashable, make: Callable[[], Awaitable[bytes]]) -> bytes:
        chunk = await make()
        if len(chunk) <= self._chunks.maxsize:
            self._chunks[key] = chunk
        return chunk
