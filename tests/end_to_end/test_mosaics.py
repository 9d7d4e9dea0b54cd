"""What one cube is made of in practice: granules of MGRS, paths of Landsat, two UTM zones, the antimeridian."""

from __future__ import annotations

import json

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import rasterio
import rasterio.warp
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.windows import Window

from cube import build, open_cube
from cube.errors import ReferencesError
from cube.io.trace import trace
from cube.references import to_kerchunk
from cube.testing import unique_values, write_cog

UTM = "EPSG:32633"


# Granules: 10980 pixels of 10 m, of which a neighbour's begin after 10000.

GRANULE, STRIDE, TILE = 10980, 10000, 1024
CORNER = (300000, 5400000)
FILLED = 3072
"""Pixels of a granule that hold values, from each of its corners: the rest is left out of the files."""


def write_granule(path, row, column):
    """Write a granule whose pixels near its corners say which they are; returns nothing but a file of some MB."""
    transform = from_origin(CORNER[0] + column * STRIDE * 10, CORNER[1] - row * STRIDE * 10, 10, 10)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "sparse_ok": True}
    shape = {"width": GRANULE, "height": GRANULE, "count": 1, "dtype": "uint16", "nodata": 0, "crs": UTM}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **shape, **options) as file:
        for top in (0, GRANULE - FILLED):
            for left in (0, GRANULE - FILLED):
                window = Window(left, top, FILLED, FILLED)
                file.write(granule_values(row, column, top, left), 1, window=window)


def granule_values(row, column, top, left):
    rows, columns = np.arange(top, top + FILLED)[:, None], np.arange(left, left + FILLED)
    values = rows * 7 + columns * 13 + (row * 2 + column) * 10007
    return (values % 65535 + 1).astype("uint16")


@pytest.fixture(scope="module")
def granules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("granules")
    for row in (0, 1):
        for column in (0, 1):
            write_granule(folder / "in" / f"20240501_T33{'AB'[row]}{'AB'[column]}_red.tif", row, column)
    return build(folder / "in", pattern="{time:%Y%m%d}_{tile}_{band}.tif", to=folder / "a.cube")


def expected_of_granules(top, left, height, width):
    """Return a window of all four, the first where they overlap."""
    found = np.zeros((height, width), "uint16")
    for row in (1, 0):
        for column in (1, 0):
            for y in (0, GRANULE - FILLED):
                for x in (0, GRANULE - FILLED):
                    rows = slice(row * STRIDE + y - top, row * STRIDE + y - top + FILLED)
                    columns = slice(column * STRIDE + x - left, column * STRIDE + x - left + FILLED)
                    values = granule_values(row, column, y, x)
                    y0, x0 = max(0, -rows.start), max(0, -columns.start)
                    target = found[max(0, rows.start) : max(0, rows.stop), max(0, columns.start) : max(0, columns.stop)]
                    target[:] = values[y0 : y0 + target.shape[0], x0 : x0 + target.shape[1]]
    return found


@pytest.mark.parametrize(
    ("top", "left", "height", "width"),
    [
        (9600, 9700, 1500, 1400),  # where all four meet
        (STRIDE - 1, STRIDE - 1, 2, 2),
        (GRANULE - 1, GRANULE - 1, 3, 3),
        (10240, 9216, 1024, 1024),  # tiles of the first, none of the others
        (STRIDE + GRANULE - 700, 9800, 700, 900),  # the padded tiles of the lower edge
    ],
)
def test_granules_that_are_no_whole_number_of_tiles_are_one_grid(granules, top, left, height, width):
    ds = open_cube(granules, mask_and_scale=False)
    assert (ds.sizes["y"], ds.sizes["x"]) == (STRIDE + GRANULE, STRIDE + GRANULE)
    assert ds.odc.geobox.affine[2:6:3] == CORNER
    window = ds.red.isel(y=slice(top, top + height), x=slice(left, left + width))
    np.testing.assert_array_equal(window.values[0], expected_of_granules(top, left, height, width))


def test_static_references_cannot_say_that(granules, tmp_path):
    with pytest.raises(ReferencesError, match=r"inside a tile|within the cube|shares pixels"):
        to_kerchunk(granules, tmp_path / "refs.json")


# Paths of Landsat: each date's scene begins and ends at other pixels of one lattice.


def test_scenes_whose_extent_shifts_from_date_to_date(tmp_path):
    rng = np.random.default_rng(3)
    dates = [f"2024{month:02}{day:02}" for month in (1, 2, 3) for day in (4, 20)]
    scenes = {}
    for date in dates:
        row, column = (int(n) for n in rng.integers(0, 90, 2))
        shape = tuple(int(n) for n in rng.integers(300, 420, 2))
        values = unique_values(shape, "uint16", seed=int(date))
        corner = from_origin(500000 + 30 * column - 15, 4000000 - 30 * row + 15, 30, 30)
        write_cog(tmp_path / "in" / f"{date}_red.tif", values, crs=UTM, transform=corner, nodata=0, blocksize=128)
        scenes[date] = row, column, values
    manifest = build(tmp_path / "in", pattern="{time:%Y%m%d}_{band}.tif")
    ds = open_cube(manifest, mask_and_scale=False)
    top, left = min(s[0] for s in scenes.values()), min(s[1] for s in scenes.values())
    bottom = max(row + values.shape[0] for row, _, values in scenes.values())
    right = max(column + values.shape[1] for _, column, values in scenes.values())
    assert ds.red.shape == (len(dates), bottom - top, right - left)
    for i, (row, column, values) in enumerate(scenes.values()):
        expected = np.zeros(ds.red.shape[1:], "uint16")
        expected[row - top : row - top + values.shape[0], column - left : column - left + values.shape[1]] = values
        np.testing.assert_array_equal(ds.red.isel(time=i).values, expected)


