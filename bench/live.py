"""Compare following in this service with nchan's: deliveries, latency, memory; and what idle streams cost everybody else.

The load is readers.c, one process for all readers and their publisher. Writes results/live.json.
`python -m bench.live --help` names the options.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import measure
from bench.measure import BODY
from bench.processes import children, cpu_s, pss_kib

WORKERS = 2
WINDOW = 32  # events under way while as many as possible are published
MANY_WINDOW = 512  # the same where each has one reader
PACE = 0.5  # of what a server delivers at most: the rate at which latency is measured, the same for all
LOG_LENGTH = 10_000  # events that a server keeps for readers that are behind
SETTLE_S = 1.0
COMPARED = ("deliveries_s", "p99_ms")  # with nchan's, round by round

STREAMS = 5000  # that are idle, each on a namespace of its own, while others PUT and GET
DOCUMENTS = 2000
CONNECTIONS = 32
IDLE_S = 10

NGINX = """
daemon off;
{user}
worker_processes {workers};
load_module {module};
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log warn;
worker_rlimit_nofile {files};
events {{ worker_connections 10000; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  keepalive_requests 100000000;
  nchan_shared_memory_size 1G;
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location ~ ^/publish/(.+)$ {{ nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length {log_length}; }}
    location ~ ^/follow/(.+)$ {{
      nchan_subscriber eventsource; nchan_channel_id $1; nchan_subscriber_first_message newest;
    }}
  }}
}}
"""
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


class Case(NamedTuple):
    """Who follows what: "@" in a path becomes a number from 1 to `paths`."""

    name: str
    readers: int
    paths: int
    path: str

    @property
    def window(self) -> int:
        return WINDOW if self.paths == 1 else MANY_WINDOW


CASES = (
    Case("1,000 readers of one path", 1000, 1, "one/path"),
    Case("5,000 readers of one path", 5000, 1, "another/path"),
    Case("1,000 readers of 1,000 paths", 1000, 1000, "many/@"),
    Case("1,000 readers of 1,000 namespaces", 1000, 1000, "space@/path"),
)


@dataclass(frozen=True, slots=True)
class Server:
    """One that is compared: what its paths start with, how it is published to, and the processes it is made of."""

    name: str
    port: int
    read: str
    method: str
    write: str
    processes: tuple[int, ...]  # those that hold the streams, master included
    store: tuple[int, ...]  # its Redis

    def cpu_s(self) -> float:
        """Processor time used so far, its Redis included."""
        return sum(cpu_s(pid) for pid in self.processes + self.store)

    def memory_kib(self) -> float:
        """Resident memory of the processes that hold the streams; what they share is counted once."""
        return sum(pss_kib(pid) for pid in self.processes)


def family(master: int, workers: int) -> tuple[int, ...]:
    """A master and its workers, when they have all begun."""
    while len(found := [master, *children(master)]) <= workers:
        time.sleep(0.1)
    return tuple(found)


@contextmanager
def kvstore(directory: Path, redis_at: Path, redis_pid: int, workers: int = WORKERS) -> Iterator[Server]:
    log = directory / "kvstore.log"
    settings = {"REDIS_URL": f"unix://{redis_at}", "KVSTORE_LOG_LENGTH": str(LOG_LENGTH)}
    with measure.kvstore(log, workers, **settings) as (process, port):
        measure.wait_for(lambda: measure.answers(port), process, log)
        yield Server("kvstore", port, "/", "PUT", "/", family(process.pid, workers), (redis_pid,))


@contextmanager
def nchan(directory: Path) -> Iterator[Server]:
    port, log, config = measure.free_port(), directory / "nchan.log", directory / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    text = NGINX.format(
        user=user,
        workers=WORKERS,
        module=NCHAN_MODULE,
        directory=directory,
        files=files,
        port=port,
        log_length=LOG_LENGTH,
    )
    config.write_text(text, "utf-8")
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    with measure.running([nginx, "-c", config, "-p", directory], log) as process:
        measure.wait_for(lambda: measure.answers(port), process, log)
        yield Server("nchan", port, "/follow/", "POST", "/publish/", family(process.pid, WORKERS), ())


Seen = dict[tuple[Case, str], list[dict[str, float]]]  # figures, by case and server, one for each round


class Readers:
    """The program readers.c with its readers connected, on paths that nobody has written: a snapshot holds no event."""

    turns = count(1)

    def __init__(self, program: Path, server: Server, case: Case) -> None:
        path = f"{next(self.turns)}-{case.path}"
        words = [program, server.port, case.readers, case.paths, server.read + path, server.method, server.write + path]
        self.process = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._line()

    def phase(self, command: str) -> dict[str, Any]:
        """Publish as the command says, and what came of it."""
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        seen: dict[str, Any] = json.loads(self._line())
        return seen

    def _line(self) -> str:
        assert self.process.stdout
        assert self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"readers failed, so nothing here counts: {self.process.stderr.read()}")
        return line

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate()


@contextmanager
def readers(program: Path, server: Server, case: Case) -> Iterator[Readers]:
    """Readers that are connected; when the block is left they are gone, and the server knows."""
    following = Readers(program, server, case)
    try:
        yield following
    finally:
        following.close()
        time.sleep(SETTLE_S)


def flood(program: Path, server: Server, case: Case, seconds: float) -> dict[str, float]:
    """As many deliveries as a server makes, and what each costs."""
    with readers(program, server, case) as following:
        time.sleep(SETTLE_S)
        used_s = server.cpu_s()
        seen = following.phase(f"flood {seconds} {case.window}")
        used_s = server.cpu_s() - used_s
        return {
            "deliveries_s": seen["deliveries"] / seen["seconds"],
            "events_s": seen["events"] / seen["seconds"],
            "cpu_us": used_s / seen["deliveries"] * 1e6,
            "client_cpu_us": seen["client_cpu_s"] / seen["deliveries"] * 1e6,
        }


def stream_kib(program: Path, server: Server, case: Case) -> dict[str, str | float]:
    """The memory of a stream, before the first event and after many, of a server that has not had so many streams before."""
    before_kib = server.memory_kib()
    with readers(program, server, case) as following:
        time.sleep(SETTLE_S)
        still_kib = server.memory_kib() - before_kib
        following.phase(f"flood 1 {case.window}")
        used_kib = server.memory_kib() - before_kib
    return {"server": server.name, "KiB": round(still_kib / case.readers, 1), "used KiB": round(used_kib / case.readers, 1)}


def pace(program: Path, server: Server, case: Case, seconds: float, events_s: float) -> dict[str, float]:
    """Latency at a steady rate, and what a delivery costs then."""
    with readers(program, server, case) as following:
        time.sleep(SETTLE_S)
        used_s = server.cpu_s()
        seen = following.phase(f"pace {seconds} {events_s:.2f}")
        used_s = server.cpu_s() - used_s
        return {"p50_ms": seen["p50_ms"], "p99_ms": seen["p99_ms"], "paced_cpu_us": used_s / seen["deliveries"] * 1e6}


def in_turns(program: Path, servers: list[Server], rounds: int, seconds: float) -> Seen:
    """The figures of each case and server, one for each round."""
    seen: Seen = {}
    for number in range(rounds):
        order = servers[number % len(servers) :] + servers[: number % len(servers)]
        for case in CASES:
            print(f"\r  round {number + 1} of {rounds}: {case.name:40}", end="", file=sys.stderr)
            of_round = {server.name: flood(program, server, case, seconds) for server in order}
            events_s = PACE * min(one["events_s"] for one in of_round.values())
            for server in order:
                of_round[server.name] |= pace(program, server, case, seconds, events_s) | {"paced_events_s": events_s}
                seen.setdefault((case, server.name), []).append(of_round[server.name])
    print(file=sys.stderr)
    return seen


def medians(seen: Seen) -> list[dict[str, Any]]:
    """A row of figures for each case and server."""
    return [
        {"case": case.name, "server": name}
        | {figure: round(median(one[figure] for one in of_rounds), 2) for figure in of_rounds[0]}
        for (case, name), of_rounds in seen.items()
    ]


def ratios(seen: Seen) -> list[dict[str, Any]]:
    """Of each case, our deliveries and p99 to nchan's in the same round: the median, the least and the largest."""
    found = []
    for case in CASES if (CASES[0], "nchan") in seen else ():
        row: dict[str, Any] = {"case": case.name}
        for figure in COMPARED:
            of_rounds = [
                mine[figure] / its[figure] for mine, its in zip(seen[case, "kvstore"], seen[case, "nchan"], strict=True)
            ]
            row[figure] = [round(each, 2) for each in (median(of_rounds), min(of_rounds), max(of_rounds))]
        found.append(row)
    return found


