"""Parallel requests on one path, with the times at which they were sent and answered: some order must explain all answers.

A history is linearizable where its operations can be put into an order that keeps those apart which did not overlap, and in
which one document, alone, would have given every one of these answers. The search is Wing & Gong's, remembering the pairs of
what is done and what is stored (Lowe). An operation that was answered 503 may have been applied at any time after it was sent,
or never; one that says "Nothing was changed" never was.
"""

import itertools
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
import redis

from tests.support.asking import MERGE, as_body
from tests.support.clients import Answer, Checked
from tests.support.lanes import on_served
from tests.support.rounds import drawn
from tests.support.stores import Running, wait_until

FOREVER = float("inf")


class State(NamedTuple):
    """A document: who put it, its counter, the members that nested patches gave it, and its entity-tag, None while nobody
    has seen it."""

    by: int
    n: int
    members: frozenset[str]
    tag: str | None


Absent = None


class Operation(NamedTuple):
    """What was asked, when, and what came back; `status` 0 where nobody knows whether it was applied."""

    kind: str
    number: int
    match: str | None
    start: float
    end: float
    status: int
    tag: str | None
    document: Any


def steps(state: State | None, op: Operation) -> list[State | None]:
    """The states that a document may be in after an operation was carried out on this one; none where the answer is wrong."""
    if op.status == 0:
        return [after(state, op, None)] if op.match is None or holds(state, op) else []
    if op.kind == "GET":
        return seen(state, op) if op.status == 200 else [state] if state is Absent and op.status == 404 else []
    if op.kind == "DELETE":
        return [Absent] if op.status == 204 and state else [state] if op.status == 404 and state is Absent else []
    if op.status == 412:
        # It says what is there, which is not what was asked for.
        if holds(state, op) and not (state and state.tag is None):
            return []
        if op.tag is None:
            return [state] if state is Absent else []
        return [] if op.tag == op.match or (op.match == "*" and state is Absent) else seen(state, op)
    if op.match is not None and not holds(state, op):
        return []
    if op.status != (201 if state is Absent else 200):
        return []
    wanted = after(state, op, op.tag)
    assert wanted
    return [wanted] if shown(wanted) == (op.document["by"], op.document["n"], frozenset(op.document["o"])) else []


def holds(state: State | None, op: Operation) -> bool:
    """Whether an operation's precondition can hold: If-Match with a tag, or "*" for If-None-Match: *."""
    if op.match == "*":
        return state is Absent
    return state is not None and state.tag in (op.match, None)


def seen(state: State | None, op: Operation) -> list[State | None]:
    """The state, where the document that an answer shows is this one."""
    if state is None or op.tag is None or state.tag not in (op.tag, None):
        return []
    if shown(state) != (op.document["by"], op.document["n"], frozenset(op.document["o"])):
        return []
    return [state._replace(tag=op.tag)]


def shown(state: State) -> tuple[int, int, frozenset[str]]:
    return state.by, state.n, state.members


def after(state: State | None, op: Operation, tag: str | None) -> State | None:
    """What is stored after a write that is carried out."""
    if op.kind == "DELETE":
        return Absent
    if op.kind in ("PUT", "If-Match", "If-None-Match"):
        return State(op.number, 0, frozenset(), tag)
    there = state or State(0, 0, frozenset(), None)
    if op.kind == "increment":
        return there._replace(n=there.n + 1, tag=tag)
    return there._replace(members=there.members | {f"m{op.number}"}, tag=tag)


def explain(history: list[Operation], first: State | None = Absent) -> list[Operation] | None:
    """An order of the operations that explains their answers, None where there is none."""
    known = [op for op in history if not (op.status == 0 and op.kind == "GET")]
    ops = sorted(known, key=lambda op: op.start)
    must = sum(1 << at for at, op in enumerate(ops) if op.status != 0)
    done_before: set[tuple[int, State | None]] = set()
    stack: list[tuple[int, State | None, tuple[int, ...]]] = [(0, first, ())]
    while stack:
        done, state, order = stack.pop()
        if done & must == must:
            return [ops[at] for at in order]
        if (done, state) in done_before:
            continue
        done_before.add((done, state))
        until = FOREVER
        for at, op in enumerate(ops):
            if op.start > until:
                break
            if done >> at & 1:
                continue
            until = min(until, op.end)
            stack += [(done | 1 << at, next_state, (*order, at)) for next_state in steps(state, op)]
    return None


