"""Questions to a container: conditions, search, sort, fields and count, in a query string and in the body of a QUERY."""

import json
from typing import Any
from urllib.parse import quote

import pytest
import redis

from kvstore.commands.queries import PIECE
from tests.support.asking import listed, scripts_run, stream
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few, on_one
from tests.support.naive_query import Asked, Wanted, answered, spelled
from tests.support.questions import as_json, query_string


def ask(client: Checked, body: str | dict[str, Any], target: str = "/ns/", *headers: tuple[str, str]) -> Answer:
    """A QUERY."""
    return client.request("QUERY", target, headers, (body if isinstance(body, str) else json.dumps(body)).encode())


def names(client: Checked, question: str, target: str = "/ns/") -> list[str]:
    """The names of the documents that a GET finds on one page."""
    answer = client.get(f"{target}?{question}")
    assert answer.status == 200, answer
    return [item["name"] for item in answer.json["items"]]


def fill(client: Checked, documents: dict[str, str], container: str = "/ns/") -> None:
    """Documents by name, as JSON texts."""
    requests = ",".join(
        f'{{"method":"PUT","path":{as_json(container + name)},"body":{text}}}' for name, text in documents.items()
    )
    answer = client.request("POST", "/_/batch", [], f'{{"requests":[{requests}]}}'.encode())
    assert answer.status == 200, answer


def pages(client: Checked, target: str, limit: int, body: str = "") -> list[Any]:
    """All items, following `next`, with their numbers as they are spelled."""
    items: list[Any] = []
    answer = ask(client, body, target) if body else client.get(target)
    while True:
        assert answer.status == 200, answer
        page = spelled(answer.body)
        assert len(page["items"]) <= limit
        items += page["items"]
        if "next" not in page:
            return items
        answer = client.get(page["next"])


# What another client may have written to a member: JSON, JSON with whitespace around it, and what is no JSON.
FOREIGN = [
    b"abc",
    b"a",
    b' "a" ',
    b'"\\u0061"',
    b'"a"\n',
    b"007",
    b"1 ",
    b"\t1",
    b"\xff",
    b'"a"b"',
    b"tru",
    b" true",
    b"null ",
    b"1.0 ",
]
FOREIGN += [
    b"-",
    b"1e",
    b'"a',
    b"",
    b"42",
    b'"42"',
    b"true",
    b"-1.50",
    b"100",
    b"1.",
    b"0x1",
    b"inf",
    b"nan",
    b"[1]",
    b"{",
    b"1e2",
]


@on_few
def test_redis_leaves_out_nothing_that_matches(client: Checked, raw: redis.Redis) -> None:
    """Whatever another client has written, and however it spells it."""
    fill(client, {f"{number:02}": '{"a":0}' for number in range(len(FOREIGN))})
    for number, written in enumerate(FOREIGN):
        raw.hset(f"kv:{{ns}}/{number:02}", "a", written)
    items = spelled(client.get("/ns/").body)["items"]
    texts = ["a", "abc", "007", "42", "true", "tru", "-", "1e", '"a', "", "1.", "0x1", "inf", '"a"b"', "\\xff", "[1]", "{"]
    wanted = [as_json(text) for text in texts] + ["true", "null", "0", "1", "1.0", "42", "-1.5", "100", "1e2", "7", "[1]"]
    for op in ("eq", "in", "lt", "lte", "gt", "gte"):
        for value in wanted:
            text = f'[{value},"x"]' if op == "in" else value
            found = names(client, query_string([(f"a:{op}", text)]))
            assert found == [item["name"] for item in answered(items, Wanted([Asked("a", op, text, text)]))], (op, value)
            assert client.get(f"/ns/?count&{query_string([(f'a:{op}', text)])}").json == {"count": len(found)}, (op, value)


# --- What each of them means --------------------------------------------------------------------------------------------

