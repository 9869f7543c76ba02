"""The Flask adapter: a blueprint with one wildcard route, to develop with and to mount in a Flask application.

It carries bytes between WSGI and `exchange.py`, and decides nothing. A blocking store executes commands in the thread of the
request. Streams and long polls run in the event loop of `background.py`, and the thread waits for them. The path is read from
the raw request target, since WSGI's PATH_INFO is percent-decoded. Source: PEP 3333; Werkzeug's routing.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple

import flask
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import BadRequest, ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.routing import BaseConverter
from werkzeug.wsgi import get_input_stream

from kvstore.access.principal import Claims, as_principal
from kvstore.access.views import Rules
from kvstore.commands.metrics import ReadMetrics
from kvstore.commands.readiness import CheckReadiness
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core.errors import InvalidRequest, Problem
from kvstore.core.metrics import COUNTERS, UNTIMED_S
from kvstore.core.paths import escape
from kvstore.core.settings import Settings, read_settings
from kvstore.http.gate import FetchKeys, Gate, open_gate
from kvstore.http.hosts import is_loopback
from kvstore.http.messages import MAX_BODY_BYTES, Request, Response, refuse
from kvstore.http.protocol import Outcome, render
from kvstore.runtime import ClientGone, RulesSource, Runtime, connect, mounted, open_runtime
from kvstore.serving.background import Background
from kvstore.serving.bounds import MAX_FLASK_STREAMS
from kvstore.serving.buffered_stream import BufferedStream
from kvstore.serving.exchange import Asked, cut_off, decide, decide_for_host, respond, stream_fields, too_large
from kvstore.serving.mount import Mounted, below_mount
from kvstore.serving.request_log import RequestLog, open_log
from kvstore.stores.blocking import BlockingStore

Environ = dict[str, Any]


class _Anything(BaseConverter):
    """The rest of a path: anything, slashes, empty segments and the empty string included."""

    regex = r"[\s\S]*"
    part_isolating = False
    weight = 1000  # after every other converter


class FlaskRuntime(NamedTuple):
    """What serves the requests of a Flask application."""

    settings: Settings
    store: BlockingStore
    background: Background
    rules: Rules | None = None  # None: everything is permitted
    principal: Callable[[], Claims | None] | None = None
    gate: Gate | None = None
    log: RequestLog | None = None


def make_blueprint(runtime: FlaskRuntime) -> flask.Blueprint:
    """Return a blueprint that answers every request below its prefix which no other route of the application matches."""
    blueprint = flask.Blueprint("kvstore", __name__)

    def add_route(state: BlueprintSetupState) -> None:
        prefix = (state.url_prefix or "").rstrip("/")

        def answer(rest: str, **_: str) -> flask.Response:
            return _answer(runtime, flask.request.environ, prefix.count("/"))

        app = state.app
        app.url_map.converters.setdefault("kvstore_anything", _Anything)
        endpoint = f"{state.name_prefix}.{state.name}.answer".lstrip(".")
        # Not by add_url_rule: a rule without methods takes every method, and `parse` answers with 405.
        rule = app.url_rule_class(
            f"{prefix}/<kvstore_anything:rest>", endpoint=endpoint, strict_slashes=False, merge_slashes=False
        )
        app.url_map.add(rule)
        app.view_functions[endpoint] = answer

    blueprint.record(add_route)
    return blueprint


def _answer(runtime: FlaskRuntime, environ: Environ, prefix_segments: int) -> flask.Response:
    began = perf_counter()
    request = _head(environ)
    if runtime.gate:
        request = runtime.gate.begin(request, str(environ.get("REMOTE_ADDR") or ""))
    try:
        target, base = _below_mount(environ, prefix_segments)
        request = request._replace(target=target, base=base, body=_body(environ))
        decision = _decide(runtime, request, environ)
    except Problem as problem:
        decision = respond(request, problem, runtime.settings)
    answer = _carried_out(runtime, request, decision, environ)
    elapsed_s = UNTIMED_S if isinstance(decision, LongPoll) else perf_counter() - began
    COUNTERS.record(request.method, answer.status_code, elapsed_s)
    if log := runtime.log:
        if answer.is_streamed:
            answer.call_on_close(lambda: log.record(request, answer.status_code))
        else:
            log.record(request, answer.status_code)
    return answer


def _decide(runtime: FlaskRuntime, request: Request, environ: Environ) -> Asked | Follow | FollowMany | Response:
    deciding = decide_for_host if _is_development_server_on_loopback(environ) else decide
    asking = as_principal(runtime.principal and runtime.principal())
    while isinstance(decision := deciding(request, runtime.settings, runtime.rules, asking, runtime.gate), FetchKeys):
        decision.keys.fetch()
    return decision


def _carried_out(
    runtime: FlaskRuntime, request: Request, decision: Asked | Follow | FollowMany | Response, environ: Environ
) -> flask.Response:
    if isinstance(decision, Response):
        return as_response(decision)
    outcome: Outcome | Exception
    try:
        if isinstance(decision, Follow | FollowMany):
            return _stream(runtime, request, decision, environ)
        outcome = _outcome(runtime, decision, environ)
    except Exception as error:
        outcome = error
    response = respond(request, outcome, runtime.settings)
    answer = as_response(response)
    if request.method == "HEAD" and not response.body:
        del answer.headers["Content-Length"]
        answer.automatically_set_content_length = False
    if response.more and request.method != "HEAD":
        answer.response = _parts(runtime.store, request, response)
    return answer


def _is_development_server_on_loopback(environ: Environ) -> bool:
    """Whether this is Flask's development server on loopback. With any other server, the application checks Host itself."""
    return "werkzeug.socket" in environ and is_loopback(environ.get("SERVER_NAME"))


