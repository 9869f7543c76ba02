"""The ASGI adapter, for any ASGI server. Ours, `gunicorn_worker.py`, takes the store and settings from it instead.

It carries bytes between ASGI and `protocol`, and decides nothing. Source: https://asgi.readthedocs.io/en/stable/specs/www.html
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from kvstore.commands.subscriptions import Follow, LongPoll
from kvstore.core.errors import ContentTooLarge, problem_in
from kvstore.core.paths import escape, split_target
from kvstore.core.redis_url import parse_redis_url
from kvstore.core.settings import read_settings
from kvstore.http.cors import shown_to
from kvstore.http.messages import MAX_BODY_BYTES, Headers, Request, Response, refuse
from kvstore.http.protocol import STREAM, Outcome, parse, render
from kvstore.live.hub import MAX_BUFFERED_BYTES, Hub, Subscriber
from kvstore.live.long_poll import LongPolls
from kvstore.runtime import Runtime, locate
from kvstore.stores.edit_queue import EditQueue
from kvstore.stores.pooled import open_async_store

PIECE_S = 30.0  # that a reader has to take a piece of its snapshot, as with our own server

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Application:
    """The service as an ASGI application, by the settings in `environ`; opened by the event loop that serves it first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._runtime: Runtime | None = None

    def open(self) -> Runtime:
        """The settings, the store and the followers; raises settings.InvalidSetting or embedded.StartFailed."""
        if self._runtime is None:
            settings = locate(read_settings(self._environ))
            store = EditQueue(open_async_store(settings.redis_url, verify_tls=settings.verify_tls))
            address = parse_redis_url(settings.redis_url, verify_tls=settings.verify_tls)
            hub = Hub(store, address, settings.max_streams)
            self._runtime = Runtime(settings, store, hub, LongPolls(store, hub))
        return self._runtime

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            raise NotImplementedError(f"kvstore speaks HTTP, not {scope['type']}")

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        request = _head(scope)
        seen: Headers = ()
        try:
            settings, store, hub, long_polls = self.open()
            seen = shown_to(request, settings)
            body = await _body(receive)
            if body is None:  # the client has gone
                return
            request = request._replace(body=body)
            command = parse(request, settings)
            if isinstance(command, Follow):
                await _follow(hub, command, STREAM + seen, receive, send)
                return
            if isinstance(command, LongPoll):
                outcome = await _unless_gone(long_polls.outcome(command), receive)
                reply = render(request, outcome)
            else:
                reply = command if isinstance(command, Response) else render(request, await store.execute(command))
        except _Gone:
            return
        except Exception as error:
            reply = refuse(problem_in(error))
        await _send(reply._replace(headers=reply.headers + seen), request.method, send)
        if request.method != "HEAD":
            while reply.more:  # a failure here ends the connection, so that half a reply is not taken for the whole
                reply = render(request, await store.execute(reply.more))
                await send({"type": "http.response.body", "body": reply.body, "more_body": reply.more is not None})

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


async def _follow(hub: Hub, follow: Follow, fields: Headers, receive: Receive, send: Send) -> None:
    """Send a stream of events until it ends, or the client goes or does not read; raises Problem before it begins."""
    blocks: asyncio.Queue[bytes | None] = asyncio.Queue()
    is_taken = asyncio.Event()
    waiting = 0

    def put(block: bytes) -> None:
        nonlocal waiting
        if waiting <= MAX_BUFFERED_BYTES or not subscriber.is_ready:  # a block by itself may be larger
            waiting += len(block)
            blocks.put_nowait(block)
            return
        end()
        if not (patience.expired() or subscriber.has_left):
            patience.reschedule(0)  # a server that waits for the reader does not come back for the end

    async def room() -> None:
        while waiting and not subscriber.has_left:
            is_taken.clear()
            await is_taken.wait()

    def end(*_: object) -> None:
        blocks.put_nowait(None)

    async def deliver() -> None:
        nonlocal waiting
        block = await blocks.get()
        if block is None and starting.done():
            await starting
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while block is not None:
            async with asyncio.timeout(None if subscriber.is_ready else PIECE_S):
                await send({"type": "http.response.body", "body": block, "more_body": True})
            waiting -= len(block)
            is_taken.set()
            block = await blocks.get()
        await send({"type": "http.response.body", "body": b""})

    subscriber = Subscriber(follow.path, put, end, room)
    starting = asyncio.create_task(hub.follow(follow, subscriber))
    starting.add_done_callback(lambda task: end() if task.cancelled() or task.exception() else None)
    gone = asyncio.create_task(_gone(receive))
    gone.add_done_callback(end)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as patience:
                await deliver()
    finally:
        gone.cancel()
        hub.leave(subscriber)
        is_taken.set()
        await asyncio.gather(starting, return_exceptions=True)


class _Gone(Exception):
    """The client has gone while it waited."""


async def _unless_gone(answer: Coroutine[Any, Any, Outcome], receive: Receive) -> Outcome:
    """What `answer` comes to; raises _Gone where the client goes before that."""
    tasks = asyncio.ensure_future(answer), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise _Gone
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(reply: Response, method: str, send: Send) -> None:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers]
    goes_on = reply.more is not None and method != "HEAD"
    if reply.more is None and reply.status not in (204, 304) and (reply.body or method != "HEAD"):
        headers.append((b"content-length", b"%d" % len(reply.body)))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else reply.body, "more_body": goes_on})


def _head(scope: Message) -> Request:
    """The request without its body."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    target, base = _below_mount(scope)
    return Request(scope["method"], target, headers, base=base)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client has gone before it was complete. Raises ContentTooLarge."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise ContentTooLarge(f"a body has at most {MAX_BODY_BYTES:,} bytes; split the document into several")
        more = message.get("more_body", False)
    return bytes(body)


def _below_mount(scope: Message) -> tuple[bytes, str]:
    """The raw request target below root_path, and root_path as the client spells it; some servers have taken it off already."""
    path, _ = split_target(scope.get("raw_path") or escape(scope["path"].encode()))
    root_path = scope.get("root_path", "").rstrip("/")
    parts, mount = path.split(b"/"), root_path.encode().split(b"/")
    if len(parts) > len(mount) and [unquote_to_bytes(part) for part in parts[: len(mount)]] == mount:
        base = b"/".join(parts[: len(mount)]).decode("latin-1")
        path = b"/".join([b"", *parts[len(mount) :]])
    else:
        base = quote(root_path)
    return path + b"?" + scope["query_string"], base
