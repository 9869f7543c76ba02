"""Following several paths on one stream, /_/follow: one id for all of them, whatever serves the stream."""

import asyncio
import json
import random
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest

from kvstore.commands.changelog import ChangesRead, ReadChanges
from kvstore.commands.documents import Put
from kvstore.commands.subscriptions import Follow, FollowMany
from kvstore.core.errors import InvalidParameter
from kvstore.core.paths import parse_path
from kvstore.core.settings import read_settings
from kvstore.http.messages import Request
from kvstore.http.protocol import parse
from kvstore.http.streams import MAX_HOLDS, MAX_ID_BYTES, MAX_PATHS, digest, parse_id, render_entry, render_id
from kvstore.live import follow_many, hub
from kvstore.runtime import open_runtime
from kvstore.serving import buffered_stream
from kvstore.serving.buffered_stream import BufferedStream
from tests.support.asking import entries
from tests.support.lanes import on_served
from tests.support.stores import Running, wait_until
from tests.support.streams import LIMIT_S, Event, Followed, OwnServer, Reader, following


def target_of(*paths: str, **parameters: str) -> str:
    """The target of a stream of several paths."""
    pairs = [*(("path", path) for path in paths), *parameters.items()]
    return "/_/follow?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)


def told(events: list[Event]) -> list[tuple[str, Any, str, Any]]:
    """What the events are about: the kind, the path that is followed, the document's path, and its value."""
    return [(event.name, event.data["followed"], event.data.get("path", ""), event.data.get("value")) for event in events]


def has_begun(reader: Reader) -> bool:
    """Whether all paths have begun: then a block comes that has an id only."""
    return any(block.startswith(b"id: ") and b"\n" not in block for block in reader.blocks)


def test_several_paths(followed: Followed, ask: Callable[..., Any]) -> None:
    """A snapshot of each, then every change, each with the path that it is followed by; what is there is as on any stream."""
    ask("PUT", "/room/1", {"a": 1})
    ask("PUT", "/room/sub/2", 2)
    with following(followed, target_of("/room/", "/room/?recursive", "/desk/lamp", "/")) as reader:
        items = [event.data["value"] for event in reader.wait_for(4)]
        assert [[item["name"] for item in listed["items"]] for listed in items[:2]] == [["1", "sub/"], ["1", "sub/2"]]
        assert items[2:] == [None, None]
        wait_until(lambda: has_begun(reader), LIMIT_S)
        ask("PATCH", "/room/1", {"b": 2})
        ask("DELETE", "/room/1")
        ask("PUT", "/desk/lamp?ttl=90", "on")
        ask("PUT", "/desk/other", 1)
        ask("PUT", "/", [1])
        events = reader.wait_for(10)[4:]
        assert reader.status == 200
        assert reader.headers["Content-Type"] == "text/event-stream"
    both = {"a": 1, "b": 2}
    assert sorted(told(events), key=repr) == sorted(
        [
            *(("patch", path, "/room/1", both) for path in ("/room/", "/room/?recursive")),
            *(("delete", path, "/room/1", None) for path in ("/room/", "/room/?recursive")),
            ("put", "/desk/lamp", "/desk/lamp", "on"),
            ("put", "/", "/", [1]),
        ],
        key=repr,
    )
    lamp = next(event for event in events if event.data["followed"] == "/desk/lamp")
    assert lamp.data["ttl"] == 90
    assert lamp.data["etag"] == followed.request("GET", "/desk/lamp").tag
    assert list(lamp.data) == ["path", "etag", "ttl", "value", "followed"]
    assert [block for block in reader.blocks if block.startswith(b"retry: ")] == [reader.blocks[0]]


def test_coming_back(followed: Followed, ask: Callable[..., Any]) -> None:
    """The last id, by header or query, resumes all paths, whatever their order; one that is new begins with a snapshot."""
    for path in ("/a/1", "/b/1"):
        ask("PUT", path, 0)
    with following(followed, target_of("/a/", "/b/1", "/c/")) as reader:
        reader.wait_for(3)
        wait_until(lambda: has_begun(reader), LIMIT_S)
        ask("PUT", "/a/1", 1)
        place = reader.wait_for(4)[3].id
    for path, value in (("/a/1", 2), ("/b/1", 3), ("/c/1", 4), ("/b/2", 5)):
        ask("PUT", path, value)
    missed = {("put", "/a/", "/a/1", 2), ("put", "/b/1", "/b/1", 3)}
    for headers, more in (({"Last_Event_ID": place}, {}), ({}, {"last_event_id": place})):
        with following(followed, target_of("/new/1", "/b/1", "/a/", **more), **headers) as reader:
            events = told(reader.wait_for(3))
            assert events[0] == ("snapshot", "/new/1", "/new/1", None)
            assert set(events[1:]) == missed
            wait_until(lambda reader=reader: has_begun(reader), LIMIT_S)
            assert len(reader.events) == 3


