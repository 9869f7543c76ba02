"""Measure the service on a Redis Cluster of three nodes beside the service on one Redis, all on this machine.

Both are reached over TCP, and are asked for the same documents of SPACES namespaces, as many of them on each node. The
processor time that a request takes of a worker and of Redis says what more machines would give. Writes results/cluster.json.
`python -m bench.cluster --help` names the options.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import redis

from bench import measure, processes
from bench.measure import METHODS
from kvstore.core.paths import parse_path
from kvstore.stores.slots import SLOTS, slot_of

NODES = 3
SPACES = 12
DOCUMENTS = 2000  # of all namespaces together
CONNECTIONS = (32, 128)
WORKERS = 2


class Service(NamedTuple):
    """The service at a port of 127.0.0.1, on some Redis processes."""

    name: str
    port: int
    workers: list[int]
    nodes: list[int]

    def cpu_s(self) -> tuple[float, float]:
        """The processor time of the workers, and of Redis."""
        return sum(map(processes.cpu_s, self.workers)), sum(map(processes.cpu_s, self.nodes))


class Run(NamedTuple):
    """What one load was: requests a second, p99, and the µs of processor time that a request took of workers and of Redis."""

    requests_s: float
    p99_ms: float
    worker_us: float
    redis_us: float


def node_of(space: str) -> int:
    """The index of the node that has a namespace."""
    return slot_of(parse_path(f"/{space}/1".encode()).keys.log) * NODES // SLOTS


def spaces() -> list[str]:
    """The names of SPACES namespaces, as many of them on each node; neighbours are on different ones."""
    names = [f"space{number}" for number in range(1000)]
    by_node = [[name for name in names if node_of(name) == node][: SPACES // NODES] for node in range(NODES)]
    return [name for group in zip(*by_node, strict=True) for name in group]


@contextmanager
def redis_processes(directory: Path, count: int) -> Iterator[tuple[list[int], list[int]]]:
    """The ports and the pids of Redis processes on TCP; more than one are a cluster."""
    with ExitStack() as stack:
        ports, pids = [measure.free_port() for _ in range(count)], []
        nodes = [stack.enter_context(redis.Redis(port=port, socket_timeout=60)) for port in ports]
        for port, node in zip(ports, nodes, strict=True):
            home, log = directory / str(port), directory / f"{port}.log"
            home.mkdir()
            options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(home)]
            if count > 1:
                options += ["--cluster-enabled", "yes", "--cluster-port", str(measure.free_port())]
            process = stack.enter_context(measure.running(["redis-server", *options], log))
            measure.wait_for(node.ping, process, log)
            pids.append(process.pid)
        if count > 1:
            bus = int(nodes[0].config_get("cluster-port")["cluster-port"])
            for number, node in enumerate(nodes):
                first, end = (-(-SLOTS * part // count) for part in (number, number + 1))
                node.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
                node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0], bus)
            measure.wait_for(lambda: all(is_whole(node, count) for node in nodes), process, log)
        yield ports, pids


def is_whole(node: Any, count: int) -> bool:
    """Whether a node knows all of its cluster, and that is well."""
    seen = node.cluster("info")
    return bool(seen["cluster_state"] == "ok" and int(seen["cluster_known_nodes"]) == count)


@contextmanager
def service(name: str, directory: Path, count: int) -> Iterator[Service]:
    """The service on one Redis, or on a cluster of so many nodes."""
    directory.mkdir()
    log = directory / "kvstore.log"
    with redis_processes(directory, count) as (ports, pids):
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = f"redis{'+cluster' if count > 1 else ''}://{hosts}"
        with measure.kvstore(log, WORKERS, REDIS_URL=url) as (process, port):
            measure.wait_for(lambda: len(processes.children(process.pid)) >= WORKERS and measure.answers(port), process, log)
            yield Service(name, port, processes.children(process.pid), pids)


def load(served: Service, method: str, connections: int, seconds: int) -> Run:
    """PUT or GET random documents."""
    worker_s, redis_s = served.cpu_s()
    body = measure.BODY if method == "PUT" else ""
    arguments = [method, str(DOCUMENTS // SPACES), body, *spaces()]
    seen = measure.wrk(served.port, "spread.lua", connections, seconds, arguments)
    worker_after_s, redis_after_s = served.cpu_s()
    us = 1e6 / (seen.requests_s * seconds)
    return Run(seen.requests_s, seen.p99_ms, us * (worker_after_s - worker_s), us * (redis_after_s - redis_s))


def store_all(served: Service) -> None:
    """Store each document once."""
    for space in spaces():
        for number in range(1, DOCUMENTS // SPACES + 1):
            status, _ = measure.ask(served.port, "PUT", f"/{space}/{number}", measure.BODY.encode())
            assert status == 201, status


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """Measure both in turns, and return what is saved as cluster.json."""
    seen: dict[tuple[str, int, str], list[Run]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
        served = [
            stack.enter_context(service("one Redis", directory / "one", 1)),
            stack.enter_context(service("cluster", directory / "cluster", NODES)),
        ]
        with measure.redis_server(directory) as (client, _):
            facts = measure.machine(client)
        for each in served:
            store_all(each)
        for number in range(rounds):
            print(f"\r  round {number + 1} of {rounds} ", end="", file=sys.stderr)
            for method in METHODS:
                for connections in CONNECTIONS:
                    for each in served if number % 2 else reversed(served):
                        at = method, connections, each.name
                        seen.setdefault(at, []).append(load(each, method, connections, seconds))
    print(file=sys.stderr)
    results = []
    for (method, connections, name), runs in seen.items():
        ratios = [a.requests_s / b.requests_s for a, b in zip(runs, seen[method, connections, "one Redis"], strict=True)]
        results.append(
            {
                "method": method,
                "connections": connections,
                "on": name,
                "requests_s": round(median(each.requests_s for each in runs)),
                "p99_ms": round(median(each.p99_ms for each in runs), 2),
                "worker_us": round(median(each.worker_us for each in runs), 1),
                "redis_us": round(median(each.redis_us for each in runs), 1),
                "ratio": round(median(ratios), 2),
                "ratios": [round(min(ratios), 2), round(max(ratios), 2)],
            }
        )
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": facts,
        "workers": WORKERS,
        "rounds": rounds,
        "seconds": seconds,
        "results": results,
    }


def print_results(results: dict[str, Any]) -> None:
    """Print the table and the machine."""
    print(f"\nA cluster of {NODES} nodes beside one Redis, medians of {results['rounds']} rounds of {results['seconds']} s")
    print("ratio: to the requests/s on one Redis in the same round; µs: processor time of a request")
    lines = [
        [
            row["on"],
            row["method"],
            str(row["connections"]),
            f"{row['requests_s']:,}",
            f"{row['p99_ms']:.2f}",
            f"{row['worker_us']:.1f}",
            f"{row['redis_us']:.1f}",
            f"{row['ratio']:.2f} ({row['ratios'][0]:.2f} to {row['ratios'][1]:.2f})",
        ]
        for row in results["results"]
    ]
    head = ("on", "method", "connections", "requests/s", "p99 ms", "worker µs", "Redis µs", "ratio")
    measure.print_table(head, lines, left=2)
    print(f"\n  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Measure a cluster beside one Redis.",
        run,
        print_results,
        "cluster.json",
        needs=["wrk", "redis-server"],
        rounds=measure.Option(5, 1, "turns of both"),
        seconds=measure.Option(3, 1, "of every load"),
    )


if __name__ == "__main__":
    main()
