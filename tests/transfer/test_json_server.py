"""The tables of docs/json-server.md: a db.json is imported, and each question is answered as json-server answered it."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from kvstore.transfer.lines import Entry
from kvstore.transfer.splitting import split
from tests.support.clients import Checked
from tests.support.json_servers import OTHER, RECORDED, SAME, VERSIONS, Asked, database, rows

ANSWERS: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text("utf-8"))
LEVELS = 2


def by_key(items: Any) -> Any:
    """The form that Firebase exports: children by key."""
    return {each["id"]: each for each in items} if isinstance(items, list) else items


def load(client: Checked, text: str) -> None:
    """Import a text as `kvstore import --split` does."""
    parts = [text]
    refused: list[str] = []
    entries: list[Entry] = list(split(lambda _: parts.pop() if parts else "", LEVELS, lambda where, _: refused.append(where)))
    assert not refused
    for entry in entries:
        assert client.request("PUT", entry.path.text, (), entry.value.encode()).status in (200, 201)


def values(client: Checked, target: str) -> dict[str, Any]:
    """The documents of a listing, by name."""
    return {item["name"]: item["value"] for item in client.request("GET", target).json["items"]}


def ordered(documents: Iterable[Any]) -> list[str]:
    """Documents in an order of ours: json-server lists a new one last, and we list it by its name."""
    return sorted(json.dumps(each, sort_keys=True) for each in documents)


def ours(client: Checked, asked: Asked, purpose: str) -> Any:
    """What kvstore answers: the values, the number of them, or None for 404. Of a write the posts that are there then."""
    answer = client.request(asked.method, asked.target, (), asked.body.encode())
    if asked.method != "GET":
        assert answer.status in (200, 201, 204)
        return ordered(values(client, "/posts/").values())
    if answer.status == 404:
        return None
    found = answer.json
    if "count" in found:
        return found["count"]
    if "items" not in found:
        return {name: value for name, value in found.items() if name != "ttl"}
    if "next page" in purpose:
        return list(values(client, found["next"]).values())
    named = {item["name"]: item["value"] for item in found["items"]}
    return named if purpose == "an object" else list(named.values())


def theirs(answer: dict[str, Any], purpose: str) -> Any:
    """The same of what json-server answered. It gives a new post an `id`, which is left out."""
    body = answer["body"]
    if "posts" in answer:
        *old, last = answer["posts"]
        return ordered([*old, {name: value for name, value in last.items() if name != "id" or purpose != "a new post"}])
    if answer["status"] == 404:
        return None
    if purpose == "how many there are":
        return answer.get("total", body.get("items") if isinstance(body, dict) else None)
    return body.get("data", body) if isinstance(body, dict) else body


@pytest.mark.parametrize("is_by_key", [False, True])
def test_the_same_questions(client: Checked, is_by_key: bool) -> None:
    """Of a db.json, and of what Firebase exports."""
    parsed = json.loads(database())
    text = json.dumps({name: by_key(each) for name, each in parsed.items()} if is_by_key else parsed)
    is_fresh = False
    for heading in (SAME, OTHER):
        for purpose, (*questions, asked) in rows(heading):
            assert asked
            if not is_fresh:
                client.request("DELETE", "/posts/?recursive")
                load(client, text)
            is_fresh = asked.method == "GET"
            found = ours(client, asked, purpose)
            expected = [
                theirs(ANSWERS[version][each.text], purpose) for version, each in zip(VERSIONS, questions, strict=True) if each
            ]
            assert expected
            assert all((found == each) == (heading == SAME) for each in expected), (purpose, found, expected)
