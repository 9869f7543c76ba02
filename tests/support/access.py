"""Clients of a service with access rules, on every adapter.

A request says who asks with the field X-Claims, which is JSON. Where an application mounts the service, `principal` returns it.
That is for tests; no application trusts its clients like this. For the command `kvstore` the client makes a token of it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import flask
import jwt

from kvstore.access.rules import parse_rows
from kvstore.access.views import Rules
from kvstore.core.settings import read_settings
from kvstore.serving.asgi import Application
from kvstore.serving.flask import make_blueprint
from tests.support.clients import (
    Answer,
    AsgiClient,
    Checked,
    FlaskClient,
    Lines,
    ServedClient,
    check_promises,
    flask_runtime,
    runtime_on,
)
from tests.support.stores import Fake, Running, make_directory
from tests.support.tokens import SECRET

CLAIMS_FIELD = "X-Claims"
ADMIN = {"sub": "root", "roles": ["admin"]}

Rows = Sequence[Sequence[Any]]


def by(claims: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The header field of somebody with these claims."""
    return [] if claims is None else [(CLAIMS_FIELD, json.dumps(claims))]


def in_flask() -> Any:
    """Who asks, in the context of a request of Flask."""
    return json.loads(flask.request.headers.get(CLAIMS_FIELD, "null"))


async def in_scope(scope: Mapping[str, Any]) -> Any:
    """Who asks, by the scope of an ASGI request."""
    return json.loads(dict(scope["headers"]).get(CLAIMS_FIELD.lower().encode(), b"null"))


class RuledFlask(FlaskClient):
    """The blueprint with `principal=` and `rules=`."""

    def __init__(self, store: Running, rows: Rows, environ: Mapping[str, str] | None = None) -> None:
        self._runtime = flask_runtime(store, environ or {})._replace(rules=Rules(parse_rows(rows)), principal=in_flask)
        self.app = flask.Flask("tests", static_folder=None)
        self.app.register_blueprint(make_blueprint(self._runtime))


class RuledAsgi(AsgiClient):
    """The ASGI application with `principal=` and `rules=`."""

    def __init__(self, store: Running, rows: Rows, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(store, environ or {})
        self.app = Application({"REDIS_URL": store.url, **(environ or {})}, principal=in_scope, rules=rows)
        if isinstance(store, Fake):
            runtime = runtime_on(store, read_settings(environ or {}))
            self.app._runtime = runtime._replace(rules=Rules(parse_rows(rows)))


class RuledServed(ServedClient):
    """The command `kvstore` with a secret and a file of rules."""

    def __init__(self, store: Running, rows: Rows, environ: Mapping[str, str] | None = None) -> None:
        self._rules = make_directory()
        file = self._rules / "rules.toml"
        file.write_text(as_toml(rows), "utf-8")
        super().__init__(store, {"KVSTORE_SECRET": SECRET, "KVSTORE_RULES": str(file), **(environ or {})})

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        return super().request(method, target, list(map(as_token, headers)), body)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self._rules, ignore_errors=True)


class Ruled(Checked):
    """A client of a service with rules. Who may write and not read gets a 200 without the document."""

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Answer:
        answer = self.adapter.request(method, target, headers, body)
        if answer.status == 200 and not answer.body and method == "PUT":
            assert "Content-Type" not in answer.headers
            assert "ETag" in answer.headers
        else:
            check_promises(method, answer)
        return answer


def as_token(line: tuple[str, str | bytes]) -> tuple[str, str | bytes]:
    """A header field, and for X-Claims the one with a token of these claims."""
    name, value = line
    return ("Authorization", "Bearer " + jwt.encode(json.loads(value), SECRET)) if name == CLAIMS_FIELD else line


def as_toml(rows: Rows) -> str:
    """Rules as a file."""

    def cell(value: Any) -> str:
        if isinstance(value, str):
            return json.dumps(value)
        return "{" + ", ".join(f"{json.dumps(name)} = {json.dumps(claim)}" for name, claim in value.items()) + "}"

    return "rules = [\n" + "".join(f"  [{', '.join(map(cell, row))}],\n" for row in rows) + "]\n"


RULED: dict[str, type[RuledFlask | RuledAsgi | RuledServed]] = {"flask": RuledFlask, "asgi": RuledAsgi, "served": RuledServed}
RULED_LANES = [("flask", "valkey"), ("asgi", "cluster"), ("served", "redis"), ("flask", "fake"), ("asgi", "redis")]
