"""Stopping, killing, and losing Redis, under load, for real: nothing acknowledged is lost, and nothing is applied twice.

Every writer has a document of its own and writes numbers into it, each on condition of the one before. What it was told is
held against the change log, in which every change is once.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

from tests.support.clients import Answer, Headers
from tests.support.serving import Served, start_kvstore
from tests.support.serving import wire as request_bytes
from tests.support.stores import START_S, Running, answers, connect, redis_server, start_redis, wait_for_redis, wait_until
from tests.support.wires import Wire

TOLD_S = 6.0  # a client is told within 6 s, and served within 2 s of Redis's return
BACK_S = 2.0
LATE_S = 10.0  # that a machine which is busy with other tests may take longer
GRACE_S = 20  # kvstore.serve
WRITERS = 16
LONG_LOG = "1000000"


class Told(NamedTuple):
    """What became of a write: its number, the status (0: the connection ended first), its entity-tag, how long that took."""

    number: int
    status: int
    tag: str
    took_s: float


class Writer(threading.Thread):
    """Writes 1, 2, 3… into a document, each If-Match the one before, until it is stopped; `told` is what it was told.

    Where it was not told, it reads what is there and goes on from that.
    """

    def __init__(self, at: tuple[str, int], name: str) -> None:
        super().__init__(daemon=True)
        self.name = name
        self.told: list[Told] = []
        self.wrong: list[str] = []
        self._at = at
        self._path = f"/load/{name}"
        self._wire: Wire | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        number, condition = 0, ("If-None-Match", "*")
        while not self._stopped.is_set():
            number += 1
            begun = time.monotonic()
            answer = self._ask("PUT", [condition], b'{"n":%d}' % number)
            took_s = time.monotonic() - begun
            if answer is None:
                self.told.append(Told(number, 0, "", took_s))
                condition = self._look(condition)
                continue
            self.told.append(Told(number, answer.status, answer.headers.get("ETag", ""), took_s))
            if answer.status in (200, 201):
                condition = ("If-Match", answer.tag)
            elif answer.status == 503:
                condition = self._look(condition)
            elif answer.status == 412:
                # An earlier write of ours, of which we were told nothing, has been applied since we looked.
                current = answer.json["current"]
                if current is None or current["n"] >= number:
                    self.wrong.append(f"412 for {number} where {current} is")
                condition = ("If-Match", answer.json["etag"] or "*")
            else:
                self.wrong.append(f"{answer.status} for {number}: {answer.body!r}")
        if self._wire:
            self._wire.close()

    def _look(self, condition: tuple[str, str]) -> tuple[str, str]:
        """The condition that holds on what is there now; the old one where that cannot be learned."""
        while not self._stopped.is_set():
            begun = time.monotonic()
            answer = self._ask("GET")
            if answer is not None and answer.status == 503 and time.monotonic() - begun > TOLD_S + LATE_S:
                self.wrong.append("a GET that was told too late")
            if answer is not None and answer.status in (200, 404):
                return ("If-Match", answer.tag) if answer.status == 200 else ("If-None-Match", "*")
            time.sleep(0.05)
        return condition

    def _ask(self, method: str, headers: list[tuple[str, str]] | None = None, body: bytes = b"") -> Answer | None:
        """The answer; None where the connection ended before any of it came."""
        try:
            if self._wire is None:
                self._wire = Wire(self._at)
            self._wire.send(request_bytes(method, self._path, headers or [], body))
            raw = self._wire.answer(method)
        except TimeoutError:
            self.wrong.append(f"{method} was not answered")
        except ConnectionError as error:
            if "after 0 bytes of a head" not in str(error) and str(error).startswith("closed after"):
                self.wrong.append(f"{method}: {error}")
        else:
            if raw.closes:
                self._wire.close()
                self._wire = None
            return Answer(raw.status, Headers(raw.lines), raw.body)
        if self._wire:
            self._wire.close()
            self._wire = None
        time.sleep(0.01)
        return None


class Load:
    """Many writers at work on a server."""

    def __init__(self, at: tuple[str, int], writers: int = WRITERS) -> None:
        self.writers = [Writer(at, f"w{number}") for number in range(writers)]
        for writer in self.writers:
            writer.start()

    def stop(self) -> None:
        for writer in self.writers:
            writer.stop()
        for writer in self.writers:
            writer.join(20)
            assert not writer.is_alive()

    def acknowledged(self) -> int:
        """How many writes were acknowledged so far."""
        return sum(told.status in (200, 201) for writer in self.writers for told in list(writer.told))

    def check(self, raw: redis.Redis) -> None:
        """Acknowledged writes are in the log once, by their entity-tag; unknown ones at most once; refused ones not at all."""
        logged: dict[str, Counter[int]] = {writer.name: Counter() for writer in self.writers}
        tags: dict[tuple[str, int], str] = {}
        entries = raw.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, "kv:{load}!log")
        for id_, words in entries:
            _, name, *rest = (word.decode() for word in words)
            number = int(rest[rest.index("n") + 1])
            logged[name][number] += 1
            tags[name, number] = f'"{id_.decode()}"'
        for writer in self.writers:
            assert writer.wrong == []
            count = logged[writer.name]
            for told in writer.told:
                if told.status in (200, 201):
                    assert count[told.number] == 1, f"{writer.name}: {told} is in the log {count[told.number]} times"
                    assert tags[writer.name, told.number] == told.tag
                elif told.status in (0, 503):
                    assert count[told.number] <= 1, f"{writer.name}: {told} was applied twice"
                else:
                    assert count[told.number] == 0, f"{writer.name}: {told} was applied"
            known = {told.number for told in writer.told}
            assert count.keys() <= known
            self._check_last(raw, writer, count)

    def _check_last(self, raw: redis.Redis, writer: Writer, count: Counter[int]) -> None:
        """What is stored is the last write that is in the log."""
        stored = raw.hget(f"kv:{{load}}/{writer.name}", "n")
        assert stored == (str(max(count)).encode() if count else None)


def slowest_s(load: Load) -> float:
    return max(told.took_s for writer in load.writers for told in writer.told)


def workers(serving: Served) -> list[int]:
    """The processes that the master has started."""
    return [pid for pid in serving.processes() if pid != serving.process.pid]


@pytest.fixture
def store(directory: Path) -> Iterator[Running]:
    """A Redis of its own: these tests halt and kill it."""
    running = start_redis(directory)
    yield running
    running.signal(signal.SIGCONT)
    running.stop()


@pytest.fixture
def serving(directory: Path, store: Running) -> Iterator[Served]:
    """The command `kvstore` with two workers."""
    running = start_kvstore(directory, REDIS_URL=store.url, KVSTORE_LOG_LENGTH=LONG_LOG)
    yield running
    running.kill()


# --- Stopping -----------------------------------------------------------------------------------------------------------


def stop_master(serving: Served) -> None:
    serving.process.terminate()


EXPECTS = ("Expect", "100-continue")


def begin(wire: Wire, request: bytes, rest: int) -> None:
    """Send a request but for so many bytes, and wait until the server has its head."""
    head, _, _ = request.partition(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n")
    wait_until(lambda: b" 100 " in wire.socket.recv(100, socket.MSG_PEEK), LATE_S)
    wire.send(request[len(head) + 4 : -rest])


def stop_all(serving: Served) -> None:
    """What Heroku does."""
    for pid in serving.processes():
        os.kill(pid, signal.SIGTERM)


STOPS = [pytest.param(stop_master, marks=pytest.mark.slow), stop_all]


@pytest.mark.parametrize("stop", STOPS)
def test_stopped_under_load(serving: Served, store: Running, stop: Callable[[Served], None]) -> None:
    """SIGTERM finishes what is in flight, and every process ends within the grace time, the master with status 0."""
    load = Load(serving.at)
    wait_until(lambda: load.acknowledged() > 500, START_S)
    begun = time.monotonic()
    stop(serving)
    assert serving.process.wait(GRACE_S) == 0
    assert time.monotonic() - begun < GRACE_S - 2, "nothing is slow here"
    wait_until(lambda: not serving.processes(), 30)
    load.stop()
    load.check(store.redis)
    assert "Traceback" not in serving.said


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS)
def test_what_is_in_flight_is_finished(serving: Served, store: Running, stop: Callable[[Served], None]) -> None:
    """Requests that were received when SIGTERM came are answered, though Redis takes a second over them."""
    wires = [Wire(serving.at) for _ in range(40)]
    for wire in wires:
        wire.send(request_bytes("GET", "/load/none"))
        assert wire.answer().status == 404
    store.signal(signal.SIGSTOP)
    for number, wire in enumerate(wires):
        begin(wire, request_bytes("PUT", f"/load/w{number}", [EXPECTS], b"%02d" % number), 2)
        wire.send(b"%2d" % number)
    stop(serving)
    time.sleep(0.7)
    assert serving.process.poll() is None
    store.signal(signal.SIGCONT)
    answered = [wire.answer("PUT") for wire in wires]
    assert [raw.status for raw in answered] == [201] * len(wires)
    assert all(raw.closes for raw in answered)
    assert serving.process.wait(GRACE_S) == 0
    assert all(store.redis.exists(f"kv:{{load}}/w{number}") for number in range(len(wires)))


@pytest.mark.slow
@pytest.mark.parametrize("stop", STOPS)
def test_a_body_that_is_on_its_way_is_awaited(serving: Served, store: Running, stop: Callable[[Served], None]) -> None:
    """A request half of which has come is taken to its end; an idle connection is closed at once."""
    idle, slow = Wire(serving.at), Wire(serving.at)
    idle.send(request_bytes("GET", "/load/none"))
    idle.answer()
    begin(slow, request_bytes("PUT", "/load/a", [EXPECTS], b"[1,2,3]"), 3)
    stop(serving)
    assert idle.rest() == b""
    slow.send(b",3]")
    answer = slow.answer("PUT")
    assert (answer.status, answer.closes) == (201, True)
    assert serving.process.wait(GRACE_S) == 0
    assert store.redis.exists("kv:{load}/a")


@pytest.mark.slow
def test_a_client_that_never_ends_does_not_hold_the_stop_up(directory: Path, store: Running) -> None:
    """Half a request that stays half is given up when the grace time is over."""
    running = start_kvstore(directory, REDIS_URL=store.url, GUNICORN_CMD_ARGS="--graceful-timeout 2")
    try:
        wires = [Wire(running.at) for _ in range(10)]
        for wire in wires:
            wire.send(request_bytes("GET", "/load/none") + b"GET /load/a HT")
            assert wire.answer().status == 404
        begun = time.monotonic()
        running.process.terminate()
        assert running.process.wait(GRACE_S) == 0
        assert 1 < time.monotonic() - begun < 8 + LATE_S
    finally:
        running.kill()


@pytest.mark.slow
def test_stopped_with_the_embedded_server(directory: Path) -> None:
    """SIGTERM to every process, the embedded server's among them: what was acknowledged is there at the next start."""
    running = start_kvstore(directory, KVSTORE_LOG_LENGTH=LONG_LOG)
    load = Load(running.at)
    wait_until(lambda: load.acknowledged() > 500, START_S)
    stop_all(running)
    for child in embedded_servers(directory):
        os.kill(child, signal.SIGTERM)
    status = running.process.wait(GRACE_S + 5)
    load.stop()
    again = start_kvstore(directory, KVSTORE_LOG_LENGTH=LONG_LOG)
    try:
        with connect(f"unix://{directory}/data/valkey.sock") as raw:
            load.check(raw)
    finally:
        again.kill()
    assert status == 0


