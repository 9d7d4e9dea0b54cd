"""rioxarray: one lazy array a file, read in threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import _gdal
import expressions
import numpy as np
import rioxarray
import xarray as xr
from _answers import Window, answer, hrefs, stored_type
from protocol import Archive, Workload

THREADS = 32


class Rioxarray:
    """Files are opened once, in `open`; GDAL keeps their headers, and each is read under a lock of its own."""

    name = "rioxarray"
    settings = (
        f"rioxarray.open_rasterio(lock=one a file, cache=False), files stay open; whole windows read in {THREADS} "
        f"threads, no Dask; {expressions.SETTINGS}, of xr.concat of a lazy chunk a file; {_gdal.configure()}"
    )

    def supports(self, workload: Workload) -> str | None:  # noqa: ARG002
        """Everything is done."""
        return None

    def open(self, archive: Archive) -> None:
        """Open every file."""
        xr.set_options(file_cache_maxsize=4096)
        _gdal.forget()
        self._archive = archive
        self._files = self._open_all(archive.bands)

    def run(self, workload: Workload) -> np.ndarray:
        """Return the answer."""
        _gdal.forget()
        if workload.kind == "scan":
            files = self._open_all(workload.bands).values()
            return np.array([[*file.shape[1:], file.encoding["preferred_chunks"]["y"]] for file in files])
        return answer(workload, self._archive, self._read, self._compose)

    def _open_all(self, bands: Sequence[str]) -> dict[str, xr.DataArray]:
        def open_one(href: str) -> xr.DataArray:
            return rioxarray.open_rasterio(href, lock=threading.Lock(), cache=False, parse_coordinates=False)

        urls = hrefs(self._archive, bands)
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(urls, pool.map(open_one, urls), strict=True))

    def _read(self, bands: Sequence[str], dates: Sequence[int], window: Window) -> list[np.ndarray]:
        top, bottom, left, right = window
        shape = (len(dates), bottom - top, right - left)
        found = [np.empty(shape, stored_type(self._archive, band)) for band in bands]

        def read_one(place: np.ndarray, href: str) -> None:
            place[:] = self._files[href][0, top:bottom, left:right].values

        places = [each[date] for date in range(len(dates)) for each in found]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read_one, places, hrefs(self._archive, bands, dates)))
        return found

    def _compose(self, workload: Workload, window: Window) -> np.ndarray:
        top, bottom, left, right = window

        def one(band: str) -> xr.DataArray:
            files = [self._files[href][0, top:bottom, left:right].chunk() for href in hrefs(self._archive, [band])]
            return xr.concat(files, xr.Variable("time", expressions.times(self._archive)))

        return expressions.compute(workload, {band: one(band) for band in workload.bands})


PEER = Rioxarray()
