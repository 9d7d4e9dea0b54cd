"""The columns of a manifest's two tables, and how those that older releases wrote become them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cube.spec import Band

BAND_TYPE = pa.struct(
    [
        ("name", pa.string()),
        ("sample", pa.int32()),
        ("time", pa.timestamp("us", "UTC")),
        ("nodata", pa.string()),
        ("scale", pa.float64()),
        ("offset", pa.float64()),
    ]
)
_WORD = pa.dictionary(pa.int32(), pa.string())

OPEN_COLUMNS = ("time", "bands", "grid", "row", "column", "width", "height", "levels", "masks", "tiles_row")
"""Read when a manifest is opened."""
FACT_COLUMNS = (
    "href",
    "etag",
    "size",
    "last_modified",
    "byteorder",
    "dtype",
    "samples",
    "interleave",
    "photometric",
    "validity",
    "path",
    "nodata",
)
"""Read when a source is."""

# What is read together lies together, so that a remote manifest answers in one request a row group.
SOURCE_SCHEMA = pa.schema(
    [
        ("href", pa.string()),
        ("etag", pa.string()),
        ("size", pa.int64()),
        ("last_modified", pa.timestamp("us", "UTC")),
        ("byteorder", _WORD),
        ("dtype", _WORD),
        ("samples", pa.int32()),
        ("interleave", _WORD),
        ("photometric", pa.int32()),
        ("validity", _WORD),
        ("path", _WORD),
        ("nodata", pa.string()),
        ("time", pa.timestamp("us", "UTC")),
        ("bands", pa.list_(BAND_TYPE)),
        ("grid", pa.int32()),
        ("row", pa.int64()),
        ("column", pa.int64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("levels", pa.int32()),
        ("masks", pa.bool_()),
        ("tiles_row", pa.int64()),
        ("geometry", pa.binary()),
        ("item", pa.string()),
        ("collection", pa.string()),
        ("asset", pa.string()),
        ("crs", _WORD),
        ("transform", pa.list_(pa.float64())),
        ("scales", pa.list_(pa.float64())),
        ("offsets", pa.list_(pa.float64())),
        ("decision", pa.string()),
        ("reason", pa.string()),
        ("properties", pa.string()),
    ]
)
"""A row a source; documented column by column in docs/reference/manifest.md."""

TILE_SCHEMA = pa.schema(
    [
        ("source", pa.int64()),
        ("level", pa.int32()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("tile_width", pa.int32()),
        ("tile_height", pa.int32()),
        ("compression", pa.int32()),
        ("predictor", pa.int32()),
        ("strips", pa.bool_()),
        ("bits", pa.int32()),
        ("tables", pa.binary()),
        ("offsets", pa.list_(pa.int64())),
        ("lengths", pa.list_(pa.int64())),
    ]
)
"""A row a source and level, in the order of the sources; then one a level of its mask, where it has one."""

IMAGE_COLUMNS = tuple(TILE_SCHEMA.names[2:])
"""Read when an image is; where a row stands says of which source and level it is."""

# Schema 1 knew no masks, no strips and nothing that GDAL has to decode; schema 2 one grid.
SOURCE_DEFAULTS: dict[str, Any] = {"photometric": 1, "path": "fast", "masks": False, "grid": 0}
TILE_DEFAULTS: dict[str, Any] = {"strips": False, "bits": 0}


def upgrade_sources(table: pa.Table, bands: Sequence[Band]) -> pa.Table:
    """Return a sources table with the columns of today; `bands` are those of the manifest that it is from."""
    place = table.schema.get_field_index("bands")
    if place >= 0 and table.schema.field(place).type != SOURCE_SCHEMA.field("bands").type:
        table = table.set_column(place, "bands", _with_encoding(table["bands"].combine_chunks(), bands))
    return _complete(table, SOURCE_SCHEMA, SOURCE_DEFAULTS)


def upgrade_tiles(table: pa.Table) -> pa.Table:
    """Return a tiles table with the columns of today."""
    return _complete(table, TILE_SCHEMA, TILE_DEFAULTS)


def number_text(value: float | None) -> str | None:
    """Return a number as the text that gives it back exactly."""
    if value is None:
        return None
    return str(int(value)) if isinstance(value, (int, np.integer)) else repr(float(value))


def number_from_text(text: str) -> float | int:
    """Return the number that `number_text` wrote: an int where it was one."""
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _with_encoding(lists: pa.ListArray, bands: Sequence[Band]) -> pa.ListArray:
    """Return (name, sample) lists with what the whole band says of each: its sources were all alike."""
    flat = lists.flatten()
    known = {band.name: band for band in bands}
    found = [known[name] for name in flat.field("name").to_pylist()]
    columns = [
        flat.field("name"),
        flat.field("sample"),
        pa.nulls(len(flat), BAND_TYPE.field("time").type),
        pa.array([number_text(band.nodata) for band in found], pa.string()),
        pa.array([band.scale for band in found], pa.float64()),
        pa.array([band.offset for band in found], pa.float64()),
    ]
    return pa.ListArray.from_arrays(lists.offsets, pa.StructArray.from_arrays(columns, fields=list(BAND_TYPE)))


def _complete(table: pa.Table, schema: pa.Schema, defaults: dict[str, Any]) -> pa.Table:
    def column(field: pa.Field) -> Any:
        if field.name in table.column_names:
            return table[field.name].cast(field.type)
        if field.name in defaults:
            return pa.repeat(pa.scalar(defaults[field.name]), len(table)).cast(field.type)
        return pa.nulls(len(table), field.type)

    return pa.Table.from_arrays([column(field) for field in schema], schema=schema)
