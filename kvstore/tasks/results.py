"""The state of a job for whoever queued it: its status, its result, why it failed."""

import json
import time
from typing import Any

from kvstore.commands.base import Found
from kvstore.commands.changelog import GetLogPosition
from kvstore.commands.documents import Delete, Get
from kvstore.commands.jobs import DEAD, InspectJob, JobSeen
from kvstore.core.paths import Path, parse_path
from kvstore.core.preconditions import NONE
from kvstore.tasks.connection import open_task_store
from kvstore.tasks.worker import RESULTS


class TaskFailed(Exception):
    """A job is dead, or its result has expired; the message says why."""


class DelayedResult:
    """The result of a job that was queued. `key` is the path of the result; `DelayedResult(key)` works in any process."""

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
        """The value that the function returned, None until it has."""
        found = _document(self._result)
        return json.loads(found) if found else None

    @property
    def status(self) -> str:
        """`queued` (also between two attempts), `running`, `done`, `failed` (no more attempts) or `expired`."""
        # One script moves a job to one of the other places, so a reader that looks there later always finds it.
        job = self._seen()
        if job:
            return "running" if job.is_leased else "queued"
        if _document(self._result):
            return "done"
        return "failed" if _document(self._dead) else "expired"

    @property
    def error(self) -> str | None:
        """Why the last attempt failed, None if none did."""
        job = self._seen()
        if job:
            return job.mark.reason or None
        dead = _document(self._dead)
        return json.loads(dead)["reason"] if dead else None

    def wait(self, timeout: float) -> Any:
        """Wait for the value that the function returns; raises TaskFailed, or TimeoutError after `timeout` seconds.

        A waiting caller holds a connection to Redis. In a web application, poll `return_value` instead.
        """
        deadline = time.monotonic() + timeout
        store, _ = open_task_store()
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
                time.sleep(pause_s)  # a busy queue changes all the time
                pause_s = min(0.02, 2 * pause_s + 0.001)

    def forget(self) -> None:
        """Delete the result, once it is there. A job that has not run yet is left alone."""
        store, settings = open_task_store()
        store.execute(Delete(self._result, NONE, settings.log_length))

    def _seen(self) -> JobSeen | None:
        seen = open_task_store().store.execute(InspectJob(self._job))
        return seen if isinstance(seen, JobSeen) else None


def _document(path: Path) -> bytes | None:
    """Return the JSON text stored at a path, None for nothing."""
    found = open_task_store().store.execute(Get(path))
    return found.text if isinstance(found, Found) else None
