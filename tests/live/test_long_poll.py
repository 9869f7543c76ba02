"""Requests that wait, for a change or for a job: they are answered when there is something, in time when there is not, and what
a taker that has gone would have had goes to another.
"""

import asyncio
import fcntl
import json
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvstore.commands.changelog import ChangesRead, ReadChanges
from kvstore.serving import flask as web
from kvstore.serving.asgi import Application
from tests.support.asking import batch, patch, post, touch
from tests.support.clients import Answer, Checked, make_scope
from tests.support.inprocess import InProcess
from tests.support.lanes import on_servers
from tests.support.loops import PRODUCTION, Loop
from tests.support.serving import start_kvstore
from tests.support.serving import wire as request_bytes
from tests.support.stores import Running, wait_until
from tests.support.streams import FlaskServer
from tests.support.wires import Raw, Wire

LIMIT_S = 20  # for what comes at once where a machine has nothing else to do
WAIT_S = 25  # that a request waits which is to be answered before
TAKE = f"/ns/q/?lease=60s&wait={WAIT_S}"


def prefer_wait(wait_s: int, tag: str | None = None) -> list[tuple[str, str]]:
    """The header fields of a long poll."""
    return [("Prefer", f"wait={wait_s}"), *([("If-None-Match", tag)] if tag else [])]


