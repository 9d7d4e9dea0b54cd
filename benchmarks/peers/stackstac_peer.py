"""stackstac: lazy stacks of the items, computed by Dask's threads."""

from __future__ import annotations

from collections.abc import Sequence

import _gdal
import dask
import dask.array as da
import numpy as np
import pystac
import stackstac
from _answers import Window, answer, stored_type
from protocol import Archive, Workload

THREADS = 32


class Stackstac:
    """Stacks of all dates; every run computes a part of one anew, with new GDAL datasets."""

    name = "stackstac"
    # Tried and slower: chunks of a file, since stackstac reads a nodata mask after the pixels, for which GDAL reads the
    # file once more where it decoded it in threads of its own; the window as `bounds`, which goes through a warper.
    settings = (
        "stackstac.stack(chunksize=2 x 2 tiles, for points 1 tile; dtype of the files, rescale=False), Dask's threaded "
        f"scheduler with {THREADS} threads; stackstac's own GDAL environment without VSI_CACHE, and "
        f"{_gdal.configure(GDAL_NUM_THREADS='1')}"
    )

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload cannot be done."""
        return "has no call that reads headers" if workload.kind == "scan" else None

    def open(self, archive: Archive) -> None:
        """Make the lazy stacks: one a data type and chunk size."""
        self._archive = archive
        self._items = [pystac.Item.from_dict(item) for item in archive.items]
        for item in self._items:
            item.properties["proj:epsg"] = archive.epsg  # the only name that stackstac knows
        self._stacks = {}
        for kind in {stored_type(archive, band) for band in archive.bands}:
            bands = [band for band in archive.bands if stored_type(archive, band) == kind]
            for tiles in (1, 2):
                stack = self._stack(bands, np.dtype(kind), tiles * archive.tile)
                self._stacks |= dict.fromkeys([(band, tiles) for band in bands], stack)

    def run(self, workload: Workload) -> np.ndarray | Sequence[np.ndarray]:
        """Return the answer."""
        _gdal.forget()
        return answer(workload, self._archive, self._read)

    def mosaic(self, workload: Workload) -> np.ndarray:
        """Return scenes of several grids joined on one."""
        _gdal.forget()
        epsg, a, _, c, _, e, f, rows, columns = workload.target
        kind = np.dtype(self._archive.dtype)
        for item in self._items:
            item.properties["proj:epsg"] = int(item.properties["proj:code"].removeprefix("EPSG:"))
        stack = stackstac.stack(
            self._items,
            assets=list(workload.bands[:1]),
            epsg=int(epsg),
            resolution=a,
            bounds=(c, f + e * rows, c + a * columns, f),
            snap_bounds=False,
            chunksize=int(rows) // 2,
            sortby_date=False,
            dtype=kind,
            fill_value=kind.type(self._archive.nodata or 0),
            rescale=False,
            properties=False,
            band_coords=False,
            gdal_env=stackstac.DEFAULT_GDAL_ENV.updated(open={"VSI_CACHE": False}),
        )
        # stackstac.mosaic in so many words: a scene of each zone at every date, and the first where both are.
        first, second = stack.data[::2, 0], stack.data[1::2, 0]
        return dask.compute(da.where(first != 0, first, second), scheduler="threads", num_workers=THREADS)[0]

    def _stack(self, bands: list[str], kind: np.dtype, chunk: int):
        a, _, c, _, e, f = self._archive.transform
        rows, columns = self._archive.shape
        return stackstac.stack(
            self._items,
            assets=bands,
            epsg=self._archive.epsg,
            resolution=a,
            bounds=(c, f + e * rows, c + a * columns, f),
            snap_bounds=False,
            chunksize=chunk,
            dtype=kind,
            fill_value=kind.type(self._archive.nodata or 0),
            rescale=False,
            properties=False,
            band_coords=False,
            gdal_env=stackstac.DEFAULT_GDAL_ENV.updated(open={"VSI_CACHE": False}),
        )

    def _read(self, bands: Sequence[str], dates: Sequence[int], window: Window) -> list[np.ndarray]:
        top, bottom, left, right = window
        tiles = 1 if max(bottom - top, right - left) <= self._archive.tile else 2
        parts = [self._stacks[band, tiles].sel(band=band).data[list(dates), top:bottom, left:right] for band in bands]
        return list(dask.compute(*parts, scheduler="threads", num_workers=THREADS))


PEER = Stackstac()
