"""kvstore: the JSON backend you can PUT to.

`create_app()` is the whole service as a Flask application. `blueprint()` is the same service to mount in an application of your
own. `connect()`, and `aio.connect()`, give Python code the documents without HTTP. `queuefunc` makes a function one that a
worker can run. Public names are loaded when they are first used (PEP 562), so `import kvstore` loads nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvstore import aio
    from kvstore.client import connect
    from kvstore.serving.flask import blueprint, create_app
    from kvstore.tasks.cli import queue_daemon
    from kvstore.tasks.decorators import queuefunc
    from kvstore.tasks.results import DelayedResult, TaskFailed

__all__ = ["DelayedResult", "TaskFailed", "aio", "blueprint", "connect", "create_app", "queue_daemon", "queuefunc"]
__version__ = "0.2.0"

_HOMES = {
    "blueprint": "kvstore.serving.flask",
    "connect": "kvstore.client",
    "create_app": "kvstore.serving.flask",
    "queue_daemon": "kvstore.tasks.cli",
    "queuefunc": "kvstore.tasks.decorators",
    "DelayedResult": "kvstore.tasks.results",
    "TaskFailed": "kvstore.tasks.results",
}


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("kvstore.aio")
    if name not in _HOMES:
        raise AttributeError(f"module 'kvstore' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
