"""What a stream of events begins with: the snapshot, or what was missed. Pure: a generator that asks, and is given answers.

It yields commands, and is sent their outcomes; and it yields blocks, which are to be sent to the reader. `hub.py` drives it
for event loops, `flask.py` for threads.
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
from kvstore.commands.subscriptions import Follow
from kvstore.core.paths import Path
from kvstore.http.containers import render_items
from kvstore.http.events import block, event

PAGE = 500  # items of a snapshot at once
HEARTBEAT_S = 12.0  # a reader hears something every 15 s
RETRY_MS = (1000, 5000)  # after which a reader comes back, each after another time: a restart ends all streams at once
NO_CHANGE = "0-0"  # the entity-tag of a container whose namespace has no change log (list.lua)
RESET = b"event: reset\ndata: {}\n\n"

Steps: TypeAlias = Generator[Command[object] | bytes, Any, str]


def begin(asked: Follow) -> Steps:
    """Blocks up to a place in the log, which is returned: all changes after that are still to come.

    There is no block before Redis has answered what the first of them needs: what fails until then is answered as ever.
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
        position = yield from catch_up(asked.path, asked.position)
        if not position:
            yield RESET
    if not position:
        position = yield from _snapshot(asked.path, recursive=asked.recursive)
    return position


def catch_up(path: Path, position: str) -> Steps:
    """The changes to a path since a place; returns the place after them, "" where the log has lost some."""
    while True:
        logged: ChangesRead = yield ReadChanges(path, position)
        if logged.entries is None:
            return ""
        for entry in logged.entries:
            position = entry[0].decode()
            if is_change(entry) and concerns(path, changed_name(entry)) and (change := parse_entry(entry)):
                yield event(path_of(path, change), change)
        if not logged.has_more:
            return logged.position or position


def _snapshot(path: Path, *, recursive: bool) -> Steps:
    at: LogPosition = yield GetLogPosition(path)
    position, found = at
    if not path.is_container:
        tag, ttl_ms, text = (found.tag, found.ttl_ms, found.text) if found else (None, None, None)
        yield block(b"snapshot", position, path.text, tag, ttl_ms, text)
        return position
    listing: Listing = yield List(path, "", PAGE, False, True, recursive, "")
    if listing.tag and listing.tag != NO_CHANGE:
        position = listing.tag  # of the moment of the listing: a change since GetLogPosition is in it, and must not come again
    while True:
        items = b'{"items":[%b]}' % b",".join(render_items(path.text, listing.items))
        yield block(b"snapshot", position, path.text, position, None, items, more=listing.more is not None)
        if listing.more is None:
            return position
        listing = yield listing.more


def prefix(path: Path) -> str:
    """What the names of all documents below a container start with."""
    return path.name + "/" if path.name else ""


def concerns(path: Path, name: str) -> bool:
    """Whether a document of the path's namespace is what is followed, or below it."""
    return name.startswith(prefix(path)) if path.is_container else name == path.name


def path_of(path: Path, change: Change) -> str:
    """The path of a changed document, in the namespace of `path`."""
    return "/" + change.name if path.namespace == "/" else f"/{path.namespace}/{change.name}"
