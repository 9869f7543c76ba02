"""Two instances on one Redis behind nginx, as deploy/nginx.conf has it: they are one service, and one of them may die."""

import http.client
import itertools
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients import Answer, Headers
from tests.support.nginx import Address, needs_nginx, nginx
from tests.support.serving import Served, start_kvstore
from tests.support.stores import Running, free_ports, make_directory, wait_until
from tests.support.streams import Event, Reader, open_reader

pytestmark = [pytest.mark.slow, needs_nginx]

LIMIT_S = 40
QUOTA = 400  # of one client in a minute: more than a test asks for, unless it means to
WAIT = [("Prefer", "wait=25")]


class Site:
    """nginx at `at`, and what is behind it."""

    def __init__(self, redis_url: str, stack: ExitStack) -> None:
        self._environ = {
            "REDIS_URL": redis_url,
            "WEB_CONCURRENCY": "1",
            "KVSTORE_PROXIES": "1",
            "KVSTORE_RATE": f"{QUOTA}/m",
        }
        self._directories = [make_directory() for _ in range(3)]
        for directory in self._directories:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        self.ports = free_ports(2)
        self.instances = [self.start(index) for index in range(2)]
        stack.callback(self._kill)
        self.at = stack.enter_context(nginx(self._directories[2], [each.at for each in self.instances]))

    def _kill(self) -> None:
        for each in self.instances:
            each.kill()

    def start(self, index: int) -> Served:
        """Start an instance, on the port that nginx knows."""
        return start_kvstore(self._directories[index], PORT=str(self.ports[index]), **self._environ)

    def ask(self, method: str, target: str, body: object = None, headers: Any = (), source: str = "127.0.0.1") -> Answer:
        """One request through nginx, from an address of this machine."""
        with closing(http.client.HTTPConnection(*self.at, timeout=LIMIT_S, source_address=(source, 0))) as connection:
            connection.request(method, target, None if body is None else json.dumps(body), dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, Headers(answer.getheaders()), answer.read())

    def metric(self, name: str) -> list[int]:
        """A number of each instance that lives; each page of metrics is at most 2 s old."""
        pages = [each.request("GET", "/_/metrics").content.decode() for each in self.instances if each.process.poll() is None]
        return [int(re.findall(rf"^{name} (\d+)", page, re.MULTILINE)[0]) for page in pages]

    def wait_for(self, name: str, holds: Callable[[list[int]], object]) -> None:
        """Wait until this is true of the numbers of all instances."""

        end = time.monotonic() + LIMIT_S
        while not holds(self.metric(name)):
            assert time.monotonic() < end, self.metric(name)
            time.sleep(0.2)


@pytest.fixture
def site(started: Callable[[str], Running]) -> Iterator[Site]:
    """Two instances on an empty Redis."""
    running = started("redis")
    running.redis.flushall()
    with ExitStack() as stack:
        yield Site(running.url, stack)


class Follower:
    """A client that follows through nginx, and comes back with its last id when the stream ends. `events` are all that came."""

    def __init__(self, at: Address, target: str) -> None:
        self._at, self._target = at, target
        self.events: list[Event] = []
        self.connections = 0
        self._reader: Reader | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        wait_until(self._seen, LIMIT_S)

    def _seen(self) -> list[Event]:
        return self.events + (self._reader.events if self._reader else [])

    def _follow(self) -> None:
        while not self._is_closed:
            last = [event.id for event in self.events if event.id][-1:]
            with suppress(OSError, http.client.HTTPException):
                reader = open_reader(self._at, self._target, {"Last-Event-ID": last[0]} if last else {})
                if reader.status == 200:
                    self._reader = reader
                    self.connections += 1
                    reader._thread.join()
                    self.events, self._reader = self._seen(), None
            time.sleep(0.05)

    def changed(self, prefix: str = "/") -> list[tuple[str, str]]:
        """What it was told of the documents below, after the snapshot."""
        told = [(event.name, event.data["path"]) for event in self._seen() if event.name != "snapshot"]
        return [each for each in told if each[1].startswith(prefix)]

    def close(self) -> None:
        """Leave."""
        self._is_closed = True
        if self._reader:
            self._reader.close()
        self._thread.join(LIMIT_S)


