"""Commands on a queue: take, renew, release, finish, move dead jobs.

A queue is a container, and a job is a document directly below it. Our own field of the job's hash holds its mark: how often it
was taken, when it can be taken again, and its lease. While a job is leased, its lease replaces the entity-tag in If-Match.
"""

import json
import re
from typing import NamedTuple
from urllib.parse import quote, unquote

from kvstore.commands.base import (
    MAX_PAGE_BYTES,
    Again,
    Arguments,
    Failed,
    Found,
    Later,
    Missing,
    RedisReply,
    Turns,
    below,
    each_read,
    found_in,
    in_turns,
    refused,
    registered,
    settled,
)
from kvstore.commands.documents import Put
from kvstore.commands.rights import Right, Touches, changes, everything_below
from kvstore.commands.scripts import (
    CHANGE_LEASE,
    FINISH_AND_TAKE,
    MOVE_DEAD_JOBS,
    MOVE_JOB,
    READ,
    TAKE,
    Script,
)
from kvstore.core.codec import META, OBJECT, Encoded
from kvstore.core.errors import InvalidPath, PathTooLong
from kvstore.core.paths import Path, parse_path
from kvstore.core.preconditions import NONE
from kvstore.core.server_values import TIMESTAMP

_JOB_MARK = re.compile(rb"job (\d+)(?:/\d+)? (\d+) (\S+) (\S+)\n")


class JobMark(NamedTuple):
    """The state of a document as a job: see read_mark in lua/_jobs.lua. `lease` and `reason` are "" for none."""

    attempts: int
    ready_at_ms: int
    lease: str
    reason: str

    def state(self, now_ms: int) -> str:
        """Return `ready`, `leased` or `delayed`."""
        if self.ready_at_ms <= now_ms:
            return "ready"
        return "leased" if self.lease else "delayed"


UNMARKED = JobMark(0, 0, "", "")


def read_mark(fields: list[bytes]) -> JobMark:
    """Return the mark in a document's hash, given as field, value, field, value…"""
    mark = _JOB_MARK.match(fields[fields.index(META) + 1]) if META in fields[::2] else None
    if not mark:
        return UNMARKED
    lease, reason = ("" if part == b"-" else part.decode() for part in (mark[3], mark[4]))
    return JobMark(int(mark[1]), int(mark[2]), lease, unquote(reason))


DEAD = "dead/"  # the container of dead jobs, below the queue
MAX_REASON_BYTES = 1000
DEFAULT_ATTEMPTS = 5  # takes after which a job is dead of which no take has named a number
MAX_ATTEMPTS = 1000  # that a take may name: one that is never dead would run for ever
MAX_LEASE_S = 12 * 3600  # as in SQS: whoever needs longer extends it, and so says that he lives
_DEAD_SHAPE = OBJECT + b' ["value","reason","attempts","died"]'


class Job(NamedTuple):
    """A job that was taken. `attempts` counts this take; `reason` is why it was given back the last time, "" for no reason."""

    path: Path
    document: Found
    attempts: int
    lease: str
    reason: str


class Taken(NamedTuple):
    """The jobs that were taken.

    If there are none, `ready_in_ms` is when a lease or a delay may end (None: there is none), and `positions` are those in the
    change log, and in the stream of released jobs, after which there may be a job.
    """

    jobs: list[Job]
    ready_in_ms: int | None = None
    positions: tuple[str, str] = ("", "")


class LeaseChanged(NamedTuple):
    """A job whose lease was changed; `lease` is None if the job was given back."""

    path: Path
    lease: str | None
    document: Found


class Finished(NamedTuple):
    """The job was deleted, and its result stored."""


class Lost(NamedTuple):
    """The job is gone, or another worker has taken it since. Nothing was changed."""


class JobSeen(NamedTuple):
    """The mark of a job, and whether the job is leased."""

    mark: JobMark
    is_leased: bool


