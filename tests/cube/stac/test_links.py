"""Catalogs and Collections followed to their Items, on static archives that pystac writes and real ones."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest

from cube.errors import BuildError, ReadError
from cube.io.trace import trace
from cube.stac import links
from cube.stac.sources import is_stac, sources_from_stac
from cube.testing import ObjectStore, write_cog

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
BANDS = ("alpha", "beta", "gamma", "delta")
EXTENT = pystac.Extent(
    pystac.SpatialExtent([[-180.0, -90.0, 180.0, 90.0]]),
    pystac.TemporalExtent([[datetime(2000, 1, 1, tzinfo=UTC), datetime(2020, 12, 31, tzinfo=UTC)]]),
)


def _item(identifier: str, hrefs: dict[str, str], *, tiff: str | None = TIFF) -> pystac.Item:
    """An Item of a layer without dates: STAC wants a period where there is no datetime."""
    item = pystac.Item(
        identifier,
        geometry=None,
        bbox=None,
        datetime=None,
        properties={},
        start_datetime=datetime(2000, 1, 1, tzinfo=UTC),
        end_datetime=datetime(2020, 12, 31, tzinfo=UTC),
    )
    for key, href in hrefs.items():
        item.add_asset(key, pystac.Asset(href, media_type=tiff))
    return item


def _save(root: pystac.Catalog, folder: Path) -> Path:
    root.normalize_hrefs(str(folder))
    root.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    return folder / ("collection.json" if isinstance(root, pystac.Collection) else "catalog.json")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A global map as its author keeps it: four Collections, tiles of one band a file, no dates, no band metadata."""
    folder = tmp_path_factory.mktemp("map")
    root = pystac.Catalog("maps", "four layers")
    layers = pystac.Collection("layers", "of layers", EXTENT, license="CC-BY-4.0")
    root.add_child(layers)
    cover = pystac.Collection("cover", "3 tiles x 4 bands", EXTENT, license="CC0-1.0")
    cover.extra_fields["item_assets"] = {
        band: {"type": TIFF, "title": band.title(), "raster:bands": [{"nodata": 255, "unit": "%"}]} for band in BANDS
    }
    layers.add_child(cover)
    for column in range(3):
        hrefs = {}
        for number, band in enumerate(BANDS):
            path = folder / "tiles" / f"cover_{column}_{band}.tif"
            data = np.full((16, 16), 10 * column + number, "uint8")
            transform = _lattice(column)
            write_cog(path, data, crs="EPSG:4326", transform=transform, nodata=255, blocksize=128, overviews="NONE")
            hrefs[band] = f"../../../tiles/{path.name}"
        cover.add_item(_item(f"cover_{column}", hrefs, tiff=None))
    single = pystac.Collection("single", "a dataset without items", EXTENT, license="CC-BY-4.0")
    write_cog(
        folder / "single.tif", np.ones((3, 16, 16), "uint8"), crs="EPSG:4326", transform=_lattice(0), blocksize=128
    )
    single.add_asset("data", pystac.Asset("../single.tif", media_type=TIFF))
    single.add_asset("thumbnail", pystac.Asset("../small.png", media_type="image/png"))
    root.add_child(single)
    _save(root, folder)
    return folder


def _lattice(column: int) -> Any:
    from affine import Affine

    return Affine(0.1, 0, 1.6 * column, 0, -0.1, 1.6)


def test_nested_collections_give_the_sources_of_their_items(archive: Path) -> None:
    assert is_stac(archive / "catalog.json")
    sources = sources_from_stac(archive / "catalog.json")
    assert [(source.collection, source.item, source.asset) for source in sources] == [
        *(("cover", f"cover_{column}", band) for column in range(3) for band in BANDS),
        ("single", "single", "data"),
    ]
    assert [Path(source.href) for source in sources] == [
        *(archive / "tiles" / f"cover_{column}_{band}.tif" for column in range(3) for band in BANDS),
        archive / "single.tif",
    ]
    assert all(Path(source.href).is_file() for source in sources)


def test_items_take_from_their_collection_what_they_do_not_say(archive: Path) -> None:
    source = sources_from_stac(archive / "layers" / "collection.json", bands=["beta"])[0]
    (band,) = source.bands
    assert (band.name, band.nodata, band.units, band.description) == ("beta", 255.0, "%", "Beta")
    assert source.properties["license"] == "CC0-1.0"
    assert source.time == np.datetime64("2000-01-01", "us")