PEOPLE = {
    "ada": '{"name":"Ada","born":1815,"tags":["math",1.0,"42"],"home":{"city":"London"},"phone":"x42","zip":"02139"}',
    "bob": '{"name":"Bob","born":1815.0,"tags":"mathematics","zip":2139}',
    "eve": '{"name":"eve","born":"1815-12-10","tags":[],"home":null}',
    "list": '["Ada",{"name":"Zoe"}]',
    "none": "null",
}
MEANINGS = {
    "name:eq=Ada": "ada",
    'name:eq="Ada"': "ada",
    "born:eq=1815": "ada bob",
    "born:eq=1.815e3": "ada bob",
    'born:eq="1815"': "",
    "born:ne=1815": "eve list none",
    "born:ne=1815&born:ne=1815-12-10": "list none",
    "born:lt=1815.1": "ada bob",
    "born:lte=1815&born:gte=1815": "ada bob",
    "born:gt=1": "ada bob",
    "born:gt=1815-12-0": "eve",
    "born:gt=true": "",
    "name:gt=Bob": "eve",
    "name:in=Ada,Bob": "ada bob",
    'name:in=["Ada","eve"]': "ada eve",
    'name:in="Ada"': "ada",
    "name:in=": "",
    "born:in=1815,x": "ada bob",
    "born:in=[]": "",
    "tags:contains=math": "ada bob",
    'tags:contains="math"': "ada",
    "tags:contains=1": "ada",
    "tags:contains=42": "",
    'tags:contains="42"': "ada",
    "tags:contains:string=42": "ada",
    "phone:contains=42": "ada",
    "phone:endsWith=42": "ada",
    "born:startsWith=18": "eve",
    "zip:eq=02139": "ada",
    "zip:eq=2139": "bob",
    "zip:eq:string=2139": "",
    "home.city:eq=London": "ada",
    "home.city:exists=false": "bob eve list none",
    "home:exists=true": "ada eve",
    "home:eq=null": "eve",
    'home:eq={"city":"London"}': "ada",
    "tags.1:eq=1": "ada",
    "tags.01:eq=1": "",
    "tags.9:ne=1": "ada bob eve list none",
    "0:eq=Ada": "list",
    "1.name:eq=Zoe": "list",
    "search=zoE": "list",
    "search=name": "",
    "search=": "ada bob eve list",
    "search=LONDON&born:lt=2000": "ada",
    "sort=-born&limit=2": "eve ada",
    "sort=-born&limit=2&order=desc": "eve bob",
    "sort=home,-name": "bob list none eve ada",
    "order=desc&name:exists=true": "eve bob ada",
    "after=bob&name:exists=true": "eve",
    "name:exists=true&unknown=1": "ada bob eve",
}


@on_few
def test_meanings(client: Checked) -> None:
    """What is found, and in which order. A container below is no document."""
    fill(client, PEOPLE | {"deeper/x": PEOPLE["ada"]})
    for question, expected in MEANINGS.items():
        quoted = query_string([tuple(part.split("=", 1)) for part in question.split("&")])  # type: ignore[misc]
        assert names(client, quoted) == expected.split(), question
    assert names(client, "recursive&name:eq=Ada") == ["ada", "deeper/x"]
    assert names(client, "list&name:eq=Ada", "/") == []
    assert client.put("/ada", '{"name":"Ada"}').status == 201
    assert names(client, "list&name:eq=Ada", "/") == ["ada"]
    assert [item["name"] for item in ask(client, {"where": {"name": {"eq": "Ada"}}}, "/?list").json["items"]] == ["ada"]


REFUSED = [
    "name:is=1",
    "name:=1",
    "a:b:eq=1",
    "name:eq:number=1",
    "name:exists=1",
    "name:exists:string=true",
    "name:eq=1e999",
    'name:eq={"a":1,"a":2}',
    'name:eq="\\ud800"',
    f"name:eq={'9' * 4301}",
    f"name:eq={'[' * 65}{']' * 65}",
    "name:eq=%FF",
    "%FF:eq=1",
    "search=%FF",
    "search=a&search=b",
    "sort=",
    "sort=a,",
    "sort=-",
    "sort=a:b",
    "sort=a,b,c,d,e",
    "fields=",
    "fields=a,,b",
    "fields=a:b",
    "fields=" + ",".join("a" * 101),
    "&".join(f"a:ne={number}" for number in range(51)),
    f"a:in=[{','.join(['1'] * 1001)}]",
    "sort=a&after=ada",
    "sort=a&after=[]",
    'sort=a&after=["ada"]',
    'sort=a&after=["ada",1]',
    "sort=a&after=[1,[1]]",
    'sort=a&after=["ada",[1,2]]',
]
NO_QUESTIONS = [
    "",
    "[]",
    "{",
    '{"unknown":1}',
    '{"where":[]}',
    '{"where":{"a":1}}',
    '{"where":{"a":{"is":1}}}',
    '{"where":{"a:b":{"eq":1}}}',
    '{"where":{"a":{"in":1}}}',
    '{"where":{"a":{"exists":"true"}}}',
    '{"where":{"a":{"eq":1e999}}}',
    '{"sort":"a"}',
    '{"sort":[1]}',
    '{"sort":[""]}',
    '{"sort":["a","b","c","d","e"]}',
    '{"fields":{}}',
    '{"search":1}',
    '{"count":1}',
    '{"recursive":"yes"}',
    '{"limit":0}',
    '{"limit":1001}',
    '{"limit":"1"}',
    '{"limit":1.0}',
    '{"after":1}',
    '{"order":"up"}',
]


