"""What each sample of each source is: its band's name and its time, by STAC, a pattern, file names or headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cube.archive.band_dates import dates_of_bands
from cube.archive.encoding import Sample
from cube.archive.naming import Fields, Pattern, infer_fields, match_all, suggest_pattern
from cube.archive.survey import Surveyed
from cube.conventions import COORDINATES
from cube.errors import BuildError, SelectionError
from cube.grid import Affine6
from cube.scan import ScannedSource
from cube.source import BandInfo
from cube.stac.bands import variable_name


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFile:
    """What file names are told apart by, beside themselves."""

    footprint: tuple[object, ...]
    """The ground that it covers, the same for bands of other resolutions."""
    samples: int


def label_samples(
    surveyed: Sequence[Surveyed],
    *,
    pattern: str | None,
    bands_as: str | None,
    bands: Sequence[str] | None,
    is_dated: bool,
    known: Mapping[str, PlainFile] | None = None,
) -> list[tuple[Sample, ...]]:
    """Return what the cube takes of each source, empty for a source of which it takes nothing.

    Args:
        surveyed: The sources.
        pattern: How file names are made; found out from the names where None.
        bands_as: "time:%Y" where the bands of a file are dates, which their descriptions name.
        is_dated: Whether sources have a time; False makes layers of them, whatever names and catalogues say.
        bands: Names or aliases of the bands to take; all where None.
        known: Files of the cube to which the sources are added, by href: names are understood together.

    Raises:
        BuildError: Names that the pattern does not fit, descriptions without dates, bands that no source has.
    """
    found = [each.scanned for each in surveyed]
    dates = [dates_of_bands(each, bands_as) for each in found] if bands_as is not None else None
    files = {each.scanned.source.href: plain_file(each, is_one_band=dates is not None) for each in surveyed}
    scanned = _named(found, files, known or {}, pattern, is_one_band=dates is not None)
    taken = _only(scanned, bands) if bands is not None else [list(enumerate(each.source.bands)) for each in scanned]
    if not is_dated:
        scanned = [replace(each, source=replace(each.source, time=None)) for each in scanned]
    times: list[tuple[np.datetime64 | None, ...]]
    times = [(each.source.time,) * each.header.samples for each in scanned] if dates is None else [*dates]
    return [
        tuple(Sample(scanned=each, index=i, info=info, time=at[i]) for i, info in wanted)
        for each, wanted, at in zip(scanned, taken, times, strict=True)
    ]


def plain_file(surveyed: Surveyed, *, is_one_band: bool) -> PlainFile:
    """Return what a file's name is told from others by."""
    extent = surveyed.extent
    return PlainFile(
        footprint=footprint(extent.crs, extent.transform, extent.shapes[0]),
        samples=1 if is_one_band else surveyed.scanned.header.samples,
    )


def footprint(crs: str, transform: Affine6, shape: tuple[int, int]) -> tuple[object, ...]:
    """Return the ground that a source of `shape` (height, width) covers."""
    a, b, c, d, e, f = transform
    height, width = shape
    corners = (c, f, c + a * width + b * height, f + d * width + e * height)
    return (crs, *(round(edge, 5) for edge in corners))


def spell_pattern(
    surveyed: Sequence[Surveyed], samples: Sequence[Sequence[Sample]], *, bands_as: str | None, is_dated: bool
) -> str | None:
    """Return a pattern that says of plain files what their names were found to say; None where there is none."""
    plain = [i for i, each in enumerate(surveyed) if not each.scanned.source.bands]
    if len(plain) < 2:
        return None
    try:
        pattern = suggest_pattern([surveyed[i].scanned.source.href for i in plain])
        spelled = label_samples(
            [surveyed[i] for i in plain], pattern=pattern, bands_as=bands_as, bands=None, is_dated=is_dated
        )
    except (BuildError, SelectionError):
        return None
    for i, of_source in zip(plain, spelled, strict=True):
        said = {each.index: (each.info.name, each.time) for each in of_source}
        if any(said[each.index] != (each.info.name, each.time) for each in samples[i]):
            return None
    return pattern


