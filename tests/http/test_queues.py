"""A container worked as a queue: its jobs are enqueued, taken, done, given back, and buried.

Time is not waited for: `end_hold` writes into Redis what it would be later. How long a hold lasts is measured in one test.
"""

import re
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from kvstore.commands.base import Again, Command, settled
from kvstore.commands.jobs import Take, Taken
from kvstore.commands.scripts import TAKE
from kvstore.commands.takers import MAX_NAME_BYTES, MAX_TAKERS, RegisterTaker, RemoveTaker, takers_key
from kvstore.core.errors import StoreFull
from kvstore.core.paths import own_key, parse_path
from kvstore.http.messages import Request
from kvstore.http.protocol import render
from tests.support.asking import (
    JSON,
    LATE_S,
    MERGE,
    Left,
    as_body,
    at_once,
    batch,
    command_of,
    documents_and_indexes,
    entries,
    expire,
    json_patch,
    keys_of,
    listed,
    patch,
    post,
    run_script,
    stream,
)
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_few, on_one, on_servers, on_two
from tests.support.stores import Running, contents


def take(client: Checked, target: str = "/ns/q/?lease=60s", headers: Any = ()) -> Answer:
    """A take."""
    return client.request("POST", target, headers)


def taken(client: Checked, target: str = "/ns/q/?lease=60s") -> list[Any]:
    """The jobs that a take gives."""
    answer = take(client, target)
    assert answer.status in (200, 204), answer
    return answer.json["items"] if answer.status == 200 else []


def with_lease(job: Any) -> list[tuple[str, str]]:
    """The precondition that a job is leased as it was taken."""
    return [("If-Match", f'"{job["lease"]}"')]


def lease_for(client: Checked, job: Any, lease: str = "60s", body: bytes = b"") -> Answer:
    """Change a job's lease; `lease` goes on with other parameters."""
    return client.request("PATCH", f"{job['path']}?lease={lease}", with_lease(job), body)


def done(client: Checked, job: Any) -> int:
    """Say that a job is done."""
    return client.delete(job["path"], with_lease(job)).status


def end_hold(raw: redis.Redis, path: str) -> None:
    """Let the time be over until which a job cannot be taken."""
    at = parse_path(path.encode())
    mark: Any = raw.hget(at.keys.document, "$kv")
    assert re.match(rb"job \d+(?:/\d+)? \d+ \S+ \S+\n", mark), mark
    raw.hset(at.keys.document, "$kv", re.sub(rb"^(job \S+) \d+", rb"\1 1", mark))
    raw.zadd(own_key(at, "ready_at"), {at.name: 1})


def states(client: Checked, target: str = "/ns/q/") -> dict[str, tuple[str, int]]:
    """What a listing says of jobs, by name."""
    return {item["name"]: (item["state"], item["attempts"]) for item in listed(client, target) if "state" in item}


# --- Taking -------------------------------------------------------------------------------------------------------------

# The targets of a take, what is put, where its jobs are.
PLACES = [
    ("/ns/q/?lease=60s", "/ns/q/a"),
    ("/ns/q?lease=60s", "/ns/q/a"),
    ("/ns/?lease=60s", "/ns/a"),
    ("/ns?lease=60", "/ns/a"),
    ("/n%2Fs/%C3%A9/?lease=60s", "/n%2Fs/%C3%A9/%7B%25%7D"),
    ("/n%2fs/é?lease=60s", "/n%2Fs/%C3%A9/a%20b"),
    ("/ns/%71/?lease=12h&x=1", "/ns/q/a"),
]


@on_few
@pytest.mark.parametrize(("target", "path"), PLACES)
def test_a_job(client: Checked, raw: redis.Redis, target: str, path: str) -> None:
    """200 with the job, as in docs/queues.md; done by DELETE with its lease; then there is nothing, and nothing was left."""
    client.put(path + "?ttl=2h", '{"z":1.0,"a":[]}')
    answer = take(client, target)
    assert (answer.status, answer.headers["Content-Type"], answer.headers["Cache-Control"]) == (
        200,
        "application/json",
        "no-store",
    )
    [job] = answer.json["items"]
    assert list(job) == ["path", "value", "attempts", "lease", "ttl"]
    assert (job["path"], job["attempts"], job["ttl"]) == (path, 1, Left(7200))
    assert b'"value":{"z":1.0,"a":[]}' in answer.body
    assert re.fullmatch("[!#-~]+", job["lease"]), "it goes between the quotes of an entity-tag"
    again = take(client, target)
    assert (again.status, again.body) == (204, b"")
    assert done(client, job) == 204
    assert client.get(path).status == 404
    assert done(client, job) == 404
    assert taken(client, target) == []
    namespace = parse_path(path.encode()).namespace
    assert not raw.exists(keys_of(namespace).blocked)
    assert all(raw.pttl(key) > 0 for key in contents(raw)), "all keys expire"


@on_few
def test_order_and_limit(client: Checked) -> None:
    """By name, by commit for names that POST made; each job once."""
    for name in ("b", "a%20b", "a", "Z", "~", "%C3%A9", "10", "9"):
        client.put(f"/ns/q/{name}", "1")
    posted = [post(client, "/ns/q/", n).json["path"] for n in range(3)]
    names = sorted(["b", "a%20b", "a", "Z", "~", "%C3%A9", "10", "9", *(path.rpartition("/")[2] for path in posted)])
    got = [taken(client), taken(client, "/ns/q/?lease=60s&limit=4"), taken(client, "/ns/q/?lease=60s&limit=100"), taken(client)]
    assert [len(jobs) for jobs in got] == [1, 4, 6, 0]
    jobs = [job for some in got for job in some]
    assert [job["path"].rpartition("/")[2] for job in jobs] == names
    assert len({job["lease"] for job in jobs}) == 11
    assert [job["value"] for job in jobs if job["path"] in posted] == [0, 1, 2]


@on_few
def test_only_what_is_directly_below(client: Checked) -> None:
    """Containers within the container, its neighbours, and the document of its own name are no jobs."""
    for path in (
        "/ns/q",
        "/ns/q/a/x",
        "/ns/q/a/x/y",
        "/ns/q/b",
        "/ns/q/b/x",
        "/ns/q/dead/x",
        "/ns/q0",
        "/ns/q.",
        "/ns/p/a",
        "/q/b",
    ):
        client.put(path, "1")
    assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&limit=100")] == ["/ns/q/b"]
    assert [job["path"] for job in taken(client, "/ns/?lease=60s&limit=100")] == ["/ns/q", "/ns/q.", "/ns/q0"]


@on_few
def test_the_root(client: Checked) -> None:
    """It is no queue: its dead jobs would be in another namespace, where one script does not reach."""
    client.put("/a", "1")
    for target, body in (("/?lease=60s", b""), ("/?lease=60s&wait=5", b""), ("/?delay=1s", b"1")):
        answer = client.request("POST", target, (), body)
        assert (answer.status, answer.json["type"]) == (400, "urn:kvstore:invalid-parameter")


# What is wrong with a take: its query, headers, body.
BAD_TAKES: list[tuple[str, list[tuple[str, str]], bytes]] = [
    ("lease=0", [], b""),
    ("lease", [], b""),
    ("lease=", [], b""),
    ("lease=-1", [], b""),
    ("lease=1.5", [], b""),
    ("lease=1w", [], b""),
    ("lease=43201", [], b""),
    ("lease=1&lease=1", [], b""),
    ("lease=1&limit=0", [], b""),
    ("lease=1&limit=101", [], b""),
    ("lease=1&limit=", [], b""),
    ("lease=1&limit=1e1", [], b""),
    ("lease=1&limit=%D9%A1", [], b""),
    ("lease=1&limit=1&limit=1", [], b""),
    ("lease=1&wait=26", [], b""),
    ("lease=1&wait=1m", [], b""),
    ("lease=1&wait=-1", [], b""),
    ("lease=1&wait=", [], b""),
    ("lease=1&as=1", [], b""),
    ("lease=1&wait=1&as=", [], b""),
    ("lease=1&wait=1&as=ada", [], b""),
    ("lease=1&wait=1&as=1&as=1", [], b""),
    ("lease=1&wait=1&as=%FF", [], b""),
    ("lease=1&wait=1&as=%7B%22ttl%22:1%7D", [], b""),
    ("lease=1&wait=1&as=%7B%22a%22:%7B%22.sv%22:%22timestamp%22%7D%7D", [], b""),
    (f"lease=1&wait=1&as=%22{'x' * (MAX_NAME_BYTES - 1)}%22", [], b""),
    ("lease=1&max_attempts=0", [], b""),
    ("lease=1&max_attempts=1001", [], b""),
    ("lease=1&max_attempts=many", [], b""),
    ("lease=1", [], b"{}"),
    ("lease=1", [("Transfer-Encoding", "chunked")], b"1"),
    ("lease=1", [("If-Match", "*")], b""),
    ("lease=1", [("If-None-Match", "*")], b""),
    ("lease=1", [("If-Unmodified-Since", "Fri, 20 Nov 2026 10:00:00 GMT")], b""),
]


