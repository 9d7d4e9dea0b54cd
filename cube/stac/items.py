"""STAC Items from wherever they are kept: JSON, Catalogs and their links, GeoParquet, Python objects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from cube.errors import BuildError, ReadError
from cube.io import loop
from cube.io.ranges import read_all
from cube.io.stores import href_path
from cube.settings import get_settings
from cube.stac.links import (
    BasedItem,
    Json,
    check_items,
    follow_links,
    inherit,
    local_path,
    node_kind,
    own_item,
    parse_document,
    read_document,
    self_href,
    with_absolute_assets,
)

_JSON_SUFFIXES = (".json", ".geojson")
_PARQUET_SUFFIXES = (".parquet", ".geoparquet")
_SNIFFED_CHARACTERS = 65_536
_ITEM_COLUMNS = {"type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets", "collection"}
"""Columns of STAC GeoParquet that are not properties of the Items."""


def is_stac(what: object) -> bool:
    """True if `read_items` is meant to read `what`: Items, Catalogs and Collections in any form, or a file or URL.

    A local file is told by its first characters or columns, a URL by its ending alone.
    """
    if isinstance(what, (str, os.PathLike)):
        return _is_stac_file(os.fspath(what))
    if isinstance(what, Mapping):
        return what.get("type") in {"Feature", "FeatureCollection", "Collection", "Catalog"}
    if isinstance(what, Sequence):
        return len(what) > 0 and all(
            _is_item(item) or (isinstance(item, Mapping) and item.get("type") == "Feature") for item in what
        )
    if _is_item(what) or _is_node(what):
        return True
    return hasattr(what, "item_collection") or isinstance(getattr(what, "items", None), list)


def parse_stac(text: str, href: str) -> list[dict[str, Any]]:
    """Items in JSON text that was read from `href`, as dicts whose asset hrefs are absolute.

    Args:
        text: An ItemCollection, an Item, or a list of Items.
        href: Path or URL of the text; relative asset hrefs start from there.

    Raises:
        BuildError: the text is not JSON, or not STAC Items.
    """
    return with_absolute_assets(check_items(parse_document(text, href), href), href)


def read_items(what: object) -> list[BasedItem]:
    """The Items in `what` as JSON, each with what its relative hrefs start from.

    Args:
        what: ItemCollection, Items, Catalog or Collection, a search (pystac-client), their JSON as a dict or a list,
            or the path or URL of JSON or STAC GeoParquet. Links of Catalogs and Collections are followed.

    Raises:
        BuildError: no Items, damaged ones, or a link that leads nowhere.
        ReadError: a URL that cannot be read.
    """
    if isinstance(what, (str, os.PathLike)):
        return [(item, None) for item in _read_file(os.fspath(what))]
    if _is_node(what):
        items = list(_from_node(what))
    elif isinstance(what, Mapping) and node_kind(what) is not None:
        base = self_href(what) or str(Path.cwd() / "collection.json")
        return [(item, None) for item in follow_links(dict(what), base)]
    else:
        items = [_item_json(one) for one in _objects(what)]
    if not items:
        raise BuildError("there are no STAC Items in what was given; check the search's dates, area and collection")
    return items


def _is_stac_file(href: str) -> bool:
    path = local_path(href)
    name = href_path(path or href).lower()
    if not name.endswith(_JSON_SUFFIXES + _PARQUET_SUFFIXES):
        return False
    if path is None:
        return True
    file = Path(path)
    if not file.is_file():
        return False
    if name.endswith(_PARQUET_SUFFIXES):
        return _holds_items(file)
    with file.open(encoding="utf-8", errors="replace") as opened:
        head = opened.read(_SNIFFED_CHARACTERS)
    return re.search(r'"stac_version"|"type"\s*:\s*"Feature(Collection)?"', head) is not None


def _is_item(what: object) -> bool:
    return hasattr(what, "to_dict") and hasattr(what, "assets") and hasattr(what, "properties")


def _is_node(what: object) -> bool:
    """Whether this is a Catalog or Collection of pystac."""
    return hasattr(what, "to_dict") and hasattr(what, "walk") and hasattr(what, "get_self_href")


def _read_file(href: str) -> list[Json]:
    path = local_path(href)
    place = href if path is None else os.path.normpath(Path.cwd() / path)
    if href_path(place).lower().endswith(_PARQUET_SUFFIXES):
        return with_absolute_assets(check_items(_parse_parquet(_read_bytes(place), href), href), place)
    try:
        document = read_document(place)
    except ReadError as error:
        if path is None:
            raise
        raise BuildError(f"{href} cannot be read: {error.reason}; give a STAC ItemCollection or Item") from error
    if node_kind(document) is not None:
        return follow_links(document, place)
    return with_absolute_assets(check_items(document, href), place)


def _read_bytes(href: str) -> bytes:
    return loop.run(read_all(href, max_bytes=get_settings().max_manifest_json_bytes))


def _objects(what: object) -> Iterable[Any]:
    if isinstance(what, Mapping):
        return check_items(what, "the dict")
    if _is_item(what):
        return [what]
    if hasattr(what, "item_collection"):
        return what.item_collection()  # type: ignore[no-any-return]  # a pystac ItemCollection
    if callable(getattr(what, "items", None)):
        return what.items()  # type: ignore[attr-defined, no-any-return]  # told by the line above
    if isinstance(what, Iterable):
        return what
    raise BuildError(f"{type(what).__name__} is not STAC; give an ItemCollection, Items, a search, or a JSON file")


def _item_json(item: Any) -> BasedItem:
    if _is_item(item):
        data = item.to_dict(include_self_link=False, transform_hrefs=False)
        return check_items(data, "the Item")[0], item.get_self_href()
    data = check_items(item, "the list")[0]
    return data, self_href(data)


def _from_node(node: Any) -> Iterator[BasedItem]:
    """The Items of a pystac Catalog or Collection, which follows its links itself: it may exist in memory alone."""
    if hasattr(node, "search"):
        raise BuildError(f"{type(node).__name__} {node.id!r} is a whole API; give its search(...)")
    for each, children, items in node.walk():
        document = each.to_dict(include_self_link=False, transform_hrefs=False)
        collection = document if node_kind(document) == "Collection" else None
        found = False
        for item in items:
            found = True
            data, base = _item_json(item)
            yield data if collection is None else inherit(data, collection), base
        if collection is not None and not found and not any(True for _ in children):
            yield from ((own, each.get_self_href()) for own in own_item(document, each.id))


def _holds_items(file: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError):
        return False
    return {"id", "assets", "stac_version"} <= set(names)


def _parse_parquet(content: bytes, href: str) -> list[Json]:
    """The Items of STAC GeoParquet, whose columns are the properties."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise BuildError(f"{href} is not Parquet ({error}); give STAC GeoParquet or JSON") from error
    return [_row_item(row) for row in rows]


def _row_item(row: Json) -> Json:
    # A column has a place for each key of any Item: those that an Item does not have are null.
    said = {name: value for name, value in _without_nulls(row).items() if name not in {"geometry", "bbox", "links"}}
    item = {name: value for name, value in said.items() if name in _ITEM_COLUMNS}
    return {**item, "properties": {name: value for name, value in said.items() if name not in _ITEM_COLUMNS}}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value.isoformat() if isinstance(value, date) else value


def to_pystac(items: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return Items of JSON values as those of pystac, for libraries that take no others."""
    from pystac import Item

    return [Item.from_dict(dict(item)) for item in items]
