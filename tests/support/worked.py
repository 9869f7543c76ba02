"""A Flask application whose functions the workers of the tests run. What ran is noted in Redis, beside our own keys."""

import multiprocessing
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import flask
import redis

from kvstore import queuefunc

app = flask.Flask("worked")
app.config["GREETING"] = "hello"


def _note(name: str) -> None:
    """Append this process and the time to the list `ran:{name}`."""
    with redis.Redis.from_url(os.environ["REDIS_URL"], protocol=2) as client:
        client.rpush(f"ran:{name}", f"{os.getpid()} {time.time()}")


class Unspeakable(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@queuefunc
def add(a: Any, b: Any) -> Any:
    """The sum."""
    return a + b


@queuefunc
def echo(*args: Any, **kwargs: Any) -> Any:
    """What it was given, as it was given."""
    return [list(args), kwargs]


@queuefunc
def give(value: Any) -> Any:
    """The value alone."""
    return value


@queuefunc
def greet() -> str:
    """What only the application's context knows."""
    return str(flask.current_app.config["GREETING"])


@queuefunc
def note(name: str, pause_s: float = 0) -> str:
    """Note that it ran, and take its time."""
    _note(name)
    time.sleep(pause_s)
    return name


@queuefunc
def hold(name: str) -> str:
    """Note that it ran, and each SIGTERM as `{name} told`; end when the list `go:{name}` has an entry."""
    handler: Any = signal.getsignal(signal.SIGTERM)

    def told(*signal_and_frame: Any) -> None:
        _note(f"{name} told")
        handler(*signal_and_frame)

    signal.signal(signal.SIGTERM, told)
    try:
        _note(name)
        with redis.Redis.from_url(os.environ["REDIS_URL"], protocol=2, socket_timeout=None) as client:
            client.blpop([f"go:{name}"], 60)
    finally:
        signal.signal(signal.SIGTERM, handler)
    return name


@queuefunc
def fail(name: str) -> None:
    """Note that it ran, and fail."""
    _note(name)
    raise ValueError(f"never: {name}")


@queuefunc
def mark(file: str, name: str, *, fails: bool = False) -> str:
    """Append a line to a file, also while Redis is away, and fail if it is to."""
    with Path(file).open("a") as marks:
        marks.write(f"{name}\n")
    if fails:
        raise ValueError(name)
    return name


@queuefunc
def misbehave(how: str) -> Any:
    """End in one of the ways in which a task should not."""
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "unspeakable":
        raise Unspeakable
    if how == "recursion":
        return misbehave(how)
    return {"nan": float("nan"), "object": object(), "name": {1: 2}, "large": "x" * 1_100_000}[how]


@queuefunc
def poison(name: str) -> None:
    """Note that it ran, and kill the worker."""
    _note(name)
    os.kill(os.getpid(), signal.SIGKILL)


@queuefunc
def hang(how: str, name: str) -> None:
    """Note that it ran, and do not end."""
    _note(name)
    while True:
        try:
            if how == "in C":
                re.match("(a*)*b", "a" * 40)  # lets nothing else run in this process
            time.sleep(60)
        except BaseException:
            if how == "sleep":
                raise


@queuefunc
def fork(child: str, parent: str) -> str:
    """Return twice, or once and raise."""
    if os.fork() == 0:
        if not child:
            raise ValueError("in the copy")
        return child
    time.sleep(0.5)
    return parent


@queuefunc
def terminate() -> Any:
    """End a process that it has forked, as a pool of multiprocessing does with each of its own."""
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    forked.start()
    forked.terminate()
    forked.join(20)
    return forked.exitcode


@queuefunc(queue="/mail/")
def post(to: str) -> str:
    """A task with a queue of its own."""
    return to
