"""Functions that run later: what is queued, what a worker makes of it, and what is said of it meanwhile."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from kvstore import DelayedResult, TaskFailed, queue_daemon, queuefunc
from kvstore.commands.jobs import ChangeLease, Take
from kvstore.core.errors import InvalidPath
from kvstore.core.paths import parse_path
from kvstore.stores.blocking import BlockingStore
from kvstore.tasks.cli import worker_command
from kvstore.tasks.decorators import TASKS
from tests.support import worked
from tests.support.clients import Checked, FlaskClient
from tests.support.serving import Served, bare_environ
from tests.support.stores import Running, make_directory, start_valkey, wait_until
from tests.support.workers import Workers, start_workers

# The long forms: 2,000 jobs on 8 workers, Redis halted for 8 s, a worker that idles for a minute.
LONG = bool(os.environ.get("KVSTORE_TASKS_LONG"))

JOB_S = 20  # in which a job is done on a busy machine
LEASE_S = 2.0
QUEUE = parse_path(b"/tasks/")
WHOLE_LOG = "1000000"  # changes that it keeps


def changes_of(client: redis.Redis, namespace: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The change log of a namespace."""
    log: Any = client.xrange(f"kv:{{{namespace}}}!log")
    found: list[tuple[bytes, dict[bytes, bytes]]] = log
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One Redis for all of these tests."""
    directory = make_directory()
    running = start_valkey(directory)
    yield running
    running.stop()
    shutil.rmtree(directory)


@pytest.fixture
def redis_(server: Running) -> Iterator[redis.Redis]:
    """The Redis, empty, as that of the application in this process."""
    server.redis.flushall()
    worked.app.config["REDIS_URL"] = server.url
    with worked.app.app_context():
        yield server.redis


@pytest.fixture(scope="module")
def crew() -> Iterator[tuple[Running, Workers]]:
    """Two workers on a Redis of their own, for the tests that do no harm to them."""
    directory = make_directory()
    running = start_valkey(directory / "data")
    workers = start_workers(directory, running.url, "--concurrency", "2", "--max-attempts", "3")
    yield running, workers
    workers.stop()
    running.stop()
    shutil.rmtree(directory)


@pytest.fixture
def crewed(crew: tuple[Running, Workers]) -> Iterator[redis.Redis]:
    """Their Redis, empty, as that of the application in this process."""
    running, _ = crew
    running.redis.flushall()
    worked.app.config["REDIS_URL"] = running.url
    with worked.app.app_context():
        yield running.redis


@pytest.fixture
def http(server: Running, redis_: redis.Redis) -> Checked:
    """The service over HTTP, on the Redis without workers."""
    return Checked(FlaskClient(server, {}))


@pytest.fixture
def crewed_http(crew: tuple[Running, Workers], crewed: redis.Redis) -> Checked:
    """The service over HTTP, on the Redis of the two."""
    return Checked(FlaskClient(crew[0], {}))


def ran(client: redis.Redis, name: str) -> list[tuple[int, float]]:
    """The processes in which a job ran, and when."""
    return [(int(pid), float(at)) for pid, at in (entry.split() for entry in client.lrange(f"ran:{name}", 0, -1))]


def settled(result: DelayedResult) -> str:
    """The status of a job that is done or dead."""
    wait_until(lambda: result.status in ("done", "failed"), JOB_S)
    return result.status


def take(store: BlockingStore, *, max_attempts: int = 5) -> Any:
    """The next job of /tasks/."""
    return store.execute(Take(QUEUE, 60_000, 1, max_attempts, 1000)).jobs[0]


# --- What is queued -----------------------------------------------------------------------------------------------------


def test_called_it_runs_here(redis_: redis.Redis) -> None:
    """The decorator changes nothing for who calls the function."""
    assert worked.add(1, 2) == 3
    assert vars(worked.add)["__name__"] == "add"
    assert worked.add.__doc__ == "The sum."
    assert redis_.keys() == []


def test_a_job_is_a_document(http: Checked) -> None:
    """As docs/tasks.md has it, in the queue's container; the result will be below that."""
    result = worked.add.delay(1, b="é")
    name = result.key.removeprefix("/tasks/results/")
    assert http.get(f"/tasks/{name}").body == b'{"task":"add","args":[1],"kwargs":{"b":"\xc3\xa9"},"ttl":31536000}\n'
    assert http.get(worked.post.delay("ada").key.replace("results/", "")).status == 200
    assert [item["value"]["task"] for item in http.get("/mail/").json["items"]] == ["post"]


