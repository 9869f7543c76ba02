"""The command `kvstore`, as a process: what it says, what it keeps, how it ends."""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
import redis

from kvstore import __version__
from kvstore.core.settings import SETTINGS, InvalidSetting, read_settings
from kvstore.stores import embedded
from tests.support.serving import COMMAND, READ_S, Served, bare_environ, read, run_kvstore, start_kvstore, wire
from tests.support.stores import Running, wait_for_disk, wait_until
from tests.support.tokens import OLD_SECRET, SECRET

END_S = 30.0  # for the processes that a killed one leaves behind to notice


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Served]]:
    """Starts the command in one directory, again and again; what still runs at the end is killed."""
    started: list[Served] = []

    def start(**environ: str) -> Served:
        started.append(start_kvstore(directory, **environ))
        return started[-1]

    yield start
    for served in started:
        served.kill()


def put(served: Served, path: str, body: bytes) -> int:
    return served.request("PUT", path, (), body).status


def get(served: Served, path: str) -> bytes:
    response = served.request("GET", path)
    assert response.status == 200
    return response.content


# --- What it says -------------------------------------------------------------------------------------------------------


def test_the_banner(start: Callable[..., Served], directory: Path) -> None:
    """It says where it listens, what it stores in, how durable that is, and a line that works when pasted."""
    served = start()
    assert f"kvstore {__version__} listens on http://{served.at[0]}:{served.at[1]}\n" in served.said
    assert "embedded Valkey" in served.said
    assert str(directory / "data") in served.said
    assert "a power failure about 1 s" in served.said
    line = re.search(r"^try: +(curl .*)$", served.said, re.MULTILINE)
    assert line
    if not shutil.which("curl"):
        pytest.skip("no curl on the PATH")
    pasted = subprocess.run([*shlex.split(line[1]), "-sS"], capture_output=True, timeout=READ_S, check=True)
    assert pasted.stdout == b'{"value":123,"ttl":31536000}\n'


@pytest.mark.slow
def test_nothing_is_left_in_the_home_directory(start: Callable[..., Served]) -> None:
    """It writes to its data directory, and nowhere else."""
    served = start()
    put(served, "/a", b"1")
    served.stop()
    assert list(served.home.iterdir()) == []
    assert {path.name for path in served.directory.iterdir()} == {"home", "data", "said.txt"}


@pytest.mark.slow
@pytest.mark.parametrize("redis_url", ["", "redis://127.0.0.1:1"])
def test_a_disk_that_does_not_last(start: Callable[..., Served], redis_url: str) -> None:
    """A warning on a Heroku dyno without a REDIS_URL, and none with one."""
    served = start(DYNO="web.1", REDIS_URL=redis_url)
    if redis_url:
        time.sleep(0.3)  # it would come after the banner
        assert "heroku-redis" not in served.said
    else:
        wait_until(lambda: "WARNING" in served.said and "heroku-redis" in served.said, READ_S)


@pytest.mark.slow
def test_a_password_is_not_printed(start: Callable[..., Served]) -> None:
    """The banner names the Redis, and no password."""
    said = start(REDIS_URL="redis://somebody:hush@127.0.0.1:1/0").said
    assert "127.0.0.1:1" in said
    assert "hush" not in said


def test_help_and_version(tmp_path: Path) -> None:
    """`--help` names every setting; an argument that there is not ends with 2."""
    shown = run_kvstore(tmp_path, "--help")
    assert shown.returncode == 0
    assert all(setting.name in shown.stdout for setting in SETTINGS)
    assert run_kvstore(tmp_path, "--version").stdout == f"kvstore {__version__}\n"
    wrong = run_kvstore(tmp_path, "--wrong")
    assert wrong.returncode == 2
    assert "--wrong" in wrong.stderr


