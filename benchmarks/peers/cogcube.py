"""cogcube without Dask: lazy indexing, and its own composites."""

from __future__ import annotations

import asyncio
from typing import Any

import chips
import numpy as np
from protocol import Archive, Workload

import cube
from cube.scan import scan_sources
from cube.source import Source
from cube.views import open_view

_COMPOSITES = {"ndvi_mean": ("mean", None), "ndvi_median": ("median", None), "monthly": ("median", "MS")}


class Cogcube:
    """The manifest opened by `open_cube`; bands read together."""

    name = "cogcube"
    settings = (
        "open_cube(manifest) and ds.cube.compute(), which reads all bands in one batch; composites by "
        "open_view(chunks=None); chips by load_async, a window a date and all dates at once; defaults"
    )
    packages = ("cogcube", "obstore", "imagecodecs", "xarray", "numpy")

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload cannot be done."""
        del workload

    def open(self, archive: Archive) -> None:
        """Open the cube."""
        self._archive = archive
        self._dataset = cube.open_cube(archive.extras["manifest"], mask_and_scale=False)

    def run(self, workload: Workload) -> Any:
        """Return the answer."""
        if workload.kind == "open":
            sizes = self._dataset.sizes
            return np.array([len(self._dataset.data_vars), sizes["time"], sizes["y"], sizes["x"]])
        if workload.kind == "scan":
            return self._scan()
        if workload.kind == "chips":
            return asyncio.run(self._chips(workload))
        if workload.kind == "stack":
            part = _cut(self._dataset[list(workload.bands)], workload).cube.compute()
            return [part[band].values for band in workload.bands]
        return _cut(self._view(workload), workload).values

    def _view(self, workload: Workload) -> Any:
        composite, freq = _COMPOSITES[workload.kind]
        mask = f"scl={','.join(map(str, workload.clear))}" if workload.clear else None
        manifest = cube.open_manifest(self._archive.extras["manifest"])
        return open_view(manifest, "ndvi", mask=mask, composite=composite, freq=freq, chunks=None)

    def _scan(self) -> np.ndarray:
        hrefs = [item["assets"][band]["href"] for item in self._archive.items for band in self._archive.bands]
        scanned, _ = scan_sources([Source(href=href, item=href) for href in hrefs])
        levels = {each.source.href: each.header.levels[0] for each in scanned}
        return np.array([[levels[href].height, levels[href].width, levels[href].tile_width] for href in hrefs])

    async def _chips(self, workload: Workload) -> list[np.ndarray]:
        band, windows = self._dataset[workload.bands[0]], chips.date_windows(workload)
        parts = [band.isel(time=each.date, y=each.rows, x=each.columns) for each in windows]
        loaded = await asyncio.gather(*[part.load_async() for part in parts])
        return chips.cut(workload, windows, [each.values for each in loaded])


def _cut(what: Any, workload: Workload) -> Any:
    # All of it is cut, too: xarray keeps what it loads of a dataset itself, and the next run would read nothing.
    top, bottom, left, right = workload.window or (0, what.sizes["y"], 0, what.sizes["x"])
    return what.isel(y=slice(top, bottom), x=slice(left, right))


PEER = Cogcube()
