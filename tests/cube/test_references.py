"""Kerchunk references: what others read through them is what the cube holds, or they are refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from time import time as now
from typing import Any

import fsspec
import icechunk
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - the accessor .rio
import xarray as xr
import zarr
from affine import Affine
from fsspec.implementations.reference import LazyReferenceMapper

import cube
from cube.errors import ReferencesError
from cube.foreign.find import Foreign
from cube.foreign.open import open_foreign
from cube.io.trace import trace
from cube.manifest.open import Manifest
from cube.references import to_kerchunk
from cube.references.icechunk import to_icechunk
from cube.references.plan import plan_references
from cube.spec import Placing
from cube.testing import ObjectStore, unique_values, write_archive, write_cog

# rioxarray and odc-geo still multiply affines with `*`.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

TILE = 64
SHAPE = (150, 200)
TILED: dict[str, Any] = {"driver": "GTiff", "blockxsize": TILE, "blockysize": TILE}


def open_parquet(path: Path, **options: Any) -> xr.Dataset:
    """Open Parquet references as their readers do, but with pyarrow: fsspec's default is fastparquet."""
    mapper = LazyReferenceMapper(str(path), fs=fsspec.filesystem("file"), engine="pyarrow")
    files = fsspec.filesystem("reference", fo=mapper, remote_options={"asynchronous": True}, asynchronous=True)
    store = zarr.storage.FsspecStore(files, read_only=True)
    return xr.open_zarr(store, zarr_format=2, consolidated=False, chunks=None, **options)


def open_as_others_do(path: Path, **options: Any) -> xr.Dataset:
    return xr.open_dataset(str(path), engine="kerchunk", **options) if path.suffix == ".json" else open_parquet(path)


def require_equal(manifest: Manifest, folder: Path, level: int = 0) -> None:
    """Write references in both forms and compare what is read through them with the cube."""
    expected = cube.open_cube(manifest, level=level).load()
    for path in (folder / "refs.json", folder / "refs.parq"):
        tiles = to_kerchunk(manifest, path, level=level)
        assert tiles > 0
        found = open_as_others_do(path).load()
        assert found.rio.crs == expected.rio.crs
        for name in expected.variables:
            np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=f"{path.name}: {name}")
            assert found[name].dtype.newbyteorder("=") == expected[name].dtype
    require_equal_in_icechunk(manifest, folder, expected, level)


def require_equal_in_icechunk(manifest: Manifest, folder: Path, expected: xr.Dataset, level: int) -> None:
    if manifest.image(0).predictor == 2 and manifest.bands[0].dtype.startswith("float"):
        with pytest.raises(ReferencesError, match=r"version 3 of Zarr has no codec .* differences of integers"):
            to_icechunk(manifest, folder / "refs.icechunk", level=level)
        return
    tiles = to_icechunk(manifest, folder / "refs.icechunk", level=level)
    assert tiles == to_kerchunk(manifest, folder / "refs.json", level=level)
    allow = [entry["path"] for entry in manifest.source_table().select(["href"]).rename_columns(["path"]).to_pylist()]
    found = cube.open_cube(folder / "refs.icechunk", allow=[href.rpartition("/")[0] for href in allow]).load()
    for name in expected.variables:
        np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=f"icechunk: {name}")
        assert found[name].dtype == expected[name].dtype


