"""A stream that is read: its events, and where it goes on when it has ended. A value that changes; no I/O."""

from collections.abc import Iterator, Sequence
from random import uniform
from typing import Any

from kvstore.commands.subscriptions import Follow
from kvstore.core import values
from kvstore.core.errors import InternalError, InvalidParameter, Problem
from kvstore.core.query import Question
from kvstore.core.settings import Settings
from kvstore.http.messages import EVENT_STREAM
from kvstore.http.protocol import parse
from kvstore.http.queries import parse_body
from kvstore.verbs.requests import as_path, request_of
from kvstore.verbs.shapes import Event, Where

MIN_RESUME_S, MAX_RESUME_S = 0.05, 2.0  # between two attempts to resume


class Following:
    """What was read of a stream, and where it goes on."""

    def __init__(  # noqa: PLR0913  # an option each
        self,
        path: str,
        where: Where | None = None,
        *,
        search: str | None = None,
        fields: str | Sequence[str] | None = None,
        recursive: bool = False,
        last_event_id: str | None = None,
    ) -> None:
        self._path = as_path(path)
        self._question = _question(where, search, fields)
        if self._question and not self._path.is_container:
            raise InvalidParameter("conditions, search and fields are for containers; end the path in a slash")
        self._recursive = recursive
        self._position = last_event_id
        self._items: list[Any] = []  # of a snapshot whose last part has not come
        self._pause_s = 0.0
        self._has_begun = False

    def command(self, settings: Settings) -> Follow:
        """Return what the hub is to follow now; raises Problem."""
        self._items = []  # a snapshot that was cut begins anew
        headers = {"accept": EVENT_STREAM, "last-event-id": self._position}
        query = {"recursive": self._recursive or None}
        follow = parse(request_of("GET", self._path, query, headers=headers), settings)
        assert isinstance(follow, Follow)
        return follow._replace(question=self._question)

    def events(self, block: bytes) -> Iterator[Event]:
        """Yield the events of a block of text/event-stream."""
        self._pause_s = 0.0
        for text in block.split(b"\n\n"):
            fields = dict(line.split(b": ", 1) for line in text.split(b"\n") if b": " in line)
            position = fields[b"id"].decode() if b"id" in fields else None
            if b"event" in fields:
                self._has_begun = True
                event = self._event(fields[b"event"].decode(), values.load(fields[b"data"]), position)
                if event:
                    yield event
            self._position = position or self._position  # once the event was read: whoever stops before that gets it again

    def check(self, problem: Problem) -> None:
        """Raise a problem for which the stream is not resumed: any before its first event, and the client's own ones."""
        if problem.status < InternalError.status or not self._has_begun:
            raise problem

    def pause_s(self) -> float:
        """Return how long to wait before resuming: longer each time, until a block comes."""
        self._pause_s = min(MAX_RESUME_S, max(MIN_RESUME_S, 2 * self._pause_s))
        return uniform(self._pause_s / 2, self._pause_s)  # noqa: S311  # no secret

    def _event(self, kind: str, members: dict[str, Any], position: str | None) -> Event | None:
        """Return an event; None for a part of a snapshot before the last one, whose items the last one gets."""
        if kind == "snapshot" and self._path.is_container:
            self._items += members["value"]["items"]
            if members.pop("more", False):
                return None
            members["value"]["items"], self._items = self._items, []
        shown = {"path": self._path.text, "etag": None, "ttl": None, "value": None} | members
        return Event(kind, **shown, id=position)


def _question(where: Where | None, search: str | None, fields: str | Sequence[str] | None) -> Question | None:
    """Return which documents are followed, None for all of them; raises Problem."""
    asked = {"where": where, "search": search, "fields": fields.split(",") if isinstance(fields, str) else fields}
    given = {name: value for name, value in asked.items() if value is not None}
    return parse_body(values.dump(given)).question if given else None
