"""The commands that ask a question of the documents below a container.

`Find` looks at the container's documents, a piece in each script, and other requests are served in between. It keeps the names
of one page, the best ones if they are sorted, or only a number. `ReadFound` then reads these documents.
"""

from typing import Generic, NamedTuple, TypeAlias, TypeVar

from kvstore.commands.base import (
    MAX_PAGE_BYTES,
    Again,
    Arguments,
    Command,
    Later,
    RedisReply,
    Turns,
    below,
    in_turns,
)
from kvstore.commands.conditions import judged_by_redis, members_of, ranked_by_redis, read_member
from kvstore.commands.containers import Item, List, Listing, Unchanged
from kvstore.commands.rights import Touches
from kvstore.commands.scripts import FIND, READ_FOUND, Script
from kvstore.core import patch
from kvstore.core.codec import decode
from kvstore.core.paths import Path
from kvstore.core.query import MISSING, Order, Question, SortKey, find, select, sort_key

PIECE = 2000  # documents that one script looks at, fewer if it reads many members of each: some 6 ms in Redis
PIECE_BYTES = 256 * 1024  # of what it returns
MAX_READ = 500  # documents that one script reads
TURN_WEIGHT = 64 * 1024  # of what is looked at in one turn of the event loop: some ms
LARGE = 32 * 1024  # the weight of a document that is worth turns of its own
LOOKED_AT_WEIGHT = 40  # of a document that Redis has looked at
PAGE_WEIGHT = 8 * 1024 * 1024  # of what is looked at for a page that is not sorted: some 200,000 documents, in half a second
MAX_SORTED_BYTES = MAX_PAGE_BYTES  # of the values that a sort keeps, and of the documents in its page


class Counted(NamedTuple):
    """So many documents match. `tag` is the container's entity-tag, None if it changed meanwhile, and of the root container."""

    documents: int
    tag: str | None


class Position(NamedTuple):
    """A place in a sorted listing: the values that a document is sorted by, and its name."""

    values: tuple[patch.Tree, ...]
    name: str


class Match(NamedTuple):
    """A document that is wanted. Where documents are sorted, `key` and `position` say where it comes."""

    name: str
    key: SortKey = ()
    position: Position | None = None


class Progress(NamedTuple):
    """What a query has found so far: the documents of a page, the best ones if they are sorted, or a number.

    `bound` is the key of the best one that was left out, None if none was. `weight` is that of what was looked at.
    """

    matches: tuple[Match, ...] = ()
    bound: SortKey | None = None
    counted: int = 0
    weight: int = 0


NOTHING = Progress()
Outcome: TypeAlias = Listing | Counted | Unchanged
Answer = TypeVar("Answer")