@on_two
@pytest.mark.parametrize(("query", "headers", "body"), BAD_TAKES)
def test_a_bad_take(client: Checked, raw: redis.Redis, query: str, headers: Any, body: bytes) -> None:
    """400, and nothing is taken, nothing appended."""
    client.put("/ns/q/a", "1")
    before = contents(raw)
    assert client.request("POST", f"/ns/q/?{query}", headers, body).status == 400
    assert contents(raw) == before


@on_one
def test_no_room_for_the_dead(client: Checked) -> None:
    """A container too deep, or with too long a name, for what becomes of its dead jobs is refused before anything is taken."""
    deep = "/" + "/".join("a" * 31)
    assert client.put(f"{deep}/x", "1").status == 201
    assert take(client, f"{deep}/?lease=1").status == 400
    for length in range(970, 1023):
        container = "/ns/" + "q" * (length - 5) + "/"
        assert client.put(container + "x" * (1024 - length), "1").status == 201
        answer = take(client, f"{container}?lease=60s&max_attempts=1")
        assert answer.status in (200, 414)
        if answer.status == 200:
            [job] = answer.json["items"]
            assert lease_for(client, job, "0").status == 200
            assert taken(client, f"{container}?lease=60s&max_attempts=1") == []
            assert len(listed(client, container + "dead/")) == 1
    assert answer.status == 414


@on_few
@pytest.mark.parametrize("path", ["/ns/q/", "/ns/q/?list", "/ns/q"])
def test_other_methods_take_nothing(client: Checked, raw: redis.Redis, path: str) -> None:
    """?lease= means something to POST and PATCH alone."""
    client.put("/ns/q/a", "1")
    for method in ("GET", "HEAD", "OPTIONS", "PUT"):
        client.request(method, f"{path}{'&' if '?' in path else '?'}lease=60s", [], b"1" if method == "PUT" else b"")
    assert client.request("PATCH", "/ns/q/?lease=60s").status == 405
    assert not raw.exists(keys_of("ns").blocked)


@on_one
def test_large_values(client: Checked) -> None:
    """A take gives up to some MiB at once, and at least one job; the others can be taken next."""
    for n in range(12):
        client.put(f"/ns/q/{n:02}", f'{{"n":{n},"x":"{"x" * 1_000_000}"}}')
    got = [[job["value"]["n"] for job in taken(client, "/ns/q/?lease=60s&limit=100")] for _ in range(4)]
    assert [n for some in got for n in some] == list(range(12))
    assert 3 <= len(got[0]) <= 6


# --- Delay --------------------------------------------------------------------------------------------------------------


@on_few
def test_a_delayed_job(client: Checked, raw: redis.Redis) -> None:
    """It is there and can be read and changed; it cannot be taken before its time."""
    path = post(client, "/ns/q/?delay=1h", '{"a":1}').json["path"]
    assert client.get(path).json["a"] == 1
    [name] = states(client)
    assert states(client) == {name: ("delayed", 0)}
    assert taken(client) == []
    assert patch(client, path, {"b": 2}).status == 200
    assert client.put(path, "3").status == 200
    assert states(client) == {name: ("delayed", 0)}
    assert taken(client) == []
    end_hold(raw, path)
    assert states(client) == {name: ("ready", 0)}
    [job] = taken(client)
    assert (job["path"], job["value"], job["attempts"]) == (path, 3, 1)
    assert done(client, job) == 204


@on_few
def test_a_delayed_job_can_be_deleted(client: Checked, raw: redis.Redis) -> None:
    """Without a precondition: nobody has it."""
    path = post(client, "/ns/q/?delay=1h", "1").json["path"]
    assert client.delete(path).status == 204
    assert not raw.exists(keys_of("ns").blocked)


# The query of a POST, and its status.
DELAYS = [
    ("delay=1", 201),
    ("delay=0", 201),
    ("delay=365d", 201),
    ("delay=10s&ttl=10", 201),
    ("delay=11s&ttl=10", 400),
    ("delay=366d", 400),
    ("delay", 400),
    ("delay=", 400),
    ("delay=-1", 400),
    ("delay=soon", 400),
    ("delay=1&delay=1", 400),
]


@on_few
@pytest.mark.parametrize(("query", "status"), DELAYS)
def test_what_a_delay_may_be(client: Checked, raw: redis.Redis, query: str, status: int) -> None:
    """A time, not longer than the document lives; none is no delay."""
    assert post(client, f"/ns/q/?{query}", "1").status == status
    assert bool(raw.keys()) == (status == 201)
    assert len(taken(client)) == (query == "delay=0")


@on_two
def test_times_are_kept(client: Checked) -> None:
    """A delay and a lease of one second end after one second, and not before."""
    begun = time.monotonic()
    post(client, "/ns/delayed/?delay=1", "1")
    client.put("/ns/leased/a", "1")
    client.put("/ns/back/a", "1")
    assert len(taken(client, "/ns/leased/?lease=1")) == 1
    [job] = taken(client, "/ns/back/?lease=60s")
    assert lease_for(client, job, "0&delay=1").status == 200
    for container, attempts in (("delayed", 1), ("leased", 2), ("back", 2)):
        jobs: list[Any] = []
        while not jobs:
            asked = time.monotonic()
            jobs = taken(client, f"/ns/{container}/?lease=60s")
            assert asked - begun < 60
        assert jobs[0]["attempts"] == attempts
        assert time.monotonic() - begun > 0.9


@on_two
def test_many_delayed_before_one(client: Checked, raw: redis.Redis) -> None:
    """A ready job behind 10,000 delayed ones is found, and by few commands more than behind ten."""

    def commands(few: int, many: int) -> int:
        for first in range(few, many, 1000):
            count = min(1000, many - first)
            assert batch(client, [("POST", "/ns/q/?delay=1h", n) for n in range(count)]).status == 200
        client.put("/ns/q/ready", "1")
        raw.config_resetstat()
        [job] = taken(client)
        ran = sum(int(stat["calls"]) for stat in raw.info("commandstats").values())
        assert job["path"] == "/ns/q/ready"
        assert done(client, job) == 204
        return ran

    with_ten = commands(0, 10)
    with_many = commands(10, 10_010)
    assert with_many < with_ten + 200
    assert taken(client) == []


@on_one
def test_many_whose_time_is_over(client: Checked, raw: redis.Redis) -> None:
    """However many holds have ended, and wherever in the namespace, the next take knows of all of them."""
    for _ in range(3):
        batch(client, [("POST", "/ns/other/?delay=1h", n) for n in range(1000)])
    path = post(client, "/ns/q/?delay=1h", "1").json["path"]
    until = keys_of("ns").ready_at
    names: Any = raw.zrange(until, 0, -2)
    raw.zadd(until, dict.fromkeys(names, 1))
    raw.zadd(until, {parse_path(path.encode()).name: 2})
    end_hold(raw, path)
    raw.zadd(until, {parse_path(path.encode()).name: 2})
    assert [job["path"] for job in taken(client)] == [path]


@on_one
def test_many_that_have_expired(client: Checked, raw: redis.Redis) -> None:
    """A take, or a listing, passes over any number of them, a thousand in a script, so that Redis is not held up for long."""

    def scripts() -> int:
        return int(raw.info("commandstats")["cmdstat_evalsha"]["calls"])

    asked: list[Callable[[], list[str]]] = [
        lambda: [job["path"] for job in taken(client)],
        lambda: [item["path"] for item in listed(client, "/ns/q/")],
    ]
    for ask in asked:
        client.delete("/ns/?recursive")
        for first in range(0, 3000, 1000):
            batch(client, [("PUT", f"/ns/q/{number:04}", number) for number in range(first, first + 1000)])
        client.put("/ns/q/z", "1")
        assert raw.delete(*raw.keys("kv:{ns}/q/[0-9]*")) == 3000
        before = scripts()
        assert ask() == ["/ns/q/z"]
        assert scripts() - before == 4
        assert raw.zcard(keys_of("ns").names) == 1


@on_one
def test_many_that_have_expired_behind_one_that_lives(client: Checked, raw: redis.Redis) -> None:
    """Who wants two jobs is given the one, and does not wait for a look at all of the others."""
    for first in range(0, 3000, 1000):
        batch(client, [("PUT", f"/ns/q/{number:04}", number) for number in range(first, first + 1000)])
    client.put("/ns/q/-", "1")
    assert raw.delete(*raw.keys("kv:{ns}/q/[0-9]*")) == 3000
    assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&limit=2")] == ["/ns/q/-"]
    assert raw.zcard(keys_of("ns").names) == 2001
    assert taken(client) == []
    assert raw.zcard(keys_of("ns").names) == 1


