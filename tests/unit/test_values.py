"""Python values and JSON text: nothing is lost on the way there and back."""

import copy
import json
import pickle
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given

from kvstore.core import json_text
from kvstore.core.errors import InvalidDocument
from kvstore.core.values import SpelledFloat, dump, load
from tests.support.json_texts import texts


def spelled(text: str) -> Any:
    """A JSON text with its numbers as they are spelled."""
    return json.loads(text, parse_int=lambda number: ("number", number), parse_float=lambda number: ("number", number))


@given(texts)
def test_what_is_read_is_written(text: str) -> None:
    """Byte by byte, but for escapes, of which a string has one spelling here."""
    text = json_text.compact(text).decode()
    written = dump(load(text.encode())).decode()
    assert spelled(written) == spelled(text)
    assert load(written.encode()) == load(text.encode())


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("1.0", 1.0, float),
        ("0.1", 0.1, float),
        ("-0.0", -0.0, float),
        ("1e+16", 1e16, float),
        ("1.10", 1.1, SpelledFloat),
        ("1e2", 100.0, SpelledFloat),
        ("1.000000000000000005", 1.0, SpelledFloat),
        ("-0", 0.0, SpelledFloat),
        ("-1", -1, int),
        ("9" * 4300, 10**4300 - 1, int),
    ],
    ids=lambda part: str(part)[:20],
)
def test_numbers(text: str, value: object, kind: type) -> None:
    """A number is what Python takes it for, and remembers its text where Python would spell it in another way."""
    number = load(text.encode())
    assert (number, type(number), dump(number)) == (value, kind, text.encode())


def test_a_float_with_a_spelling_is_a_float() -> None:
    """It is calculated with, copied and pickled like one, and has its exact value."""
    price = load(b'{"price":1.10}')["price"]
    assert (price * 2, type(price * 2), repr(price), json.dumps(price)) == (2.2, float, "1.1", "1.1")
    for other in (copy.copy(price), copy.deepcopy([price])[0], pickle.loads(pickle.dumps(price))):
        assert (other, other.spelling) == (price, "1.10")
    assert Decimal(price.spelling) == Decimal("1.10")


class Colour(StrEnum):
    """Names that are strings."""

    RED = "red"


class Size(IntEnum):
    """Numbers with names."""

    LARGE = 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1.10"), b"1.10"),
        (Decimal("1E+2"), b"1E+2"),
        ((1, (2,)), b"[1,[2]]"),
        ({Colour.RED: Size.LARGE, "b": Colour.RED, "c": True}, b'{"red":3,"b":"red","c":true}'),
        ('"\n\u2028\U0001f600', '"\\"\\n\u2028\U0001f600"'.encode()),
    ],
    ids=repr,
)
def test_other_values(value: object, text: bytes) -> None:
    """What JSON has a text for, though Python reads it as something else."""
    assert dump(value) == text


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (float("nan"), "nan"),
        ([float("-inf")], "-inf"),
        (Decimal("sNaN"), "sNaN"),
        (Decimal("Infinity"), "Infinity"),
        ({"a": {1: 2}}, "not 1"),
        ({None: 2}, "not None"),
        (b"x", "bytes"),
        ({1, 2}, "set"),
        (10**4300, "4,300"),
        ("a\udc80", "surrogate"),
        (LOOP, "contains itself"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_values_without_a_text(value: object, why: str) -> None:
    """They are refused with a sentence that says why, and nothing is made of them instead."""
    with pytest.raises(InvalidDocument, match=why):
        dump(value)
