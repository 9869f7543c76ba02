"""Many at once, on real servers: one winner, and never half of a document."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import pytest
import redis

from tests.support.clients import Answer, Checked
from tests.support.lanes import LANES
from tests.support.stores import SERVERS

WRITERS = 50
RACING = [lane for lane in LANES if lane[1] in SERVERS]

pytestmark = pytest.mark.parametrize("lane", RACING, ids="-".join, indirect=True)


def at_once(ask: Callable[..., Answer]) -> list[Answer]:
    """The answers of as many threads as there are writers, let go together."""
    gate = threading.Barrier(WRITERS)

    def run(number: int) -> Answer:
        gate.wait()
        return ask(number)

    with ThreadPoolExecutor(WRITERS) as pool:
        return list(pool.map(run, range(WRITERS)))


def check_one_winner(client: Checked, answers: list[Answer], won: int) -> str:
    """Exactly one answer has the status `won`, the others are 412, and what is stored is what the winner sent."""
    assert sorted(answer.status for answer in answers) == [won] + [412] * (WRITERS - 1)
    winner = next(number for number, answer in enumerate(answers) if answer.status == won)
    got = client.get("/ns/a")
    assert (got.json["by"], got.tag) == (winner, answers[winner].tag)
    return got.tag


def test_one_writer_wins(client: Checked, raw: redis.Redis) -> None:
    """Of many writers with one entity-tag, exactly one wins; of many that create, exactly one creates."""
    answers = at_once(lambda number: client.put("/ns/a", f'{{"by":{number}}}', [("If-None-Match", "*")]))
    tag = check_one_winner(client, answers, 201)
    for _ in range(3):
        answers = at_once(lambda number, tag=tag: client.put("/ns/a", f'{{"by":{number}}}', [("If-Match", tag)]))
        tag = check_one_winner(client, answers, 200)
    assert raw.xlen("kv:{ns}!log") == 4
    deleted = at_once(lambda _: client.delete("/ns/a", [("If-Match", tag)]))
    assert sorted(answer.status for answer in deleted) == [204] + [404] * (WRITERS - 1)


def test_every_writer_once(client: Checked, raw: redis.Redis) -> None:
    """Writers that read, change and write under the tag they read lose no change, though many are refused on the way."""
    client.put("/ns/a", '{"n":0}')

    def add(_: int) -> Answer:
        while True:
            got = client.get("/ns/a")
            answer = client.put("/ns/a", json.dumps({"n": got.json["n"] + 1}), [("If-Match", got.tag)])
            if answer.status != 412:
                return answer

    with ThreadPoolExecutor(4) as pool:
        assert {answer.status for answer in pool.map(add, range(40))} == {200}
    assert client.get("/ns/a").json["n"] == 40
    assert raw.xlen("kv:{ns}!log") == 41


# Two documents that share no member's value, each with a TTL of its own. The first has more fields than one HSET takes.
LARGE = {f"m{n}": "large" for n in range(4000, 0, -1)}
SMALL = {f"m{n}": "small" for n in range(1000)}
TTLS = {"large": 1000, "small": 5000}


@pytest.fixture
def alternating(client: Checked) -> Iterator[list[Answer]]:
    """Two writers that put the two documents in turn, and one that deletes now and then; their answers as they come."""
    answers: list[Answer] = []
    over = threading.Event()

    def write(name: str, members: dict[str, str], every: int) -> None:
        body = json.dumps(members).encode()
        count = 0
        while not over.is_set():
            answers.append(client.put(f"/ns/a?ttl={TTLS[name]}", body))
            count += 1
            if count % every == 0:
                answers.append(client.delete("/ns/a"))

    writers = [
        threading.Thread(target=write, args=("large", LARGE, 1000)),
        threading.Thread(target=write, args=("small", SMALL, 5)),
    ]
    for writer in writers:
        writer.start()
    yield answers
    over.set()
    for writer in writers:
        writer.join()
    assert {answer.status for answer in answers} <= {200, 201, 204, 404}


@pytest.mark.slow
def test_no_reader_sees_a_mix(client: Checked, alternating: list[Answer]) -> None:
    """Members, TTL, dates and entity-tag that are read together belong together."""
    seen: dict[str, int] = {"large": 0, "small": 0}
    tags: dict[str, str] = {}

    def look(_: int) -> None:
        got = client.get("/ns/a")
        if got.status == 404:
            return
        members = got.json
        ttl_s = members.pop("ttl")
        kind = members["m1"]
        assert members == (LARGE if kind == "large" else SMALL)
        assert list(members) == list(LARGE if kind == "large" else SMALL)
        assert TTLS[kind] - 30 <= ttl_s <= TTLS[kind]
        life_s = parsedate_to_datetime(got.headers["Sunset"]) - parsedate_to_datetime(got.headers["Last-Modified"])
        assert abs(life_s.total_seconds() - TTLS[kind]) <= 1
        assert tags.setdefault(got.tag, kind) == kind, "one tag, two documents"
        seen[kind] += 1

    with ThreadPoolExecutor(3) as pool:
        for _ in range(40):
            list(pool.map(look, range(5)))
            if min(seen.values()) >= 40:
                break
    assert min(seen.values()) > 0, "both were seen"
    assert len(tags) > 5, "and many times over"
