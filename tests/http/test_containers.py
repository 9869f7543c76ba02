"""Containers: what they list and in which order, pages, streams, entity-tags, and deleting all that lies below."""

import contextlib
import itertools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.commands.containers import MAX_DELETED_AT_ONCE
from kvstore.core.settings import YEAR_S
from tests.support.asking import (
    as_body,
    at_once,
    batch,
    entries,
    expire,
    keys_of,
    listed,
    patch,
    post,
    scripts_run,
    stream,
    touch,
    without_ttl,
)
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few, on_one, on_served, on_servers, on_two
from tests.support.stores import contents, wait_until

# Paths in canonical spelling. Their names tell a slash from what sorts before and after it, and escapes from what they mean.
PATHS = [
    "/ns/a",
    "/ns/a/b",
    "/ns/a/c/d",
    "/ns/a!",
    "/ns/a!/x",
    "/ns/a-",
    "/ns/a.",
    "/ns/a0",
    "/ns/a0/x",
    "/ns/a%2F",
    "/ns/a%2Fb",
    "/ns/a%2Fb/c",
    "/ns/A",
    "/ns/+",
    "/ns/a+b",
    "/ns/a%20b",
    "/ns/%25",
    "/ns/%2525",
    "/ns/%252F/x",
    "/ns/%C3%A9",
    "/ns/e%CC%81",
    "/ns/%F0%9F%98%80/x",
    "/ns/&=?"[:-1] + "%3F%23",
    "/ns/~",
    "/ns/$kv",
    "/ns/%7Bx%7D/y",
    "/ns/b/c/d/e",
    "/ns/b/c",
    "/ns/z/" + "/".join("abcdefghij"),
    "/ns/[".replace("[", "%5B"),
    "/ns/1",
    "/ns/10",
    "/ns/2",
]
CONTAINERS = ["/ns/", "/ns/a/", "/ns/a/c/", "/ns/a%2Fb/", "/ns/b/", "/ns/b/c/", "/ns/z/", "/ns/none/", "/ns/a%2F/"]


def expected(paths: list[str], container: str, *, recursive: bool = False) -> list[tuple[str, str | None]]:
    """Name of each item of a container, in order, and the path of what is a document, None for a container."""
    items: dict[str, str | None] = {}
    for path in paths:
        if path.startswith(container) and path != container:
            name, slash, _ = path.removeprefix(container).partition("/")
            if recursive:
                items[path.removeprefix(container)] = path
            else:
                items[name + slash] = None if slash else path
    return sorted(items.items(), key=lambda item: item[0].encode())


def fill(client: Checked, paths: list[str]) -> None:
    """A document at each path, which is its own path."""
    for path in paths:
        assert client.put(path, json.dumps({"path": path})).status in (200, 201)


def seen(items: list[Any]) -> list[tuple[str, str | None]]:
    return [(item["name"], item["path"] if "etag" in item else None) for item in items]


def test_listing(client: Checked) -> None:
    """What lies directly below, in order of name, a container once and with its slash, a document with all it has."""
    fill(client, PATHS)
    for container in CONTAINERS:
        answer = client.get(container)
        assert (answer.status, list(answer.json)) == (200, ["items"])
        items = answer.json["items"]
        assert seen(items) == expected(PATHS, container), container
        for item in items:
            if item["name"].endswith("/"):
                assert item == {"name": item["name"], "path": container + item["name"]}
                assert client.get(item["path"]).json["items"]
                continue
            assert list(item) == ["name", "path", "etag", "ttl", "value"]
            got = client.get(item["path"])
            assert (got.tag, without_ttl(got.json)) == (item["etag"], item["value"] | {})
            assert (item["path"], item["value"]) == (container + item["name"], {"path": item["path"]})
            assert YEAR_S - 60 < item["ttl"] <= YEAR_S


@pytest.mark.parametrize("limit", [1, 3, 1000])
@pytest.mark.parametrize("container", ["/ns/", "/ns/a/"])
@on_few
def test_pages(client: Checked, container: str, limit: int) -> None:
    """Pages that are followed to the end are the whole, in both orders, direct and recursive, with values and without."""
    fill(client, PATHS)
    for recursive in ("", "&recursive"):
        whole = expected(PATHS, container, recursive=bool(recursive))
        for order in ("asc", "desc"):
            for keys in ("", "&keys"):
                items = listed(client, f"{container}?limit={limit}&order={order}{recursive}{keys}")
                assert seen(items) == (whole if order == "asc" else whole[::-1])
                assert not any("value" in item for item in items) if keys else all("value" in i for i in items if "etag" in i)
        page = client.get(f"{container}?limit={limit}{recursive}").json
        assert len(page["items"]) == min(limit, len(whole))
        assert ("next" in page) == (limit < len(whole)), "no next on the last page"


