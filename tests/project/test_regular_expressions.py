"""No regular expression of the package takes more than linear time: by how it is written, not by texts that we think of.

A repeat that gives back what it took, and one after it that takes the same characters, try every way to share them, unless
something stands between them that the first does not take. That is quadratic, and exponential for a repeat in another. A
possessive repeat gives nothing back. Source: re, `*+` and `(?>…)` (Python 3.11).
"""

import ast
import importlib
import pkgutil
import re
import re._constants as op  # type: ignore[import-not-found]  # private, and in no stub
import re._parser as sre  # type: ignore[import-not-found]  # private, and in no stub
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kvstore

CHARACTERS = frozenset(range(0x180))  # the others are all as the last of these
FEW = 32  # a repeat of so many at most costs a constant
CATEGORIES = {
    op.CATEGORY_DIGIT: frozenset(ord(each) for each in "0123456789"),
    op.CATEGORY_SPACE: frozenset(ord(each) for each in " \t\n\r\f\v\x1c\x1d\x1e\x1f\x85\xa0"),
    op.CATEGORY_WORD: frozenset(each for each in CHARACTERS if chr(each).isalnum() or chr(each) == "_"),
}
NOT = {
    op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT,
    op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE,
    op.CATEGORY_NOT_WORD: op.CATEGORY_WORD,
}


class Repeat(NamedTuple):
    """A repeat without end: what an item of it begins with, and what must stand between it and the piece's border."""

    first: frozenset[int]
    between: tuple[frozenset[int], ...] = ()

    def beyond(self, piece: "Part") -> "list[Repeat]":
        """The same, seen from the other side of a piece; nothing if it cannot reach over that."""
        if piece.is_optional:
            return [self]
        return [self._replace(between=(*self.between, piece.first))] if piece.first & self.first else []

    def shares(self, other: "Repeat") -> bool:
        """Whether the border between two repeats can be in several places."""
        each_takes = all(self.first & between and other.first & between for between in self.between + other.between)
        return bool(self.first & other.first) and each_takes


class Part(NamedTuple):
    """A piece of an expression: what it begins with, whether it can be empty, and the repeats that reach its borders.

    Those at its end are the ones that give back.
    """

    first: frozenset[int]
    is_optional: bool
    begins: list[Repeat]
    ends: list[Repeat]


NOTHING = Part(frozenset(), True, [], [])


class Ambiguous(Exception):
    """An expression has two repeats that can share characters in several ways."""


def category(code: Any) -> frozenset[int]:
    return CHARACTERS - CATEGORIES[NOT[code]] if code in NOT else CATEGORIES[code]


def characters(items: Any) -> frozenset[int]:
    """Those of a class, as the parser has it."""
    found: set[int] = set()
    is_negated = False
    for code, value in items:
        if code is op.NEGATE:
            is_negated = True
        elif code is op.LITERAL:
            found.add(min(value, max(CHARACTERS)))
        elif code is op.RANGE:
            found |= CHARACTERS & frozenset(range(value[0], value[1] + 1))
        else:
            assert code is op.CATEGORY, code
            found |= category(value)
    return CHARACTERS - found if is_negated else frozenset(found)


def joined(left: Part, right: Part) -> Part:
    """One piece after another."""
    if any(end.shares(begin) for end in left.ends for begin in right.begins):
        raise Ambiguous
    return Part(
        left.first | (right.first if left.is_optional else frozenset()),
        left.is_optional and right.is_optional,
        left.begins + [each for begin in right.begins for each in begin.beyond(left)],
        right.ends + [each for end in left.ends for each in end.beyond(right)],
    )


def sequence(items: Any) -> Part:
    part = NOTHING
    for code, value in items:
        part = joined(part, piece(code, value))
    return part


