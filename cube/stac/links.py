"""STAC Catalogs and Collections as the Items that their links lead to, wherever the JSON files are kept."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cube.errors import BuildError, ReadError
from cube.io import loop
from cube.io.ranges import read_all
from cube.settings import get_settings

MAX_DOCUMENTS = 100_000
"""A catalogue of more files is refused: their links run away, or it is better read as one GeoParquet file."""
_FOLLOWED = ("child", "item")
_BAND_LISTS = ("eo:bands", "bands", "raster:bands")

type Json = dict[str, Any]
type BasedItem = tuple[Json, str | None]
"""An Item, and what its relative hrefs start from; None is the current folder."""


def local_path(href: str) -> str | None:
    """The path of a local file, None for a URL."""
    if href.startswith("file:"):
        return url2pathname(urlsplit(href).path)
    return None if "://" in href else href


def absolute_href(href: str, base: str | None) -> str:
    """An absolute URL or local path; relative ones start from the file or URL `base`, or from the current folder."""
    path = local_path(href)
    if path is None or path.startswith("/vsi"):
        return href
    start = None if base is None else local_path(base)
    if base is not None and start is None:
        from pystac.utils import make_absolute_href

        return make_absolute_href(href, base)
    folder = Path.cwd() if start is None else Path.cwd() / Path(start).parent
    return os.path.normpath(folder / path)


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The dicts in a list of JSON; none if it is no list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def self_href(document: Mapping[str, Any]) -> str | None:
    """Where a document says that it came from."""
    found = (link.get("href") for link in mappings(document.get("links")) if link.get("rel") == "self")
    return next((href for href in found if isinstance(href, str)), None)


def parse_document(text: str | bytes, href: str) -> Any:
    """The JSON of a document.

    Raises:
        BuildError: it is not JSON.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise BuildError(f"{href} is not JSON ({error}); give a STAC ItemCollection, Item or Collection") from error


def node_kind(document: Any) -> str | None:
    """`Collection` or `Catalog` for a document that links to others, None for any other."""
    if not isinstance(document, Mapping):
        return None
    said = document.get("type")
    if said in {"Collection", "Catalog"}:
        return str(said)
    if said is None and "stac_version" in document and isinstance(document.get("links"), list):
        return "Collection" if "extent" in document else "Catalog"  # before STAC 1.0
    return None


def check_items(data: Any, where: str) -> list[Json]:
    """The Items of an ItemCollection, an Item or a list, checked to have what the reader relies on.

    Raises:
        BuildError: it is something else, empty or damaged.
    """
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


def with_absolute_assets(items: list[Json], href: str) -> list[Json]:
    """The Items of the file or URL `href` with absolute asset hrefs.

    Raises:
        BuildError: Items of a URL name files of this machine.
    """
    for item in items:
        item["assets"] = {
            key: {**asset, "href": absolute_href(asset["href"], href)} for key, asset in item["assets"].items()
        }
        for key, asset in item["assets"].items():
            if local_path(href) is None and local_path(asset["href"]) is not None:
                raise BuildError(
                    f"{href}: asset {key!r} of Item {item['id']!r} is {asset['href']}, a file of this machine, which "
                    "what comes over a network may not name"
                )
    return items


def read_document(href: str) -> Any:
    """The JSON at an absolute path or URL.

    Raises:
        ReadError: it cannot be read.
        BuildError: it is not JSON.
    """
    return parse_document(loop.run(read_all(href, max_bytes=get_settings().max_manifest_json_bytes)), href)


def follow_links(root: Json, href: str) -> list[Json]:
    """The Items below a Catalog or Collection, once each, in the order of its links, with absolute asset hrefs.

    A Collection without links to Items, but with assets of its own, counts as one Item without time. Items take from
    their Collection its id and licence, and what `item_assets` and summaries say of their assets, where they say
    nothing themselves. From a URL, links are followed to the same host alone.

    Args:
        root: The document.
        href: The absolute path or URL that it was read from.

    Raises:
        BuildError: there are no Items, or a link cannot be followed: the message names it.
    """
    documents = {href: root}
    frontier = [href]
    while frontier:
        wanted: dict[str, str] = {}
        for parent in frontier:
            for rel, target in _targets(documents[parent], parent):
                if target not in documents:
                    wanted.setdefault(target, f"{parent} links to {target} (rel={rel})")
        if len(documents) + len(wanted) > MAX_DOCUMENTS:
            raise BuildError(f"{href} leads to more than {MAX_DOCUMENTS:,} files; give a part of it")
        contents = loop.run(_read_each(list(wanted)))
        for (target, link), content in zip(wanted.items(), contents, strict=True):
            if isinstance(content, ReadError):
                raise BuildError(f"{link}, but: {content.reason}") from content
            try:
                documents[target] = parse_document(content, target)
            except BuildError as error:
                raise BuildError(f"{link}: {error}") from error
        frontier = [target for target in wanted if node_kind(documents[target]) is not None]
    items = list(_walk(documents, href))
    if not items:
        raise BuildError(f"{href} leads to no STAC Items, and no Collection of it has GeoTIFFs as its own assets")
    return items


