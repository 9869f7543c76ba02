"""The store that tasks use: the one that the Flask application, or the environment, names by REDIS_URL."""

import os
import threading
from typing import NamedTuple

import flask

from kvstore.core.settings import Settings, read_settings
from kvstore.runtime import connect
from kvstore.stores.blocking import BlockingStore


class TaskStore(NamedTuple):
    """A store, and the settings that it was opened with."""

    store: BlockingStore
    settings: Settings


_opened: dict[str, TaskStore] = {}  # by REDIS_URL
_opening = threading.Lock()


def open_task_store(app: flask.Flask | None = None) -> TaskStore:
    """Return the store of `app`, else of the current application, else of the environment. A process opens each store once.

    Raises InvalidSetting or StartFailed.
    """
    if app is None and flask.has_app_context():
        app = flask.current_app
    redis_url = (app.config.get("REDIS_URL") if app else None) or os.environ.get("REDIS_URL", "")
    found = _opened.get(redis_url)
    if found is None:
        with _opening:
            found = _opened.get(redis_url)
            if found is None:
                found = TaskStore(*connect(read_settings({**os.environ, "REDIS_URL": redis_url})))
                _opened[redis_url] = found
    return found
