"""Web pages: which of them may read what is answered, and which may change something."""

import contextlib
import http.client
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from kvstore.core.errors import OriginNotAllowed
from kvstore.core.settings import InvalidSetting, Settings, read_settings
from kvstore.http.cors import check_hold_origin, check_origin, shown_to
from kvstore.http.messages import Request
from tests.support.asking import entries
from tests.support.clients import Answer, Checked, Headers
from tests.support.lanes import on_few, on_two
from tests.support.serving import start_kvstore
from tests.support.stores import Running, contents, wait_until
from tests.support.streams import FOLLOWED, ask, following

LOCAL, FOREIGN = "http://localhost:5173", "https://elsewhere.example"

# A request's header fields, and whether it may change something and whether its page may see the answer, where KVSTORE_ORIGINS
# is left as it is.
PAGES: list[tuple[str, dict[str, str], bool, bool]] = [
    ("no browser", {}, True, False),
    ("a page of this machine", {"origin": LOCAL}, True, True),
    ("the same, at the usual port", {"origin": "http://localhost"}, True, True),
    ("the same, by its address", {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "cross-site"}, True, True),
    ("another port, for a browser another origin of this site", {"origin": LOCAL, "sec-fetch-site": "same-site"}, True, True),
    ("a page of another origin", {"origin": FOREIGN}, False, False),
    ("that a browser says is another one", {"origin": FOREIGN, "sec-fetch-site": "cross-site"}, False, False),
    ("a file, or a frame in a sandbox", {"origin": "null"}, False, False),
    ("a page that does not say which", {"sec-fetch-site": "cross-site"}, False, False),
    ("a page of this origin", {"origin": "https://x.example", "host": "x.example"}, True, False),
    ("the same, with a port", {"origin": "http://x.example:81", "host": "x.example:81"}, True, False),
    ("at another port", {"origin": "http://x.example:82", "host": "x.example:81"}, False, False),
    ("behind a proxy", {"origin": "https://x.example", "host": "10.0.0.1", "x-forwarded-host": "x.example"}, True, False),
    ("a page of this origin, says the browser", {"origin": "https://x.example", "sec-fetch-site": "same-origin"}, True, False),
    ("without an Origin", {"sec-fetch-site": "same-origin"}, True, False),
    *(
        (
            "this host by another scheme",
            {"origin": "http://x.example", "host": "x.example", "sec-fetch-site": site},
            False,
            False,
        )
        for site in ("cross-site", "same-site")
    ),
    ("the person at the browser", {"sec-fetch-site": "none"}, True, False),
    ("a name that only begins like ours", {"origin": "http://localhost.elsewhere.example"}, False, False),
    ("a name that only ends like ours", {"origin": "http://not-localhost"}, False, False),
    ("a port that is none", {"origin": "http://localhost:5173.elsewhere.example"}, False, False),
    ("a user of that name", {"origin": "http://localhost:1@elsewhere.example"}, False, False),
    ("two lines", {"origin": f"{LOCAL}, {FOREIGN}"}, False, False),
    ("another scheme", {"origin": "https://localhost:5173"}, False, False),
    ("an empty one", {"origin": "", "host": ""}, False, False),
]


@pytest.mark.parametrize(("headers", "may_write", "may_see"), [row[1:] for row in PAGES], ids=[row[0] for row in PAGES])
def test_pages(*, headers: dict[str, str], may_write: bool, may_see: bool) -> None:
    """Who may change something, and who may see the answer."""
    settings = Settings()
    if may_write:
        check_origin(headers, settings)
    else:
        with pytest.raises(OriginNotAllowed):
            check_origin(headers, settings)
    fields = dict(shown_to(Request("GET", b"/a", headers), settings))
    assert fields.get("Access-Control-Allow-Origin") == (headers["origin"] if may_see else None)


FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
LAN = "box.lan:8000"

