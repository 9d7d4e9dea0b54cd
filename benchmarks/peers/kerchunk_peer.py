"""Kerchunk: references made with kerchunk and tifffile, read by zarr through fsspec's reference file system."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _zarr_cube
import aiohttp
import expressions
import fsspec
import kerchunk.tiff
import numpy as np
import xarray as xr
import zarr
from _answers import Window, answer, hrefs
from protocol import Archive, Workload

CONCURRENT = 256
THREADS = 32
# zarr's FusedCodecPipeline was tried: as fast at 50 ms, for a tenth more of the processor's time.
ZARR = {
    "async.concurrency": CONCURRENT,
    "threading.max_workers": 2,
    "codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline",
}
COMPRESSOR = {"id": "imagecodecs_deflate"}


async def get_client(**options: Any) -> aiohttp.ClientSession:
    """Return a session with as many connections as zarr has requests under way; aiohttp's own limit is 100."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENT), **options)


class Kerchunk:
    """One JSON file of references for all dates and bands; a run reads pixels alone."""

    name = "Kerchunk + fsspec"
    settings = (
        "references by kerchunk.tiff (tifffile), zlib replaced by imagecodecs' libdeflate; "
        f"{CONCURRENT} connections, {_zarr_cube.SETTINGS}; zarr with "
        + ", ".join(f"{name}={value}" for name, value in ZARR.items())
    )

    def __init__(self) -> None:
        """Set zarr's options for the process."""
        zarr.config.set(ZARR)
        warnings.filterwarnings("ignore", category=UserWarning)

    def supports(self, workload: Workload) -> str | None:  # noqa: ARG002
        """Everything is done."""
        return None

    def prepare(self, archive: Archive, folder: str) -> dict[str, str]:
        """Write the references of all files as those of one cube: dates become the first axis of the keys."""
        references: dict[str, Any] = {".zgroup": json.dumps({"zarr_format": 2})}
        urls = hrefs(archive, archive.bands)
        places = [(date, band) for date in range(len(archive.items)) for band in archive.bands]
        for (date, band), found in zip(places, references_of(urls), strict=True):
            meta = json.loads(found[".zarray"])
            meta["shape"] = [len(archive.items), *meta["shape"]]
            meta["chunks"] = [1, *meta["chunks"]]
            if meta["compressor"] == {"id": "zlib"}:
                meta["compressor"] = COMPRESSOR
            references[f"{band}/.zarray"] = json.dumps(meta)
            references[f"{band}/.zattrs"] = json.dumps({"_ARRAY_DIMENSIONS": ["time", "y", "x"]})
            references |= {f"{band}/{date}.{key}": value for key, value in found.items() if not key.startswith(".z")}
        path = Path(folder) / "references.json"
        path.write_text(json.dumps({"version": 1, "refs": references}), "utf-8")
        return {"kerchunk": str(path)}

    def open(self, archive: Archive) -> None:
        """Open the references."""
        self._archive = archive
        fsspec.get_filesystem_class("reference").clear_instance_cache()
        cube = xr.open_dataset(
            archive.extras["kerchunk"],
            engine="kerchunk",
            chunks=None,
            cache=False,
            mask_and_scale=False,
            storage_options={"remote_protocol": "http", "remote_options": {"get_client": get_client}},
        )
        self._cube = cube.assign_coords(time=expressions.times(archive))

    def run(self, workload: Workload) -> np.ndarray:
        """Return the answer."""
        if workload.kind == "scan":
            return scan(hrefs(self._archive, workload.bands))
        return answer(workload, self._archive, self._read, self._compose)

    def _read(self, bands: Sequence[str], dates: Sequence[int], window: Window) -> list[np.ndarray]:
        return _zarr_cube.read(self._cube, bands, dates, window)

    def _compose(self, workload: Workload, window: Window) -> np.ndarray:
        return _zarr_cube.compose(self._cube, workload, window)


def references_of(urls: Sequence[str]) -> list[dict[str, Any]]:
    """Return Kerchunk's references of files' full resolution, with keys as those of one array."""

    def one(url: str) -> dict[str, Any]:
        found = kerchunk.tiff.tiff_to_zarr(url, target_options={"block_size": 1 << 16})
        if ".zarray" in found:
            return found
        return {key.removeprefix("0/"): value for key, value in found.items() if key.startswith("0/")}

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, urls))


def scan(urls: Sequence[str]) -> np.ndarray:
    """Return rows, columns and tile edge of each file."""
    metas = [json.loads(found[".zarray"]) for found in references_of(urls)]
    return np.array([[*meta["shape"], meta["chunks"][0]] for meta in metas])


PEER = Kerchunk()
