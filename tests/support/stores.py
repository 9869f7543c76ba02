"""Starts the Redis servers that the tests run on, and touches no other.

A server lives in a directory of its own and ends with the test process, also when that is killed. STORES is the table of
lanes; a lane whose server is not on this machine is skipped.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kvstore.stores import embedded
from kvstore.stores.blocking import BlockingStore, open_blocking_store
from kvstore.stores.redis_clients import NO_SETINFO

MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108, macOS's 104
START_S = 60
CLUSTER_NODES = 3
SLOTS = 16_384
PR_SET_PDEATHSIG = 1
KEEPS_NOTHING = ("--save", "", "--appendonly", "no")
NODE_TIMEOUT_MS = 1000
FAILS_OVER = (  # for a cluster: soon, and a node that fails takes its own slots down, and no others
    *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
    *("--cluster-require-full-coverage", "no"),
    *("--repl-diskless-sync-delay", "0"),
)
PORTS = range(10_000, 32_768)  # below those that Linux gives to clients, whose connections would take a port away (ip(7))
PROCESSES = 64  # of a test run, at most

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """For preexec_fn: the process is killed when the one that started it ends, however that ends (prctl(2)).

    It heeds SIGINT, also where the tests run in the background and do not.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def connect(url: str) -> redis.Redis:
    """A client that sees what redis-cli sees; it sends nothing twice either."""
    return redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=10, **NO_SETINFO)


def redis_server(directory: Path, *arguments: str, executable: str | None = None) -> "subprocess.Popen[bytes]":
    """A process of this machine's redis-server, or of its like, which says into redis.log in `directory` what it does."""
    executable = executable or shutil.which("redis-server")
    if not executable:
        pytest.skip("no redis-server on the PATH")
    with (directory / "redis.log").open("ab") as log:
        return subprocess.Popen(
            [executable, *arguments],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one system call, no lock
        )


def start_redis_on_tcp(directory: Path, *options: str) -> tuple[int, "subprocess.Popen[bytes]"]:
    """A process of redis-server with these options on a port of 127.0.0.1: the port, the process."""
    (port,) = free_ports(1)
    return port, redis_server(directory, "--bind", "127.0.0.1", "--port", str(port), *KEEPS_NOTHING, *options)


def wait_for_redis(process: "subprocess.Popen[bytes]", directory: Path, ready: Callable[[], object]) -> None:
    """Wait until a redis_server is `ready()`; where it ends instead, fail with what it said."""
    said = directory / "redis.log"
    wait_until(lambda: process.poll() is not None or ready(), START_S)
    assert process.poll() is None, said.read_text()


class Running:
    """A server that the tests started: its `url`, its `pid` (None: in this process), a client `redis` that sees all of it."""

    clock_ms = 0  # by which its clock goes on while a script runs

    def __init__(self, url: str, pid: int | None, stop: Callable[[], None]) -> None:
        self.url = url
        self.pid = pid
        self.redis: Any = connect(url)
        self._stop = stop

    def open(self) -> BlockingStore:
        """A store of ours on this server."""
        return open_blocking_store(self.url)

    def signal(self, number: int) -> None:
        """Send the server process a signal."""
        assert self.pid
        os.kill(self.pid, number)

    def stop(self) -> None:
        """End the server, also one that is halted or killed already."""
        self.redis.close()
        self._stop()


class Fake(Running):
    """A Redis of fakeredis in this process; `server` is what clients share."""

    clock_ms = 2000  # as much as a busy machine keeps this process waiting

    def __init__(self) -> None:
        self.url, self.pid = "fake://", None
        self.server = fakeredis.FakeServer()
        self.redis = self._client()

    def open(self) -> BlockingStore:
        return BlockingStore(self._client)

    def stop(self) -> None:
        self.redis.close()

    def _client(self) -> Any:
        return fakeredis.FakeRedis(server=self.server)


