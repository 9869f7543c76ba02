"""The service against a plain dict: hypothesis thinks up requests, and every answer must be what the dict says.

KVSTORE_MODEL_SECONDS=600 runs it for that long on each lane, with other requests each time. What it cannot know, entity-tags
and times, is checked by rules: a write makes a tag that never was there before, a TTL is what was asked.
"""

import copy
import json
import os
import time
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from kvstore.core.settings import YEAR_S
from tests.support.asking import JSON, LATE_S, MERGE, as_body, batch, entries, expire, listed, same, stream, without_ttl
from tests.support.clients import Answer, Checked

SECONDS = float(os.environ.get("KVSTORE_MODEL_SECONDS", "0"))
SHORT_S = 2.5  # on each lane, where the variable is not set

PATHS = ["/ns/a", "/ns/a/b", "/ns/a!", "/ns/a%2Fb", "/ns/b", "/ns/b/c/d", "/ns/b/c/e", "/a", "/", "/other/a"]
CONTAINERS = ["/ns/", "/ns/a/", "/ns/b/", "/ns/b/c/", "/ns/q/", "/other/", "/none/"]
LARGEST = 2**63 - 1

names = st.sampled_from(["a", "b", "n", "$kv", "", "é"])
scalars = st.sampled_from([None, True, 0, 1, -7, LARGEST, 2**70, "x", "1", ""])
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3), max_leaves=5
)
objects = st.dictionaries(names, json_values, max_size=4)
documents = objects | json_values
increments = st.sampled_from([1, -1, 5, LARGEST])
paths = st.sampled_from(PATHS)
containers = st.sampled_from(CONTAINERS)
ttls = st.sampled_from([None, 90, 1000, 86_400])
preconditions = st.sampled_from(["none", "none", "none", "match", "match any", "match other", "none match", "none match any"])
pointers = st.sampled_from(["", "/a", "/b", "/n", "/a/b", "/a/0", "/a/-", "/b/a", "/c", "/"])
operations = st.one_of(
    st.builds(lambda path, value: {"op": "add", "path": path, "value": value}, pointers, json_values),
    st.builds(lambda path, value: {"op": "replace", "path": path, "value": value}, pointers, json_values),
    st.builds(lambda path, value: {"op": "test", "path": path, "value": value}, pointers, json_values),
    st.builds(lambda path: {"op": "remove", "path": path}, pointers),
    st.builds(lambda op, path, at: {"op": op, "path": path, "from": at}, st.sampled_from(["move", "copy"]), pointers, pointers),
)


class Stored:
    """A document of the model."""

    def __init__(self, value: Any, tag: str, ttl_s: int) -> None:
        self.value, self.tag, self.ttl_s = value, tag, ttl_s
        self.since = time.monotonic()

    def has_ttl(self, ttl_s: int) -> bool:
        """Whether that is what is left of its TTL."""
        passed = time.monotonic() - self.since
        return self.ttl_s - passed - LATE_S <= ttl_s <= self.ttl_s


# --- What the RFCs say --------------------------------------------------------------------------------------------------


class Refused(Exception):
    """A patch that cannot be applied; its status."""


def merged(target: Any, merge_patch: Any) -> Any:
    """RFC 7396 section 2."""
    if not isinstance(merge_patch, dict):
        return merge_patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in merge_patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def patched(document: Any, sent: list[Any]) -> Any:
    """RFC 6902, the simplest that can be."""
    root = {"root": copy.deepcopy(document)}

    def walk(pointer: str) -> tuple[Any, str]:
        at: Any = root
        *parents, last = ["root", *pointer.split("/")[1:]]
        for token in parents:
            at = at[index(at, token)]
        return at, last

    def index(at: Any, token: str, *, beyond: int = 0) -> Any:
        if isinstance(at, dict):
            return token
        if not isinstance(at, list) or not token.isdigit() or int(token) >= len(at) + beyond:
            raise Refused(422)
        return int(token)

    def get(pointer: str) -> Any:
        at, last = walk(pointer)
        return at[index(at, last)]

    def add(pointer: str, value: Any) -> None:
        at, last = walk(pointer)
        if isinstance(at, list):
            at.insert(len(at) if last == "-" else index(at, last, beyond=1), value)
        else:
            at[index(at, last)] = value

    def remove(pointer: str) -> None:
        at, last = walk(pointer)
        del at[index(at, last)]

    try:
        for operation in sent:
            op, path = operation["op"], operation["path"]
            if op == "test":
                if not same(get(path), operation["value"]):
                    raise Refused(409)
            elif op == "remove":
                remove(path)
            elif op == "replace":
                get(path)
                at, last = walk(path)
                at[index(at, last)] = copy.deepcopy(operation["value"])
            elif op == "add":
                add(path, copy.deepcopy(operation["value"]))
            else:
                value = copy.deepcopy(get(operation["from"]))
                if op == "move":
                    if path.startswith(operation["from"] + "/"):
                        raise Refused(422)
                    remove(operation["from"])
                add(path, value)
    except KeyError:
        raise Refused(422) from None
    if "root" not in root:
        raise Refused(422)
    return root["root"]


