"""Requests that open a stream: a GET of one path, and `GET /_/follow?path=/a/&path=/b` for several.

An id on a stream of several paths resumes all of them: it has the position of each, by a digest of its target. A position is a
time and a count, so an entry has 12 bytes as a rule and 15 at most, and an id stays below 2 KiB.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b

from kvstore.commands.subscriptions import Follow, FollowMany
from kvstore.core.errors import InvalidParameter, Problem
from kvstore.core.paths import Path, parse_path
from kvstore.core.query import Question
from kvstore.core.settings import Settings
from kvstore.http.messages import Query, Request, parameter, parse_query
from kvstore.http.presence import parse_holds
from kvstore.http.queries import parse_question

NOT_FOLLOWED = ("sort", "count", "limit", "after", "order", "keys")  # of a question: what makes a page of it
MAX_PATHS = 100
MAX_HOLDS = 10
MAX_ID_BYTES = 2048
DIGEST_BYTES = 5  # two of 100 targets share one in one of 200 million streams; then both are reset
MAX_ENTRY_BYTES = 15  # 100 of them are 2,001 characters
NOTHING_YET = 999_999_999  # the count in the position of an empty log (log_position.lua): as frequent as 0, and as short here

_is_position = re.compile(r"[0-9]{1,15}-[0-9]{1,15}").fullmatch
_is_id = re.compile(r"~[A-Za-z0-9_-]*").fullmatch


def parse_follow(request: Request, path: Path, query: Query, settings: Settings) -> Follow:
    """Return the command of a GET of a path that asks for a stream; raises Problem."""
    follow = _follow(path, query)
    position = _last_id(request, query)
    if position and not _is_position(position):
        raise InvalidParameter("Last-Event-ID must be the id of an event, unchanged; leave it out to start with a snapshot")
    return follow._replace(position=position, holds=parse_holds(request, query, settings, most=1))


def parse_follow_many(request: Request, query: Query, settings: Settings) -> FollowMany:
    """Return the command of a GET of /_/follow; raises Problem, whose member `path` is the one that is refused."""
    targets = query.get("path", [])
    if not 1 <= len(targets) <= MAX_PATHS:
        raise InvalidParameter(f"a stream has 1 to {MAX_PATHS} paths, each as a parameter ?path=; open several for more")
    text = _last_id(request, query)
    positions = {} if text is None else parse_id(text)
    follows = {}
    for target in dict.fromkeys(targets):
        follows[target] = _followed(target)._replace(position=positions.get(digest(target)))
    return FollowMany(follows, parse_holds(request, query, settings, most=MAX_HOLDS))


def _last_id(request: Request, query: Query) -> str | None:
    """Return the id after which the client wants changes; None for a snapshot first."""
    return request.headers.get("last-event-id") or parameter(query, "last_event_id") or None


def _follow(path: Path, query: Query) -> Follow:
    if path.text == "/" and parameter(query, "list") is not None:
        raise InvalidParameter("the root container cannot be followed; follow a namespace or a document")
    recursive = path.text != "/" and parameter(query, "recursive") is not None
    return Follow(path, None, recursive, _question(query) if path.is_container else None)


def _question(query: Query) -> Question | None:
    """Return which documents a stream is told of, None for all of them."""
    question = parse_question(query)
    for name in NOT_FOLLOWED if question else ():
        if name in query:
            raise InvalidParameter(
                f"a stream takes no ?{name}=: it has every document that matches, and sends changes as they come; "
                "send only conditions, search, fields and recursive, or leave out Accept: text/event-stream"
            )
    return question


def _followed(target: str) -> Follow:
    """Return the command for one path of several, which may have a query of its own."""
    raw_path, _, raw_query = target.encode("utf-8", "surrogateescape").partition(b"?")
    try:
        path = parse_path(raw_path)
        if path.text == "/_" or path.text.startswith("/_/"):
            raise InvalidParameter("paths below /_/ belong to the service and cannot be followed; leave it out")
        return _follow(path, parse_query(raw_query))
    except Problem as problem:
        problem.members["path"] = raw_path.decode("utf-8", "replace")
        raise


# The ids of a stream of several paths


@lru_cache(maxsize=4096)
def digest(target: str) -> bytes:
    """Return what an id knows a path by."""
    return blake2b(target.encode("utf-8", "surrogateescape"), digest_size=DIGEST_BYTES).digest()


def render_id(entries: Iterable[bytes]) -> bytes:
    """Return the id that resumes the paths of these entries."""
    return b"~" + urlsafe_b64encode(b"".join(entries)).rstrip(b"=")


def render_entry(target: str, position: str) -> bytes:
    """Return the entry of a path in an id. A position that is too long for it is left out: the path is reset."""
    ms, _, count = position.partition("-")
    number = int(count)
    code = 1 if number == NOTHING_YET else number + 1 if 0 < number < NOTHING_YET else number
    entry = digest(target) + _varint(int(ms)) + _varint(code)
    return entry if len(entry) <= MAX_ENTRY_BYTES else digest(target) + _varint(0)


def parse_id(text: str) -> dict[bytes, str]:
    """Return the position of each path in an id by its digest, "" for one that is lost; raises InvalidParameter."""
    positions: dict[bytes, str] = {}
    try:
        if len(text) > MAX_ID_BYTES or not _is_id(text):
            raise ValueError(text)
        rest = urlsafe_b64decode(text[1:] + "=" * (-(len(text) - 1) % 4))
        while rest:
            key, (ms, rest) = rest[:DIGEST_BYTES], _read_varint(rest[DIGEST_BYTES:])
            code, rest = _read_varint(rest) if ms else (0, rest)
            number = NOTHING_YET if code == 1 else code - 1 if 1 < code <= NOTHING_YET else code
            position = f"{ms}-{number}" if ms else ""
            if ms and not _is_position(position):
                raise ValueError(position)
            positions[key] = "" if key in positions else position
    except (ValueError, IndexError):
        raise InvalidParameter(
            "Last-Event-ID must be the id of an event of /_/follow, unchanged; leave it out to start with snapshots"
        ) from None
    return positions


def _varint(number: int) -> bytes:
    """Return a number in as many bytes as it needs, 7 bits in each, the lowest first (LEB128)."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def _read_varint(raw: bytes) -> tuple[int, bytes]:
    """Return the number at the beginning of some bytes, and the bytes after it; raises IndexError or ValueError."""
    number = 0
    for at in range(8):  # 56 bits: a position has 15 digits
        number |= (raw[at] & 0x7F) << 7 * at
        if raw[at] < 0x80:
            return number, raw[at + 1 :]
    raise ValueError(raw)
