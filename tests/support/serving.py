"""Starts the command `kvstore` as a process of its own, and speaks raw HTTP to it."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import kvstore
from tests.support.stores import die_with_parent, wait_until

COMMAND = Path(sys.executable).with_name("kvstore")
START_S = 60
STOP_S = 30
READ_S = 30

Lines = Iterable[tuple[str, str | bytes]]


class Response(http.client.HTTPResponse):
    """A response that was read: its body is `content`."""

    content = b""


class Served:
    """A process that serves HTTP; `at` is where. What it says goes to a file in `directory`."""

    def __init__(self, directory: Path, arguments: list[str], environ: Mapping[str, str]) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.home.mkdir(exist_ok=True)
        self._said = directory / "said.txt"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                arguments,
                env={**bare_environ(self.home), **environ},
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
            )
        try:
            wait_until(lambda: self.process.poll() is not None or self._address(), START_S)
            assert self.process.poll() is None, self.said
        except AssertionError:
            self.kill()
            raise
        at = self._address()
        assert at
        self.at = at

    @property
    def said(self) -> str:
        """All that the process has printed."""
        return self._said.read_text("utf-8")

    def processes(self) -> list[int]:
        """The process and all that it started."""
        return session(self.process.pid)

    def stop(self) -> None:
        """Stop it as a process manager does."""
        self.process.terminate()
        self.process.wait(STOP_S)
        wait_until(lambda: not self.processes(), STOP_S)

    def kill(self) -> None:
        """kill -9 of every process."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not self.processes(), STOP_S)

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection(self.at, READ_S)

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Response:
        """One request on a connection of its own; the response is read."""
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # refused before all of it was sent: the answer is there
                connection.sendall(wire(method, target, headers, body))
            return read(connection, method)

    def _address(self) -> tuple[str, int] | None:
        found = re.search(r"http://([0-9.]+):(\d+)\D", self.said)  # what is said may be read in parts
        return (found[1], int(found[2])) if found else None


def start_kvstore(directory: Path, **environ: str) -> Served:
    """The command `kvstore` with these settings, on a port of its own choice, its data in `directory`."""
    defaults = {"PORT": "0", "WEB_CONCURRENCY": "2", "KVSTORE_DATA": str(directory / "data")}
    return Served(directory, [str(COMMAND)], defaults | environ)


def bare_environ(home: Path) -> dict[str, str]:
    """An environment with nothing in it, but what finds Python and the kvstore that is tested."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(Path(kvstore.__file__).parent.parent)}


def run_kvstore(home: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command `kvstore` where it is expected to end by itself."""
    return ended([str(COMMAND), *arguments], home, bare_environ(home) | environ, START_S)


def ended(command: list[str], directory: Path, environ: dict[str, str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, within this time: its exit status, and all that it has printed."""
    return subprocess.run(
        command,
        env=environ,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )


def session(leader: int) -> list[int]:
    """The processes of a session that are alive (proc(5), ps(1))."""
    if sys.platform == "linux":
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, belongs = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(belongs) == leader and state not in "ZX":
                found.append(int(stat.parent.name))
        return found
    assert shutil.which("ps")
    listed = subprocess.run(["ps", "-A", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, belongs, stat in rows if int(belongs, 0) == leader and stat[0] != "Z"]


def wire(method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> bytes:
    """A request as it stands on the wire; chunked where a header says so."""
    raw = target.encode() if isinstance(target, str) else target
    lines = [(name.lower(), value if isinstance(value, bytes) else value.encode("latin-1")) for name, value in headers]
    names = {name for name, _ in lines}
    if "host" not in names:
        lines.append(("host", b"127.0.0.1"))
    if "transfer-encoding" in names:
        half = len(body) // 2
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]) if part) + b"0\r\n\r\n"
    elif "content-length" not in names and (body or method in ("PUT", "POST", "PATCH")):
        lines.append(("content-length", b"%d" % len(body)))
    head = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in lines)
    return method.encode() + b" " + raw + b" HTTP/1.1\r\n" + head + b"\r\n" + body


def read(connection: socket.socket, method: str) -> Response:
    """The response to a request with this method, its body in `content`."""
    response = Response(connection, method=method)
    response.begin()
    response.content = response.read()
    return response
