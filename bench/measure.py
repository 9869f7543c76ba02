"""What the benchmarks share: servers started on 127.0.0.1 and ended again, wrk's figures, tables, and what the machine is.

wrk is a closed loop: each of its connections sends the next request when it has the answer to the last one, so a latency
here is that of a server as busy as it can be.
"""

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import redis

from kvstore.commands.documents import Put
from kvstore.core.settings import Settings
from kvstore.http.messages import Request
from kvstore.http.protocol import parse
from kvstore.stores.embedded import binary

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
BIN = Path(sys.executable).parent
RESULTS = BENCH / "results"

BODY = '{"value":123,"text":"hello"}'  # the document of the article's load test
METHODS = ("PUT", "GET")
FILL = 1000  # documents in a round trip

# Nothing of the caller's settings reaches a server that is measured.
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}

START_S = 30.0
STOP_S = 30.0


class Option(NamedTuple):
    """A number that the command line can set."""

    default: int
    quick: int  # with --quick
    meaning: str


def read_options(description: str, needs: Sequence[str] = (), **options: Option) -> argparse.Namespace:
    """What the command line says, and `quick`; exits where a program that the benchmark needs is missing."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="measure little and save nothing, to see that it runs")
    for name, option in options.items():
        parser.add_argument(f"--{name}", type=int, help=f"{option.meaning} (default: {option.default}; quick: {option.quick})")
    found = parser.parse_args()
    for name, option in options.items():
        if getattr(found, name) is None:
            setattr(found, name, option.quick if found.quick else option.default)
    for program in needs:
        if not shutil.which(program):
            sys.exit(f"this benchmark needs {program} on the PATH")
    if not (BIN / "kvstore").exists():
        sys.exit(f"there is no kvstore beside {sys.executable}: run `make setup`, then .venv/bin/python -m bench.…")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended
    if (load := os.getloadavg()[0]) > 0.5:
        print(f"the machine is busy (load average {load:.1f}), and the figures will show it", file=sys.stderr)
    return found


def main(
    description: str,
    run: Callable[..., dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    name: str,
    needs: Sequence[str] = (),
    **options: Option,
) -> None:
    """Run a benchmark with the numbers of the command line, show what it found, and save that as bench/results/`name`."""
    found = read_options(description, needs, **options)
    results = run(**{option: getattr(found, option) for option in options})
    show(results)
    if not found.quick:
        save(name, results)


@contextmanager
def running(command: Sequence[str | Path], log: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process, its output in `log`; ended with its group when the block is left."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=log.parent,
            env=ENVIRONMENT | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


@contextmanager
def redis_server(directory: Path, *more: str | Path) -> Iterator[tuple[Any, Path]]:
    """A client of a Redis that keeps nothing on disk, and the unix socket it listens on; with more options."""
    at = directory / "redis.sock"
    executable = shutil.which("redis-server") or _embedded_binary()
    options: list[str | Path] = [
        "--port",
        "0",
        "--unixsocket",
        at,
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        directory,
        *more,
    ]
    with running([executable, *options], directory / "redis.log") as process:
        client = redis.Redis(unix_socket_path=str(at), socket_timeout=60)
        wait_for(lambda: at.exists() and client.ping(), process, directory / "redis.log")
        yield client, at


def _embedded_binary() -> str:
    return str(binary())


def fill(client: Any, path: str, names: Sequence[object], body: bytes) -> None:
    """Store documents by the service's own commands, many in a round trip; "@" in the path becomes a name."""
    settings, connection = Settings(), client.connection_pool.get_connection()
    for first in range(0, len(names), FILL):
        sent: list[bytes] = []
        some = names[first : first + FILL]
        for name in some:
            command = parse(Request("PUT", path.replace("@", str(name)).encode(), {}, body), settings)
            assert isinstance(command, Put)
            if name == names[0]:
                client.script_load(command.script.text)
            keys = command.keys
            sent += connection.pack_command("EVALSHA", command.script.sha, len(keys), *keys, *command.arguments)
        connection.send_packed_command(sent)
        for _ in some:
            connection.read_response()  # raises what Redis refused
        print(f"\r  storing {first + len(some):,} of {len(names):,} documents ", end="", file=sys.stderr)
    print(file=sys.stderr)
    client.connection_pool.release(connection)


