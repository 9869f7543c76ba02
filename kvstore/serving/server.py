"""What the connections of one event loop share, and what bounds all of them together: time, their number, unread bytes."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from socket import AF_INET, AF_INET6, socket
from time import time
from typing import Protocol

from kvstore.http.hosts import is_loopback
from kvstore.http.messages import http_date
from kvstore.runtime import Runtime
from kvstore.serving.exchange import decide
from kvstore.serving.sse import Streams

CHECK_S = 0.5  # between looks at what is overdue
MAX_UNREAD_BYTES = 192 * 1024 * 1024  # of responses that clients have not taken; with those that are being made, 256 MiB
MAX_REFUSED = 256  # connections above the limit that are told so; any more are cut off without a word

log = logging.getLogger("kvstore")


def listens_on_loopback(listeners: Iterable[socket]) -> bool:
    """Whether a server is reached from this machine only, by TCP: then web pages reach it, and it has to look at Host."""
    addresses = [listener.getsockname()[0] for listener in listeners if listener.family in (AF_INET, AF_INET6)]
    return bool(addresses) and all(map(is_loopback, addresses))


class Connection(Protocol):
    """What a server knows of a connection: when it is overdue, and since when its client takes nothing, 0.0 for never."""

    due: float
    choked_at: float

    def unread(self) -> int:
        """Bytes that were written and that the client has not taken."""

    def overdue(self) -> None:
        """End it: its time is over."""

    def stop(self) -> None:
        """End it after the request that it is in."""

    def cut(self) -> None:
        """End it at once, whatever is still to be written."""


class Server:
    """The server of one event loop: its runtime, what is open, and the date of this half second."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.streams = Streams(runtime.hub)
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.decide = decide
        self.max_connections = runtime.settings.max_connections
        self.stopping = False
        self.now = 0.0  # of the loop's clock, when date was made
        self.date = b""
        self._unread_bytes = 0  # of all connections, as of the last count and of those that were choked since
        self._tick()

    @property
    def is_full(self) -> bool:
        """Whether there are more connections than allowed."""
        return len(self.connections) > self.max_connections

    @property
    def is_flooded(self) -> bool:
        """Whether there are even more than are told so."""
        return len(self.connections) > self.max_connections + MAX_REFUSED

    def choked(self, connection: Connection) -> None:
        """The client of a connection takes no more. Where too much waits for all of them, some connections are cut."""
        self._unread_bytes += connection.unread()
        if self._unread_bytes > MAX_UNREAD_BYTES:
            self._bound_unread()

    def stop(self) -> None:
        """Close the connections that are idle now, and the others after the request they are in."""
        self.stopping = True
        for connection in tuple(self.connections):
            connection.stop()

    def _tick(self) -> None:
        self.loop.call_later(CHECK_S, self._tick)  # first: whatever fails below, time limits go on
        self.date = b"\r\nDate: " + http_date(int(time())).encode()
        self.now = now = self.loop.time()
        for connection in tuple(self.connections):
            if connection.due <= now:
                self._end_overdue(connection)
        self._bound_unread()

    def _end_overdue(self, connection: Connection) -> None:
        try:
            connection.overdue()
        except Exception:
            log.exception("a connection was not ended in time by a bug of ours, and is cut")
            self.connections.discard(connection)
            with suppress(Exception):
                connection.cut()

    def _bound_unread(self) -> None:
        """Cut those connections that hold most for longest, until all of them together hold no more than is allowed.

        The measure is bytes times seconds: neither a large response that has just begun goes first, nor a small one that is
        read slowly.
        """
        now = self.loop.time()
        unread = [(connection.unread(), connection) for connection in self.connections]
        self._unread_bytes = sum(size for size, _ in unread)
        if self._unread_bytes <= MAX_UNREAD_BYTES:
            return

        log.warning("clients that do not read are cut off: responses have taken more memory than they may")

        def burden(held: tuple[int, Connection]) -> tuple[float, int]:
            size, connection = held
            return size * (now - connection.choked_at if connection.choked_at else 0.0), size

        for size, connection in sorted(unread, key=burden, reverse=True):
            if self._unread_bytes <= MAX_UNREAD_BYTES:
                break
            connection.cut()
            self.connections.discard(connection)  # it is lost a moment later, and must not be counted until then
            self._unread_bytes -= size
