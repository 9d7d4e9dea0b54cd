"""The next version of a cube as it comes about: sources that join it, and that must fit what is there."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cube.archive.acquisitions import Superseded, count_words
from cube.archive.assembly import Options, harmonize, placed, rule_words, to_member
from cube.archive.coverage import Coverage, Placed
from cube.archive.encoding import Sample, Stored, as_stored
from cube.archive.labels import PlainFile, footprint, label_samples
from cube.archive.naming import Pattern, band_words
from cube.archive.survey import Surveyed
from cube.errors import BuildError, ManifestError
from cube.grid import Extent, Layout, lay_out
from cube.io.stores import href_path
from cube.manifest.open import Manifest, open_manifest
from cube.manifest.snapshot import Member, update_manifest
from cube.manifest.stored import StoredSource
from cube.normalise import plan_normalisation, shift_between
from cube.source import Source
from cube.spec import Band

AGAIN = "build the cube again with all of its sources"


class Change:
    """A version of a cube without some of its sources, and with others."""

    def __init__(
        self, manifest: Manifest, options: Options, stored: Sequence[StoredSource], removed: Sequence[int]
    ) -> None:
        """Begin with the sources of a manifest.

        Args:
            manifest: The current version.
            options: With which the cube was built.
            stored: All of its sources.
            removed: Positions of those that leave the cube, or are replaced.
        """
        self._manifest, self._options, self._removed = manifest, options, removed
        self._all = tuple(stored)
        self._stored = {each.source.href: each for each in stored}  # several Items may name one file
        self._kept = [each for each in stored if each.position not in set(removed)]
        self._members: list[Member] = []
        self._place()

    def take(self, surveyed: Sequence[Surveyed], patch_url: Callable[[str], str] | None) -> set[str]:
        """Take sources in, treated as those are that the cube was built from.

        Returns:
            The hrefs of those that give bands of the cube.

        Raises:
            BuildError: One does not fit the cube's bands, their encoding, or what is there.
        """
        extents = {each.scanned.source.href: each.extent for each in surveyed}
        samples = [found for found in self._label(surveyed) if found]
        if self._options.harmonize:
            samples = harmonize(samples, patch_url)
        bands = {band.name: band for band in self._manifest.bands}
        for of_source in samples:
            for sample in of_source:
                require_fit(sample, bands[sample.info.name], self._options.fill_value)
        hrefs = [of_source[0].scanned.source.href for of_source in samples]
        layout = self._lay_out([extents[href] for href in hrefs])
        own = len(self._manifest.grids)
        places = zip(*(each.tolist()[own:] for each in (layout.grid, layout.rows, layout.columns)), strict=True)
        self._members = [self._member(taken, *place) for taken, place in zip(samples, places, strict=True)]
        self._place(layout)
        return set(hrefs)

    def write(self, left_out: Sequence[tuple[str, str]]) -> Manifest:
        """Write the version and return it; `left_out` are (href or item, why) of what was to join and did not.

        Raises:
            BuildError: A band is missing somewhere and has no number to say so.
            ManifestError: The manifest cannot be written, or someone else has changed it meanwhile.
        """
        self._require_cover()
        manifest = self._manifest
        left_out = [each for each in left_out if each not in manifest.left_out]
        sources = [each.source for each in self._kept] + [each.scanned.source for each in self._members]
        words = archive_words(sources, [*manifest.left_out, *left_out], len(self._coverage.times))
        attributes = {key: value for key, value in manifest.attributes.items() if key != "harmonized"}
        decisions = [each.decision for each in self._kept] + [each.decision for each in self._members]
        version = update_manifest(
            manifest,
            add=self._members,
            remove=self._removed,
            bands=manifest.bands,
            grids=self._layout.grids,
            attributes=attributes | {"archive": words} | rule_words(decisions),
            left_out=left_out,
        )
        return open_manifest(manifest.url, version)

    def _lay_out(self, extents: Sequence[Extent] = ()) -> Layout:
        """Return where sources lie beside the cube's grids, which come first, and so keep their positions."""
        known = self._manifest.grids
        layout = lay_out([*(levels.extent for levels in known), *extents])
        joined = set(layout.grid[len(known) :].tolist())
        kept = [new if i in joined else old for i, (old, new) in enumerate(zip(known, layout.grids, strict=False))]
        return replace(layout, grids=(*kept, *layout.grids[len(known) :]))

    def _place(self, layout: Layout | None = None) -> None:
        self._layout = self._lay_out() if layout is None else layout
        there = [_placed(each, self._layout) for each in self._kept]
        self._coverage = Coverage(there + [placed(each) for each in self._members], self._layout.grids)

    def _require_cover(self) -> None:
        """Refuse sources that overlap, and holes where the band has no number for them and had none before."""
        before = Coverage([_placed(each) for each in self._all], self._manifest.grids)
        for band in self._manifest.bands:
            holes = self._coverage.holes(band.name)
            if not holes or band.nodata is not None or np.dtype(band.dtype).kind in "fc" or before.holes(band.name):
                continue
            own = {each.nodata for stored in self._all for each in stored.bands if each.name == band.name}
            if band.hole not in own:
                raise BuildError(
                    f"band {band.name!r} ({band.dtype}, no nodata value) would be missing at {len(holes)} places or "
                    f"dates, {holes[0]} for one; {AGAIN}, and with a fill value (fill_value=, --fill-value)"
                )

    # Names.

    def _label(self, surveyed: Sequence[Surveyed]) -> list[tuple[Sample, ...]]:
        """Return what the cube takes of each source, its bands called as in the cube."""
        options = self._options
        labelled = label_samples(
            surveyed,
            pattern=options.pattern or self._inferred(surveyed),
            bands_as=options.bands_as,
            bands=None,
            is_dated=options.time,
            known=self._plain_files(),
        )
        names = {
            (each.source.collection, each.source.asset, band.sample): band.name
            for each in self._stored.values()
            if each.source.asset
            for band in each.bands
        }
        return [tuple(self._rename(each, names)) for each in labelled]

    def _inferred(self, surveyed: Sequence[Surveyed]) -> str | None:
        """Return the pattern that was found out at the build, where it fits: else names are understood together.

        Raises:
            BuildError: The sources of the cube are all called by one band, and one of these by another.
        """
        pattern = self._manifest.built.get("inferred")
        hrefs = [each.scanned.source.href for each in surveyed if not each.scanned.source.bands]
        if pattern is None:
            return None
        odd = [href for href in hrefs if Pattern(pattern).match(href) is None]
        own = band_words(re.sub(r"\{.*?\}", "_", pattern))
        other = [href for href in odd if own and not band_words(href_path(href).rpartition("/")[2]) <= own]
        if other:
            raise BuildError(
                f"{other[0]} names another band than the sources of the cube, which are called like {pattern}; {AGAIN}"
            )
        return None if odd else str(pattern)

    def _plain_files(self) -> dict[str, PlainFile]:
        is_one_band = self._options.bands_as is not None
        return {
            href: PlainFile(
                footprint=footprint(each.crs, each.transform, (each.height, each.width)),
                samples=1 if is_one_band else each.samples,
            )
            for href, each in self._stored.items()
            if not each.source.asset
        }

    def _rename(self, samples: Sequence[Sample], names: Mapping[tuple[str | None, str, int], str]) -> Iterator[Sample]:
        """Yield the samples that are bands of the cube, by the names that they have there.

        A catalogue's bands are named by all of its items together: another call may have named them otherwise.
        """
        bands = self._manifest.bands
        for sample in samples:
            source, info = sample.scanned.source, sample.info
            known = names.get((source.collection, source.asset, sample.index))
            found = {known} if known is not None else {band.name for band in bands if band.name == info.name}
            found = found or {band.name for band in bands if not {info.name, *info.aliases}.isdisjoint(band.aliases)}
            if len(found) == 1:
                yield replace(sample, info=replace(info, name=found.pop()))
            elif self._options.bands is None:
                raise BuildError(
                    f"{source.href} gives the band {info.name!r}; the cube has "
                    f"{', '.join(band.name for band in bands)}: name it as the others are, leave it out, or {AGAIN}"
                )

    def _member(self, samples: Sequence[Sample], grid: int, row: int, column: int) -> Member:
        """Return what the manifest keeps; a rule that finds what it decided before says nothing anew."""
        member = to_member(samples, grid, row, column)
        before = self._stored.get(member.scanned.source.href)
        if before is None or member.decision is not None:
            return member
        old, new = ({(b.name, b.nodata, b.scale, b.offset) for b in each.bands} for each in (before, member))
        return replace(member, decision=before.decision if old == new else None)


