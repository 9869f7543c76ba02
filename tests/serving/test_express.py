"""The express lane gives the responses of the general way, byte by byte, and takes nothing that the rules do not permit.

`make draws` draws 100,000 requests. KVSTORE_DRAWS says how many; with another number they are other ones.
"""

import os
import random
import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.commands.bulk import MAX_COALESCED, MAX_COALESCED_BYTES
from kvstore.commands.documents import ConditionalGet, Get, Put
from kvstore.core.codec import MAX_PLAIN_MEMBERS, encode
from kvstore.core.errors import unavailable
from kvstore.core.paths import parse_path
from kvstore.core.preconditions import NONE
from kvstore.core.settings import Settings
from kvstore.serving import express
from kvstore.serving.express import LATE_S, ExpressLane
from kvstore.stores.redis_errors import UNCHANGED
from tests.support.inprocess import InProcess
from tests.support.stores import Running, connect
from tests.support.tokens import SECRET, in_s, signed

DRAWS = int(os.environ.get("KVSTORE_DRAWS", "3000"))
CLIENTS = 12  # that send at once

OBJECT = b'{"a":1,"b":"x"}'
BODIES = [
    *[OBJECT, b"{}", b'{"a":1.50,"c":null,"d":true}', b' {"b" : "x","a" : -0 } ', b'{"z":"%s","a":"\\u00e9"}', b'{"$kv":1}'],
    *[b"[1,2]", b"1", b'"text"', b'{"a":{"b":[1]}}', b'{"ttl":60,"a":1}', b'{"ttl":0}', b'{"at":{".sv":"timestamp"}}', b""],
    *[b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b'{"a":"\xff"}', b'{"a":"\xc3\xa9"}', b'{"a":%b}' % (b"9" * 30)],
    b'{"a":"%b"}' % (b"x" * MAX_COALESCED_BYTES),
    b"{%b}" % b",".join(b'"m%d":%d' % (n, n) for n in range(MAX_PLAIN_MEMBERS + 1)),
]
TARGETS = [  # with a number in the place of @, which is another one for each client
    *[
        b"/ns/a@",
        b"/ns/b@",
        b"/ns/a@/b/c",
        b"/other/a@",
        b"/n@/d.e~f",
        b"/ns/foreign@",
        b"/ns/list@",
        b"/ns/gone@",
        b"/ns/large@",
    ],
    *[b"/@", b"/n@", b"/n@/", b"/ns//a@", b"/ns/.", b"/ns/../a@", b"/ns/%61@", b"/ns/a@?x=1", b"/ns/a@?ttl=900", b"/n@/?list"],
    *[
        b"/_x/a@",
        b"/ns/@%zz",
        b"http://x/ns/a@",
        b"/ns/\xc3\xa9@",
        b"/ns/@" + b"n" * 300,
        b"/ns/a@#b",
        b"/ns/a@?changes",
        b"/_/x",
    ],
]
FIELDS = [
    *[b"", b"", b"", b"", b"User-Agent: x\r\n", b"Accept: */*\r\n", b"Content-Type: application/json\r\n", b"X-Any: thing\r\n"],
    *[b"Origin: http://localhost\r\n", b"Origin: https://elsewhere.example\r\n", b"Prefer: return=minimal\r\n"],
    *[
        b"If-None-Match: *\r\n",
        b"If-Match: *\r\n",
        b'If-None-Match: "1-0"\r\n',
        b"If-Modified-Since: Tue, 05 Nov 2030 00:00:00 GMT\r\n",
    ],
    *[b"Content-Type: text/plain\r\n", b"Content-Encoding: gzip\r\n", b"Idempotency-Key: k@\r\n", b"Range: bytes=0-1\r\n"],
    *[b"Expect: 100-continue\r\n", b"Accept: text/html\r\n", b"Connection: close\r\n", b"Connection: keep-alive\r\n"],
]
# What differs from run to run: entity-tags, names that POST gives, dates, TTLs.
_CHANGING = re.compile(
    rb"\d{13}[0-9a-z-]*|(?:(?<=Date: )|(?<=Sunset: )|(?<=Last-Modified: ))[^\r]+|(?:(?<=\"ttl\":)|(?<=\"time\":))\d+"
)


