"""Run every fault for a number of rounds, each with a seed of its own, and write docs/faults.md: `make faults`.

A fault is one or more tests. Each test checks what was promised: a history against a model, streams against the change log,
what is stored against what was acknowledged. What a test draws at random depends on the seed of the round
(tests/support/rounds.py).

What was seen is kept in seen.json, each fault for itself, so that a new fault can have its rounds alone (`--only`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
RECORD = Path(__file__).with_name("seen.json")  # what the page is made of
ROUND_S = 1800.0


class Fault(NamedTuple):
    """A row of the report: what is done, what is promised, and the tests that do it and look, by file and name."""

    done: str
    promised: str
    tests: tuple[str, ...]


ONCE = "An acknowledged write is applied once; 503 is unknown, and safe to send again"
FAILOVER = (
    "Every request is answered within 6 s, and served if sent 2 s after the promotion; jobs and tasks end done or dead; who"
    " holds is shown again within 10 s, and nobody for more than 30 s after leaving"
)

FAULTS = (
    Fault(
        "`kill -9` of Redis under load",
        "Every request is answered within 6 s, and served again within 2 s of Redis's return",
        ("faults/test_trouble.py::test_redis_is_killed", "faults/test_stopping.py::test_redis_is_killed_and_started_again"),
    ),
    Fault(
        "Redis stands still, for moments and for longer than a request waits",
        ONCE,
        (
            "faults/test_history.py::test_while_redis_hesitates",
            "faults/test_history.py::test_while_redis_is_away",
            "faults/test_trouble.py::test_redis_is_halted",
            "faults/test_stopping.py::test_redis_is_halted",
        ),
    ),
    Fault(
        "The connection to Redis is cut at each message of each request",
        "A response is true; with an `Idempotency-Key` a retry is applied once",
        (
            "faults/test_truth.py::test_an_answer_is_true",
            "faults/test_truth.py::test_a_key_makes_it_safe_to_send_again",
            "faults/test_trouble.py::test_a_cut_connection",
        ),
    ),
    Fault(
        "Redis is full",
        "Writes are answered with 507 and change nothing; reads and deletes go on",
        ("faults/test_trouble.py::test_redis_is_full", "faults/test_trouble.py::test_a_full_redis_keeps_answers"),
    ),
    Fault(
        "Redis answers slowly",
        "Every request is answered within 6 s",
        (
            "faults/test_deadlines.py::test_slow_answers_add_up",
            "faults/test_deadlines.py::test_a_request_of_many_commands_has_its_answer_in_time",
        ),
    ),
    Fault(
        "The clock of Redis goes back",
        "No entity-tag comes again, and documents expire in time",
        (
            "faults/test_clock.py::test_an_expiry_is_noticed_in_time",
            "faults/test_clock.py::test_a_failover_repeats_no_entity_tag",
        ),
    ),
    Fault(
        "A primary behind Sentinels dies, or hangs",
        "The service goes on with the new primary; streams resume, and are told what is lost",
        ("stores/test_sentinel.py::test_a_failover", "stores/test_sentinel.py::test_a_primary_that_hangs"),
    ),
    Fault(
        "A primary dies with `KVSTORE_REPLICAS=1`, also in a cluster; its replica is 50 ms behind, or stands still",
        "No acknowledged write is lost; without the replica a write is 503 after 1 s, and reads go on",
        (
            "stores/test_replicated.py::test_a_primary_dies_under_load",
            "stores/test_replicated.py::test_what_is_acknowledged_survives_the_primary",
            "stores/test_replicated.py::test_a_replica_that_hangs",
            "stores/test_replicated.py::test_a_replay_waits_too",
            "faults/test_cluster.py::test_a_primary_that_dies_under_writers_that_wait_for_replicas",
        ),
    ),
    Fault(
        "A primary dies, or hangs and goes on later, under writers, streams, a queue, presence and tasks; its replicas are"
        " 0.3 s behind; Sentinels, and a cluster",
        f"{FAILOVER}; what is lost came in those 0.3 s, and streams are told",
        ("faults/test_failover.py::test_a_failover_under_load",),
    ),
    Fault(
        "The same with `KVSTORE_REPLICAS=1`",
        f"{FAILOVER}; no acknowledged write, job or result is lost, and no job is there twice",
        ("faults/test_failover.py::test_a_failover_under_load_with_replicas",),
    ),
    Fault(
        "Slots of a cluster move under load; a node hangs; a primary dies",
        "No write is sent twice, and other namespaces go on",
        (
            "faults/test_cluster.py::test_slots_that_move_under_load",
            "faults/test_cluster.py::test_a_node_that_hangs",
            "faults/test_cluster.py::test_a_primary_that_dies",
        ),
    ),
    Fault(
        "Workers are killed, connections to Redis are closed, readers come and go",
        "A stream has every change once and in order, or says `reset`",
        ("faults/test_stream_history.py::test_no_gap_and_no_repeat", "faults/test_stopping.py::test_killed_workers"),
    ),
    Fault(
        "One of two instances behind nginx is killed",
        "Its clients go on at the other; nothing is lost or doubled; nobody seems to leave",
        (
            "faults/test_instances.py::test_an_instance_is_killed",
            "faults/test_instances.py::test_no_write_is_sent_to_both",
        ),
    ),
    Fault(
        "The service is stopped under load",
        "What is in flight is finished",
        ("faults/test_stopping.py::test_stopped_under_load", "faults/test_stopping.py::test_what_is_in_flight_is_finished"),
    ),
    Fault(
        "Takers of jobs come late, give back, or leave",
        "Every job ends done or dead, exactly one of the two",
        ("faults/test_queue_history.py::test_every_job_ends_once",),
    ),
    Fault(
        "Eight clients at once, all kinds of operations",
        "Some order of the operations explains every response",
        ("faults/test_history.py::test_some_order_explains", "faults/test_model.py::test_as_a_dict"),
    ),
    Fault(
        "Clients that are slow, send half a request, or never read",
        "They are disconnected, and others do not wait for them",
        (
            "faults/test_slow_clients.py::test_slow_clients_do_not_slow_others",
            "faults/test_slow_clients.py::test_a_client_that_never_reads_is_dropped",
            "faults/test_trouble.py::test_half_a_body",
        ),
    ),
)


class Seen(NamedTuple):
    """What the rounds of one fault came to: their seeds, the day, runs of tests, what these counted, and those that failed."""

    seeds: list[int]
    date: str
    runs: Counter[str]
    counts: Counter[str]
    broken: list[str]


NOTHING = Seen([], "", Counter(), Counter(), [])


def run_round(seed: int, faults: tuple[Fault, ...], processes: int) -> list[Seen]:
    """Run the tests of these faults once, and return what came of each fault."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        tests = [f"tests/{test}" for fault in faults for test in fault.tests]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            str(processes),
            "-p",
            "no:cacheprovider",
            f"--junit-xml={report}",
        ]
        environ = os.environ | {"KVSTORE_FAULTS_SEED": str(seed)}
        subprocess.run(
            [*command, f"--hypothesis-seed={seed}", *tests],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.DEVNULL,
            timeout=ROUND_S,
            check=False,
        )
        return [read(ElementTree.parse(report).getroot(), fault, seed) for fault in faults]


