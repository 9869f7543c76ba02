"""The open streams of each client, where their number is limited: over all processes, in Redis.

A stream claims a place for CLAIM_S when it begins, and its process renews that. So the places of a process that died are free
again when their claims end.
"""

import asyncio
from contextlib import suppress
from secrets import token_hex
from typing import Generic, TypeVar

from kvstore.commands.charges import ClaimStreams, ReleaseStream, StreamPlace
from kvstore.core.errors import Problem, TooManyRequests
from kvstore.stores.pipelined import AsyncStore

CLAIM_S = 30.0
RENEW_S = 9.0  # less than a third of CLAIM_S, so that two attempts may fail
RETRY_AFTER_S = 5
CLOSE_S = 5.0  # for the releases when the server stops

Stream = TypeVar("Stream")


class ClientStreams(Generic[Stream]):
    """The places of the streams of one event loop. A stream is whatever the caller knows it by."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._process = token_hex(8)
        self._count = 0
        self._places: dict[Stream, StreamPlace] = {}
        self._releasing: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None

    async def begin(self, stream: Stream, place: StreamPlace) -> None:
        """Claim a place for a stream, until leave(); raises TooManyRequests if its client has as many as it may, or Problem."""
        self._count += 1
        self._places[stream] = place = place._replace(stream=f"{self._process} {self._count}")
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew())
        try:
            has_place = await self._store.execute(ClaimStreams((place,), int(1000 * CLAIM_S)))
        except BaseException:
            self.leave(stream)
            raise
        if not has_place:
            del self._places[stream]
            raise TooManyRequests(
                f"you have {place.limit} open streams, which is as many as a client may have; close one, or follow a container",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )

    def leave(self, stream: Stream) -> None:
        """Give up the place of a stream; does nothing if it has none."""
        place = self._places.pop(stream, None)
        if place:
            task = asyncio.get_running_loop().create_task(self._release(place))
            self._releasing.add(task)
            task.add_done_callback(self._releasing.discard)

    async def close(self) -> None:
        """Wait up to CLOSE_S until all places are given up; the claims of the others end."""
        if self._renewing:
            self._renewing.cancel()
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=CLOSE_S)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            clients: dict[str, list[StreamPlace]] = {}
            for place in self._places.values():
                clients.setdefault(place.client, []).append(place)
            for places in clients.values():  # one after the other, so that others are served in between
                with suppress(Problem):  # Redis is away; the next attempt is soon enough
                    await self._store.execute(ClaimStreams(tuple(places), int(1000 * CLAIM_S)))

    async def _release(self, place: StreamPlace) -> None:
        with suppress(Problem):  # then its claim ends
            await self._store.execute(ReleaseStream(place))
