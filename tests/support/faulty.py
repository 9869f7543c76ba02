"""A proxy between a store and its Redis that makes one fault, at one script of those that pass; and every store behind it."""

import asyncio
import json
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import hiredis
import pytest

from kvstore.core.errors import Problem
from kvstore.core.settings import read_settings
from kvstore.http import protocol
from kvstore.http.messages import Request, Response, refuse
from kvstore.live import readiness
from kvstore.stores import edit_queue, pipelined, query_queue, redis_clients
from kvstore.stores.blocking import open_blocking_store
from kvstore.stores.pooled import open_async_store
from tests.support.stores import (
    KEEPS_NOTHING,
    SLOTS,
    answers,
    connect,
    free_ports,
    make_directory,
    redis_server,
    wait_for_redis,
    wait_until,
)

SETTINGS = read_settings({})

SCRIPTS = (b"EVAL", b"EVALSHA")


class FaultyProxy:
    """Passes commands on to a port of 127.0.0.1, one after the other on each connection.

    FAULTS names what can befall the script number `at`, counted from 0 since `begin()`. What is `late` reaches Redis only at
    `settle()`, after the client has given up. Replies to scripts come `reply_after_s` later.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.redis_port = 0
        self.scripts = 0
        self.reply_after_s = 0.0
        self._fault, self._at = "", 0
        self._late: list[bytes] = []
        self._lock = threading.Lock()
        self._connections: list[tuple[socket.socket, threading.Lock]] = []  # the lock is held while a command is passed on
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, fault: str = "", at: int = 0) -> None:
        """Count the scripts anew, make this fault, and reply at once."""
        self.scripts = 0
        self.reply_after_s = 0.0
        self._fault, self._at = fault, at

    @property
    def was_made(self) -> bool:
        """Whether the script came that the fault was for."""
        return self.scripts > self._at

    def settle(self) -> None:
        """Wait until all that the clients have sent is passed on, what was late included."""
        with socket.create_connection(("127.0.0.1", self.port)) as last:  # those before it are accepted by then
            _exchange(last, hiredis.pack_command(("PING",)))
        for client, carrying in list(self._connections):
            while _has_more(client, carrying):
                time.sleep(0.001)
        with self._lock:
            self._connections = [each for each in self._connections if each[0].fileno() >= 0]
        late, self._late = self._late, []
        for packed in late:
            with self._to_redis() as redis:
                _exchange(redis, packed)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _to_redis(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.redis_port))

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            connection = client, threading.Lock()
            with self._lock:
                self._connections.append(connection)
            threading.Thread(target=self._carry, args=connection, daemon=True).start()

    def _carry(self, client: socket.socket, carrying: threading.Lock) -> None:
        reader, fault = hiredis.Reader(), ""
        try:
            with suppress(OSError), self._to_redis() as redis:
                while True:
                    select.select([client], [], [])
                    with carrying:
                        if not (received := client.recv(65536)):
                            return
                        reader.feed(received)
                        while (words := reader.gets()) is not False:
                            if fault in MUTE:
                                continue
                            fault = self._pass(client, redis, words)
                            if fault in CUT:
                                return
        finally:
            with carrying:  # nobody looks at it now
                client.close()

    def _pass(self, client: socket.socket, redis: socket.socket, words: list[bytes]) -> str:
        """Pass a command on, or make the fault, which is returned."""
        packed = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # its hint knows tuples of one word
        is_script = words[0].upper() in SCRIPTS
        fault = self._next_fault() if is_script else ""
        if fault == "late":
            self._late.append(packed)
        if fault in ERRORS:
            client.sendall(b"-%b\r\n" % ERRORS[fault])
            return fault
        reply = b"" if fault in ("lost", "cut", "late") else _exchange(redis, packed)
        if not fault:
            time.sleep(self.reply_after_s * is_script)
            client.sendall(reply)
        return fault

    def _next_fault(self) -> str:
        with self._lock:
            number, self.scripts = self.scripts, self.scripts + 1
        return self._fault if number == self._at else ""


# What Redis answers in place of running a script.
ERRORS = {
    "LOADING": b"LOADING Redis is loading the dataset in memory",
    "OOM": b"OOM command not allowed when used memory > 'maxmemory'.",
}

FAULTS = (
    "cut",  # the connection ends before the script reaches Redis
    "cut after",  # it ends when Redis has run the script, before the reply
    "lost",  # the script never reaches Redis, and nothing comes back
    "silent",  # Redis runs the script, and nothing comes back
    "late",  # the script reaches Redis when the client has given up
    *ERRORS,
)


CUT = ("cut", "cut after")  # after which the connection ends
MUTE = ("lost", "silent", "late")  # after which nothing comes back any more


def _has_more(client: socket.socket, carrying: threading.Lock) -> bool:
    """Whether a client has sent something that is not passed on yet. It may have left its connection open."""
    with carrying:
        return client.fileno() >= 0 and bool(select.select([client], [], [], 0)[0])


def _exchange(redis: socket.socket, packed: bytes) -> bytes:
    """Send a command to Redis, and return the bytes of its reply."""
    redis.sendall(packed)
    reader, raw = hiredis.Reader(), b""
    while True:
        received = redis.recv(65536)
        if not received:
            raise ConnectionError
        raw += received
        reader.feed(received)
        if reader.gets() is not False:
            return raw


# --- The stores ---------------------------------------------------------------------------------------------------

Execute = Callable[[str, Request], Response]


def answer(request: Request, execute: Callable[[Any], Any]) -> Response:
    """The response, as every adapter makes it."""
    try:
        command = protocol.parse(request, SETTINGS)
        return command if isinstance(command, Response) else protocol.render(request, execute(command))
    except Problem as problem:
        return refuse(problem)


def blocking(url: str, request: Request) -> Response:
    """By the store for threads."""
    store = open_blocking_store(url)
    try:
        return answer(request, store.execute)
    finally:
        store.close()


def looped(url: str, request: Request) -> Response:
    """By the store for event loops."""

    def execute(command: Any) -> Any:
        async def run() -> Any:
            store = open_async_store(url)
            try:
                return await store.execute(command)
            finally:
                await store.close()

        return asyncio.run(run())

    return answer(request, execute)


def as_request(method: str, target: str, body: Any = "", headers: dict[str, str] | None = None) -> Request:
    return Request(method, target.encode(), headers or {}, json.dumps(body).encode() if body != "" else b"")


class Backing:
    """A Redis behind a proxy: `url` is the proxy's, `raw` sees what Redis has."""

    def __init__(self, *, is_cluster: bool) -> None:
        self.proxy = FaultyProxy()
        self._directory = make_directory()
        port, bus_port = free_ports(2)
        options = ["--bind", "127.0.0.1", "--port", str(port), *KEEPS_NOTHING]
        if is_cluster:  # of one node, which sends its clients to the proxy
            options += ["--cluster-enabled", "yes", "--cluster-port", str(bus_port)]
            options += ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", str(self.proxy.port)]
        self._process = redis_server(self._directory, *options)
        self.raw = connect(f"redis://127.0.0.1:{port}")
        wait_for_redis(self._process, self._directory, lambda: answers(self.raw))
        if is_cluster:
            self.raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)
            wait_until(lambda: self.raw.cluster("info")["cluster_state"] == "ok", 30)
        self.proxy.redis_port = port
        self.url = f"{'redis+cluster' if is_cluster else 'redis'}://127.0.0.1:{self.proxy.port}"

    def stop(self) -> None:
        """End all of it."""
        self.proxy.close()
        self.raw.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


STORES: dict[str, tuple[str, Callable[[str, Request], Response]]] = {
    "pipelined": ("single", looped),
    "blocking": ("single", blocking),
    "cluster": ("cluster", looped),
    "blocking, cluster": ("cluster", blocking),
}


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give requests of this process all the time that a busy machine may need."""
    for name in ("BLOCKING", "PIPELINED", "POOLED"):
        monkeypatch.setattr(redis_clients, name, redis_clients.TimeOuts(queue_s=15.0, connect_s=15.0, answer_s=20.0))
    for module in (edit_queue, query_queue):
        monkeypatch.setattr(module, "QUEUED_S", 15.0)
    monkeypatch.setattr(readiness, "READY_S", 15.0)


def hasten(monkeypatch: pytest.MonkeyPatch, limit_s: float) -> None:
    """Give requests no more time than this."""
    for name in ("BLOCKING", "PIPELINED", "POOLED"):
        limits = replace(getattr(redis_clients, name), queue_s=limit_s, connect_s=limit_s, answer_s=limit_s)
        monkeypatch.setattr(redis_clients, name, limits)
    monkeypatch.setattr(pipelined, "CHECK_S", limit_s / 10)
