"""Presence: holds documents for the streams of one event loop, with one registration in Redis for each document.

A registration has a new name each time an event loop begins to hold a document. So a release that comes late, after an outage
or overtaken, ends its own registration only.
"""

import asyncio
import logging
from collections.abc import Callable
from secrets import token_hex

from kvstore.commands.presence import HOLD_S, Hold, Release
from kvstore.core.errors import Problem
from kvstore.stores.pipelined import AsyncStore

RENEW_S = 9.0  # a third of HOLD_S, so that two attempts may fail
RETRY_S = 1.0  # after an error of Redis
CLOSE_S = 5.0  # for the releases when the server stops: gunicorn gives 20 s for all of it

log = logging.getLogger("kvstore")

End = Callable[[], None]


class _Document:
    """A document that is held: `hold` is the last one that was requested, `ends` end its streams."""

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.ends: set[End] = set()
        self.is_free = asyncio.Event()


class Holding:
    """The documents that the streams of one event loop hold."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._documents: dict[str, _Document] = {}
        self._keepers: set[asyncio.Task[None]] = set()

    async def begin(self, hold: Hold, end: End) -> None:
        """Hold a document for the stream that `end` ends, until leave(). If it raises Problem, it is not held."""
        document = self._documents.get(hold.path.text)
        if document is None:
            document = self._documents[hold.path.text] = _Document(hold._replace(holder=token_hex(8)))
            keeper = asyncio.create_task(self._keep(document))
            self._keepers.add(keeper)
            keeper.add_done_callback(self._keepers.discard)
        document.ends.add(end)
        hold = hold._replace(holder=document.hold.holder)
        try:
            await self._store.execute(hold)
        except BaseException:
            self.leave(hold, end)
            raise
        document.hold = hold

    def leave(self, hold: Hold, end: End) -> None:
        """Stop holding a document for a stream; does nothing the second time."""
        document = self._documents.get(hold.path.text)
        if document is None or end not in document.ends:
            return
        document.ends.discard(end)
        if not document.ends:
            del self._documents[hold.path.text]
            document.is_free.set()

    async def close(self) -> None:
        """Wait up to CLOSE_S until all documents are released; the others expire."""
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=CLOSE_S)
            for keeper in late:
                keeper.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _keep(self, document: _Document) -> None:
        """Renew the registration while a stream holds the document, then release it."""
        pause_s = RENEW_S
        while not await _is_set_within(document.is_free, pause_s):
            pause_s = RENEW_S
            try:
                await self._store.execute(document.hold._replace(renews=True))
            except Problem as problem:
                if problem.status >= 500:  # Redis is away
                    pause_s = RETRY_S
                    continue
                for end in list(document.ends):  # the path is taken: a reader that comes back gets the problem
                    end()
            except Exception:
                log.exception("a document was not held any longer by a bug of ours")
        await self._release(document.hold)

    async def _release(self, hold: Hold) -> None:
        try:
            async with asyncio.timeout(HOLD_S):  # then it has expired
                while True:
                    try:
                        await self._store.execute(Release(hold))
                        return
                    except Problem as problem:
                        if problem.status < 500:  # the key is another client's
                            return
                        await asyncio.sleep(RETRY_S)
        except TimeoutError:
            return
        except Exception:
            log.exception("a document was not released by a bug of ours; it expires")


async def _is_set_within(event: asyncio.Event, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            return await event.wait()
    except TimeoutError:
        return False
