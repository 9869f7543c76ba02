"""Several commands as one: all of them on one namespace or none, or each on its own.

The commands of one namespace that follow each other are one script. A command that must read before it can write is read before
an atomic batch, and the batch is done again where another was faster.
"""

from typing import Any, NamedTuple

from kvstore.commands.base import Again, Command, Missing, RecordReply, RedisReply, RegisterNamespace, below
from kvstore.commands.documents import Edit, Get, Post
from kvstore.commands.scripts import BATCH, Script
from kvstore.core.errors import PROBLEMS, ContentTooLarge, Problem, problem_of_reply
from kvstore.core.paths import Path

MAX_READ_BYTES = 16 * 1024 * 1024  # of the documents in the answers of a batch, about


class Answered(NamedTuple):
    """What a request of a batch is answered without the store."""

    answer: object


# What a request of a batch asks of the store, or its answer.
Step = Command | Answered

REFUSED = b"refused in a batch"


class Answers(NamedTuple):
    """What the requests of a batch came to, in their order: outcomes, replies and problems."""

    requests: list[Any]  # for whoever renders the answers
    answers: list[Any]


class Refused(NamedTuple):
    """One request of an atomic batch came to a refusal, so none was applied."""

    request_index: int
    request: Any
    answer: Any


class Batch(NamedTuple):
    """Carry out the steps from `at` to `stop`, all of one namespace, then the others: Answers, or Refused where `atomic`."""

    requests: list[Any]
    steps: list[Step]
    answers: list[Any]
    atomic: bool
    at: int = 0
    stop: int = 0
    left_bytes: int = MAX_READ_BYTES  # of the answers
    once: bool = False
    is_whole: bool = False
    script: Script = BATCH

    @property
    def as_replayed(self) -> "Batch":
        """This batch as it reads the answer to all of it, whatever must be read before."""
        return self._replace(is_whole=True)

    @property
    def path(self) -> Path:
        """The path of its first command."""
        return _path(self.steps[self._indexes()[0]])

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys[:1]

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        indexes = self._indexes()
        prefix, _ = below(self.path)
        arguments: list[bytes | str | int] = [prefix, "atomic" if self.atomic else "each", self.left_bytes]
        for index in indexes:
            command: Any = self.steps[index]
            own = _arguments(command)
            arguments += (command.script.name, len(own), *own)
        return tuple(arguments)

    def outcome(self, reply: RedisReply) -> Answers | Refused | Again:
        if reply[0] == REFUSED:  # by what was read, and replayed
            index = int(reply[1])
            return Refused(index, self.requests[index], PROBLEMS[reply[2].decode()](reply[3].decode()))
        indexes = self._indexes()
        word, found = reply[0], reply[1]
        if word in (b"undone", b"lost"):
            index = indexes[found]
            answer = self._answer(index, reply[2])
            if answer is None:
                return Again(self, has_written=False)
            if isinstance(answer, Problem) and answer.status >= 500:
                raise answer  # a full Redis refuses the batch, not one request of it
            # A refusal that came after reading is kept here; the other the script has kept.
            return self._refused(index, answer) if word == b"lost" else Refused(index, self.requests[index], answer)
        unfinished = False
        register: RegisterNamespace | None = None
        for index, part in zip(indexes, found, strict=True):
            answer = self._answer(index, part)
            if isinstance(answer, RegisterNamespace):
                register, answer = answer, answer.then
            if answer is None:
                unfinished = True
            elif self.atomic and word == b"read":
                return self._refused(index, answer)
            self.answers[index] = answer
        if unfinished:
            following: Answers | Again = Again(self, has_written=False)
        elif self.atomic:
            following = self.next()
        else:
            following = self._replace(left_bytes=self.left_bytes - reply[2]).next()
        return Again(register._replace(then=following)) if register else following

    def next(self) -> Answers | Again:
        """The next requests of one namespace that follow each other, or the answers where all are there."""
        steps, at = self.steps, self.stop
        while at < len(steps) and not _is_command(steps[at]):
            at += 1
        if at == len(steps):
            return Answers(self.requests, self.answers)
        stop = at + 1
        if self.atomic:
            stop = len(steps)
        elif not isinstance(steps[at], Edit):
            namespace = _path(steps[at]).namespace
            while stop < len(steps) and _joins(steps[stop], namespace):
                stop += 1
        return Again(self._replace(at=at, stop=stop))

    def _refused(self, index: int, answer: Any) -> Refused | Again:
        refused = Refused(index, self.requests[index], answer)
        if not (self.once and isinstance(answer, Problem)):
            return refused
        words = (REFUSED.decode(), str(index), type(answer).__name__, answer.detail)
        return Again(RecordReply(self, words, refused), has_written=False)

    def _indexes(self) -> list[int]:
        """Where the commands of this run are: those that must read before they can write come first, alone."""
        indexes = [index for index in range(self.at, self.stop) if _is_command(self.steps[index])]
        if self.is_whole:
            return indexes
        return [index for index in indexes if isinstance(self.steps[index], Edit)] or indexes

    def _answer(self, index: int, reply: RedisReply) -> Any:
        """What a request came to; None where it has become another command that is still to be carried out."""
        command: Any = self.steps[index]
        try:
            if reply[0] == b"error":
                raise problem_of_reply(reply[1].decode("utf-8", "replace"))
            if reply[0] == b"too much":
                raise ContentTooLarge("the answers of a batch have at most 16 MiB together: ask for this in another batch")
            if isinstance(command, Get):
                outcome = Missing() if reply[0] == b"missing" else command.outcome(reply[1])
            else:
                outcome = command.outcome(reply)
        except Problem as problem:
            return problem
        if isinstance(outcome, Again):
            if isinstance(outcome.command, RegisterNamespace):
                return outcome.command
            self.steps[index] = outcome.command
            return None
        return outcome


def _is_command(step: Step) -> bool:
    return not isinstance(step, Answered)


def _joins(step: Step, namespace: str) -> bool:
    return not _is_command(step) or (not isinstance(step, Edit) and _path(step).namespace == namespace)


def _path(step: Any) -> Path:
    path: Path = step.container if isinstance(step, Post) else step.path
    return path


def _arguments(command: Any) -> tuple[bytes | str | int, ...]:
    if not isinstance(command, Get):
        own: tuple[bytes | str | int, ...] = command.arguments
        return own
    preconditions = command.preconditions
    since_s = preconditions.unmodified_since_s
    return (command.path.name, preconditions.match, "" if since_s is None else since_s)
