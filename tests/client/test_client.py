"""The client for Python does what the service does over HTTP: the same documents, rules and problems, without HTTP.

Each row runs with the blocking client and with the one for `await`, against a real Redis.
"""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from kvstore import client
from kvstore.core import values
from kvstore.core.codec import META
from kvstore.core.errors import (
    BatchRefused,
    InvalidDocument,
    InvalidParameter,
    InvalidPath,
    InvalidRequest,
    InvalidTTL,
    Leased,
    NotFound,
    PreconditionFailed,
    Problem,
    StoreUnavailable,
)
from kvstore.core.paths import parse_path
from kvstore.core.settings import YEAR_S
from kvstore.verbs.shapes import Document
from tests.support.asking import LATE_S, Left
from tests.support.clients import Checked
from tests.support.pyclients import KINDS, LIMIT_S, Awaited, Follower
from tests.support.stores import Running, start_valkey, wait_for_disk, wait_until
from tests.support.tokens import SECRET


@pytest.fixture
def store(started: Callable[[str], Running]) -> Running:
    """A real Redis, empty."""
    running = started("redis")
    running.redis.flushall()
    return running


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, store: Running) -> Iterator[Any]:
    """A client of each kind."""
    opened = KINDS[request.param](store.url)
    yield opened
    opened.close()


@pytest.fixture
def http(store: Running, opened: Callable[..., Checked]) -> Checked:
    """The service on the same Redis."""
    return opened("flask", "redis")


# --- The same as over HTTP ----------------------------------------------------------------------------------------------

NOBODY = '"1795168800000-7"'  # an entity-tag of no document
JSON_PATCH = (("Content-Type", "application/json-patch+json"),)
DEEP: Any = 1
for _ in range(64):
    DEEP = [DEEP]

