"""Presence: a document that is there for as long as a stream holds it, on everything that serves streams."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from kvstore.commands import presence
from kvstore.commands.presence import HOLD_S
from kvstore.core.codec import encode
from kvstore.core.paths import parse_path
from kvstore.live import presence as holding
from tests.support.asking import entries
from tests.support.clients import Checked
from tests.support.lanes import on_few, on_served
from tests.support.serving import Served, start_kvstore
from tests.support.stores import Running, start_valkey, wait_for_disk, wait_until
from tests.support.streams import (
    FOLLOWED,
    LIMIT_S,
    FlaskServer,
    Followed,
    OwnServer,
    Reader,
    ask,
    following,
    open_reader,
)

AT_ONCE_S = 1.0  # a document is gone within a second of its stream's end
LATE_S = 10.0  # that a machine which is busy with other tests may take longer: less than until it would expire
KEY = "kv:{room}/42/people/alice"
HOLDS = "kv:{room}!holds:42/people/alice"
ALICE = "/room/42/people/alice"
HOLD = f"/room/42/?hold={ALICE}"


def named(name: str) -> str:
    """A stream's target that holds Alice's document with this name in it."""
    return HOLD + "&as=" + quote(json.dumps({"name": name}))


on_each = pytest.mark.parametrize(
    "lane", [("served", "valkey"), ("flask", "redis"), ("asgi", "redis")], ids="-".join, indirect=True
)


@pytest.fixture
def start(lane: tuple[str, str], store: Running) -> Iterator[Callable[[], Followed]]:
    """Starts what serves streams, again and again."""
    running: list[Followed] = []

    def start() -> Followed:
        running.append(FOLLOWED[lane[0]](store))
        return running[-1]

    yield start
    for followed in running:
        followed.stop()


@pytest.fixture
def followed(start: Callable[[], Followed]) -> Followed:
    """What serves streams, on an empty store."""
    return start()


def goes(store: Running, limit_s: float = AT_ONCE_S + LATE_S) -> bool:
    """Whether Alice's document goes, without a trace of who held it, and in time."""
    wait_until(lambda: not store.redis.exists(KEY), limit_s)
    wait_until(lambda: not store.redis.exists(HOLDS), limit_s)
    return True


def ops(store: Running) -> list[str]:
    """What has happened to Alice's document, by the log."""
    return [entry.op for entry in entries(store.redis, "room") if entry.name == "42/people/alice"]


def test_who_is_there(followed: Followed, store: Running) -> None:
    """A document comes with its stream and goes with it; whoever follows the container sees both."""
    with following(followed, "/room/42/people/") as watching:
        watching.wait_for(1)
        with following(followed, named("Alice")) as reader:
            [first] = reader.wait_for(1)
            assert [item["path"] for item in first.data["value"]["items"]] == ["/room/42/people/"]
            came = watching.wait_for(2)[1]
            assert (came.name, came.data["path"], came.data["value"]) == ("put", ALICE, {"name": "Alice"})
            [item] = ask(followed, "GET", "/room/42/people/")["items"]
            assert (item["name"], item["value"], item["etag"]) == ("alice", {"name": "Alice"}, f'"{came.id}"')
            assert item["ttl"] <= HOLD_S
        assert goes(store)
        went = watching.wait_for(3)[2]
        assert (went.name, went.data["path"], went.data["value"]) == ("delete", ALICE, None)
    assert len(watching.events) == 3


@on_each
def test_null_where_nothing_is_said(followed: Followed) -> None:
    """`?as=` is for those who have something to say; a document may hold itself, and one in another namespace."""
    with following(followed, f"/elsewhere/x?hold={ALICE}") as reader, following(followed, "/root?hold=/root&as=1") as other:
        assert reader.wait_for(1)[0].data["value"] is None
        assert ask(followed, "GET", ALICE) is None
        assert other.wait_for(1)[0].data["value"] == 1


