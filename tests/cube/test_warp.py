"""What is read on another grid, against GDAL's exact warp of the whole mosaic."""

from __future__ import annotations

import itertools

import dask
import numpy as np
import pytest
import rasterio.warp
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.grid import Grid, Window
from cube.locate import locate
from cube.reader import read_block
from cube.testing.archive import write_cog
from cube.warp import resample, to_stored

UTM = "EPSG:32633"
CORNER = 300000.0, 5400000.0
SHAPE = 230, 260
NODATA = {"uint8": 0, "uint16": 0, "int16": -9999, "float32": np.nan}
WAYS = ("nearest", "bilinear", "cubic", "average")
SCENES = {"a": (0, 0, 130, 150), "b": (100, 0, 130, 140), "c": (0, 110, 140, 150), "d": (90, 120, 140, 140)}
"""(row, column, height, width) of the scenes of the mosaic, which overlap; "a" comes first, then "b"."""


def box(crs, size, x, y, height, width):
    return GeoBox((height, width), from_origin(x, y, size, size), crs)


TARGETS = {
    "zone": box("EPSG:32632", 10, 740400, 5403300, 250, 270),
    "degrees": box("EPSG:4326", 1e-4, 12.27, 48.725, 230, 370),
    "mercator": box("EPSG:3857", 14, 1365500, 6227500, 260, 290),
    "laea": box("EPSG:3035", 11, 4488300, 2848500, 240, 250),
    "coarser": box(UTM, 23, 299900, 5400100, 110, 125),
    "finer": box(UTM, 4, 300501, 5399303, 230, 270),
    "phase": box(UTM, 10, 300003, 5399996, 230, 260),
    "half": box(UTM, 10, 300005, 5399995, 230, 260),
    "rotated": GeoBox((220, 240), Affine(9, 3, 299900, 3, -9, 5399300), UTM),
    "rotated zone": GeoBox((220, 240), Affine(9, -4, 740700, -4, -9, 5403000), "EPSG:32632"),
    "upwards": GeoBox((230, 260), Affine(11, 0, 300002, 0, 11, 5397600), UTM),
}
"""Each reaches beyond the sources on some side."""


def pixels_of(dtype, shape=SHAPE):
    """Return hills with noise, over most of the range of the narrow types, with holes large and small."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    hills = np.sin(x / 17) + 0.8 * np.cos(y / 23) + rng.normal(0, 0.06, shape)
    found = {
        "uint8": lambda: 128 + 60 * hills,
        "uint16": lambda: 2300 + 1000 * hills,
        "int16": lambda: 900 * hills,
        "float32": lambda: 0.4 + 0.2 * hills,
    }[dtype]().astype(dtype)
    found[rng.random(shape) < 0.005] = NODATA[dtype]
    found[100:130, 60:101] = NODATA[dtype]
    return found


def is_missing(pixels, nodata):
    return np.isnan(pixels) if np.isnan(nodata) else pixels == nodata


def gdal(pixels, transform, target, how, *, crs=UTM):
    """Return what GDAL's warp makes of an image where every position is computed exactly."""
    nodata = NODATA[pixels.dtype.name]
    found = np.full(tuple(target.shape), nodata, pixels.dtype)
    # Else its kernels grow with the ratio of pixel sizes.
    scale = {"XSCALE": 1, "YSCALE": 1} if how in {"bilinear", "cubic"} else {}
    rasterio.warp.reproject(
        pixels,
        found,
        src_transform=transform,
        src_crs=crs,
        dst_transform=target.affine,
        dst_crs=str(target.crs),
        src_nodata=nodata,
        dst_nodata=nodata,
        resampling=rasterio.warp.Resampling[how],
        tolerance=0,
        **scale,
    )
    return found


def ranges(pixels, missing):
    """Return the largest less the least of each pixel's 3 x 3 neighbourhood."""
    high, low = (np.pad(np.where(missing, fill, pixels), 1, constant_values=fill) for fill in (-np.inf, np.inf))
    shifts = [np.s_[i : i + pixels.shape[0], j : j + pixels.shape[1]] for i in range(3) for j in range(3)]
    return np.max([high[each] for each in shifts], axis=0) - np.min([low[each] for each in shifts], axis=0)


