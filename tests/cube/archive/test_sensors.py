from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import rasterio

from cube.archive.encoding import Sample
from cube.archive.sensors import Decision, Said, decide, holds_flags, is_dark_band, judge_dark_pixels, settle
from cube.scan import scan_sources
from cube.source import BandInfo, Source
from cube.stac.sources import sources_from_stac

PC = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/S2.SAFE/T47XML_20240419T095549_{}_10m.tif"
PC_RED = PC.format("B04")
EARTH_SEARCH = (
    "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/31/U/FU/2023/7/S2A_31UFU_0_L2A/B04.tif"
)
C1 = "https://e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com/sentinel-2-c1-l2a/31/U/FU/S2A_L2A/B04.tif"
RED = BandInfo(name="red", aliases=("B04",))
OFFERED = BandInfo(name="red", nodata=0, scale=0.0001, offset=-0.1)
SILENT = BandInfo(name="red", nodata=0, scale=0.0001)
SINGLE = BandInfo(name="red", nodata=0, scale=float(np.float32(0.0001)), offset=float(np.float32(-0.1)))
NEW = {"s2__processing_baseline": "05.09"}
GIVES_NONE = "offset -0.1 (its catalogue gives none)"
S2_PRODUCT = "/a/S2B_MSIL2A_20230122T231849_N0400_R087_T01UBT_20230124T042703"
OLD_S2_PRODUCT = "/a/S2A_MSIL2A_20190212T192651_N0212_R013_T07HFE_20201007T160857"
S2_L1C_PRODUCT = "s3://b/S2A_MSIL1C_20240101T000000_N0510_R087_T01UBT_20240101T042703"


def said(info, dtype="uint16", *, by_file=None):
    """Return what file and catalogue say together; `by_file` is the file's (scale, offset)."""
    scale, offset = by_file or (info.scale or 1.0, info.offset or 0.0)
    return Said(np.dtype(dtype), info.nodata, scale, offset, by_file is not None)


def sentinel_2(info=RED, href=PC_RED, collection="sentinel-2-l2a", asset="B04", item="S2", **properties):
    properties = {key.replace("__", ":"): value for key, value in properties.items()}
    return Source(href=href, item=item, collection=collection, asset=asset, bands=(info,), properties=properties)


def decide_all(items):
    """Return (source, decision) by asset key for the first of some Items, as their own dtypes or uint16."""
    found = {}
    for source in sources_from_stac(items):
        dtype = "uint8" if source.asset in {"visual", "SCL"} else "uint16"
        found[source.asset] = decide(source, source.bands[0], said(source.bands[0], dtype))
    return found


def first_item(path):
    data = json.loads(path.read_text(encoding="utf-8"))
    features = data if isinstance(data, list) else data.get("features", [data])
    return features[:1]


@pytest.mark.parametrize(
    ("path", "baseline", "offset"),
    [
        ("stac-utils__stac-geoparquet/tests__data__sentinel-2-l2a-pc.json", "05.10", -0.1),
        ("stac-utils__stac-geoparquet/tests__sentinel-2-item.json", "04.00", -0.1),
        (
            "opendatacube__odc-stac/tests__data__S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json",
            "02.12",
            0.0,
        ),
    ],
)
def test_planetary_computer_says_no_offset(test_data, path, baseline, offset):
    decisions = decide_all(first_item(test_data / "stac" / path))
    bands = {f"B{i:02}" for i in (*range(1, 10), 11, 12)} | {"B8A"}
    assert {asset for asset, decision in decisions.items() if decision is not None} == bands
    assert {asset for asset in decisions if asset not in bands} >= {"AOT", "WVP", "SCL", "visual"}
    for asset in bands:
        decision = decisions[asset]
        assert (decision.rule, decision.scale, decision.offset, decision.nodata) == ("sentinel-2", 0.0001, offset, 0)
        assert not decision.doubtful
    facts = f"scale 0.0001, {'offset -0.1, ' if offset else ''}nodata 0 (its catalogue gives none)"
    assert decisions["B04"].text == f"sentinel-2: processing baseline {baseline}, {facts}"


