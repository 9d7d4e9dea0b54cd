"""The one event loop of a process on which all network I/O runs, and the pool that decodes.

One loop means one budget of requests and bytes for zarr, dask threads, notebooks and a server alike: asyncio's
limiters bind to the loop they are used on.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cube.errors import CubeError
from cube.settings import get_settings


class _Runtime:
    """The loop's thread and the decode pool; made on first use, never at import."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.pool = ThreadPoolExecutor(get_settings().decode_threads, thread_name_prefix="cube-decode")
        self.state: dict[str, Any] = {}
        self.closers: list[Callable[[], Awaitable[object]]] = []
        self._thread = threading.Thread(target=self._run, name="cube-io", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def close(self) -> None:
        """Cancel what is under way and end the loop in order.

        obstore's own threads call back into Python when a request ends; one that does so while the interpreter goes
        down aborts the process, so the loop sees every cancellation through first.
        """
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            asyncio.run_coroutine_threadsafe(self._drain(), self.loop).result(timeout=5)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=5)
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def _drain(self) -> None:
        tasks = [task for task in asyncio.all_tasks(self.loop) if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*[close() for close in self.closers], return_exceptions=True)
        # The callbacks of requests that just ended are still on their way from the clients' threads.
        await asyncio.sleep(0.05)


_lock = threading.Lock()
_runtime: _Runtime | None = None
_orphan = False


def _get() -> _Runtime:
    global _runtime  # noqa: PLW0603 - the one mutable of the module
    if _orphan:
        raise CubeError(
            "this process was forked from one that had already read with cube, and reading threads do not outlive a "
            "fork; start it by multiprocessing's 'spawn' or 'forkserver', or fork before the first read"
        )
    runtime = _runtime
    if runtime is None:
        with _lock:
            runtime = _runtime
            if runtime is None:
                runtime = _runtime = _Runtime()
    return runtime


def _get_for(coroutine: Coroutine[Any, Any, Any]) -> _Runtime:
    try:
        return _get()
    except CubeError:
        coroutine.close()
        raise


def _forget() -> None:
    """In a forked child neither the loop's thread exists nor obstore's, which nothing starts again: it would hang."""
    global _runtime, _lock, _orphan  # noqa: PLW0603 - what a fork leaves behind
    _orphan = _orphan or _runtime is not None
    _runtime, _lock = None, threading.Lock()


def _close() -> None:
    if _runtime is not None:
        _runtime.close()


atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def run[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the I/O loop and return its result; blocks, so never call it from that loop."""
    runtime = _get_for(coroutine)
    if threading.current_thread() is runtime._thread:  # noqa: SLF001
        coroutine.close()
        raise RuntimeError("cube.io.loop.run() was called on the I/O loop itself, which would wait for itself for ever")
    future = asyncio.run_coroutine_threadsafe(coroutine, runtime.loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()  # a KeyboardInterrupt here must not leave the work going
        raise


async def bridge[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Await, from any event loop, a coroutine that runs on the I/O loop; cancellation goes through."""
    runtime = _get_for(coroutine)
    if asyncio.get_running_loop() is runtime.loop:
        return await coroutine
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, runtime.loop))


def decode_pool() -> ThreadPoolExecutor:
    """Return the process's pool of decode threads."""
    return _get().pool


def loop_state[T](name: str, factory: Callable[[], T], close: Callable[[T], Awaitable[object]] | None = None) -> T:
    """Return an object that belongs to this process's I/O loop (a limiter, a client), made by `factory` on first use.

    Args:
        name: Of the object.
        factory: Makes it.
        close: Closes it, on the loop, when the process ends.
    """
    runtime = _get()
    if name not in runtime.state:
        made = runtime.state[name] = factory()
        if close is not None:
            runtime.closers.append(functools.partial(close, made))
    found: T = runtime.state[name]
    return found
