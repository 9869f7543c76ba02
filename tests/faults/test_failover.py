"""A primary is killed, or hangs, while everything runs: writers, streams, a queue, presence and tasks. A replica is promoted.

Afterwards what each client was told is held against what is stored. The primary has two replicas, so that one is left after the
failover for writes that wait for it (KVSTORE_REPLICAS=1). `make test-all` runs two of the cases.
"""

import http.client
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvstore.core.errors import StoreUnavailable
from kvstore.tasks.results import DelayedResult
from tests.support import worked
from tests.support.rounds import SEED, drawn
from tests.support.sentinels import Sentinels
from tests.support.serving import Served, start_kvstore
from tests.support.stores import FAILS_OVER, connect, start_cluster, wait_until
from tests.support.streams import Event, Reader, open_reader
from tests.support.workers import WORKED, Workers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("real_limits")]

ANSWER_S = 6.0  # the contract's limit for a response
NOTICED_S = 1.0  # in which it notices that a Redis that hangs was replaced; before, it may show what that one still says
BACK_S = 2.0  # in which the service serves again
LAST_S = 10.0  # how far a replica may be behind on a busy machine: what is acknowledged so shortly before may be lost
AWAY_S = 30.0  # the contract's limit for who has left without a word
THERE_S = 10.0  # who holds is there again: holds are renewed every 9 s
LIMIT_S = 60.0  # for what has no promise, on a busy machine
LATE_S = 10.0  # that a machine which is busy with other tests may take longer than is promised

LEASE_S = 1
MOST_TAKES = 3
BALLAST = "ballast:{notes}"
BALLAST_BYTES = 32 * 1024 * 1024  # more than the kernel keeps for two connections
DIES = 7  # every such job and task is never done

EVERY = [(kind, fault) for kind in ("sentinel", "cluster") for fault in ("killed", "hung")]
ROUND = EVERY[SEED % 2 :: 2]  # every second round of `make faults` kills, the others halt


# --- What fails ------------------------------------------------------------------------------------------------------------


class Failing(NamedTuple):
    """A primary that fails: its process and port, and those of its replicas. `replacement()` is the port of its successor."""

    url: str
    pid: int
    port: int
    replicas: list[int]
    replacement: Callable[[], int | None]

    def is_replicated(self) -> bool:
        """Whether all replicas have what was written just now: they follow, and are not in the middle of their first copy."""
        with connect(f"redis://127.0.0.1:{self.port}") as client:
            client.set(BALLAST, b"")
            return bool(client.wait(len(self.replicas), 100) == len(self.replicas))

    def is_replaced(self, replicas: int) -> bool:
        """Whether a successor is there, and has so many replicas that follow it."""
        port = self.replacement()
        if port is None:
            return False
        with connect(f"redis://127.0.0.1:{port}") as client:
            followers = [each for name, each in client.info("replication").items() if re.fullmatch(r"slave\d+", name)]
        return [each["state"] for each in followers].count("online") >= replicas


@contextmanager
def behind_sentinels(directory: Path) -> Iterator[Failing]:
    """A primary with two replicas."""
    with ExitStack() as stack:
        sentinels = Sentinels(directory / "redis", stack, replicas=2)
        first = sentinels.primary()

        def replacement() -> int | None:
            (port, *others) = set(sentinels.primaries())
            return port if port != first and not others and role(port) == "master" else None

        pids = {port: process.pid for port, process in sentinels.processes.items()}
        yield Failing(sentinels.url, pids.pop(first), first, list(pids.values()), replacement)


