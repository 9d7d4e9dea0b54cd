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
    """One tile, the part of it that is wanted, and where that lands in the window."""

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
    box: Window
    """The part of the output that the source covers."""
    window: Window
    """The same part, in pixels of the source's image."""
    targets: tuple[Target, ...]
    pieces: list[Piece]
    """With the tiles that say which pixels are valid, if any do; none where GDAL reads the source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """What a read fetches and fills."""

    sources: list[SourceRead]
    covered: Mapping[tuple[str, int], int]
    """Pixels of the window that sources give, by (band, time position); what is missing is a hole."""


def plan_read(manifest: Manifest, bands: Sequence[str], times: Sequence[int], window: Window, level: int) -> ReadPlan:
    """Return the plan of a read.

    Args:
        manifest: The cube.
        bands: Names of bands.
        times: Positions on the cube's time axis, in the order of the output; (0,) in a cube without time.
        window: On the grid of `level`.
        level: 0 is full resolution.
    """
    wanted: dict[int, list[tuple[str, Contribution]]] = {}
    for band in bands:
        for found in manifest.select(band, times, window, level):
            wanted.setdefault(found.source, []).append((band, found))
    manifest.load(list(wanted), level)
    at: dict[int, list[int]] = {}
    for position, time in enumerate(times):
        at.setdefault(int(time), []).append(position)
    covered: dict[tuple[str, int], int] = {}
    sources = []
    for source, members in wanted.items():
        read = _plan_source(manifest, source, members, at, window, level)
        if read is None:
            continue
        sources.append(read)
        height, width = read.box.shape
        for target in read.targets:
            key = (target.band, target.time)
            covered[key] = covered.get(key, 0) + height * width
    return ReadPlan(sources=sources, covered=covered)


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
        pieces = plan_image(facts, image, part, (*targets, *alpha), (down, across))
        if facts.validity == "mask":
            pieces += _mask_pieces(facts, manifest.mask(source, level), part, (down, across))
    return SourceRead(facts=facts, source=source, box=box, window=part, targets=targets, pieces=pieces)


def plan_image(
    facts: SourceFacts | Header,
    image: SourceLevel | Level,
    part: Window,
    targets: Sequence[Target],
    origin: tuple[int, int] = (0, 0),
) -> list[Piece]:
    """Return the tiles that a part of one image needs; `origin` is where the image's corner lies in the output."""
    layout = _layout(facts, image)
    pieces: list[Piece] = []
    for plane, here in _by_plane(facts, targets).items():
        pieces += _pieces(image, plane, part, layout, origin, here)
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


def _mask_pieces(facts: SourceFacts, image: SourceLevel, part: Window, origin: tuple[int, int]) -> list[Piece]:
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
    return _pieces(image, 0, part, layout, origin, (Target(VALIDITY, 0, 0),))


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
    origin: tuple[int, int],
    targets: tuple[Target, ...],
) -> list[Piece]:
    """Return the tiles that touch a part of an image; `origin` is where the image's corner lies in the output.

    Tiles at the lower and right edge are padded, which this crops; the last strip is short instead.
    """
    height, width = image.tile_height, image.tile_width
    last = -(-image.height // height) - 1
    short = replace(layout, height=image.height - last * height) if image.strips else layout
    down, across = origin
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
                    y=y0 + down,
                    x=x0 + across,
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
