"""The Flask adapter: a blueprint with one wildcard route, to develop with and to mount in somebody's own Flask app.

It carries bytes between WSGI and `protocol`, and decides nothing. The path is taken from the raw request target, since
WSGI's PATH_INFO is percent-decoded already. Source: PEP 3333; Werkzeug's routing.
"""

import atexit
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterator
from itertools import chain
from secrets import token_hex
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import flask
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import BadRequest, ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.routing import BaseConverter
from werkzeug.wsgi import get_input_stream

from kvstore.commands.presence import HOLD_S, Hold, Release
from kvstore.commands.subscriptions import Follow, LongPoll
from kvstore.core.errors import ContentTooLarge, InvalidPath, InvalidRequest, Problem, problem_in, unavailable
from kvstore.core.paths import escape, split_target
from kvstore.core.settings import Settings, read_settings
from kvstore.http.cors import shown_to
from kvstore.http.messages import MAX_BODY_BYTES, Request, Response, refuse
from kvstore.http.protocol import STREAM, Outcome, parse, render
from kvstore.live.long_poll import is_settled
from kvstore.live.presence import CLOSE_S, RENEW_S, RETRY_S
from kvstore.live.stream_session import HEARTBEAT_S, Steps, begin, catch_up
from kvstore.runtime import connect
from kvstore.stores.blocking import BlockingStore

Environ = dict[str, Any]


class _Anything(BaseConverter):
    """The rest of a path, slashes, empty segments and nothing at all included."""

    regex = r"[\s\S]*"
    part_isolating = False
    weight = 1000  # behind every other converter


def make_blueprint(store: BlockingStore, settings: Settings) -> flask.Blueprint:
    """A blueprint that answers every request below the prefix it is registered at.

    Any other route of the app comes before the wildcard route.
    """
    blueprint = flask.Blueprint("kvstore", __name__)

    def add_route(state: BlueprintSetupState) -> None:
        prefix = (state.url_prefix or "").rstrip("/")

        def answer(rest: str, **_: str) -> flask.Response:
            return _answer(store, settings, flask.request.environ, prefix.count("/"))

        app = state.app
        app.url_map.converters.setdefault("kvstore_anything", _Anything)
        endpoint = f"{state.name_prefix}.{state.name}.answer".lstrip(".")
        # By the map, not by add_url_rule: a rule without methods takes every method, and 405 is ours to say.
        rule = app.url_rule_class(
            f"{prefix}/<kvstore_anything:rest>", endpoint=endpoint, strict_slashes=False, merge_slashes=False
        )
        app.url_map.add(rule)
        app.view_functions[endpoint] = answer

    blueprint.record(add_route)
    return blueprint


def _answer(store: BlockingStore, settings: Settings, environ: Environ, prefix_segments: int) -> flask.Response:
    request = _head(environ)
    try:
        target, base = _below_mount(environ, prefix_segments)
        request = request._replace(target=target, base=base, body=_body(environ))
        command = parse(request, settings)
        if isinstance(command, Follow):
            blocks = _stream(store, command, environ)
            response = flask.Response(chain([next(blocks)], blocks), 200, STREAM + shown_to(request, settings))
            response.call_on_close(blocks.close)
            return response
        if isinstance(command, LongPoll):
            reply = render(request, _waited(store, command, environ))
        else:
            reply = command if isinstance(command, Response) else render(request, store.execute(command))
    except Exception as error:
        reply = refuse(problem_in(error))
    response = as_response(reply._replace(headers=reply.headers + shown_to(request, settings)))
    if request.method == "HEAD" and not reply.body:
        del response.headers["Content-Length"]
        response.automatically_set_content_length = False
    if reply.more and request.method != "HEAD":
        response.response = _parts(store, request, reply)
    return response


def _parts(store: BlockingStore, request: Request, reply: Response) -> Iterator[bytes]:
    yield reply.body
    while reply.more:  # a failure here ends the connection, so that half a reply is not taken for the whole
        reply = render(request, store.execute(reply.more))
        yield reply.body


LOOK_S = 0.25  # between looks at the log of what is followed
MAX_STREAMS = 32  # each holds a thread: for development
_streams = threading.BoundedSemaphore(MAX_STREAMS)


