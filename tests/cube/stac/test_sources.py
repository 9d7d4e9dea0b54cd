"""STAC Items to sources, on Items made here and on all real ones there are."""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest

from cube.errors import BuildError, SelectionError
from cube.source import Source
from cube.stac.sources import is_stac, parse_stac, sources_from_stac

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail any test in which a library resolves a link."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection was made: {arguments}")

    def connect(self: socket.socket, address: Any) -> None:
        if address[0] != "127.0.0.1":  # which event loops on Windows connect to when they are made
            refuse(address)
        return connect_to(self, address)

    connect_to = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def _item(assets: dict[str, Any], identifier: str = "one", **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": identifier,
        "collection": "made",
        "geometry": None,
        "links": [],
        "properties": {"datetime": "2024-05-01T10:20:30.123456Z", **properties},
        "assets": {key: {"href": f"https://host/{key}.tif", "type": TIFF, **asset} for key, asset in assets.items()},
    }


def _names(sources: list[Source]) -> dict[str, list[str]]:
    return {source.asset: [band.name for band in source.bands] for source in sources}


# Bands of an asset


def test_source_says_what_the_item_says() -> None:
    item = _item({"B04": {"eo:bands": [{"name": "B04", "common_name": "red"}]}}, **{"eo:cloud_cover": 3})
    (source,) = sources_from_stac(item)
    assert (source.href, source.item, source.collection, source.asset) == (
        "https://host/B04.tif",
        "one",
        "made",
        "B04",
    )
    assert source.time == np.datetime64("2024-05-01T10:20:30.123456", "us")
    assert source.time is not None
    assert source.time.dtype == np.dtype("datetime64[us]")
    assert source.properties == item["properties"]
    (band,) = source.bands
    assert (band.name, band.aliases, band.nodata, band.scale, band.offset, band.units, band.classes) == (
        "red",
        ("B04",),
        None,
        None,
        None,
        None,
        (),
    )


def test_bands_of_stac_1_0() -> None:
    asset = {
        "title": "Red",
        "eo:bands": [{"name": "OLI_B4", "common_name": "red"}],
        "raster:bands": [{"nodata": 0, "scale": 2.75e-05, "offset": -0.2, "unit": "1", "data_type": "uint16"}],
    }
    (band,) = sources_from_stac(_item({"SR_B4": asset}))[0].bands
    assert (band.nodata, band.scale, band.offset, band.units, band.description) == (0.0, 2.75e-05, -0.2, "1", "Red")
    assert band.aliases == ("SR_B4", "OLI_B4")


def test_bands_of_stac_1_1_take_what_they_lack_from_the_asset() -> None:
    asset = {
        "nodata": "nan",
        "unit": "K",
        "raster:scale": 0.1,
        "bands": [
            {"name": "a", "eo:common_name": "red", "raster:offset": 5, "description": "first"},
            {"name": "b", "nodata": "-inf", "raster:scale": 0.2, "unit": "m"},
        ],
    }
    red, other = sources_from_stac(_item({"stack": asset}))[0].bands
    assert (red.name, red.aliases, red.description, red.scale, red.offset, red.units) == (
        "red",
        ("a",),
        "first",
        0.1,
        5.0,
        "K",
    )
    assert red.nodata is not None
    assert math.isnan(red.nodata)
    assert (other.name, other.nodata, other.scale, other.units, other.description) == ("b", -math.inf, 0.2, "m", None)


def test_common_name_in_the_asset_of_stac_1_1() -> None:
    assert _names(sources_from_stac(_item({"B8": {"eo:common_name": "nir"}}))) == {"B8": ["nir"]}


@pytest.mark.parametrize(
    ("said", "nodata"), [(0, 0.0), (-9999, -9999.0), ("inf", math.inf), ("255", 255.0), ("none", None), (True, None)]
)
def test_nodata_forms(said: object, nodata: float | None) -> None:
    (band,) = sources_from_stac(_item({"a": {"raster:bands": [{"nodata": said}]}}))[0].bands
    assert band.nodata == nodata


