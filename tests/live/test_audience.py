"""How changes reach the subscribers of one path: some in each turn of the event loop, each with all that it lacks."""

import asyncio
import random
import tracemalloc
from collections.abc import Coroutine
from typing import Any

import pytest

from kvstore.core.paths import parse_path
from kvstore.core.redis_url import parse_redis_url
from kvstore.live.hub import Hub
from kvstore.live.log_reader import Reading
from kvstore.live.subscribers import MAX_AT_ONCE, MAX_JOINED_BYTES, MAX_WAITING_BYTES, Namespace, Subscriber

PATH = parse_path(b"/ns/a")


class Reader:
    """A subscriber, and the blocks that it was sent."""

    def __init__(self, space: Namespace, *, is_ready: bool = True) -> None:
        self.blocks: list[bytes] = []
        self.has_ended = False
        self.subscriber = Subscriber(PATH, self.blocks.append, self._end)
        self.subscriber.is_ready = is_ready
        space.add(self.subscriber)

    def _end(self) -> None:
        self.has_ended = True

    @property
    def numbers(self) -> list[int]:
        """The changes that it was sent."""
        return [int(number) for block in self.blocks for number in block.split()]


def space_of() -> Namespace:
    """A namespace whose log nobody reads."""
    nobody: Any = None
    return Namespace(Reading(nobody, PATH, "0-0"))


def change(number: int, size: int = 0) -> tuple[tuple[int, int], bytes]:
    """A change whose event is its number."""
    return (number, 0), b"%d%b\n" % (number, b" " * size)


def deliver(space: Namespace, *changes: tuple[tuple[int, int], bytes]) -> None:
    """Deliver changes that were read together."""
    space.documents["a"].deliver(list(changes))


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run a scene in an event loop, then all that it has planned."""

    async def whole() -> None:
        await scene
        for _ in range(1000):
            await asyncio.sleep(0)

    asyncio.run(whole())


def test_some_are_sent_a_change_in_each_turn() -> None:
    readers: list[Reader] = []

    async def scene() -> None:
        space = space_of()
        readers.extend(Reader(space) for _ in range(MAX_AT_ONCE * 2 + 1))
        told = []
        deliver(space, change(1))
        for _ in range(4):
            told.append(sum(bool(reader.blocks) for reader in readers))
            await asyncio.sleep(0)
        assert told == [MAX_AT_ONCE, MAX_AT_ONCE * 2, MAX_AT_ONCE * 2 + 1, MAX_AT_ONCE * 2 + 1]

    play(scene())
    assert all(reader.numbers == [1] for reader in readers)


def test_each_is_sent_all_that_it_lacks() -> None:
    readers: list[Reader] = []

    async def scene() -> None:
        space = space_of()
        readers.extend(Reader(space) for _ in range(MAX_AT_ONCE * 3))
        deliver(space, change(1))
        deliver(space, change(2), change(3))
        await asyncio.sleep(0)
        deliver(space, change(4))

    play(scene())
    assert all(reader.numbers == [1, 2, 3, 4] for reader in readers)
    assert sorted({len(reader.blocks) for reader in readers}) == [1, 2]  # not once for each change


def test_who_comes_and_goes_meanwhile() -> None:
    readers: list[Reader] = []
    late: list[Reader] = []

    async def scene() -> None:
        space = space_of()
        readers.extend(Reader(space) for _ in range(MAX_AT_ONCE * 2))
        deliver(space, change(1))
        unsent = [reader for reader in readers if not reader.blocks]
        space.leave(unsent[0].subscriber)
        unsent[0].subscriber.has_left = True
        late.append(Reader(space))
        deliver(space, change(2))

    play(scene())
    assert sorted(reader.numbers for reader in readers) == [[], *([[1, 2]] * (MAX_AT_ONCE * 2 - 1))]
    assert late[0].numbers == [2]


def test_a_position_is_not_told_before_the_changes_up_to_it() -> None:
    async def scene() -> None:
        space = space_of()
        readers = [Reader(space) for _ in range(MAX_AT_ONCE + 1)]
        deliver(space, change(1))
        for reader in readers:
            assert space.has_unseen(reader.subscriber) == (not reader.blocks)
        await asyncio.sleep(0)
        assert not any(space.has_unseen(reader.subscriber) for reader in readers)

    play(scene())


def fail(_: bytes) -> None:
    """In the place of a subscriber's send()."""
    raise RuntimeError("a bug")


