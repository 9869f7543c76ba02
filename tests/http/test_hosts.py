"""The hosts that the service answers for: on loopback those that are named, so that no page reaches it by DNS rebinding."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.core.errors import MisdirectedRequest
from kvstore.core.settings import InvalidSetting, read_settings
from kvstore.http.hosts import check_host, is_loopback
from kvstore.serving.asgi import Application
from tests.support.clients import check_problem, make_scope
from tests.support.serving import Served, start_kvstore
from tests.support.serving import wire as request_bytes
from tests.support.stores import Running
from tests.support.streams import FlaskServer
from tests.support.wires import Raw, Wire

EVIL = "evil.example:8000"
REBOUND = [("Host", EVIL), ("Origin", f"http://{EVIL}"), ("Sec-Fetch-Site", "same-origin")]

# KVSTORE_HOSTS, Host, whether that is answered.
HOSTS = [
    ("", "localhost", True),
    ("", "localhost:8000", True),
    ("", "LOCALHOST:8000", True),
    ("", "127.0.0.1", True),
    ("", "127.0.0.1:65535", True),
    ("", "[::1]", True),
    ("", "[::1]:8000", True),
    ("", "evil.example", False),
    ("", EVIL, False),
    ("", "localhost.evil.example", False),
    ("", "127.0.0.1.evil.example:8000", False),
    ("", "evil.localhost", False),
    ("", "localhost.", False),
    ("", "127.0.0.2", False),
    ("", "[::2]", False),
    ("", "::1", False),
    ("", "localhost:8000:8000", False),
    ("", "localhost:", False),
    ("", "", False),
    ("", "x" * 100_000, False),
    ("app.example", "app.example", True),
    ("app.example", "App.Example:443", True),
    ("app.example", "localhost:8000", True),
    ("app.example", "www.app.example", False),
    ("app.example box [fd00::1]", "box:8000", True),
    ("app.example box [fd00::1]", "[fd00::1]:8000", True),
    ("app.example box [fd00::1]", EVIL, False),
]


@pytest.mark.parametrize(("setting", "host", "is_answered"), HOSTS)
def test_hosts(*, setting: str, host: str, is_answered: bool) -> None:
    """A name with any port; where there is no Host, there is no browser."""
    settings = read_settings({"KVSTORE_HOSTS": setting})
    check_host({}, settings)
    if is_answered:
        check_host({"host": host}, settings)
    else:
        with pytest.raises(MisdirectedRequest, match="KVSTORE_HOSTS"):
            check_host({"host": host}, settings)


@pytest.mark.parametrize("setting", ["app.example:8000", "http://app.example", "*", "*.example", "a/b", "::1"])
def test_a_bad_setting(setting: str) -> None:
    """Names, and nothing else."""
    with pytest.raises(InvalidSetting, match="KVSTORE_HOSTS must be names of hosts without a port"):
        read_settings({"KVSTORE_HOSTS": setting})


ADDRESSES: list[tuple[object, bool]] = [
    ("127.0.0.1", True),
    ("127.9.9.9", True),
    ("::1", True),
    ("localhost", True),
    ("0.0.0.0", False),
    ("::", False),
    ("192.168.1.7", False),
    ("/run/kvstore.sock", False),
    ("box.lan", False),
    ("", False),
    (None, False),
]


@pytest.mark.parametrize(("address", "expected"), ADDRESSES)
def test_loopback(*, address: object, expected: bool) -> None:
    """What reaches an address that a server listens on."""
    assert is_loopback(address) is expected


# --- The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(started: Callable[[str], Running]) -> Running:
    """A real Redis, empty."""
    running = started("redis")
    running.redis.flushall()
    return running


@pytest.fixture
def start(directory: Path, store: Running) -> Iterator[Callable[..., Served]]:
    """Starts the command with some settings."""
    served: list[Served] = []

    def start(**environ: str) -> Served:
        served.append(start_kvstore(directory, REDIS_URL=store.url, WEB_CONCURRENCY="1", **environ))
        return served[-1]

    yield start
    for each in served:
        each.kill()


# What a page that has its name resolve to this machine may try: method, target, body.
TRIED = [
    ("PUT", "/ns/a", b"1"),
    ("GET", "/ns/a", b""),
    ("GET", "/ns/?hold=/ns/b", b""),
    ("POST", "/ns/", b"1"),
    ("POST", "/_/batch", b'{"requests":[{"method":"PUT","path":"/ns/a","body":1}]}'),
    ("OPTIONS", "/ns/a", b""),
    ("BREW", "/ns//", b""),
]


def all_said(served: Served) -> str:
    """What a process has printed that answers: its warnings come after its address."""
    served.request("GET", "/ns/a", [("Host", "localhost")])
    return served.said


def test_a_page_that_rebinds_its_name(start: Callable[..., Served], store: Running) -> None:
    """The command on loopback refuses all that it asks, and goes on with those who ask for it by its name."""
    served = start()
    assert "WARNING" not in all_said(served)
    for method, target, body in TRIED:
        response = served.request(method, target, [*REBOUND, ("Accept", "text/event-stream")], body)
        assert response.status == 421, (method, target)
        assert response.getheader("Content-Type") == "application/problem+json"
    assert store.redis.keys("*") == []
    for host in ("127.0.0.1:8000", "localhost", "[::1]:1"):
        assert served.request("PUT", "/ns/a", [("Host", host)], b"1").status in (200, 201)


@pytest.mark.slow
def test_on_one_connection(start: Callable[..., Served]) -> None:
    """Each request is looked at, however often one like it came before."""
    wire = Wire(start().at)
    good, bad = (request_bytes("GET", "/ns/a", [("Host", host)]) for host in ("localhost:8000", EVIL))
    wire.send((good + good + bad + bad) * 3)
    assert [wire.answer().status for _ in range(12)] == [404, 404, 421, 421] * 3
    wire.close()


def test_a_name_that_is_allowed(start: Callable[..., Served]) -> None:
    """As a proxy on this machine passes it on."""
    served = start(KVSTORE_HOSTS="app.example")
    assert served.request("PUT", "/ns/a", [("Host", "app.example")], b"1").status == 201
    assert served.request("PUT", "/ns/a", REBOUND, b"1").status == 421


@pytest.mark.slow
def test_another_address(start: Callable[..., Served]) -> None:
    """It answers for every host, and says at the start, once, what that means."""
    served = start(HOST="0.0.0.0")
    said = all_said(served)
    assert said.count("WARNING: access is open") == 1
    assert "Set KVSTORE_SECRET" in said
    assert served.request("PUT", "/ns/a", [("Host", EVIL)], b"1").status == 201


def test_another_address_with_a_secret(start: Callable[..., Served]) -> None:
    """There is nothing to warn of, unless access is open all the same."""
    assert "WARNING" not in all_said(start(HOST="0.0.0.0", KVSTORE_SECRET="s" * 32))
    said = all_said(start(HOST="0.0.0.0", KVSTORE_SECRET="s" * 32, KVSTORE_OPEN="1"))
    assert said.count("WARNING: access is open") == 1
    assert "Unset KVSTORE_OPEN" in said


# --- In other servers ---------------------------------------------------------------------------------------------------


def ask(served: FlaskServer, method: str, headers: list[tuple[str, str]], body: bytes = b"") -> Raw:
    """One request on a connection of its own."""
    wire = Wire(served.at)
    wire.send(request_bytes(method, "/ns/a", headers, body))
    answer = wire.answer(method)
    wire.close()
    return answer


def test_flasks_own_server(store: Running) -> None:
    """Flask's development server on loopback: the same."""
    served = FlaskServer(store)
    try:
        for headers, status in ((REBOUND, 421), ([("Host", "localhost:5000")], 201)):
            assert ask(served, "PUT", headers, b"1").status == status
    finally:
        served.stop()


