"""The pipelined store against real servers: one write a turn, replies matched in order, nothing sent twice or left waiting.

Everything runs on both kinds of event loop. The command of these tests counts how often it was run, and gives back what it
was given.
"""

import asyncio
import hashlib
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kvstore.commands.base import Turns, in_turns
from kvstore.commands.scripts import Script
from kvstore.core.errors import Problem
from kvstore.core.redis_url import Address, parse_redis_url
from kvstore.stores import edit_queue, pipelined, redis_clients
from kvstore.stores.pipelined import PipelinedStore
from kvstore.stores.pooled import open_async_store
from kvstore.stores.redis_clients import NO_SETINFO
from tests.support.loops import LOOPS, PRODUCTION
from tests.support.proxies import Pretender, Proxy
from tests.support.stores import (
    START_S,
    Running,
    free_ports,
    make_directory,
    start_redis_on_tcp,
    wait_for_redis,
    wait_until,
)

TOLD_S = 6.0  # after which a client is told at the latest
AT_ONCE_S = 5.0  # on a busy machine; else they wait for 15 s (conftest.py)
LATE_S = 10.0  # that a machine which is busy with other tests may take longer
Run = Callable[[Coroutine[Any, Any, Any]], Any]
COUNTER = "kv:{test}/counter"


def script(text: str) -> Script[Any]:
    return Script("test", text, hashlib.sha1(text.encode()).hexdigest())


ECHO = script("redis.call('INCR', KEYS[1]) return ARGV[1]")
FAIL = script("redis.call('INCR', KEYS[1]) return redis.error_reply('OOM ' .. ARGV[1])")


class Echo(NamedTuple):
    """Counts, and gives back its text."""

    text: str
    script: Script[str] = ECHO

    @property
    def keys(self) -> tuple[str, ...]:
        return (COUNTER,)

    @property
    def arguments(self) -> tuple[str, ...]:
        return (self.text,)

    def outcome(self, reply: bytes) -> str:
        return reply.decode()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another connection, and what is overdue, are looked for often."""
    monkeypatch.setattr(pipelined, "BACKOFF_S", (0.02, 0.05, 0.1))
    monkeypatch.setattr(pipelined, "CHECK_S", 0.05)


@contextmanager
def within(limit_s: float = 1.0) -> Iterator[None]:
    """Limits of a second in the block, where the test is that there are any."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(redis_clients, "PIPELINED", replace(redis_clients.PIPELINED, queue_s=limit_s, answer_s=limit_s))
        yield


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("limits", [redis_clients.BLOCKING, redis_clients.PIPELINED, redis_clients.POOLED])
def test_the_limits_add_up(limits: redis_clients.TimeOuts) -> None:
    """An edit that waited in its queue, took three commands and was noticed late is still answered within 6 s."""
    late_s = max(pipelined.CHECK_S, 2 * redis_clients.PROMPT_S)  # the first command is checked, the others have timers
    assert edit_queue.QUEUED_S + limits.answer_s + late_s < TOLD_S or limits is redis_clients.BLOCKING
    assert limits.queue_s < limits.answer_s + late_s < TOLD_S


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    """A kind of event loop."""
    return str(request.param)


@pytest.fixture
def run(loop: str) -> Iterator[Run]:
    """Runs a coroutine on an event loop of each kind."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        run: Run = runner.run
        yield run


def listens(port: int, **options: Any) -> bool:
    """Whether a Redis answers there, be it with an error."""
    client = redis.Redis(port=port, **NO_SETINFO, retry=Retry(NoBackoff(), 0), **options)
    try:
        return bool(client.ping())
    except (redis.AuthenticationError, redis.exceptions.BusyLoadingError):
        return True
    except redis.RedisError:
        return False
    finally:
        client.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a Redis that wants a password, of its default user and of others."""
    directory = make_directory()
    worker = ["worker", "on", ">p@ss:/", "~*", "&*", "+@all"]
    reader = ["reader", "on", ">r", "~*", "&*", "+@read", "+ping"]
    users = ["--user", *worker, "--user", *reader]
    port, process = start_redis_on_tcp(directory, "--requirepass", "secret", *users)
    wait_for_redis(process, directory, lambda: listens(port))
    yield port
    process.kill()
    process.wait()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def raw(port: int) -> Iterator[redis.Redis]:
    """That Redis, empty."""
    client = redis.Redis(port=port, password="secret", **NO_SETINFO)
    client.flushall()
    yield client
    client.close()


