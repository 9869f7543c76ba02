"""Following with conditions: a snapshot of what matches, then what becomes of it, whatever serves the stream."""

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from kvstore.live import evaluator, hub, stream_session
from kvstore.live.evaluator import Evaluator
from kvstore.stores.query_queue import QueryQueue, is_continued
from tests.support.asking import expire
from tests.support.lanes import on_served
from tests.support.stores import Running, wait_until
from tests.support.streams import LIMIT_S, Event, Followed, Reader, following


def told(events: list[Event]) -> list[tuple[str, str, Any]]:
    """What the events are about: the kind, the document's path, and its value."""
    return [(event.name, event.data["path"], event.data["value"]) for event in events]


def names(event: Event) -> list[str]:
    """The documents in a snapshot."""
    return [item["name"] for item in event.data["value"]["items"]]


def test_what_matches(followed: Followed, ask: Callable[..., Any], store: Running) -> None:
    """A document comes with all of its value, and leaves with none; who comes back is told the same."""
    ask("PUT", "/people/ada", {"born": 1815})
    ask("PUT", "/people/grace", {"born": 1906})
    ask("PUT", "/people/sub/x", {"born": 1})
    with following(followed, "/people/?born:lt=1850&name:ne=Eve") as reader:
        first = reader.wait_for(1)[0]
        assert names(first) == ["ada"]
        ask("PATCH", "/people/grace", {"born": 1806})
        ask("PATCH", "/people/ada", {"name": "Ada"})
        ask("PATCH", "/people/ada", {"born": None})
        ask("PUT", "/people/eve", {"born": 1, "name": "Eve"})
        ask("POST", "/people/", {"born": 1999})  # it was never there: nothing is to be said of it
        path = ask("POST", "/people/", {"born": 1})["path"]
        ask("PUT", "/people/sub/y", {"born": 1})
        ask("PUT", "/others/x", {"born": 1})
        ask("DELETE", "/people/ada")  # it has left
        ask("PUT", "/people/soon?ttl=100", {"born": 2})
        reader.wait_for(7)
        expire(store.redis, "/people/soon")
        events = reader.wait_for(8)[1:]
    assert told(events) == [
        ("patch", "/people/grace", {"born": 1806}),
        ("patch", "/people/ada", {"born": 1815, "name": "Ada"}),
        ("leave", "/people/ada", None),
        ("leave", "/people/eve", None),
        ("put", path, {"born": 1}),
        ("put", "/people/soon", {"born": 2}),
        ("expire", "/people/soon", None),
    ]
    assert all(list(event.data) == ["path", "etag", "ttl", "value"] for event in events)
    assert all(event.data["etag"] == f'"{event.id}"' for event in events)
    assert events[3].data["ttl"] > 1000
    with following(followed, "/people/?name:ne=Eve&born:lt=1850", Last_Event_ID=first.id) as reader:
        missed = [events[0], *events[3:5], events[-1]]
        resumed = reader.wait_for(5)
        assert [event for event in resumed if event.data["path"] != "/people/ada"] == missed
        assert resumed[3].name == "delete"


def test_recursive_and_search_and_fields(followed: Followed, ask: Callable[..., Any]) -> None:
    """What is shown is what a query shows: of documents at any depth, or only some of their members."""
    ask("PUT", "/people/ada", {"name": "Ada", "born": 1815})
    ask("PUT", "/people/old/eve", {"name": "Eve", "at": {"city": "York", "zip": 1}})
    with (
        following(followed, "/people/?recursive&search=EVE&fields=at.city,name") as some,
        following(followed, "/people/?fields=born") as all_of_them,
    ):
        first, other = (reader.wait_for(1)[0].data["value"]["items"] for reader in (some, all_of_them))
        assert [item["value"] for item in first] == [{"name": "Eve", "at": {"city": "York"}}]
        assert [item["value"] for item in other] == [{"born": 1815}]
        ask("PATCH", "/people/old/eve", {"at": {"zip": 2}})
        ask("PUT", "/people/ada", [0, "Eve"])
        assert told(some.wait_for(3)[1:]) == [
            ("patch", "/people/old/eve", {"name": "Eve", "at": {"city": "York"}}),
            ("put", "/people/ada", {}),
        ]
        assert told(all_of_them.wait_for(2)[1:]) == [("put", "/people/ada", {})]


