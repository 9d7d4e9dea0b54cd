"""Sources to the members of one cube: their bands and times, the grid, and an encoding that loses no value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from cube.archive.acquisitions import count_words, drop_superseded
from cube.archive.coverage import Coverage, Placed
from cube.archive.encoding import Sample, choose_encoding
from cube.archive.labels import label_samples, spell_pattern
from cube.archive.peek import read_smallest
from cube.archive.sensors import Decision, Judgement, decide, is_dark_band, judge_dark_pixels, settle
from cube.archive.survey import survey
from cube.conventions import COORDINATES
from cube.errors import BuildError, SourceError
from cube.grid import Levels, lay_out
from cube.manifest.snapshot import Member
from cube.source import Source, SourceBand
from cube.spec import Band

_MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What decides how an archive becomes a cube; kept in the manifest, so that new sources are treated alike."""

    bands: tuple[str, ...] | None = None
    pattern: str | None = None
    bands_as: str | None = None
    time: bool = True
    crs: str | None = None
    harmonize: bool = True
    fill_value: float | None = None
    fail_on_error: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the options that are not the default, as JSON values."""
        changed = {key: value for key, value in asdict(self).items() if value != getattr(Options(), key)}
        if self.fill_value is not None and not math.isfinite(self.fill_value):
            changed["fill_value"] = str(self.fill_value)
        return changed

    @classmethod
    def from_json(cls, built: Mapping[str, Any]) -> Options:
        """Return the options among what a manifest keeps of its build."""
        known = {each.name: built[each.name] for each in fields(cls) if each.name in built}
        if known.get("bands") is not None:
            known["bands"] = tuple(known["bands"])
        if isinstance(known.get("fill_value"), str):
            known["fill_value"] = float(known["fill_value"])
        return cls(**known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A cube, before it is written."""

    members: list[Member]
    bands: list[Band]
    grids: tuple[Levels, ...]
    attributes: dict[str, Any]
    """What was counted and decided, in words."""
    left_out: list[tuple[str, str]]
    """(href or item, why) of what is not part of the cube."""
    inferred: str | None
    """The pattern that says what was found out from the names of files, where one does."""


