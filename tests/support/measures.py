"""What a request costs: time of a process, of a turn of an event loop, of a script in Redis; memory of a process, and of Redis.

Time is processor time where it can be, the least of several runs, and is compared with the time that another size takes on the
same machine.
"""

import asyncio
import itertools
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from tests.support.inprocess import InProcess
from tests.support.serving import Served
from tests.support.stores import wait_until

RUNS = 5
ATTEMPTS = 3  # a processor that others use, and its caches, make twice the work cost 2.7 times as much now and then
SLEEPS_S = 30  # within which a process has done what it was asked
TWICE_AND_A_BIT = 2.6  # of what twice the input may cost; where it is quadratic it costs 4 times as much
A_BIT = 1.5  # of what twice the input may cost where it should not matter
REQUEST_BYTES = 16 * 1024  # that a request may leave behind, however little it sent
SENT_FACTOR = 16  # and for each byte that it sent


def least(cost: Callable[[], float], runs: int = RUNS) -> float:
    """The least of what several runs cost."""
    return min(cost() for _ in range(runs))


def growth(cost: Callable[[int], float], size: int, runs: int = RUNS, *, limit: float = TWICE_AND_A_BIT) -> float:
    """How many times as much an input of twice this size costs; looked at again where that is not below `limit`."""
    found: list[float] = []
    while len(found) < ATTEMPTS and (not found or found[-1] >= limit):
        found.append(least(lambda: cost(2 * size), runs) / least(lambda: cost(size), runs))
    return min(found)


def processor_s(action: Callable[[], object]) -> float:
    """The processor time of this process that an action takes."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def peak_bytes(action: Callable[[], object]) -> int:
    """How much more memory Python has at the worst moment of an action than before it."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def may_leave_bytes(sent_bytes: int, requests: int = 1) -> int:
    """The bound on what requests leave behind: 16 times the bytes that they sent, and 16 KiB each."""
    return SENT_FACTOR * sent_bytes + requests * REQUEST_BYTES


# --- A server that runs by itself ---------------------------------------------------------------------------------------


def workers(serving: Served) -> list[int]:
    """The worker processes of a command `kvstore` whose Redis is another's."""
    return [pid for pid in serving.processes() if pid != serving.process.pid]


def worker_s(serving: Served, action: Callable[[], object]) -> float:
    """The processor time of all workers during an action (proc(5), schedstat: nanoseconds on a processor)."""
    wait_until(lambda: workers(serving), SLEEPS_S)
    pids = workers(serving)
    begun = on_processor_s(pids)
    action()
    return on_processor_s(pids) - begun


def on_processor_s(pids: list[int]) -> float:
    """How long processes have run, once they sleep: the time of one that runs is counted when it stops (proc(5))."""
    processes = [Path(f"/proc/{pid}") for pid in pids]
    if not all((each / "schedstat").exists() for each in processes):
        pytest.skip("this system does not say how long a process has run")

    def sleep() -> bool:
        return all((each / "stat").read_text().rpartition(")")[2].split()[0] == "S" for each in processes)

    wait_until(sleep, SLEEPS_S)
    return sum(int((each / "schedstat").read_text().split()[0]) for each in processes) / 1e9


def resident_bytes(pids: list[int]) -> int:
    """The memory that processes have (proc(5), VmRSS)."""
    lines = itertools.chain.from_iterable(Path(f"/proc/{pid}/status").read_text().splitlines() for pid in pids)
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


# --- An event loop ------------------------------------------------------------------------------------------------------


def longest_turn_s(running: InProcess, action: Callable[[], object]) -> float:
    """The processor time of the longest turn of a server's event loop during an action."""

    async def watch(stopped: asyncio.Event) -> float:
        longest, last = 0.0, time.thread_time()
        while not stopped.is_set():
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, last = max(longest, now - last), now
        return longest

    async def begin() -> tuple[asyncio.Event, "asyncio.Task[float]"]:
        stopped = asyncio.Event()
        return stopped, asyncio.create_task(watch(stopped))

    async def end(stopped: asyncio.Event, watching: "asyncio.Task[float]") -> float:
        stopped.set()
        return await watching

    watched = running.run(begin())
    action()
    longest_s: float = running.run(end(*watched))
    return longest_s


# --- Redis --------------------------------------------------------------------------------------------------------------


class Scripts(NamedTuple):
    """What an action asked of Redis: the processor time of all that it did, and that of each script, the last one first.

    SLOWLOG has times of a clock: on a busy machine they say how long Redis waited for a processor too. So a script is taken to
    have the same part of the processor time as it has of all times in SLOWLOG.
    """

    redis_s: float
    times_s: list[float]

    @property
    def longest_s(self) -> float:
        """The time of the longest one."""
        return max(self.times_s, default=0.0)

    @property
    def each_s(self) -> float:
        """The time of one of them, where they are alike."""
        return self.redis_s / len(self.times_s)

    def best_of(self, other: "Scripts") -> "Scripts":
        """The less of what the same action took in two runs: all of it, and each script."""
        return Scripts(min(self.redis_s, other.redis_s), list(map(min, self.times_s, other.times_s)))


def scripts(raw: redis.Redis, action: Callable[[], object]) -> Scripts:
    """The scripts that an action has Redis run (SLOWLOG), and the processor time of the Redis (proc(5), schedstat)."""
    pids = [raw.info("server")["process_id"]]
    raw.config_set("slowlog-max-len", 100_000)
    raw.config_set("slowlog-log-slower-than", 0)
    raw.slowlog_reset()
    begun_s = on_processor_s(pids)
    try:
        action()
    finally:
        ended_s = on_processor_s(pids)
        raw.config_set("slowlog-log-slower-than", -1)
    run = [each for each in raw.slowlog_get(100_000) if each["command"].startswith((b"EVAL ", b"EVALSHA "))]
    redis_s, times_s = ended_s - begun_s, [each["duration"] / 1e6 for each in run]
    part = min(1, redis_s / max(1e-6, sum(times_s)))
    return Scripts(redis_s, [time_s * part for time_s in times_s])


def sent_by_redis_bytes(raw: redis.Redis, action: Callable[..., object]) -> int:
    """How much Redis has answered during an action (INFO stats), to all of its clients."""
    begun = raw.info("stats")["total_net_output_bytes"]
    action()
    return int(raw.info("stats")["total_net_output_bytes"] - begun)


def kept_bytes(raw: redis.Redis, action: Callable[[], Any]) -> int:
    """How much more Redis keeps after an action (MEMORY USAGE of every key): not what its clients and scripts take."""
    begun = dataset_bytes(raw)
    action()
    return dataset_bytes(raw) - begun


def dataset_bytes(raw: redis.Redis) -> int:
    """The memory of all keys."""
    return sum(raw.memory_usage(key, samples=0) or 0 for key in raw.scan_iter(count=1000))
