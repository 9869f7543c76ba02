"""A stream that is read: its events, and where it goes on when it has ended. A value that changes; no I/O."""

from collections.abc import Iterator
from random import uniform
from typing import Any

from kvstore.commands.subscriptions import Follow
from kvstore.core import values
from kvstore.core.errors import InternalError, Problem
from kvstore.core.settings import Settings
from kvstore.http.messages import EVENT_STREAM
from kvstore.http.protocol import parse
from kvstore.verbs.requests import as_path, request_of
from kvstore.verbs.shapes import Event

MIN_RESUME_S, MAX_RESUME_S = 0.05, 2.0  # between two attempts to resume


class Following:
    """What was read of a stream, and where it goes on."""

    def __init__(self, path: str, *, recursive: bool = False, last_event_id: str | None = None) -> None:
        self._path = as_path(path)
        self._recursive = recursive
        self._position = last_event_id
        self._has_parts = False  # of a snapshot, and the last part has not come
        self._pause_s = 0.0
        self._has_begun = False

    def command(self, settings: Settings) -> Follow:
        """Return what the hub is to follow now; raises Problem."""
        headers = {"accept": EVENT_STREAM, "last-event-id": self._position}
        query = {"recursive": self._recursive or None}
        follow = parse(request_of("GET", self._path, query, headers=headers), settings)
        assert isinstance(follow, Follow)
        return follow

    def events(self, block: bytes) -> Iterator[Event]:
        """Yield the events of a block of text/event-stream."""
        self._pause_s = 0.0
        for text in block.split(b"\n\n"):
            fields = dict(line.split(b": ", 1) for line in text.split(b"\n") if b": " in line)
            position = fields[b"id"].decode() if b"id" in fields else None
            if b"event" in fields:
                self._has_begun = True
                event = Event(fields[b"event"].decode(), **self._shown(values.load(fields[b"data"])), id=position)
                self._has_parts = event.type == "snapshot" and position is None
                yield event
            self._position = position or self._position  # once the event was read: whoever stops before that gets it again

    def check(self, problem: Problem) -> None:
        """Raise a problem for which the stream is not resumed: any before its first event, and the client's own ones."""
        if problem.status < InternalError.status or not self._has_begun:
            raise problem

    def ended(self) -> Iterator[Event]:
        """Yield what the reader must know before the stream is resumed: that the snapshot begins anew."""
        if self._has_parts:
            self._has_parts = False
            yield Event("reset", **self._shown({}), id=None)

    def pause_s(self) -> float:
        """Return how long to wait before resuming: longer each time, until a block comes."""
        self._pause_s = min(MAX_RESUME_S, max(MIN_RESUME_S, 2 * self._pause_s))
        return uniform(self._pause_s / 2, self._pause_s)  # noqa: S311  # no secret

    def _shown(self, members: dict[str, Any]) -> dict[str, Any]:
        return {"path": self._path.text, "value": None, "etag": None, "ttl": None} | {
            name: value for name, value in members.items() if name != "more"
        }
