"""One connection to a Redis: packs the commands of one turn of the event loop into one write, and matches the replies.

Replies come in the order of the commands, so each belongs to the oldest command without one. Source:
https://redis.io/docs/latest/develop/reference/protocol-spec/, EVALSHA, EVAL, AUTH, SELECT, CLIENT TRACKING.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol, TypeAlias, TypeVar

import hiredis

from kvstore.commands.base import Again, Command, Later, Outcome
from kvstore.commands.bulk import MAX_COALESCED, CoalescingKey, coalesce, coalescing_key, slot_among
from kvstore.core.errors import UNKNOWN, Problem, unavailable
from kvstore.core.metrics import COUNTERS, REST_S, RESTING, add_time
from kvstore.core.redis_url import Address
from kvstore.stores import redis_clients
from kvstore.stores.execution import Execution, Plain, Words, eval_words
from kvstore.stores.redis_errors import no_answer, problem_of

log = logging.getLogger("kvstore")

Context = TypeVar("Context")

Done: TypeAlias = Callable[[Context, Outcome | Exception], None]  # called with the context and outcome of a command

# A command, what is called with its outcome, and the context of that.
Submitted: TypeAlias = tuple[Command[Any], Done[Any, Any], Any]


def tell(done: Done[Context, Outcome], context: Context, outcome: Outcome | Exception) -> None:
    """Hand an outcome over. A bug in `done` must not break the requests of others."""
    try:
        done(context, outcome)
    except Exception:
        log.exception("an outcome was lost by a bug of ours")


class PendingCommand(Execution[Any]):
    """A request without an outcome: `done(context, outcome)` is called with it, once."""

    __slots__ = ("context", "count", "done", "packed", "size", "timer", "tries")

    def __init__(self, command: Command[Any], done: Done[Any, Any], context: Any, began: float, due: float) -> None:
        self.command = command
        self.began = began
        self.due = due
        self.has_written = False
        self.done: Done[Any, Any] | None = done  # None after the call
        self.context = context
        self.count = 1  # of the commands that it stands for
        self.timer: asyncio.TimerHandle | None = None
        self.tries = 0  # that nodes of a cluster have refused

    def tell(self, outcome: Any) -> None:
        """Hand the outcome over, unless that was done."""
        done, self.done = self.done, None
        if done is not None:
            tell(done, self.context, outcome)

    def pack(self, words: Words) -> "PendingCommand":
        """Put these words of the command into Redis's protocol."""
        self.packed = hiredis.pack_command(words)
        self.size = len(self.packed)
        return self

    def limit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the command a timer of its own: it may be due before those that were sent earlier."""
        self.timer = loop.call_at(self.due, self._overdue)

    def _overdue(self) -> None:
        self.tell(self.ended(no_answer()))


def plain_command(words: Words, done: Done[Context, Any], context: Context, now: float) -> PendingCommand:
    """Return a packed command of Redis's own, which names no key."""
    command: Any = Plain(words)
    return PendingCommand(command, done, context, now, now + redis_clients.PIPELINED.answer_s).pack(words)


class Owner(Protocol):
    """Whoever opened a connection: hears when it is lost and, with `on_invalidate`, which keys have changed.

    At most `max_waiting` commands, of `max_waiting_bytes`, wait for replies on the connection.
    """

    on_invalidate: Callable[[bytes | None], None] | None
    is_tracking: bool
    max_waiting: int
    max_waiting_bytes: int

    def lost(self, connection: "RedisConnection") -> None: ...

    def words(self, command: Command[object], /) -> Words:
        """Return the Redis command for a command of ours."""

    def forward(self, connection: "RedisConnection", pending: PendingCommand) -> None:
        """Send the next command of a request, here or where it belongs."""

    def redirect(self, pending: PendingCommand, error: str) -> bool:
        """Go on with a command that Redis has refused to run here; returns False if it fails."""


