"""Batches: all of it or none on one namespace, or each on its own; and everything a client may send for one."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from kvstore.commands.changelog import GetLogPosition, ReadChanges
from kvstore.core.paths import parse_path
from kvstore.stores.blocking import BlockingStore
from tests.support.asking import (
    JSON,
    as_body,
    at_once,
    batch,
    batch_body,
    documents_and_indexes,
    entries,
    expire,
    json_patch,
    keys_of,
    listed,
    patch,
    post,
    same,
    timeless,
    without_ttl,
)
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few, on_one, on_servers, on_two
from tests.support.stores import contents

AS_JSON_PATCH = dict([JSON])
INCREMENT = {"n": {".sv": {"increment": 1}}}


def responses(answer: Answer) -> list[Any]:
    """The responses of a batch that was carried out."""
    assert (answer.status, list(answer.json)) == (200, ["responses"]), answer.body[:500]
    assert all(list(response) == ["status", "headers", "body"] for response in answer.json["responses"])
    found: list[Any] = answer.json["responses"]
    return found


def statuses(answer: Answer) -> list[int]:
    return [response["status"] for response in responses(answer)]


# Each kind of request once, on an empty namespace: the request, its status.
EVERY: list[tuple[tuple[Any, ...], int]] = [
    (("PUT", "/ns/a", {"n": 1, "z": [], "b": None}), 201),
    (("GET", "/ns/a"), 200),
    (("HEAD", "/ns/a"), 200),
    (("PUT", "/ns/a?ttl=90", {"n": 2}), 200),
    (("PATCH", "/ns/a", {"m": 1, "n": None}), 200),
    (("PATCH", "/ns/a", INCREMENT), 200),
    (("PATCH", "/ns/b", {"o": {"x": {"y": 1}, "z": None}}), 201),
    (("PATCH", "/ns/a?ttl=1h",), 200),
    (("POST", "/ns/q", [1]), 201),
    (("POST", "/ns/", {"t": {".sv": "timestamp"}}), 201),
    (("PUT", "/ns/c", 1, {"If-None-Match": "*"}), 201),
    (("PUT", "/ns/c", 2, {"if-match": "*"}), 200),
    (("PUT", "/ns/d", "x", {"Prefer": "return=minimal"}), 201),
    (("DELETE", "/ns/d"), 204),
    (("PUT", "/ns/d", None), 201),
    (("DELETE", "/ns/d", None, {"If-Match": "*"}), 204),
    (("GET", "/ns/c", None, {"If-None-Match": "*"}), 304),
    (("OPTIONS", "/ns/c"), 204),
    (("PUT", "/ns/%C3%A9%2F", {}), 201),
    (("PUT", "/ns/é", 1), 201),
    (("GET", "http://example.org/ns/é"), 200),
]  # fmt: skip


@pytest.mark.parametrize("atomic", [None, True, False])
def test_every_request(client: Checked, raw: redis.Redis, atomic: bool | None) -> None:
    """Carried out in order, each seeing what the ones before it did, and answered as by itself."""
    requests = [request for request, _ in EVERY]
    told = responses(batch(client, requests, atomic=atomic))
    assert [response["status"] for response in told] == [status for _, status in EVERY]
    stored = {item["path"]: item for item in listed(client, "/ns/?recursive")}
    log = [(entry.op, entry.name.rpartition("/")[0] if entry.op == "post" else entry.name) for entry in entries(raw)]
    raw.flushall()
    for request, response in zip(requests, told, strict=True):
        method, target, body, headers = (*request, None, None)[:4]
        sent = b"" if len(request) < 3 else as_body(json.dumps(body))
        alone = client.request(method, target.encode(), list((headers or {}).items()), sent)
        assert alone.status == response["status"], request
        shown: Any = alone.json if alone.body else None
        if method == "POST":
            assert list(shown) == list(response["body"])
        else:
            assert same(shown, response["body"]), request
        names = {"etag", "location", "last-modified", "sunset", "preference-applied", "allow", "accept-patch"}
        assert {name.lower() for name in response["headers"]} == names & set(alone.headers), request
        for name in ("Location", "Preference-Applied", "Allow"):
            if name in alone.headers and method != "POST":
                assert response["headers"][name] == alone.headers[name]
    again = {item["path"]: item for item in listed(client, "/ns/?recursive")}
    is_fixed = {path for path in again if not path.rpartition("/")[2][:1].isdigit()}
    assert {path: stored[path]["value"] for path in is_fixed} == {path: again[path]["value"] for path in is_fixed}
    assert len(stored) == len(again)
    assert log == [(entry.op, entry.name.rpartition("/")[0] if entry.op == "post" else entry.name) for entry in entries(raw)]


def test_values_to_the_letter(client: Checked) -> None:
    """A body in a batch is kept as one by itself: spelling, order, escapes."""
    texts = [
        "1.0",
        "1e2",
        '{"b":1.50,"a":[1E+2]}',
        '"\\u00e9é\\/"',
        '{ "x" : [ 1.0 ] }',
        '{"a":"}],{"}',
        '{"é":"\\ud83d\\ude00"}',
    ]
    parts = [f'{{"method":"PUT","path":"/ns/{n}","body":{text}}}' for n, text in enumerate(texts)]
    answer = client.request("POST", "/_/batch", [], f'{{"requests":[{" , ".join(parts)}]}}'.encode())
    assert statuses(answer) == [201] * len(texts)
    for n, text in enumerate(texts):
        client.put(f"/alone/{n}", text)
        body = timeless(client.get(f"/ns/{n}").body)
        assert body == timeless(client.get(f"/alone/{n}").body)
        assert body.replace(b',"ttl":0', b"").rstrip(b"\n") in answer.body.replace(b',"ttl":31536000', b"")


def test_members_in_any_order(client: Checked) -> None:
    """The members of a request may come in any order, with others that mean nothing, and escaped."""
    for number, part in enumerate((
        '{"path":"/ns/a","method":"PUT","body":{"x":1}}',
        '{"body":{"x":1},"path":"/ns/b","headers":{},"method":"PUT"}',
        '{"id":7,"method":"PUT","path":"/ns/c","body":{"x":1},"extra":[{}]}',
        '{"m\\u0065thod":"P\\u0055T","p\\u0061th":"\\/ns\\/d","body":{"x":1}}',
        ' { "method" : "PUT" , "path" : "/ns/e" , "body" : { "x" : 1 } } ',
        '{"method":"PUT","path":"/ns/f","headers":{"CONTENT-TYPE":"application/json","X":""},"body":{"x":1}}',
    )):  # fmt: skip
        answer = client.request("POST", "/_/batch", [], b'{"more":1,"requests":[' + part.encode() + b'],"atomic":true}')
        assert statuses(answer) == [201], part
        assert client.get(f"/ns/{'abcdef'[number]}").json["x"] == 1


# --- All or nothing -----------------------------------------------------------------------------------------------------

# Every kind of write, to documents that are there and to new ones; what comes before a refusal and must be undone.
READ_CHANGES: list[Any] = [
    ("PUT", "/ns/a", {"x": 1}),
    ("PUT", "/ns/list", {"now": "an object"}),
    ("PUT", "/ns/new", 1),
    ("PUT", "/ns/new", 2),
    ("PUT", "/ns/short", 1),
    ("PUT", "/ns/long?ttl=5", 1),
    ("PATCH", "/ns/b", {"m": 1, "n": None}),
    ("PATCH", "/ns/b", INCREMENT),
    ("PATCH", "/ns/new2", {"m": 1}),
    ("PATCH", "/ns/c?ttl=5",),
    ("PATCH", "/ns/foreign", {"m": 1}),
    ("PATCH", "/ns/immortal?ttl=9",),
    ("PATCH", "/ns/nested", {"o": {"new": 1}}),
    ("PATCH", "/ns/new3", {"o": {"new": 1}}),
    ("PATCH", "/ns/list2", [{"op": "add", "path": "/-", "value": 1}], AS_JSON_PATCH),
    ("DELETE", "/ns/d"),
    ("DELETE", "/ns/deep/er/e"),
    ("DELETE", "/ns/f"),
    ("PUT", "/ns/f", {"again": 1}),
    ("POST", "/ns/q", 1),
    ("POST", "/ns/", 1),
]  # fmt: skip
# What is refused, and the status of its problem.
REFUSALS: list[tuple[Any, int]] = [
    (("GET", "/ns/none"), 404),
    (("HEAD", "/ns/none"), 404),
    (("GET", "/ns/g", None, {"If-Match": '"1-1"'}), 412),
    (("DELETE", "/ns/none"), 404),
    (("DELETE", "/ns/g", None, {"If-Match": '"1-1"'}), 412),
    (("PUT", "/ns/g", 1, {"If-None-Match": "*"}), 412),
    (("PUT", "/ns/none", 1, {"If-Match": "*"}), 412),
    (("PATCH", "/ns/g", INCREMENT), 422),
    (("PATCH", "/ns/none?ttl=5",), 404),
    (("PATCH", "/ns/g", {"o": {}}, {"If-Match": '"1-1"'}), 412),
    (("PATCH", "/ns/g", {**INCREMENT, "o": {}}), 422),
    (("PATCH", "/ns/g", [{"op": "remove", "path": "/none"}], AS_JSON_PATCH), 422),
    (("PATCH", "/ns/g", [{"op": "test", "path": "/n", "value": 1}], AS_JSON_PATCH), 409),
    (("PATCH", "/ns/none", [], AS_JSON_PATCH), 404),
    (("PATCH", "/ns/g", [{"op": "spam"}], AS_JSON_PATCH), 400),
    (("PUT", "/ns/string", 1), 409),
    (("PATCH", "/ns/string", {"a": 1}), 409),
    (("PATCH", "/ns/string", {"a": {}}), 409),
    (("PATCH", "/ns/string?ttl=5",), 409),
    (("GET", "/ns/string"), 409),
    (("DELETE", "/ns/string"), 409),
    (("PUT", "/ns/g", {".sv": 1}), 400),
    (("PUT", "/ns/g", {"ttl": "x"}), 400),
    (("PUT", "/ns/g?ttl=0", {}), 400),
    (("PUT", "/ns/g"), 400),
    (("PUT", "/ns//g", 1), 400),
    (("PUT", "/ns/" + "x" * 1024, 1), 414),
    (("PUT", "/ns/g", 1, {"Content-Type": "text/html"}), 415),
    (("PUT", "/ns/g", 1, {"If-Match": "x"}), 400),
    (("PUT", "/ns/", 1), 405),
    (("BREW", "/ns/g", 1), 405),
    (("GET", "/_"), 404),
]  # fmt: skip


def prepare(client: Checked, raw: redis.Redis) -> None:
    """A namespace with documents of all kinds."""
    for name in "abcdfg":
        client.put(f"/ns/{name}?ttl=1000", '{"z":1.0,"n":"x"}' if name == "g" else '{"z":1.0,"n":41,"$kv":[]}')
    client.put("/ns/deep/er/e", "1")
    client.put("/ns/list?ttl=2000", "[1.0]")
    client.put("/ns/list2", "[1.0]")
    client.put("/ns/long?ttl=300d", "{}")
    client.put("/ns/short?ttl=20", "{}")
    client.put("/ns/nested", '{"o":{"x":1.0}}')
    raw.hset("kv:{ns}/foreign", mapping={"n": "1", "theirs": "bare"})
    raw.hset("kv:{ns}/immortal", mapping={"n": "1"})
    raw.set("kv:{ns}/string", "x")
    client.put("/ns/other/untouched", '{"a":1}')
    client.put("/other/untouched", '{"a":1}')


def only_reads(request: Any) -> bool:
    return request[0] in ("GET", "HEAD")


@on_two
@pytest.mark.parametrize(
    ("refused", "status"), REFUSALS, ids=lambda case: f"{case[0]} {case[1][:14]}" if isinstance(case, tuple) else str(case)
)
def test_none_is_applied(client: Checked, raw: redis.Redis, refused: Any, status: int) -> None:
    """One that is refused: 409 with its index and its problem, and all is as it was, TTLs, log and indexes included."""
    prepare(client, raw)
    before = documents_and_indexes(raw)
    alone = client.request(*as_request(refused))
    assert alone.status == status
    for at in (len(READ_CHANGES) // 2, len(READ_CHANGES)):
        requests = [*READ_CHANGES[:at], refused, *READ_CHANGES[at:]]
        answer = batch(client, requests)
        assert (answer.status, answer.json["type"]) == (409, "urn:kvstore:batch-refused")
        assert list(answer.json)[4:] == ["index", "problem"]
        assert documents_and_indexes(raw) == before
        index, problem = answer.json["index"], answer.json["problem"]
        if problem["type"] == "urn:kvstore:wrong-type" and index != at:
            continue  # a look at the types of all keys comes before the first write
        assert (index, problem["status"]) == (at, status)
        if alone.body:
            assert without_current_ttl(problem) == without_current_ttl(alone.json)
    assert set(statuses(batch(client, READ_CHANGES))) <= {200, 201, 204}, "without it they are applied"


def without_current_ttl(problem: Any) -> Any:
    if isinstance(problem.get("current"), dict):
        problem["current"].pop("ttl", None)
    return problem


def as_request(request: Any) -> tuple[Any, ...]:
    method, target, body, headers = (*request, None, None)[:4]
    return (
        method,
        target,
        list((headers or {}).items()),
        as_body(json.dumps(body)) if len(request) > 2 and not only_reads(request) else b"",
    )


@on_few
def test_an_expired_document_is_not_brought_back(client: Checked, raw: redis.Redis) -> None:
    """What was over when a batch was refused stays over, and the log says so once."""
    client.put("/ns/a", "1")
    client.put("/ns/b", "1")
    expire(raw, "/ns/a")
    answer = batch(client, [("PUT", "/ns/a", 2), ("PUT", "/ns/b", 2), ("DELETE", "/ns/none")])
    assert (answer.status, answer.json["index"]) == (409, 2)
    assert client.get("/ns/a").status == 404
    assert client.get("/ns/b").json == 1
    assert [item["name"] for item in listed(client, "/ns/")] == ["b"]
    assert [(entry.op, entry.name) for entry in entries(raw)] == [("put", "a"), ("put", "b"), ("expire", "a")]


@on_few
def test_tags_after_a_refused_batch(client: Checked) -> None:
    """The documents and the container have the entity-tags they had, and what is written next has new ones."""
    tag = client.put("/ns/a", "1").tag
    of_container = client.get("/ns/").tag
    tags = {tag}
    for _ in range(5):
        assert batch(client, [("PUT", "/ns/a", 2), ("PUT", "/ns/b", 2), ("DELETE", "/ns/none")]).status == 409
        assert client.get("/ns/a", [("If-None-Match", tag)]).status == 304
        assert client.get("/ns/", [("If-None-Match", of_container)]).status == 304
    for _ in range(5):
        tags.add(client.put("/ns/a", "1").tag)
    assert len(tags) == 6


def test_in_an_empty_namespace(client: Checked, raw: redis.Redis) -> None:
    """Refused where nothing was, it leaves no document, no name, and nothing for ever."""
    assert batch(client, [("PUT", "/ns/a", 1), ("POST", "/ns/q", 1), ("DELETE", "/ns/none")]).status == 409
    assert documents_and_indexes(raw) == {}
    assert all(raw.pttl(key) > 0 for key in list(raw.keys()))
    assert client.get("/?list").json == {"items": []}


@on_few
@pytest.mark.parametrize(
    "request_", [("DELETE", "/ns/a"), ("PUT", "/ns/a", 1, {"If-Match": "*"}), ("PATCH", "/ns/a", {"o": {}})]
)
def test_an_expiry_that_a_refused_batch_finds(client: Checked, raw: redis.Redis, request_: Any) -> None:
    """A document that is over is over, though nobody has looked: the log says so, and the container's entity-tag changes."""
    client.put("/ns/a", "1")
    client.put("/ns/b", "1")
    raw.pexpireat(keys_of("ns").log.replace("!log", "/a"), 1)
    tag = client.put("/ns/c", "1").tag
    assert batch(client, [request_, ("DELETE", "/ns/none")]).status == 409
    assert [(entry.op, entry.name) for entry in entries(raw)][-1] == ("expire", "a")
    assert client.get("/ns/", [("If-None-Match", tag)]).status == 200
    assert [item["name"] for item in listed(client, "/ns/")] == ["b", "c"]