# Name; what the client does to a path; the request that is the same. `{}` stands for the path: nothing is at `{}/new`,
# {"n":1,"text":"a"} at `{}/old`, a list at `{}/list`, and a string that is no integer at `{}/old` in the member `text`.
SAME: list[tuple[str, Callable[[Any, str], Any], tuple[Any, ...]]] = [
    ("put", lambda db, at: db.put(f"{at}/new", {"a": [1, None]}), ("PUT", "{}/new", b'{"a":[1,null]}')),
    ("put, no object", lambda db, at: db.put(f"{at}/new", [1.5]), ("PUT", "{}/new", b"[1.5]")),
    ("put over", lambda db, at: db.put(f"{at}/old", 7), ("PUT", "{}/old", b"7")),
    ("put for a time", lambda db, at: db.put(f"{at}/new", 7, ttl="5m"), ("PUT", "{}/new?ttl=5m", b"7")),
    ("the member ttl", lambda db, at: db.put(f"{at}/new", {"a": 1, "ttl": 60}), ("PUT", "{}/new", b'{"a":1,"ttl":60}')),
    ("a bad ttl", lambda db, at: db.put(f"{at}/new", 7, ttl=0), ("PUT", "{}/new?ttl=0", b"7")),
    ("a bad member ttl", lambda db, at: db.put(f"{at}/new", {"ttl": "1"}), ("PUT", "{}/new", b'{"ttl":"1"}')),
    ("too long", lambda db, at: db.put(f"{at}/new", "x" * 2**20), ("PUT", "{}/new", b'"%b"' % (b"x" * 2**20))),
    ("too deep", lambda db, at: db.put(f"{at}/new", [DEEP]), ("PUT", "{}/new", b"[" * 65 + b"1" + b"]" * 65)),
    ("create", lambda db, at: db.put(f"{at}/new", 7, if_none_match="*"), ("PUT", "{}/new", b"7", (("If-None-Match", "*"),))),
    (
        "create over",
        lambda db, at: db.put(f"{at}/old", 7, if_none_match="*"),
        ("PUT", "{}/old", b"7", (("If-None-Match", "*"),)),
    ),
    ("another tag", lambda db, at: db.put(f"{at}/old", 7, if_match=NOBODY), ("PUT", "{}/old", b"7", (("If-Match", NOBODY),))),
    ("no tag", lambda db, at: db.put(f"{at}/old", 7, if_match="x"), ("PUT", "{}/old", b"7", (("If-Match", "x"),))),
    ("merge", lambda db, at: db.patch(f"{at}/old", {"n": None, "m": 2}), ("PATCH", "{}/old", b'{"n":null,"m":2}')),
    ("nested merge", lambda db, at: db.patch(f"{at}/old", {"o": {"p": 1}}), ("PATCH", "{}/old", b'{"o":{"p":1}}')),
    ("merge creates", lambda db, at: db.patch(f"{at}/new", {"m": 2}), ("PATCH", "{}/new", b'{"m":2}')),
    (
        "increment",
        lambda db, at: db.patch(f"{at}/old", {"n": {".sv": {"increment": 41}}}),
        ("PATCH", "{}/old", b'{"n":{".sv":{"increment":41}}}'),
    ),
    (
        "no increment",
        lambda db, at: db.patch(f"{at}/old", {"text": {".sv": {"increment": 1}}}),
        ("PATCH", "{}/old", b'{"text":{".sv":{"increment":1}}}'),
    ),
    (
        "JSON Patch",
        lambda db, at: db.patch(f"{at}/old", [{"op": "remove", "path": "/n"}]),
        ("PATCH", "{}/old", b'[{"op":"remove","path":"/n"}]', JSON_PATCH),
    ),
    (
        "JSON Patch that fails",
        lambda db, at: db.patch(f"{at}/old", [{"op": "test", "path": "/n", "value": 2}]),
        ("PATCH", "{}/old", b'[{"op":"test","path":"/n","value":2}]', JSON_PATCH),
    ),
    ("JSON Patch of nothing", lambda db, at: db.patch(f"{at}/new", []), ("PATCH", "{}/new", b"[]", JSON_PATCH)),
    ("touch", lambda db, at: db.patch(f"{at}/old", ttl=60), ("PATCH", "{}/old?ttl=60", b"")),
    ("touch nothing", lambda db, at: db.patch(f"{at}/new", ttl=60), ("PATCH", "{}/new?ttl=60", b"")),
    ("patch with nothing", lambda db, at: db.patch(f"{at}/old"), ("PATCH", "{}/old", b"")),
    ("delete", lambda db, at: db.delete(f"{at}/old"), ("DELETE", "{}/old", b"")),
    (
        "delete another",
        lambda db, at: db.delete(f"{at}/old", if_match=NOBODY),
        ("DELETE", "{}/old", b"", (("If-Match", NOBODY),)),
    ),
    ("delete all", lambda db, at: db.delete(f"{at}/", recursive=True), ("DELETE", "{}/?recursive", b"")),
    ("delete a container", lambda db, at: db.delete(f"{at}/"), ("DELETE", "{}/", b"")),
    ("post to the root of nothing", lambda db, at: db.post(f"{at}//", 1), ("POST", "{}//", b"1")),
    ("a bad escape", lambda db, at: db.put(f"{at}/%", 1), ("PUT", "{}/%", b"1")),
    ("a long path", lambda db, at: db.put(at + "/a" * 600, 1), ("PUT", "{}" + "/a" * 600, b"1")),
    ("a job for later", lambda db, at: db.post(f"{at}/", 1, delay="x"), ("POST", "{}/?delay=x", b"1")),
    ("a long lease", lambda db, at: db.take(f"{at}/", "13h"), ("POST", "{}/?lease=13h", b"")),
    ("take from the root", lambda db, at: db.take("/", 30), ("POST", "/?lease=30", b"")),
    ("a bad limit", lambda db, at: list(db.list(f"{at}/", limit=0)), ("GET", "{}/?limit=0", b"")),
    ("a bad order", lambda db, at: list(db.list(f"{at}/", order="up")), ("GET", "{}/?limit=200&order=up", b"")),
    (
        "a bad key",
        lambda db, at: db.put(f"{at}/new", 1, idempotency_key=""),
        ("PUT", "{}/new", b"1", (("Idempotency-Key", ""),)),
    ),
]


