"""Containers over HTTP: listing a container page by page or as a stream, and deleting everything below it.

Names are percent-encoded as in paths, and sorted by their bytes, including the slash of a container. Source: RFC 8288 (Link).
"""

import json
from urllib.parse import quote, urlencode

from kvstore.commands.base import Found
from kvstore.commands.containers import DeleteRecursive, Item, List, Listing
from kvstore.commands.queries import Counted, Find
from kvstore.commands.takers import Taker
from kvstore.core.errors import InvalidParameter, PreconditionFailed
from kvstore.core.paths import Path, parse_path, split_target
from kvstore.core.preconditions import Preconditions, check_unconditional, parse_preconditions, read_status
from kvstore.core.query import Question
from kvstore.http import queries
from kvstore.http.content import check_json
from kvstore.http.messages import (
    DOCUMENT,
    SAFE,
    UNCHANGED,
    Headers,
    Query,
    Request,
    Response,
    accepts,
    number_parameter,
    parameter,
    tag_header,
    ttl_s,
)

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
NDJSON_PAGE = 200  # documents that one command reads for a stream of NDJSON

NDJSON = "application/x-ndjson"
VARY = ("Vary", "Accept")  # one URL, two formats; only JSON has an entity-tag


def parse_list(request: Request, path: Path, query: Query) -> List | Find:
    """Return the command of a GET of a container; raises InvalidParameter or InvalidPrecondition."""
    return _parse_list(request, path, query, queries.parse_question(query))


def parse_query_body(request: Request, path: Path, query: Query) -> List | Find:
    """Return the command of a QUERY of a container, which is that of the GET that asks the same; raises Problem."""
    check_json(request.headers)
    if set(query) - {"list"}:
        raise InvalidParameter("a QUERY asks in its body; send no parameters in its URL")
    asked = queries.parse_body(request.body)
    return _parse_list(request, path, asked.query, None if asked.question == Question() else asked.question)


def _parse_list(request: Request, path: Path, query: Query, question: Question | None) -> List | Find:
    recursive = parameter(query, "recursive") is not None
    if recursive and path.text == "/":
        raise InvalidParameter("the root container cannot be listed with ?recursive; list each namespace by itself")
    order = parameter(query, "order") or "asc"
    if order not in ("asc", "desc"):
        raise InvalidParameter("?order= must be asc or desc")
    limit, after = number_parameter(query, "limit", 1, MAX_LIMIT) or DEFAULT_LIMIT, parameter(query, "after") or ""
    is_sorted = question is not None and bool(question.sort)
    is_stream = _is_stream(request) and not (question and question.counts)
    if is_stream:
        limit = MAX_LIMIT if is_sorted else NDJSON_PAGE  # a sort reads everything for each page
    listing = List(
        container=path,
        after="" if is_sorted else _after(path, after),
        limit=limit,
        descending=order == "desc",
        with_values=parameter(query, "keys") is None,
        recursive=recursive,
        none_match=parse_preconditions(request.headers).none_match if path.text != "/" and not is_stream else "",
    )
    if question is None:
        return listing
    return Find(listing, question, queries.parse_position(after, question) if is_sorted and after else None)


def parse_delete_recursive(request: Request, path: Path, query: Query) -> DeleteRecursive:
    """Return the command of a DELETE of a container; raises InvalidParameter or InvalidPrecondition."""
    if path.text == "/" or not path.is_container:
        raise InvalidParameter("?recursive deletes a container other than the root; send a path that ends in a slash")
    if parameter(query, "recursive") is None:
        raise InvalidParameter("deleting a container deletes everything below it; add ?recursive to do that")
    check_unconditional(request.headers, "a recursive DELETE takes no precondition; send it without one")
    return DeleteRecursive(path, once="idempotency-key" in request.headers)