@on_few
def test_an_expiry_that_leaves_nothing(client: Checked, raw: redis.Redis) -> None:
    """What a refused batch finds to be over may have been the last document: the log goes as after any other."""
    client.put("/ns/a", "1")
    raw.pexpireat(keys_of("ns").log.replace("!log", "/a"), 1)
    assert batch(client, [("PUT", "/ns/a", 1), ("DELETE", "/ns/none")]).status == 409
    assert raw.pttl(keys_of("ns").log) <= 2 * 86_400_000


@on_few
@pytest.mark.parametrize("request_", [("DELETE", "/ns/a"), ("PUT", "/ns/b?ttl=300d", 1), ("PUT", "/ns/a?ttl=300d", 1)])
def test_the_namespace_lives_as_long_as_before(client: Checked, raw: redis.Redis, request_: Any) -> None:
    """A refused batch leaves the expiry of the namespace's own keys, also where it deleted its only document."""
    client.put("/ns/a?ttl=60", "{}")
    post(client, "/ns/?delay=60s&ttl=60", "1")
    client.delete(listed(client, "/ns/")[0]["path"])
    client.put("/ns/a?ttl=60", "{}")
    before = contents(raw)
    assert batch(client, [request_, ("DELETE", "/ns/none")]).status == 409
    assert contents(raw) == before
    assert client.request("POST", "/ns/?lease=30s").json["items"][0]["path"] == "/ns/a"
    assert client.request("POST", "/ns/?lease=30s").status == 204
    assert client.get("/ns/").json["items"][0]["state"] == "leased"
    assert all(raw.pttl(key) > 0 for key in contents(raw))
    assert raw.pexpiretime(keys_of("ns").blocked) == raw.pexpiretime(keys_of("ns").names)


