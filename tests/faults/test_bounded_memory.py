"""What a request leaves behind, in Redis and in a worker, is at most 16 times the bytes it sent plus 16 KiB."""

import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pytest
import redis

from kvstore.commands.documents import Get
from kvstore.core.errors import StoreUnavailable
from kvstore.core.paths import parse_path
from kvstore.serving.http1 import Reader
from kvstore.stores.pooled import PooledStore
from tests.support.asking import batch_body
from tests.support.inprocess import InProcess
from tests.support.measures import dataset_bytes, kept_bytes, may_leave_bytes, peak_bytes, resident_bytes, workers
from tests.support.serving import Served, read, start_kvstore, wire
from tests.support.stores import Running, connect, wait_until
from tests.support.wires import unread

pytestmark = pytest.mark.slow

MEBIBYTE = 1024 * 1024
LARGE = b'"%b"' % (b"x" * (MEBIBYTE - 2))


def key(text: str) -> tuple[str, str]:
    return "Idempotency-Key", text


# --- Responses that are kept (row 3) ------------------------------------------------------------------------------------

# What is asked under a new Idempotency-Key each time, where /ns/large is a document of 1 MiB: method, target, headers, body.
KEPT: dict[str, tuple[str, str, list[tuple[str, str]], bytes]] = {
    "touch": ("PATCH", "/ns/large?ttl=90", [], b""),
    "touch that fails": ("PATCH", "/ns/large?ttl=90", [("If-Match", '"1-1"')], b""),
    "DELETE that fails": ("DELETE", "/ns/large", [("If-Match", '"1-1"')], b""),
    "PUT that fails": ("PUT", "/ns/large", [("If-None-Match", "*")], b"1"),
    "flat PATCH that fails": ("PATCH", "/ns/large", [("If-Match", '"1-1"')], b'{"a":1}'),
    "nested PATCH that fails": ("PATCH", "/ns/large", [("If-Match", '"1-1"')], b'{"a":{"b":1}}'),
    "JSON Patch": ("PATCH", "/ns/large", [("Content-Type", "application/json-patch+json")], b"[]"),
    "lease": ("PATCH", "/ns/job?lease=90", [("If-Match", "LEASE")], b""),
    "lease that fails": ("PATCH", "/ns/job?lease=90", [("If-Match", '"1-1.1"')], b""),
    "take": ("POST", "/jobs/?lease=90", [], b""),
    "batch": ("POST", "/_/batch", [], batch_body([("PUT", "/ns/x", 1), *[("GET", "/ns/large")] * 10])),
    "batch that fails": (
        *("POST", "/_/batch", []),
        batch_body([("PUT", "/ns/x", 1), ("POST", "/ns/l", 1)])[:-2] + b',{"method":"PUT","path":"/ns/large",'
        b'"headers":{"If-None-Match":"*"},"body":1}]}',
    ),
}
TIMES = 8


@pytest.mark.parametrize("row", KEPT.values(), ids=KEPT)
def test_what_is_kept_for_a_key(
    serving: Served, backing: redis.Redis, row: tuple[str, str, list[tuple[str, str]], bytes]
) -> None:
    """However large the document is that an answer shows."""
    method, target, headers, body = row
    assert serving.request("PUT", "/ns/large", body=LARGE).status == 201
    assert serving.request("PUT", "/ns/job", body=LARGE).status == 201
    lease = ""
    if target.startswith("/ns/job"):
        taken = serving.request("POST", "/ns/?lease=90&limit=2")
        lease = next(job["lease"] for job in json.loads(taken.content)["items"] if job["path"] == "/ns/job")
    for number in range(TIMES + 1):
        assert serving.request("PUT", f"/jobs/{number}", body=LARGE).status == 201
    sent = [(name, value.replace("LEASE", f'"{lease}"')) for name, value in headers]
    bytes_each = len(wire(method, target, [*sent, key("warm")], body))
    requests_each = json.loads(body)["requests"] if target == "/_/batch" else [1]
    serving.request(method, target, [*sent, key("warm")], body)  # a namespace's own keys are there then
    backing.xtrim("kv:{ns}!log", maxlen=0, approximate=False)  # the log may keep the document that was changed

    def ask() -> None:
        for number in range(TIMES):
            answer = serving.request(method, target, [*sent, key(str(number))], body)
            assert answer.status < 500, answer.content[:500]
            backing.xtrim("kv:{ns}!log", maxlen=0, approximate=False)

    assert kept_bytes(backing, ask) <= TIMES * may_leave_bytes(bytes_each, len(requests_each))