@pytest.mark.parametrize(
    "asset",
    [
        {
            "classification:classes": [
                {"value": 0, "name": "none", "nodata": True},
                {"value": 4.0, "description": "Wood"},
            ]
        },
        {
            "raster:bands": [
                {"classification:classes": [{"value": 0, "name": "none", "nodata": True}, {"value": 4, "name": "Wood"}]}
            ]
        },
        {
            "raster:bands": [{"nodata": 0}],
            "file:values": [{"values": [0], "summary": "none"}, {"values": [4], "summary": "Wood"}],
        },
    ],
)
def test_classes(asset: dict[str, Any]) -> None:
    (band,) = sources_from_stac(_item({"scl": asset}))[0].bands
    assert band.classes == ((0, "none"), (4, "Wood"))
    assert band.nodata == 0.0


def test_damaged_band_lists_say_nothing() -> None:
    asset = {
        "eo:bands": "red",
        "raster:bands": [None, {"scale": "nan", "unit": 7}],
        "classification:classes": [3, {"value": "x"}],
        "file:values": [{"values": 5}],
    }
    first, second = sources_from_stac(_item({"a": asset}))[0].bands
    assert (first.name, second.name) == ("a_1", "a_2")
    assert (second.scale, second.units, second.classes) == (None, None, ())


def test_band_numbers_of_old_items() -> None:
    item = _item({"SR_B4.TIF": {"eo:bands": [1]}, "odd": {"eo:bands": [7]}})
    item["properties"]["eo:bands"] = [{"name": "SR_B1", "common_name": "coastal"}, {"name": "B4", "common_name": "red"}]
    assert _names(sources_from_stac(item)) == {"SR_B4.TIF": ["red"], "odd": ["odd"]}


def test_an_item_that_leaves_out_its_bands_follows_its_collection() -> None:
    full, bare = _item({"B04": {"eo:bands": [{"common_name": "red"}]}}), _item({"B04": {}}, "two")
    other = _item({"B04": {}}, "three") | {"collection": "another"}
    assert [source.bands[0].name for source in sources_from_stac([full, bare, other])] == ["red", "red", "B04"]


# Which assets


def test_only_rasters_are_taken() -> None:
    item = _item(
        {
            "plain": {"type": "image/tiff"},
            "old": {"type": "image/vnd.stac.geotiff; cloud-optimized=true", "href": "https://host/X.TIF"},
            "untyped": {"type": None, "href": "https://host/a.TIFF?sig=1"},
            "octets": {"type": "application/octet-stream", "roles": ["data"]},
            "octets_no_role": {"type": "application/octet-stream"},
            "mask": {"roles": ["metadata", "cloud"]},
            "jp2": {"type": "image/jp2", "roles": ["data"], "href": "https://host/a.jp2"},
            "xml": {"type": "application/xml", "href": "https://host/a.xml"},
            "netcdf": {"type": None, "href": "https://host/a.nc", "roles": ["data"]},
            "small": {"roles": ["thumbnail"]},
            "browse": {"roles": ["overview", "visual"]},
            "misspelt": {"role": ["overview"]},
            "preview": {},
        }
    )
    assert [source.asset for source in sources_from_stac(item)] == ["plain", "old", "untyped", "octets", "mask"]


def test_no_raster_at_all_is_an_error() -> None:
    with pytest.raises(BuildError, match=r"none of 1 STAC Items has a GeoTIFF asset; .* image/jp2"):
        sources_from_stac(_item({"a": {"type": "image/jp2"}}))


def test_bands_select_whole_sources() -> None:
    item = _item({"B04": {"eo:bands": [{"common_name": "red"}]}, "image": {"bands": [{"name": "r"}, {"name": "n"}]}})
    assert _names(sources_from_stac(item, bands=["B04"])) == {"B04": ["red"]}
    assert _names(sources_from_stac(item, bands=["n"])) == {"image": ["r", "n"]}
    with pytest.raises(SelectionError, match=r"'swir'; they have red \(B04\), r, n"):
        sources_from_stac(item, bands=["red", "swir"])


