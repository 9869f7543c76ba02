"""What the tests of PATCH, POST, containers and batches ask again and again, and what they look at in Redis."""

import json
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import redis

from kvstore.commands.base import Command, settled
from kvstore.commands.metrics import ReadMetrics
from kvstore.commands.subscriptions import Follow, FollowMany, LongPoll
from kvstore.core import codec
from kvstore.core.paths import OWN_KEYS, own_key, parse_path
from kvstore.core.settings import Settings
from kvstore.http.messages import Request, Response
from kvstore.http.protocol import parse
from tests.support.clients import Answer, Checked
from tests.support.stores import Running, contents
from tests.support.wires import Wire

Lines = Iterable[tuple[str, str | bytes]]
Result = TypeVar("Result")

MERGE = ("Content-Type", "application/merge-patch+json")
JSON = ("Content-Type", "application/json-patch+json")


def as_body(value: Any) -> bytes:
    """JSON as it is, or the JSON text of a value."""
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False).encode()


def patch(client: Checked, target: str, merge_patch: Any, headers: Lines = ()) -> Answer:
    """A merge patch; a string is JSON text."""
    return client.request("PATCH", target, [MERGE, *headers], as_body(merge_patch))


def json_patch(client: Checked, target: str, operations: Any, headers: Lines = ()) -> Answer:
    """A JSON Patch."""
    return client.request("PATCH", target, [JSON, *headers], as_body(operations))


def touch(client: Checked, target: str, headers: Lines = ()) -> Answer:
    """A PATCH without a body; the target has a ?ttl=."""
    return client.request("PATCH", target, headers)


def post(client: Checked, target: str, document: Any, headers: Lines = ()) -> Answer:
    """Append a document; a string is JSON text."""
    return client.request("POST", target, headers, as_body(document))


def batch(client: Checked, requests: list[Any], *, atomic: bool | None = None, headers: Lines = ()) -> Answer:
    """Several requests in one, as batch_body() takes them."""
    return client.request("POST", "/_/batch", headers, batch_body(requests, atomic=atomic))


def batch_body(requests: list[Any], *, atomic: bool | None = None) -> bytes:
    """The body of a batch: each request as (method, path), (method, path, body) or (method, path, body, headers)."""
    named = [
        request if isinstance(request, dict) else dict(zip(("method", "path", "body", "headers"), request, strict=False))
        for request in requests
    ]
    envelope: dict[str, Any] = {} if atomic is None else {"atomic": atomic}
    return as_body({**envelope, "requests": named})


def listed(client: Checked, target: str) -> list[Any]:
    """All items of a container, page by page, following `next`; each page's Link says the same."""
    items: list[Any] = []
    while target:
        page = client.get(target)
        assert page.status == 200, page
        assert set(page.json) <= {"items", "next"}
        items += page.json["items"]
        following = page.json.get("next", "")
        assert page.headers.get("Link", "") == (f'<{following}>; rel="next"' if following else "")
        assert following != target
        target = following
    return items


def stream(client: Checked, target: str, headers: Lines = ()) -> tuple[Answer, list[Any]]:
    """A container as NDJSON: the answer, and its items. Its header fields are not those that are checked elsewhere."""
    answer = client.adapter.request("GET", target, [("Accept", "application/x-ndjson"), *headers])
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert not answer.body or answer.body.endswith(b"\n")
    return answer, [json.loads(line) for line in answer.body.split(b"\n")[:-1]]


