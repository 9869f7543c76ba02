"""One way to speak HTTP to the service, whatever carries it. ADAPTERS is the table of what can.

A client takes a raw request target, as it would stand on the wire, and gives an Answer. `Checked` holds every answer
against what docs/http.md promises of all of them.
"""

import asyncio
import io
import json
import re
import shutil
import threading
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

import fakeredis
import flask
from werkzeug.test import run_wsgi_app

from kvstore.core.redis_url import parse_redis_url
from kvstore.core.settings import Settings, read_settings
from kvstore.http.gate import open_gate
from kvstore.live.hub import Hub
from kvstore.live.long_poll import LongPolls
from kvstore.live.metrics import Metrics
from kvstore.live.readiness import Readiness
from kvstore.runtime import Runtime, open_runtime, rules_of
from kvstore.serving.asgi import Application
from kvstore.serving.background import Background
from kvstore.serving.flask import FlaskRuntime, make_blueprint
from kvstore.serving.request_log import open_log
from kvstore.stores.pooled import PooledStore
from kvstore.stores.query_queue import QueryQueue
from tests.support.described import check_described
from tests.support.serving import READ_S, Served, start_kvstore
from tests.support.stores import Fake, Running, make_directory

Lines = Iterable[tuple[str, str | bytes]]


class Headers(dict[str, str]):
    """Header fields by name, whatever its case; several lines of one name are joined by a comma."""

    def __init__(self, lines: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        for name, value in lines:
            at = name.lower()
            self[at] = f"{self[at]}, {value}" if at in self else value

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Headers
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def tag(self) -> str:
        """The entity-tag as the header spells it."""
        return self.headers["ETag"]


class Client(Protocol):
    """What the tests ask of an adapter. `environ` are settings, as in the environment."""

    def __init__(self, store: Running, environ: Mapping[str, str]) -> None: ...
    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer: ...
    def close(self) -> None: ...


class FlaskClient:
    """The Flask adapter, called as gunicorn calls it."""

    def __init__(self, store: Running, environ: Mapping[str, str]) -> None:
        self._runtime = flask_runtime(store, environ)
        self.app = flask.Flask("tests", static_folder=None)
        self.app.register_blueprint(make_blueprint(self._runtime))

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        return call_wsgi(self.app, make_environ(method, target, headers, body))

    def close(self) -> None:
        self._runtime.background.close()
        self._runtime.store.close()


def flask_runtime(store: Running, environ: Mapping[str, str]) -> FlaskRuntime:
    """What a blueprint of ours serves requests with, on a store that the tests started."""
    settings = read_settings({**environ, "REDIS_URL": store.url})
    background = Background(lambda: runtime_on(store, settings))
    return FlaskRuntime(
        settings, store.open(), background, rules_of(settings), gate=open_gate(settings), log=open_log(settings)
    )


def runtime_on(store: Running, settings: Settings) -> Runtime:
    """What serves the requests of an event loop, on a store that the tests started."""
    if not isinstance(store, Fake):
        return open_runtime(settings)
    on_loop = QueryQueue(PooledStore(lambda: fakeredis.FakeAsyncRedis(server=store.server)))
    hub = Hub(on_loop, parse_redis_url(store.url), settings.max_streams)
    polls, readiness = LongPolls(on_loop, hub), Readiness(on_loop)
    metrics = Metrics(on_loop, hub, polls)
    return Runtime(settings, on_loop, hub, polls, readiness, metrics, rules_of(settings), open_gate(settings))


def make_environ(method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> dict[str, Any]:
    """The WSGI environ that gunicorn makes of a request (PEP 3333): PATH_INFO decoded, RAW_URI as it came."""
    raw = target.encode() if isinstance(target, str) else target
    path, _, query = re.sub(rb"^[a-z]+://[^/?]*", b"", raw).partition(b"?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "RAW_URI": raw.decode("latin-1"),
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "SCRIPT_NAME": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    lines = [(name, value.decode("latin-1") if isinstance(value, bytes) else value) for name, value in headers]
    names = {name.lower() for name, _ in lines}
    if "host" not in names:
        lines.append(("Host", "127.0.0.1:8000"))
    if body and "transfer-encoding" not in names and "content-length" not in names:
        lines.append(("Content-Length", str(len(body))))
    for name, value in lines:
        at = name.upper().replace("-", "_")
        at = at if at in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{at}"
        environ[at] = f"{environ[at]},{value}" if at in environ else value
    return environ


def call_wsgi(app: Any, environ: dict[str, Any]) -> Answer:
    """The answer of a WSGI application."""
    chunks, status, headers = run_wsgi_app(app, environ)
    return Answer(int(status.split()[0]), Headers(headers), b"".join(chunks))


class AsgiClient:
    """The ASGI adapter, called as an ASGI server calls it, on an event loop in a thread of its own."""

    def __init__(self, store: Running, environ: Mapping[str, str]) -> None:
        self.app = Application({"REDIS_URL": store.url, **environ})
        if isinstance(store, Fake):
            self.app._runtime = runtime_on(store, read_settings(environ))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        return asyncio.run_coroutine_threadsafe(self._call(method, target, headers, body), self._loop).result(READ_S)

    def close(self) -> None:
        async def close() -> None:
            if self.app._runtime:
                await self.app._runtime.close()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(READ_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _call(self, method: str, target: str | bytes, headers: Lines, body: bytes) -> Answer:
        half = len(body) // 2
        parts = [body[:half], body[half:]]
        sent: list[dict[str, Any]] = []
        is_answered = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not parts:
                await is_answered.wait()
                return {"type": "http.disconnect"}
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                is_answered.set()

        await self.app(make_scope(method, target, headers), receive, send)
        start, *chunks = sent
        lines = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
        return Answer(start["status"], Headers(lines), b"".join(chunk["body"] for chunk in chunks))


def make_scope(method: str, target: str | bytes, headers: Lines) -> dict[str, Any]:
    """The ASGI scope of a request: `raw_path` as it came, without the query, header names in lower case."""
    raw = target.encode() if isinstance(target, str) else target
    path, _, query = re.sub(rb"^[a-z]+://[^/?]*", b"", raw).partition(b"?")
    lines = [(name.lower().encode(), value if isinstance(value, bytes) else value.encode("latin-1")) for name, value in headers]
    if b"host" not in dict(lines):
        lines.insert(0, (b"host", b"127.0.0.1:8000"))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote_to_bytes(path).decode("utf-8", "replace"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": lines,
    }


class ServedClient:
    """The command `kvstore`, over a socket."""

    def __init__(self, store: Running, environ: Mapping[str, str]) -> None:
        self._directory = make_directory()
        self.served = start_kvstore(self._directory, REDIS_URL=store.url, **environ)

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        response = self.served.request(method, target, headers, body)
        return Answer(response.status, Headers(response.getheaders()), response.content)

    def close(self) -> None:
        self.served.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


ADAPTERS: dict[str, type[Client]] = {"flask": FlaskClient, "asgi": AsgiClient, "served": ServedClient}


class Checked:
    """A client that holds every answer against `check_promises`."""

    def __init__(self, adapter: Client) -> None:
        self.adapter = adapter
        self.close = adapter.close

    @property
    def served(self) -> Served:
        """The process of the command `kvstore`."""
        assert isinstance(self.adapter, ServedClient)
        return self.adapter.served

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        answer = self.adapter.request(method, target, headers, body)
        check_promises(method, answer, target)
        check_described(method, target, answer.status, answer.headers.get("content-type"), answer.body)
        return answer

    def get(self, target: str | bytes, headers: Lines = ()) -> Answer:
        return self.request("GET", target, headers)

    def head(self, target: str | bytes, headers: Lines = ()) -> Answer:
        return self.request("HEAD", target, headers)

    def put(self, target: str | bytes, body: str | bytes, headers: Lines = ()) -> Answer:
        return self.request("PUT", target, headers, body.encode() if isinstance(body, str) else body)

    def delete(self, target: str | bytes, headers: Lines = ()) -> Answer:
        return self.request("DELETE", target, headers)


STRONG_TAG = re.compile(r'"[!#-~]+"')
TAKEN = b'{"items":[{"path":'  # jobs; an item of a listing begins with its name
NOT_KEPT = ("/_/health", "/_/ready")  # by any cache
WRITES = ("PUT", "PATCH", "POST")
CSP = "default-src 'none'; frame-ancestors 'none'; sandbox"


def check_promises(method: str, answer: Answer, target: str | bytes = "") -> None:
    """What docs/http.md promises of every answer."""
    status, headers, body = answer
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == CSP
    assert not 300 <= status < 400 or status == 304, "never a redirect"
    assert "ETag" not in headers or STRONG_TAG.fullmatch(headers["ETag"]), "a strong entity-tag"
    if status in (204, 304):
        assert body == b""
        assert "Content-Type" not in headers
        return
    if method == "HEAD":
        assert body == b""
    else:
        assert headers["Content-Length"] == str(len(body))
    if status < 400:
        if method in WRITES and not body:  # Prefer: return=minimal, a replay of what is gone, or no right to read
            assert "Content-Type" not in headers
            return
        is_replayed = "Idempotency-Replayed" in headers
        is_take = body.startswith(TAKEN) or (is_replayed and body == b'{"items":[]}\n')
        assert headers["Content-Type"] == "application/json"
        assert headers["Cache-Control"] == ("no-store" if is_take or target in NOT_KEPT else "no-cache")
        return
    assert headers["Content-Type"] == "application/problem+json"
    assert status != 405 or "Allow" in headers
    assert status != 503 or int(headers["Retry-After"]) >= 1
    if method != "HEAD":
        check_problem(status, answer.json)


def check_problem(status: int, problem: Any) -> None:
    """The one error shape (RFC 9457)."""
    assert list(problem)[:4] == ["type", "title", "status", "detail"]
    assert re.fullmatch("urn:kvstore:[a-z-]+", problem["type"])
    assert problem["status"] == status
    assert len(problem["title"].split()) >= 3
    assert len(problem["detail"].split()) >= 3
