"""What the blocks of a dask cube read, and what indexing leaves of it: values and arithmetic, no dask."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from cube.decoding import Decoding
from cube.engine.blocks import Blocks
from cube.grid import Window
from cube.selection import Selection
from cube.spec import CubeSpec

type Box = tuple[int, int, int, int]
"""A window in a task, where it takes fewer bytes: top, bottom, left, right."""
type Index = int | slice | np.ndarray
"""Of one axis: a position, a range, or positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable of a dataset: what is read for it, and what becomes of the stored numbers."""

    name: str
    band: str
    dtype: str
    """Of what the variable holds."""
    decoding: Decoding | None

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return what dask's tokens of this value are made of."""
        return ("cube.Variable", self.name, self.band, self.dtype, self.decoding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """What a task makes of a block that was read."""

    band: str
    dropped: tuple[bool, bool, bool]
    """Which of time, y and x the result does not have; their one position is taken."""
    decoding: Decoding | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Blocks of a cube, in each of which the bands that are wanted are read together."""

    spec: CubeSpec
    variables: tuple[Variable, ...]
    times: tuple[int, ...]
    """Positions on the cube's time axis; (0,) in a cube without time."""
    window: Window
    """On the grid of the spec's level."""
    blocks: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    """Lengths of the blocks along time, y and x, also where an axis is left out."""
    dropped: tuple[bool, bool, bool]
    """Which of time, y and x the arrays do not have; their one position is taken."""

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return what dask's tokens of this value are made of."""
        edges = (self.window.top, self.window.bottom, self.window.left, self.window.right)
        times = np.asarray(self.times, "int64")  # as bytes: quicker to hash than a number at a time
        return ("cube.Reads", self.spec, self.variables, times, edges, self.blocks, self.dropped)

    @property
    def chunks(self) -> Blocks:
        """The lengths of the blocks along the axes that the arrays have."""
        return tuple(each for each, dropped in zip(self.blocks, self.dropped, strict=True) if not dropped)

    def part(self, starts: Sequence[Sequence[int]], index: tuple[int, int, int]) -> tuple[Sequence[int], Box]:
        """Return the dates of a block and the edges of its window: top, bottom, left, right.

        Args:
            starts: Positions of the blocks' edges along time, y and x (see `edges`).
            index: Of the block.
        """
        time, y, x = index
        window, rows, columns = self.window, starts[1], starts[2]
        return compact(self.times[starts[0][time] : starts[0][time + 1]]), (
            window.top + rows[y],
            window.top + rows[y + 1],
            window.left + columns[x],
            window.left + columns[x + 1],
        )


def plan_reads(selection: Selection, blocks: Blocks, decodings: Sequence[Decoding | None]) -> Reads:
    """Return the reads of a selection.

    Args:
        selection: What is opened.
        blocks: Lengths of the blocks along the selection's dims.
        decodings: What becomes of each band's stored numbers; None leaves them.
    """
    timeless = selection.stamps is None
    return Reads(
        spec=selection.spec,
        variables=tuple(
            Variable(name=name, band=band.name, dtype=how.dtype if how else band.dtype, decoding=how)
            for (name, band), how in zip(selection.bands, decodings, strict=True)
        ),
        times=selection.times,
        window=selection.window,
        blocks=cast("Any", ((1,), *blocks) if timeless else blocks),
        dropped=(timeless, False, False),
    )


def edges(reads: Reads) -> list[list[int]]:
    """Return the positions of the blocks' edges along time, y and x, the first and the last among them."""
    return [list(itertools.accumulate(each, initial=0)) for each in reads.blocks]


def compact(times: tuple[int, ...]) -> Sequence[int]:
    """Return positions as a range where they are one, which pickles in a few bytes however many they are."""
    if len(times) < 2:
        return times
    step = times[1] - times[0]
    whole = range(times[0], times[-1] + (1 if step > 0 else -1), step) if step else range(0)
    return whole if len(whole) == len(times) and all(map(int.__eq__, whole, times)) else times


def narrow(reads: Reads, index: Sequence[Any]) -> tuple[Reads, tuple[Any, ...]]:
    """Return the reads of a part, and what is still to be taken of their arrays.

    Positions and ranges on any axis, and lists of dates, are read as what they are. Ranges with a step and lists on y
    and x are read as the window that they span, of which the rest then takes them.

    Args:
        reads: What is indexed.
        index: An index for each axis of the arrays: an int, a slice, or a one-dimensional array of ints or bools;
            none that takes nothing.
    """
    asked = iter(index)
    full = [slice(None) if dropped else next(asked) for dropped in reads.dropped]
    lengths = [sum(each) for each in reads.blocks]
    times = np.atleast_1d(np.arange(lengths[0])[full[0]])
    (top, bottom), (left, right) = _span(full[1], lengths[1]), _span(full[2], lengths[2])
    window = Window(
        top=reads.window.top + top,
        bottom=reads.window.top + bottom,
        left=reads.window.left + left,
        right=reads.window.left + right,
    )
    is_dropped = [was or isinstance(key, int) for was, key in zip(reads.dropped, full, strict=True)]
    narrowed = replace(
        reads,
        times=tuple(reads.times[i] for i in times.tolist()),
        window=window,
        blocks=(
            _split_times(reads.blocks[0], full[0], times),
            _cut(reads.blocks[1], top, bottom),
            _cut(reads.blocks[2], left, right),
        ),
        dropped=cast("Any", tuple(is_dropped)),
    )
    starts = (None, top, left)
    rest = [
        _rest(key, start, length)
        for key, start, length, dropped in zip(full, starts, lengths, is_dropped, strict=True)
        if not dropped
    ]
    return narrowed, tuple(rest)


def _span(key: Index, length: int) -> tuple[int, int]:
    """Return the first and last + 1 of the positions that an index touches."""
    positions = np.arange(length)[key]
    return int(positions.min()), int(positions.max()) + 1


def _cut(lengths: tuple[int, ...], start: int, stop: int) -> tuple[int, ...]:
    """Return the lengths of the blocks between two positions, with the blocks' edges where they were."""
    places = itertools.accumulate(lengths, initial=0)
    inner = [place for place in places if start < place < stop]
    return tuple(b - a for a, b in itertools.pairwise([start, *inner, stop]))


def _split_times(lengths: tuple[int, ...], key: Index, times: np.ndarray) -> tuple[int, ...]:
    if isinstance(key, slice) and key.step in (None, 1):
        return _cut(lengths, int(times[0]), int(times[-1]) + 1)
    # Dates in any order have no edges to keep: blocks no longer than they were.
    step = max(lengths)
    return tuple(min(step, len(times) - start) for start in range(0, len(times), step))


def _rest(key: Index, start: int | None, length: int) -> Any:
    """Return what an index takes of the window that it spans; None as start says that nothing is left to take."""
    if start is None or (isinstance(key, slice) and key.step in (None, 1)):
        return slice(None)
    positions = np.arange(length)[key] - start
    if not isinstance(key, slice):
        return positions
    step = key.step
    stop = int(positions[-1]) + (1 if step > 0 else -1)
    return slice(int(positions[0]), stop if stop >= 0 else None, step)
