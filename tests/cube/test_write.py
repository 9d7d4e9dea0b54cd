"""COG, Zarr and PNG files: what readers of others find in them, and that a failure leaves what was there."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

import cube
from cube.conventions import crs_attributes
from cube.engine.cluster import iterate_blocks
from cube.errors import CubeError, ReadError
from cube.grid import Grid
from cube.write import ramp, stretch, write_cog, write_png, write_zarr

TRANSFORM = Affine(10.0, 0.0, 399960.0, 0.0, -10.0, 5400000.0)
TIMES = np.array(["2024-04-01", "2024-05-01", "2024-06-01"], "datetime64[ns]")


def lazy(values: np.ndarray, chunk: int = 300, name: str = "ndvi") -> xr.DataArray:
    """A dask-backed result as views make it: ([time,] y, x) with the grid in spatial_ref."""
    *_, height, width = values.shape
    grid = Grid(crs="EPSG:32633", transform=tuple(TRANSFORM)[:6], width=width, height=height)
    coords: dict[str, Any] = {
        "y": grid.ys,
        "x": grid.xs,
        "spatial_ref": xr.Variable((), np.int64(0), crs_attributes(grid)),
    }
    dims = ("y", "x")
    if values.ndim == 3:
        coords["time"], dims = TIMES[: len(values)], ("time", "y", "x")
    chunks = (*(-1,) * (values.ndim - 2), chunk, chunk)
    return xr.DataArray(da.from_array(values, chunks), coords, dims, name, {"long_name": "an index"})


def floats(*shape: int) -> np.ndarray:
    values = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
    values[..., : shape[-2] // 3, : shape[-1] // 2] = np.nan
    return values


def blocks_of(array: xr.DataArray) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    return iterate_blocks(array.data, None)


def interrupted(array: xr.DataArray, error: BaseException) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Give one block and then fail."""
    yield next(blocks_of(array))
    raise error


WRITERS: dict[str, Callable[[Path], None]] = {
    "cog": lambda path: write_cog(path, lazy(floats(10, 10)), blocks_of(lazy(floats(10, 10)))),
    "zarr": lambda path: write_zarr(path, lazy(floats(10, 10)).to_dataset()),
    "png": lambda path: write_png(path, np.zeros((2, 2, 4), "uint8")),
}


def test_it_is_a_cog_that_others_read(tmp_path: Path) -> None:
    values = floats(700, 1100)
    path = tmp_path / "new" / "ndvi.tif"
    done: list[int] = []
    write_cog(path, lazy(values), blocks_of(lazy(values)), progress=done.append)
    assert done == list(range(1, 13))
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (file.count, file.dtypes, file.descriptions) == (1, ("float32",), ("ndvi",))
        assert file.block_shapes == [(512, 512)]
        assert file.overviews(1) == [2, 4]
        assert np.isnan(file.nodata)
        assert (file.crs.to_epsg(), file.transform) == (32633, TRANSFORM)
        assert file.compression.value == "DEFLATE"
        assert file.tags()["long_name"] == "an index"
        np.testing.assert_array_equal(file.read(1), values)
    assert [each.name for each in path.parent.iterdir()] == ["ndvi.tif"]


def test_a_band_a_date_is_called_after_it_and_blocks_come_in_any_order(tmp_path: Path) -> None:
    values = floats(3, 150, 90)
    array = lazy(values, chunk=64)
    blocks = list(blocks_of(array))
    random.Random(0).shuffle(blocks)
    write_cog(tmp_path / "dates.tif", array, iter(blocks))
    with rasterio.open(tmp_path / "dates.tif") as file:
        assert file.descriptions == ("2024-04-01", "2024-05-01", "2024-06-01")
        np.testing.assert_array_equal(file.read(), values)


def test_blocks_of_some_dates_each_go_to_their_bands(tmp_path: Path) -> None:
    values = floats(3, 80, 80)
    array = lazy(values).chunk(time=2, y=50)
    write_cog(tmp_path / "dates.tif", array, blocks_of(array))
    with rasterio.open(tmp_path / "dates.tif") as file:
        np.testing.assert_array_equal(file.read(), values)


