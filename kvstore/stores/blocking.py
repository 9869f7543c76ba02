"""The blocking store: carries commands to Redis for threads, through redis-py. Flask, the command line and tasks use it.

No command is sent twice. redis-py's retries are off (redis_clients.py); EVAL after NOSCRIPT is no second sending, since Redis
has run nothing. Source: EVALSHA, EVAL, XREAD.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from weakref import WeakSet

import redis

from kvstore.commands.base import Again, Command, Later, Outcome, RedisReply
from kvstore.commands.queries import Paused, Piece
from kvstore.core.errors import Problem, problem_of_reply
from kvstore.core.paths import Path, own_key
from kvstore.core.redis_url import parse_redis_url
from kvstore.stores import redis_clients
from kvstore.stores.execution import Execution, Words, eval_words, evalsha_words, timed
from kvstore.stores.query_queue import FREE_PIECES, MAX_RUNNING, crowded, is_query, waits_s
from kvstore.stores.redis_clients import MAX_BLOCKING_CONNECTIONS, blocking_client, waiting_until
from kvstore.stores.redis_errors import ERRORS, all_busy, problem_of
from kvstore.stores.replicated import is_acknowledged, shortage, wait_words
from kvstore.stores.slots import guarded_words

MAX_MOVES = 3  # of a slot, while one command looks for its node
BLOCK_S = 2.0  # of one XREAD that waits: shorter than an answer may take


class _Turns:
    """A semaphore that is first come, first served: with threading.Semaphore the thread that just released is first again."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[threading.Lock] = deque()
        self._lock = threading.Lock()

    def acquire(self, timeout_s: float) -> bool:
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        try:
            return mine.acquire(timeout=timeout_s) or not self._leaves(mine)
        except BaseException:  # a signal's, in the main thread
            if not self._leaves(mine):
                self.release()
            raise

    def _leaves(self, mine: threading.Lock) -> bool:
        """Stop waiting; returns False if the turn was handed over meanwhile."""
        with self._lock:
            if is_waiting := mine in self._waiting:
                self._waiting.remove(mine)
            return is_waiting

    def release(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


@contextmanager
def _held(turns: _Turns, wait_s: float) -> Iterator[None]:
    """Hold a turn of a query; raises StoreUnavailable if there is none in time."""
    if not turns.acquire(max(0.0, wait_s)):
        raise crowded()
    try:
        yield
    finally:
        turns.release()


class BlockingStore:
    """Executes commands through a client of redis-py. Safe to share between threads, and to use in a forked process.

    `connect` makes the client, when the first command comes. `words` returns what is sent for a command. A write is done when
    `replicas` replicas have it.
    """

    def __init__(
        self, connect: Callable[[], Any], words: Callable[[Command[object]], Words] = evalsha_words, *, replicas: int = 0
    ) -> None:
        self._connect = connect
        self._words = words
        self._replicas = replicas
        self._client: Any = None
        self.forget()
        _all.add(self)

    def forget(self) -> None:
        """Reset it in a child process: connections, locks and turns belong to threads of the parent."""
        if self._client:
            _parents.append(self._client)
            self._client = None
        self._lock = threading.Lock()
        # redis-py bounds the connections to each node; at that bound a client of a cluster or of Sentinels fails at once.
        self._turns = _Turns(MAX_BLOCKING_CONNECTIONS)
        self._pieces, self._running = _Turns(1), _Turns(MAX_RUNNING)  # of queries

    def execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command and those that follow it, and return the outcome; raises Problem."""
        return self._answer(command) if is_query(command) else self._execute(command)

    def _answer(self, query: Command[Outcome]) -> Outcome:
        """Execute a query piece by piece, in turns with others."""
        wait_s = waits_s(query)
        outcome: Outcome | Paused[Outcome] = Paused(query)
        for _ in range(FREE_PIECES):
            if isinstance(outcome, Paused):
                outcome = self._read(outcome.command, wait_s)
        if not isinstance(outcome, Paused):
            return outcome
        due = time.monotonic() + wait_s
        with _held(self._running, wait_s):
            outcome = self._read(outcome.command, due - time.monotonic())
            while isinstance(outcome, Paused):
                outcome = self._read(outcome.command, wait_s)
            return outcome

    def _read(self, query: Command[Outcome], wait_s: float) -> Outcome | Paused[Outcome]:
        """Read the next piece of a query, when it is its turn."""
        with _held(self._pieces, wait_s):
            return self._execute(Piece(query))

    def _execute(self, command: Command[Outcome]) -> Outcome:
        began = time.monotonic()
        execution = Execution(command, began, began + redis_clients.BLOCKING.answer_s)
        while True:
            outcome = execution.settle(self._reply(execution), time.monotonic())
            while isinstance(outcome, Later):
                outcome = execution.resume(outcome, time.monotonic())
            if isinstance(outcome, Problem):
                raise outcome
            if not isinstance(outcome, Again):
                return outcome

    def _reply(self, execution: Execution[Any]) -> RedisReply | Problem:
        """The reply to a command, or the Problem that came in its place."""
        words = self._words(execution.command)
        try:
            with self._turn(execution.due) as client, timed():
                send = client.execute_command
                if self._replicas and is_acknowledged(execution.command):
                    send = partial(_send_and_wait, client, self._replicas)
                    if isinstance(client, redis.RedisCluster):
                        send = partial(_send_to_node, client, self._replicas, execution.command.keys[0])
                try:
                    return send(*words)
                except redis.exceptions.NoScriptError:
                    return send(*eval_words(execution.command, words))
        except ERRORS as error:
            return problem_of(error)
        except Problem as problem:
            return problem

    def wait(self, path: Path, positions: tuple[str, str], timeout_s: float) -> None:
        """Wait until the change log of a path's namespace, or its stream of released jobs, has grown past `positions`.

        Returns after `timeout_s` in any case; raises Problem. `positions` are those of jobs.Taken. Source: XREAD.
        """
        streams = dict(zip((path.keys.log, own_key(path, "released")), positions, strict=True))
        end = time.monotonic() + timeout_s
        try:
            while (left_s := end - time.monotonic()) > 0:
                block_ms = max(1, int(1000 * min(left_s, BLOCK_S)))
                with self._turn(time.monotonic() + redis_clients.BLOCKING.answer_s) as client:
                    if client.xread(streams, count=1, block=block_ms):
                        return
        except ERRORS as error:
            raise problem_of(error) from error

    def close(self) -> None:
        """Close the connections."""
        if self._client:
            self._client.close()
            if pool := getattr(self._client, "connection_pool", None):  # redis-py leaves a pool open that it was given
                pool.disconnect()

    @contextmanager
    def _turn(self, due: float) -> Iterator[Any]:
        """The client, for one command that is answered by `due`."""
        queue_s = min(redis_clients.BLOCKING.queue_s, max(0.0, due - time.monotonic()))
        if not self._turns.acquire(queue_s):
            raise all_busy()
        try:
            with waiting_until(due):
                yield self._client or self._open(queue_s)
        finally:
            self._turns.release()

    def _open(self, limit_s: float) -> Any:
        if not self._lock.acquire(timeout=limit_s):  # a client of a cluster asks for its nodes first
            raise all_busy()
        try:
            if self._client is None:
                self._client = self._connect()
            return self._client
        finally:
            self._lock.release()


_all: "WeakSet[BlockingStore]" = WeakSet()
_parents: list[Any] = []  # in a child process, never freed: to close them would talk to the parent's Redis


def _forget() -> None:
    for store in _all:
        store.forget()


os.register_at_fork(after_in_child=_forget)


def _send_and_wait(client: Any, replicas: int, *words: Any) -> RedisReply | Problem:
    """The reply to a command, when replicas have what it has written: both are sent at once, on one connection."""
    pipeline = client.pipeline(transaction=False)
    pipeline.execute_command(*words)
    pipeline.execute_command(*wait_words(replicas))
    reply, count = pipeline.execute(raise_on_error=False)
    if isinstance(reply, Exception):
        raise reply
    return shortage(count, replicas) or reply


def _send_to_node(client: redis.RedisCluster, replicas: int, key: str, *words: Any) -> RedisReply | Problem:
    """Do the same with the node of a cluster that has a key: redis-py sends no WAIT to the node of a script."""
    for _ in range(MAX_MOVES):
        try:
            return _send_and_wait(client.get_redis_connection(client.get_node_from_key(key)), replicas, *words)
        except redis.exceptions.MovedError:  # the node has run nothing
            client.nodes_manager.initialize()
        except redis.exceptions.AskError:  # as TRYAGAIN, which is what it is where some keys are still there
            break
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            with suppress(*ERRORS):  # perhaps a replica has been promoted: the next command goes there
                client.nodes_manager.initialize()
            raise
    return problem_of_reply("TRYAGAIN")


def open_blocking_store(redis_url: str, *, verify_tls: bool = True, replicas: int = 0) -> BlockingStore:
    """Return a store on the Redis at `redis_url` (see redis_url.py); raises InvalidRedisURL. Redis may be away.

    A write is done when `replicas` replicas have it.
    """
    address = parse_redis_url(redis_url, verify_tls=verify_tls)
    words = guarded_words if address.kind == "cluster" else evalsha_words
    return BlockingStore(lambda: blocking_client(address), words, replicas=replicas)
