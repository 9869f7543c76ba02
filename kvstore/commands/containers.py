"""Commands on a container: list what is below it, or delete all of it."""

from typing import Any, NamedTuple

from kvstore.commands.base import (
    MAX_PAGE_BYTES,
    Again,
    Arguments,
    Found,
    Later,
    RecordReply,
    RedisReply,
    Turns,
    below,
    each_read,
    found_in,
    in_turns,
)
from kvstore.commands.jobs import read_mark
from kvstore.commands.rights import Right, Touches, everything_below
from kvstore.commands.scripts import DELETE_RECURSIVE, INSPECT_NAMESPACES, LIST, Script
from kvstore.commands.takers import Taker, read_takers, takers_key
from kvstore.core.paths import Path, parse_path

MAX_DELETED_AT_ONCE = 1000  # about 10 ms in Redis


class Item(NamedTuple):
    """An item of a listing: a document, whose `text` is empty if no values were asked for; or a container, without `document`.

    `state` (`ready`, `leased` or `delayed`) and `attempts` are those of a job; `state` is "" if the container is not a queue.
    """

    name: str
    document: Found | None
    state: str = ""
    attempts: int = 0


class Listing(NamedTuple):
    """A page of a listing. `tag` is None for the root container, which has none; `more` is the command for the next page.

    That is a List, or a Query (queries.py) where some documents were asked for. `takers` wait for a job.
    """

    items: list[Item]
    tag: str | None
    more: Any
    takers: tuple[Taker, ...] = ()


class Unchanged(NamedTuple):
    """If-None-Match names the container's entity-tag."""

    tag: str


class DeletedRecursive(NamedTuple):
    """So many documents below a container were deleted."""

    documents: int


class List(NamedTuple):
    """List what is below a container, at most `limit` items: Listing or Unchanged."""

    container: Path
    after: str
    limit: int
    descending: bool
    with_values: bool
    recursive: bool
    none_match: str
    most_bytes: int = MAX_PAGE_BYTES  # of values
    script: Script[Listing | Unchanged] = LIST

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.container.keys, takers_key(self.container))

    @property
    def touches(self) -> Touches:
        return everything_below(self.container, Right.READ)

    @property
    def arguments(self) -> Arguments:
        return (
            *below(self.container),
            self.after,
            self.limit,
            "desc" if self.descending else "asc",
            "values" if self.with_values else "keys",
            "recursive" if self.recursive else "direct",
            self.most_bytes,
            self.none_match,
        )

    def outcome(self, reply: RedisReply) -> Listing | Unchanged | Again[Listing | Unchanged] | Later[Listing | Unchanged]:
        if reply[0] == b"again":
            return Again(self, has_written=False)
        tag = reply[1].decode()
        if reply[0] == b"same":
            return Unchanged(tag)
        return in_turns(self._listed(tag, reply))

    def _listed(self, tag: str, reply: RedisReply) -> Turns[Listing | Again[Listing]]:
        now_ms = reply[4] and int(reply[4])
        items = yield from each_read(reply[3], lambda parts: self.read_item(*parts, now_ms=now_ms))
        more = self._replace(after=items[-1].name, none_match="") if reply[2] else None
        if self.container.text != "/":
            return Listing(items, tag, more, read_takers(reply[5]))
        listing = Listing(items, None, more)
        return DropEmptyNamespaces(listing, [item.name for item in items if item.document is None]).next()

    def read_item(self, name: bytes, *document: RedisReply, now_ms: int | None) -> Item:
        """Return the item that is so in the script's reply; `now_ms` is None where the container is no queue."""
        if not document:
            return Item(name.decode(), None)
        found = found_in(document)
        item = Item(name.decode(), found if self.with_values else found._replace(text=b""))
        if now_ms is None or self.recursive:
            return item
        mark = read_mark(document[0])
        return item._replace(state=mark.state(now_ms), attempts=mark.attempts)


class DropEmptyNamespaces(NamedTuple):
    """Remove empty namespaces from a listing of the root: Listing. `names` are those left to look into, with slashes."""

    listing: Listing
    names: list[str]
    script: Script[Listing] = INSPECT_NAMESPACES

    @property
    def container(self) -> Path:
        return parse_path(b"/" + self.names[0].encode())

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> Arguments:
        others = [parse_path(b"/" + name.encode()).keys.log for name in self.names[1:]]
        return (below(self.container)[0], *others)

    def outcome(self, reply: RedisReply) -> Listing | Again[Listing]:
        words = dict(zip(self.names, reply, strict=True))
        left = [item for item in self.listing.items if words.get(item.name) != b"none"]
        unknown = [name for name, word in words.items() if word == b"unknown"]
        return DropEmptyNamespaces(self.listing._replace(items=left), unknown).next()

    def next(self) -> Listing | Again[Listing]:
        """Return the look into the namespaces that are left, or the listing if there are none."""
        return Again(self, has_written=False) if self.names else self.listing


class DeleteRecursive(NamedTuple):
    """Delete all documents below a container, some in each script: DeletedRecursive.

    With `once`, the total is counted in Redis and recorded for the request's Idempotency-Key.
    """

    container: Path
    once: bool
    deleted: int = 0
    script: Script[DeletedRecursive] = DELETE_RECURSIVE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def touches(self) -> Touches:
        return everything_below(self.container, Right.WRITE)

    @property
    def arguments(self) -> Arguments:
        return (*below(self.container), MAX_DELETED_AT_ONCE)

    def outcome(self, reply: RedisReply) -> DeletedRecursive | Again[DeletedRecursive]:
        if reply[0] == b"deleted below":  # a kept reply
            return DeletedRecursive(int(reply[1]))
        deleted = reply[1] if self.once else self.deleted + reply[1]
        if reply[2]:
            return Again(self._replace(deleted=deleted))
        outcome = DeletedRecursive(deleted)
        return Again(RecordReply(self.keys, ("deleted below", str(deleted)), outcome)) if self.once else outcome
