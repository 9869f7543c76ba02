"""KVSTORE_REPLICAS: what is acknowledged survives the primary; without the replicas, writes are unknown and reads go on."""

import asyncio
import functools
import inspect
import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio

from kvstore import DelayedResult
from kvstore.commands import scripts
from kvstore.commands.base import Stored
from kvstore.commands.documents import Get, Put
from kvstore.commands.scripts import IDEMPOTENT, Script
from kvstore.core.codec import encode
from kvstore.core.errors import UNKNOWN, Problem, TooFewReplicas
from kvstore.core.paths import parse_path
from kvstore.core.preconditions import NONE
from kvstore.core.settings import InvalidSetting, Settings, read_settings
from kvstore.http.messages import Request
from kvstore.http.protocol import parse
from kvstore.stores import embedded, replicated
from kvstore.stores.blocking import open_blocking_store
from kvstore.stores.pooled import PooledStore, open_async_store
from kvstore.stores.redis_clients import BLOCKING, PIPELINED, POOLED
from kvstore.stores.redis_errors import UNCHANGED
from kvstore.stores.replicated import WAIT_MS, is_acknowledged
from tests.support import worked
from tests.support.inprocess import InProcess
from tests.support.loops import Loop
from tests.support.proxies import Proxy
from tests.support.serving import start_kvstore
from tests.support.stores import connect, free_ports, redis_server, wait_until
from tests.support.workers import WORKED, Workers

LIMIT_S = 40
ANSWER_S = 6.0  # until a 503 (docs/errors.md)
HANGS_MS = 3000  # that writes wait for a replica that hangs, in place of WAIT_MS: requests beside them may be late


class Pair:
    """A primary and its replica, of this machine's redis-server or of the embedded one."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.ports = free_ports(2)
        self.url, other = (f"redis://127.0.0.1:{port}" for port in self.ports)
        synchronizes = ("--repl-diskless-sync-delay", "0")
        self.primary = self._start(directory / "primary", kind, "--port", str(self.ports[0]), *synchronizes)
        of = ("--replicaof", f"127.0.0.1 {self.ports[0]}")
        self.replica = self._start(directory / "replica", kind, "--port", str(self.ports[1]), *of)
        self.redis, self.copy = connect(self.url), connect(other)
        wait_until(self.is_replicated, LIMIT_S)

    def _start(self, home: Path, kind: str, *arguments: str) -> "subprocess.Popen[bytes]":
        home.mkdir()
        executable = str(embedded.binary()) if kind == "valkey" else None
        return redis_server(home, "--bind", "127.0.0.1", "--save", "", *arguments, executable=executable)

    def is_replicated(self) -> bool:
        """Whether the replica has all that the primary has."""
        with suppress(redis.RedisError):
            return bool(self.redis.set("begun", 1) and self.redis.wait(1, 100) == 1)
        return False

    def halt(self) -> None:
        """Halt the replica."""
        self.replica.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self.replica.send_signal(signal.SIGCONT)

    def fail_over(self) -> None:
        """kill -9 of the primary; the replica is promoted."""
        self.primary.kill()
        self.primary.wait()
        self.copy.replicaof("NO", "ONE")

    def stop(self) -> None:
        """End both."""
        for process in (self.primary, self.replica):
            process.kill()
            process.wait()
        self.redis.close()
        self.copy.close()


@pytest.fixture
def pair(directory: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A primary with a replica."""
    running = Pair(directory, getattr(request, "param", "redis"))
    yield running
    running.stop()


class Pooled:
    """The store for an event loop that a primary behind Sentinels has, called from threads."""

    def __init__(self, url: str) -> None:
        self._loop = Loop()
        self._store = PooledStore(lambda: redis.asyncio.Redis.from_url(url, protocol=2), 1)

    def execute(self, command: Any) -> Any:
        return self._loop.run(self._store.execute(command))

    def close(self) -> None:
        self._loop.run(self._store.close())
        self._loop.close()


class Pipelined(Pooled):
    """The store for an event loop that a single Redis has."""

    def __init__(self, url: str) -> None:
        self._loop = Loop()
        self._store: Any = self._loop.run(self._open(url))

    async def _open(self, url: str) -> Any:
        return open_async_store(url, replicas=1)


def open_blocking(url: str) -> Any:
    """The store for threads."""
    return open_blocking_store(url, replicas=1)


STORES: dict[str, Callable[[str], Any]] = {"pipelined": Pipelined, "pooled": Pooled, "blocking": open_blocking}


