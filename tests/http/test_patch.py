"""PATCH: merge patch (RFC 7396), JSON Patch (RFC 6902), touch; what they keep, what they refuse, and many at once."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.commands.base import Again, Found, Stored, in_turns, settled
from kvstore.commands.changelog import parse_entry
from kvstore.commands.documents import Get
from kvstore.core import patch as trees
from kvstore.core.errors import ContentTooLarge, InvalidPatch, PatchFailed, PathNotThere
from kvstore.core.paths import parse_path
from kvstore.core.settings import YEAR_S, Settings
from kvstore.http.messages import Request
from kvstore.http.protocol import parse
from tests.support.asking import (
    JSON,
    LATE_S,
    MERGE,
    Left,
    as_body,
    at_once,
    batch,
    command_of,
    entries,
    json_patch,
    patch,
    run_script,
    same,
    timeless,
    touch,
    without_ttl,
)
from tests.support.clients import Checked
from tests.support.lanes import on_few, on_one, on_servers, on_two
from tests.support.stores import Running, contents, wait_until

# --- Merge patch --------------------------------------------------------------------------------------------------------

# RFC 7396, Appendix A: original, patch, result.
APPENDIX = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"e":null,"a":1}'),
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
]
# What its section 2 says besides.
MORE = [
    ("{}", "{}", "{}"),
    ("[1]", "{}", "{}"),
    ("5", '{"a":{"b":null}}', '{"a":{}}'),
    ('{"a":5}', '{"a":{"b":1}}', '{"a":{"b":1}}'),
    ('{"a":[1,null]}', '{"b":[null,{"c":null}]}', '{"a":[1,null],"b":[null,{"c":null}]}'),
    ('{"a":{"b":{"c":1,"d":2}}}', '{"a":{"b":{"c":null,"e":[]}}}', '{"a":{"b":{"d":2,"e":[]}}}'),
    ('{"a":1}', '{"b":null}', '{"a":1}'),
    ('{"":1}', '{"":null,"x":{"":1}}', '{"x":{"":1}}'),
    ('{"$kv":1,"$value":2}', '{"$kv":null,"$kv$":3,"$value":4}', '{"$kv$":3,"$value":4}'),
    ('{"a":{"ttl":1}}', '{"a":{"ttl":null,"x":1}}', '{"a":{"x":1}}'),
    ("5", '{"$value":1}', '{"$value":1}'),
]


@on_few
def test_merge_patch(client: Checked, raw: redis.Redis) -> None:
    """Every row for a document, and for a member of one; the answer, what is stored, and the log say the same."""
    for original, merge_patch, result in APPENDIX + MORE:
        tag = client.put("/ns/a", original).tag
        check_patched(client, raw, patch(client, "/ns/a", merge_patch), result, tag)
        if merge_patch != "null":
            tag = client.put("/ns/a", f'{{"m":{original}}}').tag
            check_patched(client, raw, patch(client, "/ns/a", f'{{"m":{merge_patch}}}'), f'{{"m":{result}}}', tag)


def check_patched(client: Checked, raw: redis.Redis, answer: Any, result: str, old_tag: str) -> None:
    got = client.get("/ns/a")
    assert (answer.status, got.status) == (200, 200)
    assert answer.tag == got.tag != old_tag
    assert timeless(answer.body) == timeless(got.body)
    assert same(without_ttl(got.json), json.loads(result))
    entry = entries(raw)[-1]
    assert (entry.op, entry.name, f'"{entry.id}"') == ("patch", "a", got.tag)
    text = entry.text or b""
    ttl = b'%b"ttl":0}\n' % (b"," if len(text) > 2 else b"")
    assert timeless(got.body) == (text[:-1] + ttl if text.startswith(b"{") else text + b"\n")
    assert (entry.ttl_ms or 0) > (YEAR_S - 60) * 1000


ON_NOTHING = [
    ('{"a":1,"b":null}', '{"a":1}'),
    ('{"a":{"b":null,"c":1},"d":null}', '{"a":{"c":1}}'),
    ("{}", "{}"),
    ("[null]", "[null]"),
    ("7", "7"),
    ("null", "null"),
]


@on_few
@pytest.mark.parametrize("headers", [[MERGE], [], [("Content-Type", "application/json; charset=utf-8")]])
def test_merge_patch_on_nothing(client: Checked, headers: list[Any]) -> None:
    """It creates, 201 with Location, and takes nulls away."""
    for merge_patch, result in ON_NOTHING:
        client.delete("/ns/a")
        answer = client.request("PATCH", "/ns/%61", headers, merge_patch.encode())
        assert (answer.status, answer.headers["Location"]) == (201, "/ns/a")
        got = client.get("/ns/a")
        assert same(without_ttl(got.json), json.loads(result))
        assert (timeless(got.body), got.tag) == (timeless(answer.body), answer.tag)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab$", max_size=2), inner, max_size=4),
    max_leaves=12,
)


def merged(target: Any, merge_patch: Any) -> Any:
    """RFC 7396 section 2, word for word."""
    if isinstance(merge_patch, dict):
        if not isinstance(target, dict):
            target = {}
        for name, value in merge_patch.items():
            if value is None:
                if name in target:
                    del target[name]
            else:
                target[name] = merged(target.get(name), value)
        return target
    return merge_patch


@on_few
@settings(max_examples=50)
@given(json_values, json_values)
def test_any_merge_patch(client: Checked, original: Any, merge_patch: Any) -> None:
    """Whatever is patched with whatever, the result is what the RFC's pseudocode makes of it."""
    client.put("/ns/a", as_body(json.dumps(original)))
    answer = patch(client, "/ns/a", json.dumps(merge_patch))
    expected = merged(json.loads(json.dumps(original)), merge_patch)
    assert same(without_ttl(answer.json), expected)
    assert timeless(client.get("/ns/a").body) == timeless(answer.body)


# --- JSON Patch ---------------------------------------------------------------------------------------------------------

