"""Writing versions of a manifest: immutable Parquet parts, a snapshot, then the pointer, so that none is half there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cube.errors import ManifestError
from cube.grid import Grid, Levels, difference
from cube.io.lock import locked
from cube.io.stores import absolute, local_path
from cube.manifest.open import FORMAT, POINTER, SCHEMA, Manifest, parent, snapshot_name
from cube.manifest.parts import SOURCES_A_PART, Rows, replace_file, split_rows, with_column, write_parts
from cube.manifest.rows import Member, images_of, reading_order, source_table, tile_table
from cube.manifest.schema import SOURCE_SCHEMA, TILE_SCHEMA
from cube.manifest.tables import Part, integers
from cube.spec import Band, Placing

__all__ = ["Member", "update_manifest", "write_manifest"]

_MOST_SMALL_PARTS = 16
_MOST_REMOVED = 0.25
_LOCK = ".lock"


def write_manifest(
    folder: str,
    *,
    name: str,
    members: Sequence[Member],
    bands: Sequence[Band],
    grids: Sequence[Levels],
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
        grids: Its grids and their levels; members name them by position.
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
        parts = _write_members(path, members, grids)
        snapshot = _snapshot(name, bands, grids, attributes, parts, built=built or {}, left_out=left_out)
        return _publish(path, snapshot, based_on=None)


def update_manifest(
    manifest: Manifest,
    *,
    add: Sequence[Member],
    remove: Sequence[int],
    bands: Sequence[Band],
    grids: Sequence[Levels],
    attributes: Mapping[str, Any],
    left_out: Sequence[tuple[str, str]] = (),
    on: Placing | None = None,
) -> str:
    """Write a new version of a manifest with some sources more and some fewer, and return the version.

    The parts of the old version are shared, not written again, unless they have become many or hold much that is
    removed. The old version stays readable; a failure half-way leaves it the current one.

    Args:
        manifest: The current version, on a local disk.
        add: New sources, placed on the new grid; a source that is replaced is removed and added.
        remove: Positions of sources in `manifest`.
        bands: Of the new version.
        grids: Of the new version: those of the old one, on the same pixel lattices, and perhaps more.
        attributes: Of the new version.
        left_out: As in `write_manifest`, on top of what the old version left out.
        on: On which pixels and dates the cube opens where nobody says so; as the old version where None.

    Raises:
        ManifestError: The folder cannot be written, the grid lies on another lattice, no source would be left, or
            someone else has written a version since `manifest` was opened.
    """
    path = _folder(manifest.url)
    outside = [source for source in remove if not 0 <= source < len(manifest)]
    if outside:
        raise ManifestError(f"source {outside[0]} was to be removed; {manifest.url} has {len(manifest)}")
    parts = _placed(manifest, grids, manifest.part_rows(remove))
    with _writing(path):
        kept = _compact(path, manifest, parts, grids)
        kept += _write_members(path, add, grids) if add else []
        if not kept:
            raise ManifestError(f"nothing would be left of {manifest.url}; delete the folder, or build it again")
        dropped = [*manifest.left_out, *left_out]
        snapshot = _snapshot(
            manifest.name,
            bands,
            grids,
            attributes,
            kept,
            built=manifest.built,
            left_out=dropped,
            on=manifest.said if on is None else on,
        )
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


def _write_members(path: Path, members: Sequence[Member], grids: Sequence[Levels]) -> list[Part]:
    full = [each.full for each in grids]
    sources = source_table(members, parent(absolute(str(path))), full)
    order = reading_order(sources, full)
    ordered = [members[i] for i in order.tolist()]
    counts = [sum(image.offsets.size for _, image, _ in each.images if image is not None) for each in ordered]
    rows = Rows(
        sources=sources.take(pa.array(order)),
        tiles=lambda start, stop: tile_table(ordered[start:stop]),
        counts=np.array(counts, "int64"),
    )
    return write_parts(path, rows)


# Changes.


def _placed(manifest: Manifest, grids: Sequence[Levels], removed: Mapping[int, Sequence[int]]) -> list[Part]:
    """Return the parts of a manifest as new grids see them, without the rows that go."""
    shifts = [_shift(manifest, old.full, new.full) for old, new in zip(manifest.grids, grids, strict=False)]
    if len(shifts) < len(manifest.grids):
        raise ManifestError(f"{manifest.url} has {len(manifest.grids)} grids; {len(grids)} were given")
    return [
        replace(
            part,
            offsets=tuple(
                (rows + down, columns + across)
                for (rows, columns), (down, across) in zip_longest(part.offsets, shifts, fillvalue=(0, 0))
            ),
            removed=tuple(sorted({*part.removed, *removed.get(i, ())})),
        )
        for i, part in enumerate(manifest.parts)
    ]


def _shift(manifest: Manifest, old: Grid, new: Grid) -> tuple[int, int]:
    """Return the row and column of the new grid on which the old one begins."""
    what = difference(new, old)
    if what is not None:
        raise ManifestError(f"a new grid of {manifest.url} does not lie on the pixel lattice of the old one: {what}")
    columns, rows = new.to_pixels(np.array([old.transform[2]]), np.array([old.transform[5]]))
    return round(float(rows[0])), round(float(columns[0]))


def _compact(path: Path, manifest: Manifest, parts: Sequence[Part], grids: Sequence[Levels]) -> list[Part]:
    """Return the parts, those that became too many or too empty (or that are of an older schema) written anew."""
    left = [part.rows - len(part.removed) for part in parts]
    small = [i for i, rows in enumerate(left) if 0 < rows < SOURCES_A_PART // 2]
    again = {i for i, part in enumerate(parts) if left[i] and len(part.removed) > _MOST_REMOVED * part.rows}
    again |= set(small if len(small) > _MOST_SMALL_PARTS else ())
    again |= {i for i, rows in enumerate(left) if rows and manifest.schema != SCHEMA}
    kept = [part for i, part in enumerate(parts) if left[i] and i not in again]
    chosen = sorted(again)
    for start, stop in split_rows(np.array([left[i] for i in chosen], "int64"), len(chosen), SOURCES_A_PART):
        kept += write_parts(path, _stored(manifest, {i: parts[i] for i in chosen[start:stop]}, grids))
    return kept


def _stored(manifest: Manifest, parts: Mapping[int, Part], grids: Sequence[Levels]) -> Rows:
    """Return the rows of some parts, joined."""
    sources, tiles, first = [], [], 0
    for i, part in parts.items():
        found, images = manifest.part_sources(i, part), manifest.part_tiles(i)
        sources.append(with_column(found, "tiles_row", integers(found["tiles_row"]) + first))
        tiles.append(images)
        first += len(images)
    joined = pa.concat_tables(sources).unify_dictionaries()
    joined = joined.take(pa.array(reading_order(joined, [each.full for each in grids])))
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
    grids: Sequence[Levels],
    attributes: Mapping[str, Any],
    parts: Sequence[Part],
    *,
    built: Mapping[str, Any],
    left_out: Sequence[tuple[str, str]],
    on: Placing | None = None,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": name,
        "cube": {
            "bands": [band.to_json() for band in bands],
            "grids": [each.to_json() for each in grids],
            "attributes": dict(attributes),
            "built": dict(built),
            "left_out": [list(each) for each in left_out],
            **({} if on is None else {"on": on.to_json()}),
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
