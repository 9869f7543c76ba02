"""Many PUTs of plain documents, or many GETs, in one namespace, as one command.

A store coalesces the commands that it is to send at once: one script, and an outcome for each. That saves a third of what each
costs Redis. A batch of similar requests is one command as well.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeAlias, cast

from kvstore.commands.base import (
    Again,
    Arguments,
    Command,
    Found,
    Later,
    Missing,
    Outcome,
    RedisReply,
    Stored,
    Turns,
    below,
    each_read,
    in_turns,
    registered,
)
from kvstore.commands.batch import MAX_READ_BYTES
from kvstore.commands.documents import Get, Put
from kvstore.commands.scripts import GET_MANY, PUT_MANY, Script
from kvstore.core import codec
from kvstore.core.codec import Decoded, Encoded, decode
from kvstore.core.paths import Path
from kvstore.core.preconditions import NONE, tag_time_ms

MAX_COALESCED = 64  # commands in one script: more gain little, and other clients of Redis wait for all of them

MAX_COALESCED_BYTES = 4096  # of a document; the time that a larger one takes outweighs what coalescing saves

MAX_COALESCED_MEMBERS = 100  # of a document: 64 of them take some 5 ms of Redis

MAX_MEMBERS_AT_ONCE = 50_000  # that put_many.lua writes: 25 ms of Redis

MAX_COALESCED_READ_BYTES = 256 * 1024  # of documents that one command reads, so that other clients do not wait long

CREATED = ord("c")  # in the reply of put_many.lua

CoalescingKey: TypeAlias = tuple[type, str, int]  # of commands that can be sent as one


def put_many_arguments(prefix: str, log_length: int, puts: Iterable[tuple[bytes | str, Encoded, int | None]]) -> Arguments:
    """Return the arguments of put_many.lua for documents, each as (name, document, ttl_ms)."""
    arguments: list[bytes | str | int] = [prefix, log_length]
    run, at = None, 0
    for name, encoded, ttl_ms in puts:
        shape, fields = encoded.shape, encoded.fields
        if run != (run := (ttl_ms, shape, len(fields))):
            at = len(arguments)
            arguments += (0, 1 + len(fields), ttl_ms or 0, shape)
        arguments[at] += 1  # type: ignore[operator]  # the run's count
        arguments.append(name)
        arguments += fields
    return tuple(arguments)


def lag_ms(reply: RedisReply) -> int:
    """Return how far Redis's clock has gone back behind the entity-tags that put_many.lua has made, in most cases 0."""
    return tag_time_ms(reply[1][-1].decode()) - int(reply[4])


class CoalescedPuts(NamedTuple):
    """PUTs with the same coalescing key, of different documents: an outcome for each.

    If one of them would be refused, nothing is changed, and every outcome is None: send each command by itself.
    """

    commands: list[Put]
    script: Script[list[Stored | None]] = PUT_MANY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.commands[0].keys[:1]

    @property
    def arguments(self) -> Arguments:
        first = self.commands[0]
        prefix, _ = below(first.path)
        puts = [(put.path.name, put.encoded, put.ttl_ms) for put in self.commands]
        return put_many_arguments(prefix, first.log_length, puts)

    def outcome(self, reply: RedisReply) -> list[Stored | None] | Again[list[Stored | None]]:
        if reply[0] == b"refused":
            return [None] * len(self.commands)
        outcomes: list[Stored | None] = []
        behind_ms = lag_ms(reply)
        for put, raw_tag, word in zip(self.commands, reply[1], reply[2], strict=True):
            encoded, ttl_ms, tag = put.encoded, put.ttl_ms, raw_tag.decode()
            expires_at_ms = tag_time_ms(tag) - behind_ms + ttl_ms  # type: ignore[operator]  # a Put without an edit has a TTL
            outcomes.append(Stored(Found(encoded.text, encoded.is_object, tag, expires_at_ms, ttl_ms), word == CREATED))
        return registered(self.commands[0].path, reply[3], outcomes)


class CoalescedGets(NamedTuple):
    """GETs with the same coalescing key: an outcome for each, None for one that must be sent by itself."""

    commands: list[Get]
    script: Script[list[Found | Missing | None]] = GET_MANY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.commands[0].path.keys[:1]

    @property
    def arguments(self) -> Arguments:
        prefix, _ = below(self.commands[0].path)
        return (prefix, MAX_COALESCED_READ_BYTES, *[command.path.name for command in self.commands])

    @property
    def unread(self) -> list[Found | Missing | None]:
        """The outcome if none of them was read."""
        return [None] * len(self.commands)

    def outcome(self, reply: RedisReply) -> list[Found | Missing | None]:
        time_ms, documents, expires_at_ms = reply
        outcomes: list[Found | Missing | None] = []
        for fields, at_ms in zip(documents, expires_at_ms, strict=True):
            if not isinstance(fields, list):
                outcomes.append(Missing() if fields is None else None)
            elif at_ms < 0:
                outcomes.append(Found(*decode(fields), None, None))
            else:
                outcomes.append(Found(*decode(fields), at_ms, at_ms - time_ms))
        return outcomes


