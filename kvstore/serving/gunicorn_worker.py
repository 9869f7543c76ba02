"""gunicorn's worker for production: an event loop with the server of `server.py` on gunicorn's sockets.

gunicorn's master watches, restarts and stops it. Source: gunicorn.workers.base, "your worker subclass must".
"""

import asyncio
import gc
import os
import resource
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.base import Worker

from kvstore.core.settings import read_settings
from kvstore.http.hosts import is_loopback
from kvstore.live import metrics
from kvstore.runtime import Runtime, locate, open_runtime
from kvstore.serving.connection import ClientConnection
from kvstore.serving.exchange import decide_for_host
from kvstore.serving.server import Server, tcp_addresses

SPARE_DESCRIPTORS = 512  # not for clients' connections: for those that are refused, for Redis, and for files
_NOTIFY_S = 1.0  # between signs of life: gunicorn's master kills a worker that is silent for `timeout`


def open_in_environment() -> Runtime:
    """Return what serves a worker's requests, with the settings in the environment; gunicorn loads it as the application.

    Raises InvalidSetting or StartFailed.
    """
    return open_runtime(locate(read_settings(os.environ)))


class WorkerProcess(Worker):  # type: ignore[misc]  # gunicorn has no types
    """A process that serves HTTP until it is stopped. `slot` is the one on the board of the metrics (gunicorn_config.py)."""

    slot: int | None = None

    def init_process(self) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS reports no limit, but has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one for each connection; the usual default is 1,024
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # also under a gunicorn without gunicorn_config.py
        try:
            import uvloop
        except ImportError:  # no uvloop for this platform
            self._loop = asyncio.new_event_loop()
        else:
            self._loop = uvloop.new_event_loop()
        asyncio.set_event_loop(self._loop)
        super().init_process()

    def init_signals(self) -> None:
        # Until the loop runs, a signal ends the process at once: uvloop would lose it.
        for name in self.SIGNALS:
            signal.signal(name, signal.SIG_DFL)

    def _handle_signals(self) -> None:
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        self._loop.add_signal_handler(signal.SIGINT, self._quit)
        self._loop.add_signal_handler(signal.SIGQUIT, self._quit)
        self._loop.add_signal_handler(signal.SIGUSR1, self.log.reopen_files)
        self._loop.add_signal_handler(signal.SIGABRT, sys.exit, 1)

    def run(self) -> None:
        if self.wsgi is not open_in_environment:
            sys.exit("kvstore: this worker serves nothing but kvstore; give gunicorn no application")
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        # Modules stay loaded, and a batch makes thousands of short-lived tuples: collect garbage less often.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 10, 10)
        self._stopped, self._quitting = asyncio.Event(), False
        self._handle_signals()
        runtime = open_in_environment()
        if metrics.board and self.slot is not None:
            metrics.board.use(self.slot)
        server = Server(runtime)
        runtime.metrics.connections = server.connections.__len__
        addresses = tcp_addresses(listener.sock for listener in self.sockets)
        if addresses and all(map(is_loopback, addresses)):
            server.decide = decide_for_host
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        server.max_connections = min(server.max_connections, max(1, descriptors - SPARE_DESCRIPTORS))
        connect = partial(ClientConnection, server)
        listeners: list[Any] = []
        for listener in self.sockets:
            listeners.append(await self._loop.create_server(connect, sock=listener.sock, backlog=self.cfg.backlog))
        while self.alive and self.ppid == os.getppid():
            self.notify()
            runtime.metrics.show()
            try:
                await asyncio.wait_for(self._stopped.wait(), _NOTIFY_S)
            except TimeoutError:
                continue
        for listener in listeners:
            listener.close()
        server.stop()
        await runtime.long_polls.close()
        await runtime.hub.close()
        await self._drain(server)
        runtime.metrics.show()
        await runtime.store.close()

    async def _drain(self, server: Server) -> None:
        """Wait for the requests in flight, at most gunicorn's graceful_timeout."""
        deadline = self._loop.time() + self.cfg.graceful_timeout
        while server.connections and self._loop.time() < deadline and not self._quitting:
            self.notify()
            await asyncio.sleep(0.05)

    def _stop(self) -> None:
        self.alive = False
        self._stopped.set()

    def _quit(self) -> None:
        self._stop()
        self._quitting = True
