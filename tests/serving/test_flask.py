"""The Flask adapter where it is somebody's own: mounted, below a prefix, behind SCRIPT_NAME, and in Flask's own server."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import flask
import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import kvstore
from kvstore.serving.flask import make_blueprint
from tests.support.asking import Lines
from tests.support.clients import Answer, Checked, call_wsgi, flask_runtime, make_environ
from tests.support.serving import Served
from tests.support.stores import Running, wait_until


@pytest.fixture
def lane() -> tuple[str, str]:
    """One store will do: what differs here is before it."""
    return "flask", "valkey"


class Mounted:
    """An application of somebody's, as a client."""

    def __init__(self, app: object) -> None:
        self.app = app

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        return call_wsgi(self.app, make_environ(method, target, headers, body))

    def close(self) -> None:
        pass


@pytest.fixture
def host(store: Running) -> flask.Flask:
    """An application with routes of its own, which mounts us at /kv and, once more, at /deep/er."""
    app = flask.Flask("host", static_folder=None)
    app.add_url_rule("/own", view_func=lambda: "own page", endpoint="own")
    app.add_url_rule("/kv/own", view_func=lambda: "own page", endpoint="below")
    app.add_url_rule("/kv/own/<name>", view_func=lambda name: f"own page of {name}", endpoint="named")
    blueprint = make_blueprint(flask_runtime(store, {}))
    app.register_blueprint(blueprint, url_prefix="/kv")
    app.register_blueprint(blueprint, url_prefix="/deep/er", name="deeper")
    return app


@pytest.fixture
def mounted(host: flask.Flask) -> Checked:
    """A client of that application, for requests that we answer."""
    return Checked(Mounted(host))


OWN = [("/own", b"own page"), ("/kv/own", b"own page"), ("/kv/own/x", b"own page of x")]


@pytest.mark.parametrize(("path", "page"), OWN)
def test_own_routes_come_first(host: flask.Flask, path: str, page: bytes) -> None:
    """What the application answers itself never reaches us, above the prefix and below it."""
    assert Mounted(host).request("GET", path).body == page


# Where it is mounted, the target, the Location, and the same document seen through the other mount.
MOUNTS = [
    ("/kv/a", "/kv/a", "/deep/er/a"),
    ("/kv/a/b", "/kv/a/b", "/deep/er/a/b"),
    ("/kv/a%2fb", "/kv/a%2Fb", "/deep/er/a%2fb"),
    ("/kv/", "/kv/", "/deep/er/"),
    ("/kv/own/x/y", "/kv/own/x/y", "/deep/er/own/x/y"),
    ("/deep/er/é", "/deep/er/%C3%A9", "/kv/%C3%A9"),
    ("/kv/kv/kv", "/kv/kv/kv", "/deep/er/kv/kv"),
    ("/%6bv/a", "/%6bv/a", "/kv/a"),
]


@pytest.mark.parametrize(("target", "location", "elsewhere"), MOUNTS)
def test_below_a_prefix(mounted: Checked, target: str, location: str, elsewhere: str) -> None:
    """A document's path begins behind the prefix, and Location has the prefix; two mounts of one store share documents."""
    created = mounted.put(target, '{"a":1}')
    assert (created.status, created.headers["Location"]) == (201, location)
    assert mounted.get(elsewhere).tag == created.tag
    assert mounted.get(location).tag == created.tag


@pytest.mark.parametrize("target", ["/kv//", "/kv//a", "/kv/a//b", "/kv/..", "/kv/%2e%2e", "/kv/%00", "/kv/%FF", "/kv/a%0Ab"])
def test_bad_paths_below_a_prefix(mounted: Checked, target: str) -> None:
    """What is refused at the root is refused below a prefix."""
    assert mounted.put(target, "1").status == 400


@pytest.mark.parametrize("target", ["/kv%2Fa", "/kv%2F", "/deep%2Fer/a", "//kv/a", "/kv", "/deep/er"])
def test_what_is_not_below_the_prefix(host: flask.Flask, mounted: Checked, target: str) -> None:
    """An encoded slash is no slash, in the prefix neither: such a path is not ours, and no document of ours is touched."""
    mounted.put("/kv/", '{"root":1}')
    mounted.put("/kv/a", '{"a":1}')
    for method in ("PUT", "DELETE"):
        assert 400 <= Mounted(host).request(method, target, (), b"2" if method == "PUT" else b"").status < 500
    assert mounted.get("/kv/").json["root"] == 1
    assert mounted.get("/kv/a").json["a"] == 1


# SCRIPT_NAME, PATH_INFO as the server decoded it, the raw target that it passes, Location.
SCRIPTS = [
    ("/app", "/kv/a/b", "/app/kv/a%2Fb", "/app/kv/a%2Fb"),
    ("/app", "/kv/x", "/app/kv/x?ttl=5", "/app/kv/x"),
    ("/app", "/kv/x", "/kv/x", "/app/kv/x"),
    ("/a b", "/kv/x", "/a%20b/kv/x", "/a%20b/kv/x"),
    ("/deep/app", "/deep/er/x", "/deep/app/deep/er/x", "/deep/app/deep/er/x"),
]


