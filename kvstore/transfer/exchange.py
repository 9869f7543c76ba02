"""How export and import reach the documents: a function from request to response, over HTTP or straight to Redis.

Straight to Redis, the request is parsed and its response rendered in this process, by the functions of `http/`: so whatever is
exported and imported is what a client of the service would read and write. Source: RFC 9110; http.client.
"""

import json
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from time import monotonic, sleep
from typing import TypeAlias
from urllib.parse import urlsplit

from kvstore.commands.base import Command
from kvstore.core.errors import Problem
from kvstore.core.settings import Settings
from kvstore.http.messages import Request, Response, refuse
from kvstore.http.protocol import HEALTH_PATH, OK, parse, render
from kvstore.stores.blocking import BlockingStore

Exchange: TypeAlias = Callable[[Request], Response]

ANSWER_S = 60  # for a response: the service answers within 6 s, and a proxy may add its own time
PATIENCE_S = 60  # for one request without a success, before a transfer is given up
MAX_PAUSE_S = 5.0  # between two attempts, unless the service names a longer one
MAX_REFUSALS = 20  # of one request by a rate, each after the window before has ended: others use it up


class TransferFailed(Exception):
    """The export or import cannot go on; the message says why."""


def straight_to(store: BlockingStore, settings: Settings) -> Exchange:
    """Return what answers from a store, as the service would in the open mode."""

    def exchange(request: Request) -> Response:
        try:
            asked = parse(request, settings)
            if isinstance(asked, Response):
                return asked
            command: Command[object] = asked  # type: ignore[assignment]  # nothing here follows or waits
            return render(request, store.execute(command))  # type: ignore[arg-type]
        except Problem as problem:
            return refuse(problem)

    return exchange


def over_http(url: str, token: str) -> Exchange:
    """Return what sends requests to the service at an http URL, one after the other; raises TransferFailed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.username is not None or parts.query or parts.fragment:
        raise TransferFailed("an http URL is that of the service, such as https://app.example or http://127.0.0.1:8000/kv")
    base = parts.path.rstrip("/").encode()
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(host, port, timeout=ANSWER_S)
    fields = {"Authorization": f"Bearer {token}"} if token else {}

    def exchange(request: Request) -> Response:
        try:
            target = (base + request.target).decode("ascii")
            connection.request(request.method, target, request.body or None, {**fields, **request.headers})
            answer: HTTPResponse = connection.getresponse()
            return Response(answer.status, tuple(answer.getheaders()), answer.read())
        except (OSError, HTTPException):
            connection.close()  # a new one is opened for the next request
            raise

    return exchange


def check_health(exchange: Exchange) -> None:
    """Check that the service answers, and at this URL rather than below it; raises TransferFailed."""
    answer, trouble = _attempt(exchange, Request("GET", HEALTH_PATH.encode(), {}))
    if answer is None:
        raise TransferFailed(f"nobody answers at this URL: {trouble}")
    if (answer.status, answer.body) != (200, OK.body):
        raise TransferFailed("no kvstore answers at this URL; name the service, and what to export as PATH")


def patient(exchange: Exchange, pause: Callable[[float], None] = sleep) -> Exchange:
    """Return the same, but what may succeed later is asked again: after a lost connection, a 503, or a 429.

    To ask again is safe: an export only reads, and to put the same document twice is to put it once. Raises TransferFailed.
    """

    def ask(request: Request) -> Response:
        since, pause_s, refusals = monotonic(), 0.1, 0
        while True:
            answer, trouble = _attempt(exchange, request)
            if answer and answer.status not in (429, 502, 503, 504):
                return answer
            if answer and answer.status == 429:
                refusals += 1
                if refusals == MAX_REFUSALS:
                    raise TransferFailed(f"the service refuses again and again: {explain(answer)}")
                pause(_told_s(answer) or pause_s)
                since = monotonic()
                continue
            if monotonic() - since > PATIENCE_S:
                trouble = explain(answer) if answer else trouble
                raise TransferFailed(f"nothing has succeeded for {PATIENCE_S} s: {trouble}; run the command again later")
            pause(min(MAX_PAUSE_S, max(pause_s, _told_s(answer))))
            pause_s *= 2

    return ask


def _attempt(exchange: Exchange, request: Request) -> tuple[Response | None, str]:
    """Return the response; or None, and why there is none."""
    try:
        return exchange(request), ""
    except (OSError, HTTPException) as error:
        return None, f"{type(error).__name__}: {error}"


def _told_s(answer: Response | None) -> float:
    """Return how long the service asks to wait (RFC 9110 section 10.2.3)."""
    told = header(answer, "retry-after") if answer else ""
    return float(told) if told.isascii() and told.isdigit() and len(told) < 7 else 0.0


def header(response: Response, name: str) -> str:
    """Return a header field by its lower-case name, "" without one."""
    return next((value for each, value in response.headers if each.lower() == name), "")


def explain(response: Response) -> str:
    """Return what a refusal says: the status, and the detail of the problem."""
    try:
        detail = json.loads(response.body)["detail"]
    except (ValueError, TypeError, KeyError):
        return f"status {response.status}"
    return f"{detail} (status {response.status})" + ("; set KVSTORE_TOKEN" if response.status == 401 else "")
