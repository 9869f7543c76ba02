"""`kvstore export` and `kvstore import` as processes: what they print, how they end, what a kill leaves, how much they hold."""

import json
import os
import pty
import resource
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import jwt
import pytest

from tests.support.serving import COMMAND, READ_S, Served, bare_environ, run_kvstore, start_kvstore
from tests.support.stores import Running, die_with_parent, wait_until
from tests.support.tokens import SECRET

pytestmark = pytest.mark.slow

MEBIBYTE = 1024 * 1024


@pytest.fixture
def redis_url(started: Callable[[str], Running]) -> str:
    """A Redis, empty."""
    running = started("redis")
    running.redis.flushall()
    return running.url


@pytest.fixture
def served(directory: Path, redis_url: str) -> Iterator[Served]:
    """The service on that Redis; the role admin may do everything."""
    served = start_kvstore(directory, REDIS_URL=redis_url, KVSTORE_SECRET=SECRET)
    yield served
    served.kill()


def lines(count: int) -> str:
    return "".join(f'{{"path":"/people/{each:06}","value":{{"n":{each},"x":1.0}},"ttl":5000}}\n' for each in range(count))


def test_there_and_back(directory: Path, redis_url: str, served: Served) -> None:
    """Into the configured store from stdin, out over HTTP with a token, in again, out of a Redis by its URL."""
    token = jwt.encode({"roles": ["admin"]}, SECRET)
    url = "http://{}:{}".format(*served.at)
    (directory / "in").write_text(lines(1200))
    imported = run_kvstore(directory, "import", "in", REDIS_URL=redis_url)
    assert (imported.returncode, imported.stdout, imported.stderr) == (0, "", "1,200 documents imported\n")
    exported = run_kvstore(directory, "export", url, KVSTORE_TOKEN=token)
    assert (exported.returncode, exported.stderr) == (0, "1,200 documents exported\n")
    assert [json.loads(line)["path"] for line in exported.stdout.splitlines()] == [f"/people/{n:06}" for n in range(1200)]
    some = run_kvstore(directory, "export", url, "/people/000007", KVSTORE_TOKEN=token)
    assert json.loads(some.stdout)["value"] == {"n": 7, "x": 1.0}
    (directory / "out").write_text(exported.stdout + '{"path":"/more","value":7}\n{oops\n')
    again = run_kvstore(directory, "import", "out", url, KVSTORE_TOKEN=token)
    assert again.returncode == 1
    assert again.stderr.startswith("line 1202: the line is not JSON")
    assert again.stderr.endswith("\n1,201 documents imported, 1 refused\n")
    assert run_kvstore(directory, "export", redis_url, "/more").stdout.startswith('{"path":"/more","value":7,"ttl":315')


def test_what_cannot_be_done_is_said(directory: Path, served: Served) -> None:
    """In one line, with the status 1, or 2 for wrong arguments; a token is never printed."""
    url = "http://{}:{}".format(*served.at)
    (directory / "in").write_text(lines(3))
    (directory / "one").write_text("[1}")
    token = jwt.encode({"sub": "ada"}, SECRET)
    rows: list[tuple[list[str], int, str]] = [
        (["export", url], 1, "(status 401); set KVSTORE_TOKEN"),
        (["import", "in", url], 1, "line 1: "),
        (["export", url + "/people"], 1, "no kvstore answers at this URL"),
        (["export", "http://127.0.0.1:1"], 1, "nobody answers at this URL: ConnectionRefusedError"),
        (["export", "http://a:b@127.0.0.1:1"], 1, "an http URL is that of the service"),
        (["import", "nothing", url], 1, "nothing cannot be read: No such file or directory"),
        (["export", "redis+nonsense://x"], 1, "REDIS_URL must be"),
        (["export", "people"], 2, "a path that starts with a slash"),
        (["export", url, "/a", "/b"], 2, "a path that starts with a slash"),
        (["export", url, "/a//b"], 2, "empty"),
        (["import"], 2, "FILE"),
        (["import", "in", "--split", "0"], 2, "from 1 to 32"),
    ]
    for arguments, status, said in rows:
        ran = run_kvstore(directory, *arguments)
        assert (ran.returncode, ran.stdout) == (status, ""), ran.stderr
        assert said in ran.stderr
    refused = run_kvstore(directory, "export", url, KVSTORE_TOKEN=token)
    assert "403" in refused.stderr
    assert token not in refused.stderr


