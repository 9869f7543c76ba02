"""Server values: `{".sv":"timestamp"}` and `{".sv":{"increment":n}}` in PUT, PATCH and POST, judged and added inside Redis."""

import json
import time
from typing import Any

import pytest
import redis

from kvstore.core.settings import YEAR_S
from tests.support.asking import JSON, LATE_S, MERGE, Left, at_once, batch, entries, json_patch, patch, post, without_ttl
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few, on_servers
from tests.support.stores import contents

TIMESTAMP = '{".sv":"timestamp"}'
LARGEST, SMALLEST = 2**63 - 1, -(2**63)


def increment(by: Any) -> str:
    return f'{{".sv":{{"increment":{by}}}}}'


def write(client: Checked, method: str, value: str, more: str = "") -> Answer:
    """Put a server value into the member n of /ns/a; a flat and a nested PATCH are two methods."""
    if method == "nested":
        return patch(client, "/ns/a", f'{{"n":{value}{more},"o":{{"x":1}}}}')
    return client.request(method, "/ns/a", [], f'{{"n":{value}{more}}}'.encode())


METHODS = ["PUT", "PATCH", "nested"]

# What is stored in n (None: no such member), what is added, and the sum.
SUMS: list[tuple[str | None, int, int]] = [
    (None, 5, 5),
    (None, 0, 0),
    (None, -5, -5),
    (None, LARGEST, LARGEST),
    (None, SMALLEST, SMALLEST),
    ("41", 1, 42),
    ("-1", 1, 0),
    ("0", -1, -1),
    (str(2**53), 1, 2**53 + 1),
    (str(-(2**53)), -1, -(2**53) - 1),
    (str(LARGEST - 1), 1, LARGEST),
    (str(LARGEST), 0, LARGEST),
    (str(LARGEST), SMALLEST, -1),
    (str(SMALLEST), LARGEST, -1),
    (str(SMALLEST), 1, SMALLEST + 1),
]


@on_few
@pytest.mark.parametrize("method", METHODS)
def test_increment(client: Checked, raw: redis.Redis, method: str) -> None:
    """n more than what is there, of 64 bits, a missing member counting from 0; what is told, stored and logged is the sum."""
    for stored, by, total in SUMS:
        client.put("/ns/a", "{}" if stored is None else f'{{"n":{stored}}}')
        answer = write(client, method, increment(by), ',"m":2')
        assert (answer.status, answer.json["n"], answer.json["m"]) == (200, total, 2), (stored, by)
        got = client.get("/ns/a")
        assert (got.body, got.tag) == (answer.body, answer.tag)
        assert raw.hget("kv:{ns}/a", "n") == str(total).encode()
        assert json.loads(entries(raw)[-1].text or b"") == without_ttl(got.json)


@on_few
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("there", [None, '{"x":7}', "[1]", "7", '"n"'])
def test_increment_where_no_member_is(client: Checked, method: str, there: str | None) -> None:
    """Nothing there, another member, or no object at all: it counts from 0."""
    if there is not None:
        client.put("/ns/a", there)
    answer = write(client, method, increment(3))
    assert (answer.status, answer.json["n"]) == (200 if there else 201, 3)


# What is stored in n, and what is added, where there is no sum.
NO_SUMS: list[tuple[str, int]] = [
    (str(LARGEST), 1),
    (str(LARGEST), LARGEST),
    (str(SMALLEST), -1),
    ("1", LARGEST),
    ("9223372036854775808", 1),
    ("9223372036854775808", -1),
    ("123456789012345678901234567890", 1),
    ("1.0", 1),
    ("1.5", 1),
    ("1e2", 1),
    ('"5"', 1),
    ('"x"', 1),
    ('""', 1),
    ("true", 1),
    ("null", 1),
    ("[]", 1),
    ("{}", 1),
    ('{"n":1}', 0),
    ("[1]", 0),
]


