"""The sources of a manifest as values again, for those who change, check or list them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cube.grid import Affine6
from cube.io.stores import join
from cube.manifest.open import Manifest, parent
from cube.manifest.schema import number_from_text
from cube.source import BandInfo, Source, SourceBand
from cube.spec import Band

_AS_THEY_ARE = ("decision", "grid", "row", "column", "width", "height", "crs", "samples", "path", "reason")
_COLUMNS = (
    *("href", "item", "collection", "asset", "time", "properties"),
    *("bands", "transform", "dtype", "nodata", "scales", "offsets"),
    *_AS_THEY_ARE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSource:
    """One source as its manifest knows it."""

    position: int
    """In the manifest."""
    source: Source
    """As it was given when the cube was built: without bands where only the file says them."""
    bands: tuple[SourceBand, ...]
    """What the cube takes of it; each has its time, where there is one."""
    decision: str | None
    grid: int
    """Position of its grid among the cube's."""
    row: int
    """Of its upper edge, on its full-resolution grid."""
    column: int
    width: int
    height: int
    crs: str
    transform: Affine6
    dtype: np.dtype[Any]
    samples: int
    path: str
    """"fast" or "gdal"."""
    reason: str | None
    """Why it is left to GDAL."""


def read_stored(manifest: Manifest) -> list[StoredSource]:
    """Return the sources of a manifest, in their order."""
    bands = {band.name: band for band in manifest.bands}
    rows = manifest.source_table().select(_COLUMNS).to_pylist()
    one_band = manifest.built.get("bands_as") is not None
    return [_stored(i, row, parent(manifest.url), bands, one_band=one_band) for i, row in enumerate(rows)]


def _stored(
    position: int, row: Mapping[str, Any], base: str, bands: Mapping[str, Band], *, one_band: bool
) -> StoredSource:
    time = _stamp(row["time"])
    given = tuple(
        SourceBand(
            name=each["name"],
            sample=each["sample"],
            time=time if each["time"] is None else _stamp(each["time"]),
            nodata=None if each["nodata"] is None else number_from_text(each["nodata"]),
            scale=each["scale"],
            offset=each["offset"],
        )
        for each in row["bands"]
    )
    infos: tuple[BandInfo, ...] = ()
    if row["asset"]:  # of a catalogue, which has named the bands
        infos = _infos(given[:1] if one_band else given, row, bands)
    a, b, c, d, e, f = row["transform"]
    return StoredSource(
        position=position,
        source=Source(
            href=join(base, row["href"]),
            item=row["item"],
            collection=row["collection"],
            asset=row["asset"],
            time=time,
            bands=infos,
            properties=json.loads(row["properties"]),
        ),
        bands=given,
        dtype=np.dtype(row["dtype"]),
        transform=(a, b, c, d, e, f),
        **{name: row[name] for name in _AS_THEY_ARE},
    )


def _stamp(moment: Any) -> np.datetime64 | None:
    return None if moment is None else np.datetime64(moment.replace(tzinfo=None), "us")


def _infos(given: Sequence[SourceBand], row: Mapping[str, Any], bands: Mapping[str, Band]) -> tuple[BandInfo, ...]:
    """Return a band for each sample up to the last that the cube takes, as the catalogue described it.

    What the file says itself counts first; so where the file was silent, what counted was the catalogue's word, or a
    rule's, which is then found again.
    """
    infos = [BandInfo(name=f"{row['asset']}_{i + 1}") for i in range(max(each.sample for each in given) + 1)]
    for each in given:
        band, i = bands[each.name], each.sample
        is_silent = (row["scales"][i], row["offsets"][i]) == (1.0, 0.0)
        is_plain = not is_silent or (each.scale, each.offset) == (1.0, 0.0)
        infos[i] = BandInfo(
            name=band.name,
            aliases=band.aliases,
            description=band.description,
            nodata=each.nodata if row["nodata"] is None else None,
            scale=None if is_plain else each.scale,
            offset=None if is_plain else each.offset,
            units=band.units,
            classes=band.classes,
        )
    return tuple(infos)
