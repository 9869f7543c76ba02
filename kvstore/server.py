"""HTTP/1.1 on a socket, for one event loop: the fast lane from bytes to `protocol` and back.

A connection handles one request at a time, so pipelined requests are answered in order. What is not well-formed is refused
and the connection closed. Nothing waits forever: a head has HEAD_S to arrive, a body BODY_S, a reply WRITE_S to be taken,
counted from their first byte, however steadily they trickle. Sources: RFC 9112 (HTTP/1.1), RFC 9110 (Expect, Date).
"""

import asyncio
import logging
import re
import socket as socket_constants
from http import HTTPStatus
from socket import AF_UNIX, IPPROTO_TCP
from time import time
from typing import Any, NamedTuple

from kvstore.commands import Command
from kvstore.containers import Follow, Wait
from kvstore.errors import (
    ContentTooLarge,
    HeadersTooLarge,
    InvalidRequest,
    NotImplementedHere,
    PathTooLong,
    Problem,
    RequestTimeout,
    VersionNotSupported,
    bug,
)
from kvstore.following import HEARTBEAT_S
from kvstore.live import MAX_BUFFERED_BYTES, Follower, Hub
from kvstore.messages import MAX_BODY_BYTES, Reply, Request, http_date, refuse
from kvstore.pipeline import AsyncStore
from kvstore.protocol import STREAM, parse, render
from kvstore.settings import Settings
from kvstore.waiting import Waits

log = logging.getLogger("kvstore")

HEAD_S = 10.0
BODY_S = 30.0
WRITE_S = 30.0
LINGER_S = 2.0  # that a client may go on sending after its last reply
IDLE_S = 95.0  # Heroku's router keeps an idle connection for 90 s
CHECK_S = 0.5  # between looks at what is overdue

MAX_LINE_BYTES = 8190  # a path of 1,024 bytes, each escaped, and a query
MAX_HEAD_BYTES = 32 * 1024
MAX_CACHED_BLOCK_BYTES = 2048
MAX_CACHED_BLOCKS = 1024
MAX_READ_AHEAD_BYTES = 64 * 1024  # of requests that wait for the one before them

CR = ord("\r")
_LINE = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}) ([!-~\x80-\xff]+) HTTP/1\.([01])").fullmatch
_OTHER_VERSION = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+ [!-~\x80-\xff]+ HTTP/[0-9](?:\.[0-9])?").fullmatch
_EMPTY_LINES = re.compile(rb"(?:\r\n)+").match
_FIELD = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([\t -~\x80-\xff]*)").fullmatch
# RFC 9110 section 7.2, RFC 3986 section 3.2.2: a name, an address, or nothing, and perhaps a port.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(?::[0-9]*)?").fullmatch
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]*)?").fullmatch

# Fields of which a second one would make the request ambiguous (RFC 9110 section 5.3, RFC 9112 section 3.2).
_SINGLE = ("host", "content-length", "transfer-encoding", "content-type")


class Fields(NamedTuple):
    """A block of header fields, read: by lower-case name, and what it says about the body and the connection."""

    headers: dict[str, str]
    length: int  # of the body in bytes; -1 where it is chunked
    close: bool
    keep_alive: bool
    expects_continue: bool


def parse_fields(block: bytes) -> Fields:
    """A block of header fields without its last CRLF CRLF; raises a Problem where it is not HTTP or not ours.

    Source: RFC 9112 sections 5 and 6.
    """
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n") if block else ():
        field = _FIELD(line)
        if not field:
            raise InvalidRequest("a header field is a name, a colon and a value on one line")
        name = field[1].decode("ascii").lower()
        value = field[2].rstrip(b" \t").decode("latin-1")
        if name in headers:
            if name in _SINGLE:
                raise InvalidRequest(f"the header field {name} comes twice")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    if "host" in headers and not _HOST(headers["host"]):
        raise InvalidRequest("Host is a name or an address, and perhaps a port")
    connection = {token.strip() for token in headers.get("connection", "").lower().split(",")}
    return Fields(
        headers,
        _length(headers),
        "close" in connection,
        "keep-alive" in connection,
        headers.get("expect", "").lower() == "100-continue",
    )