TABLE = json.loads((Path(__file__).parents[1] / "support" / "json_patch_tests.json").read_text("utf-8"))["tests"]
# What the table leaves out: document, patch, result or status.
ROWS: list[tuple[str, str, str | int | tuple[int, int]]] = [
    ('{"a":1}', '[{"op":"replace","path":"","value":[1]}]', "[1]"),
    ('"foo"', '[{"op":"replace","path":"","value":"bar"}]', '"bar"'),
    ('{"a":{"b":1}}', '[{"op":"copy","from":"/a","path":""}]', '{"b":1}'),
    ('{"a":[1]}', '[{"op":"move","from":"/a","path":""}]', "[1]"),
    ('{"a":1}', '[{"op":"move","from":"/a","path":"/a"}]', '{"a":1}'),
    ('{"a":{"b":1}}', '[{"op":"move","from":"/a","path":"/a/b"}]', 422),
    ('{"a":{"b":1}}', '[{"op":"copy","from":"/a","path":"/a/b"}]', '{"a":{"b":{"b":1}}}'),
    ('{"a":1}', '[{"op":"remove","path":""}]', 422),
    ('{"a":[1,2]}', '[{"op":"remove","path":"/a/-"}]', 422),
    ('{"a":[1,2]}', '[{"op":"test","path":"/a/-","value":2}]', 422),
    ('{"a":[1,2]}', '[{"op":"remove","path":"/a/00"}]', 422),
    ('{"a":[1,2]}', '[{"op":"remove","path":"/a/+1"}]', 422),
    ('{"a":[1,2]}', '[{"op":"remove","path":"/a/\u0661"}]', 422),
    ('{"a":[1,2]}', '[{"op":"add","path":"/a/99999999999999999999","value":1}]', 422),
    ('{"a":"x"}', '[{"op":"add","path":"/a/0","value":1}]', 422),
    ('{"a":null}', '[{"op":"add","path":"/a/b","value":1}]', 422),
    ('{"a":1}', '[{"op":"replace","path":"/b","value":1}]', 422),
    ('{"a":1}', '[{"op":"remove","path":"/b"}]', 422),
    ('{"a":1}', '[{"op":"test","path":"/b","value":null}]', (409, 422)),
    ('{"a":1}', '[{"op":"copy","from":"/b","path":"/c"}]', 422),
    ('{"a":1}', '[{"op":"test","path":"/a","value":true}]', 409),
    ('{"a":0}', '[{"op":"test","path":"/a","value":false}]', 409),
    ('{"a":1}', '[{"op":"test","path":"/a","value":"1"}]', 409),
    ('{"a":1.0}', '[{"op":"test","path":"/a","value":1}]', '{"a":1.0}'),
    ('{"a":1e2}', '[{"op":"test","path":"/a","value":100}]', '{"a":1e2}'),
    ('{"a":1.000000000000000005}', '[{"op":"test","path":"/a","value":1}]', 409),
    ('{"a":9007199254740993}', '[{"op":"test","path":"/a","value":9007199254740992}]', 409),
    ('{"a":1,"b":2}', '[{"op":"test","path":"","value":{"b":2,"a":1}}]', '{"a":1,"b":2}'),
    ('{"a":1}', '[{"op":"remove","path":"/a"},{"op":"test","path":"/b","value":1}]', (409, 422)),
    ('{"a":1}', '[{"op":"add","path":"/b","value":2},{"op":"test","path":"/a","value":2}]', 409),
    ('{"a/b":1,"c~d":2}', '[{"op":"remove","path":"/a~1b"},{"op":"remove","path":"/c~0d"}]', "{}"),
    ('{"a":[1]}', '[{"op":"copy","from":"/a","path":"/c"},{"op":"add","path":"/c/-","value":2}]', '{"a":[1],"c":[1,2]}'),
    ('{"$kv":1}', '[{"op":"move","from":"/$kv","path":"/$value"}]', '{"$value":1}'),
    ("{}", "[]", "{}"),
    ("{}", '[{"op":"add","path":"/a","value":1,"unknown":[]}]', '{"a":1}'),
    ("{}", '[{"op":"add","path":"/a","value":1,"from":7}]', '{"a":1}'),
    # malformed
    ("{}", "{}", 400),
    ("{}", "null", 400),
    ("{}", "[1]", 400),
    ("{}", "[null]", 400),
    ("{}", "[[]]", 400),
    ("{}", "[{}]", 400),
    ("{}", '[{"op":"add","path":"/a"}]', 400),
    ("{}", '[{"op":"add","value":1}]', 400),
    ("{}", '[{"op":"Add","path":"/a","value":1}]', 400),
    ("{}", '[{"op":["add"],"path":"/a","value":1}]', 400),
    ("{}", '[{"op":"add","path":"a","value":1}]', 400),
    ("{}", '[{"op":"add","path":"#/a","value":1}]', 400),
    ("{}", '[{"op":"add","path":5,"value":1}]', 400),
    ("{}", '[{"op":"add","path":null,"value":1}]', 400),
    ("{}", '[{"op":"copy","path":"/a","from":["a"]}]', 400),
    ("{}", '[{"op":"move","path":"/a","from":"a"}]', 400),
    ("{}", '[{"op":"add","path":"/~","value":1}]', 400),
    ("{}", '[{"op":"add","path":"/a~2","value":1}]', 400),
    ("{}", '[{"op":"add","path":"/~0~","value":1}]', 400),
    ("{}", '[{"op":"add","path":"/~~01","value":1}]', 400),
    ("{}", '[{"op":"add","path":"/~~10","value":1}]', 400),
    ("{}", '[{"op":"add","path":"/a","value":1,"op":"remove"}]', 400),
    ("{}", '[{"op":"add","path":"/a","value":1}', 400),
    ("{}", '[{"op":"add","path":"/a","value":NaN}]', 400),
    ("{}", '[{"op":"add","path":"/a","value":1e400}]', 400),
    ("{}", '[{"op":"add","path":"/\\ud800","value":1}]', 400),
    ('{"a":1}', '[{"op":"remove","path":"/b"},{"op":"spam","path":"/a"}]', 400),
    # ttl is no member
    ('{"a":1}', '[{"op":"add","path":"/ttl","value":1}]', 422),
    ('{"a":1}', '[{"op":"test","path":"/ttl","value":1}]', 422),
    ('{"a":1}', '[{"op":"remove","path":"/ttl"}]', 422),
    ('{"a":1}', '[{"op":"move","from":"/ttl","path":"/b"}]', 422),
    ('{"a":1}', '[{"op":"copy","from":"/a","path":"/ttl"}]', 422),
    ('{"a":1}', '[{"op":"add","path":"/ttl/x","value":1}]', 422),
    ('{"a":{}}', '[{"op":"add","path":"/a/ttl","value":1}]', '{"a":{"ttl":1}}'),
    ("{}", '[{"op":"add","path":"/ttls","value":1}]', '{"ttls":1}'),
]  # fmt: skip


