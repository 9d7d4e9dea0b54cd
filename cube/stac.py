"""STAC Items to sources: which assets are rasters, what their bands are called and what is known of them.

Everything works on the plain JSON of the Items, so that no link is ever resolved and old and new versions of STAC
(eo:bands and raster:bands, or bands) meet in one place.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from cube.bands import Slot, alias_bands, name_bands, select_bands
from cube.errors import BuildError
from cube.naming import href_path
from cube.source import BandInfo, Source

_JSON_SUFFIXES = (".json", ".geojson")
_SNIFFED_CHARACTERS = 65_536
_TIFF_TYPES = ("image/tiff", "image/vnd.stac.geotiff")
_TIFF_SUFFIXES = (".tif", ".tiff")
_PREVIEW_ROLES = {"thumbnail", "overview"}
_PREVIEW_KEYS = {"thumbnail", "overview", "preview", "rendered_preview"}
"""Keys of small pictures in Items from before STAC had roles."""


def is_stac(what: object) -> bool:
    """True if `sources_from_stac` is meant to read `what`: Items in any form, or a JSON file or URL of them.

    A local file is told by its first characters, a URL by its ending alone.
    """
    if isinstance(what, (str, os.PathLike)):
        return _is_stac_file(os.fspath(what))
    if isinstance(what, Mapping):
        return what.get("type") in {"Feature", "FeatureCollection"}
    if isinstance(what, Sequence):
        return len(what) > 0 and all(
            _is_item(item) or (isinstance(item, Mapping) and item.get("type") == "Feature") for item in what
        )
    return _is_item(what) or hasattr(what, "item_collection") or isinstance(getattr(what, "items", None), list)


def parse_stac(text: str, href: str) -> list[dict[str, Any]]:
    """Items in JSON text that was read from `href`, as dicts whose asset hrefs are absolute.

    Args:
        text: An ItemCollection, an Item, or a list of Items.
        href: Path or URL of the text; relative asset hrefs start from there.

    Raises:
        BuildError: the text is not JSON, or not STAC Items.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BuildError(f"{href} is not JSON ({error}); give a STAC ItemCollection or Item") from error
    items = _features(data, href)
    for item in items:
        item["assets"] = {
            key: {**asset, "href": _absolute(asset["href"], href)} for key, asset in item["assets"].items()
        }
    return items


def sources_from_stac(what: object, *, bands: Sequence[str] | None = None) -> list[Source]:
    """The raster assets of STAC Items as sources, in the order of the Items and of their assets.

    A band is named by its common name where exactly one one-band asset of an Item claims it, else by the asset key;
    the bands of a many-band asset by common or own name where unique in the Item, else with the asset key before it.
    The same asset has the same name in all Items of a call. An asset that declares no bands is taken to have one.

    Args:
        what: ItemCollection, Items, a search (pystac-client), their JSON as a dict or a list, or the path of a file.
        bands: Names, aliases or asset keys to keep; a source is kept whole, since its samples are told by position.

    Raises:
        BuildError: no Items, none with a GeoTIFF, or Items that are damaged.
        SelectionError: a name in `bands` that no Item has.
    """
    items = _load(what)
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


def _is_stac_file(href: str) -> bool:
    path = _local_path(href)
    if not href_path(path or href).lower().endswith(_JSON_SUFFIXES):
        return False
    if path is None:
        return True
    file = Path(path)
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as opened:
        head = opened.read(_SNIFFED_CHARACTERS)
    return re.search(r'"stac_version"|"type"\s*:\s*"Feature(Collection)?"', head) is not None


def _is_item(what: object) -> bool:
    return hasattr(what, "to_dict") and hasattr(what, "assets") and hasattr(what, "properties")