@contextmanager
def in_cluster(directory: Path) -> Iterator[Failing]:
    """The node that has the namespaces of this test."""
    cluster = start_cluster(directory / "redis", *FAILS_OVER, replicas_of=[1, 1])
    ports = list(cluster.pids)
    assert {cluster.redis.keyslot(f"kv:{{{name}}}") * 3 // 16_384 for name in ("notes", "people", "jobs", "tasks")} == {1}

    def replacement() -> int | None:
        return next((port for port in ports[3:] if role(port) == "master"), None)

    pids = list(cluster.pids.values())
    try:
        yield Failing(cluster.url, pids[1], ports[1], pids[3:], replacement)
    finally:
        cluster.stop()


def role(port: int) -> str:
    """What a Redis says that it is."""
    with connect(f"redis://127.0.0.1:{port}") as client:
        return str(client.info("replication")["role"])


KINDS = {"sentinel": behind_sentinels, "cluster": in_cluster}


# --- Who asks --------------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A request, when it was sent and when it was answered; it may wait for so long."""

    request: str
    status: int
    began: float
    ended: float
    wait_s: float = 0


class Crowd:
    """Threads that do something until they are stopped; `asked` is all that they have asked for."""

    def __init__(self, served: Served, seed: int) -> None:
        self.at = served.at
        self.asked: list[Asked] = []
        self.stopped = threading.Event()
        self._seed = seed
        self._threads: list[threading.Thread] = []
        self._failed: list[BaseException] = []

    def start(self, act: "Callable[[Client, random.Random], object]") -> None:
        """Let somebody act."""
        self._seed += 1
        chance = drawn(self._seed)

        def run() -> None:
            try:
                with closing(Client(self)) as client:
                    act(client, chance)
            except BaseException as error:
                self._failed.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    @property
    def has_failed(self) -> bool:
        """Whether somebody has raised something."""
        return bool(self._failed)

    def check(self) -> None:
        """Raise it."""
        for error in self._failed:
            raise error

    def stop(self) -> None:
        """Wait for all of them."""
        self.stopped.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        self.check()


class Client:
    """Somebody with one connection."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self._connection = http.client.HTTPConnection(*crowd.at, timeout=LIMIT_S)
        self.began = 0.0  # when the last request was sent

    def ask(
        self, method: str, target: str, body: object = None, *, match: str = "", key: str = "", wait_s: float = 0
    ) -> tuple[int, Any]:
        """The status and the JSON of a response."""
        named = {"If-Match": f'"{match}"' * bool(match), "Idempotency-Key": f'"{key}"' * bool(key)}
        self.began = began = time.monotonic()
        text = None if body is None else json.dumps(body)
        self._connection.request(method, target, text, {name: value for name, value in named.items() if value})
        answer = self._connection.getresponse()
        content = answer.read()
        self.crowd.asked.append(Asked(f"{method} {target}", answer.status, began, time.monotonic(), wait_s))
        return answer.status, json.loads(content) if content else None

    def open(self, target: str, fields: dict[str, str]) -> Reader:
        """A stream, or the response in its place."""
        began = time.monotonic()
        reader = open_reader(self.crowd.at, target, fields)
        self.crowd.asked.append(Asked(f"follow {target}", reader.status, began, time.monotonic()))
        return reader

    def until(self, wanted: int, method: str, target: str, body: object = None, key: str = "") -> Any:
        """The JSON of the response with this status; 503 is asked again."""
        end = time.monotonic() + LIMIT_S
        while (answer := self.ask(method, target, body, key=key))[0] == 503:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert answer[0] == wanted, answer
        return answer[1]

    def items(self, container: str) -> list[Any]:
        """All items of a container."""
        found: list[Any] = []
        more: str | None = f"{container}?recursive&limit=1000"
        while more:
            page = self.until(200, "GET", more)
            found += page["items"]
            more = page.get("next")
        return found

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


# --- Documents -------------------------------------------------------------------------------------------------------------


@dataclass
class Note:
    """A document: `maybe` is what it may be, None for nothing. `at` is when the write was sent that was acknowledged last."""

    maybe: set[int | None] = field(default_factory=lambda: {None})
    at: float = 0.0


class Writing:
    """Writers of documents, each of which has one writer."""

    def __init__(self) -> None:
        self.notes: dict[str, Note] = defaultdict(Note)
        self.acknowledged = 0

    def write(self, name: str, client: Client, chance: random.Random) -> None:
        """PUT new documents, and sometimes PUT or DELETE one of the last."""
        mine: list[str] = []
        number = 0
        while not client.crowd.stopped.is_set():
            number += 1
            what = chance.random()
            path = f"/notes/{name}/{number}" if what < 0.7 or not mine else chance.choice(mine[-20:])
            mine += [path] if path.endswith(f"/{number}") else []
            value = None if what > 0.85 and path != mine[-1] else number
            began, note = time.monotonic(), self.notes[path]
            status, _ = client.ask("DELETE" if value is None else "PUT", path, value)
            if status == 503:
                note.maybe.add(value)
            else:
                assert status in (200, 201, 204, 404), status
                note.maybe, note.at = {value}, began
                self.acknowledged += 1
            time.sleep(chance.random() * 0.01)

    def lost(self, stored: dict[str, Any]) -> dict[str, float]:
        """When the last write was sent that was acknowledged, of those documents that are not what they must be."""
        return {path: note.at for path, note in self.notes.items() if stored.get(path) not in note.maybe}


# --- Streams and presence --------------------------------------------------------------------------------------------------


class Follower:
    """Follows a container, and comes back with the last id whenever its connection ends: by itself, or after `life_s`."""

    def __init__(self, life_s: float = LIMIT_S) -> None:
        self._life_s = life_s
        self._told: tuple[list[Event], Reader | None] = [], None  # by former connections, and the present one
        self._has_left = threading.Event()

    def follow(self, target: str, client: Client, _: random.Random) -> None:
        """Follow until leave()."""
        while not self._has_left.is_set():
            last = [event.id for event in self.events if event.id][-1:]
            reader = client.open(target, {"Last-Event-ID": last[0]} if last else {})
            assert reader.status in (200, 503), reader.body
            if reader.status == 200:
                self._told = self.events, reader
                end = time.monotonic() + self._life_s
                while not (reader.has_ended or self._has_left.wait(0.02) or time.monotonic() > end):
                    pass
                reader.close()
                self._told = self.events, None
            self._has_left.wait(0.1)

    def leave(self) -> None:
        """Close the connection, and do not come back."""
        self._has_left.set()

    @property
    def events(self) -> list[Event]:
        """All that came until now, over all connections."""
        before, reader = self._told
        return before + (list(reader.events) if reader else [])

    @property
    def resets(self) -> int:
        """How often it was told that something was lost."""
        return sum(event.name == "reset" for event in self.events)

    def state(self) -> dict[str, Any]:
        """What somebody has who applies all events; each must be after the last."""
        state: dict[str, Any] = {}
        last, is_partial = (0, 0), False
        for event in self.events:
            if event.name == "reset":
                last, is_partial = (0, 0), False
            elif event.name == "snapshot":
                state = state if is_partial else {}
                state |= {item["path"]: item["value"] for item in event.data["value"]["items"]}
                is_partial = event.data.get("more", False)
                last = last if is_partial else order(event.id)
            else:
                assert last < order(event.id), "a change came twice, or late"
                last = order(event.id)
                state.pop(event.data["path"], None)
                if event.name in ("put", "patch"):
                    state[event.data["path"]] = event.data["value"]
        return state


def has_all(follower: Follower, stored: dict[str, Any]) -> bool:
    """Whether it has what is stored."""
    return follower.state() == stored


def order(position: str) -> tuple[int, int]:
    """What positions in a change log are compared by."""
    ms, _, count = position.partition("-")
    return int(ms), int(count)


class People:
    """Those who hold a document in /people/ for as long as they follow it."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self.followers: dict[str, Follower] = {}

    def come(self, name: str) -> None:
        """Begin to hold."""
        follower = self.followers[name] = Follower()
        self._crowd.start(partial(follower.follow, f"/people/?recursive&hold=/people/{name}"))

    def go(self, name: str) -> None:
        """Hold no longer."""
        self.followers.pop(name).leave()

    def are_there(self, client: Client) -> bool:
        """Whether exactly those are shown who are there, in the container and to each of them."""
        shown = {item["path"] for item in client.items("/people/")}
        return shown == {f"/people/{name}" for name in self.followers} and all(
            set(each.state()) == shown for each in self.followers.values()
        )


# --- A queue ---------------------------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """What a taker was told who wanted to delete a job."""

    status: int
    began: float
    ended: float


class Queue:
    """Those who append jobs, and those who take them: what they were told, by the path of the job."""

    def __init__(self) -> None:
        self.posted: dict[str, tuple[int, float]] = {}  # those that were acknowledged: value, and when it was sent
        self.values: dict[str, int] = {}  # of what was taken
        self.takes: dict[str, list[float]] = defaultdict(list)  # when it was asked for
        self.ends: dict[str, list[Ended]] = defaultdict(list)

    def produce(self, first: int, client: Client, chance: random.Random) -> None:
        """Append, and send again what came to nothing, with the same key."""
        number = first
        while not client.crowd.stopped.is_set():
            number += 1
            path = client.until(201, "POST", "/jobs/", number, key=f"job {number}")["path"]
            self.posted[path] = number, client.began
            time.sleep(chance.random() * 0.05)

    def take(self, is_over: threading.Event, client: Client, chance: random.Random) -> None:
        """Take jobs; finish them, some after a longer lease, but for those that die."""
        while not is_over.is_set():
            began = time.monotonic()
            target = f"/jobs/?lease={LEASE_S}&limit=2&wait=1&max_attempts={MOST_TAKES}"
            status, body = client.ask("POST", target, wait_s=1)
            assert status in (200, 204, 503), status
            for job in body["items"] if status == 200 else ():
                path = job["path"]
                self.values[path] = job["value"]
                self.takes[path].append(began)
                if job["value"] % DIES:
                    self._work(client, chance, path, job["lease"])
            time.sleep(0.05 * (status == 503))

    def _work(self, client: Client, chance: random.Random, path: str, lease: str) -> None:
        time.sleep(chance.random() * 0.02)
        if chance.random() < 0.2:
            assert client.ask("PATCH", f"{path}?lease={LEASE_S}", match=lease)[0] in (200, 404, 412, 503)
        began = time.monotonic()
        status = client.ask("DELETE", path, match=lease)[0]
        assert status in (204, 404, 412, 503), status
        self.ends[path].append(Ended(status, began, time.monotonic()))

    def is_done(self, path: str) -> bool:
        """Whether a job was deleted, as far as its takers know."""
        return any(end.status in (204, 503) for end in self.ends[path])

    def lost(self, dead: set[str]) -> dict[str, float]:
        """When those were sent that are neither done nor dead; and when those were done that came back."""
        lost = {path: at for path, (_, at) in self.posted.items() if path not in dead and not self.is_done(path)}
        for path, ends in self.ends.items():
            done = [end for end in ends if end.status == 204]
            if done and (path in dead or len(done) > 1 or any(took > done[0].ended for took in self.takes[path])):
                lost[path] = done[0].began
        return lost

    def doubled(self) -> list[int]:
        """The values that more than one job has had."""
        paths = {path: value for path, (value, _) in self.posted.items()} | self.values
        return [value for value, count in Counter(paths.values()).items() if count > 1]


# --- Tasks -----------------------------------------------------------------------------------------------------------------


class Tasks:
    """Jobs of functions, each of which leaves a line in a file whenever it runs."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks
        self.queued: dict[str, tuple[DelayedResult, float]] = {}  # those that were acknowledged, and when that began

    def queue(self, client: Client, chance: random.Random) -> None:
        """Queue them, one after the other."""
        number = 0
        with worked.app.app_context():
            while not client.crowd.stopped.is_set():
                number += 1
                began = time.monotonic()
                with suppress(StoreUnavailable):  # unknown
                    result = worked.mark.delay(str(self._marks), str(number), fails=number % DIES == 0)
                    self.queued[str(number)] = result, began
                time.sleep(chance.random() * 0.1)

    def runs(self) -> Counter[str]:
        """How often each has run."""
        return Counter(self._marks.read_text("utf-8").split()) if self._marks.exists() else Counter()

    def outcome(self, name: str) -> str:
        """`done`, `failed`, or where it is not settled, another status."""
        with suppress(StoreUnavailable), worked.app.app_context():
            return self.queued[name][0].status
        return "unknown"

    def lost(self) -> dict[str, float]:
        """When those were queued of which nothing is known; the others are done or dead, and were executed."""
        lost: dict[str, float] = {}
        runs = self.runs()
        for name, (result, at) in self.queued.items():
            status = self.outcome(name)
            if status == "expired":
                lost[f"task {name}"] = at
                continue
            assert status == ("done" if int(name) % DIES else "failed")
            assert runs[name], "it was not executed"
            with worked.app.app_context():
                assert result.return_value == (name if int(name) % DIES else None)
        return lost

    def are_settled(self) -> bool:
        """Whether each is done or dead, or lost."""
        return all(self.outcome(name) in ("done", "failed", "expired") for name in list(self.queued))


# --- All of it -------------------------------------------------------------------------------------------------------------


class Load:
    """All of them at once."""

    def __init__(self, crowd: Crowd, client: Client, marks: Path) -> None:
        self._crowd, self._client = crowd, client
        self.people, self.queue, self.tasks, self.writing = People(crowd), Queue(), Tasks(marks), Writing()
        self.streams = [Follower(), Follower(0.7)]
        self._queue_is_over = threading.Event()
        client.until(201, "PUT", "/notes/first", 0)
        self.writing.notes["/notes/first"] = Note({0}, client.began)
        for each in self.streams:
            crowd.start(partial(each.follow, "/notes/?recursive"))
        for name in ("a", "b", "c"):
            crowd.start(partial(self.writing.write, name))
        for first in (0, 1_000_000):
            crowd.start(partial(self.queue.produce, first))
        for _ in range(2):
            crowd.start(partial(self.queue.take, self._queue_is_over))
        crowd.start(self.tasks.queue)
        for name in ("ada", "bob"):
            self.people.come(name)
        self.wait_until(lambda: self.writing.acknowledged > 50 and len(self.queue.ends) > 5 and len(self.tasks.runs()) > 2)
        self.wait_until(lambda: self.people.are_there(client))

    def wait_until(self, holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
        """Wait until `holds()`, or raise what somebody has raised."""
        wait_until(lambda: self._crowd.has_failed or holds(), limit_s)
        self._crowd.check()

    def settle(self, limit_s: float) -> dict[str, float]:
        """Let all come to rest, and return when what is lost was sent. Those who are there are shown within `limit_s`."""
        client = self._client
        self._crowd.stopped.set()
        self.wait_until(lambda: self.people.are_there(client), limit_s)
        self.wait_until(self.tasks.are_settled)
        self.wait_until(lambda: {item["name"].partition("/")[0] for item in client.items("/jobs/")} == {"dead"})
        self._queue_is_over.set()
        stored = {item["path"]: item["value"] for item in client.items("/notes/")}
        for each in self.streams:
            self.wait_until(partial(has_all, each, stored))
            each.leave()
        for name in list(self.people.followers):
            self.people.go(name)
        self.wait_until(lambda: self.people.are_there(client), AWAY_S + LATE_S)
        self._crowd.stop()
        dead = {"/jobs/" + item["name"].removeprefix("dead/") for item in client.items("/jobs/")}
        return self.writing.lost(stored) | self.queue.lost(dead) | self.tasks.lost()

    @property
    def acknowledged(self) -> int:
        """What clients rely on."""
        ends = sum(end.status == 204 for ends in self.queue.ends.values() for end in ends)
        return self.writing.acknowledged + len(self.queue.posted) + ends + len(self.tasks.queued)


@contextmanager
def behind(failing: Failing) -> Iterator[None]:
    """In the block the replicas stand still, and what is written waits in the primary behind more than the network takes."""
    for pid in failing.replicas:
        os.kill(pid, signal.SIGSTOP)
    with connect(f"redis://127.0.0.1:{failing.port}") as primary:
        primary.set(BALLAST, b"x" * BALLAST_BYTES)
    try:
        yield
    finally:
        for pid in failing.replicas:
            os.kill(pid, signal.SIGCONT)


class Scene(NamedTuple):
    """What runs: the service, and workers of tasks, on Redises of which one fails."""

    failing: Failing
    served: Served
    replicas: int
    marks: Path


@pytest.fixture
def begin(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], Scene]]:
    """Starts all of it, of a kind, with KVSTORE_REPLICAS."""
    with ExitStack() as stack:

        def start(kind: str, replicas: int) -> Scene:
            (directory / "redis").mkdir()
            failing = stack.enter_context(KINDS[kind](directory))
            wait_until(failing.is_replicated, LIMIT_S)
            environ = {"REDIS_URL": failing.url, "KVSTORE_REPLICAS": str(replicas), "KVSTORE_LOG_LENGTH": "100000"}
            monkeypatch.setenv("KVSTORE_REPLICAS", str(replicas))
            monkeypatch.setitem(worked.app.config, "REDIS_URL", failing.url)
            workers = Workers(directory, WORKED, "--retry", "0.1", "--max-attempts", "2", "--lease", str(LEASE_S), **environ)
            stack.callback(workers.stop)
            served = start_kvstore(directory, **environ)
            stack.callback(served.kill)
            return Scene(failing, served, replicas, directory / "marks.txt")

        yield start


Record = Callable[[str, object], None]


class Seen(NamedTuple):
    """When the primary failed and was replaced, what ran meanwhile, and when what is lost was sent."""

    failed_at: float
    replaced_at: float
    load: Load
    lost: dict[str, float]


def fail_over(scene: Scene, fault: str, record_property: Record) -> Seen:
    """Have the primary fail under load, and check what is promised at each level of durability."""
    failing, crowd, chance = scene.failing, Crowd(scene.served, 1000), drawn(999)
    leaves_before = bool(SEED) and chance.random() < 0.5  # if that is lost, it takes half a minute
    with closing(Client(crowd)) as client:
        load = Load(crowd, client, scene.marks)
        with behind(failing):
            load.people.come("eve")
            if leaves_before:
                load.people.go("bob")
            time.sleep(0.2 + 0.1 * chance.random())
            failed_at = time.monotonic()
            os.kill(failing.pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        if not leaves_before:
            load.people.go("bob")
        load.people.come("dan")
        load.wait_until(lambda: failing.is_replaced(scene.replicas))
        replaced_at = time.monotonic()
        time.sleep(NOTICED_S + chance.random())
        if fault == "hung":
            os.kill(failing.pid, signal.SIGCONT)
        time.sleep(max(0, replaced_at + BACK_S + NOTICED_S - time.monotonic()))
        lost = load.settle((AWAY_S if leaves_before else THERE_S) + LATE_S)
    waits = [each.ended - each.began - each.wait_s for each in crowd.asked]
    refused = [each for each in crowd.asked if each.status == 503]
    ends = [each.ended - replaced_at for each in refused]
    record_property("acknowledged writes", load.acknowledged)
    record_property("lost writes", len(lost))
    record_property("jobs", len(load.queue.posted))
    record_property("tasks", len(load.tasks.queued))
    record_property("ms at most until a response", round(1000 * max(waits)))
    record_property("ms at most from the promotion to the last 503", round(1000 * max(ends, default=0)))
    assert max(waits) < ANSWER_S + LATE_S
    assert all(each.began < replaced_at + BACK_S + LATE_S for each in refused)
    return Seen(failed_at, replaced_at, load, lost)


@pytest.mark.parametrize(("kind", "fault"), ROUND if SEED else [("sentinel", "hung")])
def test_a_failover_under_load(kind: str, fault: str, begin: Callable[[str, int], Scene], record_property: Record) -> None:
    """What is lost was sent in the last moments, and streams are told."""
    seen = fail_over(begin(kind, 0), fault, record_property)
    assert seen.lost
    after_s = {path: at - seen.failed_at for path, at in seen.lost.items()}
    assert {path: at for path, at in after_s.items() if not -LAST_S < at < seen.replaced_at - seen.failed_at} == {}
    assert all(each.resets for each in seen.load.streams)


@pytest.mark.parametrize(("kind", "fault"), ROUND if SEED else [("cluster", "killed")])
def test_a_failover_under_load_with_replicas(
    kind: str, fault: str, begin: Callable[[str, int], Scene], record_property: Record
) -> None:
    """Nothing is lost, and no job is there twice."""
    seen = fail_over(begin(kind, 1), fault, record_property)
    assert seen.lost == {}
    assert seen.load.queue.doubled() == []
