"""A window of a cube to the tiles that it needs and where each of them goes; decides and does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cube.grid import Window
from cube.io.ranges import RangeRequest, plan_requests
from cube.manifest.open import Contribution, Manifest, SourceFacts, SourceLevel
from cube.normalise import Normalisation, plan_normalisation
from cube.settings import get_settings
from cube.tiff.decode import TileLayout
from cube.tiff.header import Header, Level

VALIDITY = ""
"""Stands for a band where a sample says which pixels of its source are valid."""


class Target(NamedTuple):
    """Where one sample of an image goes: a band and a position on the output's time axis."""

    band: str
    """Or `VALIDITY`."""
    time: int
    sample: int
    """Position within the tile (within the file, where GDAL reads it)."""
    how: Normalisation | None = None
    """From the source's numbers to the cube's; None where they are the same."""


class Piece(NamedTuple):
    """One tile, the part of it that is wanted, and where that lands in the part that is read of the image."""

    offset: int
    length: int
    """0 is a tile that the file leaves out."""
    tile: tuple[int, int]
    """Column and row of the tile in its image."""
    tile_y: int
    tile_x: int
    y: int
    x: int
    height: int
    width: int
    layout: TileLayout
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRead:
    """What a read needs of one source."""

    facts: SourceFacts
    source: int
    """Position in the manifest."""
    level: int
    """Of the image that is read."""
    box: Window
    """The part of the output that the source covers; pieces count from its corner."""
    window: Window
    """The same part, in pixels of the source's image."""
    targets: tuple[Target, ...]
    pieces: list[Piece]
    """With the tiles that say which pixels are valid, if any do; none where GDAL reads the source."""
    apart: frozenset[tuple[str, int]] = frozenset()
    """(band, time position) of targets whose pixels other sources give, too: they are fused when all are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """What a read fetches and fills."""

    sources: list[SourceRead]
    covered: frozenset[tuple[str, int]]
    """(band, time position) of which sources side by side give every pixel; elsewhere there are holes."""


def plan_read(
    manifest: Manifest,
    bands: Sequence[str],
    times: Sequence[int],
    window: Window,
    level: int,
    grid: int | None = None,
) -> ReadPlan:
    """Return the plan of a read of the sources on one grid.

    Args:
        manifest: The cube.
        bands: Names of bands.
        times: Positions on the cube's time axis, in the order of the output; (0,) in a cube without time.
        window: On the grid of `level`; may reach beyond it, where there are holes.
        level: 0 is full resolution.
        grid: Position among the manifest's grids; the one that the cube is on where None.
    """
    wanted: dict[int, list[tuple[str, Contribution]]] = {}
    for band in bands:
        for found in manifest.select(band, times, window, level, grid):
            wanted.setdefault(found.source, []).append((band, found))
    manifest.load(list(wanted), level)
    at: dict[int, list[int]] = {}
    for position, time in enumerate(times):
        at.setdefault(int(time), []).append(position)
    planned = (_plan_source(manifest, source, members, at, window, level) for source, members in wanted.items())
    sources = [read for read in planned if read is not None]
    places: dict[tuple[str, int], list[int]] = {}
    for i, read in enumerate(sources):
        for target in read.targets:
            places.setdefault((target.band, target.time), []).append(i)
    apart: dict[int, set[tuple[str, int]]] = {}
    covered = set()
    for key, members in places.items():
        boxes = [sources[i].box for i in members]
        overlapping = _find_overlapping(boxes)
        for i in overlapping:
            apart.setdefault(members[i], set()).add(key)
        if not overlapping and sum(map(_area, boxes)) == _area(window):
            covered.add(key)
    for i, keys in apart.items():
        sources[i] = replace(sources[i], apart=frozenset(keys))
    return ReadPlan(sources=sources, covered=frozenset(covered))


def _area(window: Window) -> int:
    height, width = window.shape
    return height * width


def _find_overlapping(boxes: Sequence[Window]) -> list[int]:
    """Return the positions of boxes that share pixels with others."""
    if len(boxes) < 2:
        return []
    top, bottom, left, right = np.array([(each.top, each.bottom, each.left, each.right) for each in boxes]).T
    order = np.argsort(top, kind="stable")
    found: set[int] = set()
    ends = np.searchsorted(top[order], bottom[order], side="left")
    for place, i in enumerate(order.tolist()):
        rivals = order[place + 1 : ends[place]]  # those that begin in its rows
        clash = rivals[(left[rivals] < right[i]) & (right[rivals] > left[i])].tolist()
        found.update([i, *clash] if clash else [])
    return sorted(found)


def _plan_source(
    manifest: Manifest,
    source: int,
    members: Sequence[tuple[str, Contribution]],
    at: Mapping[int, Sequence[int]],
    window: Window,
    level: int,
) -> SourceRead | None:
    facts, image = manifest.facts(source, level), manifest.image(source, level)
    part = Window(
        top=max(0, window.top - facts.row),
        bottom=min(image.height, window.bottom - facts.row),
        left=max(0, window.left - facts.column),
        right=min(image.width, window.right - facts.column),
    )
    if part.top >= part.bottom or part.left >= part.right:
        return None
    down, across = facts.row - window.top, facts.column - window.left
    box = Window(top=part.top + down, bottom=part.bottom + down, left=part.left + across, right=part.right + across)
    targets = tuple(
        Target(band, position, found.sample, _how(manifest, band, found, facts))
        for band, found in members
        for position in at[found.time]
    )
    pieces: list[Piece] = []
    if facts.path == "fast":
        # Alpha is a sample of the image: it comes with the tiles of the others where they are interleaved.
        alpha = (Target(VALIDITY, 0, facts.samples - 1),) if facts.validity == "alpha" else ()
        pieces = plan_image(facts, image, part, (*targets, *alpha))
        if facts.validity == "mask":
            pieces += _mask_pieces(facts, manifest.mask(source, level), part)
    return SourceRead(facts=facts, source=source, level=level, box=box, window=part, targets=targets, pieces=pieces)


def plan_image(
    facts: SourceFacts | Header,
    image: SourceLevel | Level,
    part: Window,
    targets: Sequence[Target],
) -> list[Piece]:
    """Return the tiles that a part of one image needs."""
    layout = _layout(facts, image)
    pieces: list[Piece] = []
    for plane, here in _by_plane(facts, targets).items():
        pieces += _pieces(image, plane, part, layout, here)
    return pieces


def _how(manifest: Manifest, band: str, found: Contribution, facts: SourceFacts) -> Normalisation | None:
    of = manifest.band(band)
    return plan_normalisation(facts.dtype, found.nodata, found.scale, found.offset, of, is_strict=False)


def _layout(facts: SourceFacts | Header, image: SourceLevel | Level) -> TileLayout:
    return TileLayout(
        dtype=facts.dtype,
        byteorder=facts.byteorder,
        samples=1 if facts.interleave == "band" else facts.samples,
        height=image.tile_height,
        width=image.tile_width,
        compression=image.compression,
        predictor=image.predictor,
        photometric=facts.photometric,
        tables=image.tables,
    )


def _mask_pieces(facts: SourceFacts, image: SourceLevel, part: Window) -> list[Piece]:
    layout = TileLayout(
        dtype=np.dtype("u1"),
        byteorder=facts.byteorder,
        samples=1,
        height=image.tile_height,
        width=image.tile_width,
        compression=image.compression,
        predictor=image.predictor,
        tables=image.tables,
        bits=image.bits,
    )
    return _pieces(image, 0, part, layout, (Target(VALIDITY, 0, 0),))


def _by_plane(facts: SourceFacts | Header, targets: Sequence[Target]) -> dict[int, tuple[Target, ...]]:
    """Return what each plane of the file gives: all samples are in plane 0 where they are pixel-interleaved."""
    if facts.interleave != "band":
        return {0: tuple(targets)}
    planes: dict[int, tuple[Target, ...]] = {}
    for target in targets:
        planes[target.sample] = (*planes.get(target.sample, ()), target._replace(sample=0))
    return planes


def _pieces(
    image: SourceLevel | Level,
    plane: int,
    part: Window,
    layout: TileLayout,
    targets: tuple[Target, ...],
) -> list[Piece]:
    """Return the tiles that touch a part of an image.

    Tiles at the lower and right edge are padded, which this crops; the last strip is short instead.
    """
    height, width = image.tile_height, image.tile_width
    last = -(-image.height // height) - 1
    short = replace(layout, height=image.height - last * height) if image.strips else layout
    pieces = []
    for j in range(part.top // height, -(-part.bottom // height)):
        y0, y1 = max(part.top, j * height), min(part.bottom, (j + 1) * height)
        for i in range(part.left // width, -(-part.right // width)):
            x0, x1 = max(part.left, i * width), min(part.right, (i + 1) * width)
            pieces.append(
                Piece(
                    offset=int(image.offsets[plane, j, i]),
                    length=int(image.lengths[plane, j, i]),
                    tile=(i, j),
                    tile_y=y0 - j * height,
                    tile_x=x0 - i * width,
                    y=y0 - part.top,
                    x=x0 - part.left,
                    height=y1 - y0,
                    width=x1 - x0,
                    layout=short if j == last else layout,
                    targets=targets,
                )
            )
    return pieces


def plan_source_requests(read: SourceRead) -> list[tuple[RangeRequest, list[Piece]]]:
    """Return the requests that fetch a source's tiles, merged where gaps are small, each with the tiles it brings."""
    settings = get_settings()
    present = [piece for piece in read.pieces if piece.length]
    requests = plan_requests(
        [piece.offset for piece in present],
        [piece.length for piece in present],
        gap_bytes=settings.gap_bytes,
        request_bytes=settings.request_bytes,
    )
    return [(request, [present[i] for i in request.members]) for request in requests]