def address(port: int, *, database: int = 0) -> str:
    return f"redis://:secret@127.0.0.1:{port}/{database}"


@asynccontextmanager
async def opened(url: str, *, verify_tls: bool = True) -> AsyncIterator[PipelinedStore]:
    """A store at this URL, closed in the end."""
    store = open_async_store(url, verify_tls=verify_tls)
    assert isinstance(store, PipelinedStore)
    try:
        yield store
    finally:
        await store.close()


class Refused(NamedTuple):
    """A problem, and how long it took to come."""

    status: int
    detail: str
    after_s: float


async def refusal(store: PipelinedStore, command: Echo = Echo("x")) -> Refused:  # noqa: B008  # it is immutable
    """The problem that a command meets."""
    begun = time.monotonic()
    with pytest.raises(Problem) as caught:
        await store.execute(command)
    assert caught.value.status != 503 or caught.value.headers["Retry-After"]
    return Refused(caught.value.status, caught.value.detail, time.monotonic() - begun)


# --- Matching, and one write a turn -------------------------------------------------------------------------------------


def test_replies_are_matched(run: Run, port: int, raw: redis.Redis) -> None:
    """Two thousand commands at a time: each gets its own reply, an error only the one that it belongs to."""
    texts = [f"{number} " + "x" * (number % 7 * 300) for number in range(2000)]

    async def scenario() -> list[object]:
        async with opened(address(port)) as store:
            commands = [Echo(text, FAIL if number % 50 == 7 else ECHO) for number, text in enumerate(texts)]
            outcomes: list[object] = await asyncio.gather(*map(store.execute, commands), return_exceptions=True)
            return outcomes

    for number, (text, outcome) in enumerate(zip(texts, run(scenario()), strict=True)):
        if number % 50 == 7:
            assert isinstance(outcome, Problem)
            assert outcome.status == 507
        else:
            assert outcome == text
    assert raw.get(COUNTER) == b"2000"


def test_a_command_whose_caller_has_gone(run: Run, port: int, raw: redis.Redis) -> None:
    """Its reply is dropped, and the others' stay their own."""

    async def scenario() -> list[object]:
        async with opened(address(port)) as store:
            await store.execute(Echo("first"))
            tasks = [asyncio.ensure_future(store.execute(Echo(str(number)))) for number in range(100)]
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            outcomes: list[object] = await asyncio.gather(*tasks, return_exceptions=True)
            return outcomes

    for number, outcome in enumerate(run(scenario())):
        assert outcome == str(number) if number % 3 else isinstance(outcome, asyncio.CancelledError)


def test_one_write_a_turn(run: Run, port: int, raw: redis.Redis) -> None:
    """All commands of one turn of the event loop leave together, over one connection."""

    async def scenario() -> tuple[list[int], int]:
        async with Proxy(port) as proxy, opened(address(proxy.port)) as store:
            await store.execute(Echo("first"))
            pieces = []
            for _ in range(3):
                proxy.sent.clear()
                await asyncio.gather(*(store.execute(Echo(str(number))) for number in range(100)))
                pieces.append(len(proxy.sent))
            return pieces, proxy.connections

    assert run(scenario()) == ([1, 1, 1], 1)


def test_two_turns_two_writes(run: Run, port: int, raw: redis.Redis) -> None:
    """Nothing waits for what may come later."""

    async def scenario() -> int:
        async with Proxy(port) as proxy, opened(address(proxy.port)) as store:
            await store.execute(Echo("first"))
            proxy.sent.clear()
            for number in range(5):
                await store.execute(Echo(str(number)))
            return len(proxy.sent)

    assert run(scenario()) == 5


