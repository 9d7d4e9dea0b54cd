from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import xy

from cube.errors import BuildError
from cube.grid import Extent, Grid, Window, common_grid
from cube.testing.archive import unique_values, write_cog

UTM = "EPSG:32633"


def grid_of(transform=(10.0, 0.0, 500000.0, 0.0, -20.0, 5000000.0), width=7, height=5, crs=UTM):
    return Grid(crs=crs, transform=transform, width=width, height=height)


def extent_of(column=0, row=0, shape=(100, 120), levels=(), href="a.tif", crs=UTM, pixel=(10.0, -10.0), shift=(0, 0)):
    """An extent whose corner lies some columns and rows (and a shift in CRS units) from a common origin."""
    a, e = pixel
    return Extent(
        href=href,
        crs=crs,
        transform=(a, 0.0, 500000.0 + a * column + shift[0], 0.0, e, 5000000.0 + e * row + shift[1]),
        shapes=(shape, *levels),
    )


def halved(shape, times):
    shapes = []
    for _ in range(times):
        shape = (-(-shape[0] // 2), -(-shape[1] // 2))
        shapes.append(shape)
    return tuple(shapes)


def test_coordinates_are_pixel_centres_as_rasterio_has_them():
    grid = grid_of()
    transform = rasterio.Affine(*grid.transform)
    xs, _ = xy(transform, [0] * 7, range(7))
    _, ys = xy(transform, range(5), [0] * 5)
    np.testing.assert_array_equal(grid.xs, xs)
    np.testing.assert_array_equal(grid.ys, ys)
    assert (grid.xs.dtype, grid.ys.dtype) == ("float64", "float64")


def test_geobox_is_the_same_grid():
    box = grid_of().geobox
    assert box.shape == (5, 7)
    assert tuple(box.transform)[:6] == grid_of().transform
    assert box.crs.epsg == 32633
    np.testing.assert_array_equal(box.coordinates["x"].values, grid_of().xs)
    np.testing.assert_array_equal(box.coordinates["y"].values, grid_of().ys)


@given(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 6), st.integers(1, 2**31), st.integers(1, 2**31))
def test_json_keeps_every_bit(transform, width, height):
    grid = grid_of(transform, width, height)
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


def test_window_shape():
    assert Window(top=2, bottom=7, left=1, right=10).shape == (5, 9)


@given(
    st.lists(
        st.tuples(st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 300), st.integers(1, 300)),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([(10.0, -10.0), (0.1, -0.1), (1 / 3600, -1 / 3600), (60.0, 60.0)]),
)
def test_sources_lie_on_the_common_grid_where_their_own_headers_say(places, pixel):
    extents = [extent_of(column, row, (height, width), pixel=pixel) for column, row, height, width in places]
    common = common_grid(extents)
    grid = common.levels[0]
    assert common.factors[0] == (1, 1)
    a, _, c, _, e, f = grid.transform
    for extent, row, column in zip(extents, common.rows.tolist(), common.columns.tolist(), strict=True):
        # The corner of a source's first pixel is the same place, by its own transform and by the cube's.
        assert abs(c + a * column - extent.transform[2]) < abs(a) * 1e-3
        assert abs(f + e * row - extent.transform[5]) < abs(e) * 1e-3
        assert 0 <= row <= grid.height - extent.shapes[0][0]
        assert 0 <= column <= grid.width - extent.shapes[0][1]
    assert (common.rows.min(), common.columns.min()) == (0, 0)
    heights, widths = (np.array([extent.shapes[0][i] for extent in extents]) for i in (0, 1))
    assert grid.shape == ((common.rows + heights).max(), (common.columns + widths).max())


@given(st.permutations(range(5)))
def test_the_order_of_sources_changes_nothing(order):
    extents = [extent_of(100 * i, 50 * i, href=f"{i}.tif") for i in range(5)]
    straight, mixed = common_grid(extents), common_grid([extents[i] for i in order])
    assert mixed.levels == straight.levels
    assert mixed.rows.tolist() == [straight.rows[i] for i in order]
    assert mixed.columns.tolist() == [straight.columns[i] for i in order]


def test_rounded_decimals_are_the_same_lattice():
    # Copernicus DEM-like: a pixel of 1/3600 degree, corners written with eight decimals.
    exact = [extent_of(3600 * i, 0, (3600, 3600), pixel=(1 / 3600, -1 / 3600)) for i in range(3)]
    rounded = [
        Extent(href=f"{i}", crs=UTM, transform=tuple(round(v, 8) for v in each.transform), shapes=each.shapes)
        for i, each in enumerate(exact)
    ]
    with pytest.raises(BuildError):  # eight decimals of the pixel size itself drift by a tenth of a pixel a tile
        common_grid([exact[0], rounded[2]])
    corner_only = [
        Extent(
            href=f"{i}",
            crs=UTM,
            transform=(*each.transform[:2], round(each.transform[2], 8), *each.transform[3:5], each.transform[5]),
            shapes=each.shapes,
        )
        for i, each in enumerate(exact)
    ]
    assert common_grid(corner_only).columns.tolist() == [0, 3600, 7200]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            extent_of(crs="EPSG:32634", href="b.tif"),
            r"a\.tif and b\.tif differ in CRS: EPSG:32633 and EPSG:32634; .*one cube a grid",
        ),
        (
            extent_of(pixel=(20.0, -20.0), href="b.tif"),
            r"a\.tif and b\.tif differ in pixel size: 10 x -10 and 20 x -20; ",
        ),
        (
            extent_of(pixel=(10.0, 10.0), href="b.tif"),
            r"a\.tif and b\.tif differ in pixel size: 10 x -10 and 10 x 10; ",
        ),
        (
            extent_of(shift=(5.0, 0), href="b.tif"),
            r"a\.tif and b\.tif lie on different pixel lattices, 0\.500 columns and 0\.000 rows apart; ",
        ),
        (
            extent_of(3, 4, shift=(0, 0.2), href="b.tif"),
            r"a\.tif and b\.tif lie on different pixel lattices, 3\.000 columns and 3\.980 rows apart; ",
        ),
    ],
)
def test_other_grids_are_refused_with_both_files_and_the_difference(other, message):
    with pytest.raises(BuildError, match=message):
        common_grid([extent_of(), other])


