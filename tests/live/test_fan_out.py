"""One reader of the logs for many streams: many changes at once, many namespaces, and Redis that says which have grown."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import pytest

from kvstore.commands.changelog import MAX_CHANGED_BYTES, MAX_CHANGES, GetLogPosition, ReadChanges
from kvstore.core.paths import parse_path
from kvstore.live import hub as live
from kvstore.live.subscribers import MAX_JOINED_BYTES
from tests.support.asking import entries
from tests.support.stores import SERVERS, Running, wait_until
from tests.support.streams import LIMIT_S, OwnServer, Reader, ask, following

NAMESPACES = 30
KIB = "x" * 1024


@pytest.fixture
def store(request: pytest.FixtureRequest, started: Callable[[str], Running]) -> Running:
    """A server of Redis or Valkey, empty."""
    running = started(request.param)
    running.redis.flushall()
    return running


@pytest.fixture
def followed(store: Running) -> Iterator[OwnServer]:
    """Our own server on it."""
    running = OwnServer(store)
    yield running
    running.stop()


on_both = pytest.mark.parametrize("store", SERVERS, indirect=True)
on_redis = pytest.mark.parametrize("store", ["redis"], indirect=True)


@pytest.fixture
def readers(followed: OwnServer) -> Iterator[list[Reader]]:
    """Readers of as many namespaces, each of which has its snapshot."""
    with ExitStack() as stack:
        opened = [stack.enter_context(following(followed, f"/space{number}/path")) for number in range(NAMESPACES)]
        for reader in opened:
            reader.wait_for(1)
        yield opened


def put_everywhere(served: OwnServer, value: int) -> None:
    """Write to every namespace."""
    for number in range(NAMESPACES):
        ask(served, "PUT", f"/space{number}/path", value)


def values(reader: Reader) -> list[Any]:
    return [event.data["value"] for event in reader.events[1:]]


@on_both
def test_many_changes_at_once(followed: OwnServer) -> None:
    """More than are read at once, and than are sent at once: each comes once, in order, to whom it concerns."""
    bodies = [f"{number} {KIB}" for number in range(MAX_CHANGES + 200)]
    batch = [{"method": "PUT", "path": f"/busy/{number % 3}", "body": body} for number, body in enumerate(bodies)]
    with (
        following(followed, "/busy/") as of_all,
        following(followed, "/busy/1") as of_one,
        following(followed, "/busy/x/") as of_none,
    ):
        for reader in (of_all, of_one, of_none):
            reader.wait_for(1)
        ask(followed, "POST", "/_/batch", {"requests": batch})
        of_all.wait_for(1 + len(batch))
        of_one.wait_for(1 + len(batch[1::3]))
        ask(followed, "PUT", "/busy/x/1", "last")
        of_none.wait_for(2)
        assert values(of_all)[: len(batch)] == bodies
        assert values(of_one) == bodies[1::3]
        assert values(of_none) == ["last"]
        assert len(KIB) * len(batch) > MAX_JOINED_BYTES


@on_redis
def test_more_than_a_reader_may_leave_unread(store: Running, request: pytest.FixtureRequest) -> None:
    """Readers that read are not dropped, however much changes at once: they get it as fast as they take it."""
    followed = OwnServer(store, {"KVSTORE_LOG_LENGTH": "10000"})
    request.addfinalizer(followed.stop)
    documents = [{"method": "PUT", "path": f"/busy/{number}", "body": KIB} for number in range(900)]
    with ExitStack() as stack:
        opened = [stack.enter_context(following(followed, "/busy/")) for _ in range(3)]
        for reader in opened:
            reader.wait_for(1)
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(ask, followed, "POST", "/_/batch", {"requests": documents})
        for reader in opened:
            assert len(reader.wait_for(1 + 4 * len(documents))) == 1 + 4 * len(documents)


@on_both
def test_a_look_is_bounded_by_bytes(store: Running, followed: OwnServer) -> None:
    """One reads some of many large changes and says that there are more; looks that follow each other read each once."""
    path = parse_path(b"/busy/")
    with closing(store.open()) as opened:
        place = opened.execute(GetLogPosition(path)).position
        requests = [{"method": "PUT", "path": f"/busy/{number}", "body": KIB} for number in range(600)]
        ask(followed, "POST", "/_/batch", {"requests": requests})
        names: list[str] = []
        has_more = True
        while has_more:
            entries, _, _, has_more, _ = opened.execute(ReadChanges(path, place))
            assert entries
            assert sum(len(part) for entry in entries for part in entry[1]) < MAX_CHANGED_BYTES + 2 * len(KIB)
            names += [parts[1].decode() for _, parts in entries]
            place = entries[-1][0].decode()
        assert names == [str(number) for number in range(600)]


@on_redis
def test_a_change_within_a_snapshot_is_not_joined_to_it(followed: OwnServer) -> None:
    """Readers that come while others write each have every change after their snapshot, whatever is sent together."""
    with ExitStack() as stack:
        opened = []
        for number in range(60):
            opened.append(stack.enter_context(following(followed, "/busy/path")))
            ask(
                followed,
                "POST",
                "/_/batch",
                {"requests": [{"method": "PUT", "path": "/busy/path", "body": 10 * number + each} for each in range(10)]},
            )
        for reader in opened:
            wait_until(lambda reader=reader: reader.events and reader.events[-1].data["value"] == 599, LIMIT_S)
            first = reader.events[0].data["value"]
            assert values(reader) == list(range(0 if first is None else first + 1, 600))


@on_both
def test_many_namespaces(followed: OwnServer, readers: list[Reader]) -> None:
    """Redis says which log has grown, each time; a reader hears of its own namespace only."""
    for value in range(3):
        put_everywhere(followed, value)
    for reader in readers:
        reader.wait_for(4)
        assert values(reader) == [0, 1, 2]


@pytest.mark.slow
@on_both
def test_what_changes_while_the_connection_is_lost(followed: OwnServer, readers: list[Reader], store: Running) -> None:
    """All logs are looked at again, also where nothing happens afterwards; and Redis goes on saying which grow."""
    other = OwnServer(store)
    try:
        put_everywhere(other, 0)
        for reader in readers:
            reader.wait_for(2)
        store.redis.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: is_put(other, 1), LIMIT_S)
        put_everywhere(other, 2)
        for reader in readers:
            wait_until(lambda reader=reader: values(reader)[-1] == 2, LIMIT_S)
        put_everywhere(other, 3)
        for reader in readers:
            wait_until(lambda reader=reader: values(reader)[-1] == 3, LIMIT_S)
            assert values(reader) in ([0, 2, 3], [0, 1, 2, 3], [0, 1, 1, 2, 3])
    finally:
        other.stop()


def is_put(served: OwnServer, value: int) -> bool:
    """Whether the write was acknowledged; the connection to Redis may just be lost."""
    return served.request("PUT", "/space0/path", json.dumps(value).encode()).status == 200


@pytest.mark.slow
@on_both
def test_a_redis_that_was_emptied(followed: OwnServer, readers: list[Reader], store: Running) -> None:
    """Streams end, and whoever comes back is told of the loss; a namespace that never had a change has lost none."""
    with following(followed, "/quiet/path") as quiet:
        quiet.wait_for(1)
        put_everywhere(followed, 0)
        for reader in readers:
            reader.wait_for(2)
        store.redis.flushall()
        put_everywhere(followed, 1)
        for reader in readers:
            reader.wait_for_end()
            assert values(reader) == [0]
        with following(followed, "/space0/path", Last_Event_ID=readers[0].events[-1].id) as reader:
            assert [event.name for event in reader.wait_for(2)] == ["reset", "snapshot"]
            assert values(reader) == [1]
        ask(followed, "PUT", "/quiet/path", 2)
        quiet.wait_for(2)
        assert values(quiet) == [2]


@on_both
def test_a_ttl_that_is_made_shorter(followed: OwnServer, store: Running) -> None:
    """It is no change, yet the expiry is told when it comes: nobody looks for it meanwhile."""
    ask(followed, "PUT", "/room/1", 1)
    with following(followed, "/room/") as reader:
        reader.wait_for(1)
        ask(followed, "PATCH", "/room/1?ttl=1")
        assert [event.name for event in reader.wait_for(2)] == ["snapshot", "expire"]
    assert [entry.op for entry in entries(store.redis, "room")] == ["expire"]


@pytest.mark.slow
@on_redis
def test_everybody_has_heartbeats(followed: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Again and again, however many more they are than the parts of the period over which they are spread."""
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.5)
    with ExitStack() as stack:
        opened = [stack.enter_context(following(followed, "/room/1")) for _ in range(live.BEATS + 10)]
        for reader in opened:
            reader.wait_for(1)
        begun = [len(reader.blocks) for reader in opened]
        wait_until(lambda: all(len(reader.blocks) >= at + 2 for reader, at in zip(opened, begun, strict=True)), LIMIT_S)


