"""A parser of HTTP/1.1: bytes as they arrive into complete requests. It does no I/O; time limits are for the caller.

A request that is malformed, or that another parser might read differently, is refused, and nothing after it is parsed.
Sources: RFC 9112 (HTTP/1.1), RFC 9110 (fields, Expect, Host).
"""

import re
from functools import lru_cache
from typing import NamedTuple

from kvstore.core.errors import (
    HeadersTooLarge,
    InvalidRequest,
    NotImplementedHere,
    PathTooLong,
    Problem,
    VersionNotSupported,
)
from kvstore.http.messages import MAX_BODY_BYTES, Request
from kvstore.serving.bounds import MAX_HEAD_BYTES, MAX_LINE_BYTES
from kvstore.serving.exchange import add_field, too_large

MAX_CACHED_BLOCK_BYTES = 2048
MAX_CACHED_BLOCKS = 1024

# The part of a request that has begun to arrive and is incomplete.
NOTHING, HEAD, BODY = "nothing", "head", "body"

CR = ord("\r")
_LINE = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}) ([!-~\x80-\xff]+) HTTP/1\.([01])").fullmatch
_OTHER_VERSION = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+ [!-~\x80-\xff]+ HTTP/[0-9](?:\.[0-9])?").fullmatch
_EMPTY_LINES = re.compile(rb"(?:\r\n)+").match
_FIELD = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*+([\t -~\x80-\xff]*)").fullmatch
# RFC 9110 section 7.2, RFC 3986 section 3.2.2: a name, an address, or nothing, and perhaps a port.
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(?::[0-9]*)?").fullmatch
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~\x80-\xff]*)?").fullmatch

# Fields of which a second one would make the request ambiguous (RFC 9110 section 5.3, RFC 9112 section 3.2).
_SINGLE = ("host", "content-length", "transfer-encoding", "content-type")


class Fields(NamedTuple):
    """A parsed block of header fields: by lower-case name, and what it says about the body and the connection."""

    headers: dict[str, str]
    length: int  # of the body in bytes; -1 if it is chunked
    close: bool
    keep_alive: bool
    expects_continue: bool


def parse_fields(block: bytes) -> Fields:
    """Parse a block of header fields without its final CRLF CRLF; raises a Problem if it is malformed or not supported.

    Source: RFC 9112 sections 5 and 6.
    """
    headers: dict[str, str] = {}
    for line in block.split(b"\r\n") if block else ():
        field = _FIELD(line)
        if not field:
            raise InvalidRequest("a header field must be a name, a colon and a value on one line")
        name = field[1].decode("ascii").lower()
        value = field[2].rstrip(b" \t").decode("latin-1")
        if name in headers and name in _SINGLE:
            raise InvalidRequest(f"the header field {name} occurs twice; send it once")
        add_field(headers, name, value)
    if "host" in headers and not _HOST(headers["host"]):
        raise InvalidRequest("Host must be a name or an address, optionally with a port")
    connection = {token.strip() for token in headers.get("connection", "").lower().split(",")}
    return Fields(
        headers,
        _length(headers),
        "close" in connection,
        "keep-alive" in connection,
        headers.get("expect", "").lower() == "100-continue",
    )


_NO_FIELDS: dict[str, str] = {}
_NOTHING_ASKED: tuple[str, bytes, dict[str, str]] = "", b"", _NO_FIELDS

_known_fields = lru_cache(maxsize=MAX_CACHED_BLOCKS)(parse_fields)


def _length(headers: dict[str, str]) -> int:
    length = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise InvalidRequest("send Content-Length or Transfer-Encoding, not both")
        if coding.strip().lower() != "chunked":
            raise NotImplementedHere("the only Transfer-Encoding that is supported is chunked")
        return -1
    if length is None:
        return 0
    if not (length.isascii() and length.isdigit()):
        raise InvalidRequest("Content-Length must be a number of bytes")
    # Compared as text: int() refuses thousands of digits.
    return MAX_BODY_BYTES + 1 if len(length.lstrip("0")) > 9 else int(length)


