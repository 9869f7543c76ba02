"""Takers and enqueuers at once, on the command `kvstore` with two workers: what each was told must fit together.

Every job ends once, done or dead; each of its takes has the next number; whoever used a lease with success had it before the
next take was answered; and nobody gets a job sooner than its lease can have ended. Times are those of the clients' one clock:
Redis decided between a request and its answer. KVSTORE_MODEL_SECONDS is for how long jobs are enqueued.
"""

import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import redis

from tests.support.asking import keys_of, listed
from tests.support.clients import Checked
from tests.support.lanes import on_served
from tests.support.rounds import drawn

SECONDS = float(os.environ.get("KVSTORE_MODEL_SECONDS", "0")) or 1.5
LEASE_S = 1
MOST_TAKES = 3
ENQUEUERS, TAKERS = 2, 6
EACH = 1_000_000  # values of one of them
LEAST = 30  # jobs of one of them, on a busy machine
CLOCK_S = 0.01  # that Redis's clock, which counts ms, may differ from ours in so short a time
QUIET_S = 60  # in which jobs that nobody has must become done or dead


class Told(NamedTuple):
    """What was asked of a job and answered: `take`, `done`, `back`, `longer`, from `start` to `end`."""

    kind: str
    attempts: int
    start: float
    end: float
    status: int = 200


def wrong(told: list[Told], *, is_dead: bool) -> str:
    """What does not fit in the history of one job that has ended; "" where all does."""
    takes = sorted((one for one in told if one.kind == "take"), key=lambda one: one.attempts)
    uses = [one for one in told if one.kind != "take" and one.status < 300]
    done = [one for one in uses if one.kind == "done"]
    if [one.attempts for one in takes] != list(range(1, len(takes) + 1)):
        return "a take has the number of another, or one is missing"
    if len(done) + is_dead != 1:
        return "it ended not once"
    if len(takes) > MOST_TAKES or (is_dead and len(takes) != MOST_TAKES):
        return "it was taken too often, or died too soon"
    if done and done[0].attempts != len(takes):
        return "it was taken after it was done, or done by one who had lost it"
    for use in uses:
        if any(take.attempts > use.attempts and take.end < use.start for take in takes):
            return "a lease was used after the next take"
    backs = {one.attempts for one in told if one.kind == "back" and one.status < 300}
    for one, following in pairwise(takes):
        began = [use.start for use in uses if use.kind == "longer" and use.attempts == one.attempts]
        if one.attempts not in backs and following.end < max([one.start, *began]) + LEASE_S - CLOCK_S:
            return "it was taken while another had it"
    return ""


TAKE, AGAIN = Told("take", 1, 0, 0.1), Told("take", 2, 2, 2.1)
DONE = Told("done", 2, 2.2, 2.3, 204)
HISTORIES: list[tuple[list[Told], bool, str]] = [
    ([TAKE, Told("done", 1, 0.2, 0.3, 204)], False, ""),
    ([TAKE, AGAIN, DONE], False, ""),
    ([TAKE, Told("done", 1, 2.05, 2.2, 412), AGAIN, DONE], False, ""),
    ([TAKE, Told("back", 1, 0.2, 0.3), Told("take", 2, 0.2, 0.4), DONE], False, ""),
    ([TAKE, AGAIN, Told("take", 3, 4, 4.1)], True, ""),
    ([TAKE, AGAIN], True, "too soon"),
    ([TAKE, TAKE, DONE], False, "the number of another"),
    ([TAKE, AGAIN], False, "not once"),
    ([TAKE, AGAIN, DONE, DONE], False, "not once"),
    ([TAKE, AGAIN, Told("done", 1, 2.05, 2.3, 204)], False, "had lost it"),
    ([TAKE, AGAIN, Told("longer", 1, 2.2, 2.3), DONE], False, "after the next take"),
    ([TAKE, Told("take", 2, 0.2, 0.4), DONE], False, "while another had it"),
    ([TAKE, Told("longer", 1, 1.5, 1.6), AGAIN, DONE], False, "while another had it"),
]


@pytest.mark.parametrize(("told", "is_dead", "says"), HISTORIES)
def test_what_is_wrong_is_found(told: list[Told], is_dead: bool, says: str) -> None:
    """And what is right is not."""
    assert says in wrong(told, is_dead=is_dead)
    assert bool(says) == bool(wrong(told, is_dead=is_dead))


