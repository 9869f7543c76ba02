"""What is exported is imported: the same documents, byte by byte, on every adapter and store, and straight to Redis."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core import json_text
from kvstore.core.paths import parse_path
from kvstore.core.settings import Settings
from kvstore.http.messages import Request, Response
from kvstore.transfer import exchange as exchanges
from kvstore.transfer import importing, splitting
from kvstore.transfer.exchange import Exchange, TransferFailed, patient, straight_to
from kvstore.transfer.exporting import export
from kvstore.transfer.importing import as_one, load
from kvstore.transfer.lines import MAX_LINE_BYTES, Entry, parse_lines
from kvstore.transfer.splitting import NotSplit, split
from tests.support.asking import Left
from tests.support.clients import Checked
from tests.support.json_texts import texts
from tests.support.lanes import on_one, on_two
from tests.support.stores import Running
from tests.support.tokens import SECRET

SLACK_S = 30  # that a test may take


def through(client: Checked) -> Exchange:
    """What speaks HTTP to a lane."""

    def exchange(request: Request) -> Response:
        answer = client.request(request.method, request.target, list(request.headers.items()), request.body)
        return Response(answer.status, tuple(answer.headers.items()), answer.body)

    return exchange


def exported(exchange: Exchange, path: str = "/") -> list[bytes]:
    """The lines of an export."""
    return [line for lines in export(exchange, parse_path(path.encode())) for line in lines]


def imported(exchange: Exchange, lines: list[bytes]) -> tuple[int, list[tuple[str, str]]]:
    """How many lines an import has stored, and what it has refused."""
    refused: list[tuple[str, str]] = []
    stored = sum(load(as_one(exchange), parse_lines(lines, lambda *bad: refused.append(bad)), lambda *bad: refused.append(bad)))
    return stored, refused


def without_ttls(lines: list[bytes]) -> list[tuple[str, str]]:
    """Path and JSON text of each line."""
    members = [json_text.split_object(line, MAX_LINE_BYTES) for line in lines]
    return [(each["path"], each["value"]) for each in members]


def line(path: str, value: str, ttl_s: int | None = None) -> bytes:
    ttl = "" if ttl_s is None else f',"ttl":{ttl_s}'
    return f'{{"path":{json.dumps(path)},"value":{value}{ttl}}}\n'.encode()


# --- There and back -----------------------------------------------------------------------------------------------------

segments = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=5).filter(
    lambda text: text not in (".", "..", "_")
)
paths = st.lists(segments, max_size=4).map(
    lambda parts: (
        parse_path(("/" + "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)).encode()).text
        if all("?" not in part for part in parts)
        else "/"
    )
)
documents = st.dictionaries(paths, st.tuples(texts.map(json_text.compact).map(bytes.decode), st.integers(1000, 100_000)))


@settings(max_examples=12)
@given(documents=documents)
def test_there_and_back(client: Checked, store: Running, documents: dict[str, tuple[str, int]]) -> None:
    """In over HTTP, out of Redis, into Redis, out over HTTP: each document, its text and its TTL are those at first."""
    over_http, to_redis = through(client), straight_to(store.open(), Settings(redis_url=store.url))
    store.redis.flushall()
    given_lines = [line(path, text, ttl_s) for path, (text, ttl_s) in documents.items()]
    assert imported(over_http, given_lines) == (len(documents), [])
    first = exported(to_redis)
    assert sorted(without_ttls(first)) == sorted(without_ttls(given_lines))
    store.redis.flushall()
    assert imported(to_redis, first) == (len(documents), [])
    second = exported(over_http)
    assert without_ttls(second) == without_ttls(first)
    for each in second:
        found = json.loads(each)
        assert abs(documents[found["path"]][1] - found["ttl"]) <= SLACK_S


@pytest.mark.slow
@on_two
def test_many_pages(client: Checked, store: Running) -> None:
    """More documents than a page has, in more namespaces than one, and in more containers than the listing of one page."""
    lines = [line(f"/many/{each:05}", str(each), 5000) for each in range(2345)]
    lines += [line(f"/{each}/x", "1", 5000) for each in range(1100)] + [line(f"/deep/{each}/y", "1") for each in range(3)]
    assert imported(through(client), lines) == (len(lines), [])
    assert sorted(without_ttls(exported(through(client)))) == sorted(without_ttls(lines))
    assert len(exported(through(client), "/many/")) == 2345
    assert without_ttls(exported(through(client), "/many/00007")) == [('"/many/00007"', "7")]
    assert without_ttls(exported(through(client), "/deep/1/")) == [('"/deep/1/y"', "1")]
    with pytest.raises(TransferFailed, match=r"no document is stored at /many; add a slash"):
        exported(through(client), "/many")


@on_one
def test_what_another_client_wrote(client: Checked, raw: redis.Redis) -> None:
    """A document without a TTL is exported without one, and gets the default TTL where it is imported."""
    assert client.request("PUT", "/a/b", (), b'{"x":1}').status == 201
    raw.persist("kv:{a}/b")
    assert exported(through(client)) == [b'{"path":"/a/b","value":{"x":1}}\n']
    assert exported(through(client), "/a/b") == [b'{"path":"/a/b","value":{"x":1}}\n']
    assert imported(through(client), exported(through(client))) == (1, [])
    assert client.request("GET", "/a/b").json == {"x": 1, "ttl": Left(31_536_000)}


@on_one
def test_a_listing_is_imported(client: Checked) -> None:
    """The lines of NDJSON that the service itself writes are its items; those of containers are none of ours."""
    client.request("PUT", "/a/b", (), b'{"x":1}')
    client.request("PUT", "/a/c/d", (), b"2")
    lines = [json.dumps(item).encode() for item in client.request("GET", "/a/").json["items"]]
    client.request("DELETE", "/a/?recursive")
    stored, [(where, _)] = imported(through(client), lines)
    assert (stored, where) == (1, "line 2")
    assert client.request("GET", "/a/b").status == 200


# --- Bad lines ----------------------------------------------------------------------------------------------------------

LARGE = '"%s"' % ("x" * (json_text.MAX_BYTES - 2))
# A line, and what is said of it; "" where it is stored.
LINES: list[tuple[bytes, str]] = [
    (line("/a/1", "1"), ""),
    (line("/a/large", LARGE, 900), ""),
    (line("/a/members", "{%s}" % ",".join(f'"{each}":0' for each in range(10_000)), 900), ""),
    (line("/a/2", '{"ttl":5}', 900), ""),
    (line("/a/2", "{ }", 900), ""),
    (line("/a?b", "1", 900), ""),
    (b'{"value":1,"etag":"x","path":"/a/3","ttl":null}', ""),
    (b"\n", ""),
    (b"  \r\n", ""),
    (line("/a/large", LARGE[:-1] + 'x"'), "1,048,576 bytes"),
    (line("/a/large", LARGE[:-1] + "x" * 20_000 + '"'), "larger than 1,064,960 bytes"),
    (line("/a/members", "{%s}" % ",".join(f'"{each}":0' for each in range(10_001)), 900), "more than 10,000 members"),
    (b"{oops\n", "not JSON: column 2"),
    (b'{"path":"/a/1","value":1}}\n', "not JSON: column 26: unexpected text"),
    (b'{"path":"/a/1","value":1', "not JSON"),
    (b"\xff\n", "the line is not UTF-8"),
    (b"\xef\xbb\xbf{}\n", "byte order mark"),
    (b"[1]\n", "a JSON object is required"),
    (b'{"path":"/a/1"}\n', "the TTL may be left out"),
    (b'{"value":1}\n', "the TTL may be left out"),
    (b'{"path":7,"value":1}\n', "must be a string"),
    (b'{"path":"/a/1","path":"/a/2","value":1}\n', "occurs twice"),
    (b'{"path":"/a/1","value":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested more than 64"),
    (line("/a/1", "NaN"), "NaN is not JSON"),
    (line("/a/1", '{"x":1,"x":2}'), "occurs twice"),
    (line("/a/1", '"\\ud800"'), "surrogate"),
    (line("/a/1", "[" * 65 + "]" * 65), "64 levels"),
    (line("/a/1", '{"ttl":"soon"}'), "ttl"),
    (line("/a/1", "1", 0), "at least 1"),
    (b'{"path":"/a/1","value":1,"ttl":"5m"}', "whole number of seconds"),
    (line("/a/1", "1", 10**9), "from 1 to 31536000"),
    (line("/a/", "1"), "is a container"),
    (line("a", "1"), "must start with a slash"),
    (line("/a//b", "1"), "empty"),
    (line("/_/health", "1"), "belong to the service"),
    (line("/" + "x" * 1024, "1"), "longer than 1,024 bytes"),
    (b'{"path":"/\\ud800","value":1}', "not UTF-8"),
]


@on_two
def test_bad_lines_are_named_and_the_rest_is_stored(client: Checked) -> None:
    """By their numbers, whatever is wrong with them, and wherever that is found out."""
    lines = [each for each, _ in LINES]
    stored, refused = imported(through(client), [*lines, line("/a/last", "1")])
    found = dict(refused)
    assert len(found) == len(refused)
    for number, (text, expected) in enumerate(LINES, 1):
        assert expected in found.pop(f"line {number}", ""), text[:80]
        assert not expected or f"line {number}" not in found
    assert found == {}
    assert stored == sum(not why and bool(text.strip()) for text, why in LINES) + 1
    assert client.request("GET", "/a/last").status == 200


def test_a_line_that_is_too_long_for_memory_is_refused() -> None:
    """It is given as None, and counted."""
    refused: list[tuple[str, str]] = []
    entries = list(parse_lines([None, line("/a/1", "1")], lambda *bad: refused.append(bad)))
    assert [entry.where for entry in entries] == ["line 2"]
    assert [where for where, _ in refused] == ["line 1"]


# --- Rules and rates ----------------------------------------------------------------------------------------------------


@on_two
def test_without_a_token(client_with: Callable[..., Checked]) -> None:
    """Who may not read or write is told so, and nothing else happens."""
    exchange = through(client_with(KVSTORE_SECRET=SECRET))
    with pytest.raises(TransferFailed, match="401"):
        exported(exchange)
    with pytest.raises(TransferFailed, match=r"line 1: .*token"):
        imported(exchange, [line("/a/1", "1"), line("/a/2", "1")])


@on_one
@pytest.mark.slow
def test_a_rate_is_waited_for(client_with: Callable[..., Checked], monkeypatch: pytest.MonkeyPatch) -> None:
    """The import goes on when the window ends."""
    monkeypatch.setattr(importing, "BATCH_REQUESTS", 100)  # which take far less than the second in which they are counted
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    exchange = patient(through(client_with(KVSTORE_RATE="100/s")), pause)
    assert imported(exchange, [line(f"/a/{each}", "1") for each in range(300)]) == (300, [])
    assert pauses
    assert set(pauses) == {1.0}


def test_a_rate_that_others_use_up() -> None:
    """It is not waited for again and again."""
    refusal = Response(429, (("Retry-After", "30"),), b'{"detail":"too many requests"}')
    pauses: list[float] = []
    with pytest.raises(TransferFailed, match="again and again: too many requests"):
        patient(lambda _: refusal, pauses.append)(Request("GET", b"/a", {}))
    assert set(pauses) == {30.0}
    assert len(pauses) == exchanges.MAX_REFUSALS - 1


class Clock:
    """A clock that goes on when somebody pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(exchanges, "monotonic", lambda: self.now)

    def pause(self, seconds: float) -> None:
        self.now += seconds


