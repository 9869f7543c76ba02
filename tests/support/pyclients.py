"""The clients for Python, blocking and with `await`, behind one face. KINDS is the table of both."""

import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from inspect import isasyncgen
from typing import Any

from kvstore import aio, client
from tests.support.loops import Loop
from tests.support.stores import wait_until

LIMIT_S = 30


class Awaited:
    """The client with `await`, on an event loop of its own, for tests that block."""

    def __init__(self, url: str) -> None:
        self._loop = Loop("asyncio")
        self._open: set[AsyncIterator[Any]] = set()
        self.client = aio.connect(url)

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            called = getattr(self.client, verb)(*arguments, **options)
            if isasyncgen(called):
                return self._each(called)
            found = self.run(called)
            return [_Job(job, self.run) for job in found] if verb == "take" else found

        return call

    def run(self, coroutine: Any) -> Any:
        """What comes of a coroutine in the loop of the client."""
        return self._loop.run(coroutine, LIMIT_S)

    def _each(self, iterator: AsyncIterator[Any]) -> Iterator[Any]:
        self._open.add(iterator)
        try:
            while True:
                with suppress(StopAsyncIteration):
                    yield self._loop.run(_next(iterator), LIMIT_S)
                    continue
                return
        finally:
            self._loop.run(iterator.aclose())  # type: ignore[attr-defined]
            self._open.discard(iterator)

    def close(self) -> None:
        self._loop.run(self.client.close())
        wait_until(lambda: not self._open, LIMIT_S)  # threads that follow are at their end
        self._loop.close()


async def _next(iterator: AsyncIterator[Any]) -> Any:
    return await anext(iterator)


class _Job:
    """A job whose methods block."""

    def __init__(self, job: aio.Job, run: Callable[[Any], Any]) -> None:
        self.__dict__.update({name: getattr(job, name) for name in ("path", "value", "etag", "ttl", "attempts", "lease")})
        self.done = lambda: run(job.done())
        self.renew = lambda *arguments: run(job.renew(*arguments))
        self.release = lambda *arguments: run(job.release(*arguments))


KINDS: dict[str, Callable[[str], Any]] = {"blocking": client.connect, "async": Awaited}


class Follower:
    """Reads what a client follows in a thread; `events` gets each, and last the exception that ended it, or None."""

    def __init__(self, db: Any, path: str, **options: Any) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self._stream = db.follow(path, **options)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._stream:
                self.events.put(event)
        except Exception as error:
            self.events.put(error)
        else:
            self.events.put(None)

    def next(self) -> Any:
        """The next event."""
        return self.events.get(timeout=LIMIT_S)
