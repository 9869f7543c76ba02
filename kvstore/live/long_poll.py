"""Requests that wait: for a change to a document or a container (RFC 7240, `Prefer: wait`), or for a job.

Each is carried out again when something has changed. Those who wait for jobs of one container stand in a line, so that one
change wakes one of them: it takes what there is, and wakes the next.
"""

import asyncio
from collections import deque
from contextlib import suppress

from kvstore.commands.base import Command, Found, Idempotent, Missing, Outcome
from kvstore.commands.containers import Unchanged
from kvstore.commands.documents import ConditionalGet
from kvstore.commands.jobs import ChangeLease, Taken
from kvstore.commands.subscriptions import LongPoll
from kvstore.core.paths import Path
from kvstore.core.preconditions import read_status
from kvstore.live.hub import Hub, Subscriber
from kvstore.live.log_reader import RETRY_S
from kvstore.stores.pipelined import AsyncStore


def is_settled(command: Command[object], outcome: object) -> bool:
    """Whether an outcome is one to answer with, where the client would rather wait for another."""
    if isinstance(outcome, Taken):
        return bool(outcome.jobs)
    if isinstance(outcome, Found) and isinstance(command, ConditionalGet):
        return read_status(command.preconditions, outcome.tag) != 304
    if isinstance(outcome, Missing):  # whoever has a document's tag wants to know that it is gone
        return isinstance(command, ConditionalGet) and bool(command.preconditions.none_match)
    return not isinstance(outcome, Unchanged)


class LongPolls:
    """Those who wait, in one event loop."""

    def __init__(self, store: AsyncStore, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self._queues: set[WaitQueue] = set()
        self._taking: set[asyncio.Task[object]] = set()
        self._is_closed = False

    async def outcome(self, wait: LongPoll[Outcome]) -> Outcome:
        """The outcome of a command as soon as there is something to answer with, else its last one; raises Problem."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait.wait_s
        outcome = await self._execute(wait.command)
        if is_settled(wait.command, outcome) or self._is_closed:
            return outcome
        queue = self._queue(wait.path, is_for_jobs=isinstance(outcome, Taken))
        queue.length += 1
        try:
            while True:
                await queue.listen(self._hub)
                heard = queue.heard
                outcome = await self._execute(wait.command)
                if is_settled(wait.command, outcome) or self._is_closed:
                    return outcome
                if isinstance(outcome, Taken):
                    queue.look_in(outcome.ready_in_ms)
                if heard == queue.heard:
                    await queue.turn(deadline)
                if self._is_closed or loop.time() >= deadline:
                    return outcome
        finally:
            queue.length -= 1
            queue.wake()  # there may be more, or this one was woken and has gone
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
        """Answer all who wait with what there is, and wait for jobs that are given back."""
        self._is_closed = True
        for queue in tuple(self._queues):
            queue.wake()  # who is woken wakes the next
        while self._queues or self._taking:
            await asyncio.sleep(0.01)

    async def _execute(self, command: Command[Outcome]) -> Outcome:
        """The outcome of a command; jobs that it takes for somebody who has gone meanwhile are given back."""
        task = self._begin(command)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not isinstance(command, Idempotent):  # its answer is kept, and asked for again
                task.add_done_callback(self._give_back)
            raise

    def _begin(self, command: Command[Outcome]) -> asyncio.Task[Outcome]:
        task = asyncio.ensure_future(self._store.execute(command))
        self._taking.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[object]") -> None:
        self._taking.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it is told; a job that cannot be given back is free when its lease ends

    def _give_back(self, task: "asyncio.Task[object]") -> None:
        taken = None if task.cancelled() or task.exception() else task.result()
        for job in taken.jobs if isinstance(taken, Taken) else ():
            self._begin(ChangeLease.release(job))


class WaitQueue:
    """Those who wait for a change to one path, in the order in which they came."""

    def __init__(self, path: Path, *, is_for_jobs: bool) -> None:
        self.is_for_jobs = is_for_jobs
        self.subscriber = Subscriber(path, lambda _: self.hear(), self._lost)
        self.length = 0
        self.heard = 0  # changes, so that one that comes while somebody looks is not missed
        self._listening: asyncio.Future[None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def listen(self, hub: Hub) -> None:
        """Hear of changes from now on; raises Problem."""
        if self._listening is None:
            self._listening = asyncio.ensure_future(hub.listen(self.subscriber, is_taker=self.is_for_jobs))
        await asyncio.shield(self._listening)

    def hear(self) -> None:
        """Something has changed."""
        self.heard += 1
        self.wake()

    def _lost(self) -> None:
        self._listening = None
        asyncio.get_running_loop().call_later(RETRY_S, self.hear)  # whatever is lost again and again, nobody spins

    def wake(self) -> None:
        """Let the first look."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                return

    def close(self, hub: Hub) -> None:
        """Nobody waits any more."""
        self.look_in(None)
        if self._listening:
            self._listening.cancel()
        hub.leave(self.subscriber)

    def look_in(self, ms: int | None) -> None:
        """Let the first look when a job may be ready by itself; None for never."""
        if self._timer:
            self._timer.cancel()
        self._timer = None if ms is None else asyncio.get_running_loop().call_later(ms / 1000, self.hear)

    async def turn(self, deadline: float) -> None:
        """Wait to be woken, until the time is over."""
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await mine
