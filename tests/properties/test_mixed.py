"""Any part of any archive of files that differ equals a plain answer that numpy computes from the arrays written."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import dask
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.errors import BuildError
from cube.grid import Window
from cube.reader import read_block
from cube.spec import CubeSpec

DATES = ("2024-01-15", "2024-02-10", "2024-04-05")
BANDS = ("red", "green", "nir")
ORIGIN, PIXEL = (500000.0, 5000000.0), 10
UNIT = 10_000
"""Scales and offsets are whole numbers of 1 / UNIT here, so that physical values are exact."""
FILL = 113
"""The user's; odd, as no stored number and no shift is."""
CODECS = ("none", "deflate", "lzw", "zstd", "lerc", "packbits")
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
DTYPES = (*INTEGERS[:6], "float32", "float64", *INTEGERS[6:])
LERC_DTYPES = (*INTEGERS[:6], "float32", "float64")
NUMBERS = (0, 8, 254, -98, 30_000)
"""Nodata values, which are values of other files."""
SCALES = ((UNIT, 0), (1, 0), (1, -1000), (5000, 10_000), (20_000, 3))
"""(scale, offset) in units."""
SHIFTS = (-1000, 0, 200, 1000)
"""Offsets of scale 1 unit."""


@dataclass(frozen=True)
class Encoding:
    """How one file stores its bands."""

    dtype: str
    scaling: tuple[int, int]
    nodata: float | None
    validity: str | None
    """"mask" or "alpha"."""
    is_catalogued: bool
    """Scale, offset and nodata are said by the STAC item, not by the file."""
    codec: str
    predictor: int
    endianness: str
    interleave: str
    block: tuple[int, int | None]
    """Height and width of tiles; the width is None for strips."""
    sparse: bool

    @property
    def kind(self):
        return np.dtype(self.dtype).kind

    @property
    def marker(self):
        """The number that marks missing pixels by itself; GDAL's rule: not where a mask or an alpha band says it."""
        return None if self.validity else self.nodata

    def creation(self):
        """GDAL's options."""
        height, width = self.block
        blocks = {"blockysize": height} | ({"tiled": True, "blockxsize": width} if width else {})
        predictor = {"predictor": self.predictor} if self.predictor > 1 else {}
        compress = {} if self.codec == "none" else {"compress": self.codec}
        options = {"endianness": self.endianness, "interleave": self.interleave, "sparse_ok": self.sparse}
        return blocks | predictor | compress | options


@st.composite
def encodings(draw):
    dtype = draw(st.sampled_from(DTYPES[:8]) | st.sampled_from(DTYPES))
    is_float = dtype.startswith("f")
    nodata = draw(st.sampled_from([None, *NUMBERS, *([float("nan")] * is_float)]))
    if nodata is not None and not is_float and not np.iinfo(dtype).min <= nodata <= np.iinfo(dtype).max:
        nodata = None
    validities = [None, None, "mask"]
    validities += ["alpha"] if dtype in {"uint8", "uint16"} and nodata is None else []
    codec = draw(st.sampled_from([each for each in CODECS if each != "lerc" or dtype in LERC_DTYPES]))
    endianness = "LITTLE" if codec == "lerc" else draw(st.sampled_from(["LITTLE", "BIG"]))
    predictors = [1, 3 if is_float else 2] if codec in {"deflate", "lzw", "zstd"} else [1]
    return Encoding(
        dtype=dtype,
        scaling=draw(st.sampled_from(SCALES)),
        nodata=nodata,
        validity=draw(st.sampled_from(validities)),
        is_catalogued=draw(st.booleans()),
        codec=codec,
        predictor=draw(st.sampled_from(predictors)),
        endianness=endianness,
        interleave=draw(st.sampled_from(["pixel", "band"])),
        block=(draw(st.sampled_from([16, 32])), draw(st.sampled_from([None, 16, 48]))),
        sparse=draw(st.booleans()),
    )