def embedded_servers(directory: Path) -> list[int]:
    """The servers that run on this directory's data, by the lock that they hold (ps(1))."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if f"unixsocket:{directory}/" in line]


# --- A worker that dies -------------------------------------------------------------------------------------------------


def test_killed_workers(serving: Served, store: Running) -> None:
    """kill -9 of one worker after the other under load: none is missed, nothing acknowledged is lost."""
    load = Load(serving.at)
    wait_until(lambda: load.acknowledged() > 500, START_S)
    for _ in range(4):
        wait_until(lambda: len(workers(serving)) == 2, START_S)
        before = workers(serving)
        os.kill(min(before), signal.SIGKILL)  # the oldest, so that in the end only new ones serve
        wait_until(lambda before=before: len(workers(serving)) == 2 and set(workers(serving)) != set(before), START_S)
        acknowledged = load.acknowledged()
        wait_until(lambda acknowledged=acknowledged: load.acknowledged() > acknowledged + 200, START_S)
    load.stop()
    load.check(store.redis)
    assert serving.process.poll() is None


# --- A Redis that goes and comes back -----------------------------------------------------------------------------------


class Probe(threading.Thread):
    """Asks for a document on a new connection, again and again, and notes when it is answered with 200."""

    def __init__(self, at: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.good_at: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.slowest_s = 0.0
        self._at = at
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.05):
            begun = time.monotonic()
            wire = Wire(self._at)
            wire.send(request_bytes("GET", "/probe/a"))
            status = wire.answer().status
            wire.close()
            self.statuses[status] += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            if status == 200:
                self.good_at.append(time.monotonic())

    def stop(self) -> None:
        self._stopped.set()
        self.join(30)
        assert not self.is_alive()


def check_outage(load: Load, probes: list[Probe], raw: redis.Redis, back_at: float, late_s: float) -> None:
    """Nothing was lost or applied twice, nobody waited longer than 6 s, all were served within 2 s of Redis's return.

    The machine may be so late.
    """
    load.stop()
    for probe in probes:
        probe.stop()
    load.check(raw)
    for probe in probes:
        assert probe.statuses.keys() <= {200, 503}
        assert probe.slowest_s < TOLD_S + late_s
        assert min(at for at in probe.good_at if at > back_at) - back_at < BACK_S + late_s
    assert slowest_s(load) < TOLD_S + late_s
    statuses = Counter(told.status for writer in load.writers for told in writer.told)
    assert statuses.keys() <= {200, 201, 412, 503}
    assert statuses[503] >= len(load.writers)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("halted_s", [8])
def test_redis_is_halted(serving: Served, store: Running, halted_s: float) -> None:
    """kill -STOP for 8 s under the load of many writers."""
    serving.request("PUT", "/probe/a", body=b"1")
    load, probes = Load(serving.at, 2 * WRITERS), [Probe(serving.at) for _ in range(8)]
    for probe in probes:
        probe.start()
    wait_until(lambda: load.acknowledged() > 500, START_S)
    store.signal(signal.SIGSTOP)
    time.sleep(halted_s)
    store.signal(signal.SIGCONT)
    back_at = time.monotonic()
    acknowledged = load.acknowledged()
    wait_until(lambda: load.acknowledged() > acknowledged + 500, LATE_S)
    time.sleep(BACK_S / 2)
    check_outage(load, probes, store.redis, back_at, 0)
    assert len(workers(serving)) == 2
    assert "Traceback" not in serving.said


def start_lasting_redis(directory: Path, client: redis.Redis) -> "subprocess.Popen[bytes]":
    """A redis-server that has written to its file what it has acknowledged, once it answers."""
    lasting = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    process = redis_server(directory, "--port", "0", "--unixsocket", str(directory / "lasting.sock"), *lasting)
    wait_for_redis(process, directory, lambda: answers(client))
    return process


@pytest.mark.slow
def test_redis_is_killed_and_started_again(directory: Path) -> None:
    """kill -9 under load, twice, and some seconds later it is back on the same data."""
    url = f"unix://{directory}/lasting.sock"
    raw = connect(url)
    process = start_lasting_redis(directory, raw)
    serving = start_kvstore(directory, REDIS_URL=url, KVSTORE_LOG_LENGTH=LONG_LOG)
    try:
        serving.request("PUT", "/probe/a", body=b"1")
        load, probes = Load(serving.at), [Probe(serving.at) for _ in range(4)]
        for probe in probes:
            probe.start()
        for _ in range(2):
            acknowledged = load.acknowledged()
            wait_until(lambda acknowledged=acknowledged: load.acknowledged() > acknowledged + 300, START_S)
            process.kill()
            process.wait()
            time.sleep(2)
            process = start_lasting_redis(directory, raw)
            back_at = time.monotonic()
            acknowledged = load.acknowledged()
            wait_until(lambda acknowledged=acknowledged: load.acknowledged() > acknowledged + 300, LATE_S)
        time.sleep(BACK_S / 2)
        wait_until(lambda: all(max(probe.good_at) > back_at for probe in probes), LATE_S)
        check_outage(load, probes, raw, back_at, LATE_S)
        assert len(workers(serving)) == 2
    finally:
        serving.kill()
        raw.close()
        process.kill()
        process.wait()
