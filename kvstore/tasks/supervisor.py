"""The parent process of workers, and the signals that it and they handle. Source: signal(7)."""

import logging
import os
import signal
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

    with _handling(dict.fromkeys(_ORDERS, stop)):
        worker.work()


def work_as_parent(make_worker: Callable[[], JobWorker], concurrency: int) -> None:
    """Run workers in `concurrency` processes, and restart those that die, until SIGTERM or SIGINT.

    The first signal lets them finish their jobs, the second makes them give the jobs back, a third kills them. Process managers
    send SIGTERM to all processes at once, so the parent passes the second signal on as SIGQUIT.
    """
    orders = 0
    workers = [0] * concurrency  # process ids, 0 for one that has ended
    started = [-_RESTART_S] * concurrency

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
                if worker and os.waitpid(worker, os.WNOHANG)[0]:
                    workers[index] = 0
                    if not orders:
                        log.error("a worker has died; restarting it")
                if not workers[index] and not orders and time.monotonic() >= started[index] + _RESTART_S:
                    started[index] = time.monotonic()
                    workers[index] = _fork(make_worker)
            if orders and not any(workers):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
                return
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
            time.sleep(_LOOK_S)


def _fork(make_worker: Callable[[], JobWorker]) -> int:
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
            signal.SIGINT: signal.SIG_IGN,  # Ctrl-C in the terminal: the parent passes it on
        }
        with _handling(handlers):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
            worker.work(parent)
        status = 0
    except BaseException:
        log.exception("a worker failed by a bug of ours")
    finally:  # the child must not run the parent's exit handlers
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
