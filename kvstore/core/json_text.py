"""JSON text: whether a body is JSON, where its values start and end, and our limits. Sources: RFC 8259, RFC 3629."""

import gc
import json
import re
from collections.abc import Callable, Collection
from functools import reduce
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any, TypeVar

from kvstore.core.errors import ContentTooLarge, InvalidDocument

MAX_DEPTH = 64
MAX_MEMBERS = 10_000
MAX_DIGITS = 4300  # of an integer, which Python reads (sys.int_info.default_max_str_digits)
MAX_BYTES = 1024 * 1024
MANY_BYTES = 64 * 1024  # of a text whose values are so many that it pays to keep the garbage collector from them
_whitespace = re.compile(r"[ \t\n\r]*").match
_SQUARE = bytes.maketrans(b"{}", b"[]")
_SPACES = b" \t\n\r"
_SPACE = re.compile(r"[ \t\n\r]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# Brackets that are nested at most MAX_DEPTH deep, in one pass: each level of the pattern is a level of brackets.
_is_shallow = re.compile(reduce(lambda inner, _: rb"(?:\[%b\])*+" % inner, range(MAX_DEPTH), b"")).fullmatch
_MAYBE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NO_HALF = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]|[^u])")  # a pair, or an escape of one character
# A member with a plain value, with whitespace, in one match; with the comma or brace after it; and many of them with a comma.
_PLAIN = (
    r'"([^"\\\x00-\x1f]*+)"[ \t\n\r]*+:[ \t\n\r]*+'
    r'("[^"\\\x00-\x1f]*+"|-?(?:0|[1-9][0-9]{0,17}+)(?:\.[0-9]{1,17}+)?+|true|false|null)[ \t\n\r]*+'
)
_plain_member = re.compile(_PLAIN + r"([,}])[ \t\n\r]*+").match
_plain_members = re.compile(_PLAIN + r",[ \t\n\r]*+").findall
_plain_run = re.compile(rf"(?:{re.sub(r'[(](?![?])', '(?:', _PLAIN)},[ \t\n\r]*+)*+").match


Parsed = TypeVar("Parsed")
Text = TypeVar("Text", str, bytes)
Scan = Callable[[str, int], tuple[Any, int]]  # of a value: (text, index) → (value, end)


def check(body: bytes) -> None:
    """Check that a body is one JSON text within our limits; raises InvalidDocument or ContentTooLarge."""
    parse_text(body, find_value)


def split_object(body: bytes, most_bytes: int = MAX_BYTES) -> dict[str, str]:
    """Return the members of a JSON object as name → JSON text; raises InvalidDocument or ContentTooLarge.

    The values are JSON, but the limits that codec.encode() checks are not checked in them.
    """
    return parse_text(body, _split_object, most_bytes)


def split_object_at(text: str, at: int) -> tuple[dict[str, str], int]:
    """Return the same for the object at `at` of a text that is known to be JSON, and the index of the next token after it."""
    if text[at] != "{":
        raise InvalidDocument("a JSON object is required here; send one in braces")
    return split_members(text, at, _scan_known)


def parse_text(body: bytes, parse: Callable[[str], Parsed], most_bytes: int = MAX_BYTES) -> Parsed:
    """Return `parse(text)` for the text of a body; raises InvalidDocument if it is not JSON, or ContentTooLarge."""
    text = _text(body, most_bytes)
    try:
        return uncollected(parse, text)
    except StopIteration as stop:
        raise malformed(text, stop.value) from None
    except json.JSONDecodeError as error:
        raise malformed(text, error.pos, error.msg) from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise InvalidDocument(f"an integer has more than {MAX_DIGITS:,} digits; send it as a string") from None


def uncollected(parse: Callable[[Text], Parsed], text: Text) -> Parsed:
    """Return `parse(text)`, with the collector of cyclic garbage off if the text is long.

    A tree of JSON has no cycles, and the collector would look at its hundreds of thousands of lists again and again.
    """
    if len(text) < MANY_BYTES or not gc.isenabled():
        return parse(text)
    gc.disable()
    try:
        return parse(text)
    finally:
        gc.enable()