# Arguments of `kvstore token`, and the claims that it signs besides the times.
TOKENS: list[tuple[list[str], dict[str, object], int]] = [
    ([], {}, 30 * 86_400),
    (["--sub", "ada"], {"sub": "ada"}, 30 * 86_400),
    (["--role", "editor", "--role", "admin", "--ttl", "12h"], {"roles": ["editor", "admin"]}, 12 * 3600),
    (
        ["--sub", "ada", "--allow", "append /sensors/7/**", "--allow", "read write /own/{sub}/**", "--ttl=90"],
        {"sub": "ada", "allow": [["/sensors/7/**", "append"], ["/own/{sub}/**", "read", "write"]]},
        90,
    ),
]


@pytest.mark.parametrize(("arguments", "claims", "ttl_s"), TOKENS)
def test_a_token_is_printed(tmp_path: Path, arguments: list[str], claims: dict[str, object], ttl_s: int) -> None:
    """And nothing else; it is signed with the first secret."""
    printed = run_kvstore(tmp_path, "token", *arguments, KVSTORE_SECRET=f"{SECRET} {OLD_SECRET}", KVSTORE_AUDIENCE="app")
    assert (printed.returncode, printed.stderr) == (0, "")
    found = jwt.decode(printed.stdout.removesuffix("\n"), SECRET, algorithms=["HS256"], audience="app")
    times = {name: found.pop(name) for name in ("iat", "exp")}
    assert found == claims | {"aud": "app"}
    assert times["exp"] - times["iat"] == ttl_s
    assert abs(times["iat"] - time.time()) < 60


BAD_TOKENS = [
    ["--ttl", "soon"],
    ["--ttl", "0"],
    ["--ttl", "9999d"],
    ["--allow", "/a/**"],
    ["--allow", "remove /a/**"],
    ["--allow", "read a/**"],
    ["--allow", ""],
    ["ada"],
]


@pytest.mark.parametrize("arguments", BAD_TOKENS)
def test_a_token_that_cannot_be_made(tmp_path: Path, arguments: list[str]) -> None:
    """It says why, and ends with 2."""
    printed = run_kvstore(tmp_path, "token", *arguments, KVSTORE_SECRET=SECRET)
    assert (printed.returncode, printed.stdout) == (2, "")
    assert arguments[0] in printed.stderr


def test_a_token_needs_a_secret(tmp_path: Path) -> None:
    """Without one it says how to make one; one that is too short is refused, and not printed."""
    without = run_kvstore(tmp_path, "token")
    assert without.returncode == 1
    assert "KVSTORE_SECRET" in without.stderr
    short = run_kvstore(tmp_path, "token", KVSTORE_SECRET="short")
    assert short.returncode == 1
    assert "short" not in short.stderr


def test_a_token_needs_no_server(tmp_path: Path) -> None:
    """Neither HTTP nor Redis is loaded to print one; the command runs where the package itself is not installed."""
    code = "import sys, runpy; sys.argv = ['kvstore', 'token']; runpy.run_module('kvstore.cli', run_name='__main__'); "
    code += "print(*sys.modules)"
    environ = bare_environ(tmp_path) | {"KVSTORE_SECRET": SECRET}
    printed = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout
    token, loaded = printed.splitlines()
    assert token.count(".") == 2
    assert not {"kvstore.serving", "kvstore.http", "kvstore.stores", "gunicorn", "flask", "redis"} & set(loaded.split())


@pytest.mark.slow
def test_what_the_buttons_deploy_is_closed(start: Callable[..., Served], tmp_path: Path) -> None:
    """Heroku and Render make a secret; a token that it signs opens the service, and KVSTORE_OPEN opens it to everyone."""
    root = Path(__file__).parents[2]
    assert json.loads((root / "app.json").read_text())["env"]["KVSTORE_SECRET"]["generator"] == "secret"
    assert re.search(r"- key: KVSTORE_SECRET.*\n +generateValue: true", (root / "render.yaml").read_text())
    secret = secrets.token_hex(32)  # as Heroku makes them
    served = start(KVSTORE_SECRET=secret)
    assert served.request("PUT", "/a", (), b"1").status == 401
    token = run_kvstore(tmp_path, "token", "--sub", "me", "--role", "admin", KVSTORE_SECRET=secret).stdout.strip()
    assert served.request("PUT", "/a", [("Authorization", f"Bearer {token}")], b"1").status == 201
    served.stop()
    opened = start(KVSTORE_SECRET=secret, KVSTORE_OPEN="1")
    assert opened.request("GET", "/a").status == 200


