"""One client's connection to the production server: from a socket to `exchange.py` and back, without ASGI in between.

A connection handles one request at a time, so pipelined requests get their responses in order. Every step has a time limit:
HEAD_S for the head to arrive, BODY_S for the body, WRITE_S for the client to read the response. The limits count from the
first byte: a client that sends or reads slowly does not extend them.
Sources: RFC 9112 (HTTP/1.1), RFC 9110 (Expect, Date).
"""

import asyncio
from collections.abc import Mapping

from kvstore.access.principal import Principal
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core.errors import Problem, RequestTimeout, unavailable
from kvstore.core.metrics import UNTIMED, Numbers
from kvstore.http.gate import FetchKeys, Gate
from kvstore.http.messages import Request, Response
from kvstore.http.protocol import Outcome
from kvstore.runtime import Cancellable
from kvstore.serving.bounds import BODY_S, HEAD_S, IDLE_S, WRITE_S
from kvstore.serving.exchange import decide, respond, stream_fields
from kvstore.serving.express import PLAIN
from kvstore.serving.heads import STATUS_LINES, field_lines, response_head
from kvstore.serving.http1 import HEAD, NOTHING, Reader
from kvstore.serving.parted_body import PartedBody
from kvstore.serving.server import Server, peer_address
from kvstore.serving.sse import Stream

LINGER_S = 2.0  # for which a client may go on sending after its last response
MAX_READ_AHEAD_BYTES = 64 * 1024  # of pipelined requests; beyond that, reading pauses

_NEVER = float("inf")
_NOT_FOR_A_STORE = frozenset({Response, Follow, FollowMany, FetchKeys})


