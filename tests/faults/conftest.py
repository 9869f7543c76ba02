"""Fixtures: the command `kvstore` with one worker, so that what it costs is what one process costs, on an empty Redis."""

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.support.faulty import Backing
from tests.support.serving import Served, start_kvstore
from tests.support.stores import Running, make_directory


@pytest.fixture(scope="session")
def served(started: Callable[[str], Running]) -> Iterator[Served]:
    """The command, on whatever is stored."""
    running = start_kvstore(make_directory(), REDIS_URL=started("redis").url, WEB_CONCURRENCY="1")
    yield running
    running.kill()


@pytest.fixture
def backing(started: Callable[[str], Running]) -> redis.Redis:
    """The Redis behind it, empty."""
    client: redis.Redis = started("redis").redis
    client.flushall()
    return client


@pytest.fixture
def serving(served: Served, backing: redis.Redis) -> Served:
    """The command, on an empty Redis."""
    return served


@pytest.fixture(scope="session")
def behind_proxy() -> Iterator[Callable[[str], Backing]]:
    """A Redis behind a proxy that makes faults: single or cluster, started when first asked for."""
    started: dict[str, Backing] = {}

    def start(kind: str) -> Backing:
        if kind not in started:
            started[kind] = Backing(is_cluster=kind == "cluster")
        return started[kind]

    yield start
    for each in started.values():
        each.stop()
