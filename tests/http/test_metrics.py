"""The metrics of `/_/metrics`, over every adapter: what is counted, who may read it, and that Prometheus can."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from kvstore.commands.metrics import JobCounts
from kvstore.core.metrics import Counters, add_snapshot, add_time
from kvstore.core.paths import own_key, parse_path
from kvstore.http.metrics import CONTENT_TYPE, FAMILIES, GAUGES, render_jobs, render_metrics
from kvstore.live import metrics
from kvstore.live.metrics_board import Board
from tests.support.clients import CSP, Answer, Checked
from tests.support.lanes import on
from tests.support.stores import wait_until
from tests.support.tokens import SECRET, signed

on_adapters = on([("flask", "valkey"), ("asgi", "cluster"), ("served", "redis"), ("flask", "fake")])
in_process = on([("flask", "valkey"), ("asgi", "redis"), ("asgi", "cluster")])
on_served = on([("served", "redis")])

Samples = dict[tuple[str, ...], float]


def samples(text: str) -> Samples:
    """The numbers by name and values of the labels, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert FAMILIES[family.name + ("_total" if family.type == "counter" else "")] == (family.type, family.documentation)
        for sample in family.samples:
            found[sample.name, *sample.labels.values()] = sample.value
    return found


def read(client: Checked, headers: list[tuple[str, str]] | None = None) -> Answer:
    """The response; it is not JSON, so the client does not check it."""
    return client.adapter.request("GET", "/_/metrics", headers or [])


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept from one reading to the next."""
    monkeypatch.setattr(metrics, "READ_S", -1.0)
    monkeypatch.setattr(metrics, "JOBS_S", -1.0)
    monkeypatch.setattr(metrics, "LIMIT_S", 15.0)


# --- What is counted ----------------------------------------------------------------------------------------------------


@in_process
@pytest.mark.usefixtures("fresh")
def test_requests_are_counted(client: Checked) -> None:
    """By method and class of status, each in its histogram; an unknown method is `other`."""
    before = samples(read(client).body.decode())
    client.put("/ns/a", "1")
    client.put("/ns/a", "2")
    client.put("/ns/a", "{")
    client.request("BREW", "/ns/a")
    after = samples(read(client).body.decode())

    def more(*name: str) -> float:
        return after[name] - before.get(name, 0)

    requests = [more("kvstore_requests_total", *by) for by in (("PUT", "2xx"), ("PUT", "4xx"), ("other", "4xx"))]
    assert requests == [2, 1, 1]
    assert (
        more("kvstore_request_seconds_count", "PUT", "2xx") == more("kvstore_request_seconds_bucket", "PUT", "2xx", "+Inf") == 2
    )
    assert 0 < more("kvstore_request_seconds_sum", "PUT", "2xx") < 10
    assert more("kvstore_redis_commands_total") >= 4
    assert after["kvstore_redis_up",] == after["kvstore_workers",] == 1
    assert after["kvstore_memory_bytes",] > 10_000_000


@in_process
@pytest.mark.usefixtures("fresh")
def test_some_commands_are_timed(client: Checked) -> None:
    """One at a time, with a rest in between."""
    before = samples(read(client).body.decode())["kvstore_redis_seconds_count",]

    def is_timed() -> bool:
        client.put("/ns/a", "1")
        return samples(read(client).body.decode())["kvstore_redis_seconds_count",] > before

    wait_until(is_timed, 30)


@in_process
@pytest.mark.usefixtures("fresh")
def test_a_request_that_waits_has_no_time(client: Checked) -> None:
    """It is counted, and says nothing of how fast the service is."""
    client.put("/ns/a", "1")
    before = samples(read(client).body.decode())
    assert client.head("/ns/a", [("Prefer", "wait=25")]).status == 200
    after = samples(read(client).body.decode())
    by = ("HEAD", "2xx")
    counted = [
        after[name, *by] - before.get((name, *by), 0) for name in ("kvstore_requests_total", "kvstore_request_seconds_count")
    ]
    assert counted == [1, 0]


@in_process
@pytest.mark.usefixtures("fresh")
def test_jobs_are_counted(client: Checked, raw: redis.Redis) -> None:
    """By state, of each queue that is worked; results are no jobs, and a namespace that cannot be read is left out."""
    for number in range(5):
        client.request("POST", "/q/jobs/", body=b"%d" % number)
    client.request("POST", "/q/jobs/?delay=1h", body=b"6")
    client.request("POST", "/tasks/", body=b"1")
    client.put("/q/jobs/results/1", "1")
    client.put("/q/jobs/dead/1", "1")
    client.put("/other/a", "1")
    client.request("POST", "/q/jobs/?lease=30&limit=2")
    client.request("POST", "/tasks/?lease=30")
    client.put("/bad/a", "1")
    raw.set(own_key(parse_path(b"/bad/a"), "ready_at"), "no sorted set")
    found = samples(read(client).body.decode())
    counts = [found["kvstore_jobs", "/q/jobs/", state] for state in ("ready", "leased", "delayed", "dead")]
    assert counts == [3, 2, 1, 1]
    assert found["kvstore_jobs", "/tasks/", "leased"] == 1
    assert {name[1] for name in found if name[0] == "kvstore_jobs"} == {"/q/jobs/", "/tasks/"}


@on_adapters
def test_the_response(client: Checked) -> None:
    """Prometheus' text format, which no cache keeps; HEAD as well, and no other method."""
    found = read(client)
    assert (found.status, found.headers["Content-Type"], found.headers["Cache-Control"]) == (200, CONTENT_TYPE, "no-store")
    assert (found.headers["X-Content-Type-Options"], found.headers["Content-Security-Policy"]) == ("nosniff", CSP)
    assert {name for name, *_ in samples(found.body.decode())} >= {f"kvstore_{name}" for name in GAUGES}
    head = client.adapter.request("HEAD", "/_/metrics")
    assert (head.status, head.body) == (200, b"")
    assert client.request("OPTIONS", "/_/metrics").headers["Allow"] == "GET, HEAD, OPTIONS"
    refused = client.request("POST", "/_/metrics", body=b"{}")
    assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    batch = b'{"atomic":false,"requests":[{"method":"GET","path":"/_/metrics"}]}'
    assert client.request("POST", "/_/batch", body=batch).json["responses"][0]["status"] == 422


