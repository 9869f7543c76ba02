"""Slow and hostile clients: they are dropped when their time is over, and nobody else notices them.

Against the real command where the time is what counts; with limits of a fraction of a second where the rule is.
"""

import contextlib
import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvstore.serving import bounds
from kvstore.serving import connection as server
from kvstore.serving import server as shared
from tests.support.inprocess import InProcess
from tests.support.measures import longest_turn_s, workers
from tests.support.serving import Served, start_kvstore
from tests.support.serving import wire as request_bytes
from tests.support.stores import Running, make_directory, wait_until
from tests.support.wires import Wire, unread

HEAD_S = 10  # as docs/http.md promises
LATE_S = 10.0  # that a server may be late in noticing, on a machine that is busy with other tests
SLOW = 200
REQUESTS = 300
FACTOR, FLOOR_S = 5, 0.02  # generous, since machines are noisy; make bench measures the real one
GET = request_bytes("GET", "/ns/a")


@pytest.fixture(scope="module")
def serving(started: Callable[[str], Running]) -> Iterator[Served]:
    """The command `kvstore`, one document in it."""
    store = started("redis")
    store.redis.flushall()
    directory = make_directory()
    running = start_kvstore(directory, REDIS_URL=store.url)
    assert running.request("PUT", "/ns/a", body=b'{"a":1}').status == 201
    yield running
    running.kill()


def opened(serving: Served, count: int, first: bytes) -> list[Wire]:
    """As many connections, each of which has sent this much."""
    wires = [Wire(serving.at, limit_s=30) for _ in range(count)]
    for wire in wires:
        wire.send(first)
    return wires


def p99_s(serving: Served) -> float:
    """The time within which 99 of 100 requests are answered, on four connections in turn."""
    wires = [Wire(serving.at) for _ in range(4)]
    took = []
    for number in range(REQUESTS):
        wire = wires[number % len(wires)]
        begun = time.perf_counter()
        wire.send(GET)
        assert wire.answer().status == 200
        took.append(time.perf_counter() - begun)
    for wire in wires:
        wire.close()
    return sorted(took)[REQUESTS * 99 // 100]


class Trickle(threading.Thread):
    """Sends a byte on each of many connections, again and again, until it is stopped or they are closed."""

    def __init__(self, wires: list[Wire], pause_s: float) -> None:
        super().__init__(daemon=True)
        self._wires = wires
        self._pause_s = pause_s
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self._pause_s):
            for wire in self._wires:
                with contextlib.suppress(OSError):
                    wire.socket.send(b" ")

    def stop(self) -> None:
        self._stopped.set()
        self.join()