# --- Settings -----------------------------------------------------------------------------------------------------------

BAD_SETTINGS = [
    ("PORT", "http"),
    ("PORT", "-1"),
    ("PORT", "65536"),
    ("PORT", "80.0"),
    ("PORT", "８０"),
    ("WEB_CONCURRENCY", "0"),
    ("WEB_CONCURRENCY", "many"),
    ("WEB_CONCURRENCY", "65"),
    ("KVSTORE_MAX_TTL", "0"),
    ("KVSTORE_MAX_TTL", "1y"),
    ("KVSTORE_LOG_LENGTH", "0"),
    ("KVSTORE_LOG_LENGTH", "lots"),
    ("KVSTORE_SECRET", "x" * 31),
    ("KVSTORE_OPEN", "yes"),
    ("KVSTORE_VISITORS", "soon"),
    ("KVSTORE_RATE", "200"),
    ("KVSTORE_CLIENT_STREAMS", "0"),
    ("KVSTORE_PROXIES", "many"),
    ("KVSTORE_LOG", "xml"),
    ("REDIS_URL", "localhost"),
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "http://user:hush@localhost"),
    ("REDIS_URL", "redis://user:hush@localhost:http"),
    ("REDIS_URL", "redis://user:hush@localhost:65536"),
    ("REDIS_URL", "redis://user:hush@localhost/zero"),
    ("REDIS_URL", "redis://user:hush@[::1"),
    ("REDIS_URL", "redis://user:hush@a..b"),
    ("REDIS_URL", "unix://"),
    ("REDIS_URL", "redis+sentinel://user:hush@localhost"),
    ("REDIS_URL", "redis+nothing://user:hush@localhost"),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_a_bad_setting(name: str, value: str) -> None:
    """A bad setting is refused with one line that names it, and repeats no password."""
    with pytest.raises(InvalidSetting) as refused:
        read_settings({name: value})
    message = str(refused.value)
    assert message.startswith(f"{name} must be ")
    assert "\n" not in message
    assert "hush" not in message


def test_visitors_need_a_secret() -> None:
    """Their tokens are signed with it."""
    with pytest.raises(InvalidSetting, match="KVSTORE_VISITORS needs KVSTORE_SECRET"):
        read_settings({"KVSTORE_VISITORS": "30d", "KVSTORE_JWKS": "https://issuer.example/keys"})


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address(host: str) -> None:
    """As it is, or as URLs have it."""
    assert read_settings({"HOST": host}).host == "::1"


STOPPING = [("PORT", "http"), ("REDIS_URL", "http://localhost"), ("KVSTORE_DATA", "/dev/null/data")]


@pytest.mark.parametrize(("name", "value"), STOPPING)
def test_a_bad_setting_stops_the_start(tmp_path: Path, name: str, value: str) -> None:
    """The command says so in one line and ends with a status that is not 0."""
    ended = run_kvstore(tmp_path, **{"PORT": "0", name: value})
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert name in ended.stderr


def test_empty_settings_are_defaults() -> None:
    """An empty variable, as a deployment's form leaves it, is one that is not there."""
    assert read_settings({setting.name: " " for setting in SETTINGS}) == read_settings({})


# --- What it keeps ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_documents_survive(start: Callable[..., Served]) -> None:
    """SIGTERM and a new start, kill -9 of every process and a new start: the documents are there, tags and all."""
    first = start()
    assert put(first, "/ns/a", b'{"a":1.0}') == 201
    tag = first.request("GET", "/ns/a").getheader("ETag")
    first.stop()
    assert first.process.returncode == 0
    second = start()
    assert get(second, "/ns/a").startswith(b'{"a":1.0,"ttl":')
    assert second.request("GET", "/ns/a").getheader("ETag") == tag
    assert put(second, "/ns/b", b'"after SIGTERM"') == 201
    with redis.Redis(unix_socket_path=str(second.directory / "data" / "valkey.sock"), protocol=2) as client:
        wait_for_disk(client)
    wait_until(lambda: len(second.processes()) >= 4, END_S)  # a master, two workers, a Valkey
    second.kill()
    third = start()
    assert get(third, "/ns/a").startswith(b'{"a":1.0,"ttl":')
    assert get(third, "/ns/b") == b'"after SIGTERM"\n'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")