def _load(what: object) -> list[tuple[dict[str, Any], str | None]]:
    """Items as JSON, each with what its relative hrefs start from (None: the current folder)."""
    if isinstance(what, (str, os.PathLike)):
        href = os.fspath(what)
        path = _local_path(href)
        if path is None:
            raise BuildError(f"{href} is a URL: fetch its text and give it to parse_stac")
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise BuildError(f"{href} cannot be read: {error}; give a STAC ItemCollection or Item") from error
        return [(item, None) for item in parse_stac(text, os.path.normpath(Path.cwd() / path))]
    if isinstance(what, Mapping):
        objects: Iterable[Any] = _features(what, "the dict")
    elif _is_item(what):
        objects = [what]
    elif hasattr(what, "item_collection"):
        objects = what.item_collection()
    elif callable(getattr(what, "items", None)):
        objects = what.items()  # type: ignore[attr-defined]  # told by the line above
    elif isinstance(what, Iterable):
        objects = what
    else:
        raise BuildError(f"{type(what).__name__} is not STAC; give an ItemCollection, Items, a search, or a JSON file")
    items = [_item_json(one) for one in objects]
    if not items:
        raise BuildError("there are no STAC Items in what was given; check the search's dates, area and collection")
    return items


def _item_json(item: Any) -> tuple[dict[str, Any], str | None]:
    if _is_item(item):
        data = item.to_dict(include_self_link=False, transform_hrefs=False)
        return _features(data, "the Item")[0], item.get_self_href()
    data = _features(item, "the list")[0]
    self_links = (link.get("href") for link in _mappings(data.get("links")) if link.get("rel") == "self")
    return data, next(self_links, None)


def _features(data: Any, where: str) -> list[dict[str, Any]]:
    """Checked Items of an ItemCollection, an Item or a list."""
    kind = data.get("type") if isinstance(data, Mapping) else None
    if kind == "Feature":
        features: Any = [data]
    elif kind == "FeatureCollection":
        features = data.get("features")
    else:
        features = data
    if not isinstance(features, list):
        raise BuildError(
            f"{where} holds {kind or type(data).__name__}, not STAC Items; give an ItemCollection or Items"
        )
    if not features:
        raise BuildError(f"{where} holds no STAC Items")
    for number, item in enumerate(features):
        kinds = (("id", str), ("properties", Mapping), ("assets", Mapping))
        if not isinstance(item, Mapping) or not all(isinstance(item.get(name), kind) for name, kind in kinds):
            raise BuildError(f"{where}: feature {number} has no id, properties and assets, so it is not a STAC Item")
        for key, asset in item["assets"].items():
            if not isinstance(asset, Mapping) or not isinstance(asset.get("href"), str):
                raise BuildError(f"{where}: asset {key!r} of Item {item['id']!r} has no href")
    return [dict(item) for item in features]


def _local_path(href: str) -> str | None:
    """The path of a local file, None for a URL."""
    if href.startswith("file:"):
        return url2pathname(urlsplit(href).path)
    return None if "://" in href else href


def _absolute(href: str, base: str | None) -> str:
    path = _local_path(href)
    if path is None or path.startswith("/vsi"):
        return href
    start = None if base is None else _local_path(base)
    if base is not None and start is None:
        from pystac.utils import make_absolute_href

        return make_absolute_href(href, base)
    folder = Path.cwd() if start is None else Path.cwd() / Path(start).parent
    return os.path.normpath(folder / path)


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


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


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
                merged[index].update(dict(enumerate(_mappings(item["properties"].get(name)))).get(entry, {}))
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
        href=_absolute(raster.asset["href"], raster.base),
        item=item["id"],
        collection=item.get("collection"),
        asset=raster.key,
        time=_time(item),
        bands=tuple(bands),
        properties=item["properties"],
    )


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
    for entry in _mappings(facts.get("classification:classes")):
        value = _number(entry.get("value"))
        if value is not None and value.is_integer():
            pairs[int(value)] = str(entry.get("name") or entry.get("description") or int(value))
            nodata = value if entry.get("nodata") is True else nodata
    for entry in [] if pairs else _mappings(facts.get("file:values")):
        values = entry.get("values")
        for value in map(_number, values if isinstance(values, list) else ()):
            if value is not None and value.is_integer():
                pairs[int(value)] = str(entry.get("summary") or int(value))
    return tuple(pairs.items()), nodata
