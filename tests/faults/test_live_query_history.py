"""Streams with conditions, replayed, are what a query finds: through lost connections, kills, and logs that are trimmed."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.faults.test_stream_history import TROUBLE, ask, blocks, close
from tests.support.naive_query import spelled
from tests.support.questions import DOCUMENTS, Question, query_string, questions
from tests.support.serving import Served, start_kvstore
from tests.support.stores import Running

Drawn = TypeVar("Drawn")

WRITERS, WRITES_S = 3, 2.0
ALL_S = 20.0  # within which each kind of event has come, on a busy machine
KINDS = {"snapshot", "put", "patch", "delete", "expire", "leave", "reset", "resumed"}
PAUSE_S = 0.003  # between the writes of one writer
LOG_LENGTH = 50  # of which Redis keeps up to a hundred more: less than is written while a reader is away for long
AWAY_S = (0.0, 0.1, 0.9, 2.0)
TTL_S = 1
QUIET_S = TTL_S + 2.5  # until all that was to expire is told to have
HEARD_S = 40.0
NAMES = ["a", "b", "c", "%C3%A9", "a/b", "a/c", "a/b/c"]
LAST = "/ns/last"


class Follower:
    """A reader with conditions: the documents that it has, by name, after all that it was told."""

    def __init__(self, at: tuple[str, int], target: str) -> None:
        self.target = target
        self.documents: dict[str, Any] = {}
        self.kinds: Counter[str] = Counter()
        self.last_tag = ""
        self._at = at
        self._last_id = ""
        self._snapshot: dict[str, Any] = {}

    async def follow(self, is_rough: Callable[[], bool]) -> None:
        """Follow until cancelled; while it is rough, connections are lost, and now and then the reader is away for long."""
        while True:
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(random.uniform(0.02, 0.5) if is_rough() else None):
                    await self._connect()
            await asyncio.sleep(random.choice(AWAY_S) if is_rough() else 0.05)

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_connection(*self._at, limit=2**24)
        try:
            came_from = f"Last-Event-ID: {self._last_id}\r\n" if self._last_id else ""
            writer.write(f"GET {self.target} HTTP/1.0\r\nAccept: text/event-stream\r\n{came_from}\r\n".encode())
            if not (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"):
                return
            self._snapshot = {}
            has_resumed = bool(self._last_id)
            async for fields in blocks(reader):
                if "data" in fields:
                    self.kinds["resumed"] += has_resumed and fields["event"] != "reset"
                    has_resumed = False
                    self._take(fields["event"], spelled(fields["data"]))
                self._last_id = fields.get("id", self._last_id)
        finally:
            await close(writer)

    def _take(self, kind: str, event: Any) -> None:
        self.kinds[kind] += 1
        if kind == "snapshot":
            self._snapshot |= {item["path"]: item["value"] for item in event["value"]["items"]}
            if not event.get("more"):
                self.documents, self._snapshot = self._snapshot, {}
        elif kind in ("put", "patch"):
            self.documents[event["path"]] = event["value"]
        elif kind != "reset":
            assert event["value"] is None
            self.documents.pop(event["path"], None)
        if event.get("path") == LAST:
            self.last_tag = event["etag"]


async def write(at: tuple[str, int], documents: list[str], goes_on: Callable[[], bool]) -> None:
    """Put, patch, append, delete, and let expire; what came of a write is not asked."""
    while goes_on():
        path = f"/ns/{random.choice(NAMES)}"
        requests = [("PUT", path), ("PATCH", path), ("PATCH", path), ("PUT", f"{path}?ttl={TTL_S}"), ("DELETE", path)]
        requests += [("POST", "/ns/"), ("POST", f"/ns/a/?ttl={TTL_S}"), ("DELETE", "/ns/a/?recursive")]
        method, target = random.choice(requests)
        body = b"" if method == "DELETE" else random.choice(documents).encode()
        with suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(10):
                await ask(at, method, target, body)
        await asyncio.sleep(PAUSE_S)


async def play(serving: Served, raw: redis.Redis, kind: str, documents: list[str], targets: list[str]) -> list[Follower]:
    """Readers that were told everything, in the end."""
    followers = [Follower(serving.at, target) for target in targets]
    began = time.monotonic()

    def goes_on() -> bool:
        since_s = time.monotonic() - began
        return since_s < WRITES_S or (
            since_s < ALL_S and not set().union(*(each.kinds for each in followers)) >= KINDS - {"expire"}
        )

    following = [asyncio.create_task(each.follow(goes_on)) for each in followers]
    trouble = asyncio.ensure_future(TROUBLE[kind][0](serving, raw))
    await asyncio.gather(*(write(serving.at, documents, goes_on) for _ in range(WRITERS)))
    trouble.cancel()
    await ask(serving.at, "PUT", f"/ns/soon?ttl={TTL_S}", b"1")
    await asyncio.sleep(QUIET_S)
    given_up_at = time.monotonic() + HEARD_S
    for number in range(100):  # again for who comes back later, with a snapshot
        await ask(serving.at, "PUT", LAST, b"%d" % number)
        await asyncio.sleep(0.3)
        tag = serving.request("GET", LAST).headers["ETag"]
        if all(each.last_tag == tag and each.documents == found_by(serving, each.target) for each in followers):
            break
        assert time.monotonic() < given_up_at, [each.target for each in followers if each.last_tag != tag]
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    return followers


def found_by(serving: Served, target: str) -> dict[str, Any]:
    """The documents that a query finds, by path."""
    found = spelled(serving.request("GET", f"{target}&limit=1000").content)["items"]
    return {item["path"]: item["value"] for item in found}


def target_of(question: Question, *, recursive: bool) -> str:
    """A question as the target of a stream."""
    return f"/ns/?{query_string(question.parameters_of_a_stream())}{'&recursive' * recursive}"


def drawn(strategy: st.SearchStrategy[Drawn], count: int) -> list[Drawn]:
    """So many values; one list of as many would be made of the simplest ones."""
    found: list[Drawn] = []

    @settings(max_examples=count, derandomize=False, database=None, phases=[Phase.generate])
    @given(strategy)
    def draw(value: Drawn) -> None:
        found.append(value)

    draw()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["workers killed", "connections to Redis killed"])
def test_a_stream_is_what_its_query_finds(kind: str, directory: Path, started: Callable[[str], Running]) -> None:
    """Random conditions on random documents, of readers that come and go; each has in the end what a query finds then."""
    store = started("redis")
    store.redis.flushall()
    serving = start_kvstore(directory, REDIS_URL=store.url, KVSTORE_LOG_LENGTH=str(LOG_LENGTH))
    documents, asked = drawn(DOCUMENTS, 60), drawn(questions(), 20)
    targets = [target_of(question, recursive=number % 2 == 0) for number, question in enumerate(asked)]
    kinds: Counter[str] = Counter()
    try:
        for follower in asyncio.run(play(serving, store.redis, kind, documents, targets)):
            assert follower.documents == found_by(serving, follower.target), follower.target
            kinds.update(follower.kinds)
    finally:
        serving.kill()
    print(kind, dict(kinds))
    assert kinds.keys() >= KINDS
