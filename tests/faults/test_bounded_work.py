"""Nobody holds others up: what a request costs grows with what it sends, not faster, and no single piece of it grows at all.

A size is compared with twice that size: `TWICE_AND_A_BIT` where the cost may grow with the input, `A_BIT` where it should not.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis

from kvstore.commands.base import Found, Later, in_turns
from kvstore.commands.transforms import json_patch_transform
from kvstore.core import codec
from kvstore.core.errors import Problem
from kvstore.core.json_text import MAX_MEMBERS
from kvstore.core.settings import read_settings
from kvstore.http import protocol
from kvstore.http.messages import Request
from kvstore.serving.http1 import Reader
from tests.support.asking import batch_body
from tests.support.inprocess import InProcess
from tests.support.measures import (
    A_BIT,
    TWICE_AND_A_BIT,
    growth,
    least,
    longest_turn_s,
    peak_bytes,
    processor_s,
    scripts,
    sent_by_redis_bytes,
    worker_s,
)
from tests.support.serving import Served
from tests.support.stores import Running

pytestmark = [pytest.mark.slow, pytest.mark.alone]

SETTINGS = read_settings({})
MERGE, JSON_PATCH = ("Content-Type", "application/merge-patch+json"), ("Content-Type", "application/json-patch+json")

TURN_S = 0.1  # of an event loop, at most (docs/performance.md)

Make = Callable[[int], Request]


@pytest.fixture
def looped(started: Callable[[str], Running], backing: redis.Redis) -> Iterator[InProcess]:
    """The production server on an event loop of this process."""
    running = InProcess(started("redis").url)
    yield running
    running.stop()


def put(serving: Served, target: str, document: Any) -> None:
    """Store a document; a string is JSON text."""
    body = document if isinstance(document, str) else json.dumps(document)
    answer = serving.request("PUT", target, body=body.encode())
    assert answer.status in (200, 201), answer.content


# --- Reading a request --------------------------------------------------------------------------------------------------


def batch_text(text: str) -> Request:
    """A batch, as it is spelled."""
    return Request("POST", b"/_/batch", {}, text.encode())


def document(text: str) -> Request:
    """A PUT."""
    return Request("PUT", b"/a/b", {}, text.encode())


def with_header(name: str, value: str) -> Request:
    """A PUT with a header field."""
    return Request("PUT", b"/a/b", {name: value}, b"1")


# What a client can lengthen, and a size that takes some ms.
READ: dict[str, tuple[Make, int]] = {
    "batch, spaces after a path": (
        lambda n: batch_text('{"requests":[{"method":"GET","path":"/a/b"%s,"x":1}]}' % (" " * n)), 4000,
    ),
    "batch, spaces after a body": (
        lambda n: batch_text('{"requests":[{"method":"PUT","path":"/a/b","body":{}%s,"x":1}]}' % (" " * n)), 100_000,
    ),
    "batch, spaces in a body": (
        lambda n: batch_text('{"requests":[{"method":"POST","path":"/a/b","body":{%s}}]}' % (" " * n)), 100_000,
    ),
    "batch, spaces everywhere": (
        lambda n: batch_text('{"requests":[{"method" : "PUT" , "path" : "/a" , "body" : 1 } ]}'.replace(" ", " " * n)), 10_000,
    ),
    "batch, a long path": (lambda n: batch_text('{"requests":[{"method":"GET","path":"/a/%s"}]}' % ("b" * n)), 100_000),
    "batch, a long query": (lambda n: batch_text('{"requests":[{"method":"GET","path":"/a/?%s"}]}' % ("x&" * n)), 50_000),
    "batch, many requests": (lambda n: batch_text('{"requests":[%s]}' % ",".join(['{"method":"GET","path":"/a/b"}'] * n)), 500),
    "batch, half a string": (lambda n: batch_text('{"requests":[{"method":"PUT","path":"/a/b","body":"' + "\\" * n), 100_000),
    "document, half an object": (lambda n: document('{"a":' * n), 50_000),
    "document, nested": (lambda n: document("[%s]" % ",".join(["[[[]]]"] * n)), 20_000),
    "document, members": (lambda n: document("{%s}" % ",".join(f'"m{at}":1' for at in range(n))), 4900),
    "document, one name again and again": (lambda n: document("{%s}" % ",".join(['"m":1'] * n)), 50_000),
    "document, spaces": (lambda n: document(" " * n + "{" + " " * n + "}" + " " * n), 100_000),
    "document, spaces between": (lambda n: document("[1%s,%s2]" % (" " * n, " " * n)), 100_000),
    "document, a string": (lambda n: document('"%s"' % ("é" * n)), 100_000),
    "document, escapes": (lambda n: document('"%s"' % (r"\u0041\\" * n)), 40_000),
    "document, half surrogates": (lambda n: document('"%s"' % (r"\ud83d\ude00" * n)), 20_000),
    "document, a fraction": (lambda n: document("1." + "5" * n), 200_000),
    "document, an exponent": (lambda n: document("1e" + "0" * n + "1"), 200_000),
    "document, an integer that is too long": (lambda n: document("5" * n), 200_000),
    "document, quotes": (lambda n: document('"' * n), 200_000),
    "document, brackets": (lambda n: document("[" * n), 200_000),
    "document, server values": (
        lambda n: document("{%s}" % ",".join('"m%d":{".sv":"timestamp"}' % at for at in range(n))), 2000,
    ),
    "a path of escapes": (lambda n: Request("GET", b"/a" + b"%2f" * n, {}), 100_000),
    "a path of slashes": (lambda n: Request("GET", b"/" * n, {}), 100_000),
    "a query": (lambda n: Request("GET", b"/a/?" + b"x=1&" * n, {}), 20_000),
    "If-Match": (lambda n: with_header("if-match", '"1-1",' * n), 5000),
    "If-Match, commas": (lambda n: with_header("if-match", '"1-1"' + "," * n + "x"), 50_000),
    "If-Match, spaces": (lambda n: with_header("if-match", '"1-1"' + " " * n + "x"), 50_000),
    "If-Unmodified-Since": (lambda n: with_header("if-unmodified-since", "Fri, " + "1" * n), 5000),
    "If-Unmodified-Since, brackets": (lambda n: with_header("if-unmodified-since", "(" * n), 5000),
    "Content-Type": (lambda n: with_header("content-type", "a/" + "b+json" * n), 20_000),
    "Accept": (lambda n: Request("GET", b"/a/", {"accept": "text/event-stream;q=0," * n}), 5000),
    "Prefer": (lambda n: Request("GET", b"/a/", {"prefer": "wait" + " " * n + "x"}), 2000),
    "Prefer, commas": (lambda n: Request("GET", b"/a/", {"prefer": "," + " " * n + "x"}), 2000),
    "Origin": (lambda n: with_header("origin", "http://localhost" + ":1" * n), 20_000),
    "a merge patch": (
        lambda n: Request("PATCH", b"/a/b", {}, b'{"o":{%b}}' % b",".join(b'"m%d":{}' % at for at in range(n))), 3000,
    ),
    "a JSON Patch": (
        lambda n: Request(
            "PATCH", b"/a/b", {"content-type": JSON_PATCH[1]}, b'[{"op":"add","path":"%b","value":1}]' % (b"/~0" * n)
        ), 50_000,
    ),
}  # fmt: skip


def rows(table: dict[str, Any]) -> list[Any]:
    """The rows of a table of cases, by name."""
    return [pytest.param(*row, id=name) for name, row in table.items()]


@pytest.mark.parametrize(("make", "size"), rows(READ))
def test_reading_is_linear(make: Make, size: int) -> None:
    """Whatever a request is, to parse twice as much costs twice as much."""
    requests = {each: make(each) for each in (size, 2 * size)}

    def cost(each: int) -> float:
        def parse() -> None:
            with suppress(Problem):
                protocol.parse(requests[each], SETTINGS)

        return processor_s(parse)

    assert growth(cost, size) < TWICE_AND_A_BIT


# What a client can lengthen of a request before that is read: bytes as they come, and the piece in which they come.
GET = b"GET /a/b HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"PUT /a/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SENT: dict[str, tuple[Callable[[int], bytes], int]] = {
    "spaces before what is no value": (lambda n: GET + b"a:" + b" " * n + b"\0\r\n\r\n", 8000),
    "spaces after a value": (lambda n: GET + b"a:b" + b" " * n + b"\0\r\n\r\n", 8000),
    "a name": (lambda n: GET + b"a" * n + b" : b\r\n\r\n", 8000),
    "fields": (lambda n: GET + b"a:\r\n" * n + b"\r\n", 3000),
    "fields of many names": (lambda n: GET + b"".join(b"a%d:\r\n" % at for at in range(n)) + b"\r\n", 1500),
    "a host": (lambda n: b"GET /a/b HTTP/1.1\r\nHost: " + b"a" * n + b"[\r\n\r\n", 8000),
    "an address": (lambda n: b"GET /a/b HTTP/1.1\r\nHost: [" + b":" * n + b"\r\n\r\n", 8000),
    "a Connection": (lambda n: GET + b"Connection: " + b"a," * n + b"\r\n\r\n", 8000),
    "a request line": (lambda n: b"GET " + b"/a" * n + b" HTTP/1.1\r\nHost: x\r\n\r\n", 2000),
    "what is no request line": (lambda n: b"GET" + b"x" * n + b"\r\n\r\n", 4000),
    "empty lines": (lambda n: b"\r\n" * n + GET + b"\r\n", 100_000),
    "chunks": (lambda n: CHUNKED + b"1\r\nx\r\n" * n + b"0\r\n\r\n", 20_000),
    "a chunk's extension": (lambda n: CHUNKED + b"1" + b" " * n + b"x\r\nx\r\n0\r\n\r\n", 4000),
    "trailers": (lambda n: CHUNKED + b"0\r\n" + b"a:\r\n" * n + b"\r\n", 3000),
}


@pytest.mark.parametrize("piece", [1460, 1_000_000])
@pytest.mark.parametrize(("make", "size"), rows(SENT))
def test_receiving_is_linear(make: Callable[[int], bytes], size: int, piece: int) -> None:
    """However a request comes, to receive twice as much costs twice as much."""
    sent = {each: make(each) for each in (size, 2 * size)}

    def cost(each: int) -> float:
        def receive() -> None:
            reader = Reader()
            with suppress(Problem):
                for at in range(0, len(sent[each]), piece):
                    reader.feed(sent[each][at : at + piece])
                    reader.next()

        return processor_s(receive)

    assert growth(cost, size) < TWICE_AND_A_BIT


STATE_FACTOR = 64  # of the bytes that are read: an object of Python is some 50 bytes, and a member may have two bytes


@pytest.mark.slow
@pytest.mark.parametrize(("make", "size"), rows(READ))
def test_reading_takes_little_memory(make: Make, size: int) -> None:
    """At the worst moment too: no parser keeps state for each character."""
    request = make(2 * size)

    def parse() -> None:
        with suppress(Problem):
            protocol.parse(request, SETTINGS)

    parse()  # what is loaded once is no part of it
    sent = len(request.target) + len(request.body) + sum(map(len, request.headers.values()))
    assert peak_bytes(parse) <= STATE_FACTOR * (sent + 1024)


def test_a_path_in_a_batch_is_as_long_as_by_itself(serving: Served) -> None:
    """A request line has 8,190 bytes; so has what stands for one in a batch."""
    targets = ["/ns/a?" + "x&" * 5000, "/ns/?" + "x&" * 5000]
    alone = [serving.request("GET", target).status for target in targets]
    assert alone == [414, 414]
    answer = serving.request("POST", "/_/batch", body=batch_body([("GET", target) for target in targets], atomic=False))
    assert [part["status"] for part in json.loads(answer.content)["responses"]] == alone


def test_a_query_is_read_once() -> None:
    """A listing, which knows five parameters, reads a query in about the time of a DELETE, which knows one."""
    junk = b"x=1&" * 2000

    def cost(request: Request) -> float:
        def parse() -> None:
            with suppress(Problem):
                protocol.parse(request, SETTINGS)

        return least(lambda: processor_s(parse))

    assert cost(Request("GET", b"/a/?" + junk, {})) < 2 * cost(Request("DELETE", b"/a/b?" + junk, {}))


# --- Budgets in Redis ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("atomic", [False, True])
def test_a_batch_counts_work(serving: Served, backing: redis.Redis, *, atomic: bool) -> None:
    """Small patches of a large document: more of them make no script longer, but more scripts, or they are refused."""
    put(serving, "/ns/large", {f"m{at}": at for at in range(MAX_MEMBERS - 10)})

    def cost(patches: int) -> float:
        body = batch_body([("PATCH", "/ns/large", {"x": at}) for at in range(patches)], atomic=atomic)
        return scripts(backing, lambda: serving.request("POST", "/_/batch", body=body)).each_s

    assert growth(cost, 10, runs=3, limit=A_BIT) < A_BIT


@pytest.mark.slow
def test_a_take_passes_over_what_is_no_job(serving: Served, backing: redis.Redis) -> None:
    """However many containers lie below a queue, the longest script of a take is as long."""

    def cost(containers: int) -> float:
        return scripts(backing, lambda: serving.request("POST", f"/queue{containers}/?lease=1s")).each_s

    def fill(containers: int) -> None:
        for first in range(0, containers, 1000):
            puts = [("PUT", f"/queue{containers}/{at:05}/x", 1) for at in range(first, min(first + 1000, containers))]
            assert serving.request("POST", "/_/batch", body=batch_body(puts)).status == 200

    fill(3000)
    fill(6000)
    assert growth(cost, 3000, runs=3, limit=A_BIT) < A_BIT


@pytest.mark.slow
def test_a_listing_of_containers_is_linear(serving: Served, backing: redis.Redis) -> None:
    """A page of twice as many sub-containers costs Redis twice as much, not the square."""
    long_name = "x" * 500
    puts = [("PUT", f"/ns/{at:04}{long_name}/x", 1) for at in range(1000)]
    assert serving.request("POST", "/_/batch", body=batch_body(puts)).status == 200

    def cost(limit: int) -> float:
        return scripts(backing, lambda: serving.request("GET", f"/ns/?limit={limit}")).each_s

    assert growth(cost, 400, runs=3) < TWICE_AND_A_BIT


def test_a_listing_of_the_root_asks_little(serving: Served, backing: redis.Redis) -> None:
    """It does not run a script for each namespace."""
    puts = [("PUT", f"/ns{at:03}/x", 1) for at in range(100)]
    assert serving.request("POST", "/_/batch", body=batch_body(puts, atomic=False)).status == 200

    def count(limit: int) -> int:
        return len(scripts(backing, lambda: serving.request("GET", f"/?list&limit={limit}")).times_s)

    assert count(100) <= count(10) + 10


# --- Turns of the event loop --------------------------------------------------------------------------------------------

NESTED = "[" + ",".join(["[[[]]]"] * 100_000) + "]"


def test_head_does_not_read_the_value(serving: Served, backing: redis.Redis) -> None:
    """HEAD, and a GET that is answered 304, ask Redis for what they say, not for the document."""
    put(serving, "/ns/large", NESTED)
    tag = serving.request("GET", "/ns/large").getheader("ETag") or ""
    asked = [("HEAD", []), ("GET", [("If-None-Match", tag)]), ("HEAD", [("If-None-Match", tag)])]
    for method, headers in asked:
        sent = sent_by_redis_bytes(
            backing, lambda method=method, headers=headers: serving.request(method, "/ns/large", headers)
        )
        assert sent < 16 * 1024, (method, headers)


def test_what_we_wrote_is_not_checked_again(serving: Served) -> None:
    """To read a document of a million brackets costs about what a string of that length costs."""
    put(serving, "/ns/nested", NESTED)
    put(serving, "/ns/plain", '"%s"' % ("x" * (len(NESTED) - 2)))

    def cost(target: str) -> float:
        return least(lambda: worker_s(serving, lambda: serving.request("GET", target)))

    assert cost("/ns/nested") < 5 * cost("/ns/plain")


@pytest.mark.slow
def test_a_batch_does_not_decode_everything_in_one_turn(looped: InProcess) -> None:
    """The longest turn of the event loop is no longer for more documents."""
    wire = looped.connect(limit_s=60)
    members = json.dumps({f"m{at}": at for at in range(MAX_MEMBERS)}).encode()
    wire.send(b"PUT /ns/large HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(members), members))
    assert wire.answer().status == 201

    def cost(documents: int) -> float:
        body = batch_body([("GET", "/ns/large")] * documents, atomic=False)

        def read() -> None:
            wire.send(b"POST /_/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            assert wire.answer().status == 200

        return longest_turn_s(looped, read)

    assert growth(cost, 20, runs=3, limit=A_BIT) < A_BIT
    wire.close()


def test_a_number_is_read_once(serving: Served) -> None:
    """Twice as many tests of one long number cost about the same: what it is worth is known after the first."""
    put(serving, "/ns/number", "[1.5%s]" % ("0" * 500_000))

    def cost(tests: int) -> float:
        operations = ",".join(['{"op":"test","path":"/0","value":1.5}'] * tests).encode()

        def test() -> None:
            assert serving.request("PATCH", "/ns/number", [JSON_PATCH], b"[%b]" % operations).status == 200

        return worker_s(serving, test)

    assert growth(cost, 100, limit=A_BIT) < A_BIT


# --- Patches --------------------------------------------------------------------------------------------------------------

MEBIBYTE = 1024 * 1024


def operations(op: str, count: int, **members: Any) -> bytes:
    """A JSON Patch of the same operation again and again; `%d` in a pointer is its number."""
    texts = [json.dumps({"op": op} | members, separators=(",", ":")) for _ in range(count)]
    return b"[%b]" % ",".join(text.replace("%d", str(at)) for at, text in enumerate(texts)).encode()


def array(item: str, count: int) -> bytes:
    """An array of the same item again and again."""
    return f"[{','.join([item] * count)}]".encode()


# A document and a JSON Patch of about so many bytes each.
PATCHES: dict[str, Callable[[int], tuple[bytes, bytes]]] = {
    "tests of a long number": lambda n: (b"[1.%b0]" % (b"5" * n), operations("test", min(2000, n // 40), path="/0", value=1.5)),
    "a test of all, integers": lambda n: (array("1", n // 2), operations("test", 1, path="", value=[1] * (n // 3))),
    "a test of all, numbers spelled otherwise": lambda n: (
        array("1e1", n // 4), b'[{"op":"test","path":"","value":%b}]' % array("1E1", n // 4 - 20)
    ),
    "a test of all, long numbers": lambda n: (
        array("1234567890123456e1", n // 19), b'[{"op":"test","path":"","value":%b}]' % array("1234567890123456E1", n // 19 - 5)
    ),
    "a test of all, nested": lambda n: (
        array("[[[]]]", n // 7 - 9), b'[{"op":"test","path":"","value":%b}]' % array("[[[]]]", n // 7 - 9)
    ),
    "moves to the front": lambda n: (array("1", n // 2), operations("move", min(2000, n // 50), path="/0", **{"from": "/9"})),
    "a copy of all": lambda n: (array("[[[]]]", n // 14), operations("copy", 1, path="/0", **{"from": ""})),
    "small copies": lambda n: (
        b'{"a":"%b"}' % (b"x" * 400), operations("copy", min(2000, n // 50), path="/%d", **{"from": "/a"})
    ),
    "copies that double": lambda n: (b"[[]]", operations("copy", min(2000, n // 50), path="/-", **{"from": ""})),
    "values of a MiB": lambda n: (b"[]", b'[{"op":"add","path":"/0","value":%b}]' % array("[[[]]]", n // 7 - 9)),
    "one long pointer": lambda n: (b"[]", operations("test", 1, path="/~0" * (n // 3 - 20), value=1)),
    "pointers that are ever longer": lambda n: (
        b"[]", b"[%b]" % b",".join(b'{"op":"add","path":"%b","value":[]}' % (b"/0" * at) for at in range(1, int(n**0.5) - 24))
    ),
    "names": lambda n: (b"{}", operations("add", min(2000, n // 50), path="/%d", value=1)),
}  # fmt: skip


def patch_turns(document: bytes, patch: bytes) -> list[float]:
    """The processor time of each turn of the event loop that a JSON Patch takes."""
    turns: list[float] = []

    def timed(turn: Callable[[], Any]) -> Any:
        begun = time.process_time()
        try:
            return turn()
        finally:
            turns.append(time.process_time() - begun)

    with suppress(Problem):
        found = Found(*codec.decode([codec.META, b"1-1 value", codec.VALUE, document]), None, None)
        transform = timed(lambda: json_patch_transform(patch, asked_ms=None))
        outcome = timed(lambda: in_turns(transform(found)))
        while isinstance(outcome, Later):
            outcome = timed(outcome.resume)
    return turns


@pytest.mark.parametrize("make", PATCHES.values(), ids=PATCHES)
def test_a_patch_is_linear(make: Callable[[int], tuple[bytes, bytes]]) -> None:
    """A patch and a document that are twice as long cost twice as much."""
    made = {size: make(size) for size in (100_000, 200_000)}
    for document, patch in made.values():
        codec.encode(document)  # it is known to be JSON, as what is stored is
        assert len(patch) <= MEBIBYTE >= len(document)
    assert growth(lambda size: sum(patch_turns(*made[size])), 100_000) < TWICE_AND_A_BIT


@pytest.mark.slow
@pytest.mark.parametrize("make", PATCHES.values(), ids=PATCHES)
def test_a_turn_of_a_patch(make: Callable[[int], tuple[bytes, bytes]]) -> None:
    """A patch of a MiB of a document of a MiB holds the event loop up for at most 100 ms at a time."""
    document, patch = make(MEBIBYTE - 1000)
    codec.encode(document)
    assert least(lambda: max(patch_turns(document, patch))) < TURN_S