def hashes(store: Running) -> dict[str, Any]:
    """All documents in Redis, with how many s they have left, but for their entity-tags."""
    found = {}
    for key in store.redis.keys("kv:{c}/*"):
        hash_ = store.redis.hgetall(key)
        hash_[META] = re.sub(rb"^\S+", b"", hash_[META])
        found[key.decode()] = hash_, store.redis.pttl(key) / 1000
    return found


@pytest.mark.parametrize(("verb", "asked"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_it_is_the_same_over_http(
    db: Any, http: Checked, store: Running, verb: Callable[[Any, str], Any], asked: tuple[Any, ...]
) -> None:
    """It leaves the same hashes in Redis, raises the same problem, and returns what the response shows."""

    def prepare() -> None:
        store.redis.flushall()
        for name, body in (("old", '{"n":1,"text":"a"}'), ("list", "[1]")):
            http.put(f"/c/{name}", body)

    prepare()
    problem = None
    try:
        returned = verb(db, "/c")
    except Problem as raised:
        problem = raised
    through_client = hashes(store)
    prepare()
    method, target, body, *fields = asked
    answer = http.request(method, target.replace("{}", "/c"), fields[0] if fields else (), body)
    assert hashes(store) == {key: (hash_, pytest.approx(left_s, abs=LATE_S)) for key, (hash_, left_s) in through_client.items()}
    if problem:
        assert (problem.uri(), problem.status) == (answer.json["type"], answer.json["status"])
        assert problem.detail == answer.json["detail"] or problem.status == 413  # over HTTP the body is too large, too
        assert problem.members.keys() == answer.json.keys() - {"type", "title", "status", "detail"}
    else:
        assert answer.status < 300
        if isinstance(returned, Document):
            shown = answer.json
            if isinstance(shown, dict):
                assert shown.pop("ttl") == pytest.approx(returned.ttl, abs=LATE_S)
            assert (returned.path, returned.value) == ("/c/" + returned.path.rpartition("/")[2], shown)


def test_what_one_writes_the_other_reads(db: Any, http: Checked) -> None:
    """With the same entity-tag, which is good for either."""
    written = db.put("/people/ada", {"name": "Ada"}, ttl=500)
    assert written == Document("/people/ada", {"name": "Ada"}, written.etag, 500)
    answer = http.get("/people/ada")
    assert (answer.json["name"], answer.tag) == ("Ada", written.etag)
    over = http.put("/people/ada", '{"name":"Ada L."}', [("If-Match", written.etag)])
    found = db.get("/people/ada")
    assert (found.value, found.etag, found.ttl) == ({"name": "Ada L."}, over.tag, Left(YEAR_S))
    assert db.delete("/people/ada", if_match=over.tag) is True
    assert (db.get("/people/ada"), db.delete("/people/ada")) == (None, False)
    assert http.get("/people/ada").status == 404


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1e2,"b":1.10,"c":1.000000000000000005,"d":-0,"e":-0.0,"f":123456789012345678901234567890}',
        '[1.0,1E5,0.1,1e-7,{"z":1,"a":[]},{},null,true,"\u00e9\U0001f600"]',
        "1.7976931348623157e308",
        '"02139"',
        '{"$kv":1,"b":"","a":{}}',
    ],
)
def test_nothing_is_lost(db: Any, http: Checked, text: str) -> None:
    """What HTTP stores, and the client reads and writes back, HTTP reads byte by byte."""
    http.put("/n/sent", text)
    before = http.get("/n/sent").body
    db.put("/n/copied", db.get("/n/sent").value)
    db.update("/n/updated", lambda _: values.load(text.encode()))
    assert http.get("/n/copied").body == http.get("/n/updated").body == before


@pytest.mark.parametrize("value", [object(), {1: 2}, float("nan"), b"x", "\ud800", [{"a": {1, 2}}]])
def test_what_has_no_json_text(db: Any, value: object) -> None:
    """Nothing is stored."""
    with pytest.raises(InvalidDocument):
        db.put("/n/a", value)
    assert db.get("/n/a") is None