@on_few
@pytest.mark.parametrize("method", METHODS)
def test_no_sum(client: Checked, raw: redis.Redis, method: str) -> None:
    """An overflow, or what is no integer: 422, and nothing is changed, other members and TTL included."""
    for stored, by in NO_SUMS:
        client.put("/ns/a?ttl=1000", f'{{"m":1,"n":{stored}}}')
        before = contents(raw)
        for more in ("", ',"m":2', f',"m":{increment(1)}', f',"t":{TIMESTAMP}'):
            answer = write(client, method, increment(by), more)
            assert (answer.status, answer.json["type"]) == (422, "urn:kvstore:not-an-integer"), (stored, by)
        assert contents(raw) == before


def test_no_sum_of_bare_text(client: Checked, raw: redis.Redis) -> None:
    """What another client wrote is added to when it is an integer, by the rule it is read by."""
    for text, total in (("42", 43), ("-7", -6), ("02139", None), ("4 2", None), ("", None), ("1.0", None), ("x", None)):
        raw.delete("kv:{ns}/a")
        raw.hset("kv:{ns}/a", "n", text)
        for method in METHODS:
            answer = write(client, method, increment(1))
            if total is None:
                assert answer.status == 422, (text, method)
                assert raw.hgetall("kv:{ns}/a") == {b"n": text.encode()}
            else:
                assert answer.json["n"] == total
                raw.delete("kv:{ns}/a")
                raw.hset("kv:{ns}/a", "n", text)


def test_the_value_of_a_scalar_is_no_member(client: Checked) -> None:
    """A document that is no object has no members, whatever the field is called that it is stored in."""
    for method in ("PUT", "PATCH"):
        client.put("/ns/a", "5")
        answer = client.request(method, "/ns/a", [], f'{{"$value":{increment(1)}}}'.encode())
        assert answer.json["$value"] == 1
        assert client.request(method, "/ns/a", [], f'{{"$value":{increment(1)}}}'.encode()).json["$value"] == 2


def test_odd_names(client: Checked) -> None:
    """A member is counted under any name."""
    for name in ("", "$kv", "$kv$", "é", 'a"b', "ttls", "\\u0000"):
        for total in (1, 2, 3):
            answer = patch(
                client, "/ns/a", f"{{{json.dumps(name) if chr(92) not in name else chr(34) + name + chr(34)}:{increment(1)}}}"
            )
            assert answer.json[json.loads(f'"{name}"') if "\\" in name else name] == total, name


@pytest.mark.parametrize("method", [*METHODS, "POST"])
def test_timestamp(client: Checked, raw: redis.Redis, method: str) -> None:
    """The ms since the epoch, by Redis's clock."""
    low = int(time.time() * 1000)
    if method == "POST":
        post(client, "/ns/", f'{{"n":{TIMESTAMP}}}')
        stored = client.get("/ns/").json["items"][0]["value"]["n"]
    else:
        stored = write(client, method, TIMESTAMP, f',"m":{TIMESTAMP}').json
        assert stored["n"] == stored["m"]
        assert without_ttl(client.get("/ns/a").json) == without_ttl(stored)
        stored = stored["n"]
    assert isinstance(stored, int)
    assert low <= stored <= time.time() * 1000
    assert json.loads(entries(raw)[-1].text or b"")["n"] == stored


def test_in_a_post(client: Checked) -> None:
    """What is appended counts from 0."""
    location = post(client, "/ns/", f'{{"n":{increment(-3)},"t":{TIMESTAMP}}}').headers["Location"]
    assert client.get(location).json["n"] == -3
    answer = post(client, "/ns/", f'{{"n":{increment(7)}}}', [("Prefer", "return=representation")])
    assert answer.json["n"] == 7


def test_in_a_json_patch(client: Checked) -> None:
    """The value of a top-level member, whatever kind of PATCH it comes by."""
    client.put("/ns/a", '{"n":41}')
    assert json_patch(client, "/ns/a", f'[{{"op":"add","path":"/n","value":{increment(1)}}}]').json["n"] == 42
    assert json_patch(client, "/ns/a", f'[{{"op":"add","path":"/m","value":{increment(1)}}}]').json["m"] == 1
    assert json_patch(client, "/ns/a", f'[{{"op":"add","path":"/o","value":[{increment(1)}]}}]').status == 400


