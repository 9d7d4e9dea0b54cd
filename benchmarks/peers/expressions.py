"""NDVI and its composites as users of xarray write them, for the systems that give their users xarray objects.

`arithmetic` is what the systems are spared that give no more than numbers, and what none of these users would write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import xarray as xr
from protocol import Archive, Workload

BLOCK = 512
"""Rows and columns of what is computed at a time: all dates of it are in the processor's cache, or nearly."""
THREADS = 8
"""Enough for all files of six dates to be under way; more hold more at once, and were slower."""
SETTINGS = (
    f"NDVI as an xarray expression, rechunked to all dates of {BLOCK} x {BLOCK} pixels, one compute by Dask's threaded "
    f"scheduler with {THREADS} threads"
)


def stacked(archive: Archive, arrays: Mapping[str, Iterable]) -> dict[str, xr.DataArray]:
    """Return arrays (dates, rows, columns) of bands with the dates of the archive, as lazy as they were."""
    dates = times(archive)
    return {band: xr.DataArray(array, {"time": dates}, ("time", "y", "x")) for band, array in arrays.items()}


def times(archive: Archive) -> np.ndarray:
    """Return the dates of an archive."""
    return np.array([item["properties"]["datetime"].removesuffix("Z") for item in archive.items], "M8[ns]")


def composite(workload: Workload, bands: Mapping[str, xr.DataArray]) -> xr.DataArray:
    """Return the composite that a workload asks for, lazy where the bands are."""
    nir, red = bands["nir"], bands["red"]
    valid = (nir != 0) & (red != 0)
    ndvi = ((nir.astype("f4") - red) / (nir.astype("f4") + red)).where(valid)
    if workload.kind == "ndvi_mean":
        return ndvi.mean("time")
    if workload.kind == "ndvi_median":
        return ndvi.median("time")
    return ndvi.where(bands["scl"].isin(workload.clear)).resample(time="MS").median()


def compute(workload: Workload, bands: Mapping[str, xr.DataArray] | xr.Dataset) -> np.ndarray:
    """Return the composite of lazy bands, in one computation."""
    blocks = {band: array.chunk(time=-1, y=BLOCK, x=BLOCK) for band, array in bands.items()}
    return composite(workload, blocks).compute(scheduler="threads", num_workers=THREADS).values
