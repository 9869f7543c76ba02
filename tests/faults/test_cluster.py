"""A Redis Cluster whose slots move, whose primaries die and whose nodes hang, under load.

Each document has one writer, which knows what must be there: the last write that was acknowledged, or one after it of which it
was told that nobody knows.
"""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvstore.commands.base import Stored
from kvstore.commands.changelog import GetLogPosition, changed_name
from kvstore.commands.documents import Put
from kvstore.core.codec import encode
from kvstore.core.errors import UNKNOWN, Problem, TooFewReplicas
from kvstore.core.paths import parse_path
from kvstore.core.preconditions import NONE
from kvstore.core.redis_url import parse_redis_url
from kvstore.http import protocol
from kvstore.http.messages import Request, Response, refuse
from kvstore.live.log_reader import LogReader, Reading
from kvstore.stores import replicated as replicas_module
from kvstore.stores.blocking import BlockingStore, open_blocking_store
from kvstore.stores.pipelined import AsyncStore
from kvstore.stores.pooled import open_async_store
from kvstore.stores.redis_errors import UNCHANGED
from tests.support.faulty import SETTINGS, as_request
from tests.support.loops import PRODUCTION, Loop
from tests.support.moving import Mover, slot_of
from tests.support.stores import FAILS_OVER, Cluster, connect, make_directory, start_cluster, wait_until

pytestmark = pytest.mark.slow

LOAD_S = 2.5
LIMIT_S = 40  # for what has no promise, on a busy machine
LATE_S = 10.0  # that a machine which is busy with other tests may take longer than is promised
PATIENT_MS, FAILS_MS = 15_000, 2000  # after which a node is taken for dead: where none is to die, and where one is

