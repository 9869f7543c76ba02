"""What can be asked of a store, and what it can answer.

A command knows its script, its keys and arguments, and how to read the reply; a store only carries it. Nothing here does
I/O. The scripts are `lua/*.lua`.
"""

import hashlib
from importlib.resources import files
from typing import Any, NamedTuple, Protocol, TypeAlias

from kvstore.codec import Encoded, decode
from kvstore.conditions import NONE, Conditions, tag_time_ms
from kvstore.paths import Path


class Script(NamedTuple):
    """A Lua script and the SHA-1 that Redis knows it by (EVALSHA)."""

    name: str
    text: str
    sha: str


def _load(*names: str) -> Script:
    name = names[-1]
    text = "".join((files("kvstore") / "lua" / f"{part}.lua").read_text("utf-8") for part in names)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


READ = _load("read")
PUT = _load("prelude", "put")
DELETE = _load("prelude", "delete")
SCRIPTS = (READ, PUT, DELETE)


class Found(NamedTuple):
    """A document that is stored. Times in ms, None where it does not expire."""

    text: bytes
    is_object: bool
    tag: str | None
    expires_at_ms: int | None
    ttl_ms: int | None


class Missing(NamedTuple):
    """Nothing is stored there."""


class Stored(NamedTuple):
    """A document was written."""

    document: Found
    created: bool


class Deleted(NamedTuple):
    """A document was deleted."""


class Failed(NamedTuple):
    """A precondition failed; `current` is what is stored, None for nothing. Nothing was changed."""

    current: Found | None


Reply: TypeAlias = Any  # what Redis answers: bytes, int, None, or a list of these


class Command(Protocol):
    """One thing asked of a store: EVALSHA `script` with `keys` and `arguments`, then `outcome(reply)`."""

    @property
    def script(self) -> Script: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def arguments(self) -> tuple[bytes | str | int, ...]: ...
    def outcome(self, reply: Reply) -> Any: ...


class Get(NamedTuple):
    """Read a document: Found or Missing."""

    path: Path
    script: Script = READ

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.document,)

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return ()

    def outcome(self, reply: Reply) -> Found | Missing:
        return _found(reply) if reply else Missing()


class Put(NamedTuple):
    """Replace a document, or create it: Stored or Failed."""

    path: Path
    encoded: Encoded
    ttl_ms: int
    conditions: Conditions
    log_length: int
    script: Script = PUT

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        conditions, encoded = self.conditions, self.encoded
        return (
            self.path.rest,
            self.ttl_ms,
            *_judged(conditions),
            self.log_length,
            encoded.shape,
            *encoded.fields,
        )

    def outcome(self, reply: Reply) -> Stored | Failed:
        if reply[0] == b"failed":
            return _failed(reply)
        tag, encoded = reply[1].decode(), self.encoded
        found = Found(encoded.text, encoded.is_object, tag, tag_time_ms(tag) + self.ttl_ms, self.ttl_ms)
        return Stored(found, created=reply[0] == b"created")


class Delete(NamedTuple):
    """Delete a document: Deleted, Missing or Failed."""

    path: Path
    conditions: Conditions
    log_length: int
    script: Script = DELETE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.path.rest, *_judged(self.conditions), self.log_length)

    def outcome(self, reply: Reply) -> Deleted | Missing | Failed:
        if reply[0] == b"failed":
            return _failed(reply)
        return Deleted() if reply[0] == b"deleted" else Missing()


def _judged(conditions: Conditions) -> tuple[str, str, str | int]:
    """The preconditions as the scripts take them."""
    if conditions is NONE:
        return "", "", ""
    since_s = conditions.unmodified_since_s
    return conditions.match, conditions.none_match, "" if since_s is None else since_s


def _found(reply: Reply) -> Found:
    fields, expires_at_ms, ttl_ms = reply
    expires = expires_at_ms >= 0
    return Found(*decode(fields), expires_at_ms if expires else None, ttl_ms if expires else None)


def _failed(reply: Reply) -> Failed:
    current = reply[1] if len(reply) > 1 else None
    return Failed(_found(current) if current else None)
