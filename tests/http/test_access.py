"""Access rules over HTTP: who is refused, and that nothing leaks to those who may write and not read."""

import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from time import monotonic
from typing import Any

import pytest
import redis

from tests.support.access import ADMIN, RULED, RULED_LANES, Ruled, by
from tests.support.clients import Answer, Checked
from tests.support.lanes import on
from tests.support.stores import Running

ROWS: list[list[Any]] = [
    ["/drop/**", "nobody", "user", "user"],
    ["/signed/**", "user", "user", "user", {"by": "{sub}"}],
    ["/half/$x/**", "in:/readers/$x/", "user", "user"],
    ["/rooms/$room/**", "in:/members/$room/", "in:/members/$room/", "in:/members/$room/"],
    ["/own/{sub}/**", "user", "user", "user"],
    ["/public/**", "anyone", "user", "role:editor"],
    ["/minutes/**", "anyone", "post:user role:editor", "nobody"],
]
ADA, EVE = {"sub": "ada"}, {"sub": "eve"}
EDITOR = {"sub": "ed", "roles": ["editor"]}
SECRET = "s3cr3t"
STORED = json.dumps({"value": SECRET, "n": 8647})

Ask = Callable[..., Answer]

on_ruled = on(RULED_LANES)


@pytest.fixture(scope="module")
def opened_ruled(started: Callable[[str], Running]) -> Iterator[Callable[[str, str], Checked]]:
    """The client of a lane, of a service with ROWS, made when first asked for."""
    clients: dict[tuple[str, str], Checked] = {}

    def open_client(adapter: str, store: str) -> Checked:
        if (adapter, store) not in clients:
            clients[adapter, store] = Ruled(RULED[adapter](started(store), ROWS))
        return clients[adapter, store]

    yield open_client
    for client in clients.values():
        client.close()


@pytest.fixture
def ruled(lane: tuple[str, str], store: Running, opened_ruled: Callable[[str, str], Checked]) -> Checked:
    """A client of a service with ROWS, on an empty store."""
    assert store
    return opened_ruled(*lane)


@pytest.fixture
def ask(ruled: Checked) -> Ask:
    """A request by somebody with claims."""

    def send(claims: Any, method: str, target: str, body: Any = None, **fields: str) -> Answer:
        headers = [(name.replace("_", "-"), value) for name, value in fields.items()]
        content = b"" if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        return ruled.request(method, target, [*by(claims), *headers], content)

    return send


