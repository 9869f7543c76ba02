"""Split one JSON text into documents: its outer levels become containers. No I/O but `read`.

The text is read a part at a time, and a value that becomes a document is the only thing that is held at once; besides, the
names of each container that is being read are remembered, since a name that occurs twice would overwrite a document.
Source: RFC 8259.
"""

import json
from collections.abc import Callable, Iterator
from typing import TypeAlias

from kvstore.core.errors import Problem
from kvstore.core.json_text import MAX_BYTES, skip, split_object
from kvstore.core.paths import as_segment
from kvstore.transfer.lines import Entry, Refuse, document_path

PART = 1024 * 1024  # characters that are read at a time
MAX_VALUE = 64 * 1024 * 1024  # characters of one value: more than any document, and a bound on what is held
NUMBER_AHEAD = 2  # characters after a number that may belong to it, although they are none without what follows: `e+`

Read: TypeAlias = Callable[[int], str]


class NotSplit(Exception):
    """The text cannot be split any further; the message says where, and why."""


def split(read: Read, levels: int, refuse: Refuse) -> Iterator[Entry]:
    """Yield the documents of a JSON text of which `levels` become containers; raises NotSplit.

    The members of an object are named by their names, the items of an array by their member `id`, or else by their index.
    An outer value that is neither an object nor an array becomes a document itself.
    """
    text = _Text(read)
    if text.peek() not in ("{", "["):
        raise NotSplit("the file has no object and no array to split; a line of NDJSON is imported without --split")
    yield from _split(text, levels, "", refuse)
    if text.peek():
        raise text.malformed("unexpected text after the JSON value")


# (text, index) → (value, end). An integer stays a text: how many digits it may have is for the service to say.
_scan = json.JSONDecoder(parse_int=str).scan_once  # type: ignore[attr-defined]


class _Text:
    """A JSON text that is read a part at a time."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._text = ""
        self._at = 0
        self._passed = 0  # characters before `_text`
        self._has_ended = False

    def peek(self) -> str:
        """Return the next character that is not whitespace, "" at the end."""
        while (at := skip(self._text, self._at)) == len(self._text) and not self._has_ended:
            self._at = at
            self._more(PART)
        self._at = at
        return self._text[at : at + 1]

    def take(self, *expected: str) -> str:
        """Go past the next character, which is one of these; raises NotSplit."""
        found = self.peek()
        if found not in expected:
            raise self.malformed(f"expected {' or '.join(expected)}")
        self._at += 1
        return found

    def value(self) -> str:
        """Return the JSON text of the next value, and go past it; raises NotSplit."""
        self.peek()
        while True:
            try:
                end = _scan(self._text, self._at)[1]
                if end + NUMBER_AHEAD < len(self._text) or self._has_ended:
                    found, self._at = self._text[self._at : end], end
                    return found
            except (StopIteration, json.JSONDecodeError):
                if self._has_ended:
                    raise self.malformed("no JSON value starts here, or it does not end") from None
            except RecursionError:
                raise self.malformed("the value is nested too deep") from None
            held = len(self._text) - self._at
            if held > MAX_VALUE:
                raise self.malformed(
                    f"the value that starts here does not end within {MAX_VALUE:,} characters; a document has at most"
                    f" {MAX_BYTES:,}, so split more levels"
                )
            self._more(max(PART, held))  # twice as much each time, since the value is scanned again

    def malformed(self, why: str) -> NotSplit:
        """Return the error of what comes next."""
        return NotSplit(f"the file is not JSON at character {self._passed + self._at + 1:,}: {why}")

    def _more(self, size: int) -> None:
        try:
            read = self._read(size)
        except UnicodeDecodeError as error:
            raise NotSplit(f"the file is not UTF-8: {error.reason} near character {self._passed + len(self._text):,}") from None
        self._passed += self._at
        self._text, self._at = self._text[self._at :] + read, 0
        self._has_ended = not read


def _split(text: _Text, levels: int, path: str, refuse: Refuse) -> Iterator[Entry]:
    opening = text.peek()
    if not levels or opening not in ("{", "["):
        yield from _document(path, text.value(), refuse)
    elif opening == "{":
        yield from _split_object(text, levels, path, refuse)
    else:
        yield from _split_array(text, levels, path, refuse)


def _document(path: str, value: str, refuse: Refuse) -> Iterator[Entry]:
    try:
        yield Entry(path, document_path(path), value, None)
    except Problem as problem:
        refuse(path, problem.detail)


def _split_object(text: _Text, levels: int, path: str, refuse: Refuse) -> Iterator[Entry]:
    names: set[str] = set()
    separator = text.take("{")
    while text.peek() != "}" or separator == ",":
        if text.peek() != '"':
            raise text.malformed("a member must start with its name in double quotes")
        name = json.loads(text.value())
        text.take(":")
        if below := _below(path, name, names, refuse):
            yield from _split(text, levels - 1, below, refuse)
        else:
            text.value()
        if (separator := text.take(",", "}")) == "}":
            return
    text.take("}")


def _split_array(text: _Text, levels: int, path: str, refuse: Refuse) -> Iterator[Entry]:
    names: set[str] = set()
    index, separator = 0, text.take("[")
    while text.peek() != "]" or separator == ",":
        item = text.value()
        if below := _below(path, _id(item) or str(index), names, refuse):
            yield from _split(_Text(_reader(item)), levels - 1, below, refuse)
        index += 1
        if (separator := text.take(",", "]")) == "]":
            return
    text.take("]")


def _reader(text: str) -> Read:
    parts = [text]
    return lambda _: parts.pop() if parts else ""


def _id(item: str) -> str | None:
    """Return the member `id` of an item as text, if it is a string or a number."""
    if not item.startswith("{") or '"id"' not in item:
        return None
    try:
        found = split_object(item.encode("utf-8", "surrogatepass"), 4 * MAX_VALUE).get("id", "null")
    except Problem:  # a name that occurs twice, for example: the service will refuse the document
        return None
    value = json.loads(found)
    if isinstance(value, str):
        return value
    return found if isinstance(value, int | float) and not isinstance(value, bool) else None


def _below(path: str, name: str, names: set[str], refuse: Refuse) -> str | None:
    """Return the path of a member or an item, None where there can be none, which is refused."""
    segment = as_segment(name)
    if segment is None:
        refuse(f"{path}/", f"the name {name[:100]!r} is empty, '.' or '..', or has a control character; rename it")
        return None
    if segment in names:
        refuse(f"{path}/{segment}", "the name occurs twice in its container; only the first one is stored")
        return None
    names.add(segment)
    return f"{path}/{segment}"
