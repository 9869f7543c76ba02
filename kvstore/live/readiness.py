"""Whether Redis answers in time, for all who ask that in one event loop.

Anyone may ask, without a token and without a limit. So Redis gets one command at a time, and all requests that come meanwhile
share its answer.
"""

import asyncio
from typing import Any

from kvstore.commands.base import Command, Outcome
from kvstore.core.errors import Problem, unavailable
from kvstore.stores.pipelined import AsyncStore

READY_S = 1.0  # for Redis to answer; usual health checks wait 5 s or longer


class Readiness:
    """The checks of one event loop."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._check: asyncio.Task[Any] | None = None  # that is with Redis; it may take longer than who asks will wait

    async def outcome(self, check: Command[Outcome]) -> Outcome:
        """Return the outcome, or that of the check that is with Redis already; raises StoreUnavailable within READY_S."""
        if self._check is None or self._check.done():
            self._check = asyncio.ensure_future(self._store.execute(check))
            self._check.add_done_callback(_noted)
        task: asyncio.Task[Outcome] = self._check
        await asyncio.wait((task,), timeout=READY_S)
        if not task.done():
            raise unavailable(f"Redis has not answered within {READY_S:.0f} s; try again")
        try:
            return task.result()
        except Problem as problem:
            raise unavailable(problem.detail) from None


def _noted(task: asyncio.Task[Any]) -> None:
    """Look at the exception of a check that nobody waited for to the end: asyncio would report it as forgotten."""
    if not task.cancelled():
        task.exception()