def begun(ask: Callable[..., Answer]) -> "Future[Answer]":
    """The answer to a request that is being sent."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def later(ask: Callable[..., Answer]) -> "Future[Answer]":
    """The answer to a request that is waiting by now."""
    answer = begun(ask)
    time.sleep(0.15)
    assert not answer.done(), answer.result()
    return answer


# --- Long poll ----------------------------------------------------------------------------------------------------------

# What becomes of a document that somebody waits for, and what he is answered.
CHANGES: dict[str, tuple[Callable[[Checked], Any], int]] = {
    "put": (lambda client: client.put("/ns/a", '{"a":2}'), 200),
    "patched": (lambda client: patch(client, "/ns/a", {"a": 2}), 200),
    "patched, nested": (lambda client: patch(client, "/ns/a", {"a": 2, "o": {}}), 200),
    "in a batch": (lambda client: batch(client, [("PUT", "/ns/b", 1), ("PATCH", "/ns/a", {"a": 2})]), 200),
    "deleted": (lambda client: client.delete("/ns/a"), 404),
}


@on_servers
@pytest.mark.parametrize("change", CHANGES)
def test_a_document_that_changes(client: Checked, change: str) -> None:
    """The new one as soon as it is there; 404 as soon as it is gone."""
    tag = client.put("/ns/a", '{"a":1}').tag
    waiting = later(lambda: client.get("/ns/a", prefer_wait(WAIT_S, tag)))
    client.put("/ns/other", "1")
    assert not waiting.done()
    ask, status = CHANGES[change]
    ask(client)
    answer = waiting.result(LIMIT_S)
    assert answer.status == status
    if status == 200:
        assert (answer.json["a"], answer.headers["Preference-Applied"]) == (2, f"wait={WAIT_S}")
        assert answer.tag != tag


@on_servers
def test_what_is_not_there_yet(client: Checked) -> None:
    """Prefer: wait alone waits for something."""
    waiting = later(lambda: client.get("/new/thing", prefer_wait(WAIT_S)))
    assert client.put("/new/thing", "[1]").status == 201
    assert waiting.result(LIMIT_S).json == [1]


@pytest.mark.slow
@on_servers
def test_a_container_that_changes(client: Checked) -> None:
    """By what is put, appended, or expires below it; HEAD waits as well, and so does a query, for any change."""
    client.put("/ns/q/a", "1")
    changes: list[Callable[[], object]] = [
        lambda: client.put("/ns/q/b", "2"),
        lambda: touch(client, "/ns/q/b?ttl=1"),
        lambda: post(client, "/ns/q/", 3),
        lambda: client.put("/ns/q/deep/er", "4"),
        lambda: client.delete("/ns/q/?recursive"),
    ]
    for change in changes:
        tag = client.get("/ns/q/").tag
        waiting = [
            later(lambda tag=tag, method=method, target=target: client.request(method, target, prefer_wait(WAIT_S, tag)))
            for method, target in (("GET", "/ns/q/"), ("HEAD", "/ns/q/"), ("GET", "/ns/q/?a:eq=1"))
        ]
        change()
        for answer in [each.result(LIMIT_S) for each in waiting]:
            assert answer.status == 200
            assert answer.tag != tag
        assert waiting[2].result().json == {"items": []}
    assert waiting[0].result().json == {"items": []}


@on_servers
def test_in_time(client: Checked) -> None:
    """304, 404 and 204 when the time is over: not before, and not long after."""
    tag, container_tag = client.put("/ns/a", "1").tag, client.get("/ns/").tag
    asked = [
        (304, lambda: client.get("/ns/a", prefer_wait(1, tag))),
        (304, lambda: client.get("/ns/", prefer_wait(1, container_tag))),
        (404, lambda: client.get("/ns/b", prefer_wait(1))),
        (204, lambda: client.request("POST", "/ns/q/?lease=60s&wait=1")),
    ]

    def measured(ask: Callable[[], Answer]) -> tuple[Answer, float]:
        begun = time.monotonic()
        return ask(), time.monotonic() - begun

    with ThreadPoolExecutor(4) as pool:
        for (status, _), (answer, took_s) in zip(asked, pool.map(measured, [ask for _, ask in asked]), strict=True):
            assert answer.status == status
            assert 0.9 < took_s < 1 + LIMIT_S
            if status == 304:
                assert answer.headers["Preference-Applied"] == "wait=1"


# What is preferred, and what is applied of it, where there is something to answer with.
PREFERENCES = [
    ("wait=1", "wait=1"),
    ("wait=25", "wait=25"),
    ("wait=26", "wait=25"),
    ("wait=999999999", "wait=25"),
    ("return=minimal, wait=5", "wait=5"),
    ("WAIT = 5", "wait=5"),
    ('wait="5"', "wait=5"),
    ("wait=0", None),
    ("wait", None),
    ("wait=soon", None),
    ("wait=-1", None),
    ("respond-async", None),
]


@on_servers
@pytest.mark.parametrize(("prefer", "applied"), PREFERENCES)
def test_what_is_applied(client: Checked, prefer: str, applied: str | None) -> None:
    """At most 25 s; what there is, is answered at once."""
    client.put("/ns/a", "1")
    for target, headers in (("/ns/a", []), ("/ns/a", [("If-None-Match", '"1-1"')]), ("/ns/", []), ("/none/", [])):
        answer = client.get(target, [("Prefer", prefer), *headers])
        assert (answer.status, answer.headers.get("Preference-Applied")) == (200, applied)


# --- Waiting for a job --------------------------------------------------------------------------------------------------

# What makes a job that can be taken.
ARRIVALS: dict[str, Callable[[Checked], Any]] = {
    "POST": lambda client: post(client, "/ns/q/", "1"),
    "PUT": lambda client: client.put("/ns/q/a", "1"),
    "PATCH": lambda client: patch(client, "/ns/q/a", {"a": 1}),
    "batch": lambda client: batch(client, [("PUT", "/ns/p/a", 1), ("POST", "/ns/q/", 1)]),
    "a delay that ends": lambda client: post(client, "/ns/q/?delay=1", "1"),
}


def waits(listing: bytes) -> list[Any]:
    """Who waits for a job, by a listing of the queue."""
    return [taker["as"] for taker in json.loads(listing).get("takers", [])]


@on_servers
@pytest.mark.parametrize("arrival", ARRIVALS)
def test_a_job_that_comes(client: Checked, arrival: str) -> None:
    """A taker that waits gets it as soon as it can be taken. While it waits, who lists the container sees it."""
    waiting = later(lambda: client.request("POST", TAKE + "&as=%5B%22ada%22%5D"))
    wait_until(lambda: waits(client.get("/ns/q/").body) == [["ada"]], LIMIT_S)
    ARRIVALS[arrival](client)
    answer = waiting.result(LIMIT_S)
    wait_until(lambda: not waits(client.get("/ns/q/").body), LIMIT_S)
    assert answer.status == 200
    [job] = answer.json["items"]
    assert job["attempts"] == 1
    assert client.delete(job["path"], [("If-Match", f'"{job["lease"]}"')]).status == 204


@on_servers
def test_a_lease_that_ends(client: Checked) -> None:
    """The job goes to who waits for it."""
    client.put("/ns/q/a", "1")
    assert client.request("POST", "/ns/q/?lease=1").status == 200
    answer = begun(lambda: client.request("POST", TAKE)).result(LIMIT_S)
    assert [job["attempts"] for job in answer.json["items"]] == [2]


@on_servers
def test_a_job_that_is_given_back(client: Checked) -> None:
    """At once, after its delay, or because its lease was made shorter: it goes to who waits, long before it would have."""
    client.put("/ns/q/a", "1")
    for attempts, query in enumerate(("lease=0", "lease=0&delay=1", "lease=1"), start=2):
        lease = client.request("POST", "/ns/q/?lease=60s&max_attempts=9").json["items"][0]["lease"]
        answer = later(lambda: client.request("POST", TAKE + "&max_attempts=9"))
        changed = client.request("PATCH", f"/ns/q/a?{query}", [("If-Match", f'"{lease}"')])
        assert changed.status == 200
        job = answer.result(LIMIT_S).json["items"][0]
        assert job["attempts"] == 2 * attempts - 2
        client.request("PATCH", "/ns/q/a?lease=0", [("If-Match", f'"{job["lease"]}"')])


# --- On our own server, with many who wait ------------------------------------------------------------------------------


@pytest.fixture
def server(started: Callable[[str], Running]) -> Running:
    """A real Redis, empty."""
    running = started("redis")
    running.redis.flushall()
    return running


class Serving:
    """Our own server in this process, and connections to it."""

    def __init__(self, url: str, *, loop: str = PRODUCTION, **environ: str) -> None:
        self.running = InProcess(url, environ, loop=loop)
        self._wires = ExitStack()

    def close(self) -> None:
        self._wires.close()
        self.running.stop()

    def ask(self, method: str, target: str, headers: Any = (), body: bytes = b"") -> Raw:
        """One request on a connection of its own."""
        wire = self.send(method, target, headers, body)
        answer = wire.answer(method)
        wire.close()
        return answer

    def send(self, method: str, target: str, headers: Any = (), body: bytes = b"") -> Wire:
        """A request whose answer is not read yet."""
        wire = self.running.connect(limit_s=WAIT_S + LIMIT_S)
        self._wires.callback(wire.close)
        wire.send(request_bytes(method, target, headers, body))
        return wire

    def waiting(self) -> int:
        """How many requests wait."""
        connections: list[Any] = list(self.running.server.connections)
        return sum(connection._wait is not None for connection in connections)

    def wait_for(self, count: int) -> None:
        """Until so many requests wait, and stand in line."""
        wait_until(lambda: self.waiting() == count, LIMIT_S)
        time.sleep(0.1)


@pytest.fixture
def serving(server: Running) -> Iterator[Serving]:
    """Our own server on an empty Redis."""
    running = Serving(server.url)
    yield running
    running.close()


def jobs_of(answer: Raw) -> list[Any]:
    assert answer.status in (200, 204), answer
    return json.loads(answer.body)["items"] if answer.status == 200 else []


def test_one_job_for_fifty(serving: Serving) -> None:
    """It wakes and serves one of them, the others go on waiting; then fifty jobs serve all of them."""
    wires = [serving.send("POST", TAKE) for _ in range(50)]
    serving.wait_for(50)
    assert serving.ask("PUT", "/ns/q/00", (), b"1").status == 201
    serving.wait_for(49)
    time.sleep(0.2)
    assert serving.waiting() == 49
    for n in range(1, 50):
        assert serving.ask("PUT", f"/ns/q/{n:02}", (), b"1").status == 201
    jobs = [job for wire in wires for job in jobs_of(wire.answer())]
    assert sorted(job["path"] for job in jobs) == [f"/ns/q/{n:02}" for n in range(50)]
    assert {job["attempts"] for job in jobs} == {1}


def test_many_jobs_at_once(serving: Serving) -> None:
    """A batch of jobs wakes as many as there are jobs; who takes several leaves the others waiting."""
    wires = [serving.send("POST", TAKE + "&limit=3") for _ in range(10)]
    serving.wait_for(10)
    requests = [{"method": "PUT", "path": f"/ns/q/{n}", "body": n} for n in range(9)]
    assert serving.ask("POST", "/_/batch", (), json.dumps({"requests": requests}).encode()).status == 200
    serving.wait_for(7)
    wait_until(lambda: sum(map(not_waiting, wires)) == 3, LIMIT_S)
    jobs = [job["path"] for wire in wires if not_waiting(wire) for job in jobs_of(wire.answer())]
    assert sorted(jobs) == [f"/ns/q/{n}" for n in range(9)]


def not_waiting(wire: Wire) -> bool:
    """Whether an answer has come."""
    return bool(select.select([wire.socket], [], [], 0)[0])


def test_several_queues(serving: Serving) -> None:
    """A job wakes who waits for its own container."""
    wires = {path: serving.send("POST", f"{path}?lease=60s&wait={WAIT_S}") for path in ("/ns/a/", "/ns/b/", "/ns/", "/other/")}
    serving.wait_for(4)
    for left, (container, wire) in zip((3, 2, 1, 0), wires.items(), strict=True):
        assert serving.ask("PUT", f"{container}x", (), b"1").status == 201
        assert [job["path"] for job in jobs_of(wire.answer())] == [f"{container}x"]
        assert serving.waiting() == left


@pytest.mark.slow
def test_a_lease_that_is_cut_short(serving: Serving) -> None:
    """Who waits knows the end of the lease as it was; it was extended meanwhile."""
    serving.ask("PUT", "/ns/q/a", (), b"1")
    [job] = jobs_of(serving.ask("POST", "/ns/q/?lease=3"))  # that it does not end before it is extended
    wire = serving.send("POST", "/ns/q/?lease=60s&wait=5")
    assert serving.ask("PATCH", "/ns/q/a?lease=60s", [("If-Match", f'"{job["lease"]}"')]).status == 200
    assert jobs_of(wire.answer()) == []


def test_requests_behind_one_that_waits(serving: Serving) -> None:
    """A connection is answered in the order of its requests."""
    serving.ask("PUT", "/ns/a", (), b"1")
    wire = serving.send("POST", "/ns/q/?lease=60s&wait=1")
    wire.send(request_bytes("GET", "/ns/a") + request_bytes("POST", "/ns/q/?lease=60s&wait=1"))
    assert [wire.answer().status for _ in range(3)] == [204, 200, 204]


def test_while_all_changes(serving: Serving) -> None:
    """Changes without an end, none of them a job: who waits is answered in time, and not when they end."""
    waits_in_server, is_over = serving.running.server.runtime.long_polls, threading.Event()

    async def change(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not is_over.is_set():
            for queue in waits_in_server._queues:
                queue.on_change()
            await asyncio.sleep(0)

    wires = [serving.send("POST", "/ns/q/?lease=60s&wait=1") for _ in range(3)]
    serving.wait_for(3)
    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(serving.running._loop.run, change(LIMIT_S))
        assert [wire.answer().status for wire in wires] == [204] * 3
        assert not changing.done()
        is_over.set()


# --- Who has gone -------------------------------------------------------------------------------------------------------


def test_takers_that_have_gone(serving: Serving) -> None:
    """They are given nothing: a job goes to the one who is left, however many stood before him."""
    gone = [serving.send("POST", TAKE) for _ in range(20)]
    serving.wait_for(20)
    wait_until(lambda: len(waits(serving.ask("GET", "/ns/q/").body)) == 20, LIMIT_S)
    left = serving.send("POST", TAKE)
    serving.wait_for(21)
    for n, wire in enumerate(gone):
        (wire.close, wire.abort, wire.half_close)[n % 3]()
    serving.wait_for(1)
    wait_until(lambda: waits(serving.ask("GET", "/ns/q/").body) == [None], LIMIT_S)
    assert serving.ask("PUT", "/ns/q/a", (), b"1").status == 201
    assert [(job["path"], job["attempts"]) for job in jobs_of(left.answer())] == [("/ns/q/a", 1)]


@pytest.mark.parametrize("key", [(), [("Idempotency-Key", "one")]], ids=["", "with a key"])
def test_gone_while_the_job_was_on_its_way(serving: Serving, server: Running, key: Any) -> None:
    """Redis has taken a job for somebody who is no longer there: it is given back at once, under a lease of an hour.

    With an Idempotency-Key the answer can be asked for again, so the job stays with who asked.
    """
    target = f"/ns/q/?lease=1h&wait={WAIT_S}"
    assert serving.ask("PUT", "/ns/q/a", (), b"1").status == 201
    server.signal(signal.SIGSTOP)
    try:
        wire = serving.send("POST", target, key)
        wait_until(lambda: serving.waiting() == 1, LIMIT_S)
        for _ in range(2):  # what it asks for has left by the end of this turn of the loop
            serving.running.run(asyncio.sleep(0))
        wire.close()
        wait_until(lambda: not serving.running.server.connections, LIMIT_S)
    finally:
        server.signal(signal.SIGCONT)
    [job] = jobs_of(serving.ask("POST", target, key))
    assert job["attempts"] == (1 if key else 2)
    assert serving.ask("DELETE", job["path"], [("If-Match", f'"{job["lease"]}"')]).status == 204


@pytest.mark.slow
def test_takers_that_go_at_random(serving: Serving) -> None:
    """While jobs come: each goes to a taker that is there, or can be taken again."""
    chance = random.Random(5)
    done: list[str] = []
    rest: list[str] = []
    for turn in range(3):
        wires = [serving.send("POST", f"/ns/{turn}/?lease=5s&wait={WAIT_S}") for _ in range(16)]
        going = chance.sample(wires, 10)
        wait_until(lambda: serving.waiting() == 16, LIMIT_S)
        paths = [f"/ns/{turn}/{n}" for n in range(16)]
        putting = serving.send("PUT", paths[0], (), b"1")
        for wire, path in zip([*going, None, None, None, None, None], paths[1:], strict=True):
            putting.send(request_bytes("PUT", path, (), b"1"))
            if wire:
                (wire.close if chance.random() < 0.5 else wire.abort)()
        for _ in paths:
            assert putting.answer().status == 201
        for wire in wires:
            if wire not in going:
                [job] = jobs_of(wire.answer())
                assert serving.ask("DELETE", job["path"], [("If-Match", f'"{job["lease"]}"')]).status == 204
                done.append(job["path"])
        wait_until(lambda: serving.waiting() == 0, LIMIT_S)
    assert len(done) == 18
    for turn in range(3):
        while len(rest) < 10 * (turn + 1):  # a lease that nobody uses ends after 5 s
            jobs = jobs_of(serving.ask("POST", f"/ns/{turn}/?lease=60s&limit=100&wait={WAIT_S}"))
            assert jobs
            rest += [job["path"] for job in jobs]
    assert sorted(done + rest) == sorted(f"/ns/{turn}/{n}" for turn in range(3) for n in range(16))


def test_who_has_gone_leaves_nothing(server: Running) -> None:
    """Requests that are given up at any moment do not use up the streams that there are."""
    serving = Serving(server.url, KVSTORE_MAX_STREAMS="3")
    chance = random.Random(7)
    try:
        for n in range(300):
            method, target = ("GET", f"/ns{n}/x") if n % 2 else ("POST", f"/ns{n}/?lease=1&wait=9")
            wire = serving.send(method, target, prefer_wait(9))
            time.sleep(chance.random() * 0.003)
            wire.abort()
        for _ in range(2):
            wait_until(lambda: not serving.running.server.streams.hub._namespaces, LIMIT_S)  # no log is read for nobody
            wires = [serving.send("GET", f"/new{n}/x", prefer_wait(1)) for n in range(3)]
            assert [wire.answer().status for wire in wires] == [404] * 3
    finally:
        serving.close()


@pytest.mark.slow
@pytest.mark.parametrize("goes", ["close", "abort", "half_close"])
def test_gone_from_flask(server: Running, goes: str) -> None:
    """Flask's own server lets its socket be looked at: a taker that has gone is given nothing, one that is there is."""
    served = FlaskServer(server)
    gone, left = Wire(served.at), Wire(served.at)
    try:
        for wire in (gone, left):
            wire.send(request_bytes("POST", TAKE))
        wait_until(lambda: len(waits(served.request("GET", "/ns/q/").body)) == 2, LIMIT_S)
        getattr(gone, goes)()
        wait_until(lambda: len(waits(served.request("GET", "/ns/q/").body)) == 1, LIMIT_S)
        assert served.request("PUT", "/ns/q/a", b"1").status == 201
        assert [job["attempts"] for job in jobs_of(left.answer())] == [1]
    finally:
        left.close()
        served.stop()


