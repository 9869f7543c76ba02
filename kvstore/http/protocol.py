"""HTTP's rules, in one place: `parse` turns a request into a command, `render` turns an outcome into a response.

Both are functions of values: no Flask, no Redis, no clock, no I/O. Adapters carry bytes to and from here. The docstrings of
Request and Response say what an adapter must do itself. Sources: RFC 9110 (HTTP), RFC 9457 (problems), RFC 8594 (Sunset).
"""

import hashlib
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from kvstore.access.principal import IssuedToken
from kvstore.commands.base import Appended, Command, Deleted, Failed, Found, Idempotent, Missing, Replayed, Stored
from kvstore.commands.batch import Answered, Answers, Batch, Refused
from kvstore.commands.bulk import ManyRead, ManyWritten
from kvstore.commands.containers import DeletedRecursive, List, Listing, Unchanged
from kvstore.commands.documents import ConditionalGet, Get
from kvstore.commands.history import History
from kvstore.commands.jobs import LeaseChanged, Taken
from kvstore.commands.metrics import MetricsRead, ReadMetrics
from kvstore.commands.queries import Counted, Find
from kvstore.commands.readiness import Ready
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core.errors import (
    InternalError,
    InvalidParameter,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotInBatch,
    PathTooLong,
    Problem,
)
from kvstore.core.paths import Path, own_key, parse_path, split_target
from kvstore.core.preconditions import NONE, parse_preconditions
from kvstore.core.settings import Settings
from kvstore.http.batch import Answer, parse_batch, render_answers, render_refused
from kvstore.http.bulk_batch import parse_bulk, render_responses
from kvstore.http.containers import parse_list, parse_query_body, render_counted, render_listing, render_unchanged
from kvstore.http.content import ACCEPT_PATCH, ACCEPT_QUERY, check_json
from kvstore.http.cors import answer_options, check_origin, preflight
from kvstore.http.credentials import NO_STORE, check_no_token, render_issued
from kvstore.http.documents import (
    apply_preference,
    parse_delete,
    parse_patch,
    parse_post,
    parse_put,
    render_appended,
    render_failed,
    render_found,
    render_missing,
    render_stored,
)
from kvstore.http.history import asks_for_history, parse_history, render_history
from kvstore.http.messages import (
    DOCUMENT,
    EVENT_STREAM,
    MAX_TARGET_BYTES,
    NO_PARAMETERS,
    SAFE,
    Headers,
    Query,
    Request,
    Response,
    accepts,
    parameter,
    parse_query,
)
from kvstore.http.metrics import parse_metrics, render_metrics_read
from kvstore.http.queues import MAX_WAIT_S, render_held, render_taken
from kvstore.http.streams import parse_follow, parse_follow_many

BATCH_PATH, HEALTH_PATH, READY_PATH, LIMITS_PATH = "/_/batch", "/_/health", "/_/ready", "/_/limits"
FOLLOW_PATH, METRICS_PATH, OPENAPI_PATH = "/_/follow", "/_/metrics", "/_/openapi.json"

MAX_KEY_CHARACTERS = 255  # of an Idempotency-Key

Executed: TypeAlias = (
    Found
    | Missing
    | Stored
    | Appended
    | Deleted
    | Failed
    | Listing
    | Counted
    | Unchanged
    | DeletedRecursive
    | History
    | Answers[Request, Answer]
    | Refused[Request, Answer]
    | ManyWritten
    | ManyRead
    | Taken
    | LeaseChanged
    | IssuedToken
    | Ready
    | MetricsRead
)
Outcome: TypeAlias = Executed | Replayed[Executed]  # what a request's command can come to

ALLOW_DOCUMENT = "GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS"
ALLOW_CONTAINER = "GET, HEAD, QUERY, POST, DELETE, OPTIONS"
ALLOW_ROOT = "GET, HEAD, QUERY, PUT, PATCH, POST, DELETE, OPTIONS"  # of `/?list`, which is the root container

_ALLOWED = {allow: frozenset(allow.split(", ")) for allow in (ALLOW_DOCUMENT, ALLOW_CONTAINER, ALLOW_ROOT)}
_READS = ("GET", "HEAD", "QUERY")
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,9})\b", re.IGNORECASE)
STREAM: Headers = (
    ("Content-Type", EVENT_STREAM),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),
    ("Referrer-Policy", "no-referrer"),
    *SAFE,
)
OK = Response(200, (("Content-Type", "application/json"), *NO_STORE), b'{"status":"ok"}\n')