def patched(document: trees.Tree, operations: trees.Tree) -> bytes:
    """The text of a document after a JSON Patch."""
    return trees.dump(settled(in_turns(trees.apply(document, trees.check_json_patch(operations), 1000))))


@pytest.mark.parametrize("row", TABLE, ids=[f"{n}-{row.get('comment', '')[:40]}" for n, row in enumerate(TABLE)])
def test_the_public_table(row: dict[str, Any]) -> None:
    """The public tests of JSON Patch: json_patch_tests.json, from github.com/json-patch/json-patch-tests, Apache-2.0."""
    document, operations = (trees.load(json.dumps(row[name]).encode()) for name in ("doc", "patch"))
    if "error" in row:
        with pytest.raises((InvalidPatch, PatchFailed, PathNotThere)):
            patched(document, operations)
        return
    result = json.loads(patched(document, operations))
    assert same(result, row.get("expected", row["doc"]))


@on_few
def test_the_public_table_over_http(client: Checked, raw: redis.Redis) -> None:
    """The same rows, all of them, and one that is refused changes nothing."""
    for row in TABLE:
        client.put("/ns/a", json.dumps(row["doc"]))
        before = contents(raw)
        answer = json_patch(client, "/ns/a", json.dumps(row["patch"]))
        if "error" in row:
            assert answer.status in (400, 409, 422), row
            assert contents(raw) == before
        else:
            assert answer.status == 200, row
            assert same(without_ttl(client.get("/ns/a").json), row.get("expected", row["doc"]))


@on_few
def test_json_patch(client: Checked, raw: redis.Redis) -> None:
    """All or nothing; a malformed patch 400, a failed test 409, a path that is not there 422."""
    for document, operations, result in ROWS:
        tag = client.put("/ns/a", document).tag
        before = contents(raw)
        answer = json_patch(client, "/ns/a", operations)
        if isinstance(result, str):
            check_patched(client, raw, answer, result, tag)
        else:
            assert answer.status in (result if isinstance(result, tuple) else (result,)), (operations, answer)
            assert contents(raw) == before, operations


# Numbers that are JSON, that a double holds (as 0), and that Python's Decimal does not.
TINY = [
    "1e-" + "9" * 5000,
    "1e-99999999999999999999",
    "-0e-9999999999999999999999",
    "0e99999999999999999999",
    "0.0e-999999999999999999",
]


@on_few
@pytest.mark.parametrize("number", TINY, ids=lambda number: number[:24])
def test_numbers_of_any_exponent(client: Checked, number: str) -> None:
    """A number whose exponent is out of all reason is compared like any other."""
    client.put("/ns/a", f'{{"a":{number}}}')
    assert json_patch(client, "/ns/a", '[{"op":"test","path":"/a","value":1}]').status == 409
    assert json_patch(client, "/ns/a", f'[{{"op":"test","path":"/a","value":{number}}}]').status == 200
    client.put("/ns/a", '{"a":1}')
    assert json_patch(client, "/ns/a", f'[{{"op":"test","path":"/a","value":{number}}}]').status == 409


def test_json_patch_on_nothing(client: Checked, raw: redis.Redis) -> None:
    """A JSON Patch needs a document: 404, but a malformed one is malformed first."""
    answer = json_patch(client, "/ns/a", '[{"op":"add","path":"","value":1}]')
    assert answer.status == 404
    assert "thing doesn't exist" in answer.json["detail"]
    assert json_patch(client, "/ns/a", '[{"op":"spam"}]').status == 400
    assert raw.keys() == []


@given(json_values, st.lists(st.fixed_dictionaries({}, optional={
    "op": st.sampled_from(["add", "remove", "replace", "move", "copy", "test", "x"]),
    "path": st.sampled_from(["", "/", "/a", "/b", "/a/b", "/a/0", "/a/-", "/0", "/~", "a", 1]),
    "from": st.sampled_from(["", "/a", "/b", "/a/b", "/a/0", None]),
    "value": json_values,
}), max_size=4))  # fmt: skip
def test_any_json_patch(document: Any, operations: list[Any]) -> None:
    """No patch fails in another way than by a Problem, and what it makes is JSON."""
    with suppress(InvalidPatch, PatchFailed, PathNotThere, ContentTooLarge):
        json.loads(patched(trees.load(json.dumps(document).encode()), trees.load(json.dumps(operations).encode())))


# --- What is kept -------------------------------------------------------------------------------------------------------

SPELLED = '{"z":1.0,"a":[1e2,-0,"\\u00e9",{"y":1.000000000000000005,"b":[]}],"m":{"k":0.10},"c":12345678901234567890123}'
PATCHES: list[tuple[Any, str]] = [
    ([MERGE], '{"new":1E+2}'),
    ([MERGE], '{"new":{"x":1E+2}}'),
    ([MERGE], '{"m":{"k2":1.50}}'),
    ([JSON], '[{"op":"add","path":"/new","value":1E+2}]'),
    ([JSON], '[{"op":"move","from":"/m/k","path":"/m/k3"}]'),
    ([JSON], '[{"op":"copy","from":"/a","path":"/new"}]'),
]


@on_few
@pytest.mark.parametrize(("headers", "body"), PATCHES)
def test_order_and_spelling_are_kept(client: Checked, headers: Any, body: str) -> None:
    """Members that a patch leaves alone keep their order, their numbers their spelling."""
    client.put("/ns/a", SPELLED)
    for _ in range(2):
        answer = client.request("PATCH", "/ns/a", headers, body.encode())
        if answer.status == 200:
            text = answer.body.decode()
            for spelled in ("1.0", "1e2", "-0", "1.000000000000000005", "12345678901234567890123", "0.10"):
                assert spelled in text
            assert [name for name in answer.json if name in "zamc"] == ["z", "a", "m", "c"]
            assert list(answer.json)[-1] == "ttl"
            assert timeless(client.get("/ns/a").body) == timeless(answer.body)
        assert answer.status in (200, 422)


