"""Several paths on one stream: each is a subscriber of the hub as if it were alone, and all send to one reader.

Their blocks go out with an id that resumes all of them, and with the target that they belong to. A change that is known before
all paths have begun waits until they have. So a reader that reads a long snapshot slowly is not disconnected for what it could
not read yet. If one of the paths ends, so does the stream: its reader resumes, and only what was lost is reset.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable

from kvstore.commands.subscriptions import Follow, FollowMany
from kvstore.http.streams import render_entry, render_id
from kvstore.live.hub import Hub
from kvstore.live.stream_session import selection_of
from kvstore.live.subscribers import MAX_JOINED_BYTES, MAX_WAITING_BYTES, Subscriber

MAX_WAITING = 10_000  # changes of paths that are to be written in the next turns; who has more comes back
MAX_WRITTEN_AT_ONCE = 16 * 1024  # bytes of one stream in one turn of the event loop, about: some 0.1 ms
ID_WEIGHT = 2048  # bytes that take as long as what each change needs besides its own

Send = Callable[[bytes], None]
End = Callable[[], None]
Room = Callable[[], Awaitable[None]]


def subscribe(hub: Hub, asked: Follow | FollowMany, send: Send, end: End, room: Room) -> "OnePath | ManyPaths":
    """Return the subscription that a stream asks for; `send`, `end` and `room` are those of Subscriber."""
    return OnePath(hub, asked, send, end, room) if isinstance(asked, Follow) else ManyPaths(hub, asked, send, end, room)


class OnePath:
    """The subscription of a stream that follows one path."""

    __slots__ = ("_follow", "_hub", "_subscriber")

    def __init__(self, hub: Hub, follow: Follow, send: Send, end: End, room: Room) -> None:
        self._hub = hub
        self._follow = follow
        self._subscriber = Subscriber(follow.path, send, end, room, selection=selection_of(follow))

    @property
    def is_ready(self) -> bool:
        """Whether the reader was sent all that there was when the stream began."""
        return self._subscriber.is_ready

    async def begin(self) -> None:
        """Send the beginning, then every change until leave(); raises Problem before the first block."""
        await self._hub.follow(self._follow, self._subscriber)

    def leave(self) -> None:
        """End the subscription; does nothing the second time."""
        self._hub.leave(self._subscriber)


class _Part:
    """One path of a stream. `entry` is what the id of the stream has of it, b"" if it has not begun."""

    __slots__ = ("entry", "follow", "is_first", "label", "subscriber", "target")

    def __init__(self, stream: "ManyPaths", target: str, follow: Follow, *, is_first: bool) -> None:
        self.target = target
        self.follow = follow
        self.is_first = is_first
        self.label = b'"followed":%b}' % json.dumps(target).encode()
        self.entry = render_entry(target, follow.position) if follow.position else b""
        self.subscriber = Subscriber(
            follow.path,
            lambda blocks: stream.send(self, blocks),
            stream.end,
            stream.room,
            selection=selection_of(follow),
            is_part=not is_first,
        )


class ManyPaths:
    """The subscription of a stream that follows several paths."""

    def __init__(self, hub: Hub, asked: FollowMany, send: Send, end: End, room: Room) -> None:
        self._hub = hub
        self._send = send
        self.end = end
        self.room = room
        self.is_ready = False
        self._has_left = False
        self._waiting: deque[tuple[_Part, bytes]] = deque()
        self._waiting_bytes = 0
        self._is_scheduled = False  # the next turn that writes
        # Those that have not begun begin first: if one of them cannot, the reader gets the problem, now or when it comes back.
        (first, follow), *others = sorted(asked.follows.items(), key=lambda item: item[1].position is not None)
        _, holds, charge, place, permit, expires_at_s = asked
        follow = follow._replace(holds=holds, charge=charge, place=place, permit=permit, expires_at_s=expires_at_s)
        self._parts = [
            _Part(self, first, follow, is_first=True),
            *(_Part(self, target, each, is_first=False) for target, each in others),
        ]

    async def begin(self) -> None:
        """As OnePath.begin. One path begins after the other, so that the reader limits what is read for it."""
        try:
            for part in self._parts:
                await self._hub.follow(part.follow, part.subscriber)
                if self._has_left:
                    return
            await self._send_waiting()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """As OnePath.leave."""
        self._has_left = True
        for part in self._parts:
            self._hub.leave(part.subscriber)

    def send(self, part: _Part, blocks: bytes) -> None:
        """Send blocks of a path; those that come before all paths have begun are sent when they have.

        The others are sent in turns of the event loop of their own: a change may be one of many paths, of many streams.
        """
        if not part.subscriber.is_ready or blocks.startswith(b":"):  # a comment, which says why the stream ends
            self._write(part, blocks)
        elif len(self._waiting) < MAX_WAITING if self.is_ready else self._waiting_bytes < MAX_WAITING_BYTES:
            self._waiting.append((part, blocks))  # the blocks themselves are shared with other streams
            self._waiting_bytes += len(blocks)
            if self.is_ready and not self._is_scheduled:
                self._is_scheduled = True
                asyncio.get_running_loop().call_soon(self._write_some)
        else:
            self.end()

    def _write_some(self) -> None:
        """Write some of what waits, and leave the rest to another turn."""
        self._is_scheduled = False
        sent = 0
        while self._waiting and sent < MAX_WRITTEN_AT_ONCE and not self._has_left:
            part, blocks = self._waiting.popleft()
            self._waiting_bytes -= len(blocks)
            self._write(part, blocks)
            sent += len(blocks) + ID_WEIGHT
        if self._has_left:
            self._waiting.clear()
        elif self._waiting:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._write_some)

    async def _send_waiting(self) -> None:
        while self._waiting:  # others may come meanwhile
            waiting, self._waiting, sent = self._waiting, deque(), 0
            self._waiting_bytes = 0
            for part, blocks in waiting:
                self._write(part, blocks)
                sent += len(blocks)
                if sent >= MAX_JOINED_BYTES:
                    sent = 0
                    await self.room()
                    if self._has_left:
                        return
            await self.room()
            if self._has_left:
                return
        self.is_ready = True
        self._send(self._id() + b"\n\n")  # all is sent: from now on the reader is behind only if it hears nothing

    def _write(self, part: _Part, blocks: bytes) -> None:
        written = b"".join(self._rewritten(part, block) for block in blocks.split(b"\n\n")[:-1])
        if written:
            self._send(written)

    def _rewritten(self, part: _Part, block: bytes) -> bytes:
        """Return a block of one path as one of the stream; b"" for one that the stream has of another path."""
        if block.startswith(b"id: "):
            line, _, rest = block.partition(b"\n")
            part.entry = render_entry(part.target, line[4:].decode())
            if rest:
                return b"".join((self._id(), b"\n", *_labelled(part, rest)))
            return self._id() + b"\n\n" if part.is_first else b""  # a heartbeat
        if block.startswith(b"event: "):
            if block.startswith(b"event: reset"):
                part.entry = b""  # until the snapshot
            return b"".join(_labelled(part, block))
        return block + b"\n\n" if part.is_first or part.subscriber.awaits_page else b""

    def _id(self) -> bytes:
        return b"id: " + render_id(part.entry for part in self._parts if part.entry)


def _labelled(part: _Part, event: bytes) -> tuple[memoryview, bytes, bytes, bytes]:
    """Return an event whose data have the target that it belongs to, in pieces: it may have a MiB, for each of many paths."""
    return memoryview(event)[:-1], b"" if event.endswith(b"{}") else b",", part.label, b"\n\n"
