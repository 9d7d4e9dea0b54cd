from __future__ import annotations

import json

import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from cube.conventions import (
    axis_attributes,
    band_attributes,
    crs_attributes,
    encode_times,
    fill_value,
    gdal_crs,
)
from cube.grid import Grid
from cube.spec import Band

CODES = ["EPSG:32633", "EPSG:4326", "EPSG:3857", "EPSG:3577", "EPSG:27700", "EPSG:5041", "OGC:CRS84", "EPSG:2263"]


def grid_of(crs):
    return Grid(crs=crs, transform=(0.1, 0.0, 1 / 3, 0.0, -0.1, 5e6), width=4, height=3)


@pytest.mark.parametrize(
    ("band", "expected"),
    [
        (Band(name="a", dtype="uint16"), None),
        (Band(name="a", dtype="uint16", nodata=0), 0),
        (Band(name="a", dtype="int16", nodata=-9999), -9999),
        (Band(name="a", dtype="uint8", nodata=0, classes=((0, "none"), (1, "water"))), None),
        (Band(name="a", dtype="float32", nodata=-9999.0), -9999.0),
    ],
)
def test_nodata_becomes_a_fill_value_except_for_classes(band, expected):
    assert fill_value(band) == expected


@pytest.mark.parametrize("nodata", [None, float("nan")])
def test_floats_are_filled_with_nan(nodata):
    assert np.isnan(fill_value(Band(name="a", dtype="float32", nodata=nodata)))


def test_what_is_not_said_is_no_attribute():
    assert band_attributes(Band(name="a", dtype="uint16", nodata=0)) == {"grid_mapping": "spatial_ref"}


def test_what_is_said_is_a_cf_attribute():
    band = Band(
        name="a", dtype="uint8", scale=0.5, units="K", description="heat", classes=((0, "no data"), (7, "wet land"))
    )
    assert band_attributes(band) == {
        "grid_mapping": "spatial_ref",
        "long_name": "heat",
        "units": "K",
        "scale_factor": 0.5,
        "add_offset": 0.0,
        "flag_values": [0, 7],
        "flag_meanings": "no_data wet_land",
    }


def test_flag_meanings_are_as_many_words_as_flag_values():
    classes = ((0, " two  words "), (1, "one"), (2, "a\tb\nc"))
    attributes = band_attributes(Band(name="a", dtype="uint8", classes=classes))
    assert len(attributes["flag_meanings"].split()) == len(attributes["flag_values"])


def test_axes_of_a_projected_grid():
    y, x = axis_attributes(grid_of("EPSG:32633"))
    assert (y["standard_name"], y["units"], y["axis"]) == ("projection_y_coordinate", "m", "Y")
    assert (x["standard_name"], x["units"], x["axis"]) == ("projection_x_coordinate", "m", "X")
    assert axis_attributes(grid_of("EPSG:2263"))[0]["units"] == "US survey foot"


@pytest.mark.parametrize("crs", ["EPSG:4326", "OGC:CRS84", "EPSG:4258"])
def test_axes_of_a_geographic_grid(crs):
    y, x = axis_attributes(grid_of(crs))
    assert (y["standard_name"], y["units"]) == ("latitude", "degrees_north")
    assert (x["standard_name"], x["units"]) == ("longitude", "degrees_east")


@pytest.mark.parametrize("crs", CODES)
def test_the_crs_can_be_read_back(crs):
    attributes = crs_attributes(grid_of(crs))
    expected = pyproj.CRS.from_user_input(crs)
    assert pyproj.CRS.from_wkt(attributes["crs_wkt"]) == expected
    assert pyproj.CRS.from_wkt(attributes["spatial_ref"]) == expected
    assert pyproj.CRS.from_cf(attributes) == expected
    assert [float(value) for value in attributes["GeoTransform"].split()] == [1 / 3, 0.1, 0.0, 5e6, 0.0, -0.1]
    json.dumps(attributes, allow_nan=False)


def test_the_attributes_belong_to_the_caller():
    crs_attributes(grid_of("EPSG:32633"))["crs_wkt"] = "spoilt"
    assert crs_attributes(grid_of("EPSG:32633"))["crs_wkt"] != "spoilt"


@pytest.mark.parametrize("crs", CODES)
def test_gdal_s_attribute_can_be_read_back(crs):
    attribute = gdal_crs(crs)
    expected = pyproj.CRS.from_user_input(crs)
    assert pyproj.CRS.from_wkt(attribute["wkt"]) == expected
    assert pyproj.CRS.from_json_dict(attribute["projjson"]) == expected
    if "url" in attribute:
        assert pyproj.CRS.from_user_input(attribute["url"]) == expected
    json.dumps(attribute, allow_nan=False)


@given(st.lists(st.datetimes(), min_size=1, max_size=5), st.sampled_from(["us", "ms", "s", "D"]))
def test_times_survive_their_encoding(moments, unit):
    stamps = np.array(moments, "datetime64[us]").astype(f"datetime64[{unit}]").astype("datetime64[us]")
    values, attributes = encode_times(stamps)
    assert values.dtype == "int64"
    decoder = xr.coders.CFDatetimeCoder(time_unit="us")
    decoded = xr.decode_cf(xr.Dataset({"time": ("time", values, attributes)}), decode_times=decoder).time.values
    np.testing.assert_array_equal(decoded, stamps)


@pytest.mark.parametrize(
    ("stamp", "unit"),
    [
        ("2024-01-01", "days"),
        ("2024-01-01T00:00:01", "seconds"),
        ("2024-01-01T00:00:00.5", "milliseconds"),
        ("2024-01-01T00:00:00.000001", "microseconds"),
    ],
)
def test_times_have_the_coarsest_unit_that_loses_nothing(stamp, unit):
    assert encode_times(np.array([stamp], "datetime64[us]"))[1]["units"] == f"{unit} since 1970-01-01"


def test_what_cf_cannot_say_in_full_is_left_to_wkt():
    text = "+proj=omerc +lat_0=4 +lonc=115 +alpha=53.3 +k=0.99984 +gamma=53.1 +ellps=evrst30"
    grid = Grid(crs=pyproj.CRS(text).to_wkt(), transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0), width=1, height=1)
    attributes = crs_attributes(grid)  # warnings are errors
    assert attributes.keys() == {"crs_wkt", "spatial_ref", "GeoTransform"}
    assert pyproj.CRS.from_wkt(attributes["crs_wkt"]) == pyproj.CRS(text)
