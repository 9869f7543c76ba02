"""A stream of events for an adapter that takes blocks one after the other: ASGI, whose `send` waits, and WSGI's threads.

Our own server writes to its transport as events come (`sse.py`). Here they wait until they are taken, within the same bounds.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from kvstore.commands.subscriptions import Follow
from kvstore.live.hub import MAX_BUFFERED_BYTES, Hub, Subscriber

PIECE_S = 30.0  # that a reader has to take a piece of its snapshot, as with our own server


class BufferedStream:
    """One stream, from its start to close().

    `drop` is called where the reader does not take what it is sent: then the adapter stops writing, and no block comes any
    more.
    """

    def __init__(self, hub: Hub, follow: Follow, drop: Callable[[], None]) -> None:
        self._hub = hub
        self._drop = drop
        self._blocks: deque[bytes] = deque()
        self._buffered = 0  # bytes of blocks that were not taken, the one that is being written included
        self._written = 0  # bytes of that one
        self._has_ended = False
        self._has_begun = False  # a block was taken
        self._changed = asyncio.Event()
        self._subscriber = Subscriber(follow.path, self._put, self.end, self._room)
        self._starting = asyncio.create_task(hub.follow(follow, self._subscriber))
        self._starting.add_done_callback(self._started)

    async def take(self) -> bytes | None:
        """The next block, when the one before it is written; None where the stream has ended.

        Raises Problem instead of the first block.
        """
        self._buffered -= self._written
        self._written = 0
        self._changed.set()
        while not self._blocks and not self._has_ended:
            self._changed.clear()
            await self._changed.wait()
        if not self._blocks:
            if not self._has_begun and self._starting.done():
                self._starting.result()
            return None
        self._has_begun = True
        block = self._blocks.popleft()
        self._written = len(block)
        return block

    def end(self) -> None:
        """Follow no longer, release what was held, and let take() return None after the blocks that wait."""
        self._has_ended = True
        self._hub.leave(self._subscriber)
        self._changed.set()

    async def close(self) -> None:
        """End the stream, and wait until its start has ended too."""
        self.end()
        await asyncio.gather(self._starting, return_exceptions=True)

    def _put(self, block: bytes) -> None:
        if self._has_ended:
            return
        if self._buffered > MAX_BUFFERED_BYTES and self._subscriber.is_ready:  # a block by itself may be larger
            self._give_up()
            return
        self._buffered += len(block)
        self._blocks.append(block)
        self._changed.set()

    async def _room(self) -> None:
        """Wait until the reader has taken what a snapshot has sent so far."""
        try:
            async with asyncio.timeout(PIECE_S):
                while self._buffered and not self._has_ended:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self._give_up()

    def _give_up(self) -> None:
        self._blocks.clear()
        self.end()
        self._drop()

    def _started(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception():
            self.end()