def counted(there: Any, value: Any) -> Any:
    """An object with the increments in it added to what is there."""
    if not isinstance(value, dict):
        return value
    result = {}
    for name, member in value.items():
        if isinstance(member, dict) and ".sv" in member:
            stored = there.get(name, 0) if isinstance(there, dict) else 0
            total = stored + member[".sv"]["increment"] if type(stored) is int else None
            if total is None or not -LARGEST - 1 <= stored <= LARGEST or not -LARGEST - 1 <= total <= LARGEST:
                raise Refused(422)
            member = total  # noqa: PLW2901
        result[name] = member
    return result


# --- The machine --------------------------------------------------------------------------------------------------------

Wanted = tuple[str, str, list[tuple[str, str]], bytes]  # method, target, headers, body


class Machine(RuleBasedStateMachine):
    """Rules make a request, ask the dict what the answer must be, and compare."""

    client: Checked
    raw: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Stored] = {}
        self.tags: set[tuple[str, str]] = set()
        self.gone = '"1-1"'  # an entity-tag that was there once
        self.keys = 0

    @initialize()
    def empty(self) -> None:
        self.raw.flushall()

    # Requests, and what the dict says of them

    def conditional(self, path: str, kind: str) -> tuple[list[tuple[str, str]], bool]:
        """The header of a precondition, and whether it holds."""
        there = self.stored.get(path)
        tag = there.tag if there else self.gone
        other = self.gone if self.gone != tag else '"1-1"'  # another namespace's tag may be the same
        return {
            "none": ([], True),
            "match": ([("If-Match", tag)], there is not None),
            "match any": ([("If-Match", "*")], there is not None),
            "match other": ([("If-Match", f'"x", {other}')], False),
            "none match": ([("If-None-Match", tag)], there is None),
            "none match any": ([("If-None-Match", "*")], there is None),
        }[kind]

    def wrote(self, path: str, answer: Answer, value: Any, ttl_s: int) -> None:
        """Hold the answer to a write against what must be stored now."""
        self.noted(path, answer.tag, value, ttl_s)
        check_document(answer.json, self.stored[path])
        if answer.status == 201:
            assert answer.headers["Location"] == path

    def noted(self, path: str, tag: str, value: Any, ttl_s: int) -> None:
        namespace = path.split("/")[1] if path.count("/") > 1 else "/"
        assert (namespace, tag) not in self.tags, "a tag comes twice"
        self.tags.add((namespace, tag))
        self.stored[path] = Stored(value, tag, ttl_s)

    def forget(self, path: str) -> None:
        self.gone = self.stored.pop(path).tag

    def write(self, path: str, wanted: Wanted, kind: str, *, change: Any, ttl_s: int | None, once: bool) -> None:
        """A write of one document, perhaps with an Idempotency-Key, and then again."""
        method, target, headers, body = wanted
        condition, holds = self.conditional(path, kind)
        headers = [*headers, *condition]
        if once:
            self.keys += 1
            headers.append(("Idempotency-Key", f"k{self.keys}"))
        there = self.stored.get(path)
        answer = self.client.request(method, target, headers, body)
        status, value = outcome(change, there) if holds else (412, None)
        assert answer.status == status, (answer, wanted, there and there.value)
        if status == 412:
            assert answer.json["etag"] == (there.tag if there else None)
            if there:
                check_document(answer.json["current"], there)
        elif status < 300:
            kept = there if method == "PATCH" and ttl_s is None else None
            self.wrote(path, answer, value, kept.ttl_s if kept else ttl_s or YEAR_S)
            if kept:
                self.stored[path].since = kept.since
        if once:
            again = self.client.request(method, target, headers, body)
            assert (again.status, again.body, again.headers.get("ETag")) == (
                answer.status,
                answer.body,
                answer.headers.get("ETag"),
            )
            assert again.headers["Idempotency-Replayed"] == "true"

    @rule(path=paths, document=documents, ttl_s=ttls, kind=preconditions, once=st.booleans(), by=increments | st.none())
    def put(self, *, path: str, document: Any, ttl_s: int | None, kind: str, once: bool, by: int | None) -> None:
        if by is not None and isinstance(document, dict):
            document = {**document, "n": {".sv": {"increment": by}}}
        headers: list[tuple[str, str]] = []
        wanted = ("PUT", path + (f"?ttl={ttl_s}" if ttl_s else ""), headers, dumped(document))
        self.write(path, wanted, kind, change=lambda there, _: counted(there, document), ttl_s=ttl_s, once=once)

    @rule(path=paths, merge_patch=documents, ttl_s=ttls, kind=preconditions, once=st.booleans(), by=increments | st.none())
    def merge(self, *, path: str, merge_patch: Any, ttl_s: int | None, kind: str, once: bool, by: int | None) -> None:
        counts = by is not None and isinstance(merge_patch, dict)
        if counts:
            merge_patch = {**merge_patch, "n": 0}

        def change(there: Any, _: bool) -> Any:
            result = merged(there, merge_patch)
            return {**result, **counted(there, {"n": {".sv": {"increment": by}}})} if counts else result

        sent = {**merge_patch, "n": {".sv": {"increment": by}}} if counts else merge_patch
        body = {**sent, "ttl": ttl_s} if isinstance(sent, dict) and ttl_s else sent
        query = f"?ttl={ttl_s}" if ttl_s and body is sent else ""
        self.write(path, ("PATCH", path + query, [MERGE], dumped(body)), kind, change=change, ttl_s=ttl_s, once=once)

    @rule(path=paths, sent=st.lists(operations, max_size=3), ttl_s=ttls, kind=preconditions, once=st.booleans())
    def json_patch(self, path: str, sent: list[Any], ttl_s: int | None, kind: str, once: bool) -> None:
        def change(there: Any, exists: bool) -> Any:
            if not exists:
                raise Refused(404)
            return patched(there, sent)

        query = f"?ttl={ttl_s}" if ttl_s else ""
        self.write(path, ("PATCH", path + query, [JSON], dumped(sent)), kind, change=change, ttl_s=ttl_s, once=once)

    @rule(path=paths, ttl_s=st.sampled_from([90, 1000]), kind=preconditions)
    def touch(self, path: str, ttl_s: int, kind: str) -> None:
        condition, holds = self.conditional(path, kind)
        answer = self.client.request("PATCH", f"{path}?ttl={ttl_s}", condition)
        there = self.stored.get(path)
        if not holds or there is None:
            assert answer.status == (412 if not holds else 404)
            return
        assert (answer.status, answer.tag) == (200, there.tag)
        there.ttl_s, there.since = ttl_s, time.monotonic()
        check_document(answer.json, there)

    @rule(path=paths, kind=preconditions, once=st.booleans())
    def delete(self, path: str, kind: str, once: bool) -> None:
        condition, holds = self.conditional(path, kind)
        self.keys += 1
        headers = [*condition, *([("Idempotency-Key", f"k{self.keys}")] if once else [])]
        answer = self.client.delete(path, headers)
        assert answer.status == (404 if path not in self.stored else 204 if holds else 412)
        if answer.status == 204:
            self.forget(path)
        assert not once or self.client.delete(path, headers).status == answer.status

    @rule(container=st.sampled_from(["/ns/q", "/ns/", "/other", "/"]), document=documents, ttl_s=ttls)
    def post(self, container: str, document: Any, ttl_s: int | None) -> None:
        answer = self.client.request("POST", container + (f"?ttl={ttl_s}" if ttl_s else ""), [], dumped(document))
        assert answer.status == 201
        path = answer.headers["Location"]
        assert path.startswith(container.rstrip("/") + "/")
        assert answer.json == {"path": path, "etag": answer.tag, "ttl": ttl_s or YEAR_S}
        earlier = [p for p in self.stored if p.rpartition("/")[0] == path.rpartition("/")[0] and is_appended(p)]
        assert path > max(earlier, default="")
        self.noted(path, answer.tag, document, ttl_s or YEAR_S)

    @precondition(lambda self: self.stored)
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.stored)))
        expire(self.raw, path)
        self.forget(path)

    @rule(container=containers)
    def parse_delete_recursive(self, container: str) -> None:
        answer = self.client.delete(f"{container}?recursive")
        below = [path for path in self.stored if path.startswith(container)]
        assert (answer.status, answer.json) == (200, {"deleted": len(below)})
        for path in below:
            self.forget(path)

    # Batches

    @rule(atomic=st.booleans(), data=st.data())
    def batched(self, atomic: bool, data: st.DataObject) -> None:
        here = st.sampled_from([path for path in PATHS if path.startswith("/ns/")] if atomic else PATHS)
        kinds = st.sampled_from(["PUT", "PATCH", "count", "nested", "DELETE", "GET"])
        steps = data.draw(st.lists(st.tuples(kinds, here, objects, preconditions), max_size=6))
        touched: set[str] = set()
        requests: list[Any] = []
        before = dict(self.stored)
        expected: list[tuple[str, int, Any]] = []
        for kind, path, document, condition in steps:
            if kind != "GET" and path in touched:
                continue  # a patch that must read first is refused there, which has a test of its own
            touched.add(path) if kind != "GET" else None
            headers, holds = self.conditional(path, condition if kind != "GET" else "none")
            there = self.stored.get(path)
            method = {"count": "PATCH", "nested": "PATCH"}.get(kind, kind)
            body: Any = {
                "PUT": document,
                "PATCH": document,
                "count": {"n": {".sv": {"increment": 1}}},
                "nested": {"a": document},
            }.get(kind)
            requests.append(
                (method, path, body, dict(headers)) if method in ("PUT", "PATCH") else (method, path, None, dict(headers))
            )
            expected.append((path, *self.judge(method, kind, there, body, holds=holds)))
            if method == "GET" and path in touched:
                expected[-1] = (path, expected[-1][1], "whatever")
        if any(kind == "GET" and path in touched for kind, path, _, _ in steps):
            return  # what a GET sees depends on the order; test_batch has that
        answer = batch(self.client, requests, atomic=atomic)
        refused = [number for number, (_, status, _) in enumerate(expected) if status >= 400]
        if atomic and refused:
            assert answer.status == 409
            index = answer.json["index"]
            assert index in refused
            assert answer.json["problem"]["status"] == expected[index][1]
            self.stored = before
            return
        assert answer.status == 200, answer
        for (path, status, value), response in zip(expected, answer.json["responses"], strict=True):
            assert response["status"] == status, (path, response)
            if status == 204:
                self.forget(path)
            elif value is not None and status < 300:
                self.batch_wrote(path, value, response)

    def judge(self, method: str, kind: str, there: Stored | None, body: Any, *, holds: bool) -> tuple[int, Any]:
        """The status of a request of a batch, and the document that it writes, None for none."""
        if method == "GET":
            return (200 if there else 404), None
        if method == "DELETE":
            return (404 if there is None else 204 if holds else 412), None
        if not holds:
            return 412, None

        def change(value: Any, _: bool) -> Any:
            if kind == "count":
                return {**(value if isinstance(value, dict) else {}), **counted(value, body)}
            return body if method == "PUT" else merged(value, body)

        status, result = outcome(change, there)
        return status, (result, None if method == "PATCH" and there else YEAR_S)

    def batch_wrote(self, path: str, value: Any, response: Any) -> None:
        document, ttl_s = value
        there = self.stored.get(path)
        self.noted(path, response["headers"]["ETag"], document, ttl_s or (there.ttl_s if there else 0))
        if ttl_s is None and there:
            self.stored[path].since = there.since
        check_document(response["body"], self.stored[path])

    # Reads

    @rule(path=paths, kind=preconditions, head=st.booleans())
    def get(self, path: str, kind: str, head: bool) -> None:
        headers, holds = self.conditional(path, kind)
        answer = self.client.request("HEAD" if head else "GET", path, headers)
        there = self.stored.get(path)
        if there is None:
            assert answer.status == 404
            return
        failed = 304 if kind.startswith("none match") else 412
        assert answer.status == (200 if holds else failed)
        if answer.status == 200:
            assert answer.tag == there.tag
            if not head:
                check_document(answer.json, there)

    @rule(
        container=containers,
        limit=st.sampled_from([1, 2, 3, 100]),
        recursive=st.booleans(),
        descending=st.booleans(),
        how=st.sampled_from(["values", "keys", "stream"]),
    )
    def lists(self, container: str, limit: int, recursive: bool, descending: bool, how: str) -> None:
        query = "&recursive" * recursive + "&order=desc" * descending + "&keys" * (how == "keys")
        target = f"{container}?limit={limit}{query}"
        items = stream(self.client, target)[1] if how == "stream" else listed(self.client, target)
        names: dict[str, str | None] = {}
        for path in self.stored:
            if path.startswith(container) and path != container:
                name, slash, _ = path.removeprefix(container).partition("/")
                names[path.removeprefix(container) if recursive else name + slash] = path if recursive or not slash else None
        ordered = sorted(names, key=str.encode, reverse=descending)
        assert [item["name"] for item in items] == ordered
        for item in items:
            found = names[item["name"]]
            assert item["path"] == container + item["name"]
            if found is None:
                assert set(item) == {"name", "path"}
                continue
            there = self.stored[found]
            assert item["etag"] == there.tag
            assert there.has_ttl(item["ttl"])
            assert ("value" in item) == (how != "keys")
            assert how == "keys" or same(item["value"], there.value)

    @rule()
    def root(self) -> None:
        items = listed(self.client, "/?list&limit=3")
        names = {path[1:].partition("/")[0] + path[1:].partition("/")[1] for path in self.stored if path != "/"}
        assert [item["name"] for item in items] == sorted(names, key=str.encode)

    @rule(container=containers, data=st.data())
    def tags_of_containers(self, container: str, data: st.DataObject) -> None:
        tag = self.client.get(container).tag
        assert self.client.get(container, [("If-None-Match", tag)]).status == 304
        here = [path for path in self.stored if path.startswith(container)]
        if here:
            path = data.draw(st.sampled_from(sorted(here)))
            if data.draw(st.booleans()):
                expire(self.raw, path)
            else:
                assert self.client.delete(path).status == 204
            self.forget(path)
            assert self.client.get(container, [("If-None-Match", tag)]).status == 200

    # What is always so

    @invariant()
    def every_document_is_there(self) -> None:
        if self.keys % 5:
            return
        for path, there in self.stored.items():
            answer = self.client.get(path)
            assert (answer.status, answer.tag) == (200, there.tag), path
            check_document(answer.json, there)

    def teardown(self) -> None:
        for namespace in ("ns", "/", "other"):
            last: dict[str, Any] = {}
            log = entries(self.raw, namespace)
            assert [entry.id for entry in log] == sorted(
                (entry.id for entry in log), key=lambda i: tuple(map(int, i.split("-")))
            )
            for entry in log:
                last[entry.name] = entry
            for path, there in self.stored.items():
                at = path[1:] if namespace == "/" else path.removeprefix(f"/{namespace}/")
                if (namespace == "/") == (path.count("/") == 1) and (namespace == "/" or path.startswith(f"/{namespace}/")):
                    assert f'"{last[at].id}"' == there.tag, "the log's last word on a document is what is stored"
                    assert same(json.loads(last[at].text), there.value)


