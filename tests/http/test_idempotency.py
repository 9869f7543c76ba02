"""Idempotency-Key: a write is applied once, and asked again it is answered as the first time."""

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from kvstore.core.settings import read_settings
from kvstore.http import protocol
from kvstore.http.messages import Request
from tests.support.asking import (
    JSON,
    MERGE,
    as_body,
    at_once,
    batch,
    command_of,
    entries,
    listed,
    patch,
    post,
    run_script,
    touch,
)
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few, on_served, on_servers, on_two
from tests.support.stores import Running, contents, wait_until

SETTINGS = read_settings({})

DAY_MS = 86_400_000
INCREMENT = {"n": {".sv": {"increment": 1}}}
TOO_LONG = '"' + "x" * 700_000 + '"'


def key(text: str = "one") -> tuple[str, str]:
    return ("Idempotency-Key", text)


# What is there before (None: nothing), method, target, headers, body, status.
# An If-Match or If-None-Match of "t" is the entity-tag of what is there.
Row = tuple[str | None, str, str, list[tuple[str, str]], Any, int]
WRITES: dict[str, Row] = {
    "PUT creates": (None, "PUT", "/ns/a", [], {"a": 1}, 201),
    "PUT replaces": ('{"b":1.0}', "PUT", "/ns/a?ttl=90", [], '{"z":1.0,"a":"\\u0000é/\\u007f"}', 200),
    "PUT of no object": ('{"b":1}', "PUT", "/ns/a", [], "[1.0]", 200),
    "PUT of nothing": ("1", "PUT", "/ns/a", [], "{}", 200),
    "PUT, 412 on something": ('{"b":1.0}', "PUT", "/ns/a", [("If-None-Match", "*")], {"a": 1}, 412),
    "PUT, 412 on nothing": (None, "PUT", "/ns/a", [("If-Match", "*")], {"a": 1}, 412),
    "PUT under its tag": ('{"b":1}', "PUT", "/ns/a", [("If-Match", '"t"')], {"a": 1}, 200),
    "PUT counts": ('{"n":41}', "PUT", "/ns/a", [], INCREMENT, 200),
    "PUT, 422": ('{"n":"x"}', "PUT", "/ns/a", [], INCREMENT, 422),
    "PATCH creates": (None, "PATCH", "/ns/a", [MERGE], {"a": 1}, 201),
    "PATCH changes": ('{"b":1.0}', "PATCH", "/ns/a", [], {"a": 1}, 200),
    "PATCH counts": ('{"n":41}', "PATCH", "/ns/a", [], INCREMENT, 200),
    "PATCH, 412": ('{"b":1}', "PATCH", "/ns/a", [("If-Match", '"1-1"')], {"a": 1}, 412),
    "PATCH, 422": ('{"n":[]}', "PATCH", "/ns/a", [], INCREMENT, 422),
    "PATCH, too large": (f'{{"x":{TOO_LONG}}}', "PATCH", "/ns/a", [], f'{{"y":{TOO_LONG}}}', 413),
    "nested PATCH creates": (None, "PATCH", "/ns/a", [], {"o": {"a": 1}}, 201),
    "nested PATCH changes": ('{"o":{"b":1.0}}', "PATCH", "/ns/a", [MERGE], {"o": {"a": 1}}, 200),
    "nested PATCH counts": ('{"n":41}', "PATCH", "/ns/a", [], {**INCREMENT, "o": {"a": 1}}, 200),
    "nested PATCH, 412": ('{"b":1}', "PATCH", "/ns/a", [("If-Match", '"1-1"')], {"o": {"a": 1}}, 412),
    "nested PATCH, 422": ('{"n":"x"}', "PATCH", "/ns/a", [], {**INCREMENT, "o": {}}, 422),
    "nested PATCH, too large": (f'{{"x":{TOO_LONG}}}', "PATCH", "/ns/a", [], f'{{"o":{{"y":{TOO_LONG}}}}}', 413),
    "PATCH to no object": ('{"b":1}', "PATCH", "/ns/a", [], "[1]", 200),
    "JSON Patch": ('{"l":[1]}', "PATCH", "/ns/a", [JSON], '[{"op":"add","path":"/l/-","value":2.0}]', 200),
    "JSON Patch, 404": (None, "PATCH", "/ns/a", [JSON], '[{"op":"add","path":"/l","value":2}]', 404),
    "JSON Patch, 409": ('{"l":1}', "PATCH", "/ns/a", [JSON], '[{"op":"test","path":"/l","value":2}]', 409),
    "JSON Patch, 412": ('{"l":1}', "PATCH", "/ns/a", [JSON, ("If-None-Match", '"t"')], "[]", 412),
    "JSON Patch, 422": ('{"l":1}', "PATCH", "/ns/a", [JSON], '[{"op":"remove","path":"/m"}]', 422),
    "touch": ('{"l":1}', "PATCH", "/ns/a?ttl=90", [], b"", 200),
    "touch, 404": (None, "PATCH", "/ns/a?ttl=90", [], b"", 404),
    "touch, 412": ('{"l":1}', "PATCH", "/ns/a?ttl=90", [("If-Match", '"1-1"')], b"", 412),
    "POST": (None, "POST", "/ns/", [], '{"z":1.0,"a":[]}', 201),
    "POST counts": (None, "POST", "/ns", [], INCREMENT, 201),
    "DELETE": ('{"b":1}', "DELETE", "/ns/a", [], b"", 204),
    "DELETE, 404": (None, "DELETE", "/ns/a", [], b"", 404),
    "DELETE, 412": ('{"b":1}', "DELETE", "/ns/a", [("If-Match", '"1-1"')], b"", 412),
    "recursive DELETE": ('{"b":1}', "DELETE", "/ns/?recursive", [], b"", 200),
    "recursive DELETE of nothing": (None, "DELETE", "/ns/?recursive", [], b"", 200),
    "minimal": ('{"b":1}', "PUT", "/ns/a", [("Prefer", "return=minimal")], {"a": 1}, 204),
    "minimal POST": (None, "POST", "/ns/", [("Prefer", "return=minimal")], {"a": 1}, 201),
    "representation": (None, "POST", "/ns/", [("Prefer", "return=representation")], {"a": 1}, 201),
}
BATCHES: dict[str, Row] = {
    "batch": ('{"n":41}', "POST", "/_/batch", [], {"requests": [
        {"method": "PATCH", "path": "/ns/a", "body": INCREMENT},
        {"method": "POST", "path": "/ns/q", "body": 1},
        {"method": "GET", "path": "/ns/a"},
    ]}, 200),
    "batch with a nested PATCH": ('{"o":{"n":41}}', "POST", "/_/batch", [], {"requests": [
        {"method": "PATCH", "path": "/ns/a", "body": {"o": {"m": 1}}},
        {"method": "PUT", "path": "/ns/b", "body": {"x": 1}},
        {"method": "PATCH", "path": "/ns/c", "body": {"o": {"m": 1}}},
    ]}, 200),
    "batch of one nested PATCH": (None, "POST", "/_/batch", [], {"requests": [
        {"method": "PATCH", "path": "/ns/a", "body": {"o": {"m": 1}}},
    ]}, 200),
    "batch, 409": ('{"n":"x"}', "POST", "/_/batch", [], {"requests": [
        {"method": "PUT", "path": "/ns/b", "body": 1},
        {"method": "PATCH", "path": "/ns/a", "body": INCREMENT},
    ]}, 409),
    "batch, 409 by 404": (None, "POST", "/_/batch", [], {"requests": [
        {"method": "PUT", "path": "/ns/b", "body": 1},
        {"method": "DELETE", "path": "/ns/a"},
    ]}, 409),
    "batch, 409 by a nested PATCH": ('{"n":"x"}', "POST", "/_/batch", [], {"requests": [
        {"method": "PUT", "path": "/ns/b", "body": 1},
        {"method": "PATCH", "path": "/ns/a", "body": {**INCREMENT, "o": {}}},
    ]}, 409),
    "batch, 409 by a JSON Patch": ('{"n":"x"}', "POST", "/_/batch", [], {"requests": [
        {"method": "PUT", "path": "/ns/b", "body": 1},
        {"method": "PATCH", "path": "/ns/a", "headers": dict([JSON]), "body": [{"op": "remove", "path": "/m"}]},
    ]}, 409),
}  # fmt: skip
ROWS = {**WRITES, **BATCHES}


