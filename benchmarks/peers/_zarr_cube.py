"""One lazy xarray Dataset over Zarr, as VirtualiZarr and Kerchunk give it to their users."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import expressions
import numpy as np
import xarray as xr
from _answers import Window
from protocol import Workload

BLOCK = 1024
"""Rows and columns of what is read at a time of a composite, of all dates."""
SETTINGS = (
    f"open_dataset(chunks=None, cache=False), bands in threads; {expressions.SETTINGS}, of the window in chunks of all "
    f"dates of {BLOCK} x {BLOCK} pixels along the tiles"
)


def read(cube: xr.Dataset, bands: Sequence[str], dates: Sequence[int], window: Window) -> list[np.ndarray]:
    """Return stored numbers (dates, rows, columns) of each band, read at the same time."""
    top, bottom, left, right = window
    chosen = slice(None) if len(dates) == cube.sizes["time"] else list(dates)
    with ThreadPoolExecutor(len(bands)) as pool:
        return list(pool.map(lambda band: cube[band][chosen, top:bottom, left:right].values, bands))


def compose(cube: xr.Dataset, workload: Workload, window: Window) -> np.ndarray:
    """Return the composite that a workload asks for."""
    top, bottom, left, right = window
    # Cut first: of a chunk that is cut afterwards, Dask reads all.
    part = cube[list(workload.bands)].isel(y=slice(top, bottom), x=slice(left, right))
    lazy = part.chunk(time=-1, y=_lengths(top, bottom), x=_lengths(left, right))
    return expressions.compute(workload, lazy)


def _lengths(start: int, stop: int) -> tuple[int, ...]:
    """Return the lengths of what multiples of a block cut a range into."""
    edges = [start, *range((start // BLOCK + 1) * BLOCK, stop, BLOCK), stop]
    return tuple(int(length) for length in np.diff(edges))
