"""Spectral indices: their formula on every kind of number, and where it has no answer."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.algebra import indices
from cube.algebra.indices import INDICES, find_index
from cube.errors import SelectionError

REFLECTANCES = st.one_of(st.sampled_from([0.0, -0.1, 0.1, np.nan]), st.floats(-1, 2, allow_subnormal=False))
PAIRS = hnp.array_shapes(max_dims=3, max_side=5).flatmap(
    lambda shape: st.tuples(*[hnp.arrays("float64", shape, elements=REFLECTANCES)] * 2)
)


def normalized_difference(first: np.ndarray, second: np.ndarray, **options: Any) -> np.ndarray:
    """The index, with NaN where it has no value."""
    found, missing = indices.normalized_difference(first, second, **options)
    assert found.dtype.kind == "f"
    return np.where(missing, np.nan, found)


@given(PAIRS)
def test_it_is_the_formula_pixel_by_pixel(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    before = first.copy(), second.copy()
    with np.errstate(all="raise", under="ignore"):
        found = normalized_difference(first, second)
    expected = [
        float("nan") if np.isnan(a) or np.isnan(b) or a + b == 0 else (a - b) / (a + b)
        for a, b in zip(first.flat, second.flat, strict=True)
    ]
    np.testing.assert_array_equal(found, np.array(expected).reshape(first.shape))
    np.testing.assert_array_equal(first, before[0])
    np.testing.assert_array_equal(second, before[1])


@given(PAIRS)
def test_changing_the_bands_places_changes_the_sign(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    np.testing.assert_array_equal(normalized_difference(first, second), -normalized_difference(second, first))


def test_a_sum_of_zero_is_no_data_and_no_infinity() -> None:
    found = normalized_difference(np.array([0.0, 0.1, -0.2, 1.0]), np.array([0.0, -0.1, 0.2, 0.0]))
    np.testing.assert_array_equal(found, [np.nan, np.nan, np.nan, 1.0])


def test_what_was_missing_before_stays_so() -> None:
    missing = np.array([True, False, False])
    found = normalized_difference(np.array([3, 0, 3], "u2"), np.array([1, 0, 1], "u2"), missing=missing)
    np.testing.assert_array_equal(found, [np.nan, np.nan, 0.5])


@pytest.mark.parametrize(
    ("name", "bands"), [("ndvi", ("nir", "red")), ("NDVI", ("nir", "red")), ("ndwi", ("green", "nir"))]
)
def test_an_index_is_found_by_its_name(name: str, bands: tuple[str, str]) -> None:
    assert find_index(name).bands == bands


def test_every_index_says_what_it_is_and_where_it_comes_from() -> None:
    assert INDICES
    for name, index in INDICES.items():
        assert name == index.name == name.lower()
        assert index.long_name.startswith("normalized")
        assert index.source
        assert len(set(index.bands)) == 2


def test_an_unknown_index_is_refused_with_those_there_are() -> None:
    with pytest.raises(SelectionError, match="'evi' was asked for; there are nbr, ndvi, ndwi"):
        find_index("evi")