@pytest.mark.parametrize("endianness", ["LITTLE", "BIG"])
@pytest.mark.parametrize(
    ("compress", "predictor", "dtype"),
    [
        ("NONE", 1, "uint16"),
        ("NONE", 1, "float64"),
        ("DEFLATE", 1, "int16"),
        ("DEFLATE", 2, "uint8"),
        ("DEFLATE", 2, "uint16"),
        ("DEFLATE", 2, "float32"),
        ("DEFLATE", 3, "float32"),
        ("DEFLATE", 3, "float64"),
        ("LZW", 1, "int8"),
        ("LZW", 2, "int32"),
        ("LZW", 3, "float32"),
        ("ZSTD", 1, "uint32"),
        ("ZSTD", 2, "uint16"),
        ("ZSTD", 3, "float64"),
    ],
)
def test_tiles_are_read_as_the_cube_reads_them(
    tmp_path: Path, compress: str, predictor: int, dtype: str, endianness: str
) -> None:
    # A name that a URL would escape.
    path = tmp_path / "a b%20.tif"
    values = unique_values(SHAPE, dtype)
    write_cog(path, values, compress=compress, predictor=predictor, ENDIANNESS=endianness, **TILED)
    require_equal(cube.build(path), tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("nodata", [None, 7])
def test_sparse_tiles_hold_what_the_file_says(tmp_path: Path, dtype: str, nodata: int | None) -> None:
    values = unique_values(SHAPE, dtype)
    values[:TILE, :TILE] = nodata or 0
    path = write_cog(tmp_path / "sparse.tif", values, nodata=nodata, SPARSE_OK=True, **TILED)
    manifest = cube.build(path)
    assert (manifest.image(0).lengths == 0).sum() == 1
    require_equal(manifest, tmp_path)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint16", 0), ("float32", None)])
def test_holes_hold_nodata(tmp_path: Path, dtype: str, nodata: int | None) -> None:
    for number, (date, band) in enumerate([("20240101", "red"), ("20240101", "nir"), ("20240202", "red")]):
        values = unique_values(SHAPE, dtype, seed=number)
        write_cog(tmp_path / "in" / f"x_{date}_{band}.tif", values, nodata=nodata, **TILED)
    manifest = cube.build(tmp_path / "in")
    require_equal(manifest, tmp_path)
    references = plan_references(manifest)
    assert "nir/0.0.0" in references
    assert "nir/1.0.0" not in references


def test_class_bands_with_holes_are_not_masked(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "s2", size=128, dates=["2024-04-09", "2024-05-09"], tile=TILE)
    items = json.loads(archive.items.read_text())
    (key,) = [key for key in items["features"][0]["assets"] if key.lower() == "scl"]
    del items["features"][1]["assets"][key]
    archive.items.write_text(json.dumps(items))
    manifest = cube.build(archive.items)
    require_equal(manifest, tmp_path)
    assert xr.open_dataset(str(tmp_path / "refs.json"), engine="kerchunk")["scl"].dtype == "uint8"


def test_bands_of_a_file_that_keeps_them_apart(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "rgb.tif", unique_values((3, *SHAPE), "uint16"), interleave="BAND", **TILED)
    require_equal(cube.build(path), tmp_path)


def test_tiles_side_by_side_and_their_overviews(tmp_path: Path) -> None:
    for row in range(2):
        for column in range(2):
            x, y = 5 + column * 2.56, 50 - row * 2.56
            write_cog(
                tmp_path / "in" / f"n{row}e{column}_elevation.tif",
                unique_values((256, 256), "int16", seed=2 * row + column),
                crs="EPSG:4326",
                transform=Affine(0.01, 0, x, 0, -0.01, y),
                nodata=-32768,
                blocksize=TILE * 2,
                overview_count=1,
            )
    manifest = cube.build(tmp_path / "in")
    require_equal(manifest, tmp_path)
    assert len(manifest.levels) > 1
    require_equal(manifest, tmp_path, level=1)


def test_files_behind_http(tmp_path: Path) -> None:
    write_cog(tmp_path / "in" / "a.tif", unique_values(SHAPE, "uint16"), nodata=0, **TILED)
    with ObjectStore(tmp_path / "in") as store:
        manifest = cube.build(f"{store.url}/a.tif", to=tmp_path / "a.cube")
        require_equal(manifest, tmp_path)


def test_planning_reads_no_tile_and_says_shape_and_dtype(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "a.tif", unique_values(SHAPE, "uint16"), nodata=0, **TILED)
    manifest = cube.build(path)
    with trace() as asked:
        references = plan_references(manifest)
    assert [record.href for record in asked.records if record.href.endswith(".tif")] == []
    image = manifest.image(0)
    assert references["band_1/1.2"] == (path.as_posix(), image.offsets[0, 1, 2], image.lengths[0, 1, 2])
    document = references["band_1/.zarray"]
    assert isinstance(document, bytes)
    assert json.loads(document)["filters"] == [
        {"id": "imagecodecs_delta", "axis": -1, "dist": 1, "shape": [TILE, TILE], "dtype": "<u2"}
    ]


def write_pair(folder: Path, second: dict[str, Any], shape: tuple[int, int] = (TILE * 2, TILE * 2)) -> Manifest:
    """Two files side by side, the second made with other options, as one cube."""
    for number, options in enumerate([TILED, TILED | second]):
        transform = Affine(10, 0, 500000 + number * shape[1] * 10, 0, -10, 5400000)
        values = unique_values(shape, "uint16", seed=number)
        write_cog(folder / f"e{number}_dn.tif", values, transform=transform, nodata=0, **options)
    return cube.build(folder, to=folder / "pair.cube")


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"compress": "LZW"}, "differs from .*e0_dn.tif in compression: 5 and 8"),
        ({"predictor": 1}, "differs from .* in predictor"),
        ({"blockxsize": 32}, "differs from .* in tile shape"),
        ({"ENDIANNESS": "BIG"}, "differs from .* in byte order"),
    ],
)
def test_files_that_differ_are_refused(tmp_path: Path, second: dict[str, Any], reason: str) -> None:
    with pytest.raises(ReferencesError, match=f"band 'band_1': .*e1_dn.tif {reason}"):
        plan_references(write_pair(tmp_path, second))


