"""The composites and mosaics of both of cogcube's adapters."""

from __future__ import annotations

from typing import Any

import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from protocol import Workload

import cube

_COMPOSITES = {"ndvi_mean": ("mean", None), "ndvi_median": ("median", None), "monthly": ("median", "MS")}


def index(dataset: xr.Dataset, workload: Workload) -> xr.DataArray:
    """Return what a workload wants of its window, lazily."""
    composite, freq = _COMPOSITES[workload.kind]
    mask = f"scl={','.join(map(str, workload.clear))}" if workload.clear else None
    return cut(dataset, workload).cube.index("ndvi", mask=mask, composite=composite, freq=freq)


def cut(dataset: xr.Dataset, workload: Workload) -> xr.Dataset:
    """Return a workload's window: a new object also of the whole, since xarray keeps what it loads in the old one."""
    top, bottom, left, right = workload.window or (0, dataset.sizes["y"], 0, dataset.sizes["x"])
    return dataset.isel(y=slice(top, bottom), x=slice(left, right))


def joined(manifest: cube.Manifest, workload: Workload, **options: Any) -> xr.Dataset:
    """Return the scenes of several grids on a workload's grid, lazily."""
    epsg, *affine, rows, columns = workload.target
    grid = GeoBox((int(rows), int(columns)), Affine(*affine), f"EPSG:{int(epsg)}")
    return cube.open_cube(
        manifest, list(workload.bands), geobox=grid, groupby="solar_day", mask_and_scale=False, **options
    )
