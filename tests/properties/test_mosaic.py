"""Any part of any archive of sources that overlap equals what numpy makes of their pixels, read one by one."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import dask
import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.errors import BuildError, SelectionError
from cube.reader import read_block
from cube.testing.archive import write_cog
from tests.properties import test_mixed as mixed

BANDS = ("red", "green")
TIMES = (
    "2024-05-01T10:00:00Z",
    "2024-05-01T10:00:20Z",
    "2024-05-01T22:30:00Z",
    "2024-05-01T23:30:00Z",
    "2024-05-02T09:00:00Z",
)
LONGITUDE = 15
"""Of the origin: the sun is an hour ahead, so that 23:30 is of the next day."""
ORIGIN, PIXEL, CRS = (500000.0, 5000000.0), 10.0, "EPSG:32633"
RULES = ("first", "last", "newest", "least_cloudy", "mean", "median")
LATTICES = ((0.0, 0.0, 10.0), (3.0, 4.0, 10.0), (2.0, -3.0, 20.0))
"""(metres east, metres south, size of a pixel) of the lattices that archives of several have."""
FEW = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@dataclass(frozen=True)
class Scene:
    """One COG of an archive, and its item."""

    name: str
    time: int
    row: int
    column: int
    """Of its corner, in pixels of its lattice."""
    shape: tuple[int, int]
    bands: tuple[int, ...]
    encoding: mixed.Encoding
    clouds: int | None
    lattice: int = 0

    @property
    def file(self):
        """Its file's name; in another order than the items' names."""
        return f"{chr(ord('a') + ord('z') - ord(self.name))}.tif"

    @property
    def size(self):
        """Of a pixel."""
        return LATTICES[self.lattice][2]

    @property
    def corner(self):
        east, south, size = LATTICES[self.lattice]
        return ORIGIN[0] + east + self.column * size, ORIGIN[1] - south - self.row * size


@dataclass(frozen=True)
class Archive:
    """All that hypothesis chooses of an archive."""

    scenes: tuple[Scene, ...]
    overviews: bool
    seed: int


@st.composite
def encodings(draw):
    """Of every codec, predictor, tile size, data type, nodata and mask; not of integers that doubles do not hold."""
    found = draw(mixed.encodings())
    if found.dtype.endswith("int64"):
        return replace(found, dtype=found.dtype.replace("64", "16"), codec="deflate")
    return found


@st.composite
def archives(draw, lattices=(0,)):
    overviews = draw(st.sampled_from([True, False]))
    step = 2 if overviews else 1
    some = draw(st.lists(encodings(), min_size=1, max_size=3))
    if draw(st.booleans()):
        some = [replace(each, scaling=some[0].scaling) for each in some]
    size, place = st.integers(1, 45).map(lambda n: n * step), st.integers(0, 30).map(lambda n: n * step)
    count = draw(st.integers(2, 6))
    # Letters in another order than times, rows and the order in which items are given.
    names = draw(st.permutations("abcdef"))[:count]
    several = draw(st.sampled_from([True, False]))
    scenes = tuple(
        Scene(
            name=name,
            time=draw(st.sampled_from((3, 0, 4, 1, 2))) if several else 0,
            row=draw(place),
            column=draw(place),
            shape=(draw(size), draw(size)),
            bands=draw(st.sampled_from([(0,), (0, 1)])) if i else (0, 1),
            encoding=draw(st.sampled_from(some)),
            clouds=draw(st.sampled_from([None, 0, 10, 50])),
            lattice=draw(st.sampled_from(lattices)),
        )
        for i, name in enumerate(names)
    )
    return Archive(scenes=scenes, overviews=overviews, seed=draw(st.integers(0, 999)))


def item_of(scene, folder):
    """Return the STAC Item of a scene."""
    scale, offset = (number / mixed.UNIT for number in scene.encoding.scaling)
    said = {"scale": scale, "offset": offset}
    nodata = scene.encoding.nodata
    if nodata is not None:
        said["nodata"] = "nan" if np.isnan(nodata) else nodata
    facts = said if scene.encoding.is_catalogued else {}
    asset = {
        "href": (folder / scene.file).as_posix(),
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "bands": [{"name": BANDS[i], **facts} for i in scene.bands],
    }
    clouds = {} if scene.clouds is None else {"eo:cloud_cover": scene.clouds}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": scene.name,
        "properties": {"datetime": TIMES[scene.time], **clouds},
        "assets": {"-".join(BANDS[i] for i in scene.bands): asset},
    }


def write_scene(path, scene, archive):
    rng = np.random.default_rng([archive.seed, ord(scene.name)])
    pixels = mixed.make_pixels(rng, scene, scene.shape)
    valid = (rng.random(scene.shape) < 0.7) | (scene.encoding.validity is None)
    mixed.write_file(path, scene, pixels, valid, scene.corner, overviews=archive.overviews)
    if scene.size != PIXEL:
        with rasterio.open(path, "r+") as file:
            file.transform = from_origin(*scene.corner, scene.size, scene.size)


class Case:
    """An archive on disk, its manifest, and the plain answers."""

    def __init__(self, archive):
        self.archive = archive
        self.folder = Path(tempfile.mkdtemp(prefix="cube-mosaic-"))
        for scene in archive.scenes:
            write_scene(self.folder / scene.file, scene, archive)
        items = [item_of(scene, self.folder) for scene in archive.scenes]
        self.manifest = None
        try:
            self.manifest = build(
                {"type": "FeatureCollection", "features": items},
                bands=list(BANDS),
                fill_value=mixed.FILL,
                to=self.folder / "a.cube",
            )
        except BuildError:
            # No data type holds the numbers of both, as of uint32 and of what is shifted to below 0.
            if not any(each.encoding.dtype in {"uint32", "int32"} for each in archive.scenes):
                raise
        self.bands = [band for i, band in enumerate(BANDS) if any(i in scene.bands for scene in archive.scenes)]

    def close(self):
        shutil.rmtree(self.folder)

    def ranked(self, rule):
        """Return the scenes, those first that come first."""
        by_name = sorted(self.archive.scenes, key=lambda scene: scene.name)
        ranked = sorted(by_name, key=lambda scene: -scene.time if rule == "newest" else scene.time)
        if rule == "least_cloudy":
            ranked.sort(key=lambda scene: 1000 if scene.clouds is None else scene.clouds)
        return ranked[::-1] if rule == "last" else ranked

    def steps(self, groupby):
        """Return the names of the scenes of each step of time."""
        in_time = sorted(self.archive.scenes, key=lambda scene: (scene.time, scene.name))
        day = [TIMES[i] >= "2024-05-01T23" for i in range(len(TIMES))]
        key = {
            "time": lambda scene: scene.time,
            "solar_day": lambda scene: day[scene.time],
            "id": lambda scene: (scene.time, scene.name),
        }[groupby]
        return [{scene.name for scene in step} for _, step in itertools.groupby(in_time, key)]

    def times(self, groupby):
        """Return the first time of each step."""
        of_scene = {scene.name: np.datetime64(TIMES[scene.time][:-1]) for scene in self.archive.scenes}
        return [min(of_scene[name] for name in step) for step in self.steps(groupby)]

    def numbers(self, scene, band, level):
        """Return a scene's numbers as the cube has them and where they are values, from what rasterio reads."""
        encoding, of_cube = scene.encoding, self.manifest.band(band)
        options = {"OVERVIEW_LEVEL": level - 1} if level else {}
        with rasterio.open(self.folder / scene.file, **options) as file:
            masked = file.read(scene.bands.index(BANDS.index(band)) + 1, masked=True)
        stored, present = masked.data, ~np.ma.getmaskarray(masked)
        if encoding.is_catalogued:
            present &= ~mixed.is_marked(stored, encoding.marker)
        dtype = np.dtype(of_cube.dtype)
        scale, offset = encoding.scaling
        if (scale, offset) == (round(of_cube.scale * mixed.UNIT), round(of_cube.offset * mixed.UNIT)):
            numbers = stored.astype(dtype)
        elif dtype.kind == "f":
            numbers = (stored.astype("f8") * (scale / mixed.UNIT) + offset / mixed.UNIT).astype(dtype)
        else:
            numbers = (stored.astype("i8") + (offset - round(of_cube.offset * mixed.UNIT)) // scale).astype(dtype)
        if of_cube.nodata is None or np.isnan(of_cube.nodata):
            present &= ~mixed.is_marked(numbers, np.nan)
        return numbers, present

    def answer(self, band, *, rule, groupby, level=0, grid=None):
        """Return (steps, rows, columns) of a band, a loop over the scenes on a whole grid.

        Args:
            band: Its name.
            rule: One of `RULES`.
            groupby: See `steps`.
            level: Of the archive's own grid.
            grid: (top, left, height, width) in pixels of the first lattice from the origin; the archive's own where
                None.
        """
        band_of_cube = self.manifest.band(band)
        factor = 2**level
        top, left, height, width = self.own_grid(level) if grid is None else grid
        dtype = np.dtype(band_of_cube.dtype)
        answers = np.full((len(self.steps(groupby)), height, width), band_of_cube.hole, dtype)
        for answer, names in zip(answers, self.steps(groupby), strict=True):
            stack, free = [], np.ones((height, width), bool)  # free: no scene has a value there yet
            for scene in self.ranked(rule):
                if scene.name not in names or BANDS.index(band) not in scene.bands:
                    continue
                numbers, present = self.numbers(scene, band, level)
                east, south, size = LATTICES[scene.lattice]
                # Middles of the grid's pixels, in pixels of the scene.
                across = np.floor(((left + np.arange(width) + 0.5) * PIXEL * factor - east) / (size * factor))
                down = np.floor(((top + np.arange(height) + 0.5) * PIXEL * factor - south) / (size * factor))
                columns, rows = (
                    across.astype(int) - scene.column // factor,
                    down.astype(int) - scene.row // factor,
                )
                inside = ((rows >= 0) & (rows < numbers.shape[0]))[:, None] & (
                    (columns >= 0) & (columns < numbers.shape[1])
                )
                at = np.ix_(rows.clip(0, numbers.shape[0] - 1), columns.clip(0, numbers.shape[1] - 1))
                here, there = numbers[at], present[at] & inside
                stack.append(np.where(there, here.astype("f8"), np.nan))
                answer[free & there] = here[free & there]
                free &= ~there
            if rule in {"mean", "median"} and stack:
                answer[...] = combined(np.stack(stack), ~free, rule, band_of_cube)
        return answers

    def own_grid(self, level):
        factor = 2**level
        top, left = (min(getattr(scene, name) for scene in self.archive.scenes) for name in ("row", "column"))
        bottom, right = (
            max(getattr(scene, name) + scene.shape[i] for scene in self.archive.scenes)
            for i, name in enumerate(("row", "column"))
        )
        return top // factor, left // factor, (bottom - top) // factor, (right - left) // factor


def combined(stack, there, rule, band):
    """Return the mean or median of what is there, halves upwards, and never the number that marks missing pixels.

    Args:
        stack: Of all scenes, NaN where one has no value.
        there: Where any has one; NaN may be a value.
        rule: "mean" or "median".
        band: Of the cube.
    """
    with warnings.catch_warnings(action="ignore"):  # where all are NaN
        values = np.nanmean(stack, axis=0) if rule == "mean" else np.nanmedian(stack, axis=0)
    dtype = np.dtype(band.dtype)
    values[~there] = 0
    found = (np.floor(values + 0.5) if dtype.kind in "iu" else values).astype(dtype)
    if band.nodata is not None:
        below = np.nextafter(dtype.type(band.nodata), dtype.type(-np.inf)) if dtype.kind == "f" else band.nodata - 1
        is_lowest = dtype.kind in "iu" and band.nodata == np.iinfo(dtype).min
        found[found == band.nodata] = band.nodata + 1 if is_lowest else below
    found[~there] = band.hole
    return found


@pytest.fixture(scope="module")
def cases():
    """Archives by what hypothesis chose: it asks for the same one again while it shrinks."""
    known: dict[Archive, Case] = {}
    yield lambda archive: known.get(archive) or known.setdefault(archive, Case(archive))
    for case in known.values():
        case.close()


def draw_grid(draw, case):
    """Return (top, left, height, width) of a grid on the archive's lattice, which may reach beyond it."""
    top, left, height, width = case.own_grid(0)
    up, before = draw(st.integers(-40, height - 1)), draw(st.integers(-40, width - 1))
    return (
        top + up,
        left + before,
        draw(st.integers(max(1, 1 - up), height + 40)),
        draw(st.integers(max(1, 1 - before), width + 40)),
    )


def geobox_of(grid):
    top, left, height, width = grid
    corner = ORIGIN[0] + left * PIXEL, ORIGIN[1] - top * PIXEL
    return GeoBox((height, width), from_origin(*corner, PIXEL, PIXEL), CRS)


def assert_windows_and_chunks(draw, case, expected, **how):
    """Check any chunks, random windows and lazy selections of one way to open a cube."""
    length = st.sampled_from([-1, 7, 16, 33, "auto"])
    chunks = draw(st.fixed_dictionaries({}, optional={"time": st.sampled_from([-1, 1, 2]), "y": length, "x": length}))
    with dask.config.set(scheduler="synchronous"):
        eager = open_cube(case.manifest, mask_and_scale=False, chunks=chunks, **how).compute()
    for band, numbers in expected.items():
        found = eager[band].values
        if how["fuse"] in {"mean", "median"} and numbers.dtype.kind == "f":
            # Sums of floats depend on their order; they do not on the chunks, as is seen below.
            assert (found.dtype, found.shape) == (numbers.dtype, numbers.shape)
            most = 4 * np.finfo("f8").eps * np.abs(numbers[np.isfinite(numbers)]).max(initial=0)
            np.testing.assert_allclose(found, numbers, rtol=np.finfo(numbers.dtype).eps, atol=most)
        else:
            mixed.assert_same_bits(found, numbers)
    lazy = open_cube(case.manifest, mask_and_scale=False, **how)
    steps, height, width = next(iter(expected.values())).shape
    assert lazy.sizes == {"time": steps, "y": height, "x": width}
    np.testing.assert_array_equal(lazy.time.values, case.times(how["groupby"]))
    for _ in range(3):
        window = mixed.draw_window(draw, height, width)
        times = draw(st.lists(st.sampled_from(range(steps)), min_size=1, max_size=3))
        bands = draw(st.lists(st.sampled_from(case.bands), unique=True, min_size=1))
        found = read_block(lazy.encoding["cube"], bands, times, window)
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        for band in bands:
            part = eager[band].values[times, rows, columns]
            for again in (found[band], lazy[band].isel(time=times, y=rows, x=columns).values):
                assert again.dtype == part.dtype
                np.testing.assert_array_equal(again, part)
                if how["fuse"] not in {"mean", "median"}:  # whose zeros have no sign
                    mixed.assert_same_bits(again, part)


def check_own_grid(cases, archive, rule, data):
    case = cases(archive)
    if case.manifest is None:
        event("refused")
        return
    # The coarsest first, which hypothesis likes best.
    level = data.draw(st.sampled_from(range(len(case.manifest.levels))[::-1]))
    groupby = data.draw(st.sampled_from(["solar_day", "time", "id"]))
    event(f"level {level}, {groupby}")
    expected = {band: case.answer(band, rule=rule, groupby=groupby, level=level) for band in case.bands}
    assert_windows_and_chunks(data.draw, case, expected, level=level, groupby=groupby, fuse=rule)


def check_target_grid(cases, archive, rule, data):
    case = cases(archive)
    if case.manifest is None:
        event("refused")
        return
    grid = draw_grid(data.draw, case)
    groupby = data.draw(st.sampled_from(["time", "id"]))
    event(f"{len(case.manifest.grids)} lattices")
    expected = {band: case.answer(band, rule=rule, groupby=groupby, grid=grid) for band in case.bands}
    assert_windows_and_chunks(data.draw, case, expected, geobox=geobox_of(grid), fuse=rule, groupby=groupby)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=9, **FEW)
