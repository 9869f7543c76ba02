"""The client for Python code beside the service, blocking: `connect()`. It talks to Redis, not HTTP (DESIGN 64).

A blocking store executes commands in the thread that asks. Streams, and takes that wait, run in an event loop on a thread of
its own, which starts when it is first needed. Threads can share a client, and a forked process can go on using it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack, overload

from kvstore.commands.base import Outcome
from kvstore.commands.batch import Answers
from kvstore.commands.subscriptions import Follow, LongPoll
from kvstore.core.errors import Problem
from kvstore.core.settings import Settings, read_settings
from kvstore.runtime import Runtime, locate, open_runtime
from kvstore.serving.background import Background
from kvstore.serving.buffered_stream import BufferedStream
from kvstore.stores.blocking import open_blocking_store
from kvstore.verbs import requests
from kvstore.verbs.following import Following
from kvstore.verbs.shapes import (
    AppendOptions,
    Asking,
    DeleteOptions,
    Document,
    Duration,
    Event,
    FollowOptions,
    LeasedDocument,
    ListOptions,
    Page,
    QueryOptions,
    TakeOptions,
    Where,
    WriteOptions,
)

Result = TypeVar("Result")


def connect(url: str | None = None) -> "Client":
    """Return a client on the Redis at `url`; without one, on that of REDIS_URL, otherwise on the embedded server.

    The other settings are those of the environment. Nothing is connected yet. Raises InvalidSetting or StartFailed.
    """
    return Client(settings_of(url))


def settings_of(url: str | None) -> Settings:
    """Return the settings of the environment, with the Redis at `url` if there is one; raises InvalidSetting or StartFailed.

    Nobody judges or counts a client that could as well use Redis itself.
    """
    settings = read_settings(os.environ if url is None else {**os.environ, "REDIS_URL": url})
    return locate(replace(settings, is_open=True, rules="", rate=None, client_streams=0, log="none"))


class Client:
    """Documents by path. Every method raises Problem; docs/python.md explains them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = open_blocking_store(settings.redis_url, verify_tls=settings.verify_tls, replicas=settings.replicas)
        self._background = Background(lambda: open_runtime(settings))
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, and end what this client follows."""
        self._is_closed = True
        self._background.close()
        self._store.close()

    def get(self, path: str) -> Document | None:
        """Return a document, None where nothing is stored."""
        return self._result(requests.get(path))

    def put(self, path: str, value: Any, **options: Unpack[WriteOptions]) -> Document:
        """Replace a document, or create it; return it as it is stored."""
        return self._result(requests.put(path, value, **options))

    def patch(self, path: str, changes: Any = requests.NOTHING, **options: Unpack[WriteOptions]) -> Document:
        """Change a document by a merge patch, by a JSON Patch (a list), or without either its TTL alone; return all of it."""
        return self._result(requests.patch(path, changes, **options))

    def post(self, container: str, value: Any, **options: Unpack[AppendOptions]) -> Document:
        """Append a document to a container; return it, with its path."""
        return self._result(requests.post(container, value, **options))

    def delete(self, path: str, **options: Unpack[DeleteOptions]) -> int:
        """Delete a document, and return whether there was one; with `recursive` all below a container, and return how many."""
        return self._result(requests.delete(path, **options))

    def update(
        self, path: str, function: Callable[[Any], Any], *, default: Any = None, ttl: Duration | None = None
    ) -> Document:
        """Write what `function(value)` returns, if nobody else has written meanwhile; otherwise read and call it again."""
        steps = requests.update(path, function, default=default, ttl=ttl)
        answer: object = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as stop:
                written: Document = stop.value
                return written
            if isinstance(step, float):
                time.sleep(step)
            else:
                answer = self._result(step)

    def batch(
        self, parts: Sequence[Mapping[str, Any]], *, atomic: bool = True, idempotency_key: str | None = None
    ) -> Sequence[Any]:
        """Execute several verbs in one request, all or none of them; return the result of each.

        With `atomic` false each is executed on its own, and the result of one that was refused is its Problem.
        """
        return self._result(requests.batch(parts, atomic=atomic, idempotency_key=idempotency_key))

    @overload
    def list(self, container: str, *, count: Literal[True], **options: Unpack[ListOptions]) -> int: ...
    @overload
    def list(self, container: str, *, count: Literal[False] = False, **options: Unpack[ListOptions]) -> Iterator[Document]: ...

    def list(self, container: str, *, count: bool = False, **options: Unpack[ListOptions]) -> Iterator[Document] | int:
        """Return an iterator over the documents in a container, read a page at a time; with `count` their number."""
        pages = self._pages(requests.pages(container, with_values=not count, **options))
        return sum(map(len, pages)) if count else chain.from_iterable(pages)

    @overload
    def query(
        self, container: str, where: Where | None = None, *, count: Literal[True], **options: Unpack[QueryOptions]
    ) -> int: ...
    @overload
    def query(
        self, container: str, where: Where | None = None, *, count: Literal[False] = False, **options: Unpack[QueryOptions]
    ) -> Iterator[Document]: ...

    def query(
        self, container: str, where: Where | None = None, *, count: bool = False, **options: Unpack[QueryOptions]
    ) -> Iterator[Document] | int:
        """Return an iterator over the documents that meet conditions such as `{"born": {"lt": 1850}}`; or their number."""
        if count:
            return self._result(requests.count(container, where, **options))
        return chain.from_iterable(self._pages(requests.question(container, where, **options)))

    def _pages(self, asking: Asking[Page] | None) -> Iterator[Sequence[Document]]:
        while asking:
            page = self._result(asking)
            yield page.documents
            asking = page.following

    def follow(self, path: str, where: Where | None = None, **options: Unpack[FollowOptions]) -> Iterator[Event]:
        """Yield the snapshot of a document or a container, then every change, once and in order; for ever.

        It resumes by itself. With `last_event_id` it begins with the changes after that event, without a snapshot.
        With conditions, as query() takes them, it has the documents that match, and `leave` for one that does not any more.
        """
        following = Following(path, where, **options)
        while not self._is_closed:
            try:
                for block in self._blocks(following.command(self._settings)):
                    yield from following.events(block)
            except Problem as problem:
                following.check(problem)
            time.sleep(following.pause_s())

    def _blocks(self, follow: Follow) -> Iterator[bytes]:
        async def begin(runtime: Runtime) -> BufferedStream:
            return BufferedStream(runtime.hub, follow, lambda: None)

        stream = self._background.run(begin)
        try:
            while (block := self._background.run(lambda _: stream.take())) is not None:
                yield block
        finally:
            with suppress(Problem):  # the event loop was closed, and all streams with it
                self._background.start(lambda _: stream.close())

    def take(self, container: str, lease: Duration = "30s", **options: Unpack[TakeOptions]) -> "Jobs":
        """Take jobs from a container; with `wait` as soon as there is one. An empty list says that there is none."""
        jobs = self._result(requests.take(container, lease, **options))
        return [Job(job.path, job.value, job.etag, job.ttl, job.attempts, job.lease, self) for job in jobs]

    def done(self, job: LeasedDocument) -> bool:
        """Delete a job that is done, and return whether it was there; raises PreconditionFailed if its lease has ended."""
        return self._result(requests.done(job))

    def renew(self, job: LeasedDocument, lease: Duration) -> None:
        """Lease a job for so long from now on; raises PreconditionFailed or NotFound."""
        self._result(requests.renew(job, lease))

    def release(self, job: LeasedDocument, delay: Duration | None = None, reason: str | None = None) -> None:
        """Give a job back, to be taken again after `delay`; raises PreconditionFailed or NotFound."""
        self._result(requests.release(job, delay, reason))

    def _result(self, asking: Asking[Result]) -> Result:
        command = asking.command(self._settings)
        if isinstance(command, Answers):
            return asking.result(command)
        return asking.result(self._wait(command) if isinstance(command, LongPoll) else self._store.execute(command))

    def _wait(self, waiting: LongPoll[Outcome]) -> Outcome:
        future = self._background.start(lambda runtime: runtime.outcome(waiting))
        try:
            return future.result()
        except BaseException:  # Ctrl-C: what was taken meanwhile is given back
            future.cancel()
            raise


@dataclass(frozen=True, slots=True)
class Job(LeasedDocument):
    """A job that was taken."""

    _client: Client = field(repr=False, compare=False)

    def done(self) -> bool:
        """Delete the job; as Client.done()."""
        return self._client.done(self)

    def renew(self, lease: Duration) -> None:
        """Lease the job for so long from now on; as Client.renew()."""
        self._client.renew(self, lease)

    def release(self, delay: Duration | None = None, reason: str | None = None) -> None:
        """Give the job back; as Client.release()."""
        self._client.release(self, delay, reason)


Jobs: TypeAlias = list[Job]  # in the class Client `list` is a method
