"""cogcube without Dask: lazy indexing, and its own composites."""

from __future__ import annotations

import asyncio
from typing import Any

import chips
import numpy as np
from _index import cut, index, joined
from protocol import Archive, Workload

import cube
from cube.scan import scan_sources
from cube.source import Source


class Cogcube:
    """The manifest opened by `open_cube`; bands read together."""

    name = "cogcube"
    settings = (
        "open_cube(manifest) and ds.cube.compute(), which reads all bands in one batch; composites by "
        "ds.cube.index(); chips by load_async, a window a date and all dates at once; defaults"
    )
    packages = ("cogcube", "obstore", "imagecodecs", "xarray", "numpy")

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload cannot be done."""
        del workload

    def open(self, archive: Archive) -> None:
        """Open the cube."""
        self._archive = archive
        self._manifest = cube.open_manifest(archive.extras["manifest"])
        if len(self._manifest.grids) == 1:
            self._dataset = cube.open_cube(self._manifest, mask_and_scale=False)

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
            part = cut(self._dataset[list(workload.bands)], workload).cube.compute()
            return [part[band].values for band in workload.bands]
        return index(self._dataset, workload).values

    def mosaic(self, workload: Workload) -> np.ndarray:
        """Return scenes of several grids joined on one."""
        return joined(self._manifest, workload).cube.compute()[workload.bands[0]].values

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


PEER = Cogcube()
