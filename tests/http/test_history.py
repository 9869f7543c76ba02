"""History: what the change log holds of a document and of a container, and a document as it was. Gone is gone here too."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.test_erasure import DELETED, DOCUMENT, MANY, SECRET
from tests.support.asking import batch, entries, expire, json_patch, keys_of, patch, post, touch
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few, on_one, on_two


def changes(client: Checked, target: str) -> tuple[list[Any], bool]:
    """The items of a history, and whether it is complete."""
    answer = client.get(target + ("&" if "?" in target else "?") + "changes")
    assert answer.status == 200, answer.body
    assert set(answer.json) == {"items", "complete"}
    return answer.json["items"], answer.json["complete"]


def tag_of(answer: Answer) -> str:
    """The entity-tag of a response, without its quotes."""
    return answer.tag.strip('"')


def test_the_changes_of_a_document(client: Checked) -> None:
    """However it was changed: newest first, each with the whole document, its entity-tag, its time, and its TTL then."""
    tags = [
        client.put("/ns/d/a?ttl=1000", '{"x":1.0,"y":[]}').tag,
        patch(client, "/ns/d/a", {"x": None}).tag,
        patch(client, "/ns/d/a", {"o": {"z": 1}}).tag,
        json_patch(client, "/ns/d/a", [{"op": "remove", "path": "/o"}]).tag,
        client.put("/ns/d/a", "[1e2]").tag,
    ]
    client.put("/ns/d/b", "1")
    assert touch(client, "/ns/d/a?ttl=50").status == 200
    items, is_complete = changes(client, "/ns/d/a")
    assert is_complete
    assert [item["etag"] for item in items] == tags[::-1]
    assert [item["op"] for item in items[::-1]] == ["put", "patch", "patch", "patch", "put"]
    values = [{"x": 1.0, "y": []}, {"y": []}, {"y": [], "o": {"z": 1}}, {"y": []}, [1e2]]
    assert [item["value"] for item in items[::-1]] == values
    assert [item["time"] for item in items] == [int(item["etag"].strip('"').partition("-")[0]) for item in items]
    assert items[-1]["ttl"] == 1000
    assert b'"value":{"x":1.0,"y":[]}' in client.get("/ns/d/a?changes").body
    assert b'"value":[1e2]' in client.get("/ns/d/a?changes").body
    for count in (1, 2, 5, 6):
        assert changes(client, f"/ns/d/a?limit={count}") == (items[:count], True)


@on_few
def test_what_was_appended(client: Checked) -> None:
    """It has its first change as a put, as on a stream; so has the root document."""
    path = post(client, "/ns/c/", {"n": 1}).json["path"]
    [item], is_complete = changes(client, path)
    assert (item["op"], item["value"], is_complete) == ("put", {"n": 1}, True)
    client.put("/", "7")
    assert [item["value"] for item in changes(client, "/")[0]] == [7]
    assert [item["path"] for item in changes(client, "/ns/c/")[0]] == [path]


@on_few
def test_the_changes_of_a_container(client: Checked) -> None:
    """Those of everything below it, each with its path; what was deleted shows as such."""
    client.put("/ns/a/1", "1")
    client.put("/ns/a/b/2", "2")
    client.put("/ns/ab", "3")
    client.put("/other/a/1", "4")
    client.put("/ns/a/1", "5")
    client.put("/ns/a/%2F", "6")
    client.delete("/ns/a/b/2")
    items, is_complete = changes(client, "/ns/a/")
    assert is_complete
    shown = [(item["op"], item["path"], item.get("value")) for item in items]
    assert shown == [("delete", "/ns/a/b/2", None), ("put", "/ns/a/%2F", 6), ("put", "/ns/a/1", 5), ("put", "/ns/a/1", 1)]
    assert set(items[0]) == {"op", "path", "etag", "time"}
    assert [item["path"] for item in changes(client, "/ns/?limit=3")[0]] == ["/ns/a/b/2", "/ns/a/%2F", "/ns/a/1"]
    assert changes(client, "/ns/") == ([*items[:3], changes(client, "/ns/ab")[0][0] | {"path": "/ns/ab"}, items[3]], True)
    assert changes(client, "/nothing/") == ([], True)


@on_few
def test_a_document_as_it_was(client: Checked) -> None:
    """With the header fields of that time. Its entity-tags are all that there is to ask for."""
    first = client.put("/ns/a?ttl=1000", '{"x":1.0}')
    second = patch(client, "/ns/a", {"y": 2})
    other = client.put("/ns/b", "3")
    was = client.get(f"/ns/a?at={tag_of(first)}")
    assert (was.status, was.body, was.tag) == (200, b'{"x":1.0,"ttl":1000}\n', first.tag)
    assert was.headers["Last-Modified"] == first.headers["Last-Modified"]
    assert "Sunset" not in was.headers
    assert client.get(f"/ns/a?at={tag_of(second)}").json["y"] == 2
    assert client.get(f"/ns/b?at={tag_of(other)}").body == b"3\n"
    assert client.request("HEAD", f"/ns/a?at={tag_of(first)}").tag == first.tag
    assert client.get(f"/ns/a?at={tag_of(first)}", [("If-None-Match", first.tag)]).status == 304
    for path, tag in (("/ns/a", other), ("/ns/b", first), ("/ns/none", first), ("/other/a", first)):
        assert client.get(f"{path}?at={tag_of(tag)}").status == 404
    for text in ("0-0", "99999999999999-0", f"{int(tag_of(first).partition('-')[0]) - 1}-0"):
        assert client.get(f"/ns/a?at={text}").status == 404


REFUSED = [
    "/ns/a?at=",
    "/ns/a?at=x",
    "/ns/a?at=1",
    '/ns/a?at="1-1"',
    "/ns/a?at=1-1&at=1-2",
    "/ns/a?at=1-1&changes",
    "/ns/?at=1-1",
    "/?list&at=1-1",
    "/?list&changes",
    "/ns/a?changes&changes",
    "/ns/a?changes&limit=0",
    "/ns/?changes&limit=1001",
]


@on_two
def test_what_cannot_be_asked(client: Checked) -> None:
    """With 400; a document that is not there is 404, and neither is waited for, nor part of a batch."""
    client.put("/ns/a", "1")
    for target in REFUSED:
        assert client.get(target).status == 400, target
    assert client.get("/ns/none?changes").status == 404
    waited = client.get("/ns/none?changes", [("Prefer", "wait=20")])
    assert waited.status == 404
    waited = client.get("/ns/a?changes", [("Prefer", "wait=20")])
    assert (waited.status, "Preference-Applied" in waited.headers) == (200, False)
    assert batch(client, [("GET", "/ns/a?changes")]).status == 409


@on_two
def test_what_another_client_wrote(client: Checked, raw: redis.Redis) -> None:
    """Of a hash that is none of ours nothing is known, and of a copy not what the other one was."""
    raw.hset("kv:{ns}/mine", "a", "1")
    assert changes(client, "/ns/mine") == ([], False)
    tag = tag_of(client.put("/ns/a", DOCUMENT))
    raw.copy("kv:{ns}/a", "kv:{ns}/copy")
    assert changes(client, "/ns/copy") == ([], False)
    assert client.get(f"/ns/copy?at={tag}").status == 404
    raw.xadd("kv:{ns}!log", {"put": "a"})
    raw.xadd("kv:{ns}!log", {"nonsense": "a", "b": "c"})
    assert [item["value"] for item in changes(client, "/ns/")[0] if "value" in item] == [json.loads(DOCUMENT)]
    raw.set("kv:{ns}/text", "x")
    assert client.get("/ns/text?changes").status == 409


@on_few
def test_after_trimming(client: Checked, raw: redis.Redis) -> None:
    """What the log has lost is not shown, and that it has is said: of the document, and of the namespace."""
    tags = [tag_of(client.put("/ns/a", str(number))) for number in range(3)]
    client.put("/ns/b", "1")
    raw.xtrim(keys_of("ns").log, minid=tags[1], approximate=False)
    items, is_complete = changes(client, "/ns/a")
    assert ([item["value"] for item in items], is_complete) == ([2, 1], False)
    assert changes(client, "/ns/b")[1]
    items, is_complete = changes(client, "/ns/")
    assert ([item["value"] for item in items], is_complete) == ([1, 2, 1], False)
    assert client.get(f"/ns/a?at={tags[0]}").status == 404
    assert client.get(f"/ns/a?at={tags[1]}").json == 1
    raw.delete(keys_of("ns").log)
    assert changes(client, "/ns/a") == ([], False)
    assert changes(client, "/ns/") == ([], False)
    assert client.get(f"/ns/a?at={tags[2]}").status == 404


@on_few
def test_more_than_one_script_reads(client_with: Callable[..., Checked], raw: redis.Redis) -> None:
    """Of a long history, and of large documents: nothing is missed, and nothing comes twice."""
    client = client_with(KVSTORE_LOG_LENGTH="5000")
    for first in range(0, 1200, 400):
        requests = [("PUT", f"/ns/{('a', 'b')[number % 2]}", number) for number in range(first, first + 400)]
        batch(client, requests, atomic=False)
    assert [item["value"] for item in changes(client, "/ns/a?limit=1000")[0]] == list(range(1198, -1, -2))
    assert [item["value"] for item in changes(client, "/ns/?limit=1000")[0]] == list(range(1199, 199, -1))
    for number in range(5):
        client.put("/ns/a", json.dumps({f"m{each}": number for each in range(4000)}))
    items, is_complete = changes(client, "/ns/a?limit=1000")
    assert [item["value"]["m7"] for item in items[:5]] == [4, 3, 2, 1, 0]
    left = entries(raw)  # large changes leave less room for others
    assert (len(items), is_complete) == (len([entry for entry in left if entry.name == "a"]), False)
    assert len(changes(client, "/ns/?limit=1000")[0]) == len(left)


# --- Gone is gone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("go", DELETED.values(), ids=DELETED.keys())
def test_what_was_deleted_has_no_history(client: Checked, raw: redis.Redis, go: Callable[[Checked], object]) -> None:
    """Neither as long as it is not there, nor when there is another document."""
    client.put("/ns/a?ttl=50", DOCUMENT)
    tag = tag_of(client.put("/ns/a?ttl=50", MANY))
    client.delete("/ns/a")
    go(client)
    assert SECRET.encode() not in client.get("/ns/?changes").body
    client.put("/ns/a", "7")
    assert changes(client, "/ns/a")[0][0]["value"] == 7
    assert SECRET.encode() not in client.get("/ns/a?changes").body + client.get("/ns/?changes").body
    assert client.get(f"/ns/a?at={tag}").status == 404


@on_few
@pytest.mark.parametrize("ttl", ["50", "365d"])
@pytest.mark.parametrize("by", ["time", "another client"])
def test_what_has_expired_has_no_history(client: Checked, raw: redis.Redis, ttl: str, by: str) -> None:
    """Also where nobody has noticed yet, and where another client has deleted it without a word."""
    client.put("/ns/b", "1")
    client.put(f"/ns/a?ttl={ttl}", DOCUMENT)
    tag = tag_of(client.put(f"/ns/a?ttl={ttl}", DOCUMENT))
    if by == "time":
        expire(raw, "/ns/a")
    else:
        raw.delete("kv:{ns}/a")
    assert client.get("/ns/a?changes").status == 404
    assert client.get(f"/ns/a?at={tag}").status == 404
    items, _ = changes(client, "/ns/")
    assert next(item["op"] for item in items if item["path"] == "/ns/a") == ("expire" if by == "time" else "put")
    assert SECRET.encode() not in client.get("/ns/?changes").body
    client.put("/ns/a", "7")
    assert [item["value"] for item in changes(client, "/ns/a")[0]] == [7]
    assert client.get(f"/ns/a?at={tag}").status == 404
    assert SECRET.encode() not in client.get("/ns/?changes").body
    assert [item["value"] for item in changes(client, "/ns/")[0] if "value" in item] == [7, 1]


# --- Against a plain list -----------------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c/a", "c/b"])
steps = st.lists(
    st.tuples(st.sampled_from(["put", "put", "patch", "post", "delete", "expire", "recursive"]), names), max_size=25
)


@on_one
@settings(max_examples=25)
@given(steps=steps)
def test_against_a_plain_list(client: Checked, raw: redis.Redis, steps: list[tuple[str, str]]) -> None:
    """What a list of all changes says, without those of documents that are gone."""
    raw.flushall()
    log: list[tuple[str, str, Any]] = []  # op, path, value
    there: dict[str, Any] = {}

    def note(op: str, path: str, value: Any = None) -> None:
        if op in ("delete", "expire"):
            del there[path]
            log[:] = [each for each in log if each[1] != path or each[0] in ("delete", "expire")]
        else:
            there[path] = value
        log.append((op, path, value))

    for number, (step, name) in enumerate(steps):
        path = f"/ns/{name}"
        if step == "put":
            client.put(f"{path}?ttl=90", json.dumps({"n": number}))
            note("put", path, {"n": number})
        elif step == "patch":
            patch(client, f"{path}?ttl=90", {"m": number})
            note("patch", path, {**there.get(path, {}), "m": number})
        elif step == "post":
            note("put", post(client, "/ns/c/?ttl=90", number).json["path"], number)
        elif step == "delete" and path in there:
            client.delete(path)
            note("delete", path)
        elif step == "expire" and path in there:
            expire(raw, path)
            client.get("/ns/")  # which notices it
            note("expire", path)
        elif step == "recursive":
            client.delete("/ns/c/?recursive")
            for each in sorted(path for path in there if path.startswith("/ns/c/")):
                note("delete", each)
    for container in ("/ns/", "/ns/c/"):
        items, is_complete = changes(client, container)
        shown = [(item["op"], item["path"], item.get("value")) for item in items]
        assert shown == [each for each in reversed(log) if each[1].startswith(container)]
        assert is_complete
    for path in {each for _, each, _ in log}:
        if path in there:
            check_document(client, path, [(op, value) for op, where, value in reversed(log) if where == path])
        else:
            assert client.get(f"{path}?changes").status == 404


def check_document(client: Checked, path: str, expected: list[tuple[str, Any]]) -> None:
    """Its changes are the expected ones since it was last deleted, and each of them can be read."""
    items, is_complete = changes(client, path)
    since = next((at for at, (op, _) in enumerate(expected) if op in ("delete", "expire")), len(expected))
    assert [(item["op"], item["value"]) for item in items] == expected[:since]
    assert is_complete
    for item in items:
        was = client.get(f"{path}?at={item['etag'].strip(chr(34))}").json
        assert was == (item["value"] | {"ttl": item["ttl"]} if isinstance(item["value"], dict) else item["value"])


@on_one
def test_a_clock_that_goes_back(client: Checked, raw: redis.Redis) -> None:
    """Entity-tags go on from the last one, and so does the chain."""
    ahead = int(raw.time()[0]) * 1000 + 1_000_000
    first = client.put("/ns/a", "1")
    raw.xadd(keys_of("ns").log, {"delete": "x"}, id=f"{ahead}-0")
    client.put("/ns/a", "2")
    items, _ = changes(client, "/ns/a")
    assert [item["value"] for item in items] == [2, 1]
    assert client.get(f"/ns/a?at={tag_of(first)}").json == 1
