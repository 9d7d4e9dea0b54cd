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

READ = """
import json, sys
import xarray as xr
found = {}
for name, (target, options) in json.loads(sys.argv[1]).items():
    ds = xr.open_dataset(target, **options)
    assert "cube" not in sys.modules
    found[name] = {
        "values": {name: [float(v) for v in ds[name].values.ravel()] for name in ("nir", "clm")},
        "dtypes": {name: str(ds[name].dtype) for name in ("nir", "clm")},
        "x": ds.x.values.tolist(), "y": ds.y.values.tolist(), "time": [str(t) for t in ds.time.values],
    }
print(json.dumps(found))
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


@pytest.fixture(scope="module")
def found(stranger, manifest, tmp_path_factory):
    """What the stranger finds in one process, by what it opens."""
    folder = tmp_path_factory.mktemp("catalog")
    to_kerchunk(manifest, folder / "s2.json")
    add_entry(folder / "catalog.yaml", manifest_entry("s2", manifest.url))
    with serving(create_app(folder / "catalog.yaml")) as url:
        zarr = f"{url}/datasets/s2.zarr"
        targets = {
            "references": (str(folder / "s2.json"), {"engine": "kerchunk"}),
            "a URL alone": (zarr, {}),
            "Zarr 3": (zarr, {"engine": "zarr", "zarr_format": 3}),
            "Zarr 2": (f"{url}/datasets/s2/v2.zarr", {"zarr_format": 2}),
        }
        result = stranger.run(stranger.program("python"), "-c", READ, json.dumps(targets), cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.mark.parametrize("what", ["references", "a URL alone", "Zarr 3", "Zarr 2"])
def test_a_stranger_reads_what_the_library_reads(found, manifest, what):
    ds = cube.open_cube(manifest)
    for name in ("nir", "clm"):
        np.testing.assert_array_equal(np.array(found[what]["values"][name], "float64"), ds[name].values.ravel())
        assert found[what]["dtypes"][name] == str(ds[name].dtype)
    assert found[what]["x"] == ds.x.values.tolist()
    assert found[what]["y"] == ds.y.values.tolist()
    assert found[what]["time"] == [str(time) for time in ds.time.values]
    assert np.isnan(found[what]["values"]["nir"][0])
