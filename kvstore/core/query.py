"""Questions to a container: which documents match, in which order they come, and what is shown of them.

`http/queries.py` makes a question of a query string, or of the body of a QUERY. It is asked about the trees of `core/patch.py`,
whose numbers keep their spelling. Numbers are compared by their exact values, strings by code point.
"""

from collections.abc import Callable, Generator
from functools import total_ordering
from operator import ge, gt, le, lt
from typing import Any, Final, NamedTuple, TypeAlias

from kvstore.core.patch import INFINITY, Number, Tree, is_number, number_key

MISSING: Final = object()  # what a document has where it has nothing

Member: TypeAlias = tuple[str, ...]  # names, from the outermost object on; a number leads into an array


class Condition(NamedTuple):
    """A condition on a member. `value` is a list for `in`, and whether the member is there for `exists`.

    `text` is the value as it was written: what `contains`, `startsWith` and `endsWith` look for in a string. With
    `is_string` it is a string that would be another value if it was read as JSON.
    """

    member: Member
    op: str
    value: Tree
    text: str
    is_string: bool = False

    def is_met(self, document: Tree) -> bool:
        """Return whether a document meets the condition."""
        found = find(document, self.member)
        if found is MISSING:
            return self.op == "ne" or (self.op == "exists" and not self.value)
        return OPERATORS[self.op](found, self)


class Order(NamedTuple):
    """A member to sort by."""

    member: Member
    descending: bool


class Question(NamedTuple):
    """What is asked of the documents below a container.

    All conditions must be met, and some string must contain `search`. Without `fields` all members are shown. If it `counts`,
    only the number of documents is.
    """

    where: tuple[Condition, ...] = ()
    search: str | None = None
    sort: tuple[Order, ...] = ()
    fields: tuple[Member, ...] = ()
    counts: bool = False

    @property
    def is_selective(self) -> bool:
        """Whether there may be documents that do not match."""
        return bool(self.where) or self.search is not None

    @property
    def needs_values(self) -> bool:
        """Whether the answer depends on what is in the documents."""
        return self.is_selective or bool(self.sort) or bool(self.fields)

    def is_met(self, document: Tree) -> bool:
        """Return whether a small document matches."""
        for condition in self.where:
            if not condition.is_met(document):
                return False
        return self.search is None or _is_in_strings(self.search.casefold(), document)

    def matches(self, document: Tree) -> Generator[None, None, bool]:
        """Return whether a document matches. It yields after each condition, which takes up to 30 ms in a large document."""
        for condition in self.where:
            if not condition.is_met(document):
                return False
            yield
        return self.search is None or _is_in_strings(self.search.casefold(), document)


def find(document: Tree, member: Member) -> Tree:
    """Return what a document has there, or MISSING."""
    for name in member:
        if type(document) is dict:
            document = document.get(name, MISSING)
        elif type(document) is list and (at := position(name)) < len(document):
            document = document[at]
        else:
            return MISSING
    return document


def position(name: str) -> int:
    """Return the index in an array that a name is, beyond any array if it is none: digits without zeros before them."""
    is_index = name.isascii() and name.isdigit() and len(name) < MAX_INDEX_DIGITS and (name[0] != "0" or name == "0")
    return int(name) if is_index else NOWHERE


MAX_INDEX_DIGITS, NOWHERE = 10, 10**10


# --- Conditions ---------------------------------------------------------------------------------------------------------


def is_equal(found: Tree, wanted: Tree) -> bool:
    """Return whether two values are equal as JSON. It takes no longer than `wanted` is large."""
    kind = type(wanted)
    if is_number(wanted):
        return is_number(found) and _is_same_number(found, wanted)
    if kind is not type(found):
        return False
    if kind is list:
        return len(found) == len(wanted) and all(map(is_equal, found, wanted))
    if kind is dict:
        return found.keys() == wanted.keys() and all(is_equal(found[name], value) for name, value in wanted.items())
    return bool(found == wanted)


def _is_same_number(one: int | Number, other: int | Number) -> bool:
    if type(one) is int is type(other):
        return one == other
    return _double(one) == _double(other) and number_key(one) == number_key(other)


def _double(number: int | Number) -> float:
    """Return the double next to a number. That of an integer may be too large; no Number is."""
    try:
        return float(number)
    except OverflowError:
        return INFINITY


def _is_one_of(found: Tree, condition: Condition) -> bool:
    return any(is_equal(found, wanted) for wanted in condition.value)


def _contains(found: Tree, condition: Condition) -> bool:
    if type(found) is str:
        return condition.text in found
    return type(found) is list and _has(found, condition.value)


