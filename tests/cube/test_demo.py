"""The demo, whole, as a user runs it: installed, without a checkout; what it prints, and that its files stay open."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import intake
import numpy as np
import pytest
import rasterio
import xarray as xr

from cube.catalog import read_catalog
from cube.demo import run
from cube.errors import CubeError
from cube.testing import write_archive

SIZE = 256
EXTRAS = ("dask", "server", "catalog", "kerchunk")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def demo(install: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo that has ended, and what it printed."""
    environment, here = install(*EXTRAS), tmp_path_factory.mktemp("here")
    # Neither file is on the path of the command or of a process that it starts.
    for name in ("cube.py", "server.py"):
        (here / name).write_text("raise SystemExit('the file of the user was run')\n", encoding="utf-8")
    ran = environment.run(environment.program("cube"), "demo", "--size", str(SIZE), cwd=here)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return here / "demo", ran.stdout


def test_the_table_says_what_each_step_took(demo: tuple[Path, str]) -> None:
    folder, said = demo
    steps = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert all(set(step) == {"what", "requests", "bytes", "seconds"} for step in steps)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    assert rows[0] == ["step", "requests", "bytes", "seconds"]
    assert [row[0] for row in rows[1:]] == [step["what"] for step in steps]
    asked = {what: int(requests.replace(",", "")) for what, requests, _, _ in rows[1:]}
    for what, requests in (
        ("scan the headers", 41),  # the items, and the headers of 5 bands of 8 dates
        ("first picture", 3),
        ("open over HTTP", 0),
        ("on the manifest", 24),  # NDVI and its mask: 3 bands of 8 dates
    ):
        assert [count for step, count in asked.items() if what in step] == [requests]


def test_pictures_and_the_cog_are_there(demo: tuple[Path, str]) -> None:
    folder, said = demo
    for name in ("scene.png", "ndvi.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert str(Path(folder.name, name)) in said
    with rasterio.open(folder / "ndvi.tif") as file:
        assert (file.shape, file.dtypes) == ((SIZE, SIZE), ("float32",))
        truth = write_archive(folder / "archive", size=SIZE).truth_ndvi_composite()[1][0]
        np.testing.assert_array_max_ulp(np.nan_to_num(file.read(1), nan=-9), np.nan_to_num(truth, nan=-9), maxulp=4)


def test_the_catalogues_entries_open_and_are_equal(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    catalog = intake.open_catalog(str(folder / "catalog.yaml"))
    assert set(catalog) == {"s2", "s2-http", "s2-kerchunk", "s2-zarr"}
    own = catalog["s2"].to_dask()
    assert own.sizes == {"time": 8, "y": SIZE, "x": SIZE}
    for name in ("s2-kerchunk", "s2-zarr"):
        other = catalog[name].to_dask()
        assert other.nir.chunks is not None
        assert_same(own, other)
    for entry in read_catalog(folder / "catalog.yaml").values():
        assert entry.description
        assert entry.metadata["license"] == "CC0-1.0"


def assert_same(one: xr.Dataset, other: xr.Dataset) -> None:
    bands: list[Any] = sorted(one.data_vars)
    assert bands == sorted(set(other.data_vars) - {"spatial_ref"})
    for name in ("time", "y", "x"):
        np.testing.assert_array_equal(one[name].values, other[name].values)
    for band in bands:
        assert one[band].dtype == other[band].dtype
        np.testing.assert_array_equal(one[band].values, other[band].values)


def test_a_folder_with_another_demo_is_refused(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    before = (folder / "report.json").read_bytes()
    with pytest.raises(CubeError, match="choose another folder or delete that one"):
        run(folder, size=SIZE * 2, keep=False)
    assert (folder / "report.json").read_bytes() == before
