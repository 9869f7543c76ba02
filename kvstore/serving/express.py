"""The express lane: plain GETs and PUTs, from the bytes of a request to the bytes of its response, without values in between.

A request is plain if it arrived as a whole, its path is canonical as it stands, and the general way has made a Get, or a Put
without options, of a request with the same block of header fields. All that arrive in one turn of the event loop for one
namespace are one command. The access rules judge each of them.

Whatever else there is goes the general way, from the same bytes: other requests, documents that do not exist, refusals, and
connections that end. A test holds both ways to the same responses; KVSTORE_EXPRESS=off leaves the general way only.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from time import time
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from kvstore.access.judging import READING, REPLACING
from kvstore.access.principal import Principal
from kvstore.commands.base import Found, Missing, RedisReply, Stored
from kvstore.commands.bulk import CREATED, MAX_COALESCED, MAX_COALESCED_BYTES, PlainGets, PlainPuts, lag_ms
from kvstore.commands.documents import Get, Put
from kvstore.core.codec import decode, encode_plain
from kvstore.core.errors import unavailable
from kvstore.core.metrics import COUNTERS, Numbers
from kvstore.core.paths import Path, plain_path
from kvstore.core.preconditions import NONE, tag_time_ms
from kvstore.http.documents import document_dates
from kvstore.http.messages import DOCUMENT, with_ttl
from kvstore.runtime import Runtime
from kvstore.serving.heads import STATUS_LINES, field_lines

log = logging.getLogger("kvstore")

MAX_BLOCKS = 1024  # of header fields that are known to be plain, each of 2 KiB at most
LATE_S = 1.5  # of a reply, for a request that is then executed the general way: both must end within 6 s (docs/errors.md)

# Fields that change the response and not the command, and one that announces a body without its length.
_SPECIAL = frozenset({"origin", "prefer", "transfer-encoding"})

PLAIN = frozenset({Get, Put})  # the commands of plain requests

_VERSION = b" HTTP/1.1"
_HEADS = {status: (STATUS_LINES[status], field_lines(DOCUMENT)) for status in (200, 201)}  # what is before and after Date

_Command = TypeVar("_Command", PlainGets, PlainPuts)


class Client(Protocol):
    """A connection whose client has sent a plain request and waits for the response."""

    @property
    def stays(self) -> bool:
        """Whether it goes on after this response."""

    def write(self, response: bytes, numbers: Numbers) -> None:
        """Write the response, count it, and go on with the next request."""

    def answer(self, data: bytes, outcome: Any) -> None:
        """Answer the request in `data` the general way."""

    def start_over(self, data: bytes) -> None:
        """Execute the request in `data` the general way."""

    def cut(self) -> None:
        """Drop the connection at once."""


class _Block(NamedTuple):
    """What a block of header fields says: the length of the body, and whose token there is."""

    length: int
    principal: Principal | None


class _Batch(NamedTuple, Generic[_Command]):
    """Requests of one turn: their command, for each of them its client and its bytes, and the loop's time."""

    command: _Command
    requests: list[tuple[Client, bytes]]
    began: float


