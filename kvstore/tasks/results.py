"""What a job comes to: its status, its result, why it failed."""

import json
import time
from typing import Any

from kvstore.commands.base import Found
from kvstore.commands.changelog import GetLogPosition
from kvstore.commands.documents import Delete, Get
from kvstore.commands.jobs import DEAD, InspectJob, JobSeen
from kvstore.core.paths import Path, parse_path
from kvstore.core.preconditions import NONE
from kvstore.tasks.connection import _connection
from kvstore.tasks.worker import RESULTS


class TaskFailed(Exception):
    """A job is dead, or its result has expired; the message says why."""


class DelayedResult:
    """What a job comes to. `key` is the path of its result; `DelayedResult(key)` is the same again, in any process."""

    def __init__(self, key: str) -> None:
        queue, results, name = key.rpartition(RESULTS)
        if not results or "/" in name:
            raise ValueError(f"{key!r} is not the key of a delayed result")
        self.key = key
        self._result = parse_path(key.encode())
        self._job = parse_path((queue + name).encode())
        self._dead = parse_path((queue + DEAD + name).encode())

    def __repr__(self) -> str:
        return f"DelayedResult({self.key!r})"

    @property
    def return_value(self) -> Any:
        """What the function returned, None until then."""
        found = _document(self._result)
        return json.loads(found) if found else None

    @property
    def status(self) -> str:
        """`queued`, also between two attempts, `running`, `done`, `failed` for good, or `expired`."""
        # A job moves to one of the other places in one step, so looking there later never misses it.
        job = self._seen()
        if job:
            return "running" if job.is_leased else "queued"
        if _document(self._result):
            return "done"
        return "failed" if _document(self._dead) else "expired"

    @property
    def error(self) -> str | None:
        """Why the last attempt failed, None where none did."""
        job = self._seen()
        if job:
            return job.mark.reason or None
        dead = _document(self._dead)
        return json.loads(dead)["reason"] if dead else None

    def wait(self, timeout: float) -> Any:
        """What the function returned, as soon as it has; raises TaskFailed, or TimeoutError after `timeout` seconds.

        It holds a connection to Redis meanwhile. In a web application, ask for `return_value` again instead.
        """
        deadline = time.monotonic() + timeout
        store, _ = _connection()
        pause_s = 0.0
        while True:
            at = store.execute(GetLogPosition(self._result))
            if at.document:
                return json.loads(at.document.text)
            status = self.status
            if status in ("failed", "expired"):
                raise TaskFailed(self.error or "the result has expired, or the job was deleted")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"{self.key} is not there after {timeout} s")
            if status != "done":
                store.wait(self._result, (at.position, "$"), left_s)
                time.sleep(pause_s)  # on a busy queue there is always a change
                pause_s = min(0.02, 2 * pause_s + 0.001)

    def forget(self) -> None:
        """Delete the result, once it is there. A job that has not run yet is left alone."""
        store, settings = _connection()
        store.execute(Delete(self._result, NONE, settings.log_length))

    def _seen(self) -> JobSeen | None:
        seen = _connection().store.execute(InspectJob(self._job))
        return seen if isinstance(seen, JobSeen) else None


def _document(path: Path) -> bytes | None:
    """The JSON text stored at a path, None for nothing."""
    found = _connection().store.execute(Get(path))
    return found.text if isinstance(found, Found) else None