# --- Who we are to Redis ------------------------------------------------------------------------------------------------

# Credentials and database in the URL, the database that is used, or the words of the problem.
ADDRESSES = [
    (":secret@", "", 0),
    (":secret@", "/3", 3),
    (":secret@", "?db=5", 5),
    ("default:secret@", "/1", 1),
    ("worker:p%40ss%3A%2F@", "/2", 2),
    ("", "?password=secret", 0),
    ("", "?username=worker&password=p%40ss%3A%2F", 0),
    ("", "", "requires a password"),
    (":wrong@", "", "user name or password"),
    (":wrong@", "/3", "user name or password"),
    ("worker:secret@", "", "user name or password"),
    ("nobody:secret@", "", "user name or password"),
    ("reader:r@", "", "may not run"),
    (":secret@", "/99", "see the log"),
]


@pytest.mark.slow
@pytest.mark.parametrize("row", ADDRESSES)
def test_addresses(
    run: Run, port: int, raw: redis.Redis, caplog: pytest.LogCaptureFixture, row: tuple[str, str, object]
) -> None:
    """Password, user and database number; where Redis refuses them, the 503 says which it is, and no secret is told."""
    credentials, rest, result = row

    async def scenario() -> object:
        async with opened(f"redis://{credentials}127.0.0.1:{port}{rest}") as store:
            if isinstance(result, int):
                return await store.execute(Echo("x"))
            with within(2.0):
                return await refusal(store)

    outcome = run(scenario())
    if isinstance(result, int):
        raw.select(result)
        assert (outcome, raw.get(COUNTER)) == ("x", b"1")
        raw.select(0)
        return
    assert outcome.status == 503
    assert outcome.after_s < TOLD_S
    assert str(result) in outcome.detail
    for secret in ("secret", "wrong", "p@ss"):
        assert secret not in outcome.detail + caplog.text


def test_a_unix_socket(run: Run, started: Callable[[str], Running]) -> None:
    """By its path, with a database number."""
    server = started("redis")
    server.redis.flushall()

    async def scenario() -> str:
        async with opened(server.url + "?db=4") as store:
            return await store.execute(Echo("x"))

    assert run(scenario()) == "x"
    server.redis.select(4)
    assert server.redis.get(COUNTER) == b"1"
    server.redis.select(0)