def request_of(draw: random.Random, client: int) -> bytes:
    """Draw a request of a client. Most are plain."""
    method = draw.choice([b"GET"] * 8 + [b"PUT"] * 8 + [b"HEAD", b"PATCH", b"DELETE", b"POST", b"OPTIONS", b"get", b"BREW"])
    target = draw.choice(TARGETS[:9] if draw.random() < 0.9 else TARGETS)
    fields = draw.choice(FIELDS[:8] if draw.random() < 0.85 else FIELDS)
    version = b"1.0" if draw.random() < 0.03 else b"1.1"
    host = b"" if draw.random() < 0.02 else b"Host: 127.0.0.1\r\n"
    body = b""
    if method not in (b"GET", b"HEAD", b"OPTIONS") or draw.random() < 0.03:
        body = OBJECT if draw.random() < 0.5 else draw.choice(BODIES)
        if draw.random() < 0.05:
            fields += b"Transfer-Encoding: chunked\r\n"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        else:
            fields += b"Content-Length: %d\r\n" % len(body)
    head = b"%b %b HTTP/%b\r\n%b%b\r\n" % (method, target, version, host, fields)
    return head.replace(b"@", b"%d" % client) + body


def pieces_of(draw: random.Random, client: int) -> list[bytes]:
    """Draw what a client sends, over one connection: some requests, most of them whole."""
    pieces: list[bytes] = []
    for _ in range(draw.randint(1, 6)):
        request = request_of(draw, client)
        if draw.random() < 0.1:
            at = draw.randrange(len(request))
            pieces += [request[:at], request[at:]]
        elif pieces and draw.random() < 0.1:
            pieces[-1] += request
        else:
            pieces.append(request)
    return pieces


