from __future__ import annotations

import json
import math
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from cube.archive.encoding import Sample, as_stored, choose_encoding
from cube.archive.sensors import Decision
from cube.errors import BuildError
from cube.normalise import normalise, plan_normalisation
from cube.scan import scan_sources
from cube.source import BandInfo, Source
from cube.spec import Band
from cube.testing.archive import unique_values, write_cog

ARRAY = unique_values((70, 80), "uint8")
NAN = math.nan


@pytest.fixture
def sample(tmp_path):
    """Return `make(name, dtype, info, array, ...)`: a sample of a real file, as a scan finds it."""

    def make(name="a", dtype="uint16", info=None, array=ARRAY, *, mask=False, index=0, decision=None, **options):
        options = {"driver": "GTiff", "blockxsize": 16, "blockysize": 16} | options
        options |= {"predictor": 1} if dtype == "float16" else {}  # GDAL has none for it
        path = write_cog(tmp_path / f"{name}.tif", array.astype(dtype), **options)
        if mask:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
                file.write_mask(array % 3 > 0)
        found, errors = scan_sources([Source(href=path.as_posix(), item=name)])
        assert not errors
        return Sample(scanned=found[0], index=index, info=info or BandInfo(name="red"), decision=decision)

    return make


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return a sample whose header stands for many others, a field replaced."""
    path = write_cog(tmp_path_factory.mktemp("template") / "a.tif", ARRAY)
    found, _ = scan_sources([Source(href=path.as_posix(), item="a")])
    return Sample(scanned=found[0], index=0, info=BandInfo(name="red"))


def choose(*samples, fill_value=None, holes=()):
    return choose_encoding("red", samples, fill_value=fill_value, holes=holes)


def encoding(band):
    return band.dtype, band.nodata, band.scale, band.offset


def cube_numbers(sample, band, values):
    """Return stored numbers of a source as the reader gives them, masks aside."""
    stored = sample.stored
    pixels = np.asarray([values], stored.dtype)
    how = plan_normalisation(stored.dtype, stored.nodata, stored.scale, stored.offset, band)
    out = pixels.astype(band.dtype) if how is None else np.empty(pixels.shape, band.dtype)
    if how is not None:
        normalise(pixels, how, out)
    return out[0].tolist()


def test_the_file_s_word_comes_first(sample):
    info = BandInfo(
        name="red", nodata=7, scale=0.5, offset=3.0, units="K", description="said by STAC", aliases=("B04",)
    )
    band = choose(sample(info=info, nodata=0, scale=0.0001, offset=-0.1))
    assert (band.nodata, band.hole, band.scale, band.offset) == (0, 0, 0.0001, -0.1)
    assert (band.units, band.description, band.aliases) == ("K", "said by STAC", ("B04",))


def test_the_catalogue_speaks_where_the_file_is_silent(sample):
    band = choose(sample(info=BandInfo(name="red", nodata=7, scale=0.5, offset=3.0)))
    assert (band.nodata, band.hole, band.scale, band.offset) == (7, 7, 0.5, 3.0)


def test_scale_and_offset_come_from_one_place(sample):
    # The file says scale 2 and no offset: the catalogue's offset belongs to the catalogue's scale.
    band = choose(sample(info=BandInfo(name="red", scale=0.5, offset=3.0), scale=2.0))
    assert (band.scale, band.offset) == (2.0, 0.0)


def test_a_rule_comes_last_and_says_it_all(sample):
    decision = Decision(rule="r", scale=0.0001, offset=-0.1, nodata=0, text="r: so")
    made = sample(info=BandInfo(name="red", scale=0.0001, offset=0.0), decision=decision)
    assert (made.said.nodata, made.said.scale, made.said.offset, made.said.by_file) == (None, 0.0001, 0.0, False)
    assert made.stored == (np.dtype("uint16"), 0, 0.0001, -0.1, None)
    assert encoding(choose(made)) == ("uint16", 0, 0.0001, -0.1)


def test_nothing_said_is_no_nodata(sample):
    band = choose(sample())
    assert (band.nodata, band.hole, band.scale, band.offset) == (None, 0, 1.0, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_floats_without_nodata_have_nan_holes(sample, dtype):
    band = choose(sample(dtype=dtype), holes=["2024-01-01"])
    assert band.nodata is None
    assert math.isnan(band.hole)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 300), ("uint8", -1), ("uint16", 0.5), ("int16", math.nan)])
def test_a_nodata_that_the_dtype_cannot_hold_is_none(sample, dtype, nodata):
    assert choose(sample(dtype=dtype, info=BandInfo(name="red", nodata=nodata))).nodata is None


@pytest.mark.parametrize(
    ("number", "dtype", "stored"),
    [
        (-3.4028235e38, "float32", float(np.finfo("float32").min)),
        (-1.7e308, "float32", None),
        (-math.inf, "float32", -math.inf),
        (0.1, "float16", float(np.float16(0.1))),
        (1e5, "float16", None),
        (0.1, "complex64", float(np.float32(0.1))),
        (255.0, "uint8", 255),
        (2**64 - 1, "uint64", 2**64 - 1),
        (2.0**64, "uint64", None),
        (None, "uint8", None),
    ],
)
def test_numbers_as_a_dtype_stores_them(number, dtype, stored):
    assert as_stored(number, np.dtype(dtype)) == stored


def test_every_nan_is_the_same(sample):
    assert len({as_stored(float("nan"), np.dtype(name)) for name in ("f2", "f4", "f8", "c8")}) == 1
    band = choose(*[sample(name, dtype="float32", nodata=math.nan) for name in "ab"])
    assert math.isnan(band.nodata)


def test_a_file_and_a_catalogue_may_say_the_same(sample):
    band = choose(sample("a", nodata=0), sample("b", info=BandInfo(name="red", nodata=0.0)))
    assert band.nodata == 0
    assert isinstance(band.nodata, int)


@pytest.mark.parametrize(
    ("dtypes", "joined"),
    [
        (["uint8", "uint8"], "uint8"),
        (["uint8", "uint16"], "uint16"),
        (["uint8", "int8"], "int16"),
        (["uint16", "int16"], "int32"),
        (["uint32", "int8"], "int64"),
        (["int64", "uint32"], "int64"),
        (["uint64", "uint8"], "uint64"),
        (["uint8", "float16"], "float16"),
        (["int16", "float16"], "float32"),
        (["uint16", "float32"], "float32"),
        (["int32", "float32"], "float64"),
        (["float16", "float64"], "float64"),
        (["uint16", "complex64"], "complex64"),
        (["int32", "complex64"], "complex128"),
    ],
)
def test_dtypes_join_to_the_smallest_that_holds_all(sample, dtypes, joined):
    samples = [sample(str(i), dtype=dtype) for i, dtype in enumerate(dtypes)]
    assert encoding(choose(*samples)) == (joined, None, 1.0, 0.0)
    for each in samples:
        dtype = each.stored.dtype
        limits = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
        values = [int(limits.min), int(limits.max)] if dtype.kind in "iu" else [0.5, float(limits.max)]
        assert cube_numbers(each, choose(*samples), values) == values


@pytest.mark.parametrize(
    ("one", "other"), [("uint64", "int64"), ("uint64", "int8"), ("int64", "float64"), ("uint64", "complex64")]
)
def test_dtypes_that_none_holds_are_refused_with_both_files(sample, one, other):
    message = (
        rf"^band 'red' is {one} \(scale 1, offset 0\) in .*one\.tif and {other} \(.*\) in .*two\.tif, and no data type "
        "holds the numbers of both; build a cube of each kind$"
    )
    with pytest.raises(BuildError, match=message):
        choose(sample("one", dtype=one), sample("same", dtype=one), sample("two", dtype=other))


def test_a_shift_that_no_integer_holds_is_refused(sample):
    with pytest.raises(BuildError, match=r"is uint64 \(scale 1, offset 0\) in .* and uint8 \(scale 1, offset -5\) in "):
        choose(sample("a", dtype="uint64"), sample("b", dtype="uint8", offset=-5.0))


def test_sentinel_2_of_two_baselines_is_shifted(sample):
    """The classic: 0.1 / 0.0001 is not 1000 in binary, and 0 is free of values once the older numbers are shifted."""
    new = [sample(f"new{i}", nodata=0, scale=0.0001, offset=-0.1) for i in range(2)]
    old = sample("old", nodata=0, scale=0.0001)
    band = choose(old, *new)
    assert encoding(band) == ("int32", 0, 0.0001, -0.1)
    assert cube_numbers(old, band, [0, 1, 65535]) == [0, 1001, 66535]
    assert cube_numbers(new[0], band, [0, 1, 65535]) == [0, 1, 65535]


def test_the_offset_of_most_sources_wins_and_dark_pixels_are_negative(sample):
    old = [sample(f"old{i}", nodata=0, scale=0.0001) for i in range(2)]
    new = sample("new", nodata=0, scale=0.0001, offset=-0.1)
    band = choose(*old, new)
    # 0 is a value now, that of DN 1000 in the new file.
    assert encoding(band) == ("int32", -(2**31), 0.0001, 0.0)
    assert cube_numbers(new, band, [0, 1, 1000]) == [-(2**31), -999, 0]
    assert cube_numbers(old[0], band, [0, 1, 1000]) == [-(2**31), 1, 1000]


def test_of_equals_the_lower_offset_wins(sample):
    samples = [sample("old", nodata=0, scale=0.0001), sample("new", nodata=0, scale=0.0001, offset=-0.1)]
    assert choose(*samples) == choose(*reversed(samples))
    assert encoding(choose(*samples)) == ("int32", 0, 0.0001, -0.1)


def test_single_precision_says_the_same(sample):
    single = BandInfo(name="red", scale=float(np.float32(0.0001)), offset=float(np.float32(-0.1)))
    samples = [sample("a", scale=0.0001, offset=-0.1), sample("b", info=single), sample("c", scale=0.0001, offset=-0.1)]
    band = choose(*samples)
    assert encoding(band) == ("uint16", None, 0.0001, -0.1)
    assert cube_numbers(samples[1], band, [7]) == [7]


@pytest.mark.parametrize(
    ("one", "other", "dtype"),
    [
        ({"scale": 0.1}, {"scale": 0.2}, "float32"),
        ({"scale": 0.0000275, "offset": -0.2}, {"scale": 0.0000275}, "float32"),  # 7272.7 steps
        ({"scale": 0.0001}, {"dtype": "float32"}, "float32"),
        ({"dtype": "uint8", "scale": 0.1}, {"dtype": "float16"}, "float32"),
        ({"dtype": "int32", "scale": 0.1}, {"scale": 0.2}, "float64"),
        ({"dtype": "float64", "scale": 0.1}, {"scale": 0.2}, "float64"),
        ({"dtype": "uint64", "scale": 0.1}, {"dtype": "int64"}, "float64"),
        ({"dtype": "float32", "offset": 1.0}, {"dtype": "float32"}, "float32"),  # no integers to shift
        ({"dtype": "complex64", "scale": 0.1}, {"scale": 0.2}, "complex64"),
        ({"dtype": "complex64", "scale": 0.1}, {"dtype": "int32"}, "complex128"),
    ],
)
def test_other_scales_become_physical_floats(sample, one, other, dtype):
    samples = [sample("one", nodata=3, **one), sample("two", **other)]
    band = choose(*samples)
    assert (band.dtype, band.scale, band.offset) == (dtype, 1.0, 0.0)
    assert math.isnan(band.nodata)
    assert math.isnan(band.hole)
    for each in samples:
        got = cube_numbers(each, band, [3, 2])
        assert np.isnan(got[0]) == (each.stored.nodata is not None)
        assert got[1] == np.dtype(dtype).type(2.0 * each.stored.scale + each.stored.offset)


@pytest.mark.parametrize(
    ("one", "other", "chosen"),
    [
        # -9999 is none of uint16, and 0 may be one of int16.
        ({"dtype": "int16", "nodata": -9999}, {"nodata": 0}, ("int32", -9999)),
        ({"dtype": "uint8", "nodata": 255}, {"dtype": "uint8", "nodata": 255}, ("uint8", 255)),
        # Both 0 and 255 may be values of the other.
        ({"dtype": "uint8", "nodata": 0}, {"dtype": "uint8", "nodata": 255}, ("int16", -32768)),
        # 0 is a value where there is no nodata.
        ({"dtype": "uint8", "nodata": 0}, {"dtype": "uint8"}, ("int16", -32768)),
        ({"nodata": 0}, {}, ("int32", -(2**31))),
        ({"dtype": "int8", "nodata": 0}, {"dtype": "int8"}, ("int16", -32768)),
        ({"dtype": "uint32", "nodata": 0}, {"dtype": "uint8"}, ("int64", -(2**63))),
        # What lies outside of a narrower source is free.
        ({"nodata": 65535}, {"dtype": "uint8"}, ("uint16", 65535)),
        ({"dtype": "int16", "nodata": -1}, {"dtype": "uint8"}, ("int16", -1)),
        ({"dtype": "float32", "nodata": -9999}, {"dtype": "float32", "nodata": -9999}, ("float32", -9999)),
        ({"dtype": "float32", "nodata": -9999}, {"dtype": "float32", "nodata": NAN}, ("float32", NAN)),
        ({"dtype": "float32", "nodata": -9999}, {"dtype": "float32"}, ("float32", NAN)),
        ({"dtype": "float32", "nodata": -9999}, {"dtype": "uint16", "nodata": 0}, ("float32", -9999)),
        ({"dtype": "float32"}, {"dtype": "uint16", "nodata": 0}, ("float32", NAN)),
        ({"dtype": "float64", "nodata": 1e300}, {"dtype": "float32"}, ("float64", 1e300)),
        ({"dtype": "float16", "nodata": NAN}, {"dtype": "uint8"}, ("float16", NAN)),
    ],
)
def test_no_value_becomes_missing(sample, one, other, chosen):
    samples = [sample("one", **one), sample("two", **other)]
    for band in (choose(*samples), choose(*reversed(samples)), choose(*samples, holes=["2024-01-01"])):
        assert band.dtype == chosen[0]
        assert band.nodata == pytest.approx(chosen[1], abs=0, nan_ok=True)
        assert band.hole == pytest.approx(chosen[1], abs=0, nan_ok=True)
        for each in samples:
            own = each.stored.nodata
            values = [0, 255] if each.stored.dtype.kind == "u" else [0, -1, 100]
            got = cube_numbers(each, band, values)
            kept = [value for value in values if value != own]
            assert [number for number, value in zip(got, values, strict=True) if value != own] == kept
            assert not any(
                number == band.nodata for number in (n for n, v in zip(got, values, strict=True) if v != own)
            )


def test_the_nodata_of_most_sources_is_tried_first(sample):
    samples = [sample("a", dtype="int16", nodata=-1), *[sample(n, dtype="int16", nodata=-9999) for n in "bc"]]
    narrow = sample("d", dtype="uint8", nodata=3)
    # Neither is free: -1 is a value of b and c, -9999 is one of a.
    assert choose(*samples).nodata == -(2**31)
    assert choose(*samples[1:], narrow).nodata == -9999
    assert choose(samples[0], *[sample(n, dtype="uint8", nodata=3) for n in "efg"]).nodata == -1


def test_holes_need_a_number(sample):
    holes = [f"2024-01-{day:02}" for day in range(1, 9)]
    with pytest.raises(BuildError) as caught:
        choose(sample(), holes=holes)
    assert str(caught.value).startswith(
        "band 'red' (uint16, no nodata value) is missing at 8 places or dates: 2024-01-01, 2024-01-02, 2024-01-03, "
        "2024-01-04, 2024-01-05 and 3 more; give a fill value"
    )
    band = choose(sample(), holes=holes, fill_value=65535)
    assert (band.nodata, band.hole) == (65535, 65535)


def test_a_fill_value_never_replaces_nodata(sample):
    assert choose(sample(nodata=3), fill_value=9).nodata == 3


def test_a_fill_value_stands_in_where_no_nodata_is_free(sample):
    samples = [sample("a", dtype="uint8", nodata=0), sample("b", dtype="uint8")]
    assert encoding(choose(*samples, fill_value=200)) == ("uint8", 200, 1.0, 0.0)
    assert cube_numbers(samples[0], choose(*samples, fill_value=200), [0, 1]) == [200, 1]
    assert choose(sample("c", dtype="float32"), fill_value=-1.5).nodata == -1.5


@pytest.mark.parametrize("fill_value", [70000, -1, 0.5, math.nan, math.inf])
def test_a_fill_value_must_fit(sample, fill_value):
    with pytest.raises(BuildError, match="does not fit band 'red' of uint16; choose one that does"):
        choose(sample(), fill_value=fill_value)


@pytest.mark.parametrize(
    ("dtype", "chosen"),
    [
        ("uint8", ("int16", -32768)),
        ("int16", ("int32", -(2**31))),
        ("float32", ("float32", NAN)),
        ("float64", ("float64", NAN)),
    ],
)
def test_masks_need_a_number_that_is_no_value(sample, dtype, chosen):
    masked = sample("masked", dtype=dtype, mask=True)
    assert masked.stored.validity == "mask"
    band = choose(masked, sample("plain", dtype=dtype))
    assert (band.dtype, band.hole) == (chosen[0], pytest.approx(chosen[1], nan_ok=True))
    assert band.nodata == pytest.approx(chosen[1], nan_ok=True)
    assert cube_numbers(masked, band, [0, 100]) == [0, 100]


def test_a_mask_leaves_nodata_no_say(sample):
    masked = sample("masked", dtype="uint8", nodata=0, mask=True, info=BandInfo(name="red", nodata=9))
    assert masked.stored.nodata is None
    band = choose(masked)
    assert (band.dtype, band.nodata) == ("int16", -32768)
    assert cube_numbers(masked, band, [0, 9]) == [0, 9]
    # What is no number of the masked file marks its pixels, too.
    assert choose(masked, sample("wide", dtype="int16", nodata=-5)).nodata == -5
    assert choose(masked, fill_value=0).nodata == 0


def test_alpha_counts_where_there_is_no_nodata(sample):
    array = np.stack([ARRAY] * 4)
    options = {"array": array, "dtype": "uint8", "photometric": "RGB", "alpha": "YES"}
    red, alpha = sample("rgba", **options), sample("rgba", index=3, **options)
    assert (red.stored.validity, red.stored.nodata) == ("alpha", None)
    assert encoding(choose(red)) == ("int16", -32768, 1.0, 0.0)
    # Alpha itself is never missing, and 0 where it hides the others.
    assert alpha.stored.validity is None
    assert (encoding(choose(alpha)), choose(alpha).hole) == (("uint8", None, 1.0, 0.0), 0)
    said = sample("said", nodata=0, **options)
    assert (said.stored.validity, said.stored.nodata) == (None, 0)


@pytest.mark.parametrize("dtype", ["uint64", "int64"])
def test_a_mask_over_64_bits_needs_a_fill_value(sample, dtype):
    masked = sample("masked", dtype=dtype, mask=True)
    with pytest.raises(
        BuildError, match=rf"misses pixels \(of .*masked\.tif, for one\), and every number of {dtype} may"
    ):
        choose(masked)
    assert choose(masked, fill_value=7).nodata == 7


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_classes_are_never_scaled_and_keep_their_own_nodata(sample, dtype):
    info = BandInfo(name="red", nodata=100, scale=0.5, offset=3.0, classes=((1, "water"), (100, "no data")))
    classes, other = sample("a", dtype=dtype, info=info, scale=2.0), sample("b", dtype=dtype, nodata=7)
    band = choose(classes)
    assert encoding(band) == (dtype, 100, 1.0, 0.0)
    assert band.classes == info.classes
    # Nothing has to be marked, so 100 stays the class that it is, and the dtype what it is.
    band = choose(classes, other)
    assert encoding(band) == (dtype, None, 1.0, 0.0)
    assert cube_numbers(classes, band, [1, 100]) == [1, 100]
    assert cube_numbers(other, band, [7]) == [7]
    # Holes are marked by a number that is no class.
    band = choose(classes, other, holes=["2024-01-01"])
    assert band.nodata == band.hole == np.iinfo(band.dtype).min
    assert cube_numbers(classes, band, [1, 100]) == [1, 100]


def test_bits_are_never_masked_but_have_a_number_for_holes(sample):
    info = BandInfo(name="qa_pixel", nodata=1, units="bit index", scale=0.5)
    band = choose(sample("LC08_QA_PIXEL", info=info), holes=["2024-01-01"])
    assert encoding(band) == ("uint16", None, 1.0, 0.0)
    assert band.hole == 1
    with pytest.raises(BuildError, match="no nodata value"):
        choose(sample("radsat", info=BandInfo(name="qa_radsat")), holes=["2024-01-01"])


def test_classes_of_all_sources_are_kept(sample):
    tables = [((0, "no data"), (1, "water")), (), ((1, "Water"), (2, "ice"))]
    samples = [sample(str(i), info=BandInfo(name="red", classes=table)) for i, table in enumerate(tables)]
    assert choose(*samples).classes == ((0, "no data"), (1, "water"), (2, "ice"))


def test_colour_maps_are_kept_where_files_agree(sample, tmp_path):
    def painted(name, red):
        made = sample(name, dtype="uint8", photometric="palette")
        path = tmp_path / f"{name}.tif"
        with rasterio.open(path, "r+") as file:
            file.write_colormap(1, {value: (red, value, 9, 255) for value in range(256)})
        found, _ = scan_sources([Source(href=path.as_posix(), item=name)])
        return Sample(scanned=found[0], index=0, info=made.info)

    band = choose(painted("a", 1), painted("b", 1), sample("grey", dtype="uint8"))
    assert band.colormap[:2] == ((0, 1, 0, 9, 255), (1, 1, 1, 9, 255))
    assert len(band.colormap) == 256
    assert choose(painted("a", 1), painted("c", 2)).colormap == ()


def test_units_are_those_that_all_agree_on(sample):
    infos = [BandInfo(name="red", units=units) for units in ("K", None, "K", "degC")]
    samples = [sample(str(i), info=info) for i, info in enumerate(infos)]
    assert choose(*samples[:3]).units == "K"
    assert choose(*samples).units is None


def test_scales_that_are_no_numbers_are_not_said(sample):
    made = sample(info=BandInfo(name="red", scale=NAN, offset=math.inf))
    assert (made.stored.scale, made.stored.offset) == (1.0, 0.0)


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]


@st.composite
def kinds(draw):
    """Return how a source stores a band: dtype, nodata, scale, offset, validity."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    nodata = draw(st.sampled_from([None, 0, 1, 255, -9999, 65535, math.nan, -(2**31)]))
    # Offsets of whole steps, written as people do, and one that is none.
    scale, offset = draw(st.sampled_from([(1.0, 0.0), (0.0001, 0.0), (0.0001, -0.1), (0.0001, 0.25), (0.0275, -0.2)]))
    return dtype, as_stored(nodata, dtype), scale, offset, draw(st.sampled_from([None, None, None, "mask"]))


