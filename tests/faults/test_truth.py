"""What an answer says under trouble is so, whatever happens to whichever script of a request, in every store.

"Nothing was changed" means that Redis holds what it held before; 2xx that the request was applied, once. After a 5xx the same
request with the same Idempotency-Key ends as if nothing had gone wrong.
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import redis

from kvstore.commands import containers
from kvstore.core.errors import UNKNOWN
from kvstore.http.messages import Request, Response
from kvstore.stores.blocking import BlockingStore
from tests.support.asking import command_of
from tests.support.faulty import FAULTS, STORES, Backing, answer, as_request, hasten
from tests.support.stores import contents

UNCHANGED = "othing was changed"
TIME_OUT_S = 0.2  # here: whatever is overdue by mistake makes the test see less, and fail never


# --- What is asked ------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A request, after others: each is method, target, body, header fields."""

    asked: tuple[Any, ...]
    before: list[tuple[Any, ...]] = []  # noqa: RUF012  # never changed
    is_one_script: bool = True  # all of it, or nothing
    may_have_key: bool = True


def several(atomic: bool, *requests: tuple[Any, ...]) -> tuple[Any, ...]:
    """A batch."""
    named = [dict(zip(("method", "path", "body"), request, strict=False)) for request in requests]
    return "POST", "/_/batch", {"atomic": atomic, "requests": named}


NEW = {"n": {".sv": {"increment": 1}}}  # it shows how often it was applied
THERE = ("PUT", "/ns/a", {"n": 1, "o": {"p": 1}})
JOBS = [("PUT", f"/ns/q/{number}", number) for number in range(5)]
DEAD = [*JOBS[:2], ("POST", "/ns/q/?lease=60s&limit=2&max_attempts=1", ""), ("PATCH", "/ns/q/0?lease=0", "", {"if-match": "*"})]
JSON_PATCH = {"content-type": "application/json-patch+json"}

ROWS: dict[str, Row] = {
    "GET": Row(("GET", "/ns/a"), [THERE], may_have_key=False),
    "listing": Row(("GET", "/ns/?recursive"), JOBS, may_have_key=False),
    "listing of the root": Row(("GET", "/?list"), [THERE], may_have_key=False),
    "PUT": Row(("PUT", "/ns/a", NEW), [THERE]),
    "PUT in a new namespace": Row(("PUT", "/new/a", NEW)),
    "PUT if none is there": Row(("PUT", "/new/a", NEW, {"if-none-match": "*"})),
    "POST": Row(("POST", "/ns/q/", 6), JOBS),
    "POST in a new namespace": Row(("POST", "/new/", NEW)),
    "PATCH": Row(("PATCH", "/ns/a", NEW), [THERE]),
    "PATCH in a new namespace": Row(("PATCH", "/new/a", NEW)),
    "nested PATCH": Row(("PATCH", "/ns/a", {"o": {"q": 1}}), [THERE]),
    "nested PATCH in a new namespace": Row(("PATCH", "/new/a", {"o": {"q": 1}})),
    "JSON Patch": Row(("PATCH", "/ns/a", [{"op": "add", "path": "/l", "value": [1]}], JSON_PATCH), [THERE]),
    "JSON Patch that is refused": Row(("PATCH", "/ns/a", [{"op": "remove", "path": "/l"}], JSON_PATCH), [THERE]),
    "PATCH of the TTL": Row(("PATCH", "/ns/a?ttl=90", ""), [THERE]),
    "DELETE": Row(("DELETE", "/ns/a"), [THERE]),
    "recursive DELETE": Row(("DELETE", "/ns/q/?recursive", ""), JOBS, is_one_script=False),
    "batch of PUTs": Row(several(True, ("PUT", "/new/a", {"a": 1}), ("PUT", "/new/b", 1))),
    "batch of GETs": Row(several(True, ("GET", "/ns/a"), ("GET", "/ns/none")), [THERE], may_have_key=False),
    "batch": Row(several(True, ("PUT", "/new/a", NEW), ("POST", "/new/", 1), ("PATCH", "/new/b", {"a": 1}))),
    "batch with a nested PATCH": Row(several(True, ("PATCH", "/ns/a", {"o": {"q": 1}}), ("PUT", "/ns/b", NEW)), [THERE]),
    "batch that is refused": Row(several(True, ("PUT", "/ns/b", NEW), ("DELETE", "/ns/none")), [THERE]),
    "batch in two namespaces": Row(
        several(False, ("PUT", "/one/a", NEW), ("PUT", "/two/a", NEW), ("PATCH", "/one/a", {"o": {"q": 1}})),
        is_one_script=False,
        may_have_key=False,
    ),
    "take": Row(("POST", "/ns/q/?lease=90&limit=2", ""), JOBS),
    "take where two are dead": Row(  # sent again it takes others: who moves the dead has them for 10 s
        ("POST", "/ns/q/?lease=90&max_attempts=1", ""), DEAD, is_one_script=False, may_have_key=False
    ),
    "lease": Row(("PATCH", "/ns/q/0?lease=90", "", {"if-match": "*"}), [*JOBS, ("POST", "/ns/q/?lease=90", "")]),
    "DELETE of a job": Row(("DELETE", "/ns/q/0", "", {"if-match": "*"}), [*JOBS, ("POST", "/ns/q/?lease=90", "")]),
}  # fmt: skip


