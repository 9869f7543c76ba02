"""What goes a straight way is answered, and leaves in Redis, as if it had gone the other.

Batches of requests that are alike, and commands that a pipeline sends as one.
"""

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.commands import bulk, scripts
from kvstore.commands.base import Idempotent
from kvstore.commands.batch import Batch
from kvstore.commands.bulk import GetMany, PutMany
from kvstore.core import codec, json_text
from kvstore.core.errors import Problem
from kvstore.core.redis_url import parse_redis_url
from kvstore.core.settings import read_settings
from kvstore.http import protocol
from kvstore.http.messages import Request, Response, refuse
from kvstore.stores import redis_clients
from kvstore.stores.blocking import BlockingStore
from kvstore.stores.pipelined import PipelinedStore
from tests.support.asking import command_of, documents_and_indexes, expire, scripts_run
from tests.support.lanes import on_few, on_one, on_two
from tests.support.stores import Running

HOUR_MS = 3_600_000
SETTINGS = read_settings({"KVSTORE_MAX_TTL": "100000000", "KVSTORE_LOG_LENGTH": "20"})
NAMES = ["a", "b", "c", "deep/er", "~-_.x", "many", "more", "q/job", "other", "immortal", "none"]
MANY = json.dumps({f"m{n}": n for n in range(40)})

PREPARED = [
    ("a", '{"x":1,"y":"z"}'),
    ("b?ttl=50d", '{"z":1,"a":[1.0,{"é":null}],"%b":"%"}'),
    ("deep/er?ttl=100", '"x"'),
    ("many", MANY),
    ("more", "[]"),
    ("q/job", "1"),
]

# Bodies that a PUT takes, those that it refuses, and those that are not for the straight way.
TAKEN = [
    "{}", "1.0", "[]", "null", '"x"', '{"x":1,"y":"z"}', '{"y":1,"x":"z"}', '{"x":2,"z":"y"}', '{ "x" : 1e2 , "y" : [ 1 ] }',
    '{"%b":"%s","%":-0}', '{"é":"\\u00e9","\\"":"}],{"}', '{"$kv":1,"$value":[{"a":[{"b":[]}]}]}', '{"x":1,"ttl":90}',
    '{"ttl":90}', '{"ttl":100000000}', '{"t":"' + "x" * 100 + '"}', MANY,
]  # fmt: skip
REFUSED = ['{"ttl":0}', '{"ttl":"x"}', '{"x":1,"x":2}', '{"x":1e999}', '"\\ud800"', '{".sv":1}']
OTHER = ['{"n":{".sv":{"increment":1}}}', "[" * 9 + "]" * 9]
NO_JSON = ["", "{]", "{x:1}", "01", '{"x":1,}', "1 2", "nan", '"\n"']


def prepare(running: Running, store: BlockingStore) -> None:
    """A namespace with documents of all kinds, and what other clients put there."""
    running.redis.flushall()
    for target, body in PREPARED:
        store.execute(command_of(Request("PUT", f"/ns/{target}".encode(), {}, body.encode()), SETTINGS))
    store.execute(command_of(Request("POST", b"/ns/q/?lease=1h", {}, b""), SETTINGS))
    running.redis.hset("kv:{ns}/other", mapping={"x": "02139", "ttl": "1", "y": "1"})
    running.redis.hset("kv:{ns}/immortal", mapping={b"\xff": "x"})
    time.sleep(0.002)  # so that the tags of the batch come after all of these, in whatever namespace


def envelope(requests: list[tuple[str, str, str | None]], gap: str = "", atomic: str = "") -> Request:
    """A batch of (method, path, body), with whitespace of this kind between all tokens."""
    parts = []
    for method, path, body in requests:
        members = [f'"method"{gap}:{gap}"{method}"', f'"path"{gap}:{gap}"{path}"']
        if body is not None:
            members.append(f'"body"{gap}:{gap}{body}')
        parts.append("{" + gap + f"{gap},{gap}".join(members) + gap + "}")
    text = f'"requests"{gap}:{gap}[{gap}' + f"{gap},{gap}".join(parts) + f"{gap}]"
    return Request("POST", b"/_/batch", {}, f"{gap}{{{gap}{atomic}{text}{gap}}}{gap}".encode("utf-8", "surrogatepass"))


def answer(store: BlockingStore, request: Request, parse: Any) -> Response:
    """The reply to a request that is parsed so."""
    try:
        command = parse(request, SETTINGS)
        return command if isinstance(command, Response) else protocol.render(request, store.execute(command))
    except Problem as problem:
        return refuse(problem)