class RedisConnection(asyncio.Protocol):
    """A connection to Redis, during and after its handshake."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.has_room = True
        self._owner = owner
        self._words = owner.words
        self._loop = loop
        self._reader = hiredis.Reader()
        self._sent: deque[PendingCommand] = deque()
        self._bytes = self._count = 0  # of the commands in _sent
        self._buffer: list[bytes] = []
        self._gathered: dict[CoalescingKey, dict[str | int, Submitted]] = {}  # sent at the end of this turn of the loop
        self._is_scheduled = False  # the end of this turn
        self._unfinished: deque[tuple[PendingCommand, Later[Any]]] = deque()  # replies that are worked on, in turns
        self._timed: object = None  # one of those that were sent, and when
        self._timed_at = 0.0
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._greeting: asyncio.Future[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is none of asyncio's classes

    async def greet(self, command: tuple[Any, ...]) -> None:
        """Send one command of the handshake and wait for its reply; raises hiredis.ReplyError or ConnectionError."""
        self._greeting = self._loop.create_future()
        self._transport.write(hiredis.pack_command(command))
        try:
            reply = await self._greeting
        finally:
            self._greeting = None
        if isinstance(reply, hiredis.ReplyError):
            raise reply

    def send(self, pending: PendingCommand) -> None:
        """Write a packed command with the others of this turn of the loop."""
        packed, pending.packed = pending.packed, b""
        self._bytes += pending.size
        self._count += pending.count
        self._sent.append(pending)
        if self._bytes > self._owner.max_waiting_bytes or self._count >= self._owner.max_waiting:
            self.has_room = False
        self._buffer.append(packed)
        if not self._is_scheduled:
            self._schedule()

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """Send a command; those of this turn of the loop that can be coalesced are sent as one (commands/bulk.py)."""
        key = coalescing_key(command)
        if key is None:
            self.send(self._pending(command, done, context, self._loop.time()))
            return
        gathered = self._gathered.get(key)
        if gathered is None:
            gathered = self._gathered[key] = {}
        slot = slot_among(command, len(gathered))
        if slot in gathered:
            self.send(self._pending(command, done, context, self._loop.time()))
            return
        gathered[slot] = command, done, context
        if len(gathered) == MAX_COALESCED:
            self._send_coalesced(self._gathered.pop(key))
        elif not self._is_scheduled:
            self._schedule()

    def _pending(
        self, command: Command[Outcome], done: Done[Context, Outcome], context: Context, began: float
    ) -> PendingCommand:
        due = began + redis_clients.PIPELINED.answer_s
        return PendingCommand(command, done, context, began, due).pack(self._words(command))

    def _send_coalesced(self, gathered: dict[str | int, Submitted]) -> None:
        coalesced, now = list(gathered.values()), self._loop.time()
        if len(coalesced) == 1:
            self.send(self._pending(*coalesced[0], now))
            return
        command = coalesce([command for command, _, _ in coalesced])
        pending = self._pending(command, self._distribute, (coalesced, now), now)
        pending.count = len(coalesced)
        self.send(pending)

    def _distribute(self, sent: tuple[list[Submitted], float], outcomes: Any) -> None:
        """Give each of the commands that were sent as one its outcome. One that has none, None, is sent by itself."""
        coalesced, began = sent
        if isinstance(outcomes, Exception):
            outcomes = [outcomes] * len(coalesced)
        for (command, done, context), outcome in zip(coalesced, outcomes, strict=True):
            if outcome is None:
                self._send_next(self._pending(command, done, context, began))
            else:
                tell(done, context, outcome)

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write the commands of this turn of the loop."""
        gathered, self._gathered = self._gathered, {}
        for alike in gathered.values():
            self._send_coalesced(alike)
        self._is_scheduled = False
        buffer, self._buffer = self._buffer, []
        if buffer and not self._transport.is_closing():
            self._transport.write(b"".join(buffer) if len(buffer) > 1 else buffer[0])
            COUNTERS.redis_commands += len(buffer)
            if self._timed is None and self._sent:
                self._timed, self._timed_at = self._sent[-1], perf_counter()

    def data_received(self, data: bytes) -> None:
        reader, sent = self._reader, self._sent
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if type(reply) is hiredis.PushNotification:
                    self._pushed(reply)
                    continue
                if not sent:
                    self._greeted(reply)
                    continue
                pending = sent.popleft()
                if pending is self._timed:
                    add_time(COUNTERS.redis, perf_counter() - self._timed_at)
                    self._timed = RESTING
                    self._loop.call_later(REST_S, self._time_next)
                self._bytes -= pending.size
                self._count -= pending.count
                self.has_room = True
                if pending.timer is not None:
                    pending.timer.cancel()
                    if pending.done is None:
                        continue  # it was overdue, and has failed
                self._take(pending, reply)
        except hiredis.ProtocolError:
            log.warning("what Redis sent is not its protocol; closing the connection")
            self.abort()

    def _take(self, pending: PendingCommand, reply: Any) -> None:
        """Take in the reply to a command."""
        if isinstance(reply, hiredis.ReplyError):
            self._refused(pending, reply)
            return
        try:
            outcome = pending.command.outcome(reply)
        except Exception as error:  # a Problem, or a bug of ours
            outcome = pending.failed(error) if isinstance(error, Problem) else error
        if type(outcome) is Again:
            pending.follow(outcome, self._loop.time())
            self._send_next(pending.pack(self._words(pending.command)))
        elif type(outcome) is Later:
            pending.answered(self._loop.time())
            self._resume_later(pending, outcome)
        else:
            pending.tell(outcome)

    def _time_next(self) -> None:
        self._timed = None

    def _resume_later(self, pending: PendingCommand, later: Later[Any]) -> None:
        """Go on with the work on a reply when the loop has looked at its sockets."""
        self._unfinished.append((pending, later))
        if len(self._unfinished) == 1:
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        """Go on with the work on one reply, one in each turn of the loop: other requests do not wait for all of them."""
        pending, later = self._unfinished.popleft()
        if self._unfinished:
            self._loop.call_soon(self._resume)
        try:
            outcome = pending.resume(later, self._loop.time())
        except Exception as error:  # a bug of ours
            outcome = error
        if type(outcome) is Later:
            self._resume_later(pending, outcome)
        elif type(outcome) is not Again:
            pending.tell(outcome)
        elif self._transport.is_closing():
            pending.tell(pending.ended(unavailable(f"Redis did not answer; {UNKNOWN}")))
        else:
            self._send_next(pending.pack(self._words(pending.command)))

    def _pushed(self, push: Any) -> None:
        """Keys have changed; None: all of them. Source: the invalidation messages of CLIENT TRACKING."""
        kind, keys = push
        if kind == b"invalidate" and self._owner.on_invalidate:
            for key in (None,) if keys is None else keys:
                self._owner.on_invalidate(key)

    def _greeted(self, reply: Any) -> None:
        if self._greeting is None or self._greeting.done():
            self.abort()  # a reply that belongs to no command
        else:
            self._greeting.set_result(reply)

    def _refused(self, pending: PendingCommand, error: Any) -> None:
        """Redis has run nothing of the command."""
        if str(error).startswith("NOSCRIPT"):  # so this is no second sending
            self._send_next(pending.pack(eval_words(pending.command, self._words(pending.command))))
            return
        if self._owner.redirect(pending, str(error)):
            return
        if type(outcome := pending.settle(problem_of(error), self._loop.time())) is Again:
            self._send_next(pending.pack(self._words(pending.command)))
        else:
            pending.tell(outcome)

    def _send_next(self, pending: PendingCommand) -> None:
        """Send another command of a request."""
        pending.limit(self._loop)
        self._owner.forward(self, pending)

    def is_overdue(self, now: float) -> bool:
        """Whether the oldest command is."""
        return bool(self._sent) and self._sent[0].due <= now

    @property
    def oldest(self) -> PendingCommand | None:
        """The command that has waited longest for its reply."""
        return self._sent[0] if self._sent else None

    def abort(self) -> None:
        """Give the connection up: everything that was sent and not answered fails as unknown, now."""
        self._owner.lost(self)
        if self._transport:
            self._transport.abort()
        if self._greeting and not self._greeting.done():
            self._greeting.set_exception(ConnectionError("Redis closed the connection"))
        sent, self._sent = self._sent, deque()
        self._buffer, self._bytes, self._count = [], 0, 0
        gathered, self._gathered = self._gathered, {}
        for pending in sent:
            if pending.timer is not None:
                pending.timer.cancel()
            pending.tell(pending.ended(unavailable(f"Redis did not answer; {UNKNOWN}")))
        for alike in gathered.values():
            for _, done, context in alike.values():
                tell(done, context, unavailable(f"Redis did not answer; {UNKNOWN}"))

    def connection_lost(self, _: Exception | None) -> None:
        self.abort()


