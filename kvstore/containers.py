"""What can be asked of containers and of change logs, and what they can answer: as commands.py has it for documents."""

import re
from typing import Any, NamedTuple
from urllib.parse import unquote

from kvstore.codec import META
from kvstore.commands import Again, Command, Conclude, Found, Reply, below, found_in
from kvstore.paths import Path, own_key, parse_path
from kvstore.presence import Hold
from kvstore.scripts import CENSUS, CHANGES, DELETE_BELOW, LIST, PLACE, Script

MAX_PAGE_BYTES = 4 * 1024 * 1024  # of values in a page of a listing, or one document
_MARK = re.compile(rb"job (\d+) (\d+) (\S+) (\S+)\n")
MAX_CHANGES = 500  # read at once
MAX_CHANGED_BYTES = 256 * 1024  # of them, about: readers take these before the next come, else 1 MiB would drop them
MAX_DELETED_AT_ONCE = 1000  # some 10 ms of Redis's time


class Item(NamedTuple):
    """What a listing says of a document, or with `document` None of a container; `text` is empty where no values were asked.

    `state` and `attempts` are of a job; the state is `ready`, `leased` or `delayed`, "" where the container is no queue.
    """

    name: str
    document: Found | None
    state: str = ""
    attempts: int = 0


class Listing(NamedTuple):
    """A page of what lies below a container. `tag` None: the root has none; `more` is the command for the next page."""

    items: list[Item]
    tag: str | None
    more: "List | None"


class Unchanged(NamedTuple):
    """A container's entity-tag is one that If-None-Match names."""

    tag: str


class DeletedBelow(NamedTuple):
    """Documents below a container were deleted."""

    documents: int


class List(NamedTuple):
    """List what lies below a container, `limit` items at most: Listing or Unchanged."""

    container: Path
    after: str
    limit: int
    descending: bool
    with_values: bool
    recursive: bool
    none_match: str
    script: Script = LIST

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (
            *below(self.container),
            self.after,
            self.limit,
            "desc" if self.descending else "asc",
            "values" if self.with_values else "keys",
            "recursive" if self.recursive else "direct",
            MAX_PAGE_BYTES,
            self.none_match,
        )

    def outcome(self, reply: Reply) -> Listing | Unchanged | Again:
        if reply[0] == b"again":
            return Again(self)
        tag = reply[1].decode()
        if reply[0] == b"same":
            return Unchanged(tag)
        now_ms = reply[4] and int(reply[4])
        items = [self._item(*parts, now_ms=now_ms) for parts in reply[3]]
        more = self._replace(after=items[-1].name, none_match="") if reply[2] else None
        if self.container.text != "/":
            return Listing(items, tag, more)
        listing = Listing(items, None, more)
        return Census(listing, 0).next()

    def _item(self, name: bytes, *document: Any, now_ms: int | None) -> Item:
        if not document:
            return Item(name.decode(), None)
        found = found_in(document)
        item = Item(name.decode(), found if self.with_values else found._replace(text=b""))
        return item if now_ms is None or self.recursive else item._replace(**_as_job(document[0], now_ms))


class Mark(NamedTuple):
    """What is known of a document as a job: see read_mark in lua/prelude.lua. `lease` and `reason` are "" for none."""

    attempts: int
    held_until_ms: int
    lease: str
    reason: str

    def state(self, now_ms: int) -> str:
        """`ready`, `leased` or `delayed`."""
        if self.held_until_ms <= now_ms:
            return "ready"
        return "leased" if self.lease else "delayed"


UNMARKED = Mark(0, 0, "", "")


def read_mark(fields: list[bytes]) -> Mark:
    """The mark in a document's hash: field, value, field, value…"""
    mark = _MARK.match(fields[fields.index(META) + 1]) if META in fields[::2] else None
    if not mark:
        return UNMARKED
    lease, reason = ("" if part == b"-" else part.decode() for part in (mark[3], mark[4]))
    return Mark(int(mark[1]), int(mark[2]), lease, unquote(reason))