@pytest.fixture(scope="module")
def tls_port() -> Iterator[tuple[int, Path]]:
    """The port of a Redis that speaks TLS only, and its self-signed certificate, for 127.0.0.1."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl on the PATH")
    directory = make_directory()
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=kvstore tests"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    (port,) = free_ports(1)
    options = ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    _, process = start_redis_on_tcp(directory, *options, "--tls-auth-clients", "no")
    trusting = {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False}
    wait_until(lambda: process.poll() is not None or listens(port, **trusting), START_S)
    if process.poll() is not None:
        pytest.skip("this redis-server is built without TLS")
    yield port, certificate
    process.kill()
    process.wait()
    shutil.rmtree(directory, ignore_errors=True)


# Host, the end of the URL, verify_tls where the URL does not say, whether we connect. {} is the certificate's file, which is
# for 127.0.0.1 and for no other name.
CERTIFICATES = [
    ("127.0.0.1", "", True, False),
    ("127.0.0.1", "", False, True),
    ("localhost", "", False, True),
    ("127.0.0.1", "?ssl_cert_reqs=none", True, True),
    ("127.0.0.1", "?ssl_cert_reqs=required", False, False),
    ("127.0.0.1", "?ssl_ca_certs={}", True, True),
    ("localhost", "?ssl_ca_certs={}", True, False),
    ("127.0.0.1", "?ssl_ca_certs={}.none", True, False),
]


@pytest.mark.slow
@pytest.mark.parametrize("row", CERTIFICATES)
def test_tls(run: Run, tls_port: tuple[int, Path], row: tuple[str, str, bool, bool]) -> None:
    """A certificate is verified, and its name, unless we are told not to; what is not trusted is 503."""
    host, rest, verify, connects = row
    port, certificate = tls_port

    async def scenario() -> object:
        url = f"rediss://{host}:{port}/1" + rest.format(certificate)
        async with opened(url, verify_tls=verify) as store:
            if connects:
                return await store.execute(Echo("x"))
            with within(2.0):
                return await refusal(store)

    outcome = run(scenario())
    if connects:
        assert outcome == "x"
    else:
        assert outcome.status == 503
        assert outcome.after_s < TOLD_S


# --- Faults -------------------------------------------------------------------------------------------------------------


def test_scripts_that_redis_has_forgotten(run: Run, port: int, raw: redis.Redis) -> None:
    """SCRIPT FLUSH in the middle of it all: every command is run, once."""

    async def scenario() -> list[bool]:
        found = []
        async with opened(address(port)) as store:
            for turn in range(5):
                texts = [f"{turn} {number}" for number in range(50)]
                raw.script_flush()
                found.append(await asyncio.gather(*(store.execute(Echo(text)) for text in texts)) == texts)
        return found

    assert run(scenario()) == [True] * 5
    assert raw.get(COUNTER) == b"250"


def test_a_killed_connection(run: Run, port: int, raw: redis.Redis) -> None:
    """CLIENT KILL: what was sent fails as unknown, at once; what comes next works."""

    async def scenario() -> tuple[list[Refused], str]:
        async with opened(address(port)) as store:
            await store.execute(Echo("first"))
            raw.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
            tasks = [asyncio.ensure_future(refusal(store, Echo(str(number)))) for number in range(20)]
            await asyncio.sleep(0.1)
            raw.execute_command("CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES")
            refused = await asyncio.gather(*tasks)
            raw.execute_command("CLIENT", "UNPAUSE")
            return refused, await store.execute(Echo("again"))

    refused, again = run(scenario())
    assert again == "again"
    for answer in refused:
        assert answer.status == 503
        assert "unknown" in answer.detail
        assert "Idempotency-Key" in answer.detail, "a POST takes no If-Match"
        assert answer.after_s < 0.1 + AT_ONCE_S
    assert raw.get(COUNTER) == b"2"


@pytest.mark.usefixtures("hasty")
def test_replies_that_never_come(run: Run, port: int, raw: redis.Redis) -> None:
    """Told within 6 s that it is unknown; what was sent is sent once; the next command has a connection of its own."""

    async def scenario() -> tuple[list[Refused], str, Proxy]:
        async with Proxy(port) as proxy, opened(address(proxy.port)) as store:
            await store.execute(Echo("first"))
            proxy.swallows_replies = True
            with within():
                refused = await asyncio.gather(*(refusal(store, Echo(f"lost {number}.")) for number in range(10)))
            proxy.swallows_replies = False
            again = await store.execute(Echo("again"))
            await asyncio.sleep(0.5)
            return refused, again, proxy

    refused, again, proxy = run(scenario())
    assert again == "again"
    for number, answer in enumerate(refused):
        assert answer.status == 503
        assert "unknown" in answer.detail
        assert answer.after_s < TOLD_S
        assert proxy.count(b"lost %d." % number) == 1
    assert raw.get(COUNTER) == b"12"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("is_silent", [True, False])
def test_a_primary_that_is_replaced(run: Run, port: int, monkeypatch: pytest.MonkeyPatch, is_silent: bool) -> None:
    """The next one is found: at once where the first is silent, and soon where it goes on as if nothing had happened."""
    monkeypatch.setattr(pipelined, "SILENT_S" if is_silent else "PING_S", 0.05)

    async def scenario() -> tuple[Refused | str, Proxy]:
        async with Proxy(port) as first, Proxy(port) as second:
            primary = first

            async def find(_: Address) -> Address:
                return parse_redis_url(address(primary.port))

            store = PipelinedStore(parse_redis_url("redis://nobody"), find=find)
            try:
                await store.execute(Echo("first"))
                primary = second
                first.swallows_replies = is_silent
                waiting = await refusal(store, Echo("lost")) if is_silent else ""
                async with asyncio.timeout(TOLD_S + LATE_S):
                    while not second.count(b"again"):
                        await asyncio.sleep(0.05)
                        await store.execute(Echo("again"))
            finally:
                await store.close()
            return waiting, second

    waiting, second = run(scenario())
    assert second.connections == 1
    if isinstance(waiting, Refused):
        assert "unknown" in waiting.detail
        assert waiting.after_s < redis_clients.PIPELINED.answer_s


@pytest.mark.usefixtures("hasty")
def test_a_connection_that_opens_and_says_nothing(run: Run) -> None:
    """A Redis that hangs before anything was sent: told within 6 s, and that nothing was changed."""

    async def scenario() -> Refused:
        async with Pretender(lambda _: b"") as silent, opened(f"redis://127.0.0.1:{silent.port}") as store:
            with within():
                return await refusal(store)

    refused = run(scenario())
    assert refused.status == 503
    assert refused.after_s < TOLD_S
    assert "Nothing was changed" in refused.detail


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_nobody_there(run: Run) -> None:
    """A port that nobody listens on: told within 6 s, again and again, without a storm of attempts."""

    async def scenario() -> tuple[list[Refused], int]:
        (closed,) = free_ports(1)
        found = []
        async with Pretender(lambda _: None) as closing:
            for port in (closed, closing.port):
                async with opened(f"redis://127.0.0.1:{port}") as store:
                    with within():
                        found += await asyncio.gather(*(refusal(store) for _ in range(5)))
            return found, closing.connections

    refused, attempts = run(scenario())
    for answer in refused:
        assert answer.status == 503
        assert answer.after_s < TOLD_S
        assert "Nothing was changed" in answer.detail
    assert 2 <= attempts <= 20


@pytest.mark.usefixtures("hasty")
def test_the_bound_on_what_waits(run: Run, port: int, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """More commands than are held without a reply are refused at once, and nothing of them is sent."""
    monkeypatch.setattr(redis_clients, "MAX_WAITING", 50)

    async def scenario() -> tuple[list[Refused], Proxy]:
        async with Proxy(port) as proxy, opened(address(proxy.port)) as store:
            await store.execute(Echo("first"))
            proxy.swallows_replies = True
            with within():
                refused = await asyncio.gather(*(refusal(store, Echo(f"number {number}.")) for number in range(80)))
            return refused, proxy

    refused, proxy = run(scenario())
    assert {answer.status for answer in refused} == {503}
    for number, answer in enumerate(refused):
        held = number < 50
        assert ("unknown" in answer.detail) == held
        assert ("Nothing was changed" in answer.detail) != held
        assert held or "more requests wait" in answer.detail
        assert proxy.count(b"number %d." % number) == held
    assert raw.get(COUNTER) == b"51"


# Whether Redis is connected when they come.
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("connected", [True, False])
def test_the_bound_on_bytes(run: Run, port: int, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, connected: bool) -> None:
    """A few large commands are too many as well, also while there is no connection yet."""
    monkeypatch.setattr(redis_clients, "MAX_WAITING_BYTES", 100_000)

    def answer(received: bytes) -> bytes:
        if b"PING" in received:
            return b"+PONG\r\n" if connected else b""
        return b"$1\r\nx\r\n" if len(received) < 1000 else b""

    async def scenario() -> list[Refused]:
        async with Pretender(answer) as strange, opened(f"redis://127.0.0.1:{strange.port}") as store:
            if connected:
                await store.execute(Echo("x"))
            with within():
                return await asyncio.gather(*(refusal(store, Echo("x" * 20_000)) for _ in range(20)))

    refused = ["more requests wait" in answer.detail for answer in run(scenario())]
    assert 10 <= refused.count(True) <= 16


def test_room_again(run: Run, port: int, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the replies have come, there is room again."""
    monkeypatch.setattr(redis_clients, "MAX_WAITING", 10)

    async def scenario() -> tuple[int, str]:
        async with opened(address(port)) as store:
            await store.execute(Echo("first"))
            outcomes = await asyncio.gather(*(store.execute(Echo("x")) for _ in range(30)), return_exceptions=True)
            return outcomes.count("x"), await store.execute(Echo("again"))

    assert run(scenario()) == (10, "again")