class Take(NamedTuple):
    """Take up to `limit` jobs for `lease_ms`: Taken. A job that was taken `max_attempts` times is dead, and is moved first.

    `max_attempts` counts if no other take of the job has named more; None names none.
    A take that Redis does in several steps goes on at `low`. `positions` are those of the first step: a job may since have come
    to what the take has passed.
    """

    container: Path
    lease_ms: int
    limit: int
    max_attempts: int | None
    log_length: int
    low: str = ""
    positions: tuple[str, str] | None = None
    script: Script[Taken] = TAKE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def touches(self) -> Touches:
        return everything_below(self.container, Right.WRITE, Right.READ)

    @property
    def arguments(self) -> Arguments:
        most = "" if self.max_attempts is None else self.max_attempts
        return (*below(self.container), self.lease_ms, self.limit, most, MAX_PAGE_BYTES, self.low, DEFAULT_ATTEMPTS)

    def outcome(self, reply: RedisReply) -> Taken | Again[Taken] | Later[Taken]:
        if reply[0] in (b"more", b"none"):
            positions = self.positions or (reply[2].decode(), reply[3].decode())
            if reply[0] == b"more":
                return Again(self._replace(low=reply[1].decode(), positions=positions), has_written=False)
            return Taken([], reply[1], positions)
        return in_turns(self._taken(reply))

    def _taken(self, reply: RedisReply) -> Turns[Taken | Again[Taken]]:
        jobs = yield from each_read(reply[1], lambda job: self._job(*job))
        return Again(MoveDeadJobs(self, jobs)) if reply[0] == b"dead" else Taken(jobs)

    def _job(self, name: bytes, found: RedisReply, attempts: int, lease: bytes, reason: bytes) -> Job:
        last = name.decode().rpartition("/")[2]
        path = parse_path((self.container.text + last).encode())
        return Job(path, found_in(found), attempts, lease.decode(), "" if reason == b"-" else unquote(reason.decode()))


class MoveDeadJobs(NamedTuple):
    """Move dead jobs to the container of dead jobs, then take again. A dead job keeps its expiry."""

    take: Take
    jobs: list[Job]
    script: Script[Taken] = MOVE_DEAD_JOBS

    @property
    def keys(self) -> tuple[str, ...]:
        return self.take.keys

    @property
    def arguments(self) -> Arguments:
        moves = [self._move(job) for job in self.jobs]
        return tuple(argument for move in moves for argument in (len(move), *move))

    def _move(self, job: Job) -> Arguments:
        reason = job.reason or f"taken {job.attempts} times, and never done"
        fields = [b"value", job.document.text, b"reason", json.dumps(reason).encode()]
        fields += [b"attempts", b"%d" % job.attempts, b"died", TIMESTAMP]
        dead = Encoded(_DEAD_SHAPE, fields, b"", None, has_server_values=True)
        ttl_ms = job.document.ttl_ms
        put = Put(
            below_queue(self.take.container, DEAD, job),
            dead,
            None if ttl_ms is None else max(1, ttl_ms),
            NONE,
            self.take.log_length,
        )
        return (below(self.take.container)[0], job.path.name, job.lease, *put.arguments)

    def outcome(self, reply: RedisReply) -> Taken | Again[Taken]:
        again: Again[Taken] = Again(self.take)
        return registered(self.take.container, reply[1], again)