def leans_out(target, transform, shape, *, crs=UTM):
    """Return which pixels of a target lie partly beside an image.

    GDAL's average counts what lies beside its upper and left edge as more of its first row and column.
    """
    rows, columns = np.mgrid[: target.shape[0] + 1, : target.shape[1] + 1]
    place = Transformer.from_crs(target.crs.to_wkt(), crs, always_xy=True).transform(*(target.affine @ (columns, rows)))
    columns, rows = ~transform @ place
    out = (columns < 0) | (columns > shape[1]) | (rows < 0) | (rows > shape[0])
    corners = [out[:-1, :-1], out[:-1, 1:], out[1:, :-1], out[1:, 1:]]
    return np.any(corners, axis=0) & ~np.all(corners, axis=0)


def assert_as_gdal(found, expected, how, beside=False):
    """Check that nearest is the same, and others all but a few pixels, which are off by less than neighbours differ.

    Args:
        found: Pixels.
        expected: GDAL's.
        how: Of `WAYS`.
        beside: Where averages are not compared; see `leans_out`.
    """
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    nodata = NODATA[found.dtype.name]
    if how == "nearest":
        np.testing.assert_array_equal(found, expected)
        return
    if how == "average":
        found = np.where(beside, expected, found)
    missing, gone = is_missing(expected, nodata), is_missing(found, nodata)
    assert not missing.all()
    apart = np.abs(found.astype("f8") - expected.astype("f8"))
    apart[missing | gone] = 0
    near = np.where(np.isnan(expected), 0, np.abs(expected)) * 1e-5 if found.dtype.kind == "f" else 1
    assert ((apart > near) | (missing != gone)).mean() <= 0.001
    assert (apart <= ranges(expected.astype("f8"), missing) + near)[~missing].all()


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory):
    """By data type: the manifest of a mosaic of scenes that overlap, and its pixels."""
    found = {}
    for dtype, nodata in NODATA.items():
        folder, whole = tmp_path_factory.mktemp(dtype), np.full(SHAPE, nodata, dtype)
        truth = pixels_of(dtype)
        for name, (row, column, height, width) in reversed(SCENES.items()):
            place = np.s_[row : row + height, column : column + width]
            part = truth[place].copy()
            # Each scene has numbers of its own, so that it is seen which of them is on top.
            part[~is_missing(part, nodata)] += np.dtype(dtype).type("abcd".index(name))
            write_cog(
                folder / f"{name}_20240501_red.tif",
                part,
                transform=from_origin(CORNER[0] + column * 10, CORNER[1] - row * 10, 10, 10),
                nodata=nodata,
                blocksize=64,
                overviews="NONE",
            )
            np.copyto(whole[place], part, where=~is_missing(part, nodata))
        found[dtype] = build(folder, pattern="{tile}_{time:%Y%m%d}_{band}.tif", to=folder / "a.cube"), whole
    return found


TRANSFORM = from_origin(*CORNER, 10, 10)


@pytest.mark.parametrize("dtype", NODATA)
@pytest.mark.parametrize("target", TARGETS)
def test_a_mosaic_on_another_grid_is_as_gdal_warps_it(mosaics, target, dtype):
    manifest, whole = mosaics[dtype]
    beside = leans_out(TARGETS[target], TRANSFORM, SHAPE)
    for how in WAYS:
        opened = open_cube(manifest, geobox=TARGETS[target], resampling=how, mask_and_scale=False)
        assert_as_gdal(opened.red.values[0], gdal(whole, TRANSFORM, TARGETS[target], how), how, beside)


