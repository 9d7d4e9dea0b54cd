"""Writing a manifest: immutable Parquet parts, then the snapshot, then the pointer, so that it is never half there."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cube.errors import ManifestError
from cube.grid import CommonGrid
from cube.io.stores import absolute, local_path
from cube.manifest import FORMAT, POINTER, SCHEMA, parent, snapshot_name
from cube.scan import ScannedSource
from cube.spec import Band

_ROWS_A_GROUP = 1024
_EDGE_POINTS = 5
"""Points an edge of a footprint: a straight edge on a projected grid is a curve in longitude and latitude."""

SOURCE_SCHEMA = pa.schema(
    [
        ("href", pa.string()),
        ("item", pa.string()),
        ("collection", pa.string()),
        ("asset", pa.string()),
        ("time", pa.timestamp("us", "UTC")),
        ("bands", pa.list_(pa.struct([("name", pa.string()), ("sample", pa.int32())]))),
        ("geometry", pa.binary()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("last_modified", pa.timestamp("us", "UTC")),
        ("crs", pa.dictionary(pa.int32(), pa.string())),
        ("transform", pa.list_(pa.float64())),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("row", pa.int64()),
        ("column", pa.int64()),
        ("dtype", pa.dictionary(pa.int32(), pa.string())),
        ("byteorder", pa.dictionary(pa.int32(), pa.string())),
        ("samples", pa.int32()),
        ("interleave", pa.dictionary(pa.int32(), pa.string())),
        ("nodata", pa.string()),
        ("scales", pa.list_(pa.float64())),
        ("offsets", pa.list_(pa.float64())),
        ("levels", pa.int32()),
        ("tiles_row", pa.int64()),
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
        ("offsets", pa.list_(pa.int64())),
        ("lengths", pa.list_(pa.int64())),
    ]
)
"""A row a source and level, in the order of the sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A source of the cube: its scan, the bands it gives, its place on the grid."""

    scanned: ScannedSource
    bands: tuple[tuple[str, int], ...]
    """(band, sample) pairs."""
    row: int
    column: int


def write_manifest(
    folder: str,
    *,
    name: str,
    members: Sequence[Member],
    bands: Sequence[Band],
    grid: CommonGrid,
    attributes: Mapping[str, Any],
) -> str:
    """Write a manifest folder, or a new version into an existing one, and return the version.

    The old version stays readable; a failure half-way leaves it the current one.

    Raises:
        ManifestError: The folder cannot be written, or is something else.
    """
    path = local_path(folder)
    if path is None:
        raise ManifestError(f"{folder} is a URL; build into a local folder and copy it to the store")
    if path.exists() and not _is_ours(path):
        raise ManifestError(f"{path} holds other files and no manifest; choose another name or folder")
    # Neighbours in band, place and time are read together, so they lie together.
    ordered = sorted(members, key=lambda each: (each.bands, each.row, each.column, str(each.scanned.source.time)))
    base = parent(absolute(folder))
    try:
        path.mkdir(parents=True, exist_ok=True)
        tiles = _write_part(path, "tiles", _tile_table(ordered))
        sources = _write_part(path, "sources", _source_table(ordered, base, grid.levels[0].crs))
        snapshot = {
            "format": FORMAT,
            "schema": SCHEMA,
            "name": name,
            "cube": {
                "bands": [band.to_json() for band in bands],
                "levels": [level.to_json() for level in grid.levels],
                "factors": [list(factors) for factors in grid.factors],
                "attributes": dict(attributes),
            },
            "parts": [{"sources": sources, "tiles": tiles, "rows": len(ordered)}],
        }
        text = json.dumps(snapshot, indent=1, sort_keys=True, allow_nan=False)
        version = hashlib.sha256(text.encode()).hexdigest()[:16]
        _replace(path / snapshot_name(version), text.encode())
        _replace(path / POINTER, json.dumps({"format": FORMAT, "schema": SCHEMA, "version": version}).encode())
    except OSError as error:
        hint = "give another folder (to=) or cache folder (CUBE_CACHE_DIR)"
        raise ManifestError(f"the manifest {path} cannot be written: {error}; {hint}") from error
    return version


def _is_ours(path: Path) -> bool:
    """Whether a path is an empty folder or a manifest's, perhaps one that was interrupted before its pointer."""
    ours = ("manifest.json", "snapshot-", "sources-", "tiles-", ".")
    return path.is_dir() and all(each.name.startswith(ours) for each in path.iterdir())


