"""Stands between a client and a Redis, on the event loop of a test: sees what passes, and can withhold, delay or make it up."""

import asyncio
from collections.abc import Callable


class Proxy:
    """Passes bytes on to a port of 127.0.0.1. `sent` is what came from clients, piece by piece as the kernel gave it."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.sent: list[bytes] = []
        self.connections = 0
        self.swallows_replies = False
        self.reply_after_s = 0.0
        self._to = port
        self._server: asyncio.Server | None = None
        self.clients: set[asyncio.BaseTransport] = set()

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.get_running_loop().create_server(lambda: _FromClient(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()
        for transport in list(self.clients):
            transport.close()
        while self.clients:
            await asyncio.sleep(0)

    def count(self, part: bytes) -> int:
        """How often this was sent, over all connections."""
        return b"".join(self.sent).count(part)

    async def to_redis(self, towards: asyncio.Transport) -> asyncio.Transport:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: _FromRedis(self, towards), "127.0.0.1", self._to
        )
        return transport


class _FromClient(asyncio.Protocol):
    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._early: list[bytes] = []
        self._redis: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._proxy.clients.add(transport)
        self._proxy.connections += 1
        self._connecting = asyncio.get_running_loop().create_task(self._connect(transport))

    async def _connect(self, transport: asyncio.BaseTransport) -> None:
        self._redis = await self._proxy.to_redis(transport)  # type: ignore[arg-type]
        self._redis.write(b"".join(self._early))

    def data_received(self, data: bytes) -> None:
        self._proxy.sent.append(data)
        if self._redis:
            self._redis.write(data)
        else:
            self._early.append(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._proxy.clients.discard(self._transport)
        self._connecting.cancel()
        if self._redis:
            self._redis.close()


class _FromRedis(asyncio.Protocol):
    def __init__(self, proxy: Proxy, towards: asyncio.Transport) -> None:
        self._proxy = proxy
        self._towards = towards

    def data_received(self, data: bytes) -> None:
        if self._proxy.reply_after_s:
            asyncio.get_running_loop().call_later(self._proxy.reply_after_s, self._towards.write, data)
        elif not self._proxy.swallows_replies:
            self._towards.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._towards.close()


class Pretender:
    """Answers every piece that comes with what `answer` makes of it, and closes the connection where that is None."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self.port = 0
        self.connections = 0
        self._answer = answer
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Pretender":
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server:
            self._server.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (received := await reader.read(65536)) and (answer := self._answer(received)) is not None:
                writer.write(answer)
        except ConnectionError:
            pass
        finally:
            writer.close()
