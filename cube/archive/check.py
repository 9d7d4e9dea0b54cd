"""Whether the sources of a cube are still what its manifest says, and what their catalogue said: `cube check`."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeGuard

import numpy as np

from cube.archive.peek import read_smallest
from cube.archive.sensors import Judgement, Said, decide, is_dark_band, judge_dark_pixels
from cube.archive.survey import survey
from cube.crs import crs_from_text
from cube.drift import require_unchanged, version_of
from cube.errors import SourceChangedError, SourceError, SourceNotFoundError
from cube.grid import Grid
from cube.io import loop
from cube.io.ranges import read_head
from cube.io.stores import local_path, sign
from cube.manifest.open import Manifest
from cube.manifest.stored import StoredSource, read_stored
from cube.scan import ScannedSource, scan_sources
from cube.settings import get_settings
from cube.source import BandInfo, SourceBand

type Kind = Literal["changed", "vanished", "unreadable", "mislabelled"]
type Progress = Callable[[int, int], None]
type PatchUrl = Callable[[str], str] | None

_DTYPES = {"cint16": "complex64", "cint32": "complex128", "cfloat32": "complex64", "cfloat64": "complex128"}
"""STAC's names of data types that are not numpy's; integers of complex numbers are read as floats."""
_FLAG = ":boa_offset_applied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One source that is not what it should be."""

    kind: Kind
    href: str
    position: int
    """Of the source in the manifest."""
    expected: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.href}\n  expected {self.expected}\n  found {self.found}\n  {self.advice}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `check` found."""

    name: str
    version: str
    sources: int
    """How many were looked at."""
    findings: tuple[Finding, ...]
    """In the order of the manifest's sources."""

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return not self.findings

    def of(self, *kinds: Kind) -> tuple[Finding, ...]:
        """Return the findings of some kinds."""
        return tuple(each for each in self.findings if each.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        counts = {kind: len(self.of(kind)) for kind in ("changed", "vanished", "unreadable", "mislabelled")}
        said = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count) or "all is well"
        return "\n".join([*map(str, self.findings), f"{self.sources:,} sources: {said}"])


def check(
    manifest: Manifest, *, pixels: bool = True, patch_url: PatchUrl = None, progress: Progress | None = None
) -> Report:
    """Look at every source of a cube: one small request each, and a few more for those that give cause for it.

    Args:
        manifest: The cube.
        pixels: Whether to judge the offset of Sentinel-2's bands by their darkest pixels, which reads the smallest
            overview of one band of each scene.
        patch_url: Applied to each href when it is fetched, to sign it.
        progress: Called with (done, total) as sources are looked at.
    """
    stored = read_stored(manifest)
    manifest.load(range(len(manifest)))
    errors = loop.run(_look_at_all(manifest, patch_url, progress))
    findings = [_of_error(manifest, each, error) for each, error in zip(stored, errors, strict=True) if error]
    findings = _with_headers(manifest, stored, findings, patch_url)
    sound = [each for each, error in zip(stored, errors, strict=True) if error is None]
    for each in sound:
        findings += _mislabelled(each)
    if pixels:
        findings += _judge_offsets(sound, patch_url)
    ordered = sorted(findings, key=lambda finding: finding.position)
    return Report(name=manifest.name, version=manifest.version, sources=len(stored), findings=tuple(ordered))


# Whether they are there, and the same.


async def _look_at_all(manifest: Manifest, patch_url: PatchUrl, progress: Progress | None) -> list[SourceError | None]:
    results: list[SourceError | None] = [None] * len(manifest)
    positions = iter(range(len(manifest)))
    done = 0

    async def work() -> None:
        nonlocal done
        for i in positions:
            try:
                await _look_at(manifest, i, patch_url)
            except SourceError as error:
                results[i] = error
            done += 1
            if progress is not None:
                progress(done, len(manifest))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(len(manifest), get_settings().requests_in_flight)):
            group.create_task(work())
    return results


async def _look_at(manifest: Manifest, source: int, patch_url: PatchUrl) -> None:
    """Raise what is wrong with a source, as the store says it."""
    facts = await asyncio.to_thread(manifest.facts, source)  # which may have to read the manifest again
    if local_path(facts.href) is not None:
        await asyncio.to_thread(require_unchanged, manifest, source, facts)
    head = await read_head(facts.href, 1, signed=sign(facts.href, patch_url))
    known = version_of(facts)
    if known is None:
        return
    change = known.change(size=head.size, etag=head.etag, last_modified=head.last_modified)
    if change is not None:
        raise SourceChangedError.because(facts.href, change)


