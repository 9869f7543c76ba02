"""What a query reads of each document, and what Redis can judge of it.

Redis sees the texts of fields. So it judges conditions on members of the outermost object that no other client's hash shows in
another way, with values that few texts mean (lua/_conditions.lua). What it is not sure of is judged in core/query.py.
"""

import re
from contextlib import suppress

from kvstore.commands.base import Arguments
from kvstore.core import codec, patch
from kvstore.core.query import Condition, Question

MAX_JUDGED = 4  # conditions: each takes Redis up to a microsecond for each document
MAX_BOUND = 1e300  # beyond it doubles end
MAX_SHORT = 15  # characters of a number that doubles tell from all others with so many digits

# Whether a number that is less, equal or greater meets a condition.
_ORDERS = {
    "eq": ("0", "1", "0"),
    "lt": ("1", "0", "0"),
    "lte": ("1", "1", "0"),
    "gt": ("0", "0", "1"),
    "gte": ("0", "1", "1"),
}
_is_plain = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*").fullmatch
_ESCAPED = re.compile(r'["\\\x00-\x1f]')
_is_short = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?").fullmatch
_is_number = re.compile(rb"-?(?:0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?").fullmatch
_is_string = re.compile(rb'"[^"\\\x00-\x1f]*"').fullmatch
_CONSTANTS = {b"true": True, b"false": False, b"null": None}


def members_of(question: Question, *, fields: bool = False) -> tuple[str, ...] | None:
    """Return the members of the outermost object that conditions and sorting look at, or with `fields` conditions and fields.

    None if that is the whole document, or if a field may be shown as another member.
    """
    if question.search is not None:
        return None
    paths = [condition.member for condition in question.where]
    paths += question.fields if fields else [order.member for order in question.sort]
    names = tuple(dict.fromkeys(path[0] for path in paths))
    return names if all(_is_plain(name) and name != "ttl" for name in names) else None


def read_member(value: bytes) -> patch.Tree:
    """Return the tree of a field's text, as that of the document has it."""
    if number := _is_number(value):
        text = value.decode()
        return patch.Number(text) if number[1] or text == "-0" else int(text)
    if _is_string(value):
        with suppress(UnicodeDecodeError):
            return value[1:-1].decode()
    return _CONSTANTS[value] if value in _CONSTANTS else patch.load(codec.value_text(value))


def judged_by_redis(where: tuple[Condition, ...], members: tuple[str, ...]) -> tuple[list[Arguments], bool]:
    """Return the conditions that Redis judges, as find.lua takes them, and whether these are all."""
    told = [
        (members.index(condition.member[0]) + 1, *judged)
        for condition in where
        if len(condition.member) == 1 and condition.member[0] in members and (judged := _judged(condition))
    ]
    return told[:MAX_JUDGED], len(told) == len(where) <= MAX_JUDGED


def _judged(condition: Condition) -> Arguments:
    op, wanted = condition.op, condition.value
    if patch.is_number(wanted) and op in _ORDERS:
        return ("number", *_ORDERS[op], *spelled) if (spelled := _spelled(wanted)) else ()
    texts: list[str] = []
    for value in wanted if op == "in" else [wanted] if op == "eq" else []:
        if value is None or isinstance(value, bool):
            texts += ["is", patch.dump(value).decode()]
        elif type(value) is str and not _ESCAPED.search(value):
            texts += ["is", f'"{value}"', "may", value]  # another client may have written it without quotes
        else:
            return ()
    return ("text", len(texts) // 2, *texts) if texts else ()


def ranked_by_redis(member: str, members: tuple[str, ...], bound: patch.Tree, *, op: str) -> list[Arguments]:
    """Return what leaves out documents with a number there that sorts on the other side of a bound: `lte` or `gte`."""
    if member not in members or not patch.is_number(bound) or not (spelled := _spelled(bound)):
        return []
    return [(members.index(member) + 1, "rank", *_ORDERS[op], *spelled)]


def _spelled(number: int | patch.Number) -> Arguments:
    """Return a number as Lua reads it; nothing if that is not possible."""
    text = str(number)
    if len(text) <= MAX_SHORT and _is_short(text):
        return text, "short"
    is_large = abs(number if isinstance(number, int) else float(number)) > MAX_BOUND
    return () if is_large else (repr(float(number)), "long")
