"""Redis's clock goes back: what expires by its own clock is noticed then, not when the clock is where it was."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from kvstore.serving import connection, server
from kvstore.stores.blocking import BlockingStore
from tests.support.asking import batch, command_of, entries, keys_of
from tests.support.clients import Checked
from tests.support.faulty import as_request
from tests.support.inprocess import InProcess
from tests.support.lanes import on_served
from tests.support.stores import Running, answers, connect, start_redis_on_tcp, wait_for_redis, wait_until

HOUR_MS = 3_600_000
LIMIT_S = 30


@pytest.fixture
def ahead(raw: redis.Redis) -> None:
    """A change log whose last change was made an hour from now, as it is when the clock was set back by that."""
    raw.xadd("kv:{ns}!log", {"put": "x", "ttl": "1000", "$kv": " object"}, id=f"{int(time.time() * 1000) + HOUR_MS}-0")


@pytest.mark.slow
@on_served
@pytest.mark.usefixtures("ahead")
def test_an_expiry_is_noticed_in_time(client: Checked, raw: redis.Redis) -> None:
    """The index says when Redis lets the document go, not an hour later."""
    tag = client.put("/ns/a?ttl=1", "1").tag  # the container's as well
    wait_until(lambda: client.get("/ns/a").status == 404, LIMIT_S)
    time.sleep(0.05)
    assert client.get("/ns/", [("If-None-Match", tag)]).status == 200
    assert entries(raw)[-1].op == "expire"


@on_served
@pytest.mark.usefixtures("ahead")
def test_a_sunset_is_when_it_goes(client: Checked) -> None:
    """What a PUT says of when the document goes is what a GET says."""
    batched = batch(client, [("PUT", f"/ns/{name}", {"ttl": 100}) for name in "bc"]).json["responses"]
    told = {"a": client.put("/ns/a?ttl=100", "1"), "b": batched[0], "c": batched[1]}
    posted = client.request("POST", "/ns/?ttl=100", body=b"1")
    told[posted.headers["Location"].rpartition("/")[2]] = posted
    for name, answer in told.items():
        headers = answer["headers"] if isinstance(answer, dict) else answer.headers
        assert headers["Sunset"] == client.get(f"/ns/{name}").headers["Sunset"], name


def test_a_look_that_fails_is_not_the_last(started: Callable[[str], Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the look at one overdue connection takes no time limit away from the others."""
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    monkeypatch.setattr(server, "CHECK_S", 0.05)
    running = InProcess(started("redis").url)
    look = connection.ClientConnection.overdue
    failed: list[Any] = []

    def fail_once(self: connection.ClientConnection) -> None:
        if not failed:
            failed.append(self)
            raise RuntimeError("a bug")
        look(self)

    monkeypatch.setattr(connection.ClientConnection, "overdue", fail_once)
    try:
        first = running.connect()
        wait_until(lambda: failed, LIMIT_S)
        second = running.connect()
        wait_until(second.has_ended, LIMIT_S)
        first.close()
        second.close()
    finally:
        running.stop()


# --- A failover ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failover_repeats_no_entity_tag(tmp_path: Path) -> None:
    """The clocks of primary and replica are behind the last change: each goes on from there, and neither as the other does."""
    with ExitStack() as stack:
        primary, replica = (started_on_tcp(stack, tmp_path / name) for name in ("primary", "replica"))
        port = primary.connection_pool.connection_kwargs["port"]
        ahead = f"{int(time.time() * 1000) + HOUR_MS}-0"
        primary.xadd(keys_of("ns").log, {"put": "x", "ttl": "1000", "$kv": " object"}, id=ahead)
        replica.replicaof("127.0.0.1", port)
        wait_until(lambda: replica.xlen(keys_of("ns").log) == 1, 30)
        replica.execute_command("REPLICAOF", "NO", "ONE")  # what is written from now on is lost by the failover
        lost, new = ([written(each, number) for number in range(20)] for each in (primary, replica))
        assert not {*lost} & {*new}
        for tags in (lost, new):
            assert tags == sorted(tags, key=lambda tag: [int(part) for part in tag.split("-")])


def started_on_tcp(stack: ExitStack, directory: Path) -> redis.Redis:
    """A Redis that a replica can reach."""
    directory.mkdir()
    port, process = start_redis_on_tcp(directory)
    stack.callback(process.wait)
    stack.callback(process.kill)
    client = connect(f"redis://127.0.0.1:{port}")
    stack.callback(client.close)
    wait_for_redis(process, directory, lambda: answers(client))
    return client


def written(client: redis.Redis, number: int) -> str:
    """The entity-tag of a document that is written."""
    stored: Any = BlockingStore(lambda: client).execute(command_of(as_request("PUT", "/ns/a", number)))
    tag: str = stored.document.tag
    return tag
