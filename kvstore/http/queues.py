"""Queues over HTTP: taking jobs from a container, and changing or giving back their leases.

    POST  /jobs/?lease=30s&limit=1&wait=25&max_attempts=5     takes jobs; 204 if there are none; &as= says who waits
    PATCH /jobs/<id>?lease=60s           If-Match: "<lease>"  extends the lease
    PATCH /jobs/<id>?lease=0&delay=10s   If-Match: "<lease>"  gives the job back; the body {"reason":"…"} says why

Jobs are added by POST, and completed by DELETE with the lease in If-Match, like any document.
"""

import json

from kvstore.commands.documents import Post
from kvstore.commands.jobs import (
    DEAD,
    MAX_ATTEMPTS,
    MAX_LEASE_S,
    ChangeLease,
    Job,
    LeaseChanged,
    Take,
    Taken,
)
from kvstore.commands.subscriptions import LongPoll
from kvstore.commands.takers import MAX_NAME_BYTES
from kvstore.core import json_text
from kvstore.core.codec import encode
from kvstore.core.errors import InvalidDocument, InvalidParameter, InvalidPrecondition, Problem
from kvstore.core.numbers import parse_duration_s
from kvstore.core.paths import Path, parse_path
from kvstore.core.preconditions import check_unconditional, parse_preconditions
from kvstore.core.settings import Settings
from kvstore.http.messages import DOCUMENT, SAFE, Query, Request, Response, number_parameter, parameter, raw_parameter, ttl_s

MAX_LIMIT = 100
MAX_WAIT_S = 25
LEASE_BYTES = 40  # the lease (some 30 bytes) replaces a dead job's name if that is too long for its new path


def take(request: Request, path: Path, query: Query, settings: Settings) -> Take | LongPoll[Taken]:
    """Return the command of a POST with ?lease=.

    Raises InvalidParameter, InvalidDocument, InvalidPrecondition or InvalidPath.
    """
    if request.body:
        raise InvalidDocument("a take has no body; leave ?lease= out to append the body to the queue")
    check_unconditional(request.headers, "a take has no precondition; send it without one")
    container = path.container
    _check_queue(container)
    parse_path((container.text + DEAD + "0" * LEASE_BYTES).encode())  # refuses a container with no room for dead jobs
    lease_s = _duration_s(query, "lease", 1, MAX_LEASE_S)
    assert lease_s is not None
    limit = number_parameter(query, "limit", 1, MAX_LIMIT) or 1
    max_attempts = number_parameter(query, "max_attempts", 1, MAX_ATTEMPTS)
    asked = Take(container, lease_s * 1000, limit, max_attempts, settings.log_length)
    wait_s = _duration_s(query, "wait", 0, MAX_WAIT_S)
    name = _name(query)
    return LongPoll(asked, container, wait_s, taker=name) if wait_s else asked


def lease(request: Request, path: Path, query: Query, settings: Settings) -> ChangeLease:
    """Return the command of a PATCH with ?lease=; raises InvalidParameter, InvalidDocument or InvalidPrecondition."""
    lease_s = _duration_s(query, "lease", 0, MAX_LEASE_S)
    delay_s = _duration_s(query, "delay", 0, MAX_LEASE_S)
    assert lease_s is not None
    if lease_s and delay_s is not None:
        raise InvalidParameter("?delay= is allowed with ?lease=0 only, which gives the job back")
    if lease_s and request.body:
        raise InvalidDocument("extending a lease takes no body; leave ?lease= out to patch the job")
    preconditions = parse_preconditions(request.headers)
    if preconditions.none_match or preconditions.unmodified_since_s is not None:
        raise InvalidPrecondition("changing a lease takes If-Match only; remove the other preconditions")
    return ChangeLease(path, preconditions.match, lease_s * 1000, (delay_s or 0) * 1000, _reason(request.body))


def delayed(post: Post, query: Query) -> Post:
    """Return a POST with the delay that `?delay=` asks for; raises InvalidParameter."""
    delay_s = _duration_s(query, "delay", 0, post.ttl_ms // 1000)
    if not delay_s:
        return post
    _check_queue(post.container)
    return post._replace(delay_ms=delay_s * 1000)


def _name(query: Query) -> bytes:
    """Return who a take says that it is, as JSON text; raises InvalidParameter."""
    value = raw_parameter(query, "as")
    if value is None:
        return b"null"
    if "wait" not in query:
        raise InvalidParameter("?as= says who waits, and this take does not; send ?wait= too, or no ?as=")
    try:
        encoded = encode(value)
    except Problem as problem:
        raise InvalidParameter(f"?as= must be JSON that says who waits: {problem.detail}") from None
    if encoded.ttl_s is not None or encoded.has_server_values:
        raise InvalidParameter("?as= takes no server values and no member ttl: it says who waits, for as long as that is")
    if len(encoded.text) > MAX_NAME_BYTES:
        raise InvalidParameter(f"?as= must have at most {MAX_NAME_BYTES:,} bytes, to say who waits; shorten it")
    return encoded.text


def _check_queue(container: Path) -> None:
    if container.text == "/":
        raise InvalidParameter("the root container cannot be a queue: its dead jobs would be in another namespace; name one")


def render_taken(taken: Taken) -> Response:
    """Return the response to a take; a replay leaves out the jobs that are gone."""
    if not taken.jobs:
        return Response(204, (("Cache-Control", "no-store"), *SAFE))
    headers = tuple(("Cache-Control", "no-store") if name == "Cache-Control" else (name, value) for name, value in DOCUMENT)
    return Response(200, headers, b'{"items":[%b]}\n' % b",".join(_job(job) for job in taken.jobs if job.document.text))


def render_held(held: LeaseChanged) -> Response:
    """Return the response to a lease that was extended, or to a job that was given back."""
    ttl_ms = held.document.ttl_ms
    receipt = {"path": held.path.text, "lease": held.lease} | ({} if ttl_ms is None else {"ttl": ttl_s(ttl_ms)})
    return Response(200, DOCUMENT, json.dumps(receipt, separators=(",", ":")).encode() + b"\n")


def _job(job: Job) -> bytes:
    path, lease_ = json.dumps(job.path.text).encode(), json.dumps(job.lease).encode()
    ttl_ms = job.document.ttl_ms
    ttl = b"" if ttl_ms is None else b',"ttl":%d' % ttl_s(ttl_ms)
    return b'{"path":%b,"value":%b,"attempts":%d,"lease":%b%b}' % (path, job.document.text, job.attempts, lease_, ttl)


def _reason(body: bytes) -> str:
    """Return the reason in the body {"reason":"…"}, "" without one. Raises InvalidDocument."""
    if not body:
        return ""
    json_text.check(body)
    given = json.loads(body)
    if not (isinstance(given, dict) and given.keys() <= {"reason"} and isinstance(given.get("reason", ""), str)):
        raise InvalidDocument('the body must be {"reason":"…"}, or empty, to give a job back')
    reason: str = given.get("reason", "")
    return reason


def _duration_s(query: Query, name: str, low: int, high: int) -> int | None:
    text = parameter(query, name)
    if text is None:
        return None
    duration_s = parse_duration_s(text)
    if duration_s is None or not low <= duration_s <= high:
        raise InvalidParameter(f"?{name}= must be a duration from {low} to {high:,} seconds, such as 90, 90s, 5m, 2h or 7d")
    return duration_s
