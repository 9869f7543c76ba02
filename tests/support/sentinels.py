"""Starts a primary with replicas behind Sentinels."""

import subprocess
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.stores import answers, connect, free_ports, redis_server, wait_for_redis, wait_until

LIMIT_S = 40  # Sentinel takes its time
SENTINELS = 3
OPTIONS = ("save ''", "appendonly no", "repl-diskless-sync-delay 0")


def start(directory: Path, port: int, *options: str) -> "subprocess.Popen[bytes]":
    """A redis-server, or with the options of one a Sentinel, that listens once this returns."""
    directory.mkdir()
    settings = directory / "redis.conf"  # a Sentinel writes into it
    settings.write_text(f"port {port}\nbind 127.0.0.1\ndir {directory}\n" + "".join(f"{option}\n" for option in options))
    sentinel = ["--sentinel"] if any("sentinel" in option for option in options) else []
    process = redis_server(directory, str(settings), *sentinel)
    client = connect(f"redis://127.0.0.1:{port}")
    wait_for_redis(process, directory, partial(answers, client))
    client.close()
    return process


class Sentinels:
    """A primary, replicas of it, and three Sentinels that watch them; `url` is how kvstore reaches the primary."""

    def __init__(self, directory: Path, stack: ExitStack, replicas: int = 1) -> None:
        first, *others = free_ports(1 + replicas + SENTINELS)
        watching = others[replicas:]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for port in (first, *others[:replicas]):
            of = () if port == first else (f"replicaof 127.0.0.1 {first}",)
            self.processes[port] = start(directory / str(port), port, *OPTIONS, *of)
            stack.callback(end, self.processes[port])
        self._sentinels = []
        self.watching: list[subprocess.Popen[bytes]] = []
        for port in watching:
            watched = f"sentinel monitor main 127.0.0.1 {first} 2"
            quick = ("sentinel down-after-milliseconds main 500", "sentinel failover-timeout main 3000")
            self.watching.append(start(directory / str(port), port, watched, *quick))
            stack.callback(end, self.watching[-1])
            self._sentinels.append(connect(f"redis://127.0.0.1:{port}"))
            stack.callback(self._sentinels[-1].close)
        wait_until(lambda: self._all_know_all(replicas), LIMIT_S)
        self.url = "redis+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in watching) + "/main"

    def primary(self) -> int:
        """The port of the primary, as the first Sentinel says."""
        return self.primaries()[0]

    def primaries(self) -> list[int]:
        """The same, as each of them says."""
        words = ("SENTINEL GET-MASTER-ADDR-BY-NAME", "main")
        return [int(sentinel.execute_command(*words)[1]) for sentinel in self._sentinels]

    def all_processes(self) -> "list[subprocess.Popen[bytes]]":
        """Those of the primary, the replicas and the Sentinels."""
        return [*self.processes.values(), *self.watching]

    def _all_know_all(self, replicas: int) -> bool:
        masters: list[Any] = [sentinel.sentinel_masters() for sentinel in self._sentinels]
        known = [master["main"] for master in masters]
        return all(seen["num-other-sentinels"] == SENTINELS - 1 and seen["num-slaves"] == replicas for seen in known)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process that may be dead already."""
    process.kill()
    process.wait()