def test_a_json_text_is_split(directory: Path, redis_url: str) -> None:
    """From stdin too, and up to where it is broken."""
    text = '{"posts":[{"id":"a","n":1.0},{"id":"b"}],"profile":{"name":"x"}}'
    for given, status, stored in ((text, 0, 3), (text[:-20], 1, 2)):
        ran = subprocess.run(
            [COMMAND, "import", "-", redis_url, "--split", "2"],
            input=given,
            env=bare_environ(directory),
            capture_output=True,
            text=True,
            timeout=READ_S,
            check=False,
        )
        assert (ran.returncode, ran.stderr.splitlines()[0]) == (status, f"{stored} documents imported")
    exported = run_kvstore(directory, "export", redis_url, "/posts/").stdout.splitlines()
    assert [json.loads(line)["path"] for line in exported] == ["/posts/a", "/posts/b"]


def test_a_killed_import_is_run_again(directory: Path, started: Callable[[str], Running], redis_url: str) -> None:
    """kill -9 when a part is stored: the second run stores everything, and nothing twice."""
    client = started("redis").redis
    (directory / "in").write_text(lines(30_000))
    process = subprocess.Popen(
        [COMMAND, "import", "-", redis_url],
        env=bare_environ(directory),
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
    )
    assert process.stdin
    process.stdin.write(lines(10_000))
    process.stdin.flush()  # and more may come
    wait_until(lambda: client.zcard("kv:{people}!names") > 0, READ_S)
    process.kill()
    process.wait()
    with suppress(BrokenPipeError):
        process.stdin.close()
    assert 0 < client.zcard("kv:{people}!names") <= 10_000
    assert run_kvstore(directory, "import", "in", redis_url).returncode == 0
    exported = run_kvstore(directory, "export", redis_url).stdout.splitlines()
    assert [json.loads(line)["value"]["n"] for line in exported] == list(range(30_000))


def most_bytes(directory: Path, *arguments: str) -> int:
    """The most memory that a command had (getrusage(2)), in bytes."""
    script = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True);"
    script += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    python = COMMAND.with_name("python")
    ran = subprocess.run(
        [python, "-c", script, COMMAND, *arguments],
        env=bare_environ(directory),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=10 * READ_S,
        check=True,
    )
    return int(ran.stdout) * (1 if resource.getpagesize() == 16_384 else 1024)  # macOS counts bytes


def test_memory_is_flat(directory: Path, redis_url: str) -> None:
    """Thirty times the documents take no more memory, in or out, as lines or as one text."""
    for name, count in (("few", 2000), ("many", 60_000)):
        (directory / name).write_text(lines(count))
        text = ",".join(f'{{"id":{each},"n":{each},"x":"{"y" * 100}"}}' for each in range(count))
        (directory / f"{name}.json").write_text(f'{{"split":[{text}]}}')
    for arguments in (["import", "{}", redis_url], ["import", "{}.json", redis_url, "--split", "2"]):
        few, many = (most_bytes(directory, *[each.format(name) for each in arguments]) for name in ("few", "many"))
        assert many - few < 24 * MEBIBYTE
    most = most_bytes(directory, "export", redis_url, "/people/")
    least = most_bytes(directory, "export", redis_url, "/people/000001")
    assert most - least < 24 * MEBIBYTE


def test_progress_is_shown_on_a_terminal(directory: Path, redis_url: str) -> None:
    """And bad lines above it."""
    (directory / "in").write_text(lines(3000) + "{oops\n")
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 100))
    process = subprocess.Popen(
        [COMMAND, "import", "in", redis_url],
        env=bare_environ(directory) | {"TERM": "xterm"},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stderr=side,
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
    )
    os.close(side)
    said = b""
    with os.fdopen(terminal, "rb", buffering=0) as shown:
        try:
            while part := shown.read(4096):
                said += part
        except OSError:  # the process has ended (pty(7))
            pass
    assert process.wait(READ_S) == 1
    assert b"100%" in said
    assert b"3,000 documents" in said
    assert b"\rline 3001: the line is not JSON" in said


def test_who_reads_may_have_enough(directory: Path, redis_url: str) -> None:
    """As `| head` does: no traceback; and Ctrl-C ends it in one line."""
    (directory / "in").write_text(lines(20_000))
    assert run_kvstore(directory, "import", "in", redis_url).returncode == 0
    for by_signal in (False, True):
        process = subprocess.Popen(
            [COMMAND, "export", redis_url],
            env=bare_environ(directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
        )
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith(b'{"path":"/people/000000"')
        if by_signal:
            process.send_signal(signal.SIGINT)
        process.stdout.close()
        process.wait(READ_S)
        assert process.returncode in ((1, 130) if by_signal else (1,))
        assert process.stderr.read() in ((b"", b"kvstore: interrupted\n") if by_signal else (b"",))
        process.stderr.close()
