"""Python values ↔ JSON text, without loss: what is read and written back is the same text, but for the escapes in strings.

An integer is an int of any size. Any other number is a float; where Python would spell that float in another way, it is a
SpelledFloat, which remembers its text. Source: RFC 8259; json.
"""

import json
from decimal import Decimal
from enum import Enum
from typing import Any, Self

from kvstore.core import json_text, patch
from kvstore.core.errors import InvalidDocument


class SpelledFloat(float):
    """A float that was read from a JSON number, `spelling`, and is written as that: `1e2`, `1.10`, `1.000000000000000005`.

    What you calculate with it is an ordinary float. `Decimal(number.spelling)` is its exact value.
    """

    __slots__ = ("spelling",)
    spelling: str

    def __new__(cls, spelling: str) -> Self:
        number = super().__new__(cls, spelling)
        number.spelling = spelling
        return number

    def __getnewargs__(self) -> tuple[str]:  # type: ignore[override]  # for copy and pickle
        return (self.spelling,)


def load(text: bytes) -> Any:
    """Return the value of a JSON text that is known to be JSON."""
    return json_text.uncollected(_decode_minus_zero if b"-0" in text else _decode, text.decode())


def _float(spelling: str) -> float:
    number = float(spelling)
    return number if repr(number) == spelling else SpelledFloat(spelling)


def _integer(spelling: str) -> int | float:
    return SpelledFloat(spelling) if spelling == "-0" else int(spelling)  # Python's integers have no -0


_decode = json.JSONDecoder(parse_float=_float).decode
_decode_minus_zero = json.JSONDecoder(parse_float=_float, parse_int=_integer).decode


def dump(value: Any) -> bytes:
    """Return the JSON text of a value, without whitespace; raises InvalidDocument if JSON has none.

    A value is made of None, bool, int, float, Decimal, str, list, tuple, and dict with names that are strings.
    """
    try:
        return patch.dump(_tree(value))
    except RecursionError:
        raise InvalidDocument(f"the value is nested more than {json_text.MAX_DEPTH} levels deep, or contains itself") from None
    except UnicodeEncodeError:
        raise InvalidDocument("a string has half of a surrogate pair, which is not a character; remove it") from None
    except ValueError:
        raise InvalidDocument(f"an integer has more than {json_text.MAX_DIGITS:,} digits; send it as a string") from None


def _tree(value: Any) -> patch.Tree:
    """Return a value as patch.dump() takes it; raises InvalidDocument."""
    if value is None or isinstance(value, str | int):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise InvalidDocument(f"a name in a JSON object is a string, not {name!r}; convert it")
        return {name: _tree(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_tree(part) for part in value]
    if isinstance(value, SpelledFloat):
        return patch.Number(value.spelling)
    if isinstance(value, float | Decimal):
        spelling = str(value) if isinstance(value, Decimal) else float.__repr__(value)
        if spelling.strip("-").isalpha():
            json_text.refuse_constant(spelling)
        return patch.Number(spelling)
    raise InvalidDocument(f"a {type(value).__name__} has no JSON text; make it a string, a number, a list or a dict")
