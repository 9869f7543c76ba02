"""Redis's clock goes back: what expires by its own clock is noticed then, not when the clock is where it was."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from kvstore.serving import connection, server
from tests.support.asking import batch, entries
from tests.support.clients import Checked
from tests.support.inprocess import InProcess
from tests.support.lanes import on_served
from tests.support.stores import Running, wait_until

HOUR_MS = 3_600_000


@pytest.fixture
def ahead(raw: redis.Redis) -> None:
    """A change log whose last change was made an hour from now, as it is when the clock was set back by that."""
    raw.xadd("kv:{ns}!log", {"put": "x", "ttl": "1000", "$kv": " object"}, id=f"{int(time.time() * 1000) + HOUR_MS}-0")


@on_served
@pytest.mark.usefixtures("ahead")
def test_an_expiry_is_noticed_in_time(client: Checked, raw: redis.Redis) -> None:
    """The index says when Redis lets the document go, not an hour later."""
    client.put("/ns/a?ttl=1", "1")
    tag = client.get("/ns/").tag
    wait_until(lambda: client.get("/ns/a").status == 404, 5)
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
        wait_until(lambda: failed, 5)
        second = running.connect()
        wait_until(second.has_ended, 5)
        first.close()
        second.close()
    finally:
        running.stop()
