"""Problems: every way in which a request can fail, as the problem document that the client gets (RFC 9457).

A class is one rule that a request broke. Its name becomes the problem type, its docstring the title, `status` the HTTP
status. The `detail` of an instance says what happened and what to do. This module imports no HTTP library and no Redis
client.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, ClassVar

log = logging.getLogger("kvstore")


class Problem(Exception):
    """A request that failed.

    `detail` is a sentence for people. `members` are added to the problem document, `headers` to the response.
    Source: RFC 9457 section 3.
    """

    status: ClassVar[int] = 500

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    @classmethod
    def uri(cls) -> str:
        """Return the problem type: `urn:kvstore:` and the name of the class (RFC 9457 section 3.1.1)."""
        return "urn:kvstore:" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def title(cls) -> str:
        """Return the title: the rule in a few words, the same for every occurrence (RFC 9457 section 3.1.3)."""
        return (cls.__doc__ or "").partition(".")[0]

    def body(self) -> bytes:
        """Return the problem document as JSON text in UTF-8: `type`, `title`, `status`, `detail`, then `members`.

        A member that is bytes is already JSON text and is copied unchanged.
        """
        members = {
            "type": self.uri(),
            "title": self.title(),
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        texts = [_json(name) + b":" + (value if isinstance(value, bytes) else _json(value)) for name, value in members.items()]
        return b"{" + b",".join(texts) + b"}\n"


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class InvalidRequest(Problem):
    """The request is not well-formed HTTP."""

    status = 400


class InvalidPath(Problem):
    """The path is invalid."""

    status = 400


class InvalidParameter(Problem):
    """A query parameter is invalid."""

    status = 400


class InvalidPrecondition(Problem):
    """A precondition is invalid."""

    status = 400


class InvalidDocument(Problem):
    """The body is invalid."""

    status = 400


class InvalidPatch(Problem):
    """The patch is invalid."""

    status = 400


class InvalidTTL(Problem):
    """The TTL is invalid."""

    status = 400


class Unauthorized(Problem):
    """The request needs a valid token."""

    status = 401

    def __init__(self, detail: str, *, error: str = "", **members: Any) -> None:
        """`error` is that of a token that came and is refused, such as `invalid_token` (RFC 6750 section 3.1)."""
        super().__init__(detail, headers={"WWW-Authenticate": f'Bearer error="{error}"' if error else "Bearer"}, **members)


class Forbidden(Problem):
    """The rules do not permit this request."""

    status = 403


class OriginNotAllowed(Problem):
    """Web pages of this origin may not change anything."""

    status = 403


class NotFound(Problem):
    """Nothing is stored there."""

    status = 404


class MethodNotAllowed(Problem):
    """The method is not allowed for this path."""

    status = 405


class RequestTimeout(Problem):
    """The request did not arrive in time."""

    status = 408


class WrongType(Problem):
    """A Redis key has the wrong type."""

    status = 409


class AlreadyStored(Problem):
    """A document is stored there that no stream holds."""

    status = 409


class BatchRefused(Problem):
    """A request of the atomic batch was refused."""

    status = 409


class PatchFailed(Problem):
    """A test operation of the patch failed."""

    status = 409


class PreconditionFailed(Problem):
    """A precondition failed."""

    status = 412


class ContentTooLarge(Problem):
    """The content is too large."""

    status = 413


class PathTooLong(Problem):
    """The path is too long."""

    status = 414


class UnsupportedMediaType(Problem):
    """The format of the body is not supported."""

    status = 415


class PathNotThere(Problem):
    """The patch refers to a value that is not in the document."""

    status = 422


class NotAnInteger(Problem):
    """The increment has no 64-bit integer result."""

    status = 422


class NotInBatch(Problem):
    """The request cannot be part of this batch."""

    status = 422


class Leased(Problem):
    """The job is leased."""

    status = 409


class KeyReused(Problem):
    """The Idempotency-Key belongs to another request."""

    status = 422


class MisdirectedRequest(Problem):
    """The service does not answer for this host."""

    status = 421


class TooManyRequests(Problem):
    """This client has sent too many requests."""

    status = 429


class HeadersTooLarge(Problem):
    """The header fields are too large."""

    status = 431


class InternalError(Problem):
    """The server has a bug."""

    status = 500


class NotImplementedHere(Problem):
    """This part of HTTP is not implemented."""

    status = 501


class VersionNotSupported(Problem):
    """This version of HTTP is not supported."""

    status = 505


class StoreUnavailable(Problem):
    """The service is temporarily unavailable."""

    status = 503


class TooFewReplicas(Problem):
    """Too few replicas have confirmed the write in time."""

    status = 503


class StoreFull(Problem):
    """Redis is out of memory."""

    status = 507


# Every problem by the name of its class.
PROBLEMS: dict[str, type[Problem]] = {problem.__name__: problem for problem in Problem.__subclasses__()}

# The problem and its detail, by the first word of an error reply of Redis. Any other word means a bug of ours, or a Redis that
# we cannot use. It becomes StoreUnavailable with that word, never with the text behind it.
_REPLIES: dict[str, tuple[type[Problem], str]] = {
    "WRONGTYPE": (
        WrongType,
        "another Redis client stored a value of the wrong type under the key of this document, or under a key that its"
        " namespace needs; delete or rename that key",
    ),
    "OOM": (StoreFull, "Redis has reached its maxmemory; delete documents, or give it more memory. Nothing was changed"),
    "LOADING": (StoreUnavailable, "Redis is still loading its data; send the request again. Nothing was changed"),
    "BUSY": (StoreUnavailable, "Redis is busy with another script; send the request again. Nothing was changed"),
    "READONLY": (StoreUnavailable, "this Redis is a read-only replica; point REDIS_URL at the primary"),
    "MISCONF": (StoreUnavailable, "Redis cannot write its data to disk, so it refuses writes; see its log"),
    "CLUSTERDOWN": (StoreUnavailable, "the Redis cluster is down; send the request again. Nothing was changed"),
    "MASTERDOWN": (StoreUnavailable, "the Redis primary is down; send the request again. Nothing was changed"),
    "TRYAGAIN": (
        StoreUnavailable,
        "the Redis cluster is moving this namespace to another node; send the request again. Nothing was changed",
    ),
    "NOREPLICAS": (
        StoreUnavailable,
        "Redis has too few replicas to accept writes; send the request again. Nothing was changed",
    ),
    "NOAUTH": (StoreUnavailable, "Redis requires a password; add it to REDIS_URL"),
    "WRONGPASS": (StoreUnavailable, "Redis rejected the user name or password; correct REDIS_URL"),
    "NOPERM": (StoreUnavailable, "the Redis user may not run commands that kvstore needs; see Access in docs/data-layout.md"),
}

# Seconds after which a client may retry: we serve within 2 s of Redis's return.
RETRY_AFTER_S = "1"


# Part of the detail when no reply came to a write. A POST takes no If-Match, so only the key makes its retry safe.
UNKNOWN = (
    "it is unknown whether the request was applied; retry with the same Idempotency-Key, or, except for POST, the same If-Match"
)


def unavailable(detail: str) -> StoreUnavailable:
    """Return a 503 with Retry-After (RFC 9110 section 10.2.3)."""
    return StoreUnavailable(detail, headers={"Retry-After": RETRY_AFTER_S})


def problem_of_reply(text: str) -> Problem:
    """Return the problem for the text of an error reply of Redis, chosen by its first word.

    Source: https://redis.io/docs/latest/develop/reference/protocol-spec/
    """
    word = text.split(" ", 1)[0]
    if word not in _REPLIES:
        # Redis may quote arguments of the command, and stored values must not appear in the log.
        log.error("Redis refused a command: %s", re.split(r"[`'\"]", text)[0][:200])
        return unavailable(f"Redis returned the error {word!r}; see the log of this server")
    problem, detail = _REPLIES[word]
    return unavailable(detail) if problem is StoreUnavailable else problem(detail)


def problem_in(error: Exception) -> Problem:
    """Return the problem for an exception: itself, or InternalError. The traceback of a bug goes to the log only."""
    if isinstance(error, Problem):
        return error
    log.error("a request failed by a bug of ours", exc_info=error)
    return InternalError(f"the server has a bug, and its log says where; {UNKNOWN}")
