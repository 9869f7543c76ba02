"""Long polls: requests that wait for a change to a document or a container (RFC 7240, `Prefer: wait`), or for a job.

Each is executed again when something has changed. Takers of one container wait in a queue, so that a change wakes one of them:
it takes the jobs that are there, and wakes the next.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from kvstore.commands.base import Command, Found, Idempotent, Missing, Outcome
from kvstore.commands.containers import Unchanged
from kvstore.commands.documents import ConditionalGet
from kvstore.commands.guarded import Guarded, unwrapped
from kvstore.commands.jobs import ChangeLease, Taken
from kvstore.commands.subscriptions import LongPoll
from kvstore.core.paths import Path
from kvstore.core.preconditions import read_status
from kvstore.live.hub import Hub
from kvstore.live.log_reader import RETRY_S
from kvstore.live.subscribers import Subscriber
from kvstore.live.takers import Registration
from kvstore.stores.pipelined import AsyncStore
from kvstore.stores.query_queue import is_query


def is_settled(command: Command[object], outcome: object) -> bool:
    """Return whether a request that may wait is answered with this outcome, rather than wait for another."""
    asked = unwrapped(command)
    if isinstance(outcome, Taken):
        return bool(outcome.jobs)
    if isinstance(outcome, Found) and isinstance(asked, ConditionalGet):
        return read_status(asked.preconditions, outcome.tag) != 304
    if isinstance(outcome, Missing):  # a client with the document's tag waits for its end too
        return isinstance(asked, ConditionalGet) and bool(asked.preconditions.none_match)
    return not isinstance(outcome, Unchanged)


class LongPolls:
    """The long polls of one event loop."""

    def __init__(self, store: AsyncStore, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self._queues: set[WaitQueue] = set()
        self._taking: set[asyncio.Task[object]] = set()
        self._is_closed = False

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return sum(queue.length for queue in self._queues)

    @property
    def subscriptions(self) -> int:
        """How many subscribers of the hub they share."""
        return sum(queue.is_subscribed for queue in self._queues)

    async def outcome(self, wait: LongPoll[Outcome]) -> Outcome:
        """Return the first outcome that is_settled, or after `wait_s` the last one; raises Problem."""
        if wait.charge:
            await self._store.execute(wait.charge)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.wait_s
        outcome = await self._execute(wait.command)
        if is_settled(wait.command, outcome) or self._is_closed:
            return outcome
        queue = self._queue(wait.path, is_for_jobs=isinstance(outcome, Taken))
        queue.length += 1
        registration = None
        if isinstance(outcome, Taken) and wait.taker is not None:
            registration = Registration(self._store, self._track, wait.path, wait.taker, wait.wait_s)
        try:
            while True:
                await queue.listen(self._hub)
                changes = queue.changes
                outcome = await self._execute(wait.command)
                if is_settled(wait.command, outcome) or self._is_closed:
                    return outcome
                if isinstance(outcome, Taken):
                    queue.wake_in(outcome.ready_in_ms)
                if changes == queue.changes:
                    await queue.turn(deadline)
                if self._is_closed or loop.time() >= deadline:
                    return outcome
        finally:
            if registration:
                registration.end()
            queue.length -= 1
            queue.wake()  # the next: there may be more jobs, or this one was cancelled after it was woken
            if not queue.length:
                queue.close(self._hub)
                self._queues.discard(queue)

    def _queue(self, path: Path, *, is_for_jobs: bool) -> "WaitQueue":
        for queue in self._queues if is_for_jobs else ():
            if queue.is_for_jobs and queue.subscriber.path == path:
                return queue
        queue = WaitQueue(path, is_for_jobs=is_for_jobs)
        self._queues.add(queue)
        return queue

    async def close(self) -> None:
        """End all long polls with the outcome that they have, and wait until jobs are released."""
        self._is_closed = True
        for queue in tuple(self._queues):
            queue.wake()  # each wakes the next
        while self._queues or self._taking:
            await asyncio.sleep(0.01)

    async def _execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command; if the client leaves meanwhile, end a query, and release the jobs that were taken for it."""
        task = self._begin(command)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            inner = command.command if isinstance(command, Guarded) else command
            if is_query(command):
                task.cancel()
            elif not isinstance(inner, Idempotent):  # a retry gets the kept reply
                task.add_done_callback(self._release)
            raise

    def _begin(self, command: Command[Outcome]) -> asyncio.Task[Outcome]:
        return self._track(self._store.execute(command))

    def _track(self, work: Coroutine[Any, Any, Outcome]) -> asyncio.Task[Outcome]:
        """Start work that close() waits for."""
        task = asyncio.ensure_future(work)
        self._taking.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[object]") -> None:
        self._taking.discard(task)
        if not task.cancelled():
            task.exception()  # seen by the caller; a job that cannot be released is free when its lease ends

    def _release(self, task: "asyncio.Task[object]") -> None:
        taken = None if task.cancelled() or task.exception() else task.result()
        for job in taken.jobs if isinstance(taken, Taken) else ():
            self._begin(ChangeLease.release(job))


class WaitQueue:
    """The long polls that wait for a change to one path, in the order in which they came."""

    def __init__(self, path: Path, *, is_for_jobs: bool) -> None:
        self.is_for_jobs = is_for_jobs
        self.subscriber = Subscriber(path, lambda _: self.on_change(), self._lost)
        self.length = 0
        self.changes = 0  # counted, so that one that comes while a command is executed is not missed
        self._subscription: asyncio.Future[None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def listen(self, hub: Hub) -> None:
        """Subscribe to changes of the path; raises Problem."""
        if self._subscription is None:
            self._subscription = asyncio.ensure_future(hub.listen(self.subscriber, is_taker=self.is_for_jobs))
        await asyncio.shield(self._subscription)

    @property
    def is_subscribed(self) -> bool:
        """Whether the hub tells it of changes."""
        return self._subscription is not None and self._subscription.done()

    def on_change(self) -> None:
        """Count a change, and wake the first."""
        self.changes += 1
        self.wake()

    def _lost(self) -> None:
        self._subscription = None
        asyncio.get_running_loop().call_later(RETRY_S, self.on_change)  # not at once: it may be lost again

    def wake(self) -> None:
        """Wake the first that still waits."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                return

    def close(self, hub: Hub) -> None:
        """End the subscription."""
        self.wake_in(None)
        if self._subscription:
            self._subscription.cancel()
        hub.leave(self.subscriber)

    def wake_in(self, ms: int | None) -> None:
        """Wake the first after some ms, when a job may be ready; None for never."""
        if self._timer:
            self._timer.cancel()
        self._timer = None if ms is None else asyncio.get_running_loop().call_later(ms / 1000, self.on_change)

    async def turn(self, deadline: float) -> None:
        """Wait until woken, or until `deadline`."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await mine
