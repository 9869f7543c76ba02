"""The queue of queries: a process reads one piece of one query at a time, and the others take turns.

A query may read a million documents, and keeps up to 4 MiB of them (commands/queries.py). So each comes back to the end of the
line after a piece. Only MAX_RUNNING go on beyond their first pieces, which are enough for most. One that is cancelled ends
before its next piece.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from kvstore.commands.base import Command, Outcome
from kvstore.commands.guarded import WRAPPERS, unwrapped
from kvstore.commands.queries import Find, Paused, Piece
from kvstore.core.errors import Problem, unavailable
from kvstore.stores.pipelined import AsyncStore, settle
from kvstore.stores.redis_connection import Context, Done, tell

FREE_PIECES = 2  # of any query: one that looks for documents, one that reads them
MAX_RUNNING = 8  # of one process: they keep some 32 MiB
MAX_QUEUED = 100  # queries of one process: some ms each
QUEUED_S = 1.5  # that a query waits for its next piece: with BLOCKING.answer_s it is under 6 s
CONTINUED_S = 30.0  # the same of one whose response has begun: it would be cut off

_MAY_BE_QUERY = frozenset({Find, *WRAPPERS})


def is_query(command: Any) -> bool:
    """Return whether a command asks a question of documents."""
    return type(command) in _MAY_BE_QUERY and isinstance(unwrapped(command), Find)


def is_continued(command: Any) -> bool:
    """Return whether a query goes on with a response that has begun."""
    return isinstance(command, Find) and command.has_begun


def waits_s(command: Any) -> float:
    """Return how long a query waits for its next piece."""
    return CONTINUED_S if is_continued(command) else QUEUED_S


def crowded() -> Problem:
    """Return the problem of a query that others have left no place for."""
    return unavailable("this server has as many queries as it answers at a time; send yours again later")


class Query:
    """A query under way. `command` is its next piece; if it `runs`, it is one of the MAX_RUNNING."""

    __slots__ = ("_cancel", "command", "context", "done", "pieces", "runs", "timer")

    def __init__(self, command: Command[Any], done: Done[Any, Any], context: Any, cancel: Callable[["Query"], None]) -> None:
        self.command = command
        self.done: Done[Any, Any] | None = done  # None when it is over
        self.context = context
        self.pieces = 0  # that were read
        self.runs = False
        self.timer: asyncio.TimerHandle | None = None  # while it stands in line
        self._cancel = cancel

    def cancel(self) -> None:
        """End the query before its next piece; `done` is not called."""
        self._cancel(self)


class QueryQueue:
    """A store that passes commands to `store`, and queries piece by piece."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._line: dict[Query, None] = {}  # those that wait for their next piece
        self._reading: Query | None = None  # the one whose piece is with `store`
        self._running = 0

    @property
    def queries(self) -> int:
        """How many queries are under way."""
        return len(self._line) + (self._reading is not None)

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> Query | None:
        """As PipelinedStore.submit. Returns a query, which can be cancelled; None for any other command."""
        if type(command) not in _MAY_BE_QUERY or not is_query(command):
            self._store.submit(command, done, context)
            return None
        query = Query(command, done, context, self._cancel)
        if len(self._line) < MAX_QUEUED or is_continued(command):
            self._enter(query)
            self._send_next()
        else:
            asyncio.get_running_loop().call_soon(self._end, query, crowded())
        return query

    def flush(self) -> None:
        """As PipelinedStore.flush."""
        self._store.flush()

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command and those that follow it, and return the outcome; raises Problem. A query can be cancelled."""
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        query = self.submit(command, settle, answer)
        try:
            return await answer
        finally:
            if query is not None:
                query.cancel()

    async def close(self) -> None:
        """As PipelinedStore.close."""
        await self._store.close()
        for query in list(self._line):
            self._overdue(query)

    def _enter(self, query: Query) -> None:
        """Put a query at the end of the line."""
        self._line[query] = None
        query.timer = asyncio.get_running_loop().call_later(waits_s(query.command), self._overdue, query)

    def _leave(self, query: Query) -> None:
        del self._line[query]
        if query.timer is not None:
            query.timer.cancel()
            query.timer = None

    def _send_next(self) -> None:
        """Submit a piece of the first query in line that may go on, unless another one is being read."""
        if self._reading is not None:
            return
        for query in self._line:
            is_free = query.runs or query.pieces < FREE_PIECES
            if is_free or self._running < MAX_RUNNING:
                self._leave(query)
                if not is_free:
                    query.runs = True
                    self._running += 1
                query.pieces += 1
                self._reading = query
                self._store.submit(Piece(query.command), self._read, query)
                return

    def _read(self, query: Query, outcome: Any) -> None:
        """Take in what a piece came to."""
        self._reading = None
        if isinstance(outcome, Paused) and query.done is not None:
            query.command = outcome.command
            self._enter(query)
            self._send_next()
        else:
            self._end(query, outcome)

    def _end(self, query: Query, outcome: Any) -> None:
        """Make room for another query, and hand the outcome over, unless the query was cancelled."""
        self._running -= query.runs
        query.runs = False
        self._send_next()
        done, query.done = query.done, None
        if done is not None:
            tell(done, query.context, outcome)

    def _overdue(self, query: Query) -> None:
        """Fail a query that has waited for too long."""
        self._leave(query)
        self._end(query, crowded())

    def _cancel(self, query: Query) -> None:
        query.done = None
        if query in self._line:
            self._leave(query)
            self._end(query, None)
