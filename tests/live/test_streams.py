"""Following a path: a snapshot, then every change once and in order; and coming back with the place one has."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import redis

from kvstore.commands.subscriptions import Follow
from kvstore.core.paths import parse_path
from kvstore.http.messages import MAX_BODY_BYTES
from kvstore.live import hub as live
from kvstore.live import log_reader, stream_session
from kvstore.live.stream_session import HEARTBEAT_S
from kvstore.serving import buffered_stream
from kvstore.serving import connection as server_module
from kvstore.serving.sse import Stream, Streams
from tests.support.asking import entries
from tests.support.clients import make_scope
from tests.support.lanes import on_served
from tests.support.stores import Running, wait_until
from tests.support.streams import FOLLOWED, LIMIT_S, AsgiApplication, Followed, OwnServer, following
from tests.support.wires import Wire


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
    assert [events[2].id, events[4].id] == [entry.id for entry in entries(store.redis, "room") if entry.name == "1"]


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


def test_a_recursive_delete_of_more_than_the_log_keeps(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """Whoever keeps up is told of each document; later writes trim the log, some of it each."""
    for at in range(0, 3000, 1000):
        requests = [{"method": "PUT", "path": f"/room/{number:04}", "body": 0} for number in range(at, at + 1000)]
        ask("POST", "/_/batch", {"requests": requests})
    with following(followed, "/room/") as reader:
        pages = 3000 // stream_session.PAGE
        assert "more" not in reader.wait_for(pages)[-1].data
        assert ask("DELETE", "/room/?recursive") == {"deleted": 3000}
        told = reader.wait_for(pages + 3000)[pages:]
    assert [(event.name, event.data["path"]) for event in told] == [("delete", f"/room/{number:04}") for number in range(3000)]
    ask("PUT", "/room/1", 0)
    assert 2000 <= store.redis.xlen("kv:{room}!log") < 3200
    for number in range(4):
        ask("PUT", "/room/1", number)
    assert 1000 <= store.redis.xlen("kv:{room}!log") < 1200


@pytest.mark.parametrize("place", ["9999999999999-0", "9999999999999-999999999", "1-999999999", "1600000000000-0"])
def test_a_place_in_no_log(followed: Followed, ask: Callable[..., Any], place: str) -> None:
    """A place of another time, where the namespace has no log: announced, and what comes afterwards is heard."""
    with following(followed, "/new/1", Last_Event_ID=place) as reader:
        assert [event.name for event in reader.wait_for(2)] == ["reset", "snapshot"]
        ask("PUT", "/new/1", 1)
        assert reader.wait_for(3)[2].data["value"] == 1


def test_the_place_where_nothing_was(followed: Followed, ask: Callable[..., Any]) -> None:
    """Whoever followed a namespace before its first change comes back for that change."""
    with following(followed, "/new/1") as reader:
        place = reader.wait_for(1)[0].id
    with following(followed, "/new/1", Last_Event_ID=place) as reader:
        ask("PUT", "/new/1", 1)
        ask("PUT", "/new/1", 2)
        assert [event.data["value"] for event in reader.wait_for(2)] == [1, 2]
    with following(followed, "/new/1", Last_Event_ID=place) as reader:
        assert [event.data["value"] for event in reader.wait_for(2)] == [1, 2]


def test_redis_with_an_older_state(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """A place that lies between the entries of the log, and is none of them, is of a time that Redis has forgotten."""
    for number in range(3):
        ask("PUT", "/room/1", number)
    place = entries(store.redis, "room")[1].id
    store.redis.xdel("kv:{room}!log", place)
    with following(followed, "/room/1", Last_Event_ID=place) as reader:
        assert [event.name for event in reader.wait_for(2)] == ["reset", "snapshot"]


def test_a_log_in_which_nothing_is(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """As a batch leaves it that was undone: its end is a place, from which a stream goes on."""
    undone = [{"method": "PUT", "path": "/room/1", "body": 1}, {"method": "DELETE", "path": "/room/2"}]
    with following(followed, "/room/1") as reader:
        reader.wait_for(1)
        assert followed.request("POST", "/_/batch", json.dumps({"requests": undone}).encode()).status == 409
        time.sleep(0.3)
        assert not reader.has_ended
    assert store.redis.xinfo_stream("kv:{room}!log")["length"] == 0
    for _ in range(2):
        with following(followed, "/room/1") as reader:
            place = reader.wait_for(1)[0].id
            time.sleep(0.3)
            assert not reader.has_ended
        with following(followed, "/room/1", Last_Event_ID=place) as reader:
            time.sleep(0.3)
            assert not reader.events
            assert not reader.has_ended
    ask("PUT", "/room/1", 1)
    with following(followed, "/room/1") as reader:
        assert reader.wait_for(1)[0].data["value"] == 1


# What another client may have added to a log, field by field.
NO_CHANGES: list[list[Any]] = [
    ["foo", "bar"],
    ["put", "1"],
    ["put", "1", "a", "b"],
    ["expired", "1"],
    ["put", "1", "ttl", "5"],
    ["a", "b", "c", "d"],
    ["delete", b"\xff"],
    ["put", "1", "ttl", "abc", "$kv", " object"],
    ["put", "1", "ttl", "5", "$packed", " object", "", "zzz"],
    ["put", "1", "ttl", "5", "$packed", " object"],
]


def test_entries_that_are_no_changes(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """Another client's are passed over, by a stream and by who comes back."""
    ask("PUT", "/room/1", 0)
    with following(followed, "/room/1") as document, following(followed, "/room/") as container:
        place = document.wait_for(1)[0].id
        container.wait_for(1)
        for fields in NO_CHANGES:
            store.redis.execute_command("XADD", "kv:{room}!log", "*", *fields)
        ask("PUT", "/room/1", 1)
        for reader in (document, container):
            assert [event.data["value"] for event in reader.wait_for(2)[1:]] == [1]
    with following(followed, "/room/", Last_Event_ID=place) as reader:
        assert [event.data["value"] for event in reader.wait_for(1)] == [1]