NOT_JSON = [
    float("nan"),
    float("inf"),
    {1: 2},
    {"a": [{None: 1}]},
    object(),
    b"bytes",
    {1, 2},
    "\ud800",
    1 << 20_000,
    "x" * 1_100_000,
]


@pytest.mark.parametrize("value", NOT_JSON, ids=lambda value: repr(value)[:20] if not isinstance(value, int) else "large")
def test_what_is_not_json_is_refused(redis_: redis.Redis, value: Any) -> None:
    """A TypeError, before anything is queued."""
    for arguments in ((value,), ([value],), ({"a": value},)):
        with pytest.raises(TypeError):
            worked.give.delay(*arguments)
    assert redis_.keys() == []


def test_what_is_too_deep_is_refused(redis_: redis.Redis) -> None:
    """64 levels, the job's own two counted; and what contains itself has no end."""
    value: list[Any] = []
    for _ in range(61):
        value = [value]
    worked.give.delay(value)
    endless: list[Any] = []
    endless.append(endless)
    for refused in ([value], endless):
        with pytest.raises(TypeError):
            worked.give.delay(refused)
    assert redis_.zcard("kv:{tasks}!names") == 1


def test_a_name_means_one_function() -> None:
    """Two functions of one name are refused; the same one may be loaded again. The root is no queue."""

    def add() -> None: ...

    with pytest.raises(ValueError, match="another task is named 'add'"):
        queuefunc(add)
    nameless: list[Any] = [lambda: 1, functools.partial(add), "/mail/"]
    for function in nameless:
        with pytest.raises(ValueError, match="has no name"):
            queuefunc(function)
    queuefunc(vars(worked.add)["__wrapped__"])
    for path in ("/", "/_/mail/"):
        with pytest.raises(ValueError, match="not the root, and not below /_/"):
            queuefunc(queue=path)(add)
    with pytest.raises(InvalidPath):
        queuefunc(queue="/x" * 31)(add)


def plain(function: Any) -> Any:
    """Somebody's decorator, which says nothing of what it decorates."""

    def decorated(*args: Any) -> Any:
        return function(*args)

    return decorated


def careful(function: Any) -> Any:
    """One that does."""
    return functools.wraps(function)(plain(function))


def test_a_name_means_one_function_also_when_it_is_decorated() -> None:
    """What one decorator has made of two functions is two, though it has the same code."""

    def first() -> int:
        return 1

    def second() -> int:
        return 2

    from flask import current_app

    def third() -> str:
        return current_app.name  # what it closes over cannot be looked at outside of an application

    try:
        for function in (third, third, plain(first), plain(first)):  # the same, loaded again
            queuefunc(function)
        with pytest.raises(ValueError, match="another task is named 'decorated'"):
            queuefunc(plain(second))
        assert queuefunc(careful(first)).name == "first"
        second.__name__ = "first"
        with pytest.raises(ValueError, match="another task is named 'first'"):
            queuefunc(careful(second))
    finally:
        TASKS.pop("third", None)
        TASKS.pop("decorated", None)
        TASKS.pop("first", None)


def test_what_delay_leaves_behind(redis_: redis.Redis) -> None:
    """The answer that it would ask for again is kept for minutes, not for a day."""
    worked.add.delay(1, 2)
    (kept,) = redis_.keys("kv:{tasks}!idempotency:*")
    assert 0 < redis_.pttl(kept) <= 300_000


# --- What a worker makes of it ------------------------------------------------------------------------------------------


VALUES = [
    None,
    False,
    0,
    -1.5,
    2**70,
    "",
    "é\u2028\x00",
    [],
    {},
    {"ttl": 5, "a": {"ttl": "x"}},
    {".sv": "timestamp"},
    {"a": {".sv": {"increment": 1}}},
    {"$kv": 1, "$value": 2},
    [[[1, [2]]], {"b": 1, "a": 2}],
]


def test_values_come_back(crewed: redis.Redis, crewed_http: Checked) -> None:
    """Arguments and results keep their value and type; over HTTP the result is the same JSON."""
    results = [(value, worked.give.delay(value)) for value in VALUES]
    for value, result in results:
        assert json.dumps(result.wait(JOB_S)) == json.dumps(value)
        assert json.dumps(result.return_value) == json.dumps(value)
        answer = crewed_http.get(result.key)
        assert json.dumps(answer.json) == json.dumps(value)
        assert (result.status, result.error) == ("done", None)
    assert worked.echo.delay(1, (2, 3), c={"d": (4,)}).wait(JOB_S) == [[1, [2, 3]], {"c": {"d": [4]}}]
    assert worked.greet.delay().wait(JOB_S) == "hello"


