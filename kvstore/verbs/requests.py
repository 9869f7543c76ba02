"""The verbs of the client for Python: `client.py` and `aio.py` execute what these functions return.

A verb is a request, which `http/protocol.py` parses as if it had come over HTTP, and a function that reads the outcome. So the
rules are HTTP's: paths, TTLs, preconditions, idempotency, limits. Nothing here does I/O.
"""

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from copy import deepcopy
from random import uniform
from typing import Any, TypeAlias
from urllib.parse import urlencode

from kvstore.commands.base import Missing
from kvstore.core import values
from kvstore.core.errors import InvalidPath, InvalidRequest, NotFound
from kvstore.core.paths import Path, parse_path
from kvstore.http.containers import MAX_LIMIT, NDJSON_PAGE
from kvstore.http.content import JSON_PATCH
from kvstore.http.messages import Request
from kvstore.http.protocol import BATCH_PATH
from kvstore.verbs.outcomes import (
    read_appended,
    read_batch,
    read_changed,
    read_count,
    read_deleted,
    read_finished,
    read_found,
    read_page,
    read_taken,
    read_written,
    unless_lost,
)
from kvstore.verbs.shapes import Asking, Document, Duration, LeasedDocument, Page, Result, Where

NOTHING: Any = object()


def get(path: str) -> Asking[Document | None]:
    """Read a document."""
    at = _document(path)
    return Asking(request_of("GET", at), lambda outcome: None if isinstance(outcome, Missing) else read_found(at, outcome))


def put(path: str, value: Any, **options: Any) -> Asking[Document]:
    """Replace a document, or create it."""
    at = _document(path)
    return Asking(_write("PUT", at, values.dump(value), **options), lambda outcome: read_written(at, outcome))


def patch(path: str, changes: Any = NOTHING, **options: Any) -> Asking[Document]:
    """Change a document: by a merge patch, or by a JSON Patch, which is a list. Without one, change only its TTL."""
    at = _document(path)
    body = b"" if changes is NOTHING else values.dump(changes)
    content_type = JSON_PATCH if isinstance(changes, list | tuple) else None
    request = _write("PATCH", at, body, content_type=content_type, **options)
    return Asking(request, lambda outcome: read_written(at, outcome))


def post(
    container: str,
    value: Any,
    *,
    ttl: Duration | None = None,
    delay: Duration | None = None,
    idempotency_key: str | None = None,
) -> Asking[Document]:
    """Append a document to a container."""
    query = {"ttl": ttl, "delay": delay}
    request = request_of("POST", as_path(container), query, values.dump(value), {"idempotency-key": idempotency_key})
    return Asking(request, read_appended)


def delete(
    path: str,
    *,
    recursive: bool = False,
    if_match: str | None = None,
    if_none_match: str | None = None,
    idempotency_key: str | None = None,
) -> Asking[int]:
    """Delete a document, or all that is below a container."""
    headers = {"if-match": if_match, "if-none-match": if_none_match, "idempotency-key": idempotency_key}
    query = {"recursive": "" if recursive else None}
    return Asking(request_of("DELETE", as_path(path), query, headers=headers), read_deleted)


def pages(  # noqa: PLR0913  # an option each
    container: str,
    *,
    limit: int | None = None,
    recursive: bool = False,
    order: str | None = None,
    after: str | None = None,
    with_values: bool = True,
) -> Asking[Page]:
    """List the documents in a container, `limit` at most: the first page."""
    most = NDJSON_PAGE if with_values else MAX_LIMIT
    size = most if limit is None else min(limit, most)
    query: dict[str, object] = {"limit": size, "order": order, "after": after}
    query |= {"recursive": recursive or None, "keys": not with_values or None}
    at = as_path(container).container
    if at.text == "/":
        query["list"] = True
    return Asking(request_of("GET", at, query), lambda outcome: read_page(at, outcome, limit))


