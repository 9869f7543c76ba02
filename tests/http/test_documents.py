"""Documents over HTTP, the conformance suite: every lane answers these requests alike."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import redis

from kvstore.commands.base import Found
from kvstore.commands.changelog import ReadChanges
from kvstore.core.paths import parse_path
from kvstore.core.settings import YEAR_S
from kvstore.http.messages import Request
from kvstore.http.protocol import render
from tests.support.asking import LATE_S, Left, keys_of, timeless
from tests.support.clients import CSP, Checked, check_promises
from tests.support.stores import START_S, Running, contents, wait_until

DAY_MS = 86_400_000
ALLOW = {"GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS"}
KEYS_OF_NS = keys_of("ns")
LOG, NAMES, EXPIRY = KEYS_OF_NS.log, KEYS_OF_NS.names, KEYS_OF_NS.expiry


def entries(raw: redis.Redis, log: str = LOG) -> list[tuple[str, str, str]]:
    """The change log as (op, name in the namespace, id)."""
    read = raw.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, log)
    return [(pairs[0].decode(), pairs[1].decode(), id_.decode()) for id_, pairs in read]


# --- Methods, statuses, headers -----------------------------------------------------------------------------------------

# What is asked of a path where nothing is, and of one where a document is: method, body, status there.
METHODS = [
    ("GET", b"", 404, 200),
    ("HEAD", b"", 404, 200),
    ("PUT", b"{}", 201, 200),
    ("DELETE", b"", 404, 204),
    ("OPTIONS", b"", 204, 204),
    ("OPTIONS", b"{", 204, 204),
    ("TRACE", b"", 405, 405),
    ("PROPFIND", b"", 405, 405),
    ("BREW", b"{}", 405, 405),
    ("get", b"", 405, 405),
]


@pytest.mark.parametrize(("method", "body", "on_nothing", "on_document"), METHODS)
@pytest.mark.parametrize("path", ["/", "/a", "/ns/a", "/static/x", "/health", "/favicon.ico", "/a%2Fb"])
def test_methods(client: Checked, *, path: str, method: str, body: bytes, on_nothing: int, on_document: int) -> None:
    """One wildcard route serves every path, and every path takes the same methods."""
    assert client.request(method, path, body=body).status == on_nothing
    client.put(path, '{"a":1}')
    answer = client.request(method, path, body=body)
    assert answer.status == on_document
    if "Allow" in answer.headers:
        assert set(answer.headers["Allow"].split(", ")) == ALLOW
    assert ("Allow" in answer.headers) == (on_document == 405 or method == "OPTIONS")


def test_put_get_delete(client: Checked) -> None:
    """A document's life."""
    created = client.put("/any/path", '{"value":123}')
    assert (created.status, created.body) == (201, b'{"value":123,"ttl":31536000}\n')
    assert created.headers["Location"] == "/any/path"
    got = client.get("/any/path")
    assert (got.status, got.json, got.tag) == (200, {"value": 123, "ttl": Left(YEAR_S)}, created.tag)
    replaced = client.put("/any/path", '{"other":[]}')
    assert (replaced.status, replaced.json) == (200, {"other": [], "ttl": YEAR_S})
    assert replaced.tag != created.tag
    assert "Location" not in replaced.headers
    assert client.get("/any/path").json == {"other": [], "ttl": Left(YEAR_S)}
    assert client.delete("/any/path").status == 204
    gone = client.get("/any/path")
    assert gone.status == 404
    assert "thing doesn't exist" in gone.json["detail"]
    assert client.delete("/any/path").status == 404


