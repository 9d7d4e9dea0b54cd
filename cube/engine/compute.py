"""Compute dask collections of cubes together with what could not be read of their sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dask.array as da
import dask.base
from dask._task_spec import Alias
from dask.base import is_dask_collection, tokenize
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph

from cube.engine.graph import ReadLayer
from cube.reader import Hole


def compute_reported[T](collection: T, **options: Any) -> tuple[T, tuple[Hole, ...] | None]:
    """Return what `dask.compute` gives, and the sources that are missing in the blocks that were read for it.

    The reads tell what is missing: nothing is read twice, and no block that the computation does not use.

    Args:
        collection: A dask collection, or an xarray object of some.
        **options: Of `dask.compute`.

    Returns:
        The sources in the order of their names; None where nothing is read of a cube that leaves sources out.
    """
    found = _hole_arrays(collection) if is_dask_collection(collection) else []
    computed, *holes = dask.base.compute(collection, *found, **options)
    if not found:
        return computed, None
    return computed, tuple(sorted({hole for array in holes for block in array for hole in block}))


def _hole_arrays(collection: Any) -> list[da.Array]:
    """Return arrays of what is missing in the blocks that a collection reads, an element a block."""
    graph = collection.__dask_graph__()
    if not isinstance(graph, HighLevelGraph) or not list(_skipping(graph)):
        return []
    return [_hole_array(layer) for layer in _skipping(graph.cull(set(flatten(collection.__dask_keys__()))))]


def _skipping(graph: HighLevelGraph) -> Iterator[ReadLayer]:
    """Yield the reads that leave out what they cannot read."""
    for layer in graph.layers.values():
        if isinstance(layer, ReadLayer) and layer.reads.spec.errors == "skip":
            yield layer


def _hole_array(layer: ReadLayer) -> da.Array:
    places = sorted(layer.places())
    name = f"cube-holes-{tokenize(layer.name, places)}"
    aliases: Any = {(name, i): Alias((name, i), layer.holes_key(place)) for i, place in enumerate(places)}
    graph = HighLevelGraph({layer.name: ReadLayer(layer.reads), name: aliases}, {layer.name: set(), name: {layer.name}})
    return da.Array(graph, name, ((1,) * len(places),), object)
