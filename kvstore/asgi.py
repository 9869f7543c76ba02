"""`kvstore.asgi:app`: the service for any ASGI server, by the settings in the environment."""

import os

from kvstore.serving.asgi import Application

__all__ = ["Application", "app"]

app = Application(os.environ)
