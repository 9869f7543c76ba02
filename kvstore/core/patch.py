"""Merge patch (RFC 7396) and JSON Patch (RFC 6902), on JSON whose numbers keep their spelling.

`load` makes a tree of dicts, lists, strings, True, False, None, integers, and Number for what an integer of Python would spell
in another way. All that costs more than a share of an event loop's turn is a generator that yields between the turns.
"""

import json
import re
from collections.abc import Generator
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any, NamedTuple

from kvstore.core.errors import ContentTooLarge, InvalidPatch, PatchFailed, PathNotThere
from kvstore.core.json_text import (
    MAX_BYTES,
    check_end,
    check_float,
    check_limits,
    check_object,
    may_exceed_doubles,
    parse_text,
    refuse_constant,
    skip,
    uncollected,
)

Tree = Any

MAX_OPERATIONS = 2_000
MAX_SHIFTED = 64 * 1024 * 1024  # items of arrays that inserting and removing moves, over all operations: some 30 ms
OPERATIONS_PER_TURN = 100  # of the event loop
COMPARED_PER_TURN = 10_000  # values that a test compares in one turn of the event loop: 2 to 40 ms
INFINITY = float("inf")
EXACT_DIGITS = 15  # of a number that doubles tell from any other of so many digits, unless it is next to 0
MIN_EXACT = 1e-290


_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)0*+([0-9]*))?")
MAX_EXPONENT_DIGITS = 1000  # that are read: int() refuses thousands, and a double ends at 1e308
_Parts = tuple[str, str, int | str]


class Number(str):
    """The spelling of a JSON number. It is equal to another spelling, not to another number: for that see parts()."""

    __slots__ = ("_parts",)
    _parts: _Parts

    def parts(self) -> _Parts:
        """Return sign, digits without zeros at either end, and power of ten: the same for equal numbers."""
        try:
            return self._parts
        except AttributeError:
            self._parts = _parts(self)
            return self._parts


def _parts(number: str) -> _Parts:
    sign, whole, fraction, exponent_sign, exponent = _NUMBER.fullmatch(number).groups(default="")  # type: ignore[union-attr]
    digits = (whole + fraction).lstrip("0")
    shown = digits.rstrip("0")
    if not shown:
        return "", "", 0
    if len(exponent) > MAX_EXPONENT_DIGITS:  # such numbers are equal only if spelled alike
        return sign, shown, exponent
    return sign, shown, int(exponent_sign + (exponent or "0")) - len(fraction) + len(digits) - len(shown)


def _integer(number: str) -> int | Number:
    return Number(number) if number == "-0" else int(number)  # Python's -0 is 0


def _checked_number(number: str) -> Number:
    check_float(number)
    return Number(number)


def _members(pairs: list[tuple[str, Tree]]) -> dict[str, Tree]:
    check_object(pairs)
    return dict(pairs)


_decode = json.JSONDecoder(parse_float=Number).decode
_decode_minus_zero = json.JSONDecoder(parse_float=Number, parse_int=_integer).decode
_HOOKS: dict[str, Any] = {"parse_int": _integer, "parse_constant": refuse_constant, "object_pairs_hook": _members}
_scan_checked = json.JSONDecoder(parse_float=Number, **_HOOKS).scan_once  # type: ignore[attr-defined]
_scan_checked_floats = json.JSONDecoder(parse_float=_checked_number, **_HOOKS).scan_once  # type: ignore[attr-defined]


def load(text: bytes) -> Tree:
    """Return the tree of a JSON text that json_text.check() accepts."""
    return uncollected(_decode_minus_zero if b"-0" in text else _decode, text.decode())


def load_checked(body: bytes) -> Tree:
    """Return the tree of a JSON text, checked as json_text.check() does; raises InvalidDocument or ContentTooLarge."""
    return parse_text(body, _load_checked)


def _load_checked(text: str) -> Tree:
    scan = _scan_checked_floats if may_exceed_doubles(text) else _scan_checked
    tree, end = scan(text, skip(text, 0))
    check_end(text, end)
    check_limits(text)
    return tree


def dump(tree: Tree) -> bytes:
    """Return the JSON text of a tree, without whitespace; raises RecursionError."""
    return "".join(_encode(tree, 0)).encode()


def _spell(text: str) -> str:
    return text if type(text) is Number else encode_basestring(text)


# The C encoder of the standard library. What it takes for strings are strings and Numbers. It raises RecursionError.
_encode = c_make_encoder(None, None, _spell, None, ":", ",", False, False, False)