TIMES = re.compile(
    r"(?<!\d)1\d{12}-\d+|(?<!\d)1\d{12}(?!\d)|[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT|(?<=\"ttl\":)\d+"
)


def without_times(told: str) -> tuple[str, list[float]]:
    """A text in which each entity-tag is its place among all of them; and the times in it, in seconds."""
    tags = sorted(set(re.findall(r"(?<!\d)1\d{12}-\d+", told)), key=lambda tag: [int(part) for part in tag.split("-")])
    times: list[float] = []

    def replace(found: re.Match[str]) -> str:
        if "-" in found[0]:
            return f"tag {tags.index(found[0])}"
        if found[0].endswith("GMT"):
            times.append(parsedate_to_datetime(found[0]).timestamp())
        else:
            times.append(int(found[0]) / (1000 if len(found[0]) == 13 else 1))
        return "time"

    return TIMES.sub(replace, told), times


def all_told(running: Running, reply: Response) -> str:
    """A reply and all that is in Redis then, in an order that does not hang on the time."""
    held: list[tuple[Any, ...]] = []
    for key, value in sorted(documents_and_indexes(running.redis).items()):
        if key.endswith(b"!expiry") and not isinstance(value, bytes):
            held.append((key, sorted(value)))
        elif key.endswith(b"!unread") and isinstance(value, list):  # its ids are times of their own
            held.append((key, [fields for _, fields in value]))
        elif b"}/" in key and isinstance(value[0], dict):
            held.append((key, sorted(value[0].items()), value[1]))
        else:
            held.append((key, value))
    return repr((reply, held))


def both_ways(running: Running, request: Request, change: Callable[[redis.Redis], object] = lambda _: None) -> str:
    """What is told of a batch, which is the same whichever way it goes; `change` comes before it."""
    store, told = running.open(), []
    for parse in (protocol.parse, protocol._any_batch):
        prepare(running, store)
        change(running.redis)
        told.append(without_times(all_told(running, answer(store, request, parse))))
    store.close()
    (straight, times), (other, other_times) = told
    assert straight == other
    assert all(abs(one - another) < 60 for one, another in zip(times, other_times, strict=True))
    return straight


gaps = st.sampled_from(["", "", " ", "\n\t"])
atomics = st.sampled_from(["", '"atomic":true,', '"atomic" : false , ', '"atomic":1,'])
usual = st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True)
puts = st.tuples(usual, st.sampled_from(["ns", "new"]), st.lists(st.sampled_from(TAKEN), min_size=8, max_size=8)).map(
    lambda asked: [("PUT", f"/{asked[1]}/{name}", body) for name, body in zip(asked[0], asked[2], strict=False)]
)
gets = usual.map(lambda names: [("GET", f"/ns/{name}", None) for name in names])
any_requests = st.lists(
    st.tuples(
        st.sampled_from(["PUT", "GET", "HEAD", "DELETE"]),
        st.sampled_from(["/ns/a", "/ns/b", "/ns/none", "/_/x", "/ns/", "/ns/%61", "/ns/a?ttl=5", "/ns/./a", "/ns/é"]),
        st.none() | st.sampled_from([*TAKEN, *REFUSED, *OTHER, *NO_JSON]),
    ),
    max_size=5,
)


@pytest.mark.slow
@on_few
@settings(max_examples=50)
@given(puts | gets | any_requests, gaps, atomics, st.sets(st.sampled_from(["clock", "expiry"])))
def test_both_ways(store: Running, requests: Any, gap: str, atomic: str, troubles: set[str]) -> None:
    """Whatever is asked, also where the clock has gone back, and the time of a document is over that is written."""

    def change(raw: redis.Redis) -> None:
        if "clock" in troubles:
            raw.xadd("kv:{ns}!log", {"delete": "x"}, id=f"{int(1000 * time.time()) + HOUR_MS}-1")
        if "expiry" in troubles and requests and requests[0][:2] == ("PUT", "/ns/a"):
            expire(raw, "/ns/a")

    both_ways(store, envelope(list(requests), gap, atomic), change)


@on_few
@pytest.mark.parametrize("atomic", ["", '"atomic":false,'])
def test_a_key_of_another_type(store: Running, atomic: str) -> None:
    """The namespace's own keys, and a document's, under any of which another client put something else."""
    request = envelope([("PUT", f"/ns/{name}", "1") for name in NAMES], atomic=atomic)
    for key in ("!log", "!names", "!expiry", "/c"):

        def change(raw: redis.Redis, key: str = key) -> None:
            raw.delete("kv:{ns}" + key)
            raw.set("kv:{ns}" + key, "x")

        assert "urn:kvstore:wrong-type" in both_ways(store, request, change)


