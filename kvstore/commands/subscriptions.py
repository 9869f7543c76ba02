"""What no store carries out: following a path, and waiting for a change to it. `live/` does."""

from typing import Generic, NamedTuple

from kvstore.commands.base import Command
from kvstore.commands.presence import Hold
from kvstore.commands.scripts import Outcome_co
from kvstore.core.paths import Path


class LongPoll(NamedTuple, Generic[Outcome_co]):
    """Carry out a command again whenever a path changes, until there is something to answer with, `wait_s` at most.

    The outcome is the command's. No store executes it: `long_poll.py` do.
    """

    command: Command[Outcome_co]
    path: Path
    wait_s: float


class Follow(NamedTuple):
    """Follow a document or a container, from a place in the log (None: from a snapshot).

    No store executes it: `hub.py` and `flask.py` do.
    """

    path: Path
    position: str | None
    recursive: bool  # the snapshot of a container: all documents below it, not only what lies directly below
    hold: Hold | None = None  # a document to keep there for as long as the stream lives