def _as_job(fields: list[bytes], now_ms: int) -> dict[str, Any]:
    mark = read_mark(fields)
    return {"state": mark.state(now_ms), "attempts": mark.attempts}


class Census(NamedTuple):
    """Take the namespaces in which nothing lies out of a listing of the root, from the item `at` on: Listing."""

    listing: Listing
    at: int
    script: Script = CENSUS

    @property
    def container(self) -> Path:
        return parse_path(b"/" + self.listing.items[self.at].name.encode())

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return below(self.container)[:1]

    def outcome(self, reply: Reply) -> Listing | Again:
        if reply[0] == b"again":
            return Again(self)
        if reply[0] == b"some":
            return self._replace(at=self.at + 1).next()
        del self.listing.items[self.at]
        return self.next()

    def next(self) -> Listing | Again:
        """The listing where no namespace is left to look into, else the look into the next."""
        items = self.listing.items
        for at in range(self.at, len(items)):
            if items[at].document is None:
                return Again(self._replace(at=at))
        return self.listing


class DeleteBelow(NamedTuple):
    """Delete all documents below a container, some at a time: DeletedBelow."""

    container: Path
    once: bool
    deleted: int = 0
    script: Script = DELETE_BELOW

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (*below(self.container), MAX_DELETED_AT_ONCE)

    def outcome(self, reply: Reply) -> DeletedBelow | Again:
        if reply[0] == b"deleted below":  # only where it is replayed
            return DeletedBelow(int(reply[1]))
        deleted = reply[1] if self.once else self.deleted + reply[1]
        if reply[2]:
            return Again(self._replace(deleted=deleted))
        outcome = DeletedBelow(deleted)
        return Again(Conclude(self, ("deleted below", str(deleted)), outcome)) if self.once else outcome


class At(NamedTuple):
    """Where the change log of a namespace ends, and what was stored at a path then (None: nothing)."""

    place: str
    document: Found | None


class Place(NamedTuple):
    """Where the change log of a path's namespace ends now, and the document there; of a container the place alone: At."""

    path: Path
    script: Script = PLACE

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.log,) if self.path.is_container else self.path.keys

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return ()

    def outcome(self, reply: Reply) -> At:
        return At(reply[0].decode(), found_in(reply[1]) if len(reply) > 1 and reply[1] else None)


class Logged(NamedTuple):
    """Entries of a change log, None where it has lost some.

    Also the ms until the namespace's next document expires (None: never), the place in the stream of jobs that were given
    back, whether there are more entries, and where there are none the place after which to go on, "" for the same.
    """

    entries: list[Any] | None
    next_expiry_ms: int | None = None
    freed: bytes = b""
    has_more: bool = False
    place: str = ""


class Changes(NamedTuple):
    """What has changed in a path's namespace since a place in its log: Logged.

    Its keys are those that change with what it says, for who has Redis track them.
    """

    path: Path
    place: str
    script: Script = CHANGES

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.log, own_key(self.path, "expiry"), own_key(self.path, "freed"))

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return (self.place, MAX_CHANGES, below(self.path)[0], MAX_CHANGED_BYTES)

    def outcome(self, reply: Reply) -> Logged:
        if reply[0] == b"lost":
            return Logged(None)
        place = reply[5].decode() if len(reply) > 5 else ""
        return Logged(reply[1], reply[2] if reply[2] >= 0 else None, reply[3], reply[4] is not None, place)


class Wait(NamedTuple):
    """Carry out a command again whenever a path changes, until there is something to answer with, `wait_s` at most.

    The outcome is the command's. No store executes it: `waiting.py` and `web.py` do.
    """

    command: Command
    path: Path
    wait_s: float


class Follow(NamedTuple):
    """Follow a document or a container, from a place in the log (None: from a snapshot).

    No store executes it: `live.py` and `web.py` do.
    """

    path: Path
    place: str | None
    recursive: bool  # the snapshot of a container: all documents below it, not only what lies directly below
    hold: Hold | None = None  # a document to keep there for as long as the stream lives
