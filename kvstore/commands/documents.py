"""Commands on one document: read, replace, change, append, delete."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvstore.commands.base import (
    Again,
    Appended,
    Arguments,
    Deleted,
    Failed,
    Found,
    Later,
    Missing,
    RecordReply,
    RedisReply,
    Stored,
    Turns,
    below,
    decode_shown,
    found_in,
    in_turns,
    refusal,
    refused,
    registered,
)
from kvstore.commands.rights import Right, Scope, Touch, Touches, changes, creates, is_creation, reads, writes
from kvstore.commands.scripts import DELETE, GET, PATCH, POST, PUT, READ, READ_FOR_UPDATE, SET_TTL, Script
from kvstore.core.codec import Encoded
from kvstore.core.errors import (
    Problem,
    unavailable,
)
from kvstore.core.json_text import MAX_BYTES, MAX_MEMBERS
from kvstore.core.paths import Path
from kvstore.core.preconditions import NONE, Preconditions

ID_BYTES = 24  # of a name that POST assigns: 13 digits of ms, a letter, a count that is large where a clock went back
MAX_ATTEMPTS = 1000  # to write back a document that other clients write at the same time
MAX_ATTEMPTED_BYTES = 16 * 1024 * 1024  # of the document, over all attempts: about 4 s of Python


# From the stored document (None for nothing) to the new one, and its TTL in ms (None: keep the expiry); raises Problem.
Transform = Callable[[Found | None], Turns[tuple[Encoded, int | None]]]


class Get(NamedTuple):
    """Read a document: Found or Missing."""

    path: Path
    script: Script[Found | Missing] = READ

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.document,)

    @property
    def touches(self) -> Touches:
        return reads(self.path)

    @property
    def arguments(self) -> Arguments:
        return ()

    def outcome(self, reply: RedisReply) -> Found | Missing:
        return found_in(reply) if reply else Missing()


class ConditionalGet(NamedTuple):
    """Read a document: Found, Missing or Failed.

    The text of what is found is empty with `is_head`, or if the client has the document, as If-None-Match and
    If-Modified-Since say.
    """

    path: Path
    preconditions: Preconditions
    is_head: bool = False
    script: Script[Found | Missing | Failed] = GET

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return reads(self.path)

    @property
    def arguments(self) -> Arguments:
        match, none_match, unmodified_since_s, modified_since_s = self.preconditions
        unmodified, modified = ("" if since_s is None else since_s for since_s in (unmodified_since_s, modified_since_s))
        return (self.path.name, match, unmodified, none_match, modified, "head" if self.is_head else "")

    def outcome(self, reply: RedisReply) -> Found | Missing | Failed:
        if reply[0] == b"missing":
            return Missing()
        if reply[0] == b"failed":
            return refused(reply)
        found = found_in(reply[1])
        return found if reply[0] == b"read" else found._replace(text=b"")


class Put(NamedTuple):
    """Replace a document, or create it: Stored or Failed.

    With `edit`, the document is written back only if it is still what `edit` read: `base`, with the fields `base_names`;
    otherwise it is edited again. Then `ttl_ms` None keeps its expiry.
    """

    path: Path
    encoded: Encoded
    ttl_ms: int | None
    preconditions: Preconditions
    log_length: int
    edit: "Edit | None" = None
    base: str = ""
    base_names: Sequence[bytes] = ()
    script: Script[Stored | Failed] = PUT

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        if is_creation(self.preconditions):
            return creates(self.path)
        # Whether an increment overflows tells what it is added to.
        return changes(self.path) if self.encoded.increments else writes(self.path, self.preconditions)

    @property
    def shows(self) -> Touches:
        return reads(self.path)

    @property
    def arguments(self) -> Arguments:
        encoded, ttl_ms = self.encoded, "" if self.ttl_ms is None else self.ttl_ms
        if self.preconditions is NONE and not self.edit and not encoded.has_server_values:
            return (self.path.name, ttl_ms, self.log_length, encoded.shape, "", *encoded.fields)
        op, server_values = "patch" if self.edit else "put", "sv" if encoded.has_server_values else ""
        options = (op, *_judged(self.preconditions), self.base, server_values, len(self.base_names), *self.base_names)
        return (self.path.name, ttl_ms, self.log_length, encoded.shape, *options, *encoded.fields)

    def outcome(self, reply: RedisReply) -> Stored | Failed | Again[Stored | Failed] | Later[Stored | Failed]:
        if reply[0] in (b"created", b"replaced"):
            return registered(self.path, reply[5], _stored(reply, self.encoded))
        if self.edit and reply[0] == b"lost":
            return self.edit.next(reply)
        return refused(reply)


class Patch(NamedTuple):
    """Change members of a document, none of them to an object, or create the document: Stored or Failed.

    A member that is null in `encoded` is removed. `ttl_ms` None keeps the expiry. `body` is the merge patch that this is.
    """

    path: Path
    encoded: Encoded
    ttl_ms: int | None
    default_ttl_ms: int
    preconditions: Preconditions
    log_length: int
    body: bytes = b""
    script: Script[Stored | Failed] = PATCH

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return changes(self.path)

    @property
    def arguments(self) -> Arguments:
        return (
            self.path.name,
            "" if self.ttl_ms is None else self.ttl_ms,
            *_judged(self.preconditions),
            self.log_length,
            self.default_ttl_ms,
            MAX_MEMBERS,
            MAX_BYTES,
            "sv" if self.encoded.has_server_values else "",
            self.encoded.shape,
            *(b"" if part == b"null" and index % 2 else part for index, part in enumerate(self.encoded.fields)),
        )

    def outcome(self, reply: RedisReply) -> Stored | Failed | Again[Stored | Failed]:
        if reply[0] in (b"created", b"replaced"):
            return registered(self.path, reply[2], Stored(found_in(reply[1]), created=reply[0] == b"created"))
        return refused(reply)


class SetTTL(NamedTuple):
    """Change when a document expires: Stored, Missing or Failed."""

    path: Path
    ttl_ms: int
    preconditions: Preconditions
    script: Script[Stored | Missing | Failed] = SET_TTL

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return changes(self.path)

    @property
    def arguments(self) -> Arguments:
        return (self.path.name, self.ttl_ms, *_judged(self.preconditions))

    def outcome(self, reply: RedisReply) -> Stored | Missing | Failed | Again[Stored | Missing | Failed]:
        if reply[0] == b"touched":
            return registered(self.path, reply[2], Stored(found_in(reply[1]), created=False))
        return Missing() if reply[0] == b"missing" else refused(reply)


class Post(NamedTuple):
    """Append a document to a container: Appended."""

    container: Path
    encoded: Encoded
    ttl_ms: int
    log_length: int
    delay_ms: int = 0  # until it can be taken as a job
    script: Script[Appended] = POST

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def path(self) -> Path:
        """The container: the path that a batch groups this command by."""
        return self.container

    @property
    def touches(self) -> Touches:
        return (Touch(self.container, Right.APPEND, Scope.ADDED),)

    @property
    def shows(self) -> Touches:
        return (Touch(self.container, Right.READ, Scope.ADDED),)

    @property
    def arguments(self) -> Arguments:
        container, encoded = self.container, self.encoded
        return (
            *below(container),
            self.ttl_ms,
            self.log_length,
            encoded.shape,
            "sv" if encoded.has_server_values else "",
            self.delay_ms,
            *encoded.fields,
        )

    def outcome(self, reply: RedisReply) -> Appended | Again[Appended]:
        if reply[0] != b"created":
            raise refusal(reply)
        _, _, name, fields, _, expires_at_ms = reply
        found = Found(*decode_shown(fields), expires_at_ms, self.ttl_ms)
        appended = Appended(self.container.text + name.decode().rpartition("/")[2], found)
        return registered(self.container, reply[4], appended)


class Delete(NamedTuple):
    """Delete a document: Deleted, Missing or Failed."""

    path: Path
    preconditions: Preconditions
    log_length: int
    script: Script[Deleted | Missing | Failed] = DELETE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return writes(self.path, self.preconditions)

    @property
    def arguments(self) -> Arguments:
        return (self.path.name, *_judged(self.preconditions), self.log_length)

    def outcome(self, reply: RedisReply) -> Deleted | Missing | Failed:
        if reply[0] == b"deleted":
            return Deleted()
        return Missing() if reply[0] == b"missing" else refused(reply)


class Edit(NamedTuple):
    """Read a document, apply `transform`, and write it back; start again if another client wrote it meanwhile.

    With `once`, a Problem of `transform` is recorded for the request's Idempotency-Key.
    """

    path: Path
    transform: Transform
    preconditions: Preconditions
    log_length: int
    once: bool = False
    attempts: int = 0
    script: Script[Stored | Failed] = READ_FOR_UPDATE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return changes(self.path)

    @property
    def arguments(self) -> Arguments:
        return (self.path.name, *_judged(self.preconditions))

    def outcome(self, reply: RedisReply) -> Stored | Failed | Again[Stored | Failed] | Later[Stored | Failed]:
        if reply[0] == b"read":
            return self.next(reply)
        if reply[0] in (b"created", b"replaced"):  # a kept reply of the Put that came last
            return _stored(reply, None)
        return refused(reply)

    def next(self, reply: RedisReply) -> Stored | Failed | Again[Stored | Failed] | Later[Stored | Failed]:
        """Return the next attempt, from a reply with the document that is stored."""
        return in_turns(self._attempt(reply))

    def _attempt(self, reply: RedisReply) -> Turns[Again[Stored | Failed]]:
        current = found_in(reply[1]) if reply[1] else None
        if self.attempts >= MAX_ATTEMPTS or (current and self.attempts * len(current.text) > MAX_ATTEMPTED_BYTES):
            raise unavailable("too many others write this document at once; send the request again. Nothing was changed")
        try:
            encoded, ttl_ms = yield from self.transform(current)
        except Problem as problem:
            if not self.once:
                raise
            return Again(RecordReply(self.keys, (type(problem).__name__, problem.detail), problem), has_written=False)
        edit = self._replace(attempts=self.attempts + 1)
        put = Put(self.path, encoded, ttl_ms, self.preconditions, self.log_length, edit, "!")
        if current is not None:
            fields = reply[1][0]
            put = put._replace(base=f"{current.tag or '-'} {_digest(fields[1::2])}", base_names=fields[::2])
        return Again(put, has_written=False)


def _judged(preconditions: Preconditions) -> tuple[str, str, str | int]:
    """Return preconditions as scripts take them: If-Match, If-None-Match, If-Unmodified-Since."""
    if preconditions is NONE:
        return "", "", ""
    since_s = preconditions.unmodified_since_s
    return preconditions.match, preconditions.none_match, "" if since_s is None else since_s


def _digest(values: list[bytes]) -> str:
    """What stands for the values of a hash: the same as in put.lua, which is given the names in the same order."""
    sizes = " ".join([str(len(value)) for value in values])
    return hashlib.sha1(b"%b:%b" % (sizes.encode(), b"".join(values)), usedforsecurity=False).hexdigest()


def _stored(reply: RedisReply, encoded: Encoded | None) -> Stored:
    """Return what put.lua wrote: the fields in the reply, or `encoded` if the reply has none."""
    word, tag, expires_at_ms, ttl_ms, fields = reply[:5]
    if fields or encoded is None:
        text, is_object, _ = decode_shown(fields)
    else:
        text, is_object = encoded.text, encoded.is_object
    expires = expires_at_ms >= 0
    found = Found(text, is_object, tag.decode(), expires_at_ms if expires else None, int(ttl_ms) if expires else None)
    return Stored(found, created=word == b"created")