def _targets(node: Json, href: str) -> Iterator[tuple[str, str]]:
    """(rel, absolute href) of the links to follow."""
    links = [link for link in mappings(node.get("links")) if isinstance(link.get("href"), str)]
    followed = [link for link in links if link.get("rel") in _FOLLOWED]
    pages = next((link["href"] for link in links if link.get("rel") == "items"), None)
    if pages is not None and not followed:
        raise BuildError(
            f"{href} is of an API: it links to pages of Items ({pages}), not to each; give a search of pystac-client"
        )
    for link in followed:
        target = absolute_href(link["href"], href)
        if local_path(href) is None and urlsplit(target)[:2] != urlsplit(href)[:2]:
            raise BuildError(
                f"{href} links to {target} (rel={link['rel']}), which is not on the same host; give that one by itself"
            )
        yield link["rel"], target


async def _read_each(hrefs: Sequence[str]) -> list[bytes | ReadError]:
    """The content of each document, or why there is none."""
    settings = get_settings()
    contents: list[bytes | ReadError] = [b""] * len(hrefs)
    positions = iter(range(len(hrefs)))

    async def work() -> None:
        for i in positions:
            try:
                contents[i] = await read_all(hrefs[i], max_bytes=settings.max_manifest_json_bytes)
            except ReadError as error:
                contents[i] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(min(len(hrefs), settings.requests_in_flight)):
            group.create_task(work())
    return contents


def _walk(documents: Mapping[str, Any], root: str) -> Iterator[Json]:
    """Items depth first, as the links are ordered; a stack of our own, since links may be deeper than Python's."""
    seen: set[str] = set()
    stack: list[tuple[str, Json | None]] = [(root, None)]
    while stack:
        href, collection = stack.pop()
        if href in seen:
            continue
        seen.add(href)
        document = documents[href]
        kind = node_kind(document)
        if kind is None:
            items = with_absolute_assets(check_items(document, href), href)
            yield from items if collection is None else (inherit(item, collection) for item in items)
            continue
        collection = document if kind == "Collection" else collection
        targets = [target for _, target in _targets(document, href)]
        stack += [(target, collection) for target in reversed(targets)]
        if not targets and kind == "Collection":
            yield from with_absolute_assets(own_item(document, href), href)


def own_item(collection: Json, href: str) -> list[Json]:
    """A Collection that has assets and no Items as the one Item that it is, without time; none if it has no assets."""
    assets = collection.get("assets")
    if not isinstance(assets, Mapping) or not assets:
        return []
    identifier = collection.get("id")
    item: Json = {"type": "Feature", "id": identifier, "properties": {}, "assets": assets, "links": []}
    return [inherit(checked, collection) for checked in check_items(item, href)]


def inherit(item: Json, collection: Json) -> Json:
    """An Item with what its Collection says of all: id, licence, and by asset key or band name, assets and bands."""
    said = collection.get("item_assets")
    defaults: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    named, only = _summarised(collection)
    assets = {}
    for key, asset in item["assets"].items():
        default = defaults.get(key)
        assets[key] = merged = {**default, **asset} if isinstance(default, Mapping) else dict(asset)
        for name in _BAND_LISTS[:2]:
            if isinstance(bands := merged.get(name), list):
                merged[name] = [
                    {**named.get(band.get("name"), {}), **band} if isinstance(band, Mapping) else band for band in bands
                ]
        if not any(name in merged for name in _BAND_LISTS) and (band := named.get(key)):
            merged["bands"] = [band]
        if only is not None and "raster:bands" not in merged and len(item["assets"]) == 1:
            merged["raster:bands"] = [only]
    common = {"license": collection["license"]} if isinstance(collection.get("license"), str) else {}
    return {
        **item,
        "collection": item.get("collection") or collection.get("id"),
        "properties": {**common, **item["properties"]},
        "assets": assets,
    }


def _summarised(collection: Json) -> tuple[dict[Any, Json], Json | None]:
    """What summaries say of bands, by name; and of a band without name, where they say the same of all."""
    summaries = collection.get("summaries")
    said = {**collection, **summaries} if isinstance(summaries, Mapping) else collection
    named: dict[Any, Json] = {}
    for name in _BAND_LISTS:
        for band in mappings(said.get(name)):
            if isinstance(band.get("name"), str):
                named[band["name"]] = {**named.get(band["name"], {}), **band}
    rasters = mappings(said.get("raster:bands"))
    return named, dict(rasters[0]) if len(rasters) == 1 and "name" not in rasters[0] else None