# Who asks, method, target, status on something that is stored.
TABLE = [
    (None, "GET", "/public/a", 200),
    (None, "HEAD", "/public/a", 200),
    (None, "GET", "/public/", 200),
    (None, "GET", "/public/?recursive", 200),
    (None, "PUT", "/public/a", 401),
    (None, "POST", "/public/", 401),
    (None, "DELETE", "/public/a", 401),
    (None, "DELETE", "/public/?recursive", 401),
    (None, "GET", "/own/ada/a", 401),
    (None, "GET", "/elsewhere/a", 401),
    (None, "GET", "/?list", 401),
    (None, "OPTIONS", "/own/ada/a", 204),
    (ADA, "GET", "/public/a", 200),
    (ADA, "POST", "/public/", 201),
    (ADA, "PUT", "/public/a", 403),
    (ADA, "PATCH", "/public/a", 403),
    (ADA, "DELETE", "/public/a", 403),
    (ADA, "GET", "/own/ada/a", 200),
    (ADA, "PUT", "/own/ada/a", 200),
    (ADA, "PATCH", "/own/ada/a", 200),
    (ADA, "DELETE", "/own/ada/a", 204),
    (ADA, "GET", "/own/ada/", 200),
    (ADA, "GET", "/own/eve/a", 403),
    (ADA, "GET", "/own/", 403),
    (ADA, "DELETE", "/own/ada/?recursive", 200),
    (ADA, "DELETE", "/own/eve/?recursive", 403),
    (ADA, "GET", "/elsewhere/a", 403),
    (ADA, "GET", "/?list", 403),
    (ADA, "GET", "/rooms/1/a", 200),
    (ADA, "PUT", "/rooms/1/a", 200),
    (ADA, "PATCH", "/rooms/1/a", 200),
    (ADA, "POST", "/rooms/1/", 201),
    (ADA, "GET", "/rooms/1/", 200),
    (ADA, "POST", "/rooms/1/?lease=5", 200),
    (ADA, "GET", "/rooms/1/?changes", 200),
    (ADA, "GET", "/rooms/1/a?changes", 200),
    (ADA, "GET", "/rooms/1/a?at=1-1", 404),
    (ADA, "GET", "/rooms/2/a", 403),
    (ADA, "GET", "/rooms/2/a?changes", 403),
    (ADA, "GET", "/rooms/2/a?at=1-1", 403),
    (ADA, "GET", "/rooms/?changes", 403),
    (ADA, "GET", "/rooms/", 403),
    (EVE, "GET", "/rooms/1/a", 403),
    (EVE, "PUT", "/rooms/1/a", 403),
    (EVE, "POST", "/rooms/1/", 403),
    (EVE, "POST", "/rooms/1/?lease=5", 403),
    (EVE, "GET", "/rooms/1/", 403),
    (EDITOR, "PUT", "/public/a", 200),
    (EDITOR, "PATCH", "/public/a", 200),
    (EDITOR, "DELETE", "/public/a", 204),
    (EDITOR, "DELETE", "/public/?recursive", 200),
    (EDITOR, "POST", "/public/?lease=5", 200),
    (ADMIN, "GET", "/elsewhere/a", 200),
    (ADMIN, "PUT", "/elsewhere/a", 200),
    (ADMIN, "GET", "/?list", 200),
    (ADMIN, "DELETE", "/own/?recursive", 200),
    ({"sub": "s", "allow": [["/elsewhere/**", "read"]]}, "GET", "/elsewhere/", 200),
    ({"sub": "s", "allow": [["/elsewhere/**", "read"]]}, "PUT", "/elsewhere/a", 403),
    ({"allow": [["/elsewhere/**", "remove"]]}, "GET", "/public/a", 401),
]


def fill(ask: Ask) -> None:
    """Documents to ask for, and a member of a room."""
    for path in (
        "/public/a",
        "/own/ada/a",
        "/own/eve/a",
        "/elsewhere/a",
        "/rooms/1/a",
        "/rooms/2/a",
        "/drop/a",
        "/members/1/ada",
    ):
        assert ask(ADMIN, "PUT", path, STORED).status == 201


@on_ruled
@pytest.mark.parametrize(("claims", "method", "target", "status"), TABLE)
def test_who_may_do_what(ask: Ask, claims: Any, method: str, target: str, status: int) -> None:
    """A refusal is 401 without a token, and 403 with one."""
    fill(ask)
    body = {"a": 1} if method in ("PUT", "PATCH") or (method == "POST" and "lease" not in target) else None
    answer = ask(claims, method, target, body)
    assert answer.status == status
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


# --- Nothing leaks ------------------------------------------------------------------------------------------------------

PUT = {"method": "PUT", "path": "/drop/a", "body": {"a": 1}}
CREATE = PUT | {"headers": {"If-None-Match": "*"}}
SHOW = {"Prefer": "return=representation"}
INCREMENT = {"n": {".sv": {"increment": 1}}}

