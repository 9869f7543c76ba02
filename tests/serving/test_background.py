"""The event loop behind an adapter that has none: it starts when it is needed, once in each process, and ends with it."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from kvstore.core.errors import StoreUnavailable
from kvstore.live.hub import MAX_BUFFERED_BYTES
from kvstore.live.stream_session import HEARTBEAT_S
from kvstore.runtime import Runtime
from kvstore.serving.background import Background
from tests.support.clients import flask_runtime
from tests.support.stores import Running, wait_until
from tests.support.streams import FlaskServer, ask, following
from tests.support.wires import Wire

LIMIT_S = 30


@pytest.fixture
def store(started: object) -> Running:
    """A real Redis, empty."""
    running: Running = started("redis")  # type: ignore[operator]
    running.redis.flushall()
    return running


@pytest.fixture
def background(store: Running) -> Iterator[Background]:
    """One that has not started."""
    runtime = flask_runtime(store, {})
    yield runtime.background
    runtime.background.close()
    runtime.store.close()


@pytest.fixture
def threads() -> Callable[[], int]:
    """How many event loops have been started since, and run: other tests of this process may keep some."""

    def running() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "kvstore"}

    before = running()
    return lambda: len(running() - before)


async def number(_: Runtime) -> int:
    return 7


def test_it_starts_when_it_is_needed(threads: Callable[[], int], background: Background) -> None:
    """One thread, however many ask at once, and none before."""
    assert threads() == 0
    found: list[int] = []
    asking = [threading.Thread(target=lambda: found.append(background.run(number))) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert found == [7] * 8
    assert threads() == 1
    background.close()
    assert threads() == 0
    with pytest.raises(StoreUnavailable):
        background.run(number)


def test_what_goes_wrong_is_raised(background: Background) -> None:
    """In the thread that asked; the next one is answered."""

    async def fail(_: Runtime) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        background.run(fail)
    assert background.run(number) == 7


def test_a_runtime_that_does_not_open(threads: Callable[[], int]) -> None:
    """Whoever needed it is told, and so is the next."""

    def fail() -> Runtime:
        raise ValueError("no")

    background = Background(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            background.run(number)
    assert threads() == 0


def test_closing_ends_who_waits(background: Background) -> None:
    """Nobody is left waiting for an event loop that has ended."""

    async def wait(_: Runtime) -> None:
        await asyncio.Event().wait()

    waiting = background.start(wait)
    background.close()
    assert waiting.cancelled()


FORKING = """
import os, sys, threading
from kvstore.runtime import Runtime, open_runtime
from kvstore.core.settings import read_settings
from kvstore.serving.background import Background

background = Background(lambda: open_runtime(read_settings(os.environ)))

async def number(_):
    return os.getpid()

assert background.run(number) == os.getpid()
background._lock.acquire()  # as a thread that is starting one at that moment does
pid = os.fork()
if pid == 0:
    assert background.run(number) == os.getpid()
    assert threading.active_count() == 2
    background.close()
    os._exit(7)
background._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert background.run(number) == os.getpid()
print("both")
"""


def test_a_process_that_was_forked(store: Running) -> None:
    """It starts a loop of its own, whatever the parent's threads were doing, and the parent's goes on."""
    environ = os.environ | {"REDIS_URL": store.url}
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], env=environ, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("both\n", "", 0)


# --- Flask's streams on it ----------------------------------------------------------------------------------------------


@pytest.fixture
def served(store: Running) -> Iterator[FlaskServer]:
    """The blueprint in Flask's own server."""
    running = FlaskServer(store)
    yield running
    running.stop()


def test_a_change_is_read_once(threads: Callable[[], int], served: FlaskServer, store: Running) -> None:
    """However many streams follow a path: one connection that Redis tells what has changed, one that reads."""
    with following(served, "/room/") as one, following(served, "/room/") as two, following(served, "/room/1") as three:
        for reader in (one, two, three):
            reader.wait_for(1)
        before = store.redis.info("commandstats")
        ask(served, "PUT", "/room/1", 1)
        for reader in (one, two, three):
            reader.wait_for(2)
        after = store.redis.info("commandstats")
        scripts = sum(after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after if "eval" in name)
        assert scripts <= 5, "the PUT, and who reads the log once or twice, not three times as often"
        assert threads() == 1


def test_a_reader_that_goes_is_noticed_at_once(served: FlaskServer, store: Running) -> None:
    """Not with the next heartbeat: what it held goes."""
    with following(served, "/room/?hold=/people/ada") as reader:
        reader.wait_for(1)
        assert ask(served, "GET", "/people/ada") is None
    assert wait_until(lambda: served.request("GET", "/people/ada").status == 404, LIMIT_S) < HEARTBEAT_S - 2


def test_a_reader_that_does_not_read(served: FlaskServer) -> None:
    """It is dropped with 1 MiB buffered, what it held is released, and its thread is free."""
    wire = Wire(served.at)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    before = threading.active_count()
    wire.send(b"GET /room/?hold=/people/ada HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n")
    wait_until(lambda: served.request("GET", "/people/ada").status == 200, LIMIT_S)
    with following(served, "/room/") as reader:
        reader.wait_for(1)
        for count in range(1, 100):
            ask(served, "PUT", "/room/1", f"{count:06}" * 40_000)
            reader.wait_for(count + 1)
            if served.request("GET", "/people/ada").status == 404:
                break
        assert count * 240_000 > MAX_BUFFERED_BYTES
        assert count < 99
    wait_until(lambda: threading.active_count() <= before + 2, LIMIT_S)  # the loop's, and that of the reader that reads
    wire.close()
