"""Several commands as one: all of them on one namespace or none, or each on its own.

Commands of one namespace that follow each other are one script. A command that must read before it can write is read before
an atomic batch, and the batch starts again if another writer was faster.
"""

from collections import Counter
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from kvstore.commands.base import (
    TURN_WEIGHT,
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
    RegisterNamespace,
    Stored,
    Turns,
    below,
    in_turns,
    registered,
    weigh,
)
from kvstore.commands.documents import ConditionalGet, Delete, Edit, Patch, Post, Put, SetTTL
from kvstore.commands.scripts import BATCH, Script
from kvstore.core.errors import PROBLEMS, ContentTooLarge, NotInBatch, Problem, problem_of_reply
from kvstore.core.paths import Path

MAX_READ_BYTES = 16 * 1024 * 1024  # of the documents in the responses of a batch, about
# Of one script, in the time of reading a member (lua/batch.lua): 15 ms of Redis, after which others come before the rest. An
# atomic batch may take 30, what it undoes included, where 50 are the limit: it writes 20,000 members at most, about, or reads
# 60,000, or has 1,000 requests of 10.
MAX_WORK, MAX_ATOMIC_WORK = 30_000, 60_000
MAX_PARTS = 30_000  # names and values that one script is sent: it would leave what is more to the next one

BatchCommand: TypeAlias = ConditionalGet | Put | Patch | SetTTL | Delete | Post | Edit
BatchOutcome: TypeAlias = Found | Missing | Stored | Appended | Deleted | Failed

Request = TypeVar("Request")  # a request of a batch, for whoever renders its response
Answer = TypeVar("Answer")  # of a request that needs no store


class Answered(NamedTuple, Generic[Answer]):
    """A request of a batch that needs no store."""

    answer: Answer


Step: TypeAlias = BatchCommand | Answered[Answer]  # a request of a batch: what it asks of the store, or its answer

REFUSED = b"refused in a batch"


class Answers(NamedTuple, Generic[Request, Answer]):
    """The requests of a batch, and for each its outcome, its problem, or the answer that it had without the store."""

    requests: list[Request]
    answers: list[BatchOutcome | Problem | Answer]


class Refused(NamedTuple, Generic[Request, Answer]):
    """A request of an atomic batch was refused, so none was applied."""

    request_index: int
    request: Request
    answer: BatchOutcome | Problem | Answer


Result: TypeAlias = Answers[Request, Answer] | Refused[Request, Answer]


