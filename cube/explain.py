"""What a read will ask of the stores, counted before any pixel is read, and how long and how large it will be."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cube.engine.blocks import Blocks, plan_blocks
from cube.engine.cost import (
    Conditions,
    Estimate,
    Work,
    advise,
    choose_workers,
    estimate_alone,
    estimate_cluster,
    estimate_threads,
    readable_bytes,
    readable_seconds,
)
from cube.errors import SelectionError, TooLargeError
from cube.grid import Window, brief_crs
from cube.layers import plan_layers
from cube.manifest.open import Manifest, open_spec
from cube.plan import SourceRead, plan_read, plan_source_requests
from cube.selection import Selection
from cube.settings import get_settings

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kKMGT])(i?))?B?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCost:
    """What is asked of one source."""

    href: str
    tiles: int
    """Tiles that are fetched and decoded, those of masks among them; one that several blocks need counts for each."""
    sparse: int
    """Tiles that the file leaves out, which cost nothing."""
    requests: int
    bytes: int
    """Of all requests, the gaps among them."""
    decoded_bytes: int
    """Of the tiles when they are decoded; 0 for "gdal"."""
    path: str
    """"fast"; or "gdal", whose requests GDAL alone knows: they are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridCost:
    """What is read of the sources on one grid."""

    crs: str
    pixel: tuple[float, float]
    """Width and height of the pixels that are read, in units of the CRS."""
    factor: int
    """How many pixels of full resolution one of them is along each axis: more than 1 for an overview."""
    sources: int
    warped: Mapping[str, str]
    """How each band is resampled; empty where pixels are placed as they are."""

    def __str__(self) -> str:
        width, height = self.pixel
        what = f"{_sources(self.sources)} in {brief_crs(self.crs)}"
        size = f"pixels of {width:.10g} x {height:.10g}"
        where = size if self.factor == 1 else f"overviews of 1/{self.factor}, {size}"
        ways = dict.fromkeys(self.warped.values())
        each = ", ".join(f"{band} {how}" for band, how in self.warped.items()) if len(ways) > 1 else "".join(ways)
        return f"{what}: {where}, {f'warped: {each}' if self.warped else 'placed'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a read costs. Retries come on top: the trace counts them apart.

    Requests and bytes are exact; seconds and memory are what `cube.engine.cost` makes of them.
    """

    blocks: int
    """Reads: each is one batch of concurrent requests."""
    tasks: int
    """Of Dask, for the reads: one a block and one a variable of a block, which later arithmetic is fused with."""
    sources: tuple[SourceCost, ...]
    grids: tuple[GridCost, ...]
    """Of the sources, those that are read."""
    fused: int
    """Pairs of a band and a date of which several sources give the same pixels."""
    fuse: str
    """What becomes of these pixels."""
    array_bytes: int
    """Of the arrays: stored numbers, and what they are turned into where that is another dtype."""
    block_bytes: int
    """Of the arrays of the largest block."""
    gap_bytes: int
    """Ranges this close are one request (`CUBE_GAP_BYTES`)."""
    request_bytes: int
    """The largest merged request (`CUBE_REQUEST_BYTES`)."""
    latency_ms: float
    """To the first byte, which the predictions are for."""
    estimates: tuple[Estimate, Estimate, Estimate]
    """Without Dask, on this machine's threads, and on a cluster."""
    advice: str
    """Which of them to take, and why."""

    @property
    def tiles(self) -> int:
        """Tiles that are fetched and decoded."""
        return sum(each.tiles for each in self.sources)

    @property
    def requests(self) -> int:
        """Range requests of all reads."""
        return sum(each.requests for each in self.sources)

    @property
    def bytes(self) -> int:
        """Bytes of all requests."""
        return sum(each.bytes for each in self.sources)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all tiles when they are decoded."""
        return sum(each.decoded_bytes for each in self.sources)

    @property
    def predicted_s(self) -> float:
        """Seconds that the reads take as they are planned: on threads where they are tasks, else without Dask."""
        return self._planned.seconds

    @property
    def peak_bytes(self) -> int:
        """Memory that the reads hold at a time; what is computed of them, and kept, comes on top."""
        return self._planned.peak_bytes

    @property
    def _planned(self) -> Estimate:
        alone, threads, _ = self.estimates
        return threads if self.tasks else alone

    @property
    def work(self) -> Work:
        """What the cost model knows of the reads."""
        counts = ("blocks", "tasks", "requests", "bytes", "tiles", "decoded_bytes", "array_bytes", "block_bytes")
        return Work(**{name: getattr(self, name) for name in counts})

    def require(self, *, max_bytes: int | None = None, max_requests: int | None = None) -> Explanation:
        """Return this explanation where the read is small enough.

        Args:
            max_bytes: The most bytes of all requests; any number where None.
            max_requests: The most requests; any number where None.

        Raises:
            TooLargeError: It is not; the message ends with the plan.
        """
        for what, found, most in (("bytes", self.bytes, max_bytes), ("requests", self.requests, max_requests)):
            if most is not None and found > most:
                size = f" ({readable_bytes(found)})" if what == "bytes" else ""
                raise TooLargeError(
                    f"this read takes {found:,} {what}{size}; at most {most:,} were allowed. Take a smaller bbox, "
                    f"fewer dates or bands, or an overview (level=1 has a quarter of the pixels). The plan:\n{self}"
                )
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON values."""
        names = ("tiles", "requests", "bytes", "decoded_bytes", "predicted_s", "peak_bytes")
        return asdict(self) | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        slow = sum(each.path == "gdal" for each in self.sources)
        what = f"{self.tiles:,} tiles in {self.requests:,} requests, {self.bytes:,} bytes"
        reads = "read" if self.blocks == 1 else "reads"
        tasks = f"; {self.tasks:,} tasks of Dask" if self.tasks else ""
        arrays = f"{readable_bytes(self.array_bytes)} of arrays"
        lines = [
            f"{self.blocks:,} {reads} of {_sources(len(self.sources))}: {what}",
            *self._grid_lines(),
            f"decoded {readable_bytes(self.decoded_bytes)}, {arrays}{tasks}",
            f"ranges up to {self.gap_bytes:,} bytes apart are merged, into at most {self.request_bytes:,} bytes",
            f"predicted at {self.latency_ms:g} ms to the first byte, for the reads alone:",
            *(f"  {_way(each):<22} {_outcome(each)}" for each in self.estimates),
        ]
        if slow:
            are = "is" if slow == 1 else "are"
            lines.append(f"{_sources(slow)} {are} read by GDAL, whose requests and time are not counted")
        return "\n".join([*lines, f"advice: {self.advice}"])

    def _grid_lines(self) -> list[str]:
        """Return what there is to say of grids: nothing of one at full resolution, whose pixels are placed."""
        lines = [f"  {grid}" for grid in self.grids]
        if len(self.grids) == 1 and self.grids[0].factor == 1 and not self.grids[0].warped:
            lines = []
        if self.fused:
            pairs = "1 band and date" if self.fused == 1 else f"{self.fused:,} pairs of a band and a date"
            lines.append(f"  overlaps in {pairs}: {self.fuse}")
        return lines