def question(
    container: str,
    where: Where | None,
    *,
    limit: int | None = None,
    sort: str | Sequence[str] | None = None,
    **options: Any,
) -> Asking[Page]:
    """Ask for documents in a container, `limit` at most: the first page."""
    most = MAX_LIMIT if sort else NDJSON_PAGE  # a sort reads everything for each page
    size = most if limit is None else min(limit, most)
    at, request = _question(container, where, sort=sort, limit=size, **options)
    return Asking(request, lambda outcome: read_page(at, outcome, limit))


def count(container: str, where: Where | None, **options: Any) -> Asking[int]:
    """Ask how many documents there are."""
    _, request = _question(container, where, count=True, **options)
    return Asking(request, read_count)


def _question(  # noqa: PLR0913  # an option each
    container: str,
    where: Where | None,
    *,
    limit: int | None = None,
    search: str | None = None,
    sort: str | Sequence[str] | None = None,
    fields: str | Sequence[str] | None = None,
    recursive: bool = False,
    order: str | None = None,
    after: str | None = None,
    count: bool = False,
) -> tuple[Path, Request]:
    at = as_path(container).container
    sort, fields = (names.split(",") if isinstance(names, str) else names for names in (sort, fields))
    asked = {"where": where or {}, "search": search, "sort": sort, "fields": fields, "limit": limit, "order": order}
    asked |= {"after": after, "recursive": recursive, "count": count}
    body = values.dump({name: value for name, value in asked.items() if value is not None})
    return at, request_of("QUERY", at, {"list": True} if at.text == "/" else None, body)


def take(  # noqa: PLR0913  # an option each
    container: str,
    lease: Duration,
    *,
    limit: int | None = None,
    wait: Duration | None = None,
    max_attempts: int | None = None,
    as_: Any = None,
) -> Asking[list[LeasedDocument]]:
    """Take jobs from a container. `as_` is who waits, for those who list it."""
    query = {"lease": lease, "limit": limit, "wait": wait, "max_attempts": max_attempts}
    query["as"] = None if as_ is None else values.dump(as_).decode()
    return Asking(request_of("POST", as_path(container), query), read_taken)


def done(job: LeasedDocument) -> Asking[bool]:
    """Finish a job: delete it, if it is still leased."""
    return Asking(request_of("DELETE", as_path(job.path), headers=_leased(job)), read_finished)


def renew(job: LeasedDocument, lease: Duration) -> Asking[None]:
    """Lease a job from now on, if it is still leased."""
    return Asking(request_of("PATCH", as_path(job.path), {"lease": lease}, headers=_leased(job)), read_changed)


def release(job: LeasedDocument, delay: Duration | None = None, reason: str | None = None) -> Asking[None]:
    """Give a job back."""
    body = values.dump({"reason": reason}) if reason else b""
    return Asking(request_of("PATCH", as_path(job.path), {"lease": 0, "delay": delay}, body, _leased(job)), read_changed)


def batch(
    requests: Sequence[Mapping[str, Any]], *, atomic: bool = True, idempotency_key: str | None = None
) -> Asking[list[Any]]:
    """Execute several verbs in one request; each is a mapping with `method`, `path`, `value`, and options by name."""
    parts = [_part(**request) for request in requests]
    texts = [_in_batch(part.asked) for part in parts if isinstance(part.asked, Request)]
    body = b'{"atomic":%b,"requests":[%b]}' % (b"true" if atomic else b"false", b",".join(texts))
    request = request_of("POST", parse_path(BATCH_PATH.encode()), body=body, headers={"idempotency-key": idempotency_key})
    return Asking(request, lambda outcome: read_batch(parts, outcome))


Steps: TypeAlias = Generator[Asking[Any] | float, Any, Result]  # what to execute, each time sent its result; or seconds to wait