@on_few
def test_what_is_no_question(client: Checked) -> None:
    """A bad question is 400, and says what is wrong with it."""
    for question in REFUSED:
        answer = client.get("/ns/?" + quote(question, safe="=&:,.%"))
        assert (answer.status, answer.json["type"]) == (400, "urn:kvstore:invalid-parameter"), question
    for body in NO_QUESTIONS:
        answer = ask(client, body)
        assert answer.status == 400, body
    assert ask(client, "{}", "/ns/?limit=1").status == 400
    assert ask(client, "{}", "/ns/", ("Content-Type", "text/csv")).status == 415
    assert client.get("/ns/a?name:is=1").status == 404, "a document is asked nothing"


@on_few
def test_query_is_a_method_of_containers(client: Checked) -> None:
    """It says what it takes, also to a browser that asks first; no origin is refused, since it changes nothing."""
    assert ask(client, "{}", "/ns/a").status == 405
    assert client.request("OPTIONS", "/ns/").headers["Accept-Query"] == "application/json"
    assert "Accept-Query" not in client.request("OPTIONS", "/ns/a").headers
    refused = ask(client, "{}", "/ns/", ("Content-Type", "text/csv"))
    assert (refused.status, refused.headers["Accept-Query"]) == (415, "application/json")
    asked = [("Origin", "http://localhost:3000"), ("Access-Control-Request-Method", "QUERY")]
    assert "QUERY" in client.request("OPTIONS", "/ns/", asked).headers["Access-Control-Allow-Methods"]
    assert ask(client, '{"count":true}', "/ns/", ("Origin", "https://example.org")).json == {"count": 0}


@on_few
def test_pages_and_tags(client: Checked) -> None:
    """`next` asks the same question of what comes after, and the entity-tag is the container's."""
    fill(client, PEOPLE)
    first = client.get("/ns/?name:exists=true&sort=-name&fields=name&limit=2&keys&recursive")
    assert first.json["next"] == (
        "/ns/?name:exists=true&sort=-name&fields=name&after=%5B%22bob%22,%5B%22Bob%22%5D%5D&limit=2&keys&recursive"
    )
    assert first.headers["Link"] == f'<{first.json["next"]}>; rel="next"'
    assert [item["name"] for item in client.get(first.json["next"]).json["items"]] == ["ada"]
    assert "value" not in first.json["items"][0]
    tag = client.get("/ns/").tag
    for question in ("name:eq=Ada", "sort=name", "count", "search=x"):
        assert client.get(f"/ns/?{question}").tag == tag
        assert client.get(f"/ns/?{question}", [("If-None-Match", tag)]).status == 304
        assert client.get(f"/ns/?{question}", [("If-Match", '"1-1"')]).status == 412
        assert client.head(f"/ns/?{question}").status == 200
    assert ask(client, {"count": True}, "/ns/", ("If-None-Match", tag)).status == 304
    waited = client.get("/ns/?name:eq=Ada", [("If-None-Match", '"1-1"'), ("Prefer", "wait=5")])
    assert (waited.status, waited.headers["Preference-Applied"]) == (200, "wait=5")
    # In a body a string is never another value, and `next` keeps it so.
    same = ask(client, {"where": {"zip": {"ne": "2139"}, "name": {"exists": True}}, "limit": 1})
    assert same.json["next"] == "/ns/?zip:ne:string=2139&name:exists=true&after=ada&limit=1"


