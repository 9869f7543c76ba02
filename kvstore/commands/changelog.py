"""Commands on the change log of a namespace, and the changes that its entries are.

Entries are written by `append` (lua/_log.lua), `expire` (lua/_index.lua) and `remove` (lua/_documents.lua).
Source: XADD, XRANGE.
"""

import re
from typing import NamedTuple

from kvstore.commands.base import Again, Arguments, Found, RedisReply, below, found_in
from kvstore.commands.scripts import LOG_POSITION, READ_CHANGES, Script
from kvstore.core.codec import META, decode
from kvstore.core.paths import Path, own_key

MAX_CHANGES = 500  # in one reply
MAX_CHANGED_BYTES = 256 * 1024  # in one reply, about: a reader with more than 1 MiB unsent is disconnected


class LogPosition(NamedTuple):
    """The end of the change log of a namespace, and what was stored at a path then (None: nothing)."""

    position: str
    document: Found | None


class GetLogPosition(NamedTuple):
    """Read the end of the change log of a path's namespace, and the document there, if the path is one: LogPosition."""

    path: Path
    script: Script[LogPosition] = LOG_POSITION

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.log,) if self.path.is_container else self.path.keys

    @property
    def arguments(self) -> Arguments:
        return ()

    def outcome(self, reply: RedisReply) -> LogPosition:
        return LogPosition(reply[0].decode(), found_in(reply[1]) if len(reply) > 1 and reply[1] else None)


class ChangesRead(NamedTuple):
    """Entries of a change log, None if some were lost.

    `next_expiry_ms` is when the next document of the namespace expires (None: none does), `released` the position in the stream
    of released jobs. Without entries, `position` is the one to continue from, "" for the same.
    """

    entries: list[RedisReply] | None
    next_expiry_ms: int | None = None
    released: bytes = b""
    has_more: bool = False
    position: str = ""


class ReadChanges(NamedTuple):
    """Read what has changed in a path's namespace since a position in its log: ChangesRead.

    Changes of documents that are gone are not there, unless `is_live`: whoever has followed since that position is told.
    Its keys are all that the reply depends on, so that Redis can track them (CLIENT TRACKING).
    """

    path: Path
    position: str
    is_live: bool = False
    script: Script[ChangesRead] = READ_CHANGES

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.log, own_key(self.path, "expiry"), own_key(self.path, "released"))

    @property
    def arguments(self) -> Arguments:
        return (self.position, MAX_CHANGES, below(self.path)[0], MAX_CHANGED_BYTES, "live" if self.is_live else "")

    def outcome(self, reply: RedisReply) -> ChangesRead | Again[ChangesRead]:
        if reply[0] == b"again":
            return Again(self)
        if reply[0] == b"lost":
            return ChangesRead(None)
        position = reply[5].decode() if len(reply) > 5 else ""
        return ChangesRead(reply[1], reply[2] if reply[2] >= 0 else None, reply[3], reply[4] is not None, position)


_netstring = re.compile(rb"(\d+):").match


class Change(NamedTuple):
    """An entry of the log. `name` is the document's name in its namespace; `text` is None if the document is gone."""

    id: str
    op: str
    name: str
    ttl_ms: int | None
    text: bytes | None


def is_change(entry: RedisReply) -> bool:
    """Return whether an entry of the log looks like one of ours, and not like one that another client has added."""
    fields = entry[1]
    if not fields[1].isascii():
        return False
    if len(fields) == 2:
        return fields[0] in (b"delete", b"expire")
    return fields[0] in (b"put", b"post", b"patch") and fields[2] == b"ttl" and fields[4:5] in ([META], [b"$packed"])


def parse_entry(entry: RedisReply) -> Change | None:
    """Return the change of an entry, [id, [op, name, …]] as XRANGE replies; None for an entry of another client."""
    try:
        return _parse_entry(entry)
    except (ValueError, IndexError):
        return None


def _parse_entry(entry: RedisReply) -> Change:
    raw_id, fields = entry
    change_id, op, name = raw_id.decode(), fields[0].decode(), changed_name(entry)
    if len(fields) == 2:
        return Change(change_id, op, name, None, None)
    ttl_ms, marker = int(fields[3]), fields[4]
    shape = fields[5][fields[5].index(b" ") :]  # the entity-tag that the document had before stands before it
    members = fields[6:] if marker == META else _unpack(fields[7])
    text = decode([META, raw_id + shape, *members]).text
    return Change(change_id, op, name, ttl_ms if ttl_ms >= 0 else None, text)


def changed_name(entry: RedisReply) -> str:
    """Return the name of the document that an entry of the log is about, as its Change has it."""
    raw_id, fields = entry
    name: str = fields[1].decode()
    return name + appended_name(raw_id.decode()) if fields[0] == b"post" else name


def appended_name(change_id: str) -> str:
    """Return the name that POST assigns: names sort in the order of the changes, however many digits the count has."""
    ms, _, count = change_id.partition("-")
    return f"{ms}{chr(96 + len(count))}{count}"


def _unpack(packed: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(packed):
        length = _netstring(packed, at)
        if not length:
            raise ValueError("no netstring")
        end = length.end() + int(length[1])
        parts.append(packed[length.end() : end])
        at = end + 1
    return parts
