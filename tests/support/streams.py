"""Following, whatever carries it: a reader of text/event-stream, and FOLLOWED, the table of what serves one.

Our own server and Flask's are real ones on a port of this process; the ASGI application is called as a server calls it.
"""

import asyncio
import contextlib
import http.client
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import flask
from werkzeug.serving import make_server

from kvstore.serving.asgi import Application
from kvstore.serving.flask import make_blueprint
from tests.support.clients import Answer, Headers, flask_runtime, make_scope
from tests.support.inprocess import InProcess
from tests.support.loops import Loop
from tests.support.stores import Running, wait_until

LIMIT_S = 30  # on a busy machine


NO_FIELDS: Mapping[str, str] = {}


class Event(NamedTuple):
    """A block of text/event-stream that has data."""

    name: str
    id: str
    data: Any


class Reader:
    """A client that follows: `events` are what has come so far, `blocks` all of it, heartbeats included."""

    def __init__(self, status: int, headers: Headers, pieces: Iterator[bytes], close: Callable[[], None]) -> None:
        self.status = status
        self.headers = headers
        self.events: list[Event] = []
        self.blocks: list[bytes] = []
        self.body = b""  # where it is no stream
        self.has_ended = False
        self._close = close
        self._pieces = pieces
        self._thread = threading.Thread(target=self._read, daemon=True)
        if status == 200:
            self._thread.start()
        else:
            self.body = b"".join(pieces)

    def _read(self) -> None:
        buffer = b""
        try:
            for piece in self._pieces:
                *blocks, buffer = (buffer + piece).split(b"\n\n")
                for block in blocks:
                    fields = dict(line.partition(": ")[::2] for line in block.decode().split("\n"))
                    if "data" in fields:
                        self.events.append(Event(fields["event"], fields.get("id", ""), json.loads(fields["data"])))
                    self.blocks.append(block)
        except (OSError, http.client.HTTPException, ValueError):
            pass
        self.has_ended = True

    def close(self) -> None:
        """Leave; returns when the last piece is read."""
        self._close()
        if self._thread.is_alive():
            self._thread.join(LIMIT_S)

    def wait_for(self, count: int) -> list[Event]:
        """The events, when there are so many."""
        wait_until(lambda: len(self.events) >= count, LIMIT_S)
        return self.events

    def wait_for_end(self) -> None:
        """Wait until the server has ended the stream."""
        wait_until(lambda: self.has_ended, LIMIT_S)


class Followed(Protocol):
    """What the tests ask of what serves streams."""

    def __init__(self, store: Running, environ: dict[str, str] | None = None) -> None: ...
    def request(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = NO_FIELDS) -> Answer: ...
    def open(self, target: str, headers: dict[str, str]) -> Reader: ...
    def stop(self) -> None: ...


class OverHttp:
    """A server at `at`."""

    at: tuple[str, int]

    def request(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = NO_FIELDS) -> Answer:
        connection = http.client.HTTPConnection(*self.at, timeout=LIMIT_S)
        connection.request(method, target, body or None, dict(headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return Answer(answer.status, Headers(answer.getheaders()), content)

    def open(self, target: str, headers: dict[str, str]) -> Reader:
        return open_reader(self.at, target, headers)


def open_reader(at: tuple[str, int], target: str, headers: dict[str, str]) -> Reader:
    """A reader of a stream at an address."""
    connection = http.client.HTTPConnection(*at, timeout=60)
    connection.request("GET", target, headers={"Accept": "text/event-stream"} | headers)
    raw = connection.sock
    answer = connection.getresponse()

    def pieces() -> Iterator[bytes]:
        with contextlib.closing(connection), answer:
            while piece := answer.read1(65536):
                yield piece

    def close() -> None:
        with contextlib.suppress(OSError):  # it has ended
            raw.shutdown(socket.SHUT_RDWR)

    return Reader(answer.status, Headers(answer.getheaders()), pieces(), close)


class OwnServer(OverHttp):
    """The server that the command `kvstore` runs."""

    def __init__(self, store: Running, environ: dict[str, str] | None = None) -> None:
        self.running = InProcess(store.url, environ)
        self.at = self.running.at
        self.stop = self.running.stop


class FlaskServer(OverHttp):
    """The blueprint in Flask's own server, a thread for each connection."""

    def __init__(self, store: Running, environ: dict[str, str] | None = None) -> None:
        self._runtime = flask_runtime(store, environ or {})
        app = flask.Flask("tests", static_folder=None)
        app.register_blueprint(make_blueprint(self._runtime))
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self._server.log = lambda *_: None  # type: ignore[method-assign]
        self.at = "127.0.0.1", self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._runtime.background.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._runtime.store.close()


class AsgiApplication:
    """The ASGI application, on an event loop in a thread of its own."""

    def __init__(self, store: Running, environ: dict[str, str] | None = None) -> None:
        self._app = Application({"REDIS_URL": store.url, **(environ or {})})
        self._loop = Loop()

    def request(self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] = NO_FIELDS) -> Answer:
        status, named, pieces, _ = self._loop.run(self._call(method, target, dict(headers), body))
        return Answer(status, named, b"".join(pieces))

    def open(self, target: str, headers: dict[str, str]) -> Reader:
        return Reader(*self._loop.run(self._call("GET", target, {"Accept": "text/event-stream"} | headers, b"")))

    def stop(self) -> None:
        async def close() -> None:
            if self._app._runtime:
                await self._app._runtime.close()

        self._loop.run(close())
        self._loop.close()

    async def _call(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Any:
        loop = asyncio.get_running_loop()
        pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # b"" is the end
        begun, gone = loop.create_future(), asyncio.Event()
        asked = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in asked:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                begun.set_result((message["status"], message["headers"]))
            elif message["body"]:
                pieces.put(message["body"])

        call = loop.create_task(self._app(make_scope(method, target, list(headers.items())), receive, send))
        call.add_done_callback(lambda _: pieces.put(b""))
        status, lines = await begun
        named = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in lines])
        return status, named, iter(pieces.get, b""), lambda: loop.call_soon_threadsafe(gone.set)


FOLLOWED: dict[str, type[Followed]] = {"served": OwnServer, "flask": FlaskServer, "asgi": AsgiApplication}
# Our own server over both kinds of Redis, the others over one, and a cluster, where the logs are looked at in another way.
STREAM_LANES = [("served", "valkey"), ("served", "redis"), ("flask", "redis"), ("asgi", "redis"), ("asgi", "cluster")]


@contextlib.contextmanager
def following(followed: Followed, target: str, **headers: str) -> Iterator[Reader]:
    """A reader, closed in the end; a header field's name has _ for -."""
    reader = followed.open(target, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        yield reader
    finally:
        reader.close()


def ask(followed: Followed, method: str, target: str, body: object = None) -> Any:
    """One request that succeeds: its JSON, None for none."""
    answer = followed.request(method, target, b"" if body is None else json.dumps(body).encode())
    assert answer.status < 400, answer
    return answer.json if answer.body else None
