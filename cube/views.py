"""Derived cubes: an index of a cube, masked and composited, as a lazy array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from cube import conventions
from cube.algebra.composites import composite_by_period, find_composite
from cube.algebra.indices import find_index, normalized_difference
from cube.algebra.masks import Mask, parse_mask
from cube.algebra.missing import set_missing
from cube.coordinates import coordinates
from cube.engine.blocks import Blocks, plan_blocks, plan_strips
from cube.engine.stream import stream_blocks
from cube.errors import SelectionError
from cube.grid import Window
from cube.manifest.open import Manifest
from cube.reader import Hole
from cube.selection import Box, Selection, crop, select
from cube.spec import Band, CubeSpec

type Periods = tuple[tuple[int, ...], ...]
"""Positions of the dates of each period."""

_STRIP_VALUES = 1 << 18
"""Values of the strip of rows that is worked on at once. Each step finds some MB in a core's cache; smaller ones fit it
better still, but steps would end sooner than two threads can pass the GIL to each other (1 << 16: a third slower)."""


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
    chunks: Mapping[str, Any] | str | None = "auto",
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
        chunks: As in `open_cube`: None computes on this process's threads, without Dask, when values are asked for. A
            composite needs all dates in a block, which "auto" gives.
        level: As in `open_cube`.

    Returns:
        Dims (time, y, x), or (y, x) for a composite of all dates or a cube without time; NaN where nothing is clear.

    Raises:
        SelectionError: Something that the cube does not have or that does not go together.
    """
    view = plan_view(index, mask=mask, composite=composite, freq=freq)
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level)
    selection = select(manifest, spec, bands=view.bands, bbox=bbox, time=time)
    return derive(manifest, selection, view, None if chunks is None else plan_blocks(selection, chunks))


def plan_view(index: str, *, mask: str | None = None, composite: str | None = None, freq: str | None = None) -> View:
    """Return what to derive, of arguments as `open_view` takes them.

    Raises:
        SelectionError: Something that there is not or that does not go together.
    """
    view = View(index=find_index(index).name, mask=parse_mask(mask) if mask else None, composite=composite, freq=freq)
    if composite is not None:
        find_composite(composite)
    elif freq is not None:
        raise SelectionError(f"freq={freq!r} needs a composite (median, mean, max or min)")
    return view


def derive(manifest: Manifest, selection: Selection, view: View, blocks: Blocks | None) -> xr.DataArray:
    """Return a view of a part of a cube as a lazy array.

    Args:
        manifest: The cube.
        selection: The part; its bands are the view's.
        view: What to derive.
        blocks: Lengths of dask's blocks along the selection's dims; None is without Dask.

    Returns:
        What `open_view` does.

    Raises:
        SelectionError: A composite of a cube without time, or of dates that are in several blocks.
    """
    if view.composite is not None and selection.stamps is None:
        raise SelectionError(f"composite={view.composite!r}: {manifest.name!r} has no time to composite over")
    labels, periods = _periods(selection, view)
    if blocks is None:
        lazy = LazyView(manifest, selection, view, labels, periods)
        return _to_array(selection, view, labels, indexing.LazilyIndexedArray(lazy))
    if view.composite is not None and len(blocks[0]) > 1:
        raise SelectionError("a composite needs all dates in a block: give chunks without time, or time=-1")
    return _to_array(selection, view, labels, _dask_array(selection, view, blocks, labels, periods))