# Server values that are none.
BAD = [
    '{".sv":"now"}',
    '{".sv":"Timestamp"}',
    '{".sv":null}',
    '{".sv":1}',
    '{".sv":[]}',
    '{".sv":{}}',
    '{".sv":["timestamp"]}',
    '{".sv":{"timestamp":1}}',
    '{".sv":{"increment":1,"x":1}}',
    '{".sv":{"Increment":1}}',
    '{".sv":"timestamp","x":1}',
    '{"x":1,".sv":{"increment":1}}',
    '{"\\u002esv":"now"}',
    '{".s\\u0076":{"decrement":1}}',
    '{".sv":{".sv":"timestamp"}}',
    *(increment(by) for by in ("1.0", "1e2", "null", '"1"', "true", "[]", "{}", "1.5")),
    *(increment(by) for by in (LARGEST + 1, SMALLEST - 1, 10**30)),
    f'{{"x":{TIMESTAMP}}}',
    f"[{TIMESTAMP}]",
    f'[{{"x":{increment(1)}}}]',
    f'{{"x":[{{"y":{TIMESTAMP}}}]}}',
    '{"x":{"\\u002e\\u0073\\u0076":"timestamp"}}',
]


@pytest.mark.parametrize("method", METHODS)
def test_bad_server_values(client: Checked, raw: redis.Redis, method: str) -> None:
    """Any other `.sv`, and one that is deeper down: 400, nothing stored."""
    client.put("/ns/a", '{"n":1}')
    before = contents(raw)
    for value in BAD:
        assert write(client, method, value).status == 400, value
        assert post(client, "/ns/", f'{{"n":{value}}}').status == 400, value
    for body in (TIMESTAMP, increment(1), f"[{TIMESTAMP}]", '{".sv":1}', '{"a":1,".sv":[]}', f'{{".sv":{TIMESTAMP}}}'):
        assert client.put("/ns/a", body).status == 400, body
        assert patch(client, "/ns/a", body).status == 400, body
    assert contents(raw) == before


@on_few
@pytest.mark.parametrize(
    "text", ['{"n":".sv"}', '{"n":[".sv"]}', '{"n":"{\\".sv\\":1}"}', '{".SV":1}', '{".sv ":1}', '{"n":{".svx":1}}']
)
def test_what_only_looks_like_one(client: Checked, text: str) -> None:
    """The two letters as a value, or in another name, mean nothing."""
    assert client.put("/ns/a", text).status == 201
    assert patch(client, "/ns/a", text).status == 200
    assert without_ttl(client.get("/ns/a").json) == json.loads(text)


# How the increment is asked, and the TTL of a document of 1,000 s after it.
TTLS = [
    ("PUT", "", "", YEAR_S),
    ("PUT", "?ttl=90", "", 90),
    ("PUT", "", ',"ttl":90', 90),
    ("PATCH", "", "", 1000),
    ("PATCH", "?ttl=90", "", 90),
    ("PATCH", "", ',"ttl":90', 90),
    ("PATCH", "", ',"o":{"x":1}', 1000),
    ("PATCH", "", ',"o":{"x":1},"ttl":90', 90),
]


@on_few
@pytest.mark.parametrize(("method", "query", "more", "ttl_s"), TTLS)
def test_ttl(client: Checked, raw: redis.Redis, *, method: str, query: str, more: str, ttl_s: int) -> None:
    """An increment has the TTL rules of the request it comes by: a PATCH keeps the expiry, a PUT starts the default again."""
    client.put("/ns/a?ttl=1000", '{"n":41}')
    answer = client.request(method, f"/ns/a{query}", [], f'{{"n":{increment(1)}{more}}}'.encode())
    assert (answer.status, answer.json["n"]) == (200, 42)
    assert answer.json["ttl"] == Left(ttl_s)
    assert (ttl_s - LATE_S) * 1000 < raw.pttl("kv:{ns}/a") <= ttl_s * 1000


