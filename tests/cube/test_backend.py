from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.backend import CubeBackendEntrypoint
from cube.errors import BuildError, SelectionError
from cube.io.trace import trace
from cube.testing.archive import unique_values, write_cog


def write(path, seed=0, **options):
    options = {"driver": "GTiff", "blockxsize": 64, "blockysize": 64, "nodata": 0, "scale": 0.5} | options
    array = unique_values((100, 120), "uint16", seed)
    array[:9] = 0
    write_cog(path, array, transform=from_origin(500000, 5000000, 10, 10), **options)
    return array


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    names = [f"{date}_{band}" for date in ("20240101", "20240201") for band in ("red", "nir")]
    return folder, {name: write(folder / f"{name}.tif", seed) for seed, name in enumerate(names)}


@pytest.fixture(scope="module")
def manifest(archive):
    return build(archive[0])


def test_the_engine_is_known_to_xarray():
    assert isinstance(xr.backends.list_engines()["cube"], CubeBackendEntrypoint)


@pytest.mark.parametrize("options", [{}, {"chunks": {}}, {"chunks": {"x": 50}}, {"chunks": "auto"}])
@pytest.mark.parametrize("masked", [True, False])
def test_it_is_what_open_cube_opens(manifest, options, masked):
    expected = open_cube(manifest, mask_and_scale=masked).load()
    found = xr.open_dataset(manifest.url, engine="cube", mask_and_scale=masked, **options)
    assert bool(found.red.chunks) == bool(options)
    xr.testing.assert_identical(found.load(), expected)


@pytest.mark.parametrize("blocks", ["auto", {"time": 1}, {"x": 60, "y": 50}])
def test_blocks_give_the_graph_of_open_cube(manifest, blocks):
    expected = open_cube(manifest, chunks=blocks)
    found = xr.open_dataset(manifest.url, engine="cube", blocks=blocks, cache=False)
    # xarray wraps what an engine gives; the dask array is in `data`, and in all that is computed from it.
    assert found.red.data.chunks == expected.red.chunks
    assert found.red.data.name == expected.red.data.name
    assert (found.nir - found.red).chunks == expected.red.chunks
    xr.testing.assert_identical(found.load(), expected.load())


def test_one_file_is_its_bands_in_file_order(tmp_path):
    arrays = unique_values((3, 70, 80), "uint8")
    path = write_cog(tmp_path / "a.tif", arrays, driver="GTiff", descriptions=("red", "green", "blue"))
    for what in (path, str(path), path.as_uri()):
        found = xr.open_dataset(what, engine="cube")
        assert list(found.data_vars) == ["red", "green", "blue"]
        np.testing.assert_array_equal(found.to_dataarray().values, arrays)


def test_a_list_of_files(archive):
    folder, arrays = archive
    names = ["20240101_red", "20240201_red"]
    found = xr.open_dataset([folder / f"{name}.tif" for name in names], engine="cube", mask_and_scale=False)
    (band,) = found.data_vars
    np.testing.assert_array_equal(found[band].values, [arrays[name] for name in names])


def test_arguments_are_those_of_open_cube(manifest, archive):
    found = xr.open_dataset(
        manifest.url, engine="cube", bands=["nir"], time="2024-02", bbox=(15.0, 45.14, 15.005, 45.15), level=0
    )
    expected = open_cube(manifest, bands=["nir"], time="2024-02", bbox=(15.0, 45.14, 15.005, 45.15))
    xr.testing.assert_identical(found.load(), expected.load())
    by_pattern = xr.open_dataset(archive[0], engine="cube", pattern="{time:%Y%m%d}_{band}.tif")
    assert set(by_pattern.data_vars) == {"red", "nir"}


@pytest.mark.parametrize(("dropped", "left"), [("red", ["nir"]), (["nir"], ["red"]), (["nir", "none"], ["red"])])
def test_variables_can_be_dropped(manifest, dropped, left):
    assert list(xr.open_dataset(manifest.url, engine="cube", drop_variables=dropped).data_vars) == left


def test_xarray_chooses_it_for_manifests_alone(manifest, archive):
    assert set(xr.open_dataset(manifest.url).data_vars) == {"red", "nir"}
    engine = CubeBackendEntrypoint()
    assert engine.guess_can_open("https://host/a.cube/")
    assert not engine.guess_can_open(str(archive[0] / "20240101_red.tif"))
    assert not engine.guess_can_open(archive[0])


def test_opening_reads_no_pixel(manifest):
    with trace() as asked:
        xr.open_dataset(manifest.url, engine="cube", chunks={})
    assert not [record for record in asked.records if record.href.endswith(".tif")]


def test_xarray_reads_a_part_as_a_part(manifest, archive):
    found = xr.open_dataset(manifest.url, engine="cube", mask_and_scale=False)
    with trace() as asked:
        values = found.red.isel(time=1, y=slice(70, 90), x=slice(0, 20)).values
    assert len(asked.records) == 1
    np.testing.assert_array_equal(values, archive[1]["20240201_red"][70:90, :20])


def test_errors_come_through_as_they_are(tmp_path, manifest):
    with pytest.raises(BuildError, match=r"holds no \.tif or \.tiff file"):
        xr.open_dataset(tmp_path, engine="cube")
    with pytest.raises(SelectionError, match="band 'blue' was asked for"):
        xr.open_dataset(manifest.url, engine="cube", bands="blue")
    with pytest.raises(SelectionError, match="resampling='linear' was asked for; there are nearest, bilinear"):
        xr.open_dataset(manifest.url, engine="cube", resampling="linear")
    with pytest.raises(TypeError, match="resample"):
        xr.open_dataset(manifest.url, engine="cube", resample="nearest")


@pytest.mark.parametrize(
    "options",
    [
        {"crs": "EPSG:3857", "resolution": 30, "resampling": {"red": "cubic", "*": "average"}},
        {"resolution": 20, "anchor": "center"},
        {"geopolygon": {"type": "Point", "coordinates": [15.0, 45.15]}},
        {"groupby": "id", "fuse": "last"},
    ],
)
def test_another_grid_is_that_of_open_cube(manifest, options):
    found = xr.open_dataset(manifest.url, engine="cube", **options)
    xr.testing.assert_identical(found, open_cube(manifest, **options))
    for name in ("geobox", "like"):
        again = xr.open_dataset(manifest.url, engine="cube", **{name: found.odc.geobox if name == "geobox" else found})
        assert again.odc.geobox == found.odc.geobox
