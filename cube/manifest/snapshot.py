"""Writing versions of a manifest: immutable Parquet parts, a snapshot, then the pointer, so that none is half there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cube.errors import ManifestError
from cube.grid import CommonGrid, Grid
from cube.io.lock import locked
from cube.io.stores import absolute, local_path
from cube.manifest.open import FORMAT, POINTER, SCHEMA, Manifest, parent, snapshot_name
from cube.manifest.parts import SOURCES_A_PART, Rows, replace_file, split_rows, with_column, write_parts
from cube.manifest.rows import Member, images_of, reading_order, source_table, tile_table
from cube.manifest.schema import SOURCE_SCHEMA, TILE_SCHEMA
from cube.manifest.tables import Part, integers
from cube.spec import Band

__all__ = ["Member", "update_manifest", "write_manifest"]

_MOST_SMALL_PARTS = 16
_MOST_REMOVED = 0.25
_LATTICE_TOLERANCE_PX = 0.01
_LOCK = ".lock"


def write_manifest(
    folder: str,
    *,
    name: str,
    members: Sequence[Member],
    bands: Sequence[Band],
    grid: CommonGrid,
    attributes: Mapping[str, Any],
    built: Mapping[str, Any] | None = None,
    left_out: Sequence[tuple[str, str]] = (),
) -> str:
    """Write a manifest folder, or a new version into an existing one, and return the version.

    The old version stays readable; a failure half-way leaves it the current one.

    Args:
        folder: Path of the manifest.
        name: Of the cube.
        members: Its sources.
        bands: Its bands.
        grid: Its grid and levels.
        attributes: Of the dataset.
        built: What the cube was built from and with, JSON values.
        left_out: (item or href, why) of what is not part of the cube.

    Raises:
        ManifestError: The folder cannot be written, or is something else.
    """
    path = _folder(folder)
    if path.exists() and not _is_ours(path):
        raise ManifestError(f"{path} holds other files and no manifest; choose another name or folder")
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        parts = _write_members(path, members, grid.levels[0])
        snapshot = _snapshot(name, bands, grid, attributes, parts, built=built or {}, left_out=left_out)
        return _publish(path, snapshot, based_on=None)


def update_manifest(
    manifest: Manifest,
    *,
    add: Sequence[Member],
    remove: Sequence[int],
    bands: Sequence[Band],
    grid: CommonGrid,
    attributes: Mapping[str, Any],
    left_out: Sequence[tuple[str, str]] = (),
) -> str:
    """Write a new version of a manifest with some sources more and some fewer, and return the version.

    The parts of the old version are shared, not written again, unless they have become many or hold much that is
    removed. The old version stays readable; a failure half-way leaves it the current one.

    Args:
        manifest: The current version, on a local disk.
        add: New sources, placed on the new grid; a source that is replaced is removed and added.
        remove: Positions of sources in `manifest`.
        bands: Of the new version.
        grid: Of the new version, on the pixel lattice of the old one; `rows` and `columns` are not looked at.
        attributes: Of the new version.
        left_out: As in `write_manifest`, on top of what the old version left out.

    Raises:
        ManifestError: The folder cannot be written, the grid lies on another lattice, no source would be left, or
            someone else has written a version since `manifest` was opened.
    """
    path = _folder(manifest.url)
    outside = [source for source in remove if not 0 <= source < len(manifest)]
    if outside:
        raise ManifestError(f"source {outside[0]} was to be removed; {manifest.url} has {len(manifest)}")
    parts = _placed(manifest, grid.levels[0], manifest.part_rows(remove))
    with _writing(path):
        kept = _compact(path, manifest, parts, grid.levels[0])
        kept += _write_members(path, add, grid.levels[0]) if add else []
        if not kept:
            raise ManifestError(f"nothing would be left of {manifest.url}; delete the folder, or build it again")
        dropped = [*manifest.left_out, *left_out]
        snapshot = _snapshot(manifest.name, bands, grid, attributes, kept, built=manifest.built, left_out=dropped)
        return _publish(path, snapshot, based_on=manifest.version)


def _folder(url: str) -> Path:
    path = local_path(url)
    if path is None:
        raise ManifestError(f"{url} is a URL; write into a local folder and copy it to the store")
    return path


def _is_ours(path: Path) -> bool:
    """Whether a path is an empty folder or a manifest's, perhaps one that was interrupted before its pointer."""
    ours = (POINTER, "snapshot-", "sources-", "tiles-", ".")
    return path.is_dir() and all(each.name.startswith(ours) for each in path.iterdir())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "give another folder (to=) or cache folder (CUBE_CACHE_DIR)"
        raise ManifestError(f"the manifest {path} cannot be written: {error}; {hint}") from error


def _write_members(path: Path, members: Sequence[Member], grid: Grid) -> list[Part]:
    sources = source_table(members, parent(absolute(str(path))), grid.crs)
    order = reading_order(sources, grid)
    ordered = [members[i] for i in order.tolist()]
    counts = [sum(image.offsets.size for _, image, _ in each.images if image is not None) for each in ordered]
    rows = Rows(
        sources=sources.take(pa.array(order)),
        tiles=lambda start, stop: tile_table(ordered[start:stop]),
        counts=np.array(counts, "int64"),
    )
    return write_parts(path, rows)


