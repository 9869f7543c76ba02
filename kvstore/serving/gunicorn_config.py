"""The settings and hooks of gunicorn, for `gunicorn -c python:kvstore.serving.gunicorn_config`.

gunicorn's master starts the embedded server before the workers, which all use it, and stops it after them. Source: https://docs.gunicorn.org/en/stable/settings.html
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvstore import __version__
from kvstore.core.redis_url import parse_redis_url
from kvstore.core.settings import InvalidSetting, Settings, read_settings
from kvstore.http.gate import open_gate
from kvstore.http.hosts import is_loopback
from kvstore.live import metrics
from kvstore.live.metrics_board import Board
from kvstore.runtime import NOTHING_IS_KEPT, rules_of
from kvstore.serving.server import tcp_addresses
from kvstore.stores import embedded


def _settings() -> Settings:
    try:
        settings = read_settings(os.environ)
        open_gate(settings)  # so that keys and rules which cannot be read stop the start, and not each worker
        rules_of(settings)
    except InvalidSetting as error:
        sys.exit(f"kvstore: {error}")
    return settings


_read = _settings()
_CLOSE = "Unset KVSTORE_OPEN." if _read.secrets or _read.jwks else "Set KVSTORE_SECRET, or listen on 127.0.0.1."
_EVERY_SECOND = "a killed process loses nothing, a power failure about 1 s"
_server: embedded.EmbeddedRedis | None = None

wsgi_app = "kvstore.serving.gunicorn_worker:open_in_environment"
bind = f"[{_read.host}]:{_read.port}" if ":" in _read.host else f"{_read.host}:{_read.port}"

worker_class = "kvstore.serving.gunicorn_worker.WorkerProcess"

workers = _read.workers or min(os.cpu_count() or 1, 4)
graceful_timeout = 20  # Heroku kills 30 s after SIGTERM
timeout = 30
limit_request_line = 8190  # a path of 1,024 bytes, each escaped, and a query
loglevel = "warning"
control_socket_disable = True  # gunicorn would put a socket into the home directory


def on_starting(server: Any) -> None:
    """Start the embedded server if REDIS_URL is not set, and set it for the workers."""
    global _server
    # A child process starts with its parent's handlers: a SIGTERM that comes before it sets its own would be lost.
    os.register_at_fork(before=_hold_sigterm, after_in_parent=_let_sigterm, after_in_child=_die_of_sigterm)
    if _read.redis_url:
        if parse_redis_url(_read.redis_url).kind == "fake":
            _keep_nothing(server, "REDIS_URL is fake://")
        return
    try:
        _server = embedded.start(Path(_read.data), embedded.Options(_read.max_memory_bytes, _read.fsync))
    except embedded.NoBinary as reason:
        _keep_nothing(server, str(reason))
    except embedded.StartFailed as error:
        sys.exit(f"kvstore: {error}")
    else:
        _server.keep()
        os.environ["REDIS_URL"] = _server.url


def pre_fork(_: Any, worker: Any) -> None:
    """Give a worker a slot for its metrics, before it is a process."""
    metrics.board = metrics.board or Board()
    worker.slot = metrics.board.claim()


def child_exit(_: Any, worker: Any) -> None:
    """Take the slot of a worker back that has ended, however that was."""
    if metrics.board and worker.slot is not None:
        metrics.board.free(worker.slot)


def _hold_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_sigterm() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _die_of_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_sigterm()


def _keep_nothing(server: Any, why: str) -> None:
    print(NOTHING_IS_KEPT.format(why=why), file=sys.stderr, flush=True)
    global workers
    os.environ["REDIS_URL"] = "fake://"
    workers = 1  # each process would have a memory of its own; gunicorn reads this again at SIGHUP
    server.cfg.set("workers", workers)
    server.num_workers = workers


def when_ready(server: Any) -> None:
    """Print the address, the store and how durable it is, and a command to try."""
    host, port = server.LISTENERS[0].sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    at = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(
        f"kvstore {__version__} listens on {at}\n"
        f"store: {_store(replace(_read, redis_url=os.environ.get('REDIS_URL', '')))}\n"
        f"try:   curl -X PUT -d '{{\"value\":123}}' {at}/any/path",
        flush=True,
    )
    if _read.is_open and not all(map(is_loopback, tcp_addresses(listener.sock for listener in server.LISTENERS))):
        print(
            "WARNING: access is open, and this address is not loopback: whoever reaches it can read, change and delete"
            f" everything. {_CLOSE}",
            file=sys.stderr,
            flush=True,
        )
    if _server and _read.disk_is_lost:
        print(
            "WARNING: this machine's disk does not last, and there is no REDIS_URL: everything stored is lost at its next"
            " restart. Add a Redis: heroku addons:create heroku-redis:mini",
            file=sys.stderr,
            flush=True,
        )


def on_exit(server: Any) -> None:
    """Stop the embedded server, after the workers."""
    if _server:
        _server.stop()


def _store(settings: Settings) -> str:
    if _server:
        kept = "nothing that was answered is lost" if settings.fsync == "always" else _EVERY_SECOND
        return f"embedded Valkey, data in {Path(settings.data).resolve()}; {kept}"
    if settings.redis_url == "fake://":
        return "the memory of this process; nothing is kept"
    kept = f"; a write is answered when {settings.replicas} replicas have it" if settings.replicas else ""
    return f"{parse_redis_url(settings.redis_url)}; as durable as that is set up to be{kept}"
