"""The parent process of workers, and the signals that it and they handle. Source: signal(7)."""

import functools
import logging
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from kvstore.tasks.worker import JobWorker

log = logging.getLogger("kvstore")

_LOOK_S = 0.1  # between the parent's checks of its workers
_RESTART_S = 1.0  # between starts of a worker, so that one that fails at once does not keep a core busy
_GRACE_S = 5.0  # after its time limit, in which a task may end by TaskTimeout and its worker give the job back
_DEADLINE = struct.Struct("d")


Handlers = Mapping[int, "Callable[[int, FrameType | None], None] | signal.Handlers"]

_ORDERS = {signal.SIGTERM, signal.SIGINT}


@contextmanager
def _handling(handlers: Handlers) -> Iterator[None]:
    """Handle signals in the block. Does nothing outside the main thread, where Python cannot set handlers."""
    global _handles_sigterm
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _handles_sigterm = True
    try:
        yield
    finally:
        _handles_sigterm = False
        for number, handler in before.items():
            signal.signal(number, handler)


# SIGTERM ends a process that a task forks, as its sender expects: multiprocessing waits for that. The signal is blocked during
# the fork, because Python drops a signal that arrives in a process that it has just forked.
_handles_sigterm = False
_forking = threading.local()  # of each thread: the signals that it blocked before the fork


def _before_fork() -> None:
    _forking.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if _handles_sigterm else ())


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.blocked)


def _in_copy() -> None:
    global _handles_sigterm
    if _handles_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _handles_sigterm = False
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_copy)


def work_here(worker: JobWorker) -> None:
    """Run a worker in this process. SIGTERM, or Ctrl-C, ends it after the job that runs, a second one at once."""

    def stop(*_: object) -> None:
        if worker.is_stopping:
            worker.quit()
        worker.stop()

    with _handling({**dict.fromkeys(_ORDERS, stop), signal.SIGALRM: lambda *_: worker.time_out()}):
        worker.work()


def work_as_parent(make_worker: Callable[[], JobWorker], concurrency: int) -> None:
    """Run workers in `concurrency` processes, and restart those that die, until SIGTERM or SIGINT.

    The first signal lets them finish their jobs, the second makes them give the jobs back, a third kills them. Process managers
    send SIGTERM to all processes at once, so the parent passes the second signal on as SIGQUIT.
    """
    orders = 0
    workers = [0] * concurrency  # process ids, 0 for one that has ended
    started = [-_RESTART_S] * concurrency
    deadlines = _Deadlines(concurrency)

    def pass_on(*_: object) -> None:
        nonlocal orders
        order = (signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL)[min(orders, 2)]
        orders += 1
        for worker in filter(None, workers):
            os.kill(worker, order)

    # If SIGCHLD is ignored, waitpid() does not report processes that have ended.
    with _handling({**dict.fromkeys(_ORDERS, pass_on), signal.SIGCHLD: signal.SIG_DFL}):
        while True:
            # A signal is handled between two checks, when every process id in `workers` is that of a living worker.
            signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)
            for index, worker in enumerate(workers):
                if worker and deadlines.is_over(index):
                    log.error("a task has not ended %g s after its time limit; killing its worker", _GRACE_S)
                    deadlines.set(index, 0)
                    os.kill(worker, signal.SIGKILL)
                if worker and os.waitpid(worker, os.WNOHANG)[0]:
                    workers[index] = 0
                    deadlines.set(index, 0)
                    if not orders:
                        log.error("a worker has died; restarting it")
                if not workers[index] and not orders and time.monotonic() >= started[index] + _RESTART_S:
                    started[index] = time.monotonic()
                    workers[index] = _fork(make_worker, functools.partial(deadlines.set, index))
            if orders and not any(workers):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
                return
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
            time.sleep(_LOOK_S)


class _Deadlines:
    """When the attempt of each worker is to end (time.monotonic(); 0: none runs), in memory that the processes share.

    The parent looks there, so that a task ends that catches TaskTimeout, or never lets go of Python's lock.
    """

    def __init__(self, concurrency: int) -> None:
        self._shared = mmap.mmap(-1, concurrency * _DEADLINE.size)

    def set(self, index: int, at: float) -> None:
        _DEADLINE.pack_into(self._shared, index * _DEADLINE.size, at)

    def is_over(self, index: int) -> bool:
        (at,) = _DEADLINE.unpack_from(self._shared, index * _DEADLINE.size)
        return bool(0 < at < time.monotonic() - _GRACE_S)


def _fork(make_worker: Callable[[], JobWorker], on_attempt: Callable[[float], None]) -> int:
    """Fork a worker, which opens its own connections. Returns its process id."""
    parent = os.getpid()
    if child := os.fork():
        return child
    status = 1
    try:
        worker = make_worker()
        handlers: Handlers = {
            signal.SIGTERM: lambda *_: worker.stop(),
            signal.SIGQUIT: lambda *_: worker.quit(),
            signal.SIGALRM: lambda *_: worker.time_out(),
            signal.SIGINT: signal.SIG_IGN,  # Ctrl-C in the terminal: the parent passes it on
        }
        with _handling(handlers):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
            worker.work(parent, on_attempt)
        status = 0
    except BaseException:
        log.exception("a worker failed by a bug of ours")
    finally:  # the child must not run the parent's exit handlers
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
