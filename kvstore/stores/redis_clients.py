"""The clients of redis-py, made in this one place, and the limits that all stores share.

redis-py's defaults are never used. It sends a write again after a time-out, up to 10 times, and `Redis()` and `from_url()`
differ in this. So retries are off and time-outs are explicit, in every topology. Source: redis.Redis, redis.RedisCluster,
redis.Sentinel, redis.asyncio.
"""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.asyncio.sentinel import SentinelManagedConnection as AsyncSentinelManagedConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection as AsyncSentinelManagedSSLConnection
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from kvstore.core.redis_url import Address


@dataclass(frozen=True, slots=True)
class TimeOuts:
    """How long one request may wait for Redis, in seconds.

    `answer_s` bounds all of its commands together, waiting in a queue included; only an answer extends it, by the time that
    the answer took and by PROMPT_S at most. So a client hears within 6 s (docs/errors.md) that Redis is away, and a request of
    many commands goes on for as long as Redis answers each of them promptly.
    """

    queue_s: float  # until a command is sent: for a free connection, or for any connection at all
    connect_s: float  # to open one connection, the handshake included
    answer_s: float


# An answer that takes no longer costs the request nothing. Three of them, after 2 s in the queue of edits (edit_queue.py) and
# `answer_s`, still end within 6 s. Redis is held up by no script for more than 50 ms, so on a busy machine most are prompt.
PROMPT_S = 0.2

# A request that has waited 1 s for a connection fails while its client may still retry. Of the rest a new connection may take
# 1.5 s, and the answers have 1.5 s or more: Redis does not answer while it forks, which takes a second with many GiB.
BLOCKING = TimeOuts(queue_s=1.0, connect_s=1.5, answer_s=4.0)

# A request that was not sent within 1.5 s was not applied, and the client hears so; a Redis that restarts is back by then. No
# request waits for a connection as such: 3 s are for a handshake with TLS over a long distance.
PIPELINED = TimeOuts(queue_s=1.5, connect_s=3.0, answer_s=3.5)

# As for a single Redis, and half a second more in the queue: there it is as long as there are busy connections.
POOLED = TimeOuts(queue_s=2.0, connect_s=1.5, answer_s=3.5)

# After so long without use, the Sentinels are asked whether a connection goes to the primary: another may be in its place.
TRUSTED_S = 1.0

# What may wait for Redis in one event loop. At 10,000 commands a second, 20,000 are the work of 2 s.
MAX_WAITING = 20_000
MAX_WAITING_BYTES = 64 * 1024 * 1024

# Connections of one process, to one node. Heroku's smallest Redis has 20 in all, its smallest dyno two workers.
MAX_BLOCKING_CONNECTIONS = 8
MAX_POOLED_CONNECTIONS = 32

# Keeps redis-py from sending CLIENT SETINFO on every new connection. Before redis-py 7.2 the option had another name.
NO_SETINFO: dict[str, Any] = {"driver_info": None} if hasattr(redis, "driver_info") else {"lib_name": None, "lib_version": None}


# --- A deadline for each request of a thread ----------------------------------------------------------------------------

_request = threading.local()


@contextmanager
def waiting_until(deadline: float) -> Iterator[None]:
    """Let the clients of `blocking_client` wait until `deadline` (time.monotonic) for this thread, and no longer."""
    _request.deadline = deadline
    try:
        yield
    finally:
        del _request.deadline


def _left_s() -> float:
    deadline: float = getattr(_request, "deadline", None) or time.monotonic() + BLOCKING.answer_s
    return max(0.001, deadline - time.monotonic())  # 0 would mean: do not wait


class _Deadline:
    """A connection whose time-outs are those of the request that uses it. redis-py has them for the connection only."""

    _sock: Any
    socket_timeout: Any
    socket_connect_timeout: Any

    def _connect(self) -> Any:
        self.socket_timeout = _left_s()
        self.socket_connect_timeout = min(BLOCKING.connect_s, self.socket_timeout)
        return super()._connect()  # type: ignore[misc]  # of redis.Connection

    def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        if self._sock is not None:
            self._sock.settimeout(_left_s())
        super().send_packed_command(*arguments, **options)  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        if self._sock is not None:
            self._sock.settimeout(_left_s())
        return super().read_response(*arguments, **options)  # type: ignore[misc]


def _bounded(kind: Any) -> Any:
    """The same class of connections with the time-outs of _Deadline."""
    return type(kind.__name__, (_Deadline, kind), {})


# --- Primaries that were replaced ---------------------------------------------------------------------------------------


class _Trusted:
    """A connection to a primary behind Sentinels, for as long as it is used all the time; then they are asked again.

    A primary that hung, was replaced, and goes on, does not know that. Until a Sentinel tells it, it would take writes that are
    lost. redis-py closes the connections that are idle when it learns of another primary, and no others. While no Sentinel
    answers, a connection that is open stays.
    """

    host: str
    port: int
    connection_pool: Any
    _taken_at = float("-inf")  # from the pool, which calls connect() each time

    def _is_in_doubt(self, is_open: object) -> bool:
        before, self._taken_at = self._taken_at, time.monotonic()
        return bool(is_open) and self._taken_at >= before + TRUSTED_S

    def connect(self) -> Any:
        if self._is_in_doubt(self._sock):  # type: ignore[attr-defined]  # of redis.Connection, as what else is ignored here
            with suppress(redis.RedisError):
                if self.connection_pool.get_master_address() != (self.host, self.port):
                    self.disconnect()  # type: ignore[attr-defined]
        return super().connect()  # type: ignore[misc]


