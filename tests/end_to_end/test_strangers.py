"""Clients that have nothing of ours: what they read equals what the library reads."""

from __future__ import annotations

import importlib.metadata
import json

import numpy as np
import pytest

import cube
from cube.catalog import add_entry, manifest_entry
from cube.references import to_kerchunk
from cube.testing import write_cog
from server.app import create_app
from server.run import serving

PRINT = """
import json, sys
import xarray as xr
ds = xr.open_dataset({target!r}, **{options!r})
assert "cube" not in sys.modules
print(json.dumps({{
    "values": {{name: [float(v) for v in ds[name].values.ravel()] for name in ("nir", "clm")}},
    "dtypes": {{name: str(ds[name].dtype) for name in ("nir", "clm")}},
    "x": ds.x.values.tolist(), "y": ds.y.values.tolist(), "time": [str(t) for t in ds.time.values],
}}))
"""


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three dates of a scaled band with nodata and a band without, edges that no tile fills."""
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(1)
    for day in (1, 2, 3):
        nir = rng.integers(0, 3000, (150, 130), "uint16")
        nir[:20, :30] = 0
        write_cog(folder / f"nir_2024010{day}.tif", nir, nodata=0, scale=0.0001, offset=-0.1, blocksize=128)
        write_cog(folder / f"clm_2024010{day}.tif", rng.integers(0, 2, (150, 130), "uint8"), blocksize=128)
    return cube.build(folder, name="s2", to=folder / "s2.cube")


@pytest.fixture(scope="module")
def stranger(uv, empty_environment):
    """An environment with xarray and what reads Zarr and references over HTTP, at the tested versions."""
    environment = empty_environment()
    names = ("xarray", "zarr", "fsspec", "aiohttp", "requests", "kerchunk", "imagecodecs-numcodecs", "numpy")
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    uv("pip", "install", "--python", environment.program("python"), *pinned)
    return environment


def read_as(stranger, target, options, folder):
    result = stranger.run(stranger.program("python"), "-c", PRINT.format(target=target, options=options), cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def assert_equal(found, manifest):
    ds = cube.open_cube(manifest)
    for name in ("nir", "clm"):
        np.testing.assert_array_equal(np.array(found["values"][name], "float64"), ds[name].values.ravel())
        assert found["dtypes"][name] == str(ds[name].dtype)
    assert found["x"] == ds.x.values.tolist()
    assert found["y"] == ds.y.values.tolist()
    assert found["time"] == [str(time) for time in ds.time.values]
    assert np.isnan(found["values"]["nir"][0])


def test_kerchunk_references(stranger, manifest, tmp_path):
    to_kerchunk(manifest, tmp_path / "s2.json")
    assert_equal(read_as(stranger, str(tmp_path / "s2.json"), {"engine": "kerchunk"}, tmp_path), manifest)


@pytest.mark.parametrize("options", [{}, {"engine": "zarr", "zarr_format": 3}], ids=["by URL alone", "as Zarr 3"])
def test_zarr_over_http(stranger, manifest, tmp_path, options):
    add_entry(tmp_path / "catalog.yaml", manifest_entry("s2", manifest.url))
    with serving(create_app(tmp_path / "catalog.yaml")) as url:
        assert_equal(read_as(stranger, f"{url}/datasets/s2.zarr", options, tmp_path), manifest)


def test_zarr_2_over_http(stranger, manifest, tmp_path):
    add_entry(tmp_path / "catalog.yaml", manifest_entry("s2", manifest.url))
    with serving(create_app(tmp_path / "catalog.yaml")) as url:
        assert_equal(read_as(stranger, f"{url}/datasets/s2/v2.zarr", {"zarr_format": 2}, tmp_path), manifest)
