"""Merge patch (RFC 7396) and JSON Patch (RFC 6902), on JSON whose numbers keep their spelling.

`load` makes a tree of dicts, lists, strings, True, False, None and Number. Two Numbers are equal if their values are, and each
keeps the text that it was written as.
"""

import json
import re
from json.encoder import encode_basestring
from typing import Any

from kvstore.core.errors import ContentTooLarge, InvalidPatch, PatchFailed, PathNotThere
from kvstore.core.json_text import MAX_BYTES

Tree = Any

MAX_OPERATIONS = 2_000


_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]+))?")


class Number:
    """A JSON number, with its spelling."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and (self.text == other.text or self.parts() == other.parts())

    def parts(self) -> tuple[str, str, int | str]:
        """Return sign, digits without zeros at either end, and power of ten: the same for equal numbers."""
        sign, whole, fraction, exponent = _NUMBER.fullmatch(self.text).groups(default="")  # type: ignore[union-attr]
        digits = (whole + fraction).lstrip("0")
        shown = digits.rstrip("0")
        if not shown:
            return "", "", 0
        if len(exponent) > 1000:  # int() refuses thousands of digits; such numbers are equal only if spelled alike
            return sign, shown, exponent
        return sign, shown, int(exponent or "0") - len(fraction) + len(digits) - len(shown)

    __hash__ = None  # type: ignore[assignment]


_decoder = json.JSONDecoder(parse_float=Number, parse_int=Number)


def load(text: bytes) -> Tree:
    """Return the tree of a JSON text that json_text.check() accepts."""
    return _decoder.decode(text.decode())


def dump(tree: Tree) -> bytes:
    """Return the JSON text of a tree, without whitespace."""
    parts: list[str] = []
    _dump(tree, parts.append)
    return "".join(parts).encode()


def _dump(tree: Tree, write: Any) -> None:
    if isinstance(tree, dict):
        separator = "{"
        for name, value in tree.items():
            write(f"{separator}{encode_basestring(name)}:")
            _dump(value, write)
            separator = ","
        write("}" if tree else "{}")
    elif isinstance(tree, list):
        separator = "["
        for value in tree:
            write(separator)
            _dump(value, write)
            separator = ","
        write("]" if tree else "[]")
    elif isinstance(tree, Number):
        write(tree.text)
    elif isinstance(tree, str):
        write(encode_basestring(tree))
    else:
        write({True: "true", False: "false", None: "null"}[tree])


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


def check_json_patch(patch: Tree) -> list[dict[str, Any]]:
    """Return the operations of a JSON Patch, checked; raises InvalidPatch. Source: RFC 6902 sections 3 and 4."""
    if not isinstance(patch, list):
        raise InvalidPatch("a JSON Patch must be an array of operations")
    if len(patch) > MAX_OPERATIONS:
        raise InvalidPatch(f"the JSON Patch has more than {MAX_OPERATIONS:,} operations; send it in several requests")
    for index, operation in enumerate(patch):
        op = operation.get("op") if isinstance(operation, dict) else None
        needed = _NEEDED.get(op) if isinstance(op, str) else None
        if needed is None:
            raise InvalidPatch(f"operation {index}: op must be one of {', '.join(_NEEDED)}")
        for name in needed:
            if name not in operation:
                raise InvalidPatch(f"operation {index}: {op} requires the member {name}")
        for name in ("path", "from"):
            if name in needed:
                _pointer(operation[name], index)
    return patch


def points_at(patch: list[dict[str, Any]], member: str) -> bool:
    """Return whether an operation of a JSON Patch points to a member of the outermost object, or below it."""
    pointers = [operation[name] for operation in patch for name in ("path", "from") if name in operation]
    return any(_is_text(pointer) and (pointer + "/").startswith(f"/{member}/") for pointer in pointers)


def apply(target: Tree, patch: list[dict[str, Any]]) -> Tree:
    """Return the target with all operations of a checked JSON Patch applied. The target is changed.

    Raises PatchFailed if a test fails, PathNotThere for a path that does not exist, ContentTooLarge if copies grow too large.
    """
    root = {"": target}  # so the whole document is a member like any other
    copied = 0
    for index, operation in enumerate(patch):
        op, path = operation["op"], _pointer(operation["path"], index)
        if op == "test":
            if not _equal(_get(root, path, index), operation["value"]):
                raise PatchFailed(f"operation {index}: the value at {operation['path']!r} is not the one that is tested for")
        elif op == "remove":
            _remove(root, path, index)
        elif op == "add":
            _add(root, path, _copy(operation["value"]), index)
        elif op == "replace":
            _get(root, path, index)
            _replace(root, path, _copy(operation["value"]))
        else:
            source = _pointer(operation["from"], index)
            value = _get(root, source, index)
            if op == "copy":
                copied += len(dump(value))
                if copied > MAX_BYTES:
                    raise ContentTooLarge(f"the copies of the JSON Patch have more than {MAX_BYTES:,} bytes in all; copy less")
                value = _copy(value)
            elif path[: len(source)] == source and path != source:
                raise PathNotThere(f"operation {index}: a value cannot be moved into itself")
            else:
                _remove(root, source, index)
            _add(root, path, value, index)
    if "" not in root:
        raise PathNotThere("the patch removes the whole document; send DELETE to do that")
    return root[""]


_NEEDED = {
    "add": ("path", "value"),
    "remove": ("path",),
    "replace": ("path", "value"),
    "move": ("path", "from"),
    "copy": ("path", "from"),
    "test": ("path", "value"),
}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_BAD_TILDE = re.compile(r"~(?![01])")


def _pointer(text: Any, index: int) -> list[str]:
    """Return the reference tokens of a JSON Pointer, the first one for the root (RFC 6901)."""
    if not _is_text(text) or not (text == "" or text.startswith("/")):
        raise InvalidPatch(f"operation {index}: a JSON Pointer must be empty or start with a slash")
    if _BAD_TILDE.search(text):
        raise InvalidPatch(f"operation {index}: write ~0 for a tilde in a JSON Pointer, and ~1 for a slash")
    return [token.replace("~1", "/").replace("~0", "~") for token in text.split("/")]


def _not_there(path: list[str], index: int) -> PathNotThere:
    return PathNotThere(f"operation {index}: the document has no value at {'/'.join(path)[:200]!r}")


_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")  # RFC 6901 section 4: no leading zeros


def _position(tokens: list[str], length: int, index: int) -> int:
    if _INDEX.fullmatch(tokens[-1]) and int(tokens[-1]) < length:
        return int(tokens[-1])
    raise _not_there(tokens, index)


def _get(root: Tree, path: list[str], index: int) -> Tree:
    value = root
    for depth, token in enumerate(path):
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif isinstance(value, list):
            value = value[_position(path[: depth + 1], len(value), index)]
        else:
            raise _not_there(path[: depth + 1], index)
    return value


def _add(root: Tree, path: list[str], value: Tree, index: int) -> None:
    parent = _get(root, path[:-1], index)
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list):
        at = len(parent) if path[-1] == "-" else _position(path, len(parent) + 1, index)
        parent.insert(at, value)
    else:
        raise _not_there(path, index)


def _remove(root: Tree, path: list[str], index: int) -> None:
    _get(root, path, index)
    parent = _get(root, path[:-1], index)
    del parent[path[-1] if isinstance(parent, dict) else int(path[-1])]


def _replace(root: Tree, path: list[str], value: Tree) -> None:
    parent = _get(root, path[:-1], 0)
    parent[path[-1] if isinstance(parent, dict) else int(path[-1])] = value


def _copy(tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {name: _copy(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_copy(value) for value in tree]
    return tree


def _equal(one: Tree, other: Tree) -> bool:
    """Compare JSON values: true is not 1, and the order of members does not matter (RFC 6902 section 4.6)."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and bool(one == other)
