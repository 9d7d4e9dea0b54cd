"""`ds.cube`: the cube behind a dataset, from any part of it, also after pickling."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine

from cube.archive.build import build
from cube.dataset import open_cube
from cube.errors import ManifestError, SelectionError
from cube.explain import explain
from cube.io.trace import trace
from cube.manifest.open import Manifest
from cube.selection import select
from cube.spec import CubeSpec
from cube.testing import Archive, write_archive, write_cog
from cube.testing.archive import unique_values

DATES = ("2024-04-09", "2024-04-24", "2024-05-09")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive"), size=256, tile=128, dates=DATES)


@pytest.fixture(scope="module")
def manifest(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return build(archive.items, name="s2", to=tmp_path_factory.mktemp("built") / "s2.cube")


@pytest.fixture
def ds(manifest: Manifest) -> xr.Dataset:
    return open_cube(manifest)


def test_the_cube_is_found_again(ds: xr.Dataset, manifest: Manifest) -> None:
    assert ds.cube.manifest is manifest
    assert ds.cube.left_out == []


def test_sources_are_those_of_the_bands_and_dates(ds: xr.Dataset, archive: Archive) -> None:
    table = ds.cube.sources
    assert len(table) == 15
    assert set(table["band"]) == {"red", "green", "blue", "nir", "scl"}
    assert set(table["item"]) == {f"S2A_33UVP_{date.replace('-', '')}_0_L2A" for date in DATES}
    part = ds[["red", "nir"]].sel(time=slice("2024-04-20", None)).cube.sources
    assert len(part) == 4
    assert set(part["href"]) == {archive.path(date, band).as_posix() for date in DATES[1:] for band in ("red", "nir")}
    one = ds[["scl"]].isel(time=0).cube.sources
    (row,) = one.to_dict("records")
    assert (row["band"], row["sample"], row["nodata"], row["scale"], row["offset"]) == ("scl", 0, 0, 1.0, 0.0)
    assert (row["path"], row["reason"], row["decision"], row["dtype"]) == ("fast", None, None, "uint8")
    assert str(row["time"]) == "2024-04-09 10:10:31"
    assert len(ds[["red"]].mean("time", keep_attrs=True).cube.sources) == 3


def test_aliases_and_capitals_mean_their_bands(manifest: Manifest) -> None:
    assert set(open_cube(manifest, ["B04", "SCL"]).cube.sources["band"]) == {"red", "scl"}


def test_variables_of_the_users_own_are_passed_over(ds: xr.Dataset) -> None:
    with_index = ds[["red", "nir"]].assign(ndvi=lambda d: d.nir - d.red)
    assert set(with_index.cube.sources["band"]) == {"red", "nir"}
    with pytest.raises(SelectionError, match="no variable of this dataset is a band of 's2'"):
        _ = with_index[["ndvi"]].cube.sources


def test_items_of_a_date(ds: xr.Dataset) -> None:
    second = "S2A_33UVP_20240424_0_L2A"
    assert ds.cube.items("2024-04-24") == [second]
    assert ds.cube.items(ds.time.values[1]) == [second]
    assert ds.cube.items(ds.time[1]) == [second]
    assert ds.cube.items("2024-04") == ["S2A_33UVP_20240409_0_L2A", second]
    assert len(ds.cube.items()) == 3
    with pytest.raises(SelectionError, match="'s2' has no date then"):
        ds.cube.items("2023")


def test_layers_without_time(tmp_path: Path) -> None:
    write_cog(tmp_path / "dem.tif", np.ones((64, 64), "float32"), descriptions=["elevation"])
    ds = open_cube(build(tmp_path / "dem.tif", to=tmp_path / "dem.cube"))
    (row,) = ds.cube.sources.to_dict("records")
    assert (row["time"], row["item"]) == (None, "dem")
    assert ds.cube.items() == ["dem"]
    with pytest.raises(SelectionError, match="'dem' has no time"):
        ds.cube.items("2024")
    assert ds.cube.explain().requests == 1


@pytest.mark.parametrize("chunks", [None, "auto", {"time": 1, "y": 100}], ids=str)
@pytest.mark.parametrize(
    "chosen",
    [{}, {"bands": ["nir", "red"], "time": "2024-04"}, {"bbox": (13.64, 48.73, 13.66, 48.74), "level": 1}],
    ids=str,
)
def test_explain_is_of_the_dataset(manifest: Manifest, chosen: dict, chunks) -> None:
    ds = open_cube(manifest, chunks=chunks, **chosen)
    found, dtypes = ds.cube.explain(), {str(name): each.dtype for name, each in ds.items()}
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=chosen.get("level", 0))
    selection = select(manifest, spec, **{key: value for key, value in chosen.items() if key != "level"})
    if chunks is None:
        assert found == explain(selection, dtypes=dtypes)
    else:
        from cube.engine.blocks import plan_blocks

        assert found == explain(selection, plan_blocks(selection, chunks), dtypes=dtypes)


def test_explain_of_a_window(ds: xr.Dataset) -> None:
    part = ds[["red"]].isel(time=[0, 2], y=slice(0, 10), x=slice(130, 131))
    found = part.cube.explain()
    assert (found.tiles, len(found.sources), found.blocks) == (2, 2, 1)
    with trace() as asked:
        part.load()
    assert (asked.requests, asked.bytes) == (found.requests, found.bytes)


def test_explain_of_a_rotated_grid(tmp_path: Path) -> None:
    where = Affine(10, 3, 399960, 3, -10, 5400000)
    options = {"transform": where, "driver": "GTiff", "blockxsize": 64, "blockysize": 64}
    write_cog(tmp_path / "a.tif", unique_values((256, 256), "uint16"), **options)
    ds = open_cube(build(tmp_path / "a.tif", to=tmp_path / "a.cube"))
    assert ds.cube.explain().tiles == 16
    assert ds.isel(y=slice(60, 70), x=slice(0, 5)).cube.explain().tiles == 2


def test_what_lies_elsewhere_is_refused(ds: xr.Dataset) -> None:
    with pytest.raises(SelectionError, match="lies outside of level 0 of 's2'"):
        ds.assign_coords(x=ds.x + 1e6).cube.explain()
    with pytest.raises(SelectionError, match="no coordinates x and y"):
        ds.mean("x", keep_attrs=True).cube.explain()


def test_nothing_here_reads_a_pixel(ds: xr.Dataset) -> None:
    with trace() as asked:
        _ = ds.cube.sources
        ds.cube.items()
        ds.cube.explain()
    assert asked.requests == 0


def test_a_dataset_without_a_cube(ds: xr.Dataset) -> None:
    for each in (xr.Dataset({"red": ("x", [1.0])}), ds.drop_encoding()):
        with pytest.raises(SelectionError, match=r"not say which cube it is of .*that cube.open_cube gave"):
            _ = each.cube.sources
    elsewhere = ds.copy()
    elsewhere.encoding = {"cube": CubeSpec(manifest="/nowhere/a.cube", version="0")}
    with pytest.raises(ManifestError, match="holds no manifest"):
        _ = elsewhere.cube.manifest


def test_it_survives_pickling_copies_and_other_processes(ds: xr.Dataset, tmp_path: Path) -> None:
    assert len(ds.cube.sources) == 15  # the accessor is kept by the dataset from here on
    again = pickle.loads(pickle.dumps(ds))
    assert len(again.cube.sources) == 15
    assert len(ds.copy().cube.sources) == 15
    (tmp_path / "ds.pickle").write_bytes(pickle.dumps(ds))
    code = f"import pickle; print(len(pickle.load(open({str(tmp_path / 'ds.pickle')!r}, 'rb')).cube.sources))"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("15", "")


def test_decisions_and_reasons_are_there(tmp_path: Path) -> None:
    values = unique_values((64, 64), "uint16") % 4096
    write_cog(tmp_path / "odd.tif", values, driver="GTiff", compress="NONE", NBITS=12, blockxsize=64, blockysize=64)
    name = "LC08_L2SP_192026_20240409_20240416_02_T1_SR_B4.tif"
    write_cog(tmp_path / "landsat" / name, values, blocksize=128)
    (row,) = open_cube(build(tmp_path / "odd.tif", to=tmp_path / "odd.cube")).cube.sources.to_dict("records")
    assert row["path"] == "gdal"
    assert "12" in row["reason"]
    (row,) = open_cube(build(tmp_path / "landsat", to=tmp_path / "l.cube")).cube.sources.to_dict("records")
    assert row["decision"].startswith("landsat-c2-l2: scale 2.75e-05, offset -0.2, nodata 0 (its file gives none)")
    assert (row["scale"], row["offset"], row["nodata"]) == (0.0000275, -0.2, 0)


# Cubes on a grid or at steps of their own.


@pytest.fixture(scope="module")
def twins(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The first two scenes, both of one time, and the third."""
    items = json.loads(archive.items.read_text(encoding="utf-8"))["features"]
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = str(archive.root / asset["href"])
    items[1]["properties"]["datetime"] = items[0]["properties"]["datetime"]
    items[1]["properties"].pop("s2:mgrs_tile")  # or it would take the place of the first
    return build(items, name="twins", to=tmp_path_factory.mktemp("twins") / "twins.cube")