def put(name: str, value: str = "1") -> Put:
    """A PUT of a document of its own namespace."""
    return Put(parse_path(f"/{name}/a".encode()), encode(value.encode()), 1_000_000, NONE, 100)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_what_is_acknowledged_survives_the_primary(pair: Pair, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is acknowledged that the replica has not: it is halted first, and the primary is killed when it has gone on."""
    monkeypatch.setattr(replicated, "WAIT_MS", 15_000)  # a replica that was halted may be heard of a second later
    with closing(STORES[kind](pair.url)) as store, ThreadPoolExecutor(8) as pool:
        assert isinstance(store.execute(put("first")), Stored)
        pair.halt()
        pending = [pool.submit(store.execute, put(f"n{number}")) for number in range(8)]
        wait_until(lambda: pair.redis.exists("kv:{n7}/a") or pair.redis.exists("kv:{n0}/a"), LIMIT_S)
        time.sleep(0.2)
        assert not any(each.done() for each in pending)
        pair.go_on()
        assert all(isinstance(each.result(), Stored) for each in pending)
        pair.fail_over()
        assert all(pair.copy.exists(f"kv:{{n{number}}}/a") for number in range(8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORES)
def test_a_replica_that_hangs(pair: Pair, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are unknown after the time-out, reads are answered meanwhile, and all goes on with the replica."""
    assert 2 * WAIT_MS / 1000 < min(PIPELINED.answer_s, POOLED.answer_s, BLOCKING.answer_s) < ANSWER_S
    monkeypatch.setattr(replicated, "WAIT_MS", HANGS_MS)
    with closing(STORES[kind](pair.url)) as store, ThreadPoolExecutor(8) as pool:
        wait_until(lambda: stores(store), LIMIT_S)
        pair.halt()
        begun = time.monotonic()
        pending = [pool.submit(store.execute, put(f"n{number}")) for number in range(4)]
        for _ in range(20):
            store.execute(Get(parse_path(b"/again/a")))
        for target in (b"/again/", b"/again/?n:ne=1"):
            assert len(store.execute(parse(Request("GET", target, {}), Settings())).items) == 1
        assert not any(each.done() for each in pending), "reads wait for replicas"
        for each in pending:
            problem = each.exception()
            assert isinstance(problem, TooFewReplicas)
            assert problem.detail.startswith("0 of 1 replicas")
            assert problem.detail.endswith(UNKNOWN)
        assert time.monotonic() - begun >= HANGS_MS / 1000
        pair.go_on()
        wait_until(lambda: stores(store), LIMIT_S)


def stores(store: Any) -> bool:
    """Whether a write gets through."""
    with suppress(Problem):
        return isinstance(store.execute(put("again")), Stored)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["redis", "valkey"], indirect=True)  # which differ in what WAIT waits for after a read
def test_a_replay_waits_too(pair: Pair) -> None:
    """Whoever sends a write again with its Idempotency-Key is told that it is done when the replica has it, and not before."""
    serving = [InProcess(pair.url, {"KVSTORE_REPLICAS": "1"}) for _ in range(2)]
    fields = [("Idempotency-Key", '"one"')]
    try:
        for each in serving:  # a replica on a busy machine may take longer than a write waits
            wait_until(lambda each=each: each.request("PUT", "/first", body=b"1").status < 300, LIMIT_S)
        pair.halt()
        answers = [each.request("PUT", "/a/b", fields, b"1") for each in serving]
        assert [(each.status, b"too-few-replicas" in each.content) for each in answers] == [(503, True)] * 2
        assert answers[0].getheader("Retry-After")
        assert [each.request("GET", "/a/b").status for each in serving] == [200, 200]
        assert [each.request("GET", "/_/ready").status for each in serving] == [200, 200]
        pair.go_on()
        wait_until(lambda: serving[1].request("PUT", "/a/b", fields, b"1").status == 201, LIMIT_S)
        answers = [each.request("PUT", "/a/b", fields, b"1") for each in serving]
        assert [each.getheader("Idempotency-Replayed") for each in answers] == ["true"] * 2
        # The primary dies while a write waits.
        pair.halt()
        with ThreadPoolExecutor() as pool:
            pending = pool.submit(serving[0].request, "PUT", "/a/c", (), b"1")
            wait_until(lambda: pair.redis.exists("kv:{a}/c"), LIMIT_S)
            pair.primary.kill()
            assert pending.result().status == 503
            assert UNKNOWN.encode() in pending.result().content
    finally:
        pair.go_on()
        for each in serving:
            each.stop()


@pytest.mark.slow
def test_a_primary_that_refuses_writes_without_its_replica(pair: Pair) -> None:
    """Whoever asks for a write is told that nothing was changed; and at once, unless others wait for the replica."""
    serving = InProcess(pair.url, {"KVSTORE_REPLICAS": "1"})
    object_, took_s = b'{"n":1}', []
    try:
        for method, target in (("POST", "/a/"), ("PUT", "/a/b"), ("PUT", "/a/b")):  # the next PUT takes the express lane
            ask = functools.partial(serving.request, method, target, body=object_)
            wait_until(lambda ask=ask: ask().status < 300, LIMIT_S)
        pair.redis.config_set("min-replicas-to-write", 1)
        pair.replica.kill()
        wait_until(lambda: pair.redis.info("replication")["connected_slaves"] == 0, LIMIT_S)
        for method, target in (("POST", "/a/"), ("PUT", "/a/b"), ("DELETE", "/a/b")):
            begun = time.monotonic()
            answer = serving.request(method, target, body=object_)
            took_s.append(time.monotonic() - begun)
            assert (answer.status, UNCHANGED.encode() in answer.content) == (503, True), answer.content
        assert took_s[0] < WAIT_MS / 1000
        assert max(took_s) < ANSWER_S
        assert serving.request("GET", "/a/b").status == 200
    finally:
        serving.stop()


