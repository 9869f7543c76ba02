"""The pages for people and the modules they load: the static files beside this module.

A file is read when it is first asked for, once per process. A page runs no inline script, loads nothing from other origins,
is shown in no frame, and cannot make HTML of a string. Sources: RFC 9110 sections 8.8.3 (ETag) and 12.5.3 (Accept-Encoding);
https://www.w3.org/TR/CSP3/, https://www.w3.org/TR/trusted-types/.
"""

import hashlib
import re
import zlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from kvstore.core.paths import own_path
from kvstore.core.preconditions import matches, parse_preconditions
from kvstore.http.messages import Headers, Request, Response

_FILES = files(__name__)
_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
EXPLORER = "explorer.html"

# The path of each page, and the name of its file.
PAGES: dict[str, str] = {
    f"/_/{'' if each.name == EXPLORER else each.name}": each.name
    for each in _FILES.iterdir()
    if each.name.rpartition(".")[2] in _TYPES
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_UNCHANGED: Headers = (
    ("Cache-Control", "no-cache"),
    ("Vary", "Accept-Encoding"),
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


class _File(NamedTuple):
    text: bytes
    packed: bytes  # the same in the format of gzip, which wbits 31 asks for
    tag: str
    headers: Headers


@cache
def _read(name: str) -> _File:
    text = (_FILES / name).read_bytes()
    media_type = _TYPES[name.rpartition(".")[2]]
    headers = (("Content-Type", f"{media_type}; charset=utf-8"), *_UNCHANGED)
    return _File(text, zlib.compress(text, 9, 31), hashlib.sha256(text).hexdigest()[:32], headers)


_takes_gzip = re.compile(r"(?:^|[,\s])(?:gzip|\*)(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))\s*(?:[;,]|$)", re.IGNORECASE).search


def render_page(request: Request) -> Response:
    """Return the response to a GET or HEAD of a page: 200, or 304 with its entity-tag; raises InvalidPrecondition."""
    page = _read(PAGES[own_path(request.target) or ""])
    is_packed = bool(_takes_gzip(request.headers.get("accept-encoding", "")))
    tag = f"{page.tag}-gzip" if is_packed else page.tag
    if matches(parse_preconditions(request.headers).none_match, tag):
        return Response(304, (*_UNCHANGED, ("ETag", f'"{tag}"')))
    headers = (*page.headers, ("ETag", f'"{tag}"'))
    return (
        Response(200, (*headers, ("Content-Encoding", "gzip")), page.packed) if is_packed else Response(200, headers, page.text)
    )
