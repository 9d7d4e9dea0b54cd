"""Any part of any small archive equals what rasterio reads file by file."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.grid import Window
from cube.reader import read_block
from cube.spec import CubeSpec
from cube.testing.archive import write_cog

DATES = ("20240115", "20240210", "20240405", "20241231")
BANDS = ("nir", "red")
ORIGIN = (500000.0, 5000000.0)
PIXEL = 10
FILL = 251


@dataclass(frozen=True)
class Layout:
    """How an archive is made: all that hypothesis chooses."""

    tile_shapes: tuple[tuple[int, ...], tuple[int, ...]]
    """Heights of the rows of sources, and widths of the columns."""
    missing: frozenset[tuple[int, int, int, int]]
    """(date, band, row, column) of the files that are not there."""
    dates: int
    dtype: str
    nodata: int | None
    sparse: bool
    codec: str
    interleave: bool
    """Both bands in one file, pixel by pixel."""
    block: tuple[int, int]
    overviews: bool
    seed: int

    def creation(self) -> Mapping[str, Any]:
        """GDAL's options."""
        options = {"compress": self.codec, "nodata": self.nodata}
        if self.overviews:
            return options | {"driver": "COG", "blocksize": 16 * max(1, self.block[0] // 16), "OVERVIEW_COUNT": 1}
        options |= {"driver": "GTiff", "blockysize": self.block[0], "blockxsize": self.block[1]}
        return options | {"sparse_ok": self.sparse, "interleave": "pixel"}


@st.composite
def layouts(draw):
    rows, columns = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    size = st.integers(1, 70)
    heights = tuple(draw(size) for _ in range(rows))
    widths = tuple(draw(size) for _ in range(columns))
    overviews = draw(st.booleans())
    if overviews:
        heights, widths = (tuple(32 * max(1, size // 32) for size in sizes) for sizes in (heights, widths))
    dates = draw(st.integers(1, 4))
    places = list(itertools.product(range(dates), range(2), range(rows), range(columns)))
    return Layout(
        tile_shapes=(heights, widths),
        missing=frozenset(draw(st.sets(st.sampled_from(places), max_size=len(places) // 2))),
        dates=dates,
        dtype=draw(st.sampled_from(["uint8", "int16", "float32"])),
        nodata=draw(st.sampled_from([None, 0, 7])),
        sparse=draw(st.booleans()),
        codec=draw(st.sampled_from(["NONE", "DEFLATE", "LZW", "ZSTD"])),
        interleave=draw(st.booleans()),
        block=(draw(st.sampled_from([16, 32, 64])), draw(st.sampled_from([16, 48]))),
        overviews=overviews,
        seed=draw(st.integers(0, 999)),
    )


def write_files(layout, folder):
    """Write the archive and return (path, date, band indices, row, column) of each file; rows and columns in pixels."""
    rng = np.random.default_rng(layout.seed)
    heights, widths = layout.tile_shapes
    tops, lefts = np.cumsum([0, *heights]).tolist(), np.cumsum([0, *widths]).tolist()
    groups = [(0, 1)] if layout.interleave else [(0,), (1,)]
    files = []
    places = itertools.product(range(layout.dates), groups, range(len(heights)), range(len(widths)))
    for date, bands, row, column in places:
        if (date, bands[0], row, column) in layout.missing:
            continue
        array = rng.integers(1, 120, (len(bands), heights[row], widths[column])).astype(layout.dtype)
        if layout.sparse:  # whole blocks without data, for GDAL to leave out
            array[:, : layout.block[0] * 2, : layout.block[1]] = layout.nodata or 0
        array[:, -1, :] = layout.nodata or 0
        name = f"r{row}c{column}_{DATES[date]}_{'both' if layout.interleave else BANDS[bands[0]]}.tif"
        transform = from_origin(ORIGIN[0] + lefts[column] * PIXEL, ORIGIN[1] - tops[row] * PIXEL, PIXEL, PIXEL)
        descriptions = BANDS if layout.interleave else ()
        write_cog(folder / name, array, transform=transform, descriptions=descriptions, **layout.creation())
        files.append((folder / name, date, bands, tops[row], lefts[column]))
    return files


class Case:
    """A built archive and the plain, eager answer to everything that can be asked of it."""

    def __init__(self, layout):
        self.layout = layout
        self.folder = Path(tempfile.mkdtemp(prefix="cube-reads-"))
        self.files = write_files(layout, self.folder)
        if not self.files:
            return
        pattern = "{tile}_{time:%Y%m%d}_{}.tif" if layout.interleave else "{tile}_{time:%Y%m%d}_{band}.tif"
        self.manifest = build(self.folder, pattern=pattern, fill_value=FILL, to=self.folder / "a.cube")
        self.top, self.left = min(file[3] for file in self.files), min(file[4] for file in self.files)
        self.dates = sorted({file[1] for file in self.files})
        self.bands = [band.name for band in self.manifest.bands]

    def truth(self, level=0):
        """Return (time, y, x) by band at a level, from rasterio and the places that the layout chose."""
        height, width = self.manifest.grid_at(level).shape
        factor = 2**level
        hole = FILL if self.layout.nodata is None else self.layout.nodata
        found = {band: np.full((len(self.dates), height, width), hole, self.layout.dtype) for band in self.bands}
        for path, date, bands, row, column in self.files:
            options = {"OVERVIEW_LEVEL": level - 1} if level else {}
            with rasterio.open(path, **options) as oracle:
                values = oracle.read()
            y, x = (row - self.top) // factor, (column - self.left) // factor
            for band, each in zip(bands, values, strict=True):
                place = found[BANDS[band]][self.dates.index(date)]
                place[y : y + each.shape[0], x : x + each.shape[1]] = each
        return found

    def close(self):
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def cases():
    """Archives by their layout: hypothesis asks for the same one again while it shrinks."""
    known: dict[Layout, Case] = {}
    yield lambda layout: known.get(layout) or known.setdefault(layout, Case(layout))
    for case in known.values():
        case.close()


def windows(draw, height, width):
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(
        top=top, bottom=draw(st.integers(top + 1, height)), left=left, right=draw(st.integers(left + 1, width))
    )


FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@FEW
@given(layouts(), st.data())
def test_any_window_of_any_dates_and_bands(cases, layout, data):
    case = cases(layout)
    if not case.files:
        return
    level = data.draw(st.integers(0, len(case.manifest.levels) - 1))
    truth = case.truth(level)
    height, width = case.manifest.grid_at(level).shape
    spec = CubeSpec(manifest=case.manifest.url, version=case.manifest.version, level=level)
    for _ in range(4):
        window = windows(data.draw, height, width)
        times = data.draw(st.lists(st.sampled_from(range(len(case.dates))), max_size=5))
        bands = data.draw(st.lists(st.sampled_from(case.bands), unique=True))
        found = read_block(spec, bands, times, window)
        assert list(found) == bands
        for band in bands:
            expected = truth[band][times, window.top : window.bottom, window.left : window.right]
            np.testing.assert_array_equal(found[band], expected)
            assert found[band].dtype == layout.dtype


@FEW
@given(layouts(), st.data())
def test_any_chunking(cases, layout, data):
    case = cases(layout)
    if not case.files:
        return
    lengths = st.sampled_from(["auto", -1, 13, 16, 17, 33, 64, 500])
    optional = {"time": st.sampled_from(["auto", -1, 1, 2, 3]), "y": lengths, "x": lengths}
    chunks = data.draw(st.none() | st.just("auto") | st.fixed_dictionaries({}, optional=optional))
    truth = case.truth()
    with dask.config.set(scheduler="synchronous"):
        ds = open_cube(case.manifest, chunks=chunks, mask_and_scale=False).compute()
    assert set(ds.data_vars) == set(case.bands)
    for band in case.bands:
        np.testing.assert_array_equal(ds[band].values, truth[band])
    stamps = [f"{DATES[i][:4]}-{DATES[i][4:6]}-{DATES[i][6:]}" for i in case.dates]
    np.testing.assert_array_equal(ds.time.values, np.array(stamps, "datetime64[ns]"))
    np.testing.assert_array_equal(ds.x.values, ORIGIN[0] + PIXEL * (case.left + 0.5 + np.arange(ds.sizes["x"])))
    np.testing.assert_array_equal(ds.y.values, ORIGIN[1] - PIXEL * (case.top + 0.5 + np.arange(ds.sizes["y"])))


indexers = st.one_of(
    st.integers(-1, 0),
    st.slices(6),
    st.lists(st.integers(-1, 0), min_size=1, max_size=3),
)


def is_odd(each, length):
    """Whether others fail: dask gives [-5:0:-1] of two numbers one, where numpy gives none, and xarray stumbles."""
    backwards = isinstance(each, slice) and (each.step or 1) < 0
    return backwards and (not range(length)[each] or (each.start is not None and each.start < 0))


@FEW
@given(layouts(), st.dictionaries(st.sampled_from(["time", "y", "x"]), indexers), st.booleans())
def test_any_index(cases, layout, key, lazy):
    case = cases(layout)
    if not case.files:
        return
    truth = case.truth()
    shape = dict(zip(("time", "y", "x"), truth[case.bands[0]].shape, strict=True))
    key = {dim: each for dim, each in key.items() if not is_odd(each, shape[dim])}
    with dask.config.set(scheduler="synchronous"):
        ds = open_cube(case.manifest, chunks=None if lazy else {"y": 17, "x": 16}, mask_and_scale=False)
        for band in case.bands:
            found = ds[band].isel(key).values
            expected = ds[band].copy(data=truth[band]).isel(key).values
            np.testing.assert_array_equal(found, expected)


@FEW
@given(layouts())
def test_physical_values_are_missing_where_nodata_or_nothing_is(cases, layout):
    case = cases(layout)
    if not case.files:
        return
    truth = case.truth()
    with dask.config.set(scheduler="synchronous"):
        ds = open_cube(case.manifest).compute()
    for band, values in truth.items():
        nodata = case.manifest.band(band).nodata
        missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        if nodata is not None:
            missing |= values == nodata
        np.testing.assert_array_equal(np.isnan(ds[band].values.astype("float64")), missing)
        np.testing.assert_array_equal(ds[band].values[~missing], values[~missing])
