"""Queries take turns: one piece of one query is read at a time, few go on beyond their first, and nobody waits for long."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from kvstore.commands.containers import List
from kvstore.commands.queries import Counted, Find, Paused, Piece
from kvstore.core.errors import StoreUnavailable
from kvstore.core.paths import parse_path
from kvstore.core.query import Question
from kvstore.serving.asgi import Application
from kvstore.stores import query_queue
from kvstore.stores.blocking import open_blocking_store
from kvstore.stores.query_queue import MAX_RUNNING, QueryQueue
from tests.support.asking import at_once, batch_body, scripts_run
from tests.support.clients import make_scope
from tests.support.inprocess import InProcess
from tests.support.stores import Running, wait_until

LIMIT_S = 30.0
COUNTED = Counted(1, None)


def count(name: str) -> Find:
    """A count of the documents below a container of this name."""
    return Find(List(parse_path(b"/" + name.encode() + b"/"), "", 1, False, False, False, ""), Question(counts=True))


class Sent(NamedTuple):
    """A command that is with the store."""

    name: str
    answer: Callable[[Any], None]


class Store:
    """A store whose commands are answered by the test."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def submit(self, command: Any, done: Any, context: Any) -> None:
        find = command.command if isinstance(command, Piece) else command
        assert isinstance(find, Find)
        self.sent.append(Sent(find.container.namespace, lambda outcome: done(context, outcome)))

    def flush(self) -> None:
        """Nothing is kept back."""

    async def execute(self, command: Any) -> Any:
        """Not asked for."""

    async def close(self) -> None:
        """Nothing is open."""


class Queue:
    """A queue on such a store, and what its queries came to."""

    def __init__(self) -> None:
        self.store = Store()
        self.queue = QueryQueue(self.store)
        self.outcomes: dict[str, Any] = {}

    def ask(self, name: str, *, has_begun: bool = False) -> Any:
        """Submit a query."""
        return self.queue.submit(count(name)._replace(has_begun=has_begun), self.outcomes.__setitem__, name)

    def answer(self, outcome: Any = COUNTED) -> str:
        """Answer the one piece that is with the store; without an outcome there is more to read. Returns whose it was."""
        assert len(self.store.sent) == 1, "one piece at a time"
        sent = self.store.sent.pop()
        sent.answer(Paused(count(sent.name)) if outcome is None else outcome)
        return sent.name


def test_queries_take_turns() -> None:
    """Those that are new come in the order of the line; of those that go on, so many at a time."""

    async def run() -> None:
        queue = Queue()
        names = [f"q{number}" for number in range(MAX_RUNNING + 2)]
        for name in names:
            queue.ask(name)
        assert [queue.answer(None) for _ in 2 * names] == 2 * names
        assert queue.queue.queries == len(names)
        running, waiting = names[:MAX_RUNNING], names[MAX_RUNNING:]
        assert [queue.answer(None) for _ in range(2 * MAX_RUNNING)] == 2 * running
        queue.ask("new")
        assert queue.answer() == running[0]
        assert [queue.answer(None) for _ in range(MAX_RUNNING)] == [waiting[0], *running[1:]]
        assert queue.answer() == "new"
        for _ in range(MAX_RUNNING + 1):
            queue.answer()
        assert queue.outcomes == dict.fromkeys([*names, "new"], COUNTED)
        assert (queue.queue.queries, queue.store.sent) == (0, [])

    asyncio.run(run())


def test_a_query_that_failed_makes_room() -> None:
    """One that fails, or is cancelled, at any time."""

    async def run() -> None:
        queue = Queue()
        queries = [queue.ask(f"q{number}") for number in range(MAX_RUNNING + 1)]
        for _ in 2 * queries:
            queue.answer(None)
        queries[1].cancel()
        assert queue.answer(StoreUnavailable("away")) == "q0"
        assert [queue.answer(None) for _ in range(MAX_RUNNING - 1)] == [f"q{number}" for number in range(2, MAX_RUNNING + 1)]
        queries[2].cancel()  # whose piece is being read
        assert queue.answer(None) == "q2"
        assert queue.answer() == "q3"
        queries[3].cancel()  # it is over
        for _ in range(MAX_RUNNING - 3):
            queue.answer()
        assert set(queue.outcomes) == {"q0"} | {f"q{number}" for number in range(3, MAX_RUNNING + 1)}
        assert queue.queue.queries == 0
        waits = asyncio.ensure_future(queue.queue.execute(count("a")))
        await asyncio.sleep(0)
        waits.cancel()
        with suppress(asyncio.CancelledError):
            await waits
        queue.answer(None)
        assert queue.queue.queries == 0

    asyncio.run(run())