def _named(
    scanned: list[ScannedSource],
    files: Mapping[str, PlainFile],
    known: Mapping[str, PlainFile],
    pattern: str | None,
    *,
    is_one_band: bool,
) -> list[ScannedSource]:
    """Return the sources with every band named: by STAC, by the pattern, by the names' own logic, by the header."""
    plain = [i for i, each in enumerate(scanned) if not each.source.bands]
    hrefs = [scanned[i].source.href for i in plain]
    if pattern is not None:
        fields = match_all(hrefs, Pattern(pattern))
    else:
        together = _infer({**known, **{href: files[href] for href in hrefs}})
        _require_same(_infer(known), together)
        fields = [together[href] for href in hrefs]
    named = list(scanned)
    for i, found in zip(plain, fields, strict=True):
        source = named[i].source
        time = source.time if source.time is not None else found.time
        source = replace(source, time=time, bands=_header_bands(scanned[i], found), properties=dict(found.extra))
        named[i] = replace(named[i], source=source)
        if is_one_band:
            named[i] = _one_band(named[i], found.band)
    if is_one_band:
        done = set(plain)
        return [each if i in done else _one_band(each, each.source.asset) for i, each in enumerate(named)]
    for i, each in enumerate(named):
        if len(each.source.bands) < each.header.samples:
            named[i] = replace(each, source=replace(each.source, bands=_all_samples(each)))
    return named


def _one_band(scanned: ScannedSource, name: str | None) -> ScannedSource:
    """Return the source with the same band for every sample: they are its dates."""
    source = scanned.source
    described = source.bands[0] if source.bands else BandInfo(name="band")
    band = replace(described, name=variable_name(name or "band"), aliases=(), description=None)
    return replace(scanned, source=replace(source, bands=(band,) * scanned.header.samples))


def _infer(files: Mapping[str, PlainFile]) -> dict[str, Fields]:
    if len(files) == 1:
        return dict.fromkeys(files, Fields())  # one file is its bands; a date in its name is no axis
    found = infer_fields(
        list(files), [each.footprint for each in files.values()], [each.samples for each in files.values()]
    )
    return dict(zip(files, found, strict=True))


def _require_same(before: Mapping[str, Fields], together: Mapping[str, Fields]) -> None:
    for href, was in before.items():
        now = together[href]
        if (was.band, was.time) != (now.band, now.time):
            raise BuildError(
                f"together with the new files, the name of {href} means another thing: {_words(now)} instead of "
                f"{_words(was)}; build the cube again with all of its files, and with a pattern (pattern=, --pattern)"
            )


def _words(fields: Fields) -> str:
    when = "no date" if fields.time is None else str(fields.time)[:19]
    return f"{when}, {'no band' if fields.band is None else f'band {fields.band!r}'}"


def _all_samples(scanned: ScannedSource) -> tuple[BandInfo, ...]:
    """Return a band for every sample, where the catalogue describes fewer than the file has."""
    source, samples = scanned.source, scanned.header.samples
    described = source.bands
    if scanned.header.validity == "alpha" and len(described) == samples - 1:
        return (*described, BandInfo(name=variable_name(f"{source.asset or source.item}_alpha")))
    if len(described) == 1 < samples:
        return tuple(replace(described[0], name=f"{described[0].name}_{i + 1}", aliases=()) for i in range(samples))
    asset = source.asset or source.item
    return (*described, *(BandInfo(name=f"{asset}_{i + 1}") for i in range(len(described), samples)))


def _only(scanned: Sequence[ScannedSource], bands: Sequence[str]) -> list[list[tuple[int, BandInfo]]]:
    """Return the wanted (sample, band) pairs of each source.

    Raises:
        BuildError: A band that no source has.
    """
    known = {name for each in scanned for band in each.source.bands for name in (band.name, *band.aliases)}
    unknown = [band for band in bands if band not in known]
    if unknown:
        names = sorted({band.name for each in scanned for band in each.source.bands})
        raise BuildError(f"bands {', '.join(unknown)} were asked for; the sources have {', '.join(names)}")
    return [
        [(i, band) for i, band in enumerate(each.source.bands) if not {band.name, *band.aliases}.isdisjoint(bands)]
        for each in scanned
    ]


def _header_bands(scanned: ScannedSource, fields: Fields) -> tuple[BandInfo, ...]:
    header = scanned.header
    if header.samples == 1 and fields.band is not None:
        name = fields.band if fields.band.isidentifier() else variable_name(fields.band)
        return (BandInfo(name=name, aliases=() if name == fields.band else (fields.band,)),)
    described = [text.strip() if text else "" for text in header.descriptions]
    usable = all(text.isidentifier() for text in described) and len(set(described)) == len(described)
    usable = usable and COORDINATES.isdisjoint(described)
    names = described if usable else [f"band_{i + 1}" for i in range(header.samples)]
    if header.validity == "alpha" and not usable:
        names[-1] = "alpha"
    prefix = f"{fields.band}_" if fields.band is not None else ""
    return tuple(BandInfo(name=prefix + name) for name in names)
