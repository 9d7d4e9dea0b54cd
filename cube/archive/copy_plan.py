"""What a copy of a part of a cube takes: which tiles of which sources, into which files; fetches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cube.archive.crop import Cropped, crop_levels
from cube.archive.local_names import local_names
from cube.archive.transfer import Extent, Journal, Transfer, plan_head, sidecars
from cube.engine.cost import readable_bytes
from cube.errors import CubeError, SelectionError, SourceError
from cube.io.stores import absolute, local_path, redact
from cube.manifest.open import POINTER, Manifest, open_manifest
from cube.manifest.stored import StoredSource, read_stored
from cube.plan import plan_read
from cube.selection import Box, Selection, select
from cube.spec import CubeSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """What a copy takes, before anything is fetched."""

    manifest: Manifest
    folder: Path
    """Of the copy's manifest; the files lie beside it."""
    selection: Selection
    """Of the whole cube."""
    cropped: Cropped
    asked: Mapping[str, Any]
    """The selection as it was asked for, JSON values."""
    transfers: tuple[Transfer, ...]
    """All files of the copy."""
    waiting: tuple[Transfer, ...]
    """Those that are not there yet."""
    files: Mapping[int, str]
    """The local file of each source, by its position in the manifest."""
    is_done: bool
    """Whether the copy is there, and of this version of the cube."""

    @property
    def requests(self) -> int:
        """Range requests; a header that does not begin its file takes more."""
        return sum(len(each.requests) for each in self.waiting if each.is_remote)

    @property
    def bytes(self) -> int:
        """Bytes of the requests."""
        remote = [each for each in self.waiting if each.is_remote]
        return sum(request.stop - request.start for each in remote for request in each.requests)

    @property
    def disk_bytes(self) -> int:
        """About the bytes that are written."""
        return sum(each.disk_bytes + beside_bytes(each) for each in self.waiting)

    def to_json(self) -> dict[str, Any]:
        """Return what it takes as JSON values."""
        counts = {"files": len(self.transfers), "waiting": len(self.waiting)}
        return {"folder": str(self.folder)} | counts | {name: getattr(self, name) for name in _AMOUNTS}

    def __str__(self) -> str:
        if self.is_done:
            return f"{self.folder}: nothing to do, {len(self.transfers):,} files are there"
        height, width = self.cropped.windows[0].shape
        bands = ", ".join(name for name, _ in self.selection.bands)
        count = len(self.selection.times)
        dates = "" if self.selection.stamps is None else f", {count:,} date{'' if count == 1 else 's'}"
        here = len(self.transfers) - len(self.waiting)
        lines = [
            f"{self.folder}: {bands}{dates}, {height:,} x {width:,} pixels",
            f"{len(self.waiting):,} files to write, {readable_bytes(self.disk_bytes)}"
            + (f"; {here:,} are there already" if here else ""),
            f"{self.requests:,} requests for {readable_bytes(self.bytes)}",
        ]
        whole = sum(each.is_whole for each in self.waiting)
        return "\n".join([*lines, *([f"{whole:,} files are copied whole, since GDAL reads them"] if whole else [])])


_AMOUNTS = ("requests", "bytes", "disk_bytes", "is_done")


def plan_copy(
    manifest: Manifest,
    to: str | Path,
    *,
    name: str | None = None,
    bands: Sequence[str] | str | None = None,
    bbox: Box | None = None,
    time: str | tuple[str, str] | None = None,
    level: int = 0,
) -> CopyPlan:
    """Return what a copy takes; fetches nothing.

    Args:
        manifest: The cube.
        to: A local folder, which may hold other copies; made when the copy is.
        name: Of the copy, which is then TO/NAME.cube; the cube's own where None.
        bands: Names or aliases; all where None.
        bbox: Longitude and latitude: (west, south, east, north).
        time: A date ("2024", "2024-06", "2024-06-01") or (first, last), both included.
        level: The finest level that is copied, which becomes full resolution; with it all that are coarser.

    Raises:
        SelectionError: The cube has no such part.
        CubeError: The folder is not local, or holds something else under this name.
    """
    name = manifest.name if name is None else name
    root = _root(to, name)
    folder = root / f"{name}.cube"
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level)
    selection = select(manifest, spec, bands=bands, bbox=bbox, time=time)
    cropped = crop_levels(manifest, selection.window, level)
    asked = {
        "of": redact(manifest.url.partition("?")[0]),
        "bands": None if bands is None else [band.name for _, band in selection.bands],
        "bbox": None if bbox is None else [float(each) for each in bbox],
        "time": list(time) if isinstance(time, tuple) else time,
        "level": level,
    }
    before = _require_ours(folder, manifest, asked)
    transfers, files = _plan_transfers(manifest, selection, cropped, name)
    extent = extent_of(manifest, cropped)
    journal = Journal(folder, root)
    waiting = tuple(each for each in transfers if not journal.has(each.name, each.fingerprint(extent)))
    return CopyPlan(
        manifest=manifest,
        folder=folder,
        selection=selection,
        cropped=cropped,
        asked=asked,
        transfers=transfers,
        waiting=waiting,
        files=files,
        is_done=not waiting and before == manifest.version,
    )


