"""odc-stac: `odc.stac.load` of the window, a chunk a file, computed by Dask's threads."""

from __future__ import annotations

from collections.abc import Sequence

import _gdal
import dask
import expressions
import numpy as np
import odc.stac
import pystac
import xarray as xr
from _answers import Window, answer
from affine import Affine
from odc.geo.geobox import GeoBox
from protocol import Archive, Workload

THREADS = 32


class OdcStac:
    """Every run loads anew, so that files are opened in it, as in a user's first look at a region."""

    name = "odc-stac"
    settings = (
        "odc.stac.load(geobox=the window, chunks=a whole window a file), Dask's threaded scheduler with "
        f"{THREADS} threads; {expressions.SETTINGS}; {_gdal.configure()}"
    )

    def supports(self, workload: Workload) -> str | None:
        """Everything but a scan of headers is done."""
        return "has no call that reads headers" if workload.kind == "scan" else None

    def open(self, archive: Archive) -> None:
        """Parse the items; the grid of the files is known from them."""
        self._archive = archive
        self._items = [pystac.Item.from_dict(item) for item in archive.items]
        self._grid = GeoBox(archive.shape, Affine(*archive.transform), f"EPSG:{archive.epsg}")
        odc.stac.configure_rio(cloud_defaults=True, **_gdal.VARIABLES)

    def run(self, workload: Workload) -> np.ndarray:
        """Return the answer."""
        _gdal.forget()
        return answer(workload, self._archive, self._read, self._compose)

    def mosaic(self, workload: Workload) -> np.ndarray:
        """Return scenes of several grids joined on one."""
        _gdal.forget()
        epsg, *affine, rows, columns = workload.target
        grid = GeoBox((int(rows), int(columns)), Affine(*affine), f"EPSG:{int(epsg)}")
        half = int(rows) // 2
        found = odc.stac.load(
            self._items,
            bands=list(workload.bands[:1]),
            geobox=grid,
            groupby="solar_day",
            resampling="nearest",
            chunks={"time": 1, "y": half, "x": half},
        )
        data = found[workload.bands[0]].data
        return dask.compute(data, scheduler="threads", num_workers=THREADS)[0]

    def _read(self, bands: Sequence[str], dates: Sequence[int], window: Window) -> list[np.ndarray]:
        found = self._load(bands, dates, window)
        return list(dask.compute(*(found[band].data for band in bands), scheduler="threads", num_workers=THREADS))

    def _compose(self, workload: Workload, window: Window) -> np.ndarray:
        found = self._load(workload.bands, range(len(self._items)), window)
        return expressions.compute(workload, {band: found[band] for band in workload.bands})

    def _load(self, bands: Sequence[str], dates: Sequence[int], window: Window) -> xr.Dataset:
        top, bottom, left, right = window
        items = [self._items[date] for date in dates]
        chunks = {"time": 1, "y": bottom - top, "x": right - left}
        return odc.stac.load(
            items, bands=list(bands), geobox=self._grid[top:bottom, left:right], groupby="id", chunks=chunks
        )


PEER = OdcStac()
