"""File names to fields: by patterns, by how names differ, and the pattern that is suggested."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.archive.naming import Fields, Pattern, infer_fields, match_all, suggest_pattern
from cube.errors import BuildError, SelectionError
from cube.io.stores import href_path


def _at(text: str) -> np.datetime64:
    return np.datetime64(text, "us")


# Patterns


@pytest.mark.parametrize(
    ("pattern", "href", "fields"),
    [
        (
            "{tile}_{band}_{time:%Y%m%d}.tif",
            "/a/T32TQM_B04_20200131.tif",
            Fields(tile="T32TQM", band="B04", time=_at("2020-01-31")),
        ),
        # Fields are short: what is left over goes to the last one that may have it.
        ("{tile}_{band}.tif", "T32_TQM_B04.tif", Fields(tile="T32", band="TQM_B04")),
        (
            "{tile}_{time:%Y%m%dT%H%M%SZ}_{band}.tif",
            "s3://b/T1_20200131T101112Z_B04.tif?sig=a/b",
            Fields(tile="T1", band="B04", time=_at("2020-01-31T10:11:12")),
        ),
        (
            "HLS.{sensor}.{tile}.{time:%Y%jT%H%M%S}.v2.0.{band}.tif",
            "HLS.L30.T19LDD.2022165T144027.v2.0.B01.tif",
            Fields(tile="T19LDD", band="B01", time=_at("2022-06-14T14:40:27"), extra={"sensor": "L30"}),
        ),
        ("{time:%Y%m%d}{band}.tif", "20220111x.tif", Fields(band="x", time=_at("2022-01-11"))),
        ("{band}{time:%Y%m}.tif", "prcp189501.tif", Fields(band="prcp", time=_at("1895-01-01"))),
        ("{time:%d%b%y}_{}.tif", "07Mar21_anything.tif", Fields(time=_at("2021-03-07"))),
        ("{time:%Y-%m-%d_%H%M%S.%f}.tif", "2021-03-07_010203.5.tif", Fields(time=_at("2021-03-07T01:02:03.5"))),
        ("{time:%Y%m%d_%H%M%S%z}.tif", "20200131_101112+0100.tif", Fields(time=_at("2020-01-31T09:11:12"))),
        (
            "{band}-{time:%Y%m}-grd-{time:%d}.tif",
            "prcp-202201-grd-03.tif",
            Fields(band="prcp", time=_at("2022-01-03")),
        ),
        ("{tile:d}_{band}.tif", "0042_a.tif", Fields(tile="0042", band="a")),
        (
            "{tile}/{time:%Y/%m/%d}/{band}.tif",
            "/x/T1/2020/01/31/B4.tif",
            Fields(tile="T1", band="B4", time=_at("2020-01-31")),
        ),
        ("{tile}/{tile}_{band}.tif", "C:\\x\\T1\\T1_B4.tif", Fields(tile="T1", band="B4")),
        ("{tile}/{band}.tif", "https://host/T%201/B4.tif", Fields(tile="T 1", band="B4")),
        ("{{x}}_{band}.tif", "{x}_B4.tif", Fields(band="B4")),
        ("{band}_100%.tif", "a_100%.tif", Fields(band="a")),
    ],
)  # fmt: skip
def test_match(pattern: str, href: str, fields: Fields) -> None:
    assert Pattern(pattern).match(href) == fields


@pytest.mark.parametrize(
    ("pattern", "href"),
    [
        ("{band}.tif", "a.TIF"),
        ("{band}.tif", "a.tif.aux"),
        ("{band}_{time:%Y%m%d}.tif", "a_20220231.tif"),
        ("{band}_{time:%Y%m%d}.tif", "a_2022011.tif"),
        ("{tile:d}.tif", "a1.tif"),
        ("{tile}/{band}.tif", "b.tif"),
        ("{tile}/{tile}_{band}.tif", "/x/T1/T2_B4.tif"),
        ("1{tile}/{band}.tif", "/x/21a/b.tif"),
    ],
)
def test_no_match(pattern: str, href: str) -> None:
    assert Pattern(pattern).match(href) is None


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("{band", "cannot be read"),
        ("{time}_{band}.tif", "gives {time} no format"),
        ("{time:%Y%s}.tif", "has %s in its date"),
        ("{band}_{time:%m%d}.tif", "gives {time} no year"),
        ("{date:%Y%m%d}.tif", "gives {date} the format"),
    ],
)
def test_bad_patterns(pattern: str, words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        Pattern(pattern)


def test_match_all() -> None:
    pattern = Pattern("{band}_{tile}.tif")
    assert match_all(["/x/a_1.tif", "/x/b_2.tif"], pattern) == [Fields(band="a", tile="1"), Fields(band="b", tile="2")]
    with pytest.raises(BuildError, match=r"does not match 4 of 5 files, such as a\.tif, b\.tif, c\.tif; leave"):
        match_all(["/x/a_1.tif", "a.tif", "b.tif", "c.tif", "d.tif"], pattern)


def test_a_pattern_that_fits_nothing_is_answered_with_one_that_would() -> None:
    hrefs = [f"/x/T{tile}_{band}_20200131.tif" for tile in (1, 2) for band in ("red", "nir")]
    with pytest.raises(BuildError, match=r"matches none of 4 files, such as T1_red_20200131\.tif, ") as caught:
        match_all(hrefs, Pattern("{band}-{time:%Y}.tif"))
    assert "'{tile}_{band}_{time:%Y%m%d}.tif' would" in str(caught.value)


def test_href_path() -> None:
    assert href_path("https://host/a%20b/c.tif?x=/d.tif") == "/a b/c.tif"
    assert href_path("/a b/c?d#e.tif") == "/a b/c?d#e.tif"
    assert href_path("C:\\a\\b.tif") == "C:/a/b.tif"


# Suggestions


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["x.tif"], "{band}.tif"),
        (["T32_B04_20200131.tif"], "T32_{band}_{time:%Y%m%d}.tif"),
        (["T32_20200131_B04.tif", "T33_20200131_B04.tif"], "{band}_{time:%Y%m%d}_B04.tif"),
        (["B04_T32.tif", "B08_T33.tif"], "{band}_{tile}.tif"),
        (["a_1_u.tif", "b_2_v.tif", "c_3_w.tif"], "{tile}_{part2}_{band}.tif"),
        (["lc_2019.tif", "lc_2020.tif"], "lc_{time:%Y}.tif"),
        (["p-189501.tif", "t-189502.tif"], "{band}-{time:%Y%m}.tif"),
        (["LC08_20200131_T1_SR_B1.TIF", "LC08_20200216_T1_QA.TIF"], "LC08_{time:%Y%m%d}_T1_{band}.TIF"),
        (["S_2020-01-31T10-11-12_a.tif", "S_2020-02-01T00-00-00_b.tif"], "S_{time:%Y-%m-%dT%H-%M-%S}_{band}.tif"),
        (["{1}_a.tif", "{2}_b.tif"], "{{{tile}}}_{band}.tif"),
        (["a.tif", "b_c.TIFF"], "{band}.{}"),
        (["a", "b.tif"], "{band}"),
    ],
)
def test_suggestion(names: list[str], pattern: str) -> None:
    assert suggest_pattern([f"/some/where/{name}" for name in names]) == pattern


@given(st.lists(st.text("aB1_-. {}%20", min_size=1, max_size=20).map("x{}.tif".format), min_size=1, max_size=5))
def test_a_suggestion_fits(names: list[str]) -> None:
    pattern = Pattern(suggest_pattern(names))
    assert all(pattern.match(name) for name in names)


# Names without a pattern


def _infer(names: list[str], footprints: list[object] | None = None, samples: int = 1) -> list[Fields]:
    return infer_fields(names, footprints or [0] * len(names), [samples] * len(names))


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("T32_20200131_B04.tif", "2020-01-31"),
        ("20200131T101112_B04.tif", "2020-01-31T10:11:12"),
        ("s1a-20151022t122546-20151022t122549-001.tif", "2015-10-22T12:25:46"),
        ("x20200131101112.tif", "2020-01-31T10:11:12"),
        ("S_20200131T1011.tif", "2020-01-31T10:11"),
        ("2020-01-31.tif", "2020-01-31"),
        ("a_2020-01-31T10:11:12Z.tif", "2020-01-31T10:11:12"),
        ("a.2020.01.31.tif", "2020-01-31"),
        ("2020/01/31/a.tif", "2020-01-31"),
        ("HLS.L30.T19LDD.2022165T144027.v2.0.B01.tif", "2022-06-14T14:40:27"),
        ("LC08_L2SP_047027_20201204_20210313_02_T1_SR_B4.TIF", "2020-12-04"),
        ("m_3008501_ne_16_1_20110815.tif", "2011-08-15"),
        ("a_20200231_20200301.tif", "2020-03-01"),
        ("a_20209999.tif", None),
        ("a_120200131.tif", None),
        ("a_2020013.tif", None),
        ("a_18990101.tif", None),
        ("a_202001310.tif", None),
        ("lcmap_2019.tif", None),
        ("dem.tif", None),
    ],
)
def test_dates_in_names(name: str, time: str | None) -> None:
    # The second file keeps the folders of the first from being shared.
    assert _infer([f"/x/{name}", "/x/other"])[0].time == (None if time is None else _at(time))


@pytest.mark.parametrize(
    ("names", "times"),
    [
        (["lcmap_tiny_cog_2019.tif", "lcmap_tiny_cog_2020.tif"], ["2019-01-01", "2020-01-01"]),
        (["2019/lc.tif", "2020/lc.tif"], ["2019-01-01", "2020-01-01"]),
        (["p-189501.tif", "p-189502.tif"], ["1895-01-01", "1895-02-01"]),
        (["MOD13.A2020001.v6.tif", "MOD13.A2020017.v6.tif"], ["2020-01-01", "2020-01-17"]),
        (["t_2020_01_31.tif", "t_2020_02_01.tif"], ["2020-01-31", "2020-02-01"]),
        (["a_long_2019.tif", "a_long_2020.tif", "b_2019.tif"], ["2019-01-01", "2020-01-01", "2019-01-01"]),
        (["lc_2019.tif", "lc_2120.tif"], [None, None]),
        (["a_2019.tif", "b_2020.tif"], [None, None]),
        (["lc_2019.tif", "lc_x.tif"], [None, None]),
    ],
)
def test_short_dates_count_where_all_names_have_them(names: list[str], times: list[str | None]) -> None:
    assert [fields.time for fields in _infer(names)] == [None if time is None else _at(time) for time in times]


def test_a_number_that_goes_with_the_ground_is_no_year() -> None:
    names = ["tile_2000_3000.tif", "tile_2000_2010.tif", "tile_2010_2010.tif"]
    assert _infer(names, [0, 1, 2]) == [Fields(tile="2000_3000"), Fields(tile="2000_2010"), Fields(tile="2010_2010")]


def test_files_of_different_make_are_not_years_of_each_other() -> None:
    assert infer_fields(["a_2019.tif", "a_2020.tif"], [0, 0], [3, 1]) == [Fields(band="2019"), Fields(band="2020")]


def test_a_lone_file_leaves_the_band_to_its_header() -> None:
    assert _infer(["red.tif"]) == [Fields()]
    assert _infer(["T1_red.tif", "T2_red.tif"], [1, 2]) == [Fields(tile="T1"), Fields(tile="T2")]
    assert _infer([]) == []


def test_bands_of_several_words() -> None:
    names = ["LC08_047_SR_B4.TIF", "LC08_047_QA_PIXEL.TIF", "LC08_047_SR_QA_AEROSOL.TIF", "LC08_048_SR_B4.TIF"]
    assert [(fields.tile, fields.band) for fields in _infer(names, [1, 1, 1, 2])] == [
        ("047", "SR_B4"),
        ("047", "QA_PIXEL"),
        ("047", "SR_QA_AEROSOL"),
        ("048", "SR_B4"),
    ]


def test_folders_that_repeat_the_name_say_nothing_new() -> None:
    names = ["T1/B04/T1_B04_10m.tif", "T1/B08/T1_B08_10m.tif", "T2/B04/T2_B04_10m.tif"]
    assert [(fields.tile, fields.band) for fields in _infer(names, [1, 1, 2])] == [
        ("T1", "B04"),
        ("T1", "B08"),
        ("T2", "B04"),
    ]


def test_what_changes_with_the_date_alone_is_neither_band_nor_tile() -> None:
    names = [
        f"S2{mission}_{date}_{band}.tif" for mission, date in (("A", "20200101"), ("B", "20200106")) for band in "uv"
    ]
    assert [(fields.tile, fields.band) for fields in _infer(names)] == [(None, "u"), (None, "v")] * 2


_TOKEN = st.from_regex(r"[A-Za-z]{1,3}[0-9]{0,2}", fullmatch=True)
_CLOCKS = ["%Y%m%d", "%Y-%m-%d", "%Y%m%dT%H%M%S", "%Y%jT%H%M%S", "%Y/%m/%d"]


@given(st.data())
def test_fields_of_made_archives_are_recovered(data: st.DataObject) -> None:
    """Names of tile, band and date in any order, between words that never change, with holes."""
    words = data.draw(st.lists(_TOKEN, min_size=8, max_size=8, unique_by=str.lower))
    tiles, bands, fixed = words[:3], words[3:6], words[6 : 6 + data.draw(st.integers(0, 2))]
    tiles, bands = tiles[: data.draw(st.integers(1, 3))], bands[: data.draw(st.integers(1, 3))]
    days = data.draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=3, unique=True))
    clock = data.draw(st.sampled_from([None, *_CLOCKS]))
    dates = [np.datetime64("1990-01-01T06:07:08", "s") + np.timedelta64(day, "D") for day in (days if clock else [0])]
    order = data.draw(st.permutations(["tile", "band", *(["time"] if clock else []), *fixed]))
    separator = data.draw(st.sampled_from("_-."))
    whole = list(itertools.product(tiles, bands, dates))
    # One ground and date has all bands, so that there is something to tell bands by.
    kept = [*whole[:: len(dates)][: len(bands)], *(each for each in whole if data.draw(st.booleans()))]
    kept = [each for each in whole if each in kept or each[0] == tiles[0]]

    def name(tile: str, band: str, date: np.datetime64) -> str:
        said = {"tile": tile, "band": band, "time": date.item().strftime(clock) if clock else ""}
        return "/archive/" + separator.join(said.get(word, word) for word in order) + ".tif"

    found = infer_fields([name(*each) for each in kept], [tiles.index(each[0]) for each in kept], [1] * len(kept))
    seen = {tile for tile, _, _ in kept}
    for fields, (tile, band, date) in zip(found, kept, strict=True):
        expected = date if clock and "T" in clock else date.astype("datetime64[D]")
        assert fields.time == (_at(str(expected)) if clock else None)
        assert fields.band == (band if len(bands) > 1 else None)
        assert fields.tile == (tile if len(seen) > 1 else None)


def test_real_names(test_data: Path) -> None:
    """Landsat's and NOAA's own files, each archive on one ground."""
    landsat = sorted((test_data / "stactools-packages__landsat").glob("*assets5__LC08*.TIF"))
    fields = _infer([path.name for path in landsat])
    assert {found.time for found in fields} == {_at("2019-01-14")}
    assert [found.band for found in fields] == [
        "QA_PIXEL", "QA_RADSAT", "SR_B3", "SR_B4", "SR_B5", "SR_QA_AEROSOL", "ST_B10", "ST_CDIST",
    ]  # fmt: skip
    monthly = sorted((test_data / "stactools-packages__noaa-nclimgrid").glob("*monthly*.tif"))
    names = [path.name.rpartition("__")[2] for path in monthly]
    assert [(found.band, found.time) for found in _infer(names)] == [(None, _at("1895-01")), (None, _at("1895-02"))]
