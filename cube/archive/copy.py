"""A part of a cube as a cube of its own on this machine's disk: `copy_cube`.

The copy is a manifest beside local TIFFs that hold the wanted tiles as they were stored: nothing is decoded. Each has
the size and all the tags of its original, so that whatever reads TIFFs reads it; tiles that were not wanted are sparse.
The copy's grid ends where the wanted part does, so a cube is never asked for them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cube.archive.acquisitions import count_words
from cube.archive.assembly import Options, rule_words
from cube.archive.copy_plan import CopyPlan, extent_of
from cube.archive.survey import survey
from cube.archive.transfer import Journal, transfer_all
from cube.engine.cost import readable_bytes
from cube.errors import CubeError
from cube.grid import Levels
from cube.io import loop
from cube.io.lock import locked
from cube.io.stores import absolute, redact
from cube.manifest.open import Manifest, open_manifest
from cube.manifest.snapshot import Member, write_manifest
from cube.manifest.stored import read_stored
from cube.scan import ScannedSource
from cube.source import SourceBand

ORIGIN = "cube:origin"
"""Among the properties of each source of a copy: the href that it was copied from."""
_LOCK = ".copying"
_PLAIN = 1
_SPARE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A copy that is whole."""

    manifest: Manifest
    files: int
    written: int
    """Files that were written now; the others were there."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        said = {"name": self.manifest.name, "version": self.manifest.version, "manifest": self.manifest.url}
        return said | {"files": self.files, "written": self.written}

    def __str__(self) -> str:
        what = f"{self.written:,} of {self.files:,} files written" if self.written else "nothing to do"
        return f"{self.manifest.url}: {what}"


def copy_cube(
    plan: CopyPlan,
    *,
    patch_url: Callable[[str], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy a part of a cube, or what is still missing of it after an earlier run was ended, however it was.

    The copy's manifest appears when all of its files are there.

    Args:
        plan: Of `plan_copy`.
        patch_url: Applied to each href when it is fetched, to sign it; never stored.
        progress: Called with (bytes done, bytes in all).

    Raises:
        SourceError: A source changed since it was scanned, is gone, or cannot be read.
        CubeError: There is no room, the folder cannot be written, or another copy is being written into it.
    """
    if plan.is_done:
        return Copied(manifest=open_manifest(str(plan.folder)), files=len(plan.transfers), written=0)
    root = plan.folder.parent
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        _require_room(plan, root)
        with locked(plan.folder / _LOCK, wait=False):
            _transfer(plan, root, patch_url, progress)
            version = _write(plan, root)
    except BlockingIOError:
        raise CubeError(f"{plan.folder} is being written by another `cube copy`; wait for it, or end it") from None
    except OSError as error:
        raise CubeError(f"the copy {plan.folder} cannot be written: {error}") from error
    return Copied(
        manifest=open_manifest(str(plan.folder), version), files=len(plan.transfers), written=len(plan.waiting)
    )


def _transfer(
    plan: CopyPlan,
    root: Path,
    patch_url: Callable[[str], str] | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    extent, journal = extent_of(plan.manifest, plan.cropped), Journal(plan.folder, root)
    loop.run(transfer_all(plan.manifest, plan.waiting, extent, journal, root, patch_url=patch_url, progress=progress))


def _require_room(plan: CopyPlan, root: Path) -> None:
    free = shutil.disk_usage(root).free
    if plan.disk_bytes + _SPARE_BYTES > free:
        raise CubeError(
            f"the copy takes {readable_bytes(plan.disk_bytes)}, and {root} has {readable_bytes(free)} left: copy less "
            "(--bbox, --time, --bands, --level), or to another disk"
        )


def _write(plan: CopyPlan, root: Path) -> str:
    """Write the manifest of the copy, whose files are there, and return its version."""
    manifest, selection = plan.manifest, plan.selection
    members = _members(plan, root)
    stamps = selection.stamps
    attributes = {
        **{key: value for key, value in manifest.attributes.items() if key != "harmonized"},
        "archive": count_words(
            [each.scanned.source for each in members], [], dates=0 if stamps is None else len(stamps)
        ),
        **rule_words(each.decision for each in members),
        "copy": _words(plan),
    }
    levels = Levels(grids=plan.cropped.grids, factors=plan.cropped.factors)
    names = {band.name for _, band in selection.bands}
    built = {key: value for key, value in manifest.built.items() if key not in ("what", "sources", "copy")}
    return write_manifest(
        str(plan.folder),
        name=plan.folder.name.removesuffix(".cube"),
        members=members,
        bands=[band for band in manifest.bands if band.name in names],
        grids=(levels,),
        attributes=attributes,
        built=built | {"copy": {"asked": dict(plan.asked), "version": manifest.version}},
    )


def _words(plan: CopyPlan) -> str:
    """Return what it is a copy of."""
    asked = plan.asked
    said = [f"{key} {asked[key]}" for key in ("bbox", "time", "bands") if asked[key] is not None]
    said += [f"level {asked['level']}"] if asked["level"] else []
    return f"{', '.join(said) or 'all'} of {asked['of']}, version {plan.manifest.version}"


def _members(plan: CopyPlan, root: Path) -> list[Member]:
    manifest, first = plan.manifest, plan.selection.spec.level
    stored = {each.position: each for each in read_stored(manifest) if each.position in plan.files}
    names = {band.name for _, band in plan.selection.bands}
    stamps = None if plan.selection.stamps is None else set(plan.selection.stamps.tolist())
    sources = []
    for position, name in plan.files.items():
        source = stored[position].source
        properties = {ORIGIN: redact(source.href), **source.properties}
        sources.append(replace(source, href=absolute(str(root / name)), properties=properties))
    surveyed, errors = survey(sources, crs=Options.from_json(manifest.built).crs)
    if errors:
        raise errors[0]
    window = plan.cropped.windows[0]
    members = []
    for position, each in zip(plan.files, surveyed, strict=True):
        facts = manifest.facts(position, first)
        members.append(
            Member(
                scanned=_portable(each.scanned),
                bands=tuple(_taken(stored[position].bands, names, stamps, stored[position].source.time)),
                row=facts.row - window.top,
                column=facts.column - window.left,
                decision=stored[position].decision,
            )
        )
    return members


def _taken(
    bands: Iterable[SourceBand], names: set[str], stamps: set[Any] | None, time: np.datetime64 | None
) -> Iterable[SourceBand]:
    for band in bands:
        if band.name in names and (stamps is None or band.time is None or band.time.tolist() in stamps):
            yield replace(band, time=None if band.time == time else band.time)


def _portable(scanned: ScannedSource) -> ScannedSource:
    """Return a scan that holds on another machine: where only its time would tell a file, it is not looked at."""
    levels = scanned.header.levels
    is_told = scanned.header.needs_gdal is None and all(level.compression != _PLAIN for level in levels)
    return scanned if is_told else replace(scanned, last_modified=None)
