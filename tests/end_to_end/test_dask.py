"""Cubes on worker processes: where tasks run, what workers remember, and what becomes of a worker that dies."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster, get_task_stream, wait
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.engine.cluster import NO_DASHBOARD, connect
from cube.manifest.open import Manifest
from cube.testing import ObjectStore, write_cog

DATES, BANDS, SIZE, TILE = 4, ("nir", "red"), 512, 64
CHUNKS = {"y": TILE, "x": 2 * TILE}
BLOCKS = (SIZE // TILE) * (SIZE // (2 * TILE))
TRANSFORM = from_origin(500000, 5000000, 10, 10)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects")
    rng = np.random.default_rng(0)
    for day, band in itertools.product(range(DATES), BANDS):
        values = rng.integers(0, 4000, (SIZE, SIZE), "uint16")
        write_cog(folder / f"2024010{day + 1}_{band}.tif", values, transform=TRANSFORM, blocksize=TILE, nodata=0)
    return folder


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    return build(root, name="workers")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    """Two worker processes of a thread each."""
    with connect("local:2") as client:
        yield client


def ndvi(ds: xr.Dataset) -> xr.DataArray:
    return (ds.nir - ds.red) / (ds.nir + ds.red)


@pytest.fixture(scope="module")
def truth(manifest: Manifest) -> xr.DataArray:
    return ndvi(open_cube(manifest).load()).mean("time")


def test_all_tasks_of_a_block_run_on_one_worker(cluster: Client, manifest: Manifest, truth: xr.DataArray) -> None:
    wanted = ndvi(open_cube(manifest, chunks=CHUNKS)).mean("time")
    with get_task_stream(cluster) as stream:
        xr.testing.assert_allclose(wanted.compute(), truth)
    where = defaultdict(set)
    for task in stream.data:
        if isinstance(task["key"], tuple):  # one puts the blocks together
            where[task["key"][-2:]].add(task["worker"])
    assert len(where) == BLOCKS
    assert {len(workers) for workers in where.values()} == {1}
    assert len(set.union(*where.values())) == 2, "both workers had something to do"
    moved = cluster.run(lambda dask_worker: [list(log["keys"]) for log in dask_worker.transfer_incoming_log])
    keys = [str(key) for logs in moved.values() for log in logs for key in log]
    assert [key for key in keys if "cube" in key] == []


def test_nothing_of_a_store_or_a_secret_travels(
    cluster: Client, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "5ecret-of-s3", "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0LW9mLWF6"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    ds = open_cube(manifest, chunks=CHUNKS)
    ds.red[0, :9].compute()
    (optimised,) = dask.optimize(ndvi(ds).mean("time"))
    for sent in (ds, ds.red.data, optimised, dask.base.collections_to_expr([ds]).optimize()):
        data = pickle.dumps(sent)
        assert not [value for value in secrets.values() if value.encode() in data]
        assert b"obstore" not in data


def test_workers_keep_what_they_have_opened(cluster: Client, manifest: Manifest) -> None:
    def opened(url: str, version: str) -> tuple[int, int]:
        from cube.manifest.open import open_manifest

        return os.getpid(), id(open_manifest(url, version))

    ds = open_cube(manifest, chunks=CHUNKS)
    ds.red.max().compute()
    first = cluster.run(opened, manifest.url, manifest.version)
    ds.nir.max().compute()
    assert cluster.run(opened, manifest.url, manifest.version) == first
    assert len(set(first.values())) == 2


def wait_for_requests(store: ObjectStore, count: int) -> None:
    while store.counts().requests < count:
        time.sleep(0.01)


def test_a_worker_that_is_killed_changes_nothing(cluster: Client, root: Path, truth: xr.DataArray) -> None:
    with ObjectStore(root, latency_s=0.1) as store:
        names = [f"{store.url}/{path.name}" for path in sorted(root.glob("*.tif"))]
        wanted = ndvi(open_cube(build(names), chunks=CHUNKS)).mean("time")
        store.reset()
        workers = cluster.run(os.getpid)
        future = cluster.compute(wanted)
        wait_for_requests(store, 2 * DATES * len(BANDS) + 1)  # the first blocks are done, and others under way
        os.kill(next(iter(workers.values())), signal.SIGKILL)
        found = future.result()
        assert set(cluster.run(os.getpid).values()) != set(workers.values())
    xr.testing.assert_allclose(found, truth)


@pytest.mark.slow
def test_workers_that_start_again_know_the_cube_again(cluster: Client, manifest: Manifest, truth: xr.DataArray) -> None:
    wanted = ndvi(open_cube(manifest, chunks=CHUNKS)).mean("time")
    before = cluster.run(os.getpid)
    cluster.restart()
    assert not set(before.values()) & set(cluster.run(os.getpid).values())
    xr.testing.assert_allclose(wanted.compute(), truth)


def spilled_bytes(dask_worker: Any) -> int:
    """Return what a worker has written to its disk since it started."""
    return int(dask_worker.data.cumulative_metrics.get(("disk-write", "bytes"), 0))


def peak_bytes() -> int:
    """Return the most memory that this process has had, where Linux says so."""
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status")
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0]) if status.exists() else 0


@pytest.mark.slow
def test_what_is_spilled_comes_back_as_it_was(manifest: Manifest) -> None:
    settings = {"target": 0.01, "spill": False, "pause": False, "terminate": False}
    with (
        dask.config.set({f"distributed.worker.memory.{name}": value for name, value in settings.items()}),
        LocalCluster(n_workers=1, threads_per_worker=2, memory_limit="400MB", **NO_DASHBOARD) as local,
        Client(local) as client,
    ):
        ds = open_cube(manifest, chunks=CHUNKS).persist()
        wait(ds)
        (written,) = client.run(spilled_bytes).values()
        assert written > 0
        found = ndvi(ds).mean("time").compute()
    xr.testing.assert_allclose(found, ndvi(open_cube(manifest)).mean("time"))


@pytest.mark.parametrize(
    ("size", "dates", "limit", "tile"),
    [
        pytest.param(512, 21, "700MB", 128, id="small"),
        pytest.param(2048, 60, "1.5GB", 512, id="large", marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_a_median_over_time_needs_no_disk(tmp_path: Path, size: int, dates: int, limit: str, tile: int) -> None:
    rng = np.random.default_rng(0)
    for band, i in itertools.product(BANDS, range(3)):
        values = rng.integers(1, 4000, (size, size), "uint16")
        write_cog(tmp_path / f"{band}-{i}.first", values, nodata=0, transform=TRANSFORM, blocksize=tile)
        for day in range(i, dates, 3):
            date = str(np.datetime64("2020-01-01") + np.timedelta64(day, "D")).replace("-", "")
            (tmp_path / f"{date}_{band}.tif").hardlink_to(tmp_path / f"{band}-{i}.first")
    manifest = build(tmp_path)
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, memory_limit=limit, **NO_DASHBOARD) as local,
        Client(local) as client,
    ):
        ds = open_cube(manifest, chunks="auto")
        assert ds.chunksizes["time"] == (dates,)
        found = ndvi(ds).median("time").compute()
        ((written,), (peak,)) = (client.run(each).values() for each in (spilled_bytes, peak_bytes))
    assert written == 0
    assert peak < 0.7 * dask.utils.parse_bytes(limit), "from where on dask would spill"
    # All scenes are there as often, so that the median is that of the three.
    three = ndvi(open_cube(manifest).isel(time=slice(3), y=slice(64)).load())
    np.testing.assert_array_equal(found[:64], three.median("time"))
