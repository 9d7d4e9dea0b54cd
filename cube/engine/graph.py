"""The dask graph of a cube: one layer for all bands, in which a block is one read of just the bands that are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any

import numpy as np
from dask._task_spec import Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import Layer

from cube.decoding import decode
from cube.engine.reads import Box, Pick, Reads, edges
from cube.grid import Window
from cube.reader import Hole, read_block_reported
from cube.spec import CubeSpec

type Place = tuple[int, int, int]
"""Of a block: along time, y and x."""


type Block = tuple[dict[str, np.ndarray], tuple[Hole, ...]]
"""Bands, and the sources that are missing in them."""


def read_bands(spec: CubeSpec, bands: tuple[str, ...], part: tuple[Sequence[int], Box]) -> Block:
    """Return the bands of a part, dates and window: what a read task runs."""
    times, (top, bottom, left, right) = part
    return read_block_reported(spec, bands, times, Window(top=top, bottom=bottom, left=left, right=right))


def pick(block: Block, how: Pick) -> np.ndarray:
    """Return one band of a block that was read, as physical numbers and without the axes that are left out."""
    part = block[0][how.band][tuple(0 if dropped else slice(None) for dropped in how.dropped)]
    return decode(np.asarray(part, order="C"), how.decoding)


def pick_holes(block: Block) -> np.ndarray:
    """Return the sources that are missing in a block that was read, as the one element of an array of objects."""
    found = np.empty(1, object)
    found[0] = block[1]
    return found


class ReadLayer(Layer):
    """Reads of a cube's blocks, made when dask has found out which bands of which blocks are wanted.

    Its keys are those of the arrays of all variables, and of what is missing in a block. `cull` is where dask says
    which of them a computation uses: a block gets one read task for all of its wanted bands, and a `pick` a band, which
    decodes it as well.
    """

    def __init__(
        self, reads: Reads, wanted: AbstractSet[Any] | None = None, annotations: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(annotations)
        self.reads = reads
        self.wanted = wanted
        """Keys of arrays and of holes; None stands for all of arrays."""

    @cached_property
    def token(self) -> str:
        """What tells these reads from others."""
        # The variables, too: dask merges layers by name, and one of another selection would lack this one's.
        return str(tokenize(self.reads))

    @property
    def name(self) -> str:
        """The layer's name; its arrays are called `array_name`."""
        return f"cube-read-{self.token}"

    def array_name(self, variable: str) -> str:
        """Return the name of a variable's dask array."""
        return f"cube-{variable}-{self.token}"

    def holes_key(self, place: Place) -> tuple[Any, ...]:
        """Return the key of the sources that are missing in a block: a computation that wants it reads no more."""
        return (f"{self.name}-holes", *place)

    @property
    def has_legacy_tasks(self) -> bool:
        """Whether tasks are plain tuples; dask would then look through every layer for keys."""
        return False

    @cached_property
    def _tasks(self) -> dict[Any, Task]:
        reads, starts = self.reads, edges(self.reads)
        by_name = {
            self.array_name(each.name): Pick(band=each.band, dropped=reads.dropped, decoding=each.decoding)
            for each in reads.variables
        }
        names_of: dict[frozenset[str], tuple[tuple[str, ...], str]] = {}
        tasks: dict[Any, Task] = {}
        for place, keys in self._by_place().items():
            wanted = frozenset(by_name[key[0]].band for key in keys if key[0] in by_name)
            if wanted not in names_of:
                bands = tuple(sorted(wanted))
                names_of[wanted] = bands, f"{self.name}-{'+'.join(bands)}"
            bands, name = names_of[wanted]
            source: Any = (name, *place)
            tasks[source] = Task(source, read_bands, reads.spec, bands, reads.part(starts, place), _data_producer=True)
            block = TaskRef(source)
            for key in keys:
                how = by_name.get(key[0])
                tasks[key] = Task(key, pick_holes, block) if how is None else Task(key, pick, block, how)
        return tasks

    def _by_place(self) -> dict[Place, list[Any]]:
        """Return the wanted keys of each block."""
        found: dict[Place, list[Any]] = {}
        is_whole = not any(self.reads.dropped)
        holes = f"{self.name}-holes"
        for key in self.get_output_keys():
            index = key[1:]
            found.setdefault(index if is_whole or key[0] == holes else _place(self.reads, index), []).append(key)
        return found

    def __getitem__(self, key: Any) -> Task:
        """Return the task of a key."""
        return self._tasks[key]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the keys of all tasks."""
        return iter(self._tasks)

    def __len__(self) -> int:
        """Return the number of tasks."""
        return len(self._tasks)

    def is_materialized(self) -> bool:
        """Return whether the tasks exist yet."""
        return "_tasks" in self.__dict__

    def get_output_keys(self) -> AbstractSet[Any]:
        """Return the keys that other layers may use."""
        if self.wanted is not None:
            return self.wanted
        indices = [range(len(each)) for each in self.reads.chunks]
        names = [self.array_name(each.name) for each in self.reads.variables]
        return {(name, *index) for name in names for index in itertools.product(*indices)}

    def cull(self, keys: set[Any], all_hlg_keys: Any) -> tuple[ReadLayer, dict[Any, Any]]:
        """Return the layer of the wanted keys alone, and what each of its tasks depends on."""
        del all_hlg_keys
        names = {f"{self.name}-holes", *(self.array_name(each.name) for each in self.reads.variables)}
        wanted = {key for key in keys if isinstance(key, tuple) and key[0] in names}
        layer = ReadLayer(self.reads, wanted, self.annotations)
        return layer, {key: task.dependencies for key, task in layer._tasks.items()}

    def places(self) -> list[Place]:
        """Return the blocks that are read."""
        return list(self._by_place())


def _place(reads: Reads, index: tuple[int, ...]) -> Place:
    """Return a block's place, of its index in an array that lacks axes."""
    along = iter(index)
    time, y, x = (0 if dropped else next(along) for dropped in reads.dropped)
    return time, y, x
