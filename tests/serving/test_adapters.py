"""One behaviour: the same requests get the same answers from Flask, from ASGI, and from the production server.

Each adapter has an empty Redis database of its own. What depends on the time is made comparable: an entity-tag counts as the
number it came as, a date as there or not there, a `ttl` within five seconds.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from kvstore.core.json_text import MAX_BYTES
from kvstore.serving.asgi import Application
from tests.support.clients import Answer, AsgiClient, Client, FlaskClient, Headers, Lines, make_scope
from tests.support.inprocess import InProcess
from tests.support.loops import Loop
from tests.support.serving import wire as request_bytes
from tests.support.stores import Running, connect, wait_for_disk, wait_until
from tests.support.wires import Wire

ADAPTERS = ("flask", "asgi", "served")
TOO_LARGE = b"<one byte over the limit>"  # stands for that body, which a report had better not print
UNLIKE = {"date", "connection"}  # the server's own word, which an adapter has not


class InProcessClient:
    """The production server over one connection that is kept for as long as the server keeps it."""

    def __init__(self, store: Running) -> None:
        self._server = InProcess(store.url)
        self._wire: Wire | None = None

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        if self._wire is None or self._wire.has_ended():
            self._wire = self._server.connect()
        self._wire.send_what_is_read(request_bytes(method, target, headers, body))
        raw = self._wire.answer(method)
        if raw.closes:
            assert self._wire.rest() == b""
            self._wire.close()
            self._wire = None
        return Answer(raw.status, Headers(raw.lines), raw.body)

    def close(self) -> None:
        if self._wire:
            self._wire.close()
        self._server.stop()


@pytest.fixture(scope="module")
def three(started: Callable[[str], Running]) -> Iterator[dict[str, tuple[Client, Running]]]:
    """A client of each adapter, and the database that is its own."""
    url = started("redis").url
    databases = [Running(f"{url}?db={number}", None, lambda: None) for number in (1, 2, 3)]
    clients: list[Client] = [FlaskClient(databases[0], {}), AsgiClient(databases[1], {}), InProcessClient(databases[2])]
    yield dict(zip(ADAPTERS, zip(clients, databases, strict=True), strict=True))
    for client, database in zip(clients, databases, strict=True):
        client.close()
        database.stop()


class Asked(NamedTuple):
    """A request. In a header's value `"t0"`, `"t1"`… are the entity-tags seen so far."""

    method: str
    target: bytes
    headers: list[tuple[str, str]]
    body: bytes