# The header fields of a GET with ?hold=, besides Host, and whether it may hold the document.
HOLDERS: list[tuple[str, dict[str, str], bool]] = [
    ("curl", {"user-agent": "curl/8.5.0"}, True),
    ("a client that does not say what it is", {}, True),
    ("a page of this origin", {"user-agent": FIREFOX, "referer": f"http://{LAN}/room.html"}, True),
    (
        "the same behind a proxy",
        {"user-agent": FIREFOX, "referer": "https://x.example/", "x-forwarded-host": "x.example"},
        True,
    ),
    ("a page of this machine", {"user-agent": FIREFOX, "referer": LOCAL + "/"}, True),
    ("a page that an https service can trust", {"user-agent": FIREFOX, "sec-fetch-site": "same-origin"}, True),
    ("an EventSource of an allowed origin", {"user-agent": FIREFOX, "origin": LOCAL}, True),
    ("an EventSource of another origin", {"user-agent": FIREFOX, "origin": FOREIGN}, False),
    ("an EventSource of another origin that is no browser's", {"origin": FOREIGN}, False),
    ("an image of a foreign page", {"user-agent": FIREFOX, "referer": FOREIGN + "/"}, False),
    ("an image of a foreign page that keeps silent", {"user-agent": FIREFOX}, False),
    ("an empty Referer", {"user-agent": FIREFOX, "referer": ""}, False),
    ("a Referer without a host", {"user-agent": FIREFOX, "referer": "about:blank"}, False),
    ("a foreign page with our host in its path", {"user-agent": FIREFOX, "referer": f"{FOREIGN}/http://{LAN}/"}, False),
    ("a foreign host that begins as ours", {"user-agent": FIREFOX, "referer": f"http://{LAN}.elsewhere.example/"}, False),
    ("a foreign port", {"user-agent": FIREFOX, "referer": "http://box.lan:9000/"}, False),
    ("a foreign page, with our Referer", {"referer": f"http://{LAN}/", "origin": FOREIGN}, False),
    ("a site that a browser calls foreign", {"referer": f"http://{LAN}/", "sec-fetch-site": "cross-site"}, False),
]


@pytest.mark.parametrize(("headers", "may_hold"), [row[1:] for row in HOLDERS], ids=[row[0] for row in HOLDERS])
def test_a_get_that_holds(*, headers: dict[str, str], may_hold: bool) -> None:
    """A GET that writes: a browser sends one of any page without Origin, so a browser has to show whose page it is."""
    asked = {"host": LAN} | headers
    if may_hold:
        check_hold_origin(asked, Settings())
    else:
        with pytest.raises(OriginNotAllowed):
            check_hold_origin(asked, Settings())


SETTINGS: list[tuple[str, list[str], list[str]]] = [
    ("none", [], [LOCAL, FOREIGN, "null", "none"]),
    ("*", [LOCAL, FOREIGN, "null"], []),
    (FOREIGN, [FOREIGN], [LOCAL, "http://elsewhere.example", FOREIGN + ":8443", "https://www.elsewhere.example"]),
    (f"{FOREIGN}:* null", [FOREIGN, FOREIGN + ":8443", "null"], [LOCAL, FOREIGN + ":x", FOREIGN + ":"]),
    ("https://ELSEWHERE.example:8443 http://[::1]:*", [FOREIGN + ":8443", "http://[::1]:3000", "http://[::1]"], [FOREIGN]),
]


@pytest.mark.parametrize(("asked", "allowed", "others"), SETTINGS)
def test_the_setting(asked: str, allowed: list[str], others: list[str]) -> None:
    """Origins, with any port, all of them, or none."""
    origins = read_settings({"KVSTORE_ORIGINS": asked}).origins
    assert [origin for origin in allowed + others if origins.allow(origin)] == allowed


@pytest.mark.parametrize("asked", ["elsewhere.example", "https://elsewhere.example/", "https://*.example", "ftp://a", "none *"])
def test_a_bad_setting(asked: str) -> None:
    """What no browser would ever send is refused at the start, not passed over."""
    with pytest.raises(InvalidSetting, match="KVSTORE_ORIGINS must be origins"):
        read_settings({"KVSTORE_ORIGINS": asked})


# What changes something: method, target, body.
READ_CHANGES = [
    ("PUT", "/ns/a", "2"),
    ("PATCH", "/ns/a", '{"b":1}'),
    ("PATCH", "/ns/a?ttl=90", ""),
    ("DELETE", "/ns/a", ""),
    ("DELETE", "/ns/?recursive", ""),
    ("POST", "/ns/", "2"),
    ("POST", "/ns/?lease=30s", ""),
    ("POST", "/_/batch", '{"requests":[{"method":"PUT","path":"/ns/a","body":2}]}'),
]