def test_a_catalogue_that_says_all_needs_no_rule(test_data):
    paths = [
        "stactools-packages__sentinel2/examples__sentinel2-l2a-example__S2A_T07HFE_20190212T192646_L2A__S2A_T07HFE_20190212T192646_L2A.json",
        "stac-utils__stac-geoparquet/tests__data__landsat-c2-l2-pc.json",
        "stactools-packages__hls/examples__HLS.L30.T19LDD.2022165T144027.v2.0__HLS.L30.T19LDD.2022165T144027.v2.0.json",
        "stactools-packages__hls/examples__HLS.S30.T19LDD.2022166T144741.v2.0__HLS.S30.T19LDD.2022166T144741.v2.0.json",
    ]
    for path in paths:
        sources = sources_from_stac(first_item(test_data / "stac" / path))
        assert sources
        for source in sources:
            for dtype in ("uint8", "uint16", "int16"):
                assert decide(source, source.bands[0], said(source.bands[0], dtype)) is None


@pytest.mark.parametrize(
    ("info", "properties", "offset", "why"),
    [
        # Nothing said: Planetary Computer.
        (RED, NEW, -0.1, "scale 0.0001, offset -0.1, nodata 0 (its catalogue gives none)"),
        (SILENT, NEW, -0.1, GIVES_NONE),
        (SILENT, {"s2__processing_baseline": "04.00"}, -0.1, GIVES_NONE),
        # Copernicus Data Space.
        (SILENT, {"constellation": "sentinel-2", "processing__version": "05.11"}, -0.1, GIVES_NONE),
        # Earth Search's first version of its catalogue.
        (
            SILENT,
            {"sentinel__processing_baseline": "04.00", "sentinel__boa_offset_applied": False},
            -0.1,
            GIVES_NONE,
        ),
        # The offset of stored numbers instead of physical values.
        (replace(SILENT, offset=-1000.0), NEW, -0.1, "offset -0.1 (its catalogue says -1000)"),
        # No product of old baselines has an offset, whatever its catalogue says.
        (OFFERED, {"s2__processing_baseline": "03.01"}, 0.0, "offset 0 (its catalogue says -0.1)"),
        (
            OFFERED,
            {"s2__processing_baseline": "02.12", "earthsearch__boa_offset_applied": False},
            0.0,
            "offset 0 (its catalogue says -0.1)",
        ),
    ],
)
def test_sentinel_2_goes_by_the_processing_baseline(info, properties, offset, why):
    decision = decide(sentinel_2(info, **properties), info, said(info))
    assert (decision.scale, decision.offset, decision.nodata, decision.doubtful) == (0.0001, offset, 0, False)
    baseline = next(value for value in properties.values() if isinstance(value, str) and value[0] == "0")
    assert decision.text == f"sentinel-2: processing baseline {baseline}, {why}"


@pytest.mark.parametrize(
    ("info", "properties"),
    [
        (OFFERED, NEW),
        (replace(OFFERED, offset=0.0), {"s2__processing_baseline": "02.12"}),
        (SILENT, {"s2__processing_baseline": "02.12"}),
        (replace(OFFERED, offset=0.0), {"s2__processing_baseline": "05.09", "eda__boa_offset_applied": True}),
        (SINGLE, NEW),
        (SILENT, {}),
        (RED, {"processing__version": "not one", "constellation": "sentinel-2"}),
        (RED, {"s2__processing_baseline": "99.99"}),  # made at home: nobody knows
    ],
)  # fmt: skip
def test_sentinel_2_changes_nothing_that_is_said_or_unknown(info, properties):
    assert decide(sentinel_2(info, **properties), info, said(info)) is None


def test_a_landsat_version_is_no_processing_baseline():
    source = Source(
        href="s3://b/B04.tif",
        item="x",
        asset="red",
        properties={"processing:version": "05.00", "platform": "landsat-8"},
    )
    assert decide(source, RED, said(RED)) is None


def test_the_date_says_nothing():
    """Scenes of 2018 were reprocessed with the offset, and some of 2022 were first processed without."""
    old = sentinel_2(s2__processing_baseline="05.00", datetime="2018-06-01T00:00:00Z")
    new = sentinel_2(s2__processing_baseline="03.01", datetime="2022-02-01T00:00:00Z")
    at = np.datetime64("2018-06-01", "us")
    assert decide(replace(old, time=at), RED, said(RED)).offset == -0.1
    assert decide(replace(new, time=at + np.timedelta64(1400, "D")), RED, said(RED)).offset == 0.0


