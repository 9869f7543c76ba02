"""Rates: what a client may send, whichever process it reaches, and what it is told."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis

from kvstore.access.rates import MAX_CLIENTS, Quota, Rates
from kvstore.commands.charges import Charge, Charged, ClaimStreams, ReleaseStream, StreamPlace
from kvstore.core.errors import TooManyRequests
from kvstore.core.settings import InvalidSetting, Rate, read_settings
from kvstore.live import client_streams
from tests.support.access import RULED, by
from tests.support.asking import batch
from tests.support.clients import Answer, Checked
from tests.support.lanes import on
from tests.support.stores import Running, wait_until
from tests.support.streams import FOLLOWED, Followed, Reader, following, open_reader
from tests.support.tokens import SECRET, signed
from tests.support.wires import Wire

on_adapters = on([("flask", "valkey"), ("asgi", "cluster"), ("served", "redis"), ("flask", "fake")])
PUT, GET = {"method": "PUT", "path": "/ns/a", "body": 1}, {"method": "GET", "path": "/ns/a"}


def limits(answer: Answer) -> tuple[str, int, int]:
    """The policy, what remains, and for how many s: from the fields, which are as the draft spells them."""
    policy = re.fullmatch(r'"default";q=\d+;w=\d+', answer.headers["RateLimit-Policy"])
    left = re.fullmatch(r'"default";r=(\d+);t=(\d+)', answer.headers["RateLimit"])
    assert policy
    assert left
    return policy[0], int(left[1]), int(left[2])


@on_adapters
def test_a_quota(client_with: Callable[..., Checked]) -> None:
    """It counts what reaches the store, tells what is left, and refuses the rest until the window ends."""
    client = client_with(KVSTORE_RATE="5/m")
    assert client.request("OPTIONS", "/ns/a").status == 204
    assert client.get("/ns//a").status == 400
    for left, answer in (
        (4, client.put("/ns/a", "1")),
        (3, client.get("/ns/a")),
        (2, client.get("/ns/b")),
        (1, client.head("/ns/a")),
    ):
        assert limits(answer)[:2] == ('"default";q=5;w=60', left)
    assert client.get("/ns/", [("Prefer", "wait=1")]).status == 200
    for _ in range(2):
        refused = client.put("/ns/a", "2")
        assert refused.status == 429
        assert refused.json["type"] == "urn:kvstore:too-many-requests"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert limits(refused)[1:] == (0, int(refused.headers["Retry-After"]))
    assert client.request("OPTIONS", "/ns/a").status == 204


@on_adapters
def test_a_batch_counts_its_requests(client_with: Callable[..., Checked], raw: redis.Redis) -> None:
    """The fast ones and the others; one that is larger than the quota needs a window of its own, which is longer."""
    client = client_with(KVSTORE_RATE="7/m")
    assert limits(batch(client, [PUT, {**PUT, "path": "/ns/b"}]))[1] == 5
    assert limits(batch(client, [PUT, GET, PUT]))[1] == 2
    refused = batch(client, [PUT, GET, PUT])
    assert refused.status == 429
    assert limits(batch(client, [GET]))[1] == 1
    raw.flushall()
    client = client_with(KVSTORE_RATE="8/m")
    large = batch(client, [PUT] * 20)
    assert (large.status, limits(large)[1]) == (200, 0)
    assert 120 < limits(large)[2] <= 180
    assert client.get("/ns/a").status == 429


@on([("flask", "valkey"), ("asgi", "redis"), ("served", "redis")])
def test_a_window_ends(client_with: Callable[..., Checked]) -> None:
    """After Retry-After the client is served again."""
    client = client_with(KVSTORE_RATE="2/s")
    deadline = time.monotonic() + 20
    answer = client.get("/ns/a")
    while answer.status != 429:
        assert time.monotonic() < deadline
        answer = client.get("/ns/a")
    time.sleep(int(answer.headers["Retry-After"]))
    assert client.get("/ns/a").status == 404


@on_adapters
def test_whom_a_quota_is_for(client_with: Callable[..., Checked]) -> None:
    """For each subject one, wherever it comes from; for each address one, whoever is behind it without a token."""
    client = client_with(KVSTORE_RATE="3/m", KVSTORE_SECRET=SECRET, KVSTORE_PROXIES="1")

    def left(sub: str | None, address: str) -> int:
        token = [] if sub is None else [("Authorization", f"Bearer {signed(sub=sub, roles=['admin'])}")]
        return limits(client.get("/ns/a", [*token, ("X-Forwarded-For", address)]))[1]

    assert [left("ada", "192.0.2.1"), left("ada", "192.0.2.2"), left("bob", "192.0.2.1"), left("ada", "192.0.2.3")] == [
        2,
        1,
        2,
        0,
    ]
    assert left("192.0.2.1", "192.0.2.1") == 2
    assert client.get("/ns/a", [("X-Forwarded-For", "192.0.2.1")]).status == 401  # does not count: the store is not asked
    open_to_all = client_with(KVSTORE_RATE="3/m", KVSTORE_PROXIES="1")
    there = [limits(open_to_all.get("/ns/a", [("X-Forwarded-For", f"6.6.6.{n}, 192.0.2.1")]))[1] for n in range(3)]
    assert there == [2, 1, 0]
    assert limits(open_to_all.get("/ns/a", [("X-Forwarded-For", "192.0.2.1, 192.0.2.4")]))[1] == 2


@pytest.fixture(params=FOLLOWED)
def limited(request: pytest.FixtureRequest, started: Callable[[str], Running]) -> Iterator[Followed]:
    store = started("redis")
    store.redis.flushall()
    followed = FOLLOWED[request.param](store, {"KVSTORE_RATE": "2/m"})
    yield followed
    followed.stop()


def test_a_stream_counts_once(limited: Followed) -> None:
    """When it begins; one too many is refused before anything is sent."""
    for left in (1, 0):
        with following(limited, "/ns/a") as reader:
            assert reader.status == 200
            assert reader.headers["RateLimit"].startswith(f'"default";r={left};')
            reader.wait_for(1)
    with following(limited, "/ns/a") as reader:
        assert (reader.status, json.loads(reader.body)["status"]) == (429, 429)


@on([("served", "redis")])
def test_a_rate_holds_over_several_workers(client_with: Callable[..., Checked], store: Running) -> None:
    """Within 20 % of the quota, however the connections fall onto two processes, and whatever they have taken ahead."""
    client = client_with(KVSTORE_RATE="1000/m", WEB_CONCURRENCY="2")
    counts: Counter[int] = Counter()
    wires = [Wire(client.served.at) for _ in range(12)]

    def ask(wire: Wire) -> None:
        for _ in range(150):
            wire.send(b"GET /ns/a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            counts[wire.answer().status] += 1

    threads = [threading.Thread(target=ask, args=(wire,)) for wire in wires]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts[404] + counts[429] == 1800
    assert 800 <= counts[404] <= 1000


@on([("flask", "valkey"), ("served", "redis")])
def test_a_full_redis_refuses_no_reads(client_with: Callable[..., Checked], raw: redis.Redis) -> None:
    """What cannot be counted is not refused for that."""
    client = client_with(KVSTORE_RATE="50/m")
    assert client.put("/ns/a", "1").status == 201
    try:
        raw.config_set("maxmemory", "1")
        assert client.get("/ns/a").status == 200
        assert client.put("/ns/b", "1").status == 507
        assert client.delete("/ns/a").status == 204
    finally:
        raw.config_set("maxmemory", "0")


@on([("flask", "valkey"), ("flask", "redis"), ("flask", "fake"), ("flask", "cluster")])
def test_what_may_be_taken_ahead(store: Running) -> None:
    """A sixteenth of what is left: (cost, asked ahead) to (taken ahead, left)."""
    blocking = store.open()
    for cost, ahead, taken, left in (
        (1, 0, 0, 999),
        (1, 5, 5, 993),
        (1, 10_000, 62, 930),
        (900, 10_000, 1, 29),
        (29, 50, 0, 0),
    ):
        charged = blocking.execute(Charge("ada", cost, 1000, 60_000, ahead, lambda charged: charged))
        assert charged[:3] == (True, taken, left)
    refused = blocking.execute(Charge("ada", 1, 1000, 60_000, 0, lambda charged: charged))
    assert refused[:3] == (False, 0, 0)
    assert 0 < refused.left_ms <= 60_000
    blocking.close()


# --- What a process does by itself ------------------------------------------------------------------------------------------


def charge(rates: Rates, client: str, reply: tuple[int, int, int, int], cost: int = 1) -> Quota:
    """Ask Redis, which answers that."""
    command: Charge[Quota] = rates.charge(client, cost, lambda quota: quota)
    quota = command.then(Charged(reply[0] == 1, *reply[1:]))
    assert isinstance(quota, Quota)
    return quota


def test_what_was_taken_ahead_is_admitted_without_redis() -> None:
    """No more, and only until the window ends."""
    rates = Rates("default", Rate(1000, 60), "too much")
    assert rates.admit("a", 1) is None
    charge(rates, "a", (1, 2, 900, 50_000))
    assert rates.admit("b", 1) is None
    assert [getattr(rates.admit("a", 1), "remaining", None) for _ in range(3)] == [901, 900, None]
    charge(rates, "a", (1, 5, 900, 1))
    time.sleep(0.01)
    assert rates.admit("a", 1) is None


def test_who_has_used_up_a_quota_costs_redis_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the window ends."""
    now = [1000.0]
    monkeypatch.setattr("kvstore.access.rates.monotonic", lambda: now[0])
    rates = Rates("default", Rate(10, 1), "too much")
    with pytest.raises(TooManyRequests):
        charge(rates, "a", (0, 0, 0, 50))
    for _ in range(2):
        with pytest.raises(TooManyRequests, match="too much; try again in 1 s"):
            rates.admit("a", 1)
    now[0] += 0.06
    assert rates.admit("a", 1) is None


