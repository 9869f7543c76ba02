"""Edits of one document stand in a line: they lose to nobody in their own process, and nobody in it waits for long."""

import json
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.commands import documents
from kvstore.commands.base import Found, RedisReply, Turns, settled
from kvstore.commands.documents import Edit, Transform
from kvstore.core import codec, json_text
from kvstore.core.errors import StoreUnavailable
from kvstore.core.paths import parse_path
from kvstore.core.preconditions import NONE
from kvstore.stores import edit_queue
from tests.support.asking import at_once, scripts_run
from tests.support.inprocess import InProcess
from tests.support.stores import Running, start_valkey, wait_until
from tests.support.wires import Raw, Wire

EDITS = 60
TOLD_S = 6.0  # until a 503 (docs/errors.md)
LATE_S = 10.0  # that a machine which is busy with other tests may take longer


@pytest.fixture
def valkey(directory: Path) -> Iterator[Running]:
    """A server for one test to halt."""
    running = start_valkey(directory)
    yield running
    running.stop()


@pytest.fixture
def served(valkey: Running) -> Iterator[InProcess]:
    """A server on it, with a document."""
    running = InProcess(valkey.url)
    assert patched(running, EDITS).status == 201
    yield running
    running.stop()


def patch(wire: Wire, number: int, headers: str = "") -> None:
    """Send a nested patch, which is read, changed and written back."""
    body = b'{"players":{"p%d":1}}' % number
    wire.send(b"PATCH /ns/a HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (headers.encode(), len(body), body))


def wait_for(served: InProcess, wires: list[Wire]) -> None:
    """Wait until the server has begun with the requests on these connections; it may have refused some."""

    def has_begun() -> bool:
        answered, _, _ = select.select([wire.socket for wire in wires], [], [], 0)
        connections: list[Any] = list(served.server.connections)
        return bool(sum(each._busy for each in connections) + len(answered) == len(wires))

    wait_until(has_begun, TOLD_S + LATE_S)


def patched(served: InProcess, number: int, headers: str = "") -> Raw:
    wire = served.connect()
    patch(wire, number, headers)
    answer = wire.answer()
    wire.close()
    return answer


@pytest.mark.parametrize("headers", ["", "Idempotency-Key: {}\r\n"], ids=["plain", "once"])
def test_nobody_loses(valkey: Running, served: InProcess, headers: str) -> None:
    """So many at once take two scripts each, one that reads and one that writes, and all arrive."""
    valkey.redis.config_resetstat()
    answers = at_once(lambda number: patched(served, number, headers.format(number)), EDITS)
    assert {answer.status for answer in answers} == {200}
    assert scripts_run(valkey.redis) - 2 * EDITS in range(5), "but for scripts that Redis does not know yet"
    wire = served.connect()
    wire.send(b"GET /ns/a HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(json.loads(wire.answer().body)["players"]) == EDITS + 1
    wire.close()


@pytest.mark.slow
@pytest.mark.usefixtures("real_limits")
def test_redis_is_away(valkey: Running, served: InProcess) -> None:
    """Who stands in line does not wait for those before to be given up one by one; what was never begun is said to be that."""
    valkey.signal(signal.SIGSTOP)
    begun = time.monotonic()
    answers = at_once(lambda number: patched(served, number), EDITS)
    assert time.monotonic() - begun < TOLD_S + LATE_S
    valkey.signal(signal.SIGCONT)
    assert {answer.status for answer in answers} == {503}
    assert sum(b"Nothing was changed" in answer.body for answer in answers) >= EDITS - 1
    wait_until(lambda: patched(served, 0).status == 200, TOLD_S + LATE_S)


def test_redis_refuses(valkey: Running, served: InProcess) -> None:
    """Each is told what it said, also who stood in line."""
    valkey.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    answers = at_once(lambda number: patched(served, number), EDITS)
    assert {answer.status for answer in answers} == {503}
    assert all(b"read-only replica" in answer.body for answer in answers)


@pytest.mark.parametrize(("limit", "told"), [(("MAX_QUEUED", 2), 2), (("QUEUED_S", -1.0), 4)])
def test_a_line_has_an_end(
    valkey: Running, served: InProcess, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, float], told: int
) -> None:
    """So many may wait, and so long; the others are told to come again, and have changed nothing."""
    monkeypatch.setattr(edit_queue, *limit)
    valkey.signal(signal.SIGSTOP)
    wires = [served.connect() for _ in range(5)]
    for number, wire in enumerate(wires):
        patch(wire, number)
        wait_for(served, wires[: number + 1])  # so that they are in this order
    valkey.signal(signal.SIGCONT)
    answers = [wire.answer() for wire in wires]
    assert [answer.status for answer in answers] == [200] * (5 - told) + [503] * told
    assert all(b"too many others" in answer.body for answer in answers[5 - told :])
    for wire in wires:
        wire.close()


def test_who_waits_is_told_in_time(valkey: Running, served: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the one before goes on: that may be for thousands of attempts."""
    monkeypatch.setattr(edit_queue, "QUEUED_S", 0.2)
    valkey.signal(signal.SIGSTOP)
    first, second = served.connect(), served.connect()
    patch(first, 1)
    wait_for(served, [first])
    patch(second, 2)
    assert b"too many others" in second.answer().body
    valkey.signal(signal.SIGCONT)
    assert first.answer().status == 200, "it has been with Redis all the while"
    assert patched(served, 2).status == 200
    first.close()
    second.close()


def test_nobody_is_given_up_with_another(valkey: Running, served: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that others have beaten too often is no sign that Redis is away."""
    monkeypatch.setattr(documents, "MAX_ATTEMPTS", 0)
    valkey.signal(signal.SIGSTOP)
    wires = [served.connect() for _ in range(3)]
    for number, wire in enumerate(wires):
        patch(wire, number)
    wait_for(served, wires)
    valkey.signal(signal.SIGCONT)
    assert all(b"too many others" in wire.answer().body for wire in wires)
    for wire in wires:
        wire.close()


@pytest.mark.parametrize(("size", "most"), [(10, 1000), (json_text.MAX_BYTES - 100, 20)])
def test_attempts_have_an_end(size: int, most: int) -> None:
    """A large document is not tried as often as a small one: a thousand attempts would take minutes."""

    def change(_: Found | None) -> Turns[tuple[codec.Encoded, None]]:
        yield from ()
        return codec.encode(b"{}"), None

    reply = [b"lost", [[b"text", b'"%b"' % (b"x" * size)], -1, -1]]
    beaten(reply, change, most // 2)
    with pytest.raises(StoreUnavailable, match="too many others"):
        beaten(reply, change, most)


def beaten(reply: RedisReply, transform: Transform, times: int) -> None:
    """An edit that loses so often."""
    edit: Any = Edit(parse_path(b"/ns/a"), transform, NONE, 1000)
    for _ in range(times + 1):
        again: Any = settled(edit.next(reply))
        edit = again.command.edit
