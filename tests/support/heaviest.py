"""The heaviest requests: for each input that a client can lengthen, a size that takes some ms, and the largest one.

"The largest" is the largest that is allowed, or that a test can wait for.
"""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import redis

from kvstore.commands.changelog import ReadChanges
from kvstore.commands.takers import MAX_NAME_BYTES, MAX_TAKERS, RegisterTaker
from kvstore.core.paths import parse_path
from kvstore.stores.blocking import open_blocking_store
from tests.support.asking import batch_body, keys_of
from tests.support.inprocess import InProcess
from tests.support.serving import Served

MERGE, JSON_PATCH = ("Content-Type", "application/merge-patch+json"), ("Content-Type", "application/json-patch+json")
MIB = 1024 * 1024


class Bench(NamedTuple):
    """What a case may use: the service, and the Redis behind it."""

    serving: Served | InProcess
    raw: redis.Redis
    url: str

    def ask(self, method: str, target: str, body: Any = None, *headers: tuple[str, str]) -> None:
        """Send a request, which is answered below 500. A body that is not bytes is sent as JSON."""
        sent = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        answer = self.serving.request(method, target, headers, sent)
        assert answer.status < 500, answer.content

    def batch(self, requests: list[tuple[Any, ...]], *, atomic: bool = True) -> None:
        """Send them as one batch."""
        self.ask("POST", "/_/batch", batch_body(requests, atomic=atomic))

    def fill(self, container: str, count: int, document: Any = 1, below: str = "") -> None:
        """Store so many documents, in batches."""
        size = max(1, min(1000, 900_000 // (len(json.dumps(document)) + len(container) + 100)))
        for first in range(0, count, size):
            numbers = range(first, min(count, first + size))
            self.batch([("PUT", f"{container}{number:05}{below}", document) for number in numbers], atomic=False)


def members(count: int) -> dict[str, int]:
    """An object with so many members."""
    return {f"m{number}": number for number in range(count)}


def expire_all(bench: Bench, count: int) -> None:
    """Documents that have expired, and of which nobody has noticed that yet."""
    bench.fill("/ns/", count)
    bench.raw.delete(*[f"kv:{{ns}}/{number:05}" for number in range(count)])
    bench.raw.zadd(keys_of("ns").expiry, {f"{number:05}": 1 for number in range(count)})


def read_log(bench: Bench, _: int) -> None:
    """Read all changes of a namespace, as those who follow it do."""
    first: Any = bench.raw.xrange(keys_of("ns").log, count=1)
    store, position = open_blocking_store(bench.url), first[0][0].decode()
    while True:
        read = store.execute(ReadChanges(parse_path(b"/ns/"), position))
        if not read.entries:
            store.close()
            return
        position = read.entries[-1][0].decode()


def named(letter: str, count: int) -> dict[str, int]:
    """An object with so many members whose names are long and not sorted: our own field lists them."""
    return {f"{letter}{'-' * 85}{number * 7919 % 100_000:05}": number for number in range(count)}


Step = Callable[[Bench, int], None]


class Case(NamedTuple):
    """What is measured, with what is there before it each time; a size at which it takes some ms, and the largest one."""

    action: Step
    size: int
    largest: int
    before: Step = lambda _bench, _size: None


def put_large(bench: Bench, count: int) -> None:
    """A document with so many members."""
    bench.ask("PUT", "/ns/large", members(count))


def put_several(bench: Bench, count: int) -> None:
    """So many documents of 1,000 members."""
    for number in range(count):
        bench.ask("PUT", f"/ns/{number:03}", members(1000))


def put_mib(bench: Bench, count: int) -> None:
    """So many documents of 1 MiB."""
    for number in range(count):
        bench.ask("PUT", f"/ns/{number:03}", b'"%b"' % (b"x" * (MIB - 100)))


def put_arrays(bench: Bench, count: int) -> None:
    """So many documents of 1 MiB, each an array of numbers."""
    for number in range(count):
        bench.ask("PUT", f"/ns/{number:03}", b'{"a":[%b1]}' % (b"1.5," * (MIB // 4 - 100)))


def lease_all_but_100(bench: Bench, count: int) -> None:
    """So many jobs that are leased, and a hundred after them."""
    bench.fill("/ns/", count + 100)
    for _ in range(0, count, 100):
        bench.ask("POST", "/ns/?lease=60s&limit=100")


def let_die(bench: Bench, count: int) -> None:
    """Jobs that were taken once, and whose leases are over."""
    bench.fill("/ns/", count)
    for _ in range(0, count, 100):
        bench.ask("POST", "/ns/?lease=1s&limit=100&max_attempts=1")
    time.sleep(1.1)


def change_often(bench: Bench, count: int) -> None:
    """So many changes of a document of 3,400 members, as many as an entry of the log has fields for."""
    for _ in range(count):
        bench.ask("PUT", "/ns/large", members(3400))


def change_in_turns(bench: Bench, count: int, other: int = 1) -> None:
    """So many changes of a small document, each followed by one of another with so many members."""
    for number in range(0, count, 20):
        pairs = [("PUT", "/ns/a", number), ("PUT", "/ns/b", members(other))] * min(20, count - number)
        bench.batch(pairs, atomic=False)


def wait_all(bench: Bench, count: int) -> None:
    """So many who wait for a job, and say who they are at length."""
    store, name = open_blocking_store(bench.url), b'"%b"' % (b"x" * (MAX_NAME_BYTES - 2))
    for number in range(count):
        store.execute(RegisterTaker(parse_path(b"/ns/"), str(number), name, 0, 60_000))
    store.close()


RECORD = members(10) | {"text": "x" * 100, "tags": ["a", "b"]}
LONG_QUESTION = "&".join(["search=none", *["a:contains=1"] * 40, *["a:ne=1.5"] * 9])
INCREMENT, LONG_INCREMENT = {".sv": {"increment": 1}}, {".sv": {"increment": 2**60}}
CONTROLS = "\x01" * 8

CASES: dict[str, Case] = {
    "PUT, members": Case(put_large, 4900, 10_000),
    "PUT, members, over others": Case(
        lambda bench, size: bench.ask("PUT", "/ns/large", {f"n{n}": n for n in range(size)}), 4900, 10_000, put_large
    ),
    "PUT that fails a precondition": Case(
        lambda bench, _: bench.ask("PUT", "/ns/large", 1, ("If-Match", '"1-1"')), 4900, 10_000, put_large
    ),
    "PUT, a string": Case(lambda bench, size: bench.ask("PUT", "/ns/a", b'"%b"' % (b"x" * size)), 500_000, MIB - 2),
    "PUT, an array": Case(lambda bench, size: bench.ask("PUT", "/ns/a", b"[%b1]" % (b"1," * size)), 250_000, MIB // 2 - 2),
    "PUT, increments": Case(
        lambda bench, size: bench.ask("PUT", "/ns/large", dict.fromkeys(members(size), INCREMENT)), 4900, 10_000, put_large
    ),
    "PUT, increments of long integers": Case(
        lambda bench, size: bench.ask("PUT", "/ns/a", dict.fromkeys(members(size), LONG_INCREMENT)), 4900, 10_000
    ),
    "POST, members": Case(lambda bench, size: bench.ask("POST", "/ns/", members(size)), 4900, 10_000),
    "PATCH of one member": Case(lambda bench, _: bench.ask("PATCH", "/ns/large", {"x": 1}, MERGE), 4900, 9999, put_large),
    "PATCH, new members": Case(
        lambda bench, size: bench.ask("PATCH", "/ns/large", {f"n{n}": n for n in range(size)}, MERGE), 2400, 5000, put_large
    ),
    "PATCH, new members with long names": Case(
        lambda bench, size: bench.ask("PATCH", "/ns/large", named("n", size), MERGE),
        2400,
        5000,
        lambda bench, size: bench.ask("PUT", "/ns/large", named("m", size)),
    ),
    "PATCH that takes members with long names away": Case(
        lambda bench, size: bench.ask("PATCH", "/ns/large", dict.fromkeys(named("m", size)), MERGE),
        2400,
        8000,
        lambda bench, size: bench.ask("PUT", "/ns/large", named("m", size)),
    ),
    "PATCH that takes members away": Case(
        lambda bench, size: bench.ask("PATCH", "/ns/large", dict.fromkeys(members(size)), MERGE), 4900, 10_000, put_large
    ),
    "PATCH of names with control characters": Case(
        lambda bench, _: bench.ask("PATCH", "/ns/a", {"x": 1}, MERGE),
        4900,
        9999,
        lambda bench, size: bench.ask("PUT", "/ns/a", {f"{CONTROLS}{n}": n for n in range(size)}),
    ),
    "nested PATCH": Case(lambda bench, _: bench.ask("PATCH", "/ns/large", {"o": {"x": 1}}, MERGE), 4900, 9999, put_large),
    "JSON Patch": Case(
        lambda bench, _: bench.ask("PATCH", "/ns/large", [{"op": "add", "path": "/x", "value": 1}], JSON_PATCH),
        4900,
        9999,
        put_large,
    ),
    "PATCH of a TTL": Case(lambda bench, _: bench.ask("PATCH", "/ns/large?ttl=100"), 4900, 10_000, put_large),
    "GET, members": Case(lambda bench, _: bench.ask("GET", "/ns/large"), 4900, 10_000, put_large),
    "DELETE, members": Case(lambda bench, _: bench.ask("DELETE", "/ns/large"), 4900, 10_000, put_large),
    "batch of PUTs": Case(lambda bench, size: bench.batch([("PUT", f"/ns/{n}", {"a": n}) for n in range(size)]), 490, 1000),
    "batch of PUTs, members": Case(
        lambda bench, size: bench.batch([("PUT", f"/ns/{n}", members(1000)) for n in range(size)]), 24, 60
    ),
    "batch of PUTs, each, members": Case(
        lambda bench, size: bench.batch([("PUT", f"/ns/{n % 4}", members(1000)) for n in range(size)], atomic=False), 28, 80
    ),
    "batch of PUTs that is undone": Case(
        lambda bench, size: bench.batch([("PUT", f"/ns/{n}", members(1000)) for n in range(size)] + [("GET", "/ns/none")]),
        8,
        80,
    ),
    "batch of small PUTs that is undone": Case(
        lambda bench, size: bench.batch([*[("PUT", f"/ns/{n}", {"a": n}) for n in range(size)], ("GET", "/ns/none")]), 490, 999
    ),
    "batch of POSTs": Case(lambda bench, size: bench.batch([("POST", "/ns/", {"a": n}) for n in range(size)]), 490, 1000),
    "batch of PATCHes": Case(
        lambda bench, size: bench.batch([("PATCH", "/ns/large", {"x": n}) for n in range(size)], atomic=False),
        24,
        30,  # a script does one of them: each of those that follow costs as much
        lambda bench, _: put_large(bench, 9990),
    ),
    "batch of GETs": Case(lambda bench, size: bench.batch([("GET", f"/ns/{n:03}") for n in range(size)]), 24, 60, put_several),
    "batch of GETs of one document": Case(
        lambda bench, size: bench.batch([("GET", "/ns/large")] * size, atomic=False),
        12,
        16,  # as above
        lambda bench, _: put_large(bench, 10_000),
    ),
    "batch of GETs, bytes": Case(
        lambda bench, size: bench.batch([("GET", f"/ns/{n:03}") for n in range(size)]), 7, 15, put_mib
    ),
    "batch of DELETEs that is undone": Case(
        lambda bench, size: bench.batch([*[("DELETE", f"/ns/{n:03}") for n in range(size)], ("GET", "/ns/none")]),
        20,
        60,
        put_several,
    ),
    "batch of DELETEs that is undone, bytes": Case(
        lambda bench, size: bench.batch([*[("DELETE", f"/ns/{n:03}") for n in range(size)], ("GET", "/ns/none")]),
        5,
        20,
        put_mib,
    ),
    "batch of DELETEs, bytes": Case(
        lambda bench, size: bench.batch([("DELETE", f"/ns/{n:03}") for n in range(size)], atomic=False), 15, 30, put_mib
    ),
    "batch of writes that fail": Case(
        lambda bench, size: bench.ask(
            "POST",
            "/_/batch",
            {
                "atomic": False,
                "requests": [{"method": "PUT", "path": "/ns/large", "headers": {"If-Match": '"1-1"'}, "body": 1}] * size,
            },
        ),
        12,
        16,  # as above
        lambda bench, _: put_large(bench, 10_000),
    ),
    "listing": Case(
        lambda bench, size: bench.ask("GET", f"/ns/?limit={size}"), 490, 1000, lambda bench, size: bench.fill("/ns/", size)
    ),
    "listing, members": Case(lambda bench, _: bench.ask("GET", "/ns/?limit=1000"), 20, 100, put_several),
    "question that nothing fits": Case(
        lambda bench, _: bench.ask("GET", "/ns/?search=none&count"),
        1500,
        6000,
        lambda bench, size: bench.fill("/ns/", size, RECORD),
    ),
    "question that Redis judges": Case(
        lambda bench, _: bench.ask("GET", "/ns/?m1:eq=1&m2:gt=1&m3:lt=9&m4:in=x,y&count"),
        3000,
        10_000,
        lambda bench, size: bench.fill("/ns/", size, RECORD),
    ),
    "question about long texts": Case(
        lambda bench, _: bench.ask("GET", "/ns/?text:in=x,y&count"),
        50,
        200,
        lambda bench, size: bench.fill("/ns/", size, {"text": "x" * 100_000}),
    ),
    "question about many members": Case(
        lambda bench, _: bench.ask("GET", f"/ns/?count&{'&'.join(f'm{n}:ne=x' for n in range(50))}"),
        700,
        3000,
        lambda bench, size: bench.fill("/ns/", size, members(50)),
    ),
    "question that large documents fit": Case(
        lambda bench, _: bench.ask("GET", "/ns/?m1:lt=2&limit=1000"), 20, 100, put_several
    ),
    "sort": Case(
        lambda bench, _: bench.ask("GET", "/ns/?sort=-m1,m2&limit=1000"),
        1500,
        6000,
        lambda bench, size: bench.fill("/ns/", size, RECORD),
    ),
    "question to large documents": Case(lambda bench, _: bench.ask("GET", f"/ns/?count&{LONG_QUESTION}"), 20, 100, put_several),
    "question to documents of 1 MiB": Case(lambda bench, _: bench.ask("GET", f"/ns/?count&{LONG_QUESTION}"), 4, 10, put_arrays),
    "listing of those who wait": Case(lambda bench, _: bench.ask("GET", "/ns/"), 45, MAX_TAKERS, wait_all),
    "listing of containers": Case(
        lambda bench, size: bench.ask("GET", f"/ns/?limit={size}"),
        490,
        1000,
        lambda bench, size: bench.fill("/ns/" + "x" * 500, size, below="/x"),
    ),
    "listing of the root": Case(
        lambda bench, size: bench.ask("GET", f"/?list&limit={size}"),
        490,
        1000,
        lambda bench, size: bench.fill("/" + "x" * 500, size, below="/x"),
    ),
    "listing of what has expired": Case(lambda bench, _: bench.ask("GET", "/ns/"), 1500, 6000, expire_all),
    "PUTs where documents have expired": Case(
        lambda bench, _: bench.batch([("PUT", f"/ns/x{n}", 1) for n in range(500)]), 1500, 6000, expire_all
    ),
    "DELETE recursively": Case(
        lambda bench, _: bench.ask("DELETE", "/ns/?recursive"), 1500, 6000, lambda bench, size: bench.fill("/ns/", size)
    ),
    "DELETE recursively, members": Case(lambda bench, _: bench.ask("DELETE", "/ns/?recursive"), 20, 100, put_several),
    "take": Case(
        lambda bench, size: bench.ask("POST", f"/ns/?lease=60s&limit={size}"),
        45,
        100,
        lambda bench, size: bench.fill("/ns/", size),
    ),
    "take, members": Case(lambda bench, _: bench.ask("POST", "/ns/?lease=60s&limit=100"), 20, 100, put_several),
    "take, past containers": Case(
        lambda bench, _: bench.ask("POST", "/ns/?lease=60s"),
        3000,
        10_000,
        lambda bench, size: bench.fill("/ns/", size, below="/x"),
    ),
    "take, past what is leased": Case(
        lambda bench, _: bench.ask("POST", "/ns/?lease=60s&limit=100"),
        450,
        1000,
        lease_all_but_100,
    ),
    "take that moves the dead": Case(lambda bench, _: bench.ask("POST", "/ns/?lease=60s&max_attempts=1"), 200, 1000, let_die),
    "DELETE of what has changed often": Case(lambda bench, _: bench.ask("DELETE", "/ns/large"), 20, 100, change_often),
    "DELETE of what has changed a thousand times": Case(
        lambda bench, _: bench.ask("DELETE", "/ns/a"), 450, 1000, change_in_turns
    ),
    "DELETE of what has changed in turns with another": Case(
        lambda bench, _: bench.ask("DELETE", "/ns/a"), 30, 100, lambda bench, size: change_in_turns(bench, size, 3000)
    ),
    "history": Case(lambda bench, _: bench.ask("GET", "/ns/a?changes&limit=1000"), 240, 500, change_in_turns),
    "history, members": Case(lambda bench, _: bench.ask("GET", "/ns/large?changes&limit=1000"), 20, 100, change_often),
    "history of a container": Case(
        lambda bench, _: bench.ask("GET", "/ns/?changes&limit=1000"), 490, 1000, lambda bench, size: bench.fill("/ns/", size)
    ),
    "history of a container, members": Case(
        lambda bench, _: bench.ask("GET", "/ns/?changes&limit=1000"), 20, 100, change_often
    ),
    "a document as it was": Case(lambda bench, _: bench.ask("GET", "/ns/large?at=1-1"), 20, 100, change_often),
    "log, entries": Case(read_log, 2000, 10_000, lambda bench, size: bench.fill("/ns/", size)),
    "log, members": Case(read_log, 20, 100, change_often),
}
