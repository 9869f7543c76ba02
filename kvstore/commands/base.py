"""What every command has in common: its protocol, the outcomes of documents, idempotency, reading refusals.

A command knows its script, keys and arguments, and how to read the reply; a store only carries it. Nothing here does I/O.
"""

from collections.abc import Callable, Generator
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from kvstore.commands.scripts import IDEMPOTENT, RECORD_REPLY, REGISTER_NAMESPACE, Outcome_co, Script
from kvstore.core.codec import Decoded, decode
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

Outcome = TypeVar("Outcome")
Part = TypeVar("Part")

RedisReply: TypeAlias = Any  # what Redis answers: bytes, int, None, or a list of these

Arguments: TypeAlias = tuple[bytes | str | int, ...]


class Found(NamedTuple):
    """A stored document. Times are in ms, None where it does not expire; `tag` is None in another client's hash.

    `text` is empty if the value was not asked for, or if a replay does not show it any more.
    """

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
    """A precondition failed and nothing was changed; `current` is what is stored, None for nothing."""

    current: Found | None


class Again(NamedTuple, Generic[Outcome_co]):
    """The outcome is not known yet: the store executes `command` next.

    `has_written` False: the command before it has changed nothing.
    """

    command: "Command[Outcome_co]"
    has_written: bool = True


class Later(NamedTuple, Generic[Outcome_co]):
    """The outcome needs more work than one turn of an event loop should do: the store calls `resume` in another turn."""

    resume: "Callable[[], Outcome_co | Again[Outcome_co] | Later[Outcome_co]]"


class Replayed(NamedTuple, Generic[Outcome_co]):
    """The outcome of an earlier request with the same Idempotency-Key."""

    outcome: Outcome_co


class Command(Protocol[Outcome_co]):
    """One request to a store: EVALSHA `script` with `keys` and `arguments`, then `outcome(reply)`."""

    @property
    def script(self) -> Script[Outcome_co]:
        """The script that Redis runs."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that the script is given, all in one slot."""

    @property
    def arguments(self) -> Arguments:
        """The arguments that the script is given."""

    def outcome(self, reply: RedisReply) -> Outcome_co | Again[Outcome_co] | Later[Outcome_co]:
        """What the script's reply means; raises Problem."""


Turns: TypeAlias = Generator[None, None, Outcome]  # the work on an outcome: each yield ends a turn of the event loop

TURN_WEIGHT = 256 * 1024  # of the replies that are read in one turn, as weigh() has it: some ms


def in_turns(turns: Turns[Outcome | Again[Outcome]]) -> Outcome | Again[Outcome] | Later[Outcome]:
    """Do the work of one turn, and return the outcome, or Later if that was not all of it."""
    try:
        next(turns)
    except StopIteration as stop:
        outcome: Outcome | Again[Outcome] = stop.value
        return outcome
    return Later(lambda: in_turns(turns))


def settled(outcome: Outcome | Again[Outcome] | Later[Outcome]) -> Outcome | Again[Outcome]:
    """Do all of the work now: for who has no event loop to hold up, or knows that it is little."""
    while isinstance(outcome, Later):
        outcome = outcome.resume()
    return outcome


def weigh(reply: RedisReply) -> int:
    """Return about how much work it is to read a reply: its bytes, and 32 for each value."""
    if isinstance(reply, bytes):
        return 32 + len(reply)
    if not isinstance(reply, list):
        return 0
    if len(reply) > MAX_WORDS and isinstance(reply[0], bytes):  # the fields of a hash
        return 32 * len(reply) + sum(map(len, reply))
    return sum(map(weigh, reply))


MAX_WORDS = 10  # of a reply that begins with a word; a longer list holds strings only


def each_read(replies: list[RedisReply], read: Callable[[RedisReply], Part]) -> Turns[list[Part]]:
    """Return `read(reply)` of each, over as many turns as they need."""
    parts, weight = [], 0
    for reply in replies:
        if weight > TURN_WEIGHT:
            weight = 0
            yield
        weight += weigh(reply)
        parts.append(read(reply))
    return parts


class RegisterNamespace(NamedTuple, Generic[Outcome]):
    """Register a namespace in the root's index; the outcome is `then`, that of the command before it."""

    namespace: str
    expires_at_ms: int
    then: Outcome | Again[Outcome]

    @property
    def script(self) -> Script[Outcome]:
        return REGISTER_NAMESPACE

    @property
    def keys(self) -> tuple[str, ...]:
        return parse_path(b"/").keys

    @property
    def arguments(self) -> Arguments:
        return (self.namespace + "/", self.expires_at_ms)

    def outcome(self, _: RedisReply) -> Outcome | Again[Outcome]:
        return self.then


