"""The explorer, its modules and what else stays as it is, over every adapter; and what leads a browser to the explorer."""

import gzip
import re
from collections.abc import Callable
from importlib.resources import files

import flask
import pytest

import kvstore
from kvstore.http.protocol import HEALTH_PATH, READY_PATH
from kvstore.serving.own_paths import OPEN
from kvstore.serving.pages import PAGES, POLICY
from tests.support.asking import batch
from tests.support.clients import CSP, Answer, Checked, call_wsgi, make_environ
from tests.support.lanes import on, on_one, on_two
from tests.support.tokens import SECRET, in_s, signed

on_adapters = on([("flask", "valkey"), ("asgi", "cluster"), ("served", "redis")])
TYPES = {
    "": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml; charset=utf-8",
}
NAVIGATION = [("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8")]


def ask(client: Checked, target: str, *headers: tuple[str, str], method: str = "GET") -> Answer:
    """The answer to a request for a page, which `check_promises` does not know."""
    return client.adapter.request(method, target, headers)


@on_adapters
@pytest.mark.parametrize("path", sorted(OPEN.keys() - {HEALTH_PATH, READY_PATH}))
def test_what_stays_as_it_is(client_with: Callable[..., Checked], path: str) -> None:
    """Open to anyone, also where tokens are required and with a bad one, packed for those who take that, and kept."""
    client = client_with(KVSTORE_SECRET=SECRET)
    found = ask(client, path, ("Authorization", "Bearer x"))
    if path in PAGES:
        assert (found.status, found.headers["Content-Type"]) == (200, TYPES[path.rpartition(".")[2].strip("/_")])
        assert found.headers["Content-Security-Policy"] == POLICY
        assert found.headers["Referrer-Policy"] == "no-referrer"
    else:
        assert (found.status, found.headers["Content-Type"]) == (200, "application/json")
        assert found.headers["Content-Security-Policy"] == CSP
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert (found.headers["Cache-Control"], found.headers["Vary"]) == ("no-cache", "Accept-Encoding")
    packed = ask(client, path, ("Accept-Encoding", "gzip, deflate, br, zstd"))
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == found.body
    assert packed.tag != found.tag
    for headers, whole in (([], found), ([("Accept-Encoding", "gzip")], packed)):
        head = ask(client, path, *headers, method="HEAD")
        assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(whole.body)))
        kept = ask(client, path, *headers, ("If-None-Match", whole.tag))
        assert (kept.status, kept.body, kept.tag) == (304, b"", whole.tag)
        assert ask(client, path, *headers, ("If-None-Match", '"x"')).body == whole.body


LATER = ("kvstore.js", "reference.js", "tabs.js")


def test_the_explorer_loads_its_modules_at_once() -> None:
    """None waits for another to be read first, and none is left out."""
    text = files("kvstore.serving.pages").joinpath("explorer.html").read_text("utf-8")
    loaded = re.findall(r'(?:modulepreload" href|module" src)="([a-z]+\.js)"', text)
    assert sorted(loaded) == sorted(name for name in PAGES.values() if name.endswith(".js") and name not in LATER)


# An Accept-Encoding, and whether it takes gzip.
ENCODINGS = [
    ("gzip", True),
    ("br, GZIP;q=0.5", True),
    ("*", True),
    ("deflate,gzip", True),
    ("", False),
    ("br", False),
    ("gzip;q=0", False),
    ("gzip; q=0.000, br", False),
    ("x-gzip-not", False),
    ("identity", False),
]


@on_two
@pytest.mark.parametrize(("accept", "is_packed"), ENCODINGS)
def test_packing(client: Checked, accept: str, is_packed: bool) -> None:
    """gzip for those who take it."""
    assert ("Content-Encoding" in ask(client, "/_/", ("Accept-Encoding", accept)).headers) is is_packed


@on_adapters
def test_other_methods_and_paths(client: Checked) -> None:
    """405 with Allow; nothing else lies beside the pages, and a batch has none of them."""
    for path in PAGES:
        for method in ("PUT", "POST", "PATCH", "DELETE"):
            refused = client.request(method, path, body=b"{}")
            assert (refused.status, refused.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert client.request("OPTIONS", path).headers["Allow"] == "GET, HEAD, OPTIONS"
        [each] = batch(client, [{"method": "GET", "path": path}], atomic=False).json["responses"]
        assert each["status"] == 422
    for path in ("/_/__init__.py", "/_/explorer", "/_/explorer.html", "/_/explorer.js/", "/_/..%2Fpages.py", "/_/%2E%2E"):
        assert client.get(path).status in (400, 404)


@on_adapters
def test_a_browser_at_the_root(client: Checked) -> None:
    """It is led to the explorer while nothing is stored there. Programs are not, nor for other paths, nor other methods."""
    led = ask(client, "/", *NAVIGATION)
    assert (led.status, led.headers["Location"], led.headers["Cache-Control"], led.body) == (303, "_/", "no-store", b"")
    assert ask(client, "/", *NAVIGATION, method="HEAD").status == 303
    assert ask(client, "/_", *NAVIGATION).headers["Location"] == "_/"
    for accept in ("application/json", "*/*", "application/json, text/html;q=0.9", "text/html;q=0"):
        assert client.get("/", [("Accept", accept)]).status == 404
    for path in ("/a", "/ns/a", "/_/x", "/_/session"):
        assert client.get(path, NAVIGATION).status == 404
    assert client.delete("/", NAVIGATION).status == 404
    assert client.put("/", "1").status == 201
    assert client.get("/", NAVIGATION).json == 1


@on_two
def test_a_browser_without_a_token(client_with: Callable[..., Checked]) -> None:
    """It is led there as well, whether or not something is stored at the root: the explorer has a place for the token."""
    client = client_with(KVSTORE_SECRET=SECRET)
    admin = [("Authorization", f"Bearer {signed(sub='root', roles=['admin'], exp=in_s(60))}")]
    user = [("Authorization", f"Bearer {signed(sub='ada', exp=in_s(60))}")]
    for _ in range(2):
        assert ask(client, "/", *NAVIGATION).headers["Location"] == "_/"
        assert ask(client, "/", *NAVIGATION, *user).headers["Location"] == "_/"
        assert client.get("/").status == 401
        assert client.put("/", "1", admin).status in (200, 201)
    assert client.get("/", [*NAVIGATION, *admin]).json == 1


@on_one
def test_below_a_mount(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What leads to the page, and what the page names, is relative."""
    monkeypatch.setenv("REDIS_URL", store.url)  # type: ignore[attr-defined]
    app = flask.Flask("tests", static_folder=None)
    app.register_blueprint(kvstore.blueprint(), url_prefix="/kv")
    led = call_wsgi(app, make_environ("GET", "/kv/", NAVIGATION))
    assert (led.status, led.headers["Location"]) == (303, "_/")
    page = call_wsgi(app, make_environ("GET", "/kv/_/"))
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b'"explorer.js"' in page.body
    assert call_wsgi(app, make_environ("GET", "/kv/_/explorer.js")).status == 200