def test_the_file_s_own_scale_and_offset_stand():
    source = sentinel_2(s2__processing_baseline="05.09")
    assert decide(source, OFFERED, said(OFFERED, by_file=(0.0001, 0.0))) is None
    decision = decide(source, RED, said(RED, by_file=(0.0002, 0.5)))
    assert (decision.scale, decision.offset, decision.nodata) == (0.0002, 0.5, 0)
    assert decision.text == "sentinel-2: processing baseline 05.09, nodata 0 (its catalogue gives none)"


def test_another_scale_of_the_catalogue_stands():
    info = replace(OFFERED, scale=0.0002, offset=0.0)
    assert decide(sentinel_2(info, s2__processing_baseline="05.09"), info, said(info)) is None


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8"])
def test_other_dtypes_are_other_products(dtype):
    assert decide(sentinel_2(s2__processing_baseline="05.09"), RED, said(RED, dtype)) is None


@pytest.mark.parametrize("asset", ["SCL", "AOT", "WVP", "CLD", "MSK_CLDPRB"])
def test_only_reflectances_of_sentinel_2_have_the_offset(asset):
    source = sentinel_2(href=PC.format(asset), asset=asset, s2__processing_baseline="05.09")
    info = BandInfo(name=asset)
    assert decide(source, info, said(info)) is None


@pytest.mark.parametrize(
    ("href", "collection"),
    [(EARTH_SEARCH, "sentinel-2-l2a"), (EARTH_SEARCH, "s2_l2a"), ("/copies/B04.tif", "sentinel-2-l2a")],
)
@pytest.mark.parametrize(("flag", "offset"), [(True, 0.0), (False, -0.1), (None, 0.0)])
@pytest.mark.parametrize("offered", [-0.1, 0.0, None])
def test_earth_search_is_doubted(href, collection, flag, offset, offered):
    info = replace(OFFERED, offset=offered)
    flags = {} if flag is None else {"earthsearch__boa_offset_applied": flag}
    source = sentinel_2(
        info, href=href, collection=collection, asset="red", earthsearch__s3_path="s3://x", **NEW, **flags
    )
    decision = decide(source, info, said(info))
    assert (decision.scale, decision.offset, decision.nodata, decision.doubtful) == (0.0001, offset, 0, True)
    assert decision.text == (
        f"sentinel-2: processing baseline 05.09, offset {offset:g} (Earth Search's word, which is often wrong)"
    )


def test_earth_search_s_collection_1_is_right():
    properties = {"s2__processing_baseline": "05.00", "earthsearch__payload_id": "x"}
    source = sentinel_2(OFFERED, href=C1, collection="sentinel-2-c1-l2a", asset="red", **properties)
    assert decide(source, OFFERED, said(OFFERED)) is None


def test_earth_search_s_originals_are_not_harmonised():
    properties = {"s2__processing_baseline": "05.00", "earthsearch__boa_offset_applied": False}
    source = sentinel_2(OFFERED, href="s3://sentinel-s2-l2a/tiles/31/U/FU/B04.jp2", asset="red-jp2", **properties)
    assert decide(source, OFFERED, said(OFFERED)) is None


@pytest.mark.parametrize(
    ("offered", "flag", "offset", "why"),
    [
        (-0.1, True, 0.0, "its catalogue contradicts itself and says -0.1, too"),
        (0.0, False, -0.1, "its catalogue contradicts itself and says 0, too"),
        (0.0, None, 0.0, "its catalogue's word, against the baseline"),
    ],
)
def test_contradictions_are_doubted(offered, flag, offset, why):
    info = replace(OFFERED, offset=offered)
    flags = {} if flag is None else {"earthsearch__boa_offset_applied": flag}
    source = sentinel_2(info, collection="sentinel-2-c1-l2a", s2__processing_baseline="05.09", **flags)
    decision = decide(source, info, said(info))
    assert (decision.offset, decision.doubtful) == (offset, True)
    assert decision.text == f"sentinel-2: processing baseline 05.09, offset {offset:g} ({why})"


def plain(href, name="band_1"):
    info = BandInfo(name=name)
    return Source(href=href, item=href.rpartition("/")[2].partition(".")[0], bands=(info,)), info