def ask(client: Checked, row: Row, tag: str, *more: tuple[str, str]) -> Answer:
    _, method, target, headers, body, _ = row
    sent = [(name, value.replace('"t"', tag)) for name, value in headers]
    return client.request(method, target, [*sent, *more], as_body(body))


def equal_but_replayed(first: Answer, again: Answer) -> bool:
    """Whether an answer is the first one again, and says so."""
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers.get("Idempotency-Replayed") == "true", again
    ignored = ("idempotency-replayed", "date")
    headers = [{name: value for name, value in answer.headers.items() if name not in ignored} for answer in (first, again)]
    return (first.status, first.body) == (again.status, again.body) and headers[0] == headers[1]


@on_few
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_replayed(client: Checked, raw: redis.Redis, row: Row) -> None:
    """Asked again it is answered as the first time, and changes nothing, though it would be answered otherwise by now."""
    tag = client.put("/ns/a?ttl=1000", row[0]).tag if row[0] is not None else '"t"'
    first = ask(client, row, tag, key())
    assert first.status == row[5], first.body[:300]
    stored = contents(raw)
    assert equal_but_replayed(first, ask(client, row, tag, key()))
    assert contents(raw) == stored
    client.put("/ns/a", '{"n":7,"o":{},"l":2}')
    stored = contents(raw)
    assert equal_but_replayed(first, ask(client, row, tag, key()))
    assert equal_but_replayed(first, ask(client, row, tag, key()))
    assert contents(raw) == stored


