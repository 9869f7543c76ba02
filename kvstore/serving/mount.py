"""What lies below a mount: the raw target of a request as the service sees it, and the base that links back to the client need.

An application of somebody's may mount the service below a path, and a proxy may have taken a part of that path off already.
Functions of values. Sources: PEP 3333 (SCRIPT_NAME), the ASGI specification (root_path).
"""

from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from kvstore.core.errors import InvalidPath
from kvstore.core.paths import split_target


class Mounted(NamedTuple):
    """`target` is the raw request target below the mount; `base` is the mount as the client spells it, `""` for none."""

    target: bytes
    base: str


def below_mount(target: bytes, root: bytes, prefix: bytes = b"") -> Mounted:
    """A raw request target below the mount `root + prefix`, both percent-decoded; raises InvalidPath.

    A proxy may have taken `root` off the target. `prefix` is what a router matched, so it must be there. Both are compared
    segment by segment: an encoded slash is data and separates nothing.
    """
    path, query = split_target(target)
    if not path.startswith(b"/"):  # `*`, and what the parser of paths refuses
        return Mounted(_with_query(path, query), quote(root))
    segments = path.split(b"/")[1:]
    inner = prefix.split(b"/")[1:]
    full = root.rstrip(b"/").split(b"/")[1:] + inner
    if b"" in full:
        raise InvalidPath("a segment of a path is not empty")
    if _starts_with(segments, full):
        mount, base = full, ""
    elif _starts_with(segments, inner):
        mount, base = inner, quote(root.rstrip(b"/"))
    else:
        raise InvalidPath("the path does not begin with the path at which the service is mounted; do not escape its slashes")
    base += "".join("/" + segment.decode("latin-1") for segment in segments[: len(mount)])
    return Mounted(_with_query(b"/" + b"/".join(segments[len(mount) :]), query), base)


def _starts_with(segments: list[bytes], mount: list[bytes]) -> bool:
    """Whether a path continues below a mount, that is with at least a slash behind it."""
    return len(segments) > len(mount) and [unquote_to_bytes(segment) for segment in segments[: len(mount)]] == mount


def _with_query(path: bytes, query: bytes) -> bytes:
    return path + b"?" + query if query else path
