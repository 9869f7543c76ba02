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
from typing import Any, Protocol

import hiredis

from kvstore.commands.base import Again, Command
from kvstore.commands.bulk import Kin, join, kin, place_among
from kvstore.core.errors import UNKNOWN, Problem, problem_of_reply, unavailable
from kvstore.core.redis_url import Address

log = logging.getLogger("kvstore")

ANSWER_S = 3.5  # from sending a command to its reply; with UNSENT_S under the 6 s in which a client is told
UNSENT_S = 1.5  # that a command may wait for a connection
CONNECT_S = 3.0  # from opening a connection to the end of its handshake
BACKOFF_S = (0.02, 0.05, 0.1, 0.2, 0.4)  # between attempts to connect, then the last one again and again
CHECK_S = 0.25  # between looks at what is overdue
MAX_JOINED = 64  # commands sent as one: more of them would gain little, and hold Redis up for the other clients
MAX_WAITING = 20_000  # commands without a reply
MAX_WAITING_BYTES = 64 * 1024 * 1024  # of commands without a reply

Done = Callable[[Any, Any], None]


class _Waiting:
    """A command without a reply: what to call with its outcome, and when that is overdue."""

    __slots__ = ("command", "context", "count", "done", "due", "packed", "size")

    def __init__(self, command: Command, done: Done, context: Any, due: float, count: int = 1) -> None:
        self.command = command
        self.done = done
        self.context = context
        self.due = due
        self.count = count  # of the commands that it stands for

    def tell(self, outcome: Any) -> None:
        """Hand the outcome over. A bug in who gets it must not take the other requests along."""
        try:
            self.done(self.context, outcome)
        except Exception:
            log.exception("an outcome was lost by a bug of ours")

    def pack(self) -> "_Waiting":
        """Put the command into Redis's protocol, by EVALSHA."""
        return self.pack_as("EVALSHA", self.command.script.sha)

    def pack_as(self, *script: str) -> "_Waiting":
        """The same, by EVALSHA or EVAL."""
        command = self.command
        keys = command.keys
        words: tuple[Any, ...] = (*script, len(keys), *keys, *command.arguments)
        self.packed = hiredis.pack_command(words)
        self.size = len(self.packed)
        return self


class AsyncStore(Protocol):
    """A store for one event loop."""

    def submit(self, command: Command, done: Done, context: Any) -> None: ...
    async def execute(self, command: Command) -> Any: ...
    async def close(self) -> None: ...


async def executed(store: AsyncStore, command: Command) -> Any:
    """The outcome of a command that is submitted; raises Problem."""
    answer = asyncio.get_running_loop().create_future()
    store.submit(command, _settle, answer)
    outcome = await answer
    if isinstance(outcome, Problem):
        raise outcome
    return outcome


class Pipeline:
    """A store for one event loop: `submit` for callbacks, `execute` for coroutines.

    It connects when it is first used, and again whenever the connection is lost. With `heard`, Redis tracks the keys of what
    it is asked to read here (CLIENT TRACKING), and `heard` is called with each that has changed since, once until it is read
    again; with None where that is no longer so, since the connection is lost. `find` says where the Redis is at present, by
    the address; it raises OSError.
    """

    def __init__(
        self,
        address: Address,
        *,
        heard: Callable[[bytes | None], None] | None = None,
        find: Callable[[Address], Awaitable[Address]] | None = None,
    ) -> None:
        self._address = address
        self.heard = heard
        self.is_told = heard is not None  # False where Redis refused to track, so nothing is ever heard
        self._find = find
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # known from the first submit on
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: deque[_Waiting] = deque()
        self._unsent_bytes = 0
        self._trouble: Problem | None = None  # what Redis said to the last attempt to connect
        self._check: asyncio.TimerHandle | None = None
        self._closed = False

    def submit(self, command: Command, done: Done, context: Any) -> None:
        """Send a command; `done(context, outcome)` is called once, with the outcome or the Problem, never before this
        returns."""
        loop = self._loop
        if loop is None:
            loop = self._start()
        connection = self._connection
        if connection is not None and connection.has_room:
            waiting = _Waiting(command, done, context, loop.time() + ANSWER_S)
            if (alike := kin(command)) is None:
                connection.send(waiting.pack())
            else:
                connection.gather(alike, waiting)
            return
        if connection is None and not self._closed and len(self._unsent) < MAX_WAITING:
            waiting = _Waiting(command, done, context, loop.time() + UNSENT_S).pack()
            if self._unsent_bytes + waiting.size <= MAX_WAITING_BYTES:
                self._unsent_bytes += waiting.size
                self._unsent.append(waiting)
                self._connect()
                return
        problem = unavailable("more requests wait for Redis than this server holds; send it again. Nothing was changed")
        loop.call_soon(done, context, problem)

    async def execute(self, command: Command) -> Any:
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
                        connection = await _connect(address, self)
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
                        waiting.due = self._loop.time() + ANSWER_S
                        connection.send(waiting)
        finally:
            self._connecting = None

    def lost(self, connection: "_Connection") -> None:
        """The connection has ended; the next command opens another."""
        if self._connection is connection:
            self._connection = None
            if self.heard and not self._closed:
                self.heard(None)

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


