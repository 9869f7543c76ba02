"""Compare the queue with RQ: jobs that do nothing, from being queued to being done, on the same Redis, in turns.

RQ is installed into a venv of its own in a temporary directory; without that only this service is measured. Writes
results/jobs.json. `python -m bench.jobs --help` names the options.
"""

import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import measure

RQ = "2.12.0"
WORKERS = (1, 8)


@dataclass(frozen=True, slots=True)
class Queue:
    """One that is compared: the Python it runs under, its script here, its worker's command, and how many jobs it is given."""

    name: str
    python: Path
    script: str
    worker: tuple[str, ...]
    is_one_command: bool  # for several workers, with the option --concurrency
    jobs: int

    @contextmanager
    def workers(self, count: int, directory: Path, redis_url: str) -> Iterator[None]:
        """So many workers, once they wait for jobs."""
        command: list[str | Path] = [self.python.parent / self.worker[0], *self.worker[1:]]
        if self.is_one_command:
            command += ["--concurrency", str(count)]
        with ExitStack() as stack:
            for number in range(1 if self.is_one_command else count):
                log = directory / f"{self.name.replace(' ', '-')}-{number}.log"
                stack.enter_context(
                    measure.running(command, log, REDIS_URL=redis_url, RQ_REDIS_URL=redis_url, PYTHONPATH=str(measure.BENCH))
                )
            self.run(count, redis_url)  # waits for the first of them; then all have had the time
            time.sleep(1)
            yield

    def run(self, jobs: int, redis_url: str) -> tuple[float, float]:
        """The seconds until so many jobs were queued, and until they were done."""
        command: list[str | Path] = [self.python, measure.BENCH / self.script, str(jobs)]
        environment = measure.ENVIRONMENT | {"REDIS_URL": redis_url}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            sys.exit(f"{self.name} failed:\n{done.stderr[-2000:]}")
        queued_s, done_s = json.loads(done.stdout)
        return queued_s, done_s


def queues(directory: Path, jobs: int) -> list[Queue]:
    """This service, and RQ where it can be installed: as it comes, and with the worker that does not fork for each job."""
    worker = ("flask", "--app", str(measure.BENCH / "noop_kvstore.py"), "kvstore", "worker")
    found = [Queue("kvstore", measure.BIN / "python", "noop_kvstore.py", worker, True, jobs)]
    try:
        python = install_rq(directory / "rq")
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"RQ cannot be installed, so only kvstore is measured: {error}", file=sys.stderr)
        return found
    simple = ("rq", "worker", "-q", "-w", "rq.worker.SimpleWorker")
    return [
        *found,
        Queue("RQ", python, "noop_rq.py", ("rq", "worker", "-q"), False, max(1, jobs // 20)),
        Queue("RQ, SimpleWorker", python, "noop_rq.py", simple, False, max(1, jobs // 4)),
    ]


def install_rq(directory: Path) -> Path:
    """The Python of a new venv that has RQ."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"rq=={RQ}", "hiredis"], capture_output=True, check=True)
    return python


def run(rounds: int, jobs: int) -> dict[str, Any]:
    """Work the queues in turns, and return what is saved as jobs.json."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvstore-bench-")))
        client, redis_at = stack.enter_context(measure.redis_server(directory))
        facts = measure.machine(client)
        compared = queues(directory, jobs)
        if len(compared) > 1:
            facts["RQ"] = RQ
        seconds: Seconds = {}
        for number in range(rounds):
            for workers in WORKERS:
                for queue in compared[number % len(compared) :] + compared[: number % len(compared)]:
                    print(f"\r  round {number + 1} of {rounds}: {queue.name}, {workers} workers ", end="", file=sys.stderr)
                    client.flushall()
                    with queue.workers(workers, directory, f"unix://{redis_at}"):
                        seconds.setdefault((queue.name, workers), []).append(queue.run(queue.jobs, f"unix://{redis_at}"))
        print(file=sys.stderr)
    return {
        "when": time.strftime("%Y-%m-%d"),
        "machine": facts,
        "rounds": rounds,
        "rows": rows(compared, seconds),
    }


Seconds = dict[tuple[str, int], list[tuple[float, float]]]  # by queue and workers: until queued and until done, by rounds


def rows(compared: list[Queue], seconds: Seconds) -> list[dict[str, Any]]:
    """A row of figures for each queue and number of workers: jobs a second, medians over the rounds."""
    found = []
    for workers in WORKERS:
        done = {queue.name: [queue.jobs / done_s for _, done_s in seconds[queue.name, workers]] for queue in compared}
        for queue in compared:
            rates = done[queue.name]
            found.append(
                {
                    "queue": queue.name,
                    "workers": workers,
                    "jobs": queue.jobs,
                    "queued_per_s": round(median(queue.jobs / queued_s for queued_s, _ in seconds[queue.name, workers])),
                    "done_per_s": round(median(rates)),
                    "kvstore_times": round(median(ours / its for ours, its in zip(done["kvstore"], rates, strict=True)), 2),
                    "done_per_s_of_rounds": [round(rate) for rate in rates],
                }
            )
    return found


def print_results(results: dict[str, Any]) -> None:
    """Print the table and the machine."""
    lines = [
        [row["queue"], str(row["workers"]), f"{row['queued_per_s']:,}", f"{row['done_per_s']:,}", f"{row['kvstore_times']:.1f}"]
        for row in results["rows"]
    ]
    measure.print_table(("", "workers", "queued/s", "done/s", "kvstore is ×"), lines)
    print(f"\n  medians of {results['rounds']} rounds; done/s is from the first job queued to the last one done")
    print(f"  {measure.machine_line(results['machine'])}")


def main() -> None:
    measure.main(
        "Compare the queue with RQ.",
        run,
        print_results,
        "jobs.json",
        rounds=measure.Option(3, 1, "turns of every queue"),
        jobs=measure.Option(4000, 400, "of every turn; RQ is given fewer"),
    )


if __name__ == "__main__":
    main()