def _source_table(members: Sequence[Member], base: str, crs: str) -> pa.Table:
    levels = [len(each.scanned.header.levels) for each in members]
    starts = np.concatenate([[0], np.cumsum(levels)[:-1]]).tolist()
    footprints = _footprints(members, crs)
    rows = [
        _source_row(each, base) | {"crs": crs, "levels": count, "tiles_row": start, "geometry": geometry}
        for each, count, start, geometry in zip(members, levels, starts, footprints, strict=True)
    ]
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"]}},
    }
    schema = SOURCE_SCHEMA.with_metadata({"geo": json.dumps(geo)})
    return pa.Table.from_pylist(rows, schema=schema)


def _source_row(member: Member, base: str) -> dict[str, Any]:
    scanned, source, header = member.scanned, member.scanned.source, member.scanned.header
    full = header.levels[0]
    return {
        "href": source.href.removeprefix(f"{base}/") if source.href.startswith(f"{base}/") else source.href,
        "item": source.item,
        "collection": source.collection,
        "asset": source.asset,
        "time": source.time.astype("datetime64[us]").astype(object) if source.time is not None else None,
        "bands": [{"name": name, "sample": sample} for name, sample in member.bands],
        "size": scanned.size,
        "etag": scanned.etag,
        "last_modified": scanned.last_modified,
        "transform": list(header.transform)[:6] if header.transform is not None else None,
        "width": full.width,
        "height": full.height,
        "row": member.row,
        "column": member.column,
        "dtype": header.dtype.name,
        "byteorder": header.byteorder,
        "samples": header.samples,
        "interleave": header.interleave,
        "nodata": None if header.nodata is None else repr(header.nodata),
        "scales": list(header.scales),
        "offsets": list(header.offsets),
        "properties": json.dumps(dict(source.properties), default=str),
    }


def _tile_table(members: Sequence[Member]) -> pa.Table:
    levels = [(i, k, level) for i, each in enumerate(members) for k, level in enumerate(each.scanned.header.levels)]
    columns: dict[str, Any] = {"source": [i for i, _, _ in levels], "level": [k for _, k, _ in levels]}
    for name in ("width", "height", "tile_width", "tile_height", "compression", "predictor"):
        columns[name] = [getattr(level, name) for _, _, level in levels]
    for name in ("offsets", "lengths"):
        arrays = [np.ascontiguousarray(getattr(level, name), "int64").ravel() for _, _, level in levels]
        bounds = np.concatenate([[0], np.cumsum([len(each) for each in arrays])]).astype("int32")
        columns[name] = pa.ListArray.from_arrays(bounds, np.concatenate(arrays) if arrays else np.empty(0, "int64"))
    return pa.table(columns, schema=TILE_SCHEMA)


@functools.cache
def _to_lonlat(crs: str) -> Any:
    from pyproj import Transformer

    return Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)


def _footprints(members: Sequence[Member], crs: str) -> list[bytes | None]:
    """Return each source's outline in longitude and latitude as WKB; None where the CRS has no place on Earth."""
    import shapely
    from pyproj.exceptions import ProjError

    step = np.linspace(0, 1, _EDGE_POINTS)[:-1]
    zeros, ones = np.zeros_like(step), np.ones_like(step)
    u = np.concatenate([step, ones, 1 - step, zeros])
    v = np.concatenate([zeros, step, ones, 1 - step])
    affine = np.array([list(each.scanned.header.transform or (1, 0, 0, 0, 1, 0))[:6] for each in members])
    width = np.array([each.scanned.header.levels[0].width for each in members])[:, None] * u
    height = np.array([each.scanned.header.levels[0].height for each in members])[:, None] * v
    a, b, c, d, e, f = (affine[:, i, None] for i in range(6))
    try:
        lon, lat = _to_lonlat(crs).transform(a * width + b * height + c, d * width + e * height + f)
    except ProjError:
        return [None] * len(members)
    finite = np.isfinite(lon).all(axis=1) & np.isfinite(lat).all(axis=1)
    rings = np.stack([np.where(finite[:, None], lon, 0), np.where(finite[:, None], lat, 0)], axis=-1)
    wkb = shapely.to_wkb(shapely.polygons(rings))
    return [bytes(each) if known else None for each, known in zip(wkb, finite, strict=True)]


def _write_part(folder: Path, kind: str, table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    lists = kind == "tiles"
    pq.write_table(
        table,
        sink,
        compression="zstd",
        row_group_size=_ROWS_A_GROUP,
        use_dictionary=[] if lists else True,
        column_encoding={"offsets.list.element": "DELTA_BINARY_PACKED", "lengths.list.element": "DELTA_BINARY_PACKED"}
        if lists
        else None,
    )
    data = sink.getvalue()
    name = f"{kind}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    if not (folder / name).exists():
        _replace(folder / name, data)
    return name


def _replace(path: Path, data: Any) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