def test_every_id_resumes(followed: Followed, ask: Callable[..., Any]) -> None:
    """From whichever event a reader comes back, it gets each change of each path that came after it, once."""
    paths = ["/a/", "/b/", "/c/1"]
    with following(followed, target_of(*paths)) as reader:
        reader.wait_for(3)
        wait_until(lambda: has_begun(reader), LIMIT_S)
        for number in range(6):
            for path in ("/a/1", "/b/1", "/c/1"):
                ask("PUT", path, number)
        events = list(reader.wait_for(3 + 18))[3:]
    for at in (0, 7, 16):
        with following(followed, target_of(*paths), Last_Event_ID=events[at].id) as again:
            wait_until(lambda again=again: has_begun(again), LIMIT_S)
            assert sorted(told(again.events), key=repr) == sorted(told(events[at + 1 :]), key=repr)


def test_a_loss_resets_the_paths_of_its_namespace(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """The other paths go on without one."""
    for path in ("/a/1", "/b/1"):
        ask("PUT", path, 0)
    paths = ["/a/", "/a/1", "/b/"]
    with following(followed, target_of(*paths)) as reader:
        reader.wait_for(3)
        wait_until(lambda: has_begun(reader), LIMIT_S)
        place = reader.events[-1].id
    for number in range(1, 4):
        ask("PUT", "/a/1", number)
        ask("PUT", "/b/1", number)
    store.redis.xtrim("kv:{a}!log", maxlen=1, approximate=False)
    with following(followed, target_of(*paths), Last_Event_ID=place) as reader:
        wait_until(lambda: has_begun(reader), LIMIT_S)
        events = told(reader.events)
        ask("PUT", "/b/1", 4)
        assert told(reader.wait_for(len(events) + 1))[-1] == ("put", "/b/", "/b/1", 4)
    assert [event[0] for event in events if event[1] == "/a/1"] == ["reset", "snapshot"]
    assert [event[0] for event in events if event[1] == "/a/"] == ["reset", "snapshot"]
    assert [(event[0], event[3]) for event in events if event[1] == "/b/"] == [("put", 1), ("put", 2), ("put", 3)]


@on_served
def test_a_loss_while_it_follows(followed: Followed, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends, as any does; whoever comes back gets what the others have, and loses nothing unannounced."""
    with following(followed, target_of("/a/", "/b/")) as reader:
        reader.wait_for(2)
        wait_until(lambda: has_begun(reader), LIMIT_S)
        ask("PUT", "/b/1", 1)
        place = reader.wait_for(3)[2].id
        monkeypatch.setattr(ReadChanges, "outcome", lambda *_: ChangesRead(None))
        ask("PUT", "/a/1", 1)
        reader.wait_for_end()
        monkeypatch.undo()
    with following(followed, target_of("/a/", "/b/"), Last_Event_ID=place) as reader:
        assert told(reader.wait_for(1)) == [("put", "/a/", "/a/1", 1)]


def test_as_many_paths_as_there_may_be(followed: Followed, ask: Callable[..., Any]) -> None:
    """100 namespaces, and an id of at most 2 KiB that resumes them; one more is 400."""
    paths = [f"/n{number}/" for number in range(MAX_PATHS)]
    with following(followed, target_of(*paths)) as reader:
        wait_until(lambda: has_begun(reader), LIMIT_S)
        assert [event[:2] for event in told(reader.events)] == [("snapshot", path) for path in paths]
        ask("PUT", "/n7/1", 1)
        place = reader.wait_for(MAX_PATHS + 1)[-1].id
    assert len(place) <= MAX_ID_BYTES
    ask("PUT", "/n7/1", 2)
    ask("PUT", "/n99/1", 3)
    with following(followed, target_of(*paths), Last_Event_ID=place) as reader:
        wait_until(lambda: has_begun(reader), LIMIT_S)
        assert sorted(told(reader.events)) == [("put", "/n7/", "/n7/1", 2), ("put", "/n99/", "/n99/1", 3)]
    with following(followed, target_of(*paths, "/one/more")) as refused:
        assert (refused.status, json.loads(refused.body)["type"]) == (400, "urn:kvstore:invalid-parameter")


def test_holding(followed: Followed, ask: Callable[..., Any]) -> None:
    """Several documents, each with a value of its own, for as long as the stream lives."""
    held = [(f"/people/{number}", json.dumps({"n": number})) for number in range(MAX_HOLDS)]
    query = "".join(f"&hold={quote(path)}&as={quote(value)}" for path, value in held)
    with following(followed, target_of("/people/") + query) as reader:
        assert len(reader.wait_for(1)[0].data["value"]["items"]) == MAX_HOLDS
        assert ask("GET", "/people/3")["n"] == 3
    wait_until(lambda: ask("GET", "/people/")["items"] == [], LIMIT_S)
    with following(followed, target_of("/people/") + "&hold=/people/a&hold=/people/b") as reader:
        assert [item["value"] for item in reader.wait_for(1)[0].data["value"]["items"]] == [None, None]


REFUSED = [
    ("/_/follow", 400, None),
    ("/_/follow?hold=/a/b", 400, None),
    (target_of("a"), 400, "a"),
    (target_of("/a", "/b//c"), 400, "/b//c"),
    (target_of("/a", "/b%"), 400, "/b%"),
    ("/_/follow?path=/%FF", 400, "/\ufffd"),  # no JSON has half a character
    (target_of("/a") + "&hold=/%FF", 400, "/\ufffd"),
    (target_of("/a", "/" + "x" * 1100), 414, "/" + "x" * 1100),
    (target_of("/?list"), 400, "/"),
    (target_of("/_/health"), 400, "/_/health"),
    (target_of("/a", last_event_id="x"), 400, None),
    (target_of("/a", last_event_id="1795261041619-0"), 400, None),
    (target_of("/a", last_event_id="~"), 200, None),
    (target_of("/a", last_event_id="~!"), 400, None),
    (target_of("/a", last_event_id="~AAAA"), 400, None),
    (target_of("/a", last_event_id="~" + "A" * MAX_ID_BYTES), 400, None),
    (target_of("/a") + "&hold=/a/", 400, "/a/"),
    (target_of("/a") + "&hold=/a&as=x", 400, "/a"),
    (target_of("/a") + "&as=1", 400, None),
    (target_of("/a") + "&hold=/a&hold=/b&as=1", 400, None),
    (target_of("/a") + "&hold=/h" * (MAX_HOLDS + 1), 400, None),
]


@pytest.mark.parametrize(("target", "status", "path"), REFUSED)
def test_what_is_refused(followed: Followed, target: str, status: int, path: str | None) -> None:
    """And the problem names the path that is the cause."""
    with following(followed, target) as reader:
        assert reader.status == status
        assert status == 200 or json.loads(reader.body).get("path") == path


def test_other_methods(followed: Followed) -> None:
    """GET only, also without Accept; and no part of a batch."""
    for method in ("POST", "PUT", "HEAD", "DELETE"):
        answer = followed.request(method, target_of("/a"))
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, OPTIONS")
    allowed = followed.request("OPTIONS", target_of("/a"), headers={"Access-Control-Request-Method": "GET"})
    assert (allowed.status, allowed.headers["Allow"]) == (204, "GET, OPTIONS")
    assert "Last-Event-ID" in allowed.headers["Access-Control-Allow-Headers"]
    body = json.dumps({"atomic": False, "requests": [{"method": "GET", "path": target_of("/a")}]}).encode()
    assert followed.request("POST", "/_/batch", body).json["responses"][0]["status"] == 422
    with following(followed, target_of("/a"), Accept="*/*") as reader:
        assert reader.wait_for(1)[0].data["followed"] == "/a"


def test_a_path_with_a_key_of_another_type(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """A problem that names it when it is the first to begin: at the latest when the reader comes back with the others."""
    ask("PUT", "/room/1", 1)
    store.redis.set("kv:{desk}!log", "of another type")
    with following(followed, target_of("/desk/")) as reader:
        assert reader.status == 409
    with following(followed, target_of("/room/", "/desk/")) as reader:
        place = reader.wait_for(1)[0].id
        reader.wait_for_end()
        assert not has_begun(reader)
    with following(followed, target_of("/room/", "/desk/"), Last_Event_ID=place) as reader:
        assert (reader.status, json.loads(reader.body)["type"]) == (409, "urn:kvstore:wrong-type")


@on_served
def test_heartbeats(followed: Followed, ask: Callable[..., Any], store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as one path has, and each moves the places of all paths."""
    monkeypatch.setattr(hub, "HEARTBEAT_S", 0.3)
    with following(followed, target_of(*(f"/n{number}/" for number in range(30)))) as reader:
        wait_until(lambda: has_begun(reader), LIMIT_S)
        ask("PUT", "/n3/1", 1)
        reader.wait_for(31)
        ask("PUT", "/n3/1", 2)
        reader.wait_for(32)
        count, began = len(reader.blocks), time.monotonic()
        wait_until(lambda: len(reader.blocks) >= count + 4, LIMIT_S)
        assert time.monotonic() - began > 0.3
        assert len(set(reader.blocks[-2:])) == 1, "nothing has changed meanwhile"
        place = reader.blocks[-1].removeprefix(b"id: ").decode()
    assert set(parse_id(place).values()).isdisjoint({""})
    assert parse_id(place)[digest("/n3/")] == entries(store.redis, "n3")[-1].id


@on_served
def test_a_stream_that_a_heartbeat_ends(lane: tuple[str, str], store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other paths, of namespaces that nobody follows any more, do not stop the heartbeats of the other streams."""
    monkeypatch.setattr(hub, "BEATS", 2)  # so that all paths get them in one turn
    monkeypatch.setattr(hub, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(buffered_stream, "MAX_BUFFERED_BYTES", 1000)

    async def follow_and_stop_reading() -> None:
        runtime, has_ended = open_runtime(read_settings({"REDIS_URL": store.url})), asyncio.Event()
        ask = partial(parse, settings=runtime.settings)
        many = ask(Request("GET", target_of(*(f"/n{number}/" for number in range(20))).encode(), {}))
        put = ask(Request("PUT", b"/n0/1", {}, b'"%b"' % (b"x" * 2000)))
        assert isinstance(many, FollowMany)
        assert isinstance(put, Put)
        stream = BufferedStream(runtime.hub, many, has_ended.set)
        other = BufferedStream(runtime.hub, Follow(parse_path(b"/other"), None, recursive=False), lambda: None)
        try:
            while not stream._subscription.is_ready:  # the first id may be a heartbeat that came meanwhile
                assert await stream.take()
            await runtime.outcome(put)
            await has_ended.wait()
            for _ in range(5):
                assert await other.take()
        finally:
            await stream.close()
            await other.close()
            await runtime.close()

    asyncio.run(asyncio.wait_for(follow_and_stop_reading(), LIMIT_S))


@on_served
def test_more_paths_than_a_process_follows(followed: Followed, store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends and comes back; a stream of one path is not concerned, and what has ended makes room."""
    monkeypatch.setattr(hub, "MAX_PARTS", 3)
    running = OwnServer(store)
    try:
        with following(running, target_of("/a", "/b", "/c", "/d")) as reader:
            wait_until(lambda: has_begun(reader), LIMIT_S)
            with following(running, target_of("/a", "/b")) as other, following(running, "/a") as single:
                single.wait_for(1)
                other.wait_for_end()
                assert not has_begun(other)
        wait_until(lambda: begins(running), LIMIT_S)
    finally:
        running.stop()


def begins(running: Followed) -> bool:
    """Whether a stream of four paths begins."""
    with following(running, target_of("/a", "/b", "/c", "/d")) as reader:
        wait_until(lambda: reader.has_ended or has_begun(reader), LIMIT_S)
        return has_begun(reader)


@on_served
def test_changes_while_it_begins(followed: Followed, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a path that has begun come after the snapshots of all, in order, and each once."""
    begun = follow_many.ManyPaths._send_waiting

    async def late(many: follow_many.ManyPaths) -> None:
        for number in range(50):
            await asyncio.to_thread(ask, "PUT", f"/{'ab'[number % 2]}/1", number)
        await asyncio.sleep(0.1)
        await begun(many)

    monkeypatch.setattr(follow_many.ManyPaths, "_send_waiting", late)
    with following(followed, target_of("/a/", "/b/1")) as reader:
        events = told(reader.wait_for(52))
        wait_until(lambda: has_begun(reader), LIMIT_S)
        assert len(reader.events) == 52
    assert [event[0] for event in events[:2]] == ["snapshot"] * 2
    for path, first in (("/a/", 0), ("/b/1", 1)):
        assert [event[3] for event in events[2:] if event[1] == path] == list(range(first, 50, 2))


@on_served
def test_more_changes_than_wait(followed: Followed, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream ends rather than keep them all in memory; the reader resumes."""

    async def never(_: follow_many.ManyPaths) -> None:
        await asyncio.sleep(LIMIT_S)

    monkeypatch.setattr(follow_many, "MAX_WAITING_BYTES", 10_000)
    monkeypatch.setattr(follow_many.ManyPaths, "_send_waiting", never)
    with following(followed, target_of("/a/", "/b/")) as reader:
        reader.wait_for(2)
        place = reader.events[-1].id
        for number in range(12):
            ask("PUT", "/a/1", str(number) * 1000)
        wait_until(lambda: reader.has_ended or ask("PUT", "/a/1", "later"), LIMIT_S)  # several may come as one
        reader.wait_for_end()
    monkeypatch.undo()
    with following(followed, target_of("/a/", "/b/"), Last_Event_ID=place) as reader:
        assert [event.data["value"][0] for event in reader.wait_for(12)[:12]] == [str(number)[0] for number in range(12)]


# --- Ids --------------------------------------------------------------------------------------------------------------


# A position, and how many bytes it has in an id; 1 where there is no room for it.
POSITIONS = [
    ("1795261041619-0", 12),
    ("1795261041619-999999999", 12),  # of an empty log
    ("1795261041619-1", 12),
    ("1795261041619-126", 12),
    ("1795261041619-127", 13),
    ("1795261041619-999999998", 6),
    ("1795261041619-1000000000", 6),
    ("1795261041619-268435454", 15),
    ("4398046511104-0", 13),  # in the year 2109
    ("999999999999999-1", 14),
    ("999999999999999-999999999999999", 6),
]


@pytest.mark.parametrize(("position", "size"), POSITIONS)
def test_an_entry_of_an_id(position: str, size: int) -> None:
    """It comes back as it was, or as lost where it is too long: then the path is reset."""
    entry = render_entry("/a/", position)
    assert len(entry) == size
    text = render_id([entry, render_entry("/b", "5-0")]).decode()
    assert parse_id(text) == {digest("/a/"): "" if size == 6 else position, digest("/b"): "5-0"}


def test_the_longest_id() -> None:
    """2 KiB at most."""
    longest = [render_entry(str(number), "1795261041619-268435454") for number in range(MAX_PATHS)]
    assert len(render_id(longest)) <= MAX_ID_BYTES
    assert len(parse_id(render_id(longest).decode())) == MAX_PATHS


def test_an_id_that_loses_a_path(followed: Followed, ask: Callable[..., Any]) -> None:
    """Where it has no position of a path, or two of one digest, the path is reset."""
    ask("PUT", "/a/1", 1)
    for lost in ([digest("/a/") + b"\0"], [render_entry("/a/", "5-0"), render_entry("/a/", "6-0")]):
        with following(followed, target_of("/a/", last_event_id=render_id(lost).decode())) as reader:
            assert [event[:2] for event in told(reader.wait_for(2))] == [("reset", "/a/"), ("snapshot", "/a/")]


def test_any_text_as_an_id() -> None:
    """It is refused, or is positions that a log can be asked for."""
    generator = random.Random(7)
    refused = 0
    for _ in range(3000):
        text = render_id([generator.randbytes(generator.randrange(40))]).decode()
        try:
            positions = parse_id(text)
        except InvalidParameter:
            refused += 1
            continue
        assert all(not position or re.fullmatch(r"\d{1,15}-\d{1,15}", position) for position in positions.values())
    assert 100 < refused < 3000


def test_a_change_of_many_paths_is_written_in_turns() -> None:
    """One change may be one of each path of a stream: each turn of the loop writes some, in order, until the stream ends."""
    follows = {f"/a?{number}": Follow(parse_path(b"/a"), None, recursive=False) for number in range(MAX_PATHS)}
    block = b'id: 1-1\nevent: put\ndata: {"path":"/a"}\n\n'
    written: list[bytes] = []

    async def run() -> None:
        stream = follow_many.ManyPaths(
            open_runtime(read_settings({"REDIS_URL": "fake://"})).hub, FollowMany(follows), written.append, lambda: None, _room
        )
        stream.is_ready = True
        for part in stream._parts:
            part.subscriber.is_ready = True
            stream.send(part, block)
        assert written == []
        await asyncio.sleep(0)
        assert 0 < len(written) < MAX_PATHS
        while len(written) < MAX_PATHS:
            await asyncio.sleep(0)
        assert [re.findall(rb'"followed":"(.*)"', each) for each in written] == [[target.encode()] for target in follows]
        for part in stream._parts:
            stream.send(part, block)
        stream.leave()
        await asyncio.sleep(0)
        assert len(written) == MAX_PATHS

    asyncio.run(run())


async def _room() -> None:
    """There is always room."""
