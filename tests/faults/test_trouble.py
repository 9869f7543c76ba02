"""Honest under trouble: Redis away, halted, killed, full or talking nonsense, and clients that leave in the middle."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from kvstore.commands.base import Missing
from kvstore.commands.documents import Get
from kvstore.commands.readiness import CheckReadiness, Ready
from kvstore.core.errors import Problem, StoreUnavailable
from kvstore.core.paths import parse_path
from kvstore.core.settings import read_settings
from kvstore.stores.blocking import _Turns
from kvstore.stores.pooled import open_async_store
from kvstore.stores.redis_clients import MAX_BLOCKING_CONNECTIONS
from kvstore.stores.slots import slot_of
from tests.support.asking import keys_of
from tests.support.clients import ADAPTERS, Answer, Checked, runtime_on
from tests.support.faulty import be_patient
from tests.support.lanes import LANES
from tests.support.loops import LOOPS, Loop
from tests.support.serving import start_kvstore, wire
from tests.support.stores import SERVERS, START_S, Running, contents, start_valkey, wait_until
from tests.support.wires import Wire

# Of a machine that runs other tests too, which may be late by 10 s. test_stopping.py holds the service to the promised times.
ANSWER_S = 6.0 + 10.0  # until a 503 (docs/errors.md)
RETURN_S = 2.0 + 10.0  # and for serving again after Redis has returned

real_limits = pytest.mark.usefixtures("real_limits")


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> str:
    """An adapter's name."""
    return str(request.param)


@pytest.fixture
def connected(adapter: str) -> Iterator[Callable[[str], Checked]]:
    """Makes a client of each adapter on the Redis at a URL, which may be none of ours and need not be there."""
    clients: list[Checked] = []

    def connect(url: str) -> Checked:
        clients.append(Checked(ADAPTERS[adapter](Running(url, None, lambda: None), {})))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def valkey(directory: Path) -> Iterator[Running]:
    """A server for one test to maltreat."""
    running = start_valkey(directory)
    yield running
    running.stop()


def timed(ask: Callable[..., Any]) -> Any:
    """An answer that must come within the limit."""
    begun = time.monotonic()
    answer = ask()
    assert time.monotonic() - begun < ANSWER_S
    return answer


def serves(client: Checked) -> bool:
    """Whether a write gets through."""
    return client.put("/serves", "1").status in (200, 201)


def changes(raw: redis.Redis, path: str) -> int:
    """How often /ns/{path} was put, by the log."""
    read_log = raw.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, "kv:{ns}!log")
    return sum(pairs[:2] == [b"put", path.encode()] for _, pairs in read_log)


# --- Redis away, killed, halted -----------------------------------------------------------------------------------------


@real_limits
@pytest.mark.slow
def test_redis_comes_late(connected: Callable[[str], Checked], directory: Path) -> None:
    """The service starts without its Redis, says 503, and serves as soon as it is there."""
    first = start_valkey(directory)
    first.stop()
    client = connected(first.url)
    for method in ("GET", "PUT", "DELETE"):
        answer = timed(lambda method=method: client.request(method, "/a", body=b"1" if method == "PUT" else b""))
        assert answer.status == 503
        assert answer.json["type"] == "urn:kvstore:store-unavailable"
    second = start_valkey(directory)
    try:
        wait_until(lambda: serves(client), RETURN_S)
    finally:
        second.stop()


@real_limits
def test_redis_is_killed(connected: Callable[[str], Checked], valkey: Running, directory: Path) -> None:
    """kill -9 of Redis while requests run: each is answered, and after its return all goes on."""
    client = connected(valkey.url)
    wait_until(lambda: serves(client), RETURN_S)
    answers: list[Answer] = []
    killed = threading.Event()

    def write() -> None:
        while not killed.is_set() or answers[-1].status < 500:
            answers.append(timed(lambda: client.put("/ns/b", "2")))

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write) for _ in range(4)]
        wait_until(lambda: len(answers) > 20, 30)
        valkey.signal(signal.SIGKILL)
        killed.set()
        for each in running:
            each.result()
    assert {answer.status for answer in answers} == {200, 201, 503}
    valkey.stop()
    second = start_valkey(directory)
    try:
        wait_until(lambda: serves(client), RETURN_S)
    finally:
        second.stop()