@dataclass(frozen=True)
class File:
    """One COG: a date and a place, and the bands that it holds."""

    date: int
    row: int
    column: int
    bands: tuple[int, ...]
    encoding: Encoding

    @property
    def name(self):
        return f"{DATES[self.date]}_r{self.row}c{self.column}_{'-'.join(BANDS[i] for i in self.bands)}"


@dataclass(frozen=True)
class Layout:
    """An archive: all that hypothesis chooses."""

    heights: tuple[int, ...]
    widths: tuple[int, ...]
    files: tuple[File, ...]
    overviews: bool
    fill_value: int | None
    seed: int


@st.composite
def layouts(draw):
    size = st.integers(1, 50)
    overviews = draw(st.booleans())
    heights, widths = draw(st.lists(size, min_size=1, max_size=2)), draw(st.lists(size, min_size=1, max_size=2))
    if overviews:
        heights, widths = [size * 2 for size in heights], [size * 2 for size in widths]
    # Few encodings, each of many files, as archives are.
    theme = draw(st.sampled_from(["same scale", "shifted", "any"]))
    some = draw(st.lists(encodings(), min_size=1 if theme == "same scale" else 2, max_size=4))
    if theme == "same scale":
        some = [replace(each, scaling=some[0].scaling) for each in some]
    if theme == "shifted":
        dtypes = st.sampled_from(INTEGERS[:6])
        some = [
            each if each.kind in "iu" else replace(each, dtype=draw(dtypes), nodata=None, validity=None, predictor=1)
            for each in some
        ]
        some = [replace(each, scaling=(1, draw(st.sampled_from(SHIFTS)))) for each in some]
    if overviews:  # GDAL makes none of masks of 64-bit integers: what it writes for them is noise
        some = [replace(each, validity=None) if each.dtype.endswith("int64") else each for each in some]
    files = []
    for date, row, column in itertools.product(range(draw(st.integers(1, 3))), range(len(heights)), range(len(widths))):
        groups = draw(st.sampled_from([((0, 1, 2),), ((0,), (1,)), ((0,), (2,)), ((0,),), ((0, 1, 2),), ()]))
        files += [File(date, row, column, bands, draw(st.sampled_from(some))) for bands in groups]
    return Layout(
        heights=tuple(heights),
        widths=tuple(widths),
        files=tuple(files),
        overviews=overviews,
        fill_value=draw(st.sampled_from([FILL, None, FILL])),
        seed=draw(st.integers(0, 999)),
    )


def make_pixels(rng, file, shape):
    """Return stored numbers (bands, y, x) with all that is hard: extremes, the nodata of others, missing blocks."""
    encoding = file.encoding
    dtype = np.dtype(encoding.dtype)
    shape = (len(file.bands), *shape)
    if dtype.kind == "f":
        pixels = (rng.integers(-30_000, 30_000, shape) + 0.25).astype(dtype)
        pixels[rng.random(shape) < 0.03] = np.nan
    else:
        limits = np.iinfo(dtype)
        pixels = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        pixels &= ~np.array(1, dtype)  # even
    for number in NUMBERS:
        if dtype.kind == "f" or limits.min <= number <= limits.max:
            pixels[rng.random(shape) < 0.03] = number
    if encoding.nodata is not None:
        pixels[rng.random(shape) < 0.1] = encoding.nodata
    if encoding.sparse:
        height, width = encoding.block
        empty = 0 if encoding.nodata is None or encoding.is_catalogued else encoding.nodata
        pixels[:, : 2 * height, : width or shape[2]] = empty
    return pixels