class _AsyncTrusted(_Trusted):
    """The same for an event loop."""

    async def connect(self) -> Any:
        if self._is_in_doubt(self.is_connected):  # type: ignore[attr-defined]
            with suppress(redis.RedisError):
                if await self.connection_pool.get_master_address() != (self.host, self.port):
                    await self.disconnect(nowait=True)  # type: ignore[attr-defined]
        return await super(_Trusted, self).connect()  # type: ignore[misc]


def _trusted(mixin: type[_Trusted], kind: Any) -> Any:
    """The same class of connections, trusted for a while."""
    return type(kind.__name__, (mixin, kind), {})


# --- Clients ------------------------------------------------------------------------------------------------------------


def blocking_client(address: Address) -> Any:
    """Return a client for threads; nothing is connected yet, but for a cluster. Raises what redis-py raises."""
    if address.kind == "fake":
        import fakeredis

        return fakeredis.FakeRedis(server=_fake_server())
    options = _options(address, BLOCKING) | {"retry": Retry(NoBackoff(), 0)}
    over_tcp = redis.SSLConnection if address.tls else redis.Connection
    if address.kind == "cluster":
        # With a URL redis-py lets us choose the class of the connections.
        (host, port), *_ = address.nodes
        options |= {"url": f"redis://{_url_host(host)}:{port}", "connection_class": _bounded(over_tcp)}
        # Without reinitialize_steps=0 every fifth MOVED closes all connections, with commands on them that others wait for.
        options["reinitialize_steps"] = 0
        return redis.RedisCluster(startup_nodes=[redis.cluster.ClusterNode(*node) for node in address.nodes], **options)
    if address.kind == "sentinel":
        sentinels = redis.Sentinel(address.nodes, sentinel_kwargs=_sentinel_options(address) | {"retry": Retry(NoBackoff(), 0)})
        managed = SentinelManagedSSLConnection if address.tls else SentinelManagedConnection
        return sentinels.master_for(address.primary, connection_class=_bounded(_trusted(_Trusted, managed)), **options)
    if address.path:
        kind: Any = redis.UnixDomainSocketConnection
        options["path"] = address.path
        del options["socket_connect_timeout"]
    else:
        kind = over_tcp
        options["host"], options["port"] = address.nodes[0]
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=_bounded(kind), **options))


def pooled_client(address: Address) -> Any:
    """Return a client for an event loop, of a primary behind Sentinels, or fakeredis; nothing is connected yet."""
    if address.kind == "fake":
        import fakeredis

        return fakeredis.FakeAsyncRedis(server=_fake_server())
    # Twice as many as we use: those that are being closed count too.
    options = _options(address, POOLED) | {"retry": AsyncRetry(NoBackoff(), 0), "max_connections": 2 * MAX_POOLED_CONNECTIONS}
    managed = AsyncSentinelManagedSSLConnection if address.tls else AsyncSentinelManagedConnection
    return _async_sentinels(address).master_for(address.primary, connection_class=_trusted(_AsyncTrusted, managed), **options)


async def close_pooled_client(client: Any) -> None:
    """Close a client, and what redis-py leaves open: connections to Sentinels."""
    await client.aclose()
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, AsyncSentinelConnectionPool):
        await _close_sentinels(pool.sentinel_manager)


async def primary_address(address: Address) -> Address:
    """Return the address of the single Redis that takes the commands; raises OSError."""
    if address.kind != "sentinel":
        return address
    sentinels = _async_sentinels(address)
    try:
        return address._replace(kind="single", nodes=(await sentinels.discover_master(address.primary),))
    except redis.RedisError as error:
        raise OSError(f"no Sentinel knows the primary: {error}") from error
    finally:
        await _close_sentinels(sentinels)


def tls_context(address: Address) -> ssl.SSLContext:
    """Return what verifies the certificate of the Redis at an address."""
    context = ssl.create_default_context(cafile=address.ca_file)
    if not address.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _options(address: Address, time_outs: TimeOuts) -> dict[str, Any]:
    """What all of redis-py's clients take."""
    options: dict[str, Any] = {
        "username": address.user or None,
        "password": address.password or None,
        "socket_connect_timeout": time_outs.connect_s,
        "socket_timeout": time_outs.answer_s,
        "protocol": 2,
        **NO_SETINFO,
    }
    if address.kind != "cluster":
        options["db"] = address.database
    if address.tls:
        reqs = ssl.CERT_REQUIRED if address.verify_tls else ssl.CERT_NONE
        options |= {"ssl_cert_reqs": reqs, "ssl_check_hostname": address.verify_tls, "ssl_ca_certs": address.ca_file}
    return options


def _sentinel_options(address: Address) -> dict[str, Any]:
    """What clients of the Sentinels take: all of them are asked, one after the other, in the time of one connection."""
    limit_s = BLOCKING.connect_s / len(address.nodes)
    return {"socket_connect_timeout": limit_s, "socket_timeout": limit_s}


def _async_sentinels(address: Address) -> Any:
    return redis.asyncio.Sentinel(
        address.nodes, sentinel_kwargs=_sentinel_options(address) | {"retry": AsyncRetry(NoBackoff(), 0)}
    )


async def _close_sentinels(sentinels: Any) -> None:
    for sentinel in sentinels.sentinels:
        await sentinel.aclose()


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@cache
def _fake_server() -> Any:
    """The memory that `fake://` means: one for each process, whichever stores of it use it."""
    import fakeredis

    return fakeredis.FakeServer()
