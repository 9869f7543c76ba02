"""POST appends: what it answers, what it stores, and that names sort as the changes were committed. Prefer, on every write."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from kvstore.core.settings import YEAR_S
from tests.support.asking import (
    JSON,
    LATE_S,
    MERGE,
    at_once,
    batch,
    check_dates,
    entries,
    expire,
    keys_of,
    listed,
    patch,
    post,
    timeless,
    wires_to,
    without_ttl,
)
from tests.support.clients import Checked
from tests.support.lanes import on_few, on_served, on_servers
from tests.support.stores import Running, contents

IS_ID = re.compile(r"[A-Za-z0-9._~-]+").fullmatch  # unreserved characters of a URL (RFC 3986 section 2.3)

# The target, the container that is meant, its namespace.
TARGETS = [
    ("/ns/", "/ns/", "ns"),
    ("/ns", "/ns/", "ns"),
    ("/ns/a/b/", "/ns/a/b/", "ns"),
    ("/ns/a/b", "/ns/a/b/", "ns"),
    ("/", "/", "/"),
    ("/%6es", "/ns/", "ns"),
    ("/n%2Fs/é/", "/n%2Fs/%C3%A9/", "n%2Fs"),
    ("/ns?x=1", "/ns/", "ns"),
    ("http://example.org/ns/", "/ns/", "ns"),
]


@on_few
@pytest.mark.parametrize(("target", "container", "namespace"), TARGETS)
def test_receipt(client: Checked, store: Running, target: str, container: str, namespace: str) -> None:
    """201, Location, and a receipt; the document is there, is listed, and is an entry of the log."""
    answer = post(client, target, '{"z":1.0,"a":[]}')
    assert answer.status == 201
    receipt = answer.json
    assert list(receipt) == ["path", "etag", "ttl"]
    assert receipt == {"path": answer.headers["Location"], "etag": answer.tag, "ttl": YEAR_S}
    path = receipt["path"]
    name = path.removeprefix(container)
    assert IS_ID(name)
    got = client.get(path)
    assert (got.status, got.tag) == (200, receipt["etag"])
    assert timeless(got.body) == b'{"z":1.0,"a":[],"ttl":0}\n'
    check_dates(answer, got, store)
    [entry] = entries(store.redis, namespace)
    assert (container.removesuffix("/") if namespace == "/" else f"/{namespace}") + "/" + entry.name == path
    assert (entry.text, f'"{entry.id}"') == (b'{"z":1.0,"a":[]}', receipt["etag"])
    assert name in [item["name"] for item in listed(client, "/?list" if container == "/" else container)]


@on_few
@pytest.mark.parametrize("body", ["null", "5", '"x"', "[1.0]", "{}", '{"$kv":1}', '{"b":1,"a":{"c":null}}'])
def test_what_is_appended(client: Checked, body: str) -> None:
    """Any JSON, to the letter."""
    got = client.get(post(client, "/ns/", body).headers["Location"])
    text = got.body.decode().rstrip("\n")
    assert (re.sub(r',?"ttl":\d+}$', "}", text) if body.startswith("{") else text) == body


def test_names_sort_as_they_were_made(client: Checked, raw: redis.Redis) -> None:
    """One after the other, in one ms or in several: the order of names is that of the commits."""
    paths = [post(client, "/ns/", str(n)).json["path"] for n in range(60)]
    assert paths == sorted(paths)
    assert [item["value"] for item in listed(client, "/ns/")] == list(range(60))
    assert [json.loads(entry.text or b"") for entry in entries(raw)] == list(range(60))


@on_few
def test_many_in_one_ms(client: Checked) -> None:
    """A batch appends a thousand in one script, whose clock may stand still: names sort all the same."""
    answer = batch(client, [("POST", "/ns/q", n) for n in range(1000)])
    paths = [response["headers"]["Location"] for response in answer.json["responses"]]
    assert paths == sorted(paths)
    assert len(set(paths)) == 1000
    assert [item["value"] for item in listed(client, "/ns/q/?limit=1000")] == list(range(1000))


# The target's query, the body, and the TTL that comes of it; None: 400.
TTLS: list[tuple[str, str, int | None]] = [
    ("", "{}", YEAR_S),
    ("?ttl=90", "{}", 90),
    ("?ttl=2h", "[1]", 7200),
    ("", '{"ttl":90}', 90),
    ("?ttl=80", '{"ttl":90}', 80),
    ("?ttl=0", "{}", None),
    ("", '{"ttl":"x"}', None),
    ("?ttl=90", '{"ttl":0}', None),
]


@on_few
@pytest.mark.parametrize(("query", "body", "ttl_s"), TTLS)
def test_ttl(client: Checked, raw: redis.Redis, query: str, body: str, ttl_s: int | None) -> None:
    """As in a PUT; the receipt says it."""
    answer = post(client, f"/ns/{query}", body)
    if ttl_s is None:
        assert answer.status == 400
        assert raw.keys() == []
        return
    assert (answer.status, answer.json["ttl"]) == (201, ttl_s)
    assert (ttl_s - LATE_S) * 1000 < raw.pttl("kv:{ns}" + answer.json["path"].removeprefix("/ns")) <= ttl_s * 1000
    for key in (keys_of("ns").log, keys_of("ns").names, keys_of("ns").expiry):
        assert raw.pttl(key) > ttl_s * 1000


# A target, headers, a body, and the refusal.
REFUSED: list[tuple[str, list[Any], str, int]] = [
    ("/ns/", [], "", 400),
    ("/ns/", [], "{'a':1}", 400),
    ("/ns/", [], '{"a":1,"a":2}', 400),
    ("/ns/", [("Content-Type", "text/html")], "{}", 415),
    ("/ns/", [("Content-Encoding", "gzip")], "{}", 415),
    ("/ns/", [("If-Match", "*")], "{}", 400),
    ("/ns/", [("If-None-Match", "*")], "{}", 400),
    ("//", [], "{}", 400),
    ("/ns//", [], "{}", 400),
    ("/ns/../", [], "{}", 400),
    ("/a" * 32, [], "{}", 400),
    ("/a" * 32 + "/", [], "{}", 400),
    ("/" + "a" * 1023, [], "{}", 414),
    ("/" + "a" * 1022 + "/", [], "{}", 414),
    ("/" + "%C3%A9" * 507, [], "{}", 414),
    ("/ns/", [], '"' + "x" * 1024 * 1024 + '"', 413),
    ("/_/", [], "{}", 405),
    ("/_/x", [], "{}", 404),
    ("/_", [], "{}", 404),
]


def test_refused(client: Checked, raw: redis.Redis) -> None:
    """What has no path, or no document, is refused, and nothing is stored."""
    for target, headers, body, status in REFUSED:
        assert post(client, target, body, headers).status == status, (target[:20], headers, body[:20])
    assert raw.keys() == []


def test_the_longest_paths(client: Checked) -> None:
    """A container is refused only where a name below it would be too long; what is appended can be read and deleted."""
    longest = max(n for n in range(980, 1024) if post(client, "/" + "a" * n, "1").status == 201)
    assert longest >= 1024 - 2 - 24
    for container in ("/" + "a" * longest, "/a" * 31, "/" + "%25" * longest):
        answer = post(client, container, "1")
        assert answer.status == 201
        assert client.get(answer.json["path"]).json == 1
        assert client.delete(answer.json["path"]).status == 204


def test_another_type(client: Checked, raw: redis.Redis) -> None:
    """A key that the namespace needs and that is of another type: 409, nothing stored."""
    for name in ("log", "names", "expiry"):
        raw.flushall()
        raw.set(getattr(keys_of("ns"), name), "x")
        before = contents(raw)
        assert post(client, "/ns/", "1").status == 409
        assert contents(raw) == before


@on_few
def test_what_was_appended_expires(client: Checked, raw: redis.Redis) -> None:
    """Gone as a whole, logged under its own name, and its name never comes back."""
    paths = [post(client, "/ns/", "1").json["path"] for _ in range(3)]
    expire(raw, paths[1])
    assert [item["path"] for item in listed(client, "/ns/")] == [paths[0], paths[2]]
    assert ("expire", paths[1].removeprefix("/ns/")) in [(entry.op, entry.name) for entry in entries(raw)]
    assert post(client, "/ns/", "1").json["path"] > paths[2]


WRITERS, EACH = 50, 200


@on_served
def test_parallel_writers(client: Checked, raw: redis.Redis) -> None:
    """50 writers × 200 documents: all there, none twice, the listing in the order of the commits."""
    wires = wires_to(client, WRITERS)
    for number, wire in enumerate(wires):
        bodies = [b'{"by":%d,"n":%d}' % (number, n) for n in range(EACH)]
        wire.send(
            b"".join([b"POST /ns/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(b), b) for b in bodies])
        )
    receipts = []
    for wire in wires:
        answers = [wire.answer() for _ in range(EACH)]
        wire.close()
        assert {answer.status for answer in answers} == {201}
        paths = [json.loads(answer.body)["path"] for answer in answers]
        assert paths == sorted(paths), "one after the other"
        receipts += paths
    assert len(set(receipts)) == WRITERS * EACH
    items = listed(client, "/ns/?limit=1000")
    assert [item["path"] for item in items] == sorted(receipts)
    by_writer: dict[int, list[int]] = {}
    for item in items:
        by_writer.setdefault(item["value"]["by"], []).append(item["value"]["n"])
    assert by_writer == {number: list(range(EACH)) for number in range(WRITERS)}
    tags = [tuple(map(int, item["etag"].strip('"').split("-"))) for item in items]
    assert tags == sorted(tags), "listing order is commit order"
    log = entries(raw)
    assert len(log) >= 1000
    assert [f"/ns/{entry.name}" for entry in log] == [item["path"] for item in items][-len(log) :]


@on_servers
def test_parallel_writers_and_readers(client: Checked) -> None:
    """Who reads page after page from the last name he saw misses nothing that was appended after it."""
    total, writers = 120, 6
    seen: list[str] = []

    def follow() -> None:
        after = ""
        while len(seen) < total:
            for item in client.get(f"/ns/?limit=7&after={after}").json["items"]:
                after = item["name"]
                seen.append(item["path"])

    with ThreadPoolExecutor(writers + 1) as pool:
        reading = pool.submit(follow)
        written = list(pool.map(lambda n: post(client, "/ns/", str(n)).json["path"], range(total)))
        reading.result(60)
    assert seen == sorted(written)


@on_servers
def test_parallel_in_several_containers(client: Checked) -> None:
    """Names are one order for all containers of a namespace, since the log is."""
    paths = at_once(lambda n: post(client, f"/ns/c{n % 3}", str(n)).json["path"], 30)
    assert len({path.rpartition("/")[2] for path in paths}) == 30
    assert len(listed(client, "/ns/?recursive")) == 30


# --- Prefer -------------------------------------------------------------------------------------------------------------

# A write: method, target, headers, body; its status where nothing is, and where a document is.
WRITES: list[tuple[str, str, list[Any], bytes, int | None, int]] = [
    ("PUT", "/ns/a", [], b'{"a":2}', 201, 200),
    ("PATCH", "/ns/a", [MERGE], b'{"a":2}', 201, 200),
    ("PATCH", "/ns/a", [MERGE], b'{"a":{"b":2}}', 201, 200),
    ("PATCH", "/ns/a", [JSON], b'[{"op":"add","path":"/a","value":2}]', None, 200),
    ("PATCH", "/ns/a?ttl=90", [], b"", None, 200),
    ("POST", "/ns/", [], b'{"a":2}', 201, 201),
]
PREFERENCES = [
    (["return=minimal"], "minimal"),
    (["return=representation"], "representation"),
    (["return = minimal"], "minimal"),
    (['return="minimal"'], "minimal"),
    (["Return=minimal"], "minimal"),
    (["respond-async, return=minimal; x=y"], "minimal"),
    (["respond-async", "return=representation"], "representation"),
    (["return=minimal, return=representation"], "minimal"),
    (["return=maximal"], None),
    (["return"], None),
    (["minimal"], None),
    (["handling=lenient"], None),
    ([""], None),
]


@on_few
@pytest.mark.parametrize(("lines", "applied"), PREFERENCES)
def test_prefer(client: Checked, store: Running, lines: list[str], applied: str | None) -> None:
    """RFC 7240: minimal has no body, representation the document; both say so, and ETag and Location are there all the same."""
    for method, target, headers, body, on_nothing, on_document in WRITES:
        for status in (on_nothing, on_document):
            client.delete("/ns/a")
            if status == on_document and method != "POST":
                client.put("/ns/a", '{"a":1}')
            if status is None:
                continue
            answer = client.request(method, target, [*headers, *(("Prefer", line) for line in lines)], body)
            assert answer.headers.get("Preference-Applied") == (f"return={applied}" if applied else None)
            assert answer.status == (204 if applied == "minimal" and status == 200 else status)
            assert ("Location" in answer.headers) == (status == 201)
            got = client.get(answer.headers["Location"] if status == 201 else "/ns/a")
            assert answer.tag == got.tag
            check_dates(answer, got, store)
            if applied == "minimal":
                assert answer.body == b""
            elif applied == "representation" or method != "POST":
                assert timeless(answer.body) == timeless(got.body)


def test_prefer_changes_no_refusal(client: Checked) -> None:
    """A problem has its body whatever is preferred, and a DELETE has none."""
    for preference in ("return=minimal", "return=representation"):
        headers = [("Prefer", preference)]
        client.put("/ns/a", "1")
        refused = client.put("/ns/a", "2", [*headers, ("If-None-Match", "*")])
        assert (refused.status, refused.json["current"]) == (412, 1)
        assert client.put("/ns/a", "{", headers).status == 400
        assert patch(client, "/ns/b?ttl=5x", "{}", headers).status == 400
        assert client.delete("/ns/a", headers).status == 204
        assert client.delete("/ns/a", headers).status == 404


def test_prefer_in_a_batch(client: Checked) -> None:
    """Each request of a batch may prefer for itself."""
    requests = [
        ("PUT", "/ns/a", 1, {"Prefer": "return=minimal"}),
        ("PUT", "/ns/a", 2, {"prefer": "return=minimal"}),
        ("PUT", "/ns/a", {"x": 3}),
    ]
    first, second, third = batch(client, requests).json["responses"]
    assert (first["status"], first["body"]) == (201, None)
    assert (second["status"], second["body"]) == (204, None)
    assert (third["status"], without_ttl(third["body"])) == (200, {"x": 3})
    assert first["headers"]["Preference-Applied"] == "return=minimal"
    assert first["headers"]["Location"] == "/ns/a"
    assert third["headers"]["ETag"] == client.get("/ns/a").tag
