"""Who waits for a job at a queue. Redis has an entry of each, beside the queue, and a listing of the container shows it.

Nothing here does I/O; `live/takers.py` and `tasks/worker.py` register those who wait.
"""

import re
from operator import attrgetter
from typing import NamedTuple

from kvstore.commands.base import Arguments, RedisReply
from kvstore.commands.scripts import REGISTER_TAKER, REMOVE_TAKER, Script, number_in
from kvstore.core.codec import value_text
from kvstore.core.paths import Path, own_key

MAX_TAKERS = number_in("list", "MOST_TAKERS")  # of one container: a listing has all of them
MAX_NAME_BYTES = 1024  # what a taker says that it is
REGISTER_AFTER_S = 0.1  # a wait that ends sooner costs nothing, and nobody could have read of it


class Taker(NamedTuple):
    """Somebody who waits for a job: since when, until when at the latest, and who it says that it is, a JSON text."""

    since_ms: int
    until_ms: int
    name: bytes


class RegisterTaker(NamedTuple):
    """Register somebody who has waited for `waited_ms`, and waits for at most `left_ms` more: the outcome is its entry.

    `id` tells it from others who say that they are the same. With the `entry` that it has, that is renewed. The outcome is
    None if the queue has as many as it may.
    """

    container: Path
    id: str
    name: bytes
    waited_ms: int
    left_ms: int
    entry: bytes | None = None
    script: Script[bytes | None] = REGISTER_TAKER

    @property
    def keys(self) -> tuple[str, ...]:
        return (takers_key(self.container),)

    @property
    def arguments(self) -> Arguments:
        return (self.left_ms, MAX_TAKERS, self.entry or b"", self.waited_ms, b"%b %b" % (self.id.encode(), self.name))

    def outcome(self, reply: RedisReply) -> bytes | None:
        entry: bytes | None = reply
        return entry


class RemoveTaker(NamedTuple):
    """Remove the entry of somebody who waits no longer."""

    container: Path
    entry: bytes
    script: Script[None] = REMOVE_TAKER

    @property
    def keys(self) -> tuple[str, ...]:
        return (takers_key(self.container),)

    @property
    def arguments(self) -> Arguments:
        return (self.entry,)

    def outcome(self, _: RedisReply) -> None:
        return None


def takers_key(container: Path) -> str:
    """Return the key of those who wait at a container."""
    return own_key(container, "takers:" + container.name)


_parts = re.compile(rb"(\d{1,16}) \S+ (.+)", re.DOTALL).fullmatch  # of an entry: since when, its id, its name


def read_takers(reply: list[bytes]) -> tuple[Taker, ...]:
    """Return those who wait, from entries that are each followed by its score; who has waited longest comes first."""
    takers = []
    for entry, until_ms in zip(reply[::2], reply[1::2], strict=True):
        if (found := _parts(entry)) and until_ms.isdigit():  # another client may have put anything there
            since_ms, name = found.groups()
            takers.append(Taker(int(since_ms), int(until_ms), value_text(name)))
    return tuple(sorted(takers, key=attrgetter("since_ms")))
