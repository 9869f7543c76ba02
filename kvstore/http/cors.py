"""Cross-origin requests: which web pages may read responses, and which may change something.

Pages of the service's own origin may do everything. Non-browser clients are unaffected. A browser also sends some requests of
pages whose origin is not allowed, so those that would change something are refused.
Sources: https://fetch.spec.whatwg.org/#http-cors-protocol, https://www.w3.org/TR/fetch-metadata/ (Sec-Fetch-Site).
"""

import re
from collections.abc import Mapping

from kvstore.core.errors import MethodNotAllowed, OriginNotAllowed
from kvstore.core.settings import Settings
from kvstore.http.messages import SAFE, Headers, Request, Response

# The header fields that a page of another origin may send and read, besides those that the Fetch standard always allows.
_SENT = "Authorization, Cache-Control, Content-Type, Idempotency-Key, If-Match, If-Modified-Since, If-None-Match"
_SENT += ", If-Unmodified-Since, Last-Event-ID, Prefer"
_SEEN = "Accept-Patch, Accept-Query, Allow, Date, ETag, Idempotency-Replayed, Link, Location, Preference-Applied, RateLimit"
_SEEN += ", RateLimit-Policy, Retry-After, Sunset, WWW-Authenticate"
_PREFLIGHT_S = 7200  # for which a browser may cache a preflight; Chromium allows no more

_OWN = ("same-origin", "none")  # a page of this origin, or the user, who typed the URL


def shown_to(request: Request, settings: Settings) -> Headers:
    """Return the fields that let the requesting page read the response; none without Origin, or if it is not allowed."""
    origin = request.headers.get("origin")
    if origin is None or not settings.origins.allow(origin):
        return ()
    # A page that sends the session cookie sees the response only if its origin is listed by name.
    credentials = (("Access-Control-Allow-Credentials", "true"),) if settings.origins.name(origin) else ()
    return (
        ("Access-Control-Allow-Origin", origin),
        *credentials,
        ("Access-Control-Expose-Headers", _SEEN),
        ("Vary", "Origin"),
    )


def preflight(request: Request, allow: str) -> Headers:
    """Return the fields that answer a preflight request, none for other requests; `allow` names the methods."""
    if "access-control-request-method" not in request.headers:
        return ()
    return (
        ("Access-Control-Allow-Methods", allow),
        ("Access-Control-Allow-Headers", _SENT),
        ("Access-Control-Max-Age", str(_PREFLIGHT_S)),
    )


def answer_options(request: Request, allow: str) -> Response | None:
    """Return the response to OPTIONS at a path of the service's own that allows these methods; None for one of them.

    Raises MethodNotAllowed for any other.
    """
    allowed = f"{allow}, OPTIONS"
    if request.method == "OPTIONS":
        return Response(204, (("Allow", allowed), *preflight(request, allow), *SAFE))
    if request.method not in allow.split(", "):
        raise MethodNotAllowed(f"this path allows {allowed}; send one of these methods", headers={"Allow": allowed})
    return None


def check_origin(headers: Mapping[str, str], settings: Settings) -> None:
    """Check that the page which asks for a change may do so; raises OriginNotAllowed."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in _OWN or (site is None and origin is None):
        return
    if origin is None:
        raise OriginNotAllowed("a page of another origin sent this request without Origin; send it with fetch() in mode cors")
    # A browser that names the site compares schemes as well, which are not known here: a proxy may do the TLS.
    if settings.origins.allow(origin) or (site is None and _is_own(origin, headers)):
        return
    raise OriginNotAllowed(f"pages of {origin} may not change anything; add this origin to KVSTORE_ORIGINS to allow it")


def check_session_origin(headers: Mapping[str, str], settings: Settings) -> None:
    """Check that the page which sends the session cookie may use it, also to read; raises OriginNotAllowed.

    A pattern is not enough. `SameSite=Strict` alone would let in every port of this host, and every host below its domain.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in _OWN or (site is None and origin is None):
        return
    if origin is not None and (settings.origins.name(origin) or (site is None and _is_own(origin, headers))):
        return
    raise OriginNotAllowed(
        "the session cookie is for pages of this origin, and of origins that KVSTORE_ORIGINS lists by name; send the token as"
        " Authorization"
    )


def check_hold_origin(headers: Mapping[str, str], settings: Settings) -> None:
    """Check the same for a GET that holds a document; raises OriginNotAllowed.

    With other changes a browser sends Origin. With a GET in mode no-cors it sends none, and to a host without TLS that is
    not this machine no Sec-Fetch-Site either. Then only Referer shows a page of this origin: no page can set that of another.
    """
    if "sec-fetch-site" in headers or "origin" in headers or not headers.get("user-agent", "").startswith("Mozilla/"):
        check_origin(headers, settings)
        return
    origin = _ORIGIN_OF_URL.match(headers.get("referer", ""))
    if not (origin and (settings.origins.allow(origin[0]) or _is_own(origin[0], headers))):
        raise OriginNotAllowed("a browser sent this request without Origin and Referer; open the stream with EventSource")


_ORIGIN_OF_URL = re.compile(r"https?://[^/?#]+")


def _is_own(origin: str, headers: Mapping[str, str]) -> bool:
    """Whether the host of an origin is the one that the client has asked, or a proxy in front."""
    host = origin.partition("://")[2]
    # A proxy sets X-Forwarded-Host. A foreign page cannot: the preflight would refuse it.
    return bool(host) and host in (headers.get("host"), headers.get("x-forwarded-host"))