def _length(headers: dict[str, str]) -> int:
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise InvalidRequest("a request has a Content-Length or a Transfer-Encoding, not both")
        if coding.strip().lower() != "chunked":
            raise NotImplementedHere("the only Transfer-Encoding read here is chunked")
        return -1
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()):
        raise InvalidRequest("Content-Length is a number of bytes")
    # Compared as text: int() refuses thousands of digits.
    return MAX_BODY_BYTES + 1 if len(length.lstrip("0")) > 9 else int(length)


class Server:
    """What the connections of one event loop share: the store, the settings, what is open and what is overdue."""

    def __init__(self, settings: Settings, store: AsyncStore, hub: Hub, waits: Waits) -> None:
        self.settings = settings
        self.store = store
        self.hub = hub
        self.waits = waits
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.stopping = False
        self.blocks: dict[bytes, Fields] = {}
        self.date = b""
        self.starting: set[asyncio.Task[None]] = set()  # streams that have not sent their snapshot yet
        self.framed: tuple[bytes, bytes] = (b"", b"")  # the last block that streams sent, and that as a chunk
        self._tick()

    def connection(self) -> "Connection":
        """A protocol for asyncio's create_server."""
        return Connection(self)

    def fields(self, block: bytes) -> Fields:
        """A block of header fields, read. A client sends the same block again and again, so the bytes are the key."""
        fields = self.blocks.get(block)
        if fields is None:
            fields = parse_fields(block)
            if len(block) <= MAX_CACHED_BLOCK_BYTES:
                if len(self.blocks) >= MAX_CACHED_BLOCKS:
                    self.blocks.clear()
                self.blocks[block] = fields
        return fields

    def stop(self) -> None:
        """Close the connections that are idle now, and the others after the request they are in."""
        self.stopping = True
        for connection in tuple(self.connections):
            connection.stop()

    def _tick(self) -> None:
        self.date = b"\r\nDate: " + http_date(int(time())).encode()
        now = self.loop.time()
        for connection in tuple(self.connections):
            if connection.due <= now:
                connection.overdue()
        self.loop.call_later(CHECK_S, self._tick)


_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
_NEVER = float("inf")


