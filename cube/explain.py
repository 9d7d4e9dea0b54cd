"""What a read will ask of the stores, counted before any pixel is read: sources, tiles, requests, bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cube.engine.blocks import Blocks
from cube.grid import Window
from cube.manifest.open import Manifest, open_manifest
from cube.plan import plan_read, plan_source_requests
from cube.selection import Selection
from cube.settings import get_settings


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
    path: str
    """"fast"; or "gdal", whose requests GDAL alone knows: they are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a read costs. Retries come on top: the trace counts them apart."""

    blocks: int
    """Reads: each is one batch of concurrent requests."""
    sources: tuple[SourceCost, ...]
    gap_bytes: int
    """Ranges this close are one request (`CUBE_GAP_BYTES`)."""
    request_bytes: int
    """The largest merged request (`CUBE_REQUEST_BYTES`)."""

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

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON values."""
        totals = {"tiles": self.tiles, "requests": self.requests, "bytes": self.bytes}
        return asdict(self) | totals

    def __str__(self) -> str:
        slow = sum(each.path == "gdal" for each in self.sources)
        what = f"{self.tiles:,} tiles in {self.requests:,} requests, {self.bytes:,} bytes"
        lines = [
            f"{self.blocks:,} reads of {len(self.sources):,} sources: {what}",
            f"ranges up to {self.gap_bytes:,} bytes apart are merged, into at most {self.request_bytes:,} bytes",
        ]
        if slow:
            lines.append(f"{slow:,} sources are read by GDAL, whose requests are not counted")
        return "\n".join(lines)


def explain(selection: Selection, blocks: Blocks | None = None) -> Explanation:
    """Return what reading a selection costs; reads no pixel.

    Args:
        selection: What is read: each read takes all of its bands at once.
        blocks: Lengths of the reads along each dimension; one read of everything where None.
    """
    manifest = open_manifest(selection.spec.manifest, selection.spec.version)
    costs: dict[str, SourceCost] = {}
    bands = list(dict.fromkeys(band.name for _, band in selection.bands))
    parts = list(_parts(selection, blocks))
    for times, window in parts:
        for cost in _costs(manifest, bands, times, window, selection.spec.level):
            known = costs.get(cost.href)
            costs[cost.href] = cost if known is None else _sum(known, cost)
    settings = get_settings()
    return Explanation(
        blocks=len(parts),
        sources=tuple(costs[href] for href in sorted(costs)),
        gap_bytes=settings.gap_bytes,
        request_bytes=settings.request_bytes,
    )


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


def _costs(
    manifest: Manifest, bands: Sequence[str], times: Sequence[int], window: Window, level: int
) -> Iterator[SourceCost]:
    for read in plan_read(manifest, bands, times, window, level).sources:
        requests = plan_source_requests(read)
        present = sum(bool(piece.length) for piece in read.pieces)
        yield SourceCost(
            href=read.facts.href,
            tiles=present,
            sparse=len(read.pieces) - present,
            requests=len(requests),
            bytes=sum(request.stop - request.start for request, _ in requests),
            path=read.facts.path,
        )


def _sum(one: SourceCost, other: SourceCost) -> SourceCost:
    counts: Mapping[str, int] = {
        name: getattr(one, name) + getattr(other, name) for name in ("tiles", "sparse", "requests", "bytes")
    }
    return SourceCost(href=one.href, path=one.path, **counts)
