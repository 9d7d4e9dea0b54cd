"""A window of a cube to the tiles that it needs and where each of them goes; decides and does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cube.grid import Window
from cube.manifest import Manifest, SourceFacts, SourceLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLayout:
    """How the pixels of one image's tiles are stored."""

    dtype: np.dtype
    """In native byte order."""
    byteorder: str
    samples: int
    """Samples a tile holds: all of a pixel-interleaved file, else 1."""
    height: int
    width: int
    compression: int
    predictor: int

    @property
    def nbytes(self) -> int:
        """Bytes of a decoded tile."""
        return self.height * self.width * self.samples * self.dtype.itemsize


class Target(NamedTuple):
    """Where one sample of an image goes: a band and a position on the output's time axis."""

    band: str
    time: int
    sample: int
    """Position within the tile."""


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
    """The tiles that a read needs of one source."""

    href: str
    pieces: list[Piece]


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
    wanted: dict[int, list[tuple[str, int]]] = {}
    for band in bands:
        for source, sample in manifest.select(band, times, window, level):
            wanted.setdefault(source, []).append((band, sample))
    at: dict[int, list[int]] = {}
    for position, time in enumerate(times):
        at.setdefault(int(time), []).append(position)
    dtypes = {band: np.dtype(manifest.band(band).dtype) for band in bands}
    covered: dict[tuple[str, int], int] = {}
    sources = []
    for source, members in wanted.items():
        facts, image = manifest.facts(source, level), manifest.image(source, level)
        pieces: list[Piece] = []
        for plane, targets in _targets(facts, members, at[facts.time]).items():
            layout = TileLayout(
                dtype=dtypes[targets[0].band],
                byteorder=facts.byteorder,
                samples=1 if facts.interleave == "band" else facts.samples,
                height=image.tile_height,
                width=image.tile_width,
                compression=image.compression,
                predictor=image.predictor,
            )
            found = _pieces(facts, image, plane, window, layout, targets)
            pieces += found
            area = sum(piece.height * piece.width for piece in found)
            for target in targets:
                key = (target.band, target.time)
                covered[key] = covered.get(key, 0) + area
        if pieces:
            sources.append(SourceRead(href=facts.href, pieces=pieces))
    return ReadPlan(sources=sources, covered=covered)


def _targets(
    facts: SourceFacts, members: Sequence[tuple[str, int]], positions: Sequence[int]
) -> dict[int, tuple[Target, ...]]:
    """Return what each plane of the file gives: all samples are in plane 0 where they are pixel-interleaved."""
    if facts.interleave != "band":
        return {0: tuple(Target(band, time, sample) for band, sample in members for time in positions)}
    planes: dict[int, tuple[Target, ...]] = {}
    for band, sample in members:
        planes[sample] = planes.get(sample, ()) + tuple(Target(band, time, 0) for time in positions)
    return planes


def _pieces(
    facts: SourceFacts,
    image: SourceLevel,
    plane: int,
    window: Window,
    layout: TileLayout,
    targets: tuple[Target, ...],
) -> list[Piece]:
    # The wanted rectangle in the image's own pixels; tiles at its lower and right edge are padded, which this crops.
    top, bottom = max(0, window.top - facts.row), min(image.height, window.bottom - facts.row)
    left, right = max(0, window.left - facts.column), min(image.width, window.right - facts.column)
    if top >= bottom or left >= right:
        return []
    height, width = image.tile_height, image.tile_width
    down, up = facts.row - window.top, facts.column - window.left
    pieces = []
    for j in range(top // height, -(-bottom // height)):
        y0, y1 = max(top, j * height), min(bottom, (j + 1) * height)
        for i in range(left // width, -(-right // width)):
            x0, x1 = max(left, i * width), min(right, (i + 1) * width)
            pieces.append(
                Piece(
                    offset=int(image.offsets[plane, j, i]),
                    length=int(image.lengths[plane, j, i]),
                    tile=(i, j),
                    tile_y=y0 - j * height,
                    tile_x=x0 - i * width,
                    y=y0 + down,
                    x=x0 + up,
                    height=y1 - y0,
                    width=x1 - x0,
                    layout=layout,
                    targets=targets,
                )
            )
    return pieces
