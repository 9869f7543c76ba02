"""The blocking store leaves nothing open, and can be used in a forked process."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from kvstore.commands.documents import Get
from kvstore.core.paths import parse_path
from tests.support.stores import SERVERS, Running, wait_until


@pytest.mark.parametrize("name", SERVERS)
def test_close_closes_the_connections(started: Callable[[str], Running], name: str) -> None:
    """Redis has as many clients as before."""
    running = started(name)
    before = connections(running)
    store = running.open()
    store.execute(Get(parse_path(b"/ns/a")))
    [ours] = connections(running) - before
    store.close()
    wait_until(lambda: ours not in connections(running), 30)


def connections(running: Running) -> set[str]:
    """Those to a server, which are others after each test."""
    return {each["id"] for each in running.redis.client_list()}


FORKED = """
import os
from kvstore.commands.documents import Get
from kvstore.core.paths import parse_path
from kvstore.stores import redis_clients
from kvstore.stores.blocking import open_blocking_store
from kvstore.stores.redis_clients import MAX_BLOCKING_CONNECTIONS, TimeOuts

redis_clients.BLOCKING = TimeOuts(queue_s=15.0, connect_s=15.0, answer_s=20.0)  # on a busy machine
store = open_blocking_store(os.environ["REDIS_URL"])
get = Get(parse_path(b"/nobody/writes/this"))  # what is there would have another TTL each time
nothing = store.execute(get)
store._lock.acquire()  # as a thread that is connecting at that moment does
for _ in range(MAX_BLOCKING_CONNECTIONS):
    assert store._turns.acquire(0)  # and as threads that wait for Redis do
pid = os.fork()
if pid == 0:
    assert store.execute(get) == nothing
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
store._lock.release()
store._turns.release()
assert store.execute(get) == nothing
print("both")
"""


def test_a_process_that_was_forked(started: Callable[[str], Running]) -> None:
    """It has connections of its own, whatever the parent's threads were doing, and the parent's are not closed."""
    environ = os.environ | {"REDIS_URL": started("redis").url}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKED], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("both\n", "", 0)