@on_few
def test_after(client: Checked) -> None:
    """`after` is any name, there or not, in any spelling; a container's speaks of all below it."""
    fill(client, PATHS)
    whole = expected(PATHS, "/ns/")
    names = [name for name, _ in whole]
    for name in [*names, "a!!", "a/", "zz", "0", "none/"]:
        for spelled in (quote(name, safe=""), quote(name, safe="/")):
            after = seen(client.get(f"/ns/?after={spelled}").json["items"])
            assert after == [item for item in whole if item[0].encode() > name.encode()], name
            before = seen(client.get(f"/ns/?after={spelled}&order=desc").json["items"])
            assert before == [item for item in whole[::-1] if item[0].encode() < name.encode()], name
    flat = expected(PATHS, "/ns/", recursive=True)
    for name in ("a/b", "a/c/d", "b/c/d", "a%2Fb/c", "a/"):
        after = seen(client.get(f"/ns/?recursive&after={quote(name, safe='')}").json["items"])
        assert after == [item for item in flat if item[0].encode() > name.encode()], name


@on_few
def test_after_as_curl_sends_it(client: Checked) -> None:
    """A query in UTF-8 that is not escaped is read as if it were, as a path is."""
    fill(client, ["/ns/%C3%A9", "/ns/%C3%A9a", "/ns/z"])
    for target in ("/ns/?after=%C3%A9", "/ns/?after=é", "/ns/?after=%25C3%25A9"):
        assert [item["name"] for item in client.get(target.encode()).json["items"]] == ["%C3%A9a", "z"], target


NEXT = [
    ("/ns/?limit=1", "/ns/?after=a%252Fb&limit=1"),
    ("/ns/?limit=1&keys&x=1", None),
    ("/%6es/?limit=1", None),
    ("/ns/?keys&limit=1&order=desc&recursive", None),
]


@on_few
@pytest.mark.parametrize(("target", "following"), NEXT)
def test_next(client: Checked, target: str, following: str | None) -> None:
    """`next` keeps what was asked, is a path that can be asked as it stands, and is the same in Link."""
    fill(client, ["/ns/a%2Fb", "/ns/c+d", "/ns/e"])
    page = client.get(target)
    assert page.json["next"].startswith("/ns/?")
    assert page.headers["Link"] == f'<{page.json["next"]}>; rel="next"'
    if following:
        assert page.json["next"] == following
    asked = page.json["next"].partition("?")[2].split("&")
    for name in ("keys", "order=desc", "recursive", "limit=1"):
        assert (name in asked) == (name in target.partition("?")[2].split("&"))
    assert len(listed(client, target)) == 3


BAD = [
    "limit=",
    "limit=0",
    "limit=-1",
    "limit=1001",
    "limit=x",
    "limit=1.0",
    "limit=99999999999999999999",
    "limit=%C2%B2",
    "order=up",
    "order=ASC",
    "after=%2F",
    "after=a%2F%2Fb",
    "after=..%2Fb",
    "after=%25zz",
    "after=%00",
    "after=%2500",
    "limit=1&limit=1",
    "after=a&after=b",
    "order=asc&order=asc",
]


def test_bad_parameters(client: Checked) -> None:
    """A parameter that cannot be is refused."""
    fill(client, ["/ns/a"])
    for query in BAD:
        assert client.get(f"/ns/?{query}").status == 400, query
        if not query.startswith("after"):
            assert client.get(f"/?list&{query}").status == 400, query
    assert client.get("/ns/?unknown=1").status == 200


@on_few
def test_default_and_largest_limit(client: Checked) -> None:
    """100 unless asked, and up to 1,000."""
    batch(client, [("PUT", f"/ns/{n:04}", n) for n in range(1000)])
    client.put("/ns/x", "1")
    assert len(client.get("/ns/").json["items"]) == 100
    assert len(client.get("/ns/?limit=1000").json["items"]) == 1000
    assert [item["value"] for item in listed(client, "/ns/?limit=999")] == [*range(1000), 1]
    assert [item["value"] for item in listed(client, "/ns/?order=desc")] == [1, *range(999, -1, -1)]


def test_an_empty_container(client: Checked) -> None:
    """A container with nothing in it is an empty list, wherever it is."""
    for target in ("/ns/", "/ns/a/b/", "/?list", "/ns/?recursive&order=desc", "/ns/?after=x"):
        answer = client.get(target)
        assert (answer.status, answer.json) == (200, {"items": []})
    client.put("/ns", "1")
    client.put("/ns/a", "1")
    assert client.get("/ns/a/").json == {"items": []}
    client.delete("/ns/a")
    assert client.get("/ns/").json == {"items": []}
    assert client.get("/ns").json == 1


@on_few
@pytest.mark.parametrize("target", ["/ns/", "/ns/?limit=1", "/ns/?keys&order=desc", "/?list"])
def test_head_and_options(client: Checked, target: str) -> None:
    """HEAD answers as GET does; a container takes neither PUT nor PATCH."""
    fill(client, PATHS[:3])
    got, head = client.get(target), client.head(target)
    for answer in (got, head):
        answer.headers.pop("date", None)
    assert (head.status, head.headers) == (got.status, got.headers)
    for method in ("PUT", "PATCH"):
        refused = client.request(method, "/ns/", [], b"{}")
        assert refused.status == 405
        assert set(refused.headers["Allow"].split(", ")) == ALLOW
    assert set(client.request("OPTIONS", "/ns/").headers["Allow"].split(", ")) == ALLOW