@given(archives(), st.data())
def test_any_part_of_overlapping_sources(cases, rule, archive, data):
    check_own_grid(cases, archive, rule, data)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=6, **FEW)
@given(archives(lattices=(0, 1, 2)) | archives(), st.data())
def test_any_part_of_a_target_grid_on_the_lattice_of_some_sources(cases, rule, archive, data):
    check_target_grid(cases, archive, rule, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=300, **FEW)
@given(archives(), st.data())
def test_any_part_of_overlapping_sources_at_length(cases, rule, archive, data):
    check_own_grid(cases, archive, rule, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=300, **FEW)
@given(archives(lattices=(0, 1, 2)) | archives(), st.data())
def test_any_part_of_a_target_grid_on_the_lattice_of_some_sources_at_length(cases, rule, archive, data):
    check_target_grid(cases, archive, rule, data)


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    """A manifest of five scenes of one place and day, 10 to 50 at every pixel; two say how cloudy they are."""
    folder = tmp_path_factory.mktemp("pile")
    clouds, items = {"c": 30, "d": 20}, []
    for name, time, value in (("c", 0, 10), ("a", 0, 20), ("d", 1, 30), ("b", 1, 40), ("e", 1, 50)):
        stored = "uint8", (mixed.UNIT, 0), 0, None, False, "deflate", 2, "LITTLE", "pixel", (16, 16), False
        scene = Scene(name, time, 0, 0, (20, 20), (0,), mixed.Encoding(*stored), clouds.get(name))
        pixels = np.full((1, 20, 20), value, "uint8")
        pixels[0, "abcde".index(name) * 4 : "abcde".index(name) * 4 + 4] = 0
        mixed.write_file(folder / scene.file, scene, pixels, np.ones((20, 20), bool), ORIGIN, overviews=False)
        items.append(item_of(scene, folder))
    return build({"type": "FeatureCollection", "features": items}, to=folder / "a.cube")


