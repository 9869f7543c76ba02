"""One connection to a Redis: packs what one turn of the event loop asks into one write, and matches the replies.

Replies come in the order of the commands, so matching them is taking the oldest. Source:
https://redis.io/docs/latest/develop/reference/protocol-spec/, EVALSHA, EVAL, AUTH, SELECT, CLIENT TRACKING.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import hiredis

from kvstore.commands.base import Again, Command, Outcome
from kvstore.commands.bulk import CoalescingKey, coalesce, slot_among
from kvstore.core.errors import UNKNOWN, problem_of_reply, unavailable
from kvstore.core.redis_url import Address

log = logging.getLogger("kvstore")

ANSWER_S = 3.5  # from sending a command to its reply; with UNSENT_S under the 6 s in which a client is told
MAX_COALESCED = 64  # commands sent as one: more of them would gain little, and hold Redis up for the other clients
MAX_WAITING = 20_000  # commands without a reply
MAX_WAITING_BYTES = 64 * 1024 * 1024  # of commands without a reply

Context = TypeVar("Context")

Done: TypeAlias = Callable[[Context, Outcome | Exception], None]  # what a command is submitted with, to be told its outcome


class PendingCommand:
    """A command without a reply: what to call with its outcome, and when that is overdue."""

    __slots__ = ("command", "context", "count", "done", "due", "packed", "size")

    def __init__(self, command: Command[Any], done: Done[Any, Any], context: Any, due: float, count: int = 1) -> None:
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

    def pack(self) -> "PendingCommand":
        """Put the command into Redis's protocol, by EVALSHA."""
        return self.pack_as("EVALSHA", self.command.script.sha)

    def pack_as(self, *script: str) -> "PendingCommand":
        """The same, by EVALSHA or EVAL."""
        command = self.command
        keys = command.keys
        words: tuple[Any, ...] = (*script, len(keys), *keys, *command.arguments)
        self.packed = hiredis.pack_command(words)
        self.size = len(self.packed)
        return self


class Owner(Protocol):
    """Whoever opened a connection: is told when it is lost and, where it wants that, which keys have changed."""

    on_invalidate: Callable[[bytes | None], None] | None
    is_tracking: bool

    def lost(self, connection: "RedisConnection") -> None: ...


class RedisConnection(asyncio.Protocol):
    """A connection to Redis whose handshake is being made, or is done."""

    def __init__(self, owner: Owner, loop: asyncio.AbstractEventLoop) -> None:
        self.has_room = True
        self._owner = owner
        self._loop = loop
        self._reader = hiredis.Reader()
        self._sent: deque[PendingCommand] = deque()
        self._bytes = self._count = 0  # of the commands in _sent
        self._buffer: list[bytes] = []
        self._gathered: dict[
            CoalescingKey, dict[str | int, PendingCommand]
        ] = {}  # commands that are packed at the end of this turn
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

    def send(self, waiting: PendingCommand) -> None:
        """Write a packed command with the others of this turn of the loop."""
        packed, waiting.packed = waiting.packed, b""
        self._bytes += waiting.size
        self._count += waiting.count
        self._sent.append(waiting)
        if self._bytes > MAX_WAITING_BYTES or self._count >= MAX_WAITING:
            self.has_room = False
        self._buffer.append(packed)
        self._schedule()

    def gather(self, key: CoalescingKey, waiting: PendingCommand) -> None:
        """Keep a command to the end of this turn of the loop, to send it with others of its kin as one (commands/bulk.py)."""
        gathered = self._gathered.setdefault(key, {})
        slot = slot_among(waiting.command, len(gathered))
        if slot in gathered:
            self.send(waiting.pack())
            return
        gathered[slot] = waiting
        if len(gathered) == MAX_COALESCED:
            self._send_coalesced(self._gathered.pop(key))
        else:
            self._schedule()

    def _send_coalesced(self, gathered: dict[str | int, PendingCommand]) -> None:
        coalesced = list(gathered.values())
        if len(coalesced) == 1:
            self.send(coalesced[0].pack())
            return
        command = coalesce([waiting.command for waiting in coalesced])
        self.send(PendingCommand(command, self._part, coalesced, coalesced[0].due, len(coalesced)).pack())

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _part(self, coalesced: list[PendingCommand], outcomes: Any) -> None:
        """Give each of the commands that were sent as one its outcome; one that has none is sent by itself."""
        if isinstance(outcomes, Exception):
            outcomes = [outcomes] * len(coalesced)
        for waiting, outcome in zip(coalesced, outcomes, strict=True):
            if outcome is None:
                self.send(waiting.pack())
            else:
                waiting.tell(outcome)

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for key in gathered.values():
            self._send_coalesced(key)
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
        if kind == b"invalidate" and self._owner.on_invalidate:
            for key in (None,) if keys is None else keys:
                self._owner.on_invalidate(key)

    def _greeted(self, reply: Any) -> None:
        if self._greeting is None or self._greeting.done():
            self.abort()  # a reply that nobody asked for
        else:
            self._greeting.set_result(reply)

    def _refused(self, waiting: PendingCommand, reply: Any) -> None:
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
        for waiting in (*sent, *(each for key in gathered.values() for each in key.values())):
            waiting.tell(unavailable(f"Redis did not answer; {UNKNOWN}"))

    def connection_lost(self, _: Exception | None) -> None:
        self.abort()


async def open_connection(address: Address, owner: Owner) -> RedisConnection:
    """A connection that is ready for commands; raises OSError or hiredis.ReplyError."""
    loop = asyncio.get_running_loop()

    def make() -> RedisConnection:
        return RedisConnection(owner, loop)

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
        if owner.on_invalidate:
            owner.is_tracking = await _track(connection)
    except BaseException:
        connection.abort()
        raise
    return connection


async def _track(connection: RedisConnection) -> bool:
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
