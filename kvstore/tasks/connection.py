"""The store that tasks use: what the Flask application, or the environment, says of Redis."""

import os
import threading
from typing import NamedTuple

import flask

from kvstore.core.settings import Settings, read_settings
from kvstore.runtime import connect
from kvstore.stores.blocking import BlockingStore


class _Connection(NamedTuple):
    store: BlockingStore
    settings: Settings


_connections: dict[str, _Connection] = {}
_connecting = threading.Lock()


def _connection(app: flask.Flask | None = None) -> _Connection:
    """What `app`, or the current one, says of Redis, else the environment; raises InvalidSetting or StartFailed."""
    if app is None and flask.has_app_context():
        app = flask.current_app
    redis_url = (app.config.get("REDIS_URL") if app else None) or os.environ.get("REDIS_URL", "")
    found = _connections.get(redis_url)
    if found is None:
        with _connecting:
            found = _connections.get(redis_url)
            if found is None:
                found = _Connection(*connect(read_settings({**os.environ, "REDIS_URL": redis_url})))
                _connections[redis_url] = found
    return found