class Reader:
    """The requests of one connection: `feed` takes bytes as they arrive, `next` returns complete requests.

    `lacks` says which part of the next request is incomplete: NOTHING, HEAD or BODY. The other attributes describe the
    request that was returned last, or that is being read: `asked` has its method, target and header fields, `block` these
    fields as bytes (empty if they are many), `is_1_1` its version, `keeps` whether the client keeps the connection open,
    `expects_continue` whether it waits for a 100.
    """

    __slots__ = ("_buffer", "_chunks", "_fields", "_scanned", "asked", "block", "is_1_1", "keeps", "lacks")

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""
        self._scanned = 0  # bytes of the buffer in which no head ends
        self._fields: Fields | None = None  # of the request whose body is being read
        self._chunks: _Chunks | None = None
        self.lacks = NOTHING
        self.asked = _NOTHING_ASKED
        self.block = b""
        self.is_1_1 = True
        self.keeps = True

    @property
    def size(self) -> int:
        """Bytes that were fed and not consumed."""
        return len(self._buffer)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the next request has arrived."""
        return not self._buffer and self.lacks is NOTHING

    @property
    def expects_continue(self) -> bool:
        return self._fields is not None and self._fields.expects_continue and self.is_1_1 and not self._buffer

    def feed(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        buffer = self._buffer
        if not buffer:
            self._buffer = data
        elif isinstance(buffer, bytearray):
            buffer += data
        else:
            self._buffer = bytearray(buffer + data)

    def put_back(self, data: bytes) -> None:
        """Add bytes before those that were not consumed; only between two requests."""
        self._buffer = data + self._buffer
        self._scanned = 0

    def next(self) -> Request | None:
        """Return the next request, None if it is incomplete; raises Problem, and must not be called again after that."""
        fields = self._fields
        if fields is None:
            if not self._buffer:
                return None
            fields = self._read_head()
            if fields is None:
                return None
        body = self._read_body(fields) if fields.length else b""
        if body is None:
            self.lacks = BODY
            return None
        self.lacks = NOTHING
        self._fields = None
        return Request(*self.asked, body)

    def _read_head(self) -> Fields | None:
        buffer = self._buffer
        self.asked = _NOTHING_ASKED
        if buffer[0] == CR and (empty := _EMPTY_LINES(buffer)):  # RFC 9112 section 2.2: they are ignored
            self._buffer = buffer = buffer[empty.end() :]
        end = buffer.find(b"\r\n\r\n", self._scanned)
        if end < 0:
            self._await_head(buffer)
            return None
        line_end = buffer.find(b"\r\n")
        if line_end > MAX_LINE_BYTES:
            raise _line_too_long()
        if end + 4 > MAX_HEAD_BYTES:
            raise _head_too_large()
        line = _LINE(buffer, 0, line_end)
        if not line:
            raise _bad_line(bytes(buffer[:line_end]))
        method, target = line[1].decode("ascii"), bytes(line[2])
        self.asked = method, target, _NO_FIELDS
        self.is_1_1 = is_1_1 = line[3] == b"1"
        block = bytes(buffer[line_end + 2 : end])
        # A client sends the same block with every request.
        is_short = len(block) <= MAX_CACHED_BLOCK_BYTES
        fields = _known_fields(block) if is_short else parse_fields(block)
        self.block = block if is_short else b""
        self.asked = method, target, fields.headers
        if is_1_1 and "host" not in fields.headers:
            raise InvalidRequest("a request of HTTP/1.1 must have a Host header field")
        self.keeps = not fields.close and (is_1_1 or fields.keep_alive)
        if fields.length > MAX_BODY_BYTES:
            raise too_large()
        if fields.length < 0:
            if not is_1_1:
                raise InvalidRequest("Transfer-Encoding needs HTTP/1.1")
            self._chunks = _Chunks()
        self._fields = fields
        self._buffer = buffer[end + 4 :]
        self._scanned = 0
        return fields

    def _await_head(self, buffer: bytes | bytearray) -> None:
        self.lacks = HEAD if buffer else NOTHING
        self._scanned = max(len(buffer) - 3, 0)
        if len(buffer) >= MAX_LINE_BYTES + 2 and buffer.find(b"\r\n", 0, MAX_LINE_BYTES + 2) < 0:
            raise _line_too_long()
        if len(buffer) >= MAX_HEAD_BYTES:
            raise _head_too_large()

    def _read_body(self, fields: Fields) -> bytes | None:
        length, buffer = fields.length, self._buffer
        if self._chunks:
            consumed, is_complete = self._chunks.feed(buffer)
            if consumed:  # otherwise a chunk that trickles in would be copied with each of its bytes
                self._buffer = buffer[consumed:]
            if not is_complete:
                return None
            body = self._chunks.body()
            self._chunks = None
            return body
        if len(buffer) < length:
            return None
        self._buffer = buffer[length:]
        return bytes(buffer[:length])


class _Chunks:
    """A decoder of the chunked transfer coding (RFC 9112 section 7.1); raises a Problem."""

    def __init__(self) -> None:
        self._body = bytearray()  # not a list of chunks: an object for each tiny chunk would take many times its bytes
        self._size = 0
        self._left = 0  # bytes of the current chunk that have not arrived, its CRLF included
        self._in_trailers = False

    def body(self) -> bytes:
        return bytes(self._body)

    def feed(self, buffer: bytes | bytearray) -> tuple[int, bool]:
        """Decode what is complete in the buffer; returns the number of bytes consumed, and whether the body has ended."""
        at = 0
        while True:
            if self._left:
                end = at + self._left
                if len(buffer) < end:
                    return at, False
                if buffer[end - 2 : end] != b"\r\n":
                    raise InvalidRequest("a chunk must have the size that it declares, and end with CRLF")
                self._body += buffer[at : end - 2]
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
                raise InvalidRequest("a chunk must begin with its size in hexadecimal digits")
            size = int(chunk[1], 16)
            self._size += size
            if self._size > MAX_BODY_BYTES:
                raise too_large()
            if size:
                self._left = size + 2
            else:
                self._in_trailers = True

    def _count_trailer(self, line: bytes) -> None:
        self._size += len(line)
        if not _FIELD(line) or self._size > MAX_BODY_BYTES + MAX_HEAD_BYTES:
            raise InvalidRequest("a trailer field must be a name, a colon and a value on one line")


def _bad_line(line: bytes) -> Problem:
    if _OTHER_VERSION(line):
        return VersionNotSupported("this server supports HTTP/1.1 and HTTP/1.0")
    return InvalidRequest(
        "a request line must be a method, a target and a version; percent-encode spaces and control characters in the target"
    )


def _line_too_long() -> Problem:
    return PathTooLong(f"the request line has more than {MAX_LINE_BYTES:,} bytes; use a shorter path or query")


def _head_too_large() -> Problem:
    return HeadersTooLarge(f"the header fields have more than {MAX_HEAD_BYTES:,} bytes; send fewer or shorter ones")
