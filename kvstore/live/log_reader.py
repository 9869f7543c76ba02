"""The one reader of the change logs in an event loop: a log is read once, however many follow what is in it.

Redis itself says which logs have grown since they were read, so one in which nothing happens costs a look a minute. A Redis
that does not say is asked again and again. Source: CLIENT TRACKING.
"""

import asyncio
import logging
from collections.abc import Callable

from kvstore.commands.base import RedisReply
from kvstore.commands.changelog import ChangesRead, ReadChanges
from kvstore.core.errors import Problem
from kvstore.core.paths import Path
from kvstore.core.redis_url import Address
from kvstore.stores.pipelined import AsyncStore, PipelinedStore
from kvstore.stores.redis_clients import primary_address

log = logging.getLogger("kvstore")

LOOK_S = 60.0  # between looks at a log that does not grow, where Redis says when one does
POLL_S = 0.2  # between looks where it does not: a cluster, fakeredis, a Redis that will not track
CHECK_S = 2.0  # between looks at any log: one connection only listens, and nothing else would find it dead
PAUSE_S = 0.001  # between looks at a log that grows all the time, so that a look finds several changes
RETRY_S = 0.3  # after trouble with Redis
SPREAD_S = 1.0  # over which all logs are looked at again after that


class LogReader:
    """Reads the logs of namespaces: `told` is called with what has come, `lost` where some of it will never come.

    What has come are entries as XRANGE gives them, oldest first, and the place in what was given back (changelog.ChangesRead).
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
        self._pipeline = (
            PipelinedStore(address, on_invalidate=self._invalidated, find=primary_address)
            if address.kind in ("single", "sentinel")
            else None
        )
        self.source = self._pipeline or store
        self._readings: dict[str, Reading] = {}  # by namespace
        self._by_key: dict[bytes, Reading] = {}  # by those keys of it that say that something has happened
        self._woken: dict[Reading, None] = {}  # of which one has changed, in this turn of the loop
        self._complained = 0.0
        self._check: asyncio.TimerHandle | None = None

    @property
    def look_s(self) -> float:
        """Between looks at a log that does not seem to grow."""
        return LOOK_S if self._pipeline and self._pipeline.is_tracking else POLL_S

    def read(self, path: Path, position: str) -> "Reading":
        """Read the log of a path's namespace from a place on, until drop(); it is not being read yet."""
        reading = self._readings[path.namespace] = Reading(self, path, position)
        for key in ReadChanges(path, "").keys:
            self._by_key[key.encode()] = reading
        reading.look()
        if self._pipeline and self._check is None:
            self._check_later()
        return reading

    def drop(self, reading: "Reading") -> None:
        """Read that log no more."""
        del self._readings[reading.path.namespace]
        for key in ReadChanges(reading.path, "").keys:
            del self._by_key[key.encode()]
        reading.stop()

    async def close(self) -> None:
        """Read nothing any more."""
        if self._pipeline:
            await self._pipeline.close()

    def complain(self, problem: Problem) -> None:
        """Say that reading is held up; once, where thousands of logs are held up by one thing."""
        now = asyncio.get_running_loop().time()
        if now - self._complained > SPREAD_S:
            self._complained = now
            log.warning("following is held up: %s", problem)

    def _invalidated(self, key: bytes | None) -> None:
        """A key that was read has changed; None: any may have, since the connection is lost."""
        if key is not None:
            if reading := self._by_key.get(key):
                if not self._woken:  # one change rings for the log and for the expiries, and many come in one turn of the loop
                    asyncio.get_running_loop().call_soon(self._look_on_woken)
                self._woken[reading] = None
            return
        for number, reading in enumerate(self._readings.values()):
            reading.look_in(RETRY_S + SPREAD_S * number / len(self._readings))

    def _check_later(self) -> None:
        self._check = asyncio.get_running_loop().call_later(CHECK_S, self._look_at_one)

    def _look_at_one(self) -> None:
        self._check = None
        if reading := next(iter(self._readings.values()), None):
            reading.look()
            self._check_later()

    def _look_on_woken(self) -> None:
        woken, self._woken = self._woken, {}
        for reading in woken:
            reading.look_on()


class Reading:
    """One log that is being read, up to `place`."""

    __slots__ = ("_due", "_is_asking", "_is_stopped", "_is_woken", "_looked", "_loop", "_reader", "_timer", "path", "position")

    def __init__(self, reader: LogReader, path: Path, position: str) -> None:
        self.path = path
        self.position = position
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._is_stopped = False
        self._is_asking = False  # its changes are being read
        self._is_woken = False  # and have grown meanwhile
        self._looked = 0.0  # when they were asked for
        self._timer: asyncio.TimerHandle | None = None  # of the next look, whether it has grown or not
        self._due = 0.0  # when that is

    def stop(self) -> None:
        """Nobody wants to know any more."""
        self._is_stopped = True
        if self._timer:
            self._timer.cancel()

    def look(self) -> None:
        """Read what is new, which also has Redis say when there is more; one question at a time."""
        if not self._is_asking and not self._is_stopped:
            self._is_asking, self._is_woken, self._looked = True, False, self._loop.time()
            self._reader.source.submit(ReadChanges(self.path, self.position), self._answered, None)

    def look_on(self) -> None:
        """Look again, at once where the last look is some time ago; after a question that is open."""
        if self._is_asking:
            self._is_woken = True
            return
        wait_s = self._looked + PAUSE_S - self._loop.time()
        if wait_s > 0:
            self.look_in(wait_s)
        else:
            self.look()

    def look_in(self, wait_s: float) -> None:
        """Look after some time, or earlier where that is planned already."""
        due = self._loop.time() + wait_s
        if self._is_stopped or (self._timer and due >= self._due):
            return
        if self._timer:
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(wait_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.look()

    def _answered(self, _: None, outcome: ChangesRead | Exception) -> None:
        """What a look has found."""
        self._is_asking = False
        if self._is_stopped:
            return
        if isinstance(outcome, Problem):
            self._reader.complain(outcome)
            self.look_in(RETRY_S)
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if outcome.entries is None:
                log.warning(
                    "a change log has lost changes that were not read yet; its streams are ended, and their readers told"
                )
                self._reader.on_lost(self)
                return
            self.position = outcome.entries[-1][0].decode() if outcome.entries else outcome.position or self.position
            self._reader.on_changes(self, outcome.entries, outcome.released)
        except Exception:
            log.exception("following is broken by a bug of ours; the streams are ended, and their readers told")
            self._reader.on_lost(self)
            return
        self._plan(outcome)

    def _plan(self, found: ChangesRead) -> None:
        """Look again when there may be more."""
        if found.has_more:
            self.look()
        elif self._is_woken:
            self.look_on()
        else:
            expiry_s = LOOK_S if found.next_expiry_ms is None else found.next_expiry_ms / 1000
            self.look_in(min(expiry_s, self._reader.look_s))
