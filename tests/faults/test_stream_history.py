"""Streams that are opened again and again while others write tell everything once: held against the change log, event by event.

KVSTORE_LIVE_STREAMS=1000 opens so many for each kind of trouble. Readers speak HTTP/1.0, so that what comes is the stream.
"""

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.asking import Entry, entries, unread_entries
from tests.support.clients import Answer, Headers
from tests.support.serving import Served, start_kvstore
from tests.support.serving import wire as request_bytes
from tests.support.stores import Running, connect
from tests.support.streams import Event

STREAMS = int(os.environ.get("KVSTORE_LIVE_STREAMS", "20"))  # for each kind of trouble
AT_ONCE = 40 if STREAMS > 40 else 10
WRITES_PER_S = 200
WRITERS = 4
TARGETS = ["/busy/", "/busy/", "/busy/sub/", "/busy/d1", "/busy/sub/d3"]
NAMES = ["d0", "d1", "d2", "sub/d3", "sub/d4"]
LIFE_S = (0.3, 1.5)
FIRST_S = 1.0  # that a connection may last until the first event, on a busy machine
HEARD_S = 30.0  # within which every reader hears something
MOST_MEANWHILE = 100  # changes between the place of a snapshot and its listing


class Subscriber:
    """One reader: what it was told since its snapshot, however often its connection broke."""

    def __init__(self, at: tuple[str, int], target: str) -> None:
        self.target = target
        self.events: list[Event] = []
        self.last_id = ""
        self.connections = 0
        self.refused: Counter[int] = Counter()
        self._at = at

    async def follow(self, until: float, cut_s: Callable[[], float]) -> None:
        """Follow until then, or until something was heard, for so long on each connection; come back at once where it ends."""
        given_up_at = time.monotonic() + HEARD_S
        while (left_s := until - time.monotonic()) > 0 or (not self.events and time.monotonic() < given_up_at):
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(min(cut_s(), left_s if self.events else max(left_s, FIRST_S))):
                    await self._connect()
            await asyncio.sleep(0.01)

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_connection(*self._at, limit=2**24)
        try:
            came_from = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id else ""
            writer.write(f"GET {self.target}?recursive HTTP/1.0\r\nAccept: text/event-stream\r\n{came_from}\r\n".encode())
            status = int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])
            if status != 200:
                self.refused[status] += 1
                return
            self.connections += 1
            async for fields in blocks(reader):
                self.last_id = fields.get("id", self.last_id)
                if "data" in fields:
                    self.events.append(Event(fields["event"], fields.get("id", ""), json.loads(fields["data"])))
        finally:
            await close(writer)


async def blocks(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, str]]:
    """The blocks of a stream, each as its fields."""
    while True:
        try:
            block = await reader.readuntil(b"\n\n")
        except asyncio.IncompleteReadError:
            return
        yield dict(line.partition(": ")[::2] for line in block.decode().rstrip("\n").split("\n"))