def test_paths(db: Any, http: Checked) -> None:
    """A path is spelled as in a URL, but for the question mark, which begins no query; the service's own are none."""
    assert db.put("/a b/é?ttl=1", 1).path == "/a%20b/%C3%A9%3Fttl=1"
    assert db.get("/a%20b/%C3%A9%3Fttl=1").ttl == Left(YEAR_S)
    assert http.get("/a%20b/%C3%A9%3Fttl=1").json == 1
    for path, problem in [
        ("a/b", InvalidPath),
        ("http://x/a/b", InvalidPath),
        ("/a//b", InvalidPath),
        ("/a/\udc80", InvalidPath),
        ("/a/", InvalidPath),
        ("/_/batch", NotFound),
        ("/%5f/limits", NotFound),
    ]:
        with pytest.raises(problem):
            db.get(path)
        with pytest.raises(problem):
            db.put(path, 1)


def test_idempotency(db: Any, http: Checked) -> None:
    """A key is the same over HTTP: what was done with it is not done again, whoever asks."""
    first = db.post("/chat/", "hello", idempotency_key="k")
    assert db.post("/chat/", "hello", idempotency_key="k").path == first.path
    again = http.request("POST", "/chat/", [("Idempotency-Key", "k")], b'"hello"')
    assert (again.headers["Location"], again.headers["Idempotency-Replayed"]) == (first.path, "true")
    with pytest.raises(Problem, match="another request"):
        db.post("/chat/", "other", idempotency_key="k")
    assert db.list("/chat/", count=True) == 1
    with pytest.raises(PreconditionFailed):
        db.put("/chat/x", 1, if_match=NOBODY, idempotency_key="l")
    db.put("/chat/x", 1)
    with pytest.raises(PreconditionFailed):
        db.put("/chat/x", 1, if_match=NOBODY, idempotency_key="l")


def test_a_precondition_shows_what_is_there(db: Any) -> None:
    """With the problem's own members, as values of Python."""
    there = db.put("/n/a", {"price": 1.5}, ttl=60)
    with pytest.raises(PreconditionFailed) as failed:
        db.put("/n/a", 0, if_match=NOBODY)
    assert failed.value.status == 412
    assert failed.value.members == {"etag": there.etag, "current": {"price": 1.5, "ttl": Left(60)}}


# --- Lists --------------------------------------------------------------------------------------------------------------


def test_a_list_goes_over_all_pages(db: Any, http: Checked) -> None:
    """In the order of the names, or against it, so many as are asked for; what lies deeper only where it is asked for."""
    db.batch([{"method": "PUT", "path": f"/n/{number:04}", "value": number} for number in range(450)])
    db.put("/n/0100/below", "deep")
    assert [document.value for document in db.list("/n/")] == list(range(450))
    assert [document.path for document in db.list("/n", limit=2, order="desc")] == ["/n/0449", "/n/0448"]
    assert [document.value for document in db.list("/n/", limit=202, after="0200")] == list(range(201, 403))
    assert [document.value for document in db.list("/n/", recursive=True, limit=103)][-2:] == ["deep", 101]
    assert db.list("/n/", count=True) == 450
    assert db.list("/n/", count=True, recursive=True) == 451
    assert db.list("/n/", count=True, limit=3) == 3
    assert (list(db.list("/none/")), db.list("/none/", count=True)) == ([], 0)
    first = http.get("/n/?limit=1").json["items"][0]
    assert next(iter(db.list("/n/"))) == Document(first["path"], first["value"], first["etag"], Left(first["ttl"]))


def test_the_root_is_listed(db: Any) -> None:
    """The documents of one segment; a namespace is none."""
    db.put("/one", 1)
    db.put("/n/a", 2)
    assert [document.path for document in db.list("/")] == ["/one"]
    with pytest.raises(InvalidParameter):
        list(db.list("/", recursive=True))


