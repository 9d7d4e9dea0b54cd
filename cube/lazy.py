"""A band as an array that xarray indexes lazily: each access is one read, without Dask."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from cube.grid import Grid, Window
from cube.reader import read, read_block
from cube.selection import Selection
from cube.spec import Band


class LazyBand(BackendArray):
    """One band of a selection, read when it is indexed; pickles as small as its selection."""

    def __init__(self, selection: Selection, band: Band) -> None:
        self._selection = selection
        self._band = band
        self.shape = selection.shape
        self.dtype = np.dtype(band.dtype)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what dask's tokens of this array are made of."""
        selection = self._selection
        return ("cube.LazyBand", selection.spec, self._band.name, selection.times, selection.window)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the wanted part as numpy."""
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the wanted part as numpy; variables that are loaded together are read together."""
        support = indexing.IndexingSupport.OUTER
        return await indexing.async_explicit_indexing_adapter(key, self.shape, support, self._read_async)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        plan = self._plan(key)
        if plan is None:
            return self._empty(key)
        times, window, rest = plan
        return _take(read_block(self._selection.spec, (self._band.name,), times, window)[self._band.name], rest)

    async def _read_async(self, key: tuple[Any, ...]) -> np.ndarray:
        plan = self._plan(key)
        if plan is None:
            return self._empty(key)
        times, window, rest = plan
        return _take((await read(self._selection.spec, (self._band.name,), times, window))[self._band.name], rest)

    def _plan(self, key: tuple[Any, ...]) -> tuple[tuple[int, ...], Window, tuple[Any, ...]] | None:
        """Return the dates and window to read, and what to take of the result; None where nothing is wanted."""
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
        return times, window, (pick_time, rows[2], columns[2])

    def _empty(self, key: tuple[Any, ...]) -> np.ndarray:
        kept = [(k, n) for k, n in zip(key, self.shape, strict=True) if not isinstance(k, (int, np.integer))]
        return np.empty([len(np.arange(n)[k]) for k, n in kept], self.dtype)


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