@on_few
def test_the_log_after_refused_batches(client: Checked, raw: redis.Redis) -> None:
    """They take nothing out of it, however large; one that is applied leaves it as long as single writes do."""
    for _ in range(3):
        client.put("/ns/a", as_body({"x": "x" * 1_000_000}))
    before = contents(raw)
    patches = [("PATCH", "/ns/a", INCREMENT)] * 8
    assert batch(client, [*patches, ("DELETE", "/ns/none")]).status == 409
    assert contents(raw) == before
    assert set(statuses(batch(client, patches))) == {200}
    assert raw.xlen(keys_of("ns").log) <= 5


@on_few
def test_a_log_without_entries(client: Checked, raw: redis.Redis) -> None:
    """No two contents of a container have one entity-tag, and who follows it is not told of a loss again and again."""
    path, store = parse_path(b"/ns/"), BlockingStore(lambda: raw)
    tags = {client.get("/ns/").tag}
    for number in range(3):
        assert batch(client, [("PUT", "/ns/x", 1), ("DELETE", "/ns/none")]).status == 409
        raw.xtrim(keys_of("ns").log, 0, approximate=False)  # as another client, or an older version of ours, may do
        assert client.get("/ns/", [("If-None-Match", ", ".join(tags))]).status == 200
        tags.add(client.get("/ns/").tag)
        assert client.get("/ns/", [("If-None-Match", ", ".join(tags))]).status == 304
        assert store.execute(ReadChanges(path, store.execute(GetLogPosition(path)).position)).entries == []
        assert client.put(f"/ns/{number}", "1").status == 201
        assert client.get("/ns/", [("If-None-Match", ", ".join(tags))]).status == 200
        tags.add(client.get("/ns/").tag)


