"""Measure queries: a filter, a sort, a count and a search of many documents, and what other clients wait meanwhile.

The same questions go to json-server and to PostgreSQL where `json-server`, `psql` and `pg_config` are on the PATH.
json-server keeps all in memory, so it gets fewer documents. PostgreSQL is asked by psql, without HTTP and without indexes, as
there are none here. Writes results/queries.json. `python -m bench.queries --help` names the options.
"""

import http.client
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench import measure, processes

PAUSE_S = 0.002  # between the GETs of the other client
FEW = 10_000  # one document in so many
MIB = 1024


class Asked(NamedTuple):
    """A question, as each of the servers is asked."""

    name: str
    ours: str
    json_server: str
    sql: str


QUESTIONS = (
    Asked(
        "filter, one in 10,000",
        "few:eq=7&limit=100",
        "few=7&_limit=100",
        "SELECT d FROM docs WHERE (d->>'few')::numeric = 7 ORDER BY id LIMIT 100",
    ),
    Asked(
        "count, one in two",
        "half:lt=0.5&count",
        "half_lte=0.5&_limit=1",
        "SELECT count(*) FROM docs WHERE (d->>'half')::numeric < 0.5",
    ),
    Asked(
        "count, by the start of a string",
        "text:startsWith=a&count",
        "text_like=%5Ea&_limit=1",
        "SELECT count(*) FROM docs WHERE d->>'text' LIKE 'a%'",
    ),
    Asked(
        "sort by a number, best 10",
        "sort=-half&limit=10",
        "_sort=half&_order=desc&_limit=10",
        "SELECT d FROM docs ORDER BY (d->>'half')::numeric DESC LIMIT 10",
    ),
    Asked(
        "sort by a string, best 10",
        "sort=text&limit=10",
        "_sort=text&_limit=10",
        "SELECT d FROM docs ORDER BY d->>'text' COLLATE \"C\" LIMIT 10",
    ),
    Asked("count", "count", "_limit=1", "SELECT count(*) FROM docs"),
    Asked(
        "search, counted",
        "search=needle&count",
        "q=needle&_limit=1",
        "SELECT count(*) FROM docs WHERE d::text ILIKE '%needle%'",
    ),
)


def document(number: int) -> dict[str, Any]:
    """A document of ten members, some 250 bytes."""
    chance = random.Random(number)
    letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=12))
    return {
        "few": number * 7919 % FEW,
        "half": round(chance.random(), 6),
        "text": letters,
        "title": f"document number {number}" + (" needle" if number % 1000 == 0 else ""),
        "born": 1700 + number % 300,
        "open": number % 2 == 0,
        "city": chance.choice(["London", "Paris", "Berlin", "Rome"]),
        "mail": f"{letters}@example.org",
        "score": chance.random(),
        "tags": ["a", letters[:3]],
    }


class Others:
    """Another client, which asks for one small document every PAUSE_S while it runs."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path, self._is_over = port, path, threading.Event()
        self.times_ms: list[float] = []

    def __enter__(self) -> "Others":
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        while not self._is_over.is_set():
            begun = time.perf_counter()
            connection.request("GET", self._path)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            self.times_ms.append((time.perf_counter() - begun) * 1000)
            time.sleep(PAUSE_S)


def timed_s(port: int, target: str) -> float:
    """The time of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    begun = time.perf_counter()
    connection.request("GET", target)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, (answer.status, body[:200])
    return time.perf_counter() - begun


def whole_s(port: int, target: str) -> float:
    """The time of a page of ours: of all pages until one has what was asked for, or the last one."""
    spent, wanted = 0.0, target
    while wanted:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
        begun = time.perf_counter()
        connection.request("GET", wanted)
        answer = connection.getresponse()
        body = answer.read()
        spent += time.perf_counter() - begun
        assert answer.status == 200, (answer.status, body[:200])
        page = json.loads(body)
        wanted = page.get("next", "") if "sort=" not in target and len(page.get("items", ())) < 100 else ""
    return spent


def ask_all(port: int, other: str, ask: Callable[[Asked], float], rounds: int) -> dict[str, dict[str, float]]:
    """The median time of each question, and what the GETs of another client took meanwhile, in all rounds."""
    found = {}
    for asked in QUESTIONS:
        with Others(port, other) as others:
            times_s = [ask(asked) for _ in range(rounds)]
        waited = sorted(others.times_ms)
        found[asked.name] = {
            "s": round(median(times_s), 3),
            "get_median_ms": round(median(waited), 2),
            "get_p99_ms": round(waited[int(0.99 * len(waited))], 2),
            "get_max_ms": round(waited[-1], 2),
        }
    return found


def ours(directory: Path, documents: int, rounds: int) -> dict[str, Any]:
    """Our figures, with one worker, and what it and Redis take of memory."""
    log = directory / "kvstore.log"
    with (
        measure.redis_server(directory) as (client, redis_at),
        measure.kvstore(log, 1, REDIS_URL=f"unix://{redis_at}") as (process, port),
    ):
        measure.wait_for(lambda: measure.answers(port), process, log)
        store_all(port, documents)
        [worker] = processes.children(process.pid)
        before, redis_mib = processes.rss_kib(worker) / MIB, client.info("memory")["used_memory"] / 2**20
        client.config_resetstat()
        found = ask_all(port, "/docs/0000000", lambda asked: whole_s(port, f"/docs/?{asked.ours}"), rounds)
        peak_mib = processes.peak_kib(worker) / MIB
        return {
            "machine": measure.machine(client),
            "queries": found,
            "worker_mib": round(before, 1),
            "worker_peak_mib": round(peak_mib, 1),
            "redis_mib": round(redis_mib),
            "redis_peak_mib": round(client.info("memory")["used_memory_peak"] / 2**20),
        }


