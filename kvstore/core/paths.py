"""Raw request target ↔ path ↔ Redis keys. Every Redis key is built here.

A path is split at literal slashes. Then each segment is percent-decoded once, so `%2F` is a character inside a segment. The
canonical text of a path encodes each segment in exactly one way. Keys are built from that text, so two paths share a key only
if they are the same path. Source: RFC 3986 sections 2.1, 3.3; CLUSTER hash tags:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
"""

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from kvstore.core.errors import InvalidPath, PathTooLong

MAX_SEGMENTS = 32
MAX_BYTES = 1024  # of a path, decoded, including slashes

# pchar of RFC 3986 without "%": characters that a segment may contain without percent-encoding.
_LITERAL = "-._~!$&'()*+,;=:@"
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class Keys(NamedTuple):
    """The Redis keys that a command names. A script derives the other keys of the namespace from `log` (OWN_KEYS)."""

    log: str  # stream: the namespace's change log
    document: str  # hash: the members, and one field of ours


# The endings of the other keys of a namespace, all in the slot of its log. Scripts write them in capitals, and
# commands/scripts.py replaces them by expressions, so a key that a script does not use costs nothing.
OWN_KEYS = {
    "names": "sorted set: the paths that exist, by name",
    "expiry": "sorted set: the same paths, by the ms at which they expire, or an earlier time",
    "latest": "hash: the id of the last change of each document that expires within 30 days, by name",
    "erased": "sorted set: erased changes, each with the id of the entry that came after it",
    "unread": "stream: changes that were erased less than 2 s ago, for those who follow at that time",
    "scratch": "string: a sum, while a script runs",
    "blocked": "sorted set: the jobs that cannot be taken now, by name",
    "ready_at": "sorted set: the same jobs, by the ms at which they can be taken; and the containers used as queues, by inf",
    "released": "stream: one entry, made when a job is given back",
}


class Path(NamedTuple):
    """A path in canonical spelling.

    `text` is the whole path (`/a/b%20c`; a container ends in a slash). `namespace` is its first segment, or `/`. `name` is the
    rest: the document's name in the indexes and in the change log of the namespace.
    """

    text: str
    namespace: str
    name: str
    is_container: bool
    keys: Keys

    @property
    def container(self) -> "Path":
        """The container at this path: the path itself, or with a slash added."""
        return self if self.is_container or self.text == "/" else parse_path(self.text.encode() + b"/")


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Split a raw request target into (path, query), without the scheme and authority of the absolute form.

    Source: RFC 9112 section 3.2.2.
    """
    if not target.startswith(b"/") and (authority := _AUTHORITY.match(target)):
        target = target[authority.end() :] or b"/"
        if not target.startswith(b"/"):
            target = b"/" + target
    path, _, query = target.partition(b"?")
    return path, query


def own_path(target: bytes) -> str | None:
    """Return the path of a raw request target if it is one of the service's own, `/_/…`; None for others, and bad ones."""
    if not target.startswith(MAY_BE_OWN):  # most targets
        return None
    try:
        path = parse_path(split_target(target)[0]).text
    except (InvalidPath, PathTooLong):
        return None
    return path if path.startswith("/_/") else None


MAY_BE_OWN = (b"/_", b"/%", b"h", b"H")  # the escape of `_`, and the absolute form, are spellings too


def escape(decoded: bytes) -> bytes:
    """Percent-encode a decoded request path, for a server that does not keep the raw one. There %2F has become a slash."""
    return quote(decoded, safe="/" + _LITERAL).encode()


def parse_path(raw: bytes) -> Path:
    """Parse a raw request path; raises InvalidPath or PathTooLong."""
    return _parse_short(raw) if len(raw) <= MAX_SHORT_BYTES else _parse(raw)


MAX_SHORT_BYTES = 256


@lru_cache(maxsize=8192)
def _parse_short(raw: bytes) -> Path:
    return _plain(raw) if _is_plain(raw) else _parse(raw)


