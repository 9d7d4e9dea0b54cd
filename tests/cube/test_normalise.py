from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.io import MemoryFile

from cube.errors import ManifestError
from cube.normalise import Normalisation, normalise, plan_normalisation, shift_between
from cube.spec import Band

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
NAN = math.nan


def band(dtype, nodata=None, *, scale=1.0, offset=0.0, **more):
    hole = nodata if nodata is not None else (NAN if np.dtype(dtype).kind in "fc" else 0)
    return Band(name="red", dtype=dtype, nodata=nodata, hole=hole, scale=scale, offset=offset, **more)


def run(pixels, nodata, scale, offset, target):
    """Return the pixels as the band stores them."""
    pixels = np.asarray(pixels)
    how = plan_normalisation(pixels.dtype, nodata, scale, offset, target)
    assert how is not None
    out = np.full(pixels.shape, 77, target.dtype)
    normalise(pixels, how, out)
    return out


def is_missing(value, nodata):
    return nodata is not None and (value == nodata or (math.isnan(nodata) and math.isnan(value)))


@pytest.mark.parametrize(
    ("dtype", "nodata", "target"),
    [
        ("uint8", None, band("uint8")),
        ("uint8", 0, band("uint8", 0)),
        ("uint8", None, band("uint8", 255)),
        ("float32", NAN, band("float32", NAN)),
        ("float32", NAN, band("float32")),
        ("float32", None, band("float32", NAN)),
        ("float32", -9999.0, band("float32", -9999)),
        ("uint64", 2**64 - 1, band("uint64", 2**64 - 1)),
        ("complex64", None, band("complex64")),
        # Bits and classes stay what they are, "no data" too.
        ("uint8", 255, band("uint8", 0, classes=((1, "water"), (255, "no data")))),
        ("uint16", 1, Band(name="qa", dtype="uint16", nodata=None, hole=1)),
    ],
)
def test_equal_encodings_pass_through(dtype, nodata, target):
    assert plan_normalisation(dtype, nodata, 1.0, 0.0, target) is None


def test_a_plan_is_a_value():
    how = plan_normalisation("uint16", 0, 0.0001, 0.0, band("int32", 0, scale=0.0001, offset=-0.1))
    assert how == Normalisation(shift=1000, scale=0.0001, offset=0.0, missing=0, fill=0)
    assert len({how, how}) == 1


def test_sentinel_2_before_and_after_the_offset():
    target = band("int32", 0, scale=0.0001, offset=-0.1)
    # The dark pixel of 5 is 0.0005 in both; 0 stays "no data" and nothing wraps at 65535.
    assert run(np.array([[0, 5, 65535]], "u2"), 0, 0.0001, 0.0, target).tolist() == [[0, 1005, 66535]]
    assert run(np.array([[0, 5, 65535]], "u2"), 0, 0.0001, -0.1, target).tolist() == [[0, 5, 65535]]


def test_dark_pixels_become_negative_and_nodata_does_not():
    target = band("int32", -(2**31), scale=0.0001)
    assert run(np.array([[0, 1, 999, 1000]], "u2"), 0, 0.0001, -0.1, target).tolist() == [[-(2**31), -999, -1, 0]]


def test_floats_of_two_nodata_values():
    pixels = np.array([[-9999, 1.5, NAN]], "f4")
    assert run(pixels, -9999.0, 1.0, 0.0, band("float32", NAN)).tolist() == [
        [pytest.approx(NAN, nan_ok=True), 1.5, pytest.approx(NAN, nan_ok=True)]
    ]
    assert run(pixels, NAN, 1.0, 0.0, band("float32", -1.0)).tolist() == [[-9999, 1.5, -1]]


def test_zero_is_a_value_where_the_source_has_no_nodata():
    assert run(np.array([[0, 255]], "u1"), None, 1.0, 0.0, band("int16", -32768)).tolist() == [[0, 255]]
    assert run(np.array([[0, 255]], "u1"), 0, 1.0, 0.0, band("int16", -32768)).tolist() == [[-32768, 255]]


