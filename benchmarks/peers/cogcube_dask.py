"""cogcube with Dask: blocks that it plans itself, and plain xarray expressions on the threaded scheduler."""

from __future__ import annotations

from typing import Any

import chips
import dask
import numpy as np
import xarray as xr
from protocol import Archive, Workload

import cube

_CHIP_THREADS = 32


class CogcubeDask:
    """The manifest opened with dask blocks."""

    name = "cogcube + Dask"
    settings = (
        'open_cube(manifest, chunks="auto"), xarray expressions, the threaded scheduler; chips by a window a date on '
        f"{_CHIP_THREADS} threads"
    )
    packages = ("cogcube", "dask", "xarray", "obstore", "imagecodecs", "numpy")

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload cannot be done."""
        return "the same as without Dask" if workload.kind == "scan" else None

    def open(self, archive: Archive) -> None:
        """Open the cube."""
        dask.config.set(scheduler="threads")
        self._dataset = cube.open_cube(archive.extras["manifest"], chunks="auto", mask_and_scale=False)

    def run(self, workload: Workload) -> Any:
        """Return the answer."""
        data = self._dataset
        if workload.kind == "open":
            return np.array([len(data.data_vars), data.sizes["time"], data.sizes["y"], data.sizes["x"]])
        if workload.kind == "chips":
            band, windows = data[workload.bands[0]].data, chips.date_windows(workload)
            parts = [band[each.date, each.rows, each.columns] for each in windows]
            return chips.cut(workload, windows, dask.compute(*parts, num_workers=_CHIP_THREADS))
        if workload.window is not None:
            top, bottom, left, right = workload.window
            data = data.isel(y=slice(top, bottom), x=slice(left, right))
        if workload.kind == "stack":
            return list(dask.compute(*[data[band].data for band in workload.bands]))
        nir, red = (data[band].where(data[band] != 0).astype("f4") for band in ("nir", "red"))
        ndvi = (nir - red) / (nir + red)
        return _composite(ndvi, data, workload).values


def _composite(ndvi: xr.DataArray, data: xr.Dataset, workload: Workload) -> xr.DataArray:
    if workload.kind == "ndvi_mean":
        return ndvi.mean("time")
    if workload.kind == "ndvi_median":
        return ndvi.median("time")
    clear = ndvi.where(data["scl"].isin(workload.clear))
    return clear.resample(time="MS").median()


PEER = CogcubeDask()