def piece(code: Any, value: Any) -> Part:
    match code:
        case op.LITERAL | op.NOT_LITERAL:
            literal = frozenset([min(value, max(CHARACTERS))])
            return Part(literal if code is op.LITERAL else CHARACTERS - literal, False, [], [])
        case op.ANY:
            return Part(CHARACTERS, False, [], [])
        case op.IN:
            return Part(characters(value), False, [], [])
        case op.AT | op.ASSERT | op.ASSERT_NOT:
            return NOTHING
        case op.SUBPATTERN:
            return sequence(value[3])
        case op.ATOMIC_GROUP:
            return sequence(value)._replace(ends=[])
        case op.BRANCH:
            parts = [sequence(each) for each in value[1]]
            return Part(
                frozenset().union(*(part.first for part in parts)),
                any(part.is_optional for part in parts),
                [begin for part in parts for begin in part.begins],
                [end for part in parts for end in part.ends],
            )
        case op.MAX_REPEAT | op.MIN_REPEAT | op.POSSESSIVE_REPEAT:
            low, high, items = value
            return repeat(sequence(items), low, high, gives_back=code is not op.POSSESSIVE_REPEAT)
    raise AssertionError(f"an expression has {code}, which this test does not know")


def repeat(part: Part, low: int, high: int, *, gives_back: bool) -> Part:
    is_optional = part.is_optional or low == 0
    ends = part.ends if gives_back else []
    if high <= FEW:
        return Part(part.first, is_optional, part.begins, ends)
    if part.is_optional:
        raise Ambiguous  # nothing, as often as one likes
    if gives_back:
        joined(part, part)
        ends = [*ends, Repeat(part.first)]
    return Part(part.first, is_optional, [*part.begins, Repeat(part.first)], ends)


def is_linear(pattern: str | bytes, flags: int = 0) -> bool:
    """Whether an expression has no two repeats that can share characters in several ways."""
    try:
        sequence(sre.parse(pattern, flags & ~re.UNICODE if isinstance(pattern, bytes) else flags))
    except Ambiguous:
        return False
    return True


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"\s*,\s*", True),
        (r"\s*\s*x", False),
        (r"\s*(?:,x)?\s*\}", False),
        (r"\s*+(?:,x)?+\s*+\}", True),
        (r"\s*\s*+x", False),
        (r"\s*+\s*x", True),
        (r"(?>\s*)\s*x", True),
        (r"(a*)*b", False),
        (r"(a|b+)*c", False),
        (r"(?:a+b)*c", True),
        (r"(?:[a-z]+-?)+x", False),
        (r'"[^"\\]*(?:\\.[^"\\]*)*"', True),
        (r'(?:[^{}"]|"[^"]*")*\}', True),
        (r"[0-9]+(?:\.[0-9]+)?", True),
        (r"[0-9]+\.?[0-9]+", False),
        (r"a{0,9}a{0,9}b", True),
        (r"a{0,99}a{0,99}b", False),
        (r".*x.*y", False),
        (r"[ \t]*;[\t -~]*x", True),
        (r"[ \t]*([ -~]*)", False),
    ],
)
def test_what_is_linear(pattern: str, expected: bool) -> None:
    """That this test finds what it looks for."""
    assert is_linear(pattern) == expected


def patterns() -> Iterator[tuple[str, str | bytes, int]]:
    """All expressions of the package: those that its modules hold, and those that stand where they are used."""
    for found in pkgutil.walk_packages(kvstore.__path__, "kvstore."):
        if found.name == "kvstore.serving.gunicorn_config":  # reads the environment
            continue
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            pattern = value if isinstance(value, re.Pattern) else getattr(value, "__self__", None)
            if isinstance(pattern, re.Pattern):
                yield f"{found.name}.{name}", pattern.pattern, pattern.flags
        path = Path(module.__file__ or "")
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(ast.Attribute(ast.Name("re"), name), [ast.Constant(str() | bytes() as text), *_]) if name not in (
                    "compile",
                    "escape",
                ):
                    yield f"{found.name}:{node.lineno}", text, 0


def test_every_expression_is_linear() -> None:
    """Whatever text a client sends."""
    found = list(patterns())
    assert len(found) > 30
    assert [name for name, pattern, flags in found if not is_linear(pattern, flags)] == []