def test_a_killed_master_leaves_nothing_running(start: Callable[..., Served]) -> None:
    """kill -9 of the master ends the workers and the embedded server, and the data can be served again."""
    served = start()
    put(served, "/a", b"1")
    served.process.send_signal(signal.SIGKILL)
    served.process.wait()
    wait_until(lambda: not served.processes(), END_S)
    assert get(start(), "/a") == b"1\n"


def test_a_killed_worker_is_replaced(start: Callable[..., Served]) -> None:
    """A worker that dies takes no document and no other worker along."""
    served = start(WEB_CONCURRENCY="1")
    put(served, "/a", b"1")
    workers = [pid for pid in served.processes() if parent(pid) == served.process.pid and "valkey" not in command(pid)]
    assert len(workers) == 1
    subprocess.run(["kill", "-9", str(workers[0])], check=True)

    def serves_again() -> bool:
        try:
            return served.request("GET", "/a").content == b"1\n"
        except OSError:
            return False

    wait_until(serves_again, END_S)


def parent(pid: int) -> int:
    listed = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(listed.stdout or 0)


def command(pid: int) -> str:
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


def test_a_second_start_on_the_same_data(start: Callable[..., Served], directory: Path) -> None:
    """The second is refused with one line, and the first serves on."""
    served = start()
    put(served, "/a", b"1")
    second = run_kvstore(served.home, PORT="0", KVSTORE_DATA=str(directory / "data"))
    assert second.returncode != 0
    assert len(second.stderr.splitlines()) == 1
    assert "in use" in second.stderr
    assert "KVSTORE_DATA" in second.stderr
    assert get(served, "/a") == b"1\n"


@pytest.mark.slow
def test_the_memory_of_the_embedded_server(directory: Path) -> None:
    """It is limited, by default to half of what this process may use; then writes are refused, and nothing is evicted."""
    served = start_kvstore(directory, KVSTORE_MAXMEMORY="16mb")
    try:
        statuses = [served.request("PUT", f"/ns/{n}", body=b'"%b"' % (b"x" * 1_000_000)).status for n in range(20)]
        assert {*statuses} == {201, 507}
        assert statuses[0] == 201
        # Redis gives the buffers of its connections back from time to time, so one more may fit after one that did not.
        kept = [served.request("GET", f"/ns/{n}").status for n in range(20)]
        assert kept == [200 if status == 201 else 404 for status in statuses]
    finally:
        served.kill()
    half = embedded.start(directory / "half")
    with redis.Redis(unix_socket_path=str(directory / "half" / "valkey.sock")) as client:
        assert int(client.config_get("maxmemory")["maxmemory"]) == embedded.machine_memory_bytes() // 2
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    half.stop()