def _text(body: bytes, most_bytes: int) -> str:
    if not body:
        raise InvalidDocument("the body is empty; send a JSON text, such as {} or null")
    if len(body) > most_bytes:
        raise ContentTooLarge(f"the document is larger than {most_bytes:,} bytes; split it into several documents")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"the body is not UTF-8: byte {error.start} cannot be decoded; send UTF-8") from None
    if text.startswith("\ufeff"):
        raise InvalidDocument("the body starts with a byte order mark; send UTF-8 without one")
    return text


def _split_object(text: str) -> dict[str, str]:
    start = skip(text, 0)
    if start == len(text):
        raise malformed(text, start)
    members, end = split_object_at(text, start)
    check_end(text, end)
    return members


def skip(text: str, at: int) -> int:
    """Return the index of the first character at or after `at` that is not whitespace."""
    return _whitespace(text, at).end()  # type: ignore[union-attr]  # the pattern matches nothing as well


def _value(text: str) -> tuple[int, int]:
    """Return start and end of the one value that `text` contains."""
    start = skip(text, 0)
    end = scanner(text)(text, start)[1]
    check_end(text, end)
    return start, end


def find_value(text: str) -> tuple[int, int]:
    """Return start and end of the one value that `text` contains, and check our limits; raises InvalidDocument."""
    start, end = _value(text)
    check_limits(text)
    return start, end


def check_end(text: str, end: int) -> None:
    """Check that nothing follows the JSON value that ends at `end`; raises InvalidDocument."""
    if (rest := skip(text, end)) != len(text):
        raise malformed(text, rest, "unexpected text after the JSON value")


def check_limits(text: str) -> None:
    """Check the limits that JSON's grammar does not have, in a text that is known to be JSON; raises InvalidDocument."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeded(text):
        raise _too_deep()
    if _MAYBE_SURROGATE.search(text):
        _check_surrogates(text)


def split_members(text: str, start: int, scan: Scan) -> tuple[dict[str, str], int]:
    """Return the members of the object at `start` as name → JSON text, and the index of the next token after the object."""
    at = skip(text, start + 1)
    if text[at : at + 1] == "}":
        return {}, skip(text, at + 1)
    end = _plain_run(text, at).end()  # type: ignore[union-attr]  # the pattern matches nothing as well
    run = _plain_members(text, at, end)
    members: dict[str, str] = dict(run)
    if len(members) < len(run):
        _refuse_duplicate(run)
    at = end
    while True:
        if plain := _plain_member(text, at):
            name, value, following = plain.groups()
            at = plain.end()
        else:
            name, value, at = _member(text, at, scan)
            following = text[at : at + 1]
            if following not in (",", "}"):
                raise malformed(text, at, "a comma or a closing brace must follow a member")
            at = skip(text, at + 1)
        if name in members:
            raise _duplicate(name)
        members[name] = value
        if following == "}":
            break
    if len(members) > MAX_MEMBERS:
        raise _too_many_members()
    return members, at


def _member(text: str, at: int, scan: Scan) -> tuple[str, str, int]:
    """Return one member's name and JSON text, and the index of the next token."""
    if text[at : at + 1] != '"':
        raise malformed(text, at, "a member must start with its name in double quotes")
    name, at = scanstring(text, at + 1, True)
    at = skip(text, at)
    if text[at : at + 1] != ":":
        raise malformed(text, at, "a colon must follow a member's name")
    at = skip(text, at + 1)
    end = scan(text, at)[1]
    return name, text[at:end], skip(text, end)


def check_object(pairs: list[tuple[str, Any]]) -> None:
    """Check the members of an object; raises InvalidDocument if a name occurs twice, or if there are too many."""
    if len(pairs) > 1:
        if len(dict(pairs)) < len(pairs):
            _refuse_duplicate(pairs)
        if len(pairs) > MAX_MEMBERS:
            raise _too_many_members()


