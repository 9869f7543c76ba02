"""What the rules permit one principal: for a document, and for everything that could lie below a container.

The patterns of all rows are one automaton over the segments of a path. It is made state by state, as paths are looked at, so
looking at a path again costs a look into a dict for each segment. A container is covered if every state that can be reached
below it permits it: the segments that some row names are tried one by one, and all others as one, OTHER. That is exact, since
rows compare a segment with nothing but those names. Source: the subset construction of automata theory.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from typing import Any, NamedTuple

from kvstore.access.patterns import Element, Kind, Pattern, claim_segments, claim_values
from kvstore.access.principal import Principal
from kvstore.access.rules import POST, OwnRow, Row, parse_own_rows
from kvstore.commands.rights import Right, Scope, Touch
from kvstore.core.errors import Problem, Unauthorized
from kvstore.core.paths import MAX_SEGMENTS, as_segment, parse_path, segments_of

MAX_VIEWS = 512  # principals whose view is kept, some 20 KiB each
MAX_STATES = 256  # of one principal that are kept; most tables have fewer than 100
MAX_COVERED = 256  # containers of one principal whose verdict is kept
MAX_MEMBERSHIPS = 256  # of which one right depends, if claims in it are lists; others do not count
MAX_STEPS = 20_000  # of one look below a container, some 20 ms; a table that needs more permits it to admin only

OTHER = ""  # stands for every segment that no row names at this point

Clauses = frozenset[frozenset[str]]


class Verdict(NamedTuple):
    """What a right depends on: of each of `clauses`, one document must exist. An empty clause is a refusal.

    A document that is written must have the `members`, each with one of some values.
    """

    clauses: Clauses = frozenset()
    members: frozenset[tuple[str, tuple[Any, ...]]] = frozenset()


PERMITTED = Verdict()
REFUSED = Verdict(frozenset({frozenset()}))


def bits(*rights: Right) -> int:
    """Return rights as one number."""
    return sum(1 << right for right in rights)


# An element of a pattern for one principal: the segments that it matches, None for any. MANY is any number of segments.
_Matched = frozenset[str] | None
_MANY: frozenset[str] = frozenset({"/"})  # no segment has a slash

_Config = tuple[int, int, tuple[int, ...]]  # a row, how many of its elements have matched, and which segments it has captured


class _State:
    """What rows have matched so far. `fixed` is the verdict for each right, None where it depends on captured segments."""

    __slots__ = ("captured", "configs", "expected", "fixed", "following", "other", "permitted", "row")

    def __init__(self, configs: tuple[_Config, ...], expected: frozenset[str]) -> None:
        self.configs = configs
        self.expected = expected  # the segments that some row names next
        self.following: dict[str, _State] = {}
        self.other: _State | None = None  # the one that follows any other segment
        self.permitted = 0  # the rights that depend on nothing, a bit for each
        self.row: tuple[int, tuple[int, ...]] | None = None  # the first row that matches, and what it has captured
        self.fixed: tuple[Verdict | None, ...] = ()
        self.captured = sorted({index for _, _, captures in configs for index in captures})


class Rules:
    """The rows of a service, and the views of those who have asked last."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = tuple(rows)
        self._nobody = View(self._rows, None)
        self._views: dict[int, View] = {}  # by the id of the principal, which its view keeps alive

    def view(self, principal: Principal | None) -> "View":
        """Return what the rules are for a principal, None for a request without a token; raises Unauthorized."""
        if principal is None:
            return self._nobody
        view = self._views.get(id(principal))
        if view is None:
            if len(self._views) >= MAX_VIEWS:
                self._views.clear()
            view = self._views[id(principal)] = View(self._rows, principal)
        return view


