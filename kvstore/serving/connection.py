"""A server of HTTP/1.1 for one event loop: the fast lane from a socket to `protocol` and back.

A connection handles one request at a time, so pipelined requests are answered in order. Nothing waits forever: a head has
HEAD_S to arrive, a body BODY_S, a reply WRITE_S to be taken, counted from their first byte, however steadily they trickle.
Sources: RFC 9112 (HTTP/1.1), RFC 9110 (Expect, Date).
"""

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus

from kvstore.commands.containers import List
from kvstore.commands.subscriptions import Follow
from kvstore.core.errors import Problem, RequestTimeout, unavailable
from kvstore.http.messages import Headers, Request, Response
from kvstore.http.protocol import Outcome, render
from kvstore.serving.exchange import decide, respond, stream_fields
from kvstore.serving.http1 import HEAD, NOTHING, Reader
from kvstore.serving.server import Server
from kvstore.serving.sse import Stream

log = logging.getLogger("kvstore")

HEAD_S = 10.0
BODY_S = 30.0
WRITE_S = 30.0
LINGER_S = 2.0  # that a client may go on sending after its last reply
IDLE_S = 95.0  # Heroku's router keeps an idle connection for 90 s
MAX_READ_AHEAD_BYTES = 64 * 1024  # of requests that wait for the one before them

_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
_NEVER = float("inf")


def _lines(headers: Headers) -> bytes:
    """Header fields, each after a line's end."""
    return "".join([f"\r\n{name}: {value}" for name, value in headers]).encode("latin-1")