@pytest.mark.slow
def test_the_embedded_server_flushes_each_write(directory: Path) -> None:
    """With KVSTORE_FSYNC=always, also after a kill -9 of it, which loses nothing that was answered; and the start says so."""
    served = start_kvstore(directory, KVSTORE_FSYNC="always")
    acknowledged: list[int] = []

    def asked() -> tuple[str, int]:
        """What the embedded server says: when it flushes, and its process id."""
        with redis.Redis(unix_socket_path=str(directory / "data" / "valkey.sock"), protocol=2) as client:
            return client.config_get("appendfsync")["appendfsync"], client.info("server")["process_id"]

    def write(writer: int) -> None:
        for number in range(writer, 400, 4):
            if served.request("PUT", f"/ns/{number}", body=b"%d" % number).status == 201:
                acknowledged.append(number)

    try:
        assert "nothing that was answered is lost" in served.said
        fsync, pid = asked()
        assert fsync == "always"
        with ThreadPoolExecutor(4) as pool:
            for writer in range(4):
                pool.submit(write, writer)
            wait_until(lambda: len(acknowledged) > 200, END_S)
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: served.request("GET", "/ns/0").status == 200, END_S)
        assert asked()[0] == "always"
        assert {served.request("GET", f"/ns/{number}").content for number in acknowledged} == {
            b"%d\n" % n for n in acknowledged
        }
    finally:
        served.kill()


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/a/b\n", {"memory.max": "5000", "a/memory.max": "3000", "a/b/memory.max": "max"}, 3000),
        (
            "9:memory:/a\n8:pids:/\n0::/\n",
            {"memory/memory.limit_in_bytes": "7000", "memory/a/memory.limit_in_bytes": "2000"},
            2000,
        ),
        ("0::/\n", {"memory.max": "max"}, None),
        ("", {}, None),
    ],
)
def test_the_memory_of_a_control_group(
    directory: Path, monkeypatch: pytest.MonkeyPatch, groups: str, limits: dict[str, str], expected: int | None
) -> None:
    """The smallest limit on the way up counts, in both versions of control groups."""
    unlimited = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, limit in limits.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(limit + "\n")
    (directory / "cgroup").write_text(groups)
    monkeypatch.setattr(embedded, "_CGROUPS", directory)
    monkeypatch.setattr(embedded, "_OWN_CGROUPS", directory / "cgroup")
    assert embedded.machine_memory_bytes() == (expected or unlimited)


def test_a_data_directory_of_another_version_is_refused(directory: Path) -> None:
    """Version 0.1 named its Redis keys otherwise, so its data would seem to be gone; nothing in it is changed."""
    data = directory / "data"
    (data / "appendonlydir").mkdir(parents=True, mode=0o700)
    data.chmod(0o700)
    for layout in (None, "1\n", "3\n"):
        if layout:
            (data / "layout").write_text(layout)
        with pytest.raises(embedded.StartFailed, match="another version of kvstore"):
            embedded.start(data)
        assert not (data / "valkey.log").exists()
    (data / "layout").unlink()
    (data / "appendonlydir").rmdir()
    for _ in range(2):  # the second start reads what the first has written
        embedded.start(data).stop()


def test_a_data_directory_that_others_can_write_to_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else may have put a socket there, which we would send every document to."""
    data = directory / "data"
    data.mkdir(mode=0o700)
    for mode in (0o777, 0o722, 0o720):
        data.chmod(mode)
        with pytest.raises(embedded.StartFailed, match="other users may write"):
            embedded.start_or_join(data)
    data.chmod(0o755)
    embedded.start_or_join(data).stop()
    monkeypatch.setattr("kvstore.stores.embedded.os.getuid", lambda: data.stat().st_uid + 1)
    with pytest.raises(embedded.StartFailed, match="belongs to another user"):
        embedded.start_or_join(data)


@pytest.mark.slow
def test_who_joined_an_embedded_server_takes_over(directory: Path) -> None:
    """Where the process that started it ends, another one that uses it starts it again, with all that is stored."""
    apps = []
    for name in "ab":
        (directory / name).mkdir()
        flask = [sys.executable, "-m", "flask", "--app", "kvstore", "run", "-p", "0"]
        apps.append(Served(directory / name, flask, {"KVSTORE_DATA": str(directory / "data")}))
    try:
        wait_until(lambda: put(apps[0], "/a", b"1") in (200, 201), END_S)
        wait_until(lambda: apps[1].request("GET", "/a").content == b"1\n", END_S)
        apps[0].process.terminate()
        apps[0].process.wait()
        wait_until(lambda: put(apps[1], "/b", b"1") in (200, 201), END_S)
        wait_until(lambda: apps[1].request("GET", "/a").content == b"1\n", END_S)
    finally:
        for app in apps:
            app.kill()


def test_who_watches_goes_on_in_trouble(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment without file descriptors does not keep who joined from taking over later."""
    first = embedded.start(directory / "data")
    joined = embedded.start_or_join(directory / "data")
    joined.keep()
    looks = iter([True, True])
    there = embedded._listens

    def listens(at: Path) -> bool:
        if next(looks, False):
            raise OSError("Too many open files")
        return there(at)

    monkeypatch.setattr(embedded, "_listens", listens)
    monkeypatch.setattr(embedded, "_RETRY_S", 0.1)
    try:
        wait_until(lambda: not next(looks, False), END_S)
        first.stop()
        wait_until(lambda: joined.pid, END_S)
    finally:
        joined.stop()