@pytest.mark.slow
def test_a_primary_dies_under_load(pair: Pair, directory: Path, record_property: Callable[..., None]) -> None:
    """Writers over two workers; kill -9 of the primary, whose replica is 50 ms behind: it has all that was acknowledged."""
    loop, proxy = Loop(), Proxy(pair.ports[0])
    loop.run(proxy.__aenter__())
    pair.copy.replicaof("127.0.0.1", str(proxy.port))
    wait_until(pair.is_replicated, LIMIT_S)
    proxy.reply_after_s = 0.05
    serving = start_kvstore(directory, REDIS_URL=pair.url, KVSTORE_REPLICAS="1")
    acknowledged: list[str] = []
    stopped = threading.Event()

    def write(writer: int) -> None:
        for number in itertools.count():
            if stopped.is_set():
                return
            path = f"n{writer}{number % 10}/{number}"
            if serving.request("PUT", f"/{path}", body=b"1").status == 201:
                acknowledged.append(path)

    try:
        with ThreadPoolExecutor(8) as pool:
            for writer in range(8):
                pool.submit(write, writer)
            wait_until(lambda: len(acknowledged) > 100, LIMIT_S)
            pair.fail_over()
            stopped.set()
    finally:
        serving.kill()
        loop.run(proxy.__aexit__())
        loop.close()
    record_property("acknowledged writes", len(acknowledged))
    assert not [path for path in acknowledged if not pair.copy.exists("kv:{{{}}}/{}".format(*path.split("/")))]


@pytest.mark.slow
def test_tasks_wait_for_replicas(pair: Pair, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is queued, or ends, while the replica hangs is so again, until the replica has it. It does not fail."""
    monkeypatch.setenv("KVSTORE_REPLICAS", "1")
    monkeypatch.setitem(worked.app.config, "REDIS_URL", pair.url)
    # A job that was taken without an answer is taken again when its lease has ended.
    workers = Workers(directory, WORKED, "--lease", "3", REDIS_URL=pair.url, KVSTORE_REPLICAS="1")

    def queue(name: str) -> DelayedResult:
        with worked.app.app_context():
            return worked.note.delay(name, 0.5)

    try:
        with ThreadPoolExecutor() as pool:
            running = queue("running")
            wait_until(lambda: pair.redis.exists("ran:running"), LIMIT_S)
            pair.halt()
            queued = pool.submit(queue, "queued")
            wait_until(lambda: "0 of 1 replicas" in workers.said, LIMIT_S)
            assert not queued.done()
            pair.go_on()
            with worked.app.app_context():
                assert [each.wait(LIMIT_S) for each in (running, queued.result())] == ["running", "queued"]
        assert [pair.redis.llen(f"ran:{name}") for name in ("running", "queued")] == [1, 1]
        assert "failed" not in workers.said
    finally:
        pair.go_on()
        workers.stop()


@pytest.mark.slow
def test_many_writes_share_a_wait(pair: Pair) -> None:
    """Those of one turn of the loop do, and those that come while it waits share the next."""

    async def write() -> tuple[int, int, int]:
        async with Proxy(pair.ports[0]) as proxy:
            store = open_async_store(f"redis://127.0.0.1:{proxy.port}", replicas=1)
            await store.execute(put("first"))
            begun, counts = proxy.count(b"WAIT"), []
            for turn in range(2):
                await asyncio.gather(*(store.execute(put(f"n{number}", str(turn))) for number in range(100)))
                counts.append(proxy.count(b"WAIT") - begun)
            await asyncio.gather(*(store.execute(Get(parse_path(b"/first/a"))) for _ in range(100)))
            counts.append(proxy.count(b"WAIT") - begun)
            await store.close()
            return counts[0], counts[1] - counts[0], counts[2] - counts[1]

    registering, writing, reading = asyncio.run(write())
    assert registering <= 3  # each registers its namespace as well
    assert (writing, reading) == (1, 0)


# What no failover can break, although its outcome does not wait: reads, counts, and what a stream or a wait renews or ends.
UNACKNOWLEDGED = (
    "read exists get get_many list find read_found count_jobs inspect_namespaces log_position read_changes read_history"
    " read_container_changes charge claim_streams release_stream hold release_hold"
    " register_taker remove_taker"
)


def test_every_script_that_writes_is_acknowledged() -> None:
    """All others are, also those that are new."""
    every = [each for _, each in inspect.getmembers(scripts) if isinstance(each, Script)] + [*IDEMPOTENT.values()]
    unacknowledged = {each.name for each in every if not is_acknowledged(SimpleNamespace(script=each))}
    assert unacknowledged == set(UNACKNOWLEDGED.split())


@pytest.mark.parametrize("url", ["", "fake://"])
def test_replicas_need_a_redis_that_has_some(url: str) -> None:
    """The start fails, and says why."""
    with pytest.raises(InvalidSetting, match="KVSTORE_REPLICAS needs"):
        read_settings({"KVSTORE_REPLICAS": "1", "REDIS_URL": url})
