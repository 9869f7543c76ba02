"""Access rules: the rows of a table into values. `views.py` says what they permit whom.

    rules = [
      # path                read      append    write
      ["/public/**",        "anyone", "anyone", "anyone"],
      ["/users/{sub}/**",   "user",   "user",   "user"],
      ["/rooms/$room/**",   "in:/members/$room/", "in:/members/$room/", "nobody", {author = "{sub}"}],
    ]

The first row that matches a path decides. Nothing here does I/O. Source: TOML 1.0 (tomllib).
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kvstore.access.patterns import InvalidPattern, Pattern, parse_container, parse_pattern
from kvstore.commands.rights import Right
from kvstore.core.settings import InvalidSetting

MAX_OWN_ROWS = 100  # of one token; they are read again for each process

RIGHTS = tuple(right.name.lower() for right in Right)  # in the order of a row's columns
POST = len(Right)  # beside the rights: to append by POST, which leaves the name to the service


class Grant(NamedTuple):
    """Who has a right: anyone, anyone with a valid token, some roles, those named in some containers."""

    anyone: bool = False
    user: bool = False
    roles: frozenset[str] = frozenset()
    containers: tuple[Pattern, ...] = ()


NOBODY = Grant()


class Row(NamedTuple):
    """A row: a pattern, who has each Right, and the members that a written document must have, each with a claim's name.

    The last grant, at POST, is of those who may append by POST: all who have APPEND, and those that `post:` names.
    """

    pattern: Pattern
    grants: tuple[Grant, Grant, Grant, Grant]
    members: tuple[tuple[str, str], ...] = ()


class OwnRow(NamedTuple):
    """A row of a token's claim `allow`: it gives rights, and takes none."""

    pattern: Pattern
    rights: frozenset[Right]


class _BadRow(ValueError):
    """A row is invalid. The message says why."""


def parse_toml(text: str) -> tuple[Row, ...]:
    """Return the rows of a file, which are its `rules`; raises InvalidSetting."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(f"the file of rules is not TOML: {error}") from None
    if set(tables) != {"rules"} or not isinstance(tables["rules"], list):
        raise InvalidSetting("the file of rules must have one list, rules = [ … ], and nothing else")
    return parse_rows(tables["rules"])


def parse_rows(rows: Sequence[Any]) -> tuple[Row, ...]:
    """Return the rows of a table; raises InvalidSetting, which names the row by its number, counted from 1."""
    parsed: list[Row] = []
    for number, row in enumerate(rows, 1):
        try:
            parsed.append(_row(row))
        except (_BadRow, InvalidPattern) as why:
            raise InvalidSetting(f"row {number} of the rules is invalid: {why}") from None
    return tuple(parsed)


def parse_own_rows(claim: object) -> tuple[OwnRow, ...]:
    """Return the rows of a token's claim `allow`; raises ValueError, which says why it is invalid."""
    if not isinstance(claim, list | tuple) or len(claim) > MAX_OWN_ROWS:
        raise _BadRow(f"it must be a list of at most {MAX_OWN_ROWS} rows")
    return tuple(_own_row(row) for row in claim)


def _row(row: Any) -> Row:
    if isinstance(row, str) or not isinstance(row, Sequence) or len(row) not in (4, 5):
        raise _BadRow("it must have a path, then who may read, append and write, then at most the members of documents")
    path, *cells = row[:4]
    if not all(isinstance(text, str) for text in row[:4]):
        raise _BadRow("the path and the three rights must be strings")
    pattern = parse_pattern(path)
    read, append, write = cells
    posting = _grant("append", " ".join(word.removeprefix("post:") for word in append.split()), pattern)
    creating = " ".join(word for word in append.split() if not word.startswith("post:")) or "nobody"
    grants = (_grant("read", read, pattern), _grant("append", creating, pattern), _grant("write", write, pattern), posting)
    return Row(pattern, grants, _members(row[4]) if len(row) == 5 else ())


def _grant(name: str, cell: str, pattern: Pattern) -> Grant:
    words = cell.split()
    if not words:
        raise _BadRow(f"{name} is empty; write nobody")
    if words == ["nobody"]:
        return NOBODY
    roles, containers = set(), []
    for word in words:
        if word.startswith("role:") and word != "role:":
            roles.add(word.removeprefix("role:"))
        elif word.startswith("in:"):
            containers.append(parse_container(word.removeprefix("in:"), pattern))
        elif word not in ("anyone", "user"):
            raise _BadRow(f"{name} is {cell!r}; it takes anyone, user, role:x, in:/container/, or nobody by itself")
    return Grant("anyone" in words, "user" in words, frozenset(roles), tuple(containers))


_IS_CLAIM = re.compile(r"\{([^{}]+)\}").fullmatch


def _members(members: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(members, Mapping) or not members:
        raise _BadRow('the fifth column must be a table of members and claims, such as {author = "{sub}"}')
    found = []
    for name, claim in members.items():
        if not isinstance(name, str) or name in ("ttl", ".sv") or name.startswith("$kv"):
            raise _BadRow(f"no document has a member {name!r}")
        named = _IS_CLAIM(claim) if isinstance(claim, str) else None
        if not named:
            raise _BadRow(f'the member {name!r} must have a claim, such as "{{sub}}"')
        found.append((name, named[1]))
    return tuple(found)


def _own_row(row: Any) -> OwnRow:
    if not isinstance(row, list | tuple) or len(row) < 2 or not all(isinstance(text, str) for text in row):
        raise _BadRow("each row must be a path, then the rights read, append or write")
    path, *cells = row
    words = [word for cell in cells for word in cell.split()]
    if not words or not set(words) <= set(RIGHTS):
        raise _BadRow(f"{words!r} must be some of read, append and write")
    return OwnRow(parse_pattern(path), frozenset(Right(RIGHTS.index(word)) for word in words))