def _stream(store: BlockingStore, asked: Follow, environ: Environ) -> Generator[bytes, None, None]:
    """The blocks of a stream, until the client has gone, by looking at the log again and again."""
    if not _streams.acquire(blocking=False):
        raise unavailable(f"Flask serves {MAX_STREAMS} streams at most; the command kvstore serves thousands")
    stay = None
    try:
        stay = _Stay(store, asked.hold) if asked.hold else None
        position = yield from _driven(store, begin(asked))
        said = time.monotonic()
        # Where that ends, a reader that is there comes back with its place, and is told.
        while position and not _has_gone(environ) and (stay is None or stay.goes_on()):
            position = yield from _driven(store, catch_up(asked.path, position))
            if time.monotonic() - said > HEARTBEAT_S:
                yield b"id: %b\n\n" % position.encode()
                said = time.monotonic()
            elif stay:
                yield b":\n\n"  # where the server shows no socket, who has gone is known only when it is sent something
            time.sleep(LOOK_S)
    finally:
        _streams.release()
        if stay:
            stay.end()


class _Stay:
    """A document held for one stream; raises Problem where it cannot be."""

    def __init__(self, store: BlockingStore, hold: Hold) -> None:
        self._store = store
        self._hold = hold._replace(holder=token_hex(8))
        self._due = time.monotonic() + RENEW_S
        _stays.add(self)
        try:
            store.execute(self._hold)
        except BaseException:
            self.end()
            raise

    def goes_on(self) -> bool:
        """Renew where that is due; whether the document is still held."""
        if time.monotonic() < self._due:
            return True
        self._due = time.monotonic() + RENEW_S
        try:
            self._store.execute(self._hold._replace(renews=True))
        except Problem as problem:
            if problem.status < 500:  # others have the path by now
                return False
            self._due = time.monotonic() + RETRY_S
        return True

    def end(self, limit_s: float = HOLD_S) -> None:
        """Release it, as soon as Redis answers; after `limit_s` it expires by itself."""
        until = time.monotonic() + limit_s
        _stays.discard(self)
        while time.monotonic() < until:
            try:
                self._store.execute(Release(self._hold))
                return
            except Problem as problem:
                if problem.status < 500:  # another client's key: nothing of ours
                    return
                time.sleep(RETRY_S)


_stays: set[_Stay] = set()


@atexit.register
def _end_stays() -> None:
    until = time.monotonic() + CLOSE_S
    for stay in list(_stays):
        stay.end(until - time.monotonic())


def _waited(store: BlockingStore, wait: LongPoll[Outcome], environ: Environ) -> Outcome:
    """The outcome of a command that is carried out again and again, until there is something to answer with, or nobody to."""
    deadline = time.monotonic() + wait.wait_s
    while True:
        outcome = store.execute(wait.command)
        left_s = deadline - time.monotonic()
        if is_settled(wait.command, outcome) or left_s <= 0:
            return outcome
        time.sleep(min(LOOK_S, left_s))
        if _has_gone(environ):
            return outcome


def _has_gone(environ: Environ) -> bool:
    """Whether the client has closed its connection, where the server lets us look at it: werkzeug's and gunicorn's do."""
    connection = environ.get("werkzeug.socket") or environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket) or isinstance(connection, ssl.SSLSocket):
        return False
    look = select.poll()
    try:
        look.register(connection, select.POLLIN)
        return bool(look.poll(0)) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):  # it was reset, or is closed already
        return True


def _driven(store: BlockingStore, steps: Steps) -> Generator[bytes, None, str]:
    """The blocks that `steps` yields, its commands executed; returns what it returns."""
    answer = None
    try:
        while True:
            step = steps.send(answer)
            answer = None
            if isinstance(step, bytes):
                yield step
            else:
                answer = store.execute(step)
    except StopIteration as done:
        position: str = done.value
        return position


def _head(environ: Environ) -> Request:
    """The request, but for its target and its body."""
    headers = {name[5:].replace("_", "-").lower(): str(value) for name, value in environ.items() if name.startswith("HTTP_")}
    if environ.get("CONTENT_TYPE"):
        headers["content-type"] = str(environ["CONTENT_TYPE"])
    return Request(str(environ["REQUEST_METHOD"]), b"", headers)


