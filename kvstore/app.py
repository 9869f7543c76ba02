"""Putting it together: which store the settings mean, and the service as a Flask application."""

import atexit
import logging
import os
from dataclasses import replace
from pathlib import Path

import flask
from werkzeug.exceptions import HTTPException

from kvstore import embedded
from kvstore.errors import InvalidRequest
from kvstore.messages import refuse
from kvstore.settings import Settings, read_settings
from kvstore.store import Store, open_store
from kvstore.web import as_response, make_blueprint

log = logging.getLogger("kvstore")

NOTHING_IS_KEPT = (
    "NOTHING IS KEPT: {why}, so documents live in the memory of this process and end with it. Set REDIS_URL to keep them."
)


def locate(settings: Settings) -> Settings:
    """The settings with a REDIS_URL that is there; an embedded server that was started for that ends with this process.

    Raises embedded.StartFailed where the embedded server is wanted, exists for this machine, and does not start.
    """
    if settings.redis_url:
        return settings
    try:
        server = embedded.start_or_join(Path(settings.data))
    except embedded.NoBinary as reason:
        log.warning(NOTHING_IS_KEPT.format(why=reason))
        return replace(settings, redis_url="fake://")
    server.keep()
    atexit.register(server.stop)
    return replace(settings, redis_url=server.url)


def connect(settings: Settings) -> tuple[Store, Settings]:
    """A store on what locate() finds, and the settings."""
    settings = locate(settings)
    return open_store(settings.redis_url, verify_tls=settings.verify_tls), settings


def create_app() -> flask.Flask:
    """The whole service as a Flask application, by the settings in the environment; raises settings.InvalidSetting."""
    app = flask.Flask("kvstore", static_folder=None)
    app.register_blueprint(blueprint())
    app.register_error_handler(HTTPException, lambda error: as_response(refuse(InvalidRequest(str(error)))))
    return app


def blueprint() -> flask.Blueprint:
    """The service as a blueprint, by the settings in the environment; raises settings.InvalidSetting.

    Register it at the prefix that it shall answer below: `app.register_blueprint(kvstore.blueprint(), url_prefix="/kv")`.
    """
    return make_blueprint(*connect(read_settings(os.environ)))
