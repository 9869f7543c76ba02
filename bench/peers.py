"""Compare this service with webdis and with the article's Flask app: the same documents, the same Redis, in turns.

Writes results/peers.json, and docs/peers.svg. `python -m bench.peers --help` names the options.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import measure, picture
from bench.measure import BODY, METHODS, Load
from kvstore.core.settings import YEAR_S

DOCUMENTS = 2000  # as in the article's load test
CONNECTIONS = (32, 128)
WORKERS = 2
AGE_S = 500_000  # a document that is checked is younger than this

# webdis answers one request with one Redis command, so the work of one request is a script, as it is in this service.
WEBDIS_PUT = """
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
# Its JSON shows a list within a list as null, so the TTL follows the fields.
WEBDIS_GET = """
local found = redis.call('HGETALL', KEYS[1])
found[#found + 1] = redis.call('PTTL', KEYS[1])
return found
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One that is compared: where it listens, its paths with "@" for a document's number, and what a right answer is."""

    name: str
    port: int
    put_path: str
    get_path: str
    body: str
    is_right: Callable[[str, Any], bool]  # (method, the answer's JSON)

    def load(self, method: str, connections: int, seconds: int) -> Load:
        """What wrk measures of it."""
        if method == "GET":
            return measure.wrk(self.port, "get.lua", connections, seconds, [self.get_path, str(DOCUMENTS)])
        return measure.wrk(self.port, "put.lua", connections, seconds, [self.put_path, str(DOCUMENTS), self.body])

    def check(self, method: str, number: int) -> None:
        """Send one request; exits where the answer is wrong."""
        path, body = (self.get_path, None) if method == "GET" else (self.put_path, self.body.encode())
        status, answer = measure.ask(self.port, method, path.replace("@", str(number)), body)
        if status not in (200, 201) or not self.is_right(method, json.loads(answer)):
            sys.exit(f"{self.name} gave a wrong answer to {method}: {status} {answer[:300]!r}")


def is_document(_method: str, answer: Any) -> bool:
    """The document as it was sent, and the seconds that are left."""
    return bool(answer.pop("ttl") > YEAR_S - AGE_S and answer == json.loads(BODY))


@contextmanager
def kvstore(directory: Path, redis_at: Path) -> Iterator[Server]:
    log = directory / "kvstore.log"
    with measure.kvstore(log, WORKERS, REDIS_URL=f"unix://{redis_at}") as (process, port):
        measure.wait_for(lambda: measure.answers(port), process, log)
        yield Server("kvstore", port, "/bench/@", "/bench/@", BODY, is_document)


@contextmanager
def webdis(directory: Path, redis_at: Path, client: Any) -> Iterator[Server]:
    port, log, config = measure.free_port(), directory / "webdis.log", directory / "webdis.json"
    settings = {"redis_host": str(redis_at), "redis_port": 0, "database": 0, "http_host": "127.0.0.1", "http_port": port}
    settings |= {"threads": WORKERS, "daemonize": False, "verbosity": 0, "logfile": "/dev/null"}
    config.write_text(json.dumps(settings), "utf-8")
    put, get = client.script_load(WEBDIS_PUT), client.script_load(WEBDIS_GET)

    def is_right(method: str, answer: Any) -> bool:
        reply = answer["EVALSHA"]
        if method == "PUT":
            return bool(reply == 1)
        return bool(reply[:-1] == ["value", "123", "text", '"hello"'] and reply[-1] > (YEAR_S - AGE_S) * 1000)

    with measure.running(["webdis", config], log) as process:
        measure.wait_for(lambda: measure.ask(port, "GET", "/PING")[0] == 200, process, log)
        # Of a PUT, webdis takes the body as the last argument.
        put_path, get_path = f"/EVALSHA/{put}/1/webdis:@/{YEAR_S * 1000}/value/123/text", f"/EVALSHA/{get}/1/webdis:@"
        yield Server("webdis", port, put_path, get_path, '"hello"', is_right)


@contextmanager
def baseline(directory: Path, redis_at: Path) -> Iterator[Server]:
    port, log = measure.free_port(), directory / "baseline.log"
    command: list[str | Path] = [
        measure.BIN / "gunicorn",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        str(WORKERS),
        "--no-control-socket",
    ]
    command += ["--chdir", measure.ROOT, "bench.baseline:app"]
    with measure.running(command, log, REDIS_URL=f"unix://{redis_at}") as process:
        measure.wait_for(lambda: measure.answers(port), process, log)
        yield Server("baseline", port, "/baseline/@", "/baseline/@", BODY, is_document)