@pytest.mark.parametrize(
    ("href", "dtype", "expected"),
    [
        (f"{S2_PRODUCT}.SAFE/GRANULE/R10m/T01UBT_20230122_B04_10m.tif", "uint16", ("sentinel-2", 0.0001, -0.1, 0)),
        (f"{S2_L1C_PRODUCT}_B8A.TIF", "uint16", ("sentinel-2", 0.0001, -0.1, 0)),
        (f"{OLD_S2_PRODUCT}_B04.tif", "uint16", ("sentinel-2", 0.0001, 0.0, 0)),
        (f"{OLD_S2_PRODUCT}_SCL_20m.tif", "uint8", None),
        ("/a/T33UVP_20240409T100031_B04.tif", "uint16", None),  # of an unknown baseline
        ("/a/LC08_L2SP_005009_20150710_20200908_02_T2_SR_B4.TIF", "uint16", ("landsat-c2-l2", 0.0000275, -0.2, 0)),
        ("/a/LT05_L2SP_010067_19860424_20200918_02_T2_ST_B6.TIF", "uint16", ("landsat-c2-l2", 0.00341802, 149.0, 0)),
        ("/a/LC09_L2SP_089090_20240417_20240418_02_T1_ST_EMIS.TIF", "int16", ("landsat-c2-l2", 0.0001, 0.0, -9999)),
        ("/a/LC09_L2SP_089090_20240417_20240418_02_T1_ST_QA.TIF", "int16", ("landsat-c2-l2", 0.01, 0.0, -9999)),
        ("/a/LC09_L2SP_089090_20240417_20240418_02_T1_QA_PIXEL.TIF", "uint16", ("landsat-c2-l2", 1.0, 0.0, 1)),
        ("/a/LC09_L2SP_089090_20240417_20240418_02_T1_QA_RADSAT.TIF", "uint16", None),
        ("/a/LC09_L2SP_089090_20240417_20240418_02_T1_SR_QA_AEROSOL.TIF", "uint8", None),
        ("/a/LC09_L2SP_089090_20240417_20240418_02_T1_SR_B4.TIF", "float32", None),  # scaled by someone
        ("/a/LC08_L1TP_089090_20240417_20240418_02_T1_B4.TIF", "uint16", None),
        ("/a/LC08_L2SP_089090_20160417_20170418_01_T1_SR_B4.TIF", "uint16", None),  # Collection 1
        ("/a/HLS.L30.T19LDD.2022165T144027.v2.0.B04.tif", "int16", ("hls", 0.0001, 0.0, -9999)),
        ("/a/HLS.L30.T19LDD.2022165T144027.v2.0.B10.tif", "int16", ("hls", 0.01, 0.0, -9999)),
        ("/a/HLS.S30.T19LDD.2022166T144741.v2.0.B10.tif", "int16", ("hls", 0.0001, 0.0, -9999)),
        ("/a/HLS.S30.T19LDD.2022166T144741.v2.0.B8A.tif", "int16", ("hls", 0.0001, 0.0, -9999)),
        ("/a/HLS.S30.T19LDD.2022166T144741.v2.0.Fmask.tif", "uint8", None),
        ("/a/HLS.S30.T19LDD.2022166T144741.v2.0.SAA.tif", "uint16", None),
        ("/a/scene_20240101_red.tif", "uint16", None),
    ],
)  # fmt: skip
def test_products_are_told_by_their_file_names(href, dtype, expected):
    source, info = plain(href)
    decision = decide(source, info, said(info, dtype))
    found = None if decision is None else (decision.rule, decision.scale, decision.offset, decision.nodata)
    assert found == expected
    assert decision is None or decision.text.endswith(" (its file gives none)")


def test_landsat_and_hls_are_told_by_their_collections():
    thermal = BandInfo(name="lwir11", nodata=0)
    source = Source(href="https://a/1.tif", item="1", collection="landsat-c2-l2", asset="lwir11", bands=(thermal,))
    decision = decide(source, thermal, said(thermal))
    assert decision.text == "landsat-c2-l2: scale 0.00341802, offset 149 (its catalogue gives none)"
    source = Source(href="https://a/1.tif", item="1", collection="HLSS30_2.0", asset="B04", bands=(RED,))
    assert decide(source, RED, said(RED, "int16")).nodata == -9999


def test_what_a_catalogue_says_of_landsat_stands():
    info = BandInfo(name="red", nodata=5, scale=0.0001, offset=0.0)
    source, _ = plain("/a/LC08_L2SP_005009_20150710_20200908_02_T2_SR_B4.TIF")
    assert decide(source, info, said(info)) is None
    half = BandInfo(name="red", nodata=5, scale=0.0000275)
    decision = decide(source, half, said(half))
    assert (decision.scale, decision.offset, decision.nodata) == (0.0000275, -0.2, 5)