def _sources(count: int) -> str:
    return "1 source" if count == 1 else f"{count:,} sources"


def _way(each: Estimate) -> str:
    return f"cluster of {each.workers} workers" if each.how == "cluster" else each.how


def _outcome(each: Estimate) -> str:
    where = " a worker" if each.how == "cluster" else ""
    return f"{readable_seconds(each.seconds)}, {readable_bytes(each.peak_bytes)} of memory{where}"


def explain(
    selection: Selection,
    blocks: Blocks | None = None,
    *,
    latency_ms: float | None = None,
    dtypes: Mapping[str, np.dtype[Any]] | None = None,
) -> Explanation:
    """Return what reading a selection costs; reads no pixel.

    Args:
        selection: What is read: each read takes all of its bands at once.
        blocks: Lengths of the reads along each dimension; one read of everything where None.
        latency_ms: To the first byte, for the predictions; `CUBE_LATENCY_MS` where None.
        dtypes: What the variables hold in the end, by name; the stored numbers where None.
    """
    manifest = open_spec(selection.spec)
    costs: dict[str, SourceCost] = {}
    bands = list(dict.fromkeys(band.name for _, band in selection.bands))
    on_grid: dict[tuple[int, int, bool], set[int]] = {}
    apart: set[tuple[str, int]] = set()
    parts = list(_parts(selection, blocks))
    for times, window in parts:
        for layer in plan_layers(manifest, selection.spec.level, bands, window):
            key = layer.grid, layer.level, layer.points is not None
            for read in plan_read(manifest, bands, times, layer.window, layer.level, layer.grid).sources:
                on_grid.setdefault(key, set()).add(read.source)
                apart |= {(band, times[time]) for band, time in read.apart}
                cost = _cost(read)
                known = costs.get(cost.href)
                costs[cost.href] = cost if known is None else _sum(known, cost)
    counted = tuple(costs[href] for href in sorted(costs))
    pixel_bytes = _pixel_bytes(selection, dtypes or {})
    # Blocks that were not asked for are those that would be: the advice compares with them.
    cut = blocks if blocks is not None else plan_blocks(selection, "auto")
    work = Work(
        blocks=math.prod(map(len, cut)),
        tasks=math.prod(map(len, cut)) * (1 + len(selection.bands)),
        requests=sum(each.requests for each in counted),
        bytes=sum(each.bytes for each in counted),
        tiles=sum(each.tiles for each in counted),
        decoded_bytes=sum(each.decoded_bytes for each in counted),
        array_bytes=math.prod(selection.shape) * pixel_bytes,
        block_bytes=math.prod(max(lengths, default=0) for lengths in cut) * pixel_bytes,
    )
    at = Conditions.from_settings(latency_ms)
    estimates = (
        estimate_alone(work, at),
        estimate_threads(work, at),
        estimate_cluster(work, at, choose_workers(work, at)),
    )
    settings = get_settings()
    return Explanation(
        blocks=len(parts),
        tasks=0 if blocks is None else work.tasks,
        sources=counted,
        grids=tuple(_grid_cost(manifest, bands, *key, len(found)) for key, found in on_grid.items()),
        fused=len(apart),
        fuse=manifest.on.fuse,
        array_bytes=work.array_bytes,
        block_bytes=work.array_bytes if blocks is None else work.block_bytes,
        gap_bytes=settings.gap_bytes,
        request_bytes=settings.request_bytes,
        latency_ms=at.latency_s * 1e3,
        estimates=estimates,
        advice=advise(*estimates, at),
    )


