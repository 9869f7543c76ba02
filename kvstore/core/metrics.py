"""What a process counts of itself: requests by method and status, and calls to Redis, each with how long they took.

To count is to add to plain lists: some 0.2 µs of the 15 that a request takes. So that it takes no more, one request is timed at
a time, and one command to Redis, and the next one REST_S later: each if there are few, some of them if there are many. Who
reads the numbers adds them up.
"""

from typing import Any, TypeAlias

Numbers: TypeAlias = list[float]  # how many took so long, by power of two of 0.1 ms; then SUM, and UNTIMED

BUCKETS = 48
SUM, UNTIMED = BUCKETS, BUCKETS + 1  # all seconds together; and how many were not timed
UNIT_S = 0.0001
REST_S = 0.01  # from the end of one that is timed to the beginning of the next
RESTING = object()  # what is timed meanwhile
UNTIMED_S = -1.0
SHOWN_BUCKETS = 18  # up to 13 s

METHODS = frozenset(("GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS", "QUERY"))


def no_numbers() -> Numbers:
    """Return numbers of which all are 0."""
    return [0.0] * (BUCKETS + 2)


def add_time(numbers: Numbers, elapsed_s: float) -> None:
    """Count one that took so long."""
    numbers[int(elapsed_s * 10_000).bit_length()] += 1
    numbers[SUM] += elapsed_s


class Counters:
    """The numbers of one process. `requests` are by method and status."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], Numbers] = {}
        self.redis = no_numbers()
        self.redis_commands = 0

    def record(self, method: str, status: int, elapsed_s: float) -> None:
        """Count a request that was answered after so long; UNTIMED_S, or any negative time, says nothing of how fast we are."""
        numbers = self.requests.get((method, status))
        if numbers is None:
            numbers = self.first(method, status)
        if elapsed_s < 0:
            numbers[UNTIMED] += 1
            return
        add_time(numbers, elapsed_s)

    def first(self, method: str, status: int) -> Numbers:
        """Return the numbers of a method and a status that have none."""
        known = method if method in METHODS else "other"  # a client may send any method
        return self.requests.setdefault((known, status), no_numbers())

    def snapshot(self) -> dict[str, Any]:
        """Return the numbers as JSON has them: requests by method and class of status."""
        requests: dict[str, Numbers] = {}
        for (method, status), numbers in self.requests.items():
            add(requests.setdefault(f"{method} {status // 100}xx", no_numbers()), numbers)
        return {"requests": requests, "redis": list(self.redis), "commands": self.redis_commands}


def add(numbers: Numbers, more: Numbers) -> None:
    """Add numbers to others, one by one."""
    for index, number in enumerate(more):
        numbers[index] += number


def add_snapshot(snapshot: dict[str, Any], more: dict[str, Any]) -> None:
    """Add what another process has counted, or an earlier one."""
    for name, numbers in more["requests"].items():
        add(snapshot["requests"].setdefault(name, no_numbers()), numbers)
    add(snapshot["redis"], more["redis"])
    snapshot["commands"] += more["commands"]


COUNTERS = Counters()  # of this process