NAMES = ["a", "b", "c", "$kv", "$kv$", "$value", "é", "/", '",null,"', "\x7f", "null", '"']
members: st.SearchStrategy[Any] = st.none() | st.integers(0, 9) | st.just([])
flat_patches = st.dictionaries(st.sampled_from(NAMES), members, max_size=5)


@on_few
@settings(max_examples=40)
@given(st.lists(st.sampled_from(NAMES), unique=True), st.lists(flat_patches, max_size=12), st.booleans())
def test_the_order_of_members(
    client: Checked, raw: redis.Redis, names: list[str], patches: list[dict[str, Any]], batched: bool
) -> None:
    """Whatever flat patches do, the members have the order that those of a Python dict would have; also in the log."""
    client.put("/ns/a", as_body(dict.fromkeys(names, 0)))
    expected: dict[str, Any] = dict.fromkeys(names, 0)
    for each in patches:
        if batched:
            batch(client, [("PUT", "/ns/b", 1), ("PATCH", "/ns/a", each)])
        else:
            patch(client, "/ns/a", each)
        for name, value in each.items():
            if value is None:
                expected.pop(name, None)
            else:
                expected[name] = value
        assert list(without_ttl(client.get("/ns/a").json).items()) == list(expected.items())
    change = parse_entry(raw.eval("return redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]", 1, "kv:{ns}!log"))
    assert change
    assert list(json.loads(change.text or b"")) == list(expected)


@on_few
def test_members_that_others_add(client: Checked, raw: redis.Redis) -> None:
    """They are sorted, after the members that were there in the first place and before those that a patch adds."""
    client.put("/ns/a", '{"z":1,"y":2}')
    raw.hset("kv:{ns}/a", "n", "3")
    patch(client, "/ns/a", {"x": 4, "a": 5})
    raw.hset("kv:{ns}/a", "m", "6")
    assert list(client.get("/ns/a").json) == ["z", "y", "m", "n", "x", "a", "ttl"]
    raw.hset("kv:{ns}/b", mapping={"b": 1, "a": 2, "$kv$": 3})
    assert list(patch(client, "/ns/b", {"A": 4}).json) == ["$kv$", "a", "b", "A"]


@on_few
def test_names_that_come_and_go(client: Checked, raw: redis.Redis) -> None:
    """The list of names stays as short as the document, whatever was added and taken away."""
    client.put("/ns/a", '{"b":1,"a":2}')
    for n in range(300):
        patch(client, "/ns/a", {f"name{n}": n, f"name{n - 1}": None})
    assert list(patch(client, "/ns/a", {"b": None, "c": 1}).json) == ["a", "name299", "c", "ttl"]
    assert raw.hstrlen("kv:{ns}/a", "$kv") < 300


@on_few
def test_names_that_are_gone(client: Checked, raw: redis.Redis) -> None:
    """A document that has lost most of its members keeps the order of the others, and nothing of those."""
    names = ['"', "$kv", "é", "\\", "$kv$", "/", "\n", "a", "\x7f"]
    client.put("/ns/a", as_body(dict.fromkeys([*names, *(f"m{n}" for n in range(9000, 0, -1))], 1)))
    answer = patch(client, "/ns/a", {"new": 1, **{f"m{n}": None for n in range(9000, 0, -1)}})
    assert list(answer.json) == [*names, "new", "ttl"]
    assert list(client.get("/ns/a").json) == list(answer.json)
    assert raw.hstrlen("kv:{ns}/a", "$kv") < 200
    patch(client, "/ns/a", dict.fromkeys([*names, "new"]))
    meta: Any = raw.hget("kv:{ns}/a", "$kv")
    raw.hset("kv:{ns}/a", "$kv", meta.split()[0] + b" object [1,[]," + b" " * 100 + b"{}]")
    assert list(patch(client, "/ns/a", {"b": 1, "a": 2}).json.items())[:-1] == [("b", 1), ("a", 2)]


@on_two
def test_the_log_of_long_lists_of_names(client: Checked, raw: redis.Redis) -> None:
    """What our own field holds counts where the log is bounded by bytes."""
    document = as_body({f"{n}" + "x" * 100: n for n in range(3500, 0, -1)})
    for _ in range(20):
        client.put("/ns/a", document)
    log: Any = raw.xrange("kv:{ns}!log")
    held = sum(len(part) for entry in log for pair in entry[1].items() for part in pair)
    assert held < 5_000_000


def test_a_flat_patch_leaves_other_fields_alone(client: Checked, raw: redis.Redis) -> None:
    """Fields of another client stay as they are, byte for byte."""
    client.put("/ns/a", '{"n":1}')
    raw.hset("kv:{ns}/a", "theirs", " bare\xff ".encode("latin-1"))
    patch(client, "/ns/a", '{"n":2}')
    assert raw.hget("kv:{ns}/a", "theirs") == " bare\xff ".encode("latin-1")
    raw.hincrby("kv:{ns}/a", "n", 5)
    assert patch(client, "/ns/a", '{"m":{"x":1}}').json["n"] == 7


# --- TTL ----------------------------------------------------------------------------------------------------------------

# The target's query, the patch, and the TTL that a document of 1,000 s has then, and what is created; None: 400.
TTLS: list[tuple[str, str, int, int]] = [
    ("", '{"b":1}', 1000, YEAR_S),
    ("", '{"b":{"c":1}}', 1000, YEAR_S),
    ("", "[1]", 1000, YEAR_S),
    ("?ttl=90", '{"b":1}', 90, 90),
    ("?ttl=2h", '{"b":{"c":1}}', 7200, 7200),
    ("?ttl=90s", "[1]", 90, 90),
    ("", '{"ttl":90}', 90, 90),
    ("", '{"b":1,"ttl":90}', 90, 90),
    ("", '{"ttl":90,"b":{"c":1}}', 90, 90),
    ("?ttl=80", '{"ttl":90,"b":{"c":1}}', 80, 80),
    ("?ttl=80", '{"ttl":90,"b":1}', 80, 80),
]