def _parts(store: BlockingStore, request: Request, response: Response) -> Iterator[bytes]:
    yield response.body
    while response.more:  # an exception ends the connection, so that the client does not take a part for the whole
        response = render(request, store.execute(response.more))
        if response.body:  # of a query a part may be empty, and a server may take an empty one for the end
            yield response.body


def _outcome(runtime: FlaskRuntime, asked: Asked, environ: Environ) -> Outcome:
    """Return the outcome of a command or a long poll; raises Problem."""
    if isinstance(asked, CheckReadiness | ReadMetrics):  # what the event loop does
        return runtime.background.run(lambda loop: loop.outcome(asked))
    if not isinstance(asked, LongPoll):
        return runtime.store.execute(asked)

    async def wait(runtime: Runtime) -> Outcome:
        return await runtime.outcome_unless(closed(_connection(environ)), asked)

    try:
        return runtime.background.run(wait)
    except ClientGone:
        raise InvalidRequest("the client has disconnected") from None


def _stream(runtime: FlaskRuntime, request: Request, follow: Follow | FollowMany, environ: Environ) -> flask.Response:
    """Return the response to a request for a stream; raises Problem if the stream cannot begin."""
    blocks = _blocks(runtime.background, follow, environ)
    response = flask.Response(chain([next(blocks, b"")], blocks), 200, stream_fields(request, runtime.settings))
    response.call_on_close(blocks.close)
    return response


def _blocks(background: Background, follow: Follow | FollowMany, environ: Environ) -> Generator[bytes, None, None]:
    """Yield the blocks of a stream until it ends, the client disconnects or does not read; raises Problem before the first."""

    async def open_stream(runtime: Runtime) -> tuple[BufferedStream, asyncio.Task[None]]:
        connection = _connection(environ)

        def drop() -> None:
            if connection:  # otherwise the thread would go on waiting for a client that does not read
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

        stream = BufferedStream(runtime.hub, follow, drop)
        watching = asyncio.create_task(closed(connection))
        watching.add_done_callback(lambda _: stream.end())
        return stream, watching

    async def close_stream(_: Runtime) -> None:
        watching.cancel()
        await stream.close()

    stream, watching = background.run(open_stream)
    try:
        while (block := background.run(lambda _: stream.take())) is not None:
            yield block
    finally:
        with suppress(Problem):  # the event loop was closed, and all streams with it
            background.start(close_stream)


def _connection(environ: Environ) -> socket.socket | None:
    """Return a duplicate of the client's socket if the server provides it, as werkzeug and gunicorn do.

    Not with TLS: other bytes come before the end of such a connection, so its end cannot be seen.
    """
    shown = environ.get("werkzeug.socket") or environ.get("gunicorn.socket")
    if not isinstance(shown, socket.socket) or isinstance(shown, ssl.SSLSocket):
        return None
    try:
        return shown.dup()
    except OSError:  # it was closed in the meantime
        return None


