"""Functions that a worker runs: the decorator, what asks for a run and awaits its result, and `flask worker`.

    @queuefunc
    def add(a, b):
        return a + b

    add(1, 2)                  runs here
    add.delay(1, 2)            queues {"task":"add","args":[1,2],"kwargs":{}} and returns a DelayedResult

The queue is a container, so a job can be queued over HTTP as well, and its result be read there. Only decorated functions can
be named by a job. A result is stored as one value, whatever it is, so that a member `ttl` in it is the function's own.
"""

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

import click
import flask
from flask.cli import ScriptInfo, pass_script_info

from kvstore import codec
from kvstore.app import connect
from kvstore.codec import Encoded
from kvstore.commands import ID_BYTES, Appended, Found, Get, Once, Post, Replayed
from kvstore.containers import At, Place
from kvstore.embedded import StartFailed
from kvstore.errors import Problem, StoreUnavailable, unavailable
from kvstore.jobs import DEAD, DEFAULT_ATTEMPTS, MAX_ATTEMPTS, See, Seen
from kvstore.paths import Path, own_key, parse_path
from kvstore.settings import MAX_TTL_S, InvalidSetting, Settings, read_settings
from kvstore.store import Store
from kvstore.working import RESULTS, Terms, Worker, work_as_parent, work_here

QUEUE = "/tasks/"
RESULT_TTL_S = 500
LEASE_S = 30.0
RETRY_S = 1.0
ASK_AGAIN_S = 10.0  # for which delay() asks a Redis that does not answer
KEPT_MS = 300_000  # of the answer to delay(): far longer than it asks again, even of a Redis that was held up meanwhile

P = ParamSpec("P")
R = TypeVar("R")


class TaskFailed(Exception):
    """A job is dead, or its result has expired; the message says why."""


class Task(Generic[P, R]):
    """A function that a worker can run by its name; called, it runs here."""

    def __init__(self, function: Callable[P, R], queue: str) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._queue = _queue(queue)
        self.name = function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> "DelayedResult":
        """Queue a run of the function; raises TypeError where the arguments are not JSON.

        Raises StoreUnavailable where Redis does not answer for ASK_AGAIN_S, and any other Problem of its at once.
        """
        job = _encode_job(self.name, args, kwargs)
        store, settings = _connection()
        once_key = own_key(self._queue, f"once:{os.urandom(16).hex()}")
        post = Post(self._queue, job, settings.default_ttl_s * 1000, settings.log_length)
        appended = _ask_again(store, Once(post, once_key, "delay", KEPT_MS))
        return DelayedResult(self._queue.text + RESULTS + appended.path.rpartition("/")[2])


class DelayedResult:
    """What a job comes to. `key` is the path of its result; `DelayedResult(key)` is the same again, in any process."""

    def __init__(self, key: str) -> None:
        queue, results, name = key.rpartition(RESULTS)
        if not results or "/" in name:
            raise ValueError(f"{key!r} is not the key of a delayed result")
        self.key = key
        self._result = parse_path(key.encode())
        self._job = parse_path((queue + name).encode())
        self._dead = parse_path((queue + DEAD + name).encode())

    def __repr__(self) -> str:
        return f"DelayedResult({self.key!r})"

    @property
    def return_value(self) -> Any:
        """What the function returned, None until then."""
        found = _document(self._result)
        return json.loads(found) if found else None

    @property
    def status(self) -> str:
        """`queued`, also between two attempts, `running`, `done`, `failed` for good, or `expired`."""
        # A job moves to one of the other places in one step, so looking there later never misses it.
        job = self._seen()
        if job:
            return "running" if job.is_leased else "queued"
        if _document(self._result):
            return "done"
        return "failed" if _document(self._dead) else "expired"

    @property
    def error(self) -> str | None:
        """Why the last attempt failed, None where none did."""
        job = self._seen()
        if job:
            return job.mark.reason or None
        dead = _document(self._dead)
        return json.loads(dead)["reason"] if dead else None

    def wait(self, timeout: float) -> Any:
        """What the function returned, as soon as it has; raises TaskFailed, or TimeoutError after `timeout` seconds.

        It holds a connection to Redis meanwhile. In a web application, ask for `return_value` again instead.
        """
        deadline = time.monotonic() + timeout
        store, _ = _connection()
        pause_s = 0.0
        while True:
            at: At = store.execute(Place(self._result))
            if at.document:
                return json.loads(at.document.text)
            status = self.status
            if status in ("failed", "expired"):
                raise TaskFailed(self.error or "the result has expired, or the job was deleted")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"{self.key} is not there after {timeout} s")
            if status != "done":
                store.wait(self._result, (at.place, "$"), left_s)
                time.sleep(pause_s)  # on a busy queue there is always a change
                pause_s = min(0.02, 2 * pause_s + 0.001)

    def _seen(self) -> Seen | None:
        seen = _connection().store.execute(See(self._job))
        return seen if isinstance(seen, Seen) else None


