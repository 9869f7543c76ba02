"""Measure this service alone: by shape of document, by number of documents stored, memory, and the time to start.

Writes results/inside.json. `python -m bench.inside --help` names the options.
"""

import json
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench import measure, processes
from bench.measure import METHODS

CONNECTIONS = 32
WORKERS = 2
SHAPE_DOCUMENTS = 10_000
STARTS = 5
SLOW = 200

TWO = {"value": 123, "text": "hello"}
SHAPES: dict[str, dict[str, Any]] = {
    "2 members": TWO,
    "20 members": {f"member{i:02}": i if i % 2 else f"text {i}" for i in range(20)},
    "16 KiB": {"text": "x" * (16 * 1024 - len('{"text":""}'))},
}


@dataclass(frozen=True, slots=True)
class Case:
    """Documents 1 to `asked` of one namespace, which the service at `port` keeps in the Redis of `client`."""

    row: dict[str, Any]  # what is known of it before it is loaded
    client: Any
    port: int
    namespace: str
    asked: int
    body: bytes


@contextmanager
def service(directory: Path, **environment: str) -> Iterator[tuple[Any, int, int]]:
    """A Redis of its own and the service on it, with settings: the Redis client, the port, and the pid of its master."""
    directory.mkdir()
    log = directory / "kvstore.log"
    with (
        measure.redis_server(directory) as (client, redis_at),
        measure.kvstore(log, WORKERS, REDIS_URL=f"unix://{redis_at}", **environment) as (process, port),
    ):
        measure.wait_for(lambda: measure.answers(port), process, log)
        yield client, port, process.pid


def fill(client: Any, namespace: str, documents: int, body: bytes) -> int:
    """Store documents 1 to `documents`; the bytes each takes in Redis."""
    before = memory(client)
    measure.fill(client, f"/{namespace}/@", range(1, documents + 1), body)
    return round((memory(client) - before) / documents)


def memory(client: Any) -> int:
    """What Redis has in use, in bytes."""
    return int(client.info("memory")["used_memory"])


def cpu_s(client: Any) -> float:
    """The processor time that Redis has used."""
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def load(case: Case, method: str, seconds: int) -> dict[str, float]:
    """PUT or GET random documents of the case, and what a request costs Redis in processor time."""
    arguments = [f"/{case.namespace}/@", str(case.asked)]
    before = cpu_s(case.client)
    if method == "PUT":
        seen = measure.wrk(case.port, "put.lua", CONNECTIONS, seconds, [*arguments, case.body.decode()])
    else:
        seen = measure.wrk(case.port, "get.lua", CONNECTIONS, seconds, arguments)
    redis_us = (cpu_s(case.client) - before) / (seen.requests_s * seconds) * 1e6
    return {**seen._asdict(), "redis_cpu_us": redis_us}