# --- What Redis then has ------------------------------------------------------------------------------------------------


def documents(raw: redis.Redis) -> list[Any]:
    """All documents, and how often each was taken, but for ids and times, which differ from run to run."""
    found = []
    for key in raw.scan_iter(match="*}/*", count=1000):
        fields: dict[bytes, bytes] = dict(raw.hgetall(key))  # type: ignore[arg-type]
        taken = re.match(rb"job (\d+)", fields.pop(b"$kv", b""))
        shown = repr((key, sorted(fields.items()), taken and taken[1]))
        found.append(re.sub(r"\d{13,}[a-z]?\d*", "#", shown))
    return sorted(found)


def prepare(backing: Backing, row: Row) -> None:
    """What was asked before, on an empty Redis."""
    backing.raw.flushall()
    store = BlockingStore(lambda: backing.raw)
    for each in row.before:
        assert answer(as_request(*each), store.execute).status < 300, each
    if row.before == DEAD:
        store.execute(command_of(as_request("PATCH", "/ns/q/1?lease=0", "", {"if-match": "*"})))


QUICK = ("cut", "cut after", "LOADING", "OOM")  # that are seen at once
SWEEPS = [pytest.param(QUICK, id="quick"), pytest.param(FAULTS, id="all", marks=pytest.mark.slow)]


class Swept(NamedTuple):
    """What a store has behind it, how to ask it, and the faults to make."""

    backing: Backing
    ask: Callable[[Request], Response]
    faults: tuple[str, ...]


@pytest.fixture
def swept(store_name: str, faults: tuple[str, ...], behind_proxy: Callable[[str], Backing]) -> Swept:
    """What a row of SWEEPS is about."""
    kind, execute = STORES[store_name]
    backing = behind_proxy(kind)
    return Swept(backing, lambda request: execute(backing.url, request), faults)


class Expected(NamedTuple):
    """What a request comes to where nothing goes wrong."""

    status: int
    scripts: int
    documents: list[Any]


def expect(swept: Swept, row: Row, request: Request) -> Expected:
    """Ask without a fault; twice, since the first time Redis does not know the scripts."""
    backing = swept.backing
    for _ in range(2):
        prepare(backing, row)
        backing.proxy.begin()
        response = swept.ask(request)
    assert response.status < 500, response
    return Expected(response.status, backing.proxy.scripts, documents(backing.raw))


@pytest.mark.few
@pytest.mark.turns
@pytest.mark.parametrize("store_name", STORES)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("faults", SWEEPS)
def test_an_answer_is_true(swept: Swept, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whichever script the fault is for: what the answer says is held against what Redis then has."""
    backing, ask, faults = swept
    monkeypatch.setattr(containers, "MAX_DELETED_AT_ONCE", 2)
    row = ROWS[name]
    request = as_request(*row.asked)
    expected = expect(swept, row, request)
    hasten(monkeypatch, TIME_OUT_S)
    made = []
    for fault in faults:
        for at in range(expected.scripts):
            prepare(backing, row)
            before, had = contents(backing.raw), documents(backing.raw)
            backing.proxy.begin(fault, at)
            response = ask(request)
            backing.proxy.settle()
            has, what = documents(backing.raw), (name, fault, at, response.status, response.body)
            made.append(backing.proxy.was_made)
            assert response.status in (expected.status, 503, 507), what
            if response.status == expected.status:
                assert has == expected.documents, what
                continue
            detail = json.loads(response.body)["detail"]
            assert (UNCHANGED in detail) != (UNKNOWN in detail), what
            if UNCHANGED in detail:
                assert contents(backing.raw) == before, what
            elif row.is_one_script:
                assert has in (had, expected.documents), what
    assert any(made)


@pytest.mark.few
@pytest.mark.turns
@pytest.mark.parametrize("store_name", STORES)
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.may_have_key])
@pytest.mark.parametrize("faults", SWEEPS)
def test_a_key_makes_it_safe_to_send_again(swept: Swept, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """After whatever fault: the same request with the same Idempotency-Key has the answer, and Redis what it should have."""
    backing, ask, faults = swept
    monkeypatch.setattr(containers, "MAX_DELETED_AT_ONCE", 2)
    row = ROWS[name]
    request = as_request(*row.asked)
    request = request._replace(headers={**request.headers, "idempotency-key": "k"})
    expected = expect(swept, row, request)
    for fault in faults:
        for at in range(expected.scripts):
            prepare(backing, row)
            backing.proxy.begin(fault, at)
            with monkeypatch.context() as patched:
                hasten(patched, TIME_OUT_S)
                first = ask(request)
            if first.status >= 500:
                backing.proxy.begin()
                second = ask(request)
                assert second.status == expected.status, (name, fault, at, first, second)
            backing.proxy.settle()
            assert documents(backing.raw) == expected.documents, (name, fault, at, first)