def test_a_batch_with_one_large_change(followed: Followed, ask: Callable[..., Any]) -> None:
    """An atomic batch trims the log as its changes would one by one: what is small and comes after what is large is told."""
    ask("PUT", "/room/gone", 0)
    with following(followed, "/room/") as reader:
        reader.wait_for(1)
        puts: list[Any] = [{"method": "PUT", "path": "/room/large", "body": "x" * 800_000}]
        puts += [{"method": "PUT", "path": f"/room/{number:03}", "body": number} for number in range(100)]
        ask("POST", "/_/batch", {"requests": [{"method": "DELETE", "path": "/room/gone"}, *puts]})
        told = [event.data["path"] for event in reader.wait_for(102)[1:]]
        assert told[-100:] == [put["path"] for put in puts[1:]]


def test_a_stream_that_ends_before_it_has_begun() -> None:
    """Its reply is a whole one, with nothing in it: a reader comes back, and no proxy takes it for a failure."""

    any_socket = socket.socket(socket.AF_UNIX)

    class Taken(asyncio.Transport):
        written, closed = b"", False

        def write(self, data: bytes) -> None:  # type: ignore[override]
            self.written += data

        def close(self) -> None:
            self.closed = True

        def is_closing(self) -> bool:
            return self.closed

        def get_extra_info(self, *_: object) -> Any:
            return any_socket

    taken = Taken()
    stream = Stream(Streams(None), taken, Follow(parse_path(b"/room/"), None, False), head=lambda: b"head", is_chunked=True)  # type: ignore[arg-type]
    stream._end()
    stream._end()
    any_socket.close()
    assert (taken.written, taken.closed) == (b"head0\r\n\r\n", True)


