"""Masks: which values of a class band mean "clear"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cube.errors import SelectionError

SCL_CLEAR = (2, 4, 5, 6, 7, 11)
"""Sen2Cor's scene classes that show the ground: dark area, vegetation, bare soil, water, unclassified, snow; not no
data (0), saturated (1), cloud shadow (3), clouds (8, 9) and thin cirrus (10)."""

_KNOWN = {"scl": SCL_CLEAR}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A class band and its values that are kept; True means clear."""

    band: str
    clear: tuple[int, ...]

    def apply(self, classes: np.ndarray) -> np.ndarray:
        """Return a boolean array, True where the class is one of `clear`."""
        table = np.zeros(256, bool)
        if classes.dtype == np.uint8 and all(0 <= value < 256 for value in self.clear):
            table[list(self.clear)] = True
            clear: np.ndarray = table[classes]  # a look-up, several times as fast as a search
            return clear
        return np.isin(classes, self.clear)


def parse_mask(text: str) -> Mask:
    """Return the mask that a text means: "scl" (its clear classes are known) or "BAND=4,5,6" (the values to keep).

    Raises:
        SelectionError: It is neither.
    """
    band, equals, values = text.partition("=")
    band = band.strip()
    if not equals:
        known = _KNOWN.get(band.lower())
        if known is None:
            raise SelectionError(f"mask {text!r}: say which values of {band!r} are clear, as in --mask {band}=0")
        return Mask(band=band, clear=known)
    try:
        clear = tuple(int(value) for value in values.split(","))
    except ValueError:
        raise SelectionError(f"mask {text!r}: give the band and the values to keep, as in scl=4,5,6") from None
    return Mask(band=band, clear=clear)