ALLOW = {"GET", "HEAD", "QUERY", "POST", "DELETE", "OPTIONS"}


VALUES = [
    "1.0",
    "1e2",
    '"\\u00e9é\\n"',
    "[]",
    "{}",
    "null",
    '{"b":1.50,"a":[{}]}',
    '{"$kv":1,"$value":2}',
    '{"a\\u0000":"\\u2028"}',
]


def test_values_are_to_the_letter(client: Checked, raw: redis.Redis) -> None:
    """A listing shows a document as a GET does, in a page and in a stream."""
    for number, value in enumerate(VALUES):
        client.put(f"/ns/{number}", value)
    page = client.get("/ns/").body
    for value in VALUES:
        assert b'"value":' + value.encode() + b"}" in page
    answer, _ = stream(client, "/ns/")
    assert page == b'{"items":[' + b",".join(answer.body.splitlines()) + b"]}\n" if b"\\u2028" in page else True
    patch(client, "/ns/6", '{"n":1}')
    raw.hset("kv:{ns}/6", "theirs", "bare")
    item = client.get("/ns/?after=5&limit=1").json["items"][0]
    assert item["value"] == without_ttl(client.get("/ns/6").json)


segments = st.text(
    st.characters(exclude_characters="\x7f", min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=3
)


@on_few
@settings(max_examples=30)
@given(
    st.lists(st.lists(segments | st.sampled_from(["a", "b", "a!", "a0"]), min_size=1, max_size=3), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_any_names(client: Checked, raw: redis.Redis, named: list[list[str]], limit: int) -> None:
    """Whatever documents are called, pages show all of them once and in order, and each path leads to its document."""
    raw.flushall()
    paths = ["/ns/" + "/".join(quote(segment, safe="-._~!$&'()*+,;=:@") for segment in segments) for segments in named]
    paths = sorted({path for path in paths if not {".", ".."} & set(path.split("/"))})
    fill(client, paths)
    for query, recursive in (("", False), ("&recursive", True)):
        items = listed(client, f"/ns/?limit={limit}{query}")
        assert seen(items) == expected(paths, "/ns/", recursive=recursive)
        assert (
            seen(listed(client, f"/ns/?limit={limit}&order=desc{query}")) == expected(paths, "/ns/", recursive=recursive)[::-1]
        )
        for item in items:
            if "etag" in item:
                assert client.get(item["path"]).json["path"] == item["path"]


# --- Entity-tags --------------------------------------------------------------------------------------------------------

# A write that changes what a listing of /ns/ shows.
READ_CHANGES: list[tuple[str, str, Any]] = [
    ("PUT", "/ns/new", 1),
    ("PUT", "/ns/a", {"x": 1}),
    ("PUT", "/ns/a", {"x": 1}),
    ("PUT", "/ns/deep/er", 1),
    ("PATCH", "/ns/a", {"y": 1}),
    ("PATCH", "/ns/a", {"y": {"z": 1}}),
    ("POST", "/ns/", 1),
    ("POST", "/ns/deep/er/", 1),
    ("DELETE", "/ns/a", None),
    ("DELETE", "/ns/deep/er", None),
    ("DELETE", "/ns/deep/?recursive", None),
    ("DELETE", "/ns/?recursive", None),
]
# One that does not.
NO_CHANGES: list[tuple[str, str, Any, list[tuple[str, str]]]] = [
    ("PUT", "/ns/a", 1, [("If-Match", '"1-1"')]),
    ("PUT", "/ns/a", 1, [("If-None-Match", "*")]),
    ("PATCH", "/ns/a", {"n": {".sv": {"increment": 1}}}, []),
    ("PATCH", "/ns/a?ttl=1h", None, []),
    ("DELETE", "/ns/none", None, []),
    ("DELETE", "/ns/none/?recursive", None, []),
    ("GET", "/ns/a", None, []),
    ("PUT", "/other/a", 1, []),
    ("PUT", "/ns", 1, []),
    (
        "POST",
        "/_/batch",
        {"requests": [{"method": "PUT", "path": "/ns/b", "body": 1}, {"method": "DELETE", "path": "/ns/none"}]},
        [],
    ),
]


def unchanged(client: Checked, target: str, tag: str) -> bool:
    """Whether a container still has an entity-tag; a 304 says it, a 200 says another."""
    answer = client.get(target, [("If-None-Match", tag)])
    assert answer.status in (200, 304)
    assert (answer.tag == tag) == (answer.status == 304)
    return answer.status == 304


def test_tag_of_a_container(client: Checked) -> None:
    """It changes when anything below is put, patched or deleted, and with nothing else."""
    client.put("/ns/a", '{"n":"x"}')
    tags = [client.get("/ns/").tag]
    for method, target, body in READ_CHANGES:
        assert unchanged(client, "/ns/", tags[-1])
        assert client.request(method, target, [], b"" if body is None else as_body(body)).status < 300
        assert not unchanged(client, "/ns/", tags[-1]), (method, target)
        tags.append(client.get("/ns/").tag)
    assert len(set(tags)) == len(tags), "and never comes back"
    client.put("/ns/a", '{"n":"x"}')
    tag = client.get("/ns/").tag
    for method, target, body, headers in NO_CHANGES:
        client.request(method, target, headers, b"" if body is None else as_body(body))
        assert unchanged(client, "/ns/", tag), (method, target)


def test_not_modified(client: Checked) -> None:
    """If-None-Match on a container: 304 with its tag and no body, whatever else is asked, and in lists."""
    fill(client, PATHS)
    tag = client.get("/ns/").tag
    for target in ("/ns/", "/ns/?limit=1", "/ns/?recursive&keys"):
        tag = client.get(target).tag
        for value in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            for method in ("GET", "HEAD"):
                answer = client.request(method, target, [("If-None-Match", value)])
                assert (answer.status, answer.tag) == (304, tag)
                assert (answer.headers["Cache-Control"], answer.headers["Vary"]) == ("no-cache", "Accept")
        assert client.get(target, [("If-None-Match", '"1-1"')]).status == 200
        assert client.get(target, [("If-None-Match", "x")]).status == 400


@on_few
def test_if_match_on_a_container(client: Checked) -> None:
    """Another entity-tag than it has: 412 with the one it has, before If-None-Match counts; a stream of items has none."""
    client.put("/ns/a", "1")
    client.put("/ns/b", "1")
    first = client.get("/ns/?limit=1")
    for value, status in ((first.tag, 200), ("*", 200), (f'"1-1", {first.tag}', 200), ('"1-1"', 412), (f"W/{first.tag}", 412)):
        for method in ("GET", "HEAD"):
            assert client.request(method, first.json["next"], [("If-Match", value)]).status == status, value
    assert client.get("/?list", [("If-Match", first.tag)]).status == 412, "it has none"
    assert stream(client, "/ns/", [("If-Match", '"1-1"')])[1]
    client.put("/ns/c", "1")
    answer = client.get(first.json["next"], [("If-Match", first.tag)])
    now = client.get("/ns/").tag
    assert (answer.status, answer.json["etag"]) == (412, now)
    assert client.get("/ns/", [("If-Match", first.tag), ("If-None-Match", now)]).status == 412
    assert client.get("/ns/", [("If-Match", "x")]).status == 400


def test_tag_of_an_empty_container(client: Checked) -> None:
    """An empty container has one too, and another one when it is filled and emptied again."""
    first = client.get("/ns/").tag
    assert unchanged(client, "/ns/", first)
    client.put("/ns/a", "1")
    filled = client.get("/ns/").tag
    client.delete("/ns/a")
    assert len({first, filled, client.get("/ns/").tag}) == 3


@on_few
@pytest.mark.parametrize(("method", "status"), [("PUT", 201), ("POST", 201), ("PATCH", 201)])
def test_a_root_index_that_cannot_be_written(client: Checked, raw: redis.Redis, method: str, status: int) -> None:
    """Another client's key is in its way: what was written is written, and the answer says so."""
    raw.set("kv:{/}!names", "theirs")
    answer = client.request(method, "/new/" if method == "POST" else "/new/a", body=b'{"a":1}')
    assert answer.status == status
    assert len(client.get("/new/").json["items"]) == 1
    assert raw.get("kv:{/}!names") == b"theirs"


@on_two
def test_tag_changes_within_2_s_of_an_expiry(client: Checked, raw: redis.Redis) -> None:
    """Nobody asks for the document, and still the container's tag tells that it is gone."""
    client.put("/ns/b", "1")
    tag = client.put("/ns/deep/a?ttl=1", "1").tag  # the container's as well
    wait_until(lambda: not raw.exists("kv:{ns}/deep/a"), 30)
    wait_until(lambda: not unchanged(client, "/ns/", tag), 2)
    assert seen(client.get("/ns/").json["items"]) == [("b", "/ns/b")]


@on_two
def test_tag_changes_though_the_index_is_early(client: Checked, raw: redis.Redis) -> None:
    """Also where many documents have been given more time since, of which the index does not know yet."""
    batch(client, [("PUT", f"/ns/{n:04}", n) for n in range(1000)])
    client.put("/ns/z", "1")
    raw.zadd(keys_of("ns").expiry, {f"{n:04}": 1 for n in range(1000)})
    expire(raw, "/ns/z")
    tag = f'"{entries(raw)[-1].id}"'
    assert not unchanged(client, "/ns/?limit=1", tag)
    assert unchanged(client, "/ns/?limit=1", client.get("/ns/").tag)


# --- What has expired, and what others did ------------------------------------------------------------------------------


@on_few
def test_expired_is_never_listed(client: Checked, raw: redis.Redis) -> None:
    """What is over is in no page, no stream, no count, in no order, and its container goes with the last below it."""
    paths = [f"/ns/{n}" for n in range(30)] + [f"/ns/deep/{n}/x" for n in range(10)]
    fill(client, paths)
    gone = [path for number, path in enumerate(paths) if number % 3 and path != "/ns/deep/1/x"]
    for path in gone:
        expire(raw, path)
    left = [path for path in paths if path not in gone]
    for query in ("", "&order=desc", "&recursive", "&keys"):
        items = seen(listed(client, f"/ns/?limit=4{query}"))
        whole = expected(left, "/ns/", recursive="recursive" in query)
        assert items == (whole[::-1] if "desc" in query else whole)
    assert sorted(entry.name for entry in entries(raw) if entry.op == "expire") == sorted(
        path.removeprefix("/ns/") for path in gone
    )
    assert raw.zcard(keys_of("ns").names) == len(left) == raw.zcard(keys_of("ns").expiry)


@on_two
def test_many_expire_at_once(client: Checked, raw: redis.Redis) -> None:
    """Also where thousands end in one moment."""
    for start in (0, 1000):
        batch(client, [("PUT", f"/ns/{n:04}", n) for n in range(start, start + 1000)])
    with raw.pipeline(transaction=False) as pipe:
        for n in range(2000):
            if n % 10:
                pipe.pexpireat(f"kv:{{ns}}/{n:04}", 1)
                pipe.zadd(keys_of("ns").expiry, {f"{n:04}": 1})
        pipe.execute()
    assert [item["value"] for item in listed(client, "/ns/")] == list(range(0, 2000, 10))
    assert len([entry for entry in entries(raw) if entry.op == "expire"]) >= 900


@on_few
def test_deleted_by_another_client(client: Checked, raw: redis.Redis) -> None:
    """What redis-cli deleted is not listed; of what it made only what we have written is."""
    fill(client, ["/ns/a", "/ns/b", "/ns/c/d"])
    raw.delete("kv:{ns}/a", "kv:{ns}/c/d")
    raw.hset("kv:{ns}/theirs", "n", "1")
    raw.set("kv:{ns}/string", "x")
    for _ in range(2):
        assert seen(listed(client, "/ns/?limit=1")) == [("b", "/ns/b")]
    assert client.request("DELETE", "/ns/?recursive").json == {"deleted": 1}
    assert raw.exists("kv:{ns}/theirs", "kv:{ns}/string") == 2


@on_few
def test_another_type_in_the_index(client: Checked, raw: redis.Redis) -> None:
    """A document that another client replaced by what is no hash is not listed, and the others are."""
    fill(client, ["/ns/a", "/ns/b", "/ns/c"])
    raw.delete("kv:{ns}/b")
    raw.set("kv:{ns}/b", "x")
    for query in ("", "?order=desc", "?keys", "?recursive"):
        assert sorted(name for name, _ in seen(client.get(f"/ns/{query}").json["items"])) == ["a", "c"]
    raw.flushall()
    raw.set(keys_of("ns").names, "x")
    assert client.get("/ns/").status == 409
    assert client.delete("/ns/?recursive").status == 409
    assert raw.keys() == [keys_of("ns").names.encode()]


def test_a_foreign_document_without_an_end(client: Checked, raw: redis.Redis) -> None:
    """A document that does not expire has no `ttl`, in a listing too."""
    raw.hset("kv:{ns}/a", "n", "42")
    patch(client, "/ns/a", '{"m":1}')
    [item] = client.get("/ns/").json["items"]
    assert (item["value"], "ttl" in item) == ({"n": 42, "m": 1}, False)


# --- The root -----------------------------------------------------------------------------------------------------------


def test_the_root(client: Checked) -> None:
    """`/?list` has the documents of one segment, and the namespaces as containers; `/` is a document."""
    paths = ["/a", "/a/b", "/b/c/d", "/z", "/a%2Fb", "/a%2Fb/c", "/%C3%A9/x", "/a0", "/a!"]
    fill(client, [*paths, "/"])
    post(client, "/", "{}")
    names = [name for name, _ in seen(listed(client, "/?list&limit=2")) if not name[:1].isdigit()]
    assert names == [name for name, _ in expected(paths, "/")]
    backwards = [name for name, _ in seen(listed(client, "/?list&limit=2&order=desc")) if not name[:1].isdigit()]
    assert backwards == names[::-1]
    items = client.get("/?list").json["items"]
    assert {"name": "b/", "path": "/b/"} in items
    assert client.get("/").json["path"] == "/"
    assert (
        "list=" not in client.get("/?list&limit=1").json["next"]
        or client.get(client.get("/?list&limit=1").json["next"]).json["items"]
    )


@on_few
def test_namespaces_vanish(client: Checked, raw: redis.Redis) -> None:
    """A namespace in which nothing is left is not listed, however it was emptied, and is again when something comes."""

    def namespaces() -> list[str]:
        return [item["name"] for item in listed(client, "/?list&limit=1")]

    fill(client, [f"/{name}/x" for name in "abcdef"])
    assert namespaces() == ["a/", "b/", "c/", "d/", "e/", "f/"]
    client.delete("/a/x")
    client.delete("/c/?recursive")
    expire(raw, "/d/x")
    expire(raw, "/f/x")
    assert namespaces() == ["b/", "e/"]
    client.put("/a/x", "1")
    patch(client, "/c/y", '{"n":1}')
    post(client, "/d", "1")
    batch(client, [("PUT", "/f/x", 1)])
    assert namespaces() == ["a/", "b/", "c/", "d/", "e/", "f/"]


WAYS: list[tuple[str, str, Any]] = [
    ("PUT", "/new/a", 1),
    ("PATCH", "/new/a", {"n": 1}),
    ("PATCH", "/new/a", {"n": {"m": 1}}),
    ("POST", "/new", 1),
    ("POST", "/new/deep/er/", 1),
    ("POST", "/_/batch", {"requests": [{"method": "POST", "path": "/new", "body": 1}]}),
    ("POST", "/_/batch", {"requests": [{"method": "PATCH", "path": "/new/a", "body": {"n": {"m": 1}}}]}),
    ("POST", "/_/batch", {"atomic": False, "requests": [
        {"method": "PUT", "path": "/other/a", "body": 1}, {"method": "PUT", "path": "/new/a", "body": 1}]}),
    ("PUT", "/new/a?ttl=100", 1),
]  # fmt: skip


def test_every_write_makes_a_namespace_known(client: Checked, raw: redis.Redis) -> None:
    """However the first document of a namespace comes, with an Idempotency-Key too, the root lists it."""
    for method, target, body in WAYS:
        for headers in ([], [("Idempotency-Key", "x")]):
            if b'"atomic": false' in as_body(body) and headers:
                continue
            raw.flushall()
            assert client.request(method, target, headers, as_body(body)).status in (200, 201)
            assert "new/" in [item["name"] for item in client.get("/?list").json["items"]], (method, target, headers)


def test_a_touch_keeps_the_namespace_known(client: Checked, raw: redis.Redis) -> None:
    """The root's index knows of a namespace at least as long as there is something in it."""
    client.put("/new/a?ttl=10", "1")
    touch(client, "/new/a?ttl=300d")
    assert (raw.zscore(keys_of("/").expiry, "new/") or 0) > raw.pexpiretime("kv:{new}/a")
    for key in (keys_of("/").names, keys_of("/").expiry):
        assert raw.pexpiretime(key) > raw.pexpiretime("kv:{new}/a")


# --- Streams ------------------------------------------------------------------------------------------------------------


@on_few
@pytest.mark.parametrize(
    "query", ["", "?order=desc", "?recursive", "?keys", "?recursive&order=desc&keys", "?after=a0", "?limit=1"]
)
def test_ndjson_is_all_pages(client: Checked, query: str) -> None:
    """An item a line, the items of all pages in their order; only the JSON of that URL has an entity-tag."""
    fill(client, PATHS)
    answer, items = stream(client, f"/ns/{query}")
    pages = listed(client, f"/ns/{query}")
    assert [{**item, "ttl": 0} for item in items] == [{**item, "ttl": 0} for item in pages]
    assert "ETag" not in answer.headers
    assert answer.headers["Vary"] == client.get(f"/ns/{query}").headers["Vary"] == "Accept"


# What a client accepts, and whether it is sent items a line.
ACCEPTED = [
    ("application/x-ndjson", True),
    ("Application/X-NDJSON; charset=utf-8", True),
    ("text/html, application/x-ndjson;q=0.5, */*;q=0.1", True),
    ("application/x-ndjson, application/json", True),
    ("application/json;q=0.9, application/x-ndjson", True),
    ("application/json, application/x-ndjson;q=0.9", False),
    ("application/x-ndjson;q=0", False),
    ("application/x-ndjson; q=0.000", False),
    ("application/x-ndjson;q=nan", False),
    ("application/x-ndjson+json", False),
    ("application/*", False),
    ("*/*", False),
    ("", False),
    (", ;,=;", False),
    ("application/x-ndjson" + ";x=y" * 1000, True),
]


@on_few
@pytest.mark.parametrize(("accept", "is_wanted"), ACCEPTED, ids=range(len(ACCEPTED)))
def test_who_is_sent_ndjson(client: Checked, accept: str, is_wanted: bool) -> None:
    """Who asks for it by its name, and would not rather have JSON (RFC 9110 section 12.5.1)."""
    answer = client.adapter.request("HEAD", "/ns/", [("Accept", accept)])
    assert (answer.headers["Content-Type"] == "application/x-ndjson") == is_wanted


@on_few
def test_ndjson_of_many(client: Checked) -> None:
    """More than fits a page of any kind; and of nothing, nothing."""
    for start in (0, 1000):
        batch(client, [("PUT", f"/ns/{n:04}", {"n": n}) for n in range(start, start + 1000)])
    _, items = stream(client, "/ns/")
    assert [item["value"]["n"] for item in items] == list(range(2000))
    assert stream(client, "/none/")[1] == []
    assert [item["name"] for item in stream(client, "/?list")[1]] == ["ns/"]
    head = client.adapter.request("HEAD", "/ns/", [("Accept", "application/x-ndjson")])
    assert (head.status, head.body, head.headers["Content-Type"]) == (200, b"", "application/x-ndjson")


@on_served
def test_ndjson_and_the_next_request(client: Checked) -> None:
    """A stream is in chunks and ends well: the connection goes on, and HTTP/1.0 gets it without chunks."""
    batch(client, [("PUT", f"/ns/{n:04}", {"n": n}) for n in range(1000)])
    with client.served.connect() as connection:
        stream_of = b"GET /ns/ HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"
        last = b"GET /ns/0000 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(stream_of + stream_of + last)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert received.count(b"Transfer-Encoding: chunked\r\n") == 2
    assert received.count(b'"value":{"n":999}') == 2
    with client.served.connect() as connection:
        connection.sendall(b"GET /ns/ HTTP/1.0\r\nAccept: application/x-ndjson\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert [json.loads(line)["value"]["n"] for line in body.splitlines()] == list(range(1000))


@on_served
def test_a_reader_that_stops(client: Checked) -> None:
    """A stream that is not read is not sent, and holds nobody up; it goes on when it is read."""
    large = "x" * 20_000
    for start in range(0, 400, 40):
        batch(client, [("PUT", f"/ns/{n:04}", {"n": large}) for n in range(start, start + 40)])
    with client.served.connect() as connection:
        connection.sendall(b"GET /ns/ HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\nConnection: close\r\n\r\n")
        time.sleep(0.3)
        assert client.get("/ns/0001").status == 200
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.count(b'"value":{"n":"xxx') == 400
    assert received.endswith(b"0\r\n\r\n")


@on_served
def test_a_stream_that_fails(client: Checked, raw: redis.Redis) -> None:
    """Half of a stream is not taken for the whole: where it cannot go on, the connection ends without the last chunk."""
    large = "x" * 20_000
    for start in range(0, 1000, 40):
        batch(client, [("PUT", f"/ns/{n:04}", {"n": large}) for n in range(start, start + 40)])
    with client.served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.sendall(b"GET /ns/ HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n")
        received = connection.recv(100)
        time.sleep(0.3)
        raw.delete(keys_of("ns").names)
        raw.set(keys_of("ns").names, "x")
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(65536):
                received += more
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert 0 < received.count(b'"value":{"n":"xxx') < 1000
    assert not received.endswith(b"0\r\n\r\n")
    assert client.get("/ns/0001").status == 200


# --- Pages while others write -------------------------------------------------------------------------------------------


@on_servers
@pytest.mark.parametrize("query", ["limit=7", "limit=7&order=desc", "limit=50&recursive", "ndjson"])
def test_complete_while_others_write(client: Checked, query: str) -> None:
    """What does not change meanwhile is listed once, and in order, whatever comes and goes between it."""
    steady = [f"/ns/{n:03}" for n in range(0, 300, 3)]
    batch(client, [("PUT", path, {"path": path}) for path in steady])
    over = threading.Event()

    def disturb(offset: int) -> None:
        while not over.is_set():
            for n in range(offset, 300, 30):
                client.put(f"/ns/{n:03}", "1")
                client.put(f"/ns/{n:03}/deep", "1")
            for n in range(offset, 300, 30):
                client.delete(f"/ns/{n:03}")
                client.delete(f"/ns/{n:03}/deep")

    with ThreadPoolExecutor(4) as pool:
        disturbing = [pool.submit(disturb, offset) for offset in (1, 2, 4)]
        try:
            for _ in range(4):
                items = stream(client, "/ns/")[1] if query == "ndjson" else listed(client, f"/ns/?{query}")
                names = [item["name"] for item in items]
                assert len(set(names)) == len(names)
                assert names == sorted(names, reverse="desc" in query)
                there = [item["path"] for item in items if item["path"] in steady]
                assert there == (steady[::-1] if "desc" in query else steady)
        finally:
            over.set()
        for each in disturbing:
            each.result()


@on_few
def test_pages_of_large_documents(client: Checked) -> None:
    """A page is bounded in bytes as well, has at least one document, and nothing is left out."""
    large = "x" * 700_000
    for n in range(12):
        client.put(f"/ns/{n:02}", json.dumps({"n": n, "x": large}))
    pages, target = [], "/ns/?limit=1000"
    while target:
        page = client.get(target)
        assert len(page.body) < 6_000_000
        pages.append([item["value"]["n"] for item in page.json["items"]])
        target = page.json.get("next", "")
    assert len(pages) > 1
    assert all(pages)
    assert [n for page in pages for n in page] == list(range(12))
    assert len(client.get("/ns/?keys&limit=1000").json["items"]) == 12
    assert [item["value"]["n"] for item in stream(client, "/ns/?order=desc")[1]] == list(range(11, -1, -1))


# --- Recursive DELETE ---------------------------------------------------------------------------------------------------


@on_few
def test_recursive_delete(client: Checked, raw: redis.Redis) -> None:
    """All below a container and nothing else, each one a change of the log; what was deleted is counted."""
    for container in CONTAINERS:
        raw.flushall()
        fill(client, [*PATHS, "/ns", "/other/a/b"])
        below = [path for path in PATHS if path.startswith(container)]
        others = {path: client.get(path).tag for path in [*PATHS, "/ns", "/other/a/b"] if path not in below}
        answer = client.delete(f"{container}?recursive")
        assert (answer.status, answer.json) == (200, {"deleted": len(below)})
        assert client.get(container).json == {"items": []}
        assert [client.get(path).status for path in below] == [404] * len(below)
        assert {path: client.get(path).tag for path in others} == others
        deleted = [entry.name for entry in entries(raw) if entry.op == "delete"]
        assert sorted(deleted) == sorted(path.removeprefix("/ns/") for path in below)
        assert client.delete(f"{container}?recursive").json == {"deleted": 0}


# What is refused: target, headers.
REFUSED: list[tuple[str, list[tuple[str, str]]]] = [
    ("/ns/", []),
    ("/ns/?recursiv", []),
    ("/?recursive", []),
    ("/?list&recursive", []),
    ("/ns/?recursive", [("If-Match", "*")]),
    ("/ns/?recursive", [("If-None-Match", '"1-1"')]),
    ("/ns/?recursive&recursive", []),
    ("/ns/a?recursive", []),
]


def test_recursive_delete_refused(client: Checked, raw: redis.Redis) -> None:
    """Without the flag, on the root, and with a precondition: 400, nothing deleted."""
    fill(client, [*PATHS, "/", "/a"])
    before = contents(raw)
    for target, headers in REFUSED:
        assert client.delete(target, headers).status == 400, target
    assert contents(raw) == before
    assert client.delete("/").status == 204, "the root document"
    assert client.get("/a").status == 200


@on_few
def test_recursive_delete_of_what_is_half_gone(client: Checked, raw: redis.Redis) -> None:
    """What had expired, or another client had taken, is not counted as deleted."""
    fill(client, ["/ns/a", "/ns/b", "/ns/c", "/ns/d"])
    expire(raw, "/ns/a")
    raw.delete("kv:{ns}/b")
    raw.delete("kv:{ns}/c")
    raw.set("kv:{ns}/c", "x")
    assert client.delete("/ns/?recursive").json == {"deleted": 1}
    assert raw.get("kv:{ns}/c") == b"x"
    assert raw.zcard(keys_of("ns").names) == 0 == raw.zcard(keys_of("ns").expiry)
    assert sorted((entry.op, entry.name) for entry in entries(raw) if entry.op != "put") == [
        ("delete", "d"),
        ("expire", "a"),
        ("expire", "b"),
    ]


MANY = 10_000


@on_two
def test_recursive_delete_of_many(client: Checked, raw: redis.Redis) -> None:
    """10,000 documents, in pieces: other requests go on meanwhile, and no other document is touched."""
    for start in range(0, MANY, 1000):
        batch(client, [("PUT", f"/ns/q/{n}", n) for n in range(start, start + 1000)])
    fill(client, ["/ns/p", "/ns/q", "/ns/q0", "/ns/r/x"])
    over = threading.Event()

    def ask() -> int:
        for asked in itertools.count(1):
            assert client.get("/ns/p").status == 200
            assert client.put("/other/a", "1").status in (200, 201)
            if over.is_set():
                return asked
        raise AssertionError("unreachable")

    raw.config_resetstat()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        answer = client.delete("/ns/q/?recursive")
        over.set()
        asked = asking.result()
    assert answer.json == {"deleted": MANY}
    assert scripts_run(raw) >= MANY // MAX_DELETED_AT_ONCE + 2 * asked
    assert [name for name, _ in seen(listed(client, "/ns/"))] == ["p", "q", "q0", "r/"]
    assert len(set(raw.scan_iter("kv:{ns}/*", count=10_000))) == 4
    for key in (keys_of("ns").log, keys_of("ns").names, keys_of("ns").expiry):
        assert raw.pttl(key) > 0


@on_servers
def test_parallel_recursive_deletes(client: Checked) -> None:
    """Every document is counted by one of them."""
    for start in range(0, 3000, 1000):
        batch(client, [("PUT", f"/ns/q/{n}", n) for n in range(start, start + 1000)])
    answers = at_once(lambda n: client.delete("/ns/q/?recursive" if n % 2 else "/ns/?recursive"), 6)
    assert sum(answer.json["deleted"] for answer in answers) == 3000


@pytest.mark.slow
@on_one
def test_a_delete_that_takes_long(client: Checked, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long all of it takes: Redis answers each piece promptly, and requests beside it are answered."""
    from kvstore.commands import containers
    from kvstore.stores import redis_clients

    beside = opened("asgi", "valkey")
    for start in range(0, MANY, 1000):
        batch(beside, [("PUT", f"/ns/q/{n}", n) for n in range(start, start + 1000)])
    monkeypatch.setattr(containers, "MAX_DELETED_AT_ONCE", 1)
    monkeypatch.setattr(redis_clients, "PIPELINED", replace(redis_clients.PIPELINED, answer_s=1.0))
    statuses: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        deleting = pool.submit(beside.delete, "/ns/q/?recursive")
        while not deleting.done():
            statuses.append(beside.get("/ns/none").status)
        answer: Answer = deleting.result()
    assert set(statuses) == {404}
    assert (answer.status, answer.json) == (200, {"deleted": MANY})