def merge(target: Tree, patch: Tree) -> Tree:
    """Return the target with a merge patch applied. The target is changed. Source: RFC 7396 section 2."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merge(target.get(name), value)
    return target


class Operation(NamedTuple):
    """An operation of a JSON Patch. `path` and `source`, the member `from`, are the reference tokens of their pointers."""

    op: str
    path: list[str]
    source: list[str]
    value: Tree


def check_body(body: bytes) -> list[Operation]:
    """Return the operations of a JSON Patch, a JSON text; raises InvalidPatch, InvalidDocument or ContentTooLarge."""
    return uncollected(lambda body: check_json_patch(load_checked(body)), body)


def check_json_patch(patch: Tree) -> list[Operation]:
    """Return the operations of a JSON Patch, checked; raises InvalidPatch. Source: RFC 6902 sections 3 and 4."""
    if not isinstance(patch, list):
        raise InvalidPatch("a JSON Patch must be an array of operations")
    if len(patch) > MAX_OPERATIONS:
        raise InvalidPatch(f"the JSON Patch has more than {MAX_OPERATIONS:,} operations; send it in several requests")
    return [_operation(operation, index) for index, operation in enumerate(patch)]


def _operation(operation: Tree, index: int) -> Operation:
    op = operation.get("op") if isinstance(operation, dict) else None
    needed = _NEEDED.get(op) if isinstance(op, str) else None
    if op is None or needed is None:
        raise InvalidPatch(f"operation {index}: op must be one of {', '.join(_NEEDED)}")
    for name in needed:
        if name not in operation:
            raise InvalidPatch(f"operation {index}: {op} requires the member {name}")
    source = _pointer(operation["from"], index) if "from" in needed else []
    return Operation(op, _pointer(operation["path"], index), source, operation.get("value"))


_NEEDED = {
    "add": ("path", "value"),
    "remove": ("path",),
    "replace": ("path", "value"),
    "move": ("path", "from"),
    "copy": ("path", "from"),
    "test": ("path", "value"),
}
_BAD_TILDE = re.compile(r"~(?![01])")


def _pointer(text: Any, index: int) -> list[str]:
    """Return the reference tokens of a JSON Pointer, the first one for the root (RFC 6901)."""
    if type(text) is not str or not (text == "" or text.startswith("/")):
        raise InvalidPatch(f"operation {index}: a JSON Pointer must be empty or start with a slash")
    tokens = text.split("/")
    if "~" not in text:
        return tokens
    if _BAD_TILDE.search(text):
        raise InvalidPatch(f"operation {index}: write ~0 for a tilde in a JSON Pointer, and ~1 for a slash")
    return [token.replace("~1", "/").replace("~0", "~") for token in tokens]


def points_at(operations: list[Operation], member: str) -> bool:
    """Return whether an operation points to a member of the outermost object, or below it."""
    return any(pointer[1:2] == [member] for operation in operations for pointer in (operation.path, operation.source))


def apply(target: Tree, operations: list[Operation], max_copied_bytes: int) -> Generator[None, None, Tree]:
    """Return the target with all operations of a JSON Patch applied. The target and the operations' values are used up.

    Raises PatchFailed if a test fails, PathNotThere for a path that does not exist, ContentTooLarge for too much work.
    """
    patched = _Patched(target, max_copied_bytes)
    for index, (op, path, source, value) in enumerate(operations):
        patched.index = index
        if index % OPERATIONS_PER_TURN == OPERATIONS_PER_TURN - 1:
            yield
        if op == "test":
            if not (yield from _equal(patched.get(path), value)):
                raise PatchFailed(f"operation {index}: the value at {_spelled(path)!r} is not the one that is tested for")
        elif op == "remove":
            patched.remove(path)
        elif op == "add":
            patched.add(path, value)
        elif op == "replace":
            patched.replace(path, value)
        elif op == "copy":
            patched.add(path, patched.copy(source))
        else:
            if path[: len(source)] == source and path != source:
                raise PathNotThere(f"operation {index}: a value cannot be moved into itself")
            patched.add(path, patched.remove(source))
    if "" not in patched.root:
        raise PathNotThere("the patch removes the whole document; send DELETE to do that")
    return patched.root[""]


_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")  # RFC 6901 section 4: no leading zeros


class _Patched:
    """A document that is being patched, by the operation `index`. The whole document is the member "" of `root`."""

    def __init__(self, target: Tree, max_copied_bytes: int) -> None:
        self.root = {"": target}
        self.index = 0
        self._max_copied_bytes = max_copied_bytes
        self._copied_bytes = 0
        self._shifted = 0  # items of arrays

    def get(self, path: list[str]) -> Tree:
        value: Tree = self.root
        for depth, token in enumerate(path):
            if type(value) is dict and token in value:
                value = value[token]
            elif type(value) is list and (at := _position(token)) < len(value):
                value = value[at]
            else:
                raise self._not_there(path[: depth + 1])
        return value

    def add(self, path: list[str], value: Tree) -> None:
        parent, last = self.get(path[:-1]), path[-1]
        if type(parent) is dict:
            parent[last] = value
        elif type(parent) is list and (at := len(parent) if last == "-" else _position(last)) <= len(parent):
            self._shift(len(parent) - at)
            parent.insert(at, value)
        else:
            raise self._not_there(path)

    def remove(self, path: list[str]) -> Tree:
        value = self.get(path)
        parent, last = self.get(path[:-1]), path[-1]
        if type(parent) is dict:
            del parent[last]
        else:
            self._shift(len(parent) - int(last))
            del parent[int(last)]
        return value

    def replace(self, path: list[str], value: Tree) -> None:
        self.get(path)
        parent, last = self.get(path[:-1]), path[-1]
        parent[last if type(parent) is dict else int(last)] = value

    def copy(self, path: list[str]) -> Tree:
        text = dump(self.get(path))
        self._copied_bytes += len(text)
        if self._copied_bytes > self._max_copied_bytes:
            raise ContentTooLarge(
                f"the copies of the JSON Patch have more than {self._max_copied_bytes:,} bytes, which are 8 for each of its own"
                " and 8 KiB; copy less, or send the values"
            )
        return load(text)

    def _shift(self, items: int) -> None:
        self._shifted += items
        if self._shifted > MAX_SHIFTED:
            raise ContentTooLarge("the JSON Patch inserts and removes too much near the front of long arrays; send it in parts")

    def _not_there(self, path: list[str]) -> PathNotThere:
        return PathNotThere(f"operation {self.index}: the document has no value at {_spelled(path)!r}")


def _position(token: str) -> int:
    """Return the index that a reference token is, beyond any array if it is none."""
    return int(token) if _INDEX.fullmatch(token) else MAX_BYTES


def _spelled(path: list[str]) -> str:
    return "/".join(path[:200])[:200]


def _equal(one: Tree, other: Tree) -> Generator[None, None, bool]:
    """Compare JSON values: true is not 1, and the order of members does not matter (RFC 6902 section 4.6)."""
    pairs, compared = [(one, other)], 0
    while pairs:
        compared += 1
        if compared % COMPARED_PER_TURN == 0:
            yield
        one, other = pairs.pop()
        kind = type(one)
        if kind is not type(other):
            if not (is_number(one) and is_number(other) and _is_same_number(one, other)):
                return False
        elif kind is dict:
            if one.keys() != other.keys():
                return False
            pairs += [(value, other[name]) for name, value in one.items()]
        elif kind is list:
            if len(one) != len(other):
                return False
            pairs += zip(one, other, strict=True)
        elif one != other and not (kind is Number and _is_same_number(one, other)):
            return False
    return True


def is_number(value: Tree) -> bool:
    """Return whether a value is a number; true and false are none."""
    return type(value) in (int, Number)


def _is_same_number(one: int | Number, other: int | Number) -> bool:
    if isinstance(one, Number) and isinstance(other, Number) and len(one) <= EXACT_DIGITS >= len(other):
        value = float(one)
        if value != float(other) or abs(value) > MIN_EXACT:
            return value == float(other)
    return _value(one) == _value(other)


def number_key(number: int | Number) -> tuple[int, float, str]:
    """Return what sorts numbers by their values, however they are spelled; it is the same for equal ones."""
    sign, digits, exponent = _value(number)
    if not digits:
        return 0, 0, ""
    if isinstance(exponent, str):  # as near to 0 as no other number: the longer its exponent the nearer
        magnitude, digits = -INFINITY, f"{len(exponent):08}{exponent}".translate(_COMPLEMENT) + digits
    else:
        magnitude = exponent + len(digits)
    return (-1, -magnitude, digits.translate(_COMPLEMENT) + ":") if sign else (1, magnitude, digits)


_COMPLEMENT = str.maketrans("0123456789", "9876543210")


def _value(number: int | Number) -> _Parts:
    return number.parts() if isinstance(number, Number) else _parts(str(number))
