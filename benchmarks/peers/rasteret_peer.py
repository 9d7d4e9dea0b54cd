"""rasteret: a collection made of the items and of the files' headers, read with its own byte-range reader."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import expressions
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import rasteret
import shapely
import shapely.geometry
from _answers import Window, answer
from obstore.store import HTTPStore
from protocol import Archive, Workload
from rasteret.cloud import ObstoreBackend

CONCURRENT = 256


class Rasteret:
    """The collection is kept as Parquet; a run reads pixels alone."""

    name = "rasteret"
    settings = (
        "build_from_table(enrich_cog=True) once; get_numpy for areas larger than a tile, read_window(group_by='id') "
        f"for smaller ones; max_concurrent={CONCURRENT}; {expressions.SETTINGS}, of what get_numpy returned"
    )

    def supports(self, workload: Workload) -> str | None:  # noqa: ARG002
        """Everything is done."""
        return None

    def prepare(self, archive: Archive, folder: str) -> dict[str, str]:
        """Build the collection."""
        self._backend = backend(archive)
        self._build(archive, archive.bands, Path(folder) / "collection_records")
        return {"rasteret": str(Path(folder) / "collection_records")}

    def open(self, archive: Archive) -> None:
        """Load the collection."""
        self._archive, self._backend = archive, backend(archive)
        self._collection = rasteret.load(archive.extras["rasteret"])

    def run(self, workload: Workload) -> np.ndarray:
        """Return the answer."""
        if workload.kind == "scan":
            return self._scan(workload)
        return answer(workload, self._archive, self._read, self._compose)

    def _build(self, archive: Archive, bands: Sequence[str], folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        return rasteret.build_from_table(
            to_table(archive, bands),
            name="archive",
            workspace_dir=folder,
            enrich_cog=True,
            band_codes=list(bands),
            max_concurrent=CONCURRENT,
            force=True,
            backend=self._backend,
        )

    def _scan(self, workload: Workload) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            table = self._build(self._archive, workload.bands, Path(folder) / "scan_records").to_table()
            by_id = {row["id"]: row for row in table.to_pylist()}
        headers = [by_id[item["id"]][f"{band}_metadata"] for item in self._archive.items for band in workload.bands]
        return np.array([[each["image_height"], each["image_width"], each["tile_height"]] for each in headers])

    def _read(self, bands: Sequence[str], dates: Sequence[int], window: Window) -> np.ndarray:
        archive = self._archive
        a, _, c, _, e, f = archive.transform
        top, bottom, left, right = window
        bounds = (c + a * left, f + e * bottom, c + a * right, f + e * top)
        ids = [archive.items[date]["id"] for date in dates]
        if max(bottom - top, right - left) > archive.tile:
            return self._read_area(list(bands), ids, bounds)
        found = self._collection.read_window(
            record_ids=ids,
            bounds=bounds,
            res=(a, -e),
            bands=list(bands),
            target_crs=archive.epsg,
            max_concurrent=CONCURRENT,
            backend=self._backend,
            group_by="id",
        )
        return found.swapaxes(0, 1)

    def _compose(self, workload: Workload, window: Window) -> np.ndarray:
        # get_xarray was tried: TBD
        found = self._read(workload.bands, range(len(self._archive.items)), window)
        bands = dict(zip(workload.bands, found, strict=True))
        return expressions.compute(workload, expressions.stacked(self._archive, bands))

    def _read_area(self, bands: list[str], ids: list[str], bounds: tuple[float, float, float, float]) -> np.ndarray:
        chosen = self._collection.where(pc.field("id").isin(ids))
        found = chosen.get_numpy(
            bounds,
            bands,
            max_concurrent=CONCURRENT,
            backend=self._backend,
            geometry_crs=self._archive.epsg,
        )
        # Records come in the order of the Parquet files, which are one a month.
        order = chosen.to_table(columns=["id"]).column("id").to_pylist()
        if order != ids:
            found = found[[order.index(each) for each in ids]]
        return found[None] if len(bands) == 1 else found.swapaxes(0, 1)


def backend(archive: Archive) -> ObstoreBackend:
    """Return the store of an archive; rasteret's own refuses plain HTTP."""
    return ObstoreBackend(HTTPStore.from_url(archive.url, client_options={"allow_http": True}), url_prefix=archive.url)


def to_table(archive: Archive, bands: Sequence[str]) -> pa.Table:
    """Return the items as a record table of rasteret."""
    rows = [
        {
            "id": item["id"],
            "datetime": np.datetime64(item["properties"]["datetime"].removesuffix("Z"), "us"),
            "assets": {band: {"href": item["assets"][band]["href"], "band_index": 0} for band in bands},
            "proj:epsg": archive.epsg,
            "geometry": shapely.to_wkb(shapely.geometry.shape(item["geometry"])),
        }
        for item in archive.items
    ]
    table = pa.Table.from_pylist(rows)
    stamps = table.column("datetime").cast(pa.timestamp("us", tz="UTC"))
    return table.set_column(table.schema.get_field_index("datetime"), "datetime", stamps)


PEER = Rasteret()
