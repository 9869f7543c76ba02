"""An event loop on a background thread, for adapters without one: streams, long polls and presence run there, on one hub.

The thread starts when it is first needed. It does not survive a fork, so a child process starts its own.
Source: os.register_at_fork.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakSet

from kvstore.core.errors import unavailable
from kvstore.runtime import Runtime

CLOSE_S = 8.0  # for which the end of the process waits for the thread; releasing holds takes 5 s at most

Result = TypeVar("Result")
Task = Callable[[Runtime], Coroutine[Any, Any, Result]]


class Background:
    """A Runtime on an event loop of its own, in which `open_runtime` is called. Threads can share it."""

    def __init__(self, open_runtime: Callable[[], Runtime]) -> None:
        self._open_runtime = open_runtime
        self._lock = threading.RLock()  # the collector of garbage may close a stream while this thread holds it
        self._thread: _LoopThread | None = None
        self._is_closed = False
        _all.add(self)

    def run(self, task: Task[Result]) -> Result:
        """Run the coroutine that `task` returns in the event loop; returns or raises what it does."""
        return self.start(task).result()

    def start(self, task: Task[Result]) -> "Future[Result]":
        """Start it and return at once; raises StoreUnavailable after close()."""
        with self._lock:
            if self._is_closed:
                raise unavailable("this server is stopping; try again")
            if self._thread is None:
                self._thread = _LoopThread(self._open_runtime)
                atexit.register(self.close)
            thread = self._thread
        return asyncio.run_coroutine_threadsafe(task(thread.runtime), thread.loop)

    def close(self) -> None:
        """End the streams, answer the long polls, release held documents, and stop the thread."""
        with self._lock:
            self._is_closed = True
            thread, self._thread = self._thread, None
        if thread:
            atexit.unregister(self.close)
            thread.stop()

    def forget(self) -> None:
        """Reset it in a child process: the thread belongs to the parent."""
        self._lock = threading.RLock()  # a thread of the parent may have held it
        if self._thread:
            _parents.append(self._thread)
            self._thread = None
            atexit.unregister(self.close)


class _LoopThread:
    """A running event loop and its Runtime."""

    def __init__(self, open_runtime: Callable[[], Runtime]) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, Runtime, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._serve, args=(open_runtime, started), name="kvstore", daemon=True)
        self._thread.start()
        try:
            self.loop, self.runtime, self._is_stopping = started.result()
        except Exception:
            self._thread.join()
            raise

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self._is_stopping.set)
        self._thread.join(CLOSE_S)

    def _serve(self, open_runtime: Callable[[], Runtime], started: "Future[Any]") -> None:
        async def serve() -> None:
            try:
                runtime, is_stopping = open_runtime(), asyncio.Event()
            except Exception as error:
                started.set_exception(error)
                return
            started.set_result((asyncio.get_running_loop(), runtime, is_stopping))
            await is_stopping.wait()
            await runtime.close()

        asyncio.run(serve())  # this cancels what is left in the loop


_all: "WeakSet[Background]" = WeakSet()
_parents: list[_LoopThread] = []  # in a child process, never freed: closing a loop would change the parent's epoll set


def _forget() -> None:
    for background in _all:
        background.forget()


os.register_at_fork(after_in_child=_forget)