def test_a_query_goes_over_all_pages(db: Any, http: Checked) -> None:
    """The documents that meet the conditions, as over HTTP; with `count` their number."""
    db.batch([{"method": "PUT", "path": f"/n/{number:04}", "value": {"n": number, "odd": number % 2}} for number in range(450)])
    db.put("/one", {"n": 1})
    odd = {"odd": {"eq": 1.0}}
    assert [document.value["n"] for document in db.query("/n/", odd)] == list(range(1, 450, 2))
    assert [document.value["n"] for document in db.query("/n", odd, limit=201, after="0000")] == list(range(1, 403, 2))
    asked = db.query("/n/", odd, sort="-n", fields=["n"], limit=2)
    assert [document.value for document in asked] == [{"n": 449}, {"n": 447}]
    assert [document.value["n"] for document in db.query("/n/", sort=["odd", "-n"], limit=1001)][224:226] == [0, 449]
    assert db.query("/n/", odd, count=True) == db.query("/n/", {"odd": {"in": [1, "x"]}}, recursive=True, count=True) == 225
    assert (db.query("/n/", count=True), db.query("/", count=True), list(db.query("/n/", search="x"))) == (450, 1, [])
    assert [document.path for document in db.query("/")] == ["/one"]
    item = http.get("/n/?n:eq=7").json["items"][0]
    assert list(db.query("/n/", {"n": {"eq": 7}})) == [Document(item["path"], item["value"], item["etag"], Left(item["ttl"]))]
    with pytest.raises(InvalidDocument):
        list(db.query("/n/", {"n": {"is": 7}}))


# --- Batches ------------------------------------------------------------------------------------------------------------


def test_a_batch(db: Any, http: Checked) -> None:
    """The result of each request, in their order; GETs and PUTs alone take the fast path, and the results are the same."""
    written = db.batch([{"method": "put", "path": "/n/a", "value": {"x": 1}}, {"method": "PUT", "path": "/n/b", "value": 2}])
    read = db.batch([{"method": "GET", "path": "/n/a"}, {"method": "GET", "path": "/n/b"}])
    assert read == [replace(document, ttl=Left(document.ttl)) for document in written]
    assert [document.etag for document in written] == [http.get("/n/a").tag, http.get("/n/b").tag]
    condition = {"if_match": written[0].etag, "ttl": 60}
    mixed = db.batch(
        [
            {"method": "patch", "path": "/n/a", "value": {"y": 1.5}, **condition},
            {"method": "post", "path": "/n/list/", "value": "é"},
            {"method": "delete", "path": "/n/b"},
            {"method": "delete", "path": "/n/a", "if_match": "*"},
            {"method": "put", "path": "/n/c", "value": {}},
        ]
    )
    assert [mixed[0].value, mixed[0].ttl, mixed[1].value, *mixed[2:4], mixed[4].value] == [
        {"x": 1, "y": 1.5},
        60,
        "é",
        True,
        True,
        {},
    ]
    assert http.get(mixed[1].path).json == "é"


def test_a_batch_is_refused_as_a_whole(db: Any, http: Checked) -> None:
    """Unless each is executed on its own: then what was refused is its problem."""
    requests = [{"method": "put", "path": "/n/a", "value": 1}, {"method": "put", "path": "/n/b", "value": 2, "if_match": "*"}]
    with pytest.raises(BatchRefused) as refused:
        db.batch(requests)
    assert refused.value.members["index"] == 1
    assert refused.value.members["problem"]["status"] == 412
    assert http.get("/n/a").status == 404
    done, failed, nothing = db.batch([*requests, {"method": "get", "path": "/n/none"}], atomic=False)
    assert (done.value, type(failed), nothing) == (1, PreconditionFailed, None)
    assert db.batch([]) == []
    [refused] = db.batch([{"method": "put", "path": "/n/a", "value": 1, "ttl": 0}], atomic=False)
    assert isinstance(refused, InvalidTTL)
    with pytest.raises(InvalidRequest, match="take"):
        db.batch([{"method": "take", "path": "/n/"}])
    with pytest.raises(TypeError):
        db.batch([{"method": "put", "path": "/n/a", "value": 1, "limit": 3}])


# --- Updates ------------------------------------------------------------------------------------------------------------


def test_an_update_wins_in_the_end(db: Any, store: Running, http: Checked) -> None:
    """Whoever writes between its reading and its writing."""
    seen = []

    def function(value: Any) -> Any:
        seen.append(value)
        if len(seen) <= 3:
            http.put("/n/a", str(10 * len(seen)))
        return value + 1

    assert db.update("/n/a", function, default=0, ttl=60).value == 31
    assert seen == [0, 10, 20, 30]
    assert db.get("/n/a").ttl == Left(60)