GARBAGE = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46", b"$x\r\n", b"*-7\r\n", b"\r\n", b"\0" * 100]


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("when", ["first", "later"])
def test_garbage(run: Run, garbage: bytes, when: str) -> None:
    """What is not Redis's protocol ends the connection: told within 6 s, and another connection is made."""
    speaks_well = False

    def answer(received: bytes) -> bytes:
        if speaks_well or (when == "later" and b"PING" in received):
            return b"+PONG\r\n" if b"PING" in received else b"$1\r\nx\r\n"
        return garbage

    async def scenario() -> tuple[Refused, str]:
        nonlocal speaks_well
        async with Pretender(answer) as strange, opened(f"redis://127.0.0.1:{strange.port}") as store:
            with within():
                refused = await refusal(store)
            speaks_well = True
            return refused, await store.execute(Echo("x"))

    refused, again = run(scenario())
    assert again == "x"
    assert refused.status == 503
    assert refused.after_s < TOLD_S
    assert ("unknown" in refused.detail) == (when == "later")


def test_a_reply_too_many(run: Run) -> None:
    """A reply that nobody asked for is never taken for somebody's: the connection ends, and another is made."""
    replies = {b"one": b"$3\r\none\r\n$3\r\nbad\r\n", b"two": b"$3\r\ntwo\r\n"}

    def answer(received: bytes) -> bytes:
        return next((reply for name, reply in replies.items() if name in received), b"+PONG\r\n")

    async def scenario() -> list[str]:
        async with Pretender(answer) as strange, opened(f"redis://127.0.0.1:{strange.port}") as store:
            found = [await store.execute(Echo("one"))]
            await asyncio.sleep(0.05)
            return [*found, await store.execute(Echo("two")), str(strange.connections)]

    assert run(scenario()) == ["one", "two", "2"]


