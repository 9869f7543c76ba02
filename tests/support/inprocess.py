"""The production server, `kvstore.serving.connection`, on a port of this process and an event loop of its own.

Its time limits are constants of that module, so a test can make them short; `serving.py` starts the real command.
"""

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

from kvstore.commands.readiness import CheckReadiness
from kvstore.core.settings import read_settings
from kvstore.runtime import open_runtime
from kvstore.serving.connection import ClientConnection
from kvstore.serving.server import Server
from tests.support.loops import PRODUCTION, Loop
from tests.support.serving import Lines, Response, read, wire
from tests.support.wires import Address, Wire

LIMIT_S = 60  # of a request, on a busy machine


class InProcess:
    """A running server: `at` is where it listens."""

    def __init__(self, redis_url: str, environ: Mapping[str, str] | None = None, *, loop: str = PRODUCTION) -> None:
        self._loop = Loop(loop)
        self.at: Address = self._loop.run(self._start(redis_url, environ or {}))

    async def _start(self, redis_url: str, environ: Mapping[str, str]) -> Address:
        self._runtime = open_runtime(read_settings({**environ, "REDIS_URL": redis_url}))
        self.server = Server(self._runtime)
        self._listener = await asyncio.get_running_loop().create_server(partial(ClientConnection, self.server), "127.0.0.1", 0)
        at: Address = self._listener.sockets[0].getsockname()
        return at

    def connect(self, *, limit_s: float = 30) -> Wire:
        """A new connection to it."""
        return Wire(self.at, limit_s=limit_s)

    def request(self, method: str, target: str | bytes, headers: Lines = (), body: bytes = b"") -> Response:
        """One request on a connection of its own; the response is read."""
        with socket.create_connection(self.at, LIMIT_S) as connection:
            connection.sendall(wire(method, target, headers, body))
            return read(connection, method)

    def run(self, task: Coroutine[Any, Any, Any]) -> Any:
        """What comes of a coroutine in the server's own event loop."""
        return self._loop.run(task)

    def catch_up(self) -> None:
        """Wait until it has read what was sent to it, and Redis has answered the scripts that it sent then."""
        self._loop.run(self._catch_up())

    async def _catch_up(self) -> None:
        for _ in range(2):  # the sockets that have something are read in the first turn of the loop, or in the second
            await asyncio.sleep(0)
        await self._runtime.store.execute(CheckReadiness())

    def buffer_little(self) -> None:
        """Let the kernel take little of what is written to the connections that come now: a slow reader is felt at once."""
        self._listener.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)

    def stop(self) -> None:
        """Close what is open, and end."""
        self._loop.run(self._stop())
        self._loop.close()

    async def _stop(self) -> None:
        self._listener.close()
        self.server.stop()
        await self._runtime.close()
        for connection in list(self.server.connections):  # whose clients have not closed
            connection.cut()
        await asyncio.sleep(0)
