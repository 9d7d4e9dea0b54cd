"""A band as an array that xarray indexes lazily: each access is one read, without Dask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from cube.decoding import Decoding, decode
from cube.grid import Grid, Window
from cube.reader import Hole, read, read_block, read_block_reported
from cube.selection import Selection
from cube.spec import Band, CubeSpec

_READS_AT_ONCE = 32
"""Threads that wait for reads; each read is a batch of concurrent requests already."""

type _Block = tuple[CubeSpec, tuple[int, ...], Window]


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyRead:
    """What an index of a band reads, and what is made of it."""

    spec: CubeSpec
    band: str
    times: tuple[int, ...]
    window: Window
    rest: tuple[Any, Any, Any]
    """What to take of the block along time, y and x."""
    decoding: Decoding | None

    @property
    def block(self) -> tuple[CubeSpec, tuple[int, ...], Window]:
        """What is read, whatever band it is of: bands that share it are read together."""
        return self.spec, self.times, self.window

    def finish(self, stored: np.ndarray) -> np.ndarray:
        """Return what the index gives, of the band's block."""
        return decode(np.asarray(_take(stored, self.rest), order="C"), self.decoding)


class LazyBand(BackendArray):
    """One band of a selection, read when it is indexed; pickles as small as its selection."""

    def __init__(self, selection: Selection, band: Band, decoding: Decoding | None = None) -> None:
        self._selection = selection
        self._band = band
        self._decoding = decoding
        self.shape = selection.shape
        self.dtype = np.dtype(decoding.dtype if decoding else band.dtype)

    @property
    def may_skip(self) -> bool:
        """Whether a source that cannot be read is left out."""
        return self._selection.spec.errors == "skip"

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what dask's tokens of this array are made of."""
        selection = self._selection
        return ("cube.LazyBand", selection.spec, self._band.name, selection.times, selection.window, self._decoding)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the wanted part as numpy."""
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the wanted part as numpy; variables that are loaded together are read together."""
        support = indexing.IndexingSupport.OUTER
        return await indexing.async_explicit_indexing_adapter(key, self.shape, support, self._read_async)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        plan = self.plan(key)
        if plan is None:
            return self.empty(key)
        found = read_block(plan.spec, (plan.band,), plan.times, plan.window)
        return plan.finish(found[plan.band])

    async def _read_async(self, key: tuple[Any, ...]) -> np.ndarray:
        plan = self.plan(key)
        if plan is None:
            return self.empty(key)
        return await asyncio.to_thread(plan.finish, await _read_with_others(plan))

    def plan(self, key: tuple[Any, ...]) -> LazyRead | None:
        """Return what to read for an outer index, and what to take of it; None where nothing is wanted."""
        selection = self._selection
        *time, y, x = key
        rows, columns = _bounds(y, self.shape[-2]), _bounds(x, self.shape[-1])
        times: tuple[int, ...] = selection.times
        pick_time: Any = 0
        if time:
            positions = np.atleast_1d(np.arange(len(times))[time[0]])
            times = tuple(times[i] for i in positions)
            pick_time = 0 if isinstance(time[0], (int, np.integer)) else slice(None)
        if not times or rows is None or columns is None:
            return None
        window = Window(
            top=selection.window.top + rows[0],
            bottom=selection.window.top + rows[1],
            left=selection.window.left + columns[0],
            right=selection.window.left + columns[1],
        )
        return LazyRead(
            spec=selection.spec,
            band=self._band.name,
            times=times,
            window=window,
            rest=(pick_time, rows[2], columns[2]),
            decoding=self._decoding,
        )

    def empty(self, key: tuple[Any, ...]) -> np.ndarray:
        """Return the array of an index that takes nothing."""
        kept = [(k, n) for k, n in zip(key, self.shape, strict=True) if not isinstance(k, (int, np.integer))]
        return np.empty([len(np.arange(n)[k]) for k, n in kept], self.dtype)


def find_lazy[T: BackendArray](variable: xr.Variable, kind: type[T]) -> tuple[T, Any] | None:
    """Return the array of a kind that a variable waits to be read of and its index; None where it is anything else."""
    data = variable._data  # noqa: SLF001 - `data` would load it
    while isinstance(data, (indexing.MemoryCachedArray, indexing.CopyOnWriteArray)):
        data = data.array
    if isinstance(data, indexing.LazilyIndexedArray) and isinstance(data.array, kind):
        return data.array, data.key
    return None


