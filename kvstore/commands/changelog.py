"""A change ↔ an entry of the change log ↔ an event of a stream.

An entry is what `append`, `remove` and `expire` write (lua/_jobs.lua); an event is a block of text/event-stream whose `data`
is always `{"path","etag","ttl","value"}`. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.
"""

import re
from typing import NamedTuple

from kvstore.commands.base import Arguments, Found, RedisReply, below, found_in
from kvstore.commands.scripts import LOG_POSITION, READ_CHANGES, Script
from kvstore.core.codec import META, decode
from kvstore.core.paths import Path, own_key

MAX_CHANGES = 500  # read at once
MAX_CHANGED_BYTES = 256 * 1024  # of them, about: readers take these before the next come, else 1 MiB would drop them


class LogPosition(NamedTuple):
    """Where the change log of a namespace ends, and what was stored at a path then (None: nothing)."""

    position: str
    document: Found | None


class GetLogPosition(NamedTuple):
    """Where the change log of a path's namespace ends now, and the document there; of a container the place alone: At."""

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
    """Entries of a change log, None where it has lost some.

    Also the ms until the namespace's next document expires (None: never), the place in the stream of jobs that were given
    back, whether there are more entries, and where there are none the place after which to go on, "" for the same.
    """

    entries: list[RedisReply] | None
    next_expiry_ms: int | None = None
    released: bytes = b""
    has_more: bool = False
    position: str = ""


class ReadChanges(NamedTuple):
    """What has changed in a path's namespace since a place in its log: Logged.

    Its keys are those that change with what it says, for who has Redis track them.
    """

    path: Path
    position: str
    script: Script[ChangesRead] = READ_CHANGES

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.log, own_key(self.path, "expiry"), own_key(self.path, "released"))

    @property
    def arguments(self) -> Arguments:
        return (self.position, MAX_CHANGES, below(self.path)[0], MAX_CHANGED_BYTES)

    def outcome(self, reply: RedisReply) -> ChangesRead:
        if reply[0] == b"lost":
            return ChangesRead(None)
        position = reply[5].decode() if len(reply) > 5 else ""
        return ChangesRead(reply[1], reply[2] if reply[2] >= 0 else None, reply[3], reply[4] is not None, position)


_netstring = re.compile(rb"(\d+):").match


class Change(NamedTuple):
    """What an entry of the log says: `name` is the document's name in its namespace, `text` None where it is gone."""

    id: str
    op: str
    name: str
    ttl_ms: int | None
    text: bytes | None


def is_change(entry: RedisReply) -> bool:
    """Whether an entry of the log looks like one of ours: what another client has added to it says nothing of a document."""
    fields = entry[1]
    if not fields[1].isascii():
        return False
    if len(fields) == 2:
        return fields[0] in (b"delete", b"expire")
    return fields[0] in (b"put", b"post", b"patch") and fields[2] == b"ttl" and fields[4:5] in ([META], [b"$packed"])


def parse_entry(entry: RedisReply) -> Change | None:
    """The change that an entry of the log is, [id, [op, name, …]] as XRANGE gives it; None where it only looks like one."""
    try:
        return _parse_entry(entry)
    except (ValueError, IndexError):
        return None


def _parse_entry(entry: RedisReply) -> Change:
    raw_id, fields = entry
    change_id, op, name = raw_id.decode(), fields[0].decode(), changed_name(entry)
    if len(fields) == 2:
        return Change(change_id, op, name, None, None)
    ttl_ms, marker, shape = int(fields[3]), fields[4], fields[5]
    members = fields[6:] if marker == META else _unpack(fields[7])
    text = decode([META, raw_id + shape, *members]).text
    return Change(change_id, op, name, ttl_ms if ttl_ms >= 0 else None, text)


def changed_name(entry: RedisReply) -> str:
    """The name of the document that an entry of the log is about, as its Change has it."""
    raw_id, fields = entry
    name: str = fields[1].decode()
    return name + appended_name(raw_id.decode()) if fields[0] == b"post" else name


def appended_name(change_id: str) -> str:
    """The name that POST gives a document: names sort as the changes were made, whatever the count's length."""
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
