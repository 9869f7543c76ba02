"""The command line of tasks: `flask kvstore worker`, and working in a process of one's own."""

import functools
from collections.abc import Callable
from typing import Any

import click
import flask
from flask.cli import ScriptInfo, pass_script_info

from kvstore.commands.jobs import DEFAULT_ATTEMPTS, MAX_ATTEMPTS
from kvstore.core.errors import Problem
from kvstore.core.settings import MAX_TTL_S, InvalidSetting
from kvstore.stores.embedded import StartFailed
from kvstore.tasks.connection import _connection
from kvstore.tasks.decorators import (
    QUEUE,
    _queue,
    _run,
    _tasks,
)
from kvstore.tasks.supervisor import work_as_parent, work_here
from kvstore.tasks.worker import JobWorker, Terms

RESULT_TTL_S = 500
LEASE_S = 30.0
RETRY_S = 1.0


def queue_daemon(  # noqa: PLR0913  # each has a use of its own, and a default
    app: flask.Flask,
    rv_ttl: int = RESULT_TTL_S,
    *,
    queue: str = QUEUE,
    lease_s: float = LEASE_S,
    max_attempts: int = DEFAULT_ATTEMPTS,
    retry_s: float = RETRY_S,
) -> None:
    """Work a queue in this process until SIGTERM; `flask kvstore worker` does so in several and restarts those that die.

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


def _maker(app: flask.Flask, terms: Terms) -> Callable[[], JobWorker]:
    """What makes a worker, with connections of its own; raises InvalidSetting or StartFailed."""
    settings = _connection(app).settings
    if settings.redis_url == "fake://":
        raise StartFailed("a worker needs a Redis that others see as well: set REDIS_URL")
    return lambda: JobWorker(settings, terms, functools.partial(_run, app))


@click.group("kvstore")
def kvstore_group() -> None:
    """Run the tasks of this application."""


@kvstore_group.command("worker")
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