# --- That it finds what is wrong ----------------------------------------------------------------------------------------


def op(kind: str, number: int, start: float, end: float, status: int, *tags: str, **more: Any) -> Operation:
    document = {"by": more["by"], "n": more.get("n", 0), "o": dict.fromkeys(more.get("o", ()), 1)} if "by" in more else None
    return Operation(kind, number, more.get("match"), start, end, status, tags[0] if tags else None, document)


PUT_1 = op("PUT", 1, 0, 1, 201, "a", by=1)
MAYBE = op("PUT", 2, 2, FOREVER, 0)
RIGHT = {
    "nothing": [],
    "put, get": [PUT_1, op("GET", 2, 2, 3, 200, "a", by=1)],
    "get beside put": [PUT_1, op("GET", 2, 0.1, 0.2, 404), op("GET", 3, 0.5, 0.6, 200, "a", by=1)],
    "created after a delete": [PUT_1, op("DELETE", 2, 2, 3, 204), op("PUT", 3, 4, 5, 201, "b", by=3)],
    "two increments": [
        PUT_1,
        op("increment", 2, 2, 5, 200, "b", by=1, n=2),
        op("increment", 3, 2, 5, 200, "c", by=1, n=1),
    ],
    "a loser": [
        PUT_1,
        op("If-Match", 2, 2, 5, 200, "b", by=2, match="a"),
        op("If-Match", 3, 2, 5, 412, "b", by=2, match="a"),
    ],
    "applied late": [PUT_1, MAYBE, op("GET", 3, 4, 5, 200, "a", by=1), op("GET", 4, 6, 7, 200, "b", by=2)],
    "never applied": [PUT_1, MAYBE, op("GET", 3, 4, 5, 200, "a", by=1)],
}
WRONG = {
    "get before put": [PUT_1, op("GET", 2, 0, 0.5, 200, "a", by=1), op("GET", 3, 0.6, 0.7, 404)],
    "a stale read": [PUT_1, op("PUT", 2, 2, 3, 200, "b", by=2), op("GET", 3, 4, 5, 200, "a", by=1)],
    "a tag with another document": [PUT_1, op("GET", 2, 2, 3, 200, "a", by=7)],
    "a tag that nobody had": [PUT_1, op("GET", 2, 2, 3, 200, "z", by=1)],
    "created twice": [PUT_1, op("PUT", 2, 2, 3, 201, "b", by=2)],
    "a lost increment": [
        PUT_1,
        op("increment", 2, 2, 5, 200, "b", by=1, n=1),
        op("increment", 3, 2, 5, 200, "c", by=1, n=1),
    ],
    "a lost member": [
        PUT_1,
        op("nested", 2, 2, 5, 200, "b", by=1, o=["m2"]),
        op("nested", 3, 2, 5, 200, "c", by=1, o=["m3"]),
    ],
    "two winners": [
        PUT_1,
        op("If-Match", 2, 2, 5, 200, "b", by=2, match="a"),
        op("If-Match", 3, 2, 5, 200, "c", by=3, match="a"),
    ],
    "a loser to nobody": [PUT_1, op("If-Match", 3, 2, 5, 412, "a", by=1, match="a")],
    "applied, and taken back": [PUT_1, MAYBE, op("GET", 3, 4, 5, 200, "b", by=2), op("GET", 4, 6, 7, 200, "a", by=1)],
    "applied twice": [PUT_1, op("increment", 2, 2, FOREVER, 0), op("GET", 4, 6, 7, 200, "c", by=1, n=2)],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_explained(name: str) -> None:
    """A history that one document alone could have."""
    assert explain(RIGHT[name]) is not None


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name: str) -> None:
    """A history that no order explains."""
    assert explain(WRONG[name]) is None


# --- Histories of the service -------------------------------------------------------------------------------------------

KINDS = ["PUT", "increment", "increment", "nested", "GET", "GET", "DELETE", "If-Match", "If-Match", "If-None-Match"]


