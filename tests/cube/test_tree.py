"""The levels of a cube as a tree, as GeoZarr lays them out, and as other readers understand it."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from rasterio.transform import from_origin
from rioxarray.enum import Convention

from cube import build, open_cube, open_tree
from cube.errors import SelectionError
from cube.testing import unique_values, write_cog

# rioxarray still multiplies affines with `*`.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

CRS = "EPSG:32633"
SHAPE = (500, 700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two dates of a COG with two overviews, of which the last ends inside of a pixel of the first."""
    root = tmp_path_factory.mktemp("tree")
    for day in ("2024-01-05", "2024-03-01"):
        for band in ("red", "nir"):
            write_cog(
                root / f"{day}_{band}.tif",
                unique_values(SHAPE, "uint16", seed=len(band)),
                crs=CRS,
                transform=from_origin(600000, 5400000, 10, 10),
                nodata=0,
                blocksize=128,
                OVERVIEW_COUNT=2,
            )
    return root


@pytest.fixture(scope="module")
def manifest(folder):
    return build(folder, pattern="{time:%Y-%m-%d}_{band}.tif", to=folder / "a.cube")


@pytest.fixture(scope="module")
def tree(manifest):
    return xr.open_datatree(manifest.url, engine="cube")


def test_each_overview_is_a_group(tree, manifest, folder):
    assert list(tree.children) == ["0", "1", "2"]
    for level, name in enumerate(tree.children):
        xr.testing.assert_identical(
            tree[name].to_dataset().drop_attrs().load(), open_cube(manifest, level=level).drop_attrs().load()
        )
        with rasterio.open(folder / "2024-03-01_red.tif", overview_level=level - 1 if level else None) as file:
            pixels = np.where(file.read_masks(1), file.read(1).astype(float), np.nan)
            np.testing.assert_array_equal(tree[name].red.values[1], pixels)


def test_what_geozarr_says_of_the_whole(tree):
    said = tree.attrs
    assert [each["name"] for each in said["zarr_conventions"]] == ["multiscales", "proj:", "spatial:"]
    assert (said["proj:code"], said["spatial:dimensions"]) == (CRS, ["y", "x"])
    layout = said["multiscales"]["layout"]
    assert [each["asset"] for each in layout] == ["0", "1", "2"]
    assert "derived_from" not in layout[0]
    for before, each in itertools.pairwise(layout):
        assert each["derived_from"] == before["asset"]
        assert each["transform"]["scale"] == pytest.approx([2, 2], rel=0.01)
        shape = tree[each["asset"]].red.shape[1:]
        assert tuple(each["spatial:shape"]) == shape
        a, _, c, _, e, f = each["spatial:transform"]
        assert (c, f) == (600000, 5400000)
        xs, ys = tree[each["asset"]].x.values, tree[each["asset"]].y.values
        np.testing.assert_allclose(xs, c + a * (np.arange(shape[1]) + 0.5))
        np.testing.assert_allclose(ys, f + e * (np.arange(shape[0]) + 0.5))


@pytest.mark.parametrize("level", ["0", "1", "2"])
@pytest.mark.parametrize("is_array", [False, True])
def test_rioxarray_reads_the_place_from_the_attributes_alone(tree, level, is_array):
    known = tree[level].to_dataset()
    bare = known.drop_vars(["spatial_ref", "x", "y"])
    for variable in bare.variables.values():
        variable.encoding.pop("grid_mapping", None)
    found = bare.red if is_array else bare
    with rioxarray.set_options(convention=Convention.ZARR):
        assert found.rio.crs.to_epsg() == 32633
        assert (found.rio.x_dim, found.rio.y_dim) == ("x", "y")
        transform = found.rio.transform()
    expected = known.red.odc.geobox.affine
    assert transform.almost_equals(Affine(*expected[:6]), precision=1e-9)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_written_tree_is_read_back_with_its_attributes(tree, tmp_path, zarr_format):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # consolidated metadata are no part of version 3 yet
        tree.to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format)
        again = xr.open_datatree(tmp_path / "a.zarr", engine="zarr", decode_coords="all")
    for name in ("0", "1", "2"):
        xr.testing.assert_equal(again[name].to_dataset().load(), tree[name].to_dataset().load())
    assert again.attrs["multiscales"] == tree.attrs["multiscales"]
    assert open_cube(tmp_path / "a.zarr" / "1").red.shape == tree["1"].red.shape


def test_a_grid_that_is_asked_for_has_levels_of_its_own(manifest):
    tree = open_tree(manifest, ["red"], crs="EPSG:4326", resolution=0.0002)
    first, second = (tree[name].to_dataset().odc.geobox for name in ("0", "1"))
    assert abs(second.resolution.x) == pytest.approx(2 * abs(first.resolution.x))
    assert second.extent.boundingbox.left == first.extent.boundingbox.left


def test_a_level_or_a_store_of_others_is_refused(manifest, tmp_path):
    with pytest.raises(TypeError, match="leave out level="):
        open_tree(manifest, level=1)
    open_cube(manifest, level=2).drop_encoding().to_zarr(tmp_path / "a.zarr", zarr_format=2)
    with pytest.raises(SelectionError, match=r"no archive of COGs: open_cube\(\) opens it"):
        open_tree(tmp_path / "a.zarr")