# The border of two zones.

BORDER = (12.0, 48.0)
SIZE = 640


@pytest.fixture(scope="module")
def zones(tmp_path_factory):
    """Two dates of a scene on either side of 12 degrees east, each in its own zone, which overlap; STAC Items."""
    folder = tmp_path_factory.mktemp("zones")
    features = []
    for date in ("2024-05-01", "2024-05-11"):
        for zone, share in ((32, 0.7), (33, 0.3)):
            crs = f"EPSG:326{zone}"
            east, north = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*BORDER)
            corner = from_origin(round(east / 10) * 10 - SIZE * share * 10, round(north / 10) * 10 + 3000, 10, 10)
            path = folder / f"{date}_{zone}.tif"
            values = unique_values((SIZE, SIZE), "uint16", seed=zone + int(date[-2:]))
            write_cog(path, values, crs=crs, transform=corner, nodata=0, blocksize=128, overview_resampling="nearest")
            ring = shapely.box(11.9, 47.9, 12.1, 48.1)
            features.append(
                {
                    "type": "Feature",
                    "stac_version": "1.0.0",
                    "stac_extensions": [],
                    "id": f"{date}_{zone}",
                    "geometry": shapely.geometry.mapping(ring),
                    "bbox": list(ring.bounds),
                    "properties": {"datetime": f"{date}T10:00:00Z"},
                    "links": [],
                    "assets": {"red": {"href": path.as_posix(), "type": "image/tiff; application=geotiff"}},
                }
            )
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return build(folder / "items.json", to=folder / "a.cube")


def join(manifest, box, level=None):
    """Return GDAL's nearest of all files of each date on a grid, the first where both zones have a value."""
    found = {}
    for href in sorted(manifest.source_table()["href"].to_pylist()):
        path = href if href.startswith("/") else f"{manifest.url.rpartition('/')[0]}/{href}"
        with rasterio.open(path, **({} if level is None else {"overview_level": level})) as file:
            layer, _ = rasterio.warp.reproject(
                file.read(1),
                np.zeros(tuple(box.shape), "uint16"),
                src_transform=file.transform,
                src_crs=file.crs,
                src_nodata=0,
                dst_transform=Affine(*box.affine[:6]),
                dst_crs=str(box.crs),
                dst_nodata=0,
                resampling=rasterio.warp.Resampling.nearest,
                tolerance=0,
            )
        date = path.rpartition("/")[2][:10]
        known = found.setdefault(date, np.zeros(tuple(box.shape), "uint16"))
        known[known == 0] = layer[known == 0]
    return np.stack([found[date] for date in sorted(found)])


def around_the_border(crs, pixels, size):
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(*BORDER)
    a = size if crs != "EPSG:4326" else size / 100000
    half = pixels // 2
    return GeoBox((pixels, pixels), from_origin(x - half * a + a / 3, y + half * a - a / 7, a, a), crs)


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:32633", "EPSG:3857", "EPSG:4326"])
def test_two_zones_are_joined_pixel_by_pixel(zones, crs):
    box = around_the_border(crs, 400, 10)
    found = open_cube(zones, geobox=box, groupby="solar_day", mask_and_scale=False).red.values
    np.testing.assert_array_equal(found, join(zones, box))
    assert (found > 0).mean() > 0.9


def test_a_quarter_of_the_resolution_reads_overviews_alone_and_as_explained(zones):
    box = around_the_border(UTM, 100, 40)
    ds = open_cube(zones, geobox=box, groupby="solar_day", mask_and_scale=False)
    explained = ds.cube.explain()
    with trace() as asked:
        found = ds.cube.compute().red.values
    np.testing.assert_array_equal(found, join(zones, box, level=1))
    assert (len(asked.records), asked.bytes) == (explained.requests, explained.bytes)
    whole = open_cube(zones, geobox=around_the_border(UTM, 400, 10), groupby="solar_day").cube.explain()
    assert explained.bytes < whole.bytes / 8


# Both sides of the antimeridian.


def test_degrees_on_both_sides_of_the_antimeridian_are_one_window(tmp_path):
    values = {}
    for name, west in (("e", 170.0), ("w", -180.0)):
        values[name] = unique_values((100, 100), "uint16", seed=ord(name))
        transform = from_origin(west, 10, 0.1, 0.1)
        path = tmp_path / "in" / f"20240501_{name}_red.tif"
        write_cog(path, values[name], crs="EPSG:4326", transform=transform, nodata=0, blocksize=64)
    manifest = build(tmp_path / "in", pattern="{time:%Y%m%d}_{tile}_{band}.tif", to=tmp_path / "a.cube")
    both = np.concatenate([values["e"], values["w"]], axis=1)
    for west in (170, -190):
        box = GeoBox((100, 200), from_origin(west, 10, 0.1, 0.1), "EPSG:4326")
        np.testing.assert_array_equal(open_cube(manifest, geobox=box, mask_and_scale=False).red.values[0], both)
    crossing = open_cube(manifest, crs="EPSG:4326", resolution=0.1, bbox=(175, 0, -175, 10), mask_and_scale=False)
    np.testing.assert_array_equal(crossing.red.values[0], both[:, 50:150])