# What somebody who may write and not read sends, and the status where something is stored and where nothing is.
WRITES: dict[str, tuple[str, str, dict[str, str], Any, int, int]] = {
    "PUT": ("PUT", "/drop/a", {}, {"a": 1}, 200, 201),
    "PUT that asks for the document": ("PUT", "/drop/a", SHOW, {"a": 1}, 200, 201),
    "PUT of a timestamp": ("PUT", "/drop/a", SHOW, {"a": {".sv": "timestamp"}}, 200, 201),
    "PUT that creates": ("PUT", "/drop/a", {"If-None-Match": "*"}, {"a": 1}, 412, 201),
    "PUT once": ("PUT", "/drop/a", {"Idempotency-Key": "k"}, {"a": 1}, 200, 201),
    "POST": ("POST", "/drop/", {}, {"a": 1}, 201, 201),
    "POST that asks for the document": ("POST", "/drop/", SHOW, {"a": 1}, 201, 201),
    "DELETE": ("DELETE", "/drop/a", {}, None, 204, 404),
    "DELETE below": ("DELETE", "/drop/?recursive", {}, None, 200, 200),
    "a batch": ("POST", "/_/batch", {}, {"requests": [PUT]}, 200, 200),
    "a batch that creates": ("POST", "/_/batch", {}, {"requests": [CREATE]}, 409, 200),
    "a batch that creates each": ("POST", "/_/batch", {}, {"atomic": False, "requests": [CREATE]}, 200, 200),
    "a batch that asks": ("POST", "/_/batch", {}, {"requests": [PUT | {"headers": SHOW}]}, 200, 200),
    # What tells by its outcome what is stored needs the right to read.
    "GET": ("GET", "/drop/a", {}, None, 403, 403),
    "HEAD": ("HEAD", "/drop/a", {}, None, 403, 403),
    "GET of the container": ("GET", "/drop/", {}, None, 403, 403),
    "GET of the container under its tag": ("GET", "/drop/", {"If-None-Match": '"1-0"'}, None, 403, 403),
    "its history": ("GET", "/drop/a?changes", {}, None, 403, 403),
    "the document as it was": ("GET", "/drop/a?at=1-1", {}, None, 403, 403),
    "the history of the container": ("GET", "/drop/?changes", {}, None, 403, 403),
    "a stream": ("GET", "/drop/a", {"Accept": "text/event-stream"}, None, 403, 403),
    "a stream that resumes": ("GET", "/drop/", {"Accept": "text/event-stream", "Last-Event-ID": "1-0"}, None, 403, 403),
    "a wait": ("GET", "/drop/a", {"Prefer": "wait=1"}, None, 403, 403),
    "PUT of an increment": ("PUT", "/drop/a", {}, INCREMENT, 403, 403),
    "PUT under a tag": ("PUT", "/drop/a", {"If-Match": '"1-0"'}, {"a": 1}, 403, 403),
    "PUT on anything": ("PUT", "/drop/a", {"If-Match": "*"}, {"a": 1}, 403, 403),
    "PUT unless it has a tag": ("PUT", "/drop/a", {"If-None-Match": '"1-0"'}, {"a": 1}, 403, 403),
    "PUT unless it is newer": ("PUT", "/drop/a", {"If-Unmodified-Since": "Sat, 21 Nov 2026 11:37:30 GMT"}, {"a": 1}, 403, 403),
    "PATCH": ("PATCH", "/drop/a", {}, {"a": 1}, 403, 403),
    "PATCH of an increment": ("PATCH", "/drop/a", {}, INCREMENT, 403, 403),
    "nested PATCH": ("PATCH", "/drop/a", {}, {"a": {"b": 1}}, 403, 403),
    "touch": ("PATCH", "/drop/a?ttl=90", {}, None, 403, 403),
    "DELETE under a tag": ("DELETE", "/drop/a", {"If-Match": '"1-0"'}, None, 403, 403),
    "take": ("POST", "/drop/?lease=5", {}, None, 403, 403),
    "take and wait": ("POST", "/drop/?lease=5&wait=1", {}, None, 403, 403),
    "extend": ("PATCH", "/drop/a?lease=5", {"If-Match": '"1-0"'}, None, 403, 403),
}


@on_ruled
@pytest.mark.parametrize("name", WRITES)
def test_nothing_stored_is_shown_to_a_writer(ask: Ask, name: str) -> None:
    """No value, no entity-tag but that of the own write, and the same refusal whether something is stored or not."""
    method, target, fields, body, status, status_on_nothing = WRITES[name]
    on_nothing = ask(EVE, method, target, body, **fields)
    assert ask(ADMIN, "DELETE", "/drop/?recursive").status == 200
    stored = ask(ADMIN, "PUT", "/drop/a", STORED)
    answer = ask(EVE, method, target, body, **(fields | ({"Idempotency-Key": "other"} if "Idempotency-Key" in fields else {})))
    assert (answer.status, on_nothing.status) == (status, status_on_nothing)
    for each in (answer, on_nothing):
        told = f"{each.headers}{each.body!r}"
        assert SECRET not in told
        assert stored.tag.strip('"') not in told
        assert "8647" not in told
        assert "current" not in told
        assert "value" not in told
    if status == 403:
        assert answer.body == on_nothing.body
        assert answer.headers | {"date": ""} == on_nothing.headers | {"date": ""}
    if method == "PUT" and status == 200:
        assert answer.tag == ask(ADMIN, "GET", target).tag