@pytest.mark.parametrize(
    ("rule", "order"),
    [("first", "acbde"), ("last", "edbca"), ("newest", "bdeac"), ("least_cloudy", "dcabe")],
)
def test_each_rule_takes_the_first_in_its_order_that_has_a_value(pile, rule, order):
    values = {"c": 10, "a": 20, "d": 30, "b": 40, "e": 50}
    found = open_cube(pile, fuse=rule, groupby="solar_day", mask_and_scale=False).red.values[0]
    for i, missing in enumerate("abcde"):
        left = order.replace(missing, "")
        assert (found[4 * i : 4 * i + 4] == values[left[0]]).all(), (missing, left)


def test_means_and_medians_round_halves_up(pile):
    mean, median = (
        open_cube(pile, fuse=rule, groupby="solar_day", mask_and_scale=False).red.values[0, ::4, 0].tolist()
        for rule in ("mean", "median")
    )
    # Without 20 of a, 40 of b, 10 of c, 30 of d, 50 of e.
    assert mean == [33, 28, 35, 30, 25]  # 32.5, 27.5
    assert median == [35, 25, 35, 30, 25]


def write_plain(folder, name, pixels, *, column=0, valid=None, **options):
    """Write a file whose corner lies some columns from the origin, with an internal mask where one is given."""
    shape = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 1, "dtype": pixels.dtype.name, "crs": CRS}
    transform = from_origin(ORIGIN[0] + column * PIXEL, ORIGIN[1], PIXEL, PIXEL)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(folder / f"{name}.tif", "w", driver="GTiff", transform=transform, **shape, **options) as file,
    ):
        file.write(pixels, 1)
        if valid is not None:
            file.write_mask(valid)