@pytest.mark.parametrize("body", ['{"a":1}', "[1]", "null", "{}"])
def test_headers_of_a_document(client: Checked, body: str) -> None:
    """Every answer with a document has these headers, the same on PUT and GET."""
    before_s = int(time.time())
    put = client.put("/ns/a?ttl=100", body)
    got = client.get("/ns/a")
    after_s = time.time()
    for answer in (put, got):
        headers = answer.headers
        assert headers["Content-Type"] == "application/json"
        assert headers["Cache-Control"] == "no-cache"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == CSP
        assert headers["ETag"] == put.tag
        assert before_s <= parsedate_to_datetime(headers["Last-Modified"]).timestamp() <= after_s
        assert before_s + 100 <= parsedate_to_datetime(headers["Sunset"]).timestamp() <= after_s + 100
        assert headers["Last-Modified"].endswith(" GMT")
        assert headers["Sunset"].endswith(" GMT")


@pytest.mark.parametrize("path", ["/ns/a", "/ns/none"])
@pytest.mark.parametrize("condition", [None, "If-Match", "If-None-Match"])
@pytest.mark.parametrize("tag", ["*", '"1-1"'])
def test_head_is_get_without_a_body(client: Checked, path: str, condition: str | None, tag: str) -> None:
    """HEAD answers as GET does and sends no body; the length of a document is left out, since it is not read for that."""
    client.put("/ns/a", '{"é":1}')
    headers = [(condition, tag)] if condition else []
    got, head = client.get(path, headers), client.head(path, headers)
    assert head.body == b""
    for answer in (head, got):
        answer.headers.pop("date", None)
    if got.status == 200:
        assert "Content-Length" not in head.headers
        got.headers.pop("content-length", None)
    assert (head.status, head.headers) == (got.status, got.headers)


LOCATIONS = [
    ("/a", "/a"),
    ("/a%2fb", "/a%2Fb"),
    ("/%61/%7e", "/a/~"),
    ("/é", "/%C3%A9"),
    ("/a?ttl=5", "/a"),
    ("http://example.org/a/b", "/a/b"),
    ("/%20%25%3F%23%7B", "/%20%25%3F%23%7B"),
    ("/", "/"),
]


@pytest.mark.parametrize(("target", "location"), LOCATIONS)
def test_location(client: Checked, target: str, location: str) -> None:
    """Location is the path in its canonical spelling, and leads to the document."""
    created = client.put(target, "1")
    assert (created.status, created.headers["Location"]) == (201, location)
    assert client.get(location).tag == created.tag


def test_options_of_the_server(client: Checked) -> None:
    """`OPTIONS *` asks about the server (RFC 9110 section 9.3.7), and the root document has nothing to do with it."""
    answer = client.request("OPTIONS", "*")
    assert answer.status == 204
    assert set(answer.headers["Allow"].split(", ")) == ALLOW


PATHS_APART = ["/a/b", "/a%2Fb", "/a%2fb%2Fc", "/a/b%2Fc", "/A/b", "/a/B", "/%C3%A9", "/e%CC%81", "/a%25b", "/%7Ba%7D/b", "/"]


def test_two_paths_two_documents(client: Checked) -> None:
    """Two accepted paths never share a document."""
    for number, path in enumerate(PATHS_APART):
        assert client.put(path, str(number)).status == 201, path
    for number, path in enumerate(PATHS_APART):
        assert client.get(path).json == number


