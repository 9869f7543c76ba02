"""Which lanes a test runs on. A lane is an adapter over a store.

`make test-all` runs every test on each of its lanes. `make test` runs each row of a test once (`selected`), on lanes that have
each adapter and each store: the rows in turns on them, beginning with another lane for each test. A test of many rows that
take long is marked `turns`: `make test-all` runs each of them once too. In `make faults` the lanes are others
in each round, and with KVSTORE_LANES=all such a test runs on each of them.
"""

import os
from collections.abc import Sequence

import pytest

Lane = tuple[str, ...]
ALL = os.environ.get("KVSTORE_LANES") == "all"

# Every adapter over every kind of store that it reaches in a way of its own; a Redis in this process cannot be served by
# another one. The first four have every adapter and every kind of store once.
LANES = [
    ("flask", "valkey"),
    ("asgi", "cluster"),
    ("served", "redis"),
    ("flask", "fake"),
    ("flask", "cluster"),
    ("flask", "redis"),
    ("asgi", "valkey"),
    ("asgi", "redis"),
    ("served", "valkey"),
]


def on(lanes: Sequence[Lane]) -> pytest.MarkDecorator:
    """Run a test on these lanes."""
    return pytest.mark.parametrize("lane", lanes, ids="-".join, indirect=True)


on_few = on(LANES[:4])
on_servers = on([("flask", "valkey"), ("asgi", "valkey"), ("served", "redis")])  # where requests can run at once
on_two = on([("flask", "valkey"), ("served", "redis")])
on_served = on([("served", "redis")])
on_one = on([("flask", "valkey")])


def selected(cells: Sequence[tuple[Lane, str]], first: int) -> list[bool]:
    """Which of a test's cells, each a lane and a row, `make test` runs: every row once, the first one on the lane `first`.

    Lua in fakeredis takes three times as long as the rest: its lane is left out where there are others.
    """
    rows = list(dict.fromkeys(row for _, row in cells))
    lanes = list(dict.fromkeys(lane for lane, _ in cells))
    lanes = cover([lane for lane in lanes if "fake" not in lane] or lanes)
    return [lane == lanes[(first + rows.index(row)) % len(lanes)] for lane, row in cells]


def cover(lanes: Sequence[Lane]) -> list[Lane]:
    """Those of the lanes that have a part, an adapter or a store, that none before them has."""
    seen: set[tuple[int, str]] = set()
    found: list[Lane] = []
    for lane in lanes:
        if not seen.issuperset(enumerate(lane)):
            found.append(lane)
        seen.update(enumerate(lane))
    return found
