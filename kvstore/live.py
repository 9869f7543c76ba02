"""Following paths: one reader of the change logs per process, fanned out to all who follow.

A follower is registered first, then its snapshot is taken, at a place in the log; changes that come meanwhile wait, and those
up to that place are dropped. So nothing falls between the snapshot and the changes, and nothing comes twice. When the log has
lost changes that were not read, the streams of that namespace are ended: their readers come back with the place they have, and
are told. Source: XREAD; https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis
import redis.asyncio

from kvstore.address import Address
from kvstore.changes import event, parse_entry
from kvstore.clients import close_sentinels, sentinels
from kvstore.containers import Changes, Follow, Place
from kvstore.errors import Problem, unavailable
from kvstore.following import HEARTBEAT_S, PAGE, begin, path_of, prefix
from kvstore.holding import Holding
from kvstore.paths import Path
from kvstore.pipeline import AsyncStore
from kvstore.presence import Hold
from kvstore.store import client_options

log = logging.getLogger("kvstore")

SWEEP_S = 1.0  # between looks for what has expired
BELL_S = 0.1  # that XREAD waits: a namespace that is followed anew is heard after that
POLL_S = 0.2  # between looks where XREAD cannot be used: a cluster, fakeredis
RETRY_S = 0.3  # after trouble with Redis
MAX_BUFFERED_BYTES = 1024 * 1024  # of a stream whose reader does not read; then it is dropped
MAX_WAITING_BYTES = 4 * 1024 * 1024  # of changes that come while a snapshot is read


async def _at_once() -> None:
    """There is room for more."""


class Follower:
    """One stream: `send` takes blocks, `end` closes it, `room` waits until its reader has taken what was sent before."""

    __slots__ = ("after", "end", "has_left", "hold", "is_ready", "path", "room", "send", "waiting", "waiting_bytes")

    def __init__(
        self,
        path: Path,
        send: Callable[[bytes], None],
        end: Callable[[], None],
        room: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        self.path = path
        self.send = send
        self.end = end
        self.room = room
        self.is_ready = False
        self.has_left = False
        self.hold: Hold | None = None
        self.after = (0, 0)  # the place up to which it has everything: the reader of the logs may be behind that
        self.waiting: list[tuple[tuple[int, int], bytes]] = []
        self.waiting_bytes = 0

    def deliver(self, order: tuple[int, int], changed: bytes) -> None:
        """A change, now or when the snapshot is through."""
        if self.is_ready:
            if order > self.after:
                self.send(changed)
        elif self.waiting_bytes < MAX_WAITING_BYTES:
            self.waiting.append((order, changed))
            self.waiting_bytes += len(changed)
        else:
            self.end()


class _Space:
    """A namespace that somebody follows."""

    def __init__(self, path: Path, place: str) -> None:
        self.path = path
        self.place = place
        self.swept = time.monotonic()
        self.documents: dict[str, set[Follower]] = {}
        self.containers: dict[str, set[Follower]] = {}

    def add(self, follower: Follower) -> None:
        table, name = self._table(follower.path)
        table.setdefault(name, set()).add(follower)

    def has(self, follower: Follower) -> bool:
        table, name = self._table(follower.path)
        return follower in table.get(name, ())

    def leave(self, follower: Follower) -> None:
        table, name = self._table(follower.path)
        table[name].discard(follower)
        if not table[name]:
            del table[name]

    def _table(self, path: Path) -> tuple[dict[str, set[Follower]], str]:
        return (self.containers, prefix(path)) if path.is_container else (self.documents, path.rest)

    def all(self) -> list[Follower]:
        return [one for some in (*self.documents.values(), *self.containers.values()) for one in some]

    def heard_by(self, rest: str) -> list[Follower]:
        """Who follows this document, or a container that it is below."""
        found = list(self.documents.get(rest, ()))
        at = 0
        while True:
            found += self.containers.get(rest[:at], ())
            at = rest.find("/", at) + 1
            if not at:
                return found


def _order(place: str) -> tuple[int, int]:
    ms, _, count = place.partition("-")
    return int(ms), int(count)


class Hub:
    """The followers of one event loop, and the one reader of the logs that serves them."""

    def __init__(self, store: AsyncStore, address: Address, max_streams: int) -> None:
        self._store = store
        self._bell = _Bell(address)
        self._holding = Holding(store)
        self._max_streams = max_streams
        self._is_closed = False
        self._spaces: dict[str, _Space] = {}
        self._opening = asyncio.Lock()
        self._count = 0
        self._reader: asyncio.Task[None] | None = None
        self._heart: asyncio.Task[None] | None = None

    async def follow(self, follow: Follow, follower: Follower) -> None:
        """Send a follower its snapshot, or what it has missed, and every change from then on; raises Problem before that."""
        await self._register(follower, follow.hold)
        if follower.has_left:
            return
        try:
            place = await self._begin(follow, follower)
        except BaseException:
            self.leave(follower)
            raise
        if follower.has_left:
            return
        follower.after = _order(place)
        follower.is_ready = True
        waiting, follower.waiting = follower.waiting, []
        for order, changed in waiting:
            follower.deliver(order, changed)

    async def listen(self, follower: Follower) -> None:
        """Send a follower every change from now on, without a snapshot; raises Problem."""
        follower.is_ready = True
        follower.has_left = False  # it may have been here before
        await self._register(follower, None)

    async def _register(self, follower: Follower, hold: Hold | None) -> None:
        self._check_open()
        if self._count >= self._max_streams:
            raise unavailable("this server has as many streams as it holds; come back later")
        self._count += 1
        try:
            if hold:
                await self._holding.begin(hold, follower.end)
                follower.hold = hold
            space = await self._space(follower.path)
            self._check_open()
        except BaseException:
            self._count -= 1
            self._release(follower)
            raise
        space.add(follower)
        if follower.has_left:  # while this was held up
            self.leave(follower)

    def leave(self, follower: Follower) -> None:
        """The stream has ended; a second time does nothing."""
        follower.has_left = True
        space = self._spaces.get(follower.path.namespace)
        if space is None or not space.has(follower):
            return
        self._count -= 1
        self._release(follower)
        space.leave(follower)
        if not space.documents and not space.containers:
            del self._spaces[follower.path.namespace]

    def _check_open(self) -> None:
        if self._is_closed:
            raise unavailable("this server is stopping; come back")

    def _release(self, follower: Follower) -> None:
        if follower.hold:
            self._holding.leave(follower.hold, follower.end)

    async def close(self) -> None:
        """End all streams and the reader, and release what was held."""
        self._is_closed = True
        for space in list(self._spaces.values()):
            self._end(space)
        tasks = [task for task in (self._reader, self._heart) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._bell.close()
        await self._holding.close()

    async def _space(self, path: Path) -> _Space:
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
            self._heart = asyncio.create_task(self._beat())
        async with self._opening:
            space = self._spaces.get(path.namespace)
            if space is None:
                at = await self._store.execute(Place(path))
                space = self._spaces[path.namespace] = _Space(path, at.place)
            return space

    async def _begin(self, follow: Follow, follower: Follower) -> str:
        """Send what a stream begins with, and return the place in the log after which changes are to follow.

        It is sent as fast as it is read, and no further where the reader has left: then the place is "".
        """
        steps, answer = begin(follow), None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, bytes):
                    follower.send(step)
                    await follower.room()
                    if follower.has_left:
                        return ""
                else:
                    answer = await self._store.execute(step)
        except StopIteration as done:
            place: str = done.value
            return place

    async def _read(self) -> None:
        """Read the logs of what is followed, as long as this process lives."""
        while True:
            try:
                heard = await self._bell.wait({name: (space.path, space.place) for name, space in self._spaces.items()})
                now = time.monotonic()
                for name, space in list(self._spaces.items()):
                    if name in heard or now - space.swept > SWEEP_S:
                        space.swept = now
                        await self._catch_up(space)
            except (Problem, OSError, redis.RedisError, TimeoutError) as error:
                log.warning("following is held up: %s", error)
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("following is held up by a bug of ours")
                await asyncio.sleep(RETRY_S)

    async def _catch_up(self, space: _Space) -> None:
        while True:
            entries = await self._store.execute(Changes(space.path, space.place, PAGE))
            if entries is None:
                log.warning("a change log was trimmed before it was read; its streams are ended, and their readers told")
                self._end(space)
                return
            for entry in entries:
                change = parse_entry(entry)
                followers = space.heard_by(change.rest)
                if followers:
                    changed, order = event(path_of(space.path, change), change), _order(change.id)
                    for follower in followers:
                        follower.deliver(order, changed)
                space.place = change.id
            if len(entries) < PAGE:
                return

    async def _beat(self) -> None:
        """A sign of life for every reader, which moves the place of one that heard nothing."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for space in list(self._spaces.values()):
                beat, order = b"id: %b\n\n" % space.place.encode(), _order(space.place)
                for follower in space.all():
                    if follower.is_ready:  # one that is ahead of the reader keeps its place
                        follower.send(beat if order >= follower.after else b":\n\n")

    def _end(self, space: _Space) -> None:
        for follower in space.all():
            follower.end()
            self.leave(follower)


