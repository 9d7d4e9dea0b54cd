"""Where Dask runs: this process, processes of a local cluster, or a scheduler that may not be there."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import dask.array as da
import numpy as np
import pytest

from cube.engine.cluster import connect, iterate_blocks
from cube.errors import CubeError, MissingExtraError, ReadError
from cube.settings import get_settings


@pytest.fixture(scope="module")
def local() -> Iterator[Any]:
    with connect("local") as client:
        yield client


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBE_CONNECT_TIMEOUT_S", "0.5")
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def add_process(block: np.ndarray) -> np.ndarray:
    """Return a block whose numbers say which process made it."""
    return np.full_like(block, os.getpid())


def fail_at_seven(block: np.ndarray) -> np.ndarray:
    if (block == 7).any():
        raise ReadError("scene.tif", "is gone")
    return block


def gather(array: da.Array, client: Any) -> np.ndarray:
    """Put an array together from its blocks."""
    whole = np.full(array.shape, -1, array.dtype)
    for place, values in iterate_blocks(array, client):
        assert (whole[place] == -1).all()  # no block comes twice
        whole[place] = values
    return whole


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("chunks", [(-1, -1), (3, 4), ((1, 5, 1), (2, 7))])
def test_blocks_make_the_whole(local: Any, distributed: bool, chunks: Any) -> None:
    values = np.arange(63).reshape(7, 9)
    np.testing.assert_array_equal(gather(da.from_array(values, chunks), local if distributed else None), values)


def test_more_blocks_than_are_under_way_at_once_all_come(local: Any) -> None:
    values = np.arange(40).reshape(40, 1)
    np.testing.assert_array_equal(gather(da.from_array(values, (1, 1)), local), values)


def test_without_a_cluster_this_process_does_the_work() -> None:
    with connect(None) as client:
        assert client is None
    assert set(gather(da.zeros((4, 4), int, chunks=2).map_blocks(add_process), None).flat) == {os.getpid()}


def test_a_local_cluster_has_a_process_a_core(local: Any) -> None:
    made = set(gather(da.zeros((40, 1), int, chunks=1).map_blocks(add_process), local).flat)
    assert os.getpid() not in made
    assert set(local.nthreads().values()) == {1}
    assert len(local.nthreads()) == os.cpu_count()


@pytest.mark.parametrize("distributed", [False, True])
def test_an_error_of_a_block_arrives_as_it_was_raised(local: Any, distributed: bool) -> None:
    array = da.from_array(np.arange(16), 2).map_blocks(fail_at_seven)
    with pytest.raises(ReadError, match=r"^scene\.tif: is gone$") as caught:
        gather(array, local if distributed else None)
    assert caught.value.href == "scene.tif"
    np.testing.assert_array_equal(gather(da.arange(4, chunks=2), local), range(4))  # the cluster still works


def test_a_scheduler_is_found_by_its_address(local: Any) -> None:
    with connect(local.scheduler.address) as client:
        assert client is not local
        assert len(client.nthreads()) == len(local.nthreads())
        np.testing.assert_array_equal(gather(da.arange(6, chunks=2), client), range(6))
    assert local.status == "running"  # what was not started here is not ended here


@pytest.mark.usefixtures("_impatient")
def test_where_nothing_listens_the_address_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so that nobody takes it, and not listening
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(CubeError, match=rf"^no dask scheduler answers at {address} \(.+\); start one"),
            connect(address),
        ):
            pass


@pytest.mark.usefixtures("_impatient")
def test_what_listens_and_says_nothing_is_no_scheduler() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(CubeError, match=rf"^no dask scheduler answers at {address} \(timed out\)"),
            connect(address),
        ):
            pass


@pytest.mark.parametrize("cluster", ["many", "", "127.0.0.1:8786", "slurmy", "gateways"])
def test_a_text_that_is_no_cluster_is_refused_with_all_forms(cluster: str) -> None:
    with (
        pytest.raises(CubeError, match=rf"^cluster '{cluster}' is none of: local\[:WORKERS\], .* gateway.* slurm"),
        connect(cluster),
    ):
        pass


@pytest.mark.parametrize("cluster", ["local:0", "local:many", "local:-1", "local:2.5"])
def test_a_number_of_workers_that_is_none_is_refused(cluster: str) -> None:
    with pytest.raises(CubeError, match=r"is no number of workers; the forms are: local"), connect(cluster):
        pass


def test_a_local_cluster_may_be_given_its_number_of_workers() -> None:
    with connect("local:1") as client:
        assert len(client.nthreads()) == 1
        np.testing.assert_array_equal(gather(da.arange(4, chunks=2), client), range(4))


@pytest.mark.parametrize(
    ("cluster", "module"),
    [("gateway:http://127.0.0.1:1", "dask_gateway"), ("slurm", "dask_jobqueue"), ("local", "distributed")],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    cluster: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    what, extra = ("a cluster", "dask") if module == "distributed" else (module.replace("_", "-"), "clusters")
    with pytest.raises(MissingExtraError, match=rf"{what} needs .*pip install 'cogcube\[{extra}\]'"), connect(cluster):
        pass


def test_blocks_are_computed_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks, each of which goes on when the other has begun: one after another would wait for ever."""
    monkeypatch.setenv("CUBE_DECODE_THREADS", "2")
    get_settings.cache_clear()
    both = threading.Barrier(2, timeout=60)

    def meet(block: np.ndarray) -> np.ndarray:
        both.wait()
        return block

    array = da.arange(4, chunks=2).map_blocks(meet, meta=np.empty(0, int))
    np.testing.assert_array_equal(gather(array, None), range(4))
    get_settings.cache_clear()


def test_what_is_not_taken_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBE_DECODE_THREADS", "1")
    get_settings.cache_clear()
    begun: list[int] = []

    def begin(block: np.ndarray) -> np.ndarray:
        begun.append(int(block[0]))
        return block

    blocks = iterate_blocks(da.arange(100, chunks=1).map_blocks(begin, meta=np.empty(0, int)), None)
    next(blocks)
    blocks.close()
    assert len(begun) < 5
    get_settings.cache_clear()


@pytest.mark.parametrize("address", ["http://127.0.0.1:8786", "tcp://127.0.0.1", "tcp://127.0.0.1:many"])
def test_an_address_that_is_none_is_refused_with_the_reason(address: str) -> None:
    with (
        pytest.raises(CubeError, match=rf"^no dask scheduler answers at {address} \(.+\); start one"),
        connect(address),
    ):
        pass
