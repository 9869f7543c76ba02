"""What `gunicorn` reads by itself in this directory; the settings are in kvstore/serving/gunicorn_config.py."""

from kvstore.serving.gunicorn_config import *  # noqa: F403
