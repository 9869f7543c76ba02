"""A second reading of questions: as slow and as plain as the documentation, over the items of a plain listing.

Nothing of `kvstore` is used. Numbers are fractions, and each value has its type beside it, since true is not 1.
"""

import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

GONE: Any = ("missing", None)
TYPES = ("missing", "null", "false", "true", "number", "string", "array", "object")  # in their order


class Asked(NamedTuple):
    """A condition: a member as it is spelled, an operator, a JSON text, and the value as it was written."""

    member: str
    op: str
    value: str
    written: str


class Spelling(str):
    """A number as it is spelled."""

    __slots__ = ()


def spelled(text: str | bytes) -> Any:
    """A JSON text with its numbers as they are spelled."""
    return json.loads(text, parse_int=Spelling, parse_float=Spelling)


def typed(value: Any) -> tuple[str, Any]:
    """A value of spelled() with its type, so that == is what JSON means by equal."""
    if isinstance(value, Spelling):
        return "number", Fraction(value)
    if isinstance(value, str):
        return "string", value
    if isinstance(value, list):
        return "array", [typed(part) for part in value]
    if isinstance(value, dict):
        return "object", {name: typed(part) for name, part in value.items()}
    return {None: "null", False: "false", True: "true"}[value], None


def reached(document: Any, member: str) -> Any:
    """What a document has at a member, GONE if it has nothing there."""
    for name in member.split("."):
        kind, value = document
        if kind == "object" and name in value:
            document = value[name]
        elif kind == "array" and name in map(str, range(len(value))):
            document = value[int(name)]
        else:
            return GONE
    return document


def is_met(document: Any, asked: Asked) -> Any:
    """Whether a document meets a condition."""
    (kind, found), (wanted_kind, wanted) = reached(document, asked.member), typed(spelled(asked.value))
    if kind == "missing":
        return asked.op == "ne" or (asked.op == "exists" and asked.value == "false")
    is_ordered = kind == wanted_kind and kind in ("number", "string")
    match asked.op:
        case "eq":
            return (kind, found) == (wanted_kind, wanted)
        case "ne":
            return (kind, found) != (wanted_kind, wanted)
        case "lt":
            return is_ordered and found < wanted
        case "lte":
            return is_ordered and found <= wanted
        case "gt":
            return is_ordered and found > wanted
        case "gte":
            return is_ordered and found >= wanted
        case "in":
            return (kind, found) in wanted
        case "contains":
            return (kind == "string" and asked.written in found) or (kind == "array" and (wanted_kind, wanted) in found)
        case "startsWith":
            return kind == "string" and found[: len(asked.written)] == asked.written
        case "endsWith":
            return kind == "string" and found[len(found) - len(asked.written) :] == asked.written
    return asked.value == "true"


def strings(document: tuple[str, Any]) -> list[str]:
    """All strings in a document that are values."""
    kind, value = document
    if kind == "string":
        return [value]
    parts = value if kind == "array" else value.values() if kind == "object" else []
    return [text for part in parts for text in strings(part)]


def rank(value: tuple[str, Any]) -> tuple[int, Any]:
    """Where a value sorts."""
    kind, inner = value
    return TYPES.index(kind), inner if kind in ("number", "string") else 0


def shown(value: Any, fields: Sequence[list[str]], path: tuple[str, ...] = ()) -> Any:
    """What is left of a value of spelled() with these fields only; GONE if that is nothing."""
    if list(path) in fields:
        return value
    if not any(field[: len(path)] == list(path) for field in fields):
        return GONE
    parts: Any = None
    if isinstance(value, dict):
        parts = {name: left for name, part in value.items() if (left := shown(part, fields, (*path, name))) is not GONE}
    elif isinstance(value, list):
        parts = [left for at, part in enumerate(value) if (left := shown(part, fields, (*path, str(at)))) is not GONE]
    return parts or GONE


class Wanted(NamedTuple):
    """A question."""

    where: Sequence[Asked] = ()
    search: str | None = None
    sort: Sequence[str] = ()
    fields: Sequence[str] = ()
    descending: bool = False


def answered(items: Sequence[Any], wanted: Wanted) -> list[Any]:
    """The items of a plain listing, read by spelled(), that answer a question, in their order and as they are shown."""
    found = []
    for item in items:
        if "value" not in item:  # a container
            continue
        document = typed(item["value"])
        if not all(is_met(document, asked) for asked in wanted.where):
            continue
        if wanted.search is None or any(wanted.search.casefold() in text.casefold() for text in strings(document)):
            found.append(item)
    found.sort(key=lambda item: str(item["name"]), reverse=wanted.descending)
    for member in reversed(wanted.sort):
        is_down, name = member.startswith("-"), member.removeprefix("-")
        ranks = {item["name"]: rank(reached(typed(item["value"]), name)) for item in found}
        found.sort(key=lambda item, ranks=ranks: ranks[item["name"]], reverse=is_down)  # type: ignore[misc]
    if wanted.fields:
        fields = [name.split(".") for name in wanted.fields]
        for at, item in enumerate(found):
            left = shown(item["value"], fields)
            found[at] = item | {"value": {} if left is GONE else left}
    return found
