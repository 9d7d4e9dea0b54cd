from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cube.encoding import Sample, choose_encoding
from cube.errors import BuildError
from cube.scan import scan_sources
from cube.source import BandInfo, Source
from cube.spec import Band
from cube.testing.archive import unique_values, write_cog

ARRAY = unique_values((70, 80), "uint8")


@pytest.fixture
def sample(tmp_path):
    """Return `make(name, dtype, info, array, **options)`: a sample of a real file, as a scan finds it."""

    def make(name="a", dtype="uint16", info=None, array=ARRAY, **options):
        options = {"driver": "GTiff", "blockxsize": 16, "blockysize": 16} | options
        path = write_cog(tmp_path / f"{name}.tif", array.astype(dtype), **options)
        found, errors = scan_sources([Source(href=path.as_posix(), item=name)])
        assert not errors
        return Sample(scanned=found[0], index=0, info=info or BandInfo(name="red"))

    return make


def choose(*samples, fill_value=None, holes=()):
    return choose_encoding("red", samples, fill_value=fill_value, holes=holes)


def test_the_file_s_word_comes_first(sample):
    info = BandInfo(
        name="red", nodata=7, scale=0.5, offset=3.0, units="K", description="said by STAC", aliases=("B04",)
    )
    band = choose(sample(info=info, nodata=0, scale=0.0001, offset=-0.1))
    assert (band.nodata, band.hole, band.scale, band.offset) == (0, 0, 0.0001, -0.1)
    assert (band.units, band.description, band.aliases) == ("K", "said by STAC", ("B04",))


def test_the_catalogue_speaks_where_the_file_is_silent(sample):
    info = BandInfo(name="red", nodata=7, scale=0.5, offset=3.0, classes=((1, "water"),))
    band = choose(sample(info=info))
    assert (band.nodata, band.hole, band.scale, band.offset, band.classes) == (7, 7, 0.5, 3.0, ((1, "water"),))
    assert band.sparse == 0


def test_scale_and_offset_come_from_one_place(sample):
    # The file says scale 2 and no offset: the catalogue's offset belongs to the catalogue's scale.
    band = choose(sample(info=BandInfo(name="red", scale=0.5, offset=3.0), scale=2.0))
    assert (band.scale, band.offset) == (2.0, 0.0)


def test_nothing_said_is_no_nodata(sample):
    band = choose(sample())
    assert (band.nodata, band.hole, band.scale, band.offset) == (None, 0, 1.0, 0.0)


def test_floats_without_nodata_have_nan_holes(sample):
    band = choose(sample(dtype="float32"), holes=["2024-01-01"])
    assert band.nodata is None
    assert math.isnan(band.hole)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 300), ("uint8", -1), ("uint16", 0.5), ("int16", math.nan)])
def test_a_nodata_that_the_dtype_cannot_hold_is_none(sample, dtype, nodata):
    assert choose(sample(dtype=dtype, info=BandInfo(name="red", nodata=nodata))).nodata is None


def test_float_nodata_is_rounded_as_the_file_stores_it(sample):
    band = choose(sample(dtype="float32", info=BandInfo(name="red", nodata=-3.4028235e38)))
    assert np.float32(band.nodata) == np.finfo("float32").min
    assert band.nodata == float(np.float32(band.nodata))


def test_a_nodata_beyond_the_floats_is_none_but_infinity_is_one(sample):
    assert choose(sample(dtype="float32", info=BandInfo(name="red", nodata=-1.7e308))).nodata is None
    assert choose(sample(dtype="float32", info=BandInfo(name="red", nodata=-math.inf))).nodata == -math.inf


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({"dtype": "uint16"}, {"dtype": "uint8"}, "dtype is uint16 and uint8"),
        ({"nodata": 0}, {"nodata": 1}, "nodata is 0 and 1"),
        ({"nodata": 0}, {}, "nodata is 0 and None"),
        ({"scale": 0.1}, {"scale": 0.2}, r"scale is 0\.1 and 0\.2"),
        ({"offset": -1000.0}, {}, r"offset is -1000\.0 and 0\.0"),
    ],
)
def test_what_differs_is_refused_with_both_files(sample, one, other, message):
    with pytest.raises(
        BuildError, match=rf"band 'red' is stored differently in .*one\.tif and .*two\.tif: {message}; "
    ):
        choose(sample("one", **one), sample("two", **other))


def test_nan_nodata_is_the_same_as_nan_nodata(sample):
    band = choose(*[sample(name, dtype="float32", nodata=math.nan) for name in "ab"])
    assert math.isnan(band.nodata)


def test_a_file_and_a_catalogue_may_say_the_same(sample):
    band = choose(sample("a", nodata=0), sample("b", info=BandInfo(name="red", nodata=0.0)))
    assert band.nodata == 0
    assert isinstance(band.nodata, int)


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


@pytest.mark.parametrize("fill_value", [70000, -1, 0.5, math.nan, math.inf])
def test_a_fill_value_must_fit(sample, fill_value):
    with pytest.raises(BuildError, match="does not fit band 'red' of uint16; choose one that does"):
        choose(sample(), fill_value=fill_value)


def test_left_out_tiles_mean_the_file_s_own_nodata(sample):
    array = np.zeros((70, 80), "uint8")
    array[0, 0] = 1
    silent = sample("silent", array=array, sparse_ok=True, info=BandInfo(name="red", nodata=9))
    assert (choose(silent).sparse, choose(silent).nodata) == (0, 9)
    array[array == 0] = 9
    speaking = sample("speaking", array=array, sparse_ok=True, nodata=9)
    assert choose(speaking).sparse == 9
    message = r"leave out mean 0 in .*silent\.tif and 9 in .*speaking\.tif; build a cube of each kind"
    with pytest.raises(BuildError, match=message):
        choose(silent, speaking)
    # Files without such tiles have no say.
    assert choose(sample("dense", info=BandInfo(name="red", nodata=9)), speaking).sparse == 9


def test_aliases_of_all_sources_are_kept(sample):
    infos = [BandInfo(name="red", aliases=aliases) for aliases in (("B04", "red"), ("B4",), ())]
    assert choose(*[sample(str(i), info=info) for i, info in enumerate(infos)]).aliases == ("B04", "B4")


@pytest.mark.parametrize(
    "band",
    [
        Band(name="a", dtype="uint8"),
        Band(name="a", dtype="float32", nodata=math.nan, hole=math.nan, sparse=math.nan),
        Band(name="a", dtype="float64", nodata=-math.inf, hole=-math.inf),
        Band(name="a", dtype="uint64", nodata=2**64 - 1, hole=2**64 - 1, sparse=2**64 - 1),
        Band(
            name="a", dtype="uint8", scale=1e-300, offset=-0.1, aliases=("x", "y"), classes=((0, "no data"), (1, "ä"))
        ),
    ],
)
def test_bands_survive_json(band):
    text = json.dumps(band.to_json(), allow_nan=False)
    again = Band.from_json(json.loads(text))
    assert repr(again) == repr(band)  # by repr: NaN is not equal to itself
