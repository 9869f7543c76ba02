"""The ASGI adapter, for any ASGI server.

It carries bytes between ASGI and `exchange.py`, and decides nothing. Source: https://asgi.readthedocs.io/en/stable/specs/www.html
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from inspect import isawaitable
from time import perf_counter
from typing import Any

from kvstore.access.principal import Claims, Principal, as_principal
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core.errors import Problem
from kvstore.core.metrics import COUNTERS, UNTIMED_S
from kvstore.core.paths import escape
from kvstore.core.settings import read_settings
from kvstore.http.gate import FetchKeys
from kvstore.http.hosts import is_loopback
from kvstore.http.messages import MAX_BODY_BYTES, Headers, Request, Response
from kvstore.http.protocol import Outcome, render
from kvstore.runtime import ClientGone, RulesSource, Runtime, locate, mounted, open_runtime
from kvstore.serving.buffered_stream import BufferedStream
from kvstore.serving.exchange import Asked, add_field, decide, decide_for_host, respond, stream_fields, too_large
from kvstore.serving.mount import below_mount
from kvstore.serving.request_log import RequestLog, open_log
from kvstore.stores.query_queue import is_query

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application:
    """The service as an ASGI application; it belongs to the first event loop that serves it.

    `environ` has the settings, by default the environment. `principal` says who asks: from the scope of a request to claims, or
    None for nobody; it may be a coroutine function. Then `rules` judge what they ask for: a file, or a list of rows.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        *,
        principal: Callable[[Message], Claims | Awaitable[Claims | None] | None] | None = None,
        rules: RulesSource | None = None,
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._principal = principal
        self._rules = rules
        self._runtime: Runtime | None = None
        self._log: RequestLog | None = None

    def open(self) -> Runtime:
        """Return what serves the requests of this event loop; raises InvalidSetting or StartFailed."""
        if self._runtime is None:
            settings, rules = mounted(read_settings(self._environ), self._principal, self._rules)
            self._runtime = open_runtime(locate(settings), rules)
            self._log = open_log(settings)
        return self._runtime

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise NotImplementedError(f"kvstore serves HTTP, not {scope['type']}")

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        runtime = self.open()
        request: Request | None = None
        log, status, began = self._log, 0, perf_counter()

        async def send_noted(message: Message) -> None:
            nonlocal status
            if "status" in message:
                status = message["status"]
                COUNTERS.record(
                    scope["method"], status, UNTIMED_S if isinstance(decision, LongPoll) else perf_counter() - began
                )
            await send(message)

        try:
            request, decision = await self._read(runtime, scope, receive)
            await _answer(runtime, request, decision, receive, send_noted)
        except ClientGone:
            pass
        finally:
            if log and request and status:
                log.record(request, status)

    async def _read(
        self, runtime: Runtime, scope: Message, receive: Receive
    ) -> tuple[Request, Asked | Follow | FollowMany | Response]:
        """Return a request and what to do with it; raises ClientGone."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            add_field(headers, name.decode("latin-1").lower(), value.decode("latin-1"))
        if scope.get("scheme") == "https":
            headers.setdefault("x-forwarded-proto", "https")
        request = Request(scope["method"], b"", headers)
        if runtime.gate:
            request = runtime.gate.begin(request, (scope.get("client") or ("",))[0])
        try:
            target, base = below_mount(_target(scope), scope.get("root_path", "").encode())
            request = request._replace(target=target, base=base, body=await _body(receive))
            asking = await self._asking(scope)
        except Problem as problem:
            return request, respond(request, problem, runtime.settings)
        deciding = decide_for_host if _is_server_on_loopback(scope) else decide
        while isinstance(decision := deciding(request, runtime.settings, runtime.rules, asking, runtime.gate), FetchKeys):
            await asyncio.to_thread(decision.keys.fetch)
        return request, decision

    async def _asking(self, scope: Message) -> Principal | None:
        """Return who asks, as the application says."""
        claims = self._principal(scope) if self._principal else None
        return as_principal(await claims if isawaitable(claims) else claims)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "lifespan.startup":
            try:
                self.open()
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            await send({"type": "lifespan.startup.complete"})
        assert message["type"] == "lifespan.shutdown"
        if self._runtime:
            await self._runtime.close()
        await send({"type": "lifespan.shutdown.complete"})


def _is_server_on_loopback(scope: Message) -> bool:
    """Whether the server listens on loopback and the service is not mounted: who mounts it checks Host itself."""
    address, _ = scope.get("server") or (None, None)
    return is_loopback(address) and not scope.get("root_path")


async def _answer(
    runtime: Runtime, request: Request, decision: Asked | Follow | FollowMany | Response, receive: Receive, send: Send
) -> None:
    """Send the response, or the stream; raises ClientGone."""
    if isinstance(decision, Follow | FollowMany):
        await _follow(runtime, request, decision, receive, send)
        return
    if not isinstance(decision, Response):
        decision = respond(request, await _outcome(runtime, decision, receive), runtime.settings)
    await _send(runtime, request, decision, receive, send)


async def _outcome(runtime: Runtime, asked: Asked, receive: Receive) -> Outcome | Exception:
    """Return the outcome of a command or a long poll, or its exception; raises ClientGone if the client disconnects."""
    try:
        if isinstance(asked, LongPoll) or is_query(asked):
            return await runtime.outcome_unless(_gone(receive), asked)
        return await runtime.outcome(asked)
    except ClientGone:
        raise
    except Exception as error:
        return error


async def _follow(runtime: Runtime, request: Request, follow: Follow | FollowMany, receive: Receive, send: Send) -> None:
    """Send a stream until it ends, or the client disconnects or does not read; or a response if it cannot begin."""

    async def deliver() -> None:
        try:
            block = await stream.take()
        except Problem as problem:
            await _send(runtime, request, respond(request, problem, runtime.settings), receive, send)
            return
        fields = stream_fields(request, runtime.settings)
        await send({"type": "http.response.start", "status": 200, "headers": _encoded(fields)})
        while block is not None:
            await send({"type": "http.response.body", "body": block, "more_body": True})
            block = await take()
        await send({"type": "http.response.body", "body": b""})

    async def take() -> bytes | None:
        """Return the next block, None at the end. A server that stops cancels what has not ended: that is an end as well."""
        try:
            return await stream.take()
        except asyncio.CancelledError:
            return None

    with suppress(TimeoutError):
        async with asyncio.timeout(None) as patience:
            # If a server waits for a slow client, send() does not return.
            stream = BufferedStream(runtime.hub, follow, drop=lambda: patience.reschedule(0))
            gone = asyncio.create_task(_gone(receive))
            gone.add_done_callback(lambda _: stream.end())
            try:
                await deliver()
            finally:
                gone.cancel()
                await stream.close()


async def _gone(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(runtime: Runtime, request: Request, response: Response, receive: Receive, send: Send) -> None:
    """Send a response, part by part; raises ClientGone."""
    headers = _encoded(response.headers)
    if response.more is None and response.status not in (204, 304) and (response.body or request.method != "HEAD"):
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if request.method == "HEAD":
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.body", "body": response.body, "more_body": response.more is not None})
    while response.more:  # an exception ends the connection, so that the client does not take a part for the whole
        response = render(request, await runtime.outcome_unless(_gone(receive), response.more))
        await send({"type": "http.response.body", "body": response.body, "more_body": response.more is not None})


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _target(scope: Message) -> bytes:
    """Return the raw request target."""
    path: bytes = scope.get("raw_path") or escape(scope["path"].encode())
    return path + b"?" + scope["query_string"] if scope["query_string"] else path


async def _body(receive: Receive) -> bytes:
    """Return the whole body; raises ContentTooLarge, or ClientGone if the client disconnects before it is complete."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise too_large()
        more = message.get("more_body", False)
    return bytes(body)