class Both:
    """Two servers, with the express lane and without, each on a database of its own. `taken` counts what the lane took."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch, **environ: str) -> None:
        self.taken = 0
        running.redis.flushall()
        self._running = running
        self._with = InProcess(running.url, environ)
        self._without = InProcess(f"{running.url}?db=1", {**environ, "KVSTORE_EXPRESS": "off"})
        lane = self._with.server.lane
        assert lane
        assert self._without.server.lane is None
        take = lane.take

        def counted(client: Any, data: bytes) -> bool:
            is_taken = take(client, data)
            self.taken += is_taken
            return is_taken

        monkeypatch.setattr(lane, "take", counted)

    def prepare(self, change: Callable[[Any], object]) -> None:
        """Do something to both databases."""
        for index in (0, 1):
            client = connect(f"{self._running.url}?db={index}")
            change(client)
            client.close()

    def ask(self, sent: list[list[bytes]]) -> list[bytes]:
        """Have a client for each list send it, piece by piece, all at once; what both servers answer, if that is the same."""
        answers = [self._ask(server, sent) for server in (self._with, self._without)]
        for pieces, *of_both in zip(sent, *answers, strict=True):
            assert of_both[0] == of_both[1], pieces
        return answers[0]

    @staticmethod
    def _ask(server: InProcess, sent: list[list[bytes]]) -> list[bytes]:
        clients = [server.connect() for _ in sent]
        for step in zip_longest(*sent):
            for client, piece in zip(clients, step, strict=True):
                if piece is not None:
                    client.send_what_is_read(piece)
            server.catch_up()  # so most pieces arrive by themselves
        for client in clients:
            client.half_close()
        answers = [_CHANGING.sub(b"*", client.rest()) for client in clients]
        for client in clients:
            client.close()
        return answers

    def stop(self) -> None:
        """Stop both."""
        self._with.stop()
        self._without.stop()


@pytest.fixture
def both(started: Callable[[str], Running], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Both]]:
    """Starts both, with settings."""
    running: list[Both] = []

    def start(**environ: str) -> Both:
        running.append(Both(started("redis"), monkeypatch, **environ))
        return running[-1]

    yield start
    for each in running:
        each.stop()


def spoil(client: Any) -> None:
    """Store what this service has not written, and a document that is too large for a batch of GETs."""
    for number in range(CLIENTS):
        client.hset(f"kv:{{ns}}/foreign{number}", "a", "not JSON")
        client.rpush(f"kv:{{ns}}/list{number}", "x")
        client.hset(f"kv:{{ns}}/large{number}", mapping={"$kv": "1700000000000-0 object", "a": '"' + "x" * 300_000 + '"'})


@pytest.mark.parametrize("draws", [300, pytest.param(DRAWS, marks=pytest.mark.slow)])
def test_random_requests_get_the_same_responses(both: Callable[..., Both], draws: int) -> None:
    servers, draw, sent = both(), random.Random(draws), 0
    servers.prepare(spoil)
    while sent < draws:
        requests = [pieces_of(draw, client) for client in range(CLIENTS)]
        sent += sum(map(len, requests))
        servers.ask(requests)
    assert servers.taken > sent * 0.2  # otherwise this compares nothing


RULES = """
rules = [
  ["/open/**",        "anyone", "anyone", "anyone"],
  ["/users/{sub}/**", "user",   "user",   "user"],
  ["/read/**",        "user",   "nobody", "nobody"],
]
"""
JUDGED = [  # whose token, the request, whether it is permitted
    ("ada", "PUT /users/ada/x", True),
    ("ada", "GET /users/ada/x", True),
    ("ada", "GET /users/bob/x", False),
    ("ada", "PUT /users/bob/x", False),
    ("ada", "GET /read/x", True),
    ("ada", "PUT /read/x", False),
    ("ada", "GET /elsewhere/x", False),
    ("bob", "PUT /users/bob/x", True),
    ("bob", "GET /users/bob/x", True),
    ("bob", "GET /users/ada/x", False),
    ("bob", "PUT /users/ada/x", False),
    ("", "PUT /open/x", True),
    ("", "GET /open/x", True),
    ("", "GET /users/ada/x", False),
    ("", "PUT /users/ada/x", False),
]
EXPIRES_AT_S = in_s(1000)


def judged(who: str, line: str, **claims: Any) -> bytes:
    """A request with a token, which is the same each time; "" for none."""
    fields = f"Authorization: Bearer {signed(sub=who, exp=EXPIRES_AT_S, **claims)}\r\n" if who else ""
    body = OBJECT.decode() if line.startswith("PUT") else ""
    fields += f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n{body}".encode()


def test_the_rules_judge_each_request(both: Callable[..., Both], directory: Path) -> None:
    (directory / "rules.toml").write_text(RULES)
    servers = both(KVSTORE_SECRET=SECRET, KVSTORE_RULES=str(directory / "rules.toml"))
    for _ in range(3):  # what a block of header fields means is known after the first time
        for who, line, is_permitted in JUDGED:
            (answer,) = servers.ask([[judged(who, line)]])
            refused = b"HTTP/1.1 403 " if who else b"HTTP/1.1 401 "
            assert answer.startswith(refused) != is_permitted, (who, line)
    assert servers.taken >= 2 * sum(is_permitted for _, _, is_permitted in JUDGED)


def test_a_token_that_has_expired_is_not_taken(both: Callable[..., Both], monkeypatch: pytest.MonkeyPatch) -> None:
    servers = both(KVSTORE_SECRET=SECRET)
    request = judged("root", "GET /ns/a", roles=["admin"])
    servers.ask([[request], [request]])
    servers.ask([[request]])
    taken = servers.taken
    assert taken
    monkeypatch.setattr(express, "time", lambda: EXPIRES_AT_S + 1.0)
    servers.ask([[request]])
    assert servers.taken == taken


# --- The lane by itself -------------------------------------------------------------------------------------------------

GET_BLOCK, PUT_BLOCK = b"Host: x", b"Host: x\r\nContent-Length: %d" % len(OBJECT)


class Store:
    """Keeps what it is given, until a test settles it."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Any, Callable[[Any, Any], None], Any]] = []
        self.flushed = 0

    def submit(self, command: Any, done: Callable[[Any, Any], None], context: Any) -> None:
        """As PipelinedStore.submit."""
        self.submitted.append((command, done, context))

    def flush(self) -> None:
        """As PipelinedStore.flush."""
        self.flushed += 1


