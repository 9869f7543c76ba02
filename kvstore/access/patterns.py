"""Path patterns of access rules: text into elements, and the values that the claims of a token give them.

    /rooms/*/log      * is one segment
    /public/**        ** is any number of segments, also none
    /users/{sub}/**   {claim} is a segment equal to that claim of the token, or to an item of it if it is a list
    /rooms/$room/**   $name is one segment; the rights of the row can name it

A literal segment is percent-decoded like a path, and compared in canonical spelling. Nothing here does I/O.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from kvstore.core.errors import Problem
from kvstore.core.paths import MAX_SEGMENTS, as_segment, parse_path


class Kind(Enum):
    """What an element of a pattern matches."""

    LITERAL = "a segment"
    ANY = "*"
    MANY = "**"
    CLAIM = "{claim}"
    NAME = "$name"


class Element(NamedTuple):
    """A part of a pattern: a segment in canonical spelling, the name of a claim, or a `$name`; "" for `*` and `**`."""

    kind: Kind
    text: str = ""


Pattern = tuple[Element, ...]

_CLAIM = re.compile(r"\{([^{}/*$]+)\}")
_NAME = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")


class InvalidPattern(ValueError):
    """A pattern is invalid. The message says why."""


def parse_pattern(text: str) -> Pattern:
    """Return the elements of a pattern; raises InvalidPattern."""
    if not text.startswith("/"):
        raise InvalidPattern(f"the path {text!r} must start with a slash")
    if text != "/" and text.endswith("/"):
        raise InvalidPattern(f"the path {text!r} must not end in a slash; write {text}** for all that is below it")
    elements: list[Element] = []
    for part in [] if text == "/" else text[1:].split("/"):
        element = _element(part)
        if element.kind is not Kind.MANY or elements[-1:] != [element]:  # `**/**` is `**`
            elements.append(element)
    if sum(element.kind is not Kind.MANY for element in elements) > MAX_SEGMENTS:
        raise InvalidPattern(f"the path {text!r} has more than {MAX_SEGMENTS} segments, so it matches nothing")
    if elements[:1] == [Element(Kind.LITERAL, "_")]:
        raise InvalidPattern("paths below /_/ belong to the service; no rule is about them")
    _check_captures(text, elements)
    return tuple(elements)


def _element(part: str) -> Element:
    if part == "*":
        return Element(Kind.ANY)
    if part == "**":
        return Element(Kind.MANY)
    if claim := _CLAIM.fullmatch(part):
        return Element(Kind.CLAIM, claim[1])
    if name := _NAME.fullmatch(part):
        return Element(Kind.NAME, name[1])
    if re.search(r"[*{}]|^\$", part):
        raise InvalidPattern(
            f"the segment {part!r} is neither *, **, {{claim}} nor $name; write %2A, %7B, %7D or %24 for the character itself"
        )
    try:
        # As a path of two segments, which refuses all that a path may not have.
        return Element(Kind.LITERAL, parse_path(b"/%b/-" % part.encode()).namespace)
    except (Problem, UnicodeEncodeError) as error:
        raise InvalidPattern(f"the segment {part!r} can be part of no path: {error}") from None


def _check_captures(text: str, elements: list[Element]) -> None:
    """Check that each segment that a right can name is one segment: not twice there, and not between two `**`."""
    captured = [element for element in elements if element.kind is Kind.NAME]
    if len(set(captured)) < len(captured):
        raise InvalidPattern(f"the path {text!r} has a $name twice; give each its own")
    many = [index for index, element in enumerate(elements) if element.kind is Kind.MANY]
    if many and any(element.kind is Kind.NAME for element in elements[many[0] : many[-1]]):
        raise InvalidPattern(f"the path {text!r} has a $name between two **, so it could be several segments")


def parse_container(text: str, pattern: Pattern) -> Pattern:
    """Return the elements of the container in a right `in:/container/`; `pattern` is the row's. Raises InvalidPattern."""
    if not text.startswith("/") or not text.endswith("/"):
        raise InvalidPattern(f"in:{text} must name a container: a path that starts and ends with a slash")
    elements = tuple(_element(part) for part in text[1:-1].split("/")) if text != "/" else ()
    if any(element.kind in (Kind.ANY, Kind.MANY) for element in elements):
        raise InvalidPattern(f"in:{text} must name one container, without * and **")
    if elements[:1] == (Element(Kind.LITERAL, "_"),):
        raise InvalidPattern("paths below /_/ belong to the service; no document is there")
    for element in elements:
        if element.kind is Kind.NAME and element not in pattern:
            raise InvalidPattern(f"in:{text} names ${element.text}, which the path of the row does not have")
    many = [index for index, element in enumerate(pattern) if element.kind is Kind.MANY]
    for element in elements:
        if element.kind is Kind.CLAIM and many and element in pattern[many[0] : many[-1]]:
            raise InvalidPattern(f"in:{text} names {{{element.text}}}, which stands between two ** in the path of the row")
    return elements


def claim_values(claims: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """Return what a claim allows: its items if it is a list, otherwise the claim itself; nothing if it is not there."""
    claim = claims.get(name)
    values = claim if isinstance(claim, list | tuple) else (claim,)
    return tuple(value for value in values if isinstance(value, str | int))


def claim_segments(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return the segments that a claim allows, in canonical spelling: strings, and integers as they are written."""
    values = [value for value in claim_values(claims, name) if not isinstance(value, bool)]
    segments = (as_segment(str(value)) for value in values)
    return frozenset(segment for segment in segments if segment is not None)
