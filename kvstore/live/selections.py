"""Selections: what a stream with conditions is told of the changes below its container. No I/O.

A change after which a document does not match is a `leave`, unless it is known that no reader has the document (evaluator.py).
Who does not have it has nothing to remove. The event `patch` has the whole document, so it also tells of one that matches from
now on.
"""

from functools import cached_property
from typing import NamedTuple, TypeAlias

from kvstore.commands.base import Turns
from kvstore.commands.changelog import Change
from kvstore.core import patch
from kvstore.core.query import Question, select
from kvstore.http.events import event, leave
from kvstore.http.queries import spell_question

Key: TypeAlias = tuple[bool, frozenset[tuple[str, str]]]


class Occurrence:
    """A change that selections look at. It is parsed once, and rendered once for all that show the whole document."""

    def __init__(self, path: str, change: Change) -> None:
        self.path = path
        self.change = change

    @cached_property
    def document(self) -> patch.Tree:
        """The document after the change, which is not gone."""
        return patch.load(self.change.text or b"null")

    @cached_property
    def event(self) -> bytes:
        """What a stream without conditions is told."""
        return event(self.path, self.change)

    @cached_property
    def absence(self) -> bytes:
        """What is told where the document does not match or is gone; b"" where POST has made it, since nobody has had it."""
        if self.change.text is None:
            return self.event
        return b"" if self.change.op == "post" else leave(self.path, self.change)


class Selection(NamedTuple):
    """The documents that a stream is told of: those whose names start with `prefix`, and that match.

    Unless it is `recursive`, they lie directly below the container, as in a listing.
    """

    prefix: str
    question: Question
    recursive: bool

    @property
    def key(self) -> Key:
        """What is equal for the same conditions on one container."""
        return self.recursive, frozenset(spell_question(self.question))

    def covers(self, name: str) -> bool:
        """Return whether a document of the namespace is where the selection looks."""
        return name.startswith(self.prefix) and (self.recursive or "/" not in name[len(self.prefix) :])

    def shown(self, occurrence: Occurrence) -> Turns[bytes]:
        """Return the event of a change after which a document that is covered matches, b"" where it does not, or is gone.

        It yields before what may take long.
        """
        change, fields = occurrence.change, self.question.fields
        if change.text is None:
            return b""
        yield
        if not (yield from self.question.matches(occurrence.document)):
            return b""
        if not fields:
            return occurrence.event
        yield
        return event(occurrence.path, change._replace(text=patch.dump(select(occurrence.document, fields))))