@on_few
@pytest.mark.parametrize(("method", "target", "body"), READ_CHANGES)
def test_a_change(client: Checked, raw: redis.Redis, method: str, target: str, body: str) -> None:
    """From a page of another origin it is refused, and nothing is changed; from one that is allowed it is made and shown."""
    client.put("/ns/a", '{"a":1}')
    before = contents(raw)
    refused = client.request(method, target, [("Origin", FOREIGN)], body.encode())
    assert (refused.status, refused.json["type"]) == (403, "urn:kvstore:origin-not-allowed")
    assert FOREIGN in refused.json["detail"]
    assert not seen(refused)
    assert contents(raw) == before
    made = client.request(method, target, [("Origin", LOCAL)], body.encode())
    assert made.status < 300
    assert made.headers["Access-Control-Allow-Origin"] == LOCAL
    assert contents(raw) != before


@on_few
def test_what_a_page_sees(client: Checked) -> None:
    """Every answer, the refused ones too; and of another origin's, none, though they are given."""
    tag = client.put("/ns/a", "1").tag
    many = b"1" * (1024 * 1024 + 1)
    rows: list[tuple[int, str, str, list[tuple[str, str]], bytes]] = [
        (200, "GET", "/ns/a", [], b""),
        (200, "HEAD", "/ns/a", [], b""),
        (304, "GET", "/ns/a", [("If-None-Match", tag)], b""),
        (200, "GET", "/ns/", [], b""),
        (200, "GET", "/ns/", [("Accept", "application/x-ndjson")], b""),
        (404, "GET", "/ns/none", [], b""),
        (400, "GET", "//", [], b""),
        (400, "GET", "/ns/a", [("If-Match", "x")], b""),
        (405, "BREW", "/ns/a", [], b""),
        (413, "PUT", "/ns/a", [], many),
    ]
    for status, method, target, fields, body in rows:
        answer = client.adapter.request(method, target, [*fields, ("Origin", LOCAL)], body)
        assert (answer.status, answer.headers.get("Access-Control-Allow-Origin")) == (status, LOCAL), target
        assert "origin" in answer.headers["Vary"].lower()
        assert "ETag" in re.split(", *", answer.headers["Access-Control-Expose-Headers"])
        if method == "GET":
            other = client.adapter.request(method, target, [*fields, ("Origin", FOREIGN)], body)
            assert (other.status, other.body) == (status, answer.body)
            assert not seen(other)
    assert not seen(client.get("/ns/a"))


