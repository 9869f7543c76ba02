"""The ACL that docs/data-layout.md names is all that a user of Redis needs, for every kind of request."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvstore.commands.base import Missing
from kvstore.commands.documents import Get
from kvstore.core.errors import StoreUnavailable
from kvstore.core.paths import parse_path
from kvstore.stores.blocking import open_blocking_store
from tests.support.asking import JSON, as_body, stream
from tests.support.clients import Checked, FlaskClient
from tests.support.stores import SERVERS, STORES, Running
from tests.support.streams import OwnServer, ask, following

PAGE = (Path(__file__).parents[2] / "docs" / "data-layout.md").read_text("utf-8")
RULES = shlex.split(re.findall(r"ACL SETUSER kvstore on '>secret' (.*)\n", PAGE)[0])
CLUSTER_RULE = re.findall(r"In a Redis Cluster it needs `([^`]+)` as well", PAGE)[0]

INCREMENT = {"n": {".sv": {"increment": 1}}}
REQUESTS = [
    ("PUT", "/ns/a", [], {"n": 1}),
    ("PUT", "/ns/a", [("If-Match", "*")], {"n": 1}),
    ("PUT", "/ns/large", [], {f"m{n}": n for n in range(9000)}),
    ("GET", "/ns/a", [], None),
    ("PATCH", "/ns/a", [], {"m": 1, "x": None}),
    ("PATCH", "/ns/a", [], {"o": {"x": 1}}),
    ("PATCH", "/ns/a", [JSON], [{"op": "add", "path": "/l", "value": []}]),
    ("PATCH", "/ns/a?ttl=90", [], None),
    ("PATCH", "/ns/a", [], INCREMENT),
    ("PUT", "/ns/a", [], {"t": {".sv": "timestamp"}}),
    ("POST", "/ns", [], 1),
    ("POST", "/", [], INCREMENT),
    ("POST", "/ns", [("Idempotency-Key", "x")], 1),
    ("POST", "/ns", [("Idempotency-Key", "x")], 1),
    ("GET", "/ns/", [], None),
    ("GET", "/ns/?recursive&keys&order=desc", [], None),
    ("GET", "/?list", [], None),
    ("GET", "/_/ready", [], None),
    ("POST", "/_/batch", [], {"requests": [{"method": "PUT", "path": "/ns/a", "body": 1}, {"method": "GET", "path": "/ns/a"}]}),
    ("POST", "/jobs/?delay=1h", [], 1),
    ("PUT", "/jobs/a", [], 1),
    ("POST", "/jobs/?lease=30s", [], None),
    ("PATCH", "/jobs/a?lease=60s", [("If-Match", "*")], None),
    ("PATCH", "/jobs/a?lease=0", [("If-Match", "*")], None),
    ("POST", "/jobs/?lease=30s&max_attempts=1", [], None),
    ("DELETE", "/ns/a", [], None),
    ("DELETE", "/ns/?recursive", [], None),
]
REFUSED = {"requests": [{"method": "PUT", "path": "/ns/a", "body": 2}, {"method": "GET", "path": "/ns/none"}]}


@pytest.fixture(params=SERVERS)
def limited(request: pytest.FixtureRequest, directory: Path) -> Iterator[Checked]:
    """A client whose user of Redis may do what that page says, and nothing else."""
    running = STORES[request.param](directory)
    running.redis.execute_command("ACL", "SETUSER", "limited", "on", ">secret", *RULES)
    as_user = running.url.replace("unix://", "unix://limited:secret@")
    yield Checked(FlaskClient(Running(as_user, None, lambda: None), {"KVSTORE_RATE": "1000/h"}))
    running.stop()


@pytest.fixture(params=SERVERS)
def followed(request: pytest.FixtureRequest, directory: Path) -> Iterator[OwnServer]:
    """Our own server with such a user."""
    running = STORES[request.param](directory)
    running.redis.execute_command("ACL", "SETUSER", "limited", "on", ">secret", *RULES)
    as_user = Running(running.url.replace("unix://", "unix://limited:secret@"), None, lambda: None)
    served = OwnServer(as_user, {"KVSTORE_RATE": "1000/h", "KVSTORE_CLIENT_STREAMS": "5"})
    yield served
    served.stop()
    running.stop()


def test_the_acl_suffices(limited: Checked) -> None:
    """No request needs more."""
    for method, target, headers, body in REQUESTS:
        answer = limited.request(method, target, headers, b"" if body is None else as_body(body))
        assert answer.status < 300, (method, target, body, answer.body)
    limited.put("/ns/a", "1")
    assert limited.request("POST", "/_/batch", [], as_body(REFUSED)).status == 409
    assert limited.get("/ns/a").json == 1
    assert len(stream(limited, "/ns/")[1]) == 1


def test_the_acl_suffices_to_follow(followed: OwnServer) -> None:
    """Our own server has Redis say which logs have grown."""
    with following(followed, "/ns/a") as reader:
        reader.wait_for(1)
        ask(followed, "PUT", "/ns/a", 1)
        assert reader.wait_for(2)[1].data["value"] == 1


def test_a_redis_that_does_not_track(directory: Path) -> None:
    """Then changes are looked for, and streams go on as with any other."""
    running = STORES["redis"](directory)
    running.redis.execute_command("ACL", "SETUSER", "limited", "on", ">secret", *RULES, "-client|tracking")
    served = OwnServer(Running(running.url.replace("unix://", "unix://limited:secret@"), None, lambda: None))
    try:
        with following(served, "/room/1") as reader:
            reader.wait_for(1)
            for number in range(3):
                ask(served, "PUT", "/room/1", number)
                assert reader.wait_for(2 + number)[-1].data["value"] == number
    finally:
        served.stop()
        running.stop()


@pytest.mark.slow
def test_the_acl_suffices_in_a_cluster(started: Callable[[str], Running]) -> None:
    """A client of a cluster asks which node has which slots; without the right to that it can do nothing."""
    cluster = started("cluster")
    as_user = cluster.url.replace("redis+cluster://", "redis+cluster://limited:secret@")
    get = Get(parse_path(b"/ns/none"))

    def permit(*rules: str) -> None:
        cluster.redis.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", *rules, target_nodes="all")

    permit(*RULES)
    with pytest.raises(StoreUnavailable):
        open_blocking_store(as_user).execute(get)
    permit(*RULES, CLUSTER_RULE)
    assert isinstance(open_blocking_store(as_user).execute(get), Missing)