class View:
    """The rules as they are for one principal, None for a request without a token."""

    def __init__(self, rows: Sequence[Row], principal: Principal | None) -> None:
        claims: Mapping[str, Any] = principal.claims if principal else {}
        roles = claims.get("roles")
        self.roles = (
            frozenset(role for role in roles if isinstance(role, str)) if isinstance(roles, list | tuple) else frozenset()
        )
        self.is_admin = "admin" in self.roles
        self.principal = principal
        self._claims = claims
        self._rows = rows
        self._own = _own_rows(claims)
        subject = principal.subject if principal else None
        self._name = None if subject is None else as_segment(subject)  # of the document that makes it a member
        patterns = [*(row.pattern for row in rows), *(row.pattern for row in self._own)]
        self._patterns = [[self._matched(element) for element in pattern] for pattern in patterns]
        self._captures = [_captured(row) for row in rows] + [()] * len(self._own)
        self._states: dict[tuple[_Config, ...], _State] = {}
        self._covered: dict[Touch, Verdict] = {}
        self._start = self._first()

    def verdict(self, touch: Touch) -> Verdict:
        """Return what a right on a path depends on, or on all paths that a container could have below it."""
        path, right, scope = touch
        if scope is not Scope.ITSELF:
            return self._verdict_below(touch)
        segments = segments_of(path)
        state = self._reached(segments)
        return state.fixed[right] or self._depending(state, right, segments)

    def permits_all(self, namespace: str, names: Sequence[bytes], rights: int) -> bool:
        """Return whether rights, as bits(), on each of some documents depend on nothing. The namespace is not the root's."""
        space = self._after(self._start, namespace, 0)
        for name in names:
            state = space
            for depth, segment in enumerate(name.decode().split("/"), 1):
                state = self._after(state, segment, depth)
            if state.permitted & rights != rights:
                return False
        return True

    def permits(self, path: str, rights: int) -> bool:
        """Return whether rights, as bits(), on a document depend on nothing. False also where verdict() is to find out."""
        state = self._start
        for segment in path.split("/")[1:] if path != "/" else ():
            following = state.following.get(segment) or (state.other if segment not in state.expected else None)
            if following is None:
                return False
            state = following
        return state.permitted & rights == rights

    def _reached(self, segments: list[str]) -> _State:
        if len(self._states) > MAX_STATES:
            self._states.clear()
            self._start = self._first()
        state = self._start
        for depth, segment in enumerate(segments):
            state = self._after(state, segment, depth)
        return state

    def _verdict_below(self, touch: Touch) -> Verdict:
        found = self._covered.get(touch)
        if found is None:
            if len(self._covered) >= MAX_COVERED:
                self._covered.clear()
            found = self._covered[touch] = _all_of(self._verdicts_below(touch))
        return found

    def _verdicts_below(self, touch: Touch) -> Iterator[Verdict]:
        """Yield a verdict for each kind of path that the touch is about."""
        path, right, scope = touch
        word = segments_of(path)
        state = self._reached(word)
        if scope is Scope.ADDED:
            kind = POST if right is Right.APPEND else right
            for segment in (OTHER, *filter(_is_assigned, state.expected)):
                yield self._depending(self._after(state, segment, len(word)), kind, [*word, segment])
            return
        if not word:
            yield self._depending(state, right, word)  # everything: the root document too
        steps, seen = 0, set()
        level = [(state, word)]
        # One level at least: the entity-tag of a container that can have nothing below it tells of its namespace all the same.
        for depth in range(len(word), max(MAX_SEGMENTS, len(word) + 1)):
            following: list[tuple[_State, list[str]]] = []
            for state, before in level:
                for segment in (OTHER, *state.expected):
                    if segment == "_" and not depth:  # the service's own
                        continue
                    steps += 1 + len(state.configs)
                    after, word = self._after(state, segment, depth), [*before, segment]
                    key = (after.configs, tuple(word[index] for index in after.captured))
                    if key in seen:
                        continue
                    seen.add(key)
                    verdict = self._depending(after, right, word)
                    steps += sum(map(len, verdict.clauses))
                    yield REFUSED if steps > MAX_STEPS else verdict
                    following.append((after, word))
            level = following

    # The automaton

    def _matched(self, element: Element) -> _Matched:
        match element.kind:
            case Kind.LITERAL:
                return frozenset({element.text})
            case Kind.CLAIM:
                return claim_segments(self._claims, element.text)
            case Kind.MANY:
                return _MANY
        return None

    def _first(self) -> _State:
        return self._state([config for row in range(len(self._patterns)) for config in self._closure(row, 0, ())])

    def _after(self, state: _State, segment: str, depth: int) -> _State:
        """Return the state after one more segment, the one with index `depth` of the path."""
        if segment not in state.expected:
            if state.other is None:
                state.other = self._state(self._moved(state, OTHER, depth))
            return state.other
        found = state.following.get(segment)
        if found is None:
            found = state.following[segment] = self._state(self._moved(state, segment, depth))
        return found

    def _moved(self, state: _State, segment: str, depth: int) -> Iterator[_Config]:
        for row, at, captures in state.configs:
            pattern = self._patterns[row]
            if at == len(pattern):
                continue
            matched = pattern[at]
            if matched is _MANY:
                yield from self._closure(row, at, captures)
            elif matched is None or segment in matched:
                yield from self._closure(row, at + 1, (*captures, depth) if at in self._captures[row] else captures)

    def _closure(self, row: int, at: int, captures: tuple[int, ...]) -> Iterator[_Config]:
        """Yield a config, and those that it is without another segment, since `**` may be none."""
        pattern = self._patterns[row]
        yield row, at, captures
        while at < len(pattern) and pattern[at] is _MANY:
            at += 1
            yield row, at, captures

    def _state(self, configs: Iterable[_Config]) -> _State:
        """Return the state with these configs. Where a row matches whatever follows, the rows after it decide nothing."""
        kept, rows = tuple(dict.fromkeys(configs)), len(self._rows)
        last = min((row for row, at, _ in kept if row < rows and self._is_last(row, at)), default=None)
        if last is not None:
            kept = tuple(
                (row, at, captures)
                for row, at, captures in kept
                if row < last or row >= rows or (row == last and self._is_last(row, at))
            )
        state = self._states.get(kept)
        if state is None:
            state = self._states[kept] = self._decided(kept)
        return state

    def _is_last(self, row: int, at: int) -> bool:
        """Whether only the `**` at the end of a row is left to match."""
        pattern = self._patterns[row]
        return at == len(pattern) - 1 and pattern[at] is _MANY

    def _decided(self, configs: tuple[_Config, ...]) -> _State:
        expected: set[str] = set()
        matching: list[_Config] = []
        for row, at, captures in configs:
            pattern = self._patterns[row]
            if at == len(pattern) or self._is_last(row, at):
                matching.append((row, at, captures))
            if at < len(pattern):
                expected |= pattern[at] or _MANY
        state = _State(configs, frozenset(expected - _MANY))
        for row, _, captures in matching:
            if row < len(self._rows):
                state.row = (row, captures)
                break
        own = [self._own[row - len(self._rows)].rights for row, _, _ in matching if row >= len(self._rows)]
        state.fixed = tuple(
            PERMITTED if any(right in rights for rights in own) else self._fixed(state.row, kind)
            for kind, right in enumerate((*Right, Right.APPEND))  # at POST, who may append otherwise may by POST
        )
        state.permitted = bits(*(right for right in Right if state.fixed[right] is PERMITTED))
        return state

    # The rights of a row

    def _fixed(self, row: tuple[int, tuple[int, ...]] | None, right: int) -> Verdict | None:
        """Return the verdict of a row as far as it does not depend on documents, None where it does."""
        if row is None:
            return REFUSED
        grant = self._rows[row[0]].grants[right]
        if grant.anyone or (grant.user and self.principal) or grant.roles & self.roles:
            return self._permitted(row[0], right, frozenset())
        return None if grant.containers and self._name is not None else REFUSED

    def _permitted(self, row: int, right: int, clauses: Clauses) -> Verdict:
        members = self._rows[row].members if right != Right.READ else ()
        allowed = ((name, claim_values(self._claims, claim)) for name, claim in members)
        return Verdict(clauses, frozenset(allowed)) if clauses or members else PERMITTED

    def _depending(self, state: _State, right: int, word: list[str]) -> Verdict:
        """Return the verdict for a path with these segments, of which OTHER is one that nobody can be a member of."""
        fixed = state.fixed[right]
        if fixed is not None:
            return fixed
        assert state.row is not None
        row, captures = state.row
        pattern = self._rows[row].pattern
        bound = {pattern[at]: word[index] for at, index in zip(self._captures[row], captures, strict=True)}
        documents = {
            document for container in self._rows[row].grants[right].containers for document in self._named(container, bound)
        }
        return self._permitted(row, right, frozenset({frozenset(documents)})) if documents else REFUSED

    def _named(self, container: Pattern, bound: dict[Element, str]) -> Iterator[str]:
        """Yield the documents of which one makes this principal a member."""
        choices = [self._choices(element, bound) for element in container]
        for segments in islice(product(*choices), MAX_MEMBERSHIPS):
            with suppress(Problem):  # the path would be too long
                yield parse_path("/".join(("", *segments, self._name or "")).encode()).text

    def _choices(self, element: Element, bound: dict[Element, str]) -> frozenset[str]:
        if element.kind is Kind.LITERAL:
            return frozenset({element.text})
        if element in bound:
            return frozenset({bound[element]}) - {OTHER}
        return claim_segments(self._claims, element.text)


def _captured(row: Row) -> tuple[int, ...]:
    """Return which elements of a row's pattern its rights name, the first of each."""
    named = {element for grant in row.grants for container in grant.containers for element in container}
    return tuple(
        sorted(row.pattern.index(element) for element in named if element.kind is not Kind.LITERAL and element in row.pattern)
    )


def _own_rows(claims: Mapping[str, Any]) -> tuple[OwnRow, ...]:
    if "allow" not in claims:
        return ()
    try:
        return parse_own_rows(claims["allow"])
    except ValueError as why:
        raise Unauthorized(f"the claim allow of the token is invalid: {why}", error="invalid_token") from None


# A name that POST can assign: changelog.appended_name().
_is_assigned = re.compile(r"[0-9]+[a-z][0-9]+").fullmatch


def _all_of(verdicts: Iterator[Verdict]) -> Verdict:
    """Return what all of some verdicts depend on."""
    clauses: set[frozenset[str]] = set()
    members: set[tuple[str, tuple[Any, ...]]] = set()
    for verdict in verdicts:
        clauses |= verdict.clauses
        members |= verdict.members
        if frozenset() in clauses:
            return REFUSED
    return Verdict(frozenset(clauses), frozenset(members)) if clauses or members else PERMITTED
