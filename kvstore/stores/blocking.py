"""The blocking store: carries a command to Redis and its reply back, through redis-py. For Flask, the command line, workers.

No command is ever sent twice: redis-py's retries are off, in the constructor and not by its defaults, which differ from
one way of making a client to the next. The only second sending is EVAL after NOSCRIPT, which Redis answers instead of
running anything.
"""

import re
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kvstore.commands.base import Again, Command, Outcome, RedisReply
from kvstore.core.errors import UNKNOWN, Problem, problem_of_reply, unavailable
from kvstore.core.paths import Path, own_key
from kvstore.core.redis_url import Address, parse_redis_url

# A request waits for its turn, then for the connection to open, then for the answer: under 6 s together.
TURN_S = 1.0
CONNECT_S = 1.5
ANSWER_S = 3.0
BLOCK_S = 2.0  # of one blocking command: less than an answer may take
# Heroku's smallest Redis has 20 connections, its smallest dyno two workers.
MAX_CONNECTIONS = 8

# Keeps redis-py from sending CLIENT SETINFO on every new connection. Before redis-py 7.2 the option had another name.
NO_SETINFO: dict[str, Any] = {"driver_info": None} if hasattr(redis, "driver_info") else {"lib_name": None, "lib_version": None}

# redis-py takes the first word of an error reply away where it has a class for it.
_WORDS: dict[type[redis.RedisError], str] = {
    redis.exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    redis.exceptions.AuthenticationError: "WRONGPASS",
    redis.exceptions.AuthorizationError: "NOPERM",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.TryAgainError: "TRYAGAIN",
    redis.exceptions.MasterDownError: "MASTERDOWN",  # before the class that it is made of
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
}


# Everything redis-py raises: its cluster client's errors are no RedisError.
ERRORS = (redis.RedisError, redis.exceptions.RedisClusterException)


def problem_of(error: Exception) -> Problem:
    """The problem that an exception of redis-py is: 409, 503 or 507."""
    if re.search("Authentication required|unauthenticated", str(error)):  # the second is of commands with many arguments
        return problem_of_reply("NOAUTH")
    for kind, word in _WORDS.items():
        if isinstance(error, kind):
            return problem_of_reply(word)
    if isinstance(error, redis.exceptions.MaxConnectionsError):
        return _busy()
    if isinstance(error, redis.TimeoutError):
        return unavailable(f"Redis did not answer in time; {UNKNOWN}")
    if isinstance(error, redis.ConnectionError | redis.exceptions.RedisClusterException):
        return unavailable(f"Redis cannot be reached, or closed the connection; {UNKNOWN}")
    text = str(error)
    return problem_of_reply(text if re.match(r"[A-Z]+(?: |$)", text) else f"ERR {text}")


def _busy() -> Problem:
    return unavailable("all connections to Redis are busy; send the request again. Nothing was changed")


class _Turns:
    """So many at a time, the others as they came: with threading.Semaphore whoever has just had one is first again."""

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
        """Wait no longer; whether it was still waiting, and not handed its turn just now."""
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


