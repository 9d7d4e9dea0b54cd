"""Layers without time: lat/lon tiles as one grid each, and whole maps, from files and STAC, by name and served."""

from __future__ import annotations

import itertools
import json
import struct

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import pytest
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
from rasterio.transform import from_origin

from cube import build, open_cube
from cube.catalog import add_entry, manifest_entry
from cube.errors import BuildError, SelectionError
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


# The archive of an author of global maps: many small tiles of several products, in one catalogue.

LAYERS = {"soil": ("bdod", "clay", "sand", "silt"), "flood": ("depth", "extent")}
LATTICES = {"soil": (20, 25, 0.5, -100.0, 80.0), "flood": (13, 20, 0.25, -40.0, 30.0)}
"""(rows, columns, degrees a pixel, west, north) of the tiles."""
SIDE = 16


def number_of(entry, layer, row, column):
    return 1000 * LAYERS[entry].index(layer) + row * 25 + column


def pixels_of(entry, layer, row, column):
    """Return the (y, x) numbers of a tile: no two tiles have one in common, and no two pixels of a tile."""
    first = number_of(entry, layer, row, column) * SIDE * SIDE
    return np.arange(first, first + SIDE * SIDE, dtype="int32").reshape(SIDE, SIDE)


def place_of(entry, row, column):
    _, _, degrees, west, north = LATTICES[entry]
    return west + column * SIDE * degrees, north - row * SIDE * degrees


def write_tiles(entry, folder):
    """Write the tiles of an entry, one band a file: all but a few from the bytes of the first, which is quick."""
    rows, columns, degrees, west, north = LATTICES[entry]
    options = {"driver": "GTiff", "blockxsize": SIDE, "blockysize": SIDE, "crs": "EPSG:4326", "nodata": -1}
    first = write_cog(
        folder / "first.tif",
        pixels_of(entry, LAYERS[entry][0], 0, 0),
        transform=from_origin(west, north, degrees, degrees),
        compress="NONE",
        **options,
    )
    template = bytearray(first.read_bytes())
    first.unlink()
    tiepoint, data = template.index(struct.pack("<2d", west, north)), template.index(struct.pack("<3i", 0, 1, 2))
    for layer in LAYERS[entry]:
        (folder / layer).mkdir()
        for row, column in itertools.product(range(rows), range(columns)):
            path, pixels = folder / layer / f"{layer}_r{row:02}_c{column:02}.tif", pixels_of(entry, layer, row, column)
            corner = place_of(entry, row, column)
            if (row + column) % 25 == 24:  # processed again, with a codec and a predictor
                write_cog(path, pixels, transform=from_origin(*corner, degrees, degrees), **options)
                continue
            struct.pack_into("<2d", template, tiepoint, *corner)
            template[data : data + pixels.nbytes] = pixels.tobytes()
            path.write_bytes(template)


