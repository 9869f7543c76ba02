"""The blocking store leaves nothing open."""

from collections.abc import Callable

import pytest

from kvstore.commands.documents import Get
from kvstore.core.paths import parse_path
from tests.support.stores import SERVERS, Running, wait_until


@pytest.mark.parametrize("name", SERVERS)
def test_close_closes_the_connections(started: Callable[[str], Running], name: str) -> None:
    """Redis has as many clients as before."""
    running = started(name)
    before = len(running.redis.client_list())
    store = running.open()
    store.execute(Get(parse_path(b"/ns/a")))
    assert len(running.redis.client_list()) == before + 1
    store.close()
    wait_until(lambda: len(running.redis.client_list()) == before, 10)
