"""What "no data" means to numbers, written by bits: a masked copy costs ten times as much where the mask is ragged."""

from __future__ import annotations

import numpy as np


def set_missing(values: np.ndarray, missing: np.ndarray) -> None:
    """Make values NaN, in place.

    Args:
        values: float32 or float64, contiguous along the last axis.
        missing: bool, of the same shape.
    """
    bits = values.view(f"u{values.itemsize}")
    np.bitwise_or(bits, np.negative(missing, dtype=bits.dtype, casting="unsafe"), out=bits)  # all ones are a NaN


def zero_missing(values: np.ndarray, missing: np.ndarray) -> None:
    """Make values 0, in place; as `set_missing` otherwise."""
    bits = values.view(f"u{values.itemsize}")
    keep = missing.view("u1").astype(bits.dtype)
    keep -= bits.dtype.type(1)  # all ones where there is a value
    bits &= keep


def count_present(missing: np.ndarray) -> int | np.ndarray:
    """Return how many values of the first axis are there: one number where all are, else int32 (...)."""
    if not missing.any():
        return len(missing)
    # Bytes are added in bytes where they cannot overflow: four times as many at once.
    dtype = "u1" if len(missing) < 256 else "i4"
    absent: np.ndarray = np.add.reduce(missing.view("u1"), axis=0, dtype=dtype)
    return len(missing) - absent.astype("i4")
