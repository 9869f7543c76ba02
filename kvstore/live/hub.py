"""The hub: delivers the changes that `log_reader.py` reads to all subscribers of one event loop.

A subscriber is registered first; then its snapshot is read, which has a position in the change log. Changes that come
meanwhile wait, and those up to that position are dropped. So none is missed between the snapshot and the changes, and none
comes twice. If a log has lost changes that were not read, the streams of that namespace end: their readers resume from the last
id that they have, and get a `reset`. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

import asyncio
import logging
from itertools import cycle
from time import perf_counter, time

from kvstore.commands.base import RedisReply
from kvstore.commands.changelog import GetLogPosition, LogPosition, changed_name, is_change, parse_entry
from kvstore.commands.charges import StreamPlace
from kvstore.commands.presence import Hold
from kvstore.commands.subscriptions import Follow
from kvstore.core.errors import Forbidden, Unauthorized, unavailable
from kvstore.core.paths import Path
from kvstore.core.redis_url import Address
from kvstore.http.events import event
from kvstore.live.client_streams import ClientStreams
from kvstore.live.evaluator import TURN_S, Evaluator
from kvstore.live.log_reader import LogReader, Reading
from kvstore.live.presence import Holding
from kvstore.live.stream_session import HEARTBEAT_S, begin, path_of
from kvstore.live.subscribers import Audience, Changed, Namespace, Subscriber, order_of
from kvstore.stores.pipelined import AsyncStore

log = logging.getLogger("kvstore")

BEATS = 480  # parts of a heartbeat's period, each for some of the subscribers: thousands at once would delay other requests
LATE_S = 0.1  # of the loop's clock, at most: who comes back must not find the token valid for another moment
EXPIRED = b": the token has expired; come back with a new one\n\n"
REVOKED = b": the rules no longer permit this stream\n\n"
MAX_BUFFERED_BYTES = 1024 * 1024  # that the reader of a stream may leave unread; above, the stream is cut
MAX_PARTS = 10_000  # further paths of streams, in a process: as many as it holds streams, by default


class Hub:
    """The subscribers of one event loop, and the one log reader that serves them."""

    def __init__(self, store: AsyncStore, address: Address, max_streams: int) -> None:
        self._store = store
        self._logs = LogReader(store, address, on_changes=self._changed, on_lost=self._lose)
        self._evaluator = Evaluator(self._end_selective)
        self._holding = Holding(store)
        self._client_streams = ClientStreams[Subscriber](store)
        self._max_streams = max_streams
        self._free = {False: max_streams, True: MAX_PARTS}  # for streams, and for further paths of streams
        self._is_closed = False
        self._namespaces: dict[str, Namespace] = {}
        self._opening: dict[str, asyncio.Task[LogPosition]] = {}
        self._beats = [set[Subscriber]() for _ in range(BEATS)]
        self._beating = 0  # the index of the part that is next
        self._turn = cycle(range(BEATS // 2))
        self._heart: asyncio.Task[None] | None = None

    @property
    def subscriptions(self) -> int:
        """How many subscribers there are: streams, and those of long polls."""
        return self._max_streams - self._free[False]

    async def follow(self, follow: Follow, subscriber: Subscriber) -> None:
        """Send a subscriber its snapshot, or what it has missed, then every change; raises Problem before the first block.

        The stream ends when the rules no longer permit it, and when its token expires.
        """
        if follow.permit:
            await self._store.execute(follow.permit)
        if follow.charge:
            await self._store.execute(follow.charge)
        await self._register(subscriber, follow.holds, follow.place)
        if subscriber.has_left:
            return
        subscriber.permit = follow.permit
        if follow.expires_at_s is not None:
            left_s = max(0.0, follow.expires_at_s - time()) + LATE_S
            subscriber.expiry = asyncio.get_running_loop().call_later(left_s, self._revoke, subscriber, EXPIRED)
        try:
            position = await self._begin(follow, subscriber)
        except BaseException:
            self.leave(subscriber)
            raise
        if subscriber.has_left:
            return
        subscriber.after = order_of(position)
        while subscriber.waiting:  # others may come meanwhile
            if piece := subscriber.take_waiting():
                subscriber.send(piece)
            await subscriber.room()
            if subscriber.has_left:
                return
        subscriber.is_ready = True

    async def listen(self, subscriber: Subscriber, *, is_taker: bool) -> None:
        """Send a subscriber every change from now on, without a snapshot; raises Problem.

        A taker also gets an empty block when a job is released.
        """
        subscriber.is_ready = True
        subscriber.has_left = False  # after an earlier subscription
        await self._register(subscriber, (), None)
        if is_taker and not subscriber.has_left:
            self._namespaces[subscriber.path.namespace].takers.add(subscriber)

    async def _register(self, subscriber: Subscriber, holds: tuple[Hold, ...], place: StreamPlace | None) -> None:
        self._check_open()
        if not self._free[subscriber.is_part]:
            raise unavailable("this server has as many streams as it holds; come back later")
        self._free[subscriber.is_part] -= 1
        try:
            if place:
                await self._client_streams.begin(subscriber, place)
            for hold in holds:
                await self._holding.begin(hold, subscriber.end)
                subscriber.holds.append(hold)
            space = await self._namespace(subscriber.path)
        except BaseException:
            self._free[subscriber.is_part] += 1
            self._release(subscriber)
            raise
        space.add(subscriber)
        subscriber.beat = self._beats[self._beating - 1 - next(self._turn)]  # a full period from now, or less
        subscriber.beat.add(subscriber)
        if subscriber.has_left:  # meanwhile
            self.leave(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        """Remove a stream that has ended; does nothing the second time."""
        subscriber.has_left = True
        if subscriber.expiry:
            subscriber.expiry.cancel()
        if subscriber not in subscriber.beat:
            return
        subscriber.beat.discard(subscriber)
        self._free[subscriber.is_part] += 1
        self._release(subscriber)
        space = self._namespaces[subscriber.path.namespace]
        space.leave(subscriber)
        if space.is_empty:
            self._drop(space)

    def _drop(self, space: Namespace) -> None:
        """Remove a namespace without subscribers."""
        del self._namespaces[space.reading.path.namespace]
        self._logs.drop(space.reading)

    def _check_open(self) -> None:
        if self._is_closed:
            raise unavailable("this server is stopping; come back")

    def _release(self, subscriber: Subscriber) -> None:
        self._client_streams.leave(subscriber)
        for hold in subscriber.holds:
            self._holding.leave(hold, subscriber.end)

    async def close(self) -> None:
        """End all streams and the log reader, and release what is held."""
        self._is_closed = True
        for space in list(self._namespaces.values()):
            self._lose(space.reading)
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        if self._heart:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        await self._evaluator.close()
        await self._logs.close()
        await self._holding.close()
        await self._client_streams.close()

    async def _namespace(self, path: Path) -> Namespace:
        """The namespace of a path. Its log is read from now on, so the caller adds a subscriber before it awaits anything."""
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat())
        name = path.namespace
        if name not in self._namespaces:
            if name not in self._opening:
                container = path._replace(is_container=True)  # without the document at the path
                self._opening[name] = asyncio.create_task(self._store.execute(GetLogPosition(container)))
                self._opening[name].add_done_callback(lambda _: self._opening.pop(name))
            at = await asyncio.shield(self._opening[name])
            self._check_open()
            if name not in self._namespaces:  # another call may have opened it meanwhile
                self._namespaces[name] = Namespace(self._logs.read(path, at.position))
        return self._namespaces[name]

    async def _begin(self, follow: Follow, subscriber: Subscriber) -> str:
        """Send the beginning of a stream as fast as it is read; returns the position after which changes follow.

        Returns "" if the reader has left meanwhile.
        """
        steps, answer, has_begun, turn_ends = begin(follow), None, False, 0.0
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, bytes):
                    subscriber.send(step)
                    has_begun = True
                    await subscriber.room()
                    if subscriber.has_left:
                        return ""
                elif step is None:
                    if perf_counter() >= turn_ends:
                        await asyncio.sleep(0)
                        turn_ends = perf_counter() + TURN_S
                else:
                    subscriber.awaits_page = has_begun
                    answer = await self._store.execute(step)
                    subscriber.awaits_page = False
        except StopIteration as done:
            position: str = done.value
            return position

    async def _beat(self) -> None:
        """Send heartbeats for ever, as many as are due, also if the event loop is late."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await asyncio.sleep(HEARTBEAT_S / BEATS)
            due = max(due, loop.time() - HEARTBEAT_S)  # at most one for each subscriber, however late
            while due <= loop.time():
                self._send_beats()
                due += HEARTBEAT_S / BEATS

    def _send_beats(self) -> None:
        """Send the heartbeats of the next part. A heartbeat has an id, so that a reader without changes resumes from there."""
        for subscriber in tuple(self._beats[self._beating]):
            if subscriber.has_left:  # meanwhile: a stream that ends takes all of its paths along
                continue
            try:
                self._send_beat(subscriber)
            except Exception:  # it is no concern of the others
                log.exception("a heartbeat was not sent by a bug of ours; the stream ends")
                subscriber.end()
                self.leave(subscriber)
        self._beating = (self._beating + 1) % BEATS

    def _send_beat(self, subscriber: Subscriber) -> None:
        if subscriber.permit:
            self._store.submit(subscriber.permit, self._judged, subscriber)
        if subscriber.is_ready:  # one that is ahead of the log reader, or of what it was sent, keeps its position
            space = self._namespaces[subscriber.path.namespace]
            position = space.reading.position
            is_ahead = subscriber.after > order_of(position) or space.has_unseen(subscriber)
            subscriber.send(b":\n\n" if is_ahead else b"id: %b\n\n" % position.encode())
        elif subscriber.awaits_page:  # it may be one of a query, which waits for others
            subscriber.send(b":\n\n")

    def _judged(self, subscriber: Subscriber, outcome: object) -> None:
        """End a stream that the rules no longer permit. While Redis is away they are not known, and nothing is sent either."""
        if isinstance(outcome, Unauthorized | Forbidden):
            self._revoke(subscriber, REVOKED)

    def _revoke(self, subscriber: Subscriber, why: bytes) -> None:
        if not subscriber.has_left:
            subscriber.send(why)
            subscriber.end()
            self.leave(subscriber)

    # Called by the log reader

    def _changed(self, reading: Reading, entries: list[RedisReply], released: bytes) -> None:
        """Deliver changes. Only those with subscribers are decoded, and what a subscriber gets is sent in one write."""
        space = self._namespaces[reading.path.namespace]
        found: dict[Audience, list[Changed]] = {}
        for entry in entries:
            if not is_change(entry) or not (audiences := space.audiences_of(changed_name(entry))):
                continue
            if change := parse_entry(entry):
                changed = order_of(change.id), event(path_of(reading.path, change), change)
                for audience in audiences:
                    found.setdefault(audience, []).append(changed)
        for audience, changes in found.items():
            audience.deliver(changes)
        if space.selective and entries:
            self._evaluator.add(space, entries)
        if space.released != released:
            space.released = released
            for subscriber in tuple(space.takers):
                subscriber.send(b"")

    def _end_selective(self, space: Namespace) -> None:
        """End the streams with conditions of a namespace; their readers resume from the id that they have."""
        for subscriber in space.all_selective():
            subscriber.end()
            self.leave(subscriber)

    def _lose(self, reading: Reading) -> None:
        """End the streams of a namespace whose log has lost changes; their readers resume from the id that they have."""
        space = self._namespaces.get(reading.path.namespace)
        if space is None:  # the end of another namespace has ended its streams
            return
        for subscriber in space.all():
            subscriber.end()
            self.leave(subscriber)
        if self._namespaces.get(reading.path.namespace) is space:  # a subscriber that comes later opens it again
            self._drop(space)