def scripts_run(raw: redis.Redis) -> int:
    """How many scripts Redis has been asked for."""
    return sum(raw.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


def check_dates(one: Answer, other: Answer, store: Running) -> None:
    """Two answers tell of one document: it was written, and expires, at the same time."""
    assert one.headers["Last-Modified"] == other.headers["Last-Modified"]
    sunsets = [parsedate_to_datetime(answer.headers["Sunset"]) for answer in (one, other)]
    assert abs(sunsets[0] - sunsets[1]) <= timedelta(milliseconds=store.clock_ms)


def at_once(ask: Callable[[int], Result], count: int) -> list[Result]:
    """What as many threads get, let go together."""
    gate = threading.Barrier(count)

    def run(number: int) -> Result:
        gate.wait()
        return ask(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def wires_to(client: Checked, count: int) -> list[Wire]:
    """Connections to the command `kvstore`, to send many requests on each without waiting."""
    return [Wire(client.served.at, limit_s=60) for _ in range(count)]


DEFAULTS = Settings()


def command_of(request: Request, settings: Settings = DEFAULTS) -> Command[Any]:
    """The command of a request that the store is needed for."""
    command = parse(request, settings)
    assert not isinstance(command, Follow | FollowMany | LongPoll | ReadMetrics | Response)
    return command


def run_script(raw: redis.Redis, command: Command[Any]) -> Any:
    """What one script of a command comes to: its outcome, or Again."""
    return settled(command.outcome(raw.eval(command.script.text, len(command.keys), *command.keys, *command.arguments)))


def without_ttl(document: Any) -> Any:
    """A document as it was sent."""
    return {name: value for name, value in document.items() if name != "ttl"} if isinstance(document, dict) else document


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1, and the order of members does not count."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


LATE_S = 9  # by which a request may come late on a busy machine


class Left(int):
    """A TTL of so many seconds, of which some may be over: it is equal to what is left."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self - LATE_S <= other <= self

    __hash__ = int.__hash__


def timeless(body: bytes) -> bytes:
    """A document as it was sent, but for the seconds that it has left: they differ from one request to the next."""
    return re.sub(rb'"ttl":\d+}\n$', b'"ttl":0}\n', body)


class Entry(NamedTuple):
    """An entry of the change log, its document as JSON text; None after delete and expire."""

    op: str
    name: str
    id: str
    ttl_ms: int | None
    text: bytes | None


def entries(raw: redis.Redis, namespace: str = "ns", since: str = "-") -> list[Entry]:
    """The change log of a namespace."""
    read = raw.eval("return redis.call('XRANGE', KEYS[1], ARGV[1], '+')", 1, keys_of(namespace).log, since)
    return [_entry(id_.decode(), pairs) for id_, pairs in read]


def unread_entries(raw: redis.Redis, namespace: str = "ns") -> list[Entry]:
    """What was in it until a moment ago, and was erased."""
    read = raw.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, keys_of(namespace).unread)
    return [_entry(pairs[1].decode(), pairs[2:]) for _, pairs in read]


def _entry(id_: str, pairs: list[bytes]) -> Entry:
    op, name = pairs[0].decode(), pairs[1].decode()
    if len(pairs) == 2:
        return Entry(op, name, id_, None, None)
    assert pairs[2] == b"ttl"
    shape, fields = pairs[5][pairs[5].index(b" ") :], pairs[6:]
    if pairs[4] == b"$packed":
        packed, fields = pairs[7], []
        while packed:
            length, _, packed = packed.partition(b":")
            fields.append(packed[: int(length)])
            packed = packed[int(length) + 1 :]
    text = codec.decode([codec.META, id_.encode() + shape, *fields]).text
    if op == "post":  # the entry holds the container's name only: the document's is made of the entry's id
        ms, _, count = id_.partition("-")
        name += ms + chr(ord("a") - 1 + len(count)) + count
    return Entry(op, name, id_, int(pairs[3]), text)


def keys_of(namespace: str) -> Any:
    """The keys of a namespace by name, `log` and the others; `/` is the root's."""
    path = parse_path(f"/{namespace}/x".encode() if namespace != "/" else b"/x")
    return SimpleNamespace(log=path.keys.log, **{name: own_key(path, name) for name in OWN_KEYS})


def documents_and_indexes(raw: redis.Redis) -> dict[bytes, Any]:
    """All that Redis holds, but when a namespace's own keys expire, and logs in which nothing is."""
    held = {}
    for key, (value, expires_at_ms) in contents(raw).items():
        is_own = b"}!" in key
        if not (is_own and key.endswith(b"!log") and not value):
            held[key] = value if is_own else (value, expires_at_ms)
    return held


def expire(raw: redis.Redis, path: str) -> None:
    """Let a document's time be over, as it is in Redis when that happens by itself."""
    at = parse_path(path.encode())
    raw.pexpireat(at.keys.document, 1)
    raw.zadd(own_key(at, "expiry"), {at.name: 1})  # who follows it looks at once
