"""The metrics of the command `kvstore`: all of its workers together, also of those that have died."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.http.test_metrics import Samples, samples
from tests.support.serving import Served, start_kvstore
from tests.support.stores import start_valkey, wait_until
from tests.support.streams import open_reader

LIMIT_S = 30
SHOWN_S = 2.1  # every worker has shown its numbers since, and they are not kept any more

pytestmark = pytest.mark.slow


def read(served: Served) -> Samples:
    """The metrics, as they were a moment ago."""
    return samples(served.request("GET", "/_/metrics").content.decode())


def read_until(served: Served, holds: Callable[[Samples], bool]) -> Samples:
    """The metrics as soon as this is true of them; it is true of the next ones too."""
    wait_until(lambda: holds(read(served)), LIMIT_S)
    time.sleep(SHOWN_S)
    found = read(served)
    assert holds(found)
    return found


def puts(found: Samples) -> float:
    """How many PUTs were answered."""
    return found.get(("kvstore_requests_total", "PUT", "2xx"), 0)


def test_all_workers_together(directory: Path) -> None:
    """Each request is counted once, whichever worker has answered it; streams, waits and connections are those of all."""
    store = start_valkey(directory)
    served = start_kvstore(directory, REDIS_URL=store.url, WEB_CONCURRENCY="2")
    read_until(served, lambda found: puts(found) == 0)
    for number in range(40):
        assert served.request("PUT", f"/ns/{number}", body=b"1").status == 201
    readers = [open_reader(served.at, path, {}) for path in ("/ns/", "/ns/1")]
    for reader in readers:
        reader.wait_for(1)
    found = read_until(served, lambda found: (puts(found), found["kvstore_streams",], found["kvstore_workers",]) == (40, 2, 2))
    assert found["kvstore_connections",] >= 3
    assert found["kvstore_memory_bytes",] > 30_000_000
    for reader in readers:
        reader.close()
    read_until(served, lambda found: found["kvstore_streams",] == 0)
    served.kill()
    store.stop()


def kill_a_worker(served: Served) -> None:
    """Kill one of the two workers, and wait for its successor."""
    killed = next(pid for pid in served.processes() if pid != served.process.pid)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in served.processes() and len(served.processes()) == 3, LIMIT_S)


def test_a_worker_is_killed(directory: Path) -> None:
    """What it has counted stays, what it held open is gone, and its successor goes on counting."""
    store = start_valkey(directory)
    served = start_kvstore(directory, REDIS_URL=store.url, WEB_CONCURRENCY="2")
    for number in range(20):
        assert served.request("PUT", f"/ns/{number}", body=b"1").status == 201
    read_until(served, lambda found: puts(found) == 20)
    for _ in range(2):
        kill_a_worker(served)
        read_until(served, lambda found: (puts(found), found["kvstore_workers",]) == (20, 2))
    for number in range(20):
        assert served.request("PUT", f"/ns/{number}", body=b"2").status == 200
    read_until(served, lambda found: puts(found) == 40)
    served.kill()
    store.stop()


def test_redis_is_away(directory: Path) -> None:
    """The metrics are there all the same, and say so."""
    store = start_valkey(directory)
    served = start_kvstore(directory, REDIS_URL=store.url, WEB_CONCURRENCY="1")
    read_until(served, lambda found: found["kvstore_redis_up",] == 1)
    store.stop()
    read_until(served, lambda found: found["kvstore_redis_up",] == 0)
    served.kill()