def _has(array: list[Tree], wanted: Tree) -> bool:
    """Return whether an array has an element that is equal to a value. It may have half a million, so no call for each."""
    kind = type(wanted)
    if is_number(wanted):
        double = _double(wanted)
        if kind is int and any(part == wanted for part in array if type(part) is int):
            return True
        others = (part for part in array if type(part) is Number and float(part) == double)
        return any(_is_same_number(part, wanted) for part in others) or (
            kind is Number and any(_is_same_number(part, wanted) for part in array if type(part) is int and part == double)
        )
    if kind in (list, dict):
        size = len(wanted)
        return any(is_equal(part, wanted) for part in array if type(part) is kind and len(part) == size)
    return any(part == wanted for part in array if type(part) is kind)


def _ordering(test: Callable[[Any, Any], bool]) -> Callable[[Tree, Condition], bool]:
    def compare(found: Tree, condition: Condition) -> bool:
        wanted = condition.value
        kinds = type(found), type(wanted)
        if kinds in ((int, int), (str, str)):
            return test(found, wanted)
        return is_number(found) and is_number(wanted) and test(number_key(found), number_key(wanted))

    return compare


OPERATORS: dict[str, Callable[[Tree, Condition], bool]] = {
    "eq": lambda found, condition: is_equal(found, condition.value),
    "ne": lambda found, condition: not is_equal(found, condition.value),
    "lt": _ordering(lt),
    "lte": _ordering(le),
    "gt": _ordering(gt),
    "gte": _ordering(ge),
    "in": _is_one_of,
    "contains": _contains,
    "startsWith": lambda found, condition: type(found) is str and found.startswith(condition.text),
    "endsWith": lambda found, condition: type(found) is str and found.endswith(condition.text),
    "exists": lambda _, condition: bool(condition.value),
}


def _is_in_strings(folded: str, document: Tree) -> bool:
    left = [document]
    while left:
        value = left.pop()
        if type(value) is str:
            if folded in value.casefold():
                return True
        elif type(value) in (list, dict):
            parts = value if type(value) is list else value.values()
            left += [part for part in parts if type(part) in _HOLDS_STRINGS]
    return False


_HOLDS_STRINGS = (str, list, dict)


# --- Sorting ------------------------------------------------------------------------------------------------------------

Rank: TypeAlias = tuple[Any, ...]  # a type's place, and what sorts values of that type


def rank(value: Tree) -> Rank:
    """Return what sorts values: missing, null, false, true, numbers, strings, arrays, objects. Arrays are all alike."""
    if type(value) is str:
        return 5, value
    if is_number(value):
        return 4, number_key(value)
    if value is MISSING:
        return (0,)
    if value is None:
        return (1,)
    if value is False:
        return (2,)
    if value is True:
        return (3,)
    return (6,) if type(value) is list else (7,)


@total_ordering
class Descending:
    """What sorts the other way round."""

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Descending) and bool(self.key == other.key)

    def __lt__(self, other: "Descending") -> bool:
        return bool(other.key < self.key)

    def __hash__(self) -> int:
        return hash(self.key)


SortKey: TypeAlias = tuple[Any, ...]


def sort_key(sort: tuple[Order, ...], values: tuple[Tree, ...], name: str, *, descending: bool) -> SortKey:
    """Return what sorts documents, from the values that they have there. The name, which may be `descending`, breaks ties."""
    ranks = [Descending(rank(value)) if order.descending else rank(value) for order, value in zip(sort, values, strict=True)]
    return (*ranks, Descending(name) if descending else name)


# --- Selecting ----------------------------------------------------------------------------------------------------------


def select(document: Tree, fields: tuple[Member, ...]) -> Tree:
    """Return a document with these members only, in its own order; {} if it has none of them."""
    wanted: dict[str, Any] = {}
    for member in sorted(fields, key=len):  # a member before what is below it
        at = wanted
        for name in member[:-1]:
            if at.setdefault(name, {}) is None:
                break
            at = at[name]
        else:
            at.setdefault(member[-1], None)
    selected = _selected(document, wanted)
    return {} if selected is MISSING else selected


def _selected(value: Tree, wanted: dict[str, Any] | None) -> Tree:
    """Return the parts that are wanted of a value, all of it for None; MISSING if it has none of them."""
    if wanted is None:
        return value
    parts: list[tuple[Any, Tree]] = []
    if type(value) is dict:
        parts = [(name, _selected(part, wanted[name])) for name, part in value.items() if name in wanted]
    elif type(value) is list:
        indexes = sorted(at for name in wanted if (at := position(name)) < len(value))
        parts = [(at, _selected(value[at], wanted[str(at)])) for at in indexes]
    left = [(at, part) for at, part in parts if part is not MISSING]
    if not left:
        return MISSING
    return dict(left) if type(value) is dict else [part for _, part in left]