class Find(NamedTuple):
    """Ask a question of the documents below a container: Listing, Counted or Unchanged.

    `listing` says which documents, and where the next piece starts; its limit is that of a page. A sorted page starts after
    `position`. `tag` is the container's entity-tag when it was read first, "" if it has changed since. With `has_begun` it is
    a later page than the first one.
    """

    listing: List
    question: Question
    position: Position | None = None
    tag: str | None = None
    so_far: Progress = NOTHING
    has_begun: bool = False
    script: Script[Outcome] = FIND

    @property
    def container(self) -> Path:
        """The container that is asked about."""
        return self.listing.container

    @property
    def keys(self) -> tuple[str, ...]:
        return self.listing.keys

    @property
    def touches(self) -> Touches:
        return self.listing.touches

    @property
    def arguments(self) -> Arguments:
        listing, question, members = self.listing, self.question, members_of(self.question) or ()
        judged, is_all = judged_by_redis(question.where, members)
        is_page = not (question.counts or question.sort)
        mode = "whole" if members_of(question) is None else "count" if question.counts and is_all else "members"
        return (
            *below(listing.container),
            listing.after,
            "desc" if listing.descending else "asc",
            "recursive" if listing.recursive else "direct",
            listing.none_match,
            max(1, PIECE // (1 + len(members) // 4)),
            listing.limit - len(self.so_far.matches) if is_page else PIECE,
            PIECE_BYTES,
            mode,
            len(members),
            *members,
            *(word for words in judged + self._ranked(members) for word in words),
        )

    def _ranked(self, members: tuple[str, ...]) -> list[Arguments]:
        """Return what Redis leaves out since it comes before the page of a sort, or after the best ones that are kept."""
        if not self.question.sort or len(self.question.sort[0].member) > 1:
            return []
        order, matches = self.question.sort[0], self.so_far.matches
        ranked: list[Arguments] = []
        if self.so_far.bound is not None and matches and matches[-1].position:
            worst, op = matches[-1].position.values[0], "gte" if order.descending else "lte"
            ranked += ranked_by_redis(order.member[0], members, worst, op=op)
        if self.position:
            op = "lte" if order.descending else "gte"
            ranked += ranked_by_redis(order.member[0], members, self.position.values[0], op=op)
        return ranked

    def outcome(self, reply: RedisReply) -> Outcome | Again[Outcome] | Later[Outcome]:
        if reply[0] == b"again":
            return Again(self, has_written=False)
        tag = reply[1].decode()
        if reply[0] == b"same":
            return Unchanged(tag)
        return in_turns(self._look(tag, reply))

    def _look(self, tag: str, reply: RedisReply) -> Turns[Outcome | Again[Outcome]]:
        """Look at the documents of a piece."""
        _, _, last, looked_at, counted, rows = reply
        members, turn, weight = members_of(self.question), 0, self.so_far.weight + LOOKED_AT_WEIGHT * looked_at
        matching: list[Match] = []
        after = self.position and self._key(self.position)
        for row in rows:
            size = _weigh(row)
            turn, weight = turn + size, weight + size
            if turn > TURN_WEIGHT:
                turn = size
                yield
            if size > LARGE:
                document = yield from self._matching_large(row, members)
            else:
                document = _document(row, members, self.question)
                if not self.question.is_met(document):
                    continue
            if document is MISSING:
                continue
            if not self.question.sort:
                matching.append(Match(row[0].decode()))
                continue
            position = Position(tuple([_sorted_by(document, order) for order in self.question.sort]), row[0].decode())
            key = self._key(position)
            if (after is None or after < key) and (self.so_far.bound is None or key < self.so_far.bound):
                matching.append(Match(position.name, key, position))
        found = self._with(matching)._replace(counted=self.so_far.counted + counted + len(matching), weight=weight)
        now = self._replace(tag=tag if self.tag in (None, tag) else "", so_far=found)
        return now._next(last and last.decode())

    def _matching_large(self, row: RedisReply, members: tuple[str, ...] | None) -> Turns[patch.Tree]:
        """Return the tree of a large document that matches, MISSING for another one; in turns of its own."""
        yield
        document = _document(row, members, self.question)
        yield
        is_met = yield from self.question.matches(document)
        yield
        return document if is_met else MISSING

    def _with(self, matching: list[Match]) -> Progress:
        """Return what was found, with more documents."""
        found = self.so_far
        if self.question.counts:
            return found
        if not self.question.sort:
            return found._replace(matches=found.matches + tuple(matching))
        matches = sorted([*found.matches, *matching], key=_key_of)
        left = MAX_SORTED_BYTES
        for at, each in enumerate(matches):
            left -= sum(map(_size, each.position.values if each.position else ()))
            if at == self.listing.limit or (left < 0 and at > 0):
                return found._replace(matches=tuple(matches[:at]), bound=each.key)
        return found._replace(matches=tuple(matches))

    def _key(self, position: Position) -> SortKey:
        return sort_key(self.question.sort, position.values, position.name, descending=self.listing.descending)

    def _next(self, last: str | None) -> Outcome | Again[Outcome]:
        """Return the outcome, or what is asked next. More documents come behind `last`; none if that is None."""
        question, found = self.question, self.so_far
        going_on = self._replace(listing=self.listing._replace(after=last or "", none_match=""))
        is_full = len(found.matches) >= self.listing.limit or found.weight > PAGE_WEIGHT
        if last is not None and (question.counts or question.sort or not is_full):
            return Again(going_on, has_written=False)
        if question.counts:
            return Counted(found.counted, self.shown_tag)
        more = None if last is None and found.bound is None else going_on.behind(found.matches[-1] if found.bound else None)
        if not found.matches:
            return Listing([], self.shown_tag, more)
        return Again(ReadFound(going_on, found.matches, more), has_written=False)

    @property
    def shown_tag(self) -> str | None:
        """The entity-tag of the response: none if the container has changed, and of the root container."""
        return (self.tag or None) if self.container.text != "/" else None

    def behind(self, match: Match | None) -> "Find":
        """Return the question for the next page: what comes behind a document, or where this piece starts."""
        after = self.listing.after if match is None else "" if match.position else match.name
        position = match.position if match else None
        listing = self.listing._replace(after=after)
        return self._replace(listing=listing, position=position, tag=None, so_far=NOTHING, has_begun=True)


class ReadFound(NamedTuple):
    """Read documents that a query has found: Listing. A document that has changed since is shown only if it still matches.

    `left` are those that are still to be read, `more` asks for the next page.
    """

    find: Find
    left: tuple[Match, ...]
    more: Find | None
    items: tuple[Item, ...] = ()
    bytes: int = 0
    script: Script[Listing] = READ_FOUND

    @property
    def keys(self) -> tuple[str, ...]:
        return self.find.keys

    @property
    def arguments(self) -> Arguments:
        members = self._members
        return (
            *below(self.find.container),
            "values" if self.find.listing.with_values else "keys",
            PIECE_BYTES,
            len(members),
            *members,
            *(match.name for match in self.left[:MAX_READ]),
        )

    @property
    def _members(self) -> tuple[str, ...]:
        """The members that are read of each document, all of them if there is none."""
        question = self.find.question
        if not question.fields or not self.find.listing.with_values:
            return ()
        return members_of(question, fields=True) or ()

    def outcome(self, reply: RedisReply) -> Listing | Again[Listing] | Later[Listing]:
        return in_turns(self._read(reply))

    def _read(self, reply: RedisReply) -> Turns[Listing | Again[Listing]]:
        tag, now_ms, raws = reply[0].decode(), reply[1] and int(reply[1]), reply[2]
        now = self if tag == self.find.tag else self._replace(find=self.find._replace(tag=""))
        items, turn = list(self.items), 0
        for raw in raws:
            size = 0 if raw == 1 else _weigh(raw[1])
            turn += size
            if turn > TURN_WEIGHT:
                turn = size
                yield
            item = None if raw == 1 else (yield from now._item(raw, now_ms, is_large=size > LARGE))
            if item is not None:
                items.append(item)
        size = self.bytes + sum(len(item.document.text) for item in items[len(self.items) :] if item.document)
        left = self.left[len(raws) :]
        if left and size <= MAX_PAGE_BYTES:
            return Again(now._replace(left=left, items=tuple(items), bytes=size), has_written=False)
        return Listing(items, now.find.shown_tag, self.find.behind(self.left[len(raws) - 1]) if left else self.more)

    def _item(self, raw: RedisReply, now_ms: int | None, *, is_large: bool) -> Turns[Item | None]:
        """Return an item as it is shown, None for a document that does not match any more."""
        question, item = self.find.question, self.find.listing.read_item(*raw, now_ms=now_ms)
        assert item.document is not None
        must_match = question.is_selective and not self.find.tag
        if not self.find.listing.with_values or not (must_match or question.fields):
            return item
        if is_large:
            yield
        document = patch.load(item.document.text)
        if must_match and not (yield from question.matches(document)):
            return None
        if not question.fields:
            return item
        if is_large:
            yield
        return item._replace(document=item.document._replace(text=patch.dump(select(document, question.fields))))


def _document(row: RedisReply, members: tuple[str, ...] | None, question: Question) -> patch.Tree:
    """Return the tree of the document in a row of find.lua, or what a question looks at of it; MISSING if it cannot match."""
    if len(row) > 1 and type(row[1]) is list:
        flat = row[1]
        if question.search is not None and _lacks(flat, question.search):
            return MISSING
        return patch.load(decode(flat).text)
    assert members is not None
    return {name: read_member(text) for name, text in zip(members, row[1:], strict=True) if text is not None}


def _lacks(flat: list[bytes], search: str) -> bool:
    """Return whether it is plain to see that no string in a hash contains a text: without escapes it is its own JSON text."""
    raw = b"\n".join(flat)
    if b"\\" in raw:
        return False
    try:
        return search.casefold() not in raw.decode().casefold()
    except UnicodeDecodeError:
        return False


def _weigh(row: list[RedisReply]) -> int:
    """Return about how much work it is to read a row of find.lua, or the fields of a hash; as base.weigh()."""
    if len(row) > 1 and type(row[1]) is list:
        row = row[1]
    return 32 * len(row) + sum([len(part) for part in row if part])


def _key_of(match: Match) -> SortKey:
    return match.key


class Paused(NamedTuple, Generic[Answer]):
    """A piece of a query was read; `command` is what comes next."""

    command: Command[Answer]


class Piece(NamedTuple, Generic[Answer]):
    """The next script of a query, and nothing that follows it: Paused, or the query's outcome."""

    command: Command[Answer]

    @property
    def script(self) -> Script[Answer | Paused[Answer]]:
        return self.command.script

    @property
    def keys(self) -> tuple[str, ...]:
        return self.command.keys

    @property
    def arguments(self) -> Arguments:
        return self.command.arguments

    def outcome(self, reply: RedisReply) -> Answer | Paused[Answer] | Later[Answer | Paused[Answer]]:
        return _paused(self.command.outcome(reply))


def _paused(outcome: Answer | Again[Answer] | Later[Answer]) -> Answer | Paused[Answer] | Later[Answer | Paused[Answer]]:
    if isinstance(outcome, Later):
        resume = outcome.resume
        return Later(lambda: _paused(resume()))
    return Paused(outcome.command) if isinstance(outcome, Again) else outcome


def _sorted_by(document: patch.Tree, order: Order) -> patch.Tree:
    """Return the value that a document is sorted by. Arrays are all alike, and so are objects."""
    value = find(document, order.member)
    return type(value)() if type(value) in (list, dict) else value


def _size(value: patch.Tree) -> int:
    return len(value) if isinstance(value, str) else 0