def _pixel_bytes(selection: Selection, dtypes: Mapping[str, np.dtype[Any]]) -> int:
    """Return the bytes of a pixel of all bands: as stored, and again as what it is turned into."""
    total = 0
    for name, band in selection.bands:
        stored = np.dtype(band.dtype)
        given = dtypes.get(name, stored)
        total += stored.itemsize + (given.itemsize if given != stored else 0)
    return total


def parse_bytes(text: str) -> int:
    """Return a number of bytes written as "2GB", "500 MB", "64MiB" or "1000".

    Raises:
        SelectionError: It is none.
    """
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise SelectionError(f"{text!r} is no number of bytes; write it as 2GB, 500MB, 64MiB or 1000000")
    power = " KMGT".index((found[2] or " ").upper())
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def _parts(selection: Selection, blocks: Blocks | None) -> Iterator[tuple[tuple[int, ...], Window]]:
    """Yield the dates and the window of each read."""
    whole = selection.window
    if blocks is None:
        yield selection.times, whole
        return
    starts = [list(itertools.accumulate(lengths, initial=0)) for lengths in blocks]
    for index in itertools.product(*(range(len(lengths)) for lengths in blocks)):
        *time, y, x = index
        times = selection.times[starts[0][time[0]] : starts[0][time[0] + 1]] if time else selection.times
        yield (
            times,
            Window(
                top=whole.top + starts[-2][y],
                bottom=whole.top + starts[-2][y + 1],
                left=whole.left + starts[-1][x],
                right=whole.left + starts[-1][x + 1],
            ),
        )


def _cost(read: SourceRead) -> SourceCost:
    requests = plan_source_requests(read)
    present = sum(bool(piece.length) for piece in read.pieces)
    return SourceCost(
        href=read.facts.href,
        tiles=present,
        sparse=len(read.pieces) - present,
        requests=len(requests),
        bytes=sum(request.stop - request.start for request, _ in requests),
        decoded_bytes=sum(piece.layout.nbytes for piece in read.pieces if piece.length),
        path=read.facts.path,
    )


def _grid_cost(
    manifest: Manifest, bands: Sequence[str], grid: int, level: int, is_warped: bool, sources: int
) -> GridCost:
    levels = manifest.grids[grid]
    a, b, _, d, e, _ = levels.grids[level].transform
    return GridCost(
        crs=levels.full.crs,
        pixel=(math.hypot(a, d), math.hypot(b, e)),
        factor=max(levels.factors[level]),
        sources=sources,
        warped={band: manifest.on.resampling_of(band) for band in bands} if is_warped else {},
    )


def _sum(one: SourceCost, other: SourceCost) -> SourceCost:
    names = ("tiles", "sparse", "requests", "bytes", "decoded_bytes")
    counts: Mapping[str, int] = {name: getattr(one, name) + getattr(other, name) for name in names}
    return SourceCost(href=one.href, path=one.path, **counts)
