from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import xy

from cube.grid import Extent, Grid, Levels, Window, difference, lay_out
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


def lay_out_one(extents):
    """Return the levels of extents that share a lattice, and the rows and columns of their corners."""
    layout = lay_out(extents)
    (levels,) = layout.grids
    assert layout.grid.tolist() == [0] * len(extents)
    return levels, layout.rows, layout.columns


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
    levels, rows, columns = lay_out_one(extents)
    grid = levels.full
    assert levels.factors[0] == (1, 1)
    a, _, c, _, e, f = grid.transform
    for extent, row, column in zip(extents, rows.tolist(), columns.tolist(), strict=True):
        # The corner of a source's first pixel is the same place, by its own transform and by the cube's.
        assert abs(c + a * column - extent.transform[2]) < abs(a) * 1e-3
        assert abs(f + e * row - extent.transform[5]) < abs(e) * 1e-3
        assert 0 <= row <= grid.height - extent.shapes[0][0]
        assert 0 <= column <= grid.width - extent.shapes[0][1]
    assert (rows.min(), columns.min()) == (0, 0)
    heights, widths = (np.array([extent.shapes[0][i] for extent in extents]) for i in (0, 1))
    assert grid.shape == ((rows + heights).max(), (columns + widths).max())


@given(st.permutations(range(5)))
def test_the_order_of_sources_changes_nothing(order):
    extents = [extent_of(100 * i, 50 * i, href=f"{i}.tif") for i in range(5)]
    straight, mixed = lay_out(extents), lay_out([extents[i] for i in order])
    assert mixed.grids == straight.grids
    assert mixed.rows.tolist() == [straight.rows[i] for i in order]
    assert mixed.columns.tolist() == [straight.columns[i] for i in order]


def test_rounded_decimals_are_the_same_lattice():
    # Copernicus DEM-like: a pixel of 1/3600 degree, corners written with eight decimals.
    exact = [extent_of(3600 * i, 0, (3600, 3600), pixel=(1 / 3600, -1 / 3600)) for i in range(3)]
    rounded = [
        Extent(href=f"{i}", crs=UTM, transform=tuple(round(v, 8) for v in each.transform), shapes=each.shapes)
        for i, each in enumerate(exact)
    ]
    # Eight decimals of the pixel size itself drift by a tenth of a pixel a tile.
    assert lay_out([exact[0], rounded[2]]).grid.tolist() == [0, 1]
    corner_only = [
        Extent(
            href=f"{i}",
            crs=UTM,
            transform=(*each.transform[:2], round(each.transform[2], 8), *each.transform[3:5], each.transform[5]),
            shapes=each.shapes,
        )
        for i, each in enumerate(exact)
    ]
    assert lay_out_one(corner_only)[2].tolist() == [0, 3600, 7200]


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (extent_of(crs="EPSG:32634", href="b.tif"), "CRS: EPSG:32633 and EPSG:32634"),
        (extent_of(pixel=(20.0, -20.0), href="b.tif"), "pixel size: 10 x -10 and 20 x -20"),
        (extent_of(pixel=(10.0, 10.0), href="b.tif"), "pixel size: 10 x -10 and 10 x 10"),
        (
            extent_of(shift=(5.0, 0), href="b.tif"),
            "pixel lattice: they lie 0.500 columns and 0.000 rows apart",
        ),
        (
            extent_of(3, 4, shift=(0, 0.2), href="b.tif"),
            "pixel lattice: they lie 3.000 columns and 3.980 rows apart",
        ),
    ],
)
def test_what_lies_on_another_grid_becomes_a_grid_of_its_own(other, what):
    own = [extent_of(7, 0), extent_of(0, 9)]
    layout = lay_out([own[0], other, own[1]])
    assert layout.grid.tolist() == [0, 1, 0]
    assert layout.rows.tolist() == [0, 0, 9]
    assert layout.columns.tolist() == [7, 0, 0]
    first, second = layout.grids
    assert first == lay_out(own).grids[0]
    assert second == lay_out([other]).grids[0]
    assert second.full == grid_of(other.transform, 120, 100, other.crs)
    assert difference(first.full, second.full).split(":")[0] == what.split(":")[0]
    assert difference(lay_out([extent_of()]).grids[0].full, second.full) == what


def test_grids_of_one_lattice_do_not_differ_wherever_they_begin():
    here, there = (lay_out([extent_of(*place)]).grids[0].full for place in ((0, 0), (-37, 1004)))
    assert difference(here, there) is None
    assert difference(there, here) is None


def test_the_crs_of_a_difference_is_named_briefly():
    wkt = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=10 +lon_0=20 +ellps=WGS84 +units=m").to_wkt()
    assert len(wkt) > 300
    assert len(difference(grid_of(), grid_of(crs=wkt))) < 100