def test_among_several_paths(followed: Followed, ask: Callable[..., Any]) -> None:
    """Conditions belong to their path, which may be there without them too."""
    ask("PUT", "/people/ada", {"n": 1})
    paths = ["/people/?n:gt=0", "/people/", "/people/?n:gt=1&_=7"]
    target = "/_/follow?" + "&".join(f"path={quote(path, safe='')}" for path in paths)
    with following(followed, target) as reader:
        assert [names(event) for event in reader.wait_for(3)] == [["ada"], ["ada"], []]
        wait_until(lambda: reader.blocks[-1].startswith(b"id: "), LIMIT_S)
        ask("PATCH", "/people/ada", {"n": 2})
        events = reader.wait_for(6)[3:]
        assert sorted((event.data["followed"], event.name) for event in events) == sorted((path, "patch") for path in paths)
        place = reader.events[-1].id
    ask("PATCH", "/people/ada", {"n": 0})
    with following(followed, target, Last_Event_ID=place) as reader:
        kinds = {event.data["followed"]: event.name for event in reader.wait_for(3)}
    assert kinds == dict(zip(paths, ["leave", "patch", "leave"], strict=True))


REFUSED = ["sort=a", "count", "a:eq=1&limit=5", "search=x&after=a", "a:eq=1&order=desc", "fields=a&keys"]
REFUSED += ["a:zz=1", "a:eq=1e999"]


@on_served
@pytest.mark.parametrize("query", REFUSED)
def test_what_makes_no_stream(followed: Followed, query: str) -> None:
    """A stream has everything that matches, in no order; the same conditions in the path of several are refused alike."""
    for target in (f"/ns/?{query}", f"/_/follow?path=/x&path={quote(f'/ns/?{query}', safe='')}"):
        answer = followed.request("GET", target, headers={"Accept": "text/event-stream"})
        assert (answer.status, answer.json["type"]) == (400, "urn:kvstore:invalid-parameter")


@on_served
def test_more_than_can_be_looked_at(followed: Followed, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams with conditions end, and resume without a loss; others do not notice."""
    with following(followed, "/ns/?a:lt=5") as reader, following(followed, "/ns/") as other:
        place = reader.wait_for(1)[0].id
        other.wait_for(1)
        monkeypatch.setattr(evaluator, "MAX_UNSEEN_WEIGHT", 10)
        ask("PUT", "/ns/x", {"a": 1})
        reader.wait_for_end()
        ask("PUT", "/ns/x", {"a": 2})
        assert told(other.wait_for(3)[1:]) == [("put", "/ns/x", {"a": 1}), ("put", "/ns/x", {"a": 2})]
    with following(followed, "/ns/?a:lt=5", Last_Event_ID=place) as reader:
        assert reader.wait_for(2) == other.events[1:]


@on_served
@pytest.mark.parametrize("target", ["/ns/?a:lt=5", f"/_/follow?path=/x&path={quote('/ns/?a:lt=5', safe='')}"])
def test_a_snapshot_that_waits(
    followed: Followed, ask: Callable[..., Any], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages are those of a query, which waits for others: meanwhile there are heartbeats, without an id."""
    monkeypatch.setattr(hub, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(stream_session, "PAGE", 1)
    execute, opened = QueryQueue.execute, list[Reader]()

    async def execute_late(queue: QueryQueue, command: Any) -> Any:
        async with asyncio.timeout(LIMIT_S):
            while is_continued(command) and not (opened and opened[0].blocks[-1] == b":"):
                await asyncio.sleep(0.01)
        return await execute(queue, command)

    monkeypatch.setattr(QueryQueue, "execute", execute_late)
    for name in ("a", "b"):
        ask("PUT", f"/ns/{name}", {"a": 1})
    with following(followed, target) as reader:
        opened.append(reader)
        wait_until(lambda: sum("items" in (event.data["value"] or {}) for event in reader.events) == 2, LIMIT_S)
        first, last = (at for at, block in enumerate(reader.blocks) if b"items" in block)
        assert {b":"} == set(reader.blocks[first + 1 : last])


@on_served
def test_heartbeats_of_who_is_behind(followed: Followed, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no id while changes wait to be looked at: a reader that resumed from there would miss these."""
    monkeypatch.setattr(hub, "HEARTBEAT_S", 0.05)
    take_turn = Evaluator._take_turn
    with following(followed, "/ns/?a:lt=5") as reader, following(followed, "/ns/") as other:
        reader.wait_for(1)
        other.wait_for(1)
        monkeypatch.setattr(Evaluator, "_take_turn", lambda *_: None)
        ask("PUT", "/ns/x", {"a": 1})
        other.wait_for(2)
        begun = len(reader.blocks)  # some may be on their way
        wait_until(lambda: reader.blocks[begun:].count(b":") >= 3, LIMIT_S)
        assert set(reader.blocks[reader.blocks.index(b":", begun) :]) == {b":"}
        monkeypatch.setattr(Evaluator, "_take_turn", take_turn)
        assert reader.wait_for(2)[1] == other.events[1]
        wait_until(lambda: reader.blocks[-1] == f"id: {reader.events[1].id}".encode(), LIMIT_S)
