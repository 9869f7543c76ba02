"""Access rules where the service starts, and where an application mounts it: who asks, and what the rules are about."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flask
import pytest

import kvstore
from kvstore.access.rules import parse_rows
from kvstore.access.views import Rules
from kvstore.core.errors import StoreUnavailable
from kvstore.core.settings import InvalidSetting
from kvstore.serving.asgi import Application
from kvstore.serving.flask import make_blueprint
from tests.support.access import ADMIN, as_token, as_toml, by, in_flask, in_scope
from tests.support.asking import at_once, scripts_run
from tests.support.clients import Answer, AsgiClient, call_wsgi, flask_runtime, make_environ
from tests.support.inprocess import InProcess
from tests.support.serving import run_kvstore
from tests.support.stores import Running
from tests.support.tokens import SECRET
from tests.support.wires import Wire

ROWS: list[list[Any]] = [
    ["/users/{sub}/**", "user", "user", "user"],
    ["/rooms/$room/**", "in:/members/$room/", "nobody", "in:/members/$room/"],
    ["/kv/**", "nobody", "nobody", "nobody"],
]
ADA = {"sub": "ada"}


@pytest.fixture
def lane() -> tuple[str, str]:
    """One store will do: what differs here is before it."""
    return "flask", "valkey"


def mounted_in_flask(store: Running) -> Callable[..., Answer]:
    """Requests to a Flask application that mounts the service twice."""
    runtime = flask_runtime(store, {})._replace(rules=Rules(parse_rows(ROWS)), principal=in_flask)
    app = flask.Flask("host", static_folder=None)
    blueprint = make_blueprint(runtime)
    app.register_blueprint(blueprint, url_prefix="/kv")
    app.register_blueprint(blueprint, url_prefix="/<tenant>/kv", name="again")
    return lambda claims, method, target, body=b"": call_wsgi(app, make_environ(method, target, by(claims), body))


def mounted_in_asgi(store: Running) -> Callable[..., Answer]:
    """Requests to an ASGI application that mounts the service, as Starlette's Mount does."""
    client = AsgiClient(store, {})
    inner = Application({"REDIS_URL": store.url}, principal=in_scope, rules=ROWS)

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope | {"root_path": "/kv"}, receive, send)

    client.app = outer  # type: ignore[assignment]
    return lambda claims, method, target, body=b"": client.request(method, target, by(claims), body)


@pytest.mark.parametrize("mount", [mounted_in_flask, mounted_in_asgi])
def test_rules_are_about_paths_below_the_mount(mount: Callable[[Running], Callable[..., Answer]], store: Running) -> None:
    """The prefix is the application's."""
    ask = mount(store)
    assert ask(ADA, "PUT", "/kv/users/ada/x", b"1").status == 201
    assert ask(ADA, "GET", "/kv/users/ada/x").body == b"1\n"
    assert ask({"sub": "eve"}, "GET", "/kv/users/ada/x").status == 403
    assert ask(None, "GET", "/kv/users/ada/x").status == 401
    assert ask(ADA, "GET", "/kv/kv/x").status == 403
    assert ask(ADMIN, "GET", "/kv/kv/x").status == 404
    batch = {"requests": [{"method": "GET", "path": "/users/ada/x"}]}
    assert ask(ADA, "POST", "/kv/_/batch", json.dumps(batch).encode()).status == 200


def test_who_asks_may_be_a_plain_function(store: Running) -> None:
    """Of the scope: Starlette's `request.user` is `scope["user"]`."""

    class User(dict[str, str]):
        username = "ada"

    def principal(scope: Mapping[str, Any]) -> Any:
        return {"sub": scope["user"].username}

    client = AsgiClient(store, {})
    inner = Application({"REDIS_URL": store.url}, principal=principal, rules=ROWS)

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope | {"user": User()}, receive, send)

    client.app = outer  # type: ignore[assignment]
    assert client.request("PUT", "/users/ada/x", (), b"1").status == 201
    assert client.request("PUT", "/users/eve/x", (), b"1").status == 403


@pytest.mark.parametrize("claims", [{"sub": "ada"}, {"sub": "eve"}])
def test_claims_that_change_in_place(store: Running, claims: dict[str, Any]) -> None:
    """An application may return the same object with other claims: each request is judged by what it says now."""
    session: dict[str, Any] = claims | {"roles": []}
    runtime = flask_runtime(store, {})._replace(rules=Rules(parse_rows(ROWS)), principal=lambda: session)
    app = flask.Flask("host", static_folder=None)
    app.register_blueprint(make_blueprint(runtime))
    statuses = []
    for roles in ([], ["admin"], []):
        session["roles"][:] = roles
        statuses.append(call_wsgi(app, make_environ("GET", "/users/bob/x")).status)
    assert statuses == [403, 404, 403]


