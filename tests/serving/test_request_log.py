"""The log of requests: a line for each, on every adapter, which nobody can forge and in which no token or value is."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstore.access.caller import Caller
from kvstore.access.principal import Principal
from kvstore.http.messages import Request
from kvstore.serving.request_log import MAX_PATH, MAX_SUBJECT, RequestLog
from tests.support.clients import ADAPTERS, Checked
from tests.support.lanes import on
from tests.support.serving import start_kvstore
from tests.support.stores import Running, wait_until
from tests.support.streams import open_reader
from tests.support.tokens import SECRET, in_s, signed

AT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
NASTY = 'ada\n2026-11-21T00:00:00.000Z GET /forged 200 0.1 "eve"\r\x1b[2J\x85\u2028'

# The request's method, target and subject, and what stands in a line of text between the time and the end.
LINES: list[tuple[str, bytes, str | None, str]] = [
    ("GET", b"/people/ada", None, "GET /people/ada 200 - -"),
    ("GET", b"/people/ada", "ada", "GET /people/ada 200 - ada"),
    ("GET", b"/people/ada?access_token=a.b.c", "ada", "GET /people/ada 200 - ada"),
    ("GET", b"/a%20b", "-", 'GET /a%20b 200 - "-"'),
    ("GET", b"/a", "", 'GET /a 200 - ""'),
    ("GET", b"/a b\r\n\x00\xff", "a b", 'GET /a%20b%0D%0A%00%FF 200 - "a b"'),
    ("GET", "/é".encode(), 'a"b', 'GET /%C3%A9 200 - "a\\"b"'),
    ("", b"", None, "- - 200 - -"),
    ("G\nT", b"/", None, "G%0AT / 200 - -"),
    ("GET", b'/a"b\\c', None, "GET /a%22b%5Cc 200 - -"),
]


@pytest.mark.parametrize(("method", "target", "subject", "shown"), LINES)
def test_a_line(method: str, target: bytes, subject: str | None, shown: str) -> None:
    """As text, and the same as JSON."""
    principal = None if subject is None else Principal({"sub": subject})
    request = Request(method, target, {}, caller=Caller(principal=principal))
    lines: list[str] = []
    RequestLog("text", lines.append).record(request, 200)
    RequestLog("json", lines.append).record(request, 200)
    text, line = lines
    assert re.fullmatch(f"{AT} .*\n", text)
    head, status, ms, who = re.split(r" (200) ([\d.]+) ", text[25:-1])
    assert f"{head} {status} - {who}" == shown
    assert float(ms) > 0
    found = json.loads(line)
    assert list(found) == ["time", "method", "path", "status", "ms", "subject"]
    assert [found["method"] or "-", found["path"] or "-", found["subject"]] == [*head.split(" "), subject]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_is_forged(form: str) -> None:
    """Whatever a client calls itself and whatever it asks for: one line of printable ASCII, of a limited length."""
    lines: list[str] = []
    caller = Caller(principal=Principal({"sub": NASTY * 1000}))
    RequestLog(form, lines.append).record(Request(NASTY, NASTY.encode() * 1000, {}, caller=caller), 200)
    assert re.fullmatch(r"[ -~]+\n", lines[0])
    assert len(lines[0]) < MAX_PATH + 6 * MAX_SUBJECT + 400 < 4096


RULES = 'rules = [["/open/**", "anyone", "anyone", "anyone"]]'


@pytest.fixture
def rules(tmp_path: Path) -> str:
    (tmp_path / "rules.toml").write_text(RULES)
    return str(tmp_path / "rules.toml")


Opened = tuple[Checked, Callable[[], list[str]]]


@pytest.fixture
def logged(lane: tuple[str, str], store: Running, rules: str, capfd: pytest.CaptureFixture[str]) -> Iterator[Opened]:
    """A client of a service that logs, and what it has logged."""
    environ = {"KVSTORE_SECRET": SECRET, "KVSTORE_RULES": rules, "KVSTORE_LOG": "text", "WEB_CONCURRENCY": "1"}
    client = Checked(ADAPTERS[lane[0]](store, environ))
    printed: list[str] = []

    def lines() -> list[str]:
        printed.extend(capfd.readouterr().out.splitlines())
        said = client.served.said.splitlines() if lane[0] == "served" else printed
        return [line for line in said if re.match(AT, line)]

    yield client, lines
    client.close()


@on([("flask", "valkey"), ("asgi", "redis"), ("served", "redis")])
def test_requests_are_logged(logged: Opened) -> None:
    """Those that are served and those that are refused, with who asked; no token and no value."""
    client, lines = logged
    token, expired = signed(roles=["admin"]), signed(exp=in_s(-9))
    bearer = [("Authorization", f"Bearer {token}")]
    asked: list[tuple[str, str, list[tuple[str, str]], bytes, str]] = [
        ("PUT", "/open/a", [], b'"confidential"', "201 -"),
        ("GET", "/open/a?x=confidential", bearer, b"", "200 ada"),
        ("GET", "/shut/a", bearer, b"", "404 ada"),
        ("GET", "/shut/a", [], b"", "401 -"),
        ("GET", "/open/a", [("Authorization", f"Bearer {expired}")], b"", "401 -"),
        ("GET", f"/open/a?access_token={token}", [], b"", "400 -"),
        ("BREW", "/open/a", [], b"", "405 -"),
    ]
    for method, target, headers, body, _ in asked:
        client.adapter.request(method, target, headers, body)
    wait_until(lambda: len(lines()) >= len(asked), 30)
    found = [re.sub(rf"^{AT} (.*) [\d.]+ (\S+)$", r"\1 \2", line) for line in lines()]
    assert found == [f"{method} {target.partition('?')[0]} {shown}" for method, target, _, _, shown in asked]
    text = "\n".join(lines())
    assert "confidential" not in text
    assert token not in text
    assert expired not in text


def test_a_stream_is_logged_when_it_ends(store_of_redis: Running, rules: str, directory: Path) -> None:
    """With the time that it lasted; a request that is no HTTP is logged as well."""
    served = start_kvstore(
        directory, REDIS_URL=store_of_redis.url, KVSTORE_SECRET=SECRET, KVSTORE_RULES=rules, KVSTORE_LOG="json"
    )
    try:
        reader = open_reader(served.at, f"/shut/a?access_token={signed(roles=['admin'])}", {})
        reader.wait_for(1)
        assert '"path"' not in served.said
        reader.close()
        wait_until(lambda: '"path"' in served.said, 30)
        with served.connect() as connection:
            connection.sendall(b"GET /a b HTTP/1.1\r\n\r\n")
            assert b"400" in connection.recv(1000)
        wait_until(lambda: served.said.count('"path"') == 2, 30)
        ended, refused = (json.loads(line) for line in served.said.splitlines() if line.startswith("{"))
        assert (ended["method"], ended["path"], ended["status"], ended["subject"]) == ("GET", "/shut/a", 200, "ada")
        assert refused["status"] == 400
        assert signed(roles=["admin"]) not in served.said
    finally:
        served.kill()


@pytest.fixture
def store_of_redis(started: Callable[[str], Running]) -> Running:
    return started("redis")


def test_there_is_no_log_by_default(started: Callable[[str], Running], directory: Path) -> None:
    served = start_kvstore(directory, REDIS_URL=started("redis").url)
    try:
        served.request("GET", "/a/a")  # the banner is printed by now
        before = served.said
        served.request("GET", "/a/b")
        assert served.said == before
    finally:
        served.kill()