def test_who_has_gone_is_known_of_any_socket() -> None:
    """Also beyond the 1,024 that select(2) can look at; who sends more is there, and what is sent stays to be read."""

    async def watch(ours: socket.socket, theirs: socket.socket) -> None:
        high, other, none = (
            asyncio.create_task(web.closed(each))
            for each in (socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD, 1500)), ours.dup(), None)
        )
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in (high, other, none))
        theirs.close()
        await asyncio.wait_for(asyncio.gather(high, other), LIMIT_S)
        assert not none.done()
        none.cancel()

    async def watch_one_that_sends(ours: socket.socket, theirs: socket.socket) -> None:
        watching = asyncio.create_task(web.closed(ours.dup()))
        theirs.send(b"x")
        await asyncio.sleep(0.05)
        assert not watching.done()
        assert ours.recv(1) == b"x"
        watching.cancel()

    for watched in (watch, watch_one_that_sends):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            asyncio.run(watched(ours, theirs))


@pytest.mark.parametrize("is_before", [True, False])
def test_gone_from_asgi(server: Running, is_before: bool) -> None:
    """The ASGI server says that a client has gone: its taker is given nothing."""
    loop = Loop()
    app = Application({"REDIS_URL": server.url})
    sent: list[Any] = []

    async def call() -> None:
        begins = [{"type": "http.request", "body": b"", "more_body": False}]
        goes = asyncio.Event()

        async def receive() -> Any:
            if begins:
                return begins.pop()
            await goes.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        if is_before:
            goes.set()
        answering = asyncio.ensure_future(app(make_scope("POST", TAKE, []), receive, send))
        if not is_before:
            await asyncio.sleep(0.3)
            assert not answering.done()
            goes.set()
        await asyncio.wait_for(answering, LIMIT_S)

    try:
        loop.run(call())
        assert sent == []
        assert not server.redis.keys("*takers*")
        put = make_scope("PUT", "/ns/q/a", [])

        async def enqueue() -> None:
            body = [{"type": "http.request", "body": b"1"}]

            async def receive() -> Any:
                return body.pop() if body else await asyncio.Event().wait()

            async def send(message: Any) -> None:
                sent.append(message)

            await app(put, receive, send)
            await asyncio.sleep(0.3)

        loop.run(enqueue())
        assert sent[0]["status"] == 201
        assert b"job" not in (server.redis.hget("kv:{ns}/q/a", "$kv") or b"")
        loop.run(app.open().close())
    finally:
        loop.close()


