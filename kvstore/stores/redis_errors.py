"""What the clients of Redis raise, as the problem that it is: the one mapping, for every store.

Source: redis.exceptions, hiredis, https://redis.io/docs/latest/develop/reference/protocol-spec/ (simple errors).
"""

import re

import hiredis
import redis

from kvstore.core.errors import RETRY_AFTER_S, UNKNOWN, Problem, TooFewReplicas, problem_of_reply, unavailable

# What a command on a client may raise. redis-py derives several classes from Exception itself: RedisError, the errors of a
# cluster's client, and others, which differ from version to version.
ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(redis.exceptions).values() if isinstance(kind, type) and kind.__bases__ == (Exception,)),
    hiredis.HiredisError,
    OSError,
)
# The same on an event loop: uvloop and asyncio raise these where redis-py writes to a connection that was reset before.
LOOP_ERRORS: tuple[type[Exception], ...] = (*ERRORS, RuntimeError, AttributeError)

# redis-py takes the first word of an error reply away where it has a class for it. Subclasses come before their bases.
_WORDS: dict[type[redis.RedisError], str] = {
    redis.exceptions.AuthenticationWrongNumberOfArgsError: "WRONGPASS",
    redis.exceptions.AuthenticationError: "WRONGPASS",
    redis.exceptions.AuthorizationError: "NOPERM",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.TryAgainError: "TRYAGAIN",
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
}

UNCHANGED = "Nothing was changed"  # how the detail of a problem ends where that is known


def problem_of(error: BaseException) -> Problem:
    """Return the problem for what a client raised: 409, 503 or 507, "unknown" where Redis may have run the command."""
    text = str(error)
    if isinstance(error, hiredis.ReplyError):
        return problem_of_reply(text)
    if re.search("Authentication required|unauthenticated", text):  # the second is of commands with many arguments
        return problem_of_reply("NOAUTH")
    for kind, word in _WORDS.items():
        if isinstance(error, kind):
            return problem_of_reply(word)
    if isinstance(error, redis.exceptions.ClusterError) and text.startswith("TTL exhausted"):  # redis-py's tries, all refused
        return problem_of_reply("TRYAGAIN")
    if isinstance(error, redis.exceptions.MaxConnectionsError):
        return all_busy()
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return no_answer()
    if isinstance(error, redis.ResponseError):
        return problem_of_reply(text if re.match(r"[A-Z]+(?: |$)", text) else f"ERR {text}")
    return unavailable(f"Redis cannot be reached, or closed the connection; {UNKNOWN}")


def no_answer() -> Problem:
    """Return the problem of a command that was sent and not answered in time."""
    return unavailable(f"Redis did not answer in time; {UNKNOWN}")


def too_few_replicas(count: int, wanted: int) -> Problem:
    """Return the problem of a write that the primary has executed, and `count` replicas have confirmed."""
    return TooFewReplicas(
        f"{count} of {wanted} replicas have confirmed the write in time; {UNKNOWN}", headers={"Retry-After": RETRY_AFTER_S}
    )


def all_busy() -> Problem:
    """Return the problem of a command that was not sent, since no connection was free in time."""
    return unavailable(f"all connections to Redis are busy; send the request again. {UNCHANGED}")


def too_many_waiting() -> Problem:
    """Return the problem of a command that was not sent, since too many others wait."""
    return unavailable(f"more requests wait for Redis than this server holds; send it again. {UNCHANGED}")


def as_unknown(problem: Problem) -> Problem:
    """Return the problem of a request whose earlier commands may have been applied: "unknown", and a 5xx."""
    if UNKNOWN in problem.detail:
        return problem
    detail = re.sub(rf"[.;] {UNCHANGED}$", "", problem.detail, flags=re.IGNORECASE) + f"; {UNKNOWN}"
    if problem.status < 500:  # a 4xx would mean that nothing was applied
        return unavailable(detail)
    return type(problem)(detail, headers=problem.headers, **problem.members)
