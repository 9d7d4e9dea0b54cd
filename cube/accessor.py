"""`ds.cube`: the cube that a dataset was opened from, and what of it lies behind the dataset."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from cube.conventions import X_CENTRE, Y_CENTRE
from cube.errors import SelectionError
from cube.explain import Explanation, explain
from cube.grid import Window
from cube.lazy import find_lazy, load_together
from cube.manifest.open import Manifest, open_manifest
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
        return open_manifest(spec.manifest, spec.version)

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
        import pandas as pd

        from cube.manifest.stored import read_stored

        manifest = self.manifest
        names, times = {band.name for _, band in self._bands(manifest)}, self._times(manifest)
        stamps = None if manifest.times is None else set(manifest.times[list(times)].tolist())
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
            if band.name in names and (stamps is None or (band.time is not None and band.time.tolist() in stamps))
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
        sources = self.sources
        if time is not None:
            manifest = self.manifest
            text = time if isinstance(time, str) else str(np.asarray(time).astype("datetime64[us]"))
            spec = CubeSpec(manifest=manifest.url, version=manifest.version)
            stamps = select(manifest, spec, time=text).stamps
            sources = sources[sources["time"].isin([] if stamps is None else stamps)]
        return sorted(set(sources["item"]))

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
        dataset, spec = self._dataset, self._spec
        bands, times, window = self._bands(manifest), self._times(manifest), self._window(manifest, spec.level)
        selection = Selection(
            spec=spec,
            bands=bands,
            times=times,
            stamps=None if manifest.times is None else manifest.times[list(times)],
            window=window,
            grid=crop(manifest.grid_at(spec.level), window),
        )
        chunks = dataset[bands[0][0]].chunksizes
        return explain(
            selection,
            tuple(chunks[dim] for dim in selection.dims) if chunks else None,
            latency_ms=latency_ms,
            dtypes={name: dataset[name].dtype for name, _ in bands},
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
        found = np.searchsorted(manifest.times, own)
        inside = np.minimum(found, len(manifest.times) - 1)
        return tuple(inside[manifest.times[inside] == own].tolist())

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


def _compute(dataset: xr.Dataset, options: dict[str, Any]) -> xr.Dataset:
    lazy = {str(name): found for name, each in dataset.variables.items() if (found := find_lazy(each)) is not None}
    values, holes = load_together(lazy)
    old = {name: dataset.variables[name] for name in lazy}
    new = {name: xr.Variable(old[name].dims, values[name], old[name].attrs, old[name].encoding) for name in lazy}
    dataset = dataset.assign({name: new[name] for name in lazy if name in dataset.data_vars})
    dataset = dataset.assign_coords({name: new[name] for name in lazy if name in dataset.coords})
    if any(each.chunks for each in dataset.variables.values()):
        from cube.engine.compute import compute_reported

        dataset, more = compute_reported(dataset, **options)
        holes = more if holes is None else tuple(sorted({*holes, *(more or ())}))
    loaded = dataset.compute()  # what is lazy and no band: the coordinates of a rotated grid
    if holes is not None:
        # The first of a source's reasons, which may be one a tile; texts, which netCDF can hold.
        first = {hole.href: hole.reason for hole in reversed(holes)}
        loaded.attrs[MISSING] = [f"{href}: {first[href]}" for href in sorted(first)]
    return loaded
