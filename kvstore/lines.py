"""Edits of one document by one event loop, one after the other.

An edit that has lost to another is made again from what is there then (commands.Edit). With a hundred at once, each that is
written makes all of the others do so; in a line they lose only to other processes.
"""

import asyncio
from collections import deque
from typing import Any, NamedTuple

from kvstore.commands import Command, Edit, Once
from kvstore.errors import UNKNOWN, StoreUnavailable, unavailable
from kvstore.pipeline import AsyncStore, Done, executed

IN_LINE_S = 2.0  # that an edit may wait for those before it
MAX_IN_LINE = 1000


class _Waiting(NamedTuple):
    """An edit that waits for those before it."""

    command: Command
    done: Done
    context: Any
    due: float


class InLine:
    """The store `store`, whose edits of one document stand in a line."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._lines: dict[str, deque[_Waiting]] = {}  # by the document's key: behind the edit that is with the store

    def submit(self, command: Command, done: Done, context: Any) -> None:
        """As Pipeline.submit."""
        edit = command.command if type(command) is Once else command
        if type(edit) is not Edit:
            self._store.submit(command, done, context)
            return
        key = edit.path.keys.document
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque()
            self._store.submit(command, self._done, (key, done, context))
        else:
            loop = asyncio.get_running_loop()
            if len(line) < MAX_IN_LINE:
                line.append(_Waiting(command, done, context, loop.time() + IN_LINE_S))
            else:
                loop.call_soon(done, context, _crowded())

    async def execute(self, command: Command) -> Any:
        """The outcome of a command; raises Problem."""
        return await executed(self, command)

    async def close(self) -> None:
        """As Pipeline.close."""
        await self._store.close()

    def _done(self, edit: tuple[str, Done, Any], outcome: Any) -> None:
        """Tell the outcome of one, and let the next one begin; where Redis is away, none of them waits for that any longer."""
        key, done, context = edit
        line, loop = self._lines[key], asyncio.get_running_loop()
        while line:
            following = line.popleft()
            if isinstance(outcome, StoreUnavailable):
                problem = outcome if UNKNOWN not in outcome.detail else _unbegun()
            elif loop.time() > following.due:
                problem = _crowded()
            else:
                self._store.submit(following.command, self._done, (key, following.done, following.context))
                break
            loop.call_soon(following.done, following.context, problem)
        else:
            del self._lines[key]
        done(context, outcome)


def _unbegun() -> StoreUnavailable:
    return unavailable("Redis does not answer; send it again. Nothing was changed")


def _crowded() -> StoreUnavailable:
    return unavailable("too many others write this document at once; send the request again. Nothing was changed")
