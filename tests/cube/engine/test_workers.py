"""What there is to compute with, by which blocks are planned."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from distributed import Client, LocalCluster

from cube.engine.cluster import NO_DASHBOARD
from cube.engine.workers import Workers, find_workers
from cube.settings import get_settings

GB = 10**9


@pytest.fixture
def _settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBE_DECODE_THREADS", "4")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.mark.usefixtures("_settings")
def test_without_a_cluster_it_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    own = get_settings().memory_bytes
    assert find_workers() == Workers(threads=4, thread_bytes=own // 4)
    monkeypatch.setenv("CUBE_MEMORY_BYTES", str(8 * GB))
    get_settings.cache_clear()
    assert find_workers() == Workers(threads=4, thread_bytes=2 * GB)


@pytest.mark.usefixtures("_settings")
def test_with_a_cluster_it_is_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"processes": False, "threads_per_worker": 3, **NO_DASHBOARD}
    with LocalCluster(n_workers=2, memory_limit="1.5GB", **options) as cluster, Client(cluster):
        assert find_workers() == Workers(threads=6, thread_bytes=GB // 2)
        monkeypatch.setenv("CUBE_MEMORY_BYTES", str(6 * GB))
        get_settings.cache_clear()
        assert find_workers().thread_bytes == 2 * GB, "what is set counts"
    assert find_workers().threads == 4
    with LocalCluster(n_workers=0, **options) as cluster, Client(cluster):
        assert find_workers().threads == 4, "until there is a worker"
    monkeypatch.delenv("CUBE_MEMORY_BYTES")
    get_settings.cache_clear()
    with LocalCluster(n_workers=1, memory_limit=None, **options) as cluster, Client(cluster):
        assert find_workers().thread_bytes == get_settings().memory_bytes // 3, "without a limit, the machine's"


def test_distributed_is_not_imported_for_it() -> None:
    code = (
        "import sys; from cube.engine.workers import find_workers; find_workers(); print('distributed' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