class MakeConnection(Protocol):
    """What makes a connection that is not open yet: a class of connections, or its like."""

    def __call__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> RedisConnection: ...


async def open_connection(address: Address, owner: Owner, connect: MakeConnection = RedisConnection) -> RedisConnection:
    """Open a connection that is ready for commands; raises OSError or hiredis.ReplyError."""
    loop = asyncio.get_running_loop()

    def make() -> RedisConnection:
        return connect(owner, loop)

    if address.path:
        _, connection = await loop.create_unix_connection(make, address.path)
    else:
        tls = redis_clients.tls_context(address) if address.tls else None
        _, connection = await loop.create_connection(make, *address.nodes[0], ssl=tls)
    try:
        if address.password:
            await connection.greet(("AUTH", *filter(None, (address.user, address.password))))
        if address.database:
            await connection.greet(("SELECT", address.database))
        await connection.greet(("PING",))  # what keeps Redis from serving us shows here, before a command is sent
        if owner.on_invalidate:
            owner.is_tracking = await _track(connection)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _track(connection: RedisConnection) -> bool:
    """Have Redis say which keys change that are read on this connection; returns False where it cannot, or may not."""
    try:
        await connection.greet(("HELLO", 3))
        await connection.greet(("CLIENT", "TRACKING", "ON"))
    except hiredis.ReplyError as error:
        log.warning("Redis does not track keys for us, so the change logs are polled: %s", error)
        return False
    return True