def require_fit(sample: Sample, band: Band, fill_value: float | None) -> None:
    """Refuse a sample that the cube's encoding of its band cannot hold.

    Args:
        sample: One band of one source.
        band: As the cube stores it.
        fill_value: What the user said to mark missing pixels, which is trusted.

    Raises:
        BuildError: A number would be lost, or mean another thing.
    """
    stored, href = sample.stored, sample.scanned.source.href
    try:
        plan_normalisation(stored.dtype, stored.nodata, stored.scale, stored.offset, band)
    except ManifestError:
        raise BuildError(
            f"band {band.name!r} of {href} is {_in_words(stored.dtype.name, stored.scale, stored.offset)}, which does "
            f"not fit the cube's {_in_words(band.dtype, band.scale, band.offset)}; {AGAIN}"
        ) from None
    if stored.validity is not None and band.nodata is None and _is_value(band.hole, stored, band):
        raise BuildError(
            f"band {band.name!r} of {href} has a validity {stored.validity}, and the cube has no number for it; {AGAIN}"
        )
    if band.classes:
        return  # "no data" is one of the classes, and stays what it is
    if band.nodata is not None:
        is_users = fill_value is not None and as_stored(fill_value, np.dtype(band.dtype)) == band.nodata
        if not is_users and _is_value(band.nodata, stored, band):
            raise BuildError(
                f"band {band.name!r} of {href} has {band.nodata:g} as a value, which is the cube's nodata (the file's "
                f"own: {_number(stored.nodata)}); {AGAIN}"
            )
        return
    # Bits are never masked: that a number means "no data" is known, and changes nothing.
    has_own = stored.nodata is not None and not math.isnan(stored.nodata) and not sample.is_class
    if has_own:
        what = f"nodata {stored.nodata:g}"
        raise BuildError(f"band {band.name!r} of {href} has {what}, and the cube has no number for it; {AGAIN}")


