"""How an application runs its tasks: the command `flask kvstore worker`, and queue_daemon()."""

import functools
from collections.abc import Callable

import click
import flask
from flask.cli import ScriptInfo, pass_script_info

from kvstore.commands.jobs import DEFAULT_ATTEMPTS, MAX_ATTEMPTS, MAX_LEASE_S
from kvstore.core.errors import Problem
from kvstore.core.settings import MAX_TTL_S, InvalidSetting
from kvstore.stores.embedded import StartFailed
from kvstore.tasks.connection import open_task_store
from kvstore.tasks.decorators import QUEUE, TASKS, parse_queue, run_job
from kvstore.tasks.supervisor import work_as_parent, work_here
from kvstore.tasks.worker import JobWorker, Terms

RESULT_TTL_S = 500
LEASE_S = 30.0
RETRY_S = 1.0
TIMEOUT_S = 3600.0  # what runs for longer has most likely hung


def queue_daemon(  # noqa: PLR0913  # each has a use of its own, and a default
    app: flask.Flask,
    rv_ttl: int = RESULT_TTL_S,
    *,
    queue: str = QUEUE,
    lease_s: float = LEASE_S,
    max_attempts: int = DEFAULT_ATTEMPTS,
    retry_s: float = RETRY_S,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Work a queue in this process until SIGTERM. `flask kvstore worker` starts several such processes and restarts them.

    A result is kept for `rv_ttl` seconds. While a job runs, its lease is renewed for `lease_s` at a time. A job that failed is
    tried again after `retry_s`, then after twice that, and so on; after `max_attempts` it is dead. An
    attempt that takes longer than `timeout_s` has failed. Raises ValueError.
    """
    work_here(_factory(app, _terms(queue, rv_ttl, lease_s, max_attempts, retry_s, timeout_s))())


def _terms(  # noqa: PLR0913, PLR0917  # a setting each
    queue: str, rv_ttl: int, lease_s: float, max_attempts: int, retry_s: float, timeout_s: float
) -> Terms:
    """Return the terms of a worker; raises ValueError, or Problem if `queue` is not a path."""
    _check_range("rv_ttl", rv_ttl, 1, MAX_TTL_S)
    _check_range("lease_s", lease_s, 0.5, float(MAX_LEASE_S))
    _check_range("max_attempts", max_attempts, 1, MAX_ATTEMPTS)
    _check_range("retry_s", retry_s, 0.0, float(MAX_TTL_S))
    _check_range("timeout_s", timeout_s, 0.5, float(MAX_TTL_S))
    return Terms(parse_queue(queue), rv_ttl, lease_s, max_attempts, retry_s, timeout_s)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse what is not a number from `low` to `high`, or not a whole one if `high` is; raises ValueError."""
    is_whole = isinstance(high, int)
    if not isinstance(value, int if is_whole else int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{name} is a {'whole ' if is_whole else ''}number from {low} to {high:,}, not {value!r}")


def _factory(app: flask.Flask, terms: Terms) -> Callable[[], JobWorker]:
    """Return a function that makes a worker with connections of its own; raises InvalidSetting or StartFailed."""
    settings = open_task_store(app).settings
    if settings.redis_url == "fake://":
        raise StartFailed("a worker needs a Redis that others see as well: set REDIS_URL")
    return lambda: JobWorker(settings, terms, functools.partial(run_job, app))


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
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=TIMEOUT_S,
    show_default=True,
    help="Seconds after which an attempt that has not ended has failed.",
)
@pass_script_info
def worker_command(  # noqa: PLR0913, PLR0917  # an option each
    script: ScriptInfo,
    /,
    concurrency: int,
    queue: str,
    rv_ttl: int,
    lease_s: float,
    max_attempts: int,
    retry_s: float,
    timeout_s: float,
) -> None:
    """Run the jobs of functions decorated with queuefunc.

    The first SIGTERM, or Ctrl-C, lets running jobs finish. The second gives them back.
    """
    try:
        make_worker = _factory(script.load_app(), _terms(queue, rv_ttl, lease_s, max_attempts, retry_s, timeout_s))
    except (InvalidSetting, StartFailed, Problem, ValueError) as error:
        raise click.ClickException(str(error)) from None
    tasks = ", ".join(sorted(TASKS)) or "no task"
    click.echo(f"{concurrency} {'worker' if concurrency == 1 else 'workers'} on {queue}: {tasks}")
    work_as_parent(make_worker, concurrency)
