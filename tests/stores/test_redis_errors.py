"""Whatever a client of Redis raises, and whatever Redis answers, is a problem: never a 500, and never with Redis's own text."""

import asyncio
import ssl
from typing import Any

import hiredis
import pytest
import redis

from kvstore.commands.documents import Get
from kvstore.core.errors import UNKNOWN, NotFound, Problem, StoreFull, StoreUnavailable, problem_of_reply, unavailable
from kvstore.core.paths import parse_path
from kvstore.stores.blocking import BlockingStore
from kvstore.stores.pooled import PooledStore
from kvstore.stores.redis_errors import UNCHANGED, as_unknown, problem_of

SECRET = "what is 'stored'"


def raised_by(module: Any) -> list[type[Exception]]:
    """The exceptions that a module defines."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return [kind for kind in kinds if kind.__module__ == module.__name__]


OF_THE_SYSTEM = [TimeoutError, ConnectionResetError, BrokenPipeError, ssl.SSLError, OSError]
EXCEPTIONS = [*raised_by(redis.exceptions), *raised_by(hiredis), *OF_THE_SYSTEM]
MOVED = "0 127.0.0.1:7001"  # what a MovedError or an AskError is made of

# What says that Redis has run nothing: the command was not sent, or Redis has refused it.
UNSENT = {
    "MaxConnectionsError", "OutOfMemoryError", "BusyLoadingError", "MasterDownError", "ClusterDownError",
    "TryAgainError",
}  # fmt: skip


def make(kind: type[Exception]) -> Exception:
    return kind(MOVED if issubclass(kind, redis.exceptions.AskError) else SECRET)


def test_all_are_found() -> None:
    """The lists are not empty where a library has moved its exceptions."""
    assert redis.exceptions.MasterDownError in EXCEPTIONS
    assert redis.exceptions.RedisClusterException in EXCEPTIONS
    assert hiredis.ProtocolError in EXCEPTIONS


@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception(kind: type[Exception]) -> None:
    """It is a problem, which says that nothing was changed only where that is known."""
    problem = problem_of(make(kind))
    assert problem.status in (409, 503, 507)
    assert problem.status != 503 or "Retry-After" in problem.headers
    assert SECRET not in problem.detail
    assert (UNCHANGED in problem.detail) == (kind.__name__ in UNSENT)


def blocking(error: Exception) -> None:
    """The store for threads, whose client raises this."""

    class Client:
        def execute_command(self, *_: object) -> None:
            raise error

    BlockingStore(Client).execute(Get(parse_path(b"/ns/a")))


def pooled(error: Exception) -> None:
    """The store for event loops, whose client raises this."""

    class Client:
        async def execute_command(self, *_: object) -> None:
            raise error

    async def execute() -> None:
        await PooledStore(Client).execute(Get(parse_path(b"/ns/a")))

    asyncio.run(execute())


@pytest.mark.parametrize("execute", [blocking, pooled])
@pytest.mark.parametrize("kind", EXCEPTIONS, ids=lambda kind: kind.__name__)
def test_every_exception_in_a_store(kind: type[Exception], execute: Any) -> None:
    """A store raises the problem, whatever its client raised."""
    error = make(kind)
    with pytest.raises(Problem) as caught:
        execute(error)
    assert caught.value.detail == problem_of(error).detail


def test_a_replica_without_its_primary_is_no_cluster() -> None:
    """redis-py derives the one error from the other."""
    assert problem_of(redis.exceptions.MasterDownError("it is down")).detail == problem_of_reply("MASTERDOWN").detail


# An error reply, and the status that it is.
REPLIES = [
    ("WRONGTYPE Operation against a key holding the wrong kind of value", 409),
    ("OOM command not allowed when used memory > 'maxmemory'.", 507),
    ("LOADING Redis is loading the dataset in memory", 503),
    ("BUSY Redis is busy running a script.", 503),
    ("READONLY You can't write against a read only replica.", 503),
    ("MISCONF Redis is configured to save RDB snapshots", 503),
    ("NOAUTH Authentication required.", 503),
    ("WRONGPASS invalid username-password pair", 503),
    ("NOPERM this user has no permissions", 503),
    ("CLUSTERDOWN Hash slot not served", 503),
    ("MASTERDOWN Link with MASTER is down", 503),
    ("TRYAGAIN Multiple keys request during rehashing of slot", 503),
    ("NOREPLICAS Not enough good replicas to write.", 503),
    ("ERR unknown command 'EVALSHA', with args beginning with: 'secret'", 503),
    ("MOVED 0 127.0.0.1:7001", 503),
    ("", 503),
]


@pytest.mark.parametrize(("text", "status"), REPLIES)
def test_every_error_reply(text: str, status: int) -> None:
    """What Redis says is a problem, the same by either library, and never repeats Redis's text: it may hold what is stored."""
    problem = problem_of_reply(text)
    assert problem.status == status
    assert "secret" not in problem.detail
    assert status != 503 or "Retry-After" in problem.headers
    assert problem_of(hiredis.ReplyError(text)).detail == problem.detail


@pytest.mark.parametrize(("text", "status"), REPLIES)
def test_an_error_reply_to_a_later_command(text: str, status: int) -> None:
    """Those before it may have been applied, so it is unknown, and no 4xx."""
    problem = as_unknown(problem_of_reply(text))
    assert problem.status == (503 if status < 500 else status)
    assert problem.detail.endswith(UNKNOWN)
    assert UNCHANGED.lower() not in problem.detail.lower()
    assert problem.status != 503 or "Retry-After" in problem.headers


def test_what_is_unknown_is_said_once() -> None:
    """The rest of a problem stays as it is."""
    unknown = unavailable(f"it was cut; {UNKNOWN}")
    assert as_unknown(unknown) is unknown
    full = as_unknown(StoreFull("it is full. Nothing was changed", used=1))
    assert (type(full), full.detail, full.members) == (StoreFull, f"it is full; {UNKNOWN}", {"used": 1})
    assert isinstance(as_unknown(NotFound("it is gone")), StoreUnavailable)
