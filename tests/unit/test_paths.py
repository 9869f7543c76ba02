"""Raw request target ↔ path ↔ Redis keys."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from redis.crc import key_slot

from kvstore.core.errors import InvalidPath, PathTooLong, Problem
from kvstore.core.paths import MAX_BYTES, MAX_SEGMENTS, OWN_KEYS, Path, own_key, parse_path, split_target

# Raw path, its canonical text, whether it is a container, its document key.
ACCEPTED = [
    (b"/", "/", False, "kv:{/}/"),
    (b"/a", "/a", False, "kv:{/}/a"),
    (b"/a/", "/a/", True, "kv:{a}/"),
    (b"/a/b", "/a/b", False, "kv:{a}/b"),
    (b"/a/b/", "/a/b/", True, "kv:{a}/b"),
    (b"/a/b/c", "/a/b/c", False, "kv:{a}/b/c"),
    (b"/a%2Fb", "/a%2Fb", False, "kv:{/}/a%2Fb"),
    (b"/a%2fb", "/a%2Fb", False, "kv:{/}/a%2Fb"),
    (b"/%61", "/a", False, "kv:{/}/a"),
    (b"/A", "/A", False, "kv:{/}/A"),
    (b"/%7e~", "/~~", False, "kv:{/}/~~"),
    (b"/%C3%A9", "/%C3%A9", False, "kv:{/}/%C3%A9"),
    (b"/\xc3\xa9", "/%C3%A9", False, "kv:{/}/%C3%A9"),
    (b"/e%CC%81", "/e%CC%81", False, "kv:{/}/e%CC%81"),
    (b"/%2525", "/%2525", False, "kv:{/}/%2525"),
    (b"/a+b", "/a+b", False, "kv:{/}/a+b"),
    (b"/a%20b", "/a%20b", False, "kv:{/}/a%20b"),
    (b"/{a}/b", "/%7Ba%7D/b", False, "kv:{%7Ba%7D}/b"),
    (b"/a/{b}", "/a/%7Bb%7D", False, "kv:{a}/%7Bb%7D"),
    (b"/...", "/...", False, "kv:{/}/..."),
    (b"/.a", "/.a", False, "kv:{/}/.a"),
    (b"/!log", "/!log", False, "kv:{/}/!log"),
    (b"/a:b@c;d=e,f", "/a:b@c;d=e,f", False, "kv:{/}/a:b@c;d=e,f"),
    (b"/%3F%23", "/%3F%23", False, "kv:{/}/%3F%23"),
    (b"/%C2%80", "/%C2%80", False, "kv:{/}/%C2%80"),
]


@pytest.mark.parametrize(("raw", "text", "is_container", "key"), ACCEPTED)
def test_accepted(raw: bytes, text: str, is_container: bool, key: str) -> None:
    """A path has one canonical text, and a key made of it."""
    path = parse_path(raw)
    assert (path.text, path.is_container, path.keys.document) == (text, is_container, key)


REFUSED = [
    (b"", InvalidPath),
    (b"a", InvalidPath),
    (b"*", InvalidPath),
    (b"//", InvalidPath),
    (b"//a", InvalidPath),
    (b"/a//b", InvalidPath),
    (b"/a//", InvalidPath),
    (b"/.", InvalidPath),
    (b"/..", InvalidPath),
    (b"/a/../b", InvalidPath),
    (b"/a/./", InvalidPath),
    (b"/%2e", InvalidPath),
    (b"/%2E%2e/a", InvalidPath),
    (b"/.%2e", InvalidPath),
    (b"/%00", InvalidPath),
    (b"/a%0Ab", InvalidPath),
    (b"/%1f", InvalidPath),
    (b"/%7F", InvalidPath),
    (b"/\x07", InvalidPath),
    (b"/%", InvalidPath),
    (b"/%4", InvalidPath),
    (b"/%zz", InvalidPath),
    (b"/%u0041", InvalidPath),
    (b"/%-1", InvalidPath),
    (b"/%FF", InvalidPath),
    (b"/\xff", InvalidPath),
    (b"/%C3", InvalidPath),
    (b"/%C3/%A9", InvalidPath),
    (b"/%ED%A0%80", InvalidPath),
    (b"/%C0%AF", InvalidPath),
    (b"/%F4%90%80%80", InvalidPath),
    (b"/a" * (MAX_SEGMENTS + 1), InvalidPath),
    (b"/a" * (MAX_SEGMENTS + 1) + b"/", InvalidPath),
    (b"/" + b"a" * MAX_BYTES, PathTooLong),
    (b"/" + b"%61" * MAX_BYTES, PathTooLong),
    (b"/" + b"a" * (MAX_BYTES - 1) + b"/", PathTooLong),
]


@pytest.mark.parametrize(("raw", "problem"), REFUSED, ids=lambda case: str(case)[:32])
def test_refused(raw: bytes, problem: type[Problem]) -> None:
    """What is not a path is refused, never repaired."""
    with pytest.raises(problem):
        parse_path(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"/a" * MAX_SEGMENTS,
        b"/a" * MAX_SEGMENTS + b"/",
        b"/" + b"a" * (MAX_BYTES - 1),
        b"/" + b"%61" * (MAX_BYTES - 1),
        b"/" + "é".encode() * ((MAX_BYTES - 1) // 2),
    ],
    ids=lambda raw: str(len(raw)),
)
def test_limits_are_reached(raw: bytes) -> None:
    """A path exactly at a limit is accepted."""
    assert parse_path(raw)


TARGETS = [
    (b"/a?b", (b"/a", b"b")),
    (b"/a?b?c", (b"/a", b"b?c")),
    (b"/a", (b"/a", b"")),
    (b"/?", (b"/", b"")),
    (b"http://example.org/a?b", (b"/a", b"b")),
    (b"HTTP://example.org:80/a%2Fb", (b"/a%2Fb", b"")),
    (b"http://example.org", (b"/", b"")),
    (b"http://example.org?b", (b"/", b"b")),
    (b"//example.org/a", (b"//example.org/a", b"")),
    (b"/http://example.org/a", (b"/http://example.org/a", b"")),
    (b"*", (b"*", b"")),
]


@pytest.mark.parametrize(("target", "parts"), TARGETS)
def test_split_target(target: bytes, parts: tuple[bytes, bytes]) -> None:
    """The absolute form (RFC 9112 section 3.2.2) loses its authority; the query begins at the first question mark."""
    assert split_target(target) == parts


characters = st.characters(exclude_categories=["Cs"]).filter(lambda c: ord(c) >= 0x20 and ord(c) != 0x7F)
awkward = st.sampled_from(["{", "}", "{}", "a/b", "%", "%2F", "!log", "!index", "/", "a", "A", "_", "..."])
segments = (st.text(characters, min_size=1, max_size=6) | awkward).filter(lambda s: s not in (".", ".."))
paths = st.lists(segments, min_size=1, max_size=4)


@st.composite
def spelled(draw: st.DrawFn, path: list[str]) -> bytes:
    """One of the many spellings of a path: any byte may be escaped, in either case."""
    out = bytearray()
    for segment in path:
        out += b"/"
        for byte in segment.encode():
            must = byte in b"/%?#" or byte <= 0x20
            how = draw(st.integers(1 if must else 0, 2))
            out += (b"%c" % byte, b"%%%02X" % byte, b"%%%02x" % byte)[how]
    return bytes(out)


def keys_of(path: Path) -> set[str]:
    """The keys that are not documents."""
    return {path.keys.log, *(own_key(path, name) for name in OWN_KEYS)}


@given(st.data(), paths, st.booleans())
def test_one_meaning_one_key(data: st.DataObject, path: list[str], is_container: bool) -> None:
    """However a path is spelled, it is the same path; its canonical text is one of its spellings."""
    slash = b"/" if is_container else b""
    one, other = (parse_path(data.draw(spelled(path)) + slash) for _ in range(2))
    assert one == other == parse_path(one.text.encode())
    assert one.is_container == is_container


@given(st.data(), paths, paths)
def test_two_paths_two_keys(data: st.DataObject, one: list[str], other: list[str]) -> None:
    """Two paths never share a document, nor is a document's key ever one of the namespace's own."""
    assume(one != other)
    first, second = parse_path(data.draw(spelled(one))), parse_path(data.draw(spelled(other)))
    assert first.keys.document != second.keys.document
    assert first.keys.document not in keys_of(second) | keys_of(first)
    shares_namespace = len(one) == len(other) == 1 or (len(one) > 1 and len(other) > 1 and one[0] == other[0])
    assert (keys_of(first) == keys_of(second)) == shares_namespace
    assert shares_namespace or not keys_of(first) & keys_of(second)
    assert not shares_namespace or first.name != second.name


@given(st.data(), paths)
def test_one_slot_by_the_namespace_alone(data: st.DataObject, path: list[str]) -> None:
    """All keys of a path are in one slot of a cluster, which its namespace chooses and no brace in a segment does."""
    drawn = parse_path(data.draw(spelled(path)))
    keys = drawn.keys
    namespace = keys.log.removeprefix("kv:{").removesuffix("}!log")
    assert "{" not in namespace
    assert "}" not in namespace
    every = keys_of(drawn) | set(keys)
    assert {key_slot(key.encode()) for key in every} == {key_slot(namespace.encode())}


@given(st.binary(max_size=40).map(lambda tail: b"/" + tail) | st.binary(max_size=10))
def test_any_bytes_are_a_path_or_refused(raw: bytes) -> None:
    """No bytes make the parser fail in another way than by a Problem."""
    try:
        path = parse_path(raw)
    except (InvalidPath, PathTooLong):
        return
    assert parse_path(path.text.encode()) == path