def parse(
    request: Request, settings: Settings
) -> Command[Outcome] | Follow | FollowMany | LongPoll[Outcome] | ReadMetrics | Response:
    """Return the command that a request asks for, or the response if the store is not needed; raises Problem.

    No store executes a Follow, a FollowMany, a LongPoll or a ReadMetrics: `live/` does.
    """
    raw_path, raw_query = split_target(request.target)
    method = request.method
    if raw_path == b"*" and method == "OPTIONS":
        return _options(request, ALLOW_DOCUMENT)
    path = parse_path(raw_path)
    if path.namespace == "_" or path.text == "/_":
        return _own(request, path, raw_query, settings)
    query = parse_query(raw_query) if raw_query else NO_PARAMETERS
    if method == "GET" and accepts(request.headers, EVENT_STREAM):
        return parse_follow(request, path, query, settings)
    if method == "GET" and not query and not path.is_container and "prefer" not in request.headers:
        return _get(request, path)
    is_root_listing = path.text == "/" and parameter(query, "list") is not None
    allow = ALLOW_CONTAINER if path.is_container else ALLOW_ROOT if is_root_listing else ALLOW_DOCUMENT
    if method == "OPTIONS":
        return _options(request, allow)
    if method not in _ALLOWED[allow]:
        raise MethodNotAllowed(f"{path.text} allows {allow}; send one of these methods", headers={"Allow": allow})
    if method in _READS:
        if parameter(query, "hold") is not None:
            raise InvalidParameter("?hold= requires a stream; send Accept: text/event-stream with it")
        if query and method != "QUERY" and asks_for_history(query):
            return parse_history(path, query)
        read = _listing(request, path, query) if path.is_container or is_root_listing else _get(request, path)
        wait_s = _wait_s(request)
        return LongPoll(read, path, wait_s) if wait_s else read
    check_origin(request.headers, settings)
    command = _WRITES[method](request, path, query, settings)
    key = request.headers.get("idempotency-key")
    if key is None:
        return command
    if isinstance(command, LongPoll):
        return command._replace(command=_idempotent(request, command.path, key, command.command))
    return _idempotent(request, path.container if method == "POST" else path, key, command)


def render(request: Request, outcome: Outcome) -> Response:
    """Return the response to a request whose command had this outcome; raises Problem."""
    renderer = _RENDERERS.get(type(outcome))
    if renderer is None:
        raise InternalError(f"the outcome {type(outcome).__name__} has no renderer")
    reply = renderer(request, outcome)
    if "prefer" in request.headers and (wait_s := _wait_s(request)):
        return reply._replace(headers=(*reply.headers, ("Preference-Applied", f"wait={wait_s}")))
    return reply


def _own(
    request: Request, path: Path, raw_query: bytes, settings: Settings
) -> Command[Outcome] | FollowMany | ReadMetrics | Response:
    """Return what a path of the service's own is asked for; raises Problem."""
    if path.text == BATCH_PATH:
        return _batch(request, settings)
    if path.text == FOLLOW_PATH:
        return _follow_many(request, raw_query, settings)
    if path.text == METRICS_PATH:
        return parse_metrics(request)
    raise NotFound("thing doesn't exist: paths below /_/ belong to the service, which has nothing at this path")


def _listing(request: Request, path: Path, query: Query) -> List | Find:
    return (parse_query_body if request.method == "QUERY" else parse_list)(request, path, query)


def _get(request: Request, path: Path) -> Get | ConditionalGet:
    preconditions, is_head = parse_preconditions(request.headers), request.method == "HEAD"
    return Get(path) if preconditions is NONE and not is_head else ConditionalGet(path, preconditions, is_head)


def _wait_s(request: Request) -> int:
    """Return how long a client that reads wants to wait for something new, in s; 0 if not (RFC 7240 section 4.3)."""
    found = _WAIT.search(request.headers.get("prefer", "")) if request.method in _READS else None
    if not found or asks_for_history(parse_query(split_target(request.target)[1])):
        return 0
    return min(int(found[1]), MAX_WAIT_S)


def _options(request: Request, allow: str) -> Response:
    accepts_query = (("Accept-Query", ACCEPT_QUERY),) if "QUERY" in allow else ()
    headers = ("Allow", allow), ("Accept-Patch", ACCEPT_PATCH), *accepts_query
    return Response(204, (*headers, *preflight(request, allow), *SAFE))


def _follow_many(request: Request, raw_query: bytes, settings: Settings) -> FollowMany | Response:
    return answer_options(request, "GET") or parse_follow_many(request, parse_query(raw_query), settings)


def _batch(request: Request, settings: Settings) -> Command[Outcome] | Response:
    if options := answer_options(request, "POST"):
        return options
    check_origin(request.headers, settings)
    check_json(request.headers)
    if "idempotency-key" not in request.headers:
        bulk = parse_bulk(request, settings, lambda: _slow_batch(request, settings))
        if bulk is not None:
            return bulk
    return _any_batch(request, settings)


def _slow_batch(request: Request, settings: Settings) -> Command[Executed]:
    """The batch that a bulk one becomes where the script finds that it would be refused."""
    batch = _any_batch(request, settings)
    assert isinstance(batch, Batch)  # each of its requests needs the store
    return batch