def test_the_embedded_server_has_a_limit(directory: Any) -> None:
    """Its memory is limited, and what is full refuses writes and evicts nothing."""
    running = start_kvstore(directory, WEB_CONCURRENCY="1")
    try:
        embedded = connect(f"unix://{directory}/data/valkey.sock")
        assert embedded.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert int(embedded.config_get("maxmemory")["maxmemory"] or 0) > 0
        embedded.close()
    finally:
        running.kill()


# --- A body in tiny pieces (row 10) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [*(pytest.param(size, marks=pytest.mark.slow) for size in (1, 2)), 16, 1000])
def test_a_body_in_chunks_takes_its_size(piece: int) -> None:
    """A body that has come in part, in however small chunks, takes little more memory than its bytes."""
    body_bytes = 256 * 1024
    head = b"PUT /a/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%b\r\n" % (piece, b"x" * piece) * (body_bytes // piece)
    packets = [chunks[at : at + 16_384] for at in range(0, len(chunks), 16_384)]
    readers = []

    def read() -> None:
        reader = Reader()
        for packet in (head, *packets):
            reader.feed(packet)
            assert reader.next() is None
        readers.append(reader)

    assert peak_bytes(read) < 4 * body_bytes
    assert readers


# --- Replies that nobody reads, and connections (row 13) ----------------------------------------------------------------

UNREAD_BYTES = 256 * MEBIBYTE  # of a worker, in all
OWN_BYTES = 96 * MEBIBYTE  # that a worker may need to make them, one after the other


@pytest.mark.slow
def test_unread_replies_have_a_limit_in_all(serving: Served) -> None:
    """Thirty clients ask for 14 MiB each, and read nothing: the worker does not hold all of it."""
    assert serving.request("PUT", "/ns/large", body=LARGE).status == 201
    asked = wire("POST", "/_/batch", body=batch_body([("GET", "/ns/large")] * 14))
    before = resident_bytes(workers(serving))
    most = 0
    with ExitStack() as stack:
        for _ in range(30):
            connection = stack.enter_context(unread(serving.at))
            connection.sendall(asked)
            time.sleep(0.1)
            most = max(most, resident_bytes(workers(serving)) - before)
        time.sleep(1)
        most = max(most, resident_bytes(workers(serving)) - before)
    assert most < UNREAD_BYTES + OWN_BYTES, f"{most / MEBIBYTE:.0f} MiB"


class Silent:
    """A client of redis.asyncio whose Redis never answers."""

    async def execute_command(self, *_: object) -> None:
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        pass


@pytest.mark.slow
def test_the_clients_of_sentinels_do_not_queue_without_limit() -> None:
    """As many commands as the pipeline holds wait for a primary behind Sentinels; the next is refused at once, and says so."""
    command, outcomes = Get(parse_path(b"/ns/a")), []

    async def submit() -> None:
        store = PooledStore(Silent)
        for _ in range(25_000):
            store.submit(command, lambda _, outcome: outcomes.append(outcome), None)
        for _ in range(3):
            await asyncio.sleep(0)
        refused = len(outcomes)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert refused == 5000

    with suppress(asyncio.CancelledError):
        asyncio.run(submit())
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes[:5000])


# --- Namespaces (row 14) ------------------------------------------------------------------------------------------------


NAMESPACE_BYTES = 1536


def test_a_namespace_of_one_document_is_small(serving: Served, backing: redis.Redis) -> None:
    """A thousand namespaces in one batch: less than 1.5 KB each, their places in the root's index included."""

    def write(first: int) -> None:
        body = batch_body([("PUT", f"/n{at}/a", {"a": 1}) for at in range(first, first + 1000)], atomic=False)
        assert serving.request("POST", "/_/batch", body=body).status == 200

    write(0)  # what Redis needs once, for scripts and connections, is there then
    used = backing.info("memory")["used_memory"]
    assert kept_bytes(backing, lambda: write(1000)) < 1000 * NAMESPACE_BYTES
    assert backing.info("memory")["used_memory"] - used < 1000 * NAMESPACE_BYTES


# --- What each kind of request leaves (sweep) -----------------------------------------------------------------------------

LONG_NAME = "n" * 1000
MERGE, JSON_PATCH = ("Content-Type", "application/merge-patch+json"), ("Content-Type", "application/json-patch+json")
MANY_MEMBERS = b"{%b}" % b",".join(b'"%x":1' % at for at in range(9000))


class Asked(NamedTuple):
    """Requests of a kind, each another one: `%d` in the target, in a header field and in the body is its number.

    `requests` is how many requests each of them stands for: those of a batch, and for a take those that put its jobs there.
    """

    method: str
    target: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    requests: int = 1
    status: int = 200

    def numbered(self, number: int) -> bytes:
        """The bytes of a request."""
        target, headers, body = (
            self.target.replace("%d", str(number)),
            [(name, value.replace("%d", str(number))) for name, value in self.headers],
            self.body.replace(b"%d", b"%d" % number),
        )
        return wire(self.method, target, headers, body)


