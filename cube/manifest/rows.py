"""Members of a cube to the rows of its two tables, in the order in which they are read together."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cube.grid import Grid
from cube.io.stores import local_path
from cube.manifest.schema import BAND_TYPE, SOURCE_SCHEMA, TILE_SCHEMA, number_text
from cube.manifest.tables import integers
from cube.scan import ScannedSource
from cube.source import SourceBand
from cube.tiff.header import Level

_EDGE_POINTS = 5
"""Points an edge of a footprint: a straight edge on a projected grid is a curve in longitude and latitude."""
_CURVE_BITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A source of the cube: its scan, the bands it gives, its place on the grid."""

    scanned: ScannedSource
    bands: tuple[SourceBand, ...]
    row: int
    """Of its upper edge, on its full-resolution grid."""
    column: int
    grid: int = 0
    """Position of that grid among the cube's."""
    decision: str | None = None
    """Which sensor rule decided what, in words."""

    @property
    def images(self) -> list[tuple[int, Level | None, bool]]:
        """(level, image, whether it is a mask) of each row that it has in the tiles table."""
        levels = self.scanned.header.levels
        rows: list[tuple[int, Level | None, bool]] = [(k, level, False) for k, level in enumerate(levels)]
        return rows + [(k, level.mask, True) for k, level in enumerate(levels)] * self.has_masks

    @property
    def has_masks(self) -> bool:
        """Whether mask images say which of its pixels are valid."""
        return any(level.mask is not None for level in self.scanned.header.levels)


def source_table(members: Sequence[Member], base: str, grids: Sequence[Grid]) -> pa.Table:
    """Return the sources table of some members, in their order and with `tiles_row` still 0.

    Args:
        members: A row each.
        base: Folder that the manifest folder lies in; hrefs below it become relative.
        grids: The cube's, at full resolution.
    """
    headers = [each.scanned.header for each in members]
    sources = [each.scanned.source for each in members]
    prefix = f"{base.rstrip('/')}/"
    columns: dict[str, Any] = {
        "href": [each.href.removeprefix(prefix) for each in sources],
        # Of a file on a disk it names an inode: no copy of the file has it.
        "etag": [each.scanned.etag if local_path(each.scanned.source.href) is None else None for each in members],
        "size": [each.scanned.size for each in members],
        "last_modified": [each.scanned.last_modified for each in members],
        "byteorder": [each.byteorder for each in headers],
        "dtype": [each.dtype.name for each in headers],
        "samples": [each.samples for each in headers],
        "interleave": [each.interleave for each in headers],
        "photometric": [each.photometric for each in headers],
        "validity": [each.validity for each in headers],
        "path": ["fast" if each.needs_gdal is None else "gdal" for each in headers],
        "time": _stamps([each.time for each in sources]),
        "bands": _bands(members),
        "grid": [each.grid for each in members],
        "row": [each.row for each in members],
        "column": [each.column for each in members],
        "width": [each.levels[0].width for each in headers],
        "height": [each.levels[0].height for each in headers],
        "levels": [len(each.levels) for each in headers],
        "masks": [each.has_masks for each in members],
        "tiles_row": [0] * len(members),
        "geometry": _footprints(members, grids),
        "item": [each.item for each in sources],
        "collection": [each.collection for each in sources],
        "asset": [each.asset for each in sources],
        "crs": [grids[each.grid].crs for each in members],
        "transform": [None if each.transform is None else list(each.transform)[:6] for each in headers],
        "nodata": [number_text(each.nodata) for each in headers],
        "scales": [list(each.scales) for each in headers],
        "offsets": [list(each.offsets) for each in headers],
        "decision": [each.decision for each in members],
        "reason": [each.needs_gdal for each in headers],
        "properties": [json.dumps({**each.properties, **each.claims}, default=str) for each in sources],
    }
    arrays = [
        each if isinstance(each := columns[field.name], pa.Array) else pa.array(each, field.type)
        for field in SOURCE_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=SOURCE_SCHEMA)


def tile_table(members: Sequence[Member]) -> pa.Table:
    """Return the tiles table of some members, in their order and with `source` still 0."""
    rows = [row for each in members for row in each.images]
    columns: dict[str, Any] = {"source": [0] * len(rows), "level": [k for k, _, _ in rows]}
    for name in ("width", "height", "compression", "predictor"):
        columns[name] = [0 if image is None else getattr(image, name) for _, image, _ in rows]
    for name in ("tile_width", "tile_height"):
        columns[name] = [1 if image is None else getattr(image, name) for _, image, _ in rows]
    columns["strips"] = [image is not None and image.strips for _, image, _ in rows]
    columns["bits"] = [image.bits if is_mask and image is not None else 0 for _, image, is_mask in rows]
    columns["tables"] = [None if image is None else image.tables for _, image, _ in rows]
    for name in ("offsets", "lengths"):
        flat = [np.empty(0, "int64") if image is None else getattr(image, name).ravel() for _, image, _ in rows]
        bounds = np.cumsum([0, *map(len, flat)]).astype("int32")
        values = np.concatenate(flat).astype("int64") if flat else np.empty(0, "int64")
        columns[name] = pa.ListArray.from_arrays(bounds, values)
    return pa.table(columns, schema=TILE_SCHEMA)


