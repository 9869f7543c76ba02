"""Clients of a service with access rules, on every adapter that an application can mount.

A request says who asks with the field X-Claims: JSON that `principal` returns. That is for tests; no application trusts its
clients like this.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import flask

from kvstore.access.rules import parse_rows
from kvstore.access.views import Rules
from kvstore.core.settings import read_settings
from kvstore.serving.asgi import Application
from kvstore.serving.flask import make_blueprint
from tests.support.clients import AsgiClient, Client, FlaskClient, flask_runtime, runtime_on
from tests.support.stores import Fake, Running

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


RULED: dict[str, type[RuledFlask | RuledAsgi]] = {"flask": RuledFlask, "asgi": RuledAsgi}
RULED_LANES = [("flask", "valkey"), ("asgi", "redis"), ("flask", "fake"), ("asgi", "cluster")]


def open_ruled(adapter: str, store: Running, rows: Rows) -> Client:
    """A client of a service with these rules."""
    return RULED[adapter](store, rows)
