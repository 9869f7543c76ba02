"""The pipelined store: one connection to one Redis, and every command of one turn of the event loop in one write.

A command is sent at most once. One that was sent and whose answer did not come, because of a time-out or a lost connection,
fails as unknown; one that was never sent fails as not applied. Replies come in the order of the commands, so matching them
is taking the oldest. Source: https://redis.io/docs/latest/develop/reference/protocol-spec/, EVALSHA, EVAL, AUTH, SELECT.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import hiredis

from kvstore.commands.base import Command, Outcome
from kvstore.commands.bulk import coalescing_key
from kvstore.core.errors import Problem, problem_of_reply, unavailable
from kvstore.core.redis_url import Address
from kvstore.stores import redis_connection
from kvstore.stores.redis_connection import Context, Done, PendingCommand, RedisConnection, open_connection

log = logging.getLogger("kvstore")

UNSENT_S = 1.5  # that a command may wait for a connection
CONNECT_S = 3.0  # from opening a connection to the end of its handshake
BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.4)  # between attempts to connect, then the last one again and again
CHECK_S = 0.25  # between looks at what is overdue


class AsyncStore(Protocol):
    """A store for one event loop."""

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None: ...
    async def execute(self, command: Command[Outcome]) -> Outcome: ...
    async def close(self) -> None: ...


async def executed(store: AsyncStore, command: Command[Outcome]) -> Outcome:
    """The outcome of a command that is submitted; raises Problem."""
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    store.submit(command, _settle, answer)
    return await answer


class PipelinedStore:
    """A store for one event loop: `submit` for callbacks, `execute` for coroutines.

    It connects when it is first used, and again whenever the connection is lost. With `on_invalidate`, Redis tracks the keys
    that are read here (CLIENT TRACKING), and `on_invalidate` is called with each key that has changed since, once until it is
    read again. It is called with None when the connection is lost: any key may have changed. `find` returns the address at
    which the Redis is at present; it raises OSError.
    """

    def __init__(
        self,
        address: Address,
        *,
        on_invalidate: Callable[[bytes | None], None] | None = None,
        find: Callable[[Address], Awaitable[Address]] | None = None,
    ) -> None:
        self._address = address
        self.on_invalidate = on_invalidate
        self.is_tracking = on_invalidate is not None  # False where Redis refused to track, so nothing is ever heard
        self._find = find
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # known from the first submit on
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: deque[PendingCommand] = deque()
        self._unsent_bytes = 0
        self._trouble: Problem | None = None  # what Redis said to the last attempt to connect
        self._check: asyncio.TimerHandle | None = None
        self._closed = False

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """Send a command; `done(context, outcome)` is called once, with the outcome or the Problem, never before this
        returns."""
        loop = self._loop
        if loop is None:
            loop = self._start()
        connection = self._connection
        if connection is not None and connection.has_room:
            waiting = PendingCommand(command, done, context, loop.time() + redis_connection.ANSWER_S)
            if (key := coalescing_key(command)) is None:
                connection.send(waiting.pack())
            else:
                connection.gather(key, waiting)
            return
        if connection is None and not self._closed and len(self._unsent) < redis_connection.MAX_WAITING:
            waiting = PendingCommand(command, done, context, loop.time() + UNSENT_S).pack()
            if self._unsent_bytes + waiting.size <= redis_connection.MAX_WAITING_BYTES:
                self._unsent_bytes += waiting.size
                self._unsent.append(waiting)
                self._connect()
                return
        problem = unavailable("more requests wait for Redis than this server holds; send it again. Nothing was changed")
        loop.call_soon(done, context, problem)

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """The outcome of a command; raises Problem."""
        return await executed(self, command)

    async def close(self) -> None:
        """Fail what waits and close the connection; nothing can be submitted any more."""
        self._closed = True
        if self._connecting:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._check:
            self._check.cancel()
        if self._connection:
            self._connection.abort()
        self._fail_unsent(float("inf"))

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        self._look_for_overdue()
        return self._loop

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = self._loop.create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        """Connect, again and again, until a connection stands or nobody waits for one."""
        attempt = 0
        try:
            while self._unsent:
                try:
                    async with asyncio.timeout(CONNECT_S):
                        address = await self._find(self._address) if self._find else self._address
                        connection = await open_connection(address, self)
                except (OSError, TimeoutError, hiredis.HiredisError, hiredis.ReplyError, ssl.SSLError) as error:
                    if attempt == 0:
                        log.warning("cannot connect to Redis: %s", str(error) or type(error).__name__)
                    self._trouble = problem_of_reply(str(error)) if isinstance(error, hiredis.ReplyError) else None
                    await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                    attempt += 1
                else:
                    self._connection, self._trouble = connection, None
                    while self._unsent:
                        waiting = self._unsent.popleft()
                        self._unsent_bytes -= waiting.size
                        waiting.due = self._loop.time() + redis_connection.ANSWER_S
                        connection.send(waiting)
        finally:
            self._connecting = None

    def lost(self, connection: "RedisConnection") -> None:
        """The connection has ended; the next command opens another."""
        if self._connection is connection:
            self._connection = None
            if self.on_invalidate and not self._closed:
                self.on_invalidate(None)

    def _look_for_overdue(self) -> None:
        now = self._loop.time()
        if self._connection and self._connection.is_overdue(now):
            self._connection.abort()
        self._fail_unsent(now)
        self._check = self._loop.call_later(CHECK_S, self._look_for_overdue)

    def _fail_unsent(self, until: float) -> None:
        why = self._trouble or unavailable("Redis cannot be reached; send it again. Nothing was changed")
        while self._unsent and self._unsent[0].due <= until:
            waiting = self._unsent.popleft()
            self._unsent_bytes -= waiting.size
            waiting.tell(why)


def _settle(answer: "asyncio.Future[Outcome]", outcome: Outcome | Exception) -> None:
    if answer.done():  # whoever asked has gone
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