def test_an_update_gives_each_attempt_its_own_default(db: Any, http: Checked) -> None:
    """A function may change what it is given."""
    default: dict[str, Any] = {"list": []}

    def function(value: Any) -> Any:
        value["list"].append(1)
        if not http.get("/n/other").body.startswith(b"1"):
            http.put("/n/other", "1")
            http.put("/n/a", '{"list":[0]}')
            http.delete("/n/a")
        return value

    assert db.update("/n/a", function, default=default).value == {"list": [1]}
    assert default == {"list": []}


def test_an_update_that_cannot_be(db: Any, store: Running) -> None:
    """It raises, and leaves what is there."""
    db.put("/n/a", 1)
    with pytest.raises(TypeError, match="None"):
        db.update("/n/a", lambda _: None)
    with pytest.raises(ZeroDivisionError):
        db.update("/n/a", lambda value: value / 0)
    assert db.get("/n/a").value == 1
    db.take("/n/", 30)
    with pytest.raises(Leased):
        db.update("/n/a", lambda value: value + 1)


def test_an_update_of_another_clients_hash(db: Any, store: Running) -> None:
    """It has no entity-tag, so the update gives it one first."""
    store.redis.hset(parse_path(b"/n/a").keys.document, mapping={"n": "1", "name": "ada"})
    assert db.get("/n/a").etag is None
    assert db.update("/n/a", lambda value: value | {"n": value["n"] + 1}).value == {"n": 2, "name": "ada"}


def test_many_updates_at_once(db: Any) -> None:
    """A counter counts all of them: threads share a client, and so do coroutines."""

    def count() -> None:
        for _ in range(10):
            db.update("/n/a", lambda value: value + 1, default=0)

    with ThreadPoolExecutor(8) as threads:
        for counted in [threads.submit(count) for _ in range(8)]:
            counted.result()
    assert db.get("/n/a").value == 80


# --- Jobs ---------------------------------------------------------------------------------------------------------------


def test_jobs(db: Any, http: Checked) -> None:
    """Taken, renewed, given back, done; and what is no longer leased is refused."""
    put = [db.post("/jobs/", {"n": number}) for number in range(3)]
    db.post("/jobs/", "later", delay=60)
    jobs = db.take("/jobs/", "30s", limit=5)
    assert [(job.path, job.value, job.etag, job.attempts) for job in jobs] == [
        (document.path, document.value, document.etag, 1) for document in put
    ]
    assert db.take("/jobs/", 30) == []
    assert http.delete(jobs[0].path).status == 409
    jobs[0].renew("1h")
    assert jobs[0].done() is True
    assert jobs[0].done() is False
    with pytest.raises(NotFound):
        jobs[0].renew(30)
    jobs[1].release(None, "not now")
    for late in (jobs[1].done, lambda: jobs[1].renew(30)):
        with pytest.raises(PreconditionFailed, match="the lease has ended"):
            late()
    [again] = db.take("/jobs/", 30, max_attempts=3, limit=1)
    assert (again.path, again.attempts, again.ttl) == (put[1].path, 2, Left(YEAR_S))
    assert http.delete(jobs[2].path, [("If-Match", f'"{jobs[2].lease}"')]).status == 204
    again.release("1h")
    states = [(item["state"], item["attempts"]) for item in http.get("/jobs/").json["items"]]
    assert states == [("delayed", 2), ("delayed", 0)]


def test_done_is_a_verb(store: Running) -> None:
    """Of a client, for a job that another one has taken as well."""
    with client.connect(store.url) as db, client.connect(store.url) as other:
        db.post("/jobs/", 1)
        [job] = db.take("/jobs/", 30)
        other.renew(job, 60)
        other.done(job)
        assert not db.get(job.path)


def test_a_take_waits(db: Any, http: Checked) -> None:
    """Until there is a job, which comes from elsewhere; who lists the queue sees who waits."""

    def post() -> None:
        wait_until(lambda: [taker["as"] for taker in http.get("/jobs/").json.get("takers", ())] == [{"name": "ada"}], LIMIT_S)
        db.post("/jobs/", 1)

    poster = threading.Thread(target=post)
    poster.start()
    [job] = db.take("/jobs/", 30, wait=25, as_={"name": "ada"})
    poster.join()
    assert job.value == 1