def test_real_landsat_items_of_before_the_raster_extension(test_data):
    folder = test_data / "stac" / "opendatacube__odc-stac"
    decisions = decide_all(first_item(folder / "tests__data__LC08_L2SR_081119_20200101_20200823_02_T2.json"))
    reflectances = {key for key, each in decisions.items() if each is not None and each.scale == 0.0000275}
    assert reflectances == {f"SR_B{i}.TIF" for i in range(1, 8)}
    assert decisions["QA_PIXEL.TIF"].text == "landsat-c2-l2: nodata 1 (its catalogue gives none)"
    assert decisions["QA_RADSAT.TIF"] is None
    assert decisions["SR_QA_AEROSOL.TIF"] is None


def test_real_files(test_data):
    """Decided by the names and headers of real products, no STAC at hand."""
    folders = [test_data / name for name in ("stactools-packages__sentinel2", "stactools-packages__landsat")]
    paths = sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() == ".tif")
    scanned, errors = scan_sources([Source(href=path.as_posix(), item=path.stem) for path in paths])
    assert not errors
    found = {}
    for each in scanned:
        info = BandInfo(name="band_1")
        decision = decide(each.source, info, Sample(scanned=each, index=0, info=info).said)
        if decision is not None:
            found[each.source.href.rpartition("__")[2]] = (decision.scale, decision.offset, decision.nodata)
    assert {key: value for key, value in found.items() if key.startswith("T")} == {
        **{f"T01UBT_20230122T231849_{band}.tif": (0.0001, -0.1, 0)
           for band in ("B01_60m", "B02_10m", "B03_10m", "B04_10m", "B08_10m", "B09_60m", "B8A_20m")},
        **{f"T07HFE_20190212T192651_{band}.tif": (0.0001, 0.0, 0) for band in ("B04_10m", "B08_10m")},
    }  # fmt: skip
    landsat = {key.partition("_02_T2_")[2]: value for key, value in found.items() if key.startswith("L")}
    assert landsat == {
        **{f"SR_B{i}.TIF": (0.0000275, -0.2, 0) for i in (3, 4, 5)},
        "ST_B10.TIF": (0.00341802, 149.0, 0),
        "ST_CDIST.TIF": (0.01, 0.0, -9999),
        "QA_PIXEL.TIF": (1.0, 0.0, 1),
    }


@pytest.mark.parametrize(
    ("href", "name", "units", "expected"),
    [
        ("/a/LC09_02_T1_QA_PIXEL.TIF", "qa_pixel", None, True),
        ("/a/LC09_02_T1_SR_QA_AEROSOL.TIF", "b", None, True),
        ("/a/LC09_02_T1_ST_QA.TIF", "qa", None, False),  # kelvins
        ("/a/x.tif", "qa", "bit index", True),
        ("/a/x.tif", "Fmask", None, True),
        ("/a/T33_SCL_20m.tif", "b", None, True),
        ("/a/muscl.tif", "b", None, False),
        ("/a/x.tif", "red", "bits", False),
    ],
)
def test_bits_are_told_by_name_or_unit(href, name, units, expected):
    source, _ = plain(href)
    assert holds_flags(source, BandInfo(name=name, units=units)) is expected


def test_only_red_can_be_judged():
    assert is_dark_band(sentinel_2(asset="B04"), BandInfo(name="B04"))
    assert is_dark_band(sentinel_2(href="/a/1.tif", asset="x"), BandInfo(name="red"))
    assert not is_dark_band(sentinel_2(href=PC.format("B02"), asset="blue"), BandInfo(name="blue"))


def scene(parts, seed=0, edge=343):
    """Return red DN without the offset: parts are (share, mean reflectance, its spread)."""
    rng = np.random.default_rng(seed)
    shares = [share for share, *_ in parts]
    values = np.concatenate([rng.normal(mean, spread, int(share * edge * edge)) for share, mean, spread in parts])
    assert sum(shares) <= 1
    image = np.zeros(edge * edge)
    image[: values.size] = np.maximum(values * 10_000, 1).round()
    return image.reshape(edge, edge)