@on_few
def test_one_document_again_and_again(client: Checked, raw: redis.Redis) -> None:
    """Several writes to one document are one after the other; the last one counts, and the log has what is not deleted."""
    requests = [
        ("PUT", "/ns/a", {"n": 0}),
        *[("PATCH", "/ns/a", INCREMENT)] * 5,
        ("DELETE", "/ns/a"),
        ("PATCH", "/ns/a", INCREMENT),
    ]
    told = responses(batch(client, requests))
    assert [response["body"]["n"] for response in told if response["body"]] == [0, 1, 2, 3, 4, 5, 1]
    assert [entry.op for entry in entries(raw)] == ["delete", "patch"]
    tags = [response["headers"]["ETag"] for response in told if response["status"] < 204]
    assert len(set(tags)) == len(tags)
    nested = batch(client, [("PUT", "/ns/a", {"n": 0}), ("PATCH", "/ns/a", {"o": {"x": 1}})])
    assert nested.status in (200, 422)
    if nested.status == 200:
        assert without_ttl(client.get("/ns/a").json) == {"n": 0, "o": {"x": 1}}


@on_few
def test_several_namespaces(client: Checked, raw: redis.Redis) -> None:
    """An atomic batch is on one namespace: 422, nothing stored."""
    for requests in (
        [("PUT", "/a/x", 1), ("PUT", "/b/x", 1)],
        [("PUT", "/a/x", 1), ("PUT", "/a", 1)],
        [("PUT", "/a/x", 1), ("POST", "/", 1)],
        [("PUT", "/a/x", 1), ("PATCH", "/b/x", {"o": {}})],
        [("PUT", "/a/x", 1), ("PUT", "/a%2Fx", 1)],
    ):
        assert batch(client, requests).status == 422, requests
        assert raw.keys() == []
    assert statuses(batch(client, [("PUT", "/a/x", 1), ("POST", "/a", 1), ("PUT", "/%61/y", 1)])) == [201, 201, 201]
    assert statuses(batch(client, [("PUT", "/", 1), ("PUT", "/b", 1), ("POST", "/", 1)])) == [201, 201, 201]


# --- Each on its own ----------------------------------------------------------------------------------------------------


@on_few
def test_each_on_its_own(client: Checked, raw: redis.Redis) -> None:
    """Not atomic: any namespace, in order, and one that is refused refuses no other."""
    raw.set("kv:{ns}/string", "x")
    rows: list[tuple[Any, int]] = [
        (("PUT", "/ns/a", {"n": 1}), 201),
        (("PUT", "/other/a", 1), 201),
        (("GET", "/ns/none"), 404),
        (("PATCH", "/ns/a", {"o": {"x": 1}}), 200),
        (("PATCH", "/ns/a", {"o": {"y": 1}}), 200),
        (("PUT", "/ns/string", 1), 409),
        (("PUT", "/a", 1), 201),
        (("PUT", "/a", 1, {"If-None-Match": "*"}), 412),
        (("GET", "/ns//x"), 400),
        (("PATCH", "/ns/a", INCREMENT), 200),
        (("PATCH", "/other/a", [{"op": "remove", "path": "/x"}], AS_JSON_PATCH), 422),
        (("POST", "/q", {}), 201),
        (("GET", "/ns/a"), 200),
        (("BREW", "/ns/a"), 405),
        (("DELETE", "/other/a"), 204),
        (("DELETE", "/other/a"), 404),
    ]
    told = responses(batch(client, [request for request, _ in rows], atomic=False))
    assert [response["status"] for response in told] == [status for _, status in rows]
    assert without_ttl(told[12]["body"]) == {"n": 2, "o": {"x": 1, "y": 1}} == without_ttl(client.get("/ns/a").json)
    for response in told:
        if response["status"] >= 400:
            assert response["body"]["status"] == response["status"]
            assert (
                response["headers"]["Content-Type"] == "application/problem+json"
                if "Content-Type" in response["headers"]
                else True
            )
    assert told[7]["body"]["current"] == 1
    assert [item["name"] for item in client.get("/?list").json["items"]] == ["a", "ns/", "q/"]


