"""What access rules make of a command: it is executed only if certain documents exist, and its outcome tells less.

`access/judging.py` wraps commands in these. No store and no adapter needs to know.
"""

from collections.abc import Callable
from itertools import takewhile
from typing import Any, Generic, NamedTuple

from kvstore.commands.base import (
    Again,
    Appended,
    Arguments,
    Command,
    Failed,
    Idempotent,
    Later,
    Outcome,
    RedisReply,
    RegisterNamespace,
    Replayed,
    Stored,
)
from kvstore.commands.charges import Charge
from kvstore.commands.documents import Post, Put
from kvstore.commands.scripts import EXISTS, Script
from kvstore.core.errors import PreconditionFailed
from kvstore.core.paths import Path

MAX_AT_ONCE = 1000  # documents that one script looks for: 0.3 ms of Redis

Decide = Callable[[frozenset[str]], Outcome | Again[Outcome]]  # from the paths that exist; raises Problem


class Guarded(NamedTuple, Generic[Outcome]):
    """Look up which documents exist, then execute what `decide` returns, or raise what it raises.

    `asked` are those that are still to be looked up, `found` those that exist. `command` is what was asked for, for stores that
    treat some commands in a way of their own.
    """

    asked: tuple[Path, ...]
    decide: Decide[Outcome]
    command: Command[Outcome] | None = None
    found: frozenset[str] = frozenset()

    @property
    def script(self) -> Script[Outcome]:
        return EXISTS

    @property
    def _now(self) -> tuple[Path, ...]:
        """Those that this lookup is about: the first ones, as far as they are of one namespace, which one script can read."""
        namespace = self.asked[0].namespace
        return tuple(takewhile(lambda path: path.namespace == namespace, self.asked[:MAX_AT_ONCE]))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(path.keys.document for path in self._now)

    @property
    def arguments(self) -> Arguments:
        return ()

    def outcome(self, reply: RedisReply) -> Outcome | Again[Outcome]:
        now = self._now
        found = self.found.union(path.text for path, exists in zip(now, reply, strict=True) if exists)
        left = self.asked[len(now) :]
        if left:
            return Again(self._replace(asked=left, found=found), has_written=False)
        return self.decide(found)


class Blind(NamedTuple, Generic[Outcome]):
    """A command whose outcome shows nothing of what is stored, for a client that may write and not read."""

    command: Command[Outcome]

    @property
    def script(self) -> Script[Outcome]:
        return self.command.script

    @property
    def keys(self) -> tuple[str, ...]:
        return self.command.keys

    @property
    def path(self) -> Path:
        """The path that a batch groups this command by."""
        assert isinstance(self.command, Put | Post)
        return self.command.path

    @property
    def arguments(self) -> Arguments:
        return self.command.arguments

    def outcome(self, reply: RedisReply) -> Outcome | Again[Outcome] | Later[Outcome]:
        outcome: Outcome | Again[Outcome] | Later[Outcome] = _hidden(self.command.outcome(reply))
        return outcome


def _hidden(outcome: Any) -> Any:
    """Return an outcome, or what follows, without what is stored; raises PreconditionFailed."""
    match outcome:
        case Later():
            resume = outcome.resume
            return Later(lambda: _hidden(resume()))
        case Again(RegisterNamespace() as command):
            return outcome._replace(command=command._replace(then=_hidden(command.then)))
        case Again():
            return outcome._replace(command=Blind(outcome.command))
        case Replayed():
            try:
                return Replayed(_hidden(outcome.outcome))
            except PreconditionFailed as problem:
                problem.headers["Idempotency-Replayed"] = "true"
                raise
        case Stored() | Appended():
            return outcome._replace(document=outcome.document._replace(text=b""))
        case Failed():
            raise PreconditionFailed("the precondition failed; the rules do not permit you to read what is stored")
    return outcome


def unwrapped(command: Command[Any]) -> Command[Any] | None:
    """Return the command that was asked for, for a store that treats some commands in a way of their own."""
    while isinstance(command, WRAPPERS):
        if command.command is None:
            return None
        command = command.command
    return command


WRAPPERS = Guarded, Blind, Idempotent, Charge  # a union would be made anew for each command