def test_no_quota_lasts_longer_than_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says, whose sums are rounded."""
    rates = Rates("default", Rate(1000, 3600), "too much")
    for started in (0.1, 1234.567, 29_876.543_21, 99_999.999_9):
        monkeypatch.setattr("kvstore.access.rates.monotonic", lambda started=started: started)
        assert charge(rates, str(started), (1, 1, 900, 3_600_000)).left_s == 3600


def test_the_windows_that_are_remembered_are_limited() -> None:
    """Whoever has been there longest is forgotten."""
    rates = Rates("default", Rate(1000, 60), "too much")
    for number in range(MAX_CLIENTS + 10):
        charge(rates, str(number), (1, 1, 900, 50_000))
    assert len(rates._windows) == MAX_CLIENTS
    assert rates.admit("0", 1) is None
    assert rates.admit(str(MAX_CLIENTS), 1) is not None


@pytest.mark.parametrize("text", ["200", "0/s", "-1/s", "1/d", "1/", "/s", "1 /s", "1e3/s", "9999999999/s"])
def test_a_rate_that_is_none(text: str) -> None:
    with pytest.raises(InvalidSetting, match="KVSTORE_RATE"):
        read_settings({"KVSTORE_RATE": text})


def test_a_rate() -> None:
    assert read_settings({"KVSTORE_RATE": "200/s"}).rate == (200, 1)
    assert read_settings({"KVSTORE_RATE": "1000/m"}).rate == (1000, 60)
    assert read_settings({"KVSTORE_RATE": "5000/h"}).rate == (5000, 3600)
    assert read_settings({}).rate is None


# --- Streams ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=FOLLOWED)
def two_streams(request: pytest.FixtureRequest, started: Callable[[str], Running]) -> Iterator[Followed]:
    store = started("redis")
    store.redis.flushall()
    followed = FOLLOWED[request.param](store, {"KVSTORE_CLIENT_STREAMS": "2", "KVSTORE_PROXIES": "1"})
    yield followed
    followed.stop()
    assert not store.redis.keys("*streams*")


def test_streams_of_a_client(two_streams: Followed) -> None:
    """One too many is refused; another client's is not, and a place that is given up is free."""

    def open_one(address: str = "192.0.2.1") -> Reader:
        return two_streams.open("/ns/a", {"X-Forwarded-For": address})

    first, second, third = open_one(), open_one(), open_one()
    assert (first.status, second.status, third.status) == (200, 200, 429)
    assert json.loads(third.body)["type"] == "urn:kvstore:too-many-requests"
    assert int(third.headers["Retry-After"]) >= 1
    other = open_one("192.0.2.2")
    assert other.status == 200
    assert two_streams.request("GET", "/ns/b").status == 404
    first.wait_for(1)
    first.close()
    opened: list[Reader] = []

    def is_free() -> bool:
        opened.append(open_one())
        return opened[-1].status == 200

    wait_until(is_free, 30)
    for reader in (second, other, *opened):
        reader.close()