def test_beside_a_key_of_another_type(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """A container is followed, also where another client's key has the name that a document of that name would have."""
    ask("PUT", "/room/a/1", 1)
    store.redis.set("kv:{room}/a", "no hash")
    with following(followed, "/room/a/") as reader:
        reader.wait_for(1)
        ask("PUT", "/room/a/1", 2)
        assert reader.wait_for(2)[1].data["value"] == 2
    with following(followed, "/room/a") as reader:
        assert reader.status == 409


@pytest.mark.parametrize(
    ("key", "target"), [("kv:{room}!names", "/room/"), ("kv:{room}!log", "/room/1"), ("kv:{room}/1", "/room/1")]
)
def test_what_cannot_be_followed(followed: Followed, ask: Callable[..., Any], store: Running, key: str, target: str) -> None:
    """409 where another client's key is in the way, also while others follow the namespace; nothing is held for it."""
    with following(followed, "/room/2") as other:
        other.wait_for(1)
        store.redis.set(key, "of another type")
        with following(followed, target + "?hold=/people/ada") as reader:
            assert (reader.status, json.loads(reader.body)["type"]) == (409, "urn:kvstore:wrong-type")
        wait_until(lambda: followed.request("GET", "/people/ada").status == 404, LIMIT_S)


@pytest.mark.slow
@pytest.mark.parametrize("lane", [("served", "redis"), ("flask", "redis"), ("asgi", "redis")], ids="-".join, indirect=True)
@pytest.mark.usefixtures("real_limits")
def test_redis_that_does_not_answer(followed: Followed, store: Running) -> None:
    """503 and Retry-After, not a stream that is cut; also where others follow the namespace already."""
    with following(followed, "/room/1") as other:
        other.wait_for(1)
        store.signal(signal.SIGSTOP)
        try:
            with following(followed, "/room/1") as reader:
                assert reader.status == 503
                assert "Retry-After" in reader.headers
        finally:
            store.signal(signal.SIGCONT)


def test_the_root_container(followed: Followed) -> None:
    """It is not followed: 400, not a stream of the root document."""
    with following(followed, "/?list") as reader:
        assert (reader.status, json.loads(reader.body)["type"]) == (400, "urn:kvstore:invalid-parameter")


def test_a_malformed_place(followed: Followed) -> None:
    """400, not a stream."""
    with following(followed, "/room/1", Last_Event_ID="x") as reader:
        assert reader.status == 400


@pytest.mark.parametrize("lane", [("served", "redis"), ("asgi", "redis"), ("flask", "redis")], ids="-".join, indirect=True)
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


# --- Large snapshots, and readers that read slowly or not at all --------------------------------------------------------


LARGE = "x" * 50_000
DOCUMENTS = 60  # about 3 MiB


@pytest.fixture
def many(ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A container whose snapshot is many events, and larger than what a stream may buffer; its documents' paths."""
    monkeypatch.setattr(stream_session, "PAGE", 10)
    paths = [f"/large/{number:02}" for number in range(DOCUMENTS)]
    for at in range(0, DOCUMENTS, 15):
        ask("POST", "/_/batch", {"requests": [{"method": "PUT", "path": path, "body": LARGE} for path in paths[at : at + 15]]})
    return paths


def test_a_long_snapshot(followed: Followed, ask: Callable[..., Any], many: list[str]) -> None:
    """It comes in several events. Only the last has an id: who was cut off before that comes back for all of it."""
    with following(followed, "/large/") as reader:
        reader.wait_for(DOCUMENTS // 10)
        ask("DELETE", many[0])
        assert reader.wait_for(DOCUMENTS // 10 + 1)[-1].name == "delete"
    snapshots = reader.events[:-1]
    assert [item["path"] for event in snapshots for item in event.data["value"]["items"]] == many
    assert [event.data.get("more") for event in snapshots] == [True] * (len(snapshots) - 1) + [None]
    assert [bool(event.id) for event in snapshots] == [False] * (len(snapshots) - 1) + [True]
    assert len({event.data["etag"] for event in snapshots}) == 1


def read_slowly(at: tuple[str, int], target: str) -> Generator[bytes]:
    """A stream, 32 KiB at a time."""
    wire = Wire(at)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    wire.send(f"GET {target} HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n".encode())
    try:
        while piece := wire.socket.recv(32 * 1024):
            yield piece
            time.sleep(0.002)
    finally:
        wire.close()


@on_served
def test_a_slow_reader_gets_its_snapshot(followed: OwnServer, ask: Callable[..., Any], many: list[str]) -> None:
    """Page by page as it reads, and what has changed meanwhile."""
    followed.running.buffer_little()
    read = b""
    for number, piece in enumerate(read_slowly(followed.at, "/large/")):
        read += piece
        if number == 10:
            ask("PUT", many[0], 1)
        if b"event: put" in read and read.endswith(b"\n\n"):
            break
    assert read.count(LARGE.encode()) == DOCUMENTS
    assert read.count(b"event: put") == 1
    snapshots = [block for block in read.split(b"\n\n") if b"event: snapshot" in block]
    assert [b"id: " in block for block in snapshots] == [False] * (len(snapshots) - 1) + [True]


@on_served
def test_much_that_changes_during_a_snapshot(followed: OwnServer, ask: Callable[..., Any], many: list[str]) -> None:
    """A reader that reads all the time gets that as well, as fast as it reads, though it is more than a stream may buffer."""
    followed.running.buffer_little()
    read, puts = b"", 60
    for number, piece in enumerate(read_slowly(followed.at, "/large/")):
        read += piece
        if number == 10:
            for value in range(puts):
                ask("PUT", many[0], f"{value} {LARGE}")
            ask("PUT", many[0], "last")
        if read.endswith(b"\n\n") and b'"last"' in read[-1000:]:
            break
    blocks = [block.partition(b"data: ")[2] for block in read.split(b"\n\n") if b"event: put" in block]
    assert [json.loads(block)["value"] for block in blocks] == [*(f"{value} {LARGE}" for value in range(puts)), "last"]
    assert len(LARGE) * puts > 2 * live.MAX_BUFFERED_BYTES


@on_served
@pytest.mark.parametrize("target", ["/large/", "/small/"])
def test_a_reader_that_does_not_read(
    followed: OwnServer, ask: Callable[..., Any], many: list[str], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is dropped, in the snapshot after the time that a reply has, and later at 1 MiB buffered; others miss nothing."""
    monkeypatch.setattr(server_module, "WRITE_S", 0.5)
    followed.running.buffer_little()
    with following(followed, "/small/") as reader:
        reader.wait_for(1)
        stalled = read_slowly(followed.at, target + "?hold=/people/stalled")
        next(stalled)
        for number in range(60 if target == "/small/" else 1):
            ask("PUT", "/small/1", f"{number}{LARGE}")
            reader.wait_for(number + 2)
        wait_until(lambda: followed.request("GET", "/people/stalled").status == 404, LIMIT_S)
        stalled.close()
        assert [event.data["value"] for event in reader.events[1:]] == [f"{each}{LARGE}" for each in range(number + 1)]


def test_the_largest_document(followed: Followed, ask: Callable[..., Any]) -> None:
    """Its event is larger than what may be buffered, and whoever reads is sent it all the same."""
    largest = "x" * (MAX_BODY_BYTES - 2)
    with following(followed, "/room/") as reader:
        reader.wait_for(1)
        ask("PUT", "/room/1", largest)
        assert reader.wait_for(2)[1].data["value"] == largest
        ask("PUT", "/room/1", "next")
        assert reader.wait_for(3)[2].data["value"] == "next"


@pytest.mark.parametrize("lane", [("asgi", "redis")], ids="-".join, indirect=True)
@pytest.mark.parametrize("is_snapshot", [True, False])
def test_a_reader_that_an_asgi_server_waits_for(store: Running, is_snapshot: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is dropped as by our own server, with what it holds, though the server never says that it has taken anything."""
    monkeypatch.setattr(buffered_stream, "PIECE_S", 0.3)
    running = AsgiApplication(store)
    sent: list[dict[str, Any]] = []
    begun = threading.Event()

    async def receive() -> dict[str, Any]:
        if not sent:
            await asyncio.Event().wait()
        return sent.pop(0)

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            begun.set()
            if is_snapshot or b"snapshot" not in message["body"]:
                await asyncio.Event().wait()

    async def follow() -> None:
        sent.append({"type": "http.request"})
        scope = make_scope("GET", "/room/?hold=/people/ada", [("Accept", "text/event-stream")])
        await asyncio.wait_for(running._app(scope, receive, send), LIMIT_S)

    try:
        stream = threading.Thread(target=running._loop.run, args=(follow(),))
        stream.start()
        wait_until(lambda: running.request("GET", "/people/ada").status == 200, LIMIT_S)
        assert begun.wait(LIMIT_S), "what is written now is in no snapshot"
        for number in range(0 if is_snapshot else 6):
            assert stream.is_alive()
            assert running.request("PUT", "/room/1", json.dumps(f"{number}" * 250_000).encode()).status < 300
        wait_until(lambda: running.request("GET", "/people/ada").status == 404, LIMIT_S)
        stream.join(LIMIT_S)
        assert not stream.is_alive()
    finally:
        running.stop()


@on_served
def test_a_stop_ends_streams_cleanly(lane: tuple[str, str], store: Running) -> None:
    """With the last chunk, so that no client takes it for a failure."""
    running = OwnServer(store)
    wire = Wire(running.at)
    wire.send(b"GET /room/ HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
    with following(running, "/room/") as reader:
        reader.wait_for(1)
        wait_until(lambda: b"items" in wire.socket.recv(65_536, socket.MSG_PEEK), LIMIT_S)
        running.stop()
        reader.wait_for_end()
    assert wire.rest().endswith(b'"value":{"items":[]}}\n\n\r\n0\r\n\r\n')


def test_readers_come_back_at_different_times(followed: Followed) -> None:
    """A restart ends all streams at the same moment: each reader is told another time, once, between 1 and 5 s."""
    told = []
    for _ in range(12):
        with following(followed, "/room/1") as reader:
            reader.wait_for(1)
            told += [int(block.removeprefix(b"retry: ")) for block in reader.blocks if block.startswith(b"retry: ")]
    assert len(told) == 12
    assert all(1000 <= each <= 5000 for each in told)
    assert len(set(told)) > 6


def test_heartbeats(followed: Followed, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet reader hears something within 15 s, and its place moves on with what others write."""
    assert HEARTBEAT_S + 2 < 15
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.2)
    with following(followed, "/room/1") as reader:
        place = reader.wait_for(1)[0].id
        for number in range(3):
            ask("PUT", "/room/2", number)
        now = ask("GET", "/room/")["items"][0]["etag"].strip('"')
        assert now != place
        wait_until(lambda: f"id: {now}".encode() in reader.blocks, LIMIT_S)
        heard = len(reader.blocks)
        # Others write all the time, which is nothing to this reader.
        wait_until(lambda: ask("PUT", "/room/2", "again") and len(reader.blocks) > heard + 1, LIMIT_S)
    with following(followed, "/room/1", Last_Event_ID=now) as reader:
        ask("PUT", "/room/1", "next")
        assert reader.wait_for(1)[0].data["value"] == "next"


def test_a_reader_where_nothing_is(followed: Followed, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is of the clock, and moves on with it: one that is a day old would be taken for lost."""
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(log_reader, "IDLE_S", 0.1)
    with following(followed, "/room/") as reader:
        wait_until(lambda: len({block for block in reader.blocks if block.startswith(b"id: ")}) > 2, LIMIT_S)
        place = [block for block in reader.blocks if block.startswith(b"id: ")][-1].partition(b" ")[2].decode()
        ask("PUT", "/room/1", 1)
        assert [event.data["value"] for event in reader.wait_for(2)[1:]] == [1]
    with following(followed, "/room/", Last_Event_ID=place) as reader:
        assert reader.wait_for(1)[0].data["value"] == 1


@pytest.mark.slow
def test_a_reader_that_vanishes(started: Callable[[str], Running]) -> None:
    """Without a word, as in a tunnel: it is given up after two heartbeats, and what it held goes."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespaces for us on this machine")
    store = started("redis")
    store.redis.flushall()
    said = subprocess.run(
        [*unshare, sys.executable, "-m", "tests.support.vanishing", store.url, "/room/?hold=/people/ada"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert 0.5 < float(said.stdout) < LIMIT_S
    assert [entry.op for entry in entries(store.redis, "people")] == ["delete"]