class ChangeLease(NamedTuple):
    """Lease a job for `lease_ms` from now on, or give it back if that is 0: LeaseChanged, Missing or Failed."""

    path: Path
    match: str
    lease_ms: int
    delay_ms: int = 0
    reason: str = ""
    script: Script[LeaseChanged | Missing | Failed] = CHANGE_LEASE

    @classmethod
    def renew(cls, job: Job, lease_ms: int) -> "ChangeLease":
        """Lease a job that was taken for `lease_ms` from now on."""
        return cls(job.path, _matches(job), lease_ms)

    @classmethod
    def release(cls, job: Job, delay_ms: int = 0, reason: str = "") -> "ChangeLease":
        """Give back a job that was taken, to be taken again after `delay_ms`."""
        return cls(job.path, _matches(job), 0, delay_ms, reason)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.path.keys

    @property
    def touches(self) -> Touches:
        return changes(self.path)

    @property
    def arguments(self) -> Arguments:
        return (self.path.name, self.match, self.lease_ms, self.delay_ms, _encode_reason(self.reason))

    def outcome(self, reply: RedisReply) -> LeaseChanged | Missing | Failed:
        if reply[0] == b"changed":
            return LeaseChanged(self.path, None if reply[2] == b"-" else reply[2].decode(), found_in(reply[1]))
        return Missing() if reply[0] == b"missing" else refused(reply)


class FinishJob(NamedTuple):
    """Store the result of a job below its queue and delete the job, if no other worker has taken it: Finished or Lost."""

    container: Path
    job: Job
    result: Path
    encoded: Encoded
    ttl_ms: int
    log_length: int
    script: Script[Finished | Lost] = MOVE_JOB

    @property
    def keys(self) -> tuple[str, ...]:
        return self.container.keys

    @property
    def arguments(self) -> Arguments:
        put = Put(self.result, self.encoded, self.ttl_ms, NONE, self.log_length)
        return (below(self.container)[0], self.job.path.name, self.job.lease, *put.arguments)

    def outcome(self, reply: RedisReply) -> Finished | Lost | Again[Finished | Lost]:
        if reply[0] != b"moved":
            return Lost()
        return registered(self.container, reply[1], Finished())


class FinishAndTake(NamedTuple):
    """Finish a job, then take the next one, in one script: Taken, or Lost if the job was not finished; then none is taken."""

    finish: FinishJob
    take: Take
    script: Script[Taken | Lost] = FINISH_AND_TAKE

    @property
    def keys(self) -> tuple[str, ...]:
        return self.take.keys

    @property
    def arguments(self) -> Arguments:
        return (*self.take.arguments, *self.finish.arguments)

    def outcome(self, reply: RedisReply) -> Taken | Lost | Again[Taken | Lost]:
        if reply[0] != b"finished":
            return Lost()
        following = settled(self.take.outcome(reply[2])) if len(reply) > 2 else Again(self.take)  # for a worker's process
        if isinstance(following, Again):
            following = Again(following.command)  # the take has changed nothing yet, but finishing has
        return registered(self.take.container, reply[1], following)


class InspectJob(NamedTuple):
    """Read the mark of a job: JobSeen or Missing."""

    path: Path
    script: Script[JobSeen | Missing] = READ

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.path.keys.document,)

    @property
    def arguments(self) -> Arguments:
        return ()

    def outcome(self, reply: RedisReply) -> JobSeen | Missing:
        if not reply:
            return Missing()
        fields, expires_at_ms, ttl_ms = reply
        mark = read_mark(fields)
        now_ms = expires_at_ms - ttl_ms if expires_at_ms >= 0 else 0  # Redis's clock; unknown if the job never expires
        return JobSeen(mark, mark.state(now_ms) == "leased")


def below_queue(container: Path, subcontainer: str, job: Job) -> Path:
    """Return the path of a result or a dead job: named as the job was, or after its lease if that path would be too long."""
    try:
        return parse_path((container.text + subcontainer + job.path.text.rpartition("/")[2]).encode())
    except (InvalidPath, PathTooLong):
        return parse_path((container.text + subcontainer + job.lease).encode())


def _matches(job: Job) -> str:
    """Return the precondition that a job is still leased as it was taken, as Preconditions.match has it."""
    return f" {job.lease} "


def _encode_reason(text: str) -> str:
    """Return the first MAX_REASON_BYTES of a reason, percent-encoded; `-` for none."""
    cut = text.encode("utf-8", "backslashreplace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
    return quote(cut, safe="").replace("-", "%2D") or "-"  # so that a reason "-" is one