@on_few
@pytest.mark.parametrize(("query", "merge_patch", "kept_s", "created_s"), TTLS)
def test_ttl(
    client: Checked, store: Running, raw: redis.Redis, *, query: str, merge_patch: str, kept_s: int, created_s: int
) -> None:
    """A PATCH keeps the expiry unless it asks for another; query before member; what it creates starts with the default."""
    for document in ('{"a":1}', "[1]", None):
        client.delete("/ns/a")
        if document:
            client.put("/ns/a?ttl=1000", document)
        answer = patch(client, f"/ns/a{query}", merge_patch)
        assert answer.status == (200 if document else 201)
        ttl_s = kept_s if document else created_s
        assert (ttl_s - LATE_S) * 1000 < raw.pttl("kv:{ns}/a") <= ttl_s * 1000
        assert abs((entries(raw)[-1].ttl_ms or 0) - ttl_s * 1000) < LATE_S * 1000
        assert "ttl" not in answer.json or answer.json["ttl"] == Left(ttl_s)
        assert (raw.zscore("kv:{ns}!expiry", "a") or 0) <= raw.pexpiretime("kv:{ns}/a") + store.clock_ms
    if query:
        client.put("/ns/a?ttl=1000", "{}")
        assert json_patch(client, f"/ns/a{query}", "[]").status == 200
        assert (kept_s - LATE_S) * 1000 < raw.pttl("kv:{ns}/a") <= kept_s * 1000


BAD_TTLS = [
    ("?ttl=0", '{"b":1}'),
    ("?ttl=", '{"b":1}'),
    ("?ttl=1y", "{}"),
    ("?ttl=366d", '{"b":{"c":1}}'),
    ("?ttl=5&ttl=5", '{"b":1}'),
    ("", '{"ttl":null}'),
    ("", '{"ttl":0}'),
    ("", '{"ttl":"90"}'),
    ("", '{"ttl":{}}'),
    ("", '{"ttl":{".sv":"timestamp"}}'),
    ("", '{"ttl":-1,"b":{"c":1}}'),
    ("?ttl=90", '{"ttl":0}'),
    ("?ttl=90", '{"ttl":0,"b":{}}'),
    ("?ttl=0", ""),
    ("?ttl=x", ""),
    ("", ""),
    ("?x=1", ""),
]


def test_bad_ttl(client: Checked, raw: redis.Redis) -> None:
    """A TTL that cannot be is refused, and so is an empty PATCH without one."""
    client.put("/ns/a", '{"a":1}')
    before = contents(raw)
    for query, body in BAD_TTLS:
        assert client.request("PATCH", f"/ns/a{query}", [], body.encode()).status == 400, (query, body)
        assert patch(client, f"/ns/a{query}", body).status == 400, (query, body)
    assert contents(raw) == before


def test_touch(client: Checked, store: Running, raw: redis.Redis) -> None:
    """Only the expiry changes: the entity-tag stays, and the log says nothing. On nothing 404."""
    for document in ('{"z":1.0,"a":[]}', "[1]"):
        stored = client.put("/ns/a?ttl=1000", document)
        length, hash_ = len(entries(raw)), raw.hgetall("kv:{ns}/a")
        for query, ttl_s in (("1h", 3600), ("90", 90), ("365d", YEAR_S)):
            answer = touch(client, f"/ns/a?ttl={query}")
            assert (answer.status, answer.tag) == (200, stored.tag)
            assert same(without_ttl(answer.json), json.loads(document))
            assert timeless(answer.body) == timeless(client.get("/ns/a").body)
            assert (ttl_s - LATE_S) * 1000 < raw.pttl("kv:{ns}/a") <= ttl_s * 1000
            assert (raw.zscore("kv:{ns}!expiry", "a") or 0) <= raw.pexpiretime("kv:{ns}/a") + store.clock_ms
        assert len(entries(raw)) == length
        assert raw.hgetall("kv:{ns}/a") == hash_
        client.delete("/ns/a")
    assert touch(client, "/ns/a?ttl=1h").status == 404
    assert touch(client, "/other/a?ttl=1h").status == 404
    assert not raw.keys("kv:{other}*")


def test_touch_makes_the_namespace_live_on(client: Checked, raw: redis.Redis) -> None:
    """The log and the indexes stay longer than the document whose life was lengthened."""
    client.put("/ns/a?ttl=10", "1")
    touch(client, "/ns/a?ttl=300d")
    for key in ("kv:{ns}!log", "kv:{ns}!names", "kv:{ns}!expiry"):
        assert raw.pexpiretime(key) > raw.pexpiretime("kv:{ns}/a"), key


@on_one
def test_a_touch_can_end_a_document(client: Checked) -> None:
    """A shorter life counts from now, and the container comes to know."""
    client.put("/ns/a", "1")
    tag = client.get("/ns/").tag
    touch(client, "/ns/a?ttl=1")
    wait_until(lambda: client.get("/ns/a").status == 404, 30)
    listing = client.get("/ns/", [("If-None-Match", tag)])
    assert (listing.status, listing.json["items"]) == (200, [])


def test_an_expired_document_is_not_patched(client: Checked, raw: redis.Redis) -> None:
    """What has expired is nothing to a PATCH, and what it creates has a new entity-tag and the default TTL."""
    for merge_patch in ('{"b":1}', '{"b":{"c":1}}'):
        old = client.put("/ns/a?ttl=1000", '{"a":1}')
        raw.pexpireat("kv:{ns}/a", 1)
        assert json_patch(client, "/ns/a", "[]").status == 404
        assert touch(client, "/ns/a?ttl=5").status == 404
        assert patch(client, "/ns/a", merge_patch, [("If-Match", "*")]).status == 412
        answer = patch(client, "/ns/a", merge_patch)
        assert answer.status == 201
        assert answer.tag != old.tag
        assert answer.json == {**json.loads(merge_patch), "ttl": YEAR_S}
        assert [entry.op for entry in entries(raw)][-2:] == ["expire", "patch"]


# --- Preconditions ------------------------------------------------------------------------------------------------------