# A segment that is canonical as it stands: nothing to decode and nothing to refuse. `_is_plain` matches two or more of them.
_LITERALS = "A-Za-z0-9" + re.escape(_LITERAL)
PLAIN_SEGMENT = rf"(?!\.)[{_LITERALS}]++"
_is_plain = re.compile(rf"(?:/{PLAIN_SEGMENT}){{2,{MAX_SEGMENTS}}}".encode()).fullmatch


@lru_cache(maxsize=8192)
def plain_path(target: bytes) -> Path | None:
    """Return the path of a raw request target that is canonical as it stands, has two or more segments, and no query.

    None for any other target, and for what may be one of the service's own.
    """
    is_plain = len(target) <= MAX_SHORT_BYTES and _is_plain(target) and not target.startswith(MAY_BE_OWN)
    return _plain(target) if is_plain else None


def _plain(raw: bytes) -> Path:
    text = raw.decode("ascii")
    namespace, _, name = text[1:].partition("/")
    return Path(text, namespace, name, False, _keys(namespace, name))


def _parse(raw: bytes) -> Path:
    if not raw.startswith(b"/"):
        raise InvalidPath("the path must start with a slash")
    if _BAD_ESCAPE.search(raw):
        raise InvalidPath("the path has a percent sign without two hexadecimal digits after it; write %25 for a percent sign")
    if len(unquote_to_bytes(raw)) > MAX_BYTES:
        raise PathTooLong(f"the path is longer than {MAX_BYTES:,} bytes, decoded and including slashes; use shorter names")
    parts = raw[1:].split(b"/")
    is_container = parts[-1] == b""
    if is_container:
        parts.pop()
    if len(parts) > MAX_SEGMENTS:
        raise InvalidPath(f"the path has more than {MAX_SEGMENTS} segments; use fewer levels")
    segments = [_encode_segment(part) for part in parts]
    path = "/" + "/".join(segments)
    # Documents of one segment and the root document are in the root namespace. No segment can be named `/`.
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
        raise InvalidPath("a segment of the path is not UTF-8; percent-encode the bytes of the UTF-8 text") from None
    if segment in ("", ".", ".."):
        raise InvalidPath("a segment of the path is empty, '.' or '..'; give it another name")
    if _CONTROL.search(segment):
        raise InvalidPath("a segment of the path has a control character; remove it")
    return quote(segment, safe=_LITERAL)


def as_segment(text: str) -> str | None:
    """Return a text as one segment in canonical spelling, None if it cannot be one."""
    try:
        return _encode_segment(quote(text, safe="").encode())
    except (InvalidPath, UnicodeEncodeError):
        return None


def segments_of(path: Path) -> list[str]:
    """Return the segments of a path, in canonical spelling."""
    text = path.text.removesuffix("/")
    return text.split("/")[1:]


def _keys(namespace: str, name: str) -> Keys:
    log, documents = _namespace_keys(namespace)
    return Keys(log, documents + name)


@lru_cache(maxsize=1024)
def _namespace_keys(namespace: str) -> tuple[str, str]:
    # Canonical segments contain no braces, so the hash tag is exactly the namespace.
    name = "kv:{" + namespace + "}"
    return name + "!log", name + "/"


def own_key(path: Path, name: str) -> str:
    """Return a key of the path's namespace: with an ending of OWN_KEYS, or for one thing in the namespace.

    `idempotency:` and a digest is the hash with the reply that is kept for an Idempotency-Key. `holds:` and a document's name
    is the sorted set of the holders of that document, by the ms until which they hold it. `takers:` and a container's name is
    the sorted set of those who wait for a job there, by the ms until which they wait.
    """
    return path.keys.log.removesuffix("log") + name


@lru_cache(maxsize=1024)
def absent_key(key: str) -> str:
    """Return a key in the slot of another one, which never exists (stores/slots.py)."""
    return key[: key.index("}") + 1] + "!absent"


def client_key(purpose: str, client: str) -> str:
    """Return the key of what is counted for a client. No namespace is named like this: the segment `_` is ours."""
    return "kv:{_/" + hashlib.sha256(client.encode("utf-8", "surrogatepass")).hexdigest()[:32] + "}!" + purpose
