"""cogcube with Dask: blocks that it plans itself, on the threaded scheduler."""

from __future__ import annotations

from typing import Any

import chips
import dask
import numpy as np
from _index import cut, index, joined
from protocol import Archive, Workload

import cube

_CHIP_THREADS = 32


class CogcubeDask:
    """The manifest opened with dask blocks."""

    name = "cogcube + Dask"
    settings = (
        'open_cube(manifest, chunks="auto"), composites by ds.cube.index(), the threaded scheduler; chips by a window '
        f"a date on {_CHIP_THREADS} threads"
    )
    packages = ("cogcube", "dask", "xarray", "obstore", "imagecodecs", "numpy")

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload cannot be done."""
        return "the same as without Dask" if workload.kind == "scan" else None

    def open(self, archive: Archive) -> None:
        """Open the cube."""
        dask.config.set(scheduler="threads")
        self._manifest = cube.open_manifest(archive.extras["manifest"])
        if len(self._manifest.grids) == 1:
            self._dataset = cube.open_cube(self._manifest, chunks="auto", mask_and_scale=False)

    def run(self, workload: Workload) -> Any:
        """Return the answer."""
        data = self._dataset
        if workload.kind == "open":
            return np.array([len(data.data_vars), data.sizes["time"], data.sizes["y"], data.sizes["x"]])
        if workload.kind == "chips":
            band, windows = data[workload.bands[0]].data, chips.date_windows(workload)
            parts = [band[each.date, each.rows, each.columns] for each in windows]
            return chips.cut(workload, windows, dask.compute(*parts, num_workers=_CHIP_THREADS))
        if workload.kind == "stack":
            return list(dask.compute(*[cut(data, workload)[band].data for band in workload.bands]))
        return index(data, workload).values

    def mosaic(self, workload: Workload) -> np.ndarray:
        """Return scenes of several grids joined on one."""
        return joined(self._manifest, workload, chunks="auto")[workload.bands[0]].values


PEER = CogcubeDask()