def test_a_file_that_ends_inside_a_tile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match=r"e0_dn\.tif ends inside a tile \(100 columns, tiles of 64\)"):
        plan_references(write_pair(tmp_path, {}, (TILE, 100)))


def test_a_file_that_starts_inside_a_tile_is_refused(tmp_path: Path) -> None:
    for number, x in enumerate([0, TILE + 8]):
        transform = Affine(10, 0, 500000 + x * 10, 0, -10, 5400000)
        values = unique_values((TILE, TILE), "uint16")
        write_cog(tmp_path / f"e{number}.tif", values, transform=transform, nodata=0, **TILED)
    with pytest.raises(ReferencesError, match=r"e1\.tif starts 72 columns into the cube, inside a tile of 64"):
        plan_references(cube.build(tmp_path, to=tmp_path / "a.cube"))


def test_sources_that_overlap_are_refused(tmp_path: Path) -> None:
    """A reference is to the tile of one file, and which pixels are whose is decided by their values."""
    for number, column in enumerate([0, TILE]):
        transform = Affine(10, 0, 500000 + column * 10, 0, -10, 5400000)
        values = unique_values((TILE, 2 * TILE), "uint16", seed=number)
        write_cog(tmp_path / f"e{number}.tif", values, transform=transform, nodata=0, **TILED)
    manifest = cube.build(tmp_path, to=tmp_path / "a.cube")
    assert cube.open_cube(manifest).sizes["x"] == 3 * TILE
    message = (
        r"^static references cannot describe band 'band_1': .*e1\.tif shares pixels with another source, and a "
        r"reference is to one of them; serve the cube instead \(`cube serve`\)"
    )
    with pytest.raises(ReferencesError, match=message):
        plan_references(manifest)
    with pytest.raises(ReferencesError, match=message):
        to_kerchunk(manifest, tmp_path / "refs.json")
    assert not (tmp_path / "refs.json").exists()


def test_dates_of_one_place_do_not_overlap_unless_they_become_one_step(tmp_path: Path) -> None:
    for number, time in enumerate(["20240101T100000", "20240101T100100"]):
        write_cog(tmp_path / "in" / f"a_{time}.tif", unique_values(SHAPE, "uint16", number), nodata=0, **TILED)
    manifest = cube.build(tmp_path / "in", pattern="a_{time:%Y%m%dT%H%M%S}.tif")
    require_equal(manifest, tmp_path)
    with pytest.raises(ReferencesError, match="shares pixels with another source"):
        plan_references(manifest.placed(Placing(groupby="solar_day")))


def test_a_cube_of_several_grids_is_refused(tmp_path: Path) -> None:
    for number, crs in enumerate(["EPSG:32633", "EPSG:32634"]):
        write_cog(tmp_path / f"e{number}.tif", unique_values(SHAPE, "uint16"), crs=crs, nodata=0, **TILED)
    manifest = cube.build(tmp_path, to=tmp_path / "a.cube")
    message = r"^static references cannot describe this cube: the sources of 'a' lie on 2 grids:\n  1 in EPSG:3263"
    with pytest.raises(ReferencesError, match=message):
        plan_references(manifest)
    for lattice in (0, 1):
        require_equal_to(plan_references(manifest.placed(Placing(lattice=lattice))), manifest, lattice)


def require_equal_to(references: dict[str, Any], manifest: Manifest, lattice: int) -> None:
    """Check that references are to the tiles of the only file on one of the grids."""
    ((number, href),) = [
        (i, href)
        for i, (href, grid) in enumerate(zip(manifest.column("href"), manifest.column("grid"), strict=True))
        if grid == lattice
    ]
    image = manifest.image(number)
    tiles = {key: value for key, value in references.items() if isinstance(value, tuple)}
    assert {key: value[1:] for key, value in tiles.items()} == {
        f"band_1/{j}.{i}": (image.offsets[0, j, i], image.lengths[0, j, i]) for j in range(3) for i in range(4)
    }
    assert {Path(value[0]).name for value in tiles.values()} == {Path(href).name}