def test_sources_as_large_as_the_window_that_overlap_leave_a_hole(tmp_path):
    values = np.full((10, 10), 5, "uint8")
    for name, column in (("20240501_a", 0), ("20240501_b", 5), ("20240502_c", 10)):
        write_plain(tmp_path, name, values, column=column, nodata=77)
    manifest = build(tmp_path, pattern="{time:%Y%m%d}_{tile}.tif", to=tmp_path / "a.cube")
    found = open_cube(manifest, mask_and_scale=False).band_1.values
    np.testing.assert_array_equal(found[0], np.where(np.arange(20) < 15, 5, 77)[None].repeat(10, axis=0))


@pytest.mark.parametrize("rule", ["first", "last"])
def test_bits_are_seen_through_the_masks_of_those_above(tmp_path, rule):
    """All numbers of bits mean something: what is missing is known by masks alone."""
    valid = np.random.default_rng(0).random((2, 10, 20)) < 0.6
    for i in (0, 1):
        bits = np.full((10, 20), 4 + i, "uint8")
        write_plain(tmp_path, f"20240501_{'ab'[i]}_QA_PIXEL", bits, valid=valid[i], column=i)
    manifest = build(tmp_path, pattern="{time:%Y%m%d}_{tile}_{band}.tif", to=tmp_path / "a.cube")
    band = manifest.band("QA_PIXEL")
    assert band.nodata is None
    found = open_cube(manifest, fuse=rule, mask_and_scale=False).QA_PIXEL.values[0]
    expected = np.full((10, 21), band.hole, band.dtype)
    for i in (1, 0) if rule == "first" else (0, 1):
        np.copyto(expected[:, i : i + 20], 4 + i, where=valid[i])
    np.testing.assert_array_equal(found, expected)