@pytest.mark.parametrize("atomic", [True, False])
def test_what_is_no_request_of_a_batch(client: Checked, raw: redis.Redis, atomic: bool) -> None:
    """Containers are listed and deleted by requests of their own, and batches do not hold batches."""
    client.put("/ns/a", "1")
    before = contents(raw)
    inner = {"requests": [{"method": "PUT", "path": "/ns/b", "body": 1}]}
    for request in (("GET", "/ns/"), ("DELETE", "/ns/?recursive"), ("GET", "/?list"), ("POST", "/_/batch", inner)):
        answer = batch(client, [request], atomic=atomic)
        problem = answer.json["problem"] if atomic else answer.json["responses"][0]["body"]
        assert 400 <= problem["status"] < 500, request
        assert contents(raw) == before


# --- Sizes --------------------------------------------------------------------------------------------------------------


@on_servers
@pytest.mark.parametrize("atomic", [True, False])
def test_a_thousand(client: Checked, atomic: bool) -> None:
    """1,000 are carried out, of each kind; one more is 413, and nothing is done."""
    assert statuses(batch(client, [("PUT", f"/ns/{n}", {"n": n}) for n in range(1000)], atomic=atomic)) == [201] * 1000
    told = responses(batch(client, [("GET", f"/ns/{n}") for n in range(1000)], atomic=atomic))
    assert [response["body"]["n"] for response in told] == list(range(1000))
    assert statuses(batch(client, [("PATCH", "/ns/0", INCREMENT)] * 1000, atomic=atomic)) == [200] * 1000
    assert client.get("/ns/0").json["n"] == 1000
    too_many = batch(client, [("DELETE", f"/ns/{n}") for n in range(1000)] + [("DELETE", "/ns/0")], atomic=atomic)
    assert too_many.status == 413
    assert len(listed(client, "/ns/?limit=1000")) == 1000
    assert statuses(batch(client, [("DELETE", f"/ns/{n}") for n in range(1000)], atomic=atomic)) == [204] * 1000


@on_servers
def test_a_thousand_nested_patches(client: Checked) -> None:
    """Each must be read before it can be written."""
    requests = [("PATCH", f"/ns/{n}", {"o": {"n": n}}) for n in range(1000)]
    assert statuses(batch(client, requests)) == [201] * 1000
    assert statuses(batch(client, requests)) == [200] * 1000
    assert statuses(batch(client, [("PATCH", "/ns/0", {"o": {f"m{n}": n}}) for n in range(100)], atomic=False)) == [200] * 100
    assert len(client.get("/ns/0").json["o"]) == 101


@on_few
def test_a_thousand_undone(client: Checked, raw: redis.Redis) -> None:
    """The last of a thousand is refused, and the others are undone."""
    batch(client, [("PUT", f"/ns/{n}", {"n": n}) for n in range(0, 999, 2)])
    before = documents_and_indexes(raw)
    answer = batch(client, [*[("PUT", f"/ns/{n}", {"x": n}) for n in range(999)], ("DELETE", "/ns/none")])
    assert (answer.status, answer.json["index"]) == (409, 999)
    now = documents_and_indexes(raw)
    assert now == before


@on_servers
def test_large_documents(client: Checked, raw: redis.Redis) -> None:
    """As much as fits a body; documents with thousands of members among them."""
    members = {f"m{n}": n for n in range(2000)}
    requests = [("PUT", f"/ns/{n}", members) for n in range(5)] + [("PATCH", "/ns/0", {"m1": None, "x": "y" * 100_000})]
    assert statuses(batch(client, requests)) == [201] * 5 + [200]
    assert len(client.get("/ns/0").json) == 2001
    before = documents_and_indexes(raw)
    assert batch(client, [*requests, ("GET", "/ns/none")]).status == 409
    assert documents_and_indexes(raw) == before
    assert batch(client, [("PUT", "/ns/a", "x" * 1024 * 1024)]).status == 413


@on_few
def test_more_members_than_a_call_takes(client: Checked) -> None:
    """One document is too wide for the script of many; the others of its batch are written with it."""
    wide = json.dumps({f"m{number}": number for number in range(4000)})
    answers = batch(client, [("PUT", "/ns/a", 1), ("PUT", "/ns/wide", json.loads(wide)), ("PUT", "/ns/b", 2)]).json["responses"]
    assert [answer["status"] for answer in answers] == [201, 201, 201]
    assert {**client.get("/ns/wide").json, "ttl": 0} == {**json.loads(wide), "ttl": 0}
    assert [client.get(f"/ns/{name}").json for name in "ab"] == [1, 2]


def test_nothing(client: Checked, raw: redis.Redis) -> None:
    """A batch of nothing has no responses."""
    for atomic in (None, True, False):
        assert responses(batch(client, [], atomic=atomic)) == []
    assert raw.keys() == []


# --- What is malformed --------------------------------------------------------------------------------------------------