@on_two
def test_what_has_changed_since(client: Checked, raw: redis.Redis) -> None:
    """A replay has the document that was written: as long as it is there, or if it has 8 KiB and the log has it."""

    def replayed(path: str, size: int, then: Callable[[], object]) -> bytes:
        body = json.dumps("x" * (size - 2))
        first = client.put(path, body, [key(path)])
        for change in (lambda: None, then):
            change()
            again = client.put(path, body, [key(path)])
            unvarying = ("ETag", "Last-Modified", "Sunset", "Location")
            assert again.status == first.status == 201
            assert [again.headers[name] for name in unvarying] == [first.headers[name] for name in unvarying]
            assert again.body == first.body or change is then
        return again.body

    assert len(replayed("/ns/same", 100_000, lambda: touch(client, "/ns/same?ttl=90"))) == 100_001
    assert len(replayed("/ns/short", 8000, lambda: client.put("/ns/short", "1"))) == 8001
    assert replayed("/ns/long", 8200, lambda: client.put("/ns/long", "1")) == b""
    assert replayed("/ns/gone", 100, lambda: client.delete("/ns/gone")) == b""
    assert replayed("/ns/other", 100, lambda: (client.delete("/ns/other"), client.put("/ns/other", "1"))) == b""
    assert replayed("/ns/type", 100, lambda: (raw.delete("kv:{ns}/type"), raw.set("kv:{ns}/type", "x"))) == b""
    trim = lambda: (client.put("/ns/trimmed", "1"), raw.xtrim("kv:{ns}!log", maxlen=1, approximate=False))  # noqa: E731
    assert replayed("/ns/trimmed", 100, trim) == b""


