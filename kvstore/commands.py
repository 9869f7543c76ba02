"""What can be asked of documents, and what a store can answer.

A command knows its script, its keys and arguments, and how to read the reply; a store only carries it. Nothing here does
I/O.
"""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from kvstore.codec import MAX_BYTES, MAX_MEMBERS, Encoded, decode
from kvstore.conditions import NONE, Conditions, tag_time_ms
from kvstore.errors import (
    PROBLEMS,
    ContentTooLarge,
    InternalError,
    InvalidDocument,
    KeyReused,
    Leased,
    NotAnInteger,
    Problem,
    problem_of_reply,
    unavailable,
)
from kvstore.paths import Path, parse_path
from kvstore.scripts import BEGIN, CONCLUDE, DELETE, ONCE, PATCH, POST, PUT, READ, REGISTER, TOUCH, Script

DAY_MS = 86_400_000
ID_BYTES = 20  # of a name that POST makes: 13 digits of ms, a letter, a count
MAX_ATTEMPTS = 1000  # to write back a document that others write at the same time
MAX_ATTEMPTED_BYTES = 16 * 1024 * 1024  # of the document in all attempts together: some 4 s of Python


class Found(NamedTuple):
    """A document that is stored. Times in ms, None where it does not expire."""

    text: bytes
    is_object: bool
    tag: str | None
    expires_at_ms: int | None
    ttl_ms: int | None


# What is stored (None: nothing) → what shall be, and its TTL in ms, None for the one it has; or raises a Problem.
Change = Callable[[Found | None], tuple[Encoded, int | None]]


class Missing(NamedTuple):
    """Nothing is stored there."""


class Stored(NamedTuple):
    """A document was written."""

    document: Found
    created: bool


class Appended(NamedTuple):
    """A document was appended to a container, at `path`."""

    path: str
    document: Found


class Deleted(NamedTuple):
    """A document was deleted."""


class Failed(NamedTuple):
    """A precondition failed; `current` is what is stored, None for nothing. Nothing was changed."""

    current: Found | None


class Again(NamedTuple):
    """The answer is not final: the store executes this command next."""

    command: "Command"


class Replayed(NamedTuple):
    """The answer that an earlier request with the same Idempotency-Key had."""

    outcome: Any


Written = TypeVar("Written")  # the outcome of a write

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
    """Read a document: Found or Missing. The conditions are judged where it is rendered; a batch must know them before."""

    path: Path
    conditions: Conditions = NONE
    script: Script = READ

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.document,)

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return ()

    def outcome(self, reply: Reply) -> Found | Missing:
        return found_in(reply) if reply else Missing()


class Put(NamedTuple):
    """Replace a document, or create it: Stored or Failed.

    `ttl_ms` None keeps the expiry of a document that `edit` has read as `base`; a document that is no longer that is edited
    again.
    """

    path: Path
    encoded: Encoded
    ttl_ms: int | None
    conditions: Conditions
    log_length: int
    edit: "Edit | None" = None
    base: str = ""
    script: Script = PUT

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        encoded, ttl_ms = self.encoded, self.ttl_ms
        options = ""
        if self.conditions is not NONE or self.edit or encoded.has_server_values:
            op, server_values = "patch" if self.edit else "put", "sv" if encoded.has_server_values else ""
            options = "\n".join((*map(str, _judged(self.conditions)), op, self.base, server_values))
        return (self.path.rest, "" if ttl_ms is None else ttl_ms, self.log_length, encoded.shape, options, *encoded.fields)

    def outcome(self, reply: Reply) -> Stored | Failed | Again:
        if reply[0] in (b"created", b"replaced"):
            return registered(self.path, reply[5], _stored(reply, self.encoded))
        if self.edit and reply[0] == b"lost":
            return self.edit.next(reply)
        return refused(reply)


class Patch(NamedTuple):
    """Change members of a document, none of them to an object, or create it: Stored or Failed.

    A member that is null in `encoded` is taken away. `ttl_ms` None keeps the expiry.
    """

    path: Path
    encoded: Encoded
    ttl_ms: int | None
    default_ttl_ms: int
    conditions: Conditions
    log_length: int
    script: Script = PATCH

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (
            self.path.rest,
            "" if self.ttl_ms is None else self.ttl_ms,
            *_judged(self.conditions),
            self.log_length,
            self.default_ttl_ms,
            MAX_MEMBERS,
            MAX_BYTES,
            "sv" if self.encoded.has_server_values else "",
            self.encoded.shape,
            *(b"" if part == b"null" and index % 2 else part for index, part in enumerate(self.encoded.fields)),
        )

    def outcome(self, reply: Reply) -> Stored | Failed | Again:
        if reply[0] in (b"created", b"replaced"):
            return registered(self.path, reply[2], Stored(found_in(reply[1]), created=reply[0] == b"created"))
        return refused(reply)


