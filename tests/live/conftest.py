"""Fixtures: what serves streams, on each of its lanes, on an empty store."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import streams
from tests.support.stores import Running
from tests.support.streams import FOLLOWED, STREAM_LANES, Followed


@pytest.fixture(params=STREAM_LANES, ids="-".join)
def lane(request: pytest.FixtureRequest) -> tuple[str, str]:
    """What serves streams, and a store."""
    kind: tuple[str, str] = request.param
    return kind


@pytest.fixture
def followed(lane: tuple[str, str], store: Running) -> Iterator[Followed]:
    """What serves streams, on an empty store."""
    running = FOLLOWED[lane[0]](store)
    yield running
    running.stop()


@pytest.fixture
def ask(followed: Followed) -> Callable[..., Any]:
    """One request: its JSON, None for none."""
    return lambda *request: streams.ask(followed, *request)
