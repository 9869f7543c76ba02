"""Gone is gone: once a document is deleted or has expired, nothing shows its value any more, and Redis does not hold it either.

Who follows is told that it has gone, and misses nothing else by that.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.support.asking import JSON, batch, documents_and_indexes, entries, json_patch, listed, patch, post, touch
from tests.support.clients import Checked
from tests.support.lanes import on_few, on_served, on_two
from tests.support.stores import Running, contents, everything, wait_until
from tests.support.streams import FOLLOWED, Followed, ask, following

SECRET = "the-secret-that-was-stored-here"
DOCUMENT = json.dumps({"a": SECRET})
MANY = json.dumps({f"m{at}": SECRET for at in range(4000)})  # packed, in the log
GONE_S = 30  # within which an expiry is noticed, on a busy machine


def holds(raw: redis.Redis) -> list[bytes]:
    """The keys that hold the secret, but for the changes that streams are still to be sent."""
    return [key for key, held in contents(raw).items() if SECRET in repr(held)]


def delete_by_a_batch(client: Checked, *, atomic: bool) -> None:
    client.put("/ns/a", DOCUMENT)
    requests = [("PATCH", "/ns/a", {"b": SECRET}), ("DELETE", "/ns/a"), ("POST", "/ns/", 1)]
    assert batch(client, requests, atomic=atomic).status == 200


def put_and_delete_in_a_batch(client: Checked, *, atomic: bool) -> None:
    requests = [("PUT", "/ns/a", {"a": SECRET}), ("DELETE", "/ns/a"), ("PUT", "/ns/a", 1), ("POST", "/ns/x", 1)]
    assert batch(client, requests, atomic=atomic).status == 200


def finish_a_job(client: Checked) -> None:
    post(client, "/ns/", DOCUMENT)
    job = client.request("POST", "/ns/?lease=30s").json["items"][0]
    assert client.delete(job["path"], [("If-Match", f'"{job["lease"]}"')]).status == 204


def bury_a_job(client: Checked) -> None:
    post(client, "/ns/", DOCUMENT)
    job = client.request("POST", "/ns/?lease=30s").json["items"][0]
    client.request("PATCH", f"{job['path']}?lease=0", [("If-Match", f'"{job["lease"]}"')])
    assert client.request("POST", "/ns/?lease=30s&max_attempts=1").status == 204
    (dead,) = listed(client, "/ns/dead/")
    assert client.delete(dead["path"]).status == 204


def change_in_every_way(client: Checked) -> None:
    client.put("/ns/a", DOCUMENT)
    patch(client, "/ns/a", {"b": SECRET})
    patch(client, "/ns/a", {"o": {"c": SECRET}})
    json_patch(client, "/ns/a", [{"op": "add", "path": "/d", "value": SECRET}])
    batch(client, [("PUT", "/ns/a", {"a": SECRET}), ("PUT", "/ns/b", 1)])
    client.put("/ns/a", '"%s"' % SECRET)
    client.put("/ns/a", "1")
    assert client.delete("/ns/a").status == 204


# How a document goes: each of them stores the secret in the namespace /ns/, and then lets go of it.
DELETED: dict[str, Callable[[Checked], object]] = {
    "DELETE": lambda client: (client.put("/ns/a", DOCUMENT), client.delete("/ns/a")),
    "DELETE of what was appended": lambda client: client.delete(post(client, "/ns/", DOCUMENT).json["path"]),
    "DELETE of many members": lambda client: (
        client.put("/ns/a", MANY), patch(client, "/ns/a", {"a": 1}), client.delete("/ns/a"),
    ),
    "DELETE of no object": lambda client: (client.put("/ns/a", f'["{SECRET}"]'), client.delete("/ns/a")),
    "DELETE after changes": change_in_every_way,
    "DELETE in a batch": lambda client: delete_by_a_batch(client, atomic=True),
    "DELETE in a batch that is not atomic": lambda client: delete_by_a_batch(client, atomic=False),
    "PUT and DELETE in a batch": lambda client: put_and_delete_in_a_batch(client, atomic=True),
    "PUT and DELETE in a batch that is not atomic": lambda client: put_and_delete_in_a_batch(client, atomic=False),
    "recursive DELETE": lambda client: (
        client.put("/ns/b/a", DOCUMENT), client.put("/ns/b/c/d", MANY), client.put("/ns/b/c/d", DOCUMENT),
        client.delete("/ns/b/?recursive"),
    ),
    "DELETE of a job": finish_a_job,
    "a job that is dead": bury_a_job,
}  # fmt: skip


@pytest.mark.few
@pytest.mark.turns
@on_few
@pytest.mark.parametrize("go", DELETED.values(), ids=DELETED)
def test_what_is_deleted_is_erased(client: Checked, raw: redis.Redis, go: Callable[[Checked], object]) -> None:
    """By the request that deletes it; others stay, and so does what the log says of them."""
    client.put("/ns/deep/stays", '{"x":1}')
    before = entries(raw)
    go(client)
    assert holds(raw) == []
    assert [entry for entry in entries(raw) if entry.name == "deep/stays"] == before
    assert entries(raw)[-1].op in ("delete", "put", "post")
    assert "delete" in {entry.op for entry in entries(raw)}


# What finds that a document has expired, where nobody else does.
NOTICED: dict[str, Callable[[Checked], object]] = {
    "a listing": lambda client: client.get("/ns/"),
    "PUT over it": lambda client: client.put("/ns/a", "1"),
    "PATCH over it": lambda client: patch(client, "/ns/a", {"x": 1}),
    "a nested PATCH over it": lambda client: patch(client, "/ns/a", {"o": {"x": 1}}),
    "PUTs over it": lambda client: batch(client, [("PUT", "/ns/a", 1), ("PUT", "/ns/b", 1)]),
    "a batch": lambda client: batch(client, [("PUT", "/ns/a", 1), ("POST", "/ns/", 1)]),
    "a batch that is refused": lambda client: batch(client, [("PUT", "/ns/a", 1), ("DELETE", "/ns/none")]),
    "recursive DELETE": lambda client: client.delete("/ns/?recursive"),
    "a take": lambda client: client.request("POST", "/ns/?lease=1s"),
    "the root's listing": lambda client: client.get("/?list"),
}  # fmt: skip


@pytest.mark.few
@pytest.mark.turns
@on_few
@pytest.mark.parametrize("notice", NOTICED.values(), ids=NOTICED)
def test_what_has_expired_is_erased(client: Checked, raw: redis.Redis, notice: Callable[[Checked], object]) -> None:
    """By whatever finds that it has."""
    client.put("/ns/a", DOCUMENT)
    patch(client, "/ns/a", {"b": SECRET})
    client.put("/ns/a?ttl=1", DOCUMENT)
    wait_until(lambda: client.get("/ns/a").status == 404, GONE_S)
    time.sleep(0.05)  # the index is in ms, and so is the clock that looks at it
    notice(client)
    assert holds(raw) == []
    assert "expire" in {entry.op for entry in entries(raw)}


# What makes a document with the secret expire, after 4 s where it is changed before that. Its expiry is not always known when
# it is written.
EXPIRING: dict[str, Callable[[Checked], object]] = {
    "PUT": lambda client: client.put("/ns/a?ttl=1", DOCUMENT),
    "PUT again": lambda client: (client.put("/ns/a", DOCUMENT), client.put("/ns/a?ttl=1", "1")),
    "PUT, and sooner": lambda client: (client.put("/ns/a?ttl=90", DOCUMENT), client.put("/ns/a?ttl=1", "1")),
    "PUT, and sooner after that": lambda client: (
        client.put("/ns/a?ttl=90", DOCUMENT), client.put("/ns/a", "1"), client.put("/ns/a?ttl=1", "1"),
    ),
    "PUTs": lambda client: batch(client, [("PUT", "/ns/a?ttl=1", SECRET), ("PUT", "/ns/b", 1)]),
    "PUTs with the member": lambda client: batch(client, [("PUT", "/ns/a", {"a": SECRET, "ttl": 1}), ("PUT", "/ns/b", 1)]),
    "touch": lambda client: (client.put("/ns/a", DOCUMENT), touch(client, "/ns/a?ttl=1")),
    "touch of what was to stay": lambda client: (
        client.put("/ns/a?ttl=4", DOCUMENT), touch(client, "/ns/a?ttl=3000000"), touch(client, "/ns/a?ttl=1"),
    ),
    "flat PATCH": lambda client: (client.put("/ns/a?ttl=4", "1"), patch(client, "/ns/a", {"a": SECRET})),
    "flat PATCH that says so": lambda client: (client.put("/ns/a", "1"), patch(client, "/ns/a?ttl=1", {"a": SECRET})),
    "nested PATCH": lambda client: (client.put("/ns/a?ttl=4", "1"), patch(client, "/ns/a", {"a": {"b": SECRET}})),
    "nested PATCH that says so": lambda client: (client.put("/ns/a", "1"), patch(client, "/ns/a?ttl=1", {"a": {"b": SECRET}})),
    "POST": lambda client: post(client, "/ns/?ttl=1", DOCUMENT),
    "undone": lambda client: (
        client.put("/ns/a?ttl=4", DOCUMENT), batch(client, [("PUT", "/ns/a", 1), ("DELETE", "/ns/none")]),
    ),
    "DELETE that is undone": lambda client: (
        client.put("/ns/a?ttl=4", DOCUMENT), batch(client, [("DELETE", "/ns/a"), ("PUT", "/ns/a", 1), ("DELETE", "/ns/none")]),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.turns
@on_few
@pytest.mark.parametrize("write", EXPIRING.values(), ids=EXPIRING)
def test_whatever_makes_it_expire(client: Checked, raw: redis.Redis, write: Callable[[Checked], object]) -> None:
    """It is erased when it has expired, and not before."""
    write(client)
    assert any(SECRET.encode() in (entry.text or b"") for entry in entries(raw))
    wait_until(lambda: not [key for key in raw.keys("kv:{ns}/*") if key != b"kv:{ns}/b"], GONE_S)
    time.sleep(0.05)
    client.get("/ns/")
    assert holds(raw) == []


@on_few
def test_a_batch_that_is_undone_erases_nothing(client: Checked, raw: redis.Redis) -> None:
    """What it would have deleted is there, and so are its changes."""
    client.put("/ns/a", DOCUMENT)
    client.put("/ns/b/c", DOCUMENT)
    before = documents_and_indexes(raw)
    assert batch(client, [("DELETE", "/ns/a"), ("DELETE", "/ns/b/c"), ("DELETE", "/ns/none")]).status == 409
    assert documents_and_indexes(raw) == before


@pytest.mark.slow
@on_few
def test_who_follows_has_a_moment_to_read_it(client: Checked, raw: redis.Redis) -> None:
    """What was erased at once is kept for those who follow, for 2 s; Redis then forgets it by itself."""

    def is_kept() -> bool:
        client.put("/ns/a", DOCUMENT)
        client.delete("/ns/a")
        return 0 < raw.pttl("kv:{ns}!unread") <= 2000

    wait_until(is_kept, GONE_S)
    wait_until(lambda: not any(SECRET in repr(held) for held in everything(raw).values()), GONE_S)


@on_two
def test_what_is_kept_for_a_moment_is_bounded(client: Checked, raw: redis.Redis) -> None:
    """As the change log is, by bytes."""
    large = '"%s"' % ("x" * 1_000_000)
    for _ in range(6):
        client.put("/ns/a", large)
        client.delete("/ns/a")
    assert raw.xlen("kv:{ns}!unread") <= 4


@on_two
def test_more_changes_than_one_script_erases(client_with: Callable[..., Checked], raw: redis.Redis) -> None:
    """All of them go at once all the same, and with them what is as old."""
    client = client_with(KVSTORE_LOG_LENGTH="10000")
    client.put("/ns/old", "1")
    for _ in range(3):
        assert batch(client, [("PATCH", "/ns/a", {f"m{at % 7}": SECRET}) for at in range(900)]).status == 200
    client.put("/ns/new", "1")
    assert client.delete("/ns/a").status == 204
    assert holds(raw) == []
    assert [(entry.op, entry.name) for entry in entries(raw)] == [("put", "new"), ("delete", "a")]


@on_two
def test_what_is_known_of_erased_changes_is_bounded(client: Checked, raw: redis.Redis) -> None:
    """A namespace in which documents come and go does not grow by it."""
    for _ in range(7):
        requests = [each for at in range(400) for each in (("PUT", f"/ns/{at}?ttl=90", 1), ("DELETE", f"/ns/{at}"))]
        assert batch(client, requests).status == 200
    assert raw.zcard("kv:{ns}!erased") == 2000
    assert raw.exists("kv:{ns}!latest") == 0


# --- Who follows --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["served", "flask", "asgi"])
def followed(request: pytest.FixtureRequest, started: Callable[[str], Running]) -> Iterator[Followed]:
    """What serves streams, on an empty Redis."""
    store = started("redis")
    store.redis.flushall()
    running = FOLLOWED[request.param](store, {"KVSTORE_LOG_LENGTH": "5000"})
    yield running
    running.stop()


def told_since(followed: Followed, target: str, place: str, count: int) -> list[tuple[str, str, Any]]:
    """The first events that come to who resumes from a place."""
    with following(followed, target, Last_Event_ID=place) as reader:
        return [(event.name, event.data.get("path"), event.data.get("value")) for event in reader.wait_for(count)]


def position(followed: Followed, target: str) -> str:
    """Where a stream is that begins now."""
    with following(followed, target) as reader:
        return reader.wait_for(1)[0].id


def test_a_replayed_stream_has_no_value_of_what_has_expired(followed: Followed) -> None:
    """As the table has it: PUT /n/secret?ttl=1, wait, follow /n/ from an older id."""
    ask(followed, "PUT", "/n/other", 1)
    place = position(followed, "/n/")
    ask(followed, "PUT", "/n/other", 2)
    ask(followed, "PUT", "/n/secret?ttl=1", SECRET)
    time.sleep(1.1)
    assert told_since(followed, "/n/", place, 2) == [("put", "/n/other", 2), ("expire", "/n/secret", None)]


@pytest.mark.slow
def test_more_than_a_thousand_have_expired(followed: Followed) -> None:
    """Nobody is shown any of them, though one script does not record as many."""
    ask(followed, "PUT", "/n/other", 1)
    place = position(followed, "/n/")
    for first in (0, 900, 1800):
        requests = [{"method": "PUT", "path": f"/n/{first + at:04}?ttl=2", "body": SECRET} for at in range(900)]
        ask(followed, "POST", "/_/batch", {"requests": requests})
    time.sleep(2.1)
    told = told_since(followed, "/n/", place, 2700)
    assert {name for name, _, _ in told} == {"expire"}


def test_who_resumes_is_told_that_it_went(followed: Followed) -> None:
    """No reset because of what was erased: not where the place is an entry that was erased, nor the first of the log."""
    place = position(followed, "/n/a")  # where nothing was
    ask(followed, "PUT", "/n/a", SECRET)
    with following(followed, "/n/a") as reader:
        first = reader.wait_for(1)[0].id
    ask(followed, "PATCH", "/n/a", {"b": SECRET})
    with following(followed, "/n/a") as reader:
        second = reader.wait_for(1)[0].id
    ask(followed, "DELETE", "/n/a")
    ask(followed, "PUT", "/n/a", 2)
    for since in (place, first, second):
        assert told_since(followed, "/n/a", since, 2) == [("delete", "/n/a", None), ("put", "/n/a", 2)]


def test_what_was_trimmed_is_still_a_loss(followed: Followed, started: Callable[[str], Running]) -> None:
    """The place of an entry that was erased is good for as long as nothing is missing after it."""
    ask(followed, "PUT", "/n/a", SECRET)
    place = position(followed, "/n/a")
    ask(followed, "DELETE", "/n/a")
    for _ in range(7):
        requests = [{"method": "POST", "path": "/n/", "body": 1} for _ in range(1000)]
        ask(followed, "POST", "/_/batch", {"requests": requests})
    with following(followed, "/n/a", Last_Event_ID=place) as reader:
        assert [event.name for event in reader.wait_for(2)] == ["reset", "snapshot"]


@pytest.mark.slow
def test_a_live_stream_is_told_of_all(followed: Followed) -> None:
    """In order, with their values, also of changes whose document has gone before anybody could read them."""
    with following(followed, "/n/") as reader:
        reader.wait_for(1)
        for _ in range(2):
            requests = [
                {"method": "PUT", "path": "/n/a", "body": 1},
                {"method": "PUT", "path": "/n/b", "body": 2},
                {"method": "PATCH", "path": "/n/a", "body": {"x": 3}},
                {"method": "DELETE", "path": "/n/a"},
            ]
            ask(followed, "POST", "/_/batch", {"requests": requests})
        events = reader.wait_for(9)[1:]
        assert [(event.name, event.data["value"]) for event in events] == [
            *(("put", 1), ("put", 2), ("patch", {"x": 3}), ("delete", None))
        ] * 2
        assert all(event.id in event.data["etag"] for event in events)


def test_a_live_stream_goes_on(followed: Followed) -> None:
    """It was told, is told that it went, and stays."""
    with following(followed, "/n/") as reader:
        reader.wait_for(1)
        for number in range(20):
            ask(followed, "PUT", "/n/a", number)
            reader.wait_for(2 + 2 * number)
            ask(followed, "DELETE", "/n/a")
            reader.wait_for(3 + 2 * number)
        assert [event.name for event in reader.events[1:]] == ["put", "delete"] * 20
        assert not reader.has_ended


def test_what_was_held_is_erased(followed: Followed, started: Callable[[str], Running]) -> None:
    """A document that goes with its stream, too."""
    raw = started("redis").redis
    with following(followed, f'/n/?hold=/n/a&as="{SECRET}"') as reader:
        reader.wait_for(1)
        wait_until(lambda: holds(raw), GONE_S)
    wait_until(lambda: followed.request("GET", "/n/a").status == 404, 20)
    assert holds(raw) == []


# --- Responses that are kept --------------------------------------------------------------------------------------------


def key(text: str) -> tuple[str, str]:
    return "Idempotency-Key", text


# What is asked with a key and shows the secret, and is asked again when that is gone: method, target, headers, body. What is
# there at first is DOCUMENT, at /ns/a.
SHOWN: dict[str, tuple[str, str, list[tuple[str, str]], str]] = {
    "PUT": ("PUT", "/ns/a", [], DOCUMENT),
    "PUT of no object": ("PUT", "/ns/a", [], f'["{SECRET}"]'),
    "PUT with a server value": ("PUT", "/ns/a", [], '{"a":"%s","n":{".sv":"timestamp"}}' % SECRET),
    "PUT that fails": ("PUT", "/ns/a", [("If-None-Match", "*")], "1"),
    "flat PATCH": ("PATCH", "/ns/a", [], '{"b":1}'),
    "nested PATCH": ("PATCH", "/ns/a", [], '{"b":{"c":1}}'),
    "JSON Patch": ("PATCH", "/ns/a", [JSON], '[{"op":"add","path":"/b","value":1}]'),
    "touch": ("PATCH", "/ns/a?ttl=90", [], ""),
    "touch that fails": ("PATCH", "/ns/a?ttl=90", [("If-Match", '"1-1"')], ""),
    "DELETE that fails": ("DELETE", "/ns/a", [("If-Match", '"1-1"')], ""),
    "POST": ("POST", "/ns/", [("Prefer", "return=representation")], DOCUMENT),
    "take": ("POST", "/ns/?lease=1s", [], ""),
    "batch": ("POST", "/_/batch", [], json.dumps({"requests": [
        {"method": "GET", "path": "/ns/a"},
        {"method": "PATCH", "path": "/ns/a", "body": {"b": 1}},
        {"method": "PUT", "path": "/ns/b", "body": {"a": SECRET}},
    ]})),
    "batch that deletes it": ("POST", "/_/batch", [], json.dumps({"requests": [
        {"method": "PATCH", "path": "/ns/a", "body": {"b": 1}},
        {"method": "DELETE", "path": "/ns/a"},
    ]})),
    "batch that is refused": ("POST", "/_/batch", [], json.dumps({"requests": [
        {"method": "PUT", "path": "/ns/b", "body": 1},
        {"method": "PUT", "path": "/ns/a", "body": 1, "headers": {"If-None-Match": "*"}},
    ]})),
}  # fmt: skip
WENT: dict[str, Callable[[Checked], object]] = {
    "by a recursive DELETE": lambda client: client.delete("/ns/?recursive"),
    "and another came": lambda client: (client.delete("/ns/?recursive"), client.put("/ns/a", "1"), client.put("/ns/b", "1")),
}


@on_two
@pytest.mark.parametrize("go", WENT.values(), ids=WENT)
@pytest.mark.parametrize("row", SHOWN.values(), ids=SHOWN)
@pytest.mark.parametrize("size", [0, 20_000], ids=["small", "large"])
def test_a_replay_has_no_value_of_what_is_gone(
    client: Checked, row: tuple[str, str, list[tuple[str, str]], str], go: Callable[[Checked], object], size: int
) -> None:
    """The status and the header fields are the first ones."""
    method, target, headers, body = row
    client.put("/ns/a", json.dumps({"a": SECRET, "more": "x" * size}))
    first = client.request(method, target, [*headers, key("one")], body.encode())
    assert SECRET.encode() in first.body
    go(client)
    again = client.request(method, target, [*headers, key("one")], body.encode())
    assert SECRET.encode() not in again.body
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (again.status, again.headers.get("ETag"), again.headers.get("Location")) == (
        *(first.status, first.headers.get("ETag")),
        first.headers.get("Location"),
    )


@on_served
def test_a_replay_has_no_value_of_what_has_expired(client: Checked) -> None:
    """Nor of a document whose time is over."""
    first = client.put("/ns/a?ttl=1", DOCUMENT, [key("one")])
    wait_until(lambda: client.get("/ns/a").status == 404, GONE_S)
    again = client.put("/ns/a?ttl=1", DOCUMENT, [key("one")])
    assert (again.status, again.tag, again.body) == (first.status, first.tag, b"")


@on_two
def test_no_value_is_kept_for_a_key(client: Checked, raw: redis.Redis) -> None:
    """Redis holds none: a receipt names the document and its entity-tag."""
    for number, (method, target, headers, body) in enumerate(SHOWN.values()):
        client.put("/ns/a", DOCUMENT)
        assert client.request(method, target, [*headers, key(str(number))], body.encode()).status < 500
    kept = [held for name, held in contents(raw).items() if b"!idempotency:" in name]
    assert len(kept) == len(SHOWN)
    assert SECRET not in repr(kept)
