"""What a system under comparison is given, and what it must answer. Plain Python: peers have versions of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Archive:
    """COGs behind a URL that form one cube: one band a file, all on one grid (of "mosaic", on one a UTM zone)."""

    url: str
    """Of the object store, without a trailing slash."""
    items: list[dict[str, Any]]
    """STAC Items, in the order of time; an asset a band with an absolute href, `proj:` and `raster:bands` filled in."""
    extras: dict[str, str]
    """Made beforehand, as a user would: "manifest" (ours, a path), "zarr" and "zarr_rechunked" (URLs), and what
    `prepare` of the peer returned."""
    bands: list[str]
    shape: tuple[int, int]
    """Rows and columns of every file."""
    transform: tuple[float, float, float, float, float, float]
    """Affine a, b, c, d, e, f of pixel corners, in the CRS."""
    epsg: int
    dtype: str
    """Of all bands but "scl", which is uint8."""
    nodata: int | None
    tile: int


@dataclass(frozen=True)
class Workload:
    """What to compute of an archive."""

    name: str
    archive: str
    """Name of the archive it runs on."""
    bands: tuple[str, ...]
    kind: str
    """"stack": the stored numbers (bands, dates, rows, columns); "ndvi_mean", "ndvi_median": float32 (rows, columns),
    NaN where no date has data; "monthly": NDVI's median over the clear dates of each calendar month, float32 (months,
    rows, columns), NaN where none is clear; "chips": stored numbers of the first band (chips, rows, columns);
    "scan": headers read, int64 (files, 3): rows, columns and tile edge of each file, by item and then by `bands`;
    "mosaic": stored numbers of the first band on another grid (dates, rows, columns), nearest, where scenes of a date
    overlap those of the first item; of peers that have a method `mosaic(workload)`, which is then called for `run`;
    "open": the cube opened, nothing read, int64 [bands, dates, rows, columns]; the time is that of `open` and `run`."""
    window: tuple[int, int, int, int] | None = None
    """First row, last + 1, first column, last + 1; all where None."""
    chips: tuple[tuple[int, int, int], ...] = ()
    """(date, first row, first column) of each chip of the first band."""
    chip: int = 0
    """Rows and columns of a chip."""
    clear: tuple[int, ...] = ()
    """Of "monthly": the values of the band "scl" that are clear."""
    target: tuple[float, ...] = ()
    """Of "mosaic": the grid that is read on, as EPSG code, affine a, b, c, d, e, f, rows and columns."""


class Peer(Protocol):
    """One system, in its own best settings."""

    name: str
    settings: str
    """The settings that were chosen, in words a reader of the report can repeat."""
    packages: tuple[str, ...]
    """Distributions whose versions the report names; may be left out where requirements/<name>.txt lists them."""

    def supports(self, workload: Workload) -> str | None:
        """Return None, or why the system cannot do a workload at all."""

    def prepare(self, archive: Archive, folder: str) -> dict[str, str]:
        """Return extras of the archive, made once before anything is timed (references, an index); may be left out.

        Args:
            archive: Without the extras of this peer.
            folder: Of this archive and peer alone, there to write to.
        """

    def open(self, archive: Archive) -> None:
        """Open an archive as a user of the system would; not part of the time of a workload, unless it is "open"."""

    def run(self, workload: Workload) -> np.ndarray | list[np.ndarray]:
        """Return the answer; every pixel is read from the store again (no cache of an earlier run is used).

        Of "stack" and "chips" it may be a list of equal arrays (one a band, a chip), stacked outside of the time.
        """