@pytest.mark.parametrize("path", ["/_/x", "/_", "/%5F/x", "/_/batches"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_our_own_segment(client: Checked, raw: redis.Redis, method: str, path: str) -> None:
    """The first segment `_` is the service's: nothing is stored there."""
    assert client.request(method, path, body=b"{}" if method == "PUT" else b"").status in (404, 405)
    assert raw.dbsize() == 0


@pytest.mark.parametrize("path", ["/a/_", "/_a", "/__", "/_%2Fx"])
def test_an_underscore_elsewhere(client: Checked, path: str) -> None:
    """`_` anywhere else is the user's."""
    assert client.put(path, "1").status == 201


# --- Values -------------------------------------------------------------------------------------------------------------

VALUES = [
    "null",
    "true",
    "0",
    "-0",
    "1.0",
    "1e2",
    "1.000000000000000005",
    "9" * 4300,
    '""',
    '"42"',
    '"02139"',
    '"\\u00e9é😀\\ud83d\\ude00\\u0000\\/"',
    "[]",
    "[1,[2,{}]]",
    "{}",
    '{"n":42,"s":"42","zip":"02139","f":1.0,"e":1e2}',
    '{"z":1,"a":{"z":[],"a":null}}',
    '{"$kv":1,"$kv$":"x","":0,"$value":[]}',
    '{"a\\u0000b":"\\u0000","é":1}',
    "{" + ",".join(f'"{n}":{n}' for n in range(300, 0, -1)) + "}",
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:24])
def test_values_are_kept_to_the_letter(client: Checked, value: str) -> None:
    """GET gives what PUT took, byte for byte, with `ttl` as the last member of an object."""
    put = client.put("/ns/a", value)
    ttl = ',"ttl":0}' if len(value) > 2 else '"ttl":0}'
    escaped = value.replace("a\\u0000b", "a\\u0000b")
    expected = escaped[:-1] + ttl if value.startswith("{") else escaped
    for answer in (put, client.get("/ns/a")):
        assert timeless(answer.body).decode().rstrip("\n") == expected


@pytest.mark.parametrize(("before", "after"), [('{"a":1,"b":2}', '{"c":3}'), ("[1]", "{}"), ("{}", "[1]"), ('{"a":1}', "null")])
def test_put_replaces_the_whole(client: Checked, raw: redis.Redis, before: str, after: str) -> None:
    """No member of the old document survives, nor a field of another client's."""
    client.put("/ns/a", before)
    raw.hset("kv:{ns}/a", "foreign", "1")
    client.put("/ns/a", after)
    assert client.get("/ns/a").body.startswith(after[:-1].encode())
    assert not {b"a", b"b", b"foreign"} & set(raw.hkeys("kv:{ns}/a"))


def test_no_body_of_a_get_or_delete_is_read(client: Checked) -> None:
    """A body that has no meaning is no error."""
    client.put("/ns/a", "1")
    assert client.request("GET", "/ns/a", body=b"not JSON").status == 200
    assert client.request("DELETE", "/ns/a", body=b"not JSON").status == 204


MEDIA_TYPES = [
    None,
    "",
    "application/json",
    "Application/JSON; charset=utf-8",
    "application/problem+json",
    "application/vnd.api+json; ext=x",
    "application/x-www-form-urlencoded",
    "text/plain",
    "text/plain;charset=UTF-8",
    "application/octet-stream",
]


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_what_is_read_as_json(client: Checked, media_type: str | None) -> None:
    """JSON by its name, and what clients send that name nothing."""
    headers = [] if media_type is None else [("Content-Type", media_type)]
    assert client.put("/ns/a", '{"a":1}', headers).status == 201


def test_identity_is_no_encoding(client: Checked) -> None:
    """Content-Encoding: identity means none (RFC 9110 section 8.4)."""
    assert client.put("/ns/a", "1", [("Content-Encoding", "identity")]).status == 201


def test_ten_thousand_members(client: Checked, raw: redis.Redis) -> None:
    """The largest object there may be is stored whole, in order, and logged as one change."""
    value = "{" + ",".join(f'"{n}":{n}' for n in range(10_000, 0, -1)) + "}"
    put = client.put("/ns/a", value)
    assert put.status == 201
    assert raw.hlen("kv:{ns}/a") == 10_001
    assert client.get("/ns/a").body.rpartition(b',"ttl":')[0] == value[:-1].encode()
    assert entries(raw) == [("put", "a", put.tag.strip('"'))]


MEBIBYTE = 1024 * 1024


def test_one_mebibyte_and_one_byte_more(client: Checked) -> None:
    """1 MiB is stored; one byte more is refused and leaves what was there, however the body comes."""
    largest = b'"' + b"x" * (MEBIBYTE - 2) + b'"'
    assert client.put("/ns/a", largest).status == 201
    assert client.get("/ns/a").body == largest + b"\n"
    for headers in ([], [("Transfer-Encoding", "chunked")]):
        for body in (largest + b" ", b" " + largest, b"1" + b" " * (3 * MEBIBYTE)):
            assert client.put("/ns/a", body, headers).status == 413
    assert client.get("/ns/a").body == largest + b"\n"


# --- TTL ----------------------------------------------------------------------------------------------------------------

# What the query asks, what the member asks, and the TTL that comes of it; None: the default.
TTLS = [
    (None, None, YEAR_S),
    ("90", None, 90),
    ("90s", None, 90),
    ("5m", None, 300),
    ("2h", None, 7200),
    ("7d", None, 604_800),
    ("1", None, 1),
    ("007", None, 7),
    ("%39%30", None, 90),
    (str(YEAR_S), None, YEAR_S),
    ("365d", None, YEAR_S),
    (None, "90", 90),
    (None, "1", 1),
    (None, str(YEAR_S), YEAR_S),
    ("90", "80", 90),
    ("1", str(YEAR_S), 1),
]


@pytest.mark.parametrize(("query", "member", "ttl_s"), TTLS)
def test_ttl(client: Checked, raw: redis.Redis, query: str | None, member: str | None, ttl_s: int) -> None:
    """Query before member before default; the member `ttl` comes back as the last one, wherever it stood."""
    target = "/ns/a" if query is None else f"/ns/a?x=1&ttl={query}&y"
    body = '{"a":1}' if member is None else f'{{"ttl":{member},"a":1}}'
    put = client.put(target, body)
    assert (put.status, put.body) == (201, f'{{"a":1,"ttl":{ttl_s}}}\n'.encode())
    if ttl_s > LATE_S:
        assert client.get("/ns/a").json["ttl"] == Left(ttl_s)
    assert (ttl_s - LATE_S) * 1000 < raw.pttl("kv:{ns}/a") <= ttl_s * 1000


def test_ttl_of_what_is_no_object(client: Checked, raw: redis.Redis) -> None:
    """A document that is not an object carries its TTL in the headers only."""
    put = client.put("/ns/a?ttl=90", "[1]")
    assert put.body == b"[1]\n"
    assert "Sunset" in put.headers
    assert (90 - LATE_S) * 1000 < raw.pttl("kv:{ns}/a") <= 90_000


def test_put_starts_the_default_again(client: Checked) -> None:
    """A PUT without a TTL does not keep the old one."""
    client.put("/ns/a?ttl=90", "{}")
    assert client.put("/ns/a", "{}").json == {"ttl": YEAR_S}


@pytest.mark.parametrize(("ttl_ms", "ttl_s"), [(0, 1), (1, 1), (1000, 1), (1001, 2)])
def test_ttl_is_rounded_up(ttl_ms: int, ttl_s: int) -> None:
    """A document that is there has at least a second: Redis still gives it in the ms in which it expires."""
    found = Found(b"{}", is_object=True, tag="1-1", expires_at_ms=1, ttl_ms=ttl_ms)
    assert render(Request("GET", b"/a", {}), found).body == b'{"ttl":%d}\n' % ttl_s


def test_ttl_in_a_nested_object_is_the_users(client: Checked) -> None:
    """Only the top-level member `ttl` is reserved."""
    assert client.put("/ns/a", '{"a":{"ttl":"x"},"TTL":[]}').json == {"a": {"ttl": "x"}, "TTL": [], "ttl": YEAR_S}


# KVSTORE_MAX_TTL, what is asked, what comes of it.
LARGEST = [
    ("100", None, 100),
    ("100", "100", 100),
    ("100", "101", 400),
    ("63072000", None, YEAR_S),
    ("63072000", "730d", 63_072_000),
]


@pytest.mark.parametrize(("largest", "query", "result"), LARGEST)
def test_largest_ttl_is_a_setting(client_with: Callable[..., Checked], largest: str, query: str | None, result: int) -> None:
    """KVSTORE_MAX_TTL is the most that can be asked for, and the default where that is more."""
    put = client_with(KVSTORE_MAX_TTL=largest).put("/ns/a" if query is None else f"/ns/a?ttl={query}", "{}")
    assert put.status == 400 if result == 400 else put.json == {"ttl": result}


def test_expiry(client: Checked, raw: redis.Redis) -> None:
    """What has expired is gone as a whole; born again it has a new entity-tag; log and indexes come to know it."""
    first, other = client.put("/ns/a?ttl=1", '{"a":1}'), client.put("/ns/b?ttl=1", "2")
    seen = []

    def gone() -> bool:
        seen.append(client.get("/ns/a"))
        return seen[-1].status == 404

    wait_until(gone, START_S)
    assert {answer.body for answer in (first, *seen[:-1])} == {b'{"a":1,"ttl":1}\n'}, "never half of it, ttl never 0"
    wait_until(lambda: client.get("/ns/b").status == 404, START_S)
    assert client.delete("/ns/a").status == 404
    assert client.put("/ns/a", "{}", [("If-Match", first.tag)]).status == 412
    again = client.put("/ns/a", '{"a":1}', [("If-None-Match", "*")])
    assert again.status == 201
    assert again.tag not in (first.tag, other.tag)
    wait_until(lambda: client.put("/ns/c", "3") and raw.zrange(NAMES, 0, -1) == [b"a", b"c"], START_S)  # one in 16 looks
    assert raw.zrange(EXPIRY, 0, -1) == [b"a", b"c"]
    log = [entry for entry in entries(raw) if entry[1] != "c"]
    assert [entry[0] for entry in log if entry[1] == "a"] == ["expire", "put"]
    assert [entry[0] for entry in log if entry[1] == "b"] == ["expire"]
    assert {f'"{entry[2]}"' for entry in log if entry[0] == "put"} == {again.tag}


# --- What lies in Redis -------------------------------------------------------------------------------------------------


def test_fields_as_redis_cli_shows_them(client: Checked, raw: redis.Redis) -> None:
    """A document is a hash, one field per member, the field's value the member's JSON text."""
    client.put("/ns/a", '{"n":42,"s":"42","o":{"x":[1.0]},"$kv":null}')
    hash_ = raw.hgetall("kv:{ns}/a")
    hash_.pop(b"$kv")
    assert hash_ == {b"n": b"42", b"s": b'"42"', b"o": b'{"x":[1.0]}', b"$kv$": b"null"}
    for path, body in (("/ns/b", "[1,2]"), ("/ns/c", "{}"), ("/ns/d", "null")):
        client.put(path, body)
        assert raw.type("kv:{ns}" + path[3:]) == b"hash"


def test_hincrby_on_an_integer_member(client: Checked, raw: redis.Redis) -> None:
    """Another client counts in our document."""
    put = client.put("/ns/a", '{"z":41,"a":"x"}')
    assert raw.hincrby("kv:{ns}/a", "z", 1) == 42
    got = client.get("/ns/a")
    assert got.body.startswith(b'{"z":42,"a":"x","ttl":')
    assert got.tag == put.tag


FOREIGN_FIELDS = [
    ("42", 42),
    ("02139", "02139"),
    ("-1.5", -1.5),
    ("hello", "hello"),
    ("", ""),
    ('"42"', "42"),
    ("[1", "[1"),
    ("NaN", "NaN"),
    ('{"a":[]}', {"a": []}),
    (b"\xff", "\\xff"),
]


@pytest.mark.parametrize(("text", "value"), FOREIGN_FIELDS)
def test_a_field_of_another_client(client: Checked, raw: redis.Redis, text: str | bytes, value: object) -> None:
    """Bare text is JSON if it is that, else a string: in our document, and in a hash that we did not make."""
    put = client.put("/ns/ours?ttl=90", '{"a":1}')
    raw.hset("kv:{ns}/ours", "x", text)
    got = client.get("/ns/ours")
    assert got.json == {"a": 1, "x": value, "ttl": Left(90)}
    assert got.tag == put.tag
    raw.hset("kv:{ns}/theirs", "x", text)
    theirs = client.get("/ns/theirs")
    assert (theirs.status, theirs.json) == (200, {"x": value})
    assert not {"ETag", "Last-Modified", "Sunset"} & {
        name for name in ("ETag", "Last-Modified", "Sunset") if name in theirs.headers
    }


def test_a_foreign_hash_has_its_own_ttl(client: Checked, raw: redis.Redis) -> None:
    """A hash of another client shows the key's TTL, and becomes ours when we write it."""
    raw.hset("kv:{ns}/a", "x", "1")
    raw.expire("kv:{ns}/a", 90)
    got = client.get("/ns/a")
    assert got.json == {"x": 1, "ttl": Left(90)}
    assert "Sunset" in got.headers
    replaced = client.put("/ns/a", '{"y":2}')
    assert (replaced.status, client.get("/ns/a").tag) == (200, replaced.tag)
    assert raw.zrange(NAMES, 0, -1) == [b"a"]


def test_our_document_made_immortal(client: Checked, raw: redis.Redis) -> None:
    """PERSIST by another client: the document has no `ttl` and no Sunset."""
    client.put("/ns/a", '{"a":1}')
    raw.persist("kv:{ns}/a")
    got = client.get("/ns/a")
    assert got.body == b'{"a":1}\n'
    assert "Sunset" not in got.headers


OTHER_TYPES = [
    ("string", lambda raw, key: raw.set(key, "x")),
    ("list", lambda raw, key: raw.rpush(key, "x")),
    ("set", lambda raw, key: raw.sadd(key, "x")),
    ("zset", lambda raw, key: raw.zadd(key, {"x": 1})),
    ("stream", lambda raw, key: raw.xadd(key, {"x": "1"})),
    ("hash", lambda raw, key: raw.hset(key, "x", "1")),
]
# The key that holds another type, the type that it should have, and the status of each method, where a document is and where
# none is. A write needs `names` only where the document is not noted there yet.
KEYS = [
    ("kv:{ns}/a", "hash", {"GET": (409, 409), "HEAD": (409, 409), "PUT": (409, 409), "DELETE": (409, 409)}),
    (LOG, "stream", {"PUT": (409, 409), "DELETE": (409, 404)}),
    (NAMES, "zset", {"PUT": (200, 409), "DELETE": (409, 404)}),
    (EXPIRY, "zset", {"PUT": (409, 409), "DELETE": (409, 404)}),
]


@pytest.mark.parametrize(("kind", "make"), OTHER_TYPES)
@pytest.mark.parametrize(("key", "right", "methods"), KEYS)
@pytest.mark.parametrize("exists", [True, False])
def test_a_key_of_another_type(
    client: Checked,
    raw: redis.Redis,
    *,
    key: str,
    right: str,
    methods: dict[str, tuple[int, int]],
    kind: str,
    make: Callable[..., Any],
    exists: bool,
) -> None:
    """A key of ours that holds another type is 409, and nothing at all is changed."""
    if kind == right:
        return
    if exists:
        client.put("/ns/a", '{"a":1}')
    raw.delete(key)
    make(raw, key)
    before = contents(raw)
    for method, statuses in methods.items():
        answer = client.request(method, "/ns/a", body=b'{"b":2}' if method == "PUT" else b"")
        assert answer.status == statuses[not exists]
        if answer.status >= 400:
            assert contents(raw) == before
        else:
            assert client.get("/ns/a").json["b"] == 2
            before = contents(raw)


# --- The change log and the indexes -------------------------------------------------------------------------------------


def test_every_change_is_in_the_log(client: Checked, raw: redis.Redis) -> None:
    """An entry for each change, in order, its id the entity-tag; none for what was refused, found nothing, or is deleted."""
    one = client.put("/ns/a", '{"a":1}').tag
    two = client.put("/ns/b/c", "2").tag
    three = client.put("/ns/a", '{"a":2}').tag
    client.put("/ns/a", "!")
    client.put("/ns/a", "1", [("If-None-Match", "*")])
    client.delete("/ns/none")
    client.get("/ns/a")
    client.put("/other/a", "1")
    log = entries(raw)
    assert [entry[:2] for entry in log] == [("put", "a"), ("put", "b/c"), ("put", "a")]
    assert [f'"{entry[2]}"' for entry in log] == [one, two, three]
    client.delete("/ns/a")
    assert [entry[:2] for entry in entries(raw)] == [("put", "b/c"), ("delete", "a")]
    assert len({one, two, three}) == 3
    assert len(entries(raw, "kv:{other}!log")) == 1


def test_tags_grow(client: Checked) -> None:
    """A tag never comes back, after delete and create neither, and later is larger."""
    tags = []
    for _ in range(20):
        tags.append(client.put("/ns/a", "1").tag)
        client.delete("/ns/a")
    numbers = [tuple(map(int, tag.strip('"').split("-"))) for tag in tags]
    assert numbers == sorted(set(numbers))


def test_names_and_expiry(client: Checked, store: Running, raw: redis.Redis) -> None:
    """The indexes hold the documents that exist, by name, and by the ms at which they expire or earlier, never later."""
    client.put("/ns/b?ttl=90", "1")
    client.put("/ns/a%2Fb/c?ttl=2h", "1")
    client.put("/ns/gone", "1")
    client.put("/ns/b?ttl=1h", "2")
    client.delete("/ns/gone")
    assert raw.zrange(NAMES, 0, -1, withscores=True) == [(b"a%2Fb/c", 0), (b"b", 0)]
    ends: Any = raw.zrange(EXPIRY, 0, -1, withscores=True)
    noted: dict[bytes, float] = dict(ends)
    assert list(noted) == [b"b", b"a%2Fb/c"]
    for name, at_ms in noted.items():
        expires_at_ms = raw.pexpiretime("kv:{ns}/" + name.decode())
        assert expires_at_ms - 3_600_000 < at_ms <= expires_at_ms + store.clock_ms
    client.delete("/ns/b")
    client.delete("/ns/a%2Fb/c")
    assert not raw.exists(NAMES, EXPIRY)


def test_the_root_namespace(client: Checked, raw: redis.Redis) -> None:
    """Documents of one segment, and the root document, share a namespace that no segment can be named like."""
    client.put("/", "1")
    client.put("/a", "1")
    client.put("/%2F/a", "1")
    root, other = keys_of("/"), keys_of("%2F")
    documents = parse_path(b"/").keys.document, parse_path(b"/%2F/a").keys.document
    assert documents == ("kv:{/}/", "kv:{%2F}/a")
    assert set(vars(root).values()).isdisjoint(vars(other).values())
    assert raw.zrange(root.names, 0, -1) == [b"", b"%2F/", b"a"], "its documents, and the namespaces"
    assert raw.zrange(other.names, 0, -1) == [b"a"]


@pytest.mark.parametrize("ttls", [(90, 10), (10, YEAR_S), (10, 10)])
def test_own_keys_outlive_the_last_document(client: Checked, raw: redis.Redis, ttls: tuple[int, int]) -> None:
    """A namespace nobody uses leaves nothing: each key of it expires, and after its last document."""
    for name, ttl_s in zip("ab", ttls, strict=True):
        client.put(f"/ns/{name}?ttl={ttl_s}", "1")
    last_ms = max(raw.pexpiretime("kv:{ns}/a"), raw.pexpiretime("kv:{ns}/b"))
    for key in (LOG, NAMES, EXPIRY):
        assert last_ms < raw.pexpiretime(key) <= last_ms + 2 * DAY_MS
    client.delete("/ns/a")
    client.delete("/ns/b")
    assert all(raw.ttl(key) > 0 for key in raw.scan_iter())
    assert DAY_MS < raw.pttl(LOG) <= 2 * DAY_MS, "however long its documents might have lived"


def test_a_log_that_is_followed_stays(client: Checked, raw: redis.Redis, store: Running) -> None:
    """Who follows a namespace without documents has its place in the log: without that it would be told of a loss."""
    client.put("/ns/a", "1")
    client.delete("/ns/a")
    raw.pexpire(LOG, DAY_MS // 2)
    path, place = parse_path(b"/ns/"), raw.xinfo_stream(LOG)["last-generated-id"].decode()
    with closing(store.open()) as opened:
        assert opened.execute(ReadChanges(path, place)).entries == []
    assert DAY_MS < raw.pttl(LOG) <= 2 * DAY_MS


def test_log_is_trimmed(client_with: Callable[..., Checked], raw: redis.Redis) -> None:
    """KVSTORE_LOG_LENGTH bounds the log, about: Redis trims whole nodes of a hundred entries."""
    client = client_with(KVSTORE_LOG_LENGTH="10")
    for number in range(300):
        client.put("/ns/a", str(number))
    assert 10 <= len(entries(raw)) <= 210


def test_big_changes_leave_the_log_sooner(client: Checked, raw: redis.Redis) -> None:
    """The log is bounded in bytes as well: large documents do not fill Redis with their past."""
    value = b'"' + b"x" * (MEBIBYTE - 2) + b'"'
    for _ in range(12):
        client.put("/ns/a", value)
    assert len(entries(raw)) < 12


# --- Problems -----------------------------------------------------------------------------------------------------------


def test_problems_say_what_to_do(client: Checked) -> None:
    """Every kind of error answer has the one shape, and tells its kind apart by `type`."""
    client.put("/ns/a", "1")
    asked = [
        client.get("/ns/none"),
        client.get("/ns//a"),
        client.get("/" + "a" * 1024),
        client.put("/ns/a", "{"),
        client.put("/ns/a?ttl=0", "1"),
        client.put("/ns/a?ttl=1&ttl=1", "1"),
        client.put("/ns/a", "1", [("If-None-Match", "*")]),
        client.put("/ns/a", "1", [("If-Match", "x")]),
        client.put("/ns/a", "1", [("Content-Type", "text/html")]),
        client.put("/ns/a", b" " * (MEBIBYTE + 1)),
        client.request("BREW", "/ns/a"),
    ]
    assert [answer.status for answer in asked] == [404, 400, 414, 400, 400, 400, 412, 400, 415, 413, 405]
    assert len({answer.json["type"] for answer in asked}) == len(asked)
    for answer in asked:
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_problem_is_told_to_head_by_its_headers(client: Checked) -> None:
    """HEAD of what is not there has the headers of the problem, and its length."""
    head = client.head("/ns/none")
    assert head.status == 404
    assert int(head.headers["Content-Length"]) == len(client.get("/ns/none").body)


def test_the_promises_are_held(store: Running, client: Checked) -> None:
    """`check_promises`, which every answer of this suite passed, does fail."""
    good = client.put("/ns/a", "1")
    check_promises("PUT", good)
    for name, value in (
        ("Content-Type", "text/html"),
        ("ETag", 'W/"1-1"'),
        ("Content-Length", "9"),
        ("X-Content-Type-Options", ""),
    ):
        with pytest.raises(AssertionError):
            check_promises("PUT", good._replace(headers=type(good.headers)([*good.headers.items(), (name, value)])))
    with pytest.raises(AssertionError):
        check_promises("GET", good._replace(status=404, body=json.dumps({"type": "about:blank"}).encode()))