class Known:
    """What an adapter has answered so far: the entity-tags in the order in which they came."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    def sent(self, value: str) -> str:
        """A header's value, with the tags that this adapter gave."""
        return re.sub(r'"t(\d)"', lambda found: self.tags[int(found[1])] if int(found[1]) < len(self.tags) else '"1-1"', value)

    def _timeless(self, text: bytes) -> bytes:
        """A text without tags, and without the ids and times that are made alike."""

        def name(found: re.Match[bytes]) -> bytes:
            tag = f'"{found[0].decode().replace("a", "-")}"'
            return b"tag %d" % self.tags.index(tag) if tag in self.tags else found[0]

        text = re.sub(rb"(?<![0-9])[0-9]+[-a][0-9]+(?![0-9])", name, text)
        return re.sub(rb"\d{13}", b"a time", text)

    def comparable(self, method: str, answer: Answer) -> tuple[int, dict[str, str], bytes]:
        """An answer without what must differ."""
        body = answer.body
        if "ETag" in answer.headers and answer.tag not in self.tags:
            self.tags.append(answer.tag)
        body = self._timeless(body)
        body = re.sub(rb'"ttl":(\d+)', lambda found: b'"ttl":%d' % (-(-int(found[1]) // 5) * 5), body)
        headers = {}
        for name, value in answer.headers.items():
            if name == "etag":
                headers[name] = f"tag {self.tags.index(value)}"
            elif name in ("last-modified", "sunset"):
                headers[name] = "a date"
            elif name not in UNLIKE:
                headers[name] = self._timeless(value.encode("latin-1")).decode("latin-1")
        return answer.status, headers, body


TARGETS = r"""
/ /a /ns/a /ns/b /ns/%61 /ns/a%2Fb /ns/é /ns/%C3%A9 /NS/a /_/x /_ /ns/a/ /ns/ /a/ * ns/a
/ns/a?x /ns/a?ttl=500 /ns/a?ttl=2h&x=%FF /ns/a?ttl=0 /ns/a?ttl=1&ttl=2 /ns/a?ttl=%2B9 /ns/a?TTL=5 /ns/a? /?ttl=500
http://example.org/ns/a http://example.org/ http://example.org/?ttl=500 HTTP://EXAMPLE.ORG/ns/a http:/ns/a
//ns/a /ns//a /ns/./a /ns/.. /ns/%2e%2E /ns/%00 /ns/% /ns/%FF /ns/%0A /ns/%e9 /ns/%zz
/ns/a#b /ns/a?b#c /ns/a;b=c,d /ns/%7Bx%7D /ns/{x} /ns/a%3Fb /ns/a+b /ns/a%20b /ns/" /ns/\ /ns/^`|
"""
LONG_TARGETS = ["/" + "a" * 1023, "/" + "a" * 1024, "/a" * 32, "/a" * 33]
BODIES = r"""
{"a":1} {"b":[1.0,1e2],"é":null} [1] null {} "x" 1.000000000000000005 {"ttl":500} {"a":1,"ttl":500,"b":2} {"$kv":1}
{"ttl":0} {"ttl":"x"} { {'a':1} {"a":1,"a":2} NaN "\ud800" 01 1e400 {"a":{".sv":"timestamp"}} {"n":{".sv":{"increment":2}}}
"""
OTHER_BODIES = ["", " 1 ", "[" * 65 + "]" * 65]

no_space = st.binary(max_size=12).map(lambda tail: b"/ns/" + bytes(byte for byte in tail if byte > 0x20 and byte != 0x7F))
paths = st.sampled_from([*TARGETS.split(), *LONG_TARGETS]).map(str.encode) | no_space
bodies = st.sampled_from([*BODIES.split(), *OTHER_BODIES]).map(str.encode) | st.binary(max_size=20) | st.just(TOO_LARGE)
tag_lists = st.sampled_from(
    ['"t0"', '"t1"', '"t2"', '"t9"', "*", 'W/"t0"', '"x", "t0"', '"t0","t1"', "", "t0", '"t0', "*, *", ",,"]
)
dates = st.sampled_from(["Sun, 06 Nov 1994 08:49:37 GMT", "Fri, 31 Dec 2100 23:59:59 GMT", "yesterday", ""])
fields = st.one_of(
    st.tuples(st.sampled_from(["If-Match", "if-none-match", "IF-NONE-MATCH", "If-Match"]), tag_lists),
    st.tuples(st.sampled_from(["If-Modified-Since", "If-Unmodified-Since"]), dates),
    st.tuples(
        st.just("Content-Type"),
        st.sampled_from(
            ["application/json", "text/html", "a/b+json", "text/plain; charset=x", "", "application/merge-patch+json", "\xe9"]
        ),
    ),
    st.tuples(st.just("Content-Encoding"), st.sampled_from(["gzip", "identity", ""])),
    st.tuples(
        st.sampled_from(["Prefer", "Accept", "Range", "Cookie", "X-\x7e", "Origin"]),
        st.sampled_from(["*/*", "return=minimal", "", "\xff"]),
    ),
    st.just(("Expect", "100-continue")),
    st.just(("Transfer-Encoding", "chunked")),
    st.just(("Connection", "close")),
)
methods = st.sampled_from(
    ["PUT"] * 6 + ["GET", "GET", "GET", "HEAD", "HEAD", "DELETE", "DELETE", "OPTIONS", "PATCH", "POST", "BREW", "TRACE", "put"]
)


def once(lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each header field once: what is sent twice is a table's, in test_wire.py."""
    return list({name.lower(): (name, value) for name, value in lines}.values())


asked = st.builds(Asked, methods, paths, st.lists(fields, max_size=3).map(once), bodies)


@pytest.mark.slow
@given(st.lists(asked, min_size=1, max_size=12))
@hypothesis_settings(max_examples=120)
def test_three_adapters_one_behaviour(three: dict[str, tuple[Client, Running]], sequence: list[Asked]) -> None:
    """An answer that differs is a bug."""
    for _, database in three.values():
        database.redis.flushdb()
    known = {name: Known() for name in three}
    for method, target, headers, written in sequence:
        body = b" " * (MAX_BYTES + 1) if written == TOO_LARGE else written
        answers: dict[str, Any] = {}
        for name, (client, _) in three.items():
            lines = [(field, known[name].sent(value)) for field, value in headers]
            answer = client.request(method, target, lines, body if method not in ("GET", "HEAD", "TRACE") else b"")
            answers[name] = known[name].comparable(method, answer)
        assert answers["asgi"] == answers["flask"]
        assert answers["served"] == answers["flask"]
        time.sleep(0.0015)  # two namespaces give one entity-tag within one ms


# --- What is ASGI's own -------------------------------------------------------------------------------------------------


class Called(NamedTuple):
    """What an application sent."""

    messages: list[dict[str, Any]]

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])


def call(store: Running, scope: dict[str, Any], *received: dict[str, Any], environ: dict[str, str] | None = None) -> Called:
    """Call an application of its own with these messages, then end it as a server does."""

    async def run() -> Called:
        application = Application({"REDIS_URL": store.url, **(environ or {})})
        sent: list[dict[str, Any]] = []
        waiting = list(received)

        async def receive() -> dict[str, Any]:
            return waiting.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await application(scope, receive, send)
        if scope["type"] == "http":
            waiting.append({"type": "lifespan.shutdown"})
            await application({"type": "lifespan"}, receive, send)
            assert sent.pop() == {"type": "lifespan.shutdown.complete"}
        return Called(sent)

    return asyncio.run(run())


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.fixture
def empty(started: Callable[[str], Running]) -> Running:
    """A Redis with nothing in it."""
    running = started("redis")
    running.redis.flushall()
    return running


def test_messages(empty: Running) -> None:
    """A start and a body, header names in lower case, as the specification of ASGI wants them."""
    start, body = call(empty, make_scope("PUT", "/ns/a", []), part(b"[1")).messages
    assert start["type"] == "http.response.start"
    assert start["status"] == 400
    assert body["type"] == "http.response.body"
    assert not body.get("more_body")
    assert all(
        isinstance(name, bytes) and name == name.lower() and isinstance(value, bytes) for name, value in start["headers"]
    )
    assert dict(start["headers"])[b"content-length"] == b"%d" % len(body["body"])


def test_a_body_in_parts(empty: Running) -> None:
    """A body comes in as many messages as the server likes, empty ones among them."""
    parts = [part(b"[", more=True), part(b"", more=True), {"type": "http.request", "more_body": True}, part(b"1]")]
    assert call(empty, make_scope("PUT", "/ns/a", []), *parts).messages[1]["body"] == b"[1]\n"


@pytest.mark.parametrize("received", [[], [part(b"1", more=True)]])
def test_a_client_that_goes(empty: Running, received: list[dict[str, Any]]) -> None:
    """A client that is gone before its body is whole has stored nothing, and is told nothing."""
    assert call(empty, make_scope("PUT", "/ns/a", []), *received, {"type": "http.disconnect"}).messages == []
    assert empty.redis.dbsize() == 0


def test_a_body_over_the_limit_is_not_read_on(empty: Running) -> None:
    """The part that passes the limit is the last one that is asked for."""
    parts = [part(b" " * MAX_BYTES, more=True), part(b"1", more=True)]
    assert call(empty, make_scope("PUT", "/ns/a", []), *parts).status == 413


def test_a_stream_that_the_server_cancels(empty: Running) -> None:
    """Servers that stop cancel what has not ended: the stream has an end, and nothing is raised that the server would log."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        application = Application({"REDIS_URL": empty.url})
        begun = asyncio.Event()
        received = [part(b"")]

        async def receive() -> dict[str, Any]:
            return received.pop() if received else await asyncio.Future()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message.get("body"):
                begun.set()

        scope = make_scope("GET", "/ns/a", [("accept", "text/event-stream")])
        stream = asyncio.create_task(application(scope, receive, send))
        async with asyncio.timeout(30):
            await begun.wait()
            stream.cancel()
            await stream
        await application.open().close()

    asyncio.run(run())
    assert sent[-1] == {"type": "http.response.body", "body": b""}


MOUNTS = [
    ("/kv", "/kv/ns/a", "/kv/ns/a"),
    ("/kv/", "/kv/ns/a", "/kv/ns/a"),
    ("/kv", "/ns/a", "/kv/ns/a"),
    ("/kv", "/kvs/a", "/kv/kvs/a"),
    ("/kv", "/kv/kv/a", "/kv/kv/a"),
    ("/a/b", "/a/b/c/d", "/a/b/c/d"),
    ("", "/kv/a", "/kv/a"),
    ("/kv", "http://x.example/kv/ns/a", "/kv/ns/a"),
    ("/k v", "/k%20v/ns/a", "/k%20v/ns/a"),
    ("/k v", "/ns/a", "/k%20v/ns/a"),
    ("/日", "/%e6%97%A5/ns/a", "/%e6%97%A5/ns/a"),
    ("/日", "/ns/a", "/%E6%97%A5/ns/a"),
]


@pytest.mark.parametrize(("root_path", "raw_path", "location"), MOUNTS)
def test_mounted(empty: Running, root_path: str, raw_path: str, location: str) -> None:
    """`root_path` is where the application is mounted, whether the path has it still or not; Location leads back there."""
    scope = make_scope("PUT", raw_path, []) | {"root_path": root_path, "raw_path": raw_path.encode()}
    called = call(empty, scope, part(b"1"))
    assert (called.status, called.headers[b"location"].decode()) == (201, location)
    document = location[len(quote(root_path.rstrip("/"))) :]
    namespace, _, rest = document.strip("/").partition("/")
    assert empty.redis.exists(f"kv:{{{namespace}}}/{rest}")


@pytest.mark.parametrize("raw", [{}, {"raw_path": None}])
def test_a_server_that_keeps_no_raw_path(empty: Running, raw: dict[str, None]) -> None:
    """The ASGI specification lets it: then the path is what the decoded one is when it is encoded."""
    scope = make_scope("PUT", "/kv/é b/c%2Fd", []) | {"root_path": "/kv", "path": "/kv/é b/100%"}
    del scope["raw_path"]
    called = call(empty, scope | raw, part(b"1"))
    assert (called.status, called.headers[b"location"].decode()) == (201, "/kv/%C3%A9%20b/100%25")


def test_an_embedded_server_that_is_killed(directory: Path) -> None:
    """It is started again, under any ASGI server."""
    loop, app = Loop(), Application({"KVSTORE_DATA": str(directory / "data")})

    def status(method: str, *body: dict[str, Any]) -> int:
        async def ask() -> int:
            messages: list[dict[str, Any]] = []
            parts = [*body] or [part(b"")]

            async def receive() -> dict[str, Any]:
                return parts.pop(0)

            async def send(message: dict[str, Any]) -> None:
                messages.append(message)

            await app(make_scope(method, "/ns/a", []), receive, send)
            return int(messages[0]["status"])

        return int(loop.run(ask()))

    try:
        assert status("PUT", part(b"1")) == 201
        with connect(app.open().settings.redis_url) as client:
            wait_for_disk(client)
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        wait_until(lambda: status("GET") == 200, 30)
    finally:
        loop.run(app.open().close())
        loop.close()


def test_lifespan(empty: Running) -> None:
    """Started and ended, where the server says so."""
    started, ended = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}
    complete = [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    assert call(empty, {"type": "lifespan"}, started, ended).messages == complete


def test_lifespan_with_a_bad_setting(empty: Running) -> None:
    """The server is told which setting is bad, and does not start."""
    (failed,) = call(empty, {"type": "lifespan"}, {"type": "lifespan.startup"}, environ={"KVSTORE_MAX_TTL": "soon"}).messages
    assert failed["type"] == "lifespan.startup.failed"
    assert "KVSTORE_MAX_TTL" in failed["message"]


def test_no_websocket(empty: Running) -> None:
    """What is not HTTP is not taken for it."""
    with pytest.raises(NotImplementedError):
        call(empty, {"type": "websocket"})