# --- Limits, stops and trouble ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_than_allowed(server: Running) -> None:
    """503 and Retry-After where more wait than KVSTORE_MAX_STREAMS; takers of one container count once."""
    serving = Serving(server.url, KVSTORE_MAX_STREAMS="3")
    try:
        takers = [serving.send("POST", TAKE) for _ in range(5)]
        serving.wait_for(5)
        polls = [serving.send("GET", "/ns/a", prefer_wait(WAIT_S)) for _ in range(2)]
        serving.wait_for(7)
        for method, target in (("GET", "/ns/a"), ("GET", "/ns/b"), ("POST", "/other/?lease=1&wait=3")):
            refused = serving.ask(method, target, prefer_wait(3))
            assert refused.status == 503
            assert ("Retry-After", "1") in refused.lines
        assert serving.ask("PUT", "/ns/a", (), b"1").status == 201
        assert [wire.answer().status for wire in polls] == [200, 200]
        assert serving.ask("GET", "/ns/b", prefer_wait(1)).status == 404
        for number in range(5):
            assert serving.ask("PUT", f"/ns/q/{number}", (), b"1").status == 201
        assert [wire.answer().status for wire in takers] == [200] * 5
    finally:
        serving.close()


@pytest.mark.slow
def test_who_waits_at_two_services(server: Running, directory: Path) -> None:
    """All of them are shown by each. Those of one that is killed are shown until their time is over."""
    services = []
    wires = []
    try:
        for number, wait_s in enumerate((WAIT_S, 6)):
            (home := directory / str(number)).mkdir()
            services.append(start_kvstore(home, REDIS_URL=server.url, WEB_CONCURRENCY="1"))
            for taker in range(5):
                wires.append(Wire(services[-1].at))
                wires[-1].send(request_bytes("POST", f"/ns/q/?lease=60s&wait={wait_s}&as={5 * number + taker}"))
        for service in services:
            wait_until(lambda: sorted(waits(service.request("GET", "/ns/q/").content)) == list(range(10)), LIMIT_S)  # noqa: B023
        services[1].kill()
        assert sorted(waits(services[0].request("GET", "/ns/q/").content)) == list(range(10))
        wait_until(lambda: sorted(waits(services[0].request("GET", "/ns/q/").content)) == list(range(5)), LIMIT_S)
        services[0].stop()
        key = "kv:{ns}!takers:q"
        assert server.redis.zcount(key, 1000 * time.time(), "+inf") == 0
        assert server.redis.pttl(key) <= 1000 * WAIT_S, "what is left of those that were killed goes with the key"
    finally:
        for wire in wires:
            wire.close()
        for service in services:
            service.kill()