class Client:
    """What the lane has done with a client."""

    def __init__(self) -> None:
        self.stays = True
        self.done: list[Any] = []

    def write(self, response: bytes, _numbers: Any) -> None:
        """As ClientConnection.write."""
        self.done.append(response)

    def answer(self, data: bytes, outcome: Any) -> None:
        """As ClientConnection.answer."""
        self.done.append((data, outcome))

    def start_over(self, data: bytes) -> None:
        """As ClientConnection.start_over."""
        self.done.append(data)

    def cut(self) -> None:
        """As ClientConnection.cut."""
        self.done.append("cut")


class Broken(Client):
    """One whose connection has a bug."""

    def answer(self, data: bytes, outcome: Any) -> None:
        raise RuntimeError("a bug")

    def start_over(self, data: bytes) -> None:
        raise RuntimeError("a bug")


class Alone:
    """A lane that knows two blocks of header fields, on a store that waits."""

    def __init__(self) -> None:
        self.store = Store()
        self.turn: list[Callable[[], None]] = []
        self.now = 0.0
        loop = SimpleNamespace(call_soon=self.turn.append, time=lambda: self.now)
        runtime = SimpleNamespace(store=self.store, rules=None, settings=Settings())
        self.lane = ExpressLane(runtime, loop)  # type: ignore[arg-type]
        self.lane.learn(GET_BLOCK, {"host": "x"}, Get(parse_path(b"/a/b")), None)
        put = Put(parse_path(b"/a/b"), encode(OBJECT), 1000, NONE, 1000)
        self.lane.learn(PUT_BLOCK, {"host": "x", "content-length": str(len(OBJECT))}, put, None)

    def put(self, name: str, client: Client | None = None, body: bytes = OBJECT) -> bool:
        """Have the lane look at a PUT."""
        head = b"PUT /ns/%b HTTP/1.1\r\n%b\r\n\r\n" % (name.encode(), PUT_BLOCK)
        return self.lane.take(client or Client(), head + body)

    def get(self, name: str, client: Client | None = None) -> bool:
        """Have the lane look at a GET."""
        return self.lane.take(client or Client(), b"GET /ns/%b HTTP/1.1\r\n%b\r\n\r\n" % (name.encode(), GET_BLOCK))

    def end_turn(self) -> list[Any]:
        """The commands that are submitted at the end of this turn of the loop."""
        assert len(self.turn) == 1
        self.turn.pop()()
        assert self.store.flushed
        return [command for command, _, _ in self.store.submitted]


def test_the_requests_of_a_turn_are_one_command_for_each_namespace() -> None:
    alone = Alone()
    assert all([alone.put("a"), alone.get("a"), alone.put("b"), alone.get("b"), alone.get("a")])
    puts, gets = alone.end_turn()
    assert list(puts.documents) == ["a", "b"]
    assert gets.names == ["a", "b", "a"]


def test_what_came_later_is_written_later() -> None:
    alone = Alone()
    other = OBJECT.replace(b"1", b"2")
    assert all([alone.put("a"), alone.put("b"), alone.put("a", body=other)])
    first, second = alone.end_turn()
    assert list(first.documents) == ["a", "b"]
    assert second.documents == {"a": encode(other)}


def test_a_command_is_bounded() -> None:
    alone = Alone()
    for number in range(MAX_COALESCED * 2 + 1):
        assert alone.put(str(number))
        assert alone.get(str(number))
    commands = alone.end_turn()
    assert [len(command.documents) for command in commands[:3]] == [MAX_COALESCED, MAX_COALESCED, 1]
    assert [len(command.names) for command in commands[3:]] == [MAX_COALESCED, MAX_COALESCED, 1]


