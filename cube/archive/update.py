"""Changes to a cube that is there: more sources, and sources that are no longer what they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cube.archive.acquisitions import drop_superseded
from cube.archive.assembly import Options, unreadable
from cube.archive.change import AGAIN, Change
from cube.archive.check import check
from cube.archive.inputs import find_sources
from cube.archive.survey import survey
from cube.errors import BuildError, SourceNotFoundError
from cube.manifest.open import Manifest
from cube.manifest.stored import read_stored

type Progress = Callable[[int, int], None]
type PatchUrl = Callable[[str], str] | None

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What became of a cube."""

    manifest: Manifest
    """The version that is current now."""
    added: int = 0
    known: int = 0
    """Sources that were to be added and were there already."""
    refreshed: int = 0
    dropped: tuple[str, ...] = ()
    """Hrefs of sources that are no longer part of the cube: vanished, or superseded by what was added."""
    left_out: tuple[tuple[str, str], ...] = ()
    """(href or item, why) of what was to be added and was not."""

    def to_json(self) -> dict[str, Any]:
        """Return what became of it as JSON values."""
        counts = {"added": self.added, "known": self.known, "refreshed": self.refreshed}
        lists = {"dropped": list(self.dropped), "left_out": [list(each) for each in self.left_out]}
        return {"name": self.manifest.name, "version": self.manifest.version} | counts | lists

    def __str__(self) -> str:
        counts = {"added": self.added, "refreshed": self.refreshed, "dropped": len(self.dropped)}
        counts |= {"there already": self.known, "left out": len(self.left_out)}
        said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing to do"
        lines = [f"{self.manifest.name}: {said}; {len(self.manifest):,} sources, version {self.manifest.version}"]
        return "\n".join([*lines, *(f"left out: {what}: {why}" for what, why in self.left_out)])


def append(manifest: Manifest, what: Any, *, patch_url: PatchUrl = None, progress: Progress | None = None) -> Update:
    """Add sources to a cube, treated as those are that it was built from; what is there already is left alone.

    The old version stays readable; where anything fails, it stays the current one.

    Args:
        manifest: The current version, on a local disk.
        what: What `build` takes.
        patch_url: Applied to each href when it is fetched, to sign it.
        progress: Called with (done, total) as headers arrive.

    Raises:
        BuildError: Sources that cannot be read, or that do not fit the cube: its bands, their encoding, its pixel
            lattice, or what is there already; names one and says why. Or the cube is a copy.
        ManifestError: The manifest cannot be written, or someone else has changed it meanwhile.
    """
    _refuse_copy(manifest)
    options = Options.from_json(manifest.built)
    stored = read_stored(manifest)
    hrefs = {each.source.href for each in stored}
    given = find_sources(what, None)
    new = [each for each in given if each.href not in hrefs]
    known = len(given) - len(new)
    # Of plain files nothing is known that would order them, but for what a pattern calls by such a name.
    catalogued = [each for each in stored if each.source.asset]
    kept, superseded = drop_superseded([each.source for each in catalogued] + new)
    still, fresh = {each.href for each in kept} & hrefs, [each for each in kept if each.href not in hrefs]
    gone = [each for each in catalogued if each.source.href not in still]
    surveyed, errors = survey(fresh, crs=options.crs, patch_url=patch_url, progress=progress)
    if errors and options.fail_on_error:
        raise unreadable(errors, len(fresh))
    change = Change(manifest, options, stored, [each.position for each in gone])
    taken = change.take(surveyed, patch_url)
    left_out = [(each.item, str(each)) for each in superseded] + [(each.href, each.reason) for each in errors]
    if taken or gone:
        manifest = change.write(left_out)
    useless = [each.scanned.source.href for each in surveyed if each.scanned.source.href not in taken]
    return Update(
        manifest=manifest,
        added=len(taken),
        known=known,
        dropped=tuple(each.source.href for each in gone),
        left_out=(*left_out, *((href, "it gives none of the cube's bands") for href in useless)),
    )


def refresh(
    manifest: Manifest,
    *,
    every: bool = False,
    drop_vanished: bool = False,
    patch_url: PatchUrl = None,
    progress: Progress | None = None,
) -> Update:
    """Read the headers of sources that changed again, and replace what the cube knows of them.

    The old version stays readable; where anything fails, it stays the current one.

    Args:
        manifest: The current version, on a local disk.
        every: Whether to read the headers of all sources, changed or not.
        drop_vanished: Whether sources that are gone leave the cube; else they are an error.
        patch_url: Applied to each href when it is fetched, to sign it.
        progress: Called with (done, total) as sources are looked at.

    Raises:
        BuildError: Sources that are gone, cannot be read, or no longer fit the cube; names one and says why. Or there
            is something to do, and the cube is a copy.
        ManifestError: The manifest cannot be written, or someone else has changed it meanwhile.
    """
    options = Options.from_json(manifest.built)
    everything = stored = read_stored(manifest)
    if not every:
        report = check(manifest, pixels=False, patch_url=patch_url, progress=progress)
        stored = [everything[each.position] for each in report.of("changed", "unreadable", "vanished")]
    if stored:
        _refuse_copy(manifest)
    chosen = [each.source for each in stored]
    surveyed, errors = survey(chosen, crs=options.crs, patch_url=patch_url, progress=progress if every else None)
    gone = {each.href for each in errors if isinstance(each, SourceNotFoundError)}
    broken = [each for each in errors if each.href not in gone]
    if broken:
        raise unreadable(broken, len(chosen))
    if gone and not drop_vanished:
        raise _vanished(sorted(gone))
    if not stored:
        return Update(manifest=manifest)
    change = Change(manifest, options, everything, [each.position for each in stored])
    taken = change.take(surveyed, patch_url)
    lost = next((href for each in surveyed if (href := each.scanned.source.href) not in taken), None)
    if lost is not None:
        raise BuildError(f"{lost} no longer gives any band of the cube; {AGAIN}")
    return Update(manifest=change.write([]), refreshed=len(taken), dropped=tuple(sorted(gone)))


def _refuse_copy(manifest: Manifest) -> None:
    """Refuse to make a cube of the files of a copy: what was not copied would be part of it, and empty."""
    if "copy" in manifest.built:
        raise BuildError(
            f"{manifest.url} is a copy ({manifest.attributes['copy']}), which is not changed but taken again: run "
            "`cube append` or `cube refresh` on the cube that it is of, and then `cube copy` as before"
        )


def _vanished(hrefs: Sequence[str]) -> BuildError:
    shown = "\n  ".join(hrefs[:_MOST_NAMED])
    more = f"\n  and {len(hrefs) - _MOST_NAMED} more" if len(hrefs) > _MOST_NAMED else ""
    return BuildError(
        f"{len(hrefs)} sources of the cube are gone; put them back, or take them out of the cube (drop_vanished=True, "
        f"--drop-vanished):\n  {shown}{more}"
    )
