"""One node of a Redis Cluster: a pipelined store that hands what does not belong there back to the cluster.

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/ (ASK redirection), CLUSTER SLOTS.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from kvstore.commands.base import RedisReply
from kvstore.core.redis_url import Address
from kvstore.stores import redis_clients
from kvstore.stores.execution import Plain, Words
from kvstore.stores.pipelined import SILENT_S, PipelinedStore, settle
from kvstore.stores.redis_connection import Context, Done, MakeConnection, PendingCommand, RedisConnection, plain_command
from kvstore.stores.redis_errors import too_many_waiting
from kvstore.stores.slots import Place, SlotRange, guarded_words, parse_slots

MIN_NODES = 2  # among which what may wait is divided, while the nodes are not known


class Router(Protocol):
    """The cluster, for its nodes."""

    def route(self, pending: PendingCommand) -> None:
        """Send a packed command to the node that has its slot."""

    def redirect(self, node: "ClusterNode", pending: PendingCommand, error: str) -> bool:
        """Go on with a command that a node has refused to run; returns False if it fails."""

    def refresh(self) -> None:
        """Ask again which node has which slots, soon."""


class ClusterNode(PipelinedStore):
    """A store for the slots of one node; `place` is where it listens."""

    words = staticmethod(guarded_words)

    def __init__(
        self,
        cluster: Router,
        address: Address,
        place: Place,
        on_invalidate: Callable[[bytes | None], None] | None,
        connect: MakeConnection,
    ) -> None:
        super().__init__(address._replace(kind="single", nodes=(place,)), on_invalidate=on_invalidate, connect=connect)
        self.place = place
        self.asked_at = float("-inf")  # when it was last asked for the map
        self._cluster = cluster
        self._oldest: PendingCommand | None = None  # without a reply, as look() has found it
        self._oldest_since = 0.0
        self.divide(MIN_NODES)

    def divide(self, nodes: int) -> None:
        """Let as much wait here as one of so many nodes may have: those that do not answer leave room for the others."""
        self.max_waiting = redis_clients.MAX_WAITING // nodes
        self.max_waiting_bytes = redis_clients.MAX_WAITING_BYTES // nodes

    def pass_on(self, pending: PendingCommand) -> None:
        """Send a command that has a timer, or let it wait for the connection."""
        if self._loop is None:
            self._start()
        if self._connection is not None and self._connection.has_room:
            self._connection.send(pending)
            return
        pending.due = min(pending.due, self._loop.time() + redis_clients.PIPELINED.queue_s)
        if self._connection is not None or not self._keep(pending):
            pending.tell(pending.ended(too_many_waiting()))

    def ask(self, pending: PendingCommand) -> bool:
        """Send a packed command with ASKING before it and nothing between them; returns False without a connection."""
        if self._connection is None:
            self._send_plain(("PING",), _ignore, None)  # which opens one
            return False
        self._connection.send(plain_command(("ASKING",), _ignore, None, self._loop.time()))
        self._connection.send(pending)
        return True

    async def read_slots(self) -> tuple[SlotRange, ...]:
        """Ask the node which node has which slots; raises Problem."""
        answer: asyncio.Future[RedisReply] = asyncio.get_running_loop().create_future()
        self._send_plain(("CLUSTER", "SLOTS"), settle, answer)
        return parse_slots(await answer, self.place)

    def _send_plain(self, words: Words, done: Done[Context, Any], context: Context) -> None:
        if self._loop is None:
            self._start()
        self.pass_on(plain_command(words, done, context, self._loop.time()))

    def take_unsent(self) -> list[PendingCommand]:
        """Return the commands of others that wait for a connection, which are no longer this node's."""
        unsent = [pending for pending in self._unsent if not isinstance(pending.command, Plain)]
        self._unsent.clear()
        self._unsent_bytes = 0
        return unsent

    def look(self, now: float) -> None:
        """Note which command waits for its reply, for is_silent()."""
        oldest = self._connection.oldest if self._connection else None
        if oldest is not self._oldest:
            self._oldest, self._oldest_since = oldest, now

    def is_silent(self, now: float) -> bool:
        """Whether commands wait here and the node says nothing, or cannot be reached."""
        if self._connection is None:
            return bool(self._unsent)
        oldest = self._connection.oldest
        return oldest is not None and oldest is self._oldest and now - self._oldest_since >= SILENT_S

    @property
    def is_idle(self) -> bool:
        """Whether no command waits here."""
        return not self._unsent and (self._connection is None or self._connection.oldest is None)

    def forward(self, _: RedisConnection, pending: PendingCommand) -> None:
        """Send the next command of a request to the node that has its slot."""
        self._cluster.route(pending)

    def redirect(self, pending: PendingCommand, error: str) -> bool:
        return self._cluster.redirect(self, pending, error)

    def lost(self, connection: RedisConnection) -> None:
        super().lost(connection)
        if not self._closed:
            self._cluster.refresh()


def _ignore(_: None, outcome: object) -> None:
    """Whether a node takes ASKING shows at the command after it; where PING opens no connection, commands wait on."""
