"""A web page of elsewhere reads and changes nothing, whatever name it gives itself and whatever its browser leaves out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.serving import Served, start_kvstore

EVENTS = ("Accept", "text/event-stream")
# What a browser sends with a GET without CORS to a service that is neither HTTPS nor on this machine: no Origin, and no
# Sec-Fetch-Site.
BROWSER = [("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/130.0"), ("Accept-Language", "en")]


@pytest.fixture(scope="module")
def listening(started, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The command `kvstore` as it is without settings, but for its Redis."""
    running = start_kvstore(tmp_path_factory.mktemp("listening"), REDIS_URL=started("redis").url, WEB_CONCURRENCY="1")
    yield running
    running.kill()


@pytest.mark.xfail(strict=True, reason="row 4")
@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "OPTIONS"])
def test_a_name_that_is_not_ours(listening: Served, backing: redis.Redis, method: str) -> None:
    """A page that has its own name point at this machine (DNS rebinding) is told that it is at the wrong place."""
    port = listening.at[1]
    rebound = [("Host", f"evil.example:{port}"), ("Origin", f"http://evil.example:{port}"), ("Sec-Fetch-Site", "same-origin")]
    body = b"1" if method in ("PUT", "POST") else b""
    assert listening.request(method, "/ns/a", rebound, body).status == 421
    assert backing.keys() == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_names_that_are_ours(listening: Served, host: str) -> None:
    """With and without a port."""
    for port in ("", f":{listening.at[1]}", ":1"):
        assert listening.request("GET", "/ns/a", [("Host", host + port)]).status == 404


@pytest.mark.xfail(strict=True, reason="row 8")
def test_a_browser_that_says_nothing_holds_nothing(listening: Served, backing: redis.Redis, directory: Path) -> None:
    """?hold= is a GET that changes something, so a page has to say where it is from."""
    with listening.connect() as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "localhost"), EVENTS, *BROWSER])
        connection.sendall(f"GET /room/?hold=/tasks/x&as=1 HTTP/1.1\r\n{head}\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 403"
    assert backing.exists("kv:{tasks}/x") == 0


@pytest.mark.xfail(strict=True, reason="row 17")
def test_an_origin_of_another_scheme(listening: Served, backing: redis.Redis) -> None:
    """Where the browser says that a page is of another origin, a name that is the same proves nothing."""
    host = f"localhost:{listening.at[1]}"
    headers = [("Host", host), ("Origin", f"https://{host}"), ("Sec-Fetch-Site", "cross-site")]
    assert listening.request("PUT", "/ns/a", headers, b"1").status == 403
    assert backing.keys() == []


@pytest.mark.xfail(strict=True, reason="row 20")
def test_not_everybody_comes_back_at_once(listening: Served) -> None:
    """Streams are told to come back after different times."""
    told = set()
    for _ in range(10):
        with listening.connect() as connection:
            connection.sendall(b"GET /ns/a HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n")
            received = b""
            while b"retry:" not in received or not received.endswith(b"\n\n"):
                received += connection.recv(4096)
            told.add(received.partition(b"retry: ")[2].partition(b"\n")[0])
    assert len(told) > 1