@pytest.mark.slow
def test_a_long_data_path(directory: Path) -> None:
    """A data directory whose path is too long for a unix socket."""
    data = directory / ("d" * 60) / ("e" * 60)
    served = start_kvstore(directory, KVSTORE_DATA=str(data))
    try:
        assert put(served, "/a", b"1") == 201
    finally:
        served.kill()


@pytest.mark.slow
def test_memory_only(start: Callable[..., Served]) -> None:
    """fake:// is one memory, however many workers were asked for."""
    served = start(REDIS_URL="fake://", WEB_CONCURRENCY="2")
    assert put(served, "/a", b"1") == 201
    assert {served.request("GET", "/a").status for _ in range(20)} == {200}
    [before] = set(served.processes()) - {served.process.pid}
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: before not in served.processes(), END_S)
    assert put(served, "/b", b"1") == 201
    assert {served.request("GET", "/b").status for _ in range(20)} == {200}, "also after a reload"


# --- On the wire --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(started: Callable[[str], Running], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The command on the main store, for tests that do not maltreat it."""
    served = start_kvstore(tmp_path_factory.mktemp("served"), REDIS_URL=started("valkey").url)
    yield served
    served.kill()


@pytest.mark.parametrize("character", ["a", "é", "/"])
def test_the_longest_path(served: Served, character: str) -> None:
    """A path of 1,024 bytes, every one of them escaped, and a query reach us; one more is 414."""
    escaped = "".join(f"%{byte:02x}" for byte in character.encode())
    count = 1023 // len(character.encode())
    longest = "/" + escaped * count
    assert served.request("PUT", longest + "?ttl=" + "0" * 11 + "9", (), b"1").status in (200, 201)
    assert get(served, longest) == b"1\n"
    assert served.request("PUT", longest + "%61%61", (), b"1").status == 414


def test_a_path_beyond_all_measure(served: Served) -> None:
    """A request line that is longer than any path of ours is still 414, and no HTML."""
    response = served.request("GET", "/" + "a" * 20_000)
    assert response.status == 414
    assert response.getheader("Content-Type") == "application/problem+json"


# Raw target of a PUT, status, and the Location of what it makes.
RAW_TARGETS = [
    (b"/wire/a%2Fb", 201, "/wire/a%2Fb"),
    (b"/wire/a/b", 201, "/wire/a/b"),
    (b"/wire/\xc3\xa9", 201, "/wire/%C3%A9"),
    (b"/wire/a;b=c", 201, "/wire/a;b=c"),
    (b"/wire/%25", 201, "/wire/%25"),
    (b"http://example.org/wire/absolute", 201, "/wire/absolute"),
    (b"//wire", 400, None),
    (b"/wire//a", 400, None),
    (b"/wire/../a", 400, None),
    (b"/wire/%00", 400, None),
    (b"/wire/%0A", 400, None),
    (b"/wire/%FF", 400, None),
    (b"/wire/\xff", 400, None),
    (b"/wire/%", 400, None),
    (b"*", 400, None),
]


@pytest.mark.parametrize(("target", "status", "location"), RAW_TARGETS)
def test_raw_targets(served: Served, target: bytes, status: int, location: str | None) -> None:
    """The target reaches us as it stands on the wire."""
    if location:
        served.request("DELETE", location)
    response = served.request("PUT", target, (), b"1")
    assert (response.status, response.getheader("Location")) == (status, location)


