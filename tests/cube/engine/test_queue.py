"""Jobs of a queue, by dask-jobqueue: here its own job script, run as a process of this machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.engine.cluster import connect, iterate_blocks
from cube.errors import CubeError
from cube.testing.archive import unique_values, write_cog

ROOT = Path(__file__).parents[3]
JOB = {"cores": 1, "processes": 1, "memory": "1GB", "python": sys.executable, "interface": "lo"}

# The pipes of its jobs stay open, as does a cluster that it could not make.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def _job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a user writes in jobqueue.yaml."""
    import dask_jobqueue  # noqa: F401 - registers its defaults

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with dask.config.set({f"jobqueue.local.{name.replace('_', '-')}": value for name, value in JOB.items()}):
        yield


@pytest.mark.usefixtures("_job")
def test_a_cube_is_computed_by_jobs(tmp_path: Path) -> None:
    values = unique_values((100, 120), "uint16")
    path = write_cog(tmp_path / "a.tif", values, blocksize=64, transform=from_origin(500000, 5000000, 10, 10))
    array = open_cube(build(path), chunks={"y": 64, "x": 64}, mask_and_scale=False).band_1.data
    found = np.zeros_like(values)
    with connect("jobs:1") as client:
        for place, block in iterate_blocks(array, client):
            found[place] = block
    np.testing.assert_array_equal(found, values)
    gc.collect()


def test_a_queue_without_its_configuration_is_told() -> None:
    with (
        pytest.raises(CubeError, match=r"(?s)^dask-jobqueue cannot make a job \(.*\); .* jobqueue\.slurm of"),
        connect("slurm"),
    ):
        pass
    gc.collect()
