"""What the service serves of its own and does not change while it runs: pages, descriptions.

Each has an entity-tag, and another one packed by gzip for those who take that. Sources: RFC 9110 sections 8.8.3 (ETag), 12.5.3
(Accept-Encoding) and 13.1.2 (If-None-Match).
"""

import hashlib
import re
import zlib
from typing import NamedTuple

from kvstore.core.preconditions import matches, parse_preconditions
from kvstore.http.messages import SAFE, Headers, Request, Response

_KEPT: Headers = (("Cache-Control", "no-cache"), ("Vary", "Accept-Encoding"))
_takes_gzip = re.compile(r"(?:^|[,\s])(?:gzip|\*)(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))\s*(?:[;,]|$)", re.IGNORECASE).search


class Static(NamedTuple):
    """A body that stays as it is, `packed` in the format of gzip as well, with its tag without quotes."""

    body: bytes
    packed: bytes
    tag: str
    media_type: str
    headers: Headers


def make_static(body: bytes, media_type: str, headers: Headers = SAFE) -> Static:
    """Return what to serve: `headers` are sent with 304 too. Packing takes some ms, so the caller keeps it."""
    packed = zlib.compress(body, 9, 31)  # wbits 31 asks for gzip's format
    return Static(body, packed, hashlib.sha256(body).hexdigest()[:32], media_type, (*_KEPT, *headers))


def render_static(request: Request, static: Static) -> Response:
    """Return the response to a GET or HEAD: 200, or 304 with its entity-tag; raises InvalidPrecondition."""
    is_packed = bool(_takes_gzip(request.headers.get("accept-encoding", "")))
    tag = f"{static.tag}-gzip" if is_packed else static.tag
    headers = (*static.headers, ("ETag", f'"{tag}"'))
    if matches(parse_preconditions(request.headers).none_match, tag):
        return Response(304, headers)
    headers = (("Content-Type", static.media_type), *headers)
    if is_packed:
        return Response(200, (*headers, ("Content-Encoding", "gzip")), static.packed)
    return Response(200, headers, static.body)