# --- Who may read it ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ruled(tmp_path_factory: pytest.TempPathFactory, client_with: Callable[..., Checked]) -> Checked:
    """A service whose rules permit everything to everyone, and nobody the metrics."""
    rules = tmp_path_factory.getbasetemp() / "everything.toml"
    rules.write_text('rules = [["/**", "anyone", "anyone", "anyone"]]')
    return client_with(KVSTORE_SECRET=SECRET, KVSTORE_RULES=str(rules), KVSTORE_RATE="1000/s", KVSTORE_HOSTS="app.example")


def bearer(**claims: Any) -> tuple[str, str]:
    """A token with these claims."""
    return ("Authorization", "Bearer " + signed(**claims))


@on_adapters
def test_only_an_admin_may_read_it_from_elsewhere(ruled: Checked) -> None:
    """Whatever the rules say; a proxy on this machine says for whom it asks."""
    elsewhere = ("X-Forwarded-For", "192.0.2.7")
    assert read(ruled, [elsewhere]).status == 401
    assert read(ruled, [elsewhere, bearer()]).status == 403
    assert read(ruled, [elsewhere, bearer(roles=["admin"])]).status == 200
    assert read(ruled, [("X-Forwarded-For", "127.0.0.1")]).status == 401


@on_served
def test_this_machine_may_read_it(ruled: Checked) -> None:
    """On a connection from loopback, unless a proxy has forwarded the request: then it asks for a name, or says who it is.

    A proxy that says nothing is not seen, so paths of queues are for the admin only.
    """
    ruled.request("POST", "/secret/", [bearer(roles=["admin"])], b"1")
    ruled.request("POST", "/secret/?lease=60", [bearer(roles=["admin"])])
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        answer = read(ruled, [("Host", host)])
        assert answer.status == 200
        assert b"kvstore_requests_total{" in answer.body
        assert b"secret" not in answer.body
    wait_until(lambda: b'queue="/secret/"' in read(ruled, [bearer(roles=["admin"])]).body, 30)
    for field in ("Forwarded", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via"):
        assert read(ruled, [(field, "for=127.0.0.1")]).status == 401
    assert read(ruled, [("Host", "app.example")]).status == 401


# --- Numbers ------------------------------------------------------------------------------------------------------------


def test_a_histogram() -> None:
    """A bucket counts what took less than its bound; what took longest is in the last one."""
    counters = Counters()
    for ms in (0.05, 0.15, 0.25, 3.0, 20_000.0):
        counters.record("GET", 200, ms / 1000)
    counters.record("GET", 204, -1.0)
    add_time(counters.redis, 0.5)
    text = render_metrics(counters.snapshot(), dict.fromkeys(GAUGES, 1), is_up=True)
    found = samples((text + render_jobs([JobCounts('/a"b\\\n/', 1, 2, 3, 4)])).decode())
    by = ("kvstore_request_seconds_bucket", "GET", "2xx")
    bounds = ("0.0001", "0.0002", "0.0004", "0.0016", "0.0032", "13.1072", "+Inf")
    assert [found[*by, bound] for bound in bounds] == [1, 2, 3, 3, 4, 4, 5]
    assert found["kvstore_request_seconds_sum", "GET", "2xx"] == pytest.approx(20.00345)
    assert found["kvstore_request_seconds_count", "GET", "2xx"] == 5
    assert found["kvstore_requests_total", "GET", "2xx"] == 6
    assert found["kvstore_redis_seconds_bucket", "0.8192"] == 1
    assert found["kvstore_jobs", '/a"b\\\n/', "delayed"] == 3
    text = render_metrics(counters.snapshot(), dict.fromkeys(GAUGES, 1), is_up=False)
    assert samples(text.decode())["kvstore_redis_up",] == 0


def test_methods_do_not_pile_up() -> None:
    """A client may send any; each unknown one is counted with the others."""
    counters = Counters()
    for number in range(1000):
        counters.record(f"M{number}", 405, 0.001)
    assert counters.requests.keys() == {("other", 405)}
    assert counters.snapshot()["requests"]["other 4xx"][4] == 1000


def snapshot(puts: int) -> dict[str, Any]:
    """What a process shows that has answered so many PUTs."""
    counters = Counters()
    for _ in range(puts):
        counters.record("PUT", 201, 0.001)
    return counters.snapshot() | {"gauges": {"workers": 1}}


def test_the_board() -> None:
    """Each process shows its numbers; one that follows another in its slot goes on from them."""
    parent = Board(3)
    boards = [parent.claim() for _ in range(4)]
    assert boards == [0, 1, 2, None]
    parent.use(0)
    parent.show(snapshot(5))
    assert parent.others() == []
    parent.use(1)
    parent.show(snapshot(7))
    parent.show(snapshot(8))
    [first] = parent.others()
    assert (first["gauges"], sum(first["requests"]["PUT 2xx"][:40])) == ({"workers": 1}, 5)
    parent.free(0)
    assert [other["gauges"] for other in parent.others()] == [{}]
    assert parent.claim() == 0
    parent.use(0)  # as the process that follows does
    numbers = snapshot(1)
    parent.show(numbers)
    assert sum(numbers["requests"]["PUT 2xx"][:40]) == 6
    parent.show(snapshot(2))
    parent.use(1)
    total = snapshot(0)
    for other in parent.others():
        add_snapshot(total, other)
    assert sum(total["requests"]["PUT 2xx"][:40]) == 7


def test_numbers_that_are_too_many() -> None:
    """What does not fit into a slot is not shown; what was shown stays."""
    board = Board(2)
    board.claim()
    board.use(0)
    board.show(snapshot(1))
    board.show(snapshot(2) | {"gauges": {f"name {number}": number for number in range(10_000)}})
    board.use(1)
    [shown] = board.others()
    assert sum(shown["requests"]["PUT 2xx"][:40]) == 1


def test_every_family_is_documented() -> None:
    """docs/operations.md has the table of FAMILIES, in its order."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    rows = [f"| `{name}` | {kind} | {meaning} |" for name, (kind, meaning) in FAMILIES.items()]
    assert "\n".join(rows) in page
