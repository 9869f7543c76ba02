"""The log reader: reads each change log once in an event loop, however many subscribe to what is in it.

Redis reports which logs have grown since they were read, so an idle log is read once a minute. If Redis does not report it, the
logs are polled. Source: CLIENT TRACKING.
"""

import asyncio
import logging
from collections.abc import Callable

from kvstore.commands.base import RedisReply
from kvstore.commands.changelog import ChangesRead, ReadChanges
from kvstore.core.errors import Problem
from kvstore.core.paths import Path
from kvstore.core.redis_url import Address
from kvstore.stores.cluster import ClusterStore
from kvstore.stores.pipelined import AsyncStore, PipelinedStore
from kvstore.stores.redis_clients import primary_address
from kvstore.stores.slots import slot_of

log = logging.getLogger("kvstore")

IDLE_S = 60.0  # between reads of a log that does not grow, where Redis reports when one does
POLL_S = 0.2  # between reads where it does not: fakeredis, a Redis that refuses to track
PAUSE_S = 0.001  # between reads of a log that grows all the time, so that one read finds several changes
RETRY_S = 0.3  # after an error of Redis
SPREAD_S = 1.0  # over which the reads of all logs are spread after a lost connection


class LogReader:
    """Reads the change logs of namespaces.

    `on_changes(reading, entries, released)` is called with entries as XRANGE returns them, oldest first, and the position in
    the stream of released jobs (changelog.ChangesRead); `on_lost(reading)` if entries were trimmed before they were read.
    """

    def __init__(
        self,
        store: AsyncStore,
        address: Address,
        *,
        on_changes: Callable[["Reading", list[RedisReply], bytes], None],
        on_lost: Callable[["Reading"], None],
    ) -> None:
        self.on_changes = on_changes
        self.on_lost = on_lost
        self._pipeline: PipelinedStore | ClusterStore | None = None
        if address.kind == "cluster":
            self._pipeline = ClusterStore(address, on_invalidate=self._invalidated, on_moved=self._moved)
        elif address.kind != "fake":
            self._pipeline = PipelinedStore(address, on_invalidate=self._invalidated, find=primary_address)
        self.source = self._pipeline or store
        self._readings: dict[str, Reading] = {}  # by namespace
        self._by_key: dict[bytes, Reading] = {}  # by each key that Redis tracks for it
        self._changed: dict[Reading, None] = {}  # with a key that changed in this turn of the event loop
        self._warned = 0.0  # when the log was last written to

    @property
    def idle_s(self) -> float:
        """The time between reads of a log of which Redis has reported nothing."""
        return IDLE_S if self._pipeline and self._pipeline.is_tracking else POLL_S

    def read(self, path: Path, position: str) -> "Reading":
        """Begin to read the log of a path's namespace, after `position`, until drop()."""
        reading = self._readings[path.namespace] = Reading(self, path, position)
        for key in ReadChanges(path, "").keys:
            self._by_key[key.encode()] = reading
        reading.read()
        return reading

    def drop(self, reading: "Reading") -> None:
        """Stop reading a log."""
        del self._readings[reading.path.namespace]
        for key in ReadChanges(reading.path, "").keys:
            del self._by_key[key.encode()]
        reading.stop()

    async def close(self) -> None:
        """Close the connection."""
        if self._pipeline:
            await self._pipeline.close()

    def warn(self, problem: Problem) -> None:
        """Log that change logs cannot be read; once a second, since thousands may have one cause."""
        now = asyncio.get_running_loop().time()
        if now - self._warned > SPREAD_S:
            self._warned = now
            log.warning("the change logs cannot be read: %s", problem)

    def _invalidated(self, key: bytes | None) -> None:
        """A key that was read has changed; None: any may have, since the connection is lost."""
        if key is not None:
            if reading := self._by_key.get(key):
                if not self._changed:  # one write may change two of the keys, and many come in one turn of the event loop
                    asyncio.get_running_loop().call_soon(self._read_changed)
                self._changed[reading] = None
            return
        for number, reading in enumerate(self._readings.values()):
            reading.read_in(RETRY_S + SPREAD_S * number / len(self._readings))

    def _moved(self, slots: set[int]) -> None:
        """Other nodes of a cluster have these slots now, and do not know yet what is read here."""
        for key in self._by_key:
            if slot_of(key.decode()) in slots:
                self._invalidated(key)

    def _read_changed(self) -> None:
        changed, self._changed = self._changed, {}
        for reading in changed:
            reading.read_on()


class Reading:
    """One change log that is read; `position` is the end of what was read."""

    __slots__ = ("_began", "_due", "_has_grown", "_is_reading", "_is_stopped", "_loop", "_reader", "_timer", "path", "position")

    def __init__(self, reader: LogReader, path: Path, position: str) -> None:
        self.path = path
        self.position = position
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._is_stopped = False
        self._is_reading = False
        self._has_grown = False  # since the read that is under way, or was the last, began
        self._began = 0.0  # when that was
        self._timer: asyncio.TimerHandle | None = None  # of the next read, whether the log has grown or not
        self._due = 0.0  # when that is

    def stop(self) -> None:
        """Read no more."""
        self._is_stopped = True
        if self._timer:
            self._timer.cancel()

    def read(self) -> None:
        """Read what is new, and have Redis track the keys; does nothing while a read is under way."""
        if not self._is_reading and not self._is_stopped:
            self._is_reading, self._has_grown, self._began = True, False, self._loop.time()
            self._reader.source.submit(ReadChanges(self.path, self.position, is_live=True), self._done, None)

    def read_on(self) -> None:
        """Read a log that has grown: after the read that is under way, and PAUSE_S after the last one."""
        if self._is_reading:
            self._has_grown = True
            return
        wait_s = self._began + PAUSE_S - self._loop.time()
        if wait_s > 0:
            self.read_in(wait_s)
        else:
            self.read()

    def read_in(self, wait_s: float) -> None:
        """Read after some time, or earlier if that is planned."""
        due = self._loop.time() + wait_s
        if self._is_stopped or (self._timer and due >= self._due):
            return
        if self._timer:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(wait_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.read()

    def _done(self, _: None, outcome: ChangesRead | Exception) -> None:
        """Take in what a read has found."""
        self._is_reading = False
        if self._is_stopped:
            return
        if isinstance(outcome, Problem):
            self._reader.warn(outcome)
            self.read_in(RETRY_S)
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if outcome.entries is None:
                log.warning("a change log has lost changes that were not read yet; its streams end with a reset")
                self._reader.on_lost(self)
                return
            self.position = outcome.entries[-1][0].decode() if outcome.entries else outcome.position or self.position
            self._reader.on_changes(self, outcome.entries, outcome.released)
        except Exception:
            log.exception("changes were not delivered by a bug of ours; the streams of their namespace end with a reset")
            self._reader.on_lost(self)
            return
        self._plan(outcome)

    def _plan(self, found: ChangesRead) -> None:
        """Read again when there may be more."""
        if found.has_more:
            self.read()
        elif self._has_grown:
            self.read_on()
        else:
            expiry_s = IDLE_S if found.next_expiry_ms is None else found.next_expiry_ms / 1000
            self.read_in(min(expiry_s, self._reader.idle_s))