def whole(entry, layer):
    """Return the (y, x) numbers of all tiles of a layer, side by side."""
    rows, columns, *_ = LATTICES[entry]
    return np.block([[pixels_of(entry, layer, row, column) for column in range(columns)] for row in range(rows)])


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A folder with the files of four products: 2000 of soil, 520 of floods, one of three bands, one of one."""
    folder = tmp_path_factory.mktemp("maps")
    for entry in LAYERS:
        (folder / entry).mkdir()
        write_tiles(entry, folder / entry)
    relief = np.arange(3 * 90 * 180, dtype="float32").reshape(3, 90, 180)
    names = ("elevation", "slope", "aspect")
    options = {"crs": "EPSG:4326", "transform": from_origin(-180, 90, 2, 2), "blocksize": 128}
    write_cog(folder / "relief" / "relief.tif", relief, descriptions=names, **options)
    write_cog(folder / "water" / "water.tif", (relief[0] % 3).astype("uint8"), **options)
    return folder


def write_json(path, document):
    path.write_text(json.dumps({"stac_version": "1.0.0", "description": "maps", **document}))


def collection(name, links, **more):
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    linked = [{"rel": rel, "href": href} for rel, href in links]
    return {"type": "Collection", "id": name, "license": "CC0-1.0", "extent": extent, "links": linked, **more}


@pytest.fixture(scope="module")
def stac(maps):
    """The folder of the maps, with four Collections; the tiles are Items of a Collection a row, without time."""
    folder = maps
    kind = {"type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"]}
    for entry, layers in LAYERS.items():
        rows, columns, *_ = LATTICES[entry]
        for row in range(rows):
            items = []
            for column in range(columns):
                name = f"r{row:02}_c{column:02}"
                assets = {layer: {"href": f"./{layer}/{layer}_{name}.tif", **kind} for layer in layers}
                properties = {"datetime": None, "title": f"tile {name}"}
                item = {"type": "Feature", "id": f"{entry}_{name}", "geometry": None, "links": [], "assets": assets}
                write_json(folder / entry / f"{name}.json", {**item, "properties": properties})
                items.append(("item", f"./{name}.json"))
            write_json(folder / entry / f"row_{row:02}.json", collection(f"{entry}-{row}", items))
        children = [("child", f"./row_{row:02}.json") for row in range(rows)]
        write_json(folder / entry / "collection.json", collection(entry, children))
    bands = [{"name": name} for name in ("elevation", "slope", "aspect")]
    assets = {"relief": {"href": "./relief.tif", **kind, "eo:bands": bands}}
    write_json(folder / "relief" / "collection.json", collection("relief", [], assets=assets))
    assets = {"water": {"href": "./water.tif", **kind}}
    write_json(folder / "water" / "collection.json", collection("water", [], assets=assets))
    links = [{"rel": "child", "href": f"./{name}/collection.json"} for name in (*LAYERS, "relief", "water")]
    write_json(folder / "catalog.json", {"type": "Catalog", "id": "maps", "links": links})
    return folder


@pytest.fixture(scope="module", params=["files", "collections"])
def atlas(request, stac, tmp_path_factory):
    """A catalogue of four entries, built from files or from STAC Collections; (its path, the manifests by name)."""
    path = tmp_path_factory.mktemp("atlas") / "catalog.yaml"
    manifests = {}
    for name in (*LAYERS, "relief", "water"):
        what, options = stac / name / "collection.json", {}
        if request.param == "files":
            what = stac / name
            options = {"pattern": "{band}_{tile}.tif"} if name in LAYERS else {}
        manifests[name] = build(what, name=name, to=path.parent / f"{name}.cube", **options)
        add_entry(path, manifest_entry(name, manifests[name].url, catalog=path))
    return path, manifests


of_collections = pytest.mark.parametrize("atlas", ["collections"], indirect=True)
"""For what is the same of both, once it is there."""


def check_layers(ds, entry):
    rows, columns, degrees, west, north = LATTICES[entry]
    assert set(ds.data_vars) - {"spatial_ref"} == set(LAYERS[entry])
    assert (ds.sizes["y"], ds.sizes["x"]) == (rows * SIDE, columns * SIDE)
    np.testing.assert_allclose(ds.x.values, west + (np.arange(columns * SIDE) + 0.5) * degrees, rtol=1e-13)
    np.testing.assert_allclose(ds.y.values, north - (np.arange(rows * SIDE) + 0.5) * degrees, rtol=1e-13)
    for layer in LAYERS[entry]:
        assert ds[layer].dims == ("y", "x")
        np.testing.assert_array_equal(ds[layer].values, whole(entry, layer))


def test_500_tiles_of_four_bands_and_260_of_two_are_one_grid_each(atlas):
    _, manifests = atlas
    for entry, count in (("soil", 2000), ("flood", 520)):
        manifest = manifests[entry]
        assert len(manifest) == count
        assert manifest.times is None
        check_layers(open_cube(manifest, mask_and_scale=False), entry)
    ds = open_cube(manifests["soil"], chunks={"y": 50, "x": 70}, mask_and_scale=False)
    part = ds.clay.sel(y=slice(60, 40), x=slice(-20, 20))
    assert part.shape == (40, 80)
    np.testing.assert_array_equal(part.values, whole("soil", "clay")[40:80, 160:240])


def test_single_files_of_three_bands_and_of_one(atlas):
    _, manifests = atlas
    relief = open_cube(manifests["relief"])
    assert list(relief.data_vars) == ["elevation", "slope", "aspect"]
    expected = np.arange(3 * 90 * 180, dtype="float32").reshape(3, 90, 180)
    np.testing.assert_array_equal(relief.to_dataarray().values, expected)
    water = open_cube(manifests["water"])
    (name,) = water.data_vars
    assert water[name].dims == ("y", "x")
    np.testing.assert_array_equal(water[name].values, expected[0] % 3)
    # Zeros are water's classes, as no nodata says otherwise.
    assert water[name].dtype == "uint8"


@of_collections
def test_intake_opens_the_four_entries(atlas):
    import intake

    path, _ = atlas
    catalog = intake.open_catalog(str(path))
    assert set(catalog) == {"soil", "flood", "relief", "water"}
    for entry in LAYERS:
        ds = catalog[entry].to_dask()
        layer = LAYERS[entry][-1]
        np.testing.assert_array_equal(ds[layer].values, whole(entry, layer))
    assert catalog["relief"].to_dask().slope.dims == ("y", "x")


@of_collections
def test_names_of_the_catalogue_open_from_its_folder(atlas, monkeypatch):
    path, _ = atlas
    monkeypatch.chdir(path.parent)
    check_layers(open_cube("flood", mask_and_scale=False), "flood")
    point = open_cube("soil", bands=["sand"]).sand.sel(x=3.1, y=-17.9, method="nearest")
    assert point.item() == whole("soil", "sand")[195, 206]


@of_collections
def test_the_four_entries_are_served(atlas):
    path, _ = atlas
    with serving(create_app(path)) as url:
        check_layers(xr.open_dataset(f"{url}/datasets/soil.zarr", chunks={}, mask_and_scale=False), "soil")
        flood = xr.open_dataset(f"{url}/datasets/flood.zarr", mask_and_scale=False)
        np.testing.assert_array_equal(flood.extent[100:150, 30:200].values, whole("flood", "extent")[100:150, 30:200])
        relief = xr.open_dataset(f"{url}/datasets/relief.zarr")
        assert float(relief.aspect[89, 179]) == 3 * 90 * 180 - 1
        water = xr.open_dataset(f"{url}/datasets/water.zarr", mask_and_scale=False)
        assert {"time"}.isdisjoint(water.dims)


def test_products_on_different_grids_are_a_cube_that_opens_by_product(stac, tmp_path):
    # Wherever such a cube is opened, there are pixels of which water, which has a number for all of its own, says none.
    with pytest.raises(BuildError, match=r"band 'water' \(uint8, no nodata value\) is missing"):
        build(stac / "catalog.json", to=tmp_path / "maps.cube")
    manifest = build(stac / "catalog.json", to=tmp_path / "maps.cube", fill_value=255)
    assert (len(manifest), len(manifest.bands)) == (2522, 10)
    with pytest.raises(SelectionError) as caught:
        open_cube(manifest)
    assert [line.split(" from")[0] for line in str(caught.value).splitlines()[:4]] == [
        "the sources of 'maps' lie on 3 grids:",
        "  2,000 in EPSG:4326, pixels of 0.5 x -0.5",
        "  520 in EPSG:4326, pixels of 0.25 x -0.25",
        "  2 in EPSG:4326, pixels of 2 x -2",
    ]
    for entry, layers in LAYERS.items():
        check_layers(open_cube(manifest, layers, mask_and_scale=False), entry)
    water = open_cube(manifest, "water", mask_and_scale=False).water
    np.testing.assert_array_equal(water, np.arange(90 * 180).reshape(90, 180) % 3)


def test_products_on_different_grids_meet_on_one_that_is_asked_for(maps, tmp_path):
    manifest = build([maps / "soil", maps / "flood"], pattern="{band}_{tile}.tif", to=tmp_path / "maps.cube")
    with pytest.raises(SelectionError, match="lie on 2 grids"):
        open_cube(manifest)
    soil = open_cube(manifest, LAYERS["soil"], mask_and_scale=False)
    ds = open_cube(manifest, like=soil, mask_and_scale=False)
    np.testing.assert_array_equal(ds.clay, soil.clay)
    depth = whole("flood", "depth")  # whose pixels are a quarter of soil's, from 40 W and 30 N
    expected = np.full(soil.clay.shape, -1)
    place = np.s_[(80 - 30) * 2 : (80 - 30) * 2 + 104, (100 - 40) * 2 : (100 - 40) * 2 + 160]
    expected[place] = depth[1::2, 1::2]
    np.testing.assert_array_equal(ds.depth, expected)
    means = open_cube(manifest, ["depth"], like=soil, resampling="average", mask_and_scale=False).depth
    np.testing.assert_allclose(means.values[place], depth.reshape(104, 2, 160, 2).mean(axis=(1, 3)), atol=0.5)
