"""What the connections of one event loop share, and what limits all of them together: time, number, unread bytes."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from socket import AF_INET, AF_INET6, socket
from time import perf_counter, time
from typing import Protocol

from kvstore.core.metrics import COUNTERS, REST_S, RESTING, UNTIMED, Numbers, add_time
from kvstore.http.messages import http_date
from kvstore.runtime import Runtime
from kvstore.serving.bounds import MAX_UNREAD_BYTES
from kvstore.serving.exchange import decide
from kvstore.serving.express import open_lane
from kvstore.serving.request_log import open_log
from kvstore.serving.sse import Streams

CHECK_S = 0.5  # between checks of the limits
MAX_REFUSED = 256  # connections above the limit that get a 503; more are dropped without a response

log = logging.getLogger("kvstore")


def tcp_addresses(listeners: Iterable[socket]) -> list[str]:
    """The IP addresses that a server listens on; browsers reach no unix sockets."""
    return [listener.getsockname()[0] for listener in listeners if listener.family in (AF_INET, AF_INET6)]


def peer_address(transport: asyncio.BaseTransport) -> str:
    """Return the IP address of a client; "" for one on a unix socket."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) else ""


class Connection(Protocol):
    """What a server needs of a connection: when its time limit ends, and when its client stopped reading, 0.0 if it reads."""

    due: float
    choked_at: float

    def unread(self) -> int:
        """Bytes that were written and that the kernel has not taken."""

    def overdue(self) -> None:
        """End it, since its time limit is over."""

    def stop(self) -> None:
        """End it after the current request."""

    def cut(self) -> None:
        """Drop it at once, with whatever is still to be written."""


class Server:
    """The server of one event loop: its runtime, its open connections, and the current time."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.streams = Streams(runtime.hub)
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.decide = decide
        self.lane = open_lane(runtime, self.loop)
        self.log = open_log(runtime.settings)
        self.max_connections = runtime.settings.max_connections
        self.stopping = False
        self.timed: object = None  # whose request is timed for the metrics, one at a time; since when
        self.timed_at = 0.0
        self.now = 0.0  # by the loop's clock, at the last check
        self.date = b""  # the header field, at the last check
        self._unread_bytes = 0  # of all connections at the last count, and of those that were choked since
        self._tick()

    @property
    def is_full(self) -> bool:
        """Whether there are more connections than allowed."""
        return len(self.connections) > self.max_connections

    @property
    def is_flooded(self) -> bool:
        """Whether there are so many more that they get no response."""
        return len(self.connections) > self.max_connections + MAX_REFUSED

    def count(self, connection: Connection, method: str, status: int) -> None:
        """Count a request that is answered."""
        numbers = COUNTERS.requests.get((method, status)) or COUNTERS.first(method, status)
        numbers[UNTIMED] += 1
        if self.timed is connection:
            self.end_timing(numbers)

    def begin_timing(self, connection: Connection) -> None:
        """Time the request of a connection: the one that is timed."""
        self.timed, self.timed_at = connection, perf_counter()

    def end_timing(self, numbers: Numbers) -> None:
        """Count the time that a request took which is counted, the one that is timed."""
        numbers[UNTIMED] -= 1
        add_time(numbers, perf_counter() - self.timed_at)
        self.timed = RESTING
        self.loop.call_later(REST_S, self._time_next)

    def _time_next(self) -> None:
        self.timed = None

    def forget(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        if self.timed is connection:
            self.timed = None

    def choked(self, connection: Connection) -> None:
        """Count a connection whose client has stopped reading. Above the limit, some connections are dropped."""
        self._unread_bytes += connection.unread()
        if self._unread_bytes > MAX_UNREAD_BYTES:
            self._bound_unread()

    def stop(self) -> None:
        """Close the connections that are idle now, and the others after the request they are in."""
        self.stopping = True
        for connection in tuple(self.connections):
            connection.stop()

    def _tick(self) -> None:
        self.loop.call_later(CHECK_S, self._tick)  # first, so that no exception below ends the checks
        self.date = b"\r\nDate: " + http_date(int(time())).encode()
        if self.lane:
            self.lane.date = self.date
        self.now = now = self.loop.time()
        for connection in tuple(self.connections):
            if connection.due <= now:
                self._end_overdue(connection)
        self._bound_unread()

    def _end_overdue(self, connection: Connection) -> None:
        try:
            connection.overdue()
        except Exception:
            log.exception("a bug: a connection could not be ended in time; it is dropped")
            self.connections.discard(connection)
            with suppress(Exception):
                connection.cut()

    def _bound_unread(self) -> None:
        """Drop connections until all of them together are within the limit.

        Those with the largest product of unread bytes and seconds go first: neither a large response that has just begun, nor
        a small one that is read slowly.
        """
        now = self.loop.time()
        unread = [(connection.unread(), connection) for connection in self.connections]
        self._unread_bytes = sum(size for size, _ in unread)
        if self._unread_bytes <= MAX_UNREAD_BYTES:
            return

        log.warning("unread responses are over the limit of memory; the connections that hold most are dropped")

        def burden(held: tuple[int, Connection]) -> tuple[float, int]:
            size, connection = held
            return size * (now - connection.choked_at if connection.choked_at else 0.0), size

        for size, connection in sorted(unread, key=burden, reverse=True):
            if self._unread_bytes <= MAX_UNREAD_BYTES:
                break
            connection.cut()
            self.connections.discard(connection)  # asyncio reports it as lost later; it must not be counted until then
            self._unread_bytes -= size
