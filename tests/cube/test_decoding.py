"""Decoding must be xarray's own, to the last bit: results must not depend on whether Dask is used, or which release."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cube import conventions, decoding
from cube.decoding import Decoding, decode, find_decoding
from cube.spec import Band

INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float16", "float32", "float64")
SCALES = ((1.0, 0.0), (0.0001, -0.1), (2.0, 0.0), (1.0, -1000.0), (2.75e-05, -0.2))
CLASSES = ((0, "none"), (1, "water"))


def decode_with_xarray(stored: np.ndarray, band: Band) -> xr.Variable:
    attributes = conventions.band_attributes(band)
    fill = conventions.fill_value(band)
    if fill is not None:
        attributes["_FillValue"] = np.dtype(band.dtype).type(fill)
    dataset = xr.Dataset({"band": (("y", "x"), stored, attributes)})
    return xr.decode_cf(dataset, decode_times=False).load().band.variable


def require_the_same(stored: np.ndarray, band: Band) -> None:
    expected = decode_with_xarray(stored, band)
    found = decode(stored, find_decoding(band, expected.dtype))
    assert found.dtype == expected.dtype
    assert found.tobytes() == np.ascontiguousarray(expected.values).tobytes()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("classes", [(), CLASSES])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        *itertools.product(INTEGERS, (None, 0, 7)),
        *itertools.product(FLOATS, (None, np.nan, -99.0)),
        ("uint16", 65535),
        ("int16", -9999),
        ("int64", -(2**62)),
    ],
)
def test_every_encoding_is_decoded_as_xarray_does(dtype, nodata, scale, classes):
    values = [*range(-3, 9), -9999, -99, 65535, 2**53 + 1, -(2**62)]
    with np.errstate(invalid="ignore", over="ignore"):
        stored = np.array([values], "int64").astype(dtype)
    if np.dtype(dtype).kind == "f":
        stored[0, 0] = np.nan
    require_the_same(
        stored, Band(name="b", dtype=dtype, nodata=nodata, scale=scale[0], offset=scale[1], classes=classes)
    )


def test_complex_numbers_stay():
    require_the_same(np.array([[0, 1 + 2j]], "complex64"), Band(name="b", dtype="complex64", nodata=0))


@given(st.data())
def test_any_numbers_are_decoded_as_xarray_does(data):
    dtype = np.dtype(data.draw(st.sampled_from((*INTEGERS, "float32", "float64"))))
    stored = data.draw(arrays(dtype, st.tuples(st.integers(0, 5), st.integers(0, 5))))
    nodata = data.draw(st.none() | st.sampled_from(stored.reshape(-1).tolist() or [0]))
    scale, offset = data.draw(st.sampled_from(SCALES))
    with np.errstate(all="ignore"):
        require_the_same(stored, Band(name="b", dtype=dtype.name, nodata=nodata, scale=scale, offset=offset))


def test_strips_make_the_whole(monkeypatch):
    stored = np.arange(1000, dtype="uint16").reshape(10, 100)
    how = Decoding(dtype="float32", fill=7, scale=0.5, offset=1)
    whole = decode(stored, how)
    monkeypatch.setattr(decoding, "_STRIP", 33)
    np.testing.assert_array_equal(decode(stored, how), whole)
    assert np.isnan(whole).sum() == 1


def test_what_needs_no_decoding_is_not_copied():
    stored = np.zeros((3, 4), "uint8")
    assert decode(stored, None) is stored
    for band in (Band(name="b", dtype="uint8"), Band(name="b", dtype="float32")):
        variable = decode_with_xarray(np.zeros((1, 1), band.dtype), band)
        assert find_decoding(band, variable.dtype) is None
