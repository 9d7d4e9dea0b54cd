"""A cluster of a dask-gateway: a real server, which starts schedulers and workers as processes of this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin

from cube import open_cube
from cube.archive.build import build
from cube.engine.cluster import connect, iterate_blocks
from cube.errors import CubeError
from cube.testing.archive import unique_values, write_cog

ROOT = Path(__file__).parents[3]
INSTALL = "pip install 'dask-gateway-server[local]' dask-gateway"
# Its defaults, dask-scheduler and dask-worker, are no longer there.
CONFIGURATION = """
import sys
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.address = "127.0.0.1:{private}"
c.Proxy.address = "127.0.0.1:{public}"
c.ClusterConfig.scheduler_cmd = [sys.executable, "-m", "dask", "scheduler"]
c.ClusterConfig.worker_cmd = [sys.executable, "-m", "dask", "worker"]
from dask_gateway_server.options import Integer, Options
c.Backend.cluster_options = Options(Integer("worker_cores", 1, min=1, max=2))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def gateway(require_program: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a gateway."""
    program = require_program("dask-gateway-server", INSTALL)
    folder = tmp_path_factory.mktemp("gateway")
    public = free_port()
    (folder / "config.py").write_text(CONFIGURATION.format(public=public, private=free_port()), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / "log").open("wb") as log:
        command = [sys.executable, str(program), "-f", "config.py"]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{public}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/api/v1/options", timeout=5).close()
            except urllib.error.HTTPError as error:
                if error.code != 404:  # it wants to know who asks, so that it is there; before, only its proxy is
                    break
                time.sleep(0.1)
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            else:
                break
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_a_cube_is_computed_by_a_gateway(gateway: str, tmp_path: Path) -> None:
    values = unique_values((100, 120), "uint16")
    path = write_cog(tmp_path / "a.tif", values, blocksize=64, transform=from_origin(500000, 5000000, 10, 10))
    array = open_cube(build(path), chunks={"y": 64, "x": 64}, mask_and_scale=False).band_1.data
    found = np.zeros_like(values)
    with connect(f"gateway:{gateway}?workers=1&worker_cores=2") as client:
        assert list(client.nthreads().values()) == [2]
        for place, block in iterate_blocks(array, client):
            found[place] = block
    np.testing.assert_array_equal(found, values)


def test_what_a_gateway_refuses_is_told(gateway: str) -> None:
    with (
        pytest.raises(CubeError, match=rf"^dask-gateway at {gateway} gave no cluster \(.*workers_coars.*\); write"),
        connect(f"gateway:{gateway}?workers_coars=2"),
    ):
        pass
    with pytest.raises(CubeError, match=r"'many' is no number of workers"), connect(f"gateway:{gateway}?workers=many"):
        pass


@pytest.mark.usefixtures("gateway")
def test_where_no_gateway_is_its_address_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(CubeError, match=rf"^dask-gateway at {url} gave no cluster"), connect(f"gateway:{url}"):
        pass
    with pytest.raises(CubeError, match=r"^dask-gateway at the address in its configuration"), connect("gateway"):
        pass