class AllNodes(redis.RedisCluster):
    """A client of a cluster that sees the keys of every node; redis-py's own KEYS asks one of them."""

    def keys(self, pattern: Any = "*", **options: Any) -> Any:
        return super().keys(pattern, **({"target_nodes": self.PRIMARIES} | options))


class Cluster(Running):
    """A Redis Cluster; `redis` sees all of its nodes. `pids` are those of the nodes, by port, replicas last."""

    def __init__(self, pids: dict[int, int], stop: Callable[[], None]) -> None:
        ports = list(pids)
        self.url, self.pid, self.pids = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports), None, pids
        nodes = [redis.cluster.ClusterNode("127.0.0.1", port) for port in ports]
        self.redis = AllNodes(startup_nodes=nodes, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=10, **NO_SETINFO)
        self._stop = stop


def start_valkey(directory: Path) -> Running:
    """The embedded server on `directory`; a second start there finds what the first one stored."""
    try:
        server = embedded.start(directory)
    except embedded.NoBinary as reason:
        pytest.skip(str(reason))

    def stop() -> None:
        assert server._process
        server._process.kill()  # also one that is halted, for which stop() would wait
        server.stop()

    return Running(server.url, server.pid, stop)


def start_redis(directory: Path) -> Running:
    """The redis-server of this machine, keeping nothing, on a unix socket in `directory`."""
    at = directory / "redis.sock"
    assert len(os.fsencode(at)) <= MAX_SOCKET_PATH_BYTES
    process = redis_server(directory, "--port", "0", "--unixsocket", str(at), *KEEPS_NOTHING)

    def stop() -> None:
        process.kill()
        process.wait()

    running = Running(f"unix://{at}", process.pid, stop)
    wait_for_redis(process, directory, functools.partial(answers, running.redis))
    return running


def start_cluster(directory: Path, *options: str, replicas_of: Sequence[int] = ()) -> Cluster:
    """A Redis Cluster of three nodes with slots, keeping nothing, on ports of 127.0.0.1, and replicas of the nodes named."""
    count = CLUSTER_NODES + len(replicas_of)
    ports, bus_ports = free_ports(count), free_ports(count)
    processes: dict[int, subprocess.Popen[bytes]] = {}

    def stop() -> None:
        for process in processes.values():
            process.kill()
            process.wait()

    nodes = {port: connect(f"redis://127.0.0.1:{port}") for port in ports}
    try:
        for port, bus_port in zip(ports, bus_ports, strict=True):
            home = directory / str(port)
            home.mkdir()
            clustered = ["--cluster-enabled", "yes", "--cluster-port", str(bus_port)]
            own = ("--port", str(port), "--bind", "127.0.0.1", *clustered, *KEEPS_NOTHING, *options)
            processes[port] = redis_server(home, *own)
        for number, (port, node) in enumerate(nodes.items()):
            wait_for_redis(processes[port], directory / str(port), functools.partial(answers, node))
            if number < CLUSTER_NODES:
                first, last = SLOTS * number // CLUSTER_NODES, SLOTS * (number + 1) // CLUSTER_NODES - 1
                node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            node.execute_command("CLUSTER MEET", "127.0.0.1", ports[0], bus_ports[0])
        for node in nodes.values():
            wait_until(functools.partial(sees_the_cluster, node, count), START_S)
        for primary, replica in zip(replicas_of, ports[CLUSTER_NODES:], strict=True):
            nodes[replica].execute_command("CLUSTER REPLICATE", nodes[ports[primary]].execute_command("CLUSTER MYID"))
            wait_until(lambda replica=replica: nodes[replica].info()["master_link_status"] == "up", START_S)
        for node in nodes.values():
            node.close()
        return Cluster({port: process.pid for port, process in processes.items()}, stop)
    except BaseException:
        stop()
        raise


def start_fake(_: Path) -> Running:
    """fakeredis with Lua."""
    return Fake()