@pytest.mark.parametrize(("script", "path", "raw_target", "location"), SCRIPTS)
def test_below_script_name(host: flask.Flask, script: str, path: str, raw_target: str, location: str) -> None:
    """Behind a server or a proxy that mounts the application, whether or not that takes the mount point off the target."""
    environ = make_environ("PUT", raw_target, (), b"1") | {"SCRIPT_NAME": script, "PATH_INFO": path}
    created = call_wsgi(host, environ)
    assert (created.status, created.headers["Location"]) == (201, location)


def test_below_a_dispatcher(host: flask.Flask) -> None:
    """Werkzeug's DispatcherMiddleware moves the first segment into SCRIPT_NAME."""
    outer = Checked(Mounted(DispatcherMiddleware(flask.Flask("outer"), {"/app": host})))
    created = outer.put("/app/kv/a%2Fb", "1")
    assert (created.status, created.headers["Location"]) == (201, "/app/kv/a%2Fb")
    assert outer.get("/app/deep/er/a%2fb").tag == created.tag


@pytest.mark.parametrize("path", ["/kv/a", "/kv/a%20b", "/kv/%C3%A9", "/kv/100%25", "/kv/a%2525", "/kv/a%3Fb", "/kv/a%7Bb"])
def test_without_a_raw_target(mounted: Checked, host: flask.Flask, path: str) -> None:
    """A WSGI server that passes no raw target: %2F is a slash there, and all else is as elsewhere."""
    environ = make_environ("PUT", path + "?ttl=50", (), b"{}")
    del environ["RAW_URI"]
    created = call_wsgi(host, environ)
    assert (created.status, created.headers.get("Location")) == (201, path)
    assert created.json == {"ttl": 50}
    assert mounted.get(path).tag == created.tag


def test_werkzeugs_test_client(host: flask.Flask) -> None:
    """`app.test_client()` passes the raw target as well."""
    client = host.test_client()
    assert client.put("/kv/a%2Fb", data="1").status_code == 201
    assert client.put("/kv/a/b", data="2").status_code == 201
    assert [client.get(f"/kv/{path}").json for path in ("a%2Fb", "a/b")] == [1, 2]
    assert client.put("/kv//a", data="1").status_code == 400


# --- The whole service as a Flask application ---------------------------------------------------------------------------


@pytest.fixture
def app(store: Running, monkeypatch: pytest.MonkeyPatch) -> flask.Flask:
    """`kvstore.create_app()`, on the lane's store."""
    monkeypatch.setenv("REDIS_URL", store.url)
    return kvstore.create_app()


def test_one_route(app: flask.Flask) -> None:
    """The wildcard is the only route, for every path and method; there is no /static."""
    rules = list(app.url_map.iter_rules())
    assert len(rules) == 1
    assert rules[0].methods is None
    assert app.static_folder is None
    client = Checked(Mounted(app))
    for path in ("/static/x", "/favicon.ico", "/kvstore"):
        assert client.put(path, "1").status == 201


@pytest.mark.parametrize("host_header", ["", "a b", "[::1", "x" * 300, "\xff", "a/../b", "127.0.0.1:99999"])
def test_any_host(app: flask.Flask, host_header: str) -> None:
    """Whatever the Host field says, the answer is one of ours."""
    answer = Checked(Mounted(app)).request("GET", "/none", [("Host", host_header)])
    assert answer.status in (400, 404)


@pytest.fixture
def flask_run(directory: Path) -> Iterator[Served]:
    """`flask --app kvstore run`, with the embedded server."""
    arguments = [sys.executable, "-m", "flask", "--app", "kvstore", "run", "-p", "0"]
    served = Served(directory, arguments, {"KVSTORE_DATA": str(directory / "data")})
    yield served
    served.kill()


def test_flask_run(flask_run: Served) -> None:
    """Flask's own server starts the service as it is, embedded server included, and ends it with itself."""
    assert re.search(r"Serving Flask app .kvstore.", flask_run.said)
    assert flask_run.request("PUT", "/ns/a%2Fb?ttl=50", (), b'{"a":1.0}').status == 201
    assert flask_run.request("GET", "/ns/a%2fb").content.startswith(b'{"a":1.0,"ttl":')
    assert flask_run.request("GET", "/ns/a/b").status == 404
    assert flask_run.request("PUT", "/ns/a", [("Transfer-Encoding", "chunked")], b"[1]").status == 201
    assert flask_run.request("PUT", "/ns//a", (), b"1").status == 400
    assert flask_run.request("BREW", "/ns/a").status == 405
    assert flask_run.request("PUT", "/ns/é", (), b"1").getheader("Location") == "/ns/%C3%A9"
    assert flask_run.request("PUT", b"/ns/\xff", (), b"1").status == 400
    flask_run.process.terminate()
    flask_run.process.wait()
    wait_until(lambda: not flask_run.processes(), 30)