@on_two
def test_jobs_that_are_gone(client: Checked) -> None:
    """A take that is replayed has the jobs that are still there."""
    for number in range(3):
        client.put(f"/ns/{number}", str(number))
    first = client.request("POST", "/ns/?lease=90&limit=3", [key()])
    assert equal_but_replayed(first, client.request("POST", "/ns/?lease=90&limit=3", [key()]))
    job = first.json["items"][1]
    assert client.delete(job["path"], [("If-Match", f'"{job["lease"]}"')]).status == 204
    again = client.request("POST", "/ns/?lease=90&limit=3", [key()])
    assert again.json["items"] == [first.json["items"][0], first.json["items"][2]]


@on_few
def test_as_without_a_key(client: Checked, raw: redis.Redis) -> None:
    """A key changes nothing of the first answer, nor of what it stores."""

    def fields(answer: Answer) -> Any:
        varying = ("etag", "last-modified", "sunset", "date", "location", "content-length")
        return answer.status, {name: value for name, value in answer.headers.items() if name not in varying}

    for name, row in ROWS.items():
        answers = []
        for more in ([], [key()]):
            raw.flushall()
            tag = client.put("/ns/a?ttl=1000", row[0]).tag if row[0] is not None else '"t"'
            answers.append((fields(ask(client, row, tag, *more)), [entry[:2] for entry in entries(raw) if entry.op != "post"]))
        assert answers[0] == answers[1], name


# What makes it another request: method, target, headers, body.
OTHERS: list[tuple[str, str, list[tuple[str, str]], Any]] = [
    ("PUT", "/ns/a", [], {"a": 2}),
    ("PUT", "/ns/a", [], '{"a":1}'),
    ("PUT", "/ns/b", [], {"a": 1}),
    ("PUT", "/ns/a?ttl=90", [], {"a": 1}),
    ("PUT", "/ns/a", [("If-None-Match", "*")], {"a": 1}),
    ("PUT", "/ns/a", [("If-Match", "*")], {"a": 1}),
    ("PUT", "/ns/a", [("If-Unmodified-Since", "Fri, 31 Dec 2100 23:59:59 GMT")], {"a": 1}),
    ("PATCH", "/ns/a", [], {"a": 1}),
    ("PATCH", "/ns/a", [], {"o": {"a": 1}}),
    ("PATCH", "/ns/a", [JSON], "[]"),
    ("PATCH", "/ns/a?ttl=90", [], b""),
    ("DELETE", "/ns/a", [], b""),
    ("DELETE", "/ns/?recursive", [], b""),
    ("POST", "/ns/", [], {"a": 1}),
    ("POST", "/_/batch", [], {"requests": [{"method": "PUT", "path": "/ns/a", "body": {"a": 1}}]}),
]


def test_another_request(client: Checked, raw: redis.Redis) -> None:
    """The same key with another request: 422, and nothing is changed."""
    first = client.put("/ns/a", as_body({"a": 1}), [key()])
    before = contents(raw)
    for method, target, headers, body in OTHERS:
        answer = client.request(method, target, [*headers, key()], as_body(body))
        assert (answer.status, answer.json["type"]) == (422, "urn:kvstore:key-reused"), (method, target)
        assert "Idempotency-Replayed" not in answer.headers
        assert contents(raw) == before
    assert equal_but_replayed(first, client.put("/ns/a", as_body({"a": 1}), [key()]))


def test_what_makes_no_other_request(client: Checked) -> None:
    """What a client or a proxy adds by itself does not make it another request."""
    first = client.put("/ns/a", as_body({"a": 1}), [key()])
    for more in ([("User-Agent", "x")], [("X-Forwarded-For", "1.2.3.4")], [("Accept", "*/*")], [("Cookie", "a=b")]):
        assert equal_but_replayed(first, client.put("/ns/a", as_body({"a": 1}), [key(), *more]))


