"""Derived cubes: an index of a cube, masked and composited, as a lazy array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from cube import conventions
from cube.algebra.composites import composite_by_period, find_composite
from cube.algebra.indices import find_index, normalized_difference
from cube.algebra.masks import Mask, parse_mask
from cube.dataset import coordinates
from cube.engine.blocks import Blocks, plan_blocks
from cube.engine.graph import band_arrays
from cube.errors import SelectionError
from cube.manifest.open import Manifest
from cube.selection import Box, Selection, select
from cube.spec import Band, CubeSpec

type Periods = tuple[tuple[int, ...], ...]
"""Positions of the dates of each period."""

_STRIP_BYTES = 1 << 20
"""Float64 bytes of the strip of rows that is worked on at once: what a core's cache holds, times a few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What to derive: an index, over which mask, composited how."""

    index: str
    mask: Mask | None = None
    composite: str | None = None
    """None keeps the dates."""
    freq: str | None = None
    """Period of the composites as pandas writes it ("MS", "QS", "YS"); None makes one of all dates."""

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands that a block needs, each once and no others."""
        return tuple(dict.fromkeys((*find_index(self.index).bands, *([self.mask.band] if self.mask else []))))


def open_view(
    manifest: Manifest,
    index: str,
    *,
    mask: str | None = None,
    composite: str | None = None,
    freq: str | None = None,
    bbox: Box | None = None,
    time: str | tuple[str, str] | None = None,
    chunks: Mapping[str, Any] | str = "auto",
    level: int = 0,
) -> xr.DataArray:
    """Return an index of a cube as a lazy float32 array; a block is one read of just the bands it needs.

    Args:
        manifest: The cube.
        index: "ndvi", "ndwi" or "nbr".
        mask: What is clear: "scl", or "BAND=VALUES" with the values to keep. All where None.
        composite: "median", "mean", "max" or "min" over the clear dates; None keeps the dates.
        freq: Period of the composites ("MS": months); None makes one of all dates.
        bbox: As in `open_cube`.
        time: As in `open_cube`.
        chunks: As in `open_cube`; a composite needs all dates in a block, which "auto" gives.
        level: As in `open_cube`.

    Returns:
        Dims (time, y, x), or (y, x) for a composite of all dates or a cube without time; NaN where nothing is clear.

    Raises:
        SelectionError: Something that the cube does not have or that does not go together.
    """
    view = View(index=index.lower(), mask=parse_mask(mask) if mask else None, composite=composite, freq=freq)
    if composite is not None:
        find_composite(composite)
    elif freq is not None:
        raise SelectionError(f"freq={freq!r} needs a composite (median, mean, max or min)")
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level)
    selection = select(manifest, spec, bands=view.bands, bbox=bbox, time=time)
    if composite is not None and selection.stamps is None:
        raise SelectionError(f"composite={composite!r}: {manifest.name!r} has no time to composite over")
    blocks = plan_blocks(manifest, selection, chunks)
    if composite is not None and len(blocks[0]) > 1:
        raise SelectionError("a composite needs all dates in a block: give chunks without time, or time=-1")
    labels, periods = _periods(selection, view)
    return _lazy(selection, view, blocks, labels, periods)


def _lazy(
    selection: Selection,
    view: View,
    blocks: Blocks,
    labels: np.ndarray | None,
    periods: Periods | None,
) -> xr.DataArray:
    import dask.array as da
    from dask.base import tokenize

    arrays = band_arrays(selection, blocks)
    squeeze = selection.stamps is not None and labels is None
    of_time = () if labels is None else ((len(labels),) if periods is not None else blocks[0],)
    data = da.map_blocks(
        compute_block,
        *(arrays[name] for name, _ in selection.bands),
        view=view,
        bands=tuple(band for _, band in selection.bands),
        periods=periods,
        squeeze=squeeze,
        dtype="float32",
        chunks=(*of_time, *blocks[-2:]),
        drop_axis=0 if squeeze else None,
        meta=np.empty((0,) * (2 + len(of_time)), "float32"),
        name=f"cube-{view.index}-{tokenize(selection.spec, selection.window, selection.times, blocks, view)}",
    )
    coords = coordinates(selection)
    coords.pop("time", None)
    if labels is not None:
        coords["time"] = xr.Variable(("time",), labels.astype("datetime64[ns]"), conventions.TIME_ATTRIBUTES)
    index = find_index(view.index)
    how = f"{view.composite} of {index.long_name}" if view.composite else index.long_name
    attributes = {"long_name": how, "units": "1", "valid_range": [-1.0, 1.0], "reference": index.source}
    attributes["grid_mapping"] = conventions.SPATIAL_REF
    dims = ("y", "x") if labels is None else ("time", "y", "x")
    array = xr.DataArray(data, coords, dims, view.index, attributes)
    array.encoding["coordinates"] = conventions.SPATIAL_REF
    return array


def _periods(selection: Selection, view: View) -> tuple[np.ndarray | None, Periods | None]:
    """Return the time labels of the result (None: no time) and the dates of each period (None: dates stay)."""
    if selection.stamps is None:
        return None, None
    if view.composite is None:
        return selection.stamps, None
    if view.freq is None:
        return None, (tuple(range(len(selection.times))),)
    import pandas as pd

    positions = pd.Series(np.arange(len(selection.times)), index=pd.DatetimeIndex(selection.stamps))
    try:
        groups = list(positions.resample(view.freq))
    except (ValueError, ZeroDivisionError) as error:
        raise SelectionError(f"freq={view.freq!r} is no period ({error}); use MS, QS, YS or such as 10D") from None
    labels = pd.DatetimeIndex([label for label, _ in groups]).to_numpy().astype("datetime64[us]")
    return labels, tuple(tuple(int(i) for i in members) for _, members in groups)


def compute_block(
    *arrays: np.ndarray,
    view: View,
    bands: Sequence[Band],
    periods: Periods | None,
    squeeze: bool = False,
) -> np.ndarray:
    """Return a block of a view from the stored numbers of its bands: pure, in strips of rows that stay in the cache.

    Args:
        *arrays: Stored numbers of each of the view's bands, ([dates,] rows, columns).
        view: What to derive.
        bands: How they are stored, in the same order.
        periods: Dates of each period; None keeps the dates.
        squeeze: Whether to leave out the time axis of one composite.

    Returns:
        float32, ([periods or dates,] rows, columns).
    """
    by_name = dict(zip(view.bands, zip(arrays, bands, strict=True), strict=True))
    *_, rows, columns = arrays[0].shape
    dates = arrays[0].shape[:-2]
    lead = (len(periods),) if periods is not None else dates
    out = np.empty((*lead, rows, columns), "float32")
    step = max(1, _STRIP_BYTES // (8 * columns * max(1, int(np.prod(dates)))))
    for top in range(0, rows, step):
        strip = slice(top, min(top + step, rows))
        values = _index_strip(view, by_name, strip)
        if view.composite is not None and periods is not None:
            values = composite_by_period(values, view.composite, periods)
        out[..., strip, :] = values
    return out[0] if squeeze else out


def _index_strip(view: View, by_name: Mapping[str, tuple[np.ndarray, Band]], strip: slice) -> np.ndarray:
    first, second = (_physical(*by_name[name], strip) for name in find_index(view.index).bands)
    values = normalized_difference(first, second)
    if view.mask is not None:
        classes, _ = by_name[view.mask.band]
        values[~view.mask.apply(classes[..., strip, :])] = np.nan
    return values


def _physical(stored: np.ndarray, band: Band, strip: slice) -> np.ndarray:
    """Return float64 physical values of a strip of rows, NaN where there is no data."""
    part = stored[..., strip, :]
    values = part.astype("float64")
    if (band.scale, band.offset) != (1.0, 0.0):
        values *= band.scale
        values += band.offset
    if band.nodata is not None and not np.isnan(band.nodata):
        values[part == band.nodata] = np.nan
    return values