@contextmanager
def kvstore(log: Path, workers: int = 2, **environment: str) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """The service, by its command: the master process, and the port it listens on."""
    port = free_port()
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "WEB_CONCURRENCY": str(workers)} | environment
    with running([BIN / "kvstore"], log, **settings) as process:
        yield process, port


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """The status and body of one request on a connection of its own; raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def answers(port: int) -> bool:
    """Whether somebody answers HTTP at this port, whatever the status."""
    return ask(port, "GET", "/")[0] > 0


def wait_for(ready: Callable[[], Any], process: "subprocess.Popen[bytes]", log: Path, pause_s: float = 0.02) -> None:
    """Wait until `ready` is true, and not an exception; exits with the end of `log` where that takes too long."""
    end = time.monotonic() + START_S
    why = "it is not ready"
    while time.monotonic() < end and process.poll() is None:
        try:
            if ready():
                return
        except Exception as error:  # whatever a server says that is starting
            why = repr(error)
        time.sleep(pause_s)
    sys.exit(f"a server did not start: {why}\n{process.args!r}\n{log.read_text('utf-8', 'replace')[-2000:]}")


class Load(NamedTuple):
    """What wrk measured: requests a second, and latency in ms."""

    requests_s: float
    p50_ms: float
    p99_ms: float


_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


def wrk(port: int, script: str, connections: int, seconds: int, arguments: Sequence[str], *fields: str) -> Load:
    """Load a server with one thread of wrk, with more header fields; exits where a single answer was an error, or none."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    command += [f"-H{field}" for field in fields]
    command += ["-s", str(BENCH / script), f"http://127.0.0.1:{port}", "--", *arguments]
    output = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=True).stdout
    if errors := re.search(r"Socket errors: .*|Non-2xx.*", output):
        sys.exit(f"wrk saw errors, so nothing here counts: {errors[0]}\n{' '.join(command)[:300]}")
    rate = re.search(r"Requests/sec: +([\d.]+)", output)
    latency = {at: float(value) * _UNITS_MS[unit] for at, value, unit in re.findall(r"(\d+)% +([\d.]+)(us|ms|s|m)\b", output)}
    if not rate or float(rate[1]) == 0:
        sys.exit(f"wrk got no answer:\n{output}")
    return Load(float(rate[1]), latency["50"], latency["99"])


def failed_commands(redis_client: Any) -> dict[str, int]:
    """The commands that Redis refused, or that failed, since its last CONFIG RESETSTAT; webdis gives 200 to these too.

    The first EVALSHA of a script is refused with NOSCRIPT, and then sent as EVAL: that is no failure.
    """
    counts = {
        name: int(counted.get("failed_calls", 0)) + int(counted.get("rejected_calls", 0))
        for name, counted in redis_client.info("commandstats").items()
        if "client" not in name and "hello" not in name  # what redis-py tries on connecting, and does without
    }
    unknown_scripts = redis_client.info("errorstats").get("errorstat_NOSCRIPT", {}).get("count", 0)
    if "cmdstat_evalsha" in counts:
        counts["cmdstat_evalsha"] -= unknown_scripts
    return {name: count for name, count in counts.items() if count}


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print a table; the first `left` columns are words, the others figures."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, ["─" * width for width in widths], *rows):
        words = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        figures = [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        print("  " + "  ".join(words + figures).rstrip())


def machine(redis_client: Any) -> dict[str, str]:
    """What the figures depend on: the machine, and the versions of what ran on it."""
    server = redis_client.info("server")
    name = "Valkey" if "valkey_version" in server else "Redis"
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        name: str(server.get("valkey_version", server["redis_version"])),
        "gunicorn": version("gunicorn"),
        "wrk": debian_version("wrk"),
    }


def debian_version(package: str) -> str:
    """The version of Debian's package: webdis and nchan have no way to ask for it."""
    if not shutil.which("dpkg-query"):
        return "unknown"
    asked = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False)
    return asked.stdout.partition("+")[0].partition("-")[0] or "unknown"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def machine_line(facts: dict[str, str]) -> str:
    """The machine in one line."""
    rest = (f"{name} {value}" for name, value in facts.items() if name not in ("cores", "processor"))
    return ", ".join([f"{facts['cores']} cores ({facts['processor']})", *rest])


def save(name: str, results: dict[str, Any]) -> None:
    """Write results as bench/results/`name`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"\n  {RESULTS / name}")