def test_a_day_is_the_sun_s(tmp_path):
    """At 15 degrees east, which is an hour ahead of Greenwich."""
    for i, time in enumerate(("20240501T2230", "20240501T2330", "20240502T0900")):
        write_plain(tmp_path, time, np.full((10, 10), i + 1, "uint8"), column=4 * i, nodata=0)
    manifest = build(tmp_path, pattern="{time:%Y%m%dT%H%M}.tif", to=tmp_path / "a.cube")
    found = open_cube(manifest, groupby="solar_day", mask_and_scale=False).band_1
    assert [str(time)[:16] for time in found.time.values] == ["2024-05-01T22:30", "2024-05-01T23:30"]
    assert found.values[:, 0].tolist() == [[1] * 10 + [0] * 8, [0] * 4 + [2] * 10 + [3] * 4]


@pytest.mark.parametrize("rule", ["mean", "median"])
@pytest.mark.parametrize(("band", "dtype"), [("SCL", "uint8"), ("QA_PIXEL", "uint16"), ("phase", "complex64")])
def test_what_has_no_mean_is_refused(tmp_path, band, dtype, rule):
    for i in (0, 1):
        write_plain(tmp_path, f"20240501_{'ab'[i]}_{band}", np.full((10, 20), 4 + i, dtype), column=i, nodata=0)
    manifest = build(tmp_path, pattern="{time:%Y%m%d}_{tile}_{band}.tif", to=tmp_path / "a.cube")
    with pytest.raises(SelectionError, match=rf"fuse='{rule}'.*'{band}'"):
        open_cube(manifest, fuse=rule)