class _Connection(asyncio.Protocol):
    """A connection to Redis whose handshake is being made, or is done."""

    def __init__(self, owner: Pipeline, loop: asyncio.AbstractEventLoop) -> None:
        self.has_room = True
        self._owner = owner
        self._loop = loop
        self._reader = hiredis.Reader()
        self._sent: deque[_Waiting] = deque()
        self._bytes = self._count = 0  # of the commands in _sent
        self._buffer: list[bytes] = []
        self._gathered: dict[Kin, dict[str | int, _Waiting]] = {}  # commands that are packed at the end of this turn
        self._is_scheduled = False  # the end of this turn
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

    def send(self, waiting: _Waiting) -> None:
        """Write a packed command with the others of this turn of the loop."""
        packed, waiting.packed = waiting.packed, b""
        self._bytes += waiting.size
        self._count += waiting.count
        self._sent.append(waiting)
        if self._bytes > MAX_WAITING_BYTES or self._count >= MAX_WAITING:
            self.has_room = False
        self._buffer.append(packed)
        self._schedule()

    def gather(self, alike: Kin, waiting: _Waiting) -> None:
        """Keep a command to the end of this turn of the loop, to send it with others of its kin as one (joint.py)."""
        gathered = self._gathered.setdefault(alike, {})
        place = place_among(waiting.command, len(gathered))
        if place in gathered:
            self.send(waiting.pack())
            return
        gathered[place] = waiting
        if len(gathered) == MAX_JOINED:
            self._send_joined(self._gathered.pop(alike))
        else:
            self._schedule()

    def _send_joined(self, gathered: dict[str | int, _Waiting]) -> None:
        joined = list(gathered.values())
        if len(joined) == 1:
            self.send(joined[0].pack())
            return
        command = join([waiting.command for waiting in joined])
        self.send(_Waiting(command, self._part, joined, joined[0].due, len(joined)).pack())

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _part(self, joined: list[_Waiting], outcomes: Any) -> None:
        """Give each of the commands that were sent as one its outcome; one that has none is sent by itself."""
        if isinstance(outcomes, Exception):
            outcomes = [outcomes] * len(joined)
        for waiting, outcome in zip(joined, outcomes, strict=True):
            if outcome is None:
                self.send(waiting.pack())
            else:
                waiting.tell(outcome)

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for alike in gathered.values():
            self._send_joined(alike)
        self._is_scheduled = False
        buffer, self._buffer = self._buffer, []
        if buffer and not self._transport.is_closing():
            self._transport.write(b"".join(buffer) if len(buffer) > 1 else buffer[0])

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
                waiting = sent.popleft()
                self._bytes -= waiting.size
                self._count -= waiting.count
                self.has_room = True
                if isinstance(reply, hiredis.ReplyError):
                    self._refused(waiting, reply)
                    continue
                try:
                    outcome = waiting.command.outcome(reply)
                except Exception as error:  # a Problem, or a bug of ours
                    outcome = error
                if type(outcome) is Again:
                    waiting.command = outcome.command
                    waiting.due = self._loop.time() + ANSWER_S
                    self.send(waiting.pack())
                    continue
                waiting.tell(outcome)
        except hiredis.ProtocolError:
            log.warning("what Redis sent is not its protocol; closing the connection")
            self.abort()

    def _pushed(self, push: Any) -> None:
        """Keys have changed; None: all of them. Source: the invalidation messages of CLIENT TRACKING."""
        kind, keys = push
        if kind == b"invalidate" and self._owner.heard:
            for key in (None,) if keys is None else keys:
                self._owner.heard(key)

    def _greeted(self, reply: Any) -> None:
        if self._greeting is None or self._greeting.done():
            self.abort()  # a reply that nobody asked for
        else:
            self._greeting.set_result(reply)

    def _refused(self, waiting: _Waiting, reply: Any) -> None:
        text = str(reply)
        if text.startswith("NOSCRIPT"):  # nothing was run, so this is not a second sending
            self.send(waiting.pack_as("EVAL", waiting.command.script.text))
        else:
            waiting.tell(problem_of_reply(text))

    def is_overdue(self, now: float) -> bool:
        return bool(self._sent) and self._sent[0].due <= now

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
        for waiting in (*sent, *(each for alike in gathered.values() for each in alike.values())):
            waiting.tell(unavailable(f"Redis did not answer; {UNKNOWN}"))

    def connection_lost(self, _: Exception | None) -> None:
        self.abort()


async def _connect(address: Address, owner: Pipeline) -> _Connection:
    """A connection that is ready for commands; raises OSError or hiredis.ReplyError."""
    loop = asyncio.get_running_loop()

    def make() -> _Connection:
        return _Connection(owner, loop)

    if address.path:
        _, connection = await loop.create_unix_connection(make, address.path)
    else:
        host, port = address.nodes[0]
        _, connection = await loop.create_connection(make, host, port, ssl=_tls(address) if address.tls else None)
    try:
        if address.password:
            await connection.greet(("AUTH", *filter(None, (address.user, address.password))))
        if address.database:
            await connection.greet(("SELECT", address.database))
        await connection.greet(("PING",))  # what keeps Redis from serving us shows here, before a command is sent
        if owner.heard:
            owner.is_told = await _track(connection)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _track(connection: _Connection) -> bool:
    """Have Redis say which keys change that are read on this connection; False where it cannot, or may not."""
    try:
        await connection.greet(("HELLO", 3))
        await connection.greet(("CLIENT", "TRACKING", "ON"))
    except hiredis.ReplyError as error:
        log.warning("Redis does not track keys for us, so changes are looked for all the time: %s", error)
        return False
    return True


def _tls(address: Address) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.ca_file)
    if not address.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _settle(answer: "asyncio.Future[Any]", outcome: Any) -> None:
    if answer.done():  # whoever asked has gone
        return
    if isinstance(outcome, Exception) and not isinstance(outcome, Problem):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
