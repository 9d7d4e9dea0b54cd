"""What a store can do, measured, and the settings that follow from it: `cube tune`."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from cube.errors import SelectionError
from cube.grid import Window
from cube.io import loop, trace
from cube.io.ranges import read_head, read_range
from cube.io.stores import local_path, redact
from cube.manifest.open import Manifest, SourceLevel
from cube.plan import Piece, Target, plan_image
from cube.scan import scan_sources
from cube.settings import KIB, get_settings
from cube.source import Source
from cube.tiff.decode import decode_tile
from cube.tiff.header import Level

MAX_BYTES = 64_000_000
"""What measuring may fetch, unless another number is given."""
_FEWEST_BYTES = 1_000_000
"""Smaller objects measure nothing but the first byte."""
_OBJECTS = 8
_TINY_READS = 20
_BODY_READS = 3
_MOST_BODY_BYTES = 4_000_000
_FIRST_ROUND = 4
_WAVES = 2
"""Requests of a round, in multiples of those in flight: in one wave alone the store's pace would not show."""
_GROWTH = 1.1
_ENOUGH = 0.9
"""Of the best round's pace: fewer requests in flight that reach it are the better choice."""
_LARGE_READS = 32
_EDGE_TILES = 4
_DECODE_S = 0.2
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What a number of requests in flight achieved."""

    in_flight: int
    requests: int
    bytes: int
    seconds: float
    refused: int
    """Attempts that failed and were made again: 429, 503, broken connections."""

    @property
    def requests_s(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def mb_s(self) -> float:
        """Megabytes a second."""
        return self.bytes / self.seconds / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was measured of a store, and what it means for the settings."""

    target: str
    objects: int
    """How many objects were read."""
    latency_ms: float
    """To the first byte, median."""
    latency_p95_ms: float
    connection_mb_s: float
    """Of one connection."""
    store_mb_s: float
    """Of all connections together."""
    rounds: tuple[Round, ...]
    """At rising numbers in flight, until it went no faster or the store refused."""
    decode_mb_s: float | None
    """Decoded megabytes a second of one core; None where the object is not a COG that is decoded here."""
    requests: int
    bytes: int
    seconds: float

    @property
    def requests_in_flight(self) -> int:
        """The fewest that reach nearly the best pace; half of what made the store refuse, where it did."""
        well = [each for each in self.rounds if not each.refused]
        refused = [each.in_flight for each in self.rounds if each.refused]
        if not well:
            return max(1, min(refused, default=2) // 2)
        best = max(each.requests_s for each in well)
        return next(each.in_flight for each in well if each.requests_s >= _ENOUGH * best)

    @property
    def gap_bytes(self) -> int:
        """Bytes that cost as much as a round trip, of a connection that shares the store with all others in flight."""
        share = min(self.connection_mb_s, self.store_mb_s / self.requests_in_flight) * 1e6
        gap = min(self.latency_ms / 1e3 * share, get_settings().request_bytes / 2)
        return max(1, round(gap / KIB)) * KIB

    @property
    def settings(self) -> dict[str, float]:
        """The settings that are proposed, by variable."""
        found: dict[str, float] = {
            "CUBE_LATENCY_MS": round(self.latency_ms, 1),
            "CUBE_CONNECTION_MB_S": _digits(self.connection_mb_s),
            "CUBE_STORE_MB_S": _digits(self.store_mb_s),
            "CUBE_REQUESTS_IN_FLIGHT": self.requests_in_flight,
            "CUBE_GAP_BYTES": self.gap_bytes,
        }
        return found | ({} if self.decode_mb_s is None else {"CUBE_DECODE_MB_S": _digits(self.decode_mb_s)})

    def to_json(self) -> dict[str, Any]:
        """Return what was measured and what is proposed as JSON values."""
        rounds = [asdict(each) | {"requests_s": each.requests_s, "mb_s": each.mb_s} for each in self.rounds]
        return asdict(self) | {"rounds": rounds, "settings": self.settings}

    def __str__(self) -> str:
        objects = "1 object" if self.objects == 1 else f"{self.objects} objects"
        decode = "not measured: no COG that is decoded here"
        lines = [
            ("first byte", f"{self.latency_ms:.1f} ms (median), {self.latency_p95_ms:.1f} ms (95 %)"),
            ("one connection", f"{self.connection_mb_s:.1f} MB/s"),
            ("in total", f"{self.store_mb_s:.1f} MB/s"),
            *((f"{each.in_flight} in flight", _round_words(each)) for each in self.rounds),
            ("decode", decode if self.decode_mb_s is None else f"{self.decode_mb_s:.0f} MB/s a core"),
            ("asked", f"{self.requests:,} requests, {self.bytes / 1e6:.1f} MB, in {self.seconds:.1f} s"),
            ("of", f"{objects} of {self.target}"),
        ]
        exports = [f"export {name}={value:.10g}" for name, value in self.settings.items()]
        return "\n".join([*(f"{what:<15} {value}" for what, value in lines), "", *exports])


def _round_words(each: Round) -> str:
    refused = f", {each.refused} refused" if each.refused else ""
    return f"{each.requests_s:,.0f} requests a second, {each.mb_s:.1f} MB/s{refused}"


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def tune(target: str | Manifest, *, max_bytes: int = MAX_BYTES) -> Tuning:
    """Measure a store: its first byte, one connection, and all of them at rising numbers in flight.

    About 1,100 requests and at most `max_bytes` bytes. Numbers in flight rise to `CUBE_REQUESTS_IN_FLIGHT`.

    Args:
        target: The URL of an object of a few megabytes (a COG, so that decoding is measured, too), or a cube, of which
            the first sources are read.
        max_bytes: The most bytes to fetch.

    Raises:
        SelectionError: There is nothing to measure: local files, or objects that are too small.
        ReadError: The store cannot be read.
    """
    if max_bytes < _FEWEST_BYTES:
        raise SelectionError(f"max_bytes={max_bytes:,}: measuring takes at least {_FEWEST_BYTES:,} bytes")
    began = time.perf_counter()
    with trace.trace() as asked:
        objects = _objects(target)
        tiles = _tiles_of_cube(target) if isinstance(target, Manifest) else _tiles_of_file(target)
        left = max_bytes - asked.bytes - _TINY_READS - 1
        # An eighth for decoding, an eighth for one connection, half for the rounds, a quarter for all at their best.
        decode_mb_s = _measure_decode(tiles, left // 8)
        tiny = loop.run(_tiny_reads(objects[0][0], _TINY_READS))
        latency_s = statistics.median(tiny)
        connection = loop.run(_one_connection(objects, left // 8, latency_s))
        rounds = loop.run(_rounds(objects, left // 2))
        last = loop.run(_last_round(objects, left // 4, rounds))
    # Large requests show the line's own pace once their first bytes are there; small ones, that of asking.
    store = max(*(each.mb_s for each in rounds), last.bytes / _body(last.seconds, latency_s) / 1e6)
    return Tuning(
        target=target.name if isinstance(target, Manifest) else redact(target),
        objects=len(objects),
        latency_ms=latency_s * 1e3,
        latency_p95_ms=float(np.quantile(tiny, 0.95)) * 1e3,
        connection_mb_s=min(connection / 1e6, store),
        store_mb_s=store,
        rounds=rounds,
        decode_mb_s=decode_mb_s,
        requests=asked.requests,
        bytes=asked.bytes,
        seconds=time.perf_counter() - began,
    )


def measure_first_byte(href: str, *, reads: int, timeout_s: float) -> float:
    """Return the median seconds to the first byte of an object over a connection that stands.

    Args:
        href: The object; one byte of it is read `reads` + 1 times.
        reads: How often, after the first, which connects.
        timeout_s: For all of them together.

    Raises:
        ReadError: It cannot be read.
        TimeoutError: It takes longer.
    """

    async def measure() -> list[float]:
        async with asyncio.timeout(timeout_s):
            return await _tiny_reads(href, reads)

    return statistics.median(loop.run(measure()))


async def _tiny_reads(href: str, reads: int) -> list[float]:
    """Return the seconds to the first byte of each of some reads that follow a first one, which connects."""
    await read_range(href, 0, 1)
    with trace.trace() as asked:
        for _ in range(reads):
            await read_range(href, 0, 1)
    return [_first_byte_s(each) for each in asked.records if each.href == href and not each.failed]


def _first_byte_s(request: trace.Request) -> float:
    return request.seconds if request.first_byte_s is None else request.first_byte_s


type _Objects = Sequence[tuple[str, int]]
"""(href, bytes)"""


def _objects(target: str | Manifest) -> _Objects:
    """Return what is read: the object, or the first sources of a cube that lie in one store."""
    if isinstance(target, Manifest):
        table = target.source_table()
        rows = list(zip(table["href"].to_pylist(), table["size"].to_pylist(), strict=True))
        store = urlsplit(rows[0][0])[:2]
        found = [row for row in rows if urlsplit(row[0])[:2] == store][:_OBJECTS]
        name = f"the sources of {target.name!r}"
    else:
        found, name = [(target, 0)], redact(target)
    if local_path(found[0][0]) is not None:
        raise SelectionError(f"{name}: a local disk needs no tuning; give the URL of an object, or a cube of such")
    if not isinstance(target, Manifest):
        found = [(target, loop.run(read_head(target, 1)).size)]
    if sum(size for _, size in found) < _FEWEST_BYTES:
        raise SelectionError(f"{name}: too small to measure; give an object of {_FEWEST_BYTES:,} bytes or more")
    return found


def _ranges(objects: _Objects, nbytes: int) -> Iterator[tuple[str, int, int]]:
    """Yield ranges of at most `nbytes` bytes for ever, scattered, so that no cache has them yet."""
    for i, (href, size) in zip(itertools.count(1), itertools.cycle(objects), strict=False):
        length = min(nbytes, size)
        start = int(i * _GOLDEN % 1 * (size - length))
        yield href, start, start + length


async def _one_connection(objects: _Objects, max_bytes: int, latency_s: float) -> float:
    """Return the bytes a second of one request's body, the median of some after one another."""
    with trace.trace() as asked:
        nbytes = min(_MOST_BODY_BYTES, max_bytes // _BODY_READS)
        for href, start, stop in itertools.islice(_ranges(objects, nbytes), _BODY_READS):
            await read_range(href, start, stop)
    well = [each for each in asked.records if not each.failed]
    return statistics.median((each.stop - each.start) / _body(each.seconds, latency_s) for each in well)


def _body(seconds: float, latency_s: float) -> float:
    """Return the seconds of a body: what is left without the first byte, and never nothing, as latencies vary."""
    return max(seconds - latency_s, 0.1 * seconds)


async def _round(objects: _Objects, in_flight: int, count: int, nbytes: int) -> Round:
    """Return what `count` requests achieve, so many in flight."""
    wanted = itertools.islice(_ranges(objects, nbytes), count)

    async def work() -> None:
        for href, start, stop in wanted:
            await read_range(href, start, stop)

    with trace.trace() as asked:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
        seconds = time.perf_counter() - began
    refused = sum(each.failed and not each.hedge for each in asked.records)
    return Round(in_flight=in_flight, requests=count, bytes=asked.bytes, seconds=seconds, refused=refused)


async def _rounds(objects: _Objects, max_bytes: int) -> tuple[Round, ...]:
    """Return rounds at rising numbers in flight, until two bring nothing or the store refuses."""
    most = get_settings().requests_in_flight
    numbers = [*itertools.takewhile(lambda n: n < most, (_FIRST_ROUND * 2**i for i in range(10))), most]
    nbytes = max_bytes // (_WAVES * sum(numbers))
    done: list[Round] = []
    for number in numbers:
        done.append(await _round(objects, number, _WAVES * number, nbytes))
        before = [each.requests_s for each in done[:-2]]
        if done[-1].refused or (before and max(each.requests_s for each in done[-2:]) < _GROWTH * max(before)):
            break
    return tuple(done)


async def _last_round(objects: _Objects, max_bytes: int, rounds: Sequence[Round]) -> Round:
    """Return what large requests achieve at the best pace: small ones may not fill the line."""
    best = max(rounds, key=lambda each: (not each.refused, each.requests_s))
    number = min(best.in_flight, _LARGE_READS)
    return await _round(objects, number, number, max_bytes // number)


type _Tiles = tuple[str, list[Piece]]
"""The href of a COG and tiles of it; none where it is no COG, or one that is not decoded here."""


def _tiles_of_cube(manifest: Manifest) -> _Tiles:
    manifest.load([0])
    facts, image = manifest.facts(0), manifest.image(0)
    if facts.path != "fast":
        return facts.href, []
    return facts.href, plan_image(facts, image, _middle(image), (Target("", 0, 0),))


def _tiles_of_file(href: str) -> _Tiles:
    scanned, _ = scan_sources([Source(href=href, item=href)])
    if not scanned or scanned[0].header.needs_gdal is not None or scanned[0].header.refusal is not None:
        return href, []
    header = scanned[0].header
    return href, plan_image(header, header.levels[0], _middle(header.levels[0]), (Target("", 0, 0),))


def _middle(image: SourceLevel | Level) -> Window:
    """Return some tiles in the middle of an image, where the edges of scenes are not."""
    height, width = image.height, image.width
    rows, columns = min(height, _EDGE_TILES * image.tile_height), min(width, _EDGE_TILES * image.tile_width)
    top, left = (height - rows) // 2, (width - columns) // 2
    return Window(top=top, bottom=top + rows, left=left, right=left + columns)


def _measure_decode(tiles: _Tiles, max_bytes: int) -> float | None:
    """Return the decoded megabytes a second of one core while all of them decode."""
    href, pieces = tiles
    present = [piece for piece in pieces if piece.length]
    sums = list(itertools.accumulate(piece.length for piece in present))
    present = [piece for piece, total in zip(present, sums, strict=True) if total <= max_bytes]
    if not present:
        return None

    async def fetch() -> list[memoryview]:
        return await asyncio.gather(*[read_range(href, piece.offset, piece.offset + piece.length) for piece in present])

    encoded = list(zip(present, loop.run(fetch()), strict=True))

    def work(_: int) -> int:
        done = 0
        while time.perf_counter() - began < _DECODE_S:
            for piece, data in encoded:
                decode_tile(data, piece.layout)
                done += piece.layout.nbytes
        return done

    # On all cores at once, as reads do: they share what cores share.
    threads = get_settings().decode_threads
    began = time.perf_counter()
    done = sum(loop.decode_pool().map(work, range(threads)))
    return done / threads / (time.perf_counter() - began) / 1e6