def test_a_stream_of_several_paths_is_one(two_streams: Followed) -> None:
    """It counts as one stream of its client, and its place is free when it ends."""
    readers = [two_streams.open(target, {}) for target in ("/_/follow?path=/a&path=/b&path=/c", "/a", "/b")]
    assert [reader.status for reader in readers] == [200, 200, 429]
    for reader in readers:
        reader.close()


@on([("served", "redis")])
def test_a_stream_of_several_paths_is_one_request(client_with: Callable[..., Checked]) -> None:
    """The rate counts it as one."""
    client = client_with(KVSTORE_RATE="70/m")  # a service of this test's own
    reader = open_reader(client.served.at, "/_/follow?path=/a&path=/b&path=/c", {})
    assert (reader.status, limits(client.get("/ns/a"))[1]) == (200, 68)
    reader.close()


@on([("served", "redis")])
def test_streams_of_a_client_over_several_workers(client_with: Callable[..., Checked]) -> None:
    """Whichever process a stream falls to."""
    client = client_with(KVSTORE_CLIENT_STREAMS="3", WEB_CONCURRENCY="2")
    readers = [open_reader(client.served.at, "/ns/a", {}) for _ in range(10)]
    assert Counter(reader.status for reader in readers) == {200: 3, 429: 7}
    for reader in readers:
        reader.close()