@on_each
def test_it_goes_with_the_last(start: Callable[[], Followed], store: Running) -> None:
    """Several streams, of several processes, hold one document; the newest value is what is stored."""
    one, two = start(), start()
    with following(one, named("Alice")) as first:
        first.wait_for(1)
        with following(one, named("Alice")) as second, following(two, named("Alice")) as third:
            second.wait_for(1)
            third.wait_for(1)
            assert ops(store) == ["put"]
            with following(two, named("Alicia")) as fourth:
                fourth.wait_for(1)
                assert ask(two, "GET", ALICE)["name"] == "Alicia"
        time.sleep(AT_ONCE_S)
        assert ask(one, "GET", ALICE)["name"] == "Alicia"
    assert goes(store)
    assert ops(store) == ["delete"]


# What comes after ?hold=, as it stands on the wire.
REFUSED = [
    "",
    "room/42",
    "/room/42/",
    "/room//42",
    "/room/%252E%252E",
    "/_/batch",
    "/_",
    "/room/%25zz",
    "/room/%FF",
    "/a%00",
    "/" + "x" * 1024,
    "/room/42&hold=/room/43",
    "/room/42&as=",
    "/room/42&as={",
    "/room/42&as=%FF",
    "/room/42&as=%22%FF%22",
    "/room/42&as=1&as=1",
    "/room/42&as=NaN",
    "/room/42&as=" + quote('{"a":1,"a":2}'),
    "/room/42&as=" + quote('{"ttl":5}'),
    "/room/42&as=" + quote('{"n":{".sv":"timestamp"}}'),
]


@on_each
def test_what_is_refused(followed: Followed, store: Running) -> None:
    """400 before anything, and nothing is stored."""
    for query in ["?hold=" + refused for refused in REFUSED] + ["?as=1"]:
        with following(followed, "/room/42/" + query) as reader:
            assert (reader.status, json.loads(reader.body)["type"]) == (400, "urn:kvstore:invalid-parameter"), query
    assert followed.request("GET", HOLD).status == 400, "only with a stream"
    assert store.redis.keys("*") == []


@on_each
def test_a_document_that_somebody_stored(followed: Followed, store: Running) -> None:
    """409, and it stays as it is, however soon it goes; one whose holders are heard of no more is taken over."""
    for ttl in ("", "?ttl=20"):
        ask(followed, "PUT", ALICE + ttl, {"mine": True})
        before = store.redis.hgetall(KEY)
        with following(followed, named("Alice")) as reader:
            assert (reader.status, json.loads(reader.body)["type"]) == (409, "urn:kvstore:already-stored")
        time.sleep(0.1)
        assert store.redis.hgetall(KEY) == before
        assert not store.redis.exists(HOLDS)
    store.redis.zadd(HOLDS, {"dead": time.time() * 1000 - 1})
    with following(followed, named("Alice")) as reader:
        reader.wait_for(1)
        assert ask(followed, "GET", ALICE)["name"] == "Alice"
    assert goes(store)
    store.redis.set(KEY, "no hash")
    with following(followed, named("Alice")) as reader:
        assert (reader.status, json.loads(reader.body)["type"]) == (409, "urn:kvstore:wrong-type")
    assert store.redis.get(KEY) == b"no hash"


