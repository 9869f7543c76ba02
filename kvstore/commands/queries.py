"""The command that asks a question of the documents below a container.

It reads the container as a listing does, a piece in each script, and other requests are served in between. Of what it has read
it keeps the documents of one page, the best ones if they are sorted, or only their number.
"""

import re
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from kvstore.commands.base import Again, Arguments, Command, Later, RedisReply, Turns, in_turns, weigh
from kvstore.commands.containers import Item, List, Listing, Unchanged
from kvstore.commands.rights import Touches
from kvstore.commands.scripts import LIST, Script
from kvstore.core import patch
from kvstore.core.paths import Path
from kvstore.core.query import MISSING, Condition, Order, Question, SortKey, find, select, sort_key

PIECE = 500  # documents that one script reads
PIECE_BYTES = 256 * 1024  # of their values: at most some 10 ms in Redis
TURN_WEIGHT = 64 * 1024  # of what is looked at in one turn of the event loop: at most some 15 ms
LARGE = 32 * 1024  # the weight of a document that is worth turns of its own
PAGE_WEIGHT = 8 * 1024 * 1024  # of what is looked at for a page that is not sorted: some 10,000 documents, in half a second
MAX_SORTED_BYTES = 4 * 1024 * 1024  # of the documents that a sort keeps


class Counted(NamedTuple):
    """So many documents match. `tag` is the container's entity-tag, None if it changed meanwhile, and of the root container."""

    documents: int
    tag: str | None


class Position(NamedTuple):
    """A place in a sorted listing: the values that a document is sorted by, and its name."""

    values: tuple[patch.Tree, ...]
    name: str


class Kept(NamedTuple):
    """A document that a sort keeps. `size` is about the bytes that it takes."""

    key: SortKey
    position: Position
    item: Item
    size: int


class Progress(NamedTuple):
    """What a query has found so far: a page of items, or `kept`, the best ones, or a number.

    `bound` is the key of the best one that was not kept, None if all were. `weight` is that of what was looked at.
    """

    items: tuple[Item, ...] = ()
    kept: tuple[Kept, ...] = ()
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
    script: Script[Outcome] = LIST

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
        return (*self._piece.arguments, *_for_redis(self.question))

    @property
    def _piece(self) -> List:
        """What the next script reads. The first one reads a page, which may be enough."""
        listing, question = self.listing, self.question
        is_all = question.counts or bool(question.sort)
        return listing._replace(
            limit=PIECE if is_all or self.so_far.weight else min(PIECE, listing.limit),
            with_values=question.needs_values or (listing.with_values and not question.counts),
            most_bytes=PIECE_BYTES,
        )

    def outcome(self, reply: RedisReply) -> Outcome | Again[Outcome] | Later[Outcome]:
        if reply[0] == b"again":
            return Again(self, has_written=False)
        tag = reply[1].decode()
        if reply[0] == b"same":
            return Unchanged(tag)
        return in_turns(self._read(tag, reply))

    def _read(self, tag: str, reply: RedisReply) -> Turns[Outcome | Again[Outcome]]:
        """Look at the documents of a piece, until a page is full."""
        _, _, has_more, raw_items, ms, left_out, last = reply
        now_ms, piece, turn = ms and int(ms), self._piece, 0
        found = self.so_far._replace(weight=self.so_far.weight + 1 + left_out * LEFT_OUT_WEIGHT)
        matching: list[tuple[Item, patch.Tree]] = []
        for at, raw in enumerate(raw_items):
            if self._is_full(len(matching)):
                has_more, last = True, raw_items[at - 1][0]
                break
            weight = weigh(raw)
            found, turn = found._replace(weight=found.weight + weight), turn + weight
            if turn > TURN_WEIGHT:
                turn = weight
                yield
            item = piece.read_item(*raw, now_ms=now_ms)
            if item.document is None:  # a container
                continue
            tree = (yield from self._matching(item, is_large=weight > LARGE)) if self.question.needs_values else None
            if tree is not MISSING:
                matching.append((item if self.question.sort else self._shown(item, tree), tree))
        now = self._replace(tag=tag if self.tag in (None, tag) else "", so_far=self._with(found, matching))
        return now._next(last.decode() if has_more else None)

    def _matching(self, item: Item, *, is_large: bool) -> Turns[patch.Tree]:
        """Return the tree of a document that matches; MISSING for another one."""
        assert item.document is not None
        if is_large:
            yield
        tree = patch.load(item.document.text)
        matching = self.question.matches(tree)
        while True:
            if is_large:
                yield
            try:
                next(matching)
            except StopIteration as stop:
                return tree if stop.value else MISSING

    def _is_full(self, matching: int) -> bool:
        question = self.question
        return not (question.counts or question.sort) and len(self.so_far.items) + matching >= self.listing.limit

    def _with(self, found: Progress, matching: list[tuple[Item, patch.Tree]]) -> Progress:
        """Return what was found, with more documents."""
        if self.question.counts:
            return found._replace(counted=found.counted + len(matching))
        if not self.question.sort:
            return found._replace(items=found.items + tuple(item for item, _ in matching))
        after = self.position and self._key(self.position)
        kept, bound = list(found.kept), found.bound
        for item, tree in matching:
            position = Position(tuple(_sorted_by(tree, order) for order in self.question.sort), item.name)
            key = self._key(position)
            if (after is None or after < key) and (bound is None or key < bound):
                shown = self._shown(item, tree)
                size = len(shown.document.text if shown.document else b"") + sum(map(_size, position.values))
                kept.append(Kept(key, position, shown, size))
        kept.sort(key=lambda each: each.key)
        left = MAX_SORTED_BYTES
        for at, each in enumerate(kept):
            left -= each.size
            if at == self.listing.limit or (left < 0 and at > 0):
                return found._replace(kept=tuple(kept[:at]), bound=each.key)
        return found._replace(kept=tuple(kept), bound=bound)

    def _key(self, position: Position) -> SortKey:
        return sort_key(self.question.sort, position.values, position.name, descending=self.listing.descending)

    def _shown(self, item: Item, tree: patch.Tree) -> Item:
        """Return a document as it is shown."""
        assert item.document is not None
        if not self.listing.with_values:
            return item._replace(document=item.document._replace(text=b""))
        if not self.question.fields:
            return item
        return item._replace(document=item.document._replace(text=patch.dump(select(tree, self.question.fields))))

    def _next(self, last: str | None) -> Outcome | Again[Outcome]:
        """Return the outcome, or what is read next: behind `last`, None where nothing is left."""
        question, found = self.question, self.so_far
        tag = (self.tag or None) if self.container.text != "/" else None
        following = self._replace(tag=None, so_far=NOTHING, has_begun=True)
        if last is not None:
            going_on = self.listing._replace(after=last, none_match="")
            if question.counts or question.sort or not (self._is_full(0) or found.weight > PAGE_WEIGHT):
                return Again(self._replace(listing=going_on), has_written=False)
            return Listing(list(found.items), tag, following._replace(listing=going_on))
        if question.counts:
            return Counted(found.counted, tag)
        if not question.sort:
            return Listing(list(found.items), tag, None)
        items = [each.item for each in found.kept]
        if found.bound is None:
            return Listing(items, tag, None)
        from_the_start = self.listing._replace(after="", none_match="")
        return Listing(items, tag, following._replace(listing=from_the_start, position=found.kept[-1].position))


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


