"""The deadline of a request, and what it comes to when one of its commands fails."""

from typing import Any, NamedTuple

import pytest

from kvstore.commands.base import Again, RegisterNamespace
from kvstore.core.errors import UNKNOWN, Problem, StoreUnavailable, unavailable
from kvstore.stores.execution import Execution
from kvstore.stores.redis_clients import PROMPT_S

LIMIT_S = 4.0
BUSY = unavailable("Redis is busy. Nothing was changed")


class Says(NamedTuple):
    """A command whose outcome is its reply."""

    def outcome(self, reply: Any) -> Any:
        return reply


def begin() -> Execution[Any]:
    return Execution(Says(), 0.0, LIMIT_S)  # type: ignore[arg-type]  # it is never sent


def again(*, has_written: bool = True) -> Again[Any]:
    return Again(Says(), has_written)  # type: ignore[arg-type]


def problem(outcome: object) -> str:
    """The detail of the problem that an outcome is."""
    assert isinstance(outcome, Problem)
    return outcome.detail


def test_prompt_answers_cost_nothing() -> None:
    """However many there are, the next command has as long as the first."""
    request, now = begin(), 0.0
    for _ in range(1000):
        now += PROMPT_S
        request.settle(again(), now)
    assert request.due - now == pytest.approx(LIMIT_S)


def test_slow_answers_add_up() -> None:
    """What an answer takes beyond that is gone."""
    request = begin()
    request.settle(again(), 1.0)
    request.settle(again(), 2.0)
    assert request.due == pytest.approx(LIMIT_S + 2 * PROMPT_S)


def test_an_outcome_ends_it() -> None:
    """It is what the command says."""
    assert begin().settle("done", 1.0) == "done"
    assert begin().settle(BUSY, 1.0) is BUSY


@pytest.mark.parametrize(("written", "is_known"), [([], True), ([False, False], True), ([True], False), ([True, False], False)])
def test_what_was_changed(written: list[bool], is_known: bool) -> None:
    """Nothing, where no command before this one may have been applied."""
    request = begin()
    for has_written in written:
        request.settle(again(has_written=has_written), 0.1)
    outcome = request.settle(BUSY, 0.2)
    assert isinstance(outcome, StoreUnavailable)
    assert (outcome is BUSY) == is_known
    assert (UNKNOWN in outcome.detail) != is_known


def test_a_refusal_of_a_later_command() -> None:
    """The outcome of a command may be raised, and is judged as one that was never sent."""

    class Refuses(Says):
        def outcome(self, _: Any) -> Any:
            raise Problem("it is refused")

    request = begin()
    request.settle(Again(Refuses()), 0.1)  # type: ignore[arg-type]
    assert UNKNOWN in problem(request.settle(b"", 0.2))


def test_a_namespace_that_cannot_be_registered() -> None:
    """The write is done, and that is the answer; it gets no longer for it."""
    request = begin()
    request.settle(Again(RegisterNamespace("ns", 1, "written")), 0.1)
    assert request.settle(BUSY, 0.2) == "written"
    assert request.ended(BUSY) == "written"
    request = begin()
    request.settle(Again(RegisterNamespace("ns", 1, again(has_written=False))), 0.1)
    due = request.due
    assert isinstance(request.settle(BUSY, 3.0), Again)
    assert request.due == due
    assert UNKNOWN in problem(request.settle(BUSY, 3.1))


def test_a_request_that_cannot_go_on() -> None:
    """The connection is lost between a write and what follows: unknown."""
    request = begin()
    request.settle(Again(RegisterNamespace("ns", 1, again(has_written=False))), 0.1)
    assert UNKNOWN in problem(request.ended(BUSY))