async def write(at: tuple[str, int], writer: int, counts: Counter[int], stopped: asyncio.Event) -> None:
    """Put, patch, append, delete, and let expire, until it is stopped; what came of a write is not asked."""
    number, begun = 0, time.monotonic()
    while not stopped.is_set():
        number += 1
        name = random.choice(NAMES)
        requests = [
            ("PUT", f"/busy/{name}", b'{"n":%d,"by":%d}' % (number, writer)),
            ("PUT", f"/busy/{name}", b'{"n":%d,"by":%d}' % (number, writer)),
            ("PATCH", f"/busy/{name}", b'{"p":%d}' % number),
            ("PUT", f"/busy/{name}?ttl=1", b"[%d]" % number),
            ("POST", "/busy/sub/?ttl=2", b'{"n":%d}' % number),
            ("DELETE", f"/busy/{name}", b""),
        ]
        with suppress(OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(10):
                counts[(await ask(at, *random.choice(requests))).status] += 1
        await asyncio.sleep(begun + number * WRITERS / WRITES_PER_S - time.monotonic())


async def ask(at: tuple[str, int], method: str, target: str, body: bytes = b"") -> Answer:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection(*at)
    try:
        writer.write(request_bytes(method, target, [("Connection", "close")], body))
        head = await reader.readuntil(b"\r\n\r\n")
        return Answer(int(head.split(b" ", 2)[1]), Headers([]), await reader.read())
    finally:
        await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close a connection, and wait until it is closed."""
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


# --- Trouble ------------------------------------------------------------------------------------------------------------


async def no_trouble(_: Served, __: redis.Redis) -> None:
    await asyncio.Event().wait()


async def kill_workers(serving: Served, _: redis.Redis) -> None:
    """kill -9 of one worker after the other."""
    while True:
        await asyncio.sleep(1.0)
        workers = [pid for pid in serving.processes() if pid != serving.process.pid]
        if len(workers) == 2:
            os.kill(random.choice(workers), signal.SIGKILL)


async def kill_connections_to_redis(_: Served, raw: redis.Redis) -> None:
    """CLIENT KILL of all of them."""
    while True:
        await asyncio.sleep(0.5)
        raw.client_kill_filter(_type="normal", skipme=True)


def stays() -> float:
    return 1000.0


def drops() -> float:
    return random.uniform(0.01, 0.4)


TROUBLE: dict[str, tuple[Callable[[Served, redis.Redis], Awaitable[None]], Callable[[], float]]] = {
    "none": (no_trouble, stays),
    "connections dropped": (no_trouble, drops),
    "workers killed": (kill_workers, stays),
    "connections to Redis killed": (kill_connections_to_redis, stays),
}


async def expiring(at: tuple[str, int]) -> list[str]:
    """The documents that were written for 2 s at most. Who lists them finds those that have expired, and has the log say so."""
    listed = json.loads((await ask(at, "GET", "/busy/?recursive&limit=1000")).body)
    return [item["path"] for item in listed["items"] if item["ttl"] <= 2]


def has_heard_last(subscriber: Subscriber) -> bool:
    """Whether a subscriber was told the last change of those that concern it."""
    paths = [f"/busy/{name}" for name in NAMES if concerns(subscriber.target, f"/busy/{name}")]
    last = subscriber.events[-1].data if subscriber.events else {}
    return (last.get("path"), last.get("value")) == (paths[-1], "last")


async def run(
    serving: Served, raw: redis.Redis, make_trouble: Any, cut_s: Callable[[], float]
) -> tuple[list[Subscriber], list[Subscriber], Counter[int]]:
    """Followers that came and went, followers that stayed to the end, and how many writes were answered how."""
    counts: Counter[int] = Counter()
    begun = time.monotonic()
    stopped = asyncio.Event()
    writers = [asyncio.create_task(write(serving.at, number, counts, stopped)) for number in range(WRITERS)]
    trouble = asyncio.create_task(make_trouble(serving, raw))
    await asyncio.sleep(0.3)
    came: list[Subscriber] = []

    async def open_again_and_again() -> None:
        while len(came) < STREAMS:
            subscriber = Subscriber(serving.at, random.choice(TARGETS))
            came.append(subscriber)
            await subscriber.follow(time.monotonic() + random.uniform(*LIFE_S), cut_s)

    async def stay() -> list[Subscriber]:
        staying = [Subscriber(serving.at, target) for target in TARGETS]
        far = time.monotonic() + 1000
        tasks = [asyncio.create_task(subscriber.follow(far, cut_s)) for subscriber in staying]
        await asyncio.gather(*(open_again_and_again() for _ in range(AT_ONCE)))
        trouble.cancel()
        stopped.set()
        await asyncio.gather(*writers)
        print(f"{counts.total() / (time.monotonic() - begun):.0f} writes a second;", end=" ")
        async with asyncio.timeout(HEARD_S):
            while await expiring(serving.at):
                await asyncio.sleep(0.2)
        for name in NAMES:
            await ask(serving.at, "PUT", f"/busy/{name}", b'"last"')
        async with asyncio.timeout(HEARD_S):
            while not all(map(has_heard_last, staying)):
                await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return staying

    return came, await stay(), counts


# --- What they were told, and what is so --------------------------------------------------------------------------------


def order(place: str) -> tuple[int, int]:
    ms, _, count = place.partition("-")
    return int(ms), int(count)


def concerns(target: str, path: str) -> bool:
    return path.startswith(target) if target.endswith("/") else path == target


def told(entry: Entry) -> Event:
    """The event that an entry of the log is to be; its TTL is told in whole seconds."""
    text = entry.text
    value = None if text is None else json.loads(text)
    ttl_s = None if entry.ttl_ms is None else max(1, -(-entry.ttl_ms // 1000))
    data = {"path": f"/busy/{entry.name}", "etag": f'"{entry.id}"', "ttl": ttl_s, "value": value}
    return Event("put" if entry.op == "post" else entry.op, entry.id, data)


class Witness(threading.Thread):
    """Sees all that is ever in the log of a namespace; what is erased can be read for a moment more."""

    def __init__(self, raw: redis.Redis) -> None:
        super().__init__(daemon=True)
        self._raw = raw
        self._seen: dict[str, Entry] = {}
        self._last = "-"
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.2):
            with suppress(redis.ConnectionError):  # killed like the others
                self._look()

    def stop(self) -> list[Event]:
        """All changes, in their order."""
        self._stopped.set()
        self.join()
        self._look()
        return [told(entry) for entry in sorted(self._seen.values(), key=lambda entry: order(entry.id))]

    def _look(self) -> None:
        for entry in (*unread_entries(self._raw, "busy"), *entries(self._raw, "busy", self._last)):
            self._seen[entry.id] = entry
            self._last = f"({entry.id}"


def check(subscriber: Subscriber, log: list[Event], kept: set[str]) -> int:
    """A snapshot of what was so at its place or just after, then exactly the changes since: how many.

    Whoever comes back is not told what was erased meanwhile, for its document is gone: what the log has not `kept`.
    """
    if not subscriber.events:
        return 0
    first, *changes = subscriber.events
    assert first.name == "snapshot", "and no reset"
    place = order(first.id)
    mine = [event for event in log if concerns(subscriber.target, event.data["path"])]
    since = [event for event in mine if order(event.id) > place]
    until = order(changes[-1].id) if changes else place
    ids = {event.id for event in changes}
    assert changes == [event for event in since if order(event.id) <= until and (event.id in kept or event.id in ids)]
    assert subscriber.connections > 1 or changes == [event for event in since if order(event.id) <= until]
    state = replayed({}, [event for event in mine if order(event.id) <= place])
    if subscriber.target.endswith("/"):
        snapshot = snapshot_of(subscriber)
        assert any(is_listed(snapshot, state, since, count) for count in range(min(len(since), MOST_MEANWHILE) + 1))
    elif first.data["value"] != state.get(subscriber.target):
        assert first.data["value"] is None
        assert since[0].name == "expire"
    return len(changes)


def snapshot_of(subscriber: Subscriber) -> dict[str, Any]:
    value = subscriber.events[0].data["value"]
    if subscriber.target.endswith("/"):
        return {item["path"]: item["value"] for item in value["items"]}
    return {} if subscriber.events[0].data["etag"] is None else {subscriber.target: value}


def is_listed(snapshot: dict[str, Any], state: dict[str, Any], since: list[Event], count: int) -> bool:
    """Whether that is the listing after so many changes more; what has expired and is not in the log yet is not listed."""
    now = replayed(state, since[:count])
    unlisted = now.keys() - snapshot.keys()
    nexts = {event.data["path"]: event.name for event in reversed(since[count:])}
    return snapshot.items() <= now.items() and all(nexts.get(path) == "expire" for path in unlisted)


def replayed(state: dict[str, Any], events: list[Event]) -> dict[str, Any]:
    state = dict(state)
    for event in events:
        if event.name in ("delete", "expire"):
            state.pop(event.data["path"], None)
        else:
            state[event.data["path"]] = event.data["value"]
    return state


@pytest.mark.slow
@pytest.mark.parametrize("kind", TROUBLE)
def test_no_gap_and_no_repeat(
    kind: str, directory: Path, started: Callable[[str], Running], record_property: Callable[..., None]
) -> None:
    """Every change once and in order, whatever breaks."""
    store = started("redis")
    store.redis.flushall()
    serving = start_kvstore(directory, REDIS_URL=store.url, KVSTORE_LOG_LENGTH="1000000")
    try:
        witness = Witness(connect(store.url))
        witness.start()
        came, stayed, counts = asyncio.run(run(serving, store.redis, *TROUBLE[kind]))
        log = witness.stop()
        kept = {entry.id for entry in entries(store.redis, "busy")}
        assert kept < {event.id for event in log}
        events = sum(check(subscriber, log, kept) for subscriber in came + stayed)
        listed = json.loads(serving.request("GET", "/busy/?recursive&limit=1000").content)
        stored = {item["path"]: item["value"] for item in listed["items"]}
    finally:
        serving.kill()
    for subscriber in stayed:
        mine = [event for event in log if concerns(subscriber.target, event.data["path"])]
        assert subscriber.events[-1] == mine[-1]
        now = {path: value for path, value in stored.items() if concerns(subscriber.target, path)}
        assert replayed(snapshot_of(subscriber), subscriber.events[1:]) == now
    connections = sum(subscriber.connections for subscriber in came + stayed)
    refused = sum((subscriber.refused for subscriber in came + stayed), Counter())
    assert all(subscriber.events for subscriber in came)
    record_property("events of streams", events)
    print(f"{kind}: {len(came)} streams on {connections} connections, {dict(refused)} refused,", end=" ")
    print(f"{events} events held against {len(log)} changes; writes by status: {dict(counts)}")
