"""What bounds all connections of a worker together: their number, the bytes that nobody reads, and the clock that ends them."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import pytest

from kvstore.core.settings import InvalidSetting, Settings, read_settings
from kvstore.runtime import Runtime
from kvstore.serving import connection, server
from kvstore.serving.server import MAX_REFUSED, Server
from tests.support.inprocess import InProcess
from tests.support.serving import wire as request_bytes
from tests.support.stores import Running, wait_until
from tests.support.wires import Wire

MEBIBYTE = 1024 * 1024
LIMIT_S = 30
GET = request_bytes("GET", "/ns/a")
LARGE = b'"%b"' % (b"x" * (MEBIBYTE - 2))


@pytest.fixture
def store(started: object) -> Running:
    """A real Redis, empty."""
    running: Running = started("redis")  # type: ignore[operator]
    running.redis.flushall()
    return running


# --- Connections --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(store: Running) -> Iterator[InProcess]:
    """A server that takes three connections."""
    running = InProcess(store.url, {"KVSTORE_MAX_CONNECTIONS": "3"})
    yield running
    running.stop()


def test_more_connections_than_allowed(small: InProcess) -> None:
    """503 and Retry-After at once, and the connection ends; whoever is connected goes on, and one that goes makes room."""
    wires = [small.connect() for _ in range(3)]
    for wire in wires:
        wire.send(GET)
        assert wire.answer().status == 404
    refused = small.connect()
    answer = refused.answer()
    assert (answer.status, json.loads(answer.body)["type"], answer.closes) == (503, "urn:kvstore:store-unavailable", True)
    assert ("Retry-After", "1") in answer.lines
    assert refused.rest() == b""
    refused.close()
    late = small.connect()
    late.send(GET)  # what it asks is not answered
    assert late.answer().status == 503
    assert late.rest() == b""
    late.close()
    wires.pop().close()
    wait_until(lambda: len(small.server.connections) == 2, LIMIT_S)
    again = small.connect()
    for wire in (*wires, again):
        wire.send(GET)
        assert wire.answer().status == 404
        wire.close()


@pytest.mark.slow
def test_a_flood_of_connections(small: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are told so are bounded as well."""
    monkeypatch.setattr(connection, "LINGER_S", 60)  # none of them makes room meanwhile
    wires = [small.connect() for _ in range(3)]
    for wire in wires:
        wire.send(GET)
        assert wire.answer().status == 404
    flood = [small.connect() for _ in range(MAX_REFUSED + 20)]
    wait_until(lambda: sum(each.has_ended() for each in flood[MAX_REFUSED:]) == 20, LIMIT_S)
    assert len(small.server.connections) <= 3 + MAX_REFUSED
    for wire in (*wires, *flood):
        wire.close()


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e3"])
def test_a_bad_limit(value: str) -> None:
    """The setting is a number of connections."""
    with pytest.raises(InvalidSetting, match="KVSTORE_MAX_CONNECTIONS must be a whole number"):
        read_settings({"KVSTORE_MAX_CONNECTIONS": value})


# --- Bytes that nobody reads --------------------------------------------------------------------------------------------


class Reading:
    """A connection as a server sees it, whose client has left so much unread since `choked_at`."""

    def __init__(self, unread_bytes: int, choked_at: float) -> None:
        self.due = float("inf")
        self.choked_at = choked_at
        self.is_cut = False
        self._unread_bytes = unread_bytes

    def unread(self) -> int:
        return self._unread_bytes

    def overdue(self) -> None:
        raise AssertionError("it is not")

    def stop(self) -> None:
        pass

    def cut(self) -> None:
        self.is_cut = True


# What connections have unread, in MiB, and for how many seconds; which of them are cut.
HELD: dict[str, tuple[list[tuple[int, int]], list[int]]] = {
    "less than allowed": ([(16, 20)] * 15, []),
    "as much as allowed": ([(16, 20)] * 16, []),
    "one too many": ([(16, 20)] * 16 + [(16, 1)], [0]),
    "one that has just begun is not the one": ([(16, 0), *[(16, 20)] * 16], [1]),
    "a small one is not, however long it takes": ([(1, 29), *[(16, 3)] * 16], [1]),
    "as many as it takes": ([(100, 1), (100, 5), (100, 3), (100, 4), (10, 1)], [1, 3]),
    "where nobody is choked the largest goes": ([(200, 0), (100, 0)], [0]),
}