@on_ruled
def test_an_own_append_is_acknowledged(ask: Ask) -> None:
    """Path, entity-tag and TTL, whatever the client prefers."""
    for fields in ({}, SHOW):
        answer = ask(EVE, "POST", "/drop/", {"a": 1}, **fields)
        assert list(answer.json) == ["path", "etag", "ttl"]
        assert answer.json["path"] == answer.headers["Location"]
        assert answer.json["etag"] == answer.tag


@on_ruled
def test_who_may_only_post_chooses_no_name(ask: Ask) -> None:
    """Alone, in a batch and with a key; whoever may append otherwise may do both."""
    name = "/minutes/1795260845967a0"
    creation = {"method": "PUT", "path": name, "headers": {"If-None-Match": "*"}, "body": 1}
    refused = ask(ADA, "PUT", name, 1, if_none_match="*", idempotency_key="k")
    assert (refused.status, refused.json["detail"]) == (403, f"the rules do not permit you to create {name}")
    in_batch = ask(ADA, "POST", "/_/batch", {"requests": [creation], "atomic": False})
    assert [part["status"] for part in in_batch.json["responses"]] == [403]
    assert ask(ADA, "PUT", name, 1).status == 403
    assert ask(None, "POST", "/minutes/", 1).status == 401
    assert ask(ADA, "POST", "/minutes/", 1, idempotency_key="k").status == 201
    assert ask(ADA, "POST", "/_/batch", {"requests": [{"method": "POST", "path": "/minutes/", "body": 2}]}).status == 200
    assert [item["value"] for item in ask(ADA, "GET", "/minutes/").json["items"]] == [1, 2]
    assert ask(EDITOR, "PUT", name, 3, if_none_match="*").status == 201
    assert ask(EDITOR, "POST", "/minutes/", 4).status == 201


@on_ruled
def test_many_writes_at_once_show_nothing(ask: Ask) -> None:
    """The fast path of batches is for those who may read."""
    requests = [{"method": "PUT", "path": f"/drop/{number}", "body": {"n": number}} for number in range(3)]
    answer = ask(EVE, "POST", "/_/batch", {"requests": requests})
    assert [part["body"] for part in answer.json["responses"]] == [None] * 3
    assert [part["status"] for part in answer.json["responses"]] == [201] * 3
    assert all("ETag" in part["headers"] for part in answer.json["responses"])
    mixed = [*requests[:1], {"method": "PUT", "path": "/public/x", "body": {"n": 1}}, {"method": "GET", "path": "/drop/1"}]
    answer = ask(EDITOR, "POST", "/_/batch", {"atomic": False, "requests": mixed})
    assert [part["status"] for part in answer.json["responses"]] == [200, 201, 403]
    assert [bool(part["body"] and "n" in part["body"]) for part in answer.json["responses"]] == [False, True, False]


@on_ruled
def test_many_reads_at_once_are_judged_one_by_one(ask: Ask) -> None:
    """Also where one script reads them all."""
    fill(ask)
    ask(ADMIN, "PUT", "/own/ada/b", 1)
    requests = [{"method": "GET", "path": f"/own/{path}"} for path in ("ada/a", "eve/a", "ada/b")]
    answer = ask(ADA, "POST", "/_/batch", {"atomic": False, "requests": requests})
    assert [part["status"] for part in answer.json["responses"]] == [200, 403, 200]
    refused = ask(ADA, "POST", "/_/batch", {"requests": requests})
    assert (refused.status, refused.json["index"]) == (409, 1)
    assert refused.json["problem"]["status"] == 403
    assert SECRET not in refused.body.decode()
    assert ask(ADA, "POST", "/_/batch", {"requests": requests[::2]}).status == 200


