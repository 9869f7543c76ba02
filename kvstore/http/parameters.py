"""The query parameters and header fields of requests, as tables: what each may be, and what it means."""

from typing import Any

from kvstore.commands.jobs import DEFAULT_ATTEMPTS, MAX_ATTEMPTS, MAX_LEASE_S
from kvstore.commands.takers import MAX_NAME_BYTES
from kvstore.core.query import OPERATORS
from kvstore.core.settings import Settings
from kvstore.http import containers, queries, queues, streams

Parameter = tuple[dict[str, Any], str]  # its JSON Schema, and its meaning

_FLAG = {"const": ""}
_TEXT = {"type": "string"}
_CONDITION = f"^[^:]*:({'|'.join(OPERATORS)})(:{queries.STRING})?$"


def _duration(meaning: str, most_s: int) -> Parameter:
    return (
        {"type": "string", "pattern": "^[0-9]{1,12}[smhd]?$"},
        f"{meaning}: seconds, or a number with a unit such as `90s`, `5m`, `2h`, `7d`; at most {most_s:,} s",
    )


def _number(meaning: str, most: int, default: int) -> Parameter:
    return {"type": "integer", "minimum": 1, "maximum": most, "default": default}, meaning


def parameters(settings: Settings) -> dict[str, Parameter]:
    """Return all query parameters, by name."""
    page, take = containers.MAX_LIMIT, queues.MAX_LIMIT
    return {
        "ttl": _duration("when the document expires", settings.max_ttl_s),
        "limit": _number(f"items in a page; of a take, jobs: at most {take}, by default 1", page, containers.DEFAULT_LIMIT),
        "after": (_TEXT, "the name after which a page starts, as the listing spells it"),
        "order": ({"enum": ["asc", "desc"]}, "the order of the names"),
        "keys": (_FLAG, "list no values"),
        "list": (_FLAG, "list the root container"),
        "conditions": (
            {"type": "object", "propertyNames": {"pattern": _CONDITION}, "additionalProperties": {"type": "string"}},
            "conditions `member:op=value` that documents meet, each a parameter of its own",
        ),
        "search": (_TEXT, "some string of a document contains this text, ignoring case"),
        "sort": (_TEXT, f"up to {queries.MAX_SORT} members to sort by, separated by commas; `-` before one sorts it downwards"),
        "fields": (_TEXT, "the members that are shown, separated by commas"),
        "count": (_FLAG, "only the number of documents"),
        "recursive": (_FLAG, "all that is below a container, not only what is directly below it"),
        "changes": (_FLAG, "what the change log holds of a document, or of everything below a container, newest first"),
        "at": (
            {"type": "string", "pattern": "^[0-9]{1,20}-[0-9]{1,20}$"},
            "the document as it was when it had this entity-tag, without quotes",
        ),
        "lease": _duration("take jobs for so long, or extend the lease of one; 0 gives it back", MAX_LEASE_S),
        "delay": _duration("hold a job back for so long", MAX_LEASE_S),
        "wait": _duration("wait for a job for so long", queues.MAX_WAIT_S),
        "max_attempts": _number("takes after which a job is dead", MAX_ATTEMPTS, DEFAULT_ATTEMPTS),
        "path": (
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": streams.MAX_PATHS},
            "a path to follow, once for each",
        ),
        "last_event_id": (_TEXT, "follow from this event on; the header field takes precedence"),
        "hold": (
            _TEXT,
            f"a document to hold while the stream lives; on a stream of several paths up to {streams.MAX_HOLDS} times",
        ),
        "as": (
            _TEXT,
            f"the value of the document that is held, a JSON text; of a take, who waits, in {MAX_NAME_BYTES:,} bytes",
        ),
        "access_token": (_TEXT, "the token, of a stream only"),
    }


FIELDS = {
    "If-Match": "entity-tags of which the document must have one, or `*`; the lease of a job",
    "If-None-Match": "entity-tags of which the document must have none, or `*`",
    "If-Modified-Since": "a date, if there is no If-None-Match: not what has not changed since",
    "If-Unmodified-Since": "a date, if there is no If-Match: the document must not have changed since",
    "Idempotency-Key": "a key of yours, so that the request is executed once however often it is sent",
    "Prefer": "`return=minimal`, `return=representation`, or `wait=` seconds",
    "Accept": "`text/event-stream` follows; `application/x-ndjson` lists everything",
    "Last-Event-ID": "follow from this event on",
}
