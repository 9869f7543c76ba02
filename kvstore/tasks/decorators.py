"""Tasks: functions that a worker runs. The decorator queuefunc, queueing a job, and running one.

    @queuefunc
    def add(a, b):
        return a + b

    add(1, 2)                  runs here
    add.delay(1, 2)            queues {"task":"add","args":[1,2],"kwargs":{}} and returns a DelayedResult

The queue is a container, so a job can also be queued, and its result read, over HTTP. A job can name decorated functions
only. A result is stored as one value, even if it is an object, so a member `ttl` of it is not taken for a TTL.
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
from kvstore.core.errors import StoreUnavailable, TooFewReplicas, unavailable
from kvstore.core.paths import Path, own_key, parse_path
from kvstore.stores.blocking import BlockingStore
from kvstore.tasks.connection import open_task_store
from kvstore.tasks.job_json import check_storable, dump_json
from kvstore.tasks.results import DelayedResult
from kvstore.tasks.worker import RESULTS

QUEUE = "/tasks/"

RETRY_FOR_S = 10.0  # for which delay() retries if Redis does not answer
KEPT_MS = 300_000  # that the reply to delay() is kept: far longer than it retries, even if Redis was blocked meanwhile

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A function that a worker can run by its name. Calling the task runs the function here."""

    def __init__(self, function: Callable[P, R], queue: str) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._queue = parse_queue(queue)
        self.name = function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> "DelayedResult":
        """Queue a job that calls the function; raises TypeError if the arguments are not JSON.

        Raises StoreUnavailable if Redis, or its replicas, do not answer for RETRY_FOR_S, and any other Problem at once.
        """
        job = _encode_job(self.name, args, kwargs)
        store, settings = open_task_store()
        kept = own_key(self._queue, f"idempotency:{os.urandom(16).hex()}")
        post = Post(self._queue, job, settings.default_ttl_s * 1000, settings.log_length)
        appended = _append(store, Idempotent(post, kept, "delay", KEPT_MS))
        return DelayedResult(self._queue.text + RESULTS + appended.path.rpartition("/")[2])


TASKS: dict[str, Task[..., Any]] = {}  # of this process, by name


@overload
def queuefunc(function: Callable[P, R], /) -> Task[P, R]:
    """`@queuefunc`."""


@overload
def queuefunc(*, queue: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """`@queuefunc(queue="/mail/")`."""


def queuefunc(function: Callable[..., Any] | None = None, /, *, queue: str = QUEUE) -> Any:
    """Make a function a task: `@queuefunc`, or `@queuefunc(queue="/mail/")`.

    A job names its function by `__name__` alone. Raises ValueError if another task has that name, or if the function has none.
    """
    if function is None:
        return functools.partial(_register, queue=queue)
    return _register(function, queue)


def _register(function: Callable[P, R], queue: str) -> Task[P, R]:
    if getattr(function, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(f"a job names its function, and {function!r} has no name: write it with def")
    task = Task(function, queue)
    other = TASKS.get(task.name)
    if other and _origin(other) != _origin(task):
        raise ValueError(f"another task is named {task.name!r}; give this function another name")
    TASKS[task.name] = task
    return task


def _origin(task: Task[..., Any]) -> list[tuple[str, str]]:
    """Return where a function is defined, and the functions that it closes over.

    It tells one function from another of the same name. A module may be loaded twice, and a decorator used twice.
    """
    written: Any = task.__wrapped__  # type: ignore[attr-defined]  # set by update_wrapper
    if not isinstance(written, FunctionType):
        return [(str(written.__module__), str(written.__qualname__))]
    functions = [written]
    for function in functions:  # the list grows
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # nothing in it yet
                if type(cell.cell_contents) is FunctionType and cell.cell_contents not in functions:
                    functions.append(cell.cell_contents)
    return [(function.__code__.co_filename, function.__qualname__) for function in functions]


def parse_queue(text: str) -> Path:
    """Return the container that a queue is; raises ValueError, InvalidPath or PathTooLong."""
    path = parse_path(text.encode()).container
    if path.text == "/" or path.text.startswith("/_/"):
        raise ValueError("a queue is a container such as /tasks/: not the root, and not below /_/, which is the service's own")
    parse_path((path.text + RESULTS).encode() + b"0" * ID_BYTES)  # its results must have paths
    return path


_JOB_SHAPE = codec.OBJECT + b' ["task","args","kwargs"]'


def _encode_job(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Encoded:
    """Return the document of a job. Its members are stored as they are: none is taken for a server value."""
    texts = dump_json(name), dump_json(args), dump_json(kwargs)
    text = b'{"task":%b,"args":%b,"kwargs":%b}' % texts
    check_storable(text)
    return Encoded(_JOB_SHAPE, [b"task", texts[0], b"args", texts[1], b"kwargs", texts[2]], text, None)


def run_job(app: flask.Flask, text: bytes) -> Encoded:
    """Run a job, given as JSON text, and return its result; raises what the function raises.

    Raises TypeError if the text is not a job or the result not JSON, LookupError if there is no such task.
    """
    job = json.loads(text)
    if not isinstance(job, dict) or not isinstance(job.get("task"), str):
        raise TypeError('a job is {"task":"name","args":[…],"kwargs":{…}}')
    args, kwargs = job.get("args", []), job.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TypeError('"args" of a job is an array, "kwargs" an object')
    task = TASKS.get(job["task"])
    if task is None:
        raise LookupError(f"no function named {job['task']!r} is decorated with queuefunc here")
    with app.app_context():
        value = task(*args, **kwargs)
    result = dump_json(value)
    check_storable(result)
    return Encoded(codec.SCALAR, [codec.VALUE, result], result, None)


def _append(store: BlockingStore, post: Idempotent[Appended]) -> Appended:
    """Append a job, with retries while Redis or its replicas do not answer; the key keeps it from being appended twice.

    Raises Problem.
    """
    deadline = time.monotonic() + RETRY_FOR_S
    pause_s = 0.05
    while True:
        try:
            outcome = store.execute(post)
        except (StoreUnavailable, TooFewReplicas) as problem:
            if time.monotonic() + pause_s > deadline:
                raise unavailable(
                    f"for {RETRY_FOR_S:.0f} s Redis did not confirm it, so it is unknown whether the job is queued: queue it"
                    f" again where it may run twice, or look at the queue first. The last answer: {problem.detail}"
                ) from problem
            time.sleep(pause_s)
            pause_s = min(1.0, 2 * pause_s)
        else:
            return outcome.outcome if isinstance(outcome, Replayed) else outcome
