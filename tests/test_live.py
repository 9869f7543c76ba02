"""Following a path: a snapshot, then every change once and in order; and coming back with the place one has."""

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import pytest
import redis
from inprocess import InProcess
from stores import SERVERS, Running, wait_until

LIMIT_S = 10


class Event(NamedTuple):
    """A block of text/event-stream."""

    name: str
    id: str
    data: Any


class Reader:
    """A client that follows: `events` are what has come so far."""

    def __init__(self, at: tuple[str, int], target: str, **headers: str) -> None:
        self._connection = http.client.HTTPConnection(*at, timeout=30)
        sent = {"Accept": "text/event-stream"} | {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request("GET", target, headers=sent)
        self.answer = self._connection.getresponse()
        self.events: list[Event] = []
        self.has_ended = False
        if self.answer.status == 200:
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            for raw in self.answer:
                line = raw.decode().rstrip("\n")
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif fields:
                    if "data" in fields:
                        self.events.append(Event(fields["event"], fields.get("id", ""), json.loads(fields["data"])))
                    fields = {}
        except (OSError, http.client.HTTPException, ValueError):
            pass
        self.has_ended = True

    def wait_for(self, count: int) -> list[Event]:
        """The events, when there are so many."""
        wait_until(lambda: len(self.events) >= count, LIMIT_S)
        return self.events

    def close(self) -> None:
        if self.answer.fp:
            self.answer.fp.raw._sock.shutdown(2)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, started: Callable[[str], Running]) -> Running:
    """A real server, empty."""
    running = started(request.param)
    running.redis.flushall()
    return running


@pytest.fixture
def served(server: Running) -> Iterator[InProcess]:
    """Our own server on an empty Redis."""
    running = InProcess(server.url)
    yield running
    running.stop()