def read(report: ElementTree.Element, fault: Fault, seed: int) -> Seen:
    """What a report of pytest says of a fault."""
    seen = Seen([seed], time.strftime("%Y-%m-%d"), Counter(), Counter(), [])
    ours = {test.removesuffix(".py").replace("/", ".").replace(".py::", ".") for test in fault.tests}
    for case in report.iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}".removeprefix("tests.")
        if name.partition("[")[0] not in ours:
            continue
        if case.find("skipped") is not None:
            seen.runs["skipped"] += 1
        elif (failure := next((each for each in case if each.tag in ("failure", "error")), None)) is not None:
            seen.runs["failed"] += 1
            why = failure.get("message", "").partition("\n")[0][:200]
            seen.broken.append(f"{name} with seed {seed}: {why}")
        else:
            seen.runs["passed"] += 1
        for each in case.iter("property"):
            counted = Counter({each.get("name", ""): int(each.get("value", "0"))})
            seen = seen._replace(counts=together(seen.counts, counted))
    if not seen.runs["passed"] + seen.runs["failed"]:
        seen.broken.append(f"{fault.tests[0]} did not run with seed {seed}")
    return seen


def together(first: Counter[str], second: Counter[str]) -> Counter[str]:
    """What two have counted: the sum, but of what is "at most" so much the larger one."""
    names = [*first, *(name for name in second if name not in first)]
    return Counter(
        {name: max(first[name], second[name]) if " at most " in name else first[name] + second[name] for name in names}
    )


