"""rioxarray + numpy by hand: the same reads, and composites in arithmetic that its users would have to write."""

from __future__ import annotations

import _gdal
import numpy as np
from _answers import answer
from protocol import Workload
from rioxarray_peer import THREADS, Rioxarray


class RioxarrayByHand(Rioxarray):
    """Shows what the reader alone takes: files and reads are `Rioxarray`'s, the composites are `arithmetic`'s."""

    name = "rioxarray + numpy by hand"
    settings = (
        f"files as rioxarray's; whole windows read in {THREADS} threads, no Dask; NDVI in numpy strips of rows on a "
        f"thread a core, which is the benchmark's own code; {_gdal.configure()}"
    )
    packages = ("rioxarray", "rasterio", "xarray", "numpy")

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload is left to `Rioxarray`: it is no composite."""
        return None if "ndvi" in workload.kind or workload.kind == "monthly" else "the same as rioxarray"

    def run(self, workload: Workload) -> np.ndarray:
        """Return the answer."""
        _gdal.forget()
        return answer(workload, self._archive, self._read)


PEER = RioxarrayByHand()