class Recorder:
    """Asks for one path from several threads, and remembers."""

    def __init__(self, client: Checked, path: str) -> None:
        self.client, self.path = client, path
        self.history: list[Operation] = []
        self.last_tag = '"1-1"'
        self._numbers = itertools.count(1)

    def ask(self, kind: str) -> None:
        """One operation."""
        number = next(self._numbers)
        match = {"If-Match": self.last_tag, "If-None-Match": "*"}.get(kind)
        whole = as_body({"by": number, "n": 0, "o": {}})
        start = time.monotonic()
        if kind == "increment":
            change = {"n": {".sv": {"increment": 1}}}
            answer = self.client.request("PATCH", self.path, [MERGE], as_body(change))
        elif kind == "nested":
            answer = self.client.request("PATCH", self.path, [MERGE], as_body({"o": {f"m{number}": 1}}))
        elif kind in ("GET", "DELETE"):
            answer = self.client.request(kind, self.path)
        else:
            headers = [] if match is None else [(kind, match)]
            answer = self.client.put(self.path, whole, headers)
        end = time.monotonic()
        self.remember(Operation(kind, number, match, start, end, answer.status, None, None), answer)

    def remember(self, asked: Operation, answer: Answer) -> None:
        """Add an operation with what was answered."""
        end = asked.end
        document, tag, status = None, answer.headers.get("ETag"), answer.status
        if status in (200, 201):
            document = answer.json
            self.last_tag = answer.tag
        elif status == 412:
            document, tag = answer.json["current"], answer.json["etag"]
        elif status == 503:
            if "Nothing was changed" in answer.json["detail"]:
                return
            status, end = 0, FOREVER
        if document is not None:
            document = {"by": document.get("by", 0), "n": document.get("n", 0), "o": document.get("o", {})}
        self.history.append(asked._replace(end=end, status=status, tag=tag, document=document))

    def run(self, threads: int, goes_on: Callable[[], bool], seed: int) -> None:
        """Ask from so many threads for as long as it goes on."""

        def work(number: int) -> None:
            chance = drawn(seed * 100 + number)
            while goes_on():
                self.ask(chance.choice(KINDS))

        with ThreadPoolExecutor(threads) as pool:
            for each in [pool.submit(work, number) for number in range(threads)]:
                each.result()

    def wants(self, more: int) -> Callable[[], bool]:
        """Goes on until there are so many operations more."""
        total = len(self.history) + more
        return lambda: len(self.history) < total

    def check(self) -> None:
        """Some order explains it."""
        if explain(self.history) is None:
            lines = "\n".join(str(op) for op in sorted(self.history, key=lambda op: op.start))
            pytest.fail(f"no order explains this history:\n{lines}")


def lasting(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


SERVED = pytest.mark.parametrize("lane", [("served", "valkey"), ("served", "redis")], ids="-".join, indirect=True)


@SERVED
def test_some_order_explains(client: Checked, raw: redis.Redis, record_property: Callable[..., None]) -> None:
    """Eight threads, all kinds of operations, several histories."""
    for seed in range(4):
        recorder = Recorder(client, f"/ns/{seed}")
        recorder.run(8, recorder.wants(200), seed)
        assert all(op.status < 500 for op in recorder.history)
        recorder.check()
        record_property("operations", len(recorder.history))


@pytest.mark.slow
@on_served
def test_while_redis_hesitates(client: Checked, store: Running, record_property: Callable[..., None]) -> None:
    """Redis stands still for moments: everything waits, nothing is lost, nothing is done twice."""
    recorder = Recorder(client, "/ns/a")
    goes_on = lasting(2.0)

    def hesitate() -> None:
        while goes_on():
            time.sleep(0.1)
            store.signal(signal.SIGSTOP)
            time.sleep(0.25)
            store.signal(signal.SIGCONT)

    with ThreadPoolExecutor(1) as pool:
        hesitating = pool.submit(hesitate)
        try:
            recorder.run(6, goes_on, 1)
        finally:
            hesitating.result()
    assert len(recorder.history) > 10
    recorder.check()
    record_property("operations", len(recorder.history))


@pytest.mark.slow
@on_served
def test_while_redis_is_away(client: Checked, store: Running, record_property: Callable[..., None]) -> None:
    """Redis stands still for so long that requests are answered 503: each was applied once, later, or never."""
    recorder = Recorder(client, "/ns/a")
    recorder.run(4, recorder.wants(40), 2)
    before = len(recorder.history)
    store.signal(signal.SIGSTOP)
    each_once = iter(range(8))
    try:
        recorder.run(8, lambda: next(each_once, None) is not None, 3)
    finally:
        store.signal(signal.SIGCONT)
    assert sum(op.status == 0 for op in recorder.history[before:]) > 3
    wait_until(lambda: client.get("/ns/a").status != 503, 30)
    recorder.run(4, recorder.wants(60), 4)
    recorder.check()
    record_property("operations", len(recorder.history))
