"""The part of a request target below a mount, for the WSGI and ASGI adapters. Functions of values.

An application can mount the service below a path, and a proxy in front may have removed a part of that path.
Sources: PEP 3333 (SCRIPT_NAME), the ASGI specification (root_path).
"""

from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from kvstore.core.errors import InvalidPath
from kvstore.core.paths import split_target


class Mounted(NamedTuple):
    """`target` is the raw request target below the mount. `base` is the mount as the client writes it, `""` for none."""

    target: bytes
    base: str


def below_mount(target: bytes, root: bytes, prefix: bytes = b"") -> Mounted:
    """Split a raw request target at the mount `root + prefix`, both percent-decoded; raises InvalidPath.

    `root` may be missing from the target: a proxy may have removed it. `prefix` must be there, since a router matched it.
    Both are compared segment by segment: an encoded slash is data, not a separator.
    """
    path, query = split_target(target)
    if not path.startswith(b"/"):  # `*`, and targets that parse_path() refuses
        return Mounted(_with_query(path, query), quote(root))
    segments = path.split(b"/")[1:]
    inner = prefix.split(b"/")[1:]
    full = root.rstrip(b"/").split(b"/")[1:] + inner
    if b"" in full:
        raise InvalidPath("a path must not have an empty segment")
    if _starts_with(segments, full):
        mount, base = full, ""
    elif _starts_with(segments, inner):
        mount, base = inner, quote(root.rstrip(b"/"))
    else:
        raise InvalidPath("the path must begin with the path at which the service is mounted, its slashes not escaped")
    base += "".join("/" + segment.decode("latin-1") for segment in segments[: len(mount)])
    return Mounted(_with_query(b"/" + b"/".join(segments[len(mount) :]), query), base)


def _starts_with(segments: list[bytes], mount: list[bytes]) -> bool:
    """Whether a path goes on below a mount, with at least a slash."""
    return len(segments) > len(mount) and [unquote_to_bytes(segment) for segment in segments[: len(mount)]] == mount


def _with_query(path: bytes, query: bytes) -> bytes:
    return path + b"?" + query if query else path