def _refuse_duplicate(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _duplicate(name)
        seen.add(name)


def check_float(number: str) -> None:
    """Check that a number is in a double's range; raises InvalidDocument."""
    if float(number) in (float("inf"), float("-inf")):
        raise InvalidDocument(f"the number {number[:40]} is outside the range of a double; send it as a string")


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, for which JSON has no words; raises InvalidDocument."""
    raise InvalidDocument(f"{name} is not JSON; send null or a string")


# The C scanner of the standard library: (text, index) → (value, end). It raises StopIteration(index) if no value starts there.
_scan_checked: Scan = json.JSONDecoder(object_pairs_hook=check_object, parse_constant=refuse_constant).scan_once  # type: ignore[attr-defined]
_scan_checked_floats: Scan = json.JSONDecoder(
    object_pairs_hook=check_object, parse_constant=refuse_constant, parse_float=check_float
).scan_once  # type: ignore[attr-defined]
_AS_ZEROS = bytes.maketrans(b"123456789E", b"000000000e")


def scanner(text: str) -> Scan:
    """Return the scanner that checks the values in `text`."""
    return _scan_checked_floats if may_exceed_doubles(text) else _scan_checked


def may_exceed_doubles(text: str) -> bool:
    """Return False if each number in `text` has at most two digits in its exponent and 199 before it."""
    zeros = text.encode().translate(_AS_ZEROS)
    return b"e000" in zeros or b"e+000" in zeros or _DIGITS in zeros


_DIGITS = b"0" * 200
# The same without our limits, for text that is split first and checked later.
_scan_known: Scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def _depth_exceeded(text: str) -> bool:
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    return not _is_shallow(outside.encode().translate(_SQUARE, _NO_BRACKETS))


def _check_surrogates(text: str) -> None:
    """Refuse an escaped surrogate that is not part of a pair (RFC 8259 section 8.2); `text` is known to be JSON."""
    if _MAYBE_SURROGATE.search(_NO_HALF.sub("", text)):
        raise InvalidDocument("a string has half of a surrogate pair, which is not a character; escape both halves")


def compact(value: str) -> bytes:
    """Return a JSON text in UTF-8, without whitespace between tokens."""
    text = value.encode()
    if value[0] == '"' or len(text) == len(text.translate(None, _SPACES)):
        return text
    # Strings are every other part between quotes. JSON text has no control characters, so two stand for the escapes.
    has_escapes = b"\\" in text
    if has_escapes:
        text = text.replace(b"\\\\", b"\0").replace(b'\\"', b"\1")
    parts = text.split(b'"')
    parts[::2] = b'"'.join(parts[::2]).translate(None, _SPACES).split(b'"')
    text = b'"'.join(parts)
    return text.replace(b"\1", b'\\"').replace(b"\0", b"\\\\") if has_escapes else text


def compact_all(values: Collection[str]) -> list[bytes]:
    """Do the same with several texts."""
    if _SPACE.search("".join(values)):
        return [compact(value) for value in values]
    return list(map(str.encode, values))


def malformed(text: str, at: int, why: str = "no JSON value starts here") -> InvalidDocument:
    """Return the problem of a text that is not JSON, with line, column and reason."""
    line = text.count("\n", 0, at) + 1
    column = at - text.rfind("\n", 0, at)
    return InvalidDocument(f"the body is not JSON: line {line}, column {column}: {why}")


def _duplicate(name: str) -> InvalidDocument:
    return InvalidDocument(f"the name {name[:100]!r} occurs twice in one object; send it once")


def _too_many_members() -> InvalidDocument:
    return InvalidDocument(f"an object has more than {MAX_MEMBERS:,} members; split it into several documents")


def _too_deep() -> InvalidDocument:
    return InvalidDocument(f"the document is nested more than {MAX_DEPTH} levels deep; store inner parts as documents")