@on_few
def test_an_expired_document(store: Running) -> None:
    """The log says that it has expired, then that it was put."""
    request = envelope([("PUT", "/ns/a", "1"), ("PUT", "/ns/b", "2")])
    told = both_ways(store, request, lambda raw: expire(raw, "/ns/a"))
    assert re.search(r"b'expire': b'a'.*b'put': b'a'", told)


@on_one
@pytest.mark.parametrize("atomic", ["", '"atomic":false,'])
def test_a_full_redis(store: Running, atomic: str) -> None:
    """It refuses both in the same words, and nothing is changed."""
    opened = store.open()
    prepare(store, opened)
    before = documents_and_indexes(store.redis)
    request = envelope([("PUT", "/ns/a", "1"), ("PUT", "/ns/c", "1")], atomic=atomic)
    store.redis.config_set("maxmemory", "1")
    try:
        replies = [answer(opened, request, parse) for parse in (protocol.parse, protocol._any_batch)]
    finally:
        store.redis.config_set("maxmemory", "0")
        opened.close()
    assert replies[0] == replies[1]
    assert b"urn:kvstore:store-full" in replies[0].body
    assert documents_and_indexes(store.redis) == before


@on_two
def test_more_than_is_read_at_once(store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of large documents goes the other way; joined GETs that are left over are sent by themselves."""
    monkeypatch.setattr(bulk, "MAX_READ_BYTES", 100)
    monkeypatch.setattr(bulk, "MAX_COALESCED_READ_BYTES", 100)
    paths = [f"/ns/{name}" for name in ("many", "a", "b")]
    assert "m39" in both_ways(store, envelope([("GET", path, None) for path in paths]))
    requests = [single("GET", path) for path in paths]
    texts = [outcome.text for outcome in in_one_turn(store, requests)]
    assert scripts_run(store.redis) >= 3
    assert texts == [outcome.text for outcome in one_by_one(store, requests)]


TWO: list[tuple[str, str, str | None]] = [("PUT", "/ns/a:1@b,(c)", "1"), ("PUT", "/ns/b/c", '{"x":[{"y":[]}]}')]


@pytest.mark.parametrize(
    ("request_", "way"),
    [
        (envelope(TWO), PutMany),
        (envelope(TWO, "\r\n "), PutMany),
        (envelope(TWO, atomic='"atomic":false,'), PutMany),
        (envelope([("GET", "/ns/a", None), ("GET", "/ns/b/c", None)]), GetMany),
        (envelope([("PUT", f"/ns/{n}", "1") for n in range(1000)]), PutMany),
        (envelope([*TWO, TWO[0]]), Batch),
        (envelope([*TWO, ("GET", "/ns/x", None)]), Batch),
        (envelope([*TWO, ("PUT", "/ns2/x", "1")], atomic='"atomic":false,'), Batch),
        (envelope([*TWO, ("PUT", "/ns/x", OTHER[0])]), Batch),
        (envelope([*TWO, ("PUT", "/ns/x", OTHER[1])]), Batch),
        (envelope([*TWO, ("PUT", "/ns/" + "x/" * 31 + "y", "1")], atomic='"atomic":false,'), Batch),
        (envelope([*TWO, ("PUT", "/ns/" + "x" * 1021, "1")], atomic='"atomic":false,'), Batch),
        (envelope([*TWO, ("PUT", "/ns/x", "1")])._replace(headers={"idempotency-key": "k"}), Idempotent),
    ],
    ids=lambda case: case.__name__ if isinstance(case, type) else None,
)
def test_which_way(request_: Request, way: type) -> None:
    """Most batches go the straight way; what is special about a request takes the other."""
    assert type(command_of(request_, SETTINGS)) is way


LONG = 200_000


@pytest.mark.parametrize(
    "text",
    [
        '{"requests":[' + '{"method":"PUT","path":"/a/b","body":{"' * (LONG // 40),
        '{"requests":[' + '{"method":"PUT","path":"/a/b","body":{' * (LONG // 40),
        '{"requests":[{"method":"PUT","path":"/a/b","body":"' + "\\" * LONG,
        '{"requests":[{"method":"PUT","path":"/a/b","body":[[["' + '","' * (LONG // 3),
        '{"requests":[{"method":"PUT","path":"/a/' + "b" * LONG,
        " " * LONG + '{"requests"' + " " * LONG,
    ],
    ids=range(6),
)
def test_no_text_takes_long(text: str) -> None:
    """A text that is never what is looked for is refused at once: with quadratic time these would take minutes."""
    with pytest.raises(Problem):
        command_of(Request("POST", b"/_/batch", {}, text.encode()), SETTINGS)


plain = st.dictionaries(st.sampled_from(["a", "b", "$kv", "%b", "ttl", ".sv", "é", ""]), st.sampled_from(["1", '"x"', "1.50"]))


@given(plain, gaps, st.integers(0, 60))
def test_plain_documents(members: dict[str, str], gap: str, more: int) -> None:
    """The codec's short way with plain documents comes to what its long way does, there and back."""
    members |= {f"m{n}": "1" for n in range(more)}
    body = ("{" + gap + f",{gap}".join(f'"{name}"{gap}:{value}{gap}' for name, value in members.items()) + "}").encode()
    if (encoded := codec.encode_plain(body)) is not None:
        assert encoded == json_text.parse_text(body, codec._encode)
    for order in (b"", b' ["a","%b","none"]'):
        fields = [part for pair in members.items() for part in (codec._field(pair[0]), pair[1].encode())]
        flat = [codec.META, b"1700000000000-0 object" + order, *fields]
        assert codec._decode(flat) == codec._decode_any(flat)


# --- Commands that wait for one turn of the event loop ------------------------------------------------------------------


def in_one_turn(
    running: Running, requests: list[Request], act: Callable[[PipelinedStore], object] = lambda _: None
) -> list[Any]:
    """What requests come to that are submitted together, on a connection that stands; `act` follows in the same turn."""

    async def ask() -> list[Any]:
        asked_of = PipelinedStore(parse_redis_url(running.url))
        await asked_of.execute(command_of(Request("GET", b"/x/y", {}), SETTINGS))
        running.redis.config_resetstat()
        asked = [asyncio.create_task(asked_of.execute(command_of(request, SETTINGS))) for request in requests]
        await asyncio.sleep(0)
        act(asked_of)
        outcomes: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        await asked_of.close()
        return outcomes

    return asyncio.run(ask())


def one_by_one(running: Running, requests: list[Request]) -> list[Any]:
    """What they come to one after the other."""
    store = running.open()
    outcomes: list[Any] = []
    for request in requests:
        try:
            outcomes.append(store.execute(command_of(request, SETTINGS)))
        except Problem as problem:
            outcomes.append(problem)
    store.close()
    return outcomes


def single(method: str, path: str, body: str = "", **headers: str) -> Request:
    return Request(method, path.encode(), headers, body.encode())


singles = st.lists(st.sampled_from([*NAMES, "string"]), min_size=1, max_size=10, unique=True).flatmap(
    lambda names: st.tuples(
        *[
            st.builds(single, st.just("PUT"), st.just(f"/ns/{name}"), st.sampled_from([*TAKEN, OTHER[0]]))
            | st.just(single("GET", f"/ns/{name}"))
            | st.just(single("PUT", f"/ns/{name}", "1", **{"if-none-match": "*"}))
            for name in names
        ]
    )
)


@pytest.mark.slow
@on_two
@settings(max_examples=50)
@given(singles)
def test_in_one_turn(store: Running, requests: tuple[Request, ...]) -> None:
    """Requests for different documents come to the same, and leave the same in Redis, together and one by one."""
    opened, told = store.open(), []
    for way in (in_one_turn, one_by_one):
        prepare(store, opened)
        store.redis.set("kv:{ns}/string", "x")
        replies = [replied(request, outcome) for request, outcome in zip(requests, way(store, list(requests)), strict=True)]
        told.append((replies, documents_and_indexes(store.redis)))
    opened.close()
    (together, held), (alone, other_held) = told
    for one, other in zip(together, alone, strict=True):
        assert without_tags(one) == without_tags(other)
    assert unordered(held) == unordered(other_held)


def replied(request: Request, outcome: Any) -> Response:
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return protocol.render(request, outcome)
    except Problem as problem:
        return refuse(problem)


def without_tags(reply: Response) -> str:
    return TIMES.sub("time", repr(reply))


def unordered(held: dict[bytes, Any]) -> list[str]:
    """What Redis holds, without times, and the log in whatever order the documents were written in."""
    texts = []
    for key, value in sorted(held.items()):
        if key.endswith(b"!log"):
            parts = sorted(TIMES.sub("time", repr(entry)) for entry in value)
        else:
            stored = value if b"}!" in key else value[0]  # a hash, but for the sorted sets of a namespace
            parts = sorted(TIMES.sub("time", repr(part)) for part in (stored.items() if isinstance(stored, dict) else value))
        texts.append(f"{key!r}: {parts}")
    return texts


@on_two
def test_one_script_for_many(store: Running) -> None:
    """Those of one kind in one namespace; a second write to a document is a script of its own, and so is all that differs."""
    for script in (scripts.PUT_MANY, scripts.GET_MANY, scripts.PUT, scripts.DELETE, scripts.REGISTER_NAMESPACE):
        store.redis.script_load(script.text)
    puts = [single("PUT", f"/ns/{n}", str(n)) for n in range(50)]
    gets = [single("GET", f"/ns/{n}") for n in range(50)]
    in_one_turn(store, puts)
    for requests, count in (
        (puts, 1),
        ([*puts, *gets], 2),
        ([*puts, *gets[:10], gets[0], gets[0]], 2),
        ([*puts, puts[0], puts[1]], 3),
        ([*puts, single("PUT", "/ns2/a", "1"), single("PUT", "/ns2/b", "1")], 2 + 1),  # and one that tells of a new namespace
        ([*puts, single("PUT", "/ns/x", "1", **{"if-none-match": "*"}), single("DELETE", "/ns/x")], 3),
        ([*puts, single("PUT", "/ns/x", json.dumps("x" * bulk.MAX_COALESCED_BYTES))], 2),
        ([single("PUT", f"/ns/{n}", "1") for n in range(bulk.MAX_COALESCED * 2 + 2)], 3),
    ):
        outcomes = in_one_turn(store, requests)
        assert scripts_run(store.redis) == count
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]