PUT_A = '{"method":"PUT","path":"/ns/a","body":1}'
NAMES = [
    "If-Match",
    "If-None-Match",
    "If-Unmodified-Since",
    "Content-Type",
    "Content-Encoding",
    "Prefer",
    "Idempotency-Key",
    "X",
]
# An envelope, and the statuses that it may have; 200 and 409 where only a request of it is refused.
MALFORMED: list[tuple[str, tuple[int, ...]]] = [
    ("", (400,)),
    ("null", (400,)),
    ("[]", (400,)),
    ("1", (400,)),
    ('"x"', (400,)),
    ("{}", (400,)),
    ("{", (400,)),
    ('{"requests":null}', (400,)),
    ('{"requests":{}}', (400,)),
    ('{"requests":"x"}', (400,)),
    ('{"requests":1}', (400,)),
    ('{"requests":[', (400,)),
    ('{"requests":[]', (400,)),
    ('{"requests":[}', (400,)),
    ('{"requests":[,]}', (400,)),
    (f'{{"requests":[{PUT_A},]}}', (400,)),
    (f'{{"requests":[{PUT_A} {PUT_A}]}}', (400,)),
    (f'{{"requests":[{PUT_A}],"requests":[]}}', (400,)),
    (f'{{"requests":[{PUT_A}]}} x', (400,)),
    ('{"requests":[null]}', (400,)),
    ('{"requests":[1]}', (400,)),
    ('{"requests":[[]]}', (400,)),
    ('{"requests":["PUT /ns/a"]}', (400,)),
    ('{"requests":[{}]}', (400,)),
    ('{"requests":[{"method":"PUT"}]}', (400,)),
    ('{"requests":[{"path":"/ns/a"}]}', (400,)),
    ('{"requests":[{"method":null,"path":"/ns/a"}]}', (400,)),
    ('{"requests":[{"method":1,"path":"/ns/a"}]}', (400,)),
    ('{"requests":[{"method":["GET"],"path":"/ns/a"}]}', (400,)),
    ('{"requests":[{"method":"GET","path":1}]}', (400,)),
    ('{"requests":[{"method":"GET","path":null}]}', (400,)),
    ('{"requests":[{"method":"GET","path":["/ns/a"]}]}', (400,)),
    ('{"requests":[{"method":"GET","path":"/ns/a","headers":null}]}', (400,)),
    ('{"requests":[{"method":"GET","path":"/ns/a","headers":[]}]}', (400,)),
    ('{"requests":[{"method":"GET","path":"/ns/a","headers":"x"}]}', (400,)),
    ('{"requests":[{"method":"GET","path":"/ns/a","headers":{"a":1}}]}', (400,)),
    ('{"requests":[{"method":"GET","path":"/ns/a","headers":{"a":["x"]}}]}', (400,)),
    ('{"requests":[{"method":"GET","method":"PUT","path":"/ns/a"}]}', (400,)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":1,"body":2}]}', (400,)),
    (f'{{"atomic":null,"requests":[{PUT_A}]}}', (400,)),
    (f'{{"atomic":1,"requests":[{PUT_A}]}}', (400,)),
    (f'{{"atomic":"false","requests":[{PUT_A}]}}', (400,)),
    (f'{{"atomic":[],"requests":[{PUT_A}]}}', (400,)),
    (f'{{"atomic":true,"atomic":false,"requests":[{PUT_A}]}}', (400,)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":NaN}]}', (400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":01}]}', (400,)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":}]}', (400,)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":"\\x01"}]}'.replace("\\x01", "\x01"), (400,)),
    ("[" * 500_000, (400,)),
    ('{"requests":' + "[" * 100_000 + "]" * 100_000 + "}", (400,)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":' + "[" * 100_000 + "]" * 100_000 + "}]}", (400, 409)),
    ('{"requests":[' * 1000 + "]}" * 1000, (400,)),
    # what only one of the requests is refused for
    ('{"requests":[{"method":"","path":"/ns/a"}]}', (400, 409)),
    ('{"requests":[{"method":"put","path":"/ns/a","body":1}]}', (400, 409)),
    ('{"requests":[{"method":"G\\u0000T","path":"/ns/a"}]}', (400, 409)),
    ('{"requests":[{"method":"\\ud800","path":"/ns/a"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":""}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"ns/a"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"*"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"?ttl=1"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"//"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"/ns/\\u0000"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"/ns/\\n"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"/ns/\\ud800"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"/ns/a\\udc00?x=\\ud800"}]}', (400, 409)),
    ('{"requests":[{"method":"GET","path":"/ns/a?\\ud800"}]}', (200, 400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a?ttl=\\ud800","body":1}]}', (400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":"\\ud800"}]}', (400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":{"\\ud800":1}}]}', (400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":{"x":1,"x":2}}]}', (400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":1e999}]}', (400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":' + "9" * 4301 + "}]}", (400, 409)),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":' + "[" * 65 + "]" * 65 + "}]}", (400, 409)),
    *(
        (f'{{"requests":[{{"method":"PUT","path":"/ns/a","body":1,"headers":{{"{name}":"{value}"}}}}]}}', (200, 400, 409))
        for name in (*NAMES, "\\ud800")
        for value in ("\\ud800", "\\u0000", "é\u2028", "")
    ),
    ('{"requests":[{"method":"PUT","path":"/ns/a","body":1,"headers":{"a":"x","A":"y"}}]}', (200, 400, 409)),
    ('{"requests":[{"method":"POST","path":"/_/batch","body":' * 30 + '{"requests":[]}' + "}]}" * 30, (409,)),
    ('{"requests":[{"method":"OPTIONS","path":"*"}]}', (200, 400, 409)),
]  # fmt: skip


@on_two
@pytest.mark.parametrize(("envelope", "allowed"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed(client: Checked, raw: redis.Redis, envelope: str, allowed: tuple[int, ...]) -> None:
    """What cannot be read is 400 and changes nothing; a request in it that cannot be is 409 where it is atomic; never a 5xx."""
    client.put("/ns/there", "1")
    before = contents(raw)
    answer = client.request("POST", "/_/batch", [], envelope.encode())
    assert answer.status in allowed, answer.body[:300]
    assert answer.status == 200 or contents(raw) == before
    each = envelope.replace('{"requests"', '{"atomic":false,"requests"', 1)
    if '"atomic":' not in envelope:
        answer = client.request("POST", "/_/batch", [], each.encode())
        assert answer.status in (*allowed, 200), answer.body[:300]
        if answer.status == 200:
            assert all(response["status"] < 500 for response in answer.json["responses"])


@on_few
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "BREW"])
def test_methods(client: Checked, method: str) -> None:
    """A batch is a POST."""
    answer = client.request(method, "/_/batch", [], b"{}")
    assert answer.status == 405
    assert set(answer.headers["Allow"].split(", ")) == {"POST", "OPTIONS"}