def test_complex_numbers():
    pixels = np.array([[1 + 2j, -9999, NAN]], "c8")
    out = run(pixels, -9999.0, 2.0, 1.0, band("complex64", NAN))
    assert out.dtype == "c8"
    assert out[0, 0] == 3 + 4j
    assert np.isnan(out[0, 1:]).all()
    assert run(np.array([[3]], "i4"), None, 1.0, 0.0, band("complex128"))[0, 0] == 3


@given(data=st.data(), dtype=st.sampled_from(INTEGERS), target=st.sampled_from(INTEGERS))
def test_shifts_are_exact(data, dtype, target):
    own, wide = np.iinfo(dtype), np.iinfo(target)
    lowest, highest = int(wide.min) - int(own.min), int(wide.max) - int(own.max)
    if lowest > highest:
        return
    # As a float, which an offset is.
    shift = data.draw(st.integers(lowest, highest).filter(lambda k: lowest <= int(float(k)) <= highest))
    pixels = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)))
    nodata = data.draw(st.none() | st.sampled_from(pixels.ravel().tolist()))
    hole = data.draw(st.integers(int(wide.min), int(wide.max)))
    how = plan_normalisation(dtype, nodata, 1.0, float(shift), band(target, hole))
    expected = [
        [hole if is_missing(value, nodata) else value + int(float(shift)) for value in row] for row in pixels.tolist()
    ]
    if how is None:
        assert dtype == target
        assert pixels.tolist() == expected
        return
    out = np.empty_like(pixels, target)
    normalise(pixels, how, out)
    assert out.tolist() == expected


@given(
    data=st.data(),
    dtype=st.sampled_from([*INTEGERS, "float16", "float32", "float64"]),
    target=st.sampled_from(["float32", "float64"]),
    scale=st.sampled_from([0.0001, 0.0000275, 0.00341802, 0.1, 3.0, -2.0, float(np.float32(0.01))]),
    offset=st.sampled_from([0.0, -0.1, -0.2, 149.0, 1e6]),
)
def test_physical_values_are_rounded_once(data, dtype, target, scale, offset):
    pixels = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)))
    nodata = data.draw(st.none() | st.sampled_from(pixels.ravel().tolist()))
    out = run(pixels, nodata, scale, offset, band(target, NAN))
    with np.errstate(over="ignore", invalid="ignore"):
        for value, got in zip(pixels.ravel(), out.ravel(), strict=True):
            wanted = NAN if is_missing(value, nodata) else np.dtype(target).type(np.float64(value) * scale + offset)
            assert got == wanted or (np.isnan(got) and np.isnan(wanted))


@given(
    data=st.data(),
    pair=st.sampled_from([("uint8", "int16"), ("int8", "float16"), ("int16", "float32"), ("float32", "float64"),
                          ("uint32", "int64"), ("float16", "float32"), ("float32", "complex64")]),
)  # fmt: skip
def test_wider_dtypes_hold_the_same_numbers(data, pair):
    dtype, target = pair
    pixels = data.draw(hnp.arrays(dtype, (3, 4), elements={"allow_nan": False} if dtype[0] == "f" else None))
    out = run(pixels, None, 0.5, 7.0, band(target, scale=0.5, offset=7.0))
    assert out.dtype == target
    assert (out == pixels).all()


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1), (300, 257), (0, 5), (5, 0)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_any_shape_and_any_strides(shape, dtype):
    rng = np.random.default_rng(1)
    whole = rng.integers(0, 50, (*shape, 3)).astype(dtype)
    target = band("float32", NAN)
    outputs = np.full((shape[0] * 2, shape[1] + 3), -1.0, "f4")
    out = outputs[::2, 1 : 1 + shape[1]]
    how = plan_normalisation(dtype, 7, 0.1, 1.0, target)
    normalise(whole[..., 1], how, out)
    expected = np.where(whole[..., 1] == 7, NAN, whole[..., 1].astype("f8") * 0.1 + 1.0).astype("f4")
    np.testing.assert_array_equal(out, expected)
    assert (outputs[1::2] == -1).all()
    assert (outputs[:, 0] == -1).all()
    assert (outputs[:, 1 + shape[1] :] == -1).all()


def test_one_pixel_fills_a_part():
    out = np.zeros((300, 300), "i4")
    how = plan_normalisation("uint16", 0, 0.0001, 0.0, band("int32", 0, scale=0.0001, offset=-0.1))
    normalise(np.full((1, 1), 3, "u2"), how, out)
    assert (out == 1003).all()


