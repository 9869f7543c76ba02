"""Functions that a worker runs: the decorator, what asks for a run and awaits its result, and `flask kvstore worker`.

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
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar, overload

import flask

from kvstore.commands.base import Appended, Idempotent, Replayed
from kvstore.commands.documents import ID_BYTES, Post
from kvstore.core import codec
from kvstore.core.codec import Encoded
from kvstore.core.errors import StoreUnavailable, unavailable
from kvstore.core.paths import Path, own_key, parse_path
from kvstore.stores.blocking import BlockingStore
from kvstore.tasks.connection import _connection
from kvstore.tasks.job_json import _check, _json
from kvstore.tasks.results import DelayedResult
from kvstore.tasks.worker import RESULTS

QUEUE = "/tasks/"

ASK_AGAIN_S = 10.0  # for which delay() asks a Redis that does not answer
KEPT_MS = 300_000  # of the answer to delay(): far longer than it asks again, even of a Redis that was held up meanwhile

P = ParamSpec("P")
R = TypeVar("R")


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
        once_key = own_key(self._queue, f"idempotency:{os.urandom(16).hex()}")
        post = Post(self._queue, job, settings.default_ttl_s * 1000, settings.log_length)
        appended = _ask_again(store, Idempotent(post, once_key, "delay", KEPT_MS))
        return DelayedResult(self._queue.text + RESULTS + appended.path.rpartition("/")[2])


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


def _ask_again(store: BlockingStore, once: Idempotent[Appended]) -> Appended:
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
            return outcome.outcome if isinstance(outcome, Replayed) else outcome