@pytest.mark.slow
def test_a_stop(server: Running, directory: Path) -> None:
    """SIGTERM of the command: all who wait are answered, with what there is, and long before their time; then it ends."""
    served = start_kvstore(directory, REDIS_URL=server.url)
    try:
        tag = dict(served.request("PUT", "/ns/a", (), b"1").getheaders())["ETag"]
        asked = (
            [("POST", TAKE, ())] * 20
            + [("GET", "/ns/a", prefer_wait(WAIT_S, tag))] * 6
            + [("GET", "/ns/b", prefer_wait(WAIT_S))] * 6
        )
        wires = []
        for method, target, headers in asked:
            wires.append(Wire(served.at))
            wires[-1].send(request_bytes(method, target, headers))
        wait_until(lambda: b"kvstore_waits 32\n" in served.request("GET", "/_/metrics").content, LIMIT_S)
        sent_at = time.monotonic()
        served.process.terminate()
        answers = [wire.answer() for wire in wires]
        assert time.monotonic() - sent_at < LIMIT_S
        assert [answer.status for answer in answers] == [204] * 20 + [304] * 6 + [404] * 6
        assert all(answer.closes for answer in answers)
        served.process.wait(LIMIT_S)
        for wire in wires:
            wire.close()
    finally:
        served.kill()


