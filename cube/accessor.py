"""`ds.cube`: the cube that a dataset was opened from, and what of it lies behind the dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray

from cube.conventions import X_CENTRE, Y_CENTRE
from cube.coordinates import coordinates
from cube.errors import SelectionError
from cube.explain import Explanation, explain
from cube.grid import Grid, Window
from cube.lazy import LazyBand, find_lazy, load_together
from cube.manifest.open import Manifest, open_spec
from cube.selection import Selection, crop, select
from cube.spec import Band, CubeSpec

if TYPE_CHECKING:
    import pandas as pd

MISSING = "missing_sources"
"""The attribute that lists what could not be read."""
_RESULT = "cube_result"


@xr.register_dataset_accessor("cube")  # type: ignore[no-untyped-call]  # xarray's own
class CubeAccessor:
    """What is known of the cube behind a dataset; nothing here reads a pixel, but for `compute`."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def manifest(self) -> Manifest:
        """The cube, in the version that the dataset was opened from.

        Raises:
            SelectionError: The dataset does not say which.
            ManifestError: It is not where it was.
        """
        spec = self._spec
        return open_spec(spec)

    @property
    def grid(self) -> Grid:
        """The grid of the dataset: CRS, affine and shape of its window.

        Raises:
            SelectionError: The dataset has no place on the cube's grid.
        """
        manifest = self.manifest
        level = self._spec.level
        return crop(manifest.grid_at(level), self._window(manifest, level))

    def compute(self, **options: Any) -> xr.Dataset:
        """Return the dataset with its values, as its own `compute` does, and what is missing in them.

        Without dask, bands of the same part are read together and not one after another. Where the cube was opened
        with `fail_on_error=False`, the attribute `missing_sources` lists "href: reason" of each source that could not
        be read in what was computed, and whose pixels are therefore without data; it is empty where nothing is missing.

        Args:
            **options: Of `dask.compute`.

        Raises:
            ReadError: A source cannot be read, and the cube was opened with `fail_on_error=True`.
        """
        return _compute(self._dataset, options)

    @property
    def _spec(self) -> CubeSpec:
        spec = self._dataset.encoding.get("cube")
        if not isinstance(spec, CubeSpec):
            raise SelectionError(
                "this dataset does not say which cube it is of (no 'cube' in its encoding; some operations drop it); "
                "ask the dataset that cube.open_cube gave"
            )
        return spec

    @property
    def sources(self) -> pd.DataFrame:
        """The sources of the dataset's bands at its dates: a row for each band that a source gives.

        `nodata`, `scale` and `offset` are those that count (physical = stored * scale + offset); `decision` is what a
        rule for the sensor had to say about them; `path` is "gdal" where GDAL reads the source, for the `reason`.
        """
        return self._table(self._times(self.manifest))

    def _table(self, times: Sequence[int]) -> pd.DataFrame:
        import pandas as pd

        from cube.manifest.stored import read_stored

        manifest = self.manifest
        given = {
            (found.source, band.name, found.sample)
            for _, band in self._bands(manifest)
            for found in manifest.contributions(band.name, times)
        }
        rows = [
            {
                "href": each.source.href,
                "item": each.source.item,
                "collection": each.source.collection,
                "asset": each.source.asset,
                "time": None if band.time is None else pd.Timestamp(band.time),
                "band": band.name,
                "sample": band.sample,
                "dtype": each.dtype.name,
                "nodata": band.nodata,
                "scale": band.scale,
                "offset": band.offset,
                "decision": each.decision,
                "path": each.path,
                "reason": each.reason,
            }
            for each in read_stored(manifest)
            for band in each.bands
            if (each.position, band.name, band.sample) in given
        ]
        return pd.DataFrame(rows)

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(item or href, why) of what was given when the cube was made and is not part of it."""
        return list(self.manifest.left_out)

    def items(self, time: Any = None) -> list[str]:
        """Return the ids of the items that give the dataset's bands on a date.

        Args:
            time: "2024-06-01", "2024-06", or a value of the dataset's time axis; all dates of the dataset where None.

        Raises:
            SelectionError: The cube has no such date.
        """
        manifest = self.manifest
        times = self._times(manifest)
        if time is not None:
            text = time if isinstance(time, str) else str(np.asarray(time).astype("datetime64[us]"))
            chosen = set(select(manifest, self._spec, time=text).times)
            times = tuple(each for each in times if each in chosen)
        return sorted(set(self._table(times)["item"])) if times else []

    def explain(self, latency_ms: float | None = None) -> Explanation:
        """Return what reading the dataset costs, with its bands, dates, window and dask chunks, and how to do it.

        Requests and bytes are exact for a dataset as it was opened; computing a part of it reads at most that. Seconds
        and memory are predictions for the reads alone.

        Args:
            latency_ms: Of the store, for the predictions; `CUBE_LATENCY_MS` where None.

        Raises:
            SelectionError: The dataset has no place on the cube's grid.
        """
        manifest = self.manifest
        bands = self._bands(manifest)
        selection = self._selection(manifest, bands)
        chunks = self._dataset[bands[0][0]].chunksizes
        return explain(
            selection,
            tuple(chunks[dim] for dim in selection.dims) if chunks else None,
            latency_ms=latency_ms,
            dtypes={name: self._dataset[name].dtype for name, _ in bands},
        )

    def index(
        self, name: str, *, mask: str | None = None, composite: str | None = None, freq: str | None = None
    ) -> xr.DataArray:
        """Return a spectral index of the dataset's dates and window as a lazy array.

        What `(ds.nir - ds.red) / (ds.nir + ds.red)` and a median over time would give, in one read of just the bands
        that are needed and one pass over their stored numbers; in the dataset's dask blocks, if it has any. See
        `cube.algebra` for the formulas.

        Args:
            name: "ndvi", "ndwi" or "nbr".
            mask: What is clear: "scl", or "BAND=VALUES" with the values to keep. All where None.
            composite: "median", "mean", "max" or "min" over the clear dates; None keeps the dates.
            freq: Period of the composites ("MS": months); None makes one of all dates.

        Returns:
            float32 with the dataset's dims, less time where one composite is made of all dates; NaN where nothing is
            clear. `compute()` gives its values, `.cube.compute()` those and what is missing in them.

        Raises:
            SelectionError: The dataset is no window of its cube, or its bands are not what the cube stores: they are
                loaded already, or the result of a computation.
        """
        from cube.views import derive, plan_view

        manifest, dataset = self.manifest, self._dataset
        view = plan_view(name, mask=mask, composite=composite, freq=freq)
        own = self._bands(manifest)
        wanted = tuple((band, manifest.band(band)) for band in view.bands)
        selection = self._selection(manifest, wanted)
        _require_whole_window(dataset, selection)
        needed = {band.name for _, band in wanted}
        for variable, band in own:
            if band.name in needed and not _is_unread(dataset.variables[variable]):
                raise SelectionError(
                    f"variable {variable!r} is loaded or computed, and index() reads what the cube stores: use it on "
                    "the dataset that cube.open_cube gave, or a window of it"
                )
        chunks = dataset[own[0][0]].chunksizes
        blocks = tuple(chunks.get(dim, (1,)) for dim in selection.dims) if chunks else None
        array = derive(manifest, selection, view, blocks)
        return array.isel({dim: 0 for dim in array.dims if dim not in dataset[own[0][0]].dims})

    def _selection(self, manifest: Manifest, bands: tuple[tuple[str, Band], ...]) -> Selection:
        spec, times = self._spec, self._times(manifest)
        window = self._window(manifest, spec.level)
        return Selection(
            spec=spec,
            bands=bands,
            times=times,
            stamps=None if manifest.times is None else manifest.times[list(times)],
            window=window,
            grid=crop(manifest.grid_at(spec.level), window),
        )

    def _bands(self, manifest: Manifest) -> tuple[tuple[str, Band], ...]:
        found: list[tuple[str, Band]] = []
        for name in map(str, self._dataset.data_vars):
            with contextlib.suppress(SelectionError):  # a variable of the user's own
                found.append((name, manifest.band(name)))
        if not found:
            raise SelectionError(f"no variable of this dataset is a band of {manifest.name!r}")
        return tuple(found)

    def _times(self, manifest: Manifest) -> tuple[int, ...]:
        """Return the positions of the dataset's dates on the cube's time axis; all where it has no dates."""
        if manifest.times is None:
            return (0,)
        if "time" not in self._dataset.coords:
            return tuple(range(len(manifest.times)))
        own = np.atleast_1d(self._dataset["time"].values).astype("datetime64[us]")
        stamps, first, counts = np.unique(manifest.times, return_index=True, return_counts=True)
        at = np.minimum(np.searchsorted(stamps, own), len(stamps) - 1)
        at = at[stamps[at] == own]
        taken = np.bincount(at, minlength=len(stamps))
        unclear = np.flatnonzero((taken > 0) & (counts > 1) & (taken != counts))
        if len(unclear):
            i = unclear[0]
            raise SelectionError(
                f"{counts[i]} items of {manifest.name!r} are of {stamps[i]}, and nothing says which {taken[i]} of them "
                "this dataset holds: take all or none"
            )
        # Items of one time are told apart by their order: the n-th here is the n-th there.
        order = np.argsort(at, kind="stable")
        nth = np.empty_like(at)
        nth[order] = np.arange(len(at)) - np.searchsorted(at[order], at[order])
        return tuple((first[at] + np.where(counts[at] > 1, nth, 0)).tolist())

    def _window(self, manifest: Manifest, level: int) -> Window:
        grid = manifest.grid_at(level)
        dataset = self._dataset
        names = (X_CENTRE, Y_CENTRE) if grid.is_rotated else ("x", "y")
        if not all(name in dataset.coords and dataset[name].size for name in names):
            raise SelectionError(f"this dataset has no coordinates {names[0]} and {names[1]}, which say where it lies")
        corners = [dataset[name][{dim: [0, -1] for dim in dataset[name].dims}].to_numpy() for name in names]
        xs, ys = corners if grid.is_rotated else np.meshgrid(*map(np.atleast_1d, corners))
        columns, rows = grid.to_pixels(np.asarray(xs, "float64"), np.asarray(ys, "float64"))
        window = Window(
            top=int(np.floor(rows.min())),
            bottom=int(np.floor(rows.max())) + 1,
            left=int(np.floor(columns.min())),
            right=int(np.floor(columns.max())) + 1,
        )
        if window.top < 0 or window.left < 0 or window.bottom > grid.height or window.right > grid.width:
            raise SelectionError(f"this dataset lies outside of level {level} of {manifest.name!r}")
        return window


@xr.register_dataarray_accessor("cube")  # type: ignore[no-untyped-call]  # xarray's own
class CubeArrayAccessor:
    """What can be done with an array that comes of a cube."""

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    def compute(self, **options: Any) -> xr.DataArray:
        """Return the array with its values and what is missing in them, as `ds.cube.compute` does for a dataset."""
        loaded = _compute(self._array.to_dataset(name=_RESULT), options)
        result = loaded[_RESULT].rename(self._array.name)
        if MISSING in loaded.attrs:
            result.attrs[MISSING] = loaded.attrs[MISSING]
        return result


def _find_all[T: BackendArray](dataset: xr.Dataset, kind: type[T]) -> dict[str, tuple[T, Any]]:
    found = {str(name): find_lazy(each, kind) for name, each in dataset.variables.items()}
    return {name: each for name, each in found.items() if each is not None}


def _is_unread(variable: xr.Variable) -> bool:
    """Return whether a variable is a band as the cube stores it, that waits to be read."""
    if variable.chunks is None:
        return find_lazy(variable, LazyBand) is not None
    from cube.engine.array import BandArray

    return isinstance(variable.data, BandArray)


def _require_whole_window(dataset: xr.Dataset, selection: Selection) -> None:
    """Refuse a dataset that leaves out or turns round pixels or dates of its window."""
    expected = coordinates(selection)
    for dim, length in zip(selection.dims, selection.shape, strict=True):
        found = np.atleast_1d(dataset[dim].values) if dim in dataset.coords else None
        if dataset.sizes.get(dim, 1) != length or (found is not None and not np.array_equal(found, expected[dim])):
            raise SelectionError(
                f"along {dim} this dataset is not {length} neighbours in the order of its cube, which index() needs: "
                "take every n-th or turn round afterwards"
            )


def _compute(dataset: xr.Dataset, options: dict[str, Any]) -> xr.Dataset:
    from cube.views import LazyView

    values, holes = load_together(_find_all(dataset, LazyBand))
    for name, (view, key) in _find_all(dataset, LazyView).items():
        values[name], missing = view.load(key.tuple)
        holes = (*(holes or ()), *missing) if view.may_skip else holes
    old = {name: dataset.variables[name] for name in values}
    new = {name: xr.Variable(old[name].dims, values[name], old[name].attrs, old[name].encoding) for name in values}
    dataset = dataset.assign({name: new[name] for name in values if name in dataset.data_vars})
    dataset = dataset.assign_coords({name: new[name] for name in values if name in dataset.coords})
    if any(each.chunks for each in dataset.variables.values()):
        from cube.engine.compute import compute_reported

        dataset, more = compute_reported(dataset, **options)
        holes = more if holes is None else (*holes, *(more or ()))
    loaded = dataset.compute()  # what is lazy and no band: the coordinates of a rotated grid
    if holes is not None:
        # The first of a source's reasons, which may be one a tile; texts, which netCDF can hold.
        first = {hole.href: hole.reason for hole in sorted(holes, reverse=True)}
        loaded.attrs[MISSING] = [f"{href}: {first[href]}" for href in sorted(first)]
    return loaded