# For PATCH: header, value, nothing there, tag matches, tag differs.
PRECONDITIONS = [
    ("If-Match", '"t"', 412, 200, 412),
    ("If-Match", "*", 412, 200, 200),
    ("If-None-Match", "*", 201, 412, 412),
    ("If-None-Match", '"t"', 201, 412, 200),
    ("If-Match", '"x", "t"', 412, 200, 412),
    ("If-Match", 'W/"t"', 412, 412, 412),
    ("If-None-Match", 'W/"t"', 201, 412, 200),
    ("If-Match", "t", 400, 400, 400),
    ("If-Unmodified-Since", "Fri, 31 Dec 2100 23:59:59 GMT", 201, 200, 200),
    ("If-Unmodified-Since", "Sun, 06 Nov 1994 08:49:37 GMT", 201, 412, 412),
]
KINDS: list[tuple[Any, str, bytes]] = [
    ([MERGE], "/ns/a", b'{"b":1}'),
    ([MERGE], "/ns/a", b'{"b":{"c":1}}'),
    ([MERGE], "/ns/a", b"[1]"),
    ([JSON], "/ns/a", b'[{"op":"add","path":"","value":{"x":1}}]'),
    ([], "/ns/a?ttl=50", b""),
]


@on_few
@pytest.mark.parametrize(("headers", "target", "body"), KINDS, ids=["flat", "nested", "value", "JSON Patch", "touch"])
def test_preconditions(client: Checked, raw: redis.Redis, headers: Any, target: str, body: bytes) -> None:
    """The table of section 4, for every kind of PATCH; one that fails says what is there and changes nothing."""
    for header, value, on_nothing, on_match, on_other in PRECONDITIONS:
        on_missing = 404 if on_nothing == 201 and (not body or headers == [JSON]) else on_nothing
        client.delete("/ns/a")
        earlier = client.put("/ns/a", '{"a":1.0}').tag
        client.delete("/ns/a")
        for there, status in (("nothing", on_missing), ("tag", on_match), ("other", on_other)):
            tag = None if there == "nothing" else client.put("/ns/a", '{"a":1.0}').tag
            before = contents(raw)
            sent = tag if tag and there == "tag" else earlier
            answer = client.request("PATCH", target, [*headers, (header, value.replace('"t"', sent))], body)
            assert answer.status == status, (header, value, there)
            assert (contents(raw) == before) == (status >= 400)
            if status == 412:
                assert answer.json["etag"] == tag
                assert (b'"current":{"a":1.0,"ttl":' in answer.body) == (tag is not None)


# --- Documents of other clients -----------------------------------------------------------------------------------------


@on_few
@pytest.mark.parametrize("life_s", [None, 500])
@pytest.mark.parametrize(("headers", "body"), [
    ([MERGE], '{"b":1}'),
    ([MERGE], '{"b":{"c":1}}'),
    ([MERGE], '{"x":null,"b":1}'),
    ([JSON], '[{"op":"add","path":"/b","value":1}]'),
])  # fmt: skip
def test_a_foreign_hash(client: Checked, raw: redis.Redis, headers: Any, body: str, life_s: int | None) -> None:
    """A hash of another client is patched: its members stay, its expiry stays, and now it has an entity-tag and is listed."""
    raw.hset("kv:{ns}/a", mapping={"n": "42", "x": "02139", "y": "hello"})
    if life_s:
        raw.expire("kv:{ns}/a", life_s)
    assert client.request("PATCH", "/ns/a", [*headers, ("If-Match", '"1-1"')], body.encode()).status == 412
    answer = client.request("PATCH", "/ns/a", [*headers, ("If-Match", "*")], body.encode())
    assert answer.status == 200
    expected = {"n": 42, "y": "hello", "b": {"c": 1} if "{" in body[1:] and headers == [MERGE] else 1}
    if "null" not in body:
        expected["x"] = "02139"
    if life_s:
        expected["ttl"] = Left(life_s)
    assert answer.json == expected
    got = client.get("/ns/a")
    assert (got.json, got.tag) == (expected, answer.tag)
    assert raw.ttl("kv:{ns}/a") == (Left(life_s) if life_s else -1)
    assert [item["name"] for item in client.get("/ns/").json["items"]] == ["a"]
    assert entries(raw)[-1].ttl_ms == -1 if not life_s else (entries(raw)[-1].ttl_ms or 0) > 0


# A flat patch of a hash whose members are named as our own field is, and what of it is there then.
OUR_NAMES = [
    ({"b": 4}, {"$kv": 1, "$kv$": 2, "$kv$$": "x", "a": 3, "b": 4}),
    ({"$kv": 5}, {"$kv": 5, "$kv$": 2, "$kv$$": "x", "a": 3}),
    ({"$kv$": None}, {"$kv": 1, "$kv$$": "x", "a": 3}),
    ({"$kv": None, "$kv$": 5, "$kv$$$": 6}, {"$kv$": 5, "$kv$$": "x", "$kv$$$": 6, "a": 3}),
    ({"$kv": None, "$kv$": None, "$kv$$": None, "a": None}, {}),
]


@on_few
@pytest.mark.parametrize(("body", "document"), OUR_NAMES)
def test_our_names_in_a_foreign_hash(client: Checked, raw: redis.Redis, body: Any, document: Any) -> None:
    """No member of it is lost or renamed when it becomes a document of ours, nor is its expiry."""
    raw.hset("kv:{ns}/a", mapping={"$kv": "1", "$kv$": "2", "$kv$$": "x", "a": "3"})
    raw.expire("kv:{ns}/a", 500)
    answer = patch(client, "/ns/a", body)
    assert (answer.status, answer.json) == (200, {**document, "ttl": Left(500)})
    assert without_ttl(client.get("/ns/a").json) == document
    assert json.loads(entries(raw)[-1].text or b"") == document


def test_touch_of_a_foreign_hash(client: Checked, raw: redis.Redis) -> None:
    """It gets a life of ours, and no entity-tag."""
    raw.hset("kv:{ns}/a", "n", "42")
    answer = touch(client, "/ns/a?ttl=90")
    assert (answer.status, answer.json) == (200, {"n": 42, "ttl": 90})
    assert "ETag" not in answer.headers
    assert not entries(raw)


