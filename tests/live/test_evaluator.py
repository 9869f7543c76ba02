"""Changes that are looked at for streams with conditions: once for all with the same, in turns, and no more than can wait."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kvstore.core.paths import parse_path
from kvstore.core.query import Question
from kvstore.http.messages import parse_query
from kvstore.http.queries import parse_question
from kvstore.live import evaluator
from kvstore.live.evaluator import Evaluator
from kvstore.live.log_reader import Reading
from kvstore.live.selections import Selection
from kvstore.live.subscribers import Namespace, Subscriber

CONDITIONS = ["a:lt=5&b:exists=true", "b:exists=true&a:lt=5", "a:lt=6"]


def entry(number: int, name: str, value: int | None) -> Any:
    """An entry of a change log: a PUT of {"a": value, "b": 1}, or a DELETE for None."""
    if value is None:
        return [b"%d-0" % number, [b"delete", name.encode()]]
    fields = [b"put", name.encode(), b"ttl", b"9000", b"$kv", b" object", b"a", b"%d" % value, b"b", b"1"]
    return [b"%d-0" % number, fields]


def heard_by(space: Namespace, question: str, *, recursive: bool = False, after: int = 0) -> list[bytes]:
    """What a new subscriber of the container /ns/ is sent that has begun after a change."""
    asked = parse_question(parse_query(question.encode()))
    assert asked
    heard: list[bytes] = []
    selection = Selection("", asked, recursive)
    subscriber = Subscriber(parse_path(b"/ns/"), heard.append, lambda: None, selection=selection)
    subscriber.is_ready, subscriber.after = True, (after, 0)
    space.add(subscriber)
    return heard


def kinds(heard: list[bytes]) -> list[str]:
    """The events that were sent, and the paths that they are about."""
    lines = [line.decode() for line in b"".join(heard).split(b"\n")]
    return [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]


def run(play: Callable[[Evaluator, Namespace], Awaitable[None]], behind: list[Namespace] | None = None) -> None:
    """Play with an evaluator, and a namespace that it looks at."""

    async def both() -> None:
        reading = Reading(None, parse_path(b"/ns/"), "1-0")  # type: ignore[arg-type]  # nothing is read
        evaluating = Evaluator(([] if behind is None else behind).append)
        await play(evaluating, Namespace(reading))
        await evaluating.close()

    asyncio.run(both())


async def until_seen(space: Namespace) -> int:
    """Wait until all was looked at; returns how many turns of the event loop that took."""
    turns = 0
    while space.evaluation:
        turns += 1
        await asyncio.sleep(0)
    return turns


def test_one_evaluation_for_all_with_the_same_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many streams there are, and however they spell their conditions; each of them hears of it."""
    asked: list[Question] = []
    matches = Question.matches

    def counted(question: Question, document: Any) -> Any:
        asked.append(question)
        return matches(question, document)

    monkeypatch.setattr(Question, "matches", counted)

    async def play(evaluating: Evaluator, space: Namespace) -> None:
        heard = [heard_by(space, CONDITIONS[number % 2]) for number in range(100)]
        others = [heard_by(space, CONDITIONS[2]), heard_by(space, CONDITIONS[0], recursive=True)]
        evaluating.add(space, [entry(2, "x", 4), entry(3, "x", 5), entry(4, "sub/x", 4)])
        await until_seen(space)
        for _ in range(100):  # they are told in several turns
            await asyncio.sleep(0)
        assert [kinds(each) for each in heard] == [["put", "leave"]] * 100
        assert [kinds(each) for each in others] == [["put", "put"], ["put", "leave", "put"]]
        assert len({id(each[0]) for each in heard}) == 1

    run(play)
    assert len(asked) == 2 + 2 + 3


def test_it_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two namespaces with much to look at get their turns, and others theirs; each stream hears all of it, in order."""
    monkeypatch.setattr(evaluator, "TURN_S", 0.0)

    async def play(evaluating: Evaluator, space: Namespace) -> None:
        other = Namespace(Reading(None, parse_path(b"/other/"), "1-0"))  # type: ignore[arg-type]
        spaces = space, other
        heard = [heard_by(each, "a:lt=5") for each in spaces]
        for each in spaces:
            evaluating.add(each, [entry(number, "x", number % 10) for number in range(2, 52)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        evaluating.add(space, [entry(52, "x", 0)])
        assert await until_seen(space) > 50
        await until_seen(other)
        expected = ["put" if number % 10 < 5 else "leave" for number in range(2, 53) if number % 10 < 6]
        assert [kinds(each) for each in heard] == [expected, expected[:-1]]
        assert not space.unseen_weight

    run(play)


def test_nothing_is_said_of_what_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a document has left, until it matches again, or somebody comes who may have had it when it matched."""
    monkeypatch.setattr(evaluator, "MAX_KNOWN", 2)
    monkeypatch.setattr(evaluator, "MAX_MATCHING", 2)

    async def play(evaluating: Evaluator, space: Namespace) -> None:
        async def said(*entries: Any) -> list[str]:
            evaluating.add(space, list(entries))
            await until_seen(space)
            found = kinds(heard)
            heard.clear()
            return found

        heard = heard_by(space, "a:lt=5")
        assert await said(entry(2, "x", 7), entry(3, "x", 8), entry(4, "x", None), entry(5, "x", 9)) == ["leave"]
        assert await said(entry(6, "x", 1), entry(7, "x", None), entry(8, "x", None)) == ["put", "delete"]
        assert await said(entry(9, "y", None), entry(10, "z", None), entry(11, "x", 7)) == ["delete", "delete", "leave"]
        assert list(space.known) == ["z", "x"]

        late = heard_by(space, "a:lt=5", after=11)
        assert await said(entry(12, "x", 7), entry(13, "x", 7)) == ["leave"]
        assert kinds(late) == ["leave"]
        for limit in (6, 7):
            heard_by(space, f"a:lt={limit}")
        assert await said(entry(14, "x", 1)) == ["put"]
        assert list(space.known) == ["z"]

    run(play)


def test_who_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes that wait are bounded; nobody waits for those of streams that have ended."""
    monkeypatch.setattr(evaluator, "MAX_UNSEEN_WEIGHT", 5000)
    behind: list[Namespace] = []

    async def play(evaluating: Evaluator, space: Namespace) -> None:
        heard_by(space, "a:lt=5")
        [subscriber] = space.all_selective()
        evaluating.add(space, [entry(2, "x", 1)])
        assert space.has_unseen(subscriber)
        assert not behind
        evaluating.add(space, [entry(3, "x", 1)] * 100)
        assert behind == [space]
        space.leave(subscriber)
        assert space.is_empty
        assert (space.evaluation, len(space.unseen), space.unseen_weight) == (None, 0, 0)

    run(play, behind)


def test_what_is_no_change_of_ours() -> None:
    """An entry that another client has added to the log is passed over."""

    async def play(evaluating: Evaluator, space: Namespace) -> None:
        heard = heard_by(space, "a:lt=5")
        foreign = [[b"x", b"y"], [b"x", b"\xff"], [b"put", b"x", b"ttl", b"?", b"$kv", b" object"]]
        evaluating.add(space, [*([b"2-0", fields] for fields in foreign), entry(3, "x", 1)])
        await until_seen(space)
        assert kinds(heard) == ["put"]

    run(play)
