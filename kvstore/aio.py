"""The client for Python code beside the service, with `await`: `connect()`. As `client.py`, in the event loop of its caller."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack, overload

from kvstore.client import settings_of
from kvstore.commands.batch import Answers
from kvstore.core.errors import Problem
from kvstore.core.settings import Settings
from kvstore.runtime import Runtime, open_runtime
from kvstore.serving.buffered_stream import BufferedStream
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
    """Return a client on the same Redis as kvstore.connect() does. It belongs to the event loop that uses it first."""
    return Client(settings_of(url))


class Client:
    """Documents by path. Every method raises Problem; docs/python.md explains them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runtime: Runtime = open_runtime(settings)
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, and end what this client follows."""
        self._is_closed = True
        await self._runtime.close()

    async def get(self, path: str) -> Document | None:
        """Return a document, None where nothing is stored."""
        return await self._result(requests.get(path))

    async def put(self, path: str, value: Any, **options: Unpack[WriteOptions]) -> Document:
        """Replace a document, or create it; return it as it is stored."""
        return await self._result(requests.put(path, value, **options))

    async def patch(self, path: str, changes: Any = requests.NOTHING, **options: Unpack[WriteOptions]) -> Document:
        """Change a document by a merge patch, by a JSON Patch (a list), or without either its TTL alone; return all of it."""
        return await self._result(requests.patch(path, changes, **options))

    async def post(self, container: str, value: Any, **options: Unpack[AppendOptions]) -> Document:
        """Append a document to a container; return it, with its path."""
        return await self._result(requests.post(container, value, **options))

    async def delete(self, path: str, **options: Unpack[DeleteOptions]) -> int:
        """Delete a document, and return whether there was one; with `recursive` all below a container, and return how many."""
        return await self._result(requests.delete(path, **options))

    async def update(
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
                await asyncio.sleep(step)
            else:
                answer = await self._result(step)

    async def batch(
        self, parts: Sequence[Mapping[str, Any]], *, atomic: bool = True, idempotency_key: str | None = None
    ) -> Sequence[Any]:
        """Execute several verbs in one request, all or none of them; return the result of each.

        With `atomic` false each is executed on its own, and the result of one that was refused is its Problem.
        """
        return await self._result(requests.batch(parts, atomic=atomic, idempotency_key=idempotency_key))

    @overload
    def list(self, container: str, *, count: Literal[True], **options: Unpack[ListOptions]) -> Awaitable[int]: ...
    @overload
    def list(
        self, container: str, *, count: Literal[False] = False, **options: Unpack[ListOptions]
    ) -> AsyncIterator[Document]: ...

    def list(
        self, container: str, *, count: bool = False, **options: Unpack[ListOptions]
    ) -> AsyncIterator[Document] | Awaitable[int]:
        """Return an iterator over the documents in a container, read a page at a time; with `count` their number."""
        pages = self._pages(requests.pages(container, with_values=not count, **options))
        return _count(pages) if count else _each(pages)

    @overload
    def query(
        self, container: str, where: Where | None = None, *, count: Literal[True], **options: Unpack[QueryOptions]
    ) -> Awaitable[int]: ...
    @overload
    def query(
        self, container: str, where: Where | None = None, *, count: Literal[False] = False, **options: Unpack[QueryOptions]
    ) -> AsyncIterator[Document]: ...

    def query(
        self, container: str, where: Where | None = None, *, count: bool = False, **options: Unpack[QueryOptions]
    ) -> AsyncIterator[Document] | Awaitable[int]:
        """Return an iterator over the documents that meet conditions such as `{"born": {"lt": 1850}}`; or their number."""
        if count:
            return self._result(requests.count(container, where, **options))
        return _each(self._pages(requests.question(container, where, **options)))

    async def _pages(self, asking: Asking[Page] | None) -> AsyncIterator[Sequence[Document]]:
        while asking:
            page = await self._result(asking)
            yield page.documents
            asking = page.following

    async def follow(self, path: str, where: Where | None = None, **options: Unpack[FollowOptions]) -> AsyncIterator[Event]:
        """Yield the snapshot of a document or a container, then every change, once and in order; for ever.

        It resumes by itself. With `last_event_id` it begins with the changes after that event, without a snapshot.
        With conditions, as query() takes them, it has the documents that match, and `leave` for one that does not any more.
        """
        following = Following(path, where, **options)
        while not self._is_closed:
            stream = BufferedStream(self._runtime.hub, following.command(self._settings), lambda: None)
            try:
                while (block := await stream.take()) is not None:
                    for event in following.events(block):
                        yield event
            except Problem as problem:
                following.check(problem)
            finally:
                await stream.close()
            await asyncio.sleep(following.pause_s())

    async def take(self, container: str, lease: Duration = "30s", **options: Unpack[TakeOptions]) -> "Jobs":
        """Take jobs from a container; with `wait` as soon as there is one. An empty list says that there is none."""
        jobs = await self._result(requests.take(container, lease, **options))
        return [Job(job.path, job.value, job.etag, job.ttl, job.attempts, job.lease, self) for job in jobs]

    async def done(self, job: LeasedDocument) -> bool:
        """Delete a job that is done, and return whether it was there; raises PreconditionFailed if its lease has ended."""
        return await self._result(requests.done(job))

    async def renew(self, job: LeasedDocument, lease: Duration) -> None:
        """Lease a job for so long from now on; raises PreconditionFailed or NotFound."""
        await self._result(requests.renew(job, lease))

    async def release(self, job: LeasedDocument, delay: Duration | None = None, reason: str | None = None) -> None:
        """Give a job back, to be taken again after `delay`; raises PreconditionFailed or NotFound."""
        await self._result(requests.release(job, delay, reason))

    async def _result(self, asking: Asking[Result]) -> Result:
        command = asking.command(self._settings)
        return asking.result(command if isinstance(command, Answers) else await self._runtime.outcome(command))


async def _count(pages: AsyncIterator[Sequence[Document]]) -> int:
    return sum([len(documents) async for documents in pages])


async def _each(pages: AsyncIterator[Sequence[Document]]) -> AsyncIterator[Document]:
    async for documents in pages:
        for document in documents:
            yield document


@dataclass(frozen=True, slots=True)
class Job(LeasedDocument):
    """A job that was taken."""

    _client: Client = field(repr=False, compare=False)

    async def done(self) -> bool:
        """Delete the job; as Client.done()."""
        return await self._client.done(self)

    async def renew(self, lease: Duration) -> None:
        """Lease the job for so long from now on; as Client.renew()."""
        await self._client.renew(self, lease)

    async def release(self, delay: Duration | None = None, reason: str | None = None) -> None:
        """Give the job back; as Client.release()."""
        await self._client.release(self, delay, reason)


Jobs: TypeAlias = list[Job]  # in the class Client `list` is a method