def test_a_cube_on_a_grid_of_its_own_is_refused(tmp_path: Path) -> None:
    manifest = cube.build(write_cog(tmp_path / "a.tif", unique_values(SHAPE, "uint16"), nodata=0, **TILED))
    grid = cube.open_cube(manifest, resolution=20).cube.grid
    message = (
        r"^static references cannot describe this cube: 'a' is on a grid of its own \(EPSG:32633, pixels of 20 x -20"
    )
    with pytest.raises(ReferencesError, match=message):
        plan_references(manifest.placed(Placing(grid=grid, lattice=None)))


def test_bands_that_share_tiles_are_refused(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "rgb.tif", unique_values((3, *SHAPE), "uint8"), interleave="PIXEL", **TILED)
    with pytest.raises(ReferencesError, match=r"band 'band_1': .*rgb\.tif holds 3 bands pixel by pixel"):
        plan_references(cube.build(path))


def test_large_tiles_that_no_file_holds_are_refused(tmp_path: Path) -> None:
    values = unique_values((512, 1024), "float64")
    values[:, :512] = 0
    path = write_cog(tmp_path / "a.tif", values, driver="GTiff", compress="NONE", SPARSE_OK=True)
    with pytest.raises(ReferencesError, match="in no file, and its tiles are not compressed"):
        plan_references(cube.build(path))


def test_what_is_there_is_replaced_only_if_it_is_ours(tmp_path: Path) -> None:
    manifest = cube.build(write_cog(tmp_path / "a.tif", unique_values(SHAPE, "uint16"), **TILED))
    with pytest.raises(ReferencesError, match=r"ends with \.json or \.parq"):
        to_kerchunk(manifest, tmp_path / "refs.txt")
    other = tmp_path / "photos.parq"
    other.mkdir()
    (other / "photo.jpg").write_bytes(b"1")
    with pytest.raises(ReferencesError, match="holds no references"):
        to_kerchunk(manifest, other)
    assert (other / "photo.jpg").read_bytes() == b"1"
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ReferencesError, match="is a folder"):
        to_kerchunk(manifest, tmp_path / "folder.json")
    for _ in range(2):
        require_equal(manifest, tmp_path)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_others_need_nothing_of_ours(tmp_path: Path) -> None:
    values = unique_values(SHAPE, "uint16")
    manifest = cube.build(write_cog(tmp_path / "a.tif", values, nodata=0, **TILED))
    to_kerchunk(manifest, tmp_path / "refs.json")
    # xarray loads every installed engine, and so tries ours.
    code = (
        "import sys\n"
        "sys.modules['cube'] = sys.modules['server'] = None\n"
        "import numpy, xarray\n"
        f"found = xarray.open_dataset({str(tmp_path / 'refs.json')!r}, engine='kerchunk')['band_1'].values\n"
        f"numpy.save({str(tmp_path / 'found.npy')!r}, found)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), values.astype("float32"))


def test_icechunk_keeps_versions_and_sees_a_changed_file(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "in" / "a.tif", unique_values(SHAPE, "uint16"), nodata=0, **TILED)
    manifest = cube.build(path, to=tmp_path / "a.cube")
    for _ in range(2):
        to_icechunk(manifest, tmp_path / "a.icechunk")
    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "a.icechunk")))
    assert len(list(repository.ancestry(branch="main"))) == 3
    opened = cube.open_cube(tmp_path / "a.icechunk", allow=str(path.parent))
    os.utime(path, (now() + 60, now() + 60))
    with pytest.raises(Exception, match=r"changed|modified"):
        opened.band_1.load()


