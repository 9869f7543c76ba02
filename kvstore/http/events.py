"""A change as an event of a stream: a block of text/event-stream whose `data` is always `{"path","etag","ttl","value"}`.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.
"""

import json

from kvstore.commands.changelog import Change
from kvstore.http.messages import ttl_s

EVENTS = {"put": b"put", "post": b"put", "patch": b"patch", "delete": b"delete", "expire": b"expire"}


def event(path: str, change: Change) -> bytes:
    """Return the event of a change, as a block of text/event-stream."""
    return block(EVENTS[change.op], change.id, path, change.id, change.ttl_ms, change.text)


def leave(path: str, change: Change) -> bytes:
    """Return the event of a change after which a document does not match the conditions of a stream."""
    return block(b"leave", change.id, path, change.id, change.ttl_ms, None)


def block(  # noqa: PLR0913, PLR0917  # the members of an event
    name: bytes, position: str, path: str, tag: str | None, ttl_ms: int | None, text: bytes | None, *, more: bool = False
) -> bytes:
    """Return one event as a block of text/event-stream.

    `position` becomes the id, from which a reader resumes. With `more`, another event of the same snapshot follows, and this
    one has no id: a reader that has a part of a snapshot must not resume as if it had all of it.
    """
    etag = b'"\\"%b\\""' % tag.encode() if tag else b"null"
    ttl = b"%d" % ttl_s(ttl_ms) if ttl_ms is not None else b"null"
    return b'%bevent: %b\ndata: {"path":%b,"etag":%b,"ttl":%b,"value":%b%b}\n\n' % (
        b"" if more else b"id: %b\n" % position.encode(),
        name,
        json.dumps(path).encode(),
        etag,
        ttl,
        text if text is not None else b"null",
        b',"more":true' if more else b"",
    )