@given(
    lattices=st.lists(
        st.tuples(
            st.sampled_from([UTM, "EPSG:32634"]),
            st.sampled_from([(10.0, -10.0), (20.0, -20.0), (60.0, -60.0), (10.0, -20.0)]),
            st.sampled_from([(0.0, 0.0), (5.0, 0.0), (0.0, 2.5), (3.0, 3.0)]),
        ),
        min_size=1,
        max_size=5,
        unique=True,
    ),
    data=st.data(),
)
def test_sources_share_a_grid_where_they_share_a_lattice_and_only_there(lattices, data):
    sources = st.tuples(
        st.integers(0, len(lattices) - 1),
        st.integers(-300, 300),
        st.integers(-300, 300),
        st.integers(1, 200),
        st.integers(1, 200),
    )
    chosen = data.draw(st.lists(sources, min_size=1, max_size=12))
    extents = [
        extent_of(
            column, row, (height, width), href=f"{i}", crs=lattices[k][0], pixel=lattices[k][1], shift=lattices[k][2]
        )
        for i, (k, column, row, height, width) in enumerate(chosen)
    ]
    layout = lay_out(extents)
    order = list(dict.fromkeys(k for k, *_ in chosen))
    assert layout.grid.tolist() == [order.index(k) for k, *_ in chosen], "grids are in the order of their sources"
    assert len(layout.grids) == len(order)
    for number, k in enumerate(order):
        mine = [i for i, each in enumerate(chosen) if each[0] == k]
        # A grid knows nothing of sources on others: it is what its own sources make.
        levels, rows, columns = lay_out_one([extents[i] for i in mine])
        assert layout.grids[number] == levels
        assert layout.rows[mine].tolist() == rows.tolist()
        assert layout.columns[mine].tolist() == columns.tolist()
        assert levels.full.crs == lattices[k][0]
    for i, one in enumerate(layout.grids):
        assert all(difference(one.full, other.full) for other in layout.grids[i + 1 :])


@given(st.permutations(range(6)))
def test_in_another_order_grids_are_named_otherwise_and_nothing_else_changes(order):
    extents = [extent_of(30 * i, 20 * i, href=f"{i}", pixel=((10.0, -10.0), (20.0, -20.0))[i % 2]) for i in range(6)]
    straight, mixed = lay_out(extents), lay_out([extents[i] for i in order])
    for place, i in enumerate(order):
        assert mixed.grids[mixed.grid[place]] == straight.grids[straight.grid[i]]
        assert (mixed.rows[place], mixed.columns[place]) == (straight.rows[i], straight.columns[i])


def test_grids_that_were_laid_out_before_keep_their_positions():
    """An archive that grows lays out its own grids first, as if they were sources."""
    known = lay_out([extent_of(), extent_of(shift=(5, 5)), extent_of(crs="EPSG:32634")])
    whole = [
        Extent(href="s", crs=each.full.crs, transform=each.full.transform, shapes=(each.full.shape,))
        for each in known.grids
    ]
    new = [extent_of(pixel=(20.0, -20.0)), extent_of(-3, -2, shift=(5, 5)), extent_of(4, 5)]
    grown = lay_out([*whole, *new])
    assert grown.grid.tolist() == [0, 1, 2, 3, 1, 0]
    assert grown.rows.tolist() == [0, 2, 0, 0, 0, 5]
    assert grown.columns.tolist() == [0, 3, 0, 0, 0, 4]
    assert [difference(old.full, new.full) for old, new in zip(known.grids, grown.grids, strict=False)] == [None] * 3


def test_rotated_sources_share_a_grid_of_their_own():
    a, b, d, e = 8.0, 6.0, 6.0, -8.0
    turned = [
        Extent(
            href=f"{row} {column}",
            crs=UTM,
            transform=(a, b, 500000.0 + a * column + b * row, d, e, 5000000.0 + d * column + e * row),
            shapes=((100, 120),),
        )
        for row, column in ((0, 0), (100, 0), (40, 120))
    ]
    layout = lay_out([extent_of(), *turned])
    assert layout.grid.tolist() == [0, 1, 1, 1]
    assert layout.rows.tolist() == [0, 0, 100, 40]
    assert layout.columns.tolist() == [0, 0, 0, 120]
    assert layout.grids[1].full.shape == (200, 240)
    assert difference(layout.grids[0].full, layout.grids[1].full) == ("pixel size: 10 x -10 and 8 x -8 (rotated: 6, 6)")


@pytest.mark.parametrize("sizes", [[(128, 128)], [(128, 128), (128, 101)], [(100, 457)], [(256, 256), (256, 201)]])
@pytest.mark.parametrize("images", [1, 2])
def test_a_grid_beside_which_nothing_lies_keeps_its_levels(sizes, images):
    """One image, whose coarse pixels end where it does, or several, whose last ones reach over the edge."""
    starts = np.cumsum([0, *(width for _, width in sizes)])
    extents = [extent_of(int(left), 0, shape, halved(shape, 2)) for left, shape in zip(starts, sizes, strict=False)]
    (levels,) = lay_out(extents * images).grids
    assert len(levels.grids) == 3
    assert lay_out([levels.extent]).grids == (levels,)
    assert levels.extent.is_one == (len(sizes) == 1)
    # Another image of all of it, whose own overviews have pixels of another size, changes nothing.
    whole = Extent(href="b", crs=UTM, transform=levels.full.transform, shapes=levels.extent.shapes)
    (again,) = lay_out([levels.extent, whole]).grids
    assert again == levels


