"""Streams of events on the connections of `connection.py`: a subscriber of the hub, the framing of HTTP/1.1, and the limits.

Source: RFC 9112 section 7.1 (chunks), tcp(7) (TCP_USER_TIMEOUT).
"""

import asyncio
import socket as socket_constants
from collections.abc import Callable
from socket import AF_UNIX, IPPROTO_TCP

from kvstore.commands.subscriptions import Follow, FollowMany
from kvstore.core.errors import Problem, problem_in
from kvstore.live.follow_many import subscribe
from kvstore.live.hub import MAX_BUFFERED_BYTES, Hub
from kvstore.live.stream_session import HEARTBEAT_S


class Streams:
    """What the streams of one event loop share."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.starting: set[asyncio.Task[None]] = set()  # of streams that have not sent their whole snapshot
        self.framed: tuple[bytes, bytes] = (b"", b"")  # the last block that was sent, and the same as a chunk


class Stream:
    """One stream, on a transport that no one else writes to from now on. `head` makes the head of the response."""

    __slots__ = ("_head", "_is_choked", "_is_chunked", "_room", "_streams", "_subscription", "_transport")

    def __init__(
        self,
        streams: Streams,
        transport: asyncio.Transport,
        follow: Follow | FollowMany,
        *,
        head: Callable[[], bytes],
        is_chunked: bool,
    ) -> None:
        self._streams = streams
        self._transport = transport
        self._head: Callable[[], bytes] | None = head  # None when it is written
        self._is_chunked = is_chunked
        self._is_choked = False
        self._room: asyncio.Future[None] | None = None  # for the next part of the snapshot
        self._subscription = subscribe(streams.hub, follow, self._send, self._end, self._has_room)
        socket = transport.get_extra_info("socket")
        if socket.family != AF_UNIX and hasattr(socket_constants, "TCP_USER_TIMEOUT"):  # for a peer that vanished
            socket.setsockopt(IPPROTO_TCP, socket_constants.TCP_USER_TIMEOUT, int(2000 * HEARTBEAT_S))

    def start(self, refused: Callable[[Problem], None]) -> None:
        """Begin the stream; `refused` is called with the reason if it fails before anything was sent."""
        task = asyncio.get_running_loop().create_task(self._start(refused))
        self._streams.starting.add(task)
        task.add_done_callback(self._streams.starting.discard)

    async def _start(self, refused: Callable[[Problem], None]) -> None:
        try:
            await self._subscription.begin()
        except Exception as error:
            if self._transport.is_closing():  # the stream was ended in the meantime
                return
            if not self._head:
                self._transport.abort()
                return
            refused(problem_in(error))

    def choke(self) -> bool:
        """The client does not read. Returns whether it has a time limit for that: during the snapshot.

        After the snapshot the limit is the size of the buffer.
        """
        self._is_choked = not self._subscription.is_ready
        return self._is_choked

    def unchoke(self) -> None:
        """The client has read what was sent."""
        self._is_choked = False
        room, self._room = self._room, None
        if room and not room.done():
            room.set_result(None)

    def leave(self) -> None:
        """The connection is lost."""
        self._subscription.leave()
        self.unchoke()

    def _send(self, block: bytes) -> None:
        transport, streams = self._transport, self._streams
        if transport.is_closing():
            return
        if self._head:
            transport.write(self._head())
            self._head = None
        if transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:
            transport.abort()
            return
        if self._is_chunked:
            if streams.framed[0] is not block:
                streams.framed = block, b"%x\r\n%b\r\n" % (len(block), block)
            block = streams.framed[1]
        transport.write(block)

    async def _has_room(self) -> None:
        """Wait until the client has read what was sent of the snapshot."""
        if self._is_choked:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _end(self) -> None:
        if not self._transport.is_closing():
            head = self._head() if self._head else b""
            self._transport.write(head + (b"0\r\n\r\n" if self._is_chunked else b""))
        self._transport.close()
