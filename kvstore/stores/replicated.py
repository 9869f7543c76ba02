"""Writes that are acknowledged when replicas have them (KVSTORE_REPLICAS): WAIT behind the scripts, on their own connection.

WAIT blocks the connection that it came on. So commands that only read have another one, and a connection has one WAIT at a
time: what is sent meanwhile shares the next. Source: WAIT.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import hiredis

from kvstore.commands.base import Command, Outcome, RedisReply
from kvstore.commands.guarded import WRAPPERS, unwrapped
from kvstore.commands.scripts import (
    CHARGE,
    CLAIM_STREAMS,
    COUNT_JOBS,
    EXISTS,
    FIND,
    GET,
    GET_MANY,
    HOLD,
    INSPECT_NAMESPACES,
    LIST,
    LOG_POSITION,
    READ,
    READ_CHANGES,
    READ_CONTAINER_CHANGES,
    READ_FOUND,
    READ_HISTORY,
    REGISTER_TAKER,
    RELEASE_HOLD,
    RELEASE_STREAM,
    REMOVE_TAKER,
)
from kvstore.core.errors import UNKNOWN, Problem, unavailable
from kvstore.stores.execution import Plain, Words
from kvstore.stores.pipelined import AsyncStore, executed
from kvstore.stores.redis_connection import Context, Done, MakeConnection, Owner, PendingCommand, RedisConnection, plain_command
from kvstore.stores.redis_errors import problem_of, too_few_replicas

WAIT_MS = 1000  # for the replicas. A write that is sent while another waits may wait for both: 2 s of PIPELINED.answer_s

# Scripts whose outcome promises nothing that a failover could break: they read, they count, or what they write is
# renewed, or ends by itself.
_UNACKNOWLEDGED = frozenset(
    script.name
    for script in (
        *(READ, EXISTS, GET, GET_MANY, LIST, FIND, READ_FOUND, COUNT_JOBS, INSPECT_NAMESPACES),
        *(LOG_POSITION, READ_CHANGES, READ_HISTORY, READ_CONTAINER_CHANGES),
        *(CHARGE, CLAIM_STREAMS, RELEASE_STREAM, HOLD, RELEASE_HOLD, REGISTER_TAKER, REMOVE_TAKER),
    )
)


def is_acknowledged(command: Command[Any]) -> bool:
    """Return whether the outcome of a command waits for replicas: whether it, or one that follows it, may write."""
    asked = unwrapped(command) if isinstance(command, WRAPPERS) else command
    return asked is not None and asked.script.name not in _UNACKNOWLEDGED


def wait_words(replicas: int) -> Words:
    """Return the Redis command that waits until so many replicas have what its connection has written."""
    return ("WAIT", replicas, WAIT_MS)


def shortage(reply: Any, replicas: int) -> Problem | None:
    """Return the problem that a reply to WAIT is, or None where enough replicas have the writes before it."""
    if isinstance(reply, Exception):
        return unavailable(f"{problem_of(reply).detail}; {UNKNOWN}")
    return None if reply >= replicas else too_few_replicas(reply, replicas)


def has_written(reply: RedisReply) -> bool:
    """Return whether a script with this reply may have written: no error says so, nor does what put_many.lua refuses."""
    return not isinstance(reply, hiredis.ReplyError) and reply != [b"refused"]


class ReplicatedConnection(RedisConnection):
    """A connection that takes in its replies when `replicas` replicas have what was written before."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop, *, replicas: int) -> None:
        super().__init__(owner, loop)
        self._replicas = replicas
        self._held: list[tuple[PendingCommand, Any]] = []  # replies, each before that to the next WAIT
        self._wait: PendingCommand | None = None  # the WAIT without a reply

    def flush(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for alike in gathered.values():
            self._send_coalesced(alike)
        if self._wait is None and (self._held or not all(isinstance(each.command, Plain) for each in self._sent)):
            self._wait = plain_command(wait_words(self._replicas), _nobody, None, self._loop.time())
            self.send(self._wait)
        super().flush()

    def _take(self, pending: PendingCommand, reply: Any) -> None:
        if pending is not self._wait:
            if isinstance(pending.command, Plain) or not has_written(reply):  # nothing that replicas should have
                super()._take(pending, reply)
            else:
                self._held.append((pending, reply))
            return
        self._wait = None
        held, self._held = self._held, []
        problem = shortage(reply, self._replicas)
        for each, answer in held:
            if problem is None:
                super()._take(each, answer)
            else:
                each.tell(each.ended(problem))
        if self._sent and not self._is_scheduled:
            self._schedule()

    def abort(self) -> None:
        super().abort()
        held, self._held = self._held, []
        for pending, _ in held:
            pending.tell(pending.ended(unavailable(f"Redis did not answer; {UNKNOWN}")))


def _nobody(_context: object, _outcome: object) -> None:
    """Nobody waits for the outcome of a WAIT."""


class ReplicatedStore:
    """A store for one event loop on two: one for what only reads, one whose writes wait for replicas."""

    def __init__(self, open_store: Callable[[MakeConnection], AsyncStore], replicas: int) -> None:
        self._reads = open_store(RedisConnection)
        self._writes = open_store(partial(ReplicatedConnection, replicas=replicas))

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """As PipelinedStore.submit."""
        (self._writes if is_acknowledged(command) else self._reads).submit(command, done, context)

    def flush(self) -> None:
        """As PipelinedStore.flush."""
        self._reads.flush()
        self._writes.flush()

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command and those that follow it, and return the outcome; raises Problem."""
        return await executed(self, command)

    async def close(self) -> None:
        """As PipelinedStore.close."""
        await self._reads.close()
        await self._writes.close()
