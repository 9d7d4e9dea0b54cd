"""Versions of one acquisition: which is kept, which is dropped and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.archive.acquisitions import Superseded, count_words, drop_superseded
from cube.source import Source
from cube.stac.sources import sources_from_stac

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def _source(item: str, time: str | None = "2024-06-11T10:06:01", **properties: Any) -> Source:
    asset, collection = properties.pop("asset", "B04"), properties.pop("collection", "made")
    href = properties.pop("href", f"https://host/{item}/{asset}.tif")
    moment = None if time is None else np.datetime64(time, "us")
    return Source(href=href, item=item, collection=collection, asset=asset, time=moment, properties=properties)


def _sentinel2(made: str, baseline: str, strip: str | None = "20240611T100600", **more: Any) -> Source:
    """An item as the Planetary Computer describes it: `datetime` is the datatake's, the same for all of its tiles."""
    said = {
        "platform": "Sentinel-2A",
        "s2:mgrs_tile": "33UVP",
        "s2:datatake_id": f"GS2A_20240611T100601_046855_N{baseline}",
        "s2:processing_baseline": baseline,
        "s2:generation_time": f"{made[:4]}-{made[4:6]}-{made[6:8]}T00:00:00.123Z",
    }
    if strip is not None:
        said["s2:datastrip_id"] = f"S2A_OPER_MSI_L2A_DS_ESRI_{made}_S{strip}_N{baseline}"
    return _source(f"S2A_MSIL2A_20240611T100601_R022_T33UVP_{made}", **{**said, **more})


def _kept(*sources: Source) -> list[str]:
    """The ids of the items that are kept, where nothing is lost: what is dropped is reported once."""
    kept, dropped = drop_superseded(sources)
    assert len(kept) + sum(len(each.sources) for each in dropped) == len(sources)
    assert {each.by for each in dropped} <= {source.item for source in kept}
    return [source.item for source in kept]


# Sentinel-2


def test_the_highest_baseline_of_a_datatake_is_kept_however_old() -> None:
    old, new = _sentinel2("20240613T000000", "05.09"), _sentinel2("20240612T000000", "05.10")
    kept, (dropped,) = drop_superseded([old, new])
    assert kept == [new]
    assert dropped == Superseded(
        item=old.item, collection="made", by=new.item, reason="processing baseline 05.10, not 05.09", sources=(old,)
    )
    assert str(dropped) == f"{old.item} is superseded by {new.item}: processing baseline 05.10, not 05.09"


def test_the_newest_processing_of_a_datastrip_is_kept() -> None:
    old, new = _sentinel2("20240612T000000", "05.10"), _sentinel2("20240613T000000", "05.10")
    assert _kept(new, old) == [new.item]
    assert drop_superseded([new, old])[1][0].reason == "processed 2024-06-13T00:00:00, not 2024-06-12T00:00:00"


def test_halves_of_a_tile_from_two_datastrips_are_both_kept() -> None:
    north = _sentinel2("20240611T130912", "02.14", "20240611T100600")
    south = _sentinel2("20240611T150652", "02.14", "20240611T100812")
    assert _kept(north, south) == [north.item, south.item]


def test_each_half_is_replaced_by_its_own_reprocessing() -> None:
    north = [_sentinel2(f"2024061{day}T000000", "02.14", "20240611T100600") for day in (1, 2)]
    south = [_sentinel2(f"2024061{day}T000001", "02.14", "20240611T100812") for day in (1, 3)]
    assert _kept(*north, *south) == [north[1].item, south[1].item]


def test_halves_of_another_baseline_go_together() -> None:
    strips = ["20240611T100600", "20240611T100800"]
    old = [_sentinel2(f"20240611T00000{n}", "02.14", strip) for n, strip in enumerate(strips)]
    new = [_sentinel2(f"20250101T00000{n}", "05.00", strip) for n, strip in enumerate(strips)]
    assert _kept(*old, *new) == [each.item for each in new]


