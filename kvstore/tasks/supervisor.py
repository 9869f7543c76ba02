"""The parent of several workers, and the signals that both heed. Source: signal(7)."""

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

_LOOK_S = 0.1  # between the parent's looks at its workers
_RESTART_S = 1.0  # from one start of a worker to the next, so that one that cannot start does not keep a core busy


Answers = Mapping[int, "Callable[[int, FrameType | None], None] | signal.Handlers"]

_ORDERS = {signal.SIGTERM, signal.SIGINT}


@contextmanager
def _answering(answers: Answers) -> Iterator[None]:
    """Answer signals so while the block runs; nothing is changed where this is not the main thread, which alone can."""
    global _is_told
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, answer) for number, answer in answers.items()}
    _is_told = True
    try:
        yield
    finally:
        _is_told = False
        for number, answer in before.items():
            signal.signal(number, answer)


# What a task forks is told nothing: SIGTERM ends it, as whoever sends that expects; multiprocessing waits until it has.
# Meanwhile the signal is blocked, since Python forgets one that comes to a process that it has just forked.
_is_told = False  # whether SIGTERM is an order to this process
_forking = threading.local()  # of each thread: what it blocks otherwise


def _before_fork() -> None:
    _forking.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if _is_told else ())


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.blocked)


def _in_copy() -> None:
    global _is_told
    if _is_told:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _is_told = False
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_copy)


def work_here(worker: JobWorker) -> None:
    """Work in this process: SIGTERM, or Ctrl-C, ends it after the job in hand, a second one at once."""

    def stop(*_: object) -> None:
        if worker.is_stopping:
            worker.quit()
        worker.stop()

    with _answering(dict.fromkeys(_ORDERS, stop)):
        worker.work()


def work_as_parent(make_worker: Callable[[], JobWorker], concurrency: int) -> None:
    """Work in so many processes, and start one again that has died, until SIGTERM or SIGINT.

    The first signal lets them finish their jobs, the second lets them give those back, a third kills them. Process managers
    send SIGTERM to all processes at once, so a worker hears by SIGQUIT that it was the second.
    """
    orders = 0
    workers = [0] * concurrency  # their processes, 0 where one has ended
    started = [-_RESTART_S] * concurrency

    def pass_on(*_: object) -> None:
        nonlocal orders
        order = (signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL)[min(orders, 2)]
        orders += 1
        for worker in filter(None, workers):
            os.kill(worker, order)

    # Where SIGCHLD is ignored, nobody is told that a process has ended.
    with _answering({**dict.fromkeys(_ORDERS, pass_on), signal.SIGCHLD: signal.SIG_DFL}):
        while True:
            # A signal comes between two looks, so that it finds every worker that there is, and none that is another's process.
            signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)
            for index, worker in enumerate(workers):
                if worker and os.waitpid(worker, os.WNOHANG)[0]:
                    workers[index] = 0
                    if not orders:
                        log.error("a worker has died; starting it again")
                if not workers[index] and not orders and time.monotonic() >= started[index] + _RESTART_S:
                    started[index] = time.monotonic()
                    workers[index] = _fork(make_worker)
            if orders and not any(workers):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
                return
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
            time.sleep(_LOOK_S)


def _fork(make_worker: Callable[[], JobWorker]) -> int:
    """The process of a new worker, which opens its own connections."""
    parent = os.getpid()
    if child := os.fork():
        return child
    status = 1
    try:
        worker = make_worker()
        answers: Answers = {
            signal.SIGTERM: lambda *_: worker.stop(),
            signal.SIGQUIT: lambda *_: worker.quit(),
            signal.SIGINT: signal.SIG_IGN,  # Ctrl-C in the terminal: the parent passes it on
        }
        with _answering(answers):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ORDERS)
            worker.work(parent)
        status = 0
    except BaseException:
        log.exception("a worker failed by a bug of ours")
    finally:  # what the parent does at its end is not for a child to do
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