def test_integers_stay_integers_and_have_no_nodata(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 12, (100, 100)).astype("uint8")
    array = lazy(values, name="scl")
    write_cog(tmp_path / "scl.tif", array, blocks_of(array))
    with rasterio.open(tmp_path / "scl.tif") as file:
        assert (file.dtypes, file.nodata) == (("uint8",), None)
        np.testing.assert_array_equal(file.read(1), values)


def test_what_is_written_opens_as_a_cube(tmp_path: Path) -> None:
    values = floats(700, 600)
    array = lazy(values)
    write_cog(tmp_path / "ndvi.tif", array, blocks_of(array))
    ds = cube.open_cube(tmp_path / "ndvi.tif")
    np.testing.assert_array_equal(ds.ndvi.values, values)
    xr.testing.assert_equal(ds.ndvi.x, array.x)
    xr.testing.assert_equal(ds.ndvi.y, array.y)


@pytest.mark.parametrize("error", [ReadError("a.tif", "is gone"), KeyboardInterrupt(), ValueError("no")], ids=repr)
def test_a_failure_half_way_leaves_the_old_cog_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    array, path = lazy(floats(300, 300), chunk=100), tmp_path / "ndvi.tif"
    write_cog(path, array, blocks_of(array))
    old = path.read_bytes()
    with pytest.raises(type(error)) as caught:
        write_cog(path, array * 2, interrupted(array, error))
    assert caught.value is error
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    write_cog(path, array, ((place, values * 2) for place, values in blocks_of(array)))
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1), array.values * 2)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(CubeError, match=r"file.out cannot be written: ") as caught:
        WRITERS[kind](tmp_path / "file" / "out")
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("kind", ["cog", "png"])
def test_a_folder_in_the_files_place_stays(tmp_path: Path, kind: str) -> None:
    (tmp_path / "out" / "precious").mkdir(parents=True)
    with pytest.raises(CubeError, match=r"out cannot be written: "):
        WRITERS[kind](tmp_path / "out")
    assert [each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*")] == ["out", "out/precious"]


def test_a_zarr_store_opens_with_plain_xarray(tmp_path: Path) -> None:
    values = floats(3, 200, 100)
    write_zarr(tmp_path / "ndvi.zarr", lazy(values, chunk=50).to_dataset())
    with xr.open_dataset(tmp_path / "ndvi.zarr", engine="zarr", consolidated=True, decode_coords="all") as ds:
        assert ds.ndvi.dims == ("time", "y", "x")
        np.testing.assert_array_equal(ds.ndvi.values, values)
        np.testing.assert_array_equal(ds.time.values, TIMES)
        assert ds.ndvi.encoding["chunks"] == (3, 50, 50)
        assert ds.rio.crs.to_epsg() == 32633
    assert [each.name for each in tmp_path.iterdir()] == ["ndvi.zarr"]


def test_a_zarr_store_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "ndvi.zarr"
    write_zarr(path, lazy(floats(100, 100), name="old").to_dataset())
    values = floats(40, 40)
    write_zarr(path, lazy(values, name="new").to_dataset())
    with xr.open_dataset(path, engine="zarr") as ds:
        assert list(ds.data_vars) == ["new"]
        np.testing.assert_array_equal(ds.new.values, values)
    assert not (path / "old").exists()
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_half_way_leaves_the_old_zarr_store(tmp_path: Path) -> None:
    path, values = tmp_path / "ndvi.zarr", floats(100, 100)
    write_zarr(path, lazy(values).to_dataset())
    before = sorted(each.relative_to(path) for each in path.rglob("*"))

    def fail(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info and block_info[0]["chunk-location"] == (0, 0):
            return block
        raise ReadError("a.tif", "is gone")

    broken = lazy(values, chunk=50)
    broken.data = broken.data.map_blocks(fail, dtype="float32", meta=np.empty((0, 0), "float32"))
    with pytest.raises(ReadError, match=r"a\.tif: is gone"):
        write_zarr(path, broken.to_dataset())
    assert list(tmp_path.iterdir()) == [path]
    assert sorted(each.relative_to(path) for each in path.rglob("*")) == before
    with xr.open_dataset(path, engine="zarr") as ds:
        np.testing.assert_array_equal(ds.ndvi.values, values)


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_no_zarr_store_is_not_replaced(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "photos.zarr"
    precious = path / "precious" if folder else path
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("irreplaceable", encoding="utf-8")
    with pytest.raises(CubeError, match=r"photos\.zarr is there and is no Zarr store; choose another name"):
        write_zarr(path, lazy(floats(10, 10)).to_dataset())
    assert precious.read_text(encoding="utf-8") == "irreplaceable"


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_holds_the_picture(tmp_path: Path, channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, channels)).astype("uint8")
    write_png(tmp_path / "picture.png", np.zeros((2, 2, 4), "uint8"))
    write_png(tmp_path / "picture.png", picture)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with rasterio.open(tmp_path / "picture.png") as file:
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), picture)
    assert [each.name for each in tmp_path.iterdir()] == ["picture.png"]  # no .aux.xml either