@on_ruled
def test_an_atomic_batch_with_a_refused_request_changes_nothing(ask: Ask) -> None:
    """It is judged before any of it is applied, also where a membership decides."""
    fill(ask)
    for last in ("/own/eve/new", "/own/ada/../x"):
        requests = [{"method": "PUT", "path": "/own/ada/new", "body": 1}, {"method": "PUT", "path": last, "body": 1}]
        assert ask(ADA, "POST", "/_/batch", {"requests": requests}).json["index"] == 1
        assert ask(ADMIN, "GET", "/own/ada/new").status == 404
    requests = [{"method": "PUT", "path": f"/rooms/{room}/new", "body": 1} for room in (1, 2)]
    assert ask(ADA, "POST", "/_/batch", {"requests": requests}).json["index"] == 1
    assert ask(ADMIN, "GET", "/rooms/1/new").status == 404
    answer = ask(ADA, "POST", "/_/batch", {"atomic": False, "requests": requests})
    assert [part["status"] for part in answer.json["responses"]] == [201, 403]


# --- Idempotency ----------------------------------------------------------------------------------------------------------


@on_ruled
def test_the_keys_of_two_subjects_are_separate(ask: Ask) -> None:
    """Neither gets the other's response, nor learns that there is one."""
    first = ask(ADA, "POST", "/public/", {"n": 1}, Idempotency_Key="k")
    other = ask(EVE, "POST", "/public/", {"n": 1}, Idempotency_Key="k")
    again = ask(ADA, "POST", "/public/", {"n": 1}, Idempotency_Key="k")
    assert [answer.status for answer in (first, other, again)] == [201, 201, 201]
    assert other.headers["Location"] != first.headers["Location"] == again.headers["Location"]
    assert "Idempotency-Replayed" not in other.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert ask(EVE, "POST", "/public/", {"n": 2}, Idempotency_Key="k").status == 422
    assert ask({"sub": "eda"}, "POST", "/public/", {"n": 2}, Idempotency_Key="k").status == 201


@on_ruled
def test_no_key_is_another_subject_s(ask: Ask) -> None:
    """However a client whose token names no subject spells its key, it takes nobody else's key."""
    digest = sha256(b"ada").hexdigest()
    for key in (repr(("ada", "k")), "ada:k", f"{digest}:k"):
        assert ask({"roles": []}, "POST", "/public/", {"n": 0}, Idempotency_Key=key).status == 201
    assert ask(ADA, "POST", "/public/", {"n": 1}, Idempotency_Key="k").status == 201


@on_ruled
def test_a_replay_shows_what_the_rules_permit_now(ask: Ask) -> None:
    """A response that was kept when its reader could read it."""
    ask(ADMIN, "PUT", "/readers/1/ada", 1)
    shown = ask(ADA, "PUT", "/half/1/a", {"n": 1}, Idempotency_Key="k")
    assert shown.json["n"] == 1
    ask(ADMIN, "DELETE", "/readers/1/ada")
    replayed = ask(ADA, "PUT", "/half/1/a", {"n": 1}, Idempotency_Key="k")
    assert replayed.headers["Idempotency-Replayed"] == "true"
    assert (replayed.status, replayed.body, replayed.tag) == (201, b"", shown.tag)


@on_ruled
def test_a_refused_request_is_not_replayed(ask: Ask) -> None:
    """It is judged again, so who has become a member may do it with the same key."""
    assert ask(ADA, "PUT", "/rooms/3/a", 1, Idempotency_Key="k").status == 403
    ask(ADMIN, "PUT", "/members/3/ada", 1)
    assert ask(ADA, "PUT", "/rooms/3/a", 1, Idempotency_Key="k").status == 201
    ask(ADMIN, "DELETE", "/members/3/ada")
    assert ask(ADA, "PUT", "/rooms/3/a", 1, Idempotency_Key="k").status == 403


# --- Members of documents -------------------------------------------------------------------------------------------------

MERGE, JSON = "application/merge-patch+json", "application/json-patch+json"

