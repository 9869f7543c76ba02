"""Entity-tags and preconditions (RFC 9110 sections 8.8 and 13).

Preconditions of a write are only parsed here: the script that writes evaluates them. Preconditions of a read are evaluated
here, on the reply of one script.
"""

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import NamedTuple

from kvstore.core.errors import InvalidPrecondition

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_SEPARATOR = re.compile(r"[ \t]*,[ \t,]*")


class Preconditions(NamedTuple):
    """The preconditions of one request.

    `match` and `none_match` are "" if the request has none, "*", or the tags with a space before and after each. Tags that can
    never match by RFC 9110 section 8.8.3.2 are left out. Dates are in seconds since the epoch, or None.
    """

    match: str = ""
    none_match: str = ""
    unmodified_since_s: int | None = None
    modified_since_s: int | None = None


NONE = Preconditions()


def parse_preconditions(headers: Mapping[str, str]) -> Preconditions:
    """Parse the preconditions in `headers`, which are by lower-case name; raises InvalidPrecondition."""
    match = headers.get("if-match")
    none_match = headers.get("if-none-match")
    unmodified = headers.get("if-unmodified-since")
    modified = headers.get("if-modified-since")
    if match is None and none_match is None and unmodified is None and modified is None:
        return NONE
    return Preconditions(
        match="" if match is None else _tags("If-Match", match),
        none_match="" if none_match is None else _tags("If-None-Match", none_match),
        # RFC 9110 sections 13.1.3 and 13.1.4: a date is ignored if a tag is given.
        unmodified_since_s=_date(unmodified) if match is None else None,
        modified_since_s=_date(modified) if none_match is None else None,
    )


def check_unconditional(headers: Mapping[str, str], detail: str) -> None:
    """Check that a request has no precondition; raises InvalidPrecondition with `detail`."""
    # RFC 9110 section 13.1.3: a write ignores If-Modified-Since, which some clients send with every request.
    if parse_preconditions(headers)._replace(modified_since_s=None) != NONE:
        raise InvalidPrecondition(detail)


def _tags(name: str, value: str) -> str:
    value = value.strip(" \t,")
    if value == "*":
        return "*"
    tags, at = [], 0
    while at < len(value):
        found = _TAG.match(value, at)
        separator = found and _SEPARATOR.match(value, found.end())
        if not found or not (separator or found.end() == len(value)):
            raise InvalidPrecondition(f'{name} must be * or a list of entity-tags in double quotes, such as "1700000000000-0"')
        # If-Match uses strong comparison: a weak tag never matches (RFC 9110 section 13.1.1).
        if name == "If-None-Match" or not found[1]:
            tags.append(found[2])
        at = separator.end() if separator else len(value)
    if not at:
        raise InvalidPrecondition(f"{name} is empty; send * or a list of entity-tags in double quotes")
    return f" {' '.join(tags)} "


def _date(value: str | None) -> int | None:
    # RFC 9110 section 13.1.3: a value that is not an HTTP-date is ignored.
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value)
        return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError, TypeError):
        return None


def tag_time_ms(tag: str) -> int:
    """Return the time of the change that made `tag`, in ms since the epoch: the first part of a stream's id."""
    return int(tag.partition("-")[0])


def read_status(preconditions: Preconditions, tag: str | None) -> int:
    """Return the status of a GET or HEAD of a document with this tag (None: no tag): 200, 304 or 412.

    Source: RFC 9110 section 13.2.2.
    """
    if preconditions is NONE:
        return 200
    time_s = None if tag is None else tag_time_ms(tag) // 1000
    if preconditions.match:
        if not matches(preconditions.match, tag):
            return 412
    elif preconditions.unmodified_since_s is not None and time_s is not None and time_s > preconditions.unmodified_since_s:
        return 412
    if preconditions.none_match:
        if matches(preconditions.none_match, tag):
            return 304
    elif preconditions.modified_since_s is not None and time_s is not None and time_s <= preconditions.modified_since_s:
        return 304
    return 200


def matches(tags: str, tag: str | None) -> bool:
    """Return whether a tag is among those of a field, as Preconditions has them."""
    return tags == "*" or (tag is not None and f" {tag} " in tags)
