"""Questions to a container: conditions, search, sort, fields and count, in a query string and in the body of a QUERY."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.asking import stream
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few
from tests.support.naive_query import answered, spelled
from tests.support.questions import DOCUMENTS, NAMES, Question, as_json, query_string, questions


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


def check_questions(client: Checked, documents: dict[str, str], asked: list[Question], limit: int) -> None:
    """Questions are answered as the second reading answers them, however they are asked."""
    client.request("DELETE", "/ns/?recursive")
    fill(client, documents)
    for kind in ("", "recursive&"):
        items = spelled(client.get(f"/ns/?{kind}limit=1000").body)["items"]
        for question in asked:
            expected = answered(items, question.wanted)
            given_as = query_string(question.parameters())
            assert pages(client, f"/ns/?{kind}limit={limit}&{given_as}", limit) == expected, given_as
            counted = client.get(f"/ns/?{kind}count&{given_as}")
            assert (counted.status, counted.json) == (200, {"count": len(expected)})
            if not kind:
                assert pages(client, "/ns/", limit, question.body(limit)) == expected, question.body(limit)
                lines = stream(client, f"/ns/?{given_as}")[0].body.split(b"\n")[:-1]
                assert [spelled(line) for line in lines] == expected


@settings(max_examples=40)
@given(
    documents=st.dictionaries(NAMES, DOCUMENTS, min_size=3),
    asked=st.lists(questions(), min_size=1, max_size=3),
    limit=st.integers(1, 4),
)
@on_few
def test_questions(client: Checked, documents: dict[str, str], asked: list[Question], limit: int) -> None:
    """Random questions to random documents, on pages of any size, as GET, as QUERY, as a count and as a stream."""
    check_questions(client, documents, asked, limit)
