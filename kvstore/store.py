"""The blocking store: carries a command to Redis and its reply back, through redis-py. For Flask, the command line, workers.

No command is ever sent twice: redis-py's retries are off, in the constructor and not by its defaults, which differ from
one way of making a client to the next. The only second sending is EVAL after NOSCRIPT, which Redis answers instead of
running anything.
"""

import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kvstore.commands import Command
from kvstore.errors import Problem, problem_of_reply, unavailable

# A request waits for a connection of the pool, then for the connection to open, then for the answer: under 6 s together.
POOL_WAIT_S = 1.0
CONNECT_S = 1.5
ANSWER_S = 3.0
# Heroku's smallest Redis has 20 connections, its smallest dyno two workers.
MAX_CONNECTIONS = 8

UNKNOWN = "whether the request was applied is unknown; it is safe to send again with the same If-Match"

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
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.MasterDownError: "MASTERDOWN",
}


def problem_of(error: redis.RedisError) -> Problem:
    """The problem that an exception of redis-py is: 409, 503 or 507."""
    for kind, word in _WORDS.items():
        if isinstance(error, kind):
            return problem_of_reply(word)
    if isinstance(error, redis.exceptions.MaxConnectionsError):
        return unavailable("all connections to Redis are busy; send the request again. Nothing was changed")
    if isinstance(error, redis.TimeoutError):
        return unavailable(f"Redis did not answer in time; {UNKNOWN}")
    if isinstance(error, redis.ConnectionError):
        return unavailable(f"Redis cannot be reached, or closed the connection; {UNKNOWN}")
    return problem_of_reply(str(error))


class Store:
    """Executes commands on one Redis client; safe to share between threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._call: Callable[..., Any] = client.execute_command

    def execute(self, command: Command) -> Any:
        """The outcome of a command; raises Problem. Source: EVALSHA, EVAL."""
        keys, arguments = command.keys, command.arguments
        try:
            try:
                reply = self._call("EVALSHA", command.script.sha, len(keys), *keys, *arguments)
            except redis.exceptions.NoScriptError:
                reply = self._call("EVAL", command.script.text, len(keys), *keys, *arguments)
        except redis.RedisError as error:
            raise problem_of(error) from error
        return command.outcome(reply)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def open_store(redis_url: str, *, verify_tls: bool = True) -> Store:
    """A store on the Redis at `redis_url`; nothing is connected yet, and a Redis that is away is no error here.

    `fake://` is a Redis of fakeredis inside this process, which forgets everything at its end.
    """
    if redis_url.startswith("fake://"):
        import fakeredis

        return Store(fakeredis.FakeRedis(server=fakeredis.FakeServer()))
    options: dict[str, Any] = {}
    if urlsplit(redis_url).scheme == "rediss" and not verify_tls:
        options = {"ssl_cert_reqs": ssl.CERT_NONE, "ssl_check_hostname": False}
    pool = redis.BlockingConnectionPool.from_url(
        redis_url,
        max_connections=MAX_CONNECTIONS,
        timeout=POOL_WAIT_S,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=ANSWER_S,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        lib_name=None,
        lib_version=None,
        **options,
    )
    return Store(redis.Redis(connection_pool=pool))