class Touch(NamedTuple):
    """Change when a document expires: Stored, Missing or Failed."""

    path: Path
    ttl_ms: int
    conditions: Conditions
    script: Script = TOUCH

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.path.rest, self.ttl_ms, *_judged(self.conditions))

    def outcome(self, reply: Reply) -> Stored | Missing | Failed | Again:
        if reply[0] == b"touched":
            return registered(self.path, reply[2], Stored(found_in(reply[1]), created=False))
        return Missing() if reply[0] == b"missing" else refused(reply)


class Post(NamedTuple):
    """Append a document to a container: Appended."""

    container: Path
    encoded: Encoded
    ttl_ms: int
    log_length: int
    delay_ms: int = 0  # before which it cannot be taken as a job
    script: Script = POST

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
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

    def outcome(self, reply: Reply) -> Appended | Again:
        if reply[0] != b"created":
            raise _problem(reply)
        tag, rest, fields = reply[1].decode(), reply[2], reply[3]
        found = Found(*decode(fields), tag_time_ms(tag) + self.ttl_ms, self.ttl_ms)
        appended = Appended(self.container.text + rest.decode().rpartition("/")[2], found)
        return registered(self.container, reply[4], appended)


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
        if reply[0] == b"deleted":
            return Deleted()
        return Missing() if reply[0] == b"missing" else refused(reply)


class Edit(NamedTuple):
    """Read a document, change it with `change`, and write it back where nobody has written meanwhile, else again."""

    path: Path
    change: Change
    conditions: Conditions
    log_length: int
    once: bool = False
    attempts: int = 0
    script: Script = BEGIN

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.path.rest, *_judged(self.conditions))

    def outcome(self, reply: Reply) -> Again | Stored | Failed:
        if reply[0] == b"read":
            return self.next(reply)
        if reply[0] in (b"created", b"replaced"):  # only where it is replayed
            return _stored(reply, None)
        return refused(reply)

    def next(self, reply: Reply) -> Again:
        """The next attempt, from a reply that says what is there."""
        current = found_in(reply[1]) if reply[1] else None
        if self.attempts >= MAX_ATTEMPTS or (current and self.attempts * len(current.text) > MAX_ATTEMPTED_BYTES):
            raise unavailable("too many others write this document at once; send the request again. Nothing was changed")
        try:
            encoded, ttl_ms = self.change(current)
        except Problem as problem:
            if not self.once:
                raise
            return Again(Conclude(self, (type(problem).__name__, problem.detail), problem))
        base = "!" if current is None else f"{current.tag or '-'} {_digest(reply[1][0])}"
        edit = self._replace(attempts=self.attempts + 1)
        return Again(Put(self.path, encoded, ttl_ms, self.conditions, self.log_length, edit, base))


class Register(NamedTuple):
    """Note in the root's index that a namespace is there; the outcome is that of the command before it."""

    namespace: str
    expires_at_ms: int
    then: Any
    script: Script = REGISTER

    @property
    def keys(self) -> tuple[str, ...]:
        return parse_path(b"/").keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.namespace + "/", self.expires_at_ms)

    def outcome(self, _: Reply) -> Any:
        return self.then


class Conclude(NamedTuple):
    """Keep what `command` has found outside of Redis under the request's Idempotency-Key: `words` that it reads as a reply.

    The outcome is `then`, or where that is a problem it is raised.
    """

    command: Command
    words: tuple[str, ...]
    then: Any
    script: Script = CONCLUDE

    @property
    def as_replayed(self) -> Command:
        """The command, as it reads the answer that another request with the key has kept meanwhile."""
        replayable: Command = _replayable(self.command)
        return replayable

    @property
    def keys(self) -> tuple[str, ...]:
        return self.command.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return self.words

    def outcome(self, reply: Reply) -> Any:
        if isinstance(self.then, Problem):
            raise self.then
        return self.then