def test_the_cube_is_found_again_on_another_grid(manifest: Manifest) -> None:
    ds = open_cube(manifest, ["red", "nir"], crs="EPSG:3857", resolution=40, groupby="solar_day")
    part = ds.isel(time=[1], y=slice(3, 20), x=slice(5, 30))
    for each in (ds, pickle.loads(pickle.dumps(ds))):
        assert each.cube.grid == ds.cube.grid
        assert each.cube.manifest.grid == ds.cube.grid
        assert len(each.cube.sources) == 6
    assert set(part.cube.sources["item"]) == {"S2A_33UVP_20240424_0_L2A"}
    assert part.cube.items() == ["S2A_33UVP_20240424_0_L2A"]
    assert 0 < part.cube.explain().bytes < ds.cube.explain().bytes
    np.testing.assert_array_equal(part.cube.index("ndvi"), ds.cube.index("ndvi")[1:2, 3:20, 5:30])


def test_an_index_on_another_grid_is_that_of_the_numbers_there(manifest: Manifest) -> None:
    ds = open_cube(manifest, crs="EPSG:3857", resolution=25)
    expected = (ds.nir - ds.red) / (ds.nir + ds.red)
    np.testing.assert_allclose(ds.cube.index("ndvi"), expected, rtol=1e-5, atol=1e-6)
    clear = ds.cube.index("ndvi", mask="scl", composite="median")
    assert clear.dims == ("y", "x")
    assert np.isfinite(clear).any()