@on_each
def test_renewing(followed: Followed, store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts the TTL again, and nothing else; what others wrote into the document stays; what they deleted comes back."""
    monkeypatch.setattr(holding, "RENEW_S", 0.2)
    with following(followed, named("Alice")) as reader:
        reader.wait_for(1)
        tag = ask(followed, "PATCH", ALICE, {"typing": True}) and store.redis.hget(KEY, "$kv")
        for ttl_s in (20, 100_000):
            store.redis.expire(KEY, ttl_s)
            wait_until(lambda: (HOLD_S - 1) * 1000 < store.redis.pttl(KEY) <= HOLD_S * 1000, LIMIT_S)
        assert store.redis.hget(KEY, "$kv") == tag
        assert ops(store) == ["put", "patch"]
        ask(followed, "DELETE", ALICE)
        wait_until(lambda: store.redis.exists(KEY), LIMIT_S)
        assert ask(followed, "GET", ALICE)["name"] == "Alice"
    assert goes(store)
    assert ops(store) == ["delete", "delete"]


@on_each
def test_renewing_what_is_no_longer_ours(followed: Followed, store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others have stored a document meanwhile, the stream ends and the document stays."""
    monkeypatch.setattr(holding, "RENEW_S", 0.2)
    pipe: Any = store.redis.pipeline() if not store.url.startswith("redis+") else store.redis
    with following(followed, named("Alice")) as reader:
        reader.wait_for(1)
        pipe.delete(HOLDS)
        pipe.hset(KEY, "mine", "true")
        pipe.persist(KEY)
        pipe.execute()
        reader.wait_for_end()
    time.sleep(0.5)
    assert store.redis.hget(KEY, "mine") == b"true"
    with following(followed, named("Alice")) as reader:
        assert reader.status == 409


@on_each
def test_redis_is_full(followed: Followed, store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is there stays there, and may go; nobody comes."""
    monkeypatch.setattr(holding, "RENEW_S", 0.2)
    with following(followed, named("Alice")) as reader:
        reader.wait_for(1)
        store.redis.config_set("maxmemory", 1)
        try:
            with following(followed, "/room/42/?hold=/room/42/people/bob") as refused:
                assert refused.status == 507
            store.redis.expire(KEY, 20)
            wait_until(lambda: store.redis.pttl(KEY) > (HOLD_S - 1) * 1000, LIMIT_S)
            reader.close()
            assert goes(store)
        finally:
            store.redis.config_set("maxmemory", 0)


@on_served
def test_a_holder_that_is_heard_of_no_more(followed: Followed, store: Running) -> None:
    """Does not count, and is not kept."""
    store.redis.zadd(HOLDS, {"dead": time.time() * 1000 - 1})
    with following(followed, named("Alice")) as reader:
        reader.wait_for(1)
        assert store.redis.zcard(HOLDS) == 1
        assert 0 < store.redis.pttl(HOLDS) <= HOLD_S * 1000
        store.redis.zadd(HOLDS, {"dead": time.time() * 1000 + 300})
        time.sleep(0.5)
    assert goes(store)


@on_served
def test_a_document_that_is_leased_as_a_job(followed: Followed, store: Running) -> None:
    """Nobody but who has the lease writes it while it is held; it goes all the same, with what is known of the job."""
    with following(followed, named("Alice")) as reader:
        reader.wait_for(1)
        [job] = ask(followed, "POST", "/room/42/people/?lease=60s")["items"]
        assert job["value"]["name"] == "Alice"
        with following(followed, named("Alicia")) as other:
            other.wait_for(1)
            assert ask(followed, "GET", ALICE)["name"] == "Alice"
    assert goes(store)
    assert store.redis.zcard("kv:{room}!blocked") == 0
    assert ops(store) == ["delete"]


@on_each
def test_a_stop_releases(lane: tuple[str, str], store: Running) -> None:
    """Streams are ended, and their documents deleted, before the server is gone."""
    followed = FOLLOWED[lane[0]](store)
    reader = followed.open(named("Alice"), {})
    reader.wait_for(1)
    followed.stop()
    assert not store.redis.exists(KEY, HOLDS)
    reader.wait_for_end()
    assert ops(store) == ["delete"]


@pytest.mark.slow
def test_sigterm(directory: Path, started: Callable[[str], Running]) -> None:
    """The command `kvstore`, stopped as a process manager does."""
    store = started("redis")
    store.redis.flushall()
    serving = start_kvstore(directory, REDIS_URL=store.url)
    try:
        readers = [open_reader(serving.at, f"/room/?hold=/room/people/{number}", {}) for number in range(20)]
        for reader in readers:
            reader.wait_for(1)
        assert store.redis.zcard("kv:{room}!names") == 20
        serving.stop()
        assert store.redis.zcard("kv:{room}!names") == 0
        assert [entry.op for entry in entries(store.redis, "room")].count("delete") == 20
        assert "Traceback" not in serving.said
    finally:
        serving.kill()


def test_a_process_that_is_killed(directory: Path, started: Callable[[str], Running]) -> None:
    """Its documents expire, and that is told; KVSTORE_LIVE_STREAMS waits for it, else it is hastened."""
    store = started("redis")
    store.redis.flushall()
    serving = start_kvstore(directory, REDIS_URL=store.url)
    watching = OwnServer(store)
    try:
        with following(watching, "/room/42/people/") as watcher:
            watcher.wait_for(1)
            open_reader(serving.at, named("Alice"), {}).wait_for(1)
            watcher.wait_for(2)
            begun = time.monotonic()
            serving.kill()
            assert 0 < store.redis.pttl(KEY) <= HOLD_S * 1000
            if "KVSTORE_LIVE_STREAMS" in os.environ:
                wait_until(lambda: len(watcher.events) == 3, 30)
                print(f"after kill -9 the expire event came within {time.monotonic() - begun:.1f} s")
            else:
                ask(watching, "PATCH", ALICE + "?ttl=1")
            assert [event.name for event in watcher.wait_for(3)] == ["snapshot", "put", "expire"]
            assert watching.request("GET", ALICE).status == 404
    finally:
        serving.kill()
        watching.stop()


@pytest.mark.slow
def test_flask_is_interrupted(directory: Path, started: Callable[[str], Running]) -> None:
    """Ctrl-C in `flask run` releases what its streams hold."""
    store = started("redis")
    store.redis.flushall()
    arguments = [sys.executable, "-m", "flask", "--app", "kvstore", "run", "-p", "0"]
    serving = Served(directory, arguments, {"REDIS_URL": store.url})
    try:
        open_reader(serving.at, named("Alice"), {}).wait_for(1)
        serving.process.send_signal(signal.SIGINT)
        serving.process.wait(LIMIT_S)
        assert goes(store, LIMIT_S), serving.said
        assert ops(store) == ["delete"]
    finally:
        serving.kill()


@pytest.mark.slow
@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("kind", [OwnServer, FlaskServer])
def test_redis_is_away_when_it_is_released(directory: Path, kind: type[Followed]) -> None:
    """Release is tried again until Redis is back."""
    store = start_valkey(directory)
    followed = kind(store)
    try:
        reader = followed.open(named("Alice"), {})
        reader.wait_for(1)
        wait_for_disk(store.redis)
        store.signal(signal.SIGKILL)
        store.stop()
        reader.close()
        time.sleep(0.5)
        store = start_valkey(directory)
        assert goes(store)
        assert ops(store) == ["delete"]
    finally:
        followed.stop()
        store.stop()


@pytest.mark.parametrize("lane", [("served", "redis"), ("asgi", "cluster")], ids="-".join, indirect=True)
def test_streams_that_come_and_go(followed: Followed, store: Running) -> None:
    """However they overlap, and whichever script is first, the document is there while one lives, and gone when none does."""
    readers: list[Reader] = []
    for number in range(60):
        readers.append(followed.open(named("Alice"), {}))
        if number % 3:
            readers.pop(0).close()
        assert store.redis.exists(KEY)
    for reader in readers:
        reader.close()
    assert goes(store)
    for _ in range(30):  # one that comes while the last one is being released
        with following(followed, named("Alice")):
            assert store.redis.exists(KEY)
    assert goes(store)


@on_few
def test_the_scripts(client: Checked, store: Running) -> None:
    """On every kind of store: held by two, released by both, and by one that holds nothing."""
    executes = store.open()
    path = parse_path(ALICE.encode())
    hold = presence.Hold(parse_path(ALICE.encode()), encode(b'{"b":1,"a":[]}'), 1000)
    one, two, three = (hold._replace(holder=name) for name in ("one", "two", "three"))
    for each in (one, two, two._replace(renews=True)):
        executes.execute(each)
    assert client.get(ALICE).json["a"] == []
    assert len(entries(store.redis, "room")) == 1
    executes.execute(presence.Release(three))
    executes.execute(presence.Release(one))
    executes.execute(presence.Release(one))
    assert client.get(ALICE).status == 200
    executes.execute(presence.Release(two))
    assert client.get(ALICE).status == 404
    assert [entry.op for entry in entries(store.redis, "room")] == ["delete"]
    assert not store.redis.exists(path.keys.document, HOLDS)
    assert client.get("/?list").json["items"] == []
    executes.close()
