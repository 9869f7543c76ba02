"""Random questions to random documents, held against a second reading of them (tests/support/naive_query.py).

`make draws` draws 100,000. KVSTORE_DRAWS says how many, and with another KVSTORE_SEED they are other ones.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
import redis

from kvstore.client import connect
from tests.http.test_queries import FOREIGN, fill, pages
from tests.support import draws
from tests.support.asking import stream
from tests.support.clients import Checked
from tests.support.lanes import Lane, on
from tests.support.naive_query import answered, spelled
from tests.support.questions import Question, query_string
from tests.support.stores import Running

DRAWS = int(os.environ.get("KVSTORE_DRAWS", "200"))
SEED = os.environ.get("KVSTORE_SEED", "")
SHARES: dict[Lane, float] = {  # of the draws
    ("flask", "valkey"): 0.45,
    ("asgi", "redis"): 0.25,
    ("served", "redis"): 0.15,
    ("asgi", "cluster"): 0.1,
    ("flask", "fake"): 0.05,
}
PER_CONTAINER = 25  # questions
NAMES = [f"{letter}{digit}" for letter in "aBz~" for digit in "0123456789"] + [
    "%C3%A9",
    "a%20b",
    "d/x",
    "d/y/z",
    "e/x",
    "10",
    "2",
]

# How little of a container one script looks at and returns. A server in another process has its own.
SMALL = {"PIECE": [1, 3, 7, 2000], "PIECE_BYTES": [0, 40, 262_144], "MAX_READ": [1, 4, 500], "PAGE_WEIGHT": [100, 1000, 2**23]}


@contextmanager
def pieces(rng: Random) -> Iterator[None]:
    """Pieces of any size."""
    with pytest.MonkeyPatch.context() as patched:
        for name, sizes in SMALL.items():
            patched.setattr(f"kvstore.commands.queries.{name}", rng.choice(sizes))
        yield


def found_by(client: Checked, question: Question, rng: Random) -> list[Any] | int:
    """What a question finds, asked in one of the ways that there are: items, or how many there are."""
    asked, limit = query_string(question.parameters()), rng.choice([1, 2, 3, 5, 1000])
    match rng.randrange(5):
        case 0:
            counted: int = client.get(f"/ns/?count&{asked}").json["count"]
            return counted
        case 1:
            return pages(client, "/ns/", limit, question.body(limit))
        case 2:
            return [spelled(line) for line in stream(client, f"/ns/?{asked}")[0].body.split(b"\n")[:-1]]
    return pages(client, f"/ns/?limit={limit}&{asked}", limit)


def lasting(items: list[Any]) -> list[Any]:
    """Items without what time changes."""
    return [{name: part for name, part in item.items() if name != "ttl"} for item in items]


@on(list(SHARES))
def test_draws(client: Checked, raw: redis.Redis, lane: Lane) -> None:
    """Some of the documents were written by another client, which spells as it likes."""
    for container in range(max(1, round(DRAWS * SHARES[lane] / PER_CONTAINER))):
        seed = f"{lane} {container} {SEED}"
        rng = Random(seed)
        documents = {name: draws.document(rng) for name in rng.sample(NAMES, rng.randrange(3, 20))}
        client.request("DELETE", "/ns/?recursive")
        fill(client, documents)
        for name in rng.sample(sorted(documents), rng.randrange(3)):
            if not name.startswith(("d/", "e/", "%", "a%")):
                raw.hset(f"kv:{{ns}}/{name}", rng.choice("abc"), rng.choice(FOREIGN))
        items = spelled(client.get("/ns/?limit=1000").body)["items"]
        with pieces(rng):
            for _ in range(PER_CONTAINER):
                question = draws.question(rng)
                found, expected = found_by(client, question, rng), answered(items, question.wanted)
                told = f"{seed!r}: {question.parameters()} of {documents}"
                if isinstance(found, int):
                    assert found == len(expected), told
                else:
                    assert lasting(found) == lasting(expected), told


@contextmanager
def written(url: str, names: list[str], seed: str) -> Iterator[None]:
    """Documents of these names come, change and go meanwhile."""
    is_over = threading.Event()

    def write() -> None:
        rng = Random(seed)
        with connect(url) as db:
            while not is_over.is_set():
                path = f"/ns/{rng.choice(names)}"
                if rng.random() < 0.3:
                    db.delete(path)
                else:
                    db.put(path, json.loads(draws.members(rng, 1)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        is_over.set()
        writer.join()


@on([("flask", "valkey"), ("asgi", "redis"), ("served", "redis")])
def test_draws_while_others_write(client: Checked, store: Running, lane: Lane) -> None:
    """What does not change is found once, in its place. What changes is shown only as it matches."""
    for container in range(max(1, DRAWS // 5 // PER_CONTAINER)):
        seed = f"writers {lane} {container} {SEED}"
        rng = Random(seed)
        chosen = rng.sample(NAMES, 20)
        stable, others = chosen[:12], [name for name in chosen[12:] if "/" not in name]
        client.request("DELETE", "/ns/?recursive")
        fill(client, {name: draws.document(rng) for name in stable})
        items = spelled(client.get("/ns/?limit=1000").body)["items"]
        names = {item["name"] for item in items}
        with pieces(rng), written(store.url, others, seed):
            for _ in range(PER_CONTAINER):
                question = draws.question(rng)
                found, expected = found_by(client, question, rng), answered(items, question.wanted)
                told = f"{seed!r}: {question.parameters()} of {items}"
                if isinstance(found, int):
                    assert len(expected) <= found <= len(expected) + len(others), told
                    continue
                assert lasting([item for item in found if item["name"] in names]) == lasting(expected), told
                if not question.wanted.fields:
                    changed = [item for item in found if item["name"] not in names]
                    assert len(answered(changed, question.wanted)) == len(changed), told