def test_a_result_expires(crewed: redis.Redis) -> None:
    """After 500 s; then nothing is known of the job."""
    result = worked.add.delay(1, 2)
    assert result.wait(JOB_S) == 3
    assert 400_000 < crewed.pttl("kv:{tasks}/" + result.key.removeprefix("/tasks/")) <= 500_000
    crewed.delete("kv:{tasks}/" + result.key.removeprefix("/tasks/"))
    assert (result.status, result.return_value, result.error) == ("expired", None, None)
    with pytest.raises(TaskFailed, match="expired"):
        result.wait(1)


def test_jobs_over_http(crewed_http: Checked) -> None:
    """A job that is posted with curl runs as any other, so does one that is put; its result is read over HTTP."""
    posted = crewed_http.request("POST", "/tasks/", (), b'{"task":"add","args":[40,2]}').json["path"]
    crewed_http.put("/tasks/my%20job", '{"task":"add","args":[],"kwargs":{"a":"x","b":"y"}}')
    for key, value in ((posted.replace("/tasks/", "/tasks/results/"), 42), ("/tasks/results/my%20job", "xy")):
        wait_until(lambda key=key: crewed_http.get(key).status == 200, JOB_S)
        assert crewed_http.get(key).json == value
        assert crewed_http.get(key.replace("results/", "")).status == 404


def test_a_failure_is_tried_again_then_dead(crewed: redis.Redis, crewed_http: Checked) -> None:
    """As often as was said, each time after twice the delay; then it is among the dead, with its reason."""
    result = worked.fail.delay("f")
    with pytest.raises(TaskFailed, match="ValueError: never: f"):
        result.wait(JOB_S)
    assert (result.status, result.error, result.return_value) == ("failed", "ValueError: never: f", None)
    times = [at for _, at in ran(crewed, "f")]
    assert len(times) == 3
    assert times[1] - times[0] >= 0.1
    assert times[2] - times[1] >= 0.2
    dead = crewed_http.get(result.key.replace("results/", "dead/")).json
    assert (dead["value"]["task"], dead["reason"], dead["attempts"]) == ("fail", "ValueError: never: f", 3)


REFUSED = [
    ({"task": "misbehave", "args": ["exit"]}, "SystemExit: 3"),
    ({"task": "misbehave", "args": ["interrupt"]}, "KeyboardInterrupt"),
    ({"task": "misbehave", "args": ["unspeakable"]}, "Unspeakable: <exception str() failed>"),
    ({"task": "misbehave", "args": ["recursion"]}, "RecursionError"),
    ({"task": "misbehave", "args": ["nan"]}, "TypeError: not JSON"),
    ({"task": "misbehave", "args": ["object"]}, "TypeError: Object of type object is not JSON serializable"),
    ({"task": "misbehave", "args": ["name"]}, "TypeError: a name in a JSON object is a string, not 1"),
    ({"task": "misbehave", "args": ["large"]}, "TypeError: not JSON that can be stored"),
    ({"task": "add", "args": [1]}, "TypeError: add() missing"),
    ({"task": "os.system", "args": ["true"]}, "LookupError: no function named 'os.system'"),
    ({"task": "_note", "args": ["x"]}, "LookupError: no function named '_note'"),
    ({"task": ["add"]}, "TypeError: a job is"),
    ({"task": "add", "args": {"a": 1}}, 'TypeError: "args"'),
    ({"task": "add", "kwargs": [1]}, 'TypeError: "args"'),
    ([1], "TypeError: a job is"),
    (None, "TypeError: a job is"),
]


def test_nothing_ends_a_worker(crew: tuple[Running, Workers], crewed: redis.Redis, crewed_http: Checked) -> None:
    """Whatever a job says or does is a failed attempt with its text; the same processes go on."""
    wait_until(lambda: len(crew[1].pids()) == 2, JOB_S)
    before = set(crew[1].pids())
    paths = [crewed_http.request("POST", "/tasks/", (), json.dumps(job).encode()).json["path"] for job, _ in REFUSED]
    for path, (job, reason) in zip(paths, REFUSED, strict=True):
        result = DelayedResult(path.replace("/tasks/", "/tasks/results/"))
        assert settled(result) == "failed", job
        assert reason in (result.error or "")
    assert worked.add.delay(1, 2).wait(JOB_S) == 3
    assert set(crew[1].pids()) == before


