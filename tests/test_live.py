"""Following a path: a snapshot, then every change once and in order; and coming back with the place one has."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import pytest
import redis
from stores import Running, wait_until
from streams import FOLLOWED, LIMIT_S, STREAM_LANES, Event, Followed, following, replay
from streams import ask as ask_of

on_served = pytest.mark.parametrize("lane", [("served", "valkey"), ("served", "redis")], ids="-".join, indirect=True)


@pytest.fixture(params=STREAM_LANES, ids="-".join)
def lane(request: pytest.FixtureRequest) -> tuple[str, str]:
    """What serves streams, and a store."""
    return request.param


@pytest.fixture
def followed(lane: tuple[str, str], store: Running) -> Iterator[Followed]:
    """What serves streams, on an empty store."""
    running = FOLLOWED[lane[0]](store)
    yield running
    running.stop()


@pytest.fixture
def ask(followed: Followed) -> Callable[..., Any]:
    """One request: its JSON, None for none."""
    return lambda *request: ask_of(followed, *request)


def test_a_document(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """Snapshot, patch, delete, put; ids are entity-tags, and what is gone has no value."""
    ask("PUT", "/room/1", {"a": 1})
    with following(followed, "/room/1") as reader:
        reader.wait_for(1)
        ask("PATCH", "/room/1", {"b": 2})
        ask("PUT", "/room/2", {"other": True})
        ask("DELETE", "/room/1")
        ask("PUT", "/room/1?ttl=1", 5)
        events = reader.wait_for(5)
    assert [event.name for event in events] == ["snapshot", "patch", "delete", "put", "expire"]
    assert [event.data["value"] for event in events] == [{"a": 1}, {"a": 1, "b": 2}, None, 5, None]
    assert all(list(event.data) == ["path", "etag", "ttl", "value"] for event in events)
    assert all(event.data["path"] == "/room/1" for event in events)
    assert all(event.data["etag"] == f'"{event.id}"' for event in events)
    assert events[1].id == [id_.decode() for id_, _ in store.redis.xrange("kv:{room}!log")][1]


def test_a_container(followed: Followed, ask: Callable[..., Any]) -> None:
    """What lies below, then every change below, appended documents under their own path."""
    ask("PUT", "/room/1", {"a": 1})
    ask("PUT", "/roommate", 1)
    with following(followed, "/room/") as reader:
        first = reader.wait_for(1)[0]
        assert [item["path"] for item in first.data["value"]["items"]] == ["/room/1"]
        path = ask("POST", "/room/sub/", [1])["path"]
        ask("PUT", "/roommate", 2)
        ask("DELETE", "/room/1")
        events = reader.wait_for(3)
        assert [(event.name, event.data["path"]) for event in events[1:]] == [("put", path), ("delete", "/room/1")]
    with following(followed, "/room/?recursive") as reader:
        assert [item["path"] for item in reader.wait_for(1)[0].data["value"]["items"]] == [path]


def test_what_is_not_there(followed: Followed, ask: Callable[..., Any]) -> None:
    """A path that nobody has written can be followed."""
    with following(followed, "/new/thing") as reader:
        assert reader.wait_for(1)[0].data | {"etag": None} == {
            "path": "/new/thing",
            "etag": None,
            "ttl": None,
            "value": None,
        }
        ask("PUT", "/new/thing", {})
        assert reader.wait_for(2)[1].data["value"] == {}


def test_coming_back(followed: Followed, ask: Callable[..., Any]) -> None:
    """With the last id, by header or query, there is no snapshot, only what was missed."""
    ask("PUT", "/room/1", 0)
    with following(followed, "/room/1") as reader:
        place = reader.wait_for(1)[0].id
    for number in (1, 2, 3):
        ask("PUT", "/room/1", number)
    for headers, target in (({"Last_Event_ID": place}, "/room/1"), ({}, f"/room/1?last_event_id={place}")):
        with following(followed, target, **headers) as reader:
            assert [event.data["value"] for event in reader.wait_for(3)] == [1, 2, 3]
            assert {event.name for event in reader.events} == {"put"}


@pytest.mark.parametrize("place", ["1-0", "9999999999999-0"])
def test_a_place_that_is_lost(followed: Followed, ask: Callable[..., Any], place: str) -> None:
    """What the log does not hold, or not yet, is announced, and a snapshot follows."""
    ask("PUT", "/room/1", 7)
    with following(followed, "/room/1", Last_Event_ID=place) as reader:
        events = reader.wait_for(2)
    assert [event.name for event in events] == ["reset", "snapshot"]
    assert events[1].data["value"] == 7


def test_a_log_that_was_trimmed(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """Changes that are no longer there are never passed over in silence."""
    ask("PUT", "/room/1", 0)
    with following(followed, "/room/1") as reader:
        place = reader.wait_for(1)[0].id
    for number in range(5):
        ask("PUT", "/room/1", number)
    store.redis.xtrim("kv:{room}!log", maxlen=2, approximate=False)
    with following(followed, "/room/1", Last_Event_ID=place) as reader:
        assert reader.wait_for(2)[0].name == "reset"


def test_a_malformed_place(followed: Followed) -> None:
    """400, not a stream."""
    with following(followed, "/room/1", Last_Event_ID="x") as reader:
        assert reader.status == 400


@pytest.mark.parametrize("lane", [("served", "redis"), ("asgi", "redis")], ids="-".join, indirect=True)
def test_no_more_streams_than_allowed(lane: tuple[str, str], store: Running) -> None:
    """503 and Retry-After; one that has gone makes room."""
    running = FOLLOWED[lane[0]](store, {"KVSTORE_MAX_STREAMS": "1"})

    def status() -> int:
        with following(running, "/a/b") as reader:
            return reader.status

    try:
        with following(running, "/a/b") as reader:
            reader.wait_for(1)
            with following(running, "/a/b") as refused:
                assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        wait_until(lambda: status() == 200, LIMIT_S)
    finally:
        running.stop()


@on_served
def test_replayed_changes_give_what_is_stored(followed: Followed, ask: Callable[..., Any]) -> None:
    """Streams that are opened, cut and resumed while others write miss nothing and get nothing twice."""
    stop = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            ask("DELETE" if number % 7 == 0 else "PUT", f"/busy/{name}", None if number % 7 == 0 else number)

    ask("PUT", "/busy/x", 0)
    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    seen: list[list[Event]] = []
    try:
        for _ in range(8):
            events: list[Event] = []
            headers: dict[str, str] = {}
            for _ in range(3):
                with following(followed, "/busy/", **headers) as reader:
                    time.sleep(0.15)
                so_far = list(reader.events)
                events += so_far
                if events:
                    headers = {"Last_Event_ID": events[-1].id}
            seen.append(events)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    with following(followed, "/busy/", Last_Event_ID=seen[-1][-1].id) as reader:
        time.sleep(0.5)
        last = reader.events
    stored = {item["path"]: item["value"] for item in ask("GET", "/busy/")["items"]}
    for events in seen:
        assert events[0].name == "snapshot"
        ids = [event.id for event in events]
        assert len(set(ids)) == len(ids)
        assert ids == sorted(ids, key=lambda place: tuple(map(int, place.split("-"))))
        assert "reset" not in {event.name for event in events}
    assert replay(seen[-1] + last) == stored
    numbers = [event.data["value"] for event in seen[-1][1:] + last if event.data["path"] == "/busy/a" and event.name == "put"]
    assert numbers == [number for number in range(numbers[0], numbers[-1] + 1) if number % 7]


@on_served
def test_redis_connections_that_are_killed(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """The reader of the logs comes back with its place."""
    with following(followed, "/room/1") as reader:
        reader.wait_for(1)
        for number in range(10):
            wait_until(lambda number=number: is_put(ask, number), LIMIT_S)
            store.redis.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: reader.events[-1].data["value"] == 9, LIMIT_S)
    values = [event.data["value"] for event in reader.events[1:]]
    assert [value for value, _ in groupby(values)] == list(range(10))  # one whose answer was lost was put again


def is_put(ask: Callable[..., Any], number: int) -> bool:
    """Whether the write was acknowledged."""
    try:
        ask("PUT", "/room/1", number)
    except (AssertionError, OSError, redis.RedisError):
        return False
    return True