def some_values(dtype):
    if dtype.kind == "f":
        return [0.0, -0.5, 1.0, 255.0, float(dtype.type(-9999)), float(np.finfo(dtype).max)]
    limits = np.iinfo(dtype)
    wanted = [limits.min, limits.min + 1, 0, 1, 255, -9999, 999, 1000, 65535, limits.max - 1, limits.max]
    return sorted({int(value) for value in wanted if limits.min <= value <= limits.max})


@settings(max_examples=300)
@given(st.lists(kinds(), min_size=1, max_size=4), st.booleans())
def test_any_sources_lose_no_value(template, described, has_holes):
    samples = []
    for dtype, nodata, scale, offset, validity in described:
        header = replace(
            template.scanned.header,
            dtype=dtype, nodata=nodata, scales=(scale,), offsets=(offset,), validity=validity,
        )  # fmt: skip
        samples.append(replace(template, scanned=replace(template.scanned, header=header)))
    try:
        band = choose(*samples, holes=["2024-01-01"] if has_holes else [])
    except BuildError as error:
        # 64 bits, mixed with others or without a number that is left; and holes of integers, which need a number.
        if not any(dtype.itemsize == 8 for dtype, *_ in described) and "no nodata value" not in str(error):
            raise
        return
    target = np.dtype(band.dtype)
    if any(validity for *_, validity in described):
        assert band.nodata is not None
    assert band.hole == band.nodata or target.kind == "f" or (band.nodata is None and not has_holes)
    for each in samples:
        values = some_values(each.stored.dtype)
        for value, got in zip(values, cube_numbers(each, band, values), strict=True):
            is_missing = got == band.nodata or math.isnan(got)
            assert is_missing == (value == each.stored.nodata)
            if is_missing:
                continue
            if target.kind in "iu" or (band.scale, band.offset) != (1.0, 0.0):
                was = Decimal(str(value)) * Decimal(str(each.stored.scale)) + Decimal(str(each.stored.offset))
                assert Decimal(str(got)) * Decimal(str(band.scale)) + Decimal(str(band.offset)) == was
            else:
                assert got == target.type(np.float64(value) * each.stored.scale + each.stored.offset)


def test_aliases_of_all_sources_are_kept(sample):
    infos = [BandInfo(name="red", aliases=aliases) for aliases in (("B04", "red"), ("B4",), ())]
    assert choose(*[sample(str(i), info=info) for i, info in enumerate(infos)]).aliases == ("B04", "B4")


@pytest.mark.parametrize(
    "band",
    [
        Band(name="a", dtype="uint8"),
        Band(name="a", dtype="float32", nodata=math.nan, hole=math.nan),
        Band(name="a", dtype="float64", nodata=-math.inf, hole=-math.inf),
        Band(name="a", dtype="uint64", nodata=2**64 - 1, hole=2**64 - 1),
        Band(
            name="a", dtype="uint8", scale=1e-300, offset=-0.1, aliases=("x", "y"), classes=((0, "no data"), (1, "ä"))
        ),
    ],
)
def test_bands_survive_json(band):
    text = json.dumps(band.to_json(), allow_nan=False)
    again = Band.from_json(json.loads(text))
    assert repr(again) == repr(band)  # by repr: NaN is not equal to itself
