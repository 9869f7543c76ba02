"""What can be asked of documents, and what a store can answer.

A command knows its script, its keys and arguments, and how to read the reply; a store only carries it. Nothing here does
I/O.
"""

from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from kvstore.commands.scripts import IDEMPOTENT, RECORD_REPLY, REGISTER_NAMESPACE, Script
from kvstore.core.codec import decode
from kvstore.core.errors import (
    PROBLEMS,
    ContentTooLarge,
    InternalError,
    InvalidDocument,
    KeyReused,
    Leased,
    NotAnInteger,
    Problem,
    problem_of_reply,
)
from kvstore.core.json_text import MAX_BYTES, MAX_MEMBERS
from kvstore.core.paths import Path, parse_path

MAX_PAGE_BYTES = 4 * 1024 * 1024  # of values in a page of a listing, or one document

DAY_MS = 86_400_000


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
    """The answer is not final: the store executes this command next.

    `has_written` False says that the request has changed nothing so far.
    """

    command: "Command"
    has_written: bool = True


class Replayed(NamedTuple):
    """The answer that an earlier request with the same Idempotency-Key had."""

    outcome: Any


Written = TypeVar("Written")  # the outcome of a write

RedisReply: TypeAlias = Any  # what Redis answers: bytes, int, None, or a list of these


class Command(Protocol):
    """One thing asked of a store: EVALSHA `script` with `keys` and `arguments`, then `outcome(reply)`."""

    @property
    def script(self) -> Script: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def arguments(self) -> tuple[bytes | str | int, ...]: ...
    def outcome(self, reply: RedisReply) -> Any: ...


class RegisterNamespace(NamedTuple):
    """Note in the root's index that a namespace is there; the outcome is that of the command before it."""

    namespace: str
    expires_at_ms: int
    then: Any
    script: Script = REGISTER_NAMESPACE

    @property
    def keys(self) -> tuple[str, ...]:
        return parse_path(b"/").keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.namespace + "/", self.expires_at_ms)

    def outcome(self, _: RedisReply) -> Any:
        return self.then


class RecordReply(NamedTuple):
    """Keep what `command` has found outside of Redis under the request's Idempotency-Key: `words` that it reads as a reply.

    The outcome is `then`, or where that is a problem it is raised.
    """

    command: Command
    words: tuple[str, ...]
    then: Any
    script: Script = RECORD_REPLY

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

    def outcome(self, reply: RedisReply) -> Any:
        if isinstance(self.then, Problem):
            raise self.then
        return self.then


class Idempotent(NamedTuple):
    """A command with an Idempotency-Key: carried out once, and answered as then ever after: Replayed.

    `key` is where the answer is kept, for `keep_ms`; `request` tells this request from another with the same key.
    """

    command: Command
    key: str
    request: str
    keep_ms: int = DAY_MS

    @property
    def script(self) -> Script:
        return IDEMPOTENT[self.command.script.name]

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.command.keys, self.key)

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (*self.command.arguments, self.keep_ms, self.request)

    def outcome(self, reply: RedisReply) -> Any:
        if reply[0] == b"reused":
            raise KeyReused("this Idempotency-Key came with another request before; use a new one for each request")
        if reply[0] == b"replayed":
            try:
                first = _replayable(self.command).outcome(_checked(reply[1]))
                while isinstance(first, Again) and isinstance(first.command, RegisterNamespace):
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
        if isinstance(command, RegisterNamespace) and isinstance(command.then, Again):
            return Again(command._replace(then=self._follow(command.then)))
        return again._replace(command=self._replace(command=command)) if command.script.name in IDEMPOTENT else again


def _checked(reply: RedisReply) -> RedisReply:
    if reply[0] == b"error":
        raise problem_of_reply(reply[1].decode("utf-8", "replace"))
    return reply


def _replayable(command: Any) -> Any:
    """The command as it reads the answer of another that was sent before it."""
    return getattr(command, "as_replayed", command)


def below(container: Path) -> tuple[str, str]:
    """What stands before a name in the keys of documents, and a container's own name in names and log."""
    return container.keys.document.removesuffix(container.name), container.name + "/" if container.name else ""


def registered(path: Path, expires_at_ms: bytes | None, outcome: Written) -> Written | Again:
    """The outcome of a write, once the root's index knows of the namespace where its own keys' expiry is new."""
    namespace = path.namespace
    if expires_at_ms is None or namespace == "/":
        return outcome
    return Again(RegisterNamespace(namespace, int(expires_at_ms), outcome))


def found_in(reply: RedisReply) -> Found:
    """The document that a script's reply says is there: {fields, expires_at_ms, ttl_ms}."""
    fields, expires_at_ms, ttl_ms = reply
    expires = expires_at_ms >= 0
    return Found(*decode(fields), expires_at_ms if expires else None, ttl_ms if expires else None)


def refused(reply: RedisReply) -> Failed:
    """The outcome of a reply that says no: a precondition that failed, or a Problem that is raised."""
    if reply[0] == b"failed":
        return Failed(found_in(reply[1]) if len(reply) > 1 and reply[1] else None)
    raise _problem(reply)


def _problem(reply: RedisReply) -> Problem:
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
