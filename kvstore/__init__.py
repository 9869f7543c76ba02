"""kvstore: the JSON backend you can PUT to.

`create_app()` is the whole service as a Flask application; `blueprint()` is the same to mount in an application of your
own; `queuefunc` makes a function one that a worker can run. README.md says what it does, DESIGN.md why.
"""

from kvstore.app import blueprint, create_app
from kvstore.tasks import DelayedResult, TaskFailed, queue_daemon, queuefunc

__all__ = ["DelayedResult", "TaskFailed", "blueprint", "create_app", "queue_daemon", "queuefunc"]
__version__ = "0.1.0"