class RecordReply(NamedTuple, Generic[Outcome]):
    """Keep what was decided outside Redis for an Idempotency-Key, as the `words` of a reply.

    The command that was first asked with the key reads these words on a replay. The outcome is `then`; a Problem is raised.
    """

    keys: tuple[str, ...]
    words: tuple[str, ...]
    then: Outcome | Problem

    @property
    def script(self) -> Script[Outcome]:
        return RECORD_REPLY

    @property
    def arguments(self) -> Arguments:
        return self.words

    def outcome(self, _: RedisReply) -> Outcome:
        if isinstance(self.then, Problem):
            raise self.then
        return self.then


class Idempotent(NamedTuple, Generic[Outcome]):
    """A command with an Idempotency-Key: executed once. A later one with the key gets the first outcome, Replayed.

    `key` is where the reply is kept, for `keep_ms`; `request` tells this request from another with the same key. `reader`
    reads a kept reply, whichever command of the request is executing: None for `command` itself.
    """

    command: Command[Outcome]
    key: str
    request: str
    keep_ms: int = DAY_MS
    reader: Command[Outcome] | None = None

    @property
    def script(self) -> Script[Outcome | Replayed[Outcome]]:
        return IDEMPOTENT[self.command.script.name]

    @property
    def keys(self) -> tuple[str, ...]:
        log, *others = self.command.keys
        return (log, self.key, *others)

    @property
    def arguments(self) -> Arguments:
        return (*self.command.arguments, self.keep_ms, self.request)

    def outcome(
        self, reply: RedisReply
    ) -> Outcome | Replayed[Outcome] | Again[Outcome | Replayed[Outcome]] | Later[Outcome | Replayed[Outcome]]:
        if reply[0] == b"reused":
            raise KeyReused("this Idempotency-Key came with another request before; use a new one for each request")
        if reply[0] == b"replayed":
            try:
                return Replayed(_last(settled((self.reader or self.command).outcome(_checked(reply[1])))))
            except Problem as problem:
                problem.headers["Idempotency-Replayed"] = "true"
                raise
        return self._after(self.command.outcome(_checked(reply)))

    def _after(
        self, outcome: Outcome | Again[Outcome] | Later[Outcome]
    ) -> Outcome | Again[Outcome | Replayed[Outcome]] | Later[Outcome | Replayed[Outcome]]:
        if isinstance(outcome, Later):
            resume = outcome.resume
            return Later(lambda: self._after(resume()))
        return self._next(outcome) if isinstance(outcome, Again) else outcome

    def _next(self, again: Again[Outcome]) -> Again[Outcome | Replayed[Outcome]]:
        """The next command, under the same key, also where a namespace is registered before it."""
        command = again.command
        if isinstance(command, RegisterNamespace):
            then = command.then
            return Again(command._replace(then=self._next(then))) if isinstance(then, Again) else again
        return Again(self._replace(command=command, reader=self.reader or self.command), again.has_written)


def _last(outcome: Outcome | Again[Outcome]) -> Outcome:
    """The outcome that a kept reply means: the namespace was registered when the reply was new."""
    while isinstance(outcome, Again):
        if not isinstance(outcome.command, RegisterNamespace):
            raise InternalError("a reply was kept that is not the last one of its request")
        outcome = outcome.command.then
    return outcome


def _checked(reply: RedisReply) -> RedisReply:
    if reply[0] == b"error":
        raise problem_of_reply(reply[1].decode("utf-8", "replace"))
    return reply


def below(container: Path) -> tuple[str, str]:
    """The prefix of the keys of a container's namespace, and the prefix of the names below the container: "" or `a/b/`."""
    return container.keys.document.removesuffix(container.name), container.name + "/" if container.name else ""


def registered(path: Path, expires_at_ms: bytes | int | None, outcome: Outcome | Again[Outcome]) -> Outcome | Again[Outcome]:
    """The outcome of a write, once the root's index has the namespace's new expiry; None where that is not new."""
    namespace = path.namespace
    if expires_at_ms is None or namespace == "/":
        return outcome
    return Again(RegisterNamespace(namespace, int(expires_at_ms), outcome))


def found_in(reply: RedisReply) -> Found:
    """The document in a script's reply: {fields, expires_at_ms, ttl_ms}."""
    fields, expires_at_ms, ttl_ms = reply
    expires = expires_at_ms >= 0
    return Found(*decode_shown(fields), expires_at_ms if expires else None, ttl_ms if expires else None)


def decode_shown(fields: list[bytes]) -> Decoded:
    """Return the document in a hash's fields; its text is empty if a replay has only the entity-tag (lua/idempotent.lua)."""
    return decode(fields) if len(fields) != 1 else Decoded(b"", True, fields[0].decode() or None)


def refused(reply: RedisReply) -> Failed:
    """The outcome of a refusal: Failed for a precondition; raises any other as a Problem."""
    if reply[0] == b"failed":
        return Failed(found_in(reply[1]) if len(reply) > 1 and reply[1] else None)
    raise refusal(reply)


def refusal(reply: RedisReply) -> Problem:
    """The problem that a script's refusal is, other than a failed precondition."""
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