def _any_batch(request: Request, settings: Settings) -> Batch[Request, Answer] | Idempotent[Executed] | Response:
    plan = plan_batch(request, settings)
    return render_answers(plan, render) if isinstance(plan, Answers) else plan


def plan_batch(
    request: Request, settings: Settings
) -> Batch[Request, Answer] | Idempotent[Executed] | Answers[Request, Answer]:
    """Return the command of a batch, or its answers if the store is not needed; raises Problem."""
    batch = parse_batch(request, lambda part: _in_batch(part, settings))
    first = batch.next()
    key = request.headers.get("idempotency-key")
    if key is not None and not batch.atomic:
        raise InvalidRequest("a batch that is not atomic takes no Idempotency-Key; make it atomic, or send no key")
    if batch.atomic:
        for index, step in enumerate(batch.steps):
            if isinstance(step, Answered) and isinstance(step.answer, Problem):
                raise render_refused(Refused(index, batch.requests[index], step.answer), render)
    if isinstance(first, Answers):
        return first
    command = first.command
    assert isinstance(command, Batch)
    return command if key is None else _idempotent(request, command.path, key, command, command.as_reader)


def _in_batch(request: Request, settings: Settings) -> Command[Outcome] | Response:
    if len(request.target) > MAX_TARGET_BYTES:
        raise PathTooLong(f"a path in a batch has at most {MAX_TARGET_BYTES:,} bytes with its query; shorten it")
    path = parse_path(split_target(request.target)[0]).text
    if path == BATCH_PATH:  # before its body is parsed, which may nest further
        raise NotInBatch("a batch cannot contain a batch; put its requests into the outer one, or send it by itself")
    if path.startswith("/_/"):
        raise NotInBatch(f"a batch cannot contain {path}; send the request by itself")
    check_no_token(request, settings)
    command = parse(request, settings)
    if isinstance(command, Follow | LongPoll):
        raise NotInBatch("a batch cannot contain a stream or a request that waits; send it by itself")
    assert not isinstance(command, FollowMany | ReadMetrics)  # these have paths of the service's own
    return command


_WRITES: dict[str, Callable[[Request, Path, Query, Settings], Command[Executed] | LongPoll[Executed]]] = {
    "PUT": parse_put,
    "PATCH": parse_patch,
    "POST": parse_post,
    "DELETE": parse_delete,
}


def _idempotent(
    request: Request, path: Path, key: str, command: Command[Executed], reader: Command[Executed] | None = None
) -> Idempotent[Executed]:
    """Wrap a command so that it is executed once for its key (draft-ietf-httpapi-idempotency-key-header)."""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidRequest(f"an Idempotency-Key must have 1 to {MAX_KEY_CHARACTERS} characters")
    asked = (request.method, request.target, request.body, *(request.headers.get(name) for name in _ASKED_BY))
    owner = ""
    if request.subject is not None:  # its keys are its own: no key of another client has a colon here
        asked, owner = (*asked, request.subject), _digest(request.subject) + ":"
    kept = own_key(path, f"idempotency:{owner}{_digest(key)}")
    return Idempotent(command, kept, _digest(repr(asked)), reader=reader)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


# The header fields that belong to the request for its Idempotency-Key: with another value it is another request.
_ASKED_BY = ("content-type", "if-match", "if-none-match", "if-unmodified-since")


def _held(request: Request, held: LeaseChanged) -> Response:
    return apply_preference(request, render_held(held))


def _replayed(request: Request, again: Replayed[Executed]) -> Response:
    replayed = ("Idempotency-Replayed", "true")
    try:
        reply = render(request, again.outcome)
    except Problem as problem:
        problem.headers.update([replayed])
        raise
    return reply._replace(headers=(*reply.headers, replayed))


def _refused(_: Request, refused: Refused[Request, Answer]) -> Response:
    raise render_refused(refused, render)


_RENDERERS: dict[type, Callable[[Request, Any], Response]] = {
    Found: render_found,
    Stored: render_stored,
    Appended: render_appended,
    Deleted: lambda _, __: Response(204, SAFE),
    Missing: render_missing,
    Failed: render_failed,
    Replayed: _replayed,
    Listing: render_listing,
    History: render_history,
    Counted: render_counted,
    Unchanged: lambda request, unchanged: render_unchanged(request, unchanged.tag),
    DeletedRecursive: lambda _, deleted: Response(200, DOCUMENT, b'{"deleted":%d}\n' % deleted.documents),
    **dict.fromkeys((Answers, ManyWritten, ManyRead), lambda request, answers: render_responses(request, answers, render)),
    Refused: _refused,
    Taken: lambda _, taken: render_taken(taken),
    LeaseChanged: _held,
    IssuedToken: lambda _, issued: render_issued(issued),
    Ready: lambda _, __: OK,
    MetricsRead: lambda _, read: render_metrics_read(read),
}