# What is stored (None: nothing), method, media type, body, status.
MEMBERS: list[tuple[Any, str, str, Any, int]] = [
    (None, "PUT", "", {"by": "ada"}, 201),
    (None, "PUT", "", {"by": "ada", "a": 1}, 201),
    (None, "PUT", "", {"by": "eve"}, 403),
    (None, "PUT", "", {"by": ["ada"]}, 403),
    (None, "PUT", "", {"by": {"by": "ada"}}, 403),
    (None, "PUT", "", {"BY": "ada"}, 403),
    (None, "PUT", "", {}, 403),
    (None, "PUT", "", "ada", 403),
    (None, "PUT", "", '["by","ada"]', 403),
    (None, "PUT", "", '{"by":"\\u0061da"}', 201),
    (None, "PUT", "", '{"b\\u0079":"ada"}', 201),
    (None, "PUT", "", {"by": {".sv": "timestamp"}}, 403),
    (None, "PUT", "", {"by": {".sv": {"increment": 1}}}, 403),
    (None, "POST", "", {"by": "ada"}, 201),
    (None, "POST", "", {"by": "eve"}, 403),
    (None, "POST", "", {"a": 1}, 403),
    ({"by": "eve"}, "PUT", "", {"by": "ada"}, 200),
    ({"by": "eve"}, "DELETE", "", None, 204),
    ({"by": "ada"}, "PATCH", MERGE, {"a": 1}, 200),
    ({"by": "ada"}, "PATCH", MERGE, {"a": {"b": 1}}, 200),
    ({"by": "ada"}, "PATCH", MERGE, {"by": "ada"}, 200),
    ({"by": "ada"}, "PATCH", MERGE, {"by": "eve"}, 403),
    ({"by": "ada"}, "PATCH", MERGE, {"by": None}, 403),
    ({"by": "ada"}, "PATCH", MERGE, {"by": {"x": 1}}, 403),
    ({"by": "ada"}, "PATCH", MERGE, {"by": {".sv": "timestamp"}}, 403),
    ({"by": "ada"}, "PATCH", MERGE, {"a": {"b": 1}, "by": "eve"}, 403),
    ({"by": "ada", "n": 1}, "PATCH", MERGE, INCREMENT, 200),
    ({"by": "ada", "n": 1}, "PATCH", MERGE, {"n": {".sv": "timestamp"}}, 200),
    ({"by": "ada"}, "PATCH", MERGE, "7", 403),
    ({"by": "ada"}, "PATCH", MERGE, {"a": None}, 200),
    ({"by": "eve"}, "PATCH", MERGE, {"a": 1}, 403),
    ({"by": "eve"}, "PATCH", MERGE, {"by": "ada"}, 200),
    (None, "PATCH", MERGE, {"a": 1}, 403),
    (None, "PATCH", MERGE, {"by": "ada"}, 201),
    (None, "PATCH", MERGE, {"by": "ada", "o": {"a": 1}}, 201),
    (None, "PATCH", MERGE, {"o": {"a": 1}}, 403),
    ({"by": "ada"}, "PATCH", JSON, [{"op": "add", "path": "/a", "value": 1}], 200),
    ({"by": "ada"}, "PATCH", JSON, [{"op": "replace", "path": "/by", "value": "eve"}], 403),
    ({"by": "ada"}, "PATCH", JSON, [{"op": "remove", "path": "/by"}], 403),
    ({"by": "ada", "x": "eve"}, "PATCH", JSON, [{"op": "move", "from": "/x", "path": "/by"}], 403),
    ({"by": "ada"}, "PATCH", JSON, [{"op": "replace", "path": "", "value": {"by": "eve"}}], 403),
    ({"by": "eve"}, "PATCH", JSON, [{"op": "add", "path": "/a", "value": 1}], 403),
]


