"""The evaluator: looks at changes for the streams with conditions of one event loop, in turns of a few ms.

A change is parsed once, and looked at once for all streams of a container with the same conditions. The hub has delivered it
to all other streams before. For some documents of each namespace it is remembered for whom they matched after their last
change: a stream that has begun before it, and for which the document did not match then, does not have that document.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter

from kvstore.commands.base import RedisReply, weigh
from kvstore.commands.changelog import changed_name, is_change, parse_entry
from kvstore.live.selections import Occurrence
from kvstore.live.stream_session import path_of
from kvstore.live.subscribers import Changed, Namespace, SelectiveAudience, order_of

log = logging.getLogger("kvstore")

TURN_S = 0.005  # of looking at changes, in one turn of the event loop, about: one condition may take 30 ms in a large document
MAX_UNSEEN_WEIGHT = 4 * 1024 * 1024  # of the changes of a namespace that wait to be looked at, as weigh() has it
MAX_KNOWN = 10_000  # documents of a namespace of which it is remembered for whom they match: 300 bytes each, and the name
MAX_MATCHING = 16  # audiences for which one matches; it is not remembered of one that matches for more

Step = tuple[SelectiveAudience, Changed] | None


class Evaluator:
    """`on_behind(space)` ends the streams with conditions of a namespace whose changes come faster than they are looked at."""

    def __init__(self, on_behind: Callable[[Namespace], None]) -> None:
        self._on_behind = on_behind
        self._spaces: deque[Namespace] = deque()  # those with changes that wait
        self._task: asyncio.Task[None] | None = None

    def add(self, space: Namespace, entries: list[RedisReply]) -> None:
        """Look at entries of a change log, in a later turn."""
        space.unseen += entries
        space.unseen_weight += weigh(entries)
        if space.unseen_weight > MAX_UNSEEN_WEIGHT:
            log.warning("changes come faster than they are compared with the conditions of streams, which end and resume")
            self._on_behind(space)
            return
        if space.evaluation is None:
            space.evaluation = self._evaluate(space)
            self._spaces.append(space)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._spaces:
            space = self._spaces.popleft()
            try:
                self._take_turn(space)
            except Exception:
                log.exception("changes were not compared with conditions by a bug of ours; the streams with conditions end")
                self._on_behind(space)
            if space.evaluation:
                self._spaces.append(space)
            await asyncio.sleep(0)

    def _take_turn(self, space: Namespace) -> None:
        """Look at some of the changes of a namespace, and deliver what was found."""
        found: dict[SelectiveAudience, list[Changed]] = {}
        until = perf_counter() + TURN_S
        for step in space.evaluation or ():
            if step:
                audience, changed = step
                found.setdefault(audience, []).append(changed)
            if perf_counter() >= until:
                break
        else:
            space.evaluation = None
        for audience, changes in found.items():
            audience.deliver(changes)

    def _evaluate(self, space: Namespace) -> Iterator[Step]:
        """Yield what audiences are told, and None after what may take long."""
        while space.unseen:
            entry = space.unseen.popleft()
            space.unseen_weight -= weigh(entry)
            audiences = space.selective_audiences_of(changed_name(entry)) if is_change(entry) else []
            if audiences and (change := parse_entry(entry)):
                occurrence, order = Occurrence(path_of(space.reading.path, change), change), order_of(change.id)
                last, matched = space.known.pop(change.name, (None, ()))
                matching = []
                for audience in audiences:
                    block = yield from audience.selection.shown(occurrence)
                    if block:
                        matching.append(audience)
                    elif last is None or audience in matched or not audience.has_begun_before(last):
                        block = occurrence.absence
                    yield (audience, (order, block)) if block else None
                if len(matching) <= MAX_MATCHING:
                    space.known[change.name] = order, tuple(matching)
                if len(space.known) > MAX_KNOWN:
                    del space.known[next(iter(space.known))]