def test_media_types(client: Checked) -> None:
    """It is JSON, by the rules of a PUT."""
    body = as_body({"requests": []})
    for media_type, status in (("application/json", 200), ("text/plain", 200), ("text/html", 415)):
        assert client.request("POST", "/_/batch", [("Content-Type", media_type)], body).status == status
    assert client.request("POST", "/_/batch", [("Content-Encoding", "gzip")], body).status == 415
    assert (
        client.request(
            "POST", "/_/batch", [("Content-Type", "application/json"), ("Content-Encoding", "identity")], body
        ).status
        == 200
    )


def test_paths_of_the_batch(client: Checked) -> None:
    """Any spelling of the path, and nothing below it."""
    for target, status in (
        ("/_/b%61tch", 200),
        ("/_/batch?x=1", 200),
        ("/_/batch/", 404),
        ("/_/Batch", 404),
        ("/_%2Fbatch", 201),
    ):
        assert client.request("POST", target, [], as_body({"requests": []})).status in (
            status,
            405 if status == 404 else status,
        ), target


@on_two
@pytest.mark.parametrize("path", ["/_/batch", "/_/b%61tch?x", "http://example.org/_/batch"])
def test_a_batch_in_a_batch(client: Checked, path: str) -> None:
    """It is refused, and its body is not read."""
    for body in ({"requests": [("PUT", "/ns/a", 1)]}, {"requests": 1}, "x"):
        requests = [("PUT", "/ns/b", 1), ("POST", path, body)]
        refused = batch(client, requests)
        assert (refused.status, refused.json["index"], refused.json["problem"]["status"]) == (409, 1, 422)
        told = responses(batch(client, requests, atomic=False))
        assert told[1]["body"]["type"] == "urn:kvstore:not-in-batch"
    assert client.get("/ns/a").status == 404


# --- Large answers ------------------------------------------------------------------------------------------------------

ANSWERED = 17  # documents of a million bytes, in 16 MiB and the one that is past them
# Requests whose answers have a document of a million bytes, and that change it or not.
LARGE_ANSWERS: dict[str, tuple[Any, bool]] = {
    "GET": (("GET", "/ns/a"), False),
    "PATCH": (("PATCH", "/ns/a", INCREMENT), True),
    "touch": (("PATCH", "/ns/a?ttl=90",), False),
    "412": (("PUT", "/ns/a", 1, {"If-None-Match": "*"}), False),
    "nested PATCH": (("PATCH", "/ns/a", {"o": {"x": 1}, **INCREMENT}), True),
}  # fmt: skip


@pytest.mark.slow
@on_two
@pytest.mark.parametrize(("request_", "writes"), LARGE_ANSWERS.values(), ids=LARGE_ANSWERS)
def test_large_answers(client: Checked, raw: redis.Redis, request_: Any, writes: bool) -> None:
    """What a batch answers is bounded: what is left then is 413, and not applied."""
    client.put("/ns/a", as_body({"n": 0, "x": "x" * 1_000_000}))
    client.put("/other/a", "1")
    told = responses(batch(client, [request_] * 20 + [("GET", "/other/a"), ("PUT", "/other/b", 1)], atomic=False))
    assert [response["status"] == 413 for response in told] == [number >= ANSWERED for number in range(22)]
    assert {response["body"]["type"] for response in told[ANSWERED:]} == {"urn:kvstore:content-too-large"}
    assert client.get("/ns/a").json["n"] == (ANSWERED if writes else 0)
    assert client.get("/other/b").status == 404
    before = documents_and_indexes(raw)
    refused = batch(client, [request_] * 20)
    if refused.json["type"] == "urn:kvstore:batch-refused" and refused.json["problem"]["status"] != 412:
        assert (refused.status, refused.json["index"], refused.json["problem"]["status"]) == (409, ANSWERED, 413)
    assert documents_and_indexes(raw) == before


@on_two
def test_large_answers_of_many_documents(client: Checked) -> None:
    """The same, of documents that are read once, or before they are written."""
    for number in range(20):
        client.put(f"/ns/{number}", as_body({"x": "x" * 1_000_000}))
    for method, body in (("GET", None), ("PATCH", {"o": {"x": 1}})):
        refused = batch(client, [(method, f"/ns/{number}", body) for number in range(20)])
        assert (refused.status, refused.json["index"], refused.json["problem"]["status"]) == (409, ANSWERED, 413)
    told = responses(batch(client, [("GET", f"/ns/{number}") for number in range(20)], atomic=False))
    assert [response["status"] == 413 for response in told] == [number >= ANSWERED for number in range(20)]
    assert list(client.get("/ns/0").json) == ["x", "ttl"]


@pytest.mark.few
@pytest.mark.turns
@pytest.mark.parametrize("method", ["PATCH", "PUT", "GET", "DELETE"])
def test_an_atomic_batch_that_is_too_much_work(client: Checked, raw: redis.Redis, method: str) -> None:
    """Redis would be held up by it: 413, and nothing is changed."""
    members = {f"m{n}": n for n in range(9000)}
    for number in range(9):
        client.put(f"/ns/{number}", as_body(members))
    bodies: dict[str, list[Any]] = {"PATCH": [{"x": 1}] * 9, "PUT": [members] * 6, "GET": [None] * 9, "DELETE": [None] * 9}
    requests = [("PUT", "/ns/small", 1), *((method, f"/ns/{number}", body) for number, body in enumerate(bodies[method]))]
    before = documents_and_indexes(raw)
    refused = batch(client, requests)
    assert (refused.status, refused.json["type"]) == (413, "urn:kvstore:content-too-large")
    assert "Nothing was changed" in refused.json["detail"]
    assert '"atomic":false' in refused.json["detail"]
    assert documents_and_indexes(raw) == before
    replayed = [client.request("POST", "/_/batch", [("Idempotency-Key", "one")], batch_body(requests)) for _ in range(2)]
    assert [(answer.status, answer.body) for answer in replayed] == [(413, refused.body)] * 2