@pytest.mark.parametrize("row", HELD.values(), ids=HELD)
def test_who_is_cut(row: tuple[list[tuple[int, float]], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds most for longest, until the others are within the limit; each of them once."""
    monkeypatch.setattr(server, "MAX_UNREAD_BYTES", 256 * MEBIBYTE)
    held, cut = row

    async def bound() -> list[int]:
        serving = Server(Runtime(Settings(), None, None, None, None, None))  # type: ignore[arg-type]
        now = serving.loop.time()
        readings = [Reading(size * MEBIBYTE, now - seconds if seconds else 0.0) for size, seconds in held]
        serving.connections |= set(readings)
        for reading in readings:
            serving.choked(reading)
        assert all(reading in serving.connections for reading in readings if not reading.is_cut)
        return [number for number, reading in enumerate(readings) if reading.is_cut]

    found = asyncio.run(bound())
    if held.count(held[cut[0]] if cut else (0, 0)) > 1:  # of several that hold the same it does not matter which
        assert (len(found), held[found[0]]) == (len(cut), held[cut[0]])
    else:
        assert found == cut


def test_unread_responses(store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that read nothing are cut off where they hold too much together; one that reads has its response."""
    monkeypatch.setattr(server, "MAX_UNREAD_BYTES", 24 * MEBIBYTE)
    running = InProcess(store.url)
    running.buffer_little()
    batch = request_bytes("POST", "/_/batch", (), json.dumps({"requests": [{"method": "GET", "path": "/ns/a"}] * 8}).encode())
    try:
        reader = running.connect()
        reader.send(request_bytes("PUT", "/ns/a", (), LARGE))
        assert reader.answer().status == 201
        silent = []
        for _ in range(6):
            wire = Wire(running.at)
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.send(batch)
            silent.append(wire)
            time.sleep(0.2)

        def held() -> int:
            return sum(each.unread() for each in list(running.server.connections))

        wait_until(lambda: held() > 8 * MEBIBYTE, LIMIT_S)
        assert held() <= 24 * MEBIBYTE
        wait_until(lambda: len(running.server.connections) <= 4, LIMIT_S)
        reader.send(batch)
        answer = reader.answer()
        assert (answer.status, len(json.loads(answer.body)["responses"])) == (200, 8)
        for wire in (reader, *silent):
            wire.close()
    finally:
        running.stop()


# --- The clock ----------------------------------------------------------------------------------------------------------


class Overdue(Reading):
    """A connection whose time is over; ending it may fail, and cutting it as well."""

    def __init__(self, *, fails: bool = False, fails_always: bool = False) -> None:
        super().__init__(0, 0.0)
        self.due = 0.0
        self.asked = 0
        self._fails = fails or fails_always
        self._fails_always = fails_always

    def overdue(self) -> None:
        self.asked += 1
        if self._fails:
            raise RuntimeError("a bug of ours")
        self.due = float("inf")

    def cut(self) -> None:
        super().cut()
        if self._fails_always:
            raise RuntimeError("another")


async def asked_once(*connections: Overdue) -> None:
    """Wait until each has been asked to end, and no one again."""
    async with asyncio.timeout(LIMIT_S):
        while not all(each.asked for each in connections):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert {each.asked for each in connections} == {1}


def test_time_limits_go_on_after_an_exception(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What fails for one connection is logged, and that one is cut; the others are ended, now and later."""
    monkeypatch.setattr(server, "CHECK_S", 0.02)

    async def check() -> None:
        serving = Server(Runtime(Settings(), None, None, None, None, None))  # type: ignore[arg-type]
        failing = [Overdue(fails=True), Overdue(fails_always=True)]
        others = [Overdue() for _ in range(20)]
        serving.connections |= {*failing, *others}
        await asked_once(*failing, *others)
        assert all(each.is_cut for each in failing)
        assert serving.connections == set(others)
        later = Overdue()
        serving.connections.add(later)
        await asked_once(later)

    asyncio.run(check())
    assert len([record for record in caplog.records if record.message.startswith("a bug: ")]) == 2