# Time


@pytest.mark.parametrize(
    ("properties", "time"),
    [
        ({"datetime": "2024-05-01T10:00:00+02:00"}, "2024-05-01T08:00:00"),
        ({"datetime": "2024-05-01"}, "2024-05-01"),
        ({"datetime": "2024-04-19 04:59:04.220006+00:00"}, "2024-04-19T04:59:04.220006"),
        ({"datetime": "2024-04-19T04:59:04.123456789Z"}, "2024-04-19T04:59:04.123456"),
        ({"datetime": None, "start_datetime": "1895-01-01T00:00:00Z", "end_datetime": "1895-01-31Z"}, "1895-01-01"),
        ({"datetime": None}, None),
    ],
)
def test_time(properties: dict[str, Any], time: str | None) -> None:
    found = sources_from_stac(_item({"a": {}}, **properties))[0].time
    assert found == (None if time is None else np.datetime64(time, "us"))


@pytest.mark.parametrize("text", ["yesterday", 5])
def test_bad_time_names_the_item(text: object) -> None:
    with pytest.raises(BuildError, match=r"Item 'one' has a datetime"):
        sources_from_stac(_item({"a": {}}, datetime=text))


# Forms and places


def _forms(tmp_path: Path) -> Iterator[object]:
    items = [_item({"a": {}, "b": {}}, "one"), _item({"a": {}, "b": {}}, "two")]
    collection = {"type": "FeatureCollection", "features": items}
    yield items
    yield iter(items)
    yield collection
    yield parse_stac(json.dumps(collection), "https://elsewhere/items.json")
    yield parse_stac(json.dumps(items), "https://elsewhere/items.json")
    path = tmp_path / "items.json"
    path.write_text(json.dumps(collection), encoding="utf-8-sig")
    yield path
    yield str(path)
    yield path.as_uri()
    objects = [pystac.Item.from_dict(item) for item in items]
    yield objects
    yield pystac.ItemCollection(objects)

    class Search:
        def item_collection(self) -> pystac.ItemCollection:
            return pystac.ItemCollection(objects)

    class Pages:
        def items(self) -> Iterator[pystac.Item]:
            yield from objects

    yield Search()
    yield Pages()


def test_every_form_gives_the_same_sources(tmp_path: Path) -> None:
    found = [
        [(source.href, source.item, source.time, source.bands) for source in sources_from_stac(form)]
        for form in _forms(tmp_path)
    ]
    assert len(found) == 12
    assert all(sources == found[0] for sources in found)
    assert [(href, item) for href, item, *_ in found[0]] == [
        ("https://host/a.tif", "one"),
        ("https://host/b.tif", "one"),
        ("https://host/a.tif", "two"),
        ("https://host/b.tif", "two"),
    ]


def test_is_stac(tmp_path: Path) -> None:
    *objects, pages = _forms(tmp_path)
    assert [is_stac(form) for form in objects if not isinstance(form, Iterator)] == [True] * 10
    assert not is_stac(pages)  # `items` is a method of many things
    refs = tmp_path / "refs.json"
    refs.write_text('{"version": 1, "refs": {".zgroup": "{}"}}')
    others = [refs, tmp_path / "none.json", tmp_path, "a.tif", ["a.tif"], [], {"type": "Other"}, 5]
    assert [is_stac(other) for other in others] == [False] * len(others)
    assert is_stac("https://host/items.json?token=1")
    assert not is_stac("https://host/a.tif")


