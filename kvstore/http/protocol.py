"""HTTP's rules, once: `parse` makes a command of a request, `render` makes a reply of what the store answered.

Functions of values: no Flask, no Redis, no clock, no I/O. An adapter carries bytes to and from here; what an adapter must
see to by itself is written at Request and Reply. Sources: RFC 9110 (HTTP), RFC 9457 (problems), RFC 8594 (Sunset).
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from kvstore.commands.base import Appended, Command, Deleted, Failed, Found, Missing, Once, Replayed, Stored
from kvstore.commands.batch import Answered, Answers, Batch, Refused
from kvstore.commands.bulk import AllRead, AllWritten
from kvstore.commands.containers import DeleteBelow, DeletedBelow, Listing, Unchanged
from kvstore.commands.documents import ID_BYTES, Delete, Edit, Get, Patch, Post, Put, Touch
from kvstore.commands.jobs import Held, Take, Taken
from kvstore.commands.presence import Hold
from kvstore.commands.subscriptions import Follow, Wait
from kvstore.commands.transforms import json_patch_change, merge_change
from kvstore.core import codec
from kvstore.core.errors import (
    InternalError,
    InvalidParameter,
    InvalidPatch,
    InvalidRequest,
    InvalidTTL,
    MethodNotAllowed,
    NotFound,
    NotInBatch,
    PreconditionFailed,
    Problem,
    UnsupportedMediaType,
)
from kvstore.core.paths import Path, own_key, parse_path, split_target
from kvstore.core.preconditions import check_unconditional, parse_conditions, read_status, tag_time_ms
from kvstore.core.settings import Settings
from kvstore.http.batch import parse_batch, render_answers, render_refused
from kvstore.http.bulk_batch import parse_alike, render_responses
from kvstore.http.containers import delete_below, list_below, render_listing, render_unchanged
from kvstore.http.cors import check_origin, preflight
from kvstore.http.messages import (
    DOCUMENT,
    SAFE,
    UNCHANGED,
    Headers,
    Reply,
    Request,
    accepts,
    http_date,
    parameter,
    parse_duration_s,
    raw_parameter,
    tag_header,
    ttl_s,
    with_ttl,
)
from kvstore.http.presence import asked_hold
from kvstore.http.queues import MAX_WAIT_S, delayed, lease, render_held, render_taken, take

BATCH_PATH = "/_/batch"

ALLOW_DOCUMENT = "GET, HEAD, PUT, PATCH, POST, DELETE, OPTIONS"
ALLOW_CONTAINER = "GET, HEAD, POST, DELETE, OPTIONS"

_ALLOWED = tuple(frozenset(allow.split(", ")) for allow in (ALLOW_DOCUMENT, ALLOW_CONTAINER))  # by whether it is a container

MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
ACCEPT_PATCH = f"{MERGE_PATCH}, {JSON_PATCH}, application/json"

# Besides */*+json: what curl -d sends by itself, and what clients send that know nothing of the body.
JSON_TYPES = ("application/json", "application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
_JSON_SUFFIX = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.-]+\+json")

_RETURN = re.compile(r"(?:^|[,;])\s*return\s*=\s*\"?(minimal|representation)\b", re.IGNORECASE)
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,9})\b", re.IGNORECASE)
EVENT_STREAM = "text/event-stream"
STREAM: Headers = (("Content-Type", EVENT_STREAM), ("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"), *SAFE)
_PLACE = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")


def parse(request: Request, settings: Settings) -> Command | Follow | Wait | Reply:
    """What a request asks of the store, or the reply where the store is not needed; raises Problem."""
    raw_path, raw_query = split_target(request.target)
    method = request.method
    if raw_path == b"*" and method == "OPTIONS":
        return _options(request, ALLOW_DOCUMENT)
    path = parse_path(raw_path)
    if path.text.startswith("/_/") or path.text == "/_":
        if path.text == BATCH_PATH:
            return _batch(request, path, settings)
        raise NotFound("thing doesn't exist: paths under /_/ belong to the service, and there is nothing at this one")
    if method == "GET" and accepts(request.headers, EVENT_STREAM):
        if path.text == "/" and parameter(raw_query, "list") is not None:
            raise InvalidParameter("the root container is not followed; follow a namespace, or a document")
        recursive = path.text != "/" and parameter(raw_query, "recursive") is not None
        return Follow(path, _place(request, raw_query), recursive, _hold(request, raw_query, settings))
    if method == "GET" and not raw_query and not path.is_container and "prefer" not in request.headers:
        return Get(path)
    allow = ALLOW_CONTAINER if path.is_container else ALLOW_DOCUMENT
    if method == "OPTIONS":
        return _options(request, allow)
    if method not in _ALLOWED[path.is_container]:
        raise MethodNotAllowed(f"{path.text} takes {allow}", headers={"Allow": allow})
    if method in ("GET", "HEAD"):
        if b"hold=" in raw_query and parameter(raw_query, "hold") is not None:
            raise InvalidParameter("?hold= is for a stream: send Accept: text/event-stream with it")
        is_listing = path.is_container or (path.text == "/" and parameter(raw_query, "list") is not None)
        read = list_below(request, path, raw_query) if is_listing else Get(path, parse_conditions(request.headers))
        wait_s = _wait_s(request)
        return Wait(read, path, wait_s) if wait_s else read
    check_origin(request.headers, settings)
    command = _WRITES[method](request, path, raw_query, settings)
    key = request.headers.get("idempotency-key")
    if key is None:
        return command
    if isinstance(command, Wait):
        return command._replace(command=_once(request, command.path, key, command.command))
    return _once(request, path.container if method == "POST" else path, key, command)


def render(request: Request, outcome: object) -> Reply:
    """The reply to a request whose command had this outcome; raises Problem."""
    renderer = _RENDERERS.get(type(outcome))
    if renderer is None:
        raise InternalError(f"no reply is written for the outcome {type(outcome).__name__}")
    reply = renderer(request, outcome)
    if "prefer" in request.headers and (wait_s := _wait_s(request)):
        return reply._replace(headers=(*reply.headers, ("Preference-Applied", f"wait={wait_s}")))
    return reply


def _place(request: Request, raw_query: bytes) -> str | None:
    """The place in the log after which the client wants to follow, None for a snapshot first."""
    place = request.headers.get("last-event-id") or parameter(raw_query, "last_event_id")
    if place and not _PLACE.fullmatch(place):
        raise InvalidParameter("Last-Event-ID is the id of an event, as it came")
    return place or None


def _hold(request: Request, raw_query: bytes, settings: Settings) -> Hold | None:
    hold = asked_hold(raw_parameter(raw_query, "hold"), raw_parameter(raw_query, "as"), settings.log_length)
    if hold:
        check_origin(request.headers, settings)
    return hold


def _wait_s(request: Request) -> int:
    """For how long a client that reads would rather wait than get nothing new (RFC 7240 section 4.3); 0 for not at all."""
    found = _WAIT.search(request.headers.get("prefer", "")) if request.method in ("GET", "HEAD") else None
    return min(int(found[1]), MAX_WAIT_S) if found else 0


def _options(request: Request, allow: str) -> Reply:
    return Reply(204, (("Allow", allow), ("Accept-Patch", ACCEPT_PATCH), *preflight(request, allow), *SAFE))


def _batch(request: Request, path: Path, settings: Settings) -> Command | Reply:
    if request.method == "OPTIONS":
        return Reply(204, (("Allow", "POST, OPTIONS"), *preflight(request, "POST"), *SAFE))
    if request.method != "POST":
        raise MethodNotAllowed(f"{path.text} takes POST", headers={"Allow": "POST, OPTIONS"})
    check_origin(request.headers, settings)
    _check_json(request.headers)
    if "idempotency-key" not in request.headers:
        alike = parse_alike(request, settings, lambda: _any_batch(request, settings))
        if alike is not None:
            return alike
    return _any_batch(request, settings)


def _any_batch(request: Request, settings: Settings) -> Command | Reply:
    atomic, batch = parse_batch(request, lambda part: _in_batch(part, settings))
    first = batch.next()
    key = request.headers.get("idempotency-key")
    if key is not None and not atomic:
        raise InvalidRequest("an Idempotency-Key is for an atomic batch; give each request its own, or none")
    if atomic:
        for index, step in enumerate(batch.steps):
            if isinstance(step, Answered) and isinstance(step.answer, Problem):
                raise render_refused(Refused(index, batch.requests[index], step.answer), render)
    if isinstance(first, Answers):  # the store is not needed
        return render_answers(first, render)
    command = first.command
    assert isinstance(command, Batch)
    return command if key is None else _once(request, command.path, key, command)


def _in_batch(request: Request, settings: Settings) -> Command | Reply:
    if parse_path(split_target(request.target)[0]).text == BATCH_PATH:  # before its body is read, and what is in that
        raise NotInBatch("a batch is not for a batch: send its requests as requests of the other, or by itself")
    command = parse(request, settings)
    if isinstance(command, Follow | Wait):
        raise NotInBatch("a stream of events, or a request that waits, is not for a batch")
    return command


def _put(request: Request, path: Path, raw_query: bytes, settings: Settings) -> Put:
    _check_json(request.headers)
    encoded = codec.encode(request.body)
    ttl_ms = _asked_ttl_ms(raw_query, encoded.ttl_s, settings) or settings.default_ttl_s * 1000
    return Put(path, encoded, ttl_ms, parse_conditions(request.headers), settings.log_length)


def _post(request: Request, path: Path, raw_query: bytes, settings: Settings) -> Post | Take | Wait:
    if raw_query and parameter(raw_query, "lease") is not None:
        return take(request, path, raw_query, settings)
    _check_json(request.headers)
    check_unconditional(request.headers, "POST appends, whatever is there already, and takes no precondition")
    encoded = codec.encode(request.body)
    ttl_ms = _asked_ttl_ms(raw_query, encoded.ttl_s, settings) or settings.default_ttl_s * 1000
    container = path.container
    parse_path(container.text.encode() + b"0" * ID_BYTES)  # that what is appended has a path
    post = Post(container, encoded, ttl_ms, settings.log_length)
    return delayed(post, raw_query) if raw_query else post


def _delete(request: Request, path: Path, raw_query: bytes, settings: Settings) -> Delete | DeleteBelow:
    if path.is_container or parameter(raw_query, "recursive") is not None:
        return delete_below(request, path, raw_query)
    return Delete(path, parse_conditions(request.headers), settings.log_length)


def _patch(request: Request, path: Path, raw_query: bytes, settings: Settings) -> Command:
    if raw_query and parameter(raw_query, "lease") is not None:
        if request.body:
            _check_json(request.headers)
        return lease(request, path, raw_query, settings)
    conditions = parse_conditions(request.headers)
    asked_ms = _asked_ttl_ms(raw_query, None, settings)
    default_ms = settings.default_ttl_s * 1000
    if not request.body:
        if asked_ms is None:
            raise InvalidPatch("the body is empty; send a patch, or ask for another TTL with ?ttl=")
        return Touch(path, asked_ms, conditions)
    _check_coding(request.headers)
    if _media_type(request.headers) == JSON_PATCH:
        change = json_patch_change(request.body, asked_ms=asked_ms)
    else:
        _check_json(request.headers)
        encoded = codec.encode(request.body)
        asked_ms = _asked_ttl_ms(raw_query, encoded.ttl_s, settings)
        # By field where no member of the patch is an object, so that writers of different members do not meet.
        if encoded.is_object and not any(value.startswith(b"{") for value in encoded.fields[1::2]):
            return Patch(path, encoded, asked_ms, default_ms, conditions, settings.log_length)
        change = merge_change(request.body, asked_ms=asked_ms, default_ms=default_ms)
    return Edit(path, change, conditions, settings.log_length, once="idempotency-key" in request.headers)


_WRITES: dict[str, Callable[[Request, Path, bytes, Settings], Command | Wait]] = {
    "PUT": _put,
    "PATCH": _patch,
    "POST": _post,
    "DELETE": _delete,
}


def _once(request: Request, path: Path, key: str, command: Command) -> Once:
    """The command, once for its Idempotency-Key (draft-ietf-httpapi-idempotency-key-header)."""
    if not 1 <= len(key) <= 255:
        raise InvalidRequest("an Idempotency-Key has 1 to 255 characters")
    asked = (request.method, request.target, request.body, *(request.headers.get(name) for name in _ASKED_BY))
    fingerprint = hashlib.sha256(repr(asked).encode()).hexdigest()
    return Once(command, own_key(path, "once:" + hashlib.sha256(key.encode()).hexdigest()), fingerprint)


# The header fields that make a request another one for its Idempotency-Key.
_ASKED_BY = ("content-type", "if-match", "if-none-match", "if-unmodified-since")


def _media_type(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_coding(headers: Mapping[str, str]) -> None:
    if "content-encoding" in headers and headers["content-encoding"].strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            "a body is read as it is, without a Content-Encoding", headers={"Accept-Encoding": "identity"}
        )


def _check_json(headers: Mapping[str, str]) -> None:
    _check_coding(headers)
    if "content-type" not in headers or headers["content-type"] in JSON_TYPES:
        return
    media_type = _media_type(headers)
    if media_type and media_type not in JSON_TYPES and not _JSON_SUFFIX.fullmatch(media_type):
        raise UnsupportedMediaType(
            "the body must be JSON: send Content-Type: application/json, or none",
            headers={"Accept": "application/json", "Accept-Patch": ACCEPT_PATCH},
        )


def _asked_ttl_ms(raw_query: bytes, member_s: int | None, settings: Settings) -> int | None:
    """The TTL that the query, else the member of the body, asks for; both must be ones we accept."""
    if member_s is None and not raw_query:
        return None
    query_s = _ttl_parameter(raw_query) if raw_query else None
    for asked_s in (query_s, member_s):
        if asked_s is not None and not 1 <= asked_s <= settings.max_ttl_s:
            raise InvalidTTL(f"a TTL is from 1 to {settings.max_ttl_s} seconds")
    asked_s = query_s or member_s
    return None if asked_s is None else asked_s * 1000


def _ttl_parameter(raw_query: bytes) -> int | None:
    text = parameter(raw_query, "ttl")
    if text is None:
        return None
    duration_s = parse_duration_s(text)
    if duration_s is None:
        raise InvalidTTL("?ttl= is a number of seconds, or a number with a unit: 90, 90s, 5m, 2h, 7d")
    return duration_s


def _canonical(request: Request) -> str:
    return parse_path(split_target(request.target)[0]).text


def _found(request: Request, found: Found) -> Reply:
    status = read_status(parse_conditions(request.headers), found.tag)
    if status == 412:
        raise _failed(found)
    return _document(200, found, ()) if status == 200 else Reply(304, (*tag_header(found.tag), *UNCHANGED))


def _written(request: Request, status: int, document: Found, headers: Headers) -> Reply:
    """The reply to a write, as far as the request wants it (RFC 7240)."""
    return _preferred(request, _document(status, document, headers))


def _preferred(request: Request, reply: Reply) -> Reply:
    preference = _preference(request.headers)
    if preference is None:
        return reply
    headers = (*reply.headers, ("Preference-Applied", f"return={preference}"))
    if preference == "representation":
        return reply._replace(headers=headers)
    kept = tuple((name, value) for name, value in headers if name != "Content-Type")
    return Reply(204 if reply.status == 200 else reply.status, kept)


def _held(request: Request, held: Held) -> Reply:
    return _preferred(request, render_held(held))


def _preference(headers: Mapping[str, str]) -> str | None:
    prefer = headers.get("prefer")
    found = _RETURN.search(prefer) if prefer else None
    return found[1].lower() if found else None


def _appended(request: Request, appended: Appended) -> Reply:
    path, document = appended
    location = (("Location", request.base + path),)
    reply = _written(request, 201, document, location)
    if _preference(request.headers):
        return reply
    receipt = {"path": path, "etag": f'"{document.tag}"', "ttl": ttl_s(document.ttl_ms or 0)}
    return reply._replace(body=json.dumps(receipt, separators=(",", ":")).encode() + b"\n")


def _replayed(request: Request, again: Replayed) -> Reply:
    replayed = ("Idempotency-Replayed", "true")
    try:
        reply = render(request, again.outcome)
    except Problem as problem:
        problem.headers.update([replayed])
        raise
    return reply._replace(headers=(*reply.headers, replayed))


def _failed(current: Found | None) -> PreconditionFailed:
    if current is None:
        return PreconditionFailed(
            "nothing is stored at this path, and a precondition asked for something", etag=None, current=None
        )
    return PreconditionFailed(
        "what is stored is not what a precondition asked for; read it again, decide, and send its entity-tag",
        etag=f'"{current.tag}"' if current.tag else None,
        current=with_ttl(current.text, current.ttl_ms if current.is_object else None),
    )


def _document(status: int, found: Found, headers: Headers) -> Reply:
    text, is_object, tag, expires_at_ms, ttl_ms = found
    dates = _dates(None if tag is None else tag_time_ms(tag) // 1000, None if expires_at_ms is None else expires_at_ms // 1000)
    return Reply(status, (*DOCUMENT, *tag_header(tag), *dates, *headers), with_ttl(text, ttl_ms if is_object else None) + b"\n")


@lru_cache(maxsize=1024)  # what is written in one second with one TTL has the same
def _dates(written_at_s: int | None, expires_at_s: int | None) -> Headers:
    dates = ("Last-Modified", written_at_s), ("Sunset", expires_at_s)
    return tuple((name, http_date(time_s)) for name, time_s in dates if time_s is not None)


def _stored(request: Request, stored: Stored) -> Reply:
    location = (("Location", request.base + _canonical(request)),) if stored.created else ()
    return _written(request, 201 if stored.created else 200, stored.document, location)


def _missing(_: Request, __: Missing) -> Reply:
    raise NotFound("thing doesn't exist: nothing is stored at this path, or it has expired")


def _refused(_: Request, refused: Refused) -> Reply:
    raise render_refused(refused, render)


def _precondition_failed(_: Request, failed: Failed) -> Reply:
    raise _failed(failed.current)


_RENDERERS: dict[type, Callable[[Request, Any], Reply]] = {
    Found: _found,
    Stored: _stored,
    Appended: _appended,
    Deleted: lambda _, __: Reply(204, SAFE),
    Missing: _missing,
    Failed: _precondition_failed,
    Replayed: _replayed,
    Listing: render_listing,
    Unchanged: lambda request, unchanged: render_unchanged(request, unchanged.tag),
    DeletedBelow: lambda _, deleted: Reply(200, DOCUMENT, b'{"deleted":%d}\n' % deleted.documents),
    **dict.fromkeys((Answers, AllWritten, AllRead), lambda request, answers: render_responses(request, answers, render)),
    Refused: _refused,
    Taken: lambda _, taken: render_taken(taken),
    Held: _held,
}