@pytest.mark.parametrize(
    ("headers", "command"),
    [
        ({"host": "x", "content-length": "5"}, Get(parse_path(b"/a/b"))),  # a body follows the head
        ({"host": "x", "transfer-encoding": "chunked"}, Get(parse_path(b"/a/b"))),
        ({"host": "x", "origin": "http://localhost"}, Get(parse_path(b"/a/b"))),
        ({"host": "x", "prefer": "return=minimal"}, Get(parse_path(b"/a/b"))),
        ({"host": "x", "if-match": "*"}, ConditionalGet(parse_path(b"/a/b"), NONE._replace(match="*"))),
    ],
    ids=str,
)
def test_blocks_that_are_not_plain(headers: dict[str, str], command: Any) -> None:
    alone, block = Alone(), b"X-Other: 1"
    alone.lane.learn(block, headers, command, None)
    assert not alone.lane.take(Client(), b"GET /ns/a HTTP/1.1\r\n%b\r\n\r\n" % block)


def test_a_head_that_is_cut_off_is_not_taken() -> None:
    whole = b"PUT /ns/a HTTP/1.1\r\n%b\r\n\r\n%b" % (PUT_BLOCK, OBJECT)
    for length in range(len(whole)):
        assert not Alone().lane.take(Client(), whole[:length]), length
    assert not Alone().lane.take(Client(), whole + b"P")
    assert Alone().lane.take(Client(), whole)


@pytest.mark.parametrize("send", [Alone.get, Alone.put])
def test_a_problem_is_the_answer_to_each(send: Callable[[Alone, str, Client], bool]) -> None:
    alone, clients, problem = Alone(), [Client(), Client()], unavailable("x")
    for number, client in enumerate(clients):
        send(alone, str(number), client)
    alone.end_turn()
    ((_, done, batch),) = alone.store.submitted
    done(batch, problem)
    assert [client.done[0][1] for client in clients] == [problem, problem]


def test_a_bug_in_one_answer_is_no_concern_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, clients = Alone(), [Client(), Client(), Client()]
    for number, client in enumerate(clients):
        alone.get(str(number), client)
    alone.end_turn()
    ((_, done, batch),) = alone.store.submitted
    fields = [b"$kv", b"1700000000000-0 object", b"a", b"1"]
    done(batch, [1, [fields, [b"odd"], fields], [-1, -1, -1]])
    assert clients[1].done == ["cut"]
    assert all(client.done[0].endswith(b'{"a":1}\n') for client in (clients[0], clients[2]))


NOT_READ = [1, [1], [-1]]


@pytest.mark.parametrize(("send", "reply"), [(Alone.get, NOT_READ), (Alone.put, None)], ids=["GET", "PUT"])
def test_what_is_late_is_not_executed_again(send: Callable[[Alone, str, Client], bool], reply: Any) -> None:
    """Two commands that Redis answers slowly would take longer than a client has to wait."""
    for took_s in (LATE_S / 2, LATE_S):
        alone, client = Alone(), Client()
        send(alone, "a", client)
        alone.end_turn()
        ((_, done, batch),) = alone.store.submitted
        alone.now = took_s
        done(batch, reply)
        (said,) = client.done
        if took_s < LATE_S:
            assert said.startswith((b"GET ", b"PUT "))
        else:
            assert said[1].status == 503
            assert said[1].detail.endswith(UNCHANGED)


@pytest.mark.parametrize("reply", [unavailable("x"), None], ids=["a problem", "refused"])
def test_nor_is_one_where_all_fare_alike(reply: Any) -> None:
    alone, clients = Alone(), [Client(), Broken(), Client()]
    for number, client in enumerate(clients):
        alone.put(str(number), client)
    alone.end_turn()
    ((_, done, batch),) = alone.store.submitted
    done(batch, reply)
    assert clients[1].done == ["cut"]
    assert [len(client.done) for client in clients] == [1, 1, 1]