STORES: dict[str, Callable[[Path], Running]] = {
    "valkey": start_valkey,
    "redis": start_redis,
    "cluster": start_cluster,
    "fake": start_fake,
}
SERVERS = ("valkey", "redis")  # those that are processes: they can be halted, killed and raced on


def make_directory() -> Path:
    """A new directory with a path short enough for a unix socket in it; who made it removes it."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(parent)) <= MAX_SOCKET_PATH_BYTES // 2:
            return Path(tempfile.mkdtemp(prefix="kv-", dir=parent))
    raise AssertionError("no directory with a short path")


def answers(client: redis.Redis) -> bool:
    """Whether a Redis answers this client."""
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def sees_the_cluster(client: redis.Redis, nodes: int) -> bool:
    """Whether a node knows all of its cluster, and that is well."""
    seen = client.cluster("info")
    return seen["cluster_state"] == "ok" and int(seen["cluster_known_nodes"]) == nodes


def _own_ports() -> Iterator[int]:
    """The ports of this process among those of a test run, again and again, from a random one on."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = list(PORTS[number::PROCESSES])
    first = random.randrange(len(own))
    return itertools.cycle(own[first:] + own[:first])


_ports = _own_ports()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, and that no client and no other process of this run is given."""
    found: list[int] = []
    for port in _ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("unreachable")


def wait_until(holds: Callable[..., object], limit_s: float) -> float:
    """Wait until `holds()`; the seconds that took. Fails if it does not hold in a look that began after `limit_s`.

    So a process that stood still for longer than that looks once more.
    """
    begun = looked = time.monotonic()
    while not holds():
        assert looked - begun < limit_s, f"not within {limit_s} s"
        time.sleep(0.01)
        looked = time.monotonic()
    return time.monotonic() - begun


def wait_for_disk(client: redis.Redis) -> None:
    """Wait until what a Valkey has stored is on its disk, and outlives a kill -9 (WAITAOF)."""
    client.set("on the disk", 1)  # it waits for what its connection has written, and for all before that
    assert client.execute_command("WAITAOF", 1, 0, 9000) == [1, 0]
    client.delete("on the disk")


def contents(client: redis.Redis) -> dict[bytes, tuple[Any, int]]:
    """All that a Redis holds, to compare before and after; a TTL as the ms at which it ends.

    What is kept for those who follow is left out: it ends by itself in the meantime (`everything`).
    """
    return {key: held for key, held in everything(client).items() if not key.endswith(b"!unread")}


def everything(client: redis.Redis) -> dict[bytes, tuple[Any, int]]:
    """The same, and what ends within 2 s."""
    read: dict[bytes, Callable[[Any, bytes], Any]] = {
        b"string": lambda asked, key: asked.get(key),
        b"hash": lambda asked, key: asked.hgetall(key),
        b"list": lambda asked, key: asked.lrange(key, 0, -1),
        b"set": lambda asked, key: asked.smembers(key),
        b"zset": lambda asked, key: asked.zrange(key, 0, -1, withscores=True),
        b"stream": lambda asked, key: asked.xrange(key),
    }
    keys = list(client.scan_iter(count=1000))
    types = _ask_of_each(client, keys, lambda asked, key: asked.type(key))
    typed = {key: kind for key, kind in zip(keys, types, strict=True) if kind in read}  # a key may have expired meanwhile
    values = _ask_of_each(client, typed, lambda asked, key: read[typed[key]](asked, key))
    ends = _ask_of_each(client, typed, lambda asked, key: asked.pexpiretime(key))
    return {key: (value, int(end or 0)) for key, value, end in zip(typed, values, ends, strict=True)}


def _ask_of_each(client: redis.Redis, keys: Iterable[bytes], ask: Callable[[Any, bytes], object]) -> list[Any]:
    """What Redis answers about each of these keys, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        ask(pipeline, key)
    return pipeline.execute()