@pytest.mark.parametrize("target", ["zone", "degrees", "rotated", "coarser"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_numbers_over_all_of_their_range_are_as_gdal_warps_them(dtype, target):
    limits, nodata = np.iinfo(dtype), NODATA[dtype]
    pixels = np.random.default_rng(1).integers(limits.min, limits.max, SHAPE, dtype, endpoint=True)
    # Cubic goes beyond the range here, and is cut off; none of its results may be the number for no data.
    pixels[:60][pixels[:60] < np.median(pixels)], pixels[:60][pixels[:60] >= np.median(pixels)] = limits.min, limits.max
    source = Grid(crs=UTM, transform=tuple(TRANSFORM)[:6], width=SHAPE[1], height=SHAPE[0])
    box = TARGETS[target]
    grid = Grid(crs=str(box.crs), transform=tuple(box.affine)[:6], width=box.shape[1], height=box.shape[0])
    window = Window(top=0, bottom=grid.height, left=0, right=grid.width)
    points = locate(source, grid, window)
    for how in WAYS:
        found, there = resample(
            pixels,
            ~is_missing(pixels, nodata),
            *points.positions(window, corners=how == "average"),
            how,
            nodata=nodata,
            fill=nodata,
        )
        expected = gdal(pixels, TRANSFORM, box, how)
        np.testing.assert_array_equal(is_missing(found, nodata), ~there)
        if how == "nearest":
            np.testing.assert_array_equal(found, expected)
            continue
        # A position that is off by 0.0001 pixels is off by as much of the range, twice in cubic.
        near = 1 + 4e-4 * (limits.max - limits.min)
        apart = np.abs(found.astype("f8") - expected.astype("f8"))
        differ = (apart > near) | (is_missing(expected, nodata) == there)
        if how == "average":
            differ &= ~leans_out(box, TRANSFORM, SHAPE)
        assert differ.mean() <= 0.001


def draw_cuts(draw, size):
    return [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=4))), size]


@pytest.mark.parametrize("how", WAYS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    dtype=st.sampled_from(list(NODATA)),
    target=st.sampled_from(list(TARGETS)),
    fuse=st.sampled_from(["first", "last", "mean"]),
    data=st.data(),
)
def test_windows_agree_on_their_seams_exactly(mosaics, how, dtype, target, fuse, data):
    manifest, _ = mosaics[dtype]
    box = TARGETS[target]
    spec = open_cube(manifest, geobox=box, resampling=how, fuse=fuse).encoding["cube"]
    height, width = box.shape
    whole = read_block(spec, ["red"], (0,), Window(top=0, bottom=height, left=0, right=width))["red"]
    rows, columns = draw_cuts(data.draw, height), draw_cuts(data.draw, width)
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            window = Window(top=top, bottom=bottom, left=left, right=right)
            part = read_block(spec, ["red"], (0,), window)["red"]
            np.testing.assert_array_equal(part, whole[:, top:bottom, left:right])


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("target", ["zone", "rotated", "coarser"])
@pytest.mark.parametrize("chunks", ["auto", {"y": 97, "x": 143}])
def test_chunks_equal_what_is_read_at_once(mosaics, target, how, chunks):
    manifest, _ = mosaics["int16"]
    ways = {"geobox": TARGETS[target], "resampling": how, "mask_and_scale": False}
    at_once = open_cube(manifest, **ways).red.values
    with dask.config.set(scheduler="threads", num_workers=2):
        chunked = open_cube(manifest, chunks=chunks, **ways).red
        np.testing.assert_array_equal(chunked.values, at_once)


@pytest.mark.parametrize("how", WAYS)
def test_a_grid_of_the_sources_own_pixels_is_what_they_hold(mosaics, how):
    manifest, whole = mosaics["uint16"]
    own = box(UTM, 10, CORNER[0] + 30, CORNER[1] - 50, 100, 120)
    found = open_cube(manifest, geobox=own, resampling=how, mask_and_scale=False).red.values[0]
    np.testing.assert_array_equal(found, whole[5:105, 3:123])