@pytest.mark.parametrize(("dtype", "value"), [("int64", 2**62), ("int64", -(2**63)), ("uint64", 2**64 - 1)])
def test_means_of_numbers_as_large_as_can_be_stay_within_their_type(tmp_path, dtype, value):
    """Doubles hold 53 bits of them."""
    for i in (0, 1):
        write_plain(tmp_path, f"20240501_{'ab'[i]}", np.full((10, 20), value, dtype), column=i, nodata=7)
    manifest = build(tmp_path, pattern="{time:%Y%m%d}_{tile}.tif", to=tmp_path / "a.cube")
    for rule in ("mean", "median"):
        found = open_cube(manifest, fuse=rule, mask_and_scale=False).band_1.values
        assert (found == np.array(value, dtype)).all()


ZONED = {
    # Item: zone, time, metres east and north of 12 degrees east; no two are of one lattice.
    "c": (32632, "2024-05-01T10:00:00Z", -400, 350, 20),
    "a": (32633, "2024-05-01T10:00:05Z", -250, 400, None),
    "e": (32632, "2024-05-01T10:00:05Z", -283, 234, 70),
    "d": (32633, "2024-05-01T10:20:00Z", -404, 307, 5),
    "b": (32633, "2024-05-02T10:00:00Z", -301, 302, 0),
}