@on_few
@pytest.mark.parametrize(("preference", "status"), [("minimal", 204), ("representation", 200)])
def test_what_a_lease_answers(client: Checked, preference: str, status: int) -> None:
    """As much as was preferred, as for any write."""
    client.put("/ns/q/a", "1")
    [job] = taken(client)
    answer = client.request("PATCH", "/ns/q/a?lease=9", [*with_lease(job), ("Prefer", f"return={preference}")])
    assert (answer.status, answer.headers["Preference-Applied"]) == (status, f"return={preference}")
    assert bool(answer.body) == (status == 200)


# --- States -------------------------------------------------------------------------------------------------------------


@on_few
def test_states(client: Checked, raw: redis.Redis) -> None:
    """Of a container that is worked as a queue, and only there."""
    for name in "abc":
        client.put(f"/ns/q/{name}", "1")
        client.put(f"/ns/other/{name}", "1")
    assert states(client) == {}
    first, second = taken(client, "/ns/q/?lease=60s&limit=2")
    assert states(client) == {"a": ("leased", 1), "b": ("leased", 1), "c": ("ready", 0)}
    assert lease_for(client, first, "0&delay=1h").status == 200
    end_hold(raw, second["path"])
    assert states(client) == {"a": ("delayed", 1), "b": ("ready", 1), "c": ("ready", 0)}
    assert states(client, "/ns/q/?keys") == states(client)
    assert states(client, "/ns/q/?order=desc&limit=1") == states(client)
    _, items = stream(client, "/ns/q/")
    assert {item["name"]: (item["state"], item["attempts"]) for item in items} == states(client)
    for target in ("/ns/q/?recursive", "/ns/?recursive", "/ns/other/", "/ns/", "/?list"):
        items = listed(client, target)
        assert items
        assert not [item for item in items if "state" in item or "attempts" in item]
    [item] = listed(client, "/ns/q/?after=b")
    assert list(item) == ["name", "path", "state", "attempts", "etag", "ttl", "value"]


@on_few
def test_a_queue_that_is_empty(client: Checked) -> None:
    """A delay, or a take that found nothing beside others, makes a queue of a container; containers in it have no state."""
    post(client, "/ns/q/?delay=1h", "1")
    assert list(states(client).values()) == [("delayed", 0)]
    assert taken(client, "/ns/empty/?lease=1") == []
    client.put("/ns/empty/a", "1")
    client.put("/ns/empty/b/c", "1")
    assert states(client, "/ns/empty/") == {"a": ("ready", 0)}
    assert [item["name"] for item in listed(client, "/ns/empty/")] == ["a", "b/"]


# Those who wait: who they say that they are, the ms for which they have waited, and for which they wait at most.
WAITING = [(b'{"host":"b"}', 1000, 24_000), (b"null", 5000, 20_000), (b"[]", 0, 1)]
WAITS = [(None, 25_000), ({"host": "b"}, 25_000)]


@on_few
def test_who_waits(client: Checked, store: Running) -> None:
    """The first page has them, who has waited longest first: where somebody waits, and outside the entity-tag."""
    queue = parse_path(b"/ns/q/")
    for name in ("a", "b", "c/d"):
        client.put(f"/ns/q/{name}", "1")
    tag = client.get("/ns/q/").tag
    with closing(store.open()) as opened:
        entries = [opened.execute(RegisterTaker(queue, f"id{n}", *waiting)) for n, waiting in enumerate(WAITING)]
        time.sleep(0.01)
        for target in ("/ns/q/", "/ns/q/?keys", "/ns/q/?order=desc", "/ns/q/?limit=1"):
            page = client.get(target).json
            assert [(taker["as"], taker["until"] - taker["since"]) for taker in page["takers"]] == WAITS
            assert abs(page["takers"][1]["since"] + 1000 - time.time() * 1000) < 60_000
        for query in ("after=a", "recursive", "x:exists=false", "count"):
            assert "takers" not in client.get(f"/ns/q/?{query}").json
        for container in ("/ns/", "/ns/q/c/", "/?list"):
            assert "takers" not in client.get(container).json
        assert len(stream(client, "/ns/q/")[1]) == 3
        assert client.get("/ns/q/", [("If-None-Match", tag)]).status == 304
        for entry in entries[:2]:
            opened.execute(RemoveTaker(queue, entry or b""))
        assert "takers" not in client.get("/ns/q/").json


# What another client may put where those who wait are, and what a listing shows of it.
NO_TAKERS: dict[str, tuple[Callable[[redis.Redis, str], object], list[Any]]] = {
    "a string": (lambda raw, key: raw.set(key, "x"), []),
    "one word": (lambda raw, key: raw.zadd(key, {"x": 9e12}), []),
    "three words": (lambda raw, key: raw.zadd(key, {"x y z": 9e12, "1" * 5000 + " y z": 9e12}), []),
    "no time": (lambda raw, key: raw.zadd(key, {"1 a 2": float("inf"), "1 b 2": 9e12 + 0.5}), []),
    "no JSON": (lambda raw, key: raw.zadd(key, {b"1 a {": 9e12, b"2 b \xff": 9e12}), ["{", "\\xff"]),
    "too many": (lambda raw, key: raw.zadd(key, {f"{n} a {n}": 9e12 + n for n in range(200)}), list(range(MAX_TAKERS))),
}


@on_few
def test_what_another_client_puts_there(client: Checked, raw: redis.Redis) -> None:
    """It takes no listing down: what is no entry of ours is left out."""
    client.put("/ns/q/a", "1")
    key = takers_key(parse_path(b"/ns/q/"))
    for case, (put, shown) in NO_TAKERS.items():
        raw.delete(key)
        put(raw, key)
        listing = client.get("/ns/q/")
        assert listing.status == 200, case
        assert [taker["as"] for taker in listing.json.get("takers", [])] == shown, case


@on_one
def test_how_many_are_shown(client: Checked, raw: redis.Redis, store: Running) -> None:
    """So many of a container; who comes later waits as well. They leave nothing behind, also where their processes die."""
    queue = parse_path(b"/ns/q/")

    def register(number: int, left_ms: int = 9000, entry: bytes | None = None) -> bytes | None:
        return opened.execute(RegisterTaker(queue, str(number), b"%d" % number, 0, left_ms, entry))

    with closing(store.open()) as opened:
        entries = [register(number) for number in range(MAX_TAKERS)]
        assert all(entries)
        assert register(MAX_TAKERS) is None
        assert register(0, 20_000, entries[0]) == entries[0]
        assert (20 - LATE_S) * 1000 < raw.pttl(takers_key(queue)) <= 20_000
        takers = client.get("/ns/q/").json["takers"]
        assert sorted(taker["as"] for taker in takers) == list(range(MAX_TAKERS))
        assert [taker["as"] for taker in takers if taker["until"] - taker["since"] > 10_000] == [0]
        opened.execute(RemoveTaker(queue, entries[1] or b""))
        assert register(MAX_TAKERS, 1)
        time.sleep(0.01)
        assert register(MAX_TAKERS + 1), "the place of one whose time is over"


@on_few
def test_leases_are_no_changes(client: Checked, raw: redis.Redis) -> None:
    """Taking, extending, giving back: the entity-tags of job and container stay, and the log has no entry of it."""
    client.put("/ns/q/a", '{"a":1}')
    tags, log = (client.get("/ns/q/a").tag, client.get("/ns/q/").tag), entries(raw)

    def is_unchanged() -> bool:
        return tags == (client.get("/ns/q/a").tag, client.get("/ns/q/").tag) and entries(raw) == log

    [job] = taken(client)
    assert is_unchanged()
    assert client.get("/ns/q/", [("If-None-Match", tags[1])]).status == 304
    assert client.get("/ns/q/a", [("If-None-Match", tags[0])]).status == 304
    assert lease_for(client, job, "2h").status == 200
    assert is_unchanged()
    assert lease_for(client, job, "0&delay=1h", b'{"reason":"later"}').status == 200
    assert is_unchanged()
    end_hold(raw, "/ns/q/a")
    assert len(taken(client)) == 1
    assert is_unchanged()


# --- Leases -------------------------------------------------------------------------------------------------------------