def test_status(redis_: redis.Redis, server: Running) -> None:
    """What is said of a job that nobody, that somebody works, that was given back, and that died. The key alone is enough."""
    store = server.open()
    result = DelayedResult(worked.add.delay(1, 2).key)
    assert (result.status, result.error) == ("queued", None)
    with pytest.raises(TimeoutError):
        result.wait(0.1)
    job = take(store)
    assert (result.status, result.error) == ("running", None)
    store.execute(ChangeLease.release(job, reason="so it is"))
    assert (result.status, result.error) == ("queued", "so it is")
    job = take(store)
    assert (result.status, result.error) == ("running", "so it is")
    store.execute(ChangeLease.release(job, 60_000))
    assert (result.status, result.error) == ("queued", None)
    other = worked.add.delay(1, 2)
    assert take(store).path.text == other.key.replace("results/", "")
    redis_.delete("kv:{tasks}/" + other.key.rpartition("/")[2])
    assert other.status == "expired"
    for key in ("/tasks/results", "/tasks/x", "/tasks/results/a/b"):
        with pytest.raises(ValueError, match="not the key"):
            DelayedResult(key)


# --- Workers that stop and die ------------------------------------------------------------------------------------------


@pytest.fixture
def alone(server: Running, redis_: redis.Redis, directory: Path) -> Iterator[Workers]:
    """One worker with a short lease, and nobody else: it is stopped before the next test."""
    workers = start_workers(directory, server.url, "--lease", str(LEASE_S), "--max-attempts", "3", "--queue", "/own/")
    yield workers
    workers.stop()


def own(name: str, *args: Any) -> DelayedResult:
    """A job for that worker alone."""
    return queuefunc(queue="/own/")(getattr(worked, name).__wrapped__).delay(*args)


def go(client: redis.Redis, name: str, times: int = 1) -> None:
    """Let a job end that holds on."""
    client.rpush(f"go:{name}", *["go"] * times)


@pytest.mark.slow
def test_a_lease_is_renewed(redis_: redis.Redis, alone: Workers) -> None:
    """A job that takes longer than its lease runs once."""
    assert own("note", "long", 2.5 * LEASE_S).wait(JOB_S) == "long"
    assert len(ran(redis_, "long")) == 1


def test_sigterm_finishes_the_job_in_hand(redis_: redis.Redis, alone: Workers) -> None:
    """And takes no other; the parent ends with it."""
    first, second = own("hold", "first"), own("note", "second")
    wait_until(lambda: ran(redis_, "first"), JOB_S)
    alone.process.terminate()
    wait_until(lambda: ran(redis_, "first told"), JOB_S)
    go(redis_, "first")
    alone.process.wait(JOB_S)
    assert first.return_value == "first"
    assert (second.status, ran(redis_, "second")) == ("queued", [])


@pytest.mark.slow
def test_a_worker_that_waits(redis_: redis.Redis, http: Checked, alone: Workers) -> None:
    """As long as it does, a listing of the queue has it, and says which process it is."""

    def waits() -> list[Any]:
        return [taker["as"] for taker in http.get("/own/").json.get("takers", ())]

    wait_until(alone.pids, JOB_S)
    waiting = {"host": socket.gethostname(), "process": alone.pids()[0]}
    wait_until(lambda: waits() == [waiting], JOB_S)
    running = own("hold", "long")
    wait_until(lambda: waits() == [], JOB_S)
    go(redis_, "long")
    assert running.wait(JOB_S) == "long"
    wait_until(lambda: waits() == [waiting], JOB_S)
    alone.process.terminate()
    assert alone.process.wait(JOB_S) == 0
    assert waits() == []


def test_an_idle_worker_stops_at_once(http: Checked, alone: Workers) -> None:
    """SIGTERM wakes it."""
    wait_until(lambda: http.get("/own/").json.get("takers"), JOB_S)
    begun = time.monotonic()
    alone.process.terminate()
    assert alone.process.wait(JOB_S) == 0
    assert time.monotonic() - begun < 8


