"""What the client for Python gives and takes: documents, jobs, events, options; and what a verb asks for.

The JavaScript module has the same shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypedDict, TypeVar

from kvstore.commands.base import Command, Replayed
from kvstore.commands.batch import Answers
from kvstore.commands.containers import List
from kvstore.commands.metrics import ReadMetrics
from kvstore.commands.queries import Find
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core import values
from kvstore.core.errors import Problem
from kvstore.core.settings import Settings
from kvstore.http.messages import Request, Response
from kvstore.http.protocol import parse, plan_batch

Result = TypeVar("Result")
Duration: TypeAlias = int | str  # seconds, or a text such as "90s", "5m", "2h" or "7d"


Where: TypeAlias = Mapping[str, Mapping[str, Any]]  # the conditions on each member: {"born": {"gte": 1800, "lt": 1850}}


@dataclass(frozen=True, slots=True)
class Document:
    """A stored document. `ttl` is its remaining TTL in seconds, None if it does not expire.

    `etag` is the entity-tag as If-Match takes it, quotes included; None for a hash that another Redis client wrote.
    """

    path: str
    value: Any
    etag: str | None
    ttl: int | None


@dataclass(frozen=True, slots=True)
class LeasedDocument(Document):
    """A document that was taken as a job. `attempts` counts this take."""

    attempts: int
    lease: str


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a stream: `snapshot`, `put`, `patch`, `delete`, `expire`, or `reset` where changes may have been lost.

    `leave` says that a document does not match the conditions that are followed. The value of a container's snapshot is
    `{"items": […]}`. `id` is what `last_event_id` takes.
    """

    type: str
    path: str
    value: Any
    etag: str | None
    ttl: int | None
    id: str | None


class Asking(NamedTuple, Generic[Result]):
    """What a verb asks for: a request, or a command that follows one; and how to read its outcome."""

    asked: Request | List | Find
    read: Callable[[Any], Result]

    def command(self, settings: Settings) -> Command[Any] | LongPoll[Any] | Answers[Request, Any]:
        """Return what a store, or a Runtime, is to execute, or the outcome if there is nothing to execute; raises Problem."""
        if isinstance(self.asked, List | Find):
            return self.asked
        command = parse(self.asked, settings)
        assert not isinstance(command, Follow | FollowMany | ReadMetrics)
        return plan_batch(self.asked, settings) if isinstance(command, Response) else command

    def result(self, outcome: object) -> Result:
        """Return what the caller of the verb gets; raises Problem, with members that are values of Python."""
        try:
            return self.read(outcome.outcome if isinstance(outcome, Replayed) else outcome)
        except Problem as problem:
            for name, member in problem.members.items():
                if isinstance(member, bytes):
                    problem.members[name] = values.load(member)
            raise


class Page(NamedTuple):
    """Documents of a listing, and what asks for the next ones; None at the end."""

    documents: list[Document]
    following: "Asking[Page] | None"


class ListOptions(TypedDict, total=False):
    """Options of a listing."""

    limit: int | None
    recursive: bool
    order: str | None
    after: str | None


class QueryOptions(ListOptions, total=False):
    """Options of a query. `sort` and `fields` name members, in a list or in a text with commas."""

    search: str | None
    sort: str | Sequence[str] | None
    fields: str | Sequence[str] | None


class FollowOptions(TypedDict, total=False):
    """Options of what is followed. `fields` names members, in a list or in a text with commas."""

    search: str | None
    fields: str | Sequence[str] | None
    recursive: bool
    last_event_id: str | None


class WriteOptions(TypedDict, total=False):
    """Options of a write."""

    ttl: Duration | None
    if_match: str | None
    if_none_match: str | None
    idempotency_key: str | None


class AppendOptions(TypedDict, total=False):
    """Options of an append."""

    ttl: Duration | None
    delay: Duration | None
    idempotency_key: str | None


class DeleteOptions(TypedDict, total=False):
    """Options of a delete."""

    recursive: bool
    if_match: str | None
    if_none_match: str | None
    idempotency_key: str | None


class TakeOptions(TypedDict, total=False):
    """Options of a take, beside the lease."""

    limit: int | None
    wait: Duration | None
    max_attempts: int | None
    as_: Any
