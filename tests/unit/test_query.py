"""Conditions, order and fields, held against a second reading of them."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvstore.core.patch import dump, load
from kvstore.core.query import MISSING, Condition, rank, select
from tests.support import naive_query
from tests.support.naive_query import GONE, Asked, is_met, shown, spelled, typed
from tests.support.questions import DOCUMENTS, NAMED_PATHS, VALUES, conditions

COMPARED = st.sampled_from(["eq", "ne", "lt", "lte", "gt", "gte", "contains"])


def met(document: str, asked: Asked) -> bool:
    """Whether a condition is met, by the code."""
    value: Any = load(asked.value.encode())
    return Condition(tuple(asked.member.split(".")), asked.op, value, asked.written).is_met(load(document.encode()))


@settings(max_examples=150)
@given(DOCUMENTS, conditions())
def test_conditions(document: str, drawn: Any) -> None:
    """Random conditions on random documents."""
    assert met(document, drawn.asked) is is_met(typed(spelled(document)), drawn.asked)


@settings(max_examples=300)
@given(VALUES, COMPARED, VALUES)
@example("1.0", "eq", "1")
@example("9007199254740993", "eq", "9007199254740992.0")
@example("-1.5", "lt", "-1.51")
@example("[100]", "contains", "1e2")
def test_two_values(found: str, op: str, wanted: str) -> None:
    """A condition on the whole value of a member."""
    asked = Asked("a", op, wanted, "no text of a string")
    document = f'{{"a":{found}}}'
    assert met(document, asked) is is_met(typed(spelled(document)), asked)


@settings(max_examples=300)
@given(VALUES, VALUES)
def test_order(one: str, other: str) -> None:
    """Values sort by type, and then by what they are; a document without the member comes first."""
    ranks, expected = (
        [rank(load(text.encode())) for text in (one, other)],
        [naive_query.rank(typed(spelled(t))) for t in (one, other)],
    )
    assert (ranks[0] < ranks[1], ranks[0] == ranks[1]) == (expected[0] < expected[1], expected[0] == expected[1])
    assert rank(MISSING) < ranks[0]


@settings(max_examples=100)
@given(DOCUMENTS, st.lists(NAMED_PATHS, max_size=3))
@example('{"a":{"b":1,"c":2}}', ["a.b", "a"])
def test_fields(document: str, fields: list[str]) -> None:
    """What is selected of a document."""
    left = shown(spelled(document), [name.split(".") for name in fields])
    selected = select(load(document.encode()), tuple(tuple(name.split(".")) for name in fields))
    assert spelled(dump(selected)) == ({} if left is GONE else left)