@pytest.fixture(scope="module")
def zoned(tmp_path_factory):
    """The manifest of scenes of two zones, each of a lattice of its own, and their items."""
    folder, rng = tmp_path_factory.mktemp("zoned"), np.random.default_rng(0)
    items = []
    for name, (zone, time, east, north, clouds) in ZONED.items():
        x, y = Transformer.from_crs("EPSG:4326", f"EPSG:{zone}", always_xy=True).transform(12, 48)
        pixels = rng.integers(1, 9000, (60, 64)).astype("int16")
        pixels[rng.random(pixels.shape) < 0.1] = -1
        pixels[10:30, 5 * len(items) : 5 * len(items) + 20] = -1
        corner = round(x, -1) + east, round(y, -1) + north
        path = write_cog(
            folder / f"{name}.tif",
            pixels,
            crs=f"EPSG:{zone}",
            transform=from_origin(*corner, 10, 10),
            nodata=-1,
            blocksize=64,
            overviews="NONE",
        )
        item = {"type": "Feature", "stac_version": "1.1.0", "id": name, "properties": {"datetime": time}}
        if clouds is not None:
            item["properties"]["eo:cloud_cover"] = clouds
        items.append(item | {"assets": {"red": {"href": path.as_posix(), "type": "image/tiff", "roles": ["data"]}}})
    return build({"type": "FeatureCollection", "features": items}, to=folder / "a.cube")


WARPED = {"first": "caed", "last": "deac", "newest": "daec", "least_cloudy": "dcea"}
"""The order of the scenes of the first day by each rule."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", ["nearest", "bilinear", "cubic", "average"])
@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:4326"])
def test_a_day_of_two_zones_is_made_of_its_scenes_each_warped_by_itself(zoned, crs, how, rule):
    if how == "average" and rule in WARPED:
        return  # which reaches over the edges of scenes, where others come first
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(12, 48)
    size = 1e-4 if crs == "EPSG:4326" else 10
    box = GeoBox((80, 90), from_origin(x - 45 * size, y + 40 * size, size, size), crs)
    where = {"geobox": box, "resampling": how, "mask_and_scale": False}
    scenes = open_cube(zoned, groupby="id", **where).red.values
    days = open_cube(zoned, groupby="solar_day", fuse=rule, **where).red.values
    assert (len(scenes), len(days)) == (5, 2)
    assert (scenes[:4] >= 0).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(days[1], scenes[4])
    by_name = dict(zip("caed", scenes[:4], strict=True))
    if rule in WARPED:
        expected = np.full(days[0].shape, -1, "int16")
        for name in reversed(WARPED[rule]):
            np.copyto(expected, by_name[name], where=by_name[name] != -1)
    else:
        stack = np.where(scenes[:4] == -1, np.nan, scenes[:4].astype("f8"))
        expected = combined(stack, (scenes[:4] != -1).any(axis=0), rule, zoned.band("red"))
    np.testing.assert_array_equal(days[0], expected)
