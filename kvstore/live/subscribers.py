"""The subscribers of one event loop: who follows which path of a namespace, and what each of them has been sent.

They do no I/O of their own: `hub.py` reads the change log and calls them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

from kvstore.commands.base import RedisReply
from kvstore.commands.guarded import Guarded
from kvstore.commands.presence import Hold
from kvstore.core.paths import Path
from kvstore.live.log_reader import Reading
from kvstore.live.selections import Key, Selection
from kvstore.live.stream_session import prefix

MAX_JOINED_BYTES = 64 * 1024  # of changes in one write to a subscriber
MAX_AT_ONCE = 64  # subscribers that are sent a change in one turn of the event loop: some 0.4 ms
MAX_WAITING_BYTES = 4 * 1024 * 1024  # of changes that wait for the end of a snapshot, or for the turn of a subscriber

log = logging.getLogger("kvstore")

Order: TypeAlias = tuple[int, int]  # a position in the change log, as numbers
Changed: TypeAlias = tuple[Order, bytes]  # the position of a change, and its event
Joined: TypeAlias = tuple[int, int, list[bytes]]  # from which change to which, in blocks
NOTHING: Joined = (0, 0, [])


async def _at_once() -> None:
    """Return at once: there is always room."""


class Subscriber:
    """One stream: `send` takes blocks, `end` ends it, `room` waits until its reader has read what was sent."""

    __slots__ = (
        *("after", "beat", "end", "expiry", "has_left", "holds", "is_ready", "is_part", "path", "permit", "room", "send"),
        *("audience", "awaits_page", "seen", "selection", "waiting", "waiting_bytes"),
    )

    def __init__(  # noqa: PLR0913  # what sends, and what is sent
        self,
        path: Path,
        send: Callable[[bytes], None],
        end: Callable[[], None],
        room: Callable[[], Awaitable[None]] = _at_once,
        *,
        selection: Selection | None = None,
        is_part: bool = False,
    ) -> None:
        self.path = path
        self.selection = selection
        self.send = send
        self.end = end
        self.room = room
        self.is_ready = False
        self.awaits_page = False  # of a snapshot that has begun, and its reader has read the pages before
        self.has_left = False
        self.is_part = is_part  # a further path of a stream that is counted already
        self.holds: list[Hold] = []
        self.permit: Guarded[None] | None = None  # executed with each heartbeat, since what the rules look up may change
        self.expiry: asyncio.TimerHandle | None = None  # of the token that asked for it
        self.audience: Audience | None = None
        self.seen = 0  # the number of the next change of its audience that it is to be sent
        self.after = (0, 0)  # the position up to which it has everything; the log reader may be behind it
        self.waiting: list[Changed] = []
        self.waiting_bytes = 0
        self.beat: set[Subscriber] = set()  # the subscribers that get their heartbeats together

    def deliver(self, order: Order, changed: bytes) -> None:
        """Send a change, now or after the snapshot."""
        if self.is_ready:
            if order > self.after:
                self.send(changed)
        elif self.waiting_bytes < MAX_WAITING_BYTES:
            self.waiting.append((order, changed))
            self.waiting_bytes += len(changed)
        else:
            self.end()

    def take_waiting(self) -> bytes:
        """Take changes that wait, for one write, and skip those that the snapshot has."""
        piece, taken = b"", 0
        for order, changed in self.waiting:
            if len(piece) >= MAX_JOINED_BYTES:
                break
            taken += 1
            self.waiting_bytes -= len(changed)
            piece += changed if order > self.after else b""
        del self.waiting[:taken]
        return piece


class Audience:
    """The subscribers of one path. Each of them is sent, when its turn comes, all changes that it has not been sent."""

    __slots__ = ("_bytes", "_changes", "_first", "_joined", "_round", "_round_end", "subscribers")

    def __init__(self) -> None:
        self.subscribers: set[Subscriber] = set()
        self._changes: list[Changed] = []  # those that not everybody has been sent
        self._bytes = 0  # of these
        self._first = 0  # the number of the first of them
        self._round: Iterator[Subscriber] | None = None  # those who are still to come in this round; None between two rounds
        self._round_end = 0  # the number of the first change that came after this round began
        self._joined: Joined = NOTHING  # what was sent last in this round

    @property
    def end(self) -> int:
        """The number of the next change."""
        return self._first + len(self._changes)

    def add(self, subscriber: Subscriber) -> None:
        """Send a subscriber what comes from now on."""
        subscriber.seen = self.end
        subscriber.audience = self
        self.subscribers.add(subscriber)

    def deliver(self, changes: list[Changed]) -> None:
        """Send changes to all, to MAX_AT_ONCE in one turn of the event loop."""
        self._changes += changes
        self._bytes += sum(len(changed) for _, changed in changes)
        if self._round is None:
            self._begin_round()
            self._go_on()
        while self._bytes > MAX_WAITING_BYTES and self._round is not None:
            self._go_on()

    def _begin_round(self) -> None:
        self._round, self._round_end = iter(tuple(self.subscribers)), self.end

    def _go_on(self) -> None:
        """Send to the next subscribers. A round is over when everybody has what there was when it began."""
        if self._round is None:  # it was ended since this was planned
            return
        end, sent = self.end, 0
        for subscriber in self._round:
            if subscriber.seen == end or subscriber.has_left:
                continue
            self._send(subscriber)
            sent += 1
            if sent == MAX_AT_ONCE:
                break
        else:
            of_all = self._round_end - self._first
            self._bytes -= sum(len(changed) for _, changed in self._changes[:of_all])
            del self._changes[:of_all]
            self._first, self._round = self._round_end, None
            if not self._changes:
                self._joined = NOTHING
                return
            self._begin_round()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _send(self, subscriber: Subscriber) -> None:
        start, end = subscriber.seen, self.end
        changes = self._changes[start - self._first :] if start > self._first else self._changes
        subscriber.seen = end
        try:
            if subscriber.is_ready and changes[0][0] > subscriber.after:
                if self._joined[:2] != (start, end):
                    self._joined = start, end, list(_blocks(changes))
                for joined in self._joined[2]:
                    subscriber.send(joined)
            else:
                for order, changed in changes:
                    subscriber.deliver(order, changed)
        except Exception:  # it is no concern of the others
            log.exception("a change was not delivered by a bug of ours; the stream ends")
            subscriber.end()


def _blocks(changes: list[Changed]) -> Iterator[bytes]:
    """Yield changes as blocks of about MAX_JOINED_BYTES at most, each for one write, which costs as much as one change."""
    block: list[bytes] = []
    size = 0
    for _, changed in changes:
        if size + len(changed) > MAX_JOINED_BYTES and block:
            yield b"".join(block)
            block, size = [], 0
        block.append(changed)
        size += len(changed)
    yield b"".join(block)


class SelectiveAudience(Audience):
    """The subscribers of one container with the same conditions."""

    __slots__ = ("begun", "selection")

    def __init__(self, selection: Selection) -> None:
        super().__init__()
        self.selection = selection
        self.begun: Order | None = None  # when the last of them had its snapshot; None where that is not known

    def has_begun_before(self, order: Order) -> bool:
        """Return whether all of them have been sent the change at a position by `deliver`, if it was worth an event."""
        if self.begun is None and all(subscriber.is_ready for subscriber in self.subscribers):
            self.begun = max((subscriber.after for subscriber in self.subscribers), default=None)
        return self.begun is not None and self.begun < order


class Namespace:
    """A namespace with subscribers."""

    __slots__ = (
        *("containers", "documents", "evaluation", "known", "reading", "released", "selective", "takers"),
        *("unseen", "unseen_weight"),
    )

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.documents: dict[str, Audience] = {}
        self.containers: dict[str, Audience] = {}
        self.selective: dict[str, dict[Key, SelectiveAudience]] = {}  # those of containers with conditions
        self.unseen: deque[RedisReply] = deque()  # entries of the log that `evaluator.py` has yet to look at for these
        self.unseen_weight = 0
        self.evaluation: Iterator[Any] | None = None  # what looks at them; None where nothing is left to look at
        # Documents by name: the last change that was looked at, and the audiences that it matched for; the oldest first.
        self.known: dict[str, tuple[Order, tuple[SelectiveAudience, ...]]] = {}
        self.takers: set[Subscriber] = set()  # those that wait for jobs
        self.released = b""  # the position in the stream of released jobs

    @property
    def is_empty(self) -> bool:
        return not (self.documents or self.containers or self.selective)

    def add(self, subscriber: Subscriber) -> None:
        if selection := subscriber.selection:
            alike = self.selective.setdefault(selection.prefix, {})
            audience = alike.setdefault(selection.key, SelectiveAudience(selection))
            audience.add(subscriber)
            audience.begun = None
            return
        table, name = self._table(subscriber.path)
        table.setdefault(name, Audience()).add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        if selection := subscriber.selection:
            self._leave_selective(subscriber, selection)
            return
        table, name = self._table(subscriber.path)
        table[name].subscribers.discard(subscriber)
        self.takers.discard(subscriber)
        if not table[name].subscribers:
            del table[name]

    def _leave_selective(self, subscriber: Subscriber, selection: Selection) -> None:
        alike, key = self.selective[selection.prefix], selection.key
        alike[key].subscribers.discard(subscriber)
        if not alike[key].subscribers:
            del alike[key]
        if not alike:
            del self.selective[selection.prefix]
        if not self.selective:
            self.unseen.clear()
            self.unseen_weight = 0
            self.evaluation = None
            self.known.clear()

    def _table(self, path: Path) -> tuple[dict[str, Audience], str]:
        return (self.containers, prefix(path)) if path.is_container else (self.documents, path.name)

    def all(self) -> list[Subscriber]:
        audiences = (*self.documents.values(), *self.containers.values())
        return [subscriber for audience in audiences for subscriber in audience.subscribers] + self.all_selective()

    def all_selective(self) -> list[Subscriber]:
        """Those with conditions."""
        audiences = [audience for alike in self.selective.values() for audience in alike.values()]
        return [subscriber for audience in audiences for subscriber in audience.subscribers]

    def has_unseen(self, subscriber: Subscriber) -> bool:
        """Whether a subscriber may still be sent changes up to the end of what was read."""
        if subscriber.selection is not None and self.evaluation is not None:
            return True
        return subscriber.audience is not None and subscriber.seen < subscriber.audience.end

    def selective_audiences_of(self, name: str) -> list[SelectiveAudience]:
        """The audiences with conditions that look where a document is."""
        found: list[SelectiveAudience] = []
        at = 0
        while True:
            alike = self.selective.get(name[:at], {})
            found += [audience for audience in alike.values() if audience.selection.covers(name)]
            at = name.find("/", at) + 1
            if not at:
                return found

    def audiences_of(self, name: str) -> list[Audience]:
        """The audiences of a document, and of all containers that it is below."""
        found = [self.documents[name]] if name in self.documents else []
        containers, at = self.containers, 0
        while containers:
            if audience := containers.get(name[:at]):
                found.append(audience)
            at = name.find("/", at) + 1
            if not at:
                break
        return found


def order_of(position: str) -> Order:
    """Return a position in a change log as numbers that can be compared."""
    ms, _, count = position.partition("-")
    return int(ms), int(count)
