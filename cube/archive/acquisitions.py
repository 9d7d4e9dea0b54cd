"""Which of several versions of one acquisition counts: duplicates and reprocessed scenes are dropped, and said.

Two sources are versions of one acquisition only where their catalogue says so; a file that says nothing of itself is
never dropped for another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cube.source import Source

_SENTINEL2 = re.compile(
    r"S2(?P<unit>[A-Z])_MSI(?P<level>L\w\w)_(?P<datatake>\d{8}T\d{6})_(?:N(?P<baseline>\d{4})_)?"
    r"R\d{3}_T(?P<tile>\d\d[A-Z]{3})_(?P<made>\d{8}T\d{6})"
)
"""A product's name: its first time is the start of the datatake, its last one tells its versions apart."""
_SENTINEL2_ITEM = re.compile(
    r"S2(?P<unit>[A-Z])_T?(?P<tile>\d{1,2}[A-Z]{3})_\d{8}(?:T\d{6})?(?:_\d+)?_(?P<level>L\w\w)"
)
"""An item's name; the number in it counts images of a day, which may be halves of a tile as well as versions."""
_DATATAKE = re.compile(r"GS2(?P<unit>[A-Z])_(?P<datatake>\d{8}T\d{6})_\d{6}")
_STRIP = re.compile(r"_S(\d{8}T\d{6})_")
_MGRS = re.compile(r"(?:MGRS-|T)?(\d{1,2}[A-Z]{3})")
_LANDSAT = re.compile(
    r"L(?P<sensor>[A-Z]\d\d)_(?P<level>L\d)\w\w_(?P<place>\d{6})_(?P<day>\d{8})_(?:(?P<made>\d{8})_)?"
    r"(?P<collection>\d\d)_(?P<tier>RT|T1|T2|A1|A2)(?P<part>_\w+)?"
)
_TIMES = (
    ("processed", ("processing:datetime", "odc:processing_datetime", "s1:processing_datetime", "s2:generation_time")),
    ("updated", ("updated",)),
    ("created", ("created",)),
)
"""What says when a version was made, the weightiest first."""
_WEIGHT = ("processing baseline", "collection", "tier", "version", *(what for what, _ in _TIMES))


class _Version(NamedTuple):
    """One thing that orders versions: the larger value is the better version."""

    what: str
    value: Any
    text: str


