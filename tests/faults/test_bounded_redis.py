"""What each kind of request costs Redis and a worker: twice as much for twice the input, and never too much at a time.

The requests are those of tests/support/heaviest.py. A size is compared with twice that size. The cost of the largest one is
held to the limits: 50 ms of Redis, and 100 ms of an event loop.
"""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import pytest
import redis

from tests.support.faulty import hasten
from tests.support.heaviest import CASES, Bench, Case
from tests.support.inprocess import InProcess
from tests.support.measures import TWICE_AND_A_BIT, Scripts, longest_turn_s, scripts, worker_s
from tests.support.serving import Served

pytestmark = [pytest.mark.slow, pytest.mark.alone]

LIMIT_S = 0.05  # of Redis, at a time
TURN_S = 0.1  # of an event loop
BUSY = 2  # times as long as that it may take where other tests run on the same cores
FEW_RUNS, RUNS = 3, 11  # more than a few where the machine is busy
FLOOR_S, OWN_FLOOR_S = 0.001, 0.005  # below which it is what any request costs


@pytest.fixture
def bench(serving: Served, backing: redis.Redis, started: Callable[[str], Any]) -> Bench:
    """The service with one worker, on an empty Redis."""
    return Bench(serving, backing, started("redis").url)


class Cost(NamedTuple):
    """What a case takes: of Redis, and of the worker."""

    redis: Scripts
    own_s: float


def are_twice(doubles: list[Cost], singles: list[Cost]) -> bool:
    """Whether half of the one took at most twice as much, and a bit, as half of the other."""
    redis_s, redis_twice_s = (median(each.redis.redis_s for each in costs) for costs in (singles, doubles))
    own_s, own_twice_s = (median(each.own_s for each in costs) for costs in (singles, doubles))
    return redis_twice_s < TWICE_AND_A_BIT * max(FLOOR_S, redis_s) and own_twice_s < TWICE_AND_A_BIT * max(OWN_FLOOR_S, own_s)


def costs(bench: Bench, case: Case, size: int) -> Cost:
    """What a case takes, on an empty Redis in which is what it needs."""
    bench.raw.flushall()
    case.before(bench, size)
    asked: list[Scripts] = []
    assert isinstance(bench.serving, Served)
    own_s = worker_s(bench.serving, lambda: asked.append(scripts(bench.raw, lambda: case.action(bench, size))))
    return Cost(asked[0], own_s)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_twice_as_much_costs_twice_as_much(bench: Bench, case: Case) -> None:
    """Redis, and the worker, in runs that alternate."""
    singles: list[Cost] = []
    doubles: list[Cost] = []
    while len(singles) < FEW_RUNS or (len(singles) < RUNS and not are_twice(doubles, singles)):
        singles.append(costs(bench, case, case.size))
        doubles.append(costs(bench, case, 2 * case.size))
    assert are_twice(doubles, singles), (singles, doubles)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_script_holds_redis_up(bench: Bench, case: Case) -> None:
    """The longest script of the largest one that is allowed, where each has the least time of several runs."""
    asked = costs(bench, case, case.largest).redis
    for _ in range(RUNS):
        if asked.longest_s < LIMIT_S:
            break
        asked = asked.best_of(costs(bench, case, case.largest).redis)
    assert asked.longest_s < BUSY * LIMIT_S


@pytest.fixture
def looped(started: Callable[[str], Any], backing: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """The service on an event loop of this process, on an empty Redis; whoever asks waits, however busy the machine is."""
    hasten(monkeypatch, 60)
    url = started("redis").url
    running = InProcess(url)
    yield Bench(running, backing, url)
    running.stop()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_no_turn_holds_the_loop_up(looped: Bench, case: Case) -> None:
    """The processor time of the longest turn, the least of several runs."""

    def turn_s() -> float:
        looped.raw.flushall()
        case.before(looped, case.largest)
        assert isinstance(looped.serving, InProcess)
        return longest_turn_s(looped.serving, lambda: case.action(looped, case.largest))

    least_s = turn_s()
    for _ in range(RUNS):
        if least_s < TURN_S:
            break
        least_s = min(least_s, turn_s())
    assert least_s < BUSY * TURN_S