class History:
    """Asks from several threads, and remembers what was told of each job, by its path."""

    def __init__(self, client: Checked) -> None:
        self.client = client
        self.told: dict[str, list[Told]] = defaultdict(list)
        self.values: dict[str, int] = {}
        self.is_over = threading.Event()

    def enqueue(self, number: int) -> None:
        """Append jobs until the time is over, some to be taken later."""
        chance = drawn(number)
        until = time.monotonic() + SECONDS
        count = 0
        while time.monotonic() < until or count < LEAST:
            count += 1
            value = number * EACH + count
            target = chance.choice(["/ns/q/"] * 9 + ["/ns/q/?delay=1"])
            answer = self.client.request("POST", target, (), b"%d" % value)
            assert answer.status == 201
            self.values[answer.json["path"]] = value
            time.sleep(chance.random() * 0.02)

    def take(self, number: int) -> None:
        """Take jobs until all have ended, and do with each what chance says."""
        chance = drawn(-number)
        while not self.is_over.is_set():
            limit = chance.choice([1, 1, 2, 5])
            start = time.monotonic()
            target = f"/ns/q/?lease={LEASE_S}&limit={limit}&wait=1&max_attempts={MOST_TAKES}"
            answer = self.client.request("POST", target)
            end = time.monotonic()
            assert answer.status in (200, 204)
            jobs = answer.json["items"] if answer.status == 200 else []
            assert len(jobs) <= limit
            for job in jobs:
                self.told[job["path"]].append(Told("take", job["attempts"], start, end))
                assert job["value"] == self.values.get(job["path"], job["value"])
            for job in jobs:
                self.work(job, chance)

    def work(self, job: Any, chance: random.Random) -> None:
        """Done, given back, held for longer and done, left to itself (the first ones always), or done when it is over."""
        what = chance.choices(["done", "back", "longer", "leave", "late"], [10, 4, 2, 1, 1])[0]
        if what == "leave" or job["value"] % EACH == 1:
            return
        if what == "late":
            time.sleep(LEASE_S + chance.random() * 0.02 - 0.01)
        if what == "back":
            self.use("back", job, "PATCH", "?lease=0")
            return
        if what == "longer":
            self.use("longer", job, "PATCH", f"?lease={LEASE_S}")
        self.use("done", job, "DELETE", "")

    def use(self, kind: str, job: Any, method: str, query: str) -> None:
        start = time.monotonic()
        answer = self.client.request(method, job["path"] + query, [("If-Match", f'"{job["lease"]}"')])
        assert answer.status in (200, 204, 404, 412)
        self.told[job["path"]].append(Told(kind, job["attempts"], start, time.monotonic(), answer.status))

    def has_ended(self) -> bool:
        """Whether no job is left but dead ones."""
        return [item["name"] for item in self.client.get("/ns/q/?keys").json["items"]] in ([], ["dead/"])


@pytest.mark.slow
@on_served
def test_every_job_ends_once(client: Checked, raw: redis.Redis, record_property: Callable[..., None]) -> None:
    """Done or dead, whatever takers do."""
    history = History(client)
    with ThreadPoolExecutor(ENQUEUERS + TAKERS) as pool:
        enqueuing = [pool.submit(history.enqueue, number) for number in range(1, ENQUEUERS + 1)]
        taking = [pool.submit(history.take, number) for number in range(1, TAKERS + 1)]
        try:
            for each in enqueuing:
                each.result()
            until = time.monotonic() + QUIET_S
            while not history.has_ended() and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            history.is_over.set()
        for each in taking:
            each.result()
    assert history.has_ended()
    dead = {item["name"]: item["value"] for item in listed(client, "/ns/q/dead/?limit=1000")}
    assert set(history.told) == set(history.values)
    assert {path: history.values[path] for path in history.values if path[6:] in dead} == {
        f"/ns/q/{name}": letter["value"] for name, letter in dead.items()
    }
    assert {letter["attempts"] for letter in dead.values()} <= {MOST_TAKES}
    found = {path: wrong(told, is_dead=path[6:] in dead) for path, told in history.told.items()}
    assert {path: (says, history.told[path]) for path, says in found.items() if says} == {}
    assert len(dead) >= ENQUEUERS
    assert len(history.values) > 50
    record_property("jobs", len(history.values))
    assert not raw.exists(keys_of("ns").blocked)