def test_nothing_is_guessed_where_no_datastrip_is_said() -> None:
    one, other = _sentinel2("20240611T130912", "02.14", None), _sentinel2("20240611T100652", "02.14", None)
    assert len(_kept(one, other)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"s2:mgrs_tile": "33UWP", "item": "S2A_MSIL2A_20240611T100601_R022_T33UWP_20240613T000000"},
        {"item": "S2A_MSIL2A_20240611T100559_R022_T33UVP_20240613T000000"},
        {"item": "S2B_MSIL2A_20240611T100601_R022_T33UVP_20240613T000000"},
        {"item": "S2A_MSIL1C_20240611T100601_R022_T33UVP_20240613T000000"},
        {"collection": "another"},
        {"asset": "B08"},
    ],
)
def test_what_is_not_the_same_acquisition_stays(change: dict[str, Any]) -> None:
    old, new = _sentinel2("20240612T000000", "02.14"), _sentinel2("20240613T000000", "05.10")
    said = {**new.properties, "collection": "made", "item": new.item, **change}
    assert len(_kept(old, _source(said.pop("item"), **said))) == 2


def _earth_search(number: int, product: str | None, **properties: Any) -> Source:
    said = {"platform": "sentinel-2a", "grid:code": "MGRS-33UVP", **properties}
    return _source(f"S2A_33UVP_20240611_{number}_L2A", **said, **({"s2:product_uri": product} if product else {}))


def test_sequence_numbers_of_items_order_nothing_by_themselves() -> None:
    assert len(_kept(_earth_search(0, None), _earth_search(1, None))) == 2
    assert len(_kept(*(_earth_search(n, None, **{"s2:processing_baseline": "05.10"}) for n in (0, 1)))) == 2
    assert _kept(*(_earth_search(n, None, **{"s2:processing_baseline": f"05.0{9 - n}"}) for n in (0, 1))) == [
        "S2A_33UVP_20240611_0_L2A"
    ]


def test_the_name_of_the_product_says_what_the_item_leaves_out() -> None:
    products = [f"S2A_MSIL2A_20240611T100601_N0{baseline}_R022_T33UVP_20240612T000000" for baseline in (214, 500)]
    assert _kept(*(_earth_search(n, f"{product}.SAFE") for n, product in enumerate(products))) == [
        "S2A_33UVP_20240611_1_L2A"
    ]
    old = [_source(f"item{n}", **{"sentinel:product_id": product}) for n, product in enumerate(products)]
    assert _kept(*old) == ["item1"]


def test_a_tile_is_the_same_in_every_spelling() -> None:
    baselines = iter(("04.00", "05.00", "05.10"))
    spellings: list[dict[str, Any]] = [
        {"grid:code": "MGRS-7HFE"},
        {"s2:mgrs_tile": "07HFE"},
        {"mgrs:utm_zone": 7, "mgrs:latitude_band": "H", "mgrs:grid_square": "FE"},
    ]
    items = [
        _source(
            str(n),
            **spelling,
            **{"s2:datatake_id": "GS2A_20190212T192651_019029_N02.12", "platform": "sentinel-2a"},
            **{"s2:processing_baseline": next(baselines)},
        )
        for n, spelling in enumerate(spellings)
    ]
    assert _kept(*items) == ["2"]


def test_one_id_for_both_halves_of_a_tile_drops_neither() -> None:
    halves = [
        _source(
            "S2A_MSIL2A_20200210T073031_R049_T37MEU",
            href=f"https://host/{half}.tif",
            **{
                "platform": "sentinel-2a",
                "created": f"2021-07-0{half}",
                "s2:datatake_id": "GS2A_20200210T073031_024229",
            },
            **{"s2:mgrs_tile": "37MEU", "s2:processing_baseline": "02.14"},
        )
        for half in (1, 2)
    ]
    assert drop_superseded(halves) == (halves, [])


# Landsat


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("LC08_L2SP_047027_20201204_02_RT", "LC08_L2SP_047027_20201204_02_T1", "tier T1, not RT"),
        ("LC08_L1TP_193026_20170805_20180523_01_RT", "LC08_L1TP_193026_20170805_20170812_01_T2", "tier T2, not RT"),
        (
            "LC08_L1TP_193026_20170805_20170812_01_T1",
            "LC08_L1GT_193026_20170805_20180523_01_T2",
            "processed 2018-05-23T00:00:00, not 2017-08-12T00:00:00",
        ),
        (
            "LC08_L1TP_193026_20170805_20210523_01_T1",
            "LC08_L1TP_193026_20170805_20200812_02_T1",
            "collection 02, not 01",
        ),
    ],
)
def test_versions_of_a_landsat_scene(old: str, new: str, reason: str) -> None:
    sources = [_source(old, platform="landsat-8"), _source(new, platform="landsat-8")]
    kept, (dropped,) = drop_superseded(sources)
    assert [source.item for source in kept] == [new]
    assert (dropped.item, dropped.by, dropped.reason) == (old, new, reason)