class ExpressLane:
    """The express lane of one event loop. `date` is the header field Date, as a line."""

    def __init__(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        self.date = b""
        self._loop = loop
        self._store = runtime.store
        self._rules = runtime.rules
        self._ttl_ms = runtime.settings.default_ttl_s * 1000
        self._log_length = runtime.settings.log_length
        self._get_blocks: dict[bytes, _Block] = {}
        self._put_blocks: dict[bytes, _Block] = {}
        self._gets: dict[str, _Batch[PlainGets]] = {}  # of this turn, by namespace
        self._puts: dict[str, _Batch[PlainPuts]] = {}
        self._full_gets: list[_Batch[PlainGets]] = []
        self._full_puts: list[_Batch[PlainPuts]] = []
        self._is_scheduled = False  # the end of this turn

    def learn(self, block: bytes, headers: Mapping[str, str], command: object, principal: Principal | None) -> None:
        """Note that the general way has made `command` of a request of HTTP/1.1 with this block, whose connection stays."""
        length = headers.get("content-length")
        if not block or not _SPECIAL.isdisjoint(headers):
            return
        if type(command) is Get and length is None:
            blocks, key = self._get_blocks, b"\r\n%b\r\n\r\n" % block
        elif type(command) is Put and length is not None and command.preconditions is NONE:
            blocks, key = self._put_blocks, b"\r\n%b" % block
        else:
            return
        if len(blocks) >= MAX_BLOCKS:
            blocks.clear()
        blocks[key] = _Block(int(length or 0), principal)

    def take(self, client: Client, data: bytes) -> bool:
        """Take what a client has sent if it is one plain request; False: it goes the general way."""
        if data.startswith(b"GET "):
            return self._take_get(client, data)
        return data.startswith(b"PUT ") and self._take_put(client, data)

    def _take_get(self, client: Client, data: bytes) -> bool:
        line_end = data.find(b"\r\n")
        block = self._get_blocks.get(data[line_end:])
        if block is None or (path := self._path(data, line_end, block.principal, READING)) is None:
            return False
        batch = self._gets.get(path.namespace)
        if batch is None:
            batch = self._gets[path.namespace] = self._open(PlainGets(path, []))
        names = batch.command.names
        names.append(path.name)
        batch.requests.append((client, data))
        if len(names) == MAX_COALESCED:
            self._full_gets.append(self._gets.pop(path.namespace))
        return True

    def _take_put(self, client: Client, data: bytes) -> bool:
        line_end = data.find(b"\r\n")
        head_end = data.find(b"\r\n\r\n", line_end)
        block = self._put_blocks.get(data[line_end:head_end])
        if block is None or head_end < 0 or len(data) - head_end - 4 != block.length or block.length > MAX_COALESCED_BYTES:
            return False
        path = self._path(data, line_end, block.principal, REPLACING)
        if path is None or (encoded := encode_plain(data[head_end + 4 :])) is None:
            return False
        batch = self._puts.get(path.namespace)
        if batch is not None and path.name in batch.command.documents:  # what came later is written later
            self._full_puts.append(batch)
            batch = None
        if batch is None:
            batch = self._puts[path.namespace] = self._open(PlainPuts(path, {}, self._ttl_ms, self._log_length))
        documents = batch.command.documents
        documents[path.name] = encoded
        batch.requests.append((client, data))
        if len(documents) == MAX_COALESCED:
            self._full_puts.append(self._puts.pop(path.namespace))
        return True

    def _path(self, data: bytes, line_end: int, principal: Principal | None, rights: int) -> Path | None:
        """Return the path in a request line, None if it is not plain or the rules do not plainly permit the request."""
        if data[line_end - len(_VERSION) : line_end] != _VERSION:
            return None
        path = plain_path(data[4 : line_end - len(_VERSION)])
        if path is None or self._rules is None:
            return path
        if principal is not None and principal.expires_at_s is not None and principal.expires_at_s <= time():
            return None
        view = self._rules.view(principal)
        return path if view.is_admin or view.permits(path.text, rights) else None

    def _open(self, command: _Command) -> _Batch[_Command]:
        """Begin a batch, which is sent at the end of this turn."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._send)
        return _Batch(command, [], self._loop.time())

    def _send(self) -> None:
        """Send what was taken in this turn."""
        puts, self._full_puts, self._puts = [*self._full_puts, *self._puts.values()], [], {}
        gets, self._full_gets, self._gets = [*self._full_gets, *self._gets.values()], [], {}
        self._is_scheduled = False
        for written in puts:
            self._store.submit(written.command, self._answer_puts, written)
        for read in gets:
            self._store.submit(read.command, self._answer_gets, read)
        self._store.flush()

    def _answer_gets(self, batch: _Batch[PlainGets], reply: RedisReply) -> None:
        if isinstance(reply, Exception):
            _each(batch.requests, lambda client, data: client.answer(data, reply))
            return
        time_ms, documents, times_ms = reply
        head, numbers = self._head(200), _numbers("GET", 200)
        for (client, data), fields, at_ms in zip(batch.requests, documents, times_ms, strict=True):
            try:
                if fields is None:
                    client.answer(data, Missing())
                elif type(fields) is not list:  # it was not read
                    self._start_over(batch.began, client, data)
                else:
                    expires_at_ms = at_ms if at_ms >= 0 else None
                    ttl_ms = None if expires_at_ms is None else at_ms - time_ms
                    document = text, is_object, tag = decode(fields)
                    if not client.stays:
                        client.answer(data, Found(*document, expires_at_ms, ttl_ms))
                        continue
                    dates = _dates(None if tag is None else tag_time_ms(tag), expires_at_ms)
                    client.write(_response(head, tag, dates, with_ttl(text, ttl_ms if is_object else None)), numbers)
            except Exception:
                _drop(client)

    def _answer_puts(self, batch: _Batch[PlainPuts], reply: RedisReply) -> None:
        if isinstance(reply, Exception):
            _each(batch.requests, lambda client, data: client.answer(data, reply))
            return
        if reply is None:  # one of them would be refused: nothing was changed
            _each(batch.requests, lambda client, data: self._start_over(batch.began, client, data))
            return
        path, documents, ttl_ms, *_ = batch.command
        behind_ms = lag_ms(reply)
        replaced, created = (self._head(200), _numbers("PUT", 200)), (self._head(201), _numbers("PUT", 201))
        known_ms = -1
        answers = zip(batch.requests, documents.items(), reply[1], reply[2], strict=True)
        for (client, data), (name, encoded), raw_tag, word in answers:
            try:
                tag = raw_tag.decode()
                time_ms = tag_time_ms(tag)
                if time_ms != known_ms:  # most of a batch are written in the same ms
                    known_ms, expires_at_ms = time_ms, time_ms - behind_ms + ttl_ms
                    dates = _dates(time_ms, expires_at_ms)
                if not client.stays:
                    client.answer(data, Stored(Found(encoded.text, True, tag, expires_at_ms, ttl_ms), word == CREATED))
                    continue
                body = with_ttl(encoded.text, ttl_ms)
                if word == CREATED:
                    head, numbers = created
                    client.write(_response(head, tag, f"{dates}\r\nLocation: /{path.namespace}/{name}", body), numbers)
                else:
                    head, numbers = replaced
                    client.write(_response(head, tag, dates, body), numbers)
            except Exception:
                _drop(client)

    def _start_over(self, began: float, client: Client, data: bytes) -> None:
        """Have a request that was not executed go the general way, unless Redis has taken too long for that."""
        if self._loop.time() - began < LATE_S:
            client.start_over(data)
        else:
            client.answer(data, unavailable("Redis answers too slowly; send the request again. Nothing was changed"))

    def _head(self, status: int) -> bytes:
        line, fields = _HEADS[status]
        return line + self.date + fields


def open_lane(runtime: Runtime, loop: asyncio.AbstractEventLoop) -> ExpressLane | None:
    """Return the express lane of an event loop; None if it is switched off, or each request has to be looked at by itself."""
    is_usable = runtime.settings.express and (runtime.gate is None or runtime.gate.has_secrets_only)
    return ExpressLane(runtime, loop) if is_usable else None


def _each(requests: list[tuple[Client, bytes]], act: Callable[[Client, bytes], None]) -> None:
    for client, data in requests:
        try:
            act(client, data)
        except Exception:
            _drop(client)


def _drop(client: Client) -> None:
    """A bug in the answer to one client must not break the answers to others."""
    log.exception("a response was lost by a bug of ours")
    client.cut()


def _numbers(method: str, status: int) -> Numbers:
    return COUNTERS.requests.get((method, status)) or COUNTERS.first(method, status)


def _response(head: bytes, tag: str | None, more: str, body: bytes) -> bytes:
    """Return the response that shows a document, as http/documents.py makes it; `head` is before ETag, `more` after it."""
    tag_field = "" if tag is None else f'\r\nETag: "{tag}"'
    fields = f"{tag_field}{more}\r\nContent-Length: {len(body) + 1}\r\n\r\n"
    return b"%b%b%b\n" % (head, fields.encode(), body)


def _dates(written_at_ms: int | None, expires_at_ms: int | None) -> str:
    """Return the header fields with the dates of a document, as lines."""
    return _date_lines(
        None if written_at_ms is None else written_at_ms // 1000, None if expires_at_ms is None else expires_at_ms // 1000
    )


@lru_cache(maxsize=1024)
def _date_lines(written_at_s: int | None, expires_at_s: int | None) -> str:
    return field_lines(document_dates(written_at_s, expires_at_s)).decode()