def test_many_requests_on_one_connection(served: Served) -> None:
    """A connection is kept, and answers come in the order of the requests, also when those come all at once."""
    with served.connect() as connection:
        for n in range(3):
            connection.sendall(wire("PUT", "/wire/kept", (), b"%d" % n))
            assert read(connection, "PUT").content == b"%d\n" % n
        asked = b"".join(wire("PUT", f"/wire/piped{n % 3}", (), b"%d" % n) for n in range(30))
        connection.sendall(asked + wire("GET", "/wire/kept", [("Connection", "close")]))
        answered = b""
        while more := connection.recv(65536):
            answered += more
    bodies = re.findall(rb"\r\n\r\n(\d+)\n", answered)
    assert bodies == [*(b"%d" % n for n in range(30)), b"2"]


@pytest.mark.slow
def test_as_many_connections_as_the_machine_allows(directory: Path, started: Callable[[str], Running]) -> None:
    """The limit of open files with which most systems start a process can be raised by itself, and is."""
    environ = {"PORT": "0", "REDIS_URL": started("valkey").url, "WEB_CONCURRENCY": "1"}
    served = Served(directory, ["sh", "-c", f"ulimit -S -n 64 && exec {shlex.quote(str(COMMAND))}"], environ)
    try:
        with ExitStack() as stack:
            connections = [stack.enter_context(served.connect()) for _ in range(100)]
            for connection in connections:
                connection.sendall(wire("GET", "/nobody/there"))
            assert {read(connection, "GET").status for connection in connections} == {404}
    finally:
        served.kill()


@pytest.mark.parametrize("expect", [[], [("Expect", "100-continue")]])
@pytest.mark.parametrize("coding", [[], [("Transfer-Encoding", "chunked")]])
@pytest.mark.parametrize(("size", "status"), [(1024 * 1024, (200, 201)), (1024 * 1024 + 1, (413,)), (5_000_000, (413,))])
def test_large_bodies(served: Served, size: int, status: tuple[int, ...], coding: list[Any], expect: list[Any]) -> None:
    """1 MiB is taken, more is refused with an answer that the client gets to read, however it sends."""
    body = b"1" + b" " * (size - 1)
    response = served.request("PUT", "/wire/large", [*coding, *expect], body)
    assert response.status in status


@pytest.mark.slow
def test_a_stop_while_a_worker_starts(directory: Path) -> None:
    """SIGTERM is heard by a worker that is still loading the application."""
    (directory / "slow.py").write_text(
        "import time\nopen('begun', 'w').close()\ntime.sleep(1)\n"
        "from kvstore.serving.gunicorn_worker import open_in_environment as app\n"
    )
    arguments = [sys.executable, "-m", "gunicorn", "-c", "python:kvstore.serving.gunicorn_config", "slow:app"]
    served = Served(directory, arguments, {"PORT": "0", "WEB_CONCURRENCY": "1", "KVSTORE_DATA": str(directory / "data")})
    try:
        wait_until((directory / "begun").exists, END_S)  # the worker sleeps in slow.py
        served.process.terminate()
        assert served.process.wait(END_S) == 0
    finally:
        served.kill()


def test_a_stop_answers_what_has_begun(directory: Path, started: Callable[[str], Running]) -> None:
    """SIGTERM lets a request that is under way end, and takes no new one."""
    served = start_kvstore(directory, REDIS_URL=started("valkey").url)
    try:
        served.request("GET", "/wire/last")  # the address is printed before the workers are there
        with served.connect() as connection:
            request = wire("PUT", "/wire/last", [("Expect", "100-continue")], b'"a body in two parts"')
            connection.sendall(request[:-21])
            assert b" 100 " in connection.recv(1000)  # it has the head
            connection.sendall(request[-21:-5])
            served.process.terminate()
            time.sleep(0.3)
            connection.sendall(request[-5:])
            assert read(connection, "PUT").status in (200, 201)
        served.process.wait(READ_S)
        assert served.process.returncode == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(served.at, 1)
    finally:
        served.kill()