@pytest.mark.parametrize(
    "other",
    [
        "LC09_L2SP_047027_20201204_02_RT",
        "LM08_L2SP_047027_20201204_02_RT",
        "LC08_L1TP_047027_20201204_02_RT",
        "LC08_L2SP_047028_20201204_02_RT",
        "LC08_L2SP_047027_20201220_02_RT",
        "LC08_L2SP_047027_20201204_02_RT_ST",
    ],
)
def test_other_landsat_scenes_stay(other: str) -> None:
    sources = [_source(name, platform="landsat-8") for name in ("LC08_L2SP_047027_20201204_02_T1", other)]
    assert len(_kept(*sources)) == 2


def test_landsat_from_another_provider_is_told_by_its_product() -> None:
    products = ["LC08_L1TP_088080_20200525_20200525_01_RT", "LC08_L1TP_088080_20200525_20200608_01_T1"]
    items = [_source(f"uuid{n}", **{"landsat:landsat_product_id": name}) for n, name in enumerate(products)]
    assert _kept(*items) == ["uuid1"]


# Anything else


def test_an_item_given_twice_is_taken_once() -> None:
    red, nir = _source("one", gsd=10), _source("one", asset="nir", gsd=10)
    kept, dropped = drop_superseded([red, nir, red, nir, red])
    assert kept == [red, nir]
    assert [(each.item, each.by, len(each.sources)) for each in dropped] == [("one", "one", 2), ("one", "one", 1)]
    assert dropped[0].reason == "the same item was given more than once"
    assert count_words(kept, dropped, dates=1) == "3 items, 2 superseded, 1 date"


def test_of_two_descriptions_of_one_file_the_newest_is_kept() -> None:
    old = _source("one", updated="2024-01-01T00:00:00Z")
    new = _source("one", updated="2024-01-01T00:00:00-03:00")
    assert drop_superseded([old, new])[0] == drop_superseded([new, old])[0] == [new]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"version": "v1.9"}, {"version": "v1.10"}),
        ({"version": "2", "updated": "2023-01-01"}, {"version": "3", "updated": "2022-01-01"}),
        ({"processing:datetime": "2024-01-01T00:00:00Z"}, {"processing:datetime": "2024-01-02T00:00:00Z"}),
        ({"updated": "2024-01-01T00:00:00Z"}, {"updated": "2024-01-01T00:00:01Z"}),
        ({"created": "2024-01-01T00:00:00Z"}, {"created": "2024-01-01T00:00:00-01:00"}),
    ],
)
def test_versions_of_an_item(old: dict[str, Any], new: dict[str, Any]) -> None:
    """By its id, or by its tile and time where reprocessing changes the id."""
    same = [_source("one", href=f"https://host/{n}.tif", **said) for n, said in enumerate((old, new))]
    assert drop_superseded(same)[0] == same[1:]
    place = {"platform": "sat-1", "grid:code": "X-1"}
    assert _kept(_source("a", **place, **old), _source("b", **place, **new)) == ["b"]
    pixels: dict[str, Any] = {"proj:epsg": 32633, "proj:transform": [10, 0, 0, 0, -10, 0], "proj:shape": [5, 5]}
    assert _kept(_source("a", **pixels, **old), _source("b", **pixels, **new)) == ["b"]
    elsewhere = {**pixels, "proj:shape": [5, 6]}
    assert len(_kept(_source("a", **pixels, **old), _source("b", **elsewhere, **new))) == 2
    assert len(_kept(_source("a", **old), _source("b", **new))) == 2
    later = _source("b", "2024-06-11T10:06:02", **place, **new)
    assert len(_kept(_source("a", **place, **old), later)) == 2


@pytest.mark.parametrize("said", [{}, {"version": "final"}, {"updated": "yesterday"}, {"created": 7}, {"version": 3}])
def test_two_files_at_one_place_and_time_without_a_version_stay(said: dict[str, Any]) -> None:
    place = {"platform": "sat-1", "grid:code": "X-1"}
    assert len(_kept(_source("a", **place, **said), _source("b", **place, **said))) == 2
    assert len(_kept(_source("a", **place, **said), _source("b", **place, created="2024-01-01"))) == 2
    twins = [_source("a", href=f"https://host/{n}.tif", **said) for n in (1, 2)]
    assert drop_superseded(twins)[0] == twins