def beside_idle_streams(program: Path, server: Server, rounds: int, seconds: int) -> dict[str, Any]:
    """PUT and GET at a server of one worker, without streams and with many that are idle, and what those cost by themselves."""
    idle = Case("idle", STREAMS, STREAMS, "idle@/path")
    seen: dict[tuple[str, int], list[float]] = {}

    def put_and_get(streams: int) -> None:
        for method, script, words in (("PUT", "put.lua", [BODY]), ("GET", "get.lua", [])):
            loaded = measure.wrk(server.port, script, CONNECTIONS, seconds, ["/bench/@", str(DOCUMENTS), *words])
            seen.setdefault((f"{method} requests/s", streams), []).append(loaded.requests_s)
            seen.setdefault((f"{method} p99 ms", streams), []).append(loaded.p99_ms)

    def rest(streams: int) -> None:
        for name, processes in (("worker", server.processes), ("Redis", server.store)):
            used_s[name] = -sum(cpu_s(pid) for pid in processes)
        time.sleep(IDLE_S)
        for name, processes in (("worker", server.processes), ("Redis", server.store)):
            used_s[name] += sum(cpu_s(pid) for pid in processes)
            seen.setdefault((f"idle {name} % of a core", streams), []).append(100 * used_s[name] / IDLE_S)

    used_s: dict[str, float] = {}
    for number in range(rounds):
        print(f"\r  round {number + 1} of {rounds}: {STREAMS:,} idle streams ", end="", file=sys.stderr)
        put_and_get(0)
        rest(0)
        with readers(program, server, idle):
            time.sleep(SETTLE_S)
            put_and_get(STREAMS)
            rest(STREAMS)
    print(file=sys.stderr)
    return {
        "streams": STREAMS,
        "connections": CONNECTIONS,
        "rows": [
            {"figure": figure, "without": round(median(without), 2), "with": round(median(seen[figure, STREAMS]), 2)}
            for (figure, streams), without in seen.items()
            if streams == 0
        ],
    }


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """Start all, load them in turns, and return what is saved as live.json."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
        program = directory / "readers"
        subprocess.run(["cc", "-O2", "-o", program, measure.BENCH / "readers.c"], check=True)
        client, redis_at = stack.enter_context(measure.redis_server(directory))
        redis_pid = int(client.info("server")["process_id"])
        results: dict[str, Any] = {"when": time.strftime("%Y-%m-%d"), "machine": measure.machine(client)}
        with ExitStack() as compared:
            servers = [compared.enter_context(kvstore(directory, redis_at, redis_pid))]
            if NCHAN_MODULE.exists():
                servers.append(compared.enter_context(nchan(directory)))
                results["machine"]["nchan"] = measure.debian_version("libnginx-mod-nchan")
            for server in servers:
                flood(program, server, Case("", 50, 1, "warm/up"), 0.5)
            results["memory"] = [stream_kib(program, server, CASES[1]) for server in servers]
            client.config_resetstat()
            seen = in_turns(program, servers, rounds, seconds)
            results |= {"rows": medians(seen), "to nchan": ratios(seen)}
        with kvstore(directory, redis_at, redis_pid, workers=1) as server:
            results["beside"] = beside_idle_streams(program, server, rounds, seconds)
        if failed := measure.failed_commands(client):
            sys.exit(f"Redis refused commands, so nothing here counts: {failed}")
    return results | {"workers": WORKERS, "rounds": rounds, "seconds": seconds}


def print_results(results: dict[str, Any]) -> None:
    """Print the tables and the machine."""
    lines = [
        [
            row["case"],
            row["server"],
            f"{row['deliveries_s']:,.0f}",
            f"{row['cpu_us']:.1f}",
            f"{row['client_cpu_us']:.1f}",
            f"{row['paced_events_s']:,.0f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['paced_cpu_us']:.1f}",
        ]
        for row in results["rows"]
    ]
    head = ("", "server", "deliveries/s", "µs each", "client's", "at events/s", "p50 ms", "p99 ms", "µs each")
    measure.print_table(head, lines, left=2)
    lines = [[row["case"], *("{:.2f} ({:.2f} to {:.2f})".format(*row[of]) for of in COMPARED)] for row in results["to nchan"]]
    if lines:
        print("\nTo nchan's in the same round")
        measure.print_table(("", "deliveries/s", "p99 ms"), lines)
    print("\nMemory of a stream, and when it has had events")
    measure.print_table(("server", "KiB", "used KiB"), [[str(cell) for cell in row.values()] for row in results["memory"]])
    beside = results["beside"]
    print(
        f"\nPUT and GET by {beside['connections']} connections at one worker, "
        f"without and with {beside['streams']:,} idle streams"
    )
    measure.print_table(
        ("", "without", "with"), [[row["figure"], f"{row['without']:,.2f}", f"{row['with']:,.2f}"] for row in beside["rows"]]
    )
    print(f"\n  µs: processor time of server and Redis; {results['workers']} workers each")
    print(f"  medians of {results['rounds']} rounds of {results['seconds']} s")
    print(f"  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Measure following, beside nchan.",
        run,
        print_results,
        "live.json",
        needs=["wrk", "cc"],
        rounds=measure.Option(5, 1, "turns of every server"),
        seconds=measure.Option(3, 1, "of every load"),
    )


if __name__ == "__main__":
    main()
