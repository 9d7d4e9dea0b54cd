"""A computation over blocks without Dask: every block is on its way at once, and is worked on as it comes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cube.errors import CubeError
from cube.grid import Window
from cube.io import loop
from cube.io.budget import Budget
from cube.reader import Hole, read_reported
from cube.spec import CubeSpec

_DECODED_BYTES = 256 * 1024 * 1024
"""Of blocks that are on their way or being worked on: enough to keep every request in flight, few for any machine."""

type Work = Callable[[dict[str, np.ndarray], slice, slice], None]
"""Called on a thread with a block's bands, (dates, rows, columns) each, and its rows and columns in the window."""


def stream_blocks(
    spec: CubeSpec,
    dtypes: Mapping[str, np.dtype],
    times: Sequence[int],
    window: Window,
    lengths: tuple[Sequence[int], Sequence[int]],
    work: Work,
) -> tuple[Hole, ...]:
    """Read a window block by block and work on each as soon as it is there; return what is missing when all are done.

    Args:
        spec: The cube.
        dtypes: Of the bands that are read.
        times: Positions on the cube's time axis.
        window: On the grid of the spec's level.
        lengths: Of the blocks along y and x; they add up to the window.
        work: What is done with a block.

    Returns:
        The sources that could not be read, in the order of their names, where the spec leaves such out.

    Raises:
        ReadError: A block could not be read.
    """
    return loop.run(_stream(spec, dtypes, times, window, lengths, work))


async def _stream(
    spec: CubeSpec,
    dtypes: Mapping[str, np.dtype],
    times: Sequence[int],
    window: Window,
    lengths: tuple[Sequence[int], Sequence[int]],
    work: Work,
) -> tuple[Hole, ...]:
    holes: set[Hole] = set()
    pixel_bytes = len(times) * sum(dtype.itemsize for dtype in dtypes.values())
    memory = Budget(_DECODED_BYTES)
    running = asyncio.get_running_loop()

    async def one(rows: slice, columns: slice) -> None:
        height, width = rows.stop - rows.start, columns.stop - columns.start
        async with memory.hold(height * width * pixel_bytes):
            top, left = window.top + rows.start, window.left + columns.start
            part = Window(top=top, bottom=top + height, left=left, right=left + width)
            bands, missing = await read_reported(spec, tuple(dtypes), times, part)
            holes.update(missing)
            await running.run_in_executor(loop.decode_pool(), work, bands, rows, columns)

    try:
        async with asyncio.TaskGroup() as group:
            for rows, columns in itertools.product(*(_slices(each) for each in lengths)):
                group.create_task(one(rows, columns))
    except* CubeError as errors:
        raise _first(errors) from None
    return tuple(sorted(holes))


def _slices(lengths: Sequence[int]) -> list[slice]:
    edges = list(itertools.accumulate(lengths, initial=0))
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _first(errors: BaseExceptionGroup[CubeError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
