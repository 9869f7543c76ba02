"""Commands on what the change log says of a document, or of everything below a container: how it came to be as it is.

Nothing is shown of a document that is gone: its changes have been erased (DESIGN 45), or are told without their values.
"""

from typing import NamedTuple

from kvstore.commands.base import (
    MAX_PAGE_BYTES,
    Again,
    Arguments,
    Found,
    Later,
    Missing,
    RedisReply,
    Turns,
    below,
    each_read,
    in_turns,
    weigh,
)
from kvstore.commands.changelog import Change, changed_name, is_change, parse_entry
from kvstore.commands.rights import Right, Touches, everything_below, reads
from kvstore.commands.scripts import READ_CONTAINER_CHANGES, READ_HISTORY, Script
from kvstore.core.paths import Path


class History(NamedTuple):
    """Changes, newest first. `is_complete`: the log reaches back to the first one of the document, or of the namespace."""

    changes: list[Change]
    is_complete: bool


class ReadHistory(NamedTuple):
    """Read the last changes of a document, at most `limit`: History or Missing.

    Long ones are read by several scripts: `changes` are those that have been read, `weight` what they weigh.
    """

    path: Path
    limit: int
    position: str = ""
    changes: tuple[Change, ...] = ()
    weight: int = 0
    script: Script[History | Missing] = READ_HISTORY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return reads(self.path)

    @property
    def arguments(self) -> Arguments:
        return (self.position, self.limit - len(self.changes), MAX_PAGE_BYTES - self.weight, "")

    def outcome(self, reply: RedisReply) -> History | Missing | Again[History | Missing] | Later[History | Missing]:
        if reply[0] == b"missing":
            return Missing()
        return in_turns(self._read(*reply[1:]))

    def _read(
        self, entries: list[RedisReply], word: bytes, position: bytes | None = None
    ) -> Turns[History | Missing | Again[History | Missing]]:
        changes = yield from each_read(entries, lambda entry: _own(entry, self.path))
        found = [*self.changes]
        for change in changes:
            if change is None:  # a hash that another client has copied: what it was is of another document
                return History(found, is_complete=False)
            found.append(change)
        weight = self.weight + weigh(entries)
        if position is None or len(found) == self.limit or weight > MAX_PAGE_BYTES:
            return History(found, is_complete=word == b"all")
        return Again(self._replace(position=position.decode(), changes=tuple(found), weight=weight), has_written=False)


class ReadAt(NamedTuple):
    """Read a document as it was after one of its changes: Found or Missing. It does not say when it would have expired."""

    path: Path
    tag: str
    position: str = ""
    script: Script[Found | Missing] = READ_HISTORY

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return reads(self.path)

    @property
    def arguments(self) -> Arguments:
        return (self.position, 1, 0, self.tag)

    def outcome(self, reply: RedisReply) -> Found | Missing | Again[Found | Missing]:
        if len(reply) == 4:
            return Again(self._replace(position=reply[3].decode()), has_written=False)
        if reply[0] == b"missing" or not reply[1]:
            return Missing()
        change = _own(reply[1][0], self.path)
        if change is None or change.text is None:
            return Missing()
        return Found(change.text, change.text.startswith(b"{"), change.id, None, change.ttl_ms)


def _own(entry: RedisReply, path: Path) -> Change | None:
    """Return the change in an entry of the log, None if it is not one of this document."""
    change = parse_entry(entry) if is_change(entry) else None
    return change if change is not None and change.name == path.name else None


class ReadContainerChanges(NamedTuple):
    """Read the last changes of everything below a container, at most `limit`: History. The container is not the root."""

    container: Path
    limit: int
    position: str = ""
    changes: tuple[Change, ...] = ()
    weight: int = 0
    script: Script[History] = READ_CONTAINER_CHANGES

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.container.keys.log,)

    @property
    def touches(self) -> Touches:
        return everything_below(self.container, Right.READ)

    @property
    def arguments(self) -> Arguments:
        return (*below(self.container), self.position, self.limit - len(self.changes), MAX_PAGE_BYTES - self.weight)

    def outcome(self, reply: RedisReply) -> History | Again[History] | Later[History]:
        if reply[0] == b"again":
            return Again(self, has_written=False)
        return in_turns(self._read(*reply[1:]))

    def _read(self, entries: list[RedisReply], whole: int, position: bytes | None = None) -> Turns[History | Again[History]]:
        read = yield from each_read(entries, _change)
        changes = (*self.changes, *(change for change in read if change is not None))
        weight = self.weight + weigh(entries)
        if position is None or len(changes) == self.limit or weight > MAX_PAGE_BYTES:
            return History(_without_former(changes), is_complete=whole == 1)
        return Again(self._replace(position=position.decode(), changes=changes, weight=weight), has_written=False)


def _change(entry: RedisReply) -> Change | None:
    """Return the change in an entry of the log, or in what the script has left of it; None for an entry of another client."""
    if is_change(entry):
        return parse_entry(entry)
    change_id, fields = entry
    if len(fields) != 2 or fields[0] not in (b"put", b"post", b"patch"):
        return None
    return Change(change_id.decode(), fields[0].decode(), changed_name(entry), None, None)


def _without_former(changes: tuple[Change, ...]) -> list[Change]:
    """Return the changes, newest first, without the values that documents had before they were deleted or expired."""
    gone: set[str] = set()
    shown = []
    for change in changes:
        shown.append(change._replace(ttl_ms=None, text=None) if change.name in gone else change)
        if change.op in ("delete", "expire"):
            gone.add(change.name)
    return shown
