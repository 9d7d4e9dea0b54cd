"""Masks: True means clear, for every class and every integer type."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.algebra.masks import SCL_CLEAR, Mask, parse_mask
from cube.errors import SelectionError
from cube.testing.archive import CLEAR

CLASSES = st.sampled_from(["uint8", "int8", "uint16", "int32"]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=6))
)


@given(CLASSES, st.lists(st.integers(-300, 300), max_size=8))
def test_clear_is_where_the_class_is_one_of_those_kept(classes: np.ndarray, clear: list[int]) -> None:
    found = Mask(band="scl", clear=tuple(clear)).apply(classes)
    assert found.dtype == bool
    expected = [int(value) in clear for value in classes.flat]
    np.testing.assert_array_equal(found, np.array(expected).reshape(classes.shape))


def test_every_byte_is_either_clear_or_not() -> None:
    every = np.arange(256, dtype="uint8")
    np.testing.assert_array_equal(np.flatnonzero(parse_mask("scl").apply(every)), [2, 4, 5, 6, 7, 11])


def test_the_clear_classes_are_those_of_the_synthetic_archive() -> None:
    assert SCL_CLEAR == CLEAR


@pytest.mark.parametrize(
    ("text", "band", "clear"),
    [
        ("scl", "scl", SCL_CLEAR),
        ("SCL", "SCL", SCL_CLEAR),
        ("scl=4", "scl", (4,)),
        (" qa = 1, 2 ,-3", "qa", (1, 2, -3)),
    ],
)
def test_a_text_becomes_a_mask(text: str, band: str, clear: tuple[int, ...]) -> None:
    assert parse_mask(text) == Mask(band=band, clear=clear)


@pytest.mark.parametrize("text", ["scl=", "scl=a", "scl=4,", "scl=4.5", "scl==4"])
def test_values_that_are_none_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(SelectionError, match=r"as in scl=4,5,6"):
        parse_mask(text)


def test_a_band_whose_clear_values_nobody_knows_is_refused() -> None:
    with pytest.raises(SelectionError, match=r"say which values of 'qa' are clear, as in --mask qa=0"):
        parse_mask("qa")