def render_listing(request: Request, listing: Listing) -> Response:
    """Return the response to a GET of a container: a page, or a part of a stream of NDJSON; raises PreconditionFailed."""
    _check_match(request, listing.tag, is_stream=_is_stream(request))
    container = parse_path(split_target(request.target)[0]).text
    items = render_items(container, listing.items)
    tag = tag_header(listing.tag)
    if _is_stream(request):
        headers: Headers = (("Content-Type", NDJSON), ("Cache-Control", "no-cache"), VARY, *SAFE)
        return Response(200, headers, b"".join([item + b"\n" for item in items]), listing.more)
    takers = b',"takers":[%b]' % b",".join(map(_taker, listing.takers)) if listing.takers else b""
    if listing.more is None:
        return Response(200, (*DOCUMENT, VARY, *tag), b'{"items":[%b]%b}\n' % (b",".join(items), takers))
    following = request.base + container + "?" + _query(listing.more)
    link = ("Link", f'<{following}>; rel="next"')
    body = b'{"items":[%b],"next":%b%b}\n' % (b",".join(items), json.dumps(following).encode(), takers)
    return Response(200, (*DOCUMENT, VARY, *tag, link), body)


def render_counted(request: Request, counted: Counted) -> Response:
    """Return the response to a GET or QUERY that counts; raises PreconditionFailed."""
    _check_match(request, counted.tag, is_stream=False)
    return Response(200, (*DOCUMENT, VARY, *tag_header(counted.tag)), b'{"count":%d}\n' % counted.documents)


def render_items(container: str, items: list[Item]) -> list[bytes]:
    """Return the items of a listing as JSON texts; `container` is its path."""
    return [_item(container, item) for item in items]


def render_unchanged(request: Request, tag: str) -> Response:
    """Return the 304 to a GET of a container whose entity-tag the client has; raises PreconditionFailed."""
    _check_match(request, tag, is_stream=_is_stream(request))
    return Response(304, (*tag_header(tag), VARY, *UNCHANGED))


def _check_match(request: Request, tag: str | None, *, is_stream: bool) -> None:
    """Check If-Match; raises PreconditionFailed. A stream of NDJSON has no entity-tag, since it is read in parts."""
    match = parse_preconditions(request.headers).match
    if match and not is_stream and read_status(Preconditions(match), tag) == 412:
        raise PreconditionFailed(
            "the namespace of this container has changed; list it again without If-Match", etag=f'"{tag}"' if tag else None
        )


def _is_stream(request: Request) -> bool:
    return accepts(request.headers, NDJSON)


def _after(container: Path, text: str) -> str:
    """Return the name after which a page starts, in canonical spelling; raises InvalidParameter or InvalidPath."""
    if not text:
        return ""
    base = container.text if container.is_container else "/"
    name = parse_path((base + text).encode()).text[len(base) :]
    if not name:
        raise InvalidParameter("?after= must be a name as the listing spells it")
    return name


def _query(more: List | Find) -> str:
    listing, position = (more.listing, more.position) if isinstance(more, Find) else (more, None)
    asked = {
        "list": "" if listing.container.text == "/" else None,
        "after": queries.spell_position(position) if position else listing.after,
        "limit": listing.limit if listing.limit != DEFAULT_LIMIT else None,
        "order": "desc" if listing.descending else None,
        "keys": None if listing.with_values else "",
        "recursive": "" if listing.recursive else None,
    }
    given = [(name, value) for name, value in asked.items() if value is not None]
    if isinstance(more, Find):
        given = queries.spell_question(more.question) + given
    return urlencode(given, quote_via=quote, safe="/:,").replace("=&", "&").removesuffix("=")


def _item(container: str, item: Item) -> bytes:
    name = json.dumps(item.name).encode()
    path = json.dumps(container + item.name).encode()
    document = item.document
    if document is None:
        return b'{"name":%b,"path":%b}' % (name, path)
    job = b',"state":"%b","attempts":%d' % (item.state.encode(), item.attempts) if item.state else b""
    return b'{"name":%b,"path":%b%b%b}' % (name, path, job, _members(document))


def _taker(taker: Taker) -> bytes:
    return b'{"since":%d,"until":%d,"as":%b}' % taker


def _members(document: Found) -> bytes:
    members = b""
    if document.tag:
        members += b',"etag":"\\"%b\\""' % document.tag.encode()
    if document.ttl_ms is not None:
        members += b',"ttl":%d' % ttl_s(document.ttl_ms)
    return members + (b',"value":' + document.text if document.text else b"")
