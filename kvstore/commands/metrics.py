"""What a process is asked for its metrics, and the jobs that Redis counts for them."""

from typing import NamedTuple

from kvstore.commands.base import Arguments, RedisReply, below
from kvstore.commands.scripts import COUNT_JOBS, Script
from kvstore.core.paths import Path

MAX_QUEUES = 20  # of one namespace: each costs Redis 1 ms at most


class ReadMetrics(NamedTuple):
    """Read the metrics of all workers: MetricsRead. No store executes it, but `live/metrics.py`.

    With `is_local` it came from this machine, and from no proxy that says so. Only with `shows_jobs` are queues named.
    """

    is_local: bool
    shows_jobs: bool = True


class MetricsRead(NamedTuple):
    """The metrics, as text; and those of the jobs, which name the queues."""

    text: bytes
    jobs: bytes


class JobCounts(NamedTuple):
    """How many jobs a queue has, by state. `queue` is its path."""

    queue: str
    ready: int
    leased: int
    delayed: int
    dead: int


class CountJobs(NamedTuple):
    """Count the jobs of all queues in a namespace, MAX_QUEUES at most: a list of JobCounts. `namespace` is its container."""

    namespace: Path
    script: Script[list[JobCounts]] = COUNT_JOBS

    @property
    def keys(self) -> tuple[str, ...]:
        return self.namespace.keys

    @property
    def arguments(self) -> Arguments:
        return (below(self.namespace)[0], MAX_QUEUES)

    def outcome(self, reply: RedisReply) -> list[JobCounts]:
        return [JobCounts(self.namespace.text + container.decode(), *counts) for container, *counts in reply]
