"""The named workloads, and the answers they must have: computed from the local files by the plainest code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import rasterio
import rasterio.warp
from affine import Affine
from rasterio.windows import Window

from benchmarks.archives import CLEAR, LocalArchive, recipe, transform_of
from benchmarks.peers.protocol import Workload

WORKLOADS = {
    "open": "the cube of 200 dates is opened, no pixel is read",
    "scan": "the headers of 500 files are read: tile tables and four overviews each",
    "series": "one pixel at all 200 dates",
    "window": "1536 x 1536 pixels of 2 bands at 6 dates, stored numbers",
    "whole": "4096 x 4096 pixels of 2 bands at 6 dates, stored numbers",
    "ndvi_mean_window": "mean NDVI of 6 dates, 1536 x 1536 pixels",
    "ndvi_mean_whole": "mean NDVI of 6 dates, 4096 x 4096 pixels",
    "ndvi_median_whole": "median NDVI of 6 dates, 4096 x 4096 pixels",
    "monthly": "median NDVI of the clear dates of each of 3 months: 12 dates of nir, red and a class band, 2048 x 2048",
    "two_zones": "20 km at 10 m on the border of two UTM zones: 12 scenes of 6 dates joined on one grid, nearest",
    "two_zones_coarse": "the same at 40 m, for which overviews do",
    "chips": "2,000 chips of 256 x 256 pixels at random places and dates, for training",
}
"""What each is, in its full size."""

IMPORTANT = ("series", "window", "whole", "ndvi_mean_window", "ndvi_mean_whole")
"""What `make bench` runs."""

_TOLERANCE = 1e-5
_NEIGHBOURS = 0.02


def workloads(*, full: bool) -> dict[str, Workload]:
    """Return all workloads by name; small ones unless `full`."""
    cube = recipe("cube", full=full)
    # Not on the edges of tiles, as windows of real work are not.
    start, side = (700, 1536) if full else (100, 600)
    window = (start, start + side, start + 11, start + 11 + side)
    ndvi = {"archive": "cube", "bands": ("nir", "red")}
    made = [
        Workload("open", "series", ("red",), "open"),
        Workload("scan", "scan", ("red",), "scan"),
        Workload("series", "series", ("red",), "stack", window=(300, 301, 700, 701)),
        Workload("window", kind="stack", window=window, **ndvi),
        Workload("whole", kind="stack", **ndvi),
        Workload("ndvi_mean_window", kind="ndvi_mean", window=window, **ndvi),
        Workload("ndvi_mean_whole", kind="ndvi_mean", **ndvi),
        Workload("ndvi_median_whole", kind="ndvi_median", **ndvi),
        Workload("monthly", "scenes", ("nir", "red", "scl"), "monthly", clear=CLEAR),
        _mosaic("two_zones", full=full, factor=1),
        _mosaic("two_zones_coarse", full=full, factor=4),
        _chips(full=full),
    ]
    assert [each.name for each in made] == list(WORKLOADS)
    assert all(stop <= size for stop, size in zip(window[1::2], (cube.size, cube.size), strict=True))
    return {each.name: each for each in made}


def _chips(*, full: bool) -> Workload:
    series, count, chip = recipe("series", full=full), 2000 if full else 40, 256 if full else 96
    rng = np.random.default_rng(7)
    dates = rng.integers(0, len(series.dates), count)
    rows, columns = rng.integers(0, series.size - chip + 1, (2, count))
    places = tuple((int(t), int(y), int(x)) for t, y, x in zip(dates, rows, columns, strict=True))
    return Workload("chips", "series", ("red",), "chips", chips=places, chip=chip)


def _mosaic(name: str, *, full: bool, factor: int) -> Workload:
    """Return a square around the border of the zones, on the grid of the eastern one."""
    made = recipe("zones", full=full)
    epsg, (a, b, c, d, e, f, *_) = transform_of(made, made.zones[-1])
    size, side = 10.0 * factor, (2000 if full else 480) // factor
    # The border is a third of a scene from the western edge; no pixel of the grid is one of the scenes' tiles.
    left, top = c + a * (made.size // 3 - side * factor // 2), f + e * (made.size - side * factor) // 2
    return Workload(name, "zones", ("red",), "mosaic", target=(epsg, size, b, left, d, -size, top, side, side))


def answer(workload: Workload, archive: LocalArchive) -> np.ndarray:
    """Return what a workload must answer, from a file where it was computed before."""
    described = json.dumps([dataclasses.asdict(workload), archive.fingerprint])
    name = f"{workload.name}-{hashlib.sha256(described.encode()).hexdigest()[:12]}.npy"
    path = archive.answers / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_suffix(f".{os.getpid()}.npy")
        np.save(writing, _compute(workload, archive))
        writing.replace(path)
    return np.load(path, mmap_mode="r")


def difference(found: np.ndarray, wanted: np.ndarray, workload: Workload) -> str | None:
    """Return how an answer differs from the one it must be, in words; None where it is right.

    Stored numbers must be equal, floats within 1e-5; data types of numbers may differ only among floats. Of a mosaic,
    two pixels in a hundred may be their neighbours: GDAL is off by up to an eighth of a pixel unless it is told to be
    exact.
    """
    allowed = _NEIGHBOURS if workload.kind == "mosaic" else 0.0
    if found.shape != wanted.shape:
        return f"shape {found.shape} instead of {wanted.shape}"
    if found.dtype != wanted.dtype and not (found.dtype.kind == wanted.dtype.kind == "f"):
        return f"{found.dtype} instead of {wanted.dtype}"
    if wanted.ndim == 0 or not wanted.size:
        return None
    for i in range(len(wanted)):  # a plane at a time: answers are as large as the memory of small machines
        mine, other = np.asarray(found[i]), np.asarray(wanted[i])
        same = mine == other
        if wanted.dtype.kind == "f":
            same |= np.abs(mine - other) <= _TOLERANCE
            same |= np.isnan(mine) & np.isnan(other)
        if np.count_nonzero(~same) > allowed * same.size:
            at = tuple(int(n) for n in np.argwhere(~np.atleast_1d(same))[0])
            values = f"{np.atleast_1d(mine)[at]} instead of {np.atleast_1d(other)[at]}"
            return f"{np.count_nonzero(~same):,} of {same.size:,} values of plane {i} differ, first at {at}: {values}"
    return None


def _compute(workload: Workload, archive: LocalArchive) -> np.ndarray:
    if workload.kind == "open":
        return np.array([len(archive.bands), len(archive.dates), archive.size, archive.size])
    if workload.kind == "scan":
        rows = [_header(archive.path(band, date)) for date in archive.dates for band in archive.bands]
        return np.array(rows)
    if workload.kind == "chips":
        return np.stack([_chip(workload, archive, *place) for place in workload.chips])
    if workload.kind == "mosaic":
        return np.stack([_join(workload, archive, date) for date in archive.dates])
    if workload.kind == "stack":
        return np.stack([_stack(workload, archive, band) for band in workload.bands])
    return _ndvi(workload, archive)


def _header(path: Path) -> tuple[int, int, int]:
    with rasterio.open(path) as file:
        return file.height, file.width, file.block_shapes[0][0]


def _chip(workload: Workload, archive: LocalArchive, date: int, row: int, column: int) -> np.ndarray:
    with rasterio.open(archive.path(workload.bands[0], archive.dates[date])) as file:
        return file.read(1, window=Window(column, row, workload.chip, workload.chip))


def _read(workload: Workload, path: Path, rows: slice) -> np.ndarray:
    """Return some rows of the workload's window of one file."""
    with rasterio.open(path) as file:
        top, bottom, left, right = workload.window or (0, file.height, 0, file.width)
        first, last = top + rows.start, min(bottom, top + rows.stop)
        return file.read(1, window=Window(left, first, right - left, last - first))


