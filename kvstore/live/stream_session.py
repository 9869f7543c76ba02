"""The beginning of a stream: its snapshot, or the changes that it has missed. A generator without I/O.

It yields commands, and is sent their outcomes; it yields blocks of text/event-stream, which are sent to the reader; and None
where another turn of the event loop may begin. `hub.py` drives it.
"""

from collections.abc import Generator
from random import randint
from typing import Any, TypeAlias

from kvstore.commands.base import Command
from kvstore.commands.changelog import (
    Change,
    ChangesRead,
    GetLogPosition,
    LogPosition,
    ReadChanges,
    changed_name,
    is_change,
    parse_entry,
)
from kvstore.commands.containers import List, Listing
from kvstore.commands.queries import Find
from kvstore.commands.subscriptions import Follow
from kvstore.core.paths import Path
from kvstore.http.containers import render_items
from kvstore.http.events import block, event
from kvstore.live.selections import Occurrence, Selection

PAGE = 500  # items in one event of a snapshot
HEARTBEAT_S = 12.0  # less than the 15 s of silence that a reader may see
RETRY_MS = (1000, 5000)  # until a reader reconnects: each at another time, since a restart ends all streams at once
NO_CHANGE = "0-0"  # the entity-tag of a container whose namespace has no change log (list.lua)
RESET = b"event: reset\ndata: {}\n\n"

Steps: TypeAlias = Generator[Command[object] | bytes | None, Any, str]


def begin(asked: Follow) -> Steps:
    """Yield the blocks up to a position in the change log, and return the position: later changes are still to come.

    The first block comes after the first outcome, so that an error until then is an ordinary response.
    """
    steps, answer, head = _begin(asked), None, b"retry: %d\n\n" % randint(*RETRY_MS)  # noqa: S311  # no secret
    try:
        while True:
            step = steps.send(answer)
            if isinstance(step, bytes):
                step, head = head + step, b""
            answer = yield step
    except StopIteration as done:
        if head:
            yield head
        position: str = done.value
        return position


def _begin(asked: Follow) -> Steps:
    position = ""
    if asked.position is not None:
        position = (yield from catch_up(asked.path, asked.position, selection_of(asked))) if asked.position else ""
        if not position:
            yield RESET
    if not position:
        position = yield from _snapshot(asked)
    return position


def catch_up(path: Path, position: str, selection: Selection | None) -> Steps:
    """Yield the changes to a path since a position; returns the new position, or "" if the log has lost some of them."""
    while True:
        logged: ChangesRead = yield ReadChanges(path, position)
        if logged.entries is None:
            return ""
        for entry in logged.entries:
            position = entry[0].decode()
            if not (is_change(entry) and concerns(path, changed_name(entry), selection)):
                continue
            if change := parse_entry(entry):
                if not selection:
                    yield event(path_of(path, change), change)
                    continue
                occurrence = Occurrence(path_of(path, change), change)
                if told := (yield from selection.shown(occurrence)) or occurrence.absence:
                    yield told
        if not logged.has_more:
            return logged.position or position


def _snapshot(asked: Follow) -> Steps:
    path = asked.path
    at: LogPosition = yield GetLogPosition(path)
    position, found = at
    if not path.is_container:
        tag, ttl_ms, text = (found.tag, found.ttl_ms, found.text) if found else (None, None, None)
        yield block(b"snapshot", position, path.text, tag, ttl_ms, text)
        return position
    items_of = List(path, "", PAGE, False, True, asked.recursive, "")
    listing: Listing = yield Find(items_of, asked.question) if asked.question else items_of
    if listing.tag and listing.tag != NO_CHANGE:
        position = listing.tag  # of the moment of the listing: a change since GetLogPosition is in it, and must not come again
    while True:
        items = b'{"items":[%b]}' % b",".join(render_items(path.text, listing.items))
        yield block(b"snapshot", position, path.text, position, None, items, more=listing.more is not None)
        if listing.more is None:
            return position
        listing = yield listing.more


def prefix(path: Path) -> str:
    """Return what the names of all documents below a container start with."""
    return path.name + "/" if path.name else ""


def selection_of(asked: Follow) -> Selection | None:
    """Return which documents a stream with conditions is told of; None for one without."""
    return Selection(prefix(asked.path), asked.question, asked.recursive) if asked.question else None


def concerns(path: Path, name: str, selection: Selection | None) -> bool:
    """Return whether a document of the path's namespace is the one that is followed, or one below it that may be told of."""
    if selection:
        return selection.covers(name)
    return name.startswith(prefix(path)) if path.is_container else name == path.name


def path_of(path: Path, change: Change) -> str:
    """Return the path of a changed document in the namespace of `path`."""
    return "/" + change.name if path.namespace == "/" else f"/{path.namespace}/{change.name}"