def load_together(
    variables: Mapping[str, tuple[LazyBand, Any]],
) -> tuple[dict[str, np.ndarray], tuple[Hole, ...] | None]:
    """Return the values of lazy bands and what is missing of them, with one read for all that want the same part.

    Args:
        variables: What `find_lazy` found, by name.

    Returns:
        Arrays by name, and the sources that could not be read; None where that would have been an error.
    """
    plans = {name: band.plan(key.tuple) for name, (band, key) in variables.items()}
    wanted: dict[Any, set[str]] = {}
    for plan in plans.values():
        if plan is not None:
            wanted.setdefault(plan.block, set()).add(plan.band)
    with ThreadPoolExecutor(min(len(wanted), _READS_AT_ONCE) or 1) as pool:
        reads = {block: pool.submit(_read_reported, block, tuple(sorted(bands))) for block, bands in wanted.items()}
    values = {
        name: variables[name][0].empty(variables[name][1].tuple)
        if plan is None
        else plan.finish(reads[plan.block].result()[0][plan.band])
        for name, plan in plans.items()
    }
    may_skip = any(band.may_skip for band, _ in variables.values())
    holes = {hole for each in reads.values() for hole in each.result()[1]}
    return values, tuple(sorted(holes)) if may_skip else None


def _read_reported(block: _Block, bands: tuple[str, ...]) -> tuple[dict[str, np.ndarray], tuple[Hole, ...]]:
    spec, times, window = block
    return read_block_reported(spec, bands, times, window)


class _Batch:
    """Bands that are asked for at the same time, and the read of them all."""

    def __init__(self, block: _Block, waiting: dict[_Block, _Batch]) -> None:
        self.bands: set[str] = set()
        self.waiters = 0
        self.task = asyncio.ensure_future(self._read(block, waiting))

    async def _read(self, block: _Block, waiting: dict[_Block, _Batch]) -> dict[str, np.ndarray]:
        await asyncio.sleep(0)  # what is loaded together asks before this goes on
        del waiting[block]
        spec, times, window = block
        return await read(spec, sorted(self.bands), times, window)


_waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Block, _Batch]] = WeakKeyDictionary()


async def _read_with_others(plan: LazyRead) -> np.ndarray:
    """Return a band's block; one read serves all bands that are asked for in the same turn of the event loop."""
    waiting = _waiting.setdefault(asyncio.get_running_loop(), {})
    batch = waiting.get(plan.block)
    if batch is None:
        batch = waiting[plan.block] = _Batch(plan.block, waiting)
    batch.bands.add(plan.band)
    batch.waiters += 1
    try:
        # Shielded: that one of them is given up must not end the read of the others.
        return (await asyncio.shield(batch.task))[plan.band]
    finally:
        batch.waiters -= 1
        if not batch.waiters:
            batch.task.cancel()
            if waiting.get(plan.block) is batch:
                del waiting[plan.block]


class LazyCentres(BackendArray):
    """The x (axis 0) or y (axis 1) of every pixel of a rotated grid, computed when it is indexed."""

    def __init__(self, grid: Grid, axis: int) -> None:
        self._grid, self._axis = grid, axis
        self.shape = grid.shape
        self.dtype = np.dtype("float64")

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what dask's tokens of this array are made of."""
        return ("cube.LazyCentres", self._grid, self._axis)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the wanted part as numpy."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._compute)

    def _compute(self, key: tuple[Any, Any]) -> np.ndarray:
        rows, columns = (np.arange(length)[part] for length, part in zip(self.shape, key, strict=True))
        return self._grid.centres(rows[..., None] if columns.ndim else rows, columns)[self._axis]


def _bounds(key: Any, length: int) -> tuple[int, int, Any] | None:
    """Return the first and last + 1 position that an index touches, and the index counted from the first."""
    if isinstance(key, (int, np.integer)):
        position = int(key) % length
        return position, position + 1, 0
    positions = np.arange(length)[key]
    if not len(positions):
        return None
    first, last = int(positions.min()), int(positions.max())
    if isinstance(key, slice) and key.step in (None, 1):
        return first, last + 1, slice(None)
    return first, last + 1, positions - first


def _take(block: np.ndarray, rest: tuple[Any, Any, Any]) -> np.ndarray:
    """Return a part of a block, one axis after another: an outer index, where numpy's own would be a vectorised one."""
    time, rows, columns = rest
    part: np.ndarray = block[time][..., rows, :][..., columns]
    return part