# What an ASGI server says of itself and of a mount, and whether a foreign Host is refused.
SCOPES: list[tuple[dict[str, Any], bool]] = [
    ({"server": ("127.0.0.1", 8000)}, True),
    ({"server": ("::1", 8000)}, True),
    ({"server": ["127.0.0.1", 8000]}, True),
    ({"server": ("192.168.1.7", 8000)}, False),
    ({"server": ("/run/app.sock", None)}, False),
    ({"server": None}, False),
    ({}, False),
    ({"server": ("127.0.0.1", 8000), "root_path": "/kv"}, False),
]


@pytest.mark.parametrize(("said", "is_refused"), SCOPES)
def test_asgi(store: Running, said: dict[str, Any], *, is_refused: bool) -> None:
    """Where a server on loopback serves nothing but the service; an application that mounts it looks after hosts itself."""

    async def put(host: str) -> int:
        application = Application({"REDIS_URL": store.url})
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"1"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await application(make_scope("PUT", "/kv/ns/a", [("Host", host)]) | said, receive, send)
        await application.open().close()
        status: int = sent[0]["status"]
        return status

    assert asyncio.run(put("127.0.0.1:8000")) in (200, 201)
    assert (asyncio.run(put(EVIL)) == 421) == is_refused


def test_the_problem(store: Running) -> None:
    """It says which host was asked for, and what to do."""
    served = FlaskServer(store)
    try:
        problem = json.loads(ask(served, "GET", REBOUND).body)
        check_problem(421, problem)
        assert problem["type"] == "urn:kvstore:misdirected-request"
        assert EVIL in problem["detail"]
    finally:
        served.stop()