def test_a_collection_without_items_is_a_layer_without_time(archive: Path) -> None:
    (source,) = sources_from_stac(archive / "single" / "collection.json")
    assert (source.item, source.collection, source.time) == ("single", "single", None)
    assert source.properties == {"license": "CC-BY-4.0"}


def test_a_nested_collection_is_one_cube(archive: Path, tmp_path: Path) -> None:
    from cube.archive.build import build

    manifest = build(archive / "layers" / "collection.json", to=tmp_path / "cover.cube")
    assert tuple(band.name for band in manifest.bands) == BANDS
    assert (manifest.grid.width, manifest.grid.height, len(manifest)) == (48, 16, 12)


def test_over_http_each_document_is_read_once(archive: Path) -> None:
    local = sources_from_stac(archive / "catalog.json")
    with ObjectStore(archive) as store, trace() as recorded:
        url = store.url
        found = sources_from_stac(f"{url}/catalog.json")
    assert [(source.item, source.asset, source.bands, source.time) for source in found] == [
        (source.item, source.asset, source.bands, source.time) for source in local
    ]
    assert [source.href for source in found] == [
        f"{url}/{Path(source.href).relative_to(archive).as_posix()}" for source in local
    ]
    documents = sorted(f"{url}/{path.relative_to(archive).as_posix()}" for path in archive.rglob("*.json"))
    assert sorted(request.href for request in recorded.records) == documents


def test_objects_of_pystac_give_the_same(archive: Path) -> None:
    read = sources_from_stac(archive / "catalog.json")
    given = sources_from_stac(pystac.Catalog.from_file(str(archive / "catalog.json")))
    assert is_stac(pystac.Catalog("empty", "nothing"))
    by_id = sorted(given, key=lambda source: (source.item, source.asset))
    assert [(Path(s.href), s.item, s.collection, s.asset, s.time, s.bands, s.properties["license"]) for s in by_id] == [
        (Path(s.href), s.item, s.collection, s.asset, s.time, s.bands, s.properties["license"])
        for s in sorted(read, key=lambda source: (source.item, source.asset))
    ]


def test_a_catalog_in_memory_needs_no_files() -> None:
    root = pystac.Collection("memory", "only", EXTENT, license="CC0-1.0")
    root.add_item(_item("one", {"red": "https://host/red.tif"}))
    (source,) = sources_from_stac(root)
    assert (source.href, source.collection, source.properties["license"]) == (
        "https://host/red.tif",
        "memory",
        "CC0-1.0",
    )
    with pytest.raises(BuildError, match="no STAC Items"):
        sources_from_stac(pystac.Catalog("empty", "nothing"))


def test_a_whole_api_is_refused() -> None:
    class Client(pystac.Catalog):
        def search(self) -> None: ...

    with pytest.raises(BuildError, match=r"Client 'api' is a whole API; give its search"):
        sources_from_stac(Client("api", "everything"))


def test_a_collection_as_a_dict_starts_from_its_self_link(archive: Path) -> None:
    document = json.loads((archive / "layers" / "collection.json").read_text())
    document["links"] += [{"rel": "self", "href": (archive / "layers" / "collection.json").as_posix()}]
    assert is_stac(document)
    assert len(sources_from_stac(document)) == 12


# What a Collection says of its Items


def _collection(**said: Any) -> dict[str, Any]:
    return {"type": "Collection", "stac_version": "1.0.0", "id": "made", "links": [], **said}


def _plain(assets: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": "one",
        "properties": {"datetime": None, **properties},
        "assets": {key: {"href": f"https://host/{key}.tif", **asset} for key, asset in assets.items()},
        "links": [],
    }


def _inherited(item: dict[str, Any], collection: dict[str, Any]) -> dict[str, Any]:
    (source,) = sources_from_stac(links.inherit(item, collection))
    (band,) = source.bands
    return {"name": band.name, "aliases": band.aliases, "nodata": band.nodata, "scale": band.scale}