WATER, FOREST, CROPS, STEPPE, DESERT, CLOUD = (
    (0.012, 0.006), (0.018, 0.006), (0.045, 0.02), (0.13, 0.02), (0.32, 0.06), (0.75, 0.15),
)  # fmt: skip
SCENES = {
    "crops and forest": [(0.6, *CROPS), (0.4, *FOREST)],
    "forest": [(1.0, *FOREST)],
    "sea": [(1.0, *WATER)],
    "half of it clouds": [(0.5, *CLOUD), (0.3, *CROPS), (0.2, *FOREST)],
    "desert": [(1.0, *DESERT)],
    "steppe": [(1.0, *STEPPE)],
    "clouds": [(0.99, *CLOUD), (0.01, *FOREST)],
    "a sliver": [(0.002, *FOREST)],
    "snow and a lake": [(0.9, 0.9, 0.05), (0.1, *WATER)],
}
CLEAR = ("crops and forest", "forest", "sea", "half of it clouds", "snow and a lake")


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_dark_pixels_tell_the_offset(name, seed, dtype):
    image = scene(SCENES[name], seed).astype(dtype)
    shifted = np.where(image > 0, image + 1000, 0).astype(dtype)
    verdicts = judge_dark_pixels(image, 0), judge_dark_pixels(shifted, 0)
    if name in CLEAR:
        assert verdicts == ("harmonised", "offset")
    elif name == "a sliver":
        assert verdicts == ("harmonised", "unclear")
    else:
        assert verdicts == ("unclear", "unclear")


def test_nodata_is_no_dark_pixel():
    image = scene(SCENES["desert"]).astype("u2")
    image[:200] = 5
    assert judge_dark_pixels(image, 5) == "unclear"
    assert judge_dark_pixels(image, None) == "harmonised"
    assert judge_dark_pixels(np.zeros((9, 9), "u2"), None) == "unclear"
    assert judge_dark_pixels(np.empty(0, "u2"), 0) == "unclear"


def test_a_few_broken_pixels_prove_nothing():
    image = scene(SCENES["crops and forest"]).astype("u2") + 1000
    assert judge_dark_pixels(image, 0) == "offset"
    image[:2] = 30  # resampled edges
    assert judge_dark_pixels(image, 0) == "unclear"


def test_real_scenes_are_never_judged_wrongly(test_data):
    """Sentinel-2 of before the offset, and one scene of baseline 04.00, all of it clouds and snow."""
    files = test_data / "stactools-packages__sentinel2"
    old, new = (next(files.glob(f"*{name}*_B04_10m.tif")) for name in ("N0212", "N0400"))
    with rasterio.open(old) as file:
        assert judge_dark_pixels(file.read(1), 0) == "harmonised"
    with rasterio.open(new) as file:
        assert judge_dark_pixels(file.read(1), 0) == "unclear"
    red = np.load(test_data / "s2_eopatch" / "REFERENCE_SCENES.npy")[..., 3]
    images = [np.rint(each * 10_000).astype("u2") for each in red]
    plain = [judge_dark_pixels(image, 0) for image in images]
    assert plain.count("harmonised") >= 3
    assert "offset" not in plain
    assert "harmonised" not in [judge_dark_pixels(image + 1000, 0) for image in images]


@pytest.mark.parametrize(
    ("flag", "judgement", "offset", "doubtful", "verdict"),
    [
        (True, "harmonised", 0.0, False, "confirm it"),
        (True, "offset", -0.1, False, "show that it is -0.1, which counts"),
        (False, "harmonised", 0.0, False, "show that it is 0, which counts"),
        (False, "offset", -0.1, False, "confirm it"),
        (True, "unclear", 0.0, True, "do not tell"),
        (False, "unclear", -0.1, True, "do not tell"),
    ],
)
def test_pixels_settle_what_is_doubtful(flag, judgement, offset, doubtful, verdict):
    properties = {"s2__processing_baseline": "05.09", "earthsearch__boa_offset_applied": flag}
    decision = decide(sentinel_2(OFFERED, href=EARTH_SEARCH, **properties), OFFERED, said(OFFERED))
    settled = settle(decision, judgement)
    assert settled == Decision(
        rule="sentinel-2",
        scale=0.0001,
        offset=offset,
        nodata=0,
        text=f"{decision.text}; its pixels {verdict}",
        doubtful=doubtful,
    )
