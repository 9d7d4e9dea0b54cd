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


def normalized_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (first - second) / (first + second); NaN where the sum is 0 or an input is NaN.

    Args:
        first: Physical values (reflectance), float, any shape. An offset does not cancel: scale the numbers first.
        second: As `first`.
    """
    total = first + second
    with np.errstate(divide="ignore", invalid="ignore"):
        result: np.ndarray = (first - second) / total
    result[total == 0] = np.nan
    return result
