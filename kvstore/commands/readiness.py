"""Whether Redis answers: what a load balancer asks before it sends requests to a process. Source: EXISTS."""

from typing import NamedTuple

from kvstore.commands.base import Arguments, RedisReply
from kvstore.commands.scripts import EXISTS, Script
from kvstore.core.paths import parse_path


class Ready(NamedTuple):
    """Redis has answered."""


class CheckReadiness(NamedTuple):
    """Let Redis run a script that depends on no document. `live/readiness.py` executes it, and limits the time."""

    @property
    def script(self) -> Script[Ready]:
        return EXISTS

    @property
    def keys(self) -> tuple[str, ...]:
        return (parse_path(b"/").keys.document,)

    @property
    def arguments(self) -> Arguments:
        return ()

    def outcome(self, _: RedisReply) -> Ready:
        return Ready()