def test_items_of_one_time_stay_apart(twins: Manifest) -> None:
    ds = open_cube(twins, ["red", "nir"], groupby="id")
    assert (twins.steps, ds.sizes["time"]) == (2, 3)
    assert ds.time.values[0] == ds.time.values[1]
    ids = [f"S2A_33UVP_{date.replace('-', '')}_0_L2A" for date in DATES]
    assert ds.cube.items() == ids
    assert len(ds.cube.sources) == 6
    assert len(ds.cube.explain().sources) == 6
    expected = ((ds.nir - ds.red) / (ds.nir + ds.red)).values
    assert not np.array_equal(expected[0], expected[1], equal_nan=True)
    np.testing.assert_allclose(ds.cube.index("ndvi"), expected, rtol=1e-5, atol=1e-6)
    last = ds.isel(time=[2])
    assert last.cube.items() == ids[2:]
    np.testing.assert_allclose(last.cube.index("ndvi"), expected[2:], rtol=1e-5, atol=1e-6)


def test_one_of_several_items_of_one_time_cannot_be_told(twins: Manifest) -> None:
    ds = open_cube(twins, ["red", "nir"], groupby="id").isel(time=[1])
    for ask in (lambda: ds.cube.index("ndvi"), ds.cube.explain, ds.cube.items):
        with pytest.raises(SelectionError, match=r"^2 items of 'twins' are of 2024-04-09T10:10:31.*which 1 of them"):
            ask()
