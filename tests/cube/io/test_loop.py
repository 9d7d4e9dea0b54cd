from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from cube.archive.build import build
from cube.io import loop
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog


async def where():
    return threading.current_thread().name


def test_run_returns_what_the_coroutine_does_and_raises_what_it_raises():
    assert loop.run(where()) == "cube-io"

    async def fail():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        loop.run(fail())


def test_all_threads_share_one_loop():
    async def which():
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop())

    with ThreadPoolExecutor(32) as pool:
        found = set(pool.map(lambda _: loop.run(which()), range(200)))
    assert len(found) == 1


def test_waiting_threads_wait_at_the_same_time():
    """All of them are inside at once, or none would ever be let go."""
    all_inside, inside = asyncio.Event(), []

    async def meet():
        inside.append(1)
        if len(inside) == 16:
            all_inside.set()
        await all_inside.wait()
        return True

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lambda _: loop.run(meet()), range(16)))


def test_run_works_inside_another_running_loop():
    async def notebook():
        return loop.run(where())

    assert asyncio.run(notebook()) == "cube-io"


def test_run_on_the_loop_itself_is_refused_rather_than_waited_for():
    async def nested():
        loop.run(where())

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that was never awaited would warn
        with pytest.raises(RuntimeError, match="called on the I/O loop itself"):
            loop.run(nested())


def test_bridge_awaits_from_any_loop_and_from_its_own():
    async def main():
        return await asyncio.gather(loop.bridge(where()), loop.bridge(where()))

    assert asyncio.run(main()) == ["cube-io", "cube-io"]
    assert loop.run(main()) == ["cube-io", "cube-io"]


@pytest.fixture
def endless():
    """A coroutine function that waits for ever, and the events "it has begun" and "it was cancelled"."""
    began, cancelled = threading.Event(), threading.Event()

    async def wait():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    return wait, began, cancelled


def test_cancelling_the_waiter_cancels_the_work(endless):
    wait, began, cancelled = endless

    async def main():
        task = asyncio.create_task(loop.bridge(wait()))
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert cancelled.wait(30)


def test_a_timeout_cancels_the_work(endless):
    wait, began, cancelled = endless

    async def main():
        async with asyncio.timeout(0.05):
            await loop.bridge(wait())

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert cancelled.wait(30) or not began.is_set()


@pytest.fixture
def _interruptible():
    """Let an interrupt come through where the tests run in the background, as whose processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to a thread")
@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_ends_the_work_and_leaves_the_loop_usable(endless):
    wait, began, cancelled = endless

    def interrupt():
        began.wait(30)
        time.sleep(0.3)  # until the main thread waits for the result
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        loop.run(wait())
    assert cancelled.wait(30)
    assert loop.run(where()) == "cube-io"


def test_state_belongs_to_the_loop_and_is_made_once():
    made = []

    async def get():
        return loop.loop_state("test-state", lambda: made.append(1) or object())

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(lambda _: loop.run(get()), range(50))))) == 1
    assert made == [1]


def test_the_decode_pool_is_one():
    assert loop.decode_pool() is loop.decode_pool()
    assert loop.decode_pool().submit(lambda: threading.current_thread().name).result().startswith("cube-decode")


# Whole processes: an orderly end, whatever is under way.

SCRIPT = """
import sys, threading, time
from cube.grid import Window
from cube.reader import read_block
from cube.spec import CubeSpec
from cube.io import loop

spec = CubeSpec(manifest={url!r}, version={version!r})
def read(): return read_block(spec, ["band_1"], (0,), Window(top=0, bottom=200, left=0, right=300))["band_1"]
"""
ENDS = {
    "read": "assert read().shape == (1, 200, 300)",
    "leave work behind": """
def forever():
    try:
        while True: read()
    except Exception:
        pass  # cancelled, or too late for the interpreter's own pool
for _ in range(6): threading.Thread(target=forever, daemon=True).start()
read(); time.sleep({pause})
""",
    "exit with a code": "read(); raise SystemExit(7)",
    "an executor's threads": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(4)
for _ in range(8): pool.submit(read)
""",
    "never read": "",
    "interrupt": """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which is not there in the background
read(); signal.raise_signal(signal.SIGINT)
""",
}
CODES = {"exit with a code": {7}, "interrupt": {130, -signal.SIGINT, 1}}


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """The beginning of a script that reads a cube over HTTP, where an answer takes a while."""
    folder = tmp_path_factory.mktemp("remote")
    write_cog(folder / "a.tif", unique_values((200, 300), "uint16"), driver="GTiff", blockxsize=64, blockysize=64)
    with ObjectStore(folder, latency_s=0.02) as store:
        manifest = build(f"{store.url}/a.tif", to=folder / "a.cube")
        yield SCRIPT.format(url=manifest.url, version=manifest.version)


FORK = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of a fork beside threads
{before}
child = os.fork()
if child == 0:
    try:
        {inside}
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        os._exit(3)
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
FORKS = {
    "fork before a read": FORK.format(before="", inside="assert read().shape == (1, 200, 300)"),
    "fork after a read": FORK.format(before="read()", inside="read()"),
    "fork and read no more": FORK.format(before="read()", inside="pass"),
}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def run_script(text):
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def ended(remote):
    """(exit code, stdout, stderr) of every script; some at a time, since most of their time is Python's own start."""
    scripts = ENDS | (FORKS if hasattr(os, "fork") else {})
    with ThreadPoolExecutor(3) as pool:
        results = pool.map(run_script, [remote + text.replace("{pause}", "0.03") for text in scripts.values()])
        return dict(zip(scripts, results, strict=True))


@pytest.mark.parametrize("end", ENDS)
def test_a_process_ends_in_order(ended, end):
    code, _, stderr = ended[end]
    assert code in CODES.get(end, {0}), stderr
    assert "Fatal Python error" not in stderr
    assert not stderr or end == "interrupt", stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("end", ["read", "leave work behind"])
def test_twenty_processes_end_in_order(remote, end):
    texts = [remote + ENDS[end].replace("{pause}", str(0.013 * i)) for i in range(20)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run_script, texts)) == [(0, "", "")] * 20


@needs_fork
@pytest.mark.parametrize("end", ["fork before a read", "fork and read no more"])
def test_a_child_reads_and_ends_in_order(ended, end):
    assert ended[end] == (0, "", "")


@needs_fork
def test_a_child_of_a_process_that_has_read_is_told_rather_than_hung(ended):
    code, stdout, stderr = ended["fork after a read"]
    assert code == 3, stderr
    assert stdout.startswith("CubeError this process was forked from one that had already read with cube")
    assert "'spawn' or 'forkserver'" in stdout
    assert not stderr