def test_plain_files_of_the_same_name_stay() -> None:
    files = [Source(href=f"/data/{folder}/B04.tif", item="B04", properties=said)
             for folder, said in (("a", {}), ("b", {}), ("c", {"version": "1"}), ("d", {"version": "2"}))]  # fmt: skip
    assert drop_superseded(files) == (files, [])
    assert drop_superseded([files[0], files[1], files[0]])[0] == files[:2]


def test_what_the_better_version_lacks_is_kept() -> None:
    old = [_sentinel2("20240612T000000", "05.09", asset=key) for key in ("B04", "B08")]
    new = _sentinel2("20240612T000000", "05.10", asset="B04")
    kept, (dropped,) = drop_superseded([*old, new])
    assert kept == [old[1], new]
    assert dropped.sources == (old[0],)


def test_nothing_comes_of_nothing() -> None:
    assert drop_superseded([]) == ([], [])


def test_count_words() -> None:
    kept = [_source(str(n), asset=asset) for n in range(375) for asset in ("a", "b")]
    dropped = [
        Superseded(item=f"x{n}", collection="made", by="0", reason="because", sources=(_source(f"x{n}"),))
        for n in range(37)
    ]
    assert count_words(kept, dropped, unreadable=5, dates=370) == "412 items, 37 superseded, 5 unreadable, 370 dates"
    assert count_words(kept[:1], [], dates=1) == "1 item, 1 date"
    assert count_words([_source(str(n)) for n in range(1234)], []) == "1,234 items"
    assert count_words([], []) == "0 items"


def test_real_items_hold_no_versions_until_one_is_reprocessed(test_data: Path) -> None:
    path = test_data / "stac" / "opendatacube__odc-stac" / "tests__data__site2-2020_jun_jul-35MNM.geojson"
    found = json.loads(path.read_text())
    assert drop_superseded(sources_from_stac(found))[1] == []
    again = json.loads(json.dumps(found["features"][0]))
    again["id"] = again["id"].replace("20200818T062751", "20230101T000000")
    again["properties"]["s2:processing_baseline"] = "05.00"
    sources = sources_from_stac([*found["features"], again])
    kept, (dropped,) = drop_superseded(sources)
    assert (dropped.item, dropped.by) == (found["features"][0]["id"], again["id"])
    assert len(dropped.sources) == 16
    assert count_words(kept, [dropped], dates=13) == "14 items, 1 superseded, 13 dates"


_PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "platform": st.sampled_from(["Sentinel-2A", "landsat-8", "sat"]),
        "s2:processing_baseline": st.sampled_from(["02.14", "05.00"]),
        "s2:datastrip_id": st.sampled_from(["X_S20240611T100600_N", "X_S20240611T100800_N"]),
        "grid:code": st.sampled_from(["MGRS-33UVP", "X-1"]),
        "version": st.sampled_from(["1", "2"]),
        "updated": st.sampled_from(["2024-01-01", "2024-01-02"]),
        "created": st.sampled_from(["2024-01-01", "2024-01-02"]),
    },
)
_ITEMS = ("S2A_MSIL2A_20240611T100601_R022_T33UVP_20240612T000000", "S2A_33UVP_20240611_0_L2A", "one", "two",
          "LC08_L2SP_047027_20201204_02_RT", "LC08_L2SP_047027_20201204_02_T1")  # fmt: skip
_SOURCES = st.builds(
    lambda item, asset, href, properties: _source(item, asset=asset, href=f"https://host/{href}.tif", **properties),
    st.sampled_from(_ITEMS),
    st.sampled_from(["B04", "B08"]),
    st.integers(0, 3),
    _PROPERTIES,
)


@given(sources=st.lists(_SOURCES, max_size=12), data=st.data())
def test_the_order_of_sources_changes_nothing(sources: list[Source], data: st.DataObject) -> None:
    def key(source: Source) -> str:
        return repr(source)

    kept, dropped = drop_superseded(sources)
    shuffled, dropped_then = drop_superseded(data.draw(st.permutations(sources)))
    assert sorted(kept, key=key) == sorted(shuffled, key=key)
    assert dropped == dropped_then
    assert drop_superseded(kept) == (kept, [])
    left = [source for each in dropped for source in each.sources]
    assert sorted(kept + left, key=key) == sorted(sources, key=key)
    for each in dropped:  # something better of the same asset is left
        assert {source.asset for source in each.sources} <= {source.asset for source in kept}