def test_a_stop_in_process(server: Running) -> None:
    """Closing what serves an event loop answers those who wait; nobody is told that Redis is away."""
    serving = Serving(server.url, loop="asyncio")  # uvloop is not closed as long as a client has not closed
    wires = [serving.send("POST", TAKE) for _ in range(10)] + [
        serving.send("GET", "/ns/b", prefer_wait(WAIT_S)) for _ in range(5)
    ]
    serving.wait_for(15)
    wait_until(lambda: len(waits(serving.ask("GET", "/ns/q/").body)) == 10, LIMIT_S)
    serving.running.stop()
    assert [wire.answer().status for wire in wires] == [204] * 10 + [404] * 5
    assert not server.redis.keys("*takers*")
    for wire in wires:
        wire.close()


@pytest.mark.slow
def test_connections_to_redis_that_are_cut(serving: Serving, server: Running) -> None:
    """Who waits gets a job that comes afterwards, or is told 503; every job is still there for somebody."""
    wires = [serving.send("POST", "/ns/q/?lease=60s&wait=5") for _ in range(10)]
    serving.wait_for(10)
    put = 0
    for _ in range(5):
        server.redis.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.1)
        put += serving.ask("PUT", f"/ns/q/{put}", (), b"1").status == 201
    answers = [wire.answer() for wire in wires]
    assert {answer.status for answer in answers} <= {200, 204, 503}
    given = [job["path"] for answer in answers if answer.status == 200 for job in jobs_of(answer)]
    rest = [job["path"] for job in jobs_of(serving.ask("POST", "/ns/q/?lease=60s&limit=100"))]
    assert len(set(given + rest)) == len(given + rest)
    assert put > 0