def in_turns(cases: list[Case], rounds: int, seconds: int) -> list[dict[str, Any]]:
    """A row for each case: medians over the rounds, and of the ratios to the first case within each round."""
    for case in cases:
        check(case)
    seen: dict[tuple[int, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        print(f"\r  round {number + 1} of {rounds} ", end="", file=sys.stderr)
        for method in METHODS:
            for i, case in enumerate(cases):
                seen.setdefault((i, method), []).append(load(case, method, seconds))
    print(file=sys.stderr)
    rows = []
    for i, case in enumerate(cases):
        row = dict(case.row)
        for method in METHODS:
            mine, firsts = seen[i, method], seen[0, method]
            row[method] = {figure: round(median(of_round[figure] for of_round in mine), 2) for figure in mine[0]}
            row[method]["ratio_to_first"] = round(
                median(a["requests_s"] / b["requests_s"] for a, b in zip(mine, firsts, strict=True)), 3
            )
        rows.append(row)
    return rows


def check(case: Case) -> None:
    """Exit where the service does not answer with the document."""
    status, answer = measure.ask(case.port, "GET", f"/{case.namespace}/{case.asked}")
    if status != 200 or {**json.loads(answer), "ttl": 0} != {**json.loads(case.body), "ttl": 0}:
        sys.exit(f"kvstore gave a wrong answer: {status} {answer[:300]!r}")


def by_shape(directory: Path, rounds: int, seconds: int) -> list[dict[str, Any]]:
    """Documents of each shape, in a namespace of their own."""
    with service(directory / "shapes") as (client, port, _):
        cases = []
        for i, (name, document) in enumerate(SHAPES.items()):
            body = json.dumps(document, separators=(",", ":")).encode()
            row = {"document": name, "json_bytes": len(body), "redis_bytes": fill(client, f"shape{i}", SHAPE_DOCUMENTS, body)}
            cases.append(Case(row, client, port, f"shape{i}", SHAPE_DOCUMENTS, body))
        return in_turns(cases, rounds, seconds)


def by_number(directory: Path, most: int, rounds: int, seconds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Documents of two members in one namespace: a service and a Redis for each number; and the memory of the last.

    The last row asks the fullest for as few documents as the first: what then is left of a difference is not the processor's
    caches, or ours, but the number stored.
    """
    body, cases = json.dumps(TWO, separators=(",", ":")).encode(), []
    with ExitStack() as stack:
        for number in (most // 1000, most // 10, most):
            client, port, pid = stack.enter_context(service(directory / str(number)))
            row = {"documents": number, "asked": number, "redis_bytes": fill(client, "number", number, body)}
            cases.append(Case(row, client, port, "number", number, body))
        few = cases[0].asked
        cases.append(replace(cases[-1], row=cases[-1].row | {"asked": few}, asked=few))
        return in_turns(cases, rounds, seconds), memory_of(pid)


def memory_of(master: int) -> list[dict[str, Any]]:
    """The memory of the master and its workers, in MiB: resident, and their share of it where pages are shared."""
    roles = [("master", master), *(("worker", pid) for pid in processes.children(master))]
    kib = [(role, processes.rss_kib(pid), processes.pss_kib(pid)) for role, pid in roles]
    return [{"process": role, "rss_mib": round(rss / 1024, 1), "pss_mib": round(pss / 1024, 1)} for role, rss, pss in kib]


def starts(directory: Path) -> dict[str, Any]:
    """Seconds from the start of `kvstore`, with the embedded store, to its first answer: on no data, then on a document."""
    data, log, first_s = directory / "data", directory / "start.log", []
    for number in range(STARTS + 1):
        method, body, right = ("PUT", b'{"value":123}', 201) if number == 0 else ("GET", None, 200)
        begun = time.monotonic()
        with measure.kvstore(log, WORKERS, KVSTORE_DATA=str(data)) as (process, port):
            measure.wait_for(lambda: measure.ask(port, method, "/start/1", body)[0] == right, process, log, pause_s=0.002)  # noqa: B023
            first_s.append(time.monotonic() - begun)
    return {
        "on_no_data_s": round(first_s[0], 3),
        "again_s": [round(seconds, 3) for seconds in first_s[1:]],
        "again_median_s": round(median(first_s[1:]), 3),
    }


class SlowClients:
    """Connections that never finish a request: one half sends half a request line, the other a body, a byte at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sockets: list[socket.socket] = [self._open(number) for number in range(SLOW)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._trickle)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        for opened in self._sockets:
            opened.close()

    def _open(self, number: int) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self._port))
        opened.sendall(
            b"GET /slow" if number % 2 else b"PUT /slow/%d HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" % number
        )
        return opened

    def _trickle(self) -> None:
        while not self._stopped.wait(0.2):
            for number, opened in enumerate(self._sockets):
                try:
                    opened.sendall(b"x" if number % 2 else b"1")
                except OSError:  # its time was over: another takes its place
                    opened.close()
                    self._sockets[number] = self._open(number)


def slow_clients(directory: Path, rounds: int, seconds: int) -> list[dict[str, Any]]:
    """p99 of PUT and GET without and with slow clients, in turns, and the median of the ratios."""
    body = json.dumps(TWO, separators=(",", ":")).encode()
    with service(directory / "slow") as (client, port, _):
        fill(client, "slow", SHAPE_DOCUMENTS, body)
        case = Case({}, client, port, "slow", SHAPE_DOCUMENTS, body)
        seen: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
        for _ in range(2 * rounds + 1):
            for method in METHODS:
                alone = load(case, method, seconds)["p99_ms"]
                with SlowClients(port):
                    seen[method].append((alone, load(case, method, seconds)["p99_ms"]))
    return [
        {
            "method": method,
            "slow_clients": SLOW,
            "alone_p99_ms": round(median(alone for alone, _ in pairs), 2),
            "beside_p99_ms": round(median(beside for _, beside in pairs), 2),
            "ratio": round(median(beside / alone for alone, beside in pairs), 2),
        }
        for method, pairs in seen.items()
    ]


def run(documents: int, rounds: int, seconds: int) -> dict[str, Any]:
    """Measure all of it, and return what is saved as inside.json."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as name:
        directory = Path(name)
        with measure.redis_server(directory) as (client, _):
            facts = measure.machine(client)
        started, shapes = starts(directory), by_shape(directory, rounds, seconds)
        slow = slow_clients(directory, rounds, seconds)
        grown, held = by_number(directory, documents, rounds, seconds)
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": facts,
        "workers": WORKERS,
        "connections": CONNECTIONS,
        "rounds": rounds,
        "seconds": seconds,
        "by_shape": shapes,
        "by_number": grown,
        "memory": held,
        "start": started,
        "slow_clients": slow,
    }


HEAD = ("bytes each", "PUT/s", "ratio", "p50 ms", "p99 ms", "Redis µs", "GET/s", "ratio", "p50 ms", "p99 ms", "Redis µs")
FORMATS = {"requests_s": ",.0f", "ratio_to_first": ".2f", "p50_ms": ".2f", "p99_ms": ".2f", "redis_cpu_us": ".1f"}


def cells(row: dict[str, Any]) -> list[str]:
    """The figures of one row, in the order of HEAD."""
    return [f"{row['redis_bytes']:,}"] + [
        format(row[method][name], shown) for method in METHODS for name, shown in FORMATS.items()
    ]


def print_results(results: dict[str, Any]) -> None:
    """Print the tables and the machine."""
    started, rounds = results["start"], results["rounds"]
    print(f"\n{CONNECTIONS} connections, medians of {rounds} rounds of {results['seconds']} s")
    print("ratio: to the first row's requests/s; Redis µs: its processor time for one request; bytes each: in Redis, all told")
    print(f"\nBy shape, {SHAPE_DOCUMENTS:,} documents of each")
    measure.print_table(("document", *HEAD), [[row["document"], *cells(row)] for row in results["by_shape"]])
    print("\nBy number of documents stored, of 2 members, all in one namespace")
    lines = [[f"{row['documents']:,}", f"{row['asked']:,}", *cells(row)] for row in results["by_number"]]
    measure.print_table(("stored", "asked for", *HEAD), lines, left=0)
    print("\nMemory of the service after this, in MiB (share: pages that several processes have in common are divided)")
    lines = [[row["process"], f"{row['rss_mib']:.1f}", f"{row['pss_mib']:.1f}"] for row in results["memory"]]
    measure.print_table(("process", "resident", "share"), lines)
    print(f"\np99 in ms without and with {SLOW} clients beside that never finish a request, median of {2 * rounds + 1} rounds")
    slow = results["slow_clients"]
    lines = [[row["method"], *(f"{row[name]:.2f}" for name in ("alone_p99_ms", "beside_p99_ms", "ratio"))] for row in slow]
    measure.print_table(("", "without", "with", "ratio"), lines)
    print("\nFrom the start of `kvstore`, with the embedded store, to its first answer")
    print(f"  {started['on_no_data_s']:.2f} s to a 201, without data")
    print(f"  {started['again_median_s']:.2f} s to a 200, with data, median of {STARTS}")
    print(f"\n  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Measure kvstore alone.",
        run,
        print_results,
        "inside.json",
        needs=["wrk"],
        documents=measure.Option(1_000_000, 10_000, "the most to store in one namespace"),
        rounds=measure.Option(3, 1, "turns of every case"),
        seconds=measure.Option(2, 1, "of every load"),
    )


if __name__ == "__main__":
    main()
