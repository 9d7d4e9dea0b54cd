"""CF decoding of arrays that are in memory: stored numbers to physical ones, no data to NaN, as xarray does it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cube import conventions
from cube.spec import Band

_STRIP = 128 * 1024
"""Values that are worked on at once, so that each step finds them in a core's cache and not in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How stored numbers become physical ones; picklable and small, since every dask task of a band holds one."""

    dtype: str
    """Of the physical numbers, by xarray's rule."""
    fill: float | int | None
    """The stored number that becomes NaN; None where none does, or where it is NaN already."""
    scale: float = 1.0
    offset: float = 0.0

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return what dask's tokens of this value are made of."""
        return ("cube.Decoding", self.dtype, self.fill, self.scale, self.offset)


def find_decoding(band: Band, dtype: np.dtype) -> Decoding | None:
    """Return how a band is decoded to the dtype that xarray gives it; None where its numbers stay what they are."""
    fill = conventions.fill_value(band)
    mask = None if fill is None or np.isnan(fill) else fill
    if mask is None and (band.scale, band.offset) == (1.0, 0.0) and dtype == np.dtype(band.dtype):
        return None
    return Decoding(dtype=dtype.name, fill=mask, scale=band.scale, offset=band.offset)


def decode(stored: np.ndarray, how: Decoding | None) -> np.ndarray:
    """Return physical numbers, to the last bit those of `xarray.decode_cf`; `stored` itself where `how` is None.

    xarray's own decoding takes an array of the result's size a step (copy, mask, scale); this takes the result's alone.
    """
    if how is None:
        return stored
    out = np.empty(stored.shape, how.dtype)
    source, target = stored.reshape(-1), out.reshape(-1)
    fill = None if how.fill is None else stored.dtype.type(how.fill)
    is_scaled = (how.scale, how.offset) != (1.0, 0.0)
    for start in range(0, source.size, _STRIP):
        part = target[start : start + _STRIP]
        part[...] = source[start : start + _STRIP]
        if fill is not None:
            np.copyto(part, np.nan, where=part == fill)
        if is_scaled:
            part *= how.scale
            part += how.offset
    return out
