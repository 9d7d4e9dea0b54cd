"""Reading a Zarr store by zarr-python at its best: what `zarr_copy` and `zarr_rechunked` have in common."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

import arithmetic
import chips
import numpy as np
import zarr
import zarr.api.asynchronous
from obstore.store import HTTPStore
from protocol import Archive, Workload
from zarr.core.sync import sync
from zarr.storage import ObjectStore

_WINDOWS_AT_ONCE = 32
"""Of chips: each asks for up to 256 chunks at once, and all of them together for more connections than files can be
open."""


class ZarrPeer:
    """A copy of the archive in Zarr, read with zarr-python and obstore."""

    packages = ("zarr", "obstore", "numcodecs", "imagecodecs", "numpy")

    def __init__(self, extra: str, what: str, most_workers: int) -> None:
        self.name, self._extra = extra, extra
        self.settings = (
            f"{what}; zarr-python with obstore, FusedCodecPipeline of {most_workers} threads, async.concurrency 256, "
            f"consolidated metadata, all bands at once; chips by a window a date; NDVI in numpy strips of rows on a "
            f"thread a core"
        )
        zarr.config.set(
            {
                "codec_pipeline.path": "zarr.core.codec_pipeline.FusedCodecPipeline",
                "codec_pipeline.max_workers": most_workers,
                "async.concurrency": 256,
            }
        )

    def supports(self, workload: Workload) -> str | None:
        """Return why a workload cannot be done."""
        return "a copy has no headers of COGs" if workload.kind == "scan" else None

    def open(self, archive: Archive) -> None:
        """Open the copy."""
        self._archive = archive
        store = HTTPStore.from_url(archive.extras[self._extra], client_options={"allow_http": True})
        group = zarr.open_group(ObjectStore(store, read_only=True), mode="r", zarr_format=2, use_consolidated=True)
        self._arrays = {band: group[band].async_array for band in archive.bands}

    def run(self, workload: Workload) -> Any:
        """Return the answer."""
        if workload.kind == "open":
            shape = next(iter(self._arrays.values())).shape
            return np.array([len(self._arrays), *shape])
        if workload.kind == "chips":
            return self._chips(workload)
        top, bottom, left, right = workload.window or (0, self._archive.shape[0], 0, self._archive.shape[1])
        part = (slice(None), slice(top, bottom), slice(left, right))
        stacks = _gather([self._arrays[band].getitem(part) for band in workload.bands])
        if workload.kind == "stack":
            return stacks
        if workload.kind == "monthly":
            return arithmetic.monthly(*stacks, workload.clear, arithmetic.months_of(self._archive.items))
        work = {"ndvi_mean": arithmetic.ndvi_mean, "ndvi_median": arithmetic.ndvi_median}
        return work[workload.kind](*stacks)

    def _chips(self, workload: Workload) -> Any:
        array, windows = self._arrays[workload.bands[0]], chips.date_windows(workload)
        pixels = _gather([array.getitem((each.date, each.rows, each.columns)) for each in windows], _WINDOWS_AT_ONCE)
        return chips.cut(workload, windows, pixels)


def _gather(work: list[Coroutine[Any, Any, Any]], at_once: int | None = None) -> list[Any]:
    async def everything() -> list[Any]:
        turns = asyncio.Semaphore(at_once or len(work))

        async def one(each: Coroutine[Any, Any, Any]) -> Any:
            async with turns:
                return await each

        return await asyncio.gather(*[one(each) for each in work])

    return sync(everything())


def threads() -> int:
    """Return how many threads decode: two a core, since they wait for the network, too."""
    return 2 * (os.cpu_count() or 1)