def outcome(change: Any, there: Stored | None) -> tuple[int, Any]:
    """The status of a write whose precondition holds, and what it makes of what is there."""
    try:
        value = change(there.value if there else None, there is not None)
    except Refused as refused:
        return refused.args[0], None
    return (200 if there else 201), value


def check_document(shown: Any, there: Stored) -> None:
    """A document as an answer shows it."""
    assert same(without_ttl(shown), there.value), (shown, there.value)
    if isinstance(there.value, dict):
        assert there.has_ttl(shown["ttl"]), (shown["ttl"], there.ttl_s)


def dumped(value: Any) -> bytes:
    return as_body(json.dumps(value, ensure_ascii=False))


def is_appended(path: str) -> bool:
    return path.rpartition("/")[2][:13].isdigit()


@pytest.mark.parametrize("lane", [("flask", "valkey"), ("served", "redis")], ids="-".join, indirect=True)
def test_as_a_dict(client: Checked, raw: redis.Redis) -> None:
    """Whatever is asked in whatever order, the service answers as a dict would."""

    def machine() -> Machine:
        made = Machine()
        made.client, made.raw = client, raw
        return made

    until = time.monotonic() + (SECONDS or SHORT_S)
    while time.monotonic() < until:
        run_state_machine_as_test(
            machine,  # type: ignore[arg-type]  # what makes one does as well
            settings=settings(
                max_examples=200 if SECONDS else 8,
                derandomize=not SECONDS,  # or the same requests would come again and again
                stateful_step_count=60 if SECONDS else 40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