def test_item_assets_yield_to_the_item() -> None:
    collection = _collection(item_assets={"B4": {"type": "image/png", "raster:bands": [{"nodata": 0, "scale": 0.1}]}})
    item = _plain({"B4": {"type": TIFF}})
    assert _inherited(item, collection) == {"name": "B4", "aliases": (), "nodata": 0.0, "scale": 0.1}
    item = _plain({"B4": {"type": TIFF, "raster:bands": [{"nodata": 7}]}})
    assert _inherited(item, collection) == {"name": "B4", "aliases": (), "nodata": 7.0, "scale": None}


@pytest.mark.parametrize("place", ["summaries", "bands"])
def test_summaries_tell_bands_by_name(place: str) -> None:
    said = [{"name": "B4", "common_name": "red", "nodata": 3}, {"name": "B5", "common_name": "nir"}]
    collection = _collection(summaries={"eo:bands": said}) if place == "summaries" else _collection(bands=said)
    red = {"name": "red", "aliases": ("B4",), "nodata": 3.0, "scale": None}
    assert _inherited(_plain({"B4": {}}), collection) == red
    assert _inherited(_plain({"B4": {"eo:bands": [{"name": "B4"}]}}), collection) == red
    assert _inherited(_plain({"B4": {"eo:bands": [{"name": "B4", "nodata": 4}]}}), collection)["nodata"] == 4.0
    assert _inherited(_plain({"other": {}}), collection)["name"] == "other"


def test_the_one_summary_of_a_raster_is_that_of_the_one_asset() -> None:
    collection = _collection(summaries={"raster:bands": [{"nodata": -9999, "scale": 0.5}]})
    assert _inherited(_plain({"a": {}}), collection) == {"name": "a", "aliases": (), "nodata": -9999.0, "scale": 0.5}
    two = sources_from_stac(links.inherit(_plain({"a": {}, "b": {}}), collection))
    assert [source.bands[0].nodata for source in two] == [None, None]


def test_damaged_collections_say_nothing() -> None:
    collection = _collection(license=3, item_assets=[], summaries=["a"], bands="b")
    (source,) = sources_from_stac(links.inherit(_plain({"a": {}}, license="MIT"), collection))
    assert source.properties["license"] == "MIT"
    (source,) = sources_from_stac(links.inherit(_plain({"a": {}}), collection))
    assert "license" not in source.properties


# Links that cannot be followed


def _write(folder: Path, **documents: Any) -> Path:
    for name, document in documents.items():
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        (folder / f"{name}.json").write_bytes(content)
    return folder / "root.json"


def _links(*hrefs: str, rel: str = "child", **said: Any) -> dict[str, Any]:
    return {"stac_version": "1.0.0", "type": "Catalog", "id": "c", **said} | {
        "links": [{"rel": rel, "href": href} for href in hrefs]
    }


@pytest.mark.parametrize(
    ("child", "words"),
    [
        (None, r"root\.json links to .*child\.json \(rel=child\), but: there is no such object"),
        (b"<html>", r"root\.json links to .*child\.json \(rel=child\): .*child\.json is not JSON"),
        (b"\xff\xfe", r"root\.json links to .*child\.json \(rel=child\): .*child\.json is not JSON"),
        ({"type": "Topology"}, r"child\.json holds Topology, not STAC Items"),
        (_links(rel="item"), r"root\.json leads to no STAC Items"),
        (_links("https://host/items", rel="items"), r"child\.json is of an API: .*\(https://host/items\).* search"),
        (_collection(assets={"data": {}}), r"child\.json: asset 'data' of Item 'made' has no href"),
        (_collection(id=3, assets={"data": {"href": "a.tif"}}), r"child\.json: feature 0 has no id"),
    ],
)
def test_errors_name_the_document(tmp_path: Path, child: object, words: str) -> None:
    root = _write(tmp_path, root=_links("child.json"), **({} if child is None else {"child": child}))
    with pytest.raises(BuildError, match=words):
        sources_from_stac(root)


def test_loops_end_and_items_count_once(tmp_path: Path) -> None:
    item = _plain({"a": {}})
    root = _write(
        tmp_path,
        root=_links("child.json", "./root.json", "./child.json"),
        child=_links("root.json", "item.json", "../" + tmp_path.name + "/item.json"),
        item=item,
    )
    assert [source.item for source in sources_from_stac(root)] == ["one"]