def store_all(port: int, documents: int) -> None:
    """Store the documents, by batches."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for first in range(0, documents, 1000):
        numbers = range(first, min(first + 1000, documents))
        puts = [{"method": "PUT", "path": f"/docs/{number:07}", "body": document(number)} for number in numbers]
        connection.request("POST", "/_/batch", json.dumps({"atomic": False, "requests": puts}))
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:1]) == (200, b"{")


def json_server(directory: Path, documents: int, rounds: int) -> dict[str, dict[str, float]]:
    """json-server's figures."""
    data, log, port = directory / "db.json", directory / "json-server.log", measure.free_port()
    rows = [{"id": number + 1} | document(number) for number in range(documents)]
    data.write_text(json.dumps({"docs": rows, "one": [{"id": 1}]}))
    command = [str(shutil.which("json-server")), "--quiet", "--host", "127.0.0.1", "--port", str(port), str(data)]
    with measure.running(command, log) as process:
        measure.wait_for(lambda: measure.answers(port), process, log)
        return ask_all(port, "/one/1", lambda asked: timed_s(port, f"/docs?{asked.json_server}"), rounds)


@contextmanager
def postgres(directory: Path) -> Iterator[Callable[[str], str]]:
    """A PostgreSQL of its own, and what asks it by psql. Root cannot run one, so there the user postgres does."""
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    programs = Path(subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
    data, log = directory / "postgres", directory / "postgres.log"
    data.mkdir()
    if as_user:
        directory.chmod(0o755)
        shutil.chown(data, "postgres", "postgres")
    subprocess.run([*as_user, programs / "initdb", "-D", data, "-A", "trust"], check=True, capture_output=True, cwd="/")
    command: list[str | Path] = [
        *as_user,
        programs / "postgres",
        "-D",
        data,
        "-k",
        data,
        "-c",
        "listen_addresses=",
        "-c",
        "shared_buffers=512MB",
    ]

    def ask(sql: str) -> str:
        psql = [*as_user, "psql", "-h", str(data), "-d", "postgres", "-Atq"]
        return subprocess.run(psql, input=sql, capture_output=True, text=True, check=True, cwd="/").stdout

    with measure.running(command, log) as process:
        measure.wait_for(lambda: ask("SELECT 1"), process, log)
        yield ask


def postgresql(directory: Path, documents: int, rounds: int) -> dict[str, dict[str, float]]:
    """PostgreSQL's times, as psql's \\timing has them. It shares no process with other clients, so these are not measured."""
    with postgres(directory) as ask:
        ask("CREATE TABLE docs (id text PRIMARY KEY, d jsonb)")
        for first in range(0, documents, 10_000):
            numbers = range(first, min(first + 10_000, documents))
            rows = "".join(f"{number:07}\t{json.dumps(document(number))}\n" for number in numbers)
            ask(f"COPY docs FROM STDIN;\n{rows}\\.\n")
        ask("VACUUM ANALYZE docs")
        found = {}
        for asked in QUESTIONS:
            times_s = []
            for _ in range(rounds):
                told = ask(f"\\timing on\n{asked.sql};\n")
                times_s.append(float(told.rpartition("Time: ")[2].split()[0]) / 1000)
            found[asked.name] = {"s": round(median(times_s), 3)}
        return found


def run(documents: int, peers: int, rounds: int) -> dict[str, Any]:
    """Measure all of it, and return what is saved as queries.json."""
    results: dict[str, Any] = {"when": time.strftime("%Y-%m-%d"), "documents": documents, "json_server_documents": peers}
    with ExitStack() as stack:

        def directory() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-", ignore_cleanup_errors=True)))

        results |= {"rounds": rounds} | ours(directory(), documents, rounds)
        if peers and shutil.which("json-server"):
            results["json_server"] = json_server(directory(), peers, rounds)
        if shutil.which("psql") and shutil.which("pg_config"):
            results["postgresql"] = postgresql(directory(), documents, rounds)
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print the table and the machine."""
    documents, peers = results["documents"], results["json_server_documents"]
    print(f"\n{documents:,} documents of ten members, one worker; medians of {results['rounds']}")
    others = {f"json-server, {peers:,}": results.get("json_server", {}), "PostgreSQL": results.get("postgresql", {})}
    rows = [
        [
            name,
            f"{found['s']:.2f}",
            f"{documents / found['s']:,.0f}",
            *(f"{found[key]:.1f}" for key in ("get_median_ms", "get_p99_ms", "get_max_ms")),
            *(f"{other[name]['s']:.2f}" if name in other else "" for other in others.values()),
        ]
        for name, found in results["queries"].items()
    ]
    head: Sequence[str] = ("query", "s", "documents/s", "a GET, ms", "p99", "slowest", *(f"{name}, s" for name in others))
    measure.print_table(head, rows)
    if "json_server" in results:
        slowest = max(found["get_max_ms"] for found in results["json_server"].values())
        print(f"\n  the slowest GET of json-server's other client took {slowest:,.0f} ms")
    print(f"\n  the worker takes {results['worker_mib']} MiB, at most {results['worker_peak_mib']}")
    print(f"  Redis takes {results['redis_mib']:,} MiB, at most {results['redis_peak_mib']:,}")
    print(f"\n  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Measure queries, beside json-server and PostgreSQL where these are installed.",
        run,
        print_results,
        "queries.json",
        documents=measure.Option(200_000, 5_000, "to ask about"),
        peers=measure.Option(20_000, 1_000, "in json-server, 0 to leave it out"),
        rounds=measure.Option(3, 1, "of each query"),
    )


if __name__ == "__main__":
    main()