def test_a_bug_with_one_is_no_concern_of_the_others() -> None:
    readers: list[Reader] = []

    async def scene() -> None:
        space = space_of()
        readers.extend(Reader(space) for _ in range(MAX_AT_ONCE * 2))
        readers[3].subscriber.send = fail
        deliver(space, change(1))
        await asyncio.sleep(0)
        deliver(space, change(2))

    play(scene())
    assert readers.pop(3).has_ended
    assert all(reader.numbers == [1, 2] for reader in readers)


def test_a_bug_in_one_heartbeat_is_no_concern_of_the_others() -> None:
    """Without heartbeats every stream of the process would be cut off by its client."""
    readers: list[Reader] = []

    async def scene() -> None:
        space = space_of()
        nobody: Any = None
        hub = Hub(nobody, parse_redis_url("fake://"), 10)
        hub._namespaces["ns"] = space
        readers.extend(Reader(space, is_ready=False) for _ in range(5))
        for reader in readers:
            reader.subscriber.awaits_page = True
            reader.subscriber.beat = hub._beats[0]
            hub._beats[0].add(reader.subscriber)
        readers[3].subscriber.send = fail
        hub._send_beats()

    play(scene())
    assert readers.pop(3).has_ended
    assert all(reader.blocks == [b":\n\n"] for reader in readers)


def test_what_waits_for_the_turn_of_a_subscriber_is_bounded() -> None:
    """Changes that come faster than they are sent are sent at once."""
    readers: list[Reader] = []

    async def scene() -> None:
        space = space_of()
        readers.extend(Reader(space) for _ in range(MAX_AT_ONCE * 2))
        for number in range(1, 12):
            deliver(space, change(number, MAX_WAITING_BYTES // 4))
            assert sum(len(block) for block in readers[-1].blocks) >= (number - 9) * MAX_WAITING_BYTES // 4

    play(scene())
    assert all(reader.numbers == list(range(1, 12)) for reader in readers)


def test_a_write_is_bounded() -> None:
    readers: list[Reader] = []

    async def scene() -> None:
        space = space_of()
        readers.append(Reader(space))
        deliver(space, *[change(number, 1000) for number in range(1, 300)], change(300, MAX_JOINED_BYTES * 2), change(301))

    play(scene())
    assert readers[0].numbers == list(range(1, 302))
    assert [len(block) > MAX_JOINED_BYTES for block in readers[0].blocks].count(True) == 1


def test_nothing_is_kept_of_what_was_sent() -> None:
    """Each container and each set of conditions has an audience: what one keeps would be kept by thousands."""

    async def scene() -> None:
        space = space_of()
        reader = Reader(space)
        tracemalloc.start()
        deliver(space, *[change(number, 1000) for number in range(1, 200)])
        reader.blocks.clear()
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert kept < 10_000

    play(scene())


def end_snapshot(subscriber: Subscriber, number: int) -> None:
    """Send what has come meanwhile, but for the changes up to a number, which the snapshot has."""
    subscriber.after = (number, 0)
    while subscriber.waiting:
        if piece := subscriber.take_waiting():
            subscriber.send(piece)
    subscriber.is_ready = True


@pytest.mark.few
@pytest.mark.parametrize("seed", range(20))
def test_each_change_comes_once_and_in_order(seed: int) -> None:
    """To whoever comes, goes, and begins with a snapshot, whatever happens in which turn."""
    draw = random.Random(seed)
    readers: list[tuple[Reader, int, int]] = []  # and the first change that it is to hear of, and the first that it is not

    async def scene() -> None:
        space, following, number = space_of(), dict[Reader, int](), 0
        Reader(space)  # so that the audience is never empty
        for _ in range(300):
            doing = draw.random()
            if doing < 0.3:
                count = draw.randint(1, 5)
                deliver(space, *[change(number + index) for index in range(1, count + 1)])
                number += count
            elif doing < 0.6:
                for _ in range(draw.randint(1, 40)):
                    following[Reader(space, is_ready=draw.random() < 0.5)] = number
            elif doing < 0.7 and following:
                reader = draw.choice(list(following))
                seen = number if not space.has_unseen(reader.subscriber) else None
                began = following.pop(reader)
                space.leave(reader.subscriber)
                reader.subscriber.has_left = True
                if seen is not None and reader.subscriber.is_ready:
                    readers.append((reader, began, seen))
            elif doing < 0.8 and following:
                reader = draw.choice(list(following))
                subscriber = reader.subscriber
                if not subscriber.is_ready:
                    following[reader] = draw.randint(following[reader], number)
                    end_snapshot(subscriber, following[reader])
            else:
                await asyncio.sleep(0)
        for reader, began in following.items():
            if reader.subscriber.is_ready:
                readers.append((reader, began, number))

    play(scene())
    assert len(readers) > 100
    for reader, began, seen in readers:
        assert reader.numbers == list(range(began + 1, seen + 1))