@pytest.mark.few
@on_ruled
@pytest.mark.parametrize(("stored", "method", "media_type", "body", "status"), MEMBERS)
@pytest.mark.parametrize("wrapped", ["", "once", "batch"])
def test_members(ask: Ask, *, stored: Any, method: str, media_type: str, body: Any, status: int, wrapped: str) -> None:
    """A document is written with the members that the rules require, or not at all."""
    if stored is not None:
        ask(ADMIN, "PUT", "/signed/a", stored)
    before = ask(ADMIN, "GET", "/signed/a")
    target = "/signed/" if method == "POST" else "/signed/a"
    fields = {"Content-Type": media_type} if media_type else {}
    if wrapped == "batch":
        part: dict[str, Any] = {"method": method, "path": target, "headers": fields}
        if body is not None:
            part["body"] = json.loads(body) if isinstance(body, str) and body[0] in '{["7' else body
        answer = ask(ADA, "POST", "/_/batch", {"atomic": True, "requests": [part]})
        found = answer.json["responses"][0]["status"] if answer.status == 200 else answer.json["problem"]["status"]
        assert found == status
    else:
        content = json.dumps(body) if body == "ada" else body
        for _ in range(2 if wrapped else 1):
            answer = ask(ADA, method, target, content, **fields, **({"Idempotency-Key": "k"} if wrapped else {}))
            assert answer.status == status
    if status == 403:
        after = ask(ADMIN, "GET", "/signed/a")
        assert (after.status, after.body[:20], after.headers.get("ETag")) == (
            before.status,
            before.body[:20],
            before.headers.get("ETag"),
        )


@on_ruled
def test_two_patches_of_one_document_in_an_atomic_batch(ask: Ask) -> None:
    """Where a document must be read before it is written, a batch cannot write it twice."""
    ask(ADMIN, "PUT", "/signed/a", {"by": "ada"})
    parts = [{"method": "PATCH", "path": "/signed/a", "body": {name: 1}} for name in "xy"]
    assert ask(ADA, "POST", "/_/batch", {"requests": parts}).status == 422
    answer = ask(ADA, "POST", "/_/batch", {"atomic": False, "requests": parts})
    assert [part["status"] for part in answer.json["responses"]] == [200, 200]


# --- Memberships ---------------------------------------------------------------------------------------------------------


@on_ruled
def test_a_membership_counts_at_once(ask: Ask, raw: redis.Redis) -> None:
    """It is looked up for each request: given, taken, expired."""
    assert ask(ADA, "PUT", "/rooms/1/a", 1).status == 403
    ask(ADMIN, "PUT", "/members/1/ada", {})
    assert ask(ADA, "PUT", "/rooms/1/a", 1).status == 201
    ask(ADMIN, "DELETE", "/members/1/ada")
    assert ask(ADA, "GET", "/rooms/1/a").status == 403
    ask(ADMIN, "PUT", "/members/1/ada", {})
    assert ask(ADA, "GET", "/rooms/1/a").status == 200
    raw.pexpire("kv:{members}/1/ada", 1)
    assert ask(ADA, "GET", "/rooms/2/a").status == 403
    raw.delete("kv:{members}/1/ada")
    assert ask(ADA, "GET", "/rooms/1/a").status == 403


@on_ruled
def test_a_nested_patch_of_a_member(ask: Ask) -> None:
    """An edit that waits for others, looked up before."""
    fill(ask)
    assert ask(ADA, "PATCH", "/rooms/1/a", {"o": {"x": 1}}).json["o"] == {"x": 1}
    assert ask(EVE, "PATCH", "/rooms/1/a", {"o": {"x": 2}}).status == 403
    assert ask(ADA, "GET", "/rooms/1/a").json["o"] == {"x": 1}


@on_ruled
def test_a_wait_of_a_member(ask: Ask) -> None:
    """A long poll is answered as ever, and judged."""
    fill(ask)
    tag = ask(ADA, "GET", "/rooms/1/a").tag
    began = monotonic()
    assert ask(ADA, "GET", "/rooms/1/a", Prefer="wait=1", If_None_Match=tag).status == 304
    assert monotonic() - began > 0.9
    assert ask(ADA, "GET", "/rooms/1/", Prefer="wait=1", If_None_Match='"1-0"').status == 200
    assert ask(EVE, "GET", "/rooms/1/a", Prefer="wait=1", If_None_Match=tag).status == 403
    assert ask(ADA, "POST", "/rooms/1/?lease=5&wait=1").status == 200
    assert ask(EVE, "POST", "/rooms/1/?lease=5&wait=1").status == 403
