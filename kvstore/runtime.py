"""What a process opens once: its Redis, a store, and what serves the requests of an event loop."""

import asyncio
import atexit
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from kvstore.access.rules import parse_rows, parse_toml
from kvstore.access.views import Rules
from kvstore.commands.base import Command, Outcome
from kvstore.commands.metrics import ReadMetrics
from kvstore.commands.readiness import CheckReadiness
from kvstore.commands.subscriptions import LongPoll
from kvstore.core.redis_url import parse_redis_url
from kvstore.core.settings import InvalidSetting, Settings
from kvstore.http.gate import Gate, open_gate
from kvstore.live.hub import Hub
from kvstore.live.long_poll import LongPolls
from kvstore.live.metrics import Metrics
from kvstore.live.readiness import Readiness
from kvstore.stores import embedded
from kvstore.stores.blocking import BlockingStore, open_blocking_store
from kvstore.stores.edit_queue import EditQueue
from kvstore.stores.pooled import Submissions, open_async_store
from kvstore.stores.query_queue import Query, QueryQueue
from kvstore.stores.redis_connection import Context, Done

log = logging.getLogger("kvstore")

RulesSource: TypeAlias = str | PathLike[str] | Sequence[Sequence[Any]]  # a file, or rows

NOTHING_IS_KEPT = (
    "NOTHING IS KEPT: {why}, so documents live in the memory of this process and end with it. Set REDIS_URL to keep them."
)


def locate(settings: Settings) -> Settings:
    """Return the settings with a REDIS_URL; if they have none, start the embedded server, which ends with this process.

    Raises embedded.StartFailed if the embedded server is installed but does not start.
    """
    if settings.redis_url:
        return settings
    try:
        server = embedded.start_or_join(Path(settings.data), embedded.Options(settings.max_memory_bytes, settings.fsync))
    except embedded.NoBinary as reason:
        log.warning(NOTHING_IS_KEPT.format(why=reason))
        return replace(settings, redis_url="fake://")
    server.keep()
    atexit.register(server.stop)
    return replace(settings, redis_url=server.url)


def connect(settings: Settings) -> tuple[BlockingStore, Settings]:
    """Return a blocking store on the Redis of the settings, and the settings as locate() completes them."""
    settings = locate(settings)
    return open_blocking_store(settings.redis_url, verify_tls=settings.verify_tls, replicas=settings.replicas), settings


_OWN = frozenset({LongPoll, CheckReadiness, ReadMetrics})  # what this process is asked, and not the store
_submissions = Submissions()
Cancellable: TypeAlias = asyncio.Task[None] | Query
Asked: TypeAlias = Command[Outcome] | LongPoll[Outcome] | ReadMetrics


class Runtime(NamedTuple):
    """What serves the requests of one event loop."""

    settings: Settings
    store: QueryQueue
    hub: Hub
    long_polls: LongPolls
    readiness: Readiness
    metrics: Metrics
    rules: Rules | None = None  # None: everything is permitted
    gate: Gate | None = None

    def submit(self, asked: Asked[Outcome], done: Done[Context, Outcome], context: Context) -> Cancellable | None:
        """Execute what is asked for; `done(context, outcome)` is called once, with the outcome or the exception.

        Returns the task of a long poll, a query, or None for anything else. If you cancel it, `done` is not called, and a job
        that was taken is given back.
        """
        if type(asked) not in _OWN:
            return self.store.submit(asked, done, context)  # type: ignore[arg-type]  # it is a command
        task = _submissions.add(lambda: self.outcome(asked), done, context)
        return task if isinstance(asked, LongPoll) else None

    async def outcome(self, asked: Asked[Outcome]) -> Outcome:
        """Return the outcome of what is asked for; raises Problem."""
        if isinstance(asked, LongPoll):
            return await self.long_polls.outcome(asked)
        if isinstance(asked, CheckReadiness):
            return await self.readiness.outcome(asked)
        if isinstance(asked, ReadMetrics):
            return await self.metrics.outcome(asked)  # type: ignore[return-value]  # a MetricsRead
        return await self.store.execute(asked)

    async def outcome_unless(self, gone: Coroutine[Any, Any, None], asked: Asked[Outcome]) -> Outcome:
        """Do the same until `gone` returns, which means that the client has disconnected; raises Problem, or ClientGone."""
        tasks = asyncio.ensure_future(self.outcome(asked)), asyncio.ensure_future(gone)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                raise ClientGone
            return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Answer the long polls, end the streams, then close the store."""
        await self.long_polls.close()
        await self.hub.close()
        await self.store.close()


class ClientGone(Exception):
    """The client has disconnected; nobody reads the response."""


def open_runtime(settings: Settings, rules: Rules | None = None) -> Runtime:
    """Return what serves the requests of one event loop, on the Redis of the settings. Nothing is connected yet.

    Without `rules` those of the settings judge, unless access is open. Raises InvalidSetting.
    """
    rules = rules or rules_of(settings)
    address = parse_redis_url(settings.redis_url, verify_tls=settings.verify_tls)
    redis = open_async_store(settings.redis_url, verify_tls=settings.verify_tls, replicas=settings.replicas)
    store = QueryQueue(EditQueue(redis))
    hub = Hub(store, address, settings.max_streams)
    polls = LongPolls(store, hub)
    metrics = Metrics(store, hub, polls)
    return Runtime(settings, store, hub, polls, Readiness(store), metrics, rules, open_gate(settings))


def mounted(settings: Settings, principal: object, source: RulesSource | None) -> tuple[Settings, Rules | None]:
    """Return the settings and the rules of a service in an application, which may say itself who asks: `principal`.

    Then tokens do not. Raises InvalidSetting.
    """
    if principal is None:
        return settings, rules_of(settings, source)
    return replace(settings, is_open=True), _given_rules(settings, source)


def rules_of(settings: Settings, source: RulesSource | None = None) -> Rules | None:
    """Return the rules that judge who has a token, None if access is open; raises InvalidSetting."""
    if not settings.is_open:
        return _given_rules(settings, source)
    if (settings.rules or source is not None) and not (settings.secrets or settings.jwks):
        raise InvalidSetting(
            "there are rules, and nothing says who asks: set KVSTORE_SECRET or KVSTORE_JWKS, or give principal="
        )
    return None


def _given_rules(settings: Settings, source: RulesSource | None) -> Rules:
    """Return the rules that an application gives, otherwise those of the settings, otherwise none; raises InvalidSetting."""
    return read_rules(source if source is not None else settings.rules or [])


def read_rules(source: RulesSource) -> Rules:
    """Return the rules in a file, or in a list of rows; raises InvalidSetting."""
    if not isinstance(source, str | PathLike):
        return Rules(parse_rows(source))
    try:
        return Rules(parse_toml(Path(source).read_text("utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"the file of rules {source} cannot be read: {error}") from None
    except InvalidSetting as error:
        raise InvalidSetting(f"{source}: {error}") from None