@on([("flask", "valkey"), ("flask", "redis"), ("flask", "fake"), ("flask", "cluster")])
def test_the_places_of_a_process_that_died(store: Running) -> None:
    """They are free when their claims end; those that are renewed are not."""
    blocking = store.open()
    one, two, three = (StreamPlace("ada", 2, name) for name in ("x 1", "x 2", "y 1"))
    assert blocking.execute(ClaimStreams((one, two), 60_000)) == 2
    assert blocking.execute(ClaimStreams((three,), 60_000)) == 0
    assert store.redis.zadd(one.keys[0], {two.stream: 1}, xx=True, ch=True) == 1  # its claim has ended
    assert blocking.execute(ClaimStreams((one,), 60_000)) == 1
    assert blocking.execute(ClaimStreams((three,), 60_000)) == 1
    assert blocking.execute(ClaimStreams((two,), 60_000)) == 0
    blocking.execute(ReleaseStream(one))
    assert blocking.execute(ClaimStreams((two,), 60_000)) == 1
    blocking.close()


def test_a_claim_is_renewed(started: Callable[[str], Running], monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as the stream lives."""
    store = started("redis")
    store.redis.flushall()
    monkeypatch.setattr(client_streams, "RENEW_S", 0.05)
    monkeypatch.setattr(client_streams, "CLAIM_S", 20.0)
    followed = FOLLOWED["asgi"](store, {"KVSTORE_CLIENT_STREAMS": "1"})
    reader = followed.open("/ns/a", {})
    [key] = store.redis.keys("*streams*")
    [(_, until_ms)] = store.redis.zrange(key, 0, -1, withscores=True)
    wait_until(lambda: store.redis.zrange(key, 0, -1, withscores=True)[0][1] > until_ms, 30)
    reader.close()
    followed.stop()


# --- Mounted ----------------------------------------------------------------------------------------------------------------


@on([("flask", "valkey"), ("asgi", "redis")])
def test_a_quota_in_an_application(lane: tuple[str, str], store: Running) -> None:
    """It is for whoever the application says is asking; tokens are not looked at."""
    environ = {"KVSTORE_RATE": "3/m"} | ({"KVSTORE_SECRET": SECRET} if lane[0] == "asgi" else {})
    client = Checked(RULED[lane[0]](store, [["/**", "anyone", "anyone", "anyone"]], environ))
    bad = [("Authorization", "Bearer bad")]
    asked: list[tuple[dict[str, str] | None, int]] = [({"sub": "ada"}, 2), ({"sub": "bob"}, 2), (None, 2), ({"sub": "ada"}, 1)]
    for claims, left in asked:
        answer = client.get("/ns/a", [*by(claims), *bad])
        assert (answer.status, limits(answer)[1]) == (404, left)
    client.close()


@on([("flask", "valkey"), ("asgi", "redis")])
def test_a_batch_that_needs_a_lookup_counts_its_requests(lane: tuple[str, str], store: Running) -> None:
    """As any other, whatever becomes of it."""
    member = "in:/members/a/"
    client = Checked(RULED[lane[0]](store, [["/ns/**", member, member, member]], {"KVSTORE_RATE": "90/m"}))
    requests = {"atomic": False, "requests": [PUT, GET, PUT]}
    for left, members in ((87, []), (84, ["ada"])):
        for name in members:
            store.redis.hset(f"kv:{{members}}/a/{name}", "n", 1)
        answer = client.request("POST", "/_/batch", by({"sub": "ada"}), json.dumps(requests).encode())
        assert {part["status"] for part in answer.json["responses"]} == ({200, 201} if members else {403})
        assert limits(answer)[1] == left
    client.close()