@pytest.mark.parametrize(("scale", "target"), [(1.0, "int32"), (0.1, "float32")])
def test_memory_does_not_grow_with_the_pixels(scale, target):
    pixels, out = np.ones((2048, 2048), "u2"), np.empty((2048, 2048), target)
    how = plan_normalisation("uint16", 0, scale, -5.0, band(target, -1))
    tracemalloc.start()
    try:
        normalise(pixels, how, out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("dtype", "scale", "offset", "target"),
    [
        ("uint16", 0.0001, 0.0, band("uint16", 0, scale=0.0001, offset=-0.1)),  # would wrap
        ("uint16", 1.0, 0.0, band("uint8")),
        ("float32", 1.0, 0.0, band("int32")),
        ("float64", 1.0, 0.0, band("float32")),
        ("uint16", 0.1, 0.0, band("float32", scale=0.2)),
        ("complex64", 0.1, 0.0, band("float32")),
        ("float32", 1.0, 1.0, band("int32")),
    ],
)
def test_what_a_band_cannot_hold_is_refused(dtype, scale, offset, target):
    with pytest.raises(
        ManifestError, match=rf"^band 'red' \({target.dtype}, .* cannot hold .* \({dtype}, .*; build the cube again$"
    ):
        plan_normalisation(dtype, None, scale, offset, target)


@pytest.mark.parametrize(
    ("source", "target", "shift"),
    [
        ((0.0001, 0.0), (0.0001, -0.1), 1000),  # 0.1 / 0.0001 is 999.9999999999999 in binary
        ((0.0001, -0.1), (0.0001, 0.0), -1000),
        ((0.0001, -0.1), (float(np.float32(0.0001)), float(np.float32(-0.1))), 0),
        ((float(np.float32(0.0001)), float(np.float32(-0.1))), (0.0001, 0.0), -1000),
        ((0.0000275, -0.2), (0.0000275, 0.0), None),  # 7272.7 steps
        ((0.1, 0.3), (0.1, 0.1), 2),
        ((0.5, 0.0), (1.0, 0.0), None),
        ((1.0, 0.5), (1.0, 0.0), None),
        ((0.0, 1.0), (0.0, 1.0), 0),
        ((0.0, 1.0), (0.0, 0.0), None),
        ((-2.0, 8.0), (-2.0, 0.0), -4),
        ((1e300, 1e300), (1e300, 0.0), 1),
        ((1.0, 134217728.0), (1.0, 0.0), 134217728),  # 134217730 is the shortest text of it in single precision
        ((0.125, 1234567.125), (0.125, 0.0), 9876537),
    ],
)
def test_shifts_are_told_in_decimals(source, target, shift):
    assert shift_between(*source, *target) == shift


@pytest.mark.parametrize("nodata", [-9999.0, 0.001, -1.2676506e30, -3.4028234663852886e38, 1e-40, 0.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_next_to_nodata_are_missing_as_gdal_has_it(dtype, nodata):
    steps = np.array([0, 1e-16, 1e-9, 1e-7, 3e-7, 4e-7, 4.7e-7, 4.8e-7, 1e-6, 0.5, 2, -1e-7, -4e-7, -1e-6])
    with np.errstate(over="ignore"):
        pixels = (nodata * (1 + steps)).astype(dtype)[np.newaxis]
    grid = {"transform": Affine(1, 0, 5, 0, -1, 5), "nodata": float(pixels[0, 0])}
    with MemoryFile() as file:
        with file.open(driver="GTiff", count=1, dtype=dtype, width=len(steps), height=1, **grid) as dataset:
            dataset.write(pixels, 1)
        with file.open() as dataset:
            is_missing = dataset.read_masks(1) == 0
            nodata = dataset.nodata
    target = band(dtype, nodata)
    how = plan_normalisation(dtype, nodata, 1.0, 0.0, target, is_strict=False)
    assert (how is None) is (nodata == 0)
    out = pixels.copy()
    if how is not None:
        normalise(pixels, how, out)
    np.testing.assert_array_equal(out, np.where(is_missing, pixels.dtype.type(nodata), pixels))
