"""The store of a Redis Cluster, for an event loop: a pipelined connection to each node, and a map of the slots.

A command goes to the node that has the slot of its keys. A node that does not have it runs nothing, and says where to send the
command (MOVED) or that the slot is on its way (ASK, TRYAGAIN). So to send it again is no second sending. What was sent and not
answered is unknown, as with a single Redis, and is never sent again. Each node has its own connection, queue and limits: one
that hangs delays only its own namespaces. The map is read at the start, when a node says that a slot has moved, when a
connection is lost or silent, and every REFRESH_S.

While a slot moves key by key, its documents can be read one by one, and everything else waits (slots.py says why).

Source: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

import asyncio
import logging
from collections.abc import Callable

from kvstore.commands.base import Command, Outcome
from kvstore.commands.bulk import CoalescedGets, PlainGets
from kvstore.core.errors import Problem, problem_of_reply
from kvstore.core.redis_url import Address
from kvstore.stores import redis_clients
from kvstore.stores.cluster_node import ClusterNode
from kvstore.stores.execution import eval_words
from kvstore.stores.pipelined import CHECK_S, executed
from kvstore.stores.redis_connection import Context, Done, MakeConnection, PendingCommand, RedisConnection
from kvstore.stores.slots import SLOTS, Place, SlotRange, guarded_words, parse_redirection, slot_of

log = logging.getLogger("kvstore")

AT_ONCE = 2  # redirections that a command follows at once: more mean that the nodes do not agree yet
RETRY_S = (0.01, 0.02, 0.05, 0.1, 0.2)  # before a command is sent again that a node has refused; the last one repeats
REFRESH_S = 2.0  # between readings of the map: a slot may have moved of which nobody has asked, and changes there are followed
PAUSE_S = 0.1  # between readings at least, however many commands are told that a slot has moved
ASK_S = 0.5  # for a node to answer with the map, before the next one is asked
STALE = ("CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING")  # what a node says that is no longer, or not yet, the right one


class ClusterStore:
    """As PipelinedStore, for a cluster.

    `on_moved(slots)` is called with the slots that another node has now: that node does not track what was read from the first.
    """

    def __init__(
        self,
        address: Address,
        *,
        on_invalidate: Callable[[bytes | None], None] | None = None,
        on_moved: Callable[[set[int]], None] | None = None,
        connect: MakeConnection = RedisConnection,
    ) -> None:
        self._address = address
        self._connect = connect
        self._on_invalidate = on_invalidate
        self._on_moved = on_moved
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]  # known from the first submit on
        self._nodes: dict[Place, ClusterNode] = {}
        self._owners: list[ClusterNode] = []  # by slot
        self._ranges: tuple[SlotRange, ...] | None = None  # what the map was made of; None where MOVED has changed it since
        self._delayed: dict[PendingCommand, asyncio.TimerHandle] = {}  # refused, and to be sent again
        self._delayed_bytes = 0
        self._reading: asyncio.Task[None] | None = None  # of the map
        self._is_stale = False
        self._read_at = float("-inf")
        self._retired: set[ClusterNode] = set()  # nodes without slots that still have commands
        self._closing: set[asyncio.Task[None]] = set()
        self._check: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def is_tracking(self) -> bool:
        """Whether every node says which keys change."""
        return all(node.is_tracking for node in self._nodes.values())

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """As PipelinedStore.submit."""
        if self._loop is None:
            self._start()
        self._owners[slot_of(command.keys[0])].submit(command, done, context)

    def flush(self) -> None:
        """As PipelinedStore.flush."""
        for node in self._nodes.values():
            node.flush()

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command and those that follow it, and return the outcome; raises Problem."""
        return await executed(self, command)

    async def close(self) -> None:
        """As PipelinedStore.close."""
        self._is_closed = True
        if self._check:
            self._check.cancel()
        if self._reading:
            self._reading.cancel()
        for pending in list(self._delayed):
            self._undelay(pending).cancel()
            pending.tell(pending.ended(_moving()))
        closing = [node.close() for node in (*self._nodes.values(), *self._retired)]
        await asyncio.gather(*closing, *self._closing, *filter(None, (self._reading,)), return_exceptions=True)

    def _start(self) -> None:
        """Send commands to the first node that the URL names, until the map is read: it knows the way."""
        self._loop = asyncio.get_running_loop()
        for place in self._address.nodes:
            self._open(place)
        self._owners = [self._nodes[self._address.nodes[0]]] * SLOTS
        self.refresh()
        self._look()

    def _open(self, place: Place) -> ClusterNode:
        """Return the node at a place; it is connected to when the first command comes."""
        node = self._nodes.get(place)
        if node is None:
            node = self._nodes[place] = ClusterNode(self, self._address, place, self._on_invalidate, self._connect)
        return node

    # Called by the nodes

    def route(self, pending: PendingCommand) -> None:
        """Send a packed command, which has a timer, to the node that has its slot."""
        self._owners[slot_of(pending.command.keys[0])].pass_on(pending)

    def redirect(self, node: ClusterNode, pending: PendingCommand, error: str) -> bool:
        """Go on with a command that a node has refused to run; returns False if it fails."""
        word = error.partition(" ")[0]
        if word in STALE:
            self.refresh()
        redirection = parse_redirection(error, node.place)
        if self._is_closed or not (redirection or word == "TRYAGAIN"):
            return False
        if redirection and redirection.kind == "MOVED":
            self._move(redirection.slot, self._open(redirection.place))
            self._follow(pending)
        elif isinstance(pending.command, CoalescedGets | PlainGets):
            pending.tell(pending.command.unread)  # each is sent by itself: a part of them may be here
        elif redirection and pending.command.script.names_all_keys:
            self._ask(pending, self._open(redirection.place))
        else:
            self._delay(pending)
        return True

    def refresh(self) -> None:
        """Read the map, PAUSE_S after the last time."""
        self._is_stale = True
        if self._reading is None and not self._is_closed:
            self._reading = self._loop.create_task(self._keep_reading())

    # Sending again

    def _follow(self, pending: PendingCommand) -> None:
        """Send a command to where its slot is now."""
        if pending.tries >= AT_ONCE:
            self._delay(pending)
            return
        pending.tries += 1
        self._send_again(pending)

    def _send_again(self, pending: PendingCommand) -> None:
        pending.limit(self._loop)
        self.route(pending.pack(guarded_words(pending.command)))

    def _ask(self, pending: PendingCommand, node: ClusterNode) -> None:
        """Ask the node that takes a slot over for a key that the other one does not have.

        With the script's text: the node may not know it yet, and after NOSCRIPT it would have to be asked again.
        """
        words = eval_words(pending.command, guarded_words(pending.command))
        pending.limit(self._loop)
        if not node.ask(pending.pack(words)):
            pending.timer.cancel()  # type: ignore[union-attr]  # limit() has set it
            self._delay(pending)

    def _delay(self, pending: PendingCommand) -> None:
        """Send a command again when the nodes may have come to terms, unless it is due by then."""
        wait_s = RETRY_S[min(pending.tries, len(RETRY_S) - 1)]
        pending.tries += 1
        is_full = len(self._delayed) >= redis_clients.MAX_WAITING
        is_full = is_full or self._delayed_bytes + pending.size > redis_clients.MAX_WAITING_BYTES
        if is_full or self._loop.time() + wait_s >= pending.due:
            pending.tell(pending.ended(_moving()))
            return
        self._delayed[pending] = self._loop.call_later(wait_s, self._retry, pending)
        self._delayed_bytes += pending.size

    def _undelay(self, pending: PendingCommand) -> asyncio.TimerHandle:
        self._delayed_bytes -= pending.size
        return self._delayed.pop(pending)

    def _retry(self, pending: PendingCommand) -> None:
        self._undelay(pending)
        self._send_again(pending)

    # The map

    def _move(self, slot: int, node: ClusterNode) -> None:
        """Take in what one node has said of one slot."""
        self.refresh()
        if self._owners[slot] is not node:
            self._owners[slot], self._ranges = node, None
            if self._on_moved:
                self._on_moved({slot})

    async def _keep_reading(self) -> None:
        try:
            while self._is_stale:
                await asyncio.sleep(self._read_at + PAUSE_S - self._loop.time())
                self._is_stale, self._read_at = False, self._loop.time()
                await self._read_map()
        finally:
            self._reading = None

    async def _read_map(self) -> None:
        """Ask one node after the other, those first that answer, until one has sent a map."""
        now, why = self._loop.time(), "they have none"
        known = sorted(self._nodes.values(), key=lambda node: (node.is_silent(now), node.asked_at))
        for place in dict.fromkeys((*(node.place for node in known), *self._address.nodes)):
            node = self._open(place)
            node.asked_at = now
            try:
                async with asyncio.timeout(ASK_S):
                    ranges = await node.read_slots()
            except (Problem, TimeoutError, ValueError) as error:
                why = str(error) or "no answer"
                continue
            if ranges:
                self._use(ranges)
                return
        log.warning("no node of the cluster says which node has which slots: %s", why)

    def _use(self, ranges: tuple[SlotRange, ...]) -> None:
        """Take in a map. Slots of nobody go to any node, which says that they are not served."""
        if ranges != self._ranges:
            before, owners = self._owners, [self._open(ranges[0].place)] * SLOTS
            for first, last, place in ranges:
                owners[first : last + 1] = [self._open(place)] * (last + 1 - first)
            self._owners, self._ranges = owners, ranges
            for node in list(self._nodes.values()):
                for pending in node.take_unsent():
                    self.route(pending)
            if self._on_moved and (moved := {slot for slot in range(SLOTS) if owners[slot] is not before[slot]}):
                self._on_moved(moved)
        places = {each.place for each in ranges}
        for place, node in list(self._nodes.items()):
            node.divide(len(places))
            if place not in places:
                del self._nodes[place]
                self._retired.add(node)

    def _look(self) -> None:
        """Read the map where it may have changed, and close nodes that are no longer needed."""
        now = self._loop.time()
        for node in (*self._nodes.values(), *self._retired):
            node.look(now)
        if now >= self._read_at + REFRESH_S or any(node.is_silent(now) for node in self._nodes.values()):
            self.refresh()
        for node in list(self._retired):
            if node.is_idle or node.is_silent(now):
                self._retired.discard(node)
                task = self._loop.create_task(node.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self._check = self._loop.call_later(CHECK_S, self._look)


def _moving() -> Problem:
    return problem_of_reply("TRYAGAIN")
