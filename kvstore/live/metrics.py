"""The metrics of all workers: what each has counted, what it holds open, and the jobs that wait in Redis.

Anyone who may read them may ask all the time, so they are read once a second at most, and the jobs once in JOBS_S.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kvstore.commands.containers import List, Listing
from kvstore.commands.metrics import CountJobs, JobCounts, MetricsRead, ReadMetrics
from kvstore.core.errors import Problem, WrongType
from kvstore.core.metrics import COUNTERS, add_snapshot
from kvstore.core.paths import parse_path
from kvstore.http.metrics import GAUGES, render_jobs, render_metrics
from kvstore.live.hub import Hub
from kvstore.live.long_poll import LongPolls
from kvstore.live.metrics_board import Board
from kvstore.stores.query_queue import QueryQueue

log = logging.getLogger("kvstore")

READ_S = 1.0  # between two readings
JOBS_S = 5.0  # between two counts of jobs, which cost Redis more
MAX_NAMESPACES = 1000  # whose queues are counted, the first ones by name
LIMIT_S = 1.0  # for Redis to count them

board: Board | None = None  # of the workers of the command `kvstore`; None where this process serves alone


class Metrics:
    """The metrics of one event loop, and of the others on the board. `connections` counts those of clients."""

    def __init__(self, store: QueryQueue, hub: Hub, long_polls: LongPolls) -> None:
        self._store = store
        self._hub = hub
        self._long_polls = long_polls
        self._reading: asyncio.Task[MetricsRead] | None = None
        self._read_at = self._counted_at = float("-inf")
        self._jobs: list[JobCounts] | None = None
        self.connections: Callable[[], int] = lambda: 0

    async def outcome(self, asked: ReadMetrics) -> MetricsRead:
        """Return the metrics, at most READ_S old."""
        now = asyncio.get_running_loop().time()
        if self._reading is None or (self._reading.done() and now > self._read_at + READ_S):
            self._read_at = now
            self._reading = asyncio.ensure_future(self._read(now))
        read = await asyncio.shield(self._reading)
        return read if asked.shows_jobs else read._replace(jobs=b"")

    def snapshot(self) -> dict[str, Any]:
        """Return what this process has counted, and what it holds open."""
        streams = self._hub.subscriptions - self._long_polls.subscriptions
        gauges = (self.connections(), streams, self._long_polls.waiting, self._store.queries, memory_bytes(), 1)
        return COUNTERS.snapshot() | {"gauges": dict(zip(GAUGES, gauges, strict=True))}

    def show(self) -> dict[str, Any]:
        """Show the numbers of this process to the other workers, and return them."""
        numbers = self.snapshot()
        if board:
            board.show(numbers)
        return numbers

    async def _read(self, now: float) -> MetricsRead:
        if now > self._counted_at + JOBS_S:
            self._counted_at = now
            self._jobs = await self._count_jobs()
        total = self.show()
        others = board.others() if board else []
        for other in others:
            add_snapshot(total, other)
        shown = [each["gauges"] for each in (total, *others)]
        gauges = {name: sum(each.get(name, 0) for each in shown) for name in GAUGES}
        return MetricsRead(render_metrics(total, gauges, is_up=self._jobs is not None), render_jobs(self._jobs or []))

    async def _count_jobs(self) -> list[JobCounts] | None:
        """Return the jobs of all queues, None if Redis does not answer."""
        counted: list[JobCounts] = []
        try:
            async with asyncio.timeout(LIMIT_S):
                listing = await self._store.execute(List(parse_path(b"/"), "", MAX_NAMESPACES, False, False, False, ""))
                assert isinstance(listing, Listing)  # there is no condition
                names = [item.name for item in listing.items if item.document is None]
                for name in names:  # one after the other: each may take 20 ms, in which no other request goes on
                    with suppress(WrongType):  # another client's key is not this request's concern
                        counted += await self._store.execute(CountJobs(parse_path(b"/" + name.encode())))
        except TimeoutError:
            return counted or None
        except Problem as problem:
            log.info("the jobs cannot be counted: %s", problem)
            return None
        return counted


def memory_bytes() -> int:
    """Return the memory that this process occupies; 0 where that is not known. Source: proc_pid_statm(5)."""
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