KEYS = 6000
LOAD_US = 1000  # of each key: 6 s and more


@pytest.mark.slow
@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("kind", [PRODUCTION])
def test_loading(directory: Path, kind: str) -> None:
    """A Redis that still loads its data says so, and so do we; it serves within 2 s of being ready."""
    port, process = start_redis_on_tcp(directory)
    wait_for_redis(process, directory, lambda: listens(port))
    with redis.Redis(port=port, **NO_SETINFO) as client:
        client.mset({f"key {number}": "x" * 100 for number in range(KEYS)})
        client.save()
    process.kill()
    process.wait()
    slowly = ["--key-load-delay", str(LOAD_US), "--loading-process-events-interval-bytes", "1024"]
    port, process = start_redis_on_tcp(directory, *slowly)
    wait_for_redis(process, directory, lambda: listens(port))

    async def scenario() -> tuple[Refused, float]:
        async with opened(f"redis://127.0.0.1:{port}") as store:
            refused = await refusal(store)
            with redis.Redis(port=port, **NO_SETINFO) as client:
                while client.info("persistence").get("loading"):
                    await asyncio.sleep(0.05)
            ready = time.monotonic()
            assert await store.execute(Echo("x")) == "x"
            return refused, time.monotonic() - ready

    try:
        with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
            refused, after_s = runner.run(scenario())
    finally:
        process.kill()
        process.wait()
    assert refused.status == 503
    assert refused.after_s < TOLD_S
    assert "loading" in refused.detail
    assert after_s < 2 + LATE_S


