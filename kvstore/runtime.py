"""Putting it together: which store the settings mean, and the service as a Flask application."""

import atexit
import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kvstore.core.settings import Settings
from kvstore.live.hub import Hub
from kvstore.live.long_poll import LongPolls
from kvstore.stores import embedded
from kvstore.stores.blocking import BlockingStore, open_blocking_store
from kvstore.stores.pipelined import AsyncStore

log = logging.getLogger("kvstore")

NOTHING_IS_KEPT = (
    "NOTHING IS KEPT: {why}, so documents live in the memory of this process and end with it. Set REDIS_URL to keep them."
)


def locate(settings: Settings) -> Settings:
    """The settings with a REDIS_URL that is there; an embedded server that was started for that ends with this process.

    Raises embedded.StartFailed where the embedded server is wanted, exists for this machine, and does not start.
    """
    if settings.redis_url:
        return settings
    try:
        server = embedded.start_or_join(Path(settings.data), settings.max_memory_bytes)
    except embedded.NoBinary as reason:
        log.warning(NOTHING_IS_KEPT.format(why=reason))
        return replace(settings, redis_url="fake://")
    server.keep()
    atexit.register(server.stop)
    return replace(settings, redis_url=server.url)


def connect(settings: Settings) -> tuple[BlockingStore, Settings]:
    """A store on what locate() finds, and the settings."""
    settings = locate(settings)
    return open_blocking_store(settings.redis_url, verify_tls=settings.verify_tls), settings


class Runtime(NamedTuple):
    """What serves the requests of one event loop."""

    settings: Settings
    store: AsyncStore
    hub: Hub
    long_polls: LongPolls

    async def close(self) -> None:
        """Answer those who wait, end the streams, then the store."""
        await self.long_polls.close()
        await self.hub.close()
        await self.store.close()
