"""The dask graph of a cube: one layer for all bands, in which a block is one read of just the bands that are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import dask.array as da
import numpy as np
from dask._task_spec import Alias, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph, Layer

from cube.engine.blocks import Blocks
from cube.grid import Window
from cube.reader import read_block
from cube.selection import Selection
from cube.spec import CubeSpec


def band_arrays(selection: Selection, blocks: Blocks) -> dict[str, da.Array]:
    """Return a dask array of stored numbers a variable.

    xarray's own chunking makes an array a variable, each with its own reads: a computation over two bands pays two
    round trips a block. Here all variables stand on one `ReadLayer`, which reads a block's bands together.
    """
    # The bands, too: dask merges layers by name, and one of another selection would lack this one's.
    names = [band.name for _, band in selection.bands]
    token = tokenize(selection.spec, names, selection.times, selection.window, blocks)
    base = ReadLayer(f"cube-read-{token}", selection, blocks)
    arrays = {}
    for name, band in selection.bands:
        alias = f"cube-{name}-{base.name.removeprefix('cube-read-')}"
        layer: Any = {
            (alias, *index): Alias((alias, *index), (base.name, band.name, *index))
            for index in itertools.product(*(range(len(each)) for each in blocks))
        }
        graph = HighLevelGraph({base.name: base, alias: layer}, {base.name: set(), alias: {base.name}})
        arrays[name] = da.Array(graph, alias, chunks=blocks, dtype=np.dtype(band.dtype))
    return arrays


def read_bands(spec: CubeSpec, bands: tuple[str, ...], times: tuple[int, ...], window: Window) -> dict[str, np.ndarray]:
    """Return a block's bands: what a read task runs."""
    return read_block(spec, bands, times, window)


def pick(block: Mapping[str, np.ndarray], band: str, timeless: bool) -> np.ndarray:
    """Return one band of a block that was read."""
    return block[band][0] if timeless else block[band]


class ReadLayer(Layer):
    """Reads of a cube's blocks, made when dask has found out which bands of which blocks are wanted.

    Output keys are (name, band, *block). `cull` is where dask says which of them a computation uses: a block gets one
    read task for all of its wanted bands, and a `pick` a band.
    """

    def __init__(self, name: str, selection: Selection, blocks: Blocks, wanted: AbstractSet[Any] | None = None) -> None:
        super().__init__()
        self.name = name
        self.selection = selection
        self.blocks = blocks
        bands = dict.fromkeys(band.name for _, band in selection.bands)
        indices = [range(len(each)) for each in blocks]
        self.wanted = wanted if wanted is not None else {(name, *key) for key in itertools.product(bands, *indices)}
        self._tasks: dict[Any, Task] | None = None

    @property
    def has_legacy_tasks(self) -> bool:
        """Whether tasks are plain tuples; dask would then look through every layer for keys."""
        return False

    def _materialize(self) -> dict[Any, Task]:
        if self._tasks is None:
            by_block: dict[tuple[int, ...], list[str]] = {}
            for _, band, *index in self.wanted:
                by_block.setdefault(tuple(index), []).append(band)
            self._tasks = {}
            timeless = self.selection.stamps is None
            starts = [np.concatenate([[0], np.cumsum(each)]).tolist() for each in self.blocks]
            for index, bands in by_block.items():
                names = tuple(sorted(bands))
                key: Any = (f"{self.name}-{'+'.join(names)}", *index)
                self._tasks[key] = Task(
                    key, read_bands, self.selection.spec, names, *self._part(index, starts), _data_producer=True
                )
                for band in names:
                    out = (self.name, band, *index)
                    self._tasks[out] = Task(out, pick, TaskRef(key), band, timeless)
        return self._tasks

    def _part(self, index: tuple[int, ...], starts: list[list[int]]) -> tuple[tuple[int, ...], Window]:
        """Return the dates and the window of a block."""
        *time, y, x = index
        window, rows, columns = self.selection.window, starts[-2], starts[-1]
        times = self.selection.times[starts[0][time[0]] : starts[0][time[0] + 1]] if time else self.selection.times
        return times, Window(
            top=window.top + rows[y],
            bottom=window.top + rows[y + 1],
            left=window.left + columns[x],
            right=window.left + columns[x + 1],
        )

    def __getitem__(self, key: Any) -> Task:
        """Return the task of a key."""
        return self._materialize()[key]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the keys of all tasks."""
        return iter(self._materialize())

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self._materialize())

    def is_materialized(self) -> bool:
        """Return whether the tasks exist yet."""
        return self._tasks is not None

    def get_output_keys(self) -> set[Any]:
        """Return the keys that other layers may use."""
        return set(self.wanted)

    def cull(self, keys: set[Any], all_hlg_keys: Any) -> tuple[ReadLayer, dict[Any, set[Any]]]:
        """Return the layer of the wanted keys alone, and what each of its tasks depends on."""
        del all_hlg_keys
        layer = ReadLayer(self.name, self.selection, self.blocks, self.wanted & keys)
        tasks = layer._materialize()
        return layer, {key: set(task.dependencies) for key, task in tasks.items()}