@pytest.mark.slow
def test_a_second_sigterm_gives_the_job_back(redis_: redis.Redis, alone: Workers) -> None:
    """At once, so that another worker need not wait for the lease to end; SIGTERM to the worker itself counts once."""
    result = own("hold", "long")
    wait_until(lambda: ran(redis_, "long"), JOB_S)
    alone.process.terminate()
    wait_until(lambda: ran(redis_, "long told"), JOB_S)
    os.kill(ran(redis_, "long")[0][0], signal.SIGTERM)  # as systemd and Heroku do
    wait_until(lambda: len(ran(redis_, "long told")) == 2, JOB_S)
    assert result.status == "running"
    alone.process.terminate()
    alone.process.wait(JOB_S)
    assert (result.status, result.error) == ("queued", "the worker was told to quit")


@pytest.mark.alone
@pytest.mark.slow
def test_a_worker_that_is_killed(redis_: redis.Redis, alone: Workers) -> None:
    """Its job is taken again within the lease and 2 s, by a process that was started in its place."""
    result = own("hold", "killed")
    wait_until(lambda: ran(redis_, "killed"), JOB_S)
    ((pid, _),) = ran(redis_, "killed")
    killed_at = time.time()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(ran(redis_, "killed")) == 2, JOB_S)
    go(redis_, "killed")
    assert result.wait(JOB_S) == "killed"
    (_, (other, again_at)) = ran(redis_, "killed")
    assert other != pid
    assert again_at - killed_at < LEASE_S + 2


@pytest.mark.slow
def test_a_worker_that_is_held_up(server: Running, redis_: redis.Redis, alone: Workers, directory: Path) -> None:
    """Longer than its lease: another takes the job, and what the first one makes of it is dropped."""
    result = own("hold", "twice")
    wait_until(lambda: ran(redis_, "twice"), JOB_S)
    ((pid, _),) = ran(redis_, "twice")
    os.kill(pid, signal.SIGSTOP)
    others = start_workers(directory, server.url, "--lease", str(LEASE_S), "--queue", "/own/")
    try:
        wait_until(lambda: len(ran(redis_, "twice")) == 2, JOB_S)
        os.kill(pid, signal.SIGCONT)
        go(redis_, "twice", 2)
        assert result.wait(JOB_S) == "twice"
        wait_until(lambda: "was finished after its lease had ended" in alone.said, JOB_S)
    finally:
        others.stop()
    changes = [next(iter(fields)) for _, fields in changes_of(redis_, "own")]
    assert changes == [b"put", b"delete"], "the result once; the job's own change went with it"


@pytest.mark.slow
def test_a_parent_that_is_killed(redis_: redis.Redis, alone: Workers) -> None:
    """Its worker finishes the job in hand and ends."""
    result = own("hold", "orphan")
    wait_until(lambda: ran(redis_, "orphan"), JOB_S)
    alone.process.kill()
    alone.process.wait()
    wait_until(lambda: ran(redis_, "orphan told"), JOB_S)
    go(redis_, "orphan")
    wait_until(lambda: not alone.pids(), JOB_S)
    assert (result.return_value, len(ran(redis_, "orphan"))) == ("orphan", 1)


@pytest.mark.slow
def test_a_task_that_forks(redis_: redis.Redis, alone: Workers) -> None:
    """Its copy of the worker is none: the job's result is the worker's, and nothing works on when that has ended."""
    assert own("fork", "copy", "parent").wait(JOB_S) == "parent"
    assert own("fork", "", "parent").wait(JOB_S) == "parent", "also where it raises"
    alone.process.terminate()
    wait_until(lambda: not alone.pids(), JOB_S)


@pytest.mark.slow
def test_a_task_ends_what_it_has_forked(redis_: redis.Redis, alone: Workers) -> None:
    """By SIGTERM, which is an order to the worker and not to a copy of it."""
    assert own("terminate").wait(JOB_S) == -signal.SIGTERM


@pytest.mark.slow
def test_poison(redis_: redis.Redis, alone: Workers) -> None:
    """A job whose worker dies each time is dead after exactly as many takes as it may have; the others go on."""
    result = own("poison", "p")
    others = [own("note", f"other {number}") for number in range(5)]
    assert settled(result) == "failed"
    assert len(ran(redis_, "p")) == 3
    assert result.error == "taken 3 times, and never done"
    assert [other.wait(JOB_S) for other in others] == [f"other {number}" for number in range(5)]


@pytest.mark.slow
def test_a_worker_that_idled(redis_: redis.Redis, alone: Workers) -> None:
    """It takes the next job, also a long time later, and one that becomes ready by itself."""
    time.sleep(60 if LONG else 3)
    assert own("note", "late").wait(JOB_S) == "late"