_tasks: dict[str, Task[..., Any]] = {}


@overload
def queuefunc(function: Callable[P, R], /) -> Task[P, R]:
    """`@queuefunc`."""


@overload
def queuefunc(*, queue: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """`@queuefunc(queue="/mail/")`."""


def queuefunc(function: Callable[..., Any] | None = None, /, *, queue: str = QUEUE) -> Any:
    """Make a function one that workers can run: `@queuefunc`, or `@queuefunc(queue="/mail/")`.

    Raises ValueError where another function of that name is one already, or it has none: a job names a function by its name
    alone.
    """
    if function is None:
        return functools.partial(_register, queue=queue)
    return _register(function, queue)


def _register(function: Callable[P, R], queue: str) -> Task[P, R]:
    if getattr(function, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(f"a job names its function, and {function!r} has no name: write it with def")
    task = Task(function, queue)
    other = _tasks.get(task.name)
    if other and _origin(other) != _origin(task):
        raise ValueError(f"another task is named {task.name!r}; give this function another name")
    _tasks[task.name] = task
    return task


def _origin(task: Task[..., Any]) -> list[tuple[str, str]]:
    """Where a function is written, and those that it closes over: a module may be loaded twice, a decorator used twice."""
    written: Any = task.__wrapped__  # type: ignore[attr-defined]  # set by update_wrapper
    if not isinstance(written, FunctionType):
        return [(str(written.__module__), str(written.__qualname__))]
    functions = [written]
    for function in functions:  # which grows
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # nothing in it yet
                if type(cell.cell_contents) is FunctionType and cell.cell_contents not in functions:
                    functions.append(cell.cell_contents)
    return [(function.__code__.co_filename, function.__qualname__) for function in functions]


def _queue(text: str) -> Path:
    path = parse_path(text.encode()).container
    if path.text == "/" or path.text.startswith("/_/"):
        raise ValueError("a queue is a container such as /tasks/: not the root, and not below /_/, which is the service's own")
    parse_path((path.text + RESULTS).encode() + b"0" * ID_BYTES)  # that there is a place for what comes of its jobs
    return path


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _json(value: Any) -> bytes:
    """A value as JSON text; raises TypeError for what JSON has no word for."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        _check_names(value)
    except (ValueError, RecursionError) as error:
        raise TypeError(f"not JSON: {error}") from None
    return text


def _check_names(value: Any) -> None:
    """Refuse names that are no strings, of which json.dumps would make strings."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not isinstance(name, str):
                raise TypeError(f"a name in a JSON object is a string, not {name!r}")
            _check_names(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _check_names(part)


def _check(text: bytes) -> None:
    """Refuse JSON that is larger or deeper than what is stored; raises TypeError."""
    try:
        codec.check(text)
    except Problem as problem:
        raise TypeError(f"not JSON that can be stored: {problem}") from None


_JOB_SHAPE = codec.OBJECT + b' ["task","args","kwargs"]'


def _encode_job(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Encoded:
    """The document of a job. Its members are stored as they are: nothing in them is a server value."""
    texts = _json(name), _json(args), _json(kwargs)
    text = b'{"task":%b,"args":%b,"kwargs":%b}' % texts
    _check(text)
    return Encoded(_JOB_SHAPE, [b"task", texts[0], b"args", texts[1], b"kwargs", texts[2]], text, None)


def _run(app: flask.Flask, text: bytes) -> Encoded:
    """The result of a job, from its JSON text; raises TypeError, LookupError for no such task, or what the function raises."""
    job = json.loads(text)
    if not isinstance(job, dict) or not isinstance(job.get("task"), str):
        raise TypeError('a job is {"task":"name","args":[…],"kwargs":{…}}')
    args, kwargs = job.get("args", []), job.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TypeError('"args" of a job is an array, "kwargs" an object')
    task = _tasks.get(job["task"])
    if task is None:
        raise LookupError(f"no function named {job['task']!r} is decorated with queuefunc here")
    with app.app_context():
        value = task(*args, **kwargs)
    result = _json(value)
    _check(result)
    return Encoded(codec.SCALAR, [codec.VALUE, result], result, None)


# --- Redis --------------------------------------------------------------------------------------------------------------


class _Connection(NamedTuple):
    store: Store
    settings: Settings


_connections: dict[str, _Connection] = {}
_connecting = threading.Lock()


def _connection(app: flask.Flask | None = None) -> _Connection:
    """What `app`, or the current one, says of Redis, else the environment; raises InvalidSetting or StartFailed."""
    if app is None and flask.has_app_context():
        app = flask.current_app
    redis_url = (app.config.get("REDIS_URL") if app else None) or os.environ.get("REDIS_URL", "")
    found = _connections.get(redis_url)
    if found is None:
        with _connecting:
            found = _connections.get(redis_url)
            if found is None:
                found = _Connection(*connect(read_settings({**os.environ, "REDIS_URL": redis_url})))
                _connections[redis_url] = found
    return found


def _document(path: Path) -> bytes | None:
    """The JSON text stored at a path, None for nothing."""
    found = _connection().store.execute(Get(path))
    return found.text if isinstance(found, Found) else None


def _ask_again(store: Store, once: Once) -> Appended:
    """The outcome of an append that is carried out once, however often it is asked for; raises Problem."""
    deadline = time.monotonic() + ASK_AGAIN_S
    pause_s = 0.05
    while True:
        try:
            outcome = store.execute(once)
        except StoreUnavailable as problem:
            if time.monotonic() + pause_s > deadline:
                raise unavailable(
                    f"for {ASK_AGAIN_S:.0f} s Redis did not do it, so it is unknown whether the job is queued: queue it again"
                    f" where it may run twice, or look at the queue first. The last answer: {problem.detail}"
                ) from problem
            time.sleep(pause_s)
            pause_s = min(1.0, 2 * pause_s)
        else:
            appended: Appended = outcome.outcome if isinstance(outcome, Replayed) else outcome
            return appended


# --- Workers ------------------------------------------------------------------------------------------------------------


def queue_daemon(  # noqa: PLR0913  # each has a use of its own, and a default
    app: flask.Flask,
    rv_ttl: int = RESULT_TTL_S,
    *,
    queue: str = QUEUE,
    lease_s: float = LEASE_S,
    max_attempts: int = DEFAULT_ATTEMPTS,
    retry_s: float = RETRY_S,
) -> None:
    """Work a queue in this process until SIGTERM; `flask worker` does so in several, and starts them again when they die.

    `rv_ttl` is for how many seconds a result is kept. A job is leased for `lease_s` at a time while it runs. One that failed is
    tried again after `retry_s`, then twice that, and so on; after `max_attempts` it is dead. Raises ValueError.
    """
    work_here(_maker(app, _terms(queue, rv_ttl=rv_ttl, lease_s=lease_s, max_attempts=max_attempts, retry_s=retry_s))())


# What the terms of a worker may be: the least and the most, whole numbers where both are.
_BOUNDS: dict[str, tuple[float, float]] = {
    "rv_ttl": (1, MAX_TTL_S),
    "lease_s": (0.5, float(MAX_TTL_S)),
    "max_attempts": (1, MAX_ATTEMPTS),
    "retry_s": (0.0, float(MAX_TTL_S)),
}


def _terms(queue: str, **given: Any) -> Terms:
    """How a queue is to be worked; raises ValueError, or Problem where its path is none."""
    for name, value in given.items():
        low, high = _BOUNDS[name]
        is_number = isinstance(value, int if isinstance(high, int) else (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise ValueError(
                f"{name} is a {'whole ' if isinstance(high, int) else ''}number from {low} to {high:,}, not {value!r}"
            )
    return Terms(_queue(queue), *(given[name] for name in _BOUNDS))


def _maker(app: flask.Flask, terms: Terms) -> Callable[[], Worker]:
    """What makes a worker, with connections of its own; raises InvalidSetting or StartFailed."""
    settings = _connection(app).settings
    if settings.redis_url == "fake://":
        raise StartFailed("a worker needs a Redis that others see as well: set REDIS_URL")
    return lambda: Worker(settings, terms, functools.partial(_run, app))


@click.command("worker")
@click.option("--concurrency", type=click.IntRange(1, 1000), default=1, show_default=True, help="Processes.")
@click.option("--queue", default=QUEUE, show_default=True, help="The container whose documents are the jobs.")
@click.option(
    "--rv-ttl",
    type=int,
    default=RESULT_TTL_S,
    show_default=True,
    help="Seconds for which a result is kept.",
)
@click.option(
    "--lease",
    "lease_s",
    type=float,
    default=LEASE_S,
    show_default=True,
    help="Seconds after which the job of a worker that died is taken again; one that lives renews it.",
)
@click.option(
    "--max-attempts",
    type=int,
    default=DEFAULT_ATTEMPTS,
    show_default=True,
    help="After which a job is dead.",
)
@click.option(
    "--retry",
    "retry_s",
    type=float,
    default=RETRY_S,
    show_default=True,
    help="Seconds before the second attempt, twice that before the third, and so on, 60 at most.",
)
@pass_script_info
def worker_command(script: ScriptInfo, /, concurrency: int, queue: str, **terms: Any) -> None:
    """Run the jobs of functions decorated with queuefunc.

    The first SIGTERM, or Ctrl-C, lets the jobs in hand finish; a second one gives them back.
    """
    try:
        make = _maker(script.load_app(), _terms(queue, **terms))
    except (InvalidSetting, StartFailed, Problem, ValueError) as error:
        raise click.ClickException(str(error)) from None
    tasks = ", ".join(sorted(_tasks)) or "no task"
    click.echo(f"{concurrency} {'worker' if concurrency == 1 else 'workers'} on {queue}: {tasks}")
    work_as_parent(make, concurrency)