@on_few
def test_extending(client: Checked, raw: redis.Redis) -> None:
    """The lease string stays; from then on it lasts for what was asked, longer or shorter."""
    client.put("/ns/q/a?ttl=2h", '{"a":1}')
    [job] = taken(client, "/ns/q/?lease=60s")
    for lease, lease_s in (("2h", 7200), ("10", 10), ("1h", 3600)):
        answer = lease_for(client, job, lease)
        assert answer.status == 200
        assert list(answer.json) == ["path", "lease", "ttl"]
        assert answer.json == {"path": job["path"], "lease": job["lease"], "ttl": Left(7200)}
        left_ms = (raw.zscore(keys_of("ns").ready_at, "q/a") or 0) - time.time() * 1000
        assert (lease_s - 30) * 1000 < left_ms <= (lease_s + 1) * 1000
    assert taken(client) == []
    assert done(client, job) == 204


@on_few
def test_giving_back(client: Checked) -> None:
    """At once, or with a delay; the old lease is over, and the next take counts."""
    client.put("/ns/q/a", '{"a":1}')
    [first] = taken(client)
    answer = lease_for(client, first, "0")
    assert (answer.status, answer.json["path"], answer.json["lease"]) == (200, first["path"], None)
    assert [status(client, first) for status in FENCED.values()] == [412] * len(FENCED)
    assert states(client) == {"a": ("ready", 1)}
    [second] = taken(client)
    assert second["attempts"] == 2
    assert second["lease"] != first["lease"]
    assert lease_for(client, second, "0&delay=1h").status == 200
    assert states(client) == {"a": ("delayed", 2)}
    assert taken(client) == []


# What is wrong with a change of a lease: its query, body, headers, status.
BAD_LEASES: list[tuple[str, bytes, list[tuple[str, str]], int]] = [
    ("lease", b"", [], 400),
    ("lease=-1", b"", [], 400),
    ("lease=43201", b"", [], 400),
    ("lease=1&lease=1", b"", [], 400),
    ("lease=1&delay=1", b"", [], 400),
    ("lease=1&delay=0", b"", [], 400),
    ("lease=0&delay=x", b"", [], 400),
    ("lease=0&delay=43201", b"", [], 400),
    ("lease=1", b"{}", [], 400),
    ("lease=1", b'{"reason":"x"}', [], 400),
    ("lease=0", b'{"reason":1}', [], 400),
    ("lease=0", b'{"reason":"x","other":1}', [], 400),
    ("lease=0", b'"x"', [], 400),
    ("lease=0", b"x", [], 400),
    ("lease=0", b'{"reason":"\\ud800"}', [], 400),
    ("lease=1", b"", [("If-None-Match", "*")], 400),
    ("lease=0", b'{"reason":"x"}', [("Content-Type", "text/xml")], 415),
    ("lease=0", b'{"reason":"x"}', [("Content-Encoding", "gzip")], 415),
]


@on_few
@pytest.mark.parametrize("row", BAD_LEASES)
def test_a_bad_change_of_a_lease(client: Checked, raw: redis.Redis, row: Any) -> None:
    """Refused, and the lease is as it was."""
    query, body, headers, status = row
    client.put("/ns/q/a", '{"a":1}')
    [job] = taken(client)
    before = contents(raw)
    assert client.request("PATCH", f"/ns/q/a?{query}", [*with_lease(job), *headers], body).status == status
    assert contents(raw) == before


# Whether a job that is there is leased, If-Match (t: its entity-tag, l: its lease, o: a lease it had before), and the status.
LEASES = [
    ("leased", None, 409),
    ("leased", "l", 200),
    ("leased", '"x", l', 200),
    ("leased", "*", 200),
    ("leased", "t", 412),
    ("leased", "o", 412),
    ("leased", "W/l", 412),
    ("leased", '""', 412),
    ("ready", None, 412),
    ("ready", "o", 412),
    ("ready", "t", 412),
    ("ready", "*", 412),
    ("never taken", "t", 412),
    ("never taken", None, 412),
    ("gone", "o", 404),
    ("gone", None, 404),
    ("gone", "*", 404),
]


@on_few
@pytest.mark.parametrize("query", ["lease=2h", "lease=0"])
@pytest.mark.parametrize("row", LEASES)
def test_who_may_change_a_lease(client: Checked, raw: redis.Redis, query: str, row: Any) -> None:
    """Whoever has it, and whoever says *; only while it is leased."""
    kind, match, status = row
    tag = client.put("/ns/q/a", '{"a":1}').tag
    old, new = "never-was", "never-was"
    if kind != "never taken":
        [job] = taken(client)
        old = job["lease"]
        lease_for(client, job, "0")
    if kind == "leased":
        [job] = taken(client)
        new = job["lease"]
    if kind == "gone":
        client.delete("/ns/q/a")
    headers = [("If-Match", match.replace("t", tag).replace("l", f'"{new}"').replace("o", f'"{old}"'))] if match else []
    before = contents(raw)
    answer = client.request("PATCH", f"/ns/q/a?{query}", headers)
    assert answer.status == status
    if status >= 400:
        assert contents(raw) == before
    else:
        assert answer.json["lease"] == (None if query == "lease=0" else new)


# --- Writing while somebody has the job ---------------------------------------------------------------------------------


def _status(method: str, *more: tuple[str, str], query: str = "", body: Any = b"") -> Callable[..., int]:
    def ask(client: Checked, job: Any, match: str | None = None) -> int:
        headers = with_lease(job) if match is None else [("If-Match", match)] if match else []
        return client.request(method, job["path"] + query, [*headers, *more], as_body(body)).status

    return ask


# Every write to a document.
WRITES = {
    "PUT": _status("PUT", body={"b": 2}),
    "PUT, not an object": _status("PUT", body="[1]"),
    "merge patch": _status("PATCH", MERGE, body={"b": 2}),
    "nested merge patch": _status("PATCH", MERGE, body={"o": {"b": 2}}),
    "merge patch, not an object": _status("PATCH", MERGE, body="5"),
    "increment": _status("PATCH", body={"n": {".sv": {"increment": 1}}}),
    "JSON Patch": _status("PATCH", JSON, body='[{"op":"add","path":"/b","value":2}]'),
    "touch": _status("PATCH", query="?ttl=1h"),
    "DELETE": _status("DELETE"),
}
# What a worker whose lease has ended may not do.
FENCED = {**WRITES, "extend": _status("PATCH", query="?lease=60s"), "give back": _status("PATCH", query="?lease=0")}


@on_one
def test_what_looks_like_a_lease(client: Checked, raw: redis.Redis) -> None:
    """A name, a parameter that means nothing, an entity-tag of somebody else: what to do after a 412 is about no lease."""
    client.put("/ns/lease=60s", "1")
    raw.hset("kv:{ns}/theirs", "a", "1")
    for target, match in (("lease=60s", "1-1"), ("lease=60s?lease=60s", "1-1"), ("lease=60s", "v1.2"), ("theirs", "None")):
        answer = client.request("PUT", "/ns/" + target, [("If-Match", f'"{match}"')], b"2")
        assert answer.status == 412
        assert "its entity-tag" in answer.json["detail"]


@on_one
@pytest.mark.parametrize(
    ("method", "query", "match", "said"),
    [
        ("PUT", "", "TAG", "send only its lease"),
        ("DELETE", "", "TAG", "send only its lease"),
        ("DELETE", "", '"1-1.1"', "the lease has ended"),
        ("PATCH", "?lease=60s", "TAG", "the lease has ended"),
        ("PATCH", "?lease=0", '"1-1.1"', "the lease has ended"),
        ("PUT", "", '"1-1"', "its entity-tag"),
    ],
)
def test_a_refusal_says_what_to_do(client: Checked, method: str, query: str, match: str, said: str) -> None:
    """The entity-tag of a leased job, and another lease, are refused again and again."""
    tag = client.put("/ns/q/a", "1").tag
    taken(client)
    body = b"2" if method == "PUT" else b""
    answer = client.request(method, "/ns/q/a" + query, [("If-Match", match.replace("TAG", str(tag)))], body)
    assert answer.status == 412
    assert said in answer.json["detail"]


@on_few
@pytest.mark.parametrize("kind", WRITES)
def test_a_write_to_a_leased_job(client: Checked, raw: redis.Redis, kind: str) -> None:
    """409 without If-Match, 412 with another, applied with the lease; the lease stays, but where the job is deleted."""
    tag = client.put("/ns/q/a", '{"a":1}').tag
    [job] = taken(client)
    before = contents(raw)
    assert WRITES[kind](client, job, "") == 409
    assert WRITES[kind](client, job, tag) == 412
    assert WRITES[kind](client, job, '"1-1.1"') == 412
    assert contents(raw) == before
    answer = client.request("PUT", "/ns/q/a", [], b"1").json
    assert (answer["type"], answer["status"]) == ("urn:kvstore:leased", 409)
    assert WRITES[kind](client, job) == (204 if kind == "DELETE" else 200)
    assert taken(client) == []
    if kind != "DELETE":
        assert states(client) == {"a": ("leased", 1)}
        assert WRITES[kind](client, job) == 200, "the lease is the same after a write"
        assert lease_for(client, job).json["lease"] == job["lease"]
        assert done(client, job) == 204
    assert client.get("/ns/q/a").status == 404