def run(rounds: int, seconds: int) -> dict[str, Any]:
    """Start all, load them in turns, and return what is saved as peers.json."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
        client, redis_at = stack.enter_context(measure.redis_server(directory))
        facts = measure.machine(client)
        servers = [stack.enter_context(kvstore(directory, redis_at))]
        if shutil.which("webdis"):
            servers.append(stack.enter_context(webdis(directory, redis_at, client)))
            facts["webdis"] = measure.debian_version("webdis")
        servers.append(stack.enter_context(baseline(directory, redis_at)))
        for server in servers:
            for number in range(1, DOCUMENTS + 1):
                server.check("PUT", number)
        client.config_resetstat()
        loads = in_turns(servers, rounds, seconds)
        for server in servers:
            for method in METHODS:
                server.check(method, DOCUMENTS)
        if failed := measure.failed_commands(client):
            sys.exit(f"Redis refused commands, so nothing here counts: {failed}")
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": facts,
        "workers": WORKERS,
        "documents": DOCUMENTS,
        "body": BODY,
        "rounds": rounds,
        "seconds": seconds,
        "rows": rows(loads),
    }


Loads = dict[tuple[str, str, int], list[Load]]  # by server, method, connections; one for each round


def in_turns(servers: list[Server], rounds: int, seconds: int) -> Loads:
    """Load every server in every round, each time another one first, so that the machine's noise hits all alike."""
    loads: Loads = {}
    for method in METHODS:
        for connections in CONNECTIONS:
            for server in servers:
                loads[server.name, method, connections] = []
    for number in range(rounds):
        order = servers[number % len(servers) :] + servers[: number % len(servers)]
        for method in METHODS:
            for connections in CONNECTIONS:
                print(f"\r  round {number + 1} of {rounds}: {method}, {connections} connections ", end="", file=sys.stderr)
                for server in order:
                    loads[server.name, method, connections].append(server.load(method, connections, seconds))
    print(file=sys.stderr)
    return loads


def rows(loads: Loads) -> list[dict[str, Any]]:
    """A row of figures for each server, method and number of connections: medians over the rounds."""
    found = []
    for (name, method, connections), of_rounds in loads.items():
        row: dict[str, Any] = {"server": name, "method": method, "connections": connections}
        for figure in Load._fields:
            row[figure] = round(median(getattr(load, figure) for load in of_rounds), 2)
        for other in ("webdis", "baseline"):
            beside = loads.get((other, method, connections))
            ratios = [mine.requests_s / its.requests_s for mine, its in zip(of_rounds, beside, strict=True)] if beside else []
            row[f"ratio_to_{other}"] = round(median(ratios), 3) if ratios else None
        row["requests_s_of_rounds"] = [round(load.requests_s) for load in of_rounds]
        found.append(row)
    return found


def print_results(results: dict[str, Any]) -> None:
    """Print the table and the machine."""

    def cells(row: dict[str, Any]) -> list[str]:
        ratios = [row["ratio_to_webdis"], row["ratio_to_baseline"]]
        shown = [f"{row['requests_s']:,.0f}", f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}"]
        return shown + ["–" if ratio is None else f"{ratio:.2f}" for ratio in ratios]

    lines = [[row["method"], str(row["connections"]), row["server"], *cells(row)] for row in results["rows"]]
    head = ("", "connections", "server", "requests/s", "p50 ms", "p99 ms", "× webdis", "× baseline")
    measure.print_table(head, lines, left=3)
    print(f"\n  {results['documents']:,} documents, medians of {results['rounds']} rounds of {results['seconds']} s")
    print(f"  {measure.machine_line(results['machine'])}")


def main() -> None:
    options = measure.read_options(
        "Compare kvstore, webdis and the article's Flask app.",
        needs=["wrk"],
        rounds=measure.Option(5, 1, "turns of every server"),
        seconds=measure.Option(3, 1, "of every load"),
    )
    results = run(options.rounds, options.seconds)
    print_results(results)
    svg = picture.draw(results)
    if not options.quick:
        measure.save("peers.json", results)
        (measure.ROOT / "docs" / "peers.svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
