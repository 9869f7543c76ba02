"""JSON text ↔ the fields of a Redis hash, without loss.

Each member of the outermost object is one field. Its value is the member's JSON text as the client sent it, without whitespace
between tokens. So a number keeps its spelling and a string its escapes. One more field, `$kv`, is ours:

    $kv       1700000000000-0 object ["b","a"]
              entity-tag, kind, and the order of the names if they are not sorted

A null in the order stands for all names that are not in it, sorted: `[null,"m"]` after a patch has added `m` to sorted names.

A member named `$kv` is stored with one more dollar sign (`$kv$`, and so on), so it is not taken for ours. A document that is
not an object is stored in one field, `$value`, and its kind is `value`.

Sources: RFC 8259 (JSON), RFC 3629 (UTF-8), HGETALL.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import chain
from json.encoder import encode_basestring
from typing import NamedTuple

from kvstore.core.errors import InvalidDocument, InvalidTTL
from kvstore.core.json_text import (
    check_end,
    check_limits,
    compact,
    compact_all,
    find_value,
    parse_text,
    scanner,
    skip,
    split_members,
    uncollected,
)
from kvstore.core.server_values import refuse_server_values, replace_server_values

MAX_PLAIN_BYTES = 16 * 1024
MAX_CACHED_BYTES = 1024  # of the names of a document: longer ones are not cached

META = b"$kv"
VALUE = b"$value"
OBJECT = b" object"  # what follows the entity-tag in META
SCALAR = b" value"

# The state of a job precedes the rest, on a line of its own (commands/lua/_jobs.lua, read_mark).
_META = re.compile(rb"(?:job [^\n]*\n)?(\d{1,20}-\d{1,20}) (object|value)(?: (\[.*\]))?", re.DOTALL)
_OUR_NAME = re.compile(rb"\$kv\$*")
# JSON texts that need no further check. Most values match.
_is_plain = re.compile(rb'"[^"\\\x00-\x1f\x80-\xff]*"|-?(?:0|[1-9][0-9]{0,17})|true|false|null').fullmatch


class Encoded(NamedTuple):
    """A document as the fields of a hash.

    `shape` follows the entity-tag in `$kv`. `fields` is field, value, field, value… `text` is the document's JSON text, as
    decode() returns it. `ttl_s` is the value of the reserved member `ttl`, None without one; it is not among the fields.
    With `has_server_values` some values are not JSON texts: `@` stands for the time in ms, `+n` for n plus the stored value.
    Then `text` has no meaning until Redis has filled in the values.
    """

    shape: bytes
    fields: list[bytes]
    text: bytes
    ttl_s: int | None
    has_server_values: bool = False

    @property
    def is_object(self) -> bool:
        return self.shape.startswith(OBJECT)

    @property
    def increments(self) -> bool:
        """Whether a member adds to the stored one."""
        return self.has_server_values and any(value.startswith(b"+") for value in self.fields[1::2])


class Decoded(NamedTuple):
    """A hash as a document: its JSON text, whether it is an object, and its entity-tag (None: another client's hash)."""

    text: bytes
    is_object: bool
    tag: str | None


def encode(body: bytes) -> Encoded:
    """Return the fields that the JSON text `body` is stored as; raises InvalidDocument, InvalidTTL or ContentTooLarge."""
    return encode_plain(body) or parse_text(body, _encode)


def decode(flat: list[bytes]) -> Decoded:
    """Return the document in a hash, from the reply to HGETALL: field, value, field, value…

    A value that is not JSON text (another Redis client wrote it) is read as a string: `42` is an integer, `02139` a string.
    Bytes that are not UTF-8 become escapes.
    """
    if len(flat) < MAX_REMEMBERED_PARTS and flat[0] == META:
        remembered = remembered_hashes.get(flat[1])
        if remembered is not None and remembered[0] == flat:
            return remembered[1]
        decoded = _decode(flat)
        if len(b"".join(flat)) <= MAX_REMEMBERED_BYTES:
            if len(remembered_hashes) >= MAX_REMEMBERED:
                remembered_hashes.clear()
            remembered_hashes[flat[1]] = flat, decoded
        return decoded
    return _decode(flat)


# The digests of large documents that this process has written or checked: what it reads again is not checked again. A digest
# covers the length of each value too: another client may have written a value that is two members in the text of a document.
_checked: set[bytes] = set()
MAX_CHECKED = 16_384  # digests, some 1.5 MB
MIN_CHECKED_BYTES = 4096  # of a document; to check a smaller one costs at most 0.2 ms


def value_text(value: bytes) -> bytes:
    """Return the JSON text that decode() shows of a field's value."""
    return value if _is_plain(value) else _checked_text(None, [value])


def _fingerprint(text: bytes, values: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256(array("Q", map(len, (text, *values))), usedforsecurity=False)
    digest.update(text)
    return digest.digest()


def _note(fingerprint: bytes) -> None:
    if len(_checked) >= MAX_CHECKED:
        _checked.clear()
    _checked.add(fingerprint)


def _checked_text(names: Sequence[bytes] | None, values: list[bytes]) -> bytes:
    """Return the document of an object's values, after their quoted names, or of one value. All are checked."""
    text = _join(names, values)
    if len(text) < MIN_CHECKED_BYTES:
        return _join(names, [value if _is_plain(value) else _json_text(value) for value in values])
    fingerprint = _fingerprint(text, values)
    if fingerprint in _checked:
        return text
    checked = [value if _is_plain(value) else _json_text(value) for value in values]
    if checked != values:
        return _join(names, checked)
    _note(fingerprint)
    return text


def _join(names: Sequence[bytes] | None, values: Sequence[bytes]) -> bytes:
    return values[0] if names is None else b"{%b}" % b",".join(map(bytes.__add__, names, values))


# A cache of decode() for small hashes, by entity-tag. An entry is used only if every byte is the same: other clients change a
# hash without changing its tag.
remembered_hashes: dict[bytes, tuple[list[bytes], "Decoded"]] = {}
MAX_REMEMBERED = 4096
MAX_REMEMBERED_PARTS = 50
MAX_REMEMBERED_BYTES = 1024  # of a hash; its document has about the same size


def _decode(flat: list[bytes]) -> Decoded:
    if len(flat) < MAX_REMEMBERED_PARTS and flat[0] == META and (ours := _META.fullmatch(flat[1])) and ours[2] == b"object":
        names = tuple(flat[2::2])
        if len(flat[1]) + len(b"".join(names)) <= MAX_CACHED_BYTES and (plan := _usual_plan(names, ours[3])):
            places, template = plan
            values = [flat[place] for place in places]
            texts = [value if _is_plain(value) else _json_text(value) for value in values]
            return Decoded(template % tuple(texts), True, ours[1].decode())
    return _decode_any(flat)


@lru_cache(maxsize=2048)
def _usual_plan(names: tuple[bytes, ...], order: bytes | None) -> tuple[list[int], bytes] | None:
    """Return the indexes of the values in a hash of ours, and a template of the document; None if a name is special."""
    if b"ttl" in names or not _is_utf8(list(names)):
        return None
    ordered = _in_order(names, order)
    return [2 * names.index(name) + 3 for name in ordered], _template([_name(name) for name in ordered])


def _in_order(names: Collection[bytes], order: bytes | None) -> list[bytes]:
    """Return names in the order that our own field lists. Those that it does not list are sorted, where its null is or last."""
    if order is None:
        return sorted(names)
    listed = _names(order)
    ordered = [name for name in listed if name is not None and name in names]
    if len(ordered) == len(names):
        return ordered
    at = listed.index(None) if None in listed else len(listed)
    first = sum(name in names for name in listed[:at])
    return ordered[:first] + sorted(set(names).difference(ordered)) + ordered[first:]


def _decode_any(flat: list[bytes]) -> Decoded:
    hash_ = dict(zip(flat[::2], flat[1::2], strict=True))
    tag = order = None
    if (meta := hash_.get(META)) is not None and (ours := _META.fullmatch(meta)):
        del hash_[META]
        tag = ours[1].decode()
        if ours[2] == b"value":
            return Decoded(_checked_text(None, [hash_.get(VALUE, b"null")]), False, tag)
        order = ours[3]
    hash_.pop(b"ttl", None)  # the name is reserved: a value that another client stored there would look like the TTL
    names = _in_order(hash_, order)
    quote = _name
    if tag is None:  # another client's hash: its names are not escaped
        quote = _quote_foreign
    if not _is_utf8(names):
        quote = _quote_bytes if tag is None else _quote_own_bytes
    return Decoded(_checked_text(list(map(quote, names)), [hash_[name] for name in names]), True, tag)


def _encode(text: str) -> Encoded:
    start = skip(text, 0)
    if text[start : start + 1] != "{":
        start, end = find_value(text)
        refuse_server_values(text)
        value = compact(text[start:end])
        if len(value) >= MIN_CHECKED_BYTES:
            _note(_fingerprint(value, [value]))
        return Encoded(SCALAR, [VALUE, value], value, None)
    members, end = split_members(text, start, scanner(text))
    check_end(text, end)
    check_limits(text)
    ttl_s = _ttl_member(members.pop("ttl")) if "ttl" in members else None
    names, quoted = _spelled(members)
    values = compact_all(members.values())
    has_server_values = replace_server_values(text, members, values)
    shape = OBJECT
    if len(names) > 1 and names != sorted(names):
        shape += b" [" + b",".join([name[:-1] for name in quoted]) + b"]"
    whole = _join(quoted, values)
    if len(whole) >= MIN_CHECKED_BYTES and not has_server_values:
        _note(_fingerprint(whole, values))
    return Encoded(shape, list(chain.from_iterable(zip(names, values, strict=True))), whole, ttl_s, has_server_values)


def _spelled(names: Collection[str]) -> tuple[list[bytes], list[bytes]]:
    """Return the names of members as fields, and quoted with the colon. Most are plain: ASCII, no escapes, none of ours."""
    joined = "".join(names)
    if joined.isascii() and joined.isprintable() and not ('"' in joined or "\\" in joined or "$kv" in joined):
        fields = list(map(str.encode, names))
        return fields, [b'"%b":' % field for field in fields]
    fields = [_field(name) for name in names]
    return fields, [_name(field) for field in fields]


# An object with few members, all plain: ASCII, no escapes. Most documents are such objects. One match of the regular expression
# does all the work for them.
MAX_PLAIN_MEMBERS = 32
_PLAIN_MEMBER = (
    rb'"([^"\\\x00-\x1f\x80-\xff]*+)"[ \t\n\r]*+:[ \t\n\r]*+'
    rb'("[^"\\\x00-\x1f\x80-\xff]*+"|-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?|true|false|null)[ \t\n\r]*+'
)
_MORE_MEMBERS = b""
for _ in range(MAX_PLAIN_MEMBERS - 1):
    _MORE_MEMBERS = rb"(?:,[ \t\n\r]*+%b%b)?+" % (_PLAIN_MEMBER, _MORE_MEMBERS)
_GROUPS = [tuple(range(1, last + 1)) for last in range(2 * MAX_PLAIN_MEMBERS + 1)]  # up to the last one that took part
_plain_object = re.compile(rb"[ \t\n\r]*+\{[ \t\n\r]*+%b%b\}[ \t\n\r]*+" % (_PLAIN_MEMBER, _MORE_MEMBERS)).fullmatch


def encode_plain(body: bytes) -> Encoded | None:
    """Do what encode() does, for plain objects only; return None for all others, and for bodies that must be refused."""
    if len(body) > MAX_PLAIN_BYTES or not (found := _plain_object(body)):
        return None
    fields = list(found.group(*_GROUPS[found.lastindex or 0]))
    names = tuple(fields[::2])
    if len(b"".join(names)) > MAX_CACHED_BYTES or not (plan := _plain_plan(names)):
        return None
    shape, template = plan
    return Encoded(shape, fields, template % tuple(fields[1::2]), None)


@lru_cache(maxsize=2048)  # names repeat from document to document
def _plain_plan(names: tuple[bytes, ...]) -> tuple[bytes, bytes] | None:
    """Return shape and template of a document with plain names; None if a name is special."""
    if len(set(names)) < len(names) or b"ttl" in names or b".sv" in names or any(name.startswith(META) for name in names):
        return None
    quoted = [b'"%b"' % name for name in names]
    shape = OBJECT if list(names) == sorted(names) else OBJECT + b" [%b]" % b",".join(quoted)
    return shape, _template([name + b":" for name in quoted])


def _template(quoted: list[bytes]) -> bytes:
    """Return a document with these names (quoted, with colon) into which `%` inserts the values."""
    return b"{%b}" % b",".join([name.replace(b"%", b"%%") + b"%b" for name in quoted])


def _ttl_member(value: str) -> int:
    if re.fullmatch(r"-?[0-9]+", value):
        return int(value)
    raise InvalidTTL("the member ttl is reserved for the TTL; send an integer number of seconds, or use another name")


def _field(name: str) -> bytes:
    field = name.encode()
    return field + b"$" if _OUR_NAME.fullmatch(field) else field


def _names(order: bytes) -> list[bytes | None]:
    """Return the names that our own field lists, as field names; of a name that comes twice the last place counts."""
    return _cached_names(order) if len(order) <= MAX_CACHED_BYTES else _load_names(order)


def _load_names(order: bytes) -> list[bytes | None]:
    try:
        listed = reversed(dict.fromkeys(reversed(json.loads(order))))
        return [None if name is None else _field(name) for name in listed]
    except (ValueError, RecursionError, TypeError, AttributeError):
        return []  # another client has written to our field


_cached_names = lru_cache(maxsize=1024)(_load_names)


def _name(field: bytes) -> bytes:
    """Return a field name as a member name in JSON: quoted, with the colon."""
    return _cached_name(field) if len(field) <= 64 else _quote(field)


def _quote(field: bytes) -> bytes:
    return _quote_foreign(_unescaped(field))


def _unescaped(field: bytes) -> bytes:
    return field[:-1] if field != META and _OUR_NAME.fullmatch(field) else field


def _quote_foreign(field: bytes) -> bytes:
    return encode_basestring(field.decode("utf-8")).encode() + b":"


def _quote_bytes(field: bytes) -> bytes:
    """Do the same in a hash with a name that is not UTF-8: show other bytes as escapes, and double the backslashes."""
    return encode_basestring(field.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")).encode() + b":"


def _quote_own_bytes(field: bytes) -> bytes:
    """Do the same in a hash of ours to which another client has added such a name."""
    return _quote_bytes(_unescaped(field))


def _is_utf8(names: list[bytes]) -> bool:
    joined = b"\n".join(names)
    if joined.isascii():
        return True
    try:
        joined.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_cached_name = lru_cache(maxsize=4096)(_quote)  # names repeat from document to document


def _json_text(value: bytes) -> bytes:
    """Return a field's value as JSON text: unchanged if it is JSON text, otherwise as a JSON string."""
    try:
        text = value.decode("utf-8")
        start, end = uncollected(find_value, text)
        return compact(text[start:end])
    except (StopIteration, ValueError, RecursionError, InvalidDocument):
        return encode_basestring(value.decode("utf-8", "backslashreplace")).encode()
