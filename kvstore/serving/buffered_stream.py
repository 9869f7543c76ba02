"""A stream of events for adapters that take one block after the other: ASGI, whose `send` waits, and the threads of WSGI.

The production server writes each event to its transport at once (`sse.py`). Here events wait until they are taken, within the
same limits.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from kvstore.commands.subscriptions import Follow, FollowMany
from kvstore.live.follow_many import subscribe
from kvstore.live.hub import MAX_BUFFERED_BYTES, Hub

PIECE_S = 30.0  # for a reader to take a part of its snapshot, as in connection.py


class BufferedStream:
    """One stream, which starts now and ends with close().

    `drop` is called if the reader does not read. The adapter must then stop writing; no more blocks come.
    """

    def __init__(self, hub: Hub, follow: Follow | FollowMany, drop: Callable[[], None]) -> None:
        self._drop = drop
        self._blocks: deque[bytes] = deque()
        self._buffered = 0  # bytes of the blocks that wait, and of the one that is being written
        self._written = 0  # bytes of the one that is being written
        self._has_ended = False
        self._has_begun = False  # the first block was taken
        self._changed = asyncio.Event()
        self._subscription = subscribe(hub, follow, self._put, self.end, self._room)
        self._starting = asyncio.create_task(self._subscription.begin())
        self._starting.add_done_callback(self._started)

    async def take(self) -> bytes | None:
        """Return the next block, None at the end. The block before counts as written.

        Raises Problem in place of the first block if the stream cannot begin.
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
        """Unsubscribe, and release the held document. take() still returns the blocks that wait, then None."""
        self._has_ended = True
        self._subscription.leave()
        self._changed.set()

    async def close(self) -> None:
        """End the stream and wait for the task that started it."""
        self.end()
        await asyncio.gather(self._starting, return_exceptions=True)

    def _put(self, block: bytes) -> None:
        if self._has_ended:
            return
        if self._buffered > MAX_BUFFERED_BYTES and self._subscription.is_ready:  # a single block may be larger
            self._give_up()
            return
        self._buffered += len(block)
        self._blocks.append(block)
        self._changed.set()

    async def _room(self) -> None:
        """Wait until the reader has taken what was sent of the snapshot."""
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
