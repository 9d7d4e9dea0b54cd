"""STAC Items to sources: which assets are rasters, what their bands are called and what is known of them.

Everything works on the plain JSON of the Items, in which old and new versions of STAC (eo:bands and raster:bands, or
bands) meet in one place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cube.errors import BuildError
from cube.io.stores import href_path
from cube.source import BandInfo, Source
from cube.stac.bands import Slot, alias_bands, name_bands, select_bands
from cube.stac.items import is_stac, parse_stac, read_items
from cube.stac.links import absolute_href, mappings

__all__ = ["is_stac", "parse_stac", "sources_from_stac"]

_TIFF_TYPES = ("image/tiff", "image/vnd.stac.geotiff")
_TIFF_SUFFIXES = (".tif", ".tiff")
_PREVIEW_ROLES = {"thumbnail", "overview"}
_PREVIEW_KEYS = {"thumbnail", "overview", "preview", "rendered_preview"}
"""Keys of small pictures in Items from before STAC had roles."""


def sources_from_stac(what: object, *, bands: Sequence[str] | None = None) -> list[Source]:
    """The raster assets of STAC Items as sources, in the order of the Items and of their assets.

    A band is named by its common name where exactly one one-band asset of an Item claims it, else by the asset key;
    the bands of a many-band asset by common or own name where unique in the Item, else with the asset key before it.
    The same asset has the same name in all Items of a call. An asset that declares no bands is taken to have one.

    Args:
        what: ItemCollection, Items, Catalog or Collection, a search (pystac-client), their JSON as a dict or a list,
            or the path or URL of a file of them (JSON, STAC GeoParquet).
        bands: Names, aliases or asset keys to keep; a source is kept whole, since its samples are told by position.

    Raises:
        BuildError: no Items, none with a GeoTIFF, Items that are damaged, or a link that cannot be followed.
        ReadError: a URL that cannot be read.
        SelectionError: a name in `bands` that no Item has.
    """
    items = read_items(what)
    rasters = [
        _Raster(item=item, base=base, key=key, declared=_declared(item, asset))
        for item, base in items
        for key, asset in item["assets"].items()
        if _is_raster(key, asset)
    ]
    if not rasters:
        types = sorted({str(asset.get("type")) for item, _ in items for asset in item["assets"].values()})
        raise BuildError(
            f"none of {len(items)} STAC Items has a GeoTIFF asset; the types of their assets: {', '.join(types) or '-'}"
        )
    slots = _slots(rasters)
    layouts: dict[int, tuple[Slot, ...]] = {}
    for raster, own in zip(rasters, slots, strict=True):
        layouts[id(raster.item)] = (*layouts.get(id(raster.item), ()), *own)
    names = name_bands(dict.fromkeys(layouts.values()))
    aliases = alias_bands(names)
    chosen = set(names) if bands is None else select_bands(bands, names, aliases)
    return [
        _source(raster, [_band(raster, slot, names[slot], aliases[slot]) for slot in own])
        for raster, own in zip(rasters, slots, strict=True)
        if not chosen.isdisjoint(own)
    ]


_CLAIMS = ("raster:bands", "bands", "data_type")


def _is_raster(key: str, asset: Mapping[str, Any]) -> bool:
    said = asset.get("roles") or asset.get("role")  # Copernicus DEM Items spell it so
    roles = set(map(str, said)) if isinstance(said, list) else set()
    if roles & _PREVIEW_ROLES or (not roles and key.lower() in _PREVIEW_KEYS):
        return False
    kind = str(asset.get("type") or "").lower()
    if kind.startswith(_TIFF_TYPES):
        return True
    tiff = href_path(asset["href"]).lower().endswith(_TIFF_SUFFIXES)
    return tiff and (not kind or bool(roles & {"data", "visual"}))


def _declared(item: Mapping[str, Any], asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the asset says of each band, one dict a sample, STAC 1.0's two lists merged; one empty dict if nothing."""
    merged: list[dict[str, Any]] = []
    for name in ("raster:bands", "eo:bands", "bands"):
        said = asset.get(name)
        for index, entry in enumerate(said if isinstance(said, list) else ()):
            if index == len(merged):
                merged.append({})
            if isinstance(entry, Mapping):
                merged[index].update(entry)
            elif isinstance(entry, int):  # before STAC 1.0: an index into the Item's own list
                merged[index].update(dict(enumerate(mappings(item["properties"].get(name)))).get(entry, {}))
    return merged or [{}]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raster:
    item: dict[str, Any]
    base: str | None
    """What relative hrefs start from; None is the current folder."""
    key: str
    declared: list[dict[str, Any]]

    @property
    def asset(self) -> Mapping[str, Any]:
        asset: Mapping[str, Any] = self.item["assets"][self.key]
        return asset

    def common(self, index: int) -> str | None:
        """The common name of a band, as this Item says it."""
        band = self.declared[index]
        shared = self.asset.get("eo:common_name") if len(self.declared) == 1 else None
        return _text(band.get("eo:common_name")) or _text(band.get("common_name")) or _text(shared)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _slots(rasters: Sequence[_Raster]) -> list[tuple[Slot, ...]]:
    """The slots of each raster; what an Item leaves out is filled in where the rest of its collection agrees."""
    said: dict[tuple[Any, str, int], set[str]] = {}
    for raster in rasters:
        for index in range(len(raster.declared)):
            if common := raster.common(index):
                said.setdefault((raster.item.get("collection"), raster.key, index), set()).add(common)
    agreed = {place: next(iter(commons)) for place, commons in said.items() if len(commons) == 1}
    return [
        tuple(
            Slot(
                asset=raster.key,
                index=index,
                count=len(raster.declared),
                common=raster.common(index) or agreed.get((raster.item.get("collection"), raster.key, index)),
                own=_text(band.get("name")),
            )
            for index, band in enumerate(raster.declared)
        )
        for raster in rasters
    ]


