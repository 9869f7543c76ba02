"""A second reading of the access rules: as slow and as plain as the documentation, for one document at a time.

It takes rows as they are written, claims, and the paths of the documents that exist. Nothing of `kvstore.access` is used.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

Row = Sequence[Any]
COLUMNS = {"read": 1, "append": 2, "write": 3}


def values_of(claims: Mapping[str, Any], name: str) -> list[str]:
    """What a claim allows a segment to be."""
    claim = claims.get(name, [])
    return [str(value) for value in (claim if isinstance(claim, list) else [claim])]


def matches(pattern: list[str], path: list[str], claims: Mapping[str, Any]) -> dict[str, str] | None:
    """What the $names and {claims} of a pattern stand for in a path; None where it does not match."""
    if not pattern:
        return None if path else {}
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        for skipped in range(len(path) + 1):
            if (found := matches(rest, path[skipped:], claims)) is not None:
                return found
        return None
    if not path:
        return None
    if first.startswith("{") and path[0] not in values_of(claims, first[1:-1]):
        return None
    if first[0] not in "*{$" and first != path[0]:
        return None
    found = matches(rest, path[1:], claims)
    return None if found is None else found | ({first: path[0]} if first[0] in "{$" else {})


def split(path: str) -> list[str]:
    """The segments of a path, without those that are empty."""
    return [segment for segment in path.split("/") if segment]


def first_row(rows: Sequence[Row], path: list[str], claims: Mapping[str, Any]) -> tuple[Row, dict[str, str]] | None:
    """The row that decides on a path, and what its names stand for."""
    for row in rows:
        if (bound := matches(split(row[0]), path, claims)) is not None:
            return row, bound
    return None


def containers(text: str, bound: Mapping[str, str], claims: Mapping[str, Any]) -> Iterator[str]:
    """The containers that an `in:` names."""
    choices = []
    for part in split(text):
        if part in bound:
            choices.append([bound[part]])
        elif part.startswith("{"):
            choices.append(values_of(claims, part[1:-1]))
        else:
            choices.append([part])
    for segments in product(*choices):
        yield "/" + "".join(segment + "/" for segment in segments)


def has_right(
    rows: Sequence[Row], claims: Mapping[str, Any] | None, stored: set[str], path: list[str], right: str
) -> tuple[bool, Mapping[str, str]]:
    """Whether a right on a document is given, and the members that it must have, each with its claim."""
    known = claims or {}
    if "admin" in known.get("roles", []):
        return True, {}
    for own, *rights in known.get("allow", []):
        if right in rights and matches(split(own), path, known) is not None:
            return True, {}
    decides = first_row(rows, path, known)
    if decides is None:
        return False, {}
    row, bound = decides
    for word in row[COLUMNS[right]].split():
        if (
            word == "anyone"
            or (word == "user" and claims is not None)
            or (word.startswith("role:") and word[5:] in known.get("roles", []))
            or (
                word.startswith("in:")
                and "sub" in known
                and any(container + known["sub"] in stored for container in containers(word[3:], bound, known))
            )
        ):
            return True, row[4] if len(row) > 4 and right != "read" else {}
    return False, {}