def test_writing_a_png_says_nothing_of_georeferencing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_png(tmp_path / "picture.png", np.zeros((2, 2, 4), "uint8"))
    assert [each for each in recwarn if each.category is NotGeoreferencedWarning] == []


def test_a_stretch_uses_the_whole_range_and_keeps_the_order() -> None:
    band = np.linspace(0.02, 0.4, 10_000).reshape(100, 100).astype("float32")
    band[0, :10] = np.nan
    picture = stretch([band])
    assert picture.shape == (100, 100, 4)
    assert (picture[0, :10, 3] == 0).all()
    assert (picture[1:, :, 3] == 255).all()
    grey = picture[1:, :, 0].ravel()
    assert (np.diff(grey.astype(int)) >= 0).all()
    assert (grey.min(), grey.max()) == (0, 255)
    assert (picture[..., 0] == picture[..., 1]).all()
    assert (picture[..., 0] == picture[..., 2]).all()


def test_three_bands_share_a_stretch_and_a_pixel_needs_all_of_them() -> None:
    rng = np.random.default_rng(0)
    red, green, blue = rng.uniform(0, 0.3, (3, 50, 50)).astype("float32")
    green[3, 4] = np.nan
    green[7:9] = red[7:9]
    picture = stretch([red, green, blue])
    assert picture[3, 4].tolist() == [0, 0, 0, 0]
    assert (picture[..., 3] == 255).sum() == 50 * 50 - 1
    np.testing.assert_array_equal(picture[7:9, :, 0], picture[7:9, :, 1])
    assert (picture[7:9, :, 2] != picture[7:9, :, 0]).any()


def test_a_few_clouds_do_not_darken_the_land() -> None:
    land = np.random.default_rng(0).uniform(0.05, 0.1, (100, 100)).astype("float32")
    cloudy = land.copy()
    cloudy[:10] = 1.0
    assert stretch([cloudy])[10:, :, 0].mean() > 50
    assert (stretch([cloudy])[:10, :, 0] == 255).all()


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_picture_of_one_value_or_none_is_a_picture(value: float) -> None:
    picture = stretch([np.full((4, 5), value, "float32")])
    assert picture.shape == (4, 5, 4)
    assert (picture[..., 3] == (0 if np.isnan(value) else 255)).all()


def test_a_ramp_goes_from_brown_to_green() -> None:
    picture = ramp(np.array([[-1.0, 0.0, 0.45, 0.9, 2.0, np.nan]]), 0.0, 0.9)
    assert picture[0, :, 3].tolist() == [255, 255, 255, 255, 255, 0]
    assert picture[0, 0].tolist() == picture[0, 1].tolist() == [120, 80, 40, 255]
    assert picture[0, 2].tolist() == [250, 240, 170, 255]
    assert picture[0, 3].tolist() == picture[0, 4].tolist() == [20, 100, 40, 255]
