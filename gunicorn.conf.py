"""What `gunicorn` reads by itself in this directory; the settings are in kvstore/serve.py."""

from kvstore.serving.gunicorn_config import *
