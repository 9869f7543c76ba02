"""Measure containers and batches: pages and a stream of many documents, deleting them, and documents a second by batch.

Writes results/containers.json. `python -m bench.containers --help` names the options.
"""

import http.client
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import measure, processes
from bench.measure import BODY

WORKERS = 2
CONNECTIONS = 4
NAMESPACES = 16
PAGES = 200
PAGE = 100


def pages(port: int, documents: int) -> list[dict[str, Any]]:
    """The time of a page of 100 at the start, in the middle and at the end, each PAGES times in turns."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    places = {"start": "", "middle": f"&after={documents // 2:08d}", "end": f"&after={documents - PAGE - 1:08d}"}
    times_ms: dict[str, list[float]] = {place: [] for place in places}
    for _ in range(PAGES):
        for place, after in places.items():
            begun = time.perf_counter()
            connection.request("GET", f"/many/?limit={PAGE}{after}")
            answer = connection.getresponse()
            listed = json.loads(answer.read())["items"]
            times_ms[place].append((time.perf_counter() - begun) * 1000)
            assert (answer.status, len(listed)) == (200, PAGE), (answer.status, len(listed))
    return [{"page": place, "median_ms": round(median(times), 2)} for place, times in times_ms.items()]


def stream(port: int, master: int, documents: int) -> dict[str, Any]:
    """All documents as NDJSON: items a second, and what that adds to the memory of the workers."""
    before = peak_mib(master)
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/many/", headers={"Accept": "application/x-ndjson"})
    answer, lines = connection.getresponse(), 0
    while part := answer.read(1 << 20):
        lines += part.count(b"\n")
    seconds = time.perf_counter() - begun
    assert lines == documents, lines
    return {"items": lines, "items_s": round(lines / seconds), "added_mib": round(peak_mib(master) - before, 1)}


def peak_mib(master: int) -> float:
    """The most memory that the workers of a master ever had, summed."""
    return sum(processes.peak_kib(pid) for pid in processes.children(master)) / 1024


def delete(port: int, client: Any, documents: int) -> dict[str, Any]:
    """All of them deleted in one request: documents a second, and the longest that Redis was held up."""
    client.config_set("slowlog-log-slower-than", 1000)
    client.slowlog_reset()
    begun = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("DELETE", "/many/?recursive")
    answer = json.loads(connection.getresponse().read())
    seconds = time.perf_counter() - begun
    assert answer == {"deleted": documents}, answer
    longest_us = max((entry["duration"] for entry in client.slowlog_get(128)), default=0)
    return {"documents_s": round(documents / seconds), "longest_script_ms": round(longest_us / 1000, 1)}


def batches(port: int, rounds: int, seconds: int) -> list[dict[str, Any]]:
    """Documents a second written and read by batches of 1,000."""
    seen: dict[str, list[float]] = {"PUT": [], "GET": []}
    for _ in range(rounds):
        for method, rates in seen.items():
            arguments = [method, str(NAMESPACES), BODY if method == "PUT" else ""]
            rates.append(1000 * measure.wrk(port, "batch.lua", CONNECTIONS, seconds, arguments).requests_s)
    return [{"method": method, "documents_s": round(median(rates))} for method, rates in seen.items()]


def run(documents: int, rounds: int, seconds: int) -> dict[str, Any]:
    """Measure all of it, and return what is saved as containers.json."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as name:
        directory = Path(name)
        log = directory / "kvstore.log"
        with (
            measure.redis_server(directory) as (client, redis_at),
            measure.kvstore(log, WORKERS, REDIS_URL=f"unix://{redis_at}") as (process, port),
        ):
            measure.wait_for(lambda: measure.answers(port), process, log)
            results = {"when": time.strftime("%Y-%m-%d"), "machine": measure.machine(client), "documents": documents}
            results |= {"rounds": rounds, "seconds": seconds, "batches": batches(port, rounds, seconds)}
            measure.fill(client, "/many/@", [f"{number:08d}" for number in range(documents)], BODY.encode())
            results["pages"] = pages(port, documents)
            results["stream"] = stream(port, process.pid, documents)
            results["delete"] = delete(port, client, documents)
            return results


def print_results(results: dict[str, Any]) -> None:
    """Print the tables and the machine."""
    print(f"\nBy batches of 1,000, {CONNECTIONS} connections, medians of {results['rounds']} rounds of {results['seconds']} s")
    lines = [[row["method"], f"{row['documents_s']:,}"] for row in results["batches"]]
    measure.print_table(("method", "documents/s"), lines)
    print(f"\nA page of {PAGE} of {results['documents']:,} documents in one namespace, median of {PAGES}")
    measure.print_table(("page", "ms"), [[row["page"], f"{row['median_ms']:.2f}"] for row in results["pages"]])
    streamed, deleted = results["stream"], results["delete"]
    print(f"\n  as NDJSON {streamed['items_s']:,} items/s; the workers' peak memory grew by {streamed['added_mib']} MiB")
    print(f"  deleted   {deleted['documents_s']:,} documents/s; the longest script took {deleted['longest_script_ms']} ms")
    print(f"\n  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Measure containers and batches.",
        run,
        print_results,
        "containers.json",
        needs=["wrk"],
        documents=measure.Option(1_000_000, 5_000, "to store in one namespace"),
        rounds=measure.Option(3, 1, "of batches"),
        seconds=measure.Option(3, 1, "of every load"),
    )


if __name__ == "__main__":
    main()