@on_few
def test_a_preflight(client: Checked) -> None:
    """A browser asks before it sends what no form could: all methods of that path, and all header fields that we read."""
    asked = [("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "if-match")]
    for target, methods in (("/ns/a", {"PUT", "PATCH", "DELETE"}), ("/ns/", {"POST", "DELETE"}), ("/_/batch", {"POST"})):
        answer = client.request("OPTIONS", target, [("Origin", LOCAL), *asked])
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == LOCAL
        assert methods <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
        assert int(answer.headers["Access-Control-Max-Age"]) > 0
        allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert {"if-match", "if-none-match", "content-type", "idempotency-key", "prefer", "last-event-id"} <= set(allowed)
        assert "Access-Control-Allow-Origin" not in client.request("OPTIONS", target, [("Origin", FOREIGN), *asked]).headers
    assert not seen(client.request("OPTIONS", "/ns/a"))


@on_two
def test_all_may(client_with: Callable[..., Checked]) -> None:
    """KVSTORE_ORIGINS=* lets every page in."""
    client = client_with(KVSTORE_ORIGINS="*")
    assert client.put("/ns/a", "1", [("Origin", FOREIGN)]).headers["Access-Control-Allow-Origin"] == FOREIGN
    assert client.put("/ns/a", "1", [("Origin", "null")]).headers["Access-Control-Allow-Origin"] == "null"


@on_few
def test_a_request_in_a_batch_says_nothing_of_pages(client: Checked) -> None:
    """The page is the batch's; what a part of it says of an origin cannot widen that."""
    part = {"method": "PUT", "path": "/ns/a", "body": 1, "headers": {"Origin": FOREIGN}}
    answer = client.request("POST", "/_/batch", [("Origin", LOCAL)], json.dumps({"requests": [part]}).encode())
    assert answer.status == 409
    part["headers"] = {"Origin": LOCAL}
    answer = client.request("POST", "/_/batch", [("Origin", FOREIGN)], json.dumps({"requests": [part]}).encode())
    assert answer.status == 403
    assert client.get("/ns/a").status == 404


@pytest.mark.parametrize("kind", FOLLOWED)
def test_a_stream(kind: str, started: Callable[[str], Running]) -> None:
    """A page that is allowed sees it; another one cannot hold a document by it, which would be a change."""
    store = started("redis")
    store.redis.flushall()
    followed = FOLLOWED[kind](store)
    try:
        with following(followed, "/room/?hold=/people/ada", Origin=LOCAL) as reader:
            assert reader.headers["Access-Control-Allow-Origin"] == LOCAL
            reader.wait_for(1)
            assert ask(followed, "GET", "/people/ada") is None, "null"
        for foreign in ({"Origin": FOREIGN}, {"Sec_Fetch_Site": "cross-site"}, {"User_Agent": FIREFOX}):
            with following(followed, "/room/?hold=/people/bob", **foreign) as reader:
                assert reader.status == 403
                assert "access-control-allow-origin" not in reader.headers
            with following(followed, "/room/", **foreign) as reader:
                reader.wait_for(1)
                assert "access-control-allow-origin" not in reader.headers
        assert followed.request("GET", "/people/bob").status == 404
    finally:
        followed.stop()


def seen(answer: Answer) -> list[str]:
    """The header fields that speak of pages."""
    return [name for name in Headers(answer.headers.items()) if name.startswith("access-control-")]


# --- A browser ----------------------------------------------------------------------------------------------------------

# What a page does to hold documents by GETs: as an image, as a script, by fetch(), and by EventSource; then it says so.
HOLDING = """<!doctype html><script type="module">
const at = name => `http://box.test:SERVICE/room/?hold=/people/${name}-NAME`
const tried = [
  new Promise(done => { const image = new Image(); image.onerror = image.onload = done; image.src = at("image") }),
  ...["no-referrer", "unsafe-url"].map(referrerPolicy =>
    fetch(at(referrerPolicy), {mode: "no-cors", referrerPolicy, headers: {Accept: "text/event-stream"}}).catch(() => 0)),
  fetch(at("cors"), {headers: {Accept: "text/event-stream"}}).catch(() => 0),
  new Promise(done => {
    const source = new EventSource(at("source"))
    source.onerror = done
    source.addEventListener("snapshot", done)
  }),
]
await Promise.all(tried)
await fetch("/done")
</script>"""


class Page(http.server.BaseHTTPRequestHandler):
    """A page that tries to hold documents; what it asks of its own origin is passed on to the service."""

    def do_GET(self) -> None:
        if self.path.startswith("/room/"):
            self.pass_on()
            return
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        if self.path == "/":
            self.wfile.write(self.server.page)  # type: ignore[attr-defined]

    def pass_on(self) -> None:
        connection = http.client.HTTPConnection(*self.server.service, timeout=10)  # type: ignore[attr-defined, misc]
        connection.request("GET", self.path, headers=dict(self.headers.items()))
        answer = connection.getresponse()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", ""))
        self.end_headers()
        with contextlib.suppress(OSError, http.client.HTTPException):
            while piece := answer.read1(65536):
                self.wfile.write(piece)
        connection.close()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def page_on(service: tuple[str, int], name: str, *, is_same_origin: bool) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of the page; of its own origin is what it passes on."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    port = server.server_port if is_same_origin else service[1]
    server.service, server.asked = service, []  # type: ignore[attr-defined]
    server.page = HOLDING.replace("SERVICE", str(port)).replace("NAME", name).encode()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_pages_in_a_browser(directory: Path, started: Callable[[str], Running], browse: Callable[..., None]) -> None:
    """Over HTTP, on a name of the local network, where a browser sends neither Sec-Fetch-Site nor, without CORS, Origin.

    A foreign page holds nothing, however it tries. A page of the service's own origin does, by EventSource and fetch().
    """
    store = started("redis")
    store.redis.flushall()
    served = start_kvstore(directory, REDIS_URL=store.url, KVSTORE_HOSTS="box.test")
    try:
        for name, is_same_origin in (("foreign", False), ("own", True)):
            with page_on(served.at, name, is_same_origin=is_same_origin) as page:
                host = "box.test" if is_same_origin else "foreign.test"
                browse(f"http://{host}:{page.server_port}/", "--host-resolver-rules=MAP *.test 127.0.0.1")
                wait_until(lambda page=page: "/done" in page.asked, 60)
                time.sleep(0.5)
        holders = {entry.name for entry in entries(store.redis, "people")}  # also those that have gone
        assert holders == {"unsafe-url-own", "cors-own", "source-own"}
    finally:
        served.kill()