OK = Response(200, (), b"{}")
BUSY = Response(503, (("Retry-After", "2"),), b'{"detail":"Redis is away"}')
NOT_NOW = Response(200, (), b'{"responses":[{"status":503,"headers":{},"body":{"detail":"Redis is away"}}]}')
# What answers at first, and for how long, in s; whether the request succeeds in the end.
TROUBLE: list[tuple[Response | Exception, float, bool]] = [
    (BUSY, 50, True),
    (BUSY, 70, False),
    (NOT_NOW, 50, True),
    (NOT_NOW, 70, False),
    (ConnectionRefusedError("refused"), 50, True),
    (ConnectionResetError("reset"), 70, False),
]


@pytest.mark.parametrize(("first", "lasting_s", "succeeds"), TROUBLE)
def test_patience(monkeypatch: pytest.MonkeyPatch, first: Response | Exception, lasting_s: float, succeeds: bool) -> None:
    """Trouble that passes is waited out, for a minute."""
    clock = Clock(monkeypatch)

    def exchange(_: Request) -> Response:
        if clock.now >= lasting_s:
            return OK
        if isinstance(first, Exception):
            raise first
        return first

    ask = patient(as_one(exchange), clock.pause)
    if succeeds:
        assert ask(Request("POST", b"/_/batch", {})) == OK
    else:
        with pytest.raises(TransferFailed, match=r"for 60 s: .*(Redis is away|reset)"):
            ask(Request("POST", b"/_/batch", {}))
        assert clock.now < 70