def _source(raster: _Raster, bands: Iterable[BandInfo]) -> Source:
    item = raster.item
    return Source(
        href=absolute_href(raster.asset["href"], raster.base),
        item=item["id"],
        collection=item.get("collection"),
        asset=raster.key,
        time=_time(item),
        bands=tuple(bands),
        properties=item["properties"],
        claims=_claims(item, raster.asset),
    )


def _claims(item: Mapping[str, Any], asset: Mapping[str, Any]) -> dict[str, Any]:
    box = {"bbox": item["bbox"]} if item.get("bbox") else {}
    return box | {key: said for key, said in asset.items() if key.startswith("proj:") or key in _CLAIMS}


def _time(item: Mapping[str, Any]) -> np.datetime64 | None:
    """`datetime`, else the start of the Item's period, in UTC; None for an Item without time."""
    text = item["properties"].get("datetime") or item["properties"].get("start_datetime")
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError) as error:
        raise BuildError(f"Item {item['id']!r} has a datetime that is not one: {text!r}") from error
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    return np.datetime64(moment, "us")


def _band(raster: _Raster, slot: Slot, name: str, aliases: tuple[str, ...]) -> BandInfo:
    declared = raster.declared[slot.index]
    # What all bands share, STAC 1.1 says once, in the asset.
    facts = {**raster.asset, **declared}
    title = _text(raster.asset.get("title")) or _text(raster.asset.get("description"))
    classes, class_nodata = _classes(facts)
    nodata = _number(facts.get("nodata"))
    return BandInfo(
        name=name,
        aliases=aliases,
        description=_text(declared.get("description")) or (title if slot.count == 1 else None),
        nodata=class_nodata if nodata is None else nodata,
        scale=_finite(facts.get("raster:scale", facts.get("scale"))),
        offset=_finite(facts.get("raster:offset", facts.get("offset"))),
        units=_text(facts.get("unit")),
        classes=classes,
    )


def _finite(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None


def _number(value: object) -> float | None:
    """JSON numbers, and the strings that STAC has for those that JSON lacks ("nan", "inf", "-inf")."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _classes(facts: Mapping[str, Any]) -> tuple[tuple[tuple[int, str], ...], float | None]:
    """(value, meaning) pairs in the order given, and the value that is said to mean nodata."""
    pairs: dict[int, str] = {}
    nodata = None
    for entry in mappings(facts.get("classification:classes")):
        value = _number(entry.get("value"))
        if value is not None and value.is_integer():
            pairs[int(value)] = str(entry.get("name") or entry.get("description") or int(value))
            nodata = value if entry.get("nodata") is True else nodata
    for entry in [] if pairs else mappings(facts.get("file:values")):
        values = entry.get("values")
        for value in map(_number, values if isinstance(values, list) else ()):
            if value is not None and value.is_integer():
                pairs[int(value)] = str(entry.get("summary") or int(value))
    return tuple(pairs.items()), nodata