def images_of(sources: pa.Table) -> np.ndarray:
    """Return the number of rows that each source has in the tiles table, int64."""
    levels, masks = (integers(sources[name]).astype("int64") for name in ("levels", "masks"))
    count: np.ndarray = levels * (1 + masks)
    return count


def reading_order(sources: pa.Table, grids: Sequence[Grid]) -> np.ndarray:
    """Return the order of the rows in which neighbours are read together: by bands, place (Hilbert curve) and time.

    Args:
        sources: A sources table.
        grids: The cube's, at full resolution.
    """
    bands = sources["bands"].combine_chunks()
    flat = bands.flatten()
    words = pc.binary_join_element_wise(flat.field("name"), flat.field("sample").cast(pa.string()), "\t")
    row, column, height, width = (integers(sources[name]) for name in ("row", "column", "height", "width"))
    keys = pa.table(
        {
            "bands": pc.binary_join(pa.ListArray.from_arrays(bands.offsets, words), "\n"),
            "grid": integers(sources["grid"]),
            "place": hilbert_codes(column + width // 2, row + height // 2, max(max(grid.shape) for grid in grids)),
            "time": integers(sources["time"], np.iinfo("int64").min),
            "href": sources["href"].combine_chunks(),
            "item": sources["item"].combine_chunks(),
        }
    )
    return integers(pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names]))


def hilbert_codes(x: np.ndarray, y: np.ndarray, edge: int) -> np.ndarray:
    """Return how far along a Hilbert curve points lie, int64, where the curve fills a square of `edge` from (0, 0)."""
    side = 1 << _CURVE_BITS
    x, y = (np.clip(each.astype("int64") * side // edge, 0, side - 1) for each in (x, y))
    code = np.zeros_like(x)
    for bit in reversed(range(_CURVE_BITS)):
        right, lower = (x >> bit) & 1, (y >> bit) & 1
        code = code * 4 + (3 * right ^ lower)
        # The curve in each quarter is turned so that its ends meet those of its neighbours.
        flipped = (right == 1) & (lower == 0)
        x, y = np.where(flipped, side - 1 - x, x), np.where(flipped, side - 1 - y, y)
        x, y = np.where(lower == 0, y, x), np.where(lower == 0, x, y)
    return code


def _stamps(times: Sequence[np.datetime64 | None]) -> pa.Array:
    stamps = np.array(["NaT" if time is None else time for time in times], "datetime64[us]")
    return pa.array(stamps.view("int64"), pa.int64(), mask=np.isnat(stamps)).view(pa.timestamp("us", "UTC"))


def _bands(members: Sequence[Member]) -> pa.ListArray:
    flat = [band for each in members for band in each.bands]
    columns = [
        pa.array([band.name for band in flat], pa.string()),
        pa.array([band.sample for band in flat], pa.int32()),
        _stamps([band.time for band in flat]),
        pa.array([number_text(band.nodata) for band in flat], pa.string()),
        pa.array([band.scale for band in flat], pa.float64()),
        pa.array([band.offset for band in flat], pa.float64()),
    ]
    bounds = np.cumsum([0, *(len(each.bands) for each in members)]).astype("int32")
    return pa.ListArray.from_arrays(bounds, pa.StructArray.from_arrays(columns, fields=list(BAND_TYPE)))


@functools.cache
def _to_lonlat(crs: str) -> Any:
    from pyproj import Transformer

    return Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)


def _footprints(members: Sequence[Member], grids: Sequence[Grid]) -> list[bytes | None]:
    """Return each source's outline in longitude and latitude as WKB; None where the CRS has no place on Earth."""
    found: list[bytes | None] = [None] * len(members)
    by_crs: dict[str, list[int]] = {}
    for i, each in enumerate(members):
        by_crs.setdefault(grids[each.grid].crs, []).append(i)
    for crs, positions in by_crs.items():
        for i, outline in zip(positions, _outlines([members[i] for i in positions], crs), strict=True):
            found[i] = outline
    return found


def _outlines(members: Sequence[Member], crs: str) -> list[bytes | None]:
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
