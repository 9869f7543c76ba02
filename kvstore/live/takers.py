"""Registers in Redis the takes that wait in one event loop, so that who lists the container sees them."""

import asyncio
from collections.abc import Callable, Coroutine
from secrets import token_hex
from typing import Any, TypeAlias

from kvstore.commands.takers import REGISTER_AFTER_S, RegisterTaker, RemoveTaker
from kvstore.core.paths import Path
from kvstore.stores.pipelined import AsyncStore

Begin: TypeAlias = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Registration:
    """A take that waits, and is registered after REGISTER_AFTER_S, until end(). `begin` starts what nobody waits for."""

    def __init__(self, store: AsyncStore, begin: Begin, container: Path, name: bytes, wait_s: float) -> None:
        self._store = store
        self._begin = begin
        waited_ms, left_ms = (int(1000 * each_s) for each_s in (REGISTER_AFTER_S, wait_s - REGISTER_AFTER_S))
        self._command = RegisterTaker(container, token_hex(8), name, waited_ms, left_ms)
        self._entry: bytes | None = None
        self._registering: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(REGISTER_AFTER_S, self._start)

    def end(self) -> None:
        """Remove it; a process that dies before leaves it until the wait would have ended."""
        self._timer.cancel()
        if self._registering:
            self._begin(self._remove(self._registering))

    def _start(self) -> None:
        self._registering = self._begin(self._register())

    async def _register(self) -> None:
        self._entry = await self._store.execute(self._command)

    async def _remove(self, registering: asyncio.Task[None]) -> None:
        await registering
        if self._entry:
            await self._store.execute(RemoveTaker(self._command.container, self._entry))