def write_file(path, file, pixels, valid, corner, *, overviews):
    """Write what a file holds, by GDAL."""
    encoding = file.encoding
    samples = pixels
    photometric = {}
    if encoding.validity == "alpha":
        alpha = np.where(valid, np.iinfo(pixels.dtype).max, 0).astype(pixels.dtype)
        samples = np.concatenate([pixels, alpha[None]])
        photometric = {"alpha": "yes", "photometric": "rgb" if len(pixels) == 3 else "minisblack"}
    count, height, width = samples.shape
    said = {} if encoding.is_catalogued else {"nodata": encoding.nodata}
    shape = {"count": count, "height": height, "width": width, "dtype": encoding.dtype}
    options = encoding.creation() | photometric | said | shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, SPARSE_OK_OVERVIEW=True),
        rasterio.open(
            path, "w", driver="GTiff", crs="EPSG:32633", transform=from_origin(*corner, PIXEL, PIXEL), **options
        ) as out,
    ):
        if not encoding.is_catalogued:
            out.scales, out.offsets = ((number / UNIT,) * count for number in encoding.scaling)
        out.write(samples)
        if encoding.validity == "mask":
            out.write_mask(valid)
    if overviews:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as out:
            out.build_overviews([2], rasterio.enums.Resampling.nearest)