def _of_error(manifest: Manifest, stored: StoredSource, error: SourceError) -> Finding:
    facts = manifest.facts(stored.position)
    etag = f", ETag {facts.etag}" if facts.etag else ""
    modified = f", modified {facts.last_modified:%Y-%m-%d %H:%M:%S} UTC" if facts.last_modified else ""
    kind: Kind = "unreadable"
    advice = "give access to it or restore it, then run `cube check` again"
    if isinstance(error, SourceNotFoundError):
        kind = "vanished"
        advice = "put it back, or take it out of the cube with `cube refresh --drop-vanished`"
    elif isinstance(error, SourceChangedError):
        kind = "changed"
        advice = "take its new version into the cube with `cube refresh`"
    return Finding(
        kind=kind,
        href=stored.source.href,
        position=stored.position,
        expected=f"an object of {facts.size:,} bytes{etag}{modified}",
        found=error.reason,
        advice=advice,
    )


def _with_headers(
    manifest: Manifest, stored: Sequence[StoredSource], findings: Sequence[Finding], patch_url: PatchUrl
) -> list[Finding]:
    """Return the findings, those of changed sources whose header makes no sense any more called unreadable."""
    changed = [each.position for each in findings if each.kind == "changed"]
    crs = manifest.built.get("crs")
    _, errors = survey([stored[i].source for i in changed], crs=crs, patch_url=patch_url) if changed else ([], [])
    reasons = {error.href: error.reason for error in errors}
    return [
        replace(
            each,
            kind="unreadable",
            found=f"{each.found}, and {reasons[each.href]}",
            advice="restore the file, then run `cube refresh`",
        )
        if each.kind == "changed" and each.href in reasons
        else each
        for each in findings
    ]


# Whether their catalogue says what their header says.


def _mislabelled(stored: StoredSource) -> Iterator[Finding]:
    for said, found in (_place(stored), _data_type(stored)):
        if said:
            yield Finding(
                kind="mislabelled",
                href=stored.source.href,
                position=stored.position,
                expected=f"{said}, by its catalogue",
                found=f"{found}, by its header",
                advice="the cube goes by the header; correct the catalogue, or leave the source out and build again",
            )


def _data_type(stored: StoredSource) -> tuple[str, str]:
    """Return how a source's data type differs, in words: the catalogue's and the header's; empty if they do not."""
    properties = stored.source.properties
    for band in stored.bands:
        said = properties.get("data_type")
        for key in ("bands", "raster:bands"):
            entries = properties.get(key)
            if isinstance(entries, list) and band.sample < len(entries) and isinstance(entries[band.sample], Mapping):
                said = entries[band.sample].get("data_type", said)
        name = _DTYPES.get(str(said), str(said))
        if name in np.sctypeDict and np.dtype(name) != stored.dtype:
            return f"{said} in band {band.name!r}", str(stored.dtype)
    return "", ""


def _place(stored: StoredSource) -> tuple[str, str]:
    """Return how a source's place differs, in words: the catalogue's and the header's; empty if it does not."""
    properties, grid = stored.source.properties, _grid(stored)
    code = properties.get("proj:code") or properties.get("proj:epsg")
    crs = f"EPSG:{code}" if isinstance(code, int) else code
    if isinstance(crs, str) and not _is_same_crs(crs, stored.crs):
        return crs, _brief(stored.crs)
    bounds = _said_bounds(properties)
    if bounds is not None and isinstance(crs, str):
        a, b, _, d, e, _ = stored.transform
        half = max(abs(a) + abs(b), abs(d) + abs(e)) / 2
        if any(abs(one - other) > half for one, other in zip(bounds, grid.bounds, strict=True)):
            return f"bounds {_numbers(bounds)}", f"bounds {_numbers(grid.bounds)}"
        return "", ""
    box = properties.get("bbox")
    if _is_numbers(box, 4):
        # The box of an item may be that of its valid pixels, or of all its assets: only elsewhere is wrong.
        west, south, east, north = map(float, box)
        own = _degrees(grid)
        if own is not None and west <= east and (west > own[2] or east < own[0] or south > own[3] or north < own[1]):
            return f"bbox {_numbers((west, south, east, north))}", f"bbox {_numbers(own)}"
    return "", ""


def _grid(stored: StoredSource) -> Grid:
    return Grid(crs=stored.crs, transform=stored.transform, width=stored.width, height=stored.height)


