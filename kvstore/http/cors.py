"""Which web pages may use the service: what a browser is told, so that it lets a page of another origin read an answer.

Pages of the origin that they talk to may do everything, and clients that are no browsers are not asked. A page of an origin
that is not allowed can make a browser send some requests all the same, so those of them that change something are refused.
Sources: https://fetch.spec.whatwg.org/#http-cors-protocol, https://www.w3.org/TR/fetch-metadata/ (Sec-Fetch-Site).
"""

from collections.abc import Mapping

from kvstore.core.errors import OriginNotAllowed
from kvstore.core.settings import Settings
from kvstore.http.messages import Headers, Request

# What a page may send, and see, besides what every page may.
_SENT = "Cache-Control, Content-Type, Idempotency-Key, If-Match, If-Modified-Since, If-None-Match, If-Unmodified-Since"
_SENT += ", Last-Event-ID, Prefer"
_SEEN = "Accept-Patch, Allow, Date, ETag, Idempotency-Replayed, Link, Location, Preference-Applied, Retry-After, Sunset"
_PREFLIGHT_S = 7200  # that a browser need not ask again; Chromium's own limit

_OWN = ("same-origin", "none")  # a page of this origin, or the person in front of the browser


def shown_to(request: Request, settings: Settings) -> Headers:
    """The header fields of the reply that let the page see it which has asked; none where no page has, or it may not."""
    origin = request.headers.get("origin")
    if origin is None or not settings.origins.allow(origin):
        return ()
    return (
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Expose-Headers", _SEEN),
        ("Vary", "Origin"),
    )


def preflight(request: Request, allow: str) -> Headers:
    """The header fields that say which requests may follow, where a browser asks for a page; `allow` are the methods."""
    if "access-control-request-method" not in request.headers:
        return ()
    return (
        ("Access-Control-Allow-Methods", allow),
        ("Access-Control-Allow-Headers", _SENT),
        ("Access-Control-Max-Age", str(_PREFLIGHT_S)),
    )


def check_origin(headers: Mapping[str, str], settings: Settings) -> None:
    """Refuse a change that a page of an origin asks for which is not allowed; raises OriginNotAllowed."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in _OWN or (site is None and origin is None):
        return
    if origin is None:
        raise OriginNotAllowed("a page of another origin may not do that without saying which; send it with CORS")
    if settings.origins.allow(origin):
        return
    host = origin.partition("://")[2]
    # No page can set the second one without being allowed to; a proxy does.
    if host and host in (headers.get("host"), headers.get("x-forwarded-host")):
        return
    raise OriginNotAllowed(f"pages of {origin} may not change anything here; KVSTORE_ORIGINS names those that may")