def assemble(
    sources: Sequence[Source],
    options: Options,
    *,
    patch_url: Callable[[str], str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Assembly:
    """Read the headers of sources and make one cube of them.

    Raises:
        BuildError: Sources that cannot be read, or that do not form one cube; names them and says why.
    """
    kept, superseded = drop_superseded(sources)
    surveyed, errors = survey(kept, crs=options.crs, patch_url=patch_url, progress=progress)
    if errors and (options.fail_on_error or not surveyed):
        raise unreadable(errors, len(kept))
    samples = label_samples(
        surveyed,
        pattern=options.pattern,
        bands_as=options.bands_as,
        bands=options.bands,
        is_dated=options.time,
    )
    inferred = None
    if options.pattern is None:
        inferred = spell_pattern(surveyed, samples, bands_as=options.bands_as, is_dated=options.time)
    surveyed = [each for each, taken in zip(surveyed, samples, strict=True) if taken]
    samples = [taken for taken in samples if taken]
    if options.harmonize:
        samples = harmonize(samples, patch_url)
    layout = lay_out([each.extent for each in surveyed])
    places = zip(layout.grid.tolist(), layout.rows.tolist(), layout.columns.tolist(), strict=True)
    members = [to_member(taken, *place) for taken, place in zip(samples, places, strict=True)]
    coverage = Coverage([placed(each) for each in members], layout.grids)
    bands = _choose_bands(samples, coverage, options.fill_value)
    words = count_words(kept, superseded, unreadable=len(errors), dates=len(coverage.times))
    attributes = {"archive": words} | rule_words(each.decision for each in members)
    left_out = [(each.item, str(each)) for each in superseded] + [(each.href, each.reason) for each in errors]
    return Assembly(
        members=members, bands=bands, grids=layout.grids, attributes=attributes, left_out=left_out, inferred=inferred
    )


def to_member(taken: Sequence[Sample], grid: int, row: int, column: int) -> Member:
    """Return what a manifest keeps of a source of which the cube takes some samples, and its place on its grid."""
    texts = dict.fromkeys(each.decision.text for each in taken if each.decision is not None)
    return Member(
        scanned=taken[0].scanned,
        bands=tuple(map(_source_band, taken)),
        grid=grid,
        row=row,
        column=column,
        decision="; ".join(texts) or None,
    )


def _source_band(sample: Sample) -> SourceBand:
    stored = sample.stored
    return SourceBand(
        name=sample.info.name,
        sample=sample.index,
        time=sample.time if sample.time != sample.scanned.source.time else None,
        nodata=stored.nodata,
        scale=stored.scale,
        offset=stored.offset,
    )


def placed(member: Member) -> Placed:
    """Return where a member lies."""
    source, level = member.scanned.source, member.scanned.header.levels[0]
    return Placed(
        href=source.href,
        is_plain=not source.asset,
        grid=member.grid,
        row=member.row,
        column=member.column,
        height=level.height,
        width=level.width,
        gives=tuple((band.name, source.time if band.time is None else band.time) for band in member.bands),
    )


def unreadable(errors: Sequence[SourceError], total: int) -> BuildError:
    """Return the error that names sources which cannot be part of a cube."""
    shown = "\n  ".join(str(error) for error in errors[:_MOST_NAMED])
    more = f"\n  and {len(errors) - _MOST_NAMED} more" if len(errors) > _MOST_NAMED else ""
    return BuildError(f"{len(errors)} of {total} sources cannot be part of a cube:\n  {shown}{more}")


def harmonize(samples: Sequence[Sequence[Sample]], patch_url: Callable[[str], str] | None) -> list[tuple[Sample, ...]]:
    """Return the samples with what the rules of their sensor say of them; pixels settle what catalogues get wrong."""
    decided = [tuple(replace(each, decision=_decide(each)) for each in of_source) for of_source in samples]
    doubtful = [
        (i, j)
        for i, of_source in enumerate(decided)
        for j, each in enumerate(of_source)
        if each.decision is not None and each.decision.doubtful
    ]
    if not doubtful:
        return decided
    # One band of an item says it for all: the offset is the processor's, not the band's.
    by_item: dict[tuple[str | None, str], tuple[int, int]] = {}
    for i, j in doubtful:
        source = decided[i][j].scanned.source
        if is_dark_band(source, decided[i][j].info):
            by_item.setdefault((source.collection, source.item), (i, j))
    asked = [decided[i][j] for i, j in by_item.values()]
    pixels = read_smallest([(each.scanned, each.index) for each in asked], patch_url=patch_url)
    judged: dict[tuple[str | None, str], Judgement] = {
        key: "unclear" if isinstance(found, SourceError) else judge_dark_pixels(found, each.stored.nodata)
        for key, each, found in zip(by_item, asked, pixels, strict=True)
    }
    for i, j in doubtful:
        each = decided[i][j]
        source = each.scanned.source
        judgement = judged.get((source.collection, source.item), "unclear")
        if each.decision is not None:
            settled = replace(each, decision=settle(each.decision, judgement))
            decided[i] = (*decided[i][:j], settled, *decided[i][j + 1 :])
    return decided


def _decide(sample: Sample) -> Decision | None:
    return decide(sample.scanned.source, sample.info, sample.said)


def rule_words(decisions: Iterable[str | None]) -> dict[str, str]:
    """Return the attribute that says which rules were applied to how many sources; none if there were no rules."""
    counts = Counter(filter(None, decisions))
    if not counts:
        return {}
    return {"harmonized": "; ".join(f"{text} ({count:,} sources)" for text, count in sorted(counts.items()))}


def _choose_bands(samples: Sequence[Sequence[Sample]], coverage: Coverage, fill_value: float | None) -> list[Band]:
    """Return the bands in order of first appearance, each with its one encoding."""
    by_name: dict[str, list[Sample]] = {}
    for of_source in samples:
        for sample in of_source:
            by_name.setdefault(sample.info.name, []).append(sample)
    for name, members in by_name.items():
        if name in COORDINATES:
            raise BuildError(
                f"a band of {members[0].scanned.source.href} is called {name!r}, as a coordinate of the cube is; "
                "name it by a pattern (pattern=, --pattern), or leave it out with `bands`"
            )
    return [
        choose_encoding(name, members, fill_value=fill_value, holes=coverage.holes(name))
        for name, members in by_name.items()
    ]
