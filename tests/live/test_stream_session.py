"""What a stream begins with, driven command by command, so that what is written in between is decided here."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.commands.changelog import ReadChanges
from kvstore.commands.containers import List
from kvstore.commands.subscriptions import Follow
from kvstore.core.paths import parse_path
from kvstore.core.settings import Settings
from kvstore.http.messages import Request
from kvstore.http.protocol import parse
from kvstore.live import stream_session
from kvstore.stores.blocking import BlockingStore
from tests.support.asking import command_of
from tests.support.naive_query import spelled
from tests.support.questions import PAIRS, Question, query_string, questions
from tests.support.stores import Running

STORES = ["redis", "fake"]


class Snapshot(NamedTuple):
    """What came before the changes: the documents of all of its events, and the position after which the changes follow."""

    documents: list[Any]
    events: int
    position: str


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, started: Callable[[str], Running]) -> Iterator[BlockingStore]:
    """A store, empty."""
    running = started(request.param)
    running.redis.flushall()
    opened = running.open()
    yield opened
    opened.close()


def put(store: BlockingStore, target: str, value: int) -> None:
    """Store a document."""
    store.execute(command_of(Request("PUT", target.encode(), {}, str(value).encode())))


def follow(store: BlockingStore, target: str, before: Callable[[object, int], None]) -> Snapshot:
    """Begin to follow a container; `before(command, n)` is called before its command number n."""
    steps, answer, count = stream_session.begin(Follow(parse_path(target.encode()), None, recursive=True)), None, 0
    sent = b""
    try:
        while True:
            step = steps.send(answer)
            if isinstance(step, bytes):
                sent, answer = sent + step, None
                continue
            assert step is not None
            before(step, count)
            count += 1
            answer = store.execute(step)
    except StopIteration as done:
        position: str = done.value
    found = [json.loads(data) for data in re.findall(rb"(?m)^data: (.*)$", sent)]
    assert re.findall(rb"(?m)^id: (.*)$", sent) == [position.encode()]
    documents = [(item["path"], item["value"]) for each in found for item in each["value"]["items"]]
    return Snapshot(documents, len(found), position)


def changes_since(store: BlockingStore, target: str, position: str) -> list[str]:
    """The paths of what changed after a position."""
    read = store.execute(ReadChanges(parse_path(target.encode()), position))
    assert read.entries is not None
    return [entry[1][1].decode() for entry in read.entries]


@pytest.mark.parametrize("had_log", [True, False], ids=["after others", "the first"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_change_comes_once(store: BlockingStore, *, had_log: bool, at: int) -> None:
    """A container's snapshot in one event is the state at its id, whenever a document is written: it has it, or it comes."""
    if had_log:
        put(store, "/room/1", 1)

    def write(_: object, number: int) -> None:
        if number == at:
            put(store, "/room/2", 2)

    snapshot = follow(store, "/room/", write)
    if at == 2:  # after the last of its commands
        put(store, "/room/2", 2)
    followed = changes_since(store, "/room/", snapshot.position)
    assert snapshot.events == 1
    assert (("/room/2", 2) in snapshot.documents) == (at < 2)
    assert ("2" in followed) == (at == 2)


def test_a_long_snapshot_has_the_id_of_its_beginning(store: BlockingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written while it is read comes as a change, also where a later page has it."""
    monkeypatch.setattr(stream_session, "PAGE", 2)
    for number in range(5):
        put(store, f"/room/{number}", number)

    def write(command: object, number: int) -> None:
        if isinstance(command, List) and command.after:
            put(store, f"/room/{number}-new", 0)

    snapshot = follow(store, "/room/", write)
    assert snapshot.events > 2
    followed = changes_since(store, "/room/", snapshot.position)
    assert followed
    assert not {name for name in followed if "new" not in name}


class Replayed:
    """The documents that a reader with conditions has, by path, as it resumes again and again."""

    def __init__(self, store: BlockingStore, target: str) -> None:
        self.documents: dict[str, Any] = {}
        self._store = store
        follow = parse(Request("GET", target.encode(), {"accept": "text/event-stream"}), Settings())
        assert isinstance(follow, Follow)
        self._follow = follow

    def resume(self) -> None:
        """Take what the stream has sent since the last time; at first its snapshot."""
        steps, answer = stream_session.begin(self._follow), None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                if isinstance(step, bytes):
                    self._take(step)
                elif step is not None:
                    answer = self._store.execute(step)
        except StopIteration as done:
            self._follow = self._follow._replace(position=done.value)

    def _take(self, blocks: bytes) -> None:
        for kind, data in re.findall(rb"event: (.*)\ndata: (.*)\n", blocks):
            event = spelled(data)
            if kind == b"snapshot":
                self.documents |= {item["path"]: item["value"] for item in event["value"]["items"]}
            elif kind in (b"put", b"patch"):
                self.documents[event["path"]] = event["value"]
            elif kind != b"reset":
                self.documents.pop(event["path"], None)
            else:
                self.documents = {}


WRITES = st.tuples(
    st.sampled_from(["PUT /ns/", "PUT /ns/", "PATCH /ns/", "DELETE /ns/", "POST /ns/", "resume"]),
    st.sampled_from(["a", "a", "c/d"]),
    PAIRS,
)


@pytest.mark.parametrize("store", ["redis"], indirect=True)
@settings(max_examples=12)
@given(
    asked=st.lists(questions(), min_size=5, max_size=5),
    recursive=st.booleans(),
    writes=st.lists(WRITES, min_size=10, max_size=15),
)
def test_conditions_replayed_are_the_query(
    store: BlockingStore, asked: list[Question], writes: list[tuple[str, str, str]], *, recursive: bool
) -> None:
    """Whatever is written, and whenever readers resume, each has what a query finds."""
    store.execute(command_of(Request("DELETE", b"/ns/?recursive", {})))
    targets = [f"/ns/?{query_string(question.parameters_of_a_stream())}{'&recursive' * recursive}" for question in asked]
    readers = {target: Replayed(store, target) for target in targets}
    for action, name, text in [*writes, ("resume", "", "")]:
        if action != "resume":
            method, _, container = action.partition(" ")
            path = container if method == "POST" else container + name
            store.execute(command_of(Request(method, path.encode(), {}, b"" if method == "DELETE" else text.encode())))
            continue
        for target, reader in readers.items():
            reader.resume()
            listing = store.execute(command_of(Request("GET", target.encode(), {})))
            assert reader.documents == {f"/ns/{item.name}": spelled(item.document.text) for item in listing.items}
