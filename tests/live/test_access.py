"""Streams under access rules: judged when they begin, and ended when their token or their right has."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.live import hub
from kvstore.live.stream_session import HEARTBEAT_S
from tests.support.access import ADMIN, as_token, as_toml, by
from tests.support.stores import Running, wait_until
from tests.support.streams import FOLLOWED, LIMIT_S, Followed, Reader
from tests.support.tokens import SECRET

ROWS: list[list[Any]] = [
    ["/rooms/$room/**", "in:/members/$room/", "nobody", "in:/members/$room/"],
    ["/half/open/**", "user", "nobody", "nobody"],
    ["/half/**", "nobody", "nobody", "nobody"],
    ["/own/{sub}/**", "user", "nobody", "user", {"by": "{sub}"}],
]
ADA: dict[str, Any] = {"sub": "ada"}
BEAT_S = HEARTBEAT_S / 20

Open = Callable[..., Reader]


@pytest.fixture
def followed(lane: tuple[str, str], store: Running, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Followed]:
    """What serves streams under ROWS, and looks 20 times as often whether they are still permitted."""
    monkeypatch.setattr(hub, "HEARTBEAT_S", BEAT_S)
    (directory / "rules.toml").write_text(as_toml(ROWS), "utf-8")
    running = FOLLOWED[lane[0]](store, {"KVSTORE_SECRET": SECRET, "KVSTORE_RULES": str(directory / "rules.toml")})
    yield running
    running.stop()


@pytest.fixture
def open_stream(followed: Followed) -> Iterator[Open]:
    """Opens streams, which end with the test."""
    readers: list[Reader] = []

    def open_one(claims: Any, target: str, **headers: str) -> Reader:
        fields = dict(map(as_token, by(claims)))
        readers.append(followed.open(target, {name: str(value) for name, value in (headers | fields).items()}))
        return readers[-1]

    yield open_one
    for reader in readers:
        reader.close()


@pytest.fixture
def change(followed: Followed, store: Running) -> Callable[..., None]:
    """A change by the administrator."""

    def ask(method: str, target: str, value: Any = None) -> None:
        fields = {name: str(value) for name, value in map(as_token, by(ADMIN))}
        assert followed.request(method, target, b"" if value is None else json.dumps(value).encode(), fields).status < 300

    assert store
    return ask


REFUSED = [
    (None, "/own/ada/a", 401),
    (None, "/rooms/1/", 401),
    (ADA | {"exp": 1}, "/own/ada/a", 401),
    (ADA, "/own/eve/a", 403),
    (ADA, "/own/", 403),
    (ADA, "/rooms/1/a", 403),
    (ADA, "/half/?a:eq=1", 403),
    (ADA, "/rooms/1/", 403),
    (ADA, "/half/", 403),  # a part of it is not enough
    (ADA, "/own/ada/a?hold=/own/eve/b", 403),
    (ADA, "/own/ada/a?hold=/rooms/1/b", 403),
    (ADA, "/own/ada/a?hold=/own/ada/b", 403),  # without the member that the rules require
    (ADA, '/own/ada/a?hold=/own/ada/b&as={"by":"eve"}', 403),
    (None, "/_/follow?path=/own/ada/a", 401),
    (ADA, "/_/follow?path=/own/ada/a&path=/own/eve/a", 403),
    (ADA, "/_/follow?path=/own/ada/a&path=/rooms/1/", 403),
    (ADA, "/_/follow?path=/own/ada/a&path=/half/", 403),
    (ADA, "/_/follow?path=/own/ada/a&hold=/own/eve/b", 403),
    (ADA, '/_/follow?path=/own/ada/a&hold=/own/ada/b&as={"by":"ada"}&hold=/own/ada/c&as={"by":"eve"}', 403),
]


@pytest.mark.parametrize(("claims", "target", "status"), REFUSED)
@pytest.mark.parametrize("resumes", [False, True])
def test_a_stream_that_is_refused(open_stream: Open, *, claims: Any, target: str, status: int, resumes: bool) -> None:
    """It is answered with a problem, so that an EventSource does not come back; also where it would resume."""
    reader = open_stream(claims, target, **({"Last-Event-ID": "~" if "/_/" in target else "1-0"} if resumes else {}))
    assert reader.status == status
    assert reader.headers["Content-Type"] == "application/problem+json"


def test_a_stream_of_several_paths(open_stream: Open, change: Callable[..., None]) -> None:
    """Each path is judged, and the refusal names the first that is not permitted, whether looked up or not."""
    several = "/_/follow?path=/own/ada/&path=/rooms/1/&path=/rooms/2/a&path=/half/open/"
    for room, refused in ((1, "/rooms/1/"), (2, "/rooms/2/a")):
        reader = open_stream(ADA, several)
        assert (reader.status, json.loads(reader.body)["path"]) == (403, refused)
        change("PUT", f"/members/{room}/ada", {})
    assert json.loads(open_stream(ADA, several + "&path=/half/").body)["path"] == "/half/"
    reader = open_stream(ADA, several)
    reader.wait_for(4)
    change("PUT", "/rooms/2/a", 1)
    assert reader.wait_for(5)[4].data["value"] == 1
    change("DELETE", "/members/1/ada")
    reader.wait_for_end()
    assert reader.blocks[-1].startswith(b": the rules no longer permit")


def test_several_paths_end_with_the_token(open_stream: Open) -> None:
    """As one path does."""
    reader = open_stream(ADA | {"exp": int(time.time()) + 3}, "/_/follow?path=/own/ada/a&path=/half/open/")
    reader.wait_for_end()
    assert reader.blocks[-1].startswith(b": the token has expired")


def test_a_stream_ends_with_its_token(open_stream: Open, change: Callable[..., None]) -> None:
    """Its last block says why, and whoever comes back with the same token gets a 401."""
    token: dict[str, Any] = ADA | {"exp": int(time.time()) + 3}
    reader = open_stream(token, "/own/ada/a")
    reader.wait_for(1)
    change("PUT", "/own/ada/a", 1)
    assert reader.wait_for(2)[1].data["value"] == 1
    reader.wait_for_end()
    assert time.time() >= token["exp"]
    assert reader.blocks[-1].startswith(b": the token has expired")
    assert open_stream(token, "/own/ada/a").status == 401


def test_a_stream_ends_with_a_membership(open_stream: Open, change: Callable[..., None]) -> None:
    """Within a heartbeat; whoever comes back gets a 403, and a member of another room goes on."""
    for room in (1, 2):
        change("PUT", f"/members/{room}/ada", {})
    reader, other = open_stream(ADA, "/rooms/1/"), open_stream(ADA, "/rooms/2/a")
    for each in (reader, other):
        each.wait_for(1)
    time.sleep(BEAT_S * 2)  # it is looked up meanwhile
    assert not reader.has_ended
    change("DELETE", "/members/1/ada")
    reader.wait_for_end()
    assert reader.blocks[-1].startswith(b": the rules no longer permit this stream")
    change("PUT", "/rooms/1/a", "not for ada")
    change("PUT", "/rooms/2/a", "for ada")
    assert other.wait_for(2)[1].data["value"] == "for ada"
    assert len(reader.events) == 1
    assert open_stream(ADA, "/rooms/1/", **{"Last-Event-ID": reader.events[0].id}).status == 403


def test_a_held_document_goes_with_the_right(open_stream: Open, change: Callable[..., None], store: Running) -> None:
    """A stream that ends releases what it holds."""
    change("PUT", "/members/1/ada", {})
    reader = open_stream(ADA, "/own/ada/a?hold=/rooms/1/ada")
    reader.wait_for(1)
    assert store.redis.exists("kv:{rooms}/1/ada")
    change("DELETE", "/members/1/ada")
    reader.wait_for_end()
    wait_until(lambda: not store.redis.exists("kv:{rooms}/1/ada"), LIMIT_S)


def test_a_stream_by_its_parameter(open_stream: Open) -> None:
    """An EventSource cannot send a header field: the token comes as ?access_token=."""
    [(_, bearer)] = map(as_token, by(ADA))
    token = str(bearer).removeprefix("Bearer ")
    assert open_stream(None, f"/own/ada/a?access_token={token}").status == 200
    assert open_stream(None, f"/own/eve/a?access_token={token}").status == 403