def test_what_was_not_stored_is_sent_again() -> None:
    """And only that."""
    sent: list[Any] = []

    def exchange(request: Request) -> Response:
        sent.append([each["path"] for each in json.loads(request.body)["requests"]])
        answers = [{"status": 503 if each == "/a/2" and len(sent) == 1 else 201} for each in sent[-1]]
        return Response(200, (), json.dumps({"responses": answers}).encode())

    assert imported(exchange, [line(f"/a/{each}", "1") for each in range(4)]) == (4, [])
    assert sent == [["/a/0", "/a/1", "/a/2", "/a/3"], ["/a/2"]]


# --- Splitting ----------------------------------------------------------------------------------------------------------


def reader(text: str, size: int) -> Callable[[int], str]:
    """What reads a text, at most `size` characters at a time."""
    parts = [text[at : at + size] for at in range(0, len(text), size)][::-1]
    return lambda _: parts.pop() if parts else ""


def documents_of(text: str, levels: int, size: int = 10**6) -> tuple[dict[str, str], list[str]]:
    """The documents of a text that is split, and the places of those that were refused."""
    refused: list[str] = []
    entries: list[Entry] = list(split(reader(text, size), levels, lambda where, _: refused.append(where)))
    assert len({entry.path.text for entry in entries}) == len(entries)
    return {entry.path.text: entry.value for entry in entries}, refused


