"""Requests and responses as values, and the header fields that all responses of a kind have.

Sources: RFC 9110 (HTTP), RFC 9457 (problems).
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from time import gmtime
from typing import NamedTuple, TypeAlias
from urllib.parse import parse_qsl

from kvstore.access.caller import Caller
from kvstore.commands.containers import List
from kvstore.commands.queries import Find
from kvstore.core import json_text
from kvstore.core.errors import InvalidParameter, Problem
from kvstore.core.numbers import parse_number

MAX_BODY_BYTES = json_text.MAX_BYTES
MAX_TARGET_BYTES = 8190  # of a request in a batch: as much as a request line has

EVENT_STREAM = "text/event-stream"

Headers = tuple[tuple[str, str], ...]


class Request(NamedTuple):
    """An HTTP request.

    `target` is the raw request target, below the path at which the service is mounted. `base` is that path (`""` or
    `/prefix`). `headers` are by lower-case name; several lines with one name are joined by ", ". `body` is complete: the
    adapter refuses a body that is larger than MAX_BODY_BYTES or that ended too early. `subject` is the one of its token.
    `caller` is None where a request needs no Gate.
    """

    method: str
    target: bytes
    headers: Mapping[str, str]
    body: bytes = b""
    base: str = ""
    subject: str | None = None
    caller: Caller | None = None


class Response(NamedTuple):
    """An HTTP response.

    The adapter adds Content-Length, and sends no body if the method is HEAD or the status 204 or 304. For HEAD an empty body
    has an unknown length, since the document was not read, and the adapter adds no Content-Length. With `more` the body is not
    complete: the adapter executes that command, renders its outcome for the same request, and sends the body of that response
    next, until `more` is None. If that fails, it closes the connection.
    """

    status: int
    headers: Headers
    body: bytes = b""
    more: List | Find | None = None


# On every response: nothing that is stored may run in a browser.
SAFE: Headers = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
)
DOCUMENT: Headers = (("Content-Type", "application/json"), ("Cache-Control", "no-cache"), *SAFE)
UNCHANGED: Headers = (("Cache-Control", "no-cache"), *SAFE)
PROBLEM: Headers = (("Content-Type", "application/problem+json"), ("Cache-Control", "no-store"), *SAFE)


def refuse(problem: Problem) -> Response:
    """Return the response for a problem."""
    return Response(problem.status, PROBLEM + tuple(problem.headers.items()), problem.body())


def refuse_to(request: Request, problem: Problem) -> Response:
    """Return the response for a problem: a browser that is shown no document at the root is sent to the explorer."""
    if problem.status in (401, 403, 404) and request.target in (b"/", b"/_") and _is_navigation(request):
        return Response(303, (("Location", "_/"), ("Cache-Control", "no-store"), ("Vary", "Accept"), *SAFE))
    return refuse(problem)


def _is_navigation(request: Request) -> bool:
    """Whether a person asks: Accept prefers a page."""
    return request.method in ("GET", "HEAD") and accepts(request.headers, "text/html")


Query: TypeAlias = Mapping[str, list[str]]  # the values of each parameter; bytes that are not UTF-8 as surrogates


def parse_query(raw_query: bytes) -> Query:
    """Return the parameters of a raw query, which is parsed once for each request."""
    if not raw_query:
        return NO_PARAMETERS
    query: dict[str, list[str]] = {}
    text = raw_query.decode("utf-8", "surrogateescape")
    for name, value in parse_qsl(text, keep_blank_values=True, errors="surrogateescape"):
        query.setdefault(name, []).append(value)
    return query


NO_PARAMETERS: Query = {}


def parameter(query: Query, name: str) -> str | None:
    """Return the value of a query parameter, None without one; raises InvalidParameter if it occurs twice."""
    raw = raw_parameter(query, name)
    return None if raw is None else raw.decode("utf-8", "replace")


def raw_parameter(query: Query, name: str) -> bytes | None:
    """Return the value as bytes, for callers that refuse a value that is not UTF-8; otherwise as parameter()."""
    values = query.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise InvalidParameter(f"the query parameter {name} occurs {len(values)} times; send it once")
    return values[0].encode("utf-8", "surrogateescape")


def text_parameter(query: Query, name: str) -> str | None:
    """Return the same for a value that must be UTF-8; raises InvalidParameter."""
    raw = raw_parameter(query, name)
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        raise not_utf8() from None


def not_utf8() -> InvalidParameter:
    """Return the problem of a parameter whose bytes are not UTF-8."""
    return InvalidParameter("a parameter of the query is not UTF-8; percent-encode the bytes of the UTF-8 text")


def number_parameter(query: Query, name: str, low: int, high: int) -> int | None:
    """Return the value of a query parameter that is a whole number, None without one; raises InvalidParameter."""
    text = parameter(query, name)
    if text is None:
        return None
    number = parse_number(text, low, high)
    if number is None:
        raise InvalidParameter(f"?{name}= must be a number from {low} to {high:,}")
    return number


MAX_CACHED_ACCEPT_BYTES = 256


def accepts(headers: Mapping[str, str], media_type: str) -> bool:
    """Return whether a client names a media type in Accept and does not prefer JSON (RFC 9110 section 12.5.1)."""
    accept = headers.get("accept")
    if not accept:
        return False
    weights = _weights(accept) if len(accept) <= MAX_CACHED_ACCEPT_BYTES else _weights.__wrapped__(accept)
    return weights.get(media_type, 0) > 0 and weights[media_type] >= weights.get("application/json", 0)


@lru_cache(maxsize=256)  # a client sends the same value with each request
def _weights(accept: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for named in accept.lower().split(","):
        media_type, *parameters = [part.strip() for part in named.split(";")]
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[media_type] = float(weight) if _WEIGHT.fullmatch(weight) else 0
    return weights


_WEIGHT = re.compile(r"[01](?:\.[0-9]{0,3})?")


def tag_header(tag: str | None) -> Headers:
    """Return the ETag field for an entity-tag; no field for None."""
    return (("ETag", f'"{tag}"'),) if tag else ()


def ttl_s(ttl_ms: int) -> int:
    """Return a remaining TTL in whole seconds, rounded up; at least 1, although PTTL may be 0."""
    return max(1, -(-ttl_ms // 1000))


def with_ttl(text: bytes, ttl_ms: int | None) -> bytes:
    """Return a document with the remaining TTL as its last member, if it is an object and expires (`ttl_ms` is not None)."""
    if ttl_ms is None or not text.startswith(b"{"):
        return text
    return (text[:-1] + b"," if len(text) > 2 else b"{") + _ttl_member(-(-ttl_ms // 1000))


@lru_cache(maxsize=1024)
def _ttl_member(seconds: int) -> bytes:
    return b'"ttl":%d}' % max(1, seconds)


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@lru_cache(maxsize=1024)
def http_date(time_s: int) -> str:
    """Return a time in s since the epoch as an HTTP-date; the end of the year 9999 for later times.

    Source: RFC 9110 section 5.6.7.
    """
    t = gmtime(min(time_s, 253_402_300_799))
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04} "
        f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
    )