class _Bell:
    """Rings when one of several logs has grown, by XREAD on a connection of its own; where that cannot be, every POLL_S."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connection: Any = None

    async def wait(self, spaces: dict[str, tuple[Path, str]]) -> set[str]:
        """The namespaces of which the log has grown past its place; perhaps too many, perhaps none."""
        if not spaces:
            await asyncio.sleep(BELL_S)
            return set()
        if self._address.kind in ("cluster", "fake"):
            await asyncio.sleep(POLL_S)
            return set(spaces)
        by_log = {path.keys.log.encode(): name for name, (path, _) in spaces.items()}
        logs, places = [path.keys.log for path, _ in spaces.values()], [place for _, place in spaces.values()]
        try:
            if self._connection is None:
                self._connection = await self._connect()
            await self._connection.send_command("XREAD", "COUNT", 1, "BLOCK", int(BELL_S * 1000), "STREAMS", *logs, *places)
            async with asyncio.timeout(5.0):
                reply = await self._connection.read_response()
        except BaseException:
            await self.close()
            raise
        return {by_log[log] for log, _ in reply or ()}

    async def _connect(self) -> Any:
        options = client_options(self._address)
        if self._address.kind == "sentinel":
            client = sentinels(self._address)
            try:
                options["host"], options["port"] = await client.discover_master(self._address.primary)
            finally:
                await close_sentinels(client)
        elif not self._address.path:
            options["host"], options["port"] = self._address.nodes[0]
        kind: Any = redis.asyncio.SSLConnection if self._address.tls else redis.asyncio.Connection
        if self._address.path:
            kind = redis.asyncio.UnixDomainSocketConnection
            options["path"] = self._address.path
        connection = kind(**options)
        await connection.connect()
        return connection

    async def close(self) -> None:
        """Close the connection; the next wait() opens another."""
        connection, self._connection = self._connection, None
        if connection:
            await connection.disconnect(nowait=True)
