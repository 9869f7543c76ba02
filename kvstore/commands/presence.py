"""Commands of presence: a document that exists as long as somebody holds it.

A holder (a process, or a stream) is registered beside the document, for HOLD_S, and renews that. The document is deleted when
its last holder releases it, and expires if its holders stop renewing. Nothing here does I/O; `live/presence.py` holds.
"""

from typing import NamedTuple

from kvstore.commands.base import Again, Arguments, RedisReply, registered
from kvstore.commands.documents import Delete, Put
from kvstore.commands.rights import Right, Touch, Touches
from kvstore.commands.scripts import HOLD, RELEASE_HOLD, Script
from kvstore.core.codec import Encoded
from kvstore.core.errors import AlreadyStored
from kvstore.core.paths import Path, own_key
from kvstore.core.preconditions import NONE, Preconditions

HOLD_S = 28.0  # a document outlives a process that died by 30 s; an expiry is noticed within 2 s


class Held(NamedTuple):
    """The document exists, and is held."""


class Released(NamedTuple):
    """The document is no longer held by this holder."""


class Hold(NamedTuple):
    """Hold a document for HOLD_S: Held.

    Raises AlreadyStored if a document is stored there that nobody holds. With `renews` the stored document is not changed.
    """

    path: Path
    encoded: Encoded
    log_length: int
    holder: str = ""
    renews: bool = False
    script: Script[Held] = HOLD

    @property
    def keys(self) -> tuple[str, ...]:
        return _keys(self.path)

    @property
    def touches(self) -> Touches:
        return (Touch(self.path, Right.WRITE),)

    @property
    def arguments(self) -> Arguments:
        put = Put(self.path, self.encoded, int(HOLD_S * 1000), NONE, self.log_length)
        return (self.holder, "renew" if self.renews else "hold", *put.arguments)

    def outcome(self, reply: RedisReply) -> Held | Again[Held]:
        if reply[0] == b"taken":
            raise AlreadyStored(
                f"a document is stored at {self.path.text} that no stream holds, and holding it would delete it in the end;"
                " delete it first, or hold another path",
                path=self.path.text,
            )
        return registered(self.path, reply[1], Held())


class Release(NamedTuple):
    """Stop holding a document, and delete it if nobody else holds it: Released."""

    hold: Hold
    script: Script[Released] = RELEASE_HOLD

    @property
    def keys(self) -> tuple[str, ...]:
        return _keys(self.hold.path)

    @property
    def arguments(self) -> Arguments:
        delete = Delete(self.hold.path, Preconditions(match="*"), self.hold.log_length)
        return (self.hold.holder, *delete.arguments)

    def outcome(self, _: RedisReply) -> Released:
        return Released()


def _keys(path: Path) -> tuple[str, ...]:
    return (*path.keys, own_key(path, "holds:" + path.name))
