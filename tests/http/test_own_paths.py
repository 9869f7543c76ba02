"""The service's own paths that are open to anyone, over every adapter and every store."""

import json
from collections.abc import Callable

import pytest
import redis

from kvstore.core.settings import Settings
from kvstore.serving.limits import limits
from tests.support.asking import batch
from tests.support.clients import CSP, Checked
from tests.support.lanes import on, on_two
from tests.support.tokens import BAD, SECRET

PATHS = ("/_/health", "/_/ready", "/_/limits", "/_/openapi.json")
on_adapters = on([("flask", "valkey"), ("asgi", "cluster"), ("served", "redis"), ("flask", "fake")])
SAFE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Security-Policy": CSP}


@pytest.mark.parametrize("path", ["/_/health", "/_/ready"])
def test_it_is_well(client: Checked, path: str) -> None:
    """GET and HEAD; a query, conditions and preferences change nothing."""
    found = client.get(path)
    assert (found.status, found.json, found.headers["Content-Type"]) == (200, {"status": "ok"}, "application/json")
    assert found.headers.items() >= {name.lower(): value for name, value in SAFE.items()}.items()
    head = client.head(path)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(found.body)))
    for headers in (
        [("Accept", "text/event-stream")],
        [("If-None-Match", "*"), ("Prefer", "wait=5")],
        [("Accept", "text/html")],
    ):
        assert client.adapter.request("GET", path + "?a=%zz", headers).json == {"status": "ok"}


@on_adapters
@pytest.mark.parametrize("path", PATHS)
def test_other_methods(client: Checked, path: str) -> None:
    """405 with Allow; OPTIONS, a preflight too."""
    for method in ("PUT", "POST", "PATCH", "DELETE", "TRACE"):
        refused = client.request(method, path, body=b"{}" if method != "TRACE" else b"")
        assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert client.request("OPTIONS", path).headers["Allow"] == "GET, HEAD, OPTIONS"
    asked = [("Origin", "http://localhost:3000"), ("Access-Control-Request-Method", "GET")]
    shown = client.request("OPTIONS", path, asked)
    assert (shown.status, shown.headers["Access-Control-Allow-Methods"]) == (204, "GET, HEAD")
    assert client.get(path, asked[:1]).headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


@on_adapters
def test_limits(client: Checked, client_with: Callable[..., Checked]) -> None:
    """Each with its number, its unit and its meaning; where a setting makes the number, that of the setting."""
    answer = client.get("/_/limits")
    assert answer.json["body"] == {"value": 2**20, "unit": "bytes", "meaning": "the body of a request"}
    assert {name: row["value"] for name, row in answer.json.items()} == {row.name: row.value for row in limits(Settings())}
    settings = {"KVSTORE_MAX_TTL": "60", "KVSTORE_RATE": "5/m", "KVSTORE_CLIENT_STREAMS": "2", "KVSTORE_LOG_LENGTH": "7"}
    found = client_with(**settings).get("/_/limits").json
    assert [found[name]["value"] for name in ("ttl", "default_ttl", "rate", "client_streams", "log_changes")] == [
        60,
        60,
        5,
        2,
        7,
    ]
    assert found["rate"]["unit"] == "requests in 60 s"
    assert client.head("/_/limits").headers["Content-Length"] == str(len(answer.body))


@on_adapters
def test_they_are_spelled_in_several_ways(client: Checked) -> None:
    """A path is decoded once, and may come in the absolute form; a container or anything else below /_/ is not there."""
    for target in ("/%5F/health", "/_/%68ealth", "http://127.0.0.1:8000/_/health", "HTTP://localhost/_/ready?x"):
        assert client.adapter.request("GET", target).json == {"status": "ok"}
    for target in ("/_/health/", "/_/healthy", "/_/health/a"):
        assert client.get(target).status == 404
    assert client.get("//_/health").status == 400
    assert client.put("/health", "1").status == 201  # a document like others
    assert client.get("/health").json == 1


@on_adapters
@pytest.mark.parametrize("path", PATHS)
def test_no_token_is_looked_at(client_with: Callable[..., Checked], path: str) -> None:
    """Neither a bad one, nor one in the wrong place; it does not count as a bad one of its address either."""
    client = client_with(KVSTORE_SECRET=SECRET)
    assert client.get("/ns/a").status == 401
    bad = [("Authorization", f"Bearer {BAD['expired']()}")]
    for headers in ([], bad, [("Cookie", "kvstore_session=x")]):
        assert client.get(path, headers).status == 200
    for _ in range(30):
        assert client.adapter.request("GET", path + "?access_token=x", bad).status == 200
    assert client.get("/ns/a", bad).status == 401  # 20 bad ones would make it a 429


@on_adapters
def test_rates_do_not_count_them(client_with: Callable[..., Checked], raw: redis.Redis) -> None:
    """Nor is a client refused one that has used up its quota."""
    client = client_with(KVSTORE_RATE="2/h")
    for path in 3 * PATHS:
        assert "RateLimit" not in client.get(path).headers
    assert not raw.keys("*rate*")
    assert [client.get("/ns/a").status for _ in range(3)] == [404, 404, 429]
    assert [client.get(path).status for path in PATHS] == [200] * len(PATHS)


@on_two
def test_a_batch_has_none_of_them(client: Checked) -> None:
    """One may wait for Redis, and all of them are cheap by themselves."""
    for path in PATHS:
        refused = batch(client, [{"method": "GET", "path": path}])
        assert (refused.status, refused.json["problem"]["type"]) == (409, "urn:kvstore:not-in-batch")
        [each] = json.loads(batch(client, [{"method": "GET", "path": path}], atomic=False).body)["responses"]
        assert each["status"] == 422