def added(first: Seen, second: Seen) -> Seen:
    """What two came to together."""
    runs, counts = first.runs + second.runs, together(first.counts, second.counts)
    return Seen(first.seeds + second.seeds, second.date, runs, counts, first.broken + second.broken)


def recorded() -> dict[str, Seen]:
    """What was seen so far of each fault, by what is done."""
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    return {
        done: Seen(**{**seen, "runs": Counter(seen["runs"]), "counts": Counter(seen["counts"])})
        for done, seen in record.items()
    }


HEAD = """# Faults

What happens when things break. `make faults` runs every fault of this page for some rounds, each with a seed of its own, checks
what was promised, and writes this page. `make faults ARGS="--rounds 30 --seed 1"` says how many rounds, and where the seeds
begin; `--only "clock"` gives one fault new rounds and leaves the others as they are; `--more` adds rounds to those of the page,
with the seeds that come next.

"""

TABLE = """
| what was done | what is promised | rounds | how often, and what was checked | the promise |
|---|---|---|---|---|
"""


def page(all_seen: dict[str, Seen]) -> str:
    """The report."""
    broken = [f"- `{each}`\n" for seen in all_seen.values() for each in seen.broken]
    result = "Broken were:\n\n" + "".join(broken) if broken else "No promise was broken.\n"
    where = f"Last run on {max(seen.date for seen in all_seen.values())}, on {os.cpu_count()} cores"
    rows = "".join(row(fault, all_seen[fault.done]) for fault in FAULTS if fault.done in all_seen)
    return f"{HEAD}{where}. A run is a test, or a row of one, on one adapter and store.\n{result}{TABLE}{rows}"


def row(fault: Fault, seen: Seen) -> str:
    """The row of a fault."""
    runs = [f"{seen.runs['passed'] + seen.runs['failed']:,} runs"]
    runs += [f"{number:,} {name}" for name, number in sorted(seen.counts.items())]
    runs += [f"{seen.runs['skipped']} skipped"] if seen.runs["skipped"] else []
    broken = len(seen.broken)
    held = ("broken once" if broken == 1 else f"broken {broken} times") if broken else "held"
    return f"| {fault.done} | {fault.promised} | {len(seen.seeds)} | {', '.join(runs)} | {held} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every fault, and write docs/faults.md.")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each with a seed of its own (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first round (default: 1, or the next with --more)")
    parser.add_argument("--processes", type=int, default=2, help="test processes (default: 2)")
    parser.add_argument("--only", default="", help="only faults whose text contains this; the rows of the others stay")
    parser.add_argument("--more", action="store_true", help="add to the rounds that are recorded, in place of beginning anew")
    options = parser.parse_args()
    faults = tuple(fault for fault in FAULTS if options.only.lower() in f"{fault.done} {fault.promised}".lower())
    if not faults:
        parser.error(f"no fault's text contains {options.only!r}")
    others = {fault.done for fault in FAULTS} - {fault.done for fault in faults}
    all_seen = {done: seen for done, seen in recorded().items() if done in others or options.more}
    seen_of = [all_seen.setdefault(fault.done, NOTHING) for fault in faults]
    first = options.seed or 1 + max((seed for seen in seen_of for seed in seen.seeds), default=0)
    for seed in range(first, first + options.rounds):
        due = tuple(fault for fault in faults if seed not in all_seen[fault.done].seeds)  # the same seed would draw the same
        if not due:
            print(f"seed {seed}: it had its round")
            continue
        of_round = run_round(seed, due, options.processes)
        for fault, seen in zip(due, of_round, strict=True):
            all_seen[fault.done] = added(all_seen[fault.done], seen)
        broken = [each for seen in of_round for each in seen.broken]
        print(f"seed {seed}: {', '.join(broken) or 'no promise broken'}", flush=True)
        RECORD.write_text(json.dumps({done: seen._asdict() for done, seen in all_seen.items()}, indent=1) + "\n", "utf-8")
        PAGE.write_text(page(all_seen), "utf-8")
    sys.exit(any(all_seen[fault.done].broken for fault in faults))


if __name__ == "__main__":
    main()