def test_a_crs_without_a_code_is_named_briefly():
    wkt = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=20 +ellps=WGS84 +units=m").to_wkt()
    with pytest.raises(BuildError) as caught:
        common_grid([extent_of(), extent_of(href="b.tif", crs=wkt)])
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("shape", [(170, 200), (1000, 333), (65, 64), (3, 1001)])
def test_levels_of_one_image_are_gdal_s(tmp_path, shape):
    path = write_cog(tmp_path / "a.tif", unique_values(shape, "uint8"), blocksize=64, OVERVIEW_COUNT=4)
    with rasterio.open(path) as full:
        count = len(full.overviews(1))
        transform = tuple(full.transform)[:6]
    oracles = [rasterio.open(path, OVERVIEW_LEVEL=i) for i in range(count)]
    extent = Extent(href="a", crs=UTM, transform=transform, shapes=(shape, *[each.shape for each in oracles]))
    for extents in ([extent], [extent, extent]):  # alone, or as a series of dates
        common = common_grid(extents)
        assert len(common.levels) == count + 1
        for level, oracle in zip(common.levels[1:], oracles, strict=True):
            assert level.shape == oracle.shape
            np.testing.assert_allclose(level.transform, tuple(oracle.transform)[:6], rtol=1e-14)
    for each in oracles:
        each.close()


def test_levels_side_by_side_fit_where_edges_do():
    shape = (128, 128)
    extents = [extent_of(128 * i, 0, shape, halved(shape, 3)) for i in range(3)]
    common = common_grid(extents)
    assert [level.shape for level in common.levels] == [(128, 384), (64, 192), (32, 96), (16, 48)]
    assert common.factors == ((1, 1), (2, 2), (4, 4), (8, 8))
    for level, (rows, columns) in zip(common.levels, common.factors, strict=True):
        assert level.transform == (10.0 * columns, 0.0, 500000.0, 0.0, -10.0 * rows, 5000000.0)


def test_levels_end_where_a_neighbour_would_start_inside_a_pixel():
    shape = (100, 100)  # 100, 50, 25, 13: the third overview has half a pixel too much
    extents = [extent_of(100 * i, 0, shape, halved(shape, 3)) for i in range(2)]
    assert len(common_grid(extents).levels) == 3
    assert len(common_grid(extents[:1]).levels) == 4, "alone, it is GDAL's own overview"


def test_levels_end_where_a_source_would_reach_into_a_gap():
    shape = (100, 100)
    extents = [extent_of(0, 0, shape, halved(shape, 3)), extent_of(104, 0, shape, halved(shape, 3))]
    assert len(common_grid(extents).levels) == 3, "13 pixels of 8 are 104, and the source has 100"


def test_the_last_source_of_a_row_may_end_inside_a_pixel():
    extents = [
        extent_of(0, 0, (128, 128), halved((128, 128), 2)),
        extent_of(128, 0, (128, 101), halved((128, 101), 2)),
    ]
    common = common_grid(extents)
    assert [level.shape for level in common.levels] == [(128, 229), (64, 115), (32, 58)]


def test_levels_are_those_that_all_sources_have():
    shape = (128, 128)
    extents = [extent_of(128 * i, 0, shape, halved(shape, times)) for i, times in enumerate((3, 1, 2))]
    assert len(common_grid(extents).levels) == 2


def test_levels_end_where_the_ratios_differ():
    extents = [
        extent_of(0, 0, (128, 128), ((64, 64), (32, 32))),
        extent_of(128, 0, (128, 128), ((64, 64), (16, 16))),
    ]
    assert len(common_grid(extents).levels) == 2


def test_one_row_images_have_levels_too():
    extents = [
        extent_of(0, 0, (1, 4096), ((1, 2048), (1, 1024))),
        extent_of(4096, 0, (1, 4096), ((1, 2048), (1, 1024))),
    ]
    common = common_grid(extents)
    assert [level.shape for level in common.levels] == [(1, 8192), (1, 4096), (1, 2048)]