@pytest.fixture
def follow(site: Site) -> Iterator[Callable[[str], Follower]]:
    """Begins to follow; ended with the test."""
    followers: list[Follower] = []

    def begin(target: str) -> Follower:
        followers.append(Follower(site.at, target))
        return followers[-1]

    yield begin
    for each in followers:
        each.close()


def names(answer: Answer) -> list[str]:
    """Those of a listing."""
    return [item["name"] for item in answer.json["items"]]


def test_two_instances_are_one_service(site: Site, follow: Callable[[str], Follower]) -> None:
    """Streams, presence, waits, queues and rates, each over both instances."""
    # Streams and presence: everybody hears of everybody, wherever a stream is.
    people = [follow(f"/room/?hold=/room/people/{name}") for name in ("ada", "bob", "eve", "dan")]
    site.wait_for("kvstore_streams", lambda streams: streams == [2, 2])
    assert names(site.ask("GET", "/room/people/")) == ["ada", "bob", "dan", "eve"]
    for number in range(8):
        assert site.ask("PUT", f"/room/said/{number}", number).status == 201
    said = [("put", f"/room/said/{number}") for number in range(8)]
    for each in people:
        wait_until(lambda each=each: each.changed("/room/said/") == said, LIMIT_S)
    people.pop().close()
    for each in people:
        wait_until(lambda each=each: each.changed()[-1] == ("delete", "/room/people/dan"), LIMIT_S)

    with ThreadPoolExecutor() as pool:
        # Long polls: a change wakes those at both instances.
        tag = site.ask("GET", "/room/said/0").headers["ETag"]
        fields = [*WAIT, ("If-None-Match", tag)]
        waiting = [pool.submit(site.ask, "GET", "/room/said/0", None, fields) for _ in range(4)]
        site.wait_for("kvstore_waits", lambda waits: sum(waits) == 4 and all(waits))
        assert site.ask("PUT", "/room/said/0", "new").status == 200
        assert [each.result().json for each in waiting] == ["new"] * 4

        # A queue: each job goes to one of the takers, whose leases hold at both instances.
        takers = [pool.submit(site.ask, "POST", "/jobs/?lease=120s&wait=25") for _ in range(4)]
        site.wait_for("kvstore_waits", lambda waits: sum(waits) == 4 and all(waits))
        for number in range(4):
            assert site.ask("POST", "/jobs/", number).status == 201
        jobs = [job for taker in takers for job in taker.result().json["items"]]
        assert sorted(job["value"] for job in jobs) == [0, 1, 2, 3]
        statuses = [
            [each.request("DELETE", job["path"], [("If-Match", '"other"')]).status for each in site.instances] for job in jobs
        ]
        assert statuses == [[412, 412]] * 4
        done = [site.ask("DELETE", job["path"], None, [("If-Match", f'"{job["lease"]}"')]).status for job in jobs]
        assert done == [204] * 4

    # Rates: the quota of a client is one for both, and another client has its own.
    spent = [site.ask("GET", "/room/said/0", source="127.0.0.9").status for _ in range(QUOTA + 20)]
    assert set(spent) == {200, 429}
    assert QUOTA - QUOTA // 16 <= spent.count(200) <= QUOTA
    assert site.ask("GET", "/room/said/0", source="127.0.0.10").status == 200