def update(path: str, function: Callable[[Any], Any], *, default: Any = None, ttl: Duration | None = None) -> Steps[Document]:
    """Read a document, call `function(value)`, and write what it returns if nobody else has written meanwhile; until it is so.

    Where nothing is stored, the function is given a copy of `default`.
    """
    pause_s = MIN_PAUSE_S
    while True:
        found: Document | None = yield get(path)
        if found and found.etag is None:  # another client's hash: an empty patch gives it an entity-tag
            found = yield unless_lost(patch(path, {}, if_match="*"))
        value = function(found.value if found else deepcopy(default))
        if value is None:
            raise TypeError("the function returned None: return the new value, or raise an exception to leave the old one")
        condition = {"if_match": found.etag} if found else {"if_none_match": "*"}
        written: Document | None = yield unless_lost(put(path, value, ttl=ttl, **condition))
        if written:
            return written
        yield uniform(0, pause_s)  # noqa: S311  # no secret
        pause_s = min(MAX_PAUSE_S, 2 * pause_s)


MIN_PAUSE_S, MAX_PAUSE_S = 0.002, 0.2  # between two attempts of an update: at most a random part of it


# --- Requests -----------------------------------------------------------------------------------------------------------


def as_path(text: str) -> Path:
    """Return the path that a text spells, percent-encoded as in a URL; raises InvalidPath, PathTooLong or NotFound."""
    path = parse_path(text.encode("utf-8", "surrogatepass").replace(b"?", b"%3F"))
    if path.text.startswith("/_/") or path.text == "/_":
        raise NotFound("thing doesn't exist: paths below /_/ belong to the service, and no document is there")
    return path


def _document(text: str) -> Path:
    path = as_path(text)
    if path.is_container:
        raise InvalidPath("a path that ends in a slash is a container; list it, post to it, or leave out the slash")
    return path


def request_of(
    method: str,
    path: Path,
    query: Mapping[str, object] | None = None,
    body: bytes = b"",
    headers: Mapping[str, str | None] | None = None,
) -> Request:
    """Return a request with the parameters and header fields that are not None."""
    given = {name: value for name, value in (query or {}).items() if value is not None}
    target = path.text + "?" + urlencode(given, errors="surrogatepass") if given else path.text
    return Request(method, target.encode(), {name: value for name, value in (headers or {}).items() if value is not None}, body)


def _write(  # noqa: PLR0913  # an option each
    method: str,
    path: Path,
    body: bytes,
    *,
    ttl: Duration | None = None,
    if_match: str | None = None,
    if_none_match: str | None = None,
    idempotency_key: str | None = None,
    content_type: str | None = None,
) -> Request:
    headers = {
        "if-match": if_match,
        "if-none-match": if_none_match,
        "idempotency-key": idempotency_key,
        "content-type": content_type,
    }
    return request_of(method, path, {"ttl": ttl}, body, headers)


def _leased(job: LeasedDocument) -> dict[str, str | None]:
    return {"if-match": f'"{job.lease}"'}


_IN_BATCH: dict[str, Callable[..., Asking[Any]]] = {"get": get, "put": put, "patch": patch, "post": post, "delete": delete}


def _part(method: str, path: str, value: Any = NOTHING, **options: Any) -> Asking[Any]:
    """Return what one request of a batch asks for; raises InvalidRequest."""
    verb = _IN_BATCH.get(method.lower())
    if verb is None:
        raise InvalidRequest(f"the method of a request in a batch is one of {', '.join(_IN_BATCH)}, not {method!r}")
    return verb(path, **options) if value is NOTHING else verb(path, value, **options)


def _in_batch(request: Request) -> bytes:
    """Return a request as JSON text, as `POST /_/batch` takes it."""
    headers = b',"headers":%b' % values.dump(dict(request.headers)) if request.headers else b""
    body = b',"body":%b' % request.body if request.body else b""
    head = json.dumps({"method": request.method, "path": request.target.decode()}, separators=(",", ":"))
    return b"%b%b%b}" % (head[:-1].encode(), headers, body)
