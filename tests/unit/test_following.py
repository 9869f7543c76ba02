"""A stream that is read by the client for Python: which events it gives, and where it goes on."""

import pytest

from kvstore.core.errors import InvalidPath, NotFound, Problem, unavailable
from kvstore.core.settings import Settings
from kvstore.http.events import block
from kvstore.live.stream_session import RESET
from kvstore.verbs.following import Following

ID = "1795168800000-0"


def part(number: int, *, more: bool) -> bytes:
    """A part of a container's snapshot."""
    return block(b"snapshot", ID, "/n/", ID, None, b'{"items":[%d]}' % number, more=more)


def test_it_goes_on_after_the_last_event_that_was_read() -> None:
    """Or after a heartbeat, which has an id as well; an event that was not taken comes again."""
    following = Following("/n/a")
    assert following.command(Settings()).position is None
    events = following.events(b"retry: 2000\n\n" + block(b"put", ID, "/n/a", ID, 1000, b"1.10"))
    assert next(events).value == 1.1
    assert following.command(Settings()).position is None
    assert list(events) == []
    assert following.command(Settings()).position == ID
    assert list(following.events(b":\n\nid: 1795168800001-0\n\n")) == []
    assert following.command(Settings()).position == "1795168800001-0"


def test_a_snapshot_is_one_event() -> None:
    """Also where it comes in parts; if it is cut, its parts are forgotten."""
    following = Following("/n/")
    assert list(following.events(part(1, more=True))) == []
    assert following.command(Settings()).position is None
    assert list(following.events(part(2, more=True))) == []
    [snapshot] = following.events(part(3, more=False))
    assert (snapshot.type, snapshot.id, snapshot.value) == ("snapshot", ID, {"items": [2, 3]})
    [reset, again] = following.events(RESET + part(4, more=False))
    assert (reset.type, reset.path, reset.value, reset.id) == ("reset", "/n/", None, None)
    assert again.value == {"items": [4]}


@pytest.mark.parametrize(("problem", "is_final"), [(unavailable("Redis is away"), False), (NotFound("it is gone"), True)])
def test_what_ends_it(problem: Problem, *, is_final: bool) -> None:
    """Before its first event any problem; later only one that another attempt would have as well."""
    following = Following("/n/a")
    with pytest.raises(type(problem)):
        following.check(problem)
    list(following.events(part(1, more=False)))
    if is_final:
        with pytest.raises(type(problem)):
            following.check(problem)
    else:
        following.check(problem)


def test_it_waits_longer_each_time() -> None:
    """Until a block comes; at most 2 s."""
    following = Following("/n/a")
    pauses = [following.pause_s() for _ in range(12)]
    assert pauses[0] <= 0.05 < pauses[4] < 1 <= pauses[-1] <= 2
    list(following.events(b":\n\n"))
    assert following.pause_s() <= 0.05


def test_a_bad_path() -> None:
    """Is refused before anything is followed."""
    with pytest.raises(InvalidPath):
        Following("n/a")
