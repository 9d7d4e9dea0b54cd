"""URLs to headers: many COGs at once, one request for nearly every one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cube.errors import HeaderError, SourceError
from cube.io import loop
from cube.io.ranges import plan_requests, read_head, read_range
from cube.io.stores import sign
from cube.settings import get_settings
from cube.source import Source
from cube.tiff.header import Header, parse_header
from cube.tiff.ifd import ByteParts, MissingBytesError

_MAX_ROUNDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedSource:
    """A source with its header and what the store says of the object."""

    source: Source
    header: Header
    size: int
    """Bytes of the object."""
    etag: str | None
    """Without quotes."""
    last_modified: datetime | None


def scan_sources(
    sources: Sequence[Source],
    *,
    patch_url: Callable[[str], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[ScannedSource], list[SourceError]]:
    """Read the headers of all sources, concurrently.

    Args:
        sources: What to scan.
        patch_url: Applied to each href before it is fetched, to sign it.
        progress: Called with (done, total) as headers arrive.

    Returns:
        The sources that could be read, in order, and an error for each that could not.
    """
    return loop.run(_scan_all(sources, patch_url, progress))


async def _scan_all(
    sources: Sequence[Source],
    patch_url: Callable[[str], str] | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[ScannedSource], list[SourceError]]:
    results: list[ScannedSource | SourceError | None] = [None] * len(sources)
    positions = iter(range(len(sources)))
    done = 0

    async def work() -> None:
        nonlocal done
        for i in positions:
            try:
                results[i] = await _scan(sources[i], patch_url)
            except SourceError as error:
                results[i] = error
            done += 1
            if progress is not None:
                progress(done, len(sources))

    # As many workers as requests in flight, not a task a source: a million sources are no more memory than 256.
    async with asyncio.TaskGroup() as group:
        for _ in range(min(len(sources), get_settings().requests_in_flight)):
            group.create_task(work())
    return (
        [result for result in results if isinstance(result, ScannedSource)],
        [result for result in results if isinstance(result, SourceError)],
    )


async def _scan(source: Source, patch_url: Callable[[str], str] | None) -> ScannedSource:
    settings = get_settings()
    href = source.href
    signed = sign(href, patch_url)
    head = await read_head(href, settings.header_bytes, signed=signed)
    parts = ByteParts(head.size)
    parts.add(0, head.data)
    fetched = len(head.data)
    for _ in range(_MAX_ROUNDS):
        # Headers that came together are parsed together, and then the next requests are sent: changing between the
        # two for each would miss the processor's caches, which costs as much as the parsing.
        await asyncio.sleep(0)
        wanted: tuple[tuple[int, int], ...] = ()
        try:
            header = parse_header(href, parts)
        except MissingBytesError as missing:
            wanted = missing.ranges
        await asyncio.sleep(0)
        if not wanted:
            return ScannedSource(
                source=source, header=header, size=head.size, etag=head.etag, last_modified=head.last_modified
            )
        fetched += sum(stop - start for start, stop in wanted)
        if fetched > settings.max_header_bytes:
            raise HeaderError(
                href, f"its header takes more than {settings.max_header_bytes} bytes (CUBE_MAX_HEADER_BYTES)"
            )
        await _fetch(href, parts, wanted, signed)
    raise HeaderError(href, f"its header is scattered over more than {_MAX_ROUNDS} places that follow from one another")


async def _fetch(href: str, parts: ByteParts, wanted: Sequence[tuple[int, int]], signed: str | None) -> None:
    """Add the bytes of some ranges to the parts."""
    settings = get_settings()
    requests = plan_requests(
        [start for start, _ in wanted],
        [stop - start for start, stop in wanted],
        gap_bytes=settings.gap_bytes,
        request_bytes=settings.request_bytes,
    )
    buffers = await asyncio.gather(*[read_range(href, each.start, each.stop, signed=signed) for each in requests])
    for each, data in zip(requests, buffers, strict=True):
        parts.add(each.start, data)