@on_few
@pytest.mark.parametrize("kind", WRITES)
def test_override(client: Checked, kind: str) -> None:
    """If-Match: * writes to a leased job as well: so it is cancelled."""
    client.put("/ns/q/a", '{"a":1}')
    [job] = taken(client)
    assert WRITES[kind](client, job, "*") == (204 if kind == "DELETE" else 200)
    assert done(client, job) == (404 if kind == "DELETE" else 204)


@on_few
@pytest.mark.parametrize("ending", ["time", "taken again", "time, and written", "deleted", "deleted, and taken again"])
def test_a_fencing_token(client: Checked, raw: redis.Redis, ending: str) -> None:
    """A worker whose lease has ended cannot do anything any more, not even to another document of that name."""
    client.put("/ns/q/a", '{"a":1}')
    [job] = taken(client)
    if ending.startswith("time"):
        end_hold(raw, "/ns/q/a")
    if ending == "taken again":
        lease_for(client, job, "0")
        assert len(taken(client)) == 1
    if ending == "time, and written":
        assert client.put("/ns/q/a", "1").status == 200
    if ending.startswith("deleted"):
        assert client.delete("/ns/q/a", [("If-Match", "*")]).status == 204
        assert client.put("/ns/q/a", '{"a":1}').status == 201
    if ending.endswith(", and taken again"):
        [again] = taken(client)
        assert again["attempts"] == 1
    before = contents(raw)
    assert {kind: status(client, job) for kind, status in FENCED.items()} == dict.fromkeys(FENCED, 412)
    assert contents(raw) == before


@on_few
@pytest.mark.parametrize("atomic", [True, False])
def test_in_batches(client: Checked, raw: redis.Redis, atomic: bool) -> None:
    """Writes in a batch are refused as others are; an atomic one that is refused leaves leases and delays as they were."""
    client.put("/ns/q/a", '{"a":1}')
    client.put("/ns/q/b", "1")
    [job] = taken(client)
    before = documents_and_indexes(raw)
    bodies: list[tuple[Any, ...]] = [
        ("PUT", "/ns/q/a", {"b": 2}),
        ("PATCH", "/ns/q/a", {"b": 2}),
        ("PATCH", "/ns/q/a?ttl=1h"),
        ("DELETE", "/ns/q/a"),
    ]
    for request in bodies:
        answer = batch(client, [("POST", "/ns/q/?delay=1h", 1), ("POST", "/ns/r/?delay=1h", 1), request], atomic=atomic)
        if atomic:
            assert (answer.status, answer.json["index"], answer.json["problem"]["status"]) == (409, 2, 409)
            assert documents_and_indexes(raw) == before
        else:
            assert [response["status"] for response in answer.json["responses"]] == [201, 201, 409]
    lease = {"If-Match": f'"{job["lease"]}"'}
    answer = batch(client, [("DELETE", "/ns/q/a", None, lease), ("PUT", "/ns/q/b", 2, lease)], atomic=atomic)
    if atomic:
        assert (answer.status, answer.json["index"]) == (409, 1)
        assert documents_and_indexes(raw) == before
        assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&limit=9")] == ["/ns/q/b"]
        answer = batch(client, [("DELETE", "/ns/q/a", None, lease), ("POST", "/ns/q/", 2)])
        assert answer.status == 200
    else:
        assert [response["status"] for response in answer.json["responses"]] == [204, 412]
    assert client.get("/ns/q/a").status == 404


@on_one
@pytest.mark.parametrize(
    "request_", [("POST", "/ns/q/?lease=1"), ("PATCH", "/ns/q/a?lease=1"), ("POST", "/ns/q/?lease=1&wait=1")]
)
def test_what_is_not_for_batches(client: Checked, request_: tuple[str, str]) -> None:
    """A take, and a change of a lease, are requests of their own."""
    client.put("/ns/q/a", "1")
    assert batch(client, [request_], atomic=True).status in (409, 422)
    [response] = batch(client, [request_], atomic=False).json["responses"]
    assert response["status"] == 422
    assert states(client) == {}


# --- Dead letters -------------------------------------------------------------------------------------------------------


def let_die(client: Checked, path: str, reason: str | None = None) -> None:
    """Take a job that is ready, give it back, and take again, so that it is dead after one take."""
    container = path.rpartition("/")[0]
    target = f"{container}/?lease=60s&max_attempts=1"
    [job] = taken(client, target)
    assert job["path"] == path
    body = b"" if reason is None else as_body({"reason": reason})
    assert lease_for(client, job, "0", body).status == 200
    assert taken(client, target) == []


DEEP = "[" * 64 + "]" * 64
VALUES = [
    "null",
    "0",
    "-1.50",
    "1e2",
    "123456789012345678901234567890",
    '"x"',
    '""',
    '"@"',
    '"+1"',
    "[]",
    "{}",
    '{"z":1.0,"a":{"b":[null,true]},"é":"\\u0000"}',
    '{"$kv":1,"$value":2,"value":3}',
    DEEP,
    '"' + "x" * (1024 * 1024 - 2) + '"',
    "{" + ",".join(f'"m{n}":{n}' for n in range(10_000)) + "}",
]


@on_few
@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_a_dead_job(client: Checked, raw: redis.Redis, value: str) -> None:
    """It is at dead/ with its value to the letter, the reason, how often it was taken, when it died, the time it had left."""
    client.put("/ns/q/a?ttl=2h", value)
    let_die(client, "/ns/q/a")
    dead = client.get("/ns/q/dead/a")
    assert dead.status == 200
    assert dead.body.startswith(b'{"value":' + value.encode() + b',"reason":"')
    assert list(dead.json) == ["value", "reason", "attempts", "died", "ttl"]
    assert dead.json["attempts"] == 1
    assert abs(dead.json["died"] - time.time() * 1000) < 60_000
    assert 7000 < dead.json["ttl"] <= 7200
    assert "never done" in dead.json["reason"]
    assert client.get("/ns/q/a").status == 404
    assert [item["name"] for item in listed(client, "/ns/q/?keys")] == ["dead/"]
    assert [(entry.op, entry.name) for entry in entries(raw)] == [("put", "q/dead/a"), ("delete", "q/a")]
    assert not raw.exists(keys_of("ns").blocked)


# What a worker says, and what stands in the dead letter; None: our own words.
REASONS = [
    ("no such host", "no such host"),
    ('"\n\u0000é\U0001f600 - %41', '"\n\u0000é\U0001f600 - %41'),
    ("-", "-"),
    ("", None),
    ("x" * 2000, "x" * 1000),
    ("é" * 501, "é" * 500),
]


@on_few
@pytest.mark.parametrize(("said", "reason"), REASONS)
def test_the_reason(client: Checked, said: str, reason: str | None) -> None:
    """Why it was given back the last time, cut at 1,000 bytes."""
    client.put("/ns/q/a", "1")
    let_die(client, "/ns/q/a", said)
    dead = client.get("/ns/q/dead/a").json
    assert dead["reason"] == reason if reason else "never done" in dead["reason"]


@on_few
@pytest.mark.parametrize("ending", ["given back", "time"])
@pytest.mark.parametrize("query", ["&max_attempts=1", "&max_attempts=2", "&max_attempts=3", ""])
def test_max_attempts(client: Checked, raw: redis.Redis, query: str, ending: str) -> None:
    """A job is taken exactly so often; the next take finds it dead, and gives what comes after it."""
    most = int(query[-1]) if query else 5
    client.put("/ns/q/a", "1")
    for attempts in range(1, most + 1):
        [job] = taken(client, f"/ns/q/?lease=60s{query}")
        assert job["attempts"] == attempts
        if ending == "time":
            end_hold(raw, "/ns/q/a")
        else:
            assert lease_for(client, job, "0").status == 200
    client.put("/ns/q/b", "2")
    assert [job["path"] for job in taken(client, f"/ns/q/?lease=60s{query}")] == ["/ns/q/b"]
    assert client.get("/ns/q/dead/a").json["attempts"] == most
    assert done(client, job) == 404


@on_few
def test_the_largest_number_of_attempts_counts(client: Checked, raw: redis.Redis) -> None:
    """A take that names fewer attempts than another take of the job cannot bury it; the state survives other writes."""
    for name in ("named", "not-named"):
        client.put(f"/ns/{name}/a", "1")
        for query in ("&max_attempts=3", "", "&max_attempts=1") if name == "named" else ("", ""):
            [job] = taken(client, f"/ns/{name}/?lease=60s{query}")
            assert lease_for(client, job, "0").status == 200
            assert json_patch(client, f"/ns/{name}/a", [{"op": "replace", "path": "", "value": job["attempts"]}]).status == 200
        assert taken(client, f"/ns/{name}/?lease=60s&max_attempts=2") == []
        assert client.get(f"/ns/{name}/dead/a").json["value"] == job["attempts"] == (3 if name == "named" else 2)


