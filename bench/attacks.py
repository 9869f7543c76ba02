"""Measure what others notice of the heaviest requests: a second client's GETs while each request of the tests' sweep runs.

The service has one worker, so that both clients share it. The second client asks every 2 ms, or when it has its answer if that
takes longer. Writes results/attacks.json. `python -m bench.attacks --help` names the options.
"""

import multiprocessing
import socket
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from bench import measure
from tests.support.heaviest import CASES, Bench, Case
from tests.support.serving import Served, start_kvstore

EVERY_S = 0.002
BESIDE_S = 0.02  # after a case, within which a GET still counts as beside it
REST_S = 0.2  # after what is there before a case, so that no GET waits for that
PROBED = "/probed/a"
REQUEST = f"GET {PROBED} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
ALONE = "nothing"
ALONE_S = 1.0


class Get(NamedTuple):
    """A GET of the second client: when it was asked and when it was answered, by the monotonic clock."""

    asked_s: float
    answered_s: float


def probe(at: tuple[str, int], sent: Connection) -> None:
    """Ask every EVERY_S on one connection until something comes through `sent`; then send what was measured."""
    gets: list[Get] = []
    with socket.create_connection(at) as connection:
        sent.send("begun")
        while not sent.poll():
            asked_s, received = time.monotonic(), b""
            connection.sendall(REQUEST)
            while not received.endswith(b"}\n"):
                received += connection.recv(65_536)
            gets.append(Get(asked_s, time.monotonic()))
            time.sleep(max(0, asked_s + EVERY_S - time.monotonic()))
    sent.send(gets)


def run_beside(bench: Bench, case: Case | None, rounds: int) -> tuple[list[float], list[float]]:
    """The times of a case, and of the GETs that were asked meanwhile; None for a case does nothing for a while."""
    begun_s: list[float] = []
    ended_s: list[float] = []
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    bench.raw.flushall()
    process = None
    for _ in range(rounds):
        bench.raw.flushall()
        bench.ask("PUT", PROBED, {"a": 1})
        if case:
            case.before(bench, case.largest)
        if not process:
            process = processes.Process(target=probe, args=(bench.serving.at, theirs), daemon=True)
            process.start()
            ours.recv()
        time.sleep(REST_S)
        begun_s.append(time.monotonic())
        case.action(bench, case.largest) if case else time.sleep(ALONE_S)
        ended_s.append(time.monotonic())
        time.sleep(2 * BESIDE_S)
    ours.send(None)
    gets: list[Get] = ours.recv()
    assert process
    process.join()
    took_s = [
        get.answered_s - get.asked_s
        for get in gets
        if any(begun < get.answered_s and get.asked_s < ended + BESIDE_S for begun, ended in zip(begun_s, ended_s, strict=True))
    ]
    return [ended - begun for begun, ended in zip(begun_s, ended_s, strict=True)], took_s


def row(name: str, attack_s: list[float], gets_s: list[float]) -> dict[str, Any]:
    """What is saved of one case."""
    ordered_ms = [1000 * each for each in sorted(gets_s)]
    return {
        "attack": name,
        "took_ms": round(1000 * max(attack_s), 1),
        "gets": len(ordered_ms),
        "p99_ms": round(ordered_ms[len(ordered_ms) * 99 // 100], 1),
        "worst_ms": round(ordered_ms[-1], 1),
    }


def run(rounds: int) -> dict[str, Any]:
    """Measure each case, and return what is saved as attacks.json."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        client, redis_at = stack.enter_context(measure.redis_server(directory))
        url = f"unix://{redis_at}"
        serving: Served = start_kvstore(directory, REDIS_URL=url, WEB_CONCURRENCY="1")
        stack.callback(serving.kill)
        bench = Bench(serving, client, url)
        rows = [row(ALONE, *run_beside(bench, None, 1))]
        for case_name, case in CASES.items():
            rows.append(row(case_name, *run_beside(bench, case, rounds)))
            print(".", end="", flush=True)
        return {"when": time.strftime("%Y-%m-%d"), "machine": measure.machine(client), "rounds": rounds, "rows": rows}


def print_results(results: dict[str, Any]) -> None:
    """Print the table, the worst first, and the machine."""
    print(f"\nA GET every 2 ms beside the largest request of its kind, in {results['rounds']} rounds")
    rows = sorted(results["rows"], key=lambda each: -each["worst_ms"])
    cells = [[each["attack"], *(f"{each[name]:,}" for name in ("took_ms", "gets", "p99_ms", "worst_ms"))] for each in rows]
    measure.print_table(("beside", "took ms", "GETs", "p99 ms", "worst ms"), cells)
    print(f"\n  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Measure what others notice of the heaviest requests.",
        run,
        print_results,
        "attacks.json",
        rounds=measure.Option(5, 1, "of each request"),
    )


if __name__ == "__main__":
    main()
