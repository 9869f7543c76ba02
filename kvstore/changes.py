"""A change ↔ an entry of the change log ↔ an event of a stream.

An entry is what `append`, `remove` and `expire` write (lua/prelude.lua); an event is a block of text/event-stream whose `data`
is always `{"path","etag","ttl","value"}`. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.
"""

import json
import re
from typing import Any, NamedTuple

from kvstore.codec import META, decode
from kvstore.messages import ttl_s

EVENTS = {"put": b"put", "post": b"put", "patch": b"patch", "delete": b"delete", "expire": b"expire"}

_netstring = re.compile(rb"(\d+):").match


class Change(NamedTuple):
    """What an entry of the log says: `rest` is the document's name in its namespace, `text` None where it is gone."""

    id: str
    op: str
    rest: str
    ttl_ms: int | None
    text: bytes | None


def is_change(entry: Any) -> bool:
    """Whether an entry of the log looks like one of ours: what another client has added to it says nothing of a document."""
    fields = entry[1]
    if not fields[1].isascii():
        return False
    if len(fields) == 2:
        return fields[0] in (b"delete", b"expire")
    return fields[0] in (b"put", b"post", b"patch") and fields[2] == b"ttl" and fields[4:5] in ([META], [b"$packed"])


def parse_entry(entry: Any) -> Change | None:
    """The change that an entry of the log is, [id, [op, rest, …]] as XRANGE gives it; None where it only looks like one."""
    try:
        return _parse_entry(entry)
    except (ValueError, IndexError):
        return None


def _parse_entry(entry: Any) -> Change:
    raw_id, fields = entry
    change_id, op, rest = raw_id.decode(), fields[0].decode(), changed_name(entry)
    if len(fields) == 2:
        return Change(change_id, op, rest, None, None)
    ttl_ms, marker, shape = int(fields[3]), fields[4], fields[5]
    members = fields[6:] if marker == META else _unpack(fields[7])
    text = decode([META, raw_id + shape, *members]).text
    return Change(change_id, op, rest, ttl_ms if ttl_ms >= 0 else None, text)


def changed_name(entry: Any) -> str:
    """The name of the document that an entry of the log is about, as its Change has it."""
    raw_id, fields = entry
    rest: str = fields[1].decode()
    return rest + appended_name(raw_id.decode()) if fields[0] == b"post" else rest


def appended_name(change_id: str) -> str:
    """The name that POST gives a document: names sort as the changes were made, whatever the count's length."""
    ms, _, count = change_id.partition("-")
    return f"{ms}{chr(96 + len(count))}{count}"


def event(path: str, change: Change) -> bytes:
    """The block of a change."""
    return block(EVENTS[change.op], change.id, path, change.id, change.ttl_ms, change.text)


def block(  # noqa: PLR0913, PLR0917  # the members of an event
    name: bytes, place: str, path: str, tag: str | None, ttl_ms: int | None, text: bytes | None, *, more: bool = False
) -> bytes:
    """One event: `place` is what a reader resumes from; `more` says that another event of the same snapshot follows.

    Then it has no id: a reader that has a part of a snapshot must not come back as one that has all of it.
    """
    etag = b'"\\"%b\\""' % tag.encode() if tag else b"null"
    ttl = b"%d" % ttl_s(ttl_ms) if ttl_ms is not None else b"null"
    return b'%bevent: %b\ndata: {"path":%b,"etag":%b,"ttl":%b,"value":%b%b}\n\n' % (
        b"" if more else b"id: %b\n" % place.encode(),
        name,
        json.dumps(path).encode(),
        etag,
        ttl,
        text if text is not None else b"null",
        b',"more":true' if more else b"",
    )


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