@on_few
def test_done_at_the_last_attempt(client: Checked) -> None:
    """It is done, and not dead."""
    client.put("/ns/q/a", "1")
    [job] = taken(client, "/ns/q/?lease=60s&max_attempts=1")
    assert taken(client, "/ns/q/?lease=60s&max_attempts=1") == []
    assert done(client, job) == 204
    assert taken(client, "/ns/q/?lease=60s&max_attempts=1") == []
    assert listed(client, "/ns/q/") == []


@on_few
def test_many_dead_among_others(client: Checked, raw: redis.Redis) -> None:
    """Takes bury all the dead, and give all the others, however they stand."""
    for n in range(30):
        client.put(f"/ns/q/{n:02}", str(n))
    assert len(taken(client, "/ns/q/?lease=60s&limit=100")) == 30
    for n in range(30):
        end_hold(raw, f"/ns/q/{n:02}")
    alive = [n for n in range(30) if n % 3 == 0]
    for n in alive:
        client.delete(f"/ns/q/{n:02}")
        client.put(f"/ns/q/{n:02}", str(n))
    got: list[Any] = []
    while jobs := taken(client, "/ns/q/?lease=60s&limit=100&max_attempts=1"):
        got += jobs
    assert [job["value"] for job in got] == alive
    dead = {item["name"]: item["value"]["value"] for item in listed(client, "/ns/q/dead/")}
    assert dead == {f"{n:02}": n for n in range(30) if n % 3}


@on_two
def test_many_dead_before_one(client: Checked, raw: redis.Redis) -> None:
    """A take of one job buries any number of them, a hundred in a script, so that it does not take long."""
    batch(client, [("POST", "/ns/q/", n) for n in range(250)])
    jobs = [job for _ in range(3) for job in taken(client, "/ns/q/?lease=60s&limit=100")]
    for job in jobs:
        end_hold(raw, job["path"])
    client.put("/ns/q/z", "1")
    before = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&max_attempts=1")] == ["/ns/q/z"]
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] - before < 10
    dead = listed(client, "/ns/q/dead/?limit=1000")
    assert [item["value"]["value"] for item in dead] == list(range(250))


@on_few
def test_a_long_name(client: Checked) -> None:
    """Where dead/ and the name together are too long, a dead job is named by a lease."""
    name = "x" * 1015
    client.put(f"/ns/q/{name}", "1")
    let_die(client, f"/ns/q/{name}")
    [item] = listed(client, "/ns/q/dead/")
    assert item["value"]["value"] == 1
    assert client.get(item["path"]).status == 200


@on_few
def test_the_dead_are_documents(client: Checked, raw: redis.Redis) -> None:
    """They can be worked as a queue themselves, read, put back; a second one of that name replaces the first."""
    client.put("/ns/q/a", "1")
    let_die(client, "/ns/q/a")
    client.put("/ns/q/a", "2")
    let_die(client, "/ns/q/a")
    [job] = taken(client, "/ns/q/dead/?lease=60s")
    assert (job["path"], job["value"]["value"]) == ("/ns/q/dead/a", 2)
    assert lease_for(client, job, "0").status == 200
    let_die_again = taken(client, "/ns/q/dead/?lease=60s&max_attempts=1")
    assert let_die_again == []
    assert client.get("/ns/q/dead/dead/a").json["value"]["value"] == 2


@on_few
def test_a_dead_job_waits_for_one_that_is_looked_at(client: Checked, raw: redis.Redis) -> None:
    """Somebody has leased the dead job of that name: it is not replaced, and the new one is not lost."""
    client.put("/ns/q/a", "1")
    let_die(client, "/ns/q/a")
    [looked_at] = taken(client, "/ns/q/dead/?lease=60s")
    client.put("/ns/q/a", "2")
    let_die(client, "/ns/q/a")
    assert client.get("/ns/q/a").json == 2
    assert client.get("/ns/q/dead/a").json["value"] == 1
    assert done(client, looked_at) == 204
    end_hold(raw, "/ns/q/a")
    assert taken(client, "/ns/q/?lease=60s&max_attempts=1") == []
    assert client.get("/ns/q/dead/a").json["value"] == 2
    assert client.get("/ns/q/a").status == 404


@on_few
def test_whoever_buries_dies(client: Checked, raw: redis.Redis, store: Running) -> None:
    """A process that ends between finding a dead job and burying it loses nothing: the next does it, after a while."""
    client.put("/ns/q/a", "1")
    [job] = taken(client, "/ns/q/?lease=60s&max_attempts=1")
    lease_for(client, job, "0")
    found = raw.eval(TAKE.text, 2, *parse_path(b"/ns/q/").keys, *Take(parse_path(b"/ns/q/"), 60_000, 1, 1, 1000).arguments)
    assert found[0] == b"dead"
    assert states(client) == {"a": ("leased", 1)}
    assert taken(client, "/ns/q/?lease=60s&max_attempts=1") == []
    assert client.get("/ns/q/a").status == 200
    end_hold(raw, "/ns/q/a")
    assert taken(client, "/ns/q/?lease=60s&max_attempts=1") == []
    assert client.get("/ns/q/dead/a").json["attempts"] == 1


# --- Expiry, and other hands --------------------------------------------------------------------------------------------


@on_few
def test_a_job_that_expires(client: Checked, raw: redis.Redis) -> None:
    """Leased or delayed, it goes when its time is over: 404 for its worker, an event, and nothing left of it."""
    client.put("/ns/q/a", "1")
    [job] = taken(client)
    delayed = post(client, "/ns/q/?delay=1h", "2").json["path"]
    for path in ("/ns/q/a", delayed):
        expire(raw, path)
    statuses = {kind: status(client, job) for kind, status in FENCED.items()}
    assert {kind for kind, status in statuses.items() if status == 404} == {"DELETE", "extend", "give back"}
    assert set(statuses.values()) == {404, 412}
    assert taken(client) == []
    assert listed(client, "/ns/q/") == []
    assert not raw.exists(keys_of("ns").blocked)
    assert sorted(entry.name for entry in entries(raw) if entry.op == "expire") == sorted(["q/a", delayed[4:]])
    client.put("/ns/q/a", "3")
    [again] = taken(client)
    assert (again["value"], again["attempts"]) == (3, 1)


@on_few
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_born_again(client: Checked, raw: redis.Redis, method: str) -> None:
    """What is put where a leased job has expired is another job, that nobody has taken."""
    client.put("/ns/q/a", '{"a":1}')
    [job] = taken(client)
    expire(raw, "/ns/q/a")
    assert client.request(method, "/ns/q/a", [], b'{"a":1}').status == 201
    assert done(client, job) == 412
    [again] = taken(client)
    assert again["attempts"] == 1


@on_few
def test_recursive_delete(client: Checked, raw: redis.Redis) -> None:
    """Deletes leased and delayed jobs as well."""
    for n in range(3):
        client.put(f"/ns/q/{n}", "1")
    jobs = taken(client, "/ns/q/?lease=60s&limit=2")
    post(client, "/ns/q/?delay=1h", "1")
    assert client.delete("/ns/q/?recursive").json == {"deleted": 4}
    assert [done(client, job) for job in jobs] == [404, 404]
    assert not raw.exists(keys_of("ns").blocked)
    assert taken(client) == []


# What another Redis client does to the hash of a leased job.
HANDS: dict[str, Callable[[redis.Redis, str], Any]] = {
    "deletes it": lambda raw, key: raw.delete(key),
    "replaces it": lambda raw, key: raw.delete(key) and raw.hset(key, "a", 2),
    "takes our field away": lambda raw, key: raw.hdel(key, "$kv"),
    "spoils our field": lambda raw, key: raw.hset(key, "$kv", "job x"),
    "makes it a string": lambda raw, key: raw.set(key, "x"),
    "keeps it": lambda raw, key: raw.persist(key),
}