def _for_redis(question: Question) -> Arguments:
    """Return the conditions that Redis can tell most documents by, as list.lua takes them.

    Those are conditions on members of the outermost object that no other client's hash shows in another way, with values that
    few texts mean. What Redis does not leave out is judged here all the same.
    """
    arguments: list[str | int] = []
    judged = 0
    for condition in question.where:
        if len(condition.member) > 1 or not _is_plain(condition.member[0]) or condition.member[0] == "ttl":
            continue
        if told := _told_by(condition):
            arguments += [condition.member[0], *told]
            judged += 1
            if judged == MAX_JUDGED:
                break
    return tuple(arguments)


def _told_by(condition: Condition) -> list[str | int]:
    """Return what Redis tells by whether a document may meet a condition; nothing if it cannot."""
    op, wanted = condition.op, condition.value
    if patch.is_number(wanted) and op in RANGES:
        number = float(wanted) if abs(wanted if isinstance(wanted, int) else float(wanted)) < MAX_BOUND else None
        if number is None:
            return []
        lowest, highest = RANGES[op]
        return ["range", lowest or repr(number), highest or repr(number)]
    texts: list[str] = []
    for value in wanted if op == "in" else [wanted] if op == "eq" else []:
        if value is None or isinstance(value, bool):
            texts.append(patch.dump(value).decode())
        elif type(value) is str and not _ESCAPED.search(value):
            texts += [f'"{value}"', value]  # another client may have written it without quotes
        else:
            return []
    return ["texts", len(texts), *texts] if texts else []


MAX_JUDGED = 4  # conditions: each takes Redis a microsecond for each document
LEFT_OUT_WEIGHT = 40  # of a document that Redis has left out
MAX_BOUND = 1e300
_LEAST, _MOST = "-1e999", "1e999"
RANGES = {"eq": ("", ""), "lt": (_LEAST, ""), "lte": (_LEAST, ""), "gt": ("", _MOST), "gte": ("", _MOST)}
_is_plain = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*").fullmatch
_ESCAPED = re.compile(r'["\\\x00-\x1f]')


def _sorted_by(document: patch.Tree, order: Order) -> patch.Tree:
    """Return the value that a document is sorted by. Arrays are all alike, and so are objects."""
    value = find(document, order.member)
    return type(value)() if type(value) in (list, dict) else value


def _size(value: patch.Tree) -> int:
    return len(value) if isinstance(value, str) else 0
