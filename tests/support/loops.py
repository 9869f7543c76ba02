"""An event loop in a thread of its own, for what is asyncio in a test that is not. LOOPS is the table of kinds."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

try:
    import uvloop
except ImportError:  # no uvloop for this platform
    uvloop = None  # type: ignore[assignment]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
if uvloop:
    LOOPS["uvloop"] = uvloop.new_event_loop
PRODUCTION = "uvloop" if uvloop else "asyncio"  # what worker.py serves on


class Loop:
    """A running event loop."""

    def __init__(self, kind: str = PRODUCTION) -> None:
        self._loop = LOOPS[kind]()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any], limit_s: float = 60) -> Any:
        """What a coroutine returns on this loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(limit_s)

    def close(self) -> None:
        """End the tasks that are left, and stop the loop."""
        self.run(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