class ClientConnection(asyncio.Protocol):
    """A loop over the requests of one connection, driven by callbacks."""

    __slots__ = (
        "_accepted",
        "_busy",
        "_choked",
        "_ended",
        "_followed",
        "_keep",
        "_lacked",
        "_over",
        "_parts",
        "_paused",
        "_peer",
        "_principal",
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
        self._peer = ""  # the address of the client
        self._reader = Reader()
        self._lacked = NOTHING  # the part of a request that was missing when it was last looked at
        self._accepted: Mapping[str, str] | None = None  # header fields of the last request that passed the check of Host
        self._principal: Principal | None = None  # of that request
        self._keep = True  # keep the connection open after this request
        self._ended = False  # the client has sent EOF
        self._over = False  # the last response of this connection is written
        self._busy = False  # a command is being executed
        self._paused = False  # reading is paused
        self._choked = False  # writing is paused, and the client has WRITE_S to read
        self._parts: PartedBody | None = None  # a long response
        self._stream: Stream | None = None
        self._followed: Request | None = None  # the request of the stream
        self._wait: Cancellable | None = None  # of a long poll, or a query
        self.choked_at = 0.0  # when writing was paused; 0.0 if it is not
        self.due = server.loop.time() + HEAD_S

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._runtime.gate:
            self._peer = peer_address(transport)
        server = self._server
        server.connections.add(self)
        if server.is_flooded:
            self.cut()
        elif server.is_full:
            self._fail(unavailable("this server has as many connections as it allows; try again later"))

    def connection_lost(self, _: Exception | None) -> None:
        self._server.forget(self)
        self._keep = False
        self._over = True
        if self._parts:
            self._parts.leave()
            self._parts = None  # it refers to this connection
        if self._stream:
            self._stream.leave()
            if self._followed and self._server.log:
                self._server.log.record(self._followed, 200)
        if self._wait:
            self._wait.cancel()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        reader = self._reader
        is_waiting = self._busy or self._choked
        server = self._server
        if not is_waiting and reader.is_empty and server.lane is not None and server.lane.take(self, data):
            self._busy = True
            self.due = _NEVER
            if server.timed is None:
                server.begin_timing(self)
            return
        reader.feed(data)
        if is_waiting:
            if reader.size > MAX_READ_AHEAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        self._advance()

    def eof_received(self) -> bool:
        # Half-closed: complete requests still get their responses, then the connection ends. But nobody may be there to read
        # what takes long, so a stream, a long poll and a query end at once.
        self._ended = True
        return (self._busy or self._choked) and self._stream is None and self._wait is None

    def pause_writing(self) -> None:
        self.choked_at = self._server.loop.time()
        self._server.choked(self)
        if self._stream and not self._stream.choke():
            return
        self._choked = True
        if self._parts:
            self._parts.is_choked = True
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
        if self._parts:
            self._parts.unchoke()
        elif not self._busy:
            self._finish()

    # What the server calls

    def overdue(self) -> None:
        """A time limit is over: of a head, of a body, of reading a response, or of an idle connection."""
        if self._over or self._transport.get_write_buffer_size():
            self._transport.abort()
        elif self._reader.lacks is not NOTHING:
            self._fail(
                RequestTimeout(
                    f"the head must arrive within {HEAD_S:.0f} s, the body within {BODY_S:.0f} s; nothing was changed"
                )
            )
        else:
            self._transport.close()

    def unread(self) -> int:
        """Bytes that were written and that the kernel has not taken."""
        return self._transport.get_write_buffer_size()

    def cut(self) -> None:
        """Drop the connection at once, with whatever is still to be written."""
        self._transport.abort()

    def stop(self) -> None:
        """Close now if idle, otherwise after the response."""
        self._keep = False
        if not self._busy and self._reader.lacks is NOTHING:
            self._transport.close()

    # From bytes to a request

    def _advance(self) -> None:
        """Answer the complete requests, one after the other, until one of them has to wait for its outcome."""
        reader, gate = self._reader, self._runtime.gate
        try:
            while not (self._busy or self._over or self._choked):
                request = reader.next()
                if request is None:
                    if reader.lacks is not self._lacked:
                        self._await(reader.lacks)
                    return
                self._lacked = NOTHING
                self._keep = reader.keeps and not self._server.stopping
                if gate is None:
                    self._decide(request, None, None)
                else:
                    self._pass(request, gate)
        except Problem as problem:
            self._fail(problem)

    def _await(self, lacked: str) -> None:
        """Start the time limit of a head or a body that has begun to arrive."""
        if lacked is NOTHING:  # a part of an empty line: the limit that runs goes on
            return
        self._lacked = lacked
        if lacked is HEAD:
            self.due = self._server.loop.time() + HEAD_S
        else:
            self.due = self._server.loop.time() + BODY_S
            if self._reader.expects_continue:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # From a request to bytes

    def _pass(self, request: Request, gate: Gate) -> None:
        principal = self._principal if request.headers is self._accepted else None
        if principal is not None and gate.is_known(principal, request):
            self._decide(request, principal, None)
        else:
            self._decide(gate.begin(request, self._peer), principal, gate)

    def _decide(self, request: Request, principal: Principal | None, gate: Gate | None) -> None:
        runtime = self._runtime
        server = self._server
        if server.timed is None:
            server.begin_timing(self)
        # For an identical block of fields the reader returns the same object, whose Host and token have been checked.
        deciding = decide if request.headers is self._accepted else server.decide
        decision = deciding(request, runtime.settings, runtime.rules, principal, gate)
        if type(decision) not in _NOT_FOR_A_STORE:
            self._accepted = request.headers
            self._principal = request.caller.principal if request.caller else principal
            if type(decision) in PLAIN and server.lane is not None and self._keep and self._reader.is_1_1:
                server.lane.learn(self._reader.block, request.headers, decision, self._principal)
            self._busy = True
            self.due = _NEVER
            self._wait = runtime.submit(decision, self._respond, request)  # type: ignore[arg-type]  # as the set says
            if self._wait is not None and server.timed is self and isinstance(decision, LongPoll):
                server.timed = None  # it waits, so its time says nothing
        elif isinstance(decision, Response):
            self._send(request, decision)
        elif isinstance(decision, Follow | FollowMany):
            self._follow(request, decision)
        elif isinstance(decision, FetchKeys):
            self._busy, self.due = True, _NEVER
            self._wait = server.loop.create_task(self._fetch_keys(request, decision))

    async def _fetch_keys(self, request: Request, wanted: FetchKeys) -> None:
        await asyncio.to_thread(wanted.keys.fetch)
        self._wait = None
        self._busy = False
        self._decide(request, None, self._runtime.gate)
        if not self._busy:
            self._finish()

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
        more, is_1_1 = response.more, self._reader.is_1_1
        if more is not None and not is_1_1:
            self._keep = False
        head = response_head(response, server.date, request.method, is_1_1=is_1_1, keeps=self._keep)
        if request.method == "HEAD":
            more = None
        self.due = server.now + IDLE_S
        transport.write(head + response.body if more is None and request.method != "HEAD" else head)  # may call pause_writing
        server.count(self, request.method, response.status)
        if server.log is not None:
            server.log.record(request, response.status)
        if more is not None:
            self._busy = True
            if not self._choked:
                self.due = _NEVER
            self._parts = PartedBody(request, self._runtime.store, transport, self._sent_parts, is_chunked=is_1_1)
            self._parts.is_choked = self._choked
            self._parts.send(response.body, more)
        elif not self._keep:
            self._close()

    def _close(self) -> None:
        """Close when the response is sent. Keep reading for LINGER_S: unread input would make TCP reset the connection."""
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

    def _sent_parts(self) -> None:
        self._parts = None
        if not self._choked:
            self.due = self._server.loop.time() + IDLE_S
        self._finish()

    # What the express lane calls

    @property
    def stays(self) -> bool:
        """Whether the connection stays open after this response."""
        return self._keep and not (self._server.stopping or self._transport.is_closing())

    def write(self, response: bytes, numbers: Numbers) -> None:
        """Write a response, count it, and go on with the next request."""
        server = self._server
        self.due = server.now + IDLE_S
        self._busy = False
        self._transport.write(response)  # may call pause_writing
        numbers[UNTIMED] += 1
        if server.timed is self:
            server.end_timing(numbers)
        if self._reader.size or self._paused or self._ended:
            self._finish()

    def answer(self, data: bytes, outcome: Outcome | Exception) -> None:
        """Answer the request in `data` as any other, with this outcome."""
        reader = self._reader
        reader.put_back(data)
        request = reader.next()
        assert request
        self._keep = reader.keeps and not self._server.stopping
        self._respond(request, outcome)

    def start_over(self, data: bytes) -> None:
        """Execute the request in `data` as any other."""
        self._busy = False
        self._reader.put_back(data)
        self._advance()
        if self._ended and not (self._busy or self._choked):
            self._close()

    def _finish(self) -> None:
        """The response is written: go on with the next request, or close."""
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

    def _follow(self, request: Request, follow: Follow | FollowMany) -> None:
        server = self._server
        self._busy, self.due = True, _NEVER
        is_1_1 = self._reader.is_1_1
        framing = b"\r\nTransfer-Encoding: chunked\r\n\r\n" if is_1_1 else b"\r\nConnection: close\r\n\r\n"

        def head() -> bytes:
            server.count(self, request.method, 200)
            return STATUS_LINES[200] + server.date + field_lines(stream_fields(request, self._runtime.settings)) + framing

        self._followed = request
        self._stream = Stream(server.streams, self._transport, follow, head=head, is_chunked=is_1_1)
        self._stream.start(lambda problem: self._refused(request, problem))

    def _refused(self, request: Request, problem: Problem) -> None:
        """Answer a stream that could not begin."""
        self._stream = None
        self._respond(request, problem)

    def _fail(self, problem: Problem) -> None:
        """Refuse a request that cannot be parsed any further, and close."""
        self._keep = False
        request = Request(*self._reader.asked)
        if self._runtime.gate:
            request = self._runtime.gate.begin(request, self._peer)
        self._send(request, respond(request, problem, self._runtime.settings))