def test_icechunk_is_not_written_where_there_is_something_else(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "a.tif", unique_values(SHAPE, "uint16"), nodata=0, **TILED)
    manifest = cube.build(path, to=tmp_path / "a.cube")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ReferencesError, match="file"):
        to_icechunk(manifest, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# What one group cannot say.


@pytest.fixture
def mixed(tmp_path: Path) -> Manifest:
    """Two places that are no whole tiles apart; of the first, an older file of another codec, tile and scale."""
    files = [
        ("A", "20230101", {"compress": "LZW", "blockxsize": 32, "blockysize": 32}, 1.0, 0.0, 0),
        ("A", "20240101", {"compress": "DEFLATE"}, 0.5, -10.0, 0),
        ("A", "20240201", {"compress": "DEFLATE"}, 0.5, -10.0, 0),
        ("B", "20240101", {"compress": "DEFLATE"}, 0.5, -10.0, 170),
        ("B", "20240201", {"compress": "DEFLATE"}, 0.5, -10.0, 170),
    ]
    for number, (place, date, options, scale, offset, shift) in enumerate(files):
        transform = Affine(10, 0, 399960 + 10 * shift, 0, -10, 5400000)
        values = unique_values(SHAPE, "uint16", seed=number)
        path = tmp_path / "in" / f"{date}_{place}.tif"
        write_cog(path, values, transform=transform, nodata=0, scale=scale, offset=offset, **(TILED | options))
    return cube.build(tmp_path / "in", pattern="{time:%Y%m%d}_{tile}.tif", to=tmp_path / "a.cube")


def source_pixels(path: Path) -> tuple[np.ndarray, Affine]:
    with rasterio.open(path) as file:
        values = file.read(1).astype("f8")
        return np.where(values == 0, np.nan, values * file.scales[0] + file.offsets[0]), file.transform


@pytest.mark.parametrize("ending", ["json", "parq"])
def test_groups_hold_each_source_once(mixed: Manifest, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"refs.{ending}"
    with pytest.raises(ReferencesError):
        to_kerchunk(mixed, path)
    to_kerchunk(mixed, path, split=True)
    seen = set()
    for group in range(3):
        if ending == "json":
            found = xr.open_dataset(str(path), engine="kerchunk", group=str(group)).load()
        else:
            found = open_foreign(Foreign(url=str(path), kind="references", group=str(group))).load()
        for time in found.time.values:
            for place in "AB":
                source = tmp_path / "in" / f"{str(time)[:10].replace('-', '')}_{place}.tif"
                if not source.exists() or source_pixels(source)[1] != found.rio.transform():
                    continue
                values = found.band_1.sel(time=time).values
                if (source.name not in seen) and values.shape == SHAPE:
                    np.testing.assert_allclose(values, source_pixels(source)[0])
                    seen.add(source.name)
    assert seen == {path.name for path in (tmp_path / "in").iterdir()}


def test_one_group_is_enough_where_sources_are_alike(tmp_path: Path) -> None:
    for column in (0, 1):
        transform = Affine(10, 0, 399960 + 1280 * column, 0, -10, 5400000)
        values = unique_values((128, 128), "uint16", seed=column)
        write_cog(tmp_path / "in" / f"20240101_{column}.tif", values, transform=transform, nodata=0, **TILED)
    manifest = cube.build(tmp_path / "in", pattern="{time:%Y%m%d}_{tile}.tif", to=tmp_path / "a.cube")
    to_kerchunk(manifest, tmp_path / "refs.json", split=True)
    found = xr.open_dataset(str(tmp_path / "refs.json"), engine="kerchunk", group="0")
    np.testing.assert_array_equal(found.band_1.values, cube.open_cube(manifest).band_1.values)
    document = json.loads((tmp_path / "refs.json").read_text())
    assert {key.partition("/")[0] for key in document["refs"] if "/" in key} == {"0"}


def test_raw_numbers_come_with_their_scale_and_say_so(tmp_path: Path) -> None:
    for number, (date, scale, offset) in enumerate([("20230101", 0.0001, 0.0), ("20240101", 0.0001, -0.1)]):
        values = unique_values(SHAPE, "uint16", seed=number)
        write_cog(tmp_path / "in" / f"{date}_red.tif", values, nodata=0, scale=scale, offset=offset, **TILED)
        write_cog(tmp_path / "in" / f"{date}_nir.tif", values, nodata=0, scale=0.0001, **TILED)
    manifest = cube.build(tmp_path / "in", to=tmp_path / "a.cube")
    with pytest.raises(ReferencesError, match="stores other numbers"):
        to_kerchunk(manifest, tmp_path / "refs.json")
    to_kerchunk(manifest, tmp_path / "refs.json", raw=True)
    found, expected = xr.open_dataset(str(tmp_path / "refs.json"), engine="kerchunk").load(), cube.open_cube(manifest)
    assert "multiply by red_scale and add red_offset" in found.red.attrs["STORED_NUMBERS"]
    assert "STORED_NUMBERS" not in found.nir.attrs
    assert {"red_scale", "red_offset"} <= set(found.coords)
    np.testing.assert_allclose(found.red * found.red_scale + found.red_offset, expected.red, rtol=1e-6)
    np.testing.assert_array_equal(found.nir, expected.nir)
    with pytest.raises(ReferencesError, match="split or raw"):
        to_kerchunk(manifest, tmp_path / "refs.json", raw=True, split=True)


def test_raw_says_where_more_than_the_scale_differs(tmp_path: Path) -> None:
    for date, dtype in (("20230101", "uint16"), ("20240101", "uint8")):
        write_cog(tmp_path / "in" / f"{date}.tif", unique_values(SHAPE, dtype), nodata=0, **TILED)
    manifest = cube.build(tmp_path / "in", to=tmp_path / "a.cube")
    with pytest.raises(ReferencesError, match=r"stores uint|differs"):
        to_kerchunk(manifest, tmp_path / "refs.json", raw=True)
