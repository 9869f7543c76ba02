"""The queue of edits: an event loop edits a document once at a time.

An edit that was overtaken reads the document and is made again (documents.Edit). With a hundred at once, each that is written
makes all others start again. In a queue an edit is overtaken by other processes only.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

from kvstore.commands.base import Command, Outcome
from kvstore.commands.documents import Edit
from kvstore.commands.guarded import WRAPPERS, unwrapped
from kvstore.core.errors import Problem, unavailable
from kvstore.stores.pipelined import AsyncStore, executed
from kvstore.stores.redis_connection import Context, Done

QUEUED_S = 2.0  # that an edit may wait for those before it: with PIPELINED.answer_s it is under 6 s
MAX_QUEUED = 1000  # for one document; about as many are written in 2 s


@dataclass(frozen=True, slots=True, eq=False)
class QueuedEdit:
    """An edit that waits for those before it."""

    command: Command[Any]
    done: Done[Any, Any]
    context: Any


_MAY_BE_EDIT = frozenset({Edit, *WRAPPERS})

_Edits = dict[QueuedEdit, asyncio.TimerHandle]  # in the order in which they came


class EditQueue:
    """A store that passes commands to `store`, and edits of one document one after the other."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._queues: dict[str, _Edits] = {}  # behind the edit that `store` executes, by the document's key

    def submit(self, command: Command[Outcome], done: Done[Context, Outcome], context: Context) -> None:
        """As PipelinedStore.submit."""
        if type(command) not in _MAY_BE_EDIT or not isinstance(edit := unwrapped(command), Edit):
            self._store.submit(command, done, context)
            return
        key = edit.path.keys.document
        queue = self._queues.get(key)
        if queue is None:
            self._queues[key] = {}
            self._store.submit(command, self._done, (key, done, context))
            return
        loop, waiting = asyncio.get_running_loop(), QueuedEdit(command, done, context)
        if len(queue) < MAX_QUEUED:
            queue[waiting] = loop.call_later(QUEUED_S, self._overdue, queue, waiting)
        else:
            loop.call_soon(done, context, _crowded())

    def flush(self) -> None:
        """As PipelinedStore.flush."""
        self._store.flush()

    async def execute(self, command: Command[Outcome]) -> Outcome:
        """Execute a command and those that follow it, and return the outcome; raises Problem."""
        return await executed(self, command)

    async def close(self) -> None:
        """As PipelinedStore.close."""
        await self._store.close()

    def _done(self, edit: tuple[str, Done[Any, Any], Any], outcome: object) -> None:
        """Submit the next edit, and hand over the outcome of this one."""
        key, done, context = edit
        queue = self._queues[key]
        for following, timer in queue.items():
            del queue[following]
            timer.cancel()
            self._store.submit(following.command, self._done, (key, following.done, following.context))
            break
        else:
            del self._queues[key]
        done(context, outcome)

    def _overdue(self, queue: _Edits, waiting: QueuedEdit) -> None:
        """Fail an edit that has waited for too long."""
        del queue[waiting]
        waiting.done(waiting.context, _crowded())


def _crowded() -> Problem:
    return unavailable("too many others write this document, or take too long; send the request again. Nothing was changed")
