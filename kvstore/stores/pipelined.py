"""The pipelined store: one connection to one Redis, and all commands of one turn of the event loop in one write.

A command is sent at most once. If it was sent and no reply came, because of a time-out or a lost connection, it fails as
unknown. If it was never sent, it fails as not applied. `redis_connection.py` does the sending and the matching of replies.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import hiredis

from kvstore.commands.base import Command, Outcome
from kvstore.core.errors import Problem, unavailable
from kvstore.core.redis_url import Address
from kvstore.stores import redis_clients
from kvstore.stores.execution import evalsha_words
from kvstore.stores.redis_connection import (
    Context,
    Done,
    MakeConnection,
    PendingCommand,
    RedisConnection,
    open_connection,
    plain_command,
)
from kvstore.stores.redis_errors import UNCHANGED, problem_of, too_many_waiting

log = logging.getLogger("kvstore")

BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.4)  # between attempts to connect; the last one repeats. Redis's return is seen within 2 s
CHECK_S = 0.25  # between checks for what is overdue: so much later than its time-out a client may hear of it
PING_S = 2.0  # between commands where keys are tracked: nothing else would show that a connection on which we listen is dead
SILENT_S = 0.5  # without a reply to a command: a Redis that is well answers within PROMPT_S, so another may be in its place now


class AsyncStore(Protocol):
    """A store for one event loop."""

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> object: ...
    def flush(self) -> None: ...
    async def execute(self, command: Command[Outcome]) -> Outcome: ...
    async def close(self) -> None: ...


async def executed(store: AsyncStore, command: Command[Outcome]) -> Outcome:
    """Submit a command and return its outcome; raises Problem."""
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    store.submit(command, settle, answer)
    return await answer


class PipelinedStore:
    """A store for one event loop: `submit` for callbacks, `execute` for coroutines.

    It connects for the first command, and again after the connection is lost. With `on_invalidate`, Redis tracks the keys that
    are read here (CLIENT TRACKING), and `on_invalidate(key)` is called when one has changed, once until it is read again; with
    None when the connection is lost, since any key may have changed. `find` returns the current address of the Redis; it
    raises OSError. `connect` makes its connections.
    """

    words = staticmethod(evalsha_words)

    def __init__(
        self,
        address: Address,
        *,
        on_invalidate: Callable[[bytes | None], None] | None = None,
        find: Callable[[Address], Awaitable[Address]] | None = None,
        connect: MakeConnection = RedisConnection,
    ) -> None:
        self._address = address
        self.on_invalidate = on_invalidate
        self.is_tracking = on_invalidate is not None  # False where Redis refuses to
        self._find = find
        self._found, self._found_at = address, 0.0  # where the connection goes, and when that was looked up
        self._finding: asyncio.Task[None] | None = None
        self._make = connect
        self.max_waiting = redis_clients.MAX_WAITING
        self.max_waiting_bytes = redis_clients.MAX_WAITING_BYTES
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # known from the first submit on
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: deque[PendingCommand] = deque()
        self._unsent_bytes = 0
        self._trouble: Problem | None = None  # what Redis answered to the last attempt to connect
        self._check: asyncio.TimerHandle | None = None
        self._ping_at = 0.0
        self._closed = False

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """Send a command; `done(context, outcome)` is called once, after this returns, with the outcome or the Problem."""
        loop = self._loop
        if loop is None:
            loop = self._start()
        connection = self._connection
        if connection is not None and connection.has_room:
            connection.submit(command, done, context)
            return
        now = loop.time()
        pending = PendingCommand(command, done, context, now, now + redis_clients.PIPELINED.queue_s)
        if connection is not None or not self._keep(pending.pack(self.words(command))):
            loop.call_soon(done, context, too_many_waiting())

    def flush(self) -> None:
        """Send now what would be sent at the end of this turn of the event loop."""
        if self._connection is not None:
            self._connection.flush()

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command and those that follow it, and return the outcome; raises Problem."""
        return await executed(self, command)

    async def close(self) -> None:
        """Fail all pending commands and close the connection. Later commands fail too."""
        self._closed = True
        if self._connecting:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._check:
            self._check.cancel()
        if self._finding:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)
        if self._connection:
            self._connection.abort()
        self._fail_unsent(float("inf"))

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        self._check_overdue()
        return self._loop

    def _keep(self, pending: PendingCommand) -> bool:
        """Let a packed command wait for a connection; returns False if there is no room."""
        has_room = len(self._unsent) < self.max_waiting and self._unsent_bytes + pending.size <= self.max_waiting_bytes
        if self._closed or not has_room:
            return False
        self._unsent_bytes += pending.size
        self._unsent.append(pending)
        self._connect()
        return True

    def _connect(self) -> None:
        if self._connecting is None and not self._closed:
            self._connecting = self._loop.create_task(self._keep_connecting())

    async def _keep_connecting(self) -> None:
        """Try to connect until a connection is open or no command waits for one."""
        attempt = 0
        try:
            while self._unsent:
                try:
                    async with asyncio.timeout(redis_clients.PIPELINED.connect_s):
                        address = await self._find(self._address) if self._find else self._address
                        connection = await open_connection(address, self, self._make)
                except (OSError, TimeoutError, hiredis.HiredisError, hiredis.ReplyError, ssl.SSLError) as error:
                    if attempt == 0:
                        log.warning("cannot connect to Redis: %s", str(error) or type(error).__name__)
                    self._trouble = problem_of(error) if isinstance(error, hiredis.ReplyError) else None
                    await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
                    attempt += 1
                else:
                    self._connection, self._found, self._trouble = connection, address, None
                    while self._unsent:
                        pending = self._unsent.popleft()
                        self._unsent_bytes -= pending.size
                        pending.due = pending.began + redis_clients.PIPELINED.answer_s
                        if pending.done:  # it may have been overdue by a timer of its own
                            connection.send(pending)
        finally:
            self._connecting = None

    def lost(self, connection: "RedisConnection") -> None:
        """Forget a connection that has ended; the next command opens another."""
        if self._connection is connection:
            self._connection = None
            if self.on_invalidate and not self._closed:
                self.on_invalidate(None)

    def forward(self, connection: RedisConnection, pending: PendingCommand) -> None:
        """Send the next command of a request: there is one Redis."""
        connection.send(pending)

    def redirect(self, pending: PendingCommand, error: str) -> bool:
        """A single Redis sends nobody elsewhere."""
        return False

    def _check_overdue(self) -> None:
        now = self._loop.time()
        if self._connection and self._connection.is_overdue(now):
            self._connection.abort()
        if self._connection and self.on_invalidate and now >= self._ping_at:
            self._ping_at = now + PING_S
            self._connection.send(plain_command(("PING",), _ignore, None, now))
        if self._connection and self._find and (self._finding is None or self._finding.done()):
            oldest = self._connection.oldest
            if now >= self._found_at + PING_S or (oldest and now >= oldest.began + SILENT_S):
                self._found_at = now
                self._finding = self._loop.create_task(self._find_again(self._find, self._connection))
        self._fail_unsent(now)
        self._check = self._loop.call_later(CHECK_S, self._check_overdue)

    async def _find_again(self, find: Callable[[Address], Awaitable[Address]], connection: RedisConnection) -> None:
        """Let go of a primary that was replaced: one that hung, and goes on, does not know that."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(redis_clients.PIPELINED.connect_s):
                if await find(self._address) != self._found and self._connection is connection:
                    connection.abort()

    def _fail_unsent(self, until: float) -> None:
        why = self._trouble or unavailable(f"Redis cannot be reached; send it again. {UNCHANGED}")
        while self._unsent and self._unsent[0].due <= until:
            pending = self._unsent.popleft()
            self._unsent_bytes -= pending.size
            pending.tell(pending.ended(why))


def _ignore(_: None, outcome: object) -> None:
    """What a PING is answered says nothing; that it is answered does."""


def settle(answer: "asyncio.Future[Outcome]", outcome: Outcome | Exception) -> None:
    """Hand an outcome over to whoever awaits it."""
    if answer.done():  # the caller was cancelled
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
