"""History over HTTP: `?changes` of a document or a container, and `?at=` for a document as it was."""

import json
import re

from kvstore.commands.changelog import Change
from kvstore.commands.history import History, ReadAt, ReadContainerChanges, ReadHistory
from kvstore.core.errors import InvalidParameter
from kvstore.core.paths import Path, parse_path, split_target
from kvstore.core.preconditions import tag_time_ms
from kvstore.http.containers import DEFAULT_LIMIT, MAX_LIMIT
from kvstore.http.events import EVENTS
from kvstore.http.messages import DOCUMENT, Query, Request, Response, number_parameter, parameter, ttl_s

_is_tag = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII).fullmatch


def asks_for_history(query: Query) -> bool:
    """Return whether a GET asks for what was, and not for what is."""
    return "changes" in query or "at" in query


def parse_history(path: Path, query: Query) -> ReadHistory | ReadContainerChanges | ReadAt:
    """Return the command of a GET with `?changes` or `?at=`; raises InvalidParameter."""
    tag, changes = parameter(query, "at"), parameter(query, "changes")
    if tag is not None:
        if changes is not None:
            raise InvalidParameter("?at= is for a document as it was, and ?changes for all of its changes; send one of them")
        if path.is_container or parameter(query, "list") is not None:
            raise InvalidParameter("?at= is for a document; ask a container for its ?changes")
        if not _is_tag(tag):
            raise InvalidParameter("?at= must be an entity-tag without its quotes")
        return ReadAt(path, tag)
    limit = number_parameter(query, "limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
    if path.text == "/" and parameter(query, "list") is not None:
        raise InvalidParameter("the root container has no ?changes; ask each namespace by itself")
    return ReadContainerChanges(path, limit) if path.is_container else ReadHistory(path, limit)


def render_history(request: Request, history: History) -> Response:
    """Return the response with changes, each with its path if they are those of a container."""
    path = parse_path(split_target(request.target)[0])
    prefix = f"/{path.namespace}/" if path.is_container else ""
    items = b",".join([_item(change, prefix) for change in history.changes])
    complete = b"true" if history.is_complete else b"false"
    return Response(200, DOCUMENT, b'{"items":[%b],"complete":%b}\n' % (items, complete))


def _item(change: Change, prefix: str) -> bytes:
    path = b',"path":' + json.dumps(prefix + change.name).encode() if prefix else b""
    ttl = b',"ttl":%d' % ttl_s(change.ttl_ms) if change.ttl_ms is not None else b""
    value = b',"value":' + change.text if change.text is not None else b""
    head = b'{"op":"%b"%b,"etag":"\\"%b\\"","time":%d' % (EVENTS[change.op], path, change.id.encode(), tag_time_ms(change.id))
    return b"%b%b%b}" % (head, ttl, value)