@on_two
def test_one_that_is_refused(store: Running) -> None:
    """A key of another type is one request's concern only."""
    store.redis.set("kv:{ns}/b", "x")
    for method in ("PUT", "GET"):
        outcomes = in_one_turn(store, [single(method, f"/ns/{name}", "1") for name in "abc"])
        assert [isinstance(outcome, Problem) for outcome in outcomes] == [False, True, False]
        assert outcomes[1].status == 409


@on_two
def test_scripts_that_redis_has_forgotten(store: Running) -> None:
    """They are sent whole, and each request is carried out once."""
    requests = [single("PUT", f"/ns/{n}", "1") for n in range(10)]
    outcomes = in_one_turn(store, requests, lambda _: store.redis.script_flush())
    assert [outcome.created for outcome in outcomes] == [True] * 10
    assert store.redis.xlen("kv:{ns}!log") == 10


@on_two
def test_a_connection_that_is_lost(store: Running) -> None:
    """Before or after they are sent: each request fails once, as unknown."""
    requests = [single("PUT", f"/ns/{n}", "1") for n in range(10)]

    def lose(lost: PipelinedStore) -> None:
        assert lost._connection
        lost._connection.abort()

    def send_and_lose(lost: PipelinedStore) -> None:
        assert lost._connection
        lost._connection.flush()
        lost._connection.abort()

    for act in (lose, send_and_lose):
        outcomes = in_one_turn(store, requests, act)
        assert [isinstance(outcome, Problem) and outcome.status for outcome in outcomes] == [503] * 10


@on_two
def test_the_bound_on_what_waits(store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the commands that were sent as one counts; the next is refused at once, and what waits is answered."""
    monkeypatch.setattr(redis_clients, "MAX_WAITING", 50)

    async def ask() -> tuple[list[Any], Any]:
        asked_of = PipelinedStore(parse_redis_url(store.url))
        await asked_of.execute(command_of(single("GET", "/x/y"), SETTINGS))
        store.signal(signal.SIGSTOP)
        try:
            puts = [command_of(single("PUT", f"/ns/{n}", "1"), SETTINGS) for n in range(50)]
            waiting = [asyncio.create_task(asked_of.execute(put)) for put in puts]
            await asyncio.sleep(0.01)
            refused = (await asyncio.gather(asked_of.execute(puts[0]), return_exceptions=True))[0]
        finally:
            store.signal(signal.SIGCONT)
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        await asked_of.execute(puts[0])
        await asked_of.close()
        return outcomes, refused

    outcomes, refused = asyncio.run(ask())
    assert [outcome.created for outcome in outcomes] == [True] * 50
    assert refused.status == 503
    assert "Nothing was changed" in refused.detail
