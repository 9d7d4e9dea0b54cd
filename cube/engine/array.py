"""A band of a cube as a dask array that knows what it reads, so that a part of it reads just that part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import dask.array as da
import numpy as np
from dask.array.slicing import normalize_index
from dask.highlevelgraph import HighLevelGraph

from cube.decoding import Decoding
from cube.engine.blocks import Blocks
from cube.engine.graph import ReadLayer
from cube.engine.reads import Reads, Variable, narrow, plan_reads
from cube.selection import Selection


class BandArray(da.Array):
    """A variable of a cube that nothing was done with yet.

    Indexing gives another one, of the narrower reads: dask by itself would read whole blocks and take the part. What
    comes of arithmetic is a plain dask array.
    """

    __slots__ = ("_layer", "_variable")

    _layer: ReadLayer
    _variable: Variable

    def __new__(cls, layer: ReadLayer, variable: Variable) -> Self:
        """Make the array of a variable of the layer's reads."""
        name, chunks = layer.array_name(variable.name), layer.reads.chunks
        # Dask looks for a layer of the array's name. Its keys are among those of the layer of all bands, so that it is
        # empty: one of aliases would be a task more a block and band.
        no_tasks: Any = {}
        graph = HighLevelGraph({layer.name: layer, name: no_tasks}, {layer.name: set(), name: {layer.name}})
        self: Self = super().__new__(cls, graph, name, chunks, np.dtype(variable.dtype))  # type: ignore[no-untyped-call]
        self._layer, self._variable = layer, variable
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what to pickle: the reads, a few hundred bytes, and no tasks."""
        return _restore, (self._layer.reads, self._variable)

    def copy(self) -> BandArray:
        """Return the array itself: it never changes."""
        return self

    def __getitem__(self, index: Any) -> da.Array:
        """Return a part, which reads no more than it needs (see `narrow`)."""
        keys = _plain(index, self.shape)
        if keys is None:
            return _take(super(), index)
        shape = [np.shape(np.arange(length)[key]) for length, key in zip(self.shape, keys, strict=True)]
        if (0,) in shape:  # dask would read a block to take nothing of it
            nothing: da.Array = da.empty(tuple(length for each in shape for length in each), dtype=self.dtype)
            return nothing
        reads, rest = narrow(self._layer.reads, keys)
        part = self if reads == self._layer.reads else _restore(reads, self._variable)
        if all(isinstance(key, slice) and key == slice(None) for key in rest):
            return part
        return _take(super(BandArray, part), rest)


def _take(array: Any, index: Any) -> da.Array:
    """Return a part as dask takes it; apart, since dask has no types."""
    part: da.Array = array.__getitem__(index)
    return part


def _restore(reads: Reads, variable: Variable) -> BandArray:
    return BandArray(ReadLayer(reads), variable)


def band_arrays(
    selection: Selection, blocks: Blocks, decodings: Sequence[Decoding | None] | None = None
) -> dict[str, BandArray]:
    """Return a dask array a variable.

    xarray's own chunking makes an array a variable, each with its own reads: a computation over two bands pays two
    round trips a block. Here all variables stand on one `ReadLayer`, which reads a block's bands together.

    Args:
        selection: What is opened.
        blocks: Lengths of the blocks along the selection's dims.
        decodings: What becomes of each band's stored numbers; they stay what they are where None.
    """
    layer = ReadLayer(plan_reads(selection, blocks, decodings or [None] * len(selection.bands)))
    return {variable.name: BandArray(layer, variable) for variable in layer.reads.variables}


def _plain(index: Any, shape: tuple[int, ...]) -> list[Any] | None:
    """Return an int, a slice or a one-dimensional array for each axis, or None where something else is asked for."""
    asked = index if isinstance(index, tuple) else (index,)
    if any(key is None or isinstance(key, (str, da.Array)) for key in asked):
        return None
    keys = [int(key) if isinstance(key, (int, np.integer)) else key for key in normalize_index(asked, shape)]
    lists = [key for key in keys if not isinstance(key, (int, slice))]
    if len(lists) > 1 or any(np.ndim(key) != 1 for key in lists):
        return None
    return keys
