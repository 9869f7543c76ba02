"""Documents over HTTP: the commands of PUT, PATCH, POST and DELETE, and the responses to reads and writes.

Sources: RFC 9110; RFC 7240 (Prefer); RFC 8594 (Sunset).
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache

from kvstore.commands.base import Appended, Failed, Found, Missing, Stored
from kvstore.commands.containers import DeleteRecursive
from kvstore.commands.documents import ID_BYTES, Delete, Edit, Patch, Post, Put, SetTTL
from kvstore.commands.jobs import ChangeLease, Take, Taken
from kvstore.commands.subscriptions import LongPoll
from kvstore.commands.transforms import json_patch_transform, merge_patch_transform
from kvstore.core import codec
from kvstore.core.errors import (
    InvalidPatch,
    InvalidTTL,
    NotFound,
    PreconditionFailed,
)
from kvstore.core.numbers import parse_duration_s
from kvstore.core.paths import Path, parse_path, split_target
from kvstore.core.preconditions import check_unconditional, parse_preconditions, read_status, tag_time_ms
from kvstore.core.settings import Settings
from kvstore.http.containers import parse_delete_recursive
from kvstore.http.content import JSON_PATCH, check_coding, check_json, media_type
from kvstore.http.messages import (
    DOCUMENT,
    UNCHANGED,
    Headers,
    Query,
    Request,
    Response,
    http_date,
    parameter,
    parse_query,
    tag_header,
    ttl_s,
    with_ttl,
)
from kvstore.http.queues import delayed, lease, take

_RETURN = re.compile(r"(?:^|[,;])\s*return\s*=\s*\"?(minimal|representation)\b", re.IGNORECASE)


def parse_put(request: Request, path: Path, query: Query, settings: Settings) -> Put:
    """Return the command of a PUT; raises Problem."""
    check_json(request.headers)
    encoded = codec.encode(request.body)
    ttl_ms = _asked_ttl_ms(query, encoded.ttl_s, settings) or settings.default_ttl_s * 1000
    return Put(path, encoded, ttl_ms, parse_preconditions(request.headers), settings.log_length)


def parse_post(request: Request, path: Path, query: Query, settings: Settings) -> Post | Take | LongPoll[Taken]:
    """Return the command of a POST: an append, or a take with `?lease=`; raises Problem."""
    if query and parameter(query, "lease") is not None:
        return take(request, path, query, settings)
    check_json(request.headers)
    check_unconditional(request.headers, "POST always appends and takes no precondition; send it without one, or use PUT")
    encoded = codec.encode(request.body)
    ttl_ms = _asked_ttl_ms(query, encoded.ttl_s, settings) or settings.default_ttl_s * 1000
    container = path.container
    parse_path(container.text.encode() + b"0" * ID_BYTES)  # refuses a container with no room for a document's id
    post = Post(container, encoded, ttl_ms, settings.log_length)
    return delayed(post, query) if query else post


def parse_delete(request: Request, path: Path, query: Query, settings: Settings) -> Delete | DeleteRecursive:
    """Return the command of a DELETE; raises Problem."""
    if path.is_container or parameter(query, "recursive") is not None:
        return parse_delete_recursive(request, path, query)
    return Delete(path, parse_preconditions(request.headers), settings.log_length)


def parse_patch(request: Request, path: Path, query: Query, settings: Settings) -> Patch | Edit | SetTTL | ChangeLease:
    """Return the command of a PATCH; raises Problem."""
    if query and parameter(query, "lease") is not None:
        if request.body:
            check_json(request.headers)
        return lease(request, path, query, settings)
    preconditions = parse_preconditions(request.headers)
    asked_ms = _asked_ttl_ms(query, None, settings)
    default_ms = settings.default_ttl_s * 1000
    if not request.body:
        if asked_ms is None:
            raise InvalidPatch("the body is empty; send a patch, or ?ttl= to change the TTL")
        return SetTTL(path, asked_ms, preconditions)
    check_coding(request.headers)
    if media_type(request.headers) == JSON_PATCH:
        transform = json_patch_transform(request.body, asked_ms=asked_ms)
    else:
        check_json(request.headers)
        encoded = codec.encode(request.body)
        asked_ms = _asked_ttl_ms(query, encoded.ttl_s, settings)
        # Redis applies a patch without objects field by field, so writers of different members never conflict.
        if encoded.is_object and not any(value.startswith(b"{") for value in encoded.fields[1::2]):
            return Patch(path, encoded, asked_ms, default_ms, preconditions, settings.log_length, request.body)
        transform = merge_patch_transform(request.body, asked_ms=asked_ms, default_ms=default_ms)
    return Edit(path, transform, preconditions, settings.log_length, once="idempotency-key" in request.headers)


def _asked_ttl_ms(query: Query, member_s: int | None, settings: Settings) -> int | None:
    """Return the requested TTL in ms: of the query, otherwise of the member `ttl`; both are checked. Raises InvalidTTL."""
    if member_s is None and not query:
        return None
    query_s = _ttl_parameter(query) if query else None
    for asked_s in (query_s, member_s):
        if asked_s is not None and not 1 <= asked_s <= settings.max_ttl_s:
            raise InvalidTTL(f"the TTL must be from 1 to {settings.max_ttl_s} seconds")
    asked_s = query_s or member_s
    return None if asked_s is None else asked_s * 1000


def _ttl_parameter(query: Query) -> int | None:
    text = parameter(query, "ttl")
    if text is None:
        return None
    duration_s = parse_duration_s(text)
    if duration_s is None:
        raise InvalidTTL("?ttl= must be a number of seconds, or a number with a unit: 90, 90s, 5m, 2h, 7d")
    return duration_s


def _canonical(request: Request) -> str:
    return parse_path(split_target(request.target)[0]).text


def render_found(request: Request, found: Found) -> Response:
    """Return the response to a GET or HEAD of a document whose preconditions hold."""
    headers = request.headers
    if ("if-none-match" in headers or "if-modified-since" in headers) and (
        read_status(parse_preconditions(headers), found.tag) == 304
    ):
        return Response(304, (*tag_header(found.tag), *UNCHANGED))
    return _document(200, found, ())


def apply_preference(request: Request, reply: Response) -> Response:
    """Return the response as `Prefer: return=` asks for it (RFC 7240 section 4.2)."""
    if "prefer" not in request.headers or (preference := _preference(request.headers)) is None:
        return reply
    headers = (*reply.headers, ("Preference-Applied", f"return={preference}"))
    if preference == "representation":
        return reply._replace(headers=headers)
    return _without_body(reply._replace(status=204 if reply.status == 200 else reply.status, headers=headers))


def _without_body(reply: Response) -> Response:
    return Response(reply.status, tuple((name, value) for name, value in reply.headers if name != "Content-Type"))


def _preference(headers: Mapping[str, str]) -> str | None:
    prefer = headers.get("prefer")
    found = _RETURN.search(prefer) if prefer else None
    return found[1].lower() if found else None


def render_appended(request: Request, appended: Appended) -> Response:
    """Return the response to a POST."""
    path, document = appended
    location = (("Location", request.base + path),)
    reply = _document(201, document, location)
    preference = _preference(request.headers)
    if preference == "minimal" or (preference and document.text):
        return apply_preference(request, reply)
    receipt = {"path": path, "etag": f'"{document.tag}"', "ttl": ttl_s(document.ttl_ms or 0)}
    return reply._replace(body=json.dumps(receipt, separators=(",", ":")).encode() + b"\n")


def _failed(request: Request, current: Found | None) -> PreconditionFailed:
    if current is None:
        return PreconditionFailed(
            "the precondition requires a document, but nothing is stored at this path", etag=None, current=None
        )
    failed = PreconditionFailed(_why_failed(request, current), etag=f'"{current.tag}"' if current.tag else None)
    if current.text:
        failed.members["current"] = with_ttl(current.text, current.ttl_ms if current.is_object else None)
    return failed


_has_lease = re.compile(r" \d+-\d+\.\d+ ").search  # no entity-tag of ours has a dot


def _why_failed(request: Request, current: Found) -> str:
    """Return what to do after a precondition that a stored document does not meet."""
    match, none_match, *_ = parse_preconditions(request.headers)
    if _has_lease(match) or (request.method == "PATCH" and "lease" in parse_query(split_target(request.target)[1])):
        return "the lease has ended, or another taker has the job; leave the job to them, and take again"
    if current.tag and f" {current.tag} " in match and not none_match:
        return "the document is a job that somebody has taken; send only its lease as If-Match, or wait until it has ended"
    return "the stored document does not meet the precondition; look at `current`, decide, and retry with its entity-tag"


def _document(status: int, found: Found, headers: Headers) -> Response:
    text, is_object, tag, expires_at_ms, ttl_ms = found
    dates = document_dates(
        None if tag is None else tag_time_ms(tag) // 1000, None if expires_at_ms is None else expires_at_ms // 1000
    )
    body = with_ttl(text, ttl_ms if is_object else None) + b"\n" if text else b""  # the value was not read, for a HEAD
    return Response(status, (*DOCUMENT, *tag_header(tag), *dates, *headers), body)


@lru_cache(maxsize=1024)  # documents written in one second with one TTL have the same dates
def document_dates(written_at_s: int | None, expires_at_s: int | None) -> Headers:
    """Return Last-Modified and Sunset, for times in s; no field for None."""
    dates = ("Last-Modified", written_at_s), ("Sunset", expires_at_s)
    return tuple((name, http_date(time_s)) for name, time_s in dates if time_s is not None)


def render_stored(request: Request, stored: Stored) -> Response:
    """Return the response to a PUT or PATCH, with or without a body as the request prefers (RFC 7240)."""
    location = (("Location", request.base + _canonical(request)),) if stored.created else ()
    reply = _document(201 if stored.created else 200, stored.document, location)
    return apply_preference(request, reply) if stored.document.text else _without_body(reply)


def render_missing(_: Request, __: Missing) -> Response:
    """Raise NotFound."""
    raise NotFound("thing doesn't exist: nothing is stored at this path, or it has expired")


def render_failed(request: Request, failed: Failed) -> Response:
    """Raise PreconditionFailed."""
    raise _failed(request, failed.current)