@on_few
@pytest.mark.parametrize(("headers", "target", "body"), KINDS, ids=["flat", "nested", "value", "JSON Patch", "touch"])
def test_another_type(client: Checked, raw: redis.Redis, headers: Any, target: str, body: bytes) -> None:
    """A key of ours that is no hash is 409, and stays."""
    client.put("/ns/b", "1")
    raw.set("kv:{ns}/a", "x")
    before = contents(raw)
    assert client.request("PATCH", target, headers, body).status == 409
    assert contents(raw) == before


# --- What is refused ----------------------------------------------------------------------------------------------------

UNREAD = [
    ([("Content-Type", "text/html")], b"{}"),
    ([("Content-Type", "application/xml")], b"{}"),
    ([MERGE, ("Content-Encoding", "gzip")], b"{}"),
    ([JSON, ("Content-Encoding", "gzip")], b"[]"),
    ([JSON, ("Content-Encoding", "br")], b'[{"op":"add","path":"/b","value":1}]'),
]


@on_few
@pytest.mark.parametrize(("headers", "body"), UNREAD)
def test_415(client: Checked, raw: redis.Redis, headers: Any, body: bytes) -> None:
    """A format that we do not read, or an encoding: 415, which says what we read."""
    client.put("/ns/a", "{}")
    before = contents(raw)
    answer = client.request("PATCH", "/ns/a", headers, body)
    assert answer.status == 415
    assert contents(raw) == before
    if len(headers) == 1:
        assert {MERGE[1], JSON[1]} <= set(answer.headers["Accept-Patch"].split(", "))


def test_accept_patch(client: Checked) -> None:
    """OPTIONS says which patches there are (RFC 5789 section 3.1)."""
    answer = client.request("OPTIONS", "/ns/a")
    assert {MERGE[1], JSON[1]} <= set(answer.headers["Accept-Patch"].split(", "))
    assert "PATCH" in answer.headers["Allow"]


@on_few
@pytest.mark.parametrize("media_type", [JSON[1], "Application/JSON-Patch+JSON", "application/json-patch+json; charset=utf-8"])
def test_the_type_of_a_json_patch(client: Checked, media_type: str) -> None:
    """Its media type, in any case and with parameters."""
    client.put("/ns/a", "{}")
    answer = client.request("PATCH", "/ns/a", [("Content-Type", media_type)], b'[{"op":"add","path":"/b","value":1}]')
    assert answer.json["b"] == 1


def test_no_patch_of_a_container(client: Checked) -> None:
    """A container takes no PATCH."""
    answer = patch(client, "/ns/", "{}")
    assert answer.status == 405
    assert "PATCH" not in answer.headers["Allow"]


MANY = ",".join(f'"m{n}":{n}' for n in range(9_999))
MEBIBYTE = 1024 * 1024
DEEP = "[" * 62 + "]" * 62  # within two levels it has as many as there may be


ESCAPED = '{"\\n\\b\\"\\\\\\u0001\\u001f\x7f":1}'  # a name with every kind of escape, and one character that needs none


def sized(size: int, more: str, document: str = '{"a":1}') -> str:
    """A patch that makes of a document one of so many bytes."""
    return '{"b":"' + "x" * (size - len(document[:-1] + ',"b":""' + more + "}")) + '"' + more + "}"


# A document, a patch that just fits, one that does not, and what that is answered.
LIMITS: list[tuple[str, str, Any, str, str, int]] = [
    ("members", f"{{{MANY}}}", [MERGE], '{"a":1}', '{"a":1,"b":2}', 400),
    ("members, nested", f"{{{MANY}}}", [MERGE], '{"a":{"b":1}}', '{"a":{"b":1},"c":1}', 400),
    ("members of a member", f'{{"o":{{{MANY}}}}}', [MERGE], '{"o":{"a":1}}', '{"o":{"a":1,"b":1}}', 400),
    ("members, JSON Patch", f"{{{MANY}}}", [JSON], '[{"op":"add","path":"/a","value":1}]',
     '[{"op":"add","path":"/a","value":1},{"op":"add","path":"/b","value":1}]', 400),
    ("depth", '{"o":{}}', [MERGE], f'{{"o":{{"a":{DEEP}}}}}', f'{{"o":{{"a":[{DEEP}]}}}}', 400),
    ("depth, JSON Patch", '{"o":{"a":{}}}', [JSON], f'[{{"op":"add","path":"/o","value":{DEEP}}}]',
     f'[{{"op":"add","path":"/o/a/b","value":{DEEP}}}]', 400),
    ("depth by copies", f'{{"a":{{"b":{DEEP}}}}}', [JSON], '[{"op":"copy","from":"/a","path":"/c"}]',
     '[{"op":"copy","from":"/a","path":"/a/c"}]', 400),
    ("bytes", '{"a":1}', [MERGE], sized(MEBIBYTE, ""), sized(MEBIBYTE + 1, ""), 413),
    ("bytes of a name", ESCAPED, [MERGE], sized(MEBIBYTE, "", ESCAPED), sized(MEBIBYTE + 1, "", ESCAPED), 413),
    ("bytes, nested", '{"a":1}', [MERGE], sized(MEBIBYTE, ',"c":{}'), sized(MEBIBYTE + 1, ',"c":{}'), 413),
]  # fmt: skip


@on_two
@pytest.mark.parametrize(
    ("document", "headers", "fits", "exceeds", "status"), [row[1:] for row in LIMITS], ids=[row[0] for row in LIMITS]
)
def test_limits(
    client: Checked, raw: redis.Redis, *, document: str, headers: Any, fits: str, exceeds: str, status: int
) -> None:
    """What a PATCH makes obeys the limits of a PUT, to the byte; one more is refused and changes nothing."""
    client.put("/ns/a", document)
    answer = client.request("PATCH", "/ns/a", headers, fits.encode())
    assert answer.status == 200, answer.body[:300]
    stored = json.dumps(without_ttl(client.get("/ns/a").json), separators=(",", ":"), ensure_ascii=False)
    assert client.put("/ns/b", stored).status == 201, "it could have been PUT"
    client.put("/ns/a", document)
    before = contents(raw)
    answer = client.request("PATCH", "/ns/a", headers, exceeds.encode())
    assert answer.status == status, answer.body[:300]
    assert contents(raw) == before


