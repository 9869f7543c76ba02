"""Containers over HTTP: listing what lies below one, a page or all of it, and deleting it.

Names are percent-encoded as in paths and ordered by their bytes, a container's slash counted. Source: RFC 8288 (Link).
"""

import json
from urllib.parse import quote, urlencode

from kvstore.commands.base import Found
from kvstore.commands.containers import DeleteRecursive, Item, List, Listing
from kvstore.core.errors import InvalidParameter, PreconditionFailed
from kvstore.core.paths import Path, parse_path, split_target
from kvstore.core.preconditions import Preconditions, check_unconditional, parse_preconditions, read_status
from kvstore.http.messages import DOCUMENT, SAFE, UNCHANGED, Headers, Request, Response, accepts, parameter, tag_header, ttl_s

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
NDJSON_PAGE = 200  # documents in one piece of a stream

NDJSON = "application/x-ndjson"
VARY = ("Vary", "Accept")  # one URL, two formats: only the JSON one has an entity-tag


def parse_list(request: Request, path: Path, raw_query: bytes) -> List:
    """What a GET of a container asks for; raises InvalidParameter or InvalidPrecondition."""
    recursive = parameter(raw_query, "recursive") is not None
    if recursive and path.text == "/":
        raise InvalidParameter("the root container is listed without ?recursive: list each namespace by itself")
    order = parameter(raw_query, "order") or "asc"
    if order not in ("asc", "desc"):
        raise InvalidParameter("?order= is asc or desc")
    limit = parameter(raw_query, "limit") or str(DEFAULT_LIMIT)
    if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidParameter(f"?limit= is a number from 1 to {MAX_LIMIT}")
    return List(
        container=path,
        after=_after(path, parameter(raw_query, "after") or ""),
        limit=NDJSON_PAGE if _is_stream(request) else int(limit),
        descending=order == "desc",
        with_values=parameter(raw_query, "keys") is None,
        recursive=recursive,
        none_match=parse_preconditions(request.headers).none_match if path.text != "/" and not _is_stream(request) else "",
    )


def parse_delete_recursive(request: Request, path: Path, raw_query: bytes) -> DeleteRecursive:
    """What a DELETE of a container asks for; raises InvalidParameter or InvalidPrecondition."""
    if path.text == "/" or not path.is_container:
        raise InvalidParameter("?recursive is for a container other than the root: its path ends in a slash")
    if parameter(raw_query, "recursive") is None:
        raise InvalidParameter("a container is deleted with all that lies below it: say so with ?recursive")
    check_unconditional(request.headers, "a recursive DELETE takes no precondition")
    return DeleteRecursive(path, once="idempotency-key" in request.headers)


def render_listing(request: Request, listing: Listing) -> Response:
    """The reply to a GET of a container: a page, or a piece of a stream; raises PreconditionFailed."""
    _check_match(request, listing.tag)
    container = parse_path(split_target(request.target)[0]).text
    items = render_items(container, listing.items)
    tag = tag_header(listing.tag)
    if _is_stream(request):
        headers: Headers = (("Content-Type", NDJSON), ("Cache-Control", "no-cache"), VARY, *SAFE)
        return Response(200, headers, b"".join([item + b"\n" for item in items]), listing.more)
    if listing.more is None:
        return Response(200, (*DOCUMENT, VARY, *tag), b'{"items":[%b]}\n' % b",".join(items))
    following = request.base + container + "?" + _query(listing.more)
    link = ("Link", f'<{following}>; rel="next"')
    body = b'{"items":[%b],"next":%b}\n' % (b",".join(items), json.dumps(following).encode())
    return Response(200, (*DOCUMENT, VARY, *tag, link), body)


def render_items(container: str, items: list[Item]) -> list[bytes]:
    """The items of a listing as JSON texts; `container` is its path."""
    return [_item(container, item) for item in items]


def render_unchanged(request: Request, tag: str) -> Response:
    """The reply to a GET of a container whose entity-tag the client has; raises PreconditionFailed."""
    _check_match(request, tag)
    return Response(304, (*tag_header(tag), VARY, *UNCHANGED))


def _check_match(request: Request, tag: str | None) -> None:
    """Refuse where If-Match asks for another entity-tag; a stream has none that could hold for all of it."""
    match = parse_preconditions(request.headers).match
    if match and not _is_stream(request) and read_status(Preconditions(match), tag) == 412:
        raise PreconditionFailed(
            "something below this container has changed; read it again, without If-Match", etag=f'"{tag}"' if tag else None
        )


def _is_stream(request: Request) -> bool:
    return accepts(request.headers, NDJSON)


def _after(container: Path, text: str) -> str:
    """The name after which a page starts, in canonical spelling."""
    if not text:
        return ""
    base = container.text if container.is_container else "/"
    name = parse_path((base + text).encode()).text[len(base) :]
    if not name:
        raise InvalidParameter("?after= is a name as the listing spells it")
    return name


def _query(more: List) -> str:
    asked = {
        "list": "" if more.container.text == "/" else None,
        "after": more.after,
        "limit": more.limit if more.limit != DEFAULT_LIMIT else None,
        "order": "desc" if more.descending else None,
        "keys": None if more.with_values else "",
        "recursive": "" if more.recursive else None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return urlencode(given, quote_via=quote, safe="/").replace("=&", "&").removesuffix("=")


def _item(container: str, item: Item) -> bytes:
    name = json.dumps(item.name).encode()
    path = json.dumps(container + item.name).encode()
    document = item.document
    if document is None:
        return b'{"name":%b,"path":%b}' % (name, path)
    job = b',"state":"%b","attempts":%d' % (item.state.encode(), item.attempts) if item.state else b""
    return b'{"name":%b,"path":%b%b%b}' % (name, path, job, _members(document))


def _members(document: Found) -> bytes:
    members = b""
    if document.tag:
        members += b',"etag":"\\"%b\\""' % document.tag.encode()
    if document.ttl_ms is not None:
        members += b',"ttl":%d' % ttl_s(document.ttl_ms)
    return members + (b',"value":' + document.text if document.text else b"")