class LazyView(BackendArray):
    """A view that is computed when it is indexed, block by block, each as soon as its tiles are there."""

    def __init__(
        self, manifest: Manifest, selection: Selection, view: View, labels: np.ndarray | None, periods: Periods | None
    ) -> None:
        self._manifest, self._selection, self._view, self._periods = manifest, selection, view, periods
        self.shape = (*(() if labels is None else (len(labels),)), *selection.shape[-2:])
        self.dtype = np.dtype("float32")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return the wanted part as numpy."""
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, lambda part: self.load(part)[0])

    @property
    def may_skip(self) -> bool:
        """Whether a source that cannot be read is left out."""
        return self._selection.spec.errors == "skip"

    def load(self, key: tuple[Any, ...]) -> tuple[np.ndarray, tuple[Hole, ...]]:
        """Return the part of an outer index, and the sources that could not be read for it."""
        spans = [np.arange(length)[part] for part, length in zip(key, self.shape, strict=True)]
        *lead, ys, xs = (np.atleast_1d(span) for span in spans)
        if not all(span.size for span in spans):
            return np.empty([len(span) for span in spans if span.ndim], self.dtype), ()
        selection, periods = self._selection, self._periods
        if periods is None:
            dates = lead[0].tolist() if lead else [0]
        else:
            periods = tuple(periods[i] for i in lead[0]) if lead else periods
            dates = sorted({date for period in periods for date in period})
            periods = tuple(tuple(dates.index(date) for date in period) for period in periods)
        whole = selection.window
        window = Window(
            top=whole.top + int(ys.min()),
            bottom=whole.top + int(ys.max()) + 1,
            left=whole.left + int(xs.min()),
            right=whole.left + int(xs.max()) + 1,
        )
        found, holes = self._fill(window, dates, periods)
        for axis, span in ((-2, ys), (-1, xs)):
            if not np.array_equal(span - span.min(), np.arange(found.shape[axis])):
                found = found.take(span - span.min(), axis)
        return found.reshape([len(span) for span in spans if span.ndim]), holes

    def _fill(
        self, window: Window, dates: Sequence[int], periods: Periods | None
    ) -> tuple[np.ndarray, tuple[Hole, ...]]:
        """Return the view in a window, (periods or dates, rows, columns), and what is missing in it."""
        selection, view = self._selection, self._view
        times = tuple(selection.times[i] for i in dates)
        bands = tuple(band for _, band in selection.bands)
        stamps = None if selection.stamps is None else selection.stamps[list(dates)]
        grid = crop(self._manifest.grid_at(selection.spec.level), window)
        part = replace(selection, window=window, times=times, stamps=stamps, grid=grid)
        rows, columns = plan_strips(part)
        out = np.full((len(periods) if periods is not None else len(times), *window.shape), np.nan, "float32")

        def work(block: dict[str, np.ndarray], ys: slice, xs: slice) -> None:
            stored = (block[band.name] for band in bands)
            out[:, ys, xs] = compute_block(*stored, view=view, bands=bands, periods=periods)

        if not times:
            return out, ()
        dtypes = {band.name: np.dtype(band.dtype) for band in bands}
        return out, stream_blocks(selection.spec, dtypes, times, window, (rows, columns), work)


def _dask_array(
    selection: Selection,
    view: View,
    blocks: Blocks,
    labels: np.ndarray | None,
    periods: Periods | None,
) -> Any:
    import dask.array as da
    from dask.base import tokenize

    from cube.engine.array import band_arrays

    arrays = band_arrays(selection, blocks)
    squeeze = selection.stamps is not None and labels is None
    of_time = () if labels is None else ((len(labels),) if periods is not None else blocks[0],)
    return da.map_blocks(
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


def _to_array(selection: Selection, view: View, labels: np.ndarray | None, data: Any) -> xr.DataArray:
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
    step = max(1, _STRIP_VALUES // (columns * max(1, int(np.prod(dates)))))
    for top in range(0, rows, step):
        strip = slice(top, min(top + step, rows))
        values, missing = _index_strip(view, by_name, strip)
        if view.composite is not None and periods is not None:
            values = composite_by_period(values, missing, view.composite, periods)
        else:
            set_missing(values, missing)
        out[..., strip, :] = values
    return out[0] if squeeze else out


def _index_strip(
    view: View, by_name: Mapping[str, tuple[np.ndarray, Band]], strip: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Return the index in some rows, and where it has no value."""
    (first, one), (second, other) = (by_name[name] for name in find_index(view.index).bands)
    pair = first[..., strip, :], second[..., strip, :]
    missing = _is_missing(pair[0], one) | _is_missing(pair[1], other)
    if view.mask is not None:
        classes, _ = by_name[view.mask.band]
        missing |= ~view.mask.apply(classes[..., strip, :])
    shift = _shift(one, other)
    if shift is None:
        return normalized_difference(_physical(pair[0], one), _physical(pair[1], other), missing=missing)
    return normalized_difference(*pair, shift=shift, missing=missing)


def _is_missing(stored: np.ndarray, band: Band) -> np.ndarray:
    if band.nodata is None or np.isnan(band.nodata):  # NaN stays NaN by itself
        return np.zeros(stored.shape, bool)
    missing: np.ndarray = stored == band.nodata
    return missing


def _shift(one: Band, other: Band) -> float | None:
    """Return the shift by which stored numbers give the index of physical values; None where they cannot."""
    same = (one.scale, one.offset) == (other.scale, other.offset)
    small = all(np.dtype(band.dtype).kind in "iu" and np.dtype(band.dtype).itemsize <= 2 for band in (one, other))
    return 2 * one.offset / one.scale if same and small else None


def _physical(stored: np.ndarray, band: Band) -> np.ndarray:
    """Return float64 physical values; those without data are not NaN yet."""
    values = stored.astype("float64")
    if (band.scale, band.offset) != (1.0, 0.0):
        values *= band.scale
        values += band.offset
    return values
