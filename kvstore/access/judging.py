"""Judges commands by the access rules: a command is refused, left as it is, or made one that looks up more or tells less.

A command is judged after a request is parsed and before a store gets it, so a refusal takes the same time whatever is stored.
What depends on documents (`in:/container/`) is looked up right before the command, by `guarded.Guarded`.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

from kvstore.access.principal import Principal
from kvstore.access.views import Clauses, Rules, View, bits
from kvstore.commands.base import Again, Command, Found, Idempotent, Turns
from kvstore.commands.batch import Answered, Batch, Refused, check_atomic
from kvstore.commands.bulk import GetMany, PutMany
from kvstore.commands.documents import Edit, Get, Patch, Post, Put, Transform
from kvstore.commands.guarded import Blind, Guarded
from kvstore.commands.metrics import ReadMetrics
from kvstore.commands.presence import Hold
from kvstore.commands.rights import Right, Scope, Touch
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.commands.transforms import merge_patch_transform
from kvstore.core.codec import Encoded
from kvstore.core.errors import ContentTooLarge, Forbidden, Problem, Unauthorized
from kvstore.core.paths import Path, parse_path
from kvstore.core.preconditions import NONE

Members: TypeAlias = Iterable[tuple[str, tuple[Any, ...]]]  # that a document must have, each with one of some values

MAX_LOOKUPS = 4096  # of one request: some 10 ms of Python and 2 ms of Redis


def judge(asked: Any, rules: Rules, principal: Principal | None) -> Any:
    """Return what to execute for a command, a LongPoll, a Follow or a FollowMany; raises Unauthorized or Forbidden.

    That is the same or a command made of it. For a batch of which nothing is left to execute it is the outcome.
    """
    view = rules.view(principal)
    if isinstance(asked, Follow | FollowMany):
        expires_at_s = principal.expires_at_s if principal else None
        return _judge_stream(asked, view)._replace(expires_at_s=expires_at_s)
    if view.is_admin:
        return asked
    if isinstance(asked, ReadMetrics):
        if asked.is_local:  # or it came through a proxy that adds no header fields
            return asked._replace(shows_jobs=False)
        raise _refusal(Touch(parse_path(b"/_/metrics"), Right.READ), view)
    if isinstance(asked, LongPoll):
        return asked._replace(command=_judge_one(asked.command, view))
    inner = asked.command if isinstance(asked, Idempotent) else asked
    if isinstance(asked, PutMany | GetMany):
        rights = REPLACING if isinstance(asked, PutMany) else READING
        if view.permits_all(asked.path.namespace, asked.names, rights):
            return asked
        asked = inner = asked.otherwise()
    if isinstance(inner, Batch):
        return _judge_batch(asked, inner, view)
    return _judge_one(asked, view)


READING, REPLACING = bits(Right.READ), bits(Right.READ, Right.WRITE)


def is_plainly_permitted(asked: object, rules: Rules, principal: Principal | None) -> bool:
    """Return whether this is a usual GET or PUT that judge() would return as it is: most requests are. False says nothing."""
    if type(asked) is Get:
        view = rules.view(principal)
        return view.is_admin or view.permits(asked.path.text, READING)
    if type(asked) is Put and asked.preconditions is NONE and not asked.encoded.has_server_values:
        view = rules.view(principal)
        return view.is_admin or view.permits(asked.path.text, REPLACING)
    return False


class _Case(NamedTuple):
    """A command that may be permitted. That depends on `needs`, and whether its outcome is shown on `shown`."""

    command: Command[Any]
    needs: tuple[tuple[Touch, Clauses], ...]
    shown: Clauses
    view: View

    def documents(self) -> set[str]:
        """Return the documents whose existence decides."""
        return {document for _, clauses in (*self.needs, (None, self.shown)) for clause in clauses for document in clause}

    def decided(self, found: frozenset[str]) -> Command[Any]:
        """Return the command to execute if these documents exist; raises Unauthorized or Forbidden."""
        for touch, clauses in self.needs:
            if not _holds(clauses, found):
                raise _refusal(touch, self.view)
        return self.command if _holds(self.shown, found) else Blind(self.command)


def _holds(clauses: Clauses, found: frozenset[str]) -> bool:
    return not any(clause.isdisjoint(found) for clause in clauses)


def _case(command: Any, view: View) -> _Case:
    """Return what a command depends on; raises Unauthorized or Forbidden if it is refused whatever is stored."""
    asked: Any = command.command if isinstance(command, Idempotent) else command
    inner, needs, shown = asked, [], frozenset[frozenset[str]]()
    for touch in asked.touches:
        clauses, members = view.verdict(touch)
        if clauses:
            if frozenset() in clauses:
                raise _refusal(touch, view)
            needs.append((touch, clauses))
        if members:
            inner = _with_members(inner, members, view)
    if inner is not asked:  # an Edit
        command = command._replace(command=inner._replace(once=True)) if isinstance(command, Idempotent) else inner
    if isinstance(inner, Put | Post):
        for touch in inner.shows:
            shown |= view.verdict(touch).clauses
    return _Case(command, tuple(needs), shown, view)


def _judge_one(command: Command[Any], view: View) -> Command[Any]:
    case = _case(command, view)
    if not case.needs and not case.shown:
        return case.command
    documents = case.documents()
    if not documents:
        return case.decided(frozenset())
    return Guarded(_paths(documents), lambda found: Again(case.decided(found), has_written=False), case.command)


def _judge_stream(follow: Follow | FollowMany, view: View) -> Follow | FollowMany:
    if view.is_admin:
        return follow
    case = _case(follow, view)
    for hold in follow.holds:
        for touch in hold.touches:
            try:
                _with_members(hold, view.verdict(touch).members, view)
            except Problem as problem:
                problem.members["path"] = hold.path.text
                raise
    if not case.needs:
        return follow

    def decide(found: frozenset[str]) -> None:
        case.decided(found)

    return follow._replace(permit=Guarded(_paths(case.documents()), decide))


def _judge_batch(asked: Any, batch: Batch[Any, Any], view: View) -> Any:
    """Judge the requests of a batch one by one. A refusal is the answer to that request, or to an atomic batch."""
    cases: list[_Case | Answered[Any]] = []
    documents: set[str] = set()
    for index, step in enumerate(batch.steps):
        try:
            case = step if isinstance(step, Answered) else _case(step, view)
        except Problem as problem:
            if batch.atomic:
                return Refused(index, batch.requests[index], problem)
            case = Answered(problem)
        cases.append(case)
        documents |= case.documents() if isinstance(case, _Case) else set()
        if len(documents) > MAX_LOOKUPS:
            raise ContentTooLarge("the rules would have to look up too many documents for this batch; send several batches")

    def decide(found: frozenset[str]) -> Any:
        steps: list[Any] = []
        for index, case in enumerate(cases):
            try:
                steps.append(case if isinstance(case, Answered) else case.decided(found))
            except Problem as problem:
                if batch.atomic:
                    return Refused(index, batch.requests[index], problem)
                steps.append(Answered(problem))
        if batch.atomic:
            check_atomic(steps)
        following = batch._replace(steps=steps, at=0, stop=0).next()
        if isinstance(following, Again) and isinstance(asked, Idempotent):
            first = following.command
            assert isinstance(first, Batch)
            return Again(asked._replace(command=first, reader=first.as_reader), has_written=False)
        return following

    if documents:
        return Guarded(_paths(documents), decide, batch)
    decided = decide(frozenset())
    return decided.command if isinstance(decided, Again) else decided


def _paths(documents: set[str]) -> tuple[Path, ...]:
    """Return the paths of documents, those of a namespace together; raises Forbidden if they are too many to look up."""
    if len(documents) > MAX_LOOKUPS:
        raise Forbidden(f"the rules would have to look up more than {MAX_LOOKUPS:,} documents for this")
    paths = [parse_path(document.encode()) for document in documents]
    return tuple(sorted(paths, key=lambda path: (path.namespace, path.name)))


def _refusal(touch: Touch, view: View) -> Unauthorized | Forbidden:
    path, right, scope = touch
    if right is Right.READ:
        what = f"read {path.text}" if scope is Scope.ITSELF else f"read everything below {path.text}"
    elif right is Right.APPEND:
        what = f"create {path.text}" if scope is Scope.ITSELF else f"append to {path.text}"
    else:
        what = f"write {path.text}" if scope is Scope.ITSELF else f"write everything below {path.text}"
    if view.principal is None:
        refusal = f"the rules do not permit this without a token: {what}; send Authorization: Bearer, and a token"
        return Unauthorized(refusal, path=path.text)
    return Forbidden(f"the rules do not permit you to {what}", path=path.text)


# The members that a document must have


def _with_members(command: Any, members: Members, view: View) -> Any:
    """Return a command that writes no document without these members; raises Unauthorized or Forbidden if it would."""
    try:
        return _checking(command, members)
    except Forbidden as problem:
        if view.principal is None:
            raise Unauthorized(f"{problem.detail}; send Authorization: Bearer, and a token") from None
        raise


def _checking(command: Any, members: Members) -> Any:
    """Return a command that checks the members where they are not known before; raises Forbidden where they are wrong."""
    match command:
        case Put() | Post() | Hold():
            _check_members(command.encoded, members)
        case Patch():
            given = _given(command.encoded)
            _check([(name, values) for name, values in members if name in given], given)
            if any(name not in given for name, _ in members):  # the stored document decides
                transform = merge_patch_transform(command.body, asked_ms=command.ttl_ms, default_ms=command.default_ttl_ms)
                edit = Edit(command.path, transform, command.preconditions, command.log_length)
                return _checking(edit, members)
        case Edit():
            _check([(name, values) for name, values in members if not values], {})
            return command._replace(transform=_checked(command.transform, members))
    return command


def _checked(transform: Transform, members: Members) -> Transform:
    def checked(current: Found | None) -> Turns[tuple[Encoded, int | None]]:
        made = yield from transform(current)
        _check_members(made[0], members)
        return made

    return checked


def _check_members(encoded: Encoded, members: Members) -> None:
    _check(members, _given(encoded))


def _given(encoded: Encoded) -> dict[str, bytes]:
    """Return the members of a document, or of a patch, as JSON texts."""
    fields = encoded.fields if encoded.is_object else []
    return {name.decode("utf-8", "replace"): value for name, value in zip(fields[::2], fields[1::2], strict=True)}


def _check(members: Members, given: dict[str, bytes]) -> None:
    for name, values in members:
        if not any(_is_equal(given.get(name), value) for value in values):
            raise Forbidden(f"the rules require the member {name!r} of this document to be what your token says")


def _is_equal(text: bytes | None, value: object) -> bool:
    """Whether a JSON text is this value, of the same type. What is no JSON text is a server value."""
    if text is None or text[:1] in b"@+":
        return False
    found = json.loads(text) if len(text) <= MAX_COMPARED_BYTES else None
    return type(found) is type(value) and found == value


MAX_COMPARED_BYTES = 8192  # of a member: a claim came in a header field, which is shorter