def _below_mount(environ: Environ, prefix_segments: int) -> tuple[bytes, str]:
    """The raw request target below the place where the blueprint is mounted, and that place as a path; raises InvalidPath."""
    script_name = environ.get("SCRIPT_NAME", "").rstrip("/").encode("latin-1")
    path_info = environ["PATH_INFO"].encode("latin-1")
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw is None:
        raw = escape(script_name + path_info).decode() + "?" + environ.get("QUERY_STRING", "")
    elif "werkzeug.socket" in environ:  # Flask's own server: it spells each byte in UTF-8, as if that were a character
        raw = raw.encode("latin-1").decode("utf-8")
    path, query = split_target(raw.encode("latin-1"))
    mount = [*script_name.split(b"/")[1:], *path_info.split(b"/")[1 : prefix_segments + 1]]
    if not path.startswith(b"/") and not mount:  # `*`, and what is no path
        return path + b"?" + query, ""
    parts = path.split(b"/")
    if b"" in mount:
        raise InvalidPath("a segment of a path is not empty")
    if [unquote_to_bytes(part) for part in parts[1 : len(mount) + 1]] != mount:
        # A proxy in front may have taken SCRIPT_NAME off the path.
        mount = path_info.split(b"/")[1 : prefix_segments + 1]
        base = quote(script_name)
        if [unquote_to_bytes(part) for part in parts[1 : len(mount) + 1]] != mount:
            raise InvalidPath("the path is not spelled as where this service is mounted: its slashes are not escaped there")
    else:
        base = ""
    if parts[0] or len(parts) < len(mount) + 2:
        raise InvalidPath("a path starts with a slash")
    base += b"/".join(parts[: len(mount) + 1]).decode("latin-1")
    return b"/" + b"/".join(parts[len(mount) + 1 :]) + b"?" + query, base


def _body(environ: Environ) -> bytes:
    """The whole body; raises ContentTooLarge, or InvalidRequest where the client sent less than it declared."""
    try:
        # One byte more than we store: a limit that cuts silently would take half a body for a whole one.
        stream = get_input_stream(environ, max_content_length=None)
        body = stream.read(MAX_BODY_BYTES + 1)
    except RequestEntityTooLarge:
        body = bytes(MAX_BODY_BYTES + 1)
    except (ClientDisconnected, BadRequest, OSError, ValueError):
        raise InvalidRequest("the body ended before it was complete; nothing was changed") from None
    declared = environ.get("CONTENT_LENGTH") or ""
    if declared.isdigit() and "HTTP_TRANSFER_ENCODING" not in environ and len(body) < min(int(declared[:9]), MAX_BODY_BYTES):
        raise InvalidRequest("the body ended before it was complete; nothing was changed")  # gunicorn leaves that to us
    if len(body) > MAX_BODY_BYTES:
        raise ContentTooLarge(f"a body has at most {MAX_BODY_BYTES:,} bytes; split the document into several")
    return body


def as_response(reply: Response) -> flask.Response:
    """A reply as Flask's."""
    response = flask.Response(reply.body, reply.status)
    response.headers.clear()
    response.headers.extend(reply.headers)
    if reply.more is None and reply.status not in (204, 304):
        response.headers["Content-Length"] = str(len(reply.body))
    return response


def create_app() -> flask.Flask:
    """The whole service as a Flask application, by the settings in the environment; raises settings.InvalidSetting."""
    app = flask.Flask("kvstore", static_folder=None)
    app.register_blueprint(blueprint())
    app.register_error_handler(HTTPException, lambda error: as_response(refuse(InvalidRequest(str(error)))))
    return app


def blueprint() -> flask.Blueprint:
    """The service as a blueprint, by the settings in the environment; raises settings.InvalidSetting.

    Register it at the prefix that it shall answer below: `app.register_blueprint(kvstore.blueprint(), url_prefix="/kv")`.
    """
    return make_blueprint(*connect(read_settings(os.environ)))
