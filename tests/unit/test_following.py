"""A stream that is read by the client for Python: which events it gives, and where it goes on."""

import pytest

from kvstore.core.errors import InvalidPath, NotFound, Problem, unavailable
from kvstore.core.settings import Settings
from kvstore.http.events import block
from kvstore.verbs.following import Following

ID = "1795168800000-0"


def item(*, more: bool) -> bytes:
    """A part of a container's snapshot."""
    return block(b"snapshot", ID, "/n/", ID, None, b'{"items":[]}', more=more)


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


def test_a_snapshot_that_was_cut_begins_anew() -> None:
    """The reader is told, since it has a part of it already; not where it has all."""
    following = Following("/n/")
    [part] = following.events(item(more=True))
    assert (part.type, part.id) == ("snapshot", None)
    [reset] = following.ended()
    assert (reset.type, reset.path, reset.value, reset.id) == ("reset", "/n/", None, None)
    assert following.command(Settings()).position is None
    assert list(following.ended()) == []
    for each in (True, False):
        list(following.events(item(more=each)))
    assert list(following.ended()) == []


@pytest.mark.parametrize(("problem", "is_final"), [(unavailable("Redis is away"), False), (NotFound("it is gone"), True)])
def test_what_ends_it(problem: Problem, *, is_final: bool) -> None:
    """Before its first event any problem; later only one that another attempt would have as well."""
    following = Following("/n/a")
    with pytest.raises(type(problem)):
        following.check(problem)
    list(following.events(item(more=False)))
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