def test_the_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many may wait, and so long; the others are told to come again. A response that has begun is not cut off for that."""
    monkeypatch.setattr(query_queue, "MAX_QUEUED", 2)
    monkeypatch.setattr(query_queue, "QUEUED_S", 0.5)

    async def run() -> None:
        queue = Queue()
        for name in ("first", "second", "third", "fourth"):
            queue.ask(name)
        queue.ask("begun", has_begun=True)
        await asyncio.sleep(0)
        assert list(queue.outcomes) == ["fourth"]
        async with asyncio.timeout(LIMIT_S):
            while len(queue.outcomes) < 3:
                await asyncio.sleep(0.01)
        assert list(queue.outcomes) == ["fourth", "second", "third"]
        assert {problem.headers["Retry-After"] for problem in queue.outcomes.values()} == {"1"}
        assert [queue.answer(), queue.answer()] == ["first", "begun"]

    asyncio.run(run())


# --- On a Redis ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(started: Callable[[str], Running], monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server with 400 documents, of which a script reads one at a time."""
    monkeypatch.setattr("kvstore.commands.queries.PIECE", 1)
    running = started("valkey")
    running.redis.flushall()
    served = InProcess(running.url)
    requests = [("PUT", f"/ns/{number:03}", {"a": number}) for number in range(400)]
    assert served.request("POST", "/_/batch", body=batch_body(requests)).status == 200
    served.stop()
    yield running
    running.redis.flushall()


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query of 400 pieces takes 8 s."""
    send_next = QueryQueue._send_next
    monkeypatch.setattr(QueryQueue, "_send_next", lambda queue: asyncio.get_running_loop().call_later(0.02, send_next, queue))


def test_too_many(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long query that finds no place is 503 with Retry-After; a short one is answered."""
    monkeypatch.setattr(query_queue, "MAX_RUNNING", 0)
    monkeypatch.setattr(query_queue, "QUEUED_S", 0.05)
    served = InProcess(server.url)
    try:
        refused = served.request("GET", "/ns/?count")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert served.request("GET", "/ns/?a:lt=9&limit=1").status == 200
    finally:
        served.stop()


def test_threads_take_turns(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in the blocking store."""
    store = open_blocking_store(server.url)
    found = at_once(lambda _: store.execute(count("ns")), 4)
    assert {outcome.documents for outcome in found if isinstance(outcome, Counted)} == {400}
    store.close()
    monkeypatch.setattr("kvstore.stores.blocking.MAX_RUNNING", 0)
    monkeypatch.setattr(query_queue, "QUEUED_S", 0.05)
    store = open_blocking_store(server.url)
    with pytest.raises(StoreUnavailable, match="as many queries"):
        store.execute(count("ns"))
    assert isinstance(store.execute(count("empty")), Counted)
    store.close()


@pytest.mark.usefixtures("slowly")
@pytest.mark.parametrize(
    ("goes", "fields"),
    [("close", b""), ("abort", b""), ("half_close", b""), ("close", b'Prefer: wait=9\r\nIf-None-Match: "1-1"\r\n')],
)
def test_who_has_gone_is_not_answered(server: Running, goes: str, fields: bytes) -> None:
    """The query ends before its next piece, also if it would have waited for a change."""
    served = InProcess(server.url)
    server.redis.config_resetstat()
    try:
        wire = served.connect()
        wire.send(b"GET /ns/?sort=a HTTP/1.1\r\nHost: x\r\n%b\r\n" % fields)
        wait_until(lambda: scripts_run(server.redis) > 2, LIMIT_S)
        getattr(wire, goes)()
        wait_until(lambda: served.server.runtime.store.queries == 0, LIMIT_S)
        assert scripts_run(server.redis) < 390
    finally:
        served.stop()


@pytest.mark.usefixtures("slowly")
def test_who_has_gone_from_asgi(server: Running) -> None:
    """The same where the ASGI server says so."""
    app = Application({"REDIS_URL": server.url})
    server.redis.config_resetstat()

    async def run() -> None:
        begins = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if begins:
                return begins.pop()
            while scripts_run(server.redis) < 3:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            raise AssertionError("nobody is there")

        await asyncio.wait_for(app(make_scope("GET", "/ns/?sort=a", []), receive, send), LIMIT_S)
        async with asyncio.timeout(LIMIT_S):
            while app.open().store.queries:
                await asyncio.sleep(0.01)
        await app.open().close()

    asyncio.run(run())
    assert scripts_run(server.redis) < 390