def test_each_band_is_resampled_in_its_own_way(tmp_path):
    pixels = pixels_of("uint16")
    for band in ("red", "scl"):
        write_cog(tmp_path / f"20240501_{band}.tif", pixels, transform=TRANSFORM, nodata=0, blocksize=64)
    manifest = build(tmp_path, to=tmp_path / "a.cube")
    target = TARGETS["degrees"]
    found = open_cube(manifest, geobox=target, resampling={"scl": "nearest", "*": "cubic"}, mask_and_scale=False)
    assert_as_gdal(found.scl.values[0], gdal(pixels, TRANSFORM, target, "nearest"), "nearest")
    assert_as_gdal(found.red.values[0], gdal(pixels, TRANSFORM, target, "cubic"), "cubic")


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize("how", WAYS)
def test_pixels_that_are_larger_are_read_from_the_overview_that_is_as_fine(tmp_path, how, factor):
    pixels = pixels_of("uint16", (512, 512))
    path = write_cog(
        tmp_path / "a.tif",
        pixels,
        transform=TRANSFORM,
        nodata=0,
        blocksize=64,
        OVERVIEW_COUNT=3,
        overview_resampling="NEAREST",
    )
    # A little smaller than 2 pixels of the overview, and not on its lattice.
    target = box("EPSG:32632", 10 * factor * 1.9, 740300, 5403500, 500 // factor, 480 // factor)
    with rasterio.open(path, OVERVIEW_LEVEL=factor.bit_length() - 2) as file:
        coarse, transform = file.read(1), file.transform
    manifest = build(path, to=tmp_path / "a.cube")
    found = open_cube(manifest, geobox=target, resampling=how, mask_and_scale=False).band_1.values
    assert_as_gdal(found, gdal(coarse, transform, target, how), how, leans_out(target, transform, coarse.shape))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64", "uint32"])
@pytest.mark.parametrize("how", WAYS)
def test_what_has_no_missing_pixels_stays_so(dtype, how):
    pixels = (np.random.default_rng(0).random((20, 30)) * 100).astype(dtype)
    columns, rows = np.meshgrid(np.linspace(0.2, 29.8, 41), np.linspace(0.2, 19.8, 37))
    found, there = resample(pixels, None, columns, rows, how, nodata=None, fill=0)
    assert there.all()
    assert found.dtype == dtype
    again, _ = resample(pixels, np.ones(pixels.shape, bool), columns, rows, how, nodata=None, fill=0)
    np.testing.assert_array_equal(found, again)
    if how != "cubic":
        assert pixels.min() <= found.min()
        assert found.max() <= pixels.max()


def write_constant(folder, crs, transform, shape=(40, 40)):
    """Return the manifest of one file that holds 7 everywhere."""
    path = write_cog(folder / "a.tif", np.full(shape, 7, "uint8"), crs=crs, transform=transform, overviews="NONE")
    return build(path, fill_value=0, to=folder / "a.cube")


FAR = {
    # Source and target, in which pixels lie between the last place of the source's CRS and its first.
    "opposite meridian": ("EPSG:4326", from_origin(10, 50, 0.05, 0.05), box("EPSG:4326", 2, -179.7, 90, 90, 180)),
    "edge of Mercator": ("EPSG:3857", from_origin(1.2e6, 6.4e6, 5000, 5000), box("EPSG:4326", 2, -1, 90, 90, 180)),
    "a quarter around": (UTM, from_origin(300000, 5400000, 5000, 5000), box("EPSG:4326", 2, -180, 90, 90, 180)),
    "far in Mercator": (UTM, from_origin(300000, 5400000, 5000, 5000), box("EPSG:3857", 2e5, -2e7, 2e7, 200, 200)),
    "other hemisphere": (UTM, from_origin(300000, 5400000, 5000, 5000), box("EPSG:3031", 4e5, -2e7, 2e7, 100, 100)),
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", FAR)
def test_a_source_is_seen_at_its_own_place_on_earth_alone(tmp_path, name, how):
    crs, transform, target = FAR[name]
    manifest = write_constant(tmp_path, crs, transform)
    found = open_cube(manifest, geobox=target, resampling=how, mask_and_scale=False).band_1.values
    assert set(np.unique(found)) <= {0, 7}
    rows, columns = np.nonzero(found)
    lonlat = "EPSG:4326"
    middle = Transformer.from_crs(crs, lonlat, always_xy=True).transform(*(transform @ (20, 20)))
    there = Transformer.from_crs(str(target.crs), lonlat, always_xy=True).transform(
        *(target.affine @ (columns + 0.5, rows + 0.5))
    )
    metres = Geod(ellps="WGS84").inv(*there, np.full(len(rows), middle[0]), np.full(len(rows), middle[1]))[2]
    assert metres.max(initial=0) < 350_000
    assert len(rows) or name == "other hemisphere"


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("target", [box("EPSG:4326", 1, 175.5, 10, 4, 9), box("EPSG:4326", 1, -184.5, 10, 4, 9)])
def test_what_lies_across_the_edge_of_the_world_is_of_its_neighbours(tmp_path, target, how):
    pixels = np.full((180, 360), 1, "uint8")
    pixels[:, :10] = pixels[:, -10:] = 101
    path = write_cog(
        tmp_path / "a.tif", pixels, crs="EPSG:4326", transform=from_origin(-180, 90, 1, 1), nodata=0, overviews="NONE"
    )
    manifest = build(path, to=tmp_path / "a.cube")
    found = open_cube(manifest, geobox=target, resampling=how, mask_and_scale=False).band_1.values
    assert (found == 101).all()


@pytest.mark.parametrize("how", WAYS)
def test_positions_that_are_nowhere_find_nothing(how):
    columns = np.array([[np.inf, -np.inf, np.nan], [-5.0, 25.0, 1e12], [-1e12, 30.0, 40.0], [2.5, 3.2, 4.2]])
    rows = np.array([2.5, np.nan, 2.5, 3.5])[:, None] + np.zeros(3)
    found, there = resample(np.full((10, 10), 7, "uint8"), None, columns, rows, how, nodata=0, fill=0)
    expected = np.zeros_like(there)
    if how == "average":
        expected[2, 0] = True  # whose corners are at -1e12 and 3.2, and at 30 and 4.2
        expected[2, 1] = True
    else:
        expected[3] = True
    np.testing.assert_array_equal(there, expected)
    np.testing.assert_array_equal(found, np.where(expected, 7, 0))


def test_a_pixel_centre_on_an_edge_is_of_the_pixel_after_it():
    columns, rows = np.meshgrid([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    pixels = np.arange(1, 7, dtype="uint8").reshape(2, 3)
    found, there = resample(pixels, None, columns, rows, "nearest", nodata=0, fill=0)
    np.testing.assert_array_equal(found, [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(there, found > 0)


@pytest.mark.parametrize(
    ("dtype", "nodata", "values", "expected"),
    [
        ("uint8", None, [0.4, 0.5, 1.5, -3, 300], [0, 1, 2, 0, 255]),
        ("uint8", 0, [0.4, 0.5, -3, 300], [1, 1, 1, 255]),
        ("uint8", 255, [254.6, 300, 254.4], [254, 254, 254]),
        ("int16", -7, [-7.4, -6.5, -7.5], [-8, -6, -8]),
        ("int16", None, [-0.5, -1.5, 0.5], [0, -1, 1]),
        ("uint32", None, [2.0**32 - 1, 2.0**32], [2**32 - 1, 2**32 - 1]),
        ("float32", 0.0, [0.0, 1.5], [-np.finfo("f4").smallest_subnormal, 1.5]),
        ("float32", np.nan, [0.0, 1.5], [0.0, 1.5]),
        # The largest double below the limit of 64 bits is the nearest that there is.
        ("int64", None, [2.0**63, -(2.0**63)], [2**63 - 1, -(2**63)]),
        ("uint64", None, [2.0**64, -1.0], [2**64 - 1, 0]),
    ],
)
def test_values_become_stored_numbers_as_gdal_rounds_them(dtype, nodata, values, expected):
    values = np.array(values, "f8")
    found = to_stored(values, np.ones(values.shape, bool), np.dtype(dtype), nodata, 9)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array(expected, dtype))
    np.testing.assert_array_equal(to_stored(values, np.zeros(values.shape, bool), np.dtype(dtype), nodata, 9), 9)