@on_one
def test_a_question_goes_on(client: Checked) -> None:
    """More documents than one script reads: all of them are counted, sorted and found, on pages that may have no item."""
    count = 3 * PIECE
    for first in range(0, count, 500):
        fill(client, {f"{number:05}": f'{{"n":{number % 100},"i":{number}}}' for number in range(first, first + 500)})
    assert client.get("/ns/?count").json == {"count": count}
    assert client.get("/ns/?count&n:eq=7").json == {"count": count // 100}
    assert names(client, "sort=-n,i&limit=3") == ["00099", "00199", "00299"]
    assert [item["value"]["i"] for item in listed(client, "/ns/?n:eq=7&limit=4")] == list(range(7, count, 100))
    assert len(stream(client, "/ns/?n:gte=50")[1]) == count // 2
    assert [item["name"] for item in stream(client, "/ns/?sort=-i&n:eq=1")[1]] == [
        f"{i:05}" for i in range(count - 99, 0, -100)
    ]


@on_one
def test_a_page_ends_where_it_has_looked_at_much(client: Checked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a page may be empty, and `next` goes on."""
    monkeypatch.setattr("kvstore.commands.queries.PAGE_WEIGHT", 1000)
    monkeypatch.setattr("kvstore.commands.queries.PIECE", 10)
    fill(client, {f"{number:05}": f'{{"o":{{"n":{number}}}}}' for number in range(100)})
    page = client.get("/ns/?o.n:eq=95")
    assert (page.json["items"], page.json["next"] != "") == ([], True)
    assert [item["name"] for item in listed(client, "/ns/?o.n:eq=95")] == ["00095"]
    assert [item["name"] for item in stream(client, "/ns/?o.n:eq=95")[1]] == ["00095"]


@on_one
def test_redis_leaves_documents_out(client: Checked, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that cannot meet a plain condition do not leave Redis, and one script looks at so many of them only."""
    count = PIECE + 500
    for first in range(0, count, 500):
        fill(client, {f"{number:05}": f'{{"n":{number},"s":"s{number}"}}' for number in range(first, first + 500)})
    for question in (f"n:eq={count - 1}", f"s:eq=s{count - 1}", f"n:gt={count - 2}", f"s:in=x,s{count - 1}"):
        ran = []
        for _ in range(3):
            before = scripts_run(raw)
            assert names(client, question) == [f"{count - 1:05}"]
            assert client.get(f"/ns/?count&{question}").json == {"count": 1}
            ran.append(scripts_run(raw) - before)
        assert min(ran) == 5, "two for each piece, and one for the document; a stream of another test may run some too"
    assert len(client.get("/ns/?n:lt=3&order=desc&limit=2").json["items"]) == 2
    monkeypatch.setattr("kvstore.commands.queries.PAGE_WEIGHT", 1000)
    assert client.get("/ns/?n:eq=-1").json["items"] == []
    assert [item["name"] for item in listed(client, "/ns/?n:eq=7&order=desc")] == ["00007"]


@on_one
def test_a_sort_keeps_little(client: Checked) -> None:
    """Large documents end a page before `limit`; the next one goes on with the one that was left out."""
    for name in "fdcba":
        assert client.put(f"/ns/{name}", f'{{"n":"{name}","x":"{"x" * 1_000_000}"}}').status == 201
    assert client.put("/ns/e", f'{{"n":"a0","x":"{"x" * 1_000_000}"}}').status == 201
    page = client.get("/ns/?sort=n&limit=1000").json
    assert [item["name"] for item in page["items"]] == ["a", "e", "b", "c", "d"]
    assert [item["name"] for item in listed(client, "/ns/?sort=n&limit=1000")] == ["a", "e", "b", "c", "d", "f"]
    assert [item["name"] for item in listed(client, "/ns/?sort=x&limit=1000")] == ["a", "b", "c", "d", "e", "f"], (
        "so do long values"
    )


@on_one
def test_a_queue_shows_states(client: Checked) -> None:
    """What a question finds in a queue has its state, as in a listing."""
    assert client.request("POST", "/ns/?delay=100", body=b'{"a":1}').status == 201
    [item] = client.get("/ns/?a:eq=1").json["items"]
    assert (item["state"], item["attempts"]) == ("delayed", 0)