def test_who_asks_may_be_unknown_for_a_while(store: Running) -> None:
    """An application that keeps its sessions in Redis raises a problem where Redis is away: that is the response."""

    def principal(*_: Any) -> Any:
        raise StoreUnavailable("no session", headers={"Retry-After": "1"})

    runtime = flask_runtime(store, {})._replace(rules=Rules(parse_rows(ROWS)), principal=principal)
    app = flask.Flask("host", static_folder=None)
    app.register_blueprint(make_blueprint(runtime))
    client = AsgiClient(store, {})
    client.app = Application({"REDIS_URL": store.url}, principal=principal, rules=ROWS)
    for answer in (call_wsgi(app, make_environ("GET", "/users/ada/x")), client.request("GET", "/users/ada/x")):
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_a_subject_may_be_an_integer(store: Running) -> None:
    """As the key of a user in a database is."""
    runtime = flask_runtime(store, {})._replace(rules=Rules(parse_rows(ROWS)), principal=lambda: {"sub": 7})
    app = flask.Flask("host", static_folder=None)
    app.register_blueprint(make_blueprint(runtime))
    store.redis.hset("kv:{members}/1/7", "a", "1")
    for path in ("/users/7/x", "/rooms/1/x"):
        assert call_wsgi(app, make_environ("PUT", path, (), b"1")).status == 201


def test_a_token_means_nothing_to_an_application_that_says_who_asks(store: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own function does."""
    for name, value in (("REDIS_URL", store.url), ("KVSTORE_SECRET", SECRET)):
        monkeypatch.setenv(name, value)
    app = flask.Flask("host", static_folder=None)
    app.register_blueprint(kvstore.blueprint(principal=lambda: None, rules=ROWS))
    [line] = map(as_token, by(ADA))
    assert call_wsgi(app, make_environ("GET", "/users/ada/x", [line])).status == 401


# --- The start ------------------------------------------------------------------------------------------------------------

# Settings and a file of rules (None: none), and what stops the start.
BAD_STARTS = [
    ({}, 'rules = [["/a", "user", "user", "user"]]', "nothing says who asks"),
    ({"KVSTORE_SECRET": SECRET}, 'rules = [["/a", "user", "user"]]', "row 1 of the rules is invalid"),
    ({"KVSTORE_SECRET": SECRET}, "rules", "not TOML"),
    ({"KVSTORE_SECRET": SECRET}, None, "cannot be read"),
]


@pytest.mark.few
@pytest.mark.parametrize(("environ", "text", "why"), BAD_STARTS)
def test_bad_rules_stop_the_start(directory: Path, environ: dict[str, str], text: str | None, why: str) -> None:
    """With one line that says why, of the command and of a blueprint and an ASGI application."""
    file = directory / "rules.toml"
    if text is not None:
        file.write_text(text, "utf-8")
    ended = run_kvstore(directory, PORT="0", KVSTORE_RULES=str(file), **environ)
    assert ended.returncode == 1
    assert ended.stderr.startswith("kvstore: ")
    assert why in ended.stderr
    assert ended.stderr.count("\n") == 1
    with pytest.raises(InvalidSetting, match=why):
        Application({"REDIS_URL": "fake://", "KVSTORE_RULES": str(file), **environ}).open()


def test_rules_without_anybody_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not ignored."""
    monkeypatch.setenv("REDIS_URL", "fake://")
    with pytest.raises(InvalidSetting, match="nothing says who asks"):
        kvstore.blueprint(rules=ROWS)
    with pytest.raises(InvalidSetting, match="nothing says who asks"):
        Application({"REDIS_URL": "fake://"}, rules=ROWS).open()


def test_without_rules_only_admin_passes(store: Running) -> None:
    """A secret alone closes everything."""
    served = InProcess(store.url, {"KVSTORE_SECRET": SECRET})
    wire = served.connect()
    statuses = [ask(wire, claims, "GET", "/a/b").status for claims in (None, ADA, {"roles": ["editor"]}, ADMIN)]
    served.stop()
    assert statuses == [401, 403, 403, 404]


def ask(wire: Wire, claims: Any, method: str, target: str, body: bytes = b"") -> Any:
    """A request with a token."""
    fields = "".join(f"{name}: {value!s}\r\n" for name, value in map(as_token, by(claims)))
    wire.send(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return wire.answer()


def test_edits_of_members_stand_in_a_line(store: Running, directory: Path) -> None:
    """An edit that is looked up first loses to nobody in its own process either."""
    (directory / "rules.toml").write_text(as_toml(ROWS), "utf-8")
    served = InProcess(store.url, {"KVSTORE_SECRET": SECRET, "KVSTORE_RULES": str(directory / "rules.toml")})

    def edit(number: int) -> int:
        wire = served.connect()
        status: int = ask(wire, ADA, "PATCH", "/rooms/1/a", b'{"o":{"p%d":1}}' % number).status
        wire.close()
        return status

    wire = served.connect()
    assert ask(wire, ADMIN, "PUT", "/members/1/ada", b"1").status == 201
    assert edit(99) == 201
    store.redis.config_resetstat()
    assert set(at_once(edit, 40)) == {200}
    assert scripts_run(store.redis) - 3 * 40 in range(5)  # who is a member, what is stored, and the write
    served.stop()