@pytest.fixture
def ask(served: InProcess) -> Callable[..., Any]:
    """One request on a connection of its own: its JSON, None for none."""

    def request(method: str, target: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection(*served.at, timeout=LIMIT_S)
        connection.request(method, target, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 400, text
        return json.loads(text) if text else None

    return request


@contextmanager
def reader(served: InProcess, target: str, **headers: str) -> Iterator[Reader]:
    """A reader that has its snapshot."""
    following = Reader(served.at, target, **headers)
    try:
        yield following
    finally:
        following.close()


def test_a_document(served: InProcess, ask: Callable[..., Any], server: Running) -> None:
    """Snapshot, patch, delete, put; ids are entity-tags, and what is gone has no value."""
    ask("PUT", "/room/1", {"a": 1})
    with reader(served, "/room/1") as following:
        following.wait_for(1)
        ask("PATCH", "/room/1", {"b": 2})
        ask("PUT", "/room/2", {"other": True})
        ask("DELETE", "/room/1")
        ask("PUT", "/room/1?ttl=1", 5)
        events = following.wait_for(5)
    assert [event.name for event in events] == ["snapshot", "patch", "delete", "put", "expire"]
    assert [event.data["value"] for event in events] == [{"a": 1}, {"a": 1, "b": 2}, None, 5, None]
    assert all(list(event.data) == ["path", "etag", "ttl", "value"] for event in events)
    assert all(event.data["path"] == "/room/1" for event in events)
    assert all(event.data["etag"] == f'"{event.id}"' for event in events)
    assert events[1].id == [id_.decode() for id_, _ in server.redis.xrange("kv:{room}!log")][1]


def test_a_container(served: InProcess, ask: Callable[..., Any]) -> None:
    """What lies below, then every change below, appended documents under their own path."""
    ask("PUT", "/room/1", {"a": 1})
    ask("PUT", "/roommate", 1)
    with reader(served, "/room/") as following:
        first = following.wait_for(1)[0]
        assert [item["path"] for item in first.data["value"]["items"]] == ["/room/1"]
        path = ask("POST", "/room/sub/", [1])["path"]
        ask("PUT", "/roommate", 2)
        ask("DELETE", "/room/1")
        events = following.wait_for(3)
        assert [(event.name, event.data["path"]) for event in events[1:]] == [("put", path), ("delete", "/room/1")]
    with reader(served, "/room/?recursive") as following:
        assert [item["path"] for item in following.wait_for(1)[0].data["value"]["items"]] == [path]


def test_what_is_not_there(served: InProcess, ask: Callable[..., Any]) -> None:
    """A path that nobody has written can be followed."""
    with reader(served, "/new/thing") as following:
        assert following.wait_for(1)[0].data | {"etag": None} == {
            "path": "/new/thing",
            "etag": None,
            "ttl": None,
            "value": None,
        }
        ask("PUT", "/new/thing", {})
        assert following.wait_for(2)[1].data["value"] == {}


def test_coming_back(served: InProcess, ask: Callable[..., Any]) -> None:
    """With the last id, by header or query, there is no snapshot, only what was missed."""
    ask("PUT", "/room/1", 0)
    with reader(served, "/room/1") as following:
        place = following.wait_for(1)[0].id
    for number in (1, 2, 3):
        ask("PUT", "/room/1", number)
    for headers, target in (({"Last_Event_ID": place}, "/room/1"), ({}, f"/room/1?last_event_id={place}")):
        with reader(served, target, **headers) as following:
            assert [event.data["value"] for event in following.wait_for(3)] == [1, 2, 3]
            assert {event.name for event in following.events} == {"put"}


@pytest.mark.parametrize("place", ["1-0", "9999999999999-0"])
def test_a_place_that_is_lost(served: InProcess, ask: Callable[..., Any], place: str) -> None:
    """What the log does not hold, or not yet, is announced, and a snapshot follows."""
    ask("PUT", "/room/1", 7)
    with reader(served, "/room/1", Last_Event_ID=place) as following:
        events = following.wait_for(2)
    assert [event.name for event in events] == ["reset", "snapshot"]
    assert events[1].data["value"] == 7


def test_a_log_that_was_trimmed(served: InProcess, ask: Callable[..., Any], server: Running) -> None:
    """Changes that are no longer there are never passed over in silence."""
    ask("PUT", "/room/1", 0)
    with reader(served, "/room/1") as following:
        place = following.wait_for(1)[0].id
    for number in range(5):
        ask("PUT", "/room/1", number)
    server.redis.xtrim("kv:{room}!log", maxlen=2, approximate=False)
    with reader(served, "/room/1", Last_Event_ID=place) as following:
        assert following.wait_for(2)[0].name == "reset"


def test_a_malformed_place(served: InProcess) -> None:
    """400, not a stream."""
    assert Reader(served.at, "/room/1", Last_Event_ID="x").answer.status == 400


def test_no_more_streams_than_allowed(server: Running) -> None:
    """503 and Retry-After; one that has gone makes room."""
    running = InProcess(server.url, {"KVSTORE_MAX_STREAMS": "1"})
    try:
        with reader(running, "/a/b") as following:
            following.wait_for(1)
            refused = Reader(running.at, "/a/b").answer
            assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        wait_until(lambda: Reader(running.at, "/a/b").answer.status == 200, LIMIT_S)
    finally:
        running.stop()


def test_replayed_changes_give_what_is_stored(served: InProcess, ask: Callable[..., Any]) -> None:
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
                with reader(served, "/busy/", **headers) as following:
                    time.sleep(0.15)
                following_events = list(following.events)
                events += following_events
                if events:
                    headers = {"Last_Event_ID": events[-1].id}
            seen.append(events)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    with reader(served, "/busy/", Last_Event_ID=seen[-1][-1].id) as following:
        time.sleep(0.5)
        last = following.events
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


def replay(events: list[Event]) -> dict[str, Any]:
    """What is stored after these events."""
    state = {item["path"]: item["value"] for item in events[0].data["value"]["items"]}
    for event in events[1:]:
        if event.name in ("delete", "expire"):
            state.pop(event.data["path"], None)
        else:
            state[event.data["path"]] = event.data["value"]
    return state


def test_redis_connections_that_are_killed(served: InProcess, ask: Callable[..., Any], server: Running) -> None:
    """The reader of the logs comes back with its place."""
    with reader(served, "/room/1") as following:
        following.wait_for(1)
        for number in range(10):
            wait_until(lambda number=number: is_put(ask, number), LIMIT_S)
            server.redis.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: following.events[-1].data["value"] == 9, LIMIT_S)
    values = [event.data["value"] for event in following.events[1:]]
    assert [value for value, _ in groupby(values)] == list(range(10))  # one whose answer was lost was put again


def is_put(ask: Callable[..., Any], number: int) -> bool:
    """Whether the write was acknowledged."""
    try:
        ask("PUT", "/room/1", number)
    except (AssertionError, OSError, redis.RedisError):
        return False
    return True