class ClientConnection(asyncio.Protocol):
    """One client's connection, as a loop over its requests."""

    __slots__ = (
        "_accepted",
        "_busy",
        "_choked",
        "_ended",
        "_keep",
        "_lacked",
        "_next",
        "_over",
        "_paused",
        "_reader",
        "_runtime",
        "_server",
        "_stream",
        "_transport",
        "_wait",
        "choked_at",
        "due",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._runtime = server.runtime
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._reader = Reader()
        self._lacked = NOTHING  # of a request when it was looked at last
        self._accepted: Mapping[str, str] | None = None  # header fields of the last request that was not refused
        self._keep = True  # the connection after this request
        self._ended = False  # the client sends nothing more
        self._over = False  # the last reply of this connection is written
        self._busy = False  # a command is with the store
        self._paused = False  # reading
        self._choked = False  # writing
        self._next: tuple[Request, List] | None = None  # of a reply that goes on when the client has read
        self._stream: Stream | None = None
        self._wait: asyncio.Task[None] | None = None  # of a request that waits for something to answer with
        self.choked_at = 0.0  # when the client took no more of what was written; 0.0 where it takes it
        self.due = server.loop.time() + HEAD_S

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        server = self._server
        server.connections.add(self)
        if server.is_full:
            if server.is_flooded:
                self.cut()
            else:
                self._fail(unavailable("this server has as many connections as it takes; come back later"))

    def connection_lost(self, _: Exception | None) -> None:
        self._server.connections.discard(self)
        self._keep = False
        self._over = True
        if self._stream:
            self._stream.leave()
        if self._wait:
            self._wait.cancel()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        reader = self._reader
        reader.feed(data)
        if self._busy or self._choked:
            if reader.size > MAX_READ_AHEAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        self._advance()

    def eof_received(self) -> bool:
        # Half-closed: what has come whole is answered, then the connection ends.
        self._ended = True
        return (self._busy or self._choked) and self._stream is None and self._wait is None

    def pause_writing(self) -> None:
        self.choked_at = self._server.loop.time()
        self._server.choked(self)
        if self._stream and not self._stream.choke():
            return
        self._choked = True
        self.due = self.choked_at + WRITE_S

    def resume_writing(self) -> None:
        self.choked_at = 0.0
        self._choked = False
        if self._stream:
            self.due = _NEVER
            self._stream.unchoke()
            return
        if self._over:
            return
        self.due = _NEVER if self._busy else self._server.loop.time() + IDLE_S
        if self._next:
            (request, more), self._next = self._next, None
            self._runtime.store.submit(more, self._went_on, request)
        elif not self._busy:
            self._finish()

    # What the server calls

    def overdue(self) -> None:
        """The client has taken too long with a head, a body, or with reading a reply."""
        if self._over or self._transport.get_write_buffer_size():
            self._transport.abort()
        elif self._reader.lacks is not NOTHING:
            self._fail(RequestTimeout(f"a head has {HEAD_S:.0f} s to arrive and a body {BODY_S:.0f} s; nothing was changed"))
        else:
            self._transport.close()

    def unread(self) -> int:
        """Bytes that were written and that the client has not taken."""
        return self._transport.get_write_buffer_size()

    def cut(self) -> None:
        """End the connection at once, whatever is still to be written."""
        self._transport.abort()

    def stop(self) -> None:
        """Close now if idle, after the reply if not."""
        self._keep = False
        if not self._busy and self._reader.lacks is NOTHING:
            self._transport.close()

    # From bytes to a request

    def _advance(self) -> None:
        """Answer the requests that are there whole, one after the other, until one is with the store."""
        reader = self._reader
        try:
            while not (self._busy or self._over or self._choked):
                request = reader.next()
                if request is None:
                    if reader.lacks is not self._lacked:
                        self._await(reader.lacks)
                    return
                self._lacked = NOTHING
                self._keep = reader.keeps and not self._server.stopping
                self._answer(request)
        except Problem as problem:
            self._fail(problem)

    def _await(self, lacked: str) -> None:
        """A head, or a body, has begun: from now on the client has so long to send the rest."""
        if lacked is NOTHING:  # an empty line, in pieces: the time for what follows goes on
            return
        self._lacked = lacked
        if lacked is HEAD:
            self.due = self._server.loop.time() + HEAD_S
        else:
            self.due = self._server.loop.time() + BODY_S
            if self._reader.expects_continue:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # From a request to bytes

    def _answer(self, request: Request) -> None:
        runtime = self._runtime
        # The reader gives the same object for the same block of fields: its Host was looked at before.
        deciding = decide if request.headers is self._accepted else self._server.decide
        decision = deciding(request, runtime.settings)
        if isinstance(decision, Response):
            self._send(request, decision)
        elif isinstance(decision, Follow):
            self._follow(request, decision)
        else:
            self._accepted = request.headers
            self._busy = True
            self.due = _NEVER
            self._wait = runtime.submit(decision, self._respond, request)

    def _respond(self, request: Request, outcome: Outcome | Exception) -> None:
        self._wait = None
        response = respond(request, outcome, self._runtime.settings)
        self._send(request, response)
        if response.more is None or request.method == "HEAD":
            self._finish()

    def _send(self, request: Request, response: Response) -> None:
        server, transport = self._server, self._transport
        if transport.is_closing():  # the client has gone
            self._over = True
            return
        status, headers, body, more = response
        parts = [_STATUS[status], server.date, _lines(headers)]
        if more is not None:
            if self._reader.is_1_1:
                parts.append(b"\r\nTransfer-Encoding: chunked")
            else:
                self._keep = False
        elif status not in (204, 304):
            parts.append(b"\r\nContent-Length: %d" % len(body))
        if not self._keep:
            parts.append(b"\r\nConnection: close")
        elif not self._reader.is_1_1:
            parts.append(b"\r\nConnection: keep-alive")
        parts.append(b"\r\n\r\n")
        if request.method == "HEAD":
            more = None
        elif more is None:
            parts.append(body)
        self.due = server.now + IDLE_S
        transport.write(b"".join(parts))  # may call pause_writing
        if more is not None:
            self._send_part(request, body, more)
        elif not self._keep:
            self._close()

    def _close(self) -> None:
        """Close after what is written. Reading goes on for a while: what nobody reads would make TCP take the reply back."""
        if self._over:
            return
        self._over = True
        self._reader = Reader()
        if self._ended or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        is_taken = not self._transport.get_write_buffer_size()
        self.due = self._server.loop.time() + (LINGER_S if is_taken else WRITE_S)
        if self._paused:
            self._transport.resume_reading()

    def _send_part(self, request: Request, part: bytes, more: List | None) -> None:
        """Send a part of a body, then what follows it, as fast as the client reads."""
        self._busy = True
        if not self._choked:
            self.due = _NEVER
        if part:
            self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if self._reader.is_1_1 else part)
        if more is None:
            if self._reader.is_1_1:
                self._transport.write(b"0\r\n\r\n")
            if not self._choked:
                self.due = self._server.loop.time() + IDLE_S
            self._finish()
        elif self._choked:
            self._next = (request, more)
        else:
            self._runtime.store.submit(more, self._went_on, request)

    def _went_on(self, request: Request, outcome: Outcome | Exception) -> None:
        if self._transport.is_closing():
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            response = render(request, outcome)
        except Exception as error:
            log.error("a response was cut off: %s", type(error).__name__)
            self._transport.abort()  # so that the client does not take half of it for the whole
            return
        self._send_part(request, response.body, response.more)

    def _finish(self) -> None:
        """The reply is written: on with the next request, if the connection stays."""
        self._busy = False
        if self._over:
            return
        if not self._keep:
            self._close()
            return
        if self._choked:
            return
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._reader.size:
            self._advance()
        if self._ended and not (self._busy or self._choked):
            self._close()

    def _follow(self, request: Request, follow: Follow) -> None:
        server = self._server
        self._busy = True
        self.due = _NEVER
        is_1_1 = self._reader.is_1_1
        framing = b"\r\nTransfer-Encoding: chunked\r\n\r\n" if is_1_1 else b"\r\nConnection: close\r\n\r\n"
        head = _STATUS[200] + server.date + _lines(stream_fields(request, self._runtime.settings)) + framing
        self._stream = Stream(server.streams, self._transport, follow.path, head=head, is_chunked=is_1_1)
        self._stream.start(follow, lambda problem: self._refused(request, problem))

    def _refused(self, request: Request, problem: Problem) -> None:
        """A stream has not begun."""
        self._stream = None
        self._respond(request, problem)

    def _fail(self, problem: Problem) -> None:
        """Refuse a request that cannot be read any further, and close."""
        self._keep = False
        request = Request(*self._reader.asked)
        self._send(request, respond(request, problem, self._runtime.settings))
