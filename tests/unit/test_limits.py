"""The limits that `/_/limits` shows are those that requests meet: the number is accepted, and one more is refused."""

import json
from collections.abc import Callable

import pytest

from kvstore.commands.scripts import GET_MANY, IDEMPOTENT, PUT, Script
from kvstore.core.errors import Problem
from kvstore.core.settings import Settings
from kvstore.http.messages import Request
from kvstore.http.protocol import parse
from kvstore.serving.limits import limits, limits_text

SETTINGS = Settings(max_ttl_s=1000, default_ttl_s=1000)
SHOWN = json.loads(limits_text(SETTINGS).body)
PATCH = {"content-type": "application/json-patch+json"}


def get(target: str) -> Request:
    return Request("GET", target.encode(), {})


def put(body: str, target: str = "/ns/a") -> Request:
    return Request("PUT", target.encode(), {}, body.encode())


def take(query: str) -> Request:
    return Request("POST", b"/ns/?" + query.encode(), {})


def batch(*paths: str) -> Request:
    return Request(
        "POST", b"/_/batch", {}, json.dumps({"requests": [{"method": "GET", "path": path} for path in paths]}).encode()
    )


MET: dict[str, Callable[[int], Request]] = {
    "path": lambda n: get("/" + "a" * (n - 1)),
    "segments": lambda n: get("/a" * n),
    "document": lambda n: put('"' + "a" * (n - 2) + '"'),
    "depth": lambda n: put("[" * n + "]" * n),
    "members": lambda n: put(json.dumps({str(i): i for i in range(n)})),
    "digits": lambda n: put("[" + "1" * n + "]"),
    "ttl": lambda n: put("1", f"/ns/a?ttl={n}"),
    "patch_operations": lambda n: Request(
        "PATCH", b"/ns/a", PATCH, json.dumps([{"op": "test", "path": "", "value": 1}] * n).encode()
    ),
    "idempotency_key": lambda n: put("1")._replace(headers={"idempotency-key": "k" * n}),
    "list_items": lambda n: get(f"/ns/?limit={n}"),
    "query_conditions": lambda n: get("/ns/?" + "&".join(["a:eq=1"] * n)),
    "query_values": lambda n: get(f"/ns/?a:in={','.join(['1'] * n)}"),
    "query_sort": lambda n: get(f"/ns/?sort={','.join(['a'] * n)}"),
    "query_fields": lambda n: get(f"/ns/?fields={','.join(['a'] * n)}"),
    "batch_requests": lambda n: batch(*["/ns/a"] * n),
    "batch_target": lambda n: batch("/ns/a?" + "x" * (n - 6)),
    "wait": lambda n: take(f"lease=5&wait={n}"),
    "lease": lambda n: take(f"lease={n}"),
    "take": lambda n: take(f"lease=5&limit={n}"),
    "stream_paths": lambda n: get("/_/follow?" + "&".join(f"path=/{i}" for i in range(n))),
    "stream_holds": lambda n: get("/_/follow?path=/a" + "&hold=/a" * n),
    "attempts": lambda n: take(f"lease=5&max_attempts={n}"),
}


def is_refused(request: Request) -> bool:
    """Whether a request is, or the one request of its batch."""
    try:
        parse(request, SETTINGS)
    except Problem:
        return True
    return False


@pytest.mark.parametrize("name", MET)
def test_a_limit_is_met(name: str) -> None:
    limit = SHOWN[name]["value"]
    assert not is_refused(MET[name](limit))
    assert is_refused(MET[name](limit + 1))


def test_the_table() -> None:
    """Each name once; every number is a whole one, or none where the settings set no limit."""
    rows = limits(Settings())
    assert len({row.name for row in rows}) == len(rows)
    assert [row.name for row in rows if row.value is None] == ["client_streams", "rate"]
    assert all(row.value is None or (isinstance(row.value, int) and row.value > 0) for row in rows)


def test_the_numbers_of_scripts_are_used() -> None:
    """A number that a script defines and does not use would say nothing."""
    scripts: dict[str, Script[object]] = {"MOST_MEMBERS": GET_MANY, "MOST_REPLAYED": IDEMPOTENT["put"], "LOG_BYTES": PUT}
    for name, script in scripts.items():
        assert script.text.count(name) >= 2