class PlainPuts(NamedTuple):
    """PUTs without options in the namespace of `path`: the documents by name. The outcome is the reply of put_many.lua.

    If one of them would be refused, nothing is changed, and the outcome is None.
    """

    path: Path
    documents: dict[str, Encoded]
    ttl_ms: int
    log_length: int
    script: Script[RedisReply] = PUT_MANY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys[:1]

    @property
    def arguments(self) -> Arguments:
        puts = [(name, encoded, self.ttl_ms) for name, encoded in self.documents.items()]
        return put_many_arguments(below(self.path)[0], self.log_length, puts)

    def outcome(self, reply: RedisReply) -> RedisReply:
        return None if reply[0] == b"refused" else registered(self.path, reply[3], reply)


class PlainGets(NamedTuple):
    """GETs without options in the namespace of `path`: the names. The outcome is the reply of get_many.lua."""

    path: Path
    names: list[str]
    script: Script[RedisReply] = GET_MANY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys[:1]

    @property
    def arguments(self) -> Arguments:
        return (below(self.path)[0], MAX_COALESCED_READ_BYTES, *self.names)

    @property
    def unread(self) -> RedisReply:
        """The outcome if none of them was read."""
        return [0, [1] * len(self.names), [-1] * len(self.names)]

    def outcome(self, reply: RedisReply) -> RedisReply:
        return reply


def coalescing_key(command: Command[object]) -> CoalescingKey | None:
    """Return the key that commands must share to be coalesced; None for a command that is sent by itself."""
    if type(command) is Get:
        return Get, command.path.namespace, 0
    if type(command) is Put and command.preconditions is NONE and not command.edit:
        encoded = command.encoded
        is_small = len(encoded.text) <= MAX_COALESCED_BYTES and len(encoded.fields) <= 2 * MAX_COALESCED_MEMBERS
        if is_small and not encoded.has_server_values:
            return Put, command.path.namespace, command.log_length
    return None


def slot_among(command: Command[object], count: int) -> str | int:
    """Return the slot of a command among `count` others with its key. PUTs of one document share one, and are not coalesced."""
    return command.path.name if type(command) is Put else count


def coalesce(commands: list[Command[object]]) -> CoalescedPuts | CoalescedGets:
    """Return one command for several with the same coalescing key."""
    if type(commands[0]) is Put:
        return CoalescedPuts(cast("list[Put]", commands))
    return CoalescedGets(cast("list[Get]", commands))


Otherwise: TypeAlias = Callable[[], Command[Outcome]]  # makes the Batch of the same requests


class ManyWritten(NamedTuple):
    """Documents were written, each at its name in the namespace of `path`.

    Each has its entity-tag in `tags`, and CREATED in `words` if it did not exist. Redis's clock is `lag_ms` behind the tags.
    """

    path: Path
    names: Sequence[bytes]
    documents: list[Encoded]
    ttls_ms: list[int]
    tags: list[bytes]
    words: bytes
    lag_ms: int


class ManyRead(NamedTuple):
    """Documents were read at `time_ms`. `expires_at_ms` is -1 for one that does not expire."""

    documents: list[Decoded]
    expires_at_ms: list[int]
    time_ms: int


class PutMany(NamedTuple, Generic[Outcome]):
    """Replace or create documents of one namespace: ManyWritten. `path` is that of the first. No name occurs twice.

    If one would be refused, nothing is changed, and `otherwise` is executed.
    """

    path: Path
    names: Sequence[bytes]
    documents: list[Encoded]
    ttls_ms: list[int]
    log_length: int
    otherwise: Otherwise[Outcome]

    @property
    def script(self) -> Script[ManyWritten | Outcome]:
        return PUT_MANY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys[:1]

    @property
    def arguments(self) -> Arguments:
        puts = zip(self.names, self.documents, self.ttls_ms, strict=True)
        return put_many_arguments(below(self.path)[0], self.log_length, puts)

    def outcome(self, reply: RedisReply) -> ManyWritten | Again[ManyWritten | Outcome]:
        if reply[0] == b"refused":
            return Again(self.otherwise(), has_written=False)
        written = ManyWritten(self.path, self.names, self.documents, self.ttls_ms, reply[1], reply[2], lag_ms(reply))
        return registered(self.path, reply[3], written)


class GetMany(NamedTuple, Generic[Outcome]):
    """Read documents of one namespace: ManyRead. `path` is that of the first.

    If one does not exist, or was not read, `otherwise` is executed.
    """

    path: Path
    names: Sequence[bytes]
    otherwise: Otherwise[Outcome]

    @property
    def script(self) -> Script[ManyRead | Outcome]:
        return GET_MANY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys[:1]

    @property
    def arguments(self) -> Arguments:
        return (below(self.path)[0], MAX_READ_BYTES, *self.names)

    def outcome(self, reply: RedisReply) -> ManyRead | Again[ManyRead | Outcome] | Later[ManyRead | Outcome]:
        time_ms, documents, expires_at_ms = reply
        if not all(documents) or 1 in documents:  # one does not exist, or was not read
            return Again(self.otherwise(), has_written=False)
        return in_turns(self._read(time_ms, documents, expires_at_ms))

    @staticmethod
    def _read(time_ms: int, documents: list[RedisReply], expires_at_ms: list[int]) -> Turns[ManyRead]:
        return ManyRead((yield from each_read(documents, codec.decode)), expires_at_ms, time_ms)