@on_two
def test_names_that_are_longer_as_json(client: Checked) -> None:
    """A name's escapes count, as in a PUT: what PATCHes have made can be read and PUT again."""
    client.put("/ns/a", "{}")
    for number in range(8):
        patch(client, "/ns/a", {chr(1) * 170_000 + str(number): 1})
    assert len(client.get("/ns/a").body) <= MEBIBYTE + len(',"ttl":31536000}\n')


HALF = '"' + "x" * (MEBIBYTE // 2) + '"'
LONG = json.dumps([1] * 400_000, separators=(",", ":"))
DOUBLING = [{"op": "copy", "from": "", "path": f"/{n}"} for n in range(1000)]
# Patches that would take very long, or very much; each with the document it is for.
BOMBS: list[tuple[str, str, Any]] = [
    ("doubling", '{"a":1}', DOUBLING),
    ("doubling in an array", '["x"]', [{"op": "copy", "from": "", "path": "/-"}] * 5000),
    ("copies of something large", f'{{"a":{HALF}}}', [{"op": "copy", "from": "/a", "path": "/b"}] * 9000),
    ("depth by moves", '{"a":1}', [
        {"op": "add", "path": "/x", "value": {}},
        {"op": "move", "from": "/a", "path": "/x/a"},
        {"op": "move", "from": "/x", "path": "/a"},
    ] * 3000),
    ("a long array turned round", LONG, [{"op": "move", "from": "/0", "path": "/-"}] * 9999),
    ("an element to the front", LONG, [{"op": "move", "from": "/399999", "path": "/0"}] * 9999),
    ("tests of all", f'{{"a":{HALF}}}', [{"op": "copy", "from": "/a", "path": "/a"}] * 9999),
    ("too many operations", "{}", [{"op": "add", "path": "/a", "value": 1}] * 20_000),
    ("a long pointer", '{"a":1}', [{"op": "remove", "path": "/a" * 300_000}]),
    ("deep pointers", '{"a":1}', [{"op": "add", "path": "/" * 900, "value": 1}] * 900),
]  # fmt: skip
FAST_S = 0.75  # of a processor, in which nobody else is served


@pytest.mark.parametrize(("document", "operations"), [row[1:] for row in BOMBS], ids=[row[0] for row in BOMBS])
@on_one
def test_bombs(client: Checked, document: str, operations: Any) -> None:
    """No patch takes long, whatever it asks: it is refused, or done, and soon."""
    client.put("/ns/a", document)
    body = json.dumps(operations, separators=(",", ":"))
    assert len(body) <= MEBIBYTE
    begun = time.thread_time()
    answer = json_patch(client, "/ns/a", body)
    took_s = time.thread_time() - begun
    assert answer.status in (200, 400, 413, 422)
    assert took_s < FAST_S
    assert len(client.get("/ns/a").body) <= MEBIBYTE + 32


# --- Many at once -------------------------------------------------------------------------------------------------------

WRITERS = 100


@on_servers
def test_nested_patches_all_arrive(client: Checked, raw: redis.Redis) -> None:
    """100 parallel nested patches of different members, none lost, each in one entry of the log."""
    client.put("/ns/a", '{"o":{"base":1}}')
    answers = at_once(lambda n: patch(client, "/ns/a", {"o": {f"m{n}": n}}), WRITERS)
    assert {answer.status for answer in answers} == {200}
    assert client.get("/ns/a").json["o"] == {"base": 1} | {f"m{n}": n for n in range(WRITERS)}
    assert len({answer.tag for answer in answers}) == WRITERS
    log = entries(raw)
    assert [entry.op for entry in log] == ["put"] + ["patch"] * WRITERS
    assert [len(json.loads(entry.text or b"")["o"]) for entry in log] == list(range(1, WRITERS + 2)), "one member more each"


@on_servers
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_what_another_redis_client_writes_meanwhile_arrives(store: Running, raw: redis.Redis, *, large: bool) -> None:
    """Between the reading and the writing of a nested patch: HINCRBY leaves the entity-tag as it is, and is not undone."""
    opened = store.open()
    path = parse_path(b"/ns/a")
    document = {"n": 1, "o": {"a": 1}} | ({f"m{n}": n for n in range(9000)} if large else {})
    body = json.dumps(document).encode()
    opened.execute(command_of(Request("PUT", b"/ns/a", {}, body)))
    edit: Any = parse(Request("PATCH", b"/ns/a", {}, b'{"o":{"b":2}}'), Settings())
    written = run_script(raw, edit).command
    raw.hincrby("kv:{ns}/a", "n", 41)
    again = run_script(raw, written)
    assert isinstance(again, Again), "not written over"
    raw.hset("kv:{ns}/a", "theirs", "1")
    assert isinstance(opened.execute(again.command), Stored)
    found = opened.execute(Get(path))
    assert isinstance(found, Found)
    assert json.loads(found.text) == document | {"n": 42, "o": {"a": 1, "b": 2}, "theirs": 1}
    opened.close()


@on_servers
def test_all_kinds_of_patches_arrive(client: Checked) -> None:
    """Flat, nested and JSON patches, side by side on a document that nobody made before."""

    def write(number: int) -> int:
        name = f"m{number}"
        if number % 3 == 0:
            return patch(client, "/ns/a", {name: number}).status
        if number % 3 == 1:
            return patch(client, "/ns/a", {"o": {name: number}}).status
        while (status := json_patch(client, "/ns/a", [{"op": "add", "path": f"/{name}", "value": number}]).status) == 404:
            pass
        return status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(write, range(30)))
    assert sorted(statuses) == [200] * 29 + [201]
    document = client.get("/ns/a").json
    assert {**document, **document["o"]} == document | {f"m{n}": n for n in range(30)}


@on_servers
def test_one_patch_wins(client: Checked) -> None:
    """Of many nested patches with one entity-tag exactly one wins; of many that create exactly one creates."""
    created = at_once(lambda n: patch(client, "/ns/a", {"o": {"by": n}}, [("If-None-Match", "*")]), 20)
    assert sorted(answer.status for answer in created) == [201] + [412] * 19
    tag = client.get("/ns/a").tag
    changed = at_once(
        lambda n: json_patch(client, "/ns/a", [{"op": "add", "path": "/by", "value": n}], [("If-Match", tag)]), 20
    )
    assert sorted(answer.status for answer in changed) == [200] + [412] * 19
