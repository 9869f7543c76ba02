"""The body of a long response, part by part, as fast as the client reads. Source: RFC 9112 section 7.1."""

import asyncio
import logging
from collections.abc import Callable

from kvstore.commands.containers import List
from kvstore.commands.queries import Find
from kvstore.http.messages import Request
from kvstore.http.protocol import Outcome, render
from kvstore.runtime import Cancellable
from kvstore.stores.query_queue import QueryQueue

log = logging.getLogger("kvstore")


class PartedBody:
    """The body of one response. While `is_choked` no other part is asked for; `finished` is called after the last one."""

    def __init__(
        self,
        request: Request,
        store: QueryQueue,
        transport: asyncio.Transport,
        finished: Callable[[], None],
        *,
        is_chunked: bool,
    ) -> None:
        self.is_choked = False
        self._request = request
        self._store = store
        self._transport = transport
        self._finished = finished
        self._is_chunked = is_chunked
        self._next: List | Find | None = None
        self._asked: Cancellable | None = None  # what is asked for now

    def send(self, part: bytes, more: List | Find | None) -> None:
        """Send one part, and have the store execute `more` for the next; None: it was the last one."""
        if part:
            self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if self._is_chunked else part)
        if more is None:
            if self._is_chunked:
                self._transport.write(b"0\r\n\r\n")
            self._finished()
        elif self.is_choked:
            self._next = more
        else:
            self._ask(more)

    def leave(self) -> None:
        """Ask for nothing else: the client has gone."""
        if self._asked:
            self._asked.cancel()

    def unchoke(self) -> None:
        """Go on: the client has read."""
        self.is_choked = False
        if self._next is not None:
            more, self._next = self._next, None
            self._ask(more)

    def _ask(self, more: List | Find) -> None:
        self._asked = self._store.submit(more, self._go_on, None)

    def _go_on(self, _: None, outcome: Outcome | Exception) -> None:
        self._asked = None
        if self._transport.is_closing():
            return
        try:
            if isinstance(outcome, Exception):
                raise outcome
            response = render(self._request, outcome)
        except Exception as error:
            log.error("a response was cut off: %s", type(error).__name__)
            self._transport.abort()  # so that the client does not take a part for the whole
            return
        self.send(response.body, response.more)