class Once(NamedTuple):
    """A command with an Idempotency-Key: carried out once, and answered as then ever after: Replayed.

    `key` is where the answer is kept, for `keep_ms`; `request` tells this request from another with the same key.
    """

    command: Command
    key: str
    request: str
    keep_ms: int = DAY_MS

    @property
    def script(self) -> Script:
        return ONCE[self.command.script.name]

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.command.keys, self.key)

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (*self.command.arguments, self.keep_ms, self.request)

    def outcome(self, reply: Reply) -> Any:
        if reply[0] == b"reused":
            raise KeyReused("this Idempotency-Key came with another request before; use a new one for each request")
        if reply[0] == b"replayed":
            try:
                first = _replayable(self.command).outcome(_checked(reply[1]))
                while isinstance(first, Again) and isinstance(first.command, Register):
                    first = first.command.then
                return Replayed(first)
            except Problem as problem:
                problem.headers["Idempotency-Replayed"] = "true"
                raise
        outcome = self.command.outcome(_checked(reply))
        return self._follow(outcome) if isinstance(outcome, Again) else outcome

    def _follow(self, again: "Again") -> "Again":
        """What is asked next, once for the key as well, also where the root's index is told something in between."""
        command = again.command
        if isinstance(command, Register) and isinstance(command.then, Again):
            return Again(command._replace(then=self._follow(command.then)))
        return Again(self._replace(command=command)) if command.script.name in ONCE else again


def _checked(reply: Reply) -> Reply:
    if reply[0] == b"error":
        raise problem_of_reply(reply[1].decode("utf-8", "replace"))
    return reply


def _replayable(command: Any) -> Any:
    """The command as it reads the answer of another that was sent before it."""
    return getattr(command, "as_replayed", command)


def below(container: Path) -> tuple[str, str]:
    """What stands before a name in the keys of documents, and a container's own name in names and log."""
    return container.keys.document.removesuffix(container.rest), container.rest + "/" if container.rest else ""


def registered(path: Path, expires_at_ms: bytes | None, outcome: Written) -> Written | Again:
    """The outcome of a write, once the root's index knows of the namespace where its own keys' expiry is new."""
    namespace = path.namespace
    if expires_at_ms is None or namespace == "/":
        return outcome
    return Again(Register(namespace, int(expires_at_ms), outcome))


def _judged(conditions: Conditions) -> tuple[str, str, str | int]:
    """The preconditions as the scripts take them."""
    if conditions is NONE:
        return "", "", ""
    since_s = conditions.unmodified_since_s
    return conditions.match, conditions.none_match, "" if since_s is None else since_s


def _digest(fields: list[bytes]) -> int:
    """What stands for all that a hash holds, in any order: the same as in put.lua."""
    pairs = zip(fields[::2], fields[1::2], strict=True)
    hexes = (hashlib.sha1(b"%d:%b%b" % (len(name), name, value), usedforsecurity=False).hexdigest() for name, value in pairs)
    return sum(int(hex_[:12], 16) for hex_ in hexes) % 2**48


def found_in(reply: Reply) -> Found:
    """The document that a script's reply says is there: {fields, expires_at_ms, ttl_ms}."""
    fields, expires_at_ms, ttl_ms = reply
    expires = expires_at_ms >= 0
    return Found(*decode(fields), expires_at_ms if expires else None, ttl_ms if expires else None)


def _stored(reply: Reply, encoded: Encoded | None) -> Stored:
    """What put.lua wrote: `encoded`, or what the reply says."""
    word, tag, expires_at_ms, ttl_ms, fields = reply[:5]
    if fields or encoded is None:
        text, is_object, _ = decode(fields)
    else:
        text, is_object = encoded.text, encoded.is_object
    expires = expires_at_ms >= 0
    found = Found(text, is_object, tag.decode(), expires_at_ms if expires else None, int(ttl_ms) if expires else None)
    return Stored(found, created=word == b"created")


def refused(reply: Reply) -> Failed:
    """The outcome of a reply that says no: a precondition that failed, or a Problem that is raised."""
    if reply[0] == b"failed":
        return Failed(found_in(reply[1]) if len(reply) > 1 and reply[1] else None)
    raise _problem(reply)


def _problem(reply: Reply) -> Problem:
    word = reply[0]
    if word == b"no sum":
        name = reply[1].decode("utf-8", "backslashreplace")[:100]
        return NotAnInteger(f"the member {name!r} is not an integer of 64 bits, or the sum would be none; nothing was changed")
    if word == b"leased":
        return Leased("somebody has taken this job: send its lease as If-Match, or * to override. Nothing was changed")
    if word == b"too many":
        return InvalidDocument(f"an object has at most {MAX_MEMBERS:,} members; split it into several documents")
    if word == b"too large":
        return ContentTooLarge(f"the document would have more than {MAX_BYTES:,} bytes")
    if word.decode() in PROBLEMS:
        return PROBLEMS[word.decode()](reply[1].decode())
    return InternalError(f"the script answered {word!r}")