@on_few
@pytest.mark.parametrize("then", ["DELETE", "PUT and DELETE", "recursive DELETE"])
@pytest.mark.parametrize("hand", HANDS)
def test_another_client(client: Checked, raw: redis.Redis, hand: str, then: str) -> None:
    """Whatever becomes of a leased job, in the end it is gone as a whole, and jobs around it are found."""
    for name in "abc":
        client.put(f"/ns/q/{name}", '{"a":1}')
    assert len(taken(client, "/ns/q/?lease=60s&limit=2")) == 2
    key = parse_path(b"/ns/q/b").keys.document
    HANDS[hand](raw, key)
    if then == "recursive DELETE":
        assert client.delete("/ns/q/?recursive").status == 200
    else:
        if then.startswith("PUT"):
            assert client.put("/ns/q/b", "1", [("If-Match", "*")]).status in (200, 409, 412)
        assert client.delete("/ns/q/b", [("If-Match", "*")]).status in (204, 404, 409)
        listed(client, "/ns/q/")
    if hand == "makes it a string":
        raw.delete(key)
        listed(client, "/ns/q/")
    assert not raw.exists(key)
    held, names = raw.zrange(keys_of("ns").blocked, 0, -1), raw.zrange(keys_of("ns").names, 0, -1)
    assert set(held) <= set(names), "the search for what can be taken counts on that"
    assert b"q/b" not in held
    client.put("/ns/q/c", "5")
    assert [job["path"] for job in taken(client)] == ["/ns/q/c"]


@on_few
def test_a_hash_that_is_no_job(client: Checked, raw: redis.Redis) -> None:
    """What another client made in place of a job has no entity-tag, and cannot be taken until we have written it."""
    client.put("/ns/q/a", "1")
    raw.delete("kv:{ns}/q/a")
    raw.hset("kv:{ns}/q/a", "n", 2)
    assert taken(client) == []
    assert patch(client, "/ns/q/a", {"b": 1}).status == 200
    [job] = taken(client)
    assert job["value"] == {"n": 2, "b": 1}
    assert "ttl" not in job


@on_few
def test_a_job_that_does_not_expire(client: Checked, raw: redis.Redis) -> None:
    """Another client has taken the expiry away: there is no ttl to say, and the dead letter does not expire either."""
    client.put("/ns/q/a", "1")
    raw.persist("kv:{ns}/q/a")
    [job] = taken(client)
    assert list(job) == ["path", "value", "attempts", "lease"]
    assert list(lease_for(client, job).json) == ["path", "lease"]
    lease_for(client, job, "0")
    assert taken(client, "/ns/q/?lease=1&max_attempts=1") == []
    assert client.get("/ns/q/dead/a").json["value"] == 1
    assert raw.pttl("kv:{ns}/q/dead/a") == -1


@on_few
@pytest.mark.parametrize("name", ["blocked", "ready_at", "released", "names", "log"])
def test_keys_of_another_type(client: Checked, raw: redis.Redis, name: str) -> None:
    """409, and nothing is changed: not half of it."""
    client.put("/ns/q/a", '{"a":1}')
    client.put("/ns/q/b", '{"a":1}')
    [job] = taken(client)
    post(client, "/ns/q/?delay=1h", "1")
    lease_for(client, taken(client)[0], "0")
    key = getattr(keys_of("ns"), name)
    raw.delete(key)
    raw.set(key, "x")
    before = contents(raw)
    assert take(client).status == 409
    assert lease_for(client, job, "0").status == 409
    assert lease_for(client, job, "2h").status == 409
    assert post(client, "/ns/q/?delay=1h", "1").status == 409
    assert contents(raw) == before


@on_few
def test_indexes_that_are_lost(client: Checked, raw: redis.Redis) -> None:
    """What is held is known of each job itself as well: without the indexes nobody gets a job that is leased or delayed."""
    for name in "abc":
        client.put(f"/ns/q/{name}", "1")
    [job] = taken(client)
    post(client, "/ns/q/?delay=1h", "1")
    raw.delete(keys_of("ns").blocked, keys_of("ns").ready_at)
    assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&limit=100")] == ["/ns/q/b", "/ns/q/c"]
    assert taken(client) == []
    assert done(client, job) == 204


@on_few
def test_an_index_that_is_lost(client: Checked, raw: redis.Redis) -> None:
    """Without the times at which holds end a job is taken again all the same, when its lease has ended, and not before."""
    for name in "ab":
        client.put(f"/ns/q/{name}", "1")
    assert len(taken(client, "/ns/q/?lease=60s&limit=2")) == 2
    end_hold(raw, "/ns/q/b")
    raw.delete(keys_of("ns").ready_at)
    assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&limit=2")] == ["/ns/q/b"]
    end_hold(raw, "/ns/q/a")
    assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&limit=2")] == ["/ns/q/a"]


@on_few
def test_indexes_live_as_long_as_what_they_say(client: Checked, raw: redis.Redis) -> None:
    """A namespace that began with short-lived jobs, and goes on with long-lived ones."""
    post(client, "/ns/q/?delay=30&ttl=60", "1")
    client.put("/ns/q/a?ttl=60", "1")
    lease_for(client, taken(client)[0], "0")
    client.put("/ns/q/b?ttl=30d", "1")
    keys = keys_of("ns")
    ends = [raw.pexpiretime(key) for key in (keys.log, keys.names, keys.expiry, keys.ready_at, keys.released)]
    assert ends == [ends[0]] * 5
    assert ends[0] > (time.time() + 30 * 86_400) * 1000
    post(client, "/ns/q/?delay=1h&ttl=60d", "1")
    assert raw.pexpiretime(keys.blocked) == raw.pexpiretime(keys.ready_at) == raw.pexpiretime(keys.names)


@on_few
def test_nothing_is_left_for_ever(client: Checked, raw: redis.Redis) -> None:
    """All that a queue makes has an end, a take of what is not there makes nothing."""
    assert taken(client, "/nothing/here/?lease=60s") == []
    assert raw.keys() == []
    for n in range(4):
        client.put(f"/ns/q/{n}", "1")
    post(client, "/ns/q/?delay=1h", "1")
    first, second, third = taken(client, "/ns/q/?lease=60s&limit=3")
    lease_for(client, first, "2h")
    lease_for(client, second, "0", b'{"reason":"x"}')
    done(client, third)
    taken(client, "/ns/q/?lease=60s&max_attempts=1&limit=100")
    assert client.get("/ns/q/dead/1").status == 200
    ends = {key: at for key, (_, at) in contents(raw).items()}
    assert len(ends) > 8
    assert all(at > 0 for at in ends.values()), ends


# --- Idempotency-Key ----------------------------------------------------------------------------------------------------

KEY = ("Idempotency-Key", "one")


@on_few
def test_a_take_asked_again(client: Checked, raw: redis.Redis) -> None:
    """The same jobs under the same leases; nothing else is taken. With another request 422."""
    for name in "abc":
        client.put(f"/ns/q/{name}", '{"z":1.0,"a":[],"o":{}}')
    first = take(client, "/ns/q/?lease=60s&limit=2", [KEY])
    assert first.status == 200
    assert [job["path"] for job in first.json["items"]] == ["/ns/q/a", "/ns/q/b"]
    again = take(client, "/ns/q/?lease=60s&limit=2", [KEY])
    assert (again.status, again.body, again.headers["Idempotency-Replayed"]) == (200, first.body, "true")
    assert "Idempotency-Replayed" not in first.headers
    assert take(client, "/ns/q/?lease=61s&limit=2", [KEY]).status == 422
    assert len(taken(client, "/ns/q/?lease=60s&limit=9")) == 1
    assert done(client, again.json["items"][0]) == 204


@on_few
def test_a_take_of_nothing_asked_again(client: Checked) -> None:
    """That there was no job is not kept: whoever asks again wants one."""
    assert take(client, "/ns/q/?lease=60s", [KEY]).status == 204
    client.put("/ns/q/a", "1")
    first = take(client, "/ns/q/?lease=60s", [KEY])
    assert (first.status, "Idempotency-Replayed" in first.headers) == (200, False)
    assert take(client, "/ns/q/?lease=60s", [KEY]).body == first.body


@on_few
def test_a_take_that_buries_asked_again(client: Checked) -> None:
    """It is the jobs it gave that are kept."""
    client.put("/ns/q/a", "1")
    client.put("/ns/q/b", "2")
    [job] = taken(client)
    lease_for(client, job, "0")
    target = "/ns/q/?lease=60s&limit=9&max_attempts=1"
    first = take(client, target, [KEY])
    assert [job["path"] for job in first.json["items"]] == ["/ns/q/b"]
    assert client.get("/ns/q/dead/a").status == 200
    again = take(client, target, [KEY])
    assert (again.body, again.headers["Idempotency-Replayed"]) == (first.body, "true")


@on_few
def test_a_take_that_buries_and_registers_asked_again(client: Checked, raw: redis.Redis) -> None:
    """The same where the dead one lengthens the namespace's life in between, of which the root's index is told."""
    for name in "abc":
        client.put(f"/ns/q/{name}", "1")
    [job] = taken(client)
    assert raw.persist("kv:{ns}/q/a")
    lease_for(client, job, "0")
    answers = [take(client, "/ns/q/?lease=60s&max_attempts=1", [KEY]) for _ in range(2)]
    assert answers[0].json["items"][0]["path"] == "/ns/q/b"
    assert (answers[1].body, answers[1].headers["Idempotency-Replayed"]) == (answers[0].body, "true")


