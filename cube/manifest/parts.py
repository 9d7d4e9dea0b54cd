"""Rows to the immutable Parquet files of a manifest, each written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cube.manifest.rows import images_of
from cube.manifest.tables import Part, integers

SOURCES_A_PART = 2**17
_TILES_A_PART = 2**30
"""The positions of Arrow's lists are 32 bits wide."""
_SOURCES_A_GROUP = 2**14
_TILES_A_GROUP = 2**16
"""Half a megabyte: one request, and a few milliseconds to decode."""
_IMAGES_A_GROUP = 2**14


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows on their way into parts, sorted."""

    sources: pa.Table
    tiles: Callable[[int, int], pa.Table]
    """Makes the tiles table of the sources start:stop."""
    counts: np.ndarray
    """Tiles of each source."""


def write_parts(path: Path, rows: Rows) -> list[Part]:
    """Write rows into a folder, as many parts as they need, and return those."""
    parts = []
    for start, stop in split_rows(rows.counts, SOURCES_A_PART, _TILES_A_PART):
        sources, tiles = rows.sources.slice(start, stop - start), rows.tiles(start, stop)
        images = images_of(sources)
        sources = with_column(sources, "tiles_row", np.cumsum(images) - images)
        tiles = with_column(tiles, "source", np.repeat(np.arange(stop - start), images))
        groups = split_rows(np.zeros(len(sources), "int64"), _SOURCES_A_GROUP, 1)
        lengths = integers(pc.list_value_length(tiles["offsets"])).astype("int64")
        source_name, source_bytes = _write_table(path, "sources", sources, groups)
        tile_name, tile_bytes = _write_table(path, "tiles", tiles, split_rows(lengths, _IMAGES_A_GROUP, _TILES_A_GROUP))
        parts.append(
            Part(
                sources=source_name,
                tiles=tile_name,
                rows=len(sources),
                sources_bytes=source_bytes,
                tiles_bytes=tile_bytes,
            )
        )
    return parts


def split_rows(weights: np.ndarray, most: int, heaviest: int) -> list[tuple[int, int]]:
    """Split rows into runs (start, stop) of at most `most` rows, and of at most `heaviest` in all or of one row."""
    ends = np.cumsum(weights)
    runs, start = [], 0
    while start < len(weights):
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + heaviest, side="right"))
        stop = min(max(fitting, start + 1), start + most, len(weights))
        runs.append((start, stop))
        start = stop
    return runs


def with_column(table: pa.Table, name: str, values: np.ndarray) -> pa.Table:
    """Return a table with other integers in a column that it has."""
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, pa.int64()))


def _write_table(path: Path, kind: str, table: pa.Table, groups: Sequence[tuple[int, int]]) -> tuple[str, int]:
    """Write a table under the hash of its content; return the name and the size in bytes."""
    if kind == "sources":
        geo = {
            "version": "1.1.0",
            "primary_column": "geometry",
            "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"]}},
        }
        table = table.replace_schema_metadata({"geo": json.dumps(geo)})
        options: dict[str, Any] = {"use_dictionary": True, "compression": "zstd"}
    else:
        lists = ("offsets.list.element", "lengths.list.element")
        options = {
            "use_dictionary": ["tables"],
            "column_encoding": dict.fromkeys(lists, "DELTA_BINARY_PACKED"),
            # Packed differences of places in files hardly get smaller, and take a third longer to read.
            "compression": {name: "NONE" if name in lists else "ZSTD" for name in _leaves(table.schema)},
            # The footer is read whole: statistics of such numbers would only make it longer.
            "write_statistics": False,
        }
    with _temporary(path, kind) as temporary:
        with pq.ParquetWriter(temporary, table.schema, **options) as writer:
            for start, stop in groups:
                writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
        with temporary.open("r+b") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
            os.fsync(file.fileno())
        final = path / f"{kind}-{digest}.parquet"
        if not final.exists():  # the same content: it may be open, which Windows does not let be replaced
            temporary.replace(final)
        return final.name, final.stat().st_size


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with _temporary(path.parent, path.name) as temporary:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


@contextmanager
def _temporary(folder: Path, name: str) -> Iterator[Path]:
    """Give the path of a file to write; what is not renamed by the end is deleted."""
    handle, text = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    os.close(handle)
    temporary = Path(text)
    try:
        temporary.chmod(0o644)
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