# The file of json-server's README, and an export of Firebase's Realtime Database.
JSON_SERVER = """{
  "$schema": "./node_modules/json-server/schema.json",
  "posts": [
    { "id": "1", "title": "a title", "views": 100 },
    { "id": "2", "title": "another title", "views": 200 }
  ],
  "comments": [
    { "id": "1", "text": "a comment about post 1", "postId": "1" },
    { "id": "2", "text": "another comment about post 1", "postId": "1" }
  ],
  "profile": {
    "name": "typicode"
  }
}
"""
FIREBASE = """{"users":{"alovelace":{"name":"Ada Lovelace","contacts":{"ghopper":true}},"ghopper":{"name":"Grace Hopper"}},
"messages":{"one":{"-M1a":{"text":"hi","at":1700000000000}},"two":{"-M1b":{"text":"1.0 → \\u00e9","n":1.0}}}}"""
SPLIT: list[tuple[str, int, dict[str, str]]] = [
    (
        JSON_SERVER,
        2,
        {
            "/$schema": '"./node_modules/json-server/schema.json"',
            "/posts/1": '{ "id": "1", "title": "a title", "views": 100 }',
            "/posts/2": '{ "id": "2", "title": "another title", "views": 200 }',
            "/comments/1": '{ "id": "1", "text": "a comment about post 1", "postId": "1" }',
            "/comments/2": '{ "id": "2", "text": "another comment about post 1", "postId": "1" }',
            "/profile/name": '"typicode"',
        },
    ),
    (
        FIREBASE,
        2,
        {
            "/users/alovelace": '{"name":"Ada Lovelace","contacts":{"ghopper":true}}',
            "/users/ghopper": '{"name":"Grace Hopper"}',
            "/messages/one": '{"-M1a":{"text":"hi","at":1700000000000}}',
            "/messages/two": '{"-M1b":{"text":"1.0 → \\u00e9","n":1.0}}',
        },
    ),
    (
        FIREBASE,
        3,
        {
            "/users/alovelace/name": '"Ada Lovelace"',
            "/users/alovelace/contacts": '{"ghopper":true}',
            "/users/ghopper/name": '"Grace Hopper"',
            "/messages/one/-M1a": '{"text":"hi","at":1700000000000}',
            "/messages/two/-M1b": '{"text":"1.0 → \\u00e9","n":1.0}',
        },
    ),
    ('{"a":{"b":1}}', 1, {"/a": '{"b":1}'}),
    ('{"a":[{"id":7},{"id":"x/y"},{"id":null},{"id":true},[5],1e2,{"id":""}]}', 2, {
        "/a/7": '{"id":7}',
        "/a/x%2Fy": '{"id":"x/y"}',
        "/a/2": '{"id":null}',
        "/a/3": '{"id":true}',
        "/a/4": "[5]",
        "/a/5": "1e2",
        "/a/6": '{"id":""}',
    }),
    ('[[{"id":7,"x":[1,-2.50]}],{"id":"b","c":2}]', 3, {"/0/7/id": "7", "/0/7/x": "[1,-2.50]", "/b/id": '"b"', "/b/c": "2"}),
    ('{"a":{},"b":[],"c":[[]]}', 2, {"/c/0": "[]"}),
    ("[1,2.5e+3,null,true,12345678901234567890123]", 1, {
        "/0": "1", "/1": "2.5e+3", "/2": "null", "/3": "true", "/4": "12345678901234567890123",
    }),
    ('{"ü %":{"?#":1}}', 2, {"/%C3%BC%20%25/%3F%23": "1"}),
]  # fmt: skip


