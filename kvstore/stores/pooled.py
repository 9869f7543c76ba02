"""The pooled store: for an event loop, a primary behind Sentinels, or fakeredis, through redis-py.

Each command takes a connection for as long as it runs; `pipelined.py` and `cluster.py` share one. The rules are the same:
nothing is sent twice, and a request ends within 6 s. Source: EVALSHA, EVAL.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import redis

from kvstore.commands.base import Again, Command, Later, Outcome, RedisReply
from kvstore.core.errors import Problem
from kvstore.core.redis_url import parse_redis_url
from kvstore.stores import redis_clients
from kvstore.stores.cluster import ClusterStore
from kvstore.stores.execution import Execution, Words, eval_words, evalsha_words, timed
from kvstore.stores.pipelined import AsyncStore, PipelinedStore
from kvstore.stores.redis_clients import MAX_POOLED_CONNECTIONS, close_pooled_client, pooled_client
from kvstore.stores.redis_connection import Context, Done, MakeConnection, RedisConnection
from kvstore.stores.redis_errors import LOOP_ERRORS, all_busy, problem_of, too_many_waiting
from kvstore.stores.replicated import ReplicatedStore, is_acknowledged, shortage, wait_words


class Submissions:
    """Commands that were submitted, each executed in a task of its own."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def add(
        self, execute: Callable[[], Awaitable[Outcome]], done: Done[Context, Outcome], context: Context
    ) -> asyncio.Task[None]:
        """Call `done(context, outcome)` with what `execute()` comes to, or with its exception; not if the task is cancelled."""
        task = asyncio.get_running_loop().create_task(self._run(execute, done, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait(self) -> None:
        """Wait until all of them are done."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, execute: Callable[[], Awaitable[Outcome]], done: Done[Context, Outcome], context: Context) -> None:
        outcome: Outcome | Exception
        try:
            outcome = await execute()
        except Exception as error:
            outcome = error
        done(context, outcome)


class PooledStore:
    """A store on a client of redis.asyncio. `connect` makes the client, when the first command comes.

    A write is done when `replicas` replicas have it.
    """

    def __init__(self, connect: Callable[[], Any], replicas: int = 0) -> None:
        self._connect = connect
        self._replicas = replicas
        self._client: Any = None
        self._turns = asyncio.Semaphore(MAX_POOLED_CONNECTIONS)
        self._resuming = asyncio.Lock()
        self._waiting = self._waiting_bytes = 0  # commands without a reply
        self._submissions = Submissions()

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """As PipelinedStore.submit."""
        self._submissions.add(lambda: self.execute(command), done, context)

    def flush(self) -> None:
        """As PipelinedStore.flush: nothing is kept back."""

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command and those that follow it, and return the outcome; raises Problem."""
        loop = asyncio.get_running_loop()
        execution = Execution(command, loop.time(), loop.time() + redis_clients.POOLED.answer_s)
        while True:
            outcome = execution.settle(await self._reply(execution), loop.time())
            while isinstance(outcome, Later):
                async with self._resuming:  # one turn after the other: other requests do not wait for all of them
                    await asyncio.sleep(0)
                    outcome = execution.resume(outcome, loop.time())
            if isinstance(outcome, Problem):
                raise outcome
            if not isinstance(outcome, Again):
                return outcome

    async def _reply(self, execution: Execution[Any]) -> RedisReply | Problem:
        """The reply to a command, or the Problem that came in its place."""
        words = evalsha_words(execution.command)
        size = sum(len(word) for word in words if not isinstance(word, int))
        if self._waiting >= redis_clients.MAX_WAITING or self._waiting_bytes + size > redis_clients.MAX_WAITING_BYTES:
            return too_many_waiting()
        self._waiting += 1
        self._waiting_bytes += size
        try:
            async with asyncio.timeout_at(min(execution.due, execution.began + redis_clients.POOLED.queue_s)):
                await self._turns.acquire()
        except TimeoutError:
            return all_busy()
        else:
            return await self._answered(execution, words)
        finally:
            self._waiting -= 1
            self._waiting_bytes -= size

    async def _answered(self, execution: Execution[Any], words: Words) -> RedisReply | Problem:
        """The same, with a turn that is taken."""
        try:
            async with asyncio.timeout_at(execution.due):
                if self._client is None:
                    self._client = self._connect()
                call: Callable[..., Awaitable[Any]] = self._client.execute_command
                if self._replicas and is_acknowledged(execution.command):
                    call = partial(_call_and_wait, self._client, self._replicas)
                with timed():
                    try:
                        return await call(*words)
                    except redis.exceptions.NoScriptError:
                        return await call(*eval_words(execution.command, words))
        except LOOP_ERRORS as error:
            return problem_of(error)
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Wait for what runs and close the connections."""
        await self._submissions.wait()
        if self._client is not None:
            await close_pooled_client(self._client)


async def _call_and_wait(client: Any, replicas: int, *words: Any) -> RedisReply | Problem:
    """The reply to a command, when replicas have what it has written: both are sent at once, on one connection."""
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command(*words)
    pipeline.execute_command(*wait_words(replicas))
    reply, count = await pipeline.execute(raise_on_error=False)
    if isinstance(reply, Exception):
        raise reply
    return shortage(count, replicas) or reply


def open_async_store(redis_url: str, *, verify_tls: bool = True, replicas: int = 0) -> AsyncStore:
    """Return a store for the running event loop on the Redis at `redis_url` (see redis_url.py); raises InvalidRedisURL.

    A write is done when `replicas` replicas have it. Nothing is connected yet.
    """
    address = parse_redis_url(redis_url, verify_tls=verify_tls)
    if address.kind not in ("single", "cluster"):
        return PooledStore(lambda: pooled_client(address), replicas)

    def open_store(connect: MakeConnection = RedisConnection) -> AsyncStore:
        kind = ClusterStore if address.kind == "cluster" else PipelinedStore
        return kind(address, connect=connect)

    return ReplicatedStore(open_store, replicas) if replicas else open_store()