def in_batch(requests: list[tuple[Any, ...]], *, atomic: bool = True, status: int = 200) -> Asked:
    return Asked("POST", "/_/batch", batch_body(requests, atomic=atomic), (), len(requests), status)


# What is there before: /ns/large, a string of 1 MiB; /ns/members, with 9,000 of them; /ns/o, with an object in it; 1,000 jobs
# below /q/ whose names are long; 100 documents below /below%d/, for each number.
KINDS: dict[str, Asked] = {
    "PUT": Asked("PUT", "/ns/a%d", b"1", status=201),
    "PUT to a new namespace": Asked("PUT", "/ns%d/a", b"1", status=201),
    "PUT to a new namespace, long names": Asked("PUT", f"/n%d{LONG_NAME[:480]}/{LONG_NAME[:500]}", b"1", status=201),
    "PUT to the root": Asked("PUT", "/a%d", b"1", status=201),
    "PUT deep down": Asked("PUT", "/ns/%d" + "/x" * 29, b"1", status=201),
    "PUT of many members": Asked("PUT", "/ns/m%d", MANY_MEMBERS, status=201),
    "PUT of many members, not sorted": Asked("PUT", "/ns/m%d", b'{"z":1,' + MANY_MEMBERS[1:], status=201),
    "PUT of a MiB": Asked("PUT", "/ns/l%d", LARGE, status=201),
    "PUT of brackets": Asked("PUT", "/ns/b%d", b"[%b]" % b",".join([b"[]"] * 300_000), status=201),
    "PUT that replaces": Asked("PUT", "/ns/o", b'{"a":%d}'),
    "PUT that is refused": Asked("PUT", "/ns/o", LARGE, (("If-None-Match", "*"),), status=412),
    "PUT that is no JSON": Asked("PUT", "/ns/o%d", LARGE[:-1], status=400),
    "PUT with a key": Asked("PUT", "/ns/k%d", b"1", (("Idempotency-Key", "%d"),), status=201),
    "PUT with a long key": Asked("PUT", "/ns/k%d", b"1", (("Idempotency-Key", "k" * 250 + "%d"),), status=201),
    "PUT with a key, refused": Asked("PUT", "/ns/large", b"1", (("Idempotency-Key", "%d"), ("If-None-Match", "*")), status=412),
    "increment": Asked("PATCH", "/ns/members", b'{"n%d":{".sv":{"increment":1}}}'),
    "touch": Asked("PATCH", "/ns/large?ttl=1%d"),
    "flat patch": Asked("PATCH", "/ns/members", b'{"p%d":1}', (MERGE,)),
    "nested patch": Asked("PATCH", "/ns/members", b'{"p%d":{"a":1}}', (MERGE,)),
    "patch that creates": Asked("PATCH", "/ns/c%d", b'{"a":1}', (MERGE,), status=201),
    "JSON Patch": Asked("PATCH", "/ns/members", b'[{"op":"add","path":"/j%d","value":1}]', (JSON_PATCH,)),
    "JSON Patch that copies": Asked("PATCH", "/ns/copied", b'[{"op":"copy","from":"/k","path":"/c%d"}]', (JSON_PATCH,)),
    "JSON Patch that copies much": Asked(
        "PATCH", "/ns/copied", b'[{"op":"copy","from":"/m","path":"/c%d"}]', (JSON_PATCH,), status=413
    ),
    "POST": Asked("POST", "/ns/log/", b"1", status=201),
    "POST with a delay": Asked("POST", "/ns/log/?delay=1h", b"1", status=201),
    "POST to a new namespace": Asked("POST", "/ns%d/", b"1", status=201),
    "POST to a new namespace, with a delay": Asked("POST", f"/n%d{LONG_NAME[:500]}/?delay=1h", b"1", status=201),
    "take": Asked("POST", "/q/?lease=1h"),
    "take of many": Asked("POST", "/q/?lease=1h&limit=20", requests=20),
    "take of nothing": Asked("POST", "/none%d/?lease=1h", status=204),
    "DELETE": Asked("DELETE", "/ns/d%d", status=204),
    "DELETE of nothing": Asked("DELETE", "/none%d/a", status=404),
    "DELETE of all below": Asked("DELETE", "/below%d/?recursive"),
    "GET": Asked("GET", "/ns/large?%d"),
    "GET of many members": Asked("GET", "/ns/members?%d"),
    "GET of nothing": Asked("GET", "/none%d/a", status=404),
    "HEAD": Asked("HEAD", "/ns/large?%d"),
    "GET with a condition": Asked("GET", "/ns/large", headers=(("If-None-Match", '"1-%d"'),)),
    "header fields": Asked("GET", "/ns/o", headers=tuple((f"X-{at}", "x" * 60 + "%d") for at in range(90))),
    "a long query": Asked("GET", "/ns/o?%d" + "&x" * 3000),
    "listing": Asked("GET", "/q/?limit=1000&%d"),
    "listing of nothing": Asked("GET", "/none%d/"),
    "NDJSON": Asked("GET", "/q/?%d", headers=(("Accept", "application/x-ndjson"),)),
    "listing of the root": Asked("GET", "/?list&%d"),
    "OPTIONS": Asked("OPTIONS", "/ns/%d", status=204),
    "an unknown method": Asked("BREW", "/ns/%d", status=405),
    "a bad path": Asked("GET", "/ns/%00%d", status=400),
    "a batch of PUTs": in_batch([("PUT", f"/ns/%d-{at}", {"a": at}) for at in range(200)]),
    "a batch of PUTs in new namespaces": in_batch([("PUT", f"/%d-{at}/a", 1) for at in range(100)], atomic=False),
    "a batch that is refused": in_batch(
        [*[("PUT", f"/ns/%d-{at}", 1) for at in range(100)], ("DELETE", "/ns/none")], status=409
    ),
    "a batch of GETs": in_batch([("GET", "/ns/large")] * 10),
    "a batch of anything": in_batch(
        [("PATCH", "/ns/members", {"b%d": {"a": 1}}), ("POST", "/ns/log/", 1), ("GET", "/ns/o"), ("DELETE", "/ns/none")],
        atomic=False,
    ),
    "a batch that is no JSON": Asked("POST", "/_/batch", b'{"requests":[' + LARGE[:-100], status=400),
}  # fmt: skip
NUMBERS = range(10, 26)
WARM = range(10)
DONE_S = 30  # until a worker has let go of a response that its client has