@on_few
def test_after_its_time_a_counter_starts_again(client: Checked, raw: redis.Redis) -> None:
    """What has expired counts from 0."""
    for method in METHODS:
        client.put("/ns/a?ttl=1000", '{"n":41}')
        raw.pexpireat("kv:{ns}/a", 1)
        answer = write(client, method, increment(1))
        assert (answer.status, answer.json["n"], answer.json["ttl"]) == (201, 1, YEAR_S)


@on_few
def test_preconditions(client: Checked, raw: redis.Redis) -> None:
    """A precondition that fails adds nothing."""
    tag = client.put("/ns/a", '{"n":1}').tag
    before = contents(raw)
    for method in METHODS:
        for headers in ([("If-Match", '"1-1"')], [("If-None-Match", tag)], [("If-None-Match", "*")]):
            body = f'{{"n":{increment(1)}{", " + chr(34) + "o" + chr(34) + ":{}" if method == "nested" else ""}}}'
            name = "PATCH" if method == "nested" else method
            assert client.request(name, "/ns/a", headers, body.encode()).status == 412
    assert contents(raw) == before


@on_servers
def test_a_thousand_count_a_thousand(client: Checked, raw: redis.Redis) -> None:
    """Parallel increments, by PATCH and by PUT, flat, nested and in batches: each counts once, and is told another sum."""
    client.put("/ns/a", '{"n":0,"o":{}}')
    each = 100

    def count(number: int) -> list[int]:
        told = []
        for turn in range(each):
            if number % 5 == 0 and turn % 2:
                answer = patch(client, "/ns/a", f'{{"n":{increment(1)},"o":{{"m{number}":{turn}}}}}')
                told.append(answer.json["n"])
            elif number % 5 == 1 and turn % 2:
                answer = batch(client, [("PATCH", "/ns/a", {"n": json.loads(increment(1))})])
                told.append(answer.json["responses"][0]["body"]["n"])
            else:
                answer = patch(client, "/ns/a", f'{{"n":{increment(1)}}}')
                told.append(answer.json["n"])
            assert answer.status == 200
        return told

    told = [total for totals in at_once(count, 10) for total in totals]
    assert sorted(told) == list(range(1, 1001))
    assert client.get("/ns/a").json["n"] == 1000
    assert [json.loads(entry.text or b"")["n"] for entry in entries(raw)[-900:]] == list(range(101, 1001))


@on_servers
def test_parallel_puts_count_too(client: Checked) -> None:
    """In a PUT it counts from the value that is there, though the rest is replaced."""
    told = at_once(lambda n: client.put("/ns/a", f'{{"n":{increment(1)},"by":{n}}}').json["n"], 50)
    assert sorted(told) == list(range(1, 51))


@on_servers
def test_a_counter_with_a_limit(client: Checked) -> None:
    """Where only so many fit, so many are told 200 and the others 422."""
    client.put("/ns/a", f'{{"n":{LARGEST - 7}}}')
    answers = at_once(lambda _: patch(client, "/ns/a", f'{{"n":{increment(1)}}}'), 20)
    assert sorted(answer.status for answer in answers) == [200] * 7 + [422] * 13
    assert client.get("/ns/a").json["n"] == LARGEST


def test_media_types(client: Checked) -> None:
    """Server values are read in every type that is JSON; in a document of another's they are nothing."""
    assert client.request("PATCH", "/ns/a", [MERGE], f'{{"n":{increment(1)}}}'.encode()).json["n"] == 1
    assert client.request("PATCH", "/ns/a", [], f'{{"n":{increment(1)}}}'.encode()).json["n"] == 2
    assert client.request("PUT", "/ns/a", [JSON], f'{{"n":{increment(1)}}}'.encode()).json["n"] == 3