def _stack(workload: Workload, archive: LocalArchive, band: str) -> np.ndarray:
    everything = slice(0, archive.size)
    return np.stack([_read(workload, archive.path(band, date), everything) for date in archive.dates])


def _ndvi(workload: Workload, archive: LocalArchive) -> np.ndarray:
    top, bottom, _, _ = workload.window or (0, archive.size, 0, 0)
    parts = []
    for start in range(0, bottom - top, 512):
        rows = slice(start, start + 512)
        stacks = {
            band: [_read(workload, archive.path(band, date), rows) for date in archive.dates] for band in workload.bands
        }
        values = _index(*(np.stack(stacks[band]) for band in ("nir", "red")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # pixels without data at any date
            if workload.kind == "ndvi_mean":
                parts.append(np.nanmean(values, axis=0))
            elif workload.kind == "ndvi_median":
                parts.append(np.nanmedian(values, axis=0))
            else:
                values[~np.isin(stacks["scl"], workload.clear)] = np.nan
                months = [date[:6] for date in archive.dates]
                members = [[i for i, other in enumerate(months) if other == month] for month in dict.fromkeys(months)]
                parts.append(np.stack([np.nanmedian(values[positions], axis=0) for positions in members]))
    return np.concatenate(parts, axis=-2).astype("f4")


def _join(workload: Workload, archive: LocalArchive, date: str) -> np.ndarray:
    """Return the scenes of a date on the workload's grid: GDAL's nearest, exact, of the overview that fits."""
    epsg, a, b, c, d, e, f, rows, columns = workload.target
    found = np.zeros((int(rows), int(columns)), "u2")
    factor = round(a / 10)
    for zone in archive.recipe.zones:
        level = {} if factor == 1 else {"overview_level": factor.bit_length() - 2}
        with rasterio.open(archive.path(workload.bands[0], date, zone), **level) as file:
            layer, _ = rasterio.warp.reproject(
                file.read(1),
                np.zeros_like(found),
                src_transform=file.transform,
                src_crs=file.crs,
                src_nodata=0,
                dst_transform=Affine(a, b, c, d, e, f),
                dst_crs=f"EPSG:{int(epsg)}",
                dst_nodata=0,
                resampling=rasterio.warp.Resampling.nearest,
                tolerance=0,
            )
        found = np.where(found == 0, layer, found)
    return found


def _index(nir: np.ndarray, red: np.ndarray) -> np.ndarray:
    first, second = (np.where(each == 0, np.nan, each.astype("f4")) for each in (nir, red))
    with np.errstate(invalid="ignore"):
        return (first - second) / (first + second)
