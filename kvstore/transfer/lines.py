"""NDJSON of documents: `{"path":…,"value":…,"ttl":…}` a line, and a JSON text that is split into documents. No I/O.

A value is JSON text from beginning to end, never a Python object, so that it is written as it was read. Source: RFC 8259.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from kvstore.core.errors import InvalidDocument, InvalidPath, InvalidTTL, Problem
from kvstore.core.json_text import MAX_BYTES, split_object
from kvstore.core.numbers import parse_number
from kvstore.core.paths import Path
from kvstore.core.settings import MAX_TTL_S
from kvstore.verbs.requests import as_path

MAX_LINE_BYTES = MAX_BYTES + 16 * 1024  # a document, its path with every byte escaped, and what a listing says of it


class Entry(NamedTuple):
    """A document to store: its path, its JSON text, its TTL (None: the default). `where` it was found is named if it is bad."""

    where: str
    path: Path
    value: str
    ttl_s: int | None


Refuse: TypeAlias = Callable[[str, str], None]  # is told where something bad is, and why


def render_line(path: str, value: str, ttl: str | None) -> bytes:
    """Return the line of a document; `path`, `value` and `ttl` are JSON texts."""
    return (f'{{"path":{path},"value":{value},"ttl":{ttl}}}\n' if ttl else f'{{"path":{path},"value":{value}}}\n').encode()


def parse_line(where: str, line: bytes) -> Entry:
    """Return the document of a line; raises Problem. Other members, such as those of a listing, are not looked at."""
    members = split_object(line, MAX_LINE_BYTES)
    path, value, ttl = (members.get(name) for name in ("path", "value", "ttl"))
    if path is None or value is None:
        raise InvalidDocument('a line must be {"path":…,"value":…,"ttl":…}; the TTL may be left out')
    ttl_s = parse_number(ttl, 1, MAX_TTL_S) if ttl not in (None, "null") else None
    if ttl_s is None and ttl not in (None, "null"):
        raise InvalidTTL('the member "ttl" must be a whole number of seconds, at least 1')
    text = json.loads(path)
    if not isinstance(text, str):
        raise InvalidPath('the member "path" must be a string')
    return Entry(where, document_path(text), value, ttl_s)


def document_path(text: str) -> Path:
    """Return the path of a document; raises Problem."""
    path = as_path(text)
    if path.is_container:
        raise InvalidPath("a path that ends in a slash is a container, and only documents are stored")
    return path


def parse_lines(lines: Iterable[bytes | None], refuse: Refuse) -> Iterator[Entry]:
    """Yield the documents of lines, None being one that is too long; bad lines are refused, and empty ones passed over."""
    for number, line in enumerate(lines, 1):
        where = f"line {number}"
        if line is None:
            refuse(where, f"the line is longer than {MAX_LINE_BYTES:,} bytes, and a document has at most {MAX_BYTES:,}")
        elif line.strip():
            try:
                yield parse_line(where, line)
            except Problem as problem:
                refuse(where, _of_a_line(problem.detail))


def _of_a_line(detail: str) -> str:
    """Return what is wrong, which is said of the body of a request, as it is said of a line."""
    return detail.replace("the body is not JSON: line 1, ", "the line is not JSON: ").replace("the body", "the line")