class Case:
    """An archive and the plain, eager answer to all that can be asked of it."""

    def __init__(self, layout):
        self.layout = layout
        self.folder = Path(tempfile.mkdtemp(prefix="cube-mixed-"))
        self.tops, self.lefts = (np.cumsum([0, *sizes]).tolist() for sizes in (layout.heights, layout.widths))
        rng = np.random.default_rng(layout.seed)
        self.pixels = {}
        for file in layout.files:
            shape = layout.heights[file.row], layout.widths[file.column]
            pixels, valid = make_pixels(rng, file, shape), rng.random(shape) < 0.7
            valid |= file.encoding.validity is None
            corner = ORIGIN[0] + self.lefts[file.column] * PIXEL, ORIGIN[1] - self.tops[file.row] * PIXEL
            path = self.folder / f"{file.name}.tif"
            write_file(path, file, pixels, valid, corner, overviews=layout.overviews)
            self.pixels[file] = pixels, valid
        self.given = {band: [file for file in layout.files if i in file.bands] for i, band in enumerate(BANDS)}
        self.given = {band: files for band, files in self.given.items() if files}
        self.dates = sorted({file.date for file in layout.files})
        rows, columns = ([getattr(file, name) for file in layout.files] for name in ("row", "column"))
        self.top, self.left = self.tops[min(rows)], self.lefts[min(columns)]
        self.shape = self.tops[max(rows) + 1] - self.top, self.lefts[max(columns) + 1] - self.left
        self.refusal = None
        try:
            self.manifest = build(
                {"type": "FeatureCollection", "features": list(map(self.item, layout.files))},
                bands=list(self.given),
                fill_value=layout.fill_value,
                to=self.folder / "a.cube",
            )
        except BuildError as error:
            self.refusal = str(error)

    def item(self, file):
        """The STAC Item of a file."""
        encoding = file.encoding
        scale, offset = (number / UNIT for number in encoding.scaling)
        said = {"scale": scale, "offset": offset}
        if encoding.nodata is not None:
            said["nodata"] = "nan" if np.isnan(encoding.nodata) else encoding.nodata
        facts = said if encoding.is_catalogued else {}
        bands = [{"name": BANDS[i], "eo:common_name": BANDS[i], **facts} for i in file.bands]
        asset = {
            "href": (self.folder / f"{file.name}.tif").as_posix(),
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data"],
            "bands": bands,
        }
        return {
            "type": "Feature",
            "stac_version": "1.1.0",
            "id": file.name,
            "properties": {"datetime": f"{DATES[file.date]}T10:00:00Z"},
            "assets": {"-".join(BANDS[i] for i in file.bands): asset},
        }

    def close(self):
        shutil.rmtree(self.folder)

    def place(self, file, factor):
        row, column = self.tops[file.row] - self.top, self.lefts[file.column] - self.left
        height, width = self.layout.heights[file.row], self.layout.widths[file.column]
        rows, columns = (
            slice(row // factor, (row + height) // factor),
            slice(column // factor, (column + width) // factor),
        )
        return self.dates.index(file.date), rows, columns

    def answer(self, band, dtype, nodata, offset, *, is_physical, factor):
        """Return (time, y, x) numbers of a band as a cube of this encoding has them, from the arrays written.

        Args:
            offset: The cube's, in units.
            is_physical: Whether the cube has physical values; else stored numbers, shifted.
        """
        shape = (len(self.dates), *(size // factor for size in self.shape))
        numbers = np.full(shape, 0 if nodata is None else nodata, dtype)
        present = np.zeros(shape, bool)
        for file in self.given[band]:
            pixels, valid = self.pixels[file]
            encoding, stored = file.encoding, pixels[file.bands.index(BANDS.index(band))]
            valid = valid & ~is_marked(stored, encoding.marker)
            scale, own = encoding.scaling
            if is_physical:
                values = (stored.astype("f8") * (scale / UNIT) + own / UNIT).astype(dtype)
            elif own == offset:
                values = stored.astype(dtype)
                assert (values.astype(stored.dtype) == stored)[~is_marked(stored, np.nan)].all()
            else:
                shift, rest = divmod(own - offset, scale)
                assert rest == 0
                exact = stored.astype(object) + shift
                assert valid.size == 0 or np.iinfo(dtype).min <= exact.min() <= exact.max() <= np.iinfo(dtype).max
                values = exact.astype(dtype)
            place = self.place(file, factor)
            valid, values = valid[::factor, ::factor], values[::factor, ::factor]
            present[place] = valid
            numbers[place][valid] = values[valid]
        return numbers, present

    def has_holes(self, band):
        area = sum(self.layout.heights[file.row] * self.layout.widths[file.column] for file in self.given[band])
        return area < len(self.dates) * self.shape[0] * self.shape[1]

    def expected(self, band, attributes, dtype, level=0):
        """Return what a cube holds of a band and where it is missing, after checking that its encoding keeps all."""
        encodings_of = [file.encoding for file in self.given[band]]
        scalings = Counter(each.scaling for each in encodings_of)
        nodata = attributes.get("_FillValue")
        scale, offset = (attributes.get(name, default) for name, default in (("scale_factor", 1), ("add_offset", 0)))
        found = round(scale * UNIT), round(offset * UNIT)
        integers = all(each.kind in "iu" for each in encodings_of)
        steps = {each[0] for each in scalings}
        rests = {each[1] % each[0] for each in scalings}
        is_shifted = len(scalings) > 1 and len(steps) == 1 and len(rests) == 1 and integers
        is_physical = len(scalings) > 1 and not is_shifted
        if is_physical:
            narrow = all(np.dtype(each.dtype).itemsize <= (4 if each.kind == "f" else 2) for each in encodings_of)
            assert (dtype, found) == (np.dtype("f4" if narrow else "f8"), (UNIT, 0))
            assert np.isnan(nodata)
        else:
            assert found == min(scalings, key=lambda each: (-scalings[each], each[1]))
        event("physical" if is_physical else "shifted" if is_shifted else "same scale")
        alike = {(each.dtype, each.scaling, str(each.marker), each.validity) for each in encodings_of}
        if len(alike) == 1 and not encodings_of[0].validity and encodings_of[0].nodata is not None:
            event("passed through")
            assert dtype == encodings_of[0].dtype
            assert str(nodata) == str(np.array(encodings_of[0].nodata, dtype)[()])
        numbers, present = self.answer(band, dtype, nodata, found[1], is_physical=is_physical, factor=2**level)
        self.check_missing(band, numbers, present, nodata)
        return numbers, present

    def check_missing(self, band, numbers, present, nodata):
        """The number that marks missing pixels is no value, and there is one if there are missing pixels."""
        event(f"{numbers.dtype} with{'out' if nodata is None else ''} nodata")
        if nodata is None:
            assert numbers.dtype.kind in "iu" or not self.has_holes(band)
            assert present.all() or numbers.dtype.kind == "f"
        elif not np.isnan(nodata):
            assert not (numbers[present] == nodata).any()


def is_marked(stored, marker):
    if marker is None:
        return np.zeros(stored.shape, bool)
    return np.isnan(stored) if np.isnan(marker) else stored == marker


REFUSALS = (
    r"no data type holds the numbers of both|every number of u?int64 may be a value|"
    r"\(\w+, no nodata value\) is missing at \d+ places or dates"
)


def may_refuse(case):
    """Whether a refusal is right: no data type may hold numbers of 64 bits and others, or nothing can mark holes."""
    for band, files in case.given.items():
        of_band = [file.encoding for file in files]
        if any(each.dtype in {"uint64", "int64"} for each in of_band):
            return True
        is_marked_somewhere = any(each.validity or each.marker is not None for each in of_band)
        if case.layout.fill_value is None and case.has_holes(band) and not is_marked_somewhere:
            return True
    return False


@pytest.fixture(scope="module")
def cases():
    """Archives by their layout: hypothesis asks for the same one again while it shrinks."""
    known: dict[Layout, Case] = {}
    yield lambda layout: known.get(layout) or known.setdefault(layout, Case(layout))
    for case in known.values():
        case.close()


def assert_same_bits(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)
    if found.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def draw_window(draw, height, width):
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    bottom, right = draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))
    return Window(top=top, bottom=bottom, left=left, right=right)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(layouts(), st.data())
def test_any_part_of_any_mixed_archive(cases, layout, data):
    if not layout.files:
        return
    case = cases(layout)
    if case.refusal is not None:
        event("refused")
        assert may_refuse(case), case.refusal
        assert re.search(REFUSALS, case.refusal), case.refusal
        return
    draw = data.draw
    level = draw(st.sampled_from(range(len(case.manifest.levels))))
    lazy = open_cube(case.manifest, level=level, mask_and_scale=False)
    assert set(lazy.data_vars) == set(case.given)
    assert [str(stamp)[:10] for stamp in lazy.time.values] == [DATES[i] for i in case.dates]
    expected = {band: case.expected(band, lazy[band].attrs, lazy[band].dtype, level)[0] for band in case.given}
    height, width = lazy.sizes["y"], lazy.sizes["x"]
    spec = CubeSpec(manifest=case.manifest.url, version=case.manifest.version, level=level)
    for _ in range(3):
        window = draw_window(draw, height, width)
        times = draw(st.lists(st.sampled_from(range(len(case.dates))), min_size=1, max_size=4))
        bands = draw(st.lists(st.sampled_from(list(case.given)), unique=True, min_size=1))
        found = read_block(spec, bands, times, window)
        for band in bands:
            part = expected[band][times, window.top : window.bottom, window.left : window.right]
            assert_same_bits(found[band], part)
            lazily = lazy[band].isel(time=times, y=slice(window.top, window.bottom), x=slice(window.left, window.right))
            assert_same_bits(lazily.values, part)
    length = st.sampled_from([-1, 7, 16, 33, "auto"])
    chunks = draw(st.fixed_dictionaries({}, optional={"time": st.sampled_from([-1, 1, 2]), "y": length, "x": length}))
    with dask.config.set(scheduler="synchronous"):
        eager = open_cube(case.manifest, level=level, chunks=chunks, mask_and_scale=False).compute()
    for band, numbers in expected.items():
        assert_same_bits(eager[band].values, numbers)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(layouts())
def test_physical_values_are_nan_exactly_where_something_is_missing(cases, layout):
    if not layout.files or (case := cases(layout)).refusal is not None:
        return
    stored, physical = (open_cube(case.manifest, mask_and_scale=scaled).load() for scaled in (False, True))
    for band in case.given:
        _, present = case.expected(band, stored[band].attrs, stored[band].dtype)
        exact = np.full(present.shape, np.nan)
        for file in case.given[band]:
            pixels = case.pixels[file][0][file.bands.index(BANDS.index(band))]
            scale, offset = (number / UNIT for number in file.encoding.scaling)
            exact[case.place(file, 1)] = pixels.astype("f8") * scale + offset
        exact[~present] = np.nan
        values = physical[band].values
        np.testing.assert_array_equal(np.isnan(values.astype("f8")), np.isnan(exact))
        digits = np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0
        np.testing.assert_allclose(values.astype("f8"), exact, rtol=4 * digits, atol=2000 * digits)