async def closed(connection: socket.socket | None) -> None:
    """Return when the client has closed the connection, and close this duplicate.

    Never returns if there is none, or if the client has sent more bytes: then the end cannot be seen.
    """
    loop = asyncio.get_running_loop()
    is_closed = loop.create_future()
    if connection is None:
        await is_closed
        return

    def look() -> None:
        try:
            if connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                loop.remove_reader(
                    connection
                )  # the server reads them later; until then the loop would report them all the time
                return
        except BlockingIOError:
            return
        except OSError:  # it was reset
            pass
        if not is_closed.done():
            is_closed.set_result(None)

    with connection:
        loop.add_reader(connection, look)
        try:
            await is_closed
        finally:
            loop.remove_reader(connection)


def _head(environ: Environ) -> Request:
    """Return the request without its target and its body."""
    headers = {name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if name.startswith("HTTP_")}
    if environ.get("CONTENT_TYPE"):
        headers["content-type"] = str(environ["CONTENT_TYPE"])
    if environ.get("wsgi.url_scheme") == "https":
        headers.setdefault("x-forwarded-proto", "https")
    return Request(str(environ["REQUEST_METHOD"]), b"", headers)


def _below_mount(environ: Environ, prefix_segments: int) -> Mounted:
    """Return the part of the request target below the blueprint's prefix; raises InvalidPath."""
    root = environ.get("SCRIPT_NAME", "").encode("latin-1")
    path_info = environ["PATH_INFO"].encode("latin-1")
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw is None:
        target = escape(root.rstrip(b"/") + path_info) + b"?" + environ.get("QUERY_STRING", "").encode("latin-1")
    elif "werkzeug.socket" in environ:  # Flask's development server encodes each byte in UTF-8, as if it were a character
        target = raw.encode("latin-1").decode("utf-8").encode("latin-1")
    else:
        target = raw.encode("latin-1")
    return below_mount(target, root, b"/".join(path_info.split(b"/")[: prefix_segments + 1]))


def _body(environ: Environ) -> bytes:
    """Return the whole body; raises ContentTooLarge, or InvalidRequest if the client sent less than it declared."""
    try:
        # One byte more than allowed: a limit that truncates silently would take a part of a body for the whole.
        body = get_input_stream(environ, max_content_length=None).read(MAX_BODY_BYTES + 1)
    except RequestEntityTooLarge:
        raise too_large() from None
    except (ClientDisconnected, BadRequest, OSError, ValueError):
        raise cut_off() from None
    declared = environ.get("CONTENT_LENGTH") or ""
    if declared.isdigit() and "HTTP_TRANSFER_ENCODING" not in environ and len(body) < min(int(declared[:9]), MAX_BODY_BYTES):
        raise cut_off()  # gunicorn does not check this
    if len(body) > MAX_BODY_BYTES:
        raise too_large()
    return body


def as_response(response: Response) -> flask.Response:
    """Return a response as one of Flask's."""
    answer = flask.Response(response.body, response.status)
    answer.headers.clear()
    answer.headers.extend(response.headers)
    if response.more is None and response.status not in (204, 304):
        answer.headers["Content-Length"] = str(len(response.body))
    return answer


def create_app() -> flask.Flask:
    """Return the whole service as a Flask application, with the settings in the environment; raises InvalidSetting."""
    app = flask.Flask("kvstore", static_folder=None)
    app.register_blueprint(blueprint())
    app.register_error_handler(HTTPException, lambda error: as_response(refuse(InvalidRequest(str(error)))))
    return app


def blueprint(*, principal: Callable[[], Claims | None] | None = None, rules: RulesSource | None = None) -> flask.Blueprint:
    """Return the service as a blueprint, with the settings in the environment; raises InvalidSetting.

    Register it at a prefix of your choice: `app.register_blueprint(kvstore.blueprint(), url_prefix="/kv")`. `principal` says
    who asks: claims, or None for nobody. It is called in the context of a request, without arguments. Then `rules` judge what
    they ask for: a file, or a list of rows.
    """
    settings, judging = mounted(read_settings(os.environ), principal, rules)
    store, settings = connect(settings)
    limited = replace(settings, max_streams=min(settings.max_streams, MAX_FLASK_STREAMS))
    background = Background(lambda: open_runtime(limited, judging))
    return make_blueprint(
        FlaskRuntime(settings, store, background, judging, principal, open_gate(settings), open_log(settings))
    )
