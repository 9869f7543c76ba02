"""A primary behind Sentinels: writes go to the primary of the moment, before and after a failover, and streams go on."""

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.core.errors import StoreUnavailable
from kvstore.stores import redis_clients
from kvstore.stores.blocking import open_blocking_store
from kvstore.stores.redis_clients import TRUSTED_S
from tests.support.clients import FlaskClient
from tests.support.inprocess import InProcess
from tests.support.sentinels import LIMIT_S, Sentinels
from tests.support.stores import connect, free_ports, wait_until

ANSWER_S = 6.0  # until a 503 (docs/errors.md)
READY_S = 1.0  # and for /_/ready
LATE_S = 10.0  # that a machine which is busy with other tests may take longer

real_limits = pytest.mark.usefixtures("real_limits")


@pytest.fixture
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """A primary, its replica and three Sentinels."""
    with ExitStack() as stack:
        yield Sentinels(tmp_path_factory.mktemp("sentinel"), stack)


def ask(served: InProcess, method: str, target: str, body: object = None) -> tuple[int, Any]:
    """One request on a connection of its own: its status and JSON."""
    connection = http.client.HTTPConnection(*served.at, timeout=LIMIT_S)
    connection.request(method, target, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else None


def begin_to_follow(served: InProcess, sentinels: Sentinels) -> tuple[int, list[Any]]:
    """Follow a document that the replica has too: the primary's port, and the events, as they come."""
    wait_until(lambda: ask(served, "PUT", "/room/1", {"n": 0})[0] in (200, 201), LIMIT_S)
    events: list[Any] = []
    threading.Thread(target=follow, args=(served, events)).start()
    wait_until(lambda: events, LIMIT_S)
    first = sentinels.primary()
    wait_until(lambda: is_on_the_replica(first), LIMIT_S)
    return first, events


@real_limits
@pytest.mark.slow
def test_a_primary_that_hangs(sentinels: Sentinels) -> None:
    """A stream on which nothing happens goes on with the new primary, soon after that serves."""
    served = InProcess(sentinels.url)
    try:
        first, events = begin_to_follow(served, sentinels)
        sentinels.processes[first].send_signal(signal.SIGSTOP)
        wait_until(lambda: ask(served, "PUT", "/room/1", {"n": 1})[0] == 200, LIMIT_S)
        wait_until(lambda: events[-1]["value"] == {"n": 1}, 10)
    finally:
        served.stop()


@real_limits
@pytest.mark.slow
def test_readiness_while_all_hang(sentinels: Sentinels) -> None:
    """503 after 1 s, whether a connection is open or the Sentinels have to be asked for one, and over Flask too."""
    store: Any = SimpleNamespace(url=sentinels.url, open=lambda: open_blocking_store(sentinels.url))
    served, flask = InProcess(sentinels.url), FlaskClient(store, {})

    def statuses() -> list[int]:
        return [ask(served, "GET", "/_/ready")[0], flask.request("GET", "/_/ready").status]

    try:
        wait_until(lambda: statuses() == [200, 200], LIMIT_S)
        for process in sentinels.all_processes():
            process.send_signal(signal.SIGSTOP)
        for _ in range(6):
            begun = time.monotonic()
            assert statuses() == [503, 503]
            assert time.monotonic() - begun < 2 * READY_S + LATE_S
            assert ask(served, "GET", "/_/health")[0] == 200
        for process in sentinels.all_processes():
            process.send_signal(signal.SIGCONT)
        wait_until(lambda: statuses() == [200, 200], LIMIT_S)
    finally:
        served.stop()
        flask.close()


@real_limits
@pytest.mark.slow
def test_a_failover(sentinels: Sentinels) -> None:
    """What is served goes on with the new primary, by both kinds of store; a stream resumes without loss."""
    served = InProcess(sentinels.url)
    store = open_blocking_store(sentinels.url)
    try:
        first, events = begin_to_follow(served, sentinels)
        sentinels.processes[first].kill()

        wait_until(lambda: ask(served, "PUT", "/room/1", {"n": 1})[0] == 200, LIMIT_S)
        assert sentinels.primary() != first
        status, read = ask(served, "GET", "/room/1")
        assert (status, read["n"]) == (200, 1)
        wait_until(lambda: events[-1]["value"] == {"n": 1}, LIMIT_S)
        wait_until(lambda: reads_again(store, "/room/1") == b'{"n":1}', LIMIT_S)
    finally:
        served.stop()
        store.close()


def follow(served: InProcess, events: list[Any]) -> None:
    """Collect what comes on a stream, which must not end."""
    with closing(http.client.HTTPConnection(*served.at, timeout=2 * LIMIT_S)) as connection:
        while True:
            connection.request("GET", "/room/1", headers={"Accept": "text/event-stream"})
            with connection.getresponse() as answer:
                if answer.status != 200:  # the primary is not found yet
                    answer.read()
                    continue
                for line in answer:
                    if line.startswith(b"data: {"):
                        events.append(json.loads(line[6:]))
                return


def is_on_the_replica(primary: int) -> bool:
    """Whether the primary's replica has all that was written."""
    with connect(f"redis://127.0.0.1:{primary}") as client:
        return bool(client.wait(1, 1000) == 1)


def store_reads(store: Any, path: str) -> bytes:
    """A document's text, by the blocking store."""
    from kvstore.commands.documents import Get
    from kvstore.core.paths import parse_path

    text: bytes = store.execute(Get(parse_path(path.encode()))).text
    return text


def reads_again(store: Any, path: str) -> bytes | None:
    """The same, None while its connection is the one to the primary that was killed."""
    try:
        return store_reads(store, path)
    except StoreUnavailable:
        return None


@pytest.mark.slow
def test_a_sentinel_that_hangs(sentinels: Sentinels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another is asked in time, by both kinds of store. When all of them have died, the primary serves on."""
    monkeypatch.setattr(redis_clients, "BLOCKING", replace(redis_clients.BLOCKING, connect_s=4.0))  # a second for each
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = sentinels.url.replace("://", f"://127.0.0.1:{silent.getsockname()[1]},")
        served, store = InProcess(url), open_blocking_store(url)
        try:
            assert ask(served, "PUT", "/room/1", 1)[0] == 201
            assert store_reads(store, "/room/1") == b"1"
            for process in sentinels.watching:
                process.kill()
            time.sleep(1.2 * TRUSTED_S)
            assert ask(served, "PUT", "/room/1", 2)[0] == 200
            assert store_reads(store, "/room/1") == b"2"
        finally:
            served.stop()
            store.close()


@real_limits
def test_no_sentinel_answers() -> None:
    """503 within 6 s, as for any Redis that is away, by both kinds of store."""
    nobody = free_ports(1)[0]
    served = InProcess(f"redis+sentinel://127.0.0.1:{nobody}/main")
    begun = time.monotonic()
    try:
        status, problem = ask(served, "GET", "/a/b")
        assert (status, problem["type"]) == (503, "urn:kvstore:store-unavailable")
        with pytest.raises(StoreUnavailable):
            store_reads(open_blocking_store(f"redis+sentinel://127.0.0.1:{nobody}/main"), "/a/b")
        assert time.monotonic() - begun < 2 * ANSWER_S + LATE_S
    finally:
        served.stop()