class Batch(NamedTuple, Generic[Request, Answer]):
    """Execute the steps from `at` to `stop`, all of one namespace, then the others: Answers, or Refused if `atomic`.

    `outcomes` are those of the steps before `at`, by index. The batch fills it, and replaces steps that have become others.
    With `once`, a refusal after reading is recorded for the request's Idempotency-Key.
    """

    requests: list[Request]
    steps: list[Step[Answer]]
    outcomes: dict[int, BatchOutcome | Problem]
    atomic: bool
    at: int = 0
    stop: int = 0
    left_bytes: int = MAX_READ_BYTES  # of the responses
    once: bool = False
    is_whole: bool = False

    @property
    def script(self) -> Script[Result[Request, Answer]]:
        return BATCH

    @property
    def as_reader(self) -> "Batch[Request, Answer]":
        """This batch as the reader of a kept reply: that has all of its requests, also those that were read before."""
        return self._replace(is_whole=True)

    @property
    def path(self) -> Path:
        """The path of its first command."""
        return self._commands()[0][1].path

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys[:1]

    @property
    def arguments(self) -> Arguments:
        prefix, _ = below(self.path)
        arguments: list[bytes | str | int] = [prefix, "each", self.left_bytes, MAX_WORK]
        if self.atomic:
            arguments[1:] = ["atomic", self.left_bytes, MAX_ATOMIC_WORK]
        for _, command in self._commands():
            own = command.arguments
            arguments += (command.script.name, len(own), *own)
        return tuple(arguments)

    def outcome(
        self, reply: RedisReply
    ) -> Result[Request, Answer] | Again[Result[Request, Answer]] | Later[Result[Request, Answer]]:
        return in_turns(self._outcome(reply))

    def _outcome(self, reply: RedisReply) -> Turns[Result[Request, Answer] | Again[Result[Request, Answer]]]:
        word = reply[0]
        if word == REFUSED:  # after reading, and replayed
            index = int(reply[1])
            return Refused(index, self.requests[index], PROBLEMS[reply[2].decode()](reply[3].decode()))
        if word in (b"undone", b"lost"):
            return (yield from self._undone(reply, is_recorded=word == b"undone"))
        if word == b"too much work":
            raise ContentTooLarge(
                "an atomic batch is one step for Redis, and this one would take too long: its documents have too many members."
                ' Send fewer requests at once, or "atomic":false. Nothing was changed'
            )
        return (yield from self._run(word, reply))

    def _run(self, word: bytes, reply: RedisReply) -> Turns[Result[Request, Answer] | Again[Result[Request, Answer]]]:
        """Return what follows a run of commands, from their replies."""
        is_unfinished, weight = False, 0
        new_expiry: int | None = None  # of the namespace's own keys
        commands = self._commands()
        for (index, command), part in zip(commands, reply[1], strict=False):
            if weight > TURN_WEIGHT:
                weight = 0
                yield
            weight += weigh(part)
            outcome = yield from _outcome(command, part)
            if isinstance(outcome, Again) and isinstance(outcome.command, RegisterNamespace):
                new_expiry, outcome = outcome.command.expires_at_ms, outcome.command.then
            if isinstance(outcome, Again):
                self._continue(index, outcome)
                is_unfinished = True
            elif self.atomic and word == b"read":
                return self._refused(index, outcome)
            else:
                self.outcomes[index] = outcome
        following: Result[Request, Answer] | Again[Result[Request, Answer]]
        if is_unfinished:
            following = Again(self, has_written=False)
        elif self.atomic:
            following = self.next()
        else:
            left = self._replace(left_bytes=self.left_bytes - reply[2])
            done = len(reply[1])
            following = left.next() if done == len(commands) else Again(left._replace(at=commands[done][0]))
        return registered(self.path, new_expiry, following)

    def _undone(
        self, reply: RedisReply, *, is_recorded: bool
    ) -> Turns[Result[Request, Answer] | Again[Result[Request, Answer]]]:
        """Return the refusal of an atomic batch, or the next attempt where a document is no longer as it was read."""
        index, command = self._commands()[reply[1]]
        outcome = yield from _outcome(command, reply[2])
        if isinstance(outcome, Again):
            self._continue(index, outcome)
            return Again(self, has_written=False)
        if isinstance(outcome, Problem) and outcome.status >= 500:
            raise outcome  # a full Redis refuses the batch, not one request of it
        # A refusal that came after reading is recorded here; the script has recorded any other.
        return Refused(index, self.requests[index], outcome) if is_recorded else self._refused(index, outcome)

    def next(self) -> Answers[Request, Answer] | Again[Result[Request, Answer]]:
        """Return the batch from its next run of commands on, or the answers if there is none."""
        steps, at = self.steps, self.stop
        while at < len(steps) and isinstance(steps[at], Answered):
            at += 1
        if at == len(steps):
            return Answers(
                self.requests,
                [step.answer if isinstance(step, Answered) else self.outcomes[index] for index, step in enumerate(steps)],
            )
        stop = at + 1
        if self.atomic:
            stop = len(steps)
        elif not isinstance(first := steps[at], Edit | Answered):
            namespace, parts = first.path.namespace, _sent_parts(first)
            while stop < len(steps) and parts < MAX_PARTS and _joins(steps[stop], namespace):
                parts += _sent_parts(steps[stop])
                stop += 1
        return Again(self._replace(at=at, stop=stop))

    def _refused(
        self, index: int, outcome: BatchOutcome | Problem
    ) -> Refused[Request, Answer] | Again[Refused[Request, Answer]]:
        refused: Refused[Request, Answer] = Refused(index, self.requests[index], outcome)
        if not (self.once and isinstance(outcome, Problem)):
            return refused
        words = (REFUSED.decode(), str(index), type(outcome).__name__, outcome.detail)
        return Again(RecordReply(self.keys, words, refused), has_written=False)

    def _commands(self) -> list[tuple[int, BatchCommand]]:
        """Return the commands of this run with their indexes: first only those that must read before they can write."""
        commands: list[tuple[int, BatchCommand]] = []
        for index in range(self.at, self.stop):
            step = self.steps[index]
            if not isinstance(step, Answered):
                commands.append((index, step))
        if self.is_whole:
            return commands
        return [(index, command) for index, command in commands if isinstance(command, Edit)] or commands

    def _continue(self, index: int, again: Again[BatchOutcome]) -> None:
        """Replace an Edit, or its Put, by the command that follows it."""
        assert isinstance(again.command, Put)
        self.steps[index] = again.command


def _sent_parts(step: Step[Answer]) -> int:
    """How many names and values a command sends to Redis."""
    return len(step.encoded.fields) if isinstance(step, Put | Patch | Post) else 0


def check_atomic(steps: list[Step[Answer]]) -> None:
    """Check that one script can execute these steps, all or none of them; raises NotInBatch."""
    commands = [step for step in steps if not isinstance(step, Answered)]
    if len({command.path.namespace for command in commands}) > 1:
        raise NotInBatch('the requests of an atomic batch must have paths with the same first segment; or send "atomic":false')
    times = Counter(command.path.text for command in commands if not isinstance(command, ConditionalGet))
    for command in commands:
        if isinstance(command, Edit) and times[command.path.text] > 1:
            raise NotInBatch(
                f"an atomic batch cannot write {command.path.text} more than once if one of the writes is a nested merge patch"
                ' or a JSON Patch; send one write for it, or "atomic":false'
            )


def _joins(step: Step[Answer], namespace: str) -> bool:
    return isinstance(step, Answered) or (not isinstance(step, Edit) and step.path.namespace == namespace)


def _outcome(command: BatchCommand, reply: RedisReply) -> Turns[BatchOutcome | Problem | Again[BatchOutcome]]:
    """Return the outcome of a command from its reply, or its Problem."""
    try:
        if reply[0] == b"error":
            raise problem_of_reply(reply[1].decode("utf-8", "replace"))
        if reply[0] == b"too much":
            raise ContentTooLarge("the answers of a batch have at most 16 MiB together: ask for this in another batch")
        outcome: BatchOutcome | Again[BatchOutcome] | Later[BatchOutcome] = command.outcome(reply)
        while isinstance(outcome, Later):
            yield
            outcome = outcome.resume()
        return outcome
    except Problem as problem:
        return problem