real_limits = pytest.mark.usefixtures("real_limits")
INCREMENT = {"n": {".sv": {"increment": 1}}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes with slots, the first with a replica."""
    running = start_cluster(make_directory(), *FAILS_OVER, replicas_of=[0])
    take_for_dead(running, PATIENT_MS)
    yield running
    running.stop()


def take_for_dead(cluster: Cluster, after_ms: int) -> None:
    """Have the nodes of a cluster take one for dead that has been silent for so long."""
    for port in cluster.pids:
        with connect(f"redis://127.0.0.1:{port}") as node:
            node.config_set("cluster-node-timeout", after_ms)


@pytest.fixture
def run() -> Iterator[Callable[..., Any]]:
    """Runs a coroutine on the event loop that production has."""
    loop = Loop(PRODUCTION)
    yield loop.run
    loop.close()


def spaces(cluster: Cluster, node: int, count: int, prefix: str) -> list[str]:
    """The names of namespaces that the node with this index has at the start."""
    names = (f"{prefix}{number}" for number in range(10_000))
    return [name for name in names if slot_of(cluster, name) * 3 // 16_384 == node][:count]


@dataclass
class Client:
    """What asks a store, and notes what comes back."""

    store: AsyncStore
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[Any] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    longest_s: float = 0.0
    is_over: bool = False

    async def ask(self, method: str, target: str, body: Any = "") -> tuple[int, Any]:
        """The status and the body of an answer; 0 for one that says that nobody knows whether it was applied."""
        begun = time.monotonic()
        response = await self._response(as_request(method, target, body))
        took_s = time.monotonic() - begun
        self.times_s.append(took_s)
        self.longest_s = max(self.longest_s, took_s)
        self.statuses[method, response.status] += 1
        said = json.loads(response.body)
        if response.status == 503:
            assert (UNCHANGED in said["detail"]) != (UNKNOWN in said["detail"]) or method == "GET", said
            return (503 if UNCHANGED in said["detail"] else 0), said
        return response.status, said

    async def _response(self, request: Request) -> Response:
        try:
            command: Any = protocol.parse(request, SETTINGS)
            return protocol.render(request, await self.store.execute(command))
        except Problem as problem:
            return refuse(problem)

    def expect(self, holds: bool, *what: Any) -> None:
        if not holds:
            self.wrong.append(what)

    async def write(self, path: str, end: float) -> None:
        """PUT, increment and GET one document; `maybe` are the values that it may have, None for no document."""
        maybe: set[int | None] = {None}
        last = 0
        while time.monotonic() < end and not self.is_over:
            last += 1000
            status, body = await self.ask("PUT", path, {"n": last})
            if status in (200, 201):
                self.expect((status == 201) == (maybe == {None}) or len(maybe) > 1, "PUT", path, status, maybe)
                maybe = {last}
            else:
                self.expect(status in (0, 503), "PUT", path, body)
                maybe |= {last} if status == 0 else set()
            if None in maybe:
                continue
            status, body = await self.ask("PATCH", path, INCREMENT)
            after = {n + 1 for n in maybe if n is not None}
            if status == 200:
                self.expect(body["n"] in after, "PATCH", path, body, maybe)
                maybe = {body["n"]}
            else:
                self.expect(status in (0, 503), "PATCH", path, body)
                maybe |= after if status == 0 else set()
            status, body = await self.ask("GET", path)
            if status == 200:
                self.expect(body["n"] in maybe, "GET", path, body, maybe)
                maybe = {body["n"]}
            else:
                self.expect(status in (0, 503), "GET", path, body)

    async def append(self, container: str, end: float) -> None:
        """POST, and count in the end."""
        least = most = 0
        while time.monotonic() < end and not self.is_over:
            status, _ = await self.ask("POST", container, 1)
            self.expect(status in (0, 201, 503), "POST", container, status)
            least += status == 201
            most += status in (0, 201)
            await asyncio.sleep(0.01)
        count = (await self.ask("GET", f"{container}?count"))[1]["count"]
        self.expect(least <= count <= most, "count", container, least, count, most)

    async def read(self, path: str, end: float) -> None:
        """GET a document that is written again and again: what it shows never goes back."""
        last = 0
        while time.monotonic() < end and not self.is_over:
            status, body = await self.ask("GET", path)
            is_later = status == 200 and body["n"] >= last
            self.expect(is_later or (status == 404 and not last), "read", path, status, body, last)
            last = body["n"] if status == 200 else last
            await asyncio.sleep(0.001)

    async def load(self, names: list[str], seconds: float, at: str = "") -> None:
        """Four writers, a reader and one that appends, for each namespace, of documents that are not there."""
        end = time.monotonic() + seconds
        writers = [self.write(f"/{name}/{at}{number}", end) for name in names for number in range(4)]
        readers = [self.read(f"/{name}/{at}0", end) for name in names]
        await asyncio.gather(*writers, *readers, *(self.append(f"/{name}/{at}all/", end) for name in names))


async def opened(cluster: Cluster, use: Callable[..., Awaitable[Any]], *, follows: bool = False, replicas: int = 0) -> Any:
    """What `use` returns of a store on the cluster, and of what follows its logs; both are closed afterwards."""
    store = open_async_store(cluster.url, replicas=replicas)
    followed = [Followed(cluster, store)] if follows else []
    try:
        return await use(store, *followed)
    finally:
        for each in followed:
            await each.logs.close()
        await store.close()


def asked(cluster: Cluster) -> int:
    """How many commands were sent with ASKING."""
    total = 0
    for port in cluster.pids:
        total += connect(f"redis://127.0.0.1:{port}").info("commandstats").get("cmdstat_asking", {"calls": 0})["calls"]
    return total


def test_slots_that_move_under_load(cluster: Cluster, run: Callable[..., Any]) -> None:
    """Key by key: no acknowledged write is lost, none is done twice, and every answer is right."""
    names = [name for node in range(3) for name in spaces(cluster, node, 1, "moving")]
    mover = Mover(cluster)

    async def use(store: AsyncStore) -> Client:
        client, end = Client(store), time.monotonic() + LIMIT_S
        await client.load(names, LOAD_S)
        for again in range(10):
            if (mover.moves > 5 and await asyncio.to_thread(asked, cluster) > before) or time.monotonic() > end:
                break
            await client.load(names, LOAD_S, f"again{again}-")
        return client

    before = asked(cluster)
    with mover.moving([slot_of(cluster, name) for name in names]):
        client = run(opened(cluster, use))
    mover.close()
    assert client.wrong == []
    assert mover.moves > 5
    assert asked(cluster) > before  # documents were read in the middle of a move
    assert {status for _, status in client.statuses} <= {200, 201, 404}


class Followed:
    """A log reader, and the names of what has changed in each namespace, as it was told."""

    def __init__(self, cluster: Cluster, store: AsyncStore) -> None:
        self.names: dict[str, list[str]] = {}
        self.lost: list[str] = []
        self.logs = LogReader(store, parse_redis_url(cluster.url), on_changes=self._changed, on_lost=self._lose)

    def _changed(self, reading: Reading, entries: list[Any], _: bytes) -> None:
        self.names.setdefault(reading.path.namespace, []).extend(changed_name(entry) for entry in entries)

    def _lose(self, reading: Reading) -> None:
        self.lost.append(reading.path.namespace)

    async def follow(self, store: AsyncStore, name: str) -> None:
        """Read the log of a namespace from now on."""
        path = parse_path(f"/{name}/".encode())
        self.logs.read(path, (await store.execute(GetLogPosition(path))).position)

    async def hears(self, name: str, last: str, limit_s: float) -> None:
        """Wait until a change was told."""
        async with asyncio.timeout(limit_s):
            while last not in self.names.get(name, ()):
                await asyncio.sleep(0.005)


def test_logs_are_followed_on_all_nodes(cluster: Cluster, run: Callable[..., Any]) -> None:
    """Each node says which of its logs have grown, also of a namespace whose slot has moved since."""
    names = [name for node in range(3) for name in spaces(cluster, node, 1, "followed")]
    empty = spaces(cluster, 0, 1, "empty")[0]  # of which the old node has nothing to say when it moves
    mover = Mover(cluster)

    async def use(store: AsyncStore, followed: Followed) -> Followed:
        client = Client(store)
        for name in (*names, empty):
            await followed.follow(store, name)
        await asyncio.to_thread(wait_until, lambda: followed.logs.idle_s > LIMIT_S, LIMIT_S)  # they are not polled
        for moves in (False, True):
            if moves:
                for name in (names[0], empty):
                    await asyncio.to_thread(mover.move, slot_of(cluster, name), mover.owner(slot_of(cluster, names[1])))
            for name in names:
                for number in range(5):
                    last = f"{moves}{number}"
                    assert (await client.ask("PUT", f"/{name}/{last}", number))[0] == 201
                    await followed.hears(name, last, LIMIT_S)
        assert (await client.ask("PUT", f"/{empty}/a", 1))[0] == 201
        await followed.hears(empty, "a", LIMIT_S)
        assert followed.logs.idle_s > LIMIT_S
        return followed

    followed = run(opened(cluster, use, follows=True))
    mover.close()
    assert followed.names.pop(empty) == ["a"]
    assert followed.names == {name: [f"{moves}{number}" for moves in (False, True) for number in range(5)] for name in names}
    assert followed.lost == []


@real_limits
@pytest.mark.alone
def test_a_node_that_hangs(cluster: Cluster, run: Callable[..., Any]) -> None:
    """It costs its own namespaces, and no others, while forty clients wait for it."""
    hung, others = spaces(cluster, 1, 4, "hung"), [name for node in (0, 2) for name in spaces(cluster, node, 2, "others")]
    pid = list(cluster.pids.values())[1]

    async def wait_in_vain(client: Client, path: str, end: float) -> None:
        while time.monotonic() < end:
            await client.ask("PUT", path, 1)

    async def use(store: AsyncStore) -> tuple[Client, Client, Client]:
        before, waiting, beside = Client(store), Client(store), Client(store)
        await before.load([*hung, *others], 0.5, "first")
        before.times_s.clear()
        await before.load(others, 1, "before")
        try:
            os.kill(pid, signal.SIGSTOP)
            end = time.monotonic() + 2
            vain = [wait_in_vain(waiting, f"/{hung[number % 4]}/{number}", end) for number in range(40)]
            await asyncio.gather(beside.load(others, 2), *vain)
        finally:
            os.kill(pid, signal.SIGCONT)
        begun = time.monotonic()
        while (await waiting.ask("GET", f"/{hung[0]}/0"))[0] != 200:
            assert time.monotonic() - begun < 2, "not served within 2 s"
            await asyncio.sleep(0.01)
        return before, waiting, beside

    before, waiting, beside = run(opened(cluster, use))
    assert before.wrong == beside.wrong == []
    assert {status for _, status in beside.statuses} <= {200, 201, 404}
    assert waiting.longest_s < 6
    assert {status for _, status in waiting.statuses} <= {200, 201, 503}
    # How much is left is measured by the bench; where others wait for the node, it is a fiftieth, or nothing.
    assert len(beside.times_s) / 2 > len(before.times_s) / 10


@real_limits
def test_a_primary_that_dies(cluster: Cluster, run: Callable[..., Any]) -> None:
    """Its replica is found as soon as it is promoted: by requests, and by those who follow. Other namespaces notice nothing."""
    dies, others = spaces(cluster, 0, 1, "dies")[0], spaces(cluster, 2, 2, "stay")
    first, *_, replica = cluster.pids
    promoted = connect(f"redis://127.0.0.1:{replica}")
    promoted.execute_command("READONLY")  # so that it says what it has
    take_for_dead(cluster, FAILS_MS)

    async def use(store: AsyncStore, followed: Followed) -> tuple[Client, Client]:
        client, beside = Client(store), Client(store)
        assert (await client.ask("PUT", f"/{dies}/a", 1))[0] == 201
        await followed.follow(store, dies)
        await asyncio.to_thread(wait_until, lambda: promoted.exists(f"kv:{{{dies}}}/a"), LIMIT_S)
        loading = asyncio.ensure_future(beside.load(others, 2 * FAILS_MS / 1000))
        os.kill(cluster.pids[first], signal.SIGKILL)

        def is_promoted() -> bool:
            return bool(promoted.info("replication")["role"] == "master")

        await asyncio.to_thread(wait_until, is_promoted, LIMIT_S)
        begun = time.monotonic()
        while (await client.ask("PUT", f"/{dies}/b", 1))[0] not in (200, 201):
            assert time.monotonic() - begun < 2 + LATE_S, "not served within 2 s"
            await asyncio.sleep(0.01)
        assert (await client.ask("GET", f"/{dies}/a"))[0] == 200
        await followed.hears(dies, "b", LIMIT_S)
        await loading
        return client, beside

    client, beside = run(opened(cluster, use, follows=True))
    assert client.longest_s < 6 + LATE_S
    assert beside.wrong == []
    assert {status for _, status in beside.statuses} <= {200, 201, 404}


@pytest.fixture(scope="module")
def replicated() -> Iterator[Cluster]:
    """Three nodes with slots, each with a replica."""
    running = start_cluster(make_directory(), *FAILS_OVER, replicas_of=range(3))
    take_for_dead(running, PATIENT_MS)
    yield running
    running.stop()


@pytest.fixture
def waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write waits for a replica of a busy machine."""
    monkeypatch.setattr(replicas_module, "WAIT_MS", 3000)


@pytest.mark.usefixtures("waits_longer")
def test_writes_of_threads_wait_for_replicas(replicated: Cluster) -> None:
    """With the node that has the slot, also after it has moved; the replica of the second one hangs."""
    healthy, other = (spaces(replicated, node, 1, "threads")[0] for node in (0, 1))
    mover, hangs = Mover(replicated), list(replicated.pids.values())[4]

    def put(store: BlockingStore, name: str) -> Any:
        return store.execute(Put(parse_path(f"/{name}/a".encode()), encode(b"1"), 100_000, NONE, 100))

    with closing(open_blocking_store(replicated.url, replicas=1)) as store:
        assert isinstance(put(store, healthy), Stored)
        assert isinstance(put(store, other), Stored)
        os.kill(hangs, signal.SIGSTOP)
        try:
            with pytest.raises(TooFewReplicas, match="0 of 1"):
                put(store, other)
            home, target = (mover.owner(slot_of(replicated, name)) for name in (other, healthy))
            mover.move(slot_of(replicated, other), target)
            assert isinstance(put(store, other), Stored)
            mover.move(slot_of(replicated, other), home)
        finally:
            os.kill(hangs, signal.SIGCONT)
    mover.close()


@pytest.mark.usefixtures("waits_longer")
def test_a_primary_that_dies_under_writers_that_wait_for_replicas(
    replicated: Cluster, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was acknowledged is lost, however many writes are under way; the other namespaces notice nothing."""
    dies = spaces(replicated, 0, 2, "dies")
    stay = [spaces(replicated, node, 1, "stay")[0] for node in (1, 2)]
    promoted = connect(f"redis://127.0.0.1:{list(replicated.pids)[3]}")

    def is_promoted() -> bool:
        return bool(promoted.info("replication")["role"] == "master")

    async def use(store: AsyncStore) -> tuple[Client, Client]:
        client, beside = Client(store), Client(store)
        end = time.monotonic() + LIMIT_S
        loads = [asyncio.ensure_future(client.write(f"/{name}/{number}", end)) for name in dies for number in range(4)]
        stays = asyncio.ensure_future(beside.load(stay, LIMIT_S))
        await asyncio.to_thread(wait_until, lambda: client.statuses["PUT", 200] > 20, LIMIT_S)
        take_for_dead(replicated, FAILS_MS)
        os.kill(next(iter(replicated.pids.values())), signal.SIGKILL)
        await asyncio.to_thread(wait_until, is_promoted, LIMIT_S)
        beside.is_over = True
        await stays
        monkeypatch.setattr(replicas_module, "WAIT_MS", 100)
        await asyncio.to_thread(wait_until, lambda: client.statuses["PUT", 503] > 0, LIMIT_S)
        client.is_over = True
        await asyncio.gather(*loads)
        # The promoted node has no replica, so nothing more is acknowledged; what was is there to read.
        found = [await client.ask("GET", f"/{name}/{number}") for name in dies for number in range(4)]
        assert {status for status, _ in found} == {200}
        return client, beside

    client, beside = run(opened(replicated, use, replicas=1))
    promoted.close()
    assert client.wrong == []
    assert beside.wrong == []
    assert {status for _, status in beside.statuses} <= {200, 201, 404}