@pytest.mark.slow
@on_redis
def test_heartbeats_of_a_busy_loop(followed: OwnServer, readers: list[Reader], monkeypatch: pytest.MonkeyPatch) -> None:
    """They come as often as ever, however seldom the loop has time for them."""
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.4)

    async def be_busy() -> None:
        for _ in range(100):
            time.sleep(0.02)  # the loop does nothing else meanwhile
            await asyncio.sleep(0.001)
        monkeypatch.setattr(live, "HEARTBEAT_S", 1000)  # those that came until now count

    begun = [len(reader.blocks) for reader in readers]
    followed.running.run(be_busy())
    wait_until(lambda: all(len(reader.blocks) - at >= 3 for reader, at in zip(readers, begun, strict=True)), LIMIT_S)


@on_redis
def test_idle_namespaces_cost_redis_nothing(readers: list[Reader], store: Running) -> None:
    """One log is looked at now and then, however many there are."""
    assert len(readers) == NAMESPACES

    def is_quiet() -> bool:
        before = store.redis.info("stats")["total_commands_processed"]
        time.sleep(1)
        # The INFO that asks, and what one look calls.
        return int(store.redis.info("stats")["total_commands_processed"]) - int(before) <= 10

    wait_until(is_quiet, LIMIT_S)  # not before all have been looked at