def test_levels_survive_as_json():
    (levels,) = lay_out([extent_of(128 * i, 0, (128, 128), halved((128, 128), 3)) for i in range(3)]).grids
    assert Levels.from_json(json.loads(json.dumps(levels.to_json()))) == levels


@pytest.mark.parametrize("shape", [(170, 200), (1000, 333), (65, 64), (3, 1001)])
def test_levels_of_one_image_are_gdal_s(tmp_path, shape):
    path = write_cog(tmp_path / "a.tif", unique_values(shape, "uint8"), blocksize=64, OVERVIEW_COUNT=4)
    with rasterio.open(path) as full:
        count = len(full.overviews(1))
        transform = tuple(full.transform)[:6]
    oracles = [rasterio.open(path, OVERVIEW_LEVEL=i) for i in range(count)]
    extent = Extent(href="a", crs=UTM, transform=transform, shapes=(shape, *[each.shape for each in oracles]))
    for extents in ([extent], [extent, extent]):  # alone, or as a series of dates
        levels, *_ = lay_out_one(extents)
        assert len(levels.grids) == count + 1
        for level, oracle in zip(levels.grids[1:], oracles, strict=True):
            assert level.shape == oracle.shape
            np.testing.assert_allclose(level.transform, tuple(oracle.transform)[:6], rtol=1e-14)
    for each in oracles:
        each.close()


def test_levels_side_by_side_fit_where_edges_do():
    shape = (128, 128)
    extents = [extent_of(128 * i, 0, shape, halved(shape, 3)) for i in range(3)]
    levels, *_ = lay_out_one(extents)
    assert [level.shape for level in levels.grids] == [(128, 384), (64, 192), (32, 96), (16, 48)]
    assert levels.factors == ((1, 1), (2, 2), (4, 4), (8, 8))
    for level, (rows, columns) in zip(levels.grids, levels.factors, strict=True):
        assert level.transform == (10.0 * columns, 0.0, 500000.0, 0.0, -10.0 * rows, 5000000.0)


def test_levels_end_where_a_neighbour_would_start_inside_a_pixel():
    shape = (100, 100)  # 100, 50, 25, 13: the third overview has half a pixel too much
    extents = [extent_of(100 * i, 0, shape, halved(shape, 3)) for i in range(2)]
    assert len(lay_out_one(extents)[0].grids) == 3
    assert len(lay_out_one(extents[:1])[0].grids) == 4, "alone, it is GDAL's own overview"


def test_levels_end_where_a_source_would_reach_into_a_gap():
    shape = (100, 100)
    extents = [extent_of(0, 0, shape, halved(shape, 3)), extent_of(104, 0, shape, halved(shape, 3))]
    assert len(lay_out_one(extents)[0].grids) == 3, "13 pixels of 8 are 104, and the source has 100"


def test_the_last_source_of_a_row_may_end_inside_a_pixel():
    extents = [
        extent_of(0, 0, (128, 128), halved((128, 128), 2)),
        extent_of(128, 0, (128, 101), halved((128, 101), 2)),
    ]
    levels, *_ = lay_out_one(extents)
    assert [level.shape for level in levels.grids] == [(128, 229), (64, 115), (32, 58)]


def test_levels_are_those_that_all_sources_have():
    shape = (128, 128)
    extents = [extent_of(128 * i, 0, shape, halved(shape, times)) for i, times in enumerate((3, 1, 2))]
    assert len(lay_out_one(extents)[0].grids) == 2


def test_each_grid_has_the_levels_of_its_own_sources():
    shape = (128, 128)
    extents = [
        extent_of(0, 0, shape, halved(shape, 3)),
        extent_of(0, 0, shape, halved(shape, 1), pixel=(20.0, -20.0)),
        extent_of(128, 0, shape, halved(shape, 2)),
        extent_of(0, 0, (7, 9), crs="EPSG:32634"),
    ]
    grids = lay_out(extents).grids
    assert [[level.shape for level in each.grids] for each in grids] == [
        [(128, 256), (64, 128), (32, 64)],
        [(128, 128), (64, 64)],
        [(7, 9)],
    ]
    assert [each.factors for each in grids] == [((1, 1), (2, 2), (4, 4)), ((1, 1), (2, 2)), ((1, 1),)]


def test_levels_end_where_the_ratios_differ():
    extents = [
        extent_of(0, 0, (128, 128), ((64, 64), (32, 32))),
        extent_of(128, 0, (128, 128), ((64, 64), (16, 16))),
    ]
    assert len(lay_out_one(extents)[0].grids) == 2


def test_one_row_images_have_levels_too():
    extents = [
        extent_of(0, 0, (1, 4096), ((1, 2048), (1, 1024))),
        extent_of(4096, 0, (1, 4096), ((1, 2048), (1, 1024))),
    ]
    levels, *_ = lay_out_one(extents)
    assert [level.shape for level in levels.grids] == [(1, 8192), (1, 4096), (1, 2048)]
