"""Following paths: what the one reader of the change logs (`log_reader.py`) finds, fanned out to all who follow.

A follower is registered first, then its snapshot is taken, at a place in the log; changes that come meanwhile wait, and those
up to that place are dropped. So nothing falls between the snapshot and the changes, and nothing comes twice. When the log has
lost changes that were not read, the streams of that namespace are ended: their readers come back with the place they have, and
are told. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import cycle

from kvstore.commands.base import RedisReply
from kvstore.commands.changelog import GetLogPosition, LogPosition, changed_name, is_change, parse_entry
from kvstore.commands.presence import Hold
from kvstore.commands.subscriptions import Follow
from kvstore.core.errors import unavailable
from kvstore.core.paths import Path
from kvstore.core.redis_url import Address
from kvstore.http.events import event
from kvstore.live.log_reader import LogReader, Reading
from kvstore.live.presence import Holding
from kvstore.live.stream_session import HEARTBEAT_S, begin, path_of, prefix
from kvstore.stores.pipelined import AsyncStore

BEATS = 480  # parts of a heartbeat's period, in each of which some followers have theirs: thousands at once hold up others
MAX_JOINED_BYTES = 64 * 1024  # of changes that are sent to a follower at once
MAX_BUFFERED_BYTES = 1024 * 1024  # of a stream whose reader does not read; then it is dropped
MAX_WAITING_BYTES = 4 * 1024 * 1024  # of changes that come while a snapshot is read


Changed = tuple[tuple[int, int], bytes]  # the place of a change, and its event


async def _at_once() -> None:
    """There is room for more."""


class Subscriber:
    """One stream: `send` takes blocks, `end` closes it, `room` waits until its reader has taken what was sent before."""

    __slots__ = ("after", "beat", "end", "has_left", "hold", "is_ready", "path", "room", "send", "waiting", "waiting_bytes")

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
        self.waiting: list[Changed] = []
        self.waiting_bytes = 0
        self.beat: set[Subscriber] = set()  # those who have their heartbeat together

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

    def take_waiting(self) -> bytes:
        """As many of the changes that wait as are sent at once, but for those that the snapshot has."""
        piece, taken = b"", 0
        for order, changed in self.waiting:
            if len(piece) >= MAX_JOINED_BYTES:
                break
            taken += 1
            self.waiting_bytes -= len(changed)
            piece += changed if order > self.after else b""
        del self.waiting[:taken]
        return piece


class _Audience:
    """All who follow one path."""

    __slots__ = ("subscribers",)

    def __init__(self) -> None:
        self.subscribers: set[Subscriber] = set()

    def deliver(self, changes: list[Changed]) -> None:
        """Send changes that were read together: to most followers in one piece, which costs as much as one change."""
        if sum(len(changed) for _, changed in changes) > MAX_JOINED_BYTES and len(changes) > 1:
            middle = len(changes) // 2
            self.deliver(changes[:middle])
            self.deliver(changes[middle:])
            return
        first = changes[0][0]
        joined = b"".join([changed for _, changed in changes])
        for subscriber in tuple(self.subscribers):
            if subscriber.is_ready and first > subscriber.after:
                subscriber.send(joined)
            else:
                for order, changed in changes:
                    subscriber.deliver(order, changed)


class _Namespace:
    """A namespace that somebody follows."""

    __slots__ = ("containers", "documents", "reading", "released", "takers")

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.documents: dict[str, _Audience] = {}
        self.containers: dict[str, _Audience] = {}
        self.takers: set[Subscriber] = set()  # those of them who wait for jobs
        self.released = b""  # the place in what was given back

    def add(self, subscriber: Subscriber) -> None:
        table, name = self._table(subscriber.path)
        table.setdefault(name, _Audience()).subscribers.add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        table, name = self._table(subscriber.path)
        table[name].subscribers.discard(subscriber)
        self.takers.discard(subscriber)
        if not table[name].subscribers:
            del table[name]

    def _table(self, path: Path) -> tuple[dict[str, _Audience], str]:
        return (self.containers, prefix(path)) if path.is_container else (self.documents, path.name)

    def all(self) -> list[Subscriber]:
        audiences = (*self.documents.values(), *self.containers.values())
        return [subscriber for audience in audiences for subscriber in audience.subscribers]

    def heard_by(self, name: str) -> list[_Audience]:
        """Who follows this document, or a container that it is below."""
        found = [self.documents[name]] if name in self.documents else []
        containers, at = self.containers, 0
        while containers:
            if audience := containers.get(name[:at]):
                found.append(audience)
            at = name.find("/", at) + 1
            if not at:
                break
        return found


def _order(position: str) -> tuple[int, int]:
    ms, _, count = position.partition("-")
    return int(ms), int(count)


class Hub:
    """The followers of one event loop, and the one reader of the logs that serves them."""

    def __init__(self, store: AsyncStore, address: Address, max_streams: int) -> None:
        self._store = store
        self._logs = LogReader(store, address, on_changes=self._changed, on_lost=self._lose)
        self._holding = Holding(store)
        self._max_streams = max_streams
        self._is_closed = False
        self._namespaces: dict[str, _Namespace] = {}
        self._opening: dict[str, asyncio.Task[LogPosition]] = {}
        self._count = 0
        self._beats = [set[Subscriber]() for _ in range(BEATS)]
        self._beating = 0  # which of them has its heartbeat next
        self._turn = cycle(range(BEATS // 2))
        self._heart: asyncio.Task[None] | None = None

    async def follow(self, follow: Follow, subscriber: Subscriber) -> None:
        """Send a follower its snapshot, or what it has missed, and every change from then on; raises Problem before that."""
        await self._register(subscriber, follow.hold)
        if subscriber.has_left:
            return
        try:
            position = await self._begin(follow, subscriber)
        except BaseException:
            self.leave(subscriber)
            raise
        if subscriber.has_left:
            return
        subscriber.after = _order(position)
        while subscriber.waiting:  # more may come meanwhile
            if piece := subscriber.take_waiting():
                subscriber.send(piece)
            await subscriber.room()
            if subscriber.has_left:
                return
        subscriber.is_ready = True

    async def listen(self, subscriber: Subscriber, *, is_taker: bool) -> None:
        """Send a follower every change from now on, without a snapshot, and a taker an empty block when a job is given back.

        Raises Problem.
        """
        subscriber.is_ready = True
        subscriber.has_left = False  # it may have been here before
        await self._register(subscriber, None)
        if is_taker and not subscriber.has_left:
            self._namespaces[subscriber.path.namespace].takers.add(subscriber)

    async def _register(self, subscriber: Subscriber, hold: Hold | None) -> None:
        self._check_open()
        if self._count >= self._max_streams:
            raise unavailable("this server has as many streams as it holds; come back later")
        self._count += 1
        try:
            if hold:
                await self._holding.begin(hold, subscriber.end)
                subscriber.hold = hold
            space = await self._namespace(subscriber.path)
        except BaseException:
            self._count -= 1
            self._release(subscriber)
            raise
        space.add(subscriber)
        subscriber.beat = self._beats[self._beating - 1 - next(self._turn)]  # it has just heard something
        subscriber.beat.add(subscriber)
        if subscriber.has_left:  # while this was held up
            self.leave(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        """The stream has ended; a second time does nothing."""
        subscriber.has_left = True
        if subscriber not in subscriber.beat:
            return
        subscriber.beat.discard(subscriber)
        self._count -= 1
        self._release(subscriber)
        space = self._namespaces[subscriber.path.namespace]
        space.leave(subscriber)
        if not space.documents and not space.containers:
            self._drop(space)

    def _drop(self, space: _Namespace) -> None:
        """Nobody follows the namespace any more."""
        del self._namespaces[space.reading.path.namespace]
        self._logs.drop(space.reading)

    def _check_open(self) -> None:
        if self._is_closed:
            raise unavailable("this server is stopping; come back")

    def _release(self, subscriber: Subscriber) -> None:
        if subscriber.hold:
            self._holding.leave(subscriber.hold, subscriber.end)

    async def close(self) -> None:
        """End all streams and the reader, and release what was held."""
        self._is_closed = True
        for space in list(self._namespaces.values()):
            self._lose(space.reading)
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        if self._heart:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        await self._logs.close()
        await self._holding.close()

    async def _namespace(self, path: Path) -> _Namespace:
        """The namespace of a path. Its log is read from now on, so who is to follow it is added before anybody has a turn."""
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat())
        name = path.namespace
        if name not in self._namespaces:
            if name not in self._opening:
                container = path._replace(is_container=True)  # what is stored at the path does not matter
                self._opening[name] = asyncio.create_task(self._store.execute(GetLogPosition(container)))
                self._opening[name].add_done_callback(lambda _: self._opening.pop(name))
            at = await asyncio.shield(self._opening[name])
            self._check_open()
            if name not in self._namespaces:  # of several who waited the first opens it
                self._namespaces[name] = _Namespace(self._logs.read(path, at.position))
        return self._namespaces[name]

    async def _begin(self, follow: Follow, subscriber: Subscriber) -> str:
        """Send what a stream begins with, and return the place in the log after which changes are to follow.

        It is sent as fast as it is read, and no further where the reader has left: then the place is "".
        """
        steps, answer = begin(follow), None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, bytes):
                    subscriber.send(step)
                    await subscriber.room()
                    if subscriber.has_left:
                        return ""
                else:
                    answer = await self._store.execute(step)
        except StopIteration as done:
            position: str = done.value
            return position

    async def _beat(self) -> None:
        """A sign of life for every reader, as often as is due, however late the loop wakes us."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await asyncio.sleep(HEARTBEAT_S / BEATS)
            due = max(due, loop.time() - HEARTBEAT_S)  # once for each, after a time in which nothing ran
            while due <= loop.time():
                self._send_beats()
                due += HEARTBEAT_S / BEATS

    def _send_beats(self) -> None:
        """The next part of them; a heartbeat moves the place of a reader that heard nothing."""
        for subscriber in tuple(self._beats[self._beating]):
            if subscriber.is_ready:  # one that is ahead of the reader keeps its place
                position = self._namespaces[subscriber.path.namespace].reading.position
                is_ahead = subscriber.after > _order(position)
                subscriber.send(b":\n\n" if is_ahead else b"id: %b\n\n" % position.encode())
        self._beating = (self._beating + 1) % BEATS

    # What the reader of the logs calls

    def _changed(self, reading: Reading, entries: list[RedisReply], released: bytes) -> None:
        """Send changes to who follows them. Only what somebody follows is decoded; all that a follower gets is sent at once."""
        space = self._namespaces[reading.path.namespace]
        heard: dict[_Audience, list[Changed]] = {}
        for entry in entries:
            if not is_change(entry) or not (audiences := space.heard_by(changed_name(entry))):
                continue
            if change := parse_entry(entry):
                changed = _order(change.id), event(path_of(reading.path, change), change)
                for audience in audiences:
                    heard.setdefault(audience, []).append(changed)
        for audience, changes in heard.items():
            audience.deliver(changes)
        if space.released != released:
            space.released = released
            for subscriber in tuple(space.takers):
                subscriber.send(b"")

    def _lose(self, reading: Reading) -> None:
        """Changes are lost: the streams end, and their readers come back with the place they have."""
        space = self._namespaces[reading.path.namespace]
        for subscriber in space.all():
            subscriber.end()
            self.leave(subscriber)
        if self._namespaces.get(reading.path.namespace) is space:  # who is on the way to it opens it again
            self._drop(space)