def _said_bounds(properties: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return (left, bottom, right, top) as the projection extension says them, the same for every resolution."""
    transform, shape, box = (properties.get(f"proj:{name}") for name in ("transform", "shape", "bbox"))
    if _is_numbers(transform, 6, 9) and _is_numbers(shape, 2):
        a, b, c, d, e, f = map(float, transform[:6])
        return Grid(crs="", transform=(a, b, c, d, e, f), width=int(shape[1]), height=int(shape[0])).bounds
    return tuple(map(float, box)) if _is_numbers(box, 4) else None


def _is_numbers(value: object, *lengths: int) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and len(value) in lengths
        and all(isinstance(each, (int, float)) and math.isfinite(each) for each in value)
    )


@functools.lru_cache(maxsize=256)
def _is_same_crs(one: str, other: str) -> bool:
    if one == other:
        return True
    first, second = crs_from_text(one), crs_from_text(other)
    return first is None or second is None or first.equals(second, ignore_axis_order=True)


def _degrees(grid: Grid) -> tuple[float, float, float, float] | None:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        found = Transformer.from_crs(grid.crs, "OGC:CRS84", always_xy=True).transform_bounds(*grid.bounds)
    except ProjError:
        return None
    west, south, east, north = found
    # A box over the antimeridian has its west in the east: nothing is said of those.
    return (west, south, east, north) if west <= east and all(map(math.isfinite, found)) else None


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.10g}" for value in values)


def _brief(crs: str) -> str:
    return crs if '"' not in crs else crs.split('"')[1]


# Whether their pixels say what the offset says.


def _judge_offsets(stored: Sequence[StoredSource], patch_url: PatchUrl) -> list[Finding]:
    by_item: dict[tuple[str | None, str], tuple[StoredSource, SourceBand]] = {}
    for each in stored:
        for band in each.bands:
            if _may_have_offset(each, band):
                by_item.setdefault((each.source.collection, each.source.item), (each, band))
    chosen = {each.source.href: (each, band) for each, band in by_item.values()}
    scanned, _ = scan_sources([each.source for each, _ in chosen.values()], patch_url=patch_url)
    asked: list[tuple[ScannedSource, int]]
    asked = [(each, chosen[each.source.href][1].sample) for each in scanned if each.header.needs_gdal is None]
    findings = []
    for (found, _), values in zip(asked, read_smallest(asked, patch_url=patch_url), strict=True):
        each, band = chosen[found.source.href]
        if isinstance(values, SourceError):
            findings.append(_damaged(each, values))
        elif (finding := _judge(each, band, judge_dark_pixels(values, band.nodata))) is not None:
            findings.append(finding)
    return findings


def _damaged(stored: StoredSource, error: SourceError) -> Finding:
    return Finding(
        kind="unreadable",
        href=stored.source.href,
        position=stored.position,
        expected="readable pixels in its smallest image",
        found=error.reason,
        advice="restore the file, then run `cube check` again",
    )


def _may_have_offset(stored: StoredSource, band: SourceBand) -> bool:
    """True for a dark band of a Sentinel-2 product whose pixels may, or may not, have 1000 added."""
    info = BandInfo(name=band.name)
    if not is_dark_band(stored.source, info):
        return False
    # What the rule would say, were file and catalogue silent: it gives an offset from baseline 04.00 on.
    properties = {key: value for key, value in stored.source.properties.items() if not key.endswith(_FLAG)}
    silent = Said(stored.dtype, None, 1.0, 0.0, by_file=False)
    decision = decide(replace(stored.source, properties=properties), info, silent)
    return decision is not None and decision.rule == "sentinel-2" and (decision.offset != 0 or decision.doubtful)


def _judge(stored: StoredSource, band: SourceBand, judgement: Judgement) -> Finding | None:
    has_offset = band.offset < 0
    if judgement == "unclear" or has_offset == (judgement == "offset"):
        return None
    pixels = {
        "offset": "darkest pixels just above 1000, which has been added to them: an offset of -0.1",
        "harmonised": "many pixels far below 1000: nothing has been added to them, an offset of 0",
    }
    why = f" ({stored.decision})" if stored.decision else ""
    return Finding(
        kind="mislabelled",
        href=stored.source.href,
        position=stored.position,
        expected=f"an offset of {band.offset:g} in band {band.name!r}{why}",
        found=pixels[judgement],
        advice="look at the scene; if its pixels are right, correct its catalogue and build again",
    )
