"""The cache of chunks: bounded, each made once, errors not kept."""

from __future__ import annotations

import asyncio

import pytest

from server.chunks import ChunkCache, SingleFlight


def test_each_is_made_once_however_many_ask() -> None:
    async def scenario() -> tuple[int, set[bytes]]:
        cache, made = ChunkCache(100), 0

        async def make() -> bytes:
            nonlocal made
            made += 1
            await asyncio.sleep(0)
            return b"chunk"

        got = await asyncio.gather(*[cache.get("key", make) for _ in range(50)])
        got.append(await cache.get("key", make))
        return made, set(got)

    assert asyncio.run(scenario()) == (1, {b"chunk"})


def test_the_least_recently_used_goes_first_and_bytes_are_bounded() -> None:
    async def scenario() -> list[str]:
        cache, made = ChunkCache(10), []

        async def get(key: str, size: int) -> bytes:
            async def make() -> bytes:
                made.append(key)
                return bytes(size)

            chunk = await cache.get(key, make)
            assert len(chunk) == size
            assert cache.nbytes <= 10
            return chunk

        for key in "ababcab":  # c takes the place of a and b, which are made again
            await get(key, 9 if key == "c" else 5)
        await get("huge", 11)
        await get("huge", 11)
        await get("b", 5)
        return made

    assert asyncio.run(scenario()) == ["a", "b", "c", "a", "b", "huge", "huge"]


def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    async def scenario() -> None:
        cache, tries = ChunkCache(100), 0

        async def make() -> bytes:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0)
            if tries == 1:
                raise OSError("gone")
            return b"back"

        got = await asyncio.gather(*[cache.get("key", make) for _ in range(3)], return_exceptions=True)
        assert [str(error) for error in got] == ["gone"] * 3
        assert await cache.get("key", make) == b"back"

    asyncio.run(scenario())


def test_who_goes_away_takes_nothing_from_the_others() -> None:
    async def scenario() -> str:
        flights: SingleFlight[str] = SingleFlight()
        go = asyncio.Event()

        async def make() -> str:
            await go.wait()
            return "landed"

        first = asyncio.create_task(flights.run("key", make))
        second = asyncio.create_task(flights.run("key", make))
        await asyncio.sleep(0)
        assert "key" in flights
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go.set()
        result = await second
        await asyncio.sleep(0)
        assert "key" not in flights
        return result

    assert asyncio.run(scenario()) == "landed"