def test_a_take_that_is_cancelled(store: Running, http: Checked) -> None:
    """It is given nothing: the next one gets the job at once."""
    db = Awaited(store.url)
    waiting = db._loop._loop.call_soon_threadsafe  # the loop's own
    tasks: list[Any] = []

    async def take() -> None:
        await db.client.take("/jobs/", 30, wait=25)

    waiting(lambda: tasks.append(db._loop._loop.create_task(take())))
    wait_until(lambda: http.get("/jobs/").json.get("takers"), LIMIT_S)
    waiting(tasks[0].cancel)
    db.post("/jobs/", 1)
    assert [job.attempts for job in db.take("/jobs/", 30)] == [1]
    db.close()


# --- Following ----------------------------------------------------------------------------------------------------------


def test_following_a_document(db: Any, http: Checked) -> None:
    """First what is there, then every change, with ids from which it goes on."""
    follower = Follower(db, "/n/a")
    first = follower.next()
    assert (first.type, first.path, first.value, first.etag) == ("snapshot", "/n/a", None, None)
    put = http.put("/n/a", '{"x":1.10}')
    seen = follower.next()
    assert (seen.type, seen.path, seen.etag, seen.id, seen.ttl) == ("put", "/n/a", put.tag, put.tag.strip('"'), Left(YEAR_S))
    assert values.dump(seen.value) == b'{"x":1.10}'
    db.patch("/n/a", {"y": 2})
    db.delete("/n/a")
    patched, deleted = follower.next(), follower.next()
    assert (patched.type, patched.value) == ("patch", {"x": 1.1, "y": 2})
    assert (deleted.type, deleted.value, deleted.ttl) == ("delete", None, None)
    later = Follower(db, "/n/a", last_event_id=seen.id)
    assert [later.next().type] == ["delete"], "what the deleted document was is gone"


def test_following_what_matches(db: Any) -> None:
    """Conditions as query() takes them, in the snapshot and after it; a document that does not match any more leaves."""
    db.put("/n/a", {"x": 1.50, "y": "42"})
    db.put("/n/deep/b", {"x": 1.50, "y": "42"})
    where = {"x": {"gte": 1, "lt": 2}, "y": {"eq": "42"}}
    follower, other = Follower(db, "/n/", where=where, fields="x"), Follower(db, "/n/", search="HERE", recursive=True)
    [item] = follower.next().value["items"]
    assert (item["path"], item["value"]) == ("/n/a", {"x": 1.5})
    assert other.next().value == {"items": []}
    db.patch("/n/a", {"y": 42})
    db.put("/n/deep/b", ["is here"])
    left, told = follower.next(), other.next()
    assert (left.type, left.path, left.value) == ("leave", "/n/a", None)
    assert told.path == "/n/a"
    told = other.next()
    assert (told.type, told.path, told.value) == ("put", "/n/deep/b", ["is here"])


def test_following_a_container(db: Any) -> None:
    """Its snapshot is one event, also where it is long."""
    db.batch([{"method": "PUT", "path": f"/n/{number:04}", "value": number} for number in range(600)])
    db.put("/n/deep/a", 1)
    follower = Follower(db, "/n/", recursive=True)
    snapshot = follower.next()
    assert (snapshot.type, snapshot.path, snapshot.etag) == ("snapshot", "/n/", f'"{snapshot.id}"')
    assert [item["value"] for item in snapshot.value["items"]] == [*range(600), 1]
    db.put("/n/deep/a", 2)
    assert follower.next().value == 2


def test_a_reader_that_falls_behind_misses_nothing(db: Any) -> None:
    """It is dropped with 1 MiB unread, and resumes where it was, by itself."""
    stream = db.follow("/n/a")
    assert next(stream).type == "snapshot"
    written = [db.put("/n/a", f"{number:05}" * 20_000).value[:5] for number in range(30)]
    assert [next(stream).value[:5] for _ in range(30)] == written
    stream.close()