class _Round(NamedTuple):
    """Sources of equal `key` are versions of one another, ordered by `versions`."""

    key: Hashable
    versions: tuple[_Version, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """An item, or some of its assets, left out because a better version of the same acquisition is there."""

    item: str
    collection: str | None
    by: str
    """The better item, over which there may be a better one still; the same id where it was given twice."""
    reason: str
    """What makes the other one better."""
    sources: tuple[Source, ...]
    """What was left out, by asset."""

    def __str__(self) -> str:
        return f"{self.item} is superseded by {self.by}: {self.reason}"


def drop_superseded(sources: Sequence[Source]) -> tuple[list[Source], list[Superseded]]:
    """Sources without duplicates and outdated versions, in their order, and what was dropped for what.

    Versions of one acquisition are Sentinel-2 items of one tile and datatake (the highest processing baseline, then
    the newest processing of each datastrip), Landsat items of one path, row and day (collection, T1 and T2 over RT,
    then the newest processing), the same item id twice in a collection, and else items of one collection, platform,
    tile and time that differ in `version`, `processing:datetime`, `updated` or `created`. Each asset is judged alone,
    so that what the better version lacks is not lost. Versions that nothing orders are all kept: the halves of a
    Sentinel-2 tile that two datastrips share have the same tile, datatake and baseline, and both are needed.

    Args:
        sources: Of any number of items; which are kept does not depend on their order.

    Returns:
        What is kept, in the order of `sources`, and one `Superseded` an item that was dropped, in the order of ids.
    """
    rounds: dict[Hashable, tuple[_Round, ...]] = {}  # by item: computed once for all of its assets
    judge = _Judge(sources)
    judge.drop_copies()
    described = {
        i: (id(source.properties), source.item, source.time) for i, source in enumerate(sources) if source.properties
    }
    for i, item in described.items():
        if item not in rounds:
            rounds[item] = tuple(_rounds(sources[i]))
    for number in range(max(map(len, rounds.values()), default=0)):
        groups: dict[Hashable, dict[int, _Round]] = {}
        for i, item in described.items():
            if number < len(rounds[item]) and i not in judge.dropped:
                mine = rounds[item][number]
                groups.setdefault((sources[i].collection, sources[i].asset, mine.key), {})[i] = mine
        for members in groups.values():
            judge.contest(members)
    return [sources[i] for i in judge.left()], judge.report()


def count_words(
    kept: Iterable[Source], superseded: Sequence[Superseded], *, unreadable: int = 0, dates: int = 0
) -> str:
    """What became of the items of an archive: "412 items, 37 superseded, 5 unreadable, 370 dates"."""
    seen = {(source.collection, source.item) for source in kept}
    seen |= {(each.collection, each.item) for each in superseded}
    items = len(seen) + sum(each.item == each.by for each in superseded)
    said = [(items, "item" if items == 1 else "items")]
    said += [(len(superseded), "superseded"), (unreadable, "unreadable"), (dates, "date" if dates == 1 else "dates")]
    return ", ".join(f"{count:,} {words}" for count, words in said if count or words == "items")


class _Judge:
    """Keeps account of what is dropped for what."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.dropped: dict[int, tuple[str, str, int]] = {}
        """By position: the item that is better, the reason, and which copy of the item it was."""

    def left(self) -> list[int]:
        return [i for i in range(len(self.sources)) if i not in self.dropped]

    def drop_copies(self) -> None:
        """Drop all but one of the sources that are the same file as the same asset of the same item."""
        groups: dict[Hashable, list[int]] = {}
        for i, source in enumerate(self.sources):
            groups.setdefault((source.href, source.item, source.collection, source.asset), []).append(i)
        for members in groups.values():
            if len(members) > 1:
                first, *copies = sorted(members, key=lambda i: _freshness(self.sources[i]), reverse=True)
                for number, i in enumerate(copies):
                    self.dropped[i] = (self.sources[first].item, "the same item was given more than once", number)

    def contest(self, members: Mapping[int, _Round]) -> None:
        """Drop the versions that something says to be worse than another; what says nothing of itself stays."""
        remaining = dict(members)
        for what in _WEIGHT:
            said = {i: v for i, each in remaining.items() for v in each.versions if v.what == what}
            if not said:
                continue
            best = max(version.value for version in said.values())
            winner = min((self.sources[i].item, said[i].text) for i in said if said[i].value == best)
            for i, version in said.items():
                if version.value < best:
                    self.dropped[i] = (winner[0], f"{what} {winner[1]}, not {version.text}", 0)
                    del remaining[i]

    def report(self) -> list[Superseded]:
        grouped: dict[tuple[str, str, str, str, int], list[Source]] = {}
        for i, (by, reason, number) in self.dropped.items():
            source = self.sources[i]
            grouped.setdefault((source.item, source.collection or "", by, reason, number), []).append(source)
        return [
            Superseded(
                item=item,
                collection=members[0].collection,
                by=by,
                reason=reason,
                sources=tuple(sorted(members, key=lambda source: (source.asset, source.href))),
            )
            for (item, _, by, reason, _), members in sorted(grouped.items())
        ]


def _freshness(source: Source) -> tuple[tuple[tuple[bool, Any], ...], str]:
    """Orders copies: the newest description first; between equals any order, as long as it is one."""
    said = {version.what: version.value for version in _versions(source.properties)}
    known = tuple((what in said, said.get(what, datetime.min)) for what, _ in _TIMES)  # noqa: DTZ901  # as _moment's
    return known, json.dumps(dict(source.properties), sort_keys=True, default=str)


def _rounds(source: Source) -> Iterator[_Round]:
    properties = source.properties
    platform = str(properties.get("platform") or properties.get("eo:platform") or "").lower().replace("_", "-")
    names = [properties.get("s2:product_uri"), properties.get("sentinel:product_id"), source.item]
    product = _first(_SENTINEL2.search, names)
    item = _SENTINEL2_ITEM.fullmatch(source.item)
    if product or item or platform.startswith("sentinel-2"):
        yield from _sentinel2_rounds(source, product or item, platform)
        return
    # Not for Sentinel-2, where some catalogues give the same id to both halves of a tile.
    if source.asset:
        yield _Round(("item", source.item), _versions(properties))
    names = [properties.get("landsat:product_id"), properties.get("landsat:landsat_product_id"), source.item]
    if product := _first(_LANDSAT.fullmatch, names):
        yield _landsat_round(product, properties)
        return
    tile = _tile(properties)
    if tile is not None and source.time is not None:
        said = properties.get("instruments") or properties.get("eo:instrument")
        instruments = sorted(map(str.lower, map(str, said))) if isinstance(said, list) else [str(said).lower()]
        yield _Round(("tile", platform, *instruments, tile, source.time), _versions(properties))


def _first(match: Callable[[str], re.Match[str] | None], names: Iterable[object]) -> re.Match[str] | None:
    return next((found for name in names if isinstance(name, str) and (found := match(name))), None)


def _sentinel2_rounds(source: Source, named: re.Match[str] | None, platform: str) -> Iterator[_Round]:
    """The highest baseline of a datatake in a tile, then the newest processing of each of its datastrips."""
    properties = source.properties
    fields = named.groupdict() if named else {}
    datatake = _DATATAKE.match(str(properties.get("s2:datatake_id")))
    unit = fields.get("unit") or (datatake["unit"] if datatake else platform[-1:].upper())
    start = fields.get("datatake") or (datatake["datatake"] if datatake else source.time)
    tile = _mgrs(fields.get("tile")) or _tile(properties)
    if tile is None or start is None:
        return
    level = fields.get("level") or str(properties.get("s2:product_type") or "")[-2:].rjust(3, "L")
    key = ("s2", unit, level, start, tile)
    baseline = _number(properties.get("s2:processing_baseline"))
    if baseline is None and fields.get("baseline"):
        baseline = int(fields["baseline"]) / 100
    known = () if baseline is None else (_Version("processing baseline", baseline, f"{baseline:05.2f}"),)
    yield _Round(key, known)
    strip = _STRIP.search(str(properties.get("s2:datastrip_id")))
    if strip is not None:
        yield _Round((*key, strip[1]), _versions(properties, fields.get("made")))


def _landsat_round(product: re.Match[str], properties: Mapping[str, Any]) -> _Round:
    # T1 and T2 grade how well a scene is registered; which of the two is right, the later processing knows.
    tier = _Version("tier", product["tier"] != "RT", product["tier"])
    number = _Version("collection", int(product["collection"]), product["collection"])
    key = ("landsat", product["sensor"], product["level"], product["place"], product["day"], product["part"])
    return _Round(key, (number, tier, *_versions(properties, product["made"])))


def _versions(properties: Mapping[str, Any], made: str | None = None) -> tuple[_Version, ...]:
    """What a description says of its version; `made` is what a product's name says."""
    found = []
    version = properties.get("version")
    numbers = tuple(map(int, re.findall(r"\d+", version))) if isinstance(version, str) else ()
    if numbers:
        found.append(_Version("version", numbers, str(version)))
    for what, names in _TIMES:
        texts = [properties.get(name) for name in names] + ([made] if what == "processed" else [])
        moment = next((moment for text in texts if (moment := _moment(text)) is not None), None)
        if moment is not None:
            found.append(_Version(what, moment, f"{moment:%Y-%m-%dT%H:%M:%S}"))
    return tuple(found)


def _moment(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, (str, int, float)) else None
    except ValueError:
        return None


def _mgrs(text: object) -> str | None:
    found = _MGRS.fullmatch(text) if isinstance(text, str) else None
    return found[1].zfill(5) if found else None


def _tile(properties: Mapping[str, Any]) -> str | None:
    """Which place of its grid of tiles an item says to be; else its pixel grid; None if it says neither."""
    for names in (("grid:code",), ("s2:mgrs_tile",), ("odc:region_code",), ("landsat:wrs_path", "landsat:wrs_row"),
                  ("mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square"),
                  ("sentinel:utm_zone", "sentinel:latitude_band", "sentinel:grid_square")):  # fmt: skip
        parts = [properties.get(name) for name in names]
        if all(isinstance(part, (str, int)) and part != "" for part in parts):
            text = ("/" if "row" in names[-1] else "").join(map(str, parts))
            return _mgrs(text) or text
    crs = properties.get("proj:code") or properties.get("proj:epsg")
    transform, shape = properties.get("proj:transform"), properties.get("proj:shape")
    if crs is not None and isinstance(transform, list) and isinstance(shape, list):
        return json.dumps([crs, transform[:6], shape])
    return None
