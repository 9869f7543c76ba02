"""The stores for one event loop that go through redis-py: a cluster, a primary behind Sentinel, and fakeredis.

What one connection and one write a turn give, `pipelined.py`, is for a single Redis. Here a command takes a connection of its
own for as long as it runs; the rules are the same: nothing is sent twice, and a client has its answer within 6 s.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from kvstore.commands.base import Again, Command, Outcome, RedisReply
from kvstore.core.errors import UNKNOWN, unavailable
from kvstore.core.redis_url import Address, parse_redis_url
from kvstore.stores.blocking import ERRORS, client_options, problem_of, sentinel_options
from kvstore.stores.pipelined import AsyncStore, PipelinedStore
from kvstore.stores.redis_connection import Context, Done

MAX_CONNECTIONS = 32  # to each node
ANSWER_S = 5.0  # the turn of a command, waiting for a connection included


class PooledStore:
    """A store on a client of redis.asyncio, which `connect` makes at the first command."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._client: Any = None
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """As PipelinedStore.submit."""
        task = asyncio.get_running_loop().create_task(self._submit(command, done, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        outcome: Outcome | Exception
        try:
            outcome = await self.execute(command)
        except Exception as error:
            outcome = error
        done(context, outcome)

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """The outcome of a command; raises Problem. Source: EVALSHA, EVAL."""
        while True:
            outcome = command.outcome(await self._reply(command))
            if not isinstance(outcome, Again):
                return outcome
            command = outcome.command

    async def _reply(self, command: Command[object]) -> RedisReply:
        keys, arguments = command.keys, command.arguments
        try:
            async with asyncio.timeout(ANSWER_S), self._turns:
                if self._client is None:
                    self._client = self._connect()
                call: Callable[..., Awaitable[Any]] = self._client.execute_command
                try:
                    return await call("EVALSHA", command.script.sha, len(keys), *keys, *arguments)
                except redis.exceptions.NoScriptError:
                    return await call("EVAL", command.script.text, len(keys), *keys, *arguments)
        except TimeoutError:
            raise unavailable(f"Redis did not answer in time; {UNKNOWN}") from None
        except ERRORS as error:
            raise problem_of(error) from error
        except (RuntimeError, AttributeError) as error:  # uvloop's and asyncio's word for a connection that was reset before
            raise problem_of(redis.ConnectionError()) from error

    async def close(self) -> None:
        """Wait for what runs and close the connections."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            pool = getattr(self._client, "connection_pool", None)
            if isinstance(pool, redis.asyncio.SentinelConnectionPool):
                await close_sentinels(pool.sentinel_manager)


def open_async_store(redis_url: str, *, verify_tls: bool = True) -> AsyncStore:
    """A store on the Redis at `redis_url` (see redis_url.py), for the running event loop; nothing is connected yet."""
    address = parse_redis_url(redis_url, verify_tls=verify_tls)
    if address.kind == "single":
        return PipelinedStore(address)
    if address.kind == "fake":
        from fakeredis import FakeAsyncRedis, FakeServer

        return PooledStore(lambda: FakeAsyncRedis(server=FakeServer()))
    return PooledStore(lambda: _client(address))


def sentinels(address: Address) -> Any:
    """redis-py's client of the Sentinels at an address."""
    return redis.asyncio.Sentinel(address.nodes, sentinel_kwargs=sentinel_options(address) | {"retry": Retry(NoBackoff(), 0)})


async def close_sentinels(client: Any) -> None:
    """Close the connections to the Sentinels, which redis-py leaves open."""
    for sentinel in client.sentinels:
        await sentinel.aclose()


def _client(address: Address) -> Any:
    options = client_options(address) | {"retry": Retry(NoBackoff(), 0), "max_connections": 2 * MAX_CONNECTIONS}
    if address.kind == "cluster":
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.nodes]
        # Else every fifth MOVED would close all connections, with commands on them that others wait for.
        return redis.asyncio.RedisCluster(startup_nodes=nodes, ssl=address.tls, reinitialize_steps=0, **options)
    return sentinels(address).master_for(address.primary, ssl=address.tls, **options)


async def primary_address(address: Address) -> Address:
    """The address of the single Redis that commands go to; raises OSError."""
    if address.kind != "sentinel":
        return address
    client = sentinels(address)
    try:
        return address._replace(kind="single", nodes=(await client.discover_master(address.primary),))
    except redis.RedisError as error:
        raise OSError(f"no Sentinel knows the primary: {error}") from error
    finally:
        await close_sentinels(client)
