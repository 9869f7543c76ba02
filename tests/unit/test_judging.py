"""What the rules make of requests: refused, permitted, or permitted without being shown what is stored."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import combinations
from pathlib import Path
from pkgutil import iter_modules
from time import thread_time, time
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvstore.commands
from kvstore.access.judging import is_plainly_permitted, judge
from kvstore.access.principal import Principal
from kvstore.access.rules import parse_rows
from kvstore.access.views import MAX_MEMBERSHIPS, Rules
from kvstore.commands.base import Again
from kvstore.commands.batch import Answered, Batch
from kvstore.commands.bulk import GetMany, PutMany
from kvstore.commands.documents import Get, Put
from kvstore.commands.guarded import Blind, Guarded
from kvstore.commands.subscriptions import Follow, LongPoll
from kvstore.core.errors import Problem
from kvstore.core.paths import parse_path
from kvstore.core.preconditions import NONE
from kvstore.core.settings import Settings
from kvstore.http.messages import Request, Response
from kvstore.http.protocol import parse
from kvstore.serving.exchange import decide
from tests.support.naive_rules import has_right
from tests.unit.test_rules import CLAIMS, FRESH, NAMES, STORED, tables

STREAM = {"accept": "text/event-stream"}
NEW = "1795168800000a0"  # a name that POST assigns
OWN = b'{"by":"ada"}'


def judged(rows: Sequence[Any], claims: Mapping[str, Any] | None, request: Request, stored: set[str] | None = None) -> Any:
    """What comes of a request, and of what has to be looked up for it: a command, or a response that needs none."""
    principal = None if claims is None else Principal(claims)
    decision: Any = decide(request, Settings(), Rules(parse_rows(rows)), principal)
    if isinstance(decision, LongPoll):
        decision = decision.command
    follow, guard = (decision, decision.permit) if isinstance(decision, Follow) else (None, decision)
    while isinstance(guard, Guarded):
        looked_up = guard.asked[: len(guard.keys)]
        assert guard.keys == tuple(path.keys.document for path in looked_up)
        assert len({path.namespace for path in looked_up}) == 1, "one slot"
        try:
            outcome: Any = guard.outcome([int(path.text in (stored or set())) for path in looked_up])
        except Problem as problem:
            return Response(problem.status, (), problem.body())
        guard = outcome.command if isinstance(outcome, Again) else outcome
    return follow or guard


def status_of(decision: Any) -> int:
    """The status of a response, 0 for what is executed."""
    return decision.status if isinstance(decision, Response) else 0


def check_fast_path(rows: Sequence[Any], claims: Mapping[str, Any] | None, request: Request) -> None:
    """What is plainly permitted is what judge() leaves as it is."""
    command, judging = parse(request, Settings()), Rules(parse_rows(rows))
    principal = None if claims is None else Principal(claims)
    if is_plainly_permitted(command, judging, principal):
        assert judge(command, judging, principal) is command
    with suppress(Problem):
        if (
            judge(command, judging, principal) is command
            and type(command) in (Get, Put)
            and request.headers.keys() <= {"if-modified-since"}
        ):
            is_usual = isinstance(command, Get) or not (command.encoded.has_server_values or command.preconditions is not NONE)
            assert is_plainly_permitted(command, judging, principal) is is_usual


class Asked(NamedTuple):
    """A request, and what it needs: rights on the path, on a new document below it, or on all documents below it."""

    method: str
    headers: dict[str, str]
    query: str
    body: bytes
    needs: tuple[tuple[str, str], ...]  # a right, and of what: "", "new" or "below"


BY_OTHERS = b'{"by":"eve"}'
DOCUMENTS = [
    Asked("GET", {}, "", b"", (("read", ""),)),
    Asked("GET", {"prefer": "wait=5"}, "", b"", (("read", ""),)),
    Asked("HEAD", {}, "", b"", (("read", ""),)),
    Asked("GET", {"if-none-match": '"1-0"'}, "", b"", (("read", ""),)),
    Asked("GET", STREAM, "", b"", (("read", ""),)),
    Asked("PUT", {}, "", OWN, (("write", ""),)),
    Asked("PUT", {}, "", BY_OTHERS, (("write", ""),)),
    Asked("PUT", {}, "", b"7", (("write", ""),)),
    Asked("PUT", {"if-none-match": "*"}, "", OWN, (("append", ""),)),
    Asked("PUT", {"if-none-match": "*", "if-match": '"1-0"'}, "", OWN, (("write", ""), ("read", ""))),
    Asked("PUT", {"if-none-match": '"1-0"'}, "", OWN, (("write", ""), ("read", ""))),
    Asked("PUT", {"if-match": "*"}, "", OWN, (("write", ""), ("read", ""))),
    Asked("PUT", {"if-unmodified-since": "Sat, 21 Nov 2026 11:37:30 GMT"}, "", OWN, (("write", ""), ("read", ""))),
    Asked("PUT", {"if-modified-since": "Sat, 21 Nov 2026 11:37:30 GMT"}, "", OWN, (("write", ""),)),
    Asked("PUT", {"idempotency-key": "k"}, "", OWN, (("write", ""),)),
    Asked("PUT", {}, "", b'{"by":"ada","n":{".sv":{"increment":1}}}', (("write", ""), ("read", ""))),
    Asked("PUT", {}, "", b'{"by":"ada","n":{".sv":"timestamp"}}', (("write", ""),)),
    Asked("PUT", {}, "", b'{"by":{".sv":"timestamp"}}', (("write", ""),)),
    Asked("PATCH", {}, "", OWN, (("write", ""), ("read", ""))),
    Asked("PATCH", {}, "", BY_OTHERS, (("write", ""), ("read", ""))),
    Asked("PATCH", {}, "", b'{"by":null}', (("write", ""), ("read", ""))),
    Asked("PATCH", {"idempotency-key": "k"}, "", OWN, (("write", ""), ("read", ""))),
    Asked("PATCH", {}, "?ttl=90", b"", (("write", ""), ("read", ""))),
    Asked("PATCH", {"if-match": '"1-0"'}, "?lease=9", b"", (("write", ""), ("read", ""))),
    Asked("DELETE", {}, "", b"", (("write", ""),)),
    Asked("DELETE", {"if-match": '"1-0"'}, "", b"", (("write", ""), ("read", ""))),
    Asked("POST", {}, "", OWN, (("append", "new"),)),
    Asked("POST", {}, "", BY_OTHERS, (("append", "new"),)),
    Asked("POST", {"idempotency-key": "k"}, "", OWN, (("append", "new"),)),
]
CONTAINERS = [
    Asked("GET", {}, "?list", b"", (("read", "below"),)),
    Asked("GET", {"accept": "application/x-ndjson"}, "?recursive", b"", (("read", "below"),)),
    Asked("GET", {"prefer": "wait=5", "if-none-match": '"1-0"'}, "", b"", (("read", "below"),)),
    Asked("GET", STREAM, "", b"", (("read", "below"),)),
    Asked("GET", {}, "?list&by:eq=ada", b"", (("read", "below"),)),
    Asked("GET", {}, "?list&sort=by", b"", (("read", "below"),)),
    Asked("GET", {"prefer": "wait=5"}, "?list&count", b"", (("read", "below"),)),
    Asked("QUERY", {}, "?list", b'{"where":{"by":{"eq":"ada"}}}', (("read", "below"),)),
    Asked("POST", {}, "", OWN, (("append", "new"),)),
    Asked("POST", {}, "?delay=5", OWN, (("append", "new"),)),
    Asked("POST", {}, "?lease=5", b"", (("write", "below"), ("read", "below"))),
    Asked("POST", {"idempotency-key": "k"}, "?lease=5&wait=5", b"", (("write", "below"), ("read", "below"))),
    Asked("DELETE", {}, "?recursive", b"", (("write", "below"),)),
]


def touched(path: list[str], what: str) -> list[list[str]]:
    """The paths of a small world that a need is about."""
    if what == "new":
        return [[*path, NEW]]
    if not what:
        return [path]
    found, level = [] if path else [path], [path]
    for _ in range(4 - min(1, len(path))):
        level = [[*each, name] for each in level for name in NAMES + FRESH]
        found += level
    return found


def is_permitted(rows: Any, claims: Any, path: list[str], asked: Asked, stored: set[str] = STORED) -> bool:
    """Whether a request is, by the second reading of the rules."""
    for right, what in asked.needs:
        for each in touched(path, what):
            is_given, members = has_right(rows, claims, stored, each, right)
            if not is_given:
                return False
            if (
                members
                and asked.body
                and asked.body.startswith(b"{")
                and json.loads(asked.body).get("by") != (claims or {}).get("sub", 0)
            ):
                return False
            if members and asked.body == b"7":
                return False
    return True


def request_of(path: list[str], asked: Asked, *, is_container: bool) -> Request:
    """The request for a path."""
    target = "/" + "/".join(path) + ("/" if is_container and path else "") + asked.query
    return Request(asked.method, target.encode(), asked.headers, asked.body)


def documented() -> dict[str, set[str]]:
    """The table of docs/access.md: a kind of request, and the rights that it needs."""
    text = (Path(__file__).parents[2] / "docs" / "access.md").read_text("utf-8")
    rows = re.findall(r"^\| (.*) \| (.*) \|$", text.partition("### What a request needs")[2].partition("###")[0], re.MULTILINE)
    return {kind: set(rights.split(", ")) for kind, rights in rows if kind != "request"}


def kind_of(asked: Asked) -> str:
    """The row of that table that a request belongs to."""
    if asked.method in ("GET", "HEAD", "QUERY"):
        return "GET, HEAD, QUERY, lists, histories, streams, long polls"
    if asked.method == "PATCH":
        return "PATCH, also for a lease or a TTL"
    if asked.method == "POST":
        return "`POST ?lease=`, which takes jobs" if "lease" in asked.query else "POST"
    if b"increment" in asked.body:
        return "PUT with an increment"
    preconditions = {
        name: value for name, value in asked.headers.items() if name.startswith("if-") and name != "if-modified-since"
    }
    if preconditions == {"if-none-match": "*"}:
        return "PUT with `If-None-Match: *`"
    return "PUT, DELETE with another precondition" if preconditions else "PUT, DELETE"


def test_the_table_in_the_documentation() -> None:
    """It has every kind of request, with the rights that the tests hold."""
    table = documented()
    for asked in (*DOCUMENTS, *CONTAINERS):
        assert {right for right, _ in asked.needs} == table[kind_of(asked)], asked
    assert {kind_of(asked) for asked in (*DOCUMENTS, *CONTAINERS)} == set(table)


GIVEN = [set(rights) for count in range(4) for rights in combinations(("read", "append", "write"), count)]
# Who asks, and what a row has in the column of a right that they have.
WHO: list[tuple[Mapping[str, Any], str]] = [
    ({}, "anyone"),
    ({"sub": "ada"}, "user"),
    ({"roles": ["x", "editor"]}, "role:admin role:editor"),
    ({"sub": "ada"}, "in:/members/"),
    ({"sub": "ada"}, "in:/of/$name/"),
]


@pytest.mark.parametrize("asked", [*DOCUMENTS, *CONTAINERS], ids=lambda asked: f"{asked.method} {asked.query} {asked.headers}")
def test_what_a_request_needs(asked: Asked) -> None:
    """With each set of rights, given in each way: permitted with those that it needs, and shown to those who may read."""
    request = request_of(["ns", "a"], asked, is_container=asked in CONTAINERS)
    needed = {right for right, _ in asked.needs}
    for rights in GIVEN:
        for claims, cell in WHO:
            row = ["/ns/$name/**", *(cell if right in rights else "nobody" for right in ("read", "append", "write"))]
            decision = judged([row], claims, request, {"/members/ada", "/of/a/ada"})
            assert status_of(decision) == (0 if rights >= needed else 403), (rights, cell)
            if rights >= needed and asked.method in ("PUT", "POST") and "lease" not in asked.query:
                assert isinstance(decision, Blind) != ("read" in rights)
        decision = judged([], {"allow": [["/ns/**", *rights]]} if rights else {}, request)
        assert status_of(decision) == (0 if rights >= needed else 403)
    assert status_of(judged([], None, request)) == 401
    assert status_of(judged([], {"roles": ["admin"]}, request)) == 0


# A claim, the JSON text of a member, whether the rules take it for the claim.
EQUAL = [
    ("ada", '"ada"', True),
    ("ada", '"\\u0061da"', True),
    ("ada", '"Ada"', False),
    ("ada", '["ada"]', False),
    (1, "1", True),
    (1, "1.0", False),
    (1, "true", False),
    (1, '"1"', False),
    (0, "false", False),
    (True, "true", True),
    (True, "1", False),
    ("1", "1", False),
    (["a", "b"], '"b"', True),
    (["a", "b"], '"c"', False),
    (["a", "b"], '["a","b"]', False),
    ([], '"a"', False),
    ({"a": 1}, '{"a":1}', False),
    (None, "null", False),
    ("@", '"@"', True),
    ("+1", '"+1"', True),
    ("x" * 9000, '"' + "x" * 9000 + '"', False),
]


@pytest.mark.parametrize(("claim", "member", "is_equal"), EQUAL)
def test_members_and_claims(*, claim: Any, member: str, is_equal: bool) -> None:
    """A member is equal to a claim, or to an item of it, if it has the same type and value."""
    rows = [["/a/**", "user", "user", "user", {"by": "{claim}"}]]
    decision = judged(rows, {"claim": claim}, Request("PUT", b"/a/b", {}, b'{"by":%b}' % member.encode()))
    assert status_of(decision) == (0 if is_equal else 403)


def test_a_wait_ends_with_its_token() -> None:
    """A long poll is answered when the token expires, not later."""
    rules, request = Rules(parse_rows([["/**", "user", "user", "user"]])), Request("GET", b"/a/b", {"prefer": "wait=20"})
    waits = [decide(request, Settings(), rules, Principal({}, at)) for at in (None, time() + 5, time() - 5, time() + 90)]
    whole, short, over, whole_too = (wait.wait_s for wait in waits if isinstance(wait, LongPoll))
    assert (whole, over, whole_too) == (20, 0, 20)
    assert 0 < short <= 5


places = st.lists(st.sampled_from([*NAMES, "new"]), max_size=3)


@settings(max_examples=300)
@given(tables(), st.sampled_from(CLAIMS), places, st.sampled_from(DOCUMENTS))
def test_requests_for_documents(rows: list[Any], claims: dict[str, Any] | None, path: list[str], asked: Asked) -> None:
    """Permitted as the documentation says, and shown to those who may read it."""
    request = request_of(path, asked, is_container=False)
    check_fast_path(rows, claims, request)
    decision = judged(rows, claims, request, STORED)
    if is_permitted(rows, claims, path, asked):
        assert status_of(decision) == 0
        if asked.method in ("PUT", "POST"):
            at = [*path, NEW] if asked.method == "POST" else path
            assert isinstance(decision, Blind) != has_right(rows, claims, STORED, at, "read")[0]
    else:
        assert status_of(decision) == (401 if claims is None else 403)


@settings(max_examples=100)
@given(tables(), st.sampled_from(CLAIMS), places, st.sampled_from(CONTAINERS))
def test_requests_for_containers(rows: list[Any], claims: dict[str, Any] | None, path: list[str], asked: Asked) -> None:
    """Permitted if every path that could lie below is."""
    if not path and (asked.headers == STREAM or not asked.query.startswith("?list")):
        return  # no request that the root takes
    decision = judged(rows, claims, request_of(path, asked, is_container=True), STORED)
    assert status_of(decision) == (0 if is_permitted(rows, claims, path, asked) else 401 if claims is None else 403)


@settings(max_examples=100)
@given(tables(), st.sampled_from(CLAIMS), places, places.filter(bool), st.sampled_from([OWN, BY_OTHERS]))
def test_holds(rows: list[Any], claims: dict[str, Any] | None, path: list[str], held: list[str], value: bytes) -> None:
    """A stream that holds a document needs to read the one and to write the other."""
    query = f"?hold=/{'/'.join(held)}&as={value.decode()}"
    decision = judged(rows, claims, Request("GET", ("/" + "/".join(path) + query).encode(), STREAM), STORED)
    reading = is_permitted(rows, claims, path, DOCUMENTS[0])
    holding = is_permitted(rows, claims, held, Asked("", {}, "", value, (("write", ""),)))
    assert status_of(decision) == (0 if reading and holding else 401 if claims is None else 403)


names = places.filter(bool)
beside = names.map(lambda path: ["a", *path])  # in one namespace
plain = st.sampled_from([asked for asked in DOCUMENTS if not asked.headers and asked.method in ("GET", "PUT")])
parts = st.one_of(
    st.lists(st.tuples(names, st.sampled_from(DOCUMENTS)), min_size=1, max_size=4),
    plain.flatmap(lambda asked: st.lists(st.tuples(beside, st.just(asked)), min_size=1, max_size=4, unique_by=str)),
)


def in_batch(path: list[str], asked: Asked) -> dict[str, Any]:
    """A request as a part of a batch."""
    part: dict[str, Any] = {"method": asked.method, "path": "/" + "/".join(path) + asked.query}
    if asked.headers:
        part["headers"] = asked.headers
    return part | ({"body": json.loads(asked.body)} if asked.body else {})


@pytest.mark.slow
@settings(max_examples=200)
@given(tables(), st.sampled_from(CLAIMS), parts, st.booleans())
def test_batches(
    rows: list[Any],
    claims: dict[str, Any] | None,
    parts: list[tuple[list[str], Asked]],
    is_atomic: bool,
) -> None:
    """Each request is judged by itself; an atomic batch with one that is refused is refused."""
    parts = [
        (path, asked)
        for path, asked in parts
        if "lease" not in asked.query and not {"idempotency-key", "accept", "prefer"} & set(asked.headers)
    ]
    if is_atomic:
        parts = [(["a", *path], asked) for path, asked in parts]
    body = json.dumps({"atomic": is_atomic, "requests": [in_batch(*part) for part in parts]})
    decision = judged(rows, claims, Request("POST", b"/_/batch", {}, body.encode()), STORED)
    permitted = [is_permitted(rows, claims, *part) for part in parts]
    if not parts:
        return
    if is_atomic and not all(permitted):
        assert status_of(decision) == 409
        problem = json.loads(decision.body)
        assert not permitted[problem["index"]]
        assert problem["problem"]["status"] == (401 if claims is None else 403)
    elif isinstance(decision, Response) and not is_atomic:
        assert not any(permitted)
        assert [part["status"] for part in json.loads(decision.body)["responses"]] == [401 if claims is None else 403] * len(
            parts
        )
    elif isinstance(decision, GetMany | PutMany):
        assert all(permitted)
        assert all(has_right(rows, claims, STORED, path, "read")[0] for path, _ in parts)
    elif isinstance(decision, Batch):
        assert [not isinstance(step, Answered) for step in decision.steps] == permitted
        for step, (path, asked) in zip(decision.steps, parts, strict=True):
            at = [*path, NEW] if asked.method == "POST" else path
            if asked.method in ("PUT", "POST") and not isinstance(step, Answered):
                assert isinstance(step, Blind) != has_right(rows, claims, STORED, at, "read")[0]
    else:
        assert status_of(decision) == 422  # two writes of one document, one of which must read first


# --- Bounds -------------------------------------------------------------------------------------------------------------

TEAMS = [f"t{number}" for number in range(1000)]


def test_lookups_are_made_in_pieces() -> None:
    """A script looks for 1,000 documents of one namespace at most, and each is looked for once."""
    paths = tuple(parse_path(f"/{space}/m/{number}".encode()) for space in "ab" for number in range(1500))
    step: Any = Guarded(paths, len)
    sizes = []
    while isinstance(step, Guarded):
        sizes.append(len(step.keys))
        outcome: Any = step.outcome([1] * len(step.keys))
        step = outcome.command if isinstance(outcome, Again) else outcome
    assert sizes == [1000, 500, 1000, 500]
    assert step == 3000


def test_a_right_depends_on_so_many_documents() -> None:
    """A token with a thousand teams is a member of those that are looked up, and no request takes long."""
    row = ["/r/$x/**", "in:/of/{teams}/in/{teams}/$x/", "user", "user"]
    guard = decide(
        Request("GET", b"/r/1/a", {}), Settings(), Rules(parse_rows([row])), Principal({"sub": "ada", "teams": TEAMS})
    )
    assert isinstance(guard, Guarded)
    assert len(guard.asked) == MAX_MEMBERSHIPS


@pytest.mark.parametrize("is_atomic", [True, False])
def test_a_batch_needs_so_many_lookups(*, is_atomic: bool) -> None:
    """One that needs more is refused as a whole; smaller ones are not."""
    row = ["/r/$x/**", "in:/of/{teams}/$x/", "user", "user"]
    for count, status in ((16, 0), (17, 413)):
        requests = [{"method": "GET", "path": f"/r/{number}/a"} for number in range(count)]
        body = json.dumps({"atomic": is_atomic, "requests": requests}).encode()
        assert status_of(judged([row], {"sub": "ada", "teams": TEAMS}, Request("POST", b"/_/batch", {}, body))) == status


def test_a_container_needs_so_many_lookups() -> None:
    """Where more would decide on everything below it, it is refused, and soon."""
    rows = [["/r/{teams}/{teams}/**", *["in:/of/{teams}/"] * 3], ["/**", "user", "user", "user"]]
    began = thread_time()
    assert status_of(judged(rows, {"sub": "ada", "teams": TEAMS}, Request("GET", b"/r/", {}))) == 403
    assert thread_time() - began < 3  # some 100 ms


# Commands that no request asks for: others lead to them, or they are a worker's.
INTERNAL = {
    *("RegisterNamespace", "RecordReply", "DropEmptyNamespaces", "MoveDeadJobs", "FinishJob", "FinishAndTake", "InspectJob"),
    *(
        "GetLogPosition",
        "ReadChanges",
        "Release",
        "CoalescedPuts",
        "CoalescedGets",
        "Charge",
        "ClaimStreams",
        "ReleaseStream",
        "RegisterTaker",
        "RemoveTaker",
        "CheckReadiness",
        "CountJobs",
        "ReadFound",
    ),
}
# Commands that are made of others, which are judged.
MADE_OF_OTHERS = {"Idempotent", "Batch", "PutMany", "GetMany", "Guarded", "Blind", "PlainGets", "PlainPuts", "Piece"}


def test_every_command_says_what_it_touches() -> None:
    """One that does not would be answered with 500 where there are rules: name it here, or say what it touches."""
    modules = [import_module(f"kvstore.commands.{found.name}") for found in iter_modules(kvstore.commands.__path__)]
    commands = {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and hasattr(kind, "outcome") and hasattr(kind, "arguments") and name != "Command"
    }
    silent = {name for name, kind in commands.items() if not hasattr(kind, "touches")}
    assert silent == INTERNAL | MADE_OF_OTHERS