@pytest.mark.slow
@pytest.mark.parametrize("is_halted", [True, False], ids=["halted", "killed"])
def test_clients_that_reset_while_redis_has_their_requests(valkey: Running, directory: Path, *, is_halted: bool) -> None:
    """They take nobody along: the others are answered, by the same connection to Redis where that has come back to life."""
    (directory / "served").mkdir()
    served = start_kvstore(directory / "served", REDIS_URL=valkey.url, WEB_CONCURRENCY="1")
    try:
        assert served.request("PUT", "/ns/0", body=b"1").status == 201
        connections = len(valkey.redis.client_list())
        valkey.signal(signal.SIGSTOP)
        leaving = [Wire(served.at) for _ in range(3)]
        for number, wire_ in enumerate(leaving):
            wire_.send(wire("PATCH", f"/ns/gone-{number}?ttl=5"))
        time.sleep(0.2)
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(timed, lambda n=n: served.request("PUT", f"/ns/{n}", body=b"2")) for n in range(4)]
            time.sleep(0.2)
            for wire_ in leaving:
                wire_.abort()
            time.sleep(0.3)
            valkey.signal(signal.SIGCONT if is_halted else signal.SIGKILL)
            statuses = sorted(each.result().status for each in others)
        assert statuses == ([200, 201, 201, 201] if is_halted else [503] * 4)
        assert "Traceback" not in served.said
        if is_halted:
            assert len(valkey.redis.client_list()) == connections
    finally:
        served.kill()


