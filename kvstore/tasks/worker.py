"""A worker: a process that takes jobs from a queue, one at a time.

A worker does not know what a job means. It calls a function that takes a job's JSON text and returns its result. While the
function runs, the worker renews the job's lease. Then one script stores the result and deletes the job; a job that failed is
given back. Whatever happens to the worker, a job is in Redis until it is done or dead. Source: DESIGN.md 27; signal(7).
"""

import json
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from kvstore.commands.base import Command, Outcome
from kvstore.commands.jobs import (
    ChangeLease,
    FinishAndTake,
    Finished,
    FinishJob,
    Job,
    LeaseChanged,
    Lost,
    Take,
    Taken,
    below_queue,
)
from kvstore.commands.takers import REGISTER_AFTER_S, RegisterTaker, RemoveTaker
from kvstore.core.codec import Encoded
from kvstore.core.errors import Problem, StoreFull, StoreUnavailable, TooFewReplicas
from kvstore.core.paths import Path
from kvstore.core.settings import Settings
from kvstore.stores.blocking import BlockingStore, open_blocking_store

log = logging.getLogger("kvstore")

RESULTS = "results/"  # the container of results, below the queue

MAX_RETRY_S = 60.0
_MAX_IDLE_S = 30.0  # of one wait for a job
_REGISTERED_S = 32.0  # for which a worker that waits is shown, after which it has long registered again
_MAX_YIELD_S = 0.02  # for which a worker that found no job lets others take first
_LOOK_S = 0.1  # between attempts to wait for a job where Redis refuses that
_MAX_PAUSE_S = 2.0  # between attempts while Redis does not answer
_STOP_S = 20.0  # for which a stopping worker retries to store its last result; Heroku kills 30 s after SIGTERM


class Terms(NamedTuple):
    """How a worker works its queue."""

    queue: Path
    result_ttl_s: int
    lease_s: float
    max_attempts: int
    retry_s: float  # before the second attempt, doubled for each further one up to MAX_RETRY_S
    timeout_s: float  # of one attempt


class TaskTimeout(BaseException):
    """A task ran for longer than it may. No Exception, so that `except Exception` in the task does not stop it."""


class _Idle(BaseException):
    """The worker was told to stop while it had no job."""


