"""Layers without time: forty lat/lon tiles of four bands as one cube, and one global file of three bands."""

from __future__ import annotations

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.catalog import add_entry, manifest_entry
from cube.testing import ObjectStore
from cube.testing.archive import write_cog
from server.app import create_app
from server.run import serving

BANDS = ("bdod", "clay", "sand", "silt")
TILE, ROWS, COLUMNS = 96, 5, 8
DEGREE = 1 / TILE
WEST, NORTH = 4.0, 52.0


@pytest.fixture(scope="module")
def truth():
    """(y, x) by band: every pixel of the whole area has its own number."""
    count = TILE * ROWS * TILE * COLUMNS
    plain = np.arange(1, count + 1, dtype="int32").reshape(TILE * ROWS, TILE * COLUMNS)
    return {band: plain + i * count for i, band in enumerate(BANDS)}


@pytest.fixture(scope="module")
def archive(truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soil")
    for band, values in truth.items():
        for row in range(ROWS):
            for column in range(COLUMNS):
                part = values[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
                transform = from_origin(WEST + column, NORTH - row, DEGREE, DEGREE)
                path = folder / band / f"tile_N{int(NORTH) - row}_E{int(WEST) + column:03}_{band}.tif"
                write_cog(path, part, crs="EPSG:4326", transform=transform, blocksize=32, OVERVIEW_COUNT=1, nodata=-1)
    return folder


@pytest.fixture(scope="module")
def soil(archive, tmp_path_factory):
    return build(archive, name="soil", to=tmp_path_factory.mktemp("cube") / "soil.cube")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    values = np.arange(3 * 180 * 360, dtype="float32").reshape(3, 180, 360)
    path = tmp_path_factory.mktemp("world") / "world.tif"
    transform = from_origin(-180, 90, 1, 1)
    names = ("elevation", "slope", "aspect")
    write_cog(path, values, crs="EPSG:4326", transform=transform, blocksize=128, descriptions=names)
    return path, values


def test_tiles_are_one_cube_without_time(soil, truth):
    assert len(soil) == ROWS * COLUMNS * len(BANDS)
    assert soil.times is None
    ds = open_cube(soil, mask_and_scale=False)
    assert set(ds.data_vars) == set(BANDS)
    assert dict(ds.sizes) == {"y": ROWS * TILE, "x": COLUMNS * TILE}
    for band, values in truth.items():
        np.testing.assert_array_equal(ds[band].values, values)


@pytest.mark.parametrize("chunks", [None, "auto", {"y": 100, "x": 250}])
def test_windows_across_the_edges_of_tiles(soil, truth, chunks):
    ds = open_cube(soil, chunks=chunks, mask_and_scale=False)
    for rows, columns in (
        (slice(TILE - 1, TILE + 1), slice(TILE - 1, TILE + 1)),
        (slice(30, 3 * TILE + 5), slice(2 * TILE - 7, 5 * TILE + 3)),
        (slice(TILE * ROWS - 1, None), slice(None)),
    ):
        for band in ("clay", "silt"):
            np.testing.assert_array_equal(ds[band].isel(y=rows, x=columns).values, truth[band][rows, columns])


def test_coordinates_run_on_across_tiles(soil):
    ds = open_cube(soil)
    np.testing.assert_allclose(ds.x.values, WEST + (np.arange(COLUMNS * TILE) + 0.5) * DEGREE, rtol=1e-13)
    np.testing.assert_allclose(ds.y.values, NORTH - (np.arange(ROWS * TILE) + 0.5) * DEGREE, rtol=1e-13)
    assert ds.y.attrs["standard_name"] == "latitude"
    assert ds.rio.crs.to_epsg() == 4326
    assert ds.odc.geobox.shape == (ROWS * TILE, COLUMNS * TILE)


def test_a_point_and_a_box_are_found_by_their_degrees(soil, truth):
    ds = open_cube(soil, mask_and_scale=False)
    assert ds.sand.sel(x=4.0, y=52.0, method="nearest").item() == truth["sand"][0, 0]
    assert ds.sand.sel(x=6.5 + DEGREE / 2, y=49.5 - DEGREE / 2, method="nearest").item() == truth["sand"][240, 240]
    box = open_cube(soil, bands="clay", bbox=(5.5, 49.5, 7.5, 51.5), mask_and_scale=False)
    np.testing.assert_array_equal(box.clay.values, truth["clay"][48:240, 144:336])
    assert box.odc.geobox.boundingbox.bbox == pytest.approx((5.5, 49.5, 7.5, 51.5))


def test_overviews_of_tiles_are_one_level(soil, archive):
    import rasterio

    assert [grid.shape for grid in soil.levels] == [(480, 768), (240, 384)]
    ds = open_cube(soil, level=1, mask_and_scale=False)
    path = archive / "silt" / "tile_N50_E006_silt.tif"
    with rasterio.open(path, OVERVIEW_LEVEL=0) as oracle:
        np.testing.assert_array_equal(ds.silt.values[96:144, 96:144], oracle.read(1))
    assert float(ds.x[1] - ds.x[0]) == pytest.approx(2 * DEGREE)


def test_a_missing_tile_is_a_hole(archive, truth, tmp_path):
    paths = [path for path in sorted((archive / "clay").glob("*.tif")) if "N50_E006" not in path.name]
    ds = open_cube(build(paths, to=tmp_path / "clay.cube"))
    (band,) = ds.data_vars
    expected = truth["clay"].astype("float64")
    expected[2 * TILE : 3 * TILE, 2 * TILE : 3 * TILE] = np.nan
    np.testing.assert_array_equal(ds[band].values, expected)


def test_one_global_file_of_three_bands(world):
    path, values = world
    for ds in (open_cube(path), xr.open_dataset(path, engine="cube"), open_cube(path, chunks={"x": 100})):
        assert list(ds.data_vars) == ["elevation", "slope", "aspect"]
        assert ds.elevation.dims == ("y", "x")
        np.testing.assert_array_equal(ds.to_dataarray().values, values)
        assert (float(ds.x[0]), float(ds.x[-1]), float(ds.y[0])) == (-179.5, 179.5, 89.5)


def test_a_remote_archive_reads_the_tiles_that_a_window_touches(archive, truth, tmp_path):
    names = [path.relative_to(archive).as_posix() for path in sorted(archive.rglob("*.tif"))]
    with ObjectStore(archive) as store:
        ds = open_cube(build([f"{store.url}/{name}" for name in names], to=tmp_path / "s.cube"), mask_and_scale=False)
        assert store.counts().requests == len(names)
        store.reset()
        found = ds.sand.isel(y=slice(90, 100), x=slice(90, 100)).values
        np.testing.assert_array_equal(found, truth["sand"][90:100, 90:100])
        touched = [f"sand/tile_N{lat}_E{lon:03}_sand.tif" for lat in (52, 51) for lon in (4, 5)]
        assert store.counts().paths == dict.fromkeys(touched, 1)


@pytest.fixture(scope="module")
def served(soil, world, tmp_path_factory):
    """The URL of a server of one catalogue of both cubes."""
    catalog = tmp_path_factory.mktemp("catalog") / "catalog.yaml"
    globe = build(world[0], to=catalog.parent / "world.cube")
    for name, manifest in (("soil", soil), ("world", globe)):
        add_entry(catalog, manifest_entry(name, manifest.url, catalog=catalog))
    with serving(create_app(catalog)) as url:
        yield url


def test_two_entries_of_a_catalogue_are_served(served, truth, world):
    soil = xr.open_dataset(f"{served}/datasets/soil.zarr", chunks={}, mask_and_scale=False)
    assert soil.clay.dims == ("y", "x")
    for rows, columns in ((slice(90, 100), slice(90, 100)), (slice(200, 300), slice(None))):
        for band in ("clay", "bdod"):
            np.testing.assert_array_equal(soil[band].isel(y=rows, x=columns).values, truth[band][rows, columns])
    np.testing.assert_allclose(soil.y.values, NORTH - (np.arange(ROWS * TILE) + 0.5) * DEGREE, rtol=1e-13)
    assert soil.rio.crs.to_epsg() == 4326
    globe = xr.open_dataset(f"{served}/datasets/world.zarr")
    np.testing.assert_array_equal(globe[["elevation", "slope", "aspect"]].to_dataarray().values, world[1])