@pytest.mark.slow
def test_killed_again_and_again(server: Running, redis_: redis.Redis, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of a worker every second: every job ends done or dead, once, and none is lost."""
    jobs, concurrency, pause_s, every_s, kills = (2000, 8, 0.03, 1.0, 5) if LONG else (120, 3, 0.04, 0.4, 3)
    monkeypatch.setenv("KVSTORE_LOG_LENGTH", WHOLE_LOG)  # what is queued here must not trim it either
    monkeypatch.setattr("kvstore.tasks.connection._opened", {})
    workers = Workers(
        directory,
        Path(worked.__file__),
        *("--concurrency", str(concurrency), "--lease", str(LEASE_S), "--queue", "/own/"),
        REDIS_URL=server.url,
        KVSTORE_LOG_LENGTH=WHOLE_LOG,
    )
    try:
        results: list[DelayedResult] = []
        for killed in range(kills):
            results += [own("note", str(len(results) + number), pause_s) for number in range(jobs // kills)]
            time.sleep(every_s)
            wait_until(workers.pids, JOB_S)
            pids = sorted(workers.pids())  # fewer where one is not started again yet
            os.kill(pids[killed % len(pids)], signal.SIGKILL)
        for result in results:
            settled(result)
        wait_until(lambda: len(workers.pids()) == concurrency, JOB_S)
    finally:
        workers.stop()
    ends: dict[str, list[str]] = {}
    for _, fields in changes_of(redis_, "own"):
        op, rest = next((name.decode(), value.decode()) for name, value in fields.items())
        if op != "post":
            ends.setdefault(rest.rpartition("/")[2], []).append(f"{op} {rest.rpartition('/')[0]}")
    assert len(ends) == jobs
    assert {tuple(changes) for changes in ends.values()} <= {("put results", "delete "), ("put dead", "delete ")}
    assert sum(len(ran(redis_, str(number))) for number in range(jobs)) <= jobs + kills


# --- Time limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sleep", *(pytest.param(how, marks=pytest.mark.slow) for how in ("caught", "in C"))])
def test_a_task_that_hangs(redis_: redis.Redis, server: Running, directory: Path, how: str) -> None:
    """It is ended, its attempts are counted, and others run; one that does not heed its time limit costs its worker process."""
    options = ["--timeout", "1.5", "--lease", str(LEASE_S), "--max-attempts", "2", "--retry", "0"]
    workers = start_workers(directory, server.url, *options)
    try:
        result, other = worked.hang.delay(how, "hung"), worked.add.delay(1, 2)
        assert settled(result) == "failed"
        assert settled(other) == "done"
        assert len(ran(redis_, "hung")) == 2
        by_itself = how == "sleep"
        assert (result.error == "kvstore.tasks.worker.TaskTimeout: the task ran for more than 1.5 s") == by_itself
        assert len({pid for pid, _ in ran(redis_, "hung")}) == (1 if by_itself else 2)
    finally:
        workers.stop()


@pytest.mark.slow
def test_a_task_that_ends_in_time(redis_: redis.Redis, server: Running, directory: Path) -> None:
    """The time limit is that of each attempt, not of the worker."""
    workers = start_workers(directory, server.url, "--timeout", "3")
    try:
        results = [worked.note.delay(f"n{n}", 1.2) for n in range(3)]
        assert [settled(result) for result in results] == ["done"] * 3
        assert len({pid for n in range(3) for pid, _ in ran(redis_, f"n{n}")}) == 1
    finally:
        workers.stop()


# --- Redis that goes away -----------------------------------------------------------------------------------------------


def enqueue(app: Any, count: int) -> list[DelayedResult]:
    """Jobs that were acknowledged."""
    with app.app_context():
        return [worked.note.delay(f"n{number}") for number in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["halted", "killed"])
def test_redis_goes_away(directory: Path, trouble: str) -> None:
    """While jobs are queued and done: none is lost, and none is queued twice."""
    running = start_valkey(directory / "data")
    running.redis.config_set(
        "appendfsync", "no"
    )  # what was answered is in the file at once: no kill of a process takes it away
    # A job whose take was not answered is taken again when its lease has ended.
    workers = start_workers(directory, running.url, "--concurrency", "2", "--lease", "2")
    worked.app.config["REDIS_URL"] = running.url
    try:
        with ThreadPoolExecutor(2) as pool:
            queued = [pool.submit(enqueue, worked.app, 150) for _ in range(2)]
            time.sleep(0.15)
            if trouble == "halted":
                running.signal(signal.SIGSTOP)
                time.sleep(8 if LONG else 4)  # longer than an answer may take
                running.signal(signal.SIGCONT)
            else:
                running.signal(signal.SIGKILL)
                running.stop()
                time.sleep(0.5)
                running = start_valkey(directory / "data")
            results = [result for each in queued for result in each.result(60)]
        assert len({result.key for result in results}) == 300
        with worked.app.app_context():
            for result in results:
                assert settled(result) == "done"
        deletions = [fields for _, fields in changes_of(running.redis, "tasks") if b"delete" in fields]
        assert len(deletions) == 300, "each job was queued once, and ended once"
        assert running.redis.zlexcount("kv:{tasks}!names", "-", "(a") == 0
        assert running.redis.zlexcount("kv:{tasks}!names", "[results/", "(results0") == 300
    finally:
        workers.stop()
        running.stop()


def test_redis_does_not_come_back(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """delay() says so after its time, and what it does not know."""
    running = start_valkey(directory)
    running.stop()
    monkeypatch.setattr("kvstore.tasks.decorators.RETRY_FOR_S", 0.5)
    worked.app.config["REDIS_URL"] = running.url
    with worked.app.app_context(), pytest.raises(Exception, match="unknown whether the job is queued"):
        worked.add.delay(1, 2)


@pytest.mark.slow
def test_a_worker_waits_for_redis(directory: Path) -> None:
    """It starts without its Redis, says so once, and works as soon as it is there; SIGTERM ends it meanwhile."""
    running = start_valkey(directory / "data")
    running.stop()
    workers = start_workers(directory, running.url)
    wait_until(lambda: "Redis cannot be reached" in workers.said, JOB_S)
    time.sleep(1)
    assert workers.said.count("Redis cannot be reached") == 1
    running = start_valkey(directory / "data")
    try:
        worked.app.config["REDIS_URL"] = running.url
        with worked.app.app_context():
            assert worked.add.delay(1, 2).wait(JOB_S) == 3
        assert workers.said.count("Redis is back") == 1
        running.stop()
        time.sleep(0.5)
        workers.process.terminate()
        assert workers.process.wait(JOB_S) == 0
    finally:
        workers.stop()
        running.stop()


# --- Other ways to start one ----------------------------------------------------------------------------------------------

DAEMON = "from kvstore import queue_daemon; from tests.support.worked import app; queue_daemon(app, 60, queue='/own/')"


def test_queue_daemon(server: Running, redis_: redis.Redis, directory: Path) -> None:
    """One worker in somebody's own process: results are kept as long as was said, and SIGTERM means the same."""
    script = f"{DAEMON}; print('ended')"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=bare_environ(directory) | {"REDIS_URL": server.url},
        cwd=directory,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        first = own("hold", "first")
        wait_until(lambda: ran(redis_, "first"), JOB_S)
        process.terminate()
        wait_until(lambda: ran(redis_, "first told"), JOB_S)
        go(redis_, "first")
        assert process.communicate(timeout=JOB_S)[0] == "ended\n"
        assert first.return_value == "first"
        assert 50_000 < redis_.pttl("kv:{own}/" + first.key.removeprefix("/own/")) <= 60_000
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_who_started_a_queue_daemon_may_go(server: Running, redis_: redis.Redis, directory: Path) -> None:
    """It works on, as after a logout: only a worker that has a parent of ours ends with it."""
    said = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{DAEMON}" >/dev/null 2>&1 & echo $!'],
        env=bare_environ(directory) | {"REDIS_URL": server.url},
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    try:
        assert own("note", "first").wait(JOB_S) == "first"
        time.sleep(1.5)  # it looks every second
        assert own("note", "second").wait(JOB_S) == "second"
    finally:
        os.kill(int(said.stdout), signal.SIGKILL)


@pytest.mark.parametrize(
    "terms",
    [
        {"rv_ttl": 0},
        {"rv_ttl": 500.0},
        {"rv_ttl": True},
        {"rv_ttl": 10**11},
        {"lease_s": 0.1},
        {"lease_s": float("nan")},
        {"max_attempts": 1.5},
        {"timeout_s": 0},
        {"lease_s": 43_201},
        {"retry_s": -1},
    ],
)
def test_bad_terms(server: Running, terms: dict[str, Any]) -> None:
    """What Redis would refuse is refused at the start: at the end of a job it would be too late."""
    worked.app.config["REDIS_URL"] = server.url
    with pytest.raises(ValueError, match=next(iter(terms))):
        queue_daemon(worked.app, **terms)


@pytest.mark.slow
def test_where_the_end_of_a_child_is_ignored(server: Running, redis_: redis.Redis, directory: Path) -> None:
    """A worker that died is started again also where SIGCHLD was ignored by whoever started them all."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        workers = start_workers(directory, server.url, "--queue", "/own/", "--lease", str(LEASE_S))
    finally:
        signal.signal(signal.SIGCHLD, before)
    try:
        wait_until(workers.pids, JOB_S)
        [first] = workers.pids()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: workers.pids() not in ([], [first]), JOB_S)
        assert own("note", "again").wait(JOB_S) == "again"
    finally:
        workers.stop()


WRONG = [
    ("fake://", ["--queue", "/own/"], "a worker needs a Redis that others see as well"),
    ("http://x", [], "REDIS_URL must be"),
    ("redis://x", ["--queue", "/"], "not the root"),
    ("redis://x", ["--queue", "//"], "a segment of the path is empty"),
    ("redis://x", ["--rv-ttl", "9300000000000000"], "rv_ttl is a whole number from 1 to 3,153,600,000"),
]


@pytest.mark.parametrize(("url", "options", "said"), WRONG, ids=["no Redis", "no URL", "the root", "no path", "no TTL"])
def test_a_worker_that_cannot_work(url: str, options: list[str], said: str) -> None:
    """It says why in one line, and ends."""
    worked.app.config["REDIS_URL"] = url
    result = worked.app.test_cli_runner().invoke(worker_command, options)
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert said in result.output


# --- Where Redis is -----------------------------------------------------------------------------------------------------


APP = """\
import os
import flask
from kvstore import queuefunc
app = flask.Flask("app")
app.config["REDIS_URL"] = os.environ.get("CONFIGURED")

@queuefunc
def triple(n):
    return 3 * n

@app.get("/ask/<int:n>")
def ask(n):
    return triple.delay(n).key
"""


@pytest.fixture
def app_file(directory: Path) -> Path:
    """An application of somebody's."""
    (directory / "app.py").write_text(APP)
    return directory / "app.py"


def ask_for(n: int, app_file: Path, **environ: str) -> Any:
    """What a worker makes of a job that another process of the application queued, where no server of ours runs."""
    said = subprocess.run(
        [sys.executable, "-c", f"from app import app, triple\nwith app.app_context(): print(triple.delay({n}).wait({JOB_S}))"],
        env=bare_environ(app_file.parent) | environ,
        cwd=app_file.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.mark.slow
def test_the_embedded_server_is_started(app_file: Path) -> None:
    """By the worker where none runs; the application joins it; it ends with the worker."""
    workers = Workers(app_file.parent, app_file)
    assert ask_for(5, app_file) == 15
    assert (app_file.parent / "data").is_dir()
    workers.process.terminate()
    workers.process.wait(JOB_S)
    wait_until(lambda: not workers.pids(), JOB_S)


@pytest.mark.slow
def test_the_embedded_server_outlives_the_request_that_started_it(app_file: Path) -> None:
    """Under Flask's own server, where each request has a thread that ends with it."""
    served = Served(app_file.parent, [sys.executable, "-m", "flask", "--app", str(app_file), "run", "-p", "0"], {})
    try:
        pids = set()
        for number in range(10):
            assert served.request("GET", f"/ask/{number}").status == 200
            pids |= {pid for pid in served.processes() if pid != served.process.pid}
            time.sleep(0.05)
        assert len(pids) == 1
    finally:
        served.kill()


@pytest.mark.slow
def test_the_embedded_server_is_joined(app_file: Path) -> None:
    """Where it runs already."""
    running = start_valkey(app_file.parent / "there")
    workers = Workers(app_file.parent, app_file, KVSTORE_DATA="there")
    try:
        assert ask_for(5, app_file, KVSTORE_DATA="there") == 15
        assert running.redis.zcard("kv:{tasks}!names") == 1
    finally:
        workers.stop()
        running.stop()


@pytest.mark.slow
def test_the_configuration_comes_first(app_file: Path, server: Running, redis_: redis.Redis) -> None:
    """`app.config["REDIS_URL"]` before the environment's."""
    workers = Workers(app_file.parent, app_file, REDIS_URL="redis://127.0.0.1:1", CONFIGURED=server.url)
    try:
        assert ask_for(5, app_file, REDIS_URL="redis://127.0.0.1:1", CONFIGURED=server.url) == 15
    finally:
        workers.stop()