# What 200 clients have sent when they begin to trickle; None for a pause: they send nothing more.
HELD = [
    ("nothing", b"", None),
    ("half a request line", b"GET /ns/a HT", None),
    ("half a head", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nX: ", 0.1),
    ("no body", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", None),
    ("a body a byte at a time", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", 0.1),
    ("half a body", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b" " * 30_000, 0.1),
    ("chunks", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n", 0.1),
]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("first", "pause_s"), [row[1:] for row in HELD], ids=[row[0] for row in HELD])
def test_slow_clients_do_not_slow_others(serving: Served, first: bytes, pause_s: float | None) -> None:
    """200 of them, and the others' p99 stays about what it was, in one of three rounds."""
    limit_s = FACTOR * p99_s(serving) + FLOOR_S
    slow = opened(serving, SLOW, first)
    trickle = Trickle(slow, pause_s) if pause_s else None
    if trickle:
        trickle.start()
    is_served = any(p99_s(serving) < limit_s for _ in range(3))
    if trickle:
        trickle.stop()
    for wire in slow:
        wire.close()
    assert is_served


@pytest.mark.slow
def test_a_head_has_ten_seconds(serving: Served) -> None:
    """However it comes: nothing at all, half a line, a byte at a time. And who was quick is kept."""
    heads = [b"", b"\r\n", b"GET", b"GET /ns/a HTTP/1.1\r\n", b"GET /ns/a HTTP/1.1\r\nX: "]
    begun: dict[Wire, float] = {}

    def begin(head: bytes) -> Wire:
        began = time.monotonic()
        [wire] = opened(serving, 1, head)
        begun[wire] = began
        return wire

    still = [begin(head) for head in heads]
    trickling = [begin(head) for head in heads[2:]]
    second = opened(serving, 2, GET)
    for wire in second:
        assert wire.answer().status == 200
        begun[wire] = time.monotonic()
        wire.send(b"GET /ns/a HT")
    quick = opened(serving, 1, GET)[0]
    assert quick.answer().status == 200
    trickle = Trickle([*trickling, second[1]], 0.5)
    trickle.start()
    ended_s: dict[Wire, float] = {}

    def all_ended() -> bool:
        for wire in [*still, *trickling, *second]:
            if wire not in ended_s and wire.has_ended():
                ended_s[wire] = time.monotonic() - begun[wire]
        return len(ended_s) == len(still) + len(trickling) + len(second)

    try:
        wait_until(all_ended, HEAD_S + LATE_S + 1)
    finally:
        trickle.stop()
    assert min(ended_s.values()) > HEAD_S - 0.1
    assert max(ended_s.values()) < HEAD_S + LATE_S
    quick.send(GET)
    assert quick.answer().status == 200


# --- The same rules with short limits, in this process ------------------------------------------------------------------


@pytest.fixture
def impatient(started: Callable[[str], Running], monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """The production server with limits of a second."""
    for name, limit_s in (("HEAD_S", 1.0), ("BODY_S", 1.0), ("WRITE_S", 1.0), ("LINGER_S", 0.2)):
        monkeypatch.setattr(server, name, limit_s)
    monkeypatch.setattr(shared, "CHECK_S", 0.05)
    store = started("valkey")
    store.redis.flushall()
    running = InProcess(store.url)
    yield running
    running.stop()


def test_the_limits_are_the_documented_ones() -> None:
    """10 s for a head, 30 s for a body."""
    assert (bounds.HEAD_S, bounds.BODY_S) == (10, 30)


BEGUN = [
    ("a head", b"PUT /ns/slow HTTP/1.1\r\nX: "),
    ("a body", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n1"),
    ("a body that is announced", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000\r\n\r\n"),
    ("a chunk", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n1"),
    ("a chunk extension", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;x"),
    ("a trailer", b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX:"),
    ("a second head", GET + b"GET /ns/a HT"),
    ("a second body", GET + b"PUT /ns/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n1"),
]


@pytest.mark.few
@pytest.mark.parametrize("trickles", [False, True], ids=["still", "trickling"])
@pytest.mark.parametrize("begun", [row[1] for row in BEGUN], ids=[row[0] for row in BEGUN])
def test_what_takes_too_long_is_closed(impatient: InProcess, started: Callable[..., Any], begun: bytes, trickles: bool) -> None:
    """The time counts from the first byte, however steadily the others trickle; 408, and nothing is stored."""
    wire = impatient.connect()
    wire.send(begun)
    started_at = time.monotonic()
    trickle = Trickle([wire], 0.05)
    if trickles:
        trickle.start()
    statuses = [wire.answer().status for _ in range(2 if begun.startswith(GET) else 1)]
    if trickles:
        trickle.stop()
    took_s = time.monotonic() - started_at
    assert statuses[-1] == 408
    assert wire.rest() == b""
    assert 0.7 < took_s < LATE_S
    assert started("valkey").redis.dbsize() == 0


def test_an_empty_line_in_pieces(impatient: InProcess) -> None:
    """CR and LF in turns are no head that begins anew each time."""
    wire, pieces = impatient.connect(), itertools.cycle([b"\r", b"\n"])

    def has_ended() -> bool:
        wire.send_what_is_read(next(pieces))
        return wire.has_ended()

    wait_until(has_ended, LATE_S)
    wire.close()


def test_an_empty_line_again_and_again_is_no_head(impatient: InProcess) -> None:
    """The empty lines that may come before a request do not keep a connection open for ever."""
    wire = impatient.connect()

    def has_ended() -> bool:
        wire.send_what_is_read(b"\r\n")
        return wire.has_ended()

    wait_until(has_ended, LATE_S)


MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize("requests", [1, 2, 500], ids=["one request", "two requests", "many requests"])
def test_a_client_that_never_reads_is_dropped(impatient: InProcess, requests: int) -> None:
    """What the kernel does not take is waited for, for a while, then the connection is broken."""
    wire = impatient.connect()
    wire.send(request_bytes("PUT", "/ns/big", body=b'"' + b"x" * (MEBIBYTE - 2) + b'"'))
    assert wire.answer().status == 201
    wire.close()
    wait_until(lambda: not impatient.server.connections, 30)
    impatient.buffer_little()
    with unread(impatient.at) as connection:
        connection.sendall(request_bytes("GET", "/ns/big") * requests)
        wait_until(lambda: impatient.server.connections, 30)
        wait_until(lambda: not impatient.server.connections, 30)


def test_a_client_that_reads_slowly_is_served(impatient: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads on, however slowly, and within the time, gets all of it."""
    monkeypatch.setattr(server, "WRITE_S", 10)
    wire = impatient.connect()
    wire.send(request_bytes("PUT", "/ns/big", body=b'"' + b"x" * (MEBIBYTE - 2) + b'"'))
    assert wire.answer().status == 201
    wire.close()
    received = 0
    with unread(impatient.at) as connection:
        connection.sendall(request_bytes("GET", "/ns/big"))
        connection.settimeout(30)
        while received < MEBIBYTE:
            piece = connection.recv(200_000)
            assert piece, f"closed after {received} bytes"
            received += len(piece)
            time.sleep(0.005 if received < MEBIBYTE // 4 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [[], [("Connection", "close")]], ids=["kept", "closed"])
def test_a_long_listing_is_read_to_its_end(
    impatient: InProcess, monkeypatch: pytest.MonkeyPatch, fields: list[tuple[str, str]]
) -> None:
    """A client that takes a second over a reply gets all of it, also where the connection ends with it."""
    monkeypatch.setattr(server, "WRITE_S", 10)
    wire = impatient.connect()
    for number in range(12):
        wire.send(request_bytes("PUT", f"/many/{number}", body=b'"' + b"x" * (MEBIBYTE - 2) + b'"'))
        assert wire.answer().status == 201
    wire.close()
    received, paused = bytearray(), 0
    impatient.buffer_little()
    with unread(impatient.at, 65_536) as connection:
        connection.sendall(request_bytes("GET", "/many/", [("Accept", "application/x-ndjson"), *fields]))
        connection.settimeout(30)
        while not received.endswith(b"\r\n0\r\n\r\n"):
            piece = connection.recv(200_000)
            assert piece, f"closed after {len(received)} bytes"
            received += piece
            if len(received) // MEBIBYTE > max(paused, 7):
                paused = len(received) // MEBIBYTE
                time.sleep(0.25)


@pytest.mark.parametrize("piece", [b"\r\n", b"\r", b"\n", b"\r\n\r\n", b"GET"], ids=repr)
def test_a_packet_of_rubbish_costs_little(impatient: InProcess, piece: bytes) -> None:
    """What is no request is passed over or refused in a time that nobody else notices."""
    rubbish, other = impatient.connect(), impatient.connect()
    longest_s = longest_turn_s(impatient, lambda: rubbish.send_what_is_read(piece * (4 * MEBIBYTE // len(piece))))
    other.send(GET)
    assert other.answer().status == 404
    assert longest_s < 1
    rubbish.close()
    other.close()


def resident_mib(pids: list[int]) -> float:
    """The memory that these processes have, in MiB (ps(1))."""
    listed = subprocess.run(["ps", "-o", "rss=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=True)
    return sum(map(int, listed.stdout.split())) / 1024


def test_replies_that_nobody_reads_are_not_piled_up(serving: Served) -> None:
    """A client that pipelines requests for a large document and reads nothing makes no worker grow."""
    serving.request("PUT", "/ns/big", body=b'"' + b"x" * (MEBIBYTE - 2) + b'"')
    before = resident_mib(serving.processes())
    with unread(serving.at) as connection:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.sendall(request_bytes("GET", "/ns/big") * 400)
        time.sleep(1.5)
        grown = resident_mib(serving.processes()) - before
    assert grown < 50


@pytest.mark.slow
def test_many_connections_that_come_and_go(serving: Served) -> None:
    """Connections that are opened and broken, in whatever state, leave nothing behind: after the first, no memory is added."""
    pieces = [b"", b"GET", GET, GET[:-2], b"PUT /ns/b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1", b"\0\r\n\r\n"]

    def come_and_go() -> float:
        for number in range(1200):
            wire = Wire(serving.at)
            wire.send(pieces[number % len(pieces)])
            wire.abort() if number % 2 else wire.close()
        assert serving.request("GET", "/ns/a").status == 200
        return resident_mib(workers(serving))

    wait_until(lambda: len(workers(serving)) == 2, 30)  # the second may not be there yet, and is no growth
    first_mib = come_and_go()
    assert come_and_go() - first_mib < 10
    assert "Traceback" not in serving.said