def test_a_redis_that_has_no_room(run: Run, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is away, and not one that cannot say what has changed."""
    port, process = start_redis_on_tcp(directory)
    wait_for_redis(process, directory, lambda: listens(port))
    raw = redis.Redis(port=port, **NO_SETINFO)
    raw.config_set("maxclients", 1)

    async def scenario() -> tuple[Refused, str, bool]:
        store = PipelinedStore(parse_redis_url(f"redis://127.0.0.1:{port}"), on_invalidate=lambda _: None)
        try:
            with within():
                refused = await refusal(store)
            raw.config_set("maxclients", 100)
            return refused, await store.execute(Echo("again")), store.is_tracking
        finally:
            await store.close()

    refused, again, is_told = run(scenario())
    assert (refused.status, again, is_told) == (503, "again", True)
    assert "does not track" not in caplog.text
    raw.close()
    process.kill()
    process.wait()


class Laborious(Echo):
    """An Echo whose reply is worked on for many turns of the event loop."""

    turns = 0

    def outcome(self, reply: bytes) -> Any:
        return in_turns(self._work(reply))

    def _work(self, reply: bytes) -> Turns[str]:
        for _ in range(20):
            time.sleep(0.002)
            Laborious.turns += 1
            yield
        return super().outcome(reply)


@pytest.mark.parametrize("kind", ["redis", "cluster"])
def test_work_in_turns(run: Run, started: Callable[[str], Running], kind: str) -> None:
    """However many replies are worked on, another request waits for a few turns."""

    async def scenario() -> tuple[list[int], list[str]]:
        store = open_async_store(started(kind).url)
        try:
            await store.execute(Echo("first"))
            Laborious.turns = 0
            many = asyncio.gather(*(store.execute(Laborious(str(number))) for number in range(30)))
            while Laborious.turns < 60:  # the first turn is in the same as the reply
                await asyncio.sleep(0)
            waited: list[int] = []
            while not many.done() and min(waited, default=30) >= 30:  # Redis itself may take longer
                before = Laborious.turns
                await store.execute(Echo("other"))
                waited.append(Laborious.turns - before)
            return waited, await many
        finally:
            await store.close()

    waited, texts = run(scenario())
    assert min(waited) < 30
    assert texts == [str(number) for number in range(30)]


def test_closed(run: Run, port: int, raw: redis.Redis) -> None:
    """close() fails what waits as unknown, and what comes afterwards as not done."""

    async def scenario() -> tuple[Refused, Refused]:
        async with opened(address(port)) as store:
            await store.execute(Echo("first"))
            raw.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
            waiting = asyncio.ensure_future(refusal(store))
            await asyncio.sleep(0.05)
            await store.close()
            raw.execute_command("CLIENT", "UNPAUSE")
            return await waiting, await refusal(store)

    waiting, later = run(scenario())
    assert "unknown" in waiting.detail
    assert "Nothing was changed" in later.detail
    assert later.after_s < AT_ONCE_S


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("kind", [PRODUCTION])
def test_a_redis_that_stops_and_goes_on(directory: Path, kind: str) -> None:
    """kill -STOP: told within 6 s, as unknown where it was sent; kill -CONT: served within 2 s, and nothing was run twice."""
    port, process = start_redis_on_tcp(directory)
    wait_for_redis(process, directory, lambda: listens(port))

    async def scenario() -> tuple[list[Refused], float]:
        async with opened(f"redis://127.0.0.1:{port}") as store:
            await store.execute(Echo("first"))
            process.send_signal(signal.SIGSTOP)
            sent = await asyncio.gather(*(refusal(store) for _ in range(20)))
            unsent = await asyncio.gather(*(refusal(store) for _ in range(20)))
            process.send_signal(signal.SIGCONT)
            resumed = time.monotonic()
            assert await store.execute(Echo("again")) == "again"
            return [*sent, *unsent], time.monotonic() - resumed

    try:
        with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
            refused, after_s = runner.run(scenario())
        with redis.Redis(port=port, **NO_SETINFO) as client:
            counted = int(client.get(COUNTER))
    finally:
        process.kill()
        process.wait()
    assert {answer.status for answer in refused} == {503}
    assert max(answer.after_s for answer in refused) < TOLD_S
    assert all("unknown" in answer.detail for answer in refused[:20])
    assert all("Nothing was changed" in answer.detail for answer in refused[20:])
    assert after_s < 2
    assert 2 <= counted <= 22