@pytest.mark.parametrize("size", [10**6, 1, 2, 3, 7])
@pytest.mark.parametrize(("text", "levels", "expected"), SPLIT)
def test_a_text_is_split(text: str, levels: int, expected: dict[str, str], size: int) -> None:
    """However it is read."""
    assert documents_of(text, levels, size) == (expected, [])


REFUSED: list[tuple[str, list[str], list[str]]] = [
    ('{"a":1,"a":2,"b":3}', ["/a", "/b"], ["/a"]),
    ('[{"id":1},{"id":"1"},{"id":0},7]', ["/1", "/0", "/3"], ["/1"]),
    ('{"":1,"..":{"x":1},"a\\u0000":2,"b":3}', ["/b"], ["/", "/", "/"]),
    ('{"_":1,"b":3}', ["/b"], ["/_"]),
    ('{"%s":1,"b":3}' % ("x" * 1024), ["/b"], ["/" + "x" * 1024]),
]


@pytest.mark.parametrize(("text", "stored", "refused"), REFUSED)
def test_what_has_no_name_is_refused(text: str, stored: list[str], refused: list[str]) -> None:
    """Or the name of another; the rest is stored."""
    found, places = documents_of(text, 1)
    assert (list(found), places) == (stored, refused)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        '"x"',
        "{",
        "[",
        "[1",
        "[1,",
        "[1,]",
        '{"a"}',
        '{"a":}',
        '{"a":1,}',
        '{"a":1 "b":2}',
        "[1 2]",
        "{a:1}",
        "[1]x",
        "\ufeff[1]",
        '{"a":1',
        "[tru]",
        "{7:1}",
        '{"path":"/a","value":1}\n{"path":"/b","value":1}\n',
    ],
)
@pytest.mark.parametrize("size", [10**6, 1])
def test_a_text_that_is_no_json_is_not_split(text: str, size: int) -> None:
    """It is said where it ends to be."""
    with pytest.raises(NotSplit, match=r"^the file "):
        documents_of(text, 1, size)


def test_a_value_that_never_ends_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A string that goes on and on: what is held is bounded, and the message says what to do."""
    monkeypatch.setattr(splitting, "MAX_VALUE", 4_000_000)
    parts = iter(['["'])
    with pytest.raises(NotSplit, match="split more levels"):
        list(split(lambda size: next(parts, "x" * size), 1, lambda *_: None))


def test_batches_are_bounded() -> None:
    """By their bytes and their requests."""
    sizes = []

    def exchange(request: Request) -> Response:
        requests = json.loads(request.body)["requests"]
        sizes.append((len(request.body), len(requests)))
        return Response(200, (), json.dumps({"responses": [{"status": 201}] * len(requests)}).encode())

    lines = [line(f"/a/{each}", '"%s"' % ("x" * 10_000 if each < 200 else "")) for each in range(2000)]
    assert imported(exchange, lines) == (2000, [])
    assert max(size for size, _ in sizes) <= importing.BATCH_BYTES + 1000 * 3
    assert max(count for _, count in sizes) == importing.BATCH_REQUESTS
    assert len(sizes) < 10
