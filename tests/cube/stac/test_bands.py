"""Names of bands: one a slot, the same in all Items, and aliases that select nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from cube.errors import BuildError, SelectionError
from cube.stac.bands import Slot, alias_bands, name_bands, select_bands, variable_name

_WORDS = st.sampled_from(["red", "nir", "rededge", "B04", "b04", "B05", "visual", "visual_1", "x", "1"])


def _alone(key: str, common: str | None = None, own: str | None = None) -> Slot:
    return Slot(asset=key, index=0, count=1, common=common, own=own)


def _many(key: str, *bands: tuple[str | None, str | None]) -> tuple[Slot, ...]:
    return tuple(
        Slot(asset=key, index=index, count=len(bands), common=common, own=own)
        for index, (common, own) in enumerate(bands)
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("red", "red"),
        ("SR_B4.TIF", "SR_B4"),
        ("nir-08", "nir_08"),
        ("thumbnail:nbart", "thumbnail_nbart"),
        ("_B04_", "B04"),
        ("10m", "band_10m"),
        ("x", "band_x"),
        ("Time", "band_Time"),
        ("spatial_ref", "band_spatial_ref"),
        ("température", "température"),
        ("--", "band_"),
    ],
)
def test_variable_name(text: str, name: str) -> None:
    assert variable_name(text) == name


def test_common_name_only_where_one_asset_claims_it() -> None:
    red, *edges = (_alone("B04", "red"), _alone("B05", "rededge"), _alone("B06", "rededge"))
    assert name_bands([(red, *edges)]) == {red: "red", edges[0]: "B05", edges[1]: "B06"}


def test_a_name_contested_in_one_item_is_given_in_none() -> None:
    broad, narrow, cirrus = _alone("nir_broad", "nir"), _alone("nir_narrow", "nir"), _alone("cirrus", "cirrus")
    names = name_bands([(broad, narrow, cirrus), (narrow, cirrus)])
    assert names == {broad: "nir_broad", narrow: "nir_narrow", cirrus: "cirrus"}


def test_two_sensors_share_a_common_name() -> None:
    sentinel, landsat = _alone("B04", "red"), _alone("SR_B4.TIF", "red")
    assert set(name_bands([(sentinel,), (landsat,)]).values()) == {"red"}


def test_an_asset_key_goes_before_another_assets_common_name() -> None:
    plain, common = _alone("nir"), _alone("B08", "nir")
    assert name_bands([(plain, common)]) == {plain: "nir", common: "B08"}


def test_keys_that_differ_in_case_alone_keep_their_spelling() -> None:
    upper, lower = _alone("B1"), _alone("b1")
    assert name_bands([(upper, lower)]) == {upper: "B1", lower: "b1"}


def test_many_band_assets_come_after_one_band_assets() -> None:
    red = _alone("B04", "red", "B04")
    visual = _many("visual", ("red", "B04"), ("green", "B03"), (None, None))
    image = _many("image", ("nir", "NIR"), (None, "Height"))
    names = name_bands([(red, *visual, *image)])
    assert [names[slot] for slot in (red, *visual, *image)] == [
        "red",
        "visual_red",
        "green",
        "visual_3",
        "nir",
        "Height",
    ]


def test_bands_that_cannot_be_told_apart_are_an_error() -> None:
    with pytest.raises(BuildError, match=r"assets v, v_1 .* 'v_1'"):
        name_bands([(*_many("v", (None, None), (None, None)), _alone("v_1"))])


def test_many_band_assets_that_differ_in_case_alone_keep_their_spelling() -> None:
    upper, lower = _many("V", (None, None), (None, None)), _many("v", (None, None), (None, None))
    assert list(name_bands([(*upper, *lower)]).values()) == ["V_1", "V_2", "v_1", "v_2"]


def test_aliases_are_the_key_and_the_providers_name() -> None:
    red, edge, other = _alone("B04", "red", "OLI_B4"), _alone("B05", "rededge", "B05"), _alone("B06", "rededge", "B06")
    aliases = alias_bands(name_bands([(red, edge, other)]))
    assert aliases == {red: ("B04", "OLI_B4"), edge: (), other: ()}


def test_an_alias_that_means_two_bands_is_none() -> None:
    narrow, edge = _alone("nir_narrow", "nir", "B05"), _alone("red_edge_1", None, "B05")
    assert alias_bands(name_bands([(narrow,), (edge,)])) == {narrow: ("nir_narrow",), edge: ()}


def test_select_by_name_alias_and_key_of_a_many_band_asset() -> None:
    red, visual = _alone("B04", "red"), _many("visual", ("red", None), ("blue", None))
    names = name_bands([(red, *visual)])
    aliases = alias_bands(names)
    assert select_bands(["red"], names, aliases) == {red}
    assert select_bands(["B04"], names, aliases) == {red}
    assert select_bands(["visual"], names, aliases) == set(visual)
    assert select_bands(["blue", "red"], names, aliases) == {red, visual[1]}
    assert select_bands(["Blue"], names, aliases) == {visual[1]}
    with pytest.raises(SelectionError, match=r"no band 'nir'; they have red \(B04\), visual_red, blue"):
        select_bands(["nir"], names, aliases)


@st.composite
def _layouts(draw: st.DrawFn) -> list[tuple[Slot, ...]]:
    maybe = st.none() | _WORDS
    layouts = []
    for _ in range(draw(st.integers(1, 3))):
        layout: list[Slot] = []
        for key in draw(st.lists(_WORDS, min_size=1, max_size=6, unique=True)):
            bands = draw(st.lists(st.tuples(maybe, maybe), min_size=1, max_size=3))
            layout.extend(_many(key, *bands))
        layouts.append(tuple(layout))
    return layouts


@given(_layouts())
def test_names_are_unique_in_an_item_and_aliases_select_one_name(layouts: list[tuple[Slot, ...]]) -> None:
    try:
        names = name_bands(layouts)
    except BuildError:
        reject()
    aliases = alias_bands(names)
    for layout in layouts:
        assert len({names[slot] for slot in layout}) == len(layout)
    for slot, said in aliases.items():
        for word in (names[slot], *said):
            assert {names[chosen] for chosen in select_bands([word], names, aliases)} == {names[slot]}
