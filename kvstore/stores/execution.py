"""One request in a store: the command that is with Redis, those that follow it, and the deadline of all of them.

A store adds the waiting. Nothing here does I/O. Source: EVALSHA, EVAL.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Generic, NamedTuple

from kvstore.commands.base import Again, Command, Later, Outcome, RedisReply, RegisterNamespace
from kvstore.core.errors import Problem
from kvstore.core.metrics import COUNTERS, add_time
from kvstore.stores import redis_clients
from kvstore.stores.redis_errors import as_unknown

Words = tuple[Any, ...]


def evalsha_words(command: Command[object]) -> Words:
    """Return the Redis command for a command of ours."""
    keys = command.keys
    return ("EVALSHA", command.script.sha, len(keys), *keys, *command.arguments)


def eval_words(command: Command[object], words: Words) -> Words:
    """Return the `words` of a command with the script's text, for a Redis that has answered NOSCRIPT: it has run nothing."""
    return ("EVAL", command.script.text, *words[2:])


class Plain(NamedTuple):
    """A command of Redis's own, sent by a store for itself: the outcome is the reply."""

    words: Words

    def outcome(self, reply: RedisReply) -> RedisReply:
        return reply


@contextmanager
def timed() -> Iterator[None]:
    """Count a command, and the time until its reply."""
    began = perf_counter()
    yield
    COUNTERS.redis_commands += 1
    add_time(COUNTERS.redis, perf_counter() - began)


class Execution(Generic[Outcome]):
    """A request under way. Times are of the store's clock, in seconds.

    `command` is with Redis since `began`, and overdue at `due`. `has_written`: an earlier command may have been applied.
    """

    __slots__ = ("began", "command", "due", "has_written")

    def __init__(self, command: Command[Outcome], began: float, due: float) -> None:
        self.command = command
        self.began = began
        self.due = due
        self.has_written = False

    def settle(self, reply: RedisReply | Problem, now: float) -> Outcome | Again[Outcome] | Later[Outcome] | Problem:
        """Take in the reply to the command, or the Problem that came in its place.

        Returns the outcome, which may be a Problem; Again, and then `command` is the one to send next; or Later, for resume().
        """
        if not isinstance(reply, Problem):
            return self._taken(lambda: self.command.outcome(reply), now)
        self.began = now  # only an answer extends the deadline
        outcome = self.failed(reply)
        if isinstance(outcome, Again):
            self.follow(outcome, now)
        return outcome

    def resume(self, later: Later[Outcome], now: float) -> Outcome | Again[Outcome] | Later[Outcome] | Problem:
        """Go on with the work on the reply; as settle(). Redis is not waited for meanwhile."""
        self.due += now - self.began
        self.began = now
        return self._taken(later.resume, now)

    def _taken(
        self, read: Callable[[], Outcome | Again[Outcome] | Later[Outcome]], now: float
    ) -> Outcome | Again[Outcome] | Later[Outcome] | Problem:
        outcome: Outcome | Again[Outcome] | Later[Outcome] | Problem
        try:
            outcome = read()
        except Problem as problem:
            outcome = self.failed(problem)
        if isinstance(outcome, Again):
            self.follow(outcome, now)
        elif isinstance(outcome, Later):
            self.answered(now)
        return outcome

    def answered(self, now: float) -> None:
        """Redis has answered a command. That extends the deadline by the time that it took, up to PROMPT_S."""
        self.due += min(now - self.began, redis_clients.PROMPT_S)
        self.began = now

    def follow(self, again: Again[Outcome], now: float) -> None:
        """Go on to the next command."""
        self.answered(now)
        self.command = again.command
        self.has_written = self.has_written or again.has_written

    def failed(self, problem: Problem) -> Outcome | Again[Outcome] | Problem:
        """Return what the request comes to when its command fails: an outcome, a Problem, or Again."""
        if isinstance(
            self.command, RegisterNamespace
        ):  # the write before it is done, and its outcome is what the client waits for
            return self.command.then
        return as_unknown(problem) if self.has_written else problem

    def ended(self, problem: Problem) -> Outcome | Problem:
        """Return the same where no other command can be sent."""
        outcome = self.failed(problem)
        return as_unknown(problem) if isinstance(outcome, Again) else outcome
