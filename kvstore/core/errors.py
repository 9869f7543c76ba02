"""Every way a request can fail, and the problem document it becomes (RFC 9457).

A class is one rule that was broken: its docstring is the title a client reads, `status` the HTTP status. The `detail` that
an instance carries is a sentence that says what to do. Nothing here knows HTTP libraries or Redis.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, ClassVar

log = logging.getLogger("kvstore")


class Problem(Exception):
    """A request that failed.

    `detail` is a sentence for a person; `members` go into the problem document beside the standard ones; `headers` go on
    the reply. Source: RFC 9457 section 3.
    """

    status: ClassVar[int] = 500

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    @classmethod
    def uri(cls) -> str:
        """The problem type: `urn:kvstore:` and the rule's name (RFC 9457 section 3.1.1)."""
        return "urn:kvstore:" + re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()

    @classmethod
    def title(cls) -> str:
        """The rule in a few words, the same for every occurrence (RFC 9457 section 3.1.3)."""
        return (cls.__doc__ or "").partition(".")[0]

    def body(self) -> bytes:
        """The problem document as JSON text, UTF-8: `type`, `title`, `status`, `detail`, then this problem's own members.

        A member that is bytes is JSON text already, and stays as it is.
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
    """The path is not one we accept."""

    status = 400


class InvalidParameter(Problem):
    """A query parameter has a value we do not accept."""

    status = 400


class InvalidPrecondition(Problem):
    """A precondition header cannot be read."""

    status = 400


class InvalidDocument(Problem):
    """The body is not JSON that we store."""

    status = 400


class InvalidPatch(Problem):
    """The patch is not one that can be applied to anything."""

    status = 400


class InvalidTTL(Problem):
    """The TTL is not one we accept."""

    status = 400


class OriginNotAllowed(Problem):
    """The page is of an origin that may change nothing here."""

    status = 403


class NotFound(Problem):
    """Nothing is stored there."""

    status = 404


class MethodNotAllowed(Problem):
    """The method is not allowed there."""

    status = 405


class RequestTimeout(Problem):
    """The request did not arrive in time."""

    status = 408


class WrongType(Problem):
    """The Redis key holds another type than ours."""

    status = 409


class AlreadyStored(Problem):
    """A document is there that no stream holds."""

    status = 409


class BatchRefused(Problem):
    """A request of the atomic batch was refused."""

    status = 409


class PatchFailed(Problem):
    """A test of the patch failed."""

    status = 409


class PreconditionFailed(Problem):
    """A precondition failed."""

    status = 412


class ContentTooLarge(Problem):
    """The body is larger than we store."""

    status = 413


class PathTooLong(Problem):
    """The path is longer than we accept."""

    status = 414


class UnsupportedMediaType(Problem):
    """The body is in a format we do not read."""

    status = 415


class PathNotThere(Problem):
    """The patch names something that is not in the document."""

    status = 422


class NotAnInteger(Problem):
    """What should be incremented is not an integer of 64 bits, or would be none."""

    status = 422


class NotInBatch(Problem):
    """That request cannot be part of this batch."""

    status = 422


class Leased(Problem):
    """Somebody has taken this job."""

    status = 409


class KeyReused(Problem):
    """The Idempotency-Key belongs to another request."""

    status = 422


class HeadersTooLarge(Problem):
    """The header fields are larger than we accept."""

    status = 431


class InternalError(Problem):
    """We have a bug."""

    status = 500


class NotImplementedHere(Problem):
    """We do not implement that part of HTTP."""

    status = 501


class VersionNotSupported(Problem):
    """We do not speak that version of HTTP."""

    status = 505


class StoreUnavailable(Problem):
    """Redis does not answer."""

    status = 503


class StoreFull(Problem):
    """Redis has no memory left."""

    status = 507


# Every problem by its name.
PROBLEMS: dict[str, type[Problem]] = {problem.__name__: problem for problem in Problem.__subclasses__()}

# How the first word of an error reply of Redis reads, as the rule that was broken. What is not here is a bug of ours, or a
# Redis that we cannot work with, and becomes StoreUnavailable with Redis's own first word, never its text.
_REPLIES: dict[str, tuple[type[Problem], str]] = {
    "WRONGTYPE": (
        WrongType,
        "another Redis client stored something that is not a hash under this document's key, or under a key that its"
        " namespace needs; delete or rename that key",
    ),
    "OOM": (StoreFull, "Redis is at its maxmemory; delete documents or give it more memory. Nothing was changed"),
    "LOADING": (StoreUnavailable, "Redis is still loading its data; send the request again. Nothing was changed"),
    "BUSY": (StoreUnavailable, "Redis is busy with another script; send the request again. Nothing was changed"),
    "READONLY": (StoreUnavailable, "this Redis is a read-only replica; point REDIS_URL at the primary"),
    "MISCONF": (StoreUnavailable, "Redis cannot write its data to disk and refuses writes; look at its log"),
    "CLUSTERDOWN": (StoreUnavailable, "the Redis cluster is down; send the request again. Nothing was changed"),
    "MASTERDOWN": (StoreUnavailable, "the Redis primary is down; send the request again. Nothing was changed"),
    "TRYAGAIN": (StoreUnavailable, "the Redis cluster is moving this namespace; send the request again"),
    "NOREPLICAS": (StoreUnavailable, "Redis has too few replicas to write; send the request again"),
    "NOAUTH": (StoreUnavailable, "Redis wants a password; put it into REDIS_URL"),
    "WRONGPASS": (StoreUnavailable, "Redis refuses our user name or password; correct REDIS_URL"),
    "NOPERM": (StoreUnavailable, "Redis does not permit our user the commands we need; see the README on ACLs"),
}

# Seconds after which a client may ask again: we serve within 2 s of Redis's return.
RETRY_AFTER_S = "1"


# What is said of a write whose answer did not come.
UNKNOWN = "whether the request was applied is unknown; it is safe to send again with the same If-Match"


def unavailable(detail: str) -> StoreUnavailable:
    """A 503 that says when to ask again (RFC 9110 section 10.2.3)."""
    return StoreUnavailable(detail, headers={"Retry-After": RETRY_AFTER_S})


def problem_of_reply(text: str) -> Problem:
    """The problem that an error reply of Redis is, by its first word (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    word = text.split(" ", 1)[0]
    if word not in _REPLIES:
        # Behind a quote Redis may repeat arguments, and what is stored stays out of the log.
        log.error("Redis refused a command: %s", re.split(r"[`'\"]", text)[0][:200])
        return unavailable(f"Redis answered with the error {word!r}; look at the log of this server")
    problem, detail = _REPLIES[word]
    return unavailable(detail) if problem is StoreUnavailable else problem(detail)


def problem_in(error: Exception) -> Problem:
    """The problem that a request ends with: the exception, or else that we have a bug, whose traceback is in the log only."""
    if isinstance(error, Problem):
        return error
    log.error("a request failed by a bug of ours", exc_info=error)
    return InternalError("this server has a bug, and its log says where; whether the request was applied is unknown")