class Connection(asyncio.Protocol):
    """One client's connection, as a loop over its requests."""

    __slots__ = (
        "_buffer",
        "_busy",
        "_choked",
        "_chunks",
        "_ended",
        "_fields",
        "_follower",
        "_is_1_1",
        "_keep",
        "_next",
        "_over",
        "_paused",
        "_request",
        "_room",
        "_scanned",
        "_server",
        "_streams",
        "_transport",
        "_wait",
        "due",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made
        self._buffer: bytes | bytearray = b""
        self._scanned = 0  # bytes of the buffer that hold no end of a head
        self._fields: Fields | None = None  # of the request whose body is being read
        self._request: tuple[str, bytes] = ("", b"")  # its method and target
        self._chunks: _Chunks | None = None
        self._keep = True  # the connection after this request
        self._ended = False  # the client sends nothing more
        self._over = False  # the last reply of this connection is written
        self._busy = False  # a command is with the store
        self._paused = False  # reading
        self._choked = False  # writing
        self._next: tuple[Request, Command] | None = None  # of a reply that goes on when the client has read
        self._is_1_1 = True
        self._follower: Follower | None = None
        self._streams = False  # the head of a stream is written
        self._room: asyncio.Future[None] | None = None  # to send more of a snapshot
        self._wait: asyncio.Task[None] | None = None  # of a request that waits for something to answer with
        self.due = server.loop.time() + HEAD_S

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._server.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._server.connections.discard(self)
        self._keep = False
        self._over = True
        if self._follower:
            self._server.hub.leave(self._follower)
            self._make_room()
        if self._wait:
            self._wait.cancel()

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        buffer = self._buffer
        if not buffer:
            self._buffer = data
        elif isinstance(buffer, bytearray):
            buffer += data
        else:
            self._buffer = bytearray(buffer + data)
        if self._busy or self._choked:
            if len(self._buffer) > MAX_READ_AHEAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        self._advance()

    def eof_received(self) -> bool:
        # Half-closed: what has come whole is answered, then the connection ends.
        self._ended = True
        return self._busy and self._follower is None and self._wait is None

    def pause_writing(self) -> None:
        if self._follower and self._follower.is_ready:
            return  # from then on a stream is bounded by what it may buffer
        self._choked = True
        self.due = self._server.loop.time() + WRITE_S

    def resume_writing(self) -> None:
        self._choked = False
        if self._follower:
            self.due = _NEVER
            self._make_room()
            return
        if self._over:
            return
        self.due = _NEVER if self._busy else self._server.loop.time() + IDLE_S
        if self._next:
            (request, more), self._next = self._next, None
            self._server.store.submit(more, self._streamed, request)
        elif not self._busy:
            self._finish()

    # What the server calls

    def overdue(self) -> None:
        """The client has taken too long with a head, a body, or with reading a reply."""
        if self._over or self._transport.get_write_buffer_size():
            self._transport.abort()
        elif self._buffer or self._fields:
            self._fail(RequestTimeout(f"a head has {HEAD_S:.0f} s to arrive and a body {BODY_S:.0f} s; nothing was changed"))
        else:
            self._transport.close()

    def stop(self) -> None:
        """Close now if idle, after the reply if not."""
        self._keep = False
        if not self._busy and not self._buffer and not self._fields:
            self._transport.close()

    # From bytes to a request

    def _advance(self) -> None:
        """Take the requests that are complete from the buffer, one after the other, until one is with the store."""
        try:
            while not self._busy and not self._over and not self._choked and (self._fields is not None or self._buffer):
                if self._fields is None and not self._read_head():
                    return
                if not self._read_body():
                    return
        except Problem as problem:
            self._fail(problem)

    def _read_head(self) -> bool:
        """Read a head, if it is there whole."""
        buffer = self._buffer
        self._request = ("", b"")
        if buffer[0] == CR and (empty := _EMPTY_LINES(buffer)):  # RFC 9112 section 2.2: they are ignored
            self._buffer = buffer = buffer[empty.end() :]
        end = buffer.find(b"\r\n\r\n", self._scanned)
        if end < 0:
            self._await_head()
            return False
        line_end = buffer.find(b"\r\n")
        if line_end > MAX_LINE_BYTES:
            raise _line_too_long()
        if end + 4 > MAX_HEAD_BYTES:
            raise _head_too_large()
        line = _LINE(buffer, 0, line_end)
        if not line:
            raise _bad_line(bytes(buffer[:line_end]))
        self._request = (line[1].decode("ascii"), bytes(line[2]))
        self._is_1_1 = is_1_1 = line[3] == b"1"
        fields = self._server.fields(bytes(buffer[line_end + 2 : end]))
        if is_1_1 and "host" not in fields.headers:
            raise InvalidRequest("a request of HTTP/1.1 has a Host header field")
        self._keep = not fields.close and (is_1_1 or fields.keep_alive) and not self._server.stopping
        if fields.length > MAX_BODY_BYTES:
            raise _body_too_large()
        if fields.length < 0:
            if not is_1_1:
                raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding")
            self._chunks = _Chunks()
        self._fields = fields
        self._buffer = buffer[end + 4 :]
        self._scanned = 0
        return True

    def _await_head(self) -> None:
        buffer = self._buffer
        if not self._scanned:
            self.due = self._server.loop.time() + HEAD_S
        self._scanned = max(len(buffer) - 3, 1)
        if len(buffer) >= MAX_LINE_BYTES + 2 and buffer.find(b"\r\n", 0, MAX_LINE_BYTES + 2) < 0:
            raise _line_too_long()
        if len(buffer) >= MAX_HEAD_BYTES:
            raise _head_too_large()

    def _read_body(self) -> bool:
        """Read the body of the request whose head was read, if it is there whole, and hand the request on."""
        fields = self._fields
        assert fields is not None
        buffer = self._buffer
        if self._chunks:
            consumed, complete = self._chunks.feed(buffer)
            self._buffer = buffer[consumed:]
            if not complete:
                self._await_body(fields)
                return False
            body = self._chunks.body()
            self._chunks = None
        elif fields.length:
            if len(buffer) < fields.length:
                self._await_body(fields)
                return False
            body = bytes(buffer[: fields.length])
            self._buffer = buffer[fields.length :]
        else:
            body = b""
        self._scanned = 0
        self._fields = None
        self._answer(Request(self._request[0], self._request[1], fields.headers, body))
        return True

    def _await_body(self, fields: Fields) -> None:
        if not self._scanned:  # the first look at this body
            self._scanned = 1
            self.due = self._server.loop.time() + BODY_S
            if fields.expects_continue and self._is_1_1 and not self._buffer:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # From a request to bytes

    def _answer(self, request: Request) -> None:
        server = self._server
        try:
            command = parse(request, server.settings)
        except Problem as problem:
            self._send(request, refuse(problem))
            return
        except Exception:
            log.exception("a request failed by a bug of ours")
            self._send(request, refuse(bug()))
            return
        if isinstance(command, Reply):
            self._send(request, command)
            return
        if isinstance(command, Follow):
            self._follow(request, command)
            return
        if isinstance(command, Wait):
            self._busy = True
            self.due = _NEVER
            self._wait = server.loop.create_task(self._answer_late(request, command))
            return
        self._busy = True
        self.due = _NEVER
        server.store.submit(command, self._answered, request)

    def _answered(self, request: Request, outcome: Any) -> None:
        try:
            if isinstance(outcome, Exception):
                raise outcome
            reply = render(request, outcome)
        except Problem as problem:
            reply = refuse(problem)
        except Exception:
            log.exception("a request failed by a bug of ours")
            reply = refuse(bug())
        self._send(request, reply)
        if reply.more is None or request.method == "HEAD":
            self._finish()

    def _send(self, request: Request, reply: Reply) -> None:
        server = self._server
        status, headers, body, more = reply
        fields = "".join([f"\r\n{name}: {value}" for name, value in headers])
        parts = [_STATUS[status], server.date, fields.encode("latin-1")]
        if more is not None:
            if self._is_1_1:
                parts.append(b"\r\nTransfer-Encoding: chunked")
            else:
                self._keep = False
        elif status not in (204, 304):
            parts.append(b"\r\nContent-Length: %d" % len(body))
        if not self._keep:
            parts.append(b"\r\nConnection: close")
        elif not self._is_1_1:
            parts.append(b"\r\nConnection: keep-alive")
        parts.append(b"\r\n\r\n")
        if request.method == "HEAD":
            more = None
        elif more is None:
            parts.append(body)
        self.due = server.loop.time() + IDLE_S
        self._transport.write(b"".join(parts))  # may call pause_writing
        if more is not None:
            self._stream(request, body, more)
        elif not self._keep:
            self._close()

    def _close(self) -> None:
        """Close after what is written. Reading goes on for a while: what nobody reads would make TCP take the reply back."""
        if self._over:
            return
        self._over = True
        self._buffer, self._fields, self._chunks = b"", None, None
        if self._ended or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        is_taken = not self._transport.get_write_buffer_size()
        self.due = self._server.loop.time() + (LINGER_S if is_taken else WRITE_S)
        if self._paused:
            self._transport.resume_reading()

    def _stream(self, request: Request, part: bytes, more: Command | None) -> None:
        """Send a part of a body, then what follows it, as fast as the client reads."""
        self._busy = True
        self.due = _NEVER
        if part:
            self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if self._is_1_1 else part)
        if more is None:
            if self._is_1_1:
                self._transport.write(b"0\r\n\r\n")
            self._finish()
        elif self._choked:
            self._next = (request, more)
        else:
            self._server.store.submit(more, self._streamed, request)

    def _streamed(self, request: Request, outcome: Any) -> None:
        if self._transport.is_closing():
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            reply = render(request, outcome)
        except Exception as error:
            log.error("a reply was cut off: %s", type(error).__name__)
            self._transport.abort()  # so that the client does not take half of it for the whole
            return
        self._stream(request, reply.body, reply.more)

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
        self.due = self._server.loop.time() + IDLE_S
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._buffer:
            self._advance()
        if self._ended and not self._busy:
            self._close()

    async def _answer_late(self, request: Request, wait: Wait) -> None:
        try:
            outcome = await self._server.waits.outcome(wait)
        except Exception as error:
            outcome = error
        self._wait = None
        self._answered(request, outcome)

    # Streams of events

    def _follow(self, request: Request, follow: Follow) -> None:
        server = self._server
        self._busy = True
        self.due = _NEVER
        self._follower = Follower(follow.path, self._send_block, self._end_stream, self._has_room)
        socket = self._transport.get_extra_info("socket")
        if socket.family != AF_UNIX and hasattr(socket_constants, "TCP_USER_TIMEOUT"):  # a peer that vanished without a word
            socket.setsockopt(IPPROTO_TCP, socket_constants.TCP_USER_TIMEOUT, int(2000 * HEARTBEAT_S))
        task = server.loop.create_task(self._start_stream(request, follow, self._follower))
        server.starting.add(task)
        task.add_done_callback(server.starting.discard)

    async def _start_stream(self, request: Request, follow: Follow, follower: Follower) -> None:
        try:
            await self._server.hub.follow(follow, follower)
        except Exception as error:
            if self._streams:
                self._transport.abort()
                return
            if not isinstance(error, Problem):
                log.exception("a request failed by a bug of ours")
            self._follower = None
            self._send(request, refuse(error if isinstance(error, Problem) else bug()))
            self._finish()

    def _send_block(self, block: bytes) -> None:
        transport, server = self._transport, self._server
        if transport.is_closing():
            return
        if not self._streams:
            self._streams = True
            fields = "".join([f"\r\n{name}: {value}" for name, value in STREAM])
            framing = b"\r\nTransfer-Encoding: chunked\r\n\r\n" if self._is_1_1 else b"\r\nConnection: close\r\n\r\n"
            transport.write(_STATUS[200] + server.date + fields.encode() + framing)
        if transport.get_write_buffer_size() > MAX_BUFFERED_BYTES:
            transport.abort()
            return
        if self._is_1_1:
            if server.framed[0] is not block:
                server.framed = block, b"%x\r\n%b\r\n" % (len(block), block)
            block = server.framed[1]
        transport.write(block)

    async def _has_room(self) -> None:
        """Wait until the client has read what a snapshot has sent so far; it has WRITE_S for that."""
        if self._choked and not self._over:
            self._room = self._server.loop.create_future()
            await self._room

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room and not room.done():
            room.set_result(None)

    def _end_stream(self) -> None:
        if self._is_1_1 and self._streams and not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")
        self._transport.close()

    def _fail(self, problem: Problem) -> None:
        """Refuse what cannot be read any further, and close."""
        self._keep = False
        self._send(Request(*self._request, {}), refuse(problem))


