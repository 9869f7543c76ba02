"""Raw request target ↔ path ↔ Redis keys. Every Redis key is built here.

A path is split at literal slashes and each segment is percent-decoded once, so `%2F` is a character inside a segment. The
canonical text of a path encodes every segment in exactly one way; keys are made of that text, therefore two paths share a
key only when they are the same path. Source: RFC 3986 sections 2.1, 3.3; CLUSTER hash tags:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
"""

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from kvstore.core.errors import InvalidPath, PathTooLong

MAX_SEGMENTS = 32
MAX_BYTES = 1024  # decoded, slashes counted

# pchar of RFC 3986 without "%": what may stand in a segment as it is.
_LITERAL = "-._~!$&'()*+,;=:@"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class Keys(NamedTuple):
    """The Redis keys that a command names; the others of a namespace are made of `log` inside a script (OWN_KEYS)."""

    log: str  # stream: the namespace's change log
    document: str  # hash: the members, and one field of ours


# What ends the other keys of a namespace, all in the slot of its log. In a script they are written in capitals: scripts.py
# puts the keys in their places, so that what is not used costs nothing.
OWN_KEYS = {
    "names": "sorted set: the paths that exist, by name",
    "expiry": "sorted set: the same paths, by the ms at which they expire, or earlier",
    "scratch": "string: a sum, while a script runs",
    "blocked": "sorted set: the jobs that cannot be taken now, by name",
    "ready_at": "sorted set: the same, by the ms at which they can be taken; and the containers worked as queues, by inf",
    "released": "stream: one entry, made when a job is given back",
}


class Path(NamedTuple):
    """A path in canonical spelling.

    `text` is the whole of it (`/a/b%20c`, a container ends in a slash); `namespace` is its first
    segment, or `/`; `name` is the part below that, as index and change log know it.
    """

    text: str
    namespace: str
    name: str
    is_container: bool
    keys: Keys

    @property
    def container(self) -> "Path":
        """The container of this spelling: itself, or with a slash added."""
        return self if self.is_container or self.text == "/" else parse_path(self.text.encode() + b"/")


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """A raw request target as (path, query); the absolute form loses its scheme and authority (RFC 9112 section 3.2.2)."""
    if not target.startswith(b"/") and (authority := _AUTHORITY.match(target)):
        target = target[authority.end() :] or b"/"
        if not target.startswith(b"/"):
            target = b"/" + target
    path, _, query = target.partition(b"?")
    return path, query


def escape(decoded: bytes) -> bytes:
    """The raw request path of a decoded one, for a server that keeps no other: there %2F cannot be told from a slash."""
    return quote(decoded, safe="/" + _LITERAL).encode()


def parse_path(raw: bytes) -> Path:
    """The path that a raw request path means; raises InvalidPath or PathTooLong."""
    if len(raw) <= MAX_PLAIN_BYTES and _is_plain(raw):
        return _plain(raw)
    return _parse(raw)


# A segment that has one spelling only: nothing to decode, nothing to refuse. And the path of a document of two or more of them.
_LITERALS = "A-Za-z0-9" + re.escape(_LITERAL)
PLAIN_SEGMENT = rf"(?!\.)[{_LITERALS}]++"
_is_plain = re.compile(rf"(?:/{PLAIN_SEGMENT}){{2,{MAX_SEGMENTS}}}".encode()).fullmatch
MAX_PLAIN_BYTES = 256


@lru_cache(maxsize=8192)
def _plain(raw: bytes) -> Path:
    text = raw.decode("ascii")
    namespace, _, name = text[1:].partition("/")
    return Path(text, namespace, name, False, _keys(namespace, name))


def _parse(raw: bytes) -> Path:
    if not raw.startswith(b"/"):
        raise InvalidPath("a path starts with a slash")
    if _BAD_ESCAPE.search(raw):
        raise InvalidPath("a percent sign is followed by two hexadecimal digits; write %25 for a percent sign")
    if len(unquote_to_bytes(raw)) > MAX_BYTES:
        raise PathTooLong(f"a path has at most {MAX_BYTES} bytes when decoded, slashes counted")
    parts = raw[1:].split(b"/")
    is_container = parts[-1] == b""
    if is_container:
        parts.pop()
    if len(parts) > MAX_SEGMENTS:
        raise InvalidPath(f"a path has at most {MAX_SEGMENTS} segments")
    segments = [_encode_segment(part) for part in parts]
    path = "/" + "/".join(segments)
    # A document of one segment, and the root document, live in the root namespace, which no segment can be named like.
    if len(segments) >= 2 or (segments and is_container):
        namespace, name = segments[0], "/".join(segments[1:])
    else:
        namespace, name = "/", "/".join(segments)
    return Path(
        text=path + "/" if is_container and segments else path,
        namespace=namespace,
        name=name,
        is_container=is_container and bool(segments),
        keys=_keys(namespace, name),
    )


def _encode_segment(raw: bytes) -> str:
    try:
        segment = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidPath("a path is UTF-8, percent-encoded") from None
    if segment in ("", ".", ".."):
        raise InvalidPath("a segment of a path is not empty, not '.' and not '..'")
    if _CONTROL.search(segment):
        raise InvalidPath("a path has no control characters")
    return quote(segment, safe=_LITERAL)


def _keys(namespace: str, name: str) -> Keys:
    log, documents = _namespace_keys(namespace)
    return Keys(log, documents + name)


@lru_cache(maxsize=1024)
def _namespace_keys(namespace: str) -> tuple[str, str]:
    # Canonical segments hold no braces, so the hash tag is the namespace and nothing else.
    name = "kv:{" + namespace + "}"
    return name + "!log", name + "/"


def own_key(path: Path, name: str) -> str:
    """A key of the path's namespace: one of OWN_KEYS, or one that is for a single thing in it.

    `idempotency:` and a digest: the response kept for an Idempotency-Key. `holds:` and a document's name in the namespace: a
    sorted set of who holds that document, by the ms until which they do.
    """
    return path.keys.log.removesuffix("log") + name
