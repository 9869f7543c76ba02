"""Starts `flask kvstore worker` as a process of its own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.serving import START_S, bare_environ, session
from tests.support.stores import die_with_parent, wait_until

WORKED = Path(__file__).with_name("worked.py")
FLASK = Path(sys.executable).with_name("flask")


class Workers:
    """A running `flask kvstore worker`. What it says goes to a file in `directory`."""

    def __init__(self, directory: Path, app: Path, *options: str, **environ: str) -> None:
        self._said = directory / f"workers-{len(list(directory.glob('workers-*')))}.txt"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [FLASK, "--app", app, "kvstore", "worker", *options],
                env=bare_environ(directory) | environ,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
            )
        wait_until(lambda: self.process.poll() is not None or " on /" in self.said, START_S)
        assert self.process.poll() is None, self.said

    @property
    def said(self) -> str:
        """All that they have printed."""
        return self._said.read_text("utf-8")

    def pids(self) -> list[int]:
        """The processes that work, without the parent."""
        return [pid for pid in session(self.process.pid) if pid != self.process.pid]

    def stop(self) -> None:
        """kill -9 of all of them; their jobs are taken again."""
        self.process.kill()
        self.process.wait()
        for pid in session(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not session(self.process.pid), START_S)


def start_workers(directory: Path, url: str, *options: str) -> Workers:
    """Workers of worked.py on the Redis at `url`; what fails is tried again soon."""
    return Workers(directory, WORKED, "--retry", "0.1", *options, REDIS_URL=url)