def test_what_is_lost_again_and_again(serving: Serving, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits goes on waiting, without asking Redis all the time."""
    monkeypatch.setattr(ReadChanges, "outcome", lambda *_: ChangesRead(None))
    before, began = server.redis.info("stats")["total_commands_processed"], time.monotonic()
    wires = [serving.send("GET", "/ns/b", prefer_wait(1)), serving.send("POST", "/ns/q/?lease=60s&wait=1")]
    assert [wire.answer().status for wire in wires] == [404, 204]
    commands = server.redis.info("stats")["total_commands_processed"] - before  # those of scripts are counted as well
    assert commands < 2000 * (time.monotonic() - began), "a second: 190 to 260 are seen, and 100,000 without a pause"


@pytest.mark.slow
@pytest.mark.usefixtures("real_limits")
def test_redis_is_halted(serving: Serving, server: Running) -> None:
    """Nobody hangs: an answer within the time they wait and the 6 s that Redis is given."""
    tag = dict(serving.ask("PUT", "/ns/a", (), b"1").lines)["ETag"]
    wires = [serving.send("POST", "/ns/q/?lease=60s&wait=1") for _ in range(3)]
    wires += [serving.send("GET", "/ns/a", prefer_wait(1, tag)) for _ in range(3)]
    serving.wait_for(6)
    server.signal(signal.SIGSTOP)
    begun = time.monotonic()
    try:
        late = [serving.send("POST", "/ns/q/?lease=60s&wait=1"), serving.send("GET", "/ns/a", prefer_wait(1, tag))]
        statuses = [wire.answer().status for wire in wires + late]
        assert time.monotonic() - begun < 1 + 6 + 2
    finally:
        server.signal(signal.SIGCONT)
    assert set(statuses) <= {204, 304, 503}
    wait_until(lambda: serving.ask("PUT", "/ns/q/x", (), b"1").status in (200, 201), LIMIT_S)
    assert len(jobs_of(serving.ask("POST", TAKE))) == 1


def test_a_job_that_another_process_gives_back(serving: Serving, server: Running) -> None:
    """Who waits here is woken: by Redis, not by the request."""
    other = Serving(server.url)
    try:
        serving.ask("PUT", "/ns/q/a", (), b"1")
        lease = jobs_of(other.ask("POST", "/ns/q/?lease=60s"))[0]["lease"]
        wires = [serving.send("POST", TAKE) for _ in range(3)]
        serving.wait_for(3)
        other.ask("PATCH", "/ns/q/a?lease=0", [("If-Match", f'"{lease}"')])
        ready, _, _ = select.select([wire.socket for wire in wires], [], [], LIMIT_S)
        assert len(ready) == 1
    finally:
        other.close()