def test_what_cannot_be_followed(db: Any) -> None:
    """The caller is told at the first event."""
    refused: list[tuple[str, dict[str, Any]]] = [("/_/follow", {}), ("n", {}), ("/n/", {"last_event_id": "x"})]
    refused += [("/n/a", {"where": {}}), ("/n/", {"where": {"a": {"zz": 1}}}), ("/n/", {"search": 1})]
    for path, options in refused:
        with pytest.raises(Problem):
            next(iter(db.follow(path, **options)))


def test_a_closed_client_ends_what_it_follows(db: Any) -> None:
    """In the threads that read."""
    followers = [Follower(db, "/n/"), Follower(db, "/n/a")]
    for follower in followers:
        follower.next()
    (db.run(db.client.close()) if isinstance(db, Awaited) else db.close())
    assert [follower.next() for follower in followers] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_redis_is_killed(kind: str, directory: Any) -> None:
    """Writes fail in time, and work again when it is back; whoever follows has missed nothing."""
    running = start_valkey(directory)
    db = KINDS[kind](running.url)
    follower = Follower(db, "/n/")
    assert follower.next().type == "snapshot"
    for number in range(3):
        db.put("/n/a", number)
        assert follower.next().value == number
        if number == 1:
            wait_for_disk(running.redis)
            running.stop()
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable):
                db.put("/n/a", "lost")
            assert time.monotonic() - begun < 15
            running = start_valkey(directory)
            wait_until(lambda: works(db), LIMIT_S)
    db.close()
    running.stop()


def works(db: Any) -> bool:
    """Whether Redis answers."""
    try:
        return bool(db.get("/n/a"))
    except StoreUnavailable:
        return False


# --- Where it runs ------------------------------------------------------------------------------------------------------

FORKED = """
import os, threading, kvstore

db = kvstore.connect()
db.put("/n/a", 0)
stream = db.follow("/n/a")
assert next(stream).value == 0
db._store._lock.acquire()  # as a thread that is connecting at that moment does
pid = os.fork()
if pid == 0:
    db.update("/n/a", lambda value: value + 1)
    assert next(db.follow("/n/a")).value == 1
    db.post("/jobs/", 1)
    [job] = db.take("/jobs/", 30, wait=5)
    job.done()
    db.close()
    os._exit(7)
db._store._lock.release()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert db.get("/n/a").value == 1
assert next(stream).value == 1
stream.close()
db.close()
print("both")
"""


def test_a_process_that_was_forked(store: Running) -> None:
    """It goes on with connections of its own, and so does its parent."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        env=os.environ | {"REDIS_URL": store.url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("both\n", "", 0)


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_judges_a_client(kind: str, store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could use Redis itself: rules, tokens and rates are for HTTP; the other settings are its own too."""
    environ = {"KVSTORE_SECRET": SECRET, "KVSTORE_RULES": "/none.toml", "KVSTORE_RATE": "1/h", "KVSTORE_CLIENT_STREAMS": "1"}
    for name, value in (environ | {"KVSTORE_MAX_TTL": "60"}).items():
        monkeypatch.setenv(name, value)
    db = KINDS[kind](store.url)
    for number in range(3):
        assert db.put("/n/a", number).ttl == 60
    followers = [Follower(db, "/n/a") for _ in range(2)]
    assert [follower.next().value for follower in followers] == [2, 2]
    db.close()


EMBEDDED = """
import asyncio, kvstore
with kvstore.connect() as db:
    db.put("/n/a", 1)

async def read():
    async with kvstore.aio.connect() as db:
        return await db.get("/n/a")

print(asyncio.run(read()).value)
"""


def test_the_embedded_server(directory: Any) -> None:
    """Without REDIS_URL both kinds of client find it, and the first one starts it."""
    environ = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    environ["KVSTORE_DATA"] = str(directory / "data")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", EMBEDDED],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("1\n", "", 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster(kind: str, started: Callable[[str], Running]) -> None:
    """A store of another kind, behind the same client."""
    running = started("cluster")
    running.redis.flushall()
    db = KINDS[kind](running.url)
    db.put("/n/a", 1)
    follower = Follower(db, "/n/")
    follower.next()
    assert db.update("/n/a", lambda value: value + 1).value == 2 == follower.next().value
    db.close()
