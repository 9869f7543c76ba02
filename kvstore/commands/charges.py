"""Count what a client asks for before it is done: requests in a window of time, and open streams."""

from collections.abc import Callable
from typing import Generic, NamedTuple

from kvstore.commands.base import Again, Arguments, Command, Outcome, RedisReply
from kvstore.commands.scripts import CHARGE, CLAIM_STREAMS, RELEASE_STREAM, Script
from kvstore.core.paths import client_key


class Charged(NamedTuple):
    """Whether so many requests are admitted, how many more were taken, how many are left, and for how many ms."""

    is_admitted: bool
    spare: int
    remaining: int
    left_ms: int


class Charge(NamedTuple, Generic[Outcome]):
    """Count `cost` requests of a client, and up to `spare` more; then the outcome is `then(charged)`.

    A quota is `quota` requests in `window_ms`. `command` is the one that `then` goes on with, for stores that treat some
    commands in a way of their own; None if it is none.
    """

    client: str
    cost: int
    quota: int
    window_ms: int
    spare: int
    then: Callable[[Charged], Outcome | Again[Outcome]]
    command: Command[Outcome] | None = None

    @property
    def script(self) -> Script[Outcome]:
        return CHARGE

    @property
    def keys(self) -> tuple[str, ...]:
        return (client_key("rate", self.client),)

    @property
    def arguments(self) -> Arguments:
        return (self.cost, self.quota, self.window_ms, self.spare)

    def outcome(self, reply: RedisReply) -> Outcome | Again[Outcome]:
        is_admitted, *numbers = reply
        return self.then(Charged(is_admitted == 1, *numbers))


class StreamPlace(NamedTuple):
    """A place among the open streams of a client, of which there are `limit`. `stream` names it in Redis."""

    client: str
    limit: int
    stream: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of the client's streams."""
        return (client_key("streams", self.client),)


class ClaimStreams(NamedTuple):
    """Claim places of one client for `claim_ms`, or keep them: the outcome is how many of them, the first ones, there are."""

    places: tuple[StreamPlace, ...]
    claim_ms: int

    @property
    def script(self) -> Script[int]:
        return CLAIM_STREAMS

    @property
    def keys(self) -> tuple[str, ...]:
        return self.places[0].keys

    @property
    def arguments(self) -> Arguments:
        return (self.places[0].limit, self.claim_ms, *(place.stream for place in self.places))

    def outcome(self, reply: RedisReply) -> int:
        count: int = reply
        return count


class ReleaseStream(NamedTuple):
    """Give up a place."""

    place: StreamPlace

    @property
    def script(self) -> Script[None]:
        return RELEASE_STREAM

    @property
    def keys(self) -> tuple[str, ...]:
        return self.place.keys

    @property
    def arguments(self) -> Arguments:
        return (self.place.stream,)

    def outcome(self, _: RedisReply) -> None:
        return None
