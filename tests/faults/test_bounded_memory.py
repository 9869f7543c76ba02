"""What a request leaves behind, in Redis and in a worker, is at most 16 times the bytes it sent plus 16 KiB."""

import asyncio
import json
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import redis

from kvstore.commands.documents import Get
from kvstore.core.errors import StoreUnavailable
from kvstore.core.paths import parse_path
from kvstore.serving.http1 import Reader
from kvstore.stores.pooled import PooledStore
from tests.support.asking import batch_body
from tests.support.measures import kept_bytes, may_leave_bytes, peak_bytes, resident_bytes, workers
from tests.support.serving import Served, start_kvstore, wire
from tests.support.stores import connect
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
    "take": ("POST", "/jobs/?lease=1", [], b""),
    "batch": ("POST", "/_/batch", [], batch_body([("PUT", "/ns/x", 1), *[("GET", "/ns/large")] * 10])),
    "batch that fails": (
        *("POST", "/_/batch", []),
        batch_body([("PUT", "/ns/x", 1), ("POST", "/ns/l", 1)])[:-2] + b',{"method":"PUT","path":"/ns/large",'
        b'"headers":{"If-None-Match":"*"},"body":1}]}',
    ),
}
TIMES = 8


@pytest.mark.xfail(strict=True, reason="row 3")
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
def test_the_clients_of_clusters_do_not_queue_without_limit() -> None:
    """As many commands as the pipeline holds wait for a cluster; the next is refused at once, and says so."""
    command, outcomes = Get(parse_path(b"/ns/a")), []

    async def submit() -> None:
        store = PooledStore(Silent)
        for _ in range(25_000):
            store.submit(command, lambda _, outcome: outcomes.append(outcome), None)
        for _ in range(3):
            await asyncio.sleep(0)
        refused = len(outcomes)
        for task in store._tasks:
            task.cancel()
        await asyncio.gather(*store._tasks, return_exceptions=True)
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