@on_few
def test_a_take_that_buries_overtaken_by_its_retry(client: Checked, raw: redis.Redis) -> None:
    """A request that is moving dead jobs when its retry has taken others answers as the retry did."""
    client.put("/ns/q/a", "1")
    client.put("/ns/q/b", "2")
    [job] = taken(client)
    lease_for(client, job, "0")
    request = Request("POST", b"/ns/q/?lease=60s&limit=9&max_attempts=1", {KEY[0].lower(): KEY[1]})

    moving = run_script(raw, command_of(request)).command
    retried = take(client, request.target.decode(), [KEY])
    assert [job["path"] for job in retried.json["items"]] == ["/ns/q/b"]
    answer = render(request, run_script(raw, moving))
    assert (answer.status, answer.body) == (200, retried.body)
    assert ("Idempotency-Replayed", "true") in answer.headers


@on_few
@pytest.mark.parametrize("query", ["lease=2h", "lease=0&delay=1h"])
def test_a_lease_asked_again(client: Checked, query: str) -> None:
    """The first answer, though the lease has changed since; what was refused is refused again."""
    client.put("/ns/q/a", "1")
    [job] = taken(client)
    answers = [client.request("PATCH", f"/ns/q/a?{query}", [*with_lease(job), KEY]) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].body == answers[1].body
    assert ["Idempotency-Replayed" in answer.headers for answer in answers] == [False, True]
    other = [client.request("PATCH", "/ns/q/a?lease=9", [("If-Match", '"x"'), ("Idempotency-Key", "two")]) for _ in range(2)]
    assert [answer.status for answer in other] == [412, 412]
    assert other[1].headers["Idempotency-Replayed"] == "true"


@on_few
def test_a_delayed_post_and_done_asked_again(client: Checked, raw: redis.Redis) -> None:
    """One job is enqueued, one is done, however often it is asked."""
    paths = {post(client, "/ns/q/?delay=1h", "1", [KEY]).json["path"] for _ in range(3)}
    assert len(listed(client, "/ns/q/")) == len(paths) == 1
    end_hold(raw, paths.pop())
    [job] = taken(client)
    answers = [client.delete(job["path"], [*with_lease(job), ("Idempotency-Key", "two")]) for _ in range(3)]
    assert [answer.status for answer in answers] == [204] * 3
    assert ["Idempotency-Replayed" in answer.headers for answer in answers] == [False, True, True]


# --- Many at once, and a full Redis -------------------------------------------------------------------------------------


@on_servers
def test_takers_at_once(client: Checked) -> None:
    """Each job goes to one of them."""
    for n in range(40):
        client.put(f"/ns/q/{n}", "1")
    got = at_once(lambda n: [taken(client, f"/ns/q/?lease=60s&limit={1 + n % 3}") for _ in range(4)], 8)
    paths = [job["path"] for some in got for jobs in some for job in jobs]
    assert len(paths) == len(set(paths)) == 40


@on_servers
def test_the_dead_are_buried_once(client: Checked, raw: redis.Redis) -> None:
    """Takers that find the same dead jobs bury each of them once."""
    for n in range(20):
        client.put(f"/ns/q/{n:02}", str(n))
    for job in taken(client, "/ns/q/?lease=60s&limit=100"):
        lease_for(client, job, "0")
    at_once(lambda _: taken(client, "/ns/q/?lease=60s&limit=7&max_attempts=1"), 6)
    assert taken(client, "/ns/q/?lease=60s&limit=7&max_attempts=1") == []
    assert sorted(item["value"]["value"] for item in listed(client, "/ns/q/dead/")) == list(range(20))
    ops = [entry.op for entry in entries(raw) if entry.name.startswith("q/dead/")]
    assert len(ops) == 20


@pytest.mark.parametrize("lane", [("flask", "valkey"), ("served", "redis")], ids="-".join, indirect=True)
def test_redis_is_full(client: Checked, raw: redis.Redis, store: Running) -> None:
    """507 for what would write, and nothing changed; who has a job may keep it, give it back, and be done."""
    for name in "abc":
        client.put(f"/ns/q/{name}", "1")
    first, second = taken(client, "/ns/q/?lease=60s&limit=2")
    lease_for(client, second, "0")
    [second] = taken(client)
    before = contents(raw)
    raw.config_set("maxmemory", "1")
    try:
        assert take(client).status == 507
        assert take(client, "/ns/q/?lease=1&max_attempts=1").status == 507
        assert post(client, "/ns/q/?delay=1h", "1").status == 507
        with closing(store.open()) as opened, pytest.raises(StoreFull):
            opened.execute(RegisterTaker(parse_path(b"/ns/q/"), "id", b"null", 0, 9000))
        assert contents(raw) == before
        assert lease_for(client, first, "2h").status == 200
        assert lease_for(client, second, "0").status == 200
        assert states(client) == {"a": ("leased", 1), "b": ("ready", 2), "c": ("ready", 0)}
        assert done(client, first) == 204
    finally:
        raw.config_set("maxmemory", "0")
    assert [job["path"] for job in taken(client, "/ns/q/?lease=60s&limit=9")] == ["/ns/q/b", "/ns/q/c"]


# --- The search for what can be taken -----------------------------------------------------------------------------------

NAME = st.text("ab/0", min_size=1, max_size=5).map(lambda text: re.sub("/+", "/", text).strip("/") or "a")


@on_one
@given(
    names=st.lists(NAME, max_size=40),
    queue=st.sampled_from(["", "a/", "a/b/", "b/"]),
    is_held=st.randoms(),
)
def test_the_first_that_is_free(client: Checked, raw: redis.Redis, names: list[str], queue: str, is_held: Any) -> None:
    """Against a plain model: names and held ones at random, containers within containers, all taken one by one or at once."""
    raw.flushall()
    held = set()
    share = is_held.choice([0.1, 0.5, 0.9])
    for name in set(names):
        client.put(f"/ns/{name}", "1")
        if is_held.random() < share:
            held.add(name)
            meta: Any = raw.hget(f"kv:{{ns}}/{name}", "$kv")
            raw.hset(f"kv:{{ns}}/{name}", "$kv", b"job 1 9999999999999 - -\n" + meta)
            raw.zadd(keys_of("ns").blocked, {name: 0})
            raw.zadd(keys_of("ns").ready_at, {name: 9_999_999_999_999})
    free = sorted(
        name for name in set(names) - held if name.startswith(queue) and "/" not in name[len(queue) :] and name != queue
    )
    limit = is_held.choice([1, 2, 100])
    got: list[str] = []
    while jobs := taken(client, f"/ns/{queue}?lease=60s&limit={limit}"):
        got += [job["path"].removeprefix("/ns/") for job in jobs]
        assert len(jobs) == min(limit, len(free) - len(got) + len(jobs))
    assert got == free


# --- In several steps ---------------------------------------------------------------------------------------------------


def fill_with_containers(client: Checked, count: int) -> None:
    """Store documents below so many containers below /ns/q/, which are named by numbers."""
    for first in range(0, count, 1000):
        batch(client, [("PUT", f"/ns/q/{number:05}/x", 1) for number in range(first, min(count, first + 1000))])


@on_one
def test_containers_below_a_queue(client: Checked) -> None:
    """However many there are, a take finds the jobs between them."""
    fill_with_containers(client, 2500)
    for name in ("0", "00000-", "01500-", "z"):
        client.put(f"/ns/q/{name}", "1")
    found = [taken(client, "/ns/q/?lease=60s&limit=9") for _ in range(4)]
    assert [[job["path"] for job in jobs] for jobs in found] == [["/ns/q/0", "/ns/q/00000-"], ["/ns/q/01500-"], ["/ns/q/z"], []]


@on_one
def test_a_job_that_comes_to_what_a_take_has_passed(client: Checked, raw: redis.Redis) -> None:
    """The change log has it after the place from which whoever finds nothing waits; one whose lease ends is found."""
    fill_with_containers(client, 2500)

    def step(command: Command[Taken]) -> Any:
        words = command.script.text, len(command.keys), *command.keys, *command.arguments
        return settled(command.outcome(raw.execute_command("EVAL", *words)))

    take_one = Take(parse_path(b"/ns/q/"), 60_000, 1, 5, 1000)
    again = step(take_one)
    assert isinstance(again, Again)
    client.put("/ns/q/-", "1")
    while isinstance(again, Again):
        again = step(again.command)
    assert again.jobs == []
    assert raw.xread({keys_of("ns").log: again.positions[0]})

    assert taken(client)[0]["path"] == "/ns/q/-"
    again = step(take_one)
    end_hold(raw, "/ns/q/-")
    while isinstance(again, Again):
        again = step(again.command)
    assert [job.path.text for job in again.jobs] == ["/ns/q/-"]