@real_limits
@pytest.mark.parametrize("halted_s", [0.5, pytest.param(4.5, marks=pytest.mark.slow)])
def test_redis_is_halted(
    connected: Callable[[str], Checked], valkey: Running, halted_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -STOP of Redis: who waits is answered, late or with 503, and no write is ever sent twice.

    A write that was sent twice would be refused for its own success: If-None-Match: * would say 412.
    """
    if halted_s < 1:
        be_patient(monkeypatch)
    client = connected(valkey.url)
    wait_until(lambda: client.put("/ns/there", "1").status in (200, 201), RETURN_S)
    valkey.signal(signal.SIGSTOP)
    begun = time.monotonic()
    with ThreadPoolExecutor(24) as pool:
        gets = [pool.submit(timed, lambda: client.get("/ns/there")) for _ in range(8)]
        puts = [pool.submit(timed, lambda n=n: client.put(f"/ns/{n}", "1", [("If-None-Match", "*")])) for n in range(16)]
        time.sleep(max(0, begun + halted_s - time.monotonic()))
        if halted_s < 1:
            valkey.signal(signal.SIGCONT)
        read_statuses = [each.result().status for each in gets]
        written = [each.result().status for each in puts]
    if halted_s < 1:
        assert set(read_statuses) == {200}
        assert set(written) == {201}
    else:
        assert set(read_statuses) == {503}
        assert set(written) == {503}
        valkey.signal(signal.SIGCONT)
    wait_until(lambda: serves(client), RETURN_S)
    for n, status in enumerate(written):
        stored = valkey.redis.exists(f"kv:{{ns}}/{n}")
        assert changes(valkey.redis, str(n)) == stored
        assert stored or status == 503


@pytest.mark.parametrize("name", ["redis", "cluster"])
def test_more_threads_than_connections(started: Callable[[str], Running], name: str) -> None:
    """They take turns, wherever Redis is."""
    store = started(name).open()
    get = Get(parse_path(b"/nobody/there"))
    with ThreadPoolExecutor(4 * MAX_BLOCKING_CONNECTIONS) as pool:
        assert set(pool.map(lambda _: store.execute(get), range(500))) == {Missing()}
    store.close()


@pytest.mark.parametrize("kind", LOOPS)
def test_a_connection_of_a_cluster_that_was_reset(started: Callable[[str], Running], kind: str) -> None:
    """What waits for replies on it is unknown; the next request has a new one."""
    cluster, loop, get = started("cluster"), Loop(kind), Get(parse_path(b"/nobody/there"))

    async def scenario() -> Any:
        store = open_async_store(cluster.url)
        await store.execute(get)
        node = store._owners[slot_of(*get.keys)]  # type: ignore[attr-defined]
        waiting = asyncio.ensure_future(store.execute(get))
        await asyncio.sleep(0)
        node._connection._transport.abort()
        try:
            with pytest.raises(StoreUnavailable, match="unknown"):
                await waiting
            return await store.execute(get)
        finally:
            await store.close()

    assert loop.run(scenario()) == Missing()
    loop.close()


# --- Slots of a cluster that move ---------------------------------------------------------------------------------------


def move(cluster: redis.RedisCluster, slots: Sequence[int], by: int) -> None:
    """Give slots in which there is nothing to the node that is so many further than the one that has them."""
    nodes = cluster.get_primaries()
    owners = [cluster.nodes_manager.get_node_from_slot(slot) for slot in slots]
    ids = [cluster.execute_command("CLUSTER MYID", target_nodes=node) for node in nodes]
    for slot, owner in zip(slots, owners, strict=True):
        new = ids[(nodes.index(owner) + by) % len(nodes)]
        cluster.execute_command("CLUSTER SETSLOT", slot, "NODE", new, target_nodes=nodes)


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane[1] == "cluster"], ids="-".join, indirect=True)
def test_slots_that_move(client: Checked, raw: redis.RedisCluster) -> None:
    """Requests that are sent to where a slot was are sent on, and break no request that is under way."""
    slots = [raw.keyslot(parse_path(b"/moves%d/a" % n).keys.document) for n in range(60)]
    assert client.get("/moves0/a").status == 404
    move(raw, slots, 1)
    try:
        with ThreadPoolExecutor(24) as pool:
            assert set(pool.map(lambda n: client.get(f"/moves{n}/a").status, range(60))) == {404}
    finally:
        move(raw, slots, 0)


# --- Redis full ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane[1] in SERVERS], ids="-".join, indirect=True)
def test_redis_is_full(client: Checked, raw: redis.Redis) -> None:
    """A Redis at its maxmemory: 507 for what would store, nothing changed; reads and DELETE go on."""
    client.put("/ns/a", '{"a":1}')
    client.put("/ns/b", "2")
    client.put("/ns/short?ttl=1", "3")
    wait_until(lambda: client.get("/ns/short").status == 404, 30)
    before = contents(raw)
    raw.config_set("maxmemory", "1")
    try:
        for path in ("/ns/a", "/ns/new", "/new/a", "/ns/short"):
            assert client.put(path, '{"x":1}').status == 507
        assert client.put("/ns/a", "1", [("If-None-Match", "*")]).status == 412
        assert contents(raw) == before
        assert client.get("/ns/a").json["a"] == 1
        assert client.head("/ns/b").status == 200
        assert client.delete("/ns/b").status == 204
        assert client.get("/ns/b").status == 404
    finally:
        raw.config_set("maxmemory", "0")
    assert client.put("/ns/a", "1").status == 200


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane[1] in SERVERS], ids="-".join, indirect=True)
def test_a_container_in_a_full_redis(client: Checked, raw: redis.Redis) -> None:
    """It is read, also where its index is told meanwhile that a document lives for longer."""
    client.put("/ns/a?ttl=60", "1")
    raw.zadd(keys_of("ns").expiry, {"a": 1})
    raw.config_set("maxmemory", "1")
    try:
        listing = client.get("/ns/")
        assert (listing.status, [item["path"] for item in listing.json["items"]]) == (200, ["/ns/a"])
    finally:
        raw.config_set("maxmemory", "0")


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane[1] in SERVERS], ids="-".join, indirect=True)
def test_a_full_redis_keeps_answers(client: Checked, raw: redis.Redis) -> None:
    """Nobody is told that nothing was changed when all is gone; what would store is refused, and not remembered."""
    client.put("/ns/q/a", "1")
    client.put("/ns/q/b", "1")
    raw.config_set("maxmemory", "1")
    try:
        for _ in range(2):
            assert client.delete("/ns/q/?recursive", [("Idempotency-Key", "all")]).json == {"deleted": 2}
            assert client.delete("/ns/q/?recursive", [("Idempotency-Key", "none")]).json == {"deleted": 0}
            assert client.delete("/ns/q/a", [("Idempotency-Key", "nothing")]).status == 404
            assert client.put("/ns/q/a", "1", [("Idempotency-Key", "put")]).status == 507
    finally:
        raw.config_set("maxmemory", "0")
    assert client.put("/ns/q/a", "1", [("Idempotency-Key", "put")]).status == 201


# --- A password, and connections that break -----------------------------------------------------------------------------


@real_limits
@pytest.mark.slow
def test_a_password_that_is_missing(connected: Callable[[str], Checked], valkey: Running) -> None:
    """It is asked for, whatever the command: Redis refuses one with many arguments before it looks at who sends it."""
    valkey.redis.config_set("requirepass", "secret")
    client = connected(valkey.url)
    for answer in (client.get("/ns/a"), client.put("/ns/a", "1")):
        assert (answer.status, answer.json["detail"]) == (503, "Redis requires a password; add it to REDIS_URL")


class Between:
    """Stands between a client and a Redis, and passes on what they say until `cut_at` bytes of the answer to an EVALSHA.

    `says` is sent instead of every answer, if it is set.
    """

    def __init__(self, url: str) -> None:
        self.cut_at: int | None = None
        self.says: bytes | None = None
        self._redis = url.removeprefix("unix://")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._redis)
            while asked := client.recv(65536):
                if self.says is not None:
                    client.sendall(self.says)
                    continue
                server.sendall(asked)
                answer = server.recv(65536)
                if self.cut_at is not None and b"EVAL" in asked:
                    client.sendall(answer[: self.cut_at])
                    return
                client.sendall(answer)


@pytest.mark.parametrize("cut_at", [0, 1, 9])
def test_a_cut_connection(connected: Callable[[str], Checked], started: Callable[[str], Running], cut_at: int) -> None:
    """A connection that ends before or within the answer: 503, the write applied at most once, and the next one goes on."""
    server = started("valkey")
    server.redis.flushall()
    between = Between(server.url)
    client = connected(between.url)
    assert client.put("/ns/a", "1").status == 201  # the scripts are known now
    assert client.get("/ns/a").status == 200
    between.cut_at = cut_at
    assert timed(lambda: client.get("/ns/a")).status == 503
    assert timed(lambda: client.put("/ns/b", "1", [("If-None-Match", "*")])).status == 503
    assert changes(server.redis, "b") == 1
    between.cut_at = None
    wait_until(lambda: serves(client), RETURN_S)
    assert client.put("/ns/b", "1", [("If-None-Match", "*")]).status == 412
    between.close()


@real_limits
@pytest.mark.slow
@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02", b"-ERR 'secret'\r\n"])
def test_no_redis_at_all(connected: Callable[[str], Checked], started: Callable[[str], Running], says: bytes) -> None:
    """What answers there is no Redis, or none that knows scripts: 503, within the limit, and no word of it gets out."""
    between = Between(started("valkey").url)
    between.says = says
    answer = timed(lambda: connected(between.url).get("/ns/a"))
    between.close()
    assert answer.status == 503
    assert b"secret" not in answer.body


@real_limits
@pytest.mark.slow
def test_nobody_listens(connected: Callable[[str], Checked]) -> None:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert timed(lambda: connected(f"redis://127.0.0.1:{port}").get("/a")).status == 503


@real_limits
@pytest.mark.slow
def test_a_redis_that_takes_and_says_nothing(connected: Callable[[str], Checked]) -> None:
    """A connection that opens, and no byte ever comes back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = connected(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        assert timed(lambda: client.get("/a")).status == 503


def test_turns_are_taken_in_order() -> None:
    """Whoever waits for a connection is before who comes later, also before the one that has just had it; none is lost."""
    turns, took = _Turns(1), list[int]()

    def wait(number: int) -> None:
        assert turns.acquire(START_S)
        took.append(number)
        turns.release()

    assert turns.acquire(0)
    threads = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    for number, thread in enumerate(threads):
        thread.start()
        wait_until(lambda number=number: len(turns._waiting) == number + 1, START_S)
    assert not turns.acquire(0.01), "nor is who gives up waited for"
    turns.release()
    assert turns.acquire(START_S)
    assert took == list(range(5))
    for thread in threads:
        thread.join()
    turns.release()
    assert turns.acquire(0)


def test_who_is_interrupted_takes_no_turn_along() -> None:
    """A signal may end the wait, as where a task has so many seconds by signal.alarm."""

    def interrupt(*_: object) -> None:
        raise InterruptedError

    turns = _Turns(1)
    assert turns.acquire(0)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1)
        with pytest.raises(InterruptedError):
            turns.acquire(START_S)
    finally:
        signal.signal(signal.SIGALRM, before)
    turns.release()
    assert turns.acquire(0)


# --- Clients that leave -------------------------------------------------------------------------------------------------

# Each would be a JSON text if it were taken for whole.
CUT_BODIES = [
    ([("Content-Length", "100")], b"123456"),
    ([("Content-Length", "7")], b"123456"),
    ([("Content-Length", "100")], b'{"a":1}'),
    ([("Content-Length", "100")], b""),
    ([("Content-Length", "2000000")], b"1"),
]


@pytest.mark.parametrize(("headers", "sent"), CUT_BODIES)
@pytest.mark.parametrize("how", ["shutdown", "close"])
@pytest.mark.parametrize("lane", [("served", "valkey")], ids="-".join, indirect=True)
def test_half_a_body(client: Checked, how: str, headers: list[tuple[str, str]], sent: bytes) -> None:
    """A client that sends less than it declared has stored nothing."""
    client.put("/ns/a", '{"old":1}')
    leave(client, wire("PUT", "/ns/a", headers, sent), how)
    assert client.get("/ns/a").json["old"] == 1


CUT_CHUNKS = [
    b"6\r\n123456\r\n",
    b"6\r\n123456",
    b"6\r\n123",
    b"6\r\n123456\r\n0\r\n",
    b"6\r\n123456\r\n0",
    b"",
]


@pytest.mark.parametrize("sent", CUT_CHUNKS)
@pytest.mark.parametrize("how", ["shutdown", "close"])
@pytest.mark.parametrize("lane", [("served", "valkey")], ids="-".join, indirect=True)
def test_half_a_chunked_body(client: Checked, how: str, sent: bytes) -> None:
    """A chunked body without its end is not a body."""
    client.put("/ns/a", '{"old":1}')
    head = b"PUT /ns/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    leave(client, head + sent, how)
    assert client.get("/ns/a").json["old"] == 1


def leave(client: Checked, data: bytes, how: str) -> None:
    """Send this and leave; the answer, if there is one, refuses it."""
    with client.served.connect() as connection:
        connection.sendall(data)
        if how == "close":
            return
        connection.shutdown(socket.SHUT_WR)
        begun = connection.recv(65536)
        assert begun == b"" or begun.split()[1] in (b"400", b"413")


@pytest.mark.parametrize(("headers", "sent"), CUT_BODIES)
@pytest.mark.parametrize("lane", [("flask", "valkey")], ids="-".join, indirect=True)
def test_half_a_body_under_wsgi(client: Checked, headers: list[tuple[str, str]], sent: bytes) -> None:
    """A WSGI server hands on what came, and says that the input ends by itself: less than declared is not stored."""
    client.put("/ns/a", '{"old":1}')
    assert client.put("/ns/a", sent, headers).status in (400, 413)
    assert client.get("/ns/a").json["old"] == 1


@pytest.mark.parametrize("lane", [("served", "valkey")], ids="-".join, indirect=True)
def test_a_client_that_does_not_wait(client: Checked) -> None:
    """A client that has gone before its answer: the write was applied, or not, and the server serves on."""
    for _ in range(50):
        with client.served.connect() as connection:
            connection.sendall(wire("PUT", "/ns/a", body=b"1"))
    assert client.put("/ns/b", "2").status == 201


# --- Problems, all of them ----------------------------------------------------------------------------------------------

PROBLEMS = Problem.__subclasses__()


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
def test_every_problem_has_its_own_type(kind: type[Problem]) -> None:
    """One type, one title, one status for each rule."""
    assert 400 <= kind.status <= 599
    assert [other for other in PROBLEMS if other.uri() == kind.uri()] == [kind]
    assert [other for other in PROBLEMS if other.title() == kind.title()] == [kind]


@pytest.mark.parametrize("name", SERVERS)
def test_the_redis_is_ours(started: Callable[[str], Running], name: str) -> None:
    """The suite talks to the servers that it started, and to no other."""
    running = started(name)
    assert running.redis.info("server")["process_id"] == running.pid


# --- What health checks are told ----------------------------------------------------------------------------------------

READY_S = 1.0  # until /_/ready answers (docs/operations.md)
SLACK_S = 10.0  # of a busy machine


def asked(client: Checked, path: str) -> tuple[int, float]:
    """The status of an answer, and how long it took."""
    begun = time.monotonic()
    return client.get(path).status, time.monotonic() - begun


@real_limits
@pytest.mark.slow
def test_readiness_while_redis_is_halted(connected: Callable[[str], Checked], valkey: Running) -> None:
    """503 after 1 s, also for those who ask at once; the process is alive meanwhile, and ready as soon as Redis is."""
    client = connected(valkey.url)
    wait_until(lambda: client.get("/_/ready").status == 200, RETURN_S)
    valkey.signal(signal.SIGSTOP)
    with ThreadPoolExecutor(17) as pool:
        waiting = [pool.submit(asked, client, "/_/ready") for _ in range(16)]
        time.sleep(0.3)
        assert asked(client, "/_/health")[0] == 200
        answers = [each.result() for each in waiting]
    assert {status for status, _ in answers} == {503}
    assert min(took_s for _, took_s in answers) > READY_S * 0.9
    assert max(took_s for _, took_s in answers) < READY_S + SLACK_S
    refused = client.get("/_/ready")
    assert refused.json["type"] == "urn:kvstore:store-unavailable"
    # On a busy machine the check that is with Redis may have been given up by now.
    assert any(why in refused.json["detail"] for why in ("within 1 s", "cannot be reached", "did not answer"))
    valkey.signal(signal.SIGCONT)
    wait_until(lambda: client.get("/_/ready").status == 200, RETURN_S)


@real_limits
@pytest.mark.slow
def test_readiness_without_redis(connected: Callable[[str], Checked], directory: Path) -> None:
    """Nobody listens, or Redis was killed: 503 within the limit, then 200 within 2 s of its return."""
    first = start_valkey(directory)
    client = connected(first.url)
    wait_until(lambda: client.get("/_/ready").status == 200, RETURN_S)
    first.stop()
    for _ in range(3):
        status, took_s = asked(client, "/_/ready")
        assert (status, took_s < READY_S + SLACK_S) == (503, True)
        assert client.get("/_/health").status == 200
    second = start_valkey(directory)
    try:
        wait_until(lambda: client.get("/_/ready").status == 200, RETURN_S)
    finally:
        second.stop()


@pytest.mark.parametrize("name", ["valkey", "cluster", "fake"])
def test_redis_gets_one_check_at_a_time(started: Callable[[str], Running], name: str) -> None:
    """However many ask: they share the answer. The next one is asked anew."""
    store, loop = started(name), Loop()
    counts: list[int] = []

    async def scenario() -> None:
        runtime = runtime_on(store, read_settings({"REDIS_URL": store.url}))
        execute, sent = runtime.store.execute, 0

        async def counted(command: Any) -> Any:
            nonlocal sent
            sent += 1
            return await execute(command)

        runtime.store.execute = counted  # type: ignore[method-assign]
        for _ in range(2):
            assert set(await asyncio.gather(*(runtime.outcome(CheckReadiness()) for _ in range(100)))) == {Ready()}
            counts.append(sent)
        await runtime.close()

    loop.run(scenario())
    loop.close()
    assert counts == [1, 2]