def test_a_batch_that_is_too_much_work_at_once(client: Checked) -> None:
    """Not an atomic one: Redis does something else in between, and every request is carried out once, in order."""
    client.put("/ns/large", as_body({f"m{n}": n for n in range(9000)}))
    increment = {"count": {".sv": {"increment": 1}}}
    requests = [("PATCH", "/ns/large", increment), ("POST", "/ns/log/", 1), ("GET", "/other/a")] * 6
    told = responses(batch(client, requests, atomic=False))
    assert [response["status"] for response in told] == [200, 201, 404] * 6
    assert [response["body"]["count"] for response in told[::3]] == [1, 2, 3, 4, 5, 6]


# --- At once ------------------------------------------------------------------------------------------------------------

ACCOUNTS, MONEY = 6, 100


@on_servers
@pytest.mark.parametrize("how", ["If-Match", "increment", "nested"])
def test_transfers(client: Checked, how: str) -> None:
    """Money that atomic batches carry from one document to another is neither made nor lost, and nobody sees it half-way."""
    batch(client, [("PUT", f"/ns/{n}", {"n": MONEY, "o": {"n": MONEY}}) for n in range(ACCOUNTS)])
    over = threading.Event()
    accounts = [("GET", f"/ns/{n}") for n in range(ACCOUNTS)]

    def total(told: list[Any]) -> int:
        return sum(response["body"]["o"]["n"] if how == "nested" else response["body"]["n"] for response in told)

    def watch() -> int:
        looks = 0
        while not over.is_set() or not looks:
            assert total(responses(batch(client, accounts))) == ACCOUNTS * MONEY
            looks += 1
        return looks

    def transfer(number: int) -> int:
        chance = random.Random(number)
        done = 0
        for _ in range(12):
            one, other = chance.sample(range(ACCOUNTS), 2)
            amount = chance.randrange(1, 30)
            if how == "increment":
                requests: list[Any] = [
                    ("PATCH", f"/ns/{account}", {"n": {".sv": {"increment": change}}})
                    for account, change in ((one, -amount), (other, amount))
                ]
            else:
                requests = []
                for account, change in ((one, -amount), (other, amount)):
                    got = client.get(f"/ns/{account}")
                    there = got.json["o"]["n"] if how == "nested" else got.json["n"]
                    body = {"o": {"n": there + change}} if how == "nested" else {"n": there + change, "o": {}}
                    requests.append(("PATCH" if how == "nested" else "PUT", f"/ns/{account}", body, {"If-Match": got.tag}))
            answer = batch(client, requests)
            assert answer.status in (200, 409)
            assert answer.status == 200 or answer.json["problem"]["status"] == 412
            done += answer.status == 200
        return done

    with ThreadPoolExecutor(7) as pool:
        watching = pool.submit(watch)
        try:
            done = sum(pool.map(transfer, range(6)))
        finally:
            over.set()
        assert watching.result() > 0
    assert done > 10
    assert total(responses(batch(client, accounts))) == ACCOUNTS * MONEY


@on_servers
def test_nested_patches_in_parallel_batches(client: Checked) -> None:
    """Atomic batches that patch the same documents deep down all arrive, however often they must read again."""

    def write(number: int) -> int:
        requests = [("PATCH", f"/ns/{n}", {"o": {f"m{number}": number}}) for n in range(3)]
        return batch(client, [*requests, ("PATCH", "/ns/count", INCREMENT)]).status

    assert set(at_once(write, 30)) == {200}
    for n in range(3):
        assert client.get(f"/ns/{n}").json["o"] == {f"m{number}": number for number in range(30)}
    assert client.get("/ns/count").json["n"] == 30


@on_servers
def test_batches_and_single_writes(client: Checked, raw: redis.Redis) -> None:
    """A batch that is refused while others write undoes nothing of theirs."""
    over = threading.Event()

    def refused() -> None:
        while not over.is_set():
            assert (
                batch(
                    client, [("PATCH", "/ns/a", INCREMENT), ("PUT", "/ns/b", 1), ("POST", "/ns/q", 1), ("GET", "/ns/none")]
                ).status
                == 409
            )

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(refused) for _ in range(2)]
        try:
            written = list(pool.map(lambda _: patch(client, "/ns/a", INCREMENT).json["n"], range(200)))
            posted = list(pool.map(lambda _: post(client, "/ns/q", "1").json["path"], range(50)))
        finally:
            over.set()
        for each in running:
            each.result()
    assert sorted(written) == list(range(1, 201))
    assert [item["path"] for item in listed(client, "/ns/q/")] == sorted(posted)
    assert client.get("/ns/b").status == 404
    assert {entry.op for entry in entries(raw)} == {"patch", "post"}


@on_one
def test_a_full_redis(client: Checked, raw: redis.Redis) -> None:
    """Redis at its maxmemory: 507 as the problem, nothing lost; a batch of deletes goes on."""
    prepare(client, raw)
    before = documents_and_indexes(raw)
    raw.config_set("maxmemory", "1")
    try:
        for requests in (
            [("PUT", "/ns/a", 1)],
            [("DELETE", "/ns/a"), ("GET", "/ns/none")],
            [("PUT", "/ns/a", 1), ("DELETE", "/ns/b")],
            READ_CHANGES,
        ):
            answer = batch(client, requests)
            assert answer.status in (409, 507), requests
            assert documents_and_indexes(raw) == before, requests
        assert statuses(batch(client, [("DELETE", "/ns/a"), ("DELETE", "/ns/b"), ("GET", "/ns/c")])) == [204, 204, 200]
    finally:
        raw.config_set("maxmemory", "0")
    assert json_patch(client, "/ns/c", "[]").status == 200