# Changes.


def _placed(manifest: Manifest, grid: Grid, removed: Mapping[int, Sequence[int]]) -> list[Part]:
    """Return the parts of a manifest as a new grid sees them, without the rows that go."""
    x, y = np.array([manifest.grid.transform[2]]), np.array([manifest.grid.transform[5]])
    columns, rows = grid.to_pixels(x, y)
    column, row = round(float(columns[0])), round(float(rows[0]))
    apart = max(abs(float(columns[0]) - column), abs(float(rows[0]) - row))
    if manifest.grid.crs != grid.crs or apart > _LATTICE_TOLERANCE_PX:
        raise ManifestError(f"the new grid of {manifest.url} does not lie on the pixel lattice of the old one")
    return [
        replace(
            part,
            row_offset=part.row_offset + row,
            column_offset=part.column_offset + column,
            removed=tuple(sorted({*part.removed, *removed.get(i, ())})),
        )
        for i, part in enumerate(manifest.parts)
    ]


def _compact(path: Path, manifest: Manifest, parts: Sequence[Part], grid: Grid) -> list[Part]:
    """Return the parts, those that became too many or too empty (or that are of an older schema) written anew."""
    left = [part.rows - len(part.removed) for part in parts]
    small = [i for i, rows in enumerate(left) if 0 < rows < SOURCES_A_PART // 2]
    again = {i for i, part in enumerate(parts) if left[i] and len(part.removed) > _MOST_REMOVED * part.rows}
    again |= set(small if len(small) > _MOST_SMALL_PARTS else ())
    again |= {i for i, rows in enumerate(left) if rows and manifest.schema != SCHEMA}
    kept = [part for i, part in enumerate(parts) if left[i] and i not in again]
    chosen = sorted(again)
    for start, stop in split_rows(np.array([left[i] for i in chosen], "int64"), len(chosen), SOURCES_A_PART):
        kept += write_parts(path, _stored(manifest, {i: parts[i] for i in chosen[start:stop]}, grid))
    return kept


def _stored(manifest: Manifest, parts: Mapping[int, Part], grid: Grid) -> Rows:
    """Return the rows of some parts, joined."""
    sources, tiles, first = [], [], 0
    for i, part in parts.items():
        found, images = manifest.part_sources(i, part), manifest.part_tiles(i)
        sources.append(with_column(found, "tiles_row", integers(found["tiles_row"]) + first))
        tiles.append(images)
        first += len(images)
    joined = pa.concat_tables(sources).unify_dictionaries()
    joined = joined.take(pa.array(reading_order(joined, grid)))
    images = pa.concat_tables(tiles)
    starts, counts = integers(joined["tiles_row"]), images_of(joined)
    sizes = integers(pc.list_value_length(images["offsets"])).astype("int64")
    ends = np.concatenate([[0], np.cumsum(sizes)])

    def tiles_of(start: int, stop: int) -> pa.Table:
        count = counts[start:stop]
        steps = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return images.take(pa.array(np.repeat(starts[start:stop], count) + steps)).cast(TILE_SCHEMA)

    return Rows(sources=joined.cast(SOURCE_SCHEMA), tiles=tiles_of, counts=ends[starts + counts] - ends[starts])


# Versions.


def _snapshot(
    name: str,
    bands: Sequence[Band],
    grid: CommonGrid,
    attributes: Mapping[str, Any],
    parts: Sequence[Part],
    *,
    built: Mapping[str, Any],
    left_out: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": name,
        "cube": {
            "bands": [band.to_json() for band in bands],
            "levels": [level.to_json() for level in grid.levels],
            "factors": [list(factors) for factors in grid.factors],
            "attributes": dict(attributes),
            "built": dict(built),
            "left_out": [list(each) for each in left_out],
        },
        "parts": [part.to_json() for part in parts],
    }


def _publish(path: Path, snapshot: Mapping[str, Any], *, based_on: str | None) -> str:
    """Write a snapshot whose parts are there, make it the current version, and return the version.

    Raises:
        ManifestError: The current version is not `based_on` any more.
    """
    text = json.dumps(snapshot, indent=1, sort_keys=True, allow_nan=False).encode()
    version = hashlib.sha256(text).hexdigest()[:16]
    replace_file(path / snapshot_name(version), text)
    pointer = json.dumps({"format": FORMAT, "schema": SCHEMA, "version": version}).encode()
    with locked(path / _LOCK):
        current = _current(path) if based_on is not None else None
        if current != based_on:
            raise ManifestError(
                f"{path} was changed by someone else while this change was prepared: it was version {based_on} and is "
                f"{current or 'gone'} now; nothing was changed, do it again"
            )
        replace_file(path / POINTER, pointer)
    return version


def _current(path: Path) -> str | None:
    try:
        found: str = json.loads((path / POINTER).read_bytes())["version"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found