def _is_value(number: float, stored: Stored, band: Band) -> bool:
    """True if a number of the cube is one that a source may have as a value."""
    shift = shift_between(stored.scale, stored.offset, band.scale, band.offset)
    if math.isnan(number) or shift is None:
        return False
    own = number - shift
    return own != stored.nodata and as_stored(own, stored.dtype) == own


def _in_words(dtype: str, scale: float, offset: float) -> str:
    return f"{dtype} (scale {scale:g}, offset {offset:g})"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _placed(stored: StoredSource, layout: Layout | None = None) -> Placed:
    """Return where a source lies on grids of which the cube's are the first sources."""
    return Placed(
        href=stored.source.href,
        is_plain=not stored.source.asset,
        grid=stored.grid,
        row=stored.row + (0 if layout is None else int(layout.rows[stored.grid])),
        column=stored.column + (0 if layout is None else int(layout.columns[stored.grid])),
        height=stored.height,
        width=stored.width,
        gives=tuple((band.name, band.time) for band in stored.bands),
    )


def archive_words(sources: Iterable[Source], left_out: Iterable[tuple[str, str]], dates: int) -> str:
    """Return what became of the items of an archive, in words, from what a manifest keeps of it."""
    kept = list(sources)
    collections = {each.item: each.collection for each in kept}
    hrefs = {each.href for each in kept}
    superseded: list[Superseded] = []
    broken: set[str] = set()
    for what, why in dict.fromkeys(left_out):
        found = re.fullmatch(rf"{re.escape(what)} is superseded by (\S+): (.*)", why)
        if found is not None:
            superseded.append(
                Superseded(item=what, collection=collections.get(what), by=found[1], reason=found[2], sources=())
            )
        else:
            broken.add(what)
    # What could not be read may have joined since.
    return count_words(kept, superseded, unreadable=len(broken - hrefs), dates=dates)
