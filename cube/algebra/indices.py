"""Spectral indices: which bands each needs, and its formula."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cube.errors import SelectionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """A normalized difference of two bands, (first - second) / (first + second)."""

    name: str
    bands: tuple[str, str]
    """Common names of the first and the second band."""
    long_name: str
    source: str
    """Where the formula comes from."""


INDICES = {
    index.name: index
    for index in (
        Index(
            name="ndvi",
            bands=("nir", "red"),
            long_name="normalized difference vegetation index",
            source="Rouse et al. 1974",
        ),
        Index(
            name="ndwi",
            bands=("green", "nir"),
            long_name="normalized difference water index",
            source="McFeeters 1996, doi:10.1080/01431169608948714",
        ),
        Index(
            name="nbr",
            bands=("nir", "swir22"),
            long_name="normalized burn ratio",
            source="Key and Benson 1999",
        ),
    )
}


def find_index(name: str) -> Index:
    """Return the index of a name.

    Raises:
        SelectionError: There is none.
    """
    found = INDICES.get(name.lower())
    if found is None:
        raise SelectionError(f"index {name!r} was asked for; there are {', '.join(sorted(INDICES))}")
    return found


def normalized_difference(
    first: np.ndarray, second: np.ndarray, *, shift: float = 0.0, missing: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (first - second) / (first + second + shift), and where it has no result.

    Args:
        first: Physical values (reflectance), any shape; or the stored numbers of bands that share scale and offset.
        second: As `first`.
        shift: 0 for physical values. Of stored numbers the scale cancels and the offset does not:
            `2 * offset / scale`, by which integers of up to 16 bits need no physical values, and no float64.
        missing: bool, where else there is no result; becomes the second array.

    Returns:
        The index: float32 for integers of up to 16 bits, whose difference and sum it holds exactly, else the inputs'
        float type; and bool, True where the divisor is 0, an input is NaN or `missing` was True. What the index says
        there means nothing.
    """
    dtype = np.result_type(first, second, np.float32)
    # Both converted once: numpy would convert them piece by piece, and again, in each operation on mixed types.
    total, other = first.astype(dtype), second.astype(dtype)
    result: np.ndarray = total - other
    total += other
    if shift:
        total += dtype.type(shift)
    nothing = total == 0
    missing = nothing if missing is None else np.logical_or(missing, nothing, out=missing)
    if first.dtype.kind == "f" or second.dtype.kind == "f":
        missing |= np.isnan(total)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        np.divide(result, total, out=result)
    return result, missing
