"""What lies below a mount, as a table: for WSGI with a prefix that a router has matched, for ASGI without one."""

import pytest

from kvstore.core.errors import InvalidPath
from kvstore.serving.mount import below_mount

# The raw target, the root (SCRIPT_NAME or root_path) and the prefix, both decoded; the target below them, and the base.
MOUNTS = [
    ("/a/b?ttl=5", "", "", "/a/b?ttl=5", ""),
    ("/a?", "", "", "/a", ""),
    ("/", "", "", "/", ""),
    ("*", "", "", "*", ""),
    ("ns/a", "", "", "ns/a", ""),
    ("http://x.example/ns/a?b=c", "", "", "/ns/a?b=c", ""),
    ("http://x.example?b", "", "", "/?b", ""),
    ("//a", "", "", "//a", ""),
    # a root that is still there
    ("/kv/a%2Fb?x", "/kv", "", "/a%2Fb?x", "/kv"),
    ("/kv/", "/kv", "", "/", "/kv"),
    ("/kv/kv/a", "/kv/", "", "/kv/a", "/kv"),
    ("/%6Bv/a", "/kv", "", "/a", "/%6Bv"),
    ("/a/b/c", "/a/b", "", "/c", "/a/b"),
    ("http://x.example/kv/a", "/kv", "", "/a", "/kv"),
    # a root that was taken off
    ("/ns/a", "/kv", "", "/ns/a", "/kv"),
    ("/kv", "/kv", "", "/kv", "/kv"),
    ("/kvs/a", "/kv", "", "/kvs/a", "/kv"),
    ("/kv%2Fa", "/kv", "", "/kv%2Fa", "/kv"),
    ("/ns/a", "/k v/é", "", "/ns/a", "/k%20v/%C3%A9"),
    # a prefix, alone and below a root
    ("/kv/a//b", "", "/kv", "/a//b", "/kv"),
    ("/deep/er/a", "", "/deep/er", "/a", "/deep/er"),
    ("/app/kv/a", "/app", "/kv", "/a", "/app/kv"),
    ("/kv/a", "/app", "/kv", "/a", "/app/kv"),
    ("/%61pp/kv/a", "/app", "/kv", "/a", "/%61pp/kv"),
]


@pytest.mark.parametrize(("target", "root", "prefix", "below", "base"), MOUNTS)
def test_below_a_mount(target: str, root: str, prefix: str, below: str, base: str) -> None:
    """The target as the service sees it, and what links put before a path so that they lead back."""
    assert below_mount(target.encode(), root.encode(), prefix.encode()) == (below.encode(), base)


REFUSED = [
    ("/kv%2Fa", "", "/kv"),
    ("//kv/a", "", "/kv"),
    ("/kv", "", "/kv"),
    ("/other/a", "", "/kv"),
    ("/app/other/a", "/app", "/kv"),
    ("/deep%2Fer/a", "", "/deep/er"),
    ("/a//b/c", "/a//b", ""),
]


@pytest.mark.parametrize(("target", "root", "prefix"), REFUSED)
def test_what_is_not_below_a_mount(target: str, root: str, prefix: str) -> None:
    """A prefix is there as it is mounted, its slashes not escaped; no mount has an empty segment."""
    with pytest.raises(InvalidPath):
        below_mount(target.encode(), root.encode(), prefix.encode())
