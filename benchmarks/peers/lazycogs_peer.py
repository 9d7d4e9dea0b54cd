"""lazycogs: a lazy array over a stac-geoparquet file, read through async-geotiff and obstore."""

from __future__ import annotations

import asyncio
import functools
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import expressions
import lazycogs
import numpy as np
import rustac
from _answers import Window, answer, stored_type
from obstore.store import HTTPStore
from protocol import Archive, Workload

CONCURRENT = 256
EXTENSIONS = ("icu", "parquet", "spatial")


class Lazycogs:
    """Arrays are opened once a data type; a run searches the items and reads headers and pixels."""

    name = "lazycogs"
    settings = (
        f"lazycogs.open(chunks=None, max_concurrent_reads={CONCURRENT}, a configured obstore store), no Dask; "
        f"{expressions.SETTINGS}, of a chunk a date and band; DuckDB's extensions from PyPI where they fit, else "
        "downloaded by rustac"
    )

    def supports(self, workload: Workload) -> str | None:
        """Everything but a scan of headers is done, where DuckDB gets its extensions."""
        try:
            client()
        except Exception as error:  # noqa: BLE001 - rustac's own type, and whatever the download meets
            reason = str(error).splitlines()[0]
            return f"rustac's DuckDB downloads its extensions when it starts, which failed: {reason}"
        return "has no call that reads headers" if workload.kind == "scan" else None

    def prepare(self, archive: Archive, folder: str) -> dict[str, str]:
        """Write the items as stac-geoparquet."""
        path = str(Path(folder) / "items.parquet")

        async def write() -> None:
            await rustac.write(path, archive.items)

        asyncio.run(write())
        return {"stac_geoparquet": path}

    def open(self, archive: Archive) -> None:
        """Open one lazy array for all bands of a data type."""
        self._archive = archive
        a, _, c, _, e, f = archive.transform
        rows, columns = archive.shape
        store = HTTPStore.from_url(archive.url, client_options={"allow_http": True})
        self._arrays = {}
        for kind in {stored_type(archive, band) for band in archive.bands}:
            bands = [band for band in archive.bands if stored_type(archive, band) == kind]
            array = lazycogs.open(
                archive.extras["stac_geoparquet"],
                bbox=(c, f + e * rows, c + a * columns, f),
                crs=f"EPSG:{archive.epsg}",
                resolution=a,
                bands=bands,
                store=store,
                path_from_href=lambda href: href.removeprefix(f"{archive.url}/"),
                max_concurrent_reads=CONCURRENT,
                duckdb_client=client(),
            )
            self._arrays |= dict.fromkeys(bands, array)

    def run(self, workload: Workload) -> np.ndarray:
        """Return the answer."""
        return answer(workload, self._archive, self._read, self._compose)

    def _read(self, bands: Sequence[str], dates: Sequence[int], window: Window) -> list[np.ndarray]:
        top, bottom, left, right = window
        steps = slice(None) if len(dates) == len(self._archive.items) else list(dates)
        found = {}
        for array in {id(self._arrays[band]): self._arrays[band] for band in bands}.values():
            together = [band for band in bands if self._arrays[band] is array]
            pixels = array.sel(band=together).isel(time=steps, y=slice(top, bottom), x=slice(left, right)).values
            found |= dict(zip(together, pixels, strict=True))
        return [found[band] for band in bands]

    def _compose(self, workload: Workload, window: Window) -> np.ndarray:
        top, bottom, left, right = window
        part = {"y": slice(top, bottom), "x": slice(left, right)}
        # Without the coordinate of its band, which would keep bands apart.
        bands = {
            band: self._arrays[band].sel(band=band, drop=True).isel(part).chunk(time=1, y=-1, x=-1)
            for band in workload.bands
        }
        return expressions.compute(workload, bands)


@functools.cache
def client() -> rustac.DuckdbClient:
    """Return a DuckDB client with its extensions."""
    folder = extensions()
    if folder is None:
        return rustac.DuckdbClient()
    return rustac.DuckdbClient(extension_directory=folder, install_extensions=False)


def extensions() -> str | None:
    """Return a folder of DuckDB's extensions as DuckDB lays them out, from packages; None where these are absent."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    system = f"{'osx' if sys.platform == 'darwin' else 'linux'}_{machine}"
    folder = Path(sys.prefix) / "duckdb-extensions"
    for name in EXTENSIONS:
        try:
            (source,) = Path(str(resources.files(f"duckdb_extension_{name}"))).rglob(f"{name}.duckdb_extension")
        except (ModuleNotFoundError, ValueError):
            return None
        target = folder / source.parent.name / system / source.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return str(folder)


PEER = Lazycogs()