def test_an_instance_is_killed(site: Site, follow: Callable[[str], Follower], record_property: Callable[..., None]) -> None:
    """kill -9: the other one takes its clients over, nothing is lost or doubled, and it is used again when it is back."""
    people = [follow(f"/room/?hold=/room/people/{name}") for name in ("ada", "bob", "eve", "dan")]
    site.wait_for("kvstore_streams", lambda streams: streams == [2, 2])
    for number in range(4):
        assert site.ask("POST", "/jobs/", number).status == 201
    leased = [site.ask("POST", "/jobs/?lease=120s").json["items"][0] for _ in range(2)]
    stopped, acknowledged = threading.Event(), []

    def write() -> None:
        """Append with an Idempotency-Key, and send again what came to nothing."""
        for number in itertools.count():
            if stopped.is_set():
                return
            fields = [("Idempotency-Key", f'"{number}"')]
            while site.ask("POST", "/room/said/", number, fields, source="127.0.0.2").status != 201:
                time.sleep(0.02)
            acknowledged.append(number)
            time.sleep(0.02)

    with ThreadPoolExecutor() as pool:
        writer: Future[None] = pool.submit(write)
        waiting = [pool.submit(site.ask, "GET", "/room/end", None, WAIT) for _ in range(4)]
        site.wait_for("kvstore_waits", lambda waits: sum(waits) == 4 and all(waits))
        site.instances[0].kill()
        killed = len(acknowledged)
        wait_until(lambda: sum(each.connections for each in people) == 6, LIMIT_S)
        wait_until(lambda: len(acknowledged) > killed + 20, LIMIT_S)
        stopped.set()
        writer.result()
        wait_until(lambda: site.ask("PUT", "/room/end", "end").status in (200, 201), LIMIT_S)
        assert [each.result().json for each in waiting] == ["end"] * 4  # nginx has asked the other one
    done = [site.ask("DELETE", job["path"], None, [("If-Match", f'"{job["lease"]}"')]).status for job in leased]
    assert set(done) <= {204, 502}
    listed = site.ask("GET", "/room/said/?limit=1000").json["items"]
    assert [item["value"] for item in listed] == acknowledged
    said = [("put", item["path"]) for item in listed]
    record_property("acknowledged writes", len(said))
    record_property("events of streams", len(said) * len(people))
    for each in people:
        wait_until(lambda each=each: each.changed("/room/end") != [], LIMIT_S)
        assert each.changed("/room/said/") == said
        assert {name for name, _ in each.changed("/room/people/")} <= {"put"}  # nobody has left
    assert names(site.ask("GET", "/room/people/")) == ["ada", "bob", "dan", "eve"]

    site.instances[0] = site.start(0)
    end = time.monotonic() + LIMIT_S
    while site.metric("kvstore_streams")[0] == 0:  # nginx gives it the next stream as soon as it knows of it
        assert time.monotonic() < end
        follow("/room/")
        time.sleep(0.2)


def test_the_proxy_passes_everything_on(site: Site) -> None:
    """Paths as they are, bodies up to our limit, pages of our own origin, who asks and how, for each kind of method."""

    def put(target: str, body: bytes, **headers: str) -> int:
        with closing(http.client.HTTPConnection(*site.at, timeout=LIMIT_S)) as connection:
            connection.request("PUT", target, body, headers)
            return connection.getresponse().status

    with closing(open_reader(site.at, "/ns/", {})) as reader:
        reader.wait_for(1)
        assert [put("/ns/a%2Fb", b"1"), put("/ns/a/b", b"2"), put("/ns//a", b"3")] == [201, 201, 400]
        assert [event.data["path"] for event in reader.wait_for(3)[1:]] == ["/ns/a%2Fb", "/ns/a/b"]
    assert [site.ask("GET", target).json for target in ("/ns/a%2Fb", "/ns/a/b")] == [1, 2]
    assert [put("/big/1", b'"%b"' % (b"x" * (2**20 - 2))), put("/big/2", b'"%b"' % (b"x" * 2**20))] == [201, 413]
    own = "http://{}:{}".format(*site.at)
    assert [put("/ns/c", b"1", Origin=own), put("/ns/c", b"1", Origin="http://other")] == [201, 403]
    assert put("/ns/d", b'"%b"' % (b"x" * 2**17), Expect="100-continue") == 201
    assert site.ask("DELETE", "/ns/a%2Fb").status == 204


class Dying:
    """An instance that reads each request and closes the connection; `methods` are what it was asked."""

    def __init__(self) -> None:
        self.methods: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.at: Address = self._server.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                with connection:
                    self.methods.append(connection.recv(65536).split(b" ")[0].decode())

    def close(self) -> None:
        """Listen no more."""
        self._server.close()


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("HEAD", 2), ("PUT", 1), ("DELETE", 1), ("POST", 1), ("PATCH", 1)])
def test_no_write_is_sent_to_both(tmp_path: Path, method: str, times: int) -> None:
    """An instance may have applied what it did not answer: the client hears 502, and decides itself."""
    with ExitStack() as stack:
        dying = [stack.enter_context(closing(Dying())) for _ in range(2)]
        at = stack.enter_context(nginx(tmp_path, [each.at for each in dying]))
        connection = stack.enter_context(closing(http.client.HTTPConnection(*at, timeout=LIMIT_S)))
        connection.request(method, "/a/b", b"1" if method in ("PUT", "POST", "PATCH") else None, {"If-Match": '"1-0"'})
        assert connection.getresponse().status == 502
        assert dying[0].methods + dying[1].methods == [method] * times