@pytest.fixture
def looped(started: Callable[[str], Running], backing: redis.Redis) -> Iterator[InProcess]:
    """The production server on an event loop of this process."""
    running = InProcess(started("redis").url, {"KVSTORE_LOG_LENGTH": "100"})
    yield running
    running.stop()


def prepare(ask: Callable[[Asked], None], kind: Asked) -> None:
    """Store what requests of a kind are about."""
    put: dict[str, Any] = {"status": 201}
    ask(Asked("PUT", "/ns/large", LARGE, **put))
    ask(Asked("PUT", "/ns/members", MANY_MEMBERS, **put))
    ask(Asked("PUT", "/ns/o", b'{"a":{"b":1}}', **put))
    ask(Asked("PUT", "/ns/copied", b'{"k":"%b","m":"%b"}' % (b"x" * 8000, b"x" * 100_000), **put))
    names = [f"/q/{at:04}{LONG_NAME[:500]}" for at in range(1000)]
    if kind.target.startswith("/q/"):
        for first in range(0, 1000, 500):
            ask(in_batch([("PUT", name, 1) for name in names[first : first + 500]]))
    for number in (*WARM, *NUMBERS) if kind.method == "DELETE" else ():
        ask(Asked("PUT", f"/ns/d{number}", b"1", **put))
        if "below" in kind.target:
            ask(in_batch([("PUT", f"/below{number}/{at}", 1) for at in range(100)]))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_request_leaves(looped: InProcess, backing: redis.Redis, kind: Asked) -> None:
    """In Redis, but for the change log, which may keep what was changed; and in the worker, among all that Python keeps."""
    wire_to = looped.connect(limit_s=60)

    def ask(asked: Asked, number: int = 0) -> None:
        wire_to.send(asked.numbered(number))
        answer = read(wire_to.socket, asked.method)
        assert answer.status == asked.status, answer.content[:300]

    prepare(ask, kind)
    tracemalloc.start()
    try:
        for number in WARM:
            ask(kind, number)
        trim_logs(backing)
        stored_bytes, traced_bytes = dataset_bytes(backing), python_bytes()
        for number in NUMBERS:
            ask(kind, number)
        may_leave = sum(may_leave_bytes(len(kind.numbered(number)), kind.requests) for number in NUMBERS)
        wait_until(lambda: python_bytes() - traced_bytes <= may_leave, DONE_S)
    finally:
        tracemalloc.stop()
        wire_to.close()
    trim_logs(backing)
    assert dataset_bytes(backing) - stored_bytes <= may_leave


def python_bytes() -> int:
    """What Python keeps of what it has allocated since it began to trace that."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def trim_logs(raw: redis.Redis) -> None:
    """Take everything out of the change logs."""
    for log in raw.scan_iter(match="*!log", count=1000):
        raw.xtrim(log, maxlen=1, approximate=False)