class _Chunks:
    """The chunked transfer coding, decoded as it comes (RFC 9112 section 7.1); raises a Problem."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._left = 0  # bytes of the present chunk that have not come, its CRLF included
        self._in_trailers = False

    def body(self) -> bytes:
        return b"".join(self._parts)

    def feed(self, buffer: bytes | bytearray) -> tuple[int, bool]:
        """Take what is complete from the buffer: how many bytes that was, and whether the body has ended."""
        at = 0
        while True:
            if self._left:
                end = at + self._left
                if len(buffer) < end:
                    return at, False
                if buffer[end - 2 : end] != b"\r\n":
                    raise InvalidRequest("a chunk is as long as it says, and ends in CRLF")
                self._parts.append(bytes(buffer[at : end - 2]))
                self._left, at = 0, end
                continue
            end = buffer.find(b"\r\n", at)
            if (end if end >= 0 else len(buffer)) - at > MAX_LINE_BYTES:
                raise InvalidRequest("a chunk's size, or a trailer, is too long")
            if end < 0:
                return at, False
            line = bytes(buffer[at:end])
            at = end + 2
            if self._in_trailers:
                if not line:
                    return at, True
                self._count_trailer(line)
                continue
            chunk = _CHUNK(line)
            if not chunk:
                raise InvalidRequest("a chunk starts with its size in hexadecimal digits")
            size = int(chunk[1], 16)
            self._size += size
            if self._size > MAX_BODY_BYTES:
                raise _body_too_large()
            if size:
                self._left = size + 2
            else:
                self._in_trailers = True

    def _count_trailer(self, line: bytes) -> None:
        self._size += len(line)
        if not _FIELD(line) or self._size > MAX_BODY_BYTES + MAX_HEAD_BYTES:
            raise InvalidRequest("a trailer field is a name, a colon and a value on one line")


def _bad_line(line: bytes) -> Problem:
    if _OTHER_VERSION(line):
        return VersionNotSupported("this server speaks HTTP/1.1 and HTTP/1.0")
    return InvalidRequest("a request line is a method, a target and a version; escape spaces and controls in the target")


def _line_too_long() -> Problem:
    return PathTooLong(f"a request line has at most {MAX_LINE_BYTES:,} bytes")


def _head_too_large() -> Problem:
    return HeadersTooLarge(f"the header fields have at most {MAX_HEAD_BYTES:,} bytes together")


def _body_too_large() -> Problem:
    return ContentTooLarge(f"a body has at most {MAX_BODY_BYTES:,} bytes; split the document into several")
