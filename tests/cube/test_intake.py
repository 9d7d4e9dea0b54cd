"""The intake driver: found by its name in a catalogue, and configured by the entry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import intake
import numpy as np
import pytest
import rasterio

from cube.archive.build import build
from cube.catalog import add_entry, manifest_entry
from cube.intake import CubeSource
from cube.testing.objectstore import ObjectStore


def test_a_source_reads_nothing_until_asked() -> None:
    source = CubeSource("/no/such/one.cube", chunks={"x": 10}, bands=["red"], metadata={"license": "CC0-1.0"})
    assert source.urlpath == "/no/such/one.cube"
    assert source.options == {"chunks": {"x": 10}, "bands": ["red"]}
    assert source.metadata == {"license": "CC0-1.0"}
    assert (source.name, source.container) == ("cube", "xarray")
    other = source(bands=["nir"])
    assert other.options == {"chunks": {"x": 10}, "bands": ["nir"]}
    assert "driver: cube.intake.CubeSource" in source.yaml()


@pytest.mark.parametrize("over_http", [False, True])
def test_intake_finds_the_driver_and_the_folder(tmp_path: Path, over_http: bool) -> None:
    path = tmp_path / "catalog.yaml"
    add_entry(path, manifest_entry("one", "one.cube", catalog="catalog.yaml", license="CC0-1.0"))
    add_entry(path, manifest_entry("beside", tmp_path / "beside.cube", catalog=path, description="beside"))
    with ObjectStore(tmp_path) as store:
        place = store.url if over_http else tmp_path.as_posix()
        source = intake.open_catalog(f"{place}/catalog.yaml")["beside"]
    assert isinstance(source, CubeSource)
    assert source.urlpath.replace("//beside", "/beside") == f"{place}/beside.cube"  # intake's local folder ends in /
    assert source.description == "beside"
    assert source.options == {}


def test_without_intake_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['intake'] = None; import cube.intake"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "pip install 'cogcube[catalog]'" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("over_http", [False, True])
def test_a_cube_opens_lazily_by_dask_and_wholly_by_read(tmp_path: Path, over_http: bool) -> None:
    values = np.arange(1, 128 * 128 + 1, dtype="uint16").reshape(128, 128)
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 1, "width": 128, "height": 128, "tiled": True}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    with rasterio.open(tmp_path / "red.tif", "w", **profile, **place, blockxsize=64, blockysize=64) as file:
        file.write(values, 1)
    manifest = build(tmp_path / "red.tif", to=tmp_path / "one.cube")
    add_entry(tmp_path / "catalog.yaml", manifest_entry("one", manifest.url, catalog=tmp_path / "catalog.yaml"))
    with ObjectStore(tmp_path) as store:
        source = intake.open_catalog(f"{store.url if over_http else tmp_path.as_posix()}/catalog.yaml")["one"]
        lazy, whole = source.to_dask(), source.read()
        (name,) = lazy.data_vars
        assert lazy[name].chunks is not None
        assert whole[name].chunks is None
        np.testing.assert_array_equal(lazy[name].to_numpy(), values)
        np.testing.assert_array_equal(whole[name].to_numpy(), values)
        assert source(chunks={"y": 64, "x": 128}).to_dask()[name].chunks == ((64, 64), (128,))
        assert source.discover()["metadata"]["dims"] == {"y": 128, "x": 128}
