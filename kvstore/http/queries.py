"""Questions to a container over HTTP: one grammar for the query string of a GET and for the body of a QUERY.

A condition is a parameter `member:op=value`, and in the body of a QUERY `{"where":{"member":{"op":value}}}`. Source: RFC 10008.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from kvstore.commands.queries import Position
from kvstore.core import patch
from kvstore.core.errors import InvalidDocument, InvalidParameter, Problem
from kvstore.core.query import MISSING, OPERATORS, Condition, Member, Order, Question
from kvstore.http.messages import Query, not_utf8, parameter, text_parameter

MAX_CONDITIONS = 50
MAX_VALUES = 1000  # of all conditions `in` together
MAX_SORT = 4
MAX_FIELDS = 100

STRING = "string"  # after an operator: the value is a string, although it looks like other JSON
FLAGS, TEXTS = ("count", "recursive"), ("search", "after", "order")
MEMBERS = ("where", "sort", "fields", "limit", *FLAGS, *TEXTS)  # of the body of a QUERY


class Asked(NamedTuple):
    """The body of a QUERY: a question, and parameters of a listing, as a query string has them."""

    question: Question
    query: Query


# --- Query strings ------------------------------------------------------------------------------------------------------


def parse_question(query: Query) -> Question | None:
    """Return the question in a query string, None if there is none; raises InvalidParameter."""
    conditions = [
        _condition(name, text)
        for name, texts in query.items()
        if ":" in name
        for text in texts  # an AND of all of them
    ]
    sort, fields = text_parameter(query, "sort"), text_parameter(query, "fields")
    search = text_parameter(query, "search")
    count = parameter(query, "count") is not None
    if not conditions and sort is fields is search is None and not count:
        return None
    return _question(
        conditions,
        search,
        () if sort is None or count else sort.split(","),
        () if fields is None or count else fields.split(","),
        count=count,
    )


def _condition(name: str, text: str) -> Condition:
    try:
        (name + text).encode()
    except UnicodeEncodeError:
        raise not_utf8() from None
    member, op, *suffix = name.split(":")
    if op not in OPERATORS or suffix not in ([], [STRING]):
        raise _unknown(":".join([op, *suffix]))
    path, is_string = _member(member), bool(suffix)
    if op == "exists":
        if text not in ("true", "false") or is_string:
            raise InvalidParameter(f"{name} is true or false, not {text[:100]!r}")
        return Condition(path, op, text == "true", text)
    if op == "in" and (is_string or not _is_json(text)):
        values = [part if is_string else parse_value(name, part) for part in text.split(",")]
        return Condition(path, op, values, text, is_string)
    value = text if is_string else parse_value(name, text)
    if op == "in" and type(value) is not list:
        value = [value]
    return Condition(path, op, value, text, is_string)


def _unknown(op: str) -> InvalidParameter:
    return InvalidParameter(f"there is no operator {op[:100]!r}; the operators are {', '.join(OPERATORS)}")


def parse_value(name: str, text: str) -> patch.Tree:
    """Return the JSON value that a text is, or the text itself if it is not JSON; raises InvalidParameter."""
    if not _is_json(text):
        return text
    try:
        return patch.load_checked(text.encode())
    except Problem as problem:  # the limits of a document
        raise InvalidParameter(f"the value of {name[:100]} is not one that a document can have: {problem.detail}") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity


def _member(text: str) -> Member:
    if ":" in text:
        raise InvalidParameter(f"a member whose name has a colon cannot be asked for: {text[:100]!r}")
    return tuple(text.split("."))


def _question(
    conditions: list[Condition], search: str | None, sort: Iterable[str], fields: Iterable[str], *, count: bool
) -> Question:
    """Return a question within our limits; raises InvalidParameter."""
    orders = tuple(Order(_named("sort", text.removeprefix("-")), text.startswith("-")) for text in sort)
    members = tuple(_named("fields", text) for text in fields)
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidParameter(f"a question has at most {MAX_CONDITIONS} conditions; send fewer")
    if sum(len(condition.value) for condition in conditions if condition.op == "in") > MAX_VALUES:
        raise InvalidParameter(f"all conditions `in` have at most {MAX_VALUES:,} values together; send several requests")
    if len(orders) > MAX_SORT:
        raise InvalidParameter(f"sort takes at most {MAX_SORT} members; name fewer")
    if len(members) > MAX_FIELDS:
        raise InvalidParameter(f"fields takes at most {MAX_FIELDS} members; name fewer")
    return Question(tuple(conditions), search, orders, members, count)


def _named(what: str, text: str) -> Member:
    if not text:
        raise InvalidParameter(f"{what} names members, separated by commas, and one of them is empty")
    return _member(text)


def spell_question(question: Question) -> list[tuple[str, str]]:
    """Return the parameters of a query string that ask a question."""
    asked = [
        (f"{'.'.join(member)}:{op}{':' + STRING if is_string else ''}", text)
        for member, op, _, text, is_string in question.where
    ]
    if question.search is not None:
        asked.append(("search", question.search))
    if question.sort:
        asked.append(("sort", ",".join("-" * order.descending + ".".join(order.member) for order in question.sort)))
    if question.fields:
        asked.append(("fields", ",".join(map(".".join, question.fields))))
    return asked


# --- Bodies -------------------------------------------------------------------------------------------------------------


def parse_body(body: bytes) -> Asked:
    """Return what the body of a QUERY asks; raises InvalidDocument or ContentTooLarge."""
    asked = patch.load_checked(body)
    if not isinstance(asked, dict):
        raise InvalidDocument('the body of a QUERY is an object; send {} or, for example, {"where":{"born":{"lt":1850}}}')
    for name in asked:
        if name not in MEMBERS:
            raise InvalidDocument(f"the body of a QUERY has no member {name[:100]!r}; its members are {', '.join(MEMBERS)}")
    query: dict[str, list[str]] = {}
    for name in TEXTS:
        if name in asked:
            query[name] = [_expect(asked, name, str, "a string")]
    for name in FLAGS:
        if name in asked and _expect(asked, name, bool, "true or false"):
            query[name] = [""]
    if "limit" in asked:
        query["limit"] = [str(_expect(asked, "limit", int, "an integer"))]
    search = query.pop("search", [None])[0]
    try:
        question = _question(
            _conditions(_expect(asked, "where", dict, "an object")) if "where" in asked else [],
            search,
            [] if "count" in query else _names(asked, "sort"),
            [] if "count" in query else _names(asked, "fields"),
            count="count" in query,
        )
    except InvalidParameter as problem:
        raise InvalidDocument(problem.detail) from None
    return Asked(question, query)


def _expect(asked: dict[str, Any], name: str, kind: type, what: str) -> Any:
    if type(asked[name]) is not kind:
        raise InvalidDocument(f"the member {name} of a QUERY is {what}")
    return asked[name]


def _names(asked: dict[str, Any], name: str) -> list[str]:
    names = _expect(asked, name, list, "an array of strings") if name in asked else []
    if any(type(each) is not str for each in names):
        raise InvalidDocument(f"the member {name} of a QUERY is an array of strings")
    return list(names)


def _conditions(where: dict[str, Any]) -> list[Condition]:
    conditions = []
    for member, tests in where.items():
        if type(tests) is not dict:
            raise InvalidDocument(f'the conditions on {member[:100]!r} are an object such as {{"eq":1}}')
        conditions += [_body_condition(_member(member), op, value) for op, value in tests.items()]
    return conditions


def _body_condition(member: Member, op: str, value: patch.Tree) -> Condition:
    if op not in OPERATORS:
        raise _unknown(op)
    if op == "exists" and type(value) is not bool:
        raise InvalidDocument("the value of exists is true or false")
    if op == "in" and type(value) is not list:
        raise InvalidDocument("the value of in is an array")
    if type(value) is str:
        return Condition(member, op, value, value, _is_json(value))
    return Condition(member, op, value, patch.dump(value).decode())


# --- Positions in a sorted listing --------------------------------------------------------------------------------------


def spell_position(position: Position) -> str:
    """Return `after` for what comes behind a position: its name, and each value in an array, which is empty for none."""
    values = [[] if value is MISSING else [value] for value in position.values]
    return patch.dump([position.name, *values]).decode()


def parse_position(text: str, question: Question) -> Position:
    """Return the position that `after` of a sorted listing is; raises InvalidParameter."""
    try:
        tree = patch.load_checked(text.encode())
    except (Problem, UnicodeEncodeError):
        tree = None
    if type(tree) is list and len(tree) == len(question.sort) + 1 and type(tree[0]) is str:
        name, *values = tree
        if all(type(value) is list and len(value) <= 1 for value in values):
            return Position(tuple(value[0] if value else MISSING for value in values), name)
    raise InvalidParameter("?after= of a sorted listing is what `next` has; take the URL of `next` as it is")