def test_per_namespace(client: Checked) -> None:
    """The same key in another namespace is another key."""
    bodies = {"/ns/a": "1", "/other/a": "2", "/a": "3", "/": "3"}
    for path in ("/ns/a", "/other/a", "/a"):
        assert client.put(path, bodies[path], [key()]).status == 201
    for path in ("/ns/a", "/other/a", "/a"):
        assert client.put(path, bodies[path], [key()]).headers["Idempotency-Replayed"] == "true"
    assert client.put("/", "3", [key()]).status == 422, "documents of one segment and the root are one namespace"
    for target in ("/ns/", "/ns", "/ns/deep/"):
        assert post(client, target, "1", [key()]).status == 422, "what is appended is in the container's namespace"
    assert post(client, "/", "1", [key()]).status == 422


def test_kept_for_a_day(client: Checked, raw: redis.Redis) -> None:
    """24 hours, whatever the document's TTL, and not longer for being asked for again; then it is forgotten."""
    client.put("/ns/a?ttl=1", "1", [key()])
    client.put("/ns/b", "1", [key("two")])
    kept = [k for k in raw.keys("kv:{ns}*") if b"idempotency" in k]
    assert len(kept) == 2
    for name in kept:
        assert DAY_MS - 60_000 < raw.pttl(name) <= DAY_MS
        raw.pexpire(name, 20_000)
    client.put("/ns/b", "1", [key("two")])
    assert max(map(raw.pttl, kept)) <= 20_000
    raw.delete(*kept)
    answer = client.put("/ns/b", "2", [key("two")])
    assert (answer.status, "Idempotency-Replayed" in answer.headers) == (200, False)