@pytest.mark.parametrize(
    ("base", "href", "absolute"),
    [
        ("https://host/a/b/items.json", "./x.tif", "https://host/a/b/x.tif"),
        ("https://host/a/b/items.json?token=1", "../x.tif", "https://host/a/x.tif"),
        ("s3://bucket/a/items.json", "x.tif", "s3://bucket/a/x.tif"),
        ("s3://bucket/a/items.json", "https://host/x.tif?sig=a%2Fb", "https://host/x.tif?sig=a%2Fb"),
    ],
)
def test_hrefs_start_from_the_url_of_the_text(base: str, href: str, absolute: str) -> None:
    text = json.dumps(_item({"a": {"href": href}}))
    assert sources_from_stac(parse_stac(text, base))[0].href == absolute


def test_hrefs_start_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hrefs = {"a": "./x#1.tif", "b": "../y.tif", "c": (tmp_path / "z.tif").as_uri(), "d": str(tmp_path / "w.tif")}
    item = _item({key: {"href": href} for key, href in hrefs.items()})
    item["links"] = [{"rel": "self", "href": "https://host/items/one"}]  # where it came from, not where it is
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "items.json").write_text(json.dumps(item))
    monkeypatch.chdir(tmp_path)
    expected = [tmp_path / "sub" / "x#1.tif", tmp_path / "y.tif", tmp_path / "z.tif", tmp_path / "w.tif"]
    for path in ("sub/items.json", tmp_path / "sub" / "items.json"):
        assert [Path(source.href) for source in sources_from_stac(path)] == expected