def _root(to: str | Path, name: str) -> Path:
    root = local_path(absolute(str(to)))
    if root is None:
        raise CubeError(f"{to} is a URL; copy into a local folder")
    if not name or Path(name).name != name or name.startswith("."):
        raise CubeError(f"name={name!r} is no name of a folder; give another (name=, --name)")
    return root


def _require_ours(folder: Path, manifest: Manifest, asked: Mapping[str, Any]) -> str | None:
    """Return the version of the cube of which a copy is there, None where none is finished.

    Raises:
        CubeError: The folder holds another cube, or a copy of another part.
    """
    if absolute(str(folder)) == manifest.url:
        raise CubeError(f"{folder} is the cube itself; copy into another folder, or under another name (--name)")
    if not (folder / POINTER).exists():
        return None
    said = open_manifest(str(folder)).built.get("copy")
    if said is None:
        raise CubeError(f"{folder} is a cube, and no copy; copy into another folder, or under another name (--name)")
    differ = [key for key, value in asked.items() if said["asked"].get(key) != value]
    if differ:
        was = ", ".join(f"{key} {said['asked'].get(key)}" for key in differ)
        raise CubeError(
            f"{folder} is a copy of another part ({was}); copy under another name (--name), or delete it first"
        )
    version: str = said["version"]
    return version


def extent_of(manifest: Manifest, cropped: Cropped) -> Extent:
    """Return which levels of each source are copied."""
    stop = len(manifest.levels)
    return Extent(first=stop - len(cropped.grids), stop=stop, scale=cropped.scale)


# Which tiles of which sources.


def _plan_transfers(
    manifest: Manifest, selection: Selection, cropped: Cropped, name: str
) -> tuple[tuple[Transfer, ...], dict[int, str]]:
    first = selection.spec.level
    bands = [band.name for _, band in selection.bands]
    tiles: dict[int, dict[int, int]] = {}
    for level, window in enumerate(cropped.windows, start=first):
        for read in plan_read(manifest, bands, selection.times, window, level).sources:
            of_source = tiles.setdefault(read.source, {})
            of_source.update({piece.offset: piece.length for piece in read.pieces if piece.length})
    for source in _undated(manifest, selection, bands, set(tiles)):
        tiles[source] = {}
    stored = read_stored(manifest)
    _require_levels(stored, tiles, first, is_even=cropped.is_even)
    names = local_names([each.source.href for each in stored], name)
    files = {source: names[stored[source].source.href] for source in sorted(tiles)}
    found: dict[str, Transfer] = {}
    for source, name_of in files.items():
        known = found.get(name_of)  # several Items may name one file
        facts = manifest.facts(source)
        found[name_of] = Transfer(
            facts=facts,
            position=source,
            name=name_of,
            tiles=tiles[source] if known is None else {**known.tiles, **tiles[source]},
            head_bytes=plan_head(facts, _count_tiles(manifest, source, facts.levels)),
        )
    return tuple(found.values()), files


def _undated(manifest: Manifest, selection: Selection, bands: Sequence[str], chosen: set[int]) -> list[int]:
    """Return a source for each date that has none in the window: without it the copy would lack the date."""
    whole = manifest.grid_at(selection.spec.level)
    window = replace(selection.window, top=0, left=0, bottom=whole.height, right=whole.width)
    every = [found for band in bands for found in manifest.select(band, selection.times, window, selection.spec.level)]
    dated = {found.time for found in every if found.source in chosen}
    missing = [found for found in every if found.time not in dated]
    best: dict[int, int] = {}
    for found in missing:
        # One that GDAL reads is copied whole: only where there is no other.
        if found.time not in best or manifest.facts(best[found.time]).path == "gdal":
            best[found.time] = found.source
    return list(best.values())


def _require_levels(stored: Sequence[StoredSource], chosen: Iterable[int], first: int, *, is_even: bool) -> None:
    """Refuse a finest level that the copy cannot begin with."""
    slow = [stored[source].source.href for source in chosen if first and stored[source].path == "gdal"]
    if slow:
        raise SelectionError(
            f"level {first} was asked for; GDAL reads {len(slow)} of the files ({slow[0]}), which can only be copied "
            "whole: leave the level out, or these bands"
        )
    if not is_even and any(each.row or each.column for each in stored):
        raise SelectionError(
            f"level {first} was asked for; pixels of the next are no whole multiples of its: choose another level"
        )


def _count_tiles(manifest: Manifest, source: int, levels: int) -> int:
    count = sum(manifest.image(source, level).offsets.size for level in range(levels))
    try:
        return count + manifest.mask(source).offsets.size * 2
    except SourceError:
        return count


def beside_bytes(transfer: Transfer) -> int:
    """Return the bytes of what is copied beside a file."""
    path = local_path(transfer.facts.href) if transfer.is_whole else None
    return 0 if path is None else sum(each.stat().st_size for each in sidecars(path))