def test_a_long_chain_is_followed(tmp_path: Path) -> None:
    chain = {f"c{n}": _links(f"c{n + 1}.json") for n in range(1100)}
    root = _write(tmp_path, root=_links("c0.json"), **chain, c1100=_plain({"a": {}}))
    assert len(sources_from_stac(root)) == 1


def test_too_many_documents_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _write(tmp_path, root=_links("a.json", "b.json"), a=_plain({"a": {}}), b=_plain({"b": {}}))
    monkeypatch.setattr(links, "MAX_DOCUMENTS", 3)
    assert len(sources_from_stac(root)) == 2
    monkeypatch.setattr(links, "MAX_DOCUMENTS", 2)
    with pytest.raises(BuildError, match=r"leads to more than 2 files"):
        sources_from_stac(root)


@dataclass(frozen=True, slots=True)
class Site:
    folder: Path
    url: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("server")
    with ObjectStore(folder) as opened:
        yield Site(folder, opened.url)


@pytest.fixture
def site(server: Site) -> Site:
    """A folder of its own for each test, and its address."""
    folder = Path(tempfile.mkdtemp(dir=server.folder))
    return Site(folder, f"{server.url}/{folder.name}")


@pytest.mark.parametrize("target", ["file:///etc/hosts.json", "https://elsewhere/a.json", "s3://bucket/a.json"])
def test_a_remote_catalog_stays_on_its_host(site: Site, target: str) -> None:
    _write(site.folder, root=_links(target))
    with pytest.raises(BuildError, match=rf"root\.json links to {target} \(rel=child\), which is not on the same host"):
        sources_from_stac(f"{site.url}/root.json")


@pytest.mark.parametrize("target", ["file:///etc/passwd.tif", "/vsizip/a.tif"])
def test_remote_items_name_no_file_of_this_machine(site: Site, target: str) -> None:
    item = _plain({"a": {"href": target, "type": TIFF}})
    _write(site.folder, root=_links("item.json", rel="item"), item=item)
    for name in ("root", "item"):
        with pytest.raises(BuildError, match=r"asset 'a' of Item 'one' is .*, a file of this machine"):
            sources_from_stac(f"{site.url}/{name}.json")


def test_a_local_catalog_may_lead_to_a_host(tmp_path: Path, site: Site) -> None:
    _write(site.folder, item=_plain({"a": {"href": "./a.tif"}}))
    root = _write(tmp_path, root=_links(f"{site.url}/item.json", rel="item"))
    assert [source.href for source in sources_from_stac(root)] == [f"{site.url}/a.tif"]


def test_a_missing_root_is_named(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"/none\.json"):
        sources_from_stac(f"{site.url}/none.json")
    with pytest.raises(BuildError, match=r"none\.json cannot be read: there is no such object"):
        sources_from_stac(tmp_path / "none.json")


def test_catalogs_from_before_stac_1_0_have_no_type(tmp_path: Path) -> None:
    old = {"stac_version": "0.9.0", "id": "c", "links": [{"rel": "item", "href": "item.json"}]}
    root = _write(tmp_path, root=old, item=_plain({"a": {}}))
    (source,) = sources_from_stac(root)
    assert source.collection is None
    _write(tmp_path, root={**old, "extent": {}})
    (source,) = sources_from_stac(root)
    assert source.collection == "c"


# Real Collections


@pytest.fixture(scope="module")
def real(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example catalogues of stactools' packages, in folders again as their links have them."""
    folder = tmp_path_factory.mktemp("real")
    for package in (test_data / "stac").glob("stactools-packages__*"):
        for path in package.glob("examples__*.json"):
            target = folder.joinpath(package.name, *path.name.split("__"))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return folder


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("stactools-packages__noaa-nclimgrid/examples/monthly/collection.json", 2),
        ("stactools-packages__noaa-nclimgrid/examples/daily-scaled/collection.json", 2),
        ("stactools-packages__hls/examples/collection.json", 2),
        ("stactools-packages__cop-dem/examples/cop-dem-glo-30/collection.json", 1),
        ("stactools-packages__sentinel2/examples/catalog.json", 1),
    ],
)
def test_real_collections(real: Path, name: str, items: int) -> None:
    sources = sources_from_stac(real / name)
    assert len({source.item for source in sources}) == items
    for source in sources:
        assert "://" in source.href or Path(source.href).is_relative_to(real)
        assert source.properties["license"] == "proprietary"