class BlockingStore:
    """Executes commands through a client of redis-py, which `connect` makes at the first; safe to share between threads."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client: Any = None
        self._lock = threading.Lock()
        # redis-py's own bound is one for each node, and where it is reached a cluster's client and Sentinel's do not wait.
        self._turns = _Turns(MAX_CONNECTIONS)

    def execute(self, command: Command[Outcome]) -> Outcome:
        """The outcome of a command; raises Problem. Source: EVALSHA, EVAL."""
        while True:
            outcome = command.outcome(self._reply(command))
            if not isinstance(outcome, Again):
                return outcome
            command = outcome.command

    def _reply(self, command: Command[object]) -> RedisReply:
        keys, arguments = command.keys, command.arguments
        try:
            with self._turn() as client:
                try:
                    return client.execute_command("EVALSHA", command.script.sha, len(keys), *keys, *arguments)
                except redis.exceptions.NoScriptError:
                    return client.execute_command("EVAL", command.script.text, len(keys), *keys, *arguments)
        except ERRORS as error:
            raise problem_of(error) from error

    def wait(self, path: Path, positions: tuple[str, str], timeout_s: float) -> None:
        """Wait until the change log of a path's namespace, or what is freed there, has grown past these places (jobs.Taken).

        Returns after `timeout_s` all the same; raises Problem. Source: XREAD.
        """
        streams = dict(zip((path.keys.log, own_key(path, "released")), positions, strict=True))
        deadline = time.monotonic() + timeout_s
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                block_ms = max(1, int(1000 * min(left_s, BLOCK_S)))
                with self._turn() as client:
                    if client.xread(streams, count=1, block=block_ms):
                        return
        except ERRORS as error:
            raise problem_of(error) from error

    def close(self) -> None:
        """Close the connections."""
        if self._client:
            self._client.close()

    @contextmanager
    def _turn(self) -> Iterator[Any]:
        """The client, for one command."""
        if not self._turns.acquire(TURN_S):
            raise _busy()
        try:
            yield self._client or self._open()
        finally:
            self._turns.release()

    def _open(self) -> Any:
        if not self._lock.acquire(timeout=TURN_S):  # a cluster's client asks for its nodes first
            raise _busy()
        try:
            if self._client is None:
                self._client = self._connect()
            return self._client
        finally:
            self._lock.release()


def open_blocking_store(redis_url: str, *, verify_tls: bool = True) -> BlockingStore:
    """A store on the Redis at `redis_url` (see redis_url.py); a Redis that is away is no error here."""
    address = parse_redis_url(redis_url, verify_tls=verify_tls)
    if address.kind == "fake":
        import fakeredis

        return BlockingStore(lambda: fakeredis.FakeRedis(server=fakeredis.FakeServer()))
    return BlockingStore(lambda: _client(address))


def client_options(address: Address) -> dict[str, Any]:
    """What redis-py's clients take, blocking and asyncio, single, Sentinel and cluster alike."""
    options: dict[str, Any] = {
        "username": address.user or None,
        "password": address.password or None,
        "socket_connect_timeout": CONNECT_S,
        "socket_timeout": ANSWER_S,
        "protocol": 2,
        **NO_SETINFO,
    }
    if address.kind != "cluster":
        options["db"] = address.database
    if address.tls:
        reqs = ssl.CERT_REQUIRED if address.verify_tls else ssl.CERT_NONE
        options |= {"ssl_cert_reqs": reqs, "ssl_check_hostname": address.verify_tls, "ssl_ca_certs": address.ca_file}
    return options


def sentinel_options(address: Address) -> dict[str, Any]:
    """What redis-py's clients of the Sentinels take: they are asked one after the other, all in the time of one connection."""
    limit_s = CONNECT_S / len(address.nodes)
    return {"socket_connect_timeout": limit_s, "socket_timeout": limit_s}


def _client(address: Address) -> Any:
    options = client_options(address) | {"retry": Retry(NoBackoff(), 0)}
    if address.kind == "cluster":
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.nodes]
        # Else every fifth MOVED would close all connections, those on which other threads wait among them.
        return redis.RedisCluster(startup_nodes=nodes, ssl=address.tls, reinitialize_steps=0, **options)
    if address.kind == "sentinel":
        of_sentinels = sentinel_options(address) | {"retry": Retry(NoBackoff(), 0)}
        sentinel = redis.Sentinel(address.nodes, sentinel_kwargs=of_sentinels)
        return sentinel.master_for(address.primary, ssl=address.tls, **options)
    if address.path:
        kind: Any = redis.UnixDomainSocketConnection
        options["path"] = address.path
        del options["socket_connect_timeout"]
    else:
        kind = redis.SSLConnection if address.tls else redis.Connection
        options["host"], options["port"] = address.nodes[0]
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=kind, **options))