class JobWorker:
    """Works a queue until stop() is called. `run` returns the result of a job's JSON text; if it raises, the attempt failed."""

    def __init__(self, settings: Settings, terms: Terms, run: Callable[[bytes], Encoded]) -> None:
        self._settings = settings
        self._store = self._open_store()
        self._terms = terms
        self._run = run
        self._job: Job | None = None  # the one that runs
        self._leased_at = 0.0  # no later than the lease began
        self._stopped_at: float | None = None
        self._is_idle = False
        self._is_running = False  # the task, and nothing else
        self._ends_at = 0.0  # the time limit of the task that runs
        self._is_away = False
        self._idle_wakes = 0  # waits in a row that ended soon, and without a job
        self._has_ended = threading.Event()
        self._process = os.getpid()
        self._name = json.dumps({"host": os.uname().nodename, "process": self._process}).encode()
        self._idle_since: float | None = None
        self._registers_at = 0.0
        self._entry: bytes | None = None  # among those who wait at the queue

    def work(self, parent: int | None = None, on_attempt: Callable[[float], None] | None = None) -> None:
        """Take jobs and run them, one at a time, until stop(), or until the supervising process `parent` has died.

        `on_attempt` is called with the time (time.monotonic()) at which an attempt is to end, and with 0 when it has ended.
        """
        self._on_attempt = on_attempt or (lambda _: None)
        threading.Thread(target=self._hold_leases, args=(parent,), name="leases", daemon=True).start()
        taken: Taken | None = None
        try:
            while self._stopped_at is None or (taken and taken.jobs):
                if taken is None:
                    taken = self._persist(self._take())
                elif taken.jobs:
                    taken = self._attempt(taken.jobs[0])
                else:
                    self._wait(taken)
                    taken = None
        except _Idle:
            pass
        finally:
            self._has_ended.set()
            self._end_wait()
            self._store.close()

    @property
    def is_stopping(self) -> bool:
        """Whether stop() was called."""
        return self._stopped_at is not None

    def stop(self) -> None:
        """End after the job that runs. Call it from a signal handler, in the thread that works."""
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
        if self._is_idle:
            self._is_idle = False
            raise _Idle

    def time_out(self) -> None:
        """End the attempt that runs. Call it from a handler of SIGALRM, in the thread that works."""
        if self._is_running:
            raise TaskTimeout(f"the task ran for more than {self._terms.timeout_s:g} s")

    def quit(self) -> None:
        """Give back the job that runs, and end the process at once. Call it from a signal handler."""
        if job := self._job:
            with suppress(Problem):  # its lease ends by itself
                # On a new connection: the signal may have come in the middle of a command on the other.
                self._open_store().execute(ChangeLease.release(job, reason="the worker was told to quit"))
        os._exit(1)

    def _open_store(self) -> BlockingStore:
        settings = self._settings
        return open_blocking_store(settings.redis_url, verify_tls=settings.verify_tls, replicas=settings.replicas)

    def _take(self) -> Take:
        terms = self._terms
        return Take(terms.queue, int(terms.lease_s * 1000), 1, terms.max_attempts, self._settings.log_length)

    def _attempt(self, job: Job) -> Taken | None:
        """Run a job. Returns what was taken when it was finished; None if nothing was taken then."""
        self._idle_wakes = 0
        self._leased_at = time.monotonic()
        self._job = job
        self._end_wait()
        try:
            with self._time_limit():
                result = self._run(job.document.text)
        except BaseException as error:  # sys.exit() in a task does not end the worker
            self._fail(job, error)
            taken = None
        else:
            taken = self._finish(job, result)
        self._job = None
        return taken

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Have the block end by TaskTimeout in time. Only the main thread gets signals; elsewhere the lease ends."""
        limit_s, has_signals = self._terms.timeout_s, threading.current_thread() is threading.main_thread()
        self._ends_at = time.monotonic() + limit_s
        self._on_attempt(self._ends_at)
        self._is_running = True
        try:
            if has_signals:
                signal.setitimer(signal.ITIMER_REAL, limit_s)
            yield
        finally:
            self._is_running = False
            self._end_copy()
            if has_signals:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self._on_attempt(0)

    def _end_copy(self) -> None:
        """End this process if the task has forked it. It is not the worker, so it does not finish the job."""
        if os.getpid() != self._process:
            os._exit(0)

    def _finish(self, job: Job, result: Encoded) -> Taken | None:
        terms, log_length = self._terms, self._settings.log_length
        at = below_queue(terms.queue, RESULTS, job)
        finish = FinishJob(terms.queue, job, at, result, terms.result_ttl_s * 1000, log_length)
        try:
            outcome: Finished | Taken | Lost | None
            outcome = self._persist(finish) if self.is_stopping else self._persist(FinishAndTake(finish, self._take()))
        except Problem as problem:
            self._fail(job, problem)
            return None
        if outcome is None:
            log.error("%s is done, but Redis did not answer when it was to be finished: it will run again", job.path.text)
        elif isinstance(outcome, Lost):
            log.warning("%s was finished after its lease had ended, or by a command whose reply was lost", job.path.text)
        return outcome if isinstance(outcome, Taken) else None

    def _fail(self, job: Job, error: BaseException) -> None:
        terms = self._terms
        is_last = job.attempts >= terms.max_attempts
        log.warning("%s: attempt %d of %d failed", job.path.text, job.attempts, terms.max_attempts, exc_info=error)
        delay_s = 0.0 if is_last else min(MAX_RETRY_S, terms.retry_s * 2 ** min(job.attempts - 1, 20))
        reason = "".join(traceback.format_exception_only(error)).strip()
        try:
            self._persist(ChangeLease.release(job, int(delay_s * 1000), reason))
        except Problem as problem:
            log.error("%s cannot be given back: %s", job.path.text, problem)

    def _wait(self, taken: Taken) -> None:
        """Wait until there may be a job."""
        limit_s = _MAX_IDLE_S if taken.ready_in_ms is None else min(_MAX_IDLE_S, taken.ready_in_ms / 1000)
        begun = time.monotonic()
        with self._idle():
            try:
                limit_s = min(limit_s, self._register(begun))
                self._store.wait(self._terms.queue, taken.positions, limit_s)
            except Problem:
                time.sleep(_LOOK_S)  # the next take raises it again
            if time.monotonic() - begun > _LOOK_S:
                self._idle_wakes = 0
            elif self._idle_wakes:
                # Each change wakes every waiting worker. One that has just found no job lets others take first.
                time.sleep(min(_MAX_YIELD_S, 0.001 * 2 ** min(self._idle_wakes, 10)))
            self._idle_wakes += 1

    def _register(self, now: float) -> float:
        """Let those who list the queue see that this worker waits; return the seconds after which to call this again."""
        if self._idle_since is None:
            self._idle_since = now
        waited_s = now - self._idle_since
        if waited_s < REGISTER_AFTER_S:
            return REGISTER_AFTER_S - waited_s
        if now < self._registers_at:
            return self._registers_at - now
        waited_ms, left_ms = int(1000 * waited_s), int(1000 * _REGISTERED_S)
        taker = RegisterTaker(self._terms.queue, os.urandom(8).hex(), self._name, waited_ms, left_ms, self._entry)
        self._registers_at = now + _MAX_IDLE_S
        with suppress(Problem):  # it is not seen then
            self._entry = self._store.execute(taker)
        return _MAX_IDLE_S

    def _end_wait(self) -> None:
        entry, self._entry, self._idle_since, self._registers_at = self._entry, None, None, 0.0
        if entry is not None and not self._is_away:
            with suppress(Problem):  # it ends by itself
                self._store.execute(RemoveTaker(self._terms.queue, entry))

    def _persist(self, command: Command[Outcome]) -> Outcome | None:
        """Execute a command that is safe to repeat until Redis answers; None if the worker is to stop before that.

        Raises Problem if Redis refuses the command, unless it is a take: a take is retried whatever the problem is.
        """
        pause_s = 0.05
        while True:
            try:
                outcome = self._store.execute(command)
            except Problem as problem:
                if self._job and not isinstance(problem, StoreUnavailable | TooFewReplicas | StoreFull):
                    raise
                if not self._is_away:
                    log.error("%s; trying again", problem)
                self._is_away = True
            else:
                if self._is_away:
                    log.warning("Redis is back")
                self._is_away = False
                return outcome
            if self._stopped_at is not None and not (self._job and time.monotonic() < self._stopped_at + _STOP_S):
                return None
            with self._idle():
                time.sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, 2 * pause_s)

    @contextmanager
    def _idle(self) -> Iterator[None]:
        """Let stop() interrupt the block if there is no job."""
        self._is_idle = self._job is None
        try:
            if self._is_idle and self._stopped_at is not None:
                raise _Idle  # the signal came before the block
            yield
        finally:
            self._is_idle = False

    def _hold_leases(self, parent: int | None) -> None:
        """Renew the lease of the job that runs, long before it ends, and stop if the parent has died. Runs in a thread.

        A job that goes on after its time is no longer held: another worker takes it.
        """
        terms = self._terms
        lost: Job | None = None
        while not self._has_ended.wait(min(1.0, terms.lease_s / 6)):
            if parent is not None and os.getppid() != parent and self._stopped_at is None:
                os.kill(os.getpid(), signal.SIGTERM)
            job, now = self._job, time.monotonic()
            if not job or job is lost or now < self._leased_at + terms.lease_s / 3:
                continue
            if self._is_running and now > self._ends_at:
                continue
            try:
                outcome = self._store.execute(ChangeLease.renew(job, int(terms.lease_s * 1000)))
            except Problem:
                continue  # the working thread reports it
            if isinstance(outcome, LeaseChanged):
                self._leased_at = now
            elif self._job is job:
                lost = job
                log.warning("%s is no longer leased to this worker, which continues with it", job.path.text)
