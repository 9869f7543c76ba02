"""The token of a request, and the responses that issue one: a session's cookie, a visitor's token.

A request carries its token as `Authorization: Bearer`, as the cookie that `POST /_/session` sets, or, only where a GET opens a
stream, as `?access_token=`: an EventSource cannot send header fields. Nothing else is looked at, neither a path nor a body.
Sources: RFC 6750 (Bearer), RFC 6265 (cookies).
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from kvstore.access.principal import IssuedToken
from kvstore.core.errors import InvalidParameter, InvalidRequest
from kvstore.core.paths import split_target
from kvstore.core.settings import Settings
from kvstore.http.messages import EVENT_STREAM, SAFE, Headers, Request, Response, accepts, http_date, parameter, parse_query

COOKIE = "kvstore_session"
PARAMETER = "access_token"
NO_STORE: Headers = (("Cache-Control", "no-store"), *SAFE)

_in_cookies = re.compile(rf"(?:^|[;,])[ \t]*{COOKIE}=([^;, \t]*)").findall  # HTTP/2 may split Cookie into several fields


class Credentials(NamedTuple):
    """A token, and whether a browser sent it by itself."""

    token: str
    is_cookie: bool = False


def credentials_in(request: Request) -> Credentials | None:
    """Return the token that a request carries, None without one; raises InvalidRequest or InvalidParameter.

    What a client has chosen to send takes precedence over the cookie, which a browser sends always.
    """
    bearer = bearer_in(request.headers)
    if b"?" in request.target and (in_query := _in_query(request)) is not None:
        if not _opens_stream(request):
            raise _misplaced()
        if bearer is not None:
            raise InvalidRequest(f"the token came as Authorization and as ?{PARAMETER}=; send it once")
        return Credentials(in_query)
    if bearer is not None:
        return bearer
    cookies = set(_in_cookies(request.headers.get("cookie", "")))
    if len(cookies) > 1:
        raise InvalidRequest(f"the cookie {COOKIE} came with several values; delete those of other hosts, or sign in again")
    return Credentials(cookies.pop(), is_cookie=True) if cookies else None


def bearer_in(headers: Mapping[str, str]) -> Credentials | None:
    """Return the token in Authorization, None for other schemes, which may be a proxy's; raises InvalidRequest for two."""
    field = headers.get("authorization")
    if field is None:
        return None
    return _bearer(field) if len(field) <= MAX_CACHED_CHARACTERS else _bearer.__wrapped__(field)


MAX_CACHED_CHARACTERS = 2048  # of Authorization: clients send the same again and again


@lru_cache(maxsize=1024)
def _bearer(field: str) -> Credentials | None:
    if "," in field and "bearer" in field.lower():  # fields of one name are joined by a comma, which no token has
        raise InvalidRequest("Authorization came twice, or its token has a comma; send one token")
    scheme, _, token = field.partition(" ")
    return Credentials(token.strip()) if scheme.lower() == "bearer" else None


def check_no_token(request: Request, settings: Settings) -> None:
    """Check that a request in a batch carries no token: the batch's is that of all; raises InvalidParameter."""
    if not settings.is_open and b"?" in request.target and _in_query(request) is not None:
        raise _misplaced()


def _in_query(request: Request) -> str | None:
    raw_query = split_target(request.target)[1]
    if PARAMETER.encode() not in raw_query and b"%" not in raw_query:
        return None
    return parameter(parse_query(raw_query), PARAMETER)


def _opens_stream(request: Request) -> bool:
    return request.method == "GET" and accepts(request.headers, EVENT_STREAM)


def _misplaced() -> InvalidParameter:
    return InvalidParameter(f"?{PARAMETER}= is for a GET that opens a stream; send the token as Authorization: Bearer")


def session_cookie(request: Request, token: str, expires_at_s: float | None) -> Headers:
    """Return the fields that set the session's cookie, which ends with its token; an empty token deletes it."""
    attributes = "; HttpOnly; SameSite=Strict; Path=/"
    if request.headers.get("x-forwarded-proto", "").partition(",")[0].strip().lower() == "https":
        attributes += "; Secure"
    if expires_at_s is not None:
        attributes += f"; Expires={http_date(int(expires_at_s))}"
    return (("Set-Cookie", f"{COOKIE}={token}{attributes}"),)


def render_issued(issued: IssuedToken) -> Response:
    """Return the response with a visitor's token."""
    token, subject, expires_at_s = issued
    body = json.dumps({"token": token, "sub": subject, "expires": 1000 * expires_at_s}, separators=(",", ":"))
    return Response(201, (("Content-Type", "application/json"), *NO_STORE), body.encode() + b"\n")
