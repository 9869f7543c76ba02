"""What no store executes, but `live/`: following a path, and waiting for a change to it."""

from collections.abc import Mapping
from typing import Generic, NamedTuple

from kvstore.commands.base import Command
from kvstore.commands.charges import Charge, StreamPlace
from kvstore.commands.guarded import Guarded
from kvstore.commands.presence import Hold
from kvstore.commands.rights import Right, Touches, everything_below, reads
from kvstore.commands.scripts import Outcome_co
from kvstore.core.paths import Path
from kvstore.core.query import Question


class LongPoll(NamedTuple, Generic[Outcome_co]):
    """Execute a command again after each change to a path, until its outcome is worth a response, for at most `wait_s`.

    The outcome is the command's. `live/long_poll.py` executes it. `charge` counts the request first, once. `taker` is who a
    take says that it is, a JSON text; None for what is no take.
    """

    command: Command[Outcome_co]
    path: Path
    wait_s: float
    charge: Charge[None] | None = None
    taker: bytes | None = None


class Follow(NamedTuple):
    """Follow a document or a container, from a position in the log (None: from a snapshot). `live/hub.py` executes it."""

    path: Path
    position: str | None  # "" where it is lost
    recursive: bool  # of a container: the snapshot has all documents below it, not only those directly below
    question: Question | None = None  # which of them: then changes are those of the same documents, also by `recursive`
    holds: tuple[Hold, ...] = ()  # documents to hold as long as the stream lives
    charge: Charge[None] | None = None  # what counts the request first
    place: StreamPlace | None = None  # among the open streams of the client, where those are limited
    permit: Guarded[None] | None = None  # what decides, at the start and from time to time, whether the stream is permitted
    expires_at_s: float | None = None  # when it ends, since the token that asked for it does

    @property
    def touches(self) -> Touches:
        reading = everything_below(self.path, Right.READ) if self.path.is_container else reads(self.path)
        return (*_touches(self.holds), *reading)


class FollowMany(NamedTuple):
    """Follow several paths on one stream. `live/follow_many.py` executes it; the stream is one to whoever counts streams.

    `follows` has a Follow for each path by its target as it was sent, each with a position of its own. The other members are
    those of the stream, as Follow has them.
    """

    follows: Mapping[str, Follow]
    holds: tuple[Hold, ...] = ()
    charge: Charge[None] | None = None
    place: StreamPlace | None = None
    permit: Guarded[None] | None = None
    expires_at_s: float | None = None

    @property
    def touches(self) -> Touches:
        return (*_touches(self.holds), *(touch for follow in self.follows.values() for touch in follow.touches))


def _touches(holds: tuple[Hold, ...]) -> Touches:
    return tuple(touch for hold in holds for touch in hold.touches)