KEYS = ["a", "x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "é", "{}", "a b", "*", "a:b/c"]


def test_any_key(client: Checked, raw: redis.Redis) -> None:
    """A key is any text of 1 to 255 characters; two are the same only when they are equal."""
    for number, text in enumerate(KEYS):
        assert client.put(f"/ns/{number}", str(number), [key(text)]).status == 201
    for number, text in enumerate(KEYS):
        assert client.put(f"/ns/{number}", str(number), [key(text)]).headers["Idempotency-Replayed"] == "true"
    before = contents(raw)
    for text in ("", "x" * 256, "x" * 5000):
        assert client.put("/ns/new", "1", [key(text)]).status == 400
    assert contents(raw) == before


def test_reads_have_no_key(client: Checked) -> None:
    """A key on what writes nothing means nothing."""
    client.put("/ns/a", "1")
    for method, target in (("GET", "/ns/a"), ("HEAD", "/ns/a"), ("GET", "/ns/"), ("OPTIONS", "/ns/a")):
        for _ in range(2):
            answer = client.request(method, target, [key()])
            assert answer.status in (200, 204)
            assert "Idempotency-Replayed" not in answer.headers


@on_few
def test_another_type(client: Checked, raw: redis.Redis) -> None:
    """A 409 is an answer below 500 too: asked again it is the same, though by now it could be done."""
    raw.set("kv:{ns}/a", "x")
    for number, row in enumerate(
        (WRITES["PUT creates"], WRITES["PATCH creates"], WRITES["nested PATCH creates"], WRITES["DELETE"])
    ):
        raw.set("kv:{ns}/a", "x")
        first = ask(client, row, '"t"', key(str(number)))
        assert first.status == 409
        raw.delete("kv:{ns}/a")
        assert equal_but_replayed(first, ask(client, row, '"t"', key(str(number))))


@on_servers
def test_bytes_of_another_client(client: Checked, raw: redis.Redis) -> None:
    """Whatever bytes stand in a hash of another client, an answer that shows them is kept to the byte."""
    for number, text in enumerate((b"\xff\x00\x7f/", b'"\\"', b"1e999", b"\xe2\x80\xa8", b"[]", b"{}", b"-0")):
        raw.hset("kv:{ns}/a", mapping={"x": text, b"\xfe\x01": "1"})
        for more, body in enumerate(({"m": 1}, {"o": {"m": 1}}, INCREMENT)):
            headers = [key(f"{number} {more}")]
            first = patch(client, "/ns/a", body, headers)
            assert first.status == 200
            assert equal_but_replayed(first, patch(client, "/ns/a", body, headers)), (text, body)
        failed = client.put("/ns/a", "1", [key(f"{number}"), ("If-None-Match", "*")])
        assert equal_but_replayed(failed, client.put("/ns/a", "1", [key(f"{number}"), ("If-None-Match", "*")]))
        raw.delete("kv:{ns}/a")


def test_what_was_never_asked_of_redis(client: Checked) -> None:
    """A request that is refused for what it says is refused again."""
    for body, headers, status in (("{", [], 400), ("1", [("Content-Type", "text/html")], 415), ("1", [("If-Match", "x")], 400)):
        first, again = (client.put("/ns/a", body, [key(), *headers]) for _ in range(2))
        assert (first.status, again.status) == (status, status)
        assert first.body == again.body
    assert client.put("/ns/a", "1", [key("good")]).status == 201


def test_not_of_a_batch_that_is_not_atomic(client: Checked, raw: redis.Redis) -> None:
    """On a batch only when it is atomic."""
    requests = [("PUT", "/ns/a", 1)]
    assert batch(client, requests, atomic=False, headers=[key()]).status == 400
    assert raw.keys() == []
    answer = batch(client, [("PUT", "/ns/a", 1, {"Idempotency-Key": "x"})], atomic=True)
    assert answer.status in (200, 409)


AT_ONCE = [
    *("PUT creates", "PATCH counts", "nested PATCH counts", "JSON Patch", "POST counts", "DELETE"),
    *("batch", "batch with a nested PATCH", "PUT, 422", "JSON Patch, 409"),
]


@on_servers
@pytest.mark.parametrize("name", AT_ONCE)
def test_sent_by_many_at_once(client: Checked, raw: redis.Redis, name: str) -> None:
    """20 threads send the same: applied once, answered alike, and one of them is the first."""
    row = ROWS[name]
    tag = client.put("/ns/a", row[0]).tag if row[0] is not None else '"t"'
    before = raw.xinfo_stream("kv:{ns}!log")["entries-added"] if row[0] is not None else 0
    answers = at_once(lambda _: ask(client, row, tag, key()), 20)
    assert {answer.status for answer in answers} == {row[5]}
    assert len({answer.body for answer in answers}) == 1
    assert len({answer.headers.get("ETag") for answer in answers}) == 1
    assert ["Idempotency-Replayed" in answer.headers for answer in answers].count(False) == 1
    applied = {"batch": 2, "batch with a nested PATCH": 3}.get(name, 1 if row[5] < 400 else 0)
    assert raw.xinfo_stream("kv:{ns}!log")["entries-added"] - before == applied


# What is there, what is there a moment later, and a request that is refused by the first and not by the second.
OVERTAKEN: list[tuple[str, str, Request]] = [
    ('{"l":1}', '{"l":2}', Request("PATCH", b"/ns/a", {"content-type": JSON[1]}, as_body(WRITES["JSON Patch, 409"][4]))),
    ('{"n":"x"}', '{"n":"x","m":1}', Request("POST", b"/_/batch", {}, as_body(BATCHES["batch, 409 by a JSON Patch"][4]))),
]  # fmt: skip


@on_two
@pytest.mark.parametrize(("before", "then", "request_"), OVERTAKEN, ids=["PATCH", "batch"])
def test_overtaken_by_the_same_request(client: Checked, store: Running, before: str, then: str, request_: Request) -> None:
    """A request that finds outside of Redis that it is refused is answered as the one that was faster."""
    asked = request_._replace(headers={**request_.headers, "idempotency-key": "one"})
    opened = store.open()
    client.put("/ns/a", before)
    refused = command_of(asked)
    conclude = run_script(store.redis, refused).command
    assert conclude.script.name == "record_reply idempotent"
    client.put("/ns/a", then)
    first = protocol.render(asked, opened.execute(command_of(asked)))
    again = protocol.render(asked, opened.execute(conclude))
    opened.close()
    assert (first.status, again) == (200, first._replace(headers=(*first.headers, ("Idempotency-Replayed", "true"))))


@on_servers
def test_a_recursive_delete_sent_by_many(client: Checked) -> None:
    """What is told is what was deleted, by whichever of them."""
    batch(client, [("POST", "/ns/q", n) for n in range(1000)])
    batch(client, [("POST", "/ns/q", n) for n in range(500)])
    answers = at_once(lambda _: client.delete("/ns/?recursive", [key()]), 8)
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json == {"deleted": 1500}
    assert listed(client, "/ns/") == []


@on_two
def test_a_recursive_delete_that_was_cut_off(client: Checked, store: Running) -> None:
    """Its key is its own from the first document on: another request is refused, and the same one does the rest."""
    for container in ("x", "y"):
        for count in (1000, 500):
            batch(client, [("POST", f"/ns/{container}", n) for n in range(count)])
    opened = store.open()
    begun = command_of(Request("DELETE", b"/ns/x/?recursive", {"idempotency-key": "one"}))
    assert run_script(store.redis, begun).command.script.name == "delete_recursive idempotent"  # and whoever asked it dies
    opened.close()
    assert client.delete("/ns/y/?recursive", [key()]).status == 422
    assert client.put("/ns/a", "1", [key()]).status == 422
    assert client.delete("/ns/x/?recursive", [key()]).json == {"deleted": 1500}
    assert client.delete("/ns/x/?recursive", [key()]).headers["Idempotency-Replayed"] == "true"
    assert len(listed(client, "/ns/?recursive&keys&limit=1000")) == 1500


@pytest.mark.slow
@on_served
def test_a_503_is_not_remembered(client: Checked, store: Running) -> None:
    """Sent again after a 503 it is applied once, whether the first had been applied or not."""
    client.put("/ns/a", '{"n":0}')
    store.signal(signal.SIGSTOP)
    try:
        statuses = {answer.status for answer in at_once(lambda n: patch(client, "/ns/a", INCREMENT, [key(str(n))]), 6)}
    finally:
        store.signal(signal.SIGCONT)
    assert statuses == {503}
    wait_until(lambda: client.get("/ns/a").status == 200, 30)
    for n in range(6):
        assert patch(client, "/ns/a", INCREMENT, [key(str(n))]).status == 200
        assert patch(client, "/ns/a", INCREMENT, [key(str(n))]).headers["Idempotency-Replayed"] == "true"
    assert client.get("/ns/a").json["n"] == 6


@on_served
def test_a_full_redis_is_not_remembered(client: Checked, raw: redis.Redis) -> None:
    """A 507 changes nothing, and the same key is applied when there is room."""
    client.put("/ns/a", '{"n":0}')
    raw.config_set("maxmemory", "1")
    try:
        for _ in range(2):
            assert patch(client, "/ns/a", INCREMENT, [key()]).status == 507
            assert post(client, "/ns/", INCREMENT, [key("two")]).status == 507
            assert batch(client, [("POST", "/ns/", INCREMENT), ("PUT", "/ns/b", 1)], headers=[key("three")]).status == 507
    finally:
        raw.config_set("maxmemory", "0")
    assert patch(client, "/ns/a", INCREMENT, [key()]).json["n"] == 1
    assert post(client, "/ns/", INCREMENT, [key("two")]).status == 201
    assert batch(client, [("POST", "/ns/", INCREMENT), ("PUT", "/ns/b", 1)], headers=[key("three")]).status == 200


def test_what_is_kept_is_not_listed(client: Checked, raw: redis.Redis) -> None:
    """The kept answers are no documents; an answer is rendered for who asks, and a later setting changes nothing of it."""
    first = client.put("/ns/a", '{"a":1}', [key()])
    assert [item["name"] for item in listed(client, "/ns/?recursive")] == ["a"]
    again = client.put("/ns/a", '{"a":1}', [key(), ("Prefer", "return=minimal")])
    assert (again.status, again.body, again.tag) == (201, b"", first.tag)
    time.sleep(0.01)
    assert json.loads(client.put("/ns/a", '{"a":1}', [key()]).body)["ttl"] == first.json["ttl"]