def test_hrefs_of_objects_start_from_their_self_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = _item({"a": {"href": "./x.tif"}})
    item = pystac.Item.from_dict(data)
    assert Path(sources_from_stac(item)[0].href) == tmp_path / "x.tif"
    assert Path(sources_from_stac([data])[0].href) == tmp_path / "x.tif"
    item.set_self_href("https://host/b/item.json")
    assert sources_from_stac([item])[0].href == "https://host/b/x.tif"
    data["links"] = [{"rel": "self", "href": "https://host/b/item.json"}]
    assert sources_from_stac(data)[0].href == "https://host/b/x.tif"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ([], "no STAC Items in what was given"),
        ({"type": "FeatureCollection", "features": []}, "holds no STAC Items"),
        ({"type": "FeatureCollection"}, "holds FeatureCollection, not STAC Items"),
        ({"type": "Collection", "id": "c"}, "leads to no STAC Items"),
        ({"type": "FeatureCollection", "features": [{"type": "Feature", "id": "v", "properties": {}}]}, "feature 0"),
        ([{"type": "Feature", "id": "a", "properties": {}, "assets": {"b": {}}}], "asset 'b' of Item 'a' has no href"),
        ([3], "holds int"),
        (3, "int is not STAC"),
        ("no/such/items.json", "cannot be read"),
    ],
)
def test_errors_say_what_was_found(what: object, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        sources_from_stac(what)


@pytest.mark.parametrize("text", ["", "<html>", "[" * 100_000, '{"type": "Catalog"}'])
def test_text_that_is_not_stac(text: str) -> None:
    with pytest.raises(BuildError, match=r"https://host/items\.json"):
        parse_stac(text, "https://host/items.json")


# Real Items

S2_PLANETARY = {
    "AOT": "AOT", "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "B05", "B06": "B06",
    "B07": "B07", "B08": "nir", "B8A": "B8A", "B09": "B09", "B11": "swir16", "B12": "swir22", "SCL": "SCL",
    "WVP": "WVP", "visual": "visual_red visual_green visual_blue",
}  # fmt: skip
LANDSAT_8 = {
    "coastal": "coastal", "blue": "blue", "green": "green", "red": "red", "nir08": "nir08", "swir16": "swir16",
    "swir22": "swir22", "lwir11": "lwir11", "qa_pixel": "qa_pixel", "qa_radsat": "qa_radsat",
    "qa_aerosol": "qa_aerosol", "qa": "qa", "atran": "atran", "cdist": "cdist", "drad": "drad", "urad": "urad",
    "trad": "trad", "emis": "emis", "emsd": "emsd",
}  # fmt: skip
HLS_SENTINEL = {
    "coastal_aerosol": "coastal", "blue": "blue", "green": "green", "red": "red", "red_edge_1": "red_edge_1",
    "red_edge_2": "red_edge_2", "red_edge_3": "red_edge_3", "nir_broad": "nir_broad", "nir_narrow": "nir_narrow",
    "water_vapor": "water_vapor", "cirrus": "cirrus", "swir_1": "swir16", "swir_2": "swir22", "fmask": "fmask",
    "saa": "saa", "sza": "sza", "vaa": "vaa", "vza": "vza",
}  # fmt: skip
REAL: dict[str, dict[str, str]] = {
    "stac-utils__stac-geoparquet/tests__data__sentinel-2-l2a-pc.json": S2_PLANETARY,
    "opendatacube__odc-stac/tests__data__site1-20200606-tall-strip-africa.geojson": S2_PLANETARY,
    "stac-utils__stac-geoparquet/tests__data__naip-pc.json": {"image": "red green blue nir"},
    "stac-utils__stac-geoparquet/tests__data__planet-nicfi-analytic-pc.json": {"data": "blue green red nir data_5"},
    "stac-utils__stac-geoparquet/tests__data__sentinel-1-rtc-pc.json": {"vh": "vh", "vv": "vv"},
    "stac-utils__stac-geoparquet/tests__data__cop-dem-glo-30-pc.json": {"data": "data"},
    "stactools-packages__cop-dem/examples__cop-dem-glo-30__Copernicus_DSM_COG_10_N53_00_W115_00_DEM"
    "__Copernicus_DSM_COG_10_N53_00_W115_00_DEM.json": {key: key for key in ("data", "edm", "flm", "wbm", "hem")},
    "stactools-packages__hls/examples__HLS.S30.T19LDD.2022166T144741.v2.0"
    "__HLS.S30.T19LDD.2022166T144741.v2.0.json": HLS_SENTINEL,
    "stactools-packages__landsat/examples__landsat-c2-l2__LC08_L2SP_047027_20201204_02_T1"
    "__LC08_L2SP_047027_20201204_02_T1.json": LANDSAT_8,
    "stactools-packages__noaa-nclimgrid/examples__monthly__nclimgrid-189501__nclimgrid-189501.json": {
        key: key for key in ("prcp", "tavg", "tmax", "tmin")
    },
    "opendatacube__odc-stac/tests__data__lidar_dem.json": {"dem": "dem"},
    "opendatacube__odc-stac/tests__data__only_crs_proj.json": {
        f"{kind}_PC_{part}": f"{kind}_PC_{part}" for kind in ("BS", "PV", "NPV") for part in (10, 50, 90)
    },
    "opendatacube__odc-stac/tests__data__LC08_L2SR_081119_20200101_20200823_02_T2.json": {
        "SR_B1.TIF": "coastal", "SR_B2.TIF": "blue", "SR_B3.TIF": "green", "SR_B4.TIF": "red", "SR_B5.TIF": "nir08",
        "SR_B6.TIF": "swir16", "SR_B7.TIF": "swir22", "SR_QA_AEROSOL.TIF": "SR_QA_AEROSOL",
        "QA_PIXEL.TIF": "QA_PIXEL", "QA_RADSAT.TIF": "QA_RADSAT",
    },
}  # fmt: skip
NO_RASTERS = {
    "3dep-lidar-copc-pc.json": "laszip",
    "umbra-sar.json": "image/png",
    "us-census-pc.json": "parquet",
    "S2A_T01LAC_20200717T221944_L1C.json": "image/jp2",
    "collection.json": r"links to .*\.json \(rel=item\), but: there is no such folder",
    "catalog.json": r"links to .*collection\.json \(rel=child\), but: there is no such folder",
}


@pytest.mark.parametrize("name", REAL)
def test_names_of_real_bands(test_data: Path, name: str) -> None:
    sources = sources_from_stac(test_data / "stac" / name)
    first = [source for source in sources if source.item == sources[0].item]
    assert {key: " ".join(names) for key, names in _names(first).items()} == REAL[name]
    by_asset = {(source.asset, tuple(band.name for band in source.bands)) for source in sources}
    assert len(by_asset) == len({asset for asset, _ in by_asset})


def test_all_real_items(test_data: Path) -> None:
    """Each file gives sources that are told apart and absolute, or an error that says what it holds."""
    refused = 0
    for path in sorted((test_data / "stac").glob("*/*json")):
        assert is_stac(path)
        reason = next((words for ending, words in NO_RASTERS.items() if path.name.endswith(ending)), None)
        if reason is not None:
            refused += 1
            with pytest.raises(BuildError, match=reason):
                sources_from_stac(path)
            continue
        sources = sources_from_stac(path)
        bands = [(source.item, band.name) for source in sources for band in source.bands]
        assert len(set(bands)) == len(bands)
        for source in sources:
            assert "://" in source.href or Path(source.href).is_absolute()
            assert source.href.lower().endswith((".tif", ".tiff"))
            assert source.time is not None
            json.dumps(source.properties)
    assert refused == 14


def test_facts_of_real_bands(test_data: Path) -> None:
    def bands(name: str) -> dict[str, Any]:
        return {band.name: band for source in sources_from_stac(test_data / "stac" / name) for band in source.bands}

    landsat = bands("stac-utils__stac-geoparquet/tests__data__landsat-c2-l2-pc.json")
    assert (landsat["red"].scale, landsat["red"].offset, landsat["red"].nodata) == (2.75e-05, -0.2, 0.0)
    assert (landsat["lwir11"].units, landsat["lwir11"].aliases) == ("kelvin", ("TIRS_B10",))
    assert (landsat["qa_pixel"].nodata, landsat["qa_pixel"].scale) == (1.0, None)
    cover = bands("stac-utils__stac-geoparquet/tests__data__io-lulc-pc.json")["data"]
    assert cover.classes[:3] == ((0, "No Data"), (1, "Water"), (2, "Trees"))
    climate = bands("stactools-packages__noaa-nclimgrid/examples__monthly__nclimgrid-189501__nclimgrid-189501.json")
    assert math.isnan(climate["prcp"].nodata)
    sentinel = bands(
        "stactools-packages__sentinel2/examples__sentinel2-l2a-example__S2A_T07HFE_20190212T192646_L2A"
        "__S2A_T07HFE_20190212T192646_L2A.json"
    )
    assert sentinel["scl"].classes[4] == (4, "vegetation")
    assert {"red", "red_20m", "red_60m", "rededge1", "visual_red", "nir"} <= set(sentinel)


def test_two_sensors_of_a_real_collection_agree(test_data: Path) -> None:
    """In HLS both near infrared bands of Sentinel-2 claim `nir`, so Landsat's one is not called so beside them."""
    items = []
    for path in sorted((test_data / "stac" / "stactools-packages__hls").glob("*v2.0.json")):
        items += parse_stac(path.read_text(), str(path))
    assert len(items) == 2
    sources = sources_from_stac(items, bands=["nir_narrow", "red"])
    assert [(source.item[:7], source.bands[0].name) for source in sources] == [
        ("HLS.L30", "red"),
        ("HLS.L30", "nir_narrow"),
        ("HLS.S30", "red"),
        ("HLS.S30", "nir_narrow"),
    ]


def test_pystac_reads_real_items_alike(test_data: Path) -> None:
    path = test_data / "stac" / "opendatacube__odc-stac" / "tests__data__site1-20200606-tall-strip-africa.geojson"
    collection = pystac.ItemCollection.from_file(str(path))
    read, given = sources_from_stac(path), sources_from_stac(collection)
    assert [(s.href, s.item, s.time, s.bands) for s in read] == [(s.href, s.item, s.time, s.bands) for s in given]
    assert len(read) == 144
